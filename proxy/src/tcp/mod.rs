//! TCP listeners: connections that are forwarded as they are, whatever is spoken on them, through a chain of filters.
//!
//! ```text
//!            what the client sends ->   stage 0   stage 1   stage 2   -> upstream
//!   client   <- what the upstream sends   stage 0   stage 1   stage 2   <-
//! ```
//!
//! A connection is served in these steps: the TLS handshake, where the listener has one; [`Chain::open`], which asks the filters whether
//! they take it; [`connect`], once all of them do; then both directions at once (`session.rs`) until both have ended; at last the
//! filters are told, and one access-log line is written. Without filters the chain is empty, and nothing else is different.

mod session;

mod chain;
mod exchange;
mod stage;

mod connect;

mod outbox;

mod entry;

use std::sync::Arc;

use pingora::server::ShutdownWatch;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_rustls::LazyConfigAcceptor;
use tracing::debug;

use self::chain::Chain;
use self::entry::{Ended, Entry};
use self::exchange::{Facts, Tls};
use crate::listener::arrival::{Arrivals, Ends};
use crate::listener::stream::{Accepting, ClientStream};
use crate::listener::{self, ListenerFacts};
use crate::listening::Bound;
use crate::node::Current;
use crate::telemetry::AccessLogSink;
use crate::tls::{self, End, ListenerTls};

/// A connection to either side.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Which way bytes travel, named as the ABI names them: by where they come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// From the client to the upstream, first filter first.
    Downstream,
    /// From the upstream to the client, last filter first.
    Upstream,
}

/// What serves the connections of one listener on one worker.
pub(crate) struct TcpDoor {
    current: Arc<Current>,
    facts: Arc<ListenerFacts>,
    worker: usize,
    access_log: AccessLogSink,
    /// Set where clients speak TLS.
    tls: Option<ListenerTls>,
}

impl TcpDoor {
    pub(crate) fn new(current: &Arc<Current>, listener: &Bound, worker: usize, access_log: AccessLogSink) -> Arc<Self> {
        Arc::new(Self {
            current: Arc::clone(current),
            facts: Arc::clone(&listener.facts),
            worker,
            access_log,
            tls: listener.tls.clone(),
        })
    }
}

/// Accepts until told to stop. Every connection is served on this thread and holds a clone of `alive` to its end.
pub(crate) async fn accept(
    socket: Accepting,
    door: Arc<TcpDoor>,
    shutdown: ShutdownWatch,
    alive: mpsc::Sender<()>,
    arrivals: Arrivals,
) {
    let serve = move |stream, ends| serve(Arc::clone(&door), stream, ends);
    listener::accept_each(socket, arrivals, shutdown, alive, serve).await;
}

/// Serves one connection to its end.
async fn serve(door: Arc<TcpDoor>, stream: ClientStream, ends: Ends) {
    let client = ends.client;
    let plan = door.current.plan();
    let Some(route) = plan.tcp_route(&door.facts.name) else { return }; // a reload keeps the kinds of listeners
    let mut entry = Entry::new(door.access_log.clone(), Arc::clone(&route), client);
    let mut facts = Facts::new(Arc::clone(&route), client, ends.local.or_else(|| stream.local()));
    if let Some(geo) = plan.geo.as_ref().filter(|_| !route.filters.is_empty()) {
        facts.location = client.and_then(|client| geo.lookup(client.ip()));
    }
    let handshakes = Arc::clone(&plan.counters.handshakes);
    drop(plan);

    let stream: Box<dyn Io> = match &door.tls {
        None => Box::new(stream),
        Some(tls) => {
            let handshake = async {
                let mut start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream).await?;
                let name = start.client_hello().server_name().map(str::to_owned);
                tls::greet_any(&mut start.io, &tls.certificates, name.as_deref()).await?;
                start.into_stream(Arc::clone(&tls.config)).await
            };
            match tokio::time::timeout(door.facts.header_timeout, handshake).await {
                Ok(Ok(stream)) => {
                    let (_, connection) = stream.get_ref();
                    facts.tls = Some(Tls::of(connection));
                    handshakes.ended(End::Done);
                    Box::new(stream)
                }
                Ok(Err(error)) => {
                    handshakes.ended(End::Failed);
                    debug!(?client, %error, "TLS handshake failed");
                    return entry.ended = Ended::NoHandshake;
                }
                Err(_) => {
                    handshakes.ended(End::Timeout);
                    debug!(?client, "TLS handshake took too long");
                    return entry.ended = Ended::NoHandshake;
                }
            }
        }
    };

    let chain = Chain::new(&route.filters, facts, door.worker);
    Box::pin(session::run(stream, chain, &route, door.facts.idle_timeout, &mut entry)).await;
}
