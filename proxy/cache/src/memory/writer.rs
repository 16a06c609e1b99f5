//! The writing end of a fill, and what goes along with it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderName;
use pingora_cache::storage::streaming_write::U64WriteId;
use pingora_cache::storage::{HandleMiss, MissFinishType};
use pingora_error::{Error, ErrorType, Result};

use super::MemoryTier;
use super::fill::{Fill, Outcome};
use crate::purge::Marks;
use crate::tiers::DiskCopy;

/// What a fill needs to know beyond the response, carried in the extensions of its [`CacheMeta`](pingora_cache::CacheMeta).
#[derive(Debug, Clone, Default)]
pub struct FillNotes {
    pub(super) marks: Option<Marks>,
    pub(crate) validates: Option<u64>,
    pub(super) withheld: Vec<HeaderName>,
    pub(super) is_shared_failure: bool,
    pub(super) is_copy: bool,
}

impl FillNotes {
    /// Notes for a response that purges reach by `marks`, that validates the object of generation `validates` (if it is a validation),
    /// and whose `withheld` fields are for the first client only.
    pub(crate) fn new(marks: Marks, validates: Option<u64>, withheld: Vec<HeaderName>) -> Self {
        Self { marks: Some(marks), validates, withheld, ..Self::default() }
    }

    /// The same for a response that another node owns, if it is one.
    pub(crate) fn copied(self, is_copy: bool) -> Self {
        Self { is_copy, ..self }
    }

    /// Notes for an error answer that those who wait for it share.
    pub(crate) fn shared_failure(marks: Marks) -> Self {
        Self { marks: Some(marks), is_shared_failure: true, ..Self::default() }
    }
}

/// The writing end of a fill. Dropped before it is finished, the fill has failed.
pub(super) struct Writer {
    tier: &'static MemoryTier,
    fill: Arc<Fill>,
    tag: U64WriteId,
    /// The same on its way to disk.
    copy: Option<DiskCopy>,
}

impl Writer {
    pub(super) fn new(tier: &'static MemoryTier, fill: Arc<Fill>, copy: Option<DiskCopy>) -> Self {
        Self { tier, tag: fill.id.into(), fill, copy }
    }
}

#[async_trait]
impl HandleMiss for Writer {
    async fn write_body(&mut self, data: Bytes, eof: bool) -> Result<()> {
        let was_joinable = self.fill.is_joinable();
        let (copied, may_fit) = self.copy.as_mut().map_or((false, false), |copy| copy.push(&data));
        let room = self.tier.fill_bytes.load(Ordering::Relaxed) <= self.tier.capacity;
        match self.fill.append(data, self.tier.max_object(), room) {
            Outcome::Kept => {}
            Outcome::TooLarge => {
                // What fits on disk may be taken there, this time or the next.
                if was_joinable && !may_fit {
                    self.tier.hit_for_miss.remember_too_large(self.fill.primary);
                }
            }
            Outcome::Unread if copied => {}
            Outcome::Unread => {
                return Error::e_explain(ErrorType::InternalError, "a body that is not stored has no reader left");
            }
        }
        if eof { self.fill.seal() } else { Ok(()) }
    }

    async fn finish(mut self: Box<Self>) -> Result<MissFinishType> {
        self.fill.seal()?;
        let copy = self.copy.take().filter(|_| !self.tier.is_void(&self.fill));
        let stored = self.tier.store(&self.fill, copy.as_ref().map_or(0, DiskCopy::generation));
        let copied = copy.map_or(0, |copy| copy.commit(&self.fill.whole_meta()));
        Ok(MissFinishType::Created(stored.max(copied)))
    }

    fn streaming_write_tag(&self) -> Option<&[u8]> {
        Some(self.tag.as_bytes())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // After the object is stored, so that a lookup in between finds one or the other.
        self.tier.forget_fill(&self.fill);
        self.fill.fail();
    }
}
