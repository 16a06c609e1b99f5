//! A TCP filter: what it does is in its configuration, one word and what follows it.
#![allow(clippy::panic, reason = "one of the things it does")]

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, RootContext, StreamContext};
use proxy_wasm::types::{Action, ContextType, LogLevel, MapType, PeerType};

const _: () = {
    proxy_wasm::main! {{
        proxy_wasm::set_log_level(LogLevel::Info);
        proxy_wasm::set_root_context(|_| Box::new(Root { task: Rc::new(Task::Log), waiting: Rc::default() }));
    }}
};

/// What the configuration asks for.
enum Task {
    /// `log`: logs every callback.
    Log,
    /// `tag X`: puts `X` behind what the client sends, its lower case behind what the upstream sends.
    Tag(String),
    /// `lines`: holds what the client sends until a line is whole, then lets it through in upper case.
    Lines,
    /// `call PHASE UPSTREAM PATH`: pauses in this callback, calls; goes on when the answer is 200, else closes.
    Call { phase: String, upstream: String, path: String },
    /// `close WORD`: closes when the client sends the word.
    Close(String),
    /// `fail CALLBACK`: panics in it.
    Fail(String),
    /// `hold CALLBACK`: pauses in it, and never resumes.
    Hold(String),
    /// `properties A.B C.D`: sends their values to the upstream in place of what the client sends, `-` for one that is not there.
    Properties(Vec<String>),
    /// `upstream NAME`: chooses the upstream.
    Upstream(String),
    /// `tick resume`, `tick close`: pauses new connections until the next tick, which does this to them.
    Tick(String),
    /// `headers`: looks at headers, which there are not; then writes one, which is refused.
    Headers,
}

impl Task {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace().map(String::from);
        Some(match words.next()?.as_str() {
            "log" => Self::Log,
            "tag" => Self::Tag(words.next()?),
            "lines" => Self::Lines,
            "call" => Self::Call { phase: words.next()?, upstream: words.next()?, path: words.next()? },
            "close" => Self::Close(words.next()?),
            "fail" => Self::Fail(words.next()?),
            "hold" => Self::Hold(words.next()?),
            "properties" => Self::Properties(words.collect()),
            "upstream" => Self::Upstream(words.next()?),
            "tick" => Self::Tick(words.next()?),
            "headers" => Self::Headers,
            _ => return None,
        })
    }
}

struct Root {
    task: Rc<Task>,
    /// The connections that wait for a tick.
    waiting: Rc<RefCell<Vec<u32>>>,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _size: usize) -> bool {
        let Some(task) = Task::parse(&selvedge_test_guests::configuration(self)) else { return false };
        if matches!(task, Task::Tick(_)) {
            self.set_tick_period(Duration::from_millis(20));
        }
        self.task = Rc::new(task);
        true
    }

    fn on_tick(&mut self) {
        let Task::Tick(verb) = &*self.task else { return };
        for context in self.waiting.take() {
            hostcalls::set_effective_context(context).expect("a connection that waits is alive");
            if verb == "resume" {
                hostcalls::resume_downstream().expect("resume");
            } else {
                hostcalls::close_downstream().expect("close");
            }
        }
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::StreamContext)
    }

    fn create_stream_context(&self, id: u32) -> Option<Box<dyn StreamContext>> {
        Some(Box::new(Connection { id, task: self.task.clone(), waiting: self.waiting.clone(), called_in: None }))
    }
}

struct Connection {
    id: u32,
    task: Rc<Task>,
    waiting: Rc<RefCell<Vec<u32>>>,
    /// The phase that was paused for a callout; once only.
    called_in: Option<&'static str>,
}

impl Connection {
    /// What every callback does first.
    fn enter(&mut self, phase: &'static str, arguments: &str) -> Action {
        match &*self.task {
            Task::Log => say(&format!("{phase}{arguments}")),
            Task::Fail(wanted) if wanted == phase => panic!("{phase}, as configured"),
            Task::Hold(wanted) if wanted == phase => return Action::Pause,
            Task::Call { phase: wanted, upstream, path } if wanted == phase && self.called_in.is_none() => {
                let headers = vec![(":method", "GET"), (":path", path), (":authority", "test")];
                let sent = self.dispatch_http_call(upstream, headers, None, vec![], Duration::from_secs(20));
                sent.expect("the call is sent");
                self.called_in = Some(phase);
                return Action::Pause;
            }
            _ => {}
        }
        Action::Continue
    }
}

