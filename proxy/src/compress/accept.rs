//! Which encoding a client likes best (RFC 9110, 12.5.3).

use http::HeaderMap;
use http::header::ACCEPT_ENCODING;
use selvedge_config::Encoding;

use super::coding;

/// The one among `offered` that the client prefers; of several that it likes equally well, the first. `None` where it would rather have none,
/// or says nothing: then it may not know any.
pub(super) fn preferred(headers: &HeaderMap, offered: &[Encoding]) -> Option<Encoding> {
    let mut named = [None::<u16>; 3];
    let (mut rest, mut plain) = (None::<u16>, None::<u16>);
    let lines = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|line| line.to_str().ok());
    for member in lines.flat_map(|line| line.split(',')) {
        let mut parts = member.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        // What is not understood is not wanted.
        let weight = match parts.next() {
            None => 1000,
            Some(parameter) => weight(parameter).unwrap_or(0),
        };
        let name = if name.eq_ignore_ascii_case("x-gzip") { "gzip" } else { name };
        let place = match offered.iter().position(|known| name.eq_ignore_ascii_case(coding(*known))) {
            Some(place) => named.get_mut(place),
            None if name == "*" => Some(&mut rest),
            None if name.eq_ignore_ascii_case("identity") => Some(&mut plain),
            None => None,
        };
        if let Some(place) = place {
            place.get_or_insert(weight);
        }
    }
    let mut best = None;
    let mut best_weight = plain.unwrap_or(0);
    for (encoding, weight) in offered.iter().zip(named) {
        let weight = weight.or(rest).unwrap_or(0);
        // As good as plain is good enough: it is shorter.
        if weight > 0 && (weight > best_weight || best.is_none() && weight == best_weight) {
            (best, best_weight) = (Some(*encoding), weight);
        }
    }
    best
}

/// `q=0.5` in thousandths.
fn weight(parameter: &str) -> Option<u16> {
    let number = parameter.strip_prefix("q=").or_else(|| parameter.strip_prefix("Q="))?;
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let digits = part.bytes().all(|byte| byte.is_ascii_digit()) && part.len() <= 3;
    let thousandths: u16 = format!("{part:0<3}").parse().ok().filter(|_| digits)?;
    match whole {
        "0" => Some(thousandths),
        "1" if thousandths == 0 => Some(1000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_best_one_by_weight_and_then_by_order() {
        use Encoding::{Br, Gzip, Zstd};
        for (lines, expected) in [
            (&["gzip, deflate, br, zstd"][..], Some(Zstd)),
            (&["gzip", "br"], Some(Br)),
            (&["gzip;q=1.0, br;q=0.9"], Some(Gzip)),
            (&["GZIP ; Q=0.001"], Some(Gzip)),
            (&["x-gzip"], Some(Gzip)),
            (&["*"], Some(Zstd)),
            (&["*, zstd;q=0"], Some(Br)),
            (&["*;q=0.5, gzip"], Some(Gzip)),
            (&["gzip;q=0"], None),
            (&["gzip;q=0.000"], None),
            (&["gzip;q=2"], None),
            (&["gzip;q=1.001"], None),
            (&["gzip;q=0.1234"], None),
            (&["gzip;level=9"], None),
            (&["identity, gzip;q=0.5"], None),
            (&["identity, gzip"], Some(Gzip)),
            (&["identity;q=0.5, gzip;q=0.6"], Some(Gzip)),
            (&["identity;q=0"], None),
            (&["deflate"], None),
            (&[""], None),
            (&[], None),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(ACCEPT_ENCODING, HeaderValue::from_static(line));
            }
            assert_eq!(preferred(&headers, &[Zstd, Br, Gzip]), expected, "{lines:?}");
        }
    }
}
