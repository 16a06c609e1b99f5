//! An HTTP/1.1 client that hides nothing: what is sent is given as bytes, what comes back is parsed strictly.

use std::net::SocketAddr;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::soon;
use crate::tls::Caller;

trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// What a read may bring, at least.
const ROOM: usize = 4096;

/// One connection.
pub struct Client {
    io: Box<dyn Io>,
    buffer: BytesMut,
}

/// A response, whole.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status.
    pub status: u16,
    /// Fields in order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, without its transfer coding.
    pub body: Vec<u8>,
    /// Trailer fields after a chunked body.
    pub trailers: Vec<(String, String)>,
}

impl Response {
    /// The first value of a field.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

impl Client {
    /// Connects without TLS.
    ///
    /// # Panics
    /// When nobody listens there.
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = soon("connect", TcpStream::connect(address)).await.expect("connects");
        stream.set_nodelay(true).expect("nodelay");
        Self { io: Box::new(stream), buffer: BytesMut::new() }
    }

    /// Connects with TLS, trusting anybody, offering these protocols (`http/1.1`, `h2`).
    ///
    /// # Panics
    /// When the handshake fails.
    pub async fn connect_tls(address: SocketAddr, name: &str, alpn: &[&str]) -> Self {
        Self::over(Caller::new(name, alpn).call(address).await)
    }

    /// On a connection that is there already.
    pub fn over(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        Self { io: Box::new(io), buffer: BytesMut::new() }
    }

    /// One GET on a connection of its own.
    pub async fn get(address: SocketAddr, path: &str) -> Response {
        Self::connect(address).await.request(&format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")).await
    }

    /// One GET with further header lines (each ended by `\r\n`), on a connection of its own.
    pub async fn get_with(address: SocketAddr, path: &str, headers: &str) -> Response {
        Self::connect(address).await.request(&format!("GET {path} HTTP/1.1\r\nhost: test\r\n{headers}\r\n")).await
    }

    /// One POST with a body of known length, on a connection of its own.
    pub async fn post(address: SocketAddr, path: &str, headers: &str, body: &[u8]) -> Response {
        let mut client = Self::connect(address).await;
        let head = format!("POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
        client.send(head.as_bytes()).await;
        client.send(body).await;
        client.response("POST").await
    }

    /// Sends a request without a body and reads its response.
    pub async fn request(&mut self, head: &str) -> Response {
        self.send(head.as_bytes()).await;
        let method = head.split(' ').next().unwrap_or("GET").to_owned();
        self.response(&method).await
    }

    /// The connection itself, for clients that speak on it themselves.
    ///
    /// # Panics
    /// When something has been received that was not taken.
    #[must_use]
    pub fn into_stream(self) -> impl AsyncRead + AsyncWrite + Send + Unpin + 'static {
        assert!(self.buffer.is_empty(), "nothing was received yet");
        self.io
    }

    /// Sends bytes. That the other side is gone is not noticed here but when reading.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = soon("send", self.io.write_all(bytes)).await;
        let _ = self.io.flush().await;
    }

    /// Reads the next final response to a request of this method; interim ones are skipped.
    ///
    /// # Panics
    /// When the response is malformed, or cut off.
    pub async fn response(&mut self, method: &str) -> Response {
        loop {
            let response = self.any_response(method).await;
            if response.status >= 200 || response.status == 101 {
                return response;
            }
        }
    }

    /// Reads the next response, which may be an interim one.
    ///
    /// # Panics
    /// When it is malformed, or cut off.
    pub async fn any_response(&mut self, method: &str) -> Response {
        match self.try_response(method).await {
            Ok(response) => response,
            Err(why) => panic!("no whole response: {why}; read so far: {:?}", String::from_utf8_lossy(&self.buffer)),
        }
    }

    /// Reads the next response, or says how it falls short.
    ///
    /// # Errors
    /// The connection ends early, or the message is malformed.
    pub async fn try_response(&mut self, method: &str) -> Result<Response, String> {
        let (status, headers) = self.head().await?;
        let get = |name: &str| headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());

        let mut response = Response { status, headers: headers.clone(), body: Vec::new(), trailers: Vec::new() };
        if method == "HEAD" || status < 200 || status == 204 || status == 304 {
            return Ok(response);
        }
        if get("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            loop {
                let line = self.line().await?;
                let size = usize::from_str_radix(line.split(';').next().unwrap_or("").trim(), 16)
                    .map_err(|_| format!("bad chunk size {line:?}"))?;
                if size == 0 {
                    break;
                }
                let chunk = self.exactly(size).await?;
                response.body.extend_from_slice(&chunk);
                if self.exactly(2).await? != b"\r\n" {
                    return Err("chunk not ended by CRLF".into());
                }
            }
            loop {
                let line = self.line().await?;
                if line.is_empty() {
                    return Ok(response);
                }
                response.trailers.push(field(&line)?);
            }
        }
        if let Some(length) = get("content-length") {
            let length = length.parse().map_err(|_| format!("bad length {length:?}"))?;
            response.body = self.exactly(length).await?;
            return Ok(response);
        }
        while self.fill().await? {}
        response.body = self.buffer.split().to_vec();
        Ok(response)
    }

    /// Reads status and header fields only.
    ///
    /// # Errors
    /// The connection ends early, or the head is malformed.
    pub async fn head(&mut self) -> Result<(u16, Vec<(String, String)>), String> {
        let start = self.line().await?;
        let status =
            start.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or(format!("bad start {start:?}"))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok((status, headers));
            }
            headers.push(field(&line)?);
        }
    }

    /// Reads at least one byte of whatever comes next; empty = the other side has closed.
    ///
    /// # Errors
    /// The connection was reset.
    pub async fn some(&mut self) -> Result<Vec<u8>, String> {
        if self.buffer.is_empty() {
            self.fill().await?;
        }
        Ok(self.buffer.split().to_vec())
    }

    /// Whether the other side closes without sending anything more.
    pub async fn is_closed(&mut self) -> bool {
        self.buffer.is_empty() && matches!(self.fill().await, Ok(false) | Err(_))
    }

    async fn line(&mut self) -> Result<String, String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.buffer.split_to(end);
                self.buffer.advance(2);
                return String::from_utf8(line.to_vec()).map_err(|error| error.to_string());
            }
            if !self.fill().await? {
                return Err("the connection ended within a line".into());
            }
        }
    }

    /// So many bytes, however many pieces they come in.
    ///
    /// # Errors
    /// The connection was reset, or ended before.
    pub async fn exactly(&mut self, count: usize) -> Result<Vec<u8>, String> {
        while self.buffer.len() < count {
            if !self.fill().await? {
                return Err(format!("the connection ended after {} of {count} bytes", self.buffer.len()));
            }
        }
        Ok(self.buffer.split_to(count).to_vec())
    }

    async fn fill(&mut self) -> Result<bool, String> {
        self.buffer.reserve(ROOM); // or what is left of the buffer decides how much is read
        let read = soon("read", self.io.read_buf(&mut self.buffer)).await.map_err(|error| error.to_string())?;
        Ok(read > 0)
    }
}

fn field(line: &str) -> Result<(String, String), String> {
    let (name, value) = line.split_once(':').ok_or(format!("bad field {line:?}"))?;
    Ok((name.to_ascii_lowercase(), value.trim().to_owned()))
}
