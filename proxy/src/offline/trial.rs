//! `selvedge test`: the `tests` of a configuration, each run through the proxy itself, from Pingora's HTTP/1 session to the upstream's
//! connection; only the two ends are pipes in memory. Each test has fresh filters, shared data and counters, and an empty cache.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use pingora::apps::HttpServerApp;
use pingora::protocols::http::server::Session as HttpSession;
use selvedge_config::{Expect, Position, Test, TestOrigin, ValueMatch};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::watch;

use super::origin::Canned;
use super::question::Question;
use super::wire::Wire;
use super::{Offline, OfflineError};
use crate::listening;
use crate::node;
use crate::plan::FieldValue;
use crate::request::witness::{Seen, Witness};
use crate::upstream::DialFor;

/// How long one test may take, however many filters wait for whatever.
const LONGEST: Duration = Duration::from_secs(60);

/// What fits into the client's pipe before somebody reads.
const PIPE: usize = 64 * 1024;

/// The longest header of a response.
const HEAD_MAX: usize = 1 << 20;

/// An expectation that does not hold.
#[derive(Debug)]
pub(crate) struct Miss {
    /// `file:line:column` of the expectation.
    pub(crate) at: String,
    /// Its key.
    pub(crate) key: String,
    pub(crate) expected: String,
    pub(crate) got: String,
}

impl Offline {
    /// Runs a test; what does not hold is told, all of it.
    ///
    /// # Errors
    /// The configuration cannot be resolved any more: a file has changed meanwhile.
    pub(crate) async fn try_out(&self, test: &Test) -> Result<Vec<Miss>, OfflineError> {
        let offline = self.afresh(answers(&test.origins))?;
        // Nobody else in this process has a use for it.
        if let Some(cache) = offline.current.plan().cache {
            cache.purge_all();
        }
        let done = tokio::time::timeout(LONGEST, offline.exchange(&test.request)).await;
        let why = match done {
            Ok(Ok((response, seen))) => return Ok(misses(&test.expect, &response, &seen)),
            Ok(Err(why)) => why,
            Err(_) => format!("no answer in {LONGEST:?}"),
        };
        let miss =
            Miss { at: test.position.to_string(), key: "request".into(), expected: "an answer".into(), got: why };
        Ok(vec![miss])
    }

    /// One request and its response, and what was seen of them inside.
    async fn exchange(&self, request: &selvedge_config::TestRequest) -> Result<(Response, Seen), String> {
        let witness = Arc::new(Witness::default());
        let response = self.ask(&Question::of(request), &witness, 0).await?;
        Ok((response, witness.seen()))
    }

    /// Sends a request through the proxy; of the response's body this much is kept, as it comes.
    pub(super) async fn ask(
        &self,
        request: &Question,
        witness: &Arc<Witness>,
        keep: usize,
    ) -> Result<Response, String> {
        let sent = request.sent(self).map_err(|error| error.to_string())?;
        let mut edge = self.edge(&sent.listener);
        edge.witness = Some(Arc::clone(witness));
        let door = listening::door(&node::server_conf(), edge);

        let (mut client, pipe) = tokio::io::duplex(PIPE);
        let wire = Wire::new(pipe, &sent);
        // As good as a node that stops: the connection ends with this exchange, and the end of a response is seen.
        let (_stop, shutdown) = watch::channel(true);
        let served = tokio::spawn(async move {
            // Past the door itself: it refuses HTTP/1 where there is HTTP/2 only, and routes do not mind which it is.
            drop(door.proxy.process_new_http(HttpSession::new_http1(Box::new(wire)), &shutdown).await);
        });
        // Who refuses a request may do so before all of it is written.
        let (mut reading, mut writing) = tokio::io::split(&mut client);
        let (response, _written) = tokio::join!(Response::read(&mut reading, keep), writing.write_all(&sent.bytes));
        let response = response?;
        served.await.map_err(|_| "the exchange broke off".to_owned())?;
        Ok(response)
    }
}

impl Question {
    fn of(request: &selvedge_config::TestRequest) -> Self {
        Self {
            url: request.url.clone(),
            method: request.method.clone(),
            headers: request.headers.clone(),
            body: request.body.clone(),
            client: request.client,
            country: request.country.clone(),
            listener: request.listener.clone(),
        }
    }
}

/// What upstreams of these names answer, and the others.
fn answers(origins: &BTreeMap<String, TestOrigin>) -> DialFor {
    let origins = origins.clone();
    Box::new(move |upstream| Arc::new(Canned::new(origins.get(upstream).cloned().unwrap_or_default())))
}

/// A response as the client sees it.
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    /// What was to be kept of its body, as it came: in chunks, perhaps.
    pub(super) body: Vec<u8>,
}

