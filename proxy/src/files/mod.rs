//! The files of a folder as answers: which file a request names, whether the client has it already, and which part of it is wanted.
//! What reads from disk runs on the runtime's threads for that, never on a worker.

mod open;
pub(crate) mod wanted;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderValue,
    LAST_MODIFIED, LOCATION, VARY,
};
use http::{Method, StatusCode};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use pingora::{Error, ErrorType, OrErr, Result};
use selvedge_config::{Encoding, PathMatch};

use self::open::{Found, Opened};
use self::wanted::{Part, Verdict};
use crate::request::{RequestCtx, actions, respond};

/// How much is read at once.
const CHUNK: usize = 128 * 1024;

/// A folder whose files are served.
pub(crate) struct Files {
    folder: Arc<Folder>,
    /// The part of the path that stands for the folder.
    prefix: String,
}

/// What is the same for all requests.
struct Folder {
    root: PathBuf,
    index: String,
    fallback: Option<String>,
    precompressed: Vec<Encoding>,
}

impl Files {
    /// # Errors
    /// The folder is none, or cannot be read.
    pub(crate) fn of(written: &selvedge_config::Files, when: &PathMatch) -> std::result::Result<Self, String> {
        let folder = Folder {
            root: written.root.clone(),
            index: written.index.clone(),
            fallback: written.fallback.clone(),
            precompressed: written.precompressed.clone(),
        };
        folder.check().map_err(|error| format!("files cannot be served from {}: {error}", written.root.display()))?;
        let prefix = match when {
            PathMatch::Prefix(prefix) => prefix.trim_end_matches('/').to_owned(),
            PathMatch::Exact(_) | PathMatch::Pattern { .. } | PathMatch::Regex(_) => String::new(),
        };
        Ok(Self { folder: Arc::new(folder), prefix })
    }

    /// The folder, for those who ask about the configuration.
    pub(crate) fn root(&self) -> &std::path::Path {
        &self.folder.root
    }
}

/// Answers a request with the file it names.
///
/// # Errors
/// The client has gone, or the file cannot be read to its end: then what was sent is cut off.
pub(crate) async fn answer(session: &mut Session, files: &Files, ctx: &RequestCtx) -> Result<()> {
    let request = session.req_header();
    if request.method != Method::GET && request.method != Method::HEAD {
        let status =
            if request.method == Method::OPTIONS { StatusCode::NO_CONTENT } else { StatusCode::METHOD_NOT_ALLOWED };
        let mut header = ResponseHeader::build(status, Some(4))?;
        header.insert_header(ALLOW, HeaderValue::from_static("GET, HEAD, OPTIONS"))?;
        if status != StatusCode::NO_CONTENT {
            header.set_content_length(0)?;
        }
        return send(session, header, ctx).await;
    }

    // Filters may have changed the path since the route was found.
    let Some(path) = request.uri.path().strip_prefix(&files.prefix).map(ToOwned::to_owned) else {
        return not_found(session, ctx).await;
    };
    let accepted = wanted::encodings(&request.headers, &files.folder.precompressed);
    let folder = Arc::clone(&files.folder);
    let found = tokio::task::spawn_blocking(move || folder.find(&path, &accepted)).await;
    match found.or_err(ErrorType::InternalError, "looking for a file")? {
        Found::File(opened) => file(session, opened, files, ctx).await,
        Found::Folder => to_folder(session, ctx).await,
        Found::Nothing => not_found(session, ctx).await,
        Found::Failed(error) => {
            tracing::warn!(root = %files.folder.root.display(), %error, "a file cannot be read");
            Error::e_explain(ErrorType::HTTPStatus(500), "a file cannot be read")
        }
    }
}

