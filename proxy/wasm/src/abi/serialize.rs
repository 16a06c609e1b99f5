//! Header maps and property paths on the wire, byte-exact.
//!
//! A map is `u32le count`, then for each pair `u32le name length, u32le value length`, then for each pair the name, a NUL, the value, a
//! NUL. Lengths do not count the NULs; values may contain NULs. An empty map is zero bytes.

use crate::limits::{MAX_HEADER_BYTES, MAX_HEADER_PAIRS, MAX_PROPERTY_SEGMENTS};

/// Why bytes from a guest are not a header map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// More than 1 MiB, or more than 1024 pairs.
    #[error("header map larger than 1024 pairs or 1 MiB")]
    TooLarge,
    /// A length points past the end.
    #[error("header map ends before its lengths say")]
    Truncated,
}

/// A name and a value, borrowed from the bytes they were read from.
pub type Pair<'a> = (&'a [u8], &'a [u8]);

/// Serializes pairs, as a guest gets them: for `Exchange::property` values that are maps.
///
/// Lists are maps with empty values. No pairs give zero bytes.
#[must_use]
pub fn encode_pairs<N: AsRef<[u8]>, V: AsRef<[u8]>>(pairs: &[(N, V)]) -> Vec<u8> {
    encode_visited(|visit| pairs.iter().for_each(|(name, value)| visit(name.as_ref(), value.as_ref())))
}

/// [`encode_pairs`] for pairs that are visited rather than held: `each` is called twice and must show the same pairs both times. Only the
/// result is allocated.
#[must_use]
pub fn encode_visited(each: impl Fn(&mut dyn FnMut(&[u8], &[u8]))) -> Vec<u8> {
    let mut size = MapSize::default();
    each(&mut |name, value| size.add(name, value));
    let mut bytes = vec![0; size.bytes()];
    let mut writer = MapWriter::new(&mut bytes, size);
    each(&mut |name, value| writer.put(name, value));
    bytes
}

/// Reads a map that a guest serialized. Zero bytes, or one NUL, are an empty map; a missing last NUL is forgiven (old AssemblyScript
/// SDKs leave it out).
///
/// # Errors
/// [`DecodeError::TooLarge`] beyond 1024 pairs or 1 MiB, [`DecodeError::Truncated`] when a length points past the end.
pub fn decode_pairs(bytes: &[u8]) -> Result<Vec<Pair<'_>>, DecodeError> {
    if bytes.is_empty() || bytes == [0] {
        return Ok(Vec::new());
    }
    if bytes.len() > MAX_HEADER_BYTES {
        return Err(DecodeError::TooLarge);
    }
    let (count, rest) = split_u32(bytes)?;
    if count > MAX_HEADER_PAIRS {
        return Err(DecodeError::TooLarge);
    }

    let (mut lengths, mut data) = rest.split_at_checked(count * 8).ok_or(DecodeError::Truncated)?;
    let mut pairs = Vec::with_capacity(count);
    for _ in 0..count {
        let (name_len, after) = split_u32(lengths)?;
        let (value_len, after) = split_u32(after)?;
        lengths = after;
        let name = take_terminated(&mut data, name_len)?;
        let value = take_terminated(&mut data, value_len)?;
        pairs.push((name, value));
    }
    Ok(pairs)
}

/// The segments of a property path: joined by NUL, one trailing NUL forgiven (the C++ SDK adds it). `None` when it is not UTF-8 or
/// deeper than any property.
pub(crate) fn decode_path(bytes: &[u8]) -> Option<Path<'_>> {
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).ok()?;
    Path::collect(text.split('\0'))
}

/// A property path without an allocation.
pub(crate) struct Path<'a> {
    segments: [&'a str; MAX_PROPERTY_SEGMENTS],
    len: usize,
}

impl<'a> Path<'a> {
    /// `None` when there are too many.
    pub(crate) fn collect(segments: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut path = Self { segments: [""; MAX_PROPERTY_SEGMENTS], len: 0 };
        for segment in segments {
            *path.segments.get_mut(path.len)? = segment;
            path.len += 1;
        }
        Some(path)
    }

    pub(crate) fn segments(&self) -> &[&'a str] {
        &self.segments[..self.len]
    }
}

/// How large a map will be; the first of the two passes over it.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct MapSize {
    count: usize,
    data: usize,
}

impl MapSize {
    pub(crate) fn add(&mut self, name: &[u8], value: &[u8]) {
        self.count += 1;
        self.data += name.len() + value.len() + 2;
    }

    /// Bytes of the serialized map; 0 when it has no pairs.
    pub(crate) fn bytes(self) -> usize {
        if self.count == 0 { 0 } else { 4 + 8 * self.count + self.data }
    }
}

/// Writes a map into a buffer of [`MapSize::bytes`]; the second pass. Pairs that the first pass did not announce are dropped, so a map
/// that changes its mind between the passes can spoil the map but never the memory around it.
#[derive(Debug)]
pub(crate) struct MapWriter<'a> {
    lengths: &'a mut [u8],
    data: &'a mut [u8],
}

impl<'a> MapWriter<'a> {
    pub(crate) fn new(buffer: &'a mut [u8], size: MapSize) -> Self {
        let Some((count, rest)) = buffer.split_first_chunk_mut::<4>() else {
            return Self { lengths: &mut [], data: &mut [] };
        };
        *count = le(size.count);
        match rest.split_at_mut_checked(8 * size.count) {
            Some((lengths, data)) => Self { lengths, data },
            None => Self { lengths: &mut [], data: &mut [] },
        }
    }

