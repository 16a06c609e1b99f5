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
mod exports;
mod interpreter;

use calls::calls;

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

exports::callbacks! {
    proxy_on_request_headers => "request_headers" (count, end) -> 0;
    proxy_on_response_headers => "response_headers" (count, end) -> 0;
}
