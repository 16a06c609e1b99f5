//! Decoders: what an attacker wraps around a payload, taken off again.
//!
//! Every function here is total (any bytes in, bytes out), runs in linear time, and borrows its input when there is
//! nothing to do. Decoders are lenient on purpose: where servers disagree (invalid escapes, overlong UTF-8, entities
//! without a semicolon) they take the reading that an attacker would like the server to take.

use std::borrow::Cow;

/// How often a value is unwrapped: `%2525` needs three rounds. More rounds buy nothing, since no server decodes more often.
pub const MAX_ROUNDS: usize = 3;

/// Percent and entity decoding, repeated until nothing changes or [`MAX_ROUNDS`] is reached.
pub fn unwrap(input: &[u8]) -> Cow<'_, [u8]> {
    let mut value = Cow::Borrowed(input);
    for _ in 0..MAX_ROUNDS {
        let Some(next) = one_round(&value) else { break };
        value = Cow::Owned(next);
    }
    match full_width(&value) {
        Cow::Owned(plain) => Cow::Owned(plain),
        Cow::Borrowed(_) => value,
    }
}

/// The full-width forms of `< > ' " / .` in UTF-8 become ASCII: some charset conversions at the origin do the same.
/// Others stay: Chinese and Japanese text is full of them.
fn full_width(input: &[u8]) -> Cow<'_, [u8]> {
    if find(input, &[0xef, 0xbc]).is_none() {
        return Cow::Borrowed(input);
    }
    let mut out = Vec::with_capacity(input.len());
    let mut rest = input;
    while let Some((&byte, tail)) = rest.split_first() {
        if let [0xef, 0xbc, form @ (0x82 | 0x87 | 0x8e | 0x8f | 0x9c | 0x9e), next @ ..] = rest {
            out.push(form - 0x60);
            rest = next;
        } else {
            out.push(byte);
            rest = tail;
        }
    }
    if out.len() == input.len() { Cow::Borrowed(input) } else { Cow::Owned(out) }
}

fn one_round(value: &[u8]) -> Option<Vec<u8>> {
    match percent(value) {
        Cow::Owned(decoded) => Some(match entities(&decoded) {
            Cow::Owned(both) => both,
            Cow::Borrowed(_) => decoded,
        }),
        Cow::Borrowed(same) => match entities(same) {
            Cow::Owned(decoded) => Some(decoded),
            Cow::Borrowed(_) => None,
        },
    }
}

/// One round of `%XX` and `%uXXXX`. An invalid escape is kept as it stands.
///
/// `%uXXXX` becomes UTF-8, except for the characters that old servers map to ASCII ("best fit"): full-width forms and
/// the slash look-alikes become the ASCII character itself.
pub fn percent(input: &[u8]) -> Cow<'_, [u8]> {
    let Some(first) = input.iter().position(|&byte| byte == b'%') else { return Cow::Borrowed(input) };
    let mut out = Vec::with_capacity(input.len());
    out.extend_from_slice(&input[..first]);
    let mut rest = &input[first..];
    let mut changed = false;

    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'%' {
            if let Some(decoded) = hex_prefix(tail, 2).and_then(|value| u8::try_from(value).ok()) {
                out.push(decoded);
                rest = &tail[2..];
                changed = true;
                continue;
            }
            if let Some((b'u' | b'U', digits)) = tail.split_first()
                && let Some(code) = hex_prefix(digits, 4)
            {
                push_best_fit(&mut out, code);
                rest = &tail[5..];
                changed = true;
                continue;
            }
        }
        out.push(byte);
        rest = tail;
    }
    if changed { Cow::Owned(out) } else { Cow::Borrowed(input) }
}

/// `+` as space: for query strings and urlencoded bodies, before percent-decoding (WHATWG URL, 5.1).
pub fn plus_to_space(input: &[u8]) -> Cow<'_, [u8]> {
    if !input.contains(&b'+') {
        return Cow::Borrowed(input);
    }
    Cow::Owned(input.iter().map(|&byte| if byte == b'+' { b' ' } else { byte }).collect())
}

