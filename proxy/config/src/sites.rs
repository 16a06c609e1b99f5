//! `sites`: which hosts are served, and by which routes.

mod cache;
mod compress;
mod cors;
mod files;
mod invalidates;
mod mirror;
mod overrides;
mod split;
mod tags;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::Ipv6Addr,
};

use schemars::JsonSchema;

pub use self::cache::{CacheKey, CachePolicy, Established, GeoKey, QueryKey, Ranges, SetCookie, Ttl};
pub use self::compress::{Compress, CompressLevels, MediaType};
pub use self::cors::{Cors, Origin};
pub use self::files::{Encoding, Files};
pub use self::invalidates::{Invalidate, with_captures};
pub use self::mirror::Mirror;
pub use self::overrides::{RouteLimits, RouteTimeouts};
pub use self::split::Split;
pub use self::tags::{CacheTags, TagField};
use crate::{
    actions::{HeaderRules, NOT_TO_WRITE, Redirect, Rewrite},
    decode::{
        At, Cx, Fields, NAME_HELP, check_name, filled_list, headers, host_name, list, parsed, reference, text, truth,
        whole,
    },
    filters::{Declared, FilterUse},
    matching::{Match, PathMatch, Ties},
    report::{Fault, Position},
    tree::Data,
};

/// A set of hosts and their routes.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Site {
    /// Which hosts: exact (`www.example.com`), one label more (`"*.example.com"` is `a.example.com`, but neither
    /// `example.com` nor `a.b.example.com`), or `"*"` for any other. Without a port; case does not matter. A host belongs to
    /// one site. At least one. Required.
    #[schemars(with = "Vec<String>", length(min = 1))]
    pub hosts: Vec<Host>,

    /// On which listeners, by name; not on those with `tcp`. Default: all.
    #[schemars(with = "Option<Vec<String>>", length(min = 1))]
    pub listeners: Vec<String>,

    /// The filters that every route of the site runs before its own, in order. Already in each [`Route::filters`].
    #[schemars(with = "Option<Vec<FilterUse>>")]
    pub filters: Vec<FilterUse>,

    /// Header fields that every route of the site sets, adds and removes, before its own. Already in each [`Route::headers`].
    #[schemars(with = "Option<HeaderRules>")]
    pub headers: HeaderRules,

    /// How responses of its routes are compressed, where a route does not say so itself: a list of encodings, the one to prefer first
    /// (`[zstd, br, gzip]`), or settings. Absent: not at all. Already in each [`Route::compress`].
    pub compress: Option<Compress>,

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

impl Host {
    /// Whether it holds for a request's host (in lower case, without the port).
    #[must_use]
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => host == name,
            Self::Wildcard(parent) => {
                host.split_once('.').is_some_and(|(label, rest)| !label.is_empty() && rest == parent)
            }
            Self::Any => true,
        }
    }

    /// Whether some host is meant by both.
    pub(crate) fn meets(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(name), other) | (other, Self::Exact(name)) => other.matches(name),
            (Self::Wildcard(one), Self::Wildcard(two)) => one == two,
            (Self::Any, _) | (_, Self::Any) => true,
        }
    }
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

