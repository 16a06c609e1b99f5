//! HTTP callouts, mail between contexts, foreign functions.

use std::time::Duration;

use futures::FutureExt;

use super::fakes::*;
use selvedge_wasm::*;

fn http_calls(effects: Effects) -> Vec<Callout> {
    let http = |outgoing| match outgoing {
        Outgoing::Http(callout) => callout,
        other => panic!("not an HTTP call: {other:?}"),
    };
    effects.outgoing.into_iter().map(http).collect()
}

fn paused(config: &str) -> (Rig, Stream, FakeExchange, Callout) {
    let rig = guest("callout", config);
    let (mut stream, mut x) = (rig.stream(), FakeExchange::get("/"));
    let outcome = stream.on_request_headers(&mut x, true).unwrap();
    assert_eq!(outcome.action, Action::Pause);
    let [callout] = http_calls(outcome.effects).try_into().unwrap();
    (rig, stream, x, callout)
}

#[test]
fn a_callout_pauses_and_its_answer_resumes() {
    let (_rig, mut stream, mut x, callout) = paused("request_headers auth /check");
    assert_eq!((&callout.upstream[..], callout.timeout), ("auth", Duration::from_secs(2)));
    assert!(callout.headers.contains(&(":path".into(), "/check".into())));

    let outcome = stream.on_arrival(&mut x, Arrival::Http(callout.id, Ok(answer()))).unwrap();
    assert_eq!(
        (outcome.action, outcome.effects.resume_request, outcome.effects.resume_response),
        (Action::Pause, true, false)
    );
    assert_eq!(x.text(HeaderMap::Request, "x-callout").as_deref(), Some("200:5"));

    let again = stream.on_arrival(&mut x, Arrival::Http(callout.id, Ok(answer()))).unwrap();
    assert!(again.effects.is_empty(), "an answer counts once");
}

#[test]
fn a_failed_callout_reaches_the_guest_as_such() {
    for failure in [CalloutFailure::Timeout, CalloutFailure::Connect("refused".into()), CalloutFailure::TooLarge] {
        let (_rig, mut stream, mut x, callout) = paused("request_headers auth /check");
        let outcome = stream.on_arrival(&mut x, Arrival::Http(callout.id, Err(failure))).unwrap();
        assert_eq!(outcome.effects.reply.unwrap().status, 503);
    }
}

/// `proxy_get_status`: 11 (broken connection) and why, while a failed call is told; 0 at any other time.
#[test]
fn the_status_tells_why_a_callout_failed() {
    for (answer, seen) in [
        (Err(CalloutFailure::Timeout), "no response 11 timeout"),
        (Err(CalloutFailure::Reset("gone".into())), "no response 11 reset: gone"),
        (Ok(answer()), "response :status=200 server=auth\nbody hello\ntrailers"),
    ] {
        let rig = guest("grpc", "");
        let (mut stream, mut x) = (rig.stream(), FakeExchange::get("/"));
        x.add_header(HeaderMap::Request, b"x-script", b"http auth").unwrap();
        let [callout] = http_calls(stream.on_request_headers(&mut x, true).unwrap().effects).try_into().unwrap();
        let outcome = stream.on_arrival(&mut x, Arrival::Http(callout.id, answer)).unwrap();
        assert_eq!(outcome.effects.reply.unwrap().body, seen);
    }
}

#[test]
fn an_unknown_upstream_is_refused() {
    let rig = guest("callout", "request_headers elsewhere /");
    let outcome = rig.stream().on_request_headers(&mut FakeExchange::get("/"), true).unwrap();
    assert_eq!(outcome.effects.reply.unwrap().body, "callout refused");
}

#[test]
fn a_stream_that_ends_before_its_answer_leaves_a_healthy_vm() {
    let (rig, stream, _, callout) = paused("request_headers auth /check");
    drop(stream);
    let (mut other, mut x) = (rig.stream(), FakeExchange::get("/"));
    assert!(
        other.on_arrival(&mut x, Arrival::Http(callout.id, Ok(answer()))).unwrap().effects.is_empty(),
        "too late, and harmless"
    );
    assert_eq!(other.on_request_headers(&mut x, true).unwrap().effects.outgoing.len(), 1);
}

