//! Counters, gauges and histograms in the host's registry, with labels.
//!
//! ```
//! use selvedge_sdk::prelude::*;
//!
//! #[derive(Metrics)]
//! #[metrics(prefix = "api_key_")]
//! struct Stats {
//!     /// What became of requests.
//!     #[labels("result")]
//!     decisions: Counter<1>,
//!     /// How long the service that knows the keys takes.
//!     authz_milliseconds: Histogram,
//! }
//!
//! # fn example() {
//! let stats = Stats::define(); // in `Filter::new`: once per VM
//! stats.decisions.inc(["allow"]);
//! let timer = stats.authz_milliseconds.start();
//! // ...
//! timer.stop();
//! # }
//! ```
//!
//! Defining a metric costs a call to the host, so do it in `Filter::new` and keep the handle; handles are small and can be copied. The
//! same name is the same metric, in every worker and in every filter of the host: give yours a prefix. The host prefixes names as it
//! sees fit. A host that refuses a metric does not stop traffic: it is logged, and the handle does nothing.
//!
//! **Labels** are part of the name that the host is given, as Graphite writes them: `api_key_decisions;result=allow`. Selvedge makes them
//! labels of Prometheus; on Envoy the series are apart by their names, and `stats_tags` make labels of them. A series is defined when it
//! is first used. A metric has at most 256 of them in one VM: what comes beyond is counted with `other` for every value, so a value that
//! clients choose costs no more than that. An empty value is `none`, a long one is cut after 128 bytes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, SystemTime};

pub use selvedge_sdk_macros::Metrics;

use crate::host::{self, MetricKind};

/// Series that one metric may have in one VM; the rest is `other`.
const MAX_SERIES: usize = 256;
/// The longest value of a label, in bytes.
const MAX_VALUE: usize = 128;

/// Only ever grows. `N` is how many labels it has.
#[derive(Clone, Copy, Debug)]
pub struct Counter<const N: usize = 0>(Option<u32>);

/// Goes up and down. `N` is how many labels it has.
#[derive(Clone, Copy, Debug)]
pub struct Gauge<const N: usize = 0>(Option<u32>);

/// Counts values by size. `N` is how many labels it has.
#[derive(Clone, Copy, Debug)]
pub struct Histogram<const N: usize = 0> {
    id: Option<u32>,
    unit: Unit,
}

/// All metrics of a filter; `#[derive(Metrics)]` for a struct whose fields are [`Counter`]s, [`Gauge`]s and [`Histogram`]s.
///
/// A metric is named as its field, behind `#[metrics(prefix = "…")]` of the struct, or as `#[metric(name = "…")]` says. Its labels are
/// in `#[labels("…", "…")]`: as many as its type has. Names are checked when the filter is compiled.
pub trait Metrics {
    /// Defines each of them at the host.
    fn define() -> Self;
}

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
    Histogram { id: define(MetricKind::Histogram, name), unit: Unit::of(name) }
}

impl<const N: usize> Counter<N> {
    /// The counter of that name with these labels. Letters, digits and `_`, as Prometheus has them.
    pub fn labelled(name: &str, labels: [&str; N]) -> Self {
        Self(family(MetricKind::Counter, name, &labels))
    }

    /// The one with these values of the labels, in their order. Keep it where they do not change.
    pub fn with(self, values: [impl AsRef<str>; N]) -> Counter {
        Counter(series(self.0, &values.each_ref().map(AsRef::as_ref)))
    }
}

impl Counter {
    /// Adds `n`; beyond 2^63 - 1 it adds that. Nothing to add is no call to the host.
    pub fn inc(self, n: u64) {
        if let Some(id) = self.0
            && n > 0
        {
            host::current().increment_metric(id, i64::try_from(n).unwrap_or(i64::MAX));
        }
    }
}

impl<const N: usize> Gauge<N> {
    /// The gauge of that name with these labels. Letters, digits and `_`, as Prometheus has them.
    pub fn labelled(name: &str, labels: [&str; N]) -> Self {
        Self(family(MetricKind::Gauge, name, &labels))
    }

