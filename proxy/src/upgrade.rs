//! Another program takes this one's place without a connection being refused: a new process gets the listening sockets, starts with them,
//! says that it is ready, and only then the old one stops accepting and finishes what it has.
//!
//! ```text
//! old: SIGUSR2 -> starts the new one -> sends each socket -> waits for "ready" -> drains -> ends
//! new:                                  takes them, starts -> "ready" -> serves
//! ```
//!
//! They talk over the new one's standard input, a Unix socket that keeps messages apart; a message is the name of what a socket is for,
//! with the socket (SCM_RIGHTS, unix(7)). If the new process ends or is not ready in time, the old one goes on as if nothing had been.

use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recv, recvmsg, send, sendmsg, socketpair,
};

use crate::sockets::{Inherited, Socket};

/// Says to the new process that it is one.
const TAKE_OVER: &str = "SELVEDGE_TAKE_OVER";
/// The last message of the old process, and the only one of the new one.
const COMPLETE: &[u8] = b"\0complete";
const READY: &[u8] = b"\0ready";
/// How long the new process may take to start: modules may have to be compiled.
const START_MAX: Duration = Duration::from_mins(2);
/// How long one message may take.
const MESSAGE_MAX: Duration = Duration::from_secs(5);
/// The longest name of a socket's purpose.
const NAME_MAX: usize = 512;

/// How this process was started, to be started again.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

/// Why there is no new process.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpgradeError {
    #[error("{path} does not start")]
    Start {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the sockets cannot be handed over")]
    HandOver(#[source] io::Error),
    #[error("the new process ended before it was ready ({0})")]
    Ended(String),
    #[error("the new process was not ready in {START_MAX:?}, and was ended")]
    Late,
}

impl Program {
    /// This one. To be asked at the start: another file may be at its path later.
    ///
    /// # Errors
    /// The system does not say where it is.
    pub(crate) fn this() -> io::Result<Self> {
        Ok(Self { path: std::env::current_exe()?, arguments: std::env::args_os().skip(1).collect() })
    }

    /// Starts what is at this program's path now, and hands it these sockets. Blocks until it serves.
    ///
    /// # Errors
    /// It does not; it has ended then.
    pub(crate) fn start_anew(&self, sockets: Vec<(String, Socket)>) -> Result<u32, UpgradeError> {
        let (ours, theirs) = pair().map_err(UpgradeError::HandOver)?;
        let mut child = Command::new(&self.path)
            .args(&self.arguments)
            .env(TAKE_OVER, "stdin")
            .env_remove("LISTEN_FDS")
            .env_remove("LISTEN_FDNAMES")
            .env_remove("LISTEN_PID")
            .stdin(Stdio::from(theirs))
            .spawn()
            .map_err(|source| UpgradeError::Start { path: self.path.clone(), source })?;
        let done = hand_over(&ours, sockets).map_err(UpgradeError::HandOver).and_then(|()| wait(&ours, &mut child));
        if done.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        done.map(|()| child.id())
    }
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    for end in [&pair.0, &pair.1] {
        set_socket_timeout(end, Timeout::Send, Some(MESSAGE_MAX))?;
        set_socket_timeout(end, Timeout::Recv, Some(MESSAGE_MAX))?;
    }
    Ok(pair)
}

fn hand_over(to: &OwnedFd, sockets: Vec<(String, Socket)>) -> io::Result<()> {
    for (name, socket) in sockets {
        let socket = OwnedFd::from(socket);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let handles = [socket.as_fd()];
        if !control.push(SendAncillaryMessage::ScmRights(&handles)) {
            return Err(io::Error::other("there is no room for a socket in a message"));
        }
        sendmsg(to, &[IoSlice::new(name.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
    }
    send(to, COMPLETE, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Waits until the new process serves.
fn wait(from: &OwnedFd, child: &mut Child) -> Result<(), UpgradeError> {
    let end = Instant::now() + START_MAX;
    while Instant::now() < end {
        let mut message = [0; READY.len()];
        match recv(from, &mut message[..], RecvFlags::empty()) {
            Ok((_, length)) if message.get(..length) == Some(READY) => return Ok(()),
            // In time slices: a process that has gone is noticed by the end of the stream.
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Ok(_) | Err(_) => {
                let how = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
                return Err(UpgradeError::Ended(how));
            }
        }
    }
    Err(UpgradeError::Late)
}

/// The other end: what a process that takes over from another is told.
pub(crate) struct Predecessor(());

impl Predecessor {
    /// The process whose place this one takes, if it does, and the sockets it hands over.
    ///
    /// # Errors
    /// It has gone, or what it sends makes no sense.
    pub(crate) fn of_this() -> io::Result<Option<(Self, Inherited)>> {
        if std::env::var_os(TAKE_OVER).is_none_or(|how| how != "stdin") {
            return Ok(None);
        }
        let inherited = Inherited::default();
        let input = io::stdin();
        loop {
            let mut name = [0; NAME_MAX];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut pieces = [IoSliceMut::new(&mut name)];
            let received = recvmsg(&input, &mut pieces, &mut control, RecvFlags::CMSG_CLOEXEC)?;
            let mut sockets = control.drain().filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
                _ => None,
            });
            let socket = sockets.next().and_then(|mut sockets| sockets.next());
            let name = name.get(..received.bytes).unwrap_or_default();
            match socket {
                Some(socket) => inherited.add(String::from_utf8_lossy(name).into_owned(), socket)?,
                None if name == COMPLETE => return Ok(Some((Self(()), inherited))),
                None => return Err(io::Error::new(io::ErrorKind::InvalidData, "the old process broke off")),
            }
        }
    }

    /// Tells it that this process serves.
    pub(crate) fn ready(self) -> io::Result<()> {
        send(io::stdin(), READY, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}
