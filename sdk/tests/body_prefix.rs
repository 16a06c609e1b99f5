//! `body_prefix`, callback by callback: when it waits, what it asks the host for, and that nothing is held afterwards.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::single_range_in_vec_init,
    reason = "a test, which notes the ranges a host is asked for"
)]

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

use selvedge_sdk::host::{self, Buffer, Direction, Host, Map, Status};
use selvedge_sdk::prelude::*;
use selvedge_sdk::runtime::{Action, Root, Stream};

thread_local! {
    /// What the filter of this thread asks for.
    static LIMIT: Cell<usize> = const { Cell::new(0) };
    /// What it has got.
    static GOT: RefCell<Vec<Result<Prefix, BodyUnavailable>>> = const { RefCell::new(Vec::new()) };
}

/// Reads the start of both bodies. Without an attribute: the macro has to see that this needs body callbacks.
struct Sniff;

#[filter]
impl Filter for Sniff {
    type Config = ();

    fn new((): ()) -> Result<Self, String> {
        Ok(Self)
    }

    async fn request(&self, request: &mut Request, _: &mut ()) -> Flow {
        let start = request.body_prefix(LIMIT.get()).await;
        GOT.with_borrow_mut(|got| got.push(start.clone()));
        start?;
        Ok(Next)
    }

    async fn response(&self, response: &mut Response, _: &mut ()) -> Flow {
        let start = response.body_prefix(LIMIT.get()).await;
        GOT.with_borrow_mut(|got| got.push(start.clone()));
        start?;
        Ok(Next)
    }
}

/// A host that holds bytes, and notes what it is asked for.
#[derive(Default)]
struct Holding {
    held: RefCell<Vec<u8>>,
    hidden: Cell<bool>,
    asked: RefCell<Vec<Range<usize>>>,
    replies: RefCell<Vec<u16>>,
}

impl Host for Holding {
    fn buffer(&self, _: Buffer, start: usize, max: usize) -> Option<Vec<u8>> {
        self.asked.borrow_mut().push(start..start + max);
        let held = self.held.borrow();
        (!self.hidden.get()).then(|| held[start..held.len().min(start + max)].to_vec())
    }

    fn set_buffer(&self, _: Buffer, start: usize, size: usize, bytes: &[u8]) -> Result<(), Status> {
        self.held.borrow_mut().splice(start..start + size, bytes.iter().copied());
        Ok(())
    }

    fn set_header(&self, _: Map, _: &str, _: &[u8]) -> Result<(), Status> {
        Ok(())
    }

    fn reply(&self, status: u16, _: &[(&str, &[u8])], _: &[u8]) {
        self.replies.borrow_mut().push(status);
    }
}

/// How the end of a body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// With the last piece, or with the headers.
    Marked,
    /// On its own, with no bytes.
    Alone,
    Trailers,
}

/// What came of one message.
#[derive(Debug, PartialEq, Eq)]
struct Passed {
    /// What had arrived when the message was let go.
    waited_for: usize,
    start: Prefix,
    asked: Vec<Range<usize>>,
}

