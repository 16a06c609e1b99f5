//! The trace of one exchange: every callback and hostcall of its filters, with how it ended and how long it took.

use std::fmt::{self, Write};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Events kept of one exchange. A filter that makes more hostcalls than this is told by the number of those left out.
const MAX_EVENTS: usize = 512;

/// Records what the filters of one exchange do, in order. The embedder makes one for an exchange that is to be traced, and gives it out by
/// [`crate::Exchange::trace`]; its [`Display`](fmt::Display) is the report, a line for each event.
#[derive(Debug)]
pub struct Trace {
    started: Instant,
    telling: bool,
    events: Mutex<Events>,
}

#[derive(Debug, Default)]
struct Events {
    kept: Vec<Event>,
    left_out: usize,
}

#[derive(Debug)]
struct Event {
    at: Duration,
    took: Duration,
    what: What,
    ended: String,
}

#[derive(Debug)]
enum What {
    Callback { plugin: String, context: u32, callback: &'static str, failed: bool },
    Hostcall { call: &'static str, arguments: String },
}

/// An event of a [`Trace`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceEvent {
    /// When it began, since the trace did.
    pub at: Duration,
    /// How long it took. That of a callback contains its hostcalls.
    pub took: Duration,
    /// The filter and its context, for a callback; `None`: a hostcall of the callback before it.
    pub callback_of: Option<(String, u32)>,
    /// `proxy_on_request_headers`, `proxy_log`.
    pub name: &'static str,
    /// What a hostcall was given.
    pub arguments: String,
    /// How it ended.
    pub ended: String,
    /// Whether a callback failed: the guest trapped, or ran out of something.
    pub failed: bool,
}

impl Default for Trace {
    fn default() -> Self {
        Self { started: Instant::now(), telling: false, events: Mutex::default() }
    }
}

impl Trace {
    /// A trace that begins now.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A trace that also shows what passes in hostcalls, shortened: values of headers, bodies, log lines, answers. For filters that are
    /// tried out by whoever writes them, not for the traffic of others. What [`is_secret`] by its name is not shown even so.
    #[must_use]
    pub fn telling() -> Self {
        Self { telling: true, ..Self::default() }
    }

    /// Whether it shows what passes.
    pub(crate) fn is_telling(&self) -> bool {
        self.telling
    }

    /// What it has kept, in order.
    #[must_use]
    pub fn events(&self) -> Vec<TraceEvent> {
        let events = self.events.lock();
        let told = events.kept.iter().map(|event| {
            let (at, took, ended) = (event.at, event.took, event.ended.clone());
            match &event.what {
                What::Callback { plugin, context, callback, failed } => TraceEvent {
                    at,
                    took,
                    callback_of: Some((plugin.clone(), *context)),
                    name: callback,
                    arguments: String::new(),
                    ended,
                    failed: *failed,
                },
                What::Hostcall { call, arguments } => TraceEvent {
                    at,
                    took,
                    callback_of: None,
                    name: call,
                    arguments: arguments.clone(),
                    ended,
                    failed: false,
                },
            }
        });
        told.collect()
    }

    /// How many events were too many to keep.
    #[must_use]
    pub fn left_out(&self) -> usize {
        self.events.lock().left_out
    }

    /// How many events it has, those left out included.
    #[must_use]
    pub fn len(&self) -> usize {
        let events = self.events.lock();
        events.kept.len() + events.left_out
    }

    /// Whether no filter has done anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A callback begins: it comes before its hostcalls. The number is for [`Trace::callback_ends`].
    pub(crate) fn callback_begins(&self, plugin: &str, context: u32, callback: &'static str) -> usize {
        let what = What::Callback { plugin: plugin.to_owned(), context, callback, failed: false };
        self.push(Event { at: self.started.elapsed(), took: Duration::ZERO, what, ended: String::new() })
    }

    pub(crate) fn callback_ends(&self, number: usize, ended: String, failure: bool) {
        let now = self.started.elapsed();
        if let Some(event) = self.events.lock().kept.get_mut(number) {
            event.took = now.saturating_sub(event.at);
            event.ended = ended;
            if let What::Callback { failed, .. } = &mut event.what {
                *failed = failure;
            }
        }
    }

    pub(crate) fn hostcall(&self, call: &'static str, arguments: String, began: Instant, ended: String) {
        let at = began.saturating_duration_since(self.started);
        self.push(Event { at, took: began.elapsed(), what: What::Hostcall { call, arguments }, ended });
    }

    fn push(&self, event: Event) -> usize {
        let mut events = self.events.lock();
        if events.kept.len() < MAX_EVENTS {
            events.kept.push(event);
            events.kept.len() - 1
        } else {
            events.left_out += 1;
            usize::MAX
        }
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let events = self.events.lock();
        for (index, event) in events.kept.iter().enumerate() {
            if index > 0 {
                f.write_char('\n')?;
            }
            let (at, took) = (event.at.as_micros(), event.took.as_micros());
            write!(f, "{at:>8}us {took:>6}us ")?;
            match &event.what {
                What::Callback { plugin, context, callback, .. } => write!(f, "{plugin}#{context} {callback}")?,
                What::Hostcall { call, arguments } if arguments.is_empty() => write!(f, "    {call}")?,
                What::Hostcall { call, arguments } => write!(f, "    {call} {arguments}")?,
            }
            write!(f, " -> {}", event.ended)?;
        }
        match events.left_out {
            0 => Ok(()),
            more => write!(f, "\n... and {more} more"),
        }
    }
}

/// Whether the value of a header, key or property of this name is likely a secret: one of its words says so.
#[must_use]
pub fn is_secret(name: &str) -> bool {
    const WORDS: [&str; 12] = [
        "authorization",
        "cookie",
        "token",
        "secret",
        "password",
        "passwd",
        "passphrase",
        "credential",
        "credentials",
        "apikey",
        "jwt",
        "signature",
    ];
    let name = name.to_ascii_lowercase();
    let keys = ["api-key", "api_key", "x-key", "access-key", "access_key", "private_key", "private-key"];
    keys.iter().any(|key| name.contains(key))
        || name.split(|letter: char| !letter.is_ascii_alphanumeric()).any(|word| WORDS.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostcalls_stand_below_their_callback() {
        let trace = Trace::new();
        let number = trace.callback_begins("auth", 2, "proxy_on_request_headers");
        trace.hostcall("proxy_log", "level=2".into(), Instant::now(), "OK".into());
        trace.callback_ends(number, "ok".into(), false);
        let text = trace.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].ends_with("us auth#2 proxy_on_request_headers -> ok"), "{text}");
        assert!(lines[1].ends_with("us     proxy_log level=2 -> OK"), "{text}");
    }

    #[test]
    fn names_of_secrets_are_known() {
        for name in
            ["Authorization", "proxy-authorization", "set-cookie", "X-Api-Key", "request.headers.cookie", "jwt_secret"]
        {
            assert!(is_secret(name), "{name}");
        }
        for name in ["accept", "x-tenant", "cookies-are-fine", "keyboard", ":path"] {
            assert!(!is_secret(name), "{name}");
        }
    }

    #[test]
    fn what_is_too_much_is_counted() {
        let trace = Trace::new();
        for _ in 0..MAX_EVENTS + 3 {
            trace.hostcall("proxy_log", String::new(), Instant::now(), "OK".into());
        }
        assert_eq!(trace.len(), MAX_EVENTS + 3);
        let text = trace.to_string();
        assert_eq!((text.lines().count(), text.lines().last()), (MAX_EVENTS + 1, Some("... and 3 more")));
    }
}
