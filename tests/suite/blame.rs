//! Who is to blame when an exchange ends badly, and who is told: the client, the counters, the endpoint's record, the access log.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use selvedge_tests::grpc::GrpcServer;
use selvedge_tests::h2::H2Client;
use selvedge_tests::{Client, Edge, Origin, Process, Response, closed, soon, until};
use serde_json::Value;
use tokio::io::AsyncReadExt;

/// A node whose upstreams `h1` and `h2` are one origin, with these settings, and a listener with these limits. The routes `/h1/` and `/h2/`
/// have no filter, `/filtered-h1/` and `/filtered-h2/` one that does nothing, `/held-h1/` and `/held-h2/` one that waits for the whole body.
fn node(limits: &str, settings: &str) -> String {
    let mut yaml = format!(
        "version: 1
node: {{ name: edge, workers: 1, shutdown_grace: 1s, module_cache: off }}
telemetry: {{ access_log: {{ output: off }}, metrics: {{ bind: \"127.0.0.1:0\" }} }}
listeners: {{ web: {{ bind: \"127.0.0.1:0\", limits: {limits} }} }}
filters:
  noop: {{ wasm: \"file:${{GUESTS}}/noop.wasm\", limits: {{ deadline: 20s }} }}
  held: {{ wasm: \"file:${{GUESTS}}/noop.wasm\", request_body: buffer, limits: {{ deadline: 20s, wait: 20s }} }}
upstreams:
  h1: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"], {settings} }}
  h2: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"], protocol: h2, {settings} }}
sites:
  - hosts: [\"*\"]
    routes:
"
    );
    for upstream in ["h1", "h2"] {
        yaml.push_str(&format!(
            "      - {{ match: {{ path: /{upstream}/* }}, to: {upstream} }}
      - {{ match: {{ path: /filtered-{upstream}/* }}, filters: [noop], to: {upstream} }}
      - {{ match: {{ path: /held-{upstream}/* }}, filters: [held], to: {upstream} }}
"
        ));
    }
    yaml
}

async fn patient() -> Origin {
    Origin::start(|request| Origin::reply(200, &[], format!("{} bytes", request.body.len()))).await
}

/// How often this limit was exceeded.
async fn exceeded(edge: &Edge, limit: &str) -> u64 {
    let page = Client::get(edge.metrics(), "/metrics").await.text();
    let sample = format!("selvedge_limit_exceeded_total{{limit=\"{limit}\"}} ");
    let line = page.lines().find_map(|line| line.strip_prefix(&sample));
    line.unwrap_or_else(|| panic!("no {sample}in {page}")).parse().expect("a number")
}

/// How many requests have failed at the endpoints of both upstreams.
fn failures(edge: &Edge) -> u64 {
    let plan = edge.plan();
    let of = |name| plan.upstreams.get(name).expect("configured").endpoints()[0].failures;
    of("h1") + of("h2")
}

fn blames_the_client(response: &Response, what: &str) {
    let told = response.header("proxy-status");
    let expected = "edge; error=http_request_error; details=\"limit idle_timeout\"";
    assert_eq!((response.status, told), (408, Some(expected)), "{what}");
}

/// Begins an upload that stalls after its first byte, over HTTP/1.1; what it is told.
async fn stalled(web: SocketAddr, path: &str) -> Response {
    let mut client = Client::connect(web).await;
    client.send(format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nb").as_bytes()).await;
    let response = client.response("POST").await;
    assert!(client.is_closed().await, "{path}");
    response
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stalls_is_to_blame_and_not_the_endpoint() {
    let origin = patient().await;
    let edge = Edge::start(
        &node("{ upload_rate: 0B/s, idle_timeout: 30s }", "timeouts: { read: 400ms }, retries: { when: [timeout] }"),
        &[("app", origin.address())],
    );
    let h2 = H2Client::connect(edge.web()).await;
    let mut count = 0;
    for path in ["/h1/", "/filtered-h1/", "/h2/", "/filtered-h2/"] {
        blames_the_client(&stalled(edge.web(), path).await, path);
        let (response, mut upload) = h2.open("PUT", path, &[], false).await.unwrap();
        upload.send_data(Bytes::from_static(b"b"), false).unwrap();
        let response = H2Client::collect(soon("an answer", response).await.unwrap()).await.unwrap();
        blames_the_client(&response, path);
        count += 2;
        assert_eq!(exceeded(&edge, "idle_timeout").await, count, "{path}");
    }
    assert_eq!(failures(&edge), 0, "no endpoint has failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_may_take_longer_than_the_upstream_may_be_silent() {
    let origin = patient().await;
    let edge = Edge::start(
        &node("{ upload_rate: 0B/s }", "timeouts: { read: 3s }, retries: { attempts: 1 }"),
        &[("app", origin.address())],
    );
    let h2 = H2Client::connect(edge.web()).await;
    let uploads = ["/h1/", "/filtered-h1/", "/h2/", "/filtered-h2/"].map(|path| {
        let (h2, web) = (&h2, edge.web());
        async move {
            let mut client = Client::connect(web).await;
            client.send(format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 20\r\n\r\n").as_bytes()).await;
            let (response, mut upload) = h2.open("POST", path, &[], false).await.unwrap();
            for piece in 0..20 {
                tokio::time::sleep(Duration::from_millis(200)).await; // this is what the clients are like
                client.send(b"b").await;
                upload.send_data(Bytes::from_static(b"b"), piece == 19).unwrap();
            }
            assert_eq!(client.response("POST").await.text(), "20 bytes", "{path}");
            let response = H2Client::collect(soon("an answer", response).await.unwrap()).await.unwrap();
            assert_eq!(response.text(), "20 bytes", "{path}");
        }
    });
    futures::future::join_all(uploads).await;
    assert_eq!(failures(&edge), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_hangs_after_a_whole_upload_is_to_blame() {
    let origin = Origin::start_async(|_| Box::pin(std::future::pending())).await;
    let edge =
        Edge::start(&node("{}", "timeouts: { read: 300ms }, retries: { attempts: 1 }"), &[("app", origin.address())]);
    let h2 = H2Client::connect(edge.web()).await;
    for (index, path) in ["/h1/", "/filtered-h1/", "/held-h1/", "/h2/", "/filtered-h2/", "/held-h2/"].iter().enumerate()
    {
        let response = Client::post(edge.web(), path, "", b"whole").await;
        let late = (504, Some("edge; error=connection_read_timeout"));
        assert_eq!((response.status, response.header("proxy-status")), late, "{path}");
        let response = h2.request("POST", path, &[], b"whole").await.unwrap();
        assert_eq!((response.status, response.header("proxy-status")), late, "{path}");
        assert_eq!(failures(&edge), 2 * (index as u64 + 1), "{path}");
    }
    assert_eq!(exceeded(&edge, "idle_timeout").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_falls_silent_is_a_408_and_counted() {
    let origin = patient().await;
    let edge = Edge::start(
        &node("{ upload_rate: 0B/s, idle_timeout: 400ms }", "retries: { attempts: 1 }"),
        &[("app", origin.address())],
    );
    let mut count = 0;
    for path in ["/h1/", "/filtered-h1/", "/held-h1/", "/h2/", "/filtered-h2/", "/held-h2/"] {
        blames_the_client(&stalled(edge.web(), path).await, path);
        count += 1;
        assert_eq!(exceeded(&edge, "idle_timeout").await, count, "{path}");
    }
    assert_eq!(failures(&edge), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_cut_off_and_counted() {
    let origin = Origin::start(|_| Origin::reply(200, &[], vec![b'x'; 64 << 20])).await;
    let edge = Edge::start(&node("{ idle_timeout: 400ms }", "retries: { attempts: 1 }"), &[("app", origin.address())]);
    let mut count = 0;
    for path in ["/h1/", "/filtered-h1/", "/h2/"] {
        let mut client = Client::connect(edge.web()).await;
        client.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await;
        let h2 = H2Client::connect(edge.web()).await;
        let (response, _) = h2.open("GET", path, &[], true).await.unwrap();
        let response = soon("the beginning", response).await.unwrap();
        count += 2;
        soon("both are counted", async { while exceeded(&edge, "idle_timeout").await < count {} }).await;
        assert!(client.try_response("GET").await.is_err(), "{path}: it is cut off");
        assert!(H2Client::collect(response).await.is_err(), "{path}: it is cut off");
        assert_eq!(exceeded(&edge, "idle_timeout").await, count, "{path}");
    }
    assert_eq!(failures(&edge), 0);
}

/// Resets streams, and connections in the midst of an upload.
#[tokio::test(flavor = "multi_thread")]
async fn each_way_of_breaking_off_has_its_name() {
    let server = GrpcServer::start().await;
    let (abrupt, _task) = Origin::raw(|mut stream| async move {
        let mut head = [0; 64];
        let _ = stream.read(&mut head).await; // What was not read makes a reset of the end.
    })
    .await;
    let edge = Edge::start(
        "upstreams:
  grpc: { endpoints: [\"127.0.0.1:${PORT_grpc}\"], protocol: h2, retries: { attempts: 1 } }
  abrupt: { endpoints: [\"127.0.0.1:${PORT_abrupt}\"], retries: { attempts: 1 } }
sites: [{ hosts: [\"*\"], routes: [{ match: { path: /grpc/* }, to: grpc }, { to: abrupt }] }]",
        &[("grpc", server.address()), ("abrupt", abrupt)],
    );
    let broken = (502, Some("edge; error=http_response_incomplete".to_owned()));
    let told = |response: Response| (response.status, response.header("proxy-status").map(str::to_owned));
    for method in ["Crash", "Refused"] {
        assert_eq!(told(Client::get(edge.web(), &format!("/grpc/{method}")).await), broken, "{method}");
        assert_eq!(told(Client::post(edge.web(), &format!("/grpc/{method}"), "", b"x").await), broken, "{method}");
    }
    assert_eq!(told(Client::get(edge.web(), "/").await), broken);
    // Whether sending fails first, or reading, is a matter of luck.
    let (status, why) = told(Client::post(edge.web(), "/", "", &vec![b'x'; 8 << 20]).await);
    let names = ["edge; error=http_response_incomplete", "edge; error=connection_terminated"];
    assert!(status == 502 && why.as_deref().is_some_and(|why| names.contains(&why)), "{status} {why:?}");
}

/// Runs a node whose access log can be read.
async fn logged(folder: &std::path::Path, format: &str, body: &str) -> Process {
    let path = folder.join("config.yaml");
    let yaml = format!(
        "version: 1
node: {{ name: edge, workers: 1, shutdown_grace: 50ms, module_cache: off }}
telemetry: {{ access_log: {{ format: {format}, output: stderr }} }}
listeners: {{ web: {{ bind: \"127.0.0.1:0\", limits: {{ uri_length: 40B, idle_timeout: 1500ms }} }} }}
{body}"
    );
    std::fs::write(&path, yaml).expect("written");
    Process::run(env!("CARGO_BIN_EXE_selvedge-under-test"), folder, &path, 1).await
}

/// The access-log line of the request for this path.
async fn line(process: &Process, path: &str) -> Value {
    let mut found = None;
    until(path, || {
        let lines = process.log();
        let mut lines = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        found = lines.find(|line| line["path"] == path);
        found.is_some()
    })
    .await;
    found.expect("just found")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_log_tells_what_went_wrong_in_detail() {
    let origin = Origin::start_async(|request| {
        Box::pin(async move {
            if request.target.starts_with("/hang") {
                std::future::pending::<()>().await;
            }
            if request.target.starts_with("/endless") {
                let (sender, response) = Origin::streaming(200, &[]);
                let _ = sender.send(Bytes::from_static(b"begun"));
                tokio::spawn(async move {
                    sender.closed().await; // As long as somebody reads.
                });
                return response;
            }
            Origin::reply(200, &[], vec![b'x'; 8 << 20])
        })
    })
    .await;
    let closed = closed();
    let port = origin.address().port();
    let folder = tempfile::tempdir().expect("a folder");
    let process = logged(
        folder.path(),
        "json",
        &format!(
            "upstreams:
  app: {{ endpoints: [\"127.0.0.1:{port}\"], retries: {{ attempts: 1 }} }}
  read: {{ endpoints: [\"127.0.0.1:{port}\"], timeouts: {{ read: 200ms }}, retries: {{ attempts: 1 }} }}
  first: {{ endpoints: [\"127.0.0.1:{port}\"], timeouts: {{ first_byte: 200ms }}, retries: {{ attempts: 1 }} }}
  first2: {{ endpoints: [\"127.0.0.1:{port}\"], protocol: h2, timeouts: {{ first_byte: 200ms }}, retries: {{ attempts: 1 }} }}
  total: {{ endpoints: [\"127.0.0.1:{port}\"], timeouts: {{ total: 200ms }}, retries: {{ attempts: 1 }} }}
  total2: {{ endpoints: [\"127.0.0.1:{port}\"], protocol: h2, timeouts: {{ total: 200ms }}, retries: {{ attempts: 1 }} }}
  refused: {{ endpoints: [\"{closed}\"] }}
  full: {{ endpoints: [\"127.0.0.1:{port}\"], limits: {{ requests: 1 }} }}
  ill: {{ endpoints: [\"{closed}\"], panic: 0%, health_check: {{ tcp: {{}}, initial: unhealthy }} }}
sites:
  - hosts: [\"*\"]
    routes:
      - {{ match: {{ path: /hang/read }}, to: read }}
      - {{ match: {{ path: /hang/first }}, to: first }}
      - {{ match: {{ path: /hang/first2 }}, to: first2 }}
      - {{ match: {{ path: /hang/total }}, to: total }}
      - {{ match: {{ path: /hang/total2 }}, to: total2 }}
      - {{ match: {{ path: /hang/full }}, to: full }}
      - {{ match: {{ path: /full }}, to: full }}
      - {{ match: {{ path: /refused }}, to: refused }}
      - {{ match: {{ path: /ill }}, to: ill }}
      - {{ name: all, to: app }}
"
        ),
    )
    .await;
    let web = process.addresses()["web"];
    let mut holding = Client::connect(web).await;
    holding.send(b"GET /hang/full HTTP/1.1\r\nhost: a\r\n\r\n").await;
    until("the only place is taken", || origin.started() == 1).await;
    for (path, status, error, details) in [
        ("/hang/read", 504, "connection_read_timeout", "while reading the response header: timed out"),
        ("/hang/first", 504, "connection_read_timeout", "timeouts.first_byte"),
        ("/hang/first2", 504, "connection_read_timeout", "timeouts.first_byte"),
        ("/hang/total", 504, "connection_read_timeout", "timeouts.total"),
        ("/hang/total2", 504, "connection_read_timeout", "timeouts.total"),
        ("/full", 503, "connection_limit_reached", "upstream full: there are as many requests as there may be"),
        ("/ill", 503, "destination_unavailable", "upstream ill: no endpoint may be sent requests"),
        ("/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", 414, "http_request_error", "limit uri_length"),
    ] {
        assert_eq!(Client::get(web, path).await.status, status, "{path}");
        let line = line(&process, path).await;
        assert_eq!((&line["error"], &line["details"]), (&error.into(), &details.into()), "{line}");
        assert_eq!((&line["listener"], &line["status"]), (&"web".into(), &status.into()), "{line}");
    }
    assert_eq!(Client::get(web, "/refused").await.status, 502);
    let refused = line(&process, "/refused").await;
    assert_eq!((&refused["error"], &refused["attempts"]), (&"connection_refused".into(), &3.into()), "{refused}");
    assert!(refused["details"].as_str().is_some_and(|why| why.contains("Connection refused")), "{refused}");

    // Clients that leave before an answer, in the midst of one, and that take nothing of it.
    let mut client = Client::connect(web).await;
    client.send(b"GET /hang/left HTTP/1.1\r\nhost: a\r\n\r\n").await;
    until("it is under way", || origin.received().iter().any(|request| request.target == "/hang/left")).await;
    drop(client);
    let left = line(&process, "/hang/left").await;
    assert_eq!((&left["error"], &left["status"]), (&"client_gone".into(), &0.into()), "{left}");
    let mut client = Client::connect(web).await;
    client.send(b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(client.head().await.expect("begun").0, 200);
    drop(client);
    let gone = line(&process, "/endless").await;
    assert_eq!((&gone["error"], &gone["status"]), (&"client_gone".into(), &200.into()), "{gone}");
    let mut client = Client::connect(web).await;
    client.send(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let idle = line(&process, "/large").await;
    assert_eq!((&idle["error"], &idle["details"]), (&"client_gone".into(), &"limit idle_timeout".into()), "{idle}");
    drop(client);

    assert_eq!(Client::get(web, "/fine").await.status, 200);
    let fine = line(&process, "/fine").await;
    assert!(fine["error"].is_null() && fine.get("details").is_none(), "{fine}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_for_eyes_says_what_the_cache_did_and_what_went_wrong() {
    let closed = closed();
    let folder = tempfile::tempdir().expect("a folder");
    let process = logged(
        folder.path(),
        "text",
        &format!(
            "cache: {{}}
upstreams: {{ app: {{ endpoints: [\"{closed}\"] }} }}
sites: [{{ hosts: [\"*\"], routes: [{{ name: all, cache: {{}}, to: app }}] }}]"
        ),
    )
    .await;
    assert_eq!(Client::get(process.addresses()["web"], "/x").await.status, 502);
    let said = || {
        process
            .log()
            .iter()
            .any(|line| line.contains("/x HTTP/1.1\" 502 ") && line.ends_with(" all uri-miss connection_refused"))
    };
    until("the line", said).await;
}
