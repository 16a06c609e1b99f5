//! A body transform: text responses in upper case.

use selvedge_sdk::prelude::*;

/// The settings.
#[derive(Config)]
pub struct Settings {
    /// The longest body to transform; longer ones pass unchanged.
    #[config(default = "1MiB", min = "1B")]
    max_body: ByteSize,
}

/// Upper-cases text.
pub struct Upper {
    settings: Settings,
}

#[filter]
impl Filter for Upper {
    type Config = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        Ok(Self { settings })
    }

    async fn response(&self, response: &mut Response) -> Flow {
        let is_text = response.header_str("content-type").is_some_and(|value| value.starts_with("text/"));
        if !is_text {
            return Ok(Next);
        }

        let Ok(body) = response.body(self.settings.max_body).await else { return Ok(Next) };
        response.set_body(body.to_ascii_uppercase());
        Ok(Next)
    }
}
