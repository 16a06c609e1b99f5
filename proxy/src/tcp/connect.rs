//! To an endpoint of the upstream: plain, or with TLS.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use pingora::connectors::TransportConnector;
use pingora::protocols::ALPN;
use pingora::protocols::l4::socket::SocketAddr as PingoraAddr;
use pingora::upstreams::peer::{HttpPeer, Peer, PeerOptions};
use smallvec::SmallVec;
use tokio::net::TcpStream;
use tracing::debug;

use super::Io;
use crate::upstream::Upstream;

/// How many endpoints are tried for one connection.
const ATTEMPTS: usize = 3;

/// A connection to an endpoint.
pub(super) struct Connected {
    pub(super) stream: Box<dyn Io>,
    pub(super) endpoint: SocketAddr,
    /// Our side of it; unknown where TLS hides it.
    pub(super) local: Option<SocketAddr>,
}

/// No endpoint could be connected to. Why not has been logged, for each.
pub(super) struct NoConnection {
    /// The one that was tried last.
    pub(super) endpoint: Option<SocketAddr>,
}

/// Connects to the upstream's next endpoint; to the one after it when that fails, unless it has been tried.
pub(super) async fn connect(upstream: Arc<Upstream>) -> Result<Connected, NoConnection> {
    let mut tried: SmallVec<[SocketAddr; ATTEMPTS]> = SmallVec::new();
    while tried.len() < ATTEMPTS {
        let peer = upstream.peer();
        let Some(endpoint) = peer._address.as_inet().copied().filter(|endpoint| !tried.contains(endpoint)) else {
            break;
        };
        match attempt(peer, endpoint).await {
            Ok(connected) => return Ok(connected),
            Err(error) => debug!(upstream = %upstream.name, %endpoint, %error, "no connection"),
        }
        tried.push(endpoint);
    }
    Err(NoConnection { endpoint: tried.last().copied() })
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn attempt(peer: HttpPeer, endpoint: SocketAddr) -> Result<Connected, Failure> {
    if peer.is_tls() {
        let stream = connector().new_stream(&AnyProtocol(peer)).await?;
        return Ok(Connected { stream: Box::new(stream), endpoint, local: None });
    }
    let connecting = TcpStream::connect(endpoint);
    let stream = match peer.options.connection_timeout {
        Some(timeout) => {
            tokio::time::timeout(timeout, connecting).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??
        }
        None => connecting.await?,
    };
    stream.set_nodelay(true)?;
    let local = stream.local_addr().ok();
    Ok(Connected { stream: Box::new(stream), endpoint, local })
}

/// Reads the system's certificates when it is made, and keeps no connections.
fn connector() -> &'static TransportConnector {
    static CONNECTOR: OnceLock<TransportConnector> = OnceLock::new();
    CONNECTOR.get_or_init(|| TransportConnector::new(None))
}

/// A peer that is offered no protocol by ALPN, because we do not know what the client speaks. Except for one that is not verified:
/// Pingora forgets to skip the verification when nothing else about its TLS is set.
#[derive(Clone)]
struct AnyProtocol(HttpPeer);

impl fmt::Display for AnyProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Peer for AnyProtocol {
    fn address(&self) -> &PingoraAddr {
        self.0.address()
    }

    fn tls(&self) -> bool {
        self.0.tls()
    }

    fn sni(&self) -> &str {
        self.0.sni()
    }

    fn reuse_hash(&self) -> u64 {
        self.0.reuse_hash()
    }

    fn get_peer_options(&self) -> Option<&PeerOptions> {
        self.0.get_peer_options()
    }

    fn get_alpn(&self) -> Option<&ALPN> {
        if self.0.verify_cert() { None } else { self.0.get_alpn() }
    }
}
