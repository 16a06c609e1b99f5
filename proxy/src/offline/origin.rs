//! What upstreams answer in tests: one answer to every request, from this process, over a pipe in memory.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use pingora::connectors::l4::Connect;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket, VirtualSocketStream};
use pingora::{Error, ErrorType};
use selvedge_config::TestOrigin;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tracing::debug;

/// What fits into the pipe before the other side reads.
const PIPE: usize = 64 * 1024;

/// An upstream that always answers the same.
pub(super) struct Canned(pub(super) TestOrigin);

#[async_trait]
impl Connect for Canned {
    async fn connect(&self, _address: &SocketAddr) -> pingora::Result<Stream> {
        if self.0.down {
            return Error::e_explain(ErrorType::ConnectRefused, "the upstream is down in this test");
        }
        let (ours, theirs) = tokio::io::duplex(PIPE);
        let origin = self.0.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, &origin));
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

async fn answer(request: Request<Incoming>, origin: &TestOrigin) -> Result<Response<Full<Bytes>>, String> {
    request.into_body().collect().await.map_err(|error| error.to_string())?;
    let mut response = Response::builder().status(origin.status);
    for (name, value) in &origin.headers {
        response = response.header(name, value);
    }
    response.body(Full::new(Bytes::copy_from_slice(origin.body.as_bytes()))).map_err(|error| error.to_string())
}

/// Our end, as a socket.
#[derive(Debug)]
struct Pipe(DuplexStream);

impl VirtualSocket for Pipe {
    fn set_socket_option(&self, _option: VirtualSockOpt) -> io::Result<()> {
        Ok(()) // It has none.
    }
}

impl AsyncRead for Pipe {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
