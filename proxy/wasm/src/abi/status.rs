//! Status numbers, and how a hostcall fails.

/// What a hostcall answers, with the ABI's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Status {
    Ok = 0,
    NotFound = 1,
    BadArgument = 2,
    SerializationFailure = 3,
    ParseFailure = 4,
    InvalidMemoryAccess = 6,
    Empty = 7,
    CasMismatch = 8,
    InternalFailure = 10,
}

impl Status {
    /// What the operator is told when the call has no reason of its own to give.
    pub(crate) fn usual_reason(self) -> &'static str {
        match self {
            Self::Ok => "none",
            Self::NotFound => "there is none",
            Self::BadArgument => "the arguments make no sense",
            Self::SerializationFailure | Self::ParseFailure => "cannot be decoded",
            Self::InvalidMemoryAccess => "outside of the guest's memory",
            Self::Empty => "nothing waits",
            Self::CasMismatch => "changed since it was read",
            Self::InternalFailure => "failed",
        }
    }

    /// Whether this is an answer like any other, rather than a mistake of the guest or a failure.
    pub(crate) fn is_expected(self) -> bool {
        matches!(self, Self::Ok | Self::NotFound | Self::Empty | Self::CasMismatch)
    }

    /// The number the guest gets.
    pub(crate) fn code(self) -> u32 {
        self as u32
    }
}

/// How a hostcall ends when it does not succeed.
#[derive(Debug)]
pub(crate) enum Fail {
    /// The guest gets this number and lives on.
    Status(Status),
    /// As `Status`, with a reason for the debug log: these usually make the guest panic, and it will not say why.
    Because(Status, &'static str),
    /// The guest call ends here.
    Trap(wasmtime::Error),
}

impl From<Status> for Fail {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

/// The result of a hostcall's body.
pub(crate) type Called<T = ()> = Result<T, Fail>;

/// A `BAD_ARGUMENT` with its reason.
pub(crate) fn bad(reason: &'static str) -> Fail {
    Fail::Because(Status::BadArgument, reason)
}