/// One round of HTML character references: decimal, hexadecimal (any number of leading zeros, semicolon optional) and
/// the named ones that matter in markup and script.
pub fn entities(input: &[u8]) -> Cow<'_, [u8]> {
    let Some(first) = input.iter().position(|&byte| byte == b'&') else { return Cow::Borrowed(input) };
    let mut out = Vec::with_capacity(input.len());
    out.extend_from_slice(&input[..first]);
    let mut rest = &input[first..];
    let mut changed = false;

    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'&'
            && let Some((code, used)) = numeric_entity(tail).or_else(|| named_entity(tail))
        {
            push_best_fit(&mut out, code);
            rest = &tail[used..];
            changed = true;
            continue;
        }
        out.push(byte);
        rest = tail;
    }
    if changed { Cow::Owned(out) } else { Cow::Borrowed(input) }
}

/// `#60;`, `#x3c`, `#0000000060`: the code point and how many bytes it took.
fn numeric_entity(tail: &[u8]) -> Option<(u32, usize)> {
    let digits = tail.strip_prefix(b"#")?;
    let (radix, digits, mut used) = match digits.first() {
        Some(b'x' | b'X') => (16, &digits[1..], 2),
        _ => (10, digits, 1),
    };
    let mut code: u32 = 0;
    let mut seen = 0;
    for &digit in digits {
        let Some(value) = char::from(digit).to_digit(radix) else { break };
        code = code.saturating_mul(radix).saturating_add(value);
        seen += 1;
    }
    used += seen;
    if seen == 0 || code > 0x0010_ffff {
        return None;
    }
    if digits.get(seen) == Some(&b';') {
        used += 1;
    }
    Some((code, used))
}

/// Named references; without a semicolon only where browsers accept that too.
const NAMED: &[(&[u8], u32)] = &[
    (b"amp", 0x26),
    (b"lt", 0x3c),
    (b"gt", 0x3e),
    (b"quot", 0x22),
    (b"nbsp", 0x20),
    (b"apos;", 0x27),
    (b"lpar;", 0x28),
    (b"rpar;", 0x29),
    (b"colon;", 0x3a),
    (b"semi;", 0x3b),
    (b"equals;", 0x3d),
    (b"tab;", 0x09),
    (b"newline;", 0x0a),
    (b"sol;", 0x2f),
    (b"bsol;", 0x5c),
    (b"grave;", 0x60),
    (b"diacriticalgrave;", 0x60),
    (b"period;", 0x2e),
    (b"comma;", 0x2c),
    (b"lsqb;", 0x5b),
    (b"lbrack;", 0x5b),
    (b"rsqb;", 0x5d),
    (b"rbrack;", 0x5d),
    (b"lcub;", 0x7b),
    (b"lbrace;", 0x7b),
    (b"rcub;", 0x7d),
    (b"rbrace;", 0x7d),
    (b"plus;", 0x2b),
    (b"percnt;", 0x25),
    (b"num;", 0x23),
    (b"dollar;", 0x24),
    (b"excl;", 0x21),
    (b"quest;", 0x3f),
    (b"commat;", 0x40),
    (b"ast;", 0x2a),
    (b"vert;", 0x7c),
    (b"verbar;", 0x7c),
    (b"hat;", 0x5e),
    (b"lowbar;", 0x5f),
];

fn named_entity(tail: &[u8]) -> Option<(u32, usize)> {
    for &(name, code) in NAMED {
        if tail.len() >= name.len() && tail[..name.len()].eq_ignore_ascii_case(name) {
            let semicolon = usize::from(!name.ends_with(b";") && tail.get(name.len()) == Some(&b';'));
            // `&lt` may stand alone, `&ltd=1` and `&amplitude` are other words.
            if semicolon == 0 && !name.ends_with(b";") && tail.get(name.len()).is_some_and(u8::is_ascii_alphanumeric) {
                continue;
            }
            return Some((code, name.len() + semicolon));
        }
    }
    None
}

