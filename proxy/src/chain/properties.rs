//! The properties a filter may read (`proxy_get_property`), in the binary form of the ABI: strings raw, integers, times and durations as
//! 8 bytes little endian, booleans as one byte, maps and lists serialized. What is not known (yet) is not there.
//!
//! `docs/properties.md` is the list for authors; it is the same as the one below.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap as Headers, Version, header};
use selvedge_cache::Wishes;
use selvedge_wasm::abi::serialize::encode_visited;
use selvedge_wasm::{Exchange, HeaderMap, PropertyKind};

use super::exchange::facts::{Contact, DOWNSTREAM_CONNECTION_TERMINATION, Ended, FROM_CACHE, flag};
use super::exchange::{View, authority};
use crate::tls::Handshake;

/// Whether the host answers for this path, so that no filter can put something else in its place.
pub(super) fn is_ours(path: &[&str]) -> bool {
    matches!(
        path.first(),
        Some(
            &("request"
                | "response"
                | "source"
                | "destination"
                | "connection"
                | "upstream"
                | "cache"
                | "selvedge"
                | "site"
                | "listener"
                | "route_name"
                | "cluster_name"
                | "listener_direction"
                | "node"
                | "xds"
                | "plugin_name"
                | "plugin_root_id"
                | "plugin_vm_id"
                | "plugin_vm_memory")
        )
    )
}

/// What the bytes of the property at `path` mean.
pub(crate) fn kind(path: &[&str]) -> PropertyKind {
    match path {
        ["source" | "destination" | "upstream", "address"] | ["upstream", "local_address"] => PropertyKind::Address,
        ["request" | "response", "size" | "total_size" | "headers_bytes"]
        | ["response", "code" | "grpc_status" | "flags"]
        | ["source" | "destination" | "upstream", "port"]
        | ["upstream", "local_port"]
        | ["source", "geo", "asn"]
        | ["listener_direction"]
        | ["xds", "listener_direction"] => PropertyKind::Int,
        ["connection", "id"] | ["upstream", "request_attempt_count"] => PropertyKind::Uint,
        ["source", "geo", "latitude" | "longitude"] => PropertyKind::Double,
        ["connection", "mtls"] | ["cache", "hit" | "bypass"] => PropertyKind::Bool,
        ["request", "time" | "duration"] | ["response", "backend_latency"] | ["cache", "age" | "ttl"] => {
            PropertyKind::Nanos
        }
        _ => PropertyKind::Bytes,
    }
}

/// The property at `path`; `None` when there is none (yet).
pub(super) fn lookup(view: &View<'_>, path: &[&str]) -> Option<Vec<u8>> {
    let (state, known) = (&view.state, view.state.known.as_ref());
    match path {
        ["request", rest @ ..] => request(view, rest),
        ["response", rest @ ..] => response(view, rest),
        ["source", "geo", rest @ ..] => geo(view, rest),
        ["source", rest @ ..] => address(known?.client, rest),
        ["destination", rest @ ..] => address(known?.server, rest),
        ["connection", rest @ ..] => connection(view, rest),
        ["upstream", rest @ ..] => upstream(view, rest),
        ["cache", rest @ ..] => cache(view, rest),
        ["selvedge", "upstream"] => state.upstream.as_ref().map(|name| text(name)),

        ["site"] | ["xds", "virtual_host_name"] => Some(text(state.route.site())),
        ["listener"] | ["xds", "filter_chain_name"] => Some(text(&known?.listener.name)),
        ["route_name"] | ["xds", "route_name"] => Some(text(state.route.name())),
        ["cluster_name"] | ["xds", "cluster_name"] => upstream(view, &["name"]),
        // 1 is inbound: clients come in through every listener of ours.
        ["listener_direction"] | ["xds", "listener_direction"] => Some(int(1)),
        ["node", "name" | "id"] | ["xds", "node", "name" | "id"] => Some(text(state.route.node())),
        _ => None,
    }
}

