//! Fuzzes the host: a guest that does whatever its input says, with any pointers, lengths and ids, in any order, in every callback and
//! in its allocator, with another stream beside it.
//!
//! Every test run fuzzes for a moment. For longer: `BOLERO_RANDOM_TEST_TIME_MS=600000 cargo test -p selvedge-wasm --test fuzz`; with
//! `cargo bolero test` (libfuzzer, honggfuzz, afl) for as long as wanted, guided by coverage.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test fails by panicking, its helpers too")]

#[allow(dead_code, reason = "the host's own suite uses all of it")]
#[path = "../suite/fakes.rs"]
mod fakes;
mod guest;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fakes::*;
use selvedge_wasm::*;

fn module() -> Arc<Module> {
    static MODULE: OnceLock<Arc<Module>> = OnceLock::new();
    MODULE.get_or_init(|| Module::load(&engine(), "puppet", &guest::puppet()).unwrap()).clone()
}

fn host() -> Arc<FakeHost> {
    static HOST: OnceLock<Arc<FakeHost>> = OnceLock::new();
    HOST.get_or_init(Arc::default).clone()
}

#[test]
fn no_guest_can_hurt_the_host() {
    bolero::check!().with_max_len(2048).for_each(|program: &[u8]| run(program));
}

/// Inputs that were once found, or that reach far.
#[test]
fn known_programs_run() {
    let all_calls: Vec<u8> = (0..=255).flat_map(|opcode| [opcode; 41]).collect();
    for program in [&[][..], &[0; 2048], &[255; 2048], &all_calls] {
        run(program);
    }
    assert!(guest::CALLS.len() > 50);
}

/// One input: a plugin of its own, two streams, every callback. Nothing it does may panic, hang, or make more than it may.
fn run(program: &[u8]) {
    let began = Instant::now();
    let options = PluginOptions {
        name: "puppet".into(),
        vm_id: "puppet".into(),
        config: Bytes::copy_from_slice(program),
        limits: Limits {
            memory: 1 << 20,
            cpu: Duration::from_millis(200),
            deadline: Duration::from_secs(2),
            hostcalls: 2000,
            callouts: 8,
            ..Limits::default()
        },
        workers: 1,
        isolation: if program.first().is_some_and(|byte| byte & 1 == 1) {
            Isolation::Request
        } else {
            Isolation::Worker
        },
        snapshot: Snapshots::Never,
        ..PluginOptions::default()
    };
    if let Ok(plugin) = Plugin::start(module(), options, host()) {
        let mut exchange = exchange();
        let mut neighbour = plugin.open_stream(0);
        if let Ok(mut stream) = plugin.open_stream(0) {
            let _ = callbacks(&mut stream, &mut exchange);
            let _ = stream.finish(&mut exchange);
        }
        if let Ok(stream) = &mut neighbour {
            let _ = callbacks(stream, &mut exchange);
        }
        drop(neighbour);
        let _ = plugin.open_stream(0).map(|mut stream| callbacks(&mut stream, &mut exchange));
    }
    // 20 budgets for the start, one for each callback: far less than this.
    assert!(began.elapsed() < Duration::from_secs(60), "{program:?} took {:?}", began.elapsed());
}

fn exchange() -> FakeExchange {
    let mut exchange = FakeExchange::get("/path?query");
    exchange.put(HeaderMap::RequestTrailers, &[("x-trailer", "1")]);
    exchange.respond();
    exchange.put(HeaderMap::ResponseTrailers, &[("x-trailer", "1")]);
    exchange.request_body = Some(Body::from(Bytes::from_static(b"request body")));
    exchange.response_body = Some(Body::from(Bytes::from_static(b"response body")));
    exchange.properties.insert("request.path".into(), b"/path".to_vec());
    exchange
}

fn callbacks(stream: &mut Stream, x: &mut FakeExchange) -> Result<(), CallError> {
    let mut outgoing = Vec::new();
    for step in 0..6 {
        let outcome = match step {
            0 => stream.on_request_headers(x, false),
            1 => stream.on_request_body(x, 12, true),
            2 => stream.on_request_trailers(x),
            3 => stream.on_response_headers(x, false),
            4 => stream.on_response_body(x, 13, true),
            _ => stream.on_response_trailers(x),
        }?;
        bounded(&outcome.effects);
        outgoing.extend(outcome.effects.outgoing);
    }
    for sent in outgoing {
        let arrival = match sent {
            Outgoing::Http(callout) => {
                assert!(callout.timeout > Duration::ZERO && callout.body.len() <= 4 << 20);
                Arrival::Http(
                    callout.id,
                    if callout.id.0 % 3 == 0 { Err(CalloutFailure::Timeout) } else { Ok(answer()) },
                )
            }
            Outgoing::GrpcOpen(open) => {
                let message = GrpcEvent::Message(Bytes::from_static(b"message"));
                stream.on_arrival(x, Arrival::Grpc(open.id, message))?;
                Arrival::Grpc(open.id, GrpcEvent::Closed(GrpcStatus { code: 0, message: "done".into() }))
            }
            _ => continue,
        };
        bounded(&stream.on_arrival(x, arrival)?.effects);
    }
    Ok(())
}

/// What one call may come to.
fn bounded(effects: &Effects) {
    assert!(effects.outgoing.len() <= 2000);
    if let Some(reply) = &effects.reply {
        assert!((200..600).contains(&reply.status));
        assert!(reply.headers.len() <= 1024 && !reply.details.contains(char::is_whitespace));
    }
}
