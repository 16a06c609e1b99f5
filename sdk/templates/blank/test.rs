use selvedge_sdk_testing::Tester;
use serde_json::json;

use {{crate}}::Blank;

#[selvedge_sdk::test]
fn every_response_says_hello(tester: Tester<Blank>) {
    assert_eq!(
        tester.get("/").send().header("x-hello"),
        Some("from a filter")
    );
}

#[selvedge_sdk::test]
fn the_greeting_is_a_setting(tester: Tester<Blank>) {
    let tester = tester.config(json!({ "greeting": "moin" }));
    assert_eq!(tester.get("/").send().header("x-hello"), Some("moin"));
}
