//! Sockets that listen already when the process starts: handed over by the process before it (`upgrade.rs`), or by systemd (socket
//! activation, sd_listen_fds(3)). Whoever binds an address asks here first.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

use listenfd::ListenFd;
use parking_lot::Mutex;
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

    fn is_at(&self, address: SocketAddr) -> bool {
        matches!(self, Self::Tcp(socket) if socket.local_addr().is_ok_and(|local| local == address))
    }

    fn is_at_path(&self, path: &Path) -> bool {
        matches!(self, Self::Unix(socket) if socket.local_addr().is_ok_and(|local| local.as_pathname() == Some(path)))
    }
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

    /// The socket at this address; where any port will do, the one made for what is called `name`.
    pub(crate) fn take(&self, name: &str, address: SocketAddr) -> Option<TcpListener> {
        let mut sockets = self.0.lock();
        let found = sockets.iter().position(|(made_for, socket)| match address.port() {
            0 => made_for == name && matches!(socket, Socket::Tcp(_)),
            _ => socket.is_at(address),
        });
        match sockets.swap_remove(found?).1 {
            Socket::Tcp(socket) => Some(socket),
            Socket::Unix(_) => None,
        }
    }

    /// The socket at this path.
    pub(crate) fn take_path(&self, path: &Path) -> Option<UnixListener> {
        let mut sockets = self.0.lock();
        let found = sockets.iter().position(|(_, socket)| socket.is_at_path(path));
        match sockets.swap_remove(found?).1 {
            Socket::Unix(socket) => Some(socket),
            Socket::Tcp(_) => None,
        }
    }

    /// Closes those that the configuration has no use for, and says so.
    pub(crate) fn close_the_rest(&self) {
        for (name, socket) in self.0.lock().drain(..) {
            warn!(name, %socket, "a socket was handed over that nothing in the configuration listens at");
        }
    }
}
