//! What a stored response belongs to, as numbers: its URL, its host, the prefixes of its path, its tags.
//!
//! Neither the scheme nor the port of a URL counts, so that a purge of `https://www.example.com/x` reaches what was stored for plain
//! HTTP or on another port as well: purging more is the safe side. For the same reason a hash that is no cryptographic one will do. Two
//! names with one hash are purged together.

use std::num::NonZeroU64;
use std::sync::Arc;

use super::tags::Tags;
use crate::key::{self, Part, Scheme};
use crate::rules::QueryPolicy;

/// So many segments of a path count for purges by prefix; a longer prefix is cut, and purges more.
const DEPTH_MAX: usize = 64;

/// One thing that responses can belong to.
///
/// The numbers are the same in every process and release: they are kept in the purge log and with stored responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark(NonZeroU64);

impl Mark {
    /// As it is kept.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0.get()
    }

    /// What was kept; 0 is none.
    #[must_use]
    pub fn from_u64(kept: u64) -> Option<Self> {
        NonZeroU64::new(kept).map(Self)
    }

    /// Belongs to whatever has more tags than are kept.
    pub(crate) fn too_many_tags() -> Self {
        Hash::new(b'*').mark()
    }

    /// Something tagged so. ASCII case does not count, as some who set tags take it so.
    pub(crate) fn tag(tag: &[u8]) -> Self {
        let mut hash = Hash::new(b't');
        hash.lower(tag);
        hash.mark()
    }

    /// A cache group, which belongs to its origin (RFC 9875, 2).
    pub(crate) fn group(scheme: Scheme, authority: &[u8], group: &[u8]) -> Self {
        let mut hash = Hash::new(b'g');
        hash.bytes(scheme.as_str().as_bytes());
        hash.end();
        hash.lower(key::without_default_port(authority, scheme));
        hash.end();
        hash.bytes(group);
        hash.mark()
    }

    fn host(host: &[u8]) -> Self {
        host_hash(host).mark()
    }

    /// The deepest prefix that `path` is: itself, without the slash at its end.
    fn prefix(host: &[u8], path: &[u8]) -> Self {
        let mut mark = Self::host(host);
        each_prefix(host, path, |prefix| mark = prefix);
        mark
    }

    /// Every URL of a path, for what is stored for several queries at once.
    fn any_query(host: &[u8], target: &[u8]) -> Self {
        let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
        let mut hash = Hash::new(b'q');
        hash.lower(host);
        hash.end();
        hash.part(b'/', if path.is_empty() { b"/" } else { path });
        hash.mark()
    }

    fn url(query: &QueryPolicy, host: &[u8], target: &[u8]) -> Self {
        let mut hash = Hash::new(b'u');
        key::each_part(Scheme::Https, query, b"", target, |part| match part {
            Part::Scheme(_) => {}
            Part::Authority(_) => {
                hash.lower(host);
                hash.end();
            }
            Part::Path(bytes) => hash.part(b'/', bytes),
            Part::Query(bytes) => hash.part(b'?', bytes),
            Part::Name(bytes) => hash.part(b'&', bytes),
            Part::Value(bytes) => hash.part(b'=', bytes),
        });
        hash.mark()
    }
}

/// What one purge is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scope {
    /// `None` = everything.
    pub(super) mark: Option<Mark>,
    /// The host it lies in, if it lies in one: what it is folded into when there are too many.
    pub(super) host: Option<Mark>,
}

impl Scope {
    /// Everything that is stored.
    #[must_use]
    pub fn everything() -> Self {
        Self { mark: None, host: None }
    }

    /// All of a host, whatever the port.
    #[must_use]
    pub fn host(host: &str) -> Self {
        let mark = Mark::host(bare_host(host.as_bytes()));
        Self { mark: Some(mark), host: Some(mark) }
    }

    /// A path and everything below it: `/a`, `/a/` and `/a/b`, but not `/ab`.
    #[must_use]
    pub fn prefix(host: &str, path: &str) -> Self {
        let host = bare_host(host.as_bytes());
        Self { mark: Some(Mark::prefix(host, path.as_bytes())), host: Some(Mark::host(host)) }
    }

    /// What is stored for a URL together with others of its path, which differ in what does not count of their queries (`No-Vary-Search`).
    /// To be purged with every [`url`](Self::url).
    #[must_use]
    pub fn any_query(host: &str, target: &str) -> Self {
        let host = bare_host(host.as_bytes());
        Self { mark: Some(Mark::any_query(host, target.as_bytes())), host: Some(Mark::host(host)) }
    }