async fn file(session: &mut Session, opened: Opened, files: &Files, ctx: &RequestCtx) -> Result<()> {
    let request = session.req_header();
    let verdict = wanted::judge(request, &opened);
    let size = opened.size;
    let (status, part) = match verdict {
        Verdict::Whole => (StatusCode::OK, Part { start: 0, length: size }),
        Verdict::Part(part) => (StatusCode::PARTIAL_CONTENT, part),
        Verdict::NotModified => (StatusCode::NOT_MODIFIED, Part::NONE),
        Verdict::Failed => (StatusCode::PRECONDITION_FAILED, Part::NONE),
        Verdict::OutOfRange => (StatusCode::RANGE_NOT_SATISFIABLE, Part::NONE),
    };
    let mut header = ResponseHeader::build(status, Some(12))?;
    header.insert_header(ETAG, opened.etag.clone())?;
    header.insert_header(LAST_MODIFIED, opened.last_modified.clone())?;
    header.insert_header(ACCEPT_RANGES, HeaderValue::from_static("bytes"))?;
    if !files.folder.precompressed.is_empty() {
        header.insert_header(VARY, HeaderValue::from_static("Accept-Encoding"))?;
    }
    match verdict {
        Verdict::OutOfRange => header.insert_header(CONTENT_RANGE, format!("bytes */{size}"))?,
        Verdict::Part(Part { start, length }) => {
            header.insert_header(CONTENT_RANGE, format!("bytes {start}-{}/{size}", start + length - 1))?;
        }
        Verdict::Whole | Verdict::NotModified | Verdict::Failed => {}
    }
    if matches!(verdict, Verdict::Whole | Verdict::Part(_)) {
        header.insert_header(CONTENT_TYPE, opened.content_type.clone())?;
        if let Some(encoding) = opened.encoding {
            header.insert_header(CONTENT_ENCODING, HeaderValue::from_static(wanted::coding(encoding)))?;
        }
    }
    if verdict != Verdict::NotModified {
        header.set_content_length(usize::try_from(part.length).unwrap_or(usize::MAX))?;
    }
    let head = request.method == Method::HEAD;
    dress(session.req_header(), &mut header, ctx)?;
    if head || part.length == 0 {
        return respond::whole(&mut session.downstream_session, Box::new(header), Bytes::new()).await;
    }
    session.write_response_header(Box::new(header), false).await?;
    body(session, Arc::new(opened.file), part).await
}

/// Sends a part of a file. One chunk is read while the one before is sent.
async fn body(session: &mut Session, file: Arc<File>, part: Part) -> Result<()> {
    let end = part.start + part.length;
    let mut next = part.start;
    while next < end {
        let length = usize::try_from(end - next).unwrap_or(CHUNK).min(CHUNK);
        let (file, from) = (Arc::clone(&file), next);
        let read = tokio::task::spawn_blocking(move || {
            let mut chunk = vec![0; length];
            file.read_exact_at(&mut chunk, from).map(|()| chunk)
        });
        // Shorter than it was: what is missing is never made up.
        let chunk = read.await.or_err(ErrorType::InternalError, "reading a file")?;
        let chunk = chunk.or_err(ErrorType::InternalError, "a file has become shorter while it was sent")?;
        next += length as u64;
        session.write_response_body(Some(Bytes::from(chunk)), next == end).await?;
    }
    Ok(())
}

/// 308 to the folder's own name, which ends with a slash, so that what its page refers to is found beside it.
async fn to_folder(session: &mut Session, ctx: &RequestCtx) -> Result<()> {
    let uri = &session.req_header().uri;
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    // With one slash in front: two would name a host (RFC 3986, 4.2).
    let location = format!("/{}/{query}", uri.path().trim_start_matches('/'));
    let mut header = ResponseHeader::build(StatusCode::PERMANENT_REDIRECT, Some(3))?;
    header.insert_header(LOCATION, location)?;
    header.set_content_length(0)?;
    send(session, header, ctx).await
}

async fn not_found(session: &mut Session, ctx: &RequestCtx) -> Result<()> {
    const TEXT: &str = "404 Not Found\n";
    let mut header = ResponseHeader::build(StatusCode::NOT_FOUND, Some(5))?;
    header.insert_header(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"))?;
    header.insert_header(CACHE_CONTROL, HeaderValue::from_static("no-store"))?;
    header.set_content_length(TEXT.len())?;
    dress(session.req_header(), &mut header, ctx)?;
    if session.req_header().method == Method::HEAD {
        return respond::whole(&mut session.downstream_session, Box::new(header), Bytes::new()).await;
    }
    respond::whole(&mut session.downstream_session, Box::new(header), Bytes::from_static(TEXT.as_bytes())).await
}

/// A header alone.
async fn send(session: &mut Session, mut header: ResponseHeader, ctx: &RequestCtx) -> Result<()> {
    dress(session.req_header(), &mut header, ctx)?;
    respond::whole(&mut session.downstream_session, Box::new(header), Bytes::new()).await
}

/// What the route adds to its responses.
fn dress(request: &RequestHeader, header: &mut ResponseHeader, ctx: &RequestCtx) -> Result<()> {
    actions::on_response(request, header, ctx)?;
    ctx.note(|state| state.details = Some("direct_response".into()));
    Ok(())
}
