//! Says what it does through crate `tracing`: fields in lines, and spans that last while a hook waits. Needs feature `tracing`.

use selvedge_sdk::prelude::{CallResponse, Config, Filter, Flow, Next, Request, Upstream, filter};
use selvedge_sdk::tracing::{self, Span, debug, field, info, warn};

/// The settings.
#[derive(Config)]
pub struct Settings {
    /// Who knows the users.
    users: Upstream,
}

/// The filter.
pub struct Traced {
    users: Upstream,
}

#[filter(body = "none")]
impl Filter for Traced {
    type Config = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        info!(users = settings.users.name(), "configured");
        Ok(Self { users: settings.users })
    }

    async fn request(&self, request: &mut Request) -> Flow {
        let span = tracing::info_span!("exchange", path = request.path(), user = field::Empty);
        // Not `span.enter()`: other exchanges run while this one waits.
        tracing::Instrument::instrument(self.ask(request), span).await;
        Ok(Next)
    }
}

impl Traced {
    async fn ask(&self, request: &mut Request) {
        debug!("asking");
        match self.users.get("/me").send().await.and_then(CallResponse::ok) {
            Ok(answer) => {
                let user = String::from_utf8_lossy(answer.body());
                Span::current().record("user", &*user);
                info!(status = answer.status(), bytes = answer.body().len(), "known");
                request.set_header("x-user", &*user);
            }
            Err(error) => warn!(%error, "not known"),
        }
    }
}
