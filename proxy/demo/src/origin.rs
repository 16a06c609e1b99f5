//! Which endpoint answers, and the endpoints that fit in a line or two.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::header::{ACCEPT_LANGUAGE, CONTENT_LANGUAGE, CONTENT_TYPE, HeaderName, VARY};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::json;
use tokio::sync::watch;

use crate::answer::{self, Body, Refusal};
use crate::content::{self, set};
use crate::count::Counts;
use crate::query::Query;
use crate::serve::Busy;
use crate::{assets, echo, stream, websocket};

const X_ORIGIN: HeaderName = HeaderName::from_static("x-origin");
const X_ORIGIN_REQUESTS: HeaderName = HeaderName::from_static("x-origin-requests");
const X_ORIGIN_COUNT: HeaderName = HeaderName::from_static("x-origin-count");
const X_USER: HeaderName = HeaderName::from_static("x-user");

/// The longest lifetime `/cache` gives, and the longest stale window: a year.
const YEAR: u64 = 31_536_000;
/// The longest list of tags.
const LONGEST_TAGS: usize = 256;

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Origin {
    name: String,
    header: HeaderValue,
    requests: AtomicU64,
    counts: Counts,
}

/// Where a request comes from, and what its answer needs to know of the connection.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) address: SocketAddr,
    /// Turns true when the origin stops.
    pub(crate) stopped: watch::Receiver<bool>,
    /// Held for as long as the answer is under way, an upgraded connection included.
    #[allow(dead_code, reason = "it is the holding that counts")]
    pub(crate) busy: Busy,
}

impl Origin {
    pub(crate) fn new(name: &str) -> io::Result<Origin> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if !(1..=64).contains(&name.len()) || !name.bytes().all(is_plain) {
            let fault = format!("the name {name:?} of a demo origin is not 1 to 64 letters, digits, '-', '_' or '.'");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, fault));
        }
        let header = HeaderValue::from_str(name).map_err(io::Error::other)?;
        Ok(Origin { name: name.to_owned(), header, requests: AtomicU64::new(0), counts: Counts::default() })
    }

    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub(crate) async fn answer(self: Arc<Self>, request: Request<Incoming>, client: Client) -> Response<Body> {
        let requests = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let mut response = self.select(request, client).await.unwrap_or_else(Refusal::into_response);
        response.headers_mut().insert(X_ORIGIN, self.header.clone());
        response.headers_mut().insert(X_ORIGIN_REQUESTS, HeaderValue::from(requests));
        response
    }

    async fn select(&self, mut request: Request<Incoming>, client: Client) -> Result<Response<Body>, Refusal> {
        // An asterisk (OPTIONS *) or an authority (CONNECT) is no path.
        let path = request.uri().path().to_owned();
        let (first, rest) = path.strip_prefix('/').map_or((path.as_str(), None), |path| match path.split_once('/') {
            Some((first, rest)) => (first, Some(rest)),
            None => (path, None),
        });
        match (first, rest) {
            ("echo", None) => return echo::answer(request, &client).await,
            ("status", Some(code)) => return status(code),
            ("private", None) => return Ok(private(request.headers())),
            ("upstream", None) => return Ok(answer::json("no-store", &json!({ "origin": self.name }))),
            ("ws", None) => return websocket::answer(&mut request, client),
            _ => {}
        }

        let is_known = matches!(
            (first, rest),
            ("" | "vary" | "slow" | "large" | "sse" | "trailers", None) | ("static" | "cache", Some(_))
        );
        if is_known && !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Err(Refusal::method_not_allowed("GET, HEAD"));
        }
        let query = Query(request.uri().query().unwrap_or_default());
        match (first, rest) {
            ("", None) => Ok(assets::page(&self.name)),
            ("static", Some(_)) => assets::file(&path, request.method(), request.headers()),
            ("cache", Some(lifetime)) => self.cache(&path, lifetime, query),
            ("vary", None) => self.vary(&path, request.headers()),
            ("slow", None) => stream::slow(query).await,
            ("large", None) => stream::large(query, request.method(), request.headers()),
            ("sse", None) => stream::events(query),
            ("trailers", None) => Ok(stream::trailers(&request)),
            _ => Err(Refusal::not_found(&path)),
        }
    }

    /// `/cache/{n}` and below.
    fn cache(&self, path: &str, rest: &str, query: Query<'_>) -> Result<Response<Body>, Refusal> {
        let lifetime = rest.split_once('/').map_or(rest, |(lifetime, _)| lifetime);
        let lifetime: u64 =
            lifetime.parse().ok().filter(|lifetime| *lifetime <= YEAR).ok_or_else(|| {
                Refusal::bad_request(format!("After /cache/ comes a number of seconds, at most {YEAR}."))
            })?;
        let mut cache_control = format!("max-age={lifetime}");
        for (parameter, directive) in [("swr", "stale-while-revalidate"), ("sie", "stale-if-error")] {
            if query.get(parameter).is_some() {
                cache_control += &format!(", {directive}={}", query.number(parameter, 0, 0..=YEAR)?);
            }
        }
        let tags = query.get("tag").map(tags).transpose()?;

        let count = self.counts.count(path)?;
        let value = json!({ "origin": self.name, "path": path, "max_age": lifetime, "origin_count": count });
        let mut response = answer::json(&cache_control, &value);
        response.headers_mut().insert(X_ORIGIN_COUNT, HeaderValue::from(count));
        if let Some(tags) = tags {
            // Both names are in use: Fastly separates by spaces, others by commas.
            set(response.headers_mut(), HeaderName::from_static("surrogate-key"), &tags.replace(',', " "));
            set(response.headers_mut(), HeaderName::from_static("cache-tag"), tags);
        }
        Ok(response)
    }

    /// `/vary`
    fn vary(&self, path: &str, headers: &HeaderMap) -> Result<Response<Body>, Refusal> {
        let (language, greeting) = negotiate(headers);
        let count = self.counts.count(path)?;
        let value = json!({ "origin": self.name, "language": language, "greeting": greeting, "origin_count": count });
        let mut response = answer::json(content::CACHE_CONTROL, &value);
        let headers = response.headers_mut();
        headers.insert(VARY, HeaderValue::from_name(ACCEPT_LANGUAGE));
        headers.insert(CONTENT_LANGUAGE, HeaderValue::from_static(language));
        headers.insert(X_ORIGIN_COUNT, HeaderValue::from(count));
        Ok(response)
    }
}

