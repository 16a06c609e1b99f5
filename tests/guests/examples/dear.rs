//! Dear to configure: works through as many rounds of a checksum as its configuration says, keeps a table of the results, and answers
//! from it in the response header `x-dear`.

use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType};

const _: () = {
    proxy_wasm::main! {{
        proxy_wasm::set_log_level(proxy_wasm::types::LogLevel::Info);
        proxy_wasm::set_root_context(|_| Box::<Root>::default());
    }}
};

#[derive(Default)]
struct Root {
    checksum: u32,
    table: Vec<u32>,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _size: usize) -> bool {
        let rounds: u32 = selvedge_test_guests::configuration(self).parse().unwrap_or(0);
        for round in 0..rounds {
            self.checksum = (self.checksum ^ round).wrapping_mul(0x9e37_79b9).rotate_left(13);
            if round % 4096 == 0 {
                self.table.push(self.checksum);
            }
        }
        true
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }

    fn create_http_context(&self, _id: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Dear { answer: self.checksum ^ self.table.last().copied().unwrap_or_default() }))
    }
}

struct Dear {
    answer: u32,
}

impl Context for Dear {}

impl HttpContext for Dear {
    fn on_http_response_headers(&mut self, _count: usize, _end: bool) -> Action {
        self.set_http_response_header("x-dear", Some(&self.answer.to_string()));
        Action::Continue
    }
}
