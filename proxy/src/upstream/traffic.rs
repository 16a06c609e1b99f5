//! How much is at an upstream at once, who waits for room, and how many retries it can bear. Kept over reloads, by the upstream's name.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use selvedge_config::{Hedge, HedgeAfter, Percent, UpstreamLimits};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::quantile::Answers;
use super::{Ask, EndpointId, Lease, NoEndpoint, Upstream, clock};

/// What a retry takes from the budget; a request puts its share of it in.
const RETRY: i64 = 10_000;
/// How many retries can be saved up.
const SAVED_MAX: i64 = 100 * RETRY;
/// How many are there from the start.
const SAVED_FIRST: i64 = 10 * RETRY;

/// What goes on at an upstream.
#[derive(Debug)]
pub(crate) struct Traffic {
    /// Counted only where there are limits.
    in_flight: AtomicU32,
    waiting: AtomicU32,
    /// Rings for one who waits when there is room.
    freed: Notify,
    budget: Budget,
    retries: AtomicU64,
    refused: AtomicU64,
    exhausted: AtomicU64,
    /// For requests that are sent to a second endpoint before the first has failed.
    hedging: Budget,
    hedges: AtomicU64,
    hedges_won: AtomicU64,
    hedges_refused: AtomicU64,
    /// Of requests that might be sent to a second endpoint, where it matters what most of them need.
    answers: Answers,
}

/// A share of requests that is saved up, and spent in whole ones.
#[derive(Debug)]
struct Budget(AtomicI64);

impl Budget {
    fn save(&self, share: Percent) {
        // Nobody looks at the exact sum: a race costs a fraction of a retry.
        if self.0.load(Relaxed) < SAVED_MAX {
            self.0.fetch_add(i64::from(share.basis_points()), Relaxed);
        }
    }

    fn spend(&self) -> bool {
        self.0.fetch_update(Relaxed, Relaxed, |saved| (saved >= RETRY).then(|| saved - RETRY)).is_ok()
    }

    fn give_back(&self) {
        self.0.fetch_add(RETRY, Relaxed);
    }
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            in_flight: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            freed: Notify::new(),
            budget: Budget(AtomicI64::new(SAVED_FIRST)),
            retries: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            exhausted: AtomicU64::new(0),
            hedging: Budget(AtomicI64::new(RETRY)),
            hedges: AtomicU64::new(0),
            hedges_won: AtomicU64::new(0),
            hedges_refused: AtomicU64::new(0),
            answers: Answers::default(),
        }
    }
}

/// What is told of it to operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct TrafficStatus {
    /// Requests that wait for room.
    pub waiting: u32,
    /// Requests that were refused because there was no room, since the process started.
    pub refused: u64,
    /// Attempts after the first, since the process started.
    pub retries: u64,
    /// Retries that were not made because the budget was used up, since the process started.
    pub retries_refused: u64,
    /// Requests that were sent to a second endpoint because the first was silent, since the process started.
    pub hedges: u64,
    /// Those of them whose answer was taken from the second one.
    pub hedges_won: u64,
    /// Requests that were not, because the budget was used up or no other endpoint had room, since the process started.
    pub hedges_refused: u64,
    /// How long an endpoint may be silent before a second one is asked, where that is what most answers need; `None` = it is not, or too few
    /// are known.
    pub hedge_after: Option<Duration>,
}

impl Traffic {
    pub(super) fn status(&self) -> TrafficStatus {
        TrafficStatus {
            waiting: self.waiting.load(Relaxed),
            refused: self.refused.load(Relaxed),
            retries: self.retries.load(Relaxed),
            retries_refused: self.exhausted.load(Relaxed),
            hedges: self.hedges.load(Relaxed),
            hedges_won: self.hedges_won.load(Relaxed),
            hedges_refused: self.hedges_refused.load(Relaxed),
            hedge_after: self.answers.known(),
        }
    }

