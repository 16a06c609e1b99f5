//! Adds a response trailer.

use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;

selvedge_test_guests::guest!(|_| Box::new(Trailers));

struct Trailers;

impl Context for Trailers {}

impl HttpContext for Trailers {
    fn on_http_response_trailers(&mut self, _count: usize) -> Action {
        self.add_http_response_trailer("x-trailer-filtered", "yes");
        Action::Continue
    }
}
