//! Endpoints of upstreams that are looked after: health checks, names, sockets, certificates.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use selvedge::upstream::EndpointStatus;
use selvedge_tests::{Client, Edge, Origin, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket, UnixListener};

/// A node with one route to `app`, which is given as YAML.
fn yaml(app: &str) -> String {
    format!("upstreams: {{ app: {app} }}\nsites: [{{ hosts: [\"*\"], routes: [{{ name: all, to: app }}] }}]")
}

fn endpoints(edge: &Edge) -> Vec<EndpointStatus> {
    edge.plan().upstreams.get("app").expect("configured").endpoints()
}

fn in_use(edge: &Edge) -> Vec<bool> {
    endpoints(edge).iter().map(|endpoint| endpoint.in_use).collect()
}

/// An origin with a health page that says what it is told to.
async fn origin(name: &'static str) -> (Origin, Arc<AtomicBool>) {
    let well = Arc::new(AtomicBool::new(true));
    let now = Arc::clone(&well);
    let origin = Origin::start(move |request| match (request.target.as_str(), now.load(Ordering::SeqCst)) {
        ("/healthz", true) => Origin::reply(200, &[], "all ready"),
        ("/healthz", false) => Origin::reply(503, &[], ""),
        _ => Origin::reply(200, &[], name),
    })
    .await;
    (origin, well)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_is_not_well_gets_no_requests_until_it_is() {
    for protocol in ["h1", "h2"] {
        let ((a, a_is_well), (b, _)) = (origin("a").await, origin("b").await);
        let app = yaml(&format!(
            "{{ endpoints: [\"127.0.0.1:${{PORT_a}}\", \"127.0.0.1:${{PORT_b}}\"], protocol: {protocol},
            health_check: {{ http: {{ path: /healthz, host: health.test, body: ready }}, interval: 50ms, timeout: 10s, unhealthy: 2 }} }}"
        ));
        let edge = Edge::start(&app, &[("a", a.address()), ("b", b.address())]);
        until("both were checked", || endpoints(&edge).iter().all(|one| one.healthy == Some(true))).await;
        let check = a.received().into_iter().find(|request| request.target == "/healthz").expect("a check");
        let host = check.header("host").or(check.header(":authority"));
        assert_eq!((check.method.as_str(), host), ("GET", Some("health.test")), "{protocol}");

        a_is_well.store(false, Ordering::SeqCst);
        until("it is left out", || in_use(&edge) == [false, true]).await;
        assert_eq!(endpoints(&edge)[0].failure.as_deref(), Some("status 503"));
        for _ in 0..6 {
            assert_eq!(Client::get(edge.web(), "/").await.text(), "b");
        }
        a_is_well.store(true, Ordering::SeqCst);
        until("it is back", || in_use(&edge) == [true, true]).await;
        let answers = [Client::get(edge.web(), "/").await.text(), Client::get(edge.web(), "/").await.text()];
        assert!(answers.contains(&"a".to_owned()) && answers.contains(&"b".to_owned()), "{answers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_nonsense_and_the_wrong_words_are_no_signs_of_health() {
    let (well, _) = origin("well").await;
    let (silent, _silent) = Origin::raw(|mut stream| async move {
        let mut bytes = [0; 1024];
        while stream.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
    })
    .await;
    let (nonsense, _nonsense) = Origin::raw(|mut stream| async move {
        let _ = stream.write_all(b"\x00\x01 what?\r\n\r\n").await;
    })
    .await;
    let (wrong, _wrong) = Origin::raw(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nalas!").await;
        let mut bytes = [0; 1024];
        while stream.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
    })
    .await;
    let edge = Edge::start(
        &yaml(
            "{ endpoints: [\"127.0.0.1:${PORT_a}\", \"127.0.0.1:${PORT_b}\", \"127.0.0.1:${PORT_c}\", \"127.0.0.1:${PORT_d}\"],
            health_check: { http: { path: /healthz, body: ready }, interval: 50ms, timeout: 500ms }, panic: 0% }",
        ),
        &[("a", well.address()), ("b", silent), ("c", nonsense), ("d", wrong)],
    );
    until("three are left out", || in_use(&edge) == [true, false, false, false]).await;
    // The last check of each says why; on a machine that is busy one may have had no answer in time.
    let why = |index: usize| endpoints(&edge)[index].failure.clone().unwrap_or_default();
    until("silence is told", || why(1) == "no answer in 500ms").await;
    until("nonsense is told", || !["", "no answer in 500ms"].contains(&why(2).as_str())).await;
    until("the wrong words are told", || why(3) == "the body does not contain what it should").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_and_a_grpc_service_are_checked() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let tcp = listener.local_addr().expect("bound");
    let accepting = tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    let edge = Edge::start(
        &yaml("{ endpoints: [\"127.0.0.1:${PORT_a}\"], health_check: { tcp: {}, interval: 50ms }, panic: 0% }"),
        &[("a", tcp)],
    );
    until("it is checked", || endpoints(&edge)[0].healthy == Some(true)).await;
    accepting.abort();
    until("it is left out", || in_use(&edge) == [false]).await;
    assert_eq!(Client::get(edge.web(), "/").await.status, 503);

    let serving = Arc::new(AtomicBool::new(true));
    let now = Arc::clone(&serving);
    let server = Origin::start(move |request| {
        assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", "/grpc.health.v1.Health/Check"));
        assert_eq!(&request.body[..], b"\x00\x00\x00\x00\x05\x0a\x03app");
        let status = if now.load(Ordering::SeqCst) { 1 } else { 2 };
        let frame = Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, status]);
        Origin::with_trailers(200, &[("content-type", "application/grpc")], frame, &[("grpc-status", "0")])
    })
    .await;
    let edge = Edge::start(
        &yaml(
            "{ endpoints: [\"127.0.0.1:${PORT_a}\"], protocol: h2,
            health_check: { grpc: { service: app }, interval: 50ms, timeout: 10s, initial: unhealthy }, panic: 0% }",
        ),
        &[("a", server.address())],
    );
    until("it is checked", || in_use(&edge) == [true]).await;
    serving.store(false, Ordering::SeqCst);
    until("it is left out", || in_use(&edge) == [false]).await;
    assert_eq!(endpoints(&edge)[0].failure.as_deref(), Some("not serving"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_keeps_what_is_known_and_does_not_check_twice() {
    let (a, _) = origin("a").await;
    let app = yaml(
        "{ endpoints: [\"127.0.0.1:${PORT_a}\"], health_check: { http: { path: /healthz }, interval: 1h, timeout: 10s } }",
    );
    let mut edge = Edge::start(&app, &[("a", a.address())]);
    until("it is checked", || endpoints(&edge)[0].healthy == Some(true)).await;
    for limit in 1..=5 {
        edge.reload(&app.replace("health_check", &format!("timeouts: {{ read: {limit}s }}, health_check")))
            .expect("in order");
        let known = endpoints(&edge);
        assert_eq!((known[0].healthy, known[0].checks), (Some(true), 1));
    }
    // A shorter interval counts from the check that was: the next one is due at once, and there is one of it.
    let begun = Instant::now();
    edge.reload(&app.replace("1h", "300ms")).expect("in order");
    until("there were some", || endpoints(&edge)[0].checks >= 6).await;
    let (checks, took) = (endpoints(&edge)[0].checks - 1, begun.elapsed());
    let most = took.as_millis() / 270 + 2;
    assert!(u128::from(checks) <= most, "{checks} checks in {took:?}");
    edge.reload(&app.replace("health_check: { http: { path: /healthz }, interval: 1h, timeout: 10s }", "panic: 0%"))
        .expect("in order");
    assert_eq!(endpoints(&edge)[0].healthy, None, "nobody checks any more");
}

/// A name server that answers every question for addresses alike.
pub(super) struct NameServer {
    pub(super) address: SocketAddr,
    says: Arc<Mutex<Says>>,
    asked: Arc<AtomicBool>,
}

#[derive(Clone)]
pub(super) enum Says {
    Addresses(Vec<[u8; 4]>),
    NoSuchName,
    Nothing,
    /// SRV records of `_http._tcp.app.test`: priority, weight, port; the host of each is 127.0.0.1.
    Services(Vec<[u16; 3]>),
}

impl NameServer {
    pub(super) async fn start(says: Says) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let address = socket.local_addr().expect("bound");
        let says = Arc::new(Mutex::new(says));
        let asked = Arc::new(AtomicBool::new(false));
        let (now, seen) = (Arc::clone(&says), Arc::clone(&asked));
        tokio::spawn(async move {
            let mut bytes = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut bytes).await {
                seen.store(true, Ordering::SeqCst);
                let says = now.lock().clone();
                if let Some(answer) = answer(&bytes[..length], &says) {
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        });
        Self { address, says, asked }
    }

    /// From now on it says this, and somebody has asked since.
    pub(super) async fn say(&self, says: Says) {
        *self.says.lock() = says;
        self.asked.store(false, Ordering::SeqCst);
        until("the name is looked up again", || self.asked.load(Ordering::SeqCst)).await;
    }
}

/// RFC 1035, 4.1: the question comes back, with addresses that may be kept for no time at all.
fn answer(query: &[u8], says: &Says) -> Option<Vec<u8>> {
    let name_ends = 12 + query[12..].iter().position(|byte| *byte == 0)?;
    let question = &query[12..name_ends + 5];
    let kind = query[name_ends + 2];
    let of_ipv4 = kind == 1;
    if let Says::Services(records) = says {
        return Some(services(query, question, kind, records));
    }
    let addresses = match says {
        Says::Nothing => return None,
        Says::Addresses(addresses) if of_ipv4 => addresses.clone(),
        _ => Vec::new(),
    };
    let code = if matches!(says, Says::NoSuchName) { 3 } else { 0 };
    let mut answer =
        vec![query[0], query[1], 0x81, 0x80 | code, 0, 1, 0, u8::try_from(addresses.len()).ok()?, 0, 0, 0, 0];
    answer.extend_from_slice(question);
    for address in addresses {
        answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        answer.extend_from_slice(&address);
    }
    Some(answer)
}

/// RFC 2782: `priority weight port target`, and the address of every target.
fn services(query: &[u8], question: &[u8], kind: u8, records: &[[u16; 3]]) -> Vec<u8> {
    let count = match kind {
        33 => u8::try_from(records.len()).expect("few"),
        1 => 1,
        _ => 0,
    };
    let mut answer = vec![query[0], query[1], 0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0];
    answer.extend_from_slice(question);
    if kind == 1 {
        answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1]);
    }
    for (index, record) in records.iter().enumerate().filter(|_| kind == 33) {
        let target = format!("h{index}");
        let target = [&[u8::try_from(target.len()).expect("short")], target.as_bytes(), b"\x04test\0"].concat();
        let length = u8::try_from(6 + target.len()).expect("short");
        answer.extend_from_slice(&[0xc0, 12, 0, 33, 0, 1, 0, 0, 0, 0, 0, length]);
        record.iter().for_each(|number| answer.extend_from_slice(&number.to_be_bytes()));
        answer.extend_from_slice(&target);
    }
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_found_with_its_ports_weights_and_priorities() {
    let [(a, _), (b, _), (c, _)] = [origin("a").await, origin("b").await, origin("c").await];
    let port = |origin: &Origin| origin.address().port();
    let names = NameServer::start(Says::Services(vec![[1, 30, port(&a)], [1, 10, port(&b)], [2, 5, port(&c)]])).await;
    let edge = Edge::start(
        &yaml(&format!(
            "{{ endpoints: [{{ srv: _http._tcp.app.test }}], dns: {{ resolver: [\"{}\"], ttl_min: 100ms, timeout: 1s }} }}",
            names.address
        )),
        &[],
    );
    let ask = async || {
        let mut answers = String::new();
        for _ in 0..8 {
            answers.push_str(&Client::get(edge.web(), "/").await.text());
        }
        let count = |name| answers.matches(name).count();
        [count("a"), count("b"), count("c")]
    };
    assert_eq!(ask().await, [6, 2, 0], "by weight, the second priority not at all");
    assert_eq!(endpoints(&edge).iter().map(|one| one.in_use).filter(|in_use| *in_use).count(), 2);
    let upstream = Arc::clone(edge.plan().upstreams.get("app").expect("configured"));
    let drain = |origin: &Origin, drain| {
        let address = selvedge::upstream::Address::Inet(origin.address());
        let found = upstream.endpoints().into_iter().find(|one| one.address == address).expect("known");
        assert!(upstream.drain(found.id, drain));
    };
    drain(&a, true);
    assert_eq!(ask().await, [0, 8, 0]);
    drain(&b, true);
    assert_eq!(ask().await, [0, 0, 8], "the next priority, when nobody is left");
    drain(&a, false);
    assert_eq!(ask().await, [8, 0, 0]);
    drain(&b, false);

    // Other records, other ports; what goes wrong changes nothing.
    names.say(Says::Services(vec![[7, 0, port(&c)]])).await;
    until("there is one", || endpoints(&edge).len() == 1).await;
    assert_eq!(ask().await, [0, 0, 8]);
    for trouble in [Says::Nothing, Says::NoSuchName, Says::Services(Vec::new())] {
        names.say(trouble.clone()).await;
        names.say(trouble).await;
        assert_eq!(ask().await, [0, 0, 8]);
    }
}

fn addresses(edge: &Edge) -> Vec<IpAddr> {
    endpoints(edge).iter().filter_map(|endpoint| endpoint.address.as_inet()).map(|address| address.ip()).collect()
}

fn named(name_server: &NameServer) -> String {
    yaml(&format!(
        "{{ endpoints: [\"app.test:${{PORT_a}}\"], dns: {{ resolver: [\"{}\"], ttl_min: 100ms, timeout: 1s }} }}",
        name_server.address
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_followed_and_its_last_good_answer_kept() {
    let (a, _) = origin("a").await;
    let names = NameServer::start(Says::Addresses(vec![[127, 0, 0, 1]])).await;
    let mut edge = Edge::start(&named(&names), &[("a", a.address())]);
    assert_eq!(Client::get(edge.web(), "/").await.text(), "a");
    let (one, two) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));

    names.say(Says::Addresses(vec![[127, 0, 0, 2], [127, 0, 0, 1]])).await;
    until("there are two", || addresses(&edge) == [one, two]).await;
    assert_eq!(endpoints(&edge)[0].requests, 1, "it stays what it was");
    for _ in 0..4 {
        assert_eq!(Client::get(edge.web(), "/").await.text(), "a", "nobody listens at the other one");
    }
    for trouble in [Says::Nothing, Says::NoSuchName, Says::Addresses(Vec::new())] {
        names.say(trouble.clone()).await;
        names.say(trouble).await;
        assert_eq!(addresses(&edge), [one, two]);
    }
    edge.reload(&named(&names).replace("ttl_min", "ttl_max: 1s, ttl_min"))
        .expect_err("another way to look names up has no answer yet");
    edge.reload(&named(&names).replace("dns:", "panic: 10%, dns:")).expect("the last good answer outlives a reload");
    assert_eq!(addresses(&edge), [one, two]);
    names.say(Says::Addresses(vec![[127, 0, 0, 1]])).await;
    until("one is gone", || addresses(&edge) == [one]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_starts_without_its_resolver_but_not_with_a_name_that_does_not_exist() {
    let (a, _) = origin("a").await;
    let names = NameServer::start(Says::NoSuchName).await;
    let report = Edge::try_start(&named(&names), &[("a", a.address())]).err().expect("at fault").to_string();
    assert!(report.contains("app.test does not resolve: ") && report.contains("config.yaml:"), "{report}");
    let partly = named(&names).replace("[\"app.test", "[\"127.0.0.1:${PORT_a}\", \"app.test");
    let edge = Edge::start(&partly, &[("a", a.address())]);
    assert_eq!(Client::get(edge.web(), "/").await.text(), "a");

    *names.says.lock() = Says::Nothing;
    let edge = Edge::start(&named(&names), &[("a", a.address())]);
    assert_eq!(Client::get(edge.web(), "/").await.status, 503);
    names.say(Says::Addresses(vec![[127, 0, 0, 1]])).await;
    until("it resolves", || !addresses(&edge).is_empty()).await;
    assert_eq!(Client::get(edge.web(), "/").await.text(), "a");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_may_be_a_unix_socket() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("app.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = [0; 4096];
            if stream.read(&mut bytes).await.is_ok_and(|read| read > 0) {
                let _ =
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nunix").await;
            }
        }
    });
    let app = format!("{{ endpoints: [\"unix:{}\"], health_check: {{ http: {{}}, interval: 1h }} }}", path.display());
    let edge = Edge::start(&yaml(&app), &[]);
    assert_eq!(Client::get(edge.web(), "/").await.text(), "unix");
    until("it is checked", || endpoints(&edge)[0].healthy == Some(true)).await;
    assert_eq!(endpoints(&edge)[0].address.to_string(), format!("unix:{}", path.display()));
}

/// A server on TLS that says whether it was shown a certificate, and an authority for both sides.
async fn secured(folder: &std::path::Path) -> SocketAddr {
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_key = rcgen::KeyPair::generate().expect("a key");
    let authority = params.self_signed(&authority_key).expect("an authority");
    let issuer = rcgen::Issuer::from_params(&params, &authority_key);
    let issue = |name: &str| {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("a name");
        (params.signed_by(&key, &issuer).expect("a certificate"), key)
    };
    let ((server, server_key), (client, client_key)) = (issue("127.0.0.1"), issue("edge.test"));
    for (name, text) in
        [("ca.pem", authority.pem()), ("client.pem", client.pem()), ("client.key", client_key.serialize_pem())]
    {
        std::fs::write(folder.join(name), text).expect("written");
    }

    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.der().clone()).expect("an authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider));
    let verifier = verifier.allow_unauthenticated().build().expect("a verifier");
    let key = rustls::pki_types::PrivateKeyDer::try_from(server_key.serialize_der()).expect("a key");
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![server.der().clone()], key)
        .expect("a certificate");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let shown = stream.get_ref().1.peer_certificates().is_some_and(|shown| !shown.is_empty());
                let mut bytes = [0; 4096];
                if stream.read(&mut bytes).await.is_ok_and(|read| read > 0) {
                    let body = if shown { "known" } else { "anon!" };
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\n{body}");
                    let _ = stream.write_all(answer.as_bytes()).await;
                    let _ = stream.shutdown().await;
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_is_verified_by_its_own_name_and_shown_our_certificate() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = secured(folder.path()).await;
    let at = |name: &str| folder.path().join(name).display().to_string();
    let app = |tls: &str| yaml(&format!("{{ endpoints: [\"127.0.0.1:${{PORT_a}}\"], tls: {tls} }}"));
    let origins = [("a", server)];

    let trusted = app(&format!("{{ ca: {} }}", at("ca.pem")));
    let mut edge = Edge::start(&trusted, &origins);
    assert_eq!(Client::get(edge.web(), "/").await.text(), "anon!", "its address is the name that is verified");
    edge.reload(&app(&format!("{{ ca: {}, cert: {}, key: {} }}", at("ca.pem"), at("client.pem"), at("client.key"))))
        .expect("in order");
    assert_eq!(Client::get(edge.web(), "/").await.text(), "known");

    for refused in ["{}".to_owned(), format!("{{ ca: {}, sni: other.test }}", at("ca.pem"))] {
        edge.reload(&app(&refused)).expect("in order");
        assert_eq!(Client::get(edge.web(), "/").await.status, 502, "{refused}");
    }
    edge.reload(&app("{ verify: false }")).expect("in order");
    assert_eq!(Client::get(edge.web(), "/").await.text(), "anon!");

    let mixed = format!("{{ cert: {}, key: {} }}", at("ca.pem"), at("client.key"));
    let report = edge.reload(&app(&mixed)).expect_err("they do not go together");
    assert!(report.contains("do not go together"), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_are_in_the_metrics() {
    let (a, _) = origin("a").await;
    let text = format!(
        "version: 1\nnode: {{ name: edge, workers: 1 }}\ntelemetry: {{ access_log: {{ output: off }}, metrics: {{ bind: \"127.0.0.1:0\" }} }}\nlisteners:\n  web: {{ bind: \"127.0.0.1:0\" }}\n{}",
        yaml("{ endpoints: [\"127.0.0.1:${PORT_a}\"], health_check: { http: { path: /healthz }, interval: 1h } }")
    );
    let edge = Edge::start(&text, &[("a", a.address())]);
    until("it is checked", || endpoints(&edge)[0].healthy == Some(true)).await;
    assert_eq!(Client::get(edge.web(), "/").await.status, 200);
    let labels = format!("{{upstream=\"app\",endpoint=\"{}\"}}", a.address());
    let page = Client::get(edge.metrics(), "/metrics").await.text();
    for sample in [
        "selvedge_upstream_panic{upstream=\"app\"} 0".to_owned(),
        format!("selvedge_upstream_endpoint_in_use{labels} 1"),
        format!("selvedge_upstream_endpoint_healthy{labels} 1"),
        format!("selvedge_upstream_requests_total{labels} 1"),
        format!("selvedge_upstream_checks_total{labels} 1"),
        "selvedge_upstream_dns_failures_total 0".to_owned(),
    ] {
        assert!(page.lines().any(|line| line == sample), "{sample} in\n{page}");
    }
}
