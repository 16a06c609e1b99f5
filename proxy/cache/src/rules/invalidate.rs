//! What an unsafe request puts out of date (RFC 9111, 4.4).

use http::header::{CONTENT_LOCATION, LOCATION};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};

/// Whether a response with `status` to `method` invalidates: the method is not known to be safe, and the status is no error.
#[must_use]
pub fn applies(method: &Method, status: StatusCode) -> bool {
    let safe = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::CONNECT);
    !safe && (status.is_success() || status.is_redirection())
}

/// The targets named by `Location` and `Content-Location`, as path and query, besides the request's own. A target on another
/// authority is left alone: anyone could empty another site's cache.
#[must_use]
pub fn named_targets(authority: &str, path: &str, response: &HeaderMap<HeaderValue>) -> Vec<String> {
    let fields = [LOCATION, CONTENT_LOCATION];
    let values = fields.iter().flat_map(|field| response.get_all(field)).filter_map(|value| value.to_str().ok());
    values.filter_map(|value| resolve(authority, path, value)).collect()
}

/// Whether a response says by `Content-Location` that it is the content of its request's own `target` (RFC 9110, 8.7).
#[must_use]
pub fn is_content_of(authority: &str, target: &str, response: &HeaderMap<HeaderValue>) -> bool {
    let path = target.split('?').next().unwrap_or(target);
    let named = response.get(CONTENT_LOCATION).and_then(|value| value.to_str().ok());
    named.and_then(|named| resolve(authority, path, named)).is_some_and(|named| named == target)
}

/// Resolve a reference (RFC 3986, 5.2) against the request, and keep its path and query when the authority is the same.
fn resolve(authority: &str, path: &str, reference: &str) -> Option<String> {
    let reference = reference.split('#').next().unwrap_or_default();
    let absolute = reference.split_once("://").map(|(_, rest)| rest).or_else(|| reference.strip_prefix("//"));
    if let Some(rest) = absolute {
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (host, target) = rest.split_at(end);
        if !host.eq_ignore_ascii_case(authority) {
            return None;
        }
        return Some(if target.starts_with('/') { target.to_owned() } else { format!("/{target}") });
    }
    if reference.starts_with('/') {
        return Some(reference.to_owned());
    }
    if reference.starts_with('?') {
        return Some(format!("{path}{reference}"));
    }

    let (reference, query) = reference.find('?').map_or((reference, ""), |at| reference.split_at(at));
    let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
    let mut segments: Vec<&str> = directory.split('/').skip(1).collect();
    let mut names = reference.split('/').peekable();
    while let Some(name) = names.next() {
        let is_last = names.peek().is_none();
        match name {
            "." | ".." => {
                if name == ".." {
                    segments.pop();
                }
                if is_last {
                    segments.push("");
                }
            }
            name => segments.push(name),
        }
    }
    let target = format!("/{}{query}", segments.join("/"));
    target.parse::<Uri>().is_ok().then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9111, 4.4: unsafe methods and non-error responses.
    #[test]
    fn when_it_applies() {
        for (method, status, expected) in [
            ("POST", 200, true),
            ("PUT", 204, true),
            ("DELETE", 302, true),
            ("PURPLE", 200, true),
            ("POST", 400, false),
            ("POST", 500, false),
            ("GET", 200, false),
            ("HEAD", 200, false),
            ("OPTIONS", 200, false),
        ] {
            let method = Method::from_bytes(method.as_bytes()).expect("a method");
            assert_eq!(
                applies(&method, StatusCode::from_u16(status).expect("a status")),
                expected,
                "{method} {status}"
            );
        }
    }

    /// RFC 9110, 8.7 and 9.3.3.
    #[test]
    fn a_response_that_is_its_own_urls_content() {
        for (location, expected) in [
            ("/dir/page?a=1", true),
            ("http://a.example/dir/page?a=1", true),
            ("page?a=1", true),
            ("?a=1", true),
            ("/dir/page", false),
            ("/dir/page?a=2", false),
            ("http://b.example/dir/page?a=1", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_LOCATION, HeaderValue::from_static(location));
            assert_eq!(is_content_of("a.example", "/dir/page?a=1", &headers), expected, "{location}");
        }
        assert!(!is_content_of("a.example", "/", &HeaderMap::new()));
    }

    /// RFC 9111, 4.4 and RFC 3986, 5.2: only targets on the same authority.
    #[test]
    fn which_targets_are_named() {
        for (reference, expected) in [
            ("/x?y=1", Some("/x?y=1")),
            ("http://a.example/x", Some("/x")),
            ("https://A.EXAMPLE/x#f", Some("/x")),
            ("http://a.example", Some("/")),
            ("http://a.example?q", Some("/?q")),
            ("//a.example/x", Some("/x")),
            ("http://b.example/x", None),
            ("http://a.example:81/x", None),
            ("//b.example/x", None),
            ("sibling", Some("/dir/sub/sibling")),
            ("./sibling?q", Some("/dir/sub/sibling?q")),
            ("../up", Some("/dir/up")),
            ("../../../up", Some("/up")),
            ("..", Some("/dir/")),
            ("?q=2", Some("/dir/sub/page?q=2")),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(LOCATION, HeaderValue::from_static(reference));
            let targets = named_targets("a.example", "/dir/sub/page", &headers);
            assert_eq!(targets.first().map(String::as_str), expected, "{reference}");
        }
    }
}
