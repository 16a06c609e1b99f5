//! The handles of the SDK, each claim on four hosts: natively and as the module, with the functions of our host and without them.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test; the example is a crate of its own"
)]

use std::time::Duration;

use selvedge_sdk::prelude::*;
use selvedge_sdk_testing::{Answer, Outcome, Tester};
use serde_json::{Value, json};

#[path = "../../examples/handles.rs"]
mod handles;

/// Makes each claim a test per host.
macro_rules! claims {
    ($($claim:ident),* $(,)?) => {
        mod native {
            $(#[test] fn $claim() { super::$claim(selvedge_sdk_testing::Tester::<super::handles::Handles>::native()); })*
        }

        mod native_plain {
            $(#[test] fn $claim() {
                super::$claim(selvedge_sdk_testing::Tester::<super::handles::Handles>::native().plain_host());
            })*
        }

        #[cfg(feature = "wasm")]
        mod wasm {
            $(#[test] fn $claim() { super::$claim(selvedge_sdk_testing::Tester::wasm(super::module())); })*
        }

        #[cfg(feature = "wasm")]
        mod wasm_plain {
            $(#[test] fn $claim() {
                super::$claim(selvedge_sdk_testing::Tester::wasm(super::module()).plain_host());
            })*
        }
    };
}

claims!(
    notes_are_kept_for_a_minute,
    notes_are_changed_and_deleted,
    what_is_fetched_is_remembered_and_failures_are_not,
    visits_are_counted_per_minute,
    several_upstreams_are_asked_at_once,
    a_failure_names_its_upstream_and_cause,
    an_answer_that_is_late_is_a_timeout,
    facts_are_told_where_the_host_knows_them,
    values_are_left_for_the_response,
    metrics_have_labels,
    questions_are_limited_for_each_key,
    random_things_have_their_form,
    what_is_signed_with_the_secret_passes,
    a_host_that_cannot_verify_is_named,
);

#[cfg(feature = "wasm")]
fn module() -> std::path::PathBuf {
    use std::path::{Path, PathBuf};
    use std::sync::LazyLock;

    static BUILT: LazyLock<PathBuf> = LazyLock::new(|| {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        selvedge_guest_build::Guests::examples_of("selvedge-sdk").build(&workspace).unwrap()
    });
    BUILT.join("handles.wasm")
}

fn json_of(outcome: &Outcome) -> Value {
    serde_json::from_slice(outcome.body()).unwrap_or_else(|error| panic!("{error}: {:?}", outcome.text()))
}

fn notes_are_kept_for_a_minute<F>(tester: Tester<F>) {
    assert_eq!(tester.get("/note/get?key=a").send().status(), 404);
    assert_eq!(tester.get("/note/put?key=a&text=one+two").send().status(), 204);
    tester.advance(Duration::from_secs(59));
    let note = tester.get("/note/get?key=a").send();
    assert_eq!(json_of(&note), json!({ "text": "one two", "edits": 0 }));
    assert_eq!(tester.get("/note/get?key=b").send().status(), 404);
    tester.advance(Duration::from_secs(1));
    assert_eq!(tester.get("/note/get?key=a").send().status(), 404);
}

fn notes_are_changed_and_deleted<F>(tester: Tester<F>) {
    for (text, edits) in [("x", 0), ("y", 1), ("z", 2)] {
        let note = tester.get(&format!("/note/edit?key=a&text={text}")).send();
        assert_eq!(json_of(&note), json!({ "text": text, "edits": edits }));
    }
    tester.get("/note/put?key=b&text=b").send();
    let list = tester.get("/note/list").send();
    match list.status() {
        200 => assert_eq!(json_of(&list), json!(["a", "b"])),
        status => assert_eq!((status, list.text().trim()), (501, "the host has no function selvedge.shared.keys")),
    }
    assert_eq!(tester.get("/note/delete?key=a").send().status(), 204);
    assert_eq!(tester.get("/note/delete?key=a").send().status(), 204);
    assert_eq!(tester.get("/note/get?key=a").send().status(), 404);
    assert_eq!(json_of(&tester.get("/note/edit?key=a&text=x").send())["edits"], 0, "begun anew");

    // A note ends a minute after its last change, and a change begins it anew then.
    tester.advance(Duration::from_secs(60));
    assert_eq!(json_of(&tester.get("/note/edit?key=a&text=x").send())["edits"], 0);
}

