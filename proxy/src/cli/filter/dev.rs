//! `selvedge filter dev`: a node that runs the filter of a crate, and takes over what is saved as soon as it is built.
//!
//! ```text
//! build -> start -> wait for a change -> build -> swap -> wait ..
//!   \ fails: what runs stays, wait    \ configuration only: swap
//! ```

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::super::{complain, print};
use super::project::{Build, Building, Project, TARGET, target_is_installed};
use super::{Done, Trouble, kib};
use crate::node::{self, Node};
use crate::{error_chain, telemetry};

#[derive(Args)]
pub(in crate::cli) struct DevArgs {
    /// The manifest of the filter crate.
    #[arg(long, default_value = "Cargo.toml")]
    manifest_path: PathBuf,
    /// The package, where the manifest is that of a workspace.
    #[arg(short, long)]
    package: Option<String>,
    /// The configuration of the node. Default: selvedge.yaml beside the manifest. In it, ${FILTER_WASM} is the module that is built.
    #[arg(short, long)]
    config: Option<PathBuf>,
    /// Cargo's profile.
    #[arg(long, default_value = "release")]
    profile: String,
    /// Keep DWARF: traps tell files and lines.
    #[arg(long)]
    debug: bool,
    /// Do not ask registries.
    #[arg(long)]
    offline: bool,
}

/// Editors write in several steps: a change counts once nothing has happened for this long.
const SETTLE: Duration = Duration::from_millis(60);

/// ... or at the latest after this, however much is written.
const SETTLED_AT_LAST: Duration = Duration::from_secs(2);

/// A build that takes longer has failed.
const LONGEST_BUILD: Duration = Duration::from_secs(900);

/// Changes that may wait; more are dropped, since one build serves them all.
const CHANGES_WAITING: usize = 256;

/// The variable that a configuration names the module by.
const MODULE_VARIABLE: &str = "FILTER_WASM";

