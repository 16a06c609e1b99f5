//! `selvedge filter run` and `bench`, as a process: what is told of one request through one filter, of its cost, and of how it traps.

use std::path::Path;

use selvedge_tests::guest as built;
use serde_json::Value;
use tempfile::TempDir;

use crate::filter_tools::{contains, filter, plain_crate, printed};

fn run(arguments: &[&str], code: i32) -> String {
    let folder = TempDir::new().expect("a folder");
    printed(&filter(arguments, folder.path()), code)
}

fn guest(name: &str) -> String {
    built(name).display().to_string()
}

#[test]
fn run_tells_callbacks_hostcalls_and_what_the_filter_changes() {
    let headers = guest("headers");
    let arguments = [
        "run",
        &headers,
        "--config",
        r#""request set x-one 1\nrequest set authorization s3cret\nresponse remove server""#,
        "--request",
        "POST https://a.test/x?y=1",
        "-H",
        "x-api-key: qwertz",
        "-d",
        "some words",
        "--origin",
        "201:made",
        "--origin-header",
        "server: nginx",
    ];
    let told = run(&arguments, 0);
    contains(
        &told,
        &[
            "POST https://a.test/x?y=1 through headers",
            "proxy_on_configure #1 -> accepted",
            "proxy_on_request_headers #2 -> Continue",
            "proxy_replace_header_map_value map=request name=\"x-one\" value=\"1\" -> Ok",
            "proxy_remove_header_map_value map=response name=\"server\" -> Ok",
            "  + x-one: 1",
            "  + authorization: <redacted>",
            "response, to the client: 201",
            "  - server: nginx",
        ],
    );
    for secret in ["s3cret", "qwertz"] {
        assert!(!told.contains(secret), "{told}");
    }

    let json: Value = serde_json::from_str(&run(&[&arguments[..], &["--json"]].concat(), 0)).expect("JSON");
    assert_eq!(json["response_difference"]["removed"], serde_json::json!([["server", "nginx"]]));
    assert_eq!(json["request"]["body"], "some words");
    assert_eq!(json["response"]["body"], "made");
    let events = json["events"].as_array().expect("events");
    assert!(
        events.iter().any(|one| one["name"] == "proxy_on_response_headers" && one["ended"] == "Continue"),
        "{json:#}"
    );
    assert!(!json.to_string().contains("s3cret") && !json.to_string().contains("qwertz"), "{json:#}");
}

#[test]
fn run_tells_callouts_and_answers_of_the_filter() {
    let callout = guest("callout");
    let config = ["--config", "request_headers authz /check"];
    let told = run(&[&["run", &callout, "--upstream", "authz=204"], &config[..]].concat(), 0);
    contains(
        &told,
        &[
            "-> Pause",
            "proxy_http_call upstream=\"authz\" headers={:method: GET, :path: /check, :authority: authz}",
            "proxy_on_http_call_response",
            "authz GET /check -> 204",
            "  + x-callout: 204:0",
        ],
    );
    let told = run(&[&["run", &callout, "--upstream", "authz=down"], &config[..]].concat(), 0);
    contains(&told, &["was not sent: answered before", "response, to the client: 503", "  - :status: 200"]);
    // What a node would say of its configuration.
    let told = run(&["run", "builtin:rate-limit", "--config", "{rate: 5/min, brust: 1}"], 2);
    contains(&told, &["error: builtin:rate-limit", "brust"]);
    contains(&run(&["run", &callout, "--upstream", "authz"], 2), &["--upstream authz: expected NAME=ANSWER"]);
    contains(&run(&["run", &callout, "--config", "@nowhere.json"], 2), &["--config @nowhere.json: No such file"]);
}

/// Panics four calls deep, each in a place that can be told.
const TRAPPING: &str = r#"
#[unsafe(no_mangle)] pub extern "C" fn proxy_abi_version_0_2_1() {}
#[unsafe(no_mangle)] pub extern "C" fn proxy_on_memory_allocate(size: usize) -> *mut u8 { vec![0; size].leak().as_mut_ptr() }
#[unsafe(no_mangle)] pub extern "C" fn proxy_on_request_headers(context: u32, _: u32, _: u32) -> u32 { judge(context) }

