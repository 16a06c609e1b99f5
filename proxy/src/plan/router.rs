//! Finds the route of a request: the site by host, then the most specific of its routes that matches.
//!
//! Order of specificity, the first difference decides: exact path before prefix; longer prefix before shorter; more conditions
//! (method, headers) before fewer; then the order in the file. Hosts: exact, then `*.parent`, then `*`.

use std::collections::HashMap;
use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method};
use pingora::http::RequestHeader;
use selvedge_config::{Host, PathMatch};

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
}

struct Site {
    /// Which listeners serve it, by index.
    listeners: Vec<bool>,
    /// Most specific first.
    routes: Vec<Candidate>,
}

struct Candidate {
    path: PathMatch,
    methods: Vec<Method>,
    headers: Vec<(HeaderName, HeaderValue)>,
    route: Arc<Route>,
}

/// What a request was found to be for.
pub enum Selected<'p> {
    /// This route.
    Route(&'p Arc<Route>),
    /// The site is served here, but none of its routes matches.
    NoRoute,
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
        self.sites.push(Site { listeners, routes: Vec::new() });
        index
    }

    /// Adds a route to a site; the caller adds them in the order of the file.
    pub(super) fn add_route(&mut self, site: usize, rule: Rule, route: Arc<Route>) {
        let routes = &mut self.sites[site].routes;
        let candidate = Candidate { path: rule.path, methods: rule.methods, headers: rule.headers, route };
        let at = routes.partition_point(|other| other.specificity() >= candidate.specificity());
        routes.insert(at, candidate);
    }

    /// The route of a request on a listener; `None` = no site answers for its host there.
    #[must_use]
    pub fn select(&self, listener: usize, request: &RequestHeader) -> Option<Selected<'_>> {
        let site = &self.sites[self.site(authority(request))?];
        if !site.listeners.get(listener).copied().unwrap_or(false) {
            return None;
        }
        let path = request.uri.path();
        let found = site.routes.iter().find(|candidate| candidate.matches(path, request));
        Some(found.map_or(Selected::NoRoute, |candidate| Selected::Route(&candidate.route)))
    }

    /// Every route once, in no particular order.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.sites.iter().flat_map(|site| site.routes.iter().map(|candidate| &candidate.route))
    }

    fn site(&self, authority: &[u8]) -> Option<usize> {
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
            return Some(*site);
        }
        if !self.wildcard.is_empty()
            && let Some((_, parent)) = host.split_once('.')
            && let Some(site) = self.wildcard.get(parent)
        {
            return Some(*site);
        }
        self.any
    }
}

/// What a route matches.
pub(super) struct Rule {
    pub(super) path: PathMatch,
    pub(super) methods: Vec<Method>,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
}

impl Candidate {
    fn specificity(&self) -> (bool, usize, usize) {
        let (exact, length) = match &self.path {
            PathMatch::Exact(path) => (true, path.len()),
            PathMatch::Prefix(prefix) => (false, prefix.len()),
        };
        (exact, length, usize::from(!self.methods.is_empty()) + self.headers.len())
    }

    fn matches(&self, path: &str, request: &RequestHeader) -> bool {
        self.path.matches(path)
            && (self.methods.is_empty() || self.methods.contains(&request.method))
            && self.headers.iter().all(|(name, value)| request.headers.get_all(name).iter().any(|given| given == value))
    }
}

/// `example.com:8080` -> `example.com`, `[::1]:8080` -> `[::1]`.
fn without_port(authority: &str) -> &str {
    if let Some(end) = authority.find(']') {
        return &authority[..=end];
    }
    authority.split_once(':').map_or(authority, |(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::without_port;

    #[test]
    fn ports_are_no_part_of_the_host() {
        for (authority, host) in [
            ("example.com", "example.com"),
            ("example.com:8080", "example.com"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
            ("127.0.0.1:1", "127.0.0.1"),
            ("", ""),
        ] {
            assert_eq!(without_port(authority), host);
        }
    }
}
