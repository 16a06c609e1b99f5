//! One VM: an instance of a module with its root context, its live streams, and the state its hostcalls work on.
//!
//! ```text
//! started -> (one guest call at a time)* -> ended (dropped)
//!                      \-> poisoned (trap, deadline, memory, hostcalls): never called again
//! ```
mod cell;
mod core;
mod error;
mod grpc;
mod state;

use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::task::{Poll, Waker};

use wasmtime::{Instance, InstancePre, PoolConcurrencyLimitError, Store};

pub(crate) use self::cell::VmCell;
pub(crate) use self::core::{Callback, Core};
pub use self::error::CallError;
pub(crate) use self::grpc::GrpcCallbacks;
use self::state::Mailbox;
use self::state::RootEnd;
pub(crate) use self::state::{Allocator, Audience, State};
use crate::effects::{Arrival, CalloutFailure, CalloutId, CalloutResponse, Effects, Outgoing};
use crate::exchange::Exchange;
use crate::host::Host;
use crate::module::Phases;
use crate::plugin::{Facts, StartError};
use crate::root_loop::Ticks;

/// The id of the root context, in every VM.
pub(crate) const ROOT: u32 = 1;

/// What a VM is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Its root context works, and streams may share it.
    Root,
    /// In reserve for the above, and quiet: the log has the lines of the VM it will replace.
    Spare,
    /// For one stream, without a root context that works.
    Alone,
    /// Started only to see how that goes, or to take a snapshot.
    Rehearsal,
}

/// See the module.
pub(crate) struct Vm {
    pub(crate) core: Core,
    /// Apart, because a VM is moved a few times when it is made, and there are many.
    pub(crate) callbacks: Box<Callbacks>,
    instance: Instance,
    next_context: u32,
    role: Role,
}

/// The callbacks. A missing one is never called.
pub(crate) struct Callbacks {
    pub(crate) context_create: Callback<(u32, u32), ()>,
    pub(crate) vm_start: Callback<(u32, u32), u32>,
    pub(crate) configure: Callback<(u32, u32), u32>,
    pub(crate) tick: Callback<u32, ()>,
    pub(crate) queue_ready: Callback<(u32, u32), ()>,
    pub(crate) request_headers: HeadersCallback,
    pub(crate) request_body: Callback<(u32, u32, u32), u32>,
    pub(crate) request_trailers: Callback<(u32, u32), u32>,
    pub(crate) response_headers: HeadersCallback,
    pub(crate) response_body: Callback<(u32, u32, u32), u32>,
    pub(crate) response_trailers: Callback<(u32, u32), u32>,
    pub(crate) new_connection: Callback<u32, u32>,
    pub(crate) downstream_data: Callback<(u32, u32, u32), u32>,
    pub(crate) downstream_close: Callback<(u32, u32), ()>,
    pub(crate) upstream_data: Callback<(u32, u32, u32), u32>,
    pub(crate) upstream_close: Callback<(u32, u32), ()>,
    pub(crate) http_call_response: Callback<CalloutArguments, ()>,
    pub(crate) grpc: GrpcCallbacks,
    pub(crate) done: Callback<u32, u32>,
    pub(crate) log: Callback<u32, ()>,
    pub(crate) delete: Callback<u32, ()>,
}

/// `proxy_on_{request,response}_headers`. At most one of them is there: ABI 0.1.0 does not tell the end of the stream.
pub(crate) struct HeadersCallback {
    /// Context, number of headers, end of stream.
    pub(crate) with_end: Callback<(u32, u32, u32), u32>,
    /// Context, number of headers.
    pub(crate) without_end: Callback<(u32, u32), u32>,
}

impl HeadersCallback {
    fn named(name: &'static str) -> Self {
        Self { with_end: Callback::named(name), without_end: Callback::named(name) }
    }
}

/// Root context, callout, number of headers, bytes of body, number of trailers.
type CalloutArguments = (u32, u32, u32, u32, u32);

