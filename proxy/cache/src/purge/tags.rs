//! What origins tag responses with.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::mark::Mark;
use crate::key::Scheme;
use crate::rules::structured;

/// So many tags of a response are kept. One with more counts as having every tag, so that no purge misses it.
pub const TAGS_MAX: usize = 128;
/// The longest tag, in bytes; longer ones are treated as one too many.
pub const TAG_MAX: usize = 1024;

/// A response field that holds tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TagHeader {
    /// `Surrogate-Key`: separated by spaces.
    SurrogateKey,
    /// `Cache-Tag`: separated by commas.
    CacheTag,
    /// `xkey`: separated by spaces or commas.
    Xkey,
    /// `Cache-Groups`: a list of strings (RFC 9875, 2).
    CacheGroups,
}

impl TagHeader {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::SurrogateKey, Self::CacheTag, Self::Xkey, Self::CacheGroups];

    /// The field's name.
    #[must_use]
    pub fn name(self) -> HeaderName {
        HeaderName::from_static(match self {
            Self::SurrogateKey => "surrogate-key",
            Self::CacheTag => "cache-tag",
            Self::Xkey => "xkey",
            Self::CacheGroups => "cache-groups",
        })
    }
}

/// Which tags of a route's responses count, and who sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagPolicy {
    /// The fields that are read. Default: all that are known.
    pub read: Vec<TagHeader>,
    /// Whether clients get these fields. `Cache-Groups` they get in any case: it is for every cache on the way (RFC 9875, 2). Default
    /// `false`: the others are between the origin and this cache, and tell strangers how a site is made.
    pub keep: bool,
}

impl Default for TagPolicy {
    fn default() -> Self {
        Self { read: TagHeader::ALL.into(), keep: false }
    }
}

impl TagPolicy {
    /// The fields that clients do not get.
    pub fn withheld(&self) -> impl Iterator<Item = HeaderName> {
        let hidden = self.read.iter().filter(|header| !self.keep && **header != TagHeader::CacheGroups);
        hidden.map(|header| header.name())
    }
}

/// The tags of a response.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tags<'h> {
    kept: Vec<Tag<'h>>,
    dropped: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Tag<'h> {
    text: Cow<'h, str>,
    is_group: bool,
}

impl<'h> Tags<'h> {
    /// Reads the fields that `policy` names.
    #[must_use]
    pub fn of(headers: &'h HeaderMap<HeaderValue>, policy: &TagPolicy) -> Self {
        let mut tags = Self::default();
        for header in &policy.read {
            let name = header.name();
            let lines = headers.get_all(&name).iter();
            match header {
                TagHeader::CacheGroups if headers.contains_key(&name) => {
                    let groups = structured::strings(headers, &name).unwrap_or_default();
                    groups.into_iter().for_each(|group| tags.add(Cow::Owned(group), true));
                }
                TagHeader::CacheGroups => {}
                TagHeader::SurrogateKey => lines.for_each(|line| tags.split(line, |char| char.is_ascii_whitespace())),
                TagHeader::CacheTag => lines.for_each(|line| tags.split(line, |char| char == ',')),
                TagHeader::Xkey => {
                    lines.for_each(|line| tags.split(line, |char| char == ',' || char.is_ascii_whitespace()));
                }
            }
        }
        tags
    }

