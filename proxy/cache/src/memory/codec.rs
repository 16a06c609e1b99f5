//! Stored metadata as bytes, for both tiers. Records on disk have checksums: here only what was written by another version is told apart.
//!
//! ```text
//! version(1) flags(1) status(2) http(1) | fresh_until(12) provenance(12) born(12) | stale windows(4 + 4) | variance(16, if flagged)
//! epoch(8) marks: count(2), each (8) | reason: length(2), text | fields: count(2), each name: length(2), text; value: length(4), bytes
//! trailers, if flagged: count(2), each name: length(2), text; value: length(4), bytes
//! ```
//! All numbers are little-endian; times are seconds and nanoseconds since 1970. In the place of a [known](KNOWN) name's length is 0x8000
//! and its number, and no text; 0x4000 more where it is in lower case.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode, Version};
use pingora_http::{HeaderNameVariant, ResponseHeader};

use super::object::StoredMeta;
use crate::disk::Words;
use crate::purge::{Mark, Marks};

const VERSION: u8 = 1;
const HAS_VARIANCE: u8 = 1;
const ALWAYS_STALE: u8 = 2;
const HAS_CASE: u8 = 4;
const HAS_REASON: u8 = 8;
/// These two are in memory only: what has them is not written to disk.
const SHARED_FAILURE: u8 = 16;
const IS_COPY: u8 = 32;
const HAS_TRAILERS: u8 = 64;
/// Where variance or marks begin.
const FIXED: usize = 49;

/// Names that most responses have, as they are written in HTTP/1. Their numbers are on disks: only ever append.
const KNOWN: [&str; 40] = [
    "Date",
    "Content-Type",
    "Content-Length",
    "Cache-Control",
    "ETag",
    "Last-Modified",
    "Vary",
    "Server",
    "Age",
    "Expires",
    "Content-Encoding",
    "Content-Language",
    "Content-Location",
    "Content-Disposition",
    "Content-Security-Policy",
    "Content-Range",
    "Accept-Ranges",
    "Access-Control-Allow-Origin",
    "Access-Control-Allow-Methods",
    "Access-Control-Allow-Headers",
    "Access-Control-Allow-Credentials",
    "Access-Control-Expose-Headers",
    "Access-Control-Max-Age",
    "Alt-Svc",
    "Link",
    "Location",
    "Permissions-Policy",
    "Pragma",
    "Referrer-Policy",
    "Server-Timing",
    "Set-Cookie",
    "Strict-Transport-Security",
    "Surrogate-Control",
    "Surrogate-Key",
    "Timing-Allow-Origin",
    "Via",
    "X-Content-Type-Options",
    "X-Frame-Options",
    "X-Powered-By",
    "X-XSS-Protection",
];
const IS_KNOWN: u16 = 0x8000;
const IS_LOWER: u16 = 0x4000;

impl StoredMeta {
    /// As bytes; `None` when the header is larger than any that Pingora reads.
    pub(crate) fn encode(&self) -> Option<Bytes> {
        let mut out = Vec::with_capacity(512);
        self.encode_into(&mut out)?;
        Some(out.into())
    }

