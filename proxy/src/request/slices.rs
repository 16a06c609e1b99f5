//! Large objects in slices: a route with `cache.slice` keeps equal parts of an object, each under a key of its own, and fetches only those
//! a request needs. Who wants the last minute of a film does not make the origin send all of it.
//!
//! ```text
//! request ──> which slices? ──> one request inside for each ──> admit .. lookup ── hit ──────────────> its bytes
//!                 │                                                └─ miss ─> forward with Range ─> 206 is stored
//!                 └──> one response of their bytes, 200 or 206; the next slice is asked for while one is sent
//! ```
//!
//! The requests inside are Pingora's subrequests: they pass through every step but the filters, share fills like all others, and leave no
//! line in the access log. Inside, a slice is a `200` with `Content-Range`: partial responses are not stored otherwise. An origin that
//! does not know ranges is remembered for a while, and its objects go the usual way.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderValue,
    IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, LAST_MODIFIED, RANGE, TRANSFER_ENCODING,
};
use http::{Method, StatusCode};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::HttpTask;
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};
use selvedge_cache::{Purge, Scope, Wishes};
use tokio::sync::mpsc;

use super::{Edge, RequestCtx, leader, lookup, respond, step};
use crate::cluster;
use crate::files::wanted::{self, Part, Validators, Verdict};
use crate::plan::Route;

/// For how long an origin that answered a request for a slice with something else is not asked for slices of that object.
const WHOLE_FOR: Duration = Duration::from_secs(120);
/// How many objects that is remembered of, for each route.
const WHOLE_KEYS: u64 = 10_000;

/// How a route slices.
pub(crate) struct Slices {
    /// The length of a slice, in bytes. Above zero.
    size: u64,
    /// Objects whose origin does not know ranges, by a hash of their URL. A collision costs a slice, not correctness.
    whole: moka::sync::Cache<u64, ()>,
    hasher: RandomState,
}

impl Slices {
    pub(crate) fn of(size: u64) -> Self {
        let whole = moka::sync::Cache::builder().max_capacity(WHOLE_KEYS).time_to_live(WHOLE_FOR).build();
        Self { size: size.max(1), whole, hasher: RandomState::new() }
    }

    fn object(&self, request: &RequestHeader) -> u64 {
        self.hasher.hash_one((request.headers.get(http::header::HOST), &request.uri))
    }
}

/// The slice that a request inside is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slice {
    start: u64,
    size: u64,
    /// The origin has answered with something else.
    refused: bool,
}

impl Slice {
    /// What another node is told.
    pub(crate) fn to_text(self) -> String {
        format!("{}/{}", self.start, self.size)
    }

    /// What another node has told.
    pub(crate) fn of_text(text: &str) -> Option<Self> {
        let (start, size) = text.split_once('/')?;
        let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        let (start, size): (u64, u64) = (number(start)?, number(size)?);
        let sound = size > 0 && start % size == 0 && start.checked_add(size).is_some();
        sound.then_some(Self { start, size, refused: false })
    }
}

/// A request inside begins: whatever part of the object the client wanted, this is about one slice.
pub(super) fn arrive(session: &mut Session, ctx: &mut RequestCtx) -> Result<()> {
    let user = session.subrequest_ctx.as_ref().and_then(|inside| inside.user_ctx());
    let Some(slice) = user.and_then(|user| user.downcast_ref::<Slice>()).copied() else { return Ok(()) };
    let request = session.downstream_session.req_header_mut();
    for name in [RANGE, IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE, IF_RANGE] {
        request.remove_header(&name);
    }
    request.set_method(Method::GET);
    let part = |number: u64| Bytes::copy_from_slice(&number.to_be_bytes());
    let key_parts = vec![Bytes::from_static(b"slice"), part(slice.size), part(slice.start)];
    ctx.cache.wish(Wishes { key_parts, ..Wishes::default() });
    // Who reads it may be slow: the slice is fetched at the origin's pace all the same.
    session.downstream_session.set_proxy_tasks_enabled(true);
    ctx.slice = Some(Box::new(slice));
    Ok(())
}

/// What the origin is asked for.
pub(super) fn range(request: &mut RequestHeader, ctx: &RequestCtx) -> Result<()> {
    if let Some(slice) = &ctx.slice {
        request.insert_header(RANGE, format!("bytes={}-{}", slice.start, slice.start + slice.size - 1))?;
    }
    Ok(())
}

