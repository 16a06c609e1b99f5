//! The probe (see `probe`) as a module of version 0.1.0 of the ABI: header callbacks that are not told of the end, and the calls of that
//! version.

#![cfg(target_arch = "wasm32")]
#![allow(unsafe_code, reason = "raw imports and exports are what this guest is for")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "arguments of hostcalls are taken as the script gives them, whatever they mean"
)]

#[path = "../probe/calls.rs"]
mod calls;
#[path = "../probe/exports.rs"]
mod exports;
#[path = "../probe/interpreter.rs"]
mod interpreter;

use calls::calls;

calls! {
    proxy_get_configuration(out: i32, out_len: i32);
    proxy_continue_request();
    proxy_continue_response();
    proxy_clear_route_cache();
}

/// Makes a hostcall of this version of the ABI.
fn call(name: &str, words: &[i64]) -> Option<i32> {
    versioned(name, words).or_else(|| calls::common(name, words))
}

#[unsafe(no_mangle)]
extern "C" fn proxy_abi_version_0_1_0() {}

exports::callbacks! {
    proxy_on_request_headers => "request_headers" (count) -> 0;
    proxy_on_response_headers => "response_headers" (count) -> 0;
}
