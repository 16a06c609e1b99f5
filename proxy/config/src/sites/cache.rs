//! `cache` of a route: which responses are kept, how long, and what makes two requests the same.

use std::{borrow::Cow, collections::BTreeSet, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::tags::CacheTags;
use crate::{
    decode::{At, Cx, Fields, choice, duration, filled_list, is_token, mapping, parsed, size, text, truth},
    filters::{Declared, FilterUse, OnFailure, WasmSource},
    report::{Fault, Position},
    tree::Data,
    values::{ByteSize, DurationText},
};

/// Which responses of a route are kept, and how long (RFC 9111, RFC 5861). What the origin says wins unless `override`.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct CachePolicy {
    /// How long a response is fresh when the origin does not say: one duration for the statuses that may be kept without being told
    /// to (200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501), or one for each of some statuses:
    /// `{ "200-299": 10m, "404": 10s }`. Above zero. Default: such responses are not kept.
    pub ttl: Option<Ttl>,

    /// Whether `ttl` wins over what the origin says, for the statuses it names, or for all if it names none. It can serve what the
    /// origin forbids to store: only for origins that send wrong headers. Needs `ttl`. Default `false`.
    #[schemars(rename = "override", with = "Option<bool>", extend("default" = false))]
    pub override_origin: bool,

    /// What makes two requests the same, beside scheme, host and path.
    #[schemars(with = "Option<CacheKey>", extend("default" = {}))]
    pub key: CacheKey,

    /// What becomes of responses with `Set-Cookie`: `store` keeps them as the origin allows, cookie included (RFC 9111, 7.3); `strip`
    /// keeps them without it, and only the client whose request fetched one gets the cookie; `pass` keeps none of them. With
    /// `override` they are kept by `strip` only. Default `store`.
    #[schemars(with = "Option<SetCookie>", extend("default" = "store"))]
    pub cookies: SetCookie,

    /// The languages the origin has, the one to prefer first. `Accept-Language` then becomes the one of them that a client prefers
    /// (RFC 4647, 3.4), before the cache is asked and for the origin too, so that a response that varies by it is kept once per
    /// language instead of once per browser. Default: it stays as it is.
    #[schemars(with = "Option<Vec<String>>", length(min = 1))]
    pub languages: Vec<String>,

    /// Objects are fetched and kept in slices of this size, and only those that a request needs: for large files of which clients want
    /// parts. The origin must know ranges (RFC 9110, 14); where it does not, objects are fetched whole. From `64KiB`, at most the
    /// store's `max_object`. Absent: objects are kept whole.
    #[schemars(with = "Option<ByteSize>")]
    pub slice: Option<ByteSize>,

    /// What a request for a part fetches that nothing is stored for: the `whole`, which then serves every range; or the range
    /// `as_asked`, which is kept for requests of the very same range, if the origin says how long it is fresh. That suits large
    /// files whose clients ask for the same pieces. Default `whole`.
    #[schemars(with = "Option<Ranges>", extend("default" = "whole"))]
    pub ranges: Ranges,

    /// How long after it went stale a response may be served while a new one is fetched (RFC 5861, 3), when the origin does
    /// not say. Above zero. Default: not at all.
    #[schemars(with = "Option<DurationText>")]
    pub stale_while_revalidate: Option<Duration>,

    /// How long after it went stale a response may be served when the origin fails (RFC 5861, 4), when the origin does not
    /// say. Above zero. Default: for a day when it cannot be reached (RFC 9111, 4.2.4), not at all when it answers an error.
    #[schemars(with = "Option<DurationText>")]
    pub stale_if_error: Option<Duration>,

    /// Whether `Cache-Control` in requests is obeyed (`no-cache`, `no-store`, `max-age`, `min-fresh`, `max-stale`,
    /// `only-if-cached`, and `Pragma: no-cache`; RFC 9111, 5.2.1). Any client can then have the origin asked as often as it
    /// likes: a browser's reload does. Default `false`.
    #[schemars(with = "Option<bool>", extend("default" = false))]
    pub request_directives: bool,

    /// Whether `Cache-Status` tells clients what the key of a response is made of (`key`, RFC 9211, 2.7): the URL as it counts, the kind of
    /// device, the place; of header fields and cookies only which count. For finding out why something is not hit. Default `false`.
    #[schemars(with = "Option<bool>", extend("default" = false))]
    pub show_key: bool,

    /// What responses are tagged with, for purges by tag.
    #[schemars(with = "Option<CacheTags>", extend("default" = {}))]
    pub tags: CacheTags,

    /// Where the policy is written.
    #[schemars(skip)]
    pub position: Position,
}

