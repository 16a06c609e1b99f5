//! gRPC calls and the macros of `tracing`, each claim natively, and with feature `wasm` as the compiled module on the shipped host.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, reason = "a test; the examples are crates of their own")]

use std::time::Duration;

use selvedge_sdk::{GrpcCode, Reply};
use selvedge_sdk_testing::{Answer, Tester};
use serde_json::json;

#[path = "../../examples/unary.rs"]
mod unary;

#[path = "../../examples/traced.rs"]
mod traced;

/// Makes each claim a test per host.
macro_rules! claims {
    ($example:ident, $filter:ty: $($claim:ident),* $(,)?) => {
        mod $example {
            mod native {
                $(#[test] fn $claim() { super::super::$claim(selvedge_sdk_testing::Tester::<$filter>::native()); })*
            }

            #[cfg(feature = "wasm")]
            mod wasm {
                $(#[test] fn $claim() {
                    super::super::$claim(selvedge_sdk_testing::Tester::wasm(super::super::module(stringify!($example))));
                })*
            }
        }
    };
}

claims!(over_grpc, crate::unary::Unary:
    a_call_has_a_message_and_metadata_and_is_answered,
    how_a_call_fails_is_told_apart,
    calls_of_exchanges_that_run_together_are_not_mixed_up,
);

claims!(in_the_log, crate::traced::Traced:
    lines_have_the_fields_and_the_spans_around_them,
    spans_of_exchanges_that_run_together_are_not_mixed_up,
);

#[cfg(feature = "wasm")]
fn module(tests: &str) -> std::path::PathBuf {
    use std::path::{Path, PathBuf};
    use std::sync::LazyLock;

    static BUILT: LazyLock<PathBuf> = LazyLock::new(|| {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        selvedge_guest_build::Guests::examples_of("selvedge-sdk").build(&workspace).unwrap()
    });
    BUILT.join(if tests == "over_grpc" { "unary.wasm" } else { "traced.wasm" })
}

fn a_call_has_a_message_and_metadata_and_is_answered<F>(tester: Tester<F>) {
    let tester = tester.config(json!({ "authz": "authz" })).upstream("authz", |asked| {
        assert_eq!((asked.method(), asked.path()), ("POST", "/demo.Access/Check"));
        assert_eq!((asked.header("content-type"), asked.header("x-path")), (Some("application/grpc"), Some("/a")));
        assert_eq!(asked.timeout(), Some(Duration::from_millis(250)));
        Reply::new(200).body([b"tenant of ", asked.body()].concat())
    });
    let outcome = tester.get("/a?b").header("x-api-key", "k1").send();
    outcome.expect_status(200).expect_forwarded_header("x-tenant", "tenant of k1");
    assert_eq!(tester.calls("authz"), 1);
}

fn how_a_call_fails_is_told_apart<F>(fresh: Tester<F>) {
    let timeout = Answer::from(Reply::new(200)).after(Duration::from_secs(1));
    for (answer, status, part) in [
        (Answer::grpc_status(GrpcCode::PermissionDenied, "no such key"), 403, "no such key"),
        (Answer::grpc_status(GrpcCode::Internal, "broken"), 503, "upstream authz: gRPC status INTERNAL: broken"),
        (Answer::from(Reply::new(200).header("grpc-status", "77")), 503, "gRPC status UNKNOWN"),
        (Answer::from(Reply::new(404)), 503, "gRPC status UNIMPLEMENTED: HTTP status 404"),
        (Answer::lost(), 503, "gRPC status UNAVAILABLE"),
        (timeout, 503, "gRPC status DEADLINE_EXCEEDED"),
        (Answer::from(Reply::new(200)), 200, ""),
    ] {
        let tester = fresh.another().config(json!({ "authz": "authz" })).upstream("authz", move |_| answer.clone());
        let outcome = tester.get("/").header("x-api-key", "k1").send();
        outcome.expect_status(status);
        let told = format!("{}{}", outcome.text(), tester.logs().join("\n"));
        assert!(told.contains(part), "{part}: {told}");
    }
    // The host does not know the name.
    let tester = fresh.another().config(json!({ "authz": "nowhere" })).upstream("authz", |_| Reply::new(200));
    tester.get("/").header("x-api-key", "k1").send().expect_status(503).expect_log("no such upstream");
}

