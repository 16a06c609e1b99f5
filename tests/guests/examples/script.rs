//! Does what its configuration says, and keeps a record of its callbacks: lines of `<callback> <verb> <words>`.
//!
//! Callbacks are `request_headers`, `request_body`, `request_end` (the last of the body), `request_trailers`, `response_headers`,
//! `response_body`, `response_end`, `response_trailers`, `answer` (of a call), `tick`, `queue`, `told`, `log`. Every line of a callback is
//! carried out, in order. With `tick` lines it ticks every 5 ms, over every stream there is. With `queue` lines it has a queue, and does
//! them over every stream there is when it is told of an item, and the `told` lines for the root context.
//!
//! | verb | does |
//! |---|---|
//! | `pause` | the callback returns Pause instead of Continue |
//! | `pause-once` | the same, the first time |
//! | `resume request\|response` | resumes |
//! | `resume-others request\|response` | resumes every other stream of this VM |
//! | `enqueue <item>` | puts an item into its queue |
//! | `reply <status> <body>` | answers, with the header `x-replied: <callback>` |
//! | `close request\|response` | closes the stream |
//! | `call <upstream> <path>` | calls out |
//! | `set request\|response <name> <value>` | sets a header |
//! | `body request\|response <text>` | replaces what is shown of the body |
//! | `trailer <name> <value>` | adds a response trailer |
//! | `tell request\|response` | sets the header `x-saw` to the record |
//! | `report <upstream>` | sends the record as the body of a call |
//! | `trap` | panics |

#![allow(clippy::panic, reason = "one of its verbs")]

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, BufferType, ContextType, MapType};

const _: () = {
    proxy_wasm::main! {{
        proxy_wasm::set_log_level(proxy_wasm::types::LogLevel::Info);
        proxy_wasm::set_root_context(|_| Box::new(Root { config: "".into() }));
    }}
};

thread_local! {
    static STREAMS: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

struct Root {
    config: Rc<str>,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _size: usize) -> bool {
        self.config = selvedge_test_guests::configuration(self);
        if self.config.lines().any(|line| line.starts_with("tick ")) {
            self.set_tick_period(Duration::from_millis(5));
        }
        if self.config.lines().any(|line| line.starts_with("queue ")) {
            self.register_shared_queue("script");
        }
        true
    }

    fn on_tick(&mut self) {
        for id in STREAMS.with_borrow(Vec::clone) {
            if hostcalls::set_effective_context(id).is_ok() {
                Script { id, config: self.config.clone(), record: Vec::new() }.run(&["tick"]);
            }
        }
    }

    fn on_queue_ready(&mut self, queue: u32) {
        assert!(self.dequeue_shared_queue(queue).is_ok(), "it is its own");
        Script { id: 0, config: self.config.clone(), record: Vec::new() }.run(&["told"]);
        for id in STREAMS.with_borrow(Vec::clone) {
            if hostcalls::set_effective_context(id).is_ok() {
                Script { id, config: self.config.clone(), record: Vec::new() }.run(&["queue"]);
            }
        }
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }

    fn create_http_context(&self, id: u32) -> Option<Box<dyn HttpContext>> {
        STREAMS.with_borrow_mut(|streams| streams.push(id));
        Some(Box::new(Script { id, config: self.config.clone(), record: Vec::new() }))
    }
}

struct Script {
    id: u32,
    config: Rc<str>,
    record: Vec<String>,
}

impl Script {
    /// Carries out the lines of these callbacks.
    fn run(&mut self, callbacks: &[&str]) -> Action {
        let mut action = Action::Continue;
        let config = self.config.clone();
        for line in config.lines() {
            let words: Vec<&str> = line.splitn(5, ' ').collect();
            if !callbacks.contains(&words[0]) {
                continue;
            }
            match words[1..] {
                ["pause"] => action = Action::Pause,
                ["pause-once"] => {
                    if self.record.iter().filter(|entry| entry.starts_with(words[0])).count() == 1 {
                        action = Action::Pause;
                    }
                }
                _ => self.act(words[0], &words[1..]),
            }
        }
        action
    }