/// How long responses are fresh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ttl {
    /// All that may be kept.
    One(Duration),
    /// Those of these statuses: from, to, how long. They do not overlap.
    ByStatus(Vec<(u16, u16, Duration)>),
}

/// What becomes of responses with `Set-Cookie`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum SetCookie {
    /// They are kept like others.
    #[default]
    Store,
    /// They are kept without it.
    Strip,
    /// They are not kept.
    Pass,
}

/// What is fetched for a range.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum Ranges {
    /// All of it.
    #[default]
    Whole,
    /// The range.
    AsAsked,
}

/// What makes two requests the same, beside scheme, host and path. Each part makes more objects of one URL: a purge of the URL reaches all
/// of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct CacheKey {
    /// Which query parameters count: `all`, `{ only: [NAME, ..] }` or `{ except: [NAME, ..] }`; the others are then no part of
    /// the key. `{ only: [] }` means none does. Fewer hit more often; without one that matters wrong pages are served. Default `all`.
    #[schemars(with = "Option<QueryKey>", extend("default" = "all"))]
    pub query: QueryKey,

    /// Whether the order of parameters does not count: they are sorted by name for the key; those of one name stay in their order. The
    /// origin gets them as they came. With `only` it never counts. Default `false`.
    #[schemars(with = "Option<bool>", extend("default" = false))]
    pub sort: bool,

    /// Request header fields whose values count, as they are after the route's filters: what `jwt-auth` makes of a claim, or
    /// `ab-routing` of a variant. For what the origin names in `Vary` it is not needed. Default: none.
    #[schemars(with = "Option<Vec<String>>", length(min = 1))]
    pub headers: Vec<String>,

    /// Claims of the client's token that count, by the names in `claims_to_headers` of a `builtin:jwt-auth` among the route's filters:
    /// only what that filter has verified counts. Without such a filter, or with one that fails open, this is a fault. A token without
    /// the claim is another one than a token with an empty one. Default: none.
    #[schemars(with = "Option<Vec<String>>", length(min = 1))]
    pub claims: Vec<Established>,

    /// Experiments whose variant counts, by the `experiment` of a `builtin:ab-routing` among the route's filters; a fault without one,
    /// or with one that fails open. Default: none.
    #[schemars(with = "Option<Vec<String>>", length(min = 1))]
    pub variants: Vec<Established>,

    /// Cookies whose values count. Default: none.
    #[schemars(with = "Option<Vec<String>>", length(min = 1))]
    pub cookies: Vec<String>,

    /// Whether the kind of device counts: `mobile`, `tablet`, `desktop` or `bot`, by `Sec-CH-UA-Mobile` and `User-Agent`. The origin
    /// is told in `X-Device-Class`. Default `false`.
    #[schemars(with = "Option<bool>", extend("default" = false))]
    pub device: bool,

    /// Whether it counts where the client is: its `country` or `continent`, by the top-level `geo` database, which it needs. Default:
    /// it does not.
    pub geo: Option<GeoKey>,
}

/// Something that filters of the route establish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Established {
    /// The name of the claim, or of the experiment.
    pub name: String,
    /// The header fields in which the filters say it, in lower case. At least one.
    pub headers: Vec<String>,
    /// Where it is written.
    pub position: Position,
}

/// Which query parameters are part of the cache key.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema)]
#[schemars(with = "QueryKeyForm")]
pub enum QueryKey {
    /// All.
    #[default]
    All,
    /// These names only.
    Only(Vec<String>),
    /// All but these names.
    Except(Vec<String>),
}

#[derive(JsonSchema)]
#[schemars(untagged, rename = "QueryKey")]
#[expect(dead_code, reason = "describes the grammar; never made")]
enum QueryKeyForm {
    Word(AllWord),
    Names(QueryNames),
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase", inline)]
#[expect(dead_code, reason = "describes the grammar; never made")]
enum AllWord {
    All,
}

/// Query parameters by name: one of the two.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "describes the grammar; never made")]
struct QueryNames {
    /// These count, and no others.
    #[schemars(with = "Option<Vec<String>>")]
    only: Vec<String>,
    /// These do not count, all others do.
    #[schemars(with = "Option<Vec<String>>")]
    except: Vec<String>,
}

/// Where a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum GeoKey {
    /// Its country.
    Country,
    /// Its continent.
    Continent,
}

