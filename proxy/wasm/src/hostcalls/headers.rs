//! Header maps. Reads of what does not exist are answered with "nothing": the usual SDKs panic on anything else.

use bytes::Bytes;

use super::with_exchange;
use crate::abi::memory::{Guest, give, give_bytes, read, read_two, write_u32};
use crate::abi::serialize::{MapSize, MapWriter, decode_pairs};
use crate::abi::status::{Called, Fail, Status, bad};
use crate::exchange::{Exchange, ExchangeError, HeaderMap};
use crate::grpc::GrpcEvent;

/// A header map by its ABI number.
enum Map {
    Exchange(HeaderMap),
    CalloutHeaders,
    CalloutTrailers,
    GrpcInitialMetadata,
    GrpcTrailingMetadata,
}

impl Map {
    fn from_abi(number: u32) -> Called<Self> {
        Ok(match number {
            0 => Self::Exchange(HeaderMap::Request),
            1 => Self::Exchange(HeaderMap::RequestTrailers),
            2 => Self::Exchange(HeaderMap::Response),
            3 => Self::Exchange(HeaderMap::ResponseTrailers),
            4 => Self::GrpcInitialMetadata,
            5 => Self::GrpcTrailingMetadata,
            6 => Self::CalloutHeaders,
            7 => Self::CalloutTrailers,
            _ => return Err(bad("no such header map")),
        })
    }

    /// The pairs of a map that the host holds itself. `Bytes` pairs are cloned by counting references; callouts are rare.
    fn held(&self, guest: &Guest<'_>) -> Vec<(Bytes, Bytes)> {
        let state = guest.data();
        match (self, &state.delivery, &state.grpc.delivery) {
            (Self::CalloutHeaders, Some(Ok(response)), _) => response.headers.clone(),
            (Self::CalloutTrailers, Some(Ok(response)), _) => response.trailers.clone(),
            (Self::GrpcInitialMetadata, _, Some(GrpcEvent::InitialMetadata(pairs)))
            | (Self::GrpcTrailingMetadata, _, Some(GrpcEvent::TrailingMetadata(pairs))) => pairs.clone(),
            _ => Vec::new(),
        }
    }
}

pub(super) fn get(guest: &mut Guest<'_>, map: u32, name: u32, name_len: u32, out_ptr: u32, out_len: u32) -> Called {
    match find(guest, map, name, name_len, out_ptr, out_len) {
        Err(Fail::Status(Status::NotFound)) if !guest.data().facts.abi.missing_header_is_not_found() => {
            give_bytes(guest, &[], out_ptr, out_len)
        }
        found => found,
    }
}

fn find(guest: &mut Guest<'_>, map: u32, name: u32, name_len: u32, out_ptr: u32, out_len: u32) -> Called {
    let map = match Map::from_abi(map)? {
        Map::Exchange(map) => map,
        held => {
            let pairs = held.held(guest);
            let wanted = read(guest, name, name_len)?;
            let found = pairs.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
            let (_, value) = found.ok_or(Status::NotFound)?;
            return give_bytes(guest, &value, out_ptr, out_len);
        }
    };
    let given = with_exchange(guest, |guest, exchange| {
        let value = exchange.header(map, read(guest, name, name_len)?).ok_or(Status::NotFound)?;
        give_bytes(guest, &value, out_ptr, out_len)
    });
    given?.ok_or_else(|| Status::NotFound.into())
}

pub(super) fn get_all(guest: &mut Guest<'_>, map: u32, out_ptr: u32, out_len: u32) -> Called {
    let map = match Map::from_abi(map)? {
        Map::Exchange(map) => map,
        held => {
            let pairs = held.held(guest);
            return give_map(guest, out_ptr, out_len, |visit| {
                pairs.iter().for_each(|(name, value)| visit(name, value))
            });
        }
    };
    let given = with_exchange(guest, |guest, exchange| {
        give_map(guest, out_ptr, out_len, |visit| {
            exchange.visit(map, visit);
        })
    });
    match given? {
        Some(()) => Ok(()),
        None => give_bytes(guest, &[], out_ptr, out_len),
    }
}

pub(super) fn size(guest: &mut Guest<'_>, map: u32, out: u32) -> Called {
    let mut size = MapSize::default();
    match Map::from_abi(map)? {
        Map::Exchange(map) => {
            with_exchange(guest, |_, exchange| {
                exchange.visit(map, &mut |name, value| size.add(name, value));
                Ok(())
            })?;
        }
        held => held.held(guest).iter().for_each(|(name, value)| size.add(name, value)),
    }
    let bytes = u32::try_from(size.bytes()).unwrap_or(u32::MAX);
    write_u32(guest, out, bytes)
}

pub(super) fn set_all(guest: &mut Guest<'_>, map: u32, ptr: u32, len: u32) -> Called {
    change(guest, map, |guest, exchange, map| {
        let pairs = decode_pairs(read(guest, ptr, len)?).map_err(|_| bad("not a header map"))?;
        exchange.replace_headers(map, &pairs).map_err(refused)
    })
}

pub(super) fn add(guest: &mut Guest<'_>, map: u32, name: u32, name_len: u32, value: u32, value_len: u32) -> Called {
    write(guest, map, (name, name_len), (value, value_len), |exchange, map, name, value| {
        exchange.add_header(map, name, value)
    })
}

pub(super) fn replace(guest: &mut Guest<'_>, map: u32, name: u32, name_len: u32, value: u32, value_len: u32) -> Called {
    write(guest, map, (name, name_len), (value, value_len), |exchange, map, name, value| {
        exchange.set_header(map, name, value)
    })
}

pub(super) fn remove(guest: &mut Guest<'_>, map: u32, name: u32, name_len: u32) -> Called {
    write(guest, map, (name, name_len), (0, 0), |exchange, map, name, _| exchange.remove_header(map, name))
}

fn write(
    guest: &mut Guest<'_>,
    map: u32,
    name: (u32, u32),
    value: (u32, u32),
    write: impl FnOnce(&mut dyn Exchange, HeaderMap, &[u8], &[u8]) -> Result<(), ExchangeError>,
) -> Called {
    change(guest, map, |guest, exchange, map| {
        let (name, value) = read_two(guest, name, value)?;
        write(exchange, map, name, value).map_err(refused)
    })
}

fn change(
    guest: &mut Guest<'_>,
    map: u32,
    change: impl FnOnce(&mut Guest<'_>, &mut dyn Exchange, HeaderMap) -> Called,
) -> Called {
    let Map::Exchange(map) = Map::from_abi(map)? else { return Err(bad("this header map is read-only")) };
    let changed = with_exchange(guest, |guest, exchange| change(guest, exchange, map));
    changed?.ok_or_else(|| bad("no exchange to write to in this context"))
}

fn refused(error: ExchangeError) -> Fail {
    match error {
        ExchangeError::Unavailable => bad("the header map has gone on already, or there is none"),
        ExchangeError::Invalid => bad("invalid header name or value"),
    }
}

/// Serializes a map straight into guest memory: once over it for the size, once for the bytes.
fn give_map(guest: &mut Guest<'_>, out_ptr: u32, out_len: u32, each: impl Fn(&mut dyn FnMut(&[u8], &[u8]))) -> Called {
    let mut size = MapSize::default();
    each(&mut |name, value| size.add(name, value));
    give(guest, size.bytes(), out_ptr, out_len, |place| {
        let mut writer = MapWriter::new(place, size);
        each(&mut |name, value| writer.put(name, value));
    })
}
