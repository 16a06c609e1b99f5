//! Upstreams: named groups of endpoints, and which endpoint a request goes to.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pingora::protocols::ALPN;
use pingora::protocols::tls::CaType;
use pingora::upstreams::peer::HttpPeer;

/// Every upstream of a plan, by name.
#[derive(Default)]
pub struct Upstreams {
    by_name: HashMap<String, Arc<Upstream>>,
}

impl Upstreams {
    pub(crate) fn insert(&mut self, upstream: Upstream) {
        self.by_name.insert(upstream.name.clone(), Arc::new(upstream));
    }

    /// The upstream of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Upstream>> {
        self.by_name.get(name)
    }
}

/// A named group of endpoints that share their settings.
pub struct Upstream {
    pub(crate) name: String,
    /// Endpoints with their weights spread out: an endpoint of weight 3 stands in it three times.
    schedule: Vec<SocketAddr>,
    next: AtomicUsize,
    tls: Option<PeerTls>,
    http2: bool,
    timeouts: selvedge_config::Timeouts,
}

/// How a TLS upstream is verified.
pub(crate) struct PeerTls {
    /// The name sent and verified.
    pub(crate) sni: String,
    /// The authorities trusted; `None` = the system's.
    pub(crate) ca: Option<Arc<CaType>>,
    /// Whether certificate and name are verified.
    pub(crate) verify: bool,
}

impl Upstream {
    /// `endpoints` with weights; at least one, each weight at least 1.
    pub(crate) fn new(
        name: String,
        endpoints: &[(SocketAddr, u16)],
        tls: Option<PeerTls>,
        http2: bool,
        timeouts: selvedge_config::Timeouts,
    ) -> Self {
        Self { name, schedule: interleave(endpoints), next: AtomicUsize::new(0), tls, http2, timeouts }
    }

    /// The next endpoint, as Pingora connects to it.
    pub(crate) fn peer(&self) -> HttpPeer {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let address = self.schedule[turn % self.schedule.len()];

        let sni = self.tls.as_ref().map(|tls| tls.sni.clone()).unwrap_or_default();
        let mut peer = HttpPeer::new(address, self.tls.is_some(), sni);
        peer.options.connection_timeout = Some(self.timeouts.connect);
        peer.options.total_connection_timeout = Some(self.timeouts.connect);
        peer.options.read_timeout = Some(self.timeouts.read);
        peer.options.write_timeout = Some(self.timeouts.read);
        peer.options.idle_timeout = Some(self.timeouts.idle);
        if let Some(tls) = &self.tls {
            peer.options.verify_cert = tls.verify;
            peer.options.verify_hostname = tls.verify;
            peer.options.ca.clone_from(&tls.ca);
        }
        if self.http2 {
            peer.options.alpn = ALPN::H2;
            peer.options.max_h2_streams = 100;
        }
        peer
    }
}

/// Spreads weighted endpoints so that a heavy one is not asked several times in a row (smooth weighted round robin).
fn interleave(endpoints: &[(SocketAddr, u16)]) -> Vec<SocketAddr> {
    let total: i64 = endpoints.iter().map(|(_, weight)| i64::from(*weight)).sum();
    let mut current: Vec<i64> = vec![0; endpoints.len()];
    let mut schedule = Vec::new();
    for _ in 0..total {
        for (slot, (_, weight)) in current.iter_mut().zip(endpoints) {
            *slot += i64::from(*weight);
        }
        let Some(best) = (0..current.len()).max_by_key(|index| (current[*index], std::cmp::Reverse(*index))) else {
            break;
        };
        current[best] -= total;
        schedule.push(endpoints[best].0);
    }
    schedule
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_spread_smoothly() {
        let a: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let b: SocketAddr = "127.0.0.1:2".parse().unwrap();
        assert_eq!(interleave(&[(a, 3), (b, 1)]), [a, a, b, a]);
        assert_eq!(interleave(&[(a, 1), (b, 1)]), [a, b]);
    }
}
