//! The limits of what clients may send (`listeners.*.limits`): their names, what a client is told, and the error that says so.

use std::io;

use pingora::{Error, ErrorSource, ErrorType};

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
    /// The body came too slowly.
    UploadRate,
    /// The request was not whole in time.
    RequestTime,
    /// Nothing came, or nothing was taken, for too long within a request.
    IdleTimeout,
    /// Too many HTTP/2 streams were given up.
    H2Resets,
}

impl Limit {
    /// All of them, in the order of the metrics page.
    pub(crate) const ALL: [Self; 9] = [
        Self::HeaderSize,
        Self::HeaderCount,
        Self::UriLength,
        Self::Body,
        Self::HeaderTimeout,
        Self::UploadRate,
        Self::RequestTime,
        Self::IdleTimeout,
        Self::H2Resets,
    ];

    /// Its key in the configuration: the label of the counter, and what `Proxy-Status` names.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::HeaderSize => "header_size",
            Self::HeaderCount => "header_count",
            Self::UriLength => "uri_length",
            Self::Body => "body",
            Self::HeaderTimeout => "header_timeout",
            Self::UploadRate => "upload_rate",
            Self::RequestTime => "request_time",
            Self::IdleTimeout => "idle_timeout",
            Self::H2Resets => "h2_resets",
        }
    }

    /// What the client is answered, where it can be.
    fn status(self) -> u16 {
        match self {
            Self::HeaderSize | Self::HeaderCount => 431, // RFC 6585, 5
            Self::UriLength => 414,                      // RFC 9110, 15.5.15
            Self::Body => 413,                           // RFC 9110, 15.5.14
            Self::HeaderTimeout | Self::UploadRate | Self::RequestTime | Self::IdleTimeout => 408, // RFC 9110, 15.5.9
            Self::H2Resets => 400,
        }
    }

    /// Counts it, and makes the error that ends the request.
    pub(crate) fn exceeded(self, counters: &Counters) -> Box<Error> {
        counters.limit(self);
        self.error()
    }

    /// The error that ends the request, for one that has been counted.
    pub(crate) fn error(self) -> Box<Error> {
        Error::explain(ErrorType::CustomCode(self.name(), self.status()), "beyond a limit of the listener").into_down()
    }

    /// Whether a client was silent for too long, or took nothing, as Pingora says it.
    pub(crate) fn is_idle(error: &Error) -> bool {
        *error.esource() == ErrorSource::Downstream
            && matches!(error.etype(), ErrorType::ReadTimedout | ErrorType::WriteTimedout)
    }

    /// The status and the name of the limit an error is about.
    pub(crate) fn of(error: &Error) -> Option<(u16, &'static str)> {
        match error.etype() {
            ErrorType::CustomCode(name, status) => Some((*status, name)),
            ErrorType::ReadError => {
                let Late(limit) = error.root_cause().downcast_ref::<io::Error>()?.get_ref()?.downcast_ref()?;
                Some((limit.status(), limit.name()))
            }
            _ => None,
        }
    }
}

/// Why nothing more is read of a request: what reading its body fails with.
#[derive(Debug, thiserror::Error)]
#[error("the client is too slow: {}", .0.name())]
pub(crate) struct Late(pub(crate) Limit);