/// The origin has answered: the part it was asked for, exactly, or something that is not stored as a slice.
pub(super) fn accept(response: &mut ResponseHeader, ctx: &mut RequestCtx) -> Result<()> {
    let of_node = cluster::ask::is_asking(ctx);
    let Some(slice) = &mut ctx.slice else { return Ok(()) };
    match response.status {
        // Another node has done this already.
        StatusCode::OK if of_node && Place::of(response).is_some_and(|place| place.is(slice.start, slice.size)) => {}
        StatusCode::PARTIAL_CONTENT => match Place::of(response) {
            Some(place) if place.is(slice.start, slice.size) => response.set_status(StatusCode::OK)?,
            _ => slice.refused = true,
        },
        StatusCode::OK => {
            response.remove_header(&CONTENT_RANGE); // it would be taken for a slice
            slice.refused = true;
        }
        _ => {}
    }
    Ok(())
}

/// Whether the response, which was asked for as a slice, is none.
pub(super) fn is_refused(ctx: &RequestCtx) -> bool {
    ctx.slice.as_ref().is_some_and(|slice| slice.refused)
}

/// `Content-Range` of bytes (RFC 9110, 14.4): where they are in an object of known length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    first: u64,
    last: u64,
    total: u64,
}

impl Place {
    fn of(response: &ResponseHeader) -> Option<Self> {
        let text = response.headers.get(CONTENT_RANGE)?.to_str().ok()?;
        let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        let place = Self { first: number(first)?, last: number(last)?, total: number(total)? };
        (place.first <= place.last && place.last < place.total).then_some(place)
    }

    fn length(self) -> u64 {
        self.last - self.first + 1
    }

    /// Whether it is the slice of this size that begins there.
    fn is(self, start: u64, size: u64) -> bool {
        self.first == start && self.length() == size.min(self.total - start)
    }
}

/// Answers with slices, on routes that keep some, where the request is for what others may be given, too; true when it has.
///
/// # Errors
/// The client has gone, or a slice cannot be had: then what was sent is cut off.
pub(super) async fn answer(edge: &Edge, session: &mut Session, route: &Route, ctx: &mut RequestCtx) -> Result<bool> {
    let Some(slices) = route.cache.as_ref().and_then(|cache| cache.slices.as_ref()) else { return Ok(false) };
    let request = session.req_header();
    let usual = session.subrequest_ctx.is_some()
        || (request.method != Method::GET && request.method != Method::HEAD)
        || request.headers.contains_key(AUTHORIZATION)
        || request.headers.contains_key(IF_MATCH)
        || request.headers.contains_key(IF_UNMODIFIED_SINCE)
        || (route.cache.as_ref().is_some_and(|cache| cache.policy.honour_request_directives)
            && request.headers.contains_key(CACHE_CONTROL))
        || slices.whole.contains_key(&slices.object(request))
        || !lookup::can_be_repeated(session, ctx, &edge.listener);
    if usual {
        return Ok(false);
    }
    step!(ctx, "slices");
    ctx.sliced = true;
    leader::readable(session, ctx);
    Box::pin(Response::begin(session, slices)?.send(session, slices, ctx)).await?;
    Ok(true)
}

/// A slice on its way.
struct Incoming {
    tasks: mpsc::Receiver<HttpTask>,
    /// The request inside takes its end for the client's leaving.
    _body: mpsc::Sender<HttpTask>,
    ended: bool,
}

impl Incoming {
    /// Asks for a slice.
    fn ask(session: &Session, start: u64, size: u64) -> Result<Self> {
        use pingora::proxy::subrequest::Ctx;
        let Some(spawner) = &session.subrequest_spawner else {
            return Error::e_explain(ErrorType::InternalError, "requests inside cannot be made");
        };
        let inside = Ctx::builder().user_ctx(Box::new(Slice { start, size, refused: false })).build();
        let (request, handle) = spawner.create_subrequest(session.as_ref(), inside);
        tokio::spawn(request.run());
        Ok(Self { tasks: handle.rx, _body: handle.tx, ended: false })
    }

