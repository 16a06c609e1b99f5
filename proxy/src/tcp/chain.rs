//! The filter chain of one connection.
//!
//! Nothing here waits: a call moves what it brings as far as it goes, and what has passed the whole chain lies in
//! [`Chain::take`]. What a paused filter waits for comes by [`Chain::next_mail`], and goes to [`Chain::deliver`].

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use selvedge_wasm::{Action, Arrival, CallError, Effects, Outcome, Peer};
use smallvec::SmallVec;
use tokio::time::Instant;
use tracing::debug;

use super::Direction;
use super::exchange::Facts;
use super::stage::{Mail, Stage};
use crate::plan::{ChainFilter, OnFailure};

/// Why a connection cannot go on through its chain.
#[derive(Debug, Clone)]
pub(super) struct Broken {
    /// The filter that broke it.
    pub(super) filter: Arc<str>,
    pub(super) how: How,
}

/// How a filter ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// It asked for that.
    Closed,
    /// It trapped, overran a limit or could not be started, and its `on_failure` is `closed`.
    Failed,
    /// It holds more than its `limits.body` allows.
    TooLarge,
    /// It stayed paused beyond its `limits.wait`, and its `on_failure` is `closed`.
    Stuck,
}

/// What has passed the chain in one direction.
#[derive(Default)]
pub(super) struct Passed {
    pub(super) data: SmallVec<[Bytes; 2]>,
    pub(super) end: bool,
}

/// What is to be done next, at which stage.
enum Work {
    /// Ask whether it takes the connection.
    Meet(usize),
    /// Hand it bytes.
    Data { direction: Direction, index: usize, data: Bytes, end: bool },
    /// Bring it the answer to a callout.
    Arrival(usize, Arrival),
    /// Tell it that the upstream has ended its connection.
    UpstreamClose(usize),
}

/// What became of a piece of work.
enum Done {
    Yes,
    /// The guest is busy with a long call for somebody else. This is left to be done.
    Busy(Work),
}

pub(super) struct Chain {
    stages: Vec<Stage>,
    pub(super) facts: Facts,
    worker: usize,
    /// What is still to be done, in order, so that bytes stay in order. Empty between two calls, unless a guest is busy.
    work: VecDeque<Work>,
    accepted: bool,
    downstream: Passed,
    upstream: Passed,
}

impl Chain {
    pub(super) fn new(filters: &[Arc<ChainFilter>], facts: Facts, worker: usize) -> Self {
        Self {
            stages: filters.iter().map(|filter| Stage::new(Arc::clone(filter))).collect(),
            facts,
            worker,
            work: VecDeque::new(),
            accepted: false,
            downstream: Passed::default(),
            upstream: Passed::default(),
        }
    }

    /// Asks the filters in their order whether they take the connection, until one pauses.
    pub(super) fn open(&mut self) -> Result<(), Broken> {
        self.meet_after(None);
        self.run()
    }

    /// Whether all filters take the connection: time to connect.
    pub(super) fn is_accepted(&self) -> bool {
        self.accepted
    }

    /// Whether bytes of this direction have somewhere to go now.
    pub(super) fn takes(&self, direction: Direction) -> bool {
        !self.is_busy() && !self.stages.iter().any(|stage| stage.is_awaited(direction))
    }

    /// Whether a guest is busy: [`Chain::resume`] is to be called in a moment, and nothing else until it is not.
    pub(super) fn is_busy(&self) -> bool {
        !self.work.is_empty()
    }

    /// Goes on with what was left to be done.
    pub(super) fn resume(&mut self) -> Result<(), Broken> {
        self.run()
    }

    /// Sends bytes through the chain; `end`: they are the last.
    pub(super) fn data(&mut self, direction: Direction, data: Bytes, end: bool) -> Result<(), Broken> {
        self.emit(direction, None, data, end);
        self.run()
    }

    /// What has passed since this was last asked.
    pub(super) fn take(&mut self, direction: Direction) -> Passed {
        std::mem::take(self.passed(direction))
    }

