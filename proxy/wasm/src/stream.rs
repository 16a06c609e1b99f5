//! One stream context: the callbacks of one HTTP exchange on one VM.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use crate::effects::{Action, Arrival, Effects, Hold, Outcome};
use crate::exchange::{Exchange, HeaderMap};
use crate::module::{Module, Phases};
use crate::root_loop::Ticks;
use crate::vm::{CallError, Callback, Callbacks, HeadersCallback, ROOT, VmCell};

/// How long to leave a busy VM alone.
const BUSY: Duration = Duration::from_millis(1);

/// One stream context in one VM.
///
/// Each callback runs the guest to its end and returns what it came to. Callbacks the module does not have (or does not want, see
/// [`Stream::phases`]) come to [`Action::Continue`] at the price of one test. After an error other than
/// [`CallError::Busy`] the stream is of no more use: its VM is poisoned.
///
/// Dropped without [`Stream::finish`], the guest's done, log and delete callbacks run without an exchange.
#[derive(Debug)]
pub struct Stream {
    pub(crate) vm: Arc<VmCell>,
    pub(crate) context: u32,
    phases: Phases,
    tells_end_with_headers: bool,
    finished: bool,
    /// It has sent something out.
    calls: bool,
    /// What [`VmCell::posted`] was when there was no mail.
    posted: usize,
    /// The worker's root loop, when the VM is this stream's own: it sends what the guest still wants sent when it ends.
    heir: Option<Arc<Ticks>>,
    /// It is counted among the streams that are open in its VM.
    counted: bool,
}

impl Stream {
    pub(crate) fn new(vm: Arc<VmCell>, context: u32, module: &Module, heir: Option<Arc<Ticks>>) -> Self {
        let tells_end_with_headers = module.abi().tells_end_with_headers();
        Self {
            vm,
            context,
            phases: module.phases(),
            tells_end_with_headers,
            finished: false,
            calls: false,
            posted: 0,
            heir,
            counted: false,
        }
    }

    /// Counts it among the streams that are open in its VM, until it is closed: where there are several VMs, and the idlest is wanted.
    pub(crate) fn counted(mut self) -> Self {
        self.vm.live().fetch_add(1, Ordering::Relaxed);
        self.counted = true;
        self
    }

