//! Metrics that guests define: counters, gauges and histograms by name, process-wide.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use parking_lot::RwLock;

mod series;

pub use self::series::Series;

/// Metrics in one process. A guest that puts request data into names would otherwise grow the registry without end.
pub(crate) const MAX_METRICS: usize = 10_000;
/// Sets of label values that one metric may have, whoever defines them; further ones count as `other`.
pub(crate) const MAX_SERIES: usize = 1000;
/// Bytes of one name.
pub(crate) const MAX_NAME: usize = 1024;

/// What a metric counts, with the ABI's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum MetricKind {
    /// Only grows.
    Counter = 0,
    /// Goes up and down.
    Gauge = 1,
    /// Distribution of recorded values.
    Histogram = 2,
}

impl MetricKind {
    /// The kind of an ABI number, `None` above 2.
    pub(crate) fn from_abi(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Counter,
            1 => Self::Gauge,
            2 => Self::Histogram,
            _ => return None,
        })
    }
}

/// Names a metric within its process. The same name has the same id in every plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MetricId(pub u32);

/// What could not be done with a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MetricError {
    /// No metric has this id.
    #[error("no such metric")]
    Unknown,
    /// The operation does not fit the kind: a counter decremented, a histogram read, a name defined again as another kind.
    #[error("not with this kind of metric")]
    Kind,
    /// The name is empty, longer than 1 KiB or not UTF-8.
    #[error("bad metric name")]
    Name,
}

/// The value of one metric at the moment of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metric {
    /// As the guest named it; with labels, in the one form of a [`Series`].
    pub name: String,
    /// Its value.
    pub value: MetricValue,
}

/// A metric's value by kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetricValue {
    /// Total so far.
    Counter(u64),
    /// Value now.
    Gauge(i64),
    /// Distribution so far.
    Histogram {
        /// Values recorded.
        count: u64,
        /// Their sum (wrapping).
        sum: u64,
        /// `(upper bound inclusive, values at or below it and above the bound before)`: one bucket per power of two, from 1 up to the
        /// largest value seen. Not cumulative.
        buckets: Vec<(u64, u64)>,
    },
}

/// The registry. Values are atomics: recording takes no lock once a VM has defined its metrics.
#[derive(Debug, Default)]
pub struct Metrics {
    registry: RwLock<Registry>,
}

#[derive(Debug, Default)]
struct Registry {
    by_name: HashMap<Box<str>, MetricId>,
    cells: Vec<(Box<str>, Arc<Cell>)>,
    /// Sets of label values by the name before the labels.
    series: HashMap<Box<str>, usize>,
    overflow: Option<MetricId>,
}

/// One metric's numbers.
#[derive(Debug)]
pub(crate) enum Cell {
    Counter(AtomicU64),
    Gauge(AtomicI64),
    Histogram(Box<Histogram>),
    /// Stands for every metric beyond [`MAX_METRICS`]: takes everything, keeps nothing.
    Overflow,
}

#[derive(Debug)]
pub(crate) struct Histogram {
    /// Bucket `i` holds values of `i` significant bits: 0, 1, 2–3, 4–7, ...
    buckets: [AtomicU64; 65],
    sum: AtomicU64,
}

impl Metrics {
    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The id of the metric of this name, made if there is none. Beyond 10 000 metrics all new names share one metric that keeps
    /// nothing and is not in snapshots (a warning is logged once).
    ///
    /// A name may carry labels, see [`Series`]. After 1000 sets of values of one metric, further ones share the series whose values are
    /// all `other` (a warning is logged once for each metric).
    ///
    /// # Errors
    /// [`MetricError::Kind`] when the name is taken by another kind, [`MetricError::Name`] for a name that is empty or too long.
    pub fn define(&self, kind: MetricKind, name: &str) -> Result<MetricId, MetricError> {
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(MetricError::Name);
        }
        let mut registry = self.registry.write();
        let Some(series) = Series::parse(name) else { return registry.define(kind, name) };

        let canonical = series.to_string();
        if registry.by_name.contains_key(&*canonical) {
            return registry.define(kind, &canonical);
        }
        if let Some(overflow) = registry.overflow {
            return Ok(overflow);
        }
        let others = registry.series.entry(series.name.into()).or_default();
        *others += 1;
        match *others {
            ..=MAX_SERIES => registry.define(kind, &canonical),
            others => {
                if others == MAX_SERIES + 1 {
                    let metric = series.name;
                    tracing::warn!(limit = MAX_SERIES, metric, "too many label values: further ones count as `other`");
                }
                registry.define(kind, &series.other().to_string())
            }
        }
    }

    /// Every metric with its value now, in order of definition.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Metric> {
        let registry = self.registry.read();
        registry
            .cells
            .iter()
            .filter_map(|(name, cell)| Some(Metric { name: name.to_string(), value: cell.value()? }))
            .collect()
    }

    pub(crate) fn cell(&self, id: MetricId) -> Option<Arc<Cell>> {
        self.registry.read().cell(id).cloned()
    }
}