/// Overlong UTF-8 (`C0 AE` and its longer forms) becomes the ASCII character it hides.
///
/// The continuation byte may lack its high bit (`C0 2F`), as lenient decoders accept. Well-formed UTF-8 never holds these
/// sequences; text in other multi-byte charsets may, so only rules that need several such characters look at the result.
pub fn overlong(input: &[u8]) -> Cow<'_, [u8]> {
    let Some(first) = input.iter().position(|&byte| is_overlong_lead(byte)) else { return Cow::Borrowed(input) };
    let mut out = Vec::with_capacity(input.len());
    out.extend_from_slice(&input[..first]);
    let mut rest = &input[first..];
    let mut changed = false;

    while let Some((&byte, tail)) = rest.split_first() {
        if let Some((decoded, used)) = overlong_char(byte, tail) {
            out.push(decoded);
            rest = &tail[used..];
            changed = true;
            continue;
        }
        out.push(byte);
        rest = tail;
    }
    if changed { Cow::Owned(out) } else { Cow::Borrowed(input) }
}

fn is_overlong_lead(byte: u8) -> bool {
    matches!(byte, 0xc0 | 0xc1 | 0xe0 | 0xf0 | 0xf8 | 0xfc)
}

fn overlong_char(lead: u8, tail: &[u8]) -> Option<(u8, usize)> {
    let zeros = match lead {
        0xc0 | 0xc1 => {
            let &last = tail.first()?;
            let decoded = ((lead & 1) << 6) | (last & 0x3f);
            return (last >= 0x20 && decoded >= 0x20).then_some((decoded, 1));
        }
        0xe0 => 0,
        0xf0 => 1,
        0xf8 => 2,
        0xfc => 3,
        _ => return None,
    };
    if tail.len() < zeros + 2 || tail[..zeros].iter().any(|&byte| byte != 0x80) {
        return None;
    }
    let (high, low) = (tail[zeros], tail[zeros + 1]);
    // `E0 80 AE`: the upper six bits say 0 or 1, so that the character is ASCII.
    (matches!(high, 0x80 | 0x81) && (0x80..0xc0).contains(&low)).then(|| (((high & 1) << 6) | (low & 0x3f), zeros + 2))
}

/// JavaScript (and JSON, C, shell `$''`) string escapes: `\xHH`, `\uHHHH`, `\u{H..}`, octal, `\n`-like and escaped punctuation.
pub fn js_escapes(input: &[u8]) -> Cow<'_, [u8]> {
    let Some(first) = input.iter().position(|&byte| byte == b'\\') else { return Cow::Borrowed(input) };
    let mut out = Vec::with_capacity(input.len());
    out.extend_from_slice(&input[..first]);
    let mut rest = &input[first..];

    while let Some((&byte, tail)) = rest.split_first() {
        if byte != b'\\' {
            out.push(byte);
            rest = tail;
            continue;
        }
        let used = match tail.first() {
            Some(b'x' | b'X') => hex_prefix(&tail[1..], 2).map(|code| (code, 3)),
            Some(b'u' | b'U') => unicode_escape(&tail[1..]).map(|(code, used)| (code, used + 1)),
            Some(b'0'..=b'7') => Some(octal(tail)),
            Some(b'n' | b'r' | b't') => Some((u32::from(b' '), 1)),
            Some(&other) if other.is_ascii_punctuation() => Some((u32::from(other), 1)),
            _ => None,
        };
        if let Some((code, used)) = used {
            push_best_fit(&mut out, code);
            rest = &tail[used..];
        } else {
            // A backslash before any other letter is dropped by JavaScript.
            rest = tail;
        }
    }
    Cow::Owned(out)
}

fn unicode_escape(tail: &[u8]) -> Option<(u32, usize)> {
    if let Some(braced) = tail.strip_prefix(b"{") {
        let len = braced.iter().take(8).position(|&byte| byte == b'}')?;
        return hex_prefix(braced, len).filter(|_| len > 0).map(|code| (code, len + 2));
    }
    hex_prefix(tail, 4).map(|code| (code, 4))
}

fn octal(tail: &[u8]) -> (u32, usize) {
    let mut code = 0;
    let mut used = 0;
    for &digit in tail.iter().take(3).take_while(|digit| (b'0'..=b'7').contains(digit)) {
        code = code * 8 + u32::from(digit - b'0');
        used += 1;
    }
    (code, used)
}

