//! Which pages of other origins may use a route: preflights, and the fields of every other response (CORS, the Fetch standard, 3.2).

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD,
    HeaderName, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Method};
use pingora::Result;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use selvedge_config::Origin;

use super::{RequestCtx, respond};

/// What a route says, ready to be written.
pub(crate) struct Cors {
    origins: Vec<Origin>,
    methods: Option<HeaderValue>,
    headers: Option<HeaderValue>,
    expose: Option<HeaderValue>,
    credentials: bool,
    max_age: Option<u64>,
}

/// What a response says about it is this node's to say.
const OURS: [HeaderName; 6] = [
    ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_ALLOW_CREDENTIALS,
    ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_HEADERS,
    ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_MAX_AGE,
];

impl Cors {
    /// # Errors
    /// A name that cannot be written; the loader has refused those before.
    pub(crate) fn of(written: &selvedge_config::Cors) -> std::result::Result<Self, String> {
        let list = |names: &[String]| {
            let joined = names.join(", ");
            let value = (!names.is_empty()).then(|| HeaderValue::from_str(&joined));
            value.transpose().map_err(|_| joined.clone())
        };
        Ok(Self {
            origins: written.origins.clone(),
            methods: list(&written.methods)?,
            headers: list(&written.headers)?,
            expose: list(&written.expose)?,
            credentials: written.credentials,
            max_age: written.max_age.map(|age| age.as_secs()),
        })
    }

    /// Whether pages of this origin may use the route, and what the response says then.
    fn allowed(&self, origin: &HeaderValue) -> Option<HeaderValue> {
        let text = origin.to_str().ok()?;
        self.origins.iter().find_map(|allowed| match allowed {
            Origin::Any => Some(HeaderValue::from_static("*")),
            Origin::Exact(exact) => (exact == text).then(|| origin.clone()),
            Origin::Wildcard(before, after) => {
                let label = text.strip_prefix(before.as_str())?.strip_suffix(after.as_str())?;
                let is_label =
                    !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
                is_label.then(|| origin.clone())
            }
        })
    }

    /// Whether the answer depends on whose page asks.
    fn varies(&self) -> bool {
        self.origins != [Origin::Any]
    }

    /// What every response says, to whoever asks; what others have said about it is replaced.
    ///
    /// # Errors
    /// None: the values are valid.
    pub(crate) fn mark(&self, request: &HeaderMap, response: &mut ResponseHeader) -> Result<()> {
        for name in &OURS {
            response.remove_header(name);
        }
        if self.varies() {
            response.append_header(VARY, HeaderValue::from_static("Origin"))?;
        }
        let Some(allowed) = request.get(ORIGIN).and_then(|origin| self.allowed(origin)) else { return Ok(()) };
        response.insert_header(ACCESS_CONTROL_ALLOW_ORIGIN, allowed)?;
        if self.credentials {
            response.insert_header(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"))?;
        }
        if let Some(expose) = &self.expose {
            response.insert_header(ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone())?;
        }
        Ok(())
    }

    /// The answer to a preflight: 204 with what is allowed, or 403 to pages of origins that may not use the route.
    fn preflight(&self, request: &RequestHeader) -> Result<ResponseHeader> {
        let allowed = request.headers.get(ORIGIN).and_then(|origin| self.allowed(origin));
        let mut response = ResponseHeader::build(if allowed.is_some() { 204 } else { 403 }, Some(8))?;
        let varies = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers";
        response.insert_header(VARY, HeaderValue::from_static(varies))?;
        let Some(allowed) = allowed else {
            response.set_content_length(0)?;
            return Ok(response);
        };
        response.insert_header(ACCESS_CONTROL_ALLOW_ORIGIN, allowed)?;
        if self.credentials {
            response.insert_header(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"))?;
        }
        if let Some(methods) = &self.methods {
            response.insert_header(ACCESS_CONTROL_ALLOW_METHODS, methods.clone())?;
        }
        if let Some(headers) = &self.headers {
            response.insert_header(ACCESS_CONTROL_ALLOW_HEADERS, headers.clone())?;
        }
        if let Some(seconds) = self.max_age {
            response.insert_header(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(seconds))?;
        }
        Ok(response)
    }
}

/// What a response says that passes no filter; others are marked when they leave the filters.
///
/// # Errors
/// None: the values are valid.
pub(crate) fn mark(request: &RequestHeader, response: &mut ResponseHeader, ctx: &RequestCtx) -> Result<()> {
    match ctx.route.as_ref().and_then(|route| route.cors.as_ref()) {
        Some(cors) if ctx.slot.is_none() && !response.status.is_informational() => {
            cors.mark(&request.headers, response)
        }
        _ => Ok(()),
    }
}

/// A browser asks whether it may send a request (Fetch, 4.8).
fn is_preflight(request: &RequestHeader) -> bool {
    request.method == Method::OPTIONS
        && request.headers.contains_key(ORIGIN)
        && request.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// Answers a preflight; true when it was one. It carries no credentials, so that no filter could let it through that asks for some.
///
/// # Errors
/// The client has gone.
pub(crate) async fn preflight(session: &mut Session, cors: &Cors) -> Result<bool> {
    if !is_preflight(session.req_header()) {
        return Ok(false);
    }
    let response = cors.preflight(session.req_header())?;
    respond::whole(&mut session.downstream_session, Box::new(response), Bytes::new()).await?;
    Ok(true)
}
