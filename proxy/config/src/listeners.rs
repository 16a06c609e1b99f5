//! `listeners`: the addresses the node answers on.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use schemars::JsonSchema;

use crate::{
    report::Position,
    values::{ByteSize, DurationText},
};

/// One bound address.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Listener {
    /// Address and port, such as `127.0.0.1:8080` or `"[::]:443"` (quoted: a plain value cannot start with `[`). Port 0
    /// takes a free port. Two listeners cannot share an address. Required.
    #[schemars(with = "String")]
    pub bind: SocketAddr,

    /// What may be spoken: `h1`, `h2`, or both. With `tls` the client chooses by ALPN. Without `tls`, `h2` is served to
    /// clients that know it beforehand (h2c by prior knowledge), never by upgrade. Default `[h1, h2]`.
    #[schemars(with = "Option<Vec<Protocol>>", length(min = 1), extend("default" = ["h1", "h2"]))]
    pub protocols: Vec<Protocol>,

    /// TLS on this address. Absent: plain text.
    pub tls: Option<Tls>,

    /// How much and how slowly a client may send.
    #[schemars(with = "Option<ListenerLimits>")]
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

/// TLS towards clients.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Tls {
    /// `development` for a self-signed certificate made at start (no client trusts it), or a list of `{ cert, key }`
    /// files. The client's SNI chooses among several; the first is for clients that send none. Required.
    pub certificates: Certificates,

    /// The oldest version of TLS that is accepted: `"1.2"` or `"1.3"`, quoted. `"1.3"` shuts out clients older than
    /// about 2018. Default `"1.2"`.
    #[schemars(with = "Option<TlsVersion>", extend("default" = "1.2"))]
    pub min: TlsVersion,
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

/// How much and how slowly a client may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct ListenerLimits {
    /// The largest request body; a larger one is answered with 413 (Content Too Large). It bounds what one client can
    /// make the origin read. Above zero. Default `16MiB`.
    #[schemars(with = "Option<ByteSize>", extend("default" = "16MiB"))]
    pub body: ByteSize,

    /// How long a client may take to send a request's headers, from its first byte. Short stops slow-header attacks, long
    /// serves bad radio links. Above zero. Default `10s`.
    #[schemars(with = "Option<DurationText>", extend("default" = "10s"))]
    pub header_timeout: Duration,

    /// How long a connection may stand idle between requests before it is closed. Long saves handshakes, short saves
    /// memory. Above zero. Default `60s`.
    #[schemars(with = "Option<DurationText>", extend("default" = "60s"))]
    pub idle_timeout: Duration,
}

impl Default for ListenerLimits {
    fn default() -> Self {
        Self {
            body: ByteSize::mib(16),
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
        }
    }
}
