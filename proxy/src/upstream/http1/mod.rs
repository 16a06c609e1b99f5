//! HTTP/1.1 towards an endpoint, as one exchange at a time over a connection that is kept afterwards.
//!
//! ```text
//! Pool ── take or connect ──> Exchange ── send ──> response (interim ones, then the final one) ──> body … ──> Pool
//! ```
//!
//! An exchange reads only when it is asked to, so that a client who reads slowly slows its origin down. What it reads is taken out of the
//! buffer as it lies there: header values and pieces of the body are slices of what the socket was read into.

mod body;
mod head;
mod pool;
mod silence;

use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Stream;
use pingora::protocols::http::v1::client::http_req_header_to_wire;
use pingora::{Error, ErrorType, Result, RetryType};
use selvedge_config::UpstreamPool;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use self::body::Framing;
pub(crate) use self::pool::Pool;
use self::silence::Silence;
use super::wear;

/// Room for a response header as most are; what does not fit is read on into a larger buffer.
const HEAD_ROOM: usize = 4 << 10;

/// How much of a body is read at once.
const BODY_ROOM: usize = 64 << 10;

/// The most bytes a response header, or a run of interim ones that came at once, may have.
const HEAD_MAX: usize = 1 << 20;

/// One request and its response, on a connection that nobody else uses meanwhile. Dropped, it closes the connection; [`Pool::keep`] keeps
/// it.
pub(crate) struct Exchange {
    connection: Connection,
    /// What has come and was not taken yet.
    buffer: BytesMut,
    framing: Framing,
    /// Whether the request was HEAD, which no body answers.
    head: bool,
    /// Whether the connection may carry another exchange after this one, as far as the response's header says.
    keeps: bool,
    /// Nothing is to follow it on this connection, whatever the response says.
    last: bool,
    /// How long the upstream may ask to be kept, if it said.
    kept_for: Option<Duration>,
    /// The longest silence, in either direction; `None` = any.
    limit: Option<Duration>,
}

/// A connection between exchanges.
pub(super) struct Connection {
    stream: Stream,
    silence: Silence,
    made: Instant,
    /// How many requests there have been on it.
    carried: u32,
}

impl Exchange {
    fn on(mut connection: Connection, limit: Option<Duration>) -> Self {
        connection.carried = connection.carried.saturating_add(1);
        Self {
            connection,
            buffer: BytesMut::new(),
            framing: Framing::Unknown,
            head: false,
            keeps: false,
            last: false,
            kept_for: None,
            limit,
        }
    }

    /// What it goes over.
    pub(crate) fn stream(&self) -> &Stream {
        &self.connection.stream
    }

    /// Whether nothing more is to be sent on the connection after this, as these rules say; then the connection is not kept.
    pub(crate) fn is_last(&mut self, rule: &UpstreamPool) -> bool {
        self.last = wear::is_last(rule, self.connection.carried, self.connection.made.elapsed());
        self.last
    }

    /// Sends the request's header. It must announce no body.
    ///
    /// # Errors
    /// The upstream does not take it (`WriteError`), or not in time (`WriteTimedout`); or the path cannot be written (`InvalidHTTPHeader`).
    /// Not cancel safe: afterwards the exchange is of no use.
    pub(crate) async fn send(&mut self, request: &RequestHeader) -> Result<()> {
        let wire = http_req_header_to_wire(request)
            .ok_or_else(|| Error::explain(ErrorType::InvalidHTTPHeader, "the request line cannot be written"))?;
        self.head = request.method == http::Method::HEAD;
        let Connection { stream, silence, .. } = &mut self.connection;
        let limit = self.limit;
        silence.begin(limit);
        let mut writing = pin!(async {
            stream.write_all(&wire).await?;
            stream.flush().await
        });
        let written = poll_fn(|cx| match writing.as_mut().poll(cx) {
            Poll::Pending => silence.poll(cx).map(|()| Err(io::Error::from(ErrorKind::TimedOut))),
            written => written,
        });
        written.await.map_err(|error| match error.kind() {
            ErrorKind::TimedOut => Error::because(ErrorType::WriteTimedout, "while writing the request header", error),
            _ => {
                let mut error = Error::because(ErrorType::WriteError, "while writing the request header", error);
                error.retry = RetryType::ReusedOnly;
                error
            }
        })
    }

