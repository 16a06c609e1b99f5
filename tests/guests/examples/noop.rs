//! Continues everywhere.

use proxy_wasm::traits::{Context, HttpContext};

selvedge_test_guests::guest!(|_| Box::new(Noop));

struct Noop;

impl Context for Noop {}
impl HttpContext for Noop {}
