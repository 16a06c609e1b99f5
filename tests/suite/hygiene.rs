//! Requests that parsers read in different ways, byte by byte: refused, or passed on in the one form that is documented.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use selvedge_tests::{Client, Edge, Origin};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A request as it reached the origin.
#[derive(Debug, Clone, Default)]
struct Received {
    head: String,
    body: Vec<u8>,
    complete: bool,
}

type Log = Arc<Mutex<Vec<Received>>>;

/// An origin that reads strictly, and remembers every byte.
async fn recording() -> (SocketAddr, Log) {
    let log = Log::default();
    let entries = Arc::clone(&log);
    let (address, _task) = Origin::raw(move |mut stream| {
        let entries = Arc::clone(&entries);
        async move { while exchange(&mut stream, &entries).await.is_some() {} }
    })
    .await;
    (address, log)
}

/// One request; `None` = the connection is over.
async fn exchange(stream: &mut TcpStream, log: &Log) -> Option<()> {
    let mut head = vec![stream.read_u8().await.ok()?];
    let at = {
        let mut log = log.lock();
        log.push(Received::default());
        log.len() - 1
    };
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
        note(log, at, |entry| entry.head = String::from_utf8_lossy(&head).into_owned());
    }
    let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")).map(str::to_owned));
    let mut body = Vec::new();
    if field("transfer-encoding").is_some() {
        loop {
            let mut line = Vec::new();
            while !line.ends_with(b"\r\n") {
                line.push(stream.read_u8().await.ok()?);
            }
            let size = usize::from_str_radix(std::str::from_utf8(&line).ok()?.trim(), 16).ok()?;
            let mut chunk = vec![0; size + 2];
            stream.read_exact(&mut chunk).await.ok()?;
            body.extend(&chunk[..size]);
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = field("content-length") {
        body = vec![0; length.parse().ok()?];
        stream.read_exact(&mut body).await.ok()?;
    }
    note(log, at, |entry| (entry.body, entry.complete) = (body, true));
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.ok()
}

fn note(log: &Log, at: usize, write: impl FnOnce(&mut Received)) {
    if let Some(entry) = log.lock().get_mut(at) {
        write(entry);
    }
}

/// What is to become of a request.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// Answered with this status, or with nothing for 0; the connection ends; the origin sees no byte of it.
    Refused(u16),
    /// As above, but found out after the header had gone on: the origin never sees a whole request.
    Cut,
    /// The origin sees one request that begins with this line, and this body; the client gets its 200.
    Passed(&'static str, &'static str),
    /// As above, and none of these fields.
    Without(&'static str, &'static [&'static str]),
}
use Fate::{Cut, Passed, Refused, Without};

const PLAIN: &str = "GET / HTTP/1.1";

/// Name, request (`@` stands for the host), fate.
const CASES: &[(&str, &str, Fate)] = &[
    // How the body ends (RFC 9112, 6).
    (
        "length and chunked",
        "POST / HTTP/1.1\r\nhost: @\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        Refused(400),
    ),
    (
        "chunked and length",
        "POST / HTTP/1.1\r\nhost: @\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n0\r\n\r\n",
        Refused(400),
    ),
    (
        "chunked and length 0",
        "POST / HTTP/1.1\r\nhost: @\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n",
        Refused(400),
    ),
    ("two lengths", "POST / HTTP/1.1\r\nhost: @\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\nabcde", Refused(400)),
    (
        "the same length twice",
        "POST / HTTP/1.1\r\nhost: @\r\ncontent-length: 4\r\ncontent-length: 4\r\n\r\nabcd",
        Refused(400),
    ),
    ("a list of lengths", "POST / HTTP/1.1\r\nhost: @\r\ncontent-length: 4, 4\r\n\r\nabcd", Refused(400)),
    ("a signed length", "POST / HTTP/1.1\r\nhost: @\r\ncontent-length: +4\r\n\r\nabcd", Refused(400)),
    ("a negative length", "POST / HTTP/1.1\r\nhost: @\r\ncontent-length: -1\r\n\r\n", Refused(400)),
    ("a hexadecimal length", "POST / HTTP/1.1\r\nhost: @\r\ncontent-length: 0x4\r\n\r\nabcd", Refused(400)),
    ("a length with a blank", "POST / HTTP/1.1\r\nhost: @\r\ncontent-length: 1 0\r\n\r\na", Refused(400)),
    ("an empty length", "POST / HTTP/1.1\r\nhost: @\r\ncontent-length:\r\n\r\n", Refused(400)),
    ("a length that is no number", "POST / HTTP/1.1\r\nhost: @\r\ncontent-length: four\r\n\r\nabcd", Refused(400)),
    (
        "a length beyond 64 bits",
        "POST / HTTP/1.1\r\nhost: @\r\ncontent-length: 99999999999999999999999\r\n\r\na",
        Refused(400),
    ),
    ("a fractional length", "POST / HTTP/1.1\r\nhost: @\r\ncontent-length: 4.0\r\n\r\nabcd", Refused(400)),
    ("an unknown coding", "POST / HTTP/1.1\r\nhost: @\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n", Refused(400)),
    ("identity", "POST / HTTP/1.1\r\nhost: @\r\ntransfer-encoding: identity\r\n\r\n", Refused(400)),
    (
        "gzip before chunked",
        "POST / HTTP/1.1\r\nhost: @\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        Refused(501),
    ),
    (
        "chunked before gzip",
        "POST / HTTP/1.1\r\nhost: @\r\ntransfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        Refused(400),
    ),
    (
        "chunked twice",
        "POST / HTTP/1.1\r\nhost: @\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        Refused(400),
    ),
    (
        "chunked, chunked",
        "POST / HTTP/1.1\r\nhost: @\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        Refused(501),
    ),
    (
        "identity, then chunked",
        "POST / HTTP/1.1\r\nhost: @\r\ntransfer-encoding: identity\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        Refused(501),
    ),
    (
        "chunked in quotes",
        "POST / HTTP/1.1\r\nhost: @\r\ntransfer-encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
        Refused(400),
    ),
    (
        "chunked with a parameter",
        "POST / HTTP/1.1\r\nhost: @\r\ntransfer-encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
        Refused(400),
    ),
    ("an empty coding", "POST / HTTP/1.1\r\nhost: @\r\ntransfer-encoding:\r\n\r\n", Refused(400)),
    ("chunked in HTTP/1.0", "POST / HTTP/1.0\r\nhost: @\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", Refused(400)),
    (
        "a vertical tab before chunked",
        "POST / HTTP/1.1\r\nhost: @\r\ntransfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        Refused(400),
    ),
    (
        "chunked in capitals",
        "POST / HTTP/1.1\r\nhost: @\r\nTransfer-Encoding: CHUNKED\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        Passed("POST / HTTP/1.1", "abc"),
    ),
    (
        "blanks around chunked",
        "POST / HTTP/1.1\r\nhost: @\r\ntransfer-encoding: \t chunked \r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        Passed("POST / HTTP/1.1", "abc"),
    ),
    // Chunks (RFC 9112, 7.1).
    (
        "no size",
        "POST / HTTP/1.1\r\nhost: @\r\ntransfer-encoding: chunked\r\n\r\n\r\nabc\r\n0\r\n\r\n",
        Passed("POST / HTTP/1.1", ""),
    ),
    (
        "a size that is no number",
        "POST / HTTP/1.1\r\nhost: @\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\nabc\r\n0\r\n\r\n",
        Cut,
    ),
    ("a size with 0x", "POST / HTTP/1.1\r\nhost: @\r\ntransfer-encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n", Cut),
    ("a negative size", "POST / HTTP/1.1\r\nhost: @\r\ntransfer-encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n", Cut),
    ("a signed size", "POST / HTTP/1.1\r\nhost: @\r\ntransfer-encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n", Cut),
    (
        "a size beyond 64 bits",
        "POST / HTTP/1.1\r\nhost: @\r\ntransfer-encoding: chunked\r\n\r\n10000000000000003\r\nabc\r\n0\r\n\r\n",
        Cut,
    ),
    (
        "a size that wraps around",
        "POST / HTTP/1.1\r\nhost: @\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\nabc\r\n0\r\n\r\n",
        Cut,
    ),
    (
        "a size line without CR",
        "POST / HTTP/1.1\r\nhost: @\r\ntransfer-encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
        Cut,
    ),
    (
        "a chunk longer than its size",
        "POST / HTTP/1.1\r\nhost: @\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
        Cut,
    ),
    (
        "a chunk that ends without CR",
        "POST / HTTP/1.1\r\nhost: @\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\n0\r\n\r\n",
        Cut,
    ),
    (
        "a chunk that ends in XX",
        "POST / HTTP/1.1\r\nhost: @\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabcXX0\r\n\r\n",
        Cut,
    ),
    ("a NUL in a size", "POST / HTTP/1.1\r\nhost: @\r\ntransfer-encoding: chunked\r\n\r\n3\0\r\nabc\r\n0\r\n\r\n", Cut),
    (
        "a size in capitals, and zeros",
        "POST / HTTP/1.1\r\nhost: @\r\ntransfer-encoding: chunked\r\n\r\n00A\r\n0123456789\r\n0\r\n\r\n",
        Passed("POST / HTTP/1.1", "0123456789"),
    ),
    (
        "an extension",
        "POST / HTTP/1.1\r\nhost: @\r\ntransfer-encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0;last\r\n\r\n",
        Passed("POST / HTTP/1.1", "abc"),
    ),
    (
        "what looks like a request in a chunk",
        "POST / HTTP/1.1\r\nhost: @\r\ntransfer-encoding: chunked\r\n\r\n12\r\nGET /x HTTP/1.1\r\n\r\n\r\n0\r\n\r\n",
        Cut,
    ),
    // Lines (RFC 9112, 2.2, 5).
    ("all lines without CR", "GET / HTTP/1.1\nhost: @\n\n", Refused(400)),
    ("one line without CR", "GET / HTTP/1.1\r\nhost: @\r\na: b\nc: d\r\n\r\n", Refused(400)),
    ("the last line without CR", "GET / HTTP/1.1\r\nhost: @\r\n\n", Refused(400)),
    ("the request line without CR", "GET / HTTP/1.1\nhost: @\r\n\r\n", Refused(400)),
    (
        "a request hidden behind a line without CR",
        "GET / HTTP/1.1\r\nhost: @\r\na: b\n\nGET /hidden HTTP/1.1\r\nhost: @\r\n\r\n",
        Refused(400),
    ),
    ("a bare CR in a value", "GET / HTTP/1.1\r\nhost: @\r\na: b\rc: d\r\n\r\n", Refused(400)),
    ("a bare CR in the request line", "GET /\r HTTP/1.1\r\nhost: @\r\n\r\n", Refused(400)),
    ("two CR", "GET / HTTP/1.1\r\r\nhost: @\r\n\r\n", Refused(400)),
    ("a field that goes on", "GET / HTTP/1.1\r\nhost: @\r\na: b\r\n c\r\n\r\n", Refused(400)),
    ("a field that goes on after a tab", "GET / HTTP/1.1\r\nhost: @\r\na: b\r\n\tc\r\n\r\n", Refused(400)),
    ("a blank before the first field", "GET / HTTP/1.1\r\n host: @\r\n\r\n", Refused(400)),
    ("a blank before the colon", "GET / HTTP/1.1\r\nhost: @\r\na : b\r\n\r\n", Refused(400)),
    ("a tab before the colon", "GET / HTTP/1.1\r\nhost: @\r\na\t: b\r\n\r\n", Refused(400)),
    (
        "a blank before the colon of the length",
        "POST / HTTP/1.1\r\nhost: @\r\ncontent-length : 4\r\n\r\nabcd",
        Refused(400),
    ),
    (
        "a blank before the colon of the coding",
        "POST / HTTP/1.1\r\nhost: @\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n",
        Refused(400),
    ),
    ("no colon", "GET / HTTP/1.1\r\nhost: @\r\nab\r\n\r\n", Refused(400)),
    ("no name", "GET / HTTP/1.1\r\nhost: @\r\n: b\r\n\r\n", Refused(400)),
    ("NUL in a name", "GET / HTTP/1.1\r\nhost: @\r\na\0b: c\r\n\r\n", Refused(400)),
    ("NUL in a value", "GET / HTTP/1.1\r\nhost: @\r\na: b\0c\r\n\r\n", Refused(400)),
    ("a control character in a value", "GET / HTTP/1.1\r\nhost: @\r\na: b\x01c\r\n\r\n", Refused(400)),
    ("DEL in a value", "GET / HTTP/1.1\r\nhost: @\r\na: b\x7fc\r\n\r\n", Refused(400)),
    ("brackets in a name", "GET / HTTP/1.1\r\nhost: @\r\na[b]: c\r\n\r\n", Refused(400)),
    ("a letter beyond ASCII in a name", "GET / HTTP/1.1\r\nhost: @\r\nä: c\r\n\r\n", Refused(400)),
    ("a letter beyond ASCII in a value", "GET / HTTP/1.1\r\nhost: @\r\na: ä\r\n\r\n", Passed(PLAIN, "")),
    ("an empty line before the request", "\r\nGET / HTTP/1.1\r\nhost: @\r\n\r\n", Passed(PLAIN, "")),
    ("an empty line without CR before the request", "\nGET / HTTP/1.1\r\nhost: @\r\n\r\n", Refused(400)),
    // The request line (RFC 9112, 3).
    ("no version", "GET /\r\nhost: @\r\n\r\n", Refused(400)),
    ("HTTP/2.0", "GET / HTTP/2.0\r\nhost: @\r\n\r\n", Refused(400)),
    ("HTTP/1.2", "GET / HTTP/1.2\r\nhost: @\r\n\r\n", Refused(400)),
    ("http in small letters", "GET / http/1.1\r\nhost: @\r\n\r\n", Refused(400)),
    ("HTTP/01.1", "GET / HTTP/01.1\r\nhost: @\r\n\r\n", Refused(400)),
    ("two versions", "GET / HTTP/1.1 HTTP/1.1\r\nhost: @\r\n\r\n", Refused(400)),
    ("a tab after the method", "GET\t/ HTTP/1.1\r\nhost: @\r\n\r\n", Refused(400)),
    ("a tab after the target", "GET /\tHTTP/1.1\r\nhost: @\r\n\r\n", Refused(400)),
    ("a blank before the method", " GET / HTTP/1.1\r\nhost: @\r\n\r\n", Refused(400)),
    ("a blank after the version", "GET / HTTP/1.1 \r\nhost: @\r\n\r\n", Refused(400)),
    ("a method with a colon", "GE:T / HTTP/1.1\r\nhost: @\r\n\r\n", Refused(400)),
    ("a method with NUL", "GET\0 / HTTP/1.1\r\nhost: @\r\n\r\n", Refused(400)),
    ("an empty method", " / HTTP/1.1\r\nhost: @\r\n\r\n", Refused(400)),
    ("no target", "GET HTTP/1.1\r\nhost: @\r\n\r\n", Refused(400)),
    ("a target without a slash", "GET a HTTP/1.1\r\nhost: @\r\n\r\n", Refused(400)),
    ("a target that is a query", "GET ?a HTTP/1.1\r\nhost: @\r\n\r\n", Refused(400)),
    ("an asterisk for GET", "GET * HTTP/1.1\r\nhost: @\r\n\r\n", Refused(400)),
    ("a fragment", "GET /a#b HTTP/1.1\r\nhost: @\r\n\r\n", Refused(400)),
    ("a fragment in the query", "GET /a?b#c HTTP/1.1\r\nhost: @\r\n\r\n", Refused(400)),
    ("CONNECT", "CONNECT @:443 HTTP/1.1\r\nhost: @:443\r\n\r\n", Refused(405)),
    ("TRACE", "TRACE / HTTP/1.1\r\nhost: @\r\n\r\n", Refused(405)),
    ("a method of one's own", "PURR / HTTP/1.1\r\nhost: @\r\n\r\n", Passed("PURR / HTTP/1.1", "")),
    ("a method in small letters", "get / HTTP/1.1\r\nhost: @\r\n\r\n", Passed("get / HTTP/1.1", "")),
    // Whom it is for (RFC 9112, 3.2; RFC 9110, 7.2).
    ("no Host", "GET / HTTP/1.1\r\n\r\n", Refused(400)),
    ("an empty Host", "GET / HTTP/1.1\r\nhost:\r\n\r\n", Refused(400)),
    ("two Hosts", "GET / HTTP/1.1\r\nhost: @\r\nhost: other.test\r\n\r\n", Refused(400)),
    ("the same Host twice", "GET / HTTP/1.1\r\nhost: @\r\nhost: @\r\n\r\n", Refused(400)),
    ("a list of Hosts", "GET / HTTP/1.1\r\nhost: @, other.test\r\n\r\n", Refused(400)),
    ("a user in Host", "GET / HTTP/1.1\r\nhost: me=AT=@\r\n\r\n", Refused(400)),
    ("a path in Host", "GET / HTTP/1.1\r\nhost: @/admin\r\n\r\n", Refused(400)),
    ("a blank in Host", "GET / HTTP/1.1\r\nhost: @ other.test\r\n\r\n", Refused(400)),
    ("a port that is no number", "GET / HTTP/1.1\r\nhost: @:80a\r\n\r\n", Refused(400)),
    ("another host in the target", "GET http://other.test/ HTTP/1.1\r\nhost: @\r\n\r\n", Refused(400)),
    ("a user in the target", "GET http://me=AT=@/ HTTP/1.1\r\nhost: @\r\n\r\n", Refused(400)),
    ("another scheme", "GET ftp://@/ HTTP/1.1\r\nhost: @\r\n\r\n", Refused(400)),
    ("a target with a backslash host", "GET http:/\\@/ HTTP/1.1\r\nhost: @\r\n\r\n", Refused(400)),
    ("a URI", "GET http://@/a?b HTTP/1.1\r\nhost: @\r\n\r\n", Passed("GET /a?b HTTP/1.1", "")),
    // The path (RFC 3986, 6.2.2).
    ("dot segments", "GET /a/../b/./c HTTP/1.1\r\nhost: @\r\n\r\n", Passed("GET /b/c HTTP/1.1", "")),
    ("encoded dot segments", "GET /a/%2e%2E/b HTTP/1.1\r\nhost: @\r\n\r\n", Passed("GET /b HTTP/1.1", "")),
    ("out of the root", "GET /../etc/passwd HTTP/1.1\r\nhost: @\r\n\r\n", Refused(400)),
    ("out of the root, encoded", "GET /a/%2e%2e/%2e%2e/etc HTTP/1.1\r\nhost: @\r\n\r\n", Refused(400)),
    ("a dot segment with a parameter", "GET /a/..;/b HTTP/1.1\r\nhost: @\r\n\r\n", Refused(400)),
    ("two slashes", "GET //a//b HTTP/1.1\r\nhost: @\r\n\r\n", Passed("GET /a/b HTTP/1.1", "")),
    ("an encoded slash", "GET /a%2fb HTTP/1.1\r\nhost: @\r\n\r\n", Passed("GET /a%2Fb HTTP/1.1", "")),
    ("a backslash", "GET /a\\..\\b HTTP/1.1\r\nhost: @\r\n\r\n", Passed("GET /a%5C..%5Cb HTTP/1.1", "")),
    ("encoded letters", "GET /%61dmin HTTP/1.1\r\nhost: @\r\n\r\n", Passed("GET /admin HTTP/1.1", "")),
    ("an encoded NUL", "GET /a%00.png HTTP/1.1\r\nhost: @\r\n\r\n", Refused(400)),
    ("an encoded line end", "GET /a%0d%0aset-cookie:x HTTP/1.1\r\nhost: @\r\n\r\n", Refused(400)),
    ("half an encoding", "GET /a%2 HTTP/1.1\r\nhost: @\r\n\r\n", Refused(400)),
    ("an encoding that is none", "GET /a%gg HTTP/1.1\r\nhost: @\r\n\r\n", Refused(400)),
    ("letters beyond ASCII", "GET /ä HTTP/1.1\r\nhost: @\r\n\r\n", Passed("GET /%C3%A4 HTTP/1.1", "")),
    ("a blank in the path", "GET /a b HTTP/1.1\r\nhost: @\r\n\r\n", Passed("GET /a%20b HTTP/1.1", "")),
    (
        "the query stays",
        "GET /a?b=/../%2e%2e//%zz HTTP/1.1\r\nhost: @\r\n\r\n",
        Passed("GET /a?b=/../%2e%2e//%zz HTTP/1.1", ""),
    ),
    // From hop to hop (RFC 9110, 7.6.1, 7.8).
    (
        "Connection takes a field away",
        "GET / HTTP/1.1\r\nhost: @\r\nconnection: x-mine\r\nx-mine: 1\r\n\r\n",
        Without(PLAIN, &["x-mine", "connection: x-mine"]),
    ),
    (
        "Connection and what the node says of the client",
        "GET / HTTP/1.1\r\nhost: @\r\nconnection: close, x-forwarded-for\r\n\r\n",
        Without(PLAIN, &["connection: close, x"]),
    ),
    ("Connection takes Host away", "GET / HTTP/1.1\r\nhost: @\r\nconnection: host\r\n\r\n", Refused(400)),
    (
        "Connection takes the length away",
        "POST / HTTP/1.1\r\nhost: @\r\nconnection: content-length\r\ncontent-length: 4\r\n\r\nabcd",
        Refused(400),
    ),
    ("Connection names no field", "GET / HTTP/1.1\r\nhost: @\r\nconnection: a b\r\n\r\n", Refused(400)),
    (
        "an upgrade to HTTP/2",
        "GET / HTTP/1.1\r\nhost: @\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n",
        Without(PLAIN, &["upgrade", "http2-settings"]),
    ),
];

/// How long an answer may take; and what stands for one that does not come.
const PATIENCE: Duration = Duration::from_secs(30);
const HUNG: u16 = 999;
/// How long the origin may take to read what it has.
const SETTLED: Duration = Duration::from_secs(2);

const CONFIG: &str = "upstreams: { app: { endpoints: [\"127.0.0.1:${PORT_app}\"] } }
filters:
  noop: { wasm: \"file:${GUESTS}/noop.wasm\", limits: { deadline: 10s } }
sites:
  - { hosts: [plain.test, '*.plain.test'], routes: [{ to: app }] }
  - { hosts: [chain.test, '*.chain.test'], routes: [{ filters: [noop, noop], to: app }] }
";

#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_read_in_two_ways_reaches_no_origin() {
    let (origin, log) = recording().await;
    let edge = Edge::start(CONFIG, &[("app", origin)]);
    assert!(CASES.len() >= 100, "{}", CASES.len());
    let mut wrong = Vec::new();
    for site in ["plain.test", "chain.test"] {
        // What the origin has of a request that was cut it may read late, when the next one is on its way.
        let mut cut: Vec<String> = Vec::new();
        for (number, (name, request, fate)) in CASES.iter().enumerate() {
            log.lock().clear();
            let host = format!("case-{number}.{site}");
            let mut client = Client::connect(edge.web()).await;
            client.send(request.replace('@', &host).replace("=AT=", "@").as_bytes()).await;
            let answer = tokio::time::timeout(PATIENCE, client.try_response("GET")).await;
            let status = answer.map_or(HUNG, |answer| answer.map_or(0, |answer| answer.status));
            // Whatever was refused, nothing more can be said on that connection.
            let mut ended = true;
            if !matches!(fate, Passed(..) | Without(..)) {
                ended = tokio::time::timeout(PATIENCE, client.is_closed()).await.unwrap_or(false);
            }
            let received = || {
                let is_late = |entry: &Received| !entry.complete && cut.iter().any(|host| entry.head.contains(host));
                let entries = log.lock().clone();
                entries.into_iter().filter(|entry| !is_late(entry)).collect::<Vec<_>>()
            };
            let is_fine = |received: &[Received]| match fate {
                Refused(expected) => status == *expected && ended && received.is_empty(),
                Cut => matches!(status, 0 | 400) && ended && !received.iter().any(|entry| entry.complete),
                Passed(line, body) => {
                    status == 200
                        && matches!(received, [only] if only.complete
                            && only.head.lines().next() == Some(line)
                            && only.body == body.as_bytes())
                }
                Without(line, fields) => {
                    status == 200
                        && matches!(received, [only] if only.complete
                            && only.head.lines().next() == Some(line)
                            && !fields.iter().any(|field| only.head.to_ascii_lowercase().contains(&format!("\n{field}"))))
                }
            };
            // Half a head does not say yet whose it is.
            let begun = Instant::now();
            while !is_fine(&received()) && begun.elapsed() < SETTLED {
                tokio::task::yield_now().await;
            }
            if !is_fine(&received()) {
                wrong.push(format!(
                    "{host}, {name}: expected {fate:?}, found status {status}, ended {ended}, {:?}",
                    received()
                ));
            }
            if matches!(fate, Cut) {
                cut.push(host);
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), CASES.len() * 2, wrong.join("\n"));
}

/// A field of an HTTP/2 request, written as it is (RFC 7541, 6.2.2: literal, not indexed, no Huffman code).
fn literal(out: &mut Vec<u8>, name: &str, value: &str) {
    out.push(0);
    for text in [name, value] {
        out.push(u8::try_from(text.len()).expect("short"));
        out.extend(text.as_bytes());
    }
}

/// A frame (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).expect("short").to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

const HEADERS: u8 = 1;
const DATA: u8 = 0;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

type Fields = &'static [(&'static str, &'static str)];

/// Name, fields (`@` stands for the host), body, and the request line at the origin; `None` = it gets nothing whole.
const CASES_2: &[(&str, Fields, Option<&str>, Option<&str>)] = &[
    ("a plain one", &[(":method", "GET"), (":scheme", "http"), (":authority", "@"), (":path", "/")], None, Some(PLAIN)),
    (
        "a body",
        &[(":method", "POST"), (":scheme", "http"), (":authority", "@"), (":path", "/"), ("content-length", "3")],
        Some("abc"),
        Some("POST / HTTP/1.1"),
    ),
    (
        "dot segments",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "@"), (":path", "/a/../%62")],
        None,
        Some("GET /b HTTP/1.1"),
    ),
    (
        "out of the root",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "@"), (":path", "/../a")],
        None,
        None,
    ),
    ("an encoded NUL", &[(":method", "GET"), (":scheme", "http"), (":authority", "@"), (":path", "/%00")], None, None),
    ("no path", &[(":method", "GET"), (":scheme", "http"), (":authority", "@")], None, None),
    ("an empty path", &[(":method", "GET"), (":scheme", "http"), (":authority", "@"), (":path", "")], None, None),
    (
        "a path without slash",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "@"), (":path", "a")],
        None,
        None,
    ),
    (
        "a path with a blank",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "@"), (":path", "/a b")],
        None,
        None,
    ),
    (
        "a path with a line end",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "@"), (":path", "/ HTTP/1.1\r\nx: y")],
        None,
        None,
    ),
    (
        "a method with a blank",
        &[(":method", "GET /x"), (":scheme", "http"), (":authority", "@"), (":path", "/")],
        None,
        None,
    ),
    (
        "a method with a line end",
        &[(":method", "GET / HTTP/1.1\r\nx: y"), (":scheme", "http"), (":authority", "@"), (":path", "/")],
        None,
        None,
    ),
    ("no method", &[(":scheme", "http"), (":authority", "@"), (":path", "/")], None, None),
    (
        "two paths",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "@"), (":path", "/"), (":path", "/b")],
        None,
        None,
    ),
    (
        "two authorities",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "@"), (":authority", "b"), (":path", "/")],
        None,
        None,
    ),
    (
        "a pseudo field nobody knows",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "@"), (":path", "/"), (":mood", "good")],
        None,
        None,
    ),
    (
        "a pseudo field of responses",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "@"), (":path", "/"), (":status", "200")],
        None,
        None,
    ),
    (
        "a pseudo field after others",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "@"), ("a", "b"), (":path", "/")],
        None,
        None,
    ),
    (
        "another host",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "@"), (":path", "/"), ("host", "other.test")],
        None,
        None,
    ),
    ("two hosts", &[(":method", "GET"), (":scheme", "http"), (":path", "/"), ("host", "@"), ("host", "@")], None, None),
    (
        "a user in the authority",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "me=AT=@"), (":path", "/")],
        None,
        None,
    ),
    (
        "a path in the authority",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "@/x"), (":path", "/")],
        None,
        None,
    ),
    ("no host at all", &[(":method", "GET"), (":scheme", "http"), (":path", "/")], None, None),
    ("a host only", &[(":method", "GET"), (":scheme", "http"), (":path", "/"), ("host", "@")], None, Some(PLAIN)),
    (
        "capitals in a name",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "@"), (":path", "/"), ("Name", "x")],
        None,
        None,
    ),
    (
        "a line end in a name",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "@"), (":path", "/"), ("a\r\nb", "x")],
        None,
        None,
    ),
    (
        "a colon in a name",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "@"), (":path", "/"), ("a:b", "x")],
        None,
        None,
    ),
    (
        "a line end in a value",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "@"), (":path", "/"), ("a", "x\r\nb: y")],
        None,
        None,
    ),
    (
        "LF in a value",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "@"), (":path", "/"), ("a", "x\nb: y")],
        None,
        None,
    ),
    (
        "NUL in a value",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "@"), (":path", "/"), ("a", "x\0y")],
        None,
        None,
    ),
    (
        "connection",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "@"), (":path", "/"), ("connection", "close")],
        None,
        None,
    ),
    (
        "keep-alive",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "@"), (":path", "/"), ("keep-alive", "1")],
        None,
        None,
    ),
    (
        "proxy-connection",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "@"), (":path", "/"), ("proxy-connection", "x")],
        None,
        None,
    ),
    (
        "upgrade",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "@"), (":path", "/"), ("upgrade", "h2c")],
        None,
        None,
    ),
    (
        "transfer-encoding",
        &[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "@"),
            (":path", "/"),
            ("transfer-encoding", "chunked"),
        ],
        Some("0\r\n\r\n"),
        None,
    ),
    (
        "te other than trailers",
        &[(":method", "GET"), (":scheme", "http"), (":authority", "@"), (":path", "/"), ("te", "gzip")],
        None,
        None,
    ),
    (
        "a length too long",
        &[(":method", "POST"), (":scheme", "http"), (":authority", "@"), (":path", "/"), ("content-length", "5")],
        Some("abc"),
        None,
    ),
    (
        "a length too short",
        &[(":method", "POST"), (":scheme", "http"), (":authority", "@"), (":path", "/"), ("content-length", "2")],
        Some("abcGET"),
        None,
    ),
    (
        "a length without a body",
        &[(":method", "POST"), (":scheme", "http"), (":authority", "@"), (":path", "/"), ("content-length", "5")],
        None,
        None,
    ),
    (
        "two lengths",
        &[
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "@"),
            (":path", "/"),
            ("content-length", "3"),
            ("content-length", "4"),
        ],
        Some("abc"),
        None,
    ),
    (
        "a length that is no number",
        &[(":method", "POST"), (":scheme", "http"), (":authority", "@"), (":path", "/"), ("content-length", "x")],
        Some("abc"),
        None,
    ),
    ("CONNECT", &[(":method", "CONNECT"), (":authority", "@:443")], None, None),
    ("TRACE", &[(":method", "TRACE"), (":scheme", "http"), (":authority", "@"), (":path", "/")], None, None),
];

