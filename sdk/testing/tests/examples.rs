//! The SDK's examples, as their users would test them: each claim natively, and with feature `wasm` as the compiled module on the
//! shipped host.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test; the examples are crates of their own"
)]

use std::time::Duration;

use selvedge_sdk::prelude::*;
use selvedge_sdk_testing::{Seen, Tester};
use serde_json::json;

#[path = "../../examples/hello.rs"]
mod hello;

#[path = "../../examples/mark.rs"]
mod mark;

#[path = "../../examples/upper.rs"]
mod upper;

#[path = "../../examples/api_key.rs"]
mod api_key;

#[path = "../../examples/tour.rs"]
mod tour;

#[path = "../../examples/flow.rs"]
mod flow;

use api_key::ApiKey;
use flow::Flowing;
use hello::Hello;
use mark::Mark;
use tour::Tour;
use upper::Upper;

/// Where the filters run.
trait Host {
    /// What a tester of filter `F` is a tester of.
    type Of<F: Filter>;

    fn tester<F: Filter>(self, example: &str) -> Tester<Self::Of<F>>;
}

struct Native;

impl Host for Native {
    type Of<F: Filter> = F;

    fn tester<F: Filter>(self, _example: &str) -> Tester<F> {
        Tester::native()
    }
}

#[cfg(feature = "wasm")]
struct Compiled;

#[cfg(feature = "wasm")]
impl Host for Compiled {
    type Of<F: Filter> = selvedge_sdk_testing::Wasm;

    fn tester<F: Filter>(self, example: &str) -> Tester {
        Tester::wasm(module(example))
    }
}

#[cfg(feature = "wasm")]
fn module(example: &str) -> std::path::PathBuf {
    use std::path::{Path, PathBuf};
    use std::sync::LazyLock;

    static BUILT: LazyLock<PathBuf> = LazyLock::new(|| {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        selvedge_guest_build::Guests::examples_of("selvedge-sdk").build(&workspace).unwrap()
    });
    BUILT.join(format!("{example}.wasm"))
}

/// Makes each claim a test per host.
macro_rules! claims {
    ($($claim:ident),* $(,)?) => {
        mod native {
            $(#[test]
            fn $claim() {
                super::$claim(|| super::Native);
            })*
        }

        #[cfg(feature = "wasm")]
        mod wasm {
            $(#[test]
            fn $claim() {
                super::$claim(|| super::Compiled);
            })*
        }
    };
}

claims!(
    hello_greets,
    each_request_is_marked_by_its_own_path,
    a_filter_without_settings_refuses_some,
    upper_transforms_text_however_it_is_cut,
    upper_lets_other_types_and_long_bodies_pass,
    looks_up_once_then_remembers,
    a_callout_that_fails_denies,
    a_bad_configuration_names_the_field,
    a_body_is_read_whole_however_it_is_cut,
    a_body_may_end_with_trailers,
    a_body_over_the_limit_is_413,
    the_start_of_a_body_is_read_and_the_rest_follows,
    a_body_is_replaced_unread,
    callouts_and_the_body_wait_in_any_order,
    a_callout_that_is_refused_or_fails_says_so,
    a_request_tells_what_it_is,
    a_request_is_changed_and_sent_elsewhere,
    shared_data_is_changed_by_version,
    an_unknown_foreign_function_is_told_apart,
    a_reply_may_repeat_a_header,
    a_response_waits_for_a_callout,
    a_response_is_replaced,
    a_document_is_changed_with_its_length,
    a_document_that_is_none_is_400_or_413,
    a_body_is_transformed_as_it_streams,
    each_piece_may_wait_for_an_answer,
    what_has_passed_is_told_behind_the_body,
    trailers_are_read_and_changed,
    an_announced_length_is_kept,
    what_runs_at_the_start_and_in_ticks_waits_for_answers,
    a_problem_is_a_document,
    the_end_of_an_exchange_knows_how_it_went,
);

fn hello_greets<H: Host>(host: impl Fn() -> H) {
    let outcome = host().tester::<Hello>("hello").get("/").send();
    assert_eq!((outcome.status(), outcome.header("x-hello")), (200, Some("from a filter")));
}

