//! What a route does to a request and its response: header fields, another target, a redirect.

use std::{collections::BTreeMap, fmt};

use regex::RegexBuilder;
use schemars::JsonSchema;

use crate::{
    decode::{
        At, Cx, Fields, brief, host_name, is_token, is_visible, list, mapping, no_header_value, parsed, text, truth,
        whole,
    },
    matching::REGEX_SIZE,
    report::Fault,
};

/// Header fields that are set, added and removed, in this order: `remove`, `set`, `add`. A site's come before its routes' own.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct HeaderRules {
    /// On the request, as the upstream gets it. Filters see the client's own.
    #[schemars(with = "Option<FieldRules>")]
    pub request: FieldRules,

    /// On the response, before the filters see it: of the upstream, of the cache, fixed ones and redirects; not on answers of filters and
    /// on the node's own errors. What is stored in the cache is the response without them.
    #[schemars(with = "Option<FieldRules>")]
    pub response: FieldRules,
}

/// Header fields that are removed, set and added. Not those that say how the message is framed (`content-length`, `connection`, ..), and
/// not `host`, which `rewrite` changes. Values are [templates](Template): `"${client.ip}"`.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct FieldRules {
    /// Taken away. Here in lower case. Default: none.
    #[schemars(with = "Option<Vec<String>>")]
    pub remove: Vec<String>,

    /// Written in place of what is there. Here sorted by name, names in lower case. Default: none.
    #[schemars(with = "Option<BTreeMap<String, String>>")]
    pub set: Vec<(String, Template)>,

    /// Written beside what is there. Here sorted by name, names in lower case. Default: none.
    #[schemars(with = "Option<BTreeMap<String, String>>")]
    pub add: Vec<(String, Template)>,
}

/// The target as the upstream gets it. Routes, filters and cache keys go by the client's own.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Rewrite {
    /// What stands in place of the part of the path that the route's `match.path` names: with `match: { path: /old/* }` and `/new`,
    /// `/old/a` is asked for as `/new/a`. The route needs a path that is exact or a prefix. `/` takes the part away. Not with `path`.
    pub prefix: Option<String>,

    /// A regular expression and what is written in place of what it matches, on the path: `{ regex: "^/v1/(.*)", with: "/v2/$1" }`.
    pub path: Option<RewritePath>,

    /// What stands in Host, without a port or with one. Default: what the client sent.
    pub host: Option<String>,

    /// Whether the query goes on. Default `true`.
    #[schemars(with = "Option<bool>", extend("default" = true))]
    pub query: bool,
}

/// What is replaced in a path.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct RewritePath {
    /// What is replaced: the first place where it matches. A path that it does not match stays. Required.
    pub regex: String,

    /// What is written there: `$1` and `${name}` stand for the expression's groups. The result has to begin with `/`, else the request
    /// gets 500. Required.
    pub with: String,
}

/// An answer that sends the client elsewhere.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Redirect {
    /// Where to: a URL or a path, a [template](Template): `"https://${host}${uri}"`. Required.
    #[schemars(with = "String")]
    pub to: Template,

    /// The status: 301, 302, 303, 307 or 308. 307 and 308 keep method and body; 301 and 308 are permanent, and caches and browsers keep
    /// them. Default `308`.
    #[schemars(with = "Option<u16>", extend("default" = 308))]
    pub status: u16,
}

/// Text with request variables, `${..}`. Write it in quotes: in plain text, `${..}` are variables of the environment. `$${` writes a
/// literal `${`. A variable without a value is empty text.
#[derive(Clone, PartialEq, Eq)]
pub struct Template {
    /// In order.
    pub parts: Vec<Part>,
}

/// A part of a [`Template`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Text as it is.
    Text(String),
    /// `client.ip`: the client's address.
    ClientIp,
    /// `client.port`.
    ClientPort,
    /// `scheme`: `http` or `https`, as the client asks.
    Scheme,
    /// `host`: the host the client asks for, without port.
    Host,
    /// `authority`: the host with port, as the client sent it.
    Authority,
    /// `method`.
    Method,
    /// `path`: normalised, without the query.
    Path,
    /// `query`: without the question mark.
    Query,
    /// `uri`: path and query, with the question mark if there is a query.
    Uri,
    /// `route`: the route's name.
    Route,
    /// `site`: the first host of the site.
    Site,
    /// `node`: the node's name.
    Node,
    /// `status`: of the response; in requests empty.
    Status,
    /// `geo.country`: ISO 3166-1 alpha-2.
    Country,
    /// `geo.continent`.
    Continent,
    /// `header.NAME`: the first field of the request, in lower case.
    Header(String),
    /// `cookie.NAME`: the first value.
    Cookie(String),
    /// `param.NAME`: the first value in the query, as it stands there.
    Parameter(String),
}

