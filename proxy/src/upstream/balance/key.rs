//! What consistent hashing is keyed by, and parts of requests in general.

use std::net::IpAddr;

use http::header;
use pingora::http::RequestHeader;
use selvedge_config::HashBy;

/// The key of a request; `None` = it has none, and no known client either.
pub(in crate::upstream) fn of(by: &HashBy, request: &RequestHeader, client: Option<IpAddr>) -> Option<u64> {
    let found = match by {
        HashBy::ClientIp => None,
        HashBy::Path => Some(hash(request.uri.path().as_bytes())),
        HashBy::Header(name) => request.headers.get(name.as_str()).map(|value| hash(value.as_bytes())),
        HashBy::Cookie(name) => cookie(request, name).map(hash),
        HashBy::Query(name) => query(request, name).map(|value| hash(value.as_bytes())),
    };
    found.or_else(|| client.map(of_client))
}

/// The key of a client.
pub(in crate::upstream) fn of_client(client: IpAddr) -> u64 {
    match client.to_canonical() {
        IpAddr::V4(address) => hash(&address.octets()),
        IpAddr::V6(address) => hash(&address.octets()),
    }
}

/// The value of a cookie (RFC 6265, 5.4); the first, if there are several of the name.
pub(in crate::upstream) fn cookie<'r>(request: &'r RequestHeader, name: &str) -> Option<&'r [u8]> {
    let pairs =
        request.headers.get_all(header::COOKIE).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    pairs.map(<[u8]>::trim_ascii).find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

fn query<'r>(request: &'r RequestHeader, name: &str) -> Option<&'r str> {
    let pairs = request.uri.query()?.split('&');
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|(known, _)| *known == name)
        .map(|(_, value)| value)
}

/// A hash that is the same in every process, machine and version (FNV-1a, then mixed as SplitMix64 does): edges side by side lead a key
/// to the same endpoint.
pub(in crate::upstream) fn hash(bytes: &[u8]) -> u64 {
    let fnv = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    mix(fnv)
}

/// Spreads a number over all 64 bits.
pub(in crate::upstream) fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(target: &str, headers: &[(&'static str, &str)]) -> RequestHeader {
        let mut request = RequestHeader::build("GET", target.as_bytes(), None).unwrap();
        for (name, value) in headers {
            request.append_header(*name, *value).unwrap();
        }
        request
    }

    #[test]
    fn keys_are_the_parts_they_name_and_else_the_client() {
        let client: IpAddr = "192.0.2.7".parse().unwrap();
        let by_client = Some(hash(&[192, 0, 2, 7]));
        for (by, target, headers, key) in [
            (HashBy::Path, "/a?b", &[][..], Some(hash(b"/a"))),
            (HashBy::ClientIp, "/", &[], by_client),
            (HashBy::Header("x-user".into()), "/", &[("X-User", "u1"), ("x-user", "u2")], Some(hash(b"u1"))),
            (HashBy::Header("x-user".into()), "/", &[], by_client),
            (HashBy::Cookie("sid".into()), "/", &[("cookie", "xsid=1; sid=2;sid=3")], Some(hash(b"2"))),
            (HashBy::Cookie("sid".into()), "/", &[("cookie", "a=1"), ("cookie", "sid=")], Some(hash(b""))),
            (HashBy::Cookie("sid".into()), "/", &[("cookie", "SID=1; sidx=2")], by_client),
            (HashBy::Query("id".into()), "/?xid=1&id=2&id=3", &[], Some(hash(b"2"))),
            (HashBy::Query("id".into()), "/?id", &[], Some(hash(b""))),
            (HashBy::Query("id".into()), "/id=7", &[], by_client),
        ] {
            assert_eq!(of(&by, &request(target, headers), Some(client)), key, "{by:?} of {target}");
        }
        assert_eq!(of(&HashBy::ClientIp, &request("/", &[]), None), None);
        let mapped: IpAddr = "::ffff:192.0.2.7".parse().unwrap();
        assert_eq!(of(&HashBy::ClientIp, &request("/", &[]), Some(mapped)), by_client);
    }

    #[test]
    fn the_hash_stays_what_it_is() {
        assert_eq!(hash(b""), 0xf52a_15e9_a9b5_e89b);
        assert_eq!(hash(b"selvedge"), hash(b"selvedge"));
    }
}
