//! The client's connection, as Pingora reads and writes it.
//!
//! Pingora's own stream buffers only on connections its own listeners have accepted, costs two clock reads per operation, and may keep
//! the start of a slow body of known length back until its end. This one holds back one write only, the first after a flush or a read: a
//! response header. It leaves together with what follows, in one `writev` that copies no body; everything later leaves at once.

use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use async_trait::async_trait;
use pingora::http::ResponseHeader;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    Digest, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::limits::Late;
use crate::listener::arrival::Ends;
use crate::listener::connection::{Shared, bytes_have_come, reads_on, shared, waits};
use crate::listener::stream::ClientStream;
use crate::tls::Handshake;

/// The longest first write that is held back, in bytes.
const HEADER_MAX: usize = 16 * 1024;
/// What of the buffer is kept between responses, in bytes.
const KEEP: usize = 4 * 1024;
/// How many pieces leave in one call.
const PIECES: usize = 8;

/// An accepted connection.
pub(crate) struct Transport {
    stream: ClientStream,
    /// Held back, to leave with what follows.
    pending: Vec<u8>,
    /// Something was held back since the last flush or read: what is written now leaves at once.
    begun: bool,
    /// How much of `pending` has been sent.
    sent: usize,
    /// Looked at, not yet read.
    peeked: Vec<u8>,
    digest: Arc<SocketDigest>,
    accepted: SystemTime,
    told: Option<Told>,
    /// Whether the client's uploads have a deadline or a least rate.
    judged: bool,
}

/// What every request of the connection may learn of it, whichever protocol it speaks. In Pingora's digests only the one for CONNECT
/// proxies, which clients of ours do not have, takes data from outside.
#[derive(Clone, Default)]
pub(crate) struct Told(Arc<OnceLock<Arc<ProxyDigest>>>);

/// What is told.
#[derive(Default)]
struct Facts {
    /// What the client has told in the TLS handshake.
    handshake: Option<Arc<Handshake>>,
    /// What HTTP/2 streams share.
    connection: Option<Arc<Shared>>,
}

impl Told {
    /// Tells, once, that the TLS handshake is over and what came of it.
    pub(crate) fn handshake(&self, handshake: Handshake, http2: bool) {
        let connection = http2.then(shared).flatten();
        self.tell(Facts { handshake: Some(Arc::new(handshake)), connection });
    }

    fn tell(&self, facts: Facts) {
        let Ok(header) = ResponseHeader::build_no_case(200, Some(0)) else { return };
        let _first_ones_stay = self.0.set(Arc::new(ProxyDigest::new(Box::new(header), Some(Box::new(facts)))));
    }

    /// The digest that carries it, once it was told.
    pub(crate) fn digest(&self) -> Option<Arc<ProxyDigest>> {
        self.0.get().cloned()
    }

    fn facts(digest: &Digest) -> Option<&Facts> {
        digest.proxy_digest.as_ref()?.user_data.as_ref()?.downcast_ref()
    }

    /// What the client has told in the TLS handshake; `None` without one.
    pub(crate) fn client(digest: &Digest) -> Option<&Arc<Handshake>> {
        Self::facts(digest)?.handshake.as_ref()
    }

    /// The connection an HTTP/2 stream belongs to.
    pub(crate) fn connection(digest: &Digest) -> Option<&Shared> {
        Self::facts(digest)?.connection.as_deref()
    }
}

impl Transport {
    /// Takes over an accepted connection.
    pub(crate) fn new(stream: ClientStream, ends: Ends) -> Self {
        let digest = SocketDigest::from_raw_fd(stream.as_raw_fd());
        // The cells are new, so this cannot fail.
        let _ = digest.peer_addr.set(ends.client.map(Into::into));
        if let Some(local) = ends.local {
            let _ = digest.local_addr.set(Some(local.into()));
        } else if ends.client.is_none() {
            let _ = digest.local_addr.set(None); // A Unix socket: only its path could be asked for.
        }
        Self {
            stream,
            pending: Vec::new(),
            begun: false,
            sent: 0,
            peeked: Vec::new(),
            digest: Arc::new(digest),
            accepted: SystemTime::now(),
            told: None,
            judged: false,
        }
    }

    /// What the client uploads is to come in time: reading on after that fails with [`Late`].
    pub(crate) fn judge_uploads(&mut self) {
        self.judged = true;
    }

    /// To be told what comes of the TLS handshake.
    pub(crate) fn expect_told(&mut self) -> Told {
        self.told.get_or_insert_default().clone()
    }

