//! Targeted cache control (RFC 9213): `Selvedge-CDN-Cache-Control` and `CDN-Cache-Control` as dictionaries of structured fields (RFC 9651).

use http::{HeaderMap, HeaderName, HeaderValue};

use super::directives::CacheControl;

/// The targeted field for this cache alone (RFC 9213, 3.2).
pub const OWN_CACHE_CONTROL: HeaderName = HeaderName::from_static("selvedge-cdn-cache-control");

/// The targeted field this cache listens to next, for it is a CDN's cache (RFC 9213, 3.1).
pub const CDN_CACHE_CONTROL: HeaderName = HeaderName::from_static("cdn-cache-control");

/// What the origin says to this cache: the first field of its target list that is valid, else `Cache-Control` (RFC 9213, 2.2). And
/// whether it is a targeted one.
#[must_use]
pub fn origins_directives(headers: &HeaderMap<HeaderValue>) -> (CacheControl, bool) {
    match targeted(headers, &OWN_CACHE_CONTROL).or_else(|| targeted(headers, &CDN_CACHE_CONTROL)) {
        Some(directives) => (directives, true),
        None => (CacheControl::of(headers), false),
    }
}

/// The directives of a targeted field, or `None` when there is no such field, it is empty, it is no structured dictionary, or a
/// directive has a value of the wrong type. Then `Cache-Control` and `Expires` decide (RFC 9213, 2.1 and 2.2).
#[must_use]
pub fn targeted(headers: &HeaderMap<HeaderValue>, field: &HeaderName) -> Option<CacheControl> {
    // Nearly every response lacks the field: find out before anything is allocated.
    if !headers.contains_key(field) {
        return None;
    }
    let mut combined = String::new();
    for line in headers.get_all(field) {
        if !combined.is_empty() {
            combined.push(',');
        }
        combined.push_str(line.to_str().ok()?);
    }
    parse(&combined)
}

/// Read a dictionary as cache directives; see [`targeted`].
#[must_use]
pub fn parse(text: &str) -> Option<CacheControl> {
    let members = dictionary(text)?;
    if members.is_empty() {
        return None;
    }

    let mut directives = CacheControl::default();
    for (index, (key, value)) in members.iter().enumerate() {
        // A later member of the same key replaces the earlier one (RFC 9651, 4.2.2).
        if members[index + 1..].iter().any(|(later, _)| later == key) {
            continue;
        }
        let seconds = matches!(*key, "max-age" | "s-maxage" | "stale-while-revalidate" | "stale-if-error");
        match value {
            Value::Integer(number) if *number >= 0 && !is_scope(key) => directives.note(key, Some(&number.to_string())),
            Value::Boolean(true) if !seconds => directives.note(key, None),
            Value::Boolean(false) if !seconds => {}
            Value::Text(names) if is_scope(key) => directives.note(key, Some(names)),
            _ if seconds => return None,
            // An unknown type on a restriction still restricts: no-store=1 was meant to say no.
            _ => directives.note(key, None),
        }
    }
    Some(directives)
}

/// Whether a directive may name the fields it is about.
fn is_scope(directive: &str) -> bool {
    matches!(directive, "no-cache" | "private")
}

/// The members of a list of strings (RFC 9651, 4.2.1), their parameters left out; `None` when the field is no such list. Nearly every
/// response lacks the fields this is for: ask whether it is there before.
#[must_use]
pub fn strings(headers: &HeaderMap<HeaderValue>, field: &HeaderName) -> Option<Vec<String>> {
    let mut combined = String::new();
    for line in headers.get_all(field) {
        if !combined.is_empty() {
            combined.push(',');
        }
        combined.push_str(line.to_str().ok()?);
    }
    let mut at = Cursor { rest: combined.trim_matches(' ') };
    let mut members = Vec::new();
    while !at.rest.is_empty() {
        let Value::Text(text) = at.string()? else { return None };
        at.parameters()?;
        members.push(text);

        at.skip(&[' ', '\t']);
        if at.rest.is_empty() {
            break;
        }
        if !at.eat(',') {
            return None;
        }
        at.skip(&[' ', '\t']);
        if at.rest.is_empty() {
            return None; // a trailing comma
        }
    }
    Some(members)
}

