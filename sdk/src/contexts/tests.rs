use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use super::*;
use crate::filter::Hooks;
use crate::host::{self, Buffer, Host, Installed, Map, Status};
use crate::prelude::*;

const ROOT: u32 = 1;

/// A host that writes down what it is told, and holds a body.
#[derive(Default)]
struct Noting {
    notes: RefCell<Vec<String>>,
    held: RefCell<Vec<u8>>,
}

impl Noting {
    fn note(&self, note: String) {
        self.notes.borrow_mut().push(note);
    }

    /// What was noted since the last time.
    fn take(&self) -> Vec<String> {
        self.notes.take()
    }
}

impl Host for Noting {
    fn header(&self, _: Map, name: &str) -> Option<Vec<u8>> {
        (name == ":path").then(|| b"/p\xc3\xa4th?a=b?c".to_vec())
    }

    fn set_header(&self, _: Map, name: &str, value: &[u8]) -> Result<(), Status> {
        self.note(format!("{name}: {}", String::from_utf8_lossy(value)));
        Ok(())
    }

    fn buffer(&self, _: Buffer, start: usize, max: usize) -> Option<Vec<u8>> {
        let held = self.held.borrow();
        Some(held[start..held.len().min(start + max)].to_vec())
    }

    fn set_buffer(&self, _: Buffer, start: usize, size: usize, bytes: &[u8]) -> Result<(), Status> {
        self.held.borrow_mut().splice(start..start + size, bytes.iter().copied());
        Ok(())
    }

    fn call(&self, _: &str, _: &[(&str, &[u8])], _: &[u8], _: Duration) -> Result<u32, Status> {
        Ok(7)
    }

    fn resume(&self, direction: host::Direction) {
        self.note(format!("resumed {direction:?}"));
    }

    fn reply(&self, status: u16, _: &[(&str, &[u8])], _: &[u8]) {
        self.note(format!("replied {status}"));
    }
}

fn install() -> (Rc<Noting>, Installed) {
    let host = Rc::new(Noting::default());
    (host.clone(), host::install(host))
}

/// Contexts with one root that is configured.
fn configured<F: Filter>() -> Contexts<F> {
    let contexts = Contexts::new();
    contexts.create(ROOT, 0);
    assert!(contexts.configure(ROOT, b"{}"));
    contexts
}

impl<F: Filter> Contexts<F> {
    fn remembered(&self) -> usize {
        self.streams.borrow().len()
    }
}

/// Keeps nothing; answers a request when it is told to.
#[derive(Default)]
struct Mark {
    answers: Cell<bool>,
}

#[filter]
impl Filter for Mark {
    async fn request(&self, request: &mut Request) -> Flow {
        let path = request.path().to_owned();
        request.set_header("x-path", path);
        if self.answers.get() {
            return Err(Reply::new(403));
        }
        Ok(Next)
    }

    async fn response(&self, response: &mut Response) -> Flow {
        response.set_header("x-marked", "yes");
        Ok(Next)
    }
}

#[test]
fn a_filter_that_keeps_nothing_needs_no_streams() {
    let (host, _installed) = install();
    let contexts = configured::<Mark>();
    // Nobody has created them, and the second one's id is that of the first.
    for id in [2, 3, 3] {
        assert_eq!(contexts.request_headers(id, true), Action::Continue);
        assert_eq!(contexts.response_headers(id, false), Action::Continue);
        assert_eq!(host.take(), ["x-path: /p\u{e4}th", "x-marked: yes"]);
    }

    contexts.filter().unwrap().answers.set(true);
    assert_eq!(contexts.request_headers(4, false), Action::Pause);
    assert_eq!(contexts.response_headers(4, false), Action::Continue);
    assert_eq!(host.take(), ["x-path: /p\u{e4}th", "replied 403", "x-marked: yes"]);
    assert_eq!(contexts.remembered(), 0);
}

#[test]
fn hosts_may_create_and_delete_the_streams_of_such_a_filter() {
    let (host, _installed) = install();
    let contexts = configured::<Mark>();
    contexts.create(2, ROOT);
    assert_eq!(contexts.request_headers(2, true), Action::Continue);
    assert_eq!(contexts.remembered(), 0);
    contexts.log(2);
    contexts.delete(2);
    contexts.delete(2);
    contexts.create(2, ROOT);
    assert_eq!(contexts.response_headers(2, true), Action::Continue);
    assert_eq!(host.take().len(), 2);
}

#[test]
#[should_panic(expected = "after the plugin is configured")]
fn no_stream_is_opened_before_a_configuration() {
    let contexts = Contexts::<Mark>::new();
    contexts.create(ROOT, 0);
    contexts.create(2, ROOT);
}

