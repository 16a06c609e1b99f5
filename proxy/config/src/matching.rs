//! `match`: which requests a route is for.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::IpAddr,
};

use ipnet::IpNet;
use regex::RegexBuilder;
use schemars::JsonSchema;

use crate::{
    decode::{At, Cx, Fields, brief, filled_list, header_value, host_name, is_token, mapping, parsed, truth},
    report::{Fault, Position},
    sites::Host,
    tree::Data,
};

/// Which requests a route is for: all that is written must hold. Of the routes of a site that match a request, the most specific one is
/// taken, whatever their order: an exact path before a regular expression, that before patterns and prefixes; of those the one with more
/// characters that are not wildcards, then a pattern before a prefix; then the one with more conditions (each header, query parameter
/// and cookie, `method`, `client`, `geo.country`, `geo.continent`, `tls` and `sni` count one). Two routes of the same rank that could match the
/// same request are a fault; only regular expressions of the same rank are tried in the order of the file.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Match {
    /// An exact path (`/x`); `/x/*` for `/x` and everything below it; a pattern, in which `*` stands for one segment (`/users/*/posts`,
    /// `/users/*/posts/*` with everything below); or `~` and a regular expression that has to match somewhere in the path
    /// (`"~^/v[0-9]+/"`). Paths are compared after they were normalised (`node.paths`). Default `/*`, which is every path.
    #[schemars(with = "Option<String>", regex(pattern = r"^[/~]|\$\{"), extend("default" = "/*"))]
    pub path: PathMatch,

    /// One of these methods; they are case-sensitive (RFC 9110, 9.1). Default: any.
    #[schemars(rename = "method", with = "Option<Vec<String>>", length(min = 1))]
    pub methods: Vec<String>,

    /// All these header fields, each with exactly this value, or as `{ prefix | regex | present }` says. Here sorted by name, names in
    /// lower case.
    #[schemars(rename = "header", with = "Option<BTreeMap<String, ValueMatch>>")]
    pub headers: Vec<(String, ValueMatch)>,

    /// All these query parameters, decoded, written as `header` is. Of several with one name any may match. Here sorted by name.
    #[schemars(with = "Option<BTreeMap<String, ValueMatch>>")]
    pub query: Vec<(String, ValueMatch)>,

    /// All these cookies, written as `header` is. Here sorted by name.
    #[schemars(rename = "cookie", with = "Option<BTreeMap<String, ValueMatch>>")]
    pub cookies: Vec<(String, ValueMatch)>,

    /// Clients with an address in one of these ranges: `10.0.0.0/8`, `2001:db8::/32`, or a single address. Default: any.
    #[schemars(rename = "client", with = "Option<Vec<String>>", length(min = 1))]
    pub clients: Vec<IpNet>,

    /// Where the client is, by the top-level `geo` database, which it needs. Default: anywhere.
    #[schemars(with = "Option<GeoMatch>")]
    pub geo: GeoMatch,

    /// Whether the request came over TLS. Default: either way.
    pub tls: Option<bool>,

    /// Clients that asked for one of these names in their TLS handshake: `example.com`, or `"*.example.com"` for names with one label
    /// more. It is a matter of the connection: a client may ask for one name and then for another host, and HTTP/2 clients do so where
    /// one certificate is for both. Default: any, or none.
    #[schemars(with = "Option<Vec<String>>", length(min = 1))]
    pub sni: Vec<Host>,
}

/// Where a client is. A client of whom the database knows nothing matches neither.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct GeoMatch {
    /// One of these countries (ISO 3166-1 alpha-2, `DE`). Default: any.
    #[schemars(rename = "country", with = "Option<Vec<String>>", length(min = 1))]
    pub countries: Vec<String>,

    /// One of these continents: `AF`, `AN`, `AS`, `EU`, `NA`, `OC`, `SA`. Default: any.
    #[schemars(rename = "continent", with = "Option<Vec<String>>", length(min = 1))]
    pub continents: Vec<String>,
}

