//! Where Prometheus asks.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use selvedge_config::Bind;

use crate::operator::{Answer, Server};
use crate::sockets::{Inherited, Socket};

/// Makes the page.
pub(crate) type Page = Arc<dyn Fn() -> String + Send + Sync>;

/// What the page is written in.
pub(crate) const PROMETHEUS_TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// The running server; dropped, it ends.
pub(crate) struct MetricsServer(Server);

impl MetricsServer {
    /// Binds and serves.
    pub(crate) fn start(bind: SocketAddr, page: Page, inherited: &Inherited) -> io::Result<Self> {
        Server::start("metrics", &Bind::Tcp(bind), Arc::new(Metrics { page }), inherited).map(Self)
    }

    /// Another handle of its socket, and what it is for.
    pub(crate) fn socket(&self) -> io::Result<(String, Socket)> {
        self.0.socket()
    }

    /// With a real port in place of 0.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.0.address()
    }
}

struct Metrics {
    page: Page,
}

impl Answer for Metrics {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (status, header, body) = match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/metrics") => {
                (StatusCode::OK, (CONTENT_TYPE, PROMETHEUS_TEXT), Bytes::from((self.page)()))
            }
            (_, "/metrics") => {
                (StatusCode::METHOD_NOT_ALLOWED, (ALLOW, HeaderValue::from_static("GET, HEAD")), Bytes::new())
            }
            _ => {
                let text = (CONTENT_TYPE, HeaderValue::from_static("text/plain"));
                (StatusCode::NOT_FOUND, text, Bytes::from_static(b"see /metrics\n"))
            }
        };
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status;
        response.headers_mut().insert(header.0, header.1);
        response
    }
}