/// What is done with some of a site's requests. Exactly one of `to`, `split`, `files`, `respond` and `redirect` is required.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Route {
    /// What the route is called in logs; unique in the site. Default `routes[i]`, counted from 0.
    #[schemars(with = "Option<String>")]
    pub name: String,

    /// Which requests. Default: all.
    #[schemars(rename = "match", with = "Option<Match>", extend("default" = {}))]
    pub when: Match,

    /// The filters it runs, in order, after the site's. Each a name, or a name with settings that are merged over the
    /// declared configuration. Here with the site's in front.
    #[schemars(with = "Option<Vec<FilterUse>>")]
    pub filters: Vec<FilterUse>,

    /// The filters between the cache and the origin, in order: they see only what goes to the origin (misses, refreshes, and what the
    /// cache is not asked about), and what they make of a response is what is stored. Written as `filters`. Needs `to` or `split`; not
    /// together with `cache.slice` or `cache.ranges: as_asked`, which fetch objects in parts. Default: none.
    #[schemars(with = "Option<Vec<FilterUse>>")]
    pub origin_filters: Vec<FilterUse>,

    /// Header fields that are set, added and removed, on the request and on the response. Here with the site's in front.
    #[schemars(with = "Option<HeaderRules>")]
    pub headers: HeaderRules,

    /// The target as the upstream gets it. Absent: as the client sent it. Needs `to` or `split`.
    pub rewrite: Option<Rewrite>,

    /// Which responses are kept. Absent: none. Needs the top-level `cache`.
    pub cache: Option<CachePolicy>,

    /// What else is out of date when a request of this route has changed something. Needs `to` or `split`, and the top-level `cache`.
    #[schemars(with = "Option<Vec<Invalidate>>")]
    pub invalidates: Vec<Invalidate>,

    /// Where copies of its requests go. Absent: nowhere. Needs `to` or `split`.
    pub mirror: Option<Mirror>,

    /// Which pages of other origins may use it (CORS). Absent: what the upstream says.
    pub cors: Option<Cors>,

    /// Clients may speak gRPC-Web (`application/grpc-web` and `application/grpc-web-text`), as pages in browsers do; filters and the
    /// upstream get gRPC. What is neither is not touched. Needs `to` or `split` with upstreams of `protocol: h2`. Default `false`.
    #[schemars(with = "Option<bool>", extend("default" = false))]
    pub grpc_web: bool,

    /// How responses are compressed for clients that accept it: a list of encodings, the one to prefer first (`[zstd, br, gzip]`), or
    /// settings; `false` for not at all where the site says otherwise. What is cached is compressed once for each encoding. Absent: as
    /// the site says. Here resolved.
    pub compress: Option<Compress>,

    /// Limits in place of the listener's.
    #[schemars(with = "Option<RouteLimits>")]
    pub limits: RouteLimits,

    /// Time limits in place of the upstream's. Needs `to` or `split`.
    pub timeouts: Option<RouteTimeouts>,

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
    /// One of several upstreams.
    #[schemars(rename = "split")]
    Split(Split),
    /// The node itself, with the files of a folder.
    #[schemars(rename = "files")]
    Files(Files),
    /// The node itself.
    #[schemars(rename = "respond")]
    Respond(Respond),
    /// The node itself, which sends the client elsewhere.
    #[schemars(rename = "redirect")]
    Redirect(Redirect),
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

/// What a site may refer to.
pub(crate) struct Names<'n> {
    pub(crate) listeners: BTreeSet<&'n str>,
    /// Those among the listeners that do not speak HTTP.
    pub(crate) tcp_listeners: BTreeSet<&'n str>,
    /// Those that send everybody to https.
    pub(crate) redirecting: BTreeSet<&'n str>,
    pub(crate) upstreams: BTreeSet<&'n str>,
    pub(crate) filters: &'n Declared,
    /// Whether there is a store to keep responses in.
    pub(crate) cache: bool,
}

impl Site {
    /// Reads a site. `hosts` holds the hosts of the sites before it.
    pub(crate) fn read(
        cx: &mut Cx<'_>,
        at: &At<'_>,
        names: &Names<'_>,
        hosts: &mut BTreeMap<Host, Position>,
    ) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "Site")?;
        let own_hosts = fields.need(cx, "hosts", |cx, at| {
            filled_list(cx, at, |cx, at| {
                let host = Host::read(cx, at)?;
                if let Some(first) = hosts.get(&host) {
                    let fault = at.fault("this host is already taken").with_related("first here", first);
                    return cx.refuse(fault.with_help("a host belongs to one site: put its routes together"));
                }
                hosts.insert(host.clone(), at.node.position.clone());
                Some(host)
            })
        });
        let listeners = fields.read(cx, "listeners", |cx, at| {
            let mut seen = BTreeSet::new();
            filled_list(cx, at, |cx, at| {
                let name = reference(cx, at, "listener", &names.listeners)?;
                if names.tcp_listeners.contains(name.as_str()) {
                    let fault = at.fault(format!("the listener `{name}` has `tcp`: it serves no sites"));
                    return cx.refuse(fault.with_help("what its connections get is in its own `tcp`"));
                }
                if names.redirecting.contains(name.as_str()) {
                    let fault = at.fault(format!("the listener `{name}` has `redirect_to_https`: it serves no sites"));
                    return cx.refuse(fault.with_help("name one that serves https"));
                }
                if seen.insert(name.clone()) {
                    Some(name)
                } else {
                    cx.refuse(at.fault("this listener is written twice"))
                }
            })
        });
        let filters = fields.read(cx, "filters", |cx, at| read_filters(cx, at, names.filters)).unwrap_or_default();
        let headers = fields.read(cx, "headers", HeaderRules::read).unwrap_or_default();
        let compress = fields.read(cx, "compress", Compress::read).flatten();
        let site = (&filters[..], &headers, compress.as_ref());
        let routes = fields.need(cx, "routes", |cx, at| read_routes(cx, at, names, site));
        fields.close(cx);
        let serves = |name: &&&str| !names.tcp_listeners.contains(**name) && !names.redirecting.contains(**name);
        let http: Vec<&str> = names.listeners.iter().filter(serves).copied().collect();
        if http.is_empty() && !names.listeners.is_empty() && !cx.incomplete {
            let fault = at.fault("nobody can ask for this site: every listener has `tcp` or `redirect_to_https`");
            cx.report(fault.with_help("declare a listener without them, or remove the site"));
        }
        cx.spend_copies(at, names.listeners.len())?;
        Some(Self {
            hosts: own_hosts?,
            listeners: listeners.unwrap_or_else(|| http.into_iter().map(String::from).collect()),
            filters,
            headers,
            compress,
            routes: routes?,
            position: at.node.position.clone(),
        })
    }
}

