//! What a small real filter does: reads a header and sets one on either side.

use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;

selvedge_test_guests::guest!(|_| Box::new(Touch));

struct Touch;

impl Context for Touch {}

impl HttpContext for Touch {
    fn on_http_request_headers(&mut self, _count: usize, _end: bool) -> Action {
        let path = self.get_http_request_header(":path").unwrap_or_default();
        self.set_http_request_header("x-path-length", Some(if path.len() > 9 { "long" } else { "short" }));
        Action::Continue
    }

    fn on_http_response_headers(&mut self, _count: usize, _end: bool) -> Action {
        self.set_http_response_header("x-touched", Some("yes"));
        Action::Continue
    }
}
