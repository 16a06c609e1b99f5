//! Where hosts differ and one answer cannot serve the filters of all: what a filter means that was written for Envoy, and what one means
//! that was written for Kong's ngx_wasm_module. All that depends on it is here; the hostcalls ask.

use std::net::SocketAddr;

use crate::abi::serialize::{Path, decode_path};

/// The host that a filter was written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Compat {
    /// Envoy, and most others.
    #[default]
    Envoy,
    /// Kong's ngx_wasm_module: properties are text, paths may have dots, a write to a body cuts off what is behind it, shared data
    /// is compared with every write.
    Ngx,
}

/// What the bytes of a property mean, for guests that want it as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PropertyKind {
    /// Themselves: text, and maps, for which there is no text.
    Bytes,
    /// `ip:port`.
    Address,
    /// 8 bytes, with sign.
    Int,
    /// 8 bytes, without.
    Uint,
    /// 8 bytes.
    Double,
    /// One byte, 0 or 1.
    Bool,
    /// Nanoseconds in 8 bytes, since 1970 or since something else.
    Nanos,
}

impl Compat {
    /// The segments of a property's path. `None` as [`decode_path`].
    pub(crate) fn path(self, bytes: &[u8]) -> Option<Path<'_>> {
        match self {
            Self::Envoy => decode_path(bytes),
            Self::Ngx => Path::collect(Dotted {
                rest: Some(std::str::from_utf8(bytes.strip_suffix(&[0]).unwrap_or(bytes)).ok()?),
                before: ["", ""],
            }),
        }
    }

    /// A property as this filter reads it; `kind` is asked for when it matters.
    pub(crate) fn shown(self, value: Vec<u8>, kind: impl FnOnce() -> PropertyKind) -> Vec<u8> {
        match self {
            Self::Envoy => value,
            // A value that is not what its kind says is shown as it is: it cannot come from us.
            Self::Ngx => text(&value, kind()).map_or(value, String::into_bytes),
        }
    }

    /// What a write of `data` over `max` bytes from `start` replaces, and by what.
    pub(crate) fn edit(self, start: usize, max: usize, data: &[u8]) -> (usize, usize, &[u8]) {
        match self {
            Self::Envoy => (start, max, data),
            Self::Ngx if (start, max) == (0, 0) && !data.is_empty() => (0, 0, data),
            // Here `max` says how much of the data counts, and without any, behind the start, all of it does. What was there goes.
            Self::Ngx => {
                let max = if start > 0 && max == 0 { data.len() } else { max };
                (start, usize::MAX, &data[..data.len().min(max)])
            }
        }
    }
}

/// The segments of a path that is divided by dots as well as by NUL. What a filter has named may have dots of its own: the names of headers,
/// and Envoy's of what filters set.
struct Dotted<'a> {
    rest: Option<&'a str>,
    before: [&'a str; 2],
}

impl<'a> Iterator for Dotted<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let rest = self.rest?;
        let is_name = matches!(self.before, ["request" | "response", "headers" | "trailers"] | ["", "filter_state"]);
        let divided = if is_name { None } else { rest.split_once(['\0', '.']) };
        let (segment, rest) = divided.map_or((rest, None), |(segment, rest)| (segment, Some(rest)));
        (self.rest, self.before) = (rest, [self.before[1], segment]);
        Some(segment)
    }
}

/// The text of a value; `None` when it is text already, or nothing of this kind.
fn text(value: &[u8], kind: PropertyKind) -> Option<String> {
    let number = || <[u8; 8]>::try_from(value).ok();
    Some(match kind {
        PropertyKind::Bytes => return None,
        PropertyKind::Address => std::str::from_utf8(value).ok()?.parse::<SocketAddr>().ok()?.ip().to_string(),
        PropertyKind::Int => i64::from_le_bytes(number()?).to_string(),
        PropertyKind::Uint => u64::from_le_bytes(number()?).to_string(),
        PropertyKind::Double => f64::from_le_bytes(number()?).to_string(),
        PropertyKind::Bool => match value {
            [0] => "false".to_owned(),
            [1] => "true".to_owned(),
            _ => return None,
        },
        PropertyKind::Nanos => seconds(i64::from_le_bytes(number()?)),
    })
}

