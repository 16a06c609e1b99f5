//! Which requests a stored response may answer: `Vary` (RFC 9111, 4.1).

use http::header::{ACCEPT, ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE, CONTENT_ENCODING, IF_RANGE, RANGE, VARY};
use http::{HeaderMap, HeaderValue, Method, request};

/// The hash of the request fields a response varies by.
pub type Variance = [u8; 16];

/// Whether `Vary` has a member `*`: no later request can ever match.
#[must_use]
pub fn is_star(response: &HeaderMap<HeaderValue>) -> bool {
    response.get_all(VARY).iter().any(|line| match line.to_str() {
        Ok(line) => line.split(',').any(|member| member.trim() == "*"),
        Err(_) => true, // field names we cannot read: as good as any field
    })
}

/// The variance of `request` under the `Vary` of a stored `response`, or `None` when the response does not vary.
///
/// The order, case and repetition of the names in `Vary` do not count. Of the request's fields, lines are joined, white space
/// around commas is dropped, and for the `Accept` family also case and order (RFC 9111, 4.1 allows each where it keeps the meaning).
/// An absent field matches only an absent field.
///
/// `Accept-Encoding` counts by which of [`CODINGS`] it accepts, where the response is in one of them or in none: browsers that differ in
/// order, weights and codings that nobody uses then share a variant.
#[must_use]
pub fn variance(response: &HeaderMap<HeaderValue>, request: &HeaderMap<HeaderValue>) -> Option<Variance> {
    let mut names: Vec<String> = response
        .get_all(VARY)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .filter(|name| !name.is_empty())
        .collect();
    if names.is_empty() {
        return None;
    }
    names.sort_unstable();
    names.dedup();

    let mut hasher = blake3::Hasher::new();
    for name in &names {
        frame(&mut hasher, name.as_bytes());
        if request.contains_key(name) {
            let is_coding = name == ACCEPT_ENCODING.as_str() && is_known(response);
            match is_coding.then(|| accepted(request)).flatten() {
                Some(class) => frame(&mut hasher, &[b'=', class]),
                None => frame(&mut hasher, &normalised(name, request)),
            }
        } else {
            hasher.update(&u64::MAX.to_le_bytes()); // no value is that long
        }
    }
    let mut variance = Variance::default();
    hasher.finalize_xof().fill(&mut variance);
    Some(variance)
}

/// The range a request asks for. A condition on it (`If-Range`) is for what is stored whole.
#[must_use]
pub fn range(request: &request::Parts) -> Option<&HeaderValue> {
    let asks = request.method == Method::GET && !request.headers.contains_key(IF_RANGE);
    request.headers.get(RANGE).filter(|_| asks)
}

/// The variance of a request under a stored partial response, which is for the same range only.
#[must_use]
pub fn of_range(variance: Option<Variance>, request: &request::Parts) -> Variance {
    let mut hasher = blake3::Hasher::new();
    frame(&mut hasher, b"range");
    frame(&mut hasher, &variance.unwrap_or_default());
    match range(request) {
        Some(range) => frame(&mut hasher, range.as_bytes()),
        None => drop(hasher.update(&u64::MAX.to_le_bytes())),
    }
    let mut variance = Variance::default();
    hasher.finalize_xof().fill(&mut variance);
    variance
}

/// The content codings that are told apart.
pub const CODINGS: [&str; 3] = ["gzip", "br", "zstd"];

/// Which of [`CODINGS`] a request accepts, one bit each (RFC 9110, 12.5.3); `None` where it does not take a body without coding, or says
/// something that is not understood.
fn accepted(request: &HeaderMap<HeaderValue>) -> Option<u8> {
    let (mut named, mut class, mut rest) = (0, 0, false);
    for line in request.get_all(ACCEPT_ENCODING) {
        for member in line.to_str().ok()?.split(',').map(str::trim).filter(|member| !member.is_empty()) {
            let mut parts = member.split(';').map(str::trim);
            let coding = parts.next()?;
            let weight = match parts.next() {
                None => "1",
                Some(weight) => weight.strip_prefix("q=").or_else(|| weight.strip_prefix("Q="))?,
            };
            if !weight.starts_with(['0', '1']) || parts.next().is_some() {
                return None;
            }
            let wanted = weight.bytes().any(|byte| (b'1'..=b'9').contains(&byte));
            let coding = if coding.eq_ignore_ascii_case("x-gzip") { "gzip" } else { coding };
            match CODINGS.iter().position(|known| coding.eq_ignore_ascii_case(known)) {
                Some(index) => {
                    named |= 1 << index;
                    class |= u8::from(wanted) << index;
                }
                None if coding == "*" => rest = wanted,
                None => {}
            }
            if !wanted && (coding == "*" || coding.eq_ignore_ascii_case("identity")) {
                return None;
            }
        }
    }
    let others = if rest { !named & 0b111 } else { 0 };
    Some(class | others)
}

/// Whether the response is in one of [`CODINGS`], or as it is.
fn is_known(response: &HeaderMap<HeaderValue>) -> bool {
    let mut codings = response.get_all(CONTENT_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => true,
        (Some(coding), None) => {
            let coding = coding.as_bytes().trim_ascii();
            CODINGS.iter().chain(&["identity"]).any(|known| coding.eq_ignore_ascii_case(known.as_bytes()))
        }
        _ => false,
    }
}

