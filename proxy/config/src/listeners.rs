//! `listeners`: the addresses the node answers on.

pub(crate) mod limits;
mod redirect;

use std::{collections::BTreeSet, path::PathBuf};

use base64::{Engine, engine::general_purpose::STANDARD};
use schemars::JsonSchema;

use crate::{
    bind::Bind,
    decode::{At, Cx, Fields, choice, filled_list, list, parsed, path, reference, truth},
    filters::{Declared, FilterUse},
    report::{Fault, Position},
    tree::{Data, Kind},
};

pub use self::limits::ListenerLimits;
pub use self::redirect::RedirectToHttps;
pub(crate) use self::redirect::redirects;

/// One bound address.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Listener {
    /// Address and port, such as `127.0.0.1:8080` or `"[::]:443"` (quoted: a plain value cannot start with `[`); port 0
    /// takes a free port. Or a Unix socket, `unix:/run/selvedge/web.sock`, which only the user and the group of the process may open:
    /// clients that come there have no address, unless a PROXY protocol header or `X-Forwarded-For` of a trusted proxy
    /// (`node.trusted_proxies: [unix]`) says one. Two listeners cannot share an address. Required.
    #[schemars(with = "String")]
    pub bind: Bind,

    /// What may be spoken: `h1`, `h2`, or both. With `tls` the client chooses by ALPN. Without `tls`, `h2` is served to
    /// clients that know it beforehand (h2c by prior knowledge), never by upgrade. Not with `tcp`. Default `[h1, h2]`.
    #[schemars(with = "Option<Vec<Protocol>>", length(min = 1), extend("default" = ["h1", "h2"]))]
    pub protocols: Vec<Protocol>,

    /// TLS on this address. Absent: plain text.
    pub tls: Option<Tls>,

    /// Connections are taken as they are, whatever is spoken on them, and forwarded to one upstream. Such a listener serves no
    /// sites. Absent: HTTP.
    pub tcp: Option<Tcp>,

    /// Whether connections begin with a PROXY protocol header (version 1 or 2) that names the client: `require` takes connections of
    /// `node.trusted_proxies` only, `accept` serves everybody else without a header. A trusted proxy must send one either way, within
    /// `limits.header_timeout` and before TLS. Needs `node.trusted_proxies`. Absent: nobody sends one.
    pub proxy_protocol: Option<ProxyProtocol>,

    /// Every request is answered with a redirect to the same address over https: `true`, or where https is served. Such a listener
    /// serves no sites. Not with `tls` or `tcp`. Default `false`.
    #[schemars(with = "Option<redirect::Form>")]
    pub redirect_to_https: Option<RedirectToHttps>,

    /// How much and how slowly a client may send.
    #[schemars(with = "Option<ListenerLimits>", extend("default" = {}))]
    pub limits: ListenerLimits,

    /// Where its name is written.
    #[schemars(skip)]
    pub position: Position,
}

/// A version of HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.0 and HTTP/1.1.
    H1,
    /// HTTP/2.
    H2,
}

/// Who says in a PROXY protocol header for whom a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum ProxyProtocol {
    /// Every client is a trusted proxy, and does; others are closed.
    Require,
    /// Trusted proxies do; others are clients themselves.
    Accept,
}

/// What is done with the connections of a listener that does not speak HTTP.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Tcp {
    /// The upstream each connection is forwarded to, on a connection of its own. Its `protocol` has no meaning here. Required.
    pub upstream: String,

    /// The filters each connection runs, in order: what the client sends passes the first one first, what the upstream sends
    /// the last one first. Each a name, or a name with settings that are merged over the declared configuration. Default: none.
    #[schemars(with = "Option<Vec<FilterUse>>")]
    pub filters: Vec<FilterUse>,

    /// Where it is written.
    #[schemars(skip)]
    pub position: Position,
}

