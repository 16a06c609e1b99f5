//! Asks an authorization service about API keys and remembers the good ones.

use std::time::UNIX_EPOCH;

use selvedge_sdk::prelude::*;
use serde::{Deserialize, Serialize};

/// The settings.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The header that carries the key.
    #[serde(default = "default_header")]
    header: String,
    /// The upstream that knows the keys.
    authz: String,
    /// How long a good key is remembered, in seconds.
    #[serde(default = "default_remember")]
    remember_seconds: u64,
}

fn default_header() -> String {
    "x-api-key".into()
}

fn default_remember() -> u64 {
    60
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
    config: Config,
    allowed: metrics::Counter,
    lookups: metrics::Counter,
}

#[filter]
impl Filter for ApiKey {
    type Config = Config;
    type Stream = Option<String>;

    fn new(config: Config) -> Result<Self, String> {
        if config.authz.is_empty() {
            return Err("`authz` names no upstream".into());
        }
        Ok(Self { config, allowed: metrics::counter("api_key_allowed"), lookups: metrics::counter("api_key_lookups") })
    }

    async fn request(&self, request: &mut Request, tenant: &mut Option<String>) -> Flow {
        let key = request.header_str(&self.config.header).or_deny(401, "missing api key")?;
        let known = match self.remembered(&key) {
            Some(known) => known,
            None => self.ask(&key).await?,
        };

        self.allowed.inc(1);
        request.remove_header(&self.config.header);
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
        let answer = upstream(&self.config.authz)
            .get("/check")
            .header("x-key", key)
            .timeout(Duration::from_millis(250))
            .send()
            .await
            .or_deny(503, "authz unavailable")?;
        let mut known: Key = answer.ok().or_deny(403, "bad api key")?.json().or_deny(502, "authz makes no sense")?;

        known.until = now_seconds() + self.config.remember_seconds;
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