impl Vm {
    /// Makes an instance and brings it through `_initialize`, `proxy_on_vm_start` and `proxy_on_configure`.
    pub(crate) fn start(
        instance: &InstancePre<State>,
        facts: Arc<Facts>,
        ticks: Arc<Ticks>,
        role: Role,
    ) -> Result<Self, StartError> {
        let started = Self::try_start(instance, facts.clone(), ticks, role);
        facts.stats.vm_start_ended(started.is_ok());
        started
    }

    fn try_start(
        instance: &InstancePre<State>,
        facts: Arc<Facts>,
        ticks: Arc<Ticks>,
        role: Role,
    ) -> Result<Self, StartError> {
        let mut vm = Self::make(instance, facts.clone(), ticks, role).map_err(StartError::Call)?;
        vm.core.store.data_mut().trace = facts.host.start_trace();
        vm.initialize().map_err(StartError::Call)?;
        vm.configure(&facts)?;
        let state = vm.core.store.data_mut();
        (state.quiet, state.trace) = (false, None);
        Ok(vm)
    }

    /// Makes an instance for one stream from a snapshot: it is as [`Vm::start`] leaves it.
    pub(crate) fn resume(instance: &InstancePre<State>, facts: Arc<Facts>) -> Result<Self, CallError> {
        let stats = facts.stats.clone();
        let made = Self::make(instance, facts, Arc::default(), Role::Alone);
        stats.vm_start_ended(made.is_ok());
        let mut vm = made?;
        vm.core.store.data_mut().quiet = false;
        Ok(vm)
    }

    fn make(
        instance: &InstancePre<State>,
        facts: Arc<Facts>,
        ticks: Arc<Ticks>,
        role: Role,
    ) -> Result<Self, CallError> {
        let engine = facts.engine.clone();
        let tally = matches!(role, Role::Root | Role::Spare).then(|| facts.stats.tally());
        let mut store = Store::new(instance.module().engine(), State::new(facts, ticks, role));
        store.limiter(|state| &mut state.limiter);
        store.epoch_deadline_callback(move |mut store| Ok(store.data_mut().turn.tick(&engine)));
        store.data_mut().begin(ROOT);
        let mut core = Core { store, instance: None, poisoned: false, tally };
        core.begin_turn(true);

        let instance = match instance.instantiate(&mut core.store) {
            Ok(instance) => instance,
            Err(error) if error.is::<PoolConcurrencyLimitError>() => return Err(CallError::Exhausted),
            Err(error) => return Err(core.explain("instantiation", &error)),
        };
        core.instance = Some(instance);
        core.store.data_mut().turn.end();
        let callbacks = Box::new(Callbacks::new());
        let memory = instance.get_memory(&mut core.store, "memory");
        core.store.data_mut().memory = memory;

        Ok(Self { core, callbacks, instance, next_context: ROOT + 1, role })
    }

    /// Lets a started VM be looked at from outside of the guest; it serves nothing afterwards.
    pub(crate) fn snapshot<T>(&mut self, look: impl FnOnce(&mut Store<State>, Instance) -> T) -> T {
        self.core.poisoned = true;
        look(&mut self.core.store, self.instance)
    }

    /// Makes a VM that was in reserve a worker's own.
    pub(crate) fn adopt(&mut self, ticks: Arc<Ticks>) {
        let state = self.core.store.data_mut();
        if let Some(period) = state.ticks.period() {
            ticks.set(u32::try_from(period.as_millis()).unwrap_or(u32::MAX));
        }
        state.ticks = ticks;
        state.serves = true;
        let unclaimed = std::mem::take(&mut state.unclaimed_queues);
        if !unclaimed.is_empty() {
            state.ticks.listen();
            let (registrant, host) = (state.registrant(), state.facts.host.clone());
            unclaimed.into_iter().for_each(|queue| host.queues().claim(queue, &registrant));
        }
        self.role = Role::Root;
    }