pub(crate) const PSEUDO: &str = r#"(data (i32.const 0) "auth")
    (data (i32.const 100) "\03\00\00\00\07\00\00\00\03\00\00\00\05\00\00\00\01\00\00\00\0a\00\00\00\01\00\00\00:method\00GET\00:path\00/\00:authority\00a\00")"#;
pub(crate) const HTTP_CALL: &str =
    r#"(import "env" "proxy_http_call" (func $http (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))"#;
pub(crate) const CALL: &str = "(call $http (i32.const 0) (i32.const 4) (i32.const 100) (i32.const 62) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 800))";

#[test]
fn callouts_are_bounded_per_call() {
    let wasm = wat(
        HTTP_CALL,
        "i32.const 0",
        &format!(
            r#"{PSEUDO}
            (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
              (loop (br_if 0 (i32.eqz {CALL})))
              (i32.const 1))"#
        ),
    );
    let rig = try_start(&wasm, options("")).unwrap();
    let outcome = rig.stream().on_request_headers(&mut FakeExchange::get("/"), true).unwrap();
    let callouts = http_calls(outcome.effects);
    assert_eq!(callouts.len(), 32);
    assert_eq!(callouts[0].timeout, Duration::from_secs(5), "0 is no endless wait");
    assert!(callouts.windows(2).all(|pair| pair[0].id != pair[1].id));
}

#[test]
fn callouts_are_bounded_per_plugin_and_their_end_makes_room() {
    let limits = Limits { callouts: 2, ..options("").limits };
    let options = PluginOptions { limits, ..options("request_headers auth /check") };
    let rig = try_start(&guest_wasm("callout"), options).unwrap();
    let mut x = FakeExchange::get("/");
    let mut open: Vec<(Stream, Outcome)> = (0..3)
        .map(|worker| {
            let mut stream = rig.plugin.open_stream(worker).unwrap();
            let outcome = stream.on_request_headers(&mut x, true).unwrap();
            (stream, outcome)
        })
        .collect();
    let (_, refused) = open.pop().unwrap();
    assert_eq!(refused.effects.reply.unwrap().body, "callout refused");

    let (mut stream, outcome) = open.pop().unwrap();
    let [callout] = http_calls(outcome.effects).try_into().unwrap();
    stream.on_arrival(&mut x, Arrival::Http(callout.id, Ok(answer()))).unwrap();
    let again = || rig.stream().on_request_headers(&mut FakeExchange::get("/"), true).unwrap();
    assert_eq!(http_calls(again().effects).len(), 1, "one has ended; and this one with its stream");
    drop(open);
    assert_eq!(http_calls(again().effects).len(), 1);
}

#[test]
fn calls_of_streams_that_nothing_is_kept_for_are_forgotten_with_them() {
    let wasm = wat(
        HTTP_CALL,
        "i32.const 0",
        &format!(
            r#"{PSEUDO} (@custom "selvedge.phases" "request_headers stateless")
            (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) {CALL})"#
        ),
    );
    let called = |rig: &Rig| {
        let mut stream = rig.stream();
        let outcome = stream.on_request_headers(&mut FakeExchange::get("/"), true).unwrap();
        (stream, http_calls(outcome.effects).len())
    };
    let limits = Limits { callouts: 40, ..options("").limits };
    let rig = try_start(&wasm, PluginOptions { limits, ..options("") }).unwrap();
    let open: Vec<_> = (0..41).map(|_| called(&rig)).collect();
    let calls: Vec<usize> = open.iter().map(|(_, calls)| *calls).collect();
    assert_eq!(calls, [&[1; 40][..], &[0]].concat(), "each stream has its own, and the plugin's limit is theirs");
    drop(open);
    for _ in 0..50 {
        let (mut stream, calls) = called(&rig);
        assert_eq!(calls, 1);
        stream.finish(&mut FakeExchange::get("/")).unwrap();
    }
}

#[tokio::test]
async fn a_call_made_while_ending_is_still_sent() {
    let wasm = wat(
        HTTP_CALL,
        "i32.const 0",
        &format!(
            r#"{PSEUDO}
            (func (export "proxy_on_log") (param i32) (if {CALL} (then unreachable)))"#
        ),
    );
    let rig = try_start(&wasm, options("")).unwrap();
    let _ticking = tokio::spawn(rig.plugin.tick_loop(0));
    rig.stream().finish(&mut FakeExchange::get("/")).unwrap();
    eventually("the call", || rig.host.calls.lock().len() == 1).await;
}

