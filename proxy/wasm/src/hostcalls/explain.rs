//! What a hostcall was about, in words: for the debug log when it is refused, and for traces.

use std::fmt::Write;
use std::time::Instant;

use crate::abi::memory::Guest;
use crate::abi::status::{Called, Fail, Status};

/// The arguments of a hostcall by the names of its table.
pub(super) struct Arguments(pub(super) Vec<(&'static str, i128)>);

/// Arguments that are shown as they are. All other bytes (values of headers, bodies, items, arguments of functions) may be secrets: their
/// length is shown.
const SHOWN: [&str; 7] = ["name", "key", "path", "upstream", "service", "method", "vm_id"];

/// Of an argument that is shown, so much.
const MAX_SHOWN: usize = 64;

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
        arguments = %arguments().describe(guest),
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
    let ended = match result {
        Ok(()) => "Ok".to_owned(),
        Err(Fail::Status(status)) => format!("{status:?}"),
        Err(Fail::Because(status, reason)) => format!("{status:?}: {reason}"),
        Err(Fail::Trap(_)) => "trapped".to_owned(),
    };
    trace.hostcall(call, arguments.describe(guest), began, ended);
}

impl Arguments {
    /// `map=0 name="accept" value=<3 bytes>`; places for results are left out.
    fn describe(&self, guest: &Guest<'_>) -> String {
        let mut text = String::new();
        for (name, value) in &self.0 {
            let length = name.ends_with("_len") || *name == "len" && self.value("ptr").is_some();
            if length || name.starts_with("out") {
                continue;
            }
            if !text.is_empty() {
                text.push(' ');
            }
            let _ = match self.length_of(name) {
                Some(length) if SHOWN.contains(name) => write!(text, "{name}={}", shown(guest, *value, length)),
                Some(length) => write!(text, "{name}=<{length} bytes>"),
                None => write!(text, "{name}={value}"),
            };
        }
        text
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

/// Bytes of the guest as quoted text, cut.
fn shown(guest: &Guest<'_>, ptr: i128, length: i128) -> String {
    let bytes = guest.data().memory.and_then(|memory| {
        let start = usize::try_from(ptr).ok()?;
        let end = start.checked_add(usize::try_from(length).ok()?)?;
        memory.data(guest).get(start..end)
    });
    match bytes {
        Some(bytes) if bytes.len() > MAX_SHOWN => {
            format!("\"{}\"...", String::from_utf8_lossy(&bytes[..MAX_SHOWN]).escape_debug())
        }
        Some(bytes) => format!("\"{}\"", String::from_utf8_lossy(bytes).escape_debug()),
        None => format!("<{length} bytes at {ptr}>"),
    }
}
