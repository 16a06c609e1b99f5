//! The records of a segment, byte for byte.
//!
//! ```text
//!  0      4   5   6     8           24          40           48       52       56       60      64
//!  | magic | v | k | 0  |  key      |  family   | generation | number | length | body's | this  |  payload ..., zeros up to
//!  |       |   |   |    |           |           |            |        |        | crc    | crc   |  a multiple of 64
//! ```
//! All numbers are little-endian. The header's checksum begins with the segment's salt, which nobody outside knows: bytes of a body can
//! never pass for a record, nor can what an earlier segment has left on the same blocks.

use super::index::Entry;

/// Bytes of a record's header, and what records are aligned to.
pub(crate) const HEADER: usize = 64;
const MAGIC: [u8; 4] = *b"Slv1";
const VERSION: u8 = 1;
/// Bytes of one entry of a footer.
pub(crate) const FOOTER_ENTRY: usize = 32;
/// Bytes of one place in a chunk map.
pub(crate) const PLACE: usize = 12;
/// Bytes before the chunk map of a meta record.
const META_FIXED: usize = 16;

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// The first of a segment. `number` is the segment's, the payload its salt.
    Head = 1,
    /// A piece of a body; `number` counts from 0.
    Chunk = 2,
    /// An object: where its chunks are, its metadata, and a small body itself. `number` says until when it is of use. Written last, it
    /// makes the object exist.
    Meta = 3,
    /// The object of `key` and `family` is gone.
    RemovedKey = 4,
    /// All objects of `family` are gone.
    RemovedFamily = 5,
    /// All objects are gone.
    RemovedAll = 6,
    /// Everything before offset `number` (in units of [`HEADER`]) was durable when this was written.
    Synced = 7,
    /// The records of the segment, as entries.
    Footer = 8,
    /// The end of a sealed segment: `number` is where the footer is (in units of [`HEADER`]).
    Trailer = 9,
}

impl Kind {
    pub(crate) fn of(byte: u8) -> Option<Self> {
        const ALL: [Kind; 9] = [
            Kind::Head,
            Kind::Chunk,
            Kind::Meta,
            Kind::RemovedKey,
            Kind::RemovedFamily,
            Kind::RemovedAll,
            Kind::Synced,
            Kind::Footer,
            Kind::Trailer,
        ];
        ALL.get(usize::from(byte).checked_sub(1)?).copied()
    }
}

/// A record's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) key: u128,
    pub(crate) family: u128,
    pub(crate) generation: u64,
    pub(crate) number: u32,
    pub(crate) length: u32,
    pub(crate) body_crc: u32,
}

impl Header {
    /// A header of a record without payload.
    pub(crate) fn of(kind: Kind) -> Self {
        Self { kind, key: 0, family: 0, generation: 0, number: 0, length: 0, body_crc: 0 }
    }

    pub(crate) fn encode(&self, salt: u64) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = VERSION;
        bytes[5] = self.kind as u8;
        bytes[8..24].copy_from_slice(&self.key.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.family.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.generation.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.number.to_le_bytes());
        bytes[52..56].copy_from_slice(&self.length.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.body_crc.to_le_bytes());
        let crc = header_crc(&bytes, salt);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header, if these bytes are one written with this salt.
    pub(crate) fn decode(bytes: &[u8], salt: u64) -> Option<Self> {
        if bytes.len() < HEADER || bytes[..4] != MAGIC || bytes[4] != VERSION {
            return None;
        }
        let mut words = Words(&bytes[8..HEADER]);
        let header = Self {
            kind: Kind::of(bytes[5])?,
            key: words.u128()?,
            family: words.u128()?,
            generation: words.u64()?,
            number: words.u32()?,
            length: words.u32()?,
            body_crc: words.u32()?,
        };
        (words.u32()? == header_crc(bytes, salt)).then_some(header)
    }

    /// What the record takes in the segment.
    pub(crate) fn room(&self) -> u64 {
        room(self.length as usize)
    }
}

