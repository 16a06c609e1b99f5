//! What is counted about other nodes. Kept over reloads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

/// What became of a request that was sent to another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Met {
    /// It had the response.
    Hit,
    /// It fetched the response.
    Miss,
    /// It said that it cannot answer: it knows the route otherwise, or could not reach the origin. Or its answer is out of date.
    Refused,
    /// It was alive, and its response did not begin in time.
    Late,
    /// It could not be reached, broke off, or was silent.
    Failed,
}

/// Each of them, with its name in metrics.
pub(crate) const MET: [(Met, &str); 5] =
    [(Met::Hit, "hit"), (Met::Miss, "miss"), (Met::Refused, "refused"), (Met::Late, "late"), (Met::Failed, "failed")];

/// What became of a request that another node sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Served {
    /// It was answered, with what the origin says or what is stored.
    Answered,
    /// Its route is not known here, or is another.
    NoRoute,
    /// It had been here already.
    Loop,
    /// A message in the name of a node whose certificate this is not.
    WrongName,
}

/// Each of them, with its name in metrics.
pub(crate) const SERVED: [(Served, &str); 4] = [
    (Served::Answered, "answered"),
    (Served::NoRoute, "no_route"),
    (Served::Loop, "loop"),
    (Served::WrongName, "wrong_name"),
];

/// Of how many nodes something is counted at most: names that lead to addresses may lead to many over time.
const NODES_MAX: usize = 4096;

type Node = (&'static str, String);

/// The counters.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    met: Mutex<BTreeMap<Node, Arc<[AtomicU64; MET.len()]>>>,
    served: [AtomicU64; SERVED.len()],
    /// Requests that were sent to the origin because no node answered.
    direct: AtomicU64,
}

impl Counts {
    pub(crate) fn met(&self, circle: &'static str, node: &str, met: Met) {
        let Some(place) = MET.iter().position(|(one, _)| *one == met) else { return };
        let mut all = self.met.lock();
        let key = (circle, node.to_owned());
        if all.len() >= NODES_MAX && !all.contains_key(&key) {
            return;
        }
        all.entry(key).or_default()[place].fetch_add(1, Relaxed);
    }

    pub(crate) fn served(&self, served: Served) {
        if let Some(place) = SERVED.iter().position(|(one, _)| *one == served) {
            self.served[place].fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn went_directly(&self) {
        self.direct.fetch_add(1, Relaxed);
    }

    /// Circle, node, and how often each of [`MET`].
    pub(crate) fn each_met(&self) -> Vec<(Node, [u64; MET.len()])> {
        let all = self.met.lock();
        all.iter().map(|(node, counts)| (node.clone(), counts.each_ref().map(|count| count.load(Relaxed)))).collect()
    }

    /// How often each of [`SERVED`].
    pub(crate) fn each_served(&self) -> [u64; SERVED.len()] {
        self.served.each_ref().map(|count| count.load(Relaxed))
    }

    pub(crate) fn direct(&self) -> u64 {
        self.direct.load(Relaxed)
    }
}
