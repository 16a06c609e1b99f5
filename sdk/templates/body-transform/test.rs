use selvedge_sdk::Reply;
use selvedge_sdk_testing::Tester;
use serde_json::{Value, json};

use {{crate}}::Transform;

#[selvedge_sdk::test]
fn json_objects_get_the_field(tester: Tester<Transform>) {
    let tester = tester
        .config(json!({ "value": "edge-1" }))
        .origin(|_| Reply::new(200).json(&json!({ "id": 7 })));
    // However the body is cut on its way.
    let changed = tester.get("/").every_split().send();
    assert_eq!(
        changed.json::<Value>(),
        json!({ "id": 7, "served_by": "edge-1" })
    );
}

#[selvedge_sdk::test]
fn everything_else_stays_as_it_is(tester: Tester<Transform>) {
    let tester = tester.origin(|seen| match seen.path() {
        "/list" => Reply::new(200).json(&json!([1, 2])),
        _ => Reply::new(200).body("{\"id\": 7}"),
    });
    assert_eq!(tester.get("/list").send().json::<Value>(), json!([1, 2]));
    assert_eq!(tester.get("/text").send().text(), "{\"id\": 7}");
}
