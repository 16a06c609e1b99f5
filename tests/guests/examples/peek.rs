//! Holds the request's headers until the body has begun, tells its first bytes in a header, and lets the rest stream.

use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;

selvedge_test_guests::guest!(|_| Box::new(Peek { begun: false }));

struct Peek {
    begun: bool,
}

impl Context for Peek {}

impl HttpContext for Peek {
    fn on_http_request_headers(&mut self, _count: usize, end: bool) -> Action {
        if end { Action::Continue } else { Action::Pause }
    }

    fn on_http_request_body(&mut self, len: usize, end: bool) -> Action {
        if !self.begun {
            if len == 0 && !end {
                return Action::Pause;
            }
            self.begun = true;
            let first = self.get_http_request_body(0, len.min(4)).unwrap_or_default();
            self.set_http_request_header("x-peeked", Some(&String::from_utf8_lossy(&first)));
        }
        Action::Continue
    }
}
