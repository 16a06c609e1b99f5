//! One attempt at an upstream, in our own hands. Pingora knows neither a time limit that ends one stream of an HTTP/2 connection nor a
//! second endpoint that is asked while the first is silent; where an upstream wants one of these, its peers are marked ([`mark`]), and
//! Pingora then takes their sessions from here: it does not notice what is under them.
//!
//! ```text
//! Pingora ── Attempt ──┬── a connection of HTTP/1, or a stream of HTTP/2, to the endpoint that was chosen
//!                      └── the same to another one, if the first is silent for too long (`race`)
//! ```
//!
//! What an attempt may do it is told when there is a connection, by its [`Order`]; what came of it stands there, too.

mod order;

mod race;

mod silence;

mod wire;

use std::any::Any;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use h2::SendStream;
use http::{HeaderMap, Method, StatusCode, header};
use pingora::apps::HttpServerOptions;
use pingora::connectors::http::custom::{Connection, Connector};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::client::HttpSession;
use pingora::protocols::http::custom::client::Session;
use pingora::protocols::http::custom::{BodyWrite, CustomMessageWrite};
use pingora::protocols::http::v2::client::Http2Session;
use pingora::protocols::http::v2::write_body;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::CustomALPN;
use pingora::protocols::{ALPN, Digest, UniqueIDType};
use pingora::proxy::{HttpProxy, ProcessCustomSession, ProxyServiceBuilder};
use pingora::server::configuration::ServerConf;
use pingora::services::listening::Service;
use pingora::upstreams::peer::{HttpPeer, Peer};
use pingora::{Error, ErrorType, OrErr, Result};
use tokio::time::{Instant, timeout_at};

pub(crate) use self::order::{Order, Terms};
use self::silence::Upload;
pub(crate) use self::wire::clean;
use crate::connections::Lease;
use crate::request::Edge;
use crate::request::deadline::{FIRST_BYTE, TOTAL};

/// What stands for the protocol of a marked peer. No endpoint is ever told these names.
const H1: &[u8] = b"selvedge-attempt-h1";
const H2: &[u8] = b"selvedge-attempt-h2";

/// Keeps Pingora from taking a connection of its own for a marked peer.
const APART: u64 = 0x5e1f_ed6e_a77e_3275;

/// From here on the peer is for an attempt of ours.
pub(crate) fn mark(peer: &mut HttpPeer) {
    let http2 = peer.options.alpn.get_min_http_version() == 2;
    peer.options.alpn = ALPN::Custom(CustomALPN::new(if http2 { H2 } else { H1 }.to_vec()));
    peer.group_key ^= APART;
}

/// The peer as it is without the mark; `None` = it has none.
fn unmarked(peer: &HttpPeer) -> Option<HttpPeer> {
    let ALPN::Custom(name) = &peer.options.alpn else { return None };
    let protocol = match name.protocol() {
        H1 => ALPN::H1,
        H2 => ALPN::H2,
        _ => return None,
    };
    let mut peer = peer.clone();
    peer.options.alpn = protocol;
    peer.group_key ^= APART;
    Some(peer)
}

/// Where Pingora gets attempts. The connections under them are the worker's own, see [`crate::connections`].
pub(crate) struct Attempts;

#[async_trait]
impl Connector for Attempts {
    type Session = Attempt;

    async fn get_http_session<P: Peer + Send + Sync + 'static>(&self, peer: &P) -> Result<(Connection<Attempt>, bool)> {
        let marked = (peer as &dyn Any).downcast_ref().and_then(unmarked);
        let peer = marked.ok_or_else(|| Error::explain(ErrorType::InternalError, "no peer of ours"))?;
        let lease = Lease::take(peer).await?;
        let reused = lease.is_reused();
        Ok((Connection::Session(Attempt::new(lease)), reused))
    }

    /// Those that are open already are found in `get_http_session`.
    async fn reused_http_session<P: Peer + Send + Sync + 'static>(&self, _peer: &P) -> Option<Attempt> {
        None
    }

    async fn release_http_session<P: Peer + Send + Sync + 'static>(
        &self,
        attempt: Attempt,
        _peer: &P,
        _idle_timeout: Option<Duration>,
    ) {
        attempt.end().await;
    }
}

