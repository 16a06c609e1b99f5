//! Clients with certificates: who is let in, what filters and upstreams are told of them, and what they cannot say about themselves.

use std::net::SocketAddr;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, HandshakeKind};
use selvedge_tests::h2::H2Client;
use selvedge_tests::tls::{Authority, Caller, Issued, alert};
use selvedge_tests::{Client, Edge, Origin, Response, soon};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

const PROGRAM: &str = env!("CARGO_BIN_EXE_selvedge-under-test");
/// Compiled guests are shared by all runs.
const MODULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/test-modules");
const GET: &str = "GET / HTTP/1.1\r\nhost: test\r\n\r\n";
const EC: &rcgen::SignatureAlgorithm = &rcgen::PKCS_ECDSA_P256_SHA256;

/// A folder with the certificate of an authority for clients.
struct Clients {
    folder: TempDir,
    authority: Authority,
}

impl Clients {
    fn new() -> Self {
        let clients = Self { folder: TempDir::new().expect("a folder"), authority: Authority::new("clients") };
        clients.write(&clients.authority);
        clients
    }

    /// Writes this authority's certificate.
    fn write(&self, authority: &Authority) {
        std::fs::write(self.folder.path().join("ca.pem"), &authority.pem).expect("written");
    }

    /// `clients:` with this mode and more.
    fn setting(&self, mode: &str, more: &str) -> String {
        format!("clients: {{ mode: {mode}, ca: \"{}\"{more} }}", self.folder.path().join("ca.pem").display())
    }

    /// A node with the listeners `web` and `secure`, which asks clients so, and this after the upstream `app`.
    fn node(&self, mode: &str, more: &str, rest: &str, origin: SocketAddr) -> Edge {
        Edge::start(&config(&self.setting(mode, more), rest), &[("app", origin)])
    }
}

