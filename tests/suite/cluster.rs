//! Nodes that share one cache, as processes: who may speak with them, who asks the origin, and what clients notice when a node is gone,
//! silent, or configured otherwise.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustls::AlertDescription;
use selvedge_tests::h2::H2Client;
use selvedge_tests::tls::{Authority, Caller, Issued, alert};
use selvedge_tests::{Client, Origin, Process, Response, guest, soon, until, unused};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;

use super::upstream_health::{NameServer, Says};

const PROGRAM: &str = env!("CARGO_BIN_EXE_selvedge-under-test");
/// Compiled guests are shared by all runs.
const MODULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/test-modules");

/// Nodes of one cluster, in one folder, with certificates of one authority.
struct Fleet {
    folder: TempDir,
    authority: Authority,
    nodes: Vec<Node>,
    origin: SocketAddr,
}

struct Node {
    name: String,
    /// Where clients, other nodes, and whoever reads metrics connect.
    web: SocketAddr,
    listen: SocketAddr,
    admin: SocketAddr,
    process: Option<Process>,
}

/// How a fleet differs from the usual one.
#[derive(Default)]
struct Setting<'s> {
    /// In `cluster`, of every node.
    cluster: &'s str,
    /// In the cache of the route, of every node.
    route: &'s str,
    /// A filter between the cache and the origin, of every node.
    origin_filter: &'s str,
    /// How many nodes are in the region; these come last.
    region: usize,
    /// Whether each node has a disk, to which everything is written.
    disk: bool,
}

impl Fleet {
    /// So many nodes, of which all are peers of each other but those of the region, which are each other's.
    async fn start(count: usize, origin: SocketAddr, setting: &Setting<'_>) -> Self {
        let mut fleet = Self::prepare(count, origin);
        for index in 0..fleet.nodes.len() {
            let text = fleet.config(index, setting);
            fleet.run(index, &text).await;
        }
        fleet
    }

    fn prepare(count: usize, origin: SocketAddr) -> Self {
        let folder = TempDir::new().unwrap();
        let authority = Authority::new("nodes");
        std::fs::write(folder.path().join("ca.pem"), &authority.pem).unwrap();
        let nodes: Vec<_> = (0..count)
            .map(|index| {
                let name = format!("node-{index}");
                let _ = authority.issue(&[&name]).write(folder.path(), &name);
                Node { name, web: unused(), listen: unused(), admin: unused(), process: None }
            })
            .collect();
        Self { folder, authority, nodes, origin }
    }