/// Lower case, no NUL and no other invisible control, every run of white space one space.
///
/// The last step of every view: rules are written for its output.
pub fn fold(input: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = Vec::with_capacity(input.len());
    for &byte in input {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' | 0x0b | 0x0c => {
                if out.last() != Some(&b' ') {
                    out.push(b' ');
                }
            }
            0..=0x1f | 0x7f => {}
            _ => out.push(byte.to_ascii_lowercase()),
        }
    }
    out
}

/// SQL comments: `/* .. */` becomes a space, `/*!50000 .. */` leaves its content (MySQL runs it).
/// An unterminated comment keeps its text.
pub fn sql_comments(input: &[u8]) -> Cow<'_, [u8]> {
    if !contains(input, b"/*") {
        return Cow::Borrowed(input);
    }
    let mut out = Vec::with_capacity(input.len());
    let mut rest = input;
    let mut executable = false;
    // Once a search has run off the end, no later one can succeed: without this, "/*/*/*.." would take quadratic time.
    let mut may_close = true;
    while let Some((&byte, tail)) = rest.split_first() {
        if let Some(inner) = rest.strip_prefix(b"/*") {
            if let Some(code) = inner.strip_prefix(b"!") {
                let digits = code.iter().take_while(|byte| byte.is_ascii_digit()).count();
                rest = &code[digits..];
                executable = true;
                out.push(b' ');
                continue;
            }
            out.push(b' ');
            let end = if may_close { find(inner, b"*/") } else { None };
            may_close = end.is_some();
            rest = end.map_or(inner, |end| &inner[end + 2..]);
            continue;
        }
        if executable && rest.starts_with(b"*/") {
            executable = false;
            out.push(b' ');
            rest = &rest[2..];
            continue;
        }
        out.push(byte);
        rest = tail;
    }
    Cow::Owned(out)
}

/// `/* .. */` taken out without a trace, as JavaScript and CSS read it.
pub fn strip_comments(input: &[u8]) -> Cow<'_, [u8]> {
    if !contains(input, b"/*") {
        return Cow::Borrowed(input);
    }
    let mut out = Vec::with_capacity(input.len());
    let mut rest = input;
    while let Some(start) = find(rest, b"/*") {
        let Some(end) = find(&rest[start + 2..], b"*/") else { break };
        out.extend_from_slice(&rest[..start]);
        rest = &rest[start + 2 + end + 2..];
    }
    out.extend_from_slice(rest);
    Cow::Owned(out)
}

/// A file path as a server would walk it, but with `..` left standing: separators unified, overlong forms and `0x2e`-like
/// spellings decoded, `//` and `/./` collapsed.
pub fn path_separators(input: &[u8]) -> Cow<'_, [u8]> {
    let suspicious = |byte: &u8| matches!(byte, b'\\' | 0x80..) || *byte == b'/';
    if !input.iter().any(suspicious) && !contains(input, b"0x") {
        return Cow::Borrowed(input);
    }
    let plain = overlong(input);
    let mut out: Vec<u8> = Vec::with_capacity(plain.len());
    let mut rest: &[u8] = &plain;
    while let Some((&byte, tail)) = rest.split_first() {
        let (byte, next) = match rest {
            [b'0', b'x', b'2', b'e', next @ ..] => (b'.', next),
            [b'0', b'x', b'2', b'f', next @ ..] | [b'0', b'x', b'5', b'c', next @ ..] => (b'/', next),
            // U+2215, U+2216, U+EFC8, U+F025 and the full-width forms are slashes to some file systems.
            [0xe2, 0x88, 0x95 | 0x96, next @ ..] | [0xee, 0xbf, 0x88, next @ ..] | [0xef, 0x80, 0xa5, next @ ..] => {
                (b'/', next)
            }
            [b'\\', next @ ..] => (b'/', next),
            _ => (byte, tail),
        };
        rest = next;
        if byte == b'/' && out.ends_with(b"/") {
            continue;
        }
        if byte == b'/' && out.ends_with(b"/.") {
            out.pop();
            continue;
        }
        out.push(byte);
    }
    if *out == *input { Cow::Borrowed(input) } else { Cow::Owned(out) }
}

