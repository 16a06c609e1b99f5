//! Asks another service about each request before it goes on, and remembers nothing.

use selvedge_sdk::prelude::*;

/// The settings.
#[derive(Config)]
pub struct Settings {
    /// The upstream that is asked.
    authz: Upstream,
    /// What it is asked for.
    #[config(default = "/check")]
    path: String,
    /// How long its answer may take.
    #[config(default = "250ms", min = "1ms", max = "5s")]
    timeout: Duration,
}

/// The filter.
pub struct Callout {
    settings: Settings,
    asked: metrics::Counter,
}

#[filter]
impl Filter for Callout {
    type Config = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        Ok(Self {
            settings,
            asked: metrics::counter("authz_asked_total"),
        })
    }

    async fn request(&self, request: &mut Request) -> Flow {
        let token = request
            .header_str("authorization")
            .or_deny(401, "missing authorization")?;
        self.asked.inc(1);

        // The request waits here; others go on meanwhile.
        let answer = self
            .settings
            .authz
            .get(&self.settings.path)
            .header("authorization", &token)
            .header("x-path", request.path())
            .timeout(self.settings.timeout)
            .send()
            .await
            .or_deny(503, "nobody can say whether you may")?;

        if answer.status() != 200 {
            return Err(Reply::new(403).text("not allowed"));
        }
        if let Some(user) = answer.header("x-user") {
            request.set_header("x-user", user.as_bytes());
        }
        Ok(Next)
    }
}
