//! When the configuration is read again: on SIGHUP, and when one of its files changes.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tracing::warn;

/// Editors and deployments write in several steps: a change counts once nothing has happened for this long.
const SETTLE: Duration = Duration::from_millis(200);

/// Watches files. Their folders are what is really watched, so that a file replaced by rename is noticed.
pub struct FileWatch {
    watcher: RecommendedWatcher,
    folders: HashSet<PathBuf>,
    files: HashSet<PathBuf>,
    changes: mpsc::Receiver<Vec<PathBuf>>,
}

/// Batches of changes that may wait; more are merged by dropping, since one reload serves them all.
const CHANGES_WAITING: usize = 64;

impl FileWatch {
    /// Starts with no files.
    ///
    /// # Errors
    /// The system refuses the watch (inotify instances are used up).
    pub fn new() -> notify::Result<Self> {
        let (sender, changes) = mpsc::channel(CHANGES_WAITING);
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if let Ok(event) = event
                && !matches!(event.kind, EventKind::Access(_))
            {
                let _ = sender.try_send(event.paths);
            }
        })?;
        Ok(Self { watcher, folders: HashSet::new(), files: HashSet::new(), changes })
    }

    /// Watches exactly these files from now on.
    pub fn set(&mut self, files: &[PathBuf]) {
        self.files = files.iter().map(|file| absolute(file)).collect();
        let folders: HashSet<PathBuf> =
            self.files.iter().filter_map(|file| file.parent().map(Path::to_owned)).collect();
        for gone in self.folders.difference(&folders) {
            let _ = self.watcher.unwatch(gone);
        }
        for new in folders.difference(&self.folders) {
            if let Err(error) = self.watcher.watch(new, RecursiveMode::NonRecursive) {
                warn!(folder = %new.display(), %error, "cannot be watched: changes there need SIGHUP");
            }
        }
        self.folders = folders;
    }

    /// Waits until one of the files has changed and settled. Cancel safe, except that a change seen while settling may be lost.
    pub async fn changed(&mut self) {
        loop {
            let Some(paths) = self.changes.recv().await else { return std::future::pending().await };
            if paths.iter().any(|path| self.files.contains(path)) {
                break;
            }
        }
        while tokio::time::timeout(SETTLE, self.changes.recv()).await.is_ok_and(|more| more.is_some()) {}
    }
}

fn absolute(file: &Path) -> PathBuf {
    std::path::absolute(file).unwrap_or_else(|_| file.to_owned())
}
