//! How one of several endpoints is chosen.

pub(super) mod key;

pub(super) mod ketama;
pub(super) mod maglev;

pub(super) mod latency;

use std::sync::Arc;

use selvedge_config::{Balance, HashAlgorithm};

use self::ketama::Ketama;
use self::maglev::Maglev;
use super::endpoint::Endpoint;

/// Gives keys to endpoints, all of them, whether they may be sent requests or not: so only the keys of one that may not move.
pub(super) enum Table {
    Maglev(Maglev),
    Ketama(Ketama),
}

impl Table {
    /// The table of `endpoints`, where balancing needs one.
    pub(super) fn of(balance: &Balance, endpoints: &[Arc<Endpoint>]) -> Option<Arc<Self>> {
        let Balance::ConsistentHash(hash) = balance else { return None };
        let named: Vec<_> = endpoints.iter().map(|endpoint| (endpoint.address(), endpoint.weight())).collect();
        Some(Arc::new(match hash.algorithm {
            HashAlgorithm::Maglev => Self::Maglev(Maglev::new(&named)),
            HashAlgorithm::Ketama => Self::Ketama(Ketama::new(&named)),
        }))
    }

    /// The first endpoint on the key's way that is acceptable.
    pub(super) fn seek(&self, key: u64, acceptable: impl Fn(usize) -> bool) -> Option<usize> {
        match self {
            Self::Maglev(table) => table.seek(key, acceptable),
            Self::Ketama(ring) => ring.seek(key, acceptable),
        }
    }
}
