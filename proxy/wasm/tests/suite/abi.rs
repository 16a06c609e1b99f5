//! Hostile pointers, lengths, maps and allocators.

use super::fakes::*;
use selvedge_wasm::*;

const REPLY: &str =
    r#"(import "env" "proxy_send_local_response" (func $reply (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))"#;

/// An allocator that hands out the second quarter of the page.
const GOOD: &str = "i32.const 16384";

/// Runs one hostcall in request headers and brings its status out as the status of a local reply.
fn call_with(allocator: &str, data: &str, call: &str, arguments: &[i64]) -> Result<u32, CallError> {
    let params = "i32 ".repeat(arguments.len());
    let pushes: String = arguments.iter().map(|argument| format!("(i32.const {argument})")).collect();
    let wasm = wat(
        &format!(r#"{REPLY} (import "env" "{call}" (func $call (param {params}) (result i32)))"#),
        allocator,
        &format!(
            r#"{data}
            (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
              (drop (call $reply (i32.add (i32.const 300) (call $call {pushes}))
                (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1)))
              (i32.const 0))"#
        ),
    );
    // One of them does not return: it meets its CPU time long before its deadline, however busy the machine is.
    let limits = Limits { cpu: std::time::Duration::from_millis(300), ..options("").limits };
    let rig = try_start(&wasm, PluginOptions { limits, ..options("") }).unwrap();
    let mut x = FakeExchange::get("/");
    x.properties.insert("request.path".into(), b"/".to_vec());
    let outcome = rig.stream().on_request_headers(&mut x, true)?;
    Ok(u32::from(outcome.effects.reply.unwrap().status) - 300)
}

fn status(data: &str, call: &str, arguments: &[i64]) -> u32 {
    call_with(GOOD, data, call, arguments).unwrap()
}

const OK: u32 = 0;
const NOT_FOUND: u32 = 1;
const BAD_ARGUMENT: u32 = 2;
const INVALID_MEMORY: u32 = 6;
const INTERNAL: u32 = 10;

const PAGE: i64 = 65536;
const MAX: i64 = 0xffff_ffff;

/// `accept` at 0; a header map of one pair at 100; a map whose count lies at 200; a map whose value length lies at 300.
const DATA: &str = r#"(data (i32.const 0) "accept")
    (data (i32.const 100) "\01\00\00\00\01\00\00\00\01\00\00\00a\00b\00")
    (data (i32.const 200) "\ff\ff\ff\ff\01\00\00\00\01\00\00\00a\00b\00")
    (data (i32.const 300) "\01\00\00\00\01\00\00\00\ff\ff\ff\ffa\00b\00")
    (data (i32.const 400) "auth")
    (data (i32.const 500) "request\00path\00")
    (data (i32.const 600) "bad\ff")"#;

#[test]
fn hostcalls_answer_bad_arguments_with_a_status() {
    let cases: &[(&str, &str, &[i64], u32)] = &[
        ("a line", "proxy_log", &[2, 0, 6], OK),
        ("a log level of 6", "proxy_log", &[6, 0, 6], BAD_ARGUMENT),
        ("a line at the end of memory", "proxy_log", &[2, PAGE - 6, 6], OK),
        ("a line over the end of memory", "proxy_log", &[2, PAGE - 6, 7], INVALID_MEMORY),
        ("a pointer and length that wrap around", "proxy_log", &[2, MAX, 2], INVALID_MEMORY),
        ("a length of u32::MAX", "proxy_log", &[2, 0, MAX], INVALID_MEMORY),
        ("nothing, anywhere", "proxy_log", &[2, MAX, 0], OK),
        ("an out pointer outside", "proxy_get_log_level", &[PAGE - 3], INVALID_MEMORY),
        ("a header", "proxy_get_header_map_value", &[0, 0, 6, 800, 804], OK),
        ("a header that is missing", "proxy_get_header_map_value", &[0, 400, 4, 800, 804], NOT_FOUND),
        ("a header name that is not UTF-8", "proxy_get_header_map_value", &[0, 600, 4, 800, 804], NOT_FOUND),
        ("a header of a map that is not there", "proxy_get_header_map_value", &[3, 0, 6, 800, 804], NOT_FOUND),
        ("a header of a callout that is not there", "proxy_get_header_map_value", &[6, 0, 6, 800, 804], NOT_FOUND),
        ("a header of map 8", "proxy_get_header_map_value", &[8, 0, 6, 800, 804], BAD_ARGUMENT),
        ("a header name outside", "proxy_get_header_map_value", &[0, PAGE, 6, 800, 804], INVALID_MEMORY),
        ("a result pointer outside", "proxy_get_header_map_value", &[0, 0, 6, MAX, 804], INVALID_MEMORY),
        ("a result size outside", "proxy_get_header_map_value", &[0, 0, 6, 800, PAGE], INVALID_MEMORY),
        ("all headers", "proxy_get_header_map_pairs", &[0, 800, 804], OK),
        ("all headers of a map that is not there", "proxy_get_header_map_pairs", &[2, 800, 804], OK),
        ("all headers of gRPC metadata", "proxy_get_header_map_pairs", &[4, 800, 804], OK),
        ("a map", "proxy_set_header_map_pairs", &[0, 100, 16], OK),
        ("a map that counts 4 billion", "proxy_set_header_map_pairs", &[0, 200, 16], BAD_ARGUMENT),
        ("a map with a value of 4 GiB", "proxy_set_header_map_pairs", &[0, 300, 16], BAD_ARGUMENT),
        ("a map outside", "proxy_set_header_map_pairs", &[0, PAGE, 16], INVALID_MEMORY),
        ("a map that is not there", "proxy_set_header_map_pairs", &[2, 100, 16], BAD_ARGUMENT),
        ("a read-only map", "proxy_set_header_map_pairs", &[6, 100, 16], BAD_ARGUMENT),
        ("adding", "proxy_add_header_map_value", &[0, 0, 6, 400, 4], OK),
        ("adding a value outside", "proxy_add_header_map_value", &[0, 0, 6, PAGE, 4], INVALID_MEMORY),
        ("adding a name that is not UTF-8", "proxy_add_header_map_value", &[0, 600, 4, 400, 4], BAD_ARGUMENT),
        ("removing", "proxy_remove_header_map_value", &[0, 0, 6], OK),
        ("a body that is not there", "proxy_get_buffer_bytes", &[0, 0, MAX, 800, 804], NOT_FOUND),
        ("a configuration from beyond its end", "proxy_get_buffer_bytes", &[7, MAX, MAX, 800, 804], OK),
        ("a buffer of type 9", "proxy_get_buffer_bytes", &[9, 0, 1, 800, 804], BAD_ARGUMENT),
        ("writing a configuration", "proxy_set_buffer_bytes", &[7, 0, 0, 0, 1], BAD_ARGUMENT),
        ("writing a body that is not there", "proxy_set_buffer_bytes", &[0, 0, 0, 0, 1], BAD_ARGUMENT),
        ("a property, with a NUL at its end", "proxy_get_property", &[500, 13, 800, 804], OK),
        ("a property that is not UTF-8", "proxy_get_property", &[600, 4, 800, 804], NOT_FOUND),
        ("a property path outside", "proxy_get_property", &[PAGE, 4, 800, 804], INVALID_MEMORY),
        ("setting a property from outside", "proxy_set_property", &[500, 12, PAGE, 1], INVALID_MEMORY),
        ("shared data that is not there", "proxy_get_shared_data", &[0, 6, 800, 804, 808], NOT_FOUND),
        ("a shared value of 4 GiB", "proxy_set_shared_data", &[0, 6, 0, MAX, 0], INTERNAL),
        ("a shared value outside", "proxy_set_shared_data", &[0, 6, PAGE, 1, 0], INVALID_MEMORY),
        ("a metric of type 3", "proxy_define_metric", &[3, 0, 6, 800], BAD_ARGUMENT),
        ("a metric without a name", "proxy_define_metric", &[0, 0, 0, 800], BAD_ARGUMENT),
        ("a metric that is not there", "proxy_get_metric", &[77, 800], NOT_FOUND),
        ("a call to an unknown upstream", "proxy_http_call", &[0, 6, 100, 16, 0, 0, 0, 0, 1000, 800], BAD_ARGUMENT),
        ("a call without pseudo headers", "proxy_http_call", &[400, 4, 100, 16, 0, 0, 0, 0, 1000, 800], BAD_ARGUMENT),
        ("a call with headers that lie", "proxy_http_call", &[400, 4, 200, 16, 0, 0, 0, 0, 1000, 800], BAD_ARGUMENT),
        ("a status outside of a callout", "proxy_get_status", &[808, 800, 804], OK),
        ("a foreign function that is not there", "proxy_call_foreign_function", &[0, 6, 0, 0, 800, 804], NOT_FOUND),
        ("a context that is not there", "proxy_set_effective_context", &[99], BAD_ARGUMENT),
        ("resuming a stream of type 4", "proxy_continue_stream", &[4], BAD_ARGUMENT),
        ("resuming TCP", "proxy_continue_stream", &[2], OK),
        ("done without having waited", "proxy_done", &[], OK),
        ("a gRPC call that is not there", "proxy_grpc_cancel", &[1], NOT_FOUND),
        ("a queue", "proxy_register_shared_queue", &[0, 6, 800], OK),
        ("a queue's id outside", "proxy_register_shared_queue", &[0, 6, MAX], INVALID_MEMORY),
        ("a queue with a name that is not UTF-8", "proxy_register_shared_queue", &[600, 4, 800], BAD_ARGUMENT),
        ("a queue with a name of 4 GiB", "proxy_register_shared_queue", &[0, MAX, 800], INVALID_MEMORY),
        ("a queue that nobody registered", "proxy_resolve_shared_queue", &[0, 0, 0, 6, 800], NOT_FOUND),
        ("a queue of a vm_id outside", "proxy_resolve_shared_queue", &[PAGE, 4, 0, 6, 800], INVALID_MEMORY),
        ("an item for no queue", "proxy_enqueue_shared_queue", &[1, 0, 6], NOT_FOUND),
        ("an item from outside", "proxy_enqueue_shared_queue", &[1, PAGE, 6], INVALID_MEMORY),
        ("an item of no queue", "proxy_dequeue_shared_queue", &[0, 800, 804], NOT_FOUND),
        ("an item to a place outside", "proxy_dequeue_shared_queue", &[1, MAX, 804], INVALID_MEMORY),
    ];
    for (name, call, arguments, want) in cases {
        assert_eq!(status(DATA, call, arguments), *want, "{name}: {call}{arguments:?}");
    }
}

#[test]
fn a_local_reply_with_a_status_that_is_none_is_refused() {
    for code in [0, 101, 199, 600, 65536 + 200] {
        assert_eq!(status(DATA, "proxy_send_local_response", &[code, 0, 0, 0, 0, 0, 0, -1]), BAD_ARGUMENT, "{code}");
    }
}

#[test]
fn an_allocator_that_lies_never_gets_the_host_to_write() {
    let get = |allocator| call_with(allocator, DATA, "proxy_get_header_map_value", &[0, 0, 6, 800, 804]);
    assert_eq!(get("i32.const 0"), Ok(INTERNAL));
    assert_eq!(get("i32.const -16"), Ok(INVALID_MEMORY));
    assert_eq!(get("i32.const 65534"), Ok(INVALID_MEMORY));
    assert_eq!(get("i32.const 65533"), Ok(OK));
    assert!(matches!(get("unreachable"), Err(CallError::Trap { callback: "proxy_on_request_headers", .. })));
    assert!(matches!(get("(loop (br 0)) i32.const 1"), Err(CallError::Cpu { .. })));
}

#[test]
fn an_allocator_that_calls_the_host_cannot_reach_the_exchange_or_recurse() {
    let wasm = wat(
        r#"(import "env" "proxy_get_header_map_value" (func $get (param i32 i32 i32 i32 i32) (result i32)))
           (import "env" "proxy_get_property" (func $property (param i32 i32 i32 i32) (result i32)))
           (import "env" "proxy_remove_header_map_value" (func $remove (param i32 i32 i32) (result i32)))"#,
        r#"(i32.store (i32.const 1000) (call $remove (i32.const 0) (i32.const 0) (i32.const 6)))
           (i32.store (i32.const 1004) (call $property (i32.const 700) (i32.const 11) (i32.const 900) (i32.const 904)))
           (i32.const 16384)"#,
        r#"(data (i32.const 0) "accept") (data (i32.const 700) "plugin_name")
           (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
             (if (call $get (i32.const 0) (i32.const 0) (i32.const 6) (i32.const 800) (i32.const 804)) (then unreachable))
             ;; removing answered BAD_ARGUMENT, the inner allocation INTERNAL_FAILURE
             (if (i32.ne (i32.load (i32.const 1000)) (i32.const 2)) (then unreachable))
             (if (i32.ne (i32.load (i32.const 1004)) (i32.const 10)) (then unreachable))
             (i32.const 0))"#,
    );
    let rig = try_start(&wasm, options("")).unwrap();
    let mut x = FakeExchange::get("/");
    rig.stream().on_request_headers(&mut x, true).unwrap();
    assert_eq!(x.text(HeaderMap::Request, "accept").as_deref(), Some("*/*"));
}

/// Every served call and its number of parameters; `L` marks a last parameter of 64 bits.
const CALLS: &[(&str, &str, usize, bool)] = &[
    ("env", "proxy_log", 3, false),
    ("env", "proxy_get_log_level", 1, false),
    ("env", "proxy_get_header_map_value", 5, false),
    ("env", "proxy_get_header_map_pairs", 3, false),
    ("env", "proxy_get_header_map_size", 2, false),
    ("env", "proxy_set_header_map_pairs", 3, false),
    ("env", "proxy_add_header_map_value", 5, false),
    ("env", "proxy_replace_header_map_value", 5, false),
    ("env", "proxy_remove_header_map_value", 3, false),
    ("env", "proxy_get_buffer_bytes", 5, false),
    ("env", "proxy_get_buffer_status", 3, false),
    ("env", "proxy_set_buffer_bytes", 5, false),
    ("env", "proxy_get_property", 4, false),
    ("env", "proxy_set_property", 4, false),
    ("env", "proxy_get_shared_data", 5, false),
    ("env", "proxy_set_shared_data", 5, false),
    ("env", "proxy_register_shared_queue", 3, false),
    ("env", "proxy_resolve_shared_queue", 5, false),
    ("env", "proxy_enqueue_shared_queue", 3, false),
    ("env", "proxy_dequeue_shared_queue", 3, false),
    ("env", "proxy_define_metric", 4, false),
    ("env", "proxy_get_metric", 2, false),
    ("env", "proxy_record_metric", 2, true),
    ("env", "proxy_increment_metric", 2, true),
    ("env", "proxy_http_call", 10, false),
    ("env", "proxy_get_status", 3, false),
    ("env", "proxy_call_foreign_function", 6, false),
    ("env", "proxy_send_local_response", 8, false),
    ("env", "proxy_continue_stream", 1, false),
    ("env", "proxy_close_stream", 1, false),
    ("env", "proxy_set_effective_context", 1, false),
    ("env", "proxy_set_tick_period_milliseconds", 1, false),
    ("env", "proxy_get_current_time_nanoseconds", 1, false),
    ("env", "proxy_done", 0, false),
    ("wasi_snapshot_preview1", "fd_write", 4, false),
    ("wasi_snapshot_preview1", "random_get", 2, false),
    ("wasi_snapshot_preview1", "environ_sizes_get", 2, false),
    ("wasi_snapshot_preview1", "environ_get", 2, false),
    ("wasi_snapshot_preview1", "args_sizes_get", 2, false),
    ("wasi_snapshot_preview1", "args_get", 2, false),
    ("wasi_snapshot_preview1", "path_filestat_get", 5, false),
    ("wasi_unstable", "fd_write", 4, false),
];

/// A guest that calls one hostcall 2000 times with arguments picked from edges, its allocator returning edges too, over memory full of
/// small numbers. Nothing to assert but that the host lives: no panic, and the guest returns.
#[test]
fn no_combination_of_edge_values_hurts_the_host() {
    let edges: [u32; 16] =
        [0, 1, 2, 4, 8, 16, 100, 800, 4096, 65_520, 65_535, 65_536, 0x7fff_ffff, 0x8000_0000, 0xffff_fff0, u32::MAX];
    let table: String = edges.iter().flat_map(|edge| edge.to_le_bytes()).map(|byte| format!("\\{byte:02x}")).collect();
    let noise: String = (0..4000u32).map(|i| format!("\\{:02x}", (i * i) % 5)).collect();
    for (module, call, params, long) in CALLS {
        let types: String = (0..*params).map(|i| if *long && i + 1 == *params { "i64 " } else { "i32 " }).collect();
        let picks: String = (0..*params)
            .map(|i| if *long && i + 1 == *params { "(i64.extend_i32_s (call $pick))" } else { "(call $pick)" })
            .collect();
        let wasm = wat(
            &format!(r#"(import "{module}" "{call}" (func $call (param {types}) (result i32)))"#),
            "(call $pick)",
            &format!(
                r#"(global $seed (mut i32) (i32.const 12345))
                (data (i32.const 0) "{noise}")
                (data (i32.const 60000) "{table}")
                (func $pick (result i32)
                  (global.set $seed (i32.add (i32.mul (global.get $seed) (i32.const 1664525)) (i32.const 1013904223)))
                  (i32.load offset=60000 (i32.and (i32.shr_u (global.get $seed) (i32.const 16)) (i32.const 60))))
                (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (local $n i32)
                  (loop $again
                    (drop (call $call {picks}))
                    (local.set $n (i32.add (local.get $n) (i32.const 1)))
                    (br_if $again (i32.lt_u (local.get $n) (i32.const 2000))))
                  (i32.const 0))"#
            ),
        );
        let rig = try_start(
            &wasm,
            PluginOptions {
                limits: Limits {
                    cpu: std::time::Duration::from_secs(60),
                    deadline: std::time::Duration::from_secs(60),
                    hostcalls: 0,
                    ..Limits::default()
                },
                ..options("config")
            },
        )
        .unwrap();
        let mut x = FakeExchange::get("/");
        x.request_body = Some(Body::from(bytes::Bytes::from("body")));
        let outcome = rig.stream().on_request_headers(&mut x, true);
        assert!(outcome.is_ok(), "{call}: {outcome:?}");
    }
}

#[test]
fn what_context_create_asks_for_does_not_leak_into_another_stream() {
    let wasm = wat(
        REPLY,
        GOOD,
        r#"(func (export "proxy_on_context_create") (param i32 i32)
             (drop (call $reply (i32.const 403) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1))))
           (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (i32.const 0))"#,
    );
    let rig = try_start(&wasm, options("")).unwrap();
    let (mut one, _two) = (rig.stream(), rig.stream());
    let outcome = one.on_request_headers(&mut FakeExchange::get("/"), true).unwrap();
    assert!(outcome.effects.is_empty());
}

