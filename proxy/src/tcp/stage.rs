//! One filter's place in the chain of one connection: its stream context, what it holds back, and what it is waited for.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context as Task, Poll, ready};

use bytes::Bytes;
use selvedge_wasm::{Arrival, Body, CallError, Calls, Effects, Outcome, Peer, Phases, TcpStream};
use tokio::time::Instant;

use super::Direction;
use super::exchange::{Facts, View};
use crate::plan::ChainFilter;

/// What a stage keeps back in one direction.
///
/// ```text
/// Running --Pause--> Paused(bytes) --Continue | resume--> Running
/// ```
#[derive(Default)]
pub(super) struct Side {
    /// Bytes seen by the filter but not let through.
    held: Body,
    pub(super) paused: bool,
    /// The end has come to this stage, and is held.
    ended: bool,
    /// Since when the filter is waited for.
    waited_since: Option<Instant>,
}

enum Context {
    Unopened,
    Open(Open),
    /// The filter failed open, or has been told that the connection is over: it takes no further part.
    Gone,
}

struct Open {
    stream: TcpStream,
    /// The wait for what other contexts' calls do to this one.
    mail: Pin<Box<dyn Future<Output = Effects> + Send>>,
    /// It has been told that the client's connection has ended.
    downstream_told: bool,
    /// It has been told that the upstream's connection has ended.
    upstream_told: bool,
}

/// Something that came for a filter from elsewhere.
pub(super) enum Mail {
    /// An answer to one of its callouts.
    Arrival(Arrival),
    /// What another call on its VM (a tick, say) did to this connection.
    Effects(Effects),
}

pub(super) struct Stage {
    pub(super) filter: Arc<ChainFilter>,
    phases: Phases,
    context: Context,
    /// It has let the connection through to the next stage.
    pub(super) passed: bool,
    downstream: Side,
    upstream: Side,
    pub(super) calls: Calls,
}

impl Stage {
    pub(super) fn new(filter: Arc<ChainFilter>) -> Self {
        Self {
            phases: filter.plugin.module().phases(),
            filter,
            context: Context::Unopened,
            passed: false,
            downstream: Side::default(),
            upstream: Side::default(),
            calls: Calls::new(),
        }
    }

    /// Opens the filter's context, if it is not.
    pub(super) fn open(&mut self, worker: usize) -> Result<(), CallError> {
        if matches!(self.context, Context::Unopened) {
            let stream = TcpStream::open(&self.filter.plugin, worker)?;
            let mail = Box::pin(stream.mail());
            self.context = Context::Open(Open { stream, mail, downstream_told: false, upstream_told: false });
        }
        Ok(())
    }

