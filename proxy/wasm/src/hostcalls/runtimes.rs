//! What the runtimes of languages import from `env`, beside the ABI: Emscripten's (C, C++) and AssemblyScript's.

use std::time::UNIX_EPOCH;

use wasmtime::{Caller, Linker};

use crate::abi::memory::{Guest, read};
use crate::host::LogLevel;
use crate::limits::MAX_LOG_LINE;
use crate::vm::State;

/// The names served.
pub(super) const SERVED: &[&str] =
    &["emscripten_notify_memory_growth", "pthread_equal", "abort", "seed", "trace", "Date.now"];

pub(super) fn serve(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    // Emscripten tells of grown memory, for hosts that keep views of it. This one looks anew at every call.
    linker.func_wrap("env", "emscripten_notify_memory_growth", |mut guest: Caller<'_, State>, _memory: u32| {
        guest.data_mut().spend_hostcall()
    })?;
    // There is one thread; Emscripten's C++ library compares it with itself.
    linker.func_wrap("env", "pthread_equal", |mut guest: Caller<'_, State>, left: u32, right: u32| {
        guest.data_mut().spend_hostcall()?;
        wasmtime::Result::Ok(u32::from(left == right))
    })?;

    linker.func_wrap(
        "env",
        "abort",
        |mut guest: Caller<'_, State>, message: u32, file: u32, line: u32, column: u32| -> wasmtime::Result<()> {
            guest.data_mut().spend_hostcall()?;
            let (message, file) = (string(&mut guest, message), string(&mut guest, file));
            Err(Abort { message, file, line, column }.into())
        },
    )?;
    linker.func_wrap("env", "seed", |mut guest: Caller<'_, State>| {
        guest.data_mut().spend_hostcall()?;
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).map_err(wasmtime::Error::msg)?;
        // Its bits are the seed; a NaN would be made into the one NaN.
        wasmtime::Result::Ok(f64::from_bits(u64::from_le_bytes(bytes) >> 2))
    })?;
    linker.func_wrap(
        "env",
        "trace",
        |mut guest: Caller<'_, State>, message: u32, count: u32, a: f64, b: f64, c: f64, d: f64, e: f64| {
            guest.data_mut().spend_hostcall()?;
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            let numbers: Vec<String> = [a, b, c, d, e].iter().take(count).map(f64::to_string).collect();
            let line = format!("{} {}", string(&mut guest, message), numbers.join(", "));
            let facts = guest.data().facts.clone();
            facts.host.log(LogLevel::Debug, &facts.name, line.trim_end());
            wasmtime::Result::Ok(())
        },
    )?;
    linker.func_wrap("env", "Date.now", |mut guest: Caller<'_, State>| {
        guest.data_mut().spend_hostcall()?;
        let since = guest.data().facts.host.now().duration_since(UNIX_EPOCH).unwrap_or_default();
        wasmtime::Result::Ok((since.as_secs_f64() * 1000.0).floor())
    })?;
    Ok(())
}

/// What ends an AssemblyScript guest that throws.
#[derive(Debug, thiserror::Error)]
#[error("abort: {message} ({file}:{line}:{column})")]
struct Abort {
    message: String,
    file: String,
    line: u32,
    column: u32,
}

/// A string of AssemblyScript: UTF-16, its length in bytes in the four bytes before it. Null, and what is no string, is empty.
fn string(guest: &mut Guest<'_>, at: u32) -> String {
    let Some(header) = at.checked_sub(4) else { return String::new() };
    let len = match read(guest, header, 4) {
        Ok(&[a, b, c, d]) => u32::from_le_bytes([a, b, c, d]),
        _ => return String::new(),
    };
    let bytes = read(guest, at, len.min(u32::try_from(MAX_LOG_LINE).unwrap_or(u32::MAX))).unwrap_or_default();
    let units: Vec<u16> = bytes.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect();
    String::from_utf16_lossy(&units)
}
