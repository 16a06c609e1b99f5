//! The page of metrics, in the Prometheus text format 0.0.4.
//!
//! What filters define themselves comes as `selvedge_filter_custom_NAME`; letters that Prometheus does not allow in a name become `_`, and
//! then the label `metric` holds the name as the filter wrote it. (Envoy puts `wasmcustom.` before it.) Labels in a name
//! (`hits;result=allow`, see [`Series`]) become labels.

mod cache;
mod certificates;
mod cluster;
mod compress;
mod disks;
mod purges;
mod upstreams;

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::sync::Arc;
use std::time::Duration;

use selvedge_wasm::{Metric, MetricValue, Series, StatsSnapshot};

use super::counters::Observed;
use crate::plan::Plan;
use crate::purge::StreamUsage;
use crate::tls::CertificateStore;

/// Everything there is to know now.
pub(crate) fn page(
    observed: &Observed,
    plan: &Plan,
    stream: Option<(StreamUsage, bool)>,
    certificates: &[(String, Arc<CertificateStore>)],
) -> String {
    let mut page = Page::default();
    node(&mut page, observed, plan.generation);
    certificates::write(&mut page, &observed.counters.handshakes, certificates);
    upstreams::write(&mut page, plan);
    if let Some(cache) = plan.cache {
        cache::write(&mut page, cache, &plan.counters);
        disks::write(&mut page, &cache.disks());
        purges::write(&mut page, cache);
    }
    compress::write(&mut page, &plan.counters);
    if let Some((usage, over_redis)) = stream {
        purges::stream(&mut page, &usage, over_redis);
    }
    cluster::write(&mut page, plan);
    filters(&mut page, observed);
    shared(&mut page, observed);
    custom(&mut page, observed.metrics.snapshot());
    page.0
}