impl JsonSchema for Ttl {
    fn schema_name() -> Cow<'static, str> {
        "Ttl".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let duration = generator.subschema_for::<DurationText>();
        json_schema!({
            "description": "A duration, or one for each of some statuses: `404`, `200-299`.",
            "anyOf": [
                duration,
                {
                    "type": "object",
                    "minProperties": 1,
                    "propertyNames": { "pattern": "^[2-5][0-9][0-9](-[2-5][0-9][0-9])?$" },
                    "additionalProperties": duration,
                },
            ],
        })
    }
}

/// The smallest slice: smaller ones cost more requests than they spare bytes.
const SLICE_MIN: ByteSize = ByteSize::kib(64);

fn slice(cx: &mut Cx<'_>, at: &At<'_>) -> Option<ByteSize> {
    let slice = size(cx, at)?;
    if slice < SLICE_MIN {
        let fault = at.fault(format!("a slice has {SLICE_MIN} at least"));
        return cx.refuse(fault.with_help("1MiB is usual"));
    }
    Some(slice)
}

impl CachePolicy {
    pub(super) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "CachePolicy")?;
        let ttl_at = fields.get("ttl");
        let ttl = ttl_at.as_ref().and_then(|at| Ttl::read(cx, at));
        let override_at = fields.get("override");
        let override_origin = override_at.as_ref().and_then(|at| truth(cx, at)).unwrap_or(false);
        if let Some(at) = override_at.filter(|_| override_origin && ttl_at.is_none()) {
            let fault =
                Fault::at(at.name_position(), "`override` does nothing without `ttl`").with_key(at.path.clone());
            cx.report(fault.with_help("say how long: `ttl: 1h`"));
        }
        let key = fields.read(cx, "key", CacheKey::read);
        let cookies = fields.read(cx, "cookies", |cx, at| {
            choice(cx, at, &[("store", SetCookie::Store), ("strip", SetCookie::Strip), ("pass", SetCookie::Pass)])
        });
        let languages = fields.read(cx, "languages", |cx, at| unique(cx, at, "this language", language));
        let slice_at = fields.get("slice");
        let slice = slice_at.as_ref().and_then(|at| slice(cx, at));
        let ranges = fields.read(cx, "ranges", |cx, at| {
            let ranges = choice(cx, at, &[("whole", Ranges::Whole), ("as_asked", Ranges::AsAsked)])?;
            if let (Some(slices), Ranges::AsAsked) = (&slice_at, ranges) {
                let fault = at.fault("`as_asked` and `slice` are both written");
                let fault = fault.with_related("the other one", slices.name_position());
                return cx.refuse(fault.with_help("slices serve every range: remove one"));
            }
            Some(ranges)
        });
        let stale_while_revalidate = fields.read(cx, "stale_while_revalidate", duration);
        let stale_if_error = fields.read(cx, "stale_if_error", duration);
        let request_directives = fields.read(cx, "request_directives", truth).unwrap_or(false);
        let show_key = fields.read(cx, "show_key", truth).unwrap_or(false);
        let tags = fields.read(cx, "tags", CacheTags::read).unwrap_or_default();
        fields.close(cx);
        Some(Self {
            ttl,
            override_origin,
            key: key.unwrap_or_default(),
            cookies: cookies.unwrap_or_default(),
            languages: languages.unwrap_or_default(),
            slice,
            ranges: ranges.unwrap_or_default(),
            stale_while_revalidate,
            stale_if_error,
            request_directives,
            show_key,
            tags,
            position: at.name_position().clone(),
        })
    }
}

