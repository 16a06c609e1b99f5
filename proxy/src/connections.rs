//! Connections to upstreams for what filters send out, and for attempts in our own hands, kept per worker: a connection's events arrive
//! where it is used.

use std::cell::RefCell;
use std::sync::Arc;

use futures::FutureExt;
use pingora::connectors::ConnectorOptions;
use pingora::connectors::http::Connector;
use pingora::http::ResponseHeader;
use pingora::protocols::UniqueIDType;
use pingora::protocols::http::client::HttpSession;
use pingora::upstreams::peer::{HttpPeer, Peer};
use selvedge_config::UpstreamPool;

use crate::upstream::wear::{self, KEPT_MAX, Keeping, Kept};

/// What an HTTP/2 stream may have received without it being read. Enough for 5 MiB/s over 100 ms.
const STREAM_WINDOW: u32 = 512 << 10;

/// The same of a connection: what all its streams (see `Upstream::peer`) may have, so that one that is not read for a while, because the
/// filter does not take what comes, cannot hold up the others. Pingora's default is one stream's window for the whole connection.
const CONNECTION_WINDOW: u32 = 100 * STREAM_WINDOW;

thread_local! {
    static CONNECTOR: RefCell<Option<Arc<Connector>>> = const { RefCell::new(None) };
    static KEEPING: Arc<Keeping> = Arc::default();
}

fn connector() -> Arc<Connector> {
    CONNECTOR.with_borrow_mut(|connector| {
        Arc::clone(connector.get_or_insert_with(|| Arc::new(Connector::new(Some(ConnectorOptions::new(KEPT_MAX))))))
    })
}

/// One session with an endpoint: a whole connection of HTTP/1, one stream of HTTP/2. Dropped in the midst of an exchange, it closes the
/// connection, or resets the stream and keeps the connection for others.
pub(crate) struct Lease {
    connector: Arc<Connector>,
    peer: HttpPeer,
    /// There until it is given back.
    session: Option<HttpSession>,
    /// It was open already.
    reused: bool,
    /// Nothing more is to be sent on a connection of HTTP/1 after this.
    last: bool,
    /// Set where it matters how many connections are kept.
    _kept: Option<Kept>,
}

impl Lease {
    /// A session with this peer, on a connection that is open already if there is one.
    pub(crate) async fn take(mut peer: HttpPeer) -> pingora::Result<Self> {
        peer.options.h2_stream_window_size = Some(STREAM_WINDOW);
        peer.options.h2_connection_window_size = Some(CONNECTION_WINDOW);
        let connector = connector();
        let (session, reused) = connector.get_http_session(&peer).await?;
        Ok(Self { connector, peer, session: Some(session), reused, last: false, _kept: None })
    }

    /// Has it keep the rules of its upstream, if there are any. Called once, before anything is sent.
    pub(crate) fn within(&mut self, rule: Option<UpstreamPool>) {
        let Some(rule) = rule else { return };
        let id = self.id();
        let Some(session) = &self.session else { return };
        let last = wear::carries(&rule, id, session.digest());
        if let HttpSession::H2(session) = session {
            // Where none is to be kept, the time it is kept for is zero: until then others may share it.
            if last {
                session.conn.mark_shutdown();
            }
            return;
        }
        self.last = last;
        if let Some(most) = rule.idle.filter(|_| !last) {
            self._kept = KEEPING.with(|keeping| keeping.one(self.peer.reuse_hash(), most));
            self.last = self._kept.is_none();
        }
    }

    /// Whether nothing more is to be sent on its connection, which is one of HTTP/1.
    pub(crate) fn is_last(&self) -> bool {
        self.last
    }

    /// Whether the connection was open already.
    pub(crate) fn is_reused(&self) -> bool {
        self.reused
    }

    /// The connection's number.
    pub(crate) fn id(&self) -> UniqueIDType {
        match &self.session {
            Some(HttpSession::H1(session)) => session.stream().id(),
            Some(HttpSession::H2(session)) => session.fd(),
            Some(HttpSession::Custom(())) | None => -1,
        }
    }

    /// The response's header, once it was read.
    pub(crate) fn header(&self) -> Option<&ResponseHeader> {
        self.session.as_ref()?.response_header()
    }

    /// The peer it was made for.
    pub(crate) fn peer(&self) -> &HttpPeer {
        &self.peer
    }

    /// The session.
    pub(crate) fn session(&mut self) -> &mut HttpSession {
        self.session.as_mut().expect("given back by value only")
    }

    /// After a whole exchange: the connection may serve another.
    pub(crate) async fn give_back(mut self) {
        if let Some(session) = self.session.take().filter(|_| !self.last) {
            self.connector.release_http_session(session, &self.peer, self.peer.options.idle_timeout).await;
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // While the worker shuts down there is no runtime any more that could look after the connection.
        if matches!(self.session, Some(HttpSession::H2(_)))
            && tokio::runtime::Handle::try_current().is_ok()
            && let Some(session) = self.session.take()
        {
            // For HTTP/2 this never waits: it ends the stream, and counts it as free.
            let idle = self.peer.options.idle_timeout;
            let released = self.connector.release_http_session(session, &self.peer, idle).now_or_never();
            debug_assert!(released.is_some(), "an HTTP/2 stream is released at once");
        }
    }
}