fn config(clients: &str, rest: &str) -> String {
    format!(
        "version: 1
node: {{ name: edge, workers: 1, shutdown_grace: 1s, module_cache: \"{MODULES}\" }}
telemetry: {{ access_log: {{ output: off }} }}
listeners:
  web: {{ bind: \"127.0.0.1:0\" }}
  secure: {{ bind: \"127.0.0.1:0\", tls: {{ certificates: development, {clients} }} }}
upstreams: {{ app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }} }}
{rest}"
    )
}

const TO_APP: &str = "sites: [{ hosts: [\"*\"], routes: [{ name: all, to: app }] }]\n";

/// An origin that shows what it was told in `Client-Cert`, and says how often it was asked.
async fn telling() -> Origin {
    Origin::start(|request| {
        let told: Vec<&str> = request
            .headers
            .iter()
            .filter(|(name, _)| name.starts_with("client-cert"))
            .map(|(_, value)| value.as_str())
            .collect();
        Origin::reply(200, &[("x-told", &told.join(" and "))], "hello")
    })
    .await
}

fn caller(identity: Option<&Issued>) -> Caller {
    let caller = Caller::new("localhost", &["http/1.1"]);
    match identity {
        None => caller,
        Some(identity) => caller.showing(identity),
    }
}

async fn served(caller: &Caller, address: SocketAddr) -> Response {
    Client::over(caller.call(address).await).request(GET).await
}

/// Why a client is refused. In TLS 1.3 it learns that after its own part of the handshake.
async fn refused(caller: &Caller, address: SocketAddr) -> Option<AlertDescription> {
    let error = match caller.try_call(address).await {
        Err(error) => error,
        Ok(mut stream) => soon("an alert", stream.read_u8()).await.expect_err("nothing is served"),
    };
    Some(alert(&error).unwrap_or_else(|| panic!("no alert: {error}")))
}

/// SHA-256 of a certificate's key, in base64.
fn pin(issued: &Issued) -> String {
    STANDARD.encode(Sha256::digest(&issued.public))
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_let_in() {
    use AlertDescription::{CertificateExpired, CertificateRequired, DecryptError, UnknownCA, UnsupportedCertificate};
    let clients = Clients::new();
    let origin = telling().await;
    let issue = |change: fn(&mut rcgen::CertificateParams)| clients.authority.issue_with(&["device.test"], EC, change);
    let good = issue(|_| ());
    let for_clients = issue(|params| params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth]);
    let for_servers = issue(|params| params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth]);
    let expired = issue(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    let early = issue(|params| params.not_before = rcgen::date_time_ymd(3000, 1, 1));
    let [foreign, forged] = ["others", "clients"].map(|name| Authority::new(name).issue(&["device.test"]));
    let table = [
        ("none", None, Some(CertificateRequired)),
        ("good", Some(&good), None),
        ("for clients", Some(&for_clients), None),
        ("for servers", Some(&for_servers), Some(UnsupportedCertificate)),
        ("expired", Some(&expired), Some(CertificateExpired)),
        ("not yet valid", Some(&early), Some(CertificateExpired)),
        ("of another authority", Some(&foreign), Some(UnknownCA)),
        ("of another authority of the same name", Some(&forged), Some(DecryptError)),
    ];
    for mode in ["require", "request"] {
        let edge = clients.node(mode, "", TO_APP, origin.address());
        for (what, identity, alert) in &table {
            for version in [&TLS12, &TLS13] {
                let mut caller = caller(*identity);
                caller.versions = vec![version];
                let wanted = if mode == "request" && identity.is_none() { None } else { *alert };
                match wanted {
                    None => {
                        assert_eq!(served(&caller, edge.secure()).await.text(), "hello", "{mode} {what} {version:?}")
                    }
                    _ => assert_eq!(refused(&caller, edge.secure()).await, wanted, "{mode} {what} {version:?}"),
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pinned_keys_alone_are_let_in() {
    let clients = Clients::new();
    let origin = telling().await;
    let [first, second, other] = ["a", "b", "c"].map(|name| clients.authority.issue(&[name]));
    let foreign = Authority::new("clients").issue(&["d"]);
    let pins = format!(", pins: [\"{}\", \"{}\", \"{}\"]", pin(&first), pin(&second), pin(&foreign));
    for mode in ["require", "request"] {
        let edge = clients.node(mode, &pins, TO_APP, origin.address());
        for (identity, alert) in [
            (&first, None),
            (&second, None),
            (&other, Some(AlertDescription::AccessDenied)),
            (&foreign, Some(AlertDescription::DecryptError)),
        ] {
            match alert {
                None => assert_eq!(served(&caller(Some(identity)), edge.secure()).await.text(), "hello"),
                _ => assert_eq!(refused(&caller(Some(identity)), edge.secure()).await, alert),
            }
        }
        if mode == "request" {
            assert_eq!(served(&caller(None), edge.secure()).await.text(), "hello", "pins are about certificates");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_see_who_is_refused_and_why() {
    let clients = Clients::new();
    let origin = telling().await;
    let issue = |change: fn(&mut rcgen::CertificateParams)| clients.authority.issue_with(&["device.test"], EC, change);
    let good = issue(|_| ());
    let refused_ones = [
        issue(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1)),
        issue(|params| params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth]),
        Authority::new("others").issue(&["device.test"]),
        Authority::new("clients").issue(&["device.test"]),
        issue(|_| ()),
    ];
    let yaml = config(&clients.setting("require", &format!(", pins: [\"{}\"]", pin(&good))), TO_APP)
        .replace("clients:", "unknown_names: refuse, clients:")
        .replace("telemetry: {", "telemetry: { metrics: { bind: \"127.0.0.1:0\" },");
    let edge = Edge::start(&yaml, &[("app", origin.address())]);
    assert_eq!(served(&caller(Some(&good)), edge.secure()).await.text(), "hello");
    for identity in &refused_ones {
        let mut caller = caller(Some(identity));
        caller.versions = vec![&TLS12]; // the client learns it in its own part of the handshake
        caller.try_call(edge.secure()).await.expect_err("refused");
    }
    let elsewhere = Caller::new("other.test", &["http/1.1"]).try_call(edge.secure()).await;
    elsewhere.expect_err("no certificate is for that");
    let expected = [
        "selvedge_tls_handshakes_total{result=\"done\"} 1",
        "selvedge_tls_handshakes_total{result=\"failed\"} 6",
        "selvedge_tls_handshakes_total{result=\"timeout\"} 0",
        "selvedge_tls_refusals_total{reason=\"name\"} 1",
        "selvedge_tls_refusals_total{reason=\"expired\"} 1",
        "selvedge_tls_refusals_total{reason=\"authority\"} 2",
        "selvedge_tls_refusals_total{reason=\"pin\"} 1",
        "selvedge_tls_refusals_total{reason=\"certificate\"} 1",
    ];
    // A handshake is counted when it is over here, which may be after the client has been told.
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        let page = Client::get(edge.metrics(), "/metrics").await.text();
        let missing = expected.iter().find(|sample| page.lines().all(|line| line != **sample));
        let Some(sample) = missing else { break };
        assert!(std::time::Instant::now() < until, "{sample} in\n{page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_connection_is_verified_anew() {
    let clients = Clients::new();
    let origin = telling().await;
    let edge = clients.node("request", "", TO_APP, origin.address());
    let plain = Edge::start(&config("min: \"1.2\"", TO_APP), &[("app", origin.address())]);
    for version in [&TLS12, &TLS13] {
        let mut caller = caller(Some(&clients.authority.issue(&["a"])));
        caller.versions = vec![version];
        let connector = caller.connector();
        for (address, expected) in [(plain.secure(), HandshakeKind::Resumed), (edge.secure(), HandshakeKind::Full)] {
            // Session tickets come with the first answer.
            let mut first = Client::over(caller.call_with(&connector, address).await.expect("handshake"));
            assert_eq!(first.request(GET).await.status, 200);
            let second = caller.call_with(&connector, address).await.expect("handshake");
            assert_eq!(second.get_ref().1.handshake_kind(), Some(expected), "{version:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_authorities_hold_from_the_reload_on() {
    let clients = Clients::new();
    let origin = telling().await;
    let old = clients.authority.issue(&["old.test"]);
    let yaml = config(&clients.setting("require", ""), TO_APP);
    let mut edge = Edge::start(&yaml, &[("app", origin.address())]);
    let (secure, web) = (edge.secure(), edge.web());
    let mut open = Client::over(caller(Some(&old)).call(secure).await);
    assert_eq!(open.request(GET).await.status, 200);
    let mut elsewhere = Client::connect(web).await;
    assert_eq!(elsewhere.request(GET).await.status, 200);

    edge.reload(&yaml).expect("in order");
    assert_eq!(open.request(GET).await.status, 200, "nothing has changed");

    let other = Authority::new("others");
    clients.write(&other);
    edge.reload(&yaml).expect("in order");
    assert_eq!(edge.secure(), secure, "the socket stays");
    assert_eq!(refused(&caller(Some(&old)), secure).await, Some(AlertDescription::UnknownCA));
    assert_eq!(served(&caller(Some(&other.issue(&["new.test"]))), secure).await.text(), "hello");
    assert!(open.is_closed().await, "what was verified by the old ones has ended");
    assert_eq!(elsewhere.request(GET).await.status, 200, "the other listener is as it was");

    let mut known = Client::over(caller(Some(&other.issue(&["new.test"]))).call(secure).await);
    assert_eq!(known.request(GET).await.status, 200);
    let mine = other.issue(&["mine.test"]);
    let pinned = config(&clients.setting("require", &format!(", pins: [\"{}\"]", pin(&mine))), TO_APP);
    edge.reload(&pinned).expect("in order");
    assert!(known.is_closed().await, "its key is not pinned");
    assert_eq!(served(&caller(Some(&mine)), secure).await.text(), "hello");
    edge.reload(&yaml).expect("in order");

    for (broken, why) in [("nothing", "holds no certificate"), ("", "holds no certificate")] {
        std::fs::write(clients.folder.path().join("ca.pem"), broken).expect("written");
        let report = edge.reload(&yaml).expect_err("no authority");
        assert!(report.contains("config.yaml:7:") && report.contains(why), "{report}");
    }
    assert_eq!(served(&caller(Some(&other.issue(&["new.test"]))), secure).await.text(), "hello", "nothing has changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_revoked_is_out_with_the_reload() {
    let clients = Clients::new();
    let origin = telling().await;
    let serial = |serial: u8| {
        move |params: &mut rcgen::CertificateParams| {
            params.serial_number = Some(rcgen::SerialNumber::from_slice(&[serial]));
        }
    };
    let [first, second] = [1, 2].map(|number| clients.authority.issue_with(&["device.test"], EC, serial(number)));
    let between = clients.authority.below("between");
    let third = between.issue_with(&["device.test"], EC, serial(1)).behind(&between);
    let path = clients.folder.path().join("revoked.pem");
    let write = |lists: &[String]| std::fs::write(&path, lists.concat()).expect("written");

    write(&[clients.authority.revoked(&[7], 3000), between.revoked(&[], 3000)]);
    let yaml = config(&clients.setting("require", &format!(", crl: \"{}\"", path.display())), TO_APP);
    let mut edge = Edge::start(&yaml, &[("app", origin.address())]);
    let secure = edge.secure();
    for known in [&first, &second, &third] {
        assert_eq!(served(&caller(Some(known)), secure).await.text(), "hello");
    }
    let mut open = Client::over(caller(Some(&first)).call(secure).await);
    assert_eq!(open.request(GET).await.status, 200);

    // The number 1 of the authority, not that of another.
    write(&[clients.authority.revoked(&[7, 1], 3000), between.revoked(&[2], 3000)]);
    edge.reload(&yaml).expect("in order");
    assert!(open.is_closed().await);
    assert_eq!(refused(&caller(Some(&first)), secure).await, Some(AlertDescription::CertificateRevoked));
    for known in [&second, &third] {
        assert_eq!(served(&caller(Some(known)), secure).await.text(), "hello");
    }

    // Nobody knows what the authority between has revoked; and a list that is out of date holds.
    write(&[clients.authority.revoked(&[1], 2021)]);
    edge.reload(&yaml).expect("in order");
    assert_eq!(refused(&caller(Some(&first)), secure).await, Some(AlertDescription::CertificateRevoked));
    assert_eq!(served(&caller(Some(&second)), secure).await.text(), "hello");
    assert_eq!(refused(&caller(Some(&third)), secure).await, Some(AlertDescription::UnknownCA));
    let checked = Command::new(PROGRAM).args(["check", "--config"]).arg(edge.path()).output().expect("it runs");
    let told = String::from_utf8_lossy(&checked.stderr).into_owned();
    let end = format!("in {} has expired on 2021-01-01T00:00:00Z, and holds", path.display());
    assert!(checked.status.success() && told.contains("the list of CN=clients") && told.contains(&end), "{told}");

    for broken in ["", "-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n"] {
        write(&[broken.to_owned()]);
        let report = edge.reload(&yaml).expect_err("no list");
        assert!(report.contains("config.yaml:7:") && report.contains("holds no valid revocation list"), "{report}");
    }
    assert_eq!(served(&caller(Some(&second)), secure).await.text(), "hello", "nothing has changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_are_told_of_the_certificate() {
    let clients = Clients::new();
    let origin = telling().await;
    let names = [
        ("mtls", "connection/mtls"),
        ("subject", "connection/subject_peer_certificate"),
        ("dns", "connection/dns_san_peer_certificate"),
        ("uri", "connection/uri_san_peer_certificate"),
        ("digest", "connection/sha256_peer_certificate_digest"),
        ("serial", "connection/serial_peer_certificate"),
        ("sni", "connection/requested_server_name"),
    ];
    let script: String = names.iter().map(|(name, path)| format!("request_headers get {name} {path}\n")).collect();
    let script = serde_json::to_string(&script).expect("text");
    let rest = format!(
        "filters: {{ probe: {{ wasm: \"file:${{GUESTS}}/properties.wasm\", limits: {{ deadline: 10s }}, config: {script} }} }}
sites: [{{ hosts: [\"*\"], routes: [{{ name: all, filters: [probe], to: app }}] }}]
"
    );
    let edge = clients.node("request", "", &rest, origin.address());
    let identity = clients.authority.issue_with(&["Device.test", "other.test"], EC, |params| {
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "Things");
        params.distinguished_name.push(rcgen::DnType::CommonName, "device, 7");
        params.subject_alt_names.push(rcgen::SanType::URI("spiffe://t.test/d".try_into().expect("a URI")));
        params.serial_number = Some(rcgen::SerialNumber::from_slice(&[0x7f, 1]));
    });
    let digest: String = Sha256::digest(&identity.der).iter().map(|byte| format!("{byte:02x}")).collect();
    let known = ["0x01", "CN=device\\, 7,O=Things", "device.test", "spiffe://t.test/d", &digest, "7f01", "localhost"];
    let nobody = ["0x00", "!1", "!1", "!1", "!1", "!1", "localhost"];
    let plain = ["0x00", "!1", "!1", "!1", "!1", "!1", "-"];

    let mut caller_h2 = Caller::new("localhost", &["h2"]).showing(&identity);
    let h2 = H2Client::over(caller_h2.call(edge.secure()).await).await;
    let over_h2 = h2.request("GET", "/", &[], b"").await.expect("answered");
    let again = h2.request("GET", "/", &[], b"").await.expect("answered");
    caller_h2.identity = None;
    let h2 = H2Client::over(caller_h2.call(edge.secure()).await).await;
    let anonymous_h2 = h2.request("GET", "/", &[], b"").await.expect("answered");
    for (response, expected) in [
        (served(&caller(Some(&identity)), edge.secure()).await, known),
        (over_h2, known),
        (again, known),
        (served(&caller(None), edge.secure()).await, nobody),
        (anonymous_h2, nobody),
        (Client::get(edge.web(), "/").await, plain),
    ] {
        let shown = names.map(|(name, _)| response.header(&format!("x-{name}")).unwrap_or_default());
        assert_eq!(shown, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_connections_are_verified_too() {
    let clients = Clients::new();
    let filter = "filters:
  f:
    wasm: \"file:${GUESTS}/tcp.wasm\"
    limits: { deadline: 10s }
    config: properties connection.subject_peer_certificate connection.requested_server_name
";
    let yaml = config(&clients.setting("require", ""), filter);
    let yaml = yaml.replace("  web: { bind: \"127.0.0.1:0\" }\n", "");
    let yaml = yaml.replace("secure: {", "secure: { tcp: { upstream: app, filters: [f] },");
    let edge = Edge::start(&yaml, &[("app", echo().await)]);
    let mut known = Caller::new("localhost", &[]);
    assert_eq!(refused(&known, edge.secure()).await, Some(AlertDescription::CertificateRequired));
    let identity = clients.authority.issue_with(&[], EC, |params| {
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "device");
    });
    known.identity = Some(identity);
    let mut client = Client::over(known.call(edge.secure()).await);
    client.send(b"?").await;
    assert_eq!(String::from_utf8_lossy(&client.some().await.expect("an answer")), "CN=device localhost");
}

/// A server that sends back what it gets.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    address
}

/// RFC 9440: the certificate as it was shown, and from nobody but the node.
#[tokio::test(flavor = "multi_thread")]
async fn upstreams_are_told_of_the_certificate_by_the_node_alone() {
    let clients = Clients::new();
    let origin = telling().await;
    let identity = clients.authority.issue(&["device.test"]);
    let field = format!(":{}:", STANDARD.encode(&identity.der));
    // Nor can a client have it taken away as a field for one hop only (RFC 9110, 7.6.1).
    let forged = "client-cert: :Zm9yZ2Vk:\r\nClient-Cert: :Zm9yZ2Vk:\r\nclient-cert-chain: :Zm9yZ2Vk:\r\n\
                  connection: client-cert, keep-alive\r\n";
    for (forward, told) in [("", ""), (", forward: false", ""), (", forward: true", &*field)] {
        let edge = clients.node("request", forward, TO_APP, origin.address());
        for extra in ["", forged] {
            let head = format!("GET / HTTP/1.1\r\nhost: test\r\n{extra}\r\n");
            let mut known = Client::over(caller(Some(&identity)).call(edge.secure()).await);
            for _ in 0..2 {
                assert_eq!(known.request(&head).await.header("x-told"), Some(told), "{forward} {extra}");
            }
            let mut anonymous = Client::over(caller(None).call(edge.secure()).await);
            assert_eq!(anonymous.request(&head).await.header("x-told"), Some(""), "{forward} {extra}");
            assert_eq!(Client::get_with(edge.web(), "/", extra).await.header("x-told"), Some(""), "{forward} {extra}");

            let fields: &[(&str, &str)] = if extra.is_empty() {
                &[]
            } else {
                &[("client-cert", ":Zm9yZ2Vk:"), ("client-cert", ":Zg==:"), ("client-cert-chain", ":Zm9yZ2Vk:")]
            };
            let known = Caller::new("localhost", &["h2"]).showing(&identity).call(edge.secure()).await;
            let h2 = H2Client::over(known).await.request("GET", "/", fields, b"").await.expect("answered");
            assert_eq!(h2.header("x-told"), Some(told), "{forward} {extra}");
            let h2 = H2Client::connect(edge.web()).await.request("GET", "/", fields, b"").await.expect("answered");
            assert_eq!(h2.header("x-told"), Some(""), "{forward} {extra}");
        }
    }
}

/// What is stored for one certificate is not for another when the origin says so (RFC 9440, 3.1), and a refresh in the background asks as
/// the one whose request caused it.
#[tokio::test(flavor = "multi_thread")]
async fn the_cache_tells_clients_apart_where_the_origin_does() {
    let clients = Clients::new();
    let origin = Origin::start(|request| {
        let told = request.header("client-cert").unwrap_or("nobody");
        let control = if request.target == "/stale" { "max-age=60, stale-while-revalidate=600" } else { "max-age=600" };
        Origin::reply(200, &[("cache-control", control), ("age", "100"), ("vary", "client-cert")], told.to_owned())
    })
    .await;
    let rest = "cache: {}\nsites: [{ hosts: [\"*\"], routes: [{ name: \"all-${ID}\", cache: {}, to: app }] }]\n";
    let edge = clients.node("request", ", forward: true", rest, origin.address());
    let devices = ["a.test", "b.test"].map(|name| clients.authority.issue(&[name]));
    for round in ["miss", "hit"] {
        for device in &devices {
            let answer = served(&caller(Some(device)), edge.secure()).await;
            assert_eq!(answer.text(), format!(":{}:", STANDARD.encode(&device.der)), "{round}");
        }
        assert_eq!(served(&caller(None), edge.secure()).await.text(), "nobody", "{round}");
    }
    assert_eq!(origin.started(), 3, "one for each");

    let stale = "GET /stale HTTP/1.1\r\nhost: test\r\nclient-cert: :Zm9yZ2Vk:\r\n\r\n";
    let mut client = Client::over(caller(Some(&devices[0])).call(edge.secure()).await);
    assert_eq!(client.request(stale).await.status, 200);
    assert_eq!(client.request(stale).await.status, 200);
    soon("the refresh", async {
        while origin.started() < 5 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    soon("both", async {
        while origin.received().len() < 5 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let field = format!(":{}:", STANDARD.encode(&devices[0].der));
    for request in &origin.received()[3..] {
        assert_eq!((request.target.as_str(), request.header("client-cert")), ("/stale", Some(&*field)));
    }
}