impl Host {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        parsed(cx, at, "a host name, `\"*.example.com\"` or `\"*\"`", |text| {
            if text == "*" {
                return Ok(Self::Any);
            }
            if let Some(parent) = text.strip_prefix("*.") {
                return host_name(parent).map(Self::Wildcard);
            }
            // A URL writes an IPv6 address in brackets, and so does a Host field (RFC 3986, 3.2.2).
            if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                return match inner.parse::<Ipv6Addr>() {
                    Ok(address) => Ok(Self::Exact(format!("[{address}]"))),
                    Err(_) => Err(("is not an IPv6 address".into(), None)),
                };
            }
            if text.contains('*') {
                return Err((
                    "has a wildcard inside".into(),
                    Some("only the first label may be a wildcard: `\"*.example.com\"`".into()),
                ));
            }
            if let Some((host, port)) = text.rsplit_once(':')
                && port.bytes().all(|byte| byte.is_ascii_digit())
                && host_name(host).is_ok()
            {
                return Err(("has a port".into(), Some(format!("write `{host}`: ports belong to `listeners`"))));
            }
            host_name(text).map(Self::Exact)
        })
    }
}

fn read_filters(cx: &mut Cx<'_>, at: &At<'_>, declared: &Declared) -> Option<Vec<FilterUse>> {
    list(cx, at, |cx, at| FilterUse::read(cx, at, declared))
}

fn read_routes(
    cx: &mut Cx<'_>,
    at: &At<'_>,
    names: &Names<'_>,
    (site_filters, site_headers, site_compress): (&[FilterUse], &HeaderRules, Option<&Compress>),
) -> Option<Vec<Route>> {
    let mut index = 0;
    let mut seen_names: BTreeMap<String, Position> = BTreeMap::new();
    let mut ties = Ties::default();
    filled_list(cx, at, |cx, at| {
        let number = index;
        index += 1;
        let draft = RouteDraft::read(cx, at, names, number)?;

        // Names and matches are compared even if the rest of a route is wrong: all faults come out in one run.
        if let Some((name, position)) = &draft.name {
            if let Some(first) = seen_names.get(name) {
                let message = "another route of this site has the same name";
                let fault = Fault::at(position, message).with_key(format!("{}.name", at.path));
                cx.report(fault.with_related("first here", first));
            } else {
                seen_names.insert(name.clone(), position.clone());
            }
        }
        if let Some((when, position)) = &draft.when {
            ties.check(cx, when, position, &at.path);
        }
        cx.spend_copies(at, site_filters.iter().map(FilterUse::weight).sum())?;
        let filters: Vec<FilterUse> = site_filters.iter().chain(&draft.filters).cloned().collect();
        let mut cache = draft.cache;
        if let Some(policy) = &mut cache {
            policy.key.establish(cx, &at.path, &filters, names.filters);
        }
        Some(Route {
            name: draft.name?.0,
            when: draft.when?.0,
            filters,
            origin_filters: draft.origin_filters,
            headers: site_headers.then(&draft.headers),
            rewrite: draft.rewrite,
            cache,
            invalidates: draft.invalidates,
            mirror: draft.mirror,
            cors: draft.cors,
            grpc_web: draft.grpc_web,
            compress: draft.compress.unwrap_or_else(|| site_compress.cloned()),
            limits: draft.limits,
            timeouts: draft.timeouts,
            target: draft.target?,
            position: at.node.position.clone(),
        })
    })
}

