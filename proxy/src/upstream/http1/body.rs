//! Where the body of a response ends (RFC 9112, 6 and 7).

use bytes::{Buf, Bytes, BytesMut};
use http::{StatusCode, header};
use httparse::Status;
use pingora::http::ResponseHeader;
use pingora::{Error, ErrorType, Result};

use super::head;

/// The most bytes of a line that says how long a chunk is, its extensions included.
const CHUNK_LINE_MAX: usize = 4 << 10;

/// The most bytes of trailers.
const TRAILERS_MAX: usize = 16 << 10;

/// How the end of a body is known, and how far it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is no final response yet.
    Unknown,
    /// So many bytes are to come. After 0, nothing.
    Length(u64),
    /// Chunks.
    Chunked(Chunk),
    /// All until the connection ends.
    UntilClose,
    /// The connection has ended, and with it the body.
    Closed,
}

/// Where we are in a chunked body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    /// Before the line with a chunk's size.
    Size,
    /// So many bytes of it are to come.
    Data(u64),
    /// Before the end of line after it.
    End,
    /// After the last chunk; so many bytes of trailers have been passed over.
    Trailers(usize),
    /// At the end.
    Over,
}

impl Framing {
    /// How the body of this response ends. A length beside a transfer coding is taken away, as it says nothing (RFC 9112, 6.3).
    ///
    /// # Errors
    /// It cannot be told: lengths that differ, or are none.
    pub(super) fn of(response: &mut ResponseHeader, head: bool) -> Result<Self> {
        let chunked = head::chunked(response);
        if chunked.is_some() {
            response.remove_header(&header::CONTENT_LENGTH);
        }
        let length = head::length(response)?;
        let none = head || matches!(response.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        Ok(match (none, chunked, length) {
            (true, ..) => Self::Length(0),
            (_, Some(true), _) => Self::Chunked(Chunk::Size),
            (_, None, Some(length)) => Self::Length(length),
            (_, Some(false), _) | (_, None, None) => Self::UntilClose,
        })
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunk::Over) | Self::Closed)
    }

    /// Whether the end of the body is not the end of the connection.
    pub(super) fn leaves_open(&self) -> bool {
        !matches!(self, Self::Unknown | Self::UntilClose | Self::Closed)
    }

    /// The next bytes of the body that are in `buffer`; `None` = there are none. The end of a body in chunks is known when what follows
    /// its last bytes is asked for: it is an end of its own, without bytes, as everybody has it who reads chunks.
    ///
    /// # Errors
    /// The chunks are not well formed.
    pub(super) fn take(&mut self, buffer: &mut BytesMut) -> Result<Option<Bytes>> {
        self.skim(buffer)?;
        let here = match self {
            Self::Length(left) | Self::Chunked(Chunk::Data(left)) => {
                let here = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
                *left -= here as u64;
                here
            }
            Self::UntilClose => buffer.len(),
            Self::Unknown | Self::Closed | Self::Chunked(_) => 0,
        };
        if here == 0 {
            return Ok(None);
        }
        Ok(Some(buffer.split_to(here).freeze()))
    }

    /// Passes over what is between chunks.
    ///
    /// # Errors
    /// The chunks are not well formed.
    fn skim(&mut self, buffer: &mut BytesMut) -> Result<()> {
        let Self::Chunked(chunk) = self else { return Ok(()) };
        loop {
            *chunk = match chunk {
                Chunk::Size => match httparse::parse_chunk_size(buffer) {
                    Ok(Status::Complete((line, size))) => {
                        buffer.advance(line);
                        if size == 0 { Chunk::Trailers(0) } else { Chunk::Data(size) }
                    }
                    Ok(Status::Partial) if buffer.len() <= CHUNK_LINE_MAX => return Ok(()),
                    Ok(Status::Partial) | Err(_) => {
                        return Err(Error::explain(ErrorType::InvalidHTTPHeader, "a chunk's size cannot be read"));
                    }
                },
                Chunk::Data(0) => Chunk::End,
                Chunk::End => match buffer.get(..2) {
                    None => return Ok(()),
                    Some(b"\r\n") => {
                        buffer.advance(2);
                        Chunk::Size
                    }
                    Some(_) => {
                        return Err(Error::explain(ErrorType::InvalidHTTPHeader, "a chunk is longer than it says"));
                    }
                },
                Chunk::Trailers(passed) => match head::line(buffer, TRAILERS_MAX)? {
                    None => return Ok(()),
                    Some(0) => Chunk::Over,
                    Some(line) if *passed + line <= TRAILERS_MAX => Chunk::Trailers(*passed + line),
                    Some(_) => return Err(Error::explain(ErrorType::InvalidHTTPHeader, "the trailers are too long")),
                },
                Chunk::Data(_) | Chunk::Over => return Ok(()),
            };
        }
    }

    /// The connection has ended.
    ///
    /// # Errors
    /// The body has not.
    pub(super) fn closed(&mut self) -> Result<()> {
        if *self != Self::UntilClose {
            return Err(Error::explain(ErrorType::ConnectionClosed, "before the end of the response's body"));
        }
        *self = Self::Closed;
        Ok(())
    }
}
