//! For members only: the tokens of an identity provider, whose keys are fetched from an upstream. Needs feature `jwt`.

use selvedge_sdk::jwt;
use selvedge_sdk::prelude::*;

/// The settings.
#[derive(Config)]
pub struct Settings {
    /// Whose tokens are accepted.
    tokens: jwt::Settings,
    /// The scope that a token must have.
    #[config(default = "members")]
    scope: String,
}

/// The filter.
pub struct Members {
    tokens: jwt::Verifier,
    scope: String,
}

#[filter(body = "none")]
impl Filter for Members {
    type Config = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        Ok(Self { tokens: jwt::Verifier::new(settings.tokens)?, scope: settings.scope })
    }

    async fn start(&self) {
        // So that no exchange has to wait for the keys. Where that fails, the first exchange tries again.
        if let Err(error) = self.tokens.refresh().await {
            warn!("{error}");
        }
    }

    async fn request(&self, request: &mut Request) -> Flow {
        let claims = self.tokens.bearer(request).await?;
        if !claims.has("scope", &self.scope) {
            return Err(Reply::new(403).problem("Forbidden", &format!("the token lacks the scope {}", self.scope)));
        }
        // Whatever a client has put there itself goes.
        request.remove_header("x-user");
        if let Some(user) = claims.subject() {
            request.set_header("x-user", user);
        }
        Ok(Next)
    }
}