/// TLS towards clients.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Tls {
    /// `development` for a self-signed certificate made at start (no client trusts it), or a list of `{ cert, key }`
    /// files. The name a client asks for (SNI) chooses among several: an exact name before a wildcard, which stands for one
    /// label. For one name there may be one of each kind of key (ECDSA, RSA, Ed25519), and the first that the client can verify
    /// is shown; of the same kind, the first. Required.
    pub certificates: Certificates,

    /// What clients get that ask for a name which no certificate is for, and those that ask for none: `first`, the first
    /// certificate of the list; or `refuse`, no handshake (alert `unrecognized_name`, or `missing_extension`). Refusing keeps
    /// scanners from learning what is served; it shuts out clients that send no SNI, such as many health checks. Default `first`.
    #[schemars(with = "Option<UnknownNames>", extend("default" = "first"))]
    pub unknown_names: UnknownNames,

    /// The oldest version of TLS that is accepted: `"1.2"` or `"1.3"`, quoted. `"1.3"` shuts out clients older than
    /// about 2018. Default `"1.2"`.
    #[schemars(with = "Option<TlsVersion>", extend("default" = "1.2"))]
    pub min: TlsVersion,

    /// Certificates of clients. Absent: none are asked for.
    pub clients: Option<ClientCertificates>,

    /// Where it is written.
    #[schemars(skip)]
    pub position: Position,
}

/// Which certificates clients may show.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct ClientCertificates {
    /// `require`: a client without a certificate gets no connection. `request`: it may do without, but one that it shows has to
    /// be valid. Required.
    pub mode: ClientMode,

    /// PEM file with the authorities whose certificates are valid; intermediates are for the client to send. Watched: when it
    /// changes, connections under the old one end after the exchange they are in. Required.
    pub ca: PathBuf,

    /// PEM file with revocation lists (RFC 5280, 5), one for each authority on the way from a client's certificate up to `ca`: a
    /// certificate that is on one is refused, and so is one whose authority has none there. Watched as `ca` is. A list that should
    /// have been replaced by a newer one holds all the same, with a warning. Default: none; who is revoked is not noticed.
    pub crl: Option<PathBuf>,

    /// The keys that clients may have, whatever the authorities vouch for: SHA-256 of the certificate's SubjectPublicKeyInfo, in
    /// base64. Lets in only who is known by name, and has to be told of new keys. Default: any.
    #[schemars(with = "Option<Vec<Pin>>", length(min = 1))]
    pub pins: Vec<Pin>,

    /// Whether upstreams are told the client's certificate, in the header `Client-Cert` (RFC 9440). What clients write there
    /// themselves is removed on every listener, whatever is set here. Not with `tcp`. Default `false`.
    #[schemars(with = "Option<bool>", extend("default" = false))]
    pub forward: bool,

    /// Where it is written.
    #[schemars(skip)]
    pub position: Position,
}

/// Whether clients need a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum ClientMode {
    /// They may do without.
    Request,
    /// They need one.
    Require,
}

/// SHA-256 of a key, as a SubjectPublicKeyInfo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String", extend("pattern" = r"^[A-Za-z0-9+/]{43}=$|\$\{"))]
pub struct Pin(pub [u8; 32]);

/// What clients get that ask for a name which no certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum UnknownNames {
    /// The first certificate.
    First,
    /// No handshake.
    Refuse,
}

/// Which certificates a listener shows.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(with = "CertificatesForm")]
pub enum Certificates {
    /// A self-signed one, made at start.
    Development,
    /// These, in order; at least one.
    Files(Vec<CertificateFiles>),
}

