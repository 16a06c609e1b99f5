//! Adds a header to every response.

use selvedge_sdk::prelude::*;

/// The settings: what stands under `config:` in the configuration of the node.
#[derive(Config)]
pub struct Settings {
    /// What the header says.
    #[config(default = "from a filter")]
    greeting: String,
}

/// The filter. There is one for each worker of the node, for all its requests.
pub struct Blank {
    settings: Settings,
}

#[filter]
impl Filter for Blank {
    type Config = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        Ok(Self { settings })
    }

    async fn request(&self, request: &mut Request) -> Flow {
        debug!("{} {}", request.method(), request.path());
        Ok(Next) // or Err(Reply::new(403).text("no")) to answer here
    }

    async fn response(&self, response: &mut Response) -> Flow {
        response.set_header("x-hello", &self.settings.greeting);
        Ok(Next)
    }
}