/// `/status/{code}`
fn status(code: &str) -> Result<Response<Body>, Refusal> {
    let status =
        code.parse().ok().filter(|code| (200..=599).contains(code)).and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or_else(|| Refusal::bad_request("After /status/ comes a final status, 200 to 599."))?;
    let mut response = answer::text(status, format!("{status}\n"));
    // These have no body (RFC 9110, 15.3.5, 15.3.6 and 15.4.5).
    if [StatusCode::NO_CONTENT, StatusCode::RESET_CONTENT, StatusCode::NOT_MODIFIED].contains(&status) {
        *response.body_mut() = answer::whole("");
        response.headers_mut().remove(CONTENT_TYPE);
    }
    Ok(response)
}

/// `/private`
fn private(headers: &HeaderMap) -> Response<Body> {
    let user = headers.get(X_USER).map(|user| String::from_utf8_lossy(user.as_bytes()));
    answer::json("private, no-store", &json!({ "user": user }))
}

/// A comma-separated list of tags that is safe in a header.
fn tags(list: &str) -> Result<&str, Refusal> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:,".contains(&byte);
    if !(1..=LONGEST_TAGS).contains(&list.len()) || !list.bytes().all(is_plain) {
        return Err(Refusal::bad_request(format!(
            "Tags are letters, digits and -_.: with commas between, at most {LONGEST_TAGS} characters."
        )));
    }
    Ok(list)
}

/// The language with the highest weight among those there are (RFC 9110, 12.5.4); English when none is asked for.
fn negotiate(headers: &HeaderMap) -> (&'static str, &'static str) {
    const LANGUAGES: [(&str, &str); 3] = [("en", "Good day"), ("de", "Guten Tag"), ("fr", "Bonjour")];

    let mut best = (LANGUAGES[0], 0.0);
    let values = headers.get_all(ACCEPT_LANGUAGE).iter().filter_map(|value| value.to_str().ok());
    for range in values.flat_map(|value| value.split(',')) {
        let (tag, weight) = range.split_once(';').map_or((range, None), |(tag, weight)| (tag, Some(weight)));
        let weight = match weight {
            None => 1.0,
            Some(weight) => weight.trim().strip_prefix("q=").and_then(|weight| weight.parse().ok()).unwrap_or(0.0),
        };
        let primary = tag.trim().split('-').next().unwrap_or_default();
        let found = LANGUAGES.iter().find(|(language, _)| language.eq_ignore_ascii_case(primary));
        if let Some(language) = found.filter(|_| weight > best.1) {
            best = (*language, weight);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_are_negotiated_by_weight() {
        for (accepted, expected) in [
            ("de", "de"),
            ("fr-CH, de;q=0.9", "fr"),
            ("de;q=0.5, FR;q=0.8", "fr"),
            ("es, de;q=0.1", "de"),
            ("de;q=0", "en"),
            ("es", "en"),
            ("*", "en"),
            (";;q=,", "en"),
            ("", "en"),
        ] {
            let mut headers = HeaderMap::new();
            set(&mut headers, ACCEPT_LANGUAGE, accepted);
            assert_eq!(negotiate(&headers).0, expected, "{accepted}");
        }
        assert_eq!(negotiate(&HeaderMap::new()).0, "en");
    }

    #[test]
    fn names_are_safe_in_headers_and_html() {
        for name in ["", "a b", "<b>", "ä", "a\r\nb", &"x".repeat(65)] {
            assert_eq!(Origin::new(name).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name:?}");
        }
        assert!(Origin::new("demo-b.2_x").is_ok());
    }
}
