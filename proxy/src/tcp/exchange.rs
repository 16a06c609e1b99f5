//! One TCP connection as the filters see it: the bytes held for the filter that runs now, and the facts about both sides, behind
//! [`selvedge_wasm::Exchange`]. There are no headers: reads find nothing, writes are refused.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use selvedge_geoip::Location;
use selvedge_wasm::{Body, Buffer, Exchange, ExchangeError, HeaderMap, PropertyKind};

use crate::chain::properties;
use crate::plan::TcpRoute;
use crate::tls::Handshake;
use crate::upstream::Upstream;

/// What a connection carries from its first filter to its last.
pub(super) struct Facts {
    number: u64,
    route: Arc<TcpRoute>,
    client: Option<SocketAddr>,
    /// The address the client connected to.
    server: Option<SocketAddr>,
    pub(super) tls: Option<Tls>,
    /// Where the client is, when a geo database is configured and knows.
    pub(super) location: Option<Location>,
    /// The upstream a filter chose; `None` = the route's own.
    chosen: Option<Arc<Upstream>>,
    /// The upstream has been asked for: it can no longer be chosen.
    connecting: bool,
    pub(super) endpoint: Option<SocketAddr>,
    /// Our side of the connection to it.
    pub(super) local: Option<SocketAddr>,
    /// Properties that filters of this connection have set for later ones.
    set_by_filters: Vec<(String, Bytes)>,
}

/// The client's TLS.
pub(super) struct Tls {
    version: &'static str,
    handshake: Handshake,
}

/// Properties one connection may hold for its filters, so that a guest cannot grow the host's memory.
const SET_PROPERTIES_MAX: usize = 64;
/// The longest property value a filter may set, in bytes.
const SET_PROPERTY_BYTES_MAX: usize = 16 * 1024;
/// The longest path of a property a filter may set, in bytes.
const SET_PROPERTY_NAME_MAX: usize = 256;

impl Tls {
    pub(super) fn of(connection: &rustls::ServerConnection) -> Self {
        let version = match connection.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "unknown",
        };
        let certificate = connection.peer_certificates().and_then(|chain| chain.first());
        Self { version, handshake: Handshake::new(connection.server_name(), certificate.map(|first| &**first)) }
    }
}

impl Facts {
    pub(super) fn new(route: Arc<TcpRoute>, client: Option<SocketAddr>, server: Option<SocketAddr>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            route,
            client,
            server,
            tls: None,
            location: None,
            chosen: None,
            connecting: false,
            endpoint: None,
            local: None,
            set_by_filters: Vec::new(),
        }
    }

    /// The upstream to connect to: from now on it is fixed.
    pub(super) fn take_upstream(&mut self) -> Arc<Upstream> {
        self.connecting = true;
        Arc::clone(self.upstream())
    }

    fn upstream(&self) -> &Arc<Upstream> {
        self.chosen.as_ref().unwrap_or(&self.route.upstream)
    }

    fn choose(&mut self, name: &[u8]) -> Result<(), ExchangeError> {
        if self.connecting {
            return Err(ExchangeError::Unavailable);
        }
        let name = std::str::from_utf8(name).map_err(|_| ExchangeError::Invalid)?;
        self.chosen = Some(Arc::clone(self.route.upstreams.get(name).ok_or(ExchangeError::Invalid)?));
        Ok(())
    }

    /// The property at `path`, in the binary form of the ABI.
    fn lookup(&self, path: &[&str]) -> Option<Vec<u8>> {
        match path {
            ["source", "geo", rest @ ..] => geo(self.location.as_ref()?, rest),
            ["source", rest @ ..] => address(self.client, rest),
            ["destination", rest @ ..] => address(self.server, rest),
            ["connection", "id"] => Some(self.number.to_le_bytes().to_vec()),
            ["connection", "tls_version"] => Some(text(self.tls.as_ref()?.version)),
            ["connection", name] => properties::handshake(self.tls.as_ref().map(|tls| &tls.handshake), name),
            ["upstream", "address"] => address(self.endpoint, &["address"]),
            ["upstream", "port"] => address(self.endpoint, &["port"]),
            ["upstream", "local_address"] => address(self.local, &["address"]),
            ["upstream", "local_port"] => address(self.local, &["port"]),
            ["upstream", "name"] | ["cluster_name"] | ["xds", "cluster_name"] => Some(text(&self.upstream().name)),
            ["selvedge", "upstream"] => self.chosen.as_ref().map(|upstream| text(&upstream.name)),
            ["listener"] | ["xds", "filter_chain_name"] => Some(text(&self.route.listener)),
            // 1 is inbound: clients come in through every listener of ours.
            ["listener_direction"] | ["xds", "listener_direction"] => Some(int(1)),
            ["node", "name" | "id"] | ["xds", "node", "name" | "id"] => Some(text(&self.route.node)),
            _ => None,
        }
    }

    /// What a filter has set at this path.
    fn kept(&self, path: &[&str]) -> Option<Vec<u8>> {
        let name = name_of(path);
        self.set_by_filters.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_vec())
    }

    fn keep(&mut self, path: &[&str], value: &[u8]) -> Result<(), ExchangeError> {
        let name = name_of(path);
        if value.len() > SET_PROPERTY_BYTES_MAX || name.len() > SET_PROPERTY_NAME_MAX {
            return Err(ExchangeError::Invalid);
        }
        let value = Bytes::copy_from_slice(value);
        if let Some(slot) = self.set_by_filters.iter_mut().find(|(known, _)| *known == name) {
            slot.1 = value;
            return Ok(());
        }
        if self.set_by_filters.len() >= SET_PROPERTIES_MAX {
            return Err(ExchangeError::Unavailable);
        }
        self.set_by_filters.push((name, value));
        Ok(())
    }
}