fn node(page: &mut Page, observed: &Observed, generation: u64) {
    page.family("selvedge_build_info", "gauge", "Always 1: the label is the version.");
    page.sample("selvedge_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    page.family("selvedge_plan_generation", "gauge", "The configuration in force: counts the loads of this process.");
    page.sample("selvedge_plan_generation", &[], generation);
    page.family(
        "selvedge_connections_refused_total",
        "counter",
        "Connections closed at once because there was no room, by the limit of the listener.",
    );
    for (limit, count) in observed.counters.refused_connections() {
        page.sample("selvedge_connections_refused_total", &[("limit", limit)], count);
    }
    let [sent, dropped] = observed.counters.mirrors();
    page.family("selvedge_mirrored_requests_total", "counter", "Copies of requests, and those that were not made.");
    page.sample("selvedge_mirrored_requests_total", &[("result", "sent")], sent);
    page.sample("selvedge_mirrored_requests_total", &[("result", "dropped")], dropped);
    let [fetched, left] = observed.counters.refreshes();
    let help = "URLs that a change has put out of date: fetched anew at once, and left to who asks next.";
    page.family("selvedge_cache_refreshes_total", "counter", help);
    page.sample("selvedge_cache_refreshes_total", &[("result", "fetched")], fetched);
    page.sample("selvedge_cache_refreshes_total", &[("result", "left")], left);
    let help = "What clients sent beyond a limit of a listener, by its key.";
    page.family("selvedge_limit_exceeded_total", "counter", help);
    for (limit, count) in observed.counters.limits() {
        page.sample("selvedge_limit_exceeded_total", &[("limit", limit)], count);
    }
    let help = "Connections closed because no PROXY protocol header was accepted, by reason.";
    page.family("selvedge_proxy_protocol_refused_total", "counter", help);
    for (reason, count) in observed.counters.all_unintroduced() {
        page.sample("selvedge_proxy_protocol_refused_total", &[("reason", reason)], count);
    }
    let (reloads, since) = observed.counters.reloads();
    page.family(
        "selvedge_config_reloads_total",
        "counter",
        "Reloads and roll-backs; failed: the old configuration stayed.",
    );
    for (result, count) in reloads {
        page.sample("selvedge_config_reloads_total", &[("result", result)], count);
    }
    page.family(
        "selvedge_config_since_seconds",
        "gauge",
        "When the configuration in force came into force (Unix time).",
    );
    page.sample("selvedge_config_since_seconds", &[], since);
    page.family(
        "selvedge_requests_total",
        "counter",
        "Finished requests by class of status; none: no response was sent.",
    );
    for (class, count) in observed.counters.requests() {
        page.sample("selvedge_requests_total", &[("class", class)], count);
    }
}

fn filters(page: &mut Page, observed: &Observed) {
    let filters: Vec<(String, StatsSnapshot)> =
        observed.counters.filters().into_iter().map(|(name, stats)| (name, stats.snapshot())).collect();

    page.family("selvedge_filter_callbacks_total", "counter", "Guest calls, by callback.");
    for (filter, stats) in &filters {
        for callback in &stats.callbacks {
            let labels = [("filter", filter.as_str()), ("callback", callback.callback)];
            page.sample("selvedge_filter_callbacks_total", &labels, callback.calls);
        }
    }

    let help = "Guest calls that failed: trap, cpu and deadline (out of time), memory, hostcalls (budget), crowded.";
    page.family("selvedge_filter_failures_total", "counter", help);
    for (filter, stats) in &filters {
        for callback in &stats.callbacks {
            for (reason, count) in callback.failures.iter().filter(|(_, count)| *count > 0) {
                let labels = [("filter", filter.as_str()), ("callback", callback.callback), ("reason", *reason)];
                page.sample("selvedge_filter_failures_total", &labels, count);
            }
        }
    }

    let name = "selvedge_filter_callback_duration_seconds";
    page.family(name, "histogram", "How long guest calls take; one call in 16 is measured.");
    for (filter, stats) in &filters {
        for callback in &stats.callbacks {
            let labels = [("filter", filter.as_str()), ("callback", callback.callback)];
            let buckets = callback.durations.iter().map(|(bound, count)| (bound.map(seconds), *count));
            page.histogram(name, &labels, buckets, seconds(callback.measured));
        }
    }

    type Count = fn(&StatsSnapshot) -> u64;
    let counts: [(&str, &str, Count); 5] = [
        ("selvedge_filter_vm_starts_total", "VMs that came to serve.", |stats| stats.vm_starts),
        ("selvedge_filter_vm_start_failures_total", "VMs that failed to start.", |stats| stats.vm_start_failures),
        ("selvedge_filter_rejections_total", "Streams refused because the filter failed too often lately.", |stats| {
            stats.vm_rejections
        }),
        ("selvedge_filter_local_replies_total", "Replies that filters made.", |stats| stats.local_replies),
        (
            "selvedge_filter_hostcalls_refused_total",
            "Hostcalls with arguments that make no sense, or that failed.",
            |stats| stats.hostcalls_refused,
        ),
    ];
    for (name, help, count) in counts {
        page.family(name, "counter", help);
        for (filter, stats) in &filters {
            page.sample(name, &[("filter", filter)], count(stats));
        }
    }

    page.family("selvedge_filter_callouts_total", "counter", "HTTP calls that filters made, by how they ended.");
    for (filter, stats) in &filters {
        for (result, count) in stats.callouts.iter().filter(|(_, count)| *count > 0) {
            page.sample("selvedge_filter_callouts_total", &[("filter", filter), ("result", result)], count);
        }
    }
}

fn shared(page: &mut Page, observed: &Observed) {
    let spaces = observed.shared.sizes();
    page.family("selvedge_shared_data_keys", "gauge", "Keys in the shared data of a filter.");
    for space in &spaces {
        page.sample("selvedge_shared_data_keys", &[("vm_id", &space.vm_id)], space.keys);
    }
    page.family("selvedge_shared_data_bytes", "gauge", "Bytes of keys and values in the shared data of a filter.");
    for space in &spaces {
        page.sample("selvedge_shared_data_bytes", &[("vm_id", &space.vm_id)], space.bytes);
    }

    let queues = observed.queues.sizes();
    page.family("selvedge_queue_items", "gauge", "Items that wait in a shared queue.");
    for queue in &queues {
        page.sample("selvedge_queue_items", &[("vm_id", &queue.vm_id), ("queue", &queue.name)], queue.items);
    }
    page.family("selvedge_queue_bytes", "gauge", "Bytes that wait in a shared queue.");
    for queue in &queues {
        page.sample("selvedge_queue_bytes", &[("vm_id", &queue.vm_id), ("queue", &queue.name)], queue.bytes);
    }
    page.family("selvedge_queue_enqueued_total", "counter", "Items ever put into a shared queue.");
    for queue in &queues {
        let labels = [("vm_id", queue.vm_id.as_str()), ("queue", queue.name.as_str())];
        page.sample("selvedge_queue_enqueued_total", &labels, queue.enqueued);
    }
    page.family("selvedge_queue_refused_total", "counter", "Items that a full shared queue refused.");
    for queue in &queues {
        let labels = [("vm_id", queue.vm_id.as_str()), ("queue", queue.name.as_str())];
        page.sample("selvedge_queue_refused_total", &labels, queue.refused);
    }
}

/// What filters define. Names that differ only in letters that are not allowed share a family, if they are of one kind.
fn custom(page: &mut Page, metrics: Vec<Metric>) {
    let mut families: BTreeMap<(String, &'static str), Vec<Metric>> = BTreeMap::new();
    for metric in metrics {
        let kind = match metric.value {
            MetricValue::Counter(_) => "counter",
            MetricValue::Gauge(_) => "gauge",
            MetricValue::Histogram { .. } => "histogram",
        };
        let name = Series::parse(&metric.name).map_or(&*metric.name, |series| series.name);
        families.entry((allowed(name), kind)).or_default().push(metric);
    }
    let mut taken = String::new();
    for ((name, kind), metrics) in families {
        // A family has one kind: the second one of a name gets another name.
        let family = if taken == name { format!("{name}_{kind}") } else { name.clone() };
        taken = name;
        page.family(&family, kind, "Defined by a filter.");
        for metric in metrics {
            let series = Series::parse(&metric.name).unwrap_or(Series { name: &metric.name, labels: Vec::new() });
            let renamed = family != format!("{CUSTOM}{}", series.name);
            let original = renamed.then_some(("metric", series.name));
            let labels = series.labels.iter().map(|(label, value)| (*label, &**value));
            let labels: Vec<(&str, &str)> = original.into_iter().chain(labels).collect();
            let labels = labels.as_slice();
            match metric.value {
                MetricValue::Counter(value) => page.sample(&family, labels, value),
                MetricValue::Gauge(value) => page.sample(&family, labels, value),
                MetricValue::Histogram { sum, buckets, .. } => {
                    let buckets = buckets.into_iter().map(|(bound, count)| (Some(bound), count));
                    page.histogram(&family, labels, buckets, sum);
                }
            }
        }
    }
}

/// Before the names of what filters define.
const CUSTOM: &str = "selvedge_filter_custom_";

fn allowed(name: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' };
    CUSTOM.chars().chain(name.chars().map(letter)).collect()
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            let _ = write!(self.0, "{before}{label}=\"{}\"", escaped(text));
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    /// `buckets` are `(upper bound, values up to it and above the bound before)`, the largest last; it may have no bound.
    fn histogram<B: Display>(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        buckets: impl Iterator<Item = (Option<B>, u64)>,
        sum: impl Display,
    ) {
        let mut total = 0;
        let bucket = format!("{name}_bucket");
        for (bound, count) in buckets {
            total += count;
            if let Some(bound) = bound {
                let labels: Vec<(&str, &str)> = labels.to_vec();
                let bound = bound.to_string();
                self.sample(&bucket, &[&labels[..], &[("le", bound.as_str())]].concat(), total);
            }
        }
        self.sample(&bucket, &[labels, &[("le", "+Inf")]].concat(), total);
        self.sample(&format!("{name}_sum"), labels, sum);
        self.sample(&format!("{name}_count"), labels, total);
    }
}

/// The text format's escapes of label values.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn custom_page(metrics: Vec<(&str, MetricValue)>) -> String {
        let mut page = Page::default();
        custom(&mut page, metrics.into_iter().map(|(name, value)| Metric { name: name.into(), value }).collect());
        page.0
    }

    #[test]
    fn a_filters_metric_keeps_its_name_where_it_can() {
        let page = custom_page(vec![("hits", MetricValue::Counter(3)), ("hit.rate", MetricValue::Gauge(-2))]);
        assert_eq!(
            page,
            "# HELP selvedge_filter_custom_hit_rate Defined by a filter.\n\
             # TYPE selvedge_filter_custom_hit_rate gauge\n\
             selvedge_filter_custom_hit_rate{metric=\"hit.rate\"} -2\n\
             # HELP selvedge_filter_custom_hits Defined by a filter.\n\
             # TYPE selvedge_filter_custom_hits counter\n\
             selvedge_filter_custom_hits 3\n"
        );
    }

    #[test]
    fn names_that_become_the_same_stay_apart() {
        let page = custom_page(vec![
            ("a.b", MetricValue::Counter(1)),
            ("a-b", MetricValue::Counter(2)),
            ("a b", MetricValue::Gauge(3)),
        ]);
        let samples: Vec<&str> = page.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            samples,
            [
                "selvedge_filter_custom_a_b{metric=\"a.b\"} 1",
                "selvedge_filter_custom_a_b{metric=\"a-b\"} 2",
                "selvedge_filter_custom_a_b_gauge{metric=\"a b\"} 3",
            ]
        );
        assert_eq!(page.matches("# TYPE").count(), 2);
    }

    #[test]
    fn histograms_are_cumulative_and_end_at_infinity() {
        let value = MetricValue::Histogram { count: 3, sum: 10, buckets: vec![(0, 0), (1, 1), (3, 0), (7, 2)] };
        let page = custom_page(vec![("size", value)]);
        let samples: Vec<&str> = page.lines().filter(|line| !line.starts_with('#')).collect();
        let name = "selvedge_filter_custom_size";
        let bucket = |bound: &str, count: u64| format!("{name}_bucket{{le=\"{bound}\"}} {count}");
        let want = [
            bucket("0", 0),
            bucket("1", 1),
            bucket("3", 1),
            bucket("7", 3),
            bucket("+Inf", 3),
            format!("{name}_sum 10"),
            format!("{name}_count 3"),
        ];
        assert_eq!(samples, want);
    }

    #[test]
    fn labels_in_names_become_labels() {
        let page = custom_page(vec![
            ("hits;result=allow;user=a%3Bb", MetricValue::Counter(1)),
            ("hits;result=deny", MetricValue::Counter(2)),
            ("hits", MetricValue::Counter(3)),
            ("hit.rate;result=a\"b", MetricValue::Gauge(4)),
            ("hits;result=", MetricValue::Counter(5)),
            ("size;of=x", MetricValue::Histogram { count: 1, sum: 1, buckets: vec![(0, 0), (1, 1)] }),
        ]);
        let samples: Vec<&str> = page.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            samples,
            [
                "selvedge_filter_custom_hit_rate{metric=\"hit.rate\",result=\"a\\\"b\"} 4",
                "selvedge_filter_custom_hits{result=\"allow\",user=\"a;b\"} 1",
                "selvedge_filter_custom_hits{result=\"deny\"} 2",
                "selvedge_filter_custom_hits 3",
                "selvedge_filter_custom_hits_result_{metric=\"hits;result=\"} 5",
                "selvedge_filter_custom_size_bucket{of=\"x\",le=\"0\"} 0",
                "selvedge_filter_custom_size_bucket{of=\"x\",le=\"1\"} 1",
                "selvedge_filter_custom_size_bucket{of=\"x\",le=\"+Inf\"} 1",
                "selvedge_filter_custom_size_sum{of=\"x\"} 1",
                "selvedge_filter_custom_size_count{of=\"x\"} 1",
            ]
        );
        assert_eq!(page.matches("# TYPE selvedge_filter_custom_hits ").count(), 1);
    }

    #[test]
    fn labels_are_escaped() {
        let page = custom_page(vec![("a\"b\\\n", MetricValue::Counter(1))]);
        assert!(page.ends_with("selvedge_filter_custom_a_b__{metric=\"a\\\"b\\\\\\n\"} 1\n"), "{page}");
    }
}