    /// The same after what `out` holds.
    pub(super) fn encode_into(&self, out: &mut Vec<u8>) -> Option<()> {
        let header = &self.header;
        let reason = header.get_reason_phrase().filter(|reason| Some(*reason) != header.status.canonical_reason());
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let flags = flag(self.variance.is_some(), HAS_VARIANCE)
            | flag(self.always_stale, ALWAYS_STALE)
            | flag(header.has_case(), HAS_CASE)
            | flag(reason.is_some(), HAS_REASON)
            | flag(self.is_shared_failure, SHARED_FAILURE)
            | flag(self.is_copy, IS_COPY)
            | flag(self.trailers.is_some(), HAS_TRAILERS);
        out.extend([VERSION, flags]);
        out.extend(header.status.as_u16().to_le_bytes());
        out.push(http_version(header.version));
        for time in [self.fresh_until, self.provenance, self.born] {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            out.extend(since.as_secs().to_le_bytes());
            out.extend(since.subsec_nanos().to_le_bytes());
        }
        out.extend(self.stale_while_revalidate.to_le_bytes());
        out.extend(self.stale_if_error.to_le_bytes());
        if let Some(variance) = self.variance {
            out.extend(variance);
        }
        out.extend(self.marks.epoch.to_le_bytes());
        out.extend(u16::try_from(self.marks.marks.len()).ok()?.to_le_bytes());
        for mark in self.marks.marks.iter() {
            out.extend(mark.get().to_le_bytes());
        }
        if let Some(reason) = reason {
            short(out, reason.as_bytes())?;
        }
        out.extend(u16::try_from(header.headers.len()).ok()?.to_le_bytes());
        let mut whole = Some(());
        let each = header.map(|name, value| {
            whole = whole.and_then(|()| {
                let (name, has_case) = match name {
                    HeaderNameVariant::Case(name) => (name.as_slice(), true),
                    HeaderNameVariant::Titled(name) => (name.as_bytes(), false),
                };
                match known(name, has_case) {
                    Some(number) => out.extend(number.to_le_bytes()),
                    None => short(out, name)?,
                }
                out.extend(u32::try_from(value.len()).ok()?.to_le_bytes());
                out.extend_from_slice(value.as_bytes());
                Some(())
            });
            Ok(())
        });
        each.ok()?;
        whole?;
        if let Some(trailers) = &self.trailers {
            out.extend(u16::try_from(trailers.len()).ok()?.to_le_bytes());
            for (name, value) in trailers.iter() {
                short(out, name.as_str().as_bytes())?;
                out.extend(u32::try_from(value.len()).ok()?.to_le_bytes());
                out.extend_from_slice(value.as_bytes());
            }
        }
        Some(())
    }

    /// What was [encoded](Self::encode); `None` when it was by another version.
    pub(crate) fn decode(bytes: &Bytes) -> Option<Self> {
        let mut words = Words::new(bytes);
        if words.u8()? != VERSION {
            return None;
        }
        let flags = words.u8()?;
        let status = StatusCode::from_u16(words.u16()?).ok()?;
        let version = of_http_version(words.u8()?)?;
        let mut time =
            || UNIX_EPOCH.checked_add(Duration::from_secs(words.u64()?) + Duration::from_nanos(words.u32()?.into()));
        let (fresh_until, provenance, born): (SystemTime, _, _) = (time()?, time()?, time()?);
        let (stale_while_revalidate, stale_if_error) = (words.u32()?, words.u32()?);
        let variance = if flags & HAS_VARIANCE != 0 { Some(words.bytes(16)?.try_into().ok()?) } else { None };
        let epoch = words.u64()?;
        let count = words.u16()?;
        let marks: Option<Arc<[Mark]>> = (0..count).map(|_| Mark::from_u64(words.u64()?)).collect();

        let reason = if flags & HAS_REASON != 0 { Some(text(&mut words)?) } else { None };
        let fields = words.u16()?;
        let size = Some(usize::from(fields));
        let mut header = match flags & HAS_CASE {
            0 => ResponseHeader::build_no_case(status, size),
            _ => ResponseHeader::build(status, size),
        }
        .ok()?;
        header.set_version(version);
        if reason.is_some() {
            header.set_reason_phrase(reason.as_deref()).ok()?;
        }
        for _ in 0..fields {
            let named = words.u16()?;
            let name = match named & IS_KNOWN {
                0 => words.bytes(named.into())?,
                _ => KNOWN.get(usize::from(named & !(IS_KNOWN | IS_LOWER)))?.as_bytes(),
            };
            let length = words.u32()? as usize;
            // The value is shared with the bytes it was read as.
            let value = http::HeaderValue::from_maybe_shared(bytes.slice_ref(words.bytes(length)?)).ok()?;
            match flags & HAS_CASE {
                0 => header.append_header(HeaderName::from_bytes(name).ok()?, value),
                _ => {
                    let mut name = String::from_utf8(name.to_vec()).ok()?;
                    if named & (IS_KNOWN | IS_LOWER) == IS_KNOWN | IS_LOWER {
                        name.make_ascii_lowercase();
                    }
                    header.append_header(name, value)
                }
            }
            .ok()?;
        }
        let trailers = if flags & HAS_TRAILERS != 0 { Some(Box::new(trailers(&mut words, bytes)?)) } else { None };
        Some(Self {
            fresh_until,
            provenance,
            born,
            stale_while_revalidate,
            stale_if_error,
            variance,
            always_stale: flags & ALWAYS_STALE != 0,
            is_shared_failure: flags & SHARED_FAILURE != 0,
            is_copy: flags & IS_COPY != 0,
            marks: Marks { epoch, marks: marks? },
            header,
            trailers,
        })
    }
}

