//! The tier as Pingora's storage.

use std::any::Any;
use std::time::SystemTime;

use async_trait::async_trait;
use pingora_cache::key::CacheHashKey;
use pingora_cache::storage::streaming_write::U64WriteId;
use pingora_cache::trace::SpanHandle;
use pingora_cache::{CacheKey, CacheMeta, HitHandler, MissHandler, PurgeOutcome, PurgeTarget, PurgeType, Storage};
use pingora_error::Result;

use super::MemoryTier;
use super::fill::FillReader;
use super::object::StoredMeta;
use super::reader::{ObjectReader, Reader};
use super::writer::FillNotes;
use crate::key;
use crate::purge::Verdict;

/// New metadata for the same body, and so for what comes after it.
pub(crate) fn with_trailers_of(new: &StoredMeta, old: &StoredMeta) -> StoredMeta {
    StoredMeta { trailers: old.trailers.clone(), ..new.clone() }
}

#[async_trait]
impl Storage for MemoryTier {
    async fn lookup(&'static self, key: &CacheKey, _: &SpanHandle) -> Result<Option<(CacheMeta, HitHandler)>> {
        let slot = key::slot(key);
        // The fill first: what it brings is newer than what it replaces.
        if let Some(fill) = self.joinable(slot)
            && let Some(reader) = FillReader::new(&fill)
        {
            return Ok(Some((fill.meta.to_cache_meta(), Box::new(Reader::Filling(reader)))));
        }
        let Some(object) = self.objects.get(slot) else { return Ok(None) };
        let mut meta = object.meta.to_cache_meta();
        match self.purges.verdict(&object.meta.marks) {
            Verdict::Live => {}
            Verdict::StaleSince(purge) => meta.expire_at(purge),
            Verdict::Gone => {
                self.objects.remove_generation(slot, object.generation());
                return Ok(None);
            }
        }
        Ok(Some((meta, Box::new(Reader::Complete(ObjectReader::new(slot, object))))))
    }

    async fn lookup_streaming_write(
        &'static self,
        key: &CacheKey,
        streaming_write_tag: Option<&[u8]>,
        trace: &SpanHandle,
    ) -> Result<Option<(CacheMeta, HitHandler)>> {
        let Some(tag) = streaming_write_tag else { return self.lookup(key, trace).await };
        let Some(id) = U64WriteId::try_from(tag).ok().map(u64::from) else { return Ok(None) };
        let fill = self.fills.get(&key::slot(key)).and_then(|fills| fills.iter().find(|fill| fill.id == id).cloned());
        let Some(fill) = fill else { return Ok(None) };
        let reader = FillReader::attach(&fill);
        Ok(Some((fill.meta.to_cache_meta(), Box::new(Reader::Filling(reader)))))
    }

    async fn get_miss_handler(&'static self, key: &CacheKey, meta: &CacheMeta, _: &SpanHandle) -> Result<MissHandler> {
        Ok(self.begin(key, meta, None))
    }

    async fn purge(&'static self, target: PurgeTarget<'_>, _: PurgeType, _: &SpanHandle) -> Result<PurgeOutcome> {
        // Objects have no identity beyond their key here, so an exact identified target cannot be one of ours.
        if matches!(target, PurgeTarget::Exact(entry) if entry.entry_id().is_some()) {
            return Ok(PurgeOutcome::NotFound);
        }
        let key = target.key();
        if key.variance_bin().is_none() {
            self.note_purge(key::primary_slot(key));
        }
        let met = self.remove(key::slot(key));
        Ok(if met { PurgeOutcome::Purged(None) } else { PurgeOutcome::NotFound })
    }

    async fn expire(&'static self, target: PurgeTarget<'_>, _: &SpanHandle) -> Result<PurgeOutcome> {
        if matches!(target, PurgeTarget::Exact(entry) if entry.entry_id().is_some()) {
            return Ok(PurgeOutcome::NotFound);
        }
        let met = self.expire_slot(key::slot(target.key()), SystemTime::now());
        Ok(if met { PurgeOutcome::Expired } else { PurgeOutcome::NotFound })
    }

    async fn update_meta(&'static self, key: &CacheKey, meta: &CacheMeta, _: &SpanHandle) -> Result<bool> {
        let notes = meta.extensions().get::<FillNotes>();
        let new = self.stored_meta(meta, notes);
        if self.is_invalidated_since(key::primary_slot(key), new.marks.epoch) {
            return Ok(false);
        }
        let validated = notes.and_then(|notes| notes.validates);
        Ok(self.replace(key::slot(key), |object| {
            // The 304 is about the object that was looked up. Another one may have taken its place since; and if it was purged
            // meanwhile, no answer about it brings it back.
            let is_it = |generation| generation == object.generation() || Some(generation) == object.disk_copy();
            let same = validated.is_none_or(is_it);
            (same && self.purges.verdict(&object.meta.marks) != Verdict::Gone)
                .then(|| (with_trailers_of(&new, &object.meta), object.encodings().cloned()))
        }))
    }

    fn support_streaming_partial_write(&self) -> bool {
        true
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync + 'static) {
        self
    }
}
