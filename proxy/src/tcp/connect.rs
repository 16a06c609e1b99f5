//! To an endpoint of the upstream: plain, or with TLS.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use pingora::connectors::TransportConnector;
use pingora::protocols::ALPN;
use pingora::protocols::l4::socket::SocketAddr as PingoraAddr;
use pingora::upstreams::peer::{HttpPeer, Peer, PeerOptions};
use smallvec::SmallVec;
use tokio::net::{TcpStream, UnixStream};
use tracing::debug;

use super::Io;
use crate::upstream::{Address, EndpointId, Failure, Lease, Upstream};

/// How many endpoints are tried for one connection.
const ATTEMPTS: usize = 3;

/// A connection to an endpoint.
pub(super) struct Connected {
    pub(super) stream: Box<dyn Io>,
    /// Our place at it.
    pub(super) lease: Lease,
    /// Our side of it; unknown where TLS hides it.
    pub(super) local: Option<SocketAddr>,
}

/// No endpoint could be connected to. Why not has been logged, for each.
pub(super) struct NoConnection {
    /// The one that was tried last.
    pub(super) endpoint: Option<Address>,
}

/// Connects to an endpoint of the upstream; to another when that fails.
pub(super) async fn connect(upstream: Arc<Upstream>, client: Option<IpAddr>) -> Result<Connected, NoConnection> {
    let mut tried: SmallVec<[EndpointId; ATTEMPTS]> = SmallVec::new();
    let mut last = None;
    let ask = upstream.ask_of_connection(client);
    while tried.len() < ATTEMPTS {
        let lease = match upstream.wait(&ask.avoiding(&tried), None).await {
            Ok(lease) => lease,
            Err(why) => {
                debug!(upstream = %upstream.name, %why, "no endpoint");
                break;
            }
        };
        let endpoint = lease.endpoint();
        match attempt(&lease).await {
            Ok((stream, local)) => {
                lease.answered(200);
                return Ok(Connected { stream, lease, local });
            }
            Err(error) => {
                debug!(upstream = %upstream.name, endpoint = %endpoint.address(), %error, "no connection");
                lease.failed(Failure::Connect);
            }
        }
        tried.push(endpoint.id());
        last = Some(endpoint.address().clone());
    }
    Err(NoConnection { endpoint: last })
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// The stream, and our side of it.
async fn attempt(lease: &Lease) -> Result<(Box<dyn Io>, Option<SocketAddr>), Failed> {
    let peer = lease.peer();
    if peer.is_tls() {
        let stream = connector().new_stream(&AnyProtocol(peer)).await?;
        return Ok((Box::new(stream), None));
    }
    let limit = peer.options.connection_timeout.unwrap_or(Duration::MAX);
    let too_late = |_| io::Error::from(io::ErrorKind::TimedOut);
    match lease.endpoint().address() {
        Address::Inet(endpoint) => {
            let stream = tokio::time::timeout(limit, TcpStream::connect(endpoint)).await.map_err(too_late)??;
            stream.set_nodelay(true)?;
            let local = stream.local_addr().ok();
            Ok((Box::new(stream), local))
        }
        Address::Unix(path) => {
            let stream = tokio::time::timeout(limit, UnixStream::connect(&**path)).await.map_err(too_late)??;
            Ok((Box::new(stream), None))
        }
    }
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
