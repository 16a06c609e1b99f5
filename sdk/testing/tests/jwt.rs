//! `selvedge_sdk::jwt`, each claim natively, and with feature `wasm` as the compiled module on the shipped host.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, reason = "a test; the example is a crate of its own")]

use std::time::Duration;

use selvedge_jwt::{Algorithm, mint};
use selvedge_sdk::Reply;
use selvedge_sdk_testing::Tester;
use serde_json::{Value, json};

#[path = "../../examples/members.rs"]
mod members;

/// Makes each claim a test per host.
macro_rules! claims {
    ($($claim:ident),* $(,)?) => {
        mod native {
            $(#[test] fn $claim() { super::$claim(selvedge_sdk_testing::Tester::<super::members::Members>::native()); })*
        }

        #[cfg(feature = "wasm")]
        mod wasm {
            $(#[test] fn $claim() { super::$claim(selvedge_sdk_testing::Tester::wasm(super::module())); })*
        }
    };
}

claims!(
    a_good_token_passes_and_says_who_it_is,
    what_is_refused_says_why,
    keys_are_fetched_once_and_renewed_when_they_are_old,
    a_new_key_is_fetched_when_a_token_names_it,
    without_keys_nothing_passes_and_the_upstream_is_not_flooded,
    an_upstream_that_makes_no_sense_gives_no_keys,
    exchanges_that_begin_together_wait_for_their_own_keys,
    faults_of_settings_are_named,
);

#[cfg(feature = "wasm")]
fn module() -> std::path::PathBuf {
    use std::path::{Path, PathBuf};
    use std::sync::LazyLock;

    static BUILT: LazyLock<PathBuf> = LazyLock::new(|| {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        selvedge_guest_build::Guests::examples_of("selvedge-sdk").build(&workspace).unwrap()
    });
    BUILT.join("members.wasm")
}

/// Good for years on the clock of the tests, which stands in 2001.
const EXPIRES: u64 = 1_100_000_000;

fn token(algorithm: Algorithm, extra: Value) -> String {
    let mut claims = json!({ "sub": "ann", "exp": EXPIRES, "scope": "members news" });
    claims.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    format!("Bearer {}", mint::token(algorithm, &mint::header(algorithm), &claims))
}

fn from_upstream() -> Value {
    json!({ "tokens": { "jwks_from": { "upstream": "id", "ttl": "10m", "stale": "1h" } } })
}

fn a_good_token_passes_and_says_who_it_is<F>(fresh: Tester<F>) {
    let pem = "-----BEGIN PUBLIC KEY-----\n\
        MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEf83OJ3D2xF1Bg8vub9tLe1gHMzV7\n\
        6e8Tus9uPHvRVEXH8UTNG72bfocs3+257rn0s2ldbqkLJK2KRiMohYjlrQ==\n-----END PUBLIC KEY-----";
    for (keys, algorithm) in [
        (json!({ "public_key": pem }), Algorithm::ES256),
        (json!({ "jwks": { "keys": [mint::rsa_jwk()] } }), Algorithm::RS256),
        (json!({ "jwks": json!({ "keys": [mint::ec_jwk()] }).to_string() }), Algorithm::ES256),
        (json!({ "jwks": { "keys": [mint::oct_jwk()] }, "algorithms": ["HS256"] }), Algorithm::HS256),
    ] {
        let tester = fresh.another().config(json!({ "tokens": keys }));
        for _ in 0..2 {
            let request = tester.get("/").header("authorization", token(algorithm, json!({}))).header("x-user", "root");
            request.send().expect_status(200).expect_forwarded_header("x-user", "ann");
        }
        // Not with somebody's else's key, or under another name of the algorithm.
        let other = if algorithm == Algorithm::RS256 { Algorithm::ES256 } else { Algorithm::RS256 };
        tester.get("/").header("authorization", token(other, json!({}))).send().expect_status(401);
    }
}

fn what_is_refused_says_why<F>(tester: Tester<F>) {
    let tester = tester.config(json!({ "tokens": {
        "jwks": { "keys": [mint::ec_jwk()] }, "issuer": "id", "audience": ["shop"], "realm": "the shop", "leeway": "1m",
    } }));
    let with = |extra: Value| {
        let mut claims = json!({ "iss": "id", "aud": "shop" });
        claims.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        token(Algorithm::ES256, claims)
    };
    let now = tester.now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    for (authorization, status, part) in [
        (None, 401, "Bearer realm=\"the shop\""),
        (Some("Basic YTpi".to_owned()), 401, "Bearer realm=\"the shop\""),
        (Some("Bearer".to_owned()), 401, "the token is malformed"),
        (Some("Bearer a.b.c".to_owned()), 401, "the token is malformed"),
        (Some(format!("{}x", with(json!({})))), 401, "the signature is wrong"),
        (Some(with(json!({ "exp": now - 61 }))), 401, "expired"),
        (Some(with(json!({ "exp": null }))), 401, "malformed"),
        (Some(with(json!({ "nbf": now + 62 }))), 401, "not valid yet"),
        (Some(with(json!({ "iss": "other" }))), 401, "another issuer"),
        (Some(with(json!({ "aud": "bank" }))), 401, "another audience"),
    ] {
        let request = tester.get("/");
        let request = match &authorization {
            Some(value) => request.header("authorization", value),
            None => request,
        };
        let outcome = request.send();
        let challenge = outcome.header("www-authenticate").unwrap_or_default();
        assert_eq!(outcome.status(), status, "{authorization:?}");
        assert!(challenge.contains(part), "{authorization:?}: {challenge}");
        assert_eq!(outcome.header("cache-control"), Some("no-store"));
        outcome.expect_not_forwarded();
    }
    let twice = tester.get("/").header("authorization", with(json!({}))).header("authorization", with(json!({})));
    assert_eq!(twice.send().status(), 400);
    tester.get("/").header("authorization", with(json!({ "scope": "news" }))).send().expect_status(403);
    tester.get("/").header("authorization", with(json!({ "exp": now - 58 }))).send().expect_status(200);
}

fn keys_are_fetched_once_and_renewed_when_they_are_old<F>(tester: Tester<F>) {
    let tester = tester.config(from_upstream()).upstream("id", |asked| match asked.path() {
        "/.well-known/jwks.json" => Reply::new(200).json(&json!({ "keys": [mint::rsa_jwk(), mint::ec_jwk()] })),
        _ => Reply::new(404),
    });
    tester.start().unwrap();
    tester.advance(Duration::from_millis(1));
    let good = token(Algorithm::ES256, json!({}));
    let send = || tester.get("/").header("authorization", &good).send().status();
    for _ in 0..3 {
        assert_eq!(send(), 200);
    }
    assert_eq!(tester.calls("id"), 1, "at the start");
    tester.advance(Duration::from_secs(601));
    assert_eq!((send(), send(), tester.calls("id")), (200, 200, 2));

    // The old ones serve on while the upstream is down, and it is asked twice a minute.
    tester.upstream_down("id");
    tester.advance(Duration::from_secs(601));
    assert_eq!((send(), send(), tester.calls("id")), (200, 200, 3));
    tester.advance(Duration::from_secs(31));
    assert_eq!((send(), send(), tester.calls("id")), (200, 200, 4));
    // Not for ever.
    tester.advance(Duration::from_secs(3700));
    assert_eq!(send(), 503);
    tester.upstream_up("id");
    tester.advance(Duration::from_secs(1));
    assert_eq!(send(), 200);
}

fn a_new_key_is_fetched_when_a_token_names_it<F>(tester: Tester<F>) {
    let old = json!({ "keys": [mint::rsa_jwk()] });
    let new = json!({ "keys": [mint::rsa_jwk(), mint::ec_jwk()] });
    let answers = [old.clone(), old, new].map(|set| Reply::new(200).json(&set));
    let tester = tester.config(from_upstream()).upstream_answers("id", answers);
    tester.start().unwrap();
    tester.advance(Duration::from_millis(1));
    let signed_anew = token(Algorithm::ES256, json!({}));
    let send = || tester.get("/").header("authorization", &signed_anew).send().status();

    assert_eq!((send(), tester.calls("id")), (401, 1), "the keys were fetched just now");
    tester.advance(Duration::from_secs(30));
    assert_eq!((send(), tester.calls("id")), (401, 2), "there is no such key yet");
    assert_eq!((send(), tester.calls("id")), (401, 2), "strangers cannot make it ask all the time");
    tester.advance(Duration::from_secs(30));
    assert_eq!((send(), tester.calls("id")), (200, 3));
    tester.get("/").header("authorization", token(Algorithm::RS256, json!({}))).send().expect_status(200);
}

fn without_keys_nothing_passes_and_the_upstream_is_not_flooded<F>(tester: Tester<F>) {
    let keys = json!({ "keys": [mint::ec_jwk()] });
    let tester = tester.config(from_upstream()).upstream("id", move |_| Reply::new(200).json(&keys));
    tester.upstream_down("id");
    tester.start().unwrap();
    tester.advance(Duration::from_millis(1));
    let good = token(Algorithm::ES256, json!({}));
    let send = || tester.get("/").header("authorization", &good).send();
    for _ in 0..5 {
        let outcome = send();
        outcome.expect_status(503).expect_not_forwarded();
        assert_eq!(outcome.header("www-authenticate"), None, "it is not the token's fault");
    }
    assert_eq!(tester.calls("id"), 1);
    tester.advance(Duration::from_secs(1));
    assert_eq!((send().status(), tester.calls("id")), (503, 2));
    tester.upstream_up("id");
    tester.advance(Duration::from_secs(1));
    assert_eq!((send().status(), tester.calls("id")), (200, 3));
    // A request without a token is refused without asking anybody.
    tester.get("/").send().expect_status(401);
}

fn an_upstream_that_makes_no_sense_gives_no_keys<F>(fresh: Tester<F>) {
    for (answer, part) in [
        (Reply::new(404), "status 404"),
        (Reply::new(200).body("<html>"), "not a JSON object"),
        (Reply::new(200).json(&json!({ "keys": [] })), "1 to 64 keys"),
        (Reply::new(200).json(&json!({ "keys": [mint::oct_jwk()] })), "no key is usable"),
        (Reply::new(200).body(" ".repeat(300_000)), "larger than 256 KiB"),
    ] {
        let tester = fresh.another().config(from_upstream()).upstream("id", move |_| answer.clone());
        let outcome = tester.get("/").header("authorization", token(Algorithm::HS256, json!({}))).send();
        outcome.expect_status(503);
        let logs = tester.logs();
        assert!(logs.iter().any(|line| line.starts_with("WARN") && line.contains(part)), "{part}: {logs:?}");
    }
}

fn exchanges_that_begin_together_wait_for_their_own_keys<F>(tester: Tester<F>) {
    let keys = json!({ "keys": [mint::ec_jwk()] });
    let tester = tester.config(from_upstream()).upstream("id", move |_| Reply::new(200).json(&keys));
    tester.upstream_slow("id", Duration::from_millis(100));
    tester.start().unwrap();
    tester.advance(Duration::from_millis(1));
    let good = token(Algorithm::ES256, json!({}));
    let outcomes = tester.together((0..4).map(|_| tester.get("/").header("authorization", &good)));
    assert!(outcomes.iter().all(|outcome| outcome.status() == 200));
    assert!(tester.calls("id") <= 5);
    tester.get("/").header("authorization", &good).send().expect_status(200);
    assert!(tester.calls("id") <= 5);
}

fn faults_of_settings_are_named<F>(fresh: Tester<F>) {
    let jwks = json!({ "keys": [mint::ec_jwk()] });
    for (tokens, part) in [
        (json!({}), "secret, public_key, jwks, jwks_from: exactly one"),
        (json!({ "jwks": jwks, "secret": "x".repeat(32) }), "exactly one"),
        (json!({ "public_key": "no" }), "public_key: not a public key in PEM"),
        (json!({ "secret": "short" }), "secret: 5 bytes"),
        (json!({ "secret": "x".repeat(32), "algorithms": ["RS256"] }), "algorithms: RS256 cannot"),
        (json!({ "jwks_from": { "upstream": "id" }, "algorithms": ["HS256"] }), "HS256 needs a secret"),
        (json!({ "jwks_from": { "upstream": "id", "path": "keys" } }), "jwks_from.path: \"keys\""),
        (json!({ "jwks_from": { "upstream": "id", "ttl": "1s" } }), "`tokens.jwks_from.ttl`"),
        (json!({ "jwks": jwks, "algorithms": ["none"] }), "unknown variant `none`"),
        (json!({ "jwks": jwks, "issuers": "x" }), "unknown field `issuers`"),
    ] {
        let error = fresh.another().config(json!({ "tokens": tokens })).start().unwrap_err();
        assert!(error.contains(part), "{tokens}: {error}");
    }
}
