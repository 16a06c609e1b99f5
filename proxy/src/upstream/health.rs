//! Active health: endpoints are asked how they are.
//!
//! ```text
//! unknown --- a check succeeds ---> healthy --- `unhealthy` checks in a row fail ----> unhealthy
//!    |  (taken for `initial`)          <------- `healthy` checks in a row succeed ---
//!    '--- a check fails: stays unknown, or is healthy with one failure where it is taken for healthy
//! ```

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use selvedge_config::{HealthCheck, InitialHealth};
use tokio::task::{AbortHandle, JoinSet};

use super::clock::{self, millis};
use super::endpoint::{Endpoint, EndpointId};
use super::{Upstream, probe};

/// What checks say about an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    Unknown,
    Healthy,
    Unhealthy,
}

/// What checks have found. Written by the one task that checks the endpoint.
#[derive(Debug, Default)]
pub(super) struct Checks {
    health: AtomicU8,
    /// Checks in a row that speak for a change.
    streak: AtomicU32,
    /// When the last one ended; 0 = there was none.
    at: AtomicU64,
    total: AtomicU64,
    failed: AtomicU64,
    failure: Mutex<Option<String>>,
}

impl Checks {
    pub(super) fn health(&self) -> Health {
        match self.health.load(Relaxed) {
            0 => Health::Unknown,
            1 => Health::Healthy,
            _ => Health::Unhealthy,
        }
    }

    /// Whether requests may be sent there, by this rule.
    pub(super) fn is_well(&self, rule: &HealthCheck) -> bool {
        match self.health() {
            Health::Unknown => rule.initial == InitialHealth::Healthy,
            known => known == Health::Healthy,
        }
    }

    /// How many there were, and how many of them failed.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.total.load(Relaxed), self.failed.load(Relaxed))
    }

    /// What the last one failed of, if it failed.
    pub(super) fn failure(&self) -> Option<String> {
        self.failure.lock().clone()
    }

    /// Notes the outcome of a check; true when it changes whether requests may be sent there.
    pub(super) fn note(&self, rule: &HealthCheck, outcome: &Result<(), String>, now: u64) -> bool {
        let before = self.is_well(rule);
        let (health, streak) = next(rule, self.health(), self.streak.load(Relaxed), outcome.is_ok());
        let number = match health {
            Health::Unknown => 0,
            Health::Healthy => 1,
            Health::Unhealthy => 2,
        };
        self.health.store(number, Relaxed);
        self.streak.store(streak, Relaxed);
        self.at.store(now, Relaxed);
        self.total.fetch_add(1, Relaxed);
        self.failed.fetch_add(u64::from(outcome.is_err()), Relaxed);
        *self.failure.lock() = outcome.as_ref().err().cloned();
        self.is_well(rule) != before
    }
}

/// The rule: what an endpoint is after a check.
fn next(rule: &HealthCheck, known: Health, streak: u32, passed: bool) -> (Health, u32) {
    let failed_once_more = |streak: u32| match streak + 1 {
        streak if streak >= u32::from(rule.unhealthy) => (Health::Unhealthy, 0),
        streak => (Health::Healthy, streak),
    };
    match (known, passed) {
        (Health::Unknown | Health::Healthy, true) => (Health::Healthy, 0),
        (Health::Unknown, false) if rule.initial == InitialHealth::Unhealthy => (Health::Unknown, 0),
        (Health::Unknown, false) => failed_once_more(0),
        (Health::Healthy, false) => failed_once_more(streak),
        (Health::Unhealthy, false) => (Health::Unhealthy, 0),
        (Health::Unhealthy, true) if streak + 1 >= u32::from(rule.healthy) => (Health::Healthy, 0),
        (Health::Unhealthy, true) => (Health::Unhealthy, streak + 1),
    }
}

/// The time to the next check: the interval give or take a tenth; `luck` is from 0 to 1.
fn jittered(interval: Duration, luck: f64) -> Duration {
    interval.mul_f64(0.9 + 0.2 * luck)
}

