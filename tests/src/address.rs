//! Addresses that are no other test's. A port that was bound and given back may be somebody else's the next moment: tests run side by side,
//! and all of them ask for port 0.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::net::TcpSocket;

/// An address at which nobody listens as long as this process runs: its port is held, without listening.
///
/// # Panics
/// When no port is left.
#[must_use]
pub fn closed() -> SocketAddr {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
    let address = socket.local_addr().expect("bound");
    let _held = socket.into_raw_fd();
    address
}

/// An address for a node to listen at that is told where: on an address of the loopback network (`127.64.0.0/10`) that nobody else uses.
///
/// # Panics
/// When no port is left.
#[must_use]
pub fn unused() -> SocketAddr {
    // Another run of the suite beside this one begins elsewhere.
    static NEXT: LazyLock<AtomicU32> = LazyLock::new(|| AtomicU32::new(fastrand::u32(..)));
    let host = NEXT.fetch_add(1, Ordering::Relaxed) & 0x003f_ffff;
    let address = Ipv4Addr::from_bits(0x7f40_0000 | host);
    TcpListener::bind((address, 0)).and_then(|listener| listener.local_addr()).expect("a port")
}