    fn uncount(&mut self) {
        if std::mem::take(&mut self.counted) {
            self.vm.live().fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Gives a stream its id that has none yet, because neither the guest nor its VM keeps anything for it.
    pub(crate) fn numbered(mut self, number: u64) -> Self {
        if self.context == ROOT {
            let beyond_root = number % u64::from(u32::MAX - ROOT);
            self.context = ROOT + 1 + u32::try_from(beyond_root).unwrap_or_default();
        }
        self
    }

    /// Whether a callback would end in [`CallError::Busy`] now, or wait for a moment.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.vm.is_busy()
    }

    /// The callbacks that have to be run; the others need not be called (and may be).
    #[must_use]
    pub fn phases(&self) -> Phases {
        self.phases
    }

    /// Request headers are there. `end`: nothing follows them.
    ///
    /// # Errors
    /// [`CallError`]: the guest failed, or its VM had before.
    pub fn on_request_headers(&mut self, x: &mut dyn Exchange, end: bool) -> Result<Outcome, CallError> {
        self.on_headers(x, end, Phases::REQUEST_HEADERS, HeaderMap::Request, |c| &mut c.request_headers)
    }

    /// `len` bytes of the request body are buffered. `end`: they are the last.
    ///
    /// # Errors
    /// As [`Stream::on_request_headers`].
    pub fn on_request_body(&mut self, x: &mut dyn Exchange, len: usize, end: bool) -> Result<Outcome, CallError> {
        self.on_body(x, len, end, Phases::REQUEST_BODY, |c| &mut c.request_body)
    }

    /// Request trailers are there.
    ///
    /// # Errors
    /// As [`Stream::on_request_headers`].
    pub fn on_request_trailers(&mut self, x: &mut dyn Exchange) -> Result<Outcome, CallError> {
        let (phase, map) = (Phases::REQUEST_TRAILERS, HeaderMap::RequestTrailers);
        self.on_trailers(x, phase, map, |c| &mut c.request_trailers)
    }

    /// Response headers are there. `end`: nothing follows them.
    ///
    /// # Errors
    /// As [`Stream::on_request_headers`].
    pub fn on_response_headers(&mut self, x: &mut dyn Exchange, end: bool) -> Result<Outcome, CallError> {
        self.on_headers(x, end, Phases::RESPONSE_HEADERS, HeaderMap::Response, |c| &mut c.response_headers)
    }

    /// `len` bytes of the response body are buffered. `end`: they are the last.
    ///
    /// # Errors
    /// As [`Stream::on_request_headers`].
    pub fn on_response_body(&mut self, x: &mut dyn Exchange, len: usize, end: bool) -> Result<Outcome, CallError> {
        self.on_body(x, len, end, Phases::RESPONSE_BODY, |c| &mut c.response_body)
    }

    /// Response trailers are there.
    ///
    /// # Errors
    /// As [`Stream::on_request_headers`].
    pub fn on_response_trailers(&mut self, x: &mut dyn Exchange) -> Result<Outcome, CallError> {
        let (phase, map) = (Phases::RESPONSE_TRAILERS, HeaderMap::ResponseTrailers);
        self.on_trailers(x, phase, map, |c| &mut c.response_trailers)
    }

    /// Something came back for this stream. The outcome's action is always [`Action::Pause`]: an answer by itself releases nothing, only
    /// the guest's resumes among the effects do. What the guest no longer knows is ignored.
    ///
    /// # Errors
    /// As [`Stream::on_request_headers`].
    pub fn on_arrival(&mut self, x: &mut dyn Exchange, arrival: Arrival) -> Result<Outcome, CallError> {
        let effects = self.vm.lock()?.deliver(self.context, Some(x), arrival)?;
        self.calls |= !effects.outgoing.is_empty();
        Ok(Outcome { action: Action::Pause, effects })
    }

    /// The exchange is over: runs the guest's done, log and delete callbacks. A guest that fails here is logged; nothing it asks for can
    /// change the exchange, but HTTP callouts are still sent (by the tick loop).
    ///
    /// # Errors
    /// [`CallError::Busy`] only: to be called again. A second call after success does nothing.
    pub fn finish(&mut self, x: &mut dyn Exchange) -> Result<(), CallError> {
        self.close(Some(x))
    }

    /// Whether [`Stream::mail`] has something for this stream. That the VM has died is told by the next callback, and here only to those
    /// who look after other mail. Costs one load while the streams of the VM send each other nothing.
    #[must_use]
    #[inline]
    pub fn has_mail(&mut self) -> bool {
        !self.phases.contains(Phases::STATELESS) && self.vm.posted() != self.posted && self.looks_for_mail()
    }

    fn looks_for_mail(&mut self) -> bool {
        let posted = self.vm.posted();
        // Busy: to be looked at again.
        let Ok(vm) = self.vm.lock() else { return true };
        let any = vm.has_mail(self.context);
        drop(vm);
        if !any {
            self.posted = posted;
        }
        any
    }

    /// Effects queued for this stream by calls of other contexts: a tick, or another stream, that made this one its effective context.
    /// Waits for ever when there are none. Cancel safe: what was not received stays queued.
    pub fn mail(&self) -> impl Future<Output = Effects> + Send + use<> {
        let (vm, context) = (self.vm.clone(), self.context);
        async move {
            loop {
                let mail = poll_fn(|cx| {
                    if vm.is_busy() {
                        return Poll::Ready(None); // what it is busy with may be mail for us
                    }
                    vm.lock().map_or(Poll::Ready(None), |mut vm| vm.poll_mail(context, cx.waker()).map(Some))
                });
                match mail.await {
                    Some(mail) => return mail,
                    None => tokio::time::sleep(BUSY).await,
                }
            }
        }
    }

    fn on_headers(
        &mut self,
        x: &mut dyn Exchange,
        end: bool,
        phase: Phases,
        map: HeaderMap,
        callback: fn(&mut Callbacks) -> &mut HeadersCallback,
    ) -> Result<Outcome, CallError> {
        if !self.phases.contains(phase) {
            return Ok(Outcome::proceed());
        }
        let (context, count) = (self.context, x.count(map));
        let hold = |code| if matches!(code, 3 | 4) { Hold::All } else { Hold::Usual };
        if self.tells_end_with_headers {
            self.run_and_hold(x, |c| &mut callback(c).with_end, (context, count, u32::from(end)), hold)
        } else {
            self.run_and_hold(x, |c| &mut callback(c).without_end, (context, count), hold)
        }
    }

    fn on_body(
        &mut self,
        x: &mut dyn Exchange,
        len: usize,
        end: bool,
        phase: Phases,
        callback: impl FnOnce(&mut Callbacks) -> &mut Callback<(u32, u32, u32), u32>,
    ) -> Result<Outcome, CallError> {
        if !self.phases.contains(phase) {
            return Ok(Outcome::proceed());
        }
        let arguments = (self.context, u32::try_from(len).unwrap_or(u32::MAX), u32::from(end));
        let hold = |code| if code == 3 { Hold::Discard } else { Hold::Usual };
        self.run_and_hold(x, callback, arguments, hold)
    }

    fn on_trailers(
        &mut self,
        x: &mut dyn Exchange,
        phase: Phases,
        map: HeaderMap,
        callback: impl FnOnce(&mut Callbacks) -> &mut Callback<(u32, u32), u32>,
    ) -> Result<Outcome, CallError> {
        if !self.phases.contains(phase) {
            return Ok(Outcome::proceed());
        }
        let arguments = (self.context, x.count(map));
        self.run(x, callback, arguments)
    }

    pub(crate) fn run<P: wasmtime::WasmParams>(
        &mut self,
        x: &mut dyn Exchange,
        callback: impl FnOnce(&mut Callbacks) -> &mut Callback<P, u32>,
        arguments: P,
    ) -> Result<Outcome, CallError> {
        self.run_and_hold(x, callback, arguments, |_| Hold::Usual)
    }

    /// Runs a callback; `hold` knows what it means by the pause it returns.
    fn run_and_hold<P: wasmtime::WasmParams>(
        &mut self,
        x: &mut dyn Exchange,
        callback: impl FnOnce(&mut Callbacks) -> &mut Callback<P, u32>,
        arguments: P,
        hold: impl FnOnce(u32) -> Hold,
    ) -> Result<Outcome, CallError> {
        let mut vm = self.vm.lock()?;
        let vm = &mut *vm;
        let callback = callback(&mut vm.callbacks);
        let calls = &mut self.calls;
        vm.core.lend(self.context, Some(x), |core| {
            let returned = core.call(callback, arguments)?;
            let mut effects = core.take_effects();
            *calls |= !effects.outgoing.is_empty();
            let action = match returned {
                None | Some(0) => Action::Continue,
                Some(code) => {
                    effects.hold = hold(code);
                    Action::Pause
                }
            };
            Ok(Outcome { action, effects })
        })
    }

    fn close(&mut self, x: Option<&mut dyn Exchange>) -> Result<(), CallError> {
        if self.finished {
            return Ok(());
        }
        let stateless = self.phases.contains(Phases::STATELESS);
        if stateless && !self.phases.contains(Phases::LOG) && !self.calls && self.heir.is_none() {
            self.finished = true;
            self.uncount();
            return Ok(()); // It was never told of the stream.
        }
        let mut vm = self.vm.lock()?;
        self.finished = true;
        vm.close_stream(self.context, x, self.phases);
        if let Some(heir) = &self.heir {
            let outgoing = vm.take_root_outgoing();
            if !outgoing.is_empty() {
                heir.adopt(outgoing);
            }
        }
        drop(vm);
        self.uncount();
        Ok(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.close(None).is_err() {
            self.uncount();
            self.vm.close_when_free(self.context, self.phases);
        }
    }
}