/// Pingora's proxy, which gets the sessions of marked peers from here.
pub(crate) fn proxy(
    conf: &Arc<ServerConf>,
    edge: Edge,
    options: Option<HttpServerOptions>,
) -> HttpProxy<Edge, Attempts> {
    // Clients offer no protocol by the names above, so that nobody comes who speaks it.
    let nobody: ProcessCustomSession<Edge, Attempts> = Arc::new(|_, _, _| Box::pin(async { None }));
    let builder = ProxyServiceBuilder::new(conf, edge).name("").custom(Attempts, nobody);
    out_of(match options {
        Some(options) => builder.server_options(options).build(),
        None => builder.build(),
    })
}

/// The proxy in a service. Pingora makes one with a connector only inside of a service, which binds addresses by itself; ours are bound by
/// the node, and live with its workers.
#[expect(unsafe_code, reason = "a service lends its application and never gives it away")]
fn out_of(service: Service<HttpProxy<Edge, Attempts>>) -> HttpProxy<Edge, Attempts> {
    let service = ManuallyDrop::new(service);
    let proxy = service.app_logic().expect("a service that was just built has its application");
    // SAFETY: `proxy` is valid for reads, and what is read has one owner: the service is not used again and never dropped. What else it
    // owns, an empty name and an empty list of addresses, holds no memory.
    unsafe { std::ptr::read(proxy) }
}

/// See the [module](self).
pub(crate) struct Attempt {
    /// There, but while two endpoints are asked.
    lease: Option<Lease>,
    /// The connection's own, and where our [`Order`] is.
    digest: Digest,
    order: Arc<Order>,
    /// What a second endpoint is asked, where one may be.
    request: Option<Box<RequestHeader>>,
    /// The request is out as a whole.
    said: bool,
    /// The response has come as a whole.
    heard: bool,
    /// Set where a body follows the request's header: how far that is.
    upload: Option<Arc<Upload>>,
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
}

impl Attempt {
    fn new(mut lease: Lease) -> Self {
        let order = Arc::new(Order::default());
        let mut digest = lease.session().digest().cloned().unwrap_or_default();
        // The one part of a digest that takes data from outside.
        if let Ok(header) = ResponseHeader::build_no_case(200, Some(0)) {
            digest.proxy_digest =
                Some(Arc::new(ProxyDigest::new(Box::new(header), Some(Box::new(Arc::clone(&order))))));
        }
        Self {
            lease: Some(lease),
            digest,
            order,
            request: None,
            said: false,
            heard: false,
            upload: None,
            read_timeout: None,
            write_timeout: None,
        }
    }

    fn session(&mut self) -> Result<&mut HttpSession> {
        self.lease.as_mut().map(Lease::session).ok_or_else(|| Error::explain(ErrorType::InternalError, "no connection"))
    }

    /// The connection may be used again after a whole exchange; otherwise it is closed, or the stream is reset.
    async fn end(mut self) {
        if let Some(lease) = self.lease.take().filter(|_| self.said && self.heard) {
            lease.give_back().await;
        }
    }

    /// Waits for the response's header, asking another endpoint if it does not begin in time.
    async fn begin(&mut self) -> Result<()> {
        let Some((hedge, request)) = self.order.take_hedge().zip(self.request.take()) else {
            let (upload, read) = (self.upload.clone(), self.read_timeout);
            return silence::bounded(upload.as_deref(), read, self.session()?.read_response_header()).await;
        };
        let mut lease = self.lease.take().ok_or_else(|| Error::explain(ErrorType::InternalError, "no connection"))?;
        let (heard, second) = race::run(&mut lease, &request, hedge).await;
        self.lease = Some(match second {
            None => lease,
            Some((second, place)) => {
                self.order.won(place);
                second
            }
        });
        heard
    }

