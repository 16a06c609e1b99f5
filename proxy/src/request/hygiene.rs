//! What a request must be like before anything looks at it: framed in one way only, meant for one host only, with a path that everybody
//! reads alike. Pingora's parser has refused much already; this is what it lets through. `docs/request-hygiene.md` lists both.

use http::{HeaderName, Method, header};
use memchr::{memchr, memchr_iter};
use pingora::http::RequestHeader;
use pingora::{Error, ErrorType, Result};

/// Refuses what two parsers could read in two ways.
///
/// `raw` is the header as it came, for HTTP/1.
pub(crate) fn check(request: &mut RequestHeader, raw: Option<&[u8]>) -> Result<()> {
    if let Some(raw) = raw {
        lines(raw).or_else(refuse)?;
        if request.headers.contains_key(header::CONNECTION) {
            connection_options(request)?;
        }
        if request.headers.contains_key(header::UPGRADE) {
            upgrade(request);
        }
    }
    if matches!(request.method, Method::CONNECT | Method::TRACE) {
        return Error::e_explain(ErrorType::HTTPStatus(405), "no such method is served");
    }
    Ok(())
}

/// Why a request is refused, and with which status.
#[derive(Debug, PartialEq, Eq)]
struct Refused(u16, &'static str);

fn refuse<T>(refused: Refused) -> Result<T> {
    Error::e_explain(ErrorType::HTTPStatus(refused.0), refused.1)
}

/// The lines of an HTTP/1 header: their ends, and the fields that say where the body ends (RFC 9112, 2.2, 5.2, 6.1, 6.3).
fn lines(raw: &[u8]) -> std::result::Result<(), Refused> {
    let (mut lengths, mut codings) = (0, 0);
    let mut start = 0;
    for end in memchr_iter(b'\n', raw) {
        let Some(line) = raw[start..end].strip_suffix(b"\r") else {
            return Err(Refused(400, "a line of the header ends without CR (RFC 9112, 2.2)"));
        };
        if start == 0 && memchr(b'#', line).is_some() {
            return Err(Refused(400, "a fragment in the target (RFC 9112, 3.2)"));
        }
        start = end + 1;
        // Most lines begin with another letter.
        match line.first() {
            Some(b'c' | b'C') => {
                if let Some(value) = value_of(line, b"content-length") {
                    lengths += 1;
                    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
                        return Err(Refused(400, "Content-Length is not a number (RFC 9110, 8.6)"));
                    }
                }
            }
            Some(b't' | b'T') => {
                if let Some(value) = value_of(line, b"transfer-encoding") {
                    codings += 1;
                    if !value.eq_ignore_ascii_case(b"chunked") {
                        return Err(Refused(501, "a transfer coding other than chunked (RFC 9112, 6.1)"));
                    }
                }
            }
            Some(b' ' | b'\t') => return Err(Refused(400, "a field goes on in the next line (RFC 9112, 5.2)")),
            _ => {}
        }
    }
    match (lengths, codings) {
        (0 | 1, 0) | (0, 1) => Ok(()),
        (_, 0) => Err(Refused(400, "several Content-Length (RFC 9110, 8.6)")),
        (0, _) => Err(Refused(400, "several Transfer-Encoding (RFC 9112, 6.1)")),
        _ => Err(Refused(400, "Content-Length beside Transfer-Encoding (RFC 9112, 6.1)")),
    }
}

/// The value of a field line, if it is this field (named in lower case).
fn value_of<'l>(line: &'l [u8], name: &[u8]) -> Option<&'l [u8]> {
    let (given, rest) = line.split_at_checked(name.len())?;
    let value = rest.strip_prefix(b":")?;
    given.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
}

/// Whether a host and port are written as everybody reads them (RFC 3986, 3.2.2): a name of letters, digits, `-`, `_` and `.`, or an
/// address, and a port.
pub(crate) fn is_authority(host: &[u8]) -> bool {
    let (name, port) = match host.strip_prefix(b"[") {
        Some(rest) => {
            let Some(end) = memchr(b']', rest) else { return false };
            let literal = &rest[..end];
            if literal.is_empty() || !literal.iter().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.'))
            {
                return false;
            }
            (literal, &rest[end + 1..])
        }
        None => host.split_at(memchr(b':', host).unwrap_or(host.len())),
    };
    let is_address = host.first() == Some(&b'[');
    let named = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let port_is_one = match port.split_first() {
        None => true,
        Some((b':', digits)) => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        Some(_) => false,
    };
    !name.is_empty() && (is_address || name.iter().all(named)) && port_is_one
}

