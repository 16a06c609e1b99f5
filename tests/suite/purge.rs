//! Purges, over real sockets: whatever they come by, after their answer nobody gets what they reach.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt;
use selvedge_tests::{Client, Edge, Origin, Process, Response, soon, until, unused};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::Semaphore;

const JSON: &str = "content-type: application/json\r\n";
const PROGRAM: &str = env!("CARGO_BIN_EXE_selvedge-under-test");

/// An origin that counts, and tags: `/tag/a,b` is tagged `a` and `b`. It answers conditional requests by 304 while its version stays.
async fn counting() -> Origin {
    let count = AtomicUsize::new(0);
    Origin::start(move |request| {
        let answer = count.fetch_add(1, Ordering::SeqCst) + 1;
        let tags = request.target.strip_prefix("/tag/").unwrap_or_default().replace(',', " ");
        let fields = [
            ("cache-control", "max-age=600, stale-while-revalidate=600"),
            ("etag", "\"1\""),
            ("surrogate-key", &*tags),
        ];
        if request.header("if-none-match").is_some() {
            return Origin::reply(304, &fields, "");
        }
        Origin::reply(200, &fields, format!("answer {answer}"))
    })
    .await
}

fn yaml(purge: &str) -> String {
    format!(
        "admin: {{ bind: \"127.0.0.1:0\" }}
cache: {{ purge: {purge} }}
upstreams: {{ app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }} }}
sites:
- hosts: [\"${{ID}}.example\", \"other-${{ID}}.example\"]
  routes:
  - {{ name: \"page-${{ID}}\", cache: {{ key: {{ query: {{ only: [id] }} }} }}, to: app }}
  - {{ name: \"kept-${{ID}}\", match: {{ path: /kept/* }}, cache: {{ tags: {{ keep: true, read: [surrogate-key] }} }}, to: app }}
  - {{ name: \"none-${{ID}}\", match: {{ path: /none/* }}, cache: {{ tags: {{ read: [] }} }}, to: app }}"
    )
}

async fn node(origin: &Origin) -> Edge {
    Edge::start(&yaml("{}"), &[("app", origin.address())])
}

fn host(edge: &Edge) -> String {
    format!("{}.example", edge.id())
}

async fn get(edge: &Edge, path: &str) -> Response {
    get_of(edge.web(), &host(edge), path).await
}

async fn get_of(address: SocketAddr, host: &str, path: &str) -> Response {
    send(address, "GET", path, &format!("host: {host}\r\n"), "").await
}

async fn send(address: SocketAddr, method: &str, path: &str, fields: &str, body: &str) -> Response {
    let length = body.len();
    let request = format!("{method} {path} HTTP/1.1\r\n{fields}content-length: {length}\r\n\r\n{body}");
    let mut client = Client::connect(address).await;
    client.send(request.as_bytes()).await;
    client.response(method).await
}

async fn post(edge: &Edge, path: &str, fields: &str, body: &str) -> Response {
    let fields = format!("host: localhost\r\n{fields}");
    send(edge.admin(), "POST", path, &fields, body).await
}

async fn purge(edge: &Edge, order: Value) -> Value {
    let answer = post(edge, "/v1/cache/purge", JSON, &order.to_string()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// What `Cache-Status` says first: `hit` or `fwd=..`.
fn verdict(response: &Response) -> &str {
    response.header("cache-status").and_then(|status| status.split("; ").nth(1)).expect("a cache status")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_scope_reaches_what_belongs_to_it_and_nothing_else() {
    let origin = counting().await;
    let edge = node(&origin).await;
    let (host, other) = (host(&edge), format!("other-{}.example", edge.id()));
    let id = edge.id();
    let (red, both) = (&*format!("/tag/red-{id}"), &*format!("/tag/red-{id},blue-{id}"));
    let paths = ["/a", "/a/b", "/ab", red, both, "/q?id=1", "/q?id=2"];
    for (order, gone) in [
        (json!({ "urls": [format!("https://{host}:99/a")] }), &["/a"][..]),
        (json!({ "urls": [format!("{host}/q?utm=x&id=1")] }), &["/q?id=1"]),
        (json!({ "urls": [format!("{host}/./x/../a"), format!("{host}/ab")] }), &["/a", "/ab"]),
        (json!({ "prefixes": [format!("{host}/a")] }), &["/a", "/a/b"]),
        (json!({ "prefixes": [format!("http://{host}/a/*")] }), &["/a", "/a/b"]),
        (json!({ "tags": [format!("RED-{id}")] }), &[red, both]),
        (json!({ "tags": [format!("blue-{id}"), "green"] }), &[both]),
        (json!({ "hosts": [host] }), &paths),
        (json!({ "hosts": [other] }), &[]),
    ] {
        for path in paths {
            get(&edge, path).await;
            assert_eq!(verdict(&get(&edge, path).await), "hit", "{order} {path}");
        }
        get_of(edge.web(), &other, "/a").await;
        purge(&edge, order.clone()).await;
        for path in paths {
            let expected = if gone.contains(&path) { "fwd=uri-miss" } else { "hit" };
            assert_eq!(verdict(&get(&edge, path).await), expected, "{order} {path}");
        }
        let elsewhere = if order["hosts"] == json!([other]) { "fwd=uri-miss" } else { "hit" };
        assert_eq!(verdict(&get_of(edge.web(), &other, "/a").await), elsewhere, "{order}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_soft_purge_serves_stale_and_validates() {
    let origin = counting().await;
    let edge = node(&origin).await;
    let (tag, path) = (format!("soft-{}", edge.id()), format!("/tag/soft-{}", edge.id()));
    let first = get(&edge, &path).await.text();
    let asked = origin.started();
    purge(&edge, json!({ "tags": [tag], "soft": true })).await;
    let stale = get(&edge, &path).await;
    assert_eq!((stale.text(), verdict(&stale)), (first.clone(), "hit"));
    assert!(stale.header("cache-status").unwrap().contains("detail=stale-while-revalidate"), "{:?}", stale.headers);
    until("the origin validates it", || origin.started() > asked).await;
    soon("it is fresh again", async {
        while get(&edge, &path).await.header("cache-status").unwrap().contains("stale") {}
    })
    .await;
    assert_eq!(get(&edge, &path).await.text(), first, "validated, not fetched");
    assert_eq!(origin.started(), asked + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_fetched_while_it_is_purged_is_not_stored() {
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let count = AtomicUsize::new(0);
    let origin = Origin::start_async(move |_| {
        let (gate, answer) = (Arc::clone(&opened), count.fetch_add(1, Ordering::SeqCst) + 1);
        async move {
            gate.acquire().await.expect("never closed").forget();
            Origin::reply(200, &[("cache-control", "max-age=600")], format!("answer {answer}"))
        }
        .boxed()
    })
    .await;
    let edge = node(&origin).await;
    let (address, host) = (edge.web(), host(&edge));
    let before = tokio::spawn(async move { get_of(address, &host, "/a").await });
    until("the origin is asked", || origin.started() == 1).await;

    purge(&edge, json!({ "hosts": [self::host(&edge)] })).await;
    gate.add_permits(10);
    assert_eq!(soon("the answer", before).await.expect("no panic").text(), "answer 1");
    assert_eq!(get(&edge, "/a").await.text(), "answer 2", "what was asked for before the purge is not kept");
    assert_eq!(verdict(&get(&edge, "/a").await), "hit");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_see_tags_only_where_the_route_says_so() {
    let origin = counting().await;
    let edge = node(&origin).await;
    for _ in 0..2 {
        assert_eq!(get(&edge, "/tag/red").await.header("surrogate-key"), None);
        assert_eq!(get(&edge, "/kept/x").await.header("surrogate-key"), Some(""));
        assert_eq!(get(&edge, "/none/x").await.header("surrogate-key"), Some(""), "it is no tag there");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_an_order_is_told() {
    let origin = counting().await;
    let edge = node(&origin).await;
    for (body, why) in [
        (json!({}), "it says nothing"),
        (json!({ "urls": ["/a"] }), "it has no host"),
        (json!({ "urls": ["ftp://a.example/"] }), "neither http nor https"),
        (json!({ "urls": ["a.example/%zz"] }), "two hexadecimal digits"),
        (json!({ "urls": ["a b/"] }), "characters that no host has"),
        (json!({ "hosts": ["a.example/x"] }), "a host has no path"),
        (json!({ "prefixes": ["a.example/x?y"] }), "a prefix has no query"),
        (json!({ "prefixes": ["a.example/x*"] }), "whole segments"),
        (json!({ "tags": [""] }), "is no tag"),
        (json!({ "url": ["a.example"] }), "unknown field `url`"),
    ] {
        let answer = post(&edge, "/v1/cache/purge", JSON, &body.to_string()).await;
        assert_eq!(answer.status, 400, "{body}");
        let detail = answer.json()["detail"].as_str().unwrap_or_default().to_owned();
        assert!(detail.contains(why), "{body}: {detail}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_method_purge_is_for_those_who_may() {
    let origin = counting().await;
    let mut edge = node(&origin).await;
    let ask = async |edge: &Edge, fields: &str| {
        let fields = format!("host: {}\r\n{fields}", host(edge));
        send(edge.web(), "PURGE", "/a?id=1", &fields, "").await
    };
    get(&edge, "/a?id=1").await;
    assert_eq!(ask(&edge, "").await.status, 403, "nobody may by default");
    assert_eq!(verdict(&get(&edge, "/a?id=1").await), "hit");

    edge.reload(&yaml("{ allow: [192.0.2.0/24] }")).unwrap();
    assert_eq!(ask(&edge, "").await.status, 403);
    edge.reload(&yaml("{ allow: [192.0.2.0/24, 127.0.0.1] }")).unwrap();
    let done = ask(&edge, "").await;
    assert_eq!((done.status, &done.json()["objects"]), (200, &json!(1)));
    assert_eq!(ask(&edge, "").await.status, 404, "nothing is left");
    let asked = origin.started();
    assert_eq!(verdict(&get(&edge, "/a?id=1").await), "fwd=uri-miss");
    assert_eq!(ask(&edge, "fastly-soft-purge: 1\r\n").await.status, 200);
    let stale = get(&edge, "/a?id=1").await;
    assert!(stale.header("cache-status").unwrap().contains("stale-while-revalidate"));
    until("the stale one is validated", || origin.started() == asked + 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_made_for_fastly_can_purge() {
    let origin = counting().await;
    let edge = node(&origin).await;
    let is_stored = async |path: &str| {
        let found = verdict(&get(&edge, path).await) == "hit";
        get(&edge, path).await;
        found
    };
    is_stored("/tag/f1,f2").await;
    let one = post(&edge, "/service/abc/purge/f1", "", "").await;
    assert_eq!((one.status, &one.json()["status"]), (200, &json!("ok")));
    assert!(!is_stored("/tag/f1,f2").await);
    let keys = post(&edge, "/service/abc/purge", "surrogate-key: f2 f3\r\n", "").await;
    assert_eq!(keys.status, 200);
    assert!(keys.json()["f2"].is_string() && keys.json()["f3"].is_string(), "{}", keys.text());
    assert!(!is_stored("/tag/f1,f2").await);
    let body = json!({ "surrogate_keys": ["f1"] }).to_string();
    let keys = post(&edge, "/service/abc/purge", JSON, &body).await;
    assert_eq!(keys.status, 200);
    assert!(!is_stored("/tag/f1,f2").await);
    assert_eq!(post(&edge, "/service/abc/purge", "", "").await.status, 400);

    let soft = post(&edge, "/service/abc/purge/f1", "fastly-soft-purge: 1\r\n", "").await;
    assert_eq!(soft.status, 200);
    assert!(get(&edge, "/tag/f1,f2").await.header("cache-status").unwrap().contains("stale-while-revalidate"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_for_a_url_is_shown() {
    let origin = counting().await;
    let edge = node(&origin).await;
    get(&edge, "/tag/shown,with").await;
    let ask = async |url: &str| {
        let path = format!("/v1/cache/object?url={url}");
        send(edge.admin(), "GET", &path, "host: localhost\r\n", "").await
    };
    let found = ask(&format!("https%3A%2F%2F{}%2Ftag%2Fshown,with%3Futm=1", host(&edge))).await.json();
    let object = &found["objects"][0];
    assert_eq!(object["tags"], json!(["shown", "with"]), "{found}");
    assert_eq!(
        (&object["tier"], &object["scheme"], &object["status"]),
        (&json!("memory"), &json!("http"), &json!(200))
    );
    assert_eq!((&object["etag"], &object["length"]), (&json!("\"1\""), &json!(8)));
    assert!(object["ttl"].as_i64().is_some_and(|ttl| (590..=600).contains(&ttl)), "{found}");
    purge(&edge, json!({ "tags": ["with"] })).await;
    assert_eq!(ask(&format!("{}/tag/shown,with", host(&edge))).await.json()["objects"], json!([]));
    assert_eq!(ask("").await.status, 400);

    let stats = send(edge.admin(), "GET", "/v1/cache/stats", "host: localhost\r\n", "").await;
    let stats = stats.json();
    assert!(stats["purges"]["hard"].as_u64() > Some(0) && stats["memory"]["capacity"].as_u64() > Some(0), "{stats}");
}

/// Whatever else a key is made of: the URL is enough to find it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_under_further_parts_of_keys_is_shown() {
    let origin = counting().await;
    let yaml = "
admin: { bind: \"127.0.0.1:0\" }
cache: {}
upstreams: { app: { endpoints: [\"127.0.0.1:${PORT_app}\"] } }
sites: [{ hosts: [\"${ID}.example\"], routes: [{ name: \"parts-${ID}\", cache: { key: { headers: [x-user] } }, to: app }] }]";
    let edge = Edge::start(yaml, &[("app", origin.address())]);
    for (path, user) in [("/tag/one", "ann"), ("/tag/one", "bob"), ("/tag/two", "ann")] {
        send(edge.web(), "GET", path, &format!("host: {}\r\nx-user: {user}\r\n", host(&edge)), "").await;
    }
    let path = format!("/v1/cache/object?url={}/tag/one", host(&edge));
    let found = send(edge.admin(), "GET", &path, "host: localhost\r\n", "").await.json();
    let objects = found["objects"].as_array().expect("objects");
    assert_eq!(objects.len(), 2, "{found}");
    assert!(objects.iter().all(|object| object["tags"] == json!(["one"]) && object["route"].is_null()), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_puts_out_of_date_what_its_route_says() {
    let origin = counting().await;
    let yaml = "
cache: {}
upstreams: { app: { endpoints: [\"127.0.0.1:${PORT_app}\"] } }
sites:
- hosts: [\"*\"]
  routes:
  - { cache: {}, to: app }
  - match: { path: /products/*, method: [POST, PUT, DELETE] }
    to: app
    invalidates:
    - { on: /products/*/price, urls: [/lists/$1, \"other-${ID}.example/lists/$1\"], tags: [\"product-$1\"] }
    - { on: /products/*, prefixes: [/overview] }";
    let edge = Edge::start(yaml, &[("app", origin.address())]);
    let (host, other) = (host(&edge), format!("other-{}.example", edge.id()));
    let paths = ["/lists/7", "/lists/8", "/tag/product-7", "/tag/product-8", "/overview/a", "/products/7"];
    for (method, changed, gone) in [
        ("PUT", "/products/7/price", &["/lists/7", "/tag/product-7", "/overview/a"][..]),
        ("POST", "/products/7", &["/overview/a", "/products/7"]),
        ("GET", "/products/7/price", &[]),
    ] {
        for path in paths {
            get(&edge, path).await;
            assert_eq!(verdict(&get(&edge, path).await), "hit");
        }
        get_of(edge.web(), &other, "/lists/7").await;
        assert_eq!(send(edge.web(), method, changed, &format!("host: {host}\r\n"), "").await.status, 200);
        for path in paths {
            let expected = if gone.contains(&path) { "fwd=uri-miss" } else { "hit" };
            assert_eq!(verdict(&get(&edge, path).await), expected, "{method} {changed}: {path}");
        }
        let elsewhere = verdict(&get_of(edge.web(), &other, "/lists/7").await) == "hit";
        assert_eq!(elsewhere, !gone.contains(&"/lists/7"), "{method} {changed}");
    }
}

/// RFC 9875, 3: on responses to unsafe methods, of the same origin.
#[tokio::test(flavor = "multi_thread")]
async fn an_origin_puts_its_groups_out_of_date() {
    let origin = Origin::start(|request| {
        let field = if request.method == "GET" { "cache-groups" } else { "cache-group-invalidation" };
        let group = format!("\"{}\"", request.target.trim_start_matches('/'));
        Origin::reply(200, &[("cache-control", "max-age=600"), (field, &*group)], "")
    })
    .await;
    let edge = node(&origin).await;
    let (host, other) = (host(&edge), format!("other-{}.example", edge.id()));
    let hit = async |host: &str, path: &str| verdict(&get_of(edge.web(), host, path).await) == "hit";
    for (host, path) in [(&host, "/one"), (&host, "/two"), (&other, "/one")] {
        hit(host, path).await;
        assert!(hit(host, path).await);
    }
    // The path is another, so that it is not the URL itself that is put out of date.
    let done = send(edge.web(), "POST", "//one", &format!("host: {host}\r\n"), "").await;
    assert_eq!((done.status, done.header("cache-group-invalidation")), (200, Some("\"one\"")));
    assert!(hit(&host, "/two").await && hit(&other, "/one").await);
    assert!(!hit(&host, "/one").await);
    assert_eq!(
        get_of(edge.web(), &host, "/one").await.header("cache-groups"),
        Some("\"one\""),
        "it is for every cache"
    );
}

/// A thousand purges of every kind in a second while the node serves: whoever asks after a purge was acknowledged never gets what was there
/// before.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_what_was_purged_however_many_purges_there_are() {
    const PATHS: usize = 8;
    const PURGES: usize = 3_000;
    let versions: Arc<Vec<AtomicUsize>> = Arc::new((0..PATHS).map(|_| AtomicUsize::new(0)).collect());
    let theirs = Arc::clone(&versions);
    let origin = Origin::start(move |request| {
        let place: usize = request.target.trim_start_matches('/').parse().unwrap();
        let version = theirs[place].load(Ordering::SeqCst).to_string();
        let tag = format!("storm-{place}");
        Origin::reply(200, &[("cache-control", "max-age=600"), ("cache-tag", &*tag)], version)
    })
    .await;
    let edge = Edge::start(&yaml("{ allow: [127.0.0.1] }"), &[("app", origin.address())]);
    let (web, admin, host) = (edge.web(), edge.admin(), host(&edge));

    // Versions that every purge so far was acknowledged for.
    let acknowledged: Arc<Vec<AtomicUsize>> = Arc::new((0..PATHS).map(|_| AtomicUsize::new(0)).collect());
    let left = Arc::new(AtomicUsize::new(PURGES));
    let mut tasks = tokio::task::JoinSet::new();
    for purger in 0..4 {
        let (versions, acknowledged, left) = (Arc::clone(&versions), Arc::clone(&acknowledged), Arc::clone(&left));
        let host = host.clone();
        tasks.spawn(async move {
            let mut client = Client::connect(admin).await;
            let mut other = Client::connect(web).await;
            let mut pace = tokio::time::interval(std::time::Duration::from_millis(4));
            let mut done = 0;
            while left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
                pace.tick().await;
                // Each has its own paths, so that versions only rise.
                let place = purger + 4 * (done % (PATHS / 4));
                let version = versions[place].fetch_add(1, Ordering::SeqCst) + 1;
                let order = match done % 8 {
                    0 => json!({ "tags": [format!("storm-{place}")] }),
                    1 => json!({ "urls": [format!("{host}/{place}")] }),
                    2 => json!({ "prefixes": [format!("{host}/{place}")] }),
                    3 => json!({ "tags": [format!("storm-{place}")], "soft": true }),
                    4 => json!({ "urls": [format!("{host}/{place}")], "soft": true }),
                    5 if done % 5 == 0 => json!({ "hosts": [host] }),
                    6 if done % 5 == 0 => json!({ "all": true }),
                    _ => Value::Null,
                };
                if order.is_null() {
                    let soft = if done % 2 == 0 { "fastly-soft-purge: 1\r\n" } else { "" };
                    let answer = other.request(&format!("PURGE /{place} HTTP/1.1\r\nhost: {host}\r\n{soft}\r\n")).await;
                    assert!([200, 404].contains(&answer.status), "{}", answer.text()); // 404: there was nothing.
                } else {
                    let (order, head) = (order.to_string(), "POST /v1/cache/purge HTTP/1.1\r\nhost: localhost\r\n");
                    let length = order.len();
                    client.send(format!("{head}{JSON}content-length: {length}\r\n\r\n{order}").as_bytes()).await;
                    let answer = client.response("POST").await;
                    assert_eq!(answer.status, 200, "{}", answer.text());
                }
                acknowledged[place].store(version, Ordering::SeqCst);
                done += 1;
            }
            0
        });
    }
    for reader in 0..4 {
        let (acknowledged, left, host) = (Arc::clone(&acknowledged), Arc::clone(&left), host.clone());
        tasks.spawn(async move {
            let mut client = Client::connect(web).await;
            let mut hits = 0;
            for turn in reader.. {
                if left.load(Ordering::SeqCst) == 0 {
                    break;
                }
                let place = turn % PATHS;
                let least = acknowledged[place].load(Ordering::SeqCst);
                let response = client.request(&format!("GET /{place} HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
                let version: usize = response.text().parse().unwrap();
                assert!(version >= least, "/{place}: {version} after the purge of what was before {least}");
                hits += usize::from(verdict(&response) == "hit");
            }
            hits
        });
    }
    // On an idle machine it is 3 seconds.
    let storm = tokio::time::timeout(std::time::Duration::from_secs(120), tasks.join_all());
    let hits: usize = storm.await.expect("the storm ends").into_iter().sum();
    assert!(hits > 0, "the cache was used in between");
}

// ---- the node as a process ----

/// A node in a folder of its own, and where its admin API is.
async fn process(folder: &Path, origin: SocketAddr, more: &str) -> (Process, String) {
    let path = folder.join("config.yaml");
    let socket = folder.join("admin.sock");
    let yaml = format!(
        "version: 1
node: {{ workers: 1, module_cache: off, shutdown_grace: 0s }}
admin: {{ bind: \"unix:{}\" }}
telemetry: {{ access_log: {{ output: off }} }}
listeners: {{ web: {{ bind: \"127.0.0.1:0\" }} }}
upstreams: {{ app: {{ endpoints: [\"{origin}\"] }} }}
{more}
sites: [{{ hosts: [\"*\"], routes: [{{ cache: {{}}, to: app }}] }}]
",
        socket.display()
    );
    std::fs::write(&path, yaml).unwrap();
    let process = Process::run(PROGRAM, folder, &path, 1).await;
    // Listeners are there a moment before the admin API.
    until("the admin API", || std::os::unix::net::UnixStream::connect(&socket).is_ok()).await;
    (process, format!("unix:{}", socket.display()))
}

/// `selvedge cache ..`: whether it succeeded, and what it printed.
fn cli(folder: &Path, args: &[&str]) -> (bool, String) {
    let run = Command::new(PROGRAM).arg("cache").args(args).current_dir(folder).output().unwrap();
    (run.status.success(), format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr)))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_purges_shows_and_warms() {
    let origin = counting().await;
    let folder = TempDir::new().unwrap();
    let (node, _) = process(folder.path(), origin.address(), "cache: {}").await;
    let web = node.addresses()["web"];
    let hit = async |path: &str| verdict(&get_of(web, "a.example", path).await) == "hit";

    let list = folder.path().join("urls");
    std::fs::write(&list, "# what is asked for most\nhttp://a.example/1\nhttp://a.example/2\n\n").unwrap();
    let (done, told) = cli(folder.path(), &["warm", "urls", "--to", &web.to_string(), "--header", "X-Kind: a, b"]);
    assert!(done && told.contains("2 fetched, 0 failed"), "{told}");
    assert_eq!(origin.last().header("x-kind"), Some("a, b"));
    let (done, told) = cli(folder.path(), &["warm", "urls", "--header", "Host: b.example"]);
    assert!(!done && told.contains("up to the request"), "{told}");
    assert!(hit("/1").await && hit("/2").await);
    let (done, told) = cli(folder.path(), &["get", "http://a.example/1"]);
    assert!(done && told.contains("\"tier\": \"memory\""), "{told}");
    let (done, told) = cli(folder.path(), &["purge", "--url", "a.example/1", "--tag", "none"]);
    assert!(done && told.contains("\"epoch\""), "{told}");
    assert!(!hit("/1").await && hit("/2").await);
    let (done, told) = cli(folder.path(), &["purge", "--all"]);
    assert!(done, "{told}");
    assert!(!hit("/2").await);
    let (done, told) = cli(folder.path(), &["stats"]);
    assert!(done && told.contains("\"capacity\""), "{told}");

    let (done, told) = cli(folder.path(), &["purge"]);
    assert!(!done && told.contains("400") && told.contains("it says nothing"), "{told}");
    let (done, told) = cli(folder.path(), &["stats", "--admin", "127.0.0.1:1"]);
    assert!(!done && told.contains("127.0.0.1:1"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_purges_survive_the_process_in_their_log() {
    let origin = counting().await;
    let folder = TempDir::new().unwrap();
    let settings = "cache: { purge: { log: purge.log } }";
    let (node, _) = process(folder.path(), origin.address(), settings).await;
    let (done, told) = cli(folder.path(), &["purge", "--host", "a.example", "--tag", "t"]);
    assert!(done && told.contains("\"durable\": true"), "{told}");
    drop(node); // By SIGKILL.

    let (node, _) = process(folder.path(), origin.address(), settings).await;
    let (_, stats) = cli(folder.path(), &["stats"]);
    let stats: Value = serde_json::from_str(&stats).unwrap();
    assert_eq!(stats["purges"]["entries"], 3, "the host, the tag, and what has too many tags: {stats}");
    drop(node);

    std::fs::write(folder.path().join("purge.log"), "something else").unwrap();
    let path = folder.path().join("config.yaml");
    let refused = Command::new(PROGRAM).args(["run", "--config"]).arg(&path).output().unwrap();
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && told.contains("no purge log of this version"), "{told}");
}

// ---- several nodes, over Redis ----

/// A `redis-server` of this test; killed when dropped.
struct Redis {
    child: Child,
    address: SocketAddr,
    folder: TempDir,
}

impl Redis {
    /// `None` where it is not installed, which is said.
    #[allow(clippy::print_stdout, reason = "says why a test is skipped")]
    fn start(folder: TempDir, address: SocketAddr) -> Option<Self> {
        let started = Command::new("redis-server")
            .args(["--port", &address.port().to_string(), "--bind", &address.ip().to_string(), "--dir"])
            .arg(folder.path())
            .args(["--appendonly", "yes", "--appendfsync", "always", "--requirepass", "example-password"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match started {
            Ok(child) => Some(Self { child, address, folder }),
            Err(_) => {
                println!("skipped: redis-server not installed");
                None
            }
        }
    }

    fn on_a_free_port() -> Option<Self> {
        Self::start(TempDir::new().unwrap(), unused())
    }

    /// Killed; what it has written stays.
    fn stop(mut self) -> (TempDir, SocketAddr) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        (std::mem::replace(&mut self.folder, TempDir::new().unwrap()), self.address)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A node that hears of purges over Redis.
fn node_of(name: &str, redis: SocketAddr, origin: &Origin) -> Edge {
    let yaml = format!(
        "version: 1
node: {{ name: {name}, workers: 1, shutdown_grace: 1s, module_cache: off }}
telemetry: {{ access_log: {{ output: off }} }}
admin: {{ bind: \"127.0.0.1:0\" }}
cluster: {{ redis: {{ url: \"redis://{redis}\", password: example-password }} }}
cache: {{}}
upstreams: {{ app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }} }}

listeners: {{ web: {{ bind: \"127.0.0.1:0\" }} }}
sites: [{{ hosts: [\"*\"], routes: [{{ cache: {{}}, to: app }}] }}]"
    );
    Edge::start(&yaml, &[("app", origin.address())])
}

async fn stats(edge: &Edge) -> Value {
    send(edge.admin(), "GET", "/v1/cache/stats", "host: localhost\r\n", "").await.json()["stream"].clone()
}

async fn connected(edges: &[&Edge], wanted: bool) {
    soon("Redis", async {
        for edge in edges {
            while stats(edge).await["connected"] != wanted {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        }
    })
    .await;
}

async fn is_hit(edge: &Edge, path: &str) -> bool {
    verdict(&get_of(edge.web(), "a.example", path).await) == "hit"
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_reaches_every_node() {
    let Some(redis) = Redis::on_a_free_port() else { return };
    let origin = counting().await;
    let (one, two) = (node_of("one", redis.address, &origin), node_of("two", redis.address, &origin));
    connected(&[&one, &two], true).await;
    for (order, gone) in [
        (json!({ "tags": ["red"] }), &["/tag/red"][..]),
        (json!({ "urls": ["a.example/a"] }), &["/a"]),
        (json!({ "prefixes": ["a.example/tag"] }), &["/tag/red"]),
        (json!({ "all": true }), &["/tag/red", "/a", "/b"]),
    ] {
        for path in ["/tag/red", "/a", "/b"] {
            is_hit(&two, path).await;
            assert!(is_hit(&two, path).await, "{order} {path}");
        }
        let mut waiting = order.clone();
        waiting["wait"] = json!("cluster");
        let nodes = purge(&one, waiting).await["nodes"].clone();
        assert_eq!(nodes, json!([{ "node": "one", "done": true }, { "node": "two", "done": true }]));
        for path in ["/tag/red", "/a", "/b"] {
            assert_eq!(is_hit(&two, path).await, !gone.contains(&path), "{order} {path}");
        }
    }
    // Without waiting it arrives all the same.
    is_hit(&two, "/a").await;
    purge(&one, json!({ "hosts": ["a.example"], "soft": true })).await;
    soon("the purge", async {
        while !get_of(two.web(), "a.example", "/a").await.header("cache-status").unwrap().contains("stale") {}
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_hears_what_it_has_missed() {
    let Some(redis) = Redis::on_a_free_port() else { return };
    let origin = counting().await;
    let (one, two) = (node_of("one", redis.address, &origin), node_of("two", redis.address, &origin));
    connected(&[&one, &two], true).await;
    for path in ["/a", "/b"] {
        is_hit(&two, path).await;
    }
    let (folder, address) = redis.stop();
    connected(&[&one, &two], false).await;
    let ready = send(two.admin(), "GET", "/v1/ready", "host: localhost\r\n", "").await;
    assert_eq!(ready.status, 200);
    assert!(ready.text().contains("Redis is away"), "{}", ready.text());

    // The node goes on, and its purge waits.
    let order = json!({ "urls": ["a.example/a"], "wait": "cluster" }).to_string();
    let late = soon("an answer", post(&one, "/v1/cache/purge", JSON, &order)).await;
    assert_eq!(late.status, 504, "{}", late.text());
    assert!(late.text().contains("the purge is published when it can"), "{}", late.text());
    assert!(is_hit(&two, "/a").await, "nobody has told it yet");
    assert_eq!(stats(&one).await["waiting"], 1);

    let _redis = Redis::start(folder, address).unwrap();
    soon("the purge", async { while is_hit(&two, "/a").await {} }).await;
    assert!(is_hit(&two, "/b").await, "nothing else was purged");
    assert_eq!(stats(&two).await["gaps"], 0);
    connected(&[&one, &two], true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_redis_has_lost_counts_as_everything() {
    let Some(redis) = Redis::on_a_free_port() else { return };
    let origin = counting().await;
    let (one, two) = (node_of("one", redis.address, &origin), node_of("two", redis.address, &origin));
    connected(&[&one, &two], true).await;
    purge(&one, json!({ "urls": ["a.example/other"], "wait": "cluster" })).await;
    is_hit(&two, "/a").await;
    assert!(is_hit(&two, "/a").await);
    let (_, address) = redis.stop();
    connected(&[&two], false).await;
    let _redis = Redis::start(TempDir::new().unwrap(), address).unwrap();
    connected(&[&two], true).await;
    assert!(!is_hit(&two, "/a").await, "nobody knows what was purged meanwhile");
    assert_eq!(stats(&two).await["gaps"], 1);
    drop(one);
}