#[derive(JsonSchema)]
#[schemars(untagged, rename = "Certificates")]
#[expect(dead_code, reason = "describes the grammar; never made")]
enum CertificatesForm {
    Word(DevelopmentWord),
    Files(#[schemars(length(min = 1))] Vec<CertificateFiles>),
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase", inline)]
#[expect(dead_code, reason = "describes the grammar; never made")]
enum DevelopmentWord {
    Development,
}

/// A certificate chain and its key, as PEM files.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct CertificateFiles {
    /// PEM file with the certificate, then its intermediates. Required.
    pub cert: PathBuf,

    /// PEM file with the private key (PKCS #8, PKCS #1 or SEC1). Required.
    pub key: PathBuf,

    /// Where the pair is written.
    #[schemars(skip)]
    pub position: Position,
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    #[schemars(rename = "1.2")]
    V1_2,
    /// TLS 1.3 (RFC 8446).
    #[schemars(rename = "1.3")]
    V1_3,
}

/// What a listener may refer to.
pub(crate) struct Names<'n> {
    pub(crate) upstreams: &'n BTreeSet<&'n str>,
    pub(crate) filters: &'n Declared,
    /// Somebody is trusted to say for whom a connection is, as far as is known.
    pub(crate) has_proxies: bool,
}

/// Whether a listener is one for TCP, whatever else may be wrong with it.
pub(crate) fn is_tcp(at: &At<'_>) -> bool {
    matches!(&at.node.data, Data::Map(entries) if entries.iter().any(|entry| entry.key == "tcp"))
}

impl Listener {
    pub(crate) fn read(cx: &mut Cx<'_>, at: &At<'_>, names: &Names<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "Listener")?;
        let bind = fields.need(cx, "bind", |cx, at| Bind::read(cx, at, "0.0.0.0", "all addresses"));
        let protocols_at = fields.get("protocols");
        let protocols = protocols_at.as_ref().and_then(|at| read_protocols(cx, at));
        let tls_at = fields.get("tls");
        let tls = tls_at.as_ref().and_then(|at| Tls::read(cx, at));
        let proxy_protocol = fields.read(cx, "proxy_protocol", |cx, at| {
            if !names.has_proxies {
                let fault = at.fault("nobody may send a PROXY protocol header: there are no `node.trusted_proxies`");
                cx.report(fault.with_help("name the proxies there, as addresses or ranges"));
            }
            choice(cx, at, &[("require", ProxyProtocol::Require), ("accept", ProxyProtocol::Accept)])
        });
        let redirect_at = fields.get("redirect_to_https");
        let redirect_to_https = redirect_at.as_ref().and_then(|at| RedirectToHttps::read(cx, at)).flatten();
        if let Some(tls_at) = tls_at.as_ref().filter(|_| redirect_to_https.is_some()) {
            let fault = Fault::at(tls_at.name_position(), "this has no meaning with `redirect_to_https`");
            let help = "clients that speak TLS are there already: remove one of them";
            cx.report(fault.with_key(tls_at.path.clone()).with_help(help));
        }
        let limits_at = fields.get("limits");
        let limits = limits_at.as_ref().and_then(|at| ListenerLimits::read(cx, at)).unwrap_or_default();
        let tcp_at = fields.get("tcp");
        let tcp = tcp_at.as_ref().and_then(|at| Tcp::read(cx, at, names));
        if tcp_at.is_some() {
            let of_http = limits::OF_HTTP.iter().filter_map(|key| entry_of(limits_at.as_ref()?, key));
            let forward_at = tls_at.and_then(|at| entry_of(&at, "clients")).and_then(|at| entry_of(&at, "forward"));
            let redirect_at = redirect_at.filter(|_| redirect_to_https.is_some());
            for at in protocols_at.into_iter().chain(redirect_at).chain(of_http).chain(forward_at) {
                let fault = Fault::at(at.name_position(), "this has no meaning with `tcp`").with_key(at.path.clone());
                cx.report(fault.with_help("it is about HTTP: remove one of them"));
            }
        }
        fields.close(cx);
        if tcp_at.is_some() && tcp.is_none() {
            return None;
        }
        Some(Self {
            bind: bind?,
            protocols: protocols.unwrap_or_else(|| vec![Protocol::H1, Protocol::H2]),
            tls,
            tcp,
            proxy_protocol,
            redirect_to_https,
            limits,
            position: at.name_position().clone(),
        })
    }
}

