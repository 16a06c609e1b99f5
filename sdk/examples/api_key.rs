//! Asks an authorization service about API keys and remembers the good ones.

use std::time::UNIX_EPOCH;

use selvedge_sdk::prelude::*;
use serde::{Deserialize, Serialize};

/// The settings.
#[derive(Config)]
pub struct Settings {
    /// The header that carries the key.
    #[config(default = "x-api-key")]
    header: HeaderName,
    /// The upstream that knows the keys.
    authz: Upstream,
    /// How long to wait for its answer.
    #[config(default = "250ms", min = "1ms", max = "5s")]
    timeout: Duration,
    /// How long a good key is remembered.
    #[config(default = "60s")]
    remember: Duration,
}

/// What is known about a good key; also what the service answers.
#[derive(Deserialize, Serialize)]
struct Key {
    tenant: String,
    #[serde(default)]
    until: u64,
}

/// The filter.
pub struct ApiKey {
    settings: Settings,
    allowed: metrics::Counter,
    lookups: metrics::Counter,
}

#[filter]
impl Filter for ApiKey {
    type Config = Settings;
    type Stream = Option<String>;

    fn new(settings: Settings) -> Result<Self, String> {
        Ok(Self {
            settings,
            allowed: metrics::counter("api_key_allowed"),
            lookups: metrics::counter("api_key_lookups"),
        })
    }

    async fn request(&self, request: &mut Request, tenant: &mut Option<String>) -> Flow {
        let key = request.header_str(&self.settings.header).or_deny(401, "missing api key")?;
        let known = match self.remembered(&key) {
            Some(known) => known,
            None => self.ask(&key).await?,
        };

        self.allowed.inc(1);
        request.remove_header(&self.settings.header);
        request.set_header("x-tenant", &known.tenant);
        *tenant = Some(known.tenant);
        Ok(Next)
    }

    async fn response(&self, response: &mut Response, tenant: &mut Option<String>) -> Flow {
        if let Some(tenant) = tenant {
            response.set_header("x-tenant", tenant);
        }
        Ok(Next)
    }

    fn done(&self, tenant: &Option<String>) {
        info!("served {}", tenant.as_deref().unwrap_or("nobody"));
    }
}

impl ApiKey {
    fn remembered(&self, key: &str) -> Option<Key> {
        let (json, _) = kv::get(key)?;
        let known: Key = serde_json::from_slice(&json).ok()?;
        (known.until > now_seconds()).then_some(known)
    }

    async fn ask(&self, key: &str) -> Result<Key, Reply> {
        self.lookups.inc(1);
        let answer = self
            .settings
            .authz
            .get("/check")
            .header("x-key", key)
            .timeout(self.settings.timeout)
            .send()
            .await
            .or_deny(503, "authz unavailable")?;
        let mut known: Key = answer.ok().or_deny(403, "bad api key")?.json().or_deny(502, "authz makes no sense")?;

        known.until = now_seconds() + self.settings.remember.as_secs();
        if let Ok(json) = serde_json::to_vec(&known)
            && let Err(error) = kv::set(key, &json, None)
        {
            warn!("a key is not remembered: {error}");
        }
        Ok(known)
    }
}

fn now_seconds() -> u64 {
    clock::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
