//! Says what it wants of the cache, as the request's header fields `x-part`, `x-tag`, `x-ttl` (seconds) and `x-bypass` say, and shows in the
//! response's `x-verdict` what came of it, or `none`. A wish that was refused is told the origin in `x-refused`.

use selvedge_sdk::prelude::*;

/// The filter.
pub struct Cached;

#[filter(body = "none")]
impl Filter for Cached {
    type Config = ();
    type Stream = ();

    fn new((): ()) -> Result<Self, String> {
        Ok(Self)
    }

    async fn request(&self, request: &mut Request, _: &mut ()) -> Flow {
        let mut taken = true;
        for (name, value) in request.headers().collect::<Vec<_>>() {
            let text = String::from_utf8_lossy(&value).into_owned();
            let mut cache = request.cache();
            taken &= match name.as_str() {
                "x-part" => cache.key_part(&text),
                "x-tag" => cache.tag(&text),
                "x-ttl" => cache.lifetime(Duration::from_secs(text.parse().unwrap_or(0))),
                "x-bypass" => cache.bypass(),
                _ => true,
            };
        }
        if !taken {
            request.set_header("x-refused", "yes");
        }
        Ok(Next)
    }

    async fn response(&self, response: &mut Response, _: &mut ()) -> Flow {
        let verdict = match response.cache() {
            Some(verdict) => format!(
                "{} hit={} key={} fresh={}",
                verdict.status,
                verdict.hit,
                verdict.key.is_some(),
                verdict.left.is_some_and(|left| !left.is_zero())
            ),
            None => "none".to_owned(),
        };
        response.set_header("x-verdict", verdict);
        Ok(Next)
    }
}
