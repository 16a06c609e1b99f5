//! Answers 403 from the phase that its configuration names.

use std::rc::Rc;

use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;

selvedge_test_guests::guest!(|phase| Box::new(Deny { phase }));

struct Deny {
    phase: Rc<str>,
}

impl Deny {
    fn at(&self, phase: &str) -> Action {
        if &*self.phase != phase {
            return Action::Continue;
        }
        let body = format!("denied in {phase}\n");
        self.send_http_response(
            403,
            vec![("x-denied-in", phase), ("content-type", "text/plain")],
            Some(body.as_bytes()),
        );
        Action::Pause
    }
}

impl Context for Deny {}

impl HttpContext for Deny {
    fn on_http_request_headers(&mut self, _count: usize, _end: bool) -> Action {
        self.at("request_headers")
    }

    fn on_http_request_body(&mut self, _len: usize, _end: bool) -> Action {
        self.at("request_body")
    }

    fn on_http_response_headers(&mut self, _count: usize, _end: bool) -> Action {
        self.at("response_headers")
    }

    fn on_http_response_body(&mut self, _len: usize, _end: bool) -> Action {
        self.at("response_body")
    }
}