/// Which paths a route is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathMatch {
    /// Exactly this path.
    Exact(String),
    /// This path, which has no slash at its end, and everything below it. Empty for every path.
    Prefix(String),
    /// These segments; `None` stands for any one that is not empty. With everything below if `below`.
    Pattern {
        /// In order.
        segments: Vec<Option<String>>,
        /// Whether paths below match too.
        below: bool,
    },
    /// A path in which this regular expression matches somewhere. It compiles within [`REGEX_SIZE`].
    Regex(String),
}

/// The largest regular expression, compiled, in bytes.
pub const REGEX_SIZE: usize = 1 << 20;

/// What a value has to be.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema)]
#[schemars(with = "ValueForm")]
pub enum ValueMatch {
    /// Exactly this.
    Exact(String),
    /// It begins so.
    Prefix(String),
    /// A regular expression matches somewhere in it. It compiles within [`REGEX_SIZE`].
    Regex(String),
    /// Anything, as long as it is there; or, for `false`, not there at all.
    Present(bool),
}

/// The ways to write [`ValueMatch`].
#[derive(JsonSchema)]
#[schemars(untagged, rename = "ValueMatch")]
#[expect(dead_code, reason = "describes the grammar; never made")]
enum ValueForm {
    /// Exactly this.
    Exact(String),
    Other(ValueRule),
}

/// One of these.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "describes the grammar; never made")]
struct ValueRule {
    /// It begins so. Default: nothing is said about its beginning.
    prefix: Option<String>,
    /// This regular expression matches somewhere in it. Default: none has to.
    regex: Option<String>,
    /// `true`: it is there, whatever it is; `false`: it is not there. Default: nothing is said about that.
    present: Option<bool>,
}

impl PathMatch {
    /// Whether it holds for a request's path (without the query). Regular expressions are compiled each time: the proxy keeps its own.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == exact,
            Self::Prefix(prefix) => {
                prefix.is_empty()
                    || path.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Self::Pattern { segments, below } => matches_pattern(segments, *below, path),
            Self::Regex(regex) => compiled(regex).is_ok_and(|regex| regex.is_match(path)),
        }
    }

    /// What is more specific is greater: the kind, then how many characters are no wildcards, then patterns before prefixes.
    #[must_use]
    pub fn rank(&self) -> (u8, usize, u8) {
        match self {
            Self::Exact(path) => (2, path.len(), 0),
            Self::Regex(_) => (1, 0, 0),
            Self::Pattern { segments, .. } => {
                (0, segments.iter().map(|segment| 1 + segment.as_ref().map_or(0, String::len)).sum(), 1)
            }
            Self::Prefix(prefix) => (0, prefix.len(), 0),
        }
    }

    /// Whether some path could match both. Of regular expressions nobody knows: not if both are ones.
    fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Regex(_), Self::Regex(_)) => false,
            (Self::Pattern { segments: a, below: a_below }, Self::Pattern { segments: b, below: b_below }) => {
                let long_enough = match a.len().cmp(&b.len()) {
                    std::cmp::Ordering::Equal => true,
                    std::cmp::Ordering::Less => *a_below,
                    std::cmp::Ordering::Greater => *b_below,
                };
                let both = |(a, b): (&Option<String>, &Option<String>)| match (a, b) {
                    (Some(a), Some(b)) => a == b,
                    _ => true,
                };
                long_enough && a.iter().zip(b).all(both)
            }
            _ => self == other,
        }
    }
}

/// Whether a path has these segments.
#[must_use]
pub fn matches_pattern(segments: &[Option<String>], below: bool, path: &str) -> bool {
    let Some(path) = path.strip_prefix('/') else { return false };
    let mut given = path.split('/');
    for segment in segments {
        let fits = given.next().is_some_and(|given| match segment {
            Some(literal) => given == literal,
            None => !given.is_empty(),
        });
        if !fits {
            return false;
        }
    }
    below || given.next().is_none()
}