#[test]
#[should_panic(expected = "after the plugin is configured")]
fn no_request_passes_before_a_configuration() {
    let contexts = Contexts::<Mark>::new();
    contexts.create(ROOT, 0);
    contexts.request_headers(2, true);
}

#[test]
#[should_panic(expected = "after the plugin is configured")]
fn no_response_passes_with_a_configuration_that_was_refused() {
    let contexts = Contexts::<Mark>::new();
    contexts.create(ROOT, 0);
    assert!(!contexts.configure(ROOT, b"[]"));
    contexts.response_headers(2, true);
}

#[test]
#[should_panic(expected = "after the plugin is configured")]
fn no_request_passes_whose_plugin_is_gone() {
    let (_host, _installed) = install();
    let contexts = configured::<Count>();
    contexts.create(2, 0);
    assert!(contexts.configure(2, b"{}"));
    contexts.create(3, ROOT);
    contexts.delete(ROOT);
    contexts.request_headers(3, true);
}

/// Counts the hooks of a stream.
#[derive(Default)]
struct Count;

#[filter]
impl Filter for Count {
    type Stream = u32;

    async fn request(&self, request: &mut Request, stream: &mut u32) -> Flow {
        *stream += 1;
        request.set_header("x-count", stream.to_string());
        Ok(Next)
    }

    async fn response(&self, response: &mut Response, stream: &mut u32) -> Flow {
        *stream += 1;
        response.set_header("x-count", stream.to_string());
        Ok(Next)
    }

    fn done(&self, _: &Exchange, stream: &u32) {
        host::current().set_header(Map::Request, "done", stream.to_string().as_bytes()).unwrap();
    }
}

#[test]
fn what_a_stream_keeps_is_found_until_it_is_deleted() {
    let (host, _installed) = install();
    let contexts = configured::<Count>();
    for _ in 0..2 {
        contexts.create(2, ROOT);
        assert_eq!(contexts.remembered(), 0, "nothing has used it yet");
        contexts.request_headers(2, true);
        contexts.create(3, ROOT);
        contexts.response_headers(3, true);
        contexts.response_headers(2, true);
        contexts.log(2);
        assert_eq!(host.take(), ["x-count: 1", "x-count: 1", "x-count: 2", "done: 2"]);
        contexts.delete(2);
        contexts.delete(3);
        assert_eq!(contexts.remembered(), 0);
    }

    // One of which no hook has run is over as well. A plugin is not.
    contexts.create(2, ROOT);
    contexts.log(2);
    contexts.log(ROOT);
    assert_eq!(host.take(), ["done: 0"]);
}

#[test]
fn an_id_that_is_created_again_is_a_new_stream() {
    let (host, _installed) = install();
    let contexts = configured::<Count>();
    contexts.request_headers(2, true);
    contexts.create(2, ROOT);
    contexts.response_headers(2, true);
    assert_eq!(host.take(), ["x-count: 1", "x-count: 1"]);
}

/// Waits for a callout, keeps it for later, or does neither.
#[derive(Default)]
struct Ask {
    skips: Cell<bool>,
    keeps: Cell<bool>,
    kept: RefCell<Option<crate::upstream::Call>>,
}

#[filter]
impl Filter for Ask {
    async fn request(&self, request: &mut Request) -> Flow {
        if self.keeps.get() {
            self.kept.replace(Some(upstream("a").get("/").send()));
        } else if !self.skips.get() {
            upstream("a").get("/").send().await.or_deny(503, "no")?;
        }
        request.set_header("x-asked", "yes");
        Ok(Next)
    }
}

#[test]
fn a_stream_is_remembered_while_its_hook_waits() {
    let (host, _installed) = install();
    let contexts = configured::<Ask>();
    assert_eq!(contexts.request_headers(2, true), Action::Pause);
    assert_eq!((contexts.remembered(), host.take().len()), (1, 0));
    contexts.call_response(7, 1, 0, |stream| stream == 2);
    assert_eq!(host.take(), ["x-asked: yes", "resumed Request"]);
    contexts.delete(2);
    assert_eq!(contexts.remembered(), 0);

    contexts.filter().unwrap().skips.set(true);
    assert_eq!(contexts.request_headers(2, true), Action::Continue);
    assert_eq!(contexts.remembered(), 0);

    contexts.filter().unwrap().skips.set(false);
    assert_eq!(contexts.request_headers(2, true), Action::Pause);
    contexts.delete(2);
    host.take();
    contexts.call_response(7, 1, 0, |_| panic!("nobody waits for it any more"));
    assert_eq!(host.take().len(), 0);
}

