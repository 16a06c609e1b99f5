use selvedge_sdk_testing::Tester;
use serde_json::json;

use {{crate}}::Visits;

#[selvedge_sdk::test]
fn visits_are_counted(tester: Tester<Visits>) {
    for visit in ["1", "2", "3"] {
        assert_eq!(tester.get("/").send().header("x-visit"), Some(visit));
    }
}

#[selvedge_sdk::test]
fn too_many_are_sent_away(tester: Tester<Visits>) {
    let tester = tester.config(json!({ "limit": 2 }));
    let statuses: Vec<u16> = (0..3).map(|_| tester.get("/").send().status()).collect();
    assert_eq!(statuses, [200, 200, 429]);
}