/// What a record with a payload of `length` bytes takes in a segment.
pub(crate) fn room(length: usize) -> u64 {
    (HEADER + length).next_multiple_of(HEADER) as u64
}

fn header_crc(bytes: &[u8], salt: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_le_bytes());
    hasher.update(&bytes[..HEADER - 4]);
    hasher.finalize()
}

/// The checksum of a payload in pieces.
pub(crate) fn body_crc<'b>(pieces: impl IntoIterator<Item = &'b [u8]>) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    pieces.into_iter().for_each(|piece| hasher.update(piece));
    hasher.finalize()
}

/// A whole record: its header and payload, if both are what was written.
pub(crate) fn verify(record: &[u8], salt: u64) -> Option<(Header, &[u8])> {
    let header = Header::decode(record, salt)?;
    let payload = record.get(HEADER..HEADER + header.length as usize)?;
    (crc32fast::hash(payload) == header.body_crc).then_some((header, payload))
}

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) segment: u32,
    /// In units of [`HEADER`].
    pub(crate) offset: u32,
    /// Of the payload, in bytes.
    pub(crate) length: u32,
}

/// The payload of a meta record, but for the metadata and the inline body that follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MetaHead {
    /// Of the whole body.
    pub(crate) body: u64,
    /// Of the metadata.
    pub(crate) meta: u32,
    /// Where the body is; empty when it follows the metadata.
    pub(crate) chunks: Vec<Place>,
}

impl MetaHead {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(META_FIXED + self.chunks.len() * PLACE);
        bytes.extend(self.body.to_le_bytes());
        bytes.extend(self.meta.to_le_bytes());
        bytes.extend(u32::try_from(self.chunks.len()).unwrap_or(u32::MAX).to_le_bytes());
        for place in &self.chunks {
            bytes.extend(place.segment.to_le_bytes());
            bytes.extend(place.offset.to_le_bytes());
            bytes.extend(place.length.to_le_bytes());
        }
        bytes
    }

    /// The head, and where in the payload the metadata begins.
    pub(crate) fn decode(payload: &[u8]) -> Option<(Self, usize)> {
        let mut words = Words(payload);
        let (body, meta, count) = (words.u64()?, words.u32()?, words.u32()? as usize);
        let start = META_FIXED + count.checked_mul(PLACE)?;
        if payload.len() < start.checked_add(meta as usize)? {
            return None;
        }
        let mut chunks = Vec::with_capacity(count);
        for _ in 0..count {
            chunks.push(Place { segment: words.u32()?, offset: words.u32()?, length: words.u32()? });
        }
        Some((Self { body, meta, chunks }, start))
    }
}

/// What a footer, or a scan, says of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) kind: Kind,
    /// Where it is, whose it is, and how long it is of use.
    pub(crate) entry: Entry,
}

/// The payload of a footer.
pub(crate) fn encode_footer(listed: &[Listed]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(listed.len() * FOOTER_ENTRY);
    for Listed { kind, entry } in listed {
        bytes.extend(entry.family.to_le_bytes());
        bytes.extend(entry.variant.to_le_bytes());
        bytes.extend(entry.generation.to_le_bytes());
        bytes.extend(entry.offset.to_le_bytes());
        bytes.extend(entry.length().to_le_bytes());
        bytes.extend(entry.expires.to_le_bytes());
        bytes.extend([*kind as u8, 0, 0, 0]);
    }
    bytes
}

/// A footer, as it was read.
#[derive(Debug)]
pub(crate) struct Footer {
    /// The record, with its header.
    record: Vec<u8>,
    /// Where the payload ends.
    end: usize,
    segment: u32,
}

impl Footer {
    /// The footer of `segment` in a record that has been checked, with a payload of `length` bytes; `None` when another version wrote it.
    pub(crate) fn of(record: Vec<u8>, length: usize, segment: u32) -> Option<Self> {
        let (entries, rest) = record.get(HEADER..HEADER.checked_add(length)?)?.as_chunks();
        let known = rest.is_empty() && entries.iter().all(|bytes| listed(bytes, segment).is_some());
        known.then(|| Self { end: HEADER + length, record, segment })
    }