    /// What comes next, which will be read again.
    pub(crate) async fn read_ahead(&mut self) -> io::Result<&[u8]> {
        let mut chunk = [0; 4096];
        let count = self.stream.read(&mut chunk).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes_have_come(count);
        let before = self.peeked.len();
        self.peeked.extend_from_slice(&chunk[..count]);
        Ok(&self.peeked[before..])
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

    /// Writes pieces behind what is pending; says how much of the pieces was taken.
    fn poll_pieces(&mut self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.judged {
            waits(false);
        }
        let total: usize = pieces.iter().map(|piece| piece.len()).sum();
        // Nobody flushes the alert that ends a handshake.
        let shaking_hands = self.told.as_ref().is_some_and(|told| told.0.get().is_none());
        if !self.begun && !shaking_hands && self.pending.is_empty() && total <= HEADER_MAX {
            self.begun = true;
            for piece in pieces {
                self.pending.extend_from_slice(piece);
            }
            return Poll::Ready(Ok(total));
        }
        if self.pending.is_empty() {
            return Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        }

        let waiting = self.pending.len() - self.sent;
        let mut slices = [IoSlice::new(&[]); PIECES];
        slices[0] = IoSlice::new(&self.pending[self.sent..]);
        let count = pieces.len().min(PIECES - 1);
        slices[1..=count].copy_from_slice(&pieces[..count]);
        let sent = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..=count]))?;
        if sent == 0 && total > 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        if sent > waiting {
            self.reset();
            return Poll::Ready(Ok(sent - waiting));
        }
        // Nothing of the pieces is out yet: first the rest of what is pending.
        self.sent += sent;
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }
}

impl AsyncRead for Transport {
    /// Whoever turns to reading has nothing more to write for now, so what is held back goes out first.
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.begun = false;
        if !self.pending.is_empty()
            && let Poll::Ready(Err(error)) = self.poll_send(cx)
        {
            return Poll::Ready(Err(error));
        }
        if !self.peeked.is_empty() {
            let count = self.peeked.len().min(buffer.remaining());
            bytes_have_come(count);
            buffer.put_slice(&self.peeked[..count]);
            self.peeked.drain(..count);
            if self.peeked.is_empty() {
                self.peeked = Vec::new();
            }
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        if self.judged
            && let Err(limit) = reads_on()
        {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, Late(limit))));
        }
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        bytes_have_come(buffer.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_pieces(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_pieces(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        self.begun = false;
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
            self.read_ahead().await?;
        }
        let count = self.peeked.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.peeked[..count]);
        if self.peeked.starts_with(PREFACE) {
            self.expect_told().tell(Facts { connection: shared(), ..Facts::default() });
        }
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
        self.told.as_ref()?.digest()
    }
}

impl GetSocketDigest for Transport {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(Arc::clone(&self.digest))
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport")
            .field("fd", &self.id())
            .field("pending", &self.pending.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    async fn pair() -> (Transport, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        (Transport::new(ClientStream::Tcp(stream), Ends { client: Some(peer), local: None }), client)
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
    async fn only_the_first_write_is_held_back() {
        let (mut transport, mut client) = pair().await;
        transport.write_all(b"header ").await.unwrap();
        assert!(client.try_read(&mut [0; 8]).is_err(), "nothing has come yet");
        transport.write_all(b"start").await.unwrap();
        let mut both = [0; 12];
        client.read_exact(&mut both).await.unwrap();
        assert_eq!(&both, b"header start");
        transport.write_all(b" more").await.unwrap();
        let mut more = [0; 5];
        client.read_exact(&mut more).await.unwrap();
        assert_eq!(&more, b" more");
    }

    #[tokio::test]
    async fn pieces_arrive_in_order_behind_what_is_held_back() {
        let (mut transport, mut client) = pair().await;
        transport.write_all(b"header ").await.unwrap();
        let pieces: Vec<Vec<u8>> = (0..20_u8).map(|index| vec![b'a' + index; 3000]).collect();
        let mut expected = b"header ".to_vec();
        expected.extend(pieces.iter().flatten());
        let reader = tokio::spawn(async move {
            let mut all = Vec::new();
            client.read_to_end(&mut all).await.unwrap();
            all
        });
        let all = pieces.concat();
        let mut taken = 0;
        while taken < all.len() {
            let slices: Vec<IoSlice<'_>> = all[taken..].chunks(3000).map(IoSlice::new).collect();
            taken += transport.write_vectored(&slices).await.unwrap();
        }
        transport.flush().await.unwrap();
        drop(transport);
        assert!(reader.await.unwrap() == expected);
    }

    #[tokio::test]
    async fn writes_of_every_size_arrive_in_order() {
        let (mut transport, mut client) = pair().await;
        let sizes = [1, 100, HEADER_MAX - 101, 1, HEADER_MAX, HEADER_MAX + 1, 3 * HEADER_MAX + 7, 5, 1 << 20, 10];
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
            if index % 3 == 2 {
                transport.flush().await.unwrap();
            }
        }
        AsyncWriteExt::shutdown(&mut transport).await.unwrap();
        drop(transport);
        assert!(reader.await.unwrap() == expected);
    }
}