/// What stands at a key of a mapping, if there is one.
fn entry_of<'t>(at: &At<'t>, key: &str) -> Option<At<'t>> {
    let Data::Map(entries) = &at.node.data else { return None };
    entries.iter().find(|entry| entry.key == key).map(|entry| at.entry(entry))
}

impl Tcp {
    fn read(cx: &mut Cx<'_>, at: &At<'_>, names: &Names<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "Tcp")?;
        let upstream = fields.need(cx, "upstream", |cx, at| reference(cx, at, "upstream", names.upstreams));
        let filters =
            fields.read(cx, "filters", |cx, at| list(cx, at, |cx, at| FilterUse::read(cx, at, names.filters)));
        fields.close(cx);
        Some(Self { upstream: upstream?, filters: filters.unwrap_or_default(), position: at.name_position().clone() })
    }
}

fn read_protocols(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Vec<Protocol>> {
    let mut seen = Vec::new();
    filled_list(cx, at, |cx, at| {
        let protocol = choice(cx, at, &[("h1", Protocol::H1), ("h2", Protocol::H2)])?;
        if seen.contains(&protocol) {
            return cx.refuse(at.fault("this protocol is written twice"));
        }
        seen.push(protocol);
        Some(protocol)
    })
}

impl Tls {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "Tls")?;
        let certificates = fields.need(cx, "certificates", Certificates::read);
        let unknown_names = fields.read(cx, "unknown_names", |cx, at| {
            choice(cx, at, &[("first", UnknownNames::First), ("refuse", UnknownNames::Refuse)])
        });
        let clients = fields.read(cx, "clients", ClientCertificates::read);
        let min =
            fields.read(cx, "min", |cx, at| choice(cx, at, &[("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)]));
        fields.close(cx);
        Some(Self {
            certificates: certificates?,
            unknown_names: unknown_names.unwrap_or(UnknownNames::First),
            min: min.unwrap_or(TlsVersion::V1_2),
            clients,
            position: at.name_position().clone(),
        })
    }
}

impl ClientCertificates {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "ClientCertificates")?;
        let mode = fields.need(cx, "mode", |cx, at| {
            choice(cx, at, &[("request", ClientMode::Request), ("require", ClientMode::Require)])
        });
        let ca = fields.need(cx, "ca", path);
        let crl = fields.read(cx, "crl", path);
        let mut seen = Vec::new();
        let pins = fields.read(cx, "pins", |cx, at| {
            filled_list(cx, at, |cx, at| {
                let pin = parsed(cx, at, "44 letters, SHA-256 in base64", pin)?;
                if seen.contains(&pin) {
                    return cx.refuse(at.fault("this pin is written twice"));
                }
                seen.push(pin);
                Some(pin)
            })
        });
        let forward = fields.read(cx, "forward", truth);
        fields.close(cx);
        Some(Self {
            mode: mode?,
            ca: ca?,
            crl,
            pins: pins.unwrap_or_default(),
            forward: forward.unwrap_or(false),
            position: at.name_position().clone(),
        })
    }
}

fn pin(text: &str) -> Result<Pin, (String, Option<String>)> {
    let bytes = STANDARD.decode(text).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    bytes.map(Pin).ok_or_else(|| ("is not SHA-256 in base64".into(), None))
}

impl Certificates {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        match &at.node.data {
            Data::Scalar(scalar) if scalar.kind() != Kind::Null => {
                choice(cx, at, &[("development", ())]).map(|()| Self::Development)
            }
            _ => filled_list(cx, at, CertificateFiles::read).map(Self::Files),
        }
    }
}

impl CertificateFiles {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "CertificateFiles")?;
        let cert = fields.need(cx, "cert", path);
        let key = fields.need(cx, "key", path);
        fields.close(cx);
        Some(Self { cert: cert?, key: key?, position: at.node.position.clone() })
    }
}
