//! What the operator is told: refused hostcalls, traces, backtraces, counters.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use super::fakes::*;
use selvedge_wasm::*;

/// Keeps every event as one line of `name=value` words.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Subscriber for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        struct Words(String);
        impl Visit for Words {
            fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
                let _ = write!(self.0, "{field}={value:?} ");
            }
        }
        let mut words = Words(String::new());
        event.record(&mut words);
        self.0.lock().push(words.0);
    }
}

const REFUSED: &str = r#"(import "env" "proxy_replace_header_map_value" (func $set (param i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_get_property" (func $property (param i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_http_call" (func $call (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))"#;
const REFUSED_BODY: &str = r#"(data (i32.const 0) "x-token") (data (i32.const 16) "top secret\0a") (data (i32.const 32) "no\00such")
    (data (i32.const 48) "nowhere")
    (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
      (drop (call $set (i32.const 0) (i32.const 0) (i32.const 7) (i32.const 16) (i32.const 11)))
      (drop (call $property (i32.const 32) (i32.const 7) (i32.const 200) (i32.const 204)))
      (drop (call $call (i32.const 48) (i32.const 7) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 5) (i32.const 200)))
      (i32.const 0))"#;

#[test]
fn a_refused_hostcall_is_logged_with_its_context_argument_and_reason_but_never_a_value() {
    let rig = try_start(&wat(REFUSED, "i32.const 0", REFUSED_BODY), options("")).unwrap();
    let lines = Lines::default();
    tracing::subscriber::with_default(lines.clone(), || {
        rig.stream().on_request_headers(&mut FakeExchange::get("/"), true).unwrap();
    });
    let lines = lines.0.lock().join("\n");
    for words in [
        r#"plugin=test context=2 call="proxy_replace_header_map_value" arguments=map=0 name="x-token" value=<11 bytes> status=BadArgument"#,
        r#"call="proxy_get_property" arguments=path="no\0such" status=NotFound reason="there is none""#,
        r#"call="proxy_http_call" arguments=upstream="nowhere" headers=<0 bytes> body=<0 bytes> trailers=<0 bytes> timeout_ms=5"#,
        r#"reason="no such upstream""#,
    ] {
        assert!(lines.contains(words), "{words}\nis not in\n{lines}");
    }
    assert!(!lines.contains("top secret"), "{lines}");
    assert_eq!(rig.plugin.stats().snapshot().hostcalls_refused, 2, "what is not found is no refusal");
}

#[test]
fn a_traced_exchange_keeps_every_callback_and_hostcall_with_its_status() {
    let rig = guest("headers", "request set x-one 1\nproperty no.such\nresponse remove server");
    let trace = Arc::new(Trace::new());
    let (mut stream, mut x) = (rig.stream(), FakeExchange::get("/"));
    x.trace = Some(trace.clone());
    stream.on_request_headers(&mut x, true).unwrap();
    x.respond();
    stream.on_response_headers(&mut x, true).unwrap();
    stream.finish(&mut x).unwrap();

    let text = trace.to_string();
    let mut lines = text.lines();
    for words in [
        "test#2 proxy_on_request_headers -> returned",
        r#"    proxy_replace_header_map_value map=0 name="x-one" value=<1 bytes> -> Ok"#,
        "test#2 proxy_on_response_headers -> returned",
        r#"    proxy_get_property path="no\0such" -> NotFound"#,
        "test#2 proxy_on_done -> returned",
    ] {
        assert!(lines.any(|line| line.contains(words)), "{words}\nis not, or not in this order, in\n{text}");
    }

    let (mut other, mut y) = (rig.stream(), FakeExchange::get("/"));
    let events = trace.len();
    other.on_request_headers(&mut y, true).unwrap();
    assert_eq!(trace.len(), events, "an exchange of the same VM that did not ask is not in it");
}

#[test]
fn a_trace_ends_with_the_failure() {
    let rig = guest("trap", "request_headers");
    let mut x = FakeExchange::get("/");
    let trace = Arc::new(Trace::new());
    x.trace = Some(trace.clone());
    rig.stream().on_request_headers(&mut x, true).unwrap_err();
    let text = trace.to_string();
    assert!(
        text.lines().next().unwrap().contains("proxy_on_request_headers -> proxy_on_request_headers trapped"),
        "{text}"
    );
}

