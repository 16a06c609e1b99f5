//! What operators talk to: a small HTTP/1.1 server on a thread of its own, so that neither waits for the other's requests. The metrics
//! endpoint and the admin API are two of them.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use selvedge_config::Bind;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tracing::{debug, warn};

use crate::listener::stream::Accepting;
use crate::sockets::{Inherited, Socket, SocketFile};

/// Connections at once; more wait. Operators and monitoring have a few.
const CONNECTIONS_MAX: usize = 32;
/// Bytes and fields of a request's header.
const HEADER_BYTES_MAX: usize = 16 * 1024;
const HEADER_FIELDS_MAX: usize = 64;
/// How long a client may take over a request's header, and so how long it may stay idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may last: one that neither asks nor goes does not keep its place.
const CONNECTION_MAX: Duration = Duration::from_secs(600);

/// Answers requests.
pub(crate) trait Answer: Send + Sync + 'static {
    /// The answer to one request. Dropped when the client goes away.
    fn answer(&self, request: Request<Incoming>) -> impl Future<Output = Response<Full<Bytes>>> + Send;
}

/// A running server; dropped, it ends.
pub(crate) struct Server {
    /// With a real port in place of 0; `None` for Unix sockets.
    address: Option<SocketAddr>,
    socket: Socket,
    /// Removed at the end.
    socket_file: Option<Arc<SocketFile>>,
    name: &'static str,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Binds, unless the socket is handed over, and serves on a thread of this name.
    ///
    /// # Errors
    /// The address is not free or not ours, the socket file cannot be made, or the system gives no thread.
    pub(crate) fn start(
        name: &'static str,
        bind: &Bind,
        answer: Arc<impl Answer>,
        inherited: &Inherited,
    ) -> io::Result<Self> {
        let (socket, socket_file) = inherited.listen(name, bind)?;
        let address = socket.address();
        let kept = socket.try_clone()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = watch::channel(false);
        let thread = std::thread::Builder::new().name(name.into());
        let thread = thread.spawn(move || runtime.block_on(serve(name, socket, answer, stopped)))?;
        Ok(Self { address, socket: kept, socket_file, name, stop, thread: Some(thread) })
    }

    /// Another handle of its socket, and what it is for.
    pub(crate) fn socket(&self) -> io::Result<(String, Socket)> {
        Ok((self.name.to_owned(), self.socket.try_clone()?))
    }

    /// Its socket is another process's now: the file stays.
    pub(crate) fn leave_socket(&mut self) {
        if let Some(file) = &self.socket_file {
            file.leave();
        }
    }

    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            warn!(server = self.name, "panicked");
        }
    }
}

/// Accepts until told to stop; then every connection ends with the runtime.
async fn serve(name: &'static str, socket: Socket, answer: Arc<impl Answer>, mut stopped: watch::Receiver<bool>) {
    let accepting = async {
        let socket = Accepting::new(socket)?;
        accept(name, answer, async || socket.accept().await.map(|(stream, _)| stream)).await
    };
    tokio::select! {
        failed = accepting => {
            let Err::<Infallible, io::Error>(error) = failed;
            warn!(server = name, %error, "does not start");
        }
        _ = stopped.wait_for(|stopped| *stopped) => {}
    }
}

async fn accept<S>(
    name: &'static str,
    answer: Arc<impl Answer>,
    next: impl AsyncFn() -> io::Result<S>,
) -> io::Result<Infallible>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return Err(io::Error::other("the semaphore was closed"));
        };
        let stream = match next().await {
            Ok(stream) => stream,
            Err(error) => {
                // Out of file descriptors, mostly: trying again at once would only heat the machine.
                debug!(server = name, %error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let answer = Arc::clone(&answer);
        tokio::spawn(async move {
            let _ = tokio::time::timeout(CONNECTION_MAX, converse(name, stream, answer)).await;
            drop(place);
        });
    }
}

async fn converse<S>(name: &'static str, stream: S, answer: Arc<impl Answer>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let answering = service_fn(move |request| {
        let answer = Arc::clone(&answer);
        async move { Ok::<_, Infallible>(answer.answer(request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_headers(HEADER_FIELDS_MAX)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), answering)
        .await;
    if let Err(error) = served {
        debug!(server = name, %error, "a client");
    }
}