/// Removes dot segments (RFC 3986, 5.2.4): what the path means once `..` has been applied.
pub fn normalize_path(input: &[u8]) -> Vec<u8> {
    let mut kept: Vec<&[u8]> = Vec::new();
    for segment in input.split(|&byte| byte == b'/') {
        match segment {
            b"" | b"." => {}
            b".." => {
                kept.pop();
            }
            name => kept.push(name),
        }
    }
    let mut out = Vec::with_capacity(input.len());
    for segment in kept {
        out.push(b'/');
        out.extend_from_slice(segment);
    }
    out
}

/// A command line as a shell would read it: quotes, backslashes and carets inside words vanish, `$IFS` is a space,
/// empty parameters (`$@`, `$1`) vanish, `{a,b}` is `a b`.
pub fn shell_words(input: &[u8]) -> Cow<'_, [u8]> {
    let tricky = |byte: &u8| matches!(byte, b'\'' | b'"' | b'\\' | b'^' | b'$' | b'{');
    if !input.iter().any(tricky) {
        return Cow::Borrowed(input);
    }
    let mut out = Vec::with_capacity(input.len());
    let mut rest = input;
    let mut braces = 0_usize;
    while let Some((&byte, tail)) = rest.split_first() {
        match rest {
            [b'$', b'{', b'i', b'f', b's', next @ ..] => {
                out.push(b' ');
                let close = next.iter().take(16).position(|&byte| byte == b'}');
                rest = close.map_or(next, |at| &next[at + 1..]);
                continue;
            }
            [b'$', b'i', b'f', b's', next @ ..] => {
                out.push(b' ');
                rest = match next {
                    [b'$', b'0'..=b'9' | b'@' | b'*', next @ ..] => next,
                    _ => next,
                };
                continue;
            }
            [b'$', b'0'..=b'9' | b'@' | b'*' | b'!', next @ ..] => {
                rest = next;
                continue;
            }
            _ => {}
        }
        match byte {
            b'\'' | b'"' | b'\\' | b'^' => {}
            b'{' if !out.ends_with(b"$") => {
                braces += 1;
                out.push(b' ');
            }
            b',' if braces > 0 => out.push(b' '),
            b'}' if braces > 0 => {
                braces -= 1;
                out.push(b' ');
            }
            _ => out.push(byte),
        }
        rest = tail;
    }
    Cow::Owned(out)
}

/// Script text with everything joined: escapes decoded, comments and white space gone, `'al'+'ert'` is `'alert'`.
pub fn script_text(input: &[u8]) -> Vec<u8> {
    let unescaped = js_escapes(input);
    let bare = strip_comments(&unescaped);
    let mut out: Vec<u8> = Vec::with_capacity(bare.len());
    for &byte in bare.iter() {
        match byte {
            0..=0x20 | 0x7f => {}
            b'\'' | b'"' | b'`' if ends_with_concat(&out, byte) => {
                out.truncate(out.len() - 2);
            }
            _ => out.push(byte.to_ascii_lowercase()),
        }
    }
    out
}

fn ends_with_concat(out: &[u8], quote: u8) -> bool {
    matches!(out, [.., before, b'+'] if *before == quote)
}

/// Base64 (standard or URL alphabet, padding optional) that decodes to printable text; anything else is `None`.
pub fn base64_text(token: &[u8]) -> Option<Vec<u8>> {
    let body = token.strip_suffix(b"==").or_else(|| token.strip_suffix(b"=")).unwrap_or(token);
    if body.len() % 4 == 1 {
        return None;
    }
    let mut out = Vec::with_capacity(body.len() * 3 / 4 + 2);
    let mut bits: u32 = 0;
    let mut held = 0_u32;
    for &byte in body {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            let decoded = u8::try_from((bits >> held) & 0xff).ok()?;
            if !matches!(decoded, b'\t' | b'\n' | b'\r' | 0x20..=0x7e | 0) {
                return None;
            }
            out.push(decoded);
        }
    }
    Some(out)
}

/// Runs of at least `min` bytes of a base64 alphabet.
pub fn base64_tokens(input: &[u8], min: usize) -> impl Iterator<Item = &[u8]> {
    let in_alphabet = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_' | b'=');
    input.split(move |byte| !in_alphabet(byte)).filter(move |token| token.len() >= min)
}

fn hex_prefix(input: &[u8], len: usize) -> Option<u32> {
    let digits = input.get(..len)?;
    digits.iter().try_fold(0_u32, |value, &digit| Some((value << 4) | char::from(digit).to_digit(16)?))
}

