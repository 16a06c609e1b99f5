//! Counts the requests of each client, in memory that all workers of the node share.

use selvedge_sdk::prelude::*;
use selvedge_sdk::serde::{Deserialize, Serialize};

/// The settings.
#[derive(Config)]
pub struct Settings {
    /// What the keys begin with, so that filters that share memory do not meet.
    #[config(default = "visits")]
    prefix: String,
    /// After so many requests a client is sent away.
    #[config(default = 1000, min = 1)]
    limit: u64,
    /// A client that does not come for so long is forgotten.
    #[config(default = "1h", min = "1s")]
    forget: Duration,
}

/// What is known of a client.
#[derive(Deserialize, Serialize)]
#[serde(crate = "selvedge_sdk::serde")]
struct Client {
    number: u64,
    /// What it asked for last.
    last: String,
}

/// The filter.
pub struct Visits {
    settings: Settings,
    known: Kv<Client>,
}

#[filter]
impl Filter for Visits {
    type Config = Settings;
    /// What a request learns and its response tells: the number of the visit.
    type Stream = Option<u64>;

    fn new(settings: Settings) -> Result<Self, String> {
        let known = Kv::new(&settings.prefix);
        Ok(Self { settings, known })
    }

    async fn request(&self, request: &mut Request, visit: &mut Option<u64>) -> Flow {
        let Some(client) = request.client().address() else {
            return Ok(Next);
        };
        // Read, changed and written, again if another worker was faster.
        let counted = self
            .known
            .update_ttl(&client.to_string(), self.settings.forget, |known| {
                let number = known.map_or(0, |known| known.number) + 1;
                Client {
                    number,
                    last: request.path().to_owned(),
                }
            });
        let number = match counted {
            Ok(client) => client.number,
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
