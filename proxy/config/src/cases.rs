//! `tests`: requests, and what is expected of the configuration for each.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use schemars::JsonSchema;

use crate::decode::{At, Cx, Fields, headers, is_token, mapping, parsed, reference, text, truth, unknown_name, whole};
use crate::matching::{ValueMatch, values};
use crate::report::Position;
use crate::sites::Site;

/// A request, and what is expected for it. `selvedge test` runs it through routes and filters, without sockets: each with fresh filters and
/// an empty cache.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Test {
    /// What it is called; unique. Required.
    pub name: String,

    /// What is asked. Required.
    pub request: TestRequest,

    /// What upstreams answer, by name, to requests and to calls of filters. Those not named answer 200 with an empty body.
    #[schemars(with = "Option<BTreeMap<String, TestOrigin>>")]
    pub origins: BTreeMap<String, TestOrigin>,

    /// What must come of it. At least one key. Required.
    pub expect: Expect,

    /// Where the test is written.
    #[schemars(skip)]
    pub position: Position,
}

/// A request as a client sends it, over HTTP/1.1.
#[derive(Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct TestRequest {
    /// `https://host[:port]/path?query`, or a path alone. It is sent as it is written. Required.
    pub url: String,

    /// The method. Default `GET`.
    #[schemars(with = "Option<String>", extend("default" = "GET"))]
    pub method: String,

    /// Header fields; `host` stands for the host of the URL. Here sorted by name, names in lower case.
    #[schemars(with = "Option<BTreeMap<String, String>>")]
    pub headers: Vec<(String, String)>,

    /// The body, with a `content-length` if no field says how long it is. Default: none.
    #[schemars(with = "Option<String>")]
    pub body: String,

    /// The address the connection comes from. Default `127.0.0.1`.
    #[schemars(with = "Option<String>")]
    pub client: Option<IpAddr>,

    /// Instead of `client`: an address of this country (ISO 3166-1 alpha-2, `DE`), by the top-level `geo` database, which it needs.
    pub country: Option<String>,

    /// The listener it arrives on. Default: the one with the port of the URL, else the first with its scheme.
    pub listener: Option<String>,
}

/// Values may be secrets.
impl fmt::Debug for TestRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestRequest")
            .field("method", &self.method)
            .field("headers", &self.headers.iter().map(|(name, _)| name).collect::<Vec<_>>())
            .field("body", &format_args!("<{} bytes>", self.body.len()))
            .field("client", &self.client)
            .field("country", &self.country)
            .field("listener", &self.listener)
            .finish_non_exhaustive()
    }
}

/// What an upstream answers.
#[derive(Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct TestOrigin {
    /// Whether it takes no connections. The other keys say nothing then. Default `false`.
    #[schemars(with = "Option<bool>", extend("default" = false))]
    pub down: bool,

    /// The status, 200 to 599. Default `200`.
    #[schemars(with = "Option<u16>", range(min = 200, max = 599), extend("default" = 200))]
    pub status: u16,

    /// Header fields. Here sorted by name, names in lower case.
    #[schemars(with = "Option<BTreeMap<String, String>>")]
    pub headers: Vec<(String, String)>,

    /// The body. Default: empty.
    #[schemars(with = "Option<String>")]
    pub body: String,
}

impl Default for TestOrigin {
    fn default() -> Self {
        Self { down: false, status: 200, headers: Vec::new(), body: String::new() }
    }
}

/// Values may be secrets.
impl fmt::Debug for TestOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestOrigin").field("down", &self.down).field("status", &self.status).finish_non_exhaustive()
    }
}

/// What must come of a request; all that is written must hold.
#[derive(Debug, Clone, PartialEq, Default, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Expect {
    /// The route that is taken, by name; `none` for no route.
    pub route: Option<String>,

    /// The site, by the first of its hosts.
    pub site: Option<String>,

    /// The status of the response to the client.
    #[schemars(range(min = 200, max = 599))]
    pub status: Option<u16>,

    /// Fields of that response, each with exactly this value, or as `{ prefix | regex | present }` says. Here sorted by name, names in lower
    /// case.
    #[schemars(with = "Option<BTreeMap<String, ValueMatch>>")]
    pub headers: Vec<(String, ValueMatch)>,

    /// The `location` field of that response.
    pub location: Option<String>,

    /// The cache key as `selvedge route explain` shows it, such as `https://example.com/a?id=1`; `none` when the cache is not used.
    pub cache_key: Option<String>,

    /// The upstream that the request was sent to, by name; `none` when it was sent to none.
    pub upstream: Option<String>,

    /// Path and query as the upstream got them; `none` when it got nothing.
    pub path: Option<String>,

    /// Where each key is written; fields of `headers` as `headers.NAME`.
    #[schemars(skip)]
    pub positions: BTreeMap<String, Position>,
}

