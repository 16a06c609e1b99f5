//! For whom a request is: who connected, or whom a trusted proxy names.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue, header};
use pingora::Result;
use pingora::http::RequestHeader;
use selvedge_config::TrustedProxies;
use smallvec::SmallVec;

use super::{forwarded, hygiene};

pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(crate) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(crate) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// How many addresses of `X-Forwarded-For` are looked at: nobody has more proxies of their own.
const HOPS_MAX: usize = 32;

/// For whom a request is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Downstream {
    /// Who connected; `None` on sockets without addresses.
    pub(crate) peer: Option<SocketAddr>,
    /// The client: the peer, or whom a trusted one names (with port 0 then).
    pub(crate) client: Option<SocketAddr>,
    /// Whether the peer is trusted, so that what it says goes on.
    pub(crate) trusted: bool,
    /// Whether the client came over TLS.
    pub(crate) tls: bool,
}

/// Who connected, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    /// `None` on sockets without addresses.
    pub(crate) address: Option<SocketAddr>,
    /// At a Unix socket.
    pub(crate) unix: bool,
    /// Over TLS.
    pub(crate) tls: bool,
}

impl Downstream {
    /// By the connection and, if the peer is one of those, by what it says.
    pub(crate) fn of(peer: Peer, headers: &HeaderMap, proxies: &TrustedProxies) -> Self {
        let Peer { address, unix, tls } = peer;
        let direct = Self { peer: address, client: address, trusted: false, tls };
        let trusted = match address {
            Some(address) => proxies.has(address.ip()),
            None => unix && proxies.unix,
        };
        if trusted { Self::told(direct, headers, proxies) } else { direct }
    }

    /// The same for what another node of the cluster sends: it is trusted, wherever it is.
    pub(crate) fn of_node(peer: Option<SocketAddr>, tls: bool, headers: &HeaderMap, proxies: &TrustedProxies) -> Self {
        Self::told(Self { peer, client: peer, trusted: false, tls }, headers, proxies)
    }

    /// What a trusted peer says.
    fn told(direct: Self, headers: &HeaderMap, proxies: &TrustedProxies) -> Self {
        let Self { peer, tls, .. } = direct;
        let (mut client, mut tls) = (peer, tls);
        if !headers.contains_key(X_FORWARDED_FOR) {
            // RFC 7239, in the same order, where nobody says it in the older way.
            let elements = forwarded::elements(headers).unwrap_or_default();
            for element in elements.iter().rev().take(HOPS_MAX) {
                if let Some(proto) = &element.proto {
                    tls = proto.eq_ignore_ascii_case("https");
                }
                let Some(address) = element.by_whom.as_deref().and_then(|node| address(node.as_bytes())) else { break };
                client = Some(address);
                if !proxies.has(address.ip()) {
                    break;
                }
            }
        }
        // From the last hop back: the first address that is none of ours is the client. What it wrote itself stands before it.
        let fields = headers.get_all(X_FORWARDED_FOR).iter().collect::<SmallVec<[&HeaderValue; 2]>>();
        let hops = fields.iter().rev().flat_map(|field| field.as_bytes().rsplit(|byte| *byte == b','));
        for hop in hops.take(HOPS_MAX) {
            let Some(address) = address(hop) else { break }; // Nobody knows what comes before something that is no address.
            client = Some(address);
            if !proxies.has(address.ip()) {
                break;
            }
        }
        let tls = match headers.get(X_FORWARDED_PROTO).map(HeaderValue::as_bytes) {
            Some(b"https") => true,
            Some(b"http") => false,
            _ => tls,
        };
        Self { peer, client, trusted: true, tls }
    }

    /// What the upstream is told of it. What the client said about itself is replaced, what a trusted peer said is extended; a peer at a
    /// Unix socket has no address that could be said.
    pub(crate) fn tell(&self, request: &mut RequestHeader) -> Result<()> {
        if !self.trusted {
            request.remove_header(&X_FORWARDED_FOR);
        } else if !request.headers.contains_key(X_FORWARDED_FOR) && request.headers.contains_key(header::FORWARDED) {
            self.tell_forwarded(request)?;
        }
        if let Some(peer) = self.peer {
            request.append_header("X-Forwarded-For", written(peer.ip()))?;
        }
        request.remove_header(&header::FORWARDED);
        let scheme = HeaderValue::from_static(if self.tls { "https" } else { "http" });
        request.insert_header("X-Forwarded-Proto", scheme)?;
        if !(self.trusted && request.headers.contains_key(X_FORWARDED_HOST))
            && let Some(host) = request.headers.get(header::HOST).cloned()
        {
            request.insert_header("X-Forwarded-Host", host)?;
        }
        Ok(())
    }
}

