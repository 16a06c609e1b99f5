//! Callouts: HTTP requests of a filter to an upstream of the proxy.
//!
//! ```no_run
//! # use selvedge_sdk::prelude::*;
//! # async fn ask(key: &str) -> Result<(), Reply> {
//! let answer = upstream("authz")
//!     .get("/check")
//!     .header("x-key", key)
//!     .timeout(Duration::from_millis(250))
//!     .send()
//!     .await
//!     .or_deny(503, "authz unavailable")?;
//! answer.ok().or_deny(403, "bad key")?;
//! # Ok(()) }
//! ```

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserializer, Serialize};

use crate::config::{Config, Json};
use crate::host::{self, Buffer, Map, Status};
use crate::{HeaderValue, Method};

mod grpc;

pub use self::grpc::{GrpcCall, GrpcCode, GrpcRequest, GrpcResponse};

/// How long a callout may take when nothing else is said.
const TIMEOUT: Duration = Duration::from_secs(5);

/// An upstream, by its name in the proxy's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    name: String,
}

/// The upstream of that name. Whether the proxy has it shows when a callout is sent.
pub fn upstream(name: &str) -> Upstream {
    Upstream { name: name.to_owned() }
}

/// A setting that names an upstream: the host knows the names (format `selvedge-upstream` of the schema) and says which is meant.
impl Config for Upstream {
    const SCHEMA: Json = Json::Object(&[
        ("type", Json::Text("string")),
        ("format", Json::Text("selvedge-upstream")),
        ("minLength", Json::Raw("1")),
    ]);

    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let name = String::read(from)?;
        if name.trim().is_empty() { Err(D::Error::custom("names no upstream")) } else { Ok(Self { name }) }
    }
}

impl AsRef<str> for Upstream {
    fn as_ref(&self) -> &str {
        &self.name
    }
}

impl Upstream {
    /// Its name in the proxy's configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A GET of a path, query included.
    pub fn get(&self, path: &str) -> CallRequest {
        self.request(Method::GET, path)
    }

    /// A POST to a path, query included.
    pub fn post(&self, path: &str) -> CallRequest {
        self.request(Method::POST, path)
    }

    /// A PUT to a path, query included.
    pub fn put(&self, path: &str) -> CallRequest {
        self.request(Method::PUT, path)
    }

    /// A PATCH of a path, query included.
    pub fn patch(&self, path: &str) -> CallRequest {
        self.request(Method::PATCH, path)
    }

    /// A DELETE of a path, query included.
    pub fn delete(&self, path: &str) -> CallRequest {
        self.request(Method::DELETE, path)
    }

    /// A HEAD of a path, query included.
    pub fn head(&self, path: &str) -> CallRequest {
        self.request(Method::HEAD, path)
    }

    /// Any request.
    pub fn request(&self, method: Method, path: &str) -> CallRequest {
        CallRequest {
            upstream: self.name.clone(),
            method,
            path: path.to_owned(),
            host: None,
            headers: Vec::new(),
            body: Vec::new(),
            timeout: TIMEOUT,
        }
    }
}

/// A callout that is not sent yet.
#[derive(Clone, Debug)]
#[must_use = "a callout does nothing until it is sent"]
pub struct CallRequest {
    upstream: String,
    method: Method,
    path: String,
    host: Option<String>,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    timeout: Duration,
}

impl CallRequest {
    /// The authority (the Host header). Default: the name of the upstream.
    pub fn host(mut self, host: impl Into<String>) -> Self {
        self.host = Some(host.into());
        self
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    /// Sets the body; `content-length` comes with it.
    pub fn body(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.body = bytes.into();
        self
    }

    /// Sets the body to a value as JSON, with its type. A value that cannot be written as JSON is logged and sent as `null`.
    pub fn json(self, value: &impl Serialize) -> Self {
        let json = serde_json::to_vec(value).unwrap_or_else(|error| {
            log::error!("the body of a callout is not JSON: {error}");
            b"null".to_vec()
        });
        self.header("content-type", "application/json").body(json)
    }

    /// How long to wait for the whole answer, to the millisecond and at least one. Default 5 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.max(Duration::from_millis(1));
        self
    }

