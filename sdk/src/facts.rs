//! What the host knows about an exchange, one method for each fact.
//!
//! Nothing is asked of the host before a method is called, and nothing is kept: keep what you need twice. `None` is "the host does not
//! tell", "there is none" or "not yet". The paths are those that Envoy has where it has one; the others are marked and are `None` there.
//! What each means exactly is in `docs/properties.md`.
//!
//! In hooks, ask the message: [`Request::client`](crate::Request::client), [`Request::route`](crate::Request::route),
//! [`Response::upstream`](crate::Response::upstream). In [`Filter::done`](crate::Filter::done), which has none, [`exchange`] has everything.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::host;
use crate::{Request, Response};

/// The exchange of the hook that is running.
pub fn exchange() -> Exchange {
    Exchange(())
}

/// The node that runs the filter, by its name (`node.name` of the configuration).
pub fn node_name() -> Option<String> {
    text(&["node", "id"])
}

/// The name of the filter in the host's configuration. Told outside of exchanges too.
pub fn plugin_name() -> Option<String> {
    text(&["plugin_name"])
}

/// A request and its response.
#[derive(Clone, Copy, Debug)]
pub struct Exchange(());

impl Exchange {
    /// Who asks.
    pub fn client(self) -> Client {
        Client(())
    }

    /// Where the request was sorted to.
    pub fn route(self) -> Route {
        Route(())
    }

    /// Who answers.
    pub fn upstream(self) -> Endpoint {
        Endpoint(())
    }

    /// Values that filters leave for those after them.
    pub fn props(self) -> Props {
        Props(())
    }

    /// The id of the request: its header `x-request-id`.
    pub fn id(self) -> Option<String> {
        text(&["request", "id"])
    }

    /// `HTTP/1.0`, `HTTP/1.1` or `HTTP/2`, and `HTTP/3` on hosts that have it.
    pub fn protocol(self) -> Option<String> {
        text(&["request", "protocol"])
    }

    /// When the request's header had been read.
    pub fn started(self) -> Option<SystemTime> {
        UNIX_EPOCH.checked_add(duration(&["request", "time"])?)
    }

    /// How long all of it took. At the end, in [`Filter::done`](crate::Filter::done).
    pub fn duration(self) -> Option<Duration> {
        duration(&["request", "duration"])
    }

    /// The status of the response.
    pub fn status(self) -> Option<u16> {
        u16::try_from(int(&["response", "code"])?).ok()
    }

    /// How the response came about, in a word: `via_upstream`, `via_cache`, what a filter called its reply, or the token of an error.
    pub fn details(self) -> Option<String> {
        text(&["response", "code_details"])
    }

    /// What went wrong, as Envoy's bits of response flags; 0 when nothing did.
    pub fn flags(self) -> Option<u64> {
        u64::try_from(int(&["response", "flags"])?).ok()
    }

    /// The bytes of the request's body: as announced, else what has come so far.
    pub fn request_size(self) -> Option<u64> {
        u64::try_from(int(&["request", "size"])?).ok()
    }

    /// The bytes of the response's body: as announced, at the end what was sent.
    pub fn response_size(self) -> Option<u64> {
        u64::try_from(int(&["response", "size"])?).ok()
    }
}

impl Request {
    /// Where the request was sorted to.
    pub fn route(&self) -> Route {
        Route(())
    }

    /// Values that filters leave for those after them.
    pub fn props(&self) -> Props {
        Props(())
    }

    /// Everything else that is known; see [`Exchange`].
    pub fn exchange(&self) -> Exchange {
        Exchange(())
    }

    /// The pairs of the query, decoded as forms are (`+` is a space; what is not UTF-8 is replaced), in their order.
    pub fn query_pairs(&self) -> impl Iterator<Item = (String, String)> + '_ {
        let pairs = self.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        pairs.map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (form_decoded(name), form_decoded(value))
        })
    }

    /// The first value of that name in the query, decoded; see [`query_pairs`](Request::query_pairs).
    pub fn query_value(&self, name: &str) -> Option<String> {
        self.query_pairs().find(|(other, _)| other == name).map(|(_, value)| value)
    }

    /// All cookies in their order, names and values as they came (RFC 6265, 4.2.1). Fields that are not UTF-8 are left out.
    pub fn cookies(&self) -> Vec<(String, String)> {
        let fields = self.header_values("cookie");
        let fields = fields.iter().filter_map(|field| std::str::from_utf8(field.as_ref()).ok());
        let pairs = fields.flat_map(|field| field.split(';')).filter_map(|pair| pair.split_once('='));
        pairs.map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned())).collect()
    }
}

