//! One reading of a path, before routes, filters and cache keys look at it (RFC 3986, 6.2.2). What nobody could mean, or what servers are
//! known to read in different ways, is refused.

use std::borrow::Cow;

use selvedge_config::{EncodedSlashes, Paths};

/// A path that is refused, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BadPath(pub(crate) &'static str);

/// The path of a request as everything after it sees it. Free of cost for paths that have nothing to normalise but a look at each byte.
///
/// `path` begins with a slash and has no query.
///
/// # Errors
/// See [`BadPath`].
pub(crate) fn normal<'p>(path: &'p [u8], policy: &Paths) -> Result<Cow<'p, [u8]>, BadPath> {
    if is_plain(path, policy) {
        return Ok(Cow::Borrowed(path));
    }
    let decoded = decode(path, policy)?;
    if !policy.normalize {
        return Ok(Cow::Owned(decoded));
    }
    segments(&decoded, policy.merge_slashes).map(Cow::Owned)
}

/// Whether there is nothing to do: no percent sign, no segment that begins with a dot, no empty segment, nothing outside of what a path
/// may hold.
fn is_plain(path: &[u8], policy: &Paths) -> bool {
    let mut before = b'a';
    for byte in path {
        let odd = match byte {
            b'%' | 0x80.. | 0..=b' ' | 0x7f | b'\\' => true,
            b'.' => before == b'/',
            b'/' => before == b'/' && policy.merge_slashes,
            _ => false,
        };
        if odd {
            return false;
        }
        before = *byte;
    }
    true
}

/// Percent-encoding in one form: what needs none has none, hexadecimal digits are upper case, and what needs it has it.
fn decode(path: &[u8], policy: &Paths) -> Result<Vec<u8>, BadPath> {
    let mut out = Vec::with_capacity(path.len() + 8);
    let mut bytes = path.iter().copied();
    while let Some(byte) = bytes.next() {
        let (value, encoded) = match byte {
            b'%' => {
                let digits = (bytes.next().and_then(hex), bytes.next().and_then(hex));
                let (Some(high), Some(low)) = digits else { return Err(BadPath("% without two hexadecimal digits")) };
                (high << 4 | low, true)
            }
            byte => (byte, false),
        };
        match value {
            0..=0x1f | 0x7f => return Err(BadPath("a control character in the path")),
            b'/' if encoded => match policy.encoded_slashes {
                EncodedSlashes::Keep => out.extend(b"%2F"),
                EncodedSlashes::Decode => out.push(b'/'),
                EncodedSlashes::Reject => return Err(BadPath("an encoded slash in the path")),
            },
            // Unreserved characters mean the same either way (RFC 3986, 2.3).
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' if policy.normalize => out.push(value),
            // A backslash is a slash to some servers: encoded it is none to anybody.
            b'\\' | b' ' | b'"' | b'<' | b'>' | 0x80.. => push_encoded(&mut out, value),
            _ if encoded => push_encoded(&mut out, value),
            _ => out.push(value),
        }
    }
    Ok(out)
}

