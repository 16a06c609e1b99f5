//! What a stored body is in a content coding: kept beside the body, made of it, and gone with it.
//!
//! What is stored is what the origin sent. Who compresses it on its way out offers the result here, and finds it again with the next hit.
//! It weighs on the budget like the body. Whatever replaces, purges or evicts the object takes its encodings along; new metadata for the
//! same body (a 304) leaves them.

use std::sync::Arc;

use bytes::Bytes;

use super::MemoryTier;
use super::object::{Body, Object};
use super::reader::Reader;
use crate::key::Slot;

/// A complete object in memory, as far as encodings of its body go.
#[derive(Debug, Clone)]
pub struct StoredBody {
    tier: &'static MemoryTier,
    slot: Slot,
    object: Arc<Object>,
}

/// What is known of a body in a content coding.
#[derive(Debug, Clone)]
pub enum Encoded {
    /// This is it.
    Body(EncodedBody),
    /// It is not shorter than the body itself.
    NotShorter,
}

/// A body in a content coding.
#[derive(Debug, Clone)]
pub struct EncodedBody(Body);

/// The encodings of an object, each with the name of its coding.
pub(super) type Encodings = Arc<Vec<(&'static str, Encoded)>>;

/// How many encodings of one object are kept: as many as there are codings in use.
const ENCODINGS_MAX: usize = 3;

impl EncodedBody {
    /// Its length in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no encoding is empty")]
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// It, in shared pieces.
    pub fn chunks(&self) -> impl Iterator<Item = &Bytes> {
        self.0.chunks()
    }
}

impl StoredBody {
    /// The body that `reader` reads, if all of it is in memory.
    pub(crate) fn of(tier: &'static MemoryTier, reader: &Reader) -> Option<Self> {
        match reader {
            Reader::Complete(reader) => Some(Self { tier, slot: reader.slot, object: Arc::clone(&reader.object) }),
            Reader::Filling(_) | Reader::Disk(_) => None,
        }
    }

    /// The length of the body as it is stored.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "it is compared with other lengths only")]
    pub fn len(&self) -> u64 {
        self.object.body.len()
    }

    /// What is kept of it in this coding.
    #[must_use]
    pub fn encoded(&self, coding: &str) -> Option<&Encoded> {
        let kept = self.object.encodings()?;
        kept.iter().find(|(known, _)| *known == coding).map(|(_, encoded)| encoded)
    }

    /// Whether `chunk` is what is stored from `position` on: not bytes like those, but the stored ones. They stay where they are as long
    /// as this value lives, so that their place says which they are.
    #[must_use]
    pub fn holds(&self, position: u64, chunk: &Bytes) -> bool {
        chunk.is_empty()
            || self
                .object
                .body
                .chunk_at(position, u64::MAX)
                .is_some_and(|stored| stored.as_ptr() == chunk.as_ptr() && chunk.len() <= stored.len())
    }

    /// What is stored before `position`, in shared pieces.
    pub fn up_to(&self, position: u64) -> impl Iterator<Item = Bytes> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let chunk = self.object.body.chunk_at(at, position)?;
            at += chunk.len() as u64;
            Some(chunk)
        })
    }

    /// Keeps `encoded`, which is all of the body in `coding`, unless the object has been replaced meanwhile.
    pub fn keep(&self, coding: &'static str, encoded: Vec<Bytes>) {
        let length: u64 = encoded.iter().map(|chunk| chunk.len() as u64).sum();
        let encoded = match length < self.len() {
            true => Encoded::Body(EncodedBody(Body::new(encoded.into()))),
            false => Encoded::NotShorter,
        };
        self.tier.add_encoding(self.slot, self.object.generation(), (coding, encoded));
    }
}

/// These encodings and one more; `None` where it is there already, or there are enough.
pub(super) fn with(kept: Option<&Encodings>, added: (&'static str, Encoded)) -> Option<Encodings> {
    let mut all = kept.map_or_else(Vec::new, |kept| kept.to_vec());
    if all.len() >= ENCODINGS_MAX || all.iter().any(|(known, _)| *known == added.0) {
        return None;
    }
    all.push(added);
    Some(Arc::new(all))
}

/// What they cost of the byte budget.
pub(super) fn weight(kept: Option<&Encodings>) -> u64 {
    let each = |encoded: &Encoded| match encoded {
        Encoded::Body(body) => body.len(),
        Encoded::NotShorter => 0,
    };
    let entry = size_of::<(&'static str, Encoded)>() as u64;
    kept.map_or(0, |kept| kept.iter().map(|(_, encoded)| entry + each(encoded)).sum())
}
