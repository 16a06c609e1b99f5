//! A gRPC server in this process, on bare HTTP/2: what it does is in the name of the method.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A server without TLS. Its methods, under any service:
///
/// | method | behaviour |
/// |---|---|
/// | `Unary` | answers a message with `echo MESSAGE`; the request's `x-meta` comes back as `x-initial`, and there is a trailer `x-trailing` |
/// | `Denied` | trailers only: status 7, `not you, €` percent-encoded |
/// | `Late` | a message, then status 9 |
/// | `Bare` | headers, and the end: no status |
/// | `Html` | 503, as a proxy in the way would |
/// | `Refused`, `Crash` | a reset: `REFUSED_STREAM`, `INTERNAL_ERROR` |
/// | `Compressed`, `Long`, `Cut` | a message that is compressed, longer than 4 MiB, not whole |
/// | `Hang` | takes messages, and never answers |
/// | `Deaf` | reads nothing, and never answers |
/// | `Stubborn` | answers the first message with `ok`, and reads no more |
/// | `Silent` | takes the first message, answers headers, and nothing more |
/// | `Count` | answers `3` with the messages 1, 2 and 3 |
/// | `Sizes` | answers each message `N` with one of N bytes |
/// | `Flood` | messages of 64 KiB without end |
/// | `Collect` | answers all messages with one, joined by `+`, when the client has sent all |
/// | `Chat` | answers each message with `re MESSAGE`, at once, until the client has sent all |
/// | `Early` | answers the first message with status 0, without waiting for the end of the request |
pub struct GrpcServer {
    address: SocketAddr,
    seen: Arc<Seen>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    requests: Mutex<Vec<Request<()>>>,
    messages: Mutex<Vec<Bytes>>,
    connections: AtomicUsize,
    resets: AtomicUsize,
    flooded: AtomicUsize,
}

impl GrpcServer {
    /// Starts it.
    ///
    /// # Panics
    /// When no port can be had.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let seen = Arc::<Seen>::default();
        let log = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let seen = Arc::clone(&log);
                seen.connections.fetch_add(1, Ordering::SeqCst);
                connections.spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                    let mut calls = tokio::task::JoinSet::new();
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        let (head, body) = request.into_parts();
                        let request = Request::from_parts(head, ());
                        seen.requests.lock().push(request.clone());
                        let seen = Arc::clone(&seen);
                        calls.spawn(async move {
                            let mut call = Call { seen, body, buffer: BytesMut::new(), respond };
                            if call.run(&request).await.is_err() {
                                call.seen.resets.fetch_add(1, Ordering::SeqCst);
                            }
                        });
                    }
                    // What was open is to see the end of its connection.
                    while calls.join_next().await.is_some() {}
                });
            }
        });
        Self { address, seen, task }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The requests that have arrived, without their messages.
    #[must_use]
    pub fn requests(&self) -> Vec<Request<()>> {
        self.seen.requests.lock().clone()
    }

    /// The messages that have arrived, of all requests.
    #[must_use]
    pub fn messages(&self) -> Vec<String> {
        self.seen.messages.lock().iter().map(|message| String::from_utf8_lossy(message).into_owned()).collect()
    }

    /// How many exchanges the client has reset.
    #[must_use]
    pub fn resets(&self) -> usize {
        self.seen.resets.load(Ordering::SeqCst)
    }

    /// How many messages `Flood` has got rid of.
    #[must_use]
    pub fn flooded(&self) -> usize {
        self.seen.flooded.load(Ordering::SeqCst)
    }

    /// How many connections were made.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }
}

impl Drop for GrpcServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One exchange.
struct Call {
    seen: Arc<Seen>,
    body: RecvStream,
    buffer: BytesMut,
    respond: SendResponse<Bytes>,
}

