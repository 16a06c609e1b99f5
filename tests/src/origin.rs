//! Origins in this process: one that answers through a function, one that speaks raw bytes.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// What the origin received.
#[derive(Debug, Clone)]
pub struct Request {
    /// The method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Fields in order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The whole body.
    pub body: Bytes,
    /// Trailers after the body.
    pub trailers: Vec<(String, String)>,
}

impl Request {
    /// The first value of a field.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// A response of the origin.
pub type Served = http::Response<BoxBody<Bytes, Infallible>>;

/// An HTTP origin (HTTP/1.1, and HTTP/2 by prior knowledge) that answers through a function and remembers what it received. Stops when
/// dropped.
pub struct Origin {
    address: SocketAddr,
    received: Arc<Mutex<Vec<Request>>>,
    started: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Origin {
    /// Starts an origin whose answers take no time.
    pub async fn start(answer: impl Fn(&Request) -> Served + Send + Sync + 'static) -> Self {
        Self::start_async(move |request| {
            let served = answer(&request);
            Box::pin(async move { served })
        })
        .await
    }

    /// Starts an origin whose answers may wait for something.
    ///
    /// # Panics
    /// When no port can be had.
    pub async fn start_async(answer: impl Fn(Request) -> BoxFuture<'static, Served> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let received = Arc::new(Mutex::new(Vec::new()));
        let started = Arc::new(AtomicUsize::new(0));
        let answer = Arc::new(answer);
        let (log, count) = (Arc::clone(&received), Arc::clone(&started));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let (answer, log, count) = (Arc::clone(&answer), Arc::clone(&log), Arc::clone(&count));
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        count.fetch_add(1, Ordering::SeqCst);
                        let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
                        async move {
                            let request = receive(request).await;
                            log.lock().push(request.clone());
                            Ok::<_, Infallible>(answer(request).await)
                        }
                    });
                    let _ =
                        auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { address, received, started, task }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many requests have begun to arrive.
    #[must_use]
    pub fn started(&self) -> usize {
        self.started.load(Ordering::SeqCst)
    }

    /// What has arrived whole, in order.
    #[must_use]
    pub fn received(&self) -> Vec<Request> {
        self.received.lock().clone()
    }

    /// The last request that arrived whole.
    ///
    /// # Panics
    /// When there was none.
    #[must_use]
    pub fn last(&self) -> Request {
        self.received.lock().last().cloned().expect("the origin was asked")
    }

    /// A server that hands every connection to a function, for what no HTTP library would send.
    ///
    /// # Panics
    /// When no port can be had.
    pub async fn raw<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> (SocketAddr, JoinHandle<()>)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                tokio::spawn(serve(stream));
            }
        });
        (address, task)
    }

    /// A response with a body of known length.
    ///
    /// # Panics
    /// When a field is invalid.
    #[must_use]
    pub fn reply(status: u16, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Served {
        build(status, headers).body(Full::new(body.into()).boxed()).expect("a response")
    }

    /// A response whose body is sent as the test goes along, in chunks; it ends when the sender is dropped.
    ///
    /// # Panics
    /// When a field is invalid.
    #[must_use]
    pub fn streaming(status: u16, headers: &[(&str, &str)]) -> (mpsc::UnboundedSender<Bytes>, Served) {
        let (sender, mut chunks) = mpsc::unbounded_channel::<Bytes>();
        let stream = futures::stream::poll_fn(move |cx| {
            chunks.poll_recv(cx).map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
        });
        let body = BodyExt::boxed(StreamBody::new(SyncStream(Mutex::new(Box::pin(stream)))));
        (sender, build(status, headers).body(body).expect("a response"))
    }

    /// A response whose body is followed by trailers.
    ///
    /// # Panics
    /// When a field is invalid.
    #[must_use]
    pub fn with_trailers(
        status: u16,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
        trailers: &[(&str, &str)],
    ) -> Served {
        let mut map = http::HeaderMap::new();
        for (name, value) in trailers {
            map.append(http::HeaderName::from_bytes(name.as_bytes()).expect("a name"), value.parse().expect("a value"));
        }
        let body = Full::new(body.into()).with_trailers(async move { Some(Ok(map)) });
        build(status, headers).body(body.boxed()).expect("a response")
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn build(status: u16, headers: &[(&str, &str)]) -> http::response::Builder {
    headers.iter().fold(http::Response::builder().status(status), |built, (name, value)| built.header(*name, *value))
}

async fn receive(request: http::Request<Incoming>) -> Request {
    let (head, body) = request.into_parts();
    let mut headers: Vec<(String, String)> = pairs(&head.headers);
    if let Some(authority) = head.uri.authority() {
        headers.push((":authority".into(), authority.to_string()));
    }
    let (body, trailers) = match body.collect().await {
        Ok(collected) => {
            let trailers = collected.trailers().map(pairs).unwrap_or_default();
            (collected.to_bytes(), trailers)
        }
        Err(_) => (Bytes::new(), Vec::new()),
    };
    let target = head.uri.path_and_query().map_or_else(|| "/".into(), ToString::to_string);
    Request { method: head.method.to_string(), target, headers, body, trailers }
}

fn pairs(headers: &http::HeaderMap) -> Vec<(String, String)> {
    headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect()
}

type Frames = std::pin::Pin<Box<dyn futures::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>>;

/// Makes a `Send` stream `Sync`, as boxed bodies want it.
struct SyncStream(Mutex<Frames>);

impl futures::Stream for SyncStream {
    type Item = Result<Frame<Bytes>, Infallible>;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.get_mut().0.get_mut().as_mut().poll_next(cx)
    }
}
