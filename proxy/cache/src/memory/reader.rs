//! Reads what is stored, or on its way in, as Pingora asks for it.

use std::any::Any;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderMap;
use pingora_cache::storage::HandleHit;
use pingora_cache::trace::SpanHandle;
use pingora_cache::{CacheKey, Storage};
use pingora_error::{Error, ErrorType, Result};

use super::fill::FillReader;
use super::object::Object;
use crate::key::Slot;
use crate::tiers::DiskReader;

/// The reading end of an object or a fill.
#[derive(Debug)]
pub enum Reader {
    /// The object is complete.
    Complete(ObjectReader),
    /// The object is on its way in.
    Filling(FillReader),
    /// The object is complete, and not in memory.
    Disk(Box<DiskReader>),
}

impl Reader {
    /// The generation of the stored object; none for a fill.
    pub(crate) fn generation(&self) -> Option<u64> {
        match self {
            Self::Complete(reader) => Some(reader.object.generation()),
            Self::Filling(_) => None,
            Self::Disk(reader) => Some(reader.generation()),
        }
    }

    /// Whether the object is still on its way in.
    pub(crate) fn is_filling(&self) -> bool {
        matches!(self, Self::Filling(_))
    }

    /// The epoch at which its fetch began.
    pub(crate) fn epoch(&self) -> u64 {
        match self {
            Self::Complete(reader) => reader.object.meta.marks.epoch,
            Self::Filling(reader) => reader.fill().meta.marks.epoch,
            Self::Disk(reader) => reader.meta().marks.epoch,
        }
    }

    /// Whether it is the origin's failure, for those who waited.
    pub(crate) fn is_shared_failure(&self) -> bool {
        match self {
            Self::Complete(reader) => reader.object.meta.is_shared_failure,
            Self::Filling(reader) => reader.fill().meta.is_shared_failure,
            Self::Disk(_) => false,
        }
    }

    /// Whether the object was stale when it arrived, so that every reuse validates.
    pub(crate) fn is_always_stale(&self) -> bool {
        match self {
            Self::Complete(reader) => reader.object.meta.always_stale,
            Self::Filling(reader) => reader.fill().meta.always_stale,
            Self::Disk(reader) => reader.meta().always_stale,
        }
    }

    /// What comes after the body, as far as that is known.
    pub(crate) fn trailers(&self) -> Option<&HeaderMap> {
        match self {
            Self::Complete(reader) => reader.object.meta.trailers.as_deref(),
            Self::Filling(reader) => reader.fill().trailers(),
            Self::Disk(reader) => reader.meta().trailers.as_deref(),
        }
    }

    /// The object, where it is one in memory.
    pub(crate) fn object(&self) -> Option<&Arc<Object>> {
        match self {
            Self::Complete(reader) => Some(&reader.object),
            Self::Filling(_) | Self::Disk(_) => None,
        }
    }

    /// Which tier answers.
    pub(crate) fn tier(&self) -> &'static str {
        match self {
            Self::Complete(_) | Self::Filling(_) => "memory",
            Self::Disk(_) => "disk",
        }
    }
}

/// Reads a complete object, in the chunks it is stored in.
#[derive(Debug)]
pub struct ObjectReader {
    pub(super) slot: Slot,
    pub(super) object: Arc<Object>,
    position: u64,
    end: u64,
}

impl ObjectReader {
    pub(super) fn new(slot: Slot, object: Arc<Object>) -> Self {
        let end = object.body.len();
        Self { slot, object, position: 0, end }
    }

    fn read(&mut self) -> Option<Bytes> {
        let chunk = self.object.body.chunk_at(self.position, self.end)?;
        self.position += chunk.len() as u64;
        Some(chunk)
    }

    fn seek(&mut self, start: u64, end: Option<u64>) -> Result<()> {
        let length = self.object.body.len();
        if start >= length {
            return Error::e_explain(ErrorType::InternalError, format!("seek to {start} in a body of {length} bytes"));
        }
        self.position = start;
        self.end = end.map_or(length, |end| end.min(length));
        Ok(())
    }
}

#[async_trait]
impl HandleHit for Reader {
    async fn read_body(&mut self) -> Result<Option<Bytes>> {
        match self {
            Self::Complete(reader) => Ok(reader.read()),
            Self::Filling(reader) => reader.read().await,
            Self::Disk(reader) => reader.read().await,
        }
    }

    async fn finish(self: Box<Self>, _: &'static (dyn Storage + Sync), _: &CacheKey, _: &SpanHandle) -> Result<()> {
        Ok(())
    }

    fn can_seek(&self) -> bool {
        true
    }

    fn seek(&mut self, start: usize, end: Option<usize>) -> Result<()> {
        let (start, end) = (start as u64, end.map(|end| end as u64));
        match self {
            Self::Complete(reader) => reader.seek(start, end),
            Self::Filling(reader) => reader.seek(start, end),
            Self::Disk(reader) => reader.seek(start, end),
        }
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync) {
        self
    }

    fn as_any_mut(&mut self) -> &mut (dyn Any + Send + Sync) {
        self
    }
}
