//! One VM: an instance of a module with its root context, its live streams, and the state its hostcalls work on.
//!
//! ```text
//! started -> (one guest call at a time)* -> ended (dropped)
//!                      \-> poisoned (trap, deadline, memory, hostcalls): never called again
//! ```

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ptr::NonNull;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use wasmtime::{Instance, Memory, Store, Trap, TypedFunc, WasmBacktrace, WasmParams, WasmResults};

use crate::effects::{Callout, CalloutFailure, CalloutId, CalloutResponse, Effects};
use crate::exchange::Exchange;
use crate::limits::{Limiter, MAX_CALLOUTS};
use crate::metrics::Cell;
use crate::module::Module;
use crate::plugin::{Facts, StartError, Ticks};

/// The id of the root context, in every VM.
pub(crate) const ROOT: u32 = 1;

/// Why a guest call failed. All but the last two mean that the VM is poisoned: its other streams will see [`CallError::Poisoned`], the
/// next new stream gets a new VM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The guest trapped: it panicked, or did what WebAssembly forbids.
    #[error("{callback} trapped: {message}")]
    Trap {
        /// The callback that was running.
        callback: &'static str,
        /// The trap, the innermost functions, and the last error the guest logged in this call.
        message: String,
    },
    /// The guest ran longer than [`crate::Limits::deadline`].
    #[error("{callback} ran longer than {limit:?}")]
    Deadline {
        /// The callback that was running.
        callback: &'static str,
        /// How long it was allowed.
        limit: Duration,
    },
    /// The guest asked for more than [`crate::Limits::memory`] and did not survive the refusal.
    #[error("{callback} needed more than {limit} bytes of memory")]
    Memory {
        /// The callback that was running.
        callback: &'static str,
        /// The ceiling in bytes.
        limit: u64,
    },
    /// The guest made more than [`crate::Limits::hostcalls`] hostcalls.
    #[error("{callback} made more than {limit} hostcalls")]
    Hostcalls {
        /// The callback that was running.
        callback: &'static str,
        /// The budget.
        limit: u32,
    },
    /// Another call killed this stream's VM before.
    #[error("the VM died in another call")]
    Poisoned,
    /// The VM keeps dying: no new one is made for a while.
    #[error("the VM is being held back after repeated failures, next try in {retry_in:?}")]
    Unavailable {
        /// When a new VM may be made.
        retry_in: Duration,
    },
}

/// Marks the error of a hostcall beyond the budget.
#[derive(Debug, thiserror::Error)]
#[error("hostcall budget used up")]
pub(crate) struct HostcallsUsedUp;

/// A VM behind its lock. The lock is held for one guest call and never across an await; each worker has its own VM, so it is free.
#[derive(Debug)]
pub(crate) struct VmCell(pub(crate) Mutex<Vm>);

/// See the module.
pub(crate) struct Vm {
    pub(crate) core: Core,
    pub(crate) callbacks: Callbacks,
    next_context: u32,
}

/// What makes a guest call, apart from the callbacks so that both can be borrowed at once.
pub(crate) struct Core {
    store: Store<State>,
    poisoned: bool,
}

/// The callbacks, looked up once. A missing one is never called.
pub(crate) struct Callbacks {
    pub(crate) context_create: Option<TypedFunc<(u32, u32), ()>>,
    pub(crate) vm_start: Option<TypedFunc<(u32, u32), u32>>,
    pub(crate) configure: Option<TypedFunc<(u32, u32), u32>>,
    pub(crate) tick: Option<TypedFunc<u32, ()>>,
    pub(crate) request_headers: Option<TypedFunc<(u32, u32, u32), u32>>,
    pub(crate) request_body: Option<TypedFunc<(u32, u32, u32), u32>>,
    pub(crate) request_trailers: Option<TypedFunc<(u32, u32), u32>>,
    pub(crate) response_headers: Option<TypedFunc<(u32, u32, u32), u32>>,
    pub(crate) response_body: Option<TypedFunc<(u32, u32, u32), u32>>,
    pub(crate) response_trailers: Option<TypedFunc<(u32, u32), u32>>,
    pub(crate) http_call_response: Option<TypedFunc<CalloutArguments, ()>>,
    pub(crate) done: Option<TypedFunc<u32, u32>>,
    pub(crate) log: Option<TypedFunc<u32, ()>>,
    pub(crate) delete: Option<TypedFunc<u32, ()>>,
}

