//! What a handshake has told about the client: the name it asked for, and the certificate it was let in with.

use std::sync::OnceLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue};
use rustls::pki_types::{CertificateDer, ServerName};

use super::Certificate;

/// The client's certificate, as a Structured Field of bytes (RFC 9440, 2.2).
pub(crate) const CLIENT_CERT: HeaderName = HeaderName::from_static("client-cert");
/// Its intermediates (RFC 9440, 2.3).
pub(crate) const CLIENT_CERT_CHAIN: HeaderName = HeaderName::from_static("client-cert-chain");

/// What a handshake has told.
#[derive(Debug, Default)]
pub(crate) struct Handshake {
    /// The name that was asked for (SNI).
    pub(crate) server_name: Option<Box<str>>,
    /// The client's certificate, which was verified.
    pub(crate) certificate: Option<Shown>,
}

/// A certificate that was shown and verified. It is read when somebody wants to know what it says.
#[derive(Debug)]
pub(crate) struct Shown {
    der: Box<[u8]>,
    facts: OnceLock<Option<Box<Certificate>>>,
    field: OnceLock<Option<HeaderValue>>,
}

impl Handshake {
    pub(crate) fn new(server_name: Option<&str>, certificate: Option<&[u8]>) -> Self {
        Self {
            server_name: server_name.map(Box::from),
            certificate: certificate.map(|der| Shown {
                der: der.into(),
                facts: OnceLock::new(),
                field: OnceLock::new(),
            }),
        }
    }

    /// What filters may read at `connection.NAME`, besides the cipher and such.
    pub(crate) fn property(&self, name: &str) -> Option<Vec<u8>> {
        if name == "requested_server_name" {
            return Some(self.server_name.as_deref().unwrap_or_default().into());
        }
        let certificate = self.certificate.as_ref()?;
        if name == "mtls" {
            return Some(vec![1]);
        }
        let facts = certificate.facts()?;
        match name {
            "subject_peer_certificate" => Some(facts.subject.clone().into_bytes()),
            "dns_san_peer_certificate" => facts.dns.first().map(|name| name.clone().into_bytes()),
            "uri_san_peer_certificate" => facts.uris.first().map(|uri| uri.clone().into_bytes()),
            "sha256_peer_certificate_digest" => Some(super::hex(&facts.fingerprint).into_bytes()),
            "serial_peer_certificate" => Some(facts.serial.clone().into_bytes()),
            _ => None,
        }
    }
}

impl Shown {
    /// What it says; `None` if it cannot be read, though the TLS library could.
    fn facts(&self) -> Option<&Certificate> {
        self.facts.get_or_init(|| Certificate::of(&self.der).ok().map(Box::new)).as_deref()
    }

    /// Whether it is for a server of this name, as one that is connected to has to be (RFC 9525, 6.3).
    pub(crate) fn is_for(&self, name: &str) -> bool {
        let certificate = CertificateDer::from(&*self.der);
        let parsed = webpki::EndEntityCert::try_from(&certificate);
        let name = ServerName::try_from(name);
        parsed.is_ok_and(|parsed| name.is_ok_and(|name| parsed.verify_is_valid_for_subject_name(&name).is_ok()))
    }

    /// What upstreams are told of it in `Client-Cert`.
    pub(crate) fn field(&self) -> Option<&HeaderValue> {
        let write = || HeaderValue::try_from(format!(":{}:", STANDARD.encode(&self.der))).ok();
        self.field.get_or_init(write).as_ref()
    }
}