/// Seconds with three decimals, as nginx writes times and durations.
fn seconds(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let millis = nanos.unsigned_abs() / 1_000_000;
    format!("{sign}{}.{:03}", millis / 1000, millis % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::Body;

    #[test]
    fn paths_may_have_dots_and_names_keep_theirs() {
        for (path, segments) in [
            (&b"request.path"[..], &["request", "path"][..]),
            (b"request\0path", &["request", "path"]),
            (b"request\0path\0", &["request", "path"]),
            (b"plugin_name", &["plugin_name"]),
            (b"source.geo\0city", &["source", "geo", "city"]),
            (b"request.headers.x.y", &["request", "headers", "x.y"]),
            (b"response\0trailers\0x.y", &["response", "trailers", "x.y"]),
            (b"request.headers", &["request", "headers"]),
            (b"filter_state.wasm.a.b", &["filter_state", "wasm.a.b"]),
            (b"a.filter_state.b.c", &["a", "filter_state", "b", "c"]),
            (b"", &[""]),
            (b"a..b", &["a", "", "b"]),
        ] {
            assert_eq!(Compat::Ngx.path(path).unwrap().segments(), segments);
        }
        assert!(Compat::Ngx.path(&[0xff]).is_none());
        assert!(Compat::Ngx.path(&[b'.'; 40]).is_none());
        assert_eq!(Compat::Envoy.path(b"request.path").unwrap().segments(), ["request.path"]);
    }

    #[test]
    fn values_are_text_of_their_kind() {
        use PropertyKind::*;
        let bytes = |value: i64| value.to_le_bytes().to_vec();
        for (kind, value, shown) in [
            (Bytes, b"12345678".to_vec(), "12345678"),
            (Address, b"127.0.0.1:80".to_vec(), "127.0.0.1"),
            (Address, b"[::1]:80".to_vec(), "::1"),
            (Int, bytes(200), "200"),
            (Int, bytes(-1), "-1"),
            (Uint, bytes(-1), "18446744073709551615"),
            (Double, 48.5f64.to_le_bytes().to_vec(), "48.5"),
            (Bool, vec![1], "true"),
            (Bool, vec![0], "false"),
            (Nanos, bytes(1_700_000_000_123_999_999), "1700000000.123"),
            (Nanos, bytes(5_000_000), "0.005"),
            (Nanos, bytes(-1_500_000_000), "-1.500"),
            (Int, b"404".to_vec(), "404"), // not ours, and text already
        ] {
            let shown = shown.as_bytes();
            assert_eq!(Compat::Ngx.shown(value.clone(), || kind), shown, "{kind:?} {value:?}");
            assert_eq!(Compat::Envoy.shown(value.clone(), || kind), value);
        }
    }

    #[test]
    fn a_write_to_a_body_cuts_off_the_rest() {
        for (start, max, data, envoy, ngx) in [
            (0, 0, "X", "Xabcdef", "Xabcdef"),
            (0, 6, "X", "X", "X"),
            (0, 2, "X", "Xcdef", "X"),
            (0, 2, "XYZ", "XYZcdef", "XY"), // so much of the data
            (2, 2, "X", "abXef", "abX"),
            (2, 0, "XYZ", "abXYZcdef", "abXYZ"),
            (6, 0, "X", "abcdefX", "abcdefX"),
            (99, 9, "X", "abcdefX", "abcdefX"),
            (0, 0, "", "abcdef", ""),
            (3, 0, "", "abcdef", "abc"),
        ] {
            for (compat, expected) in [(Compat::Envoy, envoy), (Compat::Ngx, ngx)] {
                let mut body = Body::from(bytes::Bytes::from("abcdef"));
                let (start, max, data) = compat.edit(start, max, data.as_bytes());
                body.splice(start, max, data);
                assert_eq!(body.take(), expected, "{compat:?} {start} {max} {data:?}");
            }
        }
    }
}
