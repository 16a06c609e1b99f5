//! Counts requests in shared data, by compare-and-swap.

use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::{Action, Status};

selvedge_test_guests::guest!(|_| Box::new(Shared::default()));

#[derive(Default)]
struct Shared {
    count: u64,
}

impl Context for Shared {}

impl HttpContext for Shared {
    fn on_http_request_headers(&mut self, _count: usize, _end: bool) -> Action {
        loop {
            let (value, cas) = self.get_shared_data("count");
            let before = value.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
            self.count = before + 1;
            match self.set_shared_data("count", Some(&self.count.to_le_bytes()), cas) {
                Err(Status::CasMismatch) => {}
                _ => return Action::Continue,
            }
        }
    }

    fn on_http_response_headers(&mut self, _count: usize, _end: bool) -> Action {
        self.set_http_response_header("x-count", Some(&self.count.to_string()));
        Action::Continue
    }
}
