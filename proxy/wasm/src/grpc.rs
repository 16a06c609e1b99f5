//! gRPC for guests: what one asks to be opened, what passes through an exchange while it is open, and how it ends.
//!
//! An exchange has two ends. The guest's is kept in its VM ([`Line`]), the embedder's is a future made by [`crate::Host::grpc`], which a
//! context's [`crate::Calls`] run as a task. Either side going away ends it: the VM by dropping its line (the guest cancels, the stream
//! ends, the VM dies), [`crate::Calls`] by being dropped, the embedder by finishing its future.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::effects::Arrival;
use crate::host::Host;

/// The longest message a guest may send or be sent, in bytes. What most gRPC libraries accept when nothing else is said.
pub const MAX_GRPC_MESSAGE: usize = 4 << 20;

/// What a queued message costs beside its bytes, so that empty ones are bounded too.
const MESSAGE_COST: usize = 128;

/// What a guest may have queued for one exchange: the longest message twice, one on its way and one behind it.
const MAX_QUEUED: usize = 2 * (MAX_GRPC_MESSAGE + MESSAGE_COST);

/// Names one gRPC exchange within its VM. The number says the kind, as in Envoy: HTTP callouts are 0, calls 1, streams 2 (modulo 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GrpcId(pub u32);

/// The two kinds of exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GrpcKind {
    /// One message out, one message in, within a time.
    Call,
    /// Messages both ways, until either side has enough.
    Stream,
}

impl GrpcId {
    /// The kind, by the number; `None` for what never names a gRPC exchange.
    #[must_use]
    pub fn kind(self) -> Option<GrpcKind> {
        match self.0 % 4 {
            1 => Some(GrpcKind::Call),
            2 => Some(GrpcKind::Stream),
            _ => None,
        }
    }
}

impl GrpcKind {
    /// The first number of the kind; the others follow in steps of 4.
    pub(crate) fn first(self) -> u32 {
        match self {
            Self::Call => 1,
            Self::Stream => 2,
        }
    }
}

/// An exchange a guest asked for (`proxy_grpc_call`, `proxy_grpc_stream`).
#[derive(Debug)]
pub struct GrpcOpen {
    /// To be handed back with all that comes.
    pub id: GrpcId,
    /// What is to be asked.
    pub request: GrpcRequest,
    /// The one message of a call; none of a stream.
    pub message: Option<GrpcMessage>,
    /// Ends the exchange from the guest's side.
    pub(crate) hung_up: oneshot::Receiver<GrpcStatus>,
}

/// Whom a guest asks for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrpcRequest {
    /// Name of the upstream; [`crate::Host::has_upstream`] said yes to it.
    pub upstream: String,
    /// `:authority`, when the guest named one.
    pub authority: Option<String>,
    /// The service with its package, such as `helloworld.Greeter`: letters, digits, `.`, `_` and `-`.
    pub service: String,
    /// The method, of the same letters.
    pub method: String,
    /// What the guest adds to the request's headers, values as they are to be sent (those of `-bin` names in base 64).
    pub metadata: Vec<(HeaderName, HeaderValue)>,
    /// How long a call may take in all; `None` for a stream. [`crate::Calls`] see to it; the server is to be told (`grpc-timeout`).
    pub timeout: Option<Duration>,
}

impl GrpcRequest {
    /// `:path`.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/{}/{}", self.service, self.method)
    }
}

/// Something that came back on an exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GrpcEvent {
    /// The server's headers; streams only.
    InitialMetadata(Vec<(Bytes, Bytes)>),
    /// A message. The end of a call, which succeeded then.
    Message(Bytes),
    /// The server's trailers; streams only.
    TrailingMetadata(Vec<(Bytes, Bytes)>),
    /// The end: of a stream always, of a call when it failed.
    Closed(GrpcStatus),
}

/// How an exchange ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrpcStatus {
    /// The number; 0 is success.
    pub code: u32,
    /// Details for people, often empty.
    pub message: String,
}

