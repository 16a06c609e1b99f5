//! A proxy-wasm host on wasmtime: plugins, VMs, hostcalls, limits. Knows nothing of Pingora.
//!
//! The embedder makes one [`Engine`], loads [`Module`]s through it, and starts a [`Plugin`] (a module plus one configuration) for each
//! configured filter. For every HTTP exchange it opens a [`Stream`] on its worker's VM and runs the callbacks in order, handing in the
//! exchange as a [`trait@Exchange`]. Guest calls are synchronous and short (each has a deadline); whatever the guest asks for that takes
//! time (a local reply, a resume, an HTTP or gRPC call) is queued and handed back as [`Effects`] when the guest has returned.
//!
//! ```text
//! Engine -> Module (compiled, or from the disk cache) -> Plugin -> VM (per worker, of a pool, or per exchange) -> Stream per exchange
//! ```
//!
//! Supported: proxy-wasm ABI 0.1.0, 0.2.0 and 0.2.1 for HTTP and TCP filters, with WASI preview 1 but for files and sockets.
#![allow(
    unsafe_code,
    reason = "the exchange pointer for the length of a guest call, and loading our own compiled modules"
)]

mod engine;

mod module;
mod module_cache;

mod plugin;

mod breaker;
mod quota;
mod snapshot;
mod vms;

mod vm;

mod turn;

mod by_hand;
mod root_loop;

mod calls;
mod effects;
mod grpc;
mod stream;
mod tcp;

mod body;
mod compat;
mod exchange;
pub mod foreign;
mod host;
mod limits;
mod metrics;
mod shared_data;
mod shared_queue;
mod stats;
mod trace;

pub mod abi;
mod hostcalls;

mod anatomy;

pub use abi::hosts::{Elsewhere, OtherHost};
pub use abi::version::AbiVersion;
pub use anatomy::{Anatomy, CrateSize, Export, Function, Import, Memory, NotAModule, Section};
pub use body::Body;
pub use calls::Calls;
pub use compat::{Compat, PropertyKind};
pub use effects::{
    Action, Arrival, Callout, CalloutFailure, CalloutId, CalloutResponse, Effects, Hold, LocalReply, Outcome, Outgoing,
};
pub use engine::{Engine, EngineError, EngineOptions};
pub use exchange::{Buffer, Exchange, ExchangeError, HeaderMap};
pub use grpc::{
    GrpcEvent, GrpcEvents, GrpcId, GrpcKind, GrpcMessage, GrpcMessages, GrpcOpen, GrpcRequest, GrpcStatus,
    MAX_GRPC_MESSAGE,
};
pub use host::{Caller, ForeignError, Host, LogLevel, one_line};
pub use limits::Limits;
pub use metrics::{Metric, MetricError, MetricId, MetricKind, MetricValue, Metrics, Series};
pub use module::{LoadError, Module, ModuleOrigin, Phases, UnknownPhase, settings_schema};
pub use module_cache::CacheDirError;
pub use plugin::{Isolation, Plugin, PluginOptions, Snapshots, StartError};
pub use shared_data::{SharedData, SharedDataError, SharedDataLimits, SharedDataSize};
pub use shared_queue::{QueueSize, SharedQueues};
pub use stats::{CallbackSnapshot, PluginStats, StatsSnapshot};
pub use stream::Stream;
pub use tcp::{Peer, TcpStream};
pub use trace::{Trace, TraceEvent, is_secret};
pub use vm::CallError;