    fn act(&self, callback: &str, words: &[&str]) {
        let done = match *words {
            ["resume", "request"] => hostcalls::resume_http_request(),
            ["resume", "response"] => hostcalls::resume_http_response(),
            ["resume-others", side] => self.resume_others(side),
            ["enqueue", item] => hostcalls::resolve_shared_queue("", "script")
                .and_then(|queue| hostcalls::enqueue_shared_queue(queue.unwrap_or_default(), Some(item.as_bytes()))),
            ["reply", status, body] => {
                let status = status.parse().unwrap_or(500);
                hostcalls::send_http_response(status, vec![("x-replied", callback)], Some(body.as_bytes()))
            }
            ["close", "request"] => hostcalls::reset_http_request(),
            ["close", "response"] => hostcalls::reset_http_response(),
            ["call", upstream, path] => call(upstream, path, None),
            ["report", upstream] => call(upstream, "/report", Some(self.record.join(" ").as_bytes())),
            ["set", side, name, value] => hostcalls::set_map_value(headers(side), name, Some(value)),
            ["tell", side] => hostcalls::set_map_value(headers(side), "x-saw", Some(&self.record.join(" "))),
            ["body", side, text] => hostcalls::set_buffer(body(side), 0, usize::MAX >> 1, text.as_bytes()),
            ["trailer", name, value] => hostcalls::add_map_value(MapType::HttpResponseTrailers, name, value),
            ["trap"] => panic!("as configured"),
            _ => panic!("{callback} {words:?} means nothing"),
        };
        assert!(done.is_ok(), "{callback} {words:?}: {done:?}");
    }

    fn resume_others(&self, side: &str) -> Result<(), proxy_wasm::types::Status> {
        for id in STREAMS.with_borrow(Vec::clone) {
            if id != self.id && hostcalls::set_effective_context(id).is_ok() {
                match side {
                    "request" => hostcalls::resume_http_request()?,
                    _ => hostcalls::resume_http_response()?,
                }
            }
        }
        hostcalls::set_effective_context(self.id)
    }

    fn saw(&mut self, what: String) {
        self.record.push(what);
    }
}

fn call(upstream: &str, path: &str, body: Option<&[u8]>) -> Result<(), proxy_wasm::types::Status> {
    let headers = vec![(":method", "POST"), (":path", path), (":authority", upstream)];
    hostcalls::dispatch_http_call(upstream, headers, body, vec![], Duration::from_secs(5)).map(drop)
}

fn headers(side: &str) -> MapType {
    if side == "request" { MapType::HttpRequestHeaders } else { MapType::HttpResponseHeaders }
}

fn body(side: &str) -> BufferType {
    if side == "request" { BufferType::HttpRequestBody } else { BufferType::HttpResponseBody }
}

impl Context for Script {
    fn on_http_call_response(&mut self, _id: u32, headers: usize, _body_len: usize, _trailers: usize) {
        self.saw(if headers == 0 { "no-answer".into() } else { "answer".into() });
        self.run(&["answer"]);
    }

    fn on_done(&mut self) -> bool {
        STREAMS.with_borrow_mut(|streams| streams.retain(|id| *id != self.id));
        true
    }
}

impl HttpContext for Script {
    fn on_http_request_headers(&mut self, _count: usize, end: bool) -> Action {
        self.saw(format!("request_headers{}", if end { "." } else { "" }));
        self.run(&["request_headers"])
    }

    fn on_http_request_body(&mut self, len: usize, end: bool) -> Action {
        self.saw(format!("request_body:{len}{}", if end { "." } else { "" }));
        self.run(if end { &["request_body", "request_end"] } else { &["request_body"] })
    }

    fn on_http_request_trailers(&mut self, count: usize) -> Action {
        self.saw(format!("request_trailers:{count}"));
        self.run(&["request_trailers"])
    }

    fn on_http_response_headers(&mut self, _count: usize, end: bool) -> Action {
        self.saw(format!("response_headers{}", if end { "." } else { "" }));
        self.run(&["response_headers"])
    }

    fn on_http_response_body(&mut self, len: usize, end: bool) -> Action {
        self.saw(format!("response_body:{len}{}", if end { "." } else { "" }));
        self.run(if end { &["response_body", "response_end"] } else { &["response_body"] })
    }

    fn on_http_response_trailers(&mut self, count: usize) -> Action {
        self.saw(format!("response_trailers:{count}"));
        self.run(&["response_trailers"])
    }

    fn on_log(&mut self) {
        self.run(&["log"]);
    }
}
