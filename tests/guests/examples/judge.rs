//! Holds the headers until the whole body is there; answers 403 in its stead when the body contains `evil`.

use std::rc::Rc;

use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;

selvedge_test_guests::guest!(|side| Box::new(Judge { side }));

struct Judge {
    side: Rc<str>,
}

impl Judge {
    fn headers(&self, side: &str, end: bool) -> Action {
        if &*self.side != side || end { Action::Continue } else { Action::Pause }
    }

    fn body(&self, side: &str, end: bool, body: impl FnOnce() -> Option<Vec<u8>>) -> Action {
        if &*self.side != side {
            return Action::Continue;
        }
        if !end {
            return Action::Pause;
        }
        if body().unwrap_or_default().windows(4).any(|word| word == b"evil") {
            self.send_http_response(403, vec![("x-judged", side)], Some(b"evil\n"));
            return Action::Pause;
        }
        Action::Continue
    }
}

impl Context for Judge {}

impl HttpContext for Judge {
    fn on_http_request_headers(&mut self, _count: usize, end: bool) -> Action {
        self.headers("request", end)
    }

    fn on_http_request_body(&mut self, len: usize, end: bool) -> Action {
        self.body("request", end, || self.get_http_request_body(0, len))
    }

    fn on_http_response_headers(&mut self, _count: usize, end: bool) -> Action {
        self.headers("response", end)
    }

    fn on_http_response_body(&mut self, len: usize, end: bool) -> Action {
        self.body("response", end, || self.get_http_response_body(0, len))
    }
}