fn trailers(words: &mut Words<'_>, bytes: &Bytes) -> Option<HeaderMap> {
    let mut trailers = HeaderMap::new();
    for _ in 0..words.u16()? {
        let length = words.u16()?;
        let name = HeaderName::from_bytes(words.bytes(length.into())?).ok()?;
        let length = words.u32()? as usize;
        let value = http::HeaderValue::from_maybe_shared(bytes.slice_ref(words.bytes(length)?)).ok()?;
        trailers.try_append(name, value).ok()?;
    }
    Some(trailers)
}

/// The marks of [encoded](StoredMeta::encode) metadata, without decoding the rest.
pub(super) fn marks(meta: &[u8]) -> Option<impl Iterator<Item = Mark> + '_> {
    let mut words = Words::new(meta);
    let flags = *words.bytes(FIXED)?.get(1)?;
    if flags & HAS_VARIANCE != 0 {
        words.bytes(16)?;
    }
    let _epoch = words.u64()?;
    let count = words.u16()?;
    Some((0..count).map_while(move |_| Mark::from_u64(words.u64()?)))
}

/// What stands for a known name, if it is one, written as it is known or in lower case where that `has_case`.
fn known(name: &[u8], has_case: bool) -> Option<u16> {
    let number = KNOWN.iter().position(|known| name.eq_ignore_ascii_case(known.as_bytes()))?;
    let case = match has_case {
        true if !name.iter().any(u8::is_ascii_uppercase) => IS_LOWER,
        true if name != KNOWN[number].as_bytes() => return None,
        _ => 0,
    };
    Some(IS_KNOWN | case | u16::try_from(number).ok()?)
}

fn short(out: &mut Vec<u8>, text: &[u8]) -> Option<()> {
    out.extend(u16::try_from(text.len()).ok().filter(|length| length & IS_KNOWN == 0)?.to_le_bytes());
    out.extend_from_slice(text);
    Some(())
}

fn text(words: &mut Words<'_>) -> Option<String> {
    let length = words.u16()?;
    String::from_utf8(words.bytes(length.into())?.to_vec()).ok()
}

fn http_version(version: Version) -> u8 {
    match version {
        Version::HTTP_09 => 9,
        Version::HTTP_10 => 10,
        Version::HTTP_2 => 20,
        Version::HTTP_3 => 30,
        _ => 11,
    }
}