impl Response {
    /// Reads to the end of the connection; interim responses are passed over.
    async fn read(io: &mut tokio::io::ReadHalf<&mut DuplexStream>, keep: usize) -> Result<Self, String> {
        let mut buffer = BytesMut::new();
        let mut response: Option<Self> = None;
        loop {
            while response.is_none()
                && let Some(end) = memchr::memmem::find(&buffer, b"\r\n\r\n")
            {
                response = Self::parse(&buffer[..end])?;
                buffer.advance(end + 4);
            }
            if let Some(response) = &mut response {
                let room = keep.saturating_sub(response.body.len());
                response.body.extend_from_slice(&buffer[..buffer.len().min(room)]);
                buffer.clear();
            } else if buffer.len() > HEAD_MAX {
                return Err("the response has no end of its header".into());
            }
            let count = io.read_buf(&mut buffer).await.map_err(|error| error.to_string())?;
            if count == 0 {
                return response.ok_or_else(|| "the connection was closed without an answer".into());
            }
        }
    }

    /// `None` = an interim one.
    fn parse(head: &[u8]) -> Result<Option<Self>, String> {
        let mut lines = head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        let odd = || "the response is no HTTP/1".to_owned();
        let first = lines.next().ok_or_else(odd)?;
        let status = first.split(|byte| *byte == b' ').nth(1).and_then(|status| std::str::from_utf8(status).ok());
        let status: u16 = status.and_then(|status| status.parse().ok()).ok_or_else(odd)?;
        let mut headers = HeaderMap::new();
        for line in lines.filter(|line| !line.is_empty()) {
            let colon = memchr::memchr(b':', line).ok_or_else(odd)?;
            let name = HeaderName::from_bytes(&line[..colon]).map_err(|_| odd())?;
            let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).map_err(|_| odd())?;
            headers.append(name, value);
        }
        // After 101 another protocol is spoken: it is final.
        Ok(if (100..200).contains(&status) && status != 101 {
            None
        } else {
            Some(Self { status, headers, body: Vec::new() })
        })
    }

    fn values(&self, name: &str) -> Vec<&[u8]> {
        self.headers.get_all(name).iter().map(HeaderValue::as_bytes).collect()
    }
}

/// What is said of what there is not.
const NONE: &str = "none";

fn misses(expect: &Expect, response: &Response, seen: &Seen) -> Vec<Miss> {
    let mut misses = Vec::new();
    let mut compare = |key: &str, expected: Option<String>, got: String| {
        if let Some(expected) = expected.filter(|expected| *expected != got) {
            misses.push(Miss { at: at(expect.position_of(key)), key: key.to_owned(), expected, got });
        }
    };
    let or_none = |seen: &Option<String>| seen.clone().unwrap_or_else(|| NONE.into());
    compare("site", expect.site.clone(), or_none(&seen.site));
    compare("route", expect.route.clone(), or_none(&seen.route));
    compare("status", expect.status.map(|status| status.to_string()), response.status.to_string());
    compare("location", expect.location.clone(), shown(&response.values("location")));
    compare("cache_key", expect.cache_key.clone(), or_none(&seen.cache_key));
    compare("upstream", expect.upstream.clone(), or_none(&seen.upstream));
    compare("path", expect.path.clone(), or_none(&seen.path));
    for (name, wanted) in &expect.headers {
        let values = response.values(name);
        let given = values.iter().map(|value| std::borrow::Cow::Borrowed(*value));
        // The loader has compiled it before.
        if !FieldValue::of(name, wanted).is_ok_and(|wanted| wanted.matches(given)) {
            let key = format!("headers.{name}");
            misses.push(Miss { at: at(expect.position_of(&key)), key, expected: told(wanted), got: shown(&values) });
        }
    }
    misses
}

fn at(position: Option<&Position>) -> String {
    position.map(ToString::to_string).unwrap_or_default()
}

fn told(wanted: &ValueMatch) -> String {
    match wanted {
        ValueMatch::Exact(text) => text.clone(),
        ValueMatch::Prefix(text) => format!("something that begins with {text}"),
        ValueMatch::Regex(regex) => format!("something that matches {regex}"),
        ValueMatch::Present(true) => "any value".into(),
        ValueMatch::Present(false) => NONE.into(),
    }
}

fn shown(values: &[&[u8]]) -> String {
    if values.is_empty() {
        return NONE.into();
    }
    values.iter().map(|value| String::from_utf8_lossy(value)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_response_is_read_and_interim_ones_are_not() {
        let read = |head: &str| Response::parse(head.as_bytes()).map(|found| found.map(|response| response.status));
        assert_eq!(read("HTTP/1.1 200 OK\r\na: b"), Ok(Some(200)));
        assert_eq!(read("HTTP/1.1 103 Early Hints\r\nlink: x"), Ok(None));
        assert_eq!(read("HTTP/1.1 101 Switching Protocols"), Ok(Some(101)));
        for odd in ["", "HTTP/1.1", "HTTP/1.1 x", "HTTP/1.1 200 OK\r\nno colon"] {
            assert!(read(odd).is_err(), "{odd}");
        }
        let response = Response::parse(b"HTTP/1.1 200\r\nA: 1\r\na:  2 ").unwrap().unwrap();
        assert_eq!(shown(&response.values("a")), "1, 2");
        assert_eq!(shown(&response.values("b")), "none");
    }
}