impl Call {
    /// An error is a reset by the client.
    async fn run(&mut self, request: &Request<()>) -> Result<(), h2::Error> {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default();
        match method {
            "Unary" => {
                let message = self.message().await?.unwrap_or_default();
                let meta = request.headers().get("x-meta").cloned();
                let mut out = self.headers(&meta.map(|meta| ("x-initial", meta)).into_iter().collect::<Vec<_>>())?;
                send(&mut out, &[b"echo ", &message[..]].concat()).await?;
                out.send_trailers(trailers(&[("grpc-status", "0"), ("x-trailing", "yes")]))
            }
            "Denied" => {
                let message = HeaderValue::from_static("not you%2C %E2%82%AC");
                let headers = [("grpc-status", HeaderValue::from_static("7")), ("grpc-message", message)];
                self.respond.send_response(response(200, &headers), true).map(drop)
            }
            "Late" => {
                let mut out = self.headers(&[])?;
                send(&mut out, b"almost").await?;
                out.send_trailers(trailers(&[("grpc-status", "9"), ("grpc-message", "too late")]))
            }
            "Bare" => self.headers(&[])?.send_data(Bytes::new(), true),
            "Html" => {
                let page =
                    Response::builder().status(503).header("content-type", "text/html").body(()).expect("a page");
                self.respond.send_response(page, false)?.send_data(Bytes::from("<h1>no</h1>"), true)
            }
            "Refused" => {
                self.respond.send_reset(Reason::REFUSED_STREAM);
                Ok(())
            }
            "Crash" => {
                self.respond.send_reset(Reason::INTERNAL_ERROR);
                Ok(())
            }
            "Compressed" => self.raw(b"\x01\0\0\0\x01x"),
            "Long" => self.raw(b"\0\0\x50\0\0"),
            "Cut" => self.raw(b"\0\0\0\0\x09half"),
            "Hang" => {
                while self.message().await?.is_some() {}
                Err(std::future::poll_fn(|cx| self.respond.poll_reset(cx)).await?.into())
            }
            "Deaf" => Err(std::future::poll_fn(|cx| self.respond.poll_reset(cx)).await?.into()),
            "Silent" => {
                self.message().await?;
                let mut out = self.headers(&[])?;
                Err(std::future::poll_fn(|cx| out.poll_reset(cx)).await?.into())
            }
            "Stubborn" => {
                self.message().await?;
                let mut out = self.headers(&[])?;
                send(&mut out, b"ok").await?;
                Err(std::future::poll_fn(|cx| out.poll_reset(cx)).await?.into())
            }
            "Count" => {
                let wanted = self.message().await?.unwrap_or_default();
                let wanted: usize = String::from_utf8_lossy(&wanted).parse().unwrap_or(0);
                let mut out = self.headers(&[])?;
                for number in 1..=wanted {
                    send(&mut out, number.to_string().as_bytes()).await?;
                }
                out.send_trailers(trailers(&[("grpc-status", "0"), ("x-trailing", "counted")]))
            }
            "Sizes" => {
                let mut out = self.headers(&[])?;
                while let Some(message) = self.message().await? {
                    let size: usize = String::from_utf8_lossy(&message).parse().unwrap_or(0);
                    send(&mut out, &vec![b'x'; size]).await?;
                }
                out.send_trailers(trailers(&[("grpc-status", "0")]))
            }
            "Flood" => {
                let mut out = self.headers(&[])?;
                loop {
                    send(&mut out, &[b'x'; 64 << 10]).await?;
                    self.seen.flooded.fetch_add(1, Ordering::SeqCst);
                }
            }
            "Collect" => {
                let mut all = Vec::new();
                while let Some(message) = self.message().await? {
                    all.push(String::from_utf8_lossy(&message).into_owned());
                }
                let mut out = self.headers(&[])?;
                send(&mut out, all.join("+").as_bytes()).await?;
                out.send_trailers(trailers(&[("grpc-status", "0")]))
            }
            "Chat" => {
                let mut out = self.headers(&[])?;
                while let Some(message) = self.message().await? {
                    send(&mut out, &[b"re ", &message[..]].concat()).await?;
                }
                out.send_trailers(trailers(&[("grpc-status", "0")]))
            }
            "Early" => {
                self.message().await?;
                self.headers(&[])?.send_trailers(trailers(&[("grpc-status", "0")]))?;
                while self.message().await?.is_some() {}
                Ok(())
            }
            _ => {
                let headers = [("grpc-status", HeaderValue::from_static("12"))];
                self.respond.send_response(response(200, &headers), true).map(drop)
            }
        }
    }

    fn headers(&mut self, more: &[(&'static str, HeaderValue)]) -> Result<SendStream<Bytes>, h2::Error> {
        self.respond.send_response(response(200, more), false)
    }

    fn raw(&mut self, body: &'static [u8]) -> Result<(), h2::Error> {
        let mut out = self.headers(&[])?;
        out.send_data(Bytes::from_static(body), false)?;
        out.send_trailers(trailers(&[("grpc-status", "0")]))
    }

    /// The next message of the client.
    async fn message(&mut self) -> Result<Option<Bytes>, h2::Error> {
        loop {
            if let Some((&[_, a, b, c, d], _)) = self.buffer.split_first_chunk::<5>() {
                let len = u32::from_be_bytes([a, b, c, d]) as usize;
                if self.buffer.len() >= 5 + len {
                    self.buffer.advance(5);
                    let message = self.buffer.split_to(len).freeze();
                    self.seen.messages.lock().push(message.clone());
                    return Ok(Some(message));
                }
            }
            let Some(data) = self.body.data().await else { return Ok(None) };
            let data = data?;
            self.body.flow_control().release_capacity(data.len())?;
            self.buffer.extend_from_slice(&data);
        }
    }
}

async fn send(out: &mut SendStream<Bytes>, message: &[u8]) -> Result<(), h2::Error> {
    let mut framed = BytesMut::with_capacity(5 + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).expect("a short message"));
    framed.put_slice(message);
    let mut rest = framed.freeze();
    while !rest.is_empty() {
        out.reserve_capacity(rest.len());
        let Some(room) = std::future::poll_fn(|cx| out.poll_capacity(cx)).await else {
            return Err(std::future::poll_fn(|cx| out.poll_reset(cx)).await?.into());
        };
        let room = room?;
        out.send_data(rest.split_to(room.min(rest.len())), false)?;
    }
    Ok(())
}

fn response(status: u16, more: &[(&'static str, HeaderValue)]) -> Response<()> {
    let mut response = Response::builder().status(status).header("content-type", "application/grpc");
    for (name, value) in more {
        response = response.header(*name, value.clone());
    }
    response.body(()).expect("a response")
}

fn trailers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}
