//! What the log does with a file system, as traits: so that tests can put a disk under it that fails, stalls, or cuts writes off.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

/// The file whose lock says that a folder is in use.
const LOCK: &str = "lock";

/// Held as long as the folder is ours; dropped, it is free.
pub type FolderLock = Box<dyn std::any::Any + Send>;

/// One folder of one disk.
pub trait Folder: Send + Sync + fmt::Debug + 'static {
    /// Makes the folder where it is missing, and takes its lock. `None`: another process has it.
    ///
    /// # Errors
    /// When the folder cannot be made or the lock file cannot be opened.
    fn lock(&self) -> io::Result<Option<FolderLock>>;

    /// The names of the files in it.
    ///
    /// # Errors
    /// As the file system says.
    fn list(&self) -> io::Result<Vec<String>>;

    /// A new file of `size` bytes, all zero, with its blocks reserved where the file system can.
    ///
    /// # Errors
    /// As the file system says; [`io::ErrorKind::StorageFull`] without room.
    fn create(&self, name: &str, size: u64) -> io::Result<Arc<dyn DiskFile>>;

    /// A file that is there.
    ///
    /// # Errors
    /// As the file system says.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Renames, over what has the new name.
    ///
    /// # Errors
    /// As the file system says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file. Those who have it open may read on.
    ///
    /// # Errors
    /// As the file system says.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes the names durable.
    ///
    /// # Errors
    /// As the file system says.
    fn sync(&self) -> io::Result<()>;
}

/// An open file.
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Fills `buffer` from `offset` on.
    ///
    /// # Errors
    /// As the file system says; [`io::ErrorKind::UnexpectedEof`] when the file is shorter.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// As the file system says; some of the bytes may be written then.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes what was written durable.
    ///
    /// # Errors
    /// As the file system says.
    fn sync(&self) -> io::Result<()>;

    /// Cuts the file off, or grows it.
    ///
    /// # Errors
    /// As the file system says.
    fn set_len(&self, length: u64) -> io::Result<()>;

    /// How long the file is.
    ///
    /// # Errors
    /// As the file system says.
    fn length(&self) -> io::Result<u64>;
}

/// A folder of the operating system.
#[derive(Debug, Clone)]
pub struct OsFolder {
    path: PathBuf,
}

impl OsFolder {
    /// The folder at `path`, which need not exist yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }
}

impl Folder for OsFolder {
    fn lock(&self) -> io::Result<Option<FolderLock>> {
        std::fs::create_dir_all(&self.path)?;
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(self.path.join(LOCK))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let entries = std::fs::read_dir(&self.path)?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn create(&self, name: &str, size: u64) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.path.join(name);
        let file = OpenOptions::new().create_new(true).read(true).write(true).open(&path)?;
        if size == 0 {
            return Ok(Arc::new(OsFile(file)));
        }
        let reserved = match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size) {
            // Not every file system can reserve; then it may be full later, which the log copes with.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => file.set_len(size),
            other => other.map_err(io::Error::from),
        };
        if let Err(error) = reserved {
            std::fs::remove_file(&path)?;
            return Err(error);
        }
        Ok(Arc::new(OsFile(file)))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(true).open(self.path.join(name))?;
        Ok(Arc::new(OsFile(file)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

#[derive(Debug)]
struct OsFile(File);

impl DiskFile for OsFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}