fn what_is_fetched_is_remembered_and_failures_are_not<F>(tester: Tester<F>) {
    let tester = tester.upstream("a", |request| Reply::new(200).json(&json!({ "text": request.path() })));
    for _ in 0..2 {
        let note = tester.get("/note/fetch?key=a").send();
        assert_eq!(json_of(&note), json!({ "text": "/a", "edits": 0 }));
    }
    assert_eq!(tester.calls("a"), 1);

    tester.upstream_down("a");
    assert_eq!(tester.get("/note/fetch?key=a").send().status(), 200);
    for _ in 0..2 {
        let failed = tester.get("/note/fetch?key=b").send();
        assert_eq!(failed.status(), 502);
        assert!(failed.text().starts_with("upstream a: no connection: "), "{}", failed.text());
    }
    assert_eq!(tester.calls("a"), 3);
}

fn visits_are_counted_per_minute<F>(tester: Tester<F>) {
    for sum in 1..4 {
        assert_eq!(json_of(&tester.get("/visit?key=a").send()), json!([sum, sum]));
        tester.advance(Duration::from_secs(20));
    }
    assert_eq!(json_of(&tester.get("/visit?key=b").send()), json!([1, 1]));
    assert_eq!(json_of(&tester.get("/visit?key=a").send()), json!([1, 1]), "the minute is over");
}

fn several_upstreams_are_asked_at_once<F>(tester: Tester<F>) {
    let tester = tester
        .upstream("a", |request| if request.path() == "/first" { Reply::new(404) } else { Reply::new(200).body("A") })
        .upstream("b", |_| Reply::new(200).body("B"));
    let all = tester.get("/all").send();
    let nowhere = "upstream nowhere: the host has no such upstream, or the request is malformed";
    assert_eq!(json_of(&all), json!(["A", "B", nowhere]));
    assert_eq!(tester.get("/race").send().body(), b"A");
    assert_eq!(tester.get("/first").send().body(), b"B");
    assert_eq!((tester.calls("a"), tester.calls("b")), (3, 3));
}

fn a_failure_names_its_upstream_and_cause<F>(tester: Tester<F>) {
    let tester = tester.upstream("a", |_| Reply::new(500)).upstream("b", |_| Reply::new(200));
    tester.upstream_down("b");
    let first = tester.get("/first").send();
    assert_eq!(first.status(), 502);
    let errors = json_of(&first);
    assert_eq!(errors[0], "upstream a: answered with status 500");
    assert!(errors[1].as_str().unwrap().starts_with("upstream b: no connection: "), "{errors}");
}

fn an_answer_that_is_late_is_a_timeout<F>(tester: Tester<F>) {
    let tester = tester
        .upstream("a", |_| Answer::from(Reply::new(200)).after(Duration::from_secs(6)))
        .upstream("b", |_| Answer::from(Reply::new(500)).after(Duration::from_secs(1)));
    let errors = json_of(&tester.get("/first").send());
    assert_eq!(errors, json!(["upstream b: answered with status 500", "upstream a: no answer within 5000 ms"]));
}

fn facts_are_told_where_the_host_knows_them<F>(tester: Tester<F>) {
    let text = |tester: Tester<F>, path: &[&str], value: &str| tester.property(path, value);
    let tester = text(tester, &["source", "geo", "city"], "Berlin");
    let tester = text(tester, &["route_name"], "shop");
    let tester = text(tester, &["connection", "tls_version"], "TLSv1.3");
    let tester = text(tester, &["connection", "requested_server_name"], "shop.example");
    let tester = text(tester, &["connection", "subject_peer_certificate"], "CN=device");
    let tester = tester
        .property(&["source", "port"], 40000i64.to_le_bytes())
        .property(&["source", "geo", "asn"], 64500i64.to_le_bytes())
        .property(&["source", "geo", "latitude"], 52.5f64.to_le_bytes())
        .property(&["source", "geo", "longitude"], 13.4f64.to_le_bytes())
        .property(&["request", "time"], 1_000_000_000i64.to_le_bytes())
        .property(&["connection", "mtls"], [1])
        .client("192.0.2.7")
        .country("DE");
    let outcome = tester.get("/facts?a=1&b=%C3%A4+c&&d").header("cookie", "x=1; y=\"2\"").send();
    let told = json_of(&outcome);
    for (name, value) in [
        ("address", json!("192.0.2.7")),
        ("port", json!(true)),
        ("country", json!("DE")),
        ("city", json!("Berlin")),
        ("asn", json!(64500)),
        ("coordinates", json!([52.5, 13.4])),
        ("tls", json!(["TLSv1.3", "shop.example", false])),
        ("subject", json!("CN=device")),
        ("started", json!(true)),
        ("route", json!("shop")),
        ("site", json!(null)),
        ("protocol", json!("HTTP/1.1")),
        ("query", json!([["a", "1"], ["b", "\u{e4} c"], ["d", ""]])),
        ("cookies", json!([["x", "1"], ["y", "\"2\""]])),
    ] {
        assert_eq!(told[name], value, "{name}");
    }
}

