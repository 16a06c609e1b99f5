//! The settings of filters against the schema in their module: what `selvedge check` says, and where.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_selvedge-under-test");

fn selvedge(arguments: &[&str], folder: &Path) -> Output {
    Command::new(PROGRAM).args(arguments).current_dir(folder).output().expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A configuration whose `filters` and first route's `filters` are these.
fn folder_with(filters: &str, used: &str) -> TempDir {
    let folder = TempDir::new().expect("a folder");
    let config = format!(
        "version: 1
node: {{ module_cache: off, workers: 1 }}
listeners: {{ web: {{ bind: \"127.0.0.1:0\" }} }}
upstreams: {{ demo: {{ builtin: demo }}, next: {{ builtin: demo }} }}
filters:
{filters}
sites:
  - hosts: [\"*\"]
    routes:
      - name: all
        filters: {used}
        to: demo
"
    );
    std::fs::write(folder.path().join("config.yaml"), config).expect("written");
    folder
}

#[track_caller]
fn refused(folder: &TempDir, expected: &[&str]) -> String {
    let output = selvedge(&["check"], folder.path());
    let report = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{}{report}", text(&output.stdout));
    for part in expected {
        assert!(report.contains(part), "{part:?} is not in:\n{report}");
    }
    report
}

#[test]
fn every_fault_is_told_at_once_at_its_key_or_value() {
    let folder = folder_with(
        "  limit:
    wasm: builtin:rate-limit
    config:
      rate: often
      brst: 3
      missing: shar
      ipv6_prefix: 129
      key: { heder: x-user }
  ab:
    wasm: builtin:ab-routing
    config:
      experiment: checkout
      variants:
        - { name: a, weight: 1, upstream: nxt }
        - { name: b, weight: 2000000 }
        - { name: c }
      cookie: { max_age: 30 }",
        "[limit, ab]",
    );
    let report = refused(
        &folder,
        &[
            "config.yaml:9:13",
            "filter limit: `rate` must be of the form",
            "config.yaml:10:7",
            "filter limit: there is no setting `brst`",
            "did you mean `burst`?",
            "config.yaml:11:16",
            "filter limit: `missing`: `shar` is none of its values",
            "did you mean `share`?",
            "config.yaml:12:20",
            "filter limit: `ipv6_prefix` must be at most 128, not `129`",
            "config.yaml:13:14",
            "filter limit: `key` has no setting `heder`",
            "did you mean `header`?",
            "config.yaml:19:43",
            "filter ab: `variants[0].upstream`: there is no upstream `nxt`",
            "did you mean `next`?",
            "config.yaml:20:30",
            "filter ab: `variants[1].weight` must be at most 1000000, not `2000000`",
            "config.yaml:21:11",
            "filter ab: the setting `weight` is missing in `variants[2]`",
            "config.yaml:22:26",
            "filter ab: `cookie.max_age` must be text, not `30`",
        ],
    );
    assert!(report.contains("9 faults in "), "{report}");
}

#[test]
fn settings_at_a_use_are_checked_with_what_they_are_merged_over() {
    let limit = "  limit:
    wasm: builtin:rate-limit
    config: { burst: 5 }";
    let whole = folder_with(limit, "[{ limit: { rate: 5/s } }]");
    let output = selvedge(&["check"], whole.path());
    assert!(output.status.success(), "{}", text(&output.stderr));

    refused(&folder_with(limit, "[limit]"), &["config.yaml:13:19", "filter limit: the setting `rate` is missing"]);
    refused(
        &folder_with(limit, "[{ limit: { rate: 5/s, burst: many } }]"),
        &["config.yaml:13:48", "filter limit: `burst` must be a whole number, not `many`"],
    );
}

#[test]
fn a_secret_is_in_no_fault() {
    let folder = folder_with(
        "  auth:
    wasm: builtin:jwt-auth
    config: { secret: [hunter2], cookie_file: name }",
        "[auth]",
    );
    std::fs::write(folder.path().join("name"), "hunter3 and more\n").expect("written");
    let report = refused(&folder, &["filter auth: `secret` must be text"]);
    assert!(!report.contains("hunter3"), "{report}");
    assert!(!report.lines().next().unwrap_or_default().contains("hunter2"), "{report}");
}

fn with_section(content: &str) -> Vec<u8> {
    let guest = format!(
        r#"(module (@custom "selvedge.schema" "{content}")
            (func (export "proxy_abi_version_0_2_1")) (memory (export "memory") 1)
            (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) i32.const 0))"#
    );
    wat::parse_str(guest).expect("wat")
}

#[test]
fn a_hostile_schema_is_a_fault_of_the_module() {
    let large = format!("{{\\\"title\\\":\\\"{}\\\"}}", "x".repeat(70_000));
    for (content, why) in [
        (large.as_str(), "custom section selvedge.schema: it has more than 64 KiB"),
        ("\\ff\\fe", "custom section selvedge.schema: it is not text"),
        ("{", "it is not JSON"),
        (r#"{\"$ref\":\"https://example.com/schema.json\"}"#, "nothing is fetched for a schema"),
    ] {
        let folder = folder_with("  guest: { wasm: file:guest.wasm }", "[guest]");
        std::fs::write(folder.path().join("guest.wasm"), with_section(content)).expect("written");
        refused(&folder, &["config.yaml:6:18", why]);
    }
}

#[test]
fn a_schema_is_read_from_a_compiled_module_that_was_kept_as_well() {
    let folder = folder_with("  guest: { wasm: file:guest.wasm, config: { a: x } }", "[guest]");
    let path = folder.path().join("config.yaml");
    let config = std::fs::read_to_string(&path).expect("read").replace("module_cache: off", "module_cache: kept");
    std::fs::write(path, config).expect("written");
    let schema = r#"{\"properties\":{\"a\":{\"type\":\"integer\"}}}"#;
    std::fs::write(folder.path().join("guest.wasm"), with_section(schema)).expect("written");
    for _ in 0..2 {
        refused(&folder, &["config.yaml:6:48", "filter guest: `a` must be a whole number, not `x`"]);
    }
}

#[test]
fn editors_are_told_the_settings_of_the_filters_in_use() {
    let folder = folder_with("  limit: { wasm: \"builtin:rate-limit\", config: { rate: 5/s } }", "[limit]");
    let output = selvedge(&["schema", "--config", "config.yaml"], folder.path());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let schema: Value = serde_json::from_slice(&output.stdout).expect("JSON");

    let declared = &schema["properties"]["filters"]["properties"]["limit"]["properties"]["config"];
    assert_eq!(declared, &json!({ "$ref": "urn:selvedge:filter:limit" }));
    let limit = &schema["$defs"]["filter:limit"];
    assert_eq!(limit["$id"], "urn:selvedge:filter:limit");
    assert_eq!((&limit["additionalProperties"], limit.get("required")), (&json!(false), None));
    let properties = limit["properties"].as_object().expect("properties");
    assert!(properties.contains_key("burst") && properties.contains_key("burst_file"));
    assert!(properties["rate"]["description"].as_str().expect("text").contains("100/min"));
    let used = schema["$defs"]["FilterUse"]["anyOf"].as_array().expect("forms");
    assert!(used.iter().any(|form| form["properties"]["limit"]["$ref"] == "urn:selvedge:filter:limit"));
}
