//! The puppet: a module that imports every hostcall and does what its configuration says, byte by byte.
//!
//! Its configuration is the program. Each callback goes on where the last one stopped: an opcode below the number of calls makes that
//! call, with 4 bytes of the program (8 for 64 bits) for each argument; the next ones return from the callback with an action, set what
//! the allocator answers, grow the memory, or trap. After the end of the program every callback returns 0. The allocator takes one step
//! of the program too, every other time.

/// Every hostcall: module, name, parameters (`i` 32 bits, `l` 64 bits).
pub(crate) const CALLS: &[(&str, &str, &str)] = &[
    ("env", "proxy_log", "iii"),
    ("env", "proxy_get_log_level", "i"),
    ("env", "proxy_get_header_map_value", "iiiii"),
    ("env", "proxy_get_header_map_pairs", "iii"),
    ("env", "proxy_get_header_map_size", "ii"),
    ("env", "proxy_set_header_map_pairs", "iii"),
    ("env", "proxy_add_header_map_value", "iiiii"),
    ("env", "proxy_replace_header_map_value", "iiiii"),
    ("env", "proxy_remove_header_map_value", "iii"),
    ("env", "proxy_get_buffer_bytes", "iiiii"),
    ("env", "proxy_get_buffer_status", "iii"),
    ("env", "proxy_set_buffer_bytes", "iiiii"),
    ("env", "proxy_get_property", "iiii"),
    ("env", "proxy_set_property", "iiii"),
    ("env", "proxy_get_shared_data", "iiiii"),
    ("env", "proxy_set_shared_data", "iiiii"),
    ("env", "proxy_register_shared_queue", "iii"),
    ("env", "proxy_resolve_shared_queue", "iiiii"),
    ("env", "proxy_enqueue_shared_queue", "iii"),
    ("env", "proxy_dequeue_shared_queue", "iii"),
    ("env", "proxy_define_metric", "iiii"),
    ("env", "proxy_get_metric", "ii"),
    ("env", "proxy_record_metric", "il"),
    ("env", "proxy_increment_metric", "il"),
    ("env", "proxy_http_call", "iiiiiiiiii"),
    ("env", "proxy_get_status", "iii"),
    ("env", "proxy_grpc_call", "iiiiiiiiiiii"),
    ("env", "proxy_grpc_stream", "iiiiiiiii"),
    ("env", "proxy_grpc_send", "iiii"),
    ("env", "proxy_grpc_cancel", "i"),
    ("env", "proxy_grpc_close", "i"),
    ("env", "proxy_call_foreign_function", "iiiiii"),
    ("env", "proxy_send_local_response", "iiiiiiii"),
    ("env", "proxy_continue_stream", "i"),
    ("env", "proxy_close_stream", "i"),
    ("env", "proxy_set_effective_context", "i"),
    ("env", "proxy_set_tick_period_milliseconds", "i"),
    ("env", "proxy_get_current_time_nanoseconds", "i"),
    ("env", "proxy_done", ""),
    ("wasi_snapshot_preview1", "fd_write", "iiii"),
    ("wasi_snapshot_preview1", "fd_read", "iiii"),
    ("wasi_snapshot_preview1", "fd_fdstat_get", "ii"),
    ("wasi_snapshot_preview1", "fd_prestat_get", "ii"),
    ("wasi_snapshot_preview1", "random_get", "ii"),
    ("wasi_snapshot_preview1", "clock_time_get", "ili"),
    ("wasi_snapshot_preview1", "clock_res_get", "ii"),
    ("wasi_snapshot_preview1", "environ_sizes_get", "ii"),
    ("wasi_snapshot_preview1", "environ_get", "ii"),
    ("wasi_snapshot_preview1", "args_sizes_get", "ii"),
    ("wasi_snapshot_preview1", "args_get", "ii"),
    ("wasi_snapshot_preview1", "poll_oneoff", "iiii"),
    ("wasi_snapshot_preview1", "sched_yield", ""),
    ("wasi_unstable", "fd_write", "iiii"),
];

/// Callbacks, their parameters, and whether they have a result.
const CALLBACKS: &[(&str, usize, bool)] = &[
    ("proxy_on_context_create", 2, false),
    ("proxy_on_request_headers", 3, true),
    ("proxy_on_request_body", 3, true),
    ("proxy_on_request_trailers", 2, true),
    ("proxy_on_response_headers", 3, true),
    ("proxy_on_response_body", 3, true),
    ("proxy_on_response_trailers", 2, true),
    ("proxy_on_http_call_response", 5, false),
    ("proxy_on_grpc_receive_initial_metadata", 3, false),
    ("proxy_on_grpc_receive", 3, false),
    ("proxy_on_grpc_receive_trailing_metadata", 3, false),
    ("proxy_on_grpc_close", 3, false),
    ("proxy_on_queue_ready", 2, false),
    ("proxy_on_tick", 1, false),
    ("proxy_on_done", 1, true),
    ("proxy_on_log", 1, false),
    ("proxy_on_delete", 1, false),
];

/// Where the program lies; below it are names and maps that make calls succeed now and then, above it is room.
const PROGRAM: u32 = 0x8000;