    /// Bytes of its memory now.
    pub(crate) fn memory(&self) -> usize {
        self.core.store.data().memory.map_or(0, |memory| memory.data_size(&self.core.store))
    }

    pub(crate) fn name(&self) -> String {
        self.core.store.data().facts.name.clone()
    }

    pub(crate) fn host(&self) -> Arc<dyn Host> {
        self.core.store.data().facts.host.clone()
    }

    /// `_initialize` and, if there is one, `main`; else `_start`: the order of the C++ host. A module with neither has done what it has to
    /// in its start section.
    fn initialize(&mut self) -> Result<(), CallError> {
        let core = &mut self.core;
        let mut initialize = Callback::<(), ()>::named("_initialize");
        if !initialize.exists(core) {
            return core.start_call(&mut Callback::<(), ()>::named("_start"), ()).map(drop);
        }
        core.start_call(&mut initialize, ())?;
        let mut main = Callback::<(), u32>::named("__main_void");
        if main.exists(core) {
            return core.start_call(&mut main, ()).map(drop);
        }
        // A module may call anything `main`; with C's parameters it is C's: no arguments, and no list of them.
        core.start_call(&mut Callback::<(u32, u32), u32>::named("main"), (0, 0)).map(drop)
    }

    fn configure(&mut self, facts: &Facts) -> Result<(), StartError> {
        let Self { core, callbacks, .. } = self;
        let size = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        core.start_call(&mut callbacks.context_create, (ROOT, 0)).map_err(StartError::Call)?;
        for (name, callback, config) in [
            ("proxy_on_vm_start", &mut callbacks.vm_start, &facts.vm_config),
            ("proxy_on_configure", &mut callbacks.configure, &facts.config),
        ] {
            core.store.data_mut().configuration = config.clone();
            let accepted = core.start_call(callback, (ROOT, size(config))).map_err(StartError::Call)?;
            if accepted == Some(0) {
                core.poison(); // it never served: nobody is to say goodbye to its contexts
                return Err(StartError::Refused { callback: name, reason: core.store.data_mut().last_words.take() });
            }
        }
        Ok(())
    }

    pub(crate) fn is_poisoned(&self) -> bool {
        self.core.poisoned
    }

    /// A new stream context. The guest is told of it, unless it keeps nothing for streams.
    pub(crate) fn open_stream(&mut self, phases: Phases) -> Result<u32, CallError> {
        let Self { core, callbacks, next_context, .. } = self;
        if core.poisoned {
            return Err(CallError::Poisoned);
        }
        let state = core.store.data_mut();
        let id = loop {
            let id = *next_context;
            *next_context = id.wrapping_add(1);
            if id > ROOT
                && let Entry::Vacant(free) = state.streams.entry(id)
            {
                free.insert(Mailbox::default());
                break id;
            }
        };
        if !phases.contains(Phases::STATELESS) {
            state.begin(id);
            core.call(&mut callbacks.context_create, (id, ROOT))?;
        }
        Ok(id)
    }

    /// Ends a stream: done, log, delete, in this order (the ABI's; Envoy logs first), as far as the guest wants to know. A failure is
    /// logged: the exchange is over anyway.
    pub(crate) fn close_stream(&mut self, id: u32, exchange: Option<&mut dyn Exchange>, phases: Phases) {
        let Self { core, callbacks, .. } = self;
        let (stateless, log) = (phases.contains(Phases::STATELESS), phases.contains(Phases::LOG));
        let ended = if stateless && !log {
            Ok(None)
        } else {
            core.lend(id, exchange, |core| {
                core.end_of(id);
                let done = if stateless { None } else { core.call(&mut callbacks.done, id)? };
                if log {
                    core.end_of(id);
                    core.call(&mut callbacks.log, id)?;
                }
                if stateless || (done == Some(0) && core.store.data_mut().linger(id)) {
                    return Ok(None); // deleted when it calls `proxy_done`, or never made
                }
                core.end_of(id);
                core.call(&mut callbacks.delete, id)
            })
        };
        let state = core.store.data_mut();
        let has_calls = if stateless {
            // Nothing is kept for it here either: its calls are found by their owner, when there are calls at all.
            !state.callouts_in_flight.is_empty() || !state.grpc.is_empty()
        } else if !state.lingering.is_empty() && state.lingering.contains(&id) {
            state.streams.get(&id).is_some_and(|mailbox| mailbox.callouts_in_flight > 0)
        } else {
            state.streams.remove(&id).is_some_and(|mailbox| mailbox.callouts_in_flight > 0)
        };
        let ended = ended.and_then(|_| if has_calls { self.fail_callouts_of(id) } else { Ok(()) });
        match ended {
            Ok(()) | Err(CallError::Poisoned) => {}
            Err(error) => self.core.log_failure(&error),
        }
    }