/// What tests may refer to.
pub(crate) struct Names<'n> {
    pub(crate) listeners: &'n BTreeSet<&'n str>,
    pub(crate) upstreams: &'n BTreeSet<&'n str>,
    /// `None` while a site is at fault: then nobody knows which there are.
    pub(crate) sites: Option<&'n [Site]>,
}

/// The word for "nothing of the kind".
const NONE: &str = "none";

/// The tests of all files, in their order.
pub(crate) fn read(cx: &mut Cx<'_>, all: &[At<'_>], names: &Names<'_>) -> Vec<Test> {
    let mut seen: BTreeMap<String, Position> = BTreeMap::new();
    let mut tests = Vec::new();
    for at in all {
        let Some(test) = Test::read(cx, at, names) else { continue };
        if let Some(first) = seen.get(&test.name) {
            let fault = at.fault("another test has the same name").with_related("first here", first);
            cx.report(fault);
            continue;
        }
        seen.insert(test.name.clone(), test.position.clone());
        tests.push(test);
    }
    tests
}

impl Test {
    fn read(cx: &mut Cx<'_>, at: &At<'_>, names: &Names<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "Test")?;
        let name = fields.need(cx, "name", |cx, at| {
            parsed(cx, at, "a name", |text| {
                let fits = !text.trim().is_empty() && !text.contains(char::is_control);
                if fits { Ok(text.to_owned()) } else { Err(("is not a name".into(), None)) }
            })
        });
        let request = fields.need(cx, "request", |cx, at| TestRequest::read(cx, at, names));
        let origins = fields.read(cx, "origins", |cx, at| {
            let mut origins = BTreeMap::new();
            for entry in mapping(cx, at)? {
                let inner = at.entry(entry);
                if !names.upstreams.contains(entry.key.as_str()) {
                    unknown_name::<()>(cx, &inner, &entry.key_position, "upstream", &entry.key, names.upstreams);
                }
                if let Some(origin) = TestOrigin::read(cx, &inner) {
                    origins.insert(entry.key.clone(), origin);
                }
            }
            Some(origins)
        });
        let expect = fields.need(cx, "expect", |cx, at| Expect::read(cx, at, names));
        fields.close(cx);
        Some(Self {
            name: name?,
            request: request?,
            origins: origins.unwrap_or_default(),
            expect: expect?,
            position: at.node.position.clone(),
        })
    }
}

impl TestRequest {
    fn read(cx: &mut Cx<'_>, at: &At<'_>, names: &Names<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "TestRequest")?;
        let url = fields.need(cx, "url", |cx, at| parsed(cx, at, "`https://host/path` or a path", url));
        let method = fields.read(cx, "method", |cx, at| {
            parsed(cx, at, "a method", |text| {
                if is_token(text) { Ok(text.to_owned()) } else { Err(("is not a method".into(), None)) }
            })
        });
        let headers = fields.read(cx, "headers", headers);
        let body = fields.read(cx, "body", text);
        let client = fields.read(cx, "client", |cx, at| {
            parsed(cx, at, "an IP address", |text| text.parse().map_err(|_| ("is not an IP address".into(), None)))
        });
        let country_at = fields.get("country");
        let country = country_at.as_ref().and_then(|at| {
            if !cx.has_geo && !cx.incomplete {
                let fault = at.fault("nobody knows where clients are: there is no `geo`");
                cx.report(fault.with_help("declare a database: `geo: { database: .. }` at the top level"));
            }
            parsed(cx, at, "the code of a country, such as `DE`", |text| {
                let code = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_uppercase());
                if code { Ok(text.to_owned()) } else { Err(("is not the code of a country".into(), None)) }
            })
        });
        if let Some(at) = country_at.filter(|_| client.is_some()) {
            cx.report(at.fault("`client` and `country` are both written").with_help("write one of them"));
        }
        let listener = fields.read(cx, "listener", |cx, at| reference(cx, at, "listener", names.listeners));
        fields.close(cx);
        Some(Self {
            url: url?,
            method: method.unwrap_or_else(|| "GET".into()),
            headers: headers.unwrap_or_default(),
            body: body.unwrap_or_default(),
            client,
            country,
            listener,
        })
    }
}

