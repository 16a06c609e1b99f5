//! What a route does to requests and responses: header fields, other targets, redirects.

use selvedge_tests::h2::H2Client;
use selvedge_tests::{Client, Edge, Origin};

/// An origin that answers with some fields of its own.
async fn origin() -> Origin {
    Origin::start(|_| {
        Origin::reply(200, &[("x-origin", "here"), ("server", "secret/1.0"), ("cache-control", "max-age=60")], "fine")
    })
    .await
}

const CONFIG: &str = "cache: {}
geo: { database: \"builtin:test\" }
upstreams: { app: { endpoints: [\"127.0.0.1:${PORT_app}\"] } }
filters:
  noop: { wasm: \"file:${GUESTS}/noop.wasm\", limits: { deadline: 10s } }
  elsewhere: { wasm: \"file:${GUESTS}/script.wasm\", config: \"request_headers set request :path /els/e?w=h\", limits: { deadline: 10s } }
sites:
  - hosts: [test, two.test]
    headers:
      request: { set: { x-site: site, x-both: site }, remove: [X-Gone] }
      response: { remove: [server], set: { strict-transport-security: max-age=31536000, x-frame-options: DENY } }
    routes:
      - name: \"fields${ID}\"
        match: { path: /fields/* }
        filters: [noop]
        headers:
          request:
            set:
              x-both: route
              x-client: \"${client.ip}:${client.port}\"
              x-asked: \"${method} ${scheme}://${authority}${uri} at ${host}${path}?${query}\"
              x-from: \"${header.User-Agent}|${cookie.id}|${param.q}|${route}|${site}|${node}|${header.none}\"
            add: { x-list: last, accept: text/x-more }
          response: { add: { x-status: \"${status} of ${path}\" }, set: { x-frame-options: SAMEORIGIN } }
        to: app
      - { name: plain, match: { path: /plain }, to: app }
      - name: \"cached${ID}\"
        match: { path: /cached }
        cache: { ttl: 1h }
        headers: { response: { set: { x-for: \"${param.n}\" } } }
        to: app
      - { name: prefix, match: { path: /old/* }, rewrite: { prefix: /new/, host: origin.test:81 }, to: app }
      - { name: strip, match: { path: /api/* }, rewrite: { prefix: / }, to: app }
      - { name: moved-by-filter, match: { path: /sent/* }, filters: [elsewhere], rewrite: { prefix: /new }, to: app }
      - { name: regex, match: { path: \"~^/v[0-9]+/\" }, rewrite: { path: { regex: \"^/v([0-9]+)/(.*)$\", with: \"/$2/version-$1\" }, query: false }, to: app }
      - { name: nowhere, match: { path: /nowhere }, rewrite: { path: { regex: \"^/\", with: \"\" } }, to: app }
      - { name: secure, match: { path: /secure/*, tls: false }, redirect: { to: \"https://${host}${uri}\" } }
      - { name: moved, match: { path: /moved }, filters: [noop], headers: { response: { set: { x-why: moved } } }, redirect: { to: /plain, status: 302 } }
      - { name: fixed, match: { path: /fixed }, respond: { status: 410, headers: { server: mine } } }
";

fn edge(origin: &Origin) -> Edge {
    Edge::start(CONFIG, &[("app", origin.address())])
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_are_written_on_both_sides_with_what_is_known_of_the_request() {
    let origin = origin().await;
    let edge = edge(&origin);
    let headers = "user-agent: curl/8\r\ncookie: a=b; id=7\r\ncookie: id=8\r\nx-gone: 1\r\nx-both: client\r\nx-list: first\r\naccept: */*\r\n";
    let response = Client::get_with(edge.web(), "/fields/%61?q=1%0d%0a&r", headers).await;
    assert_eq!(response.status, 200);
    let seen = origin.last();
    let values = |name: &str| -> Vec<&str> {
        seen.headers.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str()).collect()
    };
    assert_eq!((values("x-site"), values("x-both"), values("x-gone")), (vec!["site"], vec!["route"], vec![]));
    assert_eq!(values("x-asked"), ["GET http://test/fields/a?q=1%0d%0a&r at test/fields/a?q=1%0d%0a&r"]);
    assert_eq!(values("x-from"), [format!("curl/8|7|1%0d%0a|fields{}|test|edge|", edge.id())]);
    let client = values("x-client")[0];
    assert!(client.strip_prefix("127.0.0.1:").is_some_and(|port| port.parse::<u16>().is_ok()), "{client}");
    assert_eq!((values("x-list"), values("accept")), (vec!["first", "last"], vec!["*/*", "text/x-more"]));

    assert_eq!((response.header("server"), response.header("x-origin")), (None, Some("here")));
    assert_eq!(response.header("x-frame-options"), Some("SAMEORIGIN"));
    assert_eq!(response.header("strict-transport-security"), Some("max-age=31536000"));
    assert_eq!(response.header("x-status"), Some("200 of /fields/a"));

    let plain = Client::get(edge.web(), "/plain").await;
    assert_eq!((plain.header("x-frame-options"), plain.header("x-status")), (Some("DENY"), None));
    let h2 = H2Client::connect_tls(edge.secure(), "test").await;
    h2.request("GET", "/fields/", &[], b"").await.unwrap();
    let asked = origin.last().header("x-asked").unwrap().to_owned();
    assert!(asked.starts_with("GET https://") && asked.ends_with(" at test/fields/?"), "{asked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_is_the_origins_and_each_client_gets_its_own_fields() {
    let origin = origin().await;
    let edge = edge(&origin);
    for n in ["1", "2"] {
        // One key for both: the parameter that differs is in a header made for each.
        let response = Client::get_with(edge.web(), "/cached?n=1", &format!("x: {n}\r\n")).await;
        assert_eq!((response.status, response.header("x-for"), response.header("server")), (200, Some("1"), None));
        assert_eq!(response.header("x-frame-options"), Some("DENY"));
    }
    assert_eq!(origin.started(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_are_rewritten_for_the_upstream() {
    let origin = origin().await;
    let edge = edge(&origin);
    for (asked, target, host) in [
        ("/old", "/new", "origin.test:81"),
        ("/old/a/b?c=d", "/new/a/b?c=d", "origin.test:81"),
        ("/api", "/", "test"),
        ("/api/", "/", "test"),
        ("/api/a?b", "/a?b", "test"),
        ("/v12/a/b?gone=1", "/a/b/version-12", "test"),
        // What is replaced is what the route was found by: a filter has sent it elsewhere.
        ("/sent/a", "/els/e?w=h", "test"),
        ("/v12/", "//version-12", "test"),
    ] {
        assert_eq!(Client::get(edge.web(), asked).await.status, 200, "{asked}");
        let seen = origin.last();
        assert_eq!((seen.target.as_str(), seen.header("host")), (target, Some(host)), "{asked}");
        assert_eq!(seen.header("x-forwarded-host"), Some("test"), "{asked}");
    }
    let before = origin.started();
    assert_eq!(Client::get(edge.web(), "/nowhere").await.status, 500);
    assert_eq!(origin.started(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_go_where_the_request_says() {
    let origin = origin().await;
    let edge = edge(&origin);
    let mut client = Client::connect(edge.web()).await;
    let secure = client.request("GET /secure/a?b=c HTTP/1.1\r\nhost: Two.Test:8080\r\n\r\n").await;
    assert_eq!((secure.status, secure.header("location")), (308, Some("https://Two.Test/secure/a?b=c")));
    assert_eq!((secure.header("content-length"), secure.header("x-frame-options")), (Some("0"), Some("DENY")));
    let moved = client.request("POST /moved HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!((moved.status, moved.header("location"), moved.header("x-why")), (302, Some("/plain"), Some("moved")));
    let fixed = client.request("GET /fixed HTTP/1.1\r\nhost: test\r\n\r\n").await;
    assert_eq!((fixed.status, fixed.header("server"), fixed.header("x-frame-options")), (410, None, Some("DENY")));
    // Over TLS the route is another one: none.
    let h2 = H2Client::connect_tls(edge.secure(), "test").await;
    assert_eq!(h2.request("GET", "/secure/a", &[], b"").await.unwrap().status, 404);
    assert_eq!(origin.started(), 0);
}
