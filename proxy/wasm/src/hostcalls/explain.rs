//! What a hostcall was about, in words: for the debug log when it is refused, and for traces.

use std::fmt::Write;
use std::time::Instant;

use crate::abi::memory::Guest;
use crate::abi::serialize::decode_pairs;
use crate::abi::status::{Called, Fail, Status};
use crate::trace::is_secret;

/// The arguments of a hostcall by the names of its table.
pub(super) struct Arguments(pub(super) Vec<(&'static str, i128)>);

/// Arguments that are shown as they are. All other bytes (values of headers, bodies, items, arguments of functions) may be secrets: their
/// length is shown.
const SHOWN: [&str; 7] = ["name", "key", "path", "upstream", "service", "method", "vm_id"];

/// Arguments that are serialized maps.
const MAPS: [&str; 3] = ["headers", "trailers", "metadata"];

/// Of an argument that is shown, so much.
const MAX_SHOWN: usize = 64;

/// Of a map that is shown, so many pairs.
const MAX_PAIRS: usize = 24;

/// Tells the operator why a call does not do what the guest wants, and returns what the guest gets. SDKs panic on most of these statuses
/// and only say the number.
#[cold]
pub(super) fn refused(
    guest: &Guest<'_>,
    call: &'static str,
    arguments: &dyn Fn() -> Arguments,
    status: Status,
    reason: &'static str,
) -> u32 {
    let state = guest.data();
    if !status.is_expected() {
        state.facts.stats.hostcall_refused();
    }
    tracing::debug!(
        plugin = %state.facts.name,
        context = state.context(),
        call,
        arguments = %arguments().describe(guest, false),
        ?status,
        reason,
        "hostcall refused"
    );
    status.code()
}

/// Records a call in the trace of its exchange.
#[cold]
pub(super) fn trace(guest: &Guest<'_>, call: &'static str, arguments: &Arguments, began: Instant, result: &Called) {
    let Some(trace) = &guest.data().trace else { return };
    let telling = trace.is_telling();
    let ended = match result {
        Ok(()) if telling => arguments.answer(guest).map_or_else(|| "Ok".to_owned(), |answer| format!("Ok {answer}")),
        Ok(()) => "Ok".to_owned(),
        Err(Fail::Status(status)) => format!("{status:?}"),
        Err(Fail::Because(status, reason)) => format!("{status:?}: {reason}"),
        Err(Fail::Trap(_)) => "trapped".to_owned(),
    };
    trace.hostcall(call, arguments.describe(guest, telling), began, ended);
}

impl Arguments {
    /// `map=0 name="accept" value=<3 bytes>`; places for results are left out. Telling: `map=request name="accept" value="*/*"`.
    fn describe(&self, guest: &Guest<'_>, telling: bool) -> String {
        let mut text = String::new();
        for (name, value) in &self.0 {
            let length = name.ends_with("_len") || *name == "len" && self.value("ptr").is_some();
            if length || name.starts_with("out") {
                continue;
            }
            if !text.is_empty() {
                text.push(' ');
            }
            let _ = match (self.length_of(name), word(name, *value).filter(|_| telling)) {
                (_, Some(word)) => write!(text, "{name}={word}"),
                (Some(length), _) if SHOWN.contains(name) => write!(text, "{name}={}", shown(guest, *value, length)),
                (Some(length), _) if telling => {
                    let called = if *name == "ptr" { "data" } else { name };
                    write!(text, "{called}={}", self.told(guest, name, *value, length))
                }
                (Some(length), _) => write!(text, "{name}=<{length} bytes>"),
                (None, _) => write!(text, "{name}={value}"),
            };
        }
        text
    }

    /// What a call has answered in memory of the guest's.
    fn answer(&self, guest: &Guest<'_>) -> Option<String> {
        let number = |name| {
            let at = usize::try_from(self.value(name)?).ok()?;
            let bytes = guest.data().memory?.data(guest).get(at..at.checked_add(4)?)?;
            Some(i128::from(u32::from_le_bytes(bytes.try_into().ok()?)))
        };
        match (number("out_ptr"), number("out_len"), number("out_id")) {
            (Some(ptr), Some(length), _) => {
                // `get_header_map_pairs`: a map that is asked for as a whole.
                let what =
                    if self.value("map").is_some() && self.value("name").is_none() { "headers" } else { "value" };
                Some(self.told(guest, what, ptr, length))
            }
            (_, _, Some(id)) => Some(id.to_string()),
            _ => None,
        }
    }

    /// Bytes as somebody who tries a filter out wants to see them; secrets not.
    fn told(&self, guest: &Guest<'_>, what: &str, ptr: i128, length: i128) -> String {
        if MAPS.contains(&what) {
            return bytes(guest, ptr, length).map_or_else(|| missing(ptr, length), pairs);
        }
        // The settings of a filter hold keys and passwords.
        let settings = matches!(self.value("buffer"), Some(6 | 7));
        let secret =
            ["name", "key", "path"].iter().any(|about| self.text(guest, about).is_some_and(|text| is_secret(&text)));
        if settings || secret { format!("<{length} bytes>") } else { shown(guest, ptr, length) }
    }

    fn text(&self, guest: &Guest<'_>, name: &str) -> Option<String> {
        let found = bytes(guest, self.value(name)?, self.length_of(name)?)?;
        Some(String::from_utf8_lossy(found).into_owned())
    }

    /// The length that belongs to a pointer.
    fn length_of(&self, name: &str) -> Option<i128> {
        match name {
            "ptr" => self.value("data_len").or_else(|| self.value("len")),
            _ => self.0.iter().find(|(other, _)| other.strip_suffix("_len") == Some(name)).map(|(_, value)| *value),
        }
    }

    fn value(&self, name: &str) -> Option<i128> {
        self.0.iter().find(|(other, _)| *other == name).map(|(_, value)| *value)
    }
}

/// What a number of the ABI stands for.
fn word(argument: &str, number: i128) -> Option<&'static str> {
    let words: &[&'static str] = match argument {
        "map" => &[
            "request",
            "request_trailers",
            "response",
            "response_trailers",
            "grpc_initial",
            "grpc_trailing",
            "call_response",
            "call_response_trailers",
        ],
        "buffer" => &[
            "request",
            "response",
            "downstream",
            "upstream",
            "call_response",
            "grpc",
            "vm_configuration",
            "configuration",
            "function_arguments",
        ],
        "stream" => &["request", "response", "downstream", "upstream"],
        "level" => &["trace", "debug", "info", "warn", "error", "critical"],
        "kind" => &["counter", "gauge", "histogram"],
        _ => return None,
    };
    usize::try_from(number).ok().and_then(|number| words.get(number)).copied()
}

fn bytes<'g>(guest: &'g Guest<'_>, ptr: i128, length: i128) -> Option<&'g [u8]> {
    let start = usize::try_from(ptr).ok()?;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    guest.data().memory?.data(guest).get(start..end)
}

/// Bytes of the guest as quoted text, cut.
fn shown(guest: &Guest<'_>, ptr: i128, length: i128) -> String {
    match bytes(guest, ptr, length) {
        Some(bytes) if bytes.len() > MAX_SHOWN => {
            format!("\"{}\"...", String::from_utf8_lossy(&bytes[..MAX_SHOWN]).escape_debug())
        }
        Some(bytes) => format!("\"{}\"", String::from_utf8_lossy(bytes).escape_debug()),
        None => missing(ptr, length),
    }
}

fn missing(ptr: i128, length: i128) -> String {
    format!("<{length} bytes at {ptr}>")
}

/// A serialized map as `{name: value, ..}`.
fn pairs(bytes: &[u8]) -> String {
    let Ok(pairs) = decode_pairs(bytes) else { return format!("<{} bytes, no map>", bytes.len()) };
    let mut told: Vec<String> = pairs
        .iter()
        .take(MAX_PAIRS)
        .map(|(name, value)| {
            let name = String::from_utf8_lossy(name).into_owned();
            let value = String::from_utf8_lossy(&value[..value.len().min(MAX_SHOWN)]).into_owned();
            let value = if is_secret(&name) { "<redacted>".into() } else { value };
            format!("{}: {}", name.escape_debug(), value.escape_debug())
        })
        .collect();
    if pairs.len() > MAX_PAIRS {
        told.push(format!("{} more", pairs.len() - MAX_PAIRS));
    }
    format!("{{{}}}", told.join(", "))
}
