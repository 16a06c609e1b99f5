//! What the threads of one disk share: the index, the segments, the counters, and whether the disk is in use.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use super::Removal;
use super::index::{Index, Tag, mixed};
use super::segment::Segment;

/// So many I/O errors ...
const MOST_ERRORS: usize = 8;
/// ... within this time switch a disk off.
const ERRORS_WITHIN: Duration = Duration::from_secs(60);
/// After a read that took too long, the disk is left alone for so long.
const SLOW_FOR: Duration = Duration::from_secs(5);

/// What a disk is doing.
///
/// ```text
/// Waiting (another process holds the lock) ──> Loading ──┬──> On ──┬──> Off (too many I/O errors)
///                                                        └──> Off  ├──> Closed
///                                Off ──> On, empty (tried again)   │
///                                 └──> Closed <────────────────────┘
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Another process has the folder's lock: everything is a miss until it ends.
    Waiting,
    /// The index is being read: everything is a miss until it is there.
    Loading,
    /// In use.
    On,
    /// Switched off after repeated I/O errors. It is tried again from time to time, and begins empty when it works.
    Off,
    /// Closed.
    Closed,
}

impl State {
    const ALL: [Self; 5] = [Self::Waiting, Self::Loading, Self::On, Self::Off, Self::Closed];

    /// A word for logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Loading => "loading",
            Self::On => "on",
            Self::Off => "off",
            Self::Closed => "closed",
        }
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        #[derive(Debug, Default)]
        pub(crate) struct Counters { $(pub(crate) $name: AtomicU64,)* }

        /// What one disk, or all of them, did since the start.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct Counts { $($(#[$doc])* pub $name: u64,)* }

        impl Counters {
            pub(crate) fn read(&self) -> Counts {
                Counts { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }

        impl std::ops::AddAssign for Counts {
            fn add_assign(&mut self, other: Self) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

counters! {
    /// Objects found and begun to be read.
    hits,
    /// Lookups that found nothing.
    misses,
    /// Objects written.
    written,
    /// Bytes written, everything included.
    written_bytes,
    /// Objects not written because the queue was full.
    dropped_queue,
    /// Objects not written, or not to their end, because of an I/O error or a full disk.
    dropped_error,
    /// Objects written anew because they were read lately, when their segment's turn had come.
    kept,
    /// Objects that went with their segment.
    reclaimed,
    /// Operations of the disk that failed.
    io_errors,
    /// How often there was no room on the file system.
    full,
    /// Records that were not what had been written; none of them was served.
    corrupt,
    /// Reads that were given up because the disk took too long.
    slow,
    /// Removals that were made durable.
    removed,
}

pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Shared {
    /// For logs.
    pub(crate) name: String,
    pub(crate) index: Index,
    pub(crate) segments: RwLock<BTreeMap<u32, Arc<Segment>>>,
    pub(crate) counters: Counters,
    state: AtomicU8,
    errors: Mutex<VecDeque<Instant>>,
    slow_until: Mutex<Option<Instant>>,
}

impl Shared {
    pub(crate) fn new(name: String) -> Self {
        Self {
            name,
            index: Index::new(),
            segments: RwLock::default(),
            counters: Counters::default(),
            state: AtomicU8::new(State::Waiting as u8),
            errors: Mutex::default(),
            slow_until: Mutex::default(),
        }
    }

    pub(crate) fn state(&self) -> State {
        State::ALL[usize::from(self.state.load(Ordering::Acquire))]
    }

    pub(crate) fn set_state(&self, state: State) {
        self.state.store(state as u8, Ordering::Release);
    }

    /// Stops using the disk, unless it is closed; says whether it was in use.
    pub(crate) fn set_off(&self) -> bool {
        let (on, off) = (State::On as u8, State::Off as u8);
        self.state.compare_exchange(on, off, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Forgets all that is on the disk, and the errors it had.
    pub(crate) fn forget_disk(&self) {
        self.index.clear();
        self.segments.write().clear();
        self.errors.lock().clear();
    }

    /// Takes what is removed out of the index.
    pub(crate) fn forget(&self, removal: Removal) {
        match removal {
            Removal::Key { key, family } => drop(self.index.remove(Tag::of(key, family))),
            Removal::Family(family) => drop(self.index.remove_family(mixed(family))),
            Removal::All => self.index.clear(),
        }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.state() == State::On
    }

    pub(crate) fn segment(&self, number: u32) -> Option<Arc<Segment>> {
        self.segments.read().get(&number).cloned()
    }

    /// What the segments take of the disk.
    pub(crate) fn size(&self) -> u64 {
        self.segments.read().values().map(|segment| segment.size()).sum()
    }

    /// Counts an I/O error, and switches the disk off when it is one too many.
    pub(crate) fn failed(&self, doing: &'static str, error: &io::Error) {
        add(&self.counters.io_errors, 1);
        let now = Instant::now();
        let too_many = {
            let mut errors = self.errors.lock();
            errors.push_back(now);
            while errors.front().is_some_and(|first| now.duration_since(*first) > ERRORS_WITHIN) {
                errors.pop_front();
            }
            errors.len() >= MOST_ERRORS
        };
        tracing::warn!(disk = %self.name, %error, "the cache's disk failed to {doing}");
        if too_many && self.set_off() {
            tracing::error!(disk = %self.name, "the cache's disk is switched off after repeated I/O errors; everything on it is a miss");
        }
    }

    /// Whether the disk took too long a moment ago.
    pub(crate) fn is_slow(&self) -> bool {
        self.slow_until.lock().is_some_and(|until| Instant::now() < until)
    }

    /// A read took too long: leave the disk alone for a while.
    pub(crate) fn took_too_long(&self) {
        add(&self.counters.slow, 1);
        let mut until = self.slow_until.lock();
        let now = Instant::now();
        if until.is_none_or(|until| until < now) {
            tracing::warn!(disk = %self.name, "the cache's disk is slow: it is not asked for {SLOW_FOR:?}");
            *until = Some(now + SLOW_FOR);
        }
    }
}
