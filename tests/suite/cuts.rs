//! An origin that cuts bodies short, at any byte, over HTTP/1.1 and HTTP/2: nobody takes what is there for the whole.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use selvedge_tests::h2::H2Client;
use selvedge_tests::{Client, Edge, soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// How long the body is that the origin means to send.
const LENGTH: usize = 300_000;
/// At how many places each of the four kinds of origin cuts it: 200 over each version of HTTP. `SELVEDGE_TEST_CUTS` says another number.
const CUTS: usize = 100;

/// How the origin speaks, and how it ends.
#[derive(Debug, Clone, Copy)]
enum Manner {
    Announced,
    Chunked,
    /// HTTP/2: the stream is reset.
    Reset,
    /// HTTP/2: the connection ends.
    Closed,
}

/// What the origin has been told to do, and how often it was asked.
struct Script {
    manner: Manner,
    /// Where the next body is cut.
    at: AtomicUsize,
    asked: AtomicUsize,
    /// Lets the cut happen.
    gate: Semaphore,
}

impl Script {
    async fn cut(&self) {
        self.gate.acquire().await.expect("never closed").forget();
    }
}

async fn serve_h1(mut stream: TcpStream, script: Arc<Script>) -> std::io::Result<()> {
    let mut buffer = vec![0; 8192];
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        head.extend_from_slice(&buffer[..read]);
    }
    script.asked.fetch_add(1, Ordering::SeqCst);
    let at = script.at.load(Ordering::SeqCst);
    let body = vec![b'x'; at];
    stream.write_all(b"HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\n").await?;
    if matches!(script.manner, Manner::Announced) {
        stream.write_all(format!("content-length: {LENGTH}\r\n\r\n").as_bytes()).await?;
        stream.write_all(&body).await?;
    } else {
        stream.write_all(b"transfer-encoding: chunked\r\n\r\n").await?;
        for chunk in body.chunks(7_000) {
            stream.write_all(format!("{:x}\r\n", chunk.len()).as_bytes()).await?;
            stream.write_all(chunk).await?;
            stream.write_all(b"\r\n").await?;
        }
    }
    script.cut().await;
    Ok(())
}

async fn serve_h2(stream: TcpStream, script: Arc<Script>) -> Result<(), h2::Error> {
    let mut connection = h2::server::handshake(stream).await?;
    let over = Arc::new(tokio::sync::Notify::new());
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            () = over.notified() => return Ok(()), // drops the connection
        };
        let Some(accepted) = accepted else { return Ok(()) };
        let (_request, mut respond) = accepted?;
        let (script, over) = (Arc::clone(&script), Arc::clone(&over));
        tokio::spawn(async move {
            script.asked.fetch_add(1, Ordering::SeqCst);
            let at = script.at.load(Ordering::SeqCst);
            let response = http::Response::builder().header("cache-control", "max-age=60").body(()).expect("valid");
            let mut body = respond.send_response(response, false)?;
            let mut left = at;
            while left > 0 {
                body.reserve_capacity(left.min(16_384));
                match std::future::poll_fn(|cx| body.poll_capacity(cx)).await {
                    Some(Ok(room)) => {
                        let now = room.min(left);
                        body.send_data(Bytes::from(vec![b'x'; now]), false)?;
                        left -= now;
                    }
                    Some(Err(error)) => return Err(error),
                    None => return Ok(()),
                }
            }
            script.cut().await;
            match script.manner {
                Manner::Reset => body.send_reset(h2::Reason::INTERNAL_ERROR),
                _ => over.notify_one(),
            }
            Ok::<(), h2::Error>(())
        });
    }
}

async fn origin(manner: Manner) -> (SocketAddr, Arc<Script>) {
    let script =
        Arc::new(Script { manner, at: AtomicUsize::new(0), asked: AtomicUsize::new(0), gate: Semaphore::new(0) });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let (address, serving) = (listener.local_addr().expect("bound"), Arc::clone(&script));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let script = Arc::clone(&serving);
            tokio::spawn(async move {
                match script.manner {
                    Manner::Announced | Manner::Chunked => drop(serve_h1(stream, script).await),
                    Manner::Reset | Manner::Closed => drop(serve_h2(stream, script).await),
                }
            });
        }
    });
    (address, script)
}

/// How many bytes a client got, and whether it takes that for all.
async fn over_h1(edge: SocketAddr, path: String) -> (usize, bool) {
    let mut client = Client::connect(edge).await;
    client.send(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await;
    match client.try_response("GET").await {
        Ok(response) => (response.body.len(), response.status == 200),
        Err(_) => (0, false),
    }
}

async fn over_h2(edge: SocketAddr, path: String) -> (usize, bool) {
    let client = H2Client::connect(edge).await;
    match client.request("GET", &path, &[], b"").await {
        Ok(response) => (response.body.len(), response.status == 200),
        Err(_) => (0, false),
    }
}

async fn nobody_is_deceived(manner: Manner) {
    let protocol = if matches!(manner, Manner::Reset | Manner::Closed) { "h2" } else { "h1" };
    let (address, script) = origin(manner).await;
    let yaml = format!(
        "cache: {{}}
upstreams: {{ app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"], protocol: {protocol} }} }}
filters:
  noop: {{ wasm: \"file:${{GUESTS}}/noop.wasm\", limits: {{ deadline: 10s }} }}
sites:
  - hosts: [\"*\"]
    routes:
      - {{ name: filtered, match: {{ path: /filtered/* }}, filters: [noop], cache: {{}}, to: app }}
      - {{ name: plain, cache: {{}}, to: app }}"
    );
    let edge = Edge::start(&yaml, &[("app", address)]);
    let cuts = std::env::var("SELVEDGE_TEST_CUTS").map_or(CUTS, |cuts| cuts.parse().expect("a number"));
    let mut random = fastrand::Rng::with_seed(7);
    for number in 0..cuts {
        // The first and the last byte always.
        let at = match number {
            0 => 0,
            1 => LENGTH - 1,
            _ => random.usize(1..LENGTH),
        };
        let path = format!("/{}/{number}", if number % 2 == 0 { "plain" } else { "filtered" });
        script.at.store(at, Ordering::SeqCst);
        let before = script.asked.load(Ordering::SeqCst);
        let first = tokio::spawn(over_h1(edge.web(), path.clone()));
        until("the origin is asked", || script.asked.load(Ordering::SeqCst) == before + 1).await;
        let others = [
            tokio::spawn(over_h1(edge.web(), path.clone())),
            tokio::spawn(over_h2(edge.web(), path.clone())),
            tokio::spawn(over_h2(edge.web(), path.clone())),
        ];
        // Whoever is late fetches for himself, and is cut as well.
        script.gate.add_permits(8);
        for client in others.into_iter().chain([first]) {
            let (received, complete) = soon("an end", client).await.expect("no panic");
            assert!(!complete, "{manner:?} at {at}: {received} bytes taken for the whole");
        }
        script.gate.forget_permits(usize::MAX >> 4);
        assert_eq!(edge.plan().cache.expect("configured").usage().objects, 0, "{manner:?} at {at}: stored");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn announced_lengths_are_kept() {
    nobody_is_deceived(Manner::Announced).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_without_an_end() {
    nobody_is_deceived(Manner::Chunked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_reset() {
    nobody_is_deceived(Manner::Reset).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_end() {
    nobody_is_deceived(Manner::Closed).await;
}