impl fmt::Display for PathMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(path) => f.write_str(path),
            Self::Prefix(path) => write!(f, "{path}/*"),
            Self::Pattern { segments, below } => {
                for segment in segments {
                    write!(f, "/{}", segment.as_deref().unwrap_or("*"))?;
                }
                f.write_str(if *below { "/*" } else { "" })
            }
            Self::Regex(regex) => write!(f, "~{regex}"),
        }
    }
}

impl Default for Match {
    fn default() -> Self {
        Self {
            path: PathMatch::Prefix(String::new()),
            methods: Vec::new(),
            headers: Vec::new(),
            query: Vec::new(),
            cookies: Vec::new(),
            clients: Vec::new(),
            geo: GeoMatch::default(),
            tls: None,
            sni: Vec::new(),
        }
    }
}

impl Match {
    /// How many conditions beside the path there are.
    #[must_use]
    pub fn conditions(&self) -> usize {
        let lists = [
            self.methods.is_empty(),
            self.clients.is_empty(),
            self.geo.countries.is_empty(),
            self.geo.continents.is_empty(),
            self.tls.is_none(),
            self.sni.is_empty(),
        ];
        lists.iter().filter(|empty| !**empty).count() + self.headers.len() + self.query.len() + self.cookies.len()
    }

    /// Whether some request could match both.
    fn overlaps(&self, other: &Self) -> bool {
        let apart = disjoint(&self.methods, &other.methods)
            || disjoint(&self.geo.countries, &other.geo.countries)
            || disjoint(&self.geo.continents, &other.geo.continents)
            || self.tls.zip(other.tls).is_some_and(|(a, b)| a != b)
            || (!self.sni.is_empty()
                && !other.sni.is_empty()
                && !self.sni.iter().any(|a| other.sni.iter().any(|b| a.meets(b))))
            || apart_by_value(&self.headers, &other.headers)
            || apart_by_value(&self.query, &other.query)
            || apart_by_value(&self.cookies, &other.cookies)
            || (!self.clients.is_empty()
                && !other.clients.is_empty()
                && !self.clients.iter().any(|a| other.clients.iter().any(|b| a.contains(b) || b.contains(a))));
        !apart && self.path.overlaps(&other.path)
    }
}

/// Whether both are limited, to different things.
fn disjoint(a: &[String], b: &[String]) -> bool {
    !a.is_empty() && !b.is_empty() && !a.iter().any(|one| b.contains(one))
}

/// Whether both ask for a value of one name that cannot be what both want. (Who sends a field twice, with both values, gets the first.)
fn apart_by_value(a: &[(String, ValueMatch)], b: &[(String, ValueMatch)]) -> bool {
    a.iter().any(|(name, one)| {
        b.iter().filter(|(other, _)| other == name).any(|(_, two)| match (one, two) {
            (ValueMatch::Present(false), two) => *two != ValueMatch::Present(false),
            (one, ValueMatch::Present(false)) => *one != ValueMatch::Present(false),
            (ValueMatch::Exact(one), ValueMatch::Exact(two)) => one != two,
            (ValueMatch::Exact(one), ValueMatch::Prefix(two)) => !one.starts_with(two.as_str()),
            (ValueMatch::Prefix(one), ValueMatch::Exact(two)) => !two.starts_with(one.as_str()),
            (ValueMatch::Prefix(one), ValueMatch::Prefix(two)) => {
                !one.starts_with(two.as_str()) && !two.starts_with(one.as_str())
            }
            _ => false,
        })
    })
}

/// How specific a match is: its path, then its conditions.
type Rank = ((u8, usize, u8), usize);

/// The matches of a site so far, by rank: what is of one rank must not match one request.
#[derive(Default)]
pub(crate) struct Ties {
    seen: HashMap<Rank, Vec<(Match, Position)>>,
}

impl Ties {
    /// Reports a route that ties with an earlier one.
    pub(crate) fn check(&mut self, cx: &mut Cx<'_>, when: &Match, position: &Position, route: &str) {
        let peers = self.seen.entry((when.path.rank(), when.conditions())).or_default();
        let same = peers.iter().find(|(other, _)| other == when);
        let tie = same.or_else(|| peers.iter().find(|(other, _)| other.overlaps(when)));
        if let Some((other, first)) = tie {
            let message = if other == when {
                "another route of this site matches the same requests"
            } else {
                "another route of this site can match the same request, and neither is more specific"
            };
            let fault = Fault::at(position, message).with_key(format!("{route}.match"));
            cx.report(fault.with_related("first here", first));
        }
        peers.push((when.clone(), position.clone()));
    }
}