    /// The next thing that came for a filter, and for which. Waits for ever without filters. Cancel safe.
    pub(super) fn next_mail(&mut self) -> impl Future<Output = (usize, Mail)> + Send + '_ {
        let stages: &mut [Stage] = if self.is_busy() { &mut [] } else { &mut self.stages };
        poll_fn(|cx| {
            for (index, stage) in stages.iter_mut().enumerate() {
                if let Poll::Ready(mail) = stage.poll_mail(cx) {
                    return Poll::Ready((index, mail));
                }
            }
            Poll::Pending
        })
    }

    pub(super) fn deliver(&mut self, index: usize, mail: Mail) -> Result<(), Broken> {
        match mail {
            Mail::Effects(effects) => self.apply(index, effects)?,
            Mail::Arrival(arrival) => self.work.push_back(Work::Arrival(index, arrival)),
        }
        self.run()
    }

    /// When a filter that is waited for will have taken too long.
    pub(super) fn deadline(&mut self, now: Instant) -> Option<Instant> {
        self.deadlines(now).map(|(_, deadline)| deadline).min()
    }

    /// Does without the filters that have taken too long, or breaks the connection.
    pub(super) fn expire(&mut self, now: Instant) -> Result<(), Broken> {
        let late: SmallVec<[usize; 2]> =
            self.deadlines(now).filter(|(_, deadline)| *deadline <= now).map(|(index, _)| index).collect();
        for index in late {
            let filter = Arc::clone(&self.stages[index].filter);
            let what = format_args!("it stayed paused for more than {:?}", filter.wait);
            filter.trouble.report(&filter.name, filter.on_failure, &what);
            match filter.on_failure {
                OnFailure::Open => self.abandon(index),
                OnFailure::Closed => return Err(self.broken(index, How::Stuck)),
            }
        }
        self.run()
    }

    /// The upstream has ended its connection.
    pub(super) fn upstream_closed(&mut self) -> Result<(), Broken> {
        self.work.extend((0..self.stages.len()).rev().map(Work::UpstreamClose));
        self.run()
    }

    /// Tells every filter that the connection is over. What they ask for can no longer change it; their callouts are sent all the same.
    /// False when a guest is busy: to be called again in a moment.
    pub(super) fn finish(&mut self, downstream: Peer) -> bool {
        let Self { stages, facts, .. } = self;
        let ends = [(Direction::Upstream, Peer::Local), (Direction::Downstream, downstream)];
        for stage in stages {
            for (direction, by) in ends {
                if direction == Direction::Upstream && facts.endpoint.is_none() {
                    continue; // there was no connection that could have ended
                }
                match stage.on_close(direction, by, facts) {
                    Ok(None) => {}
                    Ok(Some(Outcome { effects, .. })) => {
                        stage.calls.begin(stage.filter.plugin.host(), effects.outgoing);
                    }
                    Err(CallError::Busy) => return false,
                    Err(error) => {
                        stage.filter.trouble.report(&stage.filter.name, stage.filter.on_failure, &error);
                        stage.leave();
                    }
                }
            }
            if stage.finish(facts).is_err() {
                return false;
            }
        }
        true
    }

    /// Does what there is to do, in order, until a guest is busy.
    fn run(&mut self) -> Result<(), Broken> {
        while let Some(work) = self.work.pop_front() {
            let done = match work {
                Work::Meet(index) => self.meet(index),
                Work::Data { direction, index, data, end } => self.hand(direction, index, data, end),
                Work::Arrival(index, arrival) => self.bring(index, arrival),
                Work::UpstreamClose(index) => self.tell_upstream_close(index),
            };
            if let Done::Busy(work) = done? {
                self.work.push_front(work);
                return Ok(());
            }
        }
        Ok(())
    }

    fn meet(&mut self, index: usize) -> Result<Done, Broken> {
        let stage = &mut self.stages[index];
        let outcome = match stage.open(self.worker) {
            Ok(()) => stage.on_new_connection(&mut self.facts),
            Err(error) => Err(error),
        };
        if let Err(CallError::Busy) = outcome {
            return Ok(Done::Busy(Work::Meet(index)));
        }
        self.settle(Direction::Downstream, index, outcome)
    }

    fn bring(&mut self, index: usize, arrival: Arrival) -> Result<Done, Broken> {
        match self.stages[index].on_arrival(arrival.clone(), &mut self.facts) {
            Ok(outcome) => self.apply(index, outcome.effects)?,
            Err(CallError::Busy) => return Ok(Done::Busy(Work::Arrival(index, arrival))),
            Err(error) => self.failed(index, &error)?,
        }
        Ok(Done::Yes)
    }

    fn tell_upstream_close(&mut self, index: usize) -> Result<Done, Broken> {
        match self.stages[index].on_close(Direction::Upstream, Peer::Remote, &mut self.facts) {
            Ok(None) => {}
            Ok(Some(outcome)) => self.apply(index, outcome.effects)?,
            Err(CallError::Busy) => return Ok(Done::Busy(Work::UpstreamClose(index))),
            Err(error) => self.failed(index, &error)?,
        }
        Ok(Done::Yes)
    }

    fn hand(&mut self, direction: Direction, index: usize, data: Bytes, end: bool) -> Result<Done, Broken> {
        let stage = &mut self.stages[index];
        if stage.is_gone() || !(stage.wants(direction) || stage.is_paused(direction)) {
            self.emit(direction, Some(index), data, end);
            return Ok(Done::Yes);
        }
        stage.push(direction, data, end);
        if stage.is_blank(direction) {
            return Ok(Done::Yes);
        }
        if stage.is_paused(direction) && (stage.calls.pending() || !stage.wants(direction)) {
            self.check_held(direction, index)?;
            return Ok(Done::Yes);
        }
        let outcome = stage.on_data(direction, &mut self.facts);
        if let Err(CallError::Busy) = outcome {
            // The bytes are held by now.
            return Ok(Done::Busy(Work::Data { direction, index, data: Bytes::new(), end: false }));
        }
        self.settle(direction, index, outcome)
    }

    /// Carries out what a guest call came to.
    fn settle(
        &mut self,
        direction: Direction,
        index: usize,
        outcome: Result<Outcome, CallError>,
    ) -> Result<Done, Broken> {
        match outcome {
            Ok(Outcome { action: Action::Continue, effects }) => {
                self.apply(index, effects)?;
                self.release(direction, index);
            }
            Ok(Outcome { action: Action::Pause, effects }) => {
                // First the pause: a resume in the same call ends it.
                self.stages[index].pause(direction);
                self.apply(index, effects)?;
                self.check_held(direction, index)?;
            }
            Err(error) => self.failed(index, &error)?,
        }
        Ok(Done::Yes)
    }

    fn apply(&mut self, index: usize, effects: Effects) -> Result<(), Broken> {
        if effects.poisoned {
            return self.failed(index, &CallError::Poisoned);
        }
        let stage = &mut self.stages[index];
        if !effects.outgoing.is_empty() {
            stage.calls.begin(stage.filter.plugin.host(), effects.outgoing);
        }
        if effects.reply.is_some() {
            // What is meant is that the client is to get no further; there is no way to say it here but to close.
            debug!(filter = %stage.filter.name, "an HTTP reply to a TCP connection: it is closed instead");
        }
        if effects.close || effects.reply.is_some() {
            return Err(self.broken(index, How::Closed));
        }
        for (direction, resumed) in
            [(Direction::Downstream, effects.resume_downstream), (Direction::Upstream, effects.resume_upstream)]
        {
            if resumed && self.stages[index].is_paused(direction) {
                self.release(direction, index);
            }
        }
        Ok(())
    }

    /// Lets go on what a stage holds, and the connection itself, if it held that.
    fn release(&mut self, direction: Direction, index: usize) {
        let (data, end) = self.stages[index].release(direction);
        if direction == Direction::Downstream {
            self.meet_after(Some(index));
        }
        self.emit(direction, Some(index), data, end);
    }

    /// The next filter's turn to take the connection, when it is: once.
    fn meet_after(&mut self, index: Option<usize>) {
        if let Some(index) = index
            && std::mem::replace(&mut self.stages[index].passed, true)
        {
            return;
        }
        match index.map_or(0, |index| index + 1) {
            next if next == self.stages.len() => self.accepted = true,
            next => self.work.push_back(Work::Meet(next)),
        }
    }

    /// Sends bytes on from a stage, or into the chain.
    fn emit(&mut self, direction: Direction, from: Option<usize>, data: Bytes, end: bool) {
        if data.is_empty() && !end {
            return;
        }
        let next = match (direction, from) {
            (Direction::Downstream, from) => {
                Some(from.map_or(0, |index| index + 1)).filter(|next| *next < self.stages.len())
            }
            (Direction::Upstream, from) => from.unwrap_or(self.stages.len()).checked_sub(1),
        };
        match next {
            Some(index) => self.work.push_back(Work::Data { direction, index, data, end }),
            None => {
                let passed = self.passed(direction);
                passed.data.push(data);
                passed.end |= end;
            }
        }
    }

    fn failed(&mut self, index: usize, error: &CallError) -> Result<(), Broken> {
        let filter = &self.stages[index].filter;
        filter.trouble.report(&filter.name, filter.on_failure, error);
        match filter.on_failure {
            OnFailure::Open => {
                self.abandon(index);
                Ok(())
            }
            OnFailure::Closed => Err(self.broken(index, How::Failed)),
        }
    }

    /// The filter takes no further part; what it held goes on.
    fn abandon(&mut self, index: usize) {
        self.stages[index].filter.trouble.skip();
        self.stages[index].leave();
        self.release(Direction::Downstream, index);
        self.release(Direction::Upstream, index);
    }

    fn check_held(&self, direction: Direction, index: usize) -> Result<(), Broken> {
        if self.stages[index].holds_too_much(direction) { Err(self.broken(index, How::TooLarge)) } else { Ok(()) }
    }

    fn broken(&self, index: usize, how: How) -> Broken {
        Broken { filter: Arc::clone(&self.stages[index].filter.name), how }
    }

    fn passed(&mut self, direction: Direction) -> &mut Passed {
        match direction {
            Direction::Downstream => &mut self.downstream,
            Direction::Upstream => &mut self.upstream,
        }
    }

    /// The filters that are waited for, and until when.
    fn deadlines(&mut self, now: Instant) -> impl Iterator<Item = (usize, Instant)> {
        let stages = self.stages.iter_mut().enumerate();
        stages.filter_map(move |(index, stage)| {
            let deadlines = [Direction::Downstream, Direction::Upstream].map(|way| stage.deadline(way, now));
            deadlines.into_iter().flatten().min().map(|deadline| (index, deadline))
        })
    }
}
