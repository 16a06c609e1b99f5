//! The SDK's examples, as their users would test them.

#![allow(missing_docs, unreachable_pub, reason = "a test; the examples are crates of their own")]

use std::time::Duration;

use selvedge_sdk::prelude::*;
use selvedge_sdk_testing::{Seen, Tester};
use serde_json::json;

#[path = "../../examples/hello.rs"]
mod hello;

#[path = "../../examples/upper.rs"]
mod upper;

#[path = "../../examples/api_key.rs"]
mod api_key;

use api_key::ApiKey;
use hello::Hello;
use upper::Upper;

#[test]
fn hello_greets() {
    let outcome = Tester::<Hello>::native().get("/").send();
    assert_eq!((outcome.status(), outcome.header("x-hello")), (200, Some("from a filter")));
}

#[test]
fn a_filter_without_settings_refuses_some() {
    let error = Tester::<Hello>::native().config(json!({"loud": true})).start().unwrap_err();
    assert!(error.contains("no settings"), "{error}");
}

#[test]
fn upper_transforms_text_however_it_is_cut() {
    let tester = Tester::<Upper>::native().origin(|_| Reply::new(200).text("good morning"));
    for chunk in [1, 3, 100] {
        let outcome = tester.get("/").chunked(chunk).send();
        assert_eq!(outcome.text(), "GOOD MORNING\n", "in pieces of {chunk}");
        assert_eq!(outcome.header("content-length"), Some("13"));
    }
    assert_eq!(tester.get("/").send().text(), "GOOD MORNING\n");
}

#[test]
fn upper_lets_other_types_and_long_bodies_pass() {
    let tester = Tester::<Upper>::native().config(json!({"max_body": 4})).origin(|seen| match seen.path() {
        "/long" => Reply::new(200).text("long text"),
        _ => Reply::new(200).header("content-type", "image/png").body("png"),
    });
    assert_eq!(tester.get("/long").send().text(), "long text\n");
    assert_eq!(tester.get("/long").chunked(2).send().text(), "long text\n");
    assert_eq!(tester.get("/image").send().text(), "png");
}

fn api_key() -> Tester<ApiKey> {
    Tester::<ApiKey>::native()
        .config(json!({"authz": "authz"}))
        .upstream("authz", |seen: &Seen| match &seen["x-key"] {
            "good" => Reply::new(200).json(&json!({"tenant": "acme"})),
            "odd" => Reply::new(200).body("?"),
            _ => Reply::new(404),
        })
        .origin(|seen| Reply::new(200).text(&seen["x-tenant"]))
}

#[test]
fn looks_up_once_then_remembers() {
    let tester = api_key();
    assert_eq!(tester.get("/").send().status(), 401);
    assert_eq!(tester.get("/").header("x-api-key", "bad").send().status(), 403);
    for _ in 0..2 {
        let outcome = tester.get("/").header("x-api-key", "good").chunked(2).send();
        assert_eq!(outcome.text(), "acme\n");
        assert_eq!(outcome.header("x-tenant"), Some("acme"), "state is kept from the request to the response");
        assert_eq!(outcome.upstream().unwrap().header("x-api-key"), None);
        assert_eq!(outcome.logs(), ["INFO served acme"]);
    }
    assert_eq!(tester.calls("authz"), 2, "bad and good; the second good was remembered");
    assert_eq!(tester.metric("api_key_allowed"), 2);

    tester.advance(Duration::from_secs(61));
    tester.get("/").header("x-api-key", "good").send();
    assert_eq!(tester.calls("authz"), 3, "forgotten after a minute");
}

#[test]
fn a_callout_that_fails_denies() {
    let tester = api_key();
    assert_eq!(tester.get("/").header("x-api-key", "odd").send().status(), 502);
    tester.upstream_down("authz");
    let outcome = tester.get("/").header("x-api-key", "new").send();
    assert_eq!((outcome.status(), outcome.text()), (503, "authz unavailable\n"));
    assert!(outcome.upstream().is_none());
}

#[test]
fn a_bad_configuration_names_the_field() {
    for (config, expected) in [
        (json!({"authz": "a", "remember_seconds": "long"}), "remember_seconds"),
        (json!({"authz": "a", "colour": 1}), "colour"),
        (json!({}), "authz"),
        (json!({"authz": ""}), "names no upstream"),
    ] {
        let error = Tester::<ApiKey>::native().config(config).start().unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}
