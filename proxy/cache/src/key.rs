//! The primary cache key: which requests are about the same thing.
//!
//! The key is a 128-bit BLAKE3 hash over length-framed parts: the scope (site and route), the scheme, the authority, the path and the
//! part of the query that counts. Frames keep `a` + `bc` apart from `ab` + `c`. The authority is taken from the request target where it
//! is there (HTTP/2, absolute-form) and from `Host` otherwise, in lower case and without the scheme's own port, so that one resource
//! has one key over every version of HTTP.

use std::borrow::Cow;
use std::hash::{BuildHasherDefault, Hasher};

use http::header::HOST;
use pingora_cache::CacheKey;
use pingora_cache::key::CacheHashKey;
use pingora_http::RequestHeader;
use smallvec::SmallVec;

use crate::rules::QueryPolicy;
use crate::rules::search::{self, SearchVariance};

/// A key as the tables of this crate hold it.
pub(crate) type Slot = u128;

/// Hashes slots by themselves: they are cryptographic hashes already.
pub(crate) type SlotHash = BuildHasherDefault<SlotHasher>;

/// The scheme under which a client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plain text.
    Http,
    /// Over TLS.
    Https,
}

impl Scheme {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    fn default_port(self) -> &'static str {
        match self {
            Self::Http => ":80",
            Self::Https => ":443",
        }
    }
}

/// What separates one route's objects from another's: made once per route when the configuration is resolved, and cheap to copy.
///
/// Routes that may answer for the same URL and should share objects, and invalidate each other's, need the same scope: give them the
/// same `route`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct KeyScope([u8; 16]);

impl KeyScope {
    /// The scope of `route` within `site`.
    #[must_use]
    pub fn new(site: &str, route: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        frame(&mut hasher, site.as_bytes());
        frame(&mut hasher, route.as_bytes());
        Self(finish(&hasher))
    }

    /// This scope with further parts, in their order; itself without any.
    #[must_use]
    pub fn with_parts<P: AsRef<[u8]>>(self, parts: &[P]) -> Self {
        if parts.is_empty() {
            return self;
        }
        let mut hasher = blake3::Hasher::new();
        frame(&mut hasher, &self.0);
        parts.iter().for_each(|part| frame(&mut hasher, part.as_ref()));
        Self(finish(&hasher))
    }
}

/// The key of `request` within `scope`.
#[must_use]
pub fn of_request(scope: KeyScope, scheme: Scheme, query: &QueryPolicy, request: &RequestHeader) -> CacheKey {
    of_target(scope, scheme, query, authority(request).as_bytes(), target(request))
}

/// The key of a URL given as its parts: what [`of_request`] gives for a request for it. `target` is path and query.
#[must_use]
pub fn of_target(scope: KeyScope, scheme: Scheme, query: &QueryPolicy, authority: &[u8], target: &[u8]) -> CacheKey {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&scope.0);
    each_part(scheme, query, authority, target, |part| match part {
        Part::Authority(bytes) => frame_lower(&mut hasher, bytes),
        Part::Scheme(bytes) | Part::Path(bytes) | Part::Query(bytes) | Part::Name(bytes) | Part::Value(bytes) => {
            frame(&mut hasher, bytes);
        }
    });
    let mut key = CacheKey::new(Vec::new(), String::new());
    key.set_primary_bin_override(finish(&hasher));
    key
}

/// The key of a URL of which not all of the query counts, by what a response has said.
#[must_use]
pub fn of_search(
    scope: KeyScope,
    scheme: Scheme,
    query: &QueryPolicy,
    search: &SearchVariance,
    authority: &[u8],
    target: &[u8],
) -> CacheKey {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&scope.0);
    // Said otherwise, it is another key, even where the same counts.
    frame(&mut hasher, search.to_field().as_bytes());
    frame_lower(&mut hasher, without_default_port(authority, scheme));
    frame(&mut hasher, scheme.as_str().as_bytes());
    let (path, _) = split(target, b'?');
    frame(&mut hasher, if path.is_empty() { b"/" } else { path });
    for (name, value) in significant(query, search, target) {
        frame(&mut hasher, &name);
        frame(&mut hasher, &value);
    }
    let mut key = CacheKey::new(Vec::new(), String::new());
    key.set_primary_bin_override(finish(&hasher));
    key
}

