//! A tour of the SDK: every path shows one thing a filter can do. Read it as a cookbook.

use selvedge_sdk::foreign::{self, ForeignError};
use selvedge_sdk::prelude::*;

/// How much of a request body is read, in bytes.
const MAX_BODY: usize = 1000;

/// The filter.
pub struct Tour {
    exchanges: metrics::Counter,
    waiting: metrics::Gauge,
    body_bytes: metrics::Histogram,
}

#[filter(body = "request")]
impl Filter for Tour {
    type Stream = Vec<&'static str>;

    fn new() -> Result<Self, String> {
        Ok(Self {
            exchanges: metrics::counter("tour_exchanges"),
            waiting: metrics::gauge("tour_waiting"),
            body_bytes: metrics::histogram("tour_body_bytes"),
        })
    }

    async fn request(&self, request: &mut Request, steps: &mut Vec<&'static str>) -> Flow {
        steps.push("request");
        match request.path() {
            // Answers with the body it was sent; over the limit the `?` answers 413.
            "/echo" => {
                self.waiting.add(1);
                let body = request.body(MAX_BODY).await;
                self.waiting.add(-1);
                let body = body?;
                self.body_bytes.record(u64::try_from(body.len()).unwrap_or(u64::MAX));
                Err(Reply::new(200).header("content-type", "application/octet-stream").body(body))
            }

            // Looks at the first bytes and lets the body go, however much follows.
            "/start" => {
                let start = request.body_prefix(4).await?;
                request.set_header("x-start", start.bytes);
                request.set_header("x-whole", start.whole.to_string());
                Ok(Next)
            }

            // Replaces the body unread: the old one is thrown away as it comes.
            "/replace" => {
                request.set_body("another body");
                Ok(Next)
            }

            // Two callouts at once, then the body, then one more callout.
            "/ask" => {
                let (a, b) = join(upstream("a").get("/1").send(), upstream("b").post("/2").body("x").send()).await;
                let a = a.or_deny(503, "a does not answer")?.ok().or_deny(502, "a says no")?;
                let b = b.or_deny(503, "b does not answer")?;
                let body = request.body(MAX_BODY).await?;
                let c = upstream("a")
                    .request(Method::PUT, "/3")
                    .host("c.example")
                    .header("x-from", a.header("x-name").map_or(&b""[..], |name| name.as_bytes()))
                    .body([b.body(), &body].concat())
                    .send()
                    .await
                    .or_deny(503, "a does not answer any more")?;
                Err(Reply::new(c.status()).body(c.body()))
            }

            // Everything a request tells about itself.
            "/look" => Err(Reply::new(200).text(&look(request))),

            // Everything that can be changed. A header value need not be text.
            "/change" => {
                request.set_header("x-raw", b"\xff\xfe");
                request.add_header("x-many", "1");
                request.add_header("x-many", "2");
                request.remove_header("cookie");
                request.set_path("/changed");
                request.set_upstream("b");
                Ok(Next)
            }

            // Data that all workers share, changed without losing a write.
            "/count" => {
                let count = kv::update("count", |old| {
                    let count = old.and_then(|old| old.try_into().ok()).map_or(0, u32::from_le_bytes);
                    (count + 1).to_le_bytes().to_vec()
                });
                let count = count.or_deny(503, "cannot count")?;
                let (stored, version) = kv::get("count").or_deny(500, "nothing was stored")?;
                kv::set("count", &stored, Some(version)).or_deny(500, "the version was current")?;
                let stale = kv::set("count", &stored, Some(version));
                Err(Reply::new(200).json(&(count, stale == Err(kv::KvError::CasMismatch))))
            }

            // A function that this host does not have.
            "/foreign" => match foreign::call("no.such.function", b"") {
                Err(ForeignError::Unknown) => Err(Reply::new(501)),
                _ => Ok(Next),
            },

            "/away" => {
                Err(Reply::new(302).redirect("/elsewhere").header("set-cookie", "a=1").header("set-cookie", "b=2"))
            }

            // A bug. The log says where.
            "/panic" => {
                let nothing: Option<u8> = request.query().map(|_| 1);
                Err(Reply::new(u16::from(nothing.expect("this path needs a query"))))
            }

            _ => Ok(Next),
        }
    }

    async fn response(&self, response: &mut Response, steps: &mut Vec<&'static str>) -> Flow {
        steps.push("response");
        if response.status() == 418 {
            let answer = upstream("a").get("/tea").send().await.or_deny(503, "no tea")?;
            response.set_status(answer.status());
            response.set_header("x-tea", answer.body());
        }
        if response.header("x-secret").is_some() {
            return Err(Reply::new(500).text("the origin has said too much"));
        }
        Ok(Next)
    }

    fn done(&self, steps: &Vec<&'static str>) {
        self.exchanges.inc(1);
        info!("{}", steps.join(", "));
    }
}

fn look(request: &Request) -> String {
    let client = request.client();
    let seconds = clock::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let facts = [
        request.method().to_string(),
        request.url(),
        request.host(),
        format!("{:?}", request.query()),
        format!("{:?}", request.cookie("b")),
        format!("{:?}", request.header("x-raw").map(|value| value.to_vec())),
        format!("{:?}", request.header_str("x-raw")),
        format!("{:?}", request.header_values("x-many")),
        format!("{:?} {:?} {:?}", client.address(), client.country(), client.continent()),
        format!("{:?}", request.property(&["no", "such"])),
        seconds.to_string(),
    ];
    facts.join("\n")
}
