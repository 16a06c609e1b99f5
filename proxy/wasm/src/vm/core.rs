//! Making one guest call: under its deadline, with the exchange in reach of hostcalls, and with what it ends in explained.

use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;

use wasmtime::{Instance, Store, TypedFunc, WasmBacktrace, WasmParams, WasmResults};

use super::ROOT;
use super::error::CallError;
use super::state::State;
use crate::effects::Effects;
use crate::exchange::Exchange;
use crate::hostcalls;
use crate::stats;
use crate::turn::Overrun;

/// What makes a guest call, apart from the callbacks so that both can be borrowed at once.
pub(crate) struct Core {
    pub(super) store: Store<State>,
    /// `None` until it is made.
    pub(super) instance: Option<Instance>,
    pub(super) poisoned: bool,
    /// Where a VM that serves many streams counts its calls.
    pub(super) tally: Option<Arc<stats::Tally>>,
}

/// A function that the guest may export for us to call. Looked up when it is first called: an instance that serves one stream calls few.
pub(crate) struct Callback<P, R = ()> {
    export: &'static str,
    function: Lookup<P, R>,
}

enum Lookup<P, R> {
    NotYet,
    Missing,
    /// And the place of its counters.
    Found(TypedFunc<P, R>, stats::Callback),
}

impl<P: WasmParams, R: WasmResults> Callback<P, R> {
    pub(super) const fn named(export: &'static str) -> Self {
        Self { export, function: Lookup::NotYet }
    }

    /// Whether the guest has it. An export of this name with another signature is something else: signatures that matter were checked when
    /// the module was loaded.
    pub(super) fn exists(&mut self, core: &mut Core) -> bool {
        core.find(self).is_some()
    }
}

