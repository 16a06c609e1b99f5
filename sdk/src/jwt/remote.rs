//! Keys that an upstream has.

use std::cell::RefCell;
use std::time::{Duration, UNIX_EPOCH};

use selvedge_jwt::KeySet;

use super::{Algorithm, Cause, TokenVerifier};
use crate::{Upstream, clock, crypto};

/// After a fetch that has failed without any keys to go on with, the next one waits so long: exchanges meanwhile are told the same.
const RETRY: Duration = Duration::from_secs(1);
/// Between two fetches while there are keys: because they are too old and the last fetch failed, or because a token names an unknown key.
const RENEW: Duration = Duration::from_secs(30);
/// The largest answer that is read.
const MAX_SET: usize = 256 * 1024;

/// Where keys are fetched: the `jwks_uri` of an identity provider.
#[derive(Clone, selvedge_sdk::Config)]
pub struct RemoteKeys {
    /// The upstream that has the key set (RFC 7517).
    pub upstream: Upstream,
    /// Its path, query included.
    #[config(default = "/.well-known/jwks.json", pattern = "^/")]
    pub path: String,
    /// The authority (`Host`) to ask for. Default: the name of the upstream.
    pub host: Option<String>,
    /// How long a set is good: then it is fetched again.
    #[config(default = "10m", min = "10s", max = "1d")]
    pub ttl: Duration,
    /// How much longer it serves when it cannot be fetched again; `0s`: not at all.
    #[config(default = "1h", max = "7d")]
    pub stale: Duration,
    /// How long a fetch may take; the exchange that needs the keys waits for it.
    #[config(default = "2s", min = "1ms", max = "30s")]
    pub timeout: Duration,
}

/// The keys of an upstream, and when they were fetched.
pub(super) struct Remote {
    from: RemoteKeys,
    algorithms: Vec<Algorithm>,
    state: RefCell<State>,
}

/// Times are those of [`clock::monotonic`].
#[derive(Default)]
struct State {
    /// When the keys came, and the hash of what came; `None`: there are none yet.
    fetched: Option<(Duration, [u8; 32])>,
    /// When they were last asked for.
    asked: Option<Duration>,
    /// Why the last fetch failed; `None`: it did not, or it is under way.
    fault: Option<String>,
}

/// What has to be done before a token can be verified.
#[derive(Debug, PartialEq)]
enum Need {
    Nothing,
    Fetch,
    /// Nothing can be done now.
    Fault(String),
}

impl Remote {
    pub(super) fn new(from: RemoteKeys, algorithms: Vec<Algorithm>) -> Self {
        Self { from, algorithms, state: RefCell::default() }
    }

    /// Sees to it that there are keys which are not too old.
    pub(super) async fn ready(&self, tokens: &TokenVerifier) -> Result<(), Cause> {
        match self.need(now()) {
            Need::Nothing => return Ok(()),
            Need::Fault(fault) => return Err(Cause::NoKeys(fault)),
            Need::Fetch => {}
        }
        match self.fetch(tokens).await {
            Ok(()) => Ok(()),
            Err(fault) if self.serves(now()) => {
                log::warn!("token keys could not be renewed, the old ones serve on: {fault}");
                Ok(())
            }
            Err(fault) => Err(Cause::NoKeys(fault)),
        }
    }

    /// Fetches the keys because a token names one that is not among them. `true`: they are others now.
    pub(super) async fn renew(&self, tokens: &TokenVerifier) -> bool {
        let before = self.state.borrow().fetched.map(|(_, hash)| hash);
        if self.asked_within(RENEW, now()) {
            return false;
        }
        match self.fetch(tokens).await {
            Ok(()) => self.state.borrow().fetched.map(|(_, hash)| hash) != before,
            Err(fault) => {
                log::warn!("token keys could not be renewed, the old ones serve on: {fault}");
                false
            }
        }
    }

    fn need(&self, now: Duration) -> Need {
        let state = self.state.borrow();
        let fresh = state.fetched.is_some_and(|(at, _)| now.abs_diff(at) < self.from.ttl);
        if fresh {
            return Need::Nothing;
        }
        if self.serves(now) {
            // One exchange in a while waits for the fetch, the others go on with what there is.
            return if self.asked_within(RENEW, now) { Need::Nothing } else { Need::Fetch };
        }
        match &state.fault {
            Some(fault) if self.asked_within(RETRY, now) => Need::Fault(fault.clone()),
            // Also while another exchange fetches: a hook cannot wait for what was sent by another exchange, which may end before.
            _ => Need::Fetch,
        }
    }

    /// Whether there are keys that may be used, if need be.
    fn serves(&self, now: Duration) -> bool {
        let fetched = self.state.borrow().fetched;
        fetched.is_some_and(|(at, _)| now.abs_diff(at) < self.from.ttl + self.from.stale)
    }

    fn asked_within(&self, period: Duration, now: Duration) -> bool {
        self.state.borrow().asked.is_some_and(|at| now.abs_diff(at) < period)
    }

    async fn fetch(&self, tokens: &TokenVerifier) -> Result<(), String> {
        {
            let mut state = self.state.borrow_mut();
            state.asked = Some(now());
            state.fault = None;
        }
        let text = self.ask().await;
        let result = text.and_then(|text| self.take(&text, tokens));
        self.state.borrow_mut().fault = result.as_ref().err().cloned();
        result
    }

    async fn ask(&self) -> Result<Vec<u8>, String> {
        let from = &self.from;
        let mut request = from.upstream.get(&from.path).header("accept", "application/json").timeout(from.timeout);
        if let Some(host) = &from.host {
            request = request.host(host);
        }
        let answer = request.send().await.and_then(crate::CallResponse::ok).map_err(|error| error.to_string())?;
        if answer.body().len() > MAX_SET {
            return Err(format!("upstream {}: the key set is larger than 256 KiB", from.upstream.name()));
        }
        Ok(answer.body().to_vec())
    }

    /// Makes what came the keys, unless they are the same.
    fn take(&self, text: &[u8], tokens: &TokenVerifier) -> Result<(), String> {
        let hash = crypto::sha256(text);
        let same = self.state.borrow().fetched.is_some_and(|(_, old)| old == hash);
        if !same {
            let (keys, warnings) = KeySet::from_text(text, &self.algorithms)
                .map_err(|error| format!("upstream {}: {error}", self.from.upstream.name()))?;
            for warning in &warnings {
                log::warn!("upstream {}: {warning}", self.from.upstream.name());
            }
            tokens.set_keys(keys);
        }
        self.state.borrow_mut().fetched = Some((now(), hash));
        Ok(())
    }
}

fn now() -> Duration {
    clock::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
