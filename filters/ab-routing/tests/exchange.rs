//! The filter on a host: what a client and an origin see.

use std::collections::BTreeSet;

use selvedge_filter_ab_routing::AbRouting;
use selvedge_sdk::Reply;
use selvedge_sdk_testing::Tester;
use serde_json::{Value, json};

fn tester(extra: Value) -> Tester<AbRouting> {
    let mut config = json!({
        "experiment": "checkout",
        "variants": [{ "name": "control", "weight": 50 }, { "name": "one-page", "weight": 50, "upstream": "next" }],
    });
    for (name, value) in extra.as_object().into_iter().flatten() {
        config[name] = value.clone();
    }
    Tester::<AbRouting>::native().config(config).upstream("next", |_| Reply::new(200))
}

#[test]
fn a_new_user_gets_a_cookie_and_stays_with_it() {
    let tester = tester(json!({}));
    let mut variants = BTreeSet::new();
    for _ in 0..64 {
        let first = tester.get("/").send();
        let cookie = first.header("set-cookie").unwrap();
        let (pair, attributes) = cookie.split_once(';').unwrap();
        assert_eq!(attributes, " Max-Age=2592000; Path=/; SameSite=Lax; HttpOnly");
        let variant = first.upstream().unwrap().header("x-ab-checkout").unwrap().to_owned();
        assert_eq!(pair, format!("ab-checkout={variant}"));
        assert_eq!(first.upstream().unwrap().upstream(), if variant == "one-page" { "next" } else { "" });

        let again = tester.get("/").header("cookie", format!("a=b; {pair}")).send();
        assert_eq!(again.upstream().unwrap().header("x-ab-checkout"), Some(variant.as_str()));
        assert_eq!(again.header("set-cookie"), None);
        variants.insert(variant);
    }
    assert_eq!(variants.len(), 2, "random users spread");
}

#[test]
fn a_variant_that_is_gone_is_replaced() {
    let outcome = tester(json!({})).get("/").header("cookie", "ab-checkout=retired").send();
    assert!(outcome.header("set-cookie").unwrap().starts_with("ab-checkout="));
    assert_ne!(outcome.upstream().unwrap().header("x-ab-checkout"), Some("retired"));
}

#[test]
fn the_same_user_draws_the_same_variant_without_a_cookie() {
    for (user, name, value) in [
        (json!({ "header": "x-user" }), "x-user", "ann"),
        (json!({ "cookie": "session" }), "cookie", "session=ann"),
        (json!("client_ip"), "x-other", "1"),
    ] {
        let tester = tester(json!({ "user": user, "cookie": null }));
        let variants: BTreeSet<_> = (0..16)
            .map(|_| {
                let outcome = tester.get("/").header(name, value).send();
                assert_eq!(outcome.header("set-cookie"), None);
                outcome.upstream().unwrap().header("x-ab-checkout").unwrap().to_owned()
            })
            .collect();
        assert_eq!(variants.len(), 1, "{user}");
    }
}

#[test]
fn a_client_cannot_tell_the_origin_a_variant() {
    let tester = tester(json!({}));
    let request = tester.get("/").header("x-ab-checkout", "admin").header("x_ab_checkout", "admin");
    let outcome = request.header("cookie", "ab-checkout=control").send();
    let seen = outcome.upstream().unwrap();
    assert_eq!((seen.header("x-ab-checkout"), seen.header("x_ab_checkout")), (Some("control"), None));
}

#[test]
fn a_tester_overrides_only_where_that_is_configured() {
    for (config, expected) in [(json!({ "override_header": "X-Try" }), "one-page"), (json!({}), "control")] {
        let tester = tester(config);
        let outcome = tester.get("/").header("x-try", "one-page").header("cookie", "ab-checkout=control").send();
        let seen = outcome.upstream().unwrap();
        assert_eq!((seen.header("x-ab-checkout"), outcome.header("set-cookie")), (Some(expected), None));
        assert_eq!(
            seen.header("x-try").is_none(),
            expected == "one-page",
            "the header is taken out where it has a meaning"
        );
    }
}

#[test]
fn the_cookie_is_secure_when_the_request_was() {
    let outcome = tester(json!({})).get("/").header(":scheme", "https").send();
    assert!(outcome.header("set-cookie").unwrap().ends_with("; Secure"));
}

#[test]
fn a_faulty_configuration_does_not_start() {
    for (extra, part) in [
        (json!({ "variants": [] }), "variants"),
        (json!({ "cookie": { "max_age": "soon" } }), "cookie.max_age"),
        (json!({ "cookie": null }), "cookie"),
    ] {
        let error = tester(extra.clone()).start().unwrap_err();
        assert!(error.contains(part), "{extra}: {error}");
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

    let loader = selvedge_config::Loader::new().builtin_filters(&["ab-routing"]);
    let loaded = loader.load_str("example.yaml", &text).unwrap_or_else(|report| panic!("{report}"));
    let filter = loaded.config.filters.values().next().unwrap();
    Tester::<AbRouting>::native().config(filter.config.clone()).start().unwrap();
}