    /// The one with these values of the labels, in their order.
    pub fn with(self, values: [impl AsRef<str>; N]) -> Gauge {
        Gauge(series(self.0, &values.each_ref().map(AsRef::as_ref)))
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

impl<const N: usize> Histogram<N> {
    /// The histogram of that name with these labels. Letters, digits and `_`, as Prometheus has them.
    pub fn labelled(name: &str, labels: [&str; N]) -> Self {
        Self { id: family(MetricKind::Histogram, name, &labels), unit: Unit::of(name) }
    }

    /// The one with these values of the labels, in their order.
    pub fn with(self, values: [impl AsRef<str>; N]) -> Histogram {
        Histogram { id: series(self.id, &values.each_ref().map(AsRef::as_ref)), unit: self.unit }
    }
}

impl Histogram {
    /// Counts one value.
    pub fn record(self, value: u64) {
        record(self.id, value);
    }

    /// Starts to measure time, by the host's clock. It is counted in the unit that the name ends with: `_nanoseconds`, `_microseconds`,
    /// `_milliseconds` or `_seconds`; milliseconds when it says none.
    pub fn start(self) -> Timer {
        Timer { histogram: self, started: host::current().now() }
    }
}

/// Counting one more under labels in one word: `stats.decisions.inc(["allow"])`.
macro_rules! one_more {
    ($($n:literal)*) => {$(
        impl Counter<$n> {
            /// Adds one to the counter with these values of the labels.
            pub fn inc(self, values: [impl AsRef<str>; $n]) {
                self.with(values).inc(1);
            }
        }
    )*};
}
one_more!(1 2 3 4 5 6 7 8);

/// Time that is being measured, see [`Histogram::start`]. It is recorded once: by [`stop`](Timer::stop), or when this is dropped. So what
/// ends early (with `?`, or because the client has gone) is in the histogram too: times of failures are what an operator looks for.
/// [`discard`](Timer::discard) leaves it out.
#[derive(Debug)]
#[must_use = "it measures until it is stopped or dropped, which is at once"]
pub struct Timer {
    histogram: Histogram,
    started: SystemTime,
}

impl Timer {
    /// Records the time since the start, and gives it. A clock that was set back meanwhile counts as no time.
    pub fn stop(mut self) -> Duration {
        let elapsed = self.record();
        self.histogram.id = None;
        elapsed
    }

    /// Records nothing.
    pub fn discard(mut self) {
        self.histogram.id = None;
    }

    fn record(&self) -> Duration {
        let elapsed = host::current().now().duration_since(self.started).unwrap_or_default();
        self.histogram.record(self.histogram.unit.count(elapsed));
        elapsed
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if self.histogram.id.is_some() {
            self.record();
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Nanoseconds,
    Microseconds,
    Milliseconds,
    Seconds,
}

impl Unit {
    fn of(name: &str) -> Self {
        match name.rsplit('_').next() {
            Some("nanoseconds") => Self::Nanoseconds,
            Some("microseconds") => Self::Microseconds,
            Some("seconds") => Self::Seconds,
            _ => Self::Milliseconds,
        }
    }

    fn count(self, time: Duration) -> u64 {
        let count = match self {
            Self::Nanoseconds => time.as_nanos(),
            Self::Microseconds => time.as_micros(),
            Self::Milliseconds => time.as_millis(),
            Self::Seconds => u128::from(time.as_secs()),
        };
        u64::try_from(count).unwrap_or(u64::MAX)
    }
}

/// What `#[derive(Metrics)]` makes a field of.
#[doc(hidden)]
pub trait Handle: Sized {
    /// How many labels it has.
    const LABELS: usize;

    /// Defines it; as many labels as [`LABELS`](Handle::LABELS).
    fn define(name: &str, labels: &[&str]) -> Self;
}

impl<const N: usize> Handle for Counter<N> {
    const LABELS: usize = N;

    fn define(name: &str, labels: &[&str]) -> Self {
        Self(plain_or_family::<N>(MetricKind::Counter, name, labels))
    }
}

impl<const N: usize> Handle for Gauge<N> {
    const LABELS: usize = N;

    fn define(name: &str, labels: &[&str]) -> Self {
        Self(plain_or_family::<N>(MetricKind::Gauge, name, labels))
    }
}

impl<const N: usize> Handle for Histogram<N> {
    const LABELS: usize = N;

    fn define(name: &str, labels: &[&str]) -> Self {
        Self { id: plain_or_family::<N>(MetricKind::Histogram, name, labels), unit: Unit::of(name) }
    }
}

fn plain_or_family<const N: usize>(kind: MetricKind, name: &str, labels: &[&str]) -> Option<u32> {
    if N == 0 { define(kind, name) } else { family(kind, name, labels) }
}

/// A metric with labels: a handle to it is its place in [`FAMILIES`], so that it can be copied.
struct Family {
    kind: MetricKind,
    name: Box<str>,
    labels: Box<[Box<str>]>,
    /// The host's ids, by what follows the name. `None`: refused.
    series: BTreeMap<Box<str>, Option<u32>>,
    /// What follows the name, while it is looked up: no allocation for a series that is known.
    suffix: String,
}

thread_local! {
    static FAMILIES: RefCell<Vec<Family>> = const { RefCell::new(Vec::new()) };
}

fn family(kind: MetricKind, name: &str, labels: &[&str]) -> Option<u32> {
    if !is_name(name) || !labels.iter().all(|label| is_label(label)) || has_twins(labels) {
        log::error!("metric {name} with labels {labels:?} is not defined: names are letters, digits and `_`");
        return None;
    }
    FAMILIES.with_borrow_mut(|families| {
        let known = |family: &Family| {
            // Outside of wasm every test has a host of its own, with its own ids.
            cfg!(target_arch = "wasm32")
                && family.kind == kind
                && *family.name == *name
                && family.labels.iter().map(|label| &**label).eq(labels.iter().copied())
        };
        let place = families.iter().position(known).unwrap_or_else(|| {
            families.push(Family {
                kind,
                name: name.into(),
                labels: labels.iter().map(|&label| label.into()).collect(),
                series: BTreeMap::new(),
                suffix: String::new(),
            });
            families.len() - 1
        });
        u32::try_from(place).ok()
    })
}

fn series(family: Option<u32>, values: &[&str]) -> Option<u32> {
    let place = usize::try_from(family?).ok()?;
    FAMILIES.with_borrow_mut(|families| families.get_mut(place)?.series(values))
}

impl Family {
    fn series(&mut self, values: &[&str]) -> Option<u32> {
        self.write_suffix(values.iter().copied());
        if let Some(id) = self.series.get(&*self.suffix) {
            return *id;
        }
        if self.series.len() >= MAX_SERIES {
            self.write_suffix(values.iter().map(|_| "other"));
            if let Some(id) = self.series.get(&*self.suffix) {
                return *id;
            }
        }
        let id = define(self.kind, &format!("{}{}", self.name, self.suffix));
        self.series.insert(self.suffix.as_str().into(), id);
        id
    }

    fn write_suffix<'v>(&mut self, values: impl Iterator<Item = &'v str>) {
        self.suffix.clear();
        for (label, value) in self.labels.iter().zip(values) {
            self.suffix.push(';');
            self.suffix.push_str(label);
            self.suffix.push('=');
            write_value(&mut self.suffix, value);
        }
    }
}

fn write_value(suffix: &mut String, value: &str) {
    let value = if value.is_empty() { "none" } else { &value[..value.floor_char_boundary(MAX_VALUE)] };
    for letter in value.chars() {
        match letter {
            ';' | '%' | '\0'..='\x1f' | '\x7f' => {
                // Writing to a string does not fail.
                let _ = write!(suffix, "%{:02X}", u32::from(letter));
            }
            letter => suffix.push(letter),
        }
    }
}

fn is_name(name: &str) -> bool {
    !name.starts_with(|first: char| first.is_ascii_digit())
        && !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn is_label(name: &str) -> bool {
    is_name(name) && !name.starts_with("__") && !["le", "quantile", "metric"].contains(&name)
}

fn has_twins(labels: &[&str]) -> bool {
    labels.iter().enumerate().any(|(at, label)| labels[..at].contains(label))
}

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

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    use super::*;
    use crate::host::{Host, Status};

    /// Remembers what it is told.
    #[derive(Default)]
    struct Registry {
        names: RefCell<Vec<String>>,
        counted: RefCell<Vec<(String, i64)>>,
        recorded: RefCell<Vec<(String, u64)>>,
        seconds: Cell<u64>,
    }

    impl Host for Registry {
        fn now(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH + Duration::from_secs(self.seconds.get())
        }

        fn define_metric(&self, _: MetricKind, name: &str) -> Result<u32, Status> {
            let mut names = self.names.borrow_mut();
            assert!(!names.iter().any(|known| known == name), "{name} is defined twice");
            names.push(name.to_owned());
            u32::try_from(names.len() - 1).map_err(|_| Status::BadArgument)
        }

        fn increment_metric(&self, id: u32, offset: i64) {
            self.counted.borrow_mut().push((self.names.borrow()[id as usize].clone(), offset));
        }

        fn record_metric(&self, id: u32, value: u64) {
            self.recorded.borrow_mut().push((self.names.borrow()[id as usize].clone(), value));
        }
    }

    fn with_registry(test: impl FnOnce(&Registry)) {
        let registry = Rc::new(Registry::default());
        let _installed = host::install(registry.clone());
        test(&registry);
    }

    #[test]
    fn a_series_is_defined_when_it_is_first_used_and_once() {
        with_registry(|registry| {
            let decisions = Counter::labelled("decisions", ["result", "tenant"]);
            assert!(registry.names.borrow().is_empty());
            decisions.inc(["allow", "a"]);
            decisions.with(["allow", "a"]).inc(2);
            decisions.inc([String::from("deny"), String::new()]);
            decisions.inc(["a;b%\n\u{e4}", "a"]);
            let expected = [
                ("allow;tenant=a", 1),
                ("allow;tenant=a", 2),
                ("deny;tenant=none", 1),
                ("a%3Bb%25%0A\u{e4};tenant=a", 1),
            ]
            .map(|(suffix, n)| (format!("decisions;result={suffix}"), n));
            assert_eq!(*registry.counted.borrow(), expected);
        });
    }

    #[test]
    fn beyond_the_bound_everything_is_other() {
        with_registry(|registry| {
            let users = Counter::labelled("users", ["name"]);
            for user in 0..MAX_SERIES + 10 {
                users.inc([user.to_string()]);
            }
            users.inc(["1"]);
            assert_eq!(registry.names.borrow().len(), MAX_SERIES + 1);
            let counted = registry.counted.borrow();
            assert_eq!(counted.iter().filter(|(name, _)| name == "users;name=other").count(), 10);
            assert_eq!(counted.last().unwrap().0, "users;name=1", "what was there before goes on");

            let long = "\u{e4}".repeat(100);
            Gauge::labelled("sizes", ["of"]).with([&long]).set(1);
            let name = registry.names.borrow().last().unwrap().clone();
            assert_eq!(name.len(), "sizes;of=".len() + MAX_VALUE);
        });
    }

    #[test]
    fn bad_names_are_not_defined_and_do_nothing() {
        with_registry(|registry| {
            for (name, labels) in [
                ("", ["a", "b"]),
                ("1st", ["a", "b"]),
                ("a b", ["a", "b"]),
                ("a;b", ["a", "b"]),
                ("ok", ["a", "a"]),
                ("ok", ["a", "le"]),
                ("ok", ["a", "__b"]),
                ("ok", ["a", "b-c"]),
            ] {
                Counter::labelled(name, labels).inc(["1", "2"]);
            }
            assert!(registry.names.borrow().is_empty());
        });
    }

    #[test]
    fn a_timer_records_once_in_the_unit_of_the_name() {
        with_registry(|registry| {
            let (plain, seconds) = (histogram("wait"), Histogram::labelled("wait_seconds", ["of"]).with(["x"]));
            let first = plain.start();
            let second = seconds.start();
            let third = plain.start();
            registry.seconds.set(2);
            assert_eq!(first.stop(), Duration::from_secs(2));
            drop(second);
            third.discard();
            let late = plain.start();
            registry.seconds.set(1);
            assert_eq!(late.stop(), Duration::ZERO, "the clock was set back");
            let expected = [("wait", 2000), ("wait_seconds;of=x", 2), ("wait", 0)];
            assert_eq!(*registry.recorded.borrow(), expected.map(|(name, value)| (name.to_owned(), value)));
        });
    }

    #[test]
    fn all_metrics_of_a_filter_are_defined_by_one_derive() {
        #[derive(selvedge_sdk_macros::Metrics)]
        #[metrics(prefix = "demo_")]
        struct Stats {
            plain: Counter,
            #[labels("result", tenant)]
            decisions: Counter<2>,
            #[metric(name = "renamed")]
            inflight: Gauge,
            #[labels("of")]
            wait_seconds: Histogram<1>,
        }

        with_registry(|registry| {
            let stats = Stats::define();
            stats.plain.inc(0);
            stats.plain.inc(1);
            stats.decisions.inc(["allow", "a"]);
            stats.inflight.set(1);
            stats.wait_seconds.with(["x"]).record(3);
            let names = ["demo_plain", "renamed", "demo_decisions;result=allow;tenant=a", "demo_wait_seconds;of=x"];
            assert_eq!(*registry.names.borrow(), names);
            assert_eq!(registry.counted.borrow().len(), 2);
        });
    }
}
