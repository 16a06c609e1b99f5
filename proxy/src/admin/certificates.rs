//! The certificates that listeners show.

use schemars::JsonSchema;
use serde::Serialize;

use super::State;
use crate::tls::{self, Loaded};

/// The certificates that TLS listeners show.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Certificates")]
pub(crate) struct CertificatesView {
    /// In order of listeners, then as they are written.
    certificates: Vec<CertificateView>,
}

/// A certificate.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Certificate")]
struct CertificateView {
    /// The listener that shows it.
    listener: String,
    /// The file it was read from; absent: made at start, for development.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    /// Whom it is about (RFC 4514).
    subject: String,
    /// The DNS names and addresses it is for.
    names: Vec<String>,
    /// Who issued it (RFC 4514).
    issuer: String,
    /// From when on it is valid (RFC 3339).
    not_before: String,
    /// Until when (RFC 3339).
    not_after: String,
    /// Whole days until then; negative once it has expired.
    days_left: i64,
    /// Its number, in hexadecimal.
    serial: String,
    /// SHA-256 of the whole, in hexadecimal.
    fingerprint: String,
}

impl CertificatesView {
    pub(crate) fn of(state: &State) -> Self {
        let now = tls::now();
        let mut certificates = Vec::new();
        for (listener, store) in state.control.listening().certificates() {
            store.each(|loaded| certificates.push(CertificateView::of(&listener, loaded, now)));
        }
        Self { certificates }
    }
}

impl CertificateView {
    fn of(listener: &str, loaded: &Loaded, now: i64) -> Self {
        const DAY: i64 = 24 * 60 * 60;
        let facts = &loaded.facts;
        let addresses = facts.addresses.iter().map(ToString::to_string);
        Self {
            listener: listener.to_owned(),
            file: loaded.file.as_ref().map(|file| file.display().to_string()),
            subject: facts.subject.clone(),
            names: facts.dns.iter().cloned().chain(addresses).collect(),
            issuer: facts.issuer.clone(),
            not_before: tls::when(facts.not_before),
            not_after: tls::when(facts.not_after),
            days_left: facts.not_after.saturating_sub(now).div_euclid(DAY),
            serial: facts.serial.clone(),
            fingerprint: tls::hex(&facts.fingerprint),
        }
    }
}
