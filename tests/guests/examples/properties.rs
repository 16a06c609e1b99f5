//! Does what its configuration says, line by line, and shows what came of it, status and all: SDKs hide statuses, and panic on some.
//!
//! A line is `PHASE VERB NAME ARGUMENTS`. What comes of it becomes the response header `x-NAME`: the value as text or as `0x` and
//! hexadecimal, `-` where there is nothing to show, `!2` for status 2. What happens after the response header is shown by `recall` in
//! another request.

#![allow(unsafe_code, reason = "raw hostcalls, whose statuses the SDK does not show")]

use std::rc::Rc;

use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;

selvedge_test_guests::guest!(|script| Box::new(Exchange { script, results: Vec::new() }));

unsafe extern "C" {
    fn proxy_get_property(path: *const u8, path_len: usize, value: *mut *mut u8, value_len: *mut usize) -> u32;
    fn proxy_set_property(path: *const u8, path_len: usize, value: *const u8, value_len: usize) -> u32;
    fn proxy_get_header_map_value(
        map: u32,
        name: *const u8,
        name_len: usize,
        value: *mut *mut u8,
        value_len: *mut usize,
    ) -> u32;
    fn proxy_get_header_map_pairs(map: u32, value: *mut *mut u8, value_len: *mut usize) -> u32;
    fn proxy_set_header_map_pairs(map: u32, value: *const u8, value_len: usize) -> u32;
    fn proxy_replace_header_map_value(
        map: u32,
        name: *const u8,
        name_len: usize,
        value: *const u8,
        value_len: usize,
    ) -> u32;
    fn proxy_add_header_map_value(
        map: u32,
        name: *const u8,
        name_len: usize,
        value: *const u8,
        value_len: usize,
    ) -> u32;
    fn proxy_remove_header_map_value(map: u32, name: *const u8, name_len: usize) -> u32;
    fn proxy_call_foreign_function(
        name: *const u8,
        name_len: usize,
        args: *const u8,
        args_len: usize,
        result: *mut *mut u8,
        result_len: *mut usize,
    ) -> u32;
}

struct Exchange {
    script: Rc<str>,
    results: Vec<(String, String)>,
}

impl Exchange {
    fn run(&mut self, phase: &str) {
        let script = self.script.clone();
        for line in script.lines() {
            let mut words = line.trim().splitn(4, ' ');
            let (Some(when), Some(verb), Some(name)) = (words.next(), words.next(), words.next()) else { continue };
            if when == phase {
                let result = step(verb, words.next().unwrap_or_default());
                self.results.push((name.to_owned(), result));
            }
        }
    }

    /// Keeps what came too late for the header.
    fn keep(&mut self) {
        for (name, result) in self.results.drain(..) {
            let _ = proxy_wasm::hostcalls::set_shared_data(&name, Some(result.as_bytes()), None);
        }
    }
}

impl Context for Exchange {}

impl HttpContext for Exchange {
    fn on_http_request_headers(&mut self, _count: usize, _end: bool) -> Action {
        self.run("request_headers");
        Action::Continue
    }

    fn on_http_request_body(&mut self, _len: usize, end: bool) -> Action {
        if end {
            self.run("request_body");
        }
        Action::Continue
    }

    fn on_http_response_headers(&mut self, _count: usize, _end: bool) -> Action {
        self.run("response_headers");
        for (name, result) in self.results.drain(..) {
            if name != "-" {
                let name = format!("x-{name}");
                let done = write(proxy_replace_header_map_value, 2, name.as_bytes(), result.as_bytes());
                assert_eq!(done, 0, "{name}: {result}");
            }
        }
        Action::Continue
    }

    fn on_http_response_body(&mut self, _len: usize, end: bool) -> Action {
        if end {
            self.run("response_body");
            self.keep();
        }
        Action::Continue
    }

    fn on_log(&mut self) {
        self.run("log");
        self.keep();
    }
}