/// Values may be secrets.
impl fmt::Debug for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |values: &[(String, ValueMatch)]| values.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        f.debug_struct("Match")
            .field("path", &self.path)
            .field("methods", &self.methods)
            .field("headers", &names(&self.headers))
            .field("query", &names(&self.query))
            .field("cookies", &names(&self.cookies))
            .field("clients", &self.clients)
            .field("geo", &self.geo)
            .field("tls", &self.tls)
            .field("sni", &self.sni)
            .finish()
    }
}

impl fmt::Debug for ValueMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present(present) => write!(f, "Present({present})"),
            Self::Exact(_) | Self::Prefix(_) | Self::Regex(_) => f.write_str("<value>"),
        }
    }
}

impl Match {
    pub(crate) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "Match")?;
        // A part that is wrong makes no match at all: it must not look equal to another.
        let path = fields.get("path").map(|at| parsed(cx, &at, "`/path`, `/path/*` or `~regex`", parse_path));
        let methods = fields.get("method").map(|at| read_methods(cx, &at));
        let headers = fields.get("header").map(|at| values(cx, &at, Named::Header));
        let query = fields.get("query").map(|at| values(cx, &at, Named::Parameter));
        let cookies = fields.get("cookie").map(|at| values(cx, &at, Named::Cookie));
        let clients = fields.get("client").map(|at| whole_list(cx, &at, range));
        let geo = fields.get("geo").map(|at| GeoMatch::read(cx, &at));
        let tls = fields.get("tls").map(|at| truth(cx, &at));
        let sni = fields.get("sni").map(|at| whole_list(cx, &at, server_name));
        fields.close(cx);
        Some(Self {
            path: path.unwrap_or_else(|| Some(Self::default().path))?,
            methods: methods.unwrap_or_else(|| Some(Vec::new()))?,
            headers: headers.unwrap_or_else(|| Some(Vec::new()))?,
            query: query.unwrap_or_else(|| Some(Vec::new()))?,
            cookies: cookies.unwrap_or_else(|| Some(Vec::new()))?,
            clients: clients.unwrap_or_else(|| Some(Vec::new()))?,
            geo: geo.unwrap_or_else(|| Some(GeoMatch::default()))?,
            tls: match tls {
                None => None,
                Some(tls) => Some(tls?),
            },
            sni: sni.unwrap_or_else(|| Some(Vec::new()))?,
        })
    }
}

/// A name that a client may ask for in a handshake: no address (RFC 6066, 3).
fn server_name(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Host> {
    let wrong = |help: &str| Err(("is no name that a client can ask for".to_owned(), Some(help.to_owned())));
    parsed(cx, at, "a host name or `\"*.example.com\"`", |text| match text.strip_prefix("*.") {
        Some(parent) => host_name(parent).map(Host::Wildcard),
        None if text == "*" => wrong("leave `sni` away, or ask for `tls: true`"),
        None if text.parse::<IpAddr>().is_ok() => wrong("clients that connect to an address ask for no name"),
        None => host_name(text).map(Host::Exact),
    })
}

impl GeoMatch {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        const CONTINENTS: [&str; 7] = ["AF", "AN", "AS", "EU", "NA", "OC", "SA"];
        if !cx.has_geo && !cx.incomplete {
            let fault = at.fault("there is no database that says where clients are");
            cx.report(fault.with_help("declare one: `geo: { database: FILE.mmdb }` at the top level"));
        }
        let mut fields = Fields::open(cx, at, "GeoMatch")?;
        let countries = fields.get("country").map(|at| {
            whole_list(cx, &at, |cx, at| {
                parsed(cx, at, "a country code", |text| {
                    let is_code = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_uppercase());
                    let help = || Some("two capital letters (ISO 3166-1 alpha-2): `DE`".into());
                    if is_code { Ok(text.to_owned()) } else { Err(("is not a country code".into(), help())) }
                })
            })
        });
        let continents = fields.get("continent").map(|at| {
            whole_list(cx, &at, |cx, at| {
                parsed(cx, at, "a continent", |text| {
                    let help = || Some(format!("one of {}", CONTINENTS.join(", ")));
                    if CONTINENTS.contains(&text) {
                        Ok(text.to_owned())
                    } else {
                        Err(("is not a continent".into(), help()))
                    }
                })
            })
        });
        fields.close(cx);
        Some(Self {
            countries: countries.unwrap_or_else(|| Some(Vec::new()))?,
            continents: continents.unwrap_or_else(|| Some(Vec::new()))?,
        })
    }
}