#[inline(never)]
fn judge(context: u32) -> u32 {
    inner::weigh(context) + 1
}

mod inner {
    #[inline(never)]
    pub fn weigh(context: u32) -> u32 {
        if std::hint::black_box(context) > 0 { panic!("the scales have broken at {context}") }
        context
    }
}
"#;

#[test]
fn a_trap_names_functions_and_with_dwarf_lines_and_the_panic_s_own_words() {
    let folder =
        plain_crate("[profile.release]\npanic = \"abort\"\nlto = \"fat\"\ncodegen-units = 1\nstrip = \"debuginfo\"\n");
    std::fs::write(folder.path().join("src/lib.rs"), TRAPPING).expect("written");
    let source = |line: &str| TRAPPING.lines().position(|one| one.contains(line)).expect("a line") + 1;
    let (panics, called) = (source("panic!("), source("inner::weigh(context) + 1"));

    printed(&filter(&["build", "--offline"], folder.path()), 0);
    let told = printed(&filter(&["run"], folder.path()), 1);
    let place = format!("src/lib.rs:{panics}:");
    let named = [
        "response, to the client: 503",
        "plain_one::inner::weigh",
        "<- plain_one::judge",
        "the scales have broken at 2",
        &place,
    ];
    contains(&told, &named);
    assert!(!told.contains(&format!("lib.rs:{called})")), "there is no DWARF in it:\n{told}");

    printed(&filter(&["build", "--offline", "--debug"], folder.path()), 0);
    let told = printed(&filter(&["run"], folder.path()), 1);
    contains(&told, &named);
    contains(&told, &[&format!("src/lib.rs:{panics})"), &format!("src/lib.rs:{called})")]);
    assert!(!told.contains("rust_begin_unwind"), "the machinery of a panic says nothing:\n{told}");
    contains(&printed(&filter(&["inspect"], folder.path()), 0), &["of it is DWARF"]);

    // Without names there are numbers, so that there is something to look for.
    let manifest = std::fs::read_to_string(folder.path().join("Cargo.toml")).expect("read");
    std::fs::write(folder.path().join("Cargo.toml"), manifest.replace("\"debuginfo\"", "\"symbols\""))
        .expect("written");
    printed(&filter(&["build", "--offline"], folder.path()), 0);
    contains(&printed(&filter(&["run"], folder.path()), 1), &["in function ", "the scales have broken"]);
}

#[test]
fn bench_measures_cold_fresh_and_warm() {
    let headers = guest("headers");
    let told = run(&["bench", &headers, "--config", "request set x-a 1", "--response-body", "1000", "--json"], 0);
    let json: Value = serde_json::from_str(&told).expect("JSON");
    let figure = |path: &str| {
        let median = json.pointer(path).and_then(|figures| figures["median"].as_f64());
        let median = median.unwrap_or_else(|| panic!("{path} is not in {json:#}"));
        assert!(median > 0.0 && median.is_finite(), "{path}: {json:#}");
        median
    };
    let warm = figure("/warm/request");
    let parts = ["context_create", "request_headers", "response_headers", "response_body", "done, log, delete"];
    parts.iter().for_each(|part| assert!(json["warm"]["callbacks"][part].is_object(), "{part}: {json:#}"));
    // A fresh instance costs more than a warm one, and compiling more than loading what was compiled.
    assert!(figure("/fresh_instance/request") > warm, "{json:#}");
    assert!(figure("/cold/compile") > figure("/cold/load"), "{json:#}");
    figure("/cold/start");
    assert!(json["memory"]["instance"].as_u64().is_some_and(|bytes| bytes >= 65_536), "{json:#}");
    assert!(!Path::new(json["machine"].as_str().unwrap_or_default()).as_os_str().is_empty());

    let failing = guest("trap");
    contains(&run(&["bench", &failing, "--config", "request_headers"], 2), &["trapped", "as configured"]);
}