/// Values, as far as somebody tells them apart.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Integer(i64),
    Boolean(bool),
    /// A string or a token.
    Text(String),
    /// An inner list of strings.
    Strings(Vec<String>),
    /// A decimal, byte sequence, date, display string or another inner list: nobody has one.
    Other,
}

/// RFC 9651, 4.2.2: parse a dictionary, all of it or nothing.
pub(super) fn dictionary(text: &str) -> Option<Vec<(&str, Value)>> {
    if !text.is_ascii() {
        return None;
    }
    let mut at = Cursor { rest: text.trim_matches(' ') };
    let mut members = Vec::new();
    while !at.rest.is_empty() {
        let key = at.key()?;
        let value = if at.eat('=') { at.item_or_inner_list()? } else { Value::Boolean(true) };
        at.parameters()?;
        members.push((key, value));

        at.skip(&[' ', '\t']);
        if at.rest.is_empty() {
            return Some(members);
        }
        if !at.eat(',') {
            return None;
        }
        at.skip(&[' ', '\t']);
        if at.rest.is_empty() {
            return None; // a trailing comma
        }
    }
    Some(members)
}

struct Cursor<'a> {
    rest: &'a str,
}

impl<'a> Cursor<'a> {
    fn eat(&mut self, char: char) -> bool {
        self.rest.strip_prefix(char).map(|rest| self.rest = rest).is_some()
    }

    fn skip(&mut self, chars: &[char]) {
        self.rest = self.rest.trim_start_matches(chars);
    }

    fn take_while(&mut self, keep: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|char| !keep(char)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    fn key(&mut self) -> Option<&'a str> {
        if !self.rest.starts_with(|char: char| char.is_ascii_lowercase() || char == '*') {
            return None;
        }
        Some(self.take_while(|char| char.is_ascii_lowercase() || char.is_ascii_digit() || "_-.*".contains(char)))
    }

    fn item_or_inner_list(&mut self) -> Option<Value> {
        if !self.eat('(') {
            return self.bare_item();
        }
        let mut strings = Some(Vec::new());
        loop {
            self.skip(&[' ']);
            if self.eat(')') {
                return Some(strings.map_or(Value::Other, Value::Strings));
            }
            let is_string = self.rest.starts_with('"');
            match self.bare_item()? {
                Value::Text(text) if is_string => {
                    if let Some(strings) = &mut strings {
                        strings.push(text);
                    }
                }
                _ => strings = None,
            }
            self.parameters()?;
            if !self.rest.starts_with([' ', ')']) {
                return None;
            }
        }
    }

    fn parameters(&mut self) -> Option<()> {
        while self.eat(';') {
            self.skip(&[' ']);
            self.key()?;
            if self.eat('=') {
                self.bare_item()?;
            }
        }
        Some(())
    }

