//! Deadlines, memory, hostcalls, traps; and that the next stream finds a new VM.

use std::time::{Duration, Instant};

use super::fakes::*;
use selvedge_wasm::*;

fn tight(config: &str) -> PluginOptions {
    PluginOptions { limits: Limits { cpu: Duration::from_millis(300), ..options("").limits }, ..options(config) }
}

/// Runs all callbacks of an exchange with bodies and trailers.
fn whole_exchange(stream: &mut Stream) -> Result<(), CallError> {
    let mut x = FakeExchange::get("/");
    x.put(HeaderMap::RequestTrailers, &[]);
    x.put(HeaderMap::ResponseTrailers, &[]);
    x.request_body = Some(Body::new());
    x.response_body = Some(Body::new());
    stream.on_request_headers(&mut x, false)?;
    stream.on_request_body(&mut x, 0, true)?;
    stream.on_request_trailers(&mut x)?;
    x.respond();
    stream.on_response_headers(&mut x, false)?;
    stream.on_response_body(&mut x, 0, true)?;
    stream.on_response_trailers(&mut x)?;
    stream.finish(&mut x).unwrap();
    Ok(())
}

#[test]
fn a_trap_in_any_callback_names_it_and_the_next_stream_gets_a_new_vm() {
    for callback in [
        "request_headers",
        "request_body",
        "request_trailers",
        "response_headers",
        "response_body",
        "response_trailers",
    ] {
        let rig = guest("trap", callback);
        for round in 0..2 {
            match whole_exchange(&mut rig.stream()) {
                Err(CallError::Trap { callback: at, message }) => {
                    assert_eq!(at, format!("proxy_on_{callback}"), "round {round}");
                    assert!(message.contains("as configured"), "the panic's text: {message}");
                    assert!(message.contains("panic"), "function names: {message}");
                }
                other => panic!("{callback}, round {round}: {other:?}"),
            }
        }
    }
}

#[test]
fn a_trap_while_ending_is_not_the_exchanges_business() {
    for callback in ["done", "log"] {
        let rig = guest("trap", callback);
        for _ in 0..2 {
            whole_exchange(&mut rig.stream()).unwrap();
        }
        assert!(rig.host.logged("as configured"));
    }
}

#[test]
fn a_trap_or_a_no_while_starting_fails_the_start() {
    for callback in ["vm_start", "configure"] {
        let error = try_start(&guest_wasm("trap"), options(callback)).err().unwrap();
        let StartError::Call(CallError::Trap { callback: at, .. }) = error else { panic!("{error:?}") };
        assert_eq!(at, format!("proxy_on_{callback}"));
    }
    let error = try_start(&guest_wasm("tick"), options("not a number")).err().unwrap();
    assert_eq!(error, StartError::Refused { callback: "proxy_on_configure", reason: None });
}

#[test]
fn other_streams_of_a_dead_vm_are_told() {
    let rig = guest("trap", "response_headers");
    let (mut one, mut other) = (rig.stream(), rig.stream());
    let mail = other.mail();
    whole_exchange(&mut one).unwrap_err();
    assert_eq!(other.on_request_headers(&mut FakeExchange::get("/"), true).unwrap_err(), CallError::Poisoned);
    assert!(futures::executor::block_on(mail).poisoned, "a waiting driver learns it");
    drop(other);
    rig.stream().on_request_headers(&mut FakeExchange::get("/"), true).unwrap();
}

#[test]
fn other_workers_do_not_notice() {
    let rig = guest("trap", "request_headers");
    let mut other = rig.plugin.open_stream(1).unwrap();
    whole_exchange(&mut rig.stream()).unwrap_err();
    other.on_response_headers(&mut FakeExchange::get("/"), true).unwrap();
}

#[test]
fn a_plugin_that_fails_every_stream_is_held_back() {
    let rig = guest("trap", "request_headers");
    let held_back = (0..40).find_map(|_| match rig.plugin.open_stream(0) {
        Ok(mut stream) => {
            whole_exchange(&mut stream).unwrap_err();
            None
        }
        Err(error) => Some(error),
    });
    let Some(CallError::Unavailable { retry_in }) = held_back else { panic!("{held_back:?}") };
    assert!(retry_in <= Duration::from_secs(1));
}

#[test]
fn an_endless_loop_ends_when_its_cpu_time_is_used_up() {
    let rig = try_start(&guest_wasm("spin"), tight("request_headers")).unwrap();
    let started = Instant::now();
    let error = whole_exchange(&mut rig.stream()).unwrap_err();
    assert_eq!(error, CallError::Cpu { callback: "proxy_on_request_headers", limit: Duration::from_millis(300) });
    // How long that takes by the clock is a matter of how busy the machine is.
    assert!(started.elapsed() >= Duration::from_millis(290));
    rig.stream();
}

