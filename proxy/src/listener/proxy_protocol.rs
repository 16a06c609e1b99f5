//! The PROXY protocol, versions 1 and 2: how a proxy that forwards TCP says for whom a connection is
//! (<https://www.haproxy.org/download/2.8/doc/proxy-protocol.txt>; sections are cited from there).
//!
//! What a header says beyond the two addresses (TLVs: names, certificates, a checksum) is skipped, unverified: whoever may send it is trusted.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt};

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Header {
    /// The connection is for this client, who connected to this address.
    For {
        /// The client.
        source: SocketAddr,
        /// Where it connected to.
        destination: SocketAddr,
    },
    /// It is the proxy's own (LOCAL, a health check), or for somebody without such an address (UNKNOWN, UNSPEC, datagrams, Unix sockets).
    Own,
}

/// What was read is no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no PROXY protocol header: {0}")]
pub(crate) struct Malformed(&'static str);

/// The start of a header, looked at.
#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    /// It goes on for at least so many bytes.
    Partial(usize),
    Whole(Header),
}

/// What version 2 begins with (2.2).
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The fixed part of version 2.
const FIXED: usize = 16;
/// What version 1 begins with (2.1).
const PROXY: &[u8] = b"PROXY ";
/// The shortest header of all: `PROXY UNKNOWN\r\n`.
const SHORTEST: usize = 15;
/// The longest of version 1 (2.1).
const LINE_MAX: usize = 107;
/// The longest of version 2 that is taken, in bytes; its length field could announce 64 KiB.
const LENGTH_MAX: usize = 4096;

/// Reads a header, and not one byte more.
///
/// # Errors
/// It is malformed ([`io::ErrorKind::InvalidData`]), or the connection has ended.
pub(crate) async fn read(io: &mut (impl AsyncRead + Unpin)) -> io::Result<Header> {
    let mut header = Vec::with_capacity(64);
    loop {
        match parse(&header).map_err(|malformed| io::Error::new(io::ErrorKind::InvalidData, malformed))? {
            Parsed::Whole(whole) => return Ok(whole),
            Parsed::Partial(more) => {
                let before = header.len();
                header.resize(before + more, 0);
                let count = io.read(&mut header[before..]).await?;
                if count == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                header.truncate(before + count);
            }
        }
    }
}

fn parse(bytes: &[u8]) -> Result<Parsed, Malformed> {
    let begins_as = |start: &[u8]| bytes.iter().zip(start).all(|(found, expected)| found == expected);
    match bytes.first() {
        None => Ok(Parsed::Partial(SHORTEST)),
        Some(b'P') if begins_as(PROXY) => line(bytes),
        Some(b'\r') if begins_as(SIGNATURE) => binary(bytes),
        Some(_) => Err(Malformed("neither version begins so")),
    }
}

/// Version 1 (2.1).
fn line(bytes: &[u8]) -> Result<Parsed, Malformed> {
    let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
        if bytes.len() >= LINE_MAX - 1 {
            return Err(Malformed("the line is too long"));
        }
        let shortest = match bytes.get(PROXY.len()..PROXY.len() + 5) {
            Some(b"TCP4 ") => "PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n".len(),
            Some(b"TCP6 ") => "PROXY TCP6 :: :: 0 0\r\n".len(),
            _ => SHORTEST,
        };
        return Ok(Parsed::Partial(shortest.saturating_sub(bytes.len()).max(2)));
    };
    match &bytes[end..] {
        b"\r" => return Ok(Parsed::Partial(1)),
        b"\r\n" => {}
        _ => return Err(Malformed("the line does not end with CRLF")),
    }
    let text = std::str::from_utf8(&bytes[PROXY.len()..end]).map_err(|_| Malformed("the line is not ASCII"));
    let fields = match &bytes[PROXY.len()..end] {
        b"UNKNOWN" => return Ok(Parsed::Whole(Header::Own)),
        unknown if unknown.starts_with(b"UNKNOWN ") => return Ok(Parsed::Whole(Header::Own)),
        _ => text?,
    };
    let mut fields = fields.split(' ');
    let mut next = || fields.next().ok_or(Malformed("a field is missing"));
    let address: fn(&str) -> Option<IpAddr> = match next()? {
        "TCP4" => |text| text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        "TCP6" => |text| text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        _ => return Err(Malformed("an unknown protocol")),
    };
    let no_address = Malformed("an address is malformed");
    let source = address(next()?).ok_or(no_address)?;
    let destination = address(next()?).ok_or(no_address)?;
    let source = SocketAddr::new(source, port(next()?)?);
    let destination = SocketAddr::new(destination, port(next()?)?);
    if next().is_ok() {
        return Err(Malformed("there is more than two addresses and ports"));
    }
    Ok(Parsed::Whole(Header::For { source, destination }))
}

