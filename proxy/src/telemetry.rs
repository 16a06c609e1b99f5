//! What the operator is told: what happens, through `tracing` on stderr; one access-log line per request; metrics; traces of requests.

pub(crate) mod counters;
pub(crate) mod endpoint;
mod prometheus;
pub(crate) mod trace;

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use pingora::proxy::Session;
use pingora::{Error, ErrorSource};
use selvedge_config::{LogFormat, LogOutput};
use serde::Serialize;
use tracing::warn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry};

pub(crate) use self::prometheus::page;
use crate::request::RequestCtx;

/// The environment variable that sets what is logged, in `tracing`'s filter syntax (`debug`, `selvedge=trace,info`).
pub const LOG_VARIABLE: &str = "SELVEDGE_LOG";

/// Sends `tracing` events, and what Pingora says through `log`, to stderr. A second call does nothing.
pub fn init() {
    let filter = EnvFilter::try_from_env(LOG_VARIABLE)
        .unwrap_or_else(|_| EnvFilter::new("info,pingora_core=warn,pingora_proxy=error,pingora_cache=warn"));
    let (filter, handle) = tracing_subscriber::reload::Layer::new(filter);
    let lines = tracing_subscriber::fmt::layer().with_ansi(io::stderr().is_terminal()).with_writer(io::stderr);
    // The subscriber also takes over the `log` records of Pingora.
    if tracing_subscriber::registry().with(filter).with(lines).try_init().is_ok() {
        let _ = LOG_FILTER.set(handle);
    }
}

/// What is logged, when [`init`] decides that.
static LOG_FILTER: OnceLock<tracing_subscriber::reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// What is logged, in the syntax of [`LOG_VARIABLE`]; `None` = another program decides that.
pub(crate) fn log_filter() -> Option<String> {
    LOG_FILTER.get()?.with_current(ToString::to_string).ok()
}

/// Changes what is logged. `false` = another program decides that, and nothing has changed.
///
/// # Errors
/// The text is no filter; nothing has changed.
pub(crate) fn set_log_filter(text: &str) -> Result<bool, tracing_subscriber::filter::ParseError> {
    let filter = EnvFilter::builder().parse(text)?;
    let Some(handle) = LOG_FILTER.get() else { return Ok(false) };
    Ok(handle.reload(filter).is_ok())
}

/// Lines that may wait for the writer; beyond that they are dropped and counted, because a slow disk must not slow requests.
const WAITING_MAX: usize = 16 * 1024;

/// The access log: a thread that writes the lines the workers hand over.
pub struct AccessLog {
    sink: AccessLogSink,
    /// Hangs up when the last line has been written.
    written: Option<Receiver<()>>,
}

/// Where a worker puts its lines.
#[derive(Clone)]
pub struct AccessLogSink {
    lines: Option<SyncSender<Vec<u8>>>,
    format: LogFormat,
    dropped: Arc<AtomicU64>,
}

impl AccessLog {
    /// Starts the writer, unless the log is off.
    #[must_use]
    pub fn start(settings: selvedge_config::AccessLog) -> Self {
        let dropped = Arc::new(AtomicU64::new(0));
        let (lines, written) = match settings.output {
            LogOutput::Off => None,
            LogOutput::Stdout => Some(writer(io::stdout())),
            LogOutput::Stderr => Some(writer(io::stderr())),
        }
        .unzip();
        Self { sink: AccessLogSink { lines, format: settings.format, dropped }, written }
    }

    /// Waits until all lines have been written, at most for a moment: nobody may read them any more. To be called when the workers are
    /// gone, or the lines of the last requests are lost with the process.
    pub fn finish(&mut self) {
        self.sink.lines = None;
        if let Some(written) = self.written.take() {
            let _ = written.recv_timeout(LAST_LINES);
        }
    }

    /// A handle for a worker.
    #[must_use]
    pub fn sink(&self) -> AccessLogSink {
        self.sink.clone()
    }
}

/// How long a node that stops waits for its last lines to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

fn writer(output: impl Write + Send + 'static) -> (SyncSender<Vec<u8>>, Receiver<()>) {
    let (sender, lines) = sync_channel(WAITING_MAX);
    let (writing, written) = sync_channel(0);
    let spawned = std::thread::Builder::new().name("access-log".into()).spawn(move || {
        let _writing = writing;
        write_lines(&lines, output);
    });
    if let Err(error) = spawned {
        warn!(%error, "the access log does not start");
    }
    (sender, written)
}

