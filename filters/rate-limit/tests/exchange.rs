//! The filter on a host: what a client sees.

use std::time::Duration;

use selvedge_filter_rate_limit::RateLimit;
use selvedge_sdk_testing::{Outcome, Tester};
use serde_json::{Value, json};

fn values<'a>(outcome: &'a Outcome, name: &str) -> Vec<&'a str> {
    let values = outcome.headers().iter().filter(|(other, _)| other == name);
    values.map(|(_, value)| std::str::from_utf8(value).unwrap_or_default()).collect()
}

#[selvedge_sdk::test]
fn after_the_burst_comes_429_and_after_the_wait_a_request_passes(tester: Tester<RateLimit>) {
    let tester = tester.config(json!({ "rate": "100/min", "burst": 20, "legacy_headers": true }));
    for left in (0..20).rev() {
        let outcome = tester.get("/").send();
        assert_eq!(outcome.status(), 200);
        assert_eq!(values(&outcome, "ratelimit-policy"), ["\"default\";q=100;w=60"]);
        assert!(outcome.header("ratelimit").unwrap().starts_with(&format!("\"default\";r={left};t=")));
        assert_eq!(outcome.header("x-ratelimit-remaining"), Some(left.to_string().as_str()));
    }

    let refused = tester.get("/").send();
    assert_eq!((refused.status(), refused.header("retry-after")), (429, Some("1")));
    assert!(refused.upstream().is_none());
    assert_eq!(refused.header("content-type"), Some("application/problem+json"));
    assert_eq!(refused.json::<Value>()["status"], 429);
    // Once each, although the refusal passes through the filter's own response hook.
    assert_eq!(values(&refused, "ratelimit"), ["\"default\";r=0;t=1"]);
    assert_eq!(values(&refused, "x-ratelimit-remaining"), ["0"]);
    assert_eq!(tester.metric("rate_limit_limited_total"), 1);

    tester.advance(Duration::from_secs(1));
    assert_eq!(tester.get("/").send().status(), 200);
    assert_eq!(tester.get("/").send().status(), 429);
}

#[selvedge_sdk::test]
fn each_key_has_its_own_bucket_and_those_without_share_one(tester: Tester<RateLimit>) {
    let tester = tester.config(json!({ "rate": "1/h", "key": { "header": "x-api-key" } }));
    for (key, status) in
        [(Some("a"), 200), (Some("b"), 200), (Some("a"), 429), (None, 200), (None, 429), (Some("c"), 200)]
    {
        let request = tester.get("/");
        let request = if let Some(key) = key { request.header("x-api-key", key) } else { request };
        assert_eq!(request.send().status(), status, "{key:?}");
    }
}

#[selvedge_sdk::test]
fn a_missing_key_is_handled_as_configured(fresh: Tester<RateLimit>) {
    for (missing, statuses) in [("allow", [200, 200]), ("share", [200, 429]), ("deny", [403, 403])] {
        let config = json!({ "rate": "1/h", "key": { "header": "x-api-key" }, "missing": missing });
        let tester = fresh.another().config(config);
        let seen = [tester.get("/").send(), tester.get("/").send()];
        assert_eq!(seen.each_ref().map(Outcome::status), statuses, "{missing}");
        if missing == "allow" {
            assert_eq!(seen[0].header("ratelimit"), None, "nothing was counted");
        }
    }
}

#[selvedge_sdk::test]
fn limits_of_an_origin_are_kept_beside_ours(tester: Tester<RateLimit>) {
    let tester = tester
        .config(json!({ "rate": "5/s", "name": "edge" }))
        .origin(|_| selvedge_sdk::Reply::new(200).header("ratelimit", "\"app\";r=3;t=9"));
    assert_eq!(values(&tester.get("/").send(), "ratelimit"), ["\"app\";r=3;t=9", "\"edge\";r=4;t=1"]);
}

#[selvedge_sdk::test]
fn a_faulty_configuration_does_not_start(fresh: Tester<RateLimit>) {
    for (config, part) in [
        (json!({}), "rate"),
        (json!({ "rate": "often" }), "rate"),
        (json!({ "rate": "1/s", "burst": 0 }), "burst"),
        (json!({ "rate": "1/s", "brust": 1 }), "brust"),
    ] {
        let error = fresh.another().config(config.clone()).start().unwrap_err();
        assert!(error.contains(part), "{config}: {error}");
    }
}

/// The example in the crate's documentation, read by the proxy's own loader.
#[test]
fn the_documented_example_starts() {
    let source = include_str!("../src/lib.rs");
    let example = source.split("//! ```").nth(1).unwrap().lines().skip(1).map(|line| line.trim_start_matches("//! "));
    let rest = "version: 1\nlisteners: { web: { bind: 127.0.0.1:0 } }\nupstreams: { demo: { builtin: demo } }\n\
        sites: [{ hosts: [a.test], routes: [{ to: demo }] }]\n";
    let text = format!("{}\n{rest}", example.collect::<Vec<_>>().join("\n"));

    let loader = selvedge_config::Loader::new().builtin_filters(&["rate-limit"]);
    let loaded = loader.load_str("example.yaml", &text).unwrap_or_else(|report| panic!("{report}"));
    let filter = loaded.config.filters.values().next().unwrap();
    Tester::<RateLimit>::native().config(filter.config.clone()).start().unwrap();
}
