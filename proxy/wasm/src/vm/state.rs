//! What hostcalls work on: the guest call that is running, and what the VM's contexts have under way.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use bytes::Bytes;
use wasmtime::{Memory, TypedFunc};

use super::core::ExchangePointer;
use super::error::HostcallsUsedUp;
use super::grpc::Exchanges;
use super::{ROOT, Role};
use crate::effects::{CalloutFailure, CalloutId, CalloutResponse, Effects, Outgoing};
use crate::hostcalls::wasi::stdio::Unfinished;
use crate::limits::{Limiter, MAX_CALLOUTS};
use crate::metrics::Cell;
use crate::plugin::Facts;
use crate::root_loop::Ticks;
use crate::shared_queue::Registrant;
use crate::trace::Trace;
use crate::turn::Turn;

/// What hostcalls work on.
pub(crate) struct State {
    pub(crate) facts: Arc<Facts>,
    pub(crate) ticks: Arc<Ticks>,
    pub(crate) limiter: Limiter,
    pub(crate) memory: Option<Memory>,
    pub(crate) allocator: Allocator,

    /// Log lines below errors are left out: the same were written when the plugin started.
    pub(crate) quiet: bool,
    /// The VM serves one stream: its root context is nobody to call back.
    pub(crate) alone: bool,
    /// The VM's root context works: it ticks and is told of queues.
    pub(super) serves: bool,
    /// Queues it registered while it did not serve.
    pub(crate) unclaimed_queues: Vec<u32>,
    pub(super) root_end: RootEnd,
    /// Streams that have ended but answered "not yet" to `proxy_on_done`, oldest first.
    pub(super) lingering: VecDeque<u32>,
    /// Those of them that have called `proxy_done` since.
    pub(super) done_lingering: Vec<u32>,

    // This guest call.
    /// How long it may go on.
    pub(super) turn: Turn,
    pub(super) exchange: Option<ExchangePointer>,
    /// Where the exchange wants recorded what is done to it.
    pub(crate) trace: Option<Arc<Trace>>,
    /// The context whose callback is running.
    pub(super) owner: u32,
    /// The context hostcalls act on: the owner, unless the guest said otherwise.
    pub(crate) effective: u32,
    /// The owner is a stream that is ending: nothing can be done to it any more.
    pub(super) ending: bool,
    pub(super) effects: Effects,
    /// The callout being delivered: maps 6 and 7, buffer 4, and the status.
    pub(crate) delivery: Option<Result<CalloutResponse, CalloutFailure>>,
    hostcalls: u32,
    pub(super) hostcalls_used_up: bool,
    callouts_made: usize,
    /// What the guest logged last as an error: a panic's message.
    pub(crate) last_words: Option<String>,
    /// What the guest wrote to its standard streams and did not end with a line break.
    pub(crate) unfinished: Unfinished,
    /// What `proxy_get_configuration` (ABI 0.1.0) reads: the VM's configuration until the VM has started, then the plugin's.
    pub(crate) configuration: Bytes,

    // As long as the VM.
    pub(super) streams: HashMap<u32, Mailbox, BuildHasherDefault<IdHasher>>,
    /// Something was put into a mailbox: see [`super::Vm::take_posted`].
    pub(super) posted: bool,
    /// Calls under way, as the plugin's quota counts them.
    calls_claimed: u32,
    pub(super) callouts_in_flight: HashMap<u32, u32, BuildHasherDefault<IdHasher>>,
    root_callouts_in_flight: usize,
    next_callout: u32,
    pub(crate) grpc: Exchanges,
    pub(super) root_outgoing: Vec<Outgoing>,
    pub(crate) metrics: HashMap<u32, Arc<Cell>, BuildHasherDefault<IdHasher>>,
    /// Made when the guest first registers a queue.
    registrant: Option<Arc<Registrant>>,
}

/// The guest's allocator. Looked up when it is first needed: an instance that serves one stream may never need it.
#[derive(Default)]
pub(crate) enum Allocator {
    NotYet,
    Found(TypedFunc<u32, u32>),
    /// There is none; or it is running, so that a guest whose allocator calls the host cannot make it recurse.
    #[default]
    Nowhere,
}