pub(super) fn run(args: &DevArgs) -> Done {
    if target_is_installed() == Some(false) {
        return Err(Trouble::new(format!("the wasm target is missing: run `rustup target add {TARGET}`")));
    }
    let project = Project::at(&args.manifest_path, args.package.as_deref())?;
    let config = args.config.clone().unwrap_or_else(|| project.folder().join("selvedge.yaml"));
    if !config.is_file() {
        return Err(Trouble::new(format!(
            "{}: no such file; it is to say which route runs the filter (`selvedge filter new` writes one)",
            config.display()
        )));
    }
    telemetry::init();
    let failed = |what: &str, error: &dyn std::fmt::Display| Trouble::new(format!("{what}: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| failed("no runtime", &error))?;
    let ended = runtime.block_on(async {
        let signals = Signals::new().map_err(|error| failed("signals cannot be heard", &error))?;
        let watch = Watch::new(&project).map_err(|error| failed("files cannot be watched", &error))?;
        let how = Build { profile: args.profile.clone(), debug: args.debug, offline: args.offline, quiet: true };
        Dev {
            module: project.artifact(&args.profile),
            project: Arc::new(project),
            config,
            how,
            watch,
            signals,
            node: None,
            size: None,
        }
        .serve()
        .await
    });
    // A build that was stopped may not have noticed yet.
    runtime.shutdown_background();
    if let Some(node) = ended? {
        print("stopping\n");
        node.shutdown();
    }
    Ok(ExitCode::SUCCESS)
}

struct Dev {
    project: Arc<Project>,
    config: PathBuf,
    how: Build,
    /// Where the module comes to be.
    module: PathBuf,
    watch: Watch,
    signals: Signals,
    node: Option<Node>,
    /// Of the module that runs.
    size: Option<usize>,
}

/// What a change asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wanted {
    /// The configuration is to be read again.
    Reload,
    /// The module is to be built.
    Build,
}

impl Dev {
    /// Until somebody ends it. What is returned is the node, if one runs.
    async fn serve(mut self) -> Result<Option<Node>, Trouble> {
        let mut wanted = Wanted::Build;
        loop {
            if wanted == Wanted::Reload || self.build().await? {
                match self.signals.heard() {
                    true => return Ok(self.node),
                    false => self.put_in_force()?,
                }
            }
            tokio::select! {
                () = self.signals.any() => return Ok(self.node),
                change = self.watch.changed() => wanted = change.max(if self.node.is_none() { Wanted::Build } else { Wanted::Reload }),
            }
        }
    }

    /// True: there is a new module.
    async fn build(&mut self) -> Result<bool, Trouble> {
        print(format_args!("building {}\n", self.project.name));
        let began = Instant::now();
        let (project, how, building) = (Arc::clone(&self.project), self.how.clone(), Building::default());
        let of_task = building.clone();
        let task = tokio::task::spawn_blocking(move || project.build_as(&how, &of_task));
        let built = tokio::select! {
            built = tokio::time::timeout(LONGEST_BUILD, task) => built,
            () = self.signals.any() => {
                building.stop();
                self.signals.ended = true;
                return Ok(true);
            }
        };
        match built {
            Ok(Ok(Ok(module))) => {
                print(format_args!("built in {:.2?}\n", began.elapsed()));
                self.module = module;
                Ok(true)
            }
            Ok(Ok(Err(trouble))) => {
                let runs = if self.node.is_some() { "; the filter that was built before goes on" } else { "" };
                complain(format_args!("{trouble}{runs}\n"), ExitCode::FAILURE);
                Ok(false)
            }
            Ok(Err(error)) => Err(Trouble::new(format!("the build broke off: {error}"))),
            Err(_) => {
                building.stop();
                complain(
                    format_args!("the build has not ended in {LONGEST_BUILD:?} and is stopped\n"),
                    ExitCode::FAILURE,
                );
                Ok(false)
            }
        }
    }

    /// Starts the node, or swaps what is new into the one that runs. A fault is told, and what runs stays.
    fn put_in_force(&mut self) -> Result<(), Trouble> {
        let began = Instant::now();
        let size = std::fs::metadata(&self.module).ok().and_then(|module| usize::try_from(module.len()).ok());
        let Some(node) = &self.node else {
            let module = self.module.display().to_string();
            let loader = node::loader().env(move |name| {
                let own = std::env::var(name).ok();
                if name == MODULE_VARIABLE { own.or_else(|| Some(module.clone())) } else { own }
            });
            match Node::start(self.config.clone(), loader) {
                Ok(node) => {
                    let known = size.map_or_else(String::new, |size| format!(", {}", kib(size)));
                    print(format_args!("{} runs{known}; started in {:.2?}\n", self.project.name, began.elapsed()));
                    for (listener, address) in node.addresses() {
                        print(format_args!("listener {listener}: http://{address}\n"));
                    }
                    self.watch.configuration(&node.control().files().borrow(), &self.module);
                    print("save a file, and it is in force a moment later; Ctrl-C ends\n");
                    (self.node, self.size) = (Some(node), size);
                }
                Err(node::StartError::Config(report)) => {
                    self.watch.configuration(&report.files, &self.module);
                    complain(
                        format_args!("{report}\nthe node does not start; change what is wrong\n"),
                        ExitCode::FAILURE,
                    );
                }
                Err(error) => return Err(Trouble::new(error_chain(&error))),
            }
            return Ok(());
        };
        match node.control().reload() {
            Ok(generation) => {
                let grown = match (self.size, size) {
                    (Some(before), Some(after)) if after >= before => {
                        format!(", {} (+{})", kib(after), kib(after - before))
                    }
                    (Some(before), Some(after)) => format!(", {} (-{})", kib(after), kib(before - after)),
                    _ => String::new(),
                };
                let (name, took) = (&self.project.name, began.elapsed());
                print(format_args!("swapped in {took:.2?}: {name}{grown}, generation {generation}\n"));
                self.size = size;
            }
            // The log tells the faults, with their places.
            Err(_) => drop(complain("what runs goes on\n", ExitCode::FAILURE)),
        }
        self.watch.configuration(&node.control().files().borrow(), &self.module);
        Ok(())
    }
}

/// Who ends it.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    ended: bool,
}

