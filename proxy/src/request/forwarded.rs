//! The field `Forwarded` (RFC 7239), as trusted proxies write it: one element for each hop, the client's first.

use std::borrow::Cow;

use http::{HeaderMap, header};

/// What one hop says of who asked it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Element<'h> {
    /// Who it was asked by: an address, or a name that hides one (6).
    pub(super) by_whom: Option<Cow<'h, str>>,
    /// Which scheme it was asked over (5.4).
    pub(super) proto: Option<Cow<'h, str>>,
    /// Which host it was asked for (5.3).
    pub(super) host: Option<Cow<'h, str>>,
}

/// The elements of all fields, in order; `None` = there are none, or nobody can tell what they say (4).
pub(super) fn elements(headers: &HeaderMap) -> Option<Vec<Element<'_>>> {
    let mut all = Vec::new();
    for field in headers.get_all(header::FORWARDED) {
        let mut rest = field.to_str().ok()?;
        loop {
            let (element, left) = element(rest)?;
            all.push(element);
            match left.strip_prefix(',') {
                Some(more) => rest = more,
                None if left.is_empty() => break,
                None => return None,
            }
        }
    }
    if all.is_empty() { None } else { Some(all) }
}

/// One element, and what follows it.
fn element(mut rest: &str) -> Option<(Element<'_>, &str)> {
    let mut element = Element::default();
    loop {
        rest = blank(rest);
        if !rest.is_empty() && !rest.starts_with([';', ',']) {
            let (name, after) = rest.split_once('=')?;
            if name.is_empty() || !name.bytes().all(is_tchar) {
                return None;
            }
            let (value, after) = value(after)?;
            rest = blank(after);
            let known = match name.to_ascii_lowercase().as_str() {
                "for" => Some(&mut element.by_whom),
                "proto" => Some(&mut element.proto),
                "host" => Some(&mut element.host),
                _ => None,
            };
            // Each parameter comes once only (4).
            if let Some(known) = known
                && known.replace(value).is_some()
            {
                return None;
            }
        }
        match rest.strip_prefix(';') {
            Some(more) => rest = more,
            None => return Some((element, rest)),
        }
    }
}

/// A value, quoted or not, and what follows it. Addresses with ports are taken without quotes too: some write them so.
fn value(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([';', ',', ' ', '\t', '"']).unwrap_or(text.len());
        let (value, rest) = text.split_at(end);
        let plain = |byte: u8| is_tchar(byte) || matches!(byte, b':' | b'[' | b']');
        return (!value.is_empty() && value.bytes().all(plain)).then_some((Cow::Borrowed(value), rest));
    };
    let mut unescaped = String::new();
    let mut start = 0;
    let mut bytes = quoted.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => {
                let tail = &quoted[start..at];
                let value = if unescaped.is_empty() { Cow::Borrowed(tail) } else { Cow::Owned(unescaped + tail) };
                return Some((value, &quoted[at + 1..]));
            }
            // A pair stands for its second half (RFC 9110, 5.6.4). All of it is ASCII, as `to_str` has seen to.
            b'\\' => {
                unescaped.push_str(&quoted[start..at]);
                bytes.next()?;
                start = at + 1;
            }
            _ => {}
        }
    }
    None
}

fn blank(text: &str) -> &str {
    text.trim_start_matches([' ', '\t'])
}

fn is_tchar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    /// `for proto host` of each element, `-` for what is not said.
    fn read(fields: &[&str]) -> Option<Vec<String>> {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(header::FORWARDED, HeaderValue::from_bytes(field.as_bytes()).unwrap());
        }
        let shown = |text: &Option<Cow<'_, str>>| text.as_deref().unwrap_or("-").to_owned();
        let show = |element: &Element<'_>| [&element.by_whom, &element.proto, &element.host].map(shown).join(" ");
        Some(elements(&headers)?.iter().map(show).collect())
    }

    #[test]
    fn elements_are_read_as_they_are_defined() {
        let cases: &[(&[&str], &[&str])] = &[
            // RFC 7239, 4, 6 and 7.
            (&["for=\"_gazonk\""], &["_gazonk - -"]),
            (&["For=\"[2001:db8:cafe::17]:4711\""], &["[2001:db8:cafe::17]:4711 - -"]),
            (&["for=192.0.2.60;proto=http;by=203.0.113.43"], &["192.0.2.60 http -"]),
            (&["for=192.0.2.43, for=198.51.100.17"], &["192.0.2.43 - -", "198.51.100.17 - -"]),
            (
                &["for=192.0.2.43,for=\"[2001:db8:cafe::17]\",for=unknown"],
                &["192.0.2.43 - -", "[2001:db8:cafe::17] - -", "unknown - -"],
            ),
            (
                &["for=192.0.2.43", "for=198.51.100.17;by=203.0.113.60;proto=http;host=example.com"],
                &["192.0.2.43 - -", "198.51.100.17 http example.com"],
            ),
            (&["host=\"a.test:8443\";PROTO=https"], &["- https a.test:8443"]),
            (&["for=192.0.2.1:4711"], &["192.0.2.1:4711 - -"]),
            (&["for=\"a\\\"b,\\;c\" ; proto=http , for=b"], &["a\"b,;c http -", "b - -"]),
            (&[";;for=a;;"], &["a - -"]),
            (&["", "for=a"], &["- - -", "a - -"]),
        ];
        for (fields, expected) in cases {
            assert_eq!(read(fields).as_deref(), Some(expected.map_to_strings().as_slice()), "{fields:?}");
        }
        for bad in [
            "for",
            "=a",
            "for=",
            "for =a",
            "for= a",
            "for=\"a",
            "for=\"a\\",
            "for=a for=b",
            "for=a;for=b",
            "f r=a",
            "for=a\"b\"",
            "for=a=b\\",
            "for=\"a\"b",
            "for=ä",
        ] {
            assert_eq!(read(&[bad]), None, "{bad}");
            assert_eq!(read(&["for=a", bad]), None, "{bad}");
        }
        assert_eq!(read(&[]), None);
    }

    trait MapToStrings {
        fn map_to_strings(&self) -> Vec<String>;
    }

    impl MapToStrings for [&str] {
        fn map_to_strings(&self) -> Vec<String> {
            self.iter().map(ToString::to_string).collect()
        }
    }

    proptest! {
        #[test]
        fn fields_of_any_kind_do_no_harm(field in "[for=\"\\\\;, a1.:\\[\\]proto]{0,60}") {
            let _ = read(&[&field]);
        }

        #[test]
        fn quoted_values_are_read_back(value in "[ -~]{0,40}") {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            let field = format!("for=\"{quoted}\";proto=https");
            let shown = format!("{value} https -");
            prop_assert_eq!(read(&[&field]), Some(vec![shown]));
        }
    }
}
