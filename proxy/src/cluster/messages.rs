//! What nodes tell each other besides requests for responses: a `POST` to a path that has a handler, answered with a status and a body.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use http::{Method, StatusCode, Uri, header};
use parking_lot::RwLock;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::client::HttpSession;
use pingora::proxy::Session;
use pingora::{ErrorType, OrErr, Result};
use tracing::debug;

use super::counts::Served;
use super::{Cluster, Way, wire};
use crate::connections::Lease;
use crate::request::respond;
use crate::transport::Told;
use crate::upstream::Endpoint;

/// The longest message, and the longest answer to one, in bytes.
pub(crate) const LONGEST: usize = 1 << 20;

/// How long a message may take to arrive, and a handler to answer it.
const PATIENCE: Duration = Duration::from_secs(10);

/// A message of another node.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    /// What the node calls itself. Where `peers` are listed by name, its certificate says so too.
    pub(crate) from: String,
    pub(crate) body: Bytes,
}

/// The answer to a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

/// Answers messages. Runs on a worker: it must not block.
pub(crate) type Handler = Arc<dyn Fn(Message) -> BoxFuture<'static, Reply> + Send + Sync>;

/// Who answers messages, by their path.
#[derive(Default)]
pub(crate) struct Handlers(RwLock<HashMap<&'static str, Handler>>);

impl Handlers {
    /// From now on messages to this path are answered so.
    pub(crate) fn register(&self, path: &'static str, handler: Handler) {
        self.0.write().insert(path, handler);
    }

    fn find(&self, path: &str) -> Option<Handler> {
        self.0.read().get(path).cloned()
    }
}

/// Another node, as messages are sent to it.
#[derive(Clone)]
pub(crate) struct Peer {
    /// What it is called: its name, or its address where only that is known.
    pub(crate) name: String,
    endpoint: Arc<Endpoint>,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Why a message was not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MessageError {
    /// The node cannot be reached, or broke off.
    #[error("node {node} does not answer")]
    Exchange {
        /// Which one.
        node: String,
        /// Why.
        #[source]
        source: Box<pingora::Error>,
    },
    /// It took too long.
    #[error("node {0} takes too long to answer")]
    Late(String),
}

impl Cluster {
    /// The other nodes of the circle this one is in.
    pub(crate) fn others(&self) -> Vec<Peer> {
        self.nodes_of(Way::Peers)
    }

    /// The nodes that are asked in place of the origin.
    pub(crate) fn region(&self) -> Vec<Peer> {
        self.nodes_of(Way::Region)
    }

    fn nodes_of(&self, way: Way) -> Vec<Peer> {
        let Some(circle) = self.circle(way) else { return Vec::new() };
        let others = circle.upstream.each().into_iter().filter(|endpoint| !circle.is_own(endpoint, &self.name));
        others.map(|endpoint| Peer { name: circle.label(&endpoint), endpoint }).collect()
    }

    /// Sends a message and waits for the answer, at most `patience`. Whether the node is well does not matter: it is tried. Needs a tokio
    /// runtime, and keeps its connections on the thread that calls.
    ///
    /// # Errors
    /// See [`MessageError`]. A handler's own failure is a status.
    pub(crate) async fn post(
        &self,
        to: &Peer,
        path: &'static str,
        body: Bytes,
        patience: Duration,
    ) -> std::result::Result<Reply, MessageError> {
        match tokio::time::timeout(patience, self.exchange(to, path, body)).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(source)) => Err(MessageError::Exchange { node: to.name.clone(), source }),
            Err(_) => Err(MessageError::Late(to.name.clone())),
        }
    }

    async fn exchange(&self, to: &Peer, path: &'static str, body: Bytes) -> Result<Reply> {
        let mut request = RequestHeader::build(Method::POST, path.as_bytes(), Some(3))?;
        let uri = Uri::builder().scheme("https").authority(AUTHORITY).path_and_query(path).build();
        request.set_uri(uri.or_err(ErrorType::InternalError, "the path of a message")?);
        request.insert_header(wire::FROM, &*self.name)?;
        request.insert_header(header::CONTENT_LENGTH, body.len().to_string())?;

        let mut lease = Lease::take(to.endpoint.peer()).await?;
        let HttpSession::H2(session) = lease.session() else {
            return pingora::Error::e_explain(ErrorType::InvalidH2, "the node does not speak HTTP/2");
        };
        session.write_request_header(Box::new(request), body.is_empty())?;
        if !body.is_empty() {
            session.write_request_body(body, true).await?;
        }
        session.read_response_header().await?;
        let status = session.response_header().map_or(StatusCode::BAD_GATEWAY, |header| header.status);
        let mut whole = BytesMut::new();
        while let Some(chunk) = session.read_response_body().await? {
            if whole.len() + chunk.len() > LONGEST {
                return pingora::Error::e_explain(ErrorType::InternalError, "the answer to a message is too long");
            }
            whole.extend_from_slice(&chunk);
        }
        lease.give_back().await;
        Ok(Reply { status, body: whole.freeze() })
    }
}

/// Whom messages are for: any node.
const AUTHORITY: &str = "node.selvedge.internal";

/// Reads a message, and answers it.
///
/// # Errors
/// The connection failed.
pub(super) async fn receive(session: &mut Session, cluster: &Cluster) -> Result<()> {
    let request = session.req_header();
    let handler = cluster.handlers.find(request.uri.path()).filter(|_| request.method == Method::POST);
    let from = request.headers.get(wire::FROM).and_then(|from| from.to_str().ok()).map(str::to_owned);
    let (Some(handler), Some(from)) = (handler, from) else {
        return respond::text(session, 404, "no such message\n").await;
    };
    if cluster.named && !is_of(session, &from) {
        cluster.counts.served(Served::WrongName);
        debug!(%from, "a message comes with the certificate of another node");
        return respond::text(session, 403, "the certificate is another node's\n").await;
    }
    let body = match tokio::time::timeout(PATIENCE, whole_body(session)).await {
        Ok(body) => body?,
        Err(_) => return respond::text(session, 408, "the message takes too long\n").await,
    };
    let Some(body) = body else { return respond::text(session, 413, "the message is too long\n").await };
    let reply = tokio::time::timeout(PATIENCE, handler(Message { from, body })).await;
    let Ok(Reply { status, body }) = reply else {
        return respond::text(session, 504, "nobody answers the message\n").await;
    };
    let mut header = ResponseHeader::build(status, Some(1))?;
    header.set_content_length(body.len())?;
    respond::whole(&mut session.downstream_session, Box::new(header), body).await
}

/// Whether what this connection was opened with is a certificate for `name`.
fn is_of(session: &Session, name: &str) -> bool {
    let shown = session.digest().and_then(Told::client).and_then(|handshake| handshake.certificate.as_ref());
    shown.is_some_and(|certificate| certificate.is_for(name))
}

/// `None` = it is too long.
async fn whole_body(session: &mut Session) -> Result<Option<Bytes>> {
    let mut whole = BytesMut::new();
    while let Some(chunk) = session.downstream_session.read_request_body().await? {
        if whole.len() + chunk.len() > LONGEST {
            return Ok(None);
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(Some(whole.freeze()))
}