/// Whether the host answers for this path, so that no filter can put something else in its place.
fn is_ours(path: &[&str]) -> bool {
    matches!(
        path.first(),
        Some(
            &("source"
                | "destination"
                | "connection"
                | "upstream"
                | "cluster_name"
                | "selvedge"
                | "listener"
                | "listener_direction"
                | "node"
                | "xds")
        )
    )
}

/// What filters set is found with `wasm` in front (Envoy's way) and without.
fn name_of(path: &[&str]) -> String {
    match path {
        ["wasm", rest @ ..] => rest.join("."),
        _ => path.join("."),
    }
}

fn address(of: Option<SocketAddr>, path: &[&str]) -> Option<Vec<u8>> {
    match path {
        ["address"] => Some(of?.to_string().into_bytes()),
        ["port"] => Some(int(of?.port().into())),
        _ => None,
    }
}

fn geo(location: &Location, path: &[&str]) -> Option<Vec<u8>> {
    match path {
        ["country"] => location.country.map(|country| text(country.as_str())),
        ["continent"] => location.continent.map(|continent| text(continent.as_str())),
        ["city"] => location.city.as_deref().map(text),
        ["asn"] => location.asn.map(|asn| int(asn.into())),
        ["latitude"] => location.coordinates.map(|(latitude, _)| latitude.to_le_bytes().to_vec()),
        ["longitude"] => location.coordinates.map(|(_, longitude)| longitude.to_le_bytes().to_vec()),
        _ => None,
    }
}

fn text(value: &str) -> Vec<u8> {
    value.as_bytes().to_vec()
}

fn int(value: i64) -> Vec<u8> {
    value.to_le_bytes().to_vec()
}

/// The connection lent to one guest call.
pub(super) struct View<'a> {
    pub(super) facts: &'a mut Facts,
    pub(super) downstream: Option<&'a mut Body>,
    pub(super) upstream: Option<&'a mut Body>,
}

impl Exchange for View<'_> {
    fn visit(&self, _map: HeaderMap, _visit: &mut dyn FnMut(&[u8], &[u8])) -> bool {
        false
    }

    fn header(&self, _map: HeaderMap, _name: &[u8]) -> Option<Cow<'_, [u8]>> {
        None
    }

    fn set_header(&mut self, _map: HeaderMap, _name: &[u8], _value: &[u8]) -> Result<(), ExchangeError> {
        Err(ExchangeError::Unavailable)
    }

    fn add_header(&mut self, _map: HeaderMap, _name: &[u8], _value: &[u8]) -> Result<(), ExchangeError> {
        Err(ExchangeError::Unavailable)
    }

    fn remove_header(&mut self, _map: HeaderMap, _name: &[u8]) -> Result<(), ExchangeError> {
        Err(ExchangeError::Unavailable)
    }

    fn replace_headers(&mut self, _map: HeaderMap, _pairs: &[(&[u8], &[u8])]) -> Result<(), ExchangeError> {
        Err(ExchangeError::Unavailable)
    }

    fn body(&mut self, which: Buffer) -> Option<&mut Body> {
        match which {
            Buffer::Downstream => self.downstream.as_deref_mut(),
            Buffer::Upstream => self.upstream.as_deref_mut(),
            Buffer::Request | Buffer::Response => None,
        }
    }

    fn property(&self, path: &[&str]) -> Option<Vec<u8>> {
        if is_ours(path) { self.facts.lookup(path) } else { self.facts.kept(path) }
    }

    fn property_kind(&self, path: &[&str]) -> PropertyKind {
        properties::kind(path)
    }

    fn set_property(&mut self, path: &[&str], value: &[u8]) -> Result<(), ExchangeError> {
        match path {
            ["selvedge", "upstream"] => self.facts.choose(value),
            _ if is_ours(path) => Err(ExchangeError::Unavailable),
            _ => self.facts.keep(path, value),
        }
    }
}
