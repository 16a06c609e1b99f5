//! Upstreams and their endpoints.

use std::fmt::Display;

use super::Page;
use crate::plan::Plan;
use crate::upstream::{EndpointStatus, TrafficStatus};

pub(super) fn write(page: &mut Page, plan: &Plan) {
    let mut upstreams: Vec<_> = plan.upstreams.iter().collect();
    upstreams.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    let known: Vec<(&str, bool, Vec<EndpointStatus>)> =
        upstreams.iter().map(|upstream| (&*upstream.name, upstream.is_panicking(), upstream.endpoints())).collect();

    page.family("selvedge_upstream_panic", "gauge", "1 while so few endpoints are well that all are used.");
    for (name, panicking, _) in &known {
        page.sample("selvedge_upstream_panic", &[("upstream", name)], u8::from(*panicking));
    }
    let mut traffic = |name: &str, kind: &str, help: &str, value: fn(TrafficStatus) -> u64| {
        page.family(name, kind, help);
        for upstream in &upstreams {
            page.sample(name, &[("upstream", &upstream.name)], value(upstream.traffic()));
        }
    };
    traffic("selvedge_upstream_waiting", "gauge", "Requests that wait for room at the upstream.", |one| {
        u64::from(one.waiting)
    });
    traffic("selvedge_upstream_refused_total", "counter", "Requests there was no room for.", |one| one.refused);
    traffic("selvedge_upstream_retries_total", "counter", "Attempts after a request's first.", |one| one.retries);
    traffic(
        "selvedge_upstream_retries_refused_total",
        "counter",
        "Retries that were not made because the budget was used up.",
        |one| one.retries_refused,
    );
    traffic(
        "selvedge_upstream_hedges_total",
        "counter",
        "Requests sent to a second endpoint because the first was silent.",
        |one| one.hedges,
    );
    traffic("selvedge_upstream_hedges_won_total", "counter", "Those that the second endpoint answered.", |one| {
        one.hedges_won
    });
    traffic(
        "selvedge_upstream_hedges_refused_total",
        "counter",
        "Those that were not sent: no budget, or no other endpoint with room.",
        |one| one.hedges_refused,
    );
    let after = "selvedge_upstream_hedge_after_seconds";
    page.family(after, "gauge", "How long an endpoint may be silent, where that is what most answers need.");
    for upstream in &upstreams {
        if let Some(known) = upstream.traffic().hedge_after {
            page.sample(after, &[("upstream", &upstream.name)], known.as_secs_f64());
        }
    }
    page.family("selvedge_upstream_dns_failures_total", "counter", "Look-ups of endpoints' names that failed.");
    page.sample("selvedge_upstream_dns_failures_total", &[], plan.failed_lookups());

    let mut family = |name: &str, kind: &str, help: &str, value: &dyn Fn(&EndpointStatus) -> Box<dyn Display>| {
        page.family(name, kind, help);
        for (upstream, _, endpoints) in &known {
            for endpoint in endpoints {
                let labels = [("upstream", *upstream), ("endpoint", &endpoint.address.to_string())];
                page.sample(name, &labels, value(endpoint));
            }
        }
    };
    let flag = |on: bool| -> Box<dyn Display> { Box::new(u8::from(on)) };
    family("selvedge_upstream_endpoint_in_use", "gauge", "1 if the endpoint is sent new requests.", &|one| {
        flag(one.in_use)
    });
    family("selvedge_upstream_endpoint_healthy", "gauge", "0 if checks find the endpoint unwell.", &|one| {
        flag(one.healthy != Some(false))
    });
    family("selvedge_upstream_endpoint_ejected", "gauge", "1 if the endpoint is left out for its failures.", &|one| {
        flag(one.ejected)
    });
    family(
        "selvedge_upstream_ejections_total",
        "counter",
        "How often the endpoint was left out for its failures.",
        &|one| Box::new(one.ejections),
    );
    family("selvedge_upstream_endpoint_draining", "gauge", "1 if an operator drains the endpoint.", &|one| {
        flag(one.draining)
    });
    family("selvedge_upstream_requests_in_flight", "gauge", "Requests and connections at the endpoint.", &|one| {
        Box::new(one.in_flight)
    });
    family("selvedge_upstream_requests_total", "counter", "Requests and connections sent to the endpoint.", &|one| {
        Box::new(one.requests)
    });
    family(
        "selvedge_upstream_failures_total",
        "counter",
        "Those that failed, or were answered 500 or above.",
        &|one| Box::new(one.failures),
    );
    family("selvedge_upstream_checks_total", "counter", "Health checks of the endpoint.", &|one| Box::new(one.checks));
    family("selvedge_upstream_failed_checks_total", "counter", "Health checks that failed.", &|one| {
        Box::new(one.failed_checks)
    });
}