/// Root context, callout, number of headers, bytes of body, number of trailers.
type CalloutArguments = (u32, u32, u32, u32, u32);

/// What hostcalls work on.
pub(crate) struct State {
    pub(crate) facts: Arc<Facts>,
    pub(crate) ticks: Arc<Ticks>,
    pub(crate) limiter: Limiter,
    pub(crate) memory: Option<Memory>,
    /// Taken while it runs: a guest whose allocator calls the host cannot make it recurse.
    pub(crate) allocator: Option<TypedFunc<u32, u32>>,

    // This guest call.
    exchange: Option<ExchangePointer>,
    /// The context whose callback is running.
    owner: u32,
    /// The context hostcalls act on: the owner, unless the guest said otherwise.
    pub(crate) effective: u32,
    /// The owner is a stream that is ending: nothing can be done to it any more.
    ending: bool,
    effects: Effects,
    /// The callout being delivered: maps 6 and 7, buffer 4, and the status.
    pub(crate) delivery: Option<Result<CalloutResponse, CalloutFailure>>,
    hostcalls: u32,
    hostcalls_used_up: bool,
    callouts_made: usize,
    /// What the guest logged last as an error: a panic's message.
    pub(crate) last_words: Option<String>,

    // As long as the VM.
    streams: HashMap<u32, Mailbox, BuildHasherDefault<IdHasher>>,
    callouts_in_flight: HashMap<u32, u32, BuildHasherDefault<IdHasher>>,
    root_callouts_in_flight: usize,
    next_callout: u32,
    root_callouts: Vec<Callout>,
    pub(crate) metrics: HashMap<u32, Arc<Cell>, BuildHasherDefault<IdHasher>>,
}

/// What waits for a live stream, queued by other contexts' calls.
#[derive(Default)]
struct Mailbox {
    effects: Option<Box<Effects>>,
    waker: Option<Waker>,
    callouts_in_flight: usize,
}

impl Mailbox {
    fn effects(&mut self) -> &mut Effects {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        self.effects.get_or_insert_default()
    }
}

/// Where an effect goes.
pub(crate) enum Audience<'a> {
    /// To a stream, with this call's outcome or by mail.
    Stream(&'a mut Effects),
    /// To nobody: the root context, or a stream that is ending.
    Nobody,
}

impl Vm {
    /// Makes an instance and brings it through `_initialize`, `proxy_on_vm_start` and `proxy_on_configure`.
    pub(crate) fn start(module: &Module, facts: Arc<Facts>, ticks: Arc<Ticks>) -> Result<Self, StartError> {
        let mut store = Store::new(module.engine().wasmtime(), State::new(facts.clone(), ticks));
        store.limiter(|state| &mut state.limiter);
        store.data_mut().begin(ROOT);
        store.set_epoch_deadline(facts.start_ticks);
        let mut core = Core { store, poisoned: false };

        let instance = match module.instance().instantiate(&mut core.store) {
            Ok(instance) => instance,
            Err(error) => return Err(StartError::Call(core.explain("instantiation", facts.start_deadline(), &error))),
        };
        let callbacks = Callbacks::find(&mut core.store, &instance);
        let allocator = typed(&mut core.store, &instance, "malloc");
        let allocator = allocator.or_else(|| typed(&mut core.store, &instance, "proxy_on_memory_allocate"));
        let memory = instance.get_memory(&mut core.store, "memory");
        let state = core.store.data_mut();
        (state.allocator, state.memory) = (allocator, memory);

        let mut vm = Self { core, callbacks, next_context: ROOT + 1 };
        vm.initialize(&instance).map_err(StartError::Call)?;
        vm.configure(&facts)?;
        Ok(vm)
    }

