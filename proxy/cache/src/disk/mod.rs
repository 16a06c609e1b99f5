//! The disk tier's engine: objects of opaque metadata and a body, found by key, in logs on one or several disks.
//!
//! It knows nothing of HTTP. What it promises:
//! - **Nobody waits for it.** Writes go through a bounded queue to one thread for each disk; when the queue is full, the object is not
//!   written, and that is counted. Reads have a deadline; a disk that misses it is left alone for a while.
//! - **Nothing wrong comes back.** Every record has checksums over header and payload, which are verified at every read. A bad record is a
//!   miss (or an error in the middle of a body), never bytes.
//! - **Nothing removed comes back.** A removal is acknowledged when it is durable. What was being written when it came is not committed.
//! - **A crash loses the unsynced tail**: at most a second or 16 MiB of writes. A clean end loses nothing, and needs no scan at the next
//!   start.
//!
//! # Why a log of segments
//! One log for each disk, cut into segment files: all writes are sequential appends whatever is written at once, space comes back by
//! removing a whole file, and there is nothing to compact. [`foyer`](https://docs.rs/foyer) has the same idea, but takes whole values
//! only: no streaming, no ranges, no objects beyond a block. A file for each object costs an inode and two directory changes each, and a
//! walk at the start. One log, not several shards: a disk takes one sequential stream at full speed, and one thread appends at several
//! times that; what is concurrent is reading, and that needs no shards.
//!
//! ```text
//! segment   | head | chunk | meta | chunk | removed | meta | synced | ... | footer | trailer |      (one file, preallocated)
//! object    meta record = where its chunks are + metadata + the body itself up to 16 KiB            (last: it makes the object exist)
//! index     in memory, 32 bytes for an entry: where the meta record is
//! ```
//! - A body up to 16 KiB lies in the meta record: one read for a hit. A larger one is in chunks of 256 KiB, interleaved with whatever else
//!   is being written; a range reads the chunks it needs.
//! - New metadata (a 304) is a new meta record with the same chunks; only inline bodies are copied with it.
//! - A removal is a record in the log as well. The order of the log is the order of events, so the last word on a key holds when it is read
//!   back, and removals need no file, no compaction, and no memory of their own: they go with their segment, when everything older is gone.
//! - The oldest segment is reclaimed first. Objects read since they were written, and not over their time, are written anew into a new
//!   segment, up to a quarter of it. A reader holds the files it reads from: they may be removed, not overwritten.
//! - The log's order and checksums are salted for each segment, so no body can pass for a record.
//!
//! Segments of 4 to 256 MiB: 64 of them, and 1,024 at most; each is an open file.

mod admit;
mod index;
pub mod io;
mod log;
mod read;
mod record;
mod recover;
mod replay;
mod segment;
mod shared;
mod volume;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use self::admit::Admission;
use self::index::{Entry, Tag, mixed};
use self::io::{Folder, OsFolder};
use self::log::Owner;
use self::record::{Header, Kind};
use self::volume::Volume;

pub(crate) use self::log::seconds_now;
pub(crate) use self::record::Words;

pub use self::read::{Body, Found, ReadError};
pub use self::shared::{Counts, State};
pub use self::volume::Writing;

/// Bodies are written in pieces of this size, but for the last.
pub const CHUNK: usize = 256 << 10;
/// Bodies up to this size lie with their metadata.
pub const INLINE: usize = 16 << 10;
/// The least a disk is of use with.
pub const LEAST_SIZE: u64 = 16 << 20;

/// What is written at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Admit {
    /// What missed twice lately, and small objects within the write budget.
    #[default]
    SecondHit,
    /// Everything.
    All,
}

/// A store's settings.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The disks. Keys are spread over them by size.
    pub disks: Vec<DiskOptions>,
    /// What is written.
    pub admit: Admit,
    /// Bytes of small objects that may be written for each second when they are asked for the first time.
    pub write_budget: u64,
    /// What holds for each disk.
    pub limits: Limits,
}

/// One disk.
#[derive(Debug, Clone)]
pub struct DiskOptions {
    /// What it is called in logs and metrics. Keys belong to a disk by its name.
    pub name: String,
    /// Where its files are.
    pub folder: Arc<dyn Folder>,
    /// What the files may take together.
    pub size: u64,
    /// What one of them takes.
    pub segment_size: u64,
}