/// Takes a message through the filter and checks that it is held until a moment, and never after it.
fn pass(direction: Direction, limit: usize, pieces: &[&[u8]], end: End) -> Passed {
    LIMIT.set(limit);
    GOT.take();
    let holding = Rc::new(Holding::default());
    let _installed = host::install(holding.clone());
    let mut root = Root::<Sniff>::default();
    assert!(root.configure(b"{}"));
    let mut stream = root.open().unwrap();

    let mut arrived = 0;
    let mut waited_for = None;
    let mut note = |action: Action, arrived: usize| match (action, waited_for) {
        (Action::Pause, None) => {}
        (Action::Pause, Some(_)) => panic!("held again after {arrived} bytes: {pieces:?}, limit {limit}"),
        (Action::Continue, _) => {
            holding.held.borrow_mut().clear();
            waited_for = waited_for.or(Some(arrived));
        }
    };
    let on_body = |stream: &mut Stream<Sniff>, piece: &[u8], end: bool| {
        holding.held.borrow_mut().extend_from_slice(piece);
        let held = holding.held.borrow().len();
        match direction {
            Direction::Request => stream.on_request_body(held, end),
            Direction::Response => stream.on_response_body(held, end),
        }
    };

    let without_body = pieces.is_empty() && end == End::Marked;
    let action = match direction {
        Direction::Request => stream.on_request_headers(without_body),
        Direction::Response => stream.on_response_headers(without_body),
    };
    note(action, 0);
    for (index, piece) in pieces.iter().enumerate() {
        arrived += piece.len();
        note(on_body(&mut stream, piece, end == End::Marked && index + 1 == pieces.len()), arrived);
    }
    match end {
        End::Marked => {}
        End::Alone => note(on_body(&mut stream, b"", true), arrived),
        End::Trailers => {
            let action = match direction {
                Direction::Request => stream.on_request_trailers(),
                Direction::Response => stream.on_response_trailers(),
            };
            note(action, arrived);
        }
    }

    assert!(holding.replies.borrow().is_empty());
    let mut got = GOT.take();
    assert_eq!(got.len(), 1, "the hook has run once");
    let start = got.remove(0).unwrap();
    Passed { waited_for: waited_for.unwrap(), start, asked: holding.asked.take() }
}

const BODY: &[u8] = b"0123456789";

