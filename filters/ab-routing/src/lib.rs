//! Bundled filter `ab-routing`: assigns every user to a variant of an experiment, tells the origin and keeps the user there.
//!
//! ```yaml
//! filters:
//!   checkout:
//!     wasm: builtin:ab-routing
//!     config:
//!       experiment: checkout            # the origin sees x-ab-checkout: <variant>
//!       user: { cookie: session }       # or { header: x-user }, client_ip, generated (the default)
//!       variants:
//!         - { name: control, weight: 90 }                         # the route's own upstream
//!         - { name: one-page, weight: 10, upstream: app-next }
//!       cookie:                         # keeps a user in a variant; null: none
//!         name: ab-checkout
//!         max_age: 30d
//!         path: /
//!         same_site: lax
//!         http_only: true
//!         secure: true                  # left out: as the request came
//!       override_header: x-ab-override  # testers choose a variant; left out: they cannot
//! ```
//!
//! **Assignment.** The experiment's name and the user key are hashed to a point between 0 and 1; the weights, in the order of the
//! variants' *names*, cut that range into intervals. So the order in the file does not matter, every worker and node agrees without any
//! shared state, and a change of weights moves only users between an old and a new cut: from 50/50 to 60/40 exactly one in ten moves.
//! A new variant shifts the cuts of those whose names come after it; name it to sort last to leave the others where they are.
//!
//! **Stickiness.** A user keeps the variant of the cookie even when weights change or drop to 0; a variant that no longer exists is
//! replaced. The cookie holds the variant's name: it is a preference, not a permission, and a user can change it.
//!
//! **Caching.** The header to the origin is set on every request (copies that a client sends are removed first). When answers of the
//! variants differ and are cached, every upstream must say `Vary: x-ab-<experiment>`, or one variant's answer is served to the others.

pub mod assign;
pub mod config;

use selvedge_sdk::prelude::*;

use crate::assign::Origin;
use crate::config::{Config, Experiment, User};

/// The filter.
pub struct AbRouting {
    experiment: Experiment,
}

#[filter(body = "none")]
impl Filter for AbRouting {
    type Config = Config;
    /// The cookie to set on the response.
    type Stream = Option<String>;

    fn new(config: Config) -> Result<Self, String> {
        Ok(Self { experiment: config.check().map_err(|error| error.to_string())? })
    }

    async fn request(&self, req: &mut Request, set_cookie: &mut Option<String>) -> Flow {
        let experiment = &self.experiment;
        let override_value = experiment.override_header.as_ref().and_then(|name| req.header_str(name));
        let sticky = experiment.cookie.as_ref().and_then(|cookie| req.cookie(&cookie.name));
        let assignment =
            experiment.assign(override_value.as_deref(), sticky.as_deref(), || user_key(&experiment.user, req));
        let variant = assignment.variant;

        if let Some(name) = &experiment.override_header {
            req.remove_header(name);
        }
        let copies = req.headers().map(|(name, _)| name).filter(|name| assign::passes_for(name, &experiment.header));
        copies.for_each(|name| req.remove_header(&name));
        req.set_header(&experiment.header, &variant.name);
        if let Some(upstream) = &variant.upstream {
            req.set_upstream(upstream);
        }
        if assignment.origin == Origin::New {
            *set_cookie = experiment.set_cookie(&variant.name, req.scheme() == "https");
        }
        Ok(Next)
    }

    async fn response(&self, res: &mut Response, set_cookie: &mut Option<String>) -> Flow {
        if let Some(cookie) = set_cookie {
            res.add_header("set-cookie", cookie.as_str());
        }
        Ok(Next)
    }
}

/// What the user is known by; a random key when the request does not say.
fn user_key(user: &User, req: &Request) -> Vec<u8> {
    let key = match user {
        User::Cookie(name) => req.cookie(name).map(String::into_bytes),
        User::Header(name) => req.header(name).map(HeaderValue::into_bytes),
        User::ClientIp => req.client().address().map(|address| address.to_canonical().to_string().into_bytes()),
        User::Generated => None,
    };
    key.filter(|key| !key.is_empty()).unwrap_or_else(random_key)
}

fn random_key() -> Vec<u8> {
    let mut key = vec![0; 16];
    if let Err(error) = getrandom::fill(&mut key) {
        // Without randomness the time still spreads users; it need not be secret.
        warn!("no randomness from the host: {error}");
        let now = clock::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        return now.as_nanos().to_le_bytes().to_vec();
    }
    key
}