fn values_are_left_for_the_response<F>(tester: Tester<F>) {
    let outcome = tester.get("/props?key=acme").send();
    assert_eq!(outcome.header("x-tenant").unwrap(), "acme");
    assert_eq!(tester.get("/other").send().header("x-tenant"), None);
}

fn metrics_have_labels<F>(tester: Tester<F>) {
    tester.get("/a?tenant=x").send();
    tester.get("/a?tenant=x").send();
    tester.get("/a").send();
    let metric = |name: &str| tester.metric(name);
    assert_eq!(metric("handles_requests;path=/a;tenant=x"), 2);
    assert_eq!(metric("handles_requests;path=/a;tenant=none"), 1);
    assert_eq!(metric("handles_under_way"), 0);
    assert_eq!(metric("handles_exchange_microseconds;status=started"), 3, "recorded when it was dropped");
}

fn questions_are_limited_for_each_key<F>(tester: Tester<F>) {
    for left in [2, 1, 0] {
        assert_eq!(json_of(&tester.get("/question?key=a").send()), json!(left));
    }
    let refused = tester.get("/question?key=a").send();
    assert_eq!((refused.status(), refused.header("retry-after")), (429, Some("1")));
    assert_eq!(json_of(&tester.get("/question?key=b").send()), json!(2));
    tester.advance(Duration::from_secs(1));
    assert_eq!(json_of(&tester.get("/question?key=a").send()), json!(0));
    assert_eq!(tester.get("/question?key=a").send().status(), 429);
}

fn random_things_have_their_form<F>(tester: Tester<F>) {
    let told = json_of(&tester.get("/random").send());
    for (place, version) in [(0, '4'), (1, '7')] {
        let uuid = told[place].as_str().unwrap();
        let dashes: Vec<usize> = uuid.match_indices('-').map(|(at, _)| at).collect();
        assert_eq!((uuid.len(), dashes), (36, vec![8, 13, 18, 23]), "{uuid}");
        assert_eq!(uuid.chars().nth(14), Some(version), "{uuid}");
    }
    assert!(told[1].as_str().unwrap().starts_with("00e8d4a5-1000-7"), "the tester's time: {told}");
    assert!((1..=6).contains(&told[2].as_u64().unwrap()) && told[3] == true, "{told}");
    assert_ne!(json_of(&tester.get("/random").send())[0], told[0]);
}

fn what_is_signed_with_the_secret_passes<F>(tester: Tester<F>) {
    let right = selvedge_sdk::crypto::hex(&selvedge_sdk::crypto::hmac_sha256("a secret", "x"));
    let wrong = right.replace(|digit: char| digit.is_ascii_digit(), "0");
    for (signature, status) in [(&*right, 200), (&*wrong, 401), (&right[1..], 401), ("", 401)] {
        let sent = tester.get("/signed?key=x").header("x-signature", signature).send();
        assert_eq!(sent.status(), status, "{signature}");
    }
    assert_eq!(tester.get("/signed?key=x").send().status(), 401);
}

fn a_host_that_cannot_verify_is_named<F>(tester: Tester<F>) {
    // The testers have no such function; the node has.
    let sent = tester.get("/verified?key=x").header("x-public-key", "00").header("x-signature", "00").send();
    assert_eq!((sent.status(), sent.text().trim()), (501, "the host has no function verify_signature"));
}
