//! Pauses in the phase that its configuration names, and never resumes.

use std::rc::Rc;

use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;

selvedge_test_guests::guest!(|phase| Box::new(Stuck { phase }));

struct Stuck {
    phase: Rc<str>,
}

impl Stuck {
    /// A filter that holds the headers for ever does not let the body through either.
    fn at(&self, phases: &[&str]) -> Action {
        if phases.contains(&&*self.phase) { Action::Pause } else { Action::Continue }
    }
}

impl Context for Stuck {}

impl HttpContext for Stuck {
    fn on_http_request_headers(&mut self, _count: usize, _end: bool) -> Action {
        self.at(&["request_headers"])
    }

    fn on_http_request_body(&mut self, _len: usize, _end: bool) -> Action {
        self.at(&["request_headers", "request_body"])
    }

    fn on_http_response_headers(&mut self, _count: usize, _end: bool) -> Action {
        self.at(&["response_headers"])
    }

    fn on_http_response_body(&mut self, _len: usize, _end: bool) -> Action {
        self.at(&["response_headers", "response_body"])
    }
}