/// What may stand in `${..}`, for messages.
const VARIABLES: &str = "client.ip, client.port, scheme, host, authority, method, path, query, uri, route, site, node, status, \
                         geo.country, geo.continent, header.NAME, cookie.NAME, param.NAME";

/// Fields that say how a message is framed, belong to one connection (RFC 9110, 7.6.1), or are the node's.
pub(crate) const NOT_TO_WRITE: [&str; 10] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

impl Template {
    /// Whether it is nothing but text.
    #[must_use]
    pub fn is_text(&self) -> bool {
        self.parts.iter().all(|part| matches!(part, Part::Text(_)))
    }

    fn parse(text: &str) -> Result<Self, (String, Option<String>)> {
        let mut parts: Vec<Part> = Vec::new();
        let mut rest = text;
        let push_text = |parts: &mut Vec<Part>, text: &str| match parts.last_mut() {
            _ if text.is_empty() => {}
            Some(Part::Text(last)) => last.push_str(text),
            _ => parts.push(Part::Text(text.to_owned())),
        };
        while let Some(found) = rest.find("${") {
            if let Some(before) = rest[..found].strip_suffix('$') {
                push_text(&mut parts, before);
                push_text(&mut parts, "${");
                rest = &rest[found + 2..];
                continue;
            }
            push_text(&mut parts, &rest[..found]);
            let Some(end) = rest[found..].find('}') else {
                return Err(("has a `${` without `}`".into(), Some("write `$${` for a literal `${`".into())));
            };
            let name = &rest[found + 2..found + end];
            let Some(part) = Part::of(name) else {
                let why = format!("has `${{{}}}`, which is no request variable", brief(name));
                return Err((why, Some(format!("there are {VARIABLES}"))));
            };
            parts.push(part);
            rest = &rest[found + end + 1..];
        }
        push_text(&mut parts, rest);
        let visible = |part: &Part| match part {
            Part::Text(text) => is_visible(text),
            _ => true,
        };
        if !parts.iter().all(visible) {
            return Err(no_header_value());
        }
        Ok(Self { parts })
    }
}

impl Part {
    fn of(name: &str) -> Option<Self> {
        let named = |name: &str| is_token(name).then(|| name.to_owned());
        Some(match name {
            "client.ip" => Self::ClientIp,
            "client.port" => Self::ClientPort,
            "scheme" => Self::Scheme,
            "host" => Self::Host,
            "authority" => Self::Authority,
            "method" => Self::Method,
            "path" => Self::Path,
            "query" => Self::Query,
            "uri" => Self::Uri,
            "route" => Self::Route,
            "site" => Self::Site,
            "node" => Self::Node,
            "status" => Self::Status,
            "geo.country" => Self::Country,
            "geo.continent" => Self::Continent,
            _ => match name.split_once('.')? {
                ("header", name) => Self::Header(named(&name.to_ascii_lowercase())?),
                ("cookie", name) => Self::Cookie(named(name)?),
                ("param", name) if !name.is_empty() => Self::Parameter(name.to_owned()),
                _ => return None,
            },
        })
    }
}

/// Values may be secrets.
impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<template>")
    }
}

impl HeaderRules {
    pub(crate) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "HeaderRules")?;
        let request = fields.read(cx, "request", FieldRules::read).unwrap_or_default();
        let response = fields.read(cx, "response", FieldRules::read).unwrap_or_default();
        fields.close(cx);
        Some(Self { request, response })
    }

    /// These, then those.
    #[must_use]
    pub(crate) fn then(&self, more: &Self) -> Self {
        Self { request: self.request.then(&more.request), response: self.response.then(&more.response) }
    }
}

impl FieldRules {
    /// Whether nothing is to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }

    fn then(&self, more: &Self) -> Self {
        // What is written later wins: a field that is set again, or removed, is not set before.
        let stays = |name: &String| !more.remove.contains(name) && !more.set.iter().any(|(later, _)| later == name);
        let earlier = |fields: &[(String, Template)]| -> Vec<_> {
            fields.iter().filter(|(name, _)| stays(name)).cloned().collect()
        };
        Self {
            remove: self.remove.iter().chain(&more.remove).cloned().collect(),
            set: earlier(&self.set).into_iter().chain(more.set.iter().cloned()).collect(),
            add: earlier(&self.add).into_iter().chain(more.add.iter().cloned()).collect(),
        }
    }

    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "FieldRules")?;
        let remove = fields.read(cx, "remove", |cx, at| {
            list(cx, at, |cx, at| {
                let name = text(cx, at)?.to_ascii_lowercase();
                may_write(cx, &name, |message| at.fault(message)).then_some(name)
            })
        });
        let set = fields.read(cx, "set", templates);
        let add = fields.read(cx, "add", templates);
        fields.close(cx);
        Some(Self { remove: remove.unwrap_or_default(), set: set.unwrap_or_default(), add: add.unwrap_or_default() })
    }
}

