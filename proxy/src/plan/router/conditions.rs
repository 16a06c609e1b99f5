//! What a route asks of a request beside its path.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::fmt;
use std::net::IpAddr;

use http::{HeaderName, Method, header};
use ipnet::IpNet;
use percent_encoding::percent_decode;
use pingora::http::RequestHeader;
use regex::bytes::{Regex, RegexBuilder};
use selvedge_config::{Host, Match, REGEX_SIZE, ValueMatch};
use selvedge_geoip::{Geo, Location};

/// Who asks for what, as far as routes may ask about it.
pub struct Asker<'r> {
    /// The number of the listener.
    pub listener: usize,
    /// Whether it came over TLS.
    pub tls: bool,
    /// The name that was asked for in the TLS handshake, in lower case; only where a route asks ([`Router::asks_for_sni`]).
    ///
    /// [`Router::asks_for_sni`]: super::Router::asks_for_sni
    pub server_name: Option<&'r str>,
    /// The request's header, in origin form.
    pub request: &'r RequestHeader,
    /// The client's address; `None` = unknown: no range holds it.
    pub client: Option<IpAddr>,
    /// Where clients are; looked at only when a route asks.
    pub geo: Option<&'r Geo>,
    pub(crate) location: OnceCell<Option<Location>>,
}

impl<'r> Asker<'r> {
    /// A request that arrived on a listener (its number), without TLS, from nobody knows where.
    #[must_use]
    pub fn new(listener: usize, request: &'r RequestHeader) -> Self {
        Self { listener, tls: false, server_name: None, request, client: None, geo: None, location: OnceCell::new() }
    }

    fn location(&self) -> Option<&Location> {
        self.location.get_or_init(|| self.geo?.lookup(self.client?)).as_ref()
    }
}

/// All of these must hold.
#[derive(Default)]
pub(super) struct Conditions {
    methods: Vec<Method>,
    headers: Vec<(HeaderName, Value)>,
    query: Vec<(String, Value)>,
    cookies: Vec<(String, Value)>,
    clients: Vec<IpNet>,
    countries: Vec<String>,
    continents: Vec<String>,
    tls: Option<bool>,
    sni: Vec<Host>,
}

/// What a value has to be, ready to be asked.
pub(crate) enum Value {
    Exact(Vec<u8>),
    Prefix(Vec<u8>),
    Regex(Regex),
    Present,
    Absent,
}

/// What cannot be matched, by its name in the configuration.
#[derive(Debug)]
pub(crate) struct Unmatched(pub(super) String);

impl Conditions {
    pub(super) fn of(when: &Match) -> Result<Self, Unmatched> {
        let method = |name: &String| Method::from_bytes(name.as_bytes()).map_err(|_| Unmatched(name.clone()));
        let header = |(name, value): &(String, ValueMatch)| {
            let known = HeaderName::from_bytes(name.as_bytes()).map_err(|_| Unmatched(name.clone()))?;
            Ok((known, Value::of(name, value)?))
        };
        let named = |(name, value): &(String, ValueMatch)| Ok((name.clone(), Value::of(name, value)?));
        Ok(Self {
            methods: when.methods.iter().map(method).collect::<Result<_, _>>()?,
            headers: when.headers.iter().map(header).collect::<Result<_, _>>()?,
            query: when.query.iter().map(named).collect::<Result<_, _>>()?,
            cookies: when.cookies.iter().map(named).collect::<Result<_, _>>()?,
            clients: when.clients.clone(),
            countries: when.geo.countries.clone(),
            continents: when.geo.continents.clone(),
            tls: when.tls,
            sni: when.sni.clone(),
        })
    }

    /// Whether one of them is about the name in the TLS handshake.
    pub(super) fn ask_for_sni(&self) -> bool {
        !self.sni.is_empty()
    }

    /// Whether a request fulfils all of them.
    pub(super) fn hold(&self, asker: &Asker<'_>) -> bool {
        let mut all = true;
        self.look(asker, |_, holds| {
            all = holds;
            holds
        });
        all
    }

