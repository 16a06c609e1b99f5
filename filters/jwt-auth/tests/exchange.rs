//! The filter on a host: what a client and an origin see. The clock of the tests stands in 2001, so the example of RFC 7515, A.1, which
//! expires in 2011, is a good token.

use std::time::Duration;

use selvedge_filter_jwt_auth::JwtAuth;
use selvedge_sdk_testing::Tester;
use serde_json::{Value, json};

const TOKEN: &str = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";

fn tester(extra: Value) -> Tester<JwtAuth> {
    let key = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
    let mut config = json!({
        "jwks": { "keys": [{ "kty": "oct", "k": key }] },
        "algorithms": ["HS256"],
        "issuer": "joe",
        "realm": "shop",
        "claims_to_headers": { "iss": "X-User", "http://example.com/is_root": "x-root" },
    });
    for (name, value) in extra.as_object().into_iter().flatten() {
        config[name] = value.clone();
    }
    Tester::<JwtAuth>::native().config(config)
}

#[test]
fn without_a_token_the_client_is_asked_for_one() {
    let tester = tester(json!({}));
    let outcome = tester.get("/").send();
    assert_eq!((outcome.status(), outcome.header("www-authenticate")), (401, Some("Bearer realm=\"shop\"")));
    assert_eq!(
        (outcome.header("content-type"), outcome.header("cache-control")),
        (Some("application/problem+json"), Some("no-store"))
    );
    assert!(outcome.upstream().is_none());
    let problem: Value = outcome.json();
    assert_eq!((&problem["status"], &problem["type"]), (&json!(401), &json!("about:blank")));
    assert_eq!(tester.metric("jwt_auth_refused_total"), 1);
}

#[test]
fn a_bad_token_is_named_as_such() {
    let outcome = tester(json!({})).get("/").header("authorization", format!("Bearer {TOKEN}x")).send();
    assert_eq!(outcome.status(), 401);
    assert_eq!(
        outcome.header("www-authenticate"),
        Some("Bearer realm=\"shop\", error=\"invalid_token\", error_description=\"the signature is wrong\"")
    );
}

#[test]
fn the_origin_learns_the_claims_and_nothing_a_client_made_up() {
    let tester = tester(json!({}));
    for _ in 0..2 {
        let request = tester.get("/").header("authorization", format!("bearer {TOKEN}"));
        let request = request.header("x-user", "root").header("X_USER", "root").header("x-root", "maybe");
        let outcome = request.send();
        assert_eq!(outcome.status(), 200);
        let seen = outcome.upstream().unwrap();
        assert_eq!(
            (seen.header("x-user"), seen.header("x_user"), seen.header("x-root")),
            (Some("joe"), None, Some("true"))
        );
        assert_eq!(seen.headers().iter().filter(|(name, _)| name == "x-user").count(), 1);
        assert!(seen.header("authorization").is_some());
    }
    assert_eq!(tester.metric("jwt_auth_accepted_total"), 2);
}

#[test]
fn an_absent_claim_sets_no_header_and_keeps_no_forged_one() {
    let tester = tester(json!({ "claims_to_headers": { "sub": "x-user" } }));
    let outcome = tester.get("/").header("authorization", format!("Bearer {TOKEN}")).header("x-user", "root").send();
    assert_eq!((outcome.status(), outcome.upstream().unwrap().header("x-user")), (200, None));
}

#[test]
fn a_token_expires_while_it_is_remembered() {
    let tester = tester(json!({}));
    let send = || tester.get("/").header("authorization", format!("Bearer {TOKEN}")).send();
    assert_eq!(send().status(), 200);
    tester.advance(Duration::from_secs(300_819_380 + 29));
    assert_eq!(send().status(), 200);
    tester.advance(Duration::from_secs(1));
    let outcome = send();
    assert_eq!(outcome.status(), 401);
    assert!(outcome.header("www-authenticate").unwrap().contains("expired"));
}

