//! JSON Web Tokens: verified in the guest, on any host. Feature `jwt` of this crate.
//!
//! ```
//! use selvedge_sdk::jwt;
//! use selvedge_sdk::prelude::*;
//!
//! /// The settings.
//! #[derive(Config)]
//! pub struct Settings {
//!     /// Whose tokens are accepted.
//!     tokens: jwt::Settings,
//! }
//!
//! pub struct Members {
//!     tokens: jwt::Verifier,
//! }
//!
//! #[filter]
//! impl Filter for Members {
//!     type Config = Settings;
//!
//!     fn new(settings: Settings) -> Result<Self, String> {
//!         Ok(Self { tokens: jwt::Verifier::new(settings.tokens)? })
//!     }
//!
//!     async fn request(&self, request: &mut Request) -> Flow {
//!         let claims = self.tokens.bearer(request).await?; // 401 with `WWW-Authenticate`, 503 without keys
//!         if !claims.has("scope", "members") {
//!             return Err(Reply::new(403).text("members only"));
//!         }
//!         request.set_header("x-user", claims.subject().unwrap_or_default());
//!         Ok(Next)
//!     }
//! }
//! ```
//!
//! **What is checked**: form and size (8 KiB), `typ`, that the algorithm is accepted and the key is made for it, the signature, `exp`, `nbf`,
//! `iat`, `iss`, `aud`, required claims. There is no `none`, keys inside of tokens are ignored, and duplicate names are refused.
//!
//! **Keys** stand in the settings ([`Settings`]: a secret, a public key in PEM, a key set), or come from an upstream
//! ([`RemoteKeys`]: the `jwks_uri` of an identity provider). The latter are fetched when the first token needs them, unless
//! [`Verifier::refresh`] has done so in the `start` hook, and again when they are older than `ttl` or a token names a key that is not among them
//! (twice a minute at most). When the upstream does not answer they serve on for `stale`. They are kept per VM: with one VM per exchange
//! (`isolation: request`) each exchange fetches them, so run such a filter with one VM per worker.
//!
//! **Cost**: an RSA signature takes the guest about a millisecond, so tokens that were verified are remembered (`cache_entries`), their
//! times are checked every time. Refused tokens are not remembered: put a rate limit before the filter where clients may send many. The
//! module grows by about 600 KB.

mod remote;
mod settings;

use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

/// A verifier without settings, remote keys or a clock: for those who need another result than [`Claims`].
pub use selvedge_jwt::Verifier as TokenVerifier;
pub use selvedge_jwt::claims::{ClaimRules, Claims, Requirement};
pub use selvedge_jwt::keys::{KeyError, KeySet};
pub use selvedge_jwt::select::Claim;
pub use selvedge_jwt::verify::{Rules, Verified};
pub use selvedge_jwt::{Algorithm, Rejection, source};

use self::remote::Remote;
pub use self::remote::RemoteKeys;
pub use self::settings::{Checked, Jwks, Leeway, OneOrMany, RequiredClaims, Settings, SettingsError};
use crate::{Reply, Request, clock};

/// Verifies tokens by its settings.
pub struct Verifier {
    tokens: TokenVerifier,
    remote: Option<Remote>,
    realm: Rc<str>,
}

impl Verifier {
    /// A verifier with these settings. What the operator should know of them, although it is no error, is logged at warn.
    ///
    /// # Errors
    /// The first setting that is wrong, by name.
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        let checked = settings.check()?;
        for warning in &checked.warnings {
            log::warn!("{warning}");
        }
        Ok(Self {
            tokens: TokenVerifier::new(checked.rules),
            remote: checked.remote.map(|keys| Remote::new(keys, checked.algorithms)),
            realm: checked.realm.into(),
        })
    }

    /// Verifies the bearer token of a request: the one `Authorization` header of scheme `Bearer` (RFC 6750, 2.1).
    ///
    /// # Errors
    /// [`Denied`], which is a [`Reply`] after `?`.
    pub async fn bearer(&self, request: &Request) -> Result<Rc<Verified>, Denied> {
        let token = bearer(request).map_err(|rejection| self.denied(rejection.into()))?;
        self.verify(&token).await
    }

    /// Verifies a token, wherever it comes from. It waits only where keys must be fetched.
    ///
    /// # Errors
    /// [`Denied`]: why the token is refused, or that there are no keys to verify it with.
    pub async fn verify(&self, token: &str) -> Result<Rc<Verified>, Denied> {
        let Some(remote) = &self.remote else {
            return self.verify_now(token).map_err(|rejection| self.denied(rejection.into()));
        };
        remote.ready(&self.tokens).await.map_err(|error| self.denied(error))?;
        let verdict = match self.verify_now(token) {
            // A new key may be in use before the old set is too old (OpenID Connect Core, 10.1.1).
            Err(Rejection::UnknownKey) if remote.renew(&self.tokens).await => self.verify_now(token),
            verdict => verdict,
        };
        verdict.map_err(|rejection| self.denied(rejection.into()))
    }

    /// Fetches remote keys if they are older than their `ttl`: for the `start` and `tick` hooks, so that no exchange waits for it. Without
    /// remote keys there is nothing to do.
    ///
    /// # Errors
    /// [`Cause::NoKeys`]: there are none, and the upstream has not given any.
    pub async fn refresh(&self) -> Result<(), Denied> {
        match &self.remote {
            Some(remote) => remote.ready(&self.tokens).await.map_err(|error| self.denied(error)),
            None => Ok(()),
        }
    }

    fn verify_now(&self, token: &str) -> Result<Rc<Verified>, Rejection> {
        self.tokens.verify(token, clock::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO))
    }

    fn denied(&self, cause: Cause) -> Denied {
        Denied { cause, realm: self.realm.clone() }
    }
}

/// The bearer token of a request (RFC 6750, 2.1). Nothing in it is verified.
///
/// # Errors
/// [`Rejection::Missing`], [`Rejection::Repeated`], [`Rejection::Malformed`].
pub fn bearer(request: &Request) -> Result<String, Rejection> {
    let headers: Vec<(String, Vec<u8>)> = request.headers().collect();
    let fields = headers.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
    Ok(source::Sources::default().find(fields, None)?.token)
}

/// A token is not accepted. `?` makes it a [`Reply`]: 401 with `WWW-Authenticate` (RFC 6750, 3), 400 when there were several tokens, 503 when
/// there are no keys; with a problem document (RFC 9457) in each case.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{cause}")]
pub struct Denied {
    /// Why.
    pub cause: Cause,
    realm: Rc<str>,
}

/// Why a token is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// There is none, or something is wrong with it.
    #[error("{0}")]
    Rejected(Rejection),
    /// Nobody can say: the keys could not be fetched.
    #[error("no keys: {0}")]
    NoKeys(String),
}

impl From<Rejection> for Cause {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

impl From<Denied> for Reply {
    fn from(denied: Denied) -> Self {
        let reply = match &denied.cause {
            Cause::Rejected(rejection) => {
                log::debug!("token refused: {rejection}");
                let title = if rejection.status() == 400 { "Bad Request" } else { "Unauthorized" };
                Self::new(rejection.status())
                    .header("www-authenticate", rejection.challenge(&denied.realm))
                    .problem(title, &rejection.to_string())
            }
            Cause::NoKeys(why) => {
                log::warn!("tokens cannot be verified: {why}");
                Self::new(503).problem("Service Unavailable", "tokens cannot be verified now")
            }
        };
        reply.header("cache-control", "no-store")
    }
}
