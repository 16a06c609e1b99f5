//! gRPC calls and streams, with a host in memory in place of the server.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt;

use super::fakes::*;
use selvedge_wasm::*;

/// One exchange of the guest `grpc`, and its calls as the embedder runs them.
struct Talk {
    rig: Rig,
    stream: Option<Stream>,
    x: FakeExchange,
    calls: Calls,
    reply: Option<LocalReply>,
    resumed: bool,
}

impl Talk {
    /// The guest is given scripts by request headers.
    fn start(scripts: &[(&str, &str)]) -> Self {
        Self::on(guest("grpc", ""), scripts)
    }

    fn on(rig: Rig, scripts: &[(&str, &str)]) -> Self {
        let (stream, mut x) = (rig.stream(), FakeExchange::get("/"));
        for (name, script) in scripts {
            x.add_header(HeaderMap::Request, name.as_bytes(), script.as_bytes()).unwrap();
        }
        let mut talk = Self { rig, stream: Some(stream), x, calls: Calls::new(), reply: None, resumed: false };
        let outcome = talk.stream.as_mut().unwrap().on_request_headers(&mut talk.x, true).unwrap();
        talk.carry_out(outcome.effects);
        talk
    }

    fn carry_out(&mut self, effects: Effects) {
        let host: Arc<dyn Host> = self.rig.host.clone();
        self.calls.begin(&host, effects.outgoing);
        self.reply = self.reply.take().or(effects.reply.map(|reply| *reply));
        self.resumed |= effects.resume_request;
    }

    /// The server's end of what the guest opened last.
    async fn server(&self) -> FakeServer {
        eventually("an exchange is opened", || !self.rig.host.grpc.lock().is_empty()).await;
        self.rig.host.grpc.lock().pop().unwrap()
    }

    /// Brings the next arrival to the guest.
    async fn next(&mut self) {
        let arrival = tokio::time::timeout(Duration::from_secs(60), self.calls.next()).await.unwrap();
        let outcome = self.stream.as_mut().unwrap().on_arrival(&mut self.x, arrival).unwrap();
        assert_eq!(outcome.action, Action::Pause);
        self.carry_out(outcome.effects);
    }

    /// What the guest answered.
    fn seen(&self) -> Vec<String> {
        let reply = self.reply.as_ref().expect("the guest answered");
        String::from_utf8_lossy(&reply.body).lines().map(str::to_owned).collect()
    }

    fn answered(&self) -> bool {
        self.reply.is_some()
    }
}

fn pair(name: &'static str, value: &'static str) -> (Bytes, Bytes) {
    (Bytes::from(name), Bytes::from(value))
}

#[tokio::test]
async fn a_call_asks_for_what_the_guest_said_and_its_answer_is_a_message() {
    let script = "meta x-token secret; meta content-type text/plain; meta :authority a.example; call auth pkg.Auth Check 2000 who is it";
    let mut talk = Talk::start(&[("x-script", script)]);
    assert!(talk.calls.pending());

    let mut server = talk.server().await;
    let request = &server.request;
    assert_eq!((request.upstream.as_str(), request.path().as_str()), ("auth", "/pkg.Auth/Check"));
    assert_eq!(request.authority.as_deref(), Some("a.example"));
    assert_eq!(request.timeout, Some(Duration::from_secs(2)));
    let metadata: Vec<_> = request.metadata.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    assert_eq!(metadata, [("x-token", &b"secret"[..])], "what is the host's business is left out");
    assert_eq!(server.messages.next().await.unwrap().bytes, "who is it");
    assert!(server.messages.ended() && server.messages.next().await.is_none());

    server.events.initial_metadata(vec![pair("server", "x")]).await;
    server.events.message(Bytes::from("come in")).await;
    server.events.trailing_metadata(vec![pair("grpc-status", "0")]).await;
    server.end(0, "");
    talk.next().await;
    assert_eq!(talk.seen(), ["answer come in"]);
    assert!(!talk.calls.pending());
}