    /// `_initialize` and, if there is one, `main`; else `_start`: the order of the C++ host.
    fn initialize(&mut self, instance: &Instance) -> Result<(), CallError> {
        let core = &mut self.core;
        let initialize: Option<TypedFunc<(), ()>> = typed(&mut core.store, instance, "_initialize");
        if initialize.is_some() {
            let main: Option<TypedFunc<(), u32>> = typed(&mut core.store, instance, "__main_void");
            core.start_call("_initialize", initialize.as_ref(), ())?;
            core.start_call("__main_void", main.as_ref(), ())?;
        } else {
            let start: Option<TypedFunc<(), ()>> = typed(&mut core.store, instance, "_start");
            core.start_call("_start", start.as_ref(), ())?;
        }
        Ok(())
    }

    fn configure(&mut self, facts: &Facts) -> Result<(), StartError> {
        let Self { core, callbacks, .. } = self;
        let size = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        core.start_call("proxy_on_context_create", callbacks.context_create.as_ref(), (ROOT, 0))
            .map_err(StartError::Call)?;
        for (callback, function, config) in [
            ("proxy_on_vm_start", &callbacks.vm_start, &facts.vm_config),
            ("proxy_on_configure", &callbacks.configure, &facts.config),
        ] {
            let accepted =
                core.start_call(callback, function.as_ref(), (ROOT, size(config))).map_err(StartError::Call)?;
            if accepted == Some(0) {
                core.poison(); // it never served: nobody is to say goodbye to its contexts
                return Err(StartError::Refused { callback, reason: core.store.data_mut().last_words.take() });
            }
        }
        Ok(())
    }

    pub(crate) fn is_poisoned(&self) -> bool {
        self.core.poisoned
    }

    /// A new stream context.
    pub(crate) fn open_stream(&mut self) -> Result<u32, CallError> {
        let Self { core, callbacks, next_context } = self;
        let state = core.store.data_mut();
        while *next_context <= ROOT || state.streams.contains_key(next_context) {
            *next_context = next_context.wrapping_add(1);
        }
        let id = *next_context;
        *next_context = id.wrapping_add(1);
        state.streams.insert(id, Mailbox::default());
        state.begin(id);
        core.call("proxy_on_context_create", callbacks.context_create.as_ref(), (id, ROOT))?;
        Ok(id)
    }

    /// Ends a stream: done, log, delete, in this order (the ABI's; Envoy logs first). A failure is logged: the exchange is over anyway.
    pub(crate) fn close_stream(&mut self, id: u32, exchange: Option<&mut dyn Exchange>, log: bool) {
        let Self { core, callbacks, .. } = self;
        let ended = core.lend(id, exchange, |core| {
            core.end_of(id);
            core.call("proxy_on_done", callbacks.done.as_ref(), id)?;
            if log {
                core.end_of(id);
                core.call("proxy_on_log", callbacks.log.as_ref(), id)?;
            }
            core.end_of(id);
            core.call("proxy_on_delete", callbacks.delete.as_ref(), id)
        });
        let state = core.store.data_mut();
        let orphans = state.streams.remove(&id).map_or(0, |mailbox| mailbox.callouts_in_flight);
        let ended = ended.and_then(|_| if orphans > 0 { self.fail_callouts_of(id) } else { Ok(()) });
        match ended {
            Ok(()) | Err(CallError::Poisoned) => {}
            Err(error) => self.core.log_failure(&error),
        }
    }

    /// Tells the guest that the calls of an ended stream failed. Its context is gone, so an SDK only forgets them; untold it would
    /// remember them for ever.
    fn fail_callouts_of(&mut self, context: u32) -> Result<(), CallError> {
        let in_flight = &self.core.store.data().callouts_in_flight;
        let orphans: Vec<u32> = in_flight.iter().filter(|(_, owner)| **owner == context).map(|(id, _)| *id).collect();
        for id in orphans {
            self.deliver(ROOT, None, CalloutId(id), Err(CalloutFailure::Reset("stream ended".into())))?;
        }
        Ok(())
    }

