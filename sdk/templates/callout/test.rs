use selvedge_sdk::Reply;
use selvedge_sdk_testing::Tester;
use serde_json::json;

use {{crate}}::Callout;

fn configured(tester: Tester<Callout>) -> Tester<Callout> {
    tester
        .config(json!({ "authz": "authz" }))
        .upstream("authz", |seen| match seen.header("authorization") {
            Some("good") => Reply::new(200).header("x-user", "ada"),
            _ => Reply::new(401),
        })
}

#[selvedge_sdk::test]
fn who_is_allowed_passes_with_a_name(tester: Tester<Callout>) {
    let tester = configured(tester);
    let passed = tester.get("/shop").header("authorization", "good").send();
    assert_eq!(passed.status(), 200);
    assert_eq!(
        passed.upstream().and_then(|seen| seen.header("x-user")),
        Some("ada")
    );
    let calls = tester.calls_to("authz");
    assert_eq!(
        (calls[0].path(), calls[0].header("x-path")),
        ("/check", Some("/shop"))
    );
}

#[selvedge_sdk::test]
fn who_is_not_allowed_is_refused(tester: Tester<Callout>) {
    let tester = configured(tester);
    assert_eq!(tester.get("/").send().status(), 401);
    assert_eq!(tester.calls("authz"), 0);
    assert_eq!(
        tester
            .get("/")
            .header("authorization", "bad")
            .send()
            .status(),
        403
    );
    assert_eq!(tester.metric("authz_asked_total"), 1);
}

#[selvedge_sdk::test]
fn when_nobody_answers_nobody_passes(tester: Tester<Callout>) {
    let tester = configured(tester);
    tester.upstream_down("authz");
    assert_eq!(
        tester
            .get("/")
            .header("authorization", "good")
            .send()
            .status(),
        503
    );
}