    /// A request has come that may be tried again: its share of retries is saved up.
    pub(super) fn save(&self, share: Percent) {
        self.budget.save(share);
    }

    /// Takes a retry from the budget, if there is one.
    pub(super) fn spend(&self) -> bool {
        let spent = self.budget.spend();
        if !spent {
            self.exhausted.fetch_add(1, Relaxed);
        }
        spent
    }

    /// A request is sent once more.
    pub(super) fn count_retry(&self) {
        self.retries.fetch_add(1, Relaxed);
    }

    /// A place among so many, if there is one.
    pub(super) fn enter(&self, most: Option<u16>) -> bool {
        let most = most.map_or(u32::MAX, u32::from);
        self.in_flight.fetch_update(Relaxed, Relaxed, |now| (now < most).then(|| now + 1)).is_ok()
    }

    /// A place is free again.
    pub(super) fn leave(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
        if self.waiting.load(Relaxed) > 0 {
            self.freed.notify_one();
        }
    }
}

/// One who waits; counted until this is dropped.
struct Waiting<'t>(&'t Traffic);

impl<'t> Waiting<'t> {
    fn begin(traffic: &'t Traffic, most: u16) -> Option<Self> {
        let join = |now| (now < u32::from(most)).then(|| now + 1);
        traffic.waiting.fetch_update(Relaxed, Relaxed, join).ok().map(|_| Self(traffic))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}

impl Upstream {
    /// An endpoint for a request that may wait for room, where the upstream's `limits` say so, until `end` at the latest. Those who wait
    /// are served in order; who comes later does not overtake them.
    ///
    /// # Errors
    /// There is none; see [`NoEndpoint`].
    ///
    /// # Cancel safety
    /// Dropped, it has taken nothing.
    pub(crate) async fn wait(&self, ask: &Ask<'_>, end: Option<Instant>) -> Result<Lease, NoEndpoint> {
        let Some(limits) = &self.rules.limits else { return self.choose(ask) };
        // A boxed future: it is rare, and would make every request's larger.
        let chosen = Box::pin(self.wait_within(limits, ask, end)).await;
        if matches!(chosen, Err(NoEndpoint::Full)) {
            self.traffic.refused.fetch_add(1, Relaxed);
        }
        chosen
    }

    async fn wait_within(
        &self,
        limits: &UpstreamLimits,
        ask: &Ask<'_>,
        end: Option<Instant>,
    ) -> Result<Lease, NoEndpoint> {
        let traffic = &self.traffic;
        if traffic.waiting.load(Relaxed) == 0 {
            match self.choose(ask) {
                Err(NoEndpoint::Full) => {}
                chosen => return chosen,
            }
        }
        let Some(_waiting) = Waiting::begin(traffic, limits.queue) else { return Err(NoEndpoint::Full) };
        let patience = Instant::now() + limits.wait;
        let end = end.map_or(patience, |end| end.min(patience));
        loop {
            let freed = traffic.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable(); // Before looking: what is freed in between is not missed.
            match self.choose(ask) {
                Err(NoEndpoint::Full) => {}
                chosen => return chosen,
            }
            if tokio::time::timeout_at(end, freed).await.is_err() {
                return Err(NoEndpoint::Full);
            }
        }
    }

    /// What its requests, retries and limits come to.
    #[must_use]
    pub fn traffic(&self) -> TrafficStatus {
        self.traffic.status()
    }

    /// A request is sent here for the first time.
    pub(crate) fn begin(&self) {
        if self.rules.retries.attempts > 1 {
            self.traffic.save(self.rules.retries.budget);
        }
    }

    /// A request is sent here that another endpoint may be asked, too: its share of that is saved up. After how long; `None` = nobody knows
    /// yet how long is long here.
    pub(crate) fn begin_hedged(&self, hedge: &Hedge) -> Option<Duration> {
        let after = match hedge.after {
            HedgeAfter::Time(after) => after,
            HedgeAfter::Quantile(share) => {
                self.traffic.answers.quantile(share, hedge.minimum, clock::now())?.max(hedge.floor)
            }
        };
        self.traffic.hedging.save(hedge.share);
        Some(after)
    }

