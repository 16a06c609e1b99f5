//! HTTP/2 clients: over TLS by ALPN, and without by prior knowledge.

use std::net::SocketAddr;

use bytes::Bytes;
use http::HeaderMap;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::tls::Caller;
use crate::{Response, soon};

/// One HTTP/2 connection; its driver runs in the background until it is dropped.
pub struct H2Client {
    send: h2::client::SendRequest<Bytes>,
    scheme: &'static str,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for H2Client {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl H2Client {
    /// Prior knowledge.
    ///
    /// # Panics
    /// When the handshake fails.
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = soon("connect", TcpStream::connect(address)).await.expect("connects");
        let (send, connection) = soon("h2 handshake", h2::client::handshake(stream)).await.expect("h2");
        Self { send, scheme: "http", driver: tokio::spawn(async move { drop(connection.await) }) }
    }

    /// TLS with ALPN `h2`.
    ///
    /// # Panics
    /// When the handshake fails, or another protocol is chosen.
    pub async fn connect_tls(address: SocketAddr, name: &str) -> Self {
        Self::over(Caller::new(name, &["h2"]).call(address).await).await
    }

    /// On a TLS connection that is there already.
    ///
    /// # Panics
    /// When another protocol was chosen in its handshake.
    pub async fn over(stream: TlsStream<TcpStream>) -> Self {
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
        let (send, connection) = soon("h2 handshake", h2::client::handshake(stream)).await.expect("h2");
        Self { send, scheme: "https", driver: tokio::spawn(async move { drop(connection.await) }) }
    }

    /// A request with further fields and a body (empty = none), and its whole response.
    ///
    /// # Errors
    /// The stream was reset.
    pub async fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Response, h2::Error> {
        let (response, mut upload) = self.open(method, path, headers, body.is_empty()).await?;
        if !body.is_empty() {
            upload.send_data(Bytes::copy_from_slice(body), true)?;
        }
        Self::collect(soon("h2 response", response).await?).await
    }

    /// Opens a stream: the future of its response, and the way to send its body.
    ///
    /// # Errors
    /// The connection is gone.
    ///
    /// # Panics
    /// When the request is invalid.
    pub async fn open(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        end: bool,
    ) -> Result<(h2::client::ResponseFuture, h2::SendStream<Bytes>), h2::Error> {
        let mut request = http::Request::builder().method(method).uri(format!("{}://test{path}", self.scheme));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut send = soon("h2 ready", self.send.clone().ready()).await?;
        send.send_request(request.body(()).expect("a request"), end)
    }

    /// Reads a response to its end.
    ///
    /// # Errors
    /// The stream was reset.
    pub async fn collect(response: http::Response<h2::RecvStream>) -> Result<Response, h2::Error> {
        let (head, mut stream) = response.into_parts();
        let mut body = Vec::new();
        while let Some(chunk) = soon("h2 data", stream.data()).await {
            let chunk = chunk?;
            body.extend_from_slice(&chunk);
            let _ = stream.flow_control().release_capacity(chunk.len());
        }
        let trailers = soon("h2 trailers", stream.trailers()).await?;
        Ok(Response {
            status: head.status.as_u16(),
            headers: pairs(&head.headers),
            body,
            trailers: trailers.as_ref().map(pairs).unwrap_or_default(),
        })
    }
}

fn pairs(headers: &HeaderMap) -> Vec<(String, String)> {
    headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect()
}
