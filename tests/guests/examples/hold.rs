//! Holds headers until the whole body is there, then edits both.

use std::rc::Rc;

use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;

selvedge_test_guests::guest!(|sides| Box::new(Hold { sides }));

struct Hold {
    sides: Rc<str>,
}

const MARK: &[u8] = b"[held]";

impl Hold {
    fn holds(&self, side: &str) -> bool {
        self.sides.is_empty() || &*self.sides == side
    }
}

impl Context for Hold {}

impl HttpContext for Hold {
    fn on_http_request_headers(&mut self, _count: usize, end: bool) -> Action {
        if !self.holds("request") || end { Action::Continue } else { Action::Pause }
    }

    fn on_http_request_body(&mut self, len: usize, end: bool) -> Action {
        if !self.holds("request") {
            return Action::Continue;
        }
        if !end {
            return Action::Pause;
        }
        self.set_http_request_header("x-held-len", Some(&len.to_string()));
        self.set_http_request_header("content-length", Some(&(len + MARK.len()).to_string()));
        self.set_http_request_body(len, 0, MARK);
        Action::Continue
    }

    fn on_http_response_headers(&mut self, _count: usize, end: bool) -> Action {
        if !self.holds("response") || end { Action::Continue } else { Action::Pause }
    }

    fn on_http_response_body(&mut self, len: usize, end: bool) -> Action {
        if !self.holds("response") {
            return Action::Continue;
        }
        if !end {
            return Action::Pause;
        }
        self.set_http_response_header("x-held-len", Some(&len.to_string()));
        self.set_http_response_header("content-length", Some(&(len + MARK.len()).to_string()));
        self.set_http_response_body(len, 0, MARK);
        Action::Continue
    }
}