#[test]
fn an_answer_reaches_a_call_that_has_outlived_its_hook() {
    let (_host, _installed) = install();
    let contexts = configured::<Ask>();
    let filter = contexts.filter().unwrap();
    filter.keeps.set(true);
    assert_eq!(contexts.request_headers(2, true), Action::Continue);
    assert_eq!(contexts.remembered(), 0);
    // Nor does it matter whether the stream is still there.
    contexts.delete(2);
    contexts.call_response(7, 1, 0, |_| panic!("there is nothing to enter"));
    let mut call = filter.kept.take().unwrap();
    let polled = std::pin::Pin::new(&mut call).poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
    assert!(polled.is_ready());
}

/// Sets a body without waiting for the old one.
#[derive(Default)]
struct Replace;

#[filter]
impl Filter for Replace {
    async fn request(&self, request: &mut Request) -> Flow {
        request.set_body("new");
        Ok(Next)
    }
}

#[test]
fn a_new_body_is_remembered_until_it_is_in_its_place() {
    let (host, _installed) = install();
    let contexts = configured::<Replace>();
    assert_eq!(contexts.request_headers(2, false), Action::Continue);
    assert_eq!(contexts.remembered(), 1);
    for (piece, end, left) in [("old", false, "new"), ("more", true, "")] {
        host.held.replace(piece.into());
        assert_eq!(contexts.act(2, |stream| stream.on_request_body(piece.len(), end)), Action::Continue);
        assert_eq!(host.held.take(), left.as_bytes());
    }
}

/// Its settings say whom it answers.
struct Named(u16);

#[derive(Config)]
struct Settings {
    status: u16,
}

#[filter]
impl Filter for Named {
    type Config = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        Ok(Self(settings.status))
    }

    async fn request(&self, _: &mut Request) -> Flow {
        Err(Reply::new(self.0))
    }
}

#[test]
fn streams_have_the_filter_of_their_plugin() {
    let (host, _installed) = install();
    let contexts = Contexts::<Named>::new();
    for (root, settings) in [(1, r#"{"status": 401}"#), (2, r#"{"status": 402}"#), (3, r#"{"status": 403}"#)] {
        contexts.create(root, 0);
        assert!(contexts.configure(root, settings.as_bytes()));
    }
    for (stream, root) in [(11, 3), (12, 1), (13, 2), (14, 1)] {
        contexts.create(stream, root);
    }
    for stream in [14, 13, 12, 11] {
        assert_eq!(contexts.request_headers(stream, true), Action::Pause);
    }
    assert_eq!(host.take(), ["replied 401", "replied 402", "replied 401", "replied 403"]);
    for stream in 11..15 {
        contexts.delete(stream);
    }
    assert_eq!(contexts.remembered(), 0);

    // The streams of those that are left stay theirs.
    contexts.delete(1);
    contexts.create(11, 2);
    contexts.create(12, 3);
    contexts.request_headers(11, true);
    contexts.request_headers(12, true);
    assert_eq!(host.take(), ["replied 402", "replied 403"]);
    for id in [11, 12, 2, 3] {
        contexts.delete(id);
    }
    assert_eq!((contexts.remembered(), contexts.roots.borrow().len()), (0, 0));
}

/// Counts ticks.
#[derive(Default)]
struct Ticking(Cell<u32>);

#[filter]
impl Filter for Ticking {
    const TICK: Option<Duration> = Some(Duration::from_secs(1));

    fn tick(&self) {
        self.0.set(self.0.get() + 1);
    }
}

#[test]
fn a_plugin_ticks_and_a_stream_does_not() {
    let (_host, _installed) = install();
    let contexts = configured::<Ticking>();
    contexts.create(2, ROOT);
    for id in [2, ROOT, ROOT] {
        contexts.tick(id);
    }
    assert_eq!(contexts.filter().unwrap().0.get(), 2);
}

/// Waits, and says that it does not.
struct Liar;

impl Filter for Liar {
    type Config = ();
    type Stream = ();
    const HOOKS: Hooks = Hooks { request_waits: false, ..Hooks::ALL };

    fn new((): ()) -> Result<Self, String> {
        Ok(Self)
    }

    async fn request(&self, _: &mut Request, (): &mut ()) -> Flow {
        poll_fn(|_| Poll::Pending).await
    }
}

#[test]
#[should_panic(expected = "sees no `.await`")]
fn a_hook_that_waits_unannounced_lets_nothing_pass() {
    let (_host, _installed) = install();
    configured::<Liar>().request_headers(2, true);
}