/// Whether the stream was answered with 200; anything else, and any end, is a refusal.
async fn passes(stream: &mut TcpStream) -> Option<bool> {
    const RST_STREAM: u8 = 3;
    const GOAWAY: u8 = 7;
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).await.is_err() {
            return Some(false);
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).ok()?];
        stream.read_exact(&mut payload).await.ok()?;
        match head[3] {
            HEADERS => return Some(payload.first() == Some(&0x88)), // The static entry `:status: 200`.
            RST_STREAM | GOAWAY => return Some(false),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http_2_hides_nothing_from_the_origin_either() {
    let (origin, log) = recording().await;
    let edge = Edge::start(CONFIG, &[("app", origin)]);
    let mut wrong = Vec::new();
    for host in ["plain.test", "chain.test"] {
        for (name, fields, body, expected) in CASES_2 {
            log.lock().clear();
            let mut block = Vec::new();
            for (field, value) in *fields {
                literal(&mut block, field, &value.replace('@', host).replace("=AT=", "@"));
            }
            let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
            bytes.extend(frame(4, 0, 0, &[]));
            let end = if body.is_none() { END_STREAM } else { 0 };
            bytes.extend(frame(HEADERS, END_HEADERS | end, 1, &block));
            if let Some(body) = body {
                bytes.extend(frame(DATA, END_STREAM, 1, body.as_bytes()));
            }
            let mut stream = TcpStream::connect(edge.web()).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
            let passed = tokio::time::timeout(PATIENCE, passes(&mut stream)).await.ok().flatten();
            let received = log.lock().clone();
            let whole: Vec<&Received> = received.iter().filter(|entry| entry.complete).collect();
            let fine = match expected {
                Some(line) => {
                    passed == Some(true)
                        && matches!(&whole[..], [only] if only.head.lines().next() == Some(line)
                            && only.body == body.unwrap_or_default().as_bytes())
                }
                None => passed == Some(false) && whole.is_empty(),
            };
            if !fine {
                wrong.push(format!("{host}, {name}: passed {passed:?}, {received:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), CASES_2.len() * 2, wrong.join("\n"));
}

/// A target, the status it gets, and the body.
type Reading = (&'static str, u16, &'static str);

/// The one policy for paths, as `node.paths` has it: routes, filters and origins see the same.
#[tokio::test(flavor = "multi_thread")]
async fn paths_are_read_as_the_node_is_told() {
    let origin = Origin::start(|request| Origin::reply(200, &[], request.target.clone())).await;
    let cases: [(&str, &[Reading]); 5] = [
        (
            "",
            &[
                ("//admin/x", 403, "guarded"),
                ("/a/../admin/x", 403, "guarded"),
                ("/%61dmin/x", 403, "guarded"),
                ("/admin%2Fx", 200, "/admin%2Fx"),
                ("/a//b/./c?d=//..", 200, "/a/b/c?d=//.."),
            ],
        ),
        (", paths: { merge_slashes: false }", &[("//admin/x", 200, "//admin/x"), ("/a/../admin/x", 403, "guarded")]),
        (
            ", paths: { encoded_slashes: decode }",
            &[("/admin%2Fx", 403, "guarded"), ("/admin%2fx", 403, "guarded"), ("/a%2F..%2Fadmin/x", 403, "guarded")],
        ),
        (
            ", paths: { encoded_slashes: reject }",
            &[("/a%2Fb", 400, ""), ("/a%2fb", 400, ""), ("/a?b=%2F", 200, "/a?b=%2F")],
        ),
        (
            ", paths: { normalize: false }",
            &[("/a/../admin/x", 200, "/a/../admin/x"), ("/%61dmin/x", 200, "/%61dmin/x"), ("/admin/x", 403, "guarded")],
        ),
    ];
    for (paths, requests) in cases {
        let edge = Edge::start(
            &format!(
                "version: 1
node: {{ name: edge, workers: 1, module_cache: off{paths} }}
telemetry: {{ access_log: {{ output: off }} }}
listeners: {{ web: {{ bind: \"127.0.0.1:0\" }} }}
filters: {{ noop: {{ wasm: \"file:${{GUESTS}}/noop.wasm\", limits: {{ deadline: 20s }} }} }}
upstreams: {{ app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }} }}
sites:
  - hosts: [bare]
    routes: [{{ match: {{ path: /admin/* }}, respond: {{ status: 403, body: guarded }} }}, {{ to: app }}]
  - hosts: [filtered]
    routes: [{{ match: {{ path: /admin/* }}, filters: [noop], respond: {{ status: 403, body: guarded }} }}, {{ filters: [noop], to: app }}]
"
            ),
            &[("app", origin.address())],
        );
        for (target, status, text) in requests {
            for host in ["bare", "filtered"] {
                let mut client = Client::connect(edge.web()).await;
                let response = client.request(&format!("GET {target} HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
                assert_eq!(response.status, *status, "{target} {host}{paths}");
                assert!(*status == 400 || response.text() == *text, "{target} {host}{paths}: {}", response.text());
            }
        }
    }
}
