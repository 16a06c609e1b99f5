//! What leaves compressed, over every way a response can take; and that what is cached is compressed once.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use selvedge_tests::h2::H2Client;
use selvedge_tests::{Client, Edge, Origin, Request, Response, soon};
use tokio::sync::mpsc;

fn node(origin: SocketAddr) -> Edge {
    let yaml = "
version: 1
node: { name: edge, workers: 1, shutdown_grace: 1s }
telemetry: { access_log: { output: off }, metrics: { bind: \"127.0.0.1:0\" } }
listeners: { web: { bind: \"127.0.0.1:0\", protocols: [h1, h2] } }
cache: {}
upstreams: { app: { endpoints: [\"127.0.0.1:${PORT_app}\"] } }
filters:
  noop: { wasm: \"file:${GUESTS}/noop.wasm\", limits: { deadline: 10s } }
  append: { wasm: \"file:${GUESTS}/append.wasm\", limits: { deadline: 10s } }
  deny: { wasm: \"file:${GUESTS}/deny.wasm\", limits: { deadline: 10s } }
sites:
- hosts: [\"*\"]
  compress: { encodings: [zstd, br, gzip], min_size: 100B }
  routes:
  - { name: \"plain-${ID}\", match: { path: /plain/* }, to: app }
  - { name: \"off-${ID}\", match: { path: /off/* }, compress: false, to: app }
  - { name: \"gzip-${ID}\", match: { path: /gzip/* }, compress: { encodings: [gzip], types: [image/*], levels: { gzip: 9 } }, to: app }
  - { name: \"cached-${ID}\", match: { path: /cached/* }, cache: {}, to: app }
  - { name: \"noop-${ID}\", match: { path: /noop/* }, cache: {}, filters: [noop], to: app }
  - { name: \"append-${ID}\", match: { path: /append/* }, cache: {}, filters: [append], to: app }
  - { name: \"sliced-${ID}\", match: { path: /sliced/* }, cache: { slice: 64KiB }, to: app }
  - { name: \"fixed-${ID}\", match: { path: /fixed }, respond: { status: 404, body: \"BODY\", headers: { content-type: text/html } } }";
    Edge::start(&yaml.replace("BODY", &"not here ".repeat(30)), &[("app", origin)])
}

/// Text that can be compressed, longer than what is compressed at once.
fn text() -> String {
    (0..20_000).map(|line| format!("line {line} of some text\n")).collect()
}

async fn origin() -> Origin {
    Origin::start(|request| answer(request, &[])).await
}

fn answer(request: &Request, more: &[(&str, &str)]) -> selvedge_tests::Served {
    let whole = text();
    let fields = [("content-type", "text/plain"), ("cache-control", "max-age=60"), ("etag", "\"one\"")];
    let fields: Vec<(&str, &str)> = fields.iter().chain(more).copied().collect();
    let range = request.header("range").and_then(|range| {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse::<usize>().ok()?, last.parse::<usize>().ok()?.min(whole.len() - 1)))
    });
    match range {
        Some((first, last)) => {
            let place = format!("bytes {first}-{last}/{}", whole.len());
            let fields: Vec<_> = fields.into_iter().chain([("content-range", place.as_str())]).collect();
            Origin::reply(206, &fields, Bytes::from(whole.as_bytes()[first..=last].to_vec()))
        }
        None => Origin::reply(200, &fields, whole),
    }
}

fn decoded(response: &Response) -> String {
    let data = &response.body[..];
    let mut plain = Vec::new();
    match response.header("content-encoding") {
        Some("gzip") => flate2::read::GzDecoder::new(data).read_to_end(&mut plain).unwrap(),
        Some("br") => brotli::Decompressor::new(data, 4096).read_to_end(&mut plain).unwrap(),
        Some("zstd") => zstd::stream::read::Decoder::new(data).unwrap().read_to_end(&mut plain).unwrap(),
        Some(other) => panic!("encoded as {other}"),
        None => plain.write(data),
    };
    String::from_utf8(plain).unwrap()
}

trait Write {
    fn write(&mut self, data: &[u8]) -> usize;
}

impl Write for Vec<u8> {
    fn write(&mut self, data: &[u8]) -> usize {
        self.extend_from_slice(data);
        data.len()
    }
}

async fn get(edge: &Edge, path: &str, fields: &str) -> Response {
    soon("an answer", Client::get_with(edge.web(), path, fields)).await
}

async fn get_h2(edge: &Edge, path: &str, fields: &[(&str, &str)]) -> Response {
    H2Client::connect(edge.web()).await.request("GET", path, fields, b"").await.unwrap()
}

/// Over both versions of HTTP, from the origin and from the cache, with filters and without.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_gets_the_encoding_it_prefers() {
    let origin = origin().await;
    let edge = node(origin.address());
    for path in ["/plain/a", "/cached/a", "/noop/a", "/append/a", "/sliced/a"] {
        let expected = if path.starts_with("/append") { text() + "+app" } else { text() };
        for (accept, coding) in [
            ("gzip", Some("gzip")),
            ("gzip, deflate, br, zstd", Some("zstd")),
            ("gzip;q=0.5, br;q=0.9", Some("br")),
            ("identity", None),
        ] {
            for pass in ["first", "second", "third"] {
                let what = format!("{path} {accept} {pass}");
                let h1 = get(&edge, path, &format!("accept-encoding: {accept}\r\n")).await;
                let h2 = get_h2(&edge, path, &[("accept-encoding", accept)]).await;
                for response in [h1, h2] {
                    assert_eq!(response.status, 200, "{what}: {:?}", response.headers);
                    assert_eq!(response.header("content-encoding"), coding, "{what}");
                    assert_eq!(response.header("vary"), Some("Accept-Encoding"), "{what}");
                    let tag = if coding.is_some() { "W/\"one\"" } else { "\"one\"" };
                    assert_eq!(response.header("etag"), Some(tag), "{what}");
                    assert!(decoded(&response) == expected, "{what}: {} bytes", response.body.len());
                    if let Some(length) = response.header("content-length") {
                        assert_eq!(length, response.body.len().to_string(), "{what}");
                    }
                    assert!(coding.is_none() || response.body.len() < expected.len() / 3, "{what}");
                }
            }
        }
    }
}

/// Read from `/metrics`: responses that were compressed on their way, and as they were stored.
async fn compressed(edge: &Edge) -> (u64, u64) {
    let page = Client::get(edge.metrics(), "/metrics").await.text();
    let count = |source: &str| {
        let name = format!("selvedge_compress_responses_total{{source=\"{source}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or_else(|| panic!("{page}"))
    };
    (count("encoded"), count("stored"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cached_is_compressed_once_for_each_encoding() {
    let origin = origin().await;
    let edge = node(origin.address());
    for (path, fields) in [("/cached/a", "br"), ("/noop/a", "gzip")] {
        let fields = format!("accept-encoding: {fields}\r\n");
        let before = compressed(&edge).await;
        for _ in 0..6 {
            assert!(decoded(&get(&edge, path, &fields).await) == text());
        }
        // The first one reads along with the fill, the second one brings the encoding.
        let after = compressed(&edge).await;
        assert_eq!((after.0 - before.0, after.1 - before.1), (2, 4), "{path}");
        let stored = get(&edge, path, &fields).await;
        assert_eq!(stored.header("content-length"), Some(stored.body.len().to_string().as_str()));
        assert_eq!(stored.header("transfer-encoding"), None);
        let mut client = Client::connect(edge.web()).await;
        let head = client.request(&format!("HEAD {path} HTTP/1.1\r\nhost: test\r\n{fields}\r\n")).await;
        assert_eq!(head.header("content-length"), stored.header("content-length"), "{:?}", head.headers);
        assert_eq!(head.header("content-encoding"), stored.header("content-encoding"));
    }
    // A filter that changes the body: never the stored encoding.
    let before = compressed(&edge).await;
    for _ in 0..4 {
        assert!(decoded(&get(&edge, "/append/a", "accept-encoding: br\r\n").await) == text() + "+app");
    }
    let after = compressed(&edge).await;
    assert_eq!((after.0 - before.0, after.1 - before.1), (4, 0));
    assert_eq!(origin.received().len(), 3, "the cache keeps what the origin sent, once");
}

/// An encoding goes with its object: after a purge there is a new one, of the new body.
#[tokio::test(flavor = "multi_thread")]
async fn a_stored_encoding_is_never_of_another_body() {
    let version = Arc::new(AtomicUsize::new(0));
    let current = Arc::clone(&version);
    let origin = Origin::start(move |_| {
        let body = format!("version {} ", current.load(Ordering::SeqCst)).repeat(100);
        Origin::reply(200, &[("content-type", "text/plain"), ("cache-control", "max-age=60")], body)
    })
    .await;
    let edge = node(origin.address());
    for round in 0..3 {
        version.store(round, Ordering::SeqCst);
        for _ in 0..4 {
            let response = get(&edge, "/cached/a", "accept-encoding: gzip\r\n").await;
            assert_eq!(decoded(&response), format!("version {round} ").repeat(100));
        }
        let mut client = Client::connect(edge.web()).await;
        client.request("POST /cached/a HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_to_be_compressed_is_not() {
    let origin = Origin::start(|request| {
        let text = "text ".repeat(100);
        let fields: &[(&str, &str)] = match request.target.rsplit('/').next().unwrap_or_default() {
            "png" => &[("content-type", "image/png")],
            "none" => &[],
            "encoded" => &[("content-type", "text/html"), ("content-encoding", "deflate")],
            "no-transform" => &[("content-type", "text/html"), ("cache-control", "no-transform")],
            "events" => &[("content-type", "text/event-stream")],
            "short" => return Origin::reply(200, &[("content-type", "text/html")], "short"),
            _ => &[("content-type", "text/html")],
        };
        Origin::reply(200, fields, text)
    })
    .await;
    let edge = node(origin.address());
    for (path, coding, vary) in [
        ("/plain/png", None, None),
        ("/plain/none", None, None),
        ("/plain/encoded", Some("deflate"), None),
        ("/plain/no-transform", None, None),
        ("/plain/events", None, None),
        ("/plain/short", None, None),
        ("/plain/html", Some("gzip"), Some("Accept-Encoding")),
        ("/off/html", None, None),
        ("/gzip/html", None, None),
        ("/gzip/png", None, None), // less than the usual 1 KiB
        ("/fixed", Some("gzip"), Some("Accept-Encoding")),
    ] {
        let response = get(&edge, path, "accept-encoding: gzip\r\n").await;
        assert_eq!(response.header("content-encoding"), coding, "{path}");
        assert_eq!(response.header("vary"), vary, "{path}");
    }
    // No chunks for a client of HTTP/1.0.
    let mut client = Client::connect(edge.web()).await;
    let old = client.request("GET /plain/html HTTP/1.0\r\nhost: test\r\naccept-encoding: gzip\r\n\r\n").await;
    assert_eq!((old.header("content-encoding"), old.body.len()), (None, 500));
}

/// RFC 9110, 13 and 14: what a client has compressed is validated by the weak tag, and ranges are of the plain bytes.
#[tokio::test(flavor = "multi_thread")]
async fn conditions_and_ranges_hold_with_compression() {
    let origin = origin().await;
    let edge = node(origin.address());
    let gzip = "accept-encoding: gzip\r\n";
    for path in ["/cached/a", "/sliced/a"] {
        get(&edge, path, gzip).await;
        for _ in 0..2 {
            let weak = get(&edge, path, &format!("{gzip}if-none-match: W/\"one\"\r\n")).await;
            assert_eq!((weak.status, weak.header("etag")), (304, Some("W/\"one\"")), "{path} {:?}", weak.headers);
            let strong = get(&edge, path, "if-none-match: \"one\"\r\n").await;
            assert_eq!((strong.status, strong.header("etag")), (304, Some("\"one\"")), "{path}");
            let part = get(&edge, path, &format!("{gzip}range: bytes=5-9\r\n")).await;
            assert_eq!((part.status, part.text().as_str()), (206, &text()[5..10]), "{path}");
            assert_eq!((part.header("content-encoding"), part.header("vary")), (None, Some("Accept-Encoding")));
            // The bytes that this client has are others: it gets all of them anew.
            let resumed = get(&edge, path, &format!("{gzip}range: bytes=5-9\r\nif-range: W/\"one\"\r\n")).await;
            assert_eq!((resumed.status, resumed.header("content-encoding")), (200, Some("gzip")), "{path}");
            assert!(decoded(&resumed) == text());
        }
    }
}

/// What the origin has sent reaches the client, though more of it may be long in coming.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_of_the_origin_lets_out_what_there_is() {
    for (path, coding) in [("/plain/s", "gzip"), ("/cached/s", "zstd"), ("/noop/s", "br")] {
        let (sender, mut senders) = mpsc::unbounded_channel();
        let origin = Origin::start(move |_| {
            let fields = [("content-type", "text/plain"), ("cache-control", "max-age=60")];
            let (chunks, served) = Origin::streaming(200, &fields);
            sender.send(chunks).unwrap();
            served
        })
        .await;
        let edge = node(origin.address());
        let mut client = Client::connect(edge.web()).await;
        client.send(format!("GET {path} HTTP/1.1\r\nhost: test\r\naccept-encoding: {coding}\r\n\r\n").as_bytes()).await;
        let chunks = soon("the origin", senders.recv()).await.unwrap();
        chunks.send(Bytes::from_static(b"event 1\n")).unwrap();
        let (status, fields) = soon("a header", client.head()).await.unwrap();
        assert_eq!(status, 200, "{fields:?}");

        let mut encoded = Vec::new();
        for expected in ["event 1\n", "event 1\nevent 2\n"] {
            let mut plain = String::new();
            while plain != expected {
                let frame = soon("a chunk", client.some()).await.unwrap();
                encoded.extend_from_slice(&frame);
                plain = beginning(coding, &dechunked(&encoded));
            }
            chunks.send(Bytes::from_static(b"event 2\n")).unwrap();
        }
    }
}

/// The data of the chunks (RFC 9112, 7.1) that are complete.
fn dechunked(mut wire: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    while let Some(line) = wire.windows(2).position(|pair| pair == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&wire[..line]).unwrap(), 16).unwrap();
        let Some(chunk) = wire.get(line + 2..line + 2 + size) else { break };
        data.extend_from_slice(chunk);
        wire = wire.get(line + 2 + size + 2..).unwrap_or_default();
    }
    data
}

/// What can be decoded of the beginning of an encoded body.
fn beginning(coding: &str, data: &[u8]) -> String {
    let mut reader: Box<dyn Read + '_> = match coding {
        "gzip" => Box::new(flate2::read::GzDecoder::new(data)),
        "br" => Box::new(brotli::Decompressor::new(data, 4096)),
        _ => Box::new(zstd::stream::read::Decoder::new(data).unwrap()),
    };
    let (mut plain, mut some) = (Vec::new(), [0; 1]);
    while let Ok(1..) = reader.read(&mut some) {
        plain.extend_from_slice(&some);
    }
    String::from_utf8(plain).unwrap()
}

/// A body that breaks off is no complete encoding.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_breaks_off_ends_in_an_error() {
    let (address, _task) = Origin::raw(|mut stream| async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut request = [0; 4096];
        let _ = stream.read(&mut request).await;
        let body = text();
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncache-control: max-age=60\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let _ = stream.write_all(head.as_bytes()).await;
        let _ = stream.write_all(&body.as_bytes()[..body.len() / 2]).await;
    })
    .await;
    let edge = node(address);
    for path in ["/plain/a", "/cached/a", "/noop/a"] {
        let mut client = Client::connect(edge.web()).await;
        client.send(format!("GET {path} HTTP/1.1\r\nhost: test\r\naccept-encoding: gzip\r\n\r\n").as_bytes()).await;
        let cut = soon("the end", client.try_response("GET")).await;
        assert!(cut.is_err(), "{path}: {:?}", cut.map(|response| response.body.len()));
        let h2 = H2Client::connect(edge.web()).await;
        let cut = soon("the end", h2.request("GET", path, &[("accept-encoding", "gzip")], b"")).await;
        assert!(cut.is_err(), "{path} over HTTP/2");
    }
}
