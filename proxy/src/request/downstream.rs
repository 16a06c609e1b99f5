//! For whom a request is: who connected, or whom a trusted proxy names.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue, header};
use ipnet::IpNet;
use pingora::Result;
use pingora::http::RequestHeader;

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

impl Downstream {
    /// By the connection and, if the peer is one of those, by what it says.
    pub(crate) fn of(peer: Option<SocketAddr>, tls: bool, headers: &HeaderMap, proxies: &[IpNet]) -> Self {
        let direct = Self { peer, client: peer, trusted: false, tls };
        let is_trusted = |address: IpAddr| proxies.iter().any(|range| range.contains(&address.to_canonical()));
        // Mostly nobody is trusted: then this is all.
        if proxies.is_empty() || !peer.is_some_and(|peer| is_trusted(peer.ip())) {
            return direct;
        }
        Self::told(direct, headers, is_trusted)
    }

    /// The same for what another node of the cluster sends: it is trusted, wherever it is.
    pub(crate) fn of_node(peer: Option<SocketAddr>, tls: bool, headers: &HeaderMap, proxies: &[IpNet]) -> Self {
        let is_trusted = |address: IpAddr| proxies.iter().any(|range| range.contains(&address.to_canonical()));
        Self::told(Self { peer, client: peer, trusted: false, tls }, headers, is_trusted)
    }

    /// What a trusted peer says.
    fn told(direct: Self, headers: &HeaderMap, is_trusted: impl Fn(IpAddr) -> bool) -> Self {
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
                if !is_trusted(address.ip()) {
                    break;
                }
            }
        }
        // From the last hop back: the first address that is none of ours is the client. What it wrote itself stands before it.
        let fields = headers.get_all(X_FORWARDED_FOR).iter().collect::<smallvec::SmallVec<[&HeaderValue; 2]>>();
        let hops = fields.iter().rev().flat_map(|field| field.as_bytes().rsplit(|byte| *byte == b','));
        for hop in hops.take(HOPS_MAX) {
            let Some(address) = address(hop) else { break }; // Nobody knows what comes before something that is no address.
            client = Some(address);
            if !is_trusted(address.ip()) {
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

    /// What the upstream is told of it. What the client said about itself is replaced, what a trusted peer said is extended.
    pub(crate) fn tell(&self, request: &mut RequestHeader) -> Result<()> {
        if let Some(peer) = self.peer {
            let peer = peer.ip().to_canonical();
            let told = self.trusted && request.headers.contains_key(X_FORWARDED_FOR);
            if self.trusted && !told && request.headers.contains_key(header::FORWARDED) {
                self.tell_forwarded(request)?;
                request.append_header(X_FORWARDED_FOR, peer.to_string())?;
            } else if told {
                request.append_header(X_FORWARDED_FOR, peer.to_string())?;
            } else {
                request.insert_header(X_FORWARDED_FOR, peer.to_string())?;
            }
            request.remove_header(&header::FORWARDED);
        }
        request.insert_header(X_FORWARDED_PROTO, HeaderValue::from_static(if self.tls { "https" } else { "http" }))?;
        if !(self.trusted && request.headers.contains_key(X_FORWARDED_HOST))
            && let Some(host) = request.headers.get(header::HOST).cloned()
        {
            request.insert_header(X_FORWARDED_HOST, host)?;
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
            request.insert_header(X_FORWARDED_HOST, host)?;
        }
        request.insert_header(X_FORWARDED_FOR, client.ip().to_canonical().to_string())
    }
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
    fn the_client_is_the_last_address_that_is_no_proxy_of_ours() {
        let proxies: Vec<IpNet> = ["10.0.0.0/8", "2001:db8::/32"].map(|range| range.parse().unwrap()).to_vec();
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
            let found = Downstream::of(peer.parse().ok(), false, &headers, &proxies);
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
            let found = Downstream::of(peer.parse().ok(), false, &headers, &proxies);
            assert_eq!((found.client.unwrap().to_string().as_str(), found.tls), (*expected, *tls), "{peer} {fields:?}");
        }
        assert_eq!(
            Downstream::of(None, true, &HeaderMap::new(), &proxies),
            Downstream { tls: true, ..Downstream::default() }
        );
    }
}
