//! The edge proxy: configuration, listeners, request path, upstreams, telemetry, command line.
//!
//! Start with [`node::Node`], which holds listeners and workers; every request follows the steps in `request/`,
//! and on routes with filters passes the chain in `chain/`.

pub mod cli;

mod process;

mod upgrade;

pub mod sockets;

pub mod node;

pub mod reload;

pub mod control;

pub mod listener;

pub mod listening;

mod crowd;

mod limits;

mod transport;

mod pipe;

pub mod tls;

pub mod plan;

mod request;

mod purge;

mod chain;

mod compress;

mod cluster;

mod files;

mod tcp;

pub mod upstream;

mod connections;

mod attempt;

mod callout;

mod grpc;

pub mod bundled;

pub mod telemetry;

mod offline;

mod operator;

mod admin;

/// An error and its causes in one line.
pub(crate) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
