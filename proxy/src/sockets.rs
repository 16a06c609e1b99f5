//! Sockets that listen already when the process starts: handed over by the process before it (`upgrade.rs`), or by systemd (socket
//! activation, sd_listen_fds(3)). Whoever binds an address asks here first.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use listenfd::ListenFd;
use parking_lot::Mutex;
use selvedge_config::Bind;
use tracing::warn;

/// A listening socket.
#[derive(Debug)]
pub enum Socket {
    /// Of TCP.
    Tcp(TcpListener),
    /// At a path.
    Unix(UnixListener),
}

impl Socket {
    /// Another handle of the same socket.
    ///
    /// # Errors
    /// There is no file descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(socket) => socket.try_clone().map(Self::Tcp),
            Self::Unix(socket) => socket.try_clone().map(Self::Unix),
        }
    }

    /// A socket of unknown kind.
    ///
    /// # Errors
    /// It is none that streams are accepted from.
    fn of(socket: OwnedFd) -> io::Result<Self> {
        let socket = socket2::Socket::from(socket);
        let address = socket.local_addr()?;
        if socket.r#type()? != socket2::Type::STREAM || !socket.is_listener()? {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "this is no socket that listens"));
        }
        if address.is_unix() {
            Ok(Self::Unix(OwnedFd::from(socket).into()))
        } else {
            Ok(Self::Tcp(OwnedFd::from(socket).into()))
        }
    }

    /// The address it really has, with a real port in place of 0; a Unix socket has none.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(socket) => socket.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    /// Whether it is what was made for what is called `name`, to listen there.
    fn is_for(&self, made_for: &str, name: &str, bind: &Bind) -> bool {
        match (self, bind) {
            (Self::Tcp(_), Bind::Tcp(address)) if address.port() == 0 => made_for == name,
            (Self::Tcp(socket), Bind::Tcp(address)) => socket.local_addr().is_ok_and(|local| local == *address),
            (Self::Unix(socket), Bind::Unix(path)) => {
                socket.local_addr().is_ok_and(|local| local.as_pathname() == Some(path))
            }
            (Self::Tcp(_), Bind::Unix(_)) | (Self::Unix(_), Bind::Tcp(_)) => false,
        }
    }

    fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.set_nonblocking(true),
            Self::Unix(socket) => socket.set_nonblocking(true),
        }
    }
}

/// The file of a Unix socket that this process has made. Dropped with whoever listens there last, the file is removed, unless another
/// process has the socket by then.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    left: AtomicBool,
}

impl SocketFile {
    /// The socket is another process's now: the file stays.
    pub(crate) fn leave(&self) {
        self.left.store(true, Relaxed);
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !*self.left.get_mut() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Binds an address. A Unix socket may be opened by the process's user and group; a socket file that nobody listens at is from a process
/// that was killed, and is replaced; anything else at that path stays.
fn bind_new(bind: &Bind) -> io::Result<(Socket, Option<Arc<SocketFile>>)> {
    let path = match bind {
        Bind::Tcp(address) => return Ok((Socket::Tcp(TcpListener::bind(address)?), None)),
        Bind::Unix(path) => path,
    };
    if is_abandoned(path) {
        std::fs::remove_file(path)?;
    }
    let socket = UnixListener::bind(path)?;
    let file = SocketFile { path: path.clone(), left: AtomicBool::new(false) };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok((Socket::Unix(socket), Some(Arc::new(file))))
}

/// Whether there is a socket's file that nobody listens at.
fn is_abandoned(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
        && UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

impl From<Socket> for OwnedFd {
    fn from(socket: Socket) -> Self {
        match socket {
            Socket::Tcp(socket) => socket.into(),
            Socket::Unix(socket) => socket.into(),
        }
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(socket) => match socket.local_addr() {
                Ok(address) => address.fmt(f),
                Err(_) => f.write_str("a TCP socket"),
            },
            Self::Unix(socket) => match socket.local_addr().ok().as_ref().and_then(|address| address.as_pathname()) {
                Some(path) => write!(f, "unix:{}", path.display()),
                None => f.write_str("a Unix socket"),
            },
        }
    }
}

/// Sockets that nobody has asked for yet, each with the name of what it was made for.
#[derive(Debug, Default)]
pub struct Inherited(Mutex<Vec<(String, Socket)>>);

impl Inherited {
    /// Those of the environment, if it hands over any: what systemd's `LISTEN_FDS` says, by names of `LISTEN_FDNAMES`.
    #[must_use]
    pub fn from_systemd() -> Self {
        let mut given = ListenFd::from_env();
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut sockets = Vec::new();
        for index in 0..given.len() {
            let name = names.next().unwrap_or_default().to_owned();
            let tcp = given.take_tcp_listener(index).ok().flatten().map(OwnedFd::from);
            let socket = tcp.or_else(|| given.take_unix_listener(index).ok().flatten().map(OwnedFd::from));
            match socket.map_or_else(|| Err(io::Error::from(io::ErrorKind::InvalidInput)), Socket::of) {
                Ok(socket) => sockets.push((name, socket)),
                Err(error) => warn!(name, index, %error, "systemd hands over something that cannot be listened at"),
            }
        }
        Self(Mutex::new(sockets))
    }

    /// One more, made for what is called `name`.
    ///
    /// # Errors
    /// It is none that streams are accepted from.
    pub fn add(&self, name: String, socket: OwnedFd) -> io::Result<()> {
        let socket = Socket::of(socket)?;
        self.0.lock().push((name, socket));
        Ok(())
    }

    /// A socket that listens there and does not block, made for what is called `name`: one that is handed over, by its address (or by its
    /// name, where any port will do); else a new one, with its file if it has one.
    ///
    /// # Errors
    /// The address is not free or not ours, or the socket's file cannot be made.
    pub(crate) fn listen(&self, name: &str, bind: &Bind) -> io::Result<(Socket, Option<Arc<SocketFile>>)> {
        let (socket, file) = match self.take(name, bind) {
            Some(socket) => (socket, None), // Its file is whoever's who made it.
            None => bind_new(bind)?,
        };
        socket.set_nonblocking()?;
        Ok((socket, file))
    }

    fn take(&self, name: &str, bind: &Bind) -> Option<Socket> {
        let mut sockets = self.0.lock();
        let found = sockets.iter().position(|(made_for, socket)| socket.is_for(made_for, name, bind))?;
        Some(sockets.swap_remove(found).1)
    }

    /// Closes those that the configuration has no use for, and says so.
    pub(crate) fn close_the_rest(&self) {
        for (name, socket) in self.0.lock().drain(..) {
            warn!(name, %socket, "a socket was handed over that nothing in the configuration listens at");
        }
    }
}
