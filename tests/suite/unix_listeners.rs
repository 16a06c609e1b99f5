//! Listeners on Unix sockets: what clients there are to routes, filters and upstreams, and what becomes of the sockets' files.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use selvedge_tests::tls::Caller;
use selvedge_tests::{Client, Edge, Origin, Request, Response, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const WEB: &str = "web: { bind: \"unix:web.sock\" }";

/// A node with these listeners. What comes from 192.0.2.0/24 is inside; the rest goes to the origin, which says what it was told; `/f/`
/// has a filter that shows what it knows of the connection.
fn config(node: &str, listeners: &str) -> String {
    let show = "response_headers get source source/address\\nresponse_headers get destination destination/address\\n";
    format!(
        "version: 1
node: {{ name: edge, workers: 2, shutdown_grace: 1s, module_cache: off, {node} }}
telemetry: {{ access_log: {{ output: off }} }}
listeners: {{ {listeners} }}
filters:
  show: {{ wasm: \"file:${{GUESTS}}/properties.wasm\", config: \"{show}\", limits: {{ deadline: 20s }} }}
upstreams:
  app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"], balance: {{ consistent_hash: {{ by: client_ip }} }} }}
sites:
  - hosts: [\"*\"]
    routes:
      - {{ match: {{ path: /f/* }}, filters: [show], to: app }}
      - {{ match: {{ client: [192.0.2.0/24] }}, respond: {{ status: 200, body: inside }} }}
      - {{ to: app }}
"
    )
}

async fn origin() -> Origin {
    let answer = |request: &Request| {
        let told = request.header("x-forwarded-for").unwrap_or("nobody").to_owned();
        Origin::reply(200, &[], told)
    };
    Origin::start(answer).await
}

async fn connect(path: &Path) -> UnixStream {
    soon("connect", UnixStream::connect(path)).await.expect("somebody listens")
}

async fn get(stream: UnixStream, path: &str, fields: &str) -> Response {
    Client::over(stream).request(&format!("GET {path} HTTP/1.1\r\nhost: a\r\n{fields}\r\n")).await
}

fn file(edge: &Edge, name: &str) -> PathBuf {
    edge.folder().join(name)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_there_has_no_address() {
    let origin = origin().await;
    let edge = Edge::start(&config("", WEB), &[("app", origin.address())]);
    let web = file(&edge, "web.sock");
    let mode = std::fs::metadata(&web).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660, "for the user and the group of the process");

    let posing = "x-forwarded-for: 192.0.2.1\r\nforwarded: for=192.0.2.1\r\nx-forwarded-proto: https\r\n";
    let mut kept = Client::over(connect(&web).await);
    for _ in 0..3 {
        let answer = kept.request(&format!("GET / HTTP/1.1\r\nhost: a\r\n{posing}\r\n")).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, "nobody"));
        let told = origin.last();
        assert_eq!((told.header("forwarded"), told.header("x-forwarded-proto")), (None, Some("http")));
    }
    let shown = get(connect(&web).await, "/f/", posing).await;
    assert_eq!(
        (shown.header("x-source"), shown.header("x-destination")),
        (Some("!1"), Some("!1")),
        "not found: {shown:?}"
    );

    // HTTP/2 by prior knowledge.
    let (mut send, connection) = soon("handshake", h2::client::handshake(connect(&web).await)).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::builder().uri("http://a/").body(()).unwrap();
    let answer = soon("answer", send.send_request(request, true).unwrap().0).await.unwrap();
    assert_eq!(answer.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_there_may_be_trusted() {
    let origin = origin().await;
    let listeners = format!("{WEB}, told: {{ bind: \"unix:told.sock\", proxy_protocol: accept }}");
    let edge = Edge::start(&config("trusted_proxies: [unix, 10.0.0.0/8]", &listeners), &[("app", origin.address())]);
    let web = file(&edge, "web.sock");
    assert_eq!(get(connect(&web).await, "/", "x-forwarded-for: 192.0.2.7\r\n").await.text(), "inside");
    let passed = get(connect(&web).await, "/", "x-forwarded-for: 203.0.113.7, 10.1.1.1\r\n").await;
    assert_eq!(passed.text(), "203.0.113.7, 10.1.1.1", "as it was said: there is no hop to add");
    let passed = get(connect(&web).await, "/", "forwarded: for=203.0.113.7;proto=https\r\n").await;
    assert_eq!(passed.text(), "203.0.113.7");

    let told = file(&edge, "told.sock");
    let mut stream = connect(&told).await;
    stream.write_all(b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n").await.unwrap();
    let shown = get(stream, "/f/", "").await;
    assert_eq!(
        (shown.header("x-source"), shown.header("x-destination")),
        (Some("192.0.2.1:56324"), Some("198.51.100.7:443"))
    );
    let mut silent = connect(&told).await;
    silent.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = soon("the end", silent.read_to_end(&mut answer)).await;
    assert_eq!(answer, b"", "whoever is trusted has to say");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_tcp_work_there_as_well() {
    let origin = origin().await;
    let listeners = "
        secure: { bind: \"unix:secure.sock\", tls: { certificates: development } },
        plain: { bind: \"unix:plain.sock\", tcp: { upstream: app } }";
    let edge = Edge::start(&config("", listeners), &[("app", origin.address())]);
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let stream = connect(&file(&edge, "secure.sock")).await;
    let connector = Caller::new("localhost", &["http/1.1"]).connector();
    let stream = soon("handshake", connector.connect(name, stream)).await.unwrap();
    assert_eq!(Client::over(stream).request("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.text(), "nobody");
    assert_eq!(origin.last().header("x-forwarded-proto"), Some("https"));
    let forwarded = get(connect(&file(&edge, "plain.sock")).await, "/", "x-forwarded-for: 192.0.2.1\r\n").await;
    assert_eq!(forwarded.text(), "192.0.2.1", "nobody has touched it");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_sockets_come_and_go_with_their_listeners() {
    let origin = origin().await;
    let mut edge = Edge::start(&config("", WEB), &[("app", origin.address())]);
    let web = file(&edge, "web.sock");
    let mut kept = Client::over(connect(&web).await);
    assert_eq!(kept.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.status, 200);

    // With other settings and under another name it is the same socket.
    let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
    let before = inode(&web);
    let renamed = "front: { bind: \"unix:web.sock\", protocols: [h1] }, more: { bind: \"unix:more.sock\" }";
    edge.reload(&config("", renamed)).unwrap();
    assert_eq!(inode(&web), before);
    for name in ["web.sock", "more.sock"] {
        assert_eq!(get(connect(&file(&edge, name)).await, "/", "").await.status, 200);
    }

    edge.reload(&config("", "other: { bind: \"unix:other.sock\" }")).unwrap();
    assert_eq!(get(connect(&file(&edge, "other.sock")).await, "/", "").await.status, 200);
    for name in ["web.sock", "more.sock"] {
        soon("the file goes", async {
            while file(&edge, name).exists() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    let other = file(&edge, "other.sock");
    let stopping = edge.stop();
    tokio::task::spawn_blocking(move || stopping.join()).await.unwrap().unwrap();
    assert!(!other.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_socket_that_nobody_listens_at_is_replaced() {
    let origin = origin().await;
    let folder = tempfile::TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    drop(std::os::unix::net::UnixListener::bind(at("left.sock")).unwrap());
    let _living = std::os::unix::net::UnixListener::bind(at("living.sock")).unwrap();
    std::fs::write(at("text.sock"), "a file").unwrap();
    let start = |name: &str| {
        let listener = format!("web: {{ bind: \"unix:{}\" }}", at(name).display());
        Edge::try_start(&config("", &listener), &[("app", origin.address())])
    };
    let edge = start("left.sock").unwrap();
    assert_eq!(get(connect(&at("left.sock")).await, "/", "").await.status, 200);
    drop(edge);
    for name in ["living.sock", "text.sock"] {
        let error = start(name).err().expect("it cannot listen").to_string();
        let expected = format!("listener web cannot listen on unix:{}: Address already in use", at(name).display());
        assert!(error.contains(&expected) && error.contains("config.yaml:5:14"), "{error}");
    }
    assert!(std::fs::metadata(at("living.sock")).unwrap().file_type().is_socket());
    assert_eq!(std::fs::read_to_string(at("text.sock")).unwrap(), "a file");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_limited_there_in_all_and_not_by_client() {
    let origin = origin().await;
    let listener = "web: { bind: \"unix:web.sock\", limits: { connections: 3, connections_per_client: 1 } }";
    let edge = Edge::start(&config("", listener), &[("app", origin.address())]);
    let web = file(&edge, "web.sock");
    let mut kept = Vec::new();
    for _ in 0..3 {
        let mut client = Client::over(connect(&web).await);
        assert_eq!(client.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.status, 200);
        kept.push(client);
    }
    let mut refused = connect(&web).await;
    let mut answer = Vec::new();
    let _ = soon("the end", refused.read_to_end(&mut answer)).await;
    assert_eq!(answer, b"");
}