    pub(crate) fn put(&mut self, name: &[u8], value: &[u8]) {
        let needed = name.len() + value.len() + 2;
        if self.lengths.len() < 8 || self.data.len() < needed {
            return;
        }
        let (length, lengths) = std::mem::take(&mut self.lengths).split_at_mut(8);
        length[..4].copy_from_slice(&le(name.len()));
        length[4..].copy_from_slice(&le(value.len()));
        self.lengths = lengths;

        let (pair, data) = std::mem::take(&mut self.data).split_at_mut(needed);
        pair[..name.len()].copy_from_slice(name);
        pair[name.len()] = 0;
        pair[name.len() + 1..needed - 1].copy_from_slice(value);
        pair[needed - 1] = 0;
        self.data = data;
    }
}

fn le(number: usize) -> [u8; 4] {
    u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes()
}

fn split_u32(bytes: &[u8]) -> Result<(usize, &[u8]), DecodeError> {
    let (number, rest) = bytes.split_first_chunk::<4>().ok_or(DecodeError::Truncated)?;
    let number = usize::try_from(u32::from_le_bytes(*number)).map_err(|_| DecodeError::TooLarge)?;
    Ok((number, rest))
}

/// `len` bytes and their NUL, which may be missing at the very end.
fn take_terminated<'a>(data: &mut &'a [u8], len: usize) -> Result<&'a [u8], DecodeError> {
    let (bytes, rest) = data.split_at_checked(len).ok_or(DecodeError::Truncated)?;
    *data = rest.get(1..).unwrap_or_default();
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The ABI's example map {"a": "1", "b": "22"}, with the lengths right.
    const EXAMPLE: &[u8] = &[
        2, 0, 0, 0, // two pairs
        1, 0, 0, 0, 1, 0, 0, 0, // "a", "1"
        1, 0, 0, 0, 2, 0, 0, 0, // "b", "22"
        b'a', 0, b'1', 0, b'b', 0, b'2', b'2', 0,
    ];

    #[test]
    fn the_example_map_is_byte_exact_both_ways() {
        assert_eq!(encode_pairs(&[("a", "1"), ("b", "22")]), EXAMPLE);
        assert_eq!(decode_pairs(EXAMPLE), Ok(vec![(&b"a"[..], &b"1"[..]), (b"b", b"22")]));
    }

    #[test]
    fn an_empty_map_is_zero_bytes_and_one_nul_is_one_too() {
        assert_eq!(encode_pairs::<&str, &str>(&[]), b"");
        assert_eq!(decode_pairs(b""), Ok(vec![]));
        assert_eq!(decode_pairs(&[0]), Ok(vec![]));
        assert_eq!(decode_pairs(&[0, 0, 0, 0]), Ok(vec![]));
    }

    #[test]
    fn a_missing_last_nul_is_forgiven() {
        assert_eq!(decode_pairs(&EXAMPLE[..EXAMPLE.len() - 1]), decode_pairs(EXAMPLE));
    }

    #[test]
    fn hostile_maps_are_refused() {
        let cases: &[(&str, &[u8], DecodeError)] = &[
            ("three bytes", &[1, 0, 0], DecodeError::Truncated),
            ("count without lengths", &[1, 0, 0, 0], DecodeError::Truncated),
            ("count of u32::MAX", &[255, 255, 255, 255], DecodeError::TooLarge),
            ("1025 pairs", &1025u32.to_le_bytes(), DecodeError::TooLarge),
            ("name past the end", &[1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, b'a', 0, 0], DecodeError::Truncated),
            ("value of u32::MAX", &[1, 0, 0, 0, 1, 0, 0, 0, 255, 255, 255, 255, b'a', 0, 0], DecodeError::Truncated),
        ];
        for (name, bytes, error) in cases {
            assert_eq!(decode_pairs(bytes), Err(*error), "{name}");
        }
        assert_eq!(decode_pairs(&vec![1; MAX_HEADER_BYTES + 1]), Err(DecodeError::TooLarge));
    }

    #[test]
    fn paths_split_at_nul_and_forgive_one_at_the_end() {
        for path in [&b"request\0headers\0host"[..], b"request\0headers\0host\0"] {
            assert_eq!(decode_path(path).unwrap().segments(), ["request", "headers", "host"]);
        }
        assert_eq!(decode_path(b"").unwrap().segments(), [""]);
        assert!(decode_path(&[0xff]).is_none());
        assert!(decode_path(&[0; 40]).is_none());
    }

    #[test]
    fn a_map_that_grows_between_the_passes_stays_in_its_buffer() {
        let mut size = MapSize::default();
        size.add(b"a", b"1");
        let mut buffer = vec![0; size.bytes()];
        let mut writer = MapWriter::new(&mut buffer, size);
        writer.put(b"a", b"12");
        writer.put(b"a", b"1");
        writer.put(b"b", b"2");
        assert_eq!(decode_pairs(&buffer), Ok(vec![(&b"a"[..], &b"1"[..])]));
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_the_same(
            pairs in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..30), proptest::collection::vec(any::<u8>(), 0..30)), 0..40)
        ) {
            let bytes = encode_pairs(&pairs);
            let decoded: Vec<_> = decode_pairs(&bytes).unwrap().into_iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
            prop_assert_eq!(decoded, pairs);
        }

        #[test]
        fn the_decoder_never_reads_past_the_end(bytes in proptest::collection::vec(any::<u8>(), 0..200), count in 0u8..5) {
            let _ = decode_pairs(&bytes);
            let small = [&[count, 0, 0, 0], &bytes[..]].concat();
            if let Ok(pairs) = decode_pairs(&small) {
                prop_assert_eq!(pairs.len(), usize::from(count));
                prop_assert!(pairs.iter().map(|(n, v)| n.len() + v.len()).sum::<usize>() <= small.len());
            }
        }
    }
}