impl Downstream {
    /// Says in `X-Forwarded-For` and `X-Forwarded-Host` what a trusted peer has said in `Forwarded`.
    fn tell_forwarded(&self, request: &mut RequestHeader) -> Result<()> {
        let Some(client) = self.client.filter(|_| self.client != self.peer) else { return Ok(()) };
        let elements = forwarded::elements(&request.headers).unwrap_or_default();
        let is_client = |element: &&forwarded::Element<'_>| {
            element.by_whom.as_deref().and_then(|node| address(node.as_bytes())) == Some(client)
        };
        let host = elements.iter().rev().find(is_client).and_then(|element| element.host.as_deref());
        let host = host.filter(|host| hygiene::is_authority(host.as_bytes())).map(str::to_owned);
        if let Some(host) = host
            && !request.headers.contains_key(X_FORWARDED_HOST)
        {
            request.insert_header("X-Forwarded-Host", host)?;
        }
        request.insert_header("X-Forwarded-For", written(client.ip()))
    }
}

/// An address as a field's value. That of IPv4, which most requests bring, is written by hand: the library's way costs several times as much.
fn written(address: IpAddr) -> HeaderValue {
    let mut text = SmallVec::<[u8; 40]>::new();
    match address.to_canonical() {
        IpAddr::V4(address) => {
            for (index, number) in address.octets().into_iter().enumerate() {
                if index > 0 {
                    text.push(b'.');
                }
                if number >= 100 {
                    text.push(b'0' + number / 100);
                }
                if number >= 10 {
                    text.push(b'0' + number / 10 % 10);
                }
                text.push(b'0' + number % 10);
            }
        }
        IpAddr::V6(address) => text.extend_from_slice(address.to_string().as_bytes()),
    }
    HeaderValue::from_bytes(&text).expect("digits, letters, dots and colons")
}

