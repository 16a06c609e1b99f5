//! Trailers of responses that are stored (RFC 9110, 6.5; RFC 9111, 3.1): kept with them, and sent to clients of HTTP/2.

use std::sync::Arc;

use futures::FutureExt;
use selvedge_cache::{Purge, Scope};
use selvedge_tests::h2::H2Client;
use selvedge_tests::{Client, Edge, Origin, Request, Response, Served, until};
use tempfile::TempDir;
use tokio::sync::Semaphore;

const YAML: &str = "cache: { memory: { size: 64MiB }DISK }
upstreams: { app: { endpoints: [\"127.0.0.1:${PORT_app}\"], protocol: h2 } }
filters: { noop: { wasm: \"file:${GUESTS}/noop.wasm\", limits: { deadline: 10s } } }
sites: [{ hosts: [\"*\"], compress: COMPRESS, routes: [{ name: page, filters: FILTERS, cache: {}, to: app }] }]";

fn yaml(filters: &str, compress: &str, disk: &str) -> String {
    YAML.replace("FILTERS", filters).replace("COMPRESS", compress).replace("DISK", disk)
}

const FIELDS: &[(&str, &str)] = &[
    ("cache-control", "max-age=600, stale-while-revalidate=600, stale-if-error=600"),
    ("content-type", "text/plain"),
    ("etag", "\"1\""),
    ("trailer", "x-end"),
];

/// A page with trailers; `/large` has more of them than are kept.
fn page(request: &Request) -> Served {
    if request.header("if-none-match").is_some() {
        return Origin::reply(304, FIELDS, "");
    }
    let end = if request.target == "/large" { "1".repeat(5000) } else { "1".to_owned() };
    Origin::with_trailers(200, FIELDS, "page ".repeat(1000), &[("x-end", &end)])
}

async fn get(connection: &H2Client, path: &str, fields: &[(&str, &str)]) -> Response {
    connection.request("GET", path, fields, b"").await.unwrap()
}

fn status(response: &Response) -> String {
    response.header("cache-status").unwrap().to_owned()
}

fn ends(response: &Response) -> bool {
    assert_eq!(response.header("x-end"), None, "never merged into the header");
    response.trailers == [("x-end".to_owned(), "1".to_owned())]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_client_of_http2_gets_trailers_and_no_other() {
    for (filters, compress) in [("[]", "false"), ("[noop]", "false"), ("[]", "[gzip]")] {
        let what = format!("filters {filters}, compress {compress}");
        let origin = Origin::start(page).await;
        let edge = Edge::start(&yaml(filters, compress, ""), &[("app", origin.address())]);
        let connection = H2Client::connect(edge.web()).await;
        assert!(ends(&get(&connection, "/page", &[("te", "trailers")]).await), "the first one: {what}");
        for fields in [&[("te", "trailers")][..], &[("accept-encoding", "gzip")], &[("accept-encoding", "gzip")]] {
            let hit = get(&connection, "/page", fields).await;
            assert!(status(&hit).starts_with("edge; hit") && ends(&hit), "{what}: {:?}", hit.headers);
        }
        let over_http1 = Client::get_with(edge.web(), "/page", "te: trailers\r\n").await;
        assert_eq!((over_http1.body.len(), over_http1.trailers.len(), over_http1.header("x-end")), (5000, 0, None));

        // They belong to the whole of it.
        let part = get(&connection, "/page", &[("range", "bytes=0-3")]).await;
        assert_eq!((part.status, part.text().as_str(), part.trailers.len()), (206, "page", 0), "{what}");
        let known = get(&connection, "/page", &[("if-none-match", "\"1\"")]).await;
        assert_eq!((known.status, known.trailers.len()), (304, 0), "{what}");
        let head = connection.request("HEAD", "/page", &[], b"").await.unwrap();
        assert_eq!((head.status, head.body.len(), head.trailers.len()), (200, 0, 0), "{what}");
        assert_eq!(origin.started(), 1, "{what}");

        // Stale: while it is validated, after it was, and in place of an origin that is gone.
        let purge = || edge.plan().cache.expect("configured").purge(&[Scope::everything()], Purge::Soft);
        purge();
        let stale = get(&connection, "/page", &[]).await;
        assert!(status(&stale).contains("stale-while-revalidate") && ends(&stale), "{what}: {:?}", stale.headers);
        until("it is validated", || origin.started() == 2).await;
        let mut hit = get(&connection, "/page", &[]).await;
        while status(&hit).contains("stale") {
            hit = get(&connection, "/page", &[]).await;
        }
        assert!(ends(&hit), "{what}: {:?}", hit.headers);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_come_with_a_validation_and_with_what_stands_in() {
    const PLAIN: &[(&str, &str)] = &[("cache-control", "max-age=600, stale-if-error=600"), ("etag", "\"1\"")];
    let origin = Origin::start(|request| match request.header("if-none-match") {
        Some(_) => Origin::reply(304, PLAIN, ""),
        None => Origin::with_trailers(200, PLAIN, "page", &[("x-end", "1")]),
    })
    .await;
    let edge = Edge::start(&yaml("[]", "false", ""), &[("app", origin.address())]);
    let connection = H2Client::connect(edge.web()).await;
    assert!(ends(&get(&connection, "/page", &[]).await));
    let purge = || edge.plan().cache.expect("configured").purge(&[Scope::everything()], Purge::Soft);
    purge();
    let validated = get(&connection, "/page", &[]).await;
    assert!(status(&validated).contains("fwd-status=304") && ends(&validated), "{:?}", validated.headers);
    assert!(ends(&get(&connection, "/page", &[]).await), "and stay");
    purge();
    drop(origin);
    let stale = get(&connection, "/page", &[]).await;
    assert!(status(&stale).contains("stale-if-error") && ends(&stale), "{:?}", stale.headers);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_along_gets_trailers_and_what_has_too_many_is_not_kept() {
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let origin = Origin::start_async(move |request| {
        let gate = Arc::clone(&opened);
        async move {
            gate.acquire().await.expect("never closed").forget();
            page(&request)
        }
        .boxed()
    })
    .await;
    let edge = Edge::start(&yaml("[]", "false", ""), &[("app", origin.address())]);
    let waiting = || edge.plan().cache.expect("configured").waiting();
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let address = edge.web();
        clients.spawn(async move { get(&H2Client::connect(address).await, "/page", &[]).await });
    }
    until("four wait", || waiting() == 4).await;
    gate.add_permits(1);
    for answer in clients.join_all().await {
        assert!(answer.text().len() == 5000 && ends(&answer), "{:?} {:?}", answer.headers, answer.trailers);
    }
    assert_eq!(origin.started(), 1);

    gate.add_permits(2);
    let connection = H2Client::connect(edge.web()).await;
    for _ in 0..2 {
        let large = get(&connection, "/large", &[]).await;
        assert!(status(&large).contains("fwd=uri-miss"), "{:?}", large.headers);
        assert_eq!(large.trailers.first().map(|(_, value)| value.len()), Some(5000));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_outlive_a_restart() {
    let (folder, origin) = (TempDir::new().expect("a folder"), Origin::start(page).await);
    let disk = format!(", disk: {{ folders: [{{ path: {}, size: 64MiB }}], admit: all }}", folder.path().display());
    let yaml = yaml("[]", "false", &disk);
    let edge = Edge::start(&yaml, &[("app", origin.address())]);
    assert!(ends(&get(&H2Client::connect(edge.web()).await, "/page", &[]).await));
    until("it is written", || edge.plan().cache.expect("configured").disks()[0].counts.written == 1).await;
    drop(edge);
    let edge = Edge::start(&yaml, &[("app", origin.address())]);
    let connection = H2Client::connect(edge.web()).await;
    for tier in ["disk", "memory"] {
        let hit = get(&connection, "/page", &[]).await;
        assert!(status(&hit).ends_with(&format!("detail={tier}")) && ends(&hit), "{:?}", hit.headers);
    }
    assert_eq!(origin.started(), 1);
}
