//! The endpoints of an upstream as requests choose among them. A snapshot: it is never changed, only replaced, and knows when it is to be.

use std::sync::Arc;

use selvedge_config::{Balance, Prefer};
use smallvec::SmallVec;

use super::balance::Table;
use super::clock::millis;
use super::endpoint::{Endpoint, EndpointId, Standing};
use super::near::Nearby;
use super::schedule::interleave;
use super::{Ask, NoEndpoint, Rules};

/// The snapshot.
pub(super) struct Members {
    all: Vec<Arc<Endpoint>>,
    /// Who of `all` may be sent requests.
    in_use: Box<[bool]>,
    /// The turns of those, by their place in `all`: one of weight 3 has three.
    turns: Vec<u16>,
    table: Option<Arc<Table>>,
    /// The turns at each place, where some are preferred to others.
    nearby: Nearby,
    /// Where in `all` an id is, in order of ids; empty where nobody asks.
    ids: Arc<[(EndpointId, usize)]>,
    /// Whether too few are well, so that all are used.
    panicking: bool,
    /// When time alone changes something: an ejection ends, a slow start goes on.
    due: Option<u64>,
}

/// Which priority is used, and whether so few of it are well that all of it are: the lowest number of which enough are well. When there is
/// none, the lowest that has any who are not drained.
fn level(rules: &Rules, all: &[Arc<Endpoint>], standings: &[Standing]) -> (u16, bool) {
    let mut priorities: SmallVec<[u16; 4]> = all.iter().map(|endpoint| endpoint.priority()).collect();
    priorities.sort_unstable();
    priorities.dedup();
    let mut fallback = None;
    for priority in priorities {
        let (mut eligible, mut well) = (0u64, 0u64);
        for (endpoint, standing) in all.iter().zip(standings) {
            if endpoint.priority() == priority && *standing != Standing::Draining {
                eligible += 1;
                well += u64::from(matches!(standing, Standing::In { .. }));
            }
        }
        let panicking = well * 10_000 < eligible * u64::from(rules.panic.basis_points());
        if well > 0 && !panicking {
            return (priority, false);
        }
        if eligible > 0 && fallback.is_none() {
            fallback = Some((priority, panicking));
        }
    }
    fallback.unwrap_or((0, false))
}

/// The steps of a slow start, from this part of the weight to all of it.
const STEPS: u32 = 10;

impl Members {
    pub(super) fn new(rules: &Rules, all: Vec<Arc<Endpoint>>, now: u64) -> Self {
        let table = Table::of(&rules.balance, &all);
        let mut ids: Vec<(EndpointId, usize)> = Vec::new();
        if rules.sticky.is_some() {
            ids.extend(all.iter().enumerate().map(|(index, endpoint)| (endpoint.id(), index)));
            ids.sort_unstable();
        }
        Self::assess(rules, all, table, ids.into(), now)
    }

    /// The same endpoints, as they are now.
    pub(super) fn again(&self, rules: &Rules, now: u64) -> Self {
        Self::assess(rules, self.all.clone(), self.table.clone(), Arc::clone(&self.ids), now)
    }

    fn assess(
        rules: &Rules,
        all: Vec<Arc<Endpoint>>,
        table: Option<Arc<Table>>,
        ids: Arc<[(EndpointId, usize)]>,
        now: u64,
    ) -> Self {
        let standings: Vec<Standing> = all.iter().map(|endpoint| endpoint.standing(now)).collect();
        let (priority, panicking) = level(rules, &all, &standings);

        let mut due: Option<u64> = None;
        let mut look_again = |at: u64| due = Some(due.map_or(at, |due| due.min(at)));
        let mut weights = Vec::with_capacity(all.len());
        for (endpoint, standing) in all.iter().zip(&standings) {
            let whole = u32::from(endpoint.weight()) * STEPS;
            let weight = match *standing {
                Standing::Draining => 0,
                Standing::Unhealthy if panicking => whole,
                Standing::Unhealthy => 0,
                Standing::Ejected { until } => {
                    look_again(until);
                    if panicking { whole } else { 0 }
                }
                Standing::In { since } => match slow_start(millis(rules.slow_start), since, now) {
                    None => whole,
                    Some(_) if panicking => whole,
                    Some((step, next)) => {
                        look_again(next);
                        u32::from(endpoint.weight()) * step
                    }
                },
            };
            weights.push(if endpoint.priority() == priority { weight } else { 0 });
        }
        let nearby = Nearby::new(rules.prefer.as_ref(), &all, &weights);
        let in_use = weights.iter().map(|weight| *weight > 0).collect();
        Self { turns: interleave(&weights), all, in_use, nearby, table, ids, panicking, due }
    }