fn each_request_is_marked_by_its_own_path<H: Host>(host: impl Fn() -> H) {
    let tester = host().tester::<Mark>("mark");
    for (path, length) in [("/a", "short"), ("/a?query=long", "short"), ("/long/path", "long"), ("/a", "short")] {
        let outcome = tester.get(path).send();
        outcome.expect_forwarded_header("x-path-length", length);
        assert_eq!(outcome.header("x-marked"), Some("yes"), "{path}");
    }
}

fn a_filter_without_settings_refuses_some<H: Host>(host: impl Fn() -> H) {
    let error = host().tester::<Hello>("hello").config(json!({"loud": true})).start().unwrap_err();
    assert!(error.contains("no settings"), "{error}");
}

fn upper_transforms_text_however_it_is_cut<H: Host>(host: impl Fn() -> H) {
    let tester = host().tester::<Upper>("upper").origin(|_| Reply::new(200).text("good morning"));
    for chunk in [1, 3, 100] {
        let outcome = tester.get("/").chunked(chunk).send();
        assert_eq!(outcome.text(), "GOOD MORNING\n", "in pieces of {chunk}");
        assert_eq!(outcome.header("content-length"), Some("13"));
    }
    assert_eq!(tester.get("/").send().text(), "GOOD MORNING\n");
}

fn upper_lets_other_types_and_long_bodies_pass<H: Host>(host: impl Fn() -> H) {
    let tester = host().tester::<Upper>("upper").config(json!({"max_body": "4B"})).origin(|seen| match seen.path() {
        "/long" => Reply::new(200).text("long text"),
        _ => Reply::new(200).header("content-type", "image/png").body("png"),
    });
    assert_eq!(tester.get("/long").send().text(), "long text\n");
    assert_eq!(tester.get("/long").chunked(2).send().text(), "long text\n");
    assert_eq!(tester.get("/image").send().text(), "png");
}

fn api_key<H: Host>(host: H) -> Tester<H::Of<ApiKey>> {
    host.tester::<ApiKey>("api_key")
        .config(json!({"authz": "authz"}))
        .upstream("authz", |seen: &Seen| match &seen["x-key"] {
            "good" => Reply::new(200).json(&json!({"tenant": "acme"})),
            "odd" => Reply::new(200).body("?"),
            _ => Reply::new(404),
        })
        .origin(|seen| Reply::new(200).text(&seen["x-tenant"]))
}

