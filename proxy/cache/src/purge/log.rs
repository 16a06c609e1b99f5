//! Purges that survive the process: a file that every purge is written to before it is acknowledged.
//!
//! ```text
//! magic(8) zero(32)                                   the file
//! kind(1) zero(7) epoch(8) a(8) b(8) check(8)         each record, 40 bytes, little endian
//!   hard, soft    epoch, mark, mark of its host       a purge; mark 0 is everything
//!   lifetime      0, seconds, 0                       the longest time that anything stored could be used
//!   position      0, milliseconds, number             how far the purges of other nodes are known here, over a stream
//!   heard         0, origin, number                   the same, from one node
//! ```
//!
//! Records are appended by one thread: what comes while it waits for the disk goes with the next write, so that many purges at once
//! cost one `fdatasync`. When the file has grown to several times of what it says, it is written anew and replaces the old one.
//!
//! **What a crash leaves.** A tail that is no record was never acknowledged, and is cut off. Anything else that cannot be read is a purge
//! that is not known any more: then everything is purged.
//!
//! **Several processes** (a new one that takes over from an old one) append to one file at a time: it is only written anew by who has it
//! alone, which `flock` tells.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use super::{Purge, Purges, Scope};

const MAGIC: [u8; 8] = *b"SLVPURG1";
const RECORD: usize = 40;
/// The file is written anew when it is larger than this, and than [`GROWTH`] times what it was then.
const SMALL: u64 = 1 << 20;
const GROWTH: u64 = 4;
/// So many purges may wait for the disk.
const WAITING_MAX: usize = 4096;
/// How long one waits for it.
const SYNC_DEADLINE: Duration = Duration::from_secs(10);
/// Of so many other nodes it is kept how far their purges are known; the numbers of those that were started longest ago go first.
const ORIGINS_MAX: usize = 256;
/// So many records go with one write.
const BATCH_MAX: usize = 65_536;

/// How far the purges of other nodes are known: the identity of an entry in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    /// The time, in milliseconds since 1970, as whoever keeps the stream sees it.
    pub millis: u64,
    /// Tells entries of one millisecond apart.
    pub number: u64,
}

/// What the log holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record {
    /// A purge.
    Purge {
        /// What is purged.
        scope: Scope,
        /// When.
        epoch: u64,
        /// How.
        purge: Purge,
    },
    /// Something stored could be used for so long.
    Lifetime(Duration),
    /// The purges of others up to here are known.
    Position(Position),
    /// The purges of one other node up to this number are known.
    Heard {
        /// The node.
        origin: u64,
        /// The number.
        number: u64,
    },
}

/// What is known of other nodes' purges.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Known {
    position: Position,
    heard: BTreeMap<u64, u64>,
}

impl Known {
    fn note(&mut self, record: &Record) {
        match record {
            Record::Position(position) => self.position = self.position.max(*position),
            Record::Heard { origin, number } => {
                let known = self.heard.entry(*origin).or_default();
                *known = (*known).max(*number);
                while self.heard.len() > ORIGINS_MAX {
                    self.heard.pop_first();
                }
            }
            Record::Purge { .. } | Record::Lifetime(_) => {}
        }
    }
}

/// Why a purge does not survive the process. It is in force all the same.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    /// The file could not be written.
    #[error("the purge log cannot be written: {0}")]
    Write(Arc<io::Error>),
    /// The disk did not confirm it in time.
    #[error("the purge log was not on disk after {SYNC_DEADLINE:?}")]
    Late,
    /// The log's thread has ended.
    #[error("the purge log is closed")]
    Closed,
}

/// Why a log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be read or made.
    #[error("the purge log cannot be opened")]
    Io(#[from] io::Error),
    /// The file is something else.
    #[error("the file is no purge log of this version")]
    NotALog,
    /// The process keeps its purges in another file already.
    #[error("the process has another purge log open")]
    AnotherIsOpen,
}

/// An open log. Dropped, its thread ends once it has written what was given to it.
#[derive(Debug)]
pub struct PurgeLog {
    jobs: mpsc::Sender<Job>,
    known: Arc<Mutex<Known>>,
}

struct Job {
    records: Vec<Record>,
    done: Option<oneshot::Sender<Result<(), Arc<io::Error>>>>,
}