fn request(view: &View<'_>, path: &[&str]) -> Option<Vec<u8>> {
    let (request, state, known) = (&view.request, &view.state, view.state.known.as_ref());
    match path {
        ["path"] => Some(view.shown(request.raw_path()).into_owned()),
        ["url_path"] => Some(text(request.uri.path())),
        ["query"] => Some(text(request.uri.query().unwrap_or_default())),
        ["host"] => Some(view.shown(authority(request)).into_owned()),
        ["scheme"] => Some(text(state.scheme())),
        ["method"] => Some(text(request.method.as_str())),
        ["protocol"] => Some(text(protocol(request.version))),
        ["referer"] => joined(view, HeaderMap::Request, "referer"),
        ["useragent"] => joined(view, HeaderMap::Request, "user-agent"),
        ["id"] => joined(view, HeaderMap::Request, "x-request-id"),
        ["time"] => since_epoch(known?.start()),
        ["duration"] => nanos(known?.duration()?),
        ["size"] => Some(int(request_size(view))),
        ["total_size"] => {
            let maps = map_bytes(view, HeaderMap::Request) + map_bytes(view, HeaderMap::RequestTrailers);
            Some(int(request_size(view) + maps))
        }
        ["headers_bytes"] => Some(int(map_bytes(view, HeaderMap::Request))),
        ["headers"] => serialized(view, HeaderMap::Request),
        ["headers", name] => joined(view, HeaderMap::Request, name),
        ["trailers"] => serialized(view, HeaderMap::RequestTrailers),
        ["trailers", name] => joined(view, HeaderMap::RequestTrailers, name),
        _ => None,
    }
}

fn response(view: &View<'_>, path: &[&str]) -> Option<Vec<u8>> {
    let state = &view.state;
    match path {
        ["code_details"] => state.details.as_ref().map(|details| text(details)),
        ["flags"] => {
            let failed = state.failure.map_or(0, flag);
            let cached = state.known.as_ref().and_then(|known| known.cached.as_ref());
            let cached = if cached.is_some_and(|cached| cached.hit) { FROM_CACHE } else { 0 };
            let gone = ended(view).is_some_and(|ended| ended.termination.is_some());
            Some(int(failed | cached | if gone { DOWNSTREAM_CONNECTION_TERMINATION } else { 0 }))
        }
        ["backend_latency"] => nanos(state.known.as_ref()?.contact.latency?),
        ["trailers"] => serialized(view, HeaderMap::ResponseTrailers),
        ["trailers", name] => joined(view, HeaderMap::ResponseTrailers, name),
        _ => {
            let response = view.response()?;
            match path {
                ["code"] => Some(int(response.status.as_u16().into())),
                ["grpc_status"] => {
                    // In the trailers, or in the header of a response that has nothing else.
                    let mut status = None;
                    for map in [HeaderMap::ResponseTrailers, HeaderMap::Response] {
                        view.each_value(map, "grpc-status", &mut |value| {
                            status = status.or_else(|| std::str::from_utf8(value).ok()?.parse().ok());
                        });
                    }
                    status.map(int)
                }
                ["size"] => response_size(view).map(int),
                ["total_size"] => {
                    let maps = map_bytes(view, HeaderMap::Response) + map_bytes(view, HeaderMap::ResponseTrailers);
                    response_size(view).map(|size| int(size + maps))
                }
                ["headers_bytes"] => Some(int(map_bytes(view, HeaderMap::Response))),
                ["headers"] => serialized(view, HeaderMap::Response),
                ["headers", name] => joined(view, HeaderMap::Response, name),
                _ => None,
            }
        }
    }
}

fn connection(view: &View<'_>, path: &[&str]) -> Option<Vec<u8>> {
    let connection = &view.state.known.as_ref()?.connection;
    let tls = connection.tls.as_deref();
    match path {
        // The kernel's number of the socket, which no other one gets.
        ["id"] => connection.socket.as_ref()?.socket_cookie().ok().map(|cookie| cookie.to_le_bytes().to_vec()),
        ["tls_version"] => Some(text(tls_version(&tls?.version))),
        ["cipher"] => Some(cipher(&tls?.cipher)),
        ["termination_details"] => ended(view)?.termination.as_ref().map(|why| text(why)),
        [name] => handshake(connection.handshake.as_deref(), name),
        _ => None,
    }
}

/// The client's part in the TLS handshake, if there was one.
pub(crate) fn handshake(handshake: Option<&Handshake>, name: &str) -> Option<Vec<u8>> {
    match (handshake.and_then(|handshake| handshake.property(name)), name) {
        (None, "mtls") => Some(vec![0]),
        (None, "requested_server_name") => Some(Vec::new()),
        (told, _) => told,
    }
}

