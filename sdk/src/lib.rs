//! The guest SDK: write proxy-wasm filters as async Rust.

mod body;

pub mod clock;

#[doc(hidden)]
pub mod config;

mod filter;

pub mod foreign;

#[cfg(target_arch = "wasm32")]
pub mod guest;

pub mod host;

mod join;

pub mod kv;

mod message;

pub mod metrics;

mod reply;

mod request;

mod response;

pub mod runtime;

pub mod upstream;

pub use body::BodyTooLarge;
pub use filter::{Continue, Filter, Flow, Hooks, OrDeny};
pub use join::join;
pub use log;
pub use message::{HeaderValue, Message};
pub use reply::Reply;
pub use request::{Client, Method, Request};
pub use response::Response;
pub use selvedge_sdk_macros::filter;
pub use serde;
pub use serde_json;
pub use upstream::{CallError, CallResponse};

/// What a filter needs, in one `use`.
pub mod prelude {
    pub use std::time::Duration;

    pub use log::{debug, error, info, trace, warn};
    pub use selvedge_sdk_macros::filter;

    pub use crate::filter::Continue::Next;
    pub use crate::filter::{Continue, Filter, Flow, OrDeny};
    pub use crate::join::join;
    pub use crate::reply::Reply;
    pub use crate::request::{Client, Method, Request};
    pub use crate::response::Response;
    pub use crate::upstream::{CallError, CallResponse, upstream};
    pub use crate::{BodyTooLarge, HeaderValue, clock, kv, metrics};
}