impl PurgeLog {
    /// Opens the log, or makes one, and takes over its purges.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(path: &Path, purges: &'static Purges) -> Result<Self, OpenError> {
        let mut file = LogFile::open(path)?;
        let read = file.replay(purges)?;
        info!(path = %path.display(), purges = read.purges, "purge log");
        let known = Arc::new(Mutex::new(read.known));
        let (jobs, waiting) = mpsc::channel(WAITING_MAX);
        let mut writer = Writer { file, purges, known: Arc::clone(&known), failed: false };
        std::thread::Builder::new().name("purge-log".into()).spawn(move || writer.run(waiting))?;
        Ok(Self { jobs, known })
    }

    /// Writes these records; when it returns well, they are on disk.
    ///
    /// # Errors
    /// See [`LogError`].
    pub async fn append(&self, records: Vec<Record>) -> Result<(), LogError> {
        let (done, confirmed) = oneshot::channel();
        let written = async {
            self.jobs.send(Job { records, done: Some(done) }).await.map_err(|_| LogError::Closed)?;
            confirmed.await.map_err(|_| LogError::Closed)?.map_err(LogError::Write)
        };
        tokio::time::timeout(SYNC_DEADLINE, written).await.unwrap_or(Err(LogError::Late))
    }

    /// Writes these records soon, and waits for nothing. Says whether there was room for them.
    pub fn append_later(&self, records: Vec<Record>) -> bool {
        self.jobs.try_send(Job { records, done: None }).is_ok()
    }

    /// How far the purges of other nodes are known.
    #[must_use]
    pub fn position(&self) -> Position {
        self.known.lock().position
    }

    /// Up to which number the purges of other nodes are known, by node.
    #[must_use]
    pub fn heard(&self) -> BTreeMap<u64, u64> {
        self.known.lock().heard.clone()
    }
}

struct Writer {
    file: LogFile,
    purges: &'static Purges,
    known: Arc<Mutex<Known>>,
    /// What was written last may or may not be on disk: only a new file says again what is.
    failed: bool,
}

impl Writer {
    fn run(&mut self, mut waiting: mpsc::Receiver<Job>) {
        while let Some(first) = waiting.blocking_recv() {
            let mut records = first.records;
            let mut tell = Vec::from_iter(first.done);
            while records.len() < BATCH_MAX
                && let Ok(job) = waiting.try_recv()
            {
                records.extend(job.records);
                tell.extend(job.done);
            }
            let outcome = self.write(&records).map_err(Arc::new);
            if let Err(error) = &outcome {
                warn!(path = %self.file.path.display(), %error, "purges are in force, but not on disk");
            }
            for done in tell {
                // Whoever does not wait any more needs no answer.
                let _ = done.send(outcome.clone());
            }
        }
    }

    fn write(&mut self, records: &[Record]) -> io::Result<()> {
        let known = {
            let mut known = self.known.lock();
            records.iter().for_each(|record| known.note(record));
            known.clone()
        };
        if self.failed {
            // The table holds all purges, these included.
            self.file.rewrite(self.purges, &known)?;
            self.failed = false;
            return Ok(());
        }
        if let Err(error) = self.file.append(records) {
            self.failed = true;
            return Err(error);
        }
        if self.file.is_overgrown() {
            // These records are on disk already: a failure to tidy up is none of theirs.
            if let Err(error) = self.file.tidy(self.purges, &known) {
                warn!(path = %self.file.path.display(), %error, "the purge log cannot be written anew");
                self.file.base = self.file.length;
            }
        }
        Ok(())
    }
}

struct LogFile {
    path: PathBuf,
    file: File,
    length: u64,
    /// What it was when it was written anew, or opened.
    base: u64,
}

/// What was found in a file.
#[derive(Default)]
struct Replayed {
    purges: u64,
    known: Known,
}

impl LogFile {
    fn open(path: &Path) -> Result<Self, OpenError> {
        loop {
            let mut options = OpenOptions::new();
            let file = options.read(true).append(true).create(true).mode(0o640).open(path)?;
            file.lock_shared()?;
            // Somebody who had it alone may have replaced it in between.
            let named = std::fs::metadata(path)?;
            if named.ino() == file.metadata()?.ino() {
                return Ok(Self { path: path.to_owned(), file, length: 0, base: 0 });
            }
        }
    }

