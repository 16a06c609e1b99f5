//! Foreign functions: what this host offers to filters beyond the ABI, by name. `docs/foreign-functions.md` says what each takes and gives.
//!
//! Those that act on the exchange are here; `plan/host.rs` has the table of the others, and those that need nothing but the host crate are in it. Every one is quick and bounded whatever it is
//! given, because the guest's deadline does not run while it waits.

pub(crate) mod declared;

pub(crate) mod geo;

pub(crate) mod signature;

pub(crate) mod zlib;

mod protobuf;

use selvedge_wasm::foreign::{Reader, list};
use selvedge_wasm::{ExchangeError, ForeignError, HeaderMap};

use super::exchange::View;

/// What a foreign function comes to.
pub(crate) type Answer = Result<Vec<u8>, ForeignError>;

/// The most bytes of arguments that functions take which work through all of them.
const ARGUMENTS_MAX: usize = 1 << 20;

/// The functions that act on the exchange; `None` = there is none of this name.
pub(super) fn on_exchange(view: &mut View<'_>, name: &str, args: &[u8]) -> Option<Answer> {
    Some(match name {
        "selvedge.header_values" => header_values(view, args),
        "set_envoy_filter_state" => set_envoy_filter_state(view, args),
        _ => return None,
    })
}

/// The values of one header, each by itself: a map call gives the first of them, or all in one map of everything.
fn header_values(view: &View<'_>, args: &[u8]) -> Answer {
    let mut args = Reader(args);
    let map = match args.u32()? {
        0 => HeaderMap::Request,
        1 => HeaderMap::RequestTrailers,
        2 => HeaderMap::Response,
        3 => HeaderMap::ResponseTrailers,
        _ => return Err(bad("no such header map")),
    };
    let name = std::str::from_utf8(args.rest()).map_err(|_| bad("the name is not UTF-8"))?;
    let mut values = Vec::new();
    view.each_value(map, name, &mut |value| values.push(value.to_vec()));
    Ok(list(&values))
}

/// Envoy looks for a factory that makes an object of the text. Here the text itself is kept, and read at `filter_state.<path>`.
fn set_envoy_filter_state(view: &mut View<'_>, args: &[u8]) -> Answer {
    let (mut path, mut value) = (&[][..], &[][..]);
    for field in protobuf::fields(args) {
        match field? {
            (1, protobuf::Value::Bytes(bytes)) => path = bytes,
            (2, protobuf::Value::Bytes(bytes)) => value = bytes,
            _ => {}
        }
    }
    let path = std::str::from_utf8(path).map_err(|_| bad("the path is not UTF-8"))?;
    if path.is_empty() {
        return Err(bad("a path is needed"));
    }
    view.keep_property(format!("filter_state.{path}"), value, false).map(|()| Vec::new()).map_err(|error| match error {
        ExchangeError::Unavailable => bad("there are too many properties already"),
        ExchangeError::Invalid => bad("the path or the value is too long"),
    })
}

fn bad(why: &str) -> ForeignError {
    ForeignError::BadArgument(why.to_owned())
}
