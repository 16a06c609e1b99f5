//! Who comes, and whether there is room: what is decided about a connection before anything is read of it but a PROXY protocol header.

use std::net::SocketAddr;
use std::sync::Arc;

use pingora::server::ShutdownWatch;
use selvedge_config::ProxyProtocol;
use tokio::io::AsyncRead;
use tracing::debug;

use super::ListenerFacts;
use super::proxy_protocol::{self, Header};
use crate::crowd::{Crowd, Full, Place};
use crate::node::Current;
use crate::telemetry::counters::Unintroduced;

/// The two ends of a connection, as everything after this knows them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends {
    /// Who connected, or whom a PROXY protocol header names; `None` = somebody at a Unix socket, who has no address.
    pub(crate) client: Option<SocketAddr>,
    /// Where it connected to, if a header says so.
    pub(crate) local: Option<SocketAddr>,
}

/// A listener, as connections find it.
pub(crate) struct Arrivals {
    pub(crate) crowd: Arc<Crowd>,
    pub(crate) facts: Arc<ListenerFacts>,
    pub(crate) current: Arc<Current>,
}

impl Arrivals {
    /// A place for a connection from this peer, if there is one.
    pub(super) fn enter(&self, peer: Option<SocketAddr>) -> Option<Place> {
        let each = self.facts.connections_per_client.zip(peer);
        let each = each.filter(|_| !self.current.plan().trusts(peer));
        let place = self.crowd.admit(self.facts.connections, each);
        place.inspect_err(|why| self.current.plan().counters.refused_connection(*why)).ok()
    }

    /// Whether something is to be read before it is known for whom a connection is.
    pub(super) fn asks(&self) -> bool {
        self.facts.proxy_protocol.is_some()
    }

    /// Finds out for whom a connection is; `None` = it is closed.
    pub(super) async fn ask(
        &self,
        stream: &mut (impl AsyncRead + Unpin),
        peer: Option<SocketAddr>,
        place: &mut Place,
        mut shutdown: ShutdownWatch,
    ) -> Option<Ends> {
        let direct = Ends { client: peer, local: None };
        let refuse = |why: Unintroduced| -> Option<Ends> {
            self.current.plan().counters.unintroduced(why);
            debug!(listener = self.facts.name, ?peer, ?why, "closed: no PROXY protocol header was accepted");
            None
        };
        match (self.facts.proxy_protocol, self.current.plan().trusts(peer)) {
            (None, _) | (Some(ProxyProtocol::Accept), false) => return Some(direct),
            (Some(ProxyProtocol::Require), false) => return refuse(Unintroduced::Untrusted),
            (Some(_), true) => {}
        }

        let header = tokio::select! {
            biased;
            _ = shutdown.wait_for(|stopping| *stopping) => return None,
            header = tokio::time::timeout(self.facts.header_timeout, proxy_protocol::read(stream)) => header,
        };
        let (source, destination) = match header {
            Ok(Ok(Header::For { source, destination })) => (source, destination),
            Ok(Ok(Header::Own)) => return Some(direct),
            Ok(Err(_)) => return refuse(Unintroduced::Malformed),
            Err(_) => return refuse(Unintroduced::Late),
        };
        if let Some(each) = self.facts.connections_per_client
            && !self.current.plan().trusts(Some(source))
            && !place.is_of(source, each)
        {
            self.current.plan().counters.refused_connection(Full::Client);
            debug!(listener = self.facts.name, client = %source, "no room for another connection of this client");
            return None;
        }
        Some(Ends { client: Some(source), local: Some(destination) })
    }
}