    /// Sends it now; the answer is what the returned future waits for. Several can be under way at once ([`join`](crate::join),
    /// [`join_all`](crate::join_all), [`race`](crate::race), [`first_ok`](crate::first_ok)). Drop the future and the answer is thrown away
    /// unread when it comes.
    pub fn send(self) -> Call {
        let authority = self.host.as_deref().unwrap_or(&self.upstream);
        let length = self.body.len().to_string();
        let mut headers: Vec<(&str, &[u8])> = vec![
            (":method", self.method.as_str().as_bytes()),
            (":path", self.path.as_bytes()),
            (":authority", authority.as_bytes()),
        ];
        headers.extend(self.headers.iter().map(|(name, value)| (&**name, &**value)));
        if !self.body.is_empty() {
            headers.push(("content-length", length.as_bytes()));
        }

        let sent = host::current().call(&self.upstream, &headers, &self.body, self.timeout);
        match sent {
            Ok(token) => {
                let slot = Slot::new(self.upstream, self.timeout);
                let slot = Rc::new(RefCell::new(slot));
                let call = Outstanding { sender: RUNNING.get(), deliver, slot: slot.clone() };
                OUTSTANDING.with_borrow_mut(|calls| calls.insert(token, call));
                Call { token: Some(token), slot }
            }
            Err(Status::BadArgument) => Call::failed(self.upstream, CallFailure::Unknown),
            Err(_) => Call::failed(self.upstream, CallFailure::Refused),
        }
    }
}

/// A callout under way.
#[derive(Debug)]
#[must_use = "the answer is what awaiting this gives"]
pub struct Call {
    /// `None` when it was not sent.
    token: Option<u32>,
    slot: Rc<RefCell<Slot>>,
}

impl Call {
    fn failed(upstream: String, cause: CallFailure) -> Self {
        let answer = Some(Err(CallError { upstream: upstream.clone(), cause }));
        let slot = Slot { answer, ..Slot::new(upstream, Duration::ZERO) };
        Self { token: None, slot: Rc::new(RefCell::new(slot)) }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(token) = self.token {
            OUTSTANDING.with_borrow_mut(|calls| calls.remove(&token));
        }
    }
}

#[derive(Debug)]
struct Slot {
    upstream: String,
    timeout: Duration,
    answer: Option<Result<CallResponse, CallError>>,
    /// The host has told the answer.
    told: bool,
    waker: Option<Waker>,
}

impl Slot {
    fn new(upstream: String, timeout: Duration) -> Self {
        Self { upstream, timeout, answer: None, told: false, waker: None }
    }
}

struct Outstanding {
    /// The context that has sent it.
    #[cfg_attr(
        not(any(test, target_arch = "wasm32")),
        expect(dead_code, reason = "outside of wasm a tester knows whose callout it is")
    )]
    sender: u32,
    /// Reads the answer. A pointer, so that filters which send nothing do not carry the reader: only [`CallRequest::send`] names it.
    deliver: fn(&RefCell<Slot>, usize, usize) -> Option<Waker>,
    slot: Rc<RefCell<Slot>>,
}

thread_local! {
    /// The context that is running. Hosts name the plugin context when they answer a callout, not the stream that waits.
    static RUNNING: Cell<u32> = const { Cell::new(0) };

    /// Who waits for which callout. An entry goes when its [`Call`] does.
    static OUTSTANDING: RefCell<HashMap<u32, Outstanding, BuildHasherDefault<IdHasher>>> =
        const { RefCell::new(HashMap::with_hasher(BuildHasherDefault::new())) };
}

/// Callouts from now on are sent by this context.
#[cfg(any(test, target_arch = "wasm32"))]
pub(crate) fn enter(context: u32) {
    RUNNING.set(context);
}

/// The context that has sent a callout; `None` when nobody waits for it any more.
#[cfg(any(test, target_arch = "wasm32"))]
pub(crate) fn sender(token: u32) -> Option<u32> {
    OUTSTANDING.with_borrow(|calls| calls.get(&token).map(|call| call.sender))
}

