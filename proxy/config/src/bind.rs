//! Where the node listens.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use crate::decode::{At, Cx, beside, parsed};

/// How long the path of a Unix socket may be, in bytes (unix(7)).
pub(crate) const UNIX_PATH_MAX: usize = 107;

/// An address that is listened at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bind {
    /// An address and a port; port 0 is any free one.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl Bind {
    /// Whether only this machine can reach it.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }

    /// The address and port, unless it is a Unix socket.
    #[must_use]
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }

    /// Whether it is another address each time it is bound.
    #[must_use]
    pub fn is_any_port(&self) -> bool {
        self.tcp().is_some_and(|address| address.port() == 0)
    }

    /// Reads `IP:port` or `unix:/path`. To whom a port alone is written, `host` is proposed, which is for `whom`.
    pub(crate) fn read(cx: &mut Cx<'_>, at: &At<'_>, host: &str, whom: &str) -> Option<Self> {
        parsed(cx, at, "an address and a port, or `unix:/path`", |text| {
            if let Some(path) = text.strip_prefix("unix:") {
                if path.is_empty() {
                    return Err(("names no path".into(), None));
                }
                let path = beside(&at.node.position.file, Path::new(path));
                if path.as_os_str().len() > UNIX_PATH_MAX {
                    return Err((
                        format!("is longer than the {UNIX_PATH_MAX} bytes that a Unix socket may have"),
                        None,
                    ));
                }
                return Ok(Self::Unix(path));
            }
            text.parse().map(Self::Tcp).map_err(|_| {
                let port = text.strip_prefix(':').or_else(|| text.strip_prefix("*:"));
                let port = port.filter(|port| port.parse::<u16>().is_ok());
                let help = port.map(|port| format!("for {whom}, write `{host}:{port}`"));
                ("is not an address and a port".into(), help)
            })
        })
    }
}

impl From<SocketAddr> for Bind {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