/// What waits for a live stream, queued by other contexts' calls.
#[derive(Default)]
pub(crate) struct Mailbox {
    pub(super) effects: Option<Box<Effects>>,
    pub(super) waker: Option<Waker>,
    pub(super) callouts_in_flight: usize,
}

impl Mailbox {
    pub(super) fn effects(&mut self) -> &mut Effects {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        self.effects.get_or_insert_default()
    }
}

/// Ended streams a VM keeps for what they still have to do.
const MAX_LINGERING: usize = 1024;

/// How far the end of the root context has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RootEnd {
    NotAsked,
    /// `proxy_on_done` was called; it has answered "not yet", or is answering.
    Asked,
    Done,
}

/// Where an effect goes.
pub(crate) enum Audience<'a> {
    /// To a stream, with this call's outcome or by mail.
    Stream(&'a mut Effects),
    /// To nobody: the root context, or a stream that is ending.
    Nobody,
}

impl State {
    pub(super) fn new(facts: Arc<Facts>, ticks: Arc<Ticks>, role: Role) -> Self {
        Self {
            limiter: Limiter::new(&facts.limits),
            facts,
            ticks,
            memory: None,
            allocator: Allocator::NotYet,
            quiet: role != Role::Root,
            serves: role == Role::Root,
            unclaimed_queues: Vec::new(),
            alone: matches!(role, Role::Alone | Role::Rehearsal),
            root_end: RootEnd::NotAsked,
            lingering: VecDeque::new(),
            done_lingering: Vec::new(),
            turn: Turn::default(),
            exchange: None,
            trace: None,
            owner: ROOT,
            effective: ROOT,
            ending: false,
            effects: Effects::default(),
            delivery: None,
            hostcalls: 0,
            hostcalls_used_up: false,
            callouts_made: 0,
            last_words: None,
            unfinished: Unfinished::default(),
            configuration: Bytes::new(),
            streams: HashMap::default(),
            posted: false,
            calls_claimed: 0,
            callouts_in_flight: HashMap::default(),
            root_callouts_in_flight: 0,
            next_callout: 0,
            grpc: Exchanges::default(),
            root_outgoing: Vec::new(),
            metrics: HashMap::default(),
            registrant: None,
        }
    }

    /// Before a guest call for `context`.
    pub(super) fn begin(&mut self, context: u32) {
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

    /// Keeps an ended stream's context until it says that it is done. The oldest have to go when there are too many.
    pub(super) fn linger(&mut self, context: u32) -> bool {
        if self.alone {
            return false; // its VM ends with it
        }
        self.lingering.push_back(context);
        if self.lingering.len() > MAX_LINGERING {
            self.done_lingering.extend(self.lingering.pop_front());
        }
        true
    }

    /// The effective context says that it is done. False when nobody had asked it, or it was done already.
    pub(crate) fn done(&mut self) -> bool {
        if self.effective == ROOT {
            let asked = self.root_end == RootEnd::Asked;
            if asked {
                self.root_end = RootEnd::Done;
                self.ticks.wake();
            }
            return asked;
        }
        let Some(place) = self.lingering.iter().position(|context| *context == self.effective) else { return false };
        self.done_lingering.extend(self.lingering.remove(place));
        true
    }

    /// [`State::registrant`], if this VM's root context works (yet): others may use queues, but are not told of items.
    pub(crate) fn serving_registrant(&mut self) -> Option<Arc<Registrant>> {
        self.serves.then(|| {
            self.ticks.listen();
            self.registrant()
        })
    }

    /// This VM, as whoever puts something into its queues knows it.
    pub(crate) fn registrant(&mut self) -> Arc<Registrant> {
        self.registrant.get_or_insert_with(|| Registrant::new(self.ticks.clone())).clone()
    }

    /// The next of its queues that the guest is to be told of.
    pub(super) fn next_ready_queue(&self) -> Option<u32> {
        self.facts.host.queues().next_ready(self.registrant.as_ref()?)
    }

    /// The effective context, for messages.
    pub(crate) fn context(&self) -> u32 {
        self.effective
    }

    /// Whether `context` can be made the effective one.
    pub(crate) fn is_live(&self, context: u32) -> bool {
        context == ROOT || context == self.owner || self.streams.contains_key(&context)
    }

    /// Where effects of the current hostcall go.
    pub(crate) fn audience(&mut self) -> Audience<'_> {
        if self.effective == ROOT {
            Audience::Nobody
        } else if self.effective == self.owner {
            if self.ending { Audience::Nobody } else { Audience::Stream(&mut self.effects) }
        } else {
            self.posted = true;
            self.streams
                .get_mut(&self.effective)
                .map_or(Audience::Nobody, |mailbox| Audience::Stream(mailbox.effects()))
        }
    }

