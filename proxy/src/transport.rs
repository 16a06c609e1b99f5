//! The client's TCP connection, as Pingora reads and writes it.
//!
//! Pingora's own stream buffers only on connections its own listeners have accepted, and costs two clock reads per operation. This one
//! gathers a response header and what follows it into one segment, sends large bodies past the buffer with `writev`, and keeps no memory
//! while the connection is idle.

use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use async_trait::async_trait;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

/// Bytes gathered before they are sent: a response header and a small body.
const GATHER: usize = 16 * 1024;
/// What of the buffer is kept between responses, in bytes.
const KEEP: usize = 4 * 1024;

/// An accepted TCP connection.
pub(crate) struct Transport {
    stream: TcpStream,
    /// Written, not yet sent.
    pending: Vec<u8>,
    /// How much of `pending` has been sent.
    sent: usize,
    /// Looked at, not yet read.
    peeked: Vec<u8>,
    digest: Arc<SocketDigest>,
    accepted: SystemTime,
}

impl Transport {
    /// Takes over a connection that was accepted from `peer`.
    pub(crate) fn new(stream: TcpStream, peer: SocketAddr) -> Self {
        let digest = SocketDigest::from_raw_fd(stream.as_raw_fd());
        // The cell is new, so this cannot fail.
        let _ = digest.peer_addr.set(Some(peer.into()));
        Self {
            stream,
            pending: Vec::new(),
            sent: 0,
            peeked: Vec::new(),
            digest: Arc::new(digest),
            accepted: SystemTime::now(),
        }
    }

    /// Sends what is pending.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.pending.len() {
            let sent = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.pending[self.sent..]))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += sent;
        }
        self.reset();
        Poll::Ready(Ok(()))
    }

    fn reset(&mut self) {
        self.sent = 0;
        if self.pending.capacity() > KEEP {
            self.pending = Vec::new();
        } else {
            self.pending.clear();
        }
    }
}

impl AsyncRead for Transport {
    /// Whoever turns to reading has nothing more to write for now, so what is pending goes out first: Pingora does not flush in the
    /// middle of a body of known length, however slowly it comes.
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.pending.is_empty()
            && let Poll::Ready(Err(error)) = self.poll_send(cx)
        {
            return Poll::Ready(Err(error));
        }
        if !self.peeked.is_empty() {
            let count = self.peeked.len().min(buffer.remaining());
            buffer.put_slice(&self.peeked[..count]);
            self.peeked.drain(..count);
            if self.peeked.is_empty() {
                self.peeked = Vec::new();
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Transport {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.pending.len() + bytes.len() <= GATHER {
            this.pending.extend_from_slice(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        if this.pending.is_empty() {
            return Pin::new(&mut this.stream).poll_write(cx, bytes);
        }

        // What is pending and the new bytes in one call, the latter without a copy.
        let slices = [IoSlice::new(&this.pending[this.sent..]), IoSlice::new(bytes)];
        let sent = ready!(Pin::new(&mut this.stream).poll_write_vectored(cx, &slices))?;
        if sent == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        let waiting = this.pending.len() - this.sent;
        if sent > waiting {
            this.reset();
            return Poll::Ready(Ok(sent - waiting));
        }
        // Nothing of the new bytes is out yet: send the rest of what is pending first.
        this.sent += sent;
        ready!(this.poll_send(cx))?;
        Pin::new(&mut this.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[async_trait]
impl Peek for Transport {
    /// Reads until `buffer` is full, or until what has come differs from an HTTP/2 preface: shorter requests than the preface exist.
    async fn try_peek(&mut self, buffer: &mut [u8]) -> io::Result<bool> {
        const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        while self.peeked.len() < buffer.len() && PREFACE.starts_with(&self.peeked) {
            let mut chunk = [0; 4096];
            let count = self.stream.read(&mut chunk).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.peeked.extend_from_slice(&chunk[..count]);
        }
        let count = self.peeked.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.peeked[..count]);
        Ok(true)
    }
}

#[async_trait]
impl Shutdown for Transport {
    async fn shutdown(&mut self) {
        // The client may be gone already.
        let _ = AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for Transport {
    fn id(&self) -> i32 {
        self.stream.as_raw_fd()
    }
}

impl Ssl for Transport {}

impl GetTimingDigest for Transport {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        vec![Some(TimingDigest { established_ts: self.accepted, ..TimingDigest::default() })]
    }
}

impl GetProxyDigest for Transport {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for Transport {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(Arc::clone(&self.digest))
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").field("fd", &self.id()).field("pending", &self.pending.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pair() -> (Transport, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        (Transport::new(stream, peer), client)
    }

    #[tokio::test]
    async fn what_is_peeked_is_read_again() {
        let (mut transport, mut client) = pair().await;
        client.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap(); // shorter than a preface
        let mut preface = [0; 24];
        assert!(transport.try_peek(&mut preface).await.unwrap());
        let mut first = [0; 4];
        transport.read_exact(&mut first).await.unwrap();
        let mut rest = [0; 14];
        transport.read_exact(&mut rest).await.unwrap();
        assert_eq!((&first, &rest), (b"GET ", b"/ HTTP/1.0\r\n\r\n"));
    }

    #[tokio::test]
    async fn a_preface_that_comes_in_pieces_is_recognised() {
        let (mut transport, mut client) = pair().await;
        let sender = tokio::spawn(async move {
            for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" {
                client.write_all(&[*byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
            client
        });
        let mut preface = [0; 24];
        assert!(transport.try_peek(&mut preface).await.unwrap());
        assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        drop(sender.await.unwrap());
    }

    #[tokio::test]
    async fn what_is_pending_is_sent_when_reading_begins() {
        let (mut transport, mut client) = pair().await;
        transport.write_all(b"part of a body").await.unwrap();
        let mut byte = [0; 1];
        let mut part = [0; 14];
        tokio::select! {
            read = transport.read(&mut byte) => panic!("nothing was sent: {read:?}"),
            read = client.read_exact(&mut part) => assert_eq!(read.unwrap(), 14),
        }
        assert_eq!(&part, b"part of a body");
    }

    #[tokio::test]
    async fn writes_of_every_size_arrive_in_order() {
        let (mut transport, mut client) = pair().await;
        let sizes = [1, 100, GATHER - 101, 1, GATHER, GATHER + 1, 3 * GATHER + 7, 5, 1 << 20, 10];
        let reader = tokio::spawn(async move {
            let mut all = Vec::new();
            client.read_to_end(&mut all).await.unwrap();
            all
        });
        let mut expected = Vec::new();
        for (index, size) in sizes.into_iter().enumerate() {
            let chunk = vec![u8::try_from(index).unwrap(); size];
            transport.write_all(&chunk).await.unwrap();
            expected.extend_from_slice(&chunk);
        }
        AsyncWriteExt::shutdown(&mut transport).await.unwrap();
        drop(transport);
        assert!(reader.await.unwrap() == expected);
    }
}
