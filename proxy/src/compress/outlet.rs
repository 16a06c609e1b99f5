//! Where a response leaves, compressed if the client likes that: a state for each response, between the filters and the client's session.
//!
//! ```text
//! Passing ──header──> Passing              nothing to do
//!                     Encoding ──end──> Passing
//!                     Swapping ──end──> Passing     the stored encoding goes out in place of the stored body
//!                        └── other bytes come than those that are stored (a filter has changed them) ──> Encoding
//! ```

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use http::Version;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::server::Session as HttpSession;
use pingora::{Error, ErrorType, OrErr, Result};
use selvedge_cache::{Encoded, EncodedBody, StoredBody};
use selvedge_config::Encoding;

use super::encoder::{Encoder, Then};
use super::{Compress, Verdict, coding, dress, length, not_modified, varies};
use crate::plan::Route;
use crate::telemetry::counters::Counters;

/// At most so much is compressed at once, so that the worker's other requests have their turn: about a millisecond.
const PIECE: usize = 64 << 10;

/// See the [module](self).
pub(crate) struct Outlet {
    route: Arc<Route>,
    wanted: Option<Encoding>,
    state: State,
    /// Tasks that have not been looked at.
    coming: VecDeque<HttpTask>,
    /// Something has been encoded since the last flush.
    unflushed: bool,
}

enum State {
    Passing,
    Encoding {
        encoder: Box<Counted>,
        encoding: Encoding,
        offer: Option<Offer>,
    },
    Swapping {
        header: Option<Box<ResponseHeader>>,
        encoding: Encoding,
        stored: StoredBody,
        encoded: EncodedBody,
        position: u64,
    },
}

/// An encoder, and what it has taken in and given out.
struct Counted {
    encoder: Encoder,
    counters: Arc<Counters>,
    bytes_in: u64,
    bytes_out: u64,
}

impl Counted {
    fn encode(&mut self, data: &[u8], then: Then) -> Result<Bytes> {
        let out = self.encoder.encode(data, then);
        let out = out.map_err(|error| Error::because(ErrorType::InternalError, "compress a response", error))?;
        self.bytes_in += data.len() as u64;
        self.bytes_out += out.len() as u64;
        Ok(out)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let compressed = &self.counters.compressed;
        compressed.encoded.fetch_add(1, Relaxed);
        compressed.bytes_in.fetch_add(self.bytes_in, Relaxed);
        compressed.bytes_out.fetch_add(self.bytes_out, Relaxed);
    }
}

/// What comes of a stored body, for the cache, as long as nothing else is mixed with it.
struct Offer {
    stored: StoredBody,
    position: u64,
    chunks: Vec<Bytes>,
}

impl Outlet {
    /// Where the responses of this route leave, for a client that wants them so.
    pub(crate) fn new(route: Arc<Route>, wanted: Option<Encoding>) -> Self {
        Self { route, wanted, state: State::Passing, coming: VecDeque::new(), unflushed: false }
    }

    /// A final header is about to leave; before it is said how its body is framed. `stored` is where its body comes from, if it is a hit.
    ///
    /// # Errors
    /// The header has no room, or there is no memory for an encoder.
    pub(crate) fn header(
        &mut self,
        request: &RequestHeader,
        response: &mut ResponseHeader,
        bodiless: bool,
        stored: Option<StoredBody>,
    ) -> Result<()> {
        self.state = State::Passing;
        self.coming.clear();
        let Some(compress) = &self.route.compress else { return Ok(()) };
        if response.status == http::StatusCode::NOT_MODIFIED {
            return not_modified(request, response);
        }
        let verdict = compress.verdict(response, self.wanted);
        if verdict != Verdict::Other {
            varies(response)?;
        }
        let Verdict::Encode(encoding) = verdict else { return Ok(()) };
        // A stored body is known by its length, too: that of a reply of a filter is another one.
        let length = length(&response.headers);
        let stored = stored.filter(|stored| length.is_none_or(|length| length == stored.len()));
        let known = stored.as_ref().and_then(|stored| stored.encoded(coding(encoding))).cloned();
        if matches!(known, Some(Encoded::NotShorter)) {
            return Ok(());
        }

        dress(response, encoding)?;
        if let Some(Encoded::Body(encoded)) = &known {
            response.insert_header(CONTENT_LENGTH, encoded.len())?;
        }
        if bodiless {
            return Ok(()); // HEAD: the header is all there is.
        }
        self.state = match (known, stored) {
            (Some(Encoded::Body(encoded)), Some(stored)) => {
                State::Swapping { header: None, encoding, stored, encoded, position: 0 }
            }
            (_, stored) => {
                let offer = stored.map(|stored| Offer { stored, position: 0, chunks: Vec::new() });
                State::Encoding { encoder: encoder(compress, encoding, length)?, encoding, offer }
            }
        };
        Ok(())
    }

