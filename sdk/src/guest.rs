//! The wasm entry points, over the dispatcher of crate proxy-wasm. `#[filter]` calls [`start`].

use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{self, ContextType, LogLevel};

use crate::filter::Filter;
use crate::host::Guest;
use crate::runtime::{Action, Root, Stream};

/// Registers the filter, the logger, and a panic hook that logs message and place at critical.
pub fn start<F: Filter>() {
    proxy_wasm::set_log_level(LogLevel::Info);
    proxy_wasm::set_root_context(|_| Box::new(RootEntry::<F>(Root::default())));
}

struct RootEntry<F: Filter>(Root<F>);

impl<F: Filter> Context for RootEntry<F> {}

impl<F: Filter> RootContext for RootEntry<F> {
    fn on_configure(&mut self, _size: usize) -> bool {
        proxy_wasm::set_log_level(Guest.log_level());
        self.0.configure(&Guest.configuration())
    }

    fn on_tick(&mut self) {
        self.0.tick();
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }

    fn create_http_context(&self, _id: u32) -> Option<Box<dyn HttpContext>> {
        self.0.open().map(|stream| Box::new(StreamEntry(stream)) as Box<dyn HttpContext>)
    }
}

struct StreamEntry<F: Filter>(Stream<F>);

impl<F: Filter> Context for StreamEntry<F> {
    fn on_http_call_response(&mut self, token: u32, headers: usize, body: usize, _trailers: usize) {
        self.0.on_call_response(token, headers, body);
    }
}

impl<F: Filter> HttpContext for StreamEntry<F> {
    fn on_http_request_headers(&mut self, _count: usize, end: bool) -> types::Action {
        action(self.0.on_request_headers(end))
    }

    fn on_http_request_body(&mut self, held: usize, end: bool) -> types::Action {
        action(self.0.on_request_body(held, end))
    }

    fn on_http_request_trailers(&mut self, _count: usize) -> types::Action {
        action(self.0.on_request_trailers())
    }

    fn on_http_response_headers(&mut self, _count: usize, end: bool) -> types::Action {
        action(self.0.on_response_headers(end))
    }

    fn on_http_response_body(&mut self, held: usize, end: bool) -> types::Action {
        action(self.0.on_response_body(held, end))
    }

    fn on_http_response_trailers(&mut self, _count: usize) -> types::Action {
        action(self.0.on_response_trailers())
    }

    fn on_log(&mut self) {
        self.0.on_log();
    }
}

fn action(action: Action) -> types::Action {
    match action {
        Action::Continue => types::Action::Continue,
        Action::Pause => types::Action::Pause,
    }
}
