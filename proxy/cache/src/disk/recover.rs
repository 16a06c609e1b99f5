//! What is on a disk when it is opened: the snapshot of a clean end, or the footers of the segments and the records of the last one.
//!
//! Records are taken in the order they were written, removals among them, so that the last word on an object holds. Where something that
//! once was durable cannot be read, a removal may be missing: then all that was written before is given up, because a cache may forget,
//! but must not bring back.

use std::io::{self, ErrorKind};
use std::sync::Arc;

use super::index::Entry;
use super::io::{DiskFile, Folder};
use super::log::{self, DISCARD};
use super::record::Words;
use super::replay::Replay;
use super::segment::{self, Segment};
use super::shared::Shared;

const SNAPSHOT: &str = "index.snap";
const DRAFT: &str = "index.tmp";
const MAGIC: &[u8; 8] = b"SlvIndx1";
const FIXED: usize = 24;
const SEGMENT: usize = 12;
const ENTRY: usize = 32;
/// Entries read or written at once.
const BATCH: usize = 64 << 10;

/// Loads what is there into the index. Gives the number of the next segment.
pub(crate) fn recover(folder: &dyn Folder, shared: &Shared) -> io::Result<u32> {
    let files = folder.list()?;
    let has = |name: &str| files.iter().any(|file| file == name);
    let mut numbers: Vec<u32> = files.iter().filter_map(|name| segment::number_of(name)).collect();
    numbers.sort_unstable();
    let next = numbers.last().map_or(1, |last| last + 1);
    if has(DRAFT) {
        folder.remove(DRAFT)?;
    }

    if has(DISCARD) {
        tracing::warn!(disk = %shared.name, "what is on the cache's disk is given up: a removal could not be written to it");
        for number in numbers {
            folder.remove(&segment::name(number))?;
        }
        if has(SNAPSHOT) {
            folder.remove(SNAPSHOT)?;
        }
        folder.sync()?;
        folder.remove(DISCARD)?;
        folder.sync()?;
        return Ok(next);
    }

    if has(SNAPSHOT) {
        let loaded = load(folder, shared, &numbers);
        // From here on the segments change, and the snapshot is not true any more.
        folder.remove(SNAPSHOT)?;
        folder.sync()?;
        match loaded {
            Ok(true) => return Ok(next),
            Ok(false) => {
                tracing::warn!(disk = %shared.name, "the snapshot of the cache's index does not fit: the segments are read instead")
            }
            Err(error) => shared.failed("read the index's snapshot", &error),
        }
        shared.index.clear();
        shared.segments.write().clear();
    }
    // Room for all at once: growing by and by would cost more than filling.
    let opened = numbers.iter().filter_map(|number| Segment::open(folder, *number).ok().flatten());
    shared.index.reserve(opened.map(|segment| segment.listed()).sum());
    let mut replay = Replay::of(&shared.index);
    for number in numbers {
        if let Err(error) = read(folder, shared, &mut replay, number) {
            shared.failed("read a segment", &error);
            give_up(folder, shared, &mut replay, number)?;
        }
    }
    replay.finish();
    shared.index.fit();
    Ok(next)
}

/// One segment's records.
fn read(folder: &dyn Folder, shared: &Shared, replay: &mut Replay<'_>, number: u32) -> io::Result<()> {
    let Some(segment) = Segment::open(folder, number)? else {
        if Segment::is_blank(folder, number) {
            return folder.remove(&segment::name(number));
        }
        return give_up(folder, shared, replay, number);
    };
    if let Some(footer) = segment.footer()? {
        footer.records().for_each(|listed| replay.add(listed));
    } else {
        let scan = segment.scan()?;
        if scan.damaged {
            return give_up(folder, shared, replay, number);
        }
        if scan.listed.is_empty() {
            return folder.remove(&segment::name(number));
        }
        scan.listed.iter().for_each(|listed| replay.add(*listed));
        if let Err(error) = log::seal(&segment, scan.end, &scan.listed) {
            // It is scanned again the next time.
            shared.failed("seal a segment", &error);
        }
    }
    shared.segments.write().insert(number, Arc::new(segment));
    Ok(())
}

