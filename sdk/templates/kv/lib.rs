//! Counts the requests of each client, in memory that all workers of the node share.

use selvedge_sdk::prelude::*;

/// The settings.
#[derive(Config)]
pub struct Settings {
    /// What the keys begin with, so that filters that share memory do not meet.
    #[config(default = "visits")]
    prefix: String,
    /// After so many requests a client is sent away.
    #[config(default = 1000, min = 1)]
    limit: u64,
}

/// The filter.
pub struct Visits {
    settings: Settings,
}

#[filter]
impl Filter for Visits {
    type Config = Settings;
    /// What a request learns and its response tells: the number of the visit.
    type Stream = Option<u64>;

    fn new(settings: Settings) -> Result<Self, String> {
        Ok(Self { settings })
    }

    async fn request(&self, request: &mut Request, visit: &mut Option<u64>) -> Flow {
        let Some(client) = request.client().address() else {
            return Ok(Next);
        };
        let key = format!("{}:{client}", self.settings.prefix);
        // Read, changed and written, again if another worker was faster.
        let counted = kv::update(&key, |known| (count(known) + 1).to_string().into_bytes());
        let number = match counted {
            Ok(bytes) => count(Some(&bytes)),
            Err(error) => {
                warn!("visits are not counted: {error}");
                return Ok(Next);
            }
        };
        *visit = Some(number);
        if number > self.settings.limit {
            return Err(Reply::new(429).text("come back tomorrow"));
        }
        Ok(Next)
    }

    async fn response(&self, response: &mut Response, visit: &mut Option<u64>) -> Flow {
        if let Some(number) = visit {
            response.set_header("x-visit", number.to_string());
        }
        Ok(Next)
    }
}

fn count(bytes: Option<&[u8]>) -> u64 {
    bytes
        .and_then(|bytes| std::str::from_utf8(bytes).ok()?.parse().ok())
        .unwrap_or(0)
}
