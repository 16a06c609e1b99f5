//! Takes exchanges through a guest, with the promises of the real host.
//!
//! ```text
//! headers -> Continue   they go on; each piece of the body is shown, and goes on when it is let go
//!         -> Pause      callouts are answered first; when none is left, the body is shown while the headers are held,
//!                       and what is not let go piles up
//!         -> reply      it takes the place of the response and passes through the response hook
//! ```
//!
//! Exchanges that are under way together take turns, one callback each. When all of them wait, time passes: the clock moves on to the
//! next answer, tick or departure.

use std::collections::VecDeque;
use std::mem;
use std::time::{Duration, SystemTime};

use selvedge_sdk::Reply;

use crate::exchange::{Exchange, Fields, Side};
use crate::fake::Answer;
use crate::guest::{Step, Stream};
use crate::request::{Leave, Pieces, Prepared};
use crate::seen::{Outcome, Seen};
use crate::tester::Tester;

/// How long the host waits for the origin, before it says 504.
const PATIENCE: Duration = Duration::from_secs(60);

/// Takes these exchanges to their ends, together.
pub(crate) fn run<F>(tester: &Tester<F>, requests: Vec<Prepared>) -> Vec<Outcome> {
    let mut runs: Vec<Run<'_, F>> = requests.into_iter().map(|request| Run::new(tester, request)).collect();
    loop {
        let moved: usize = runs.iter_mut().map(|run| usize::from(run.step())).sum();
        if runs.iter().all(Run::is_done) {
            break;
        }
        if moved == 0 && !tester.wait() {
            let stuck = runs.iter().find(|run| !run.is_done()).map(Run::describe).unwrap_or_default();
            panic!("the filter holds {stuck} and waits for nothing that will come");
        }
    }
    runs.into_iter().map(Run::into_outcome).collect()
}

struct Run<'t, F> {
    tester: &'t Tester<F>,
    id: usize,
    request: Prepared,
    exchange: Exchange,
    /// `None`: it has failed, and the exchange goes on without.
    stream: Option<Box<dyn Stream>>,
    phase: Phase,
    inputs: VecDeque<Input>,
    held: bool,
    /// Callouts that are not answered yet.
    outstanding: usize,
    /// What has gone on of the body of this half.
    sent: Vec<u8>,
    /// How many pieces of the body of this half have been shown.
    shown: usize,
    began: SystemTime,
    logged: usize,
    upstream: Option<Seen>,
    calls: Vec<Seen>,
    cut: bool,
    left: bool,
    failure: Option<String>,
    body: Vec<u8>,
}

enum Phase {
    Half(Side),
    /// The origin has the request.
    Forwarded {
        due: SystemTime,
        answer: Answer,
    },
    Done,
}

/// What comes of a message.
enum Input {
    Headers { end: bool },
    Body { piece: Vec<u8>, end: bool },
    Trailers(Fields),
}

impl<'t, F> Run<'t, F> {
    fn new(tester: &'t Tester<F>, request: Prepared) -> Self {
        let id = tester.next_id();
        let began = tester.now();
        let exchange = Exchange::new(request.headers.clone(), tester.given(), tester.upstream_names(), began);
        if let Some(Leave::At(after)) = request.leave {
            tester.wake_at(id, began + after);
        }
        let mut run = Self {
            tester,
            id,
            exchange,
            stream: None,
            phase: Phase::Half(Side::Request),
            inputs: VecDeque::new(),
            held: false,
            outstanding: 0,
            sent: Vec::new(),
            shown: 0,
            began,
            logged: tester.logged(),
            upstream: None,
            calls: Vec::new(),
            cut: false,
            left: false,
            failure: None,
            body: Vec::new(),
            request,
        };
        let (body, trailers) = (run.request.body.clone(), run.request.trailers.clone());
        match tester.guest().open() {
            Ok(stream) => {
                run.stream = Some(stream);
                run.expect(Side::Request, body, trailers, None);
            }
            Err(error) => {
                run.expect(Side::Request, body, trailers, None);
                run.fail(error);
            }
        }
        run
    }

    fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done)
    }

    fn side(&self) -> Side {
        match self.phase {
            Phase::Half(side) => side,
            Phase::Forwarded { .. } => Side::Request,
            Phase::Done => Side::Response,
        }
    }

    /// Does the next thing. `false`: there is nothing to do, now or any more.
    fn step(&mut self) -> bool {
        if self.is_done() {
            return false;
        }
        if self.leaves() {
            self.left = true;
            self.finish();
            return true;
        }
        if let Some((token, answer)) = self.tester.take_answer(self.id) {
            self.outstanding -= 1;
            let step =
                self.call(|stream, exchange| stream.answered(exchange, token, answer.as_ref().map_err(|why| *why)));
            self.apply(step, false);
            return true;
        }
        match &self.phase {
            Phase::Half(_) if self.held && self.outstanding > 0 => false,
            Phase::Half(side) => {
                let side = *side;
                match self.inputs.pop_front() {
                    Some(input) => self.show(side, input),
                    None if self.held => return false,
                    None => self.half_is_over(side),
                }
                true
            }
            Phase::Forwarded { due, .. } if self.tester.now() < *due => false,
            Phase::Forwarded { .. } => {
                if let Phase::Forwarded { answer, .. } = mem::replace(&mut self.phase, Phase::Done) {
                    self.respond(answer);
                }
                true
            }
            Phase::Done => false,
        }
    }

    fn leaves(&self) -> bool {
        match (&self.request.leave, &self.phase) {
            (Some(Leave::At(after)), _) => self.tester.now() >= self.began + *after,
            (Some(Leave::InRequest(pieces)), Phase::Half(Side::Request)) => self.has_shown(*pieces),
            (Some(Leave::InResponse(pieces)), Phase::Half(Side::Response)) => self.has_shown(*pieces),
            _ => false,
        }
    }

    /// The headers and so many pieces of the body have been shown.
    fn has_shown(&self, pieces: usize) -> bool {
        self.shown >= pieces && !matches!(self.inputs.front(), Some(Input::Headers { .. }))
    }

    /// What will be shown of a message.
    fn expect(&mut self, side: Side, body: Vec<u8>, trailers: Option<Fields>, pieces: Option<Vec<Vec<u8>>>) {
        self.inputs.clear();
        (self.held, self.shown) = (false, 0);
        self.sent.clear();
        // A message without a body ends with its headers, unless trailers are given by name.
        let trailers = trailers.filter(|trailers| !body.is_empty() || !trailers.is_empty());
        let end = body.is_empty() && trailers.is_none();
        self.inputs.push_back(Input::Headers { end });

        let wanted = self.stream.as_ref().is_some_and(|stream| {
            let (request, response) = stream.bodies();
            if side == Side::Request { request } else { response }
        });
        if !wanted {
            self.sent = body;
            self.exchange.half_mut(side).trailers = trailers;
            return;
        }
        if !body.is_empty() {
            let cut = if side == Side::Request { &self.request.request_cut } else { &self.request.response_cut };
            let pieces = match (cut, pieces) {
                (Pieces::Whole, Some(pieces)) => with_end(pieces),
                _ => cut.of(&body),
            };
            for (piece, end) in pieces.into_iter().filter(|(piece, end)| !piece.is_empty() || *end) {
                match (piece.is_empty(), trailers.is_some()) {
                    // The trailers say the end.
                    (true, true) => {}
                    (_, with_trailers) => self.inputs.push_back(Input::Body { piece, end: end && !with_trailers }),
                }
            }
        }
        if let Some(trailers) = trailers {
            self.inputs.push_back(Input::Trailers(trailers));
        }
    }

    fn show(&mut self, side: Side, input: Input) {
        let step = match input {
            Input::Headers { end } => self.call(|stream, exchange| match side {
                Side::Request => stream.request_headers(exchange, end),
                Side::Response => stream.response_headers(exchange, end),
            }),
            Input::Body { piece, end } => {
                self.shown += 1;
                let buffer = self.exchange.half_mut(side).held.get_or_insert_default();
                buffer.extend_from_slice(&piece);
                let size = buffer.len();
                self.call(|stream, exchange| match side {
                    Side::Request => stream.request_body(exchange, size, end),
                    Side::Response => stream.response_body(exchange, size, end),
                })
            }
            Input::Trailers(trailers) => {
                let half = self.exchange.half_mut(side);
                half.held.get_or_insert_default();
                half.trailers = Some(trailers);
                self.call(|stream, exchange| match side {
                    Side::Request => stream.request_trailers(exchange),
                    Side::Response => stream.response_trailers(exchange),
                })
            }
        };
        self.apply(step, true);
    }

    fn call(
        &mut self,
        callback: impl FnOnce(&mut dyn Stream, &mut Exchange) -> Result<Step, String>,
    ) -> Result<Step, String> {
        match &mut self.stream {
            Some(stream) => callback(&mut **stream, &mut self.exchange),
            None => Ok(Step::default()),
        }
    }

    /// Carries out what a callback came to; an answer by itself releases nothing.
    fn apply(&mut self, step: Result<Step, String>, callback: bool) {
        let step = match step {
            Ok(step) => step,
            Err(failure) => return self.fail(failure),
        };
        for callout in step.callouts {
            self.outstanding += 1;
            self.calls.push(callout.seen.clone());
            self.tester.call(Some(self.id), callout);
        }
        if step.close {
            self.cut = true;
            return self.finish();
        }
        if let Some(reply) = step.reply {
            return self.reply(reply);
        }

        let side = self.side();
        let resumed = if side == Side::Request { step.resume_request } else { step.resume_response };
        self.held = if callback { step.pause } else { self.held && !resumed };
        if !self.held && matches!(self.phase, Phase::Half(_)) {
            self.release(side);
        }
    }

    /// Lets go what is held of a message.
    fn release(&mut self, side: Side) {
        let half = self.exchange.half_mut(side);
        half.sent = true;
        if let Some(held) = &mut half.held {
            self.sent.append(held);
        }
    }

    fn reply(&mut self, reply: Reply) {
        match self.phase {
            Phase::Half(Side::Request) | Phase::Forwarded { .. } => {
                self.exchange.request.sent = true;
                self.exchange.request.held = None;
                self.respond(reply.into());
            }
            // It is with the client already.
            Phase::Half(Side::Response) if self.exchange.response.sent => {
                self.cut = true;
                self.finish();
            }
            // It replaces the response and is final: it does not pass through the hook again.
            Phase::Half(Side::Response) => {
                self.exchange.response.headers = Some(response_headers(&reply, true));
                self.exchange.response.trailers = None;
                self.sent = reply.bytes().to_vec();
                self.finish();
            }
            Phase::Done => {}
        }
    }

    fn half_is_over(&mut self, side: Side) {
        let half = self.exchange.half_mut(side);
        half.sent = true;
        half.held = None;
        if side == Side::Response {
            return self.finish();
        }

        let seen = Seen {
            upstream: self.exchange.chosen_upstream().unwrap_or_default().to_owned(),
            headers: self.exchange.request.headers.clone().unwrap_or_default(),
            body: mem::take(&mut self.sent),
            trailers: self.exchange.request.trailers.clone().unwrap_or_default(),
            timeout: None,
        };
        let mut answer = self.tester.forward(&seen);
        self.upstream = Some(seen);
        if answer.after > PATIENCE {
            answer = Answer::from(Reply::new(504)).after(PATIENCE);
        }
        let due = self.tester.now() + answer.after;
        self.tester.wake_at(self.id, due);
        self.phase = Phase::Forwarded { due, answer };
    }

    /// The response half begins.
    fn respond(&mut self, answer: Answer) {
        let reply = answer.reply.unwrap_or_else(|| Reply::new(502));
        let length_is_known = answer.pieces.is_none() && answer.trailers.is_empty();
        self.exchange.respond(response_headers(&reply, length_is_known));
        self.phase = Phase::Half(Side::Response);

        let head = self.exchange.request.header(":method") == Some(b"HEAD");
        let bodiless = head || matches!(reply.status(), 204 | 304);
        let body = if bodiless { Vec::new() } else { reply.bytes().to_vec() };
        let trailers = match answer.trailers.is_empty() {
            false => Some(answer.trailers),
            true => self.request.with_trailers.then(Vec::new),
        };
        self.expect(Side::Response, body, trailers.filter(|_| !bodiless), answer.pieces);
    }

    /// The filter is lost: by its policy the request fails, or goes on without it.
    fn fail(&mut self, failure: String) {
        self.failure = Some(failure);
        self.stream = None;
        if self.tester.fails_open() {
            self.held = false;
            if let Phase::Half(side) = self.phase {
                self.release(side);
            }
            return;
        }
        if self.exchange.response.sent {
            self.cut = true;
        } else {
            self.exchange.response.headers = Some(response_headers(&Reply::new(503), true));
            self.exchange.response.trailers = None;
            self.sent.clear();
        }
        self.finish();
    }

    fn finish(&mut self) {
        self.exchange.response.sent = true;
        self.phase = Phase::Done;
        self.body = mem::take(&mut self.sent);
        self.tester.forget_run(self.id);
        if let Some(stream) = &mut self.stream
            && let Err(failure) = stream.finish(&mut self.exchange)
        {
            self.failure = Some(failure);
        }
        self.stream = None;
    }

    fn describe(&self) -> String {
        let side = self.side();
        let what = if self.shown == 0 { "headers" } else { "message" };
        format!("the {side:?} {what} of {} {}", self.request.method(), self.request.path())
    }

    fn into_outcome(mut self) -> Outcome {
        let response = mem::take(&mut self.exchange.response);
        let nothing = self.left && response.headers.is_none();
        Outcome {
            request: format!("{} {}", self.request.method(), self.request.path()),
            headers: response.headers.unwrap_or_default(),
            body: if nothing { Vec::new() } else { self.body },
            trailers: response.trailers.unwrap_or_default(),
            upstream: self.upstream,
            calls: self.calls,
            writes: self.exchange.writes,
            logs: self.tester.lines_since(self.logged),
            took: self.tester.now().duration_since(self.began).unwrap_or_default(),
            cut: self.cut,
            left: self.left,
            failure: self.failure,
            asked: false.into(),
        }
    }
}

fn response_headers(reply: &Reply, length: bool) -> Fields {
    let mut headers = vec![(":status".to_owned(), reply.status().to_string().into_bytes())];
    headers.extend(reply.headers().iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())));
    if length {
        headers.push(("content-length".into(), reply.bytes().len().to_string().into_bytes()));
    }
    headers
}

fn with_end(pieces: Vec<Vec<u8>>) -> Vec<(Vec<u8>, bool)> {
    let last = pieces.len().saturating_sub(1);
    pieces.into_iter().enumerate().map(|(at, piece)| (piece, at == last)).collect()
}
