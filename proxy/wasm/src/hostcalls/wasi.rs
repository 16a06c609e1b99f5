//! WASI preview 1 as the ABI asks for it: eight calls for real, all others linked and answered with `ENOSYS`, so that modules of Go,
//! TinyGo and others load.

use std::time::{Duration, UNIX_EPOCH};

use wasmtime::{Caller, FuncType, Linker, Val, ValType};

use crate::abi::memory::{Guest, fill, read, write_u32, write_u64};
use crate::abi::status::{Called, Fail};
use crate::host::LogLevel;
use crate::limits::MAX_LOG_LINE;
use crate::vm::State;

/// The two names of the same thing; the second is old.
pub(super) const MODULES: &[&str] = &["wasi_snapshot_preview1", "wasi_unstable"];

const SERVED: &[&str] = &[
    "fd_write",
    "clock_time_get",
    "random_get",
    "environ_sizes_get",
    "environ_get",
    "args_sizes_get",
    "args_get",
    "proc_exit",
];

/// Error numbers of WASI.
mod errno {
    pub(super) const BADF: u32 = 8;
    pub(super) const FAULT: u32 = 21;
    pub(super) const INVAL: u32 = 28;
    pub(super) const IO: u32 = 29;
    pub(super) const NOSYS: i32 = 52;
    pub(super) const NOTSUP: u32 = 58;
}

/// One call may ask for this many random bytes: seeds, not streams (the C++ host's number).
const MAX_RANDOM: u32 = 64 << 10;

/// Pieces of one `fd_write`.
const MAX_IOVECS: u32 = 1024;

pub(super) fn serve(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    for module in MODULES {
        linker.func_wrap(
            module,
            "fd_write",
            |mut guest: Caller<'_, State>, fd: u32, iovecs: u32, count: u32, out: u32| {
                errno_of(&mut guest, |guest| fd_write(guest, fd, iovecs, count, out))
            },
        )?;
        linker.func_wrap(
            module,
            "clock_time_get",
            |mut guest: Caller<'_, State>, clock: u32, _precision: u64, out: u32| {
                errno_of(&mut guest, |guest| clock_time_get(guest, clock, out))
            },
        )?;
        linker.func_wrap(module, "random_get", |mut guest: Caller<'_, State>, ptr: u32, len: u32| {
            errno_of(&mut guest, |guest| random_get(guest, ptr, len))
        })?;
        // There are no arguments and no environment: two zeros, and nothing to write.
        for sizes in ["environ_sizes_get", "args_sizes_get"] {
            linker.func_wrap(module, sizes, |mut guest: Caller<'_, State>, count: u32, size: u32| {
                errno_of(&mut guest, |guest| {
                    write_u32(guest, count, 0)?;
                    write_u32(guest, size, 0)?;
                    Ok(0)
                })
            })?;
        }
        for get in ["environ_get", "args_get"] {
            linker.func_wrap(module, get, |mut guest: Caller<'_, State>, _list: u32, _bytes: u32| {
                errno_of(&mut guest, |_| Ok(0))
            })?;
        }
        linker.func_wrap(module, "proc_exit", |_: Caller<'_, State>, code: u32| -> wasmtime::Result<()> {
            Err(Exit(code).into())
        })?;
    }
    Ok(())
}

/// What ends a guest that exits.
#[derive(Debug, thiserror::Error)]
#[error("the guest exited with code {0}")]
struct Exit(u32);

/// Whether this import is a call of WASI that is not served.
pub(super) fn is_stub(module: &str, name: &str) -> bool {
    MODULES.contains(&module) && !SERVED.contains(&name)
}

/// Links a call that is not served, with whatever signature the module gives it.
pub(super) fn stub(linker: &mut Linker<State>, module: &str, name: &str, ty: FuncType) -> wasmtime::Result<()> {
    let results: Vec<Val> = ty
        .results()
        .map(|ty| match ty {
            ValType::I64 => Val::I64(errno::NOSYS.into()),
            ValType::F32 => Val::F32(0),
            ValType::F64 => Val::F64(0),
            _ => Val::I32(errno::NOSYS),
        })
        .collect();
    linker.func_new(module, name, ty, move |mut guest, _, out| {
        guest.data_mut().spend_hostcall()?;
        out.clone_from_slice(&results);
        Ok(())
    })?;
    Ok(())
}

fn errno_of(guest: &mut Guest<'_>, body: impl FnOnce(&mut Guest<'_>) -> Called<u32>) -> wasmtime::Result<u32> {
    guest.data_mut().spend_hostcall()?;
    match body(guest) {
        Ok(errno) => Ok(errno),
        Err(Fail::Status(_) | Fail::Because(..)) => Ok(errno::FAULT), // only pointers can fail that way here
        Err(Fail::Trap(error)) => Err(error),
    }
}

/// Standard output and error go to the log: one line per call, without its line break.
fn fd_write(guest: &mut Guest<'_>, fd: u32, iovecs: u32, count: u32, out: u32) -> Called<u32> {
    let level = match fd {
        1 => LogLevel::Info,
        2 => LogLevel::Error,
        _ => return Ok(errno::BADF),
    };
    if count > MAX_IOVECS {
        return Ok(errno::INVAL);
    }
    let mut line = Vec::new();
    let mut written = 0u32;
    for index in 0..count {
        let Some(iovec) = iovecs.checked_add(index * 8) else { return Ok(errno::FAULT) };
        let (ptr, len) = match read(guest, iovec, 8)? {
            &[p0, p1, p2, p3, l0, l1, l2, l3] => {
                (u32::from_le_bytes([p0, p1, p2, p3]), u32::from_le_bytes([l0, l1, l2, l3]))
            }
            _ => return Ok(errno::FAULT),
        };
        let piece = read(guest, ptr, len)?;
        line.extend_from_slice(&piece[..piece.len().min(MAX_LOG_LINE - line.len())]);
        written = written.saturating_add(len);
    }
    write_u32(guest, out, written)?;

    let line = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line)).into_owned();
    let facts = guest.data().facts.clone();
    facts.host.log(level, &facts.name, &line);
    if level >= LogLevel::Error {
        guest.data_mut().last_words = Some(line);
    }
    Ok(0)
}

fn clock_time_get(guest: &mut Guest<'_>, clock: u32, out: u32) -> Called<u32> {
    let facts = &guest.data().facts;
    let since: Duration = match clock {
        0 => facts.host.now().duration_since(UNIX_EPOCH).unwrap_or_default(),
        1 => facts.started.elapsed(),
        _ => return Ok(errno::NOTSUP),
    };
    write_u64(guest, out, u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))?;
    Ok(0)
}

fn random_get(guest: &mut Guest<'_>, ptr: u32, len: u32) -> Called<u32> {
    if len > MAX_RANDOM {
        return Ok(errno::INVAL);
    }
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    let mut filled = Ok(());
    fill(guest, ptr, len, |bytes| filled = getrandom::fill(bytes))?;
    Ok(if filled.is_ok() { 0 } else { errno::IO })
}