    /// Deletes the ended streams that have said that they are done.
    pub(crate) fn reap(&mut self) {
        let Self { core, callbacks, .. } = self;
        while let Some(id) = core.store.data_mut().done_lingering.pop() {
            core.end_of(id);
            let deleted = core.call(&mut callbacks.delete, id);
            core.store.data_mut().streams.remove(&id);
            match deleted {
                Ok(_) | Err(CallError::Poisoned) => {}
                Err(error) => core.log_failure(&error),
            }
        }
    }

    /// Whether [`Vm::reap`] has something to do.
    pub(crate) fn has_done_streams(&self) -> bool {
        !self.core.store.data().done_lingering.is_empty()
    }

    /// Tells the guest that the calls of an ended stream failed. Its context is gone, so an SDK only forgets them; untold it would
    /// remember them for ever.
    fn fail_callouts_of(&mut self, context: u32) -> Result<(), CallError> {
        let in_flight = &self.core.store.data().callouts_in_flight;
        let orphans: Vec<u32> = in_flight.iter().filter(|(_, owner)| **owner == context).map(|(id, _)| *id).collect();
        for id in orphans {
            self.deliver(ROOT, None, Arrival::Http(CalloutId(id), Err(CalloutFailure::Reset("stream ended".into()))))?;
        }
        self.end_grpc_of(context)
    }

    /// Brings an arrival to the guest. `context` is where its effects go; the guest is always told on the root context.
    pub(crate) fn deliver(
        &mut self,
        context: u32,
        exchange: Option<&mut dyn Exchange>,
        arrival: Arrival,
    ) -> Result<Effects, CallError> {
        match arrival {
            Arrival::Http(id, result) => self.deliver_answer(context, exchange, id, result),
            Arrival::Grpc(id, event) => self.deliver_grpc(context, exchange, id, event),
        }
    }

    /// The end of an HTTP call. Unknown ids (already delivered) are ignored.
    fn deliver_answer(
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
        core.store.data().facts.stats.callout_ended(&result);
        let size = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        let (headers, body, trailers) = match &result {
            Ok(response) => (size(response.headers.len()), size(response.body.len()), size(response.trailers.len())),
            Err(_) => (0, 0, 0),
        };
        core.lend(context, exchange, |core| {
            core.store.data_mut().delivery = Some(result);
            let arguments = (ROOT, id.0, headers, body, trailers);
            let called = core.call(&mut callbacks.http_call_response, arguments);
            core.store.data_mut().delivery = None;
            called.map(|_| core.take_effects())
        })
    }

    pub(crate) fn tick(&mut self) -> Result<(), CallError> {
        let Self { core, callbacks, .. } = self;
        core.store.data_mut().begin(ROOT);
        core.call(&mut callbacks.tick, ROOT).map(drop)
    }

    pub(crate) fn has_root_outgoing(&self) -> bool {
        !self.core.store.data().root_outgoing.is_empty()
    }

