use bytes::BytesMut;
use pingora::ErrorType;
use proptest::prelude::*;

use super::body::Framing;
use super::head;

/// Fields, what follows the header, whether HEAD was asked; the body, whether it has ended, what is left over.
type Row = (&'static str, &'static [u8], bool, &'static str, bool, &'static str);

/// The framing of a response, and whatever of its body comes in these pieces.
fn read(head: &str, pieces: &[&[u8]], is_head: bool) -> Result<(Vec<u8>, bool, Vec<u8>), String> {
    let mut buffer = BytesMut::from(head.as_bytes());
    let mut response = head::parse(&mut buffer).map_err(|error| error.to_string())?.ok_or("not whole")?;
    let mut framing = Framing::of(&mut response, is_head).map_err(|error| error.to_string())?;
    let mut body = Vec::new();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        while let Some(taken) = framing.take(&mut buffer).map_err(|error| error.to_string())? {
            assert!(!taken.is_empty(), "a piece of nothing");
            body.extend_from_slice(&taken);
        }
    }
    Ok((body, framing.has_ended(), buffer.to_vec()))
}

#[test]
fn the_end_of_a_body_is_known_by_what_the_header_says() {
    let chunks: &'static [u8] = b"5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\n\r\n";
    let rows: &[Row] = &[
        ("Content-Length: 5\r\n", b"hello", false, "hello", true, ""),
        ("Content-Length: 5\r\n", b"hell", false, "hell", false, ""),
        ("Content-Length: 5\r\n", b"hello!", false, "hello", true, "!"),
        ("Content-Length: 5, 5\r\n", b"hello", false, "hello", true, ""),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", b"hello", false, "hello", true, ""),
        ("Content-Length: 0\r\n", b"", false, "", true, ""),
        ("Content-Length: 5\r\n", b"", true, "", true, ""),
        ("Transfer-Encoding: chunked\r\n", chunks, false, "hello world", true, ""),
        ("Transfer-Encoding: gzip, Chunked\r\n", chunks, false, "hello world", true, ""),
        ("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", chunks, false, "hello world", true, ""),
        ("Transfer-Encoding: chunked\r\n", b"0\r\nx-a: b\r\nx-c: d\r\n\r\nHTTP", false, "", true, "HTTP"),
        ("Transfer-Encoding: chunked\r\n", b"0\r\nx-a: b\r\n", false, "", false, ""),
        ("Transfer-Encoding: chunked\r\n", b"3\r\nabc", false, "abc", false, ""),
        ("Transfer-Encoding: chunked\r\n", chunks, true, "", true, "5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\n\r\n"),
        ("Transfer-Encoding: gzip\r\n", b"until the end", false, "until the end", false, ""),
        ("", b"until the end", false, "until the end", false, ""),
    ];
    for (fields, after, is_head, body, ended, left) in rows {
        let head = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
        let (found, found_end, found_left) = read(&head, &[after], *is_head).unwrap();
        let found = (String::from_utf8(found).unwrap(), found_end, String::from_utf8(found_left).unwrap());
        assert_eq!(found, ((*body).to_owned(), *ended, (*left).to_owned()), "{fields}{after:?}");
    }
    for status in ["204 No Content", "304 Not Modified"] {
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\n");
        assert_eq!(read(&head, &[], false).unwrap(), (Vec::new(), true, Vec::new()), "{status}");
    }
}

