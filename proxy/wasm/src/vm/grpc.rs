//! The gRPC exchanges of one VM: which are open, whose they are, and what of them is being told to the guest.
//!
//! ```text
//!            open -> sent all (close, or a message with the end) -> closed by the server -> forgotten
//!              \-> cancelled by the guest, its context gone, or the VM dead: reset, and forgotten
//! ```

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;

use bytes::Bytes;

use super::state::{IdHasher, State};
use super::{CallError, Callback, ROOT, Vm};
use crate::abi::status::{Called, Status, bad};
use crate::effects::{Effects, Outgoing};
use crate::exchange::Exchange;
use crate::grpc::{GrpcEvent, GrpcId, GrpcKind, GrpcMessage, GrpcOpen, GrpcRequest, GrpcStatus, Line};
use crate::limits::MAX_CALLOUTS;

/// How many streams that the server has closed are still known: a guest closes its side when it likes, and it must not matter who was
/// first.
const REMEMBERED: usize = 2 * MAX_CALLOUTS;

/// See the module.
#[derive(Default)]
pub(crate) struct Exchanges {
    open: HashMap<u32, Entry, BuildHasherDefault<IdHasher>>,
    /// Streams closed by the server before the guest closed them, the oldest first.
    closed: VecDeque<GrpcId>,
    next: u32,
    /// What is being told: maps 4 and 5, buffer 5, and the status.
    pub(crate) delivery: Option<GrpcEvent>,
}

struct Entry {
    /// The context whose effects bring what is sent to the embedder.
    owner: u32,
    /// The guest's end: dropped with this.
    line: Line,
    /// The guest will send no more.
    sent_all: bool,
}

impl Exchanges {
    /// Whether none is open.
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Ends all of them: the VM is dead.
    pub(super) fn hang_up(&mut self) {
        self.open.clear();
    }

    /// The exchanges of one context.
    pub(super) fn of(&self, context: u32) -> Vec<GrpcId> {
        self.open.iter().filter(|(_, entry)| entry.owner == context).map(|(id, _)| GrpcId(*id)).collect()
    }

    fn new_id(&mut self, kind: GrpcKind) -> GrpcId {
        loop {
            self.next = self.next.wrapping_add(4) & !3;
            let id = self.next | kind.first();
            if !self.open.contains_key(&id) {
                return GrpcId(id);
            }
        }
    }

    /// An exchange that was open until lately, so that what the guest still does with it is neither an error nor of any effect.
    fn was_closed(&self, id: GrpcId) -> bool {
        self.closed.contains(&id)
    }

    fn remember(&mut self, id: GrpcId) {
        if self.closed.len() == REMEMBERED {
            self.closed.pop_front();
        }
        self.closed.push_back(id);
    }

    fn known(&mut self, id: GrpcId) -> Called<Option<&mut Entry>> {
        if self.was_closed(id) {
            return Ok(None);
        }
        self.open.get_mut(&id.0).map(Some).ok_or_else(|| Status::NotFound.into())
    }
}

impl State {
    /// Opens an exchange for the effective context, unless it has too many calls under way.
    pub(crate) fn grpc_open(&mut self, kind: GrpcKind, request: GrpcRequest, message: Option<Bytes>) -> Option<GrpcId> {
        let owner = self.claim_call()?;
        let id = self.grpc.new_id(kind);
        let (line, hung_up) = Line::new();
        self.grpc.open.insert(id.0, Entry { owner, line, sent_all: kind == GrpcKind::Call });
        let message = message.map(GrpcMessage::alone);
        self.send(Outgoing::GrpcOpen(Box::new(GrpcOpen { id, request, message, hung_up })));
        Some(id)
    }

    /// A message for a stream.
    pub(crate) fn grpc_send(&mut self, id: GrpcId, message: Bytes, end: bool) -> Called {
        match id.kind() {
            Some(GrpcKind::Stream) => {}
            Some(GrpcKind::Call) => return Err(bad("a gRPC call takes one message, when it is made")),
            None => return Err(bad("not the id of a gRPC stream")),
        }
        let Some(entry) = self.grpc.known(id)? else { return Ok(()) };
        if entry.sent_all {
            return Err(bad("the guest had ended what it sends on this stream"));
        }
        entry.sent_all = end;
        let owner = entry.owner;
        if let Some(message) = entry.line.message(message) {
            self.send_for(owner, Outgoing::GrpcSend { id, message, end });
        }
        Ok(())
    }

