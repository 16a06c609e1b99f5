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

#[path = "../../examples/upper.rs"]
mod upper;

#[path = "../../examples/api_key.rs"]
mod api_key;

use api_key::ApiKey;
use hello::Hello;
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
    a_filter_without_settings_refuses_some,
    upper_transforms_text_however_it_is_cut,
    upper_lets_other_types_and_long_bodies_pass,
    looks_up_once_then_remembers,
    a_callout_that_fails_denies,
    a_bad_configuration_names_the_field,
);

fn hello_greets<H: Host>(host: impl Fn() -> H) {
    let outcome = host().tester::<Hello>("hello").get("/").send();
    assert_eq!((outcome.status(), outcome.header("x-hello")), (200, Some("from a filter")));
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
    let tester = host().tester::<Upper>("upper").config(json!({"max_body": 4})).origin(|seen| match seen.path() {
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
        (json!({"authz": "a", "remember_seconds": "long"}), "remember_seconds"),
        (json!({"authz": "a", "colour": 1}), "colour"),
        (json!({}), "authz"),
        (json!({"authz": ""}), "names no upstream"),
    ] {
        let error = host().tester::<ApiKey>("api_key").config(config).start().unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

/// The budget is for the whole file, name section included: what a node reads, hashes and compiles at start.
#[cfg(feature = "wasm")]
#[test]
fn a_small_filter_is_a_small_module() {
    let size = std::fs::metadata(module("hello")).unwrap().len();
    assert!(size < 100 * 1024, "hello.wasm has {size} bytes");
}