/// A route as far as it could be read.
struct RouteDraft {
    name: Option<(String, Position)>,
    when: Option<(Match, Position)>,
    filters: Vec<FilterUse>,
    origin_filters: Vec<FilterUse>,
    headers: HeaderRules,
    rewrite: Option<Rewrite>,
    cache: Option<CachePolicy>,
    invalidates: Vec<Invalidate>,
    mirror: Option<Mirror>,
    cors: Option<Cors>,
    grpc_web: bool,
    /// `None` = as the site says.
    compress: Option<Option<Compress>>,
    limits: RouteLimits,
    timeouts: Option<RouteTimeouts>,
    target: Option<Target>,
}

impl RouteDraft {
    fn read(cx: &mut Cx<'_>, at: &At<'_>, names: &Names<'_>, index: usize) -> Option<Self> {
        let here = &at.node.position;
        let mut fields = Fields::open(cx, at, "Route")?;
        let name = match fields.get("name") {
            None => Some((format!("routes[{index}]"), here.clone())),
            Some(at) => parsed(cx, &at, "a name", |text| {
                check_name(text).map(|()| text.to_owned()).map_err(|why| (why, Some(NAME_HELP.into())))
            })
            .map(|name| (name, at.node.position.clone())),
        };
        let when = match fields.get("match") {
            None => Some((Match::default(), here.clone())),
            Some(at) => Match::read(cx, &at).map(|when| (when, at.name_position().clone())),
        };
        let filters = fields.read(cx, "filters", |cx, at| read_filters(cx, at, names.filters)).unwrap_or_default();
        let origin_filters_at = fields.get("origin_filters");
        let headers = fields.read(cx, "headers", HeaderRules::read).unwrap_or_default();
        let to_at = fields.get("to");
        let split_at = fields.get("split");
        let files_at = fields.get("files");
        let respond_at = fields.get("respond");
        let redirect_at = fields.get("redirect");
        let rewrite_at = fields.get("rewrite");
        let cache_at = fields.get("cache");
        let invalidates_at = fields.get("invalidates");
        let cors = fields.read(cx, "cors", Cors::read);
        let grpc_web_at = fields.get("grpc_web");
        let grpc_web = grpc_web_at.as_ref().and_then(|at| truth(cx, at)).unwrap_or(false);
        let compress = fields.read(cx, "compress", Compress::read);
        let limits = fields.read(cx, "limits", RouteLimits::read).unwrap_or_default();
        let timeouts_at = fields.get("timeouts");
        let mirror_at = fields.get("mirror");

        let to = to_at.as_ref().and_then(|at| reference(cx, at, "upstream", &names.upstreams)).map(Target::Upstream);
        let split = split_at.as_ref().and_then(|at| Split::read(cx, at, &names.upstreams)).map(Target::Split);
        let files = files_at.as_ref().and_then(|at| Files::read(cx, at)).map(Target::Files);
        let respond = respond_at.as_ref().and_then(|at| Respond::read(cx, at)).map(Target::Respond);
        let redirect = redirect_at.as_ref().and_then(|at| Redirect::read(cx, at)).map(Target::Redirect);
        let written: Vec<&At<'_>> =
            [&to_at, &split_at, &files_at, &respond_at, &redirect_at].into_iter().flatten().collect();
        let target = match &written[..] {
            [_] => to.or(split).or(files).or(respond).or(redirect),
            [] => {
                let fault = fields.missing("`to` is missing");
                cx.refuse(fault.with_help("write `to: UPSTREAM`, or one of `split`, `files`, `respond` and `redirect`"))
            }
            [first, .., last] => {
                let word = |at: &At<'_>| at.path.rsplit('.').next().unwrap_or_default().to_owned();
                let message = format!("`{}` and `{}` are both written", word(first), word(last));
                let fault = Fault::at(last.name_position(), message);
                let fault = fault.with_key(last.path.clone()).with_related("the other one", first.name_position());
                cx.refuse(fault.with_help("a route has one of them"))
            }
        };
        let goes_on = to_at.is_some() || split_at.is_some() || written.is_empty();
        if let Some(at) = grpc_web_at.filter(|_| grpc_web && !goes_on) {
            let fault = Fault::at(at.name_position(), "`grpc_web` does nothing without `to`");
            cx.report(fault.with_key(at.path.clone()).with_help("remove it: nobody speaks gRPC here"));
        }
        let timeouts = timeouts_at.and_then(|at| {
            if !goes_on {
                let fault = Fault::at(at.name_position(), "`timeouts` do nothing without `to`");
                cx.report(fault.with_key(at.path.clone()).with_help("remove them: nothing is asked for elsewhere"));
            }
            RouteTimeouts::read(cx, &at)
        });
        let mirror = mirror_at.and_then(|at| {
            if !goes_on {
                let fault = Fault::at(at.name_position(), "`mirror` does nothing without `to`");
                cx.report(fault.with_key(at.path.clone()).with_help("remove it: nothing is sent elsewhere"));
            }
            Mirror::read(cx, &at, &names.upstreams)
        });
        let rewrite = rewrite_at.and_then(|at| {
            let rewrite = Rewrite::read(cx, &at)?;
            let fault = |message: &str| Fault::at(at.name_position(), message).with_key(at.path.clone());
            if !goes_on {
                cx.report(
                    fault("`rewrite` does nothing without `to`").with_help("remove it: nothing is asked for elsewhere"),
                );
            }
            let path = when.as_ref().map(|(when, _)| &when.path);
            if rewrite.prefix.is_some() && !matches!(path, None | Some(PathMatch::Exact(_) | PathMatch::Prefix(_))) {
                cx.report(
                    fault("`prefix` needs a `match.path` that is exact or a prefix")
                        .with_help("use `path: { regex, with }`"),
                );
            }
            Some(rewrite)
        });
        let cache = cache_at.and_then(|at| {
            let fault = |message: &str| Fault::at(at.name_position(), message).with_key(at.path.clone());
            if !goes_on {
                cx.report(
                    fault("`cache` does nothing without `to`")
                        .with_help("what the node answers itself is never fetched: remove `cache`"),
                );
            } else if !names.cache {
                cx.report(
                    fault("there is no store for this")
                        .with_help("declare one: `cache: { memory: { size: 256MiB } }` at the top level"),
                );
            }
            CachePolicy::read(cx, &at)
        });
        let origin_filters = origin_filters_at.and_then(|at| {
            let fault = |message: &str| Fault::at(at.name_position(), message).with_key(at.path.clone());
            if !goes_on {
                cx.report(
                    fault("`origin_filters` do nothing without `to`")
                        .with_help("remove them: nothing is asked for elsewhere"),
                );
            }
            let parts = cache.as_ref().is_some_and(|cache| cache.slice.is_some() || cache.ranges == Ranges::AsAsked);
            if parts {
                cx.report(
                    fault("these filters see whole objects, and the route's `cache` fetches them in parts")
                        .with_help("remove `cache.slice` and `cache.ranges: as_asked`, or the filters"),
                );
            }
            read_filters(cx, &at, names.filters)
        });
        let origin_filters = origin_filters.unwrap_or_default();
        let invalidates = invalidates_at.and_then(|at| {
            let fault = |message: &str| Fault::at(at.name_position(), message).with_key(at.path.clone());
            if !goes_on {
                cx.report(
                    fault("`invalidates` does nothing without `to`").with_help("remove it: nothing is changed here"),
                );
            } else if !names.cache {
                cx.report(fault("there is no `cache` in which something could be out of date"));
            }
            list(cx, &at, Invalidate::read)
        });
        let invalidates = invalidates.unwrap_or_default();
        fields.close(cx);
        Some(Self {
            name,
            when,
            filters,
            origin_filters,
            headers,
            rewrite,
            cache,
            invalidates,
            mirror,
            cors,
            grpc_web,
            compress,
            limits,
            timeouts,
            target,
        })
    }
}

impl Respond {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "Respond")?;
        let status = fields.need(cx, "status", |cx, at| whole(cx, at, 200, 599));
        let body_at = fields.get("body");
        let body = body_at.as_ref().and_then(|at| text(cx, at)).unwrap_or_default();
        if let (Some(at), Some(status @ (204 | 304))) = (body_at, status)
            && !body.is_empty()
        {
            cx.report(at.fault(format!("a {status} response has no body (RFC 9110, 15)")));
        }
        let headers = fields.read(cx, "headers", read_response_headers).unwrap_or_default();
        fields.close(cx);
        Some(Self { status: status?, body, headers })
    }
}

fn read_response_headers(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Vec<(String, String)>> {
    let fields = headers(cx, at)?;
    if let Data::Map(entries) = &at.node.data {
        for entry in entries.iter().filter(|entry| NOT_TO_WRITE.contains(&entry.key.to_ascii_lowercase().as_str())) {
            let message = format!("the header `{}` is the node's to write", entry.key);
            cx.report(Fault::at(&entry.key_position, message).with_key(at.entry(entry).path).with_help("remove it"));
        }
    }
    Some(fields)
}