#[test]
fn wasi_writes_to_the_log_and_exit_is_a_trap() {
    let wasm = wat(
        r#"(import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
           (import "wasi_snapshot_preview1" "fd_prestat_get" (func $prestat (param i32 i32) (result i32)))
           (import "wasi_snapshot_preview1" "fd_seek" (func $seek (param i32 i64 i32 i32) (result i32)))
           (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))"#,
        GOOD,
        r#"(data (i32.const 0) "one ") (data (i32.const 10) "line\0a")
           (data (i32.const 100) "\00\00\00\00\04\00\00\00\0a\00\00\00\05\00\00\00")
           (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
             (if (call $write (i32.const 2) (i32.const 100) (i32.const 2) (i32.const 200)) (then unreachable))
             (if (i32.ne (i32.load (i32.const 200)) (i32.const 9)) (then unreachable))
             (if (i32.ne (call $write (i32.const 3) (i32.const 100) (i32.const 2) (i32.const 200)) (i32.const 8)) (then unreachable))
             (if (i32.ne (call $prestat (i32.const 3) (i32.const 0)) (i32.const 8)) (then unreachable))
             (call $exit (i32.const 7))
             (i32.const 0))"#,
    );
    let rig = try_start(&wasm, options("")).unwrap();
    let error = rig.stream().on_request_headers(&mut FakeExchange::get("/"), true).unwrap_err();
    assert!(rig.host.logs.lock().contains(&(LogLevel::Error, "one line".into())), "{error}");
    assert!(error.to_string().contains("exited with code 7"), "{error}");
    assert!(error.to_string().contains("one line"), "last words are in the message: {error}");
}

#[test]
fn log_lines_are_cut_at_64_kib() {
    let wasm = wat(
        r#"(import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))"#,
        GOOD,
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
             (drop (memory.grow (i32.const 3)))
             (call $log (i32.const 2) (i32.const 0) (i32.const 200000)))"#,
    );
    let rig = try_start(&wasm, options("")).unwrap();
    rig.stream().on_request_headers(&mut FakeExchange::get("/"), true).unwrap();
    assert_eq!(rig.host.logs.lock()[0].1.len(), 64 << 10);
}
