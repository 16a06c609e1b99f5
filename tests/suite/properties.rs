//! What filters read and set about an exchange: properties, headers in every phase, foreign functions; from outside, through one guest
//! that does what its configuration says (`tests/guests/examples/properties.rs`).

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::HeaderValue;
use selvedge_tests::h2::H2Client;
use selvedge_tests::{Client, Edge, Origin, Response, closed, soon};

/// A filter with this script, as an entry of `filters`.
fn filter(name: &str, script: &str, more: &str) -> String {
    let script = serde_json::to_string(script).unwrap();
    format!(
        "  {name}: {{ wasm: \"file:${{GUESTS}}/properties.wasm\", limits: {{ deadline: 10s }}, config: {script}{more} }}\n"
    )
}

/// A node with one route and these filters, the first in the list first.
fn node(filters: &[(&str, &str)], route: &str, origin: SocketAddr) -> Edge {
    let names: Vec<&str> = filters.iter().map(|(name, _)| *name).collect();
    let filters: String = filters.iter().map(|(name, script)| filter(name, script, "")).collect();
    Edge::start(
        &format!(
            "cache: {{}}
geo: {{ database: builtin:test }}
upstreams: {{ app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }} }}
filters:
{filters}sites: [{{ hosts: [\"*\"], routes: [{{ name: \"page-${{ID}}\", filters: [{}], {route} to: app }}] }}]",
            names.join(", ")
        ),
        &[("app", origin)],
    )
}

/// A script of `get`s in one phase: `(name, path)` each.
fn gets(phase: &str, what: &[(&str, &str)]) -> String {
    what.iter().map(|(name, path)| format!("{phase} get {name} {path}\n")).collect()
}

/// What the guest showed under this name.
fn shown<'r>(response: &'r Response, name: &str) -> &'r str {
    response.header(&format!("x-{name}")).unwrap_or_else(|| panic!("no x-{name} in {:?}", response.headers))
}

/// The number behind 8 bytes.
fn number(response: &Response, name: &str) -> i64 {
    let text = shown(response, name);
    let digits = text.strip_prefix("0x").unwrap_or_else(|| panic!("{name}: {text}"));
    assert_eq!(digits.len(), 16, "{name}: {text}");
    i64::from_le_bytes(u64::from_str_radix(digits, 16).unwrap().to_be_bytes())
}