    async fn header(&mut self) -> Result<Box<ResponseHeader>> {
        loop {
            match self.tasks.recv().await {
                Some(HttpTask::Header(header, end)) => {
                    self.ended |= end;
                    if !header.status.is_informational() {
                        return Ok(header);
                    }
                }
                Some(HttpTask::Failed(error)) => return Err(error),
                Some(_) => {}
                None => return Err(short("no header")),
            }
        }
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>> {
        while !self.ended {
            match self.tasks.recv().await {
                Some(HttpTask::Body(data, end)) => {
                    self.ended = end;
                    if let Some(data) = data.filter(|data| !data.is_empty()) {
                        return Ok(Some(data));
                    }
                }
                Some(HttpTask::Failed(error)) => return Err(error),
                Some(HttpTask::Done | HttpTask::Trailer(_)) => self.ended = true,
                Some(HttpTask::Header(..) | HttpTask::UpgradedBody(..)) => {}
                None => return Err(short("no end")),
            }
        }
        Ok(None)
    }
}

impl Drop for Incoming {
    /// Others may read along: what has begun is fetched to its end, which is at most a slice away.
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let (_, nothing) = mpsc::channel(1);
        let mut tasks = std::mem::replace(&mut self.tasks, nothing);
        tokio::spawn(async move { while tasks.recv().await.is_some() {} });
    }
}

fn short(what: &str) -> Box<Error> {
    Error::explain(ErrorType::ConnectionClosed, format!("a slice has {what}")).into_up()
}

/// The response that is put together.
struct Response {
    head: bool,
    /// The slice that is at hand, and where it begins.
    slice: Incoming,
    start: u64,
}

impl Response {
    /// Asks for the slice in which what the client wants begins, as far as that can be known yet.
    fn begin(session: &Session, slices: &Slices) -> Result<Self> {
        let request = session.req_header();
        let first = request.headers.get(RANGE).and_then(|range| {
            let first = range.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?.0.trim();
            first.parse::<u64>().ok()
        });
        let start = first.map_or(0, |first| first - first % slices.size);
        let head = request.method == Method::HEAD;
        Ok(Self { head, slice: Incoming::ask(session, start, slices.size)?, start })
    }

    async fn send(mut self, session: &mut Session, slices: &Slices, ctx: &mut RequestCtx) -> Result<()> {
        let mut header = self.slice.header().await?;
        let Some(mut place) = Place::of(&header).filter(|_| header.status == StatusCode::OK) else {
            return self.pass_on(session, header, slices).await;
        };
        let validators = Validators::of(&header.headers);
        let verdict = wanted::verdict(&session.req_header().headers, validators, place.total);
        let part = match verdict {
            Verdict::Whole => Part { start: 0, length: place.total },
            Verdict::Part(part) => part,
            Verdict::NotModified | Verdict::Failed | Verdict::OutOfRange => Part::NONE,
        };
        let needed = part.start - part.start % slices.size;
        if part.length > 0 && needed != self.start && !self.head {
            // A range from the end, or one that does not count after all.
            self = Self { slice: Incoming::ask(session, needed, slices.size)?, start: needed, ..self };
            let other = self.slice.header().await?;
            place = same_object(&header, &other, needed, slices.size).ok_or_else(|| changed(session, ctx))?;
        }

        dress(&mut header, verdict, part, place.total)?;
        let stored = Version::of(&header);
        let bodiless = self.head || part.length == 0;
        session.write_response_header(header, bodiless).await?;
        if bodiless {
            return Ok(());
        }

        let end = part.start + part.length;
        let mut position = part.start;
        loop {
            let following = self.start + slices.size;
            // Asked for while this one is sent, so that the origin's time to the first byte is not waited for again and again.
            let next = (following < end).then(|| Incoming::ask(session, following, slices.size)).transpose()?;
            let mut offset = self.start;
            while let Some(data) = self.slice.chunk().await? {
                let from = position.saturating_sub(offset).min(data.len() as u64);
                let to = end.saturating_sub(offset).min(data.len() as u64);
                offset += data.len() as u64;
                let wanted = data.slice(index(from)..index(to.max(from)));
                if !wanted.is_empty() {
                    position += wanted.len() as u64;
                    session.write_response_body(Some(wanted), position == end).await?;
                }
                if position == end {
                    return Ok(());
                }
            }
            let Some(next) = next.filter(|_| position == following) else { return Err(short("too few bytes")) };
            self = Self { slice: next, start: following, ..self };
            let other = self.slice.header().await?;
            let fits = Place::of(&other).is_some_and(|place| place.is(following, slices.size));
            if other.status != StatusCode::OK || !fits || Version::of(&other) != stored {
                return Err(changed(session, ctx));
            }
        }
    }

