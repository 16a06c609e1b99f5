//! The form in which header maps cross the boundary: a count, the lengths of each pair, then the names and values, each followed
//! by a NUL that its length leaves out. Numbers are 32 bits, little-endian.

/// Writes a map. A map too long for 32 bits cannot exist in a 32-bit memory.
pub(super) fn write(pairs: &[(&str, &[u8])]) -> Vec<u8> {
    let size = pairs.iter().map(|(name, value)| name.len() + value.len() + 10).sum::<usize>() + 4;
    let mut bytes = Vec::with_capacity(size);
    bytes.extend_from_slice(&length(pairs.len()));
    for (name, value) in pairs {
        bytes.extend_from_slice(&length(name.len()));
        bytes.extend_from_slice(&length(value.len()));
    }
    for (name, value) in pairs {
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(value);
        bytes.push(0);
    }
    bytes
}

/// Reads a map; `None` when it is cut short. Names that are not UTF-8 have what is not replaced.
pub(super) fn read(bytes: &[u8]) -> Option<Vec<(String, Vec<u8>)>> {
    if bytes.is_empty() {
        return Some(Vec::new());
    }

    let (count, mut lengths) = split_length(bytes)?;
    let mut text = lengths.get(count.checked_mul(8)?..)?;
    let mut pairs = Vec::with_capacity(count);
    for _ in 0..count {
        let (name_length, rest) = split_length(lengths)?;
        let (value_length, rest) = split_length(rest)?;
        lengths = rest;

        let (name, rest) = split_text(text, name_length)?;
        let (value, rest) = split_text(rest, value_length)?;
        text = rest;
        pairs.push((String::from_utf8_lossy(name).into_owned(), value.to_vec()));
    }
    Some(pairs)
}

fn length(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes()
}

fn split_length(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<4>()?;
    Some((usize::try_from(u32::from_le_bytes(*head)).ok()?, rest))
}

fn split_text(bytes: &[u8], length: usize) -> Option<(&[u8], &[u8])> {
    let (text, rest) = bytes.split_at_checked(length)?;
    Some((text, rest.strip_prefix(b"\0")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: &[u8] =
        &[2, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, b'a', 0, b'1', 0, b'b', 0, 0xff, b'2', 0];

    #[test]
    fn writes_the_bytes_of_the_abi() {
        assert_eq!(write(&[("a", b"1"), ("b", b"\xff2")]), MAP);
        assert_eq!(write(&[]), [0, 0, 0, 0]);
    }

    #[test]
    fn reads_what_it_writes() {
        assert_eq!(read(MAP), Some(vec![("a".into(), b"1".to_vec()), ("b".into(), b"\xff2".to_vec())]));
        assert_eq!(read(&[]), Some(Vec::new()));
        assert_eq!(read(&[0, 0, 0, 0]), Some(Vec::new()));
    }

    #[test]
    fn a_map_that_is_cut_short_is_refused() {
        for end in 1..MAP.len() {
            assert_eq!(read(&MAP[..end]), None, "{end} bytes");
        }
        assert_eq!(read(&[0xff; 16]), None);
    }
}