impl Ttl {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        if !matches!(at.node.data, Data::Map(_)) {
            return duration(cx, at).map(Self::One);
        }
        let entries = mapping(cx, at)?;
        if entries.is_empty() {
            return cx.refuse(at.fault("no status is named"));
        }
        let mut ranges: Vec<(u16, u16, Duration)> = Vec::new();
        for entry in entries {
            let here = at.entry(entry);
            let fault = |message: String| Fault::at(&entry.key_position, message).with_key(here.path.clone());
            let ttl = duration(cx, &here);
            let Some((from, to)) = statuses(&entry.key) else {
                let wrong = fault(format!("`{}` is no status from 200 to 599, and no range of them", entry.key));
                cx.report(wrong.with_help("write `\"404\"` or `\"200-299\"`"));
                continue;
            };
            if matches!((from, to), (206 | 304, _) | (_, 206 | 304)) && from == to {
                cx.report(fault(format!("a {from} response is never kept by itself")));
            }
            if let Some((other, last, _)) = ranges.iter().find(|(other, last, _)| from <= *last && *other <= to) {
                let which = if other == last { format!("`{other}`") } else { format!("`{other}-{last}`") };
                cx.report(fault(format!("some of these statuses are also in {which}")));
            }
            ranges.extend(ttl.map(|ttl| (from, to, ttl)));
        }
        Some(Self::ByStatus(ranges))
    }
}

/// `404` or `200-299`.
fn statuses(text: &str) -> Option<(u16, u16)> {
    let status = |text: &str| {
        let digits = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
        let status = text.parse().ok().filter(|_| digits)?;
        (200..600).contains(&status).then_some(status)
    };
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    let (from, to) = (status(from)?, status(to)?);
    (from <= to).then_some((from, to))
}

impl CacheKey {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "CacheKey")?;
        let query = fields.read(cx, "query", QueryKey::read);
        let sort = fields.read(cx, "sort", truth).unwrap_or(false);
        let headers = fields.read(cx, "headers", |cx, at| {
            unique(cx, at, "this header", |text| match is_token(text) {
                true => Ok(text.to_ascii_lowercase()),
                false => Err(("is not the name of a header field".into(), None)),
            })
        });
        let claims = fields.read(cx, "claims", |cx, at| established(cx, at, "this claim"));
        let variants = fields.read(cx, "variants", |cx, at| established(cx, at, "this experiment"));
        let cookies = fields.read(cx, "cookies", |cx, at| {
            unique(cx, at, "this cookie", |text| match is_token(text) {
                true => Ok(text.to_owned()),
                false => Err(("is not the name of a cookie".into(), None)),
            })
        });
        let device = fields.read(cx, "device", truth).unwrap_or(false);
        let geo = fields.read(cx, "geo", |cx, at| {
            let geo = choice(cx, at, &[("country", GeoKey::Country), ("continent", GeoKey::Continent)]);
            if !cx.has_geo && !cx.incomplete {
                let fault = Fault::at(at.name_position(), "there is no database for this").with_key(at.path.clone());
                cx.report(fault.with_help("declare one: `geo: { database: FILE.mmdb }` at the top level"));
            }
            geo
        });
        fields.close(cx);
        Some(Self {
            query: query.unwrap_or_default(),
            sort,
            headers: headers.unwrap_or_default(),
            claims: claims.unwrap_or_default(),
            variants: variants.unwrap_or_default(),
            cookies: cookies.unwrap_or_default(),
            device,
            geo,
        })
    }

    /// Finds the fields in which the filters of a chain say what they establish. `route` is the path of the route's key.
    pub(super) fn establish(&mut self, cx: &mut Cx<'_>, route: &str, chain: &[FilterUse], declared: &Declared) {
        let claim = |used: &FilterUse, name: &str| {
            Some(used.config.get("claims_to_headers")?.get(name)?.as_str()?.to_ascii_lowercase())
        };
        let variant = |used: &FilterUse, name: &str| {
            let runs = used.config.get("experiment")?.as_str()? == name;
            runs.then(|| format!("x-ab-{}", name.to_ascii_lowercase()))
        };
        type Field<'f> = &'f dyn Fn(&FilterUse, &str) -> Option<String>;
        let kinds: [(&str, &str, Field<'_>, &mut Vec<Established>); 2] = [
            ("claims", "jwt-auth", &claim, &mut self.claims),
            ("variants", "ab-routing", &variant, &mut self.variants),
        ];
        for (key, builtin, field, all) in kinds {
            for (index, one) in all.iter_mut().enumerate() {
                let mut fault = None;
                for used in chain {
                    let Some(Some(filter)) = declared.get(&used.name) else { continue };
                    let Some(header) = field(used, &one.name) else { continue };
                    match (&filter.wasm, filter.on_failure) {
                        (WasmSource::Builtin(name), OnFailure::Closed) if name == builtin => one.headers.push(header),
                        (WasmSource::Builtin(name), OnFailure::Open) if name == builtin => {
                            let message =
                                format!("the filter `{}` fails open: what clients write would count", used.name);
                            fault = Some(Fault::at(&one.position, message).with_help("give it `on_failure: closed`"));
                        }
                        _ => {}
                    }
                }
                if one.headers.is_empty() && fault.is_none() {
                    let (message, help) = match key {
                        "claims" => (
                            "no filter of the route establishes this claim",
                            "name it in `claims_to_headers` of a `builtin:jwt-auth` among the route's filters",
                        ),
                        _ => (
                            "no filter of the route runs this experiment",
                            "add a `builtin:ab-routing` with this `experiment` to the route's filters",
                        ),
                    };
                    fault = Some(Fault::at(&one.position, message).with_help(help));
                }
                if let Some(fault) = fault.filter(|_| !cx.incomplete) {
                    cx.report(fault.with_key(format!("{route}.cache.key.{key}[{index}]")));
                }
            }
        }
    }
}

