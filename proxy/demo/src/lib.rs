//! A small HTTP origin to try an edge node against: in `make run`, in examples and in tests.
//!
//! It speaks HTTP/1.1 and HTTP/2 with prior knowledge on one port, without TLS. What it has to offer is on its front page, `/`, and in
//! the table of [`Demo`]. Everything a client can ask for is bounded; what is out of bounds gets a 4xx with one sentence.
//!
//! ```
//! let demo = selvedge_demo::Demo::start(([127, 0, 0, 1], 0).into())?;
//! println!("http://{}/", demo.addr());
//! # Ok::<(), std::io::Error>(())
//! ```

mod answer;
mod assets;
mod content;
mod count;
mod echo;
mod origin;
mod query;
mod serve;
mod stream;
mod websocket;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::watch;

pub use crate::stream::large_bytes;

use crate::origin::Origin;

/// A running demo origin. It stops when dropped: idle connections close at once, answers under way get a second to finish.
///
/// | endpoint | answer |
/// |---|---|
/// | `/` | a page that explains the others |
/// | `/echo` | any method; JSON with `method`, `version`, `authority`, `path`, `query`, `headers` and `trailers` (lists of `[name, value]`), `body_length`, `body_sha256`, `body` (text of up to 64 KiB, else null), `client` |
/// | `/static/app.css`, `app.js`, `logo.svg` | files with strong `ETag`, `Last-Modified`, `Cache-Control: public, max-age=60`; 304, 206, 416 |
/// | `/cache/{n}`, `/cache/{n}/{any}` | `max-age=n`; JSON and `x-origin-count` say how often this path was asked for; `?swr=`, `?sie=` (seconds, RFC 5861), `?tag=a,b` (`Surrogate-Key`, `Cache-Tag`) |
/// | `/vary` | by `Accept-Language` (en, de, fr), `Vary`, `max-age=60`, `x-origin-count` |
/// | `/slow?ms=1000&chunks=5&gap=100` | headers after `ms` (at most 10 s), then that many chunks (1 to 100), `gap` ms apart (at most 1 s); `max-age=60` |
/// | `/large?size=10MiB` | that many bytes of [`large_bytes`] (at most 1 GiB), `max-age=60`; ranges; with `chunked=1` without a length |
/// | `/sse?count=5&ms=200` | that many server-sent events (at most 1,000), `ms` apart (at most 10 s) |
/// | `/ws` | WebSocket echo, messages of up to 1 MiB, closed after a minute of silence |
/// | `/status/{code}` | that status, 200 to 599 |
/// | `/trailers` | body with the trailers `x-body-length` and `x-body-sha256` when asked with `TE: trailers`, and always on HTTP/2 |
/// | `/private` | JSON with `user`, from the header `x-user`, or null; `private, no-store` |
/// | `/upstream` | JSON with `origin`, this origin's name |
///
/// Every answer has `x-origin` (the name) and `x-origin-requests` (what [`Demo::requests`] says, this request included).
#[derive(Debug)]
pub struct Demo {
    addr: SocketAddr,
    origin: Arc<Origin>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Demo {
    /// Starts an origin named `demo` on this address, port 0 for any free port, on a thread of its own.
    ///
    /// # Errors
    ///
    /// When the address cannot be bound, or the thread or its runtime cannot be made.
    pub fn start(bind: SocketAddr) -> io::Result<Demo> {
        Demo::builder().start(bind)
    }

    /// As [`Demo::start`], on a listener that is bound already.
    ///
    /// # Errors
    ///
    /// When the thread or its runtime cannot be made.
    pub fn serve(listener: TcpListener) -> io::Result<Demo> {
        Demo::builder().serve(listener)
    }

    /// An origin with other than the default settings.
    #[must_use]
    pub fn builder() -> Builder {
        Builder { name: "demo".to_owned() }
    }

    /// The address it listens on, with the port the system chose.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many requests have arrived so far, whatever they were answered.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.origin.requests()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            // A panic on that thread has been reported there; there is nobody to tell it again while dropping.
            let _ended = thread.join();
        }
    }
}

/// Settings of a demo origin; see [`Demo::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    name: String,
}

impl Builder {
    /// Sets the name that every answer has in `x-origin`: 1 to 64 letters, digits, `-`, `_` or `.`. Default: `demo`.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Builder {
        self.name = name.into();
        self
    }

    /// Starts it on this address; see [`Demo::start`].
    ///
    /// # Errors
    ///
    /// As [`Demo::start`]; `InvalidInput` for a name out of bounds.
    pub fn start(self, bind: SocketAddr) -> io::Result<Demo> {
        self.serve(TcpListener::bind(bind)?)
    }

    /// Starts it on a listener that is bound already; see [`Demo::serve`].
    ///
    /// # Errors
    ///
    /// As [`Demo::serve`]; `InvalidInput` for a name out of bounds.
    pub fn serve(self, listener: TcpListener) -> io::Result<Demo> {
        let origin = Arc::new(Origin::new(&self.name)?);
        let addr = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let listener = {
            let _context = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };

        let (stop, stopped) = watch::channel(false);
        let thread = std::thread::Builder::new().name("selvedge-demo".to_owned()).spawn({
            let origin = origin.clone();
            move || runtime.block_on(serve::run(listener, origin, stopped))
        })?;
        Ok(Demo { addr, origin, stop, thread: Some(thread) })
    }
}

#[cfg(test)]
mod tests;
