//! Counters, gauges and histograms in the host's registry.
//!
//! Defining a metric costs a call to the host, so do it in `Filter::new` and keep the handle. The same name is the same metric,
//! in every worker. The host prefixes names as it sees fit.

use crate::host::{self, MetricKind};

/// Only ever grows.
#[derive(Clone, Copy, Debug)]
pub struct Counter(Option<u32>);

/// Goes up and down.
#[derive(Clone, Copy, Debug)]
pub struct Gauge(Option<u32>);

/// Counts values by size.
#[derive(Clone, Copy, Debug)]
pub struct Histogram(Option<u32>);

/// The counter of that name.
pub fn counter(name: &str) -> Counter {
    Counter(define(MetricKind::Counter, name))
}

/// The gauge of that name.
pub fn gauge(name: &str) -> Gauge {
    Gauge(define(MetricKind::Gauge, name))
}

/// The histogram of that name. Say the unit in the name: `…_milliseconds`.
pub fn histogram(name: &str) -> Histogram {
    Histogram(define(MetricKind::Histogram, name))
}

impl Counter {
    /// Adds `n`; beyond 2^63 - 1 it adds that.
    pub fn inc(self, n: u64) {
        if let Some(id) = self.0 {
            host::current().increment_metric(id, i64::try_from(n).unwrap_or(i64::MAX));
        }
    }
}

impl Gauge {
    /// Sets the value.
    pub fn set(self, value: u64) {
        record(self.0, value);
    }

    /// Adds `n`, which may be negative.
    pub fn add(self, n: i64) {
        if let Some(id) = self.0 {
            host::current().increment_metric(id, n);
        }
    }
}

impl Histogram {
    /// Counts one value.
    pub fn record(self, value: u64) {
        record(self.0, value);
    }
}

/// A host that refuses a metric must not stop traffic: the handle then does nothing.
fn define(kind: MetricKind, name: &str) -> Option<u32> {
    host::current()
        .define_metric(kind, name)
        .inspect_err(|status| log::warn!("metric {name} could not be defined: {status}"))
        .ok()
}

fn record(id: Option<u32>, value: u64) {
    if let Some(id) = id {
        host::current().record_metric(id, value);
    }
}
