//! Counts its ticks; calls an upstream at each, if its configuration names one: `<milliseconds> [<upstream>]`.

use std::time::Duration;

use proxy_wasm::hostcalls::{define_metric, get_metric, increment_metric};
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType, MetricType};

const _: () = {
    proxy_wasm::main! {{
        proxy_wasm::set_root_context(|_| Box::new(Ticker::default()));
    }}
};

#[derive(Default, Clone)]
struct Ticker {
    ticks: u32,
    answers: u32,
    upstream: Option<String>,
}

impl Context for Ticker {
    fn on_http_call_response(&mut self, _id: u32, _headers: usize, _body_len: usize, _trailers: usize) {
        let _ = increment_metric(self.answers, 1);
    }
}

impl RootContext for Ticker {
    fn on_configure(&mut self, _size: usize) -> bool {
        let config = selvedge_test_guests::configuration(self);
        let mut words = config.split_whitespace();
        let Some(Ok(period)) = words.next().map(str::parse) else { return false };
        self.upstream = words.next().map(str::to_owned);
        self.ticks = define_metric(MetricType::Counter, "guest_ticks").unwrap_or_default();
        self.answers = define_metric(MetricType::Counter, "guest_tick_answers").unwrap_or_default();
        self.set_tick_period(Duration::from_millis(period));
        true
    }

    fn on_tick(&mut self) {
        let _ = increment_metric(self.ticks, 1);
        if let Some(upstream) = &self.upstream {
            let headers = vec![(":method", "GET"), (":path", "/tick"), (":authority", upstream)];
            let _ = self.dispatch_http_call(upstream, headers, None, vec![], Duration::from_secs(1));
        }
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }

    fn create_http_context(&self, _id: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(self.clone()))
    }
}

impl HttpContext for Ticker {
    fn on_http_response_headers(&mut self, _count: usize, _end: bool) -> Action {
        let ticks = get_metric(self.ticks).unwrap_or_default();
        self.set_http_response_header("x-ticks", Some(&ticks.to_string()));
        Action::Continue
    }
}
