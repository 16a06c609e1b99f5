//! Asks an upstream in the phase that its configuration names: `<phase> <upstream> <path>`.

use std::rc::Rc;
use std::time::Duration;

use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;

selvedge_test_guests::guest!(|config| Box::new(Callout { config }));

struct Callout {
    config: Rc<str>,
}

impl Callout {
    fn at(&self, phase: &str) -> Action {
        let [wanted, upstream, path] = self.config.split_whitespace().collect::<Vec<_>>()[..] else {
            return Action::Continue;
        };
        if wanted != phase {
            return Action::Continue;
        }
        let headers = vec![(":method", "GET"), (":path", path), (":authority", upstream)];
        if self.dispatch_http_call(upstream, headers, None, vec![], Duration::from_secs(2)).is_err() {
            self.send_http_response(503, vec![], Some(b"callout refused"));
        }
        Action::Pause
    }
}

impl Context for Callout {
    fn on_http_call_response(&mut self, _id: u32, headers: usize, body_len: usize, _trailers: usize) {
        if headers == 0 {
            self.send_http_response(503, vec![], Some(b"callout failed"));
            return;
        }
        let status = self.get_http_call_response_header(":status").unwrap_or_default();
        let answer = format!("{status}:{body_len}");
        match self.config.split_whitespace().next() {
            Some("request_headers") => self.set_http_request_header("x-callout", Some(&answer)),
            Some("response_headers") => self.set_http_response_header("x-callout", Some(&answer)),
            _ => {}
        }
        if self.config.starts_with("request") { self.resume_http_request() } else { self.resume_http_response() }
    }
}

impl HttpContext for Callout {
    fn on_http_request_headers(&mut self, _count: usize, _end: bool) -> Action {
        self.at("request_headers")
    }

    fn on_http_request_body(&mut self, _len: usize, end: bool) -> Action {
        if end { self.at("request_body") } else { Action::Continue }
    }

    fn on_http_response_headers(&mut self, _count: usize, _end: bool) -> Action {
        self.at("response_headers")
    }

    fn on_http_response_body(&mut self, _len: usize, end: bool) -> Action {
        if end { self.at("response_body") } else { Action::Continue }
    }
}