impl Core {
    /// One guest call under the plugin's deadline. `Ok(None)` when the guest has no such callback.
    pub(crate) fn call<P: WasmParams, R: WasmResults + 'static>(
        &mut self,
        callback: &mut Callback<P, R>,
        arguments: P,
    ) -> Result<Option<R>, CallError> {
        self.call_within(false, callback, arguments)
    }

    pub(super) fn start_call<P: WasmParams, R: WasmResults + 'static>(
        &mut self,
        callback: &mut Callback<P, R>,
        arguments: P,
    ) -> Result<Option<R>, CallError> {
        self.store.data_mut().begin(ROOT);
        self.call_within(true, callback, arguments)
    }

    fn call_within<P: WasmParams, R: WasmResults + 'static>(
        &mut self,
        starting: bool,
        callback: &mut Callback<P, R>,
        arguments: P,
    ) -> Result<Option<R>, CallError> {
        if self.poisoned {
            return Err(CallError::Poisoned);
        }
        let name = callback.export;
        let Some((function, counters)) = self.find(callback) else { return Ok(None) };
        let state = self.store.data();
        let counted = state.facts.stats.call_begins(self.tally.as_deref(), counters);
        let traced =
            state.trace.clone().map(|trace| (trace.callback_begins(&state.facts.name, state.owner, name), trace));

        let result = self.run(starting, name, function, arguments);

        self.store.data().facts.stats.call_ended(counted, result.as_ref().err());
        if let Some((number, trace)) = traced {
            let ended = match &result {
                Ok(returned) if trace.is_telling() => meaning(name, returned).to_owned(),
                Ok(_) => "returned".to_owned(),
                Err(error) => error.to_string(),
            };
            trace.callback_ends(number, ended, result.is_err());
        }
        result
    }

    fn find<'c, P: WasmParams, R: WasmResults>(
        &mut self,
        callback: &'c mut Callback<P, R>,
    ) -> Option<(&'c TypedFunc<P, R>, stats::Callback)> {
        if let Lookup::NotYet = callback.function {
            let found = self.instance?.get_typed_func(&mut self.store, callback.export);
            let counters = stats::Callback::of(callback.export);
            callback.function = found.map_or(Lookup::Missing, |function| Lookup::Found(function, counters));
        }
        match &callback.function {
            Lookup::Found(function, counters) => Some((function, *counters)),
            Lookup::NotYet | Lookup::Missing => None,
        }
    }

    fn run<P: WasmParams, R: WasmResults>(
        &mut self,
        starting: bool,
        callback: &'static str,
        function: &TypedFunc<P, R>,
        arguments: P,
    ) -> Result<Option<R>, CallError> {
        self.poisoned = true; // and stays so if a hostcall panics
        self.begin_turn(starting);
        let called = function.call(&mut self.store, arguments);
        self.store.data_mut().turn.end();
        match called {
            Ok(result) => {
                self.poisoned = false;
                hostcalls::wasi::stdio::flush(self.store.data_mut());
                Ok(Some(result))
            }
            // A command (`_start`) that ends well has started well; libraries of some languages say so by exiting.
            Err(error) if callback == "_start" && hostcalls::exit_code(&error) == Some(0) => {
                self.poisoned = false;
                Ok(None)
            }
            Err(error) => {
                let error = self.explain(callback, &error);
                self.poison();
                self.store.data().facts.failed();
                Err(error)
            }
        }
    }

    /// Gives the guest the budget of one call. The first tick only starts its clocks (see [`crate::turn`]).
    pub(super) fn begin_turn(&mut self, starting: bool) {
        let state = self.store.data_mut();
        state.turn.begin(if starting { state.facts.start_budget } else { state.facts.call_budget });
        self.store.set_epoch_deadline(1);
    }

    /// Runs guest calls for `context` with the exchange in reach of hostcalls; on every way out it is out of reach again.
    pub(crate) fn lend<T>(
        &mut self,
        context: u32,
        exchange: Option<&mut dyn Exchange>,
        run: impl FnOnce(&mut Self) -> T,
    ) -> T {
        struct Lent<'a>(&'a mut Core);
        impl Drop for Lent<'_> {
            fn drop(&mut self) {
                let state = self.0.store.data_mut();
                (state.exchange, state.trace) = (None, None);
            }
        }
        let state = self.store.data_mut();
        state.begin(context);
        state.trace = exchange.as_ref().and_then(|exchange| exchange.trace()).cloned();
        state.exchange = exchange.map(ExchangePointer::new);
        let lent = Lent(self);
        run(lent.0)
    }

    /// Before each of the calls that end a stream.
    pub(super) fn end_of(&mut self, id: u32) {
        let state = self.store.data_mut();
        state.begin(id);
        state.ending = true;
    }

    pub(crate) fn take_effects(&mut self) -> Effects {
        std::mem::take(&mut self.store.data_mut().effects)
    }

    /// Ends the VM: nothing is called again, and whoever waits for mail learns it.
    pub(super) fn poison(&mut self) {
        self.poisoned = true;
        let state = self.store.data_mut();
        state.grpc.hang_up();
        for mailbox in state.streams.values_mut() {
            mailbox.effects().poisoned = true;
        }
    }

    pub(super) fn log_failure(&self, error: &CallError) {
        tracing::warn!(plugin = %self.store.data().facts.name, %error, "a filter failed while ending");
    }

    pub(super) fn explain(&mut self, callback: &'static str, error: &wasmtime::Error) -> CallError {
        let state = self.store.data_mut();
        hostcalls::wasi::stdio::flush(state);
        let limits = &state.facts.limits;
        if state.hostcalls_used_up {
            return CallError::Hostcalls { callback, limit: limits.hostcalls };
        }
        match state.turn.overrun {
            Some(Overrun::Cpu) => return CallError::Cpu { callback, limit: state.turn.cpu() },
            Some(Overrun::Deadline) => return CallError::Deadline { callback, limit: state.turn.wall() },
            Some(Overrun::Crowded) => return CallError::Crowded { callback },
            None => {}
        }
        if state.limiter.memory_refused {
            return CallError::Memory { callback, limit: limits.memory };
        }
        let mut message = error.root_cause().to_string();
        if let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() {
            let names: Vec<String> = backtrace.frames().iter().take(MAX_FRAMES).map(frame).collect();
            let names = past_the_panic(&names);
            if !names.is_empty() {
                message = format!("{message}, in {}", names.join(" < "));
            }
        }
        if let Some(words) = state.last_words.take() {
            message = format!("{message}; it had logged: {words}");
        }
        CallError::Trap { callback, message }
    }
}