#[test]
fn a_panic_of_a_rust_guest_is_explained_by_demangled_functions_from_where_it_was() {
    let rig = guest("trap", "request_headers");
    let error = rig.stream().on_request_headers(&mut FakeExchange::get("/"), true).unwrap_err().to_string();
    assert!(
        !error.contains("panicking::") && !error.contains("rust_begin_unwind"),
        "the machinery says nothing: {error}"
    );
    assert!(error.contains("Saboteur as proxy_wasm::traits::HttpContext>::on_http_request_headers <"), "{error}");
    assert!(error.contains("it had logged: panicked at") && error.contains("trap.rs:4:"), "{error}");
    assert!(error.contains("proxy_on_request_headers"), "the guest's own frames are reached: {error}");
    assert!(!error.contains("_ZN") && !error.contains("17h"), "mangled: {error}");
}

#[test]
fn a_trap_names_functions_and_where_in_their_source_when_the_module_says() {
    let source = r#"(module
  (memory (export "memory") 1)
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) i32.const 1024)
  (func $too_far (param i32)
    local.get 0
    i32.load offset=65536
    drop)
  (func $check_token (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    i32.const 0
    call $too_far
    i32.const 0))"#;
    let trap = |wasm: &[u8]| {
        let rig = try_start(wasm, options("")).unwrap();
        rig.stream().on_request_headers(&mut FakeExchange::get("/"), true).unwrap_err().to_string()
    };
    let mut parser = wat::Parser::new();
    let with = parser.generate_dwarf(wat::GenerateDwarf::Full).parse_str(Some("filter.wat".as_ref()), source).unwrap();
    let told = trap(&with);
    // Innermost first, each with its line.
    assert!(told.contains("in too_far (./filter.wat:7) < check_token (./filter.wat:11)"), "{told}");

    let bare = trap(&wat::parse_str(source).unwrap());
    assert!(bare.contains("in too_far < check_token") && !bare.contains("filter.wat"), "{bare}");
}

#[test]
fn callbacks_are_counted_by_how_they_end() {
    let rig = guest("trap", "response_headers");
    let (mut stream, mut x) = (rig.stream(), FakeExchange::get("/"));
    stream.on_request_headers(&mut x, true).unwrap();
    x.respond();
    stream.on_response_headers(&mut x, true).unwrap_err();
    drop(stream);
    rig.stream();

    let stats = rig.plugin.stats().snapshot();
    let of = |name: &str| stats.callbacks.iter().find(|callback| callback.callback == name).unwrap();
    let (request, response) = (of("proxy_on_request_headers"), of("proxy_on_response_headers"));
    assert_eq!((request.calls, request.failures[0]), (1, ("trap", 0)));
    assert_eq!((response.calls, response.failures[0]), (1, ("trap", 1)));
    assert_eq!(request.durations.iter().map(|(_, count)| count).sum::<u64>(), 1, "the first call is measured");
    assert!(request.measured > Duration::ZERO);
    // The one that trapped, its successor, and on a slow machine one in reserve.
    assert!(matches!(stats.vm_starts, 2 | 3) && stats.vm_start_failures == 0, "{stats:?}");
}

#[test]
fn deadlines_memory_hostcalls_replies_and_callouts_are_counted() {
    let tight = |name: &str, limits: Limits| {
        let rig = try_start(&guest_wasm(name), PluginOptions { limits, ..options("request_headers") }).unwrap();
        rig.stream().on_request_headers(&mut FakeExchange::get("/"), true).unwrap_err();
        let stats = rig.plugin.stats().snapshot();
        let callback = stats.callbacks.into_iter().find(|callback| callback.callback == "proxy_on_request_headers");
        callback.unwrap().failures.into_iter().filter(|(_, count)| *count > 0).map(|(name, _)| name).collect::<Vec<_>>()
    };
    let cpu = Limits { cpu: Duration::from_millis(20), ..options("").limits };
    assert_eq!(tight("spin", cpu), ["cpu"]);
    assert_eq!(tight("hog", Limits { memory: 8 << 20, ..options("").limits }), ["memory"]);

    let rig = guest("deny", "request_headers");
    rig.stream().on_request_headers(&mut FakeExchange::get("/"), true).unwrap();
    assert_eq!(rig.plugin.stats().snapshot().local_replies, 1);

    let rig = guest("callout", "request_headers auth /check");
    let (mut stream, mut x) = (rig.stream(), FakeExchange::get("/"));
    let outgoing = stream.on_request_headers(&mut x, true).unwrap().effects.outgoing.remove(0);
    let Outgoing::Http(callout) = outgoing else { panic!("{outgoing:?}") };
    stream.on_arrival(&mut x, Arrival::Http(callout.id, Err(CalloutFailure::Timeout))).unwrap();
    let callouts = rig.plugin.stats().snapshot().callouts;
    assert_eq!(callouts[..2], [("answered", 0), ("timeout", 1)]);
}
