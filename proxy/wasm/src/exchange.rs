//! One HTTP exchange as a guest sees it. The embedder implements [`Exchange`]; the hostcalls speak to it.

use std::borrow::Cow;
use std::sync::Arc;

use crate::body::Body;
use crate::compat::PropertyKind;
use crate::host::{Caller, ForeignError};
use crate::trace::Trace;

/// A header map of the exchange, with the number the ABI gives it. Maps of callouts (6, 7) and gRPC (4, 5) never reach the exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum HeaderMap {
    /// Request headers, with `:authority`, `:path`, `:method` and `:scheme`.
    Request = 0,
    /// Request trailers.
    RequestTrailers = 1,
    /// Response headers, with `:status`.
    Response = 2,
    /// Response trailers.
    ResponseTrailers = 3,
}

/// A body of the exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Buffer {
    /// The request body.
    Request,
    /// The response body.
    Response,
    /// What a TCP client has sent.
    Downstream,
    /// What a TCP client's upstream has sent.
    Upstream,
}

/// One HTTP exchange, lent to a guest for the length of one callback.
///
/// Reads are to be answered in every phase in which the data exists (a guest that reads the request's headers while the response
/// passes gets them); a read of something that does not exist is a `None` or `false`, never an error, because the usual guest SDKs
/// panic on one. Writes that come too late or make no sense are [`ExchangeError`]s: the guest sees `BAD_ARGUMENT`. Writes to a response
/// that has not come yet are not too late but early: keep them until it comes.
pub trait Exchange: Send {
    /// Visits every pair of `map`: pseudo headers (`:authority`, `:path`, `:method`, `:scheme`; `:status`) first, names in lower case, one
    /// visit per value. Returns false when there is no such map (yet). Two visits in a row must see the same pairs.
    fn visit(&self, map: HeaderMap, visit: &mut dyn FnMut(&[u8], &[u8])) -> bool;

    /// How many pairs [`visit`](Self::visit) would visit; 0 when the map does not exist. Guests are told this number with every header
    /// callback, so a host that knows it without looking should say so.
    fn count(&self, map: HeaderMap) -> u32 {
        let mut count = 0;
        self.visit(map, &mut |_, _| count += 1);
        count
    }

    /// The first value of `name`, compared without regard to case. Answers pseudo headers, and `host` with the value of `:authority`.
    fn header(&self, map: HeaderMap, name: &[u8]) -> Option<Cow<'_, [u8]>>;

    /// Replaces all values of `name` with one, or creates it.
    ///
    /// # Errors
    /// [`ExchangeError::Unavailable`] when the map cannot be written (any more), [`ExchangeError::Invalid`] for a bad name or value.
    fn set_header(&mut self, map: HeaderMap, name: &[u8], value: &[u8]) -> Result<(), ExchangeError>;

    /// Adds one more value to `name`.
    ///
    /// # Errors
    /// As [`Exchange::set_header`].
    fn add_header(&mut self, map: HeaderMap, name: &[u8], value: &[u8]) -> Result<(), ExchangeError>;

    /// Removes all values of `name`. Removing what is not there is fine.
    ///
    /// # Errors
    /// As [`Exchange::set_header`].
    fn remove_header(&mut self, map: HeaderMap, name: &[u8]) -> Result<(), ExchangeError>;

    /// Replaces the whole map, pseudo headers included where given.
    ///
    /// # Errors
    /// As [`Exchange::set_header`].
    fn replace_headers(&mut self, map: HeaderMap, pairs: &[(&[u8], &[u8])]) -> Result<(), ExchangeError>;

    /// The bytes buffered for this filter now; `None` when there is no such body in this phase.
    fn body(&mut self, which: Buffer) -> Option<&mut Body>;

    /// Whether a body has been handed on to its end, so that a write would reach nobody. It may still be read: as an empty one.
    fn body_has_gone(&self, which: Buffer) -> bool {
        let _ = which;
        false
    }

    /// The property at `path`, already in its binary form: strings raw, integers 8 bytes little-endian, booleans one byte, timestamps
    /// and durations nanoseconds as 8 bytes, maps as [`crate::abi::serialize::encode_pairs`] writes them. `None` when unset.
    ///
    /// `plugin_name`, `plugin_root_id` and `plugin_vm_id` are answered by the host and never asked for here.
    fn property(&self, path: &[&str]) -> Option<Vec<u8>>;

    /// What the bytes of [`property`](Self::property) at `path` mean: asked for guests that want text. Bytes mean themselves by default.
    fn property_kind(&self, path: &[&str]) -> PropertyKind {
        let _ = path;
        PropertyKind::Bytes
    }

    /// Sets a property, for later filters and for the host.
    ///
    /// # Errors
    /// [`ExchangeError::Unavailable`] when the property is read-only (now), [`ExchangeError::Invalid`] for a value it cannot take.
    fn set_property(&mut self, path: &[&str], value: &[u8]) -> Result<(), ExchangeError>;

    /// Where what filters do to this exchange is to be recorded; `None`, which is nearly always, for nowhere.
    fn trace(&self) -> Option<&Arc<Trace>> {
        None
    }

    /// A foreign function that acts on the exchange. `None` means there is none of this name here; [`crate::Host::foreign`] is asked next.
    fn foreign(&mut self, caller: Caller<'_>, name: &str, args: &[u8]) -> Option<Result<Vec<u8>, ForeignError>> {
        let _ = (caller, name, args);
        None
    }
}

/// Why a write to the exchange was refused. The guest sees `BAD_ARGUMENT` (2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ExchangeError {
    /// There is nothing to write to: the map does not exist, was already sent, or is read-only.
    #[error("not writable in this phase")]
    Unavailable,
    /// The name or value is not valid there.
    #[error("invalid name or value")]
    Invalid,
}