    /// Brings a callout's result to the guest. `context` is where its effects go; the guest is always told on the root context. Unknown
    /// ids (already delivered) are ignored.
    pub(crate) fn deliver(
        &mut self,
        context: u32,
        exchange: Option<&mut dyn Exchange>,
        id: CalloutId,
        result: Result<CalloutResponse, CalloutFailure>,
    ) -> Result<Effects, CallError> {
        let Self { core, callbacks, .. } = self;
        if core.poisoned {
            return Err(CallError::Poisoned);
        }
        if !core.store.data_mut().forget_callout(id) {
            return Ok(Effects::default());
        }
        let size = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        let (headers, body, trailers) = match &result {
            Ok(response) => (size(response.headers.len()), size(response.body.len()), size(response.trailers.len())),
            Err(_) => (0, 0, 0),
        };
        core.lend(context, exchange, |core| {
            core.store.data_mut().delivery = Some(result);
            let arguments = (ROOT, id.0, headers, body, trailers);
            let called = core.call("proxy_on_http_call_response", callbacks.http_call_response.as_ref(), arguments);
            core.store.data_mut().delivery = None;
            called.map(|_| core.take_effects())
        })
    }

    pub(crate) fn tick(&mut self) -> Result<(), CallError> {
        let Self { core, callbacks, .. } = self;
        core.store.data_mut().begin(ROOT);
        core.call("proxy_on_tick", callbacks.tick.as_ref(), ROOT).map(drop)
    }

    /// Callouts of the root context, to be made by the tick loop.
    pub(crate) fn take_root_callouts(&mut self) -> Vec<Callout> {
        std::mem::take(&mut self.core.store.data_mut().root_callouts)
    }

    /// Effects queued for a stream by other contexts' calls; registers the waker when there are none.
    pub(crate) fn poll_mail(&mut self, id: u32, waker: &Waker) -> Poll<Effects> {
        let Some(mailbox) = self.core.store.data_mut().streams.get_mut(&id) else { return Poll::Pending };
        if let Some(effects) = mailbox.effects.take() {
            return Poll::Ready(*effects);
        }
        match &mut mailbox.waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        Poll::Pending
    }
}

impl Drop for Vm {
    /// Says goodbye to the root context. `proxy_on_done` answering "not yet" is not waited for: there is nothing left that could call it.
    fn drop(&mut self) {
        if self.core.poisoned || std::thread::panicking() {
            return;
        }
        let Self { core, callbacks, .. } = self;
        core.store.data_mut().begin(ROOT);
        let ended = core
            .call("proxy_on_done", callbacks.done.as_ref(), ROOT)
            .and_then(|_| core.call("proxy_on_delete", callbacks.delete.as_ref(), ROOT));
        if let Err(error) = ended {
            core.log_failure(&error);
        }
    }
}

impl std::fmt::Debug for Vm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vm").field("poisoned", &self.core.poisoned).finish_non_exhaustive()
    }
}

impl Core {
    /// One guest call under the plugin's deadline. `Ok(None)` when the guest has no such callback.
    pub(crate) fn call<P: WasmParams, R: WasmResults>(
        &mut self,
        callback: &'static str,
        function: Option<&TypedFunc<P, R>>,
        arguments: P,
    ) -> Result<Option<R>, CallError> {
        let facts = &self.store.data().facts;
        let (ticks, deadline) = (facts.call_ticks, facts.limits.deadline);
        self.call_within(ticks, deadline, callback, function, arguments)
    }

    fn start_call<P: WasmParams, R: WasmResults>(
        &mut self,
        callback: &'static str,
        function: Option<&TypedFunc<P, R>>,
        arguments: P,
    ) -> Result<Option<R>, CallError> {
        let facts = &self.store.data().facts;
        let (ticks, deadline) = (facts.start_ticks, facts.start_deadline());
        self.store.data_mut().begin(ROOT);
        self.call_within(ticks, deadline, callback, function, arguments)
    }