    /// Every endpoint, whether it may be sent requests or not.
    pub(super) fn all(&self) -> &[Arc<Endpoint>] {
        &self.all
    }

    /// Every endpoint, and whether it may be sent requests.
    pub(super) fn in_use(&self) -> impl Iterator<Item = (&Arc<Endpoint>, bool)> {
        self.all.iter().zip(self.in_use.iter().copied())
    }

    pub(super) fn is_panicking(&self) -> bool {
        self.panicking
    }

    /// When this is out of date, if it will be by itself.
    pub(super) fn due(&self) -> Option<u64> {
        self.due
    }

    /// An endpoint for a request.
    pub(super) fn pick(
        &self,
        rules: &Rules,
        turn: impl FnOnce() -> usize,
        ask: &Ask<'_>,
        now: impl Fn() -> u64,
    ) -> Result<&Arc<Endpoint>, NoEndpoint> {
        if self.turns.is_empty() {
            return Err(if self.all.is_empty() { NoEndpoint::NoneResolved } else { NoEndpoint::AllUnhealthy });
        }
        let acceptable = |index: usize| self.in_use[index] && is_open(ask)(&self.all[index]);
        if let Some(id) = ask.sticky
            && let Ok(found) = self.ids.binary_search_by_key(&id, |(id, _)| *id)
            && acceptable(self.ids[found].1)
        {
            return Ok(&self.all[self.ids[found].1]);
        }
        if let Some(prefer) = &rules.prefer
            && let Some(found) = self.near(rules, prefer, ask, &now)
        {
            return Ok(found);
        }
        let found = match (&rules.balance, &self.table, ask.key) {
            (Balance::RoundRobin, ..) => self.from(turn(), ask),
            (Balance::ConsistentHash(_), Some(table), Some(key)) => {
                let bounded = ask.bound.and_then(|bound| {
                    let most = |index: usize| bound.saturating_mul(u32::from(self.all[index].weight()));
                    table.seek(key, |index| acceptable(index) && self.all[index].in_flight() < most(index))
                });
                bounded.or_else(|| table.seek(key, acceptable)).map(|index| &self.all[index])
            }
            (Balance::Ewma, ..) => {
                let now = now();
                self.better(&self.turns, is_open(ask), |one, other| cost(one, now) <= cost(other, now))
            }
            // Without a key to hash, any will do.
            (Balance::LeastRequest | Balance::ConsistentHash(_), ..) => {
                self.better(&self.turns, is_open(ask), |one, other| load(one, other) <= load(other, one))
            }
        };
        found.ok_or_else(|| {
            let full = |(endpoint, in_use): (&Arc<Endpoint>, bool)| {
                in_use && !ask.avoid.contains(&endpoint.id()) && !endpoint.has_room()
            };
            if self.in_use().any(full) { NoEndpoint::Full } else { NoEndpoint::AllAvoided }
        })
    }

    /// The best endpoint of the nearest place that has one with room.
    fn near(&self, rules: &Rules, prefer: &Prefer, ask: &Ask<'_>, now: &impl Fn() -> u64) -> Option<&Arc<Endpoint>> {
        let limit = match u32::from(prefer.load_limit) {
            0 => u32::MAX,
            limit => limit,
        };
        let acceptable = |endpoint: &Endpoint| {
            endpoint.in_flight() < limit.saturating_mul(u32::from(endpoint.weight())) && is_open(ask)(endpoint)
        };
        let now = if rules.balance == Balance::Ewma { Some(now()) } else { None };
        self.nearby.find(&prefer.by, ask.location.as_ref(), |turns| match now {
            Some(now) => self.better(turns, acceptable, |one, other| cost(one, now) <= cost(other, now)),
            None => self.better(turns, acceptable, |one, other| load(one, other) <= load(other, one)),
        })
    }

    /// Whose turn it is, or the next that may be sent this request.
    fn from(&self, turn: usize, ask: &Ask<'_>) -> Option<&Arc<Endpoint>> {
        self.next(&self.turns, turn, is_open(ask))
    }