fn upstream(view: &View<'_>, path: &[&str]) -> Option<Vec<u8>> {
    let contact = &view.state.known.as_ref()?.contact;
    match path {
        ["name"] => {
            let name = view.state.upstream.as_deref().or_else(|| view.state.route.upstream_name())?;
            Some(text(name))
        }
        ["address" | "port"] => address(contact.address, path),
        ["local_address"] => address(local(contact), &["address"]),
        ["local_port"] => address(local(contact), &["port"]),
        ["tls_version"] => Some(text(tls_version(&contact.tls.as_ref()?.version))),
        ["cipher"] => Some(cipher(&contact.tls.as_ref()?.cipher)),
        ["sha256_peer_certificate_digest"] => hex(&contact.tls.as_ref()?.cert_digest),
        ["sni"] => (!contact.sni.is_empty()).then(|| text(&contact.sni)),
        ["request_attempt_count"] => (contact.attempts > 0).then(|| u64::from(contact.attempts).to_le_bytes().to_vec()),
        ["transport_failure_reason"] => contact.failure.as_ref().map(|why| text(why)),
        _ => None,
    }
}

/// How the exchange has ended; `None` while it has not.
fn ended<'v>(view: &'v View<'_>) -> Option<&'v Ended> {
    view.state.known.as_ref()?.ended.as_ref()
}

fn local(contact: &Contact) -> Option<SocketAddr> {
    contact.socket.as_ref()?.local_addr()?.as_inet().copied()
}

/// Before the lookup: what filters have asked for. After it: what came of it.
fn cache(view: &View<'_>, path: &[&str]) -> Option<Vec<u8>> {
    let nothing = Wishes::default();
    let wishes = view.state.wishes.as_deref().unwrap_or(&nothing);
    let cached = view.state.known.as_ref().and_then(|known| known.cached.as_ref());
    match (path, cached) {
        (["key_parts"], _) => Some(encode_visited(|visit| wishes.key_parts.iter().for_each(|part| visit(part, &[])))),
        (["tags"], _) => Some(encode_visited(|visit| wishes.tags.iter().for_each(|tag| visit(tag.as_bytes(), &[])))),
        (["bypass"], _) => Some(vec![u8::from(wishes.bypass)]),
        (["ttl"], None) => nanos(wishes.lifetime?),
        (["ttl"], Some(cached)) => {
            let until = cached.fresh_until?;
            let now = SystemTime::now();
            match until.duration_since(now) {
                Ok(left) => nanos(left),
                Err(over) => Some(int(-i64::try_from(over.duration().as_nanos()).ok()?)),
            }
        }
        (["status"], Some(cached)) => Some(text(cached.status)),
        (["hit"], Some(cached)) => Some(vec![u8::from(cached.hit)]),
        (["tier"], Some(cached)) => cached.hit.then(|| text("memory")),
        (["key"], Some(cached)) => hex(&cached.key?),
        (["age"], Some(cached)) => nanos(cached.age?),
        _ => None,
    }
}

fn geo(view: &View<'_>, path: &[&str]) -> Option<Vec<u8>> {
    let geo = view.state.known.as_ref()?.location()?;
    match path {
        ["country"] => geo.country.map(|country| text(country.as_str())),
        ["continent"] => geo.continent.map(|continent| text(continent.as_str())),
        ["city"] => geo.city.as_ref().map(|city| text(city)),
        ["asn"] => geo.asn.map(|asn| int(asn.into())),
        ["latitude"] => geo.coordinates.map(|(latitude, _)| latitude.to_le_bytes().to_vec()),
        ["longitude"] => geo.coordinates.map(|(_, longitude)| longitude.to_le_bytes().to_vec()),
        _ => None,
    }
}

