//! A complete object as it is handed out: decoded metadata, and the body in shared chunks.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName};
use pingora_cache::CacheMeta;
use pingora_cache::key::HashBinary;
use pingora_http::ResponseHeader;

use super::encoded::Encodings;
use super::fill::Chunks;
use super::packed::Packed;
use crate::purge::Marks;

/// Stored bodies come in chunks of up to this size: small ones from the origin are joined, once, when the fill is complete. A hit then
/// costs few writes, and the bytes of the origin's read buffers are not held on to.
const CHUNK: usize = 256 << 10;
const CHUNK_OVERHEAD: u64 = 96;

/// What a decoded object adds to the packed one besides its header's text: the struct, moka's entry for it, the header map's own memory.
const DECODED: usize = 960;
/// The same for each field; twice as much where the names are kept as the origin wrote them.
const DECODED_FIELD: usize = 150;

/// Marks an object that has no copy on disk, and gets none.
pub(crate) const NOT_ON_DISK: u64 = u64::MAX;

/// One stored response, to be handed out.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) meta: StoredMeta,
    pub(crate) body: Body,
    pub(crate) primary: u128,
    /// What it was decoded from, and shares its bytes with.
    pub(super) packed: Packed,
}

impl Object {
    /// Tells this object from others at the same slot before and after.
    pub(crate) fn generation(&self) -> u64 {
        self.packed.generation()
    }

    /// The generation of its copy on disk; 0 without one, [`NOT_ON_DISK`] when it is not to have one.
    pub(crate) fn on_disk(&self) -> &AtomicU64 {
        self.packed.on_disk()
    }

    /// The same, if it has such a copy.
    pub(super) fn disk_copy(&self) -> Option<u64> {
        self.packed.disk_copy()
    }

    /// The body in content codings, as far as somebody has asked for it so.
    pub(super) fn encodings(&self) -> Option<&Encodings> {
        self.packed.encodings()
    }

    /// What this costs of the byte budget beside the packed object.
    pub(super) fn decoded_weight(&self) -> u32 {
        let each = if self.meta.header.has_case() { 2 * DECODED_FIELD } else { DECODED_FIELD };
        let fields = self.meta.header.headers.iter();
        let header: usize = fields.map(|(name, value)| name.as_str().len() + value.len() + each).sum();
        u32::try_from(DECODED + header + size_of_val(&*self.meta.marks.marks)).unwrap_or(u32::MAX)
    }
}

/// What `CacheMeta` holds, in a form that can be shared and cloned.
#[derive(Debug, Clone)]
pub(crate) struct StoredMeta {
    pub(crate) fresh_until: SystemTime,
    /// Since when this object's line counts, whatever was fetched anew since. Pingora rejects variants admitted before their primary's
    /// provenance; as it offers no way to set that, it is given back as the time of creation, which is compared nowhere else.
    pub(super) provenance: SystemTime,
    pub(super) born: SystemTime,
    pub(super) stale_while_revalidate: u32,
    pub(super) stale_if_error: u32,
    pub(crate) variance: Option<HashBinary>,
    pub(crate) always_stale: bool,
    /// The origin's failure, as the answer to those who waited for it; nobody else gets it, and it is not worth keeping.
    pub(crate) is_shared_failure: bool,
    /// Another node owns it: it is kept briefly, in memory.
    pub(crate) is_copy: bool,
    /// What purges reach it by.
    pub(crate) marks: Marks,
    pub(super) header: ResponseHeader,
    /// What comes after the body, where something does.
    pub(crate) trailers: Option<Box<HeaderMap>>,
}

impl StoredMeta {
    /// Take over `meta`, without the `withheld` fields.
    pub(crate) fn of(meta: &CacheMeta, withheld: &[HeaderName], marks: Marks, is_shared_failure: bool) -> Self {
        let mut header = meta.response_header_copy();
        for name in withheld {
            header.remove_header(name);
        }
        Self {
            fresh_until: meta.fresh_until(),
            provenance: meta.provenance(),
            born: meta.epoch(),
            stale_while_revalidate: meta.stale_while_revalidate_sec(),
            stale_if_error: meta.stale_if_error_sec(),
            variance: meta.variance(),
            always_stale: meta.fresh_until() < meta.updated(),
            is_shared_failure,
            is_copy: false,
            marks,
            header: lean(header),
            trailers: None,
        }
    }