    /// Those that are kept, as they were written.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.kept.iter().map(|tag| &*tag.text)
    }

    /// How many were too many, too long, or no text.
    #[must_use]
    pub fn dropped(&self) -> usize {
        self.dropped
    }

    fn split(&mut self, line: &'h HeaderValue, separates: impl Fn(char) -> bool) {
        match line.to_str() {
            Ok(line) => {
                let words = line.split(separates).map(|word| word.trim_matches([' ', '\t']));
                words.filter(|word| !word.is_empty()).for_each(|word| self.add(Cow::Borrowed(word), false));
            }
            Err(_) => self.dropped += 1,
        }
    }

    pub(crate) fn add(&mut self, text: Cow<'h, str>, is_group: bool) {
        if self.kept.len() == TAGS_MAX || text.len() > TAG_MAX {
            self.dropped += 1;
        } else if !self.kept.iter().any(|tag| tag.text == text && tag.is_group == is_group) {
            self.kept.push(Tag { text, is_group });
        }
    }

    pub(super) fn each_mark(&self, scheme: Scheme, authority: &[u8], mut found: impl FnMut(Mark)) {
        for tag in &self.kept {
            found(Mark::tag(tag.text.as_bytes()));
            if tag.is_group {
                found(Mark::group(scheme, authority, tag.text.as_bytes()));
            }
        }
        if self.dropped > 0 {
            found(Mark::too_many_tags());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).expect("a value"));
        }
        headers
    }

    #[test]
    fn each_field_has_its_own_separators() {
        for (name, value, expected) in [
            ("surrogate-key", "  a  b,c\td ", &["a", "b,c", "d"][..]),
            ("cache-tag", "a, b c ,,d,", &["a", "b c", "d"]),
            ("xkey", "a, b c,,d", &["a", "b", "c", "d"]),
            ("cache-groups", "\"a b\", \"c,\\\"d\";p=1", &["a b", "c,\"d"]),
            ("cache-groups", "a, \"b\"", &[]),
            ("cache-groups", "\"a\" \"b\"", &[]),
            ("cache-groups", "\"a\", 1", &[]),
            ("cache-groups", "\"a\",", &[]),
            ("x-tags", "a", &[]),
        ] {
            let headers = headers(&[(name, value)]);
            let tags = Tags::of(&headers, &TagPolicy::default());
            assert_eq!(tags.iter().collect::<Vec<_>>(), expected, "{name}: {value}");
            assert_eq!(tags.dropped(), 0);
        }
    }

    #[test]
    fn lines_and_fields_add_up() {
        let headers = headers(&[("surrogate-key", "a b"), ("cache-tag", "b,c"), ("surrogate-key", "d")]);
        let tags = Tags::of(&headers, &TagPolicy::default());
        assert_eq!(tags.iter().collect::<Vec<_>>(), ["a", "b", "d", "c"]);
        let none = TagPolicy { read: Vec::new(), ..TagPolicy::default() };
        assert_eq!(Tags::of(&headers, &none).iter().count(), 0);
    }

    #[test]
    fn what_is_too_much_is_counted_and_counts_as_every_tag() {
        let many: Vec<String> = (0..200).map(|tag| tag.to_string()).collect();
        let long = "x".repeat(TAG_MAX + 1);
        for (value, kept, dropped) in [(many.join(","), TAGS_MAX, 72), (format!("a,{long}"), 1, 1)] {
            let headers = headers(&[("cache-tag", &value)]);
            let tags = Tags::of(&headers, &TagPolicy::default());
            assert_eq!((tags.iter().count(), tags.dropped()), (kept, dropped));
            let mut marks = Vec::new();
            tags.each_mark(Scheme::Http, b"a.example", |mark| marks.push(mark));
            assert_eq!(marks.last(), Some(&Mark::too_many_tags()));
        }
    }

    /// RFC 9875, 2: a group belongs to its origin.
    #[test]
    fn a_group_is_a_tag_and_one_of_its_origin() {
        let headers = headers(&[("cache-groups", "\"g\"")]);
        let tags = Tags::of(&headers, &TagPolicy::default());
        let mut marks = Vec::new();
        tags.each_mark(Scheme::Https, b"A.example:443", |mark| marks.push(mark));
        let group = |scheme, authority: &str| Mark::group(scheme, authority.as_bytes(), b"g");
        assert_eq!(marks, [Mark::tag(b"G"), group(Scheme::Https, "a.example")]);
        assert_ne!(marks[1], group(Scheme::Http, "a.example"));
        assert_ne!(marks[1], group(Scheme::Https, "b.example"));
        assert_ne!(marks[1], Mark::group(Scheme::Https, b"a.example", b"G"));
    }

    #[test]
    fn clients_get_groups_and_not_the_rest() {
        let policy = TagPolicy::default();
        assert_eq!(policy.withheld().collect::<Vec<_>>(), ["surrogate-key", "cache-tag", "xkey"]);
        assert_eq!(TagPolicy { keep: true, ..policy }.withheld().count(), 0);
    }
}
