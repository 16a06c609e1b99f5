//! Speaks gRPC as scripts in request headers say, commands separated by `;`, and answers with what it saw, a line for each.
//!
//! | header | when its commands are run |
//! |---|---|
//! | `x-script` | at the request's headers, which are then held |
//! | `x-on-message` | at each message of a stream |
//! | `x-on-close` | at the end of a stream |
//! | `x-at-log` | when the exchange is logged |
//!
//! | command | |
//! |---|---|
//! | `meta NAME VALUE` | metadata, or a header, of the next exchange |
//! | `call UPSTREAM SERVICE METHOD MILLIS [MESSAGE]` | a gRPC call |
//! | `open UPSTREAM SERVICE METHOD` | a gRPC stream, which the next five are about |
//! | `send MESSAGE`, `last MESSAGE` | a message; and no more |
//! | `bulk COUNT BYTES` | that many messages of that many bytes |
//! | `close`, `cancel` | no more is sent; no more is wanted |
//! | `http UPSTREAM [METHOD PATH MILLIS [BODY or - [TRAILER]]]` | an HTTP call; the trailer is `x-check` |
//! | `fail` | a panic |
//! | `answer` | answers with what was seen |
//! | `resume` | lets the request go on, with what was seen in `x-seen` |
//!
//! An upstream `proto:NAME` is given as Envoy's `GrpcService`. The end of a call or stream answers, unless a script does.
//!
//! Configured with a script, the root context runs it at a tick, once, and logs what it sees.
#![allow(clippy::panic, clippy::unwrap_used, reason = "a wrong script fails its test by a panic")]

use std::time::Duration;

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType, LogLevel, Status};

const _: () = {
    proxy_wasm::main! {{
        proxy_wasm::set_log_level(LogLevel::Info);
        proxy_wasm::set_root_context(|_| Box::<Root>::default());
    }}
};

/// What runs scripts, and what it saw.
#[derive(Default)]
struct Player {
    metadata: Vec<(String, String)>,
    id: u32,
    seen: Vec<String>,
    answer: bool,
    resume: bool,
}

impl Player {
    fn play(&mut self, script: &str) {
        for command in script.split(';').map(str::trim).filter(|command| !command.is_empty()) {
            let words: Vec<&str> = command.split(' ').collect();
            match words[..] {
                ["meta", name, value] => self.metadata.push((name.into(), value.into())),
                ["call", upstream, service, method, millis, ref message @ ..] => {
                    let message = message.join(" ");
                    let timeout = Duration::from_millis(millis.parse().unwrap());
                    let message = (!message.is_empty()).then_some(message.as_bytes());
                    let metadata = self.metadata();
                    let opened = hostcalls::dispatch_grpc_call(
                        &target(upstream),
                        service,
                        method,
                        pairs(&metadata),
                        message,
                        timeout,
                    );
                    self.opened("call", opened);
                }
                ["open", upstream, service, method] => {
                    let metadata = self.metadata();
                    let opened = hostcalls::open_grpc_stream(&target(upstream), service, method, pairs(&metadata));
                    self.opened("open", opened);
                }
                ["send", ref message @ ..] => self.send(message.join(" ").as_bytes(), false),
                ["last", ref message @ ..] => self.send(message.join(" ").as_bytes(), true),
                ["bulk", count, bytes] => {
                    let message = vec![b'x'; bytes.parse().unwrap()];
                    for _ in 0..count.parse().unwrap() {
                        self.send(&message, false);
                    }
                }
                ["close"] => self.tried("close", hostcalls::close_grpc_stream(self.id)),
                ["cancel"] => self.tried("cancel", hostcalls::cancel_grpc_stream(self.id)),
                ["http", upstream] => self.ask(upstream, "GET", "/", 2000, None, vec![]),
                ["http", upstream, method, path, millis, ref rest @ ..] => {
                    let body = rest.first().filter(|body| **body != "-").map(|body| body.as_bytes());
                    let trailers = rest.get(1).map(|value| vec![("x-check", *value)]).unwrap_or_default();
                    self.ask(upstream, method, path, millis.parse().unwrap(), body, trailers);
                }
                ["fail"] => panic!("as the script says"),
                ["answer"] => self.answer = true,
                ["resume"] => self.resume = true,
                _ => panic!("no command: {command}"),
            }
        }
    }

