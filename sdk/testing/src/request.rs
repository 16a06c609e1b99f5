//! The request of a test, before it is sent.

use std::time::Duration;

use crate::driver;
use crate::exchange::Fields;
use crate::seen::Outcome;
use crate::tester::Tester;

/// A body of up to so many bytes is split at each of them by `every_split`; a longer one at its first and last ones, and at places in
/// between.
const SPLIT_EVERYWHERE: usize = 64;

/// A request that is not sent yet.
#[must_use = "nothing happens until the request is sent"]
pub struct TestRequest<'t, F> {
    tester: &'t Tester<F>,
    prepared: Prepared,
    chunked: bool,
    every_split: bool,
}

/// What the driver has to know of a request.
#[derive(Clone)]
pub(crate) struct Prepared {
    pub(crate) headers: Fields,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Option<Fields>,
    /// The response ends with trailers too, whatever the origin says.
    pub(crate) with_trailers: bool,
    pub(crate) request_cut: Pieces,
    pub(crate) response_cut: Pieces,
    pub(crate) leave: Option<Leave>,
}

/// When the client goes away.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Leave {
    At(Duration),
    InRequest(usize),
    InResponse(usize),
}

/// How a body arrives.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pieces {
    Whole,
    /// In pieces of at most so many bytes, and the end on its own.
    Chunks(usize),
    /// In two pieces; the end with the second one, or on its own.
    At(usize, bool),
}

impl Pieces {
    /// The pieces of a body and which is the end.
    pub(crate) fn of(self, body: &[u8]) -> Vec<(Vec<u8>, bool)> {
        let end = (Vec::new(), true);
        match self {
            Self::Whole => vec![(body.to_vec(), true)],
            Self::Chunks(size) => body.chunks(size).map(|piece| (piece.to_vec(), false)).chain([end]).collect(),
            Self::At(at, alone) => {
                let (first, second) = body.split_at(at.min(body.len()));
                let mut pieces = vec![(first.to_vec(), false), (second.to_vec(), !alone)];
                pieces.extend(alone.then_some(end));
                pieces
            }
        }
    }
}

impl Prepared {
    pub(crate) fn method(&self) -> String {
        self.pseudo(":method")
    }

    pub(crate) fn path(&self) -> String {
        self.pseudo(":path")
    }

    fn pseudo(&self, name: &str) -> String {
        let value = self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_slice());
        String::from_utf8_lossy(value.unwrap_or_default()).into_owned()
    }
}

impl<'t, F> TestRequest<'t, F> {
    pub(crate) fn new(tester: &'t Tester<F>, method: &str, path: &str) -> Self {
        let scheme = tester.scheme();
        let headers = [(":authority", "example.com"), (":path", path), (":method", method), (":scheme", scheme)]
            .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
        let prepared = Prepared {
            headers: headers.into(),
            body: Vec::new(),
            trailers: None,
            with_trailers: false,
            request_cut: Pieces::Whole,
            response_cut: Pieces::Whole,
            leave: None,
        };
        Self { tester, prepared, chunked: false, every_split: false }
    }