/// What is wrong with a host or a path is for the node to say: here it is only made sure that there are any.
fn url(text: &str) -> Result<String, (String, Option<String>)> {
    let lower = text.to_ascii_lowercase();
    let known = text.starts_with('/') || text == "*" || lower.starts_with("http://") || lower.starts_with("https://");
    if !known || text.contains(char::is_control) {
        return Err(("is neither a URL of http or https nor a path".into(), None));
    }
    Ok(text.to_owned())
}

impl TestOrigin {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let default = Self::default();
        let mut fields = Fields::open(cx, at, "TestOrigin")?;
        let down = fields.read(cx, "down", truth);
        let status = fields.read(cx, "status", |cx, at| whole(cx, at, 200, 599));
        let headers = fields.read(cx, "headers", headers);
        let body = fields.read(cx, "body", text);
        fields.close(cx);
        Some(Self {
            down: down.unwrap_or(default.down),
            status: status.unwrap_or(default.status),
            headers: headers.unwrap_or_default(),
            body: body.unwrap_or_default(),
        })
    }
}

impl Expect {
    fn read(cx: &mut Cx<'_>, at: &At<'_>, names: &Names<'_>) -> Option<Self> {
        let mut positions = BTreeMap::new();
        if let Some(entries) = mapping(cx, at) {
            positions.extend(entries.iter().map(|entry| (entry.key.clone(), entry.value.position.clone())));
            if entries.is_empty() {
                cx.report(at.fault("nothing is expected").with_help("write what must come of it: `status: 200`"));
            }
        }
        let mut fields = Fields::open(cx, at, "Expect")?;
        let hosts: Option<Vec<String>> = names.sites.map(|sites| sites.iter().filter_map(first_host).collect());
        let site = fields.read(cx, "site", |cx, at| known_name(cx, at, "site", hosts.as_deref()));
        let route = fields.read(cx, "route", |cx, at| {
            let known: Option<Vec<&str>> = names.sites.map(|sites| {
                let routes = sites.iter().flat_map(|site| site.routes.iter().map(|route| route.name.as_str()));
                routes.chain([NONE]).collect()
            });
            known_name(cx, at, "route", known.as_deref())
        });
        let status = fields.read(cx, "status", |cx, at| whole(cx, at, 200, 599));
        let headers = fields.read(cx, "headers", |cx, at| {
            if let Some(entries) = mapping(cx, at) {
                let of = |entry: &crate::tree::Entry| {
                    (format!("headers.{}", entry.key.to_ascii_lowercase()), entry.value.position.clone())
                };
                positions.extend(entries.iter().map(of));
            }
            values(cx, at, crate::matching::Named::Header)
        });
        let location = fields.read(cx, "location", text);
        let cache_key = fields.read(cx, "cache_key", text);
        let upstream = fields.read(cx, "upstream", |cx, at| {
            let known: Vec<&str> = names.upstreams.iter().copied().chain([NONE]).collect();
            known_name(cx, at, "upstream", Some(&known))
        });
        let path = fields.read(cx, "path", text);
        fields.close(cx);
        Some(Self {
            route,
            site,
            status,
            headers: headers.unwrap_or_default(),
            location,
            cache_key,
            upstream,
            path,
            positions,
        })
    }

    /// Where a key is written, or else the whole.
    #[must_use]
    pub fn position_of(&self, key: &str) -> Option<&Position> {
        self.positions.get(key)
    }
}

fn first_host(site: &Site) -> Option<String> {
    site.hosts.first().map(ToString::to_string)
}

/// A name out of those that are known; any, while nobody knows which there are.
fn known_name(cx: &mut Cx<'_>, at: &At<'_>, what: &str, known: Option<&[impl AsRef<str>]>) -> Option<String> {
    match known {
        Some(known) => reference(cx, at, what, &known.iter().map(AsRef::as_ref).collect()),
        None => text(cx, at),
    }
}
