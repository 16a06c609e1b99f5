//! Logging.

use crate::abi::memory::{Guest, read, write_u32};
use crate::abi::status::{Called, bad};
use crate::host::LogLevel;
use crate::limits::MAX_LOG_LINE;

pub(super) fn log(guest: &mut Guest<'_>, level: u32, ptr: u32, len: u32) -> Called {
    let level = LogLevel::from_abi(level).ok_or_else(|| bad("no such log level"))?;
    let facts = guest.data().facts.clone();
    let line = read(guest, ptr, len)?;
    let line = String::from_utf8_lossy(&line[..line.len().min(MAX_LOG_LINE)]);
    facts.host.log(level, &facts.name, &line);
    if level >= LogLevel::Error {
        let line = line.into_owned();
        guest.data_mut().last_words = Some(line);
    }
    Ok(())
}

pub(super) fn get_log_level(guest: &mut Guest<'_>, out: u32) -> Called {
    let level = guest.data().facts.host.log_level();
    write_u32(guest, out, level as u32)
}
