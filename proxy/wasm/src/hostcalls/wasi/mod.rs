//! WASI preview 1: a process with standard streams, clocks, randomness and the environment its operator gives it, but without files and
//! sockets. Every call is linked with the signature of the specification, so that guests of any toolchain load; what would need a file
//! or a socket is answered with the error a program knows how to take.

mod poll;
pub(crate) mod stdio;

use std::time::{Duration, UNIX_EPOCH};

use wasmtime::{Caller, FuncType, Linker, Val, ValType};

use crate::abi::memory::{Guest, fill, write_u32, write_u64};
use crate::abi::status::{Called, Fail};
use crate::vm::State;

/// The two names of the same thing, and what differs between them; the second is old.
const VERSIONS: [Version; 2] = [
    Version { module: "wasi_snapshot_preview1", subscription: poll::SUBSCRIPTION, filestat: 64 },
    Version { module: "wasi_unstable", subscription: poll::OLD_SUBSCRIPTION, filestat: 56 },
];

#[derive(Clone, Copy)]
struct Version {
    module: &'static str,
    subscription: poll::Layout,
    /// Bytes of a `filestat`.
    filestat: usize,
}

/// Error numbers of WASI.
mod errno {
    pub(super) const OK: u32 = 0;
    pub(super) const BADF: u32 = 8;
    pub(super) const FAULT: u32 = 21;
    pub(super) const INVAL: u32 = 28;
    pub(super) const IO: u32 = 29;
    pub(super) const NOENT: u32 = 44;
    pub(super) const NOSYS: u32 = 52;
    pub(super) const NOTDIR: u32 = 54;
    pub(super) const NOTSOCK: u32 = 57;
    pub(super) const NOTSUP: u32 = 58;
    pub(super) const SPIPE: u32 = 70;
    pub(super) const NOTCAPABLE: u32 = 76;
}

/// One call may ask for this many random bytes: seeds, not streams (the C++ host's number).
const MAX_RANDOM: u32 = 64 << 10;

/// Makes the registration of the served calls that are the same in both versions, all of which return an error number.
macro_rules! serve {
    ($($name:literal => $body:path, ($($argument:ident: $type:ty),*);)*) => {
        const SERVED: &[&str] = &[$($name),*];

        fn serve_both(linker: &mut Linker<State>, module: &str) -> wasmtime::Result<()> {
            $(linker.func_wrap(module, $name, |mut guest: Caller<'_, State>, $($argument: $type),*| {
                answer(&mut guest, |guest| $body(guest, $($argument),*))
            })?;)*
            Ok(())
        }
    };
}

serve! {
    "args_sizes_get" => args_sizes_get, (count: u32, size: u32);
    "args_get" => args_get, (list: u32, bytes: u32);
    "environ_sizes_get" => environ_sizes_get, (count: u32, size: u32);
    "environ_get" => environ_get, (list: u32, bytes: u32);
    "clock_res_get" => clock_res_get, (clock: u32, out: u32);
    "clock_time_get" => clock_time_get, (clock: u32, precision: u64, out: u32);
    "random_get" => random_get, (ptr: u32, len: u32);
    "sched_yield" => sched_yield, ();
    "fd_write" => stdio::write, (fd: u32, iovecs: u32, count: u32, out: u32);
    "fd_read" => stdio::read, (fd: u32, iovecs: u32, count: u32, out: u32);
    "fd_fdstat_get" => stdio::fdstat_get, (fd: u32, out: u32);
}

/// Served too, but not of one form with the others.
const SERVED_ASIDE: &[&str] = &["proc_exit", "poll_oneoff", "fd_filestat_get"];

/// A call that needs what there is not.
struct Refused {
    name: &'static str,
    /// Its parameters: `i` for i32, `I` for i64. All of them return an i32.
    parameters: &'static str,
    answer: Answer,
}

/// How a refused call answers.
#[derive(Clone, Copy)]
enum Answer {
    Always(u32),
    /// Its first parameter is a descriptor: this of a standard stream, `BADF` of all others.
    Stream(u32),
}

const fn refused(name: &'static str, parameters: &'static str, answer: Answer) -> Refused {
    Refused { name, parameters, answer }
}

