//! The guest SDK: write proxy-wasm filters as async Rust.
//!
//! A filter sits in the proxy, between the client and the origin, and sees every request and every response of the routes it is
//! configured for. It is compiled to WebAssembly, so it runs sandboxed, and on any proxy-wasm 0.2.1 host (Envoy, for one). This page
//! takes you from nothing to a tested module.
//!
//! # A first filter
//!
//! A library crate that is a `cdylib` (the module) and an `rlib` (for tests):
//!
//! ```toml
//! [lib]
//! crate-type = ["cdylib", "rlib"]
//!
//! [dependencies]
//! selvedge-sdk = "0.1"
//!
//! [dev-dependencies]
//! selvedge-sdk-testing = "0.1"
//! ```
//!
//! A type for the settings, a type for the filter, and the hooks you need:
//!
//! ```
//! use selvedge_sdk::prelude::*;
//!
//! /// The settings.
//! #[derive(Config)]
//! pub struct Settings {
//!     /// Paths under this prefix are for the office only.
//!     #[config(pattern = "^/")]
//!     prefix: String,
//!     /// What others are answered.
//!     #[config(default = 403)]
//!     status: StatusCode,
//! }
//!
//! pub struct Office {
//!     settings: Settings,
//!     denied: metrics::Counter,
//! }
//!
//! #[filter]
//! impl Filter for Office {
//!     type Config = Settings;
//!
//!     fn new(settings: Settings) -> Result<Self, String> {
//!         if !settings.prefix.starts_with('/') {
//!             return Err("`prefix` must start with a slash".into());
//!         }
//!         Ok(Self { settings, denied: metrics::counter("office_denied") })
//!     }
//!
//!     async fn request(&self, request: &mut Request) -> Flow {
//!         let inside = request.client().address().is_some_and(|address| address.to_string().starts_with("192.0.2."));
//!         if request.path().starts_with(&self.settings.prefix) && !inside {
//!             self.denied.inc(1);
//!             return Err(Reply::new(self.settings.status).text("for the office only"));
//!         }
//!         Ok(Next)
//!     }
//!
//!     async fn response(&self, response: &mut Response) -> Flow {
//!         response.remove_header("server");
//!         Ok(Next)
//!     }
//! }
//! ```
//!
//! What the settings may be is told by [`derive(Config)`](macro@Config). It becomes a JSON Schema inside the module, from which the
//! proxy checks what is written for the filter, line by line, before anything starts, and editors complete it.
//!
//! Build it with `cargo build --release --target wasm32-wasip1` (after `rustup target add wasm32-wasip1`); the module is
//! `target/wasm32-wasip1/release/<crate>.wasm`. Set `opt-level = "s"` or `3`, `lto = "fat"`, `codegen-units = 1` and
//! `panic = "abort"` in the profile: a filter without settings is then about 58 KB, one with settings from 150 KB.
//!
//! # Testing
//!
//! Filters are plain Rust on every other target: the host is then a fake one. Crate `selvedge-sdk-testing` takes requests through a
//! filter in microseconds, and with its feature `wasm` runs the same test on the compiled module in the shipped host:
//!
//! ```ignore
//! #[selvedge_sdk::test]
//! fn strangers_are_sent_away(tester: Tester<Office>) {
//!     let tester = tester.config(json!({"prefix": "/admin"})).client("203.0.113.9");
//!     assert_eq!(tester.get("/admin/users").send().status(), 403);
//!     assert_eq!(tester.metric("office_denied"), 1);
//! }
//! ```
//!
//! # Hooks
//!
//! | hook | runs | returns |
//! |---|---|---|
//! | [`Filter::new`] | once per VM (one per worker thread) | the filter, or why the settings are wrong |
//! | [`Filter::request`] | when the request's headers are there | [`Flow`] |
//! | [`Filter::response`] | when the response's headers are there | [`Flow`] |
//! | [`Filter::done`] | when the exchange is over | |
//! | [`Filter::start`] | once per VM, outside of exchanges | |
//! | [`Filter::tick`] | every [`Filter::TICK`], outside of exchanges | |
//!
//! A [`Flow`] is `Ok(Next)`, or `Err(reply)` to answer now. So `?` denies, with [`OrDeny::or_deny`] for what is missing or failed:
//! `request.header("x-api-key").or_deny(401, "missing api key")?`.
//!
//! What the request hook learns and the response hook needs goes into `type Stream`, one value per exchange: with it the hooks take a
//! second parameter, `stream: &mut Self::Stream`. Without settings leave `type Config` out, and `new` as well where the filter is
//! `Default`.
//!
//! # Waiting
//!
//! A hook that waits holds its message: nothing of it, not even the headers, reaches the other side until the hook is done. There
//! are a few things to wait for. Any combination works ([`join`], or the `futures` crate):
//!
//! - **A body**, [`request.body(limit).await?`](Message::body), or as [`text`](Message::text) or [`json`](Message::json). Over the limit the `?` answers 413 (502 for a response). A body that
//!   you do not ask for streams past the filter and is never copied into it; [`set_body`](Message::set_body) replaces it.
//! - **The start of a body**, [`request.body_prefix(limit).await?`](Message::body_prefix): the first bytes decide, and the rest streams
//!   past, however long it is.
//! - **The next piece of a body**, [`response.chunk().await?`](Message::chunk): the one exception, the message goes on while the hook
//!   waits. [`transform`](Message::transform) passes a body through a function as it streams.
//! - **The trailers**, [`response.trailers().await`](Message::trailers); the body passes meanwhile.
//! - **A callout**, `upstream("authz").get("/check").send().await`, or over gRPC, [`upstream("authz").grpc("pkg.Service/Method")`](Upstream::grpc),
//!   see [`upstream`](mod@upstream). The upstream is one of the proxy's configuration, which also says how to reach it.
//!
//! When the client goes away, or the proxy answers by itself, the waiting hook is dropped in the middle, as Rust futures are:
//! [`Filter::done`] runs in any case.
//!
//! # State
//!
//! The filter itself is per worker thread and lost with its VM. What all workers share goes into [`kv`], what operators see into
//! [`metrics`], what they read into the log (`info!`, `warn!`, …; the host decides which levels are written). A panic is logged with
//! its place and ends the VM with all its exchanges, so treat it as a bug: on network input, return a [`Reply`].
//!
//! # Features
//!
//! - `allocator`, on by default: guests allocate small things from free lists, which takes a tenth of what the standard allocator needs. Switch
//!   the default features off to have the standard allocator, or one of your own.
//! - `jwt`: `jwt::Verifier` for JSON Web Tokens, by keys of the settings or of an upstream.
//! - `prost`: messages of gRPC calls as types of crate `prost`.
//! - `tracing`: events of crate `tracing` are lines of the log, with their fields and the spans around them:
//!   `INFO exchange{path=/a}: asked upstream=authz status=200`. Without it they go nowhere. A span that must last while a hook waits is
//!   given to the future (`.instrument(span)`); one that is held entered meanwhile would be seen in other exchanges, too.
//!
//! # Other hosts
//!
//! Everything here is plain proxy-wasm 0.2.1. What a host has beyond it is used where it is, and done without where it is not (times to
//! live and counters of [`kv`]), or it finds nothing: where a client is ([`Client::country`] and the like), [`Request::set_upstream`], and
//! the functions behind [`foreign`]. `docs/filter-handles.md` has the table. On Envoy a hook that waits for a body needs
//! `allow_on_headers_stop_iteration: true` in the plugin's configuration; without it Envoy does not show the body while the headers
//! are held.

