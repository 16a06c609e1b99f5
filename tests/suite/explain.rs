//! Questions about a configuration, asked of the program without a node: `route explain`, `test`, `config show`.

use std::path::Path;
use std::process::{Command, Output};

use selvedge_tests::{Client, Edge};
use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_selvedge-under-test");

fn selvedge(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).current_dir(folder).output().expect("the program runs")
}

fn folder_with(config: &str) -> TempDir {
    let folder = TempDir::new().expect("a folder");
    std::fs::write(folder.path().join("config.yaml"), config).expect("written");
    folder
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

const CONFIG: &str = r#"version: 1
node: { module_cache: off, workers: 1, trusted_proxies: [10.0.0.0/8] }
listeners:
  web: { bind: "127.0.0.1:8080" }
  inner: { bind: "127.0.0.1:8081" }
  secure: { bind: "127.0.0.1:8443", tls: { certificates: development } }
geo: { database: "builtin:test" }
cache: { memory: { size: 16MiB } }
upstreams:
  demo: { builtin: demo }
  shop:
    endpoints: [192.0.2.1:80, { addr: 192.0.2.2:80, weight: 3 }, 192.0.2.3:80]
    balance: { consistent_hash: { by: header:x-user } }
  named: { endpoints: [app.internal.test:8080] }
filters:
  limit: { wasm: builtin:rate-limit, config: { rate: 5/min, burst: 5 } }
sites:
  - hosts: [shop.test]
    routes:
      - name: products
        match: { path: /products/*, method: [GET, HEAD] }
        cache: { key: { query: { only: [id] }, device: true, headers: [x-user, x-none] } }
        rewrite: { prefix: /v2, host: backend.test }
        to: shop
      - { name: products-for-writers, match: { path: /products/* }, filters: [limit: { burst: 7 }], to: shop }
      - { name: german, match: { path: /products/*, method: [GET], geo: { country: [DE] }, header: { x-key: topsecretvalue } }, to: named }
      - { name: old, match: { path: /old }, redirect: { to: "https://${host}/new?${query}", status: 301 } }
      - { name: hello, match: { path: /hello }, respond: { status: 203, body: "hi" } }
  - { hosts: ["*.shop.test"], listeners: [inner], routes: [{ name: all, to: named }] }
"#;

fn explain(folder: &TempDir, arguments: &[&str]) -> (Option<i32>, Value) {
    let output = selvedge(folder.path(), &[&["route", "explain", "--json"], arguments].concat());
    let told = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
    (output.status.code(), told)
}

#[test]
fn a_route_is_told_with_all_that_follows_from_it() {
    let folder = folder_with(CONFIG);
    let (code, told) = explain(
        &folder,
        &["http://Shop.test:8080/a/../products//7?utm=1&id=9", "-H", "x-user: ada", "-H", "x-key: topsecretvalue"],
    );
    assert_eq!(code, Some(0), "{told:#}");
    assert_eq!(told["listener"], "web");
    assert_eq!(told["normalised"], "/products/7?utm=1&id=9");
    assert_eq!(told["site"]["name"], "shop.test");
    assert_eq!(told["site"]["by"], "exact");
    assert_eq!(told["route"]["name"], "products");
    assert_eq!(told["route"]["written_at"], "config.yaml:20", "{told:#}");
    let candidates: Vec<_> = told["candidates"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["route"].as_str().unwrap(), one["taken"] == true))
        .collect();
    assert_eq!(candidates, [("german", false), ("products", true), ("products-for-writers", false)]);
    assert_eq!(told["candidates"][0]["holds"], serde_json::json!(["method GET", "header x-key"]));
    assert_eq!(told["candidates"][0]["fails"], serde_json::json!(["geo.country DE"]));
    assert_eq!(told["elsewhere"].as_array().unwrap().len(), 2);
    let upstream = &told["answer"]["upstream"];
    assert_eq!(upstream["name"], "shop");
    assert_eq!(upstream["path"], "/v2/7?utm=1&id=9");
    assert_eq!(upstream["host"], "backend.test");
    assert_eq!(upstream["endpoints"].as_array().unwrap().len(), 3);
    assert_eq!(upstream["bound"]["by"], "consistent hashing");
    let bound = upstream["bound"]["endpoint"].as_str().unwrap();
    assert!(bound.starts_with("192.0.2."), "{bound}");
    assert_eq!(
        told["cache"]["key"]["of"],
        "http://shop.test:8080/products/7?id=9 header.x-user=<its value> header.x-none=none device=desktop"
    );
    assert!(!told.to_string().contains("topsecretvalue"), "{told:#}");

    // What does not count does not change the key; another user may go elsewhere, the same one never.
    let (_, same) = explain(&folder, &["http://shop.test:8080/products/7?id=9&utm=2", "-H", "x-user: ada"]);
    assert_eq!(same["cache"], told["cache"]);
    assert_eq!(same["answer"]["upstream"]["bound"]["endpoint"], bound);
    let (_, other) = explain(&folder, &["http://shop.test:8080/products/7?id=10"]);
    assert_ne!(other["cache"], told["cache"]);
}

#[test]
fn who_asks_and_how_decides_and_is_told() {
    let folder = folder_with(CONFIG);
    let with_key = ["-H", "x-key: topsecretvalue"];
    let url = "http://shop.test/products/7";
    let route = |arguments: &[&str]| {
        let (code, told) = explain(&folder, &[&[url], arguments].concat());
        (code, told["route"]["name"].as_str().unwrap_or_default().to_owned(), told)
    };
    let (_, name, told) = route(&[&with_key[..], &["--country", "DE"]].concat());
    assert_eq!((name.as_str(), told["country"].as_str()), ("german", Some("DE")));
    assert_eq!(told["cache"]["unused"], "the route has no `cache`");
    assert_eq!(told["answer"]["upstream"]["endpoints"][0]["address"], "app.internal.test:8080");
    assert_eq!(route(&[&with_key[..], &["--client", "192.0.2.77"]].concat()).1, "german");
    assert_eq!(route(&[&with_key[..], &["--client", "198.51.100.1"]].concat()).1, "products");
    // A trusted proxy says for whom it asks; nobody else is believed.
    let forwarded = [&with_key[..], &["-H", "x-forwarded-for: 192.0.2.9"]].concat();
    assert_eq!(route(&[&forwarded[..], &["--client", "10.1.2.3"]].concat()).1, "german");
    assert_eq!(route(&[&forwarded[..], &["--client", "11.1.2.3"]].concat()).1, "products");

    let (code, name, told) = route(&["-X", "POST"]);
    assert_eq!((code, name.as_str()), (Some(0), "products-for-writers"));
    assert_eq!(told["filters"], serde_json::json!([{ "name": "limit", "settings": ["burst", "rate"] }]));
    assert_eq!(told["candidates"][1]["fails"], serde_json::json!(["method GET, HEAD"]));
    let (_, _, told) = route(&["-H", "if-match: x"]);
    assert!(told["cache"]["unused"].as_str().unwrap().contains("only the origin"), "{told:#}");
}

#[test]
fn what_the_node_answers_itself_is_told() {
    let folder = folder_with(CONFIG);
    let (code, told) = explain(&folder, &["https://shop.test/old?a=b"]);
    assert_eq!((code, told["listener"].as_str()), (Some(0), Some("secure")));
    assert_eq!(
        told["answer"]["redirect"],
        serde_json::json!({ "status": 301, "location": "https://shop.test/new?a=b" })
    );
    let (_, told) = explain(&folder, &["http://shop.test/hello"]);
    assert_eq!(told["answer"]["respond"], serde_json::json!({ "status": 203, "body_bytes": 2 }));

    let (code, told) = explain(&folder, &["http://shop.test/nowhere"]);
    assert_eq!((code, &told["refused"]["status"]), (Some(1), &Value::from(404)));
    assert_eq!(told["elsewhere"].as_array().unwrap().len(), 5);
    // That site is on another listener.
    assert_eq!(explain(&folder, &["http://a.shop.test/"]).0, Some(1));
    let (code, told) = explain(&folder, &["http://a.shop.test/", "--listener", "inner"]);
    assert_eq!((code, told["site"]["by"].as_str()), (Some(0), Some("wildcard")));
    assert_eq!(explain(&folder, &["http://a.shop.test:8081/"]).0, Some(0), "by its port");
}

#[test]
fn questions_that_nobody_can_ask_are_one_clear_sentence() {
    let folder = folder_with(CONFIG);
    for (arguments, expected) in [
        (&["ftp://shop.test/"][..], "neither a URL"),
        (&["http://shop.test/", "--listener", "webb"], "inner, secure, web"),
        (&["http://shop.test/", "--country", "AQ"], "no address in AQ"),
        (&["http://shop.test/", "--country", "Germany"], "not the code"),
        (&["http://shop.test/", "-X", "GET /x"], "the method"),
        (&["http://shop.test/", "-H", "x"], "name: value"),
        (&["http://shop.test/", "-H", "x: a\nb"], "a header"),
        (&["http://shop.test/", "--client", "1.2.3.4", "--country", "DE"], "cannot be used with"),
        (&["http://shop.test/", "-c", "nowhere.yaml"], "nowhere.yaml"),
    ] {
        let output = selvedge(folder.path(), &[&["route", "explain"], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(expected), "{arguments:?}: {}", text(&output.stderr));
    }
}

#[test]
fn people_can_read_it() {
    let folder = folder_with(CONFIG);
    let output =
        selvedge(folder.path(), &["route", "explain", "http://shop.test/products/7?id=1", "-H", "x-user: ada"]);
    let told = text(&output.stdout);
    for expected in [
        "request    GET /products/7?id=1 on listener web from 127.0.0.1",
        "route      products (config.yaml:20)",
        "german (path /products/*): does not match",
        "fails: geo.country DE",
        "products-for-writers (path /products/*): would match, but is less specific",
        "upstream   shop gets GET /v2/7?id=1 for host backend.test",
        "by consistent hashing: 192.0.2.",
        "cache key  http://shop.test/products/7?id=1 header.x-user=<its value> header.x-none=none device=desktop",
    ] {
        assert!(told.contains(expected), "{expected} is not in:\n{told}");
    }
}

/// The same questions, to the program and to a node: both say the same, refusals included.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_explained_is_what_happens() {
    let routes = "sites:
  - hosts: [a.test]
    routes:
      - { name: root, respond: { status: 200, body: root } }
      - { name: deep, match: { path: /a/b/* }, respond: { status: 200, body: deep } }
      - { name: glob, match: { path: \"/a/*/c\" }, respond: { status: 200, body: glob } }
      - { name: regex, match: { path: \"~^/a/[0-9]+$\" }, respond: { status: 200, body: regex } }
      - { name: exact, match: { path: /a/b/c }, respond: { status: 200, body: exact } }
      - { name: post, match: { path: /a/b/c, method: [POST] }, respond: { status: 200, body: post } }
";
    let edge = Edge::start(routes, &[]);
    let listeners = "version: 1\nnode: { module_cache: off }\nlisteners: { web: { bind: \"127.0.0.1:8080\" } }\n";
    let folder = folder_with(&format!("{listeners}{routes}"));
    for (method, target, header) in [
        ("GET", "/", "x: y"),
        ("GET", "/a/b/c", "x: y"),
        ("POST", "/a/b/c", "content-length: 0"),
        ("GET", "/a/b/c/d", "x: y"),
        ("GET", "/a//b/./x/../c", "x: y"),
        ("GET", "/a/x/c", "x: y"),
        ("GET", "/a/12", "x: y"),
        ("GET", "/a/%31%32", "x: y"),
        ("GET", "/..", "x: y"),
        ("GET", "/a/..;/b", "x: y"),
        ("GET", "/%zz", "x: y"),
        ("GET", "/", "host: b.test"),
        ("GET", "/", "host: a b"),
        ("GET", "/", "content-length: 1, 1"),
        ("GET", "/", "transfer-encoding: gzip"),
        ("GET", "/", "connection: cookie"),
        ("CONNECT", "/", "x: y"),
    ] {
        let url = format!("http://a.test{target}");
        let (code, told) = explain(&folder, &[&url, "-X", method, "-H", header]);
        let host = if header.starts_with("host") { "" } else { "host: a.test\r\n" };
        let request = format!("{method} {target} HTTP/1.1\r\n{host}{header}\r\nconnection: close\r\n\r\n");
        let request =
            if header.starts_with("connection") { request.replace("connection: close\r\n", "") } else { request };
        let answer = Client::connect(edge.web()).await.request(&request).await;
        match told["route"]["name"].as_str() {
            Some(route) => {
                assert_eq!((answer.status, &*answer.text(), code), (200, route, Some(0)), "{method} {target} {header}")
            }
            None => assert_eq!(
                (Value::from(answer.status), code),
                (told["refused"]["status"].clone(), Some(1)),
                "{method} {target} {header}: {told:#}"
            ),
        }
    }
}

const TESTED: &str = r#"version: 1
node: { module_cache: CACHE, workers: 1, trusted_proxies: [10.0.0.0/8] }
listeners:
  web: { bind: "127.0.0.1:8080" }
  secure: { bind: "127.0.0.1:8443", tls: { certificates: development } }
  late: { bind: "127.0.0.1:8081", protocols: [h2] }
geo: { database: "builtin:test" }
cache: { memory: { size: 16MiB } }
include: [more.yaml]
upstreams:
  demo: { builtin: demo }
  shop: { endpoints: [192.0.2.1:80], tls: {}, retries: { attempts: 1 } }
  named: { endpoints: [app.internal.test:8080], health_check: { http: { path: / } }, protocol: h2 }
filters:
  jwt: { wasm: builtin:jwt-auth, limits: { deadline: 20s, cpu: 10s }, config: { secret: 0123456789abcdef0123456789abcdef } }
  limit: { wasm: builtin:rate-limit, limits: { deadline: 20s, cpu: 10s }, config: { rate: 1/h, burst: 1 } }
  geo: { wasm: builtin:geo-routing, limits: { deadline: 20s, cpu: 10s }, config: { unknown: allow, response_header: x-country } }
sites:
  - hosts: [shop.test]
    headers: { response: { set: { x-node: edge } } }
    routes:
      - { name: products, match: { path: /products/*, method: [GET, HEAD] }, cache: { key: { query: { only: [id] } }, ttl: 1h }, rewrite: { prefix: /v2 }, to: shop }
      - { name: members, match: { path: /members/* }, filters: [jwt], to: named }
      - { name: limited, match: { path: /limited }, filters: [limit], respond: { status: 200, body: fine } }
      - { name: countries, match: { path: /where }, filters: [geo], to: demo }
      - { name: old, match: { path: /old }, redirect: { to: "/new", status: 301 } }
"#;

const PASSING: &str = r#"tests:
  - name: a product comes from the shop under another path
    request: { url: "http://shop.test:8080/a/../products//7?utm=1&id=9" }
    origins: { shop: { status: 201, headers: { x-from: the-shop, cache-control: no-store }, body: hello } }
    expect:
      route: products
      site: shop.test
      status: 201
      headers: { x-from: the-shop, x-node: edge, via: { regex: "^1.1 " }, x-none: { present: false }, cache-status: { prefix: selvedge } }
      cache_key: "http://shop.test:8080/products/7?id=9"
      upstream: shop
      path: "/v2/7?utm=1&id=9"
  - { name: once more and nothing is left of the first time, request: { url: "http://shop.test:8080/products/7?id=9" }, expect: { upstream: shop, path: "/v2/7?id=9", status: 200 } }
  - { name: what is down is said to be, request: { url: "http://shop.test/products/7" }, origins: { shop: { down: true } }, expect: { status: 502, upstream: shop, path: none, headers: { proxy-status: { regex: connection_refused } } } }
  - { name: strangers are no members, request: { url: "http://shop.test/members/1" }, expect: { route: members, status: 401, upstream: none, path: none, cache_key: none } }
  - name: members are
    request: { url: "http://shop.test/members/1", method: POST, body: "a=b", headers: { authorization: "Bearer TOKEN" } }
    expect: { status: 200, upstream: named, path: /members/1 }
  - { name: the first within the limit, request: { url: "http://shop.test/limited", client: 192.0.2.1 }, expect: { status: 200, upstream: none } }
  - { name: and the first again, request: { url: "http://shop.test/limited", client: 192.0.2.1 }, expect: { status: 200, upstream: none } }
  - { name: somebody from Japan, request: { url: "http://shop.test/where", country: JP }, expect: { upstream: demo, headers: { x-country: JP } } }
  - { name: over a listener for HTTP/2, request: { url: "http://shop.test/limited", listener: late }, expect: { status: 200 } }
  - { name: moved, request: { url: "https://shop.test/old" }, expect: { route: old, status: 301, location: /new } }
  - { name: nobody else is served, request: { url: "http://other.test/" }, expect: { route: none, status: 404 } }
  - { name: out of the root, request: { url: "http://shop.test/../x" }, expect: { route: none, status: 400 } }
  - { name: two lengths, request: { url: "http://shop.test/old", headers: { content-length: "1, 1" } }, expect: { route: none, status: 400 } }
"#;

const FAILING: &str = r#"tests:
  - { name: passes, request: { url: "http://shop.test/old" }, expect: { status: 301 } }
  - name: fails in every way
    request: { url: "http://shop.test/old" }
    expect:
      route: products
      status: 200
      location: /newer
      cache_key: http://x/
      upstream: shop
      path: /y
      headers:
        x-node: other
        location: { present: false }
"#;

fn tested(tests: &str) -> TempDir {
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-modules");
    let folder = folder_with(&TESTED.replace("CACHE", &modules.display().to_string()));
    std::fs::write(folder.path().join("more.yaml"), tests).expect("written");
    folder
}

#[test]
fn tests_of_a_configuration_run_on_its_routes_and_filters() {
    let folder = tested("");
    let minted = selvedge(folder.path(), &["token", "--filter", "jwt"]);
    let token = text(&minted.stdout);
    std::fs::write(folder.path().join("more.yaml"), PASSING.replace("TOKEN", token.trim())).expect("written");
    let output = selvedge(folder.path(), &["test"]);
    let told = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{told}{}", text(&output.stderr));
    assert!(told.contains("13 tests, 0 failed") && told.contains("ok    members are"), "{told}");
}

#[test]
fn what_fails_is_told_with_its_place_and_what_came_instead() {
    let folder = tested(FAILING);
    let output = selvedge(folder.path(), &["test"]);
    let told = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{told}{}", text(&output.stderr));
    for expected in [
        "ok    passes\n",
        "FAIL  fails in every way\n",
        "more.yaml:6:14: route: expected products, got old\n",
        "more.yaml:7:15: status: expected 200, got 301\n",
        "more.yaml:8:17: location: expected /newer, got /new\n",
        "more.yaml:9:18: cache_key: expected http://x/, got none\n",
        "more.yaml:10:17: upstream: expected shop, got none\n",
        "more.yaml:11:13: path: expected /y, got none\n",
        "more.yaml:13:17: headers.x-node: expected other, got edge\n",
        "more.yaml:14:19: headers.location: expected none, got /new\n",
        "2 tests, 1 failed\n",
    ] {
        assert!(told.contains(expected), "{expected} is not in:\n{told}");
    }

    // One that passes, by its name; one that does not exist; a fault.
    assert_eq!(selvedge(folder.path(), &["test", "asse"]).status.code(), Some(0));
    assert_eq!(selvedge(folder.path(), &["test", "nobody"]).status.code(), Some(1));
    std::fs::write(folder.path().join("more.yaml"), FAILING.replace("status: 200", "state: 200")).expect("written");
    for command in ["test", "check"] {
        let output = selvedge(folder.path(), &[command]);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains("more.yaml:7:7"), "{}", text(&output.stderr));
    }
}

/// Every way to give a secret; each of them has `hush` in it. `OPEN` is shown.
const SECRETIVE: &str = r#"version: 1
node:
  module_cache: off
  workers: 1
  shutdown_grace: 1s
  name: ${PART:-a}-node
admin:
  bind: "127.0.0.1:0"
  token: ADMIN_TOKEN
telemetry: { access_log: { output: off }, trace: { header: x-trace, value: hush-0123456789-trace } }
listeners: { web: { bind: "127.0.0.1:0" } }
include: [more.yaml]
upstreams:
  demo: { builtin: demo }
  base:
    endpoints:
      - ${HOST}:80
    timeouts: { connect: 5s }
    balance: least_request
  app: { like: base, endpoints: [192.0.2.1:80], timeouts: { read: 7s } }
filters:
  limit:
    wasm: builtin:rate-limit
    environment: { SOME_VARIABLE: hush-in-the-environment }
    vm_config: { db: { password: hush-vm-password } }
    config: { rate: 5/min, burst: 5 }
  jwt:
    wasm: builtin:jwt-auth
    config: { secret_file: secret.txt, issuer: OPEN-issuer }
  other:
    wasm: builtin:jwt-auth
    config: { secret: hush-0123456789abcdef0123456789abcdef, audience: "for hush-0123456789abcdef0123456789abcdef" }
sites:
  - hosts: ["*"]
    headers: { response: { set: { x-open: "${host}", x-env: "${scheme}" } } }
    routes:
      - name: all
        match: { header: { x-shared-secret: hush-shared }, cookie: { session: hush-session }, query: { access_token: hush-query } }
        filters: [limit: { burst: 9 }, jwt: { secret: hush-9999999999999999999999999999999 }]
        headers: { request: { set: { authorization: "Bearer hush-bearer", x-api-key: hush-api-key } } }
        to: app
"#;

const SECRETIVE_INCLUDE: &str = r#"sites:
  - hosts: [b.test]
    routes:
      - name: made
        headers:
          request:
            set:
              x-made: ${HUSH}
        respond: { status: 200, body: "OPEN-body", headers: { set-cookie: "a=hush-cookie", x-token: hush-token } }
"#;

fn secretive(admin: &str) -> TempDir {
    let folder = folder_with(&SECRETIVE.replace("ADMIN_TOKEN", admin));
    std::fs::write(folder.path().join("more.yaml"), SECRETIVE_INCLUDE).expect("written");
    std::fs::write(folder.path().join("secret.txt"), "hush-secret-file-0123456789abcdef0123456789\n").expect("written");
    folder
}

fn with_secrets(folder: &Path, arguments: &[&str]) -> Output {
    let environment =
        [("PART", "hush-part"), ("HOST", "192.0.2.9"), ("HUSH", "hush-variable"), ("TOKEN", "hush-token-0123456789")];
    Command::new(PROGRAM).args(arguments).current_dir(folder).envs(environment).output().expect("the program runs")
}

#[test]
fn the_effective_configuration_is_shown_without_a_secret() {
    let folder = secretive("${TOKEN}");
    let output = with_secrets(folder.path(), &["config", "show"]);
    let told = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(!told.contains("hush"), "{told}");
    for expected in [
        "name: ${PART:-a}-node\n",
        "token: \"<redacted>\"\n",
        "- ${HOST}:80\n",
        "x-made: ${HUSH}\n",
        "secret_file: secret.txt\n",
        "OPEN-issuer",
        "OPEN-body",
        "x-open: \"${host}\"\n",
        "SOME_VARIABLE: \"<redacted>\"\n",
        "audience: \"<redacted>\"\n",
        "- b.test\n",
        // Filled in.
        "shutdown_grace: \"1s\"\n",
        "uri_length: \"8KiB\"\n",
    ] {
        assert!(told.contains(expected), "{expected} is not in:\n{told}");
    }

    let output = with_secrets(folder.path(), &["config", "show", "--json"]);
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(!told.to_string().contains("hush"), "{told:#}");
    // `like` is followed key by key, settings of filters are merged, what is not written is there.
    let app = &told["upstreams"]["app"];
    assert_eq!((&app["balance"], &app["like"]), (&Value::from("least_request"), &Value::Null));
    assert_eq!(app["timeouts"], serde_json::json!({ "connect": "1s", "read": "7s", "idle": "60s" }));
    assert_eq!(told["upstreams"]["base"]["timeouts"]["connect"], "5s");
    let uses = &told["sites"][0]["routes"][0]["filters"];
    assert_eq!(uses[0]["limit"], serde_json::json!({ "rate": "5/min", "burst": 9 }));
    assert_eq!(uses[1]["jwt"], serde_json::json!({ "issuer": "OPEN-issuer", "secret": "<redacted>" }));
    assert_eq!(told["sites"][1]["hosts"][0], "b.test");
    assert_eq!(told["filters"]["limit"]["on_failure"], "closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_api_shows_the_configuration_in_force() {
    let folder = secretive("operator-hush-0123456789");
    let config = std::fs::read_to_string(folder.path().join("config.yaml")).expect("read");
    let config = config
        .replace("${HOST}", "192.0.2.9")
        .replace("${PART:-a}", "${TMP_PART:-a}")
        .replace("include: [more.yaml]\n", "");
    let config = config.replace("secret_file: secret.txt", "secret: hush-0123456789abcdef0123456789abcde2");
    let edge = Edge::start(&config, &[]);
    let ask = |path: &'static str| {
        let head = format!("GET {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer operator-hush-0123456789\r\n\r\n");
        let admin = edge.admin();
        async move { Client::connect(admin).await.request(&head).await }
    };
    let answer = ask("/v1/config").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(!answer.text().contains("hush"), "{}", answer.text());
    let told = answer.json();
    assert_eq!(
        (&told["generation"], &told["config"]["node"]["name"]),
        (&Value::from(1), &Value::from("${TMP_PART:-a}-node"))
    );
    // What the files say now is not what is in force.
    edge.write(&config.replace("5/min", "6/min"));
    assert_eq!(ask("/v1/config").await.json()["config"]["filters"]["limit"]["config"]["rate"], "5/min");
    let described = ask("/v1/openapi.json").await.json();
    assert!(described["paths"]["/v1/config"]["get"].is_object(), "{described:#}");
    let without =
        Client::connect(edge.admin()).await.request("GET /v1/config HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert_eq!(without.status, 401);
}

const BEFORE: &str = r#"version: 1
node: { module_cache: CACHE, workers: 1 }
admin: { bind: "127.0.0.1:9902", token: hush-hush-0123456789 }
cache: { memory: { size: 16MiB } }
listeners:
  web: { bind: "127.0.0.1:8080" }
  inner: { bind: "127.0.0.1:8081" }
  late: { bind: "127.0.0.1:8082" }
upstreams:
  app: { endpoints: [192.0.2.1:80, 192.0.2.2:80] }
  old: { endpoints: [192.0.2.3:80] }
filters:
  limit: { wasm: builtin:rate-limit, config: { rate: 5/min, burst: 5 } }
  slow: { wasm: builtin:rate-limit, config: { rate: 1/min, burst: 1 } }
  jwt: { wasm: builtin:jwt-auth, config: { secret: hush-0123456789abcdef0123456789abcdef } }
sites:
  - hosts: [a.test]
    routes:
      - { name: home, filters: [limit, slow], to: app }
      - { name: gone, match: { path: /gone }, filters: [jwt], to: old }
"#;

fn diff(before: &str, after: &str, options: &[&str]) -> Output {
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-modules").display().to_string();
    let folder = folder_with(&before.replace("CACHE", &modules));
    std::fs::write(folder.path().join("new.yaml"), after.replace("CACHE", &modules)).expect("written");
    selvedge(folder.path(), &[&["config", "diff", "config.yaml", "new.yaml"], options].concat())
}

#[test]
fn two_configurations_are_compared_by_names_and_by_what_a_reload_does() {
    let same = diff(BEFORE, &BEFORE.replace("rate: 5/min, burst: 5", "burst: 5, rate: 5/min"), &[]);
    assert_eq!((same.status.code(), &*text(&same.stdout)), (Some(0), "no difference\n"), "{}", text(&same.stderr));

    let after = BEFORE
        .replace("workers: 1", "workers: 2, shutdown_grace: 7s")
        .replace("hush-hush", "hush-more")
        .replace("16MiB", "32MiB")
        .replace("bind: \"127.0.0.1:8081\"", "bind: \"127.0.0.1:8081\", limits: { connections: 9 }")
        .replace("  late: { bind: \"127.0.0.1:8082\" }\n", "  new: { bind: \"127.0.0.1:8083\" }\n")
        .replace("[192.0.2.1:80, 192.0.2.2:80]", "[192.0.2.2:80, { addr: 192.0.2.1:80, weight: 2 }]")
        .replace("burst: 1 }", "burst: 2 }")
        .replace("  old: { endpoints: [192.0.2.3:80] }\n", "")
        .replace("      - { name: gone, match: { path: /gone }, filters: [jwt], to: old }\n", "");
    let changed = diff(BEFORE, &after, &[]);
    let told = text(&changed.stdout);
    assert_eq!(changed.status.code(), Some(1), "{told}{}", text(&changed.stderr));
    assert!(!told.contains("hush"), "{told}");
    for expected in [
        "~ node.workers: 1 -> 2\n",
        "~ admin.token: <redacted> -> <redacted>\n",
        "~ listeners.inner.limits.connections: 50000 -> 9\n",
        "+ listeners.new: {\"bind\":\"127.0.0.1:8083\"",
        "- listeners.late: {\"bind\":\"127.0.0.1:8082\"",
        "- upstreams.old: {",
        "~ upstreams.app.endpoints[192.0.2.1:80]: 192.0.2.1:80 -> {\"addr\":\"192.0.2.1:80\",\"weight\":2}\n",
        "~ filters.slow.config.burst: 1 -> 2\n",
        "- sites[a.test].routes[gone]: {",
        "  is refused: node.workers needs a restart\n",
        "  is refused: cache.memory.size needs a restart\n",
        "  listener web: goes on as it is\n",
        "  listener inner: keeps its socket and is served anew",
        "  listener new: is bound\n",
        "  listener late: is closed",
        "  filter limit: goes on, with what it holds in memory\n",
        "  filter slow: is started anew, with empty memory\n",
        "  filter jwt: is stopped\n",
    ] {
        assert!(told.contains(expected), "{expected} is not in:\n{told}");
    }

    let json: Value = serde_json::from_slice(&diff(BEFORE, &after, &["--json"]).stdout).expect("JSON");
    assert_eq!(json["reload"]["refused"], serde_json::json!(["node.workers", "cache.memory.size"]));
    assert_eq!(json["reload"]["listeners"]["inner"], "rebuilt");
    assert_eq!(json["reload"]["filters"]["limit"], serde_json::json!({ "kept": 1, "started": 0, "stopped": 0 }));
    let found = json["differences"].as_array().expect("a list");
    assert!(
        found.contains(&serde_json::json!({ "key": "node.workers", "change": "changed", "old": 1, "new": 2 })),
        "{json:#}"
    );

    let faulty = diff(BEFORE, &BEFORE.replace("to: app", "to: apq"), &[]);
    assert_eq!(faulty.status.code(), Some(2));
    assert!(text(&faulty.stderr).contains("new.yaml:19"), "{}", text(&faulty.stderr));
}

/// What is said of a reload is what a reload does.
#[test]
fn a_reload_keeps_what_the_comparison_says_it_keeps() {
    let config = |limits: &str, workers: u8| {
        format!(
            "version: 1
node: {{ module_cache: off, workers: {workers}, shutdown_grace: 1s }}
telemetry: {{ access_log: {{ output: off }} }}
listeners:
  web: {{ bind: \"127.0.0.1:0\" }}
  inner: {{ bind: \"127.0.0.1:0\"{limits} }}
sites: [{{ hosts: [\"*\"], routes: [{{ respond: {{ status: 200 }} }}] }}]
"
        )
    };
    let limited = ", limits: { connections: 9 }";
    let mut edge = Edge::start(&config("", 1), &[]);
    let before = (edge.listener("web"), edge.listener("inner"));
    edge.reload(&config(limited, 1)).expect("reloaded");
    assert_eq!((edge.listener("web"), edge.listener("inner")), before, "both sockets stay");
    let refused = edge.reload(&config(limited, 2)).expect_err("refused");
    assert!(refused.contains("node.workers has changed: it needs a restart"), "{refused}");

    let json = diff(&config("", 1), &config(limited, 2), &["--json"]);
    let json: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(json["reload"]["listeners"], serde_json::json!({ "web": "kept", "inner": "rebuilt" }));
    assert_eq!(json["reload"]["refused"], serde_json::json!(["node.workers"]));
}
