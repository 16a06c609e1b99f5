//! Events of crate `tracing` as lines of the host's log: the spans around them, the message, the fields. Levels are the host's. Spans are
//! kept in the guest and show only in lines: hosts have no other place for them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::{self, Debug, Write};
use std::rc::Rc;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::{Interest, set_global_default};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_core::span::Current;

use crate::host;

/// The longest name and fields of a span, and the longest line, in bytes: the rest is cut.
const MAX_TEXT: usize = 4096;

/// Sends events to the log from now on. The entry points of a guest do it, and so does a test's host.
pub(crate) fn forward() {
    // A second call finds the first one's work done.
    let _ = set_global_default(Forward);
}

struct Forward;

struct Span {
    metadata: &'static Metadata<'static>,
    /// Its name and fields, as lines show it.
    text: RefCell<Text>,
    /// The span around it. It outlives its own handles where it must.
    parent: Option<Rc<Span>>,
    handles: Cell<usize>,
}

thread_local! {
    static SPANS: RefCell<BTreeMap<u64, Rc<Span>>> = const { RefCell::new(BTreeMap::new()) };
    /// Those that are entered, the outermost first.
    static ENTERED: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
    static LAST: Cell<u64> = const { Cell::new(0) };
}

impl Subscriber for Forward {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        // Which levels the host wants is not known yet, and may change.
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        host::wants(log_level(*metadata.level()))
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let metadata = attributes.metadata();
        let mut text = Text::default();
        text.push(metadata.name());
        attributes.record(&mut Fields { text: &mut text, in_span: true });
        let parent = around(attributes.is_contextual(), attributes.parent());
        let number = LAST.get() + 1;
        LAST.set(number);
        let span = Span { metadata, text: RefCell::new(text), parent, handles: Cell::new(1) };
        SPANS.with_borrow_mut(|spans| spans.insert(number, Rc::new(span)));
        Id::from_u64(number)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        if let Some(span) = find(span) {
            values.record(&mut Fields { text: &mut span.text.borrow_mut(), in_span: true });
        }
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Text::default();
        if let Some(span) = around(event.is_contextual(), event.parent()) {
            span.show(&mut line);
        }
        event.record(&mut Fields { text: &mut line, in_span: false });
        host::current().log(log_level(*event.metadata().level()), line.0.trim_end());
    }

    fn enter(&self, span: &Id) {
        ENTERED.with_borrow_mut(|entered| entered.push(span.into_u64()));
    }

    fn exit(&self, span: &Id) {
        ENTERED.with_borrow_mut(|entered| {
            if let Some(place) = entered.iter().rposition(|number| *number == span.into_u64()) {
                entered.remove(place);
            }
        });
    }

    fn clone_span(&self, id: &Id) -> Id {
        if let Some(span) = find(id) {
            span.handles.set(span.handles.get() + 1);
        }
        id.clone()
    }

    fn try_close(&self, id: Id) -> bool {
        let Some(span) = find(&id) else { return false };
        let left = span.handles.get().saturating_sub(1);
        span.handles.set(left);
        if left == 0 {
            // Outside of the borrow: dropping a span may drop those around it.
            let closed = SPANS.with_borrow_mut(|spans| spans.remove(&id.into_u64()));
            drop(closed);
        }
        left == 0
    }

    fn current_span(&self) -> Current {
        let entered = ENTERED.with_borrow(|entered| entered.last().copied());
        match entered.map(Id::from_u64).and_then(|id| Some((find(&id)?, id))) {
            Some((span, id)) => Current::new(id, span.metadata),
            None => Current::none(),
        }
    }
}

impl Span {
    /// Shows the spans around it, the outermost first, and itself.
    fn show(&self, line: &mut Text) {
        let mut chain = vec![self];
        while let Some(parent) = chain.last().and_then(|span| span.parent.as_deref()) {
            chain.push(parent);
        }
        for span in chain.into_iter().rev() {
            let text = span.text.borrow();
            line.push(&text.0);
            line.push(if text.0.contains('{') { "}: " } else { ": " });
        }
    }
}

fn find(id: &Id) -> Option<Rc<Span>> {
    SPANS.with_borrow(|spans| spans.get(&id.into_u64()).cloned())
}

/// The span that a new span or an event is in: the one it names, else the one that is entered unless it wants none.
fn around(contextual: bool, named: Option<&Id>) -> Option<Rc<Span>> {
    match named {
        Some(id) => find(id),
        None if contextual => find(&Id::from_u64(ENTERED.with_borrow(|entered| entered.last().copied())?)),
        None => None,
    }
}

/// A text that is cut at [`MAX_TEXT`] bytes.
#[derive(Default)]
struct Text(String);

impl Text {
    fn push(&mut self, more: &str) {
        let room = MAX_TEXT.saturating_sub(self.0.len());
        self.0.push_str(&more[..more.floor_char_boundary(room)]);
    }
}

impl Write for Text {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        self.push(more);
        // Formatting of what nobody will see ends here.
        if self.0.len() < MAX_TEXT { Ok(()) } else { Err(fmt::Error) }
    }
}