impl Context for Connection {
    fn on_http_call_response(&mut self, _id: u32, _headers: usize, _body: usize, _trailers: usize) {
        if self.get_http_call_response_header(":status").as_deref() != Some("200") {
            self.close_downstream();
        } else if self.called_in == Some("upstream_data") {
            // What is held can be written as long as it is held.
            self.set_upstream_data(0, 0, b"[called] ");
            self.resume_upstream();
        } else {
            if self.called_in == Some("downstream_data") {
                self.set_downstream_data(0, 0, b"[called] ");
            }
            self.resume_downstream();
        }
    }

    fn on_done(&mut self) -> bool {
        self.enter("done", "");
        true
    }
}

impl StreamContext for Connection {
    fn on_new_connection(&mut self) -> Action {
        match &*self.task {
            Task::Upstream(name) => self.set_property(vec!["selvedge", "upstream"], Some(name.as_bytes())),
            Task::Tick(_) => {
                self.waiting.borrow_mut().push(self.id);
                return Action::Pause;
            }
            _ => {}
        }
        self.enter("new_connection", "")
    }

    fn on_downstream_data(&mut self, len: usize, end: bool) -> Action {
        let held = self.get_downstream_data(0, usize::MAX).unwrap_or_default();
        assert_eq!(held.len(), len, "the callback is told what is held");
        match &*self.task {
            Task::Tag(tag) if len > 0 => self.set_downstream_data(len, 0, tag.as_bytes()),
            Task::Lines => {
                let Some(at) = held.iter().rposition(|byte| *byte == b'\n') else {
                    return if end { Action::Continue } else { Action::Pause };
                };
                self.set_downstream_data(0, at + 1, &held[..=at].to_ascii_uppercase());
            }
            Task::Close(word) if held.windows(word.len()).any(|part| part == word.as_bytes()) => {
                self.close_downstream();
                return Action::Pause;
            }
            Task::Properties(paths) if len > 0 => {
                let mut values = String::new();
                for path in paths {
                    let value = self.get_property(path.split('.').collect());
                    // Numbers come as eight bytes, text as it is.
                    values += &match value.as_deref() {
                        None => "-".into(),
                        Some(bytes) if bytes.len() == 8 && bytes.ends_with(&[0; 4]) => {
                            u64::from_le_bytes(bytes.try_into().expect("eight")).to_string()
                        }
                        Some(bytes) => String::from_utf8_lossy(bytes).into_owned(),
                    };
                    values.push(' ');
                }
                values.pop();
                self.set_downstream_data(0, len, values.as_bytes());
            }
            Task::Headers => {
                let found = hostcalls::get_map(MapType::HttpRequestHeaders).expect("a read is served");
                say(&format!("{} headers, host {:?}", found.len(), header("host")));
                hostcalls::set_map_value(MapType::HttpRequestHeaders, "x", Some("y")).expect("the SDK panics before");
            }
            _ => {}
        }
        self.enter("downstream_data", &format!(" {len} {end}"))
    }

    fn on_upstream_data(&mut self, len: usize, end: bool) -> Action {
        let held = self.get_upstream_data(0, usize::MAX).unwrap_or_default();
        assert_eq!(held.len(), len, "the callback is told what is held");
        if let Task::Tag(tag) = &*self.task
            && len > 0
        {
            self.set_upstream_data(len, 0, tag.to_ascii_lowercase().as_bytes());
        }
        self.enter("upstream_data", &format!(" {len} {end}"))
    }

    fn on_downstream_close(&mut self, peer: PeerType) {
        self.enter("downstream_close", &format!(" {peer:?}"));
    }

    fn on_upstream_close(&mut self, peer: PeerType) {
        self.enter("upstream_close", &format!(" {peer:?}"));
    }

    fn on_log(&mut self) {
        self.enter("log", "");
    }
}

fn header(name: &str) -> Option<String> {
    hostcalls::get_map_value(MapType::HttpRequestHeaders, name).expect("a read is served")
}

fn say(text: &str) {
    hostcalls::log(LogLevel::Info, text).expect("logged");
}