/// Removes dot segments (RFC 3986, 5.2.4), and empty ones if they are to go.
fn segments(path: &[u8], merge_slashes: bool) -> Result<Vec<u8>, BadPath> {
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    let inner = path.strip_prefix(b"/").unwrap_or(path);
    let mut all = inner.split(|byte| *byte == b'/').peekable();
    while let Some(segment) = all.next() {
        let is_last = all.peek().is_none();
        // What follows a semicolon is a parameter to some servers, and `..;` a dot segment then.
        let bare = segment.split(|byte| *byte == b';').next().unwrap_or_default();
        if matches!(bare, b"." | b"..") && bare.len() != segment.len() {
            return Err(BadPath("a dot segment with a parameter"));
        }
        match segment {
            b"." => {}
            b".." => {
                let Some(parent) = out.iter().rposition(|byte| *byte == b'/') else {
                    return Err(BadPath("the path leads out of the root"));
                };
                out.truncate(parent);
            }
            b"" if merge_slashes && !is_last => {}
            segment => {
                out.push(b'/');
                out.extend(segment);
                continue;
            }
        }
        // `/a/.` and `/a/b/..` are `/a/`.
        if is_last {
            out.push(b'/');
        }
    }
    // A last slash that was kept beside one that a dot segment has left.
    while merge_slashes && out.ends_with(b"//") {
        out.pop();
    }
    Ok(out)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

fn push_encoded(out: &mut Vec<u8>, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.extend([b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with(policy: &Paths, path: &str) -> Result<String, &'static str> {
        normal(path.as_bytes(), policy)
            .map(|path| String::from_utf8_lossy(&path).into_owned())
            .map_err(|refused| refused.0)
    }

    #[test]
    fn paths_have_one_form() {
        let cases = [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/b/.", "/a/b/"),
            ("/a/b/../", "/a/"),
            ("/.", "/"),
            ("/a/%2e%2e/b", "/b"),
            ("/a/.%2E/b", "/b"),
            ("/%61%62", "/ab"),
            ("/a%2fb", "/a%2Fb"),
            ("/a%2F..%2Fb", "/a%2F..%2Fb"),
            ("/a%c3%a9", "/a%C3%A9"),
            ("/a%3fb", "/a%3Fb"),
            ("/a//b", "/a/b"),
            ("//a", "/a"),
            ("/a//", "/a/"),
            ("//", "/"),
            ("///..//a", "refused"),
            ("/a\\..\\b", "/a%5C..%5Cb"),
            ("/a%5cb", "/a%5Cb"),
            ("/a b", "/a%20b"),
            ("/é", "/%C3%A9"),
            ("/.hidden", "/.hidden"),
            ("/...", "/..."),
            ("/a/..b", "/a/..b"),
            ("/a;x=1/b", "/a;x=1/b"),
            ("/a/..//../..", "refused"),
            ("/..", "refused"),
            ("/a/../..", "refused"),
            ("/%2e%2e/a", "refused"),
            ("/a/..;/b", "refused"),
            ("/a/.;x/b", "refused"),
            ("/a%00", "refused"),
            ("/a%0d%0ab", "refused"),
            ("/a\u{1}", "refused"),
            ("/%", "refused"),
            ("/%4", "refused"),
            ("/%zz", "refused"),
        ];
        for (path, expected) in cases {
            let found = with(&Paths::default(), path);
            assert_eq!(found.as_deref().unwrap_or("refused"), expected, "{path}: {found:?}");
        }
    }

    #[test]
    fn the_policy_decides_about_slashes() {
        let keep = Paths { merge_slashes: false, ..Paths::default() };
        assert_eq!(with(&keep, "/a//b/./c").unwrap(), "/a//b/c");
        assert_eq!(with(&keep, "/a//../b").unwrap(), "/a/b");
        let decode = Paths { encoded_slashes: EncodedSlashes::Decode, ..Paths::default() };
        assert_eq!(with(&decode, "/a%2f..%2fb").unwrap(), "/b");
        let reject = Paths { encoded_slashes: EncodedSlashes::Reject, ..Paths::default() };
        assert!(with(&reject, "/a%2fb").is_err());
        let raw = Paths { normalize: false, merge_slashes: false, ..Paths::default() };
        assert_eq!(with(&raw, "/a/../%61//b").unwrap(), "/a/../%61//b");
        assert!(with(&raw, "/a%00").is_err());
    }

    proptest! {
        #[test]
        fn a_normal_path_stays_and_has_no_dot_segments(path in "/[a-c./%25;\\\\ é2Ff]{0,24}", merge in any::<bool>(), slashes in 0..2) {
            let encoded_slashes = if slashes == 0 { EncodedSlashes::Keep } else { EncodedSlashes::Decode };
            let policy = Paths { merge_slashes: merge, encoded_slashes, ..Paths::default() };
            if let Ok(once) = normal(path.as_bytes(), &policy) {
                prop_assert!(once.starts_with(b"/"), "{:?}", once);
                let again = normal(&once, &policy).map(Cow::into_owned);
                prop_assert_eq!(again, Ok(once.to_vec()));
                for segment in once.split(|byte| *byte == b'/') {
                    prop_assert!(segment != b"." && segment != b"..");
                }
                if merge {
                    prop_assert!(!once.windows(2).any(|pair| pair == b"//"));
                }
            }
        }
    }
}
