//! TLS towards clients: which certificate is shown, who is refused, and what a swap of files leaves alone.

use std::net::SocketAddr;
use std::process::Command;

use rustls::{AlertDescription, HandshakeKind, SignatureScheme};
use selvedge_tests::h2::H2Client;
use selvedge_tests::tls::{Authority, Caller, Issued, alert, shown};
use selvedge_tests::{Client, Edge, soon};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PROGRAM: &str = env!("CARGO_BIN_EXE_selvedge-under-test");
const GET: &str = "GET / HTTP/1.1\r\nhost: test\r\n\r\n";
const EC: &rcgen::SignatureAlgorithm = &rcgen::PKCS_ECDSA_P256_SHA256;
const ED: &rcgen::SignatureAlgorithm = &rcgen::PKCS_ED25519;

/// A node whose listener `secure` has this `tls`.
fn config(tls: &str) -> String {
    format!(
        "version: 1
node: {{ name: edge, workers: 1, shutdown_grace: 1s, module_cache: off }}
telemetry: {{ access_log: {{ output: off }} }}
listeners:
  secure: {{ bind: \"127.0.0.1:0\", tls: {tls} }}
sites:
  - hosts: [\"*\"]
    routes: [{{ name: all, respond: {{ status: 200, body: hello }} }}]
"
    )
}

/// A folder with certificates for lists of names, and `certificates:` for them.
fn certificates(of: &[(&[&str], &'static rcgen::SignatureAlgorithm)]) -> (TempDir, Vec<Issued>, String) {
    let folder = TempDir::new().expect("a folder");
    let authority = Authority::new("servers");
    let issued: Vec<Issued> = of.iter().map(|(names, kind)| authority.issue_with(names, kind, |_| ())).collect();
    let pairs: Vec<String> =
        issued.iter().enumerate().map(|(place, one)| one.write(folder.path(), &place.to_string())).collect();
    (folder, issued, format!("certificates: [{}]", pairs.join(", ")))
}

/// The place of the certificate that is shown for a name, or the alert.
async fn place(address: SocketAddr, name: &str, of: &[Issued]) -> Result<usize, Option<AlertDescription>> {
    let called = Caller::new(name, &["http/1.1"]).try_call(address).await;
    let shown = called.map(|stream| shown(&stream)).map_err(|error| alert(&error))?;
    Ok(of.iter().position(|issued| issued.der == shown).expect("one of ours"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_shown_the_certificate_for_the_name_it_asks_for() {
    let all: &[(&[&str], &'static rcgen::SignatureAlgorithm)] =
        &[(&["first.test"], EC), (&["*.wild.test"], EC), (&["exact.wild.test", "Upper.Test"], EC)];
    let (_folder, issued, certificates) = certificates(all);
    use AlertDescription::{MissingExtension, UnrecognisedName};
    for (name, first, refuse) in [
        ("first.test", 0, Ok(0)),
        ("a.wild.test", 1, Ok(1)),
        ("A.WILD.test", 1, Ok(1)),
        ("exact.wild.test", 2, Ok(2)),
        ("EXACT.wild.test", 2, Ok(2)),
        ("upper.test", 2, Ok(2)),
        ("a.b.wild.test", 0, Err(Some(UnrecognisedName))),
        ("wild.test", 0, Err(Some(UnrecognisedName))),
        ("unknown.test", 0, Err(Some(UnrecognisedName))),
        ("", 0, Err(Some(MissingExtension))),
    ] {
        for (unknown, expected) in [("first", Ok(first)), ("refuse", refuse)] {
            let edge = Edge::start(&config(&format!("{{ {certificates}, unknown_names: {unknown} }}")), &[]);
            assert_eq!(place(edge.secure(), name, &issued).await, expected, "{name:?} {unknown}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_was_looked_at_goes_on_whatever_is_spoken() {
    let (_folder, _, certificates) = certificates(&[(&["a.test"], EC)]);
    let edge = Edge::start(&config(&format!("{{ {certificates}, unknown_names: refuse }}")), &[]);
    let mut h1 = Client::connect_tls(edge.secure(), "a.test", &["http/1.1"]).await;
    assert_eq!(h1.request(GET).await.text(), "hello");
    let h2 = H2Client::connect_tls(edge.secure(), "a.test").await;
    assert_eq!(h2.request("GET", "/", &[], b"").await.expect("answered").text(), "hello");
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut caller = Caller::new("a.test", &["http/1.1"]);
        caller.versions = vec![version];
        assert_eq!(Client::over(caller.call(edge.secure()).await).request(GET).await.text(), "hello");
    }

    // What is no handshake at all.
    let answer = raw(edge.secure(), &[b"\x16\x03\x01", b"\xff\xff of what?"]).await;
    assert_eq!((answer.first(), answer.get(5)), (Some(&21), Some(&2)), "a fatal alert, not {answer:?}");
}

/// What a proxy says of the client stands before the handshake that is looked at.
#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_behind_the_proxy_protocol_is_looked_at_too() {
    let (_folder, _, certificates) = certificates(&[(&["a.test"], EC)]);
    let yaml = config(&format!("{{ {certificates}, unknown_names: refuse }}"))
        .replace("workers: 1,", "workers: 1, trusted_proxies: [127.0.0.0/8],")
        .replace("  secure: {", "  secure: { proxy_protocol: require,");
    let edge = Edge::start(&yaml, &[]);
    for (name, served) in [("a.test", true), ("b.test", false)] {
        let mut stream = soon("connect", TcpStream::connect(edge.secure())).await.expect("connects");
        stream.write_all(b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 443\r\n").await.expect("sent");
        let caller = Caller::new(name, &["http/1.1"]);
        match soon("handshake", caller.connector().connect(name.try_into().expect("a name"), stream)).await {
            Ok(stream) => {
                assert!(served);
                assert_eq!(Client::over(stream).request(GET).await.text(), "hello");
            }
            Err(error) => {
                assert!(!served, "{error}");
                assert_eq!(alert(&error), Some(AlertDescription::UnrecognisedName));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tcp_listener_refuses_names_too() {
    let (_folder, _, certificates) = certificates(&[(&["a.test"], EC)]);
    let yaml = format!(
        "version: 1
node: {{ name: edge, workers: 1, module_cache: off }}
telemetry: {{ access_log: {{ output: off }} }}
upstreams: {{ demo: {{ builtin: demo }} }}
listeners:
  secure: {{ bind: \"127.0.0.1:0\", tcp: {{ upstream: demo }}, tls: {{ {certificates}, unknown_names: refuse }} }}
"
    );
    let edge = Edge::start(&yaml, &[]);
    let mut client = Client::connect_tls(edge.secure(), "a.test", &[]).await;
    assert_eq!(client.request(GET).await.status, 200);
    let refused = Caller::new("b.test", &[]).try_call(edge.secure()).await.expect_err("nobody has it");
    assert_eq!(alert(&refused), Some(AlertDescription::UnrecognisedName));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_name_may_have_keys_of_several_kinds() {
    let (_folder, issued, certificates) = certificates(&[(&["a.test"], ED), (&["a.test"], EC)]);
    let edge = Edge::start(&config(&format!("{{ {certificates} }}")), &[]);
    for name in ["a.test", ""] {
        let mut caller = Caller::new(name, &["http/1.1"]);
        assert_eq!(shown(&caller.call(edge.secure()).await), issued[0].der, "{name:?}: it can verify both");
        caller.schemes = vec![SignatureScheme::ECDSA_NISTP256_SHA256];
        assert_eq!(shown(&caller.call(edge.secure()).await), issued[1].der, "{name:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_swapped_under_connections_that_go_on() {
    let (folder, issued, certificates) = certificates(&[(&["a.test"], EC)]);
    let yaml = config(&format!("{{ {certificates}, unknown_names: refuse }}"));
    let mut edge = Edge::start(&yaml, &[]);
    let address = edge.secure();
    let mut open = Client::connect_tls(address, "a.test", &["http/1.1"]).await;
    assert_eq!(open.request(GET).await.status, 200);
    let h2 = H2Client::connect_tls(address, "a.test").await;
    assert_eq!(h2.request("GET", "/", &[], b"").await.expect("answered").status, 200);

    let other = Authority::new("servers").issue(&["b.test"]);
    let _ = other.write(folder.path(), "0");
    // Moved by a line, so that nothing but the files has changed.
    edge.reload(&format!("\n{yaml}")).expect("in order");
    assert_eq!(edge.secure(), address);
    assert_eq!(place(address, "b.test", &[issued[0].clone(), other]).await, Ok(1));
    assert_eq!(place(address, "a.test", &issued).await, Err(Some(AlertDescription::UnrecognisedName)));
    assert_eq!(open.request(GET).await.status, 200, "the connection is open");
    assert_eq!(h2.request("GET", "/", &[], b"").await.expect("answered").status, 200);

    // What cannot be used changes nothing, and is told at its place.
    std::fs::write(folder.path().join("0.pem"), &issued[0].pem).expect("written");
    let report = edge.reload(&yaml).expect_err("the key is another's");
    assert!(report.contains("config.yaml:6:") && report.contains("does not go with its certificate"), "{report}");
    assert!(Caller::new("b.test", &[]).try_call(address).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_reads_certificates_and_warns_of_odd_ones() {
    let folder = TempDir::new().expect("a folder");
    let authority = Authority::new("servers");
    let expired = authority.issue_with(&["a.test"], EC, |params| params.not_after = rcgen::date_time_ymd(2020, 1, 2));
    let pairs =
        [expired.write(folder.path(), "old"), authority.issue(&["b.test", "a.test"]).write(folder.path(), "new")];
    let path = folder.path().join("config.yaml");
    let check = |tls: &str| {
        std::fs::write(&path, config(tls)).expect("written");
        let output = Command::new(PROGRAM).arg("check").current_dir(folder.path()).output().expect("it runs");
        let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (output.status.code(), out, err)
    };

    let tls = format!("{{ certificates: [{}] }}", pairs.join(", "));
    let (code, out, err) = check(&tls);
    assert_eq!((code, out.contains("in order (1 routes)")), (Some(0), true), "{out}{err}");
    let [old, new] = ["old.pem", "new.pem"].map(|name| folder.path().join(name).display().to_string());
    assert!(err.contains(&format!("warning: listener secure: {old} has expired on 2020-01-02T00:00:00Z")), "{err}");
    let hidden = format!("warning: listener secure: {new} is not shown for a.test: {old} is, which stands before it");
    assert!(err.contains(&hidden), "{err}");
    // It is served all the same: a node that does not start serves nobody.
    let edge = Edge::start(&config(&tls), &[]);
    assert_eq!(shown(&Caller::new("a.test", &[]).call(edge.secure()).await), expired.der);

    std::fs::write(folder.path().join("new.pem"), "no certificate").expect("written");
    let (code, out, err) = check(&tls);
    assert_eq!(code, Some(2), "{out}{err}");
    assert!(err.contains("config.yaml:5:") && err.contains("new.pem holds no certificate"), "{err}");
}

/// More clients than a server's memory has places for.
#[tokio::test(flavor = "multi_thread")]
async fn any_number_of_clients_can_come_back_without_a_whole_handshake() {
    let edge = Edge::start(&config("{ certificates: development }"), &[]);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut caller = Caller::new("localhost", &["http/1.1"]);
        caller.versions = vec![version];
        let first = caller.connector();
        for number in 0..300 {
            let connector = if number == 0 { first.clone() } else { caller.connector() };
            let stream = caller.call_with(&connector, edge.secure()).await.expect("handshake");
            // Session tickets come with the answer.
            assert_eq!(Client::over(stream).request(GET).await.status, 200);
        }
        let again = caller.call_with(&first, edge.secure()).await.expect("handshake");
        assert_eq!(again.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed), "{version:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_takes_too_long_is_ended_and_counted() {
    let yaml = config("{ certificates: development }")
        .replace("telemetry: {", "telemetry: { metrics: { bind: \"127.0.0.1:0\" },")
        .replace("  secure: {", "  secure: { limits: { header_timeout: 200ms },");
    let edge = Edge::start(&yaml, &[]);
    assert_eq!(raw(edge.secure(), &[&client_hello_1_1()[..20]]).await, b"", "half a message");
    soon("the count", async {
        while !Client::get(edge.metrics(), "/metrics").await.text().contains("handshakes_total{result=\"timeout\"} 1\n")
        {
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_may_go_by_the_name_in_the_handshake() {
    let yaml = config("{ certificates: development }").replace(
        "[{ name: all, respond: { status: 200, body: hello } }]",
        "
      - { name: inner, match: { sni: [inner.test, \"*.inner.test\"] }, respond: { status: 200, body: inner } }
      - { name: all, respond: { status: 200, body: hello } }",
    );
    let yaml = yaml.replace("\nsites:", "\n  web: { bind: \"127.0.0.1:0\" }\nsites:");
    let edge = Edge::start(&yaml, &[]);
    for (name, expected) in
        [("inner.test", "inner"), ("A.Inner.test", "inner"), ("a.b.inner.test", "hello"), ("", "hello")]
    {
        // The host of the request is another matter.
        let mut h1 = Client::over(Caller::new(name, &["http/1.1"]).call(edge.secure()).await);
        for host in ["inner.test", "other.test"] {
            let answer = h1.request(&format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
            assert_eq!(answer.text(), expected, "{name} {host}");
        }
        let h2 = H2Client::over(Caller::new(name, &["h2"]).call(edge.secure()).await).await;
        assert_eq!(h2.request("GET", "/", &[], b"").await.expect("answered").text(), expected, "{name}");
    }
    let plain = Client::connect(edge.web()).await.request("GET / HTTP/1.1\r\nhost: inner.test\r\n\r\n").await;
    assert_eq!(plain.text(), "hello");

    for (url, expected) in [
        ("https://a.inner.test/", "inner"),
        ("https://A.INNER.test:8443/", "inner"),
        ("https://192.0.2.1/", "all"),
        ("http://inner.test/", "all"),
    ] {
        let asked = ["route", "explain", "--json", "--config", &edge.path().display().to_string(), url];
        let output = Command::new(PROGRAM).args(asked).output().expect("it runs");
        let told: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        assert_eq!(told["route"]["name"], expected, "{url}: {told:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_for_another_name_is_told_to_be_misdirected() {
    let yaml = config("{ certificates: development }").replace(
        "[{ name: all, respond: { status: 200, body: hello } }]",
        "
      - { name: inner, match: { path: /inner, sni: [inner.test, test] }, respond: { status: 200, body: inner } }
      - { name: all, match: { path: /all }, respond: { status: 200, body: hello } }",
    );
    let edge = Edge::start(&yaml, &[]);
    for (name, host, path, expected) in [
        ("inner.test", "inner.test", "/inner", 200),
        ("other.test", "inner.test", "/inner", 421),
        ("other.test", "Inner.test:8443", "/inner", 421),
        ("", "inner.test", "/inner", 421),
        ("other.test", "other.test", "/inner", 404), // another connection would not help
        ("inner.test", "other.test", "/inner", 200), // who is asked for decides, as documented
        ("other.test", "inner.test", "/none", 404),
        ("other.test", "inner.test", "/all", 200),
    ] {
        let mut h1 = Client::over(Caller::new(name, &["http/1.1"]).call(edge.secure()).await);
        let answer = h1.request(&format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
        assert_eq!(answer.status, expected, "{name} {host} {path}");
        // The connection goes on: it is right for other requests.
        assert_eq!(h1.request("GET /all HTTP/1.1\r\nhost: a\r\n\r\n").await.status, 200);
    }
    let h2 = H2Client::over(Caller::new("other.test", &["h2"]).call(edge.secure()).await).await;
    assert_eq!(h2.request("GET", "/inner", &[], b"").await.expect("answered").status, 421);
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_are_told_of_certificates_and_their_ends() {
    let folder = TempDir::new().expect("a folder");
    let authority = Authority::new("servers");
    let [first, second] = [1, 3].map(|day| {
        authority.issue_with(&["a.test", "192.0.2.1"], EC, |params| {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2020, 1, day);
            params.serial_number = Some(rcgen::SerialNumber::from_slice(&[day, 0xaf]));
            params.distinguished_name.push(rcgen::DnType::CommonName, "a\n\"test");
        })
    });
    let pairs = [second.write(folder.path(), "second"), first.write(folder.path(), "first")];
    let yaml = config(&format!("{{ certificates: [{}] }}", pairs.join(", ")))
        .replace("telemetry:", "admin: { bind: \"127.0.0.1:0\" }\ntelemetry:")
        .replace("\nsites:", "\n  made: { bind: \"127.0.0.1:0\", tls: { certificates: development } }\nsites:");
    let edge = Edge::start(&yaml, &[]);
    let told = Client::get_with(edge.admin(), "/v1/certificates", "").await;
    assert_eq!(told.status, 421, "as everything there: not for any host");
    let ask = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let told = Client::connect(edge.admin()).await.request(&ask("/v1/certificates")).await.json();
    let all = told["certificates"].as_array().expect("a list");
    assert_eq!(all.len(), 3, "{told}");
    assert_eq!((&all[0]["listener"], &all[0]["names"][0]), (&json!("made"), &json!("localhost")));
    assert!(all[0].get("file").is_none() && all[0]["days_left"].as_i64() > Some(365_000), "{told}");
    let (mut shown, fingerprint) = (all[1].clone(), Sha256::digest(&second.der));
    assert!(shown["days_left"].as_i64() < Some(-2000), "{told}");
    shown.as_object_mut().expect("an object").remove("days_left");
    assert_eq!(
        shown,
        json!({
            "listener": "secure",
            "file": folder.path().join("second.pem"),
            "subject": "CN=a\\0A\\\"test",
            "names": ["a.test", "192.0.2.1"],
            "issuer": "CN=servers",
            "not_before": "2020-01-01T00:00:00Z",
            "not_after": "2020-01-03T00:00:00Z",
            "serial": "03af",
            "fingerprint": fingerprint.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
        })
    );

    let page = Client::connect(edge.admin()).await.request(&ask("/metrics")).await.text();
    let sample = "selvedge_certificate_expiry_timestamp_seconds{listener=\"secure\",name=\"a.test\"}";
    let lines: Vec<&str> = page.lines().filter(|line| line.starts_with(sample)).collect();
    assert_eq!(lines, [format!("{sample} 1577836800")], "the one that ends first");
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_and_protocols_that_are_not_served_are_refused() {
    use rustls::version::{TLS12, TLS13};
    let edge = Edge::start(&config("{ certificates: development, min: \"1.3\" }"), &[]);
    let mut old = Caller::new("localhost", &["http/1.1"]);
    old.versions = vec![&TLS12];
    let refused = old.try_call(edge.secure()).await.expect_err("too old");
    assert_eq!(alert(&refused), Some(AlertDescription::ProtocolVersion));
    old.versions = vec![&TLS13];
    assert_eq!(Client::over(old.call(edge.secure()).await).request(GET).await.status, 200);

    let edge = Edge::start(&config("{ certificates: development }"), &[]);
    old.versions = vec![&TLS12];
    assert_eq!(Client::over(old.call(edge.secure()).await).request(GET).await.status, 200);
    // A ClientHello of TLS 1.1 (RFC 4346): no client library at hand speaks it any more.
    assert_eq!(
        raw(edge.secure(), &[&client_hello_1_1()]).await,
        [21, 3, 3, 0, 2, 2, u8::from(AlertDescription::HandshakeFailure)]
    );

    // ALPN follows `protocols`.
    let only_h1 =
        config("{ certificates: development }").replace("\"127.0.0.1:0\"", "\"127.0.0.1:0\", protocols: [h1]");
    let edge_h1 = Edge::start(&only_h1, &[]);
    for (address, offered, expected) in [
        (edge.secure(), &["h2", "http/1.1"][..], Ok(Some("h2"))),
        (edge.secure(), &["http/1.1", "h2"], Ok(Some("h2"))),
        (edge.secure(), &["spdy/3", "http/1.1"], Ok(Some("http/1.1"))),
        (edge.secure(), &[], Ok(None)),
        (edge.secure(), &["spdy/3"], Err(Some(AlertDescription::NoApplicationProtocol))),
        (edge_h1.secure(), &["h2", "http/1.1"], Ok(Some("http/1.1"))),
        (edge_h1.secure(), &["h2"], Err(Some(AlertDescription::NoApplicationProtocol))),
    ] {
        let called = Caller::new("localhost", offered).try_call(address).await;
        let chosen = called
            .map(|stream| stream.get_ref().1.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned()))
            .map_err(|error| alert(&error));
        assert_eq!(chosen, expected.map(|name| name.map(str::to_owned)), "{offered:?}");
    }
}

/// What comes back for these pieces, until the connection is closed.
async fn raw(address: SocketAddr, pieces: &[&[u8]]) -> Vec<u8> {
    let mut stream = soon("connect", TcpStream::connect(address)).await.expect("connects");
    stream.set_nodelay(true).expect("nodelay");
    for piece in pieces {
        soon("send", stream.write_all(piece)).await.expect("sent");
    }
    let mut answer = Vec::new();
    let _reset_or_closed = soon("an answer", stream.read_to_end(&mut answer)).await;
    answer
}

/// What a client sends first that speaks TLS 1.1 and nothing newer.
fn client_hello_1_1() -> Vec<u8> {
    let mut hello = vec![3, 2];
    hello.extend([7; 32]); // random
    hello.push(0); // no session
    hello.extend([0, 4, 0xc0, 0x13, 0xc0, 0x0a]); // two cipher suites of its time
    hello.extend([1, 0]); // no compression
    let mut message = vec![1, 0, 0, u8::try_from(hello.len()).expect("short")];
    message.extend(hello);
    let mut record = vec![22, 3, 1, 0, u8::try_from(message.len()).expect("short")];
    record.extend(message);
    record
}