    /// Give back what [`of`](Self::of) took.
    pub(crate) fn to_cache_meta(&self) -> CacheMeta {
        let mut meta = CacheMeta::new(
            self.fresh_until,
            self.provenance,
            self.stale_while_revalidate,
            self.stale_if_error,
            self.header.clone(),
        );
        meta.set_epoch_override(self.born);
        if let Some(variance) = self.variance {
            meta.set_variance(variance);
        }
        meta
    }

    /// Until when it is of use without asking the origin: fresh, or stale within a window. In seconds since 1970.
    pub(crate) fn of_use_until(&self) -> u32 {
        let window = Duration::from_secs(self.stale_while_revalidate.max(self.stale_if_error).into());
        let until = self.fresh_until.checked_add(window).unwrap_or(self.fresh_until);
        let since = until.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
    }

    /// The length the header promises for the body, if it does.
    pub(crate) fn promised_length(&self) -> Option<u64> {
        self.header.headers.get(http::header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
    }
}

/// Without the map of names as the origin wrote them, where it wrote them as they are written without it: it costs a hit as much as the
/// fields themselves, in memory and in time.
fn lean(header: ResponseHeader) -> ResponseHeader {
    if !header.has_case() || header.get_reason_phrase() != header.status.canonical_reason() {
        return header;
    }
    let plain = ResponseHeader::from(header.as_owned_parts());
    let wire = |header: &ResponseHeader| {
        let mut wire = Vec::with_capacity(1024);
        header.header_to_h1_wire(&mut wire);
        wire
    };
    if wire(&plain) == wire(&header) { plain } else { header }
}

/// The bytes of a body. Cloned, they are shared.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    /// At most one chunk, as most bodies are.
    One(Bytes),
    /// Several, each with where it ends.
    Many(Arc<[(u64, Bytes)]>),
}

impl Body {
    /// Join small neighbours, keep large chunks as they are.
    pub(crate) fn new(received: Chunks) -> Self {
        let mut chunks: Vec<Bytes> = Vec::new();
        let mut joined = BytesMut::new();
        for chunk in received {
            if chunk.len() >= CHUNK / 2 && joined.is_empty() {
                chunks.push(chunk);
                continue;
            }
            joined.extend_from_slice(&chunk);
            if joined.len() >= CHUNK {
                chunks.push(exact(&mut joined));
            }
        }
        if !joined.is_empty() {
            chunks.push(exact(&mut joined));
        }
        if chunks.len() < 2 {
            return Self::One(chunks.pop().unwrap_or_default());
        }

        let mut end = 0;
        let with_ends = chunks.into_iter().map(|chunk| {
            end += chunk.len() as u64;
            (end, chunk)
        });
        Self::Many(with_ends.collect())
    }

    /// The chunks, to be written elsewhere as well.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = &Bytes> {
        let (one, many) = match self {
            Self::One(chunk) => (Some(chunk), &[][..]),
            Self::Many(chunks) => (None, &chunks[..]),
        };
        one.into_iter().chain(many.iter().map(|(_, chunk)| chunk))
    }

    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::One(chunk) => chunk.len() as u64,
            Self::Many(chunks) => chunks.last().map_or(0, |(end, _)| *end),
        }
    }

    /// What the chunks take beside their bytes: each one's handle, and its counts.
    pub(super) fn overhead(&self) -> u64 {
        self.chunks().count() as u64 * CHUNK_OVERHEAD
    }

    /// What is stored from `position` on, within one chunk and before `end`; `None` at the end.
    pub(crate) fn chunk_at(&self, position: u64, end: u64) -> Option<Bytes> {
        if position >= end {
            return None;
        }
        match self {
            Self::One(chunk) => Some(cut(chunk, 0, position, end)),
            Self::Many(chunks) => {
                let index = chunks.partition_point(|(chunk_end, _)| *chunk_end <= position);
                let (chunk_end, chunk) = chunks.get(index)?;
                Some(cut(chunk, chunk_end - chunk.len() as u64, position, end))
            }
        }
    }
}

/// The part of `chunk`, which begins at `start`, that lies between `position` and `end`.
pub(crate) fn cut(chunk: &Bytes, start: u64, position: u64, end: u64) -> Bytes {
    let within = |offset: u64| usize::try_from(offset - start).unwrap_or(usize::MAX).min(chunk.len());
    let range = within(position)..within(end);
    if range.len() == chunk.len() { chunk.clone() } else { chunk.slice(range) }
}

/// A copy without spare capacity, so that the weight is what the memory costs.
fn exact(joined: &mut BytesMut) -> Bytes {
    let chunk = Bytes::copy_from_slice(joined);
    joined.clear();
    chunk
}