fn write_lines(lines: &Receiver<Vec<u8>>, output: impl Write) {
    let mut output = io::BufWriter::with_capacity(64 * 1024, output);
    while let Ok(line) = lines.recv() {
        let _ = output.write_all(&line);
        // Under load lines are written in batches; when it is quiet, each at once.
        while let Ok(line) = lines.try_recv() {
            let _ = output.write_all(&line);
        }
        if output.flush().is_err() {
            return; // Nobody reads it any more.
        }
    }
}

impl AccessLogSink {
    /// Whether lines are wanted at all.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.lines.is_some()
    }

    /// Hands a line over; drops it when the writer cannot follow, which is said once per power of two of drops.
    pub(crate) fn write(&self, line: &AccessLine<'_>) {
        self.write_line(|| line.json(), || line.text());
    }

    /// The same for a line of another kind, made in the format that is wanted.
    pub(crate) fn write_line(&self, json: impl FnOnce() -> Vec<u8>, text: impl FnOnce() -> Vec<u8>) {
        let Some(lines) = &self.lines else { return };
        let bytes = match self.format {
            LogFormat::Json => json(),
            LogFormat::Text => text(),
        };
        if let Err(TrySendError::Full(_)) = lines.try_send(bytes) {
            let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            if dropped.is_power_of_two() {
                warn!(dropped, "access-log lines were dropped: the output is too slow");
            }
        }
    }
}

/// What one access-log line says. Neither the query nor any header value is in it: they may be secrets.
#[derive(Serialize)]
pub(crate) struct AccessLine<'r> {
    time: String,
    client: Option<String>,
    method: &'r str,
    host: &'r str,
    path: &'r str,
    protocol: &'static str,
    listener: &'r str,
    status: u16,
    bytes: usize,
    duration_us: u64,
    route: Option<&'r str>,
    site: Option<&'r str>,
    upstream: Option<String>,
    /// How often it was sent, where that is more than once.
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<u32>,
    cache: Option<&'static str>,
    error: Option<&'static str>,
    /// What is to be said about it beyond that.
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<String>,
}

impl<'r> AccessLine<'r> {
    pub(crate) fn of(session: &'r Session, error: Option<&Error>, listener: &'r str, ctx: &'r RequestCtx) -> Self {
        let request = session.req_header();
        let status = session.response_written().map_or(0, |response| response.status.as_u16());
        let left = |error: &Error| status == 0 || *error.esource() == ErrorSource::Downstream;
        Self {
            time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            client: ctx.downstream.client.map(|client| client.ip().to_string()),
            method: request.method.as_str(),
            host: std::str::from_utf8(crate::chain::exchange::authority(request)).unwrap_or_default(),
            path: request.uri.path(),
            protocol: match request.version {
                http::Version::HTTP_2 => "HTTP/2",
                http::Version::HTTP_10 => "HTTP/1.0",
                _ => "HTTP/1.1",
            },
            listener,
            status,
            bytes: session.body_bytes_sent(),
            duration_us: u64::try_from(ctx.started.elapsed().as_micros()).unwrap_or(u64::MAX),
            route: ctx.route.as_deref().map(crate::plan::Route::name),
            site: ctx.route.as_deref().map(crate::plan::Route::site),
            upstream: match &ctx.lease {
                Some(lease) => Some(lease.endpoint().address().to_string()),
                None => ctx.endpoint_inside().map(|endpoint| endpoint.address().to_string()),
            },
            attempts: Some(ctx.times_sent()).filter(|attempts| *attempts > 1),
            cache: crate::request::lookup::word(session, ctx),
            error: ctx.failure.or_else(|| error.filter(|error| left(error)).map(|_| "client_gone")),
            details: error.and_then(crate::request::fail::reason),
        }
    }

    fn json(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }

    fn text(&self) -> Vec<u8> {
        let dash = "-";
        format!(
            "{} {} \"{} {}{} {}\" {} {} {}us {} {} {}\n",
            self.client.as_deref().unwrap_or(dash),
            self.time,
            self.method,
            self.host,
            self.path,
            self.protocol,
            self.status,
            self.bytes,
            self.duration_us,
            self.route.unwrap_or(dash),
            self.cache.unwrap_or(dash),
            self.error.unwrap_or(dash),
        )
        .into_bytes()
    }
}