    /// What it lists, in the order it was written in.
    pub(crate) fn records(&self) -> impl Iterator<Item = Listed> + '_ {
        let (entries, _) = self.record[HEADER..self.end].as_chunks();
        entries.iter().filter_map(|bytes| listed(bytes, self.segment))
    }
}

fn listed(bytes: &[u8; FOOTER_ENTRY], segment: u32) -> Option<Listed> {
    let mut words = Words(bytes);
    let (family, variant, generation) = (words.u64()?, words.u32()?, words.u32()?);
    let (offset, length, expires) = (words.u32()?, words.u32()?, words.u32()?);
    let kind = Kind::of(u8::try_from(words.u32()?).ok()?)?;
    Some(Listed { kind, entry: Entry::new(family, variant, generation, segment, offset, length, expires) })
}

/// Reads numbers off the front.
pub(crate) struct Words<'b>(pub(crate) &'b [u8]);

impl<'b> Words<'b> {
    pub(crate) fn new(bytes: &'b [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Option<&'b [u8]> {
        let (front, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(front)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        Some(self.bytes(1)?[0])
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.bytes(2)?.try_into().ok()?))
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.bytes(4)?.try_into().ok()?))
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes(8)?.try_into().ok()?))
    }

    pub(crate) fn u128(&mut self) -> Option<u128> {
        Some(u128::from_le_bytes(self.bytes(16)?.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_header_comes_back_and_only_with_its_salt(
            key: u128, family: u128, generation: u64, number: u32, length: u32, body_crc: u32, kind in 1u8..=9, salt: u64,
        ) {
            let kind = Kind::of(kind).expect("a kind");
            let header = Header { kind, key, family, generation, number, length, body_crc };
            let bytes = header.encode(salt);
            prop_assert_eq!(Header::decode(&bytes, salt), Some(header));
            prop_assert_eq!(Header::decode(&bytes, !salt), None);
        }

        #[test]
        fn arbitrary_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Header::decode(&bytes, 0);
            let _ = MetaHead::decode(&bytes);
            let length = bytes.len().saturating_sub(HEADER);
            let _ = Footer::of(bytes, length, 1);
        }
    }

    #[test]
    fn every_flipped_bit_of_a_header_shows() {
        let header =
            Header { key: 1, family: 2, generation: 3, number: 4, length: 5, body_crc: 6, ..Header::of(Kind::Meta) };
        let good = header.encode(7);
        for bit in 0..HEADER * 8 {
            // Two bytes are kept for later, and are covered by the checksum all the same.
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&bad, 7), None, "bit {bit}");
        }
    }

    #[test]
    fn footers_and_chunk_maps_come_back() {
        let entry = Entry::new(1, 2, 3, 9, 5, 6, 7);
        let listed = [Listed { kind: Kind::Meta, entry }, Listed { kind: Kind::RemovedAll, entry }];
        let payload = encode_footer(&listed);
        let footer = |payload: &[u8]| Footer::of([&[0; HEADER], payload, &[0; 7]].concat(), payload.len(), 9);
        let read: Vec<Listed> = footer(&payload).expect("a footer").records().collect();
        assert_eq!(read, listed);
        let (mut unknown, cut) = (payload.clone(), &payload[1..]);
        unknown[FOOTER_ENTRY - 4] = 99;
        assert!(footer(&unknown).is_none() && footer(cut).is_none(), "another version's");

        let head = MetaHead { body: 1 << 33, meta: 2, chunks: vec![Place { segment: 1, offset: 2, length: 3 }; 3] };
        let mut payload = head.encode();
        let start = payload.len();
        assert_eq!(MetaHead::decode(&payload), None, "the metadata is missing");
        payload.extend([0; 2]);
        assert_eq!(MetaHead::decode(&payload), Some((head, start)));
    }
}
