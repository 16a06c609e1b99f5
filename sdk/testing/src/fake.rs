//! What stands behind the filter: upstreams and the origin, as closures or as lists of answers.

use std::cell::Cell;
use std::time::Duration;

use selvedge_sdk::{GrpcCode, Reply};

use crate::exchange::Fields;
use crate::seen::Seen;

/// What an upstream or the origin answers: a [`Reply`] (which becomes one by itself), and how it comes.
///
/// ```
/// # use std::time::Duration;
/// # use selvedge_sdk::Reply;
/// use selvedge_sdk_testing::Answer;
///
/// let late = Answer::from(Reply::new(200).text("at last")).after(Duration::from_secs(2));
/// let in_pieces = Answer::from(Reply::new(200)).pieces(["a", "long", "story"]).trailer("x-end", "1");
/// let lost = Answer::lost();
/// ```
#[derive(Clone, Debug)]
pub struct Answer {
    /// `None`: the connection fails.
    pub(crate) reply: Option<Reply>,
    pub(crate) pieces: Option<Vec<Vec<u8>>>,
    pub(crate) trailers: Fields,
    pub(crate) after: Duration,
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self { reply: Some(reply), pieces: None, trailers: Vec::new(), after: Duration::ZERO }
    }
}

impl Answer {
    /// The connection fails: a callout has no answer, a forwarded request gets the host's 502.
    pub fn lost() -> Self {
        Self { reply: None, pieces: None, trailers: Vec::new(), after: Duration::ZERO }
    }

    /// Nothing comes, ever: a callout waits for its timeout, a forwarded request gets the host's 504 after a minute.
    pub fn never() -> Self {
        Self { after: Duration::MAX, ..Self::lost() }
    }

    /// How a gRPC call ends that gives no message: the code, and words. (A message is a [`Reply`] with it as the body.)
    pub fn grpc_status(code: GrpcCode, words: &str) -> Self {
        let code = code.number().to_string();
        Reply::new(200).header("grpc-status", code).header("grpc-message", words).into()
    }

    /// So late, on the clock of the tester. What comes later than a callout's timeout does not come.
    #[must_use]
    pub fn after(mut self, time: Duration) -> Self {
        self.after = time;
        self
    }

    /// The body in these pieces, in place of the reply's; the end comes with the last one.
    #[must_use]
    pub fn pieces<P: Into<Vec<u8>>>(mut self, pieces: impl IntoIterator<Item = P>) -> Self {
        let pieces: Vec<Vec<u8>> = pieces.into_iter().map(Into::into).collect();
        self.reply = self.reply.map(|reply| reply.body(pieces.concat()));
        self.pieces = Some(pieces);
        self
    }

    /// Adds a trailer behind the body.
    #[must_use]
    pub fn trailer(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.trailers.push((name.to_ascii_lowercase(), value.as_ref().to_vec()));
        self
    }
}

/// An upstream of the test.
pub(crate) struct Fake {
    answer: Box<dyn Fn(&Seen) -> Answer>,
    down: Cell<bool>,
    slower: Cell<Duration>,
}

impl Fake {
    pub(crate) fn new<A: Into<Answer>>(answer: impl Fn(&Seen) -> A + 'static) -> Self {
        Self {
            answer: Box::new(move |seen| answer(seen).into()),
            down: Cell::new(false),
            slower: Cell::new(Duration::ZERO),
        }
    }

    /// One answer after the other; the last one stays.
    pub(crate) fn of_list(answers: Vec<Answer>) -> Self {
        let next = Cell::new(0);
        Self::new(move |_: &Seen| {
            let at = next.get();
            next.set((at + 1).min(answers.len() - 1));
            answers[at].clone()
        })
    }

    pub(crate) fn set_down(&self, down: bool) {
        self.down.set(down);
    }

    pub(crate) fn set_slower(&self, by: Duration) {
        self.slower.set(by);
    }

    pub(crate) fn answer(&self, seen: &Seen) -> Answer {
        if self.down.get() {
            return Answer::lost().after(self.slower.get());
        }
        let answer = (self.answer)(seen);
        let after = answer.after.saturating_add(self.slower.get());
        answer.after(after)
    }
}
