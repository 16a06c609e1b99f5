//! Snapshots: a module as it is after start-up and configuration, from which a new instance is ready in microseconds.
//!
//! `wasmtime-wizer` rewrites the module so that its memory and globals begin as they were when the guest had configured itself. What
//! instances made from it share besides is what start-up asked the host for: metrics and shared queues are the process's anyway, a tick
//! period belongs to the root VM. Seeds that a guest drew while it started are the same in every instance.

use std::borrow::Cow;
use std::future::Future;
use std::sync::Arc;

use futures::FutureExt;
use wasmparser::{Parser, Payload, ValType};
use wasmtime::{Instance, InstancePre, Store, Val};
use wasmtime_wizer::{InstanceState, SnapshotVal, Wizer};

use crate::hostcalls;
use crate::module::Module;
use crate::plugin::{Facts, StartError};
use crate::root_loop::Ticks;
use crate::vm::{Role, State, Vm};

/// Magic number and version, before the first section.
const WASM_HEADER: usize = 8;

/// Why a plugin's instances have to start from the beginning each time.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    /// The module keeps state where a snapshot cannot see it, tables for example.
    #[error("the module cannot be snapshot")]
    Unsupported(#[source] wasmtime::Error),
    /// It did not start.
    #[error(transparent)]
    Start(StartError),
}

/// Starts the module once, apart from all else, and makes instances begin there.
pub(crate) fn take(module: &Module, facts: &Arc<Facts>) -> Result<InstancePre<State>, SnapshotError> {
    let unsupported = SnapshotError::Unsupported;
    let engine = module.engine().pooled().map_err(unsupported)?;
    let mut wizer = Wizer::new();
    wizer.keep_init_func(true);

    let (_, instrumented) = wizer.instrument(module.wasm()).map_err(unsupported)?;
    let code = wasmtime::Module::from_binary(module.engine().wasmtime(), &instrumented).map_err(unsupported)?;
    let linker = hostcalls::linker(module.engine().wasmtime(), &code).map_err(unsupported)?;
    let pre = linker.instantiate_pre(&code).map_err(unsupported)?;
    let mut vm =
        Vm::start(&pre, facts.clone(), Arc::<Ticks>::default(), Role::Rehearsal).map_err(SnapshotError::Start)?;

    let bare = without_data(module.wasm());
    let (context, _) = wizer.instrument(&bare).map_err(unsupported)?;
    // Nothing in it waits for anything.
    let snapshot =
        vm.snapshot(|store, instance| wizer.snapshot(&context, &mut Configured { store, instance }).now_or_never());
    let snapshot = snapshot
        .transpose()
        .map_err(unsupported)?
        .ok_or_else(|| SnapshotError::Unsupported(wasmtime::Error::msg("the snapshot waited for something")))?;
    let code = wasmtime::Module::from_binary(engine, &snapshot).map_err(unsupported)?;
    let linker = hostcalls::linker(engine, &code).map_err(unsupported)?;
    linker.instantiate_pre(&code).map_err(unsupported)
}

/// The module without its data, which is in the snapshot's memory in any case. Wizer keeps a placeholder for every data segment of the
/// module, so that instructions find the one they name, and adds its own: too many for the engine where Go's linker has made 100 000. No
/// instruction names one in a module that does not count them ahead of its code (WebAssembly 2.0, 5.5.16).
fn without_data(wasm: &[u8]) -> Cow<'_, [u8]> {
    let mut end_of_last = WASM_HEADER;
    let mut data = None;
    for payload in Parser::new(0).parse_all(wasm) {
        let Ok(payload) = payload else { return wasm.into() };
        if matches!(payload, Payload::DataCountSection { .. }) {
            return wasm.into();
        }
        if let Some((_, contents)) = payload.as_section() {
            if matches!(payload, Payload::DataSection(_)) {
                data = Some(end_of_last..contents.end);
            }
            end_of_last = contents.end;
        }
    }
    match data {
        Some(data) => [&wasm[..data.start], &wasm[data.end..]].concat().into(),
        None => wasm.into(),
    }
}

/// A configured instance, as wizer reads it.
struct Configured<'a> {
    store: &'a mut Store<State>,
    instance: Instance,
}

impl InstanceState for Configured<'_> {
    fn global_get(&mut self, name: &str, _: ValType) -> impl Future<Output = SnapshotVal> + Send {
        let global = self.instance.get_global(&mut *self.store, name).map(|global| global.get(&mut *self.store));
        let value = match global {
            Some(Val::I32(value)) => SnapshotVal::I32(value),
            Some(Val::I64(value)) => SnapshotVal::I64(value),
            Some(Val::F32(bits)) => SnapshotVal::F32(bits),
            Some(Val::F64(bits)) => SnapshotVal::F64(bits),
            Some(Val::V128(value)) => SnapshotVal::V128(value.as_u128()),
            // Wizer asks for the globals it has exported itself, and refuses modules with others than numbers.
            _ => unreachable!("wizer knows global {name}"),
        };
        std::future::ready(value)
    }

    fn memory_contents(&mut self, name: &str, contents: impl FnOnce(&[u8]) + Send) -> impl Future<Output = ()> + Send {
        if let Some(memory) = self.instance.get_memory(&mut *self.store, name) {
            contents(memory.data(&*self.store));
        }
        std::future::ready(())
    }
}
