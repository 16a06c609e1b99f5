//! `selvedge filter`, as a process: what its commands print, and how they end.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_selvedge-under-test");

pub(crate) fn filter(arguments: &[&str], folder: &Path) -> Output {
    let mut command = Command::new(PROGRAM);
    command.arg("filter").args(arguments).current_dir(folder).env_remove("CARGO_TARGET_DIR").env_remove("RUSTFLAGS");
    command.output().expect("the program runs")
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a command has printed, if it ended so.
#[track_caller]
pub(crate) fn printed(output: &Output, code: i32) -> String {
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{stdout}\n{stderr}");
    stdout + &stderr
}

#[track_caller]
pub(crate) fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

fn module(wat: &str) -> (TempDir, String) {
    let folder = TempDir::new().expect("a folder");
    std::fs::write(folder.path().join("guest.wasm"), wat::parse_str(wat).expect("wat")).expect("written");
    (folder, "guest.wasm".into())
}

const GUEST: &str = r#"(module
    (@custom "selvedge.phases" "request_headers, log")
    (@custom "selvedge.schema" "{\"type\":\"object\",\"properties\":{\"limit\":{\"type\":\"integer\"}}}")
    (import "env" "proxy_log" (func (param i32 i32 i32) (result i32)))
    (import "env" "proxy_call_foreign_function" (func (param i32 i32 i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 2)
    (data (i32.const 0) "selvedge.kv.get")
    (func (export "proxy_on_memory_allocate") (param i32) (result i32) i32.const 0)
    (func (export "proxy_abi_version_0_2_1"))
    (func $sum (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) i32.const 0)
    (func (export "proxy_on_log") (param i32)))"#;

#[test]
fn inspect_tells_what_a_module_is_made_of() {
    let (folder, guest) = module(GUEST);
    let told = printed(&filter(&["inspect", &guest], folder.path()), 0);
    contains(
        &told,
        &[
            "proxy-wasm 0.2.1",
            "request_headers, log",
            "env.proxy_log (i32, i32, i32) -> i32",
            "proxy_on_request_headers (i32, i32, i32) -> i32",
            "128.0 KiB",
            "selvedge.kv.get",
            "\"limit\"",
            "custom selvedge.schema",
        ],
    );

    let told = printed(&filter(&["inspect", &guest, "--json"], folder.path()), 0);
    let json: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(json["abi"], "0.2.1");
    assert_eq!(json["phases"], serde_json::json!(["request_headers", "log"]));
    assert_eq!(json["memory"]["initial"], 131_072);
    assert_eq!(json["schema"]["properties"]["limit"]["type"], "integer");
    assert_eq!(json["foreign_functions"][0], "selvedge.kv.get");
}

#[test]
fn filters_that_come_with_the_node_load_on_envoy() {
    let folder = TempDir::new().expect("a folder");
    let told = printed(&filter(&["check", "builtin:rate-limit", "--portable=envoy"], folder.path()), 0);
    contains(&told, &["ok    loads here", "ok    loads on Envoy"]);
    let told = printed(&filter(&["check", "builtin:rate-limt"], folder.path()), 2);
    contains(&told, &["rate-limt", "rate-limit, waf"]);
}

#[test]
fn check_tells_what_other_hosts_have_not() {
    let (folder, guest) = module(&GUEST.replacen(
        "(memory",
        "(import \"env\" \"abort\" (func (param i32 i32 i32 i32)))
         (import \"env\" \"proxy_grpc_close\" (func (param i32) (result i32))) (memory",
        1,
    ));
    // Here it runs, and nobody has asked about elsewhere.
    contains(&printed(&filter(&["check", &guest], folder.path()), 0), &["note  does not load on Envoy"]);
    let told = printed(&filter(&["check", &guest, "--portable"], folder.path()), 1);
    contains(
        &told,
        &[
            "ok    loads here",
            "FAIL  does not load on Envoy, which has no env.abort",
            "FAIL  does not load on ngx_wasm_module, which has no env.abort",
            "note  ngx_wasm_module ends a filter that calls env.proxy_grpc_close",
            "selvedge.kv.get",
        ],
    );
    let told = printed(&filter(&["check", &guest, "--portable", "--json"], folder.path()), 1);
    let json: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(json["exit_code"], 1);
    assert!(json["findings"].as_array().is_some_and(|findings| findings.iter().any(|one| one["grade"] == "fail")));
}

#[test]
fn what_does_not_run_here_is_a_fault_and_says_why() {
    let (folder, guest) = module(&GUEST.replace("proxy_log", "proxy_lug"));
    contains(&printed(&filter(&["check", &guest], folder.path()), 2), &["FAULT does not load here", "env.proxy_lug"]);
    let (folder, guest) = module("(module (memory (export \"memory\") 1))");
    contains(&printed(&filter(&["check", &guest], folder.path()), 2), &["no proxy_abi_version export"]);
    std::fs::write(folder.path().join("page.wasm"), "<html>").expect("written");
    let told = printed(&filter(&["check", "page.wasm"], folder.path()), 2);
    contains(&told, &["page.wasm", "not a WebAssembly module"]);
    contains(&printed(&filter(&["inspect", "nowhere.wasm"], folder.path()), 2), &["nowhere.wasm", "No such file"]);
    contains(&printed(&filter(&["inspect"], folder.path()), 2), &["Cargo.toml: no such file", "selvedge filter new"]);
}

/// A filter crate without dependencies.
pub(crate) fn plain_crate(profile: &str) -> TempDir {
    let folder = TempDir::new().expect("a folder");
    let manifest = format!(
        "[package]\nname = \"plain-one\"\nedition = \"2024\"\n[lib]\ncrate-type = [\"cdylib\", \"rlib\"]\n[workspace]\n{profile}"
    );
    std::fs::create_dir(folder.path().join("src")).expect("made");
    std::fs::write(folder.path().join("Cargo.toml"), manifest).expect("written");
    let source = "#[unsafe(no_mangle)] pub extern \"C\" fn proxy_abi_version_0_2_1() {}
#[unsafe(no_mangle)] pub extern \"C\" fn proxy_on_log(_: u32) {}
#[unsafe(no_mangle)] pub extern \"C\" fn proxy_on_memory_allocate(size: usize) -> *mut u8 { vec![0; size].leak().as_mut_ptr() }
";
    std::fs::write(folder.path().join("src/lib.rs"), source).expect("written");
    folder
}

#[test]
fn build_makes_a_module_and_tells_its_size_and_what_its_profile_lacks() {
    let profile = "[profile.release]\nopt-level = 3\npanic = \"abort\"\n";
    let folder = plain_crate(profile);
    let told = printed(&filter(&["build", "--offline"], folder.path()), 0);
    contains(
        &told,
        &[
            "target/wasm32-wasip1/release/plain_one.wasm",
            "code",
            "(callbacks)",
            "Cargo.toml: [profile.release] lacks",
            "lto = \"fat\"",
            "strip = \"debuginfo\"",
        ],
    );
    assert!(!told.contains("panic ="), "{told}");
    // The folder of the crate stands for its module from now on.
    contains(
        &printed(&filter(&["check", "."], folder.path()), 0),
        &["plain_one.wasm", "ok    loads here", "phases log"],
    );

    let told = printed(&filter(&["build", "--offline", "--json"], folder.path()), 0);
    let json: Value = serde_json::from_str(told.trim()).expect("JSON");
    assert!(json["size"]["bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{json}");

    std::fs::write(folder.path().join("src/lib.rs"), "fn broken( {}").expect("written");
    contains(
        &printed(&filter(&["build", "--offline"], folder.path()), 2),
        &["src/lib.rs:1", "plain-one does not build"],
    );
}

#[test]
fn a_module_that_no_host_would_take_is_no_success_of_a_build() {
    let folder = plain_crate("");
    let source = "#[unsafe(no_mangle)] pub extern \"C\" fn proxy_on_log(_: u32) {}\n";
    std::fs::write(folder.path().join("src/lib.rs"), source).expect("written");
    let told = printed(&filter(&["build", "--offline"], folder.path()), 2);
    contains(&told, &["plain_one.wasm", "no proxy_abi_version export"]);
}