impl GrpcStatus {
    /// Success.
    pub const OK: u32 = 0;
    /// Ended by the one who asked.
    pub const CANCELLED: u32 = 1;
    /// A status nobody can make sense of.
    pub const UNKNOWN: u32 = 2;
    /// Took too long.
    pub const DEADLINE_EXCEEDED: u32 = 4;
    /// Not allowed.
    pub const PERMISSION_DENIED: u32 = 7;
    /// Larger, or more, than is accepted.
    pub const RESOURCE_EXHAUSTED: u32 = 8;
    /// Not a method of the server.
    pub const UNIMPLEMENTED: u32 = 12;
    /// One side broke the protocol.
    pub const INTERNAL: u32 = 13;
    /// Not reachable now; may be asked again.
    pub const UNAVAILABLE: u32 = 14;
    /// Credentials are missing or bad.
    pub const UNAUTHENTICATED: u32 = 16;

    /// A status with its details.
    #[must_use]
    pub fn new(code: u32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// A message a guest sends. Counts against what may be queued until it is dropped: keep it until it has been written.
#[derive(Debug)]
pub struct GrpcMessage {
    /// The message, without the five bytes that gRPC puts before it.
    pub bytes: Bytes,
    _place: Place,
}

impl GrpcMessage {
    /// The one message of a call: it counts against nothing but the number of calls.
    pub(crate) fn alone(bytes: Bytes) -> Self {
        Self { bytes, _place: Place { queued: Arc::default(), cost: 0 } }
    }
}

/// Takes up room in the queue of an exchange as long as it exists.
#[derive(Debug)]
struct Place {
    queued: Arc<AtomicUsize>,
    cost: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.queued.fetch_sub(self.cost, Ordering::Relaxed);
    }
}

/// The guest's end of an exchange. Dropped, it ends the exchange without a word.
#[derive(Debug)]
pub(crate) struct Line {
    queued: Arc<AtomicUsize>,
    hang_up: Option<oneshot::Sender<GrpcStatus>>,
}

impl Line {
    /// A new line, and what hears it being dropped.
    pub(crate) fn new() -> (Self, oneshot::Receiver<GrpcStatus>) {
        let (hang_up, hung_up) = oneshot::channel();
        (Self { queued: Arc::default(), hang_up: Some(hang_up) }, hung_up)
    }

    /// A message with its place in the queue. When there is none the exchange is ended, and the guest will hear of it as of any other end:
    /// it cannot see the queue, so a refusal would be a failure it could not have avoided.
    pub(crate) fn message(&mut self, bytes: Bytes) -> Option<GrpcMessage> {
        self.hang_up.as_ref()?; // ended before: nobody takes it any more
        let cost = bytes.len() + MESSAGE_COST;
        // Only the guest adds, and its VM runs on one thread at a time.
        if self.queued.load(Ordering::Relaxed) + cost > MAX_QUEUED {
            self.fail(GrpcStatus::new(GrpcStatus::RESOURCE_EXHAUSTED, "the server does not keep up with the messages"));
            return None;
        }
        self.queued.fetch_add(cost, Ordering::Relaxed);
        Some(GrpcMessage { bytes, _place: Place { queued: Arc::clone(&self.queued), cost } })
    }

    fn fail(&mut self, status: GrpcStatus) {
        if let Some(hang_up) = self.hang_up.take() {
            // The exchange may have ended by itself meanwhile: then its own end is the one that counts.
            let _ = hang_up.send(status);
        }
    }
}

/// What the guest sends, for the embedder.
#[derive(Debug)]
pub struct GrpcMessages {
    queue: mpsc::UnboundedReceiver<GrpcMessage>,
}

impl GrpcMessages {
    /// The next message. `None` when the guest has said that no more will come: the request is to be ended then. Cancel safe.
    pub async fn next(&mut self) -> Option<GrpcMessage> {
        self.queue.recv().await
    }

    /// Whether it is known already that no more will come, so that the end can be sent along with the last message.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.queue.is_closed() && self.queue.is_empty()
    }
}

/// Where the embedder puts what comes from the server.
///
/// Each method waits while the guest has too much before it, so the server is held back in turn. What is put in after the exchange has
/// ended is dropped.
#[derive(Debug)]
pub struct GrpcEvents {
    to: To,
}

#[derive(Debug)]
enum To {
    /// A stream's guest hears of everything.
    Guest(GrpcId, mpsc::Sender<Arrival>),
    /// A call's guest hears of its end only.
    Answer(Arc<Mutex<Answer>>),
}

/// What a call has been answered with so far.
#[derive(Debug, Default)]
enum Answer {
    #[default]
    Missing,
    One(Bytes),
    Several,
}

