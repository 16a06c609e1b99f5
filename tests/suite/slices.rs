//! Large objects in slices: what a client gets is what it asked for, and the origin is asked for little more.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use selvedge_tests::h2::H2Client;
use selvedge_tests::{Client, Edge, Origin, Request, Response, Served, soon};
use tokio::task::JoinSet;

const KIB: usize = 1 << 10;
const SLICE: usize = 64 * KIB;
/// Not a whole number of slices.
const LENGTH: usize = 10 * SLICE + 1_000;

fn node(filters: &str, origin: std::net::SocketAddr) -> Edge {
    let yaml = format!(
        "cache: {{}}
upstreams: {{ app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }} }}
filters:
  noop: {{ wasm: \"file:${{GUESTS}}/noop.wasm\", limits: {{ deadline: 10s }} }}
sites: [{{ hosts: [\"*\"], routes: [{{ name: film, filters: {filters}, cache: {{ slice: 64KiB }}, to: app }}] }}]"
    );
    Edge::start(&yaml, &[("app", origin)])
}

fn content(version: usize) -> Vec<u8> {
    (0..LENGTH).map(|index| u8::try_from((index * 31 + index / 251 + version) % 256).unwrap()).collect()
}

/// An origin that knows ranges, and counts the bytes it has sent.
struct Film {
    origin: Origin,
    sent: Arc<AtomicUsize>,
    version: Arc<AtomicUsize>,
}

impl Film {
    async fn start() -> Self {
        let (sent, version) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (count, current) = (Arc::clone(&sent), Arc::clone(&version));
        let origin = Origin::start(move |request| {
            let version = current.load(Ordering::SeqCst);
            let served = part(request, version);
            count.fetch_add(served.1, Ordering::SeqCst);
            served.0
        })
        .await;
        Self { origin, sent, version }
    }

    fn ranges(&self) -> Vec<String> {
        let mut ranges: Vec<String> =
            self.origin.received().iter().map(|request| request.header("range").unwrap_or("none").to_owned()).collect();
        ranges.sort();
        ranges
    }
}

/// The part that is asked for, and its length.
fn part(request: &Request, version: usize) -> (Served, usize) {
    let whole = content(version);
    let etag = format!("\"v{version}\"");
    let range = request.header("range").and_then(|range| {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse::<usize>().ok()?, last.parse::<usize>().ok()?.min(LENGTH - 1)))
    });
    match range {
        Some((first, _)) if first >= LENGTH => {
            (Origin::reply(416, &[("content-range", &format!("bytes */{LENGTH}"))], ""), 0)
        }
        Some((first, last)) => {
            let place = format!("bytes {first}-{last}/{LENGTH}");
            let headers = [("cache-control", "max-age=60"), ("etag", etag.as_str()), ("content-range", place.as_str())];
            (Origin::reply(206, &headers, Bytes::from(whole[first..=last].to_vec())), last - first + 1)
        }
        None => {
            let headers = [("cache-control", "max-age=60"), ("etag", etag.as_str())];
            (Origin::reply(200, &headers, Bytes::from(whole)), LENGTH)
        }
    }
}

async fn get(edge: &Edge, headers: &str) -> Response {
    Client::get_with(edge.web(), "/film", headers).await
}

/// Every kind of request, on a cold store and a warm one, over both versions of HTTP, with and without filters.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_is_what_comes() {
    let whole = content(0);
    let cases: &[(&str, u16, std::ops::Range<usize>)] = &[
        ("", 200, 0..LENGTH),
        ("bytes=0-0", 206, 0..1),
        ("bytes=0-99", 206, 0..100),
        ("bytes=65535-65536", 206, 65_535..65_537),
        ("bytes=65536-131071", 206, 65_536..131_072),
        ("bytes=100000-400000", 206, 100_000..400_001),
        ("bytes=655360-", 206, 655_360..LENGTH),
        ("bytes=-1", 206, LENGTH - 1..LENGTH),
        ("bytes=-70000", 206, LENGTH - 70_000..LENGTH),
        ("bytes=600000-99999999", 206, 600_000..LENGTH),
        ("bytes=0-1,5-6", 200, 0..LENGTH),
        ("bytes=99999999-", 416, 0..0),
    ];
    for filters in ["[]", "[noop]"] {
        for (range, status, part) in cases {
            let film = Film::start().await;
            let edge = node(filters, film.origin.address());
            for pass in ["cold", "warm"] {
                let what = format!("{range} {filters} {pass}");
                let header = if range.is_empty() { String::new() } else { format!("range: {range}\r\n") };
                let plain = get(&edge, &header).await;
                let fields: Vec<(&str, &str)> = if range.is_empty() { vec![] } else { vec![("range", range)] };
                let connection = H2Client::connect(edge.web()).await;
                let h2 = connection.request("GET", "/film", &fields, b"").await.unwrap();
                for response in [plain, h2] {
                    assert_eq!(response.status, *status, "{what}: {:?}", response.headers);
                    let place = match status {
                        206 => Some(format!("bytes {}-{}/{LENGTH}", part.start, part.end - 1)),
                        416 => Some(format!("bytes */{LENGTH}")),
                        _ => None,
                    };
                    assert_eq!(response.header("content-range"), place.as_deref(), "{what}");
                    if *status != 416 {
                        assert!(response.body == whole[part.clone()], "{what}: {} bytes", response.body.len());
                        assert_eq!(response.header("content-length"), Some(part.len().to_string().as_str()), "{what}");
                        assert_eq!(response.header("etag"), Some("\"v0\""), "{what}");
                        assert_eq!(response.header("transfer-encoding"), None, "{what}");
                    }
                }
            }
            let slices = part.end.div_ceil(SLICE) - part.start / SLICE;
            let asked = film.sent.load(Ordering::SeqCst);
            assert!(asked <= (slices + 1) * SLICE, "{range}: {asked} bytes, {:?}", film.ranges());
        }
    }
}

/// Many at once share each slice, whatever parts they want.
#[tokio::test(flavor = "multi_thread")]
async fn each_slice_is_fetched_once() {
    let film = Film::start().await;
    let edge = node("[]", film.origin.address());
    let whole = Arc::new(content(0));
    let mut clients = JoinSet::new();
    for number in 0..40_usize {
        let (address, whole) = (edge.web(), Arc::clone(&whole));
        clients.spawn(async move {
            let (first, last) = (number * 15_000, (number * 15_000 + 100_000).min(LENGTH - 1));
            let response = Client::get_with(address, "/film", &format!("range: bytes={first}-{last}\r\n")).await;
            assert!(response.status == 206 && response.body == whole[first..=last], "{first}-{last}");
        });
    }
    soon("all of them", clients.join_all()).await;
    assert_eq!(film.sent.load(Ordering::SeqCst), LENGTH, "{:?}", film.ranges());
    assert_eq!(film.origin.started(), LENGTH.div_ceil(SLICE));
}

/// What the client has already, and HEAD, cost a slice at most.
#[tokio::test(flavor = "multi_thread")]
async fn conditions_and_heads() {
    let film = Film::start().await;
    let edge = node("[]", film.origin.address());
    let known = get(&edge, "if-none-match: \"v0\"\r\n").await;
    assert_eq!((known.status, known.body.len(), known.header("content-length")), (304, 0, None));
    let other = get(&edge, "range: bytes=0-9\r\nif-range: \"v1\"\r\n").await;
    assert_eq!((other.status, other.body.len()), (200, LENGTH));
    let same = get(&edge, "range: bytes=0-9\r\nif-range: \"v0\"\r\n").await;
    assert_eq!((same.status, same.body.len()), (206, 10));
    let head = Client::connect(edge.web()).await.request("HEAD /film HTTP/1.1\r\nhost: test\r\n\r\n").await;
    let length = LENGTH.to_string();
    assert_eq!((head.status, head.header("content-length")), (200, Some(length.as_str())));
    assert_eq!(film.sent.load(Ordering::SeqCst), LENGTH);
}

/// An object that has changed is never put together from two versions.
#[tokio::test(flavor = "multi_thread")]
async fn versions_are_not_mixed() {
    let film = Film::start().await;
    let edge = node("[]", film.origin.address());
    assert_eq!(get(&edge, "range: bytes=0-99\r\n").await.status, 206);
    film.version.store(1, Ordering::SeqCst);
    let mut client = Client::connect(edge.web()).await;
    client.send(b"GET /film HTTP/1.1\r\nhost: test\r\n\r\n").await;
    let mixed = client.try_response("GET").await;
    assert!(mixed.is_err(), "a response of two versions");
    let new = get(&edge, "").await;
    assert!(new.status == 200 && new.body == content(1));
}

/// Origins that do not know ranges, and other answers, pass as they are.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_slice_passes() {
    let whole = content(0);
    let origin = Origin::start(|request| match request.target.as_str() {
        "/film" => Origin::reply(200, &[("cache-control", "max-age=60")], Bytes::from(content(0))),
        "/gone" => Origin::reply(404, &[("cache-control", "max-age=60")], "no such film"),
        _ => Origin::reply(302, &[("location", "/film")], ""),
    })
    .await;
    let edge = node("[]", origin.address());
    let first = get(&edge, "range: bytes=10-19\r\n").await;
    assert!(first.status == 200 && first.body == whole, "the first is answered with all of it");
    let second = get(&edge, "range: bytes=10-19\r\n").await;
    assert!(second.status == 206 && second.body == whole[10..20], "now it is kept whole");
    let third = get(&edge, "range: bytes=20-29\r\n").await;
    assert!(third.status == 206 && third.body == whole[20..30]);
    assert_eq!(origin.started(), 2);
    let gone = Client::get(edge.web(), "/gone").await;
    assert_eq!((gone.status, gone.text().as_str()), (404, "no such film"));
    let moved = Client::get(edge.web(), "/moved").await;
    assert_eq!((moved.status, moved.header("location")), (302, Some("/film")));
}
