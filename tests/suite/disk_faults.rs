//! The cache's disk fails or stalls below a node that serves: its clients do not notice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use selvedge_cache::DiskTier;
use selvedge_cache::disk::{Admit, DiskUsage, Limits, State, StoreOptions};
use selvedge_tests::disk::Faults;
use selvedge_tests::h2::H2Client;
use selvedge_tests::{Client, Edge, Origin, PATIENCE, soon, until};
use tempfile::TempDir;
use tokio::task::JoinSet;

/// Too large for memory, so that what is stored is on the disk alone.
const LENGTH: usize = 100_000;
/// What a request may take while the disk is of no use, on a busy machine.
const BOUND: Duration = Duration::from_secs(30);

struct Node {
    edge: Edge,
    origin: Origin,
    faults: Arc<Faults>,
    _folder: TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.faults.stall(false); // So that the node can end.
    }
}

fn body(path: &str) -> Vec<u8> {
    path.bytes().cycle().take(LENGTH).collect()
}

async fn node() -> Node {
    let origin =
        Origin::start(|request| Origin::reply(200, &[("cache-control", "max-age=3600")], body(&request.target))).await;
    node_of(origin, "false", 64 << 20, 1 << 20)
}

/// A node with a disk of this size, for bodies of up to `max_object` bytes.
fn node_of(origin: Origin, compress: &str, size: u64, max_object: u64) -> Node {
    let yaml = format!(
        "admin: {{ bind: \"127.0.0.1:0\" }}
cache: {{ memory: {{ size: 8MiB, max_object: 16KiB }} }}
upstreams: {{ app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }} }}
sites: [{{ hosts: [\"*\"], compress: {compress}, routes: [{{ name: \"page-${{ID}}\", cache: {{}}, to: app }}] }}]"
    );
    let edge = Edge::start(&yaml, &[("app", origin.address())]);
    let (folder, faults) = (TempDir::new().expect("a folder"), Arc::<Faults>::default());
    let limits = Limits {
        queue: max_object,
        lookup: Duration::from_millis(200),
        read: Duration::from_secs(1),
        again: Duration::from_millis(100),
        ..Limits::default()
    };
    let disks = vec![faults.disk(folder.path(), size)];
    let store = StoreOptions { disks, admit: Admit::All, write_budget: 0, limits };
    let cache = edge.plan().cache.expect("configured");
    cache.open_disks(DiskTier { store, max_object }).expect("threads");
    cache.wait(Duration::from_secs(30));
    Node { edge, origin, faults, _folder: folder }
}

impl Node {
    fn disk(&self) -> DiskUsage {
        self.edge.plan().cache.expect("configured").disks().remove(0)
    }

    async fn get(&self, path: &str) -> String {
        let response = Client::get(self.edge.web(), path).await;
        assert_eq!(response.status, 200);
        assert!(response.body == body(path), "{path}");
        response.header("cache-status").expect("a status").to_owned()
    }

    /// Stores so many objects on the disk, and sees that they are found there.
    async fn stored(&self, count: usize) {
        for number in 0..count {
            let path = format!("/kept/{number}");
            let deadline = Instant::now() + PATIENCE;
            loop {
                let status = self.get(&path).await;
                if status.starts_with("edge; hit") && status.ends_with("detail=disk") {
                    break;
                }
                assert!(Instant::now() < deadline, "{path} is not on the disk: {status}, {:?}", self.disk());
            }
        }
    }

    /// Four clients ask for what is stored and for what is new, until `enough`; says how long the longest request took, and how many there
    /// were. Each of them gets what the origin has.
    async fn load(&self, count: usize, enough: Arc<AtomicBool>) -> JoinSet<(Duration, usize)> {
        let mut clients = JoinSet::new();
        for number in 0..4 {
            let (address, enough) = (self.edge.web(), Arc::clone(&enough));
            clients.spawn(async move {
                let (mut longest, mut turn) = (Duration::ZERO, 0);
                let mut client = Client::connect(address).await;
                while !enough.load(Ordering::SeqCst) {
                    let path = match turn % 2 {
                        0 => format!("/kept/{}", fastrand::usize(..count)),
                        _ => format!("/new/{number}/{turn}"),
                    };
                    let began = Instant::now();
                    let response = client.request(&format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")).await;
                    longest = longest.max(began.elapsed());
                    assert_eq!(response.status, 200, "{path}");
                    assert!(response.body == body(&path), "{path}: {} bytes", response.body.len());
                    turn += 1;
                }
                (longest, turn)
            });
        }
        clients
    }

    async fn metric(&self, name: &str) -> String {
        let head = "GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n";
        let page = Client::connect(self.edge.admin()).await.request(head).await.text();
        let line = page.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
        line.rsplit(' ').next().expect("a value").to_owned()
    }
}

/// All reads and writes fail: it is a miss, then the disk is left alone; when it works again, so does the tier.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_costs_hits_and_nothing_else() {
    let node = node().await;
    node.stored(20).await;
    node.faults.failing.store(true, Ordering::SeqCst);
    let enough = Arc::<AtomicBool>::default();
    let clients = node.load(20, Arc::clone(&enough)).await;
    until("the disk is taken out of use", || node.disk().state == State::Off).await;
    let asked = node.origin.started();
    until("clients go on", || node.origin.started() > asked + 50).await;
    assert_eq!(node.metric("selvedge_cache_disk_up").await, "0");
    assert!(node.disk().counts.io_errors >= 8, "{:?}", node.disk());
    let errors = node.disk().counts.io_errors;
    assert!(errors < 30, "it is left alone: {errors} errors");

    node.faults.failing.store(false, Ordering::SeqCst);
    until("it is tried again", || node.disk().state == State::On).await;
    until("it is written to", || node.disk().counts.written > 0 && node.disk().objects > 0).await;
    enough.store(true, Ordering::SeqCst);
    for (longest, requests) in clients.join_all().await {
        assert!(longest < BOUND && requests > 0, "{requests} requests, {longest:?}");
    }
    node.stored(20).await;
    assert_eq!(node.metric("selvedge_cache_disk_up").await, "1");
}

/// Every read and write takes for ever: lookups are misses in time, writes are dropped, and when the disk moves again, so does the tier.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_stalls_holds_nobody_up() {
    let node = node().await;
    node.stored(20).await;
    node.faults.stall(true);
    let enough = Arc::<AtomicBool>::default();
    let clients = node.load(20, Arc::clone(&enough)).await;
    let asked = node.origin.started();
    until("clients go on", || node.origin.started() > asked + 100).await;
    until("what waits to be written is dropped", || node.disk().counts.dropped_queue > 0).await;
    let usage = node.disk();
    assert!(usage.queued_bytes <= 1 << 20 && usage.counts.slow >= 1, "{usage:?}");

    node.faults.stall(false);
    until("what waited is written", || node.disk().queued_bytes < 1 << 19 && node.disk().counts.written > 20).await;
    enough.store(true, Ordering::SeqCst);
    for (longest, requests) in clients.join_all().await {
        assert!(longest < BOUND && requests > 0, "{requests} requests, {longest:?}");
    }
    assert_eq!(node.disk().state, State::On);
    node.stored(1).await; // Once it is asked again: a disk that was slow is left alone for a while.
}

/// More than all buffers between the disk and a client hold, and of no use to an encoder.
const LARGE: usize = 24 << 20;

/// Stores a large body on the disk, and has it fail when a client has the beginning of that. Says whether what comes then looks complete.
async fn breaks_off(chunked: bool, compress: &str, over_h2: bool) -> bool {
    let mut random = fastrand::Rng::with_seed(7);
    let whole: Bytes = std::iter::repeat_with(|| random.u8(..)).take(LARGE).collect();
    let sent = whole.clone();
    let origin = Origin::start(move |_| {
        let fields = [("cache-control", "max-age=3600"), ("content-type", "text/plain")];
        if !chunked {
            return Origin::reply(200, &fields, sent.clone());
        }
        let (body, served) = Origin::streaming(200, &fields);
        body.send(sent.clone()).expect("a receiver");
        served
    })
    .await;
    let node = node_of(origin, compress, 512 << 20, 2 * LARGE as u64);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let stored = Client::get(node.edge.web(), "/page").await;
        assert!(stored.body == whole);
        if stored.header("cache-status").is_some_and(|status| status.ends_with("detail=disk")) {
            break;
        }
        assert!(Instant::now() < deadline, "it is not on the disk: {:?}", node.disk());
    }

    if over_h2 {
        let connection = H2Client::connect(node.edge.web()).await;
        let response = connection.open("GET", "/page", &[("accept-encoding", "gzip")], true).await.expect("a stream").0;
        let mut response = soon("a header", response).await.expect("a header");
        let stream = response.body_mut();
        let mut length = soon("some of it", stream.data()).await.expect("a body").expect("bytes").len();
        node.faults.failing.store(true, Ordering::SeqCst);
        let _ = stream.flow_control().release_capacity(length);
        while let Some(chunk) = soon("more of it", stream.data()).await {
            let Ok(chunk) = chunk else { return false };
            length += chunk.len();
            let _ = stream.flow_control().release_capacity(chunk.len());
        }
        assert!(length < LARGE, "it did not break off");
        return true;
    }
    let mut client = Client::connect(node.edge.web()).await;
    client.send(b"GET /page HTTP/1.1\r\nhost: test\r\naccept-encoding: gzip\r\n\r\n").await;
    let (_, fields) = client.head().await.expect("a header");
    let mut length = client.some().await.expect("a body").len();
    node.faults.failing.store(true, Ordering::SeqCst);
    let mut end = Vec::new();
    while let Ok(some) = client.some().await
        && !some.is_empty()
    {
        length += some.len();
        end.extend_from_slice(&some);
        end.drain(..end.len().saturating_sub(5));
    }
    assert!(length < LARGE, "{length} bytes");
    let has_length = fields.iter().any(|(name, _)| name == "content-length");
    assert_eq!(has_length, !chunked && compress == "false");
    !has_length && end == b"0\r\n\r\n"
}

/// The disk fails in the middle of a body: nobody takes what he has got for all of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_the_disk_breaks_off_looks_complete_to_nobody() {
    for compress in ["false", "[gzip]"] {
        for (chunked, over_h2) in [(false, false), (true, false), (false, true), (true, true)] {
            let deceived = breaks_off(chunked, compress, over_h2).await;
            assert!(!deceived, "chunked {chunked}, compress {compress}, h2 {over_h2}");
        }
    }
}