fn looks_up_once_then_remembers<H: Host>(host: impl Fn() -> H) {
    let tester = api_key(host());
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

fn a_callout_that_fails_denies<H: Host>(host: impl Fn() -> H) {
    let tester = api_key(host());
    assert_eq!(tester.get("/").header("x-api-key", "odd").send().status(), 502);
    tester.upstream_down("authz");
    let outcome = tester.get("/").header("x-api-key", "new").send();
    assert_eq!((outcome.status(), outcome.text()), (503, "authz unavailable\n"));
    assert!(outcome.upstream().is_none());
}

fn a_bad_configuration_names_the_field<H: Host>(host: impl Fn() -> H) {
    for (config, expected) in [
        (json!({"authz": "a", "remember": "long"}), "`remember`: invalid value: string \"long\", expected a duration"),
        (json!({"authz": "a", "colour": 1}), "colour"),
        (json!({}), "authz"),
        (json!({"authz": ""}), "`authz`: names no upstream"),
        (json!({"authz": "a", "timeout": "6s"}), "`timeout`: must be at most 5s"),
        (json!({"authz": "a", "header": "a b"}), "expected the name of a header"),
    ] {
        let error = host().tester::<ApiKey>("api_key").config(config).start().unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

fn a_body_is_read_whole_however_it_is_cut<H: Host>(host: impl Fn() -> H) {
    let tester = host().tester::<Tour>("tour");
    let body: Vec<u8> = (0..=255).collect();
    for chunk in [1, 7, 1000] {
        let outcome = tester.post("/echo").body(body.clone()).chunked(chunk).send();
        assert_eq!((outcome.status(), outcome.body()), (200, &*body));
        assert!(outcome.upstream().is_none());
        assert_eq!(outcome.logs(), ["INFO request, response"]);
    }
    assert_eq!(tester.post("/echo").body("one piece").send().text(), "one piece");
    assert_eq!(tester.get("/echo").send().text(), "");
    assert_eq!((tester.metric("tour_exchanges"), tester.metric("tour_waiting")), (5, 0));
    assert_eq!(tester.metric("tour_body_bytes"), 5, "values counted");
}

fn a_body_may_end_with_trailers<H: Host>(host: impl Fn() -> H) {
    let tester = host().tester::<Tour>("tour");
    assert_eq!(tester.post("/echo").body("with trailers").chunked(3).trailers().send().text(), "with trailers");
    assert_eq!(tester.post("/echo").body("with trailers").trailers().send().text(), "with trailers");
    let outcome = tester.post("/replace").body("with trailers").chunked(3).trailers().send();
    assert_eq!(outcome.upstream().unwrap().body(), b"another body");

    let tester = host().tester::<Upper>("upper").origin(|_| Reply::new(200).text("good morning"));
    assert_eq!(tester.get("/").chunked(5).trailers().send().text(), "GOOD MORNING\n");
}

fn a_body_over_the_limit_is_413<H: Host>(host: impl Fn() -> H) {
    let tester = host().tester::<Tour>("tour");
    assert_eq!(tester.post("/echo").body(vec![b'x'; 1000]).send().status(), 200);
    assert_eq!(tester.post("/echo").body(vec![b'x'; 1001]).send().status(), 413);
    assert_eq!(tester.post("/echo").body(vec![b'x'; 1001]).chunked(100).send().status(), 413);
}

fn the_start_of_a_body_is_read_and_the_rest_follows<H: Host>(host: impl Fn() -> H) {
    let tester = host().tester::<Tour>("tour");
    let body: Vec<u8> = (0..100_000_u32).map(|at| b'a' + u8::try_from(at % 23).unwrap()).collect();
    for length in [0, 1, 3, 4, 5, 100, 100_000] {
        let body = &body[..length];
        for (request, exact) in [
            (tester.post("/start").body(body), length == 4),
            (tester.post("/start").body(body).trailers(), length == 0),
            (tester.post("/start").body(body).chunked(1 + length / 50), false),
            (tester.post("/start").body(body).chunked(1 + length / 50).trailers(), false),
        ] {
            let outcome = request.send();
            let seen = outcome.upstream().unwrap();
            assert_eq!(seen.body(), body, "{length} bytes arrive whole");
            assert_eq!(seen["x-start"].as_bytes(), &body[..length.min(4)]);
            assert_eq!(seen["x-whole"], *(length < 4 || exact).to_string(), "{length} bytes");
        }
    }
}

fn a_body_is_replaced_unread<H: Host>(host: impl Fn() -> H) {
    let tester = host().tester::<Tour>("tour");
    for request in [tester.post("/replace").body("old"), tester.post("/replace").body("a long old body").chunked(2)] {
        let outcome = request.send();
        let seen = outcome.upstream().unwrap();
        assert_eq!((seen.body(), seen.header("content-length")), (&b"another body"[..], Some("12")));
    }
}

fn callouts_and_the_body_wait_in_any_order<H: Host>(host: impl Fn() -> H) {
    let tester = host()
        .tester::<Tour>("tour")
        .upstream("a", |seen| match (seen.method(), seen.path()) {
            ("GET", "/1") => Reply::new(200).header("x-name", b"\xff"),
            ("PUT", "/3") if seen[":authority"] == *"c.example" => {
                let from = seen.headers().iter().find(|(name, _)| name == "x-from").unwrap();
                Reply::new(201).body([&from.1, seen.body()].concat())
            }
            _ => Reply::new(400),
        })
        .upstream("b", |seen| Reply::new(204).body([seen.body(), seen["content-length"].as_bytes()].concat()));
    for chunk in [1, 100] {
        let outcome = tester.post("/ask").body("body").chunked(chunk).send();
        assert_eq!((outcome.status(), outcome.body()), (201, &b"\xffx1body"[..]));
    }
    assert_eq!((tester.calls("a"), tester.calls("b")), (4, 2));
}

fn a_callout_that_is_refused_or_fails_says_so<H: Host>(host: impl Fn() -> H) {
    let tester = host().tester::<Tour>("tour").upstream("a", |_| Reply::new(200));
    assert_eq!(tester.get("/ask").send().text(), "b does not answer\n", "there is no upstream b");
    let tester = host().tester::<Tour>("tour").upstream("a", |_| Reply::new(404)).upstream("b", |_| Reply::new(200));
    assert_eq!(tester.get("/ask").send().text(), "a says no\n");
    tester.upstream_down("a");
    assert_eq!(tester.get("/ask").send().text(), "a does not answer\n");
}

fn a_request_tells_what_it_is<H: Host>(host: impl Fn() -> H) {
    let tester = host().tester::<Tour>("tour").client("2001:db8::1").country("DE").continent("EU");
    let request = tester.request("PURGE", "/look?c=d?e").host("Example.COM:8080").header("x-raw", b"\xff\0");
    let request = request.header("cookie", "a=1").header("cookie", "b=2").header("x-many", "1").header("x-many", "2");
    let expected = [
        "PURGE",
        "http://Example.COM:8080/look?c=d?e",
        "example.com",
        r#"Some("c=d?e")"#,
        r#"Some("2")"#,
        "Some([255, 0])",
        "None",
        r#"["1", "2"]"#,
        r#"Some(2001:db8::1) Some("DE") Some("EU")"#,
        "None",
        "1000000000",
    ];
    assert_eq!(request.send().text().lines().collect::<Vec<_>>(), expected);
}

fn a_request_is_changed_and_sent_elsewhere<H: Host>(host: impl Fn() -> H) {
    let tester = host().tester::<Tour>("tour").upstream("b", |_| Reply::new(204));
    let outcome = tester.get("/change?q=1").header("cookie", "a=1").header("x-raw", "old").send();
    let seen = outcome.upstream().unwrap();
    assert_eq!((outcome.status(), seen.upstream(), seen.path()), (204, "b", "/changed?q=1"));
    let own: Vec<_> = seen.headers().iter().filter(|(name, _)| !name.starts_with(':')).cloned().collect();
    let expected = [("x-raw", &b"\xff\xfe"[..]), ("x-many", b"1"), ("x-many", b"2")];
    assert_eq!(own, expected.map(|(name, value)| (name.to_owned(), value.to_vec())));
}

fn shared_data_is_changed_by_version<H: Host>(host: impl Fn() -> H) {
    let tester = host().tester::<Tour>("tour");
    for count in 1_u8..=3 {
        let (stored, stale): (Vec<u8>, bool) = tester.get("/count").send().json();
        assert_eq!((stored, stale), (vec![count, 0, 0, 0], true));
    }
}

fn an_unknown_foreign_function_is_told_apart<H: Host>(host: impl Fn() -> H) {
    assert_eq!(host().tester::<Tour>("tour").get("/foreign").send().status(), 501);
}

fn a_reply_may_repeat_a_header<H: Host>(host: impl Fn() -> H) {
    let outcome = host().tester::<Tour>("tour").get("/away").send();
    assert_eq!((outcome.status(), outcome.header("location")), (302, Some("/elsewhere")));
    let cookies: Vec<_> =
        outcome.headers().iter().filter(|(name, _)| name == "set-cookie").map(|(_, value)| &**value).collect();
    assert_eq!(cookies, [b"a=1", b"b=2"]);
}

fn a_response_waits_for_a_callout<H: Host>(host: impl Fn() -> H) {
    let tester = host()
        .tester::<Tour>("tour")
        .upstream("a", |seen| Reply::new(203).body(seen.path().to_owned()))
        .origin(|_| Reply::new(418).body("a body that streams"));
    let outcome = tester.get("/").chunked(3).send();
    assert_eq!((outcome.status(), outcome.header("x-tea")), (203, Some("/tea")));
    assert_eq!(outcome.text(), "a body that streams");
}

fn a_response_is_replaced<H: Host>(host: impl Fn() -> H) {
    let tester = host().tester::<Tour>("tour").origin(|_| Reply::new(200).header("x-secret", "1").body("secret"));
    let outcome = tester.get("/").send();
    assert_eq!((outcome.status(), outcome.header("x-secret")), (500, None));
    assert_eq!(outcome.text(), "the origin has said too much\n");
}

fn flowing<H: Host>(host: H) -> Tester<H::Of<Flowing>> {
    host.tester::<Flowing>("flow").config(json!({"words": "words"})).upstream("words", |seen| match seen.path() {
        "/say" => Reply::new(200).body(format!("<{}>", seen.text())),
        path => Reply::new(200).body(path.trim_start_matches('/').to_owned()),
    })
}

fn a_document_is_changed_with_its_length<H: Host>(host: impl Fn() -> H) {
    let tester = flowing(host());
    tester.start().unwrap();
    tester.advance(Duration::ZERO);
    for chunk in [1, 5, 100] {
        let outcome = tester.post("/document").body(r#"{"a":1}"#).chunked(chunk).send();
        let seen = outcome.upstream().unwrap();
        assert_eq!(seen.json::<serde_json::Value>(), json!({"a": 1, "word": "first"}));
        assert_eq!(seen.header("content-length"), Some(seen.body().len().to_string().as_str()));
        assert_eq!(seen.header("content-type"), Some("application/json"));
    }
    let outcome = tester.post("/document").header("content-type", "application/hal+json").body("{}").send();
    assert_eq!(outcome.upstream().unwrap().header("content-type"), Some("application/hal+json"));
    let outcome = tester.post("/text").body("one word").send();
    let seen = outcome.upstream().unwrap();
    assert_eq!((seen.text(), seen.header("content-length")), ("one first", Some("9")));
    assert_eq!(seen.header("content-type"), Some("text/plain; charset=utf-8"));
}

fn a_document_that_is_none_is_400_or_413<H: Host>(host: impl Fn() -> H) {
    let tester = flowing(host());
    assert_eq!(tester.post("/document").body("{").send().status(), 400);
    assert_eq!(tester.post("/document").body(format!("{:2000}", "{}")).send().status(), 413);
    assert_eq!(tester.post("/text").body(b"\xff").send().status(), 400);
}

fn a_body_is_transformed_as_it_streams<H: Host>(host: impl Fn() -> H) {
    let tester = flowing(host()).origin(|_| Reply::new(200).body("one two three"));
    for chunk in [1, 2, 3, 7, 100] {
        let outcome = tester.get("/words").chunked(chunk).send();
        assert_eq!((outcome.text(), outcome.header("content-length")), ("one! two! three!", None), "{chunk}");
        assert_eq!(tester.get("/words").chunked(chunk).trailers().send().text(), "one! two! three!", "{chunk}");
    }
    assert_eq!(tester.get("/words").send().text(), "one! two! three!");
    let tester = flowing(host());
    assert_eq!(tester.get("/words").send().text(), "", "nothing to transform");
}

fn each_piece_may_wait_for_an_answer<H: Host>(host: impl Fn() -> H) {
    let tester = flowing(host()).origin(|_| Reply::new(200).body("abcdef"));
    assert_eq!(tester.get("/ask").chunked(4).send().text(), "<abcd><ef>|end");
    assert_eq!(tester.get("/ask").send().text(), "<abcdef>|end");
    assert_eq!(tester.get("/ask").chunked(3).trailers().send().text(), "<abc><def>|end");
    tester.upstream_down("words");
    let outcome = tester.get("/ask").chunked(2).send();
    assert!(outcome.is_cut(), "the headers had gone: {outcome:?}");
}

fn what_has_passed_is_told_behind_the_body<H: Host>(host: impl Fn() -> H) {
    let tester = flowing(host()).origin(|_| Reply::new(200).body([1, 2, 3, 4]));
    for chunk in [1, 3, 4] {
        let outcome = tester.get("/sum").chunked(chunk).trailers().send();
        assert_eq!((outcome.body(), outcome.trailer("x-sum")), (&[1, 2, 3, 4][..], Some("10")));
    }
}

fn trailers_are_read_and_changed<H: Host>(host: impl Fn() -> H) {
    let tester = flowing(host()).origin(|_| {
        let answer = selvedge_sdk_testing::Answer::from(Reply::new(200).body("streams past"));
        answer.trailer("grpc-status", "5").trailer("x-internal", "secret")
    });
    for request in [tester.get("/status"), tester.get("/status").chunked(3)] {
        let outcome = request.send();
        assert_eq!(outcome.text(), "streams past");
        assert_eq!((outcome.trailer("grpc-status"), outcome.trailer("x-internal")), (Some("5"), None));
        assert_eq!(outcome.trailer("x-seen"), Some("1"));
        assert!(outcome.logs().contains(&"INFO gRPC status 5".to_owned()), "{:?}", outcome.logs());
    }
    let tester = flowing(host()).origin(|_| Reply::new(200).body("no trailers"));
    let outcome = tester.get("/status").send();
    assert_eq!(outcome.text(), "no trailers");
    assert!(outcome.logs().iter().any(|line| line.starts_with("WARN trailer x-seen could not be added")));
}

fn an_announced_length_is_kept<H: Host>(host: impl Fn() -> H) {
    let tester = flowing(host()).origin(|_| Reply::new(200).body("as announced"));
    let outcome = tester.get("/announced").send();
    assert_eq!((outcome.text(), outcome.header("content-length")), ("as announced", Some("12")));
    assert!(outcome.logs().iter().any(|line| line.contains("remove content-length")), "{:?}", outcome.logs());
}

fn what_runs_at_the_start_and_in_ticks_waits_for_answers<H: Host>(host: impl Fn() -> H) {
    let tester = flowing(host());
    tester.start().unwrap();
    tester.advance(Duration::ZERO);
    let word = |expected: &str| {
        let outcome = tester.post("/text").body("word").send();
        assert_eq!(outcome.upstream().unwrap().text(), expected);
    };
    word("first");
    tester.advance(Duration::from_secs(61));
    word("next");
    tester.upstream_down("words");
    tester.advance(Duration::from_secs(61));
    word("next");
    assert_eq!(tester.calls("words"), 3);
    assert!(tester.logs().iter().any(|line| line.starts_with("WARN the old word stays")), "{:?}", tester.logs());
}

fn a_problem_is_a_document<H: Host>(host: impl Fn() -> H) {
    let outcome = flowing(host()).get("/problem").send();
    assert_eq!((outcome.status(), outcome.header("content-type")), (403, Some("application/problem+json")));
    let expected =
        json!({"type": "about:blank", "title": "not for you", "status": 403, "detail": "only words are let in"});
    assert_eq!(outcome.json::<serde_json::Value>(), expected);
}

fn the_end_of_an_exchange_knows_how_it_went<H: Host>(host: impl Fn() -> H) {
    let tester = flowing(host()).origin(|_| Reply::new(204).header("content-type", "text/x"));
    let logs = tester.get("/end?q=1").send().logs().join("\n");
    assert!(logs.contains("DEBUG GET /end?q=1 204 Some(6) no word yet"), "{logs}");
}

#[cfg(feature = "wasm")]
#[test]
#[should_panic(expected = "examples/tour.rs:")]
fn a_panic_is_logged_with_its_place() {
    Compiled.tester::<Tour>("tour").get("/panic").send();
}

/// The budget is for the whole file, name section included: what a node reads, hashes and compiles at start.
#[cfg(feature = "wasm")]
#[test]
fn a_small_filter_is_a_small_module() {
    let size = std::fs::metadata(module("hello")).unwrap().len();
    assert!(size < 100 * 1024, "hello.wasm has {size} bytes");
}