    /// Looks at one after the other, and tells `seen` whether it holds, for as long as that says to go on.
    pub(super) fn look<'c>(&'c self, asker: &Asker<'_>, mut seen: impl FnMut(Condition<'c>, bool) -> bool) {
        let request = asker.request;
        if !self.methods.is_empty() && !seen(Condition::Method(&self.methods), self.methods.contains(&request.method)) {
            return;
        }
        if let Some(tls) = self.tls
            && !seen(Condition::Tls(tls), tls == asker.tls)
        {
            return;
        }
        if !self.sni.is_empty() {
            let holds = asker.server_name.is_some_and(|asked| self.sni.iter().any(|name| name.matches(asked)));
            if !seen(Condition::Sni(&self.sni), holds) {
                return;
            }
        }
        for (name, value) in &self.headers {
            let holds =
                value.matches(request.headers.get_all(name).iter().map(|value| Cow::Borrowed(value.as_bytes())));
            if !seen(Condition::Header(name), holds) {
                return;
            }
        }
        for (name, value) in &self.cookies {
            if !seen(Condition::Cookie(name), value.matches(cookies(request, name))) {
                return;
            }
        }
        for (name, value) in &self.query {
            if !seen(Condition::Query(name), value.matches(parameters(request, name))) {
                return;
            }
        }
        if !self.clients.is_empty() {
            // An IPv4 client of an IPv6 socket is meant by ranges of IPv4.
            let client = asker.client.map(|client| client.to_canonical());
            let holds = client.is_some_and(|client| self.clients.iter().any(|range| range.contains(&client)));
            if !seen(Condition::Client(&self.clients), holds) {
                return;
            }
        }
        let is_in =
            |codes: &[String], code: Option<&str>| code.is_some_and(|code| codes.iter().any(|known| known == code));
        if !self.countries.is_empty() {
            let country = asker.location().and_then(|location| location.country);
            let holds = is_in(&self.countries, country.as_ref().map(|country| country.as_str()));
            if !seen(Condition::Country(&self.countries), holds) {
                return;
            }
        }
        if !self.continents.is_empty() {
            let continent = asker.location().and_then(|location| location.continent);
            let holds = is_in(&self.continents, continent.as_ref().map(|continent| continent.as_str()));
            let _last = seen(Condition::Continent(&self.continents), holds);
        }
    }
}

/// One of them, as it is told: without the values of fields, which may be secrets.
#[derive(Clone, Copy)]
pub(super) enum Condition<'c> {
    Method(&'c [Method]),
    Tls(bool),
    Sni(&'c [Host]),
    Header(&'c HeaderName),
    Cookie(&'c str),
    Query(&'c str),
    Client(&'c [IpNet]),
    Country(&'c [String]),
    Continent(&'c [String]),
}

impl fmt::Display for Condition<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn list(f: &mut fmt::Formatter<'_>, name: &str, items: &[impl fmt::Display]) -> fmt::Result {
            f.write_str(name)?;
            for (index, item) in items.iter().enumerate() {
                write!(f, "{}{item}", if index == 0 { " " } else { ", " })?;
            }
            Ok(())
        }
        match self {
            Self::Method(methods) => list(f, "method", methods),
            Self::Tls(tls) => write!(f, "tls {tls}"),
            Self::Sni(names) => list(f, "sni", names),
            Self::Header(name) => write!(f, "header {name}"),
            Self::Cookie(name) => write!(f, "cookie {name}"),
            Self::Query(name) => write!(f, "query {name}"),
            Self::Client(ranges) => list(f, "client", ranges),
            Self::Country(codes) => list(f, "geo.country", codes),
            Self::Continent(codes) => list(f, "geo.continent", codes),
        }
    }
}

impl Value {
    pub(crate) fn of(name: &str, value: &ValueMatch) -> Result<Self, Unmatched> {
        Ok(match value {
            ValueMatch::Exact(text) => Self::Exact(text.clone().into_bytes()),
            ValueMatch::Prefix(text) => Self::Prefix(text.clone().into_bytes()),
            ValueMatch::Regex(regex) => {
                let built = RegexBuilder::new(regex).size_limit(REGEX_SIZE).build();
                Self::Regex(built.map_err(|_| Unmatched(name.to_owned()))?)
            }
            ValueMatch::Present(true) => Self::Present,
            ValueMatch::Present(false) => Self::Absent,
        })
    }

    /// Whether one of the values is as it has to be.
    pub(crate) fn matches<'v>(&self, mut given: impl Iterator<Item = Cow<'v, [u8]>>) -> bool {
        match self {
            Self::Exact(wanted) => given.any(|value| *value == **wanted),
            Self::Prefix(wanted) => given.any(|value| value.starts_with(wanted)),
            Self::Regex(regex) => given.any(|value| regex.is_match(&value)),
            Self::Present => given.next().is_some(),
            Self::Absent => given.next().is_none(),
        }
    }
}

/// The values of a cookie (RFC 6265, 4.2.1).
pub(crate) fn cookies<'r>(request: &'r RequestHeader, name: &'r str) -> impl Iterator<Item = Cow<'r, [u8]>> {
    let pairs =
        request.headers.get_all(header::COOKIE).iter().flat_map(|field| field.as_bytes().split(|byte| *byte == b';'));
    pairs.filter_map(move |pair| {
        let value = pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        Some(Cow::Borrowed(value))
    })
}

/// The values of a query parameter, decoded as forms are (`+` is a blank).
fn parameters<'r>(request: &'r RequestHeader, name: &'r str) -> impl Iterator<Item = Cow<'r, [u8]>> {
    let pairs = request.uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    pairs.filter_map(move |pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (*decoded(key) == *name.as_bytes()).then(|| decoded(value))
    })
}

fn decoded(text: &str) -> Cow<'_, [u8]> {
    if text.contains('+') {
        let blanks = text.replace('+', " ");
        return Cow::Owned(percent_decode(blanks.as_bytes()).collect());
    }
    percent_decode(text.as_bytes()).into()
}
