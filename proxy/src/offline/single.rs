//! One request through one filter, and all that can be seen of it. The request goes through the real proxy twice, once past the filter:
//! what differs is what the filter does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use selvedge_config::{ModuleCache, Report, TestOrigin};
use selvedge_wasm::{Trace, TraceEvent};
use serde_json::{Value, json};

use super::origin::{Canned, Received, Requests};
use super::question::Question;
use super::{Offline, OfflineError};
use crate::node;
use crate::plan::Resources;
use crate::request::witness::Witness;

/// How long all of it may take.
const LONGEST: Duration = Duration::from_secs(60);

/// So much of a response's body is looked at.
const BODY_KEPT: usize = 1 << 20;

/// The upstream of the route.
pub(crate) const ORIGIN: &str = "origin";

/// What is to be tried out.
pub(crate) struct Trial {
    /// The filter's name.
    pub(crate) name: String,
    /// As `wasm:` says it.
    pub(crate) module: String,
    /// Further keys of the filter's declaration, `config` among them.
    pub(crate) declared: Value,
    pub(crate) request: Question,
    /// What upstreams answer; [`ORIGIN`] is where the request goes.
    pub(crate) upstreams: BTreeMap<String, TestOrigin>,
}

/// What was seen.
pub(crate) struct Told {
    /// What the client got, and what it gets without the filter.
    pub(crate) response: (Message, Message),
    /// What the origin got with the filter, and what it gets without. `None` = nothing.
    pub(crate) forwarded: (Option<Message>, Option<Message>),
    /// What the filter asked upstreams, and what they answered.
    pub(crate) callouts: Vec<Received>,
    pub(crate) start: Vec<TraceEvent>,
    pub(crate) events: Vec<TraceEvent>,
    pub(crate) left_out: usize,
}

/// A message at one end of the proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Message {
    /// `:status`, or `:method` and `:path`, and all fields, in their order.
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// Why nothing was seen.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SingleError {
    /// The filter or its settings.
    #[error("{}", .0.faults.iter().map(|fault| fault.message.clone()).collect::<Vec<_>>().join("\n"))]
    Refused(Report),
    #[error("the engine of filters does not run here")]
    Engine(#[source] selvedge_wasm::EngineError),
    #[error("{0}")]
    Exchange(String),
}

impl From<OfflineError> for SingleError {
    fn from(error: OfflineError) -> Self {
        match error {
            OfflineError::Config(report) => Self::Refused(report),
            OfflineError::Engine(error) => Self::Engine(error),
        }
    }
}

impl Trial {
    /// Sends the request.
    ///
    /// # Errors
    /// The module does not load, the filter refuses its settings, or there is no answer.
    pub(crate) async fn run(&self) -> Result<Told, SingleError> {
        let done = tokio::time::timeout(LONGEST, async {
            let with = self.once(true).await?;
            let without = self.once(false).await?;
            Ok::<_, SingleError>((with, without))
        });
        let (with, without) = done.await.map_err(|_| SingleError::Exchange(format!("no answer in {LONGEST:?}")))??;
        let (forwarded, callouts) = with.requests.into_iter().partition::<Vec<_>, _>(|one| one.upstream == ORIGIN);
        // A callout may go to the origin too; what the client is waiting for is asked last.
        let mut forwarded = forwarded;
        let last = forwarded.pop();
        let passed_on = |received: Option<Received>| received.map(Message::of_request);
        Ok(Told {
            response: (with.response, without.response),
            forwarded: (passed_on(last), passed_on(without.requests.into_iter().next_back())),
            callouts: callouts.into_iter().chain(forwarded).collect(),
            start: with.start,
            events: with.trace.events(),
            left_out: with.trace.left_out(),
        })
    }

    async fn once(&self, filtered: bool) -> Result<Once, SingleError> {
        let requests = Requests::default();
        let starts = Arc::new(Trace::telling());
        let offline = self.offline(filtered, &requests, &starts)?;
        let start = starts.events();
        let trace = Arc::new(Trace::telling());
        let witness = Arc::new(Witness::tracing(&trace));
        let response = offline.ask(&self.request, &witness, BODY_KEPT).await.map_err(SingleError::Exchange)?;
        let requests = std::mem::take(&mut *requests.lock());
        Ok(Once { response: Message::of_response(response), requests, trace, start })
    }