/// A port without leading zeros or a sign.
fn port(text: &str) -> Result<u16, Malformed> {
    let plain = text == "0" || (!text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit()));
    text.parse().ok().filter(|_| plain).ok_or(Malformed("a port is malformed"))
}

/// Version 2 (2.2).
fn binary(bytes: &[u8]) -> Result<Parsed, Malformed> {
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED>() else {
        return Ok(Parsed::Partial(FIXED - bytes.len()));
    };
    let [.., command, kind, high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > LENGTH_MAX - FIXED {
        return Err(Malformed("the header is too long"));
    }
    let own = match command {
        0x20 => true,
        0x21 => false,
        _ => return Err(Malformed("an unknown version or command")),
    };
    // Nothing of it means anything in LOCAL.
    if !own && (kind >> 4 > 3 || kind & 0x0f > 2) {
        return Err(Malformed("an unknown family or protocol"));
    }
    let addresses = match kind {
        0x11 => 12,
        0x21 => 36,
        _ => 0,
    };
    if !own && length < addresses {
        return Err(Malformed("too short for its addresses"));
    }
    if rest.len() < length {
        return Ok(Parsed::Partial(length - rest.len()));
    }
    if own || addresses == 0 {
        return Ok(Parsed::Whole(Header::Own));
    }
    let take = |from: usize, count: usize| &rest[from..from + count]; // within `addresses`, which is within `length`
    let ip = |bytes: &[u8]| match <[u8; 4]>::try_from(bytes) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes).unwrap_or_default()),
    };
    let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    let size = (addresses - 4) / 2;
    Ok(Parsed::Whole(Header::For {
        source: SocketAddr::new(ip(take(0, size)), port(2 * size)),
        destination: SocketAddr::new(ip(take(size, size)), port(2 * size + 2)),
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn told(source: &str, destination: &str) -> Header {
        Header::For { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    fn v2(command: u8, kind: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [SIGNATURE, [command, kind].as_slice(), &length, rest].concat()
    }

    const TCP4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 7, 0xdc, 0x04, 0x01, 0xbb];
    const TLVS: &[u8] = b"\x03\x00\x04abcd\x02\x00\x06a.test\x04\x00\x01\x00";

    fn tcp6() -> Vec<u8> {
        let [a, b] = ["2001:db8::1", "2001:db8::2"].map(|text| text.parse::<Ipv6Addr>().unwrap().octets());
        [&a[..], &b, &[0xdc, 0x04, 0x01, 0xbb]].concat()
    }

    /// Sections 2.1 and 2.2, with what each means.
    fn good() -> Vec<(Vec<u8>, Header)> {
        let four = told("192.0.2.1:56324", "198.51.100.7:443");
        let six = told("[2001:db8::1]:56324", "[2001:db8::2]:443");
        let worst = "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n";
        let full = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let worst6 = format!("PROXY TCP6 {full} {full} 65535 65535\r\n");
        let unknown = format!("PROXY UNKNOWN {full} {full} 65535 65535\r\n");
        assert_eq!((worst.len(), worst6.len(), unknown.len()), (56, 104, LINE_MAX));
        vec![
            (
                b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n".to_vec(),
                told("192.168.0.1:56324", "192.168.0.11:443"),
            ),
            (b"PROXY TCP4 0.0.0.0 0.0.0.0 0 0\r\n".to_vec(), told("0.0.0.0:0", "0.0.0.0:0")),
            (worst.into(), told("255.255.255.255:65535", "255.255.255.255:65535")),
            (b"PROXY TCP6 2001:db8::1 2001:DB8::2 56324 443\r\n".to_vec(), six),
            (b"PROXY TCP6 :: :: 0 0\r\n".to_vec(), told("[::]:0", "[::]:0")),
            (worst6.into(), told(&format!("[{full}]:65535"), &format!("[{full}]:65535"))),
            (b"PROXY UNKNOWN\r\n".to_vec(), Header::Own),
            (b"PROXY UNKNOWN \xff whatever\r\n".to_vec(), Header::Own),
            (unknown.into(), Header::Own),
            (v2(0x21, 0x11, &TCP4), four),
            (v2(0x21, 0x11, &[&TCP4[..], TLVS].concat()), four),
            (v2(0x21, 0x21, &tcp6()), six),
            (v2(0x21, 0x21, &[&tcp6()[..], TLVS].concat()), six),
            (v2(0x20, 0x00, &[]), Header::Own),
            (v2(0x20, 0x11, &TCP4), Header::Own),
            (v2(0x20, 0xff, &TLVS[..3]), Header::Own),
            (v2(0x21, 0x00, &[]), Header::Own),
            (v2(0x21, 0x00, TLVS), Header::Own),
            (v2(0x21, 0x12, &TCP4), Header::Own),
            (v2(0x21, 0x22, &tcp6()), Header::Own),
            (v2(0x21, 0x31, &[b'/'; 216]), Header::Own),
            (v2(0x21, 0x32, &[b'/'; 216]), Header::Own),
            (v2(0x21, 0x11, &[&TCP4[..], &[0; LENGTH_MAX - FIXED - 12]].concat()), four),
        ]
    }

    #[tokio::test]
    async fn headers_are_read_to_their_end_and_no_further() {
        for (header, expected) in good() {
            let stream = [&header[..], b"GET / HTTP/1.1\r\n"].concat();
            let mut left = &stream[..];
            assert_eq!(read(&mut left).await.unwrap(), expected, "{}", header.escape_ascii());
            assert_eq!(left, b"GET / HTTP/1.1\r\n", "{}", header.escape_ascii());
        }
    }

    #[tokio::test]
    async fn a_header_that_is_cut_off_anywhere_is_none() {
        for (header, expected) in good() {
            for end in 0..header.len() {
                let Ok(Parsed::Partial(more)) = parse(&header[..end]) else {
                    panic!("{} of {}", end, header.escape_ascii());
                };
                assert!(more > 0 && end + more <= header.len(), "{more} after {end} of {}", header.escape_ascii());
                let error = read(&mut &header[..end]).await.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            }
            assert_eq!(parse(&header), Ok(Parsed::Whole(expected)));
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        let lines: &[&[u8]] = &[
            b"GET / HTTP/1.1\r\n\r\n",
            b"proxy TCP4 1.1.1.1 2.2.2.2 1 2\r\n",
            b"PROXY  TCP4 1.1.1.1 2.2.2.2 1 2\r\n",
            b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n ",
            b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\r\n",
            b"PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n  ",
            b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2 3\r\n",
            b"PROXY TCP4 1.1.1.1  2.2.2.2 1 2\r\n",
            b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2 \r\n",
            b"PROXY TCP4 01.1.1.1 2.2.2.2 1 2\r\n",
            b"PROXY TCP4 1.1.1 2.2.2.2 11 22\r\n",
            b"PROXY TCP4 256.1.1.1 2.2.2.2 1 2\r\n",
            b"PROXY TCP4 1.1.1.1 2.2.2.2 01 2\r\n",
            b"PROXY TCP4 1.1.1.1 2.2.2.2 +1 2\r\n",
            b"PROXY TCP4 1.1.1.1 2.2.2.2 1 65536\r\n",
            b"PROXY TCP4 1.1.1.1 2.2.2.2 1 00\r\n",
            b"PROXY TCP4 ::1 ::2 100000000 2000\r\n",
            b"PROXY TCP6 1.1.1.1 2.2.2.2 1 2\r\n",
            b"PROXY TCP6 :::1 ::2 10 20\r\n",
            b"PROXY TCP6 12345::1 ::2 1 2\r\n",
            b"PROXY UDP4 1.1.1.1 2.2.2.2 1 2\r\n",
            b"PROXY UNKNOWNS 1.1.1.1 2.2.2.2\r\n",
            b"PROXY UNKNOWN \n",
            b"PROXY TCP4 1.1.1.\xff 2.2.2.2 1 2\r\n",
            b"\r\n\r\n\0\r\nQUIT\r\n\r\n\r\n",
        ];
        let long = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; LINE_MAX]].concat();
        let binaries = [
            v2(0x11, 0x11, &TCP4),
            v2(0x31, 0x11, &TCP4),
            v2(0x22, 0x11, &TCP4),
            v2(0x2f, 0x11, &TCP4),
            v2(0x21, 0x41, &TCP4),
            v2(0x21, 0x13, &TCP4),
            v2(0x21, 0x11, &TCP4[..11]),
            v2(0x21, 0x21, &tcp6()[..35]),
            v2(0x21, 0x11, &[0; LENGTH_MAX]),
        ];
        let all = lines.iter().map(|line| line.to_vec()).chain(binaries).chain([long]);
        for bytes in all {
            let error = read(&mut &bytes[..]).await.expect_err(&bytes.escape_ascii().to_string());
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{}: {error}", bytes.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn bytes_of_any_kind_do_no_harm(start in 0..5_usize, bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let start: &[u8] = match start {
                0 => b"",
                1 => PROXY,
                2 => b"PROXY TCP4 ",
                3 => SIGNATURE,
                _ => b"\r\n\r\n\0\r\nQUIT\n\x21\x11",
            };
            let bytes = [start, &bytes].concat();
            match parse(&bytes) {
                Ok(Parsed::Partial(more)) => prop_assert!(more > 0 && bytes.len() + more <= LENGTH_MAX),
                Ok(Parsed::Whole(_)) | Err(_) => {}
            }
        }

        #[test]
        fn any_addresses_are_read_as_they_were_written(
            source: SocketAddr, port in any::<u16>(), other in any::<[u8; 16]>(), tlvs in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let destination = match source {
                SocketAddr::V4(_) => SocketAddr::new(IpAddr::from([other[0], other[1], other[2], other[3]]), port),
                SocketAddr::V6(_) => SocketAddr::new(IpAddr::from(other), port),
            };
            let source = SocketAddr::new(source.ip(), source.port()); // without a scope
            let name = if source.is_ipv4() { "TCP4" } else { "TCP6" };
            let line = format!("PROXY {name} {} {} {} {port}\r\n", source.ip(), destination.ip(), source.port());
            let expected = Header::For { source, destination };
            prop_assert_eq!(parse(line.as_bytes()), Ok(Parsed::Whole(expected)));

            let octets = |ip: IpAddr| match ip {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            let ports = [source.port().to_be_bytes(), port.to_be_bytes()].concat();
            let body = [octets(source.ip()), octets(destination.ip()), ports, tlvs].concat();
            let header = v2(0x21, if source.is_ipv4() { 0x11 } else { 0x21 }, &body);
            prop_assert_eq!(parse(&header), Ok(Parsed::Whole(expected)));
        }
    }
}
