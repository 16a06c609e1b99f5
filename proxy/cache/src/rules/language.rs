//! Which of the languages that an origin has a client prefers (RFC 9110, 12.5.4; RFC 4647, 3).

/// The language of `have`, tags in lower case and the one to prefer first, that `accept` (the value of `Accept-Language`) asks for.
/// `None` when it asks for none of them.
///
/// A range is for the same tag, for longer ones (`de` for `de-ch`), and for shorter ones (`de-CH` for `de`, RFC 4647, 3.4); the closest
/// one says the quality. What a client likes equally well is up to the site.
#[must_use]
pub fn preferred<'h>(have: &'h [String], accept: &str) -> Option<&'h str> {
    let mut best: Option<(u16, &str)> = None;
    for tag in have {
        let quality = quality(tag, accept);
        if quality > best.map_or(0, |(quality, _)| quality) {
            best = Some((quality, tag));
        }
    }
    best.map(|(_, tag)| tag)
}

/// In thousandths; 0 = not wanted.
fn quality(tag: &str, accept: &str) -> u16 {
    let mut closest = (0, 0);
    for member in accept.split(',') {
        let mut parts = member.split(';').map(str::trim);
        let range = parts.next().unwrap_or_default();
        let close = closeness(tag, range);
        if close > closest.0 {
            let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
            closest = (close, weight.map_or(1000, thousandths));
        }
    }
    closest.1
}

/// How close a range is to a tag: 0 = it is for others.
fn closeness(tag: &str, range: &str) -> usize {
    let starts = |long: &str, short: &str| {
        long.get(..short.len()).is_some_and(|start| start.eq_ignore_ascii_case(short))
            && long.as_bytes().get(short.len()) == Some(&b'-')
    };
    match range {
        "" => 0,
        "*" => 1,
        _ if tag.eq_ignore_ascii_case(range) => usize::MAX,
        _ if starts(tag, range) => 1000 + range.len(),
        // The nearer of two longer ranges is the shorter one.
        _ if starts(range, tag) => 1000 - range.len().min(990),
        _ => 0,
    }
}

/// A weight (RFC 9110, 12.4.2) in thousandths; what is none counts as nothing.
fn thousandths(weight: &str) -> u16 {
    let (whole, fraction) = weight.split_once('.').unwrap_or((weight, ""));
    if fraction.len() > 3 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return 0;
    }
    let part = format!("{fraction:0<3}").parse().unwrap_or(0);
    match whole {
        "0" => part,
        "1" => 1000,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9110, 12.5.4 and RFC 4647, 3.
    #[test]
    fn the_language_a_client_prefers() {
        let have = ["de".to_owned(), "en".to_owned(), "fr-ch".to_owned()];
        for (accept, expected) in [
            ("de", Some("de")),
            ("EN", Some("en")),
            ("en, de", Some("de")),
            ("fr;q=0.5, de;q=1.0", Some("de")),
            ("de;q=0.5, en;q=0.8", Some("en")),
            ("de-AT, de;q=0.9, en;q=0.8", Some("de")),
            ("de-AT", Some("de")),
            ("de-AT;q=0.2, de;q=0, en;q=0.1", Some("en")),
            ("fr", Some("fr-ch")),
            ("fr-CA", None),
            ("den", None),
            ("*", Some("de")),
            ("*;q=0.5, en", Some("en")),
            ("de;q=0, *;q=0.3", Some("en")),
            ("en;q=0", None),
            ("en;q=2", None),
            ("en;q=", None),
            ("ja", None),
            ("", None),
            (",,;q=1", None),
        ] {
            assert_eq!(preferred(&have, accept), expected, "{accept}");
        }
    }
}