fn frame(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

fn normalised(name: &str, request: &HeaderMap<HeaderValue>) -> Vec<u8> {
    let is_set = [ACCEPT, ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE].iter().any(|known| known == name);
    let lines = request.get_all(name).iter();
    let members = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    if !is_set {
        return members.map(<[u8]>::trim_ascii).collect::<Vec<_>>().join(&b","[..]);
    }

    let without_space = |member: &[u8]| {
        let kept = member.iter().filter(|byte| !byte.is_ascii_whitespace());
        kept.map(u8::to_ascii_lowercase).collect::<Vec<_>>()
    };
    let mut members: Vec<Vec<u8>> = members.map(without_space).filter(|member| !member.is_empty()).collect();
    members.sort_unstable();
    members.join(&b","[..])
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let fields =
            fields.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn a_star_anywhere_matches_nothing() {
        for (fields, star) in [
            (&[("vary", "*")][..], true),
            (&[("vary", "accept, *")], true),
            (&[("vary", "accept"), ("vary", " * ")], true),
            (&[("vary", "accept, x*")], false),
            (&[], false),
        ] {
            assert_eq!(is_star(&headers(fields)), star, "{fields:?}");
        }
    }

    /// RFC 9111, 4.1: which differences between two requests keep a response usable.
    #[test]
    fn which_requests_match() {
        type Fields = &'static [(&'static str, &'static str)];
        let cases: &[(Fields, Fields, Fields, bool)] = &[
            (&[("vary", "foo")], &[("foo", "1")], &[("foo", "1")], true),
            (&[("vary", "foo")], &[("foo", "1")], &[("foo", "2")], false),
            (&[("vary", "foo")], &[("foo", "1")], &[], false),
            (&[("vary", "foo")], &[("foo", "")], &[], false),
            (&[("vary", "foo")], &[("bar", "1")], &[("bar", "2")], true),
            (&[("vary", "foo")], &[("foo", "a, b")], &[("foo", "a,b")], true),
            (&[("vary", "foo")], &[("foo", "a,b")], &[("foo", "a"), ("foo", "b")], true),
            (&[("vary", "foo")], &[("foo", "a,b")], &[("foo", "b,a")], false),
            (&[("vary", "foo")], &[("foo", "a")], &[("foo", "A")], false),
            (&[("vary", "foo, bar")], &[("foo", "1"), ("bar", "2")], &[("bar", "2"), ("foo", "1")], true),
            (&[("vary", "foo, bar")], &[("foo", "12"), ("bar", "")], &[("foo", "1"), ("bar", "2")], false),
            (&[("vary", "Accept-Language")], &[("accept-language", "en, DE")], &[("accept-language", "de,en")], true),
            (
                &[("vary", "accept-encoding")],
                &[("accept-encoding", "gzip; q=1, br")],
                &[("accept-encoding", "br, gzip;q=1")],
                true,
            ),
            (&[("vary", "accept-encoding")], &[("accept-encoding", "gzip")], &[("accept-encoding", "br")], false),
            (
                &[("vary", "accept-encoding"), ("content-encoding", "br")],
                &[("accept-encoding", "gzip, deflate, br, zstd")],
                &[("accept-encoding", "zstd;q=0.9, br;q=1, x-gzip, compress")],
                true,
            ),
            (
                &[("vary", "accept-encoding")],
                &[("accept-encoding", "gzip, br;q=0")],
                &[("accept-encoding", "gzip")],
                true,
            ),
            (&[("vary", "accept-encoding")], &[("accept-encoding", "*")], &[("accept-encoding", "gzip,br,zstd")], true),
            (
                &[("vary", "accept-encoding")],
                &[("accept-encoding", "*, br;q=0")],
                &[("accept-encoding", "gzip, zstd")],
                true,
            ),
            (&[("vary", "accept-encoding")], &[("accept-encoding", "gzip")], &[], false),
            (&[("vary", "accept-encoding")], &[("accept-encoding", "deflate")], &[], false),
            (
                &[("vary", "accept-encoding")],
                &[("accept-encoding", "gzip, identity;q=0")],
                &[("accept-encoding", "gzip")],
                false,
            ),
            (
                &[("vary", "accept-encoding")],
                &[("accept-encoding", "gzip;level=1")],
                &[("accept-encoding", "gzip")],
                false,
            ),
            (
                &[("vary", "accept-encoding"), ("content-encoding", "deflate")],
                &[("accept-encoding", "gzip, deflate")],
                &[("accept-encoding", "gzip")],
                false,
            ),
            (
                &[("vary", "accept-encoding"), ("content-encoding", "gzip"), ("content-encoding", "br")],
                &[("accept-encoding", "gzip, br, deflate")],
                &[("accept-encoding", "gzip, br")],
                false,
            ),
        ];
        for (vary, one, other, matches) in cases {
            let vary = headers(vary);
            let same = variance(&vary, &headers(one)) == variance(&vary, &headers(other));
            assert_eq!(same, *matches, "{vary:?} {one:?} {other:?}");
        }
    }

    #[test]
    fn names_count_without_order_case_or_repetition() {
        let request = headers(&[("foo", "1"), ("bar", "2")]);
        let one = variance(&headers(&[("vary", "foo, Bar")]), &request);
        assert!(one.is_some());
        assert_eq!(one, variance(&headers(&[("vary", "BAR"), ("vary", "foo,,bar")]), &request));
        assert_eq!(variance(&headers(&[("vary", " , ")]), &request), None);
        assert_eq!(variance(&headers(&[]), &request), None);
    }
}
