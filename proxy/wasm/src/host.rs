//! What the embedder provides to every plugin.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

use futures::future::BoxFuture;
use tracing::level_filters::LevelFilter;

use crate::effects::{Callout, CalloutFailure, CalloutResponse};
use crate::grpc::{GrpcEvents, GrpcMessages, GrpcRequest, GrpcStatus};
use crate::metrics::Metrics;
use crate::shared_data::SharedData;
use crate::shared_queue::SharedQueues;
use crate::stats::PluginStats;
use crate::trace::Trace;

/// The world outside the exchange, shared by all plugins of a process.
pub trait Host: Send + Sync + 'static {
    /// Whether guests may call this upstream. An HTTP call to an unknown one is refused with `BAD_ARGUMENT`, a gRPC call with
    /// `PARSE_FAILURE`.
    fn has_upstream(&self, name: &str) -> bool;

    /// Makes a callout that belongs to no exchange (from a tick, from start-up, or sent while a stream was ending). Called from
    /// [`crate::Plugin::tick_loop`], never during a guest call. Callouts of streams are in their [`crate::Effects`] instead.
    fn call(&self, callout: Callout) -> BoxFuture<'static, Result<CalloutResponse, CalloutFailure>>;

    /// Runs a gRPC exchange to its end, which is its status: sends the guest's `messages`, and puts what comes from the server in
    /// `events`. Started by [`crate::Calls`], never during a guest call; dropped when the guest wants no more of it or its time is up:
    /// the server is to see it reset then. The default is for hosts that have no gRPC: it says so.
    fn grpc(&self, request: GrpcRequest, messages: GrpcMessages, events: GrpcEvents) -> BoxFuture<'static, GrpcStatus> {
        let (_, _) = (messages, events);
        let status =
            GrpcStatus::new(GrpcStatus::UNIMPLEMENTED, format!("no gRPC on this host, asked for {}", request.path()));
        Box::pin(std::future::ready(status))
    }

    /// The process-wide store behind the shared-data calls.
    fn shared(&self) -> &SharedData;

    /// The process-wide registry behind the metric calls.
    fn metrics(&self) -> &Metrics;

    /// The process-wide queues behind the shared-queue calls.
    fn queues(&self) -> &SharedQueues;

    /// Where the VMs of a plugin of this name count what they do. The default gives each plugin counters of its own, which end with it.
    fn stats(&self, plugin: &str) -> Arc<PluginStats> {
        let _ = plugin;
        Arc::default()
    }

    /// Where the starts of VMs are to be recorded; `None`, which is nearly always, for nowhere.
    fn start_trace(&self) -> Option<Arc<Trace>> {
        None
    }

    /// What a guest logged, at most 64 KiB, invalid UTF-8 replaced. The default writes a `tracing` event with target `selvedge::filter`, in
    /// [one line](one_line).
    fn log(&self, level: LogLevel, plugin: &str, message: &str) {
        let message = one_line(message);
        match level {
            LogLevel::Trace => tracing::trace!(target: "selvedge::filter", plugin, "{message}"),
            LogLevel::Debug => tracing::debug!(target: "selvedge::filter", plugin, "{message}"),
            LogLevel::Info => tracing::info!(target: "selvedge::filter", plugin, "{message}"),
            LogLevel::Warn => tracing::warn!(target: "selvedge::filter", plugin, "{message}"),
            LogLevel::Error | LogLevel::Critical => tracing::error!(target: "selvedge::filter", plugin, "{message}"),
        }
    }

    /// What `proxy_get_log_level` tells guests: the lowest level that is written anywhere. The default asks `tracing`.
    fn log_level(&self) -> LogLevel {
        match LevelFilter::current() {
            LevelFilter::TRACE => LogLevel::Trace,
            LevelFilter::DEBUG => LogLevel::Debug,
            LevelFilter::INFO => LogLevel::Info,
            LevelFilter::WARN => LogLevel::Warn,
            LevelFilter::ERROR => LogLevel::Error,
            // Even when nothing is logged, errors are wanted: the last one says why a filter refuses its configuration.
            _ => LogLevel::Error,
        }
    }

    /// The wall clock guests see.
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    /// A foreign function: a host extension called by name, after [`crate::Exchange::foreign`] did not know it. `None` means there is none
    /// of this name (`NOT_FOUND`). The guest waits for it outside of its deadline, so it must be quick whatever the arguments are.
    fn foreign(&self, caller: Caller<'_>, name: &str, args: &[u8]) -> Option<Result<Vec<u8>, ForeignError>> {
        let _ = (caller, name, args);
        None
    }
}

/// How loud a guest's log line is, with the ABI's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum LogLevel {
    /// 0
    Trace = 0,
    /// 1
    Debug = 1,
    /// 2
    Info = 2,
    /// 3
    Warn = 3,
    /// 4
    Error = 4,
    /// 5: a guest's panic message comes at this level.
    Critical = 5,
}

impl LogLevel {
    /// The level of an ABI number, `None` above 5.
    pub(crate) fn from_abi(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Trace,
            1 => Self::Debug,
            2 => Self::Info,
            3 => Self::Warn,
            4 => Self::Error,
            5 => Self::Critical,
            _ => return None,
        })
    }
}

/// Who calls a foreign function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller<'a> {
    /// The plugin's name.
    pub plugin: &'a str,
    /// Its key space of shared data.
    pub vm_id: &'a str,
}

/// Why a foreign function failed, as the guest will see it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForeignError {
    /// The arguments make no sense (`BAD_ARGUMENT`).
    #[error("bad argument: {0}")]
    BadArgument(String),
    /// The arguments could not be decoded (`SERIALIZATION_FAILURE`).
    #[error("undecodable arguments: {0}")]
    Serialization(String),
    /// It could not be done (`INTERNAL_FAILURE`).
    #[error("failed: {0}")]
    Internal(String),
}

/// A guest's words as one line of a log: line breaks and other control characters are written as escapes, or a guest could add lines to the
/// log that look like somebody else's. Line breaks at the end are left out, tabs stay.
#[must_use]
pub fn one_line(words: &str) -> Cow<'_, str> {
    let is_odd = |c: char| c.is_control() && c != '\t';
    let words = words.trim_end_matches(['\r', '\n']);
    if !words.contains(is_odd) {
        return Cow::Borrowed(words);
    }
    let mut line = String::with_capacity(words.len() + 16);
    for c in words.chars() {
        if is_odd(c) {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    Cow::Owned(line)
}

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn guests_cannot_add_lines_to_a_log() {
        let rows = [
            ("plain, with \t and €", "plain, with \t and €"),
            ("ends\r\n\n", "ends"),
            ("one\n2026-11-21T00:00:00Z  INFO two", "one\\n2026-11-21T00:00:00Z  INFO two"),
            ("a\rb\u{1b}[31mc\u{85}d\0", "a\\rb\\u{1b}[31mc\\u{85}d\\u{0}"),
        ];
        for (words, line) in rows {
            assert_eq!(one_line(words), line);
        }
    }
}
