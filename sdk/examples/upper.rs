//! A body transform: text responses in upper case.

use selvedge_sdk::prelude::*;
use serde::Deserialize;

/// The settings.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The longest body to transform, in bytes; longer ones pass unchanged. Default 1 MiB.
    #[serde(default = "default_max_body")]
    max_body: usize,
}

fn default_max_body() -> usize {
    1024 * 1024
}

/// Upper-cases text.
pub struct Upper {
    config: Config,
}

#[filter]
impl Filter for Upper {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        Ok(Self { config })
    }

    async fn response(&self, response: &mut Response, _: &mut ()) -> Flow {
        let is_text = response.header_str("content-type").is_some_and(|value| value.starts_with("text/"));
        if !is_text {
            return Ok(Next);
        }

        let Ok(body) = response.body(self.config.max_body).await else { return Ok(Next) };
        response.set_body(body.to_ascii_uppercase());
        Ok(Next)
    }
}
