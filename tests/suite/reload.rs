//! What a reload leaves alone: filters whose module, configuration and limits stay keep their VMs, and with them everything they know.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use selvedge_tests::{Client, Edge, Origin, Process, Response, guest, soon, until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_selvedge-under-test");

/// A node whose route `/census` has the filter; `filter`, `upstreams` and `other` (the answer at `/other`) are what reloads change.
struct Setup {
    filter: String,
    upstreams: String,
    other: String,
}

impl Setup {
    fn new(config: &str) -> Self {
        let filter =
            format!("wasm: \"file:${{GUESTS}}/census.wasm\", limits: {{ deadline: 10s }}, config: \"{config}\"");
        Self { filter, upstreams: "{}".into(), other: "one".into() }
    }

    fn yaml(&self) -> String {
        let Self { filter, upstreams, other } = self;
        format!(
            "filters: {{ census: {{ {filter} }} }}
upstreams: {upstreams}
sites:
  - hosts: [\"*\"]
    routes:
      - {{ name: census, match: {{ path: /census }}, filters: [census], respond: {{ status: 200 }} }}
      - {{ name: other, match: {{ path: /other }}, respond: {{ status: 200, body: \"{other}\" }} }}
"
        )
    }

    fn start(&self, origins: &[(&str, SocketAddr)]) -> Edge {
        Edge::start(&self.yaml(), origins)
    }
}

async fn census(edge: &Edge) -> Response {
    Client::get(edge.web(), "/census").await
}

/// How many streams its VM has seen, this one included.
async fn streams(edge: &Edge) -> u32 {
    census(edge).await.header("x-streams").expect("the filter runs").parse().expect("a number")
}

async fn ticks(edge: &Edge) -> u32 {
    census(edge).await.header("x-ticks").expect("the filter runs").parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_keeps_what_it_knows_when_another_route_changes() {
    for isolation in ["worker", "pool 1"] {
        let mut setup = Setup::new("0");
        let isolation = if isolation == "worker" { "worker".to_owned() } else { "{ pool: 1 }".to_owned() };
        setup.filter += &format!(", isolation: {isolation}");
        let mut edge = setup.start(&[]);
        assert_eq!([streams(&edge).await, streams(&edge).await], [1, 2]);

        setup.other = "two".into();
        assert_eq!(edge.reload(&setup.yaml()), Ok(2));
        assert_eq!(Client::get(edge.web(), "/other").await.text(), "two");
        assert_eq!(streams(&edge).await, 3, "{isolation}: the same VM");

        // What the host does about the filter is no business of the guest's.
        setup.filter += ", on_failure: open, on_pause: stop_all";
        edge.reload(&setup.yaml()).expect("in order");
        assert_eq!(streams(&edge).await, 4, "{isolation}: the same VM");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_starts_anew_when_something_it_was_started_with_changes() {
    let modules = tempfile::TempDir::new().expect("a folder");
    let module = modules.path().join("census.wasm");
    std::fs::copy(guest("census"), &module).expect("copied");
    let filter = |config: &str, more: &str| {
        format!("wasm: \"file:{}\", config: \"{config}\", limits: {{ deadline: 10s{more}", module.display())
    };

    let mut setup = Setup::new("0");
    setup.filter = filter("0", " }");
    let mut edge = setup.start(&[]);
    assert_eq!([streams(&edge).await, streams(&edge).await], [1, 2]);
    for changed in [
        filter("0 other", " }"),
        filter("0 other", ", memory: 48MiB }"),
        filter("0 other", " }, vm_id: mine"),
        filter("0 other", " }, vm_id: mine, vm_config: \"text\""),
        filter("0 other", " }, vm_id: mine, environment: { A: b }"),
        filter("0 other", " }, vm_id: mine, tick: once_per_node"),
        filter("0 other", " }, vm_id: mine, compat: ngx"),
        filter("0 other", " }, vm_id: mine, isolation: { pool: 1 }"),
    ] {
        setup.filter = changed;
        edge.reload(&setup.yaml()).expect("in order");
        assert_eq!([streams(&edge).await, streams(&edge).await], [1, 2], "{}", setup.filter);
    }

    // The same file name, another module: a custom section more.
    let mut bytes = std::fs::read(&module).expect("read");
    bytes.extend_from_slice(&[0, 2, 1, b'x']);
    std::fs::write(&module, bytes).expect("written");
    edge.reload(&setup.yaml()).expect("in order");
    assert_eq!([streams(&edge).await, streams(&edge).await], [1, 2]);

    // Back to an older one that nobody has kept alive: it starts anew, and is not brought back from the dead.
    setup.filter = filter("0", " }");
    edge.reload(&setup.yaml()).expect("in order");
    assert_eq!(streams(&edge).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_that_fails_leaves_the_filters_as_they_are() {
    let mut setup = Setup::new("5");
    let origin = Origin::start(|_| Origin::reply(200, &[], "called")).await;
    let mut edge = setup.start(&[("origin", origin.address())]);
    assert_eq!(streams(&edge).await, 1);

    // It would bring an upstream that the filter may call, and fails for another filter's sake.
    setup.upstreams = "{ added: { endpoints: [\"127.0.0.1:${PORT_origin}\"] } }".into();
    let faulty = setup.yaml().replace("filters: {", "filters: { broken: { wasm: \"file:nowhere.wasm\" },");
    assert!(edge.reload(&faulty).is_err());
    let called = Client::get_with(edge.web(), "/census", "x-call: added\r\n").await;
    assert_eq!((called.header("x-streams"), called.header("x-called")), (Some("2"), Some("refused")));

    // One is kept and one is started for the plan that fails: neither is touched or left behind.
    let second = format!("filters: {{ second: {{ {} }},", setup.filter.replace("\"5\"", "\"x\""));
    let refused =
        setup.yaml().replace("filters: {", &second).replace("{ name: other,", "{ name: other, filters: [second],");
    assert!(edge.reload(&refused).expect_err("the filter refuses").contains("refused its configuration"));
    assert_eq!(streams(&edge).await, 3);
    let before = ticks(&edge).await;
    soon("it ticks", async { while ticks(&edge).await < before + 3 {} }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_filter_calls_the_upstreams_of_the_plan_in_force() {
    let origin = Origin::start(|_| Origin::reply(200, &[], "called")).await;
    let next = Origin::start(|_| Origin::reply(201, &[], "called")).await;
    let mut setup = Setup::new("0");
    let mut edge = setup.start(&[("origin", origin.address()), ("next", next.address())]);
    let call = async |edge: &Edge| {
        let response = Client::get_with(edge.web(), "/census", "x-call: added\r\n").await;
        let header = |name: &str| response.header(name).unwrap_or_default().to_owned();
        (header("x-streams"), header("x-called"))
    };
    assert_eq!(call(&edge).await, ("1".into(), "refused".into()));

    setup.upstreams = "{ added: { endpoints: [\"127.0.0.1:${PORT_origin}\"] } }".into();
    edge.reload(&setup.yaml()).expect("in order");
    assert_eq!(call(&edge).await, ("2".into(), "200".into()), "added");

    setup.upstreams = "{ added: { endpoints: [\"127.0.0.1:${PORT_next}\"] } }".into();
    edge.reload(&setup.yaml()).expect("in order");
    assert_eq!(call(&edge).await, ("3".into(), "201".into()), "moved");

    setup.upstreams = "{}".into();
    edge.reload(&setup.yaml()).expect("in order");
    assert_eq!(call(&edge).await, ("4".into(), "refused".into()), "removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_under_way_is_answered_after_the_reload() {
    let origin = Origin::start(|_| Origin::reply(200, &[], "called")).await;
    let (gate, held) = tokio::sync::watch::channel(false);
    let slow = Origin::start_async(move |_| {
        let mut held = held.clone();
        Box::pin(async move {
            let _ = held.wait_for(|open| *open).await;
            Origin::reply(202, &[], "called")
        })
    })
    .await;
    let mut setup = Setup::new("0");
    setup.upstreams = "{ slow: { endpoints: [\"127.0.0.1:${PORT_slow}\"] } }".into();
    let mut edge = setup.start(&[("slow", slow.address()), ("origin", origin.address())]);
    let web = edge.web();
    let waiting = tokio::spawn(async move { Client::get_with(web, "/census", "x-call: slow\r\n").await });
    until("the call has gone out", || slow.started() == 1).await;
    setup.upstreams = "{ fast: { endpoints: [\"127.0.0.1:${PORT_origin}\"] } }".into();
    edge.reload(&setup.yaml()).expect("in order");
    gate.send(true).expect("waited for");
    let response = soon("the answer", waiting).await.expect("no panic");
    assert_eq!((response.header("x-streams"), response.header("x-called")), (Some("1"), Some("202")));
    assert_eq!(streams(&edge).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn ticks_stay_what_they_are_over_reloads() {
    const PERIOD: Duration = Duration::from_millis(20);
    let mut setup = Setup::new("20");
    let mut edge = setup.start(&[]);
    for round in 0..10 {
        setup.other = round.to_string();
        edge.reload(&setup.yaml()).expect("in order");
    }
    // One loop rests for the period between two ticks. Two would need half the time for as many, eleven a fraction of it.
    let (began, first) = (Instant::now(), ticks(&edge).await);
    let mut last = first;
    soon("it ticks", async {
        while last < first + 20 {
            tokio::time::sleep(Duration::from_millis(5)).await;
            last = ticks(&edge).await;
        }
    })
    .await;
    let most = began.elapsed().as_nanos() / PERIOD.as_nanos() + 1;
    assert!(u128::from(last - first) <= most, "{} ticks, where one loop makes {most} at most", last - first);
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_reloads_start_no_vm_and_leave_no_memory_behind() {
    let mut setup = Setup::new("5");
    let folder = tempfile::TempDir::new().expect("a folder");
    let path = folder.path().join("config.yaml");
    let write = |setup: &Setup| {
        let guests = guest("census").parent().expect("a folder").display().to_string();
        let text = format!(
            "version: 1
node: {{ name: edge, workers: 1, shutdown_grace: 1s, module_cache: off }}
telemetry: {{ access_log: {{ output: off }}, metrics: {{ bind: \"127.0.0.1:0\" }} }}
listeners: {{ web: {{ bind: \"127.0.0.1:0\" }} }}
{}",
            setup.yaml().replace("${GUESTS}", &guests)
        );
        // By rename: half a file is a faulty one.
        let next = folder.path().join("next.yaml");
        std::fs::write(&next, text).expect("written");
        std::fs::rename(&next, &path).expect("renamed");
    };
    write(&setup);
    let process = Process::run(PROGRAM, folder.path(), &path, 1).await;
    let web = process.addresses()["web"];
    let mut metrics = None;
    until("metrics are served", || {
        let log = process.log();
        metrics = log.iter().find_map(|line| line.split_once("metrics address=")?.1.trim().parse().ok());
        metrics.is_some()
    })
    .await;
    let metrics: SocketAddr = metrics.expect("found");

    let mut early = (String::new(), 0);
    for round in 1..=60 {
        setup.other = format!("answer {round}");
        write(&setup);
        process.signal("HUP");
        soon("the reload", async { while Client::get(web, "/other").await.text() != setup.other {} }).await;
        let census = Client::get(web, "/census").await;
        assert_eq!(census.header("x-streams"), Some(round.to_string().as_str()));
        if round == 10 {
            early = (vm_starts(metrics).await, process.resident());
        }
    }
    assert_eq!(vm_starts(metrics).await, early.0);
    let grown = process.resident().saturating_sub(early.1);
    assert!(grown < 8 << 20, "50 reloads have left {grown} bytes behind");
}

async fn vm_starts(metrics: SocketAddr) -> String {
    let page = Client::get(metrics, "/metrics").await.text();
    let line = page.lines().find(|line| line.starts_with("selvedge_filter_vm_starts_total{filter=\"census\"}"));
    line.expect("the series").to_owned()
}
