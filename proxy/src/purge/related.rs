//! What a change puts out of date beside its own URL: by rules of the route, and by what the origin says in `Cache-Group-Invalidation`
//! (RFC 9875, 3).

use http::HeaderName;
use pingora::http::{RequestHeader, ResponseHeader};
use regex::{Regex, RegexBuilder};
use selvedge_cache::rules::{invalidate, structured};
use selvedge_config::{Invalidate, PathMatch, REGEX_SIZE, with_captures};
use tracing::warn;

use super::{Group, Order, carry_out_at_once};
use crate::chain::exchange::authority;
use crate::node::Current;
use crate::request::RequestCtx;

/// What the origin says is out of date.
const CACHE_GROUP_INVALIDATION: HeaderName = HeaderName::from_static("cache-group-invalidation");
/// So many groups of a response are read; the specification asks for 32.
const GROUPS_MAX: usize = 128;

/// A rule of a route, ready to be asked.
pub(crate) struct Rule {
    rule: Invalidate,
    regex: Option<Regex>,
}

impl Rule {
    /// # Errors
    /// What is wrong with the regular expression; the loader has refused that before.
    pub(crate) fn of(rule: &Invalidate) -> Result<Self, String> {
        let regex = match &rule.on {
            PathMatch::Regex(regex) => {
                let built = RegexBuilder::new(regex).size_limit(REGEX_SIZE).build();
                Some(built.map_err(|_| format!("the regular expression {regex}"))?)
            }
            _ => None,
        };
        Ok(Self { rule: rule.clone(), regex })
    }

    /// What this path puts out of date; `None` = it is none of the rule's.
    fn order(&self, host: &str, path: &str) -> Option<Order> {
        let captures = captures(&self.rule.on, self.regex.as_ref(), path)?;
        let written = |template: &String| with_captures(template, &captures);
        let on_host = |template: &String| {
            let target = written(template);
            if target.starts_with('/') && !target.starts_with("//") { format!("//{host}{target}") } else { target }
        };
        Some(Order {
            urls: self.rule.urls.iter().map(on_host).collect(),
            prefixes: self.rule.prefixes.iter().map(on_host).collect(),
            tags: self.rule.tags.iter().map(written).filter(|tag| !tag.is_empty()).collect(),
            soft: self.rule.soft,
            ..Order::default()
        })
    }
}

/// What the wildcards of a path match; `None` = the path is another.
fn captures<'p>(on: &PathMatch, regex: Option<&Regex>, path: &'p str) -> Option<Vec<&'p str>> {
    match (on, regex) {
        (_, Some(regex)) => {
            let found = regex.captures(path)?;
            Some(found.iter().skip(1).map(|group| group.map_or("", |group| group.as_str())).collect())
        }
        (PathMatch::Prefix(prefix), _) => {
            let rest = path.strip_prefix(prefix.as_str())?;
            (rest.is_empty() || rest.starts_with('/')).then(|| vec![rest.strip_prefix('/').unwrap_or(rest)])
        }
        (PathMatch::Pattern { segments, below }, _) => {
            let mut parts = path.strip_prefix('/')?.splitn(segments.len() + 1, '/');
            let mut captures = Vec::new();
            for segment in segments {
                let given = parts.next()?;
                match segment {
                    Some(literal) if given == literal => {}
                    None if !given.is_empty() => captures.push(given),
                    _ => return None,
                }
            }
            match (parts.next(), below) {
                (rest, true) => captures.push(rest.unwrap_or_default()),
                (None, false) => {}
                (Some(_), false) => return None,
            }
            Some(captures)
        }
        (on, _) => on.matches(path).then(Vec::new),
    }
}

/// The upstream has answered: if that was a change, what it puts out of date goes now, before the client hears of it. Gives back the URLs that
/// are to be fetched anew, `//host/path`.
pub(crate) fn changed(
    current: &Current,
    request: &RequestHeader,
    response: &ResponseHeader,
    ctx: &RequestCtx,
) -> Vec<String> {
    if request.method.is_safe() || !invalidate::applies(&request.method, response.status) {
        return Vec::new();
    }
    let (Some(_), Some(route)) = (ctx.plan.cache, &ctx.route) else { return Vec::new() };
    let host = String::from_utf8_lossy(authority(request));
    let path = request.uri.path();
    let mut refresh = Vec::new();
    let mut orders = Vec::new();
    for rule in &route.invalidates {
        let Some(order) = rule.order(&host, path) else { continue };
        if rule.rule.refresh {
            refresh.extend_from_slice(&order.urls);
        }
        orders.push(order);
    }
    if response.headers.contains_key(CACHE_GROUP_INVALIDATION) {
        let groups = structured::strings(&response.headers, &CACHE_GROUP_INVALIDATION).unwrap_or_default();
        let scheme = if ctx.downstream.tls { "https" } else { "http" };
        let origin = format!("{scheme}://{host}");
        let groups = groups.into_iter().take(GROUPS_MAX).map(|name| Group { origin: origin.clone(), name });
        orders.push(Order { groups: groups.collect(), ..Order::default() });
    }
    for order in orders.iter().filter(|order| !order.is_empty()) {
        if let Err(error) = carry_out_at_once(current, &ctx.plan, order) {
            warn!(route = route.name(), %order, %error, "what a change puts out of date is not purged");
        }
    }
    refresh
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captured(on: PathMatch, path: &str) -> Option<Vec<&str>> {
        let regex = match &on {
            PathMatch::Regex(regex) => Some(Regex::new(regex).expect("a regular expression")),
            _ => None,
        };
        captures(&on, regex.as_ref(), path)
    }

    #[test]
    fn what_the_wildcards_match() {
        let pattern = |text: &str, below| PathMatch::Pattern {
            segments: text.split(' ').map(|segment| (segment != "*").then(|| segment.to_owned())).collect(),
            below,
        };
        for (on, path, expected) in [
            (PathMatch::Exact("/a".into()), "/a", Some(vec![])),
            (PathMatch::Exact("/a".into()), "/b", None),
            (PathMatch::Prefix("/a".into()), "/a", Some(vec![""])),
            (PathMatch::Prefix("/a".into()), "/a/b/c", Some(vec!["b/c"])),
            (PathMatch::Prefix("/a".into()), "/ab", None),
            (PathMatch::Prefix(String::new()), "/x/y", Some(vec!["x/y"])),
            (pattern("a * c", false), "/a/b/c", Some(vec!["b"])),
            (pattern("a * c", false), "/a/b/c/d", None),
            (pattern("a * c", false), "/a/b", None),
            (pattern("a * c", false), "/a//c", None),
            (pattern("* b *", true), "/a/b/c/d/e", Some(vec!["a", "c", "d/e"])),
            (pattern("* b *", true), "/a/b/c", Some(vec!["a", "c", ""])),
            (PathMatch::Regex("^/([a-z]+)/([0-9]+)?".into()), "/a/7", Some(vec!["a", "7"])),
            (PathMatch::Regex("^/([a-z]+)/([0-9]+)?".into()), "/a/b", Some(vec!["a", ""])),
            (PathMatch::Regex("^/([0-9]+)".into()), "/a", None),
        ] {
            assert_eq!(captured(on.clone(), path), expected, "{on} {path}");
        }
    }
}
