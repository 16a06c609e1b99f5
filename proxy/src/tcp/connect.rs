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

/// No endpoint could be connected to.
#[derive(Debug, thiserror::Error)]
#[error("connect to {endpoint}")]
pub(super) struct ConnectError {
    /// The one that was tried last.
    pub(super) endpoint: SocketAddr,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// Connects to the upstream's next endpoint; to the one after it when that fails, unless it has been tried.
pub(super) async fn connect(upstream: Arc<Upstream>) -> Result<Connected, ConnectError> {
    let mut tried: SmallVec<[SocketAddr; ATTEMPTS]> = SmallVec::new();
    loop {
        let peer = upstream.peer();
        let Some(endpoint) = peer._address.as_inet().copied() else {
            let source = "its endpoint has no internet address".into();
            return Err(ConnectError { endpoint: SocketAddr::from(([0, 0, 0, 0], 0)), source });
        };
        let source = match attempt(peer, endpoint).await {
            Ok(connected) => return Ok(connected),
            Err(source) => source,
        };
        debug!(upstream = %upstream.name, %endpoint, error = %source, "no connection");
        if tried.contains(&endpoint) || tried.len() + 1 >= ATTEMPTS {
            return Err(ConnectError { endpoint, source });
        }
        tried.push(endpoint);
    }
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

/// A peer that is offered no protocol by ALPN: we do not know what the client speaks.
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
        None
    }
}
