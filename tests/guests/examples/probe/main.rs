//! The probe of the conformance suite: a guest without an SDK that does what its configuration says and writes down what came of it.
//!
//! SDKs hide statuses, panic on some of them and never send a bad pointer; this guest makes each hostcall exactly as it is told, with
//! every argument. What it is told is one line per step (`interpreter`), made from the case files by the suite.
//! Everything that happens is one line of the filter's log, `@@ ... @@`, the only channel that every host has.

#![cfg(target_arch = "wasm32")]
#![allow(unsafe_code, reason = "raw imports and exports are what this guest is for")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "arguments of hostcalls are taken as the script gives them, whatever they mean"
)]

mod calls;
mod interpreter;

use calls::calls;
use interpreter::run;

calls! {
    proxy_get_log_level(out: i32);
    proxy_continue_stream(stream: i32);
    proxy_close_stream(stream: i32);
}

/// Makes a hostcall of this version of the ABI.
fn call(name: &str, words: &[i64]) -> Option<i32> {
    versioned(name, words).or_else(|| calls::common(name, words))
}

#[unsafe(no_mangle)]
extern "C" fn proxy_abi_version_0_2_1() {}

#[unsafe(no_mangle)]
extern "C" fn proxy_on_memory_allocate(size: u32) -> u32 {
    interpreter::allocate(size)
}

/// Callbacks of the form `name(context, further arguments)`; those with a result get a default for it.
macro_rules! callbacks {
    ($($export:ident => $name:literal ($($argument:ident),*) $(-> $default:literal)?;)*) => {
        $(callbacks!(@one $export, $name, ($($argument),*) $(, $default)?);)*
    };
    (@one $export:ident, $name:literal, ($($argument:ident),*)) => {
        #[unsafe(no_mangle)]
        extern "C" fn $export(context: u32 $(, $argument: u32)*) {
            run(call, $name, context, &[$($argument),*], 0);
        }
    };
    (@one $export:ident, $name:literal, ($($argument:ident),*), $default:literal) => {
        #[unsafe(no_mangle)]
        extern "C" fn $export(context: u32 $(, $argument: u32)*) -> u32 {
            run(call, $name, context, &[$($argument),*], $default)
        }
    };
}

callbacks! {
    proxy_on_context_create => "context_create" (parent);
    proxy_on_vm_start => "vm_start" (size) -> 1;
    proxy_on_configure => "configure" (size) -> 1;
    proxy_on_tick => "tick" ();
    proxy_on_queue_ready => "queue_ready" (queue);
    proxy_on_request_headers => "request_headers" (count, end) -> 0;
    proxy_on_request_body => "request_body" (size, end) -> 0;
    proxy_on_request_trailers => "request_trailers" (count) -> 0;
    proxy_on_response_headers => "response_headers" (count, end) -> 0;
    proxy_on_response_body => "response_body" (size, end) -> 0;
    proxy_on_response_trailers => "response_trailers" (count) -> 0;
    proxy_on_http_call_response => "http_call_response" (id, headers, size, trailers);
    proxy_on_grpc_receive_initial_metadata => "grpc_receive_initial_metadata" (id, count);
    proxy_on_grpc_receive => "grpc_receive" (id, size);
    proxy_on_grpc_receive_trailing_metadata => "grpc_receive_trailing_metadata" (id, count);
    proxy_on_grpc_close => "grpc_close" (id, status);
    proxy_on_foreign_function => "foreign_function" (function, size);
    proxy_on_new_connection => "new_connection" () -> 0;
    proxy_on_downstream_data => "downstream_data" (size, end) -> 0;
    proxy_on_upstream_data => "upstream_data" (size, end) -> 0;
    proxy_on_downstream_connection_close => "downstream_connection_close" (peer);
    proxy_on_upstream_connection_close => "upstream_connection_close" (peer);
    proxy_on_done => "done" () -> 1;
    proxy_on_log => "log" ();
    proxy_on_delete => "delete" ();
}
