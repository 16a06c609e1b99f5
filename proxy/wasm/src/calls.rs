//! What guests have under way outside of their exchange: one set of calls for each stream, and one for each worker's root context.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::effects::{Arrival, Outgoing};
use crate::grpc::{self, GrpcEvent, GrpcId, GrpcKind, GrpcMessage, GrpcOpen};
use crate::host::Host;

/// Arrivals that may wait before their senders are held back. Few, because a gRPC message or an HTTP answer may have 4 MiB.
const QUEUE: usize = 8;

/// The calls of one context under way. Made without an allocation; costs something only when a guest calls out.
///
/// Each call runs as a task of its own on the current tokio runtime. An HTTP call runs to its end (it has a timeout) even when nobody
/// waits for it any more, because filters send reports without waiting for the answer; its answer is then dropped. A gRPC exchange ends
/// when this is dropped: the server sees it reset.
#[derive(Debug, Default)]
pub struct Calls {
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    /// HTTP calls whose answers have not been taken.
    awaited: usize,
    /// gRPC exchanges whose ends have not been taken.
    grpc: Vec<Exchange>,
    sender: mpsc::Sender<Arrival>,
    arrivals: mpsc::Receiver<Arrival>,
}

/// One gRPC exchange. Dropped, it is reset.
#[derive(Debug)]
struct Exchange {
    id: GrpcId,
    /// Where the guest's messages go. Bounded by their places in the queue, see [`grpc::Line`]; `None` when no more will come.
    messages: Option<mpsc::UnboundedSender<GrpcMessage>>,
    task: AbortHandle,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Calls {
    /// Nothing under way.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing was ever sent out, so that nothing can arrive.
    #[must_use]
    #[inline]
    pub fn is_idle(&self) -> bool {
        self.open.is_none()
    }

    /// Whether the answer of an HTTP or gRPC call is still to come, or a gRPC stream is open, which may bring a message at any time.
    #[must_use]
    pub fn pending(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.awaited > 0 || !open.grpc.is_empty())
    }

    /// Sends out what a guest asked for.
    pub fn begin(&mut self, host: &Arc<dyn Host>, outgoing: Vec<Outgoing>) {
        for item in outgoing {
            let open = self.open.get_or_insert_with(|| {
                let (sender, arrivals) = mpsc::channel(QUEUE);
                Open { awaited: 0, grpc: Vec::new(), sender, arrivals }
            });
            match item {
                Outgoing::Http(callout) => {
                    open.awaited += 1;
                    let (sender, id) = (open.sender.clone(), callout.id);
                    let call = host.call(callout);
                    tokio::spawn(async move {
                        // The context may be gone by now: then nobody wants the answer.
                        let _ = sender.send(Arrival::Http(id, call.await)).await;
                    });
                }
                Outgoing::GrpcOpen(exchange) => open.open(Arc::clone(host), *exchange),
                Outgoing::GrpcSend { id, message, end } => open.send(id, message, end),
                Outgoing::GrpcClose(id) => open.close(id),
                Outgoing::GrpcCancel(id) => open.forget(id),
            }
        }
    }

    /// What has arrived already, without waiting.
    pub fn try_next(&mut self) -> Option<Arrival> {
        let open = self.open.as_mut()?;
        let arrival = open.arrivals.try_recv().ok()?;
        open.count(&arrival);
        Some(arrival)
    }

    /// The next arrival. Waits for ever while nothing is under way. Cancel safe: what was not received stays queued.
    pub async fn next(&mut self) -> Arrival {
        let Some(open) = &mut self.open else { return std::future::pending().await };
        // We hold a sender ourselves, so the channel does not end.
        let Some(arrival) = open.arrivals.recv().await else { return std::future::pending().await };
        open.count(&arrival);
        arrival
    }
}

impl Open {
    fn open(&mut self, host: Arc<dyn Host>, mut open: GrpcOpen) {
        let id = open.id;
        let (messages, queue) = mpsc::unbounded_channel();
        let messages = match open.message.take() {
            Some(message) => {
                let _ = messages.send(message); // cannot fail: we hold the other end
                None
            }
            None => Some(messages),
        };
        let task = tokio::spawn(grpc::run(host, open, queue, self.sender.clone())).abort_handle();
        self.grpc.push(Exchange { id, messages, task });
    }

    fn send(&mut self, id: GrpcId, message: GrpcMessage, end: bool) {
        let Some(exchange) = self.grpc.iter_mut().find(|exchange| exchange.id == id) else { return };
        if let Some(messages) = &exchange.messages {
            let _ = messages.send(message); // the exchange may have ended: its end is on the way to the guest
        }
        if end {
            exchange.messages = None;
        }
    }

    fn close(&mut self, id: GrpcId) {
        if let Some(exchange) = self.grpc.iter_mut().find(|exchange| exchange.id == id) {
            exchange.messages = None;
        }
    }

    fn forget(&mut self, id: GrpcId) {
        self.grpc.retain(|exchange| exchange.id != id);
    }

    fn count(&mut self, arrival: &Arrival) {
        match arrival {
            Arrival::Http(..) => self.awaited = self.awaited.saturating_sub(1),
            Arrival::Grpc(id, event) => {
                if matches!(event, GrpcEvent::Closed(_)) || id.kind() == Some(GrpcKind::Call) {
                    self.forget(*id);
                }
            }
        }
    }
}
