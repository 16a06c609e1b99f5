//! One TCP stream context: the callbacks of one client's connection on one VM.

use std::future::Future;
use std::sync::Arc;

use crate::effects::{Action, Arrival, Effects, Outcome};
use crate::exchange::Exchange;
use crate::module::Phases;
use crate::plugin::Plugin;
use crate::stream::Stream;
use crate::vm::{CallError, Callback, Callbacks};

/// Who ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Peer {
    /// The proxy.
    Local = 1,
    /// The other side: the client, or the upstream.
    Remote = 2,
}

/// One stream context in one VM, for one connection of a TCP client.
///
/// As with [`Stream`], each callback runs the guest to its end, and callbacks the module does not have come to [`Action::Continue`]. Of the
/// exchange the guest sees buffers ([`crate::Buffer::Downstream`], [`crate::Buffer::Upstream`]) and properties; there are no header maps.
#[derive(Debug)]
pub struct TcpStream(Stream);

impl TcpStream {
    /// Opens a stream context on a worker's VM: see [`Plugin::open_stream`].
    ///
    /// # Errors
    /// As [`Plugin::open_stream`].
    pub fn open(plugin: &Arc<Plugin>, worker: usize) -> Result<Self, CallError> {
        plugin.open_stream(worker).map(Self)
    }

    /// A client has connected.
    ///
    /// # Errors
    /// [`CallError`]: the guest failed, or its VM had before.
    pub fn on_new_connection(&mut self, x: &mut dyn Exchange) -> Result<Outcome, CallError> {
        if !self.0.phases().contains(Phases::NEW_CONNECTION) {
            return Ok(Outcome::proceed());
        }
        let context = self.0.context;
        self.0.run(x, |c| &mut c.new_connection, context)
    }

    /// `len` bytes that the client has sent are held for the filter. `end`: they are the last.
    ///
    /// # Errors
    /// As [`TcpStream::on_new_connection`].
    pub fn on_downstream_data(&mut self, x: &mut dyn Exchange, len: usize, end: bool) -> Result<Outcome, CallError> {
        self.on_data(x, len, end, Phases::DOWNSTREAM_DATA, |c| &mut c.downstream_data)
    }

    /// `len` bytes that the upstream has sent are held for the filter. `end`: they are the last.
    ///
    /// # Errors
    /// As [`TcpStream::on_new_connection`].
    pub fn on_upstream_data(&mut self, x: &mut dyn Exchange, len: usize, end: bool) -> Result<Outcome, CallError> {
        self.on_data(x, len, end, Phases::UPSTREAM_DATA, |c| &mut c.upstream_data)
    }

    /// The client's connection has ended. The outcome's action has no meaning.
    ///
    /// # Errors
    /// As [`TcpStream::on_new_connection`].
    pub fn on_downstream_close(&mut self, x: &mut dyn Exchange, by: Peer) -> Result<Outcome, CallError> {
        let phase = Phases::DOWNSTREAM_CLOSE;
        self.on_close(x, by, phase, |c| &mut c.downstream_close)
    }

    /// The connection to the upstream has ended. The outcome's action has no meaning.
    ///
    /// # Errors
    /// As [`TcpStream::on_new_connection`].
    pub fn on_upstream_close(&mut self, x: &mut dyn Exchange, by: Peer) -> Result<Outcome, CallError> {
        let phase = Phases::UPSTREAM_CLOSE;
        self.on_close(x, by, phase, |c| &mut c.upstream_close)
    }

    /// As [`Stream::on_arrival`].
    ///
    /// # Errors
    /// As [`TcpStream::on_new_connection`].
    pub fn on_arrival(&mut self, x: &mut dyn Exchange, arrival: Arrival) -> Result<Outcome, CallError> {
        self.0.on_arrival(x, arrival)
    }

    /// The connection is over: runs the guest's done, log and delete callbacks. As [`Stream::finish`].
    ///
    /// # Errors
    /// As [`Stream::finish`].
    pub fn finish(&mut self, x: &mut dyn Exchange) -> Result<(), CallError> {
        self.0.finish(x)
    }

    /// As [`Stream::mail`].
    pub fn mail(&self) -> impl Future<Output = Effects> + Send + use<> {
        self.0.mail()
    }

    fn on_data(
        &mut self,
        x: &mut dyn Exchange,
        len: usize,
        end: bool,
        phase: Phases,
        callback: impl FnOnce(&mut Callbacks) -> &mut Callback<(u32, u32, u32), u32>,
    ) -> Result<Outcome, CallError> {
        if !self.0.phases().contains(phase) {
            return Ok(Outcome::proceed());
        }
        let arguments = (self.0.context, u32::try_from(len).unwrap_or(u32::MAX), u32::from(end));
        self.0.run(x, callback, arguments)
    }

    /// A callback without a verdict.
    fn on_close(
        &mut self,
        x: &mut dyn Exchange,
        by: Peer,
        phase: Phases,
        callback: impl FnOnce(&mut Callbacks) -> &mut Callback<(u32, u32), ()>,
    ) -> Result<Outcome, CallError> {
        if !self.0.phases().contains(phase) {
            return Ok(Outcome::proceed());
        }
        let context = self.0.context;
        let mut vm = self.0.vm.lock()?;
        let vm = &mut *vm;
        let callback = callback(&mut vm.callbacks);
        vm.core.lend(context, Some(x), |core| {
            core.call(callback, (context, by as u32))?;
            Ok(Outcome { action: Action::Continue, effects: core.take_effects() })
        })
    }
}