/// Checks the endpoints of an upstream, those of now and those to come, until the upstream is gone.
pub(super) async fn watch(upstream: Weak<Upstream>) {
    let mut checks = JoinSet::new();
    let mut watched: HashMap<EndpointId, (Weak<Endpoint>, AbortHandle)> = HashMap::new();
    let Some(changed) = upstream.upgrade().map(|upstream| Arc::clone(&upstream.changed)) else { return };
    loop {
        let change = changed.notified();
        tokio::pin!(change);
        change.as_mut().enable();
        let endpoints = match upstream.upgrade() {
            Some(upstream) => upstream.members.load().all().to_vec(),
            None => return,
        };
        watched.retain(|_, (endpoint, check)| {
            let stays = endpoints.iter().any(|known| std::ptr::eq(Arc::as_ptr(known), endpoint.as_ptr()));
            if !stays {
                check.abort();
            }
            stays
        });
        for endpoint in &endpoints {
            watched.entry(endpoint.id()).or_insert_with(|| {
                let check = checks.spawn(check(Weak::clone(&upstream), Arc::clone(endpoint)));
                (Arc::downgrade(endpoint), check)
            });
        }
        drop(endpoints);
        loop {
            tokio::select! {
                () = &mut change => break,
                Some(_) = checks.join_next() => {} // One that was aborted: nothing is left of it.
            }
        }
    }
}

/// Checks one endpoint again and again. What the task of an earlier plan has found counts: a reload neither repeats checks nor puts them
/// off.
async fn check(upstream: Weak<Upstream>, endpoint: Arc<Endpoint>) {
    let Some(rule) = endpoint.rules().health.clone() else { return };
    let mut wait = match endpoint.state().checks.at.load(Relaxed) {
        0 => Duration::ZERO,
        at => Duration::from_millis((at + millis(rule.interval)).saturating_sub(clock::now())),
    };
    loop {
        tokio::time::sleep(wait).await;
        let asked = tokio::time::timeout(rule.timeout, probe::ask(&endpoint, &rule.probe)).await;
        let outcome = asked.unwrap_or_else(|_| Err(format!("no answer in {:?}", rule.timeout)));
        let Some(upstream) = upstream.upgrade() else { return };
        upstream.checked(&endpoint, &rule, &outcome);
        drop(upstream);
        wait = jittered(rule.interval, fastrand::f64());
    }
}

#[cfg(test)]
mod tests {
    use selvedge_config::{Probe, TcpProbe};

    use super::*;

    fn rule(initial: InitialHealth) -> HealthCheck {
        HealthCheck {
            probe: Probe::Tcp(TcpProbe {}),
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            healthy: 2,
            unhealthy: 3,
            initial,
        }
    }

    /// Whether requests may be sent there after each check; `+` succeeds, `-` fails.
    fn course(initial: InitialHealth, checks: &str) -> String {
        let (rule, known) = (rule(initial), Checks::default());
        let outcomes = checks.chars().map(|check| if check == '+' { Ok(()) } else { Err(String::new()) });
        outcomes
            .map(|outcome| {
                known.note(&rule, &outcome, 1);
                if known.is_well(&rule) { 'y' } else { 'n' }
            })
            .collect()
    }

    #[test]
    fn health_follows_the_thresholds() {
        use InitialHealth::{Healthy, Unhealthy};
        for (initial, checks, expected) in [
            (Healthy, "+--+---+-++-", "yyyyyynnnnyy"),
            (Healthy, "---", "yyn"),
            (Healthy, "--+--+", "yyyyyy"),
            (Unhealthy, "--+", "nny"),
            (Unhealthy, "+---++", "yyynny"),
            (Unhealthy, "+", "y"),
        ] {
            assert_eq!(course(initial, checks), expected, "{initial:?} {checks}");
        }
    }

    #[test]
    fn only_a_change_is_told() {
        let (rule, checks) = (rule(InitialHealth::Healthy), Checks::default());
        let failed = Err("refused".to_owned());
        assert_eq!([1, 2, 3, 4].map(|now| checks.note(&rule, &failed, now)), [false, false, true, false]);
        assert_eq!(checks.failure().as_deref(), Some("refused"));
        assert_eq!([5, 6, 7].map(|now| checks.note(&rule, &Ok(()), now)), [false, true, false]);
        assert_eq!((checks.counts(), checks.failure()), ((7, 4), None));
    }

    #[test]
    fn intervals_differ_by_a_tenth_at_most() {
        let interval = Duration::from_secs(10);
        for (luck, millis) in [(0.0, 9_000), (0.5, 10_000), (1.0, 11_000)] {
            assert_eq!(jittered(interval, luck).as_millis(), millis);
        }
    }
}
