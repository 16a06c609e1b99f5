//! What guests have under way outside of their exchange: one set of calls for each stream, and one for each worker's root context.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::effects::{Arrival, Outgoing};
use crate::host::Host;

/// Arrivals that may wait before their senders are held back.
const QUEUE: usize = 64;

/// The calls of one context under way. Made without an allocation; costs something only when a guest calls out.
///
/// Each call runs as a task of its own on the current tokio runtime. An HTTP call runs to its end (it has a timeout) even when nobody
/// waits for it any more, because filters send reports without waiting for the answer; its answer is then dropped.
#[derive(Debug, Default)]
pub struct Calls {
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    /// HTTP calls whose answers have not been taken.
    awaited: usize,
    sender: mpsc::Sender<Arrival>,
    arrivals: mpsc::Receiver<Arrival>,
}

impl Calls {
    /// Nothing under way.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether an HTTP call's answer, or the next message of a gRPC exchange, is still to come.
    #[must_use]
    pub fn pending(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.awaited > 0)
    }

    /// Sends out what a guest asked for.
    pub fn begin(&mut self, host: &Arc<dyn Host>, outgoing: Vec<Outgoing>) {
        for item in outgoing {
            let open = self.open.get_or_insert_with(|| {
                let (sender, arrivals) = mpsc::channel(QUEUE);
                Open { awaited: 0, sender, arrivals }
            });
            let sender = open.sender.clone();
            match item {
                Outgoing::Http(callout) => {
                    open.awaited += 1;
                    let id = callout.id;
                    let call = host.call(callout);
                    tokio::spawn(async move {
                        // The context may be gone by now: then nobody wants the answer.
                        let _ = sender.send(Arrival::Http(id, call.await)).await;
                    });
                }
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
    pub fn next(&mut self) -> impl Future<Output = Arrival> + Send + '_ {
        async {
            let Some(open) = &mut self.open else { return std::future::pending().await };
            // We hold a sender ourselves, so the channel does not end.
            let Some(arrival) = open.arrivals.recv().await else { return std::future::pending().await };
            open.count(&arrival);
            arrival
        }
    }
}

impl Open {
    fn count(&mut self, arrival: &Arrival) {
        match arrival {
            Arrival::Http(..) => self.awaited = self.awaited.saturating_sub(1),
        }
    }
}