    /// The guest sends no more on a stream. A call has been sent already: closing it cancels it, as in Envoy.
    pub(crate) fn grpc_close(&mut self, id: GrpcId) -> Called {
        if id.kind() == Some(GrpcKind::Call) {
            return self.grpc_cancel(id);
        }
        id.kind().ok_or_else(|| bad("not the id of a gRPC stream or call"))?;
        let Some(entry) = self.grpc.known(id)? else {
            self.grpc.closed.retain(|closed| *closed != id);
            return Ok(());
        };
        if !std::mem::replace(&mut entry.sent_all, true) {
            let owner = entry.owner;
            self.send_for(owner, Outgoing::GrpcClose(id));
        }
        Ok(())
    }

    /// The guest wants no more of a call or stream. It is not told of the end.
    pub(crate) fn grpc_cancel(&mut self, id: GrpcId) -> Called {
        id.kind().ok_or_else(|| bad("not the id of a gRPC stream or call"))?;
        if self.grpc.known(id)?.is_none() {
            self.grpc.closed.retain(|closed| *closed != id);
        } else if let Some(owner) = self.forget_grpc(id) {
            self.send_for(owner, Outgoing::GrpcCancel(id));
        }
        Ok(())
    }

    /// Ends an exchange, if it is there; returns whose it was.
    fn forget_grpc(&mut self, id: GrpcId) -> Option<u32> {
        let owner = self.grpc.open.remove(&id.0)?.owner;
        self.release_call(owner);
        Some(owner)
    }

    /// After the guest has been told of the end.
    fn grpc_ended(&mut self, id: GrpcId) {
        // Cancelled while it was told: then it is gone already.
        let Some(sent_all) = self.grpc.open.get(&id.0).map(|entry| entry.sent_all) else { return };
        if !sent_all {
            self.grpc.remember(id);
        }
        self.forget_grpc(id);
    }
}

/// The callbacks, looked up once. A missing one is never called.
pub(crate) struct GrpcCallbacks {
    initial_metadata: GrpcCallback,
    message: GrpcCallback,
    trailing_metadata: GrpcCallback,
    close: GrpcCallback,
}

/// Root context, exchange, and a number: of pairs, of bytes, or the status.
type GrpcCallback = Callback<(u32, u32, u32)>;

impl GrpcCallbacks {
    pub(super) fn new() -> Self {
        Self {
            initial_metadata: Callback::named("proxy_on_grpc_receive_initial_metadata"),
            message: Callback::named("proxy_on_grpc_receive"),
            trailing_metadata: Callback::named("proxy_on_grpc_receive_trailing_metadata"),
            close: Callback::named("proxy_on_grpc_close"),
        }
    }

    fn of(&mut self, event: &GrpcEvent) -> (&mut GrpcCallback, u32) {
        let size = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        match event {
            GrpcEvent::InitialMetadata(pairs) => (&mut self.initial_metadata, size(pairs.len())),
            GrpcEvent::Message(bytes) => (&mut self.message, size(bytes.len())),
            GrpcEvent::TrailingMetadata(pairs) => (&mut self.trailing_metadata, size(pairs.len())),
            GrpcEvent::Closed(status) => (&mut self.close, status.code),
        }
    }
}

impl Vm {
    /// Brings what came on an exchange to the guest. What the guest does not know any more is ignored.
    pub(super) fn deliver_grpc(
        &mut self,
        context: u32,
        exchange: Option<&mut dyn Exchange>,
        id: GrpcId,
        event: GrpcEvent,
    ) -> Result<Effects, CallError> {
        let Self { core, callbacks, .. } = self;
        if core.poisoned {
            return Err(CallError::Poisoned);
        }
        if !core.store.data().grpc.open.contains_key(&id.0) {
            return Ok(Effects::default());
        }
        let ends = matches!(event, GrpcEvent::Closed(_)) || id.kind() == Some(GrpcKind::Call);
        let (callback, number) = callbacks.grpc.of(&event);
        core.lend(context, exchange, |core| {
            core.store.data_mut().grpc.delivery = Some(event);
            let called = core.call(callback, (ROOT, id.0, number));
            core.store.data_mut().grpc.delivery = None;
            if ends {
                core.store.data_mut().grpc_ended(id);
            }
            called.map(|_| core.take_effects())
        })
    }

    /// Tells the guest that the exchanges of an ended stream are over. Its context is gone, so an SDK only forgets them.
    pub(super) fn end_grpc_of(&mut self, context: u32) -> Result<(), CallError> {
        for id in self.core.store.data().grpc.of(context) {
            let status = GrpcStatus::new(GrpcStatus::CANCELLED, "stream ended");
            self.deliver_grpc(ROOT, None, id, GrpcEvent::Closed(status))?;
            self.core.store.data_mut().grpc.closed.retain(|closed| *closed != id);
        }
        Ok(())
    }
}