#[tokio::test]
async fn a_call_without_a_timeout_has_five_seconds() {
    let talk = Talk::start(&[("x-script", "call auth s m 0")]);
    assert_eq!(talk.server().await.request.timeout, Some(Duration::from_secs(5)));
}

#[tokio::test]
async fn a_call_that_fails_is_told_as_a_status_and_its_text() {
    for (messages, code, text, seen) in [
        (0, 7, "not you", "failed 7 not you"),
        (1, 13, "", "failed 13"),
        (0, 0, "", "failed 13 the call succeeded without a message"),
        (2, 0, "", "failed 13 the call was answered with several messages"),
    ] {
        let mut talk = Talk::start(&[("x-script", "call auth s m 9000 hi")]);
        let mut server = talk.server().await;
        for _ in 0..messages {
            server.events.message(Bytes::from("m")).await;
        }
        server.end(code, text);
        talk.next().await;
        assert_eq!(talk.seen(), [seen]);
        assert!(!talk.calls.pending());
    }
}

#[tokio::test]
async fn a_call_that_takes_too_long_fails_and_is_reset() {
    let mut talk = Talk::start(&[("x-script", "call auth s m 20 hi")]);
    let server = talk.server().await;
    talk.next().await;
    assert_eq!(talk.seen(), ["failed 4 timeout"]);
    assert!(server.is_reset());
}

#[tokio::test]
async fn a_stream_is_told_of_everything_in_order() {
    let mut talk = Talk::start(&[("x-script", "open auth s m; send one; send two; send; close")]);
    let mut server = talk.server().await;
    assert_eq!(server.request.timeout, None);
    for expected in ["one", "two", ""] {
        assert_eq!(server.messages.next().await.unwrap().bytes, expected);
    }
    assert!(server.messages.next().await.is_none(), "closed by the guest");

    server.events.initial_metadata(vec![pair("a", "1"), pair("a", "2")]).await;
    for message in ["alpha", "", "beta"] {
        server.events.message(Bytes::from(message)).await;
    }
    server.events.trailing_metadata(vec![pair("t", "3")]).await;
    server.end(9, "h\u{f6}h");
    for _ in 0..6 {
        assert!(talk.calls.pending() && !talk.answered());
        talk.next().await;
    }
    assert_eq!(
        talk.seen(),
        ["initial a=1 a=2", "message alpha", "message", "message beta", "trailing t=3", "close 9 h\u{f6}h"]
    );
    assert!(!talk.calls.pending());
}

#[tokio::test]
async fn a_guest_answers_messages_with_messages() {
    let mut talk = Talk::start(&[("x-script", "open auth s m"), ("x-on-message", "last pong")]);
    let mut server = talk.server().await;
    server.events.message(Bytes::from("ping")).await;
    talk.next().await;
    assert_eq!(server.messages.next().await.unwrap().bytes, "pong");
    assert!(server.messages.ended());
}

#[tokio::test]
async fn a_cancelled_exchange_is_reset_and_not_heard_of_again() {
    for script in ["open auth s m; send x", "call auth s m 9000 x"] {
        for end in ["cancel", "close"] {
            let talk = Talk::start(&[("x-script", &format!("{script}; {end}; {end}; answer"))]);
            let stays = script.starts_with("open") && end == "close";
            let twice = if stays { "".to_owned() } else { format!("{end}: NotFound") };
            assert_eq!(talk.seen().concat(), twice, "{script} {end}");
            assert_eq!(talk.calls.pending(), stays, "closing a call cancels it, closing a stream waits for its end");
        }
    }

    let mut talk = Talk::start(&[("x-script", "open auth s m"), ("x-on-message", "cancel; answer")]);
    let mut server = talk.server().await;
    server.events.message(Bytes::from("first")).await;
    server.events.message(Bytes::from("second")).await;
    talk.next().await;
    assert_eq!(talk.seen(), ["message first"]);
    eventually("the reset", || server.is_reset()).await;
    talk.next().await; // the second message was on its way, and is dropped
    assert!(talk.calls.next().now_or_never().is_none());
}