    fn ask(
        &mut self,
        upstream: &str,
        method: &str,
        path: &str,
        millis: u64,
        body: Option<&[u8]>,
        trailers: Vec<(&str, &str)>,
    ) {
        let metadata = self.metadata();
        let mut headers = vec![(":method", method), (":path", path), (":authority", upstream)];
        headers.extend(metadata.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let timeout = Duration::from_millis(millis);
        self.tried("http", hostcalls::dispatch_http_call(upstream, headers, body, trailers, timeout).map(drop));
    }

    fn metadata(&mut self) -> Vec<(String, String)> {
        std::mem::take(&mut self.metadata)
    }

    fn opened(&mut self, what: &str, opened: Result<u32, Status>) {
        match opened {
            Ok(id) => self.id = id,
            Err(status) => {
                self.see(format!("{what}: {status:?}"));
                self.answer = true;
            }
        }
    }

    fn send(&mut self, message: &[u8], end: bool) {
        self.tried("send", hostcalls::send_grpc_stream_message(self.id, Some(message), end));
    }

    fn tried(&mut self, what: &str, result: Result<(), Status>) {
        if let Err(status) = result {
            self.see(format!("{what}: {status:?}"));
        }
    }

    fn see(&mut self, line: String) {
        self.seen.push(line);
    }

    fn see_pairs(&mut self, what: &str, count: usize, pairs: Vec<(String, Vec<u8>)>) {
        assert_eq!(pairs.len(), count);
        let pairs = pairs.iter().map(|(name, value)| format!(" {name}={}", String::from_utf8_lossy(value)));
        let line = format!("{what}{}", pairs.collect::<String>());
        self.see(line);
    }

    fn see_message(&mut self, what: &str, bytes: Vec<u8>) {
        let line = match bytes.len() {
            0 => what.to_owned(),
            len @ 1..=200 => format!("{what} {}", String::from_utf8_lossy(&bytes[..len])),
            len => format!("{what} of {len}"),
        };
        self.see(line);
    }

    fn see_end(&mut self, what: &str, code: u32, (again, text): (u32, Option<String>)) {
        assert_eq!(code, again, "both tell the same status");
        self.see(format!("{what} {code} {}", text.unwrap_or_default()).trim_end().to_owned());
    }
}

fn pairs(metadata: &[(String, String)]) -> Vec<(&str, &[u8])> {
    metadata.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect()
}

/// An upstream by its name, or as the bytes of a `GrpcService`, which are UTF-8 as long as they are few.
fn target(upstream: &str) -> String {
    let Some(name) = upstream.strip_prefix("proto:") else { return upstream.to_owned() };
    let len = |text: &str| char::from(u8::try_from(text.len()).ok().filter(u8::is_ascii).unwrap());
    let envoy_grpc = format!("\n{}{name}", len(name));
    format!("\n{}{envoy_grpc}", len(&envoy_grpc))
}

#[derive(Default)]
struct Stream {
    player: Player,
    on_message: String,
    on_close: String,
    at_log: String,
    over: bool,
}

impl Stream {
    fn play(&mut self, script: &str) {
        self.player.play(script);
        if std::mem::take(&mut self.player.resume) {
            self.set_http_request_header("x-seen", Some(&self.player.seen.join("|")));
            self.over = true;
            self.resume_http_request();
        } else if std::mem::take(&mut self.player.answer) && !std::mem::replace(&mut self.over, true) {
            self.send_http_response(200, vec![], Some(self.player.seen.join("\n").as_bytes()));
        }
    }

