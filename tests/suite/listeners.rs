//! How clients reach the node: through proxies that say for whom a connection is.

use std::net::SocketAddr;

use selvedge_tests::h2::H2Client;
use selvedge_tests::tls::Caller;
use selvedge_tests::{Client, Edge, Origin, Request, Response, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// `web`, `secure` and `db` (TCP) with these settings; `/f/` has a filter that shows what it knows of the connection.
async fn edge(node: &str, listener: &str, origin: &Origin) -> Edge {
    let (echo, _) = Origin::raw(|stream| async move {
        let (mut reader, mut writer) = stream.into_split();
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
    })
    .await;
    let show = "response_headers get source source/address\\nresponse_headers get destination destination/address\\n";
    let yaml = format!(
        "version: 1
node: {{ name: edge, workers: 1, shutdown_grace: 1s, module_cache: off, {node} }}
telemetry: {{ access_log: {{ output: off }}, metrics: {{ bind: \"127.0.0.1:0\" }} }}
listeners:
  web: {{ bind: \"127.0.0.1:0\", {listener} }}
  secure: {{ bind: \"127.0.0.1:0\", tls: {{ certificates: development }}, {listener} }}
  db: {{ bind: \"127.0.0.1:0\", tcp: {{ upstream: echo, filters: [told] }}, {listener} }}
filters:
  show: {{ wasm: \"file:${{GUESTS}}/properties.wasm\", config: \"{show}\", limits: {{ deadline: 20s }} }}
  told: {{ wasm: \"file:${{GUESTS}}/tcp.wasm\", config: \"properties source.address\", limits: {{ deadline: 20s }} }}
upstreams:
  app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }}
  echo: {{ endpoints: [\"127.0.0.1:${{PORT_echo}}\"] }}
sites:
  - hosts: [\"*\"]
    routes:
      - {{ match: {{ path: /f/* }}, filters: [show], to: app }}
      - {{ match: {{ client: [198.51.100.0/24] }}, respond: {{ status: 200, body: inside }} }}
      - {{ to: app }}
"
    );
    Edge::start(&yaml, &[("app", origin.address()), ("echo", echo)])
}

async fn origin() -> Origin {
    let answer = |request: &Request| {
        let told = request.header("x-forwarded-for").unwrap_or("nobody").to_owned();
        Origin::reply(200, &[], told)
    };
    Origin::start(answer).await
}

const TRUSTED: &str = "trusted_proxies: [127.0.0.1]";

/// For 192.0.2.1:56324, who connected to 198.51.100.7:443.
const V1: &[u8] = b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n";

/// The same in version 2, with a TLV.
fn v2() -> Vec<u8> {
    let addresses = [192, 0, 2, 1, 198, 51, 100, 7, 0xdc, 0x04, 0x01, 0xbb];
    [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x14".as_slice(), &addresses, b"\x02\0\x05a.tes"].concat()
}

/// A connection that has begun with these bytes.
async fn begun(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = soon("connect", TcpStream::connect(address)).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

async fn get(address: SocketAddr, header: &[u8], path: &str, fields: &str) -> Response {
    let mut client = Client::over(begun(address, header).await);
    client.request(&format!("GET {path} HTTP/1.1\r\nhost: a\r\n{fields}\r\n")).await
}

async fn refused(edge: &Edge, reason: &str) -> u64 {
    let page = Client::get(edge.metrics(), "/metrics").await.text();
    let sample = format!("selvedge_proxy_protocol_refused_total{{reason=\"{reason}\"}} ");
    page.lines().find_map(|line| line.strip_prefix(&sample)).unwrap().parse().unwrap()
}

fn shown<'r>(response: &'r Response, name: &str) -> &'r str {
    response.header(&format!("x-{name}")).unwrap_or_else(|| panic!("no x-{name} in {:?}", response.headers))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_says_for_whom_a_connection_is() {
    let origin = origin().await;
    for mode in ["require", "accept"] {
        let edge = edge(TRUSTED, &format!("proxy_protocol: {mode}"), &origin).await;
        for header in [V1, &v2()] {
            assert_eq!(get(edge.web(), header, "/", "").await.text(), "192.0.2.1", "{mode}");
            // The client is no proxy of ours: what it says about itself is replaced.
            assert_eq!(get(edge.web(), header, "/", "x-forwarded-for: 10.9.9.9\r\n").await.text(), "192.0.2.1");
            let response = get(edge.web(), header, "/f/", "").await;
            assert_eq!(shown(&response, "source"), "192.0.2.1:56324");
            assert_eq!(shown(&response, "destination"), "198.51.100.7:443");

            let tls = Caller::new("localhost", &["http/1.1"]).connector();
            let name = "localhost".try_into().unwrap();
            let stream = tls.connect(name, begun(edge.secure(), header).await).await.unwrap();
            let response = Client::over(stream).request("GET /f/ HTTP/1.1\r\nhost: a\r\n\r\n").await;
            assert_eq!((response.text(), shown(&response, "source")), ("192.0.2.1".into(), "192.0.2.1:56324"));

            let mut stream = begun(edge.listener("db"), header).await;
            stream.write_all(b"?").await.unwrap();
            let mut answer = vec![0; 15];
            soon("the filter's answer", stream.read_exact(&mut answer)).await.unwrap();
            assert_eq!(answer, b"192.0.2.1:56324");
        }
        // What a header says decides about routes as well; several requests come on one connection.
        let mut client = Client::over(begun(edge.web(), b"PROXY TCP4 198.51.100.9 127.0.0.1 1 2\r\n").await);
        for _ in 0..2 {
            assert_eq!(client.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.text(), "inside");
        }
        // A client that is itself a trusted proxy is believed as one.
        let chained =
            get(edge.web(), b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n", "/", "x-forwarded-for: 192.0.2.77\r\n");
        assert_eq!(chained.await.text(), "192.0.2.77");
        // LOCAL and UNKNOWN: the proxy itself.
        for header in [b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".as_slice(), b"PROXY UNKNOWN\r\n"] {
            assert_eq!(get(edge.web(), header, "/", "").await.text(), "127.0.0.1", "{mode}");
        }
        assert_eq!(refused(&edge, "untrusted").await + refused(&edge, "malformed").await, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_streams_know_whom_the_proxy_named() {
    let origin = origin().await;
    let edge = edge(TRUSTED, "proxy_protocol: require", &origin).await;
    let tls = Caller::new("localhost", &["h2"]).connector();
    let stream = tls.connect("localhost".try_into().unwrap(), begun(edge.secure(), &v2()).await).await.unwrap();
    let h2 = H2Client::over(stream).await;
    let response = h2.request("GET", "/f/", &[], b"").await.unwrap();
    assert_eq!((response.text(), shown(&response, "source")), ("192.0.2.1".into(), "192.0.2.1:56324"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_may_come_byte_by_byte_but_not_for_ever() {
    let origin = origin().await;
    let edge = edge(TRUSTED, "proxy_protocol: require, limits: { header_timeout: 2s }", &origin).await;
    for header in [V1, &v2()] {
        let mut stream = begun(edge.web(), b"").await;
        stream.set_nodelay(true).unwrap();
        for byte in header {
            stream.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
        let response = Client::over(stream).request("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert_eq!(response.text(), "192.0.2.1");
    }
    let mut stream = begun(edge.web(), &V1[..20]).await;
    assert_eq!(soon("the end", stream.read(&mut [0; 8])).await.unwrap_or(0), 0);
    assert_eq!(refused(&edge, "late").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_says_so() {
    let origin = origin().await;
    // 127.0.0.1, where the tests come from, is no proxy here.
    let stranger = "trusted_proxies: [192.0.2.250]";
    let strict = edge(stranger, "proxy_protocol: require", &origin).await;
    for (count, header) in [V1, b"", &v2()].into_iter().enumerate() {
        let mut stream = begun(strict.web(), header).await;
        assert_eq!(soon("the end", stream.read(&mut [0; 8])).await.unwrap_or(0), 0, "nothing is answered");
        assert_eq!(refused(&strict, "untrusted").await, count as u64 + 1);
    }
    let open = edge(stranger, "proxy_protocol: accept", &origin).await;
    assert_eq!(get(open.web(), b"", "/", "").await.text(), "127.0.0.1", "clients come without a header");
    assert_eq!(get(open.web(), V1, "/", "").await.status, 400, "a header is no request");
    let off = edge(TRUSTED, "", &origin).await;
    assert_eq!(get(off.web(), V1, "/", "").await.status, 400, "nobody asked for one");
    assert_eq!(origin.started(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_proxy_without_a_header_is_not_served() {
    let origin = origin().await;
    for mode in ["require", "accept"] {
        let edge = edge(TRUSTED, &format!("proxy_protocol: {mode}"), &origin).await;
        for bytes in [b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".as_slice(), b"PROXY TCP4 1 2 3 4\r\n"] {
            let mut stream = begun(edge.web(), bytes).await;
            assert_eq!(soon("the end", stream.read(&mut [0; 8])).await.unwrap_or(0), 0, "nothing is answered");
        }
        assert_eq!(refused(&edge, "malformed").await, 2);
    }
    assert_eq!(origin.started(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_counted_for_whom_the_proxy_names() {
    let origin = origin().await;
    let edge = edge(TRUSTED, "proxy_protocol: require, limits: { connections_per_client: 1 }", &origin).await;
    let mut first = Client::over(begun(edge.web(), V1).await);
    let ask = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    assert_eq!(first.request(ask).await.status, 200);
    let mut second = begun(edge.web(), &v2()).await;
    assert_eq!(soon("the end", second.read(&mut [0; 8])).await.unwrap_or(0), 0, "the same client");
    let other = b"PROXY TCP4 192.0.2.2 198.51.100.7 1 2\r\n";
    assert_eq!(get(edge.web(), other, "/", "").await.text(), "192.0.2.2");
    drop(first);
    let web = edge.web();
    let again = async move {
        loop {
            let mut stream = begun(web, V1).await;
            let _ = stream.write_all(ask.as_bytes()).await;
            if stream.read(&mut [0; 8]).await.unwrap_or(0) > 0 {
                break;
            }
        }
    };
    soon("its place is free again", again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forwarded_is_believed_where_nobody_says_it_in_the_older_way() {
    let origin = origin().await;
    let field = "forwarded: for=10.1.1.1;host=evil.test, for=\"[2001:db8::7]:4711\";proto=https;host=\"shop.test:8443\";by=_x\r\n";
    let trusting = edge(TRUSTED, "", &origin).await;
    for path in ["/", "/f/"] {
        let response = get(trusting.web(), b"", path, field).await;
        if path == "/f/" {
            assert_eq!(shown(&response, "source"), "[2001:db8::7]:4711");
        }
        let told = origin.last();
        let fields = |name: &str| -> Vec<String> {
            told.headers.iter().filter(|(known, _)| known == name).map(|(_, value)| value.clone()).collect()
        };
        assert_eq!(fields("x-forwarded-for"), ["2001:db8::7", "127.0.0.1"]);
        assert_eq!(fields("x-forwarded-proto"), ["https"]);
        assert_eq!(fields("x-forwarded-host"), ["shop.test:8443"]);
        assert_eq!(fields("forwarded"), [""; 0], "said in one way only");
    }
    // The older fields win, what is malformed is nothing, and nobody else is believed.
    let older = format!("{field}x-forwarded-for: 192.0.2.8\r\n");
    assert_eq!(get(trusting.web(), b"", "/", &older).await.text(), "192.0.2.8");
    assert_eq!(get(trusting.web(), b"", "/", "forwarded: for=a;for=b\r\n").await.text(), "127.0.0.1");
    let wary = edge("trusted_proxies: [192.0.2.250]", "", &origin).await;
    assert_eq!(get(wary.web(), b"", "/", field).await.text(), "127.0.0.1");
    assert_eq!(origin.last().header("x-forwarded-proto"), Some("http"));
    assert_eq!(origin.last().header("forwarded"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_listener_sends_everybody_to_https() {
    let yaml = "version: 1
node: { name: edge, workers: 1, shutdown_grace: 1s, module_cache: off }
telemetry: { access_log: { output: off } }
listeners:
  web: { bind: \"127.0.0.1:0\", redirect_to_https: true }
  other: { bind: \"127.0.0.1:0\", redirect_to_https: { port: 8443, status: 301 } }
";
    let edge = Edge::start(yaml, &[]); // no sites: nobody would be served
    for (listener, status, to) in [("web", 308, "https://a.test"), ("other", 301, "https://a.test:8443")] {
        let mut client = Client::connect(edge.listener(listener)).await;
        for (request, target) in [
            ("GET /x?y=1 HTTP/1.1\r\nhost: a.test\r\n\r\n", "/x?y=1"),
            ("HEAD / HTTP/1.1\r\nhost: a.test:8080\r\n\r\n", "/"),
            ("POST /form HTTP/1.1\r\nhost: a.test\r\ncontent-length: 2\r\n\r\nhi", "/form"),
            ("GET http://a.test/abs HTTP/1.1\r\nhost: a.test\r\n\r\n", "/abs"),
            ("GET //evil.test/%2e%2e HTTP/1.1\r\nhost: a.test\r\n\r\n", "/"),
        ] {
            let response = client.request(request).await;
            assert_eq!((response.status, response.text().as_str()), (status, ""), "{request}");
            assert_eq!(response.header("location"), Some(format!("{to}{target}").as_str()), "{request}");
        }
        for bad in [
            "GET / HTTP/1.1\r\nhost: a.test/evil\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a@evil.test\r\n\r\n",
            "GET / HTTP/1.1\r\nhost: a.test\r\nhost: b.test\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nhost: a.test\r\n\r\n",
        ] {
            let response = Client::connect(edge.listener(listener)).await.request(bad).await;
            assert_eq!((response.status, response.header("location")), (400, None), "{bad}");
        }
        let h2 = H2Client::connect(edge.listener(listener)).await;
        let response = h2.request("GET", "/h2", &[], b"").await.unwrap();
        let to = to.replace("a.test", "test");
        assert_eq!((response.status, response.header("location")), (status, Some(format!("{to}/h2").as_str())));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_issues_certificates_may_look_before_everybody_is_sent_to_https() {
    let yaml = "version: 1
node: { name: edge, workers: 1, shutdown_grace: 1s, module_cache: off }
telemetry: { access_log: { output: off } }
listeners:
  web: { bind: \"127.0.0.1:0\", redirect_to_https: { acme_challenge: true } }
  other: { bind: \"127.0.0.1:0\", redirect_to_https: true }
  secure: { bind: \"127.0.0.1:0\", tls: { certificates: development } }
sites:
  - hosts: [a.test]
    routes:
      - { match: { path: /.well-known/acme-challenge/* }, respond: { status: 200, body: token } }
      - { respond: { status: 200, body: page } }
";
    let edge = Edge::start(yaml, &[]);
    let ask = async |listener: &str, path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nhost: a.test\r\n\r\n");
        Client::connect(edge.listener(listener)).await.request(&request).await
    };
    let token = "/.well-known/acme-challenge/abc";
    let answer = ask("web", token).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "token"));
    for path in ["/", "/.well-known/acme-challenge", "/.well-known/acme-challenge/../../page", "/.well-known/other"] {
        let answer = ask("web", path).await;
        assert_eq!(answer.status, 308, "{path}");
    }
    let answer = ask("other", token).await;
    assert_eq!((answer.status, answer.header("location")), (308, Some(&*format!("https://a.test{token}"))));
}

#[tokio::test(flavor = "multi_thread")]
async fn head_has_no_body_whoever_answers() {
    let yaml = "
sites:
  - hosts: [test]
    routes:
      - { match: { path: /fixed }, respond: { status: 200, body: hello } }
      - { match: { path: /away }, respond: { status: 503, body: sorry } }
";
    let edge = Edge::start(yaml, &[]);
    let h2 = H2Client::connect(edge.web()).await;
    for (path, status, length) in [("/fixed", 200, 5), ("/away", 503, 5), ("/none", 404, 30)] {
        let whole = h2.request("GET", path, &[], b"").await.unwrap();
        assert_eq!((whole.status, whole.body.len()), (status, length), "{path}");
        let head = h2.request("HEAD", path, &[], b"").await.unwrap();
        assert_eq!((head.status, head.body.len()), (status, 0), "{path}");
        assert_eq!(head.header("content-length"), Some(&*length.to_string()), "{path}");
        let mut h1 = Client::connect(edge.web()).await;
        for _ in 0..2 {
            let head = h1.request(&format!("HEAD {path} HTTP/1.1\r\nhost: test\r\n\r\n")).await;
            assert_eq!((head.status, head.header("content-length")), (status, Some(&*length.to_string())), "{path}");
        }
    }
}