    /// Whether tasks may go as they are.
    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.state, State::Passing) && self.coming.is_empty()
    }

    /// Writes what comes of `tasks` to the client. Not cancel safe: what is dropped meanwhile is lost.
    ///
    /// # Errors
    /// The client has gone, or the encoder has failed: the response ends short.
    pub(crate) async fn write(&mut self, client: &mut HttpSession, tasks: Vec<HttpTask>) -> Result<bool> {
        self.coming.extend(tasks);
        let (mut out, mut size, mut ended) = (Vec::new(), 0, false);
        while let Some(next) = self.next()? {
            size += next.iter().map(body_size).sum::<usize>();
            out.extend(next);
            if size >= PIECE {
                ended |= client.response_duplex_vec(std::mem::take(&mut out)).await?;
                size = 0;
            } else if matches!(self.state, State::Encoding { .. }) && !self.coming.is_empty() {
                tokio::task::yield_now().await;
            }
        }
        if !out.is_empty() {
            ended |= client.response_duplex_vec(out).await?;
        }
        Ok(ended)
    }

    /// What may leave next, if anything; `None` when all that came has been dealt with. What is done at once is bounded.
    fn next(&mut self) -> Result<Option<Vec<HttpTask>>> {
        let mut out = Vec::new();
        let Some(task) = self.coming.pop_front() else {
            // What comes next may take a while.
            self.flush(&mut out)?;
            return Ok((!out.is_empty()).then_some(out));
        };
        if !self.is_as_stored(&task) {
            self.encode_after_all(task, &mut out)?;
            return Ok(Some(out));
        }
        match (task, &mut self.state) {
            (HttpTask::Header(header, false), State::Swapping { header: held, .. })
                if !header.status.is_informational() =>
            {
                *held = Some(header);
            }
            (HttpTask::Body(Some(mut data), end), State::Encoding { .. }) if data.len() > PIECE => {
                let piece = data.split_to(PIECE);
                self.coming.push_front(HttpTask::Body(Some(data), end));
                self.body(piece, false, &mut out)?;
            }
            (HttpTask::Body(data, end), State::Encoding { .. } | State::Swapping { .. }) => {
                self.body(data.unwrap_or_default(), end, &mut out)?;
            }
            (HttpTask::Trailer(trailers), _) => {
                self.end(&[], false, &mut out)?;
                out.push(HttpTask::Trailer(trailers));
            }
            (HttpTask::Done, State::Encoding { .. } | State::Swapping { .. }) => self.end(&[], true, &mut out)?,
            (task, _) => out.push(task),
        }
        Ok(Some(out))
    }

    /// Whether the stored encoding may still stand for what comes.
    fn is_as_stored(&self, task: &HttpTask) -> bool {
        let State::Swapping { stored, position, .. } = &self.state else { return true };
        let (data, end) = match task {
            HttpTask::Body(data, end) => (data.as_ref(), *end),
            HttpTask::Trailer(_) | HttpTask::Done => (None, true),
            HttpTask::Header(..) | HttpTask::Failed(_) | HttpTask::UpgradedBody(..) => return true,
        };
        let after = position + data.map_or(0, |data| data.len() as u64);
        data.is_none_or(|data| stored.holds(*position, data)) && (!end || after == stored.len())
    }

    fn body(&mut self, data: Bytes, end: bool, out: &mut Vec<HttpTask>) -> Result<()> {
        match &mut self.state {
            State::Passing => {}
            State::Encoding { encoder, offer, .. } => {
                if let Some(known) = offer {
                    match known.stored.holds(known.position, &data) {
                        true => known.position += data.len() as u64,
                        false => *offer = None,
                    }
                }
                if !end && !data.is_empty() {
                    self.unflushed = true;
                    write(encoder.encode(&data, Then::More)?, offer, out);
                }
            }
            State::Swapping { position, .. } => *position += data.len() as u64,
        }
        if end { self.end(&data, true, out) } else { Ok(()) }
    }

    /// The body is complete with these bytes; `last` = so is the response.
    fn end(&mut self, data: &[u8], last: bool, out: &mut Vec<HttpTask>) -> Result<()> {
        match std::mem::replace(&mut self.state, State::Passing) {
            State::Passing => {}
            State::Encoding { mut encoder, encoding, mut offer } => {
                self.unflushed = false;
                let rest = encoder.encode(data, Then::End)?;
                if let Some(offer) = &mut offer {
                    offer.chunks.push(rest.clone());
                }
                out.push(HttpTask::Body(Some(rest), last));
                if let Some(offer) = offer.filter(|offer| offer.position == offer.stored.len()) {
                    offer.stored.keep(coding(encoding), offer.chunks);
                }
            }
            State::Swapping { header, encoded, .. } => {
                if let Some(compress) = &self.route.compress {
                    compress.counters.compressed.stored.fetch_add(1, Relaxed);
                }
                out.extend(header.map(|header| HttpTask::Header(header, false)));
                let mut chunks = encoded.chunks().peekable();
                while let Some(chunk) = chunks.next() {
                    out.push(HttpTask::Body(Some(chunk.clone()), last && chunks.peek().is_none()));
                }
            }
        }
        Ok(())
    }

    /// Other bytes come than those that are stored, or fewer: what has come so far is encoded, then `task` and what follows.
    fn encode_after_all(&mut self, task: HttpTask, out: &mut Vec<HttpTask>) -> Result<()> {
        self.coming.push_front(task);
        let Some(compress) = &self.route.compress else { return Ok(()) };
        let State::Swapping { header, encoding, stored, position, .. } =
            std::mem::replace(&mut self.state, State::Passing)
        else {
            return Ok(());
        };
        if let Some(mut header) = header {
            header.remove_header(&CONTENT_LENGTH);
            // Its client knows chunks, or it would not get anything compressed.
            header.set_version(Version::HTTP_11);
            header.insert_header(TRANSFER_ENCODING, "chunked")?;
            out.push(HttpTask::Header(header, false));
        }
        self.state = State::Encoding { encoder: encoder(compress, encoding, None)?, encoding, offer: None };
        for chunk in stored.up_to(position).collect::<Vec<_>>().into_iter().rev() {
            self.coming.push_front(HttpTask::Body(Some(chunk), false));
        }
        Ok(())
    }

    /// Lets out what has been taken in, where more of it may be a while in coming.
    fn flush(&mut self, out: &mut Vec<HttpTask>) -> Result<()> {
        let State::Encoding { encoder, offer, .. } = &mut self.state else { return Ok(()) };
        // All of what is stored is at hand.
        if std::mem::take(&mut self.unflushed) && offer.is_none() {
            write(encoder.encode(&[], Then::Flush)?, offer, out);
        }
        Ok(())
    }
}

fn write(encoded: Bytes, offer: &mut Option<Offer>, out: &mut Vec<HttpTask>) {
    if encoded.is_empty() {
        return;
    }
    if let Some(offer) = offer {
        offer.chunks.push(encoded.clone());
    }
    out.push(HttpTask::Body(Some(encoded), false));
}

fn body_size(task: &HttpTask) -> usize {
    match task {
        HttpTask::Body(Some(data), _) => data.len(),
        _ => 0,
    }
}

fn encoder(compress: &Compress, encoding: Encoding, length: Option<u64>) -> Result<Box<Counted>> {
    let encoder = Encoder::new(encoding, compress.level(encoding), length)
        .or_err(ErrorType::InternalError, "an encoder cannot be made")?;
    Ok(Box::new(Counted { encoder, counters: Arc::clone(&compress.counters), bytes_in: 0, bytes_out: 0 }))
}
