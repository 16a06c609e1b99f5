//! Where the token is: the `Authorization` header, and, if configured, a cookie or a query parameter. And how to take it out again.

use crate::rejection::Rejection;

/// Where to look besides `Authorization`.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// A cookie.
    pub cookie: Option<String>,
    /// A query parameter.
    pub query: Option<String>,
}

/// A token, and where it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The token.
    pub token: String,
    /// It was in `Authorization`.
    pub in_header: bool,
    /// It was in the cookie.
    pub in_cookie: bool,
    /// It was in the query.
    pub in_query: bool,
}

impl Sources {
    /// Looks everywhere. The same token in two places is one token.
    ///
    /// # Errors
    /// [`Rejection::Missing`] when there is none, [`Rejection::Repeated`] when there are several or a field that could hold one comes
    /// twice (two parsers would pick different ones), [`Rejection::Malformed`] when it holds characters that no token has.
    pub fn find<'a>(
        &self,
        headers: impl Iterator<Item = (&'a str, &'a [u8])> + Clone,
        query: Option<&str>,
    ) -> Result<Found, Rejection> {
        let in_header = in_authorization(headers.clone())?;
        let in_cookie = self.cookie.as_ref().map_or(Ok(None), |name| in_cookies(headers, name))?;
        let in_query = self.query.as_ref().map_or(Ok(None), |name| in_query(query, name))?;

        let places = [&in_header, &in_cookie, &in_query];
        let mut tokens = places.into_iter().flatten();
        let token = tokens.next().ok_or(Rejection::Missing)?;
        if tokens.any(|other| other != token) {
            return Err(Rejection::Repeated);
        }
        // RFC 6750, 2.1, without what a JWT has not: its parts are base64url.
        if !token.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')) {
            return Err(Rejection::Malformed);
        }
        Ok(Found {
            token: token.clone(),
            in_header: in_header.is_some(),
            in_cookie: in_cookie.is_some(),
            in_query: in_query.is_some(),
        })
    }
}

fn in_authorization<'a>(headers: impl Iterator<Item = (&'a str, &'a [u8])>) -> Result<Option<String>, Rejection> {
    let mut fields = headers.filter(|(name, _)| name.eq_ignore_ascii_case("authorization")).map(|(_, value)| value);
    let Some(field) = fields.next() else { return Ok(None) };
    if fields.next().is_some() {
        return Err(Rejection::Repeated);
    }
    let field = std::str::from_utf8(field).map_err(|_| Rejection::Malformed)?.trim_matches([' ', '\t']);
    let (scheme, token) = field.split_once(' ').unwrap_or((field, ""));
    // Another scheme (Basic) is for somebody else.
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Ok(None);
    }
    let token = token.trim_start_matches(' ');
    if token.is_empty() { Err(Rejection::Malformed) } else { Ok(Some(token.to_owned())) }
}

fn in_cookies<'a>(headers: impl Iterator<Item = (&'a str, &'a [u8])>, name: &str) -> Result<Option<String>, Rejection> {
    let mut token = None;
    for (_, field) in headers.filter(|(header, _)| header.eq_ignore_ascii_case("cookie")) {
        // Other cookies may hold any bytes; only ours must be text.
        for pair in field.split(|byte| *byte == b';') {
            if !is_cookie(pair, name) {
                continue;
            }
            let pair = std::str::from_utf8(pair).map_err(|_| Rejection::Malformed)?;
            let value = pair.split_once('=').map_or("", |(_, value)| value).trim();
            if token.replace(value.to_owned()).is_some() {
                return Err(Rejection::Repeated);
            }
        }
    }
    // Logging out often leaves an empty cookie behind.
    Ok(token.filter(|token| !token.is_empty()))
}

fn in_query(query: Option<&str>, name: &str) -> Result<Option<String>, Rejection> {
    let mut values = query.unwrap_or_default().split('&').filter(|pair| is_parameter(pair, name));
    let Some(pair) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Rejection::Repeated);
    }
    let value = pair.split_once('=').map_or("", |(_, value)| value);
    Ok(Some(value.to_owned()).filter(|value| !value.is_empty()))
}

/// The `Cookie` header without the cookies of this name; `None` when nothing is left.
pub fn without_cookie<'a>(fields: impl Iterator<Item = &'a [u8]>, name: &str) -> Option<Vec<u8>> {
    let mut kept: Vec<&[u8]> = Vec::new();
    for field in fields {
        kept.extend(
            field
                .split(|byte| *byte == b';')
                .map(<[u8]>::trim_ascii)
                .filter(|pair| !pair.is_empty() && !is_cookie(pair, name)),
        );
    }
    (!kept.is_empty()).then(|| kept.join(&b"; "[..]))
}

/// Path and query without the parameters of this name.
pub fn without_parameter(path: &str, query: Option<&str>, name: &str) -> String {
    let kept: Vec<_> =
        query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty() && !is_parameter(pair, name)).collect();
    if kept.is_empty() { path.to_owned() } else { format!("{path}?{}", kept.join("&")) }
}

