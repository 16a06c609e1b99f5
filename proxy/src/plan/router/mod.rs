//! Finds the route of a request: the site by host, then the most specific of its routes that matches. Hosts: exact, then `*.parent`, then
//! `*`. What is more specific is said once, at [`selvedge_config::Match`].
//!
//! A site's routes are found by hashes of the path and of what stands before each of its slashes, so that looking up costs what the path
//! is long, not what the site has routes; regular expressions and patterns are tried one by one.

mod conditions;
mod explain;

use std::collections::HashMap;
use std::sync::Arc;

use regex::{Regex, RegexBuilder};
use selvedge_config::{Host, Match, PathMatch, REGEX_SIZE, matches_pattern};

pub use self::conditions::Asker;
pub(crate) use self::conditions::Value as FieldValue;
pub(crate) use self::conditions::cookies;
use self::conditions::{Conditions, Unmatched};
pub(crate) use self::explain::HostRule;
use super::Route;
use crate::chain::exchange::authority;

/// The sites of a plan.
#[derive(Default)]
pub struct Router {
    exact: HashMap<String, usize>,
    /// Keyed by what follows `*.`.
    wildcard: HashMap<String, usize>,
    any: Option<usize>,
    sites: Vec<Site>,
    asks_for_sni: bool,
}

#[derive(Default)]
struct Site {
    /// Which listeners serve it, by number.
    listeners: Vec<bool>,
    /// All routes; the others are places in it. Each list: more conditions first.
    candidates: Vec<Candidate>,
    exact: HashMap<String, Vec<usize>>,
    regexes: Vec<(Regex, usize)>,
    /// More literal characters first.
    patterns: Vec<usize>,
    prefixes: HashMap<String, Vec<usize>>,
}

struct Candidate {
    path: PathMatch,
    conditions: Conditions,
    count: usize,
    route: Arc<Route>,
}

/// What a request was found to be for.
pub enum Selected<'p> {
    /// This route.
    Route(&'p Arc<Route>),
    /// The site is served here, but none of its routes matches.
    NoRoute,
}

/// What a route matches, ready to be asked.
pub(super) struct Rule {
    path: PathMatch,
    regex: Option<Regex>,
    conditions: Conditions,
    count: usize,
}

impl Rule {
    /// # Errors
    /// The name of what cannot be matched; the loader has refused that before.
    pub(super) fn of(when: &Match) -> Result<Self, String> {
        let regex = match &when.path {
            PathMatch::Regex(regex) => {
                let built = RegexBuilder::new(regex).size_limit(REGEX_SIZE).build();
                Some(built.map_err(|_| regex.clone())?)
            }
            _ => None,
        };
        let conditions = Conditions::of(when).map_err(|Unmatched(name)| name)?;
        Ok(Self { path: when.path.clone(), regex, conditions, count: when.conditions() })
    }
}

impl Router {
    /// Adds a site. `listeners[i]` says whether listener `i` serves it.
    pub(super) fn add_site(&mut self, hosts: &[Host], listeners: Vec<bool>) -> usize {
        let index = self.sites.len();
        for host in hosts {
            match host {
                Host::Exact(name) => drop(self.exact.insert(name.clone(), index)),
                Host::Wildcard(parent) => drop(self.wildcard.insert(parent.clone(), index)),
                Host::Any => self.any = Some(index),
            }
        }
        self.sites.push(Site { listeners, ..Site::default() });
        index
    }

    /// Adds a route to a site; the caller adds them in the order of the file.
    pub(super) fn add_route(&mut self, site: usize, rule: Rule, route: Arc<Route>) {
        self.asks_for_sni |= rule.conditions.ask_for_sni();
        self.sites[site].add(rule, route);
    }

    /// Whether some route asks for the name in the TLS handshake.
    #[must_use]
    pub fn asks_for_sni(&self) -> bool {
        self.asks_for_sni
    }

    /// The route of a request; `None` = no site answers for its host on that listener.
    #[must_use]
    pub fn select(&self, asker: &Asker<'_>) -> Option<Selected<'_>> {
        let site = &self.sites[self.site(authority(asker.request))?];
        if !site.listeners.get(asker.listener).copied().unwrap_or(false) {
            return None;
        }
        let found = site.find(asker.request.uri.path(), asker);
        Some(found.map_or(Selected::NoRoute, |candidate| Selected::Route(&candidate.route)))
    }

    /// Every route once, in no particular order.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.sites.iter().flat_map(|site| site.candidates.iter().map(|candidate| &candidate.route))
    }