    /// A configuration with one route, through the filter or past it.
    fn offline(&self, filtered: bool, requests: &Requests, starts: &Arc<Trace>) -> Result<Offline, SingleError> {
        let upstreams: BTreeMap<&str, Value> =
            self.upstreams.keys().map(|name| (name.as_str(), json!({ "endpoints": ["192.0.2.80:80"] }))).collect();
        let mut filter = self.declared.clone();
        filter["wasm"] = json!(self.module);
        let filters: &[&str] = if filtered { &[&self.name] } else { &[] };
        let config = json!({
            "version": 1,
            "node": { "module_cache": "off", "workers": 1 },
            "listeners": {
                "web": { "bind": "127.0.0.1:80" },
                "secure": { "bind": "127.0.0.1:443", "tls": { "certificates": "development" } },
            },
            "upstreams": upstreams,
            "filters": { &self.name: filter },
            "sites": [{ "hosts": ["*"], "routes": [{ "name": "trial", "filters": filters, "to": ORIGIN }] }],
        });
        // JSON is YAML.
        let loaded = node::loader().load_str("filter run", &config.to_string()).map_err(SingleError::Refused)?;
        let (answers, told) = (self.upstreams.clone(), Arc::clone(requests));
        let dial = Box::new(move |upstream: &str| -> crate::upstream::Dial {
            Arc::new(Canned::telling(answers.get(upstream).cloned().unwrap_or_default(), upstream, &told))
        });
        let resources = Resources::offline(&ModuleCache::Off, dial).map_err(SingleError::Engine)?;
        if filtered {
            resources.trace_starts(starts);
        }
        Ok(Offline::of(loaded, resources, std::path::Path::new("filter run"))?)
    }
}

struct Once {
    response: Message,
    requests: Vec<Received>,
    trace: Arc<Trace>,
    start: Vec<TraceEvent>,
}

impl Message {
    fn of_request(received: Received) -> Self {
        let pseudo = [(":method".to_owned(), received.method), (":path".to_owned(), received.target)];
        Self { fields: pseudo.into_iter().chain(fields(&received.headers)).collect(), body: received.body.to_vec() }
    }

    fn of_response(response: super::trial::Response) -> Self {
        let chunked = response.headers.get("transfer-encoding").is_some();
        let body = if chunked { dechunked(&response.body) } else { response.body };
        let status = (":status".to_owned(), response.status.to_string());
        Self { fields: [status].into_iter().chain(fields(&response.headers)).collect(), body }
    }

    /// The first field of this name.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Fields that `other` has not, with what they are there: `-` and `+` of a comparison, in the order of names.
    pub(crate) fn without(&self, other: &Self) -> Vec<(String, String)> {
        // The clock moves between the two exchanges, and framing is between neighbours.
        const PASSING: [&str; 4] = ["date", "connection", "transfer-encoding", "age"];
        let mut rest = other.fields.clone();
        let mut only: Vec<(String, String)> = Vec::new();
        for field in &self.fields {
            match rest.iter().position(|other| other == field) {
                Some(place) => drop(rest.swap_remove(place)),
                None if PASSING.contains(&field.0.as_str()) => {}
                None => only.push(field.clone()),
            }
        }
        only.sort();
        only
    }
}

fn fields(headers: &http::HeaderMap) -> impl Iterator<Item = (String, String)> {
    headers
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
}

/// The content of a chunked body (RFC 9112, 7.1), as far as it has come.
fn dechunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = memchr::memmem::find(rest, b"\r\n") {
        let line = String::from_utf8_lossy(&rest[..end]).into_owned();
        let Ok(size) = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16) else { break };
        let after = &rest[end + 2..];
        let chunk = &after[..size.min(after.len())];
        body.extend_from_slice(chunk);
        if size == 0 || chunk.len() < size {
            break;
        }
        rest = after.get(size + 2..).unwrap_or_default();
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunked_body_is_put_together_as_far_as_it_goes() {
        for (wire, expected) in [
            ("5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n", "hello world"),
            ("5\r\nhel", "hel"),
            ("0\r\n\r\n", ""),
            ("", ""),
            ("zz\r\nhello", ""),
            ("ffffffffffffffff\r\nhello", "hello"),
        ] {
            assert_eq!(String::from_utf8(dechunked(wire.as_bytes())).unwrap(), expected, "{wire:?}");
        }
    }

    #[test]
    fn messages_differ_in_what_only_one_has() {
        let message = |fields: &[(&str, &str)]| Message {
            fields: fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            body: Vec::new(),
        };
        let a = message(&[(":status", "200"), ("x", "1"), ("x", "1"), ("date", "now")]);
        let b = message(&[(":status", "200"), ("x", "1"), ("y", "2"), ("date", "then")]);
        assert_eq!(a.without(&b), [("x".to_owned(), "1".to_owned())]);
        assert_eq!(b.without(&a), [("y".to_owned(), "2".to_owned())]);
    }
}