#[cfg(any(test, feature = "jwt"))]
extern crate self as selvedge_sdk;

#[cfg(any(test, all(feature = "allocator", target_arch = "wasm32", not(target_feature = "atomics"))))]
mod allocator;

mod body;

#[cfg(any(test, target_arch = "wasm32"))]
mod contexts;

mod cookie;

pub mod cache;

pub mod clock;

pub mod config;

pub mod crypto;

mod exchange;

pub mod facts;

mod filter;

pub mod foreign;

#[cfg(target_arch = "wasm32")]
pub mod guest;

pub mod host;

mod join;

#[cfg(feature = "jwt")]
pub mod jwt;

pub mod kv;

mod message;

pub mod metrics;

pub mod random;

pub mod ratelimit;

mod reply;

mod request;

mod response;

mod several;

#[cfg(feature = "tracing")]
mod spans;

pub mod runtime;

mod trailers;

pub mod upstream;

/// The version of this crate.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

pub use body::{BodyError, BodyTooLarge, BodyUnavailable, Limit, Prefix};
pub use config::{ByteSize, Config};
pub use cookie::{CookieError, SameSite, SetCookie};
pub use facts::{Client, Exchange, exchange};
pub use filter::{Continue, Filter, Flow, Hooks, OrDeny};
pub use http::{self, HeaderName, Method, StatusCode, Uri};
pub use join::join;
pub use log;
pub use message::{HeaderValue, Message};
pub use reply::{Reply, Status};
pub use request::Request;
pub use response::Response;
pub use selvedge_sdk_macros::{Config, filter, test};
pub use serde;
pub use serde_json;
pub use several::{first_ok, join_all, join3, race};
#[cfg(feature = "tracing")]
pub use tracing;
pub use trailers::Trailers;
pub use upstream::{CallError, CallFailure, CallResponse, GrpcCode, GrpcResponse, Upstream};

/// What a filter needs, in one `use`.
pub mod prelude {
    pub use std::time::Duration;

    pub use http::{HeaderName, Method, StatusCode, Uri};
    pub use log::{debug, error, info, trace, warn};
    pub use selvedge_sdk_macros::{Config, filter};

    pub use crate::config::{ByteSize, Config};
    pub use crate::cookie::{SameSite, SetCookie};
    pub use crate::facts::{Client, Exchange, exchange};
    pub use crate::filter::Continue::Next;
    pub use crate::filter::{Continue, Filter, Flow, OrDeny};
    pub use crate::join::join;
    pub use crate::kv::{Kv, KvError, SharedCounter};
    pub use crate::metrics::{Counter, Gauge, Histogram, Metrics};
    pub use crate::ratelimit::{RateLimit, Taken};
    pub use crate::reply::Reply;
    pub use crate::request::Request;
    pub use crate::response::Response;
    pub use crate::several::{first_ok, join_all, join3, race};
    pub use crate::upstream::{CallError, CallFailure, CallResponse, GrpcCode, GrpcResponse, Upstream, upstream};
    pub use crate::{
        BodyError, BodyTooLarge, BodyUnavailable, HeaderValue, Prefix, clock, crypto, kv, metrics, random,
    };
}