impl GrpcEvents {
    /// The response's headers, without pseudo headers.
    pub async fn initial_metadata(&mut self, pairs: Vec<(Bytes, Bytes)>) {
        self.put(GrpcEvent::InitialMetadata(pairs)).await;
    }

    /// A message of at most [`MAX_GRPC_MESSAGE`] bytes.
    pub async fn message(&mut self, bytes: Bytes) {
        self.put(GrpcEvent::Message(bytes)).await;
    }

    /// The response's trailers.
    pub async fn trailing_metadata(&mut self, pairs: Vec<(Bytes, Bytes)>) {
        self.put(GrpcEvent::TrailingMetadata(pairs)).await;
    }

    async fn put(&mut self, event: GrpcEvent) {
        match &self.to {
            To::Guest(id, arrivals) => drop(arrivals.send(Arrival::Grpc(*id, event)).await),
            To::Answer(answer) => {
                let GrpcEvent::Message(bytes) = event else { return };
                let mut answer = answer.lock();
                *answer = match *answer {
                    Answer::Missing => Answer::One(bytes),
                    Answer::One(_) | Answer::Several => Answer::Several,
                };
            }
        }
    }
}

/// Runs an exchange from its beginning to its end. Returns without a word when the guest hung up.
pub(crate) async fn run(
    host: Arc<dyn Host>,
    open: GrpcOpen,
    queue: mpsc::UnboundedReceiver<GrpcMessage>,
    arrivals: mpsc::Sender<Arrival>,
) {
    let GrpcOpen { id, request, hung_up, .. } = open;
    let answer = (id.kind() == Some(GrpcKind::Call)).then(Arc::<Mutex<Answer>>::default);
    let to = match &answer {
        Some(answer) => To::Answer(Arc::clone(answer)),
        None => To::Guest(id, arrivals.clone()),
    };

    let timeout = request.timeout;
    let exchange = host.grpc(request, GrpcMessages { queue }, GrpcEvents { to });
    let status = tokio::select! {
        biased;
        why = hung_up => match why {
            Ok(status) => status,
            Err(_) => return,
        },
        status = within(timeout, exchange) => status,
    };

    let end = match answer {
        Some(answer) => end_of_call(status, std::mem::take(&mut *answer.lock())),
        None => GrpcEvent::Closed(status),
    };
    // The context may be gone by now: then nobody wants to know.
    let _ = arrivals.send(Arrival::Grpc(id, end)).await;
}

/// Makes a call whose guest is gone with its instance: it is sent, within its time, and the answer dropped. A stream is not opened:
/// nobody is left to say anything on it.
pub(crate) async fn run_orphan(host: Arc<dyn Host>, open: GrpcOpen) {
    let Some(message) = open.message else { return };
    let (messages, queue) = mpsc::unbounded_channel();
    let _ = messages.send(message); // cannot fail: we hold the other end
    drop(messages);
    let timeout = open.request.timeout;
    let events = GrpcEvents { to: To::Answer(Arc::default()) };
    within(timeout, host.grpc(open.request, GrpcMessages { queue }, events)).await;
}

async fn within(timeout: Option<Duration>, exchange: impl Future<Output = GrpcStatus>) -> GrpcStatus {
    match timeout {
        Some(timeout) => tokio::time::timeout(timeout, exchange)
            .await
            .unwrap_or_else(|_| GrpcStatus::new(GrpcStatus::DEADLINE_EXCEEDED, "timeout")),
        None => exchange.await,
    }
}

/// A call succeeds with exactly one message; any other success is the server's mistake.
fn end_of_call(status: GrpcStatus, answer: Answer) -> GrpcEvent {
    match (status.code, answer) {
        (GrpcStatus::OK, Answer::One(message)) => GrpcEvent::Message(message),
        (GrpcStatus::OK, Answer::Missing) => {
            GrpcEvent::Closed(GrpcStatus::new(GrpcStatus::INTERNAL, "the call succeeded without a message"))
        }
        (GrpcStatus::OK, Answer::Several) => {
            GrpcEvent::Closed(GrpcStatus::new(GrpcStatus::INTERNAL, "the call was answered with several messages"))
        }
        _ => GrpcEvent::Closed(status),
    }
}
