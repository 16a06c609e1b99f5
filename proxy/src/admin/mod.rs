//! The admin API: what the node is doing, and what it can be told to do, as JSON over HTTP/1.1. [`operations::TABLE`] is all there is;
//! [`guard`] decides who may.

mod cache;
mod certificates;
mod guard;
mod openapi;
mod operations;
mod problem;
mod views;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;

pub(crate) use self::guard::Guard;
use self::operations::Call;
use self::problem::Problem;
use crate::control::Control;
use crate::operator::{Answer, Server};

/// The largest body of a request, in bytes.
const BODY_MAX: usize = 64 * 1024;
/// How long a client may take to send it.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// What the API is about.
pub(crate) struct State {
    pub(crate) name: String,
    pub(crate) workers: usize,
    pub(crate) started: SystemTime,
    pub(crate) control: Control,
}

/// The running API; dropped, it ends.
pub(crate) struct AdminServer {
    server: Server,
    setting: selvedge_config::Bind,
}

struct Api {
    guard: Arc<Guard>,
    state: State,
}

impl AdminServer {
    /// Binds and serves.
    ///
    /// # Errors
    /// See [`Server::start`].
    pub(crate) fn start(settings: &selvedge_config::Admin, guard: Arc<Guard>, state: State) -> io::Result<Self> {
        let resources = Arc::clone(state.control.resources());
        let server = Server::start("admin", &settings.bind, Arc::new(Api { guard, state }), resources.inherited())?;
        Ok(Self { server, setting: settings.bind.clone() })
    }

    /// With a real port in place of 0; `None` for a Unix socket.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.server.address()
    }

    /// The server under it.
    pub(crate) fn server(&mut self) -> &mut Server {
        &mut self.server
    }

    /// Where it is, for the log.
    pub(crate) fn shown_address(&self) -> String {
        self.address().map_or_else(|| self.setting.to_string(), |address| address.to_string())
    }
}

impl Answer for Api {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let mut response = self.respond(request).await.unwrap_or_else(Problem::into_response);
        let fields = response.headers_mut();
        fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        fields.insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
        response
    }
}

impl Api {
    async fn respond(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Problem> {
        let (head, body) = request.into_parts();
        // What there is, is no secret: it is in the documentation. So a wrong path is told to anybody.
        let (operation, names) = operations::find(&head.method, head.uri.path())?;
        if !operation.open {
            self.guard.check(&head.headers)?;
        }
        let body =
            if head.method == Method::GET || head.method == Method::HEAD { Bytes::new() } else { read(body).await? };
        let call = Call { names, query: head.uri.query(), headers: &head.headers, body };
        operations::run(&self.state, operation, call).await
    }
}

async fn read(body: Incoming) -> Result<Bytes, Problem> {
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_MAX).collect()).await {
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "The body is larger than 64 KiB"))
        }
        Ok(Err(_)) => Err(Problem::new(StatusCode::BAD_REQUEST, "The body does not come whole")),
        Err(_) => Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "The body does not come in time")),
    }
}