    /// `[{ name, address }, ..]`
    fn listed<'n>(nodes: impl Iterator<Item = &'n Node>) -> String {
        let each = nodes.map(|node| format!("{{ name: {}, address: \"{}\" }}", node.name, node.listen));
        format!("[{}]", each.collect::<Vec<_>>().join(", "))
    }

    fn config(&self, index: usize, setting: &Setting<'_>) -> String {
        let (edges, region) = self.nodes.split_at(self.nodes.len() - setting.region);
        let circles = if index < edges.len() {
            let region = if region.is_empty() {
                String::new()
            } else {
                format!(", region: {{ peers: {} }}", Self::listed(region.iter()))
            };
            format!("peers: {}{region}", Self::listed(edges.iter()))
        } else {
            format!("peers: {}", Self::listed(region.iter()))
        };
        self.config_with(index, &circles, setting)
    }

    fn config_with(&self, index: usize, circles: &str, setting: &Setting<'_>) -> String {
        let Node { name, web, listen, admin, .. } = &self.nodes[index];
        let cluster = if setting.cluster.is_empty() {
            "deadlines: { connect: 10s, first_byte: 40s, budget: 50s }"
        } else {
            setting.cluster
        };
        let disk = if setting.disk {
            format!(", disk: {{ folders: [{{ path: disk-{index}, size: 1GiB }}], admit: all }}")
        } else {
            String::new()
        };
        let (filters, used) = match setting.origin_filter {
            "" => (String::new(), String::new()),
            filter => (format!("filters: {{ own: {filter} }}"), ", origin_filters: [own]".to_owned()),
        };
        format!(
            "version: 1
node: {{ name: {name}, workers: 1, shutdown_grace: 1s, module_cache: \"{MODULES}\" }}
telemetry: {{ access_log: {{ output: off }} }}
admin: {{ bind: \"{admin}\" }}
listeners: {{ web: {{ bind: \"{web}\" }} }}
cache: {{ memory: {{ size: 64MiB }}, collapse: {{ wait: 40s }}{disk} }}
cluster:
  listen: {listen}
  tls: {{ certificate: {name}.pem, key: {name}.key, ca: ca.pem }}
  {}
  {}
upstreams: {{ app: {{ endpoints: [\"{}\"] }} }}
{filters}
sites: [{{ hosts: [\"*\"], routes: [{{ name: all, to: app{used}, cache: {{ {} }} }}] }}]
",
            circles.replacen(", region:", "\n  region:", 1),
            cluster,
            self.origin,
            setting.route
        )
    }

    /// Starts a node with this configuration, and waits until it serves.
    async fn run(&mut self, index: usize, text: &str) {
        let path = self.folder.path().join(format!("{index}.yaml"));
        std::fs::write(&path, text).unwrap();
        let process = Process::run(PROGRAM, self.folder.path(), &path, 2).await;
        // It is not among the listeners that are waited for.
        let admin = self.nodes[index].admin;
        soon("the admin API", async { while tokio::net::TcpStream::connect(admin).await.is_err() {} }).await;
        self.nodes[index].process = Some(process);
    }

    fn issue(&self) -> Issued {
        self.authority.issue(&["visitor"])
    }

    async fn get(&self, index: usize, path: &str) -> Response {
        Client::get(self.nodes[index].web, path).await
    }

    /// Asks the admin API.
    async fn ask(&self, index: usize, path: &str) -> Response {
        let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        let response = Client::connect(self.nodes[index].admin).await.request(&head).await;
        assert_eq!(response.status, 200, "{}", response.text());
        response
    }

    /// The sum of the samples of a family whose labels hold this.
    async fn sum(&self, index: usize, family: &str, labels: &str) -> u64 {
        let page = self.ask(index, "/metrics").await.text();
        let lines = page.lines().filter(|line| line.starts_with(&format!("{family}{{")) && line.contains(labels));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }
}

/// The nodes that have had to do with a response, the one nearest to the origin first.
fn way(response: &Response) -> Vec<String> {
    let members = response.headers.iter().filter(|(name, _)| name == "cache-status");
    let members = members.flat_map(|(_, value)| value.split(", ").map(str::to_owned).collect::<Vec<_>>());
    members.map(|member| member.split(';').next().unwrap().to_owned()).collect()
}

async fn storable(body: &'static str) -> Origin {
    Origin::start(move |_| Origin::reply(200, &[("cache-control", "max-age=600"), ("etag", "\"1\"")], body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn only_nodes_are_let_in() {
    let origin = storable("hello").await;
    let fleet = Fleet::start(1, origin.address(), &Setting::default()).await;
    let listen = fleet.nodes[0].listen;
    let foreign = Authority::new("nodes").issue(&["node-0"]);
    let caller = || Caller::new("node-0", &["h2"]);
    for (what, caller, expected) in [
        ("none", caller(), AlertDescription::CertificateRequired),
        ("another authority's", caller().showing(&foreign), AlertDescription::DecryptError),
    ] {
        let error = match caller.try_call(listen).await {
            Err(error) => error,
            Ok(mut stream) => soon("an alert", stream.read_u8()).await.expect_err("nothing is served"),
        };
        assert_eq!(alert(&error), Some(expected), "{what}");
    }

    let node = H2Client::over(caller().showing(&fleet.issue()).call(listen).await).await;
    let unknown = node.request("POST", "/v1/nothing", &[("selvedge-from", "visitor")], b"").await.unwrap();
    assert_eq!(unknown.status, 404, "{}", unknown.text());
    let message = node.request("GET", "/", &[], b"").await.unwrap();
    assert_eq!(message.status, 404, "what is no request of a node is no client's either: {}", message.text());

    let route = "00".repeat(16);
    let fetch = |fields: Vec<(&'static str, &'static str)>| {
        let mut all = vec![("selvedge-route", route.clone()), ("selvedge-key", route.clone())];
        all.extend(fields.into_iter().map(|(name, value)| (name, value.to_owned())));
        all
    };
    for (fields, status) in [
        (vec![("selvedge-hops", "visitor"), ("selvedge-circle", "peers")], 421), // no such route
        (vec![("selvedge-hops", "visitor, node-0"), ("selvedge-circle", "peers")], 508),
        (vec![("selvedge-hops", "visitor"), ("selvedge-circle", "moon")], 400),
        (vec![("selvedge-circle", "peers")], 400),
        (vec![("selvedge-hops", "a,b,c,d,e,f,g,h,i"), ("selvedge-circle", "peers")], 400),
    ] {
        let all = fetch(fields);
        let all: Vec<_> = all.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let node = H2Client::over(caller().showing(&fleet.issue()).call(listen).await).await;
        let response = node.request("GET", "/", &all, b"").await.unwrap();
        assert_eq!(response.status, status, "{all:?}");
        assert_eq!(response.header("selvedge-answer"), None, "{all:?}");
    }
    assert_eq!(origin.started(), 0);
    assert_eq!(fleet.sum(0, "selvedge_cluster_served_total", "result=\"loop\"").await, 1);
    assert_eq!(fleet.sum(0, "selvedge_cluster_served_total", "result=\"no_route\"").await, 1);
}

/// Whoever has a certificate of the cluster speaks in its name, and in no other.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_of_the_node_whose_certificate_comes_with_it() {
    let origin = storable("hello").await;
    let fleet = Fleet::start(2, origin.address(), &Setting::default()).await;
    let says = async |certificate: &str, name: &str| {
        let shown = fleet.authority.issue(&[certificate]);
        let caller = Caller::new("node-0", &["h2"]).showing(&shown);
        let node = H2Client::over(caller.call(fleet.nodes[0].listen).await).await;
        node.request("POST", "/v1/hello", &[("selvedge-from", name)], b"").await.unwrap().status
    };
    assert_eq!(says("node-1", "node-1").await, 200);
    assert_eq!(says("node-1", "node-0").await, 403);
    assert_eq!(says("visitor", "node-1").await, 403);
    assert_eq!(says("visitor", "not a name").await, 403);
    assert_eq!(fleet.sum(0, "selvedge_cluster_served_total", "result=\"wrong_name\"").await, 3);
    // The nodes themselves are believed.
    let seen = fleet.ask(0, "/v1/cluster").await.json();
    assert_eq!(seen["nodes"][0]["name"], "node-1", "{seen}");

    // One certificate for all of them says nothing about names.
    let mut fleet = Fleet::prepare(2, origin.address());
    for index in 0..2 {
        let _ = fleet.authority.issue(&["all.nodes"]).write(fleet.folder.path(), &format!("node-{index}"));
        let text = fleet.config(index, &Setting::default()).replace("ca: ca.pem", "ca: ca.pem, server_name: all.nodes");
        fleet.run(index, &text).await;
    }
    let seen = fleet.ask(0, "/v1/cluster").await.json();
    assert_eq!(seen["nodes"][0]["name"], "node-1", "{seen}");
    assert_eq!(fleet.sum(1, "selvedge_cluster_served_total", "result=\"wrong_name\"").await, 0);
}

/// Filters between the cache and the origin run on the node that asks the origin, once for all nodes; copies are not changed again, nor are
/// they when they are validated with their owner.
#[tokio::test(flavor = "multi_thread")]
async fn filters_of_the_origin_s_side_run_once_for_all_nodes() {
    let origin = storable("page").await;
    let append = format!("{{ wasm: \"file:{}\", limits: {{ deadline: 10s }} }}", guest("append").display());
    for (count, region) in [(3, 0), (3, 1)] {
        let setting = Setting { origin_filter: &append, cluster: SOON, region, ..Setting::default() };
        let fleet = Fleet::start(count, origin.address(), &setting).await;
        let before = origin.started();
        let edges = count - region;
        let mut validated = 0;
        let begun = Instant::now();
        while validated < 6 {
            for page in 0..6 {
                for index in 0..edges {
                    let response = fleet.get(index, &format!("/{region}/{page}")).await;
                    assert_eq!(response.text(), "page+app", "node {index}: {:?}", response.headers);
                    validated += usize::from(response.headers.iter().any(|(_, value)| value.contains("fwd=stale")));
                }
            }
            assert_eq!(origin.started(), before + 6, "each page is fetched once");
            assert!(begun.elapsed() < Duration::from_secs(60), "copies are never validated");
        }
    }
}

/// Copies of what others own are kept for a short time.
const SOON: &str = "deadlines: { connect: 5s, first_byte: 20s, budget: 25s }
  hot: 1s";

#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_has_fetched_all_nodes_have() {
    let origin = storable("hello").await;
    let fleet = Fleet::start(3, origin.address(), &Setting::default()).await;
    let mut owned = [0; 3];
    for page in 0..12 {
        let path = format!("/{page}");
        let mut ways = Vec::new();
        for index in [page % 3, (page + 1) % 3, (page + 2) % 3] {
            let response = fleet.get(index, &path).await;
            assert_eq!((response.status, response.text().as_str()), (200, "hello"));
            for (name, _) in &response.headers {
                assert!(!name.starts_with("selvedge-"), "{name} is for nodes only");
            }
            ways.push(way(&response));
        }
        assert_eq!(origin.started(), page + 1, "each page is fetched once: {ways:?}");
        // Everybody names the same owner, and whoever is not the owner has asked it.
        let owner = ways[0][0].clone();
        assert!(ways.iter().all(|way| way[0] == owner && way.len() <= 2), "{ways:?}");
        owned[owner.trim_start_matches("node-").parse::<usize>().unwrap()] += 1;
    }
    assert!(owned.iter().filter(|count| **count > 0).count() >= 2, "keys are shared out: {owned:?}");
    let hits = async |index| fleet.sum(index, "selvedge_cluster_asked_total", "result=\"hit\"").await;
    let misses = async |index| fleet.sum(index, "selvedge_cluster_asked_total", "result=\"miss\"").await;
    let (mut hit, mut missed) = (0, 0);
    for index in 0..3 {
        hit += hits(index).await;
        missed += misses(index).await;
    }
    assert_eq!(hit + missed, 24, "two of three nodes ask the third for each page");
    // What came by another node is said to have.
    let last = origin.last().headers;
    assert!(last.iter().all(|(name, _)| !name.starts_with("selvedge-")), "{last:?}");
    let shown = fleet.ask(0, "/v1/cluster").await.json();
    assert_eq!(shown["name"], "node-0", "{shown}");
    for (index, node) in shown["nodes"].as_array().unwrap().iter().enumerate() {
        let expected = format!("node-{}", index + 1);
        assert_eq!((&node["node"], &node["name"]), (&expected.clone().into(), &expected.into()), "{shown}");
        assert_eq!((&node["in_use"], &node["circle"]), (&true.into(), &"peers".into()), "{shown}");
        assert_eq!((&node["shared_routes"], &node["other_routes"]), (&1.into(), &0.into()), "{shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_and_a_region_fetch_once_for_three_thousand_clients() {
    let origin = Origin::start_async(|_| {
        Box::pin(async {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            Origin::reply(200, &[("cache-control", "max-age=600")], vec![b'x'; 100_000])
        })
    })
    .await;
    let fleet = Arc::new(Fleet::start(5, origin.address(), &Setting { region: 2, ..Setting::default() }).await);
    let mut clients = JoinSet::new();
    for index in 0..3 {
        for _ in 0..1000 {
            let fleet = Arc::clone(&fleet);
            clients.spawn(async move { fleet.get(index, "/cold").await });
        }
    }
    let mut longest = 0;
    while let Some(response) = clients.join_next().await {
        let response = response.unwrap();
        assert_eq!((response.status, response.body.len()), (200, 100_000));
        longest = longest.max(way(&response).len());
    }
    assert_eq!(origin.started(), 1, "one fetch for all of them");
    assert_eq!(longest, 3, "node, owner, region");
    let asked = fleet.sum(3, "selvedge_cluster_served_total", "result=\"answered\"").await
        + fleet.sum(4, "selvedge_cluster_served_total", "result=\"answered\"").await;
    assert_eq!(asked, 1, "the region is asked once");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_do_not_notice_that_the_owner_dies() {
    let origin = Origin::start_async(|_| {
        Box::pin(async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Origin::reply(200, &[("cache-control", "max-age=600")], "hello")
        })
    })
    .await;
    let mut fleet = Fleet::start(3, origin.address(), &Setting::default()).await;
    let pages = 60;
    let webs: Vec<SocketAddr> = fleet.nodes[..2].iter().map(|node| node.web).collect();
    let done = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for client in 0..20 {
        let (web, done) = (webs[client % 2], Arc::clone(&done));
        clients.spawn(async move {
            let mut connection = Client::connect(web).await;
            for page in 0..pages {
                let head = format!("GET /{page}?{} HTTP/1.1\r\nhost: test\r\n\r\n", client % 4);
                let response = connection.request(&head).await;
                assert_eq!((response.status, response.text().as_str()), (200, "hello"), "{:?}", response.headers);
                done.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    until("a third of the load", || done.load(Ordering::SeqCst) > 20 * pages / 3).await;
    fleet.nodes[2].process.take(); // Killed, not asked to end.
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    // 240 things were asked for. What the dead node owned and had fetched is fetched once more, at most.
    let fetches = origin.started();
    assert!((240..=360).contains(&fetches), "{fetches} fetches");
    let failed: u64 = fleet.sum(0, "selvedge_cluster_asked_total", "node=\"node-2\",result=\"failed\"").await;
    assert!(failed > 0 && failed < 60, "{failed} attempts failed: then nobody tries for a while");
    assert_eq!(fleet.sum(0, "selvedge_cluster_in_use", "node=\"node-1\"").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_owner_costs_no_more_than_the_budget() {
    let origin = storable("hello").await;
    let setting =
        Setting { cluster: "deadlines: { connect: 500ms, first_byte: 700ms, budget: 1s }", ..Setting::default() };
    let fleet = Fleet::start(2, origin.address(), &setting).await;
    // A page that the other node owns, over a connection that is there.
    let mut page = 0;
    while way(&fleet.get(0, &format!("/{page}")).await).len() < 2 {
        page += 1;
    }
    fleet.nodes[1].process.as_ref().unwrap().signal("STOP");
    let before = origin.started();
    let begun = Instant::now();
    let mut asked = 0;
    for more in 0..40 {
        let response = fleet.get(0, &format!("/{page}/{more}")).await;
        assert_eq!((response.status, response.text().as_str()), (200, "hello"));
        asked += 1;
    }
    let (took, started) = (begun.elapsed(), origin.started());
    // From here on the other node asks, too, for what it was asked meanwhile.
    fleet.nodes[1].process.as_ref().unwrap().signal("CONT");
    assert_eq!(started, before + asked, "the origin is asked in its place");
    // Three failures of at most 0.7 s and 1 s of grace, and one more each time it is tried again.
    assert!(took < Duration::from_secs(12), "{took:?}");
    assert!(fleet.sum(0, "selvedge_cluster_asked_total", "result=\"failed\"").await >= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_waits_for_a_slow_origin_says_so_in_time() {
    let origin = Origin::start_async(|request| {
        Box::pin(async move {
            if request.target.starts_with("/slow") {
                tokio::time::sleep(Duration::from_secs(8)).await;
            }
            Origin::reply(200, &[("cache-control", "max-age=600")], "hello")
        })
    })
    .await;
    let setting = Setting { cluster: "deadlines: { connect: 5s, first_byte: 5s, budget: 20s }", ..Setting::default() };
    let fleet = Fleet::start(2, origin.address(), &setting).await;
    let results = async || {
        let count = async |result| fleet.sum(0, "selvedge_cluster_asked_total", result).await;
        (count("result=\"late\"").await, count("result=\"failed\"").await)
    };
    // The other node owns one of eight pages, or of the next eight. On a machine that is busy its word may come later than it should, which is
    // a failure: then the next round shows it.
    let mut fair = false;
    for round in 0..8 {
        let before = results().await;
        let paths: Vec<String> = (0..8).map(|page| format!("/slow/{round}/{page}")).collect();
        for response in futures::future::join_all(paths.iter().map(|path| fleet.get(0, path))).await {
            assert_eq!((response.status, response.text().as_str()), (200, "hello"));
        }
        let after = results().await;
        fair = after.0 > before.0 && after.1 == before.1;
        if fair {
            break;
        }
    }
    assert!(fair, "the owner is no worse for that: {:?} late and failed", results().await);
    assert_eq!(fleet.sum(0, "selvedge_cluster_in_use", "node=\"node-1\"").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_knows_the_route_otherwise_is_not_believed() {
    let origin = storable("hello").await;
    let mut fleet = Fleet::prepare(2, origin.address());
    for (index, route) in ["", "stale_if_error: 1h"].into_iter().enumerate() {
        let text = fleet.config(index, &Setting { route, ..Setting::default() });
        fleet.run(index, &text).await;
    }
    // Where their ports put the nodes on the ring is chance: enough pages for each to own some.
    for page in 0..40 {
        for index in 0..2 {
            let response = fleet.get(index, &format!("/{page}")).await;
            assert_eq!((response.status, response.text().as_str()), (200, "hello"));
            assert_eq!(way(&response), [fleet.nodes[index].name.clone()]);
        }
    }
    assert_eq!(origin.started(), 80, "each fetches for itself");
    let refused = fleet.sum(0, "selvedge_cluster_asked_total", "result=\"refused\"").await;
    assert!(refused > 0);
    assert_eq!(fleet.sum(0, "selvedge_cluster_in_use", "").await, 1, "it is well all the same");
    let shown = fleet.ask(0, "/v1/cluster").await.json();
    assert_eq!(shown["nodes"][0]["other_routes"], 2, "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_take_each_other_for_the_owner_do_not_wait_for_each_other() {
    let origin = Origin::start_async(|_| {
        Box::pin(async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            Origin::reply(200, &[("cache-control", "max-age=600")], "hello")
        })
    })
    .await;
    let mut fleet = Fleet::prepare(2, origin.address());
    for index in 0..2 {
        // Each knows the other alone.
        let circles = format!("peers: {}", Fleet::listed([&fleet.nodes[1 - index]].into_iter()));
        let text = fleet.config_with(index, &circles, &Setting::default());
        fleet.run(index, &text).await;
    }
    let fleet = Arc::new(fleet);
    for page in 0..5 {
        let begun = Instant::now();
        let mut clients = JoinSet::new();
        for client in 0..40 {
            let fleet = Arc::clone(&fleet);
            clients.spawn(async move { fleet.get(client % 2, &format!("/{page}")).await });
        }
        while let Some(response) = clients.join_next().await {
            let response = response.unwrap();
            assert_eq!((response.status, response.text().as_str()), (200, "hello"));
            // From the other node, or from what this one has fetched for the other meanwhile.
            assert!(way(&response).len() <= 2, "{:?}", response.headers);
        }
        // `collapse.wait` and `first_byte` are 40 s.
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    }
    assert!(origin.started() <= 10, "one fetch for each node and page: {}", origin.started());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_the_origin_cuts_off_is_whole_for_nobody() {
    use tokio::io::AsyncWriteExt;
    let (origin, _serving) = Origin::raw(|mut stream| async move {
        let mut buffer = [0; 4096];
        if stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
            let head = "HTTP/1.1 200 OK\r\ncache-control: max-age=600\r\ntransfer-encoding: chunked\r\n\r\n";
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.write_all(b"5\r\nhello\r\n").await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            // Closed without the last chunk.
        }
    })
    .await;
    let fleet = Fleet::start(3, origin, &Setting { region: 1, ..Setting::default() }).await;
    for page in 0..6 {
        for index in 0..2 {
            let mut client = Client::connect(fleet.nodes[index].web).await;
            client.send(format!("GET /{page} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await;
            let response = client.try_response("GET").await;
            assert!(response.as_ref().map_or(true, |response| response.status >= 500), "{response:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_what_others_own_are_kept_briefly_and_validated_with_the_owner() {
    let origin = storable("hello").await;
    let setting = Setting {
        cluster: "deadlines: { connect: 5s, first_byte: 20s, budget: 25s }\n  hot: 1s",
        ..Setting::default()
    };
    let fleet = Fleet::start(2, origin.address(), &setting).await;
    let mut page = 0;
    while way(&fleet.get(0, &format!("/{page}")).await).len() < 2 {
        page += 1;
    }
    let path = format!("/{page}");
    let fetches = origin.started();
    let asked = async || {
        fleet.sum(0, "selvedge_cluster_asked_total", "result=\"hit\"").await
            + fleet.sum(0, "selvedge_cluster_asked_total", "result=\"miss\"").await
    };
    let before = asked().await;
    let own = |response: &Response| {
        let members = response.headers.iter().filter(|(name, _)| name == "cache-status");
        members.map(|(_, value)| value.clone()).next_back().unwrap()
    };
    let mut last = String::new();
    let begun = Instant::now();
    while !last.contains("fwd=stale") {
        let response = fleet.get(0, &path).await;
        assert_eq!((response.status, response.text().as_str()), (200, "hello"));
        assert_eq!(response.header("cache-control"), Some("max-age=600"), "as the origin says it");
        last = own(&response);
        assert!(last.contains("hit") || last.contains("fwd=stale"), "{last}");
        assert!(begun.elapsed() < Duration::from_secs(20), "it is never stale: {last}");
    }
    assert!(last.contains("fwd-status=304") && last.contains("detail=peer"), "{last}");
    assert_eq!(asked().await, before + 1);
    let age: u64 = fleet.get(0, &path).await.header("age").unwrap().parse().unwrap();
    assert!(age >= 1, "the age is that of the response, not of the copy");
    assert_eq!(origin.started(), fetches, "the owner knows that it is fresh");
}

/// Slices have owners of their own, and each is fetched once for all nodes.
#[tokio::test(flavor = "multi_thread")]
async fn a_slice_is_fetched_once_for_all_nodes() {
    const LENGTH: usize = 300_000;
    let whole: Vec<u8> = (0..LENGTH).map(|index| u8::try_from(index * 7 % 251).unwrap()).collect();
    let content = whole.clone();
    let origin = Origin::start(move |request| {
        let range = request.header("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        let (first, last) = range.expect("only slices are asked for");
        let (first, last) = (first.parse::<usize>().unwrap(), last.parse::<usize>().unwrap().min(LENGTH - 1));
        let place = format!("bytes {first}-{last}/{LENGTH}");
        let headers = [("cache-control", "max-age=60"), ("etag", "\"1\""), ("content-range", place.as_str())];
        Origin::reply(206, &headers, content[first..=last].to_vec())
    })
    .await;
    let setting = Setting { route: "slice: 64KiB", ..Setting::default() };
    let fleet = Fleet::start(3, origin.address(), &setting).await;
    for index in 0..3 {
        let part = Client::get_with(fleet.nodes[index].web, "/film", "range: bytes=70000-140000\r\n").await;
        assert_eq!(part.status, 206, "{:?}", part.headers);
        assert!(part.body == whole[70_000..=140_000]);
    }
    assert_eq!(origin.started(), 2, "two slices");
    for index in 0..3 {
        let all = Client::get(fleet.nodes[index].web, "/film").await;
        assert!(all.status == 200 && all.body == whole);
    }
    assert_eq!(origin.started(), LENGTH.div_ceil(64 << 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_may_be_the_addresses_of_a_name() {
    let origin = storable("hello").await;
    let names = NameServer::start(Says::Addresses(vec![[127, 0, 0, 2], [127, 0, 0, 3]])).await;
    let mut fleet = Fleet::prepare(2, origin.address());
    let port = fleet.nodes[0].listen.port();
    let shared = fleet.authority.issue(&["nodes.test"]);
    for (index, last) in [(0, 2), (1, 3)] {
        fleet.nodes[index].listen = SocketAddr::from(([127, 0, 0, last], port));
        let _ = shared.write(fleet.folder.path(), &format!("node-{index}"));
        let circles = format!(
            "peers: \"nodes.test:{port}\"\n  dns: {{ resolver: [\"{}\"], ttl_min: 100ms, timeout: 1s }}",
            names.address
        );
        let text = fleet.config_with(index, &circles, &Setting::default());
        fleet.run(index, &text).await;
    }
    let mut owners = Vec::new();
    for page in 0..12 {
        let ways = [way(&fleet.get(0, &format!("/{page}")).await), way(&fleet.get(1, &format!("/{page}")).await)];
        assert_eq!(ways[0][0], ways[1][0], "they name the same owner");
        owners.push(ways[0][0].clone());
    }
    assert_eq!(origin.started(), 12);
    assert!(owners.contains(&"node-0".to_owned()) && owners.contains(&"node-1".to_owned()), "{owners:?}");

    names.say(Says::Addresses(vec![[127, 0, 0, 2]])).await;
    let mut more = 0;
    soon("the first node owns everything", async {
        loop {
            more += 1;
            let owned = async |page: usize| way(&fleet.get(0, &format!("/more/{more}/{page}")).await).len() == 1;
            let mut all = true;
            for page in 0..8 {
                all &= owned(page).await;
            }
            if all {
                break;
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_on_another_node_is_not_kept() {
    let broken = Arc::new(AtomicUsize::new(1));
    let seen = Arc::clone(&broken);
    let (origin, _serving) = Origin::raw(move |mut stream| {
        let seen = Arc::clone(&seen);
        async move {
            use tokio::io::AsyncWriteExt;
            let mut buffer = [0; 4096];
            while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                if seen.load(Ordering::SeqCst) == 1 {
                    return; // Without a word.
                }
                let answer = "HTTP/1.1 200 OK\r\ncache-control: max-age=600\r\ncontent-length: 5\r\n\r\nhello";
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        }
    })
    .await;
    let mut fleet = Fleet::start(3, origin, &Setting { region: 1, ..Setting::default() }).await;
    for page in 0..4 {
        for index in 0..2 {
            let response = fleet.get(index, &format!("/{page}")).await;
            assert_eq!(response.status, 502, "the origin fails, whoever asks it");
            let told = response.header("proxy-status").unwrap_or_default().to_owned();
            assert!(told.starts_with(&fleet.nodes[index].name), "{told}");
        }
    }
    broken.store(0, Ordering::SeqCst);
    for page in 0..4 {
        for index in 0..2 {
            assert_eq!(fleet.get(index, &format!("/{page}")).await.status, 200);
        }
    }
    for node in 0..2 {
        assert_eq!(
            fleet.sum(node, "selvedge_cluster_in_use", "").await,
            2,
            "nobody is left out for the origin's failures"
        );
    }
    // Without the region, owners ask the origin.
    fleet.nodes[2].process.take();
    for page in 10..14 {
        for index in 0..2 {
            assert_eq!(fleet.get(index, &format!("/{page}")).await.status, 200);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_clients_write_for_nodes_is_not_believed_and_variants_and_parts_are_right() {
    let origin = Origin::start(|request| {
        let color = request.header("x-color").unwrap_or("none").to_owned();
        Origin::reply(200, &[("cache-control", "max-age=600"), ("vary", "x-color"), ("surrogate-key", "a b")], color)
    })
    .await;
    let fleet = Fleet::start(2, origin.address(), &Setting::default()).await;
    let spoofed = "selvedge-hops: node-1\r\nselvedge-route: 00\r\nselvedge-upstream: none\r\nselvedge-lifetime: 1\r\n";
    let mut shared = 0;
    for page in 0..6 {
        for color in ["red", "blue"] {
            for index in 0..2 {
                let fields = format!("{spoofed}x-color: {color}\r\n");
                let response = Client::get_with(fleet.nodes[index].web, &format!("/{page}"), &fields).await;
                assert_eq!((response.status, response.text().as_str()), (200, color));
                assert_eq!(response.header("surrogate-key"), None, "tags are not for clients");
                shared += way(&response).len() - 1;
            }
        }
    }
    assert_eq!(origin.started(), 12, "once for each page and variant");
    assert!(shared >= 12, "of two nodes one has asked the other each time: {shared}");
    assert_eq!(fleet.sum(0, "selvedge_cluster_asked_total", "result=\"refused\"").await, 0);
    for index in 0..2 {
        let part = Client::get_with(fleet.nodes[index].web, "/0", "x-color: red\r\nrange: bytes=1-2\r\n").await;
        assert_eq!((part.status, part.text().as_str()), (206, "ed"));
        let head = format!("HEAD /fresh-{index} HTTP/1.1\r\nhost: test\r\n\r\n");
        let head = Client::connect(fleet.nodes[index].web).await.request(&head).await;
        assert_eq!((head.status, head.header("content-length")), (200, Some("4")));
    }
    // A purge on a node holds for what it has from another one, which may not have heard of it.
    let path = (0..6).map(|page| format!("/{page}"));
    for path in path {
        let purge = format!("{{\"urls\":[\"http://test{path}\"]}}");
        let head = format!(
            "POST /v1/cache/purge HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{purge}",
            purge.len()
        );
        let purged = Client::connect(fleet.nodes[0].admin).await.request(&head).await;
        assert_eq!(purged.status, 200, "{}", purged.text());
        let again = Client::get_with(fleet.nodes[0].web, &path, "x-color: red\r\n").await;
        let own = again.headers.iter().rfind(|(name, _)| name == "cache-status").unwrap().1.clone();
        assert!(own.contains("fwd=uri-miss"), "{own}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_owner_writes_to_its_disk() {
    let origin = storable("hello").await;
    let fleet = Fleet::start(2, origin.address(), &Setting { disk: true, ..Setting::default() }).await;
    let disk = async |index, what: &str| fleet.sum(index, &format!("selvedge_cache_disk_{what}"), "").await;
    for index in 0..2 {
        soon("the disk is in use", async { while disk(index, "up").await == 0 {} }).await;
    }
    let mut owned = 0;
    for page in 0..12 {
        // Once to fetch, and once more as a hit, which makes up for what is not on disk yet.
        for index in [0, 1, 0, 1] {
            let response = fleet.get(index, &format!("/{page}")).await;
            assert_eq!((response.status, response.text().as_str()), (200, "hello"));
            owned += u64::from(way(&response)[0] == "node-0");
        }
    }
    let owned = [owned / 4, 12 - owned / 4];
    assert!(!owned.contains(&0), "{owned:?}");
    for (index, owned) in owned.into_iter().enumerate() {
        soon("what it owns is written", async { while disk(index, "objects").await < owned {} }).await;
    }
    for (index, page) in (0..24).map(|request| (request % 2, request / 2)) {
        assert_eq!(fleet.get(index, &format!("/{page}")).await.status, 200);
    }
    assert_eq!(disk(0, "objects").await + disk(1, "objects").await, 12, "each response is on one disk");
    assert_eq!(origin.started(), 12);
}

/// Without Redis: the nodes tell each other, and one that was away gets what it has missed.
#[tokio::test(flavor = "multi_thread")]
async fn a_purge_reaches_the_other_nodes_and_those_that_were_away() {
    let count = AtomicUsize::new(0);
    let fields = [("cache-control", "max-age=600"), ("cache-tag", "one")];
    let origin =
        Origin::start(move |_| Origin::reply(200, &fields, (count.fetch_add(1, Ordering::SeqCst) + 1).to_string()))
            .await;
    let mut fleet = Fleet::start(2, origin.address(), &Setting::default()).await;
    let purge = async |node: &Node, order: &str| {
        let head = "POST /v1/cache/purge HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
        let mut client = Client::connect(node.admin).await;
        client.send(format!("{head}content-length: {}\r\n\r\n{order}", order.len()).as_bytes()).await;
        client.response("POST").await
    };
    let before = [fleet.get(0, "/a").await.text(), fleet.get(1, "/a").await.text()];
    assert_eq!(before[0], before[1]);
    let done = purge(&fleet.nodes[0], "{\"tags\": [\"one\"], \"wait\": \"cluster\"}").await;
    assert_eq!(done.status, 200, "{}", done.text());
    let nodes = done.json()["nodes"].as_array().unwrap().iter().filter(|node| node["done"] == true).count();
    assert_eq!(nodes, 2, "{}", done.text());
    let after = [fleet.get(1, "/a").await.text(), fleet.get(0, "/a").await.text()];
    assert!(after[0] != before[0] && after[0] == after[1], "{before:?} {after:?}");

    // One is stopped in its tracks while the other purges, and goes on later.
    fleet.nodes[1].process.as_ref().unwrap().stop().await;
    let done = purge(&fleet.nodes[0], "{\"tags\": [\"one\"], \"wait\": \"cluster\"}").await;
    assert_eq!(done.status, 504, "{}", done.text());
    fleet.nodes[1].process.as_ref().unwrap().signal("CONT");
    soon("what it has missed", async { while fleet.get(1, "/a").await.text() == after[0] {} }).await;
    fleet.nodes[1].process = None;
}

/// Who has heard nobody since it started may have stored what others have purged since: it does not take those purges for old ones.
#[tokio::test(flavor = "multi_thread")]
async fn a_purge_reaches_who_was_alone_until_then() {
    let count = AtomicUsize::new(0);
    let fields = [("cache-control", "max-age=600"), ("cache-tag", "one")];
    let origin =
        Origin::start(move |_| Origin::reply(200, &fields, (count.fetch_add(1, Ordering::SeqCst) + 1).to_string()))
            .await;
    let mut fleet = Fleet::prepare(2, origin.address());
    let text = fleet.config(1, &Setting::default());
    fleet.run(1, &text).await;
    assert_eq!(fleet.get(1, "/a").await.text(), "1");
    fleet.nodes[1].process.as_ref().unwrap().stop().await;
    let text = fleet.config(0, &Setting::default());
    fleet.run(0, &text).await;
    // The first one finds that the other node is silent, so that the second one is not told to it.
    for tag in ["another", "one"] {
        let order = format!("{{\"tags\": [\"{tag}\"]}}");
        let head = "POST /v1/cache/purge HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
        let mut client = Client::connect(fleet.nodes[0].admin).await;
        client.send(format!("{head}content-length: {}\r\n\r\n{order}", order.len()).as_bytes()).await;
        assert_eq!(client.response("POST").await.status, 200);
    }
    fleet.nodes[1].process.as_ref().unwrap().signal("CONT");
    soon("it hears of the purge", async { while fleet.get(1, "/a").await.text() == "1" {} }).await;
}

/// A node that knows of a purge, or has seen a change pass, does not hand out what another node had before, which has not heard of it: Redis is
/// away, or the change went by this node alone. From then on the owner has it anew as well.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_knows_to_be_outdated_it_takes_from_nobody() {
    let count = AtomicUsize::new(0);
    let origin = Origin::start(move |_| {
        let number = (count.fetch_add(1, Ordering::SeqCst) + 1).to_string();
        let fields = [("cache-control", "max-age=600"), ("cache-tag", "one"), ("etag", &*format!("\"{number}\""))];
        Origin::reply(200, &fields, number)
    })
    .await;
    // Purges go over Redis, and there is none: no node is told.
    let nowhere = unused();
    let cluster = format!(
        "redis: {{ url: \"redis://{nowhere}\" }}\n  deadlines: {{ connect: 5s, first_byte: 20s, budget: 25s }}"
    );
    let fleet = Fleet::start(2, origin.address(), &Setting { cluster: &cluster, ..Setting::default() }).await;
    let mut page = 0;
    let mut of_other = async || loop {
        page += 1;
        let path = format!("/{page}");
        let response = fleet.get(0, &path).await;
        if way(&response).len() == 2 {
            return (path, response.text());
        }
    };
    let change = async |path: &str, order: Option<String>| {
        let (address, head) = match &order {
            None => (fleet.nodes[0].web, format!("POST {path} HTTP/1.1\r\nhost: test\r\n")),
            Some(_) => (
                fleet.nodes[0].admin,
                "POST /v1/cache/purge HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n".to_owned(),
            ),
        };
        let body = order.unwrap_or_default();
        let mut client = Client::connect(address).await;
        client.send(format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes()).await;
        assert_eq!(client.response("POST").await.status, 200);
    };
    for order in [
        Some("{\"urls\": [\"http://testPATH\"]}"),
        Some("{\"urls\": [\"http://testPATH\"], \"soft\": true}"),
        Some("{\"hosts\": [\"test\"]}"),
        Some("{\"tags\": [\"one\"]}"),
        Some("{\"all\": true}"),
        None,
    ] {
        let (path, before) = of_other().await;
        assert_eq!(fleet.get(1, &path).await.text(), before);
        change(&path, order.map(|order| order.replace("PATH", &path))).await;
        let after = fleet.get(0, &path).await;
        assert!(after.status == 200 && after.text() != before, "{order:?}: {}", after.text());
        let owners = fleet.get(1, &path).await.text();
        if !order.is_some_and(|order| order.contains("tags")) {
            assert_eq!(owners, after.text(), "{order:?}: the owner was asked for something newer");
        }
        assert_eq!(fleet.get(0, &path).await.text(), after.text(), "{order:?}: and it is kept");
    }
}