#[test]
fn what_breaks_the_framing_is_refused() {
    let fields = [
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5, 6\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: 5x\r\n",
        "Content-Length: \r\n",
        "Content-Length: 99999999999999999999\r\n",
        "X: a\r\n b\r\n",
        "X\x01: a\r\n",
    ];
    for fields in fields {
        assert!(read(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n"), &[b"hello"], false).is_err(), "{fields:?}");
    }
    let long = [b"0\r\n".as_slice(), &b"x: y\r\n".repeat(10_000), b"\r\n"].concat();
    let line = [b"1;".as_slice(), &b"x".repeat(10_000)].concat();
    let bodies: &[&[u8]] = &[
        b"x\r\n",
        b"5\r\nhello!\r\n",
        b"5\nhello",
        b"-1\r\n",
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"0\r\nx: y\n\r\n",
        b"11111111111111111\r\n",
        &long,
        &line,
    ];
    for body in bodies {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let error = read(head, &[body], false).expect_err(&String::from_utf8_lossy(&body[..body.len().min(40)]));
        assert!(error.contains(ErrorType::InvalidHTTPHeader.as_str()), "{error}");
    }
}

#[test]
fn a_connection_is_kept_as_the_response_says() {
    let rows = [
        ("HTTP/1.1", "", true),
        ("HTTP/1.1", "Connection: close\r\n", false),
        ("HTTP/1.1", "Connection: x, Close\r\n", false),
        ("HTTP/1.1", "Connection: keep-alive\r\nConnection: close\r\n", false),
        ("HTTP/1.0", "", false),
        ("HTTP/1.0", "Connection: Keep-Alive\r\n", true),
    ];
    for (version, fields, kept) in rows {
        let mut buffer = BytesMut::from(format!("{version} 200 OK\r\n{fields}\r\n").as_bytes());
        let response = head::parse(&mut buffer).unwrap().unwrap();
        assert_eq!(head::keeps(&response), kept, "{version} {fields}");
    }
    let mut buffer = BytesMut::from(&b"HTTP/1.1 200 OK\r\nKeep-Alive: max=100, timeout=5\r\n\r\n"[..]);
    let response = head::parse(&mut buffer).unwrap().unwrap();
    assert_eq!(head::kept_for(&response).map(|time| time.as_secs()), Some(4));
}

#[test]
fn fields_come_as_they_were_written_and_interim_responses_one_by_one() {
    let wire = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 299 Quite so\r\nX-Mixed-CASE: a\r\nx-mixed-case: \xe9\r\nEmpty:\r\n\r\nrest";
    let mut buffer = BytesMut::from(&wire[..]);
    assert_eq!(head::parse(&mut buffer).unwrap().unwrap().status, 103);
    let response = head::parse(&mut buffer).unwrap().unwrap();
    assert_eq!((response.status.as_u16(), response.get_reason_phrase()), (299, Some("Quite so")));
    let values: Vec<_> =
        response.headers.get_all("x-mixed-case").iter().map(|value| value.as_bytes().to_vec()).collect();
    assert_eq!(values, [b"a".to_vec(), vec![0xe9]]);
    assert_eq!(response.headers["empty"], "");
    let mut out = BytesMut::new();
    response.header_to_h1_wire(&mut out);
    assert!(out.starts_with(b"X-Mixed-CASE: a\r\nx-mixed-case: \xe9\r\n"), "{out:?}");
    assert_eq!(&buffer[..], b"rest");
}

proptest! {
    /// However the bytes of a chunked body are cut, the body is what it was, and what follows stays.
    #[test]
    fn where_the_pieces_are_cut_changes_nothing(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..6),
        cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..12),
        trailer in any::<bool>(),
    ) {
        let mut wire = Vec::new();
        for chunk in &chunks {
            wire.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            wire.extend_from_slice(chunk);
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(if trailer { b"0\r\nx: y\r\n\r\nnext" } else { b"0\r\n\r\nnext" });
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len())).collect();
        at.sort_unstable();
        at.push(wire.len());
        let mut from = 0;
        let pieces: Vec<&[u8]> = at.into_iter().map(|to| &wire[std::mem::replace(&mut from, to)..to]).collect();
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let (body, ended, left) = read(head, &pieces, false).unwrap();
        prop_assert_eq!((body, ended, left), (chunks.concat(), true, b"next".to_vec()));
    }

    /// Whatever an upstream says, reading it ends, and neither panics nor makes up bytes.
    #[test]
    fn anything_may_come(wire in proptest::collection::vec(any::<u8>(), 0..400), chunked in any::<bool>()) {
        let fields = if chunked { "Transfer-Encoding: chunked\r\n" } else { "" };
        if let Ok((body, _, left)) = read(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n"), &[&wire], false) {
            prop_assert!(body.len() + left.len() <= wire.len());
        }
    }
}

/// The names of a header's fields, as they are written to a client of HTTP/1.
fn written(head: &str) -> Vec<String> {
    let mut buffer = BytesMut::from(head.as_bytes());
    let response = head::parse(&mut buffer).unwrap().unwrap();
    let mut wire = Vec::new();
    response.header_to_h1_wire(&mut wire);
    let lines = String::from_utf8(wire).unwrap();
    lines.lines().map(|line| line.split_once(": ").unwrap().0.to_owned()).collect()
}

#[test]
fn names_are_written_as_they_came_unless_they_came_in_lower_case() {
    let rows: &[(&[&str], &[&str])] = &[
        (
            &["Server", "Date", "x-a", "Set-Cookie", "Set-Cookie"],
            &["Server", "Date", "x-a", "Set-Cookie", "Set-Cookie"],
        ),
        (&["server", "etag", "x-a"], &["Server", "etag", "x-a"]),
        (&["server", "ETag", "x-a"], &["server", "ETag", "x-a"]),
        (&["SERVER", "date"], &["SERVER", "date"]),
        (&["X-Cache", "content-length"], &["X-Cache", "content-length"]),
        (&[], &[]),
    ];
    for (came, expected) in rows {
        let fields: String = came.iter().map(|name| format!("{name}: 1\r\n")).collect();
        assert_eq!(&written(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n")), expected);
    }
}

/// Every name that is taken for the usual way of writing it is written so.
#[test]
fn the_usual_names_are_those_that_are_written_without_being_kept() {
    let known = [
        "Accept",
        "Accept-Ranges",
        "Age",
        "Allow",
        "Alt-Svc",
        "Cache-Control",
        "Cache-Status",
        "Connection",
        "Content-Disposition",
        "Content-Encoding",
        "Content-Language",
        "Content-Length",
        "Content-Location",
        "Content-Range",
        "Content-Security-Policy",
        "Content-Type",
        "Date",
        "ETag",
        "Etag",
        "Expires",
        "Host",
        "Keep-Alive",
        "Last-Modified",
        "Link",
        "Location",
        "Pragma",
        "Proxy-Status",
        "Referrer-Policy",
        "Retry-After",
        "Server",
        "Set-Cookie",
        "Strict-Transport-Security",
        "Trailer",
        "Transfer-Encoding",
        "Upgrade",
        "Vary",
        "Via",
        "WWW-Authenticate",
        "X-Frame-Options",
        "X-Powered-By",
    ];
    for name in known {
        assert_eq!(written(&format!("HTTP/1.1 200 OK\r\n{name}: 1\r\n\r\n")), [name]);
        let lower = name.to_ascii_lowercase();
        let usual = if head::is_usual(name.as_bytes()) { name } else { &lower };
        assert_eq!(written(&format!("HTTP/1.1 200 OK\r\n{lower}: 1\r\n\r\n")), [usual]);
    }
}
