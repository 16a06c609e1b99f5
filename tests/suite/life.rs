//! The life of a node: configurations that come and go under load, listeners among them, and its end.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use selvedge_tests::{Client, Edge, Origin, Process, Response, soon, until, unused};
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

const PROGRAM: &str = env!("CARGO_BIN_EXE_selvedge-under-test");

/// A node with these listeners, whose answers say `word`.
fn with_listeners(listeners: &str, word: &str) -> String {
    format!(
        "version: 1
node: {{ name: edge, workers: 2, shutdown_grace: 1s, module_cache: off }}
telemetry: {{ access_log: {{ output: off }} }}
listeners:
{listeners}
sites:
  - hosts: [\"*\"]
    routes: [{{ name: all, respond: {{ status: 200, body: {word} }} }}]
"
    )
}

const WEB: &str = "  web: { bind: \"127.0.0.1:0\" }";

async fn refuses(address: SocketAddr) {
    soon("nobody listens any more", async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

const GET: &str = "GET / HTTP/1.1\r\nhost: test\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn listeners_come_and_go_with_a_reload_and_the_others_notice_nothing() {
    let mut edge = Edge::start(&with_listeners(WEB, "one"), &[]);
    let web = edge.web();
    let mut kept = Client::connect(web).await;
    assert_eq!(kept.request(GET).await.text(), "one");

    edge.reload(&with_listeners(&format!("{WEB}\n  second: {{ bind: \"127.0.0.1:0\" }}"), "two")).unwrap();
    let second = edge.listener("second");
    assert_eq!(edge.web(), web, "the port stays");
    let mut on_second = Client::connect(second).await;
    assert_eq!(on_second.request(GET).await.text(), "two");
    assert_eq!(kept.request(GET).await.text(), "two", "the connection stays");

    edge.reload(&with_listeners(WEB, "three")).unwrap();
    refuses(second).await;
    assert!(on_second.is_closed().await, "an idle connection of a listener that is gone ends");
    assert_eq!(kept.request(GET).await.text(), "three");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_with_other_settings_keeps_its_socket() {
    let mut edge = Edge::start(&with_listeners(WEB, "one"), &[]);
    let web = edge.web();
    let mut before = Client::connect(web).await;
    assert_eq!(before.request(GET).await.status, 200);
    let posted = "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\n\r\n";
    let smaller = WEB.replace(" }", ", limits: { body: 10B } }");
    edge.reload(&with_listeners(&smaller, "two")).unwrap();
    assert_eq!(edge.web(), web);
    until("new connections have the new limit", || {
        let mut stream = std::net::TcpStream::connect(web).expect("never refused");
        std::io::Write::write_all(&mut stream, posted.as_bytes()).unwrap();
        let mut status = [0; 12];
        std::io::Read::read_exact(&mut stream, &mut status).is_ok() && status.ends_with(b"413")
    })
    .await;
    assert!(before.is_closed().await, "an idle connection with the old settings ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_bound_changes_nothing() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut edge = Edge::start(&with_listeners(WEB, "one"), &[]);
    let more = format!("{WEB}\n  second: {{ bind: \"{}\" }}", taken.local_addr().unwrap());
    let report = edge.reload(&with_listeners(&more, "two")).unwrap_err();
    assert!(report.contains("config.yaml:7:3") && report.contains("listener second cannot listen on"), "{report}");
    assert_eq!(Client::get(edge.web(), "/").await.text(), "one");
    assert_eq!(edge.plan().generation, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_a_restart_changes_is_refused_and_said() {
    let config = |node: &str, log: &str, cache: &str| {
        format!(
            "version: 1
node: {{ name: edge, {node} }}
telemetry: {{ access_log: {log} }}
{cache}
listeners: {{ web: {{ bind: \"127.0.0.1:0\" }} }}
sites: [{{ hosts: [\"*\"], routes: [{{ respond: {{ status: 200 }} }}] }}]
"
        )
    };
    let (node, log, cache) =
        ("workers: 1, shutdown_grace: 1s, module_cache: off", "{ output: off }", "cache: { memory: { size: 64MiB } }");
    let mut edge = Edge::start(&config(node, log, cache), &[]);
    for (key, changed) in [
        ("node.workers", config(&node.replace("workers: 1", "workers: 2"), log, cache)),
        ("node.module_cache", config(&node.replace("off", "/tmp/other"), log, cache)),
        ("telemetry.access_log", config(node, "{ output: stderr }", cache)),
        ("cache.memory.size", config(node, log, &cache.replace("64", "65"))),
    ] {
        let refused = edge.reload(&changed).unwrap_err();
        assert!(refused.contains(&format!("{key} has changed: it needs a restart")), "{refused}");
    }
    assert_eq!(edge.plan().generation, 1);
    // A store that is not used any more is still there, of its size.
    edge.reload(&config(node, log, "")).unwrap();
    let refused = edge.reload(&config(node, log, &cache.replace("64", "65"))).unwrap_err();
    assert!(refused.contains("cache.memory.size has changed"), "{refused}");
    edge.reload(&config(&node.replace("1s", "2s"), log, cache)).expect("how long the end may take can be changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn listeners_may_swap_their_addresses() {
    let (one, two) = (unused(), unused());
    let pair = |a: SocketAddr, b: SocketAddr| format!("  a: {{ bind: \"{a}\" }}\n  b: {{ bind: \"{b}\" }}");
    let site = |listeners: String| {
        let both = with_listeners(&listeners, "any");
        let (head, _) = both.split_once("sites:").unwrap();
        format!(
            "{head}sites:
  - {{ hosts: [a.test], listeners: [a], routes: [{{ respond: {{ status: 200 }} }}] }}
"
        )
    };
    let mut edge = Edge::start(&site(pair(one, two)), &[]);
    let status = async |address: SocketAddr| {
        let mut client = Client::connect(address).await;
        client.request("GET / HTTP/1.1\r\nhost: a.test\r\n\r\n").await.status
    };
    assert_eq!((status(one).await, status(two).await), (200, 404));
    edge.reload(&site(pair(two, one))).unwrap();
    soon("the addresses have changed places", async { while (status(one).await, status(two).await) != (404, 200) {} })
        .await;
}

/// A node that can be told, as a process.
struct Told {
    process: Process,
    config: std::path::PathBuf,
    web: SocketAddr,
    admin: SocketAddr,
    _folder: TempDir,
}

impl Told {
    async fn start(config: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("config.yaml");
        std::fs::write(&path, config).unwrap();
        let process = Process::run(PROGRAM, folder.path(), &path, 1).await;
        until("the admin API is told", || process.log().iter().any(|line| line.contains("admin API"))).await;
        let line = process.log().into_iter().find(|line| line.contains("admin API")).expect("the admin API is told");
        let admin = line.split("address=").nth(1).unwrap().trim().parse().unwrap();
        let web = process.addresses()["web"];
        Self { process, config: path, web, admin, _folder: folder }
    }

    async fn tell(&self, method: &str, path: &str, body: &str) -> Response {
        let mut client = Client::connect(self.admin).await;
        let json = "host: localhost\r\ncontent-type: application/json\r\n";
        let length = body.len();
        client
            .send(format!("{method} {path} HTTP/1.1\r\n{json}content-length: {length}\r\n\r\n{body}").as_bytes())
            .await;
        client.response(method).await
    }
}

fn greeting(word: &str) -> String {
    with_listeners(WEB, word).replace("listeners:", "admin: { bind: \"127.0.0.1:0\" }\nlisteners:")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_api_reloads_rolls_back_and_says_what_is_wrong() {
    let node = Told::start(&greeting("one")).await;
    let word = async || Client::get(node.web, "/").await.text();
    let write = |config: &str| {
        // The file watch may be quicker than we are: a reload more does no harm.
        std::fs::write(&node.config, config).unwrap();
    };
    write(&greeting("two"));
    let two = node.tell("POST", "/v1/reload", "").await;
    assert_eq!(two.status, 200, "{}", two.text());
    assert_eq!(word().await, "two");

    write(&greeting("three").replace("hosts", "hots"));
    let wrong = node.tell("POST", "/v1/reload", "").await;
    assert_eq!((wrong.status, wrong.header("content-type")), (422, Some("application/problem+json")));
    let faults = wrong.json()["faults"].clone();
    let helped = |fault: &serde_json::Value| fault["line"] == 8 && fault["help"] == "did you mean `hosts`?";
    assert!(faults.as_array().unwrap().iter().any(helped), "{faults}");
    assert_eq!(word().await, "two");
    let generations = node.tell("GET", "/v1/generations", "").await.json();
    assert_eq!(generations["failure"]["faults"], faults);

    let back = node.tell("POST", "/v1/generations/1/activate", "").await;
    assert_eq!(back.status, 200, "{}", back.text());
    assert_eq!(word().await, "one");
    let generations = node.tell("GET", "/v1/generations", "").await.json();
    let last = generations["generations"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(
        (&last["number"], &last["origin"], &last["rolled_back_to"]),
        (&back.json()["generation"], &json!("rollback"), &json!(1))
    );
    assert_eq!(generations.get("failure"), None);
    for (number, status) in [("99", 404), ("x", 404)] {
        let none = node.tell("POST", &format!("/v1/generations/{number}/activate"), "").await;
        assert_eq!(none.status, status, "{}", none.text());
    }

    let drained = node.tell("PUT", "/v1/ready", "{\"ready\": false}").await;
    assert_eq!((drained.status, drained.json()), (200, json!({ "ready": false })));
    assert_eq!(node.tell("GET", "/v1/ready", "").await.status, 503);
    assert_eq!(word().await, "one", "those that come are served");
    node.tell("PUT", "/v1/ready", "{\"ready\": true}").await;
    assert_eq!(node.tell("GET", "/v1/ready", "").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_does_not_wait_for_requests_under_way() {
    let origin = Origin::start_async(|_| Box::pin(std::future::pending())).await; // Says nothing.
    let config = greeting("one")
        .replace("respond: { status: 200, body: one }", "to: app")
        .replace("shutdown_grace: 1s", "shutdown_grace: 1h")
        .replace(
            "listeners:",
            &format!("upstreams: {{ app: {{ endpoints: [\"{}\"] }} }}\nlisteners:", origin.address()),
        );
    let mut node = Told::start(&config).await;
    let mut waiting = Client::connect(node.web).await;
    waiting.send(GET.as_bytes()).await;
    until("the request is under way", || origin.started() == 1).await;
    node.process.signal("TERM");
    refuses(node.web).await;
    until("it says that it stops", || node.process.log().iter().any(|line| line.contains("a second signal"))).await;
    assert_eq!(node.tell("GET", "/v1/ready", "").await.status, 503);
    let told = node.tell("PUT", "/v1/ready", "{\"ready\": true}").await;
    assert_eq!(told.status, 409, "it will not be ready again: {}", told.text());
    assert_eq!(node.tell("GET", "/v1/ready", "").await.status, 503);
    assert_eq!(node.tell("GET", "/v1/live", "").await.status, 200);
    node.process.signal("TERM");
    assert_eq!(node.process.ended().await.code(), Some(1));
}

/// How often the configuration changes in the test below. `SELVEDGE_TEST_RELOADS=200` for the long run.
fn reloads() -> u64 {
    std::env::var("SELVEDGE_TEST_RELOADS").ok().and_then(|count| count.parse().ok()).unwrap_or(12)
}

/// How many connections ask all the time meanwhile.
const ASKING: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_the_configuration_changes_again_and_again() {
    let (hand_over, mut downloads) = tokio::sync::mpsc::unbounded_channel();
    let origin = Origin::start(move |request| {
        if request.target != "/download" {
            return Origin::reply(200, &[], "fine");
        }
        let (sender, served) = Origin::streaming(200, &[]);
        hand_over.send(sender).unwrap();
        served
    })
    .await;
    let guests = Path::new(env!("SELVEDGE_TEST_GUESTS")).display();
    let config = |turn: u64| {
        format!(
            "version: 1
node: {{ name: edge, workers: 2, shutdown_grace: 5s }}
admin: {{ bind: \"127.0.0.1:0\" }}
telemetry: {{ access_log: {{ output: off }} }}
listeners:
  web: {{ bind: \"127.0.0.1:0\" }}
  other{}: {{ bind: \"127.0.0.1:0\" }}
upstreams:
  app: {{ endpoints: [\"{}\"] }}
  demo: {{ builtin: demo }}
filters:
  noop: {{ wasm: \"file:{guests}/noop.wasm\", limits: {{ deadline: 20s }}, config: \"{turn}\" }}
sites:
  - hosts: [\"*\"]
    routes:
      - {{ name: socket, match: {{ path: /ws }}, filters: [noop], to: demo }}
      - {{ name: filtered, match: {{ path: /filtered }}, filters: [noop], to: app }}
      - {{ name: \"all{turn}\", to: app }}
",
            turn % 3,
            origin.address()
        )
    };
    let node = Told::start(&config(0)).await;

    let mut slow = Client::connect(node.web).await;
    slow.send(b"GET /download HTTP/1.1\r\nhost: test\r\n\r\n").await;
    let download = soon("the download begins", downloads.recv()).await.unwrap();
    let mut sockets = Vec::new();
    for _ in 0..4 {
        let stream = TcpStream::connect(node.web).await.unwrap();
        let (socket, _) = soon("the upgrade", tokio_tungstenite::client_async("ws://test/ws", stream)).await.unwrap();
        sockets.push(socket);
    }
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut asking = tokio::task::JoinSet::new();
    for number in 0..ASKING {
        let (stop, asked, web) = (Arc::clone(&stop), Arc::clone(&asked), node.web);
        asking.spawn(async move {
            let path = if number % 2 == 0 { "/" } else { "/filtered" };
            let mut client = Client::connect(web).await;
            while !stop.load(Relaxed) {
                let answer = client.request(&format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")).await;
                assert_eq!((answer.status, answer.text().as_str()), (200, "fine"));
                asked.fetch_add(1, Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await; // An even load, not as much as goes.
            }
        });
    }

    let mut memory = Vec::new();
    for turn in 1..=reloads() {
        std::fs::write(&node.config, config(turn)).unwrap();
        let done = node.tell("POST", "/v1/reload", "").await;
        assert_eq!(done.status, 200, "{}", done.text());
        download.send(Bytes::from(format!("{turn};"))).unwrap();
        for socket in &mut sockets {
            socket.send(Message::text(turn.to_string())).await.unwrap();
            let echo = soon("an echo", socket.next()).await.unwrap().unwrap();
            assert_eq!(echo, Message::text(turn.to_string()));
        }
        let seen = asked.load(Relaxed);
        until("requests go on", || asked.load(Relaxed) >= seen + 50).await;
        memory.push(node.process.resident() / 1024);
    }
    stop.store(true, Relaxed);
    while let Some(ended) = asking.join_next().await {
        ended.expect("no request failed");
    }
    drop(download);
    let whole: String = (1..=reloads()).map(|turn| format!("{turn};")).collect();
    assert_eq!(slow.response("GET").await.text(), whole, "the download is whole");

    let half = memory[memory.len() / 2];
    let last = *memory.last().unwrap();
    println!(
        "{} requests over {} reloads; memory {} KiB after the first, {half} halfway, {last} at the end",
        asked.load(Relaxed),
        memory.len(),
        memory[0]
    );
    if memory.len() >= 100 {
        assert!(last < half + half / 10, "memory grows: {memory:?}");
    }
}