/// Fields that nobody may have taken away by naming them in `Connection`.
const NOT_HOP_BY_HOP: [HeaderName; 6] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::AUTHORIZATION,
    header::COOKIE,
    header::CONTENT_TYPE,
];

/// Takes away the fields that `Connection` names: they were for us only (RFC 9110, 7.6.1).
fn connection_options(request: &mut RequestHeader) -> Result<()> {
    let mut named = smallvec::SmallVec::<[HeaderName; 2]>::new();
    let mut upgrade = false;
    for value in request.headers.get_all(header::CONNECTION) {
        for option in value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if option.is_empty() || option.eq_ignore_ascii_case(b"close") || option.eq_ignore_ascii_case(b"keep-alive")
            {
                continue;
            }
            if option.eq_ignore_ascii_case(b"upgrade") {
                upgrade = true;
                continue;
            }
            let Ok(name) = HeaderName::from_bytes(option) else {
                return Error::e_explain(ErrorType::HTTPStatus(400), "Connection names no field");
            };
            if NOT_HOP_BY_HOP.contains(&name) {
                return Error::e_explain(ErrorType::HTTPStatus(400), "Connection names a field that is not its own");
            }
            named.push(name);
        }
    }
    for name in &named {
        request.remove_header(name);
    }
    if !named.is_empty() {
        request.remove_header(&header::CONNECTION);
        if upgrade {
            request.insert_header(header::CONNECTION, "upgrade")?;
        }
    }
    Ok(())
}

/// Upgrades to HTTP/2 within HTTP/1 go no further: an origin that took one would speak past every rule of ours. A server may ignore an
/// upgrade (RFC 9110, 7.8).
fn upgrade(request: &mut RequestHeader) {
    let http2 = request.headers.get_all(header::UPGRADE).iter().any(|value| {
        let mut protocols = value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        protocols.any(|name| name.len() >= 2 && name[..2].eq_ignore_ascii_case(b"h2"))
    });
    if http2 {
        request.remove_header(&header::UPGRADE);
        request.remove_header(&header::CONNECTION);
        request.remove_header("http2-settings");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(fields: &str) -> std::result::Result<(), u16> {
        lines(format!("POST / HTTP/1.1\r\nhost: a\r\n{fields}\r\n").as_bytes()).map_err(|refused| refused.0)
    }

    #[test]
    fn a_host_is_a_name_or_an_address_and_a_port() {
        for good in
            ["a", "A.test", "a_b-c.test:80", "127.0.0.1:65535", "[::1]", "[::ffff:1.2.3.4]:443", "a.test.", "a:"]
        {
            assert!(is_authority(good.as_bytes()), "{good}");
        }
        for bad in [
            "", ":80", "a b", "a,b", "a/b", "a@b", "a:b", "a:123456", "a:1:2", "[]", "[::1", "[::1]x", "[g]", "ä",
            "a%20b", "a\\b",
        ] {
            assert!(!is_authority(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn a_body_is_framed_in_one_way() {
        let cases: &[(&str, std::result::Result<(), u16>)] = &[
            ("", Ok(())),
            ("Content-Length: 5\r\n", Ok(())),
            ("content-length:5\r\n", Ok(())),
            ("Transfer-Encoding: chunked\r\n", Ok(())),
            ("transfer-encoding:  Chunked \r\n", Ok(())),
            ("Content-Length: 5\r\nContent-Length: 5\r\n", Err(400)),
            ("Content-Length: 5, 5\r\n", Err(400)),
            ("Content-Length: +5\r\n", Err(400)),
            ("Content-Length: -5\r\n", Err(400)),
            ("Content-Length: 0x5\r\n", Err(400)),
            ("Content-Length: 5 6\r\n", Err(400)),
            ("Content-Length:\r\n", Err(400)),
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", Err(400)),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Err(400)),
            ("Transfer-Encoding: gzip, chunked\r\n", Err(501)),
            ("Transfer-Encoding: xchunked\r\n", Err(501)),
            ("Transfer-Encoding: identity\r\n", Err(501)),
            ("Transfer-Encoding:\r\n", Err(501)),
            ("a: b\n", Err(400)),
            ("a: b\r\n c\r\n", Err(400)),
            ("content-lengthy: x\r\ntransfer-encodings: y\r\n", Ok(())),
        ];
        for (fields, expected) in cases {
            assert_eq!(verdict(fields), *expected, "{fields:?}");
        }
    }
}