/// An address as proxies write it: with a port or without, IPv6 in brackets or not.
fn address(hop: &[u8]) -> Option<SocketAddr> {
    let text = std::str::from_utf8(hop).ok()?.trim();
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    bare.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 0)).ok().or_else(|| text.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_the_library_writes_them() {
        for number in 0..=u8::MAX {
            let address = IpAddr::from([number, 255 - number, number / 2, 7]);
            assert_eq!(written(address), address.to_string());
        }
        for (address, expected) in
            [("::1", "::1"), ("2001:db8::a:0:1", "2001:db8::a:0:1"), ("::ffff:10.0.0.1", "10.0.0.1")]
        {
            assert_eq!(written(address.parse().unwrap()), expected);
        }
        let longest = "1111:2222:3333:4444:5555:6666:7777:8888";
        assert_eq!(written(longest.parse().unwrap()), longest);
    }

    #[test]
    fn the_client_is_the_last_address_that_is_no_proxy_of_ours() {
        let ranges = ["10.0.0.0/8", "2001:db8::/32"].map(|range| range.parse().unwrap()).to_vec();
        let proxies = TrustedProxies { ranges, unix: false };
        let at = |address: &str| Peer { address: address.parse().ok(), unix: address == "unix", tls: false };
        let cases: &[(&str, &[&str], &str)] = &[
            ("203.0.113.9:5", &["198.51.100.1"], "203.0.113.9:5"),
            ("10.0.0.1:5", &[], "10.0.0.1:5"),
            ("10.0.0.1:5", &["198.51.100.1"], "198.51.100.1:0"),
            ("[::ffff:10.0.0.1]:5", &["198.51.100.1"], "198.51.100.1:0"),
            ("10.0.0.1:5", &["1.2.3.4, 198.51.100.1"], "198.51.100.1:0"),
            ("10.0.0.1:5", &["198.51.100.1, 10.0.0.2,10.9.9.9"], "198.51.100.1:0"),
            ("10.0.0.1:5", &["1.2.3.4", "198.51.100.1, 10.0.0.2"], "198.51.100.1:0"),
            ("10.0.0.1:5", &["10.0.0.3, 10.0.0.2"], "10.0.0.3:0"),
            ("10.0.0.1:5", &["1.2.3.4, unknown, 10.0.0.2"], "10.0.0.2:0"),
            ("10.0.0.1:5", &["198.51.100.1:4711"], "198.51.100.1:4711"),
            ("[2001:db8::1]:5", &["[2a00::1]:7"], "[2a00::1]:7"),
            ("[2001:db8::1]:5", &["[2a00::1]"], "[2a00::1]:0"),
            ("[2001:db8::1]:5", &["2a00::1"], "[2a00::1]:0"),
        ];
        for (peer, fields, expected) in cases {
            let mut headers = HeaderMap::new();
            for field in *fields {
                headers.append(X_FORWARDED_FOR, HeaderValue::from_str(field).unwrap());
            }
            headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("https"));
            let found = Downstream::of(at(peer), &headers, &proxies);
            assert_eq!(found.client.unwrap().to_string(), *expected, "{peer} {fields:?}");
            assert_eq!(found.tls, found.trusted, "only a trusted peer is believed about TLS");
        }
        type Case = (&'static str, &'static [&'static str], Option<&'static str>, &'static str, bool);
        let cases: &[Case] = &[
            ("203.0.113.9:5", &["for=198.51.100.1;proto=https"], None, "203.0.113.9:5", false),
            ("10.0.0.1:5", &["for=198.51.100.1;proto=https"], None, "198.51.100.1:0", true),
            (
                "10.0.0.1:5",
                &["for=1.2.3.4;proto=https, for=198.51.100.1;proto=http, for=10.0.0.2"],
                None,
                "198.51.100.1:0",
                false,
            ),
            ("10.0.0.1:5", &["for=1.2.3.4", "for=\"[2a00::1]:7\";proto=HTTPS"], None, "[2a00::1]:7", true),
            ("10.0.0.1:5", &["for=1.2.3.4, for=unknown;proto=https"], None, "10.0.0.1:5", true),
            ("10.0.0.1:5", &["for=1.2.3.4;for=5.6.7.8"], None, "10.0.0.1:5", false),
            ("10.0.0.1:5", &["for=1.2.3.4;proto=https"], Some("198.51.100.1"), "198.51.100.1:0", false),
        ];
        for (peer, fields, older, expected, tls) in cases {
            let mut headers = HeaderMap::new();
            for field in *fields {
                headers.append(header::FORWARDED, HeaderValue::from_str(field).unwrap());
            }
            if let Some(older) = older {
                headers.insert(X_FORWARDED_FOR, HeaderValue::from_str(older).unwrap());
            }
            let found = Downstream::of(at(peer), &headers, &proxies);
            assert_eq!((found.client.unwrap().to_string().as_str(), found.tls), (*expected, *tls), "{peer} {fields:?}");
        }
        let tls = Peer { tls: true, ..at("nowhere") };
        assert_eq!(Downstream::of(tls, &HeaderMap::new(), &proxies), Downstream { tls: true, ..Downstream::default() });
    }

    #[test]
    fn what_is_said_at_a_unix_socket_counts_where_that_is_trusted() {
        let peer = Peer { address: None, unix: true, tls: false };
        let said =
            |name: HeaderName, value: &'static str| HeaderMap::from_iter([(name, HeaderValue::from_static(value))]);
        let cases = [
            (true, peer, said(X_FORWARDED_FOR, "192.0.2.1, 10.0.0.7"), Some("192.0.2.1"), Some("192.0.2.1, 10.0.0.7")),
            (true, peer, said(header::FORWARDED, "for=192.0.2.1"), Some("192.0.2.1"), Some("192.0.2.1")),
            (true, peer, HeaderMap::new(), None, None),
            (false, peer, said(X_FORWARDED_FOR, "192.0.2.1"), None, None),
            (false, peer, said(header::FORWARDED, "for=192.0.2.1"), None, None),
            (true, Peer { unix: false, ..peer }, said(X_FORWARDED_FOR, "192.0.2.1"), None, None),
        ];
        for (unix, peer, headers, client, told) in cases {
            let proxies = TrustedProxies { ranges: vec!["10.0.0.0/8".parse().unwrap()], unix };
            let found = Downstream::of(peer, &headers, &proxies);
            assert_eq!(found.client.map(|client| client.ip().to_string()).as_deref(), client, "{peer:?} {headers:?}");
            let mut request = RequestHeader::build("GET", b"/", None).unwrap();
            for (name, value) in &headers {
                request.append_header(name.clone(), value.clone()).unwrap();
            }
            found.tell(&mut request).unwrap();
            let values: Vec<&str> =
                request.headers.get_all(X_FORWARDED_FOR).iter().map(|value| value.to_str().unwrap()).collect();
            assert_eq!(values, told.into_iter().collect::<Vec<_>>(), "{peer:?} {headers:?}");
            assert!(!request.headers.contains_key(header::FORWARDED));
        }
    }
}