    /// The answer to a request that might have been sent to a second endpoint, or was, took so long to begin.
    pub(crate) fn answered_in(&self, took: Duration) {
        self.traffic.answers.sample(took);
    }

    /// A second endpoint for a request that is at this one and has no answer: if the budgets, for this and for retries, allow it, and
    /// somebody else has room. It does not wait.
    pub(crate) fn hedge(&self, ask: &Ask<'_>, first: EndpointId) -> Option<Lease> {
        let traffic = &self.traffic;
        let place = traffic.hedging.spend().then(|| {
            let place = traffic.budget.spend().then(|| {
                let place = self.choose(&ask.avoiding(&[first])).ok();
                if place.is_none() {
                    traffic.budget.give_back();
                }
                place
            });
            if place.as_ref().is_none_or(Option::is_none) {
                traffic.hedging.give_back();
            }
            place.flatten()
        });
        let place = place.flatten();
        let counted = if place.is_some() { &traffic.hedges } else { &traffic.hedges_refused };
        counted.fetch_add(1, Relaxed);
        place
    }

    /// The second endpoint's answer was taken.
    pub(crate) fn count_hedge_won(&self) {
        self.traffic.hedges_won.fetch_add(1, Relaxed);
    }

    /// A request is sent here once more.
    pub(crate) fn count_retry(&self) {
        self.traffic.count_retry();
    }

    /// Takes a retry from the budget, if there is one.
    pub(super) fn spend_retry(&self) -> bool {
        self.traffic.spend()
    }

    /// How long to wait before the attempt of this number (from 2 on) goes to an endpoint that has been tried: twice as long each time.
    pub(crate) fn backoff(&self, attempt: u32) -> Duration {
        let pause = self.rules.retries.backoff * 2_u32.saturating_pow(attempt.saturating_sub(2).min(8));
        pause.mul_f64(0.5 + fastrand::f64())
    }
}

/// Where a lease is counted, on upstreams with limits.
pub(super) struct Seat(Arc<Traffic>);

impl Seat {
    /// `None` = there is no room.
    pub(super) fn take(traffic: &Arc<Traffic>, limits: &UpstreamLimits) -> Option<Self> {
        traffic.enter(limits.requests).then(|| Self(Arc::clone(traffic)))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_retries_are_there_from_the_start_and_then_a_share_of_requests() {
        let traffic = Traffic::default();
        assert_eq!((0..50).filter(|_| traffic.spend()).count(), 10);
        (0..100).for_each(|_| traffic.save(Percent::FIFTH));
        assert_eq!((0..50).filter(|_| traffic.spend()).count(), 20);
        assert_eq!(traffic.status().retries_refused, 70);
    }

    #[test]
    fn a_hundred_retries_are_saved_at_most() {
        let traffic = Traffic::default();
        (0..100_000).for_each(|_| traffic.save(Percent::HALF));
        assert_eq!((0..1000).filter(|_| traffic.spend()).count(), 100);
    }

    #[test]
    fn one_may_be_asked_twice_at_first_and_then_a_share() {
        let traffic = Traffic::default();
        assert_eq!((0..50).filter(|_| traffic.hedging.spend()).count(), 1);
        (0..100).for_each(|_| traffic.hedging.save(Percent::FIFTH));
        assert_eq!((0..50).filter(|_| traffic.hedging.spend()).count(), 20);
        traffic.hedging.give_back();
        assert!(traffic.hedging.spend() && !traffic.hedging.spend());
    }

    #[test]
    fn no_more_enter_than_there_is_room_for() {
        let traffic = Traffic::default();
        assert!(traffic.enter(Some(2)) && traffic.enter(Some(2)) && !traffic.enter(Some(2)));
        traffic.leave();
        assert!(traffic.enter(Some(2)) && !traffic.enter(Some(2)) && traffic.enter(None));
    }
}