/// Removes this segment and all before it.
fn give_up(folder: &dyn Folder, shared: &Shared, replay: &mut Replay<'_>, last: u32) -> io::Result<()> {
    tracing::warn!(
        disk = %shared.name,
        segment = segment::name(last),
        "a segment of the cache is damaged: what was written up to its end is given up"
    );
    replay.clear();
    let older: Vec<u32> = shared.segments.read().keys().copied().collect();
    for number in older.into_iter().chain([last]) {
        match folder.remove(&segment::name(number)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        shared.segments.write().remove(&number);
    }
    folder.sync()
}

/// Writes the index down, after everything is sealed.
pub(crate) fn save(folder: &dyn Folder, shared: &Shared, next: u32) -> io::Result<()> {
    let segments: Vec<(u32, u64)> =
        shared.segments.read().values().map(|segment| (segment.number, segment.size())).collect();
    let mut entries = 0_u64;
    shared.index.each(|_| entries += 1);

    let mut bytes = MAGIC.to_vec();
    bytes.extend(next.to_le_bytes());
    bytes.extend(u32::try_from(segments.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend(entries.to_le_bytes());
    for (number, size) in segments {
        bytes.extend(number.to_le_bytes());
        bytes.extend(size.to_le_bytes());
    }

    let mut writer =
        Writer { file: folder.create(DRAFT, 0)?, at: 0, bytes, crc: crc32fast::Hasher::new(), failed: None };
    shared.index.each(|entry| writer.entry(entry));
    writer.finish()?;
    folder.rename(DRAFT, SNAPSHOT)?;
    folder.sync()
}

struct Writer {
    file: Arc<dyn DiskFile>,
    at: u64,
    bytes: Vec<u8>,
    crc: crc32fast::Hasher,
    failed: Option<io::Error>,
}

impl Writer {
    fn entry(&mut self, entry: &Entry) {
        self.bytes.extend(entry.family.to_le_bytes());
        for word in [entry.variant, entry.generation, entry.segment, entry.offset, entry.expires, entry.packed()] {
            self.bytes.extend(word.to_le_bytes());
        }
        if self.bytes.len() >= BATCH * ENTRY {
            self.flush();
        }
    }

    fn flush(&mut self) {
        self.crc.update(&self.bytes);
        if self.failed.is_none() {
            self.failed = self.file.write_at(&self.bytes, self.at).err();
        }
        self.at += self.bytes.len() as u64;
        self.bytes.clear();
    }

    fn finish(mut self) -> io::Result<()> {
        self.flush();
        let crc = self.crc.clone().finalize();
        self.bytes.extend(crc.to_le_bytes());
        self.flush();
        self.failed.map_or_else(|| self.file.sync(), Err)
    }
}

/// Loads the snapshot; false when it is not about these segments, or not whole.
fn load(folder: &dyn Folder, shared: &Shared, numbers: &[u32]) -> io::Result<bool> {
    let file = folder.open(SNAPSHOT)?;
    let length = file.length()?;
    let mut fixed = [0; FIXED];
    if length < FIXED as u64 + 4 {
        return Ok(false);
    }
    file.read_at(&mut fixed, 0)?;
    let Some((segments, entries)) = counts(&fixed) else { return Ok(false) };
    let tables = FIXED as u64 + u64::from(segments) * SEGMENT as u64;
    let whole = entries.checked_mul(ENTRY as u64).and_then(|bytes| bytes.checked_add(tables + 4));
    if whole != Some(length) || segments as usize != numbers.len() {
        return Ok(false);
    }

    let mut crc = crc32fast::Hasher::new();
    crc.update(&fixed);
    let mut table = vec![0; segments as usize * SEGMENT];
    file.read_at(&mut table, FIXED as u64)?;
    crc.update(&table);
    for (named, number) in table.chunks_exact(SEGMENT).zip(numbers) {
        let mut words = Words(named);
        let (Some(named), Some(size)) = (words.u32(), words.u64()) else { return Ok(false) };
        let Some(segment) = Segment::open(folder, *number)? else { return Ok(false) };
        if named != *number || segment.size() != size {
            return Ok(false);
        }
        shared.segments.write().insert(*number, Arc::new(segment));
    }

    shared.index.reserve(usize::try_from(entries).unwrap_or_default());
    let (mut at, end) = (tables, length - 4);
    let mut batch = vec![0; BATCH * ENTRY];
    while at < end {
        let count = usize::try_from(end - at).unwrap_or(usize::MAX).min(batch.len());
        let batch = &mut batch[..count];
        file.read_at(batch, at)?;
        crc.update(batch);
        for bytes in batch.chunks_exact(ENTRY) {
            if let Some(entry) = entry(bytes) {
                shared.index.put(entry);
            }
        }
        at += count as u64;
    }
    let mut written = [0; 4];
    file.read_at(&mut written, end)?;
    Ok(u32::from_le_bytes(written) == crc.finalize())
}

/// How many segments and entries a snapshot has.
fn counts(fixed: &[u8]) -> Option<(u32, u64)> {
    let mut words = Words(fixed);
    if words.bytes(MAGIC.len())? != MAGIC {
        return None;
    }
    let _next = words.u32()?;
    Some((words.u32()?, words.u64()?))
}

fn entry(bytes: &[u8]) -> Option<Entry> {
    let mut words = Words(bytes);
    let family = words.u64()?;
    let (variant, generation, segment) = (words.u32()?, words.u32()?, words.u32()?);
    let (offset, expires, packed) = (words.u32()?, words.u32()?, words.u32()?);
    (segment != 0).then(|| Entry::unpacked(family, variant, generation, segment, offset, expires, packed))
}
