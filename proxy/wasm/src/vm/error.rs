//! How a guest call fails.

use std::time::Duration;

/// Why a guest call failed, or was not made ([`CallError::Busy`], [`CallError::Unavailable`], [`CallError::Exhausted`]). A failed call poisons
/// its VM: the other streams in it will see [`CallError::Poisoned`], the next new stream gets another VM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The guest trapped: it panicked, or did what WebAssembly forbids.
    #[error("{callback} trapped: {message}")]
    Trap {
        /// The callback that was running.
        callback: &'static str,
        /// The trap, the innermost functions, and the last error the guest logged in this call.
        message: String,
    },
    /// The guest used more CPU than [`crate::Limits::cpu`].
    #[error("{callback} used more than {limit:?} of CPU time")]
    Cpu {
        /// The callback that was running.
        callback: &'static str,
        /// How much it was allowed.
        limit: Duration,
    },
    /// The guest took longer than [`crate::Limits::deadline`].
    #[error("{callback} took longer than {limit:?}")]
    Deadline {
        /// The callback that was running.
        callback: &'static str,
        /// How long it was allowed.
        limit: Duration,
    },
    /// The guest asked for more than [`crate::Limits::memory`] and did not survive the refusal.
    #[error("{callback} needed more than {limit} bytes of memory")]
    Memory {
        /// The callback that was running.
        callback: &'static str,
        /// The ceiling in bytes.
        limit: u64,
    },
    /// The guest made more than [`crate::Limits::hostcalls`] hostcalls.
    #[error("{callback} made more than {limit} hostcalls")]
    Hostcalls {
        /// The callback that was running.
        callback: &'static str,
        /// The budget.
        limit: u32,
    },
    /// The guest ran long while too many others did.
    #[error("{callback} ran long while too many other calls did")]
    Crowded {
        /// The callback that was running.
        callback: &'static str,
    },
    /// Nothing has failed: the VM is running a call that takes long, on another thread. The call was not made; try again in a millisecond.
    #[error("the VM is busy")]
    Busy,
    /// Another call killed this stream's VM before.
    #[error("the VM died in another call")]
    Poisoned,
    /// The plugin keeps failing: no stream is opened for a while.
    #[error("held back after repeated failures, next try in {retry_in:?}")]
    Unavailable {
        /// When streams are opened again.
        retry_in: Duration,
    },
    /// [`crate::EngineOptions::instances`] are all in use.
    #[error("no instance is free")]
    Exhausted,
}

/// Marks the error of a hostcall beyond the budget.
#[derive(Debug, thiserror::Error)]
#[error("hostcall budget used up")]
pub(crate) struct HostcallsUsedUp;
