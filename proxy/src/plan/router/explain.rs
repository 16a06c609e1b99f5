//! Why a request takes the route it takes: what the router looks at, in its order, told instead of decided.

use std::sync::Arc;

use super::{Asker, Candidate, Router, Site};
use crate::chain::exchange::authority;
use crate::plan::Route;

/// Which kind of name a site was found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum HostRule {
    /// The host itself.
    Exact,
    /// `*.parent`.
    Wildcard,
    /// `*`.
    Any,
}

/// What the router has looked at for a request.
pub(crate) struct Looked<'p> {
    /// The site of the host, by any of its routes' name for it, and how it was found.
    pub(crate) rule: HostRule,
    /// Whether the listener serves it; if not, nothing else was looked at.
    pub(crate) served: bool,
    /// The routes whose path it is, in the order they are tried.
    pub(crate) tried: Vec<Tried<'p>>,
    /// Those whose path it is not, in no particular order.
    pub(crate) elsewhere: Vec<(&'p Arc<Route>, String)>,
    /// The place in `tried` of the one that is taken.
    pub(crate) winner: Option<usize>,
}

/// A route whose path is that of the request.
pub(crate) struct Tried<'p> {
    pub(crate) route: &'p Arc<Route>,
    /// Its path, as it is written.
    pub(crate) path: String,
    /// Its other conditions that hold, and those that do not.
    pub(crate) holds: Vec<String>,
    pub(crate) fails: Vec<String>,
}

impl Router {
    /// What [`Router::select`] does with a request; `None` = no site answers for its host.
    pub(crate) fn explain(&self, asker: &Asker<'_>) -> Option<Looked<'_>> {
        let (site, rule) = self.site_and_rule(authority(asker.request))?;
        let site = &self.sites[site];
        let served = site.listeners.get(asker.listener).copied().unwrap_or(false);
        let path = asker.request.uri.path();
        let order = if served { site.order(path) } else { Vec::new() };
        let tried: Vec<Tried<'_>> = order.iter().map(|place| site.candidates[*place].tried(asker)).collect();
        let elsewhere = (0..site.candidates.len()).filter(|place| !order.contains(place));
        let elsewhere = elsewhere.map(|place| &site.candidates[place]).map(|one| (&one.route, one.path.to_string()));
        let winner = if served { site.find(path, asker) } else { None };
        let winner =
            winner.and_then(|winner| order.iter().position(|place| std::ptr::eq(&site.candidates[*place], winner)));
        Some(Looked { rule, served, tried, elsewhere: elsewhere.collect(), winner })
    }
}

impl Site {
    /// The places of all candidates whose path this is, in the order they are tried.
    fn order(&self, path: &str) -> Vec<usize> {
        let mut order = Vec::new();
        self.walk(path, |candidate| {
            order.extend(self.candidates.iter().position(|one| std::ptr::eq(one, candidate)));
            false
        });
        order
    }
}

impl Candidate {
    fn tried(&self, asker: &Asker<'_>) -> Tried<'_> {
        let (mut holds, mut fails) = (Vec::new(), Vec::new());
        self.conditions.look(asker, |condition, is_so| {
            if is_so { &mut holds } else { &mut fails }.push(condition.to_string());
            true
        });
        Tried { route: &self.route, path: self.path.to_string(), holds, fails }
    }
}
