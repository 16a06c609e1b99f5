//! The filter of this folder's README, on version 0.1.4 of the Rust SDK: ABI 0.1.0.

use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType, LogLevel};

#[no_mangle]
pub extern "C" fn _start() {
    proxy_wasm::set_log_level(LogLevel::Debug);
    proxy_wasm::set_root_context(|_| Box::new(Root { greeting: String::new() }));
}

struct Root {
    greeting: String,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _size: usize) -> bool {
        let config = self.get_configuration().unwrap_or_default();
        self.greeting = String::from_utf8_lossy(&config).to_uppercase();
        log::info!("rust 0.1 configured");
        true
    }

    fn create_http_context(&self, _context: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Http { greeting: self.greeting.clone() }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

struct Http {
    greeting: String,
}

impl Context for Http {
    fn on_http_call_response(&mut self, _call: u32, _headers: usize, body: usize, _trailers: usize) {
        let body = self.get_http_call_response_body(0, body).unwrap_or_default();
        self.set_http_request_header("x-asked", Some(&String::from_utf8_lossy(&body)));
        self.resume_http_request();
    }
}

impl HttpContext for Http {
    fn on_http_request_headers(&mut self, _count: usize) -> Action {
        match self.get_http_request_header("x-ask").as_deref() {
            Some("deny") => {
                self.send_http_response(403, vec![("x-denied", "rust 0.1")], Some(b"denied by rust 0.1\n"));
                return Action::Pause;
            }
            Some("later") => {
                // Held here, let go on when the answer is there.
                let headers = vec![(":method", "GET"), (":path", "/ask"), (":authority", "app")];
                let call = self.dispatch_http_call("app", headers, None, vec![], std::time::Duration::from_secs(5));
                call.expect("the upstream is known");
                return Action::Pause;
            }
            _ => {}
        }
        self.set_http_request_header("x-request-from", Some(&format!("rust 0.1 {}", self.greeting)));
        self.set_http_request_header("content-length", None);
        Action::Continue
    }

    fn on_http_request_body(&mut self, size: usize, end: bool) -> Action {
        if !end {
            return Action::Pause;
        }
        let body = self.get_http_request_body(0, size).unwrap_or_default();
        self.set_http_request_body(0, size, &[&body, &b" +rust 0.1"[..]].concat());
        Action::Continue
    }

    fn on_http_response_headers(&mut self, _count: usize) -> Action {
        let later = self.get_current_time() > std::time::UNIX_EPOCH;
        self.set_http_response_header("x-response-from", Some(&format!("rust 0.1 {later}")));
        self.set_http_response_header("content-length", None);
        Action::Continue
    }

    fn on_http_response_body(&mut self, size: usize, end: bool) -> Action {
        if !end {
            return Action::Pause;
        }
        let body = self.get_http_response_body(0, size).unwrap_or_default();
        self.set_http_response_body(0, size, &[&body, &b" +rust 0.1"[..]].concat());
        Action::Continue
    }
}