    /// What the end of a silence means to the others on the connection: it may be the connection that has died.
    fn look_at(&mut self, error: &Error) {
        if *error.etype() == ErrorType::ReadTimedout
            && self.upload.as_ref().is_none_or(|upload| upload.is_whole())
            && let Some(HttpSession::H2(session)) = self.lease.as_mut().map(Lease::session)
        {
            session.conn.mark_shutdown();
        }
    }
}

/// A time by which something has to be over, and the term that says so.
type Limit = Option<(Instant, &'static str)>;

/// Does it in time; the outer error says that it is too late. What is always ready at once is late, too.
async fn by<T>(order: &Order, limit: Limit, what: impl Future<Output = Result<T>>) -> Result<Result<T>> {
    let Some((limit, term)) = limit else { return Ok(what.await) };
    let late = || {
        order.pass(term);
        Error::explain(ErrorType::ReadTimedout, term)
    };
    if Instant::now() >= limit {
        return Err(late());
    }
    timeout_at(limit, what).await.map_err(|_| late())
}

#[async_trait]
impl Session for Attempt {
    async fn write_request_header(&mut self, request: Box<RequestHeader>, end: bool) -> Result<()> {
        let (read, write) = (self.read_timeout, self.write_timeout);
        let (hedged, rule) = (self.order.has_hedge(), self.order.terms().pool);
        let Some(lease) = &mut self.lease else { return self.session().map(drop) };
        lease.within(rule);
        let mut request = wire::form(request, lease.peer())?;
        if lease.is_last() {
            request.insert_header(header::CONNECTION, "close")?;
        }
        if hedged && end {
            self.request = Some(request.clone());
        }
        let session = lease.session();
        // While a body is sent, it is ours to say what silence is.
        session.set_read_timeout(read.filter(|_| end));
        session.set_write_timeout(write);
        self.upload = (!end).then(Arc::default);
        wire::send(session, request, end).await?;
        self.said = end;
        Ok(())
    }

    async fn write_request_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.said |= end;
        self.session()?.write_request_body(data, end).await?;
        if let Some(upload) = &self.upload {
            upload.went_on(end);
        }
        Ok(())
    }

    async fn finish_request_body(&mut self) -> Result<()> {
        self.said = true;
        if let Some(upload) = &self.upload {
            upload.went_on(true);
        }
        self.session()?.finish_request_body().await
    }

    fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.read_timeout = timeout;
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.write_timeout = timeout;
    }

    async fn read_response_header(&mut self) -> Result<()> {
        let Terms { first_byte, total, .. } = self.order.terms();
        let limits = [first_byte.map(|limit| (limit, FIRST_BYTE)), total.map(|limit| (limit, TOTAL))];
        let limit = limits.into_iter().flatten().min_by_key(|(limit, _)| *limit);
        let order = Arc::clone(&self.order);
        let read = by(&order, limit, self.begin()).await?;
        read.inspect_err(|error| self.look_at(error))
    }

    async fn read_response_body(&mut self) -> Result<Option<Bytes>> {
        let (order, upload, read) = (Arc::clone(&self.order), self.upload.clone(), self.read_timeout);
        let total = order.terms().total.map(|limit| (limit, TOTAL));
        let next = silence::bounded(upload.as_deref(), read, self.session()?.read_response_body());
        let next = by(&order, total, next).await?;
        next.inspect_err(|error| self.look_at(error))
    }

    fn response_finished(&self) -> bool {
        self.heard
    }

    async fn shutdown(&mut self, _code: u32, _why: &str) {
        if let Ok(session) = self.session() {
            session.shutdown().await;
        }
    }

    fn response_header(&self) -> Option<&ResponseHeader> {
        self.lease.as_ref()?.header()
    }

    /// Upgrades go the usual way.
    fn was_upgraded(&self) -> bool {
        false
    }

    fn digest(&self) -> Option<&Digest> {
        Some(&self.digest)
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        Some(&mut self.digest)
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.digest.socket_digest.as_ref()?.peer_addr()
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.digest.socket_digest.as_ref()?.local_addr()
    }

    async fn read_trailers(&mut self) -> Result<Option<HeaderMap>> {
        let (order, upload, read) = (Arc::clone(&self.order), self.upload.clone(), self.read_timeout);
        let total = order.terms().total.map(|limit| (limit, TOTAL));
        let trailers = match self.session()? {
            HttpSession::H2(session) => {
                by(&order, total, silence::bounded(upload.as_deref(), read, session.read_trailers())).await??
            }
            _ => None, // Pingora reads none of HTTP/1.
        };
        self.heard = true;
        Ok(trailers)
    }

    fn fd(&self) -> UniqueIDType {
        self.lease.as_ref().map_or(-1, Lease::id)
    }

    async fn check_response_end_or_error(&mut self, header: bool) -> Result<bool> {
        let ended = match self.session()? {
            HttpSession::H2(session) => {
                let ended = session.check_response_end_or_error()?;
                if header && ended && lacks_body(session) {
                    return Error::e_explain(ErrorType::H2Error, "a body is announced, and the stream has ended");
                }
                ended
            }
            session => session.response_done(),
        };
        self.heard |= ended;
        Ok(ended)
    }

    /// The attempt is whole when both are: its writer takes the stream's sending side along.
    fn take_request_body_writer(&mut self) -> Option<Box<dyn BodyWrite>> {
        let timeout = self.write_timeout;
        let stream = match self.session().ok()? {
            HttpSession::H2(session) => session.take_request_body_writer(),
            _ => None,
        };
        let ended = self.said;
        self.said = true; // What is not written resets the stream when the writer is dropped.
        Some(Box::new(Writer { stream, timeout, ended, finished: false, upload: self.upload.clone() }))
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(
        &mut self,
    ) -> Option<Box<dyn Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>> {
        Some(Box::new(futures::stream::empty()))
    }

    async fn drain_custom_messages(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        Some(Box::new(()))
    }
}