/// Streams 2 and 3: a callback of stream 3 makes stream 2 its effective context.
#[test]
fn another_context_can_resume_and_answer_a_stream_by_mail_but_not_touch_its_neighbours_exchange() {
    let wasm = wat(
        r#"(import "env" "proxy_set_effective_context" (func $effective (param i32) (result i32)))
           (import "env" "proxy_continue_stream" (func $continue (param i32) (result i32)))
           (import "env" "proxy_remove_header_map_value" (func $remove (param i32 i32 i32) (result i32)))"#,
        "i32.const 0",
        r#"(data (i32.const 0) "accept")
           (func (export "proxy_on_request_headers") (param $id i32) (param i32 i32) (result i32)
             (if (i32.eq (local.get $id) (i32.const 3)) (then
               (if (call $effective (i32.const 2)) (then unreachable))
               (if (call $continue (i32.const 0)) (then unreachable))
               ;; the exchange at hand is stream 3's: writing it as stream 2 is refused
               (if (i32.ne (call $remove (i32.const 0) (i32.const 0) (i32.const 6)) (i32.const 2)) (then unreachable))))
             (i32.const 1))"#,
    );
    let rig = try_start(&wasm, options("")).unwrap();
    let (mut two, mut three) = (rig.stream(), rig.stream());
    assert_eq!(two.on_request_headers(&mut FakeExchange::get("/"), true).unwrap().action, Action::Pause);
    assert!(two.mail().now_or_never().is_none());
    assert!(three.on_request_headers(&mut FakeExchange::get("/"), true).unwrap().effects.is_empty());
    assert!(two.mail().now_or_never().unwrap().resume_request);
    assert!(two.mail().now_or_never().is_none(), "taken once");
}

/// The exchange answers what it knows, the host the rest; both are told who calls.
#[test]
fn foreign_functions_are_asked_of_the_exchange_first() {
    let wasm = wat(
        r#"(import "env" "proxy_call_foreign_function" (func $foreign (param i32 i32 i32 i32 i32 i32) (result i32)))
           (import "env" "proxy_set_property" (func $set (param i32 i32 i32 i32) (result i32)))"#,
        "i32.const 1000",
        r#"(data (i32.const 0) "herewho?onetwo")
           (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
             (drop (call $foreign (i32.const 0) (i32.const 4) (i32.const 7) (i32.const 1) (i32.const 800) (i32.const 804)))
             (drop (call $set (i32.const 8) (i32.const 3) (i32.load (i32.const 800)) (i32.load (i32.const 804))))
             (drop (call $foreign (i32.const 4) (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 800) (i32.const 804)))
             (drop (call $set (i32.const 11) (i32.const 3) (i32.load (i32.const 800)) (i32.load (i32.const 804))))
             (i32.const 0))"#,
    );
    let mut exchange = FakeExchange::get("/");
    try_start(&wasm, options("")).unwrap().stream().on_request_headers(&mut exchange, true).unwrap();
    assert_eq!(exchange.properties["one"], b"test?");
    assert_eq!(exchange.properties["two"], b"test/vm");
}

#[test]
fn foreign_functions_bring_results_and_failures() {
    let wasm = wat(
        r#"(import "env" "proxy_call_foreign_function" (func $foreign (param i32 i32 i32 i32 i32 i32) (result i32)))"#,
        "i32.const 1000",
        r#"(data (i32.const 0) "echofail")
           (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
             (if (call $foreign (i32.const 0) (i32.const 4) (i32.const 2) (i32.const 3) (i32.const 800) (i32.const 804)) (then unreachable))
             (if (i32.ne (i32.load (i32.const 804)) (i32.const 3)) (then unreachable))
             (if (i32.ne (i32.load8_u (i32.const 1000)) (i32.const 104)) (then unreachable)) ;; "h"
             (if (i32.ne (call $foreign (i32.const 4) (i32.const 4) (i32.const 0) (i32.const 0) (i32.const 800) (i32.const 804)) (i32.const 10)) (then unreachable))
             (i32.const 0))"#,
    );
    try_start(&wasm, options("")).unwrap().stream().on_request_headers(&mut FakeExchange::get("/"), true).unwrap();
}
