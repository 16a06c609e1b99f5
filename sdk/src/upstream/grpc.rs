//! gRPC callouts: one message out, one message in.

use std::cell::RefCell;
use std::fmt::{self, Display, Formatter};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::{Call, CallError, CallFailure, CallResponse, OUTSTANDING, Outstanding, RUNNING, Slot, TIMEOUT, Upstream};
use crate::host::{self, Buffer, Status};

impl Upstream {
    /// A unary gRPC call of a method with its service, `package.Service/Method`. The upstream must speak HTTP/2. Streams of messages
    /// are not offered: a filter that needs them uses the crate `proxy-wasm`.
    ///
    /// ```no_run
    /// # use selvedge_sdk::prelude::*;
    /// # async fn ask(key: Vec<u8>) -> Result<(), Reply> {
    /// let answer = upstream("authz").grpc("demo.Access/Check").metadata("x-tenant", "acme").message(key).send().await;
    /// match answer {
    ///     Ok(answer) => info!("{} bytes", answer.message().len()),
    ///     Err(CallError { cause: CallFailure::Grpc(GrpcCode::PermissionDenied, why), .. }) => return Err(Reply::new(403).text(&why)),
    ///     Err(error) => return Err(error).or_deny(503, "authz unavailable"),
    /// }
    /// # Ok(()) }
    /// ```
    pub fn grpc(&self, method: &str) -> GrpcRequest {
        GrpcRequest {
            upstream: self.name.clone(),
            path: method.trim_start_matches('/').to_owned(),
            metadata: Vec::new(),
            message: Vec::new(),
            timeout: TIMEOUT,
        }
    }
}

/// A gRPC call that is not sent yet.
#[derive(Clone, Debug)]
#[must_use = "a call does nothing until it is sent"]
pub struct GrpcRequest {
    upstream: String,
    path: String,
    metadata: Vec<(String, Vec<u8>)>,
    message: Vec<u8>,
    timeout: Duration,
}

impl GrpcRequest {
    /// Adds metadata: a header of the call. A value of bytes belongs to a name that ends with `-bin`, in base 64.
    pub fn metadata(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.metadata.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    /// Sets the message, as protocol buffers or whatever the method takes; empty otherwise.
    pub fn message(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.message = bytes.into();
        self
    }

    /// Sets the message to one of crate `prost`.
    #[cfg(feature = "prost")]
    pub fn prost(self, message: &impl prost::Message) -> Self {
        self.message(message.encode_to_vec())
    }

    /// How long to wait for the answer, to the millisecond and at least one; the server is told. Default 5 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.max(Duration::from_millis(1));
        self
    }

    /// Sends it now; the answer is what the returned future waits for. Drop the future and the call is cancelled.
    pub fn send(self) -> GrpcCall {
        let Some((service, method)) = self.path.split_once('/') else {
            log::error!("gRPC method {:?} is not of the form package.Service/Method", self.path);
            return GrpcCall { call: Call::failed(self.upstream, CallFailure::Unknown) };
        };
        let metadata: Vec<(&str, &[u8])> = self.metadata.iter().map(|(name, value)| (&**name, &**value)).collect();
        let sent = host::current().grpc_call(&self.upstream, service, method, &metadata, &self.message, self.timeout);
        let call = match sent {
            Ok(token) => {
                let slot = Rc::new(RefCell::new(Slot::new(self.upstream, self.timeout)));
                let call = Outstanding { sender: RUNNING.get(), deliver, slot: slot.clone() };
                OUTSTANDING.with_borrow_mut(|calls| calls.insert(token, call));
                Call { token: Some(token), slot }
            }
            // 4 is what Envoy says to a name that it does not know.
            Err(Status::BadArgument | Status::Failed(4)) => Call::failed(self.upstream, CallFailure::Unknown),
            Err(_) => Call::failed(self.upstream, CallFailure::Refused),
        };
        GrpcCall { call }
    }
}

/// A gRPC call under way.
#[derive(Debug)]
#[must_use = "the answer is what awaiting this gives"]
pub struct GrpcCall {
    call: Call,
}

impl Future for GrpcCall {
    type Output = Result<GrpcResponse, CallError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.call).poll(context).map_ok(GrpcResponse)
    }
}

impl Drop for GrpcCall {
    fn drop(&mut self) {
        if let Some(token) = self.call.token
            && !self.call.slot.borrow().told
        {
            host::current().cancel_grpc(token);
        }
    }
}

/// The answer to a gRPC call with status OK.
#[derive(Clone, Debug)]
pub struct GrpcResponse(CallResponse);

impl GrpcResponse {
    /// The message.
    pub fn message(&self) -> &[u8] {
        self.0.body()
    }

