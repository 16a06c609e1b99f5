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
    let target = match absolute {
        Some(rest) => {
            let (host, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
            if !without_usual_port(host).eq_ignore_ascii_case(without_usual_port(authority)) {
                return None;
            }
            target
        }
        None => reference,
    };
    let (named, query) = target.find('?').map_or((target, ""), |at| target.split_at(at));
    let target = match named {
        "" if absolute.is_some() => format!("/{query}"),
        "" => format!("{path}{query}"),
        _ if named.starts_with('/') => format!("{}{query}", without_dots(named)),
        _ => {
            let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
            format!("{}{query}", without_dots(&format!("{directory}/{named}")))
        }
    };
    target.parse::<Uri>().is_ok().then_some(target)
}

/// The port of either scheme is none: a response may name the other one, and both are put out of date together.
fn without_usual_port(authority: &str) -> &str {
    authority.strip_suffix(":80").or_else(|| authority.strip_suffix(":443")).unwrap_or(authority)
}

/// An absolute path without `.` and `..` (RFC 3986, 5.2.4).
fn without_dots(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    let mut names = path.strip_prefix('/').unwrap_or(path).split('/').peekable();
    while let Some(name) = names.next() {
        match name {
            "." | ".." => {
                if name == ".." {
                    segments.pop();
                }
                if names.peek().is_none() {
                    segments.push("");
                }
            }
            name => segments.push(name),
        }
    }
    format!("/{}", segments.join("/"))
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
            ("", Some("/dir/sub/page")),
            ("#part", Some("/dir/sub/page")),
            ("/a/../b/./c", Some("/b/c")),
            ("/a/..", Some("/")),
            ("http://a.example:80/../x?y", Some("/x?y")),
            ("https://a.example:443/x", Some("/x")),
            ("//a.example:8080/x", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(LOCATION, HeaderValue::from_static(reference));
            let targets = named_targets("a.example", "/dir/sub/page", &headers);
            assert_eq!(targets.first().map(String::as_str), expected, "{reference}");
        }
    }
}
