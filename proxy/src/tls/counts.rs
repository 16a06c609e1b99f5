//! How handshakes end.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rustls::CertificateError;

/// Counts of one node, as long as the process.
#[derive(Debug, Default)]
pub(crate) struct HandshakeCounts {
    ends: [AtomicU64; End::ALL.len()],
    refusals: [AtomicU64; Refusal::ALL.len()],
}

/// How a handshake ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Keys are agreed on.
    Done,
    /// One of both sides gave up.
    Failed,
    /// It took too long.
    Timeout,
}

/// Why the node has refused one that could have been done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No certificate is for the name that was asked for.
    Name,
    /// The client's certificate is not valid now.
    Expired,
    /// An authority has revoked the client's certificate.
    Revoked,
    /// No authority vouches for the client's certificate.
    Authority,
    /// The client's key is none of those that are let in.
    Pin,
    /// Something else is wrong with the client's certificate.
    Certificate,
}

impl End {
    const ALL: [(Self, &'static str); 3] = [(Self::Done, "done"), (Self::Failed, "failed"), (Self::Timeout, "timeout")];
}

impl Refusal {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Name, "name"),
        (Self::Expired, "expired"),
        (Self::Revoked, "revoked"),
        (Self::Authority, "authority"),
        (Self::Pin, "pin"),
        (Self::Certificate, "certificate"),
    ];

    /// Why a client's certificate is refused.
    pub(super) fn of(error: &rustls::Error) -> Self {
        use CertificateError as E;
        match error {
            rustls::Error::InvalidCertificate(
                E::Expired | E::ExpiredContext { .. } | E::NotValidYet | E::NotValidYetContext { .. },
            ) => Self::Expired,
            rustls::Error::InvalidCertificate(E::Revoked) => Self::Revoked,
            rustls::Error::InvalidCertificate(E::UnknownIssuer | E::BadSignature | E::UnknownRevocationStatus) => {
                Self::Authority
            }
            rustls::Error::InvalidCertificate(E::ApplicationVerificationFailure) => Self::Pin,
            _ => Self::Certificate,
        }
    }
}

impl HandshakeCounts {
    /// A handshake has ended.
    pub(crate) fn ended(&self, end: End) {
        self.ends[end as usize].fetch_add(1, Relaxed);
    }

    /// A client was refused; its handshake fails.
    pub(super) fn refused(&self, why: Refusal) {
        self.refusals[why as usize].fetch_add(1, Relaxed);
    }

    /// How many handshakes have ended how.
    pub(crate) fn ends(&self) -> impl Iterator<Item = (&'static str, u64)> {
        End::ALL.iter().map(|(_, name)| *name).zip(self.ends.iter().map(|count| count.load(Relaxed)))
    }

    /// How many clients were refused why.
    pub(crate) fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Refusal::ALL.iter().map(|(_, name)| *name).zip(self.refusals.iter().map(|count| count.load(Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_counted_under_its_own_name() {
        for (end, name) in End::ALL {
            let counts = HandshakeCounts::default();
            counts.ended(end);
            assert_eq!(counts.ends().filter(|(_, count)| *count == 1).collect::<Vec<_>>(), [(name, 1)]);
        }
        for (why, name) in Refusal::ALL {
            let counts = HandshakeCounts::default();
            counts.refused(why);
            assert_eq!(counts.refusals().filter(|(_, count)| *count == 1).collect::<Vec<_>>(), [(name, 1)]);
        }
    }
}
