//! The cache's disk tier on a real node: what is there after a restart, what must not be, and what a disk that is of no use costs.

use std::sync::atomic::{AtomicUsize, Ordering};

use selvedge_cache::disk::{DiskUsage, State};
use selvedge_tests::{Client, Edge, Origin, Response, until};
use tempfile::TempDir;

/// The largest body that the memory tier takes here.
const MEMORY_MOST: usize = 512 << 10;

fn yaml(folder: &std::path::Path, more: &str) -> String {
    format!(
        "admin: {{ bind: \"127.0.0.1:0\" }}
cache:
  memory: {{ size: 8MiB, max_object: 512KiB }}
  disk: {{ folders: [{{ path: {}, size: 64MiB }}], max_object: 8MiB, {more} }}
upstreams: {{ app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }} }}
sites: [{{ hosts: [\"*\"], routes: [{{ name: page, cache: {{ }}, to: app }}] }}]",
        folder.display()
    )
}

fn all(folder: &TempDir) -> String {
    yaml(folder.path(), "admit: all")
}

/// The value of `Cache-Status`, without `ttl`.
fn status(response: &Response) -> String {
    let value = response.header("cache-status").expect("cache-status");
    value.split("; ").filter(|part| !part.starts_with("ttl=")).collect::<Vec<_>>().join("; ")
}

fn disk(edge: &Edge) -> DiskUsage {
    edge.plan().cache.expect("a cache").disks().remove(0)
}

/// Bytes that tell where they are.
fn body(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from((at * 7 + at / 251) % 256).expect("a byte")).collect()
}

/// An origin: `/N` is N bytes, with how often it was asked in a header.
async fn origin() -> Origin {
    let count = AtomicUsize::new(0);
    Origin::start(move |request| {
        let asked = (count.fetch_add(1, Ordering::SeqCst) + 1).to_string();
        let headers = [("cache-control", "max-age=3600"), ("etag", "\"1\""), ("x-asked", &*asked)];
        let path = request.target.trim_start_matches('/');
        let length = path.split('?').next().and_then(|path| path.parse().ok()).unwrap_or(5);
        Origin::reply(200, &headers, body(length))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_serves_hits_at_once() {
    let (folder, origin) = (TempDir::new().expect("a folder"), origin().await);
    let edge = Edge::start(&all(&folder), &[("app", origin.address())]);
    let lengths = [0, 5, 20_000, 300_000, MEMORY_MOST + 1, 3_000_000];
    for length in lengths {
        let miss = Client::get(edge.web(), &format!("/{length}")).await;
        assert!(miss.body == body(length), "{length}");
        assert_eq!(status(&miss), "edge; fwd=uri-miss; fwd-status=200; stored");
    }
    until("all is written", || disk(&edge).counts.written == 6).await;
    assert_eq!(status(&Client::get(edge.web(), "/5").await), "edge; hit; detail=memory");
    let large = Client::get(edge.web(), "/3000000").await;
    assert_eq!((status(&large).as_str(), large.body == body(3_000_000)), ("edge; hit; detail=disk", true));
    drop(edge);

    let edge = Edge::start(&all(&folder), &[("app", origin.address())]);
    for length in lengths {
        let hit = Client::get(edge.web(), &format!("/{length}")).await;
        assert_eq!(status(&hit), "edge; hit; detail=disk", "{length}");
        assert!(hit.body == body(length), "{length}");
        assert_eq!(hit.header("etag"), Some("\"1\""));
    }
    for (length, tier) in [(5, "memory"), (300_000, "memory"), (MEMORY_MOST + 1, "disk")] {
        let again = Client::get(edge.web(), &format!("/{length}")).await;
        assert_eq!(status(&again), format!("edge; hit; detail={tier}"), "{length}: what fits is brought to memory");
        assert!(again.body == body(length), "{length}");
    }
    assert_eq!(origin.started(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_and_conditions_are_answered_from_disk() {
    let (folder, origin) = (TempDir::new().expect("a folder"), origin().await);
    let edge = Edge::start(&all(&folder), &[("app", origin.address())]);
    Client::get(edge.web(), "/3000000").await;
    until("it is written", || disk(&edge).counts.written == 1).await;
    drop(edge);

    let edge = Edge::start(&all(&folder), &[("app", origin.address())]);
    let whole = body(3_000_000);
    for (range, expected) in [
        ("bytes=0-0", &whole[..1]),
        ("bytes=262143-262144", &whole[262_143..262_145]),
        ("bytes=1000000-1999999", &whole[1_000_000..2_000_000]),
        ("bytes=-5", &whole[2_999_995..]),
    ] {
        let part = Client::get_with(edge.web(), "/3000000", &format!("range: {range}\r\n")).await;
        assert_eq!((part.status, part.body == *expected), (206, true), "{range}");
    }
    let known = Client::get_with(edge.web(), "/3000000", "if-none-match: \"1\"\r\n").await;
    assert_eq!(known.status, 304);
    assert_eq!(origin.started(), 1);
}

/// RFC 9111, 4.4, and operators' purges: neither comes back with a restart.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_invalidated_or_purged_does_not_come_back() {
    let (folder, origin) = (TempDir::new().expect("a folder"), origin().await);
    let edge = Edge::start(&all(&folder), &[("app", origin.address())]);
    for path in ["/1", "/2", "/3"] {
        Client::get(edge.web(), path).await;
    }
    until("all is written", || disk(&edge).counts.written == 3).await;
    Client::post(edge.web(), "/1", "", b"x").await;
    let cache = edge.plan().cache.expect("a cache");
    let target = selvedge_cache::Scope::url(&selvedge_cache::QueryPolicy::All, "test", "/2");
    let purged = cache.purge_for_good(&[target], selvedge_cache::Purge::Hard, Vec::new()).await.expect("durable");
    assert!(purged.durable, "with a disk there is a log");
    drop(edge);

    let edge = Edge::start(&all(&folder), &[("app", origin.address())]);
    for (path, expected) in
        [("/1", "edge; fwd=uri-miss"), ("/2", "edge; fwd=uri-miss"), ("/3", "edge; hit; detail=disk")]
    {
        let answer = status(&Client::get(edge.web(), path).await);
        assert!(answer.starts_with(expected), "{path}: {answer}");
    }
}

/// RFC 9111, 4.3.4: a 304 makes what is on disk fresh as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_validation_is_kept_on_disk() {
    let folder = TempDir::new().expect("a folder");
    let large = body(MEMORY_MOST + 1);
    let origin = Origin::start(move |request| {
        if request.header("if-none-match").is_some() {
            return Origin::reply(304, &[("cache-control", "max-age=3600"), ("x-new", "1")], "");
        }
        let headers = [("cache-control", "max-age=10"), ("age", "10"), ("etag", "\"1\"")];
        Origin::reply(200, &headers, if request.target == "/large" { large.clone() } else { b"small".to_vec() })
    })
    .await;
    let edge = Edge::start(&all(&folder), &[("app", origin.address())]);
    for path in ["/small", "/large"] {
        Client::get(edge.web(), path).await;
    }
    until("both are written", || disk(&edge).counts.written == 2).await;
    let before = disk(&edge).counts.written_bytes;
    for path in ["/small", "/large"] {
        let validated = Client::get(edge.web(), path).await;
        assert_eq!((validated.status, validated.header("x-new")), (200, Some("1")), "{path}");
    }
    until("new metadata are written", || disk(&edge).counts.written_bytes > before).await;
    drop(edge);
    let edge = Edge::start(&all(&folder), &[("app", origin.address())]);
    for path in ["/small", "/large"] {
        let hit = Client::get(edge.web(), path).await;
        assert_eq!((status(&hit).as_str(), hit.header("x-new")), ("edge; hit; detail=disk", Some("1")), "{path}");
    }
    assert_eq!(origin.started(), 4);
}

/// `PURGE` sees what is on disk alone, and a soft one leaves it there: stale, to be validated.
#[tokio::test(flavor = "multi_thread")]
async fn the_method_purge_knows_what_is_on_disk() {
    let (folder, origin) = (TempDir::new().expect("a folder"), origin().await);
    let purging = format!("{}\n", all(&folder)).replace("cache:\n", "cache:\n  purge: { allow: [127.0.0.1] }\n");
    let edge = Edge::start(&purging, &[("app", origin.address())]);
    let large = format!("/{}", MEMORY_MOST + 1);
    let purge = async |edge: &Edge, fields: &str| {
        let request = format!("PURGE {large} HTTP/1.1\r\nhost: test\r\n{fields}\r\n");
        Client::connect(edge.web()).await.request(&request).await.status
    };
    Client::get(edge.web(), &large).await;
    until("it is written", || disk(&edge).counts.written == 1).await;
    assert_eq!(purge(&edge, "fastly-soft-purge: 1\r\n").await, 200);
    let stale = Client::get(edge.web(), &large).await;
    assert!(status(&stale).starts_with("edge; fwd=stale"), "{}", status(&stale));
    assert_eq!(origin.last().header("if-none-match"), Some("\"1\""), "it is validated");
    until("it is written anew", || disk(&edge).counts.written == 2).await;
    let stats =
        Client::connect(edge.admin()).await.request("GET /v1/cache/stats HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    let shown = stats.json()["disks"][0].clone();
    assert_eq!((&shown["state"], &shown["objects"]), (&serde_json::json!("on"), &serde_json::json!(1)), "{shown}");
    assert_eq!((purge(&edge, "").await, purge(&edge, "").await), (200, 404));
    let miss = Client::get(edge.web(), &large).await;
    assert!(status(&miss).starts_with("edge; fwd=uri-miss"), "{}", status(&miss));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_once_is_not_written() {
    let (folder, origin) = (TempDir::new().expect("a folder"), origin().await);
    let edge = Edge::start(&yaml(folder.path(), "write_budget: 0B/s"), &[("app", origin.address())]);
    for path in ["/1", "/100000", "/1000000"] {
        Client::get(edge.web(), path).await;
    }
    // A second request finds the small ones in memory, and sends them to disk; the large one is fetched once more.
    for path in ["/1", "/1000000"] {
        Client::get(edge.web(), path).await;
    }
    until("both are written", || disk(&edge).counts.written == 2).await;
    assert_eq!(disk(&edge).objects, 2);
    assert_eq!(origin.started(), 4);
    drop(edge);
    let edge = Edge::start(&yaml(folder.path(), "write_budget: 0B/s"), &[("app", origin.address())]);
    for (path, expected) in [("/1", "hit"), ("/1000000", "hit"), ("/100000", "fwd=uri-miss")] {
        let answer = status(&Client::get(edge.web(), path).await);
        assert!(answer.contains(expected), "{path}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_another_node_has_costs_nothing_but_the_disk() {
    let (folder, origin) = (TempDir::new().expect("a folder"), origin().await);
    let first = Edge::start(&all(&folder), &[("app", origin.address())]);
    let second = Edge::start(&all(&folder), &[("app", origin.address())]);
    assert_eq!((disk(&first).state, disk(&second).state), (State::On, State::Waiting));
    Client::get(first.web(), "/5").await;
    until("it is written", || disk(&first).counts.written == 1).await;
    assert_eq!(status(&Client::get(second.web(), "/5").await), "edge; fwd=uri-miss; fwd-status=200; stored");
    assert_eq!(status(&Client::get(second.web(), "/5").await), "edge; hit; detail=memory");

    // As in an upgrade: when the old one has ended, the new one has what it wrote.
    Client::get(first.web(), "/7").await;
    until("it is written", || disk(&first).counts.written == 2).await;
    drop(first);
    until("the folder is taken over", || disk(&second).state == State::On).await;
    assert_eq!(status(&Client::get(second.web(), "/7").await), "edge; hit; detail=disk");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_disk_is_a_miss() {
    let (folder, origin) = (TempDir::new().expect("a folder"), origin().await);
    let edge = Edge::start(&all(&folder), &[("app", origin.address())]);
    Client::get(edge.web(), "/20000").await;
    until("it is written", || disk(&edge).counts.written == 1).await;
    drop(edge);
    for file in std::fs::read_dir(folder.path()).expect("a folder") {
        let path = file.expect("a file").path();
        if path.extension().is_some_and(|end| end == "seg") {
            let mut bytes = std::fs::read(&path).expect("a segment");
            // Behind the first records' headers, so that the object is found and its body is not what it was.
            bytes.iter_mut().skip(1000).take(10_000).for_each(|byte| *byte ^= 1);
            std::fs::write(&path, bytes).expect("written");
        }
    }
    let edge = Edge::start(&all(&folder), &[("app", origin.address())]);
    let mut client = Client::connect(edge.web()).await;
    client.send(b"GET /20000 HTTP/1.1\r\nhost: test\r\n\r\n").await;
    client.try_response("GET").await.expect_err("the header was out when the body turned out to be bad: it breaks off");
    let again = Client::get(edge.web(), "/20000").await;
    assert!(again.body == body(20_000));
    assert_eq!(disk(&edge).counts.corrupt, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_restart_changes_the_disks() {
    let (folder, origin) = (TempDir::new().expect("a folder"), origin().await);
    let mut edge = Edge::start(&all(&folder), &[("app", origin.address())]);
    let refused = edge.reload(&yaml(folder.path(), "admit: second_hit")).expect_err("another disk tier");
    assert!(refused.contains("cache.disk has changed: it needs a restart"), "{refused}");
    edge.reload(&all(&folder)).expect("the same");
    assert_eq!(disk(&edge).state, State::On);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_disks_are_among_the_metrics() {
    let (folder, origin) = (TempDir::new().expect("a folder"), origin().await);
    let yaml = format!(
        "telemetry: {{ metrics: {{ bind: \"127.0.0.1:0\" }} }}\nnode: {{ name: edge, workers: 1 }}\nversion: 1
listeners: {{ web: {{ bind: \"127.0.0.1:0\" }} }}\n{}",
        all(&folder)
    );
    let edge = Edge::start(&yaml, &[("app", origin.address())]);
    Client::get(edge.web(), "/5").await;
    until("it is written", || disk(&edge).counts.written == 1).await;
    let page = Client::get(edge.metrics(), "/metrics").await.text();
    let name = folder.path().display();
    for line in [
        format!("selvedge_cache_disk_up{{disk=\"{name}\"}} 1"),
        format!("selvedge_cache_disk_objects{{disk=\"{name}\"}} 1"),
        format!("selvedge_cache_disk_events_total{{disk=\"{name}\",event=\"written\"}} 1"),
        format!("selvedge_cache_disk_events_total{{disk=\"{name}\",event=\"io_error\"}} 0"),
    ] {
        assert!(page.contains(&line), "{line}\n{page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_cannot_be_made_is_a_fault() {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("file");
    std::fs::write(&file, "").expect("written");
    let origin = origin().await;
    let refused = Edge::try_start(&yaml(&file.join("below"), "admit: all"), &[("app", origin.address())]);
    let text = refused.err().expect("no folder there").to_string();
    assert!(text.contains("below/purge.log: Not a directory") && text.contains("config.yaml:"), "{text}");
}

/// What the admin API says is stored for one URL.
async fn shown(edge: &Edge) -> serde_json::Value {
    let mut client = Client::connect(edge.admin()).await;
    client.request("GET /v1/cache/object?url=http://test/20000 HTTP/1.1\r\nhost: localhost\r\n\r\n").await.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_on_disk_for_a_url_is_shown() {
    let (folder, origin) = (TempDir::new().expect("a folder"), origin().await);
    let edge = Edge::start(&all(&folder), &[("app", origin.address())]);
    Client::get(edge.web(), "/20000").await;
    until("it is on disk", || disk(&edge).counts.written == 1).await;
    drop(edge);
    let edge = Edge::start(&all(&folder), &[("app", origin.address())]);
    let found = shown(&edge).await;
    let object = &found["objects"][0];
    assert_eq!(
        (&object["tier"], &object["route"], &object["length"]),
        (&"disk".into(), &"page".into(), &20_000.into()),
        "{found}"
    );
    Client::get(edge.web(), "/20000").await;
    let found = shown(&edge).await;
    let tiers: Vec<_> =
        found["objects"].as_array().into_iter().flatten().map(|object| object["tier"].clone()).collect();
    assert_eq!(tiers, ["memory", "disk"], "{found}");
}