    /// Every route of the site that answers for a host; none if there is no such site.
    pub(crate) fn routes_of(&self, authority: &str) -> impl Iterator<Item = &Arc<Route>> {
        let site = self.site(authority.as_bytes()).map(|site| &self.sites[site]);
        site.into_iter().flat_map(|site| site.candidates.iter().map(|candidate| &candidate.route))
    }

    fn site(&self, authority: &[u8]) -> Option<usize> {
        self.site_and_rule(authority).map(|(site, _)| site)
    }

    /// The site of a host, and which kind of name has led to it.
    fn site_and_rule(&self, authority: &[u8]) -> Option<(usize, HostRule)> {
        let host = std::str::from_utf8(authority).ok().map(without_port).unwrap_or_default();
        // Hosts compare without case (RFC 9110, 4.2.3); nearly all come in lower case already.
        let lower;
        let host = if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            lower = host.to_ascii_lowercase();
            lower.as_str()
        } else {
            host
        };

        if let Some(site) = self.exact.get(host) {
            return Some((*site, HostRule::Exact));
        }
        if !self.wildcard.is_empty()
            && let Some((_, parent)) = host.split_once('.')
            && let Some(site) = self.wildcard.get(parent)
        {
            return Some((*site, HostRule::Wildcard));
        }
        self.any.map(|site| (site, HostRule::Any))
    }
}

impl Site {
    fn add(&mut self, rule: Rule, route: Arc<Route>) {
        let Rule { path, regex, conditions, count } = rule;
        let place = self.candidates.len();
        self.candidates.push(Candidate { path: path.clone(), conditions, count, route });
        let candidates = &self.candidates;
        let rank = |other: usize| (candidates[other].path.rank(), candidates[other].count);
        let insert = |list: &mut Vec<usize>| {
            let at = list.partition_point(|other| rank(*other) >= rank(place));
            list.insert(at, place);
        };
        match path {
            PathMatch::Exact(path) => insert(self.exact.entry(path).or_default()),
            PathMatch::Prefix(prefix) => insert(self.prefixes.entry(prefix).or_default()),
            PathMatch::Pattern { .. } => insert(&mut self.patterns),
            PathMatch::Regex(_) => {
                let Some(regex) = regex else { return };
                let at = self.regexes.partition_point(|(_, other)| candidates[*other].count >= count);
                self.regexes.insert(at, (regex, place));
            }
        }
    }

    fn find(&self, path: &str, asker: &Asker<'_>) -> Option<&Candidate> {
        self.walk(path, |candidate| candidate.conditions.hold(asker))
    }

    /// Those whose path is this one, the most specific first, until `takes` says yes.
    fn walk(&self, path: &str, mut takes: impl FnMut(&Candidate) -> bool) -> Option<&Candidate> {
        let mut taken = |places: &[usize]| places.iter().map(|place| &self.candidates[*place]).find(|one| takes(one));
        if let Some(found) = self.exact.get(path).and_then(|places| taken(places)) {
            return Some(found);
        }
        for (regex, place) in &self.regexes {
            if regex.is_match(path)
                && let Some(found) = taken(&[*place])
            {
                return Some(found);
            }
        }
        let mut patterns = self.patterns.iter().peekable();
        let has = |place: usize| self.candidates[place].has(path);
        // `/a/b` is below `/a/b`, `/a` and everything, in this order; patterns stand between, by how literal they are.
        let mut end = path.len();
        loop {
            while let Some(place) = patterns.next_if(|place| self.candidates[**place].path.rank().1 >= end) {
                if has(*place)
                    && let Some(found) = taken(&[*place])
                {
                    return Some(found);
                }
            }
            if let Some(found) = self.prefixes.get(&path[..end]).and_then(|places| taken(places)) {
                return Some(found);
            }
            if end == 0 {
                return patterns.filter(|place| has(**place)).find_map(|place| taken(&[*place]));
            }
            end = path[..end].rfind('/').unwrap_or(0);
        }
    }
}

impl Candidate {
    fn has(&self, path: &str) -> bool {
        matches!(&self.path, PathMatch::Pattern { segments, below } if matches_pattern(segments, *below, path))
    }
}

/// `example.com:8080` -> `example.com`, `[::1]:8080` -> `[::1]`.
pub(crate) fn without_port(authority: &str) -> &str {
    if let Some(end) = authority.find(']') {
        return &authority[..=end];
    }
    authority.split_once(':').map_or(authority, |(host, _)| host)
}

#[cfg(test)]
mod tests;