/// A list that is not empty, sorted, each item read; `None` if any is wrong.
fn whole_list<'t, T: Ord>(
    cx: &mut Cx<'_>,
    at: &At<'t>,
    mut read: impl FnMut(&mut Cx<'_>, &At<'t>) -> Option<T>,
) -> Option<Vec<T>> {
    let mut whole = true;
    let items = filled_list(cx, at, |cx, at| {
        let item = read(cx, at);
        whole &= item.is_some();
        item
    });
    items.filter(|_| whole).map(|mut items| {
        items.sort();
        items
    })
}

/// An address, or a range of them.
pub(crate) fn range(cx: &mut Cx<'_>, at: &At<'_>) -> Option<IpNet> {
    parsed(cx, at, "an address or a range of addresses", parse_range)
}

/// An address or a range of addresses; or what is wrong with it, and what helps.
pub(crate) fn parse_range(text: &str) -> Result<IpNet, (String, Option<String>)> {
    if let Ok(address) = text.parse::<std::net::IpAddr>() {
        return Ok(IpNet::from(address));
    }
    let range: IpNet = text.parse().map_err(|_| {
        ("is not a range of addresses".to_owned(), Some("write `10.0.0.0/8` or `2001:db8::/32`".to_owned()))
    })?;
    if range.trunc() == range {
        Ok(range)
    } else {
        Err(("has bits beyond its length".into(), Some(format!("did you mean `{}`?", range.trunc()))))
    }
}

/// What carries names and values.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Named {
    Header,
    Parameter,
    Cookie,
}

/// Values by name, sorted.
pub(crate) fn values(cx: &mut Cx<'_>, at: &At<'_>, kind: Named) -> Option<Vec<(String, ValueMatch)>> {
    let mut whole = true;
    let mut seen: BTreeMap<String, (Option<ValueMatch>, Position)> = BTreeMap::new();
    for entry in mapping(cx, at)? {
        let inner = at.entry(entry);
        let key_fault = |message: String| Fault::at(&entry.key_position, message).with_key(inner.path.clone());
        let (name, what) = match kind {
            Named::Header => (entry.key.to_ascii_lowercase(), "header"),
            Named::Parameter => (entry.key.clone(), "parameter"),
            Named::Cookie => (entry.key.clone(), "cookie"),
        };
        if name.is_empty() || kind != Named::Parameter && !is_token(&name) {
            cx.report(key_fault(format!("`{}` is not a {what} name", brief(&entry.key))));
            whole = false;
            continue;
        }
        if let Some((_, first)) = seen.get(&name) {
            let fault = key_fault(format!("the {what} `{name}` is written twice")).with_related("first here", first);
            cx.report(fault.with_help("case does not matter in header names"));
            whole = false;
            continue;
        }
        let value = ValueMatch::read(cx, &inner);
        whole &= value.is_some();
        seen.insert(name, (value, entry.key_position.clone()));
    }
    let values = seen.into_iter().filter_map(|(name, (value, _))| Some((name, value?))).collect();
    whole.then_some(values)
}

