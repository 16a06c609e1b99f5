//! Edits headers on both sides and shows properties, line by line of its configuration.

use std::rc::Rc;

use proxy_wasm::hostcalls::{add_map_value, remove_map_value, set_map_value};
use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::{Action, MapType};

selvedge_test_guests::guest!(|config| Box::new(Headers { config }));

struct Headers {
    config: Rc<str>,
}

impl Headers {
    fn edit(&self, side: &str, map: MapType) {
        for line in self.config.lines() {
            let words: Vec<&str> = line.splitn(4, ' ').collect();
            let done = match words[..] {
                [s, "set", name, value] if s == side => set_map_value(map, name, Some(value)),
                [s, "add", name, value] if s == side => add_map_value(map, name, value),
                [s, "remove", name] if s == side => remove_map_value(map, name),
                _ => Ok(()),
            };
            assert!(done.is_ok(), "{line}: {done:?}");
        }
    }

    /// Text as it is, anything else in hexadecimal.
    fn show(value: Option<Vec<u8>>) -> String {
        let Some(bytes) = value else { return "(none)".into() };
        match String::from_utf8(bytes) {
            Ok(text) if !text.contains(char::is_control) => text,
            Ok(text) => text.bytes().map(|byte| format!("{byte:02x}")).collect(),
            Err(error) => error.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }
}

impl Context for Headers {}

impl HttpContext for Headers {
    fn on_http_request_headers(&mut self, _count: usize, _end: bool) -> Action {
        self.edit("request", MapType::HttpRequestHeaders);
        Action::Continue
    }

    fn on_http_response_headers(&mut self, _count: usize, _end: bool) -> Action {
        self.edit("response", MapType::HttpResponseHeaders);
        for (index, path) in self.config.lines().filter_map(|line| line.strip_prefix("property ")).enumerate() {
            let value = Self::show(self.get_property(path.split('.').collect()));
            self.set_http_response_header(&format!("x-prop-{index}"), Some(&value));
        }
        Action::Continue
    }
}
