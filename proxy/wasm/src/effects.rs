//! What a guest call decided and asked for: handed to the embedder when the guest has returned.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};

use crate::grpc::{GrpcEvent, GrpcId, GrpcMessage, GrpcOpen};

/// The guest's verdict on the phase it was called for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Go on with this phase.
    Continue,
    /// Hold this phase until a resume; of a body, buffer what came so far. Any value but 0 counts as a pause: holding back is the safe reading.
    Pause,
}

/// How a pause holds what it holds. Beyond the text of the ABI: guests of the C++ SDK may say so by what they return.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Hold {
    /// As the ABI's text has it, or as the embedder is configured.
    #[default]
    Usual,
    /// At a header: show nothing more of the message until a resume (`StopAllIterationAndBuffer`, `StopAllIterationAndWatermark`).
    All,
    /// At a body: forget the bytes that were shown, the guest keeps what it needs of them (`StopIterationNoBuffer`).
    Discard,
}

/// What one callback came to.
#[derive(Debug)]
pub struct Outcome {
    /// Go on or hold. Without meaning when `effects` holds a reply or a close: those win.
    pub action: Action,
    /// What else the guest asked for.
    pub effects: Effects,
}

impl Outcome {
    /// Go on, nothing asked for: what a callback the guest does not have comes to.
    pub(crate) fn proceed() -> Self {
        Self { action: Action::Continue, effects: Effects::default() }
    }
}

/// Everything a guest asked for in one call, to be carried out after it. `close` wins over `reply`, `reply` over the resumes.
#[derive(Debug, Default)]
pub struct Effects {
    /// Answer the exchange from here. The first reply of a call counts, later ones are dropped.
    pub reply: Option<Box<LocalReply>>,
    /// How the callback pauses, if it does.
    pub hold: Hold,
    /// `continue_stream(0)`: release the held request. Nothing to do when it is not held.
    pub resume_request: bool,
    /// `continue_stream(1)`: release the held response. Nothing to do when it is not held.
    pub resume_response: bool,
    /// `continue_stream(2)`: release what a TCP client has sent, or its connection. Nothing to do when nothing is held.
    pub resume_downstream: bool,
    /// `continue_stream(3)`: release what a TCP client's upstream has sent. Nothing to do when nothing is held.
    pub resume_upstream: bool,
    /// `close_stream`: reset the exchange; close a TCP client's connection and its upstream's.
    pub close: bool,
    /// What to send out, in the guest's order: hand it to [`crate::Calls::begin`], and what arrives to [`crate::Stream::on_arrival`].
    pub outgoing: Vec<Outgoing>,
    /// Only from [`crate::Stream::mail`]: the stream's VM died in another stream's call, so nothing will ever resume this one.
    pub poisoned: bool,
}

impl Effects {
    /// Whether there is nothing to carry out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.reply.is_none()
            && !self.resume_request
            && !self.resume_response
            && !self.resume_downstream
            && !self.resume_upstream
            && !self.close
            && self.outgoing.is_empty()
            && !self.poisoned
    }
}

/// An answer made by a guest (`proxy_send_local_response`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalReply {
    /// HTTP status, 200 to 599.
    pub status: u16,
    /// Why, for logs and `Proxy-Status`: one token, spaces replaced by `_`; empty when the guest gave none.
    pub details: String,
    /// The body, maybe empty. The embedder sets `content-length`.
    pub body: Bytes,
    /// Headers in the guest's order, without pseudo headers; pairs that are not valid HTTP were dropped with a warning.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// gRPC status 0 to 16 when the guest gave one.
    pub grpc_status: Option<u32>,
}

/// Something a guest asked to be sent out of its exchange.
#[derive(Debug)]
pub enum Outgoing {
    /// An HTTP call (`proxy_http_call`).
    Http(Callout),
    /// A gRPC call or stream (`proxy_grpc_call`, `proxy_grpc_stream`).
    GrpcOpen(Box<GrpcOpen>),
    /// A message on a gRPC stream (`proxy_grpc_send`).
    GrpcSend {
        /// The stream.
        id: GrpcId,
        /// The message.
        message: GrpcMessage,
        /// Whether it is the last.
        end: bool,
    },
    /// The guest will send no more on a gRPC stream (`proxy_grpc_close`).
    GrpcClose(GrpcId),
    /// The guest wants no more of a gRPC call or stream (`proxy_grpc_cancel`).
    GrpcCancel(GrpcId),
}

/// Something that came back for a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrival {
    /// The end of an HTTP call.
    Http(CalloutId, Result<CalloutResponse, CalloutFailure>),
    /// Something that came on a gRPC call or stream.
    Grpc(GrpcId, GrpcEvent),
}

/// Names one HTTP callout within its VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CalloutId(pub u32);

/// An HTTP call a guest asked for (`proxy_http_call`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Callout {
    /// To be handed back with the result.
    pub id: CalloutId,
    /// Name of the upstream; [`crate::Host::has_upstream`] said yes to it.
    pub upstream: String,
    /// Request headers in the guest's order; `:method`, `:path` and `:authority` are always among them.
    pub headers: Vec<(Bytes, Bytes)>,
    /// Request body, maybe empty.
    pub body: Bytes,
    /// Request trailers, usually none.
    pub trailers: Vec<(Bytes, Bytes)>,
    /// How long the whole call may take. A guest's 0 ("no timeout") became 5 s.
    pub timeout: Duration,
}

/// The answer to a [`Callout`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CalloutResponse {
    /// Response headers, `:status` among them, names in lower case.
    pub headers: Vec<(Bytes, Bytes)>,
    /// Response body.
    pub body: Bytes,
    /// Response trailers.
    pub trailers: Vec<(Bytes, Bytes)>,
}

/// Why a [`Callout`] got no answer. The guest sees a response with no headers, and the text from `proxy_get_status`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CalloutFailure {
    /// No connection could be made.
    #[error("connect: {0}")]
    Connect(String),
    /// The callout's time was up.
    #[error("timeout")]
    Timeout,
    /// The connection broke, or the stream it was made for ended.
    #[error("reset: {0}")]
    Reset(String),
    /// The response was larger than the embedder keeps.
    #[error("response too large")]
    TooLarge,
}