impl DiskOptions {
    /// The folder at `path`, for `size` bytes.
    #[must_use]
    pub fn at(path: &std::path::Path, size: u64) -> Self {
        let segment_size = (size / 64).clamp(4 << 20, 256 << 20).max(size / 1024).next_multiple_of(4096);
        let name = path.display().to_string();
        Self { name, folder: Arc::new(OsFolder::new(path)), size, segment_size }
    }
}

/// What holds for each disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that may wait to be written.
    pub queue: u64,
    /// Threads that read.
    pub readers: usize,
    /// How long a lookup may take before it counts as a miss.
    pub lookup: Duration,
    /// How long the next chunk of a body may take before the response breaks off.
    pub read: Duration,
    /// How long a disk that was switched off is left alone before it is tried again; twice as long each time that fails, ten minutes at most.
    pub again: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queue: 64 << 20,
            readers: 4,
            lookup: Duration::from_millis(500),
            read: Duration::from_secs(10),
            again: Duration::from_secs(30),
        }
    }
}

/// What is to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// One object.
    Key {
        /// Its key.
        key: u128,
        /// The family it belongs to.
        family: u128,
    },
    /// All objects of a family.
    Family(u128),
    /// Everything.
    All,
}

impl Removal {
    fn header(self) -> Header {
        match self {
            Self::Key { key, family } => Header { key, family, ..Header::of(Kind::RemovedKey) },
            Self::Family(family) => Header { family, ..Header::of(Kind::RemovedFamily) },
            Self::All => Header::of(Kind::RemovedAll),
        }
    }

    fn covers(self, owner: &Owner) -> bool {
        match self {
            Self::Key { key, family } => (key, family) == (owner.key, owner.family),
            Self::Family(family) => family == owner.family,
            Self::All => true,
        }
    }

    fn covers_entry(self, entry: &Entry) -> bool {
        match self {
            Self::Key { key, family } => Tag::of(key, family) == entry.tag(),
            Self::Family(family) => mixed(family) == entry.family,
            Self::All => true,
        }
    }
}

/// Why a removal is not sure to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RemoveError {
    /// It holds for this process, but the disk would not take it: after a restart the object may be back.
    #[error("the removal is not durable on the cache's disk")]
    NotDurable,
}

/// What one disk holds and did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskUsage {
    /// What it is called.
    pub name: String,
    /// What it is doing.
    pub state: State,
    /// Objects in the index.
    pub objects: u64,
    /// Bytes of its files.
    pub bytes: u64,
    /// What they may take.
    pub capacity: u64,
    /// Bytes of memory that the index takes.
    pub index_bytes: u64,
    /// Bytes that wait to be written.
    pub queued_bytes: u64,
    /// What it did since the start.
    pub counts: Counts,
}

/// Objects on disks. See the [module](self).
///
/// A `key` names an object, and belongs to a `family` of at most 64 keys, which lie on one disk and can be removed together.
#[derive(Debug)]
pub struct Store {
    volumes: Vec<Arc<Volume>>,
    admission: Admission,
}

impl Store {
    /// Opens the disks. Returns at once, but for the threads' start: what is on them is found as soon as their indexes are loaded, see
    /// [`wait`](Self::wait).
    ///
    /// # Errors
    /// When a thread cannot be started. A disk that cannot be used is no error: it says so, and is tried again where that may help.
    pub fn open(options: StoreOptions) -> std::io::Result<Self> {
        let limits = options.limits;
        let volumes = options.disks.into_iter().map(|disk| Volume::open(disk, limits).map(Arc::new));
        Ok(Self {
            volumes: volumes.collect::<std::io::Result<_>>()?,
            admission: Admission::new(options.admit, options.write_budget),
        })
    }

    /// Waits until the indexes are loaded, `patience` at most. What another process holds is not waited for.
    pub fn wait(&self, patience: Duration) {
        let until = Instant::now() + patience;
        self.volumes.iter().for_each(|volume| volume.wait(until.saturating_duration_since(Instant::now())));
    }