/// The frames of a panic below its machinery, which says nothing about where it came from.
fn past_the_panic(frames: &[String]) -> &[String] {
    let machinery = ["core::panicking::panic", "std::panicking::", "rust_begin_unwind"];
    let last = frames.iter().rposition(|frame| machinery.iter().any(|part| frame.contains(part)));
    match last {
        Some(last) if last + 1 < frames.len() => &frames[last + 1..],
        _ => frames,
    }
}

/// What a callback means by what it returns.
fn meaning<R: 'static>(callback: &str, returned: &Option<R>) -> &'static str {
    let number = (returned as &dyn Any).downcast_ref::<Option<u32>>().copied().flatten();
    let decides = ["proxy_on_request_", "proxy_on_response_", "proxy_on_downstream_data", "proxy_on_upstream_data"];
    match (number, callback) {
        (Some(0), "proxy_on_vm_start" | "proxy_on_configure") => "refused",
        (Some(_), "proxy_on_vm_start" | "proxy_on_configure") => "accepted",
        (Some(0), "proxy_on_done") => "not yet",
        (Some(0), _) if decides.iter().any(|prefix| callback.starts_with(prefix)) => "Continue",
        (Some(_), _) if decides.iter().any(|prefix| callback.starts_with(prefix)) => "Pause",
        _ => "returned",
    }
}

/// Frames of a backtrace in an error: enough to get out of the panic machinery and to the filter's own functions.
const MAX_FRAMES: usize = 16;

/// A frame as `function (file:line)`; the place only where the module carries debug information. Without names it has its number, which
/// tools that look at the module know it by. Functions that the compiler has put into it are frames of their own, as far as they are told.
fn frame(frame: &wasmtime::FrameInfo) -> String {
    let own = match frame.func_name() {
        Some(name) => format!("{:#}", rustc_demangle::demangle(name)),
        None => format!("function {}", frame.func_index()),
    };
    let symbols = frame.symbols();
    let told = symbols.iter().enumerate().map(|(index, symbol)| {
        // The outermost is the function itself, which the section of names calls by its whole name.
        let inlined = symbol.name().filter(|_| index + 1 < symbols.len());
        let name = inlined.map_or_else(|| own.clone(), |name| format!("{:#}", rustc_demangle::demangle(name)));
        match (symbol.file(), symbol.line()) {
            (Some(file), Some(line)) => format!("{name} ({file}:{line})"),
            _ => name,
        }
    });
    let told: Vec<String> = told.collect();
    if told.is_empty() { own } else { told.join(" < ") }
}

/// The exchange in the store's data, without its lifetime: a store outlives every exchange, so its type cannot name one.
///
/// The one rule that makes it sound: it exists only inside [`Core::lend`], which is called with the exchange mutably borrowed and clears
/// the pointer on every way out, unwinding included; and a hostcall *takes* it, so that no second one (from the guest's allocator, say)
/// can reach the same exchange.
pub(crate) struct ExchangePointer(NonNull<dyn Exchange>);

// SAFETY: an `Exchange` is `Send`, and the pointer is the only way to it while it is lent.
unsafe impl Send for ExchangePointer {}

impl ExchangePointer {
    fn new<'a>(exchange: &'a mut (dyn Exchange + 'a)) -> Self {
        // SAFETY: only the lifetime is changed. `Core::lend` drops the pointer before the borrow it is made from ends.
        Self(unsafe {
            std::mem::transmute::<NonNull<dyn Exchange + 'a>, NonNull<dyn Exchange + 'static>>(NonNull::from(exchange))
        })
    }

    pub(crate) fn as_mut(&mut self) -> &mut dyn Exchange {
        // SAFETY: the exchange is borrowed for as long as this pointer exists (see the type), and reached through it alone.
        unsafe { self.0.as_mut() }
    }
}
