//! Gives each visitor one of several variants, and remembers it in a cookie.

use selvedge_sdk::prelude::*;

/// The settings.
#[derive(Config)]
pub struct Settings {
    /// The name of the cookie.
    #[config(default = "variant")]
    cookie: String,
    /// The variants, all equally likely.
    #[config(min_len = 1, max_len = 100)]
    variants: Vec<String>,
}

/// The filter.
pub struct Ab {
    settings: Settings,
}

#[filter(body = "none")] // it is asked about requests, not about their bodies
impl Filter for Ab {
    type Config = Settings;
    /// The variant of a visitor who has no cookie yet.
    type Stream = Option<String>;

    fn new(settings: Settings) -> Result<Self, String> {
        let plain = |text: &str| {
            !text.is_empty()
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        for name in settings.variants.iter().chain([&settings.cookie]) {
            if !plain(name) {
                return Err(format!(
                    "{name:?}: letters, digits and `-` only, since it stands in a cookie"
                ));
            }
        }
        Ok(Self { settings })
    }

    async fn request(&self, request: &mut Request, new: &mut Option<String>) -> Flow {
        let known = request
            .cookie(&self.settings.cookie)
            .filter(|one| self.settings.variants.contains(one));
        let variant = known.unwrap_or_else(|| {
            let drawn = self.draw(request);
            *new = Some(drawn.clone());
            drawn
        });
        request.set_header("x-variant", &variant); // for the origin, which may also be told by a route
        Ok(Next)
    }

    async fn response(&self, response: &mut Response, new: &mut Option<String>) -> Flow {
        if let Some(variant) = new {
            let cookie = SetCookie::new(&self.settings.cookie, variant.as_str());
            response.set_cookie(cookie.max_age(Duration::from_secs(30 * 86_400)));
        }
        Ok(Next)
    }
}

impl Ab {
    /// The same for the same client, spread evenly over all of them (FNV-1a of address and browser).
    fn draw(&self, request: &Request) -> String {
        let address = request
            .client()
            .address()
            .map(|address| address.to_string())
            .unwrap_or_default();
        let browser = request.header_str("user-agent").unwrap_or_default();
        let hash = address
            .bytes()
            .chain([0])
            .chain(browser.bytes())
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        let index = (hash >> 32) as usize % self.settings.variants.len();
        self.settings.variants[index].clone()
    }
}
