//! `selvedge.geo_lookup`: where any address is, not just the client's.

use std::net::{IpAddr, SocketAddr};

use selvedge_geoip::Geo;
use selvedge_wasm::abi::serialize::encode_pairs;

use super::{Answer, bad};

/// `args` is an address as text, with or without a port. What is known comes as a map with the names and forms of `source.geo`; nothing
/// known, and no database, is an empty map.
pub(crate) fn lookup(geo: Option<&Geo>, args: &[u8]) -> Answer {
    let text = std::str::from_utf8(args).map_err(|_| bad("not an address"))?;
    let address = text.parse::<IpAddr>().or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()));
    let address = address.map_err(|_| bad("not an address"))?;
    let Some(location) = geo.and_then(|geo| geo.lookup(address)) else { return Ok(Vec::new()) };

    let mut known: Vec<(&str, Vec<u8>)> = Vec::with_capacity(6);
    let mut say = |name, value: Option<Vec<u8>>| known.extend(value.map(|value| (name, value)));
    say("country", location.country.map(|country| country.as_str().as_bytes().to_vec()));
    say("continent", location.continent.map(|continent| continent.as_str().as_bytes().to_vec()));
    say("city", location.city.map(String::into_bytes));
    say("asn", location.asn.map(|asn| i64::from(asn).to_le_bytes().to_vec()));
    say("latitude", location.coordinates.map(|(latitude, _)| latitude.to_le_bytes().to_vec()));
    say("longitude", location.coordinates.map(|(_, longitude)| longitude.to_le_bytes().to_vec()));
    Ok(encode_pairs(&known))
}

#[cfg(test)]
mod tests {
    use selvedge_geoip::GeoSource;
    use selvedge_wasm::abi::serialize::decode_pairs;

    use super::*;

    #[test]
    fn addresses_are_found_with_and_without_a_port() {
        let geo = Geo::open(GeoSource::BuiltinTest).unwrap();
        for address in ["192.0.2.7", "192.0.2.7:80", "[::ffff:192.0.2.7]:80"] {
            let found = lookup(Some(&geo), address.as_bytes()).unwrap();
            let found = decode_pairs(&found).unwrap();
            assert!(found.contains(&(b"country", b"DE")), "{address}: {found:?}");
        }
        assert_eq!(lookup(Some(&geo), b"127.0.0.1"), Ok(vec![]));
        assert_eq!(lookup(None, b"192.0.2.7"), Ok(vec![]));
        assert_eq!(lookup(Some(&geo), b"example.com"), Err(bad("not an address")));
    }
}