#[test]
fn a_call_ends_at_its_deadline_whatever_cpu_time_it_has_left() {
    // Long enough for callbacks that do nothing, and for the start, on a machine that is busy.
    let limit = Duration::from_millis(500);
    let limits = Limits { deadline: limit, ..options("").limits };
    let rig = try_start(&guest_wasm("spin"), PluginOptions { limits, ..options("request_headers") }).unwrap();
    let error = whole_exchange(&mut rig.stream()).unwrap_err();
    assert_eq!(error, CallError::Deadline { callback: "proxy_on_request_headers", limit });
}

#[test]
fn an_endless_loop_in_configure_gets_twenty_budgets() {
    let limits = Limits { cpu: Duration::from_millis(25), ..options("").limits };
    let error = try_start(&guest_wasm("spin"), PluginOptions { limits, ..options("configure") }).err().unwrap();
    let limit = Duration::from_millis(500);
    assert_eq!(error, StartError::Call(CallError::Cpu { callback: "proxy_on_configure", limit }));
}

#[test]
fn endless_memory_ends_at_the_ceiling() {
    let rig = guest("hog", "request_body");
    let error = whole_exchange(&mut rig.stream()).unwrap_err();
    assert_eq!(error, CallError::Memory { callback: "proxy_on_request_body", limit: 64 << 20 });
    rig.stream();
}

#[test]
fn a_guest_that_survives_a_refused_growth_goes_on() {
    let wasm = wat(
        "",
        "i32.const 0",
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
             (i32.ne (memory.grow (i32.const 2000)) (i32.const -1)))"#,
    );
    let rig = try_start(&wasm, options("")).unwrap();
    let outcome = rig.stream().on_request_headers(&mut FakeExchange::get("/"), true).unwrap();
    assert_eq!(outcome.action, Action::Continue, "growing was refused");
}

#[test]
fn a_module_larger_than_the_ceiling_does_not_start() {
    let wasm =
        wat::parse_str(r#"(module (memory (export "memory") 17) (func (export "proxy_abi_version_0_2_1")))"#).unwrap();
    let limits = Limits { memory: 1 << 20, ..Limits::default() };
    let error = try_start(&wasm, PluginOptions { limits, ..options("") }).err().unwrap();
    assert_eq!(error, StartError::Call(CallError::Memory { callback: "instantiation", limit: 1 << 20 }));
}

#[test]
fn a_table_larger_than_its_ceiling_does_not_start() {
    let wasm = wat::parse_str(
        r#"(module (memory (export "memory") 1) (table 100001 funcref) (func (export "proxy_abi_version_0_2_1")))"#,
    )
    .unwrap();
    let error = try_start(&wasm, options("")).err().unwrap();
    assert!(matches!(error, StartError::Call(CallError::Trap { callback: "instantiation", .. })), "{error:?}");
}

#[test]
fn hostcalls_have_a_budget_per_call() {
    let wasm = wat(
        r#"(import "env" "proxy_done" (func $call (result i32)))"#,
        "i32.const 0",
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
             (local $n i32)
             (loop (drop (call $call)) (local.set $n (i32.add (local.get $n) (i32.const 1)))
               (br_if 0 (i32.lt_u (local.get $n) (i32.const 10))))
             (i32.const 0))
           (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32) (loop (drop (call $call)) (br 0)) (i32.const 0))"#,
    );
    let limits = Limits { hostcalls: 10, ..options("").limits };
    let rig = try_start(&wasm, PluginOptions { limits, ..options("") }).unwrap();
    let (mut stream, mut x) = (rig.stream(), FakeExchange::get("/"));
    for _ in 0..3 {
        stream.on_request_headers(&mut x, true).unwrap();
    }
    let error = stream.on_response_headers(&mut x, true).unwrap_err();
    assert_eq!(error, CallError::Hostcalls { callback: "proxy_on_response_headers", limit: 10 });
}

#[test]
fn endless_recursion_is_a_trap() {
    let wasm = wat(
        "",
        "i32.const 0",
        r#"(func $deeper (param i32) (result i32) (i32.add (call $deeper (local.get 0)) (i32.const 1)))
           (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (call $deeper (i32.const 0)))"#,
    );
    let rig = try_start(&wasm, options("")).unwrap();
    let error = rig.stream().on_request_headers(&mut FakeExchange::get("/"), true).unwrap_err();
    assert!(error.to_string().contains("stack"), "{error}");
}