/// The parameters of a target that count, where a route and a response both have a say.
pub(crate) fn significant<'q>(
    query: &'q QueryPolicy,
    search: &SearchVariance,
    target: &'q [u8],
) -> search::Parameters<'q> {
    let parameters = split(target, b'?').1.into_iter().flat_map(|query| query.split(|byte| *byte == b'&'));
    let pairs = parameters.filter(|parameter| !parameter.is_empty()).map(|parameter| split(parameter, b'='));
    let counts = |given: &[u8]| match query {
        QueryPolicy::All => true,
        QueryPolicy::Except { names, .. } => !names.iter().any(|name| *decoded(given) == *name.as_bytes()),
        QueryPolicy::Only(names) => names.iter().any(|name| *decoded(given) == *name.as_bytes()),
    };
    let pairs = pairs.filter(|(given, _)| counts(given)).map(|(given, value)| (given, value.unwrap_or_default()));
    let sorts = matches!(query, QueryPolicy::Only(_) | QueryPolicy::Except { sort: true, .. });
    let mut kept = search.significant(pairs);
    if sorts {
        kept.sort_by(|(one, _), (other, _)| one.cmp(other));
    }
    kept
}

/// What [`of_request`] makes its hash of, beside the scope, for people to read: `https://example.com/path?a=1`. Requests with one text have
/// one key within a scope, and those with different texts different ones; but for bytes that are no UTF-8, which all read the same.
#[must_use]
pub fn in_words(scheme: Scheme, query: &QueryPolicy, request: &RequestHeader) -> String {
    let mut words = Vec::new();
    let mut parameters = 0;
    each_part(scheme, query, authority(request).as_bytes(), target(request), |part| match part {
        Part::Scheme(scheme) => words.extend([scheme, b"://"].concat()),
        Part::Authority(authority) => words.extend(authority.to_ascii_lowercase()),
        Part::Path(path) => words.extend(path),
        Part::Query(query) => words.extend([b"?", query].concat()),
        Part::Name(name) => {
            words.push(if parameters == 0 { b'?' } else { b'&' });
            parameters += 1;
            // The name as it is configured: what stands in the target is encoded in one way or another.
            words.extend(percent_encoded(name).bytes());
        }
        Part::Value(value) => words.extend([b"=", value].concat()),
    });
    String::from_utf8_lossy(&words).into_owned()
}

/// The same for a key of which [not all of the query](of_search) is a part.
#[must_use]
pub fn search_in_words(
    scheme: Scheme,
    query: &QueryPolicy,
    search: &SearchVariance,
    request: &RequestHeader,
) -> String {
    let authority = authority(request).to_ascii_lowercase();
    let target = target(request);
    let path = String::from_utf8_lossy(split(target, b'?').0);
    let mut words = format!(
        "{}://{}{path}",
        scheme.as_str(),
        String::from_utf8_lossy(without_default_port(authority.as_bytes(), scheme))
    );
    for (index, (name, value)) in significant(query, search, target).iter().enumerate() {
        words.push(if index == 0 { '?' } else { '&' });
        words.push_str(&percent_encoded(name));
        words.push('=');
        words.push_str(&percent_encoded(value));
    }
    words
}