fn step(verb: &str, arguments: &str) -> String {
    let (first, rest) = arguments.split_once(' ').unwrap_or((arguments, ""));
    match verb {
        "get" => shown(taken(|value, len| {
            let path = first.replace('/', "\0");
            // SAFETY: the host reads `path`, and writes a pointer and a length.
            unsafe { proxy_get_property(path.as_ptr(), path.len(), value, len) }
        })),
        "set" => {
            let (path, value) = (first.replace('/', "\0"), bytes(rest));
            // SAFETY: the host reads both.
            done(unsafe { proxy_set_property(path.as_ptr(), path.len(), value.as_ptr(), value.len()) })
        }
        "call" => shown(taken(|value, len| {
            let arguments = bytes(rest);
            // SAFETY: the host reads name and arguments, and writes a pointer and a length.
            unsafe {
                proxy_call_foreign_function(
                    first.as_ptr(),
                    first.len(),
                    arguments.as_ptr(),
                    arguments.len(),
                    value,
                    len,
                )
            }
        })),
        "recall" => match proxy_wasm::hostcalls::get_shared_data(first) {
            Ok((Some(value), _)) => String::from_utf8_lossy(&value).into_owned(),
            _ => "-".to_owned(),
        },
        "reply" => {
            let _ = proxy_wasm::hostcalls::send_http_response(first.parse().unwrap_or(403), vec![], Some(b"reply\n"));
            "-".to_owned()
        }
        _ => header(verb, first, rest),
    }
}

/// `first` is the number of a header map.
fn header(verb: &str, first: &str, rest: &str) -> String {
    let map = first.parse().unwrap_or(99);
    let (name, value) = rest.split_once(' ').unwrap_or((rest, ""));
    match verb {
        "header" => shown(taken(|value, len| {
            // SAFETY: the host reads the name, and writes a pointer and a length.
            unsafe { proxy_get_header_map_value(map, name.as_ptr(), name.len(), value, len) }
        })),
        // SAFETY: the host writes a pointer and a length.
        "pairs" => shown(taken(|value, len| unsafe { proxy_get_header_map_pairs(map, value, len) })),
        "copy" => {
            // SAFETY: the host writes a pointer and a length.
            match taken(|value, len| unsafe { proxy_get_header_map_pairs(map, value, len) }) {
                // SAFETY: the host reads the pairs.
                Ok(pairs) => done(unsafe { proxy_set_header_map_pairs(map, pairs.as_ptr(), pairs.len()) }),
                Err(status) => done(status),
            }
        }
        "replace" => done(write(proxy_replace_header_map_value, map, name.as_bytes(), &bytes(value))),
        "add" => done(write(proxy_add_header_map_value, map, name.as_bytes(), &bytes(value))),
        // SAFETY: the host reads the name.
        "remove" => done(unsafe { proxy_remove_header_map_value(map, name.as_ptr(), name.len()) }),
        _ => format!("no verb {verb}"),
    }
}

type Write = unsafe extern "C" fn(u32, *const u8, usize, *const u8, usize) -> u32;

fn write(call: Write, map: u32, name: &[u8], value: &[u8]) -> u32 {
    // SAFETY: the host reads both.
    unsafe { call(map, name.as_ptr(), name.len(), value.as_ptr(), value.len()) }
}

/// What a call gives, or its status.
fn taken(call: impl FnOnce(*mut *mut u8, *mut usize) -> u32) -> Result<Vec<u8>, u32> {
    let (mut value, mut len) = (std::ptr::null_mut(), 0);
    match call(&mut value, &mut len) {
        0 if value.is_null() => Ok(Vec::new()),
        // SAFETY: the host got the place from our allocator, of this size, and has filled it.
        0 => Ok(unsafe { Vec::from_raw_parts(value, len, len) }),
        status => Err(status),
    }
}

/// Bytes as the script writes them: text, or `0x` and hexadecimal.
fn bytes(text: &str) -> Vec<u8> {
    let Some(digits) = text.strip_prefix("0x") else { return text.as_bytes().to_vec() };
    let byte = |at: usize| digits.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    (0..digits.len()).step_by(2).filter_map(byte).collect()
}

fn done(status: u32) -> String {
    if status == 0 { "ok".to_owned() } else { format!("!{status}") }
}

fn shown(value: Result<Vec<u8>, u32>) -> String {
    match value {
        Err(status) => format!("!{status}"),
        Ok(bytes) if bytes.is_empty() => "-".to_owned(),
        Ok(bytes) if bytes.iter().all(|byte| (b' '..=b'~').contains(byte)) => {
            String::from_utf8_lossy(&bytes).into_owned()
        }
        Ok(bytes) => bytes.iter().fold("0x".to_owned(), |text, byte| text + &format!("{byte:02x}")),
    }
}
