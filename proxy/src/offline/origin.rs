//! What upstreams answer in tests: one answer to every request, from this process, over a pipe in memory.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use pingora::connectors::l4::Connect;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::VirtualSocketStream;
use pingora::{Error, ErrorType};
use selvedge_config::TestOrigin;
use tracing::debug;

use crate::pipe::Pipe;

/// What fits into the pipe before the other side reads.
const PIPE: usize = 64 * 1024;

/// An upstream that always answers the same.
pub(super) struct Canned {
    origin: TestOrigin,
    told: Option<(String, Requests)>,
}

/// The requests that upstreams have got, in order.
pub(crate) type Requests = Arc<Mutex<Vec<Received>>>;

/// A request as an upstream has got it.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    /// The upstream's name.
    pub(crate) upstream: String,
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Bytes,
    /// What it was answered with.
    pub(crate) status: u16,
}

impl Canned {
    pub(super) fn new(origin: TestOrigin) -> Self {
        Self { origin, told: None }
    }

    /// The same, which keeps what it gets under this name.
    pub(super) fn telling(origin: TestOrigin, name: &str, requests: &Requests) -> Self {
        Self { origin, told: Some((name.to_owned(), Arc::clone(requests))) }
    }
}

#[async_trait]
impl Connect for Canned {
    async fn connect(&self, _address: &SocketAddr) -> pingora::Result<Stream> {
        if self.origin.down {
            return Error::e_explain(ErrorType::ConnectRefused, "the upstream is down in this test");
        }
        let (ours, theirs) = tokio::io::duplex(PIPE);
        let (origin, told) = (self.origin.clone(), self.told.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, &origin, told.as_ref()));
            let mut connection = hyper::server::conn::http1::Builder::new();
            connection.keep_alive(false);
            if let Err(error) = connection.serve_connection(TokioIo::new(theirs), service).await {
                debug!(%error, "an exchange with a test's upstream broke off");
            }
        });
        Ok(VirtualSocketStream::new(Box::new(Pipe(ours))).into())
    }
}

impl fmt::Debug for Canned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Canned")
    }
}

async fn answer(
    request: Request<Incoming>,
    origin: &TestOrigin,
    told: Option<&(String, Requests)>,
) -> Result<Response<Full<Bytes>>, String> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
    if let Some((upstream, requests)) = told {
        requests.lock().push(Received {
            upstream: upstream.clone(),
            method: head.method.to_string(),
            target: head.uri.path_and_query().map_or_else(|| head.uri.to_string(), ToString::to_string),
            headers: head.headers,
            body,
            status: origin.status,
        });
    }
    let mut response = Response::builder().status(origin.status);
    for (name, value) in &origin.headers {
        response = response.header(name, value);
    }
    response.body(Full::new(Bytes::copy_from_slice(origin.body.as_bytes()))).map_err(|error| error.to_string())
}
