//! Counts in the memory of its VM: the streams it was opened for and its ticks. Configuration: `<milliseconds> [<anything>]`.
//!
//! Response headers `x-streams` and `x-ticks`. With the request header `x-call: <upstream>` it asks that upstream first, and shows what
//! became of it in `x-called`: the status, `failed`, or `refused` when the host knows no such upstream.

use std::cell::Cell;
use std::time::Duration;

use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType};

const _: () = {
    proxy_wasm::main! {{
        proxy_wasm::set_root_context(|_| Box::new(Census));
    }}
};

thread_local! {
    static STREAMS: Cell<u32> = const { Cell::new(0) };
    static TICKS: Cell<u32> = const { Cell::new(0) };
}

struct Census;

impl Context for Census {}

impl RootContext for Census {
    fn on_configure(&mut self, _size: usize) -> bool {
        let config = selvedge_test_guests::configuration(self);
        let Some(Ok(period)) = config.split_whitespace().next().map(str::parse) else { return false };
        self.set_tick_period(Duration::from_millis(period));
        true
    }

    fn on_tick(&mut self) {
        TICKS.set(TICKS.get() + 1);
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }

    fn create_http_context(&self, _id: u32) -> Option<Box<dyn HttpContext>> {
        STREAMS.set(STREAMS.get() + 1);
        Some(Box::new(Stream { streams: STREAMS.get(), called: None }))
    }
}

struct Stream {
    streams: u32,
    called: Option<String>,
}

impl Context for Stream {
    fn on_http_call_response(&mut self, _id: u32, headers: usize, _body_len: usize, _trailers: usize) {
        let status = self.get_http_call_response_header(":status").filter(|_| headers > 0);
        self.called = Some(status.unwrap_or_else(|| "failed".into()));
        self.resume_http_request();
    }
}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _count: usize, _end: bool) -> Action {
        let Some(upstream) = self.get_http_request_header("x-call") else { return Action::Continue };
        let headers = vec![(":method", "GET"), (":path", "/called"), (":authority", "called")];
        if self.dispatch_http_call(&upstream, headers, None, vec![], Duration::from_secs(10)).is_ok() {
            return Action::Pause;
        }
        self.called = Some("refused".into());
        Action::Continue
    }

    fn on_http_response_headers(&mut self, _count: usize, _end: bool) -> Action {
        self.set_http_response_header("x-streams", Some(&self.streams.to_string()));
        self.set_http_response_header("x-ticks", Some(&TICKS.get().to_string()));
        if let Some(called) = &self.called {
            self.set_http_response_header("x-called", Some(called));
        }
        Action::Continue
    }
}
