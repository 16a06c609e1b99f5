//! Who answers for a route besides one upstream: shares of several, the files of a folder; and what a route has otherwise than its listener
//! and upstream: limits, time limits, pages of other origins.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use selvedge_tests::h2::H2Client;
use selvedge_tests::{Client, Edge, Origin, Response, soon};
use tempfile::TempDir;

async fn says(word: &'static str) -> Origin {
    Origin::start(move |_| Origin::reply(200, &[], word)).await
}

async fn counts(edge: &Edge, requests: usize, headers: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    let mut client = Client::connect(edge.web()).await;
    for _ in 0..requests {
        let answer = client.request(&format!("GET / HTTP/1.1\r\nhost: a\r\n{headers}\r\n")).await;
        assert_eq!(answer.status, 200);
        *counts.entry(answer.text()).or_default() += 1;
    }
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_shared_by_numbers_and_clients_stay_where_they_are() {
    let (one, other) = (says("one").await, says("other").await);
    let split = |split: &str| {
        format!(
            "upstreams:
  one: {{ endpoints: [\"127.0.0.1:${{PORT_one}}\"] }}
  other: {{ endpoints: [\"127.0.0.1:${{PORT_other}}\"] }}
sites: [{{ hosts: [\"*\"], routes: [{{ split: {split} }}] }}]"
        )
    };
    let origins = [("one", one.address()), ("other", other.address())];
    let edge = Edge::start(&split("{ upstreams: { one: 3, other: 1 } }"), &origins);
    let counted = counts(&edge, 2000, "").await;
    // 1500 are expected; 4 standard deviations are 77.
    assert!((1420..=1580).contains(&counted["one"]), "{counted:?}");

    let edge = Edge::start(&split("{ upstreams: { one: 1, other: 1 }, by: \"cookie:uid\" }"), &origins);
    let mut of_users = BTreeMap::new();
    for user in 0..60 {
        let counted = counts(&edge, 3, &format!("cookie: uid=user-{user}\r\n")).await;
        assert_eq!(counted.len(), 1, "a user stays: {counted:?}");
        *of_users.entry(counted.keys().next().unwrap().clone()).or_insert(0) += 1;
    }
    assert!(of_users.len() == 2 && of_users.values().all(|users| *users >= 12), "{of_users:?}");

    let edge = Edge::start(&split("{ upstreams: { one: 1, other: 0 } }"), &origins);
    assert_eq!(counts(&edge, 20, "").await["one"], 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_routes_limits_stand_in_place_of_the_listeners_and_the_upstreams() {
    let origin = Origin::start(|request| Origin::reply(200, &[], request.body.len().to_string())).await;
    let (silent, _task) = Origin::raw(|mut stream| async move {
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await;
    let yaml = "version: 1
node: { name: edge, workers: 1, shutdown_grace: 1s, module_cache: off }
telemetry: { access_log: { output: off } }
listeners: { web: { bind: \"127.0.0.1:0\", limits: { body: 1KiB } } }
filters: { noop: { wasm: \"file:${GUESTS}/noop.wasm\", limits: { deadline: 5s } } }
upstreams:
  app: { endpoints: [\"127.0.0.1:${PORT_app}\"] }
  silent: { endpoints: [\"127.0.0.1:${PORT_silent}\"] }
sites:
  - hosts: [\"*\"]
    routes:
      - { name: usual, to: app }
      - { name: more, match: { path: /more/* }, limits: { body: 1MiB }, to: app }
      - { name: filtered, match: { path: /filtered/* }, limits: { body: 1MiB }, filters: [noop], to: app }
      - { name: less, match: { path: /less/* }, limits: { body: 10B }, to: app }
      - { name: first, match: { path: /first }, timeouts: { first_byte: 200ms }, to: silent }
      - { name: read, match: { path: /read }, timeouts: { read: 200ms }, to: silent }
      - { name: total, match: { path: /total }, timeouts: { total: 200ms }, to: silent }
";
    let edge = Edge::start(&format!("\n{yaml}"), &[("app", origin.address()), ("silent", silent)]);
    let web = edge.listener("web");
    let body = vec![b'x'; 100_000];
    for (path, length, expected) in [
        ("/", 1024, 200),
        ("/", 1025, 413),
        ("/more/", 100_000, 200),
        ("/filtered/", 100_000, 200),
        ("/less/", 10, 200),
        ("/less/", 11, 413),
    ] {
        assert_eq!(Client::post(web, path, "", &body[..length]).await.status, expected, "{path} {length}");
    }
    // Of a length that is not announced.
    for (path, expected) in [("/", 413), ("/more/", 200), ("/filtered/", 200)] {
        let mut client = Client::connect(web).await;
        client.send(format!("POST {path} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").as_bytes()).await;
        client.send(format!("800\r\n{}\r\n0\r\n\r\n", "x".repeat(2048)).as_bytes()).await;
        assert_eq!(soon("an answer", client.response("POST")).await.status, expected, "{path}");
    }
    for path in ["/first", "/read", "/total"] {
        let answer = soon("an answer", Client::get(web, path)).await;
        let why = answer.header("proxy-status");
        assert_eq!((answer.status, why), (504, Some("edge; error=connection_read_timeout")), "{path}");
    }
}

/// A folder with some files.
fn folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        std::fs::File::options().append(true).open(&path).unwrap().set_modified(modified).unwrap();
    };
    write("index.html", "home");
    write("app.js", "plain script");
    write("app.js.br", "brotli");
    write("app.js.gz", "gzip");
    write("with space/a b.txt", "spaced");
    write("docs/index.html", "docs");
    write("empty/nothing.txt", "");
    write(".env", "secret");
    write(".well-known/security.txt", "contact");
    std::os::unix::fs::symlink("app.js", folder.path().join("inside.js")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", folder.path().join("outside")).unwrap();
    std::os::unix::fs::symlink("..", folder.path().join("up")).unwrap();
    folder
}

fn serving(folder: &Path, more: &str) -> String {
    format!(
        "filters: {{ noop: {{ wasm: \"file:${{GUESTS}}/noop.wasm\", limits: {{ deadline: 5s }} }} }}
sites:
  - hosts: [\"*\"]
    headers: {{ response: {{ set: {{ x-ours: yes }} }} }}
    routes:
      - {{ name: all, files: {{ root: \"{root}\"{more} }} }}
      - {{ name: below, match: {{ path: /static/* }}, files: {{ root: \"{root}\" }} }}
      - {{ name: filtered, match: {{ path: /filtered/* }}, filters: [noop], files: {{ root: \"{root}\" }} }}
",
        root = folder.display()
    )
}

async fn ask(edge: &Edge, method: &str, path: &str, headers: &str) -> Response {
    let mut client = Client::connect(edge.web()).await;
    client.send(format!("{method} {path} HTTP/1.1\r\nhost: a\r\n{headers}\r\n").as_bytes()).await;
    client.response(method).await
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_folder_are_sent_and_nothing_else_is() {
    let folder = folder();
    let edge = Edge::start(&serving(folder.path(), ""), &[]);
    for (path, status, body) in [
        ("/", 200, "home"),
        ("/index.html", 200, "home"),
        ("/app.js?v=1", 200, "plain script"),
        ("/static/app.js", 200, "plain script"),
        ("/static/", 200, "home"),
        ("/filtered/app.js", 200, "plain script"),
        ("/with%20space/a%20b.txt", 200, "spaced"),
        ("/docs/", 200, "docs"),
        ("/empty/nothing.txt", 200, ""),
        ("/.well-known/security.txt", 200, "contact"),
        ("/inside.js", 200, "plain script"),
        ("/empty/", 404, "404 Not Found\n"),
        ("/empty", 404, "404 Not Found\n"),
        ("/none", 404, "404 Not Found\n"),
        ("/app.js/", 404, "404 Not Found\n"),
        ("/app.js/x", 404, "404 Not Found\n"),
        ("/.env", 404, "404 Not Found\n"),
        ("/outside", 404, "404 Not Found\n"),
        ("/up/etc/passwd", 404, "404 Not Found\n"),
        ("/static/%2e%2e/%2e%2e/etc/passwd", 400, ""),
        ("/a%00b", 400, ""),
    ] {
        let answer = ask(&edge, "GET", path, "").await;
        assert_eq!(answer.status, status, "{path}");
        if status != 400 {
            assert_eq!((answer.text().as_str(), answer.header("x-ours")), (body, Some("yes")), "{path}");
        }
    }
    let there = ask(&edge, "GET", "/docs?a=b", "").await;
    assert_eq!((there.status, there.header("location")), (308, Some("/docs/?a=b")));

    let answer = ask(&edge, "GET", "/app.js", "").await;
    assert_eq!(answer.header("content-type"), Some("text/javascript; charset=utf-8"));
    assert_eq!(answer.header("last-modified"), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
    assert_eq!((answer.header("content-length"), answer.header("accept-ranges")), (Some("12"), Some("bytes")));
    let head = ask(&edge, "HEAD", "/app.js", "").await;
    assert_eq!((head.status, head.header("content-length"), head.text().as_str()), (200, Some("12"), ""));
    let post = ask(&edge, "POST", "/app.js", "content-length: 0\r\n").await;
    assert_eq!((post.status, post.header("allow")), (405, Some("GET, HEAD, OPTIONS")));
    assert_eq!(ask(&edge, "OPTIONS", "/app.js", "").await.status, 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_ranges_and_encodings_of_files() {
    let folder = folder();
    let edge = Edge::start(&serving(folder.path(), ", precompressed: [br, gzip]"), &[]);
    let plain = ask(&edge, "GET", "/app.js", "").await;
    let etag = plain.header("etag").unwrap().to_owned();
    assert_eq!((plain.header("vary"), plain.header("content-encoding")), (Some("Accept-Encoding"), None));

    let same = ask(&edge, "GET", "/app.js", &format!("if-none-match: {etag}\r\n")).await;
    assert_eq!((same.status, same.text().as_str(), same.header("etag")), (304, "", Some(etag.as_str())));
    let part = ask(&edge, "GET", "/app.js", &format!("range: bytes=6-8\r\nif-range: {etag}\r\n")).await;
    assert_eq!((part.status, part.text().as_str()), (206, "scr"));
    assert_eq!(part.header("content-range"), Some("bytes 6-8/12"));
    let none = ask(&edge, "GET", "/app.js", "range: bytes=12-\r\n").await;
    assert_eq!((none.status, none.header("content-range")), (416, Some("bytes */12")));
    assert_eq!(ask(&edge, "GET", "/app.js", "if-match: \"other\"\r\n").await.status, 412);
    for range in ["bytes=6-8", "bytes=12-"] {
        let head = ask(&edge, "HEAD", "/app.js", &format!("range: {range}\r\n")).await;
        assert_eq!((head.status, head.header("content-length")), (200, Some("12")), "ranges are for GET alone");
    }

    let mut etags = vec![etag];
    for (accepted, body, encoding) in [("gzip", "gzip", "gzip"), ("gzip, br", "brotli", "br")] {
        let answer = ask(&edge, "GET", "/app.js", &format!("accept-encoding: {accepted}\r\n")).await;
        assert_eq!((answer.text().as_str(), answer.header("content-encoding")), (body, Some(encoding)));
        assert_eq!(answer.header("content-type"), Some("text/javascript; charset=utf-8"));
        etags.push(answer.header("etag").unwrap().to_owned());
    }
    etags.dedup();
    assert_eq!(etags.len(), 3, "each encoding is a version of its own: {etags:?}");
    // A part of what is compressed, under the name of that version.
    let brotli = etags.last().expect("just seen").clone();
    let fields = format!("accept-encoding: br\r\nrange: bytes=1-3\r\nif-range: {brotli}\r\n");
    let part = ask(&edge, "GET", "/app.js", &fields).await;
    assert_eq!((part.status, part.text().as_str(), part.header("content-range")), (206, "rot", Some("bytes 1-3/6")));
    assert_eq!((part.header("content-encoding"), part.header("etag")), (Some("br"), Some(brotli.as_str())));
    let other = ask(&edge, "GET", "/app.js", &format!("range: bytes=1-3\r\nif-range: {brotli}\r\n")).await;
    assert_eq!((other.status, other.text().as_str()), (200, "plain script"), "another version");
    let same = ask(&edge, "GET", "/app.js", &format!("accept-encoding: br\r\nif-none-match: {brotli}\r\n")).await;
    assert_eq!((same.status, same.header("vary")), (304, Some("Accept-Encoding")));
    let only_plain = ask(&edge, "GET", "/docs/", "accept-encoding: br\r\n").await;
    assert_eq!((only_plain.text().as_str(), only_plain.header("content-encoding")), ("docs", None));
}

#[tokio::test(flavor = "multi_thread")]
async fn large_files_pass_whole_over_both_protocols_and_a_page_may_stand_for_what_is_not_there() {
    let folder = folder();
    let large: Vec<u8> = (0..3_000_001_u32).map(|index| u8::try_from(index % 251).unwrap()).collect();
    std::fs::write(folder.path().join("large.bin"), &large).unwrap();
    let edge = Edge::start(&serving(folder.path(), ", fallback: index.html"), &[]);
    assert!(ask(&edge, "GET", "/large.bin", "").await.body == large);
    assert!(ask(&edge, "GET", "/filtered/large.bin", "").await.body == large);
    let h2 = H2Client::connect(edge.web()).await;
    assert!(h2.request("GET", "/large.bin", &[], b"").await.unwrap().body == large);
    let part = h2.request("GET", "/large.bin", &[("range", "bytes=-1000000")], b"").await.unwrap();
    assert!(part.status == 206 && part.body == large[2_000_001..]);

    let page = ask(&edge, "GET", "/app/users/7", "").await;
    assert_eq!((page.status, page.text().as_str()), (200, "home"));
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let missing = Edge::try_start(&serving(Path::new("/nowhere"), ""), &[]).err().expect("refused").to_string();
    assert!(missing.contains("files cannot be served from /nowhere: No such file or directory"), "{missing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_origins_are_told_what_they_may() {
    let origin = Origin::start(|request| match request.target.as_str() {
        "/bare/break" => Origin::reply(500, &[("access-control-allow-origin", "*")], "broken"),
        _ => Origin::reply(200, &[("access-control-allow-origin", "*"), ("vary", "Accept")], "fine"),
    })
    .await;
    let yaml = "filters:
  noop: { wasm: \"file:${GUESTS}/noop.wasm\", limits: { deadline: 5s } }
  deny: { wasm: \"builtin:jwt-auth\", config: { secret: 0123456789abcdef0123456789abcdef } }
upstreams: { app: { endpoints: [\"127.0.0.1:${PORT_app}\"] }, dead: { endpoints: [\"127.0.0.1:1\"] } }
sites:
  - hosts: [\"*\"]
    routes:
      - &bare
        name: bare
        match: { path: /bare/* }
        cors:
          origins: [https://app.test, \"https://*.apps.test\"]
          methods: [PUT]
          headers: [content-type, authorization]
          expose: [x-count]
          credentials: true
          max_age: 10m
        to: app
      - { name: filtered, match: { path: /filtered/* }, cors: { origins: [https://app.test] }, filters: [noop], to: app }
      - { name: denied, match: { path: /denied/* }, cors: { origins: [https://app.test] }, filters: [deny], to: app }
      - { name: dead, match: { path: /dead/* }, cors: { origins: [https://app.test] }, to: dead }
      - { name: any, match: { path: /any/* }, cors: { origins: [\"*\"] }, respond: { status: 200 } }
";
    let edge = Edge::start(&yaml.replace("      - &bare\n        name", "      - name"), &[("app", origin.address())]);
    let asks = "origin: https://app.test\r\naccess-control-request-method: PUT\r\n";
    for path in ["/bare/", "/filtered/", "/denied/", "/dead/"] {
        let answer = ask(&edge, "OPTIONS", path, asks).await;
        assert_eq!(answer.status, 204, "{path}");
        assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.test"), "{path}");
    }
    assert_eq!(origin.started(), 0, "preflights stay here");
    let answer = ask(&edge, "OPTIONS", "/bare/", asks).await;
    for (name, value) in [
        ("access-control-allow-methods", "PUT"),
        ("access-control-allow-headers", "content-type, authorization"),
        ("access-control-allow-credentials", "true"),
        ("access-control-max-age", "600"),
        ("vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
    ] {
        assert_eq!(answer.header(name), Some(value));
    }
    let stranger = asks.replace("app.test", "evil.test");
    let refused = ask(&edge, "OPTIONS", "/bare/", &stranger).await;
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (403, None));
    assert_eq!(ask(&edge, "OPTIONS", "/bare/", "").await.status, 200, "no preflight: it goes on");

    for (path, asking, status, allowed) in [
        ("/bare/", "https://app.test", 200, Some("https://app.test")),
        ("/bare/", "https://a.apps.test", 200, Some("https://a.apps.test")),
        ("/bare/", "https://a.b.apps.test", 200, None),
        ("/bare/", "https://apps.test", 200, None),
        ("/bare/", "http://app.test", 200, None),
        ("/bare/", "null", 200, None),
        ("/bare/break", "https://app.test", 500, Some("https://app.test")),
        ("/filtered/", "https://app.test", 200, Some("https://app.test")),
        ("/filtered/", "https://evil.test", 200, None),
        ("/denied/", "https://app.test", 401, Some("https://app.test")),
        ("/dead/", "https://app.test", 502, Some("https://app.test")),
        ("/any/", "https://whoever.test", 200, Some("*")),
    ] {
        let answer = ask(&edge, "GET", path, &format!("origin: {asking}\r\n")).await;
        assert_eq!(answer.status, status, "{path} {asking}");
        assert_eq!(answer.header("access-control-allow-origin"), allowed, "{path} {asking}");
        let all: Vec<_> = answer.headers.iter().filter(|(name, _)| name == "access-control-allow-origin").collect();
        assert!(all.len() <= 1, "the origin's own word is replaced: {all:?}");
        let varies = answer.headers.iter().any(|(name, value)| name == "vary" && value == "Origin");
        assert_eq!(varies, path != "/any/", "{path}");
    }
    let answer = ask(&edge, "GET", "/bare/", "origin: https://app.test\r\n").await;
    assert_eq!(answer.header("access-control-expose-headers"), Some("x-count"));
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_requests_go_elsewhere_and_nobody_waits_for_them() {
    let app = says("app").await;
    let shadow = Origin::start(|_| Origin::reply(500, &[], "shadow")).await;
    let (silent, _task) = Origin::raw(|mut stream| async move {
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await;
    let yaml = "filters: { noop: { wasm: \"file:${GUESTS}/noop.wasm\", limits: { deadline: 5s } } }
upstreams:
  app: { endpoints: [\"127.0.0.1:${PORT_app}\"] }
  shadow: { endpoints: [\"127.0.0.1:${PORT_shadow}\"] }
  silent: { endpoints: [\"127.0.0.1:${PORT_silent}\"] }
sites:
  - hosts: [\"*\"]
    headers: { request: { set: { x-node: here } } }
    routes:
      - { name: all, mirror: { to: shadow }, rewrite: { prefix: /there }, to: app }
      - { name: filtered, match: { path: /filtered/* }, filters: [noop], mirror: { to: shadow }, to: app }
      - { name: some, match: { path: /some }, mirror: { to: shadow, share: 20% }, to: app }
      - { name: slow, match: { path: /slow }, mirror: { to: silent }, to: app }
";
    let origins = [("app", app.address()), ("shadow", shadow.address()), ("silent", silent)];
    let edge = Edge::start(yaml, &origins);
    assert_eq!(Client::get(edge.web(), "/a?b").await.text(), "app");
    selvedge_tests::until("a copy has come", || shadow.received().len() == 1).await;
    let copied = shadow.last();
    assert_eq!((copied.method.as_str(), copied.target.as_str()), ("GET", "/there/a?b"));
    assert_eq!((copied.header("x-node"), copied.header("host")), (Some("here"), Some("test")));

    for path in ["/", "/filtered/"] {
        let before = shadow.received().len();
        assert_eq!(Client::post(edge.web(), path, "", &[b'x'; 60_000]).await.text(), "app");
        selvedge_tests::until("a copy has come", || shadow.received().len() == before + 1).await;
        let copied = shadow.last();
        assert_eq!((copied.method.as_str(), copied.body.len()), ("POST", 60_000), "{path}");
        assert_eq!(Client::post(edge.web(), path, "", &[b'x'; 70_000]).await.text(), "app", "not copied: too long");
    }
    let before = shadow.received().len();
    assert_eq!(before, 3);
    let mut client = Client::connect(edge.web()).await;
    for _ in 0..500 {
        assert_eq!(client.request("GET /some HTTP/1.1\r\nhost: a\r\n\r\n").await.text(), "app");
    }
    // A hundred are expected; 4 standard deviations are 36.
    selvedge_tests::until("a share has come", || shadow.received().len() >= before + 64).await;
    for _ in 0..40 {
        assert_eq!(Client::get(edge.web(), "/slow").await.text(), "app", "nobody waits");
    }
    let before = shadow.received().len();
    assert!(before <= 3 + 136, "{before}");
    for _ in 0..10 {
        assert_eq!(Client::get(edge.web(), "/").await.text(), "app");
    }
    assert_eq!(shadow.received().len(), before, "too many are under way: those that nobody answers");
}
