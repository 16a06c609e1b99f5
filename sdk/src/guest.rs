//! The wasm entry points. `#[filter]` exports one function per callback that the filter needs, and each calls a method here.
//!
//! Crate proxy-wasm is not used: it exports every callback and imports nearly every host call whatever the filter does (its
//! dispatcher is a set of trait objects), which doubles a small guest, and its wrappers panic, and so lose the whole VM, when a
//! host answers something unexpected.

#![allow(unsafe_code, reason = "a guest is entered through exported symbols")]

use std::panic;

use log::{LevelFilter, Log, Metadata, Record};

use crate::contexts::Contexts;
use crate::filter::Filter;
use crate::host::{self, Guest as Host};
use crate::runtime::{Action, Stream};

/// Marks the ABI of this guest; a host looks for it and never calls it.
#[unsafe(no_mangle)]
pub extern "C" fn proxy_abi_version_0_2_1() {}

/// Gives the host memory to return something in. It is handed over with the call that returns it.
#[unsafe(no_mangle)]
pub extern "C" fn proxy_on_memory_allocate(size: usize) -> *mut u8 {
    Box::into_raw(Box::<[u8]>::new_uninit_slice(size)).cast()
}

/// Installs the logger, and a panic hook that logs the message and the place at critical.
pub fn initialize() {
    panic::set_hook(Box::new(|panic| Host.log_critical(&panic.to_string())));
    if log::set_logger(&HostLogger).is_ok() {
        log::set_max_level(LevelFilter::Trace);
    }
    #[cfg(feature = "tracing")]
    crate::spans::forward();
}

/// The contexts of one VM, and what the host says to them.
pub struct Guest<F: Filter> {
    contexts: Contexts<F>,
}

impl<F: Filter> Default for Guest<F> {
    fn default() -> Self {
        Self::new()
    }
}

impl<F: Filter> Guest<F> {
    /// One without any contexts.
    pub const fn new() -> Self {
        Self { contexts: Contexts::new() }
    }

    /// `proxy_on_context_create`: a plugin context (no parent) or a stream context.
    pub fn on_context_create(&self, id: u32, parent: u32) {
        self.contexts.create(id, parent);
    }

    /// `proxy_on_configure`: 0 refuses the configuration.
    pub fn on_configure(&self, id: u32) -> u32 {
        host::forget_level();
        u32::from(self.contexts.configure(id, &Host.configuration()))
    }

    /// `proxy_on_tick`.
    pub fn on_tick(&self, id: u32) {
        self.contexts.tick(id);
    }

    /// `proxy_on_request_headers`.
    pub fn on_request_headers(&self, id: u32, end: u32) -> u32 {
        code(self.contexts.request_headers(id, end != 0))
    }

    /// `proxy_on_request_body`.
    pub fn on_request_body(&self, id: u32, held: usize, end: u32) -> u32 {
        code(self.contexts.act(id, |stream| stream.on_request_body(held, end != 0)))
    }

    /// `proxy_on_request_trailers`.
    pub fn on_request_trailers(&self, id: u32) -> u32 {
        code(self.contexts.act(id, Stream::on_request_trailers))
    }

    /// `proxy_on_response_headers`.
    pub fn on_response_headers(&self, id: u32, end: u32) -> u32 {
        code(self.contexts.response_headers(id, end != 0))
    }

    /// `proxy_on_response_body`.
    pub fn on_response_body(&self, id: u32, held: usize, end: u32) -> u32 {
        code(self.contexts.act(id, |stream| stream.on_response_body(held, end != 0)))
    }

    /// `proxy_on_response_trailers`.
    pub fn on_response_trailers(&self, id: u32) -> u32 {
        code(self.contexts.act(id, Stream::on_response_trailers))
    }

    /// `proxy_on_http_call_response`, and `proxy_on_grpc_receive` and `proxy_on_grpc_close` with numbers of theirs: the context it names
    /// is the plugin's, so the sender is looked up.
    pub fn on_http_call_response(&self, token: u32, headers: usize, body: usize) {
        self.contexts.call_response(token, headers, body, |stream| Host.enter(stream));
    }

    /// `proxy_on_log`.
    pub fn on_log(&self, id: u32) {
        self.contexts.log(id);
    }

    /// `proxy_on_delete`.
    pub fn on_delete(&self, id: u32) {
        self.contexts.delete(id);
    }
}

/// What the host is told of it.
fn code(action: Action) -> u32 {
    match action {
        Action::Continue => 0,
        Action::Pause => 1,
    }
}

struct HostLogger;

impl Log for HostLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        host::wants(metadata.level())
    }

    fn log(&self, record: &Record<'_>) {
        if !host::wants(record.level()) {
            return;
        }
        match record.args().as_str() {
            Some(message) => host::current().log(record.level(), message),
            None => host::current().log(record.level(), &record.args().to_string()),
        }
    }

    fn flush(&self) {}
}