fn of_http_version(byte: u8) -> Option<Version> {
    Some(match byte {
        9 => Version::HTTP_09,
        10 => Version::HTTP_10,
        11 => Version::HTTP_11,
        20 => Version::HTTP_2,
        30 => Version::HTTP_3,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use pingora_cache::CacheMeta;
    use proptest::prelude::*;

    use super::*;

    fn stored(header: ResponseHeader, marks: &[u64]) -> StoredMeta {
        let now = UNIX_EPOCH + Duration::new(1_800_000_000, 123_456_789);
        let mut meta = CacheMeta::new(now + Duration::from_secs(60), now, 5, 7, header);
        meta.set_variance([9; 16]);
        meta.set_epoch_override(now - Duration::from_secs(3));
        let marks = marks.iter().filter_map(|mark| Mark::from_u64(*mark)).collect();
        StoredMeta::of(&meta, &[], Marks { epoch: 42, marks }, false)
    }

    #[test]
    fn all_of_it_comes_back_as_it_was() {
        let mut header = ResponseHeader::build(203, None).expect("a header");
        header.set_reason_phrase(Some("Half Right")).expect("a phrase");
        header.set_version(Version::HTTP_2);
        for (name, value) in [
            ("ETag", "\"1\""),
            ("X-CaMeL", "1"),
            ("x-camel", "2"),
            ("X-Empty", ""),
            ("aGE", "7"),
            ("age", "8"),
            ("Age", "9"),
        ] {
            header.append_header(name, value).expect("a field");
        }
        header.append_header("X-Bytes", http::HeaderValue::from_bytes(b"\xe4\xff").expect("a value")).expect("a field");
        let mut stored = stored(header, &[1, u64::MAX]);
        let mut trailers = HeaderMap::new();
        for (name, value) in [("x-end", "1"), ("x-end", "2"), ("server-timing", "a;dur=1")] {
            trailers.append(name, http::HeaderValue::from_static(value));
        }
        stored.trailers = Some(Box::new(trailers));
        let back = StoredMeta::decode(&stored.encode().expect("encoded")).expect("decoded");
        assert_eq!(format!("{stored:?}"), format!("{back:?}"));
        let read: Vec<Mark> = marks(&stored.encode().expect("encoded")).expect("marks").collect();
        assert_eq!(read, *stored.marks.marks);
        let wire = |meta: &StoredMeta| {
            let mut wire = Vec::new();
            meta.header.header_to_h1_wire(&mut wire);
            String::from_utf8_lossy(&wire).into_owned()
        };
        assert_eq!(wire(&stored), wire(&back));
        assert!(
            wire(&back).contains("X-CaMeL: 1") && wire(&back).contains("aGE: 7\r\nage: 8\r\nAge: 9"),
            "as the origin wrote it"
        );
    }

    #[test]
    fn known_names_come_back_and_take_two_bytes() {
        let mut header = ResponseHeader::build_no_case(200, None).expect("a header");
        let empty = stored(header.clone(), &[]).encode().expect("encoded").len();
        for name in KNOWN {
            header.append_header(name, "").expect("a field");
        }
        let stored = stored(header, &[]);
        let bytes = stored.encode().expect("encoded");
        assert_eq!(bytes.len(), empty + KNOWN.len() * 6);
        assert_eq!(format!("{stored:?}"), format!("{:?}", StoredMeta::decode(&bytes).expect("decoded")));
    }

    /// As disks have them that were written before names had numbers.
    #[test]
    fn a_known_name_in_full_is_read() {
        let mut header = ResponseHeader::build_no_case(200, None).expect("a header");
        header.append_header("age", "7").expect("a field");
        let stored = stored(header, &[]);
        let mut bytes = stored.encode().expect("encoded").to_vec();
        let name = bytes.len() - "7".len() - 4 - 2;
        bytes.splice(name..name + 2, [3, 0, b'a', b'g', b'e']);
        assert_eq!(format!("{stored:?}"), format!("{:?}", StoredMeta::decode(&bytes.into()).expect("decoded")));
    }

    #[test]
    fn another_version_is_not_read() {
        let mut bytes =
            stored(ResponseHeader::build(200, None).expect("a header"), &[]).encode().expect("encoded").to_vec();
        bytes[0] += 1;
        assert!(StoredMeta::decode(&bytes.into()).is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 0usize..300) {
            let _ = StoredMeta::decode(&Bytes::from(bytes));
            let whole = stored(ResponseHeader::build(200, None).expect("a header"), &[3]).encode().expect("encoded");
            let _ = StoredMeta::decode(&whole.slice(..cut.min(whole.len())));
        }
    }
}