    /// A URL with all its variants, but for [`any_query`](Self::any_query). `target` is path and query, read as routes with this `query` policy read it.
    #[must_use]
    pub fn url(query: &QueryPolicy, host: &str, target: &str) -> Self {
        let host = bare_host(host.as_bytes());
        Self { mark: Some(Mark::url(query, host, target.as_bytes())), host: Some(Mark::host(host)) }
    }

    /// Whatever has this tag.
    #[must_use]
    pub fn tag(tag: &str) -> Self {
        Self { mark: Some(Mark::tag(tag.as_bytes())), host: None }
    }

    /// Whatever has more tags than are kept: goes with every purge of tags.
    #[must_use]
    pub fn too_many_tags() -> Self {
        Self { mark: Some(Mark::too_many_tags()), host: None }
    }

    /// A cache group of one origin (RFC 9875).
    #[must_use]
    pub fn group(scheme: Scheme, authority: &str, group: &str) -> Self {
        let host = Mark::host(bare_host(authority.as_bytes()));
        Self { mark: Some(Mark::group(scheme, authority.as_bytes(), group.as_bytes())), host: Some(host) }
    }

    /// What was [kept](Self::to_parts).
    #[must_use]
    pub fn from_parts(mark: u64, host: u64) -> Self {
        Self { mark: Mark::from_u64(mark), host: Mark::from_u64(host) }
    }

    /// As it is kept: the mark, and that of its host; 0 is none.
    #[must_use]
    pub fn to_parts(self) -> (u64, u64) {
        (self.mark.map_or(0, Mark::get), self.host.map_or(0, Mark::get))
    }
}

/// What a stored response is judged by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marks {
    /// When its fetch began.
    pub epoch: u64,
    /// What it belongs to.
    pub marks: Arc<[Mark]>,
}

impl Marks {
    /// Those of a response to a request for `target` at `authority`, whose fetch began at `epoch`.
    #[must_use]
    pub fn new(
        epoch: u64,
        scheme: Scheme,
        query: &QueryPolicy,
        authority: &[u8],
        target: &[u8],
        tags: &Tags<'_>,
    ) -> Self {
        let host = bare_host(authority);
        let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
        let mut marks = vec![Mark::url(query, host, target), Mark::host(host)];
        each_prefix(host, path, |prefix| marks.push(prefix));
        tags.each_mark(scheme, authority, |mark| marks.push(mark));
        Self { epoch, marks: marks.into() }
    }

    /// Those of a response that is stored for other queries of its path as well.
    #[must_use]
    pub fn for_queries(self, authority: &[u8], target: &[u8]) -> Self {
        let any = Mark::any_query(bare_host(authority), target);
        Self { marks: self.marks.iter().copied().chain([any]).collect(), ..self }
    }
}

/// The host of an authority, without the port: `[::1]:80` -> `[::1]`.
fn bare_host(authority: &[u8]) -> &[u8] {
    let end = match authority.iter().position(|byte| *byte == b']') {
        Some(bracket) => bracket + 1,
        None => authority.iter().position(|byte| *byte == b':').unwrap_or(authority.len()),
    };
    &authority[..end]
}

fn host_hash(host: &[u8]) -> Hash {
    let mut hash = Hash::new(b'h');
    hash.lower(host);
    hash.end();
    hash
}

/// The marks of `/a`, `/a/b` and `/a/b/c` for `/a/b/c`, in this order.
fn each_prefix(host: &[u8], path: &[u8], mut found: impl FnMut(Mark)) {
    let mut hash = host_hash(host);
    let segments = path.strip_prefix(b"/").unwrap_or(path).split(|byte| *byte == b'/');
    for segment in segments.take(DEPTH_MAX) {
        hash.bytes(b"/");
        if !segment.is_empty() {
            hash.bytes(segment);
            found(hash.mark());
        }
    }
}

/// FNV-1a over 64 bits, with a last mixing step so that all bits of it can be used by themselves.
#[derive(Clone, Copy)]
struct Hash(u64);

impl Hash {
    fn new(kind: u8) -> Self {
        let mut hash = Self(0xcbf2_9ce4_8422_2325);
        hash.byte(kind);
        hash
    }