    /// The first acceptable one from a turn on.
    fn next(&self, turns: &[u16], turn: usize, acceptable: impl Fn(&Endpoint) -> bool) -> Option<&Arc<Endpoint>> {
        let at = |turn: usize| &self.all[usize::from(turns[turn % turns.len()])];
        (0..turns.len()).map(|more| at(turn.wrapping_add(more))).find(|endpoint| acceptable(endpoint))
    }

    /// Of two drawn by weight, the first unless the second is better: the power of two choices.
    fn better(
        &self,
        turns: &[u16],
        acceptable: impl Fn(&Endpoint) -> bool,
        not_worse: impl Fn(&Endpoint, &Endpoint) -> bool,
    ) -> Option<&Arc<Endpoint>> {
        let draw = || fastrand::usize(..turns.len());
        let one = self.next(turns, draw(), &acceptable)?;
        let other = self.next(turns, draw(), |other| !std::ptr::eq(other, Arc::as_ptr(one)) && acceptable(other));
        Some(other.filter(|other| !not_worse(one, other)).unwrap_or(one))
    }
}

/// Whether an endpoint can take this request: it is not to be avoided, and has room.
fn is_open(ask: &Ask<'_>) -> impl Fn(&Endpoint) -> bool {
    |endpoint| !ask.avoid.contains(&endpoint.id()) && endpoint.has_room()
}

/// What a request would take at an endpoint, for its weight.
fn cost(endpoint: &Endpoint, now: u64) -> f64 {
    endpoint.state().latency.cost(endpoint.in_flight(), now) / f64::from(endpoint.weight())
}

/// What is under way at one, to be compared with the same of the other.
fn load(one: &Endpoint, other: &Endpoint) -> u64 {
    u64::from(one.in_flight()) * u64::from(other.weight())
}

