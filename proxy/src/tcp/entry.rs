//! One access-log line per connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use serde::Serialize;

use crate::plan::TcpRoute;
use crate::telemetry::AccessLogSink;
use crate::upstream::Address;

/// How a connection ended, as the log says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ended {
    /// Both sides had said all they had to say.
    Done,
    /// Neither side had sent anything for the listener's idle timeout, or taken anything.
    Idle,
    /// The client broke off.
    ClientGone,
    /// The upstream broke off.
    UpstreamGone,
    /// No endpoint of the upstream could be connected to.
    ConnectFailed,
    /// The TLS handshake failed, or took too long.
    #[serde(rename = "tls_failed")]
    NoHandshake,
    /// A filter closed it.
    FilterClosed,
    /// A filter failed, and fails closed.
    FilterFailed,
    /// A filter held more than its `limits.body`.
    FilterTooLarge,
    /// A filter stayed paused beyond its `limits.wait`, and fails closed.
    FilterStuck,
    /// The node stopped, and its grace was over.
    Shutdown,
}

/// What is known of a connection for the log. The line is written when it is dropped, so that none is missing, however the connection
/// ends.
pub(super) struct Entry {
    sink: AccessLogSink,
    route: Arc<TcpRoute>,
    pub(super) client: Option<SocketAddr>,
    started: Instant,
    pub(super) endpoint: Option<Address>,
    /// Bytes the client has sent.
    pub(super) received: u64,
    /// Bytes the client was sent.
    pub(super) sent: u64,
    pub(super) filter: Option<Arc<str>>,
    pub(super) ended: Ended,
}

/// The line.
#[derive(Serialize)]
struct Line<'e> {
    time: String,
    client: Option<String>,
    protocol: &'static str,
    listener: &'e str,
    bytes_received: u64,
    bytes: u64,
    duration_us: u64,
    upstream: Option<String>,
    ended: Ended,
    filter: Option<&'e str>,
}

impl Entry {
    pub(super) fn new(sink: AccessLogSink, route: Arc<TcpRoute>, client: Option<SocketAddr>) -> Self {
        Self {
            sink,
            route,
            client,
            started: Instant::now(),
            endpoint: None,
            received: 0,
            sent: 0,
            filter: None,
            // What is dropped without another word was cut off.
            ended: Ended::Shutdown,
        }
    }

    fn line(&self) -> Line<'_> {
        Line {
            time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            client: self.client.map(|client| client.ip().to_string()),
            protocol: "TCP",
            listener: &self.route.listener,
            bytes_received: self.received,
            bytes: self.sent,
            duration_us: u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX),
            upstream: self.endpoint.as_ref().map(ToString::to_string),
            ended: self.ended,
            filter: self.filter.as_deref(),
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.sink.is_on() {
            let line = self.line();
            self.sink.write_line(|| json(&line), || text(&line));
        }
    }
}

fn json(line: &Line<'_>) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(line).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

fn text(line: &Line<'_>) -> Vec<u8> {
    let dash = "-";
    let ended = serde_json::to_value(line.ended).unwrap_or_default();
    format!(
        "{} {} \"{} {} {}\" {} {} {}us {} {}\n",
        line.client.as_deref().unwrap_or(dash),
        line.time,
        line.protocol,
        line.listener,
        line.upstream.as_deref().unwrap_or(dash),
        line.bytes_received,
        line.bytes,
        line.duration_us,
        ended.as_str().unwrap_or(dash),
        line.filter.unwrap_or(dash),
    )
    .into_bytes()
}
