//! What the probe has written down, read from the log of the host it runs in.

use std::collections::HashMap;
use std::fmt::Write as _;

use parking_lot::Mutex;

use super::case::Shown;

/// Everything recorded so far, by case and filter (`id.1`).
#[derive(Debug, Default)]
pub(crate) struct Records(Mutex<HashMap<String, Vec<Record>>>);

/// One line of the probe.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    /// When it was read, against all others.
    pub(crate) place: usize,
    /// Which VM wrote it.
    pub(crate) vm: String,
    pub(crate) context: u32,
    pub(crate) event: Event,
}

#[derive(Debug, Clone)]
pub(crate) enum Event {
    Callback { name: String, arguments: Vec<u32>, nested: bool },
    Step { line: usize, result: String },
}

impl Records {
    /// Takes a line of the host's log; lines that are not the probe's are no matter.
    pub(crate) fn take(&self, place: usize, line: &str) {
        let Some((_, rest)) = line.split_once("@@ ") else { return };
        let Some((words, _)) = rest.split_once(" @@") else { return };
        let mut words = words.split(' ');
        let mut next = || words.next();
        let (Some(case), Some(vm), Some(sign), Some(context)) = (next(), next(), next(), next()) else { return };
        let Ok(context) = context.parse() else { return };
        let event = if sign == "+" {
            let name = next().unwrap_or_default().to_owned();
            let rest: Vec<&str> = words.collect();
            let arguments = rest.iter().filter_map(|word| word.parse().ok()).collect();
            Event::Callback { name, arguments, nested: rest.last() == Some(&"nested") }
        } else {
            let line = next().and_then(|line| line.parse().ok()).unwrap_or(0);
            Event::Step { line, result: words.collect::<Vec<_>>().join(" ") }
        };
        let record = Record { place, vm: vm.into(), context, event };
        self.0.lock().entry(case.into()).or_default().push(record);
    }

    /// What one filter of a case has recorded, in the VM that served its stream, or in the first one.
    pub(crate) fn of(&self, case: &str, filter: usize) -> Vec<Record> {
        let all = self.0.lock();
        let Some(records) = all.get(&format!("{case}.{filter}")) else { return Vec::new() };
        let serving = records.iter().find(|record| record.opens_stream()).or(records.first());
        let vm = serving.map(|record| record.vm.clone()).unwrap_or_default();
        records.iter().filter(|record| record.vm == vm).cloned().collect()
    }
}

impl Record {
    /// The callback's name and arguments.
    pub(crate) fn callback(&self) -> Option<(&str, &[u32])> {
        match &self.event {
            Event::Callback { name, arguments, .. } => Some((name, arguments)),
            Event::Step { .. } => None,
        }
    }

    pub(crate) fn opens_stream(&self) -> bool {
        matches!(self.callback(), Some(("context_create", [parent])) if *parent != 0)
    }

    pub(crate) fn nested(&self) -> bool {
        matches!(self.event, Event::Callback { nested: true, .. })
    }
}

/// Whether every stream that was opened has been deleted.
pub(crate) fn ended(records: &[Record]) -> bool {
    let deleted = |context| {
        let delete = |record: &Record| record.context == context && matches!(record.callback(), Some(("delete", _)));
        records.iter().any(delete)
    };
    records.iter().filter(|record| record.opens_stream()).all(|record| deleted(record.context))
}

/// A step's result as the cases write it: `OK "text" 5`, `NOT_FOUND`, `true`.
pub(crate) fn show(result: &str, wasi: bool, outs: &[Shown]) -> String {
    let mut words = result.split(' ');
    let first = words.next().unwrap_or_default();
    let Ok(status) = first.parse::<u32>() else { return value(first, outs.first().copied().unwrap_or(Shown::Bytes)) };
    let mut text = if wasi { status.to_string() } else { name(status) };
    if status == 0 {
        for (word, shown) in words.zip(outs) {
            let _ = write!(text, " {}", value(word, *shown));
        }
    }
    text
}

fn name(status: u32) -> String {
    let known = match status {
        0 => "OK",
        1 => "NOT_FOUND",
        2 => "BAD_ARGUMENT",
        3 => "SERIALIZATION_FAILURE",
        4 => "PARSE_FAILURE",
        6 => "INVALID_MEMORY_ACCESS",
        7 => "EMPTY",
        8 => "CAS_MISMATCH",
        10 => "INTERNAL_FAILURE",
        12 => "UNIMPLEMENTED",
        other => return format!("STATUS_{other}"),
    };
    known.into()
}

fn value(word: &str, shown: Shown) -> String {
    match word {
        "n" => return "null".into(),
        "u" => return "untouched".into(),
        "e" => return "empty".into(),
        _ => {}
    }
    if let Some(number) = word.strip_prefix('i') {
        return number.into();
    }
    let bytes =
        word.strip_prefix('b').and_then(|rest| Some((rest.split_once(':')?.0, unhex(rest.split_once(':')?.1)?)));
    let Some((len, bytes)) = bytes else { return word.into() };
    if len.parse() != Ok(bytes.len()) {
        return format!("{len} bytes");
    }
    let whole: Option<[u8; 8]> = bytes.as_slice().try_into().ok();
    match (shown, whole) {
        (Shown::Int, Some(number)) => i64::from_le_bytes(number).to_string(),
        (Shown::Double, Some(number)) => f64::from_le_bytes(number).to_string(),
        (Shown::Map, _) => map(&bytes).unwrap_or_else(|| quoted(&bytes)),
        _ => quoted(&bytes),
    }
}

pub(crate) fn quoted(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.escape_ascii())
}

/// A serialized map; `None` when it is none.
fn map(bytes: &[u8]) -> Option<String> {
    let size = |at: usize| {
        let four: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(four)).ok()
    };
    let count = size(0)?;
    let mut at = 4 + count.checked_mul(8)?;
    let mut text = String::from("{");
    for pair in 0..count {
        let (name, value) = (size(4 + pair * 8)?, size(8 + pair * 8)?);
        let name_bytes = bytes.get(at..at + name)?;
        let value_bytes = bytes.get(at + name + 1..at + name + 1 + value)?;
        at += name + value + 2;
        let comma = if pair > 0 { ", " } else { "" };
        let _ = write!(text, "{comma}{}: {}", quoted(name_bytes), quoted(value_bytes));
    }
    text.push('}');
    (at == bytes.len()).then_some(text)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

/// Whether `text` is what `pattern` says; `*` in it stands for any text.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut pieces = pieces.peekable();
    if pieces.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            return rest.ends_with(piece);
        }
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    true
}