    fn replay(&mut self, purges: &Purges) -> Result<Replayed, OpenError> {
        let mut bytes = Vec::new();
        self.file.seek(SeekFrom::Start(0))?;
        self.file.read_to_end(&mut bytes)?;
        if bytes.len() < RECORD {
            // New, or cut off while it was made: nothing was ever acknowledged.
            if !MAGIC.starts_with(&bytes[..bytes.len().min(MAGIC.len())]) {
                return Err(OpenError::NotALog);
            }
            self.file.set_len(0)?;
            self.file.write_all(&header())?;
            self.file.sync_all()?;
            sync_folder(&self.path)?;
            (self.length, self.base) = (RECORD as u64, RECORD as u64);
            return Ok(Replayed::default());
        }
        if bytes[..RECORD] != header() {
            return Err(OpenError::NotALog);
        }
        let records: Vec<Option<Record>> = bytes[RECORD..].chunks(RECORD).map(Record::read).collect();
        let whole = records.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        let mut read = Replayed::default();
        let mut unreadable = 0;
        for record in &records[..whole] {
            match record {
                Some(Record::Purge { scope, epoch, purge }) => {
                    purges.replay(*scope, *epoch, *purge);
                    read.purges += 1;
                }
                Some(Record::Lifetime(lifetime)) => drop(purges.note_lifetime(*lifetime)),
                Some(other) => read.known.note(other),
                None => unreadable += 1,
            }
        }
        self.length = ((whole + 1) * RECORD) as u64;
        self.base = self.length;
        if self.length != bytes.len() as u64 {
            // Of another process it may be what is being written just now: then it stays.
            self.alone(|log| log.file.set_len(log.length).map(Some))?;
        }
        if unreadable > 0 {
            let epoch = purges.purge(&[Scope::everything()], Purge::Hard);
            warn!(path = %self.path.display(), unreadable, "the purge log has gaps: everything is purged");
            self.append(&[Record::Purge { scope: Scope::everything(), epoch, purge: Purge::Hard }])?;
        }
        Ok(read)
    }

