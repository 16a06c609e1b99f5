//! A disk of the cache that can be made to fail or to stall.

use std::io::{Error, Result};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex};
use selvedge_cache::disk::DiskOptions;
use selvedge_cache::disk::io::{DiskFile, Folder, FolderLock, OsFolder};

/// What is wrong with the disk at the moment.
#[derive(Debug, Default)]
pub struct Faults {
    /// Every read and write ends with an I/O error.
    pub failing: AtomicBool,
    stalled: Mutex<bool>,
    released: Condvar,
}

impl Faults {
    /// Reads and writes take until this is taken back.
    pub fn stall(&self, stalled: bool) {
        *self.stalled.lock() = stalled;
        self.released.notify_all();
    }

    /// A disk in `folder` with these faults.
    #[must_use]
    pub fn disk(self: &Arc<Self>, folder: &Path, size: u64) -> DiskOptions {
        let bad = BadFolder(OsFolder::new(folder), Arc::clone(self));
        DiskOptions { folder: Arc::new(bad), ..DiskOptions::at(folder, size) }
    }

    fn act(&self) -> Result<()> {
        let mut stalled = self.stalled.lock();
        while *stalled {
            self.released.wait(&mut stalled);
        }
        if self.failing.load(Ordering::SeqCst) { Err(Error::from_raw_os_error(EIO)) } else { Ok(()) }
    }
}

/// Input/output error.
const EIO: i32 = 5;

#[derive(Debug)]
struct BadFolder(OsFolder, Arc<Faults>);

impl Folder for BadFolder {
    fn lock(&self) -> Result<Option<FolderLock>> {
        self.0.lock()
    }

    fn list(&self) -> Result<Vec<String>> {
        self.0.list()
    }

    fn create(&self, name: &str, size: u64) -> Result<Arc<dyn DiskFile>> {
        self.1.act()?;
        Ok(Arc::new(BadFile(self.0.create(name, size)?, Arc::clone(&self.1))))
    }

    fn open(&self, name: &str) -> Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(BadFile(self.0.open(name)?, Arc::clone(&self.1))))
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.0.rename(from, to)
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.0.remove(name)
    }

    fn sync(&self) -> Result<()> {
        self.1.act()?;
        self.0.sync()
    }
}

#[derive(Debug)]
struct BadFile(Arc<dyn DiskFile>, Arc<Faults>);

impl DiskFile for BadFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.1.act()?;
        self.0.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.1.act()?;
        self.0.write_at(bytes, offset)
    }

    fn sync(&self) -> Result<()> {
        self.1.act()?;
        self.0.sync()
    }

    fn set_len(&self, length: u64) -> Result<()> {
        self.1.act()?;
        self.0.set_len(length)
    }

    fn length(&self) -> Result<u64> {
        self.0.length()
    }
}
