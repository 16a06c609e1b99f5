//! Functions of the host beyond the ABI, by name (`selvedge.…`). Other hosts do not have them: fall back on
//! [`ForeignError::Unknown`].

use crate::host::{self, Status};

/// Why a foreign function gave nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForeignError {
    /// The host has no function of that name.
    #[error("the host has no such function")]
    Unknown,
    /// The function does not understand the argument.
    #[error("the argument is not understood")]
    BadArgument,
    /// The function failed.
    #[error("the function failed")]
    Failed,
}

/// Calls a function of the host. What the bytes mean is between the two.
///
/// # Errors
/// See [`ForeignError`].
pub fn call(name: &str, argument: &[u8]) -> Result<Vec<u8>, ForeignError> {
    host::current().foreign(name, argument).map_err(|status| match status {
        Status::NotFound => ForeignError::Unknown,
        Status::BadArgument => ForeignError::BadArgument,
        _ => ForeignError::Failed,
    })
}