fn may_write(cx: &mut Cx<'_>, name: &str, fault: impl Fn(String) -> Fault) -> bool {
    if !is_token(name) {
        cx.report(fault(format!("`{}` is not a header name", brief(name))));
        return false;
    }
    if NOT_TO_WRITE.contains(&name) {
        cx.report(fault(format!("the header `{name}` is the node's to write")));
        return false;
    }
    true
}

fn templates(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Vec<(String, Template)>> {
    let mut fields = BTreeMap::new();
    for entry in mapping(cx, at)? {
        let inner = at.entry(entry);
        let name = entry.key.to_ascii_lowercase();
        let fault = |message: String| Fault::at(&entry.key_position, message).with_key(inner.path.clone());
        if !may_write(cx, &name, fault) {
            continue;
        }
        let value = template(cx, &inner);
        if fields.contains_key(&name) {
            cx.report(
                fault(format!("the header `{name}` is written twice"))
                    .with_help("case does not matter in header names"),
            );
        }
        if let Some(value) = value {
            fields.insert(name, value);
        }
    }
    Some(fields.into_iter().collect())
}

fn template(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Template> {
    let template = parsed(cx, at, "text with request variables", Template::parse)?;
    let asks_where = template.parts.iter().any(|part| matches!(part, Part::Country | Part::Continent));
    if asks_where && !cx.has_geo && !cx.incomplete {
        let fault = at.fault("there is no database that says where clients are");
        cx.report(fault.with_help("declare one: `geo: { database: FILE.mmdb }` at the top level"));
    }
    Some(template)
}

impl Redirect {
    pub(crate) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "Redirect")?;
        let to = fields.need(cx, "to", template);
        let status = fields.read(cx, "status", |cx, at| {
            let status = whole(cx, at, 300, 399)?;
            if matches!(status, 301 | 302 | 303 | 307 | 308) {
                return Some(status);
            }
            cx.refuse(at.fault(format!("{status} is no redirect")).with_help("one of 301, 302, 303, 307 and 308"))
        });
        fields.close(cx);
        Some(Self { to: to?, status: status.unwrap_or(308) })
    }
}

impl Rewrite {
    pub(crate) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "Rewrite")?;
        let prefix_at = fields.get("prefix");
        let prefix = prefix_at.as_ref().and_then(|at| {
            parsed(cx, at, "a path", |text| {
                let fine = text.starts_with('/')
                    && text.bytes().all(|byte| matches!(byte, b'!'..=b'~') && !b"?#*".contains(&byte));
                if fine {
                    Ok(text.to_owned())
                } else {
                    Err(("is not a path".into(), Some("a path begins with `/`".into())))
                }
            })
        });
        let path_at = fields.get("path");
        let path = path_at.as_ref().and_then(|at| RewritePath::read(cx, at));
        if let (Some(prefix), Some(path)) = (&prefix_at, &path_at) {
            let fault =
                Fault::at(path.name_position(), "`prefix` and `path` are both written").with_key(path.path.clone());
            cx.report(fault.with_related("the other one", prefix.name_position()));
        }
        let host = fields.read(cx, "host", |cx, at| {
            parsed(cx, at, "a host", |text| {
                let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
                match port.bytes().all(|byte| byte.is_ascii_digit()) && port.len() <= 5 {
                    true => host_name(host).map(|host| if port.is_empty() { host } else { format!("{host}:{port}") }),
                    false => Err(("is not a host".into(), None)),
                }
            })
        });
        let query = fields.read(cx, "query", truth);
        fields.close(cx);
        Some(Self { prefix, path, host, query: query.unwrap_or(true) })
    }
}

impl RewritePath {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "RewritePath")?;
        let regex = fields.need(cx, "regex", |cx, at| {
            parsed(cx, at, "a regular expression", |text| {
                match RegexBuilder::new(text).size_limit(REGEX_SIZE).build() {
                    Ok(_) => Ok(text.to_owned()),
                    Err(error) => {
                        let last = error
                            .to_string()
                            .lines()
                            .last()
                            .unwrap_or_default()
                            .trim_start_matches("error: ")
                            .to_owned();
                        Err(("is not a regular expression".into(), Some(last)))
                    }
                }
            })
        });
        let with = fields.need(cx, "with", text);
        fields.close(cx);
        Some(Self { regex: regex?, with: with? })
    }
}
