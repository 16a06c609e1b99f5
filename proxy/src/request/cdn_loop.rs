//! Requests that come by again (RFC 8586): every request that is forwarded says where it has been, and one that goes in circles is refused.

use http::{HeaderMap, HeaderName};
use pingora::{Error, ErrorType, Result};

const CDN_LOOP: HeaderName = HeaderName::from_static("cdn-loop");

/// How often a request may have passed a node of our name: nodes may share one, in front of each other.
const OWN_MAX: usize = 3;
/// How many caches it may have passed.
const ALL_MAX: usize = 20;

/// Refuses a request that has passed us too often, or too many others.
///
/// # Errors
/// It goes in circles.
pub(super) fn check(headers: &HeaderMap, own: &str) -> Result<()> {
    if !headers.contains_key(CDN_LOOP) {
        return Ok(());
    }
    let (mut all, mut ours) = (0, 0);
    for line in headers.get_all(CDN_LOOP) {
        each(line.as_bytes(), |id| {
            all += 1;
            ours += usize::from(id.eq_ignore_ascii_case(own.as_bytes()));
        });
    }
    if ours >= OWN_MAX || all >= ALL_MAX {
        return Error::e_explain(ErrorType::HTTPStatus(508), "the request goes in circles (CDN-Loop, RFC 8586)");
    }
    Ok(())
}

/// The names in a line: `name;parameter="a, b", other`.
fn each(line: &[u8], mut seen: impl FnMut(&[u8])) {
    let (mut quoted, mut escaped) = (false, false);
    let members = line.split(|byte| {
        let ends = *byte == b',' && !quoted;
        match byte {
            b'"' if !escaped => quoted = !quoted,
            _ => {}
        }
        escaped = quoted && *byte == b'\\' && !escaped;
        ends
    });
    for member in members {
        let id = member.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        if !id.is_empty() {
            seen(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    /// RFC 8586, 2.
    #[test]
    fn what_goes_in_circles() {
        let many = vec!["other"; ALL_MAX].join(",");
        for (lines, refused) in [
            (&[][..], false),
            (&["edge"], false),
            (&["edge, edge"], false),
            (&["edge, edge", "edge"], true),
            (&["Edge;v=1, other, EDGE ;q=\"edge, edge\" ,edge"], true),
            (&["other;by=\"edge, edge, edge\", edge"], false),
            (&["other;by=\"\\\", edge, edge\", edge, edge"], false),
            (&["edges, an-edge, edge.example, edge"], false),
            (&[many.as_str()], true),
            (&[",, ,;"], false),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(CDN_LOOP, HeaderValue::from_str(line).unwrap());
            }
            assert_eq!(check(&headers, "edge").is_err(), refused, "{lines:?}");
        }
    }
}