    fn byte(&mut self, byte: u8) {
        self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.byte(*byte));
    }

    fn lower(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.byte(byte.to_ascii_lowercase()));
    }

    /// Ends a part of unknown length, by a byte that neither hosts nor header fields hold.
    fn end(&mut self) {
        self.byte(0);
    }

    /// A part of its own kind, of a length that is told.
    fn part(&mut self, kind: u8, bytes: &[u8]) {
        self.byte(kind);
        self.bytes(&(bytes.len() as u64).to_le_bytes());
        self.bytes(bytes);
    }

    fn mark(self) -> Mark {
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        mixed ^= mixed >> 33;
        Mark(NonZeroU64::new(mixed).unwrap_or(NonZeroU64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(authority: &str, target: &str) -> Arc<[Mark]> {
        let policy = QueryPolicy::All;
        Marks::new(1, Scheme::Http, &policy, authority.as_bytes(), target.as_bytes(), &Tags::default()).marks
    }

    fn reaches(scope: Scope, authority: &str, target: &str) -> bool {
        scope.mark.is_none_or(|mark| marks(authority, target).contains(&mark))
    }

    #[test]
    fn what_a_scope_reaches() {
        let all = QueryPolicy::All;
        for (scope, authority, target, reached) in [
            (Scope::everything(), "a.example", "/", true),
            (Scope::host("A.example:99"), "a.EXAMPLE:8080", "/x/y?z", true),
            (Scope::host("a.example"), "b.example", "/", false),
            (Scope::host("[::1]"), "[::1]:80", "/", true),
            (Scope::prefix("a.example", "/"), "a.example", "/x", true),
            (Scope::prefix("a.example", ""), "a.example", "/", true),
            (Scope::prefix("a.example", "/a"), "a.example", "/a", true),
            (Scope::prefix("a.example", "/a"), "a.example", "/a?b", true),
            (Scope::prefix("a.example", "/a/"), "a.example", "/a", true),
            (Scope::prefix("a.example", "/a"), "a.example", "/a/", true),
            (Scope::prefix("a.example", "/a/b"), "a.example", "/a/b/c/d", true),
            (Scope::prefix("a.example", "/a"), "a.example", "/ab", false),
            (Scope::prefix("a.example", "/a/b"), "a.example", "/a", false),
            (Scope::prefix("a.example", "/b"), "a.example", "/a/b", false),
            (Scope::prefix("a.example", "/a"), "b.example", "/a", false),
            (Scope::prefix("a.example", "/A"), "a.example", "/a", false),
            (Scope::url(&all, "a.example", "/a?b=1"), "a.example:8443", "/a?b=1", true),
            (Scope::url(&all, "a.example", "/a"), "a.example", "/a?b=1", false),
            (Scope::url(&all, "a.example", "/a?b=1"), "a.example", "/a?b=2", false),
            (Scope::url(&all, "a.example", "/a"), "a.example", "/a/", false),
            (Scope::url(&all, "a.example", ""), "a.example", "/", true),
            (Scope::tag("a.example"), "a.example", "/", false),
            (Scope::any_query("a.example", "/a?b=1"), "a.example", "/a", false),
        ] {
            assert_eq!(reaches(scope, authority, target), reached, "{scope:?} {authority} {target}");
        }
    }

    #[test]
    fn a_url_is_read_as_the_key_reads_it() {
        let only = QueryPolicy::Only(vec!["id".into()]);
        let mark = |target| Scope::url(&only, "a.example", target);
        assert_eq!(mark("/p?utm=1&i%64=7"), mark("/p?id=7"));
        assert_ne!(mark("/p?id=7"), mark("/p?id=8"));
        assert_eq!(mark("/p"), mark("/p?utm=1"));
    }

    #[test]
    fn deep_paths_are_cut_and_purge_more() {
        let deep = "/a".repeat(100);
        assert_eq!(marks("a.example", &deep).len(), 2 + DEPTH_MAX);
        assert!(reaches(Scope::prefix("a.example", &deep), "a.example", &"/a".repeat(70)));
    }

    /// Kept in logs and with stored responses: another hash would forget purges in silence.
    #[test]
    fn the_numbers_stay_as_they_are() {
        let host = 0x9aa4f0bcfa1b18ea;
        for (scope, mark, host) in [
            (Scope::everything(), 0, 0),
            (Scope::host("www.example.com"), host, host),
            (Scope::prefix("www.example.com", "/a/b/"), 0xa338a5b5196ec99a, host),
            (Scope::url(&QueryPolicy::All, "www.example.com", "/a?b=1"), 0xdfcc41a46d9f4a4d, host),
            (Scope::tag("Product-17"), 0xfa918b0a4b1094e6, 0),
        ] {
            assert_eq!(scope.to_parts(), (mark, host));
        }
    }
}