/// The rest of the specification. Paths that are looked for do not exist; what would change a file system is not allowed.
const REFUSED: &[Refused] = &[
    refused("fd_advise", "iIIi", Answer::Stream(errno::SPIPE)),
    refused("fd_allocate", "iII", Answer::Stream(errno::SPIPE)),
    refused("fd_close", "i", Answer::Stream(errno::OK)), // and stays open: a log line more does no harm
    refused("fd_datasync", "i", Answer::Stream(errno::INVAL)),
    refused("fd_fdstat_set_flags", "ii", Answer::Stream(errno::NOTSUP)),
    refused("fd_fdstat_set_rights", "iII", Answer::Stream(errno::NOTSUP)),
    refused("fd_filestat_set_size", "iI", Answer::Stream(errno::INVAL)),
    refused("fd_filestat_set_times", "iIIi", Answer::Stream(errno::NOTSUP)),
    refused("fd_pread", "iiiIi", Answer::Stream(errno::SPIPE)),
    refused("fd_prestat_get", "ii", Answer::Always(errno::BADF)), // libraries ask for 3, 4 ... until this
    refused("fd_prestat_dir_name", "iii", Answer::Always(errno::BADF)),
    refused("fd_pwrite", "iiiIi", Answer::Stream(errno::SPIPE)),
    refused("fd_readdir", "iiiIi", Answer::Stream(errno::NOTDIR)),
    refused("fd_renumber", "ii", Answer::Stream(errno::NOTSUP)),
    refused("fd_seek", "iIii", Answer::Stream(errno::SPIPE)),
    refused("fd_sync", "i", Answer::Stream(errno::INVAL)),
    refused("fd_tell", "ii", Answer::Stream(errno::SPIPE)),
    refused("path_create_directory", "iii", Answer::Always(errno::NOTCAPABLE)),
    refused("path_filestat_get", "iiiii", Answer::Always(errno::NOENT)),
    refused("path_filestat_set_times", "iiiiIIi", Answer::Always(errno::NOTCAPABLE)),
    refused("path_link", "iiiiiii", Answer::Always(errno::NOTCAPABLE)),
    refused("path_open", "iiiiiIIii", Answer::Always(errno::NOENT)),
    refused("path_readlink", "iiiiii", Answer::Always(errno::NOENT)),
    refused("path_remove_directory", "iii", Answer::Always(errno::NOTCAPABLE)),
    refused("path_rename", "iiiiii", Answer::Always(errno::NOTCAPABLE)),
    refused("path_symlink", "iiiii", Answer::Always(errno::NOTCAPABLE)),
    refused("path_unlink_file", "iii", Answer::Always(errno::NOTCAPABLE)),
    refused("proc_raise", "i", Answer::Always(errno::NOSYS)),
    refused("sock_accept", "iii", Answer::Stream(errno::NOTSOCK)),
    refused("sock_recv", "iiiiii", Answer::Stream(errno::NOTSOCK)),
    refused("sock_send", "iiiii", Answer::Stream(errno::NOTSOCK)),
    refused("sock_shutdown", "ii", Answer::Stream(errno::NOTSOCK)),
];

/// Whether this is a module of WASI.
pub(super) fn is_module(module: &str) -> bool {
    VERSIONS.iter().any(|version| version.module == module)
}

/// Whether the specification has this call.
pub(super) fn knows(name: &str) -> bool {
    SERVED.contains(&name) || SERVED_ASIDE.contains(&name) || REFUSED.iter().any(|call| call.name == name)
}