    /// Room for one more call, of HTTP or gRPC, of the effective context, unless it has too many. Returns the context it counts for.
    pub(super) fn claim_call(&mut self) -> Option<u32> {
        let owner = self.callout_owner();
        let mut uncounted = 0; // Of a stateless stream only the guest call's own count, and the plugin's.
        let in_flight = match self.streams.get_mut(&owner) {
            Some(mailbox) => &mut mailbox.callouts_in_flight,
            None if owner == ROOT => &mut self.root_callouts_in_flight,
            None => &mut uncounted,
        };
        if *in_flight >= MAX_CALLOUTS || self.callouts_made >= MAX_CALLOUTS {
            return None;
        }
        if !self.facts.quota.take(Instant::now) {
            return None;
        }
        *in_flight += 1;
        self.callouts_made += 1;
        self.calls_claimed += 1;
        Some(owner)
    }

    /// A number for one more callout of the effective context, unless it has too many.
    pub(crate) fn new_callout(&mut self) -> Option<CalloutId> {
        let owner = self.claim_call()?;
        loop {
            // In steps of 4: the numbers between are those of gRPC exchanges.
            self.next_callout = self.next_callout.wrapping_add(4);
            if self.next_callout != 0 && !self.callouts_in_flight.contains_key(&self.next_callout) {
                self.callouts_in_flight.insert(self.next_callout, owner);
                return Some(CalloutId(self.next_callout));
            }
        }
    }

    /// Hands something to whoever sends it: the stream's driver, or the root loop.
    pub(crate) fn send(&mut self, outgoing: Outgoing) {
        match self.audience() {
            Audience::Stream(effects) => effects.outgoing.push(outgoing),
            Audience::Nobody => {
                self.root_outgoing.push(outgoing);
                self.ticks.wake();
            }
        }
    }

    /// As [`State::send`], for what belongs to something that a context sent before.
    pub(super) fn send_for(&mut self, owner: u32, outgoing: Outgoing) {
        if owner == self.owner && owner != ROOT {
            self.effects.outgoing.push(outgoing);
        } else if let Some(mailbox) = self.streams.get_mut(&owner) {
            self.posted = true;
            mailbox.effects().outgoing.push(outgoing);
        } else {
            self.root_outgoing.push(outgoing);
            self.ticks.wake();
        }
    }

    /// A stream that is ending cannot wait for an answer: its calls are sent all the same, for the root context.
    fn callout_owner(&self) -> u32 {
        if self.ending && self.effective == self.owner { ROOT } else { self.effective }
    }

    /// False when there is no such callout in flight.
    pub(super) fn forget_callout(&mut self, id: CalloutId) -> bool {
        let Some(owner) = self.callouts_in_flight.remove(&id.0) else { return false };
        self.release_call(owner);
        true
    }

    /// After a call has ended.
    pub(super) fn release_call(&mut self, owner: u32) {
        if self.calls_claimed > 0 {
            self.calls_claimed -= 1;
            self.facts.quota.give_back(1);
        }
        if let Some(mailbox) = self.streams.get_mut(&owner) {
            mailbox.callouts_in_flight = mailbox.callouts_in_flight.saturating_sub(1);
        } else if owner == ROOT {
            self.root_callouts_in_flight = self.root_callouts_in_flight.saturating_sub(1);
        }
    }
}

impl Drop for State {
    /// Nobody is left to be told how the VM's calls end.
    fn drop(&mut self) {
        self.facts.quota.give_back(self.calls_claimed);
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