impl Signals {
    fn new() -> io::Result<Self> {
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Self { terminate, interrupt, ended: false })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Whether one came while something was being built.
    fn heard(&self) -> bool {
        self.ended
    }
}

/// Watches a crate, and the configuration of its node.
struct Watch {
    watcher: RecommendedWatcher,
    source: PathBuf,
    manifests: HashSet<PathBuf>,
    configuration: HashSet<PathBuf>,
    folders: HashSet<PathBuf>,
    changes: mpsc::Receiver<Vec<PathBuf>>,
}

impl Watch {
    fn new(project: &Project) -> notify::Result<Self> {
        let (sender, changes) = mpsc::channel(CHANGES_WAITING);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if let Ok(event) = event
                && !matches!(event.kind, EventKind::Access(_))
            {
                let _ = sender.try_send(event.paths);
            }
        })?;
        let folder = project.folder().to_owned();
        let source = folder.join("src");
        watcher.watch(&source, RecursiveMode::Recursive)?;
        watcher.watch(&folder, RecursiveMode::NonRecursive)?;
        let manifests = ["Cargo.toml", "build.rs"].map(|name| folder.join(name)).into_iter().collect();
        let folders = HashSet::from([folder]);
        Ok(Self { watcher, source, manifests, configuration: HashSet::new(), folders, changes })
    }

    /// The configuration is made of these files from now on. The module among them is built here.
    fn configuration(&mut self, files: &[PathBuf], module: &Path) {
        let absolute = |file: &PathBuf| std::path::absolute(file).unwrap_or_else(|_| file.clone());
        self.configuration = files.iter().filter(|file| file.as_path() != module).map(absolute).collect();
        for folder in self.configuration.iter().filter_map(|file| file.parent()) {
            if !self.folders.contains(folder) && self.watcher.watch(folder, RecursiveMode::NonRecursive).is_ok() {
                self.folders.insert(folder.to_owned());
            }
        }
    }

    /// Waits until something has changed and settled. Cancel safe, except that a change seen while settling may be lost.
    async fn changed(&mut self) -> Wanted {
        let mut wanted = loop {
            let Some(paths) = self.changes.recv().await else { return std::future::pending().await };
            if let Some(wanted) = self.means(&paths) {
                break wanted;
            }
        };
        let began = Instant::now();
        while began.elapsed() < SETTLED_AT_LAST
            && let Ok(Some(paths)) = tokio::time::timeout(SETTLE, self.changes.recv()).await
        {
            wanted = self.means(&paths).map_or(wanted, |more| wanted.max(more));
        }
        wanted
    }

    fn means(&self, paths: &[PathBuf]) -> Option<Wanted> {
        let of = |path: &PathBuf| {
            if self.manifests.contains(path) || path.starts_with(&self.source) && !is_passing(path) {
                Some(Wanted::Build)
            } else {
                self.configuration.contains(path).then_some(Wanted::Reload)
            }
        };
        paths.iter().filter_map(of).max()
    }
}

/// Files that editors put beside what is edited, and take away again.
fn is_passing(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.starts_with(['.', '#']) || name.ends_with(['~', '#']) || name.ends_with(".swp") || name == "4913"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_editors_are_no_change() {
        for name in ["src/.lib.rs.swp", "src/lib.rs~", "src/#lib.rs#", "src/4913", "src/.#lib.rs"] {
            assert!(is_passing(Path::new(name)), "{name}");
        }
        assert!(!is_passing(Path::new("src/lib.rs")) && !is_passing(Path::new("src/data/words.txt")));
    }
}