#[tokio::test]
async fn who_closes_a_stream_first_does_not_matter() {
    for (after, seen) in
        [("send x", ""), ("close; close", "close: NotFound"), ("cancel; close", "close: NotFound"), ("close", "")]
    {
        let closes = [("x-script", "open auth s m"), ("x-on-close", &format!("{after}; answer"))];
        let mut talk = Talk::start(&closes);
        talk.server().await.end(0, "");
        talk.next().await;
        // Inside of the callback the stream is still there; sending on it is not an error, but without effect.
        assert_eq!(talk.seen()[1..].concat(), if after.starts_with("close; close") { "" } else { seen }, "{after}");
    }
}

#[tokio::test]
async fn a_stream_that_ends_resets_its_exchanges_and_leaves_a_healthy_vm() {
    for script in ["open auth s m; send x", "call auth s m 9000 x"] {
        let mut talk = Talk::start(&[("x-script", script)]);
        let server = talk.server().await;
        talk.stream = None;
        eventually("the reset", || server.is_reset()).await;

        let (mut other, mut x) = (talk.rig.stream(), FakeExchange::get("/"));
        assert_eq!(other.on_request_headers(&mut x, true).unwrap().action, Action::Continue);
    }
}

#[tokio::test]
async fn dropped_calls_reset_their_exchanges() {
    let mut talk = Talk::start(&[("x-script", "open auth s m")]);
    let server = talk.server().await;
    talk.calls = Calls::new();
    eventually("the reset", || server.is_reset()).await;
}

#[tokio::test]
async fn a_vm_that_dies_resets_all_its_exchanges() {
    let mut talk = Talk::start(&[("x-script", "open auth s m")]);
    let server = talk.server().await;
    let (mut other, mut x) = (talk.rig.stream(), FakeExchange::get("/"));
    x.add_header(HeaderMap::Request, b"x-script", b"fail").unwrap();
    assert!(other.on_request_headers(&mut x, true).is_err());
    eventually("the reset", || server.is_reset()).await;
    let arrival = Arrival::Grpc(GrpcId(6), GrpcEvent::Message(Bytes::new()));
    assert_eq!(talk.stream.as_mut().unwrap().on_arrival(&mut talk.x, arrival).unwrap_err(), CallError::Poisoned);
}

#[tokio::test]
async fn http_and_grpc_share_one_bound() {
    let calls = "http auth; call auth s m 9000 x; open auth s m;".repeat(10);
    let talk = Talk::start(&[("x-script", &format!("{calls} http auth; http auth; http auth; answer"))]);
    assert_eq!(talk.seen(), ["http: InternalFailure"], "32 at once");
    let talk = Talk::start(&[("x-script", &format!("{calls} http auth; open auth s m; open auth s m"))]);
    assert_eq!(talk.seen(), ["open: InternalFailure"]);
    let talk = Talk::start(&[("x-script", &format!("{calls} http auth; open auth s m; call auth s m 9 x"))]);
    assert_eq!(talk.seen(), ["call: InternalFailure"]);
    // The end of an exchange makes room.
    let ended = "open auth s m; cancel;".repeat(31);
    let talk = Talk::start(&[("x-script", &format!("{ended} open auth s m; answer"))]);
    assert_eq!(talk.seen(), Vec::<String>::new());
}

#[tokio::test]
async fn a_server_that_does_not_keep_up_ends_the_stream_not_the_guest() {
    let mut talk = Talk::start(&[("x-script", "open auth s m; bulk 9 1048576; bulk 100 10")]);
    let server = talk.server().await;
    talk.next().await;
    assert_eq!(talk.seen(), ["close 8 the server does not keep up with the messages"]);
    eventually("the reset", || server.is_reset()).await;
}

#[tokio::test]
async fn empty_messages_are_bounded_too() {
    let mut talk = Talk::start(&[("x-script", "open auth s m; bulk 70000 0")]);
    talk.next().await;
    assert_eq!(talk.seen(), ["close 8 the server does not keep up with the messages"]);
}

