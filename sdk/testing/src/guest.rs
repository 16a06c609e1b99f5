//! A filter on a host, as the tester drives it: natively or compiled.

use std::time::Duration;

use selvedge_sdk::Reply;

use crate::exchange::Exchange;
use crate::seen::Seen;
use crate::store::Store;

/// A started filter. What fails says why.
pub(crate) trait Guest {
    fn open(&self) -> Result<Box<dyn Stream>, String>;
    fn tick(&self) -> Result<(), String>;
    /// What the filter asked for; `None`: no ticks.
    fn tick_period(&self) -> Option<Duration>;
    /// Callouts of no stream, sent since this was last asked: at the start, in a tick.
    fn root_callouts(&self) -> Vec<Callout>;
    fn root_answered(&self, token: u32, answer: Result<&Reply, NoAnswer>) -> Result<(), String>;
    /// All metrics, with what the test sees as their values.
    fn metrics(&self) -> Vec<(String, u64)>;
    fn store(&self) -> &dyn Store;
}

/// One stream of it. Each callback may read and change the exchange.
pub(crate) trait Stream {
    fn request_headers(&mut self, exchange: &mut Exchange, end: bool) -> Result<Step, String>;
    fn request_body(&mut self, exchange: &mut Exchange, held: usize, end: bool) -> Result<Step, String>;
    fn response_headers(&mut self, exchange: &mut Exchange, end: bool) -> Result<Step, String>;
    fn response_body(&mut self, exchange: &mut Exchange, held: usize, end: bool) -> Result<Step, String>;
    fn request_trailers(&mut self, exchange: &mut Exchange) -> Result<Step, String>;
    fn response_trailers(&mut self, exchange: &mut Exchange) -> Result<Step, String>;
    fn answered(
        &mut self,
        exchange: &mut Exchange,
        token: u32,
        answer: Result<&Reply, NoAnswer>,
    ) -> Result<Step, String>;
    fn finish(&mut self, exchange: &mut Exchange) -> Result<(), String>;
    /// Whether the request's, the response's body callbacks are to be made.
    fn bodies(&self) -> (bool, bool);
}

/// What a callback came to.
#[derive(Default)]
pub(crate) struct Step {
    pub(crate) pause: bool,
    pub(crate) reply: Option<Reply>,
    pub(crate) resume_request: bool,
    pub(crate) resume_response: bool,
    /// The exchange is to be reset.
    pub(crate) close: bool,
    pub(crate) callouts: Vec<Callout>,
}

/// Why a callout gets no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// There is no connection.
    Lost,
    /// Its time is up.
    Late,
}

/// A callout that waits for its answer.
pub(crate) struct Callout {
    pub(crate) token: u32,
    pub(crate) timeout: Duration,
    pub(crate) seen: Seen,
}