#[test]
fn a_body_cut_at_every_byte_is_held_until_the_limit_or_its_end() {
    for direction in [Direction::Request, Direction::Response] {
        for limit in 0..=BODY.len() + 1 {
            for first in 1..BODY.len() {
                for second in first + 1..=BODY.len() {
                    let pieces: Vec<&[u8]> = [&BODY[..first], &BODY[first..second], &BODY[second..]]
                        .into_iter()
                        .filter(|piece| !piece.is_empty())
                        .collect();
                    for end in [End::Marked, End::Alone, End::Trailers] {
                        let ends = [0, first, second, BODY.len()];
                        let waited_for = ends.into_iter().find(|&end| end >= limit).unwrap_or(BODY.len());
                        let length = limit.min(BODY.len());
                        let whole = limit > BODY.len() || (limit == BODY.len() && end == End::Marked);
                        let expected = Passed {
                            waited_for,
                            start: Prefix { bytes: BODY[..length].to_vec(), whole },
                            // Once, and no more than the limit, whatever the host holds.
                            asked: if length == 0 { vec![] } else { vec![0..length] },
                        };
                        let passed = pass(direction, limit, &pieces, end);
                        assert_eq!(passed, expected, "{direction:?}, limit {limit}, {first}, {second}, {end:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn one_byte_at_a_time_it_waits_for_exactly_the_limit() {
    let pieces: Vec<&[u8]> = BODY.chunks(1).collect();
    for limit in 0..=BODY.len() {
        assert_eq!(pass(Direction::Request, limit, &pieces, End::Alone).waited_for, limit);
    }
}

#[test]
fn an_empty_body_is_whole() {
    for limit in [1, 10] {
        for end in [End::Marked, End::Alone, End::Trailers] {
            let expected = Passed { waited_for: 0, start: Prefix { bytes: Vec::new(), whole: true }, asked: vec![] };
            assert_eq!(pass(Direction::Request, limit, &[], end), expected, "{end:?}");
        }
    }
    assert!(pass(Direction::Request, 0, &[], End::Marked).start.whole, "the headers were the end");
    assert!(!pass(Direction::Request, 0, &[], End::Alone).start.whole, "nobody knows yet");
}

#[test]
fn a_long_body_is_never_piled_up() {
    let piece = [b'x'; 65_536];
    let pieces = [&piece[..]; 64];
    let passed = pass(Direction::Response, 100_000, &pieces, End::Alone);
    assert_eq!((passed.waited_for, passed.asked), (131_072, vec![0..100_000]));
    assert_eq!((passed.start.bytes.len(), passed.start.whole), (100_000, false));
}

#[test]
fn a_host_that_does_not_give_the_bytes_is_an_error() {
    LIMIT.set(4);
    GOT.take();
    let holding = Rc::new(Holding::default());
    let _installed = host::install(holding.clone());
    let mut root = Root::<Sniff>::default();
    assert!(root.configure(b"{}"));

    // Nothing, and less than there should be.
    for (hidden, held) in [(true, &b"0123"[..]), (false, b"01")] {
        holding.hidden.set(hidden);
        *holding.held.borrow_mut() = held.to_vec();
        let mut stream = root.open().unwrap();
        assert_eq!(stream.on_request_headers(false), Action::Pause);
        assert_eq!(stream.on_request_body(4, false), Action::Pause);
    }
    assert_eq!(*holding.replies.borrow(), [500, 500]);
    let error = BodyUnavailable { direction: Direction::Request };
    assert_eq!(GOT.take(), [Err(error), Err(error)]);
    assert_eq!(error.to_string(), "the host does not show the Request body");
}

/// Replaces the body, before or after some of it has come, and looks at the start of the new one.
struct Replace {
    after: usize,
}

#[filter(body = "request")]
impl Filter for Replace {
    type Config = usize;

    fn new(after: usize) -> Result<Self, String> {
        Ok(Self { after })
    }

    async fn request(&self, request: &mut Request, _: &mut ()) -> Flow {
        let old = request.body_prefix(self.after).await?;
        request.set_body("abcdef");
        let new = request.body_prefix(LIMIT.get()).await;
        GOT.with_borrow_mut(|got| got.extend([Ok(old), new]));
        Ok(Next)
    }
}

#[test]
fn the_start_of_a_new_body_is_there_at_once() {
    for (limit, start, whole) in [(0, "", false), (3, "abc", false), (6, "abcdef", true), (100, "abcdef", true)] {
        for after in [0, 2] {
            LIMIT.set(limit);
            GOT.take();
            let holding = Rc::new(Holding::default());
            let _installed = host::install(holding.clone());
            let mut root = Root::<Replace>::default();
            assert!(root.configure(after.to_string().as_bytes()));
            let mut stream = root.open().unwrap();

            let mut action = stream.on_request_headers(false);
            assert_eq!(action == Action::Continue, after == 0);
            if action == Action::Pause {
                holding.held.borrow_mut().extend_from_slice(b"0123");
                action = stream.on_request_body(4, false);
            }
            assert_eq!(action, Action::Continue);
            let new = Prefix { bytes: start.as_bytes().to_vec(), whole };
            assert_eq!(GOT.take()[1], Ok(new), "limit {limit}, after {after}");
        }
    }
}

/// Looks twice: at a little, then at more, then at all.
struct Again;

#[filter(body = "request")]
impl Filter for Again {
    type Config = ();

    fn new((): ()) -> Result<Self, String> {
        Ok(Self)
    }

    async fn request(&self, request: &mut Request, _: &mut ()) -> Flow {
        let few = request.body_prefix(2).await;
        let more = request.body_prefix(4).await;
        let all = request.body(100).await?;
        GOT.with_borrow_mut(|got| got.extend([few, more, Ok(Prefix { bytes: all, whole: true })]));
        Ok(Next)
    }
}

#[test]
fn what_was_looked_at_is_still_there() {
    GOT.take();
    let holding = Rc::new(Holding::default());
    let _installed = host::install(holding.clone());
    let mut root = Root::<Again>::default();
    assert!(root.configure(b"{}"));
    let mut stream = root.open().unwrap();

    assert_eq!(stream.on_request_headers(false), Action::Pause);
    holding.held.borrow_mut().extend_from_slice(b"012");
    assert_eq!(stream.on_request_body(3, false), Action::Pause);
    holding.held.borrow_mut().extend_from_slice(b"345");
    assert_eq!(stream.on_request_body(6, false), Action::Pause);
    assert_eq!(stream.on_request_body(6, true), Action::Continue);
    let got: Vec<Prefix> = GOT.take().into_iter().map(Result::unwrap).collect();
    let prefix = |bytes: &[u8], whole| Prefix { bytes: bytes.to_vec(), whole };
    assert_eq!(got, [prefix(b"01", false), prefix(b"0123", false), prefix(b"012345", true)]);
}
