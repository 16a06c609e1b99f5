//! TLS towards clients: handshakes, and the certificates of listeners.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Page;
use crate::tls::{CertificateStore, HandshakeCounts};

const EXPIRY: &str = "selvedge_certificate_expiry_timestamp_seconds";

pub(super) fn write(page: &mut Page, handshakes: &HandshakeCounts, certificates: &[(String, Arc<CertificateStore>)]) {
    page.family("selvedge_tls_handshakes_total", "counter", "TLS handshakes of clients, by how they ended.");
    for (result, count) in handshakes.ends() {
        page.sample("selvedge_tls_handshakes_total", &[("result", result)], count);
    }
    let help = "Clients refused in the handshake: for the name they asked for, or for their certificate.";
    page.family("selvedge_tls_refusals_total", "counter", help);
    for (reason, count) in handshakes.refusals() {
        page.sample("selvedge_tls_refusals_total", &[("reason", reason)], count);
    }
    // Of several with one name, as of an RSA and an ECDSA key, the one that ends first.
    let mut ends: BTreeMap<(&str, String), i64> = BTreeMap::new();
    for (listener, store) in certificates {
        store.each(|loaded| {
            let end = loaded.facts.not_after;
            let known = ends.entry((listener, loaded.facts.title().to_owned())).or_insert(end);
            *known = end.min(*known);
        });
    }
    page.family(EXPIRY, "gauge", "When the certificate for a name (its first one) ends, in Unix time.");
    for ((listener, name), end) in ends {
        page.sample(EXPIRY, &[("listener", listener), ("name", &name)], end);
    }
}
