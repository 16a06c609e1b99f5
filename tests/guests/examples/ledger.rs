//! Counts the streams that were opened and those that are done, and shows both.

use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::{Action, Status};

selvedge_test_guests::guest!(|_| Box::new(Ledger));

struct Ledger;

impl Ledger {
    fn count(&self, key: &str, more: u64) -> u64 {
        loop {
            let (value, cas) = self.get_shared_data(key);
            let count = value.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes) + more;
            if more == 0
                || !matches!(self.set_shared_data(key, Some(&count.to_le_bytes()), cas), Err(Status::CasMismatch))
            {
                return count;
            }
        }
    }
}

impl Context for Ledger {}

impl HttpContext for Ledger {
    fn on_http_request_headers(&mut self, _count: usize, _end: bool) -> Action {
        self.count("opened", 1);
        Action::Continue
    }

    fn on_http_response_headers(&mut self, _count: usize, _end: bool) -> Action {
        self.set_http_response_header("x-opened", Some(&self.count("opened", 0).to_string()));
        self.set_http_response_header("x-done", Some(&self.count("done", 0).to_string()));
        Action::Continue
    }

    fn on_log(&mut self) {
        self.count("done", 1);
    }
}
