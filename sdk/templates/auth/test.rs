use selvedge_sdk_testing::Tester;
use serde_json::json;

use {{crate}}::Auth;

fn configured(tester: Tester<Auth>) -> Tester<Auth> {
    tester.config(json!({ "users": { "ada": "ada-has-this-key" } }))
}

#[selvedge_sdk::test]
fn a_known_key_passes_and_the_origin_learns_whose_it_is(tester: Tester<Auth>) {
    let tester = configured(tester);
    let passed = tester
        .get("/")
        .header("x-api-key", "ada-has-this-key")
        .send();
    let upstream = passed.upstream().expect("it went to the origin");
    assert_eq!(upstream.header("x-user"), Some("ada"));
    assert_eq!(upstream.header("x-api-key"), None);
}

#[selvedge_sdk::test]
fn others_are_refused(tester: Tester<Auth>) {
    let tester = configured(tester);
    assert_eq!(tester.get("/").send().status(), 401);
    assert_eq!(
        tester
            .get("/")
            .header("x-api-key", "ada-has-this-kex")
            .send()
            .status(),
        403
    );
    assert_eq!(
        tester
            .get("/")
            .header("x-api-key", "ada-has-this-key-")
            .send()
            .status(),
        403
    );
    assert_eq!(tester.metric("auth_refused_total"), 2);
}

#[selvedge_sdk::test]
fn nobody_is_ada_by_saying_so(tester: Tester<Auth>) {
    let tester = configured(tester);
    assert_eq!(tester.get("/").header("x-user", "ada").send().status(), 401);
}