fn calls_of_exchanges_that_run_together_are_not_mixed_up<F>(tester: Tester<F>) {
    let tester = tester.config(json!({ "authz": "authz" })).upstream("authz", |asked| {
        // The first to ask waits longest.
        let late = 3 - u64::from(asked.body()[0] - b'0');
        Answer::from(Reply::new(200).body(asked.body())).after(Duration::from_millis(10 * late))
    });
    let keys = ["0", "1", "2"];
    let outcomes = tester.together(keys.map(|key| tester.get("/").header("x-api-key", key)));
    for (key, outcome) in keys.iter().zip(&outcomes) {
        outcome.expect_forwarded_header("x-tenant", key);
    }
}

fn lines_have_the_fields_and_the_spans_around_them<F>(tester: Tester<F>) {
    let tester = tester.config(json!({ "users": "users" })).upstream("users", |_| Reply::new(200).body("ann"));
    tester.get("/a b").send().expect_forwarded_header("x-user", "ann");
    tester.upstream_down("users");
    tester.get("/x").send().expect_status(200);
    let lines = tester.logs();
    for expected in [
        "INFO configured users=users",
        "DEBUG exchange{path=\"/a b\"}: asking",
        "INFO exchange{path=\"/a b\" user=ann}: known status=200 bytes=3",
    ] {
        assert!(lines.iter().any(|line| line == expected), "{expected}: {lines:?}");
    }
    let failed = lines.last().unwrap();
    assert!(failed.starts_with("WARN exchange{path=/x}: not known error=upstream users: "), "{failed}");
}

fn spans_of_exchanges_that_run_together_are_not_mixed_up<F>(tester: Tester<F>) {
    let tester = tester.config(json!({ "users": "users" })).upstream("users", |_| Reply::new(200).body("ann"));
    tester.upstream_slow("users", Duration::from_millis(5));
    let paths = ["/0", "/1", "/2"];
    tester.together(paths.map(|path| tester.get(path)));
    for path in paths {
        for expected in [format!("exchange{{path={path}}}: asking"), format!("exchange{{path={path} user=ann}}: known")]
        {
            assert_eq!(tester.logs().iter().filter(|line| line.contains(&expected)).count(), 1, "{expected}");
        }
    }
}

/// Messages as types of crate `prost`.
#[test]
fn messages_may_be_types() {
    use selvedge_sdk::prelude::*;

    #[derive(Clone, PartialEq, prost::Message)]
    struct Key {
        #[prost(string, tag = "1")]
        key: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct Account {
        #[prost(string, tag = "1")]
        tenant: String,
        #[prost(uint32, tag = "2")]
        level: u32,
    }

    #[derive(Default)]
    struct Typed;

    #[filter]
    impl Filter for Typed {
        async fn request(&self, request: &mut Request) -> Flow {
            let key = Key { key: request.path().to_owned() };
            let answer = upstream("authz").grpc("/demo.Access/Check").prost(&key).send().await.or_deny(503, "down")?;
            let account: Account = answer.prost().or_deny(502, "no account")?;
            request.set_header("x-level", format!("{} {}", account.tenant, account.level));
            Ok(Next)
        }
    }

    let tester = Tester::<Typed>::native().upstream("authz", |asked| {
        let key: Key = prost::Message::decode(asked.body()).unwrap();
        match key.key.as_str() {
            "/no" => Reply::new(200).body([0xff; 3]),
            tenant => {
                let account = Account { tenant: tenant.to_owned(), level: 7 };
                Reply::new(200).body(prost::Message::encode_to_vec(&account))
            }
        }
    });
    tester.get("/a").send().expect_forwarded_header("x-level", "/a 7");
    tester.get("/no").send().expect_status(502);
}
