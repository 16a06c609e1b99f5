//! What clients may send, and what they are told when they send more.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use selvedge_tests::h2::H2Client;
use selvedge_tests::{Client, Edge, Origin, Response, soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A node with these limits on every listener; `/f/*` has a filter, the rest has none.
fn edge(limits: &str, origin: &Origin) -> Edge {
    let yaml = format!(
        "version: 1
node: {{ name: edge, workers: 1, shutdown_grace: 1s, module_cache: off }}
telemetry: {{ access_log: {{ output: off }}, metrics: {{ bind: \"127.0.0.1:0\" }} }}
listeners:
  web: {{ bind: \"127.0.0.1:0\", limits: {limits} }}
  secure: {{ bind: \"127.0.0.1:0\", limits: {limits}, tls: {{ certificates: development }} }}
filters: {{ noop: {{ wasm: \"file:${{GUESTS}}/noop.wasm\", limits: {{ deadline: 20s }} }} }}
upstreams: {{ app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }} }}
sites:
  - hosts: [\"*\"]
    routes:
      - {{ match: {{ path: /f/* }}, filters: [noop], to: app }}
      - {{ to: app }}
"
    );
    Edge::start(&yaml, &[("app", origin.address())])
}

async fn origin() -> Origin {
    Origin::start(|_| Origin::reply(200, &[], "ok")).await
}

/// How often a limit was exceeded, as the metrics say.
async fn exceeded(edge: &Edge, limit: &str) -> u64 {
    counted(edge.metrics(), limit).await
}

async fn counted(metrics: SocketAddr, limit: &str) -> u64 {
    let page = Client::get(metrics, "/metrics").await.text();
    let sample = format!("selvedge_limit_exceeded_total{{limit=\"{limit}\"}} ");
    let line = page.lines().find_map(|line| line.strip_prefix(&sample));
    line.unwrap_or_else(|| panic!("no {sample}in {page}")).parse().unwrap()
}

fn blames(response: &Response, limit: &str) {
    let status = response.header("proxy-status").unwrap_or_default();
    assert_eq!(status, format!("edge; error=http_request_error; details=\"limit {limit}\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_and_targets_have_limits_over_http1() {
    let origin = origin().await;
    let edge = edge("{ header_size: 600B, header_count: 5, uri_length: 40B, body: 10B }", &origin);
    let field = |length: usize| format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "v".repeat(length));
    let rest = field(0).len();
    let fields = |count: usize| format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: v\r\n".repeat(count - 1));
    let target = |length: usize| format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "t".repeat(length - 1));
    let body =
        |length: usize| format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n{}", "b".repeat(length));
    let within = [field(600 - rest), fields(5), target(40), body(10)];
    let beyond = [
        (field(601 - rest), 431, "header_size"),
        (field(60_000), 431, "header_size"),
        (fields(6), 431, "header_count"),
        (target(41), 414, "uri_length"),
        (body(11), 413, "body"),
    ];
    for request in &within {
        let mut client = Client::connect(edge.web()).await;
        assert_eq!(client.request(request).await.status, 200, "{request}");
    }
    assert_eq!(origin.started(), within.len());
    for (request, status, limit) in &beyond {
        let mut client = Client::connect(edge.web()).await;
        let response = client.request(request).await;
        assert_eq!(response.status, *status, "{limit}");
        assert_eq!(response.header("connection"), Some("close"), "{limit}");
        blames(&response, limit);
        assert!(client.is_closed().await, "{limit}");
    }
    assert_eq!(origin.started(), within.len(), "what is beyond a limit reaches no origin");
    for (limit, count) in [("header_size", 2), ("header_count", 1), ("uri_length", 1), ("body", 1)] {
        assert_eq!(exceeded(&edge, limit).await, count, "{limit}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_without_end_is_not_read_for_long() {
    let origin = origin().await;
    let edge = edge("{ header_size: 1KiB }", &origin);
    let mut stream = TcpStream::connect(edge.web()).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nx: ").await.unwrap();
    let mut sent = 0_usize;
    while stream.write_all(&[b'v'; 16 * 1024]).await.is_ok() {
        sent += 16 * 1024;
        assert!(sent < 64 << 20, "somebody reads all of it");
        tokio::task::yield_now().await;
    }
    assert_eq!(exceeded(&edge, "header_size").await, 1);
    assert_eq!(Client::get(edge.web(), "/").await.status, 200, "others are served");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_takes_long_ends_the_connection_and_is_counted() {
    let origin = origin().await;
    let edge = edge("{ header_timeout: 200ms }", &origin);
    let mut client = Client::connect(edge.web()).await;
    client.send(b"GET / HTTP/1.1\r\nhost: a\r\n").await;
    assert!(client.is_closed().await);
    assert_eq!(exceeded(&edge, "header_timeout").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_have_a_limit_with_and_without_filters() {
    let origin = origin().await;
    let edge = edge("{ body: 10B }", &origin);
    for path in ["/", "/f/"] {
        let mut client = Client::connect(edge.web()).await;
        let chunked = format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nb\r\n01234567890\r\n0\r\n\r\n"
        );
        let response = client.request(&chunked).await;
        assert_eq!(response.status, 413, "{path}");
        blames(&response, "body");
    }
    assert_eq!(exceeded(&edge, "body").await, 2);
    assert!(origin.received().iter().all(|request| request.body.is_empty()), "no whole body has arrived");
}

/// Sends a byte of a body every 100 ms until the connection ends or `enough` holds.
async fn trickle(client: &mut Client, enough: impl Fn() -> bool) {
    for _ in 0..300 {
        if enough() {
            return;
        }
        client.send(b"1\r\nb\r\n").await;
        tokio::time::sleep(Duration::from_millis(100)).await; // this is what the client is like
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_takes_long_is_a_408() {
    let origin = origin().await;
    let edge = edge("{ request_time: 1s, upload_rate: 0B/s }", &origin);
    for path in ["/", "/f/"] {
        // Nothing at all comes, or a little all the time: over both kinds of connections.
        for (address, tls) in [(edge.web(), false), (edge.secure(), true)] {
            for chunks in [false, true] {
                let mut client = match tls {
                    true => Client::connect_tls(address, "localhost", &["http/1.1"]).await,
                    false => Client::connect(address).await,
                };
                let head = format!("POST {path} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n");
                client.send(head.as_bytes()).await;
                let before = exceeded(&edge, "request_time").await;
                if chunks {
                    trickle(&mut client, || too_slow(&edge) > before).await;
                }
                let response = client.response("POST").await;
                assert_eq!(
                    (response.status, response.header("connection")),
                    (408, Some("close")),
                    "{path} {tls} {chunks}"
                );
                blames(&response, "request_time");
                assert!(client.is_closed().await);
                assert_eq!(exceeded(&edge, "request_time").await, before + 1);
            }
        }
        // What comes in time is served, also after another one, and so is a long answer.
        let mut client = Client::connect(edge.web()).await;
        for _ in 0..2 {
            let request = format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi");
            assert_eq!(client.request(&request).await.status, 200);
        }
    }
}

/// How often uploads were too slow, from within a closure.
fn too_slow(edge: &Edge) -> u64 {
    let metrics = edge.metrics();
    tokio::task::block_in_place(|| {
        tokio::runtime::Handle::current()
            .block_on(async { counted(metrics, "request_time").await + counted(metrics, "upload_rate").await })
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_may_take_its_time_when_the_request_has_come() {
    let origin = Origin::start_async(|_| {
        Box::pin(async {
            tokio::time::sleep(Duration::from_millis(1500)).await; // longer than the client may take
            Origin::reply(200, &[], "late")
        })
    })
    .await;
    let edge = edge("{ request_time: 1s }", &origin);
    for path in ["/", "/f/"] {
        assert_eq!(Client::post(edge.web(), path, "", b"hi").await.text(), "late");
        let h2 = H2Client::connect(edge.web()).await;
        assert_eq!(h2.request("POST", path, &[], b"hi").await.unwrap().text(), "late");
    }
    assert_eq!(exceeded(&edge, "request_time").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_takes_long_is_a_408_or_is_reset() {
    let origin = origin().await;
    let edge = edge("{ request_time: 1s }", &origin);
    let client = H2Client::connect(edge.web()).await;
    for path in ["/", "/f/"] {
        let (response, upload) = client.open("POST", path, &[], false).await.unwrap();
        assert!(selvedge_tests::soon("the end of the stream", response).await.is_err(), "it is silent, and reset");
        drop(upload);

        let (response, mut upload) = client.open("POST", path, &[], false).await.unwrap();
        let mut response = std::pin::pin!(response);
        let response = loop {
            let _ = upload.send_data(bytes::Bytes::from_static(b"b"), false);
            if let Ok(response) = tokio::time::timeout(Duration::from_millis(20), &mut response).await {
                break H2Client::collect(response.unwrap()).await.unwrap();
            }
        };
        assert_eq!(response.status, 408);
        blames(&response, "request_time");
    }
    assert_eq!(exceeded(&edge, "request_time").await, 4);
    assert_eq!(client.request("POST", "/", &[], b"hi").await.unwrap().status, 200, "the connection goes on");
}

/// Bytes come, but too few. The first ten seconds are for free, so this takes its time.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_trickles_is_a_408() {
    let origin = origin().await;
    let edge = edge("{ upload_rate: 10KB/s }", &origin);
    let mut client = Client::connect(edge.web()).await;
    client.send(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").await;
    // Another one is as fast as it has to be, and a third waits to be asked for its body.
    let mut fast = Client::connect(edge.web()).await;
    fast.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 400000\r\n\r\n").await;
    fast.send(&[b'f'; 399_999]).await;
    trickle(&mut client, || too_slow(&edge) > 0).await;
    let response = client.response("POST").await;
    assert_eq!(response.status, 408);
    blames(&response, "upload_rate");
    fast.send(b"f").await;
    assert_eq!(fast.response("POST").await.status, 200);
    assert_eq!(exceeded(&edge, "upload_rate").await, 1);
}

/// The same of streams, all at once: the first ten seconds are for free.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_trickles_is_a_408_and_one_that_stops_is_reset() {
    let origin = origin().await;
    let edge = edge("{ upload_rate: 10KB/s }", &origin);
    let client = H2Client::connect(edge.web()).await;
    let open = |path, headers| client.open("POST", path, headers, false);
    let (fast, mut more) = open("/", &[]).await.unwrap();
    // Credit for half a minute.
    more.send_data(Bytes::from(vec![b'f'; 300_000]), false).unwrap();
    let (call, mut words) = open("/", &[("content-type", "application/grpc")]).await.unwrap();
    words.send_data(Bytes::from_static(b"w"), false).unwrap();
    let (silent, stopped) = open("/", &[]).await.unwrap();

    let mut slow = Vec::new();
    for path in ["/", "/f/"] {
        let (response, mut upload) = open(path, &[]).await.unwrap();
        slow.push(async move {
            let mut response = std::pin::pin!(response);
            loop {
                let _ = upload.send_data(Bytes::from_static(b"b"), false);
                if let Ok(response) = tokio::time::timeout(Duration::from_millis(100), &mut response).await {
                    return H2Client::collect(response.expect("answered")).await.expect("whole");
                }
            }
        });
    }
    for response in soon("the slow ones are told", futures::future::join_all(slow)).await {
        assert_eq!(response.status, 408);
        blames(&response, "upload_rate");
    }
    assert!(soon("the end of the stream", silent).await.is_err(), "it is silent, and reset");
    drop(stopped);
    assert_eq!(exceeded(&edge, "upload_rate").await, 3);

    more.send_data(Bytes::from_static(b"f"), true).unwrap();
    assert_eq!(soon("an answer", fast).await.unwrap().status(), 200);
    words.send_data(Bytes::from_static(b"w"), true).unwrap();
    assert_eq!(soon("an answer", call).await.unwrap().status(), 200);
    assert_eq!(exceeded(&edge, "upload_rate").await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_and_targets_have_limits_over_http2() {
    let origin = origin().await;
    let edge = edge("{ header_size: 2KiB, header_count: 8, uri_length: 40B }", &origin);
    let long = "v".repeat(3000);
    let many: Vec<(&str, &str)> = (0..9).map(|_| ("x", "v")).collect();
    for client in [H2Client::connect(edge.web()).await, H2Client::connect_tls(edge.secure(), "localhost").await] {
        assert_eq!(client.request("GET", "/", &[("x", "v")], b"").await.unwrap().status, 200);
        let response = client.request("GET", &format!("/{}", "t".repeat(40)), &[], b"").await.unwrap();
        assert_eq!(response.status, 414);
        blames(&response, "uri_length");
        let response = client.request("GET", "/", &many, b"").await.unwrap();
        assert_eq!(response.status, 431);
        blames(&response, "header_count");
        // Refused by the HTTP/2 session, which has told the client how much it takes.
        assert!(
            !matches!(client.request("GET", "/", &[("x", &long)], b"").await, Ok(response) if response.status != 431)
        );
        assert_eq!(client.request("GET", "/", &[], b"").await.unwrap().status, 200, "the connection goes on");
    }
    assert_eq!(origin.started(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http1_connection_ends_after_its_last_request() {
    let origin = origin().await;
    let edge = edge("{ requests_per_connection: 3 }", &origin);
    for path in ["/", "/f/"] {
        let mut client = Client::connect(edge.web()).await;
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
        for _ in 0..2 {
            let response = client.request(&request).await;
            assert_eq!((response.status, response.header("connection")), (200, Some("keep-alive")), "{path}");
        }
        let response = client.request(&request).await;
        assert_eq!((response.status, response.header("connection")), (200, Some("close")), "{path}");
        assert!(client.is_closed().await, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http2_connection_ends_after_its_last_request() {
    let origin = origin().await;
    let edge = edge("{ requests_per_connection: 3 }", &origin);
    for client in [H2Client::connect(edge.web()).await, H2Client::connect_tls(edge.secure(), "localhost").await] {
        for _ in 0..3 {
            assert_eq!(client.request("GET", "/", &[], b"").await.unwrap().status, 200);
        }
        // The GOAWAY is under way; what is opened before it is read is answered.
        let mut more = 0;
        while client.request("GET", "/", &[], b"").await.is_ok() {
            more += 1;
            assert!(more < 100, "nobody says that it is over");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_streams_is_told_to_the_client() {
    let origin = origin().await;
    let edge = edge("{ h2_streams: 7 }", &origin);
    let mut stream = TcpStream::connect(edge.web()).await.unwrap();
    stream.write_all(&raw::opening()).await.unwrap();
    let (kind, settings) = raw::frame(&mut stream).await.expect("settings");
    assert_eq!(kind, raw::SETTINGS);
    let streams = settings.chunks(6).find(|setting| setting[..2] == [0, 3]).expect("SETTINGS_MAX_CONCURRENT_STREAMS");
    assert_eq!(streams[2..], [0, 0, 0, 7]);
}

/// Rapid reset (CVE-2023-44487), as fast as it goes: requests and their resets in the same packets.
#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_reset_at_once_end_the_connection() {
    let origin = origin().await;
    let edge = edge("{}", &origin);
    let last = flood(edge.web(), 10_000, None).await;
    assert_eq!(last, Some(raw::ENHANCE_YOUR_CALM));
    assert!(origin.started() <= 400, "{} of 10,000 requests reached the origin", origin.started());
    assert_eq!(Client::get(edge.web(), "/").await.status, 200, "others are served");
}

/// The patient kind: each stream is reset once it has been taken up, so that no queue ever grows.
#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_reset_while_they_are_served_end_the_connection() {
    let origin = Origin::start_async(|_| Box::pin(std::future::pending())).await;
    let edge = edge("{ h2_resets: 50 }", &origin);
    let asked = flood(edge.web(), 10_000, Some(&origin)).await;
    assert_ne!(asked, Some(0), "the connection has ended");
    let started = origin.started();
    assert!((1..=200).contains(&started), "{started} of 10,000 requests reached the origin");
    assert_eq!(exceeded(&edge, "h2_resets").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_answers_may_give_streams_up() {
    let origin = Origin::start_async(|request| {
        Box::pin(async move {
            if request.target == "/never" {
                std::future::pending::<()>().await;
            }
            Origin::reply(200, &[], "ok")
        })
    })
    .await;
    let edge = edge("{ h2_resets: 2 }", &origin);
    let client = H2Client::connect(edge.web()).await;
    for round in 0..20 {
        let asked = origin.started();
        let (response, upload) = client.open("GET", "/never", &[], true).await.unwrap();
        until("it is asked for", || origin.started() > asked).await;
        drop((response, upload));
        assert_eq!(client.request("GET", "/", &[], b"").await.expect("goes on").status, 200, "{round}");
    }
    assert_eq!(exceeded(&edge, "h2_resets").await, 0);
}

/// Opens streams and resets them; says with which code the connection ended: of its GOAWAY, or `None` when it was closed without one.
/// With an origin, each is reset once it has come there, or does not come.
async fn flood(web: SocketAddr, streams: u32, origin: Option<&Origin>) -> Option<u32> {
    let stream = TcpStream::connect(web).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let reading = tokio::spawn(async move {
        let mut code = None;
        while let Some((kind, payload)) = raw::frame(&mut reader).await {
            if kind == raw::GOAWAY {
                code = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
            }
        }
        code
    });
    writer.write_all(&raw::opening()).await.unwrap();
    for number in 0..streams {
        let id = 2 * number + 1;
        let Some(origin) = origin else {
            if writer.write_all(&[raw::get(id), raw::reset(id)].concat()).await.is_err() {
                break;
            }
            continue;
        };
        let before = origin.started();
        if writer.write_all(&raw::get(id)).await.is_err() {
            break;
        }
        for _ in 0..500 {
            if origin.started() > before {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        if writer.write_all(&raw::reset(id)).await.is_err() {
            break;
        }
    }
    selvedge_tests::soon("the end of the connection", reading).await.unwrap()
}

/// HTTP/2 frames, byte by byte.
mod raw {
    use super::AsyncReadExt;
    use tokio::io::AsyncRead;

    pub(super) const SETTINGS: u8 = 4;
    pub(super) const GOAWAY: u8 = 7;
    pub(super) const ENHANCE_YOUR_CALM: u32 = 11;

    /// The preface and empty settings.
    pub(super) fn opening() -> Vec<u8> {
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0]].concat()
    }

    /// `GET / HTTP/2`, whole.
    pub(super) fn get(id: u32) -> Vec<u8> {
        // Indexed :method GET, :scheme http, :path /; :authority as a literal.
        let block = [&[0x82, 0x86, 0x84, 0x01, 1, b'a'][..]].concat();
        let length = u8::try_from(block.len()).unwrap();
        [&[0, 0, length, 1, 5][..], &id.to_be_bytes(), &block].concat()
    }

    /// RST_STREAM with CANCEL.
    pub(super) fn reset(id: u32) -> Vec<u8> {
        [&[0, 0, 4, 3, 0][..], &id.to_be_bytes(), &8_u32.to_be_bytes()].concat()
    }

    /// The next frame; `None` = the connection has ended.
    pub(super) async fn frame(io: &mut (impl AsyncRead + Unpin)) -> Option<(u8, Vec<u8>)> {
        let mut head = [0; 9];
        io.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        io.read_exact(&mut payload).await.ok()?;
        Some((head[3], payload))
    }
}