fn established(cx: &mut Cx<'_>, at: &At<'_>, what: &str) -> Option<Vec<Established>> {
    let mut seen = BTreeSet::new();
    filled_list(cx, at, |cx, at| {
        let name = text(cx, at)?;
        if name.is_empty() {
            return cx.refuse(at.fault("a name is missing"));
        }
        if seen.insert(name.clone()) {
            Some(Established { name, headers: Vec::new(), position: at.node.position.clone() })
        } else {
            cx.refuse(at.fault(format!("{what} is written twice")))
        }
    })
}

impl QueryKey {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        if matches!(at.node.data, Data::Scalar(_)) {
            return choice(cx, at, &[("all", ())]).map(|()| Self::All);
        }
        let mut fields = Fields::open(cx, at, "QueryNames")?;
        let only = fields.read(cx, "only", parameters);
        let except_at = fields.get("except");
        let except = except_at.as_ref().and_then(|at| parameters(cx, at));
        fields.close(cx);
        match (only, except) {
            (Some(_), Some(_)) => {
                let message = "`only` and `except` are both written";
                let fault = except_at.map(|at| Fault::at(at.name_position(), message).with_key(at.path.clone()));
                cx.refuse(fault.unwrap_or_else(|| at.fault(message)))
            }
            (Some(only), None) => Some(Self::Only(only)),
            (None, Some(except)) => Some(Self::Except(except)),
            (None, None) => {
                cx.refuse(at.fault("nothing is said").with_help("write `all`, `only: [..]` or `except: [..]`"))
            }
        }
    }
}

/// Names of query parameters.
fn parameters(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Vec<String>> {
    let mut seen = BTreeSet::new();
    crate::decode::list(cx, at, |cx, at| {
        let name = text(cx, at)?;
        if name.is_empty() {
            return cx.refuse(at.fault("a parameter's name is empty"));
        }
        if seen.insert(name.clone()) { Some(name) } else { cx.refuse(at.fault("this parameter is written twice")) }
    })
}

/// A list of different names, at least one.
fn unique(
    cx: &mut Cx<'_>,
    at: &At<'_>,
    what: &str,
    read: impl Fn(&str) -> Result<String, (String, Option<String>)>,
) -> Option<Vec<String>> {
    let mut seen = BTreeSet::new();
    filled_list(cx, at, |cx, at| {
        let name = parsed(cx, at, "a name", &read)?;
        if seen.insert(name.clone()) { Some(name) } else { cx.refuse(at.fault(format!("{what} is written twice"))) }
    })
}

/// A language tag (RFC 5646), in lower case, as far as its form can be told.
fn language(text: &str) -> Result<String, (String, Option<String>)> {
    let subtag = |part: &str| (1..=8).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if text.split('-').all(subtag) && text.starts_with(|first: char| first.is_ascii_alphabetic()) {
        return Ok(text.to_ascii_lowercase());
    }
    Err(("is not a language".into(), Some("write it as in `Accept-Language`: `en`, `de-CH`".into())))
}