#[test]
fn the_token_is_taken_out_where_it_was() {
    let tester = tester(json!({ "cookie": "session", "query": "token", "forward_token": false }));
    let outcome =
        tester.get("/a?x=1").header("authorization", format!("Bearer {TOKEN}")).header("cookie", "a=1").send();
    let seen = outcome.upstream().unwrap();
    assert_eq!((seen.header("authorization"), seen.header("cookie"), seen.path()), (None, Some("a=1"), "/a?x=1"));

    let outcome = tester
        .get("/a")
        .header("authorization", "Basic YTpi")
        .header("cookie", format!("a=1; session={TOKEN}; b=2"))
        .send();
    let seen = outcome.upstream().unwrap();
    assert_eq!((seen.header("authorization"), seen.header("cookie")), (Some("Basic YTpi"), Some("a=1; b=2")));

    let outcome = tester.get("/a").header("cookie", format!("session={TOKEN}")).send();
    assert_eq!(outcome.upstream().unwrap().header("cookie"), None);

    let outcome = tester.get(&format!("/a?x=1&token={TOKEN}&y=2")).send();
    assert_eq!(outcome.upstream().unwrap().path(), "/a?x=1&y=2");
    let outcome = tester.get(&format!("/a?token={TOKEN}")).send();
    assert_eq!(outcome.upstream().unwrap().path(), "/a");
}

#[test]
fn two_tokens_are_none() {
    let tester = tester(json!({ "cookie": "session" }));
    let bearer = format!("Bearer {TOKEN}");
    let twice = tester.get("/").header("authorization", &bearer).header("authorization", &bearer).send();
    let other = tester.get("/").header("authorization", &bearer).header("cookie", "session=a.b.c").send();
    for outcome in [twice, other] {
        assert_eq!(outcome.status(), 400);
        assert!(outcome.header("www-authenticate").unwrap().contains("error=\"invalid_request\""));
    }
}

#[test]
fn keys_that_are_not_used_are_warned_about() {
    let keys = json!({ "keys": [{ "kty": "oct", "k": "A".repeat(43) }, { "kty": "OKP", "crv": "Ed25519" }] });
    let tester = tester(json!({ "jwks": keys }));
    tester.start().unwrap();
    assert!(
        tester.logs().iter().any(|line| line.starts_with("WARN") && line.contains("jwks.keys[1]")),
        "{:?}",
        tester.logs()
    );
}

#[test]
fn a_faulty_configuration_does_not_start() {
    for (extra, part) in [
        (json!({ "secret": "x".repeat(32) }), "secret, jwks"),
        (json!({ "algorithms": ["none"] }), "algorithms[0]"),
        (json!({ "leeway": 30 }), "leeway"),
        (json!({ "jwks": { "keys": [] } }), "jwks"),
        (json!({ "audiences": "x" }), "audiences"),
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
    // The keys are a file in the example.
    let keys = format!("jwks: {{ keys: [{{ kty: oct, k: {} }}] }}", "A".repeat(43));
    let example = example.map(|line| match line.trim_start().split(':').next() {
        Some("jwks_file") => format!("      {keys}"),
        Some("algorithms") => "      algorithms: [HS256]".to_owned(),
        _ => line.to_owned(),
    });
    let rest = "version: 1\nlisteners: { web: { bind: 127.0.0.1:0 } }\nupstreams: { demo: { builtin: demo } }\n\
        sites: [{ hosts: [a.test], routes: [{ to: demo }] }]\n";
    let text = format!("{}\n{rest}", example.collect::<Vec<_>>().join("\n"));

    let loader = selvedge_config::Loader::new().builtin_filters(&["jwt-auth"]);
    let loaded = loader.load_str("example.yaml", &text).unwrap_or_else(|report| panic!("{report}"));
    let filter = loaded.config.filters.values().next().unwrap();
    Tester::<JwtAuth>::native().config(filter.config.clone()).start().unwrap();
}
