//! One tiny wasm guest per behaviour: the examples of this crate, built on plain `proxy-wasm`.
//!
//! | guest | configuration | behaviour |
//! |---|---|---|
//! | `noop` | – | continues everywhere |
//! | `trap` | callback | panics in that callback: `vm_start`, `configure`, `tick`, `request_headers`, `request_body`, `request_trailers`, `response_headers`, `response_body`, `response_trailers`, `done`, `log` |
//! | `spin` | callback | never returns from it |
//! | `nag` | callback | calls the host in it without end |
//! | `hog` | callback | allocates in it without end |
//! | `deny` | phase | answers 403 with a body and the header `x-denied-in` from `request_headers`, `request_body`, `response_headers` or `response_body` |
//! | `hold` | `request`, `response`, or nothing for both | holds the headers until the whole body is there, then sets `x-held-len` and `content-length` and appends `[held]` |
//! | `append` | `request`, `response`, or nothing for the response | streams; appends `+app` at the end of the body, removes `content-length` |
//! | `callout` | phase, upstream, path | pauses, calls, sets `x-callout: <status>:<body length>` in a headers phase, resumes; answers 503 when the call fails |
//! | `headers` | lines `request set name value`, `response add name value`, `request remove name`, `property a.b.c` | edits headers; the nth property goes into the response header `x-prop-<n>` |
//! | `shared` | – | counts requests by compare-and-swap, response header `x-count` |
//! | `tick` | milliseconds, and an upstream to call at each tick | counter `guest_ticks`, counter `guest_tick_answers`, response header `x-ticks` |
//! | `trailers` | – | adds the response trailer `x-trailer-filtered: yes` |
//! | `judge` | `request` or `response` | holds the headers until the whole body is there; answers 403 when the body contains `evil` |
//! | `script` | lines | does in each callback what they say, and keeps a record of its callbacks: see `examples/script.rs` |
//! | `stuck` | phase | pauses in it and never resumes: `request_headers`, `request_body`, `response_headers`, `response_body` |
//! | `peek` | – | holds the request's headers until the body has begun, sets `x-peeked` to its first 4 bytes, lets the rest stream |
//! | `tcp` | what to do, in one line: see `examples/tcp.rs` | a filter of TCP connections |
//! | `queue` | queue to take from or `-`, `vm_id` to put into or `-`, queue to put into | puts the words of the request header `x-enqueue` into a queue (`x-enqueued: ok full no-queue`), takes what it is told of into the response header `x-seen`; panics at the item `die`, puts `again` back |
//! | `grpc` | script for a tick, or nothing | speaks gRPC as scripts in request headers say, answers with what it saw: see `examples/grpc.rs` |
//! | `touch` | – | reads `:path`, sets the request header `x-path-length` and the response header `x-touched` |
//! | `dear` | rounds | works through them when it is configured; response header `x-dear` |
//! | `properties` | lines `phase verb name arguments` | reads and writes properties and headers, calls foreign functions; shows values and statuses in response headers `x-<name>` |
//! | `ledger` | – | counts streams opened and done, response headers `x-opened` and `x-done` |
//! | `census` | tick period in milliseconds, then anything | counts streams and ticks in the memory of its VM, response headers `x-streams` and `x-ticks`; asks the upstream of the request header `x-call`: `x-called` |

use std::rc::Rc;

use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType};

/// Makes the stream context of a guest from its configuration.
pub type Make = fn(Rc<str>) -> Box<dyn HttpContext>;

/// A root context that reads its configuration as text and hands it to every stream.
pub struct Root {
    config: Rc<str>,
    make: Make,
}

impl Root {
    /// A root context that makes streams with `make`.
    pub fn new(make: Make) -> Self {
        Self { config: "".into(), make }
    }
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _size: usize) -> bool {
        self.config = configuration(self);
        true
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }

    fn create_http_context(&self, _id: u32) -> Option<Box<dyn HttpContext>> {
        Some((self.make)(self.config.clone()))
    }
}

/// A root context's configuration as text.
pub fn configuration(root: &dyn RootContext) -> Rc<str> {
    String::from_utf8_lossy(&root.get_plugin_configuration().unwrap_or_default()).trim().into()
}

/// The entry point of a guest whose root context is [`Root`].
#[macro_export]
macro_rules! guest {
    ($make:expr) => {
        const _: () = {
            proxy_wasm::main! {{
                proxy_wasm::set_log_level(proxy_wasm::types::LogLevel::Info);
                proxy_wasm::set_root_context(|_| Box::new($crate::Root::new($make)));
            }}
        };
    };
}

/// The entry point of a guest that misbehaves in the callback its configuration names.
#[macro_export]
macro_rules! saboteur {
    ($act:expr) => {
        const _: () = {
            proxy_wasm::main! {{
                proxy_wasm::set_log_level(proxy_wasm::types::LogLevel::Info);
                proxy_wasm::set_root_context(|_| Box::new($crate::Saboteur::new($act)));
            }}
        };
    };
}

/// A root and stream context that calls `act` in one callback.
pub struct Saboteur {
    when: Rc<str>,
    act: fn(),
}

impl Saboteur {
    /// A root context; it learns from its configuration when to act.
    pub fn new(act: fn()) -> Self {
        Self { when: "".into(), act }
    }

    fn at(&self, callback: &str) -> Action {
        if &*self.when == callback {
            (self.act)();
        }
        Action::Continue
    }
}

impl Context for Saboteur {
    fn on_done(&mut self) -> bool {
        self.at("done");
        true
    }
}

impl RootContext for Saboteur {
    fn on_vm_start(&mut self, _size: usize) -> bool {
        // The VM's configuration is the only one there is at this point.
        self.when = String::from_utf8_lossy(&self.get_vm_configuration().unwrap_or_default()).into();
        self.at("vm_start");
        true
    }

    fn on_configure(&mut self, _size: usize) -> bool {
        self.when = configuration(self);
        self.at("configure");
        if &*self.when == "tick" {
            self.set_tick_period(std::time::Duration::from_millis(5));
        }
        true
    }

    fn on_tick(&mut self) {
        self.at("tick");
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }

    fn create_http_context(&self, _id: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Self { when: self.when.clone(), act: self.act }))
    }
}

impl HttpContext for Saboteur {
    fn on_http_request_headers(&mut self, _count: usize, _end: bool) -> Action {
        self.at("request_headers")
    }

    fn on_http_request_body(&mut self, _len: usize, _end: bool) -> Action {
        self.at("request_body")
    }

    fn on_http_request_trailers(&mut self, _count: usize) -> Action {
        self.at("request_trailers")
    }

    fn on_http_response_headers(&mut self, _count: usize, _end: bool) -> Action {
        self.at("response_headers")
    }

    fn on_http_response_body(&mut self, _len: usize, _end: bool) -> Action {
        self.at("response_body")
    }

    fn on_http_response_trailers(&mut self, _count: usize) -> Action {
        self.at("response_trailers")
    }

    fn on_log(&mut self) {
        self.at("log");
    }
}
