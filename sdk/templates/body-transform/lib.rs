//! Adds a field to every JSON object that the origin sends.

use selvedge_sdk::prelude::*;
use selvedge_sdk::serde_json::{self, Value};

/// The settings.
#[derive(Config)]
pub struct Settings {
    /// The field.
    #[config(default = "served_by")]
    field: String,
    /// What it says.
    #[config(default = "selvedge")]
    value: String,
    /// The longest document that is changed; a longer one is answered with 502.
    #[config(default = "1MiB", max = "16MiB")]
    max_body: ByteSize,
}

/// The filter.
pub struct Transform {
    settings: Settings,
}

#[filter]
impl Filter for Transform {
    type Config = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        Ok(Self { settings })
    }

    async fn response(&self, response: &mut Response) -> Flow {
        let kind = response.header_str("content-type").unwrap_or_default();
        if !kind.starts_with("application/json") {
            return Ok(Next); // A body that is not asked for streams past, and is never copied into the filter.
        }
        // From here on the response waits until its body is whole.
        let body = response.body(self.settings.max_body).await?;
        let Ok(Value::Object(mut document)) = serde_json::from_slice(&body) else {
            return Ok(Next);
        };
        document.insert(
            self.settings.field.clone(),
            self.settings.value.as_str().into(),
        );
        response.set_body(Value::Object(document).to_string());
        Ok(Next)
    }
}