/// A part of the key, each framed by itself.
pub(crate) enum Part<'p> {
    Scheme(&'p [u8]),
    /// Compared without case.
    Authority(&'p [u8]),
    Path(&'p [u8]),
    /// All of it.
    Query(&'p [u8]),
    /// A parameter that counts, and the value that comes next.
    Name(&'p [u8]),
    Value(&'p [u8]),
}

/// The parts of a key, in their order.
pub(crate) fn each_part(
    scheme: Scheme,
    query: &QueryPolicy,
    authority: &[u8],
    target: &[u8],
    mut part: impl FnMut(Part<'_>),
) {
    part(Part::Scheme(scheme.as_str().as_bytes()));
    part(Part::Authority(without_default_port(authority, scheme)));

    let (path, parameters) = split(target, b'?');
    part(Part::Path(if path.is_empty() { b"/" } else { path }));
    match (query, parameters) {
        (_, None) => {}
        (QueryPolicy::All, Some(parameters)) => part(Part::Query(parameters)),
        (QueryPolicy::Except { names, sort }, Some(parameters)) => {
            let pairs = parameters.split(|byte| *byte == b'&').map(|parameter| split(parameter, b'='));
            let pairs = pairs.map(|(given, value)| (decoded(given), value.unwrap_or_default()));
            let mut pairs: SmallVec<[_; 8]> =
                pairs.filter(|(given, _)| !names.iter().any(|name| given.as_ref() == name.as_bytes())).collect();
            if *sort {
                pairs.sort_by(|(one, _), (other, _)| one.cmp(other));
            }
            for (name, value) in &pairs {
                part(Part::Name(name));
                part(Part::Value(value));
            }
        }
        (QueryPolicy::Only(names), Some(parameters)) => {
            for name in names {
                for parameter in parameters.split(|byte| *byte == b'&') {
                    let (given, value) = split(parameter, b'=');
                    if decoded(given).as_ref() == name.as_bytes() {
                        part(Part::Name(name.as_bytes()));
                        part(Part::Value(value.unwrap_or_default()));
                    }
                }
            }
        }
    }
}

/// A name in which nothing can be taken for what stands between parameters.
fn percent_encoded(name: &[u8]) -> String {
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"%&=+#?".contains(&byte);
    name.iter().map(|byte| if plain(*byte) { char::from(*byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// Path and query.
pub(crate) fn target(request: &RequestHeader) -> &[u8] {
    if request.raw_path_is_utf8() {
        request.uri.path_and_query().map_or("/", |target| target.as_str()).as_bytes()
    } else {
        // The URI holds a lossy copy, in which different targets look the same.
        request.raw_path()
    }
}

/// The authority a request is for: from its target, else from `Host`, else empty.
pub fn authority(request: &RequestHeader) -> Cow<'_, str> {
    if let Some(authority) = request.uri.authority() {
        return Cow::Borrowed(authority.as_str());
    }
    // Pingora leaves the authority of an absolute-form target (RFC 9112, 3.2.2) in the raw bytes only.
    let target = request.raw_path();
    let absolute = if target.starts_with(b"/") { None } else { target.windows(3).position(|at| at == b"://") };
    if let Some(scheme_end) = absolute {
        let rest = &target[scheme_end + 3..];
        let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
        return String::from_utf8_lossy(&rest[..end]);
    }
    request.headers.get(HOST).map_or(Cow::Borrowed(""), |host| String::from_utf8_lossy(host.as_bytes()))
}

/// Where an object of this key is kept, its variant included.
pub(crate) fn slot(key: &impl CacheHashKey) -> Slot {
    Slot::from_be_bytes(key.combined_bin())
}

/// Where all the variants of this key belong to.
pub(crate) fn primary_slot(key: &impl CacheHashKey) -> Slot {
    Slot::from_be_bytes(key.primary_bin())
}

/// See [`SlotHash`].
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct SlotHasher(u64);

impl Hasher for SlotHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 = self.0.rotate_left(5) ^ u64::from_le_bytes(word);
        }
    }

    fn write_u128(&mut self, slot: u128) {
        let high = u64::try_from(slot >> 64).unwrap_or_default(); // a 64-bit half always fits
        self.0 ^= high;
    }
}

fn finish(hasher: &blake3::Hasher) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    half
}

fn frame(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

fn frame_lower(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    let mut lower = [0; 64];
    for chunk in bytes.chunks(lower.len()) {
        let lower = &mut lower[..chunk.len()];
        lower.copy_from_slice(chunk);
        lower.make_ascii_lowercase();
        hasher.update(lower);
    }
}

pub(crate) fn without_default_port(authority: &[u8], scheme: Scheme) -> &[u8] {
    let port = scheme.default_port().as_bytes();
    authority.strip_suffix(port).or_else(|| authority.strip_suffix(b":")).unwrap_or(authority)
}

fn split(bytes: &[u8], at: u8) -> (&[u8], Option<&[u8]>) {
    match bytes.iter().position(|byte| *byte == at) {
        Some(position) => (&bytes[..position], Some(&bytes[position + 1..])),
        None => (bytes, None),
    }
}

/// Percent-decoding of a parameter name, borrowed where there is nothing to decode.
pub(crate) fn decoded(name: &[u8]) -> Cow<'_, [u8]> {
    if !name.iter().any(|byte| matches!(byte, b'%' | b'+')) {
        return Cow::Borrowed(name);
    }
    let digit = |byte: Option<&u8>| {
        byte.and_then(|byte| char::from(*byte).to_digit(16)).and_then(|digit| u8::try_from(digit).ok())
    };
    let mut plain = Vec::with_capacity(name.len());
    let mut at = 0;
    while let Some(byte) = name.get(at) {
        at += 1;
        match (byte, digit(name.get(at)), digit(name.get(at + 1))) {
            (b'%', Some(high), Some(low)) => {
                plain.push(high << 4 | low);
                at += 2;
            }
            (b'+', ..) => plain.push(b' '),
            (other, ..) => plain.push(*other),
        }
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use http::{Method, Version};

    use super::*;

    fn key(target: &str, host: Option<&str>, query: &QueryPolicy) -> Slot {
        let mut request = RequestHeader::build(Method::GET, target.as_bytes(), None).expect("a request");
        if let Some(host) = host {
            request.insert_header(HOST, host).expect("a host");
        }
        slot(&of_request(KeyScope::new("site", "route"), Scheme::Http, query, &request))
    }

    #[test]
    fn http1_and_http2_share_a_key() {
        let one = key("/p?q=1", Some("A.example:80"), &QueryPolicy::All);
        let mut request = RequestHeader::build(Method::GET, b"/p?q=1", None).expect("a request");
        request.set_version(Version::HTTP_2);
        request.set_uri("http://a.example/p?q=1".parse().expect("a uri"));
        let other = slot(&of_request(KeyScope::new("site", "route"), Scheme::Http, &QueryPolicy::All, &request));
        assert_eq!(one, other);
        assert_eq!(one, key("http://a.example/p?q=1", Some("a.example"), &QueryPolicy::All));
        assert_eq!(one, key("http://a.example/p?q=1", None, &QueryPolicy::All), "HTTP/1.0 needs no Host");
    }

    #[test]
    fn every_part_counts() {
        let all = QueryPolicy::All;
        let base = key("/p?q=1", Some("a.example"), &all);
        for (target, host) in [
            ("/p?q=2", "a.example"),
            ("/p?", "a.example"),
            ("/p", "a.example"),
            ("/P?q=1", "a.example"),
            ("/p/?q=1", "a.example"),
            ("/p?q=1", "b.example"),
            ("/p?q=1", "a.example:8080"),
            ("/p?q=1", "a.example:443"),
        ] {
            assert_ne!(base, key(target, Some(host), &all), "{target} {host}");
        }
        let target = |scope, scheme| slot(&of_target(scope, scheme, &all, b"a.example", b"/p?q=1"));
        let scope = KeyScope::new("site", "route");
        assert_eq!(base, target(scope, Scheme::Http));
        assert_ne!(base, target(scope, Scheme::Https));
        assert_ne!(base, target(KeyScope::new("siter", "oute"), Scheme::Http));
    }

    #[test]
    fn parts_count_by_content_order_and_boundaries() {
        let scope = KeyScope::new("site", "route");
        assert_eq!(scope, scope.with_parts::<&str>(&[]));
        let one = scope.with_parts(&["a", "bc"]);
        assert_eq!(one, scope.with_parts(&["a", "bc"]));
        for other in [&["a"][..], &["ab", "c"], &["bc", "a"], &["a", "bc", ""], &[""]] {
            assert_ne!(one, scope.with_parts(other), "{other:?}");
        }
        assert_ne!(scope, scope.with_parts(&[""]));
        assert_ne!(one, KeyScope::new("site", "other").with_parts(&["a", "bc"]));
    }

    #[test]
    fn only_listed_parameters_count_however_they_are_spelt() {
        let only = QueryPolicy::Only(vec!["id".into(), "p q".into()]);
        let base = key("/p?id=1", None, &only);
        for (target, same) in [
            ("/p?id=1&utm=x", true),
            ("/p?utm=x&id=1", true),
            ("/p?%69d=1", true),
            ("/p?i%64=1", true),
            ("/p?id=2", false),
            ("/p?id=1&id=2", false),
            ("/p?id=1&p+q=2", false),
            ("/p?id=1&p%20q=2", false),
            ("/p?ID=1", false),
            ("/p", false),
            ("/p?id", false),
        ] {
            assert_eq!(base == key(target, None, &only), same, "{target}");
        }
        assert_eq!(key("/p?p+q=2&id=1", None, &only), key("/p?id=1&p%20q=2", None, &only));
        assert_eq!(key("/p?utm=1", None, &only), key("/p", None, &only));
    }

    #[test]
    fn others_than_the_excluded_parameters_count() {
        let except = |names: &[&str], sort| QueryPolicy::Except {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            sort,
        };
        let (kept, sorted) = (except(&["utm", "p q"], false), except(&["utm", "p q"], true));
        let all_sorted = except(&[], true);
        for (policy, one, other, same) in [
            (&kept, "/p?id=1&utm=x", "/p?id=1", true),
            (&kept, "/p?id=1&%75tm=x&p+q", "/p?p%20q=7&id=1", true),
            (&kept, "/p?i%64=1", "/p?id=1", true),
            (&kept, "/p?a=1&b=2", "/p?b=2&a=1", false),
            (&kept, "/p?utm=1", "/p", true),
            (&kept, "/p?a&b", "/p?a=b", false),
            (&kept, "/p?a=1&a=2", "/p?a=2&a=1", false),
            (&sorted, "/p?b=2&utm=3&a=1", "/p?a=1&b=2", true),
            (&sorted, "/p?a=1&a=2", "/p?a=2&a=1", false),
            (&all_sorted, "/p?b=2&a=1&b=1", "/p?a=1&b=2&b=1", true),
            (&all_sorted, "/p?b=2&a=1&b=1", "/p?a=1&b=1&b=2", false),
            (&all_sorted, "/p?ab=", "/p?a=b", false),
        ] {
            assert_eq!(key(one, None, policy) == key(other, None, policy), same, "{policy:?} {one} {other}");
        }
    }

    #[test]
    fn a_key_in_words_says_what_counts() {
        let some = QueryPolicy::Only(vec!["id".into(), "p q".into()]);
        for (target, host, policy, words) in [
            ("/p?b=1&a=2", "A.example:80", &QueryPolicy::All, "http://a.example/p?b=1&a=2"),
            ("/p?", "a.example:8080", &QueryPolicy::All, "http://a.example:8080/p?"),
            ("/", "a.example", &QueryPolicy::All, "http://a.example/"),
            ("/p?utm=1&p+q=%20&i%64=7", "a.example", &some, "http://a.example/p?id=7&p%20q=%20"),
            ("/p?utm=1", "a.example", &some, "http://a.example/p"),
        ] {
            let mut request = RequestHeader::build(Method::GET, target.as_bytes(), None).expect("a request");
            request.insert_header(HOST, host).expect("a host");
            assert_eq!(in_words(Scheme::Http, policy, &request), words);
        }
    }

    #[test]
    fn targets_that_are_no_utf8_stay_apart() {
        let key = |target: &[u8]| {
            let request = RequestHeader::build(Method::GET, target, None).expect("a request");
            slot(&of_request(KeyScope::default(), Scheme::Http, &QueryPolicy::All, &request))
        };
        assert_ne!(key(b"/\xff"), key(b"/\xfe"));
    }
}