impl Registry {
    fn define(&mut self, kind: MetricKind, name: &str) -> Result<MetricId, MetricError> {
        if let Some(&id) = self.by_name.get(name) {
            let taken = self.cell(id).is_some_and(|cell| cell.kind() != Some(kind));
            return if taken { Err(MetricError::Kind) } else { Ok(id) };
        }
        if let Some(overflow) = self.overflow {
            return Ok(overflow);
        }
        let id = MetricId(u32::try_from(self.cells.len()).unwrap_or(u32::MAX));
        if self.cells.len() >= MAX_METRICS {
            tracing::warn!(limit = MAX_METRICS, name, "too many metrics defined by filters: new ones are not kept");
            self.cells.push(("".into(), Arc::new(Cell::Overflow)));
            self.overflow = Some(id);
            return Ok(id);
        }
        self.cells.push((name.into(), Arc::new(Cell::new(kind))));
        self.by_name.insert(name.into(), id);
        Ok(id)
    }

    fn cell(&self, id: MetricId) -> Option<&Arc<Cell>> {
        self.cells.get(usize::try_from(id.0).ok()?).map(|(_, cell)| cell)
    }
}

impl Cell {
    fn new(kind: MetricKind) -> Self {
        match kind {
            MetricKind::Counter => Self::Counter(AtomicU64::new(0)),
            MetricKind::Gauge => Self::Gauge(AtomicI64::new(0)),
            MetricKind::Histogram => Self::Histogram(Box::new(Histogram {
                buckets: [const { AtomicU64::new(0) }; 65],
                sum: AtomicU64::new(0),
            })),
        }
    }

    fn kind(&self) -> Option<MetricKind> {
        match self {
            Self::Counter(_) => Some(MetricKind::Counter),
            Self::Gauge(_) => Some(MetricKind::Gauge),
            Self::Histogram(_) => Some(MetricKind::Histogram),
            Self::Overflow => None,
        }
    }

    /// `proxy_record_metric`: adds to a counter, sets a gauge, records into a histogram.
    pub(crate) fn record(&self, value: u64) {
        match self {
            Self::Counter(total) => drop(total.fetch_add(value, Relaxed)),
            Self::Gauge(now) => now.store(value.cast_signed(), Relaxed),
            Self::Histogram(histogram) => {
                let bits = u64::BITS - value.leading_zeros();
                if let Some(bucket) = usize::try_from(bits).ok().and_then(|bits| histogram.buckets.get(bits)) {
                    bucket.fetch_add(1, Relaxed);
                }
                histogram.sum.fetch_add(value, Relaxed);
            }
            Self::Overflow => {}
        }
    }

    /// `proxy_increment_metric`: a counter only upwards, a gauge both ways, a histogram not at all.
    pub(crate) fn increment(&self, delta: i64) -> Result<(), MetricError> {
        match self {
            Self::Counter(total) => match u64::try_from(delta) {
                Ok(delta) if delta > 0 => drop(total.fetch_add(delta, Relaxed)),
                _ => return Err(MetricError::Kind),
            },
            Self::Gauge(now) => drop(now.fetch_add(delta, Relaxed)),
            Self::Histogram(_) => return Err(MetricError::Kind),
            Self::Overflow => {}
        }
        Ok(())
    }

    /// `proxy_get_metric`.
    pub(crate) fn read(&self) -> Result<u64, MetricError> {
        match self {
            Self::Counter(total) => Ok(total.load(Relaxed)),
            Self::Gauge(now) => Ok(now.load(Relaxed).cast_unsigned()),
            Self::Histogram(_) => Err(MetricError::Kind),
            Self::Overflow => Ok(0),
        }
    }