#[tokio::test]
async fn what_the_server_has_taken_makes_room() {
    let mut talk = Talk::start(&[("x-script", "open auth s m; bulk 7 1048576"), ("x-on-message", "bulk 7 1048576")]);
    let mut server = talk.server().await;
    for _ in 0..3 {
        for _ in 0..7 {
            assert_eq!(server.messages.next().await.unwrap().bytes.len(), 1 << 20);
        }
        server.events.message(Bytes::new()).await;
        talk.next().await;
    }
}

#[tokio::test]
async fn a_server_waits_while_the_guest_has_too_much_before_it() {
    let mut talk = Talk::start(&[("x-script", "open auth s m")]);
    let mut server = talk.server().await;
    let mut sent = 0;
    while server.events.message(Bytes::from("m")).now_or_never().is_some() {
        sent += 1;
        assert!(sent <= 64, "nobody takes them");
    }
    talk.next().await;
    assert!(server.events.message(Bytes::from("m")).now_or_never().is_some());
}

#[test]
fn a_message_that_is_too_long_is_refused() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let talk = Talk::start(&[("x-script", "open auth s m; bulk 1 4194305; answer")]);
    assert_eq!(talk.seen(), ["send: BadArgument"]);
    let message = "x".repeat(MAX_GRPC_MESSAGE + 1);
    let talk = Talk::start(&[("x-script", &format!("call auth s m 9 {message}"))]);
    assert_eq!(talk.seen(), ["call: InternalFailure"]);
}

#[tokio::test]
async fn an_upstream_may_be_named_as_envoy_does() {
    let talk = Talk::start(&[("x-script", "call proto:auth s m 9000 x")]);
    assert_eq!(talk.server().await.request.upstream, "auth");
    for script in ["call elsewhere s m 9 x", "call proto:elsewhere s m 9 x", "call auth s/ m 9 x", "call auth s m? 9 x"]
    {
        assert_eq!(Talk::start(&[("x-script", script)]).seen(), ["call: ParseFailure"], "{script}");
    }
    assert_eq!(Talk::start(&[("x-script", "open elsewhere s m")]).seen(), ["open: ParseFailure"]);
    assert_eq!(Talk::start(&[("x-script", "meta b@d x; open auth s m")]).seen(), ["open: ParseFailure"]);
}

#[tokio::test]
async fn a_root_context_calls_and_streams() {
    for (script, events, logged) in [
        ("call auth s m 9000 hello", 1, "root: answer hi"),
        ("open auth s m; send hello", 1, "root: close 0"),
        ("open auth s m; send hello", 1, "root: message hi"),
    ] {
        let rig = guest("grpc", script);
        let _loop = tokio::spawn(rig.plugin.tick_loop(0));
        eventually("the exchange", || !rig.host.grpc.lock().is_empty()).await;
        let mut server = rig.host.grpc.lock().pop().unwrap();
        assert_eq!(server.messages.next().await.unwrap().bytes, "hello");
        for _ in 0..events {
            server.events.message(Bytes::from("hi")).await;
        }
        server.end(0, "");
        eventually(logged, || rig.host.logged(logged)).await;
    }
}

/// Also when the instance ends with its stream.
#[tokio::test]
async fn a_call_made_while_a_stream_ends_is_still_sent() {
    for isolation in [Isolation::Worker, Isolation::Request] {
        let rig = try_start(&guest_wasm("grpc"), PluginOptions { isolation, ..options("") }).unwrap();
        let mut talk = Talk::on(rig, &[("x-at-log", "call auth s Report 9000 it was nice")]);
        let _loop = tokio::spawn(talk.rig.plugin.tick_loop(0));
        talk.stream = None;
        let mut server = talk.server().await;
        assert_eq!(server.messages.next().await.unwrap().bytes, "it was nice", "{isolation:?}");
        assert!(server.messages.ended() && !server.is_reset());
        server.events.message(Bytes::from("thanks")).await;
        server.end(0, "");
    }
}

