//! Where Prometheus asks: a small HTTP/1.1 server of its own, on a thread of its own, so that neither waits for the other's requests.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Semaphore, watch};
use tracing::{debug, warn};

/// Connections at once; more wait. Monitoring has one or two.
const CONNECTIONS_MAX: usize = 16;
/// Bytes and fields of a request's header.
const HEADER_BYTES_MAX: usize = 16 * 1024;
const HEADER_FIELDS_MAX: usize = 64;
/// How long a client may take over a request's header, and so how long it may stay idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may last: one that neither asks nor goes does not keep its place.
const CONNECTION_MAX: Duration = Duration::from_secs(600);

/// Makes the page.
type Page = Arc<dyn Fn() -> String + Send + Sync>;

/// The running server; dropped, it ends.
pub(crate) struct MetricsServer {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl MetricsServer {
    /// Binds and serves.
    pub(crate) fn start(bind: SocketAddr, page: Page) -> io::Result<Self> {
        let socket = TcpListener::bind(bind)?;
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = watch::channel(false);
        let thread = std::thread::Builder::new().name("metrics".into());
        let thread = thread.spawn(move || runtime.block_on(serve(socket, page, stopped)))?;
        Ok(Self { address, stop, thread: Some(thread) })
    }

    /// With a real port in place of 0.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            warn!("the metrics endpoint panicked");
        }
    }
}

/// Accepts until told to stop; then every connection ends with the runtime.
async fn serve(socket: TcpListener, page: Page, mut stopped: watch::Receiver<bool>) {
    let socket = match tokio::net::TcpListener::from_std(socket) {
        Ok(socket) => socket,
        Err(error) => return warn!(%error, "the metrics endpoint does not start"),
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let accepting = async {
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let stream = match socket.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, mostly: trying again at once would only heat the machine.
                    debug!(%error, "the metrics endpoint cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let page = Arc::clone(&page);
            tokio::spawn(async move {
                let _ = tokio::time::timeout(CONNECTION_MAX, converse(stream, page)).await;
                drop(place);
            });
        }
    };
    tokio::select! {
        () = accepting => {}
        _ = stopped.wait_for(|stopped| *stopped) => {}
    }
}

async fn converse(stream: tokio::net::TcpStream, page: Page) {
    let answering = service_fn(move |request| std::future::ready(answer(&request, &page)));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_headers(HEADER_FIELDS_MAX)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), answering)
        .await;
    if let Err(error) = served {
        debug!(%error, "a client of the metrics endpoint");
    }
}

fn answer<B>(request: &Request<B>, page: &Page) -> Result<Response<Full<Bytes>>, http::Error> {
    const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    let response = Response::builder();
    match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => {
            response.header(CONTENT_TYPE, TEXT).body(Full::new(Bytes::from(page())))
        }
        (_, "/metrics") => {
            response.status(StatusCode::METHOD_NOT_ALLOWED).header(ALLOW, "GET, HEAD").body(Full::default())
        }
        _ => response.status(StatusCode::NOT_FOUND).body(Full::new(Bytes::from_static(b"see /metrics\n"))),
    }
}
