//! The endpoints of an upstream as requests choose among them. A snapshot: it is never changed, only replaced.

use std::sync::Arc;

use super::endpoint::Endpoint;
use super::schedule::interleave;
use super::{Ask, NoEndpoint};

/// The snapshot.
pub(super) struct Members {
    all: Vec<Arc<Endpoint>>,
    /// The turns of those that may be sent requests, by their place in `all`: one of weight 3 has three turns.
    schedule: Vec<u16>,
}

impl Members {
    pub(super) fn new(all: Vec<Arc<Endpoint>>) -> Self {
        let weights: Vec<u16> =
            all.iter().map(|endpoint| if endpoint.is_usable() { endpoint.weight() } else { 0 }).collect();
        Self { schedule: interleave(&weights), all }
    }

    /// Every endpoint, whether it may be sent requests or not.
    pub(super) fn all(&self) -> &[Arc<Endpoint>] {
        &self.all
    }

    /// The endpoint whose turn it is, or the next that is not to be avoided.
    pub(super) fn pick(&self, turn: usize, ask: &Ask<'_>) -> Result<&Arc<Endpoint>, NoEndpoint> {
        let turns = self.schedule.len();
        if turns == 0 {
            return Err(if self.all.is_empty() { NoEndpoint::NoneResolved } else { NoEndpoint::AllUnhealthy });
        }
        let at = |turn: usize| &self.all[usize::from(self.schedule[turn % turns])];
        let first = at(turn);
        if !ask.avoid.contains(&first.id()) {
            return Ok(first);
        }
        let mut others = (1..turns).map(|more| at(turn.wrapping_add(more)));
        others.find(|endpoint| !ask.avoid.contains(&endpoint.id())).ok_or(NoEndpoint::AllAvoided)
    }
}
