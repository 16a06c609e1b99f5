//! The limits of what clients may send (`listeners.*.limits`): their names, what a client is told, and the error that says so.

use pingora::{Error, ErrorType};

use crate::telemetry::counters::Counters;

/// A limit that a client did not keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    /// The header section has too many bytes.
    HeaderSize,
    /// It has too many fields.
    HeaderCount,
    /// The target is too long.
    UriLength,
    /// The body is too long, as announced or as it came.
    Body,
    /// The header was not complete in time.
    HeaderTimeout,
    /// Too many HTTP/2 streams were given up.
    H2Resets,
}

impl Limit {
    /// All of them, in the order of the metrics page.
    pub(crate) const ALL: [Self; 6] =
        [Self::HeaderSize, Self::HeaderCount, Self::UriLength, Self::Body, Self::HeaderTimeout, Self::H2Resets];

    /// Its key in the configuration: the label of the counter, and what `Proxy-Status` names.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::HeaderSize => "header_size",
            Self::HeaderCount => "header_count",
            Self::UriLength => "uri_length",
            Self::Body => "body",
            Self::HeaderTimeout => "header_timeout",
            Self::H2Resets => "h2_resets",
        }
    }

    /// What the client is answered, where it can be.
    fn status(self) -> u16 {
        match self {
            Self::HeaderSize | Self::HeaderCount => 431, // RFC 6585, 5
            Self::UriLength => 414,                      // RFC 9110, 15.5.15
            Self::Body => 413,                           // RFC 9110, 15.5.14
            Self::HeaderTimeout => 408,                  // RFC 9110, 15.5.9
            Self::H2Resets => 400,
        }
    }

    /// Counts it, and makes the error that ends the request.
    pub(crate) fn exceeded(self, counters: &Counters) -> Box<Error> {
        counters.limit(self);
        Error::explain(ErrorType::CustomCode(self.name(), self.status()), "beyond a limit of the listener").into_down()
    }

    /// The status and the name of the limit an error is about.
    pub(crate) fn of(error: &Error) -> Option<(u16, &'static str)> {
        match error.etype() {
            ErrorType::CustomCode(name, status) => Some((*status, name)),
            _ => None,
        }
    }
}