    fn ended(&mut self) {
        let script = self.on_close.clone();
        self.player.answer = !self.over;
        self.play(&script);
    }
}

impl Context for Stream {
    fn on_http_call_response(&mut self, _id: u32, headers: usize, body: usize, trailers: usize) {
        let told = self.get_grpc_status(); // the status of any call
        if headers == 0 {
            self.player.see_end("no response", told.0, told);
        } else {
            assert_eq!(told.0, 0);
            self.player.see_pairs("response", headers, self.get_http_call_response_headers_bytes());
            self.player.see_message("body", self.get_http_call_response_body(0, body).unwrap_or_default());
            self.player.see_pairs("trailers", trailers, self.get_http_call_response_trailers_bytes());
        }
        self.ended();
    }

    fn on_grpc_call_response(&mut self, _id: u32, status: u32, size: usize) {
        if status == 0 {
            let message = self.get_grpc_call_response_body(0, size).unwrap_or_default();
            self.player.see_message("answer", message);
        } else {
            let told = self.get_grpc_status();
            self.player.see_end("failed", status, told);
        }
        self.ended();
    }

    fn on_grpc_stream_initial_metadata(&mut self, _id: u32, count: u32) {
        let pairs = self.get_grpc_stream_initial_metadata();
        self.player.see_pairs("initial", count as usize, pairs);
    }

    fn on_grpc_stream_message(&mut self, _id: u32, size: usize) {
        let message = self.get_grpc_stream_message(0, size).unwrap_or_default();
        self.player.see_message("message", message);
        let script = self.on_message.clone();
        self.play(&script);
    }

    fn on_grpc_stream_trailing_metadata(&mut self, _id: u32, count: u32) {
        let pairs = self.get_grpc_stream_trailing_metadata();
        self.player.see_pairs("trailing", count as usize, pairs);
    }

    fn on_grpc_stream_close(&mut self, _id: u32, status: u32) {
        let told = self.get_grpc_status();
        self.player.see_end("close", status, told);
        self.ended();
    }
}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _count: usize, _end: bool) -> Action {
        let header = |name| self.get_http_request_header(name).unwrap_or_default();
        let script = header("x-script");
        (self.on_message, self.on_close, self.at_log) =
            (header("x-on-message"), header("x-on-close"), header("x-at-log"));
        if script.is_empty() {
            return Action::Continue;
        }
        self.play(&script);
        Action::Pause
    }

    fn on_log(&mut self) {
        let script = std::mem::take(&mut self.at_log);
        self.player.play(&script);
    }
}

#[derive(Default)]
struct Root {
    script: String,
    player: Player,
}

impl Root {
    fn tell(&mut self) {
        for line in self.player.seen.drain(..) {
            hostcalls::log(LogLevel::Info, &format!("root: {line}")).unwrap();
        }
    }
}

impl Context for Root {
    fn on_grpc_call_response(&mut self, _id: u32, status: u32, size: usize) {
        if status == 0 {
            let message = self.get_grpc_call_response_body(0, size).unwrap_or_default();
            self.player.see_message("answer", message);
        } else {
            let told = self.get_grpc_status();
            self.player.see_end("failed", status, told);
        }
        self.tell();
    }

    fn on_grpc_stream_message(&mut self, _id: u32, size: usize) {
        let message = self.get_grpc_stream_message(0, size).unwrap_or_default();
        self.player.see_message("message", message);
        self.tell();
    }

    fn on_grpc_stream_close(&mut self, _id: u32, status: u32) {
        let told = self.get_grpc_status();
        self.player.see_end("close", status, told);
        self.tell();
    }
}

impl RootContext for Root {
    fn on_configure(&mut self, _size: usize) -> bool {
        self.script = selvedge_test_guests::configuration(self).to_string();
        if !self.script.is_empty() {
            self.set_tick_period(Duration::from_millis(5));
        }
        true
    }

    fn on_tick(&mut self) {
        self.set_tick_period(Duration::ZERO);
        let script = std::mem::take(&mut self.script);
        self.player.play(&script);
        self.tell();
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }

    fn create_http_context(&self, _id: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::<Stream>::default())
    }
}