impl ValueMatch {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        if !matches!(at.node.data, Data::Map(_)) {
            return header_value(cx, at).map(Self::Exact);
        }
        let mut fields = Fields::open(cx, at, "ValueRule")?;
        let prefix = fields.get("prefix");
        let regex = fields.get("regex");
        let present = fields.get("present");
        let count = [&prefix, &regex, &present].iter().filter(|at| at.is_some()).count();
        if count > 1 {
            cx.report(at.fault("only one of `prefix`, `regex` and `present` can be written"));
        }
        let value = match (prefix, regex, present) {
            (Some(at), ..) => header_value(cx, &at).map(Self::Prefix),
            (_, Some(at), _) => parsed(cx, &at, "a regular expression", parse_regex).map(Self::Regex),
            (_, _, Some(at)) => truth(cx, &at).map(Self::Present),
            (None, None, None) => {
                let fault = at.fault("nothing is said about the value");
                cx.refuse(fault.with_help("write one of `prefix`, `regex` and `present`"))
            }
        };
        fields.close(cx);
        value
    }
}

fn parse_regex(text: &str) -> Result<String, (String, Option<String>)> {
    match compiled(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => {
            let last = error.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            Err(("is not a regular expression".into(), Some(last)))
        }
    }
}

fn compiled(regex: &str) -> Result<regex::Regex, regex::Error> {
    RegexBuilder::new(regex).size_limit(REGEX_SIZE).build()
}

pub(crate) fn parse_path(text: &str) -> Result<PathMatch, (String, Option<String>)> {
    let wrong = |why: &str, help: String| Err((why.to_owned(), Some(help)));
    if let Some(regex) = text.strip_prefix('~') {
        return parse_regex(regex).map(PathMatch::Regex);
    }
    if !text.starts_with('/') {
        return wrong("does not begin with `/`", format!("did you mean `/{text}`?"));
    }
    if let Some(bad) =
        text.chars().find(|c| matches!(c, '?' | '#') || c.is_whitespace() || c.is_control() || !c.is_ascii())
    {
        let help = match bad {
            '?' | '#' => "a path ends before `?` and `#`; use `match` for the path alone".into(),
            _ => "write other characters percent-encoded, as they stand in a request".into(),
        };
        return wrong("is not a path", help);
    }
    if text.split('/').any(|segment| matches!(segment, "." | "..")) {
        return wrong(
            "has a dot segment",
            "requests are matched after `.` and `..` are resolved (RFC 3986, 5.2.4)".into(),
        );
    }
    let prefix = text.strip_suffix("/*");
    let rest = prefix.unwrap_or(text);
    if !rest.contains('*') {
        return Ok(prefix.map_or_else(|| PathMatch::Exact(text.into()), |prefix| PathMatch::Prefix(prefix.into())));
    }
    let segment = |segment: &str| match segment {
        "*" => Some(None),
        literal if literal.contains('*') => None,
        literal => Some(Some(literal.to_owned())),
    };
    match rest[1..].split('/').map(segment).collect() {
        Some(segments) => Ok(PathMatch::Pattern { segments, below: prefix.is_some() }),
        None => wrong("has a wildcard inside a segment", "`*` stands for a whole segment: `/x/*/y`".into()),
    }
}

/// The methods, sorted, so that two lists of the same are equal.
pub(crate) fn read_methods(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Vec<String>> {
    const USUAL: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"];
    let mut seen = BTreeSet::new();
    let mut whole = true;
    let methods = filled_list(cx, at, |cx, at| {
        let method = parsed(cx, at, "a method", |text| {
            let upper = text.to_ascii_uppercase();
            if text != upper && USUAL.contains(&upper.as_str()) {
                return Err((
                    "is not a method".into(),
                    Some(format!("did you mean `{upper}`? methods are case-sensitive")),
                ));
            }
            if is_token(text) { Ok(text.to_owned()) } else { Err(("is not a method".into(), None)) }
        });
        whole &= method.is_some();
        let method = method?;
        if seen.insert(method.clone()) {
            Some(method)
        } else {
            whole = false;
            cx.refuse(at.fault("this method is written twice"))
        }
    });
    methods.filter(|_| whole).map(|mut methods| {
        methods.sort();
        methods
    })
}