/// How far an endpoint is that rose at `since` (0: long ago), in steps, and when the next step comes; `None` = all the way.
fn slow_start(window: u64, since: u64, now: u64) -> Option<(u32, u64)> {
    if window == 0 || since == 0 || now >= since.saturating_add(window) {
        return None;
    }
    let passed = now.saturating_sub(since);
    let step = (passed * u64::from(STEPS) / window).min(u64::from(STEPS) - 1);
    let next = since + ((step + 1) * window).div_ceil(u64::from(STEPS));
    Some((u32::try_from(step).unwrap_or(0).max(1), next.max(now + 1)))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::SocketAddr;
    use std::time::Duration;

    use selvedge_config::{EndpointAddr, Outlier, Percent};

    use super::super::endpoint::{Failure, Lease};
    use super::super::{Keeper, Source, Speech, Upstream};
    use super::*;

    fn rules(balance: Balance) -> Rules {
        Rules {
            name: "app".into(),
            balance,
            sticky: None,
            prefer: None,
            health: None,
            outlier: None,
            retries: selvedge_config::Retries::default(),
            hedge: None,
            limits: None,
            pool: None,
            panic: Percent::HALF,
            slow_start: Duration::ZERO,
            timeouts: selvedge_config::Timeouts::default(),
        }
    }

    fn upstream(rules: Rules, weights: &[u16]) -> Arc<Upstream> {
        let speech = Speech { tls: None, http2: false, dial: None };
        let address =
            |port: usize| EndpointAddr::Ip(SocketAddr::from(([127, 0, 0, 1], u16::try_from(port + 1).unwrap())));
        let source = |(index, weight): (usize, &u16)| Source {
            written: address(index),
            weight: *weight,
            place: Arc::default(),
            name: None,
            node: None,
        };
        Upstream::new(rules, speech, weights.iter().enumerate().map(source).collect(), &Keeper::default())
    }

    fn index(lease: &Lease) -> usize {
        usize::from(lease.endpoint().address().as_inet().unwrap().port()) - 1
    }

    fn counts(upstream: &Upstream, requests: usize) -> Vec<usize> {
        let mut counts: HashMap<usize, usize> = HashMap::new();
        for _ in 0..requests {
            *counts.entry(index(&upstream.choose(&Ask::default()).ok().unwrap())).or_default() += 1;
        }
        (0..upstream.endpoints().len()).map(|index| counts.get(&index).copied().unwrap_or(0)).collect()
    }

    /// Pearson's statistic against the shares of `weights`.
    fn chi_square(counts: &[usize], weights: &[u16]) -> f64 {
        let requests: usize = counts.iter().sum();
        let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
        let expected = weights.iter().map(|weight| requests as f64 * f64::from(*weight) / total);
        counts.iter().zip(expected).map(|(count, expected)| (*count as f64 - expected).powi(2) / expected).sum()
    }

    #[test]
    fn without_load_every_balancer_follows_the_weights() {
        let weights = [1, 2, 3, 4];
        assert_eq!(counts(&upstream(rules(Balance::RoundRobin), &weights), 1000), [100, 200, 300, 400]);
        let drawn = counts(&upstream(rules(Balance::LeastRequest), &weights), 20_000);
        // 3 degrees of freedom: beyond 30 once in a million.
        assert!(chi_square(&drawn, &weights) < 30.0, "{drawn:?}");
    }

    #[test]
    fn least_request_keeps_what_is_under_way_even() {
        let weights = [1, 1, 1, 1, 1, 1, 1, 1];
        let upstream = upstream(rules(Balance::LeastRequest), &weights);
        let leases: Vec<Lease> = (0..800).map(|_| upstream.choose(&Ask::default()).ok().unwrap()).collect();
        let under_way: Vec<u32> = upstream.endpoints().iter().map(|endpoint| endpoint.in_flight).collect();
        // Two choices keep the fullest within log log n of the mean (Mitzenmacher 2001); one choice would be off by some 30.
        assert!(under_way.iter().all(|count| (94..=106).contains(count)), "{under_way:?}");
        drop(leases);
        assert!(upstream.endpoints().iter().all(|endpoint| endpoint.in_flight == 0));
    }

    #[test]
    fn least_request_gives_a_heavier_endpoint_more_under_way() {
        let upstream = upstream(rules(Balance::LeastRequest), &[1, 3]);
        let leases: Vec<Lease> = (0..400).map(|_| upstream.choose(&Ask::default()).ok().unwrap()).collect();
        let under_way: Vec<u32> = upstream.endpoints().iter().map(|endpoint| endpoint.in_flight).collect();
        assert!((95..=105).contains(&under_way[0]), "{under_way:?}");
        drop(leases);
    }

    #[test]
    fn ewma_prefers_the_quicker_and_still_tries_the_slower() {
        let upstream = upstream(rules(Balance::Ewma), &[1, 1]);
        let members = upstream.members.load();
        let now = super::super::clock::now();
        members.all()[0].state().latency.sample(Duration::from_millis(100), now);
        members.all()[1].state().latency.sample(Duration::from_millis(5), now);
        let pick = |after: u64| {
            let picked = members.pick(&upstream.rules, || 0, &Ask::default(), || now + after).ok().unwrap();
            picked.address().as_inet().unwrap().port()
        };
        assert!((0..100).all(|_| pick(0) == 2));
        members.all()[1].state().latency.sample(Duration::from_millis(5), now + 60_000);
        assert!((0..100).all(|_| pick(60_000) == 1), "what was not asked for long is tried");
        // With many under way at the quicker one, the slower one is better.
        members.all()[0].state().latency.sample(Duration::from_millis(20), now + 60_000);
        let busy: Vec<Lease> = (0..10).map(|_| Lease::new(Arc::clone(&members.all()[1]))).collect();
        assert!((0..100).all(|_| pick(60_000) == 1));
        drop(busy);
    }

    #[test]
    fn a_request_avoids_where_it_has_been_and_hears_when_it_was_everywhere() {
        for balance in [Balance::RoundRobin, Balance::LeastRequest, Balance::Ewma] {
            let upstream = upstream(rules(balance.clone()), &[5, 1, 1]);
            let mut tried = Vec::new();
            for _ in 0..3 {
                let lease = upstream.choose(&Ask::default().avoiding(&tried)).ok().unwrap();
                assert!(!tried.contains(&lease.endpoint().id()), "{balance:?}");
                tried.push(lease.endpoint().id());
            }
            let all = upstream.choose(&Ask::default().avoiding(&tried)).err();
            assert_eq!(all, Some(NoEndpoint::AllAvoided), "{balance:?}");
        }
        assert_eq!(upstream(rules(Balance::Ewma), &[]).choose(&Ask::default()).err(), Some(NoEndpoint::NoneResolved));
    }

    #[test]
    fn a_key_goes_on_when_its_owner_has_a_quarter_more_than_its_share() {
        use selvedge_config::{ConsistentHash, HashAlgorithm, HashBy};
        let hash = ConsistentHash { by: HashBy::Path, algorithm: HashAlgorithm::Ketama };
        let upstream = upstream(rules(Balance::ConsistentHash(hash)), &[1, 1, 1, 1]);
        let lease = || upstream.choose(&upstream.ask_of_key(7)).ok().unwrap();
        let first = index(&lease());
        let leases: Vec<Lease> = (0..400).map(|_| lease()).collect();
        assert!(leases[..64].iter().all(|lease| index(lease) == first), "few requests are no load");
        let under_way: Vec<u32> = upstream.endpoints().iter().map(|endpoint| endpoint.in_flight).collect();
        assert!(under_way.iter().all(|count| *count <= 126), "a quarter more than 100: {under_way:?}");
        drop(leases);
        assert_eq!(index(&lease()), first);
    }

    fn with_outlier() -> Rules {
        let outlier = Outlier { eject: Duration::from_secs(30), ..Outlier::default() };
        Rules { outlier: Some(outlier), ..rules(Balance::RoundRobin) }
    }

    fn fail(upstream: &Upstream, endpoint: usize) {
        let endpoint = Arc::clone(&upstream.members.load().all()[endpoint]);
        for _ in 0..3 {
            Lease::new(Arc::clone(&endpoint)).failed(Failure::Connect);
        }
    }

    fn in_use(upstream: &Upstream, now: u64) -> Vec<bool> {
        upstream.members.load().again(&upstream.rules, now).in_use().map(|(_, in_use)| in_use).collect()
    }

    #[test]
    fn a_failing_endpoint_is_ejected_for_its_time_and_no_more_than_the_share() {
        let upstream = upstream(with_outlier(), &[1, 1, 1, 1]);
        let now = super::super::clock::now();
        fail(&upstream, 1);
        assert_eq!(counts(&upstream, 300), [100, 0, 100, 100]);
        fail(&upstream, 2);
        fail(&upstream, 3);
        assert_eq!(counts(&upstream, 300), [150, 0, 0, 150], "half of them may be ejected");
        assert_eq!(in_use(&upstream, now + 29_000), [true, false, false, true]);
        // The clock may have gone on between the look at it and the ejections.
        assert_eq!(in_use(&upstream, now + 30_000 + 5_000), [true; 4]);
    }

    #[test]
    fn when_too_few_are_well_all_are_used() {
        let mut lenient = with_outlier();
        lenient.outlier = lenient.outlier.map(|outlier| Outlier { ejected_max: "100%".parse().unwrap(), ..outlier });
        let upstream = upstream(lenient, &[1, 1, 1, 1]);
        fail(&upstream, 0);
        fail(&upstream, 1);
        assert!(!upstream.is_panicking());
        assert_eq!(counts(&upstream, 100), [0, 0, 50, 50]);
        fail(&upstream, 2);
        assert!(upstream.is_panicking());
        assert_eq!(counts(&upstream, 100), [25; 4]);
        upstream.drain(upstream.endpoints()[3].id, true);
        assert_eq!(counts(&upstream, 99), [33, 33, 33, 0], "a drained one stays out");
    }

    #[test]
    fn without_panic_nobody_is_left() {
        let mut strict = with_outlier();
        strict.outlier = strict.outlier.map(|outlier| Outlier { ejected_max: "100%".parse().unwrap(), ..outlier });
        strict.panic = "0%".parse().unwrap();
        let upstream = upstream(strict, &[1, 1]);
        fail(&upstream, 0);
        fail(&upstream, 1);
        assert_eq!(upstream.choose(&Ask::default()).err(), Some(NoEndpoint::AllUnhealthy));
    }

    #[test]
    fn an_endpoint_that_is_back_gets_a_growing_share() {
        let mut rules = with_outlier();
        rules.slow_start = Duration::from_secs(10);
        let upstream = upstream(rules, &[1, 1]);
        fail(&upstream, 0);
        let back = upstream.members.load().due().unwrap();
        let share = |now: u64| {
            let members = upstream.members.load().again(&upstream.rules, now);
            let turns = members.turns.iter().filter(|turn| **turn == 0).count();
            (turns * 100 / members.turns.len(), members.due())
        };
        assert_eq!(share(back - 1), (0, Some(back)));
        assert_eq!(share(back), (9, Some(back + 1_000)), "a tenth of its weight");
        assert_eq!(share(back + 5_500), (33, Some(back + 6_000)), "half");
        assert_eq!(share(back + 10_000), (50, None));
    }
}
