//! Connections: accepted, served, and let go of when the origin stops.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout};

use crate::origin::{Client, Origin};

/// More connections than this wait in the system's queue.
const MOST_CONNECTIONS: usize = 4096;
/// From the first byte of a request, or the end of the one before, to the end of its headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// An HTTP/2 peer is asked for a sign of life this often, and given as long to answer.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// What answers get to finish when the origin stops.
pub(crate) const DRAIN: Duration = Duration::from_secs(1);
/// Before the next try when accepting failed, for want of file descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Whatever holds a clone is waited for when the origin stops.
pub(crate) type Busy = mpsc::Sender<Infallible>;

/// Accepts until stopped, then waits for what is under way, but not longer than [`DRAIN`].
pub(crate) async fn run(listener: TcpListener, origin: Arc<Origin>, stopped: watch::Receiver<bool>) {
    let (busy, mut all_done) = mpsc::channel::<Infallible>(1);
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let accept = async {
        loop {
            let Ok(permit) = room.clone().acquire_owned().await else { return };
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(_) => {
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let client = Client { address, stopped: stopped.clone(), busy: busy.clone() };
            let origin = origin.clone();
            tokio::spawn(async move {
                connection(stream, client, origin).await;
                drop(permit);
            });
        }
    };

    let mut stop = stopped.clone();
    tokio::select! {
        () = accept => {}
        () = stop_requested(&mut stop) => {}
    }
    drop(listener);
    drop(busy);
    let _all_in_time = timeout(DRAIN, all_done.recv()).await;
}

/// Waits until the origin is to stop; its owner being gone means the same.
pub(crate) async fn stop_requested(stopped: &mut watch::Receiver<bool>) {
    let _owner_is_there = stopped.wait_for(|stopped| *stopped).await;
}

async fn connection(stream: TcpStream, client: Client, origin: Arc<Origin>) {
    // Answers come in small pieces that are spaced in time on purpose. Failing only makes them late.
    let _delayed = stream.set_nodelay(true);
    let mut stopped = client.stopped.clone();
    // What tells the two protocols apart has no deadline of its own while no byte has come.
    tokio::select! {
        spoken = timeout(HEADER_TIMEOUT, stream.readable()) => if !matches!(spoken, Ok(Ok(()))) { return },
        () = stop_requested(&mut stopped) => return,
    }

    let service = service_fn(move |request| {
        let (origin, client) = (origin.clone(), client.clone());
        async move { Ok::<_, Infallible>(origin.answer(request, client).await) }
    });

    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    server.http2().timer(TokioTimer::new()).keep_alive_interval(PING_INTERVAL).keep_alive_timeout(PING_INTERVAL);
    let serving = server.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);

    // How a connection ends is the client's business: a reset or a malformed request is no fault of the origin.
    tokio::select! {
        _ended = serving.as_mut() => {}
        () = stop_requested(&mut stopped) => {
            serving.as_mut().graceful_shutdown();
            let _ended = serving.await;
        }
    }
}