    fn value(&self) -> Option<MetricValue> {
        Some(match self {
            Self::Counter(total) => MetricValue::Counter(total.load(Relaxed)),
            Self::Gauge(now) => MetricValue::Gauge(now.load(Relaxed)),
            Self::Histogram(histogram) => {
                let mut buckets: Vec<(u64, u64)> = (0u32..)
                    .zip(&histogram.buckets)
                    .map(|(bits, bucket)| {
                        (1u64.checked_shl(bits).map_or(u64::MAX, |bound| bound - 1), bucket.load(Relaxed))
                    })
                    .collect();
                let used = buckets.iter().rposition(|(_, count)| *count > 0).map_or(0, |last| last + 1);
                buckets.truncate(used);
                let count = buckets.iter().map(|(_, count)| count).sum();
                MetricValue::Histogram { count, sum: histogram.sum.load(Relaxed), buckets }
            }
            Self::Overflow => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(metrics: &Metrics, kind: MetricKind, name: &str) -> Arc<Cell> {
        metrics.cell(metrics.define(kind, name).unwrap()).unwrap()
    }

    #[test]
    fn the_same_name_is_the_same_metric() {
        let metrics = Metrics::new();
        let first = metrics.define(MetricKind::Counter, "hits").unwrap();
        assert_eq!(metrics.define(MetricKind::Counter, "hits"), Ok(first));
        assert_eq!(metrics.define(MetricKind::Gauge, "hits"), Err(MetricError::Kind));
        assert_eq!(metrics.define(MetricKind::Gauge, ""), Err(MetricError::Name));
    }

    #[test]
    fn each_kind_takes_what_fits_it() {
        let metrics = Metrics::new();
        let counter = cell(&metrics, MetricKind::Counter, "c");
        counter.record(2);
        assert_eq!(
            (counter.increment(3), counter.increment(0), counter.increment(-1)),
            (Ok(()), Err(MetricError::Kind), Err(MetricError::Kind))
        );
        assert_eq!(counter.read(), Ok(5));

        let gauge = cell(&metrics, MetricKind::Gauge, "g");
        gauge.record(5);
        gauge.increment(-7).unwrap();
        assert_eq!(gauge.read().map(u64::cast_signed), Ok(-2));

        let histogram = cell(&metrics, MetricKind::Histogram, "h");
        for value in [0, 1, 2, 3, 900] {
            histogram.record(value);
        }
        assert_eq!((histogram.increment(1), histogram.read()), (Err(MetricError::Kind), Err(MetricError::Kind)));

        let values: Vec<_> = metrics.snapshot().into_iter().map(|metric| metric.value).collect();
        assert_eq!(values[..2], [MetricValue::Counter(5), MetricValue::Gauge(-2)]);
        let MetricValue::Histogram { count: 5, sum: 906, buckets } = &values[2] else { panic!("{values:?}") };
        assert_eq!(buckets[..3], [(0, 1), (1, 1), (3, 2)]);
        assert_eq!(buckets.last(), Some(&(1023, 1)));
    }

    #[test]
    fn too_many_metrics_share_one_that_keeps_nothing() {
        let metrics = Metrics::new();
        for name in 0..MAX_METRICS {
            metrics.define(MetricKind::Counter, &name.to_string()).unwrap();
        }
        let over = cell(&metrics, MetricKind::Counter, "one more");
        over.record(1);
        assert_eq!(over.read(), Ok(0));
        assert_eq!(metrics.define(MetricKind::Gauge, "and more"), metrics.define(MetricKind::Counter, "and more"));
        assert_eq!(metrics.snapshot().len(), MAX_METRICS);
    }

    #[test]
    fn labels_have_one_form_and_a_bound_for_each_metric() {
        let metrics = Metrics::new();
        let first = metrics.define(MetricKind::Counter, "hits;b=2;a=1");
        assert_eq!(metrics.define(MetricKind::Counter, "hits;a=1;b=%32"), first, "the same series");
        assert_eq!(metrics.define(MetricKind::Gauge, "hits;a=1;b=2"), Err(MetricError::Kind));

        for user in 1..MAX_SERIES {
            metrics.define(MetricKind::Counter, &format!("hits;user={user}")).unwrap();
        }
        cell(&metrics, MetricKind::Counter, "hits;user=one more").record(1);
        cell(&metrics, MetricKind::Counter, "hits;user=and more").record(1);
        assert_eq!(cell(&metrics, MetricKind::Counter, "hits;user=other").read(), Ok(2));
        assert_eq!(metrics.define(MetricKind::Counter, "hits;a=1;b=2"), first, "those before stay");
        cell(&metrics, MetricKind::Counter, "misses;user=one more").record(1);
        let last: Vec<_> = metrics.snapshot().into_iter().rev().take(2).map(|metric| metric.name).collect();
        assert_eq!(last, ["misses;user=one more", "hits;user=other"]);
    }
}
