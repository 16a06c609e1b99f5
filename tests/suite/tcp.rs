//! TCP listeners from outside: bytes in, bytes out, through filters and without.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use selvedge_tests::{Client, Edge, Origin, Process, closed, soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};

const PROGRAM: &str = env!("CARGO_BIN_EXE_selvedge-under-test");
/// Where compiled guests are kept between runs.
const MODULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/test-modules");

/// A node with one listener for TCP, `db`, that forwards to `app` through `chain`; `filters` are declared, `listener` is more of its
/// settings.
fn node(chain: &str, filters: &[(&str, &str)], listener: &str) -> String {
    let mut text = format!(
        "
version: 1
node: {{ name: edge, workers: 1, shutdown_grace: 1s, module_cache: \"{MODULES}\" }}
telemetry: {{ access_log: {{ output: off }} }}
listeners:
  db: {{ bind: \"127.0.0.1:0\", tcp: {{ upstream: app, filters: [{chain}] }}{listener} }}
upstreams:
  app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }}
  other: {{ endpoints: [\"127.0.0.1:${{PORT_other}}\"] }}
filters:
"
    );
    for (name, settings) in filters {
        text += &format!("  {name}: {{ wasm: \"file:${{GUESTS}}/tcp.wasm\", {settings} }}\n");
    }
    if filters.is_empty() {
        text += "  {}\n";
    }
    text
}

const LIMITS: &str = "limits: { deadline: 10s }";

/// One filter with this task and room enough.
fn filter(task: &str) -> String {
    format!("config: \"{task}\", {LIMITS}")
}

/// A node whose one filter has this task.
fn with_filter(task: &str) -> String {
    node("f", &[("f", &filter(task))], "")
}

/// A client's connection.
struct Connection(TcpStream);

impl Connection {
    async fn to(edge: &Edge) -> Self {
        Self::at(edge.listener("db")).await
    }

    async fn at(address: SocketAddr) -> Self {
        Self(soon("connect", TcpStream::connect(address)).await.expect("connects"))
    }

    async fn send(&mut self, bytes: &[u8]) {
        soon("send", self.0.write_all(bytes)).await.expect("sent");
    }

    async fn end(&mut self) {
        self.0.shutdown().await.expect("shut down");
    }

    /// Reads exactly what is expected.
    async fn expect(&mut self, expected: &str) {
        let mut bytes = vec![0; expected.len()];
        soon(expected, self.0.read_exact(&mut bytes)).await.unwrap_or_else(|error| panic!("{expected}: {error}"));
        assert_eq!(String::from_utf8_lossy(&bytes), expected);
    }

    /// Reads what is there, at least one byte.
    async fn some(&mut self) -> String {
        let mut bytes = vec![0; 4096];
        let count = soon("an answer", self.0.read(&mut bytes)).await.expect("an answer");
        assert!(count > 0, "the connection has ended");
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    }

    /// Reads to the end; a reset is an end too.
    async fn rest(&mut self) -> String {
        let mut bytes = Vec::new();
        let _ = soon("the end", self.0.read_to_end(&mut bytes)).await;
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// A server that sends back what it receives, to the end.
async fn echo() -> SocketAddr {
    let (address, _) = Origin::raw(|stream| async move {
        let (mut reader, mut writer) = stream.into_split();
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
    })
    .await;
    address
}

/// A server whose connections the test plays itself.
async fn manual() -> (SocketAddr, mpsc::UnboundedReceiver<TcpStream>) {
    let (sender, connections) = mpsc::unbounded_channel();
    let (address, _) = Origin::raw(move |stream| {
        let _ = sender.send(stream);
        std::future::ready(())
    })
    .await;
    (address, connections)
}

async fn next(connections: &mut mpsc::UnboundedReceiver<TcpStream>) -> Connection {
    Connection(soon("a connection to the upstream", connections.recv()).await.expect("it is there"))
}

fn start(yaml: &str, app: SocketAddr) -> Edge {
    Edge::start(yaml, &[("app", app), ("other", app)])
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_forwarded_and_a_half_closed_connection_is_answered_to_its_end() {
    for yaml in [node("", &[], ""), with_filter("hold nothing")] {
        let edge = start(&yaml, echo().await);
        let mut client = Connection::to(&edge).await;
        client.send(b"hello ").await;
        client.expect("hello ").await;
        client.send(b"world").await;
        client.end().await;
        assert_eq!(client.rest().await, "world");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_has_ended_may_still_be_sent_to() {
    for yaml in [node("", &[], ""), with_filter("hold nothing")] {
        let (address, mut connections) = manual().await;
        let edge = start(&yaml, address);
        let mut client = Connection::to(&edge).await;
        let mut server = next(&mut connections).await; // it speaks first
        server.send(b"bye").await;
        server.end().await;
        assert_eq!(client.rest().await, "bye");
        client.send(b"thanks").await;
        client.end().await;
        assert_eq!(server.rest().await, "thanks");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_run_in_order_on_the_way_up_and_in_reverse_on_the_way_down() {
    let (address, mut connections) = manual().await;
    let edge = start(&node("a, b", &[("a", &filter("tag A")), ("b", &filter("tag B"))], ""), address);
    let mut client = Connection::to(&edge).await;
    let mut server = next(&mut connections).await;
    client.send(b"x").await;
    server.expect("xAB").await;
    server.send(b"y").await;
    client.expect("yba").await;
    client.end().await;
    assert_eq!(server.rest().await, "", "an end is not tagged");
    server.end().await;
    assert_eq!(client.rest().await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_may_hold_bytes_until_it_has_enough_of_them() {
    let (address, mut connections) = manual().await;
    let edge = start(&with_filter("lines"), address);
    let mut client = Connection::to(&edge).await;
    let mut server = next(&mut connections).await;
    client.send(b"hel").await;
    client.send(b"lo\nwor").await;
    // The rest of the chunk goes with the line.
    server.expect("HELLO\nwor").await;
    client.send(b"ld").await;
    client.end().await;
    assert_eq!(server.rest().await, "ld", "what is held when the end comes, the filter lets go");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_waits_for_a_callout_before_anything_reaches_the_upstream() {
    let (address, mut connections) = manual().await;
    let answer = Arc::new(Notify::new());
    let waiting = Arc::clone(&answer);
    let authority = Origin::start_async(move |_| {
        let waiting = Arc::clone(&waiting);
        Box::pin(async move {
            waiting.notified().await;
            Origin::reply(200, &[], "")
        })
    })
    .await;
    let edge = Edge::start(
        &with_filter("call new_connection other /allow"),
        &[("app", address), ("other", authority.address())],
    );
    let mut client = Connection::to(&edge).await;
    client.send(b"early").await;
    until("the callout", || authority.started() == 1).await;
    assert!(connections.try_recv().is_err(), "the upstream knows nothing yet");
    answer.notify_one();
    let mut server = next(&mut connections).await;
    server.expect("early").await;
    assert_eq!(authority.last().target, "/allow");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_wait_for_a_callout_in_both_directions_and_may_be_written_by_its_answer() {
    let authority = Origin::start(|_| Origin::reply(200, &[], "")).await;
    for (phase, expected_up, expected_down) in
        [("downstream_data", "[called] ping", "pong"), ("upstream_data", "ping", "[called] pong")]
    {
        let (address, mut connections) = manual().await;
        let edge = Edge::start(
            &with_filter(&format!("call {phase} other /")),
            &[("app", address), ("other", authority.address())],
        );
        let mut client = Connection::to(&edge).await;
        let mut server = next(&mut connections).await;
        client.send(b"ping").await;
        server.expect(expected_up).await;
        server.send(b"pong").await;
        client.expect(expected_down).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_callout_that_says_no_closes_the_connection() {
    let authority = Origin::start(|_| Origin::reply(403, &[], "")).await;
    let (address, mut connections) = manual().await;
    let edge =
        Edge::start(&with_filter("call new_connection other /"), &[("app", address), ("other", authority.address())]);
    let mut client = Connection::to(&edge).await;
    assert_eq!(client.rest().await, "");
    assert!(connections.try_recv().is_err(), "the upstream was never asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tick_lets_a_waiting_connection_through_or_closes_it() {
    let (address, mut connections) = manual().await;
    let edge = start(&with_filter("tick resume"), address);
    let mut client = Connection::to(&edge).await;
    let mut server = next(&mut connections).await; // the client has said nothing that could have asked the filter again
    server.send(b"hello").await;
    client.expect("hello").await;

    let edge = start(&with_filter("tick close"), echo().await);
    assert_eq!(Connection::to(&edge).await.rest().await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_closes_a_connection_and_what_had_passed_is_delivered() {
    let (address, mut connections) = manual().await;
    let edge = start(&with_filter("close evil"), address);
    let mut client = Connection::to(&edge).await;
    let mut server = next(&mut connections).await;
    client.send(b"good").await;
    server.expect("good").await;
    server.send(b"answer").await;
    client.expect("answer").await;
    client.send(b"evil").await;
    assert_eq!((client.rest().await.as_str(), server.rest().await.as_str()), ("", ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_fails_closes_the_connection() {
    for callback in ["new_connection", "downstream_data", "upstream_data"] {
        let (address, mut connections) = manual().await;
        let edge = start(&with_filter(&format!("fail {callback}")), address);
        let mut client = Connection::to(&edge).await;
        if callback != "new_connection" {
            let mut server = next(&mut connections).await;
            if callback == "downstream_data" {
                client.send(b"ping").await;
                assert_eq!(server.rest().await, "", "nothing of it reaches the upstream");
            } else {
                server.send(b"pong").await;
            }
        }
        assert_eq!(client.rest().await, "", "{callback}");
        assert!(connections.try_recv().is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_fails_open_is_left_out() {
    for callback in ["new_connection", "downstream_data", "upstream_data", "downstream_close", "upstream_close", "done"]
    {
        let settings = format!("on_failure: open, {}", filter(&format!("fail {callback}")));
        let edge = start(&node("f, g", &[("f", &settings), ("g", &filter("tag G"))], ""), echo().await);
        for _ in 0..2 {
            let mut client = Connection::to(&edge).await;
            client.send(b"ping").await;
            client.expect("pingGg").await;
            client.end().await;
            assert_eq!(client.rest().await, "", "{callback}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_of_one_connection_ends_those_that_share_its_vm_by_their_policy_and_no_later_one() {
    let (address, mut connections) = manual().await;
    let edge = start(&with_filter("fail upstream_data"), address);
    let mut bystander = Connection::to(&edge).await;
    let _server = next(&mut connections).await;
    for _ in 0..2 {
        // The second one has a new VM, which is as able to fail.
        let mut culprit = Connection::to(&edge).await;
        next(&mut connections).await.send(b"pong").await;
        assert_eq!(culprit.rest().await, "");
    }
    // Its guest's state is gone. It is told at once, not when it next says something.
    assert_eq!(bystander.rest().await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_with_an_instance_of_its_own_outlives_the_failure_of_another() {
    let (address, mut connections) = manual().await;
    let settings = format!("isolation: request, {}", filter("fail upstream_data"));
    let edge = start(&node("f", &[("f", &settings)], ""), address);
    let mut bystander = Connection::to(&edge).await;
    let mut server = next(&mut connections).await;
    let mut culprit = Connection::to(&edge).await;
    next(&mut connections).await.send(b"pong").await;
    assert_eq!(culprit.rest().await, "");
    bystander.send(b"still here").await;
    server.expect("still here").await;
}

/// Bytes that are not the same anywhere.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u8::try_from(state >> 56).unwrap_or_default()
    };
    std::iter::repeat_with(byte).take(len).collect()
}

const BIG: usize = 8 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn eight_mebibytes_each_way_at_once_arrive_as_they_were() {
    for yaml in
        [node("", &[], ""), node("f, g", &[("f", &filter("hold nothing")), ("g", &filter("close %%%%%%%%%%"))], "")]
    {
        let (address, mut connections) = manual().await;
        let edge = start(&yaml, address);
        let client = Connection::to(&edge).await;
        let server = next(&mut connections).await;
        let exchange = |connection: Connection, seed: u64| async move {
            let (mut reader, mut writer) = connection.0.into_split();
            let sending = tokio::spawn(async move {
                writer.write_all(&noise(seed, BIG)).await.expect("sent");
                writer.shutdown().await.expect("ended");
            });
            let mut received = Vec::with_capacity(BIG);
            reader.read_to_end(&mut received).await.expect("received");
            sending.await.expect("the writer");
            received
        };
        let both = async { tokio::join!(exchange(client, 1), exchange(server, 2)) };
        let (from_server, from_client) = soon("both transfers", both).await;
        assert!(from_server == noise(2, BIG) && from_client == noise(1, BIG));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_holds_up_its_upstream() {
    // What the sockets of both hops may hold, at their largest.
    const BOUND: u64 = 64 << 20;
    for yaml in [node("", &[], ""), with_filter("hold nothing")] {
        let sent = Arc::new(AtomicU64::new(0));
        let stuck = Arc::new(AtomicUsize::new(0));
        let (counted, blocked) = (Arc::clone(&sent), Arc::clone(&stuck));
        let (address, _) = Origin::raw(move |mut stream| {
            let (counted, blocked) = (Arc::clone(&counted), Arc::clone(&blocked));
            async move {
                let chunk = vec![7; 64 << 10];
                while counted.load(Ordering::SeqCst) < 2 * BOUND {
                    let write = stream.write(&chunk);
                    let Ok(written) = tokio::time::timeout(Duration::from_millis(500), write).await else { break };
                    counted.fetch_add(written.expect("written") as u64, Ordering::SeqCst);
                }
                blocked.fetch_add(1, Ordering::SeqCst);
            }
        })
        .await;
        let edge = start(&yaml, address);
        let mut client = Connection::to(&edge).await;
        until("the upstream cannot write any more", || stuck.load(Ordering::SeqCst) == 1).await;
        let sent = sent.load(Ordering::SeqCst);
        assert!(sent < BOUND, "{sent} bytes were taken from the upstream");

        let mut received = 0;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match soon("what was sent", client.0.read(&mut buffer)).await.expect("read") {
                0 => break,
                count => received += count as u64,
            }
        }
        assert_eq!(received, sent);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_on_which_nothing_moves_is_closed() {
    let edge = start(&node("", &[], ", limits: { idle_timeout: 1500ms }"), echo().await);
    let mut client = Connection::to(&edge).await;
    client.send(b"ping").await;
    client.expect("ping").await;
    assert_eq!(client.rest().await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_refuses_is_passed_over() {
    let gone = closed();
    let yaml = node("", &[], "")
        .replace("[\"127.0.0.1:${PORT_app}\"]", "[\"127.0.0.1:${PORT_app}\", \"127.0.0.1:${PORT_other}\"]");
    let edge = Edge::start(&yaml, &[("app", gone), ("other", echo().await)]);
    for _ in 0..4 {
        let mut client = Connection::to(&edge).await;
        client.send(b"ping").await;
        client.expect("ping").await;
    }
    let edge = start(&node("", &[], ""), gone);
    assert_eq!(Connection::to(&edge).await.rest().await, "", "nobody is there: the client is not kept waiting");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_may_hold_as_much_as_its_limit_and_no_more() {
    let settings = "config: \"hold downstream_data\", limits: { deadline: 10s, body: 1KiB }";
    let edge = start(&node("f", &[("f", settings)], ""), echo().await);
    let mut client = Connection::to(&edge).await;
    client.send(&[b'x'; 1025]).await;
    assert_eq!(client.rest().await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_stays_paused_too_long_is_done_without_or_closes() {
    // It never answers.
    let (silent, _connections) = manual().await;
    let held = "hold downstream_data"; // and never lets go of the end
    for (task, end) in [("call new_connection other /", false), ("call downstream_data other /", false), (held, true)] {
        for policy in ["closed", "open"] {
            let settings =
                format!("on_failure: {policy}, config: \"{task}\", limits: {{ deadline: 10s, wait: 300ms }}");
            let edge = Edge::start(&node("f", &[("f", &settings)], ""), &[("app", echo().await), ("other", silent)]);
            let mut client = Connection::to(&edge).await;
            client.send(b"ping").await;
            if end {
                client.end().await;
            }
            if policy == "open" {
                client.expect("ping").await;
            } else {
                assert_eq!(client.rest().await, "", "{task}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_reads_what_is_known_of_the_connection() {
    let paths = "source.address source.port destination.port upstream.address upstream.port upstream.name listener \
                 listener_direction plugin_name connection.tls_version request.path";
    let app = echo().await;
    let edge = start(&with_filter(&format!("properties {paths}")), app);
    let mut client = Connection::to(&edge).await;
    let own = client.0.local_addr().expect("connected");
    let listener = edge.listener("db").port();
    client.send(b"?").await;
    client.some().await;
    // The upstream is known once it is connected: that there was an answer proves that it is.
    client.send(b"?").await;
    let answer = client.some().await;
    let known = format!("{own} {} {listener} {app} {} app db 1 f - -", own.port(), app.port(),);
    assert_eq!(answer, known);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_chooses_the_upstream() {
    let (app, mut connections) = manual().await;
    let edge = Edge::start(&with_filter("upstream other"), &[("app", app), ("other", echo().await)]);
    let mut client = Connection::to(&edge).await;
    client.send(b"ping").await;
    client.expect("ping").await;
    assert!(connections.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_ends_here_and_begins_anew_towards_the_upstream() {
    let task = filter("properties connection.tls_version connection.requested_server_name");
    let inner = start(&node("f", &[("f", &task)], ", tls: { certificates: development }"), echo().await);
    let address = inner.listener("db");
    let mut client = Client::connect_tls(address, "db.test", &[]).await;
    client.send(b"?").await;
    assert_eq!(String::from_utf8_lossy(&client.some().await.expect("an answer")), "TLSv1.3 db.test");

    // The node before it speaks TLS to it, and plain text to its client.
    let yaml = node("", &[], "").replace("PORT_app}\"] }", "PORT_app}\"], tls: { sni: inner.test, verify: false } }");
    let outer = start(&yaml, address);
    let mut client = Connection::to(&outer).await;
    client.send(b"?").await;
    client.expect("TLSv1.3 inner.test").await;

    let yaml = node("", &[], "").replace("PORT_app}\"] }", "PORT_app}\"], tls: { sni: inner.test } }");
    let outer = start(&yaml, address);
    assert_eq!(Connection::to(&outer).await.rest().await, "", "a certificate nobody trusts is not spoken to");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_may_end_within_the_grace_and_is_cut_off_after_it() {
    let yaml = node("", &[], "").replace("shutdown_grace: 1s", "shutdown_grace: 20s");
    let mut edge = start(&yaml, echo().await);
    let address = edge.listener("db");
    let mut client = Connection::at(address).await;
    client.send(b"before").await;
    client.expect("before").await;
    let stopped = edge.stop();
    refuses(address).await;
    client.send(b"after").await;
    client.expect("after").await;
    client.end().await;
    assert_eq!(client.rest().await, "");
    until("the node has stopped, with grace to spare", || stopped.is_finished()).await;

    let yaml = node("f", &[("f", &filter("hold nothing"))], "").replace("shutdown_grace: 1s", "shutdown_grace: 100ms");
    let mut edge = start(&yaml, echo().await);
    let mut client = Connection::to(&edge).await;
    client.send(b"ping").await;
    client.expect("ping").await;
    let stopped = edge.stop();
    assert_eq!(client.rest().await, "");
    until("the node has stopped", || stopped.is_finished()).await;
}

async fn refuses(address: SocketAddr) {
    soon("nobody listens any more", async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_keeps_the_chain_it_began_with_and_the_next_one_has_the_new() {
    let mut edge = start(&with_filter("tag A"), echo().await);
    let mut before = Connection::to(&edge).await;
    before.send(b"1").await;
    before.expect("1Aa").await;
    edge.reload(&with_filter("tag B")).expect("a chain changes without a restart");
    let mut after = Connection::to(&edge).await;
    after.send(b"2").await;
    after.expect("2Bb").await;
    before.send(b"3").await;
    before.expect("3Aa").await;

    let report = edge.reload(&with_filter("nonsense")).expect_err("the filter refuses");
    assert!(report.contains("filter f does not start"), "{report}");
    let http = node("", &[], "").replace("tcp: { upstream: app, filters: [] }", "protocols: [h1]");
    let http = format!("{http}\nsites: [{{ hosts: [\"*\"], routes: [{{ respond: {{ status: 200 }} }}] }}]");
    let address = edge.listener("db");
    edge.reload(&http).expect("a listener turns into another kind");
    assert_eq!(edge.listener("db"), address, "and keeps its port");
    assert_eq!(Client::get(address, "/").await.status, 200);
    before.send(b"4").await;
    before.expect("4Aa").await;
}

#[test]
fn a_filter_for_http_is_refused_at_a_listener_for_tcp() {
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    let yaml = node("waf", &[], "").replace("  {}\n", "  waf: { wasm: \"builtin:waf\", limits: { deadline: 10s } }\n");
    let Err(error) = Edge::try_start(&yaml, &[("app", address), ("other", address)]) else { panic!("it started") };
    assert!(error.to_string().contains("filter waf is not one for TCP"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn http_and_tcp_are_served_by_one_node() {
    let origin = Origin::start(|_| Origin::reply(200, &[], "http")).await;
    let yaml = node("", &[], "").replace("listeners:\n", "listeners:\n  web: { bind: \"127.0.0.1:0\" }\n");
    let yaml = format!("{yaml}\nsites: [{{ hosts: [\"*\"], routes: [{{ to: other }}] }}]");
    let edge = Edge::start(&yaml, &[("app", echo().await), ("other", origin.address())]);
    assert_eq!(Client::get(edge.web(), "/").await.text(), "http");
    let mut client = Connection::to(&edge).await;
    client.send(b"tcp").await;
    client.expect("tcp").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_connection_leaves_one_line_in_the_access_log() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let path = folder.path().join("config.yaml");
    let app = echo().await;
    let yaml = node("f", &[("f", &filter("close evil"))], ", limits: { idle_timeout: 1500ms }")
        .replace("output: off", "format: json, output: stderr")
        .replace("shutdown_grace: 1s", "shutdown_grace: 50ms")
        .replace("${GUESTS}", env!("SELVEDGE_TEST_GUESTS"))
        .replace("${PORT_app}", &app.port().to_string())
        .replace("${PORT_other}", &app.port().to_string());
    std::fs::write(&path, yaml).expect("written");
    let mut process = Process::run(PROGRAM, folder.path(), &path, 1).await;
    let address = process.addresses()["db"];

    let mut client = Connection::at(address).await;
    client.send(b"hello").await;
    client.end().await;
    assert_eq!(client.rest().await, "hello");
    let done = line(&process, "done").await;
    assert_eq!(
        (&done["protocol"], &done["listener"], &done["client"]),
        (&"TCP".into(), &"db".into(), &"127.0.0.1".into())
    );
    assert_eq!((&done["bytes_received"], &done["bytes"]), (&5.into(), &5.into()));
    assert_eq!(done["upstream"], app.to_string());
    assert!(done["duration_us"].as_u64().is_some_and(|took| took > 0) && done["filter"].is_null());

    let mut client = Connection::at(address).await;
    client.send(b"evil").await;
    client.rest().await;
    assert_eq!(line(&process, "filter_closed").await["filter"], "f");

    let mut client = Connection::at(address).await;
    client.rest().await;
    assert_eq!(line(&process, "idle").await["bytes"], 0);

    let mut client = Connection::at(address).await;
    client.send(b"cut").await;
    client.expect("cut").await;
    process.signal("TERM");
    assert_eq!(line(&process, "shutdown").await["bytes"], 3);
    assert!(process.ended().await.success());
}

/// The access-log line of a connection that ended this way.
async fn line(process: &Process, ended: &str) -> serde_json::Value {
    let mut found = None;
    until(ended, || {
        let lines = process.log();
        let mut lines = lines.iter().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        found = lines.find(|line| line["ended"] == ended);
        found.is_some()
    })
    .await;
    found.expect("just found")
}
