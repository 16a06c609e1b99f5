use selvedge_sdk_testing::Tester;
use serde_json::json;

use {{crate}}::Ab;

fn configured(tester: Tester<Ab>) -> Tester<Ab> {
    tester.config(json!({ "variants": ["control", "new"] }))
}

#[selvedge_sdk::test]
fn a_new_visitor_gets_a_variant_and_a_cookie(tester: Tester<Ab>) {
    let tester = configured(tester);
    let first = tester.get("/").send();
    let variant = first
        .upstream()
        .and_then(|seen| seen.header("x-variant"))
        .expect("a variant");
    assert!(["control", "new"].contains(&variant));
    assert!(
        first
            .header("set-cookie")
            .expect("a cookie")
            .starts_with(&format!("variant={variant};"))
    );
}

#[selvedge_sdk::test]
fn a_visitor_keeps_a_variant(tester: Tester<Ab>) {
    let tester = configured(tester);
    for variant in ["control", "new"] {
        let again = tester
            .get("/")
            .header("cookie", format!("a=b; variant={variant}"))
            .send();
        assert_eq!(
            again.upstream().and_then(|seen| seen.header("x-variant")),
            Some(variant)
        );
        assert_eq!(again.header("set-cookie"), None);
    }
}

#[selvedge_sdk::test]
fn a_variant_that_is_gone_is_drawn_anew(tester: Tester<Ab>) {
    let tester = configured(tester);
    assert!(
        tester
            .get("/")
            .header("cookie", "variant=old")
            .send()
            .header("set-cookie")
            .is_some()
    );
}