pub(super) fn serve(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    for Version { module, subscription, filestat } in VERSIONS {
        serve_both(linker, module)?;
        linker.func_wrap(module, "proc_exit", |mut guest: Caller<'_, State>, code: u32| -> wasmtime::Result<()> {
            guest.data_mut().spend_hostcall()?;
            Err(Exit(code).into())
        })?;
        linker.func_wrap(
            module,
            "poll_oneoff",
            move |mut guest: Caller<'_, State>, subscriptions: u32, events: u32, count: u32, out: u32| {
                answer(&mut guest, |guest| poll::oneoff(guest, subscription, subscriptions, events, count, out))
            },
        )?;
        linker.func_wrap(module, "fd_filestat_get", move |mut guest: Caller<'_, State>, fd: u32, out: u32| {
            answer(&mut guest, |guest| stdio::filestat_get(guest, filestat, fd, out))
        })?;

        for call in REFUSED {
            let parameters =
                call.parameters.chars().map(|letter| if letter == 'I' { ValType::I64 } else { ValType::I32 });
            let ty = FuncType::new(linker.engine(), parameters, [ValType::I32]);
            let how = call.answer;
            linker.func_new(module, call.name, ty, move |mut guest, arguments, results| {
                guest.data_mut().spend_hostcall()?;
                let errno = match (how, arguments.first()) {
                    (Answer::Stream(errno), Some(Val::I32(0..=2))) => errno,
                    (Answer::Stream(_), _) => errno::BADF,
                    (Answer::Always(errno), _) => errno,
                };
                results.fill(Val::I32(errno.cast_signed()));
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Links a call that the specification does not have (runtimes add their own, for sockets say) with the signature the module gives it:
/// `ENOSYS` where it wants a number, 0 where it wants something else.
pub(super) fn link_unknown(linker: &mut Linker<State>, module: &str, name: &str, ty: FuncType) -> wasmtime::Result<()> {
    let call = format!("{module}.{name}");
    linker.func_new(module, name, ty, move |mut guest, _, results| {
        guest.data_mut().spend_hostcall()?;
        guest.data().facts.warn_unserved(&call);
        for result in results {
            *result = match result {
                Val::I64(_) => Val::I64(errno::NOSYS.into()),
                Val::F32(_) => Val::F32(0),
                Val::F64(_) => Val::F64(0),
                _ => Val::I32(errno::NOSYS.cast_signed()),
            };
        }
        Ok(())
    })?;
    Ok(())
}

/// What ends a guest that exits.
#[derive(Debug, thiserror::Error)]
#[error("the guest exited with code {0}")]
struct Exit(u32);

/// The code a guest exited with, when that is what ended its call.
pub(super) fn exit_code(error: &wasmtime::Error) -> Option<u32> {
    error.downcast_ref::<Exit>().map(|exit| exit.0)
}

/// Runs a call's body and turns its end into an error number.
fn answer(guest: &mut Guest<'_>, body: impl FnOnce(&mut Guest<'_>) -> Called<u32>) -> wasmtime::Result<u32> {
    guest.data_mut().spend_hostcall()?;
    match body(guest) {
        Ok(errno) => Ok(errno),
        Err(Fail::Status(_) | Fail::Because(..)) => Ok(errno::FAULT), // only pointers can fail that way here
        Err(Fail::Trap(error)) => Err(error),
    }
}

/// There are no arguments, not even a program's name: two zeros, and nothing to write.
fn args_sizes_get(guest: &mut Guest<'_>, count: u32, size: u32) -> Called<u32> {
    write_u32(guest, count, 0)?;
    write_u32(guest, size, 0)?;
    Ok(errno::OK)
}

#[allow(clippy::unnecessary_wraps, reason = "the shape of every call")]
fn args_get(_guest: &mut Guest<'_>, _list: u32, _bytes: u32) -> Called<u32> {
    Ok(errno::OK)
}

/// `NAME=value` and a NUL: what `environ_get` writes for one variable.
fn variable((name, value): &(String, String)) -> Vec<u8> {
    [name.as_bytes(), b"=", value.as_bytes(), b"\0"].concat()
}

fn environ_sizes_get(guest: &mut Guest<'_>, count: u32, size: u32) -> Called<u32> {
    let environment = &guest.data().facts.environment;
    let bytes: usize = environment.iter().map(|pair| variable(pair).len()).sum();
    let variables = u32::try_from(environment.len()).unwrap_or(u32::MAX);
    write_u32(guest, count, variables)?;
    write_u32(guest, size, u32::try_from(bytes).unwrap_or(u32::MAX))?;
    Ok(errno::OK)
}

fn environ_get(guest: &mut Guest<'_>, list: u32, bytes: u32) -> Called<u32> {
    let facts = guest.data().facts.clone();
    let (mut list, mut place) = (list, bytes);
    for pair in &facts.environment {
        let text = variable(pair);
        write_u32(guest, list, place)?;
        fill(guest, place, text.len(), |bytes| bytes.copy_from_slice(&text))?;
        let next = u32::try_from(text.len()).ok().and_then(|len| place.checked_add(len));
        let Some((next, after)) = next.zip(list.checked_add(4)) else { return Ok(errno::FAULT) };
        (list, place) = (after, next);
    }
    Ok(errno::OK)
}

/// The clocks there are: what a guest's measurements of processor time would say of its neighbours is not for it to know.
const REALTIME: u32 = 0;
const MONOTONIC: u32 = 1;

/// A clock's time now.
fn now(guest: &Guest<'_>, clock: u32) -> Option<Duration> {
    let facts = &guest.data().facts;
    match clock {
        REALTIME => Some(facts.host.now().duration_since(UNIX_EPOCH).unwrap_or_default()),
        MONOTONIC => Some(facts.started.elapsed()),
        _ => None,
    }
}

fn clock_time_get(guest: &mut Guest<'_>, clock: u32, _precision: u64, out: u32) -> Called<u32> {
    let Some(time) = now(guest, clock) else { return Ok(errno::NOTSUP) };
    write_u64(guest, out, u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))?;
    Ok(errno::OK)
}

fn clock_res_get(guest: &mut Guest<'_>, clock: u32, out: u32) -> Called<u32> {
    if !matches!(clock, REALTIME | MONOTONIC) {
        return Ok(errno::NOTSUP);
    }
    write_u64(guest, out, 1)?;
    Ok(errno::OK)
}

fn random_get(guest: &mut Guest<'_>, ptr: u32, len: u32) -> Called<u32> {
    if len > MAX_RANDOM {
        return Ok(errno::INVAL);
    }
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    let mut filled = Ok(());
    fill(guest, ptr, len, |bytes| filled = getrandom::fill(bytes))?;
    Ok(if filled.is_ok() { errno::OK } else { errno::IO })
}

/// Nobody else could run meanwhile.
#[allow(clippy::unnecessary_wraps, reason = "the shape of every call")]
fn sched_yield(_guest: &mut Guest<'_>) -> Called<u32> {
    Ok(errno::OK)
}
