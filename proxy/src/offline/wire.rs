//! The pipe in memory that a request comes through, as a connection that Pingora takes for one of its own.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};

use super::question::Sent;
use crate::tls::Handshake;
use crate::transport::Told;

/// No descriptor is behind it.
const NO_SOCKET: i32 = -1;

/// The node's end.
pub(super) struct Wire {
    pipe: DuplexStream,
    digest: Arc<SocketDigest>,
    told: Told,
}

impl Wire {
    /// A connection as this one would come on.
    pub(super) fn new(pipe: DuplexStream, sent: &Sent) -> Self {
        let digest = SocketDigest::from_raw_fd(NO_SOCKET);
        // The cells are new, so this cannot fail; and what is set is not asked of the descriptor.
        let _ = digest.peer_addr.set(sent.client.map(Into::into));
        let _ = digest.local_addr.set(sent.bind.map(Into::into));
        let _ = digest.original_dst.set(None);
        let told = Told::default();
        if sent.listener.tls {
            told.handshake(Handshake::new(sent.server_name.as_deref(), None), false);
        }
        Self { pipe, digest: Arc::new(digest), told }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.pipe).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}

#[async_trait]
impl Shutdown for Wire {
    async fn shutdown(&mut self) {
        let _ = AsyncWriteExt::shutdown(&mut self.pipe).await; // The other end may be gone.
    }
}

impl UniqueID for Wire {
    fn id(&self) -> i32 {
        NO_SOCKET
    }
}

impl Ssl for Wire {}

impl Peek for Wire {}

impl GetTimingDigest for Wire {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        vec![Some(TimingDigest::default())]
    }
}

impl GetProxyDigest for Wire {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        self.told.digest()
    }
}

impl GetSocketDigest for Wire {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(Arc::clone(&self.digest))
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wire")
    }
}