async fn hello() -> Origin {
    Origin::start(|_| Origin::reply(200, &[("x-origin", "yes")], "hello")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_request_is_read_in_every_phase() {
    let origin = hello().await;
    let text = [
        ("path", "request/path", "/a/b?c=d"),
        ("url", "request/url_path", "/a/b"),
        ("query", "request/query", "c=d"),
        ("host", "request/host", "test"),
        ("scheme", "request/scheme", "http"),
        ("method", "request/method", "POST"),
        ("protocol", "request/protocol", "HTTP/1.1"),
        ("referer", "request/referer", "r"),
        ("useragent", "request/useragent", "u"),
        ("id", "request/id", "i"),
        ("one", "request/headers/x-one", "1,2"),
        ("capitals", "request/headers/X-ONE", "1,2"),
        ("alias", "request/headers/host", "test"),
        ("pseudo", "request/headers/:path", "/a/b?c=d"),
        ("none", "request/headers/x-none", "!1"),
        ("unknown", "request/unknown", "!1"),
        ("nowhere", "no/such/thing", "!1"),
        ("site", "site", "*"),
        ("listener", "listener", "web"),
        ("nodename", "node/name", "edge"),
        ("cluster", "cluster_name", "app"),
        ("xds", "xds/virtual_host_name", "*"),
        ("mtls", "connection/mtls", "0x00"),
        ("tls", "connection/tls_version", "!1"),
        ("sni", "connection/requested_server_name", "-"),
        ("plugin", "plugin_name", "probe"),
        ("vm", "plugin_vm_id", "probe"),
        ("authority", "", ""),
    ];
    let gets_of = |phase: &str| {
        let lines = text.iter().filter(|(_, path, _)| !path.is_empty());
        let lines: String = lines.map(|(name, path, _)| format!("{phase} get {phase}-{name} {path}\n")).collect();
        // The header itself too, by both of its names, and numbers.
        lines
            + &format!("{phase} header {phase}-authority 0 :authority\n{phase} header {phase}-byhost 0 Host\n")
            + &gets(phase, &[])
            + &format!("{phase} get {phase}-size request/size\n{phase} get {phase}-time request/time\n")
    };
    let late = |phase: &str| -> String {
        let names = text.iter().map(|(name, ..)| *name).chain(["byhost"]);
        names.map(|name| format!("response_headers recall seen-{phase}-{name} {phase}-{name}\n")).collect()
    };
    let script = ["request_headers", "response_headers", "response_body", "log"].map(gets_of).concat()
        + &late("response_body")
        + &late("log");
    let edge = node(&[("probe", &script)], "", origin.address());
    let ask = || {
        Client::post(
            edge.web(),
            "/a/b?c=d",
            "referer: r\r\nuser-agent: u\r\nx-request-id: i\r\nx-one: 1\r\nx-one: 2\r\n",
            b"12345",
        )
    };
    let response = ask().await;
    for phase in ["request_headers", "response_headers"] {
        for (name, path, expected) in text.iter().filter(|(_, path, _)| !path.is_empty()) {
            assert_eq!(shown(&response, &format!("{phase}-{name}")), *expected, "{phase} {path}");
        }
        assert_eq!(shown(&response, &format!("{phase}-authority")), "test");
        assert_eq!(shown(&response, &format!("{phase}-byhost")), "test");
        assert_eq!(number(&response, &format!("{phase}-size")), 5);
        assert!(number(&response, &format!("{phase}-time")) > 1_700_000_000_000_000_000);
    }
    // What the later phases saw is told by the next request.
    let response = asked_until(ask, "seen-log-plugin").await;
    for phase in ["response_body", "log"] {
        for (name, path, expected) in text.iter().filter(|(_, path, _)| !path.is_empty()) {
            assert_eq!(shown(&response, &format!("seen-{phase}-{name}")), *expected, "{phase} {path}");
        }
        assert_eq!(shown(&response, &format!("seen-{phase}-authority")), "test");
        assert_eq!(shown(&response, &format!("seen-{phase}-byhost")), "test");
    }
}

/// Asks again until a filter shows something under this name, which an earlier request has left.
async fn asked_until<F: Future<Output = Response>>(ask: impl Fn() -> F, name: &str) -> Response {
    soon("what an earlier request has left", async {
        loop {
            let response = ask().await;
            if shown(&response, name) != "-" {
                return response;
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_response_is_read_when_it_is_there_and_to_the_end() {
    let origin =
        Origin::start(|_| Origin::reply(201, &[("x-origin", "a"), ("x-origin", "b"), ("grpc-status", "7")], "hello"))
            .await;
    let what = [
        ("code", "response/code"),
        ("origin", "response/headers/x-origin"),
        ("status", "response/headers/:status"),
        ("details", "response/code_details"),
        ("grpc", "response/grpc_status"),
        ("flags", "response/flags"),
        ("size", "response/size"),
        ("bytes", "response/headers_bytes"),
        ("latency", "response/backend_latency"),
        ("total", "request/total_size"),
        ("duration", "request/duration"),
        ("end", "connection/termination_details"),
    ];
    let named = |phase: &str| {
        let names: Vec<(String, &str)> = what.iter().map(|(name, path)| (format!("{phase}-{name}"), *path)).collect();
        let names: Vec<(&str, &str)> = names.iter().map(|(name, path)| (name.as_str(), *path)).collect();
        gets(phase, &names)
    };
    let recalls: String =
        what.iter().map(|(name, _)| format!("response_headers recall seen-{name} log-{name}\n")).collect();
    let script = ["request_headers", "response_headers", "log"].map(named).concat() + &recalls;
    let edge = node(&[("probe", &script)], "", origin.address());
    let ask = || Client::get(edge.web(), "/");
    let response = ask().await;
    for early in ["code", "origin", "status", "details", "grpc", "size", "latency", "duration", "end"] {
        assert_eq!(shown(&response, &format!("request_headers-{early}")), "!1", "{early}");
    }
    assert_eq!(number(&response, "response_headers-code"), 201);
    assert_eq!(shown(&response, "response_headers-origin"), "a,b");
    assert_eq!(shown(&response, "response_headers-status"), "201");
    assert_eq!(shown(&response, "response_headers-details"), "via_upstream");
    assert_eq!(number(&response, "response_headers-grpc"), 7);
    assert_eq!(number(&response, "response_headers-flags"), 0);
    assert_eq!(number(&response, "response_headers-size"), 5);
    assert!(number(&response, "response_headers-bytes") > 20);
    assert!(number(&response, "response_headers-latency") > 0);
    assert!(number(&response, "response_headers-total") > 20);
    assert_eq!(shown(&response, "response_headers-duration"), "!1");

    let response = asked_until(ask, "seen-code").await;
    assert_eq!(number(&response, "seen-code"), 201);
    assert_eq!(shown(&response, "seen-origin"), "a,b");
    assert_eq!(shown(&response, "seen-details"), "via_upstream");
    assert_eq!(number(&response, "seen-grpc"), 7);
    assert_eq!(number(&response, "seen-size"), 5);
    assert!(number(&response, "seen-duration") >= number(&response, "seen-latency"));
    assert_eq!(shown(&response, "seen-end"), "!1");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_tell_name_version_and_cipher() {
    let origin = hello().await;
    let script = gets(
        "response_headers",
        &[
            ("sni", "connection/requested_server_name"),
            ("tls", "connection/tls_version"),
            ("cipher", "connection/cipher"),
            ("scheme", "request/scheme"),
            ("protocol", "request/protocol"),
            ("id", "connection/id"),
            ("source", "source/address"),
            ("port", "source/port"),
            ("destination", "destination/address"),
            ("direction", "listener_direction"),
        ],
    );
    let edge = node(&[("probe", &script)], "", origin.address());

    let mut client = Client::connect_tls(edge.secure(), "first.example", &["http/1.1"]).await;
    let get = "GET / HTTP/1.1\r\nhost: test\r\n\r\n";
    let first = client.request(get).await;
    let again = client.request(get).await;
    let other = Client::connect_tls(edge.secure(), "second.example", &["http/1.1"]).await.request(get).await;
    let h2 = H2Client::connect_tls(edge.secure(), "third.example").await;
    let third = h2.request("GET", "/", &[], b"").await.unwrap();
    for (response, sni, protocol) in [
        (&first, "first.example", "HTTP/1.1"),
        (&again, "first.example", "HTTP/1.1"),
        (&other, "second.example", "HTTP/1.1"),
        (&third, "third.example", "HTTP/2"),
    ] {
        assert_eq!(shown(response, "sni"), sni);
        assert_eq!(shown(response, "tls"), "TLSv1.3");
        assert!(
            shown(response, "cipher").starts_with("TLS_AES_") || shown(response, "cipher").starts_with("TLS_CHACHA20_"),
            "{}",
            shown(response, "cipher")
        );
        assert_eq!((shown(response, "scheme"), shown(response, "protocol")), ("https", protocol));
        assert_eq!(shown(response, "destination"), edge.secure().to_string());
        let port = number(response, "port");
        assert_eq!(shown(response, "source"), format!("127.0.0.1:{port}"));
        assert_eq!(number(response, "direction"), 1);
    }
    assert_eq!(shown(&first, "id"), shown(&again, "id"));
    assert_ne!(shown(&first, "id"), shown(&other, "id"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_upstream_is_known_once_it_is_asked() {
    let origin = hello().await;
    let closed = closed(); // The first endpoint.
    let what = [
        ("address", "upstream/address"),
        ("port", "upstream/port"),
        ("local", "upstream/local_address"),
        ("attempts", "upstream/request_attempt_count"),
        ("why", "upstream/transport_failure_reason"),
        ("name", "upstream/name"),
        ("tls", "upstream/tls_version"),
        ("flags", "response/flags"),
        ("details", "response/code_details"),
    ];
    let early: Vec<(String, &str)> = what.iter().map(|(name, path)| (format!("early-{name}"), *path)).collect();
    let early: Vec<(&str, &str)> = early.iter().map(|(name, path)| (name.as_str(), *path)).collect();
    let script = gets("request_headers", &early) + &gets("response_headers", &what);
    let edge = Edge::start(
        &format!(
            "upstreams:
  app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }}
  none: {{ endpoints: [\"127.0.0.1:${{PORT_none}}\"] }}
filters:
{}{}sites:
  - hosts: [\"*\"]
    routes:
      - {{ match: {{ path: /gone }}, filters: [probe], to: none }}
      - {{ match: {{ path: /chosen }}, filters: [choose, probe], to: none }}
      - {{ filters: [probe], to: app }}",
            filter("probe", &script, ""),
            filter("choose", "request_headers set - selvedge/upstream app\n", ""),
        ),
        &[("app", origin.address()), ("none", closed)],
    );
    let response = Client::get(edge.web(), "/").await;
    for name in ["address", "port", "local", "attempts", "why", "tls", "details"] {
        assert_eq!(shown(&response, &format!("early-{name}")), "!1", "{name}");
    }
    assert_eq!(shown(&response, "early-name"), "app");
    assert_eq!(shown(&response, "address"), origin.address().to_string());
    assert_eq!(number(&response, "port"), i64::from(origin.address().port()));
    assert!(shown(&response, "local").starts_with("127.0.0.1:"));
    assert_eq!(number(&response, "attempts"), 1);
    assert_eq!((shown(&response, "why"), shown(&response, "tls")), ("!1", "!1"));

    let response = Client::get(edge.web(), "/chosen").await;
    assert_eq!((shown(&response, "early-name"), shown(&response, "name")), ("app", "app"));

    let response = Client::get(edge.web(), "/gone").await;
    assert_eq!(response.status, 502);
    assert_eq!(shown(&response, "address"), closed.to_string());
    assert!(number(&response, "attempts") > 1);
    assert!(shown(&response, "why").contains("ConnectRefused"), "{}", shown(&response, "why"));
    assert_eq!(number(&response, "flags"), 0x20);
    assert_eq!(shown(&response, "details"), "connection_refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_filter_sets_later_ones_read() {
    let origin = hello().await;
    let setter = "request_headers set one a/b value\nrequest_headers set two wasm/plain 0x00ff\n\
        request_headers set three source/address 192.0.2.1\nrequest_headers set four response/code 200\n\
        request_headers set five cache/colour news\nrequest_headers call six set_envoy_filter_state 0x0a016b120176\n\
        request_headers call seven declare_property 0x0a046f6e63651001\nrequest_headers set eight once first\n\
        request_headers set nine once second\n";
    let reader = gets(
        "request_headers",
        &[
            ("ab", "a/b"),
            ("wab", "wasm/a/b"),
            ("fab", "filter_state/wasm.a.b"),
            ("dotted", "a.b"),
            ("plain", "plain"),
            ("source", "source/address"),
            ("envoy", "filter_state/k"),
            ("once", "once"),
            ("none", "wasm/none"),
        ],
    ) + "request_headers set again a/b other\nrequest_headers get changed a/b\n";
    let edge = node(&[("setter", setter), ("reader", &reader)], "", origin.address());
    let response = Client::get(edge.web(), "/").await;
    for (name, expected) in [
        ("one", "ok"),
        ("two", "ok"),
        ("three", "!2"),
        ("four", "!2"),
        ("five", "!2"),
        ("six", "-"),
        ("seven", "-"),
        ("eight", "ok"),
        ("nine", "!2"),
        ("ab", "value"),
        ("wab", "value"),
        ("fab", "value"),
        ("dotted", "value"),
        ("plain", "0x00ff"),
        ("envoy", "v"),
        ("once", "first"),
        ("none", "!1"),
        ("again", "ok"),
        ("changed", "other"),
    ] {
        assert_eq!(shown(&response, name), expected, "{name}");
    }
    assert!(shown(&response, "source").starts_with("127.0.0.1:"));
}

#[tokio::test(flavor = "multi_thread")]
async fn properties_that_filters_set_are_bounded() {
    let origin = hello().await;
    let many: String = (0..65).map(|number| format!("request_headers set n{number} many/n{number} v\n")).collect();
    let long = format!("request_headers set long0 long/a {}\n", "v".repeat(16 * 1024 + 1))
        + &format!("request_headers set name {} v\n", "n".repeat(257));
    let edge = node(&[("probe", &(long + &many))], "", origin.address());
    let response = Client::get(edge.web(), "/").await;
    assert_eq!((shown(&response, "long0"), shown(&response, "name")), ("!2", "!2"));
    assert_eq!((shown(&response, "n63"), shown(&response, "n64")), ("ok", "!2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn path_and_host_are_written_before_the_request_goes() {
    let origin = hello().await;
    let script = "request_headers set path request/path /other?q=1\nrequest_headers set host request/host other.example\n\
        request_headers set bad request/path no-slash\nrequest_headers get read request/path\n\
        response_headers set late request/path /late\nresponse_headers replace later 0 x-late v\n\
        response_headers remove removed 0 host\nresponse_headers set upstream selvedge/upstream app\n";
    let edge = node(&[("probe", script)], "", origin.address());
    let response = Client::get(edge.web(), "/first").await;
    for (name, expected) in [
        ("path", "ok"),
        ("host", "ok"),
        ("bad", "!2"),
        ("read", "/other?q=1"),
        ("late", "!2"),
        ("later", "!2"),
        ("removed", "ok"),
        ("upstream", "!2"),
    ] {
        assert_eq!(shown(&response, name), expected, "{name}");
    }
    let asked = origin.last();
    assert_eq!((asked.target.as_str(), asked.header("host")), ("/other?q=1", Some("other.example")));
}

#[tokio::test(flavor = "multi_thread")]
async fn response_headers_set_early_come_with_whatever_response_there_is() {
    let origin = Origin::start(|request| match request.target.as_str() {
        "/cached" => {
            Origin::reply(200, &[("cache-control", "max-age=60"), ("x-one", "origin"), ("x-two", "origin")], "kept")
        }
        _ => Origin::reply(200, &[("x-one", "origin"), ("x-two", "origin")], "hello"),
    })
    .await;
    let closed = closed();
    let early = "request_headers replace set 2 x-one early\nrequest_headers add added 2 x-more 1\n\
        request_headers add - 2 x-more 2\nrequest_headers remove removed 2 x-two\n\
        request_headers header unread 2 x-one\nrequest_headers pairs none 2\n\
        request_headers replace length 2 content-length 7\nrequest_headers replace status 2 :status 404\n\
        request_headers copy copied 2\nresponse_headers header read 2 x-one\n";
    let edge = Edge::start(
        &format!(
            "cache: {{}}
upstreams:
  app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }}
  none: {{ endpoints: [\"127.0.0.1:${{PORT_none}}\"] }}
filters:
{}{}sites:
  - hosts: [\"*\"]
    routes:
      - {{ match: {{ path: /replied }}, filters: [early, reply], to: app }}
      - {{ match: {{ path: /failed }}, filters: [early], to: none }}
      - {{ match: {{ path: /fixed }}, filters: [early], respond: {{ status: 200, body: fixed, headers: {{ x-one: fixed }} }} }}
      - {{ name: \"cached-${{ID}}\", match: {{ path: /cached }}, filters: [early], cache: {{}}, to: app }}
      - {{ filters: [early], to: app }}",
            filter("early", early, ""),
            filter("reply", "request_headers reply - 403\n", ""),
        ),
        &[("app", origin.address()), ("none", closed)],
    );
    for (path, status) in
        [("/", 200), ("/replied", 403), ("/failed", 502), ("/fixed", 200), ("/cached", 200), ("/cached", 200)]
    {
        let response = Client::get(edge.web(), path).await;
        assert_eq!(response.status, status, "{path}");
        assert_eq!(shown(&response, "one"), "early", "{path}");
        let more: Vec<_> =
            response.headers.iter().filter(|(name, _)| name == "x-more").map(|(_, value)| value).collect();
        assert_eq!(more, ["1", "2"], "{path}: once each");
        assert_eq!(response.header("x-two"), None, "{path}");
        for (name, expected) in [
            ("set", "ok"),
            ("added", "ok"),
            ("removed", "ok"),
            ("unread", "!1"),
            ("none", "-"),
            ("length", "!2"),
            ("status", "!2"),
            ("copied", "!2"),
            ("read", "early"),
        ] {
            assert_eq!(shown(&response, name), expected, "{path} {name}");
        }
    }
    assert_eq!(
        origin.received().iter().filter(|request| request.target == "/cached").count(),
        1,
        "the second was a hit"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn response_headers_are_read_but_not_written_once_they_are_sent() {
    let origin =
        Origin::start(|_| Origin::with_trailers(200, &[("x-origin", "yes")], "hello", &[("x-trailer", "end")])).await;
    let script = "response_body header body 2 x-origin\nresponse_body replace write 2 x-late v\n\
        log header log 2 x-origin\nlog replace logwrite 2 x-late v\nlog replace logrequest 0 x-late v\n\
        log header logstatus 2 :status\nlog set logset a/b v\n\
        response_headers recall seen-body body\nresponse_headers recall seen-write write\n\
        response_headers recall seen-log log\nresponse_headers recall seen-logwrite logwrite\n\
        response_headers recall seen-logrequest logrequest\nresponse_headers recall seen-logstatus logstatus\n\
        response_headers recall seen-logset logset\n";
    let edge = node(&[("probe", script)], "", origin.address());
    let ask = || Client::get(edge.web(), "/");
    assert_eq!(ask().await.text(), "hello");
    let response = asked_until(ask, "seen-logset").await;
    for (name, expected) in [
        ("body", "yes"),
        ("write", "!2"),
        ("log", "yes"),
        ("logwrite", "!2"),
        ("logrequest", "!2"),
        ("logstatus", "200"),
        ("logset", "ok"),
    ] {
        assert_eq!(shown(&response, &format!("seen-{name}")), expected, "{name}");
    }
}

/// A node whose filter has this policy for values that are not UTF-8.
fn encoding_node(policy: &str, script: &str, origin: SocketAddr) -> Edge {
    Edge::start(
        &format!(
            "upstreams: {{ app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }} }}
filters:
{}sites: [{{ hosts: [\"*\"], routes: [{{ filters: [probe], to: app }}] }}]",
            filter("probe", script, policy)
        ),
        &[("app", origin)],
    )
}

/// A request with a header value that is not UTF-8.
async fn odd_request(edge: &Edge) -> Response {
    let mut client = Client::connect(edge.web()).await;
    client.send(b"GET /a HTTP/1.1\r\nhost: test\r\nx-odd: gr\xfcn\r\nx-plain: 100%\r\n\r\n").await;
    client.response("GET").await
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_are_no_utf8_are_escaped_for_filters_and_kept_for_everybody_else() {
    let origin = hello().await;
    let script = "request_headers header value 0 x-odd\nrequest_headers get property request/headers/x-odd\n\
        request_headers header plain 0 x-plain\nrequest_headers pairs pairs 0\nrequest_headers copy copied 0\n\
        request_headers call each selvedge.header_values 0x00000000782d6f6464\n\
        request_headers replace same 0 x-odd gr%FCn\nresponse_headers header later 0 x-odd\n";
    for policy in ["", ", header_encoding: escape"] {
        let edge = encoding_node(policy, script, origin.address());
        let response = odd_request(&edge).await;
        for (name, expected) in [
            ("value", "gr%FCn"),
            ("property", "gr%FCn"),
            ("plain", "100%"),
            ("copied", "ok"),
            ("same", "ok"),
            ("later", "gr%FCn"),
        ] {
            assert_eq!(shown(&response, name), expected, "{name}");
        }
        let hex = |text: &str| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert!(shown(&response, "pairs").contains(&hex("gr%FCn")), "{}", shown(&response, "pairs"));
        assert_eq!(shown(&response, "each"), format!("0x0100000006000000{}", hex("gr%FCn")));
        let asked = origin.last();
        assert_eq!(asked.header("x-odd"), Some("gr\u{fffd}n"), "the byte itself has arrived");
        assert_eq!(asked.header("x-plain"), Some("100%"));
    }

    // What a filter writes on purpose is written.
    let edge = encoding_node("", "request_headers replace - 0 x-odd gr%FC\n", origin.address());
    odd_request(&edge).await;
    assert_eq!(origin.last().header("x-odd"), Some("gr%FC"));
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_are_no_utf8_pass_where_a_filter_takes_them() {
    let origin = hello().await;
    let script = "request_headers header value 0 x-odd\nrequest_headers get property request/headers/x-odd\n";
    let edge = encoding_node(", header_encoding: pass", script, origin.address());
    let response = odd_request(&edge).await;
    assert_eq!((shown(&response, "value"), shown(&response, "property")), ("0x6772fc6e", "0x6772fc6e"));
}

fn odd_response() -> selvedge_tests::Served {
    let mut served = Origin::reply(200, &[], "hello");
    served.headers_mut().insert("x-odd", HeaderValue::from_bytes(b"gr\xfcn").unwrap());
    served
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_are_no_utf8_are_rejected_before_the_filter_sees_them() {
    let origin = Origin::start(|request| match request.target.as_str() {
        "/odd" => odd_response(),
        _ => Origin::reply(200, &[], "hello"),
    })
    .await;
    let script = "request_headers get ran request/method\n";
    let edge = encoding_node(", header_encoding: reject", script, origin.address());
    let response = odd_request(&edge).await;
    assert_eq!((response.status, response.header("x-ran")), (400, None));
    assert_eq!(origin.started(), 0);

    let response = Client::get(edge.web(), "/fine").await;
    assert_eq!((response.status, shown(&response, "ran")), (200, "GET"));

    let response = Client::get(edge.web(), "/odd").await;
    assert_eq!((response.status, response.header("x-odd")), (502, None));
    assert_eq!(shown(&response, "ran"), "GET", "the filter sees the answer that takes its place");
}

#[tokio::test(flavor = "multi_thread")]
async fn response_values_that_are_no_utf8_are_escaped_and_kept() {
    let origin = Origin::start(|_| odd_response()).await;
    let edge =
        encoding_node("", "response_headers header value 2 x-odd\nresponse_headers copy copied 2\n", origin.address());
    let response = H2Client::connect(edge.web()).await.request("GET", "/", &[], b"").await.unwrap();
    assert_eq!((shown(&response, "value"), shown(&response, "copied")), ("gr%FCn", "ok"));
    assert_eq!(shown(&response, "odd"), "gr\u{fffd}n", "the byte itself has arrived");
}

/// An origin that says how often it was asked, in the body.
async fn counting(headers: &'static [(&'static str, &'static str)]) -> Origin {
    let count = AtomicUsize::new(0);
    Origin::start(move |_| Origin::reply(200, headers, format!("answer {}", count.fetch_add(1, Ordering::SeqCst) + 1)))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_see_what_the_cache_did() {
    let origin = counting(&[("cache-control", "max-age=60"), ("age", "20")]).await;
    let what = [
        ("status", "cache/status"),
        ("hit", "cache/hit"),
        ("key", "cache/key"),
        ("age", "cache/age"),
        ("ttl", "cache/ttl"),
        ("tier", "cache/tier"),
        ("details", "response/code_details"),
    ];
    let early: String = what.iter().map(|(name, path)| format!("request_headers get early-{name} {path}\n")).collect();
    let edge = node(&[("probe", &(early + &gets("response_headers", &what)))], "cache: {},", origin.address());

    let miss = Client::get(edge.web(), "/").await;
    for (name, path) in what {
        assert_eq!(shown(&miss, &format!("early-{name}")), "!1", "{path}");
    }
    let hit = Client::get(edge.web(), "/").await;
    assert_eq!((shown(&miss, "status"), shown(&miss, "hit"), shown(&miss, "tier")), ("uri-miss", "0x00", "!1"));
    assert_eq!((shown(&hit, "status"), shown(&hit, "hit"), shown(&hit, "tier")), ("hit", "0x01", "memory"));
    assert_eq!((shown(&miss, "details"), shown(&hit, "details")), ("via_upstream", "via_cache"));
    assert_eq!(shown(&miss, "key").len(), 32);
    assert_eq!(shown(&miss, "key"), shown(&hit, "key"));
    for response in [&miss, &hit] {
        assert!((20_000_000_000..30_000_000_000).contains(&number(response, "age")), "{}", number(response, "age"));
        assert!((30_000_000_000..=40_000_000_000).contains(&number(response, "ttl")), "{}", number(response, "ttl"));
    }
    assert_ne!(shown(&Client::get(edge.web(), "/other").await, "key"), shown(&miss, "key"));
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_add_to_the_cache_key() {
    let origin = counting(&[("cache-control", "max-age=60")]).await;
    // The second filter's part depends on the request: a language that the origin reads from a header.
    let edge = Edge::start(
        &format!(
            "cache: {{}}
upstreams: {{ app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }} }}
filters:
{}{}{}sites:
  - hosts: [\"*\"]
    routes:
      - {{ name: \"page-${{ID}}\", match: {{ path: /*, header: {{ x-lang: de }} }}, filters: [common, de], cache: {{}}, to: app }}
      - {{ name: \"page-${{ID}}b\", match: {{ path: /*, header: {{ x-lang: en }} }}, filters: [common, en], cache: {{}}, to: app }}",
            filter("common", "request_headers set one cache/key_parts v1\n", ""),
            filter("de", "request_headers set two cache/key_parts de\nrequest_headers get parts cache/key_parts\n", ""),
            filter("en", "request_headers set two cache/key_parts en\nresponse_headers set late cache/key_parts x\n", ""),
        ),
        &[("app", origin.address())],
    );
    let de = Client::get_with(edge.web(), "/", "x-lang: de\r\n").await;
    assert_eq!(de.text(), "answer 1");
    assert_eq!((shown(&de, "one"), shown(&de, "two")), ("ok", "ok"));
    // A list: names with empty values.
    assert_eq!(shown(&de, "parts"), "0x02000000020000000000000002000000000000007631000064650000");
    assert_eq!(Client::get_with(edge.web(), "/", "x-lang: de\r\n").await.text(), "answer 1");
    let en = Client::get_with(edge.web(), "/", "x-lang: en\r\n").await;
    assert_eq!((en.text().as_str(), shown(&en, "late")), ("answer 2", "!2"));
}

/// One route, one filter, whose part of the key is what the client sends.
#[tokio::test(flavor = "multi_thread")]
async fn key_parts_keep_one_routes_responses_apart() {
    let origin = counting(&[("cache-control", "max-age=60")]).await;
    let yaml = |part: &str| {
        format!(
            "cache: {{}}
upstreams: {{ app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }} }}
filters:
{}sites: [{{ hosts: [\"*\"], routes: [{{ name: \"page-${{ID}}\", filters: [part], cache: {{}}, to: app }}] }}]",
            filter("part", part, "")
        )
    };
    let mut edge = Edge::start(&yaml("request_headers set - cache/key_parts a\n"), &[("app", origin.address())]);
    assert_eq!(Client::get(edge.web(), "/").await.text(), "answer 1");
    assert_eq!(Client::get(edge.web(), "/").await.text(), "answer 1");
    edge.reload(&yaml("request_headers set - cache/key_parts b\n")).unwrap();
    assert_eq!(Client::get(edge.web(), "/").await.text(), "answer 2");
    edge.reload(&yaml("request_headers get - cache/key_parts\n")).unwrap();
    assert_eq!(Client::get(edge.web(), "/").await.text(), "answer 3", "no part is a key of its own");
    edge.reload(&yaml("request_headers set - cache/key_parts a\n")).unwrap();
    assert_eq!(Client::get(edge.web(), "/").await.text(), "answer 1");
    // An unsafe request with the same part puts it out of date (RFC 9111, 4.4).
    assert_eq!(Client::post(edge.web(), "/", "", b"x").await.text(), "answer 4");
    assert_eq!(Client::get(edge.web(), "/").await.text(), "answer 5");
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_choose_a_lifetime_but_do_not_overrule_a_refusal() {
    let origin = Origin::start(|request| {
        let control = match request.target.as_str() {
            "/short" => "max-age=1",
            "/never" => "no-store",
            _ => "max-age=5000",
        };
        Origin::reply(200, &[("cache-control", control), ("age", "3")], "hello")
    })
    .await;
    let script = |ttl: &str| {
        format!("request_headers set set cache/ttl {ttl}\nrequest_headers get wished cache/ttl\n")
            + &gets("response_headers", &[("ttl", "cache/ttl"), ("status", "cache/status")])
            + "response_headers set late cache/ttl 5\n"
    };
    let edge = node(&[("probe", &script("100"))], "cache: {},", origin.address());
    let miss = Client::get(edge.web(), "/short").await;
    assert_eq!((shown(&miss, "set"), number(&miss, "wished"), shown(&miss, "late")), ("ok", 100_000_000_000, "!2"));
    let hit = Client::get(edge.web(), "/short").await;
    assert_eq!(shown(&hit, "status"), "hit", "its own second was over before it came");
    assert!((80_000_000_000..=97_000_000_000).contains(&number(&hit, "ttl")), "{}", number(&hit, "ttl"));

    assert_eq!(shown(&Client::get(edge.web(), "/never").await, "status"), "uri-miss");
    assert_eq!(shown(&Client::get(edge.web(), "/never").await, "status"), "uri-miss");

    // Two seconds in nanoseconds: over before it comes, too.
    let edge = node(&[("probe", &script("0x0094357700000000"))], "cache: {},", origin.address());
    assert_eq!(number(&Client::get(edge.web(), "/long").await, "wished"), 2_000_000_000);
    assert_ne!(shown(&Client::get(edge.web(), "/long").await, "status"), "hit");

    for nonsense in ["soon", "31536001", "-1", ""] {
        let edge = node(
            &[("probe", &format!("request_headers set set cache/ttl {nonsense}\n"))],
            "cache: {},",
            origin.address(),
        );
        assert_eq!(shown(&Client::get(edge.web(), "/long").await, "set"), "!2", "{nonsense}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_keep_a_request_away_from_the_cache() {
    let origin = counting(&[("cache-control", "max-age=60")]).await;
    let yaml = |script: &str| {
        format!(
            "cache: {{}}
upstreams: {{ app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }} }}
filters:
{}sites: [{{ hosts: [\"*\"], routes: [{{ name: \"page-${{ID}}\", filters: [probe], cache: {{}}, to: app }}] }}]",
            filter("probe", script, "")
        )
    };
    let bypass = "request_headers set set cache/bypass 1\nrequest_headers get read cache/bypass\n\
        request_headers set bad cache/bypass perhaps\nresponse_headers set late cache/bypass 1\n\
        response_headers get status cache/status\n";
    let mut edge = Edge::start(&yaml(bypass), &[("app", origin.address())]);
    let first = Client::get(edge.web(), "/").await;
    for (name, expected) in [("set", "ok"), ("read", "0x01"), ("bad", "!2"), ("late", "!2"), ("status", "bypass")] {
        assert_eq!(shown(&first, name), expected, "{name}");
    }
    assert_eq!(first.text(), "answer 1");
    assert!(
        first.header("cache-status").unwrap().starts_with("edge; fwd=bypass"),
        "{:?}",
        first.header("cache-status")
    );
    assert_eq!(Client::get(edge.web(), "/").await.text(), "answer 2");

    edge.reload(&yaml("request_headers set - cache/bypass 1\nrequest_headers set - cache/bypass false\n")).unwrap();
    assert_eq!(Client::get(edge.web(), "/").await.text(), "answer 3", "nothing was stored, and the last word counts");
    assert_eq!(Client::get(edge.web(), "/").await.text(), "answer 3");
    edge.reload(&yaml(bypass)).unwrap();
    assert_eq!(Client::get(edge.web(), "/").await.text(), "answer 4", "what is stored is not used");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_is_silent_on_routes_without_one() {
    let origin = hello().await;
    let script = "request_headers set ttl cache/ttl 60\nrequest_headers set bypass cache/bypass 0\n".to_owned()
        + &gets("response_headers", &[("status", "cache/status"), ("hit", "cache/hit"), ("key", "cache/key")]);
    let edge = node(&[("probe", &script)], "", origin.address());
    let response = Client::get(edge.web(), "/").await;
    for (name, expected) in [("ttl", "ok"), ("bypass", "ok"), ("status", "!1"), ("hit", "!1"), ("key", "!1")] {
        assert_eq!(shown(&response, name), expected, "{name}");
    }
}

/// Bytes as the guest's scripts take them.
fn hex(parts: &[&[u8]]) -> String {
    parts.concat().iter().fold("0x".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_functions_answer_by_name() {
    let origin = hello().await;
    let (any, hour, key) = (0u32.to_le_bytes(), 3_600_000u64.to_le_bytes(), 3u32.to_le_bytes());
    let (two, ten, forever) = (2i64.to_le_bytes(), 10i64.to_le_bytes(), 0u64.to_le_bytes());
    let increment = hex(&[&two, &ten, &forever, b"hits"]);
    let script = [
        ("values", "selvedge.header_values", hex(&[&0u32.to_le_bytes(), b"X-One"])),
        ("novalues", "selvedge.header_values", hex(&[&2u32.to_le_bytes(), b"x-one"])),
        ("nomap", "selvedge.header_values", hex(&[&9u32.to_le_bytes(), b"x-one"])),
        ("berlin", "selvedge.geo_lookup", "192.0.2.7".to_owned()),
        ("nowhere", "selvedge.geo_lookup", "127.0.0.1".to_owned()),
        ("noaddress", "selvedge.geo_lookup", "example.com".to_owned()),
        ("twelve", "selvedge.shared.increment", increment.clone()),
        ("fourteen", "selvedge.shared.increment", increment),
        ("set", "selvedge.shared.set_ttl", hex(&[&any, &hour, &key, b"keyvalue"])),
        ("keys", "selvedge.shared.keys", hex(&[&9u32.to_le_bytes()])),
        ("deleted", "selvedge.shared.delete", "key".to_owned()),
        ("undeleted", "selvedge.shared.delete", "key".to_owned()),
        ("short", "selvedge.shared.increment", "abc".to_owned()),
        ("unknown", "selvedge.shared.flush", String::new()),
        ("route", "clear_route_cache", String::new()),
        ("zlib", "compress", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa".to_owned()),
        ("plain", "uncompress", "0x789c4b4cc40f00c8300c21".to_owned()),
        ("rubbish", "uncompress", "rubbish".to_owned()),
        ("sign", "sign", String::new()),
        ("verify", "verify_signature", String::new()),
        ("cel", "expr_create", "1 + 1".to_owned()),
        ("nothing", "no_such_function", String::new()),
    ]
    .map(|(name, function, arguments)| format!("request_headers call {name} {function} {arguments}\n"))
    .concat();
    let edge = node(&[("probe", &script)], "", origin.address());
    let response = Client::get_with(edge.web(), "/", "x-one: a\r\nx-one: b,c\r\n").await;
    for (name, expected) in [
        ("values", hex(&[&2u32.to_le_bytes(), &1u32.to_le_bytes(), b"a", &3u32.to_le_bytes(), b"b,c"])),
        ("novalues", hex(&[&0u32.to_le_bytes()])),
        ("nomap", "!2".into()),
        ("nowhere", "-".into()),
        ("noaddress", "!2".into()),
        ("twelve", hex(&[&12i64.to_le_bytes()])),
        ("fourteen", hex(&[&14i64.to_le_bytes()])),
        ("set", "0x01".into()),
        ("keys", hex(&[&2u32.to_le_bytes(), &4u32.to_le_bytes(), b"hits", &3u32.to_le_bytes(), b"key"])),
        ("deleted", "0x01".into()),
        ("undeleted", "0x00".into()),
        ("short", "!2".into()),
        ("unknown", "!1".into()),
        ("route", "-".into()),
        ("plain", "a".repeat(32)),
        ("rubbish", "!3".into()),
        ("sign", "!2".into()),
        ("verify", "!2".into()),
        ("cel", "!1".into()),
        ("nothing", "!1".into()),
    ] {
        assert_eq!(shown(&response, name), expected, "{name}");
    }
    assert!(shown(&response, "zlib").starts_with("0x789c"), "{}", shown(&response, "zlib"));
    let berlin = shown(&response, "berlin");
    for part in ["country", "DE", "city", "Berlin", "asn"] {
        assert!(berlin.contains(&hex(&[part.as_bytes()])[2..]), "{part}: {berlin}");
    }
}

/// Key spaces are the plugin's own: nobody counts, lists or deletes in another's.
#[tokio::test(flavor = "multi_thread")]
async fn foreign_functions_act_in_the_callers_key_space() {
    let origin = hello().await;
    let zero = [0u8; 8];
    let increment = hex(&[&1i64.to_le_bytes(), &zero, &zero, b"hits"]);
    let keys = hex(&[&9u32.to_le_bytes()]);
    let script = |name: &str| {
        format!("request_headers call {name}-hits selvedge.shared.increment {increment}\n")
            + &format!("request_headers call {name}-keys selvedge.shared.keys {keys}\n")
    };
    let (one, two) = (script("one") + &script("again"), script("two"));
    let edge = node(&[("one", &one), ("two", &two)], "", origin.address());
    let response = Client::get(edge.web(), "/").await;
    assert_eq!((number(&response, "one-hits"), number(&response, "again-hits")), (1, 2));
    assert_eq!(number(&response, "two-hits"), 1);
    assert_eq!(shown(&response, "two-keys"), hex(&[&1u32.to_le_bytes(), &4u32.to_le_bytes(), b"hits"]));
}