    fn append(&mut self, records: &[Record]) -> io::Result<()> {
        let bytes: Vec<u8> = records.iter().flat_map(|record| record.to_bytes()).collect();
        self.file.write_all(&bytes)?;
        self.file.sync_data()?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn is_overgrown(&self) -> bool {
        self.length > SMALL && self.length > GROWTH * self.base
    }

    /// Written anew, unless another process has it too.
    fn tidy(&mut self, purges: &Purges, known: &Known) -> io::Result<()> {
        let done = self.alone(|log| log.replace(purges, known).map(Some))?;
        if done.is_none() {
            self.base = self.length;
        }
        Ok(())
    }

    fn rewrite(&mut self, purges: &Purges, known: &Known) -> io::Result<()> {
        let done = self.alone(|log| log.replace(purges, known).map(Some))?;
        done.ok_or_else(|| io::Error::other("another process has the purge log too"))
    }

    /// Does something while no other process has the file; `None` = another has it.
    fn alone<T>(&mut self, act: impl FnOnce(&mut Self) -> io::Result<Option<T>>) -> io::Result<Option<T>> {
        match self.file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                // The failed try may have cost us our own lock.
                self.file.lock_shared()?;
                return Ok(None);
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let done = act(self);
        self.file.lock_shared()?;
        done
    }

    fn replace(&mut self, purges: &Purges, known: &Known) -> io::Result<()> {
        let new_path = self.path.with_extension("new");
        let mut new = OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(&new_path)?;
        new.set_len(0)?;
        new.lock_shared()?;
        let mut bytes = header().to_vec();
        bytes.extend(Record::Lifetime(purges.remembered_for()).to_bytes());
        bytes.extend(Record::Position(known.position).to_bytes());
        let heard = known.heard.iter().map(|(origin, number)| Record::Heard { origin: *origin, number: *number });
        heard.for_each(|record| bytes.extend(record.to_bytes()));
        purges.each(|scope, epoch, purge| bytes.extend(Record::Purge { scope, epoch, purge }.to_bytes()));
        new.write_all(&bytes)?;
        new.sync_all()?;
        std::fs::rename(&new_path, &self.path)?;
        self.file = new;
        self.length = bytes.len() as u64;
        self.base = self.length;
        sync_folder(&self.path)
    }
}

impl Record {
    fn to_bytes(self) -> [u8; RECORD] {
        let (kind, epoch, a, b) = match self {
            Self::Purge { scope, epoch, purge } => {
                let (mark, host) = scope.to_parts();
                (if purge == Purge::Hard { b'h' } else { b's' }, epoch, mark, host)
            }
            Self::Lifetime(lifetime) => (b'l', 0, lifetime.as_secs(), 0),
            Self::Position(position) => (b'p', 0, position.millis, position.number),
            Self::Heard { origin, number } => (b'o', 0, origin, number),
        };
        let mut bytes = [0; RECORD];
        bytes[0] = kind;
        for (place, word) in bytes[8..32].chunks_exact_mut(8).zip([epoch, a, b]) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let check = check(&bytes[..32]);
        bytes[32..].copy_from_slice(&check);
        bytes
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != RECORD || bytes[32..] != check(&bytes[..32]) {
            return None;
        }
        let word = |at: usize| bytes[at..at + 8].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        let (epoch, a, b) = (word(8), word(16), word(24));
        match bytes[0] {
            b'h' => Some(Self::Purge { scope: Scope::from_parts(a, b), epoch, purge: Purge::Hard }),
            b's' => Some(Self::Purge { scope: Scope::from_parts(a, b), epoch, purge: Purge::Soft }),
            b'l' => Some(Self::Lifetime(Duration::from_secs(a))),
            b'o' => Some(Self::Heard { origin: a, number: b }),
            b'p' => Some(Self::Position(Position { millis: a, number: b })),
            _ => None,
        }
    }
}

fn header() -> [u8; RECORD] {
    let mut bytes = [0; RECORD];
    bytes[..MAGIC.len()].copy_from_slice(&MAGIC);
    bytes
}

fn check(bytes: &[u8]) -> [u8; 8] {
    let mut check = [0; 8];
    check.copy_from_slice(&blake3::hash(bytes).as_bytes()[..8]);
    check
}

/// A file that is new in its folder stays there after a crash only when the folder is on disk too.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Scheme;
    use crate::purge::{Marks, Tags, Verdict};
    use crate::rules::QueryPolicy;