fn is_cookie(pair: &[u8], name: &str) -> bool {
    let end = pair.iter().position(|byte| *byte == b'=').unwrap_or(pair.len());
    pair[..end].trim_ascii() == name.as_bytes()
}

/// Whether a parameter has this name as an origin reads it, so that `%74oken` is not overlooked.
fn is_parameter(pair: &str, name: &str) -> bool {
    let written = pair.split_once('=').map_or(pair, |(written, _)| written).as_bytes();
    let mut decoded = Vec::with_capacity(written.len());
    let mut rest = written;
    while let Some((first, tail)) = rest.split_first() {
        let escaped = (*first == b'%')
            .then(|| tail.first_chunk::<2>())
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        if let Some(byte) = escaped {
            decoded.push(byte);
            rest = &tail[2..];
        } else {
            decoded.push(*first);
            rest = tail;
        }
    }
    decoded == name.as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(headers: &[(&str, &str)], query: Option<&str>) -> Result<Found, Rejection> {
        let sources = Sources { cookie: Some("session".to_owned()), query: Some("token".to_owned()) };
        sources.find(headers.iter().map(|(name, value)| (*name, value.as_bytes())), query)
    }

    #[test]
    fn one_token_is_found_wherever_it_is() {
        for (headers, query, place) in [
            (&[("authorization", "Bearer t")][..], None, (true, false, false)),
            (&[("Authorization", "bEaReR   t ")], None, (true, false, false)),
            (&[("cookie", "a=1; session=t")], None, (false, true, false)),
            (&[("cookie", "a=1"), ("cookie", "session=t; b=2")], None, (false, true, false)),
            (&[], Some("a=1&token=t"), (false, false, true)),
            (&[], Some("%74oken=t"), (false, false, true)),
            (&[("authorization", "Basic YTpi"), ("cookie", "session=t")], None, (false, true, false)),
            (&[("authorization", "Bearer t"), ("cookie", "session=t")], Some("token=t"), (true, true, true)),
            (&[("authorization", "Bearer t"), ("cookie", "session=")], Some("token"), (true, false, false)),
        ] {
            let found = find(headers, query).unwrap();
            assert_eq!(
                (found.token.as_str(), (found.in_header, found.in_cookie, found.in_query)),
                ("t", place),
                "{headers:?} {query:?}"
            );
        }
    }

    #[test]
    fn no_token_several_tokens_and_broken_tokens() {
        use Rejection::{Malformed, Missing, Repeated};
        for (headers, query, expected) in [
            (&[][..], None, Missing),
            (&[("authorization", "")], None, Missing),
            (&[("authorization", "Basic YTpi")], None, Missing),
            (&[("authorization", "Bearertoken")], None, Missing),
            (&[("cookie", "xsession=t; session_=t; a=session=t")], Some("tokens=t&xtoken=t"), Missing),
            (&[("authorization", "Bearer")], None, Malformed),
            (&[("authorization", "Bearer ")], None, Malformed),
            (&[("authorization", "Bearer a b")], None, Malformed),
            (&[("authorization", "Bearer a, Bearer b")], None, Malformed),
            (&[("authorization", "Bearer \"t\"")], None, Malformed),
            (&[("authorization", "Bearer t\u{e9}")], None, Malformed),
            (&[("cookie", "session=\"t\"")], None, Malformed),
            (&[], Some("token=a%2Eb"), Malformed),
            (&[("authorization", "Bearer t"), ("authorization", "Bearer t")], None, Repeated),
            (&[("authorization", "Bearer t"), ("Authorization", "Basic x")], None, Repeated),
            (&[("authorization", "Bearer t"), ("cookie", "session=u")], None, Repeated),
            (&[("cookie", "session=t; session=t")], None, Repeated),
            (&[("cookie", "session=t"), ("cookie", "session=u")], None, Repeated),
            (&[], Some("token=t&%74oken=u"), Repeated),
        ] {
            assert_eq!(find(headers, query), Err(expected), "{headers:?} {query:?}");
        }
    }

    #[test]
    fn only_configured_places_are_looked_at() {
        let headers = [("cookie", &b"session=t"[..])];
        assert_eq!(Sources::default().find(headers.into_iter(), Some("token=t")), Err(Rejection::Missing));
    }

    #[test]
    fn a_token_can_be_taken_out_again() {
        for (fields, kept) in [
            (&["session=t"][..], None),
            (&["a=1; session=t; b=2"], Some("a=1; b=2")),
            (&["a=1", "session=t", "b=2"], Some("a=1; b=2")),
            (&["session=t; session=u"], None),
            (&["xsession=t"], Some("xsession=t")),
        ] {
            let left = without_cookie(fields.iter().map(|field| field.as_bytes()), "session");
            assert_eq!(left.as_deref(), kept.map(str::as_bytes), "{fields:?}");
        }
        for (query, expected) in [
            (None, "/p"),
            (Some("token=t"), "/p"),
            (Some("a=1&token=t&b=2"), "/p?a=1&b=2"),
            (Some("a=1&%74oken=t"), "/p?a=1"),
            (Some("a=%zz"), "/p?a=%zz"),
        ] {
            assert_eq!(without_parameter("/p", query, "token"), expected, "{query:?}");
        }
    }
}
