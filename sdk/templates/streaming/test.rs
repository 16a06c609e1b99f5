use selvedge_sdk_testing::Tester;
use serde_json::json;

use {{crate}}::Streaming;

fn png() -> Vec<u8> {
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    file.resize(64, 7);
    file
}

#[selvedge_sdk::test]
fn images_pass_whole_however_they_are_cut(tester: Tester<Streaming>) {
    let passed = tester.post("/upload").body(png()).every_split().send();
    assert_eq!(passed.status(), 200);
    assert_eq!(
        passed.upstream().map(|seen| seen.body().to_vec()),
        Some(png())
    );
}

#[selvedge_sdk::test]
fn other_files_are_refused(tester: Tester<Streaming>) {
    assert_eq!(
        tester
            .post("/upload")
            .body("#!/bin/sh\nrm -r x\n")
            .send()
            .status(),
        415
    );
    assert_eq!(tester.metric("uploads_refused_total"), 1);
    // What is no upload is nobody's business.
    assert_eq!(tester.get("/").send().status(), 200);
}

#[selvedge_sdk::test]
fn what_is_allowed_is_a_setting(tester: Tester<Streaming>) {
    let tester = tester.config(json!({ "allow": ["pdf"] }));
    assert_eq!(
        tester.post("/").body("%PDF-1.7 and so on").send().status(),
        200
    );
    assert_eq!(tester.post("/").body(png()).send().status(), 415);
}
