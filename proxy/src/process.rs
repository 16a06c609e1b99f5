//! The life of a node as a process: signals, changed files, the service manager that started it, and the process that follows it.

use std::io;
use std::path::Path;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tracing::{debug, error, info, warn};

use crate::control::Control;
use crate::error_chain;
use crate::node::{self, Node, StartError};
use crate::reload::FileWatch;
use crate::sockets::Inherited;
use crate::upgrade::{Predecessor, Program, UpgradeError};

/// Why a node does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("no runtime for signals")]
    Runtime(#[source] io::Error),
    #[error("signals cannot be heard")]
    Signals(#[source] io::Error),
    #[error("the process whose place this one takes does not hand over its sockets")]
    TakeOver(#[source] io::Error),
}

/// Runs a node until a signal ends it, or another process has taken its place.
///
/// # Errors
/// It does not start.
pub(crate) fn run(path: &Path) -> Result<(), RunError> {
    let program = Program::this().inspect_err(|error| warn!(%error, "this program cannot be upgraded")).ok();
    // Signals and file events are waited for here; requests have their own threads.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RunError::Runtime)?;
    // Watched from before it is read, so that no change falls in between.
    let mut watch = FileWatch::new().inspect_err(|error| warn!(%error, "files are not watched: use SIGHUP")).ok();
    if let Some(watch) = &mut watch {
        watch.set(&[path.to_owned()]);
    }
    let (predecessor, inherited) = match Predecessor::of_this().map_err(RunError::TakeOver)? {
        Some((predecessor, inherited)) => (Some(predecessor), inherited),
        None => (None, Inherited::from_systemd()),
    };
    // Heard from before there is a node, which it would end otherwise: who sees it listen may send one at once.
    let orders = runtime.block_on(async { Orders::new() }).map_err(RunError::Signals)?;
    let mut node = Node::inheriting(path.to_owned(), node::loader(), inherited)?;
    let signals = runtime.block_on(async { Signals::new(orders) }).map_err(RunError::Signals)?;
    if let Some(predecessor) = predecessor {
        predecessor.ready().map_err(RunError::TakeOver)?;
        info!("took over");
    }
    tell(&[NotifyState::Ready]);

    match runtime.block_on(attend(&mut node, signals, watch, program)) {
        End::Signal => tell(&[NotifyState::Stopping]),
        End::Successor(process) => {
            // The service goes on, under another process.
            tell(&[NotifyState::MainPid(process)]);
            node.leave_sockets();
        }
    }
    info!("stopping: requests under way may end; a second signal cuts them off");
    end_at_another_signal(runtime);
    node.shutdown();
    Ok(())
}

/// Signals that say what a node is to do; those that came while it started are followed then.
struct Orders {
    hangup: Signal,
    upgrade: Signal,
}

impl Orders {
    fn new() -> io::Result<Self> {
        Ok(Self { hangup: signal(SignalKind::hangup())?, upgrade: signal(SignalKind::user_defined2())? })
    }
}

/// What a process is told from outside.
struct Signals {
    orders: Orders,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on a node that is asked to end does so in order; one that still starts ends at once.
    fn new(orders: Orders) -> io::Result<Self> {
        Ok(Self { orders, terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }
}

/// Why a node ends.
enum End {
    /// Somebody said so.
    Signal,
    /// This process has taken its place.
    Successor(u32),
}

/// Reloads, upgrades and waits, until the node is to end.
async fn attend(node: &mut Node, mut signals: Signals, mut watch: Option<FileWatch>, program: Option<Program>) -> End {
    let control = node.control().clone();
    let mut files = control.files();
    let mut upgrading: Option<JoinHandle<Result<u32, UpgradeError>>> = None;
    loop {
        if let Some(watch) = &mut watch {
            watch.set(&files.borrow_and_update());
        }
        let changed = async {
            match &mut watch {
                Some(watch) => watch.changed().await,
                None => std::future::pending().await,
            }
        };
        let upgraded = async {
            match &mut upgrading {
                Some(upgrading) => upgrading.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = signals.terminate.recv() => return End::Signal,
            _ = signals.interrupt.recv() => return End::Signal,
            _ = signals.orders.hangup.recv() => reload(&control),
            _ = signals.orders.upgrade.recv() => match &program {
                _ if upgrading.is_some() => warn!("another process is already on its way"),
                Some(program) => upgrading = upgrade(node, program.clone()),
                None => error!("this program cannot be upgraded: it does not know where it is"),
            },
            upgraded = upgraded => {
                upgrading = None;
                match upgraded {
                    Ok(Ok(process)) => {
                        info!(process, "another process has taken over");
                        return End::Successor(process);
                    }
                    Ok(Err(error)) => error!(error = error_chain(&error), "no other process takes over; this one goes on"),
                    Err(error) => error!(%error, "no other process takes over; this one goes on"),
                }
            }
            () = changed => reload(&control),
            _ = files.changed() => {}
        }
    }
}

/// A reload tells itself how it went.
fn reload(control: &Control) {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        tell(&[NotifyState::Reloading, now]);
    }
    drop(control.reload());
    tell(&[NotifyState::Ready]);
}

/// Begins to start this program anew.
fn upgrade(node: &mut Node, program: Program) -> Option<JoinHandle<Result<u32, UpgradeError>>> {
    match node.sockets() {
        Ok(sockets) => {
            info!(sockets = sockets.len(), "another process is to take over");
            Some(tokio::task::spawn_blocking(move || program.start_anew(sockets)))
        }
        Err(error) => {
            error!(%error, "the sockets cannot be handed over; this process goes on");
            None
        }
    }
}

/// Tells the service manager, if there is one (sd_notify(3)).
fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        debug!(%error, "the service manager does not hear");
    }
}

/// Whoever asks twice does not want to wait for requests under way.
fn end_at_another_signal(runtime: tokio::runtime::Runtime) {
    let waiting = move || {
        runtime.block_on(async {
            let (Ok(mut terminate), Ok(mut interrupt)) =
                (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
            else {
                return std::future::pending().await;
            };
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        });
        warn!("stopped by a second signal");
        std::process::exit(1);
    };
    if let Err(error) = std::thread::Builder::new().name("signals".into()).spawn(waiting) {
        warn!(%error, "a second signal will not be heard");
    }
}