    /// Whether the filter takes no further part.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self.context, Context::Gone)
    }

    /// The filter takes no further part; its guest is told.
    pub(super) fn leave(&mut self) {
        self.context = Context::Gone;
        self.calls = Calls::new();
    }

    pub(super) fn wants(&self, direction: Direction) -> bool {
        self.phases.contains(match direction {
            Direction::Downstream => Phases::DOWNSTREAM_DATA,
            Direction::Upstream => Phases::UPSTREAM_DATA,
        })
    }

    /// Whether the filter has to act before anything can go on. A paused filter without a callout under way is shown what comes next
    /// instead; while its callouts are under way, data waits for them (Envoy would ask the filter again, and let the data of a filter
    /// that does not look at data overtake the answer).
    pub(super) fn is_awaited(&self, direction: Direction) -> bool {
        let side = self.side(direction);
        side.paused && (side.ended || self.calls.pending() || !self.wants(direction))
    }

    /// When the wait for the filter is over. The clock starts when this is first asked.
    pub(super) fn deadline(&mut self, direction: Direction, now: Instant) -> Option<Instant> {
        let awaited = self.is_awaited(direction);
        let side = self.side_mut(direction);
        side.waited_since = awaited.then(|| side.waited_since.unwrap_or(now));
        side.waited_since.map(|since| since + self.filter.wait)
    }

    /// Whether there is nothing to ask the filter about.
    pub(super) fn is_blank(&self, direction: Direction) -> bool {
        let side = self.side(direction);
        side.held.is_empty() && !side.ended
    }

    pub(super) fn push(&mut self, direction: Direction, data: Bytes, end: bool) {
        let side = self.side_mut(direction);
        side.held.push(data);
        side.ended |= end;
    }

    /// Whether more is held than the filter may hold.
    pub(super) fn holds_too_much(&self, direction: Direction) -> bool {
        let side = self.side(direction);
        side.paused && side.held.len() > self.filter.body_limit
    }

    pub(super) fn pause(&mut self, direction: Direction) {
        self.side_mut(direction).paused = true;
    }

    /// What is held, and whether it is the last; the side runs again.
    pub(super) fn release(&mut self, direction: Direction) -> (Bytes, bool) {
        let Side { mut held, ended, .. } = std::mem::take(self.side_mut(direction));
        (held.take(), ended)
    }

    pub(super) fn on_new_connection(&mut self, facts: &mut Facts) -> Result<Outcome, CallError> {
        self.call(None, facts, |stream, view| stream.on_new_connection(view))
    }

    pub(super) fn on_data(&mut self, direction: Direction, facts: &mut Facts) -> Result<Outcome, CallError> {
        let side = self.side(direction);
        let (len, end) = (side.held.len(), side.ended);
        self.call(Some(direction), facts, |stream, view| match direction {
            Direction::Downstream => stream.on_downstream_data(view, len, end),
            Direction::Upstream => stream.on_upstream_data(view, len, end),
        })
    }

    pub(super) fn on_arrival(&mut self, arrival: Arrival, facts: &mut Facts) -> Result<Outcome, CallError> {
        self.call(None, facts, |stream, view| stream.on_arrival(view, arrival))
    }

    /// A side's connection has ended: the filter is told once, if it has a context.
    pub(super) fn on_close(
        &mut self,
        direction: Direction,
        by: Peer,
        facts: &mut Facts,
    ) -> Result<Option<Outcome>, CallError> {
        if self.told(direction).is_none_or(|told| *told) {
            return Ok(None);
        }
        let called = self.call(None, facts, |stream, view| match direction {
            Direction::Downstream => stream.on_downstream_close(view, by),
            Direction::Upstream => stream.on_upstream_close(view, by),
        });
        if let Some(told) = self.told(direction) {
            *told = !matches!(called, Err(CallError::Busy));
        }
        called.map(Some)
    }

    fn told(&mut self, direction: Direction) -> Option<&mut bool> {
        match (&mut self.context, direction) {
            (Context::Open(open), Direction::Downstream) => Some(&mut open.downstream_told),
            (Context::Open(open), Direction::Upstream) => Some(&mut open.upstream_told),
            _ => None,
        }
    }

    /// The connection is over. The only error is that the guest is busy.
    pub(super) fn finish(&mut self, facts: &mut Facts) -> Result<(), CallError> {
        if let Context::Open(open) = &mut self.context {
            open.stream.finish(&mut View { facts, downstream: None, upstream: None })?;
            self.context = Context::Gone;
        }
        Ok(())
    }

    /// The next mail. Registers for it: to be polled again when woken.
    pub(super) fn poll_mail(&mut self, cx: &mut Task<'_>) -> Poll<Mail> {
        let Context::Open(open) = &mut self.context else { return Poll::Pending };
        // Cancel safe: what is not ready now stays queued.
        if let Poll::Ready(arrival) = pin!(self.calls.next()).poll(cx) {
            return Poll::Ready(Mail::Arrival(arrival));
        }
        // Kept from poll to poll, because it may be waiting for a timer.
        let effects = ready!(open.mail.as_mut().poll(cx));
        open.mail = Box::pin(open.stream.mail());
        Poll::Ready(Mail::Effects(effects))
    }

    /// Calls the guest. A buffer is there for it while it is being asked about it, and as long as it holds it back.
    fn call(
        &mut self,
        about: Option<Direction>,
        facts: &mut Facts,
        call: impl FnOnce(&mut TcpStream, &mut View<'_>) -> Result<Outcome, CallError>,
    ) -> Result<Outcome, CallError> {
        let Context::Open(Open { stream, .. }) = &mut self.context else { return Err(CallError::Poisoned) };
        let downstream = about == Some(Direction::Downstream) || self.downstream.paused;
        let upstream = about == Some(Direction::Upstream) || self.upstream.paused;
        let mut view = View {
            facts,
            downstream: downstream.then_some(&mut self.downstream.held),
            upstream: upstream.then_some(&mut self.upstream.held),
        };
        call(stream, &mut view)
    }

    fn side(&self, direction: Direction) -> &Side {
        match direction {
            Direction::Downstream => &self.downstream,
            Direction::Upstream => &self.upstream,
        }
    }

    fn side_mut(&mut self, direction: Direction) -> &mut Side {
        match direction {
            Direction::Downstream => &mut self.downstream,
            Direction::Upstream => &mut self.upstream,
        }
    }

    pub(super) fn is_paused(&self, direction: Direction) -> bool {
        self.side(direction).paused
    }
}