    /// The disk of a family: by rendezvous, so that the others keep theirs when one comes or goes.
    fn volume(&self, family: u128) -> Option<&Arc<Volume>> {
        if let [only] = &self.volumes[..] {
            return Some(only);
        }
        #[expect(clippy::cast_precision_loss, reason = "a weight, and a hash as a share of 1")]
        let score = |volume: &Volume| {
            let hash = mixed(family ^ u128::from(volume.seed) << 64);
            let share = (hash >> 11) as f64 / (1_u64 << 53) as f64;
            volume.weight() as f64 / -share.max(f64::MIN_POSITIVE).ln()
        };
        self.volumes.iter().max_by(|one, other| score(one).total_cmp(&score(other)))
    }

    /// Whether an object is there, by the index alone.
    #[must_use]
    pub fn has(&self, key: u128, family: u128) -> bool {
        self.volume(family).is_some_and(|volume| volume.has(key, family))
    }

    /// Whether an object that has just missed is to be written. `size`: of its body, where that is known. Ask once for each miss: it is
    /// remembered. What replaces an object that is there is always written.
    #[must_use]
    pub fn admits(&self, key: u128, family: u128, size: Option<u64>) -> bool {
        let admitted = self.admission.admits(key, size, Instant::now());
        admitted || self.has(key, family)
    }

    /// Begins to write an object. `None`: the disk is not in use, or too much waits for it.
    ///
    /// A removal that comes from now on keeps the object from being committed.
    #[must_use]
    pub fn begin(&self, key: u128, family: u128) -> Option<Writing> {
        self.volume(family)?.begin(key, family)
    }

    /// Finds an object, and reads its metadata.
    pub async fn find(&self, key: u128, family: u128) -> Option<Found> {
        self.volume(family)?.find(key, family).await
    }

    /// Replaces the metadata of the object of this generation, some time. False when it is not there, or too much waits.
    pub fn update(&self, key: u128, family: u128, generation: u64, expires: u32, meta: Bytes) -> bool {
        self.volume(family).is_some_and(|volume| volume.update(key, family, generation, expires, meta))
    }

    /// Removes: not found from the moment of the call on, and never again when this is done.
    ///
    /// # Errors
    /// [`RemoveError::NotDurable`] when a disk would not take it.
    pub fn remove(&self, removal: Removal) -> impl Future<Output = Result<(), RemoveError>> + Send + use<> {
        let concerned = match removal {
            Removal::All => self.volumes.iter().collect(),
            Removal::Family(family) | Removal::Key { family, .. } => Vec::from_iter(self.volume(family)),
        };
        let told: Vec<_> = concerned.into_iter().map(|volume| volume.remove(removal)).collect();
        async move {
            let mut result = Ok(());
            for told in told {
                result = result.and(told.await.unwrap_or(Err(RemoveError::NotDurable)));
            }
            result
        }
    }

    /// Removes like [`remove`](Self::remove), and lets the removal become durable with whatever is written next.
    pub fn forget(&self, removal: Removal) {
        match removal {
            Removal::All => self.volumes.iter().for_each(|volume| volume.forget(removal)),
            Removal::Family(family) | Removal::Key { family, .. } => {
                if let Some(volume) = self.volume(family) {
                    volume.forget(removal);
                }
            }
        }
    }

    /// Makes what was committed until now durable; says whether it is.
    pub async fn sync(&self) -> bool {
        let told: Vec<_> = self.volumes.iter().map(|volume| volume.sync()).collect();
        let mut synced = true;
        for told in told {
            synced &= told.await.unwrap_or(false);
        }
        synced
    }

    /// Writes what waits and a snapshot of the index, and gives the folders back. Everything is a miss from then on.
    pub async fn close(&self) {
        let told: Vec<_> = self.volumes.iter().map(|volume| volume.close()).collect();
        for told in told {
            // Closed already: nobody to answer.
            let _closed = told.await;
        }
    }

    /// Does what [`close`](Self::close) does, outside of any runtime: blocks, `patience` at most.
    pub fn close_within(&self, patience: Duration) {
        let until = Instant::now() + patience;
        self.volumes.iter().for_each(|volume| drop(volume.close()));
        self.volumes.iter().for_each(|volume| volume.wait_closed(until));
    }

    /// What each disk holds and did.
    #[must_use]
    pub fn usage(&self) -> Vec<DiskUsage> {
        self.volumes.iter().map(|volume| volume.usage()).collect()
    }

    /// What all disks did.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.volumes.iter().fold(Counts::default(), |mut sum, volume| {
            sum += volume.counts();
            sum
        })
    }
}