    /// The next response header: any number of interim ones (1xx), then the final one. After the final one, [`Exchange::body`].
    ///
    /// # Errors
    /// The connection ends (`ConnectionClosed`, `ReadError`: worth another attempt on a new connection if this one was kept), is silent for
    /// too long (`ReadTimedout`), or what comes is no response header of HTTP/1 (`InvalidHTTPHeader`).
    /// Cancel safe.
    pub(crate) async fn response(&mut self) -> Result<Box<ResponseHeader>> {
        loop {
            if !self.buffer.is_empty()
                && let Some(response) = head::parse(&mut self.buffer)?
            {
                return self.begins(response);
            }
            if self.buffer.len() > HEAD_MAX {
                return Err(Error::explain(ErrorType::InvalidHTTPHeader, "the response header is larger than 1 MiB"));
            }
            let before = self.buffer.len();
            let closed = match self.fill(HEAD_ROOM, "the response header").await {
                Ok(0) => {
                    Error::explain(ErrorType::ConnectionClosed, format!("after {before} bytes of a response header"))
                }
                Ok(_) => continue,
                Err(error) if *error.etype() == ErrorType::ReadError => error,
                Err(error) => return Err(error),
            };
            let mut closed = closed;
            closed.retry = if before == 0 { RetryType::ReusedOnly } else { RetryType::Decided(false) };
            return Err(closed);
        }
    }

    fn begins(&mut self, mut response: Box<ResponseHeader>) -> Result<Box<ResponseHeader>> {
        if !response.status.is_informational() || response.status == http::StatusCode::SWITCHING_PROTOCOLS {
            self.framing = Framing::of(&mut response, self.head)?;
            self.keeps = self.framing.leaves_open() && head::keeps(&response);
            self.kept_for = head::kept_for(&response);
        }
        Ok(response)
    }

    /// Whether all of the response's body has been taken.
    pub(crate) fn has_ended(&self) -> bool {
        self.framing.has_ended()
    }

    /// The next piece of the body that is there already, without waiting; `None` = there is none, or the body has ended.
    ///
    /// # Errors
    /// What has come breaks the framing (`InvalidHTTPHeader`).
    pub(crate) fn ready(&mut self) -> Result<Option<Bytes>> {
        self.framing.take(&mut self.buffer)
    }

    /// The next piece of the body; `None` = it has ended.
    ///
    /// # Errors
    /// The connection ends before the body does (`ConnectionClosed`, `ReadError`), is silent for too long (`ReadTimedout`), or what comes
    /// breaks the framing (`InvalidHTTPHeader`).
    /// Cancel safe.
    pub(crate) async fn body(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(piece) = self.framing.take(&mut self.buffer)? {
                return Ok(Some(piece));
            }
            if self.framing.has_ended() {
                return Ok(None);
            }
            if self.fill(BODY_ROOM, "the response body").await? == 0 {
                self.framing.closed()?;
            }
        }
    }

    /// Reads what has come, waiting for something; 0 = nothing more will.
    async fn fill(&mut self, room: usize, what: &'static str) -> Result<usize> {
        let Self { connection: Connection { stream, silence, .. }, buffer, limit, .. } = self;
        buffer.reserve(room);
        silence.begin(*limit);
        let read = poll_fn(|cx| match pin!(stream.read_buf(buffer)).poll(cx) {
            Poll::Pending => silence.poll(cx).map(|()| Err(io::Error::from(ErrorKind::TimedOut))),
            read => read,
        });
        read.await.map_err(|error| match error.kind() {
            ErrorKind::TimedOut => Error::because(ErrorType::ReadTimedout, format!("while reading {what}"), error),
            _ => Error::because(ErrorType::ReadError, format!("while reading {what}"), error),
        })
    }

    /// Whether the connection may carry another exchange: the response is over, and nothing came after it.
    fn may_be_kept(&self) -> bool {
        self.keeps && !self.last && self.framing.has_ended() && self.buffer.is_empty()
    }
}

#[cfg(test)]
mod tests;