    fn bare_item(&mut self) -> Option<Value> {
        match self.rest.chars().next()? {
            '"' => self.string(),
            '?' => self.boolean(),
            ':' => {
                self.eat(':');
                self.take_while(|char| char.is_ascii_alphanumeric() || "+/=".contains(char));
                self.eat(':').then_some(Value::Other)
            }
            '@' => {
                self.eat('@');
                matches!(self.number()?, Value::Integer(_)).then_some(Value::Other)
            }
            '%' => {
                self.eat('%');
                self.string().map(|_| Value::Other)
            }
            '-' | '0'..='9' => self.number(),
            first if first.is_ascii_alphabetic() || first == '*' => Some(Value::Text(
                self.take_while(|char| char.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~:/".contains(char)).to_owned(),
            )),
            _ => None,
        }
    }

    fn boolean(&mut self) -> Option<Value> {
        let value = match self.rest.as_bytes().get(1)? {
            b'0' => false,
            b'1' => true,
            _ => return None,
        };
        self.rest = &self.rest[2..];
        Some(Value::Boolean(value))
    }

    fn number(&mut self) -> Option<Value> {
        let negative = self.eat('-');
        let integer = self.take_while(|char| char.is_ascii_digit());
        if integer.is_empty() || integer.len() > 15 {
            return None;
        }
        if self.eat('.') {
            let fraction = self.take_while(|char| char.is_ascii_digit());
            return (integer.len() <= 12 && (1..=3).contains(&fraction.len())).then_some(Value::Other);
        }
        let number: i64 = integer.parse().ok()?;
        Some(Value::Integer(if negative { -number } else { number }))
    }

    fn string(&mut self) -> Option<Value> {
        if !self.eat('"') {
            return None;
        }
        let mut text = String::new();
        let mut chars = self.rest.char_indices();
        while let Some((at, char)) = chars.next() {
            match char {
                '"' => {
                    self.rest = &self.rest[at + 1..];
                    return Some(Value::Text(text));
                }
                '\\' => text.push(chars.next().map(|(_, escaped)| escaped).filter(|char| "\"\\".contains(*char))?),
                ' '..='~' => text.push(char),
                _ => return None,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::rules::directives::Delta;

    /// RFC 9213, 2.1: the field is a dictionary; what is not one is ignored as a whole.
    #[test]
    fn only_a_structured_dictionary_counts() {
        for (text, counts) in [
            ("max-age=60", true),
            ("max-age=60, no-cache", true),
            (" max-age=60 ", true),
            ("max-age=60;a=1;b", true),
            ("max-age=60, x=(a \"b\" 1);q=1, y=:aGk=:, z=@12, d=%\"f%c3\", t=tok/en", true),
            ("", false),
            ("max-age=60,", false),
            ("MAX-AGE=60", false),
            ("max-age = 60", false),
            ("max-age=", false),
            ("max-age", false),
            ("max-age=?1", false),
            ("max-age=\"60\"", false),
            ("max-age=-60", false),
            ("max-age=6.0", false),
            ("max-age=60 no-cache", false),
            ("max-age=60, &", false),
            ("no-cache=\"unclosed", false),
            ("x=(a", false),
            ("x=1234567890123456", false),
        ] {
            assert_eq!(parse(text).is_some(), counts, "{text}");
        }
    }

    #[test]
    fn members_become_directives() {
        let parsed = parse("max-age=1, no-store=?0, private=\"a\", max-age=9, must-revalidate").expect("a dictionary");
        assert_eq!(parsed.max_age, Delta::Seconds(Duration::from_secs(9)));
        assert!(!parsed.no_store && parsed.must_revalidate);
        assert_eq!(parsed.private.fields(), ["a"]);
        assert!(parse("no-store=1").expect("a dictionary").no_store);
        assert!(parse("no-cache=1").expect("a dictionary").no_cache.is_whole());
        assert!(parse("private=(\"a\" \"b\")").expect("a dictionary").private.is_whole());
    }

    /// RFC 9213, 2.2: the most specific valid field is the only one that counts.
    #[test]
    fn the_target_list_has_an_order() {
        for (own, cdn, expected) in [
            ("max-age=1", "max-age=2", (1, true)),
            ("max-age=x", "max-age=2", (2, true)),
            ("max-age=x", "max-age=", (3, false)),
            ("", "", (3, false)),
        ] {
            let mut headers = HeaderMap::new();
            headers.append(OWN_CACHE_CONTROL, HeaderValue::from_static(own));
            headers.append(CDN_CACHE_CONTROL, HeaderValue::from_static(cdn));
            headers.append("cache-control", HeaderValue::from_static("max-age=3"));
            let (directives, targeted) = origins_directives(&headers);
            let seconds = directives.max_age.lifetime().expect("one").as_secs();
            assert_eq!((seconds, targeted), expected, "{own:?} {cdn:?}");
        }
    }

    #[test]
    fn lines_are_combined() {
        let mut headers = HeaderMap::new();
        assert_eq!(targeted(&headers, &CDN_CACHE_CONTROL), None);
        headers.append(CDN_CACHE_CONTROL, HeaderValue::from_static("max-age=3"));
        headers.append(CDN_CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        let parsed = targeted(&headers, &CDN_CACHE_CONTROL).expect("a dictionary");
        assert!(parsed.no_cache.is_whole());
        assert_eq!(parsed.max_age, Delta::Seconds(Duration::from_secs(3)));
    }
}