    fn call_within<P: WasmParams, R: WasmResults>(
        &mut self,
        ticks: u64,
        deadline: Duration,
        callback: &'static str,
        function: Option<&TypedFunc<P, R>>,
        arguments: P,
    ) -> Result<Option<R>, CallError> {
        if self.poisoned {
            return Err(CallError::Poisoned);
        }
        let Some(function) = function else { return Ok(None) };
        self.poisoned = true; // and stays so if a hostcall panics
        self.store.set_epoch_deadline(ticks);
        match function.call(&mut self.store, arguments) {
            Ok(result) => {
                self.poisoned = false;
                Ok(Some(result))
            }
            Err(error) => {
                let error = self.explain(callback, deadline, &error);
                self.poison();
                Err(error)
            }
        }
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
                self.0.store.data_mut().exchange = None;
            }
        }
        let state = self.store.data_mut();
        state.begin(context);
        state.exchange = exchange.map(ExchangePointer::new);
        let lent = Lent(self);
        run(lent.0)
    }

    /// Before each of the calls that end a stream.
    fn end_of(&mut self, id: u32) {
        let state = self.store.data_mut();
        state.begin(id);
        state.ending = true;
    }

    pub(crate) fn take_effects(&mut self) -> Effects {
        std::mem::take(&mut self.store.data_mut().effects)
    }

    /// Ends the VM: nothing is called again, and whoever waits for mail learns it.
    fn poison(&mut self) {
        self.poisoned = true;
        let state = self.store.data_mut();
        state.ticks.set(0);
        for mailbox in state.streams.values_mut() {
            mailbox.effects().poisoned = true;
        }
    }

    fn log_failure(&self, error: &CallError) {
        tracing::warn!(plugin = %self.store.data().facts.name, %error, "a filter failed while ending");
    }

    fn explain(&mut self, callback: &'static str, deadline: Duration, error: &wasmtime::Error) -> CallError {
        let state = self.store.data_mut();
        let limits = &state.facts.limits;
        if state.hostcalls_used_up {
            return CallError::Hostcalls { callback, limit: limits.hostcalls };
        }
        if error.downcast_ref::<Trap>() == Some(&Trap::Interrupt) {
            return CallError::Deadline { callback, limit: deadline };
        }
        if state.limiter.memory_refused {
            return CallError::Memory { callback, limit: limits.memory };
        }
        let mut message = error.root_cause().to_string();
        if let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() {
            let names: Vec<&str> =
                backtrace.frames().iter().filter_map(wasmtime::FrameInfo::func_name).take(8).collect();
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

impl Callbacks {
    fn find(store: &mut Store<State>, instance: &Instance) -> Self {
        Self {
            context_create: typed(store, instance, "proxy_on_context_create"),
            vm_start: typed(store, instance, "proxy_on_vm_start"),
            configure: typed(store, instance, "proxy_on_configure"),
            tick: typed(store, instance, "proxy_on_tick"),
            request_headers: typed(store, instance, "proxy_on_request_headers"),
            request_body: typed(store, instance, "proxy_on_request_body"),
            request_trailers: typed(store, instance, "proxy_on_request_trailers"),
            response_headers: typed(store, instance, "proxy_on_response_headers"),
            response_body: typed(store, instance, "proxy_on_response_body"),
            response_trailers: typed(store, instance, "proxy_on_response_trailers"),
            http_call_response: typed(store, instance, "proxy_on_http_call_response"),
            done: typed(store, instance, "proxy_on_done"),
            log: typed(store, instance, "proxy_on_log"),
            delete: typed(store, instance, "proxy_on_delete"),
        }
    }
}

/// An exported function, if there is one; its signature was checked when the module was loaded.
fn typed<P: WasmParams, R: WasmResults>(
    store: &mut Store<State>,
    instance: &Instance,
    name: &str,
) -> Option<TypedFunc<P, R>> {
    instance.get_typed_func(store, name).ok()
}

impl State {
    fn new(facts: Arc<Facts>, ticks: Arc<Ticks>) -> Self {
        Self {
            limiter: Limiter::new(&facts.limits),
            facts,
            ticks,
            memory: None,
            allocator: None,
            exchange: None,
            owner: ROOT,
            effective: ROOT,
            ending: false,
            effects: Effects::default(),
            delivery: None,
            hostcalls: 0,
            hostcalls_used_up: false,
            callouts_made: 0,
            last_words: None,
            streams: HashMap::default(),
            callouts_in_flight: HashMap::default(),
            root_callouts_in_flight: 0,
            next_callout: 0,
            root_callouts: Vec::new(),
            metrics: HashMap::default(),
        }
    }

    /// Before a guest call for `context`.
    fn begin(&mut self, context: u32) {
        self.owner = context;
        self.effective = context;
        self.ending = false;
        self.hostcalls = 0;
        self.callouts_made = 0;
        self.limiter.memory_refused = false;
        self.last_words = None;
        // What a callback without an outcome left (context_create, say) must not reach the next call's stream.
        if !self.effects.is_empty() {
            self.effects = Effects::default();
        }
    }

    /// Counts a hostcall against the budget.
    pub(crate) fn spend_hostcall(&mut self) -> wasmtime::Result<()> {
        self.hostcalls = self.hostcalls.saturating_add(1);
        let budget = self.facts.limits.hostcalls;
        if budget != 0 && self.hostcalls > budget {
            self.hostcalls_used_up = true;
            return Err(HostcallsUsedUp.into());
        }
        Ok(())
    }

    /// Takes the exchange, if hostcalls act on the context it belongs to now. To be put back with [`State::put_exchange`].
    pub(crate) fn take_exchange(&mut self) -> Option<ExchangePointer> {
        if self.effective == self.owner { self.exchange.take() } else { None }
    }

    pub(crate) fn put_exchange(&mut self, exchange: ExchangePointer) {
        self.exchange = Some(exchange);
    }

    /// Whether `context` can be made the effective one.
    pub(crate) fn is_live(&self, context: u32) -> bool {
        context == ROOT || self.streams.contains_key(&context)
    }

    /// Where effects of the current hostcall go.
    pub(crate) fn audience(&mut self) -> Audience<'_> {
        if self.effective == ROOT {
            Audience::Nobody
        } else if self.effective == self.owner {
            if self.ending { Audience::Nobody } else { Audience::Stream(&mut self.effects) }
        } else {
            self.streams
                .get_mut(&self.effective)
                .map_or(Audience::Nobody, |mailbox| Audience::Stream(mailbox.effects()))
        }
    }

    /// A number for one more callout of the effective context, unless it has too many.
    pub(crate) fn new_callout(&mut self) -> Option<CalloutId> {
        let owner = self.callout_owner();
        let in_flight = match self.streams.get_mut(&owner) {
            Some(mailbox) => &mut mailbox.callouts_in_flight,
            None => &mut self.root_callouts_in_flight,
        };
        if *in_flight >= MAX_CALLOUTS || self.callouts_made >= MAX_CALLOUTS {
            return None;
        }
        *in_flight += 1;
        self.callouts_made += 1;
        loop {
            self.next_callout = self.next_callout.wrapping_add(1);
            if self.next_callout != 0 && !self.callouts_in_flight.contains_key(&self.next_callout) {
                self.callouts_in_flight.insert(self.next_callout, owner);
                return Some(CalloutId(self.next_callout));
            }
        }
    }

    /// Hands a callout to whoever makes it: the stream's driver, or the tick loop.
    pub(crate) fn send_callout(&mut self, callout: Callout) {
        match self.audience() {
            Audience::Stream(effects) => effects.callouts.push(callout),
            Audience::Nobody => {
                self.root_callouts.push(callout);
                self.ticks.wake();
            }
        }
    }

    /// A stream that is ending cannot wait for an answer: its calls are sent all the same, for the root context.
    fn callout_owner(&self) -> u32 {
        if self.ending && self.effective == self.owner { ROOT } else { self.effective }
    }

    /// False when there is no such callout in flight.
    fn forget_callout(&mut self, id: CalloutId) -> bool {
        let Some(owner) = self.callouts_in_flight.remove(&id.0) else { return false };
        if let Some(mailbox) = self.streams.get_mut(&owner) {
            mailbox.callouts_in_flight = mailbox.callouts_in_flight.saturating_sub(1);
        } else if owner == ROOT {
            self.root_callouts_in_flight = self.root_callouts_in_flight.saturating_sub(1);
        }
        true
    }
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

/// Spreads small consecutive ids over a hash map. They are ours, not a stranger's: no need for a keyed hash.
#[derive(Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(u32::from(byte));
        }
    }

    fn write_u32(&mut self, id: u32) {
        self.0 = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
