//! The properties a filter may read (`proxy_get_property`), in the binary form of the ABI: strings raw, integers and times as 8
//! bytes little endian, booleans as one byte.

use std::time::UNIX_EPOCH;

use http::HeaderMap as Headers;
use selvedge_wasm::{Exchange, HeaderMap};

use super::exchange::View;

/// The value at `path`; `None` when there is none (yet).
pub(super) fn lookup(view: &View<'_>, path: &[&str]) -> Option<Vec<u8>> {
    match path {
        ["request", rest @ ..] => request(view, rest),
        ["response", rest @ ..] => response(view, rest),
        ["source", "geo", rest @ ..] => geo(view, rest),
        ["source", "address"] => view.state.client.map(|address| address.to_string().into_bytes()),
        ["source", "port"] => view.state.client.map(|address| int(address.port().into())),
        ["destination", "address"] => view.state.server.map(|address| address.to_string().into_bytes()),
        ["destination", "port"] => view.state.server.map(|address| int(address.port().into())),
        ["connection", "mtls"] => Some(vec![0]),
        ["connection", "tls_version"] => view.state.tls_version.as_ref().map(|version| version.as_bytes().to_vec()),
        ["route_name"] | ["xds", "route_name"] => Some(view.state.route.name().as_bytes().to_vec()),
        ["site"] => Some(view.state.route.site().as_bytes().to_vec()),
        ["upstream", "name"] | ["cluster_name"] | ["xds", "cluster_name"] => {
            let name = view.state.upstream.as_deref().or_else(|| view.state.route.upstream_name())?;
            Some(name.as_bytes().to_vec())
        }
        ["node", "name"] => Some(view.state.route.node().as_bytes().to_vec()),
        _ => None,
    }
}

fn request(view: &View<'_>, path: &[&str]) -> Option<Vec<u8>> {
    let uri = &view.request.uri;
    match path {
        ["path"] => Some(view.request.raw_path().to_vec()),
        ["url_path"] => Some(uri.path().as_bytes().to_vec()),
        ["query"] => uri.query().map(|query| query.as_bytes().to_vec()),
        ["host"] => Some(super::exchange::authority(view.request).to_vec()),
        ["scheme"] => Some(view.state.scheme.as_bytes().to_vec()),
        ["method"] => Some(view.request.method.as_str().as_bytes().to_vec()),
        ["protocol"] => Some(format!("{:?}", view.request.version).trim_end_matches(".0").as_bytes().to_vec())
            .map(|name| if name == b"HTTP/1" { b"HTTP/1.0".to_vec() } else { name }),
        ["referer"] => first(&view.request.headers, "referer"),
        ["useragent"] => first(&view.request.headers, "user-agent"),
        ["id"] => first(&view.request.headers, "x-request-id"),
        ["time"] => {
            let since = view.state.start.duration_since(UNIX_EPOCH).ok()?;
            Some(i64::try_from(since.as_nanos()).ok()?.to_le_bytes().to_vec())
        }
        ["size"] => first(&view.request.headers, "content-length")
            .and_then(|length| std::str::from_utf8(&length).ok()?.parse::<i64>().ok())
            .map(int),
        ["headers"] => serialized(view, HeaderMap::Request),
        ["headers", name] => joined(view, HeaderMap::Request, name),
        _ => None,
    }
}

fn response(view: &View<'_>, path: &[&str]) -> Option<Vec<u8>> {
    let response = view.state.response.as_ref()?;
    match path {
        ["code"] => Some(int(response.status.as_u16().into())),
        ["headers"] => serialized(view, HeaderMap::Response),
        ["headers", name] => joined(view, HeaderMap::Response, name),
        ["trailers", name] => joined(view, HeaderMap::ResponseTrailers, name),
        _ => None,
    }
}

fn geo(view: &View<'_>, path: &[&str]) -> Option<Vec<u8>> {
    let geo = view.state.geo.as_ref()?;
    match path {
        ["country"] => geo.country.map(|country| country.as_str().as_bytes().to_vec()),
        ["continent"] => geo.continent.map(|continent| continent.as_str().as_bytes().to_vec()),
        ["city"] => geo.city.as_ref().map(|city| city.as_bytes().to_vec()),
        ["asn"] => geo.asn.map(|asn| int(asn.into())),
        ["latitude"] => geo.coordinates.map(|(latitude, _)| latitude.to_le_bytes().to_vec()),
        ["longitude"] => geo.coordinates.map(|(_, longitude)| longitude.to_le_bytes().to_vec()),
        _ => None,
    }
}

fn int(value: i64) -> Vec<u8> {
    value.to_le_bytes().to_vec()
}

fn first(headers: &Headers, name: &str) -> Option<Vec<u8>> {
    headers.get(name).map(|value| value.as_bytes().to_vec())
}

/// All values of one header, joined by a comma, as hosts present them.
fn joined(view: &View<'_>, map: HeaderMap, name: &str) -> Option<Vec<u8>> {
    let mut value: Option<Vec<u8>> = None;
    let lower = name.to_ascii_lowercase();
    view.visit(map, &mut |known, bytes| {
        if known == lower.as_bytes() {
            let joined = value.get_or_insert_default();
            if !joined.is_empty() {
                joined.push(b',');
            }
            joined.extend_from_slice(bytes);
        }
    });
    value
}

fn serialized(view: &View<'_>, map: HeaderMap) -> Option<Vec<u8>> {
    let mut pairs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    view.visit(map, &mut |name, value| pairs.push((name.to_vec(), value.to_vec())))
        .then(|| selvedge_wasm::abi::serialize::encode_pairs(&pairs))
}
