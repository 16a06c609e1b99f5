//! How guests of different toolchains start, and what their runtimes import.

use super::fakes::*;
use selvedge_wasm::*;

/// A guest that logs one letter from each of these functions, in the order they are called.
fn starting(functions: &[(&str, &str, &str, &str)], more: &str) -> Result<String, StartError> {
    let functions: String = functions
        .iter()
        .enumerate()
        .map(|(index, (export, ty, result, _))| {
            let at = 100 + index;
            format!(
                r#"(func (export "{export}") {ty}
                  (drop (call $log (i32.const 2) (i32.const {at}) (i32.const 1))) {result})
                (data (i32.const {at}) "{}")"#,
                functions[index].3
            )
        })
        .collect();
    let wasm = wat(
        r#"(import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
           (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))"#,
        "i32.const 16384",
        &format!("{functions}{more}"),
    );
    let rig = try_start(&wasm, PluginOptions { workers: 1, ..options("") })?;
    let letters = rig.host.logs.lock().iter().map(|(_, line)| line.clone()).collect();
    Ok(letters)
}

const INITIALIZE: (&str, &str, &str, &str) = ("_initialize", "", "", "i");
const MAIN_VOID: (&str, &str, &str, &str) = ("__main_void", "(result i32)", "(i32.const 0)", "v");
const START: (&str, &str, &str, &str) = ("_start", "", "", "s");
/// `main` as C has it: it must be called with no arguments at all.
const MAIN: (&str, &str, &str, &str) = (
    "main",
    "(param $argc i32) (param $argv i32) (result i32)",
    "(if (i32.or (local.get $argc) (local.get $argv)) (then unreachable)) (i32.const 1)",
    "m",
);
const CREATE: (&str, &str, &str, &str) = ("proxy_on_context_create", "(param i32 i32)", "", "c");
/// As Go has it: something of the language's own.
const OTHER_MAIN: (&str, &str, &str, &str) = ("main", "(param i64)", "", "o");

#[test]
fn guests_start_in_the_order_of_the_c_host() {
    for (functions, order) in [
        (&[INITIALIZE, MAIN_VOID, CREATE][..], "ivc"),
        (&[INITIALIZE, MAIN, CREATE], "imc"),
        (&[INITIALIZE, MAIN, MAIN_VOID, CREATE], "ivc"),
        (&[INITIALIZE, OTHER_MAIN, CREATE], "ic"),
        (&[INITIALIZE, START, CREATE], "ic"),
        (&[START, CREATE], "sc"),
        (&[START, MAIN, MAIN_VOID, CREATE], "sc"),
        (&[CREATE], "c"),
    ] {
        assert_eq!(starting(functions, "").unwrap(), order);
    }
}

#[test]
fn a_start_section_runs_before_everything_and_may_call_the_host() {
    let section = r#"(func $begin (drop (call $log (i32.const 2) (i32.const 200) (i32.const 1))))
        (data (i32.const 200) "b") (start $begin)"#;
    assert_eq!(starting(&[CREATE], section).unwrap(), "bc");
    assert_eq!(starting(&[INITIALIZE, CREATE], section).unwrap(), "bic");
    let trap = "(func $begin unreachable) (start $begin)";
    assert!(starting(&[CREATE], trap).unwrap_err().to_string().contains("failed to start"));
}

#[test]
fn a_command_may_end_its_start_by_exiting_well() {
    let exits = |code| ("_start", "", code, "s");
    assert_eq!(starting(&[exits("(call $exit (i32.const 0))"), CREATE], "").unwrap(), "sc");
    let StartError::Call(error) = starting(&[exits("(call $exit (i32.const 1))"), CREATE], "").unwrap_err() else {
        panic!("a guest that exits with 1 starts")
    };
    assert!(error.to_string().contains("exited with code 1"), "{error}");
    let reactor = ("_initialize", "", "(call $exit (i32.const 0))", "i");
    assert!(starting(&[reactor, CREATE], "").is_err(), "a library does not exit");
}

#[test]
fn imports_of_emscripten_are_served() {
    let wasm = wat(
        r#"(import "env" "emscripten_notify_memory_growth" (func $grown (param i32)))
           (import "env" "pthread_equal" (func $equal (param i32 i32) (result i32)))
           (import "env" "pthread_equal" (func $equal_again (param i32 i32) (result i32)))"#,
        "i32.const 16384",
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
          (drop (memory.grow (i32.const 1)))
          (call $grown (i32.const 0))
          (if (i32.eqz (call $equal (i32.const 4) (i32.const 4))) (then unreachable))
          (call $equal_again (i32.const 4) (i32.const 5)))"#,
    );
    let rig = try_start(&wasm, options("")).unwrap();
    let outcome = rig.stream().on_request_headers(&mut FakeExchange::get("/"), true).unwrap();
    assert_eq!(outcome.action, Action::Continue);
}