    /// Adds a header; `host` and pseudo headers replace the default.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let name = if name.eq_ignore_ascii_case("host") { ":authority".into() } else { name.to_ascii_lowercase() };
        let headers = &mut self.prepared.headers;
        if name.starts_with(':') {
            headers.retain(|(other, _)| *other != name);
            headers.insert(0, (name, value.as_ref().to_vec()));
        } else {
            headers.push((name, value.as_ref().to_vec()));
        }
        self
    }

    /// The host that is asked for, `example.com` by default.
    pub fn host(self, host: &str) -> Self {
        self.header("host", host)
    }

    /// The body, with its `content-length`.
    pub fn body(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.prepared.body = bytes.into();
        let length = self.prepared.body.len().to_string();
        self.prepared.headers.retain(|(name, _)| name != "content-length");
        self.header("content-length", length)
    }

    /// The body as JSON, with its `content-type` and `content-length`.
    pub fn json(self, value: &serde_json::Value) -> Self {
        self.header("content-type", "application/json").body(value.to_string())
    }

    /// Delivers both bodies in pieces of at most `bytes`, and the end on its own after them, as a network might; the request's
    /// length is not announced then. Default: in one piece.
    pub fn chunked(mut self, bytes: usize) -> Self {
        (self.prepared.request_cut, self.prepared.response_cut) =
            (Pieces::Chunks(bytes.max(1)), Pieces::Chunks(bytes.max(1)));
        self.chunked = true;
        self
    }

    /// Sends the request many times, and demands the same outcome each time: with either body whole, in two pieces split at each byte
    /// (at some of them when it has more than 64), byte by byte, the end with the last piece and on its own. Each time the filter is
    /// started anew, so what it has learnt from requests before this one is forgotten; closures of upstreams are not.
    pub fn every_split(mut self) -> Self {
        self.every_split = true;
        self
    }

    /// Ends both bodies with trailers, as gRPC does: no piece of a body is marked as its last then. A message without a body has
    /// none.
    pub fn trailers(mut self) -> Self {
        self.prepared.trailers.get_or_insert_default();
        self.prepared.with_trailers = true;
        self
    }

    /// Adds a trailer to the request.
    pub fn trailer(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let trailers = self.prepared.trailers.get_or_insert_default();
        trailers.push((name.to_ascii_lowercase(), value.as_ref().to_vec()));
        self
    }

    /// The client goes away after so much time on the tester's clock: while an upstream takes longer than that to answer, for instance.
    pub fn client_leaves_after(mut self, time: Duration) -> Self {
        self.prepared.leave = Some(Leave::At(time));
        self
    }

    /// The client goes away in the middle of its request: when the filter has been shown the headers and so many pieces of the body.
    pub fn client_leaves_in_request(mut self, pieces: usize) -> Self {
        self.prepared.leave = Some(Leave::InRequest(pieces));
        self
    }

    /// The client goes away in the middle of the response: when the filter has been shown its headers and so many pieces of its body.
    pub fn client_leaves_in_response(mut self, pieces: usize) -> Self {
        self.prepared.leave = Some(Leave::InResponse(pieces));
        self
    }

    /// Sends it and waits for the end of the response.
    ///
    /// # Panics
    /// When the filter does not start, or holds a message for ever; with [`every_split`](Self::every_split), when outcomes differ.
    #[track_caller]
    pub fn send(self) -> Outcome {
        let tester = self.tester;
        if self.every_split {
            return tester.every_split(self.prepared());
        }
        let mut outcomes = driver::run(tester, vec![self.prepared()]);
        match outcomes.pop() {
            Some(outcome) => outcome,
            None => unreachable!("one request has one outcome"),
        }
    }

    pub(crate) fn prepared(mut self) -> Prepared {
        // Split bodies of a known length are usual, so `every_split` keeps it.
        if self.chunked && !self.every_split {
            self.prepared.headers.retain(|(name, _)| name != "content-length");
        }
        self.prepared
    }
}

impl<F> Tester<F> {
    #[track_caller]
    fn every_split(&self, request: Prepared) -> Outcome {
        let whole = self.afresh(&request);
        let mut cuts: Vec<(Pieces, Pieces)> = Vec::new();
        for pieces in splits(request.body.len()) {
            cuts.push((pieces, Pieces::Whole));
        }
        // What the filter was given of the response is not known; what it made of it has about the same length.
        let longest = whole.body.len().max(self.longest_answer());
        for pieces in splits(longest) {
            cuts.push((Pieces::Whole, pieces));
        }
        cuts.push((Pieces::Chunks(1), Pieces::Chunks(1)));

        for (request_cut, response_cut) in cuts {
            let outcome = self.afresh(&Prepared { request_cut, response_cut, ..request.clone() });
            if whole.essence() != outcome.essence() {
                whole.asked.set(true);
                outcome.asked.set(true);
                panic!(
                    "the outcome depends on how bodies arrive.\n\nin one piece:\n{whole}\nwith the request {request_cut} and the response {response_cut}:\n{outcome}"
                );
            }
            // What holds for the first holds for all.
            outcome.asked.set(true);
        }
        whole
    }

    fn afresh(&self, request: &Prepared) -> Outcome {
        self.restart();
        driver::run(self, vec![request.clone()]).remove(0)
    }
}

/// The ways to cut a body of this length that are tried.
fn splits(length: usize) -> Vec<Pieces> {
    let places: Vec<usize> = if length <= SPLIT_EVERYWHERE {
        (1..length).collect()
    } else {
        let step = length / SPLIT_EVERYWHERE;
        let spread = (0..SPLIT_EVERYWHERE).map(|at| 1 + at * step);
        (1..16).chain(length - 16..length).chain(spread).collect()
    };
    let mut cuts: Vec<Pieces> =
        places.into_iter().flat_map(|at| [Pieces::At(at, false), Pieces::At(at, true)]).collect();
    if length > 0 {
        cuts.push(Pieces::At(length, true));
        cuts.push(Pieces::Chunks(1));
    }
    cuts
}

impl std::fmt::Display for Pieces {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Whole => formatter.write_str("in one piece"),
            Self::Chunks(size) => write!(formatter, "in pieces of {size} bytes"),
            Self::At(at, false) => write!(formatter, "split after byte {at}"),
            Self::At(at, true) => write!(formatter, "split after byte {at}, its end on its own"),
        }
    }
}