const IMPORTS: &str = r#"
    (import "env" "proxy_grpc_call" (func $call (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_grpc_stream" (func $stream (param i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_grpc_send" (func $send (param i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_grpc_close" (func $close (param i32) (result i32)))
    (import "env" "proxy_grpc_cancel" (func $cancel (param i32) (result i32)))
    (import "env" "proxy_get_status" (func $status (param i32 i32 i32) (result i32)))
    (import "env" "proxy_get_buffer_bytes" (func $buffer (param i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_get_header_map_pairs" (func $pairs (param i32 i32 i32) (result i32)))
    (import "env" "proxy_get_header_map_value" (func $value (param i32 i32 i32 i32 i32) (result i32)))
    (import "env" "proxy_add_header_map_value" (func $add (param i32 i32 i32 i32 i32) (result i32)))"#;

/// `auth` is at 0, a metadata map that is none at 8, numbers are written to 800. The first call is 5, the first stream 10: see the rows.
const STATUSES: &[(&str, u32)] = &[
    ("call $call [0 4] [0 4] [0 4] [0 0] [0 0] 0 800", 0),
    ("call $stream [0 4] [0 4] [0 4] [0 0] 800", 0),
    // unknown upstream, bytes that are no `GrpcService`, nothing at all
    ("call $call [0 3] [0 4] [0 4] [0 0] [0 0] 0 800", 4),
    ("call $stream [8 4] [0 4] [0 4] [0 0] 800", 4),
    ("call $stream [0 0] [0 4] [0 4] [0 0] 800", 4),
    // no service, no method, no map
    ("call $call [0 4] [0 0] [0 4] [0 0] [0 0] 0 800", 4),
    ("call $call [0 4] [0 4] [0 0] [0 0] [0 0] 0 800", 4),
    ("call $call [0 4] [0 4] [0 4] [8 4] [0 0] 0 800", 4),
    // outside of the memory: each pointer
    ("call $call [65535 4] [0 4] [0 4] [0 0] [0 0] 0 800", 6),
    ("call $call [0 4] [65535 4] [0 4] [0 0] [0 0] 0 800", 6),
    ("call $call [0 4] [0 4] [65535 4] [0 0] [0 0] 0 800", 6),
    ("call $call [0 4] [0 4] [0 4] [65535 4] [0 0] 0 800", 6),
    ("call $call [0 4] [0 4] [0 4] [0 0] [65535 4] 0 800", 6),
    ("call $call [0 4] [0 4] [0 4] [0 0] [0 0] 0 65533", 6),
    ("call $stream [0 4] [0 4] [0 4] [0 0] 65533", 6),
    ("call $stream [0 4] [0 4] [0 4] [0 -1] 800", 6),
    ("call $send 10 65535 4 0", 6),
    ("call $status 65533 800 804", 6),
    // a negative timeout is a very long one, not a panic of the SDK
    ("call $call [0 4] [0 4] [0 4] [0 0] [0 0] -1 800", 0),
    // ids: of a call, of HTTP calls and of nothing, unknown ones
    ("call $send 5 0 4 0", 2),
    ("call $send 4 0 4 0", 2),
    ("call $send 11 0 4 0", 2),
    ("call $send 0 0 4 0", 2),
    ("call $send 1002 0 4 0", 1),
    ("call $close 4", 2),
    ("call $close 11", 2),
    ("call $close 1001", 1),
    ("call $close 1002", 1),
    ("call $cancel 4", 2),
    ("call $cancel 11", 2),
    ("call $cancel 1001", 1),
    ("call $cancel 1002", 1),
    // one that is there
    ("call $send 10 0 4 0", 0),
    ("call $send 10 0 4 1", 0),
    ("call $send 10 0 4 0", 2),
    ("call $close 10", 0),
    ("call $cancel 10", 0),
    ("call $cancel 10", 1),
    ("call $cancel 5", 0),
    ("call $cancel 5", 1),
    // outside of the callbacks there is nothing to read, and nothing is ever written
    ("call $buffer 5 0 100 800 804", 1),
    ("call $pairs 4 800 804", 0),
    ("call $pairs 5 800 804", 0),
    ("call $value 4 0 4 800 804", 1),
    ("call $add 4 0 4 0 4", 2),
    ("call $status 800 804 808", 0),
];

#[test]
fn statuses_are_those_of_the_abi() {
    let rows: String = STATUSES
        .iter()
        .enumerate()
        .map(|(row, (call, status))| {
            let (name, arguments) = call.strip_prefix("call ").unwrap().split_once(' ').unwrap();
            let arguments: String = arguments
                .split(['[', ']', ' '])
                .filter(|argument| !argument.is_empty())
                .map(|argument| format!(" (i32.const {argument})"))
                .collect();
            // The first row that does not hold is the length of the reply's body.
            format!("(if (i32.ne (call {name}{arguments}) (i32.const {status})) (then (return (i32.const {row}))))\n")
        })
        .collect();
    let wasm = wat(
        &format!(
            r#"{IMPORTS}
            (import "env" "proxy_send_local_response" (func $reply (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))"#
        ),
        "i32.const 1000",
        &format!(
            r#"(data (i32.const 0) "auth\00\00\00\00\0b\0c\0d\0e")
            (func $rows (result i32) {rows} (i32.const -1))
            (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
              (local $row i32)
              (local.set $row (call $rows))
              (if (i32.ne (local.get $row) (i32.const -1)) (then
                (drop (call $reply (i32.add (i32.const 200) (local.get $row)) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
                  (i32.const 0) (i32.const 0) (i32.const -1)))))
              (i32.const 0))"#
        ),
    );
    let rig = try_start(&wasm, options("")).unwrap();
    let outcome = rig.stream().on_request_headers(&mut FakeExchange::get("/"), true).unwrap();
    if let Some(reply) = outcome.effects.reply {
        let row = STATUSES[usize::from(reply.status) - 200];
        panic!("`{}` does not return {}", row.0, row.1);
    }
}

/// Ids grow in steps of 4, and the kinds are told apart by the rest.
#[test]
fn ids_tell_their_kind() {
    for (id, kind) in [
        (0, None),
        (1, Some(GrpcKind::Call)),
        (2, Some(GrpcKind::Stream)),
        (3, None),
        (4, None),
        (5, Some(GrpcKind::Call)),
    ] {
        assert_eq!(GrpcId(id).kind(), kind, "{id}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let rig = guest("grpc", "");
    let (mut stream, mut x) = (rig.stream(), FakeExchange::get("/"));
    x.add_header(HeaderMap::Request, b"x-script", b"http auth; call auth s m 9 x; open auth s m; http auth").unwrap();
    let outgoing = stream.on_request_headers(&mut x, true).unwrap().effects.outgoing;
    let ids: Vec<u32> = outgoing
        .iter()
        .map(|outgoing| match outgoing {
            Outgoing::Http(callout) => callout.id.0,
            Outgoing::GrpcOpen(open) => open.id.0,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ids.iter().map(|id| id % 4).collect::<Vec<_>>(), [0, 1, 2, 0]);
    assert!(!ids.contains(&0));
}

/// An exchange belongs to the context that was the effective one; its messages go out with that stream's mail.
#[tokio::test]
async fn a_message_sent_from_another_context_goes_out_by_mail() {
    let wasm = wat(
        r#"(import "env" "proxy_grpc_stream" (func $stream (param i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
           (import "env" "proxy_grpc_send" (func $send (param i32 i32 i32 i32) (result i32)))"#,
        "i32.const 0",
        r#"(data (i32.const 0) "auth")
           (func (export "proxy_on_request_headers") (param $id i32) (param i32 i32) (result i32)
             (if (i32.eq (local.get $id) (i32.const 2))
               (then
                 (if (call $stream (i32.const 0) (i32.const 4) (i32.const 0) (i32.const 4) (i32.const 0) (i32.const 4)
                       (i32.const 0) (i32.const 0) (i32.const 800)) (then unreachable)))
               (else
                 (if (call $send (i32.load (i32.const 800)) (i32.const 0) (i32.const 4) (i32.const 0)) (then unreachable))))
             (i32.const 1))"#,
    );
    let rig = try_start(&wasm, options("")).unwrap();
    let (mut two, mut three) = (rig.stream(), rig.stream());
    let opened = two.on_request_headers(&mut FakeExchange::get("/"), true).unwrap().effects.outgoing;
    let [Outgoing::GrpcOpen(open)] = &opened[..] else { panic!("{opened:?}") };
    assert!(two.mail().now_or_never().is_none());
    assert!(three.on_request_headers(&mut FakeExchange::get("/"), true).unwrap().effects.is_empty());
    let mail = two.mail().now_or_never().unwrap().outgoing;
    let [Outgoing::GrpcSend { id, message, end: false }] = &mail[..] else { panic!("{mail:?}") };
    assert_eq!((*id, &message.bytes[..]), (open.id, &b"auth"[..]));
}

/// Untold, an SDK would remember them for ever.
#[test]
fn the_guest_is_told_that_the_exchanges_of_an_ended_stream_are_over() {
    let wasm = wat(
        r#"(import "env" "proxy_grpc_stream" (func $stream (param i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
           (import "env" "proxy_grpc_send" (func $send (param i32 i32 i32 i32) (result i32)))
           (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))"#,
        "i32.const 0",
        r#"(data (i32.const 0) "auth")
           (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
             (call $stream (i32.const 0) (i32.const 4) (i32.const 0) (i32.const 4) (i32.const 0) (i32.const 4)
               (i32.const 0) (i32.const 0) (i32.const 800)))
           (func (export "proxy_on_grpc_close") (param $root i32) (param $id i32) (param $status i32)
             (if (i32.ne (local.get $root) (i32.const 1)) (then unreachable))
             (if (i32.ne (local.get $id) (i32.load (i32.const 800))) (then unreachable))
             (if (i32.ne (local.get $status) (i32.const 1)) (then unreachable))
             (drop (call $log (i32.const 2) (i32.const 0) (i32.const 4))))
           (func (export "proxy_on_log") (param i32)
             ;; still there, and of no use any more
             (if (call $send (i32.load (i32.const 800)) (i32.const 0) (i32.const 4) (i32.const 0)) (then unreachable)))"#,
    );
    let rig = try_start(&wasm, options("")).unwrap();
    let mut stream = rig.stream();
    assert_eq!(stream.on_request_headers(&mut FakeExchange::get("/"), true).unwrap().effects.outgoing.len(), 1);
    assert!(!rig.host.logged("auth"));
    drop(stream);
    assert!(rig.host.logged("auth"));
    rig.plugin.open_stream(0).expect("the VM is well");
}

/// A host without gRPC says so, at once.
#[tokio::test]
async fn a_host_without_grpc_says_so() {
    struct Bare(SharedData, Metrics, SharedQueues);
    impl Host for Bare {
        fn has_upstream(&self, _: &str) -> bool {
            true
        }
        fn call(&self, _: Callout) -> futures::future::BoxFuture<'static, Answer> {
            Box::pin(std::future::pending())
        }
        fn shared(&self) -> &SharedData {
            &self.0
        }
        fn metrics(&self) -> &Metrics {
            &self.1
        }
        fn queues(&self) -> &SharedQueues {
            &self.2
        }
    }
    let talk = Talk::start(&[]);
    let (mut stream, mut x) = (talk.rig.stream(), FakeExchange::get("/"));
    x.add_header(HeaderMap::Request, b"x-script", b"call auth pkg.S M 9000 x").unwrap();
    let effects = stream.on_request_headers(&mut x, true).unwrap().effects;
    let bare: Arc<dyn Host> = Arc::new(Bare(SharedData::new(), Metrics::new(), SharedQueues::new()));
    let mut calls = Calls::new();
    calls.begin(&bare, effects.outgoing);
    let started = Instant::now();
    let arrival = calls.next().await;
    assert!(started.elapsed() < Duration::from_secs(9));
    let reply = stream.on_arrival(&mut x, arrival).unwrap().effects.reply.unwrap();
    assert_eq!(reply.body, "failed 12 no gRPC on this host, asked for /pkg.S/M");
}