/// Whether a response that ends with its header announces a body it should have (RFC 9113, 8.1.1). The h2 crate does not look at that.
fn lacks_body(session: &Http2Session) -> bool {
    let (Some(request), Some(response)) = (session.request_header(), session.response_header()) else { return false };
    let announced = response.headers.get(header::CONTENT_LENGTH);
    request.method != Method::HEAD
        && !matches!(response.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        && announced.is_some_and(|length| length.as_bytes().iter().any(|byte| *byte != b'0'))
}

/// What a request's body is written with.
struct Writer {
    /// `None` towards HTTP/1: only requests without a body are sent there in our own hands.
    stream: Option<SendStream<Bytes>>,
    timeout: Option<Duration>,
    ended: bool,
    /// Pingora has said that it ends.
    finished: bool,
    upload: Option<Arc<Upload>>,
}

impl Writer {
    fn went_on(&self, end: bool) {
        if let Some(upload) = &self.upload {
            upload.went_on(end);
        }
    }
}

#[async_trait]
impl BodyWrite for Writer {
    async fn write_all_buf(&mut self, data: &mut Bytes) -> Result<()> {
        let data = std::mem::take(data);
        match &mut self.stream {
            Some(stream) if !self.ended => {
                write_body(stream, data, false, self.timeout).await?;
                self.went_on(false);
                Ok(())
            }
            // The header has said already that there is no body.
            _ if data.is_empty() => Ok(()),
            _ => Error::e_explain(ErrorType::WriteError, "a body for a request that was sent without one"),
        }
    }

    async fn finish(&mut self) -> Result<()> {
        // Pingora does not take the end of a body that trailers follow over HTTP/2 for the end, and asks again and again until this fails.
        if std::mem::replace(&mut self.finished, true) {
            return Error::e_explain(ErrorType::WriteError, "the request's body has ended already");
        }
        self.went_on(true);
        if !std::mem::replace(&mut self.ended, true)
            && let Some(stream) = &mut self.stream
        {
            stream.send_data(Bytes::new(), true).or_err(ErrorType::WriteError, "the end of a request's body")?;
        }
        Ok(())
    }

    async fn cleanup(&mut self) -> Result<()> {
        Ok(())
    }

    fn upgrade_body_writer(&mut self) {}
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.ended
            && let Some(stream) = &mut self.stream
        {
            stream.send_reset(h2::Reason::CANCEL);
        }
    }
}