impl Response {
    /// Who has answered.
    pub fn upstream(&self) -> Endpoint {
        Endpoint(())
    }

    /// Values that filters leave for those after them.
    pub fn props(&self) -> Props {
        Props(())
    }

    /// Everything else that is known, the request's facts included; see [`Exchange`].
    pub fn exchange(&self) -> Exchange {
        Exchange(())
    }
}

/// The client of an exchange, as the host sees it: behind trusted proxies that is the client they name.
#[derive(Clone, Copy, Debug)]
pub struct Client(());

impl Client {
    pub(crate) fn new() -> Self {
        Self(())
    }

    /// The address.
    pub fn address(self) -> Option<IpAddr> {
        let text = text(&["source", "address"])?;
        text.parse::<SocketAddr>().map(|address| address.ip()).or_else(|_| text.parse()).ok()
    }

    /// The port; 0 for a client that a proxy names.
    pub fn port(self) -> Option<u16> {
        u16::try_from(int(&["source", "port"])?).ok()
    }

    /// The address of ours that the client has connected to.
    pub fn local_address(self) -> Option<SocketAddr> {
        text(&["destination", "address"])?.parse().ok()
    }

    /// The number of the connection.
    pub fn connection_id(self) -> Option<u64> {
        uint(&["connection", "id"])
    }

    /// The client's TLS connection; `None` without TLS.
    pub fn tls(self) -> Option<Tls> {
        text(&["connection", "tls_version"]).map(|version| Tls { version })
    }

    /// The country as ISO 3166-1 alpha-2 (`DE`); `None` when the host has no geo database or does not find the address. As are the
    /// others of where the client is. Selvedge only.
    pub fn country(self) -> Option<String> {
        text(&["source", "geo", "country"])
    }

    /// The continent as two letters (`EU`). Selvedge only.
    pub fn continent(self) -> Option<String> {
        text(&["source", "geo", "continent"])
    }

    /// The city, by its English name. Selvedge only.
    pub fn city(self) -> Option<String> {
        text(&["source", "geo", "city"])
    }

    /// The number of the autonomous system. Selvedge only.
    pub fn asn(self) -> Option<u32> {
        u32::try_from(int(&["source", "geo", "asn"])?).ok()
    }

    /// Latitude and longitude, in degrees. Selvedge only.
    pub fn coordinates(self) -> Option<(f64, f64)> {
        Some((double(&["source", "geo", "latitude"])?, double(&["source", "geo", "longitude"])?))
    }
}

/// The client's TLS connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    version: String,
}

impl Tls {
    /// `TLSv1.2` or `TLSv1.3`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The name that the client asked for (SNI).
    pub fn sni(&self) -> Option<String> {
        text(&["connection", "requested_server_name"])
    }

    /// The cipher suite. Selvedge only.
    pub fn cipher(&self) -> Option<String> {
        text(&["connection", "cipher"])
    }

    /// The client's certificate, verified; `None` when it has shown none.
    pub fn certificate(&self) -> Option<ClientCertificate> {
        let shown = bytes(&["connection", "mtls"])?.first() == Some(&1);
        shown.then_some(ClientCertificate(()))
    }
}

/// The certificate that a client has shown, and that the host has verified.
#[derive(Clone, Copy, Debug)]
pub struct ClientCertificate(());

impl ClientCertificate {
    /// The subject, as RFC 4514 writes it: `CN=device 7,O=Things`.
    pub fn subject(self) -> Option<String> {
        text(&["connection", "subject_peer_certificate"])
    }

    /// The first DNS name it stands for.
    pub fn dns_name(self) -> Option<String> {
        text(&["connection", "dns_san_peer_certificate"])
    }

    /// The first URI it stands for.
    pub fn uri(self) -> Option<String> {
        text(&["connection", "uri_san_peer_certificate"])
    }

    /// SHA-256 of it, in hexadecimal.
    pub fn fingerprint(self) -> Option<String> {
        text(&["connection", "sha256_peer_certificate_digest"])
    }

    /// The serial number, in hexadecimal. Selvedge only.
    pub fn serial(self) -> Option<String> {
        text(&["connection", "serial_peer_certificate"])
    }
}

/// Where a request was sorted to.
#[derive(Clone, Copy, Debug)]
pub struct Route(());