    /// The message, without copying it.
    pub fn into_message(self) -> Vec<u8> {
        self.0.body
    }

    /// The message as one of crate `prost`.
    ///
    /// # Errors
    /// [`CallFailure::Malformed`]: it is another.
    #[cfg(feature = "prost")]
    pub fn prost<M: prost::Message + Default>(&self) -> Result<M, CallError> {
        M::decode(self.message()).map_err(|error| self.0.malformed(error.to_string()))
    }
}

/// What the host tells of a call: its message and then nothing more (`message` is 1, `number` its length), or that it failed (0, and the
/// status).
fn deliver(slot: &RefCell<Slot>, message: usize, number: usize) -> Option<Waker> {
    let host = host::current();
    let mut slot = slot.borrow_mut();
    let upstream = slot.upstream.clone();
    slot.told = true;
    slot.answer = Some(match message {
        0 => {
            let code = GrpcCode::from(number);
            Err(CallError { upstream, cause: CallFailure::Grpc(code, host.call_status().unwrap_or_default()) })
        }
        _ => {
            let body = if number == 0 { None } else { host.buffer(Buffer::GrpcMessage, 0, number) };
            Ok(CallResponse { upstream, status: 200, headers: Vec::new(), body: body.unwrap_or_default() })
        }
    });
    slot.waker.take()
}

/// How a gRPC call ended. The host itself says `DeadlineExceeded` when the timeout is over (Envoy: `Unavailable`), and `Unavailable`
/// when there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GrpcCode {
    /// 0: success. Seen only where a server ends a call well without a message.
    Ok,
    /// 1: ended by the one who asked.
    Cancelled,
    /// 2: nobody knows, or a number that has no name.
    Unknown,
    /// 3: the request makes no sense.
    InvalidArgument,
    /// 4: took too long.
    DeadlineExceeded,
    /// 5: there is no such thing.
    NotFound,
    /// 6: it is there already.
    AlreadyExists,
    /// 7: not allowed.
    PermissionDenied,
    /// 8: too much, or too many.
    ResourceExhausted,
    /// 9: not in this state.
    FailedPrecondition,
    /// 10: another one came first.
    Aborted,
    /// 11: beyond what there is.
    OutOfRange,
    /// 12: not a method of the server.
    Unimplemented,
    /// 13: something is broken.
    Internal,
    /// 14: not reachable now.
    Unavailable,
    /// 15: data are lost.
    DataLoss,
    /// 16: not signed in.
    Unauthenticated,
}

/// By number: the code, and its name.
const CODES: [(GrpcCode, &str); 17] = [
    (GrpcCode::Ok, "OK"),
    (GrpcCode::Cancelled, "CANCELLED"),
    (GrpcCode::Unknown, "UNKNOWN"),
    (GrpcCode::InvalidArgument, "INVALID_ARGUMENT"),
    (GrpcCode::DeadlineExceeded, "DEADLINE_EXCEEDED"),
    (GrpcCode::NotFound, "NOT_FOUND"),
    (GrpcCode::AlreadyExists, "ALREADY_EXISTS"),
    (GrpcCode::PermissionDenied, "PERMISSION_DENIED"),
    (GrpcCode::ResourceExhausted, "RESOURCE_EXHAUSTED"),
    (GrpcCode::FailedPrecondition, "FAILED_PRECONDITION"),
    (GrpcCode::Aborted, "ABORTED"),
    (GrpcCode::OutOfRange, "OUT_OF_RANGE"),
    (GrpcCode::Unimplemented, "UNIMPLEMENTED"),
    (GrpcCode::Internal, "INTERNAL"),
    (GrpcCode::Unavailable, "UNAVAILABLE"),
    (GrpcCode::DataLoss, "DATA_LOSS"),
    (GrpcCode::Unauthenticated, "UNAUTHENTICATED"),
];

impl GrpcCode {
    /// The number.
    pub fn number(self) -> u8 {
        self as u8
    }
}

impl From<usize> for GrpcCode {
    fn from(number: usize) -> Self {
        CODES.get(number).map_or(Self::Unknown, |(code, _)| *code)
    }
}

impl Display for GrpcCode {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str(CODES[usize::from(self.number())].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_stand_in_their_order() {
        for (number, (code, _)) in CODES.iter().enumerate() {
            assert_eq!((usize::from(code.number()), GrpcCode::from(number)), (number, *code));
        }
        assert_eq!(GrpcCode::from(17), GrpcCode::Unknown);
        assert_eq!(GrpcCode::Unauthenticated.to_string(), "UNAUTHENTICATED");
    }
}
