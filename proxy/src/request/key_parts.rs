//! What of a request counts for the cache besides its URL, as the route's `cache.key` says, and what is made alike before it is asked.

use std::borrow::Cow;

use http::{HeaderName, HeaderValue, header};
use pingora::Result;
use pingora::http::RequestHeader;
use selvedge_cache::KeyScope;
use selvedge_cache::rules::language;
use selvedge_config::{CacheKey, CachePolicy, Established, GeoKey};
use smallvec::SmallVec;

use super::RequestCtx;
use super::device::{self, X_DEVICE_CLASS};
use crate::plan::cookies;

/// What is done before the cache of a route is asked; ready to be done.
pub(crate) struct KeyParts {
    parts: Vec<Part>,
    languages: Vec<String>,
    /// Tells keys that are made of other parts apart, whatever was reloaded.
    names: String,
}

/// A verified claim of the client's token.
const CLAIM: &str = "claim";
/// The variant of an experiment that the client sees.
const VARIANT: &str = "variant";

/// One part of the key besides the URL.
enum Part {
    Header(HeaderName),
    /// What filters establish, by the word for it and its name, and the fields in which they say it.
    Established(&'static str, String, Vec<HeaderName>),
    Cookie(String),
    Device,
    Geo(GeoKey),
}

impl KeyParts {
    /// `None` = the URL is all that counts.
    pub(crate) fn of(policy: &CachePolicy) -> Option<Box<Self>> {
        let CacheKey { headers, claims, variants, cookies, device, geo, .. } = &policy.key;
        let field = |name: &String| HeaderName::from_bytes(name.as_bytes()).ok();
        let headers = headers.iter().filter_map(field).map(Part::Header);
        let established = [(CLAIM, claims), (VARIANT, variants)].into_iter().flat_map(|(word, all)| {
            let part = move |one: &Established| {
                Part::Established(word, one.name.clone(), one.headers.iter().filter_map(field).collect())
            };
            all.iter().map(part)
        });
        let cookies = cookies.iter().cloned().map(Part::Cookie);
        let parts: Vec<Part> = headers
            .chain(established)
            .chain(cookies)
            .chain(device.then_some(Part::Device))
            .chain(geo.map(Part::Geo))
            .collect();
        let names = parts.iter().map(Part::name).collect::<Vec<_>>().join(" ");
        let has_work = !parts.is_empty() || !policy.languages.is_empty();
        has_work.then(|| Box::new(Self { parts, languages: policy.languages.clone(), names }))
    }

    /// Whether requests for one URL may have different keys.
    pub(crate) fn exist(&self) -> bool {
        !self.parts.is_empty()
    }

    /// Writes into the request what the origin is to see in place of what the client sent.
    pub(crate) fn write(&self, request: &mut RequestHeader) -> Result<()> {
        if self.parts.iter().any(|part| matches!(part, Part::Device)) {
            let class = HeaderValue::from_static(device::class(&request.headers));
            request.insert_header(X_DEVICE_CLASS, class)?;
        }
        if !self.languages.is_empty() && request.headers.contains_key(header::ACCEPT_LANGUAGE) {
            let accept: Vec<_> =
                request.headers.get_all(header::ACCEPT_LANGUAGE).iter().filter_map(|line| line.to_str().ok()).collect();
            match language::preferred(&self.languages, &accept.join(",")) {
                Some(tag) => request.insert_header(header::ACCEPT_LANGUAGE, tag)?,
                None => drop(request.remove_header(&header::ACCEPT_LANGUAGE)),
            }
        }
        Ok(())
    }

    /// The scope of the keys of requests with the same parts.
    pub(crate) fn scope(&self, scope: KeyScope, request: &RequestHeader, ctx: &RequestCtx) -> KeyScope {
        if self.parts.is_empty() {
            return scope;
        }
        // What is not there is something else than what is empty.
        let mut parts: SmallVec<[Vec<u8>; 4]> = smallvec::smallvec![self.names.clone().into_bytes()];
        self.each(request, ctx, |_, value| {
            parts.push(value.map_or_else(|| b"-".to_vec(), |value| [b"=", &*value].concat()));
        });
        scope.with_parts(&parts)
    }

    /// The parts, for people to read: `device=mobile geo.country=DE`. What a header or a cookie holds may be a secret.
    pub(crate) fn in_words(&self, request: &RequestHeader, ctx: &RequestCtx) -> String {
        let mut words = Vec::new();
        self.each(request, ctx, |part, value| {
            let shown = match (part, value) {
                (_, None) => "none".to_owned(),
                (Part::Device | Part::Geo(_) | Part::Established(VARIANT, ..), Some(value)) => {
                    String::from_utf8_lossy(&value).into_owned()
                }
                (Part::Header(_) | Part::Established(..) | Part::Cookie(_), Some(_)) => "<its value>".to_owned(),
            };
            words.push(format!("{}={shown}", part.name()));
        });
        words.join(" ")
    }

    fn each(&self, request: &RequestHeader, ctx: &RequestCtx, mut seen: impl FnMut(&Part, Option<Cow<'_, [u8]>>)) {
        for part in &self.parts {
            match part {
                Part::Header(name) => {
                    let values = request.headers.get_all(name).iter().map(|value| Cow::Borrowed(value.as_bytes()));
                    seen(part, joined(values, b","));
                }
                Part::Established(_, _, names) => {
                    let values = names.iter().flat_map(|name| request.headers.get_all(name));
                    seen(part, joined(values.map(|value| Cow::Borrowed(value.as_bytes())), b","));
                }
                Part::Cookie(name) => seen(part, joined(cookies(request, name), b";")),
                Part::Device => seen(part, Some(Cow::Borrowed(device::class(&request.headers).as_bytes()))),
                Part::Geo(geo) => {
                    let client = ctx.downstream.client.map(|client| client.ip());
                    let location = ctx.plan.geo.as_ref().zip(client).and_then(|(geo, client)| geo.lookup(client));
                    let code = location.and_then(|location| match geo {
                        GeoKey::Country => location.country.map(|country| country.as_str().to_owned()),
                        GeoKey::Continent => location.continent.map(|continent| continent.as_str().to_owned()),
                    });
                    seen(part, code.map(|code| Cow::Owned(code.into_bytes())));
                }
            }
        }
    }
}

impl Part {
    fn name(&self) -> String {
        match self {
            Self::Header(name) => format!("header.{name}"),
            Self::Established(word, name, _) => format!("{word}.{name}"),
            Self::Cookie(name) => format!("cookie.{name}"),
            Self::Device => "device".into(),
            Self::Geo(GeoKey::Country) => "geo.country".into(),
            Self::Geo(GeoKey::Continent) => "geo.continent".into(),
        }
    }
}

/// All values as one; `None` = there is none.
fn joined<'v>(values: impl Iterator<Item = Cow<'v, [u8]>>, with: &[u8]) -> Option<Cow<'v, [u8]>> {
    values.reduce(|one, other| Cow::Owned([&*one, with, &*other].concat()))
}