/// A string as AssemblyScript keeps it, as a data segment: its text begins at `at`.
fn assemblyscript_string(at: u32, text: &str) -> String {
    let bytes: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let len = u32::try_from(bytes.len()).unwrap().to_le_bytes();
    let all: String = len.iter().chain(&bytes).map(|byte| format!("\\{byte:02x}")).collect();
    format!(r#"(data (i32.const {}) "{all}")"#, at - 4)
}

#[test]
fn an_abort_of_assemblyscript_says_what_and_where() {
    let abort = |arguments: &str| {
        let wasm = wat(
            r#"(import "env" "abort" (func $abort (param i32 i32 i32 i32)))"#,
            "i32.const 16384",
            &format!(
                r#"{} {}
                (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (call $abort {arguments}) unreachable)"#,
                assemblyscript_string(1000, "größer als 1"),
                assemblyscript_string(2000, "assembly/index.ts")
            ),
        );
        let rig = try_start(&wasm, options("")).unwrap();
        rig.stream().on_request_headers(&mut FakeExchange::get("/"), true).unwrap_err().to_string()
    };
    let error = abort("(i32.const 1000) (i32.const 2000) (i32.const 7) (i32.const 12)");
    assert!(error.contains("abort: größer als 1 (assembly/index.ts:7:12)"), "{error}");
    // Null, and pointers to anything: an abort all the same.
    for place in ["0", "3", "-1", "65534"] {
        let error = abort(&format!("(i32.const {place}) (i32.const {place}) (i32.const 0) (i32.const 0)"));
        assert!(error.contains("abort: "), "{place}: {error}");
    }
}

#[test]
fn assemblyscript_gets_a_seed_the_time_and_traces() {
    let wasm = wat(
        r#"(import "env" "seed" (func $seed (result f64)))
           (import "env" "Date.now" (func $now (result f64)))
           (import "env" "trace" (func $trace (param i32 i32 f64 f64 f64 f64 f64)))"#,
        "i32.const 16384",
        &format!(
            r#"{}
            (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
              (if (f64.eq (call $seed) (call $seed)) (then unreachable))
              (if (f64.lt (call $now) (f64.const 1704067200000)) (then unreachable))
              (call $trace (i32.const 1000) (i32.const 2) (f64.const 1.5) (f64.const 2) (f64.const 3) (f64.const 4) (f64.const 5))
              (call $trace (i32.const 1000) (i32.const 0) (f64.const 1) (f64.const 2) (f64.const 3) (f64.const 4) (f64.const 5))
              (i32.const 0))"#,
            assemblyscript_string(1000, "here")
        ),
    );
    let rig = try_start(&wasm, options("")).unwrap();
    rig.stream().on_request_headers(&mut FakeExchange::get("/"), true).unwrap();
    let expected = [(LogLevel::Debug, "here 1.5, 2".to_owned()), (LogLevel::Debug, "here".to_owned())];
    assert_eq!(*rig.host.logs.lock(), expected);
}

#[test]
fn a_guest_that_could_take_no_answer_does_not_load() {
    let load = |import: &str, allocator: &str| {
        let text = format!(
            r#"(module {import} (memory (export "memory") 1) (func (export "proxy_abi_version_0_2_1")) {allocator})"#
        );
        Module::load(&engine(), "m", &wat::parse_str(&text).unwrap()).map(drop)
    };
    let get = r#"(import "env" "proxy_get_header_map_value" (func (param i32 i32 i32 i32 i32) (result i32)))"#;
    let set = r#"(import "env" "proxy_add_header_map_value" (func (param i32 i32 i32 i32 i32) (result i32)))"#;
    let error = load(get, "").unwrap_err().to_string();
    assert!(error.contains("no allocator") && error.contains("env.proxy_get_header_map_value"), "{error}");
    load(set, "").unwrap();
    for name in ["malloc", "proxy_on_memory_allocate"] {
        load(get, &format!(r#"(func (export "{name}") (param i32) (result i32) (i32.const 0))"#)).unwrap();
    }
}
