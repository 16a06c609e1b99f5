//! `sites`: which hosts are served, and by which routes.

use std::{collections::BTreeMap, fmt, time::Duration};

use schemars::JsonSchema;

use crate::{filters::FilterUse, report::Position, values::DurationText};

/// A set of hosts and their routes.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Site {
    /// Which hosts: exact (`www.example.com`), all names below one (`"*.example.com"`), or `"*"` for any other. Without a
    /// port; case does not matter. A host belongs to one site. At least one. Required.
    #[schemars(with = "Vec<String>", length(min = 1))]
    pub hosts: Vec<Host>,

    /// On which listeners, by name. Default: all.
    #[schemars(with = "Option<Vec<String>>", length(min = 1))]
    pub listeners: Vec<String>,

    /// The filters that every route of the site runs before its own, in order. Already in each [`Route::filters`].
    #[schemars(with = "Option<Vec<FilterUse>>")]
    pub filters: Vec<FilterUse>,

    /// The routes; the most specific match wins, whatever the order. At least one. Required.
    #[schemars(length(min = 1))]
    pub routes: Vec<Route>,

    /// Where the site is written.
    #[schemars(skip)]
    pub position: Position,
}

/// Which hosts a site answers for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// This name or address, in lower case.
    Exact(String),
    /// Names with exactly one more label in front of this one, in lower case: `example.com` stands for `*.example.com`.
    Wildcard(String),
    /// Any host that no other site names.
    Any,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Wildcard(parent) => write!(f, "*.{parent}"),
            Self::Any => f.write_str("*"),
        }
    }
}

/// What is done with some of a site's requests. Exactly one of `to` and `respond` is required.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Route {
    /// What the route is called in logs; unique in the site. Default `routes[i]`, counted from 0.
    #[schemars(with = "Option<String>")]
    pub name: String,

    /// Which requests. Default: all.
    #[schemars(rename = "match", with = "Option<Match>")]
    pub when: Match,

    /// The filters it runs, in order, after the site's. Each a name, or a name with settings that are merged over the
    /// declared configuration. Here with the site's in front.
    #[schemars(with = "Option<Vec<FilterUse>>")]
    pub filters: Vec<FilterUse>,

    /// Which responses are kept. Absent: none. Needs the top-level `cache`.
    pub cache: Option<CachePolicy>,

    /// Who answers.
    #[schemars(flatten)]
    pub target: Target,

    /// Where the route is written.
    #[schemars(skip)]
    pub position: Position,
}

/// Who answers a route's requests.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
pub enum Target {
    /// The upstream of this name.
    #[schemars(rename = "to")]
    Upstream(String),
    /// The node itself.
    #[schemars(rename = "respond")]
    Respond(Respond),
}

/// Which requests a route is for: all that is written must hold. Two equal ones in a site are a fault.
#[derive(Clone, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Match {
    /// An exact path (`/x`), or `/x/*` for `/x` and everything below it. Default `/*`, which is every path.
    #[schemars(with = "Option<String>", regex(pattern = r"^/|\$\{"), extend("default" = "/*"))]
    pub path: PathMatch,

    /// One of these methods; they are case-sensitive (RFC 9110, 9.1). Default: any.
    #[schemars(rename = "method", with = "Option<Vec<String>>", length(min = 1))]
    pub methods: Vec<String>,

    /// All these header fields, with exactly these values. Here sorted by name, names in lower case.
    #[schemars(rename = "header", with = "Option<BTreeMap<String, String>>")]
    pub headers: Vec<(String, String)>,
}

/// Which paths a route is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathMatch {
    /// Exactly this path.
    Exact(String),
    /// This path, which has no slash at its end, and everything below it. Empty for every path.
    Prefix(String),
}

impl PathMatch {
    /// Whether it holds for a request's path (without the query).
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == exact,
            Self::Prefix(prefix) => {
                prefix.is_empty()
                    || path.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
        }
    }
}

impl fmt::Display for PathMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(path) => f.write_str(path),
            Self::Prefix(path) => write!(f, "{path}/*"),
        }
    }
}

impl Default for Match {
    fn default() -> Self {
        Self { path: PathMatch::Prefix(String::new()), methods: Vec::new(), headers: Vec::new() }
    }
}

/// Which responses of a route are kept, and how long (RFC 9111, RFC 5861). What the origin says wins unless `override`.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct CachePolicy {
    /// How long a response is fresh when the origin does not say. Above zero. Default: such responses are not kept.
    #[schemars(with = "Option<DurationText>")]
    pub ttl: Option<Duration>,

    /// Whether `ttl` wins over what the origin says. It can serve what the origin forbids to store: only for origins that
    /// send wrong headers. Needs `ttl`. Default `false`.
    #[schemars(rename = "override", with = "Option<bool>", extend("default" = false))]
    pub override_origin: bool,

    /// Which query parameters make a different response: `all`, or a list of names; the others are then no part of the
    /// cache key. `[]` means none does. A shorter list hits more often; one that misses a name that matters serves wrong
    /// pages. Default `all`.
    #[schemars(with = "Option<QueryKey>", extend("default" = "all"))]
    pub query: QueryKey,

    /// How long after it went stale a response may be served while a new one is fetched (RFC 5861, 3), when the origin does
    /// not say. Above zero. Default: not at all.
    #[schemars(with = "Option<DurationText>")]
    pub stale_while_revalidate: Option<Duration>,

    /// How long after it went stale a response may be served when the origin fails (RFC 5861, 4), when the origin does not
    /// say. Above zero. Default: not at all.
    #[schemars(with = "Option<DurationText>")]
    pub stale_if_error: Option<Duration>,

    /// Where the policy is written.
    #[schemars(skip)]
    pub position: Position,
}

/// Which query parameters are part of the cache key.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(with = "QueryKeyForm")]
pub enum QueryKey {
    /// All.
    All,
    /// These names only.
    Only(Vec<String>),
}

#[derive(JsonSchema)]
#[schemars(untagged, rename = "QueryKey")]
#[expect(dead_code, reason = "describes the grammar; never made")]
enum QueryKeyForm {
    Word(AllWord),
    Only(Vec<String>),
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase", inline)]
#[expect(dead_code, reason = "describes the grammar; never made")]
enum AllWord {
    All,
}

/// A fixed response, made by the node itself.
#[derive(Clone, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Respond {
    /// The status, 200 to 599. Required.
    #[schemars(range(min = 200, max = 599))]
    pub status: u16,

    /// The body. 204 and 304 have none. Default: empty.
    #[schemars(with = "Option<String>")]
    pub body: String,

    /// Header fields. Not those that say how the message is framed (`content-length`, `connection`, ..), which the node
    /// writes. Here sorted by name, names in lower case.
    #[schemars(with = "Option<BTreeMap<String, String>>")]
    pub headers: Vec<(String, String)>,
}

impl fmt::Debug for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Match")
            .field("path", &self.path)
            .field("methods", &self.methods)
            .field("headers", &names(&self.headers))
            .finish()
    }
}

impl fmt::Debug for Respond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Respond")
            .field("status", &self.status)
            .field("body", &format_args!("<{} bytes>", self.body.len()))
            .field("headers", &names(&self.headers))
            .finish()
    }
}

/// Names without values, which may be secrets.
fn names(headers: &[(String, String)]) -> Vec<&str> {
    headers.iter().map(|(name, _)| name.as_str()).collect()
}
