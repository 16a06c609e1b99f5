//! The host under a filter: the calls of proxy-wasm as a trait.
//!
//! On wasm there is one implementation, the real host calls. On every other target a test installs its own for the current
//! thread ([`install`]); without one every call finds nothing and changes nothing. `selvedge-sdk-testing` brings a complete one.

use std::time::{Duration, SystemTime};

use log::Level;

pub use crate::body::Direction;

#[cfg(target_arch = "wasm32")]
mod guest;
#[cfg(target_arch = "wasm32")]
pub(crate) use guest::{Guest, current, forget_level, wants};

#[cfg(not(target_arch = "wasm32"))]
mod installed;
#[cfg(not(target_arch = "wasm32"))]
pub(crate) use installed::current;
#[cfg(all(not(target_arch = "wasm32"), feature = "tracing"))]
pub(crate) use installed::wants;
#[cfg(not(target_arch = "wasm32"))]
pub use installed::{Installed, install};

#[cfg(any(test, target_arch = "wasm32"))]
mod pairs;

/// A header map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Map {
    /// Of the request.
    Request,
    /// Of the response.
    Response,
    /// Behind the body of the request.
    RequestTrailers,
    /// Behind the body of the response.
    ResponseTrailers,
    /// Of the answer to a callout, while it is delivered.
    CallResponse,
}

/// A buffer of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// What is held of the request body.
    Request,
    /// What is held of the response body.
    Response,
    /// The body of the answer to a callout, while it is delivered.
    CallResponse,
    /// The message that answers a gRPC call, while it is delivered.
    GrpcMessage,
}

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only ever grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts values by size.
    Histogram,
}

/// How a call to the host failed: the status codes of proxy-wasm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Status {
    /// 1: there is no such thing.
    #[error("not found")]
    NotFound,
    /// 2: not valid, or not available in this phase.
    #[error("not valid or not available now")]
    BadArgument,
    /// 8: the value was changed meanwhile.
    #[error("changed meanwhile")]
    CasMismatch,
    /// Any other code.
    #[error("failed inside the host (status {0})")]
    Failed(u32),
}

/// The calls. The default of each is that of a host with nothing in it.
#[allow(unused_variables, reason = "the defaults ignore what they are given")]
pub trait Host {
    /// Takes a line of the log.
    fn log(&self, level: Level, message: &str) {}

    /// The time.
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    /// Time since some moment, which never goes back.
    fn monotonic(&self) -> Duration {
        self.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    }

    /// Fills the bytes, at most 64 KiB, with random ones.
    ///
    /// # Errors
    /// `Failed`: the host gives none.
    fn random(&self, bytes: &mut [u8]) -> Result<(), Status> {
        Err(Status::Failed(10))
    }

    /// The first value of a header.
    fn header(&self, map: Map, name: &str) -> Option<Vec<u8>> {
        None
    }

    /// All pairs of a map.
    fn headers(&self, map: Map) -> Vec<(String, Vec<u8>)> {
        Vec::new()
    }

    /// Replaces all values of a header.
    ///
    /// # Errors
    /// `BadArgument`: malformed, or the map cannot be changed now. So for the other two.
    fn set_header(&self, map: Map, name: &str, value: &[u8]) -> Result<(), Status> {
        Err(Status::BadArgument)
    }

    /// Adds a value.
    ///
    /// # Errors
    /// As [`set_header`](Host::set_header).
    fn add_header(&self, map: Map, name: &str, value: &[u8]) -> Result<(), Status> {
        Err(Status::BadArgument)
    }

    /// Removes all values.
    ///
    /// # Errors
    /// As [`set_header`](Host::set_header).
    fn remove_header(&self, map: Map, name: &str) -> Result<(), Status> {
        Err(Status::BadArgument)
    }

    /// Up to `max` bytes of a buffer from `start`; `None` when there is none.
    fn buffer(&self, buffer: Buffer, start: usize, max: usize) -> Option<Vec<u8>> {
        None
    }

    /// Replaces `size` bytes of a buffer from `start`.
    ///
    /// # Errors
    /// `BadArgument`: there is no such buffer now.
    fn set_buffer(&self, buffer: Buffer, start: usize, size: usize, bytes: &[u8]) -> Result<(), Status> {
        Err(Status::BadArgument)
    }

    /// A property.
    fn property(&self, path: &[&str]) -> Option<Vec<u8>> {
        None
    }

    /// Sets a property.
    ///
    /// # Errors
    /// `NotFound` or `BadArgument`: the host does not take it.
    fn set_property(&self, path: &[&str], value: &[u8]) -> Result<(), Status> {
        Err(Status::NotFound)
    }

    /// Shared data and its version (not 0).
    fn shared(&self, key: &str) -> Option<(Vec<u8>, u32)> {
        None
    }

    /// Writes shared data; with a version, only while it is the one stored.
    ///
    /// # Errors
    /// `CasMismatch`, or another status when the store refuses.
    fn set_shared(&self, key: &str, value: &[u8], cas: Option<u32>) -> Result<(), Status> {
        Err(Status::Failed(10))
    }

    /// The id of the metric of that name.
    ///
    /// # Errors
    /// `BadArgument`: the name is not valid, or taken by another kind.
    fn define_metric(&self, kind: MetricKind, name: &str) -> Result<u32, Status> {
        Err(Status::BadArgument)
    }

    /// Adds to a counter or gauge.
    fn increment_metric(&self, id: u32, offset: i64) {}

    /// Sets a gauge, or counts a value in a histogram.
    fn record_metric(&self, id: u32, value: u64) {}

    /// Sends a callout and returns its token. A filter is told the answer through [`runtime`](crate::runtime).
    ///
    /// # Errors
    /// `BadArgument`: no such upstream.
    fn call(&self, upstream: &str, headers: &[(&str, &[u8])], body: &[u8], timeout: Duration) -> Result<u32, Status> {
        Err(Status::BadArgument)
    }

    /// Sends a unary gRPC call and returns its token, which is no callout's. A filter is told the answer through
    /// [`runtime`](crate::runtime).
    ///
    /// # Errors
    /// `BadArgument`, or `Failed(4)`: no such upstream.
    fn grpc_call(
        &self,
        upstream: &str,
        service: &str,
        method: &str,
        metadata: &[(&str, &[u8])],
        message: &[u8],
        timeout: Duration,
    ) -> Result<u32, Status> {
        Err(Status::BadArgument)
    }

    /// Wants no answer to a gRPC call any more.
    fn cancel_grpc(&self, token: u32) {}

    /// Why the callout whose answer is being delivered has failed, in the host's words; `None` when it does not say.
    fn call_status(&self) -> Option<String> {
        None
    }

    /// Lets a held message go on.
    fn resume(&self, direction: Direction) {}

    /// Answers in place of the other side.
    fn reply(&self, status: u16, headers: &[(&str, &[u8])], body: &[u8]) {}

    /// The same, with what a client that speaks gRPC is told instead of the status.
    fn reply_grpc(&self, status: u16, headers: &[(&str, &[u8])], body: &[u8], grpc_status: u8) {
        self.reply(status, headers, body);
    }

    /// Calls a function beyond the ABI.
    ///
    /// # Errors
    /// `NotFound`: no such function. Others as the function says.
    fn foreign(&self, name: &str, argument: &[u8]) -> Result<Vec<u8>, Status> {
        Err(Status::NotFound)
    }

    /// Asks for ticks.
    fn set_tick_period(&self, period: Duration) {}
}