/// Appends a code point as UTF-8; look-alikes of ASCII become ASCII.
fn push_best_fit(out: &mut Vec<u8>, code: u32) {
    let code = match code {
        0xff01..=0xff5e => code - 0xfee0,
        0x2215 | 0x2044 => 0x2f,
        0x2216 => 0x5c,
        0x02b9 | 0x02bc | 0x2018 | 0x2019 => 0x27,
        0x3000 => 0x20,
        _ => code,
    };
    let character = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
    // Codes up to 0xff are bytes that somebody spelled out (`\xe2\x80`); they go back to being bytes.
    match u8::try_from(code) {
        Ok(byte) => out.push(byte),
        Err(_) => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
    }
}

/// Where `needle` starts in `haystack`.
pub fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    find(haystack, needle).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).into_owned()
    }

    #[test]
    fn percent_decodes_valid_escapes_and_keeps_the_rest() {
        for (input, expected) in [
            ("plain", "plain"),
            ("%41%62", "Ab"),
            ("100%", "100%"),
            ("%4", "%4"),
            ("%zz%41", "%zzA"),
            ("%u0041", "A"),
            ("%U003c", "<"),
            ("%uFF1Cscript%uff1e", "<script>"),
            ("%u2215", "/"),
            ("%u00", "%u00"),
            ("%%41", "%A"),
        ] {
            assert_eq!(text(&percent(input.as_bytes())), expected, "{input}");
        }
    }

    #[test]
    fn unwrap_stops_after_three_rounds() {
        assert_eq!(text(&unwrap(b"%252541")), "A");
        assert_eq!(text(&unwrap(b"%25252541")), "%41");
        assert_eq!(text(&unwrap(b"%26lt%3bscript%26gt%3b")), "<script>");
        assert_eq!(text(&unwrap(b"&amp;lpar;1")), "(1");
        assert_eq!(text(&unwrap("＜script＞（１）".as_bytes())), "<script>（１）");
        assert!(matches!(unwrap(b"nothing to do"), Cow::Borrowed(_)));
    }

    #[test]
    fn entities_follow_browsers() {
        for (input, expected) in [
            ("&lt;", "<"),
            ("&LT", "<"),
            ("&ltd=1", "&ltd=1"),
            ("&#60;", "<"),
            ("&#x3C", "<"),
            ("&#0000000060;", "<"),
            ("&#;", "&#;"),
            ("&#x;", "&#x;"),
            ("&#99999999999;", "&#99999999999;"),
            ("java&Tab;script&colon;", "java\tscript:"),
            ("a&b=c", "a&b=c"),
            ("&amp;lt;", "&lt;"),
        ] {
            assert_eq!(text(&entities(input.as_bytes())), expected, "{input}");
        }
    }

    #[test]
    fn overlong_utf8_is_ascii_again() {
        for (input, expected) in [
            (&b"\xc0\xae\xc0\xae\xc0\xaf"[..], "../"),
            (b"\xc0\x2e\xc1\x9c", ".\\"),
            (b"\xe0\x80\xae", "."),
            (b"\xf0\x80\x80\xaf", "/"),
            (b"\xf8\x80\x80\x80\xae", "."),
            (b"\xfc\x80\x80\x80\x80\xaf", "/"),
            (b"\xc3\xa9", "\u{e9}"),
            (b"\xc0", "\u{fffd}"),
        ] {
            assert_eq!(text(&overlong(input)), expected, "{input:x?}");
        }
    }

    #[test]
    fn js_escapes_become_characters() {
        for (input, expected) in [
            (r"\x61\x6c", "al"),
            (r"\u0061\u{6c}", "al"),
            (r"\141\154", "al"),
            (r"<\/script>", "</script>"),
            (r"a\lert", "alert"),
            (r"\x6", "x6"),
            ("tail\\", "tail"),
        ] {
            assert_eq!(text(&js_escapes(input.as_bytes())), expected, "{input}");
        }
    }

    #[test]
    fn fold_lowers_drops_controls_and_joins_white_space() {
        assert_eq!(text(&fold(b"UnI\0oN \t\r\n SeLeCt\x01")), "union select");
    }

    #[test]
    fn sql_comments_become_spaces() {
        for (input, expected) in [
            ("union/**/select", "union select"),
            ("un/*!50000ion*/", "un ion "),
            ("/*!union*/ /*!select*/", " union   select "),
            ("1/*open", "1 open"),
            ("no comment", "no comment"),
        ] {
            assert_eq!(text(&sql_comments(input.as_bytes())), expected, "{input}");
        }
        assert_eq!(text(&strip_comments(b"al/*x*/ert/*")), "alert/*");
    }

    #[test]
    fn paths_are_unified_and_keep_their_dots() {
        for (input, expected) in [
            ("..\\..\\boot.ini", "../../boot.ini"),
            ("..//./..///etc", "../../etc"),
            ("0x2e0x2e0x2fetc", "../etc"),
            ("/a/b", "/a/b"),
            ("..\u{2215}..\u{2216}etc", "../../etc"),
        ] {
            assert_eq!(text(&path_separators(input.as_bytes())), expected, "{input}");
        }
        assert_eq!(text(&normalize_path(b"/a/./b/../../etc//passwd")), "/etc/passwd");
        assert_eq!(text(&normalize_path(b"/../..")), "");
    }

    #[test]
    fn shell_words_lose_their_quoting() {
        for (input, expected) in [
            ("c'a't /e\"t\"c", "cat /etc"),
            ("c\\at${ifs}x", "cat x"),
            ("cat$ifs$9/etc", "cat /etc"),
            ("w$@ho^ami", "whoami"),
            ("{cat,/etc/passwd}", " cat /etc/passwd "),
            ("$(id)", "$(id)"),
        ] {
            assert_eq!(text(&shell_words(input.as_bytes())), expected, "{input}");
        }
    }

    #[test]
    fn script_text_joins_pieces() {
        for (input, expected) in [
            ("self['ale'+'rt'](1)", "self['alert'](1)"),
            ("java\n script :x", "javascript:x"),
            (r#"top["\x61lert"]"#, r#"top["alert"]"#),
            ("al/**/ert(1)", "alert(1)"),
        ] {
            assert_eq!(text(&script_text(input.as_bytes())), expected, "{input}");
        }
    }

    #[test]
    fn base64_is_text_or_nothing() {
        assert_eq!(base64_text(b"PHNjcmlwdD4=").map(|value| text(&value)), Some("<script>".into()));
        assert_eq!(base64_text(b"PHNjcmlwdD4").map(|value| text(&value)), Some("<script>".into()));
        assert_eq!(base64_text(b"/+8="), None);
        assert_eq!(base64_text(b"abcde"), None);
        assert_eq!(base64_tokens(b"x {\"a\":\"PHNjcmlwdD4=\"}", 8).count(), 1);
    }

    proptest! {
        #[test]
        fn decoders_accept_any_bytes(input in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = unwrap(&input);
            let _ = overlong(&input);
            let _ = js_escapes(&input);
            let _ = sql_comments(&input);
            let _ = strip_comments(&input);
            let _ = path_separators(&input);
            let _ = normalize_path(&input);
            let _ = shell_words(&input);
            let _ = script_text(&input);
            let _ = base64_text(&input);
            let _ = fold(&input);
        }

        /// `%uXXXX` may grow to no more than it was; nothing here lets a small body become a large one.
        #[test]
        fn decoding_never_grows_a_value(input in "[%u0-9a-f&#x;\\\\/*'+ .]{0,200}") {
            let bytes = input.as_bytes();
            prop_assert!(unwrap(bytes).len() <= bytes.len());
            prop_assert!(js_escapes(bytes).len() <= bytes.len());
            prop_assert!(sql_comments(bytes).len() <= bytes.len());
            prop_assert!(script_text(bytes).len() <= bytes.len());
            prop_assert!(shell_words(bytes).len() <= bytes.len());
            prop_assert!(path_separators(bytes).len() <= bytes.len());
        }

        #[test]
        fn fold_is_idempotent(input in proptest::collection::vec(any::<u8>(), 0..200)) {
            let once = fold(&input);
            prop_assert_eq!(fold(&once), once.clone());
        }
    }
}
