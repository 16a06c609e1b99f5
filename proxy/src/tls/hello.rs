//! The first message of a handshake, read before the handshake begins: on listeners that refuse names, so that a client is told why. (The
//! TLS library has one alert only for a server that finds no certificate, and it says something else.)

use std::io;

use rustls::server::Acceptor;
use rustls::{AlertDescription, ProtocolVersion};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::CertificateStore;
use super::counts::Refusal;
use crate::transport::Transport;

/// How much a client may send before its first message is whole, in bytes.
const HELLO_MAX: usize = 64 * 1024;

/// Reads the first message, and refuses a client that asks for a name no certificate is for. What was read is read again by the handshake.
///
/// # Errors
/// The client was refused, or has gone.
pub(crate) async fn greet(stream: &mut Transport, store: &CertificateStore) -> io::Result<()> {
    let mut hello = Acceptor::default();
    let mut taken = 0;
    while taken < HELLO_MAX {
        let new = stream.read_ahead().await?;
        taken += new.len();
        let mut left = new;
        while !left.is_empty() {
            hello.read_tls(&mut left)?;
            match hello.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => return greet_any(stream, store, accepted.client_hello().server_name()).await,
                Err(_) => return Ok(()), // The handshake finds the same, and says so.
            }
        }
    }
    Ok(())
}

/// Refuses a client that asks for a name no certificate is for.
///
/// # Errors
/// The client was refused, or has gone.
pub(crate) async fn greet_any(
    stream: &mut (impl AsyncWrite + Unpin),
    store: &CertificateStore,
    name: Option<&str>,
) -> io::Result<()> {
    let Some(alert) = store.refusal(name) else { return Ok(()) };
    store.counts.refused(Refusal::Name);
    stream.write_all(&record(alert)).await?;
    stream.shutdown().await?;
    Err(io::Error::other(format!("no certificate is for {}", name.unwrap_or("a client without SNI"))))
}

/// A fatal alert before any key is agreed on (RFC 8446, 5.1 and 6).
fn record(alert: AlertDescription) -> [u8; 7] {
    const ALERT: u8 = 21;
    const FATAL: u8 = 2;
    let [major, minor] = u16::from(ProtocolVersion::TLSv1_2).to_be_bytes();
    [ALERT, major, minor, 0, 2, FATAL, alert.into()]
}