/// See the file.
pub(crate) fn puppet() -> Vec<u8> {
    let imports: String = CALLS
        .iter()
        .enumerate()
        .map(|(index, (module, name, parameters))| {
            format!("(import \"{module}\" \"{name}\" (func $call{index} (param {}) (result i32)))\n", types(parameters))
        })
        .collect();
    let callbacks: String = CALLBACKS
        .iter()
        .map(|(name, parameters, result)| {
            let parameters = "i32 ".repeat(*parameters);
            let (result, end) = if *result { ("(result i32)", "") } else { ("", "drop") };
            format!("(func (export \"{name}\") (param {parameters}) {result} (call $play) {end})\n")
        })
        .collect();

    // Innermost first: opcode n leaves n blocks and lands behind the block's end, where its action is.
    let actions: Vec<String> =
        CALLS.iter().enumerate().map(|(index, call)| make_call(index, call.2)).chain(rest()).collect();
    let opcodes = actions.len();
    let labels: String = (0..opcodes).map(|opcode| format!("{opcode} ")).collect();
    let mut step = format!("(br_table {labels} {} (call $byte))", opcodes - 1);
    for action in &actions {
        step = format!("(block {step})\n{action}\n(br $next)");
    }

    let text = format!(
        r#"(module
        {imports}
        (memory (export "memory") 2)
        (func (export "proxy_abi_version_0_2_1"))
        (global $pc (mut i32) (i32.const {PROGRAM}))
        (global $end (mut i32) (i32.const {PROGRAM}))
        (global $place (mut i32) (i32.const 0x4000))
        (global $turn (mut i32) (i32.const 0))
        (data (i32.const 0) "auth\00:path\00x-name\00value\00request\00path\00auth\00puppet\00echo\00fail\00queue\00counter")
        (data (i32.const 256) "\03\00\00\00\07\00\00\00\03\00\00\00\05\00\00\00\01\00\00\00\0a\00\00\00\01\00\00\00:method\00GET\00:path\00/\00:authority\00a\00")
        (data (i32.const 512) "\01\00\00\00\01\00\00\00\ff\ff\ff\ffa\00b\00")
        (data (i32.const 768) "\00\00\00\00\04\00\00\00\0a\00\00\00\05\00\00\00")

        (func $byte (result i32)
          (if (i32.ge_u (global.get $pc) (global.get $end)) (then (return (i32.const 255))))
          (i32.load8_u (global.get $pc))
          (global.set $pc (i32.add (global.get $pc) (i32.const 1))))
        ;; An argument: a small number mostly, any number now and then.
        (func $word (result i32) (local $kind i32)
          (local.set $kind (i32.and (call $byte) (i32.const 7)))
          (if (i32.lt_u (local.get $kind) (i32.const 3)) (then (return (i32.and (call $byte) (i32.const 15)))))
          (if (i32.lt_u (local.get $kind) (i32.const 6)) (then (return (i32.mul (call $byte) (i32.const 4)))))
          (i32.or (i32.or (call $byte) (i32.shl (call $byte) (i32.const 8)))
                  (i32.or (i32.shl (call $byte) (i32.const 16)) (i32.shl (call $byte) (i32.const 24)))))
        (func $play (result i32)
          (loop $next {step})
          (i32.const 0))
        (func (export "proxy_on_memory_allocate") (param $size i32) (result i32)
          (if (i32.ge_u (global.get $pc) (global.get $end)) (then (return (global.get $place))))
          (global.set $turn (i32.xor (global.get $turn) (i32.const 1)))
          (if (global.get $turn) (then (drop (call $play))))
          (global.get $place))
        (func (export "proxy_on_configure") (param i32 i32) (result i32)
          (global.set $place (i32.const {PROGRAM}))
          (drop (call $call9 (i32.const 7) (i32.const 0) (i32.const 4096) (i32.const 0x7f00) (i32.const 0x7f04)))
          (global.set $end (i32.add (i32.const {PROGRAM}) (i32.load (i32.const 0x7f04))))
          (global.set $place (i32.const 0x4000))
          (drop (call $play))
          (i32.const 1))
        {callbacks})"#
    );
    wat::parse_str(&text).unwrap_or_else(|error| panic!("{error}"))
}

fn types(parameters: &str) -> String {
    parameters.chars().map(|ty| if ty == 'l' { "i64 " } else { "i32 " }).collect()
}

fn make_call(index: usize, parameters: &str) -> String {
    let arguments: String = parameters
        .chars()
        .map(|ty| if ty == 'l' { "(i64.extend_i32_s (call $word))" } else { "(call $word)" })
        .collect();
    format!("(drop (call $call{index} {arguments}))")
}

/// The opcodes behind the calls. The last stands for all others and for the end of the program: return.
fn rest() -> Vec<String> {
    [
        "(return (i32.and (call $byte) (i32.const 3)))",
        "(global.set $place (call $word))",
        "(drop (memory.grow (i32.and (call $byte) (i32.const 31))))",
        "(if (i32.eq (call $byte) (i32.const 77)) (then unreachable))",
        "(i32.store8 (i32.and (call $word) (i32.const 0x7fff)) (call $byte))",
        "(return (i32.const 0))",
    ]
    .map(str::to_owned)
    .into()
}
