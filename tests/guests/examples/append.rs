//! Streams bodies through and appends to their end.

use std::rc::Rc;

use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;

selvedge_test_guests::guest!(|side| Box::new(Append { side }));

struct Append {
    side: Rc<str>,
}

impl Append {
    fn request(&self) -> bool {
        &*self.side == "request"
    }

    fn response(&self) -> bool {
        self.side.is_empty() || &*self.side == "response"
    }
}

impl Context for Append {}

impl HttpContext for Append {
    fn on_http_request_headers(&mut self, _count: usize, end: bool) -> Action {
        if self.request() && !end {
            self.set_http_request_header("content-length", None);
        }
        Action::Continue
    }

    fn on_http_request_body(&mut self, len: usize, end: bool) -> Action {
        if self.request() && end {
            self.set_http_request_body(len, 0, b"+app");
        }
        Action::Continue
    }

    fn on_http_response_headers(&mut self, _count: usize, end: bool) -> Action {
        if self.response() && !end {
            self.set_http_response_header("content-length", None);
        }
        Action::Continue
    }

    fn on_http_response_body(&mut self, len: usize, end: bool) -> Action {
        if self.response() && end {
            self.set_http_response_body(len, 0, b"+app");
        }
        Action::Continue
    }
}
