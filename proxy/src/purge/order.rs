//! What is to be purged, as it is written in requests, and what that means under the plan in force.

use std::fmt;

use schemars::JsonSchema;
use selvedge_cache::purge::TAG_MAX;
use selvedge_cache::{Purge, Scheme, Scope};
use serde::{Deserialize, Serialize};

use crate::plan::Plan;
use crate::request::paths;

/// What is to be purged. At least one of `urls`, `prefixes`, `hosts`, `tags` and `all` says something.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Purge")]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Order {
    /// URLs with all their variants: `https://www.example.com/a?b=c`. Neither the scheme nor the port counts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) urls: Vec<String>,
    /// Paths and everything below them: `www.example.com/images` is `/images`, `/images/` and `/images/a`, but not `/images2`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) prefixes: Vec<String>,
    /// Hosts: `www.example.com`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) hosts: Vec<String>,
    /// Tags, as responses carry them in `Surrogate-Key`, `Cache-Tag`, `xkey` or `Cache-Groups`. ASCII case does not count.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) tags: Vec<String>,
    /// Cache groups of an origin (RFC 9875).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) groups: Vec<Group>,
    /// Everything that is stored.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) all: bool,
    /// Whether what is stored becomes stale, instead of being gone: the next request validates it, and until then it may be served where
    /// stale responses may.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) soft: bool,
    /// Who is waited for.
    #[serde(skip_serializing_if = "Wait::is_node")]
    pub(crate) wait: Wait,
}

/// A cache group of an origin (RFC 9875).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "CacheGroup")]
#[serde(deny_unknown_fields)]
pub(crate) struct Group {
    /// `https://www.example.com`, with the port if it is not the scheme's own.
    pub(crate) origin: String,
    /// As responses name it in `Cache-Groups`.
    pub(crate) name: String,
}

/// Who is waited for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Wait {
    /// The node that is asked. The others hear of it at once, and are not waited for.
    #[default]
    Node,
    /// All nodes of the cluster, for up to 5 seconds. Needs `cluster`.
    Cluster,
}

impl Wait {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
    fn is_node(&self) -> bool {
        *self == Self::Node
    }
}

/// What is wrong with an order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadOrder {
    #[error("it says nothing: write `urls`, `prefixes`, `hosts`, `tags` or `all`")]
    Nothing,
    #[error("`{0}` is no URL: {1}")]
    Url(String, &'static str),
    #[error("`{0}` is no tag: a tag has 1 to {TAG_MAX} bytes")]
    Tag(String),
}

/// Host and target of a URL, as requests for it have them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url {
    /// With the port, if one is written.
    pub(crate) authority: String,
    /// Path and query; the path as the node reads paths.
    pub(crate) target: String,
}

impl Order {
    /// How thoroughly.
    pub(crate) fn kind(&self) -> Purge {
        if self.soft { Purge::Soft } else { Purge::Hard }
    }

    /// Whether it says nothing.
    pub(crate) fn is_empty(&self) -> bool {
        let lists = [&self.urls, &self.prefixes, &self.hosts, &self.tags];
        !self.all && self.groups.is_empty() && lists.iter().all(|list| list.is_empty())
    }

    /// What it reaches.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn scopes(&self, plan: &Plan) -> Result<Vec<Scope>, BadOrder> {
        let mut scopes = Vec::new();
        for url in &self.urls {
            let Url { authority, target } = Url::read(url, plan)?;
            // Routes may read queries in different ways: what any of them may have stored is meant.
            let routes = plan.router.routes_of(&authority).filter_map(|route| route.cache.as_ref());
            let mut marks: Vec<Scope> =
                routes.map(|rule| Scope::url(&rule.policy.query, &authority, &target)).collect();
            marks.push(Scope::url(&selvedge_cache::QueryPolicy::All, &authority, &target));
            marks.push(Scope::any_query(&authority, &target));
            marks.sort_unstable_by_key(|scope| scope.to_parts());
            marks.dedup();
            scopes.extend(marks);
        }
        for prefix in &self.prefixes {
            let prefix = prefix.strip_suffix("/*").unwrap_or(prefix);
            let Url { authority, target } = Url::read(prefix, plan)?;
            if target.contains('?') {
                return Err(BadOrder::Url(prefix.to_owned(), "a prefix has no query"));
            }
            if target.contains('*') {
                return Err(BadOrder::Url(prefix.to_owned(), "a prefix ends with whole segments, and has no `*`"));
            }
            scopes.push(Scope::prefix(&authority, &target));
        }
        for host in &self.hosts {
            let Url { authority, target } = Url::read(host, plan)?;
            if target != "/" {
                return Err(BadOrder::Url(host.clone(), "a host has no path"));
            }
            scopes.push(Scope::host(&authority));
        }
        for tag in &self.tags {
            if tag.is_empty() || tag.len() > TAG_MAX {
                return Err(BadOrder::Tag(tag.chars().take(40).collect()));
            }
            scopes.push(Scope::tag(tag));
        }
        if !self.tags.is_empty() || !self.groups.is_empty() {
            scopes.push(Scope::too_many_tags());
        }
        for Group { origin, name } in &self.groups {
            let (scheme, authority) = match origin.split_once("://") {
                Some(("http", authority)) => (Scheme::Http, authority),
                Some(("https", authority)) => (Scheme::Https, authority),
                _ => return Err(BadOrder::Url(origin.clone(), "an origin is `https://` or `http://` and a host")),
            };
            scopes.push(Scope::group(scheme, authority, name));
        }
        if self.all {
            scopes.push(Scope::everything());
        }
        if scopes.is_empty() { Err(BadOrder::Nothing) } else { Ok(scopes) }
    }
}

/// For the log: how much, and the first of each.
impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.soft { "soft" } else { "hard" })?;
        if self.all {
            f.write_str(" everything")?;
        }
        if let Some(group) = self.groups.first() {
            write!(f, " {} groups of {}", self.groups.len(), group.origin)?;
        }
        let lists = [("url", &self.urls), ("prefix", &self.prefixes), ("host", &self.hosts), ("tag", &self.tags)];
        for (word, list) in lists {
            match &list[..] {
                [] => {}
                [only] => write!(f, " {word} {only}")?,
                [first, rest @ ..] => write!(f, " {word} {first} and {} more", rest.len())?,
            }
        }
        Ok(())
    }
}

impl Url {
    /// Reads `https://host/path?query`, or the same without its scheme.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn read(text: &str, plan: &Plan) -> Result<Self, BadOrder> {
        let bad = |why| BadOrder::Url(text.chars().take(80).collect(), why);
        let rest = match text.split_once("://") {
            Some((scheme, rest)) if !scheme.contains(['/', '?', '.']) => {
                if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
                    return Err(bad("its scheme is neither http nor https"));
                }
                rest
            }
            _ => text.strip_prefix("//").unwrap_or(text),
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.is_empty() {
            return Err(bad("it has no host: write `www.example.com/path`"));
        }
        let in_a_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
        if !authority.bytes().all(in_a_host) {
            return Err(bad("its host has characters that no host has"));
        }
        let (path, query) = target.split_at(target.find('?').unwrap_or(target.len()));
        if query.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
            return Err(bad("there is a blank or a control character in it"));
        }
        let path = if path.is_empty() { "/" } else { path };
        let path = paths::normal(path.as_bytes(), &plan.paths).map_err(|paths::BadPath(why)| bad(why))?;
        let target = format!("{}{query}", String::from_utf8_lossy(&path));
        Ok(Self { authority: authority.to_ascii_lowercase(), target })
    }
}