/// Tokens and context ids are small numbers that the host counts up: one multiplication spreads them well enough.
#[derive(Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, id: u32) {
        self.0 = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Future for Call {
    type Output = Result<CallResponse, CallError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut slot = self.slot.borrow_mut();
        match slot.answer.take() {
            Some(answer) => Poll::Ready(answer),
            None => {
                slot.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// The host has the answer to a callout ready to be read.
pub(crate) fn answered(token: u32, headers: usize, body: usize) {
    let call = OUTSTANDING.with_borrow(|calls| calls.get(&token).map(|call| (call.deliver, call.slot.clone())));
    if let Some((deliver, slot)) = call
        && let Some(waker) = deliver(&slot, headers, body)
    {
        waker.wake();
    }
}

/// No headers means that the call failed.
fn deliver(slot: &RefCell<Slot>, headers: usize, body: usize) -> Option<Waker> {
    let mut slot = slot.borrow_mut();
    let upstream = slot.upstream.clone();
    slot.told = true;
    slot.answer = Some(match headers {
        0 => Err(CallError { upstream, cause: CallFailure::told(slot.timeout) }),
        _ => Ok(CallResponse::read(upstream, body)),
    });
    slot.waker.take()
}

/// Why a callout gave nothing that is of use: which upstream, and what was the matter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("upstream {upstream}: {cause}")]
pub struct CallError {
    /// The upstream that was asked.
    pub upstream: String,
    /// What was the matter.
    pub cause: CallFailure,
}

/// What can be the matter with a callout. Hosts other than Selvedge do not say what broke a call ([`Failed`](Self::Failed)), and Envoy
/// answers in place of an upstream that does not: 504 when it takes too long, 503 when there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallFailure {
    /// The proxy has no upstream of that name, or the request is malformed.
    #[error("the host has no such upstream, or the request is malformed")]
    Unknown,
    /// The host did not send it: too many calls are under way.
    #[error("the host refused the callout")]
    Refused,
    /// The answer was not there in time.
    #[error("no answer within {} ms", u64::try_from(.0.as_millis()).unwrap_or(u64::MAX))]
    Timeout(Duration),
    /// There was no connection; the host's words.
    #[error("no connection: {0}")]
    Connect(String),
    /// The connection broke, or the exchange that called is over; the host's words.
    #[error("no whole answer: {0}")]
    Reset(String),
    /// The answer is larger than the host keeps.
    #[error("the answer is too large")]
    TooLarge,
    /// One of the last four; the host's log may say which.
    #[error("no answer")]
    Failed,
    /// A gRPC call has ended with this status and these words (perhaps none).
    #[error("gRPC status {0}: {1}")]
    Grpc(GrpcCode, String),
    /// The answer has another status than 2xx; only from [`CallResponse::ok`].
    #[error("answered with status {0}")]
    Status(u16),
    /// The answer is not what it should be; only from [`CallResponse::text`] and [`CallResponse::json`].
    #[error("the answer is malformed: {0}")]
    Malformed(String),
}

impl CallFailure {
    /// What the host says of the failure that is being told.
    fn told(timeout: Duration) -> Self {
        let said = host::current().call_status().unwrap_or_default();
        match said.split_once(": ").unwrap_or((&said, "")) {
            ("timeout", _) => Self::Timeout(timeout),
            ("connect", why) => Self::Connect(why.to_owned()),
            ("reset", why) => Self::Reset(why.to_owned()),
            ("response too large", _) => Self::TooLarge,
            ("", _) => Self::Failed,
            _ => Self::Reset(said),
        }
    }
}

/// The answer to a callout.
#[derive(Clone, Debug)]
pub struct CallResponse {
    upstream: String,
    status: u16,
    headers: Vec<(String, HeaderValue)>,
    body: Vec<u8>,
}

impl CallResponse {
    fn read(upstream: String, body: usize) -> Self {
        let host = host::current();
        let pairs = host.headers(Map::CallResponse);
        let headers: Vec<_> = pairs.into_iter().map(|(name, value)| (name, HeaderValue::from(value))).collect();
        let status =
            headers.iter().find(|(name, _)| name == ":status").and_then(|(_, value)| value.as_str()?.parse().ok());
        let body = if body == 0 { None } else { host.buffer(Buffer::CallResponse, 0, body) };
        Self { upstream, status: status.unwrap_or(0), headers, body: body.unwrap_or_default() }
    }

    /// The status; 0 when the host does not say.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The answer itself when its status is 2xx.
    ///
    /// # Errors
    /// [`CallFailure::Status`] with any other status.
    pub fn ok(self) -> Result<Self, CallError> {
        match self.status {
            200..300 => Ok(self),
            status => Err(CallError { upstream: self.upstream, cause: CallFailure::Status(status) }),
        }
    }

    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&HeaderValue> {
        self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// All headers in order, `:status` included.
    pub fn headers(&self) -> &[(String, HeaderValue)] {
        &self.headers
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The body as text.
    ///
    /// # Errors
    /// [`CallFailure::Malformed`]: it is not UTF-8.
    pub fn text(&self) -> Result<String, CallError> {
        let text = std::str::from_utf8(&self.body).map_err(|error| self.malformed(error.to_string()))?;
        Ok(text.to_owned())
    }

    /// The body, read as JSON.
    ///
    /// # Errors
    /// [`CallFailure::Malformed`]: it is not JSON, or not of this form.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, CallError> {
        serde_json::from_slice(&self.body).map_err(|error| self.malformed(error.to_string()))
    }

    fn malformed(&self, why: String) -> CallError {
        CallError { upstream: self.upstream.clone(), cause: CallFailure::Malformed(why) }
    }
}