fn address(address: Option<SocketAddr>, path: &[&str]) -> Option<Vec<u8>> {
    match path {
        ["address"] => address.map(|address| address.to_string().into_bytes()),
        ["port"] => address.map(|address| int(address.port().into())),
        _ => None,
    }
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

/// As Envoy and OpenSSL write it; rustls has an underscore in place of the point.
fn tls_version(name: &str) -> &str {
    match name {
        "TLSv1_2" => "TLSv1.2",
        "TLSv1_3" => "TLSv1.3",
        other => other,
    }
}

/// The registered name of a cipher suite; rustls says of which version it is.
fn cipher(name: &str) -> Vec<u8> {
    match name.strip_prefix("TLS13_") {
        Some(rest) => ["TLS_", rest].concat().into_bytes(),
        None => text(name),
    }
}

/// What the header announces; without that, what has come so far.
fn request_size(view: &View<'_>) -> i64 {
    announced(&view.request.headers).unwrap_or_else(|| match (ended(view), &view.request_body) {
        (Some(ended), _) => i64::try_from(ended.request_bytes).unwrap_or(i64::MAX),
        (None, Some(held)) => i64::try_from(held.len()).unwrap_or(i64::MAX),
        (None, None) => 0,
    })
}

/// What was sent; until that is known, what the header announces.
fn response_size(view: &View<'_>) -> Option<i64> {
    match ended(view) {
        Some(ended) => i64::try_from(ended.response_bytes).ok(),
        None => announced(&view.response()?.headers),
    }
}

fn announced(headers: &Headers) -> Option<i64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// Bytes of names and values.
fn map_bytes(view: &View<'_>, map: HeaderMap) -> i64 {
    let mut bytes = 0;
    view.visit(map, &mut |name, value| bytes += name.len() + value.len());
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// All values of one header, joined by a comma, as hosts present them.
fn joined(view: &View<'_>, map: HeaderMap, name: &str) -> Option<Vec<u8>> {
    let mut length = None;
    view.each_value(map, name, &mut |value| length = Some(length.map_or(0, |length| length + 1) + value.len()));
    let mut whole = Vec::with_capacity(length?);
    let mut first = true;
    view.each_value(map, name, &mut |value| {
        if !std::mem::take(&mut first) {
            whole.push(b',');
        }
        whole.extend_from_slice(value);
    });
    Some(whole)
}

fn serialized(view: &View<'_>, map: HeaderMap) -> Option<Vec<u8>> {
    // A map that is not there is no empty map.
    view.visit(map, &mut |_, _| {}).then(|| {
        encode_visited(|visit| {
            view.visit(map, visit);
        })
    })
}

fn text(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

fn int(value: i64) -> Vec<u8> {
    value.to_le_bytes().to_vec()
}

fn nanos(duration: Duration) -> Option<Vec<u8>> {
    i64::try_from(duration.as_nanos()).ok().map(int)
}

fn since_epoch(time: SystemTime) -> Option<Vec<u8>> {
    nanos(time.duration_since(UNIX_EPOCH).ok()?)
}

/// Bytes in lower-case hexadecimal; `None` without any.
fn hex(bytes: &[u8]) -> Option<Vec<u8>> {
    let digit = |nibble: u8| b"0123456789abcdef"[usize::from(nibble & 15)];
    (!bytes.is_empty()).then(|| bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The page for authors is a table of paths and forms: what is said there is what a filter that wants text is shown.
    #[test]
    fn every_property_is_of_the_kind_that_its_page_says() {
        let page = include_str!("../../../docs/properties.md");
        let mut seen = 0;
        for line in page.lines().filter(|line| line.starts_with("| `")) {
            let columns: Vec<&str> = line.split('|').map(str::trim).collect();
            let paths: Vec<&str> = columns[1].split('`').skip(1).step_by(2).collect();
            let mut forms = columns[2].split(", ").cycle();
            let Some(first) = paths.first() else { continue };
            if forms.clone().take(1).all(|form| kinds_of(form).is_none()) {
                continue; // Not a table of properties that are read.
            }
            for path in &paths {
                let form = forms.next().unwrap_or_default();
                // `.city` after `source.geo.country` is short for `source.geo.city`.
                let whole = match path.strip_prefix('.') {
                    Some(last) => format!("{}.{last}", first.rsplit_once('.').unwrap_or_default().0),
                    None => (*path).to_owned(),
                };
                let segments: Vec<&str> = whole.split('.').collect();
                let kind = kind(&segments);
                assert!(kinds_of(form).is_some_and(|kinds| kinds.contains(&kind)), "{whole} is {form}, not {kind:?}");
                seen += 1;
            }
        }
        assert!(seen > 60, "{seen} paths: the page has changed its form");
    }

    fn kinds_of(form: &str) -> Option<&'static [PropertyKind]> {
        Some(match form {
            "string" => &[PropertyKind::Bytes, PropertyKind::Address],
            "map" | "list" => &[PropertyKind::Bytes],
            "int" => &[PropertyKind::Int],
            "uint" => &[PropertyKind::Uint, PropertyKind::Bytes],
            "double" => &[PropertyKind::Double],
            "bool" => &[PropertyKind::Bool],
            "time" | "duration" => &[PropertyKind::Nanos],
            _ => return None,
        })
    }
}