    /// What is no slice goes to the client as it is: an error, a redirect, or all of an object whose origin does not know ranges.
    async fn pass_on(mut self, session: &mut Session, header: Box<ResponseHeader>, slices: &Slices) -> Result<()> {
        if header.status.is_success() {
            slices.whole.insert(slices.object(session.req_header()), ());
        }
        if self.head || self.slice.ended {
            return respond::whole(&mut session.downstream_session, header, Bytes::new()).await;
        }
        session.write_response_header(header, false).await?;
        while let Some(data) = self.slice.chunk().await? {
            session.write_response_body(Some(data), false).await?;
        }
        session.write_response_body(None, true).await
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// What tells versions of an object apart.
#[derive(Debug, PartialEq, Eq)]
struct Version(Option<HeaderValue>, Option<HeaderValue>);

impl Version {
    fn of(header: &ResponseHeader) -> Self {
        Self(header.headers.get(ETAG).cloned(), header.headers.get(LAST_MODIFIED).cloned())
    }
}

/// Where the second slice is, if both are of one version of the object.
fn same_object(one: &ResponseHeader, other: &ResponseHeader, start: u64, size: u64) -> Option<Place> {
    let (first, place) = (Place::of(one)?, Place::of(other)?);
    let same = other.status == StatusCode::OK
        && place.is(start, size)
        && place.total == first.total
        && Version::of(one) == Version::of(other);
    same.then_some(place)
}

/// The slices that are kept are of different versions: none of them is kept any longer, and this response ends short.
fn changed(session: &Session, ctx: &RequestCtx) -> Box<Error> {
    if let (Some(cache), Some(rule)) = (ctx.plan.cache, ctx.route.as_ref().and_then(|route| route.cache.as_ref())) {
        let request = session.req_header();
        let authority = selvedge_cache::key::authority(request);
        let target = request.uri.path_and_query().map_or("/", |target| target.as_str());
        let scopes = [Scope::url(&rule.policy.query, &authority, target), Scope::any_query(&authority, target)];
        cache.purge(&scopes, Purge::Hard);
    }
    Error::explain(ErrorType::InvalidHTTPHeader, "the object has changed since other slices were stored").into_up()
}

/// Makes the header of a slice that of the response.
fn dress(header: &mut ResponseHeader, verdict: Verdict, part: Part, total: u64) -> Result<()> {
    for name in [CONTENT_RANGE, CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION] {
        header.remove_header(&name);
    }
    header.insert_header(ACCEPT_RANGES, HeaderValue::from_static("bytes"))?;
    header.set_status(match verdict {
        Verdict::Whole => StatusCode::OK,
        Verdict::Part(_) => StatusCode::PARTIAL_CONTENT,
        Verdict::NotModified => StatusCode::NOT_MODIFIED,
        Verdict::Failed => StatusCode::PRECONDITION_FAILED,
        Verdict::OutOfRange => StatusCode::RANGE_NOT_SATISFIABLE,
    })?;
    match verdict {
        Verdict::Part(Part { start, length }) => {
            header.insert_header(CONTENT_RANGE, format!("bytes {start}-{}/{total}", start + length - 1))?;
        }
        Verdict::OutOfRange => header.insert_header(CONTENT_RANGE, format!("bytes */{total}"))?,
        Verdict::Whole | Verdict::NotModified | Verdict::Failed => {}
    }
    if verdict != Verdict::NotModified {
        header.set_content_length(index(part.length))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_parts_are_slices() {
        for (text, expected) in [
            ("bytes 0-9/100", Some((0, 9, 100))),
            ("bytes 90-99/100", Some((90, 99, 100))),
            ("bytes 90-100/100", None),
            ("bytes 9-0/100", None),
            ("bytes */100", None),
            ("bytes 0-9/*", None),
            ("bytes +0-9/100", None),
            ("items 0-9/100", None),
        ] {
            let mut header = ResponseHeader::build(206, None).unwrap();
            header.insert_header(CONTENT_RANGE, text).unwrap();
            let place = Place::of(&header).map(|place| (place.first, place.last, place.total));
            assert_eq!(place, expected, "{text}");
        }
        for (text, expected) in
            [("0/10", true), ("20/10", true), ("5/10", false), ("0/0", false), ("/", false), ("0/-1", false)]
        {
            let slice = Slice::of_text(text);
            assert_eq!(slice.map(Slice::to_text), expected.then(|| text.to_owned()));
        }
        let place = Place { first: 90, last: 99, total: 100 };
        assert!(place.is(90, 10) && place.is(90, 30) && !place.is(90, 5) && !place.is(80, 10));
    }
}