/// Writes fields: those of an event as `message name=value name=value `, those of a span as `name{name=value name=value`, whose end is
/// written when it is shown, so that more can follow.
struct Fields<'t> {
    text: &'t mut Text,
    in_span: bool,
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if self.in_span {
            let first = !self.text.0.contains('{');
            self.text.push(if first { "{" } else { " " });
        }
        // What is cut is no error.
        let _ = match field.name() {
            "message" => write!(self.text, "{value:?}"),
            name => write!(self.text, "{name}={value:?}"),
        };
        if !self.in_span {
            self.text.push(" ");
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        // Without quotes where that is clear.
        let plain = !value.is_empty()
            && value.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'=' | b'{' | b'}'));
        if plain || field.name() == "message" {
            self.record_debug(field, &format_args!("{value}"));
        } else {
            self.record_debug(field, &value);
        }
    }
}

fn log_level(level: Level) -> log::Level {
    match level {
        Level::ERROR => log::Level::Error,
        Level::WARN => log::Level::Warn,
        Level::INFO => log::Level::Info,
        Level::DEBUG => log::Level::Debug,
        Level::TRACE => log::Level::Trace,
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use tracing::{Instrument as _, debug_span, error, field, info, info_span, trace, warn};

    use super::*;
    use crate::host::Host;

    #[derive(Default)]
    struct Lines(RefCell<Vec<String>>);

    impl Host for Lines {
        fn log(&self, level: log::Level, message: &str) {
            self.0.borrow_mut().push(format!("{level} {message}"));
        }
    }

    fn lines() -> (Rc<Lines>, host::Installed) {
        let host = Rc::new(Lines::default());
        (host.clone(), host::install(host))
    }

    fn nothing_is_left() -> bool {
        SPANS.with_borrow(BTreeMap::is_empty) && ENTERED.with_borrow(Vec::is_empty)
    }

    #[test]
    fn events_are_lines_with_their_spans_and_fields() {
        let (host, _installed) = lines();
        info!(status = 200, path = "/a b", "done");
        let span = info_span!("check", key = "k1", tenant = field::Empty);
        span.in_scope(|| {
            warn!("slow");
            span.record("tenant", "acme");
            debug_span!("inner").in_scope(|| error!(why = ?Some(1), share = 0.5, on = true));
        });
        trace!("after");
        let expected = [
            "INFO done status=200 path=\"/a b\"",
            "WARN check{key=k1}: slow",
            "ERROR check{key=k1 tenant=acme}: inner: why=Some(1) share=0.5 on=true",
            "TRACE after",
        ];
        assert_eq!(*host.0.borrow(), expected);
        drop(span);
        assert!(nothing_is_left());
    }

    #[test]
    fn a_span_is_entered_while_its_future_is_polled_and_keeps_what_is_around_it() {
        let (host, _installed) = lines();
        let mut polls = 0;
        let work = std::future::poll_fn(|_| {
            polls += 1;
            info!(polls);
            if polls == 2 { Poll::Ready(()) } else { Poll::Pending }
        });
        let mut work = Box::pin(info_span!("exchange", id = 7).in_scope(|| work.instrument(info_span!("work"))));
        let mut context = Context::from_waker(Waker::noop());
        assert!(work.as_mut().poll(&mut context).is_pending());
        info!("between");
        assert!(work.as_mut().poll(&mut context).is_ready());
        drop(work);
        let expected = ["INFO exchange{id=7}: work: polls=1", "INFO between", "INFO exchange{id=7}: work: polls=2"];
        assert_eq!(*host.0.borrow(), expected);
        assert!(nothing_is_left());
    }

    #[test]
    fn a_span_may_be_named_and_the_current_one_recorded_to() {
        let (host, _installed) = lines();
        let outer = info_span!("outer", user = field::Empty);
        let other = info_span!(parent: &outer, "other");
        outer.in_scope(|| {
            tracing::Span::current().record("user", "ann");
            info!(parent: &other, "named");
            info!(parent: None, "alone");
        });
        other.in_scope(|| info!("in it"));
        drop(outer);
        info!(parent: &other, "it keeps its parent");
        let expected = [
            "INFO outer{user=ann}: other: named",
            "INFO alone",
            "INFO outer{user=ann}: other: in it",
            "INFO outer{user=ann}: other: it keeps its parent",
        ];
        assert_eq!(*host.0.borrow(), expected);
        drop(other);
        assert!(nothing_is_left());
    }

    #[test]
    fn what_is_long_is_cut_and_what_could_be_taken_for_another_line_is_quoted() {
        let (host, _installed) = lines();
        info!(text = "\u{e4}".repeat(5000), "long");
        info_span!("s", text = "x".repeat(5000)).in_scope(|| info!("lost"));
        info!(text = "a\nINFO b", empty = "");
        let lines = host.0.borrow();
        assert!(lines[0].len() < MAX_TEXT + 10 && lines[1].len() < MAX_TEXT + 10);
        assert_eq!(lines[2], "INFO text=\"a\\nINFO b\" empty=\"\"");
    }
}
