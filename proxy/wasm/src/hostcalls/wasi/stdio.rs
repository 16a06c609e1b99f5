//! The three standard streams: an empty input, and two outputs that are the log.

use super::errno;
use crate::abi::memory::{self, Guest, fill, write_u32};
use crate::abi::status::Called;
use crate::host::LogLevel;
use crate::limits::MAX_LOG_LINE;
use crate::vm::State;

/// Pieces of one call.
const MAX_IOVECS: u32 = 1024;

/// The filetype of all three. Of a terminal libraries write line by line, which is what a log wants.
const CHARACTER_DEVICE: u8 = 2;

const RIGHT_FD_READ: u64 = 1 << 1;
const RIGHT_FD_WRITE: u64 = 1 << 6;

/// Bytes of standard error that explain a failure: a panic says what happened first, and where it came from after that.
const LAST_WORDS: usize = 1024;

/// What was written to standard output and error and is no line yet. Runtimes write a panic in pieces.
#[derive(Debug, Default)]
pub(crate) struct Unfinished([Vec<u8>; 2]);

/// Standard output and error go to the log, as whole lines: what one call ends with a line break is one entry, without the last break.
pub(super) fn write(guest: &mut Guest<'_>, fd: u32, iovecs: u32, count: u32, out: u32) -> Called<u32> {
    let level = match fd {
        1 => LogLevel::Info,
        2 => LogLevel::Error,
        _ => return Ok(errno::BADF),
    };
    if count > MAX_IOVECS {
        return Ok(errno::INVAL);
    }
    let mut text = Vec::new();
    let mut written = 0u32;
    for index in 0..count {
        let Some(iovec) = iovecs.checked_add(index * 8) else { return Ok(errno::FAULT) };
        let (ptr, len) = match memory::read(guest, iovec, 8)? {
            &[p0, p1, p2, p3, l0, l1, l2, l3] => {
                (u32::from_le_bytes([p0, p1, p2, p3]), u32::from_le_bytes([l0, l1, l2, l3]))
            }
            _ => return Ok(errno::FAULT),
        };
        let piece = memory::read(guest, ptr, len)?;
        text.extend_from_slice(&piece[..piece.len().min(MAX_LOG_LINE - text.len())]);
        written = written.saturating_add(len);
    }
    write_u32(guest, out, written)?;

    let state = guest.data_mut();
    let unfinished = unfinished(state, level);
    unfinished.extend_from_slice(&text[..text.len().min(MAX_LOG_LINE - unfinished.len())]);
    let end = match unfinished.iter().rposition(|byte| *byte == b'\n') {
        Some(last) => last + 1,
        None if unfinished.len() == MAX_LOG_LINE => MAX_LOG_LINE,
        None => return Ok(errno::OK),
    };
    let lines: Vec<u8> = unfinished.drain(..end).collect();
    log(state, level, &lines);
    Ok(errno::OK)
}

/// At the end of a guest call: what it left unfinished is a line now, because nobody knows when the next call comes.
#[inline]
pub(crate) fn flush(state: &mut State) {
    if state.unfinished.0.iter().any(|rest| !rest.is_empty()) {
        flush_lines(state);
    }
}

#[cold]
fn flush_lines(state: &mut State) {
    for level in [LogLevel::Info, LogLevel::Error] {
        let rest = std::mem::take(unfinished(state, level));
        if !rest.is_empty() {
            log(state, level, &rest);
        }
    }
}

fn unfinished(state: &mut State, level: LogLevel) -> &mut Vec<u8> {
    &mut state.unfinished.0[usize::from(level == LogLevel::Error)]
}

fn log(state: &mut State, level: LogLevel, text: &[u8]) {
    let text = String::from_utf8_lossy(text.strip_suffix(b"\n").unwrap_or(text)).into_owned();
    state.facts.host.log(level, &state.facts.name, &text);
    if level == LogLevel::Error {
        let words = state.last_words.get_or_insert_default();
        if !words.is_empty() {
            words.push('\n');
        }
        let room = LAST_WORDS.saturating_sub(words.len());
        words.push_str(&text[..text.floor_char_boundary(room)]);
    }
}

/// The input is at its end.
pub(super) fn read(guest: &mut Guest<'_>, fd: u32, _iovecs: u32, _count: u32, out: u32) -> Called<u32> {
    if fd != 0 {
        return Ok(errno::BADF);
    }
    write_u32(guest, out, 0)?;
    Ok(errno::OK)
}

/// `fdstat`: filetype (u8 at 0), flags (u16 at 2), rights (u64 at 8), rights to inherit (u64 at 16).
pub(super) fn fdstat_get(guest: &mut Guest<'_>, fd: u32, out: u32) -> Called<u32> {
    let rights = match fd {
        0 => RIGHT_FD_READ,
        1 | 2 => RIGHT_FD_WRITE,
        _ => return Ok(errno::BADF),
    };
    fill(guest, out, 24, |bytes| {
        bytes.fill(0);
        bytes[0] = CHARACTER_DEVICE;
        bytes[8..16].copy_from_slice(&rights.to_le_bytes());
    })?;
    Ok(errno::OK)
}

/// `filestat`: device and inode (u64 each), filetype (u8 at 16), then links, size and times, of which there are none.
pub(super) fn filestat_get(guest: &mut Guest<'_>, len: usize, fd: u32, out: u32) -> Called<u32> {
    if fd > 2 {
        return Ok(errno::BADF);
    }
    fill(guest, out, len, |bytes| {
        bytes.fill(0);
        bytes[16] = CHARACTER_DEVICE;
    })?;
    Ok(errno::OK)
}