    fn table() -> &'static Purges {
        Box::leak(Box::default())
    }

    fn object(epoch: u64, path: &str) -> Marks {
        Marks::new(epoch, Scheme::Http, &QueryPolicy::All, b"a.example", path.as_bytes(), &Tags::default())
    }

    async fn purge(purges: &'static Purges, log: &PurgeLog, path: &str) -> Result<u64, LogError> {
        let scope = Scope::prefix("a.example", path);
        let epoch = purges.purge(&[scope], Purge::Hard);
        log.append(vec![Record::Purge { scope, epoch, purge: Purge::Hard }]).await.map(|()| epoch)
    }

    /// The table of the next process.
    fn again(path: &Path) -> (&'static Purges, PurgeLog) {
        let purges = table();
        (purges, PurgeLog::open(path, purges).expect("the log opens"))
    }

    fn is_gone(purges: &Purges, epoch: u64, path: &str) -> bool {
        purges.verdict(&object(epoch, path)) == Verdict::Gone
    }

    #[test]
    fn records_come_back_as_they_were() {
        let scope = Scope::prefix("a.example", "/a");
        for record in [
            Record::Purge { scope, epoch: 7, purge: Purge::Hard },
            Record::Purge { scope: Scope::everything(), epoch: u64::MAX, purge: Purge::Soft },
            Record::Lifetime(Duration::from_secs(9)),
            Record::Position(Position { millis: 1, number: 2 }),
            Record::Heard { origin: 3, number: 4 },
        ] {
            let bytes = record.to_bytes();
            assert_eq!(Record::read(&bytes), Some(record));
            for place in 0..RECORD {
                let mut broken = bytes;
                broken[place] ^= 1;
                assert_eq!(Record::read(&broken), None, "byte {place}");
            }
        }
    }

    #[tokio::test]
    async fn what_was_acknowledged_is_there_after_a_restart() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("purge.log");
        let (purges, log) = again(&path);
        let before = purges.clock().fetch();
        purge(purges, &log, "/a").await.expect("on disk");
        let position = Position { millis: 5, number: 1 };
        let lifetime = Duration::from_hours(24 * 365);
        log.append(vec![
            Record::Position(position),
            Record::Heard { origin: 9, number: 3 },
            Record::Lifetime(lifetime),
        ])
        .await
        .expect("on disk");
        // Not dropped: a crash does not close anything either.
        let (restarted, log) = again(&path);
        assert!(is_gone(restarted, before, "/a/b") && !is_gone(restarted, before, "/b"));
        assert!(!is_gone(restarted, restarted.clock().fetch(), "/a"));
        assert_eq!((log.position(), log.heard()), (position, [(9, 3)].into()));
        assert!(restarted.remembered_for() >= lifetime);
    }

    #[tokio::test]
    async fn a_torn_tail_is_cut_off_and_a_gap_purges_everything() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("purge.log");
        let (purges, log) = again(&path);
        let before = purges.clock().fetch();
        for name in ["/a", "/b", "/c"] {
            purge(purges, &log, name).await.expect("on disk");
        }
        drop(log);
        let whole = std::fs::read(&path).expect("a file");

        for torn in [1, RECORD - 1, RECORD, RECORD + 7] {
            let copy = folder.path().join(format!("torn-{torn}"));
            std::fs::write(&copy, &whole[..whole.len() - torn]).expect("written");
            let (purges, log) = again(&copy);
            assert!(is_gone(purges, before, "/a") && !is_gone(purges, before, "/c"), "{torn}");
            purge(purges, &log, "/d").await.expect("on disk");
            let (purges, _log) = again(&copy);
            assert!(is_gone(purges, before, "/a") && is_gone(purges, before, "/d"), "{torn}");
            assert!(!is_gone(purges, before, "/x"), "{torn}");
        }

        let gap = folder.path().join("gap");
        let mut bytes = whole.clone();
        bytes[RECORD + 9] ^= 1;
        std::fs::write(&gap, &bytes).expect("written");
        for _ in 0..2 {
            let (purges, _log) = again(&gap);
            assert!(is_gone(purges, before, "/x"), "nobody knows what it was");
        }
    }

    #[test]
    fn other_files_are_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("other");
        for content in ["x", "something else, which is longer than one record of a log is"] {
            std::fs::write(&path, content).expect("written");
            assert!(matches!(PurgeLog::open(&path, table()), Err(OpenError::NotALog)));
            assert_eq!(std::fs::read_to_string(&path).expect("still there"), content);
        }
        assert!(matches!(PurgeLog::open(&folder.path().join("no/folder"), table()), Err(OpenError::Io(_))));
    }

    #[tokio::test]
    async fn a_log_that_has_grown_is_written_anew_by_who_has_it_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("purge.log");
        let (purges, log) = again(&path);
        let before = purges.clock().fetch();
        let (_, other) = again(&path);
        let scope = Scope::prefix("a.example", "/a");
        let many = |epoch| vec![Record::Purge { scope, epoch, purge: Purge::Hard }; 30_000];
        let epoch = purges.purge(&[scope], Purge::Hard);
        let size = || std::fs::metadata(&path).expect("a file").len();
        log.append(many(epoch)).await.expect("on disk");
        assert!(size() > SMALL, "another process may be writing");

        drop(other);
        let mut shrunk = false;
        // The other's thread lets go of the file a moment after.
        for _ in 0..20 {
            log.append(many(epoch)).await.expect("on disk");
            shrunk |= size() < SMALL;
        }
        assert!(shrunk, "{}", size());
        let (purges, _log) = again(&path);
        assert!(is_gone(purges, before, "/a"));
    }

    #[tokio::test]
    async fn purges_at_once_share_their_writes() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("purge.log");
        let (purges, log) = again(&path);
        let before = purges.clock().fetch();
        let all = (0..500).map(|number| {
            let path = format!("/{number}");
            let log = &log;
            async move { purge(purges, log, &path).await }
        });
        assert!(futures::future::join_all(all).await.iter().all(Result::is_ok));
        let (purges, _log) = again(&path);
        assert!((0..500).all(|number| is_gone(purges, before, &format!("/{number}"))));
    }
}