    /// Tells the guest of one item in one of its queues; false when none waits.
    pub(crate) fn queue_ready(&mut self) -> Result<bool, CallError> {
        let Self { core, callbacks, .. } = self;
        if core.poisoned {
            return Err(CallError::Poisoned);
        }
        let Some(queue) = core.store.data().next_ready_queue() else { return Ok(false) };
        core.store.data_mut().begin(ROOT);
        core.call(&mut callbacks.queue_ready, (ROOT, queue)).map(|_| true)
    }

    /// What the root context wants sent, for the root loop.
    pub(crate) fn take_root_outgoing(&mut self) -> Vec<Outgoing> {
        std::mem::take(&mut self.core.store.data_mut().root_outgoing)
    }

    /// Whether something was queued for a stream since this was last asked. That the VM has died is not counted: who waits for nothing
    /// of it learns that from the next call.
    pub(crate) fn take_posted(&mut self) -> bool {
        std::mem::take(&mut self.core.store.data_mut().posted)
    }

    pub(crate) fn has_mail(&self, id: u32) -> bool {
        self.core.store.data().streams.get(&id).is_some_and(|mailbox| mailbox.effects.is_some())
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

impl Vm {
    /// Asks the root context whether it is done. False: it will say so with `proxy_done`.
    pub(crate) fn say_done(&mut self) -> Result<bool, CallError> {
        let Self { core, callbacks, .. } = self;
        let state = core.store.data_mut();
        if std::mem::replace(&mut state.root_end, RootEnd::Asked) != RootEnd::NotAsked {
            return Ok(true);
        }
        state.begin(ROOT);
        let done = core.call(&mut callbacks.done, ROOT)?;
        if done != Some(0) {
            core.store.data_mut().root_end = RootEnd::Done;
        }
        Ok(done != Some(0))
    }

    /// Whether the root context has nothing more to do.
    pub(crate) fn is_done(&self) -> bool {
        self.core.poisoned || self.core.store.data().root_end == RootEnd::Done
    }
}

impl Drop for Vm {
    /// Says goodbye to the root context, unless its work was for one stream only. A root context that is not done gets no more time here.
    fn drop(&mut self) {
        let serves = matches!(self.role, Role::Root | Role::Spare);
        if self.core.poisoned || !serves || std::thread::panicking() {
            return;
        }
        let ended = self.say_done().and_then(|_| {
            let Self { core, callbacks, .. } = self;
            core.store.data_mut().begin(ROOT);
            core.call(&mut callbacks.delete, ROOT)
        });
        if let Err(error) = ended {
            self.core.log_failure(&error);
        }
    }
}

impl std::fmt::Debug for Vm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vm").field("poisoned", &self.core.poisoned).finish_non_exhaustive()
    }
}

impl Callbacks {
    fn new() -> Self {
        Self {
            context_create: Callback::named("proxy_on_context_create"),
            vm_start: Callback::named("proxy_on_vm_start"),
            configure: Callback::named("proxy_on_configure"),
            tick: Callback::named("proxy_on_tick"),
            queue_ready: Callback::named("proxy_on_queue_ready"),
            request_headers: HeadersCallback::named("proxy_on_request_headers"),
            request_body: Callback::named("proxy_on_request_body"),
            request_trailers: Callback::named("proxy_on_request_trailers"),
            response_headers: HeadersCallback::named("proxy_on_response_headers"),
            response_body: Callback::named("proxy_on_response_body"),
            response_trailers: Callback::named("proxy_on_response_trailers"),
            new_connection: Callback::named("proxy_on_new_connection"),
            downstream_data: Callback::named("proxy_on_downstream_data"),
            downstream_close: Callback::named("proxy_on_downstream_connection_close"),
            upstream_data: Callback::named("proxy_on_upstream_data"),
            upstream_close: Callback::named("proxy_on_upstream_connection_close"),
            http_call_response: Callback::named("proxy_on_http_call_response"),
            grpc: GrpcCallbacks::new(),
            done: Callback::named("proxy_on_done"),
            log: Callback::named("proxy_on_log"),
            delete: Callback::named("proxy_on_delete"),
        }
    }
}
