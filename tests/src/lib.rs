//! What the suite is made of: a node on port 0 ([`Edge`]), origins in this process ([`Origin`]), and clients that show every byte
//! ([`Client`]) or speak HTTP/2 ([`h2`]).

#![allow(clippy::panic, clippy::unwrap_used, reason = "a harness fails the test it serves by panicking")]

mod address;
mod client;
mod edge;
mod origin;
mod process;

pub mod disk;
pub mod grpc;
pub mod h2;
pub mod tls;

pub use address::{closed, unused};
pub use client::{Client, Response};
pub use edge::{Edge, guest};
pub use origin::{Origin, Request, Served};
pub use process::Process;

use std::time::Duration;

/// How long a test waits for anything before it fails. Generous, because machines are shared.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Awaits a future that must not take for ever.
///
/// # Panics
/// When it takes longer than [`PATIENCE`].
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} took longer than {PATIENCE:?}"),
    }
}

/// Polls a condition until it holds.
///
/// # Panics
/// When it does not within [`PATIENCE`].
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    soon(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}
