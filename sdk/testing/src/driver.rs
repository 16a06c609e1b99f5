//! Takes one exchange through a guest, with the promises of the real host.
//!
//! ```text
//! headers -> Continue   they go on; each piece of the body is shown, and goes on when it is let go
//!         -> Pause      callouts are answered first; when none is left, the body is shown while the headers are held,
//!                       and what is not let go piles up
//!         -> reply      it takes the place of the response and passes through the response hook
//! ```

use selvedge_sdk::Reply;

use crate::exchange::{Exchange, Side};
use crate::{Cut, Outcome, Seen, Step, Stream, Tester};

pub(crate) struct Driver<'t, F> {
    tester: &'t Tester<F>,
    exchange: Exchange,
    stream: Box<dyn Stream>,
    cut: Cut,
}

/// What a half came to.
enum Half {
    /// It has gone on, with this body.
    Sent(Vec<u8>),
    /// The guest has answered instead.
    Replied(Reply),
}

impl<'t, F> Driver<'t, F> {
    pub(crate) fn new(tester: &'t Tester<F>, exchange: Exchange, cut: Cut) -> Self {
        Self { tester, exchange, stream: tester.guest().open(), cut }
    }

    pub(crate) fn run(mut self, body: Vec<u8>) -> Outcome {
        let (answer, upstream) = match self.pass(Side::Request, body) {
            Half::Sent(body) => {
                let seen = self.forwarded(body);
                (self.tester.forward(&seen), Some(seen))
            }
            Half::Replied(reply) => (reply, None),
        };

        self.exchange.response.headers = Some(response_headers(&answer));
        let body = match self.pass(Side::Response, answer.bytes().to_vec()) {
            Half::Sent(body) => body,
            // A reply from the response hook replaces the response and is final: it does not pass through the hook again.
            Half::Replied(reply) => {
                self.exchange.response.headers = Some(response_headers(&reply));
                reply.bytes().to_vec()
            }
        };

        self.exchange.response.sent = true;
        self.stream.finish(&mut self.exchange);
        let headers = self.exchange.response.headers.take().unwrap_or_default();
        Outcome { headers, body, upstream, logs: Vec::new() }
    }

    fn pass(&mut self, side: Side, body: Vec<u8>) -> Half {
        let end = body.is_empty();
        let step = match side {
            Side::Request => self.stream.request_headers(&mut self.exchange, end),
            Side::Response => self.stream.response_headers(&mut self.exchange, end),
        };
        let mut held = match self.settle(side, step) {
            Ok(held) => held,
            Err(reply) => return Half::Replied(reply),
        };
        self.exchange.half_mut(side).sent = !held;

        let (request, response) = self.stream.bodies();
        let wanted = if side == Side::Request { request } else { response };
        if !wanted || end {
            assert!(!held, "the filter holds the {side:?} headers and waits for nothing that will come");
            return self.sent(side, body);
        }

        let mut sent = Vec::new();
        for (piece, end) in pieces(&body, self.cut) {
            let buffer = self.exchange.half_mut(side).held.get_or_insert_default();
            buffer.extend_from_slice(piece);
            let size = buffer.len();
            let step = match side {
                Side::Request => self.stream.request_body(&mut self.exchange, size, end),
                Side::Response => self.stream.response_body(&mut self.exchange, size, end),
            };
            held = match self.settle(side, step) {
                Ok(held) => held,
                Err(reply) => return Half::Replied(reply),
            };
            self.release(side, held, &mut sent);
        }

        if self.cut.trailers {
            let step = match side {
                Side::Request => self.stream.request_trailers(&mut self.exchange),
                Side::Response => self.stream.response_trailers(&mut self.exchange),
            };
            held = match self.settle(side, step) {
                Ok(held) => held,
                Err(reply) => return Half::Replied(reply),
            };
            self.release(side, held, &mut sent);
        }
        assert!(!held, "the filter holds the whole {side:?} and waits for nothing that will come");
        self.sent(side, sent)
    }

    /// Lets go what is held of a body, unless it stays held.
    fn release(&mut self, side: Side, held: bool, sent: &mut Vec<u8>) {
        if !held {
            let half = self.exchange.half_mut(side);
            half.sent = true;
            sent.append(half.held.get_or_insert_default());
        }
    }

    /// Answers the callouts, and those that the answers lead to. `true`: the message is held.
    fn settle(&mut self, side: Side, step: Step) -> Result<bool, Reply> {
        let mut held = step.pause;
        let mut waiting = std::collections::VecDeque::from(step.callouts);
        if let Some(reply) = step.reply {
            return Err(reply);
        }

        while let Some(callout) = waiting.pop_front() {
            let answer = self.tester.call(&callout.seen);
            let step = self.stream.answered(&mut self.exchange, callout.token, answer.as_ref());
            if let Some(reply) = step.reply {
                return Err(reply);
            }
            let resumed = if side == Side::Request { step.resume_request } else { step.resume_response };
            held &= !resumed;
            waiting.extend(step.callouts);
        }
        Ok(held)
    }

    fn sent(&mut self, side: Side, body: Vec<u8>) -> Half {
        let half = self.exchange.half_mut(side);
        half.sent = true;
        half.held = None;
        Half::Sent(body)
    }

    fn forwarded(&self, body: Vec<u8>) -> Seen {
        let upstream = self.exchange.property(&["selvedge", "upstream"]).unwrap_or_default();
        let upstream = String::from_utf8_lossy(upstream).into_owned();
        Seen { upstream, headers: self.exchange.request.headers.clone().unwrap_or_default(), body }
    }
}

fn response_headers(reply: &Reply) -> Vec<(String, Vec<u8>)> {
    let mut headers = vec![(":status".to_owned(), reply.status().to_string().into_bytes())];
    headers.extend(reply.headers().iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())));
    headers.push(("content-length".into(), reply.bytes().len().to_string().into_bytes()));
    headers
}

/// The pieces of a body and which is the end: an empty one when the body comes in pieces, none when trailers follow.
fn pieces(body: &[u8], cut: Cut) -> Vec<(&[u8], bool)> {
    match cut.chunk {
        None => vec![(body, !cut.trailers)],
        Some(size) => {
            let end = (!cut.trailers).then_some((&[][..], true));
            body.chunks(size).map(|piece| (piece, false)).chain(end).collect()
        }
    }
}