impl Route {
    /// The name of the route.
    pub fn name(self) -> Option<String> {
        text(&["route_name"])
    }

    /// The first host of the site; Envoy's virtual host.
    pub fn site(self) -> Option<String> {
        text(&["xds", "virtual_host_name"])
    }

    /// The upstream: a filter's choice, else the route's.
    pub fn upstream(self) -> Option<String> {
        text(&["cluster_name"])
    }

    /// The name of the listener; Envoy's filter chain.
    pub fn listener(self) -> Option<String> {
        text(&["xds", "filter_chain_name"])
    }
}

/// The server that was asked for the response.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint(());

impl Endpoint {
    /// The name of the upstream.
    pub fn name(self) -> Option<String> {
        text(&["cluster_name"])
    }

    /// The address of the endpoint; `None` when nobody was asked, as on a hit.
    pub fn address(self) -> Option<SocketAddr> {
        text(&["upstream", "address"])?.parse().ok()
    }

    /// How many times somebody was asked.
    pub fn attempts(self) -> Option<u64> {
        uint(&["upstream", "request_attempt_count"])
    }

    /// Why the last connection failed, in the host's words.
    pub fn failure(self) -> Option<String> {
        text(&["upstream", "transport_failure_reason"])
    }

    /// From the connection to the response's header.
    pub fn latency(self) -> Option<Duration> {
        duration(&["response", "backend_latency"])
    }
}

/// Values that filters leave for those after them in the same exchange, by name. They end with it; nobody else sees them.
///
/// The host keeps 64 for an exchange, names of 256 bytes and values of 16 KiB. Names that the host has facts under (`request`, `source`,
/// `node`, …) are refused. Use names of one word for filters that are to run on Envoy too. For the key of the cache there is
/// [`Request::cache`](crate::Request::cache); the access log does not show them: put there what it has a field for.
#[derive(Clone, Copy, Debug)]
pub struct Props(());

impl Props {
    /// Leaves a value. `false` when the host refused; the log says so.
    pub fn set(self, name: &str, value: impl AsRef<[u8]>) -> bool {
        host::current()
            .set_property(&[name], value.as_ref())
            .inspect_err(|status| log::warn!("property {name} could not be set: {status}"))
            .is_ok()
    }

    /// A value that was left, by this filter or one before it.
    pub fn get(self, name: &str) -> Option<Vec<u8>> {
        // Envoy keeps what filters set apart from what it knows itself.
        bytes(&[name]).or_else(|| bytes(&["wasm", name]))
    }

    /// The same as text; `None` also when it is not UTF-8.
    pub fn text(self, name: &str) -> Option<String> {
        String::from_utf8(self.get(name)?).ok()
    }
}

fn bytes(path: &[&str]) -> Option<Vec<u8>> {
    host::current().property(path)
}

/// Not empty: hosts say nothing in that way too.
fn text(path: &[&str]) -> Option<String> {
    String::from_utf8(bytes(path)?).ok().filter(|text| !text.is_empty())
}

fn int(path: &[&str]) -> Option<i64> {
    Some(i64::from_le_bytes(bytes(path)?.try_into().ok()?))
}

fn uint(path: &[&str]) -> Option<u64> {
    Some(u64::from_le_bytes(bytes(path)?.try_into().ok()?))
}

fn double(path: &[&str]) -> Option<f64> {
    Some(f64::from_le_bytes(bytes(path)?.try_into().ok()?))
}

/// Nanoseconds; a time too, since 1970.
fn duration(path: &[&str]) -> Option<Duration> {
    u64::try_from(int(path)?).ok().map(Duration::from_nanos)
}

fn form_decoded(text: &str) -> String {
    if !text.contains(['%', '+']) {
        return text.to_owned();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digit = |at: usize| after.get(at).and_then(|&digit| char::from(digit).to_digit(16));
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.extend(u8::try_from(high << 4 | low));
                rest = &after[2..];
            }
            (b'+', ..) => {
                bytes.push(b' ');
                rest = after;
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_decoded() {
        let table = [
            ("plain", "plain"),
            ("a+b%20c", "a b c"),
            ("%C3%a4", "\u{e4}"),
            ("100%", "100%"),
            ("%zz%4", "%zz%4"),
            ("%ff", "\u{fffd}"),
            ("", ""),
        ];
        for (text, want) in table {
            assert_eq!(form_decoded(text), want);
        }
    }
}
