//! The proxy as a process, as users start it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::until;

/// A running `selvedge run`; killed when dropped.
pub struct Process {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

impl Process {
    /// Starts `program run --config config` in `folder` and waits until `listeners` listeners are listening.
    ///
    /// # Panics
    /// When it cannot be started, or ends instead of listening: its log is then the message.
    pub async fn run(program: &str, folder: &Path, config: &Path, listeners: usize) -> Self {
        let mut child = Command::new(program)
            .args(["run", "--config"])
            .arg(config)
            .current_dir(folder)
            .env_remove("SELVEDGE_LOG")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let log = Arc::new(Mutex::new(Vec::new()));
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let lines = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                lines.lock().push(line);
            }
        });
        let mut process = Self { child, log };
        until("the process listens", || {
            assert!(process.child.try_wait().ok().flatten().is_none(), "it ended:\n{}", process.log().join("\n"));
            process.addresses().len() >= listeners
        })
        .await;
        process
    }

    /// What it has written to stderr.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.log.lock().clone()
    }

    /// The addresses of its listeners, as it says in its log.
    #[must_use]
    pub fn addresses(&self) -> BTreeMap<String, SocketAddr> {
        let word = |line: &str, name: &str| {
            line.split_whitespace().find_map(|part| part.strip_prefix(name)?.strip_prefix('=').map(String::from))
        };
        self.log
            .lock()
            .iter()
            .filter(|line| line.contains(" listening "))
            .filter_map(|line| Some((word(line, "listener")?, word(line, "address")?.parse().ok()?)))
            .collect()
    }

    /// Stops it in its tracks, until it is sent `CONT`. The signal alone would let it run on for a moment.
    pub async fn stop(&self) {
        self.signal("STOP");
        let tasks = format!("/proc/{}/task", self.child.id());
        let is_stopped = |task: std::fs::DirEntry| {
            // The state stands behind the name, which is in parentheses (proc_pid_stat(5)).
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('T'))
        };
        until("every thread stands still", || {
            std::fs::read_dir(&tasks).is_ok_and(|tasks| tasks.filter_map(Result::ok).all(is_stopped))
        })
        .await;
    }

    /// How much of its memory is resident, in bytes.
    ///
    /// # Panics
    /// When the system does not say.
    #[must_use]
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line");
        let kib: u64 = line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number");
        kib * 1024
    }

    /// Sends it a signal (`HUP`, `TERM`).
    ///
    /// # Panics
    /// When there is no `kill` program.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().expect("kill");
        assert!(sent.success());
    }

    /// Waits until it has ended.
    pub async fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        until("the process ends", || {
            status = self.child.try_wait().ok().flatten();
            status.is_some()
        })
        .await;
        status.expect("ended")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
