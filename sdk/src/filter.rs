//! The trait a filter implements, and the verdicts of its hooks.

use std::fmt::Display;
use std::time::Duration;

use crate::reply::Status;
use crate::{Config, Exchange, Reply, Request, Response, config};

/// One filter of a chain. Put `#[filter]` on the impl; see the [crate documentation](crate) for a whole one.
///
/// The host makes one value of the type per VM (one per worker thread), from the configuration; all streams of that VM share it.
/// It runs on one thread, so interior mutability is `Cell` and `RefCell`; what all workers must agree on belongs into [`kv`](crate::kv).
///
/// A hook that waits (for a body, for a callout) holds its message: nothing reaches the other side meanwhile.
#[allow(async_fn_in_trait, reason = "a guest has one thread: its futures need not be Send")]
pub trait Filter: Sized + 'static {
    /// The settings, read from the JSON that the host gives; when it gives none, from `{}`. Derive it with
    /// [`Config`](macro@crate::Config). `#[filter]` adds `()`, no settings, when it is left out.
    type Config: Config;

    /// What one stream keeps from its request to its response and to [`done`](Filter::done). `#[filter]` adds `()` when it is left out.
    type Stream: Default + 'static;

    /// How often [`tick`](Filter::tick) runs, to the millisecond. `None`, the default: never.
    const TICK: Option<Duration> = None;

    /// The hooks that do something; written by `#[filter]`. The default is all of them.
    #[doc(hidden)]
    const HOOKS: Hooks = Hooks::ALL;

    /// Reads the configuration and makes the filter. `#[filter]` replaces it where there is nothing to read.
    #[doc(hidden)]
    fn configure(json: &[u8]) -> Result<Self, String> {
        config::parse(json).and_then(Self::new)
    }

    /// Makes the filter, once per VM.
    ///
    /// # Errors
    /// A sentence for the operator about what is wrong with the configuration. The host then refuses the plugin.
    fn new(config: Self::Config) -> Result<Self, String>;

    /// Runs when the headers of a request are there. The default lets it pass.
    ///
    /// # Errors
    /// Not a failure but an answer: the [`Reply`] goes to the client and the request goes no further.
    async fn request(&self, _request: &mut Request, _stream: &mut Self::Stream) -> Flow {
        Ok(Continue::Next)
    }

    /// Runs when the headers of the response are there. The default lets it pass. A reply that this filter made itself comes
    /// through here as well on most hosts.
    ///
    /// # Errors
    /// Not a failure but an answer: the [`Reply`] replaces the response.
    async fn response(&self, _response: &mut Response, _stream: &mut Self::Stream) -> Flow {
        Ok(Continue::Next)
    }

    /// Runs once per VM, after [`new`](Filter::new) and outside any stream: fetch what every request will need. It may wait for callouts;
    /// requests do not wait for it.
    async fn start(&self) {}

    /// Runs every [`TICK`](Filter::TICK), outside any stream: refresh what is cached, publish a gauge. It may wait for callouts; while it
    /// does, ticks are left out. Where nothing is waited for, it may be written as a plain `fn`.
    async fn tick(&self) {}

    /// Runs when the stream is over, whatever way it ended: count it, log it. `#[filter]` adds the parameters that are left out.
    fn done(&self, _exchange: &Exchange, _stream: &Self::Stream) {}
}

/// The verdict of a hook that does not answer itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Continue {
    /// The message goes on, to the next filter and then to the other side.
    Next,
}

/// What a hook returns: `Ok(Next)` to let the message pass, `Err(reply)` to answer now. So `?` denies.
pub type Flow = Result<Continue, Reply>;

/// Which hooks a filter overrides, and which bodies it reads or replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hooks {
    /// [`Filter::request`] is overridden.
    pub request: bool,
    /// … and may read or replace the body.
    pub request_body: bool,
    /// … and may wait.
    pub request_waits: bool,
    /// [`Filter::response`] is overridden.
    pub response: bool,
    /// … and may read or replace the body.
    pub response_body: bool,
    /// … and may wait.
    pub response_waits: bool,
    /// [`Filter::done`] is overridden.
    pub done: bool,
    /// [`Filter::start`] is overridden.
    pub start: bool,
    /// [`Filter::tick`] is overridden.
    pub tick: bool,
}

impl Hooks {
    /// Everything is called: a filter without `#[filter]`.
    pub const ALL: Self = Self {
        request: true,
        request_body: true,
        request_waits: true,
        response: true,
        response_body: true,
        response_waits: true,
        done: true,
        start: true,
        tick: true,
    };
}

/// Turns what is missing or failed into an answer: `req.header("x-api-key").or_deny(401, "missing api key")?`.
pub trait OrDeny<T> {
    /// The value, or a [`Reply`] with this status and this text (plain text, one line). The cause of an `Err` is logged at
    /// debug and not shown to the client.
    ///
    /// # Errors
    /// The reply, when there is no value.
    fn or_deny(self, status: impl Status, message: &str) -> Result<T, Reply>;
}

impl<T> OrDeny<T> for Option<T> {
    fn or_deny(self, status: impl Status, message: &str) -> Result<T, Reply> {
        self.ok_or_else(|| Reply::new(status).text(message))
    }
}

impl<T, E: Display> OrDeny<T> for Result<T, E> {
    fn or_deny(self, status: impl Status, message: &str) -> Result<T, Reply> {
        self.map_err(|error| {
            let status = status.code();
            log::debug!("denied with {status} ({message}): {error}");
            Reply::new(status).text(message)
        })
    }
}
