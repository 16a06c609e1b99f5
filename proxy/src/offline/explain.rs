//! `route explain`: what would become of a request, and why. Nothing is sent and no filter runs; what stands here comes from the steps of
//! `request/` themselves, asked with a session of Pingora's.

use std::fmt;
use std::sync::Arc;

use pingora::http::RequestHeader;
use pingora::proxy::{ProxyHttp, Session};
use selvedge_config::{Balance, Servers};
use serde::Serialize;
use tokio::io::AsyncWriteExt;

use super::question::{Question, Sent, Unaskable};
use super::wire::Wire;
use super::{Offline, place};
use crate::plan::{HostRule, Plan, Route, Target};
use crate::request::{Edge, RequestCtx, actions, fail, forward, lookup, select};
use crate::upstream::Upstream;

/// What would become of a request.
#[derive(Debug, Serialize)]
pub(crate) struct Explanation {
    method: String,
    listener: String,
    /// For whom the node takes it to be, with where it comes from.
    client: String,
    country: Option<String>,
    /// The target as it was sent, and as everything after sees it.
    target: String,
    normalised: Option<String>,
    /// Why the node answers at once, without a route.
    refused: Option<Refused>,
    site: Option<Site>,
    route: Option<RouteFound>,
    /// The routes whose path it is, in the order they are tried.
    candidates: Vec<Candidate>,
    /// The site's other routes, whose path it is not.
    elsewhere: Vec<Elsewhere>,
    filters: Vec<FilterUsed>,
    /// Those between the cache and the origin.
    origin_filters: Vec<FilterUsed>,
    answer: Option<Answer>,
    cache: Option<Cache>,
}

/// An answer of the node's own that needs no route.
#[derive(Debug, Serialize)]
struct Refused {
    status: u16,
    why: String,
}

#[derive(Debug, Serialize)]
struct Site {
    name: String,
    /// How the host has led to it.
    by: HostRule,
}

#[derive(Debug, Serialize)]
struct RouteFound {
    name: String,
    written_at: Option<String>,
}

#[derive(Debug, Serialize)]
struct Candidate {
    route: String,
    path: String,
    taken: bool,
    holds: Vec<String>,
    fails: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Elsewhere {
    route: String,
    path: String,
}

#[derive(Debug, Serialize)]
struct FilterUsed {
    name: String,
    /// The names of its settings here, those of the route merged over those that are declared.
    settings: Vec<String>,
}

impl FilterUsed {
    fn of(used: &selvedge_config::FilterUse) -> Self {
        Self {
            name: used.name.clone(),
            settings: used.config.as_object().map(|all| all.keys().cloned().collect()).unwrap_or_default(),
        }
    }
}

/// Who answers, when no filter does before.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Upstream(ToUpstream),
    Respond {
        status: u16,
        body_bytes: usize,
    },
    Redirect {
        status: u16,
        location: String,
    },
    /// One of these, each with its share.
    Split(Vec<(String, u32)>),
    Files {
        root: String,
    },
}

/// The request as it goes on.
#[derive(Debug, Serialize)]
struct ToUpstream {
    name: String,
    method: String,
    /// Path and query.
    path: String,
    host: String,
    /// How an endpoint is chosen.
    balance: String,
    endpoints: Vec<Endpoint>,
    /// The one it goes to, if the request itself says so.
    bound: Option<Bound>,
    /// What the node says of it instead of sending it on.
    refused: Option<Refused>,
}

#[derive(Debug, Serialize)]
struct Endpoint {
    address: String,
    weight: u16,
}

#[derive(Debug, Serialize)]
struct Bound {
    by: &'static str,
    endpoint: String,
}

/// What the cache has to do with it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Cache {
    /// What the key is made of beside site and route, and its hash.
    Key { of: String, hash: String },
    /// Why there is none.
    Unused(String),
}

impl Offline {
    /// What would become of this request.
    ///
    /// # Errors
    /// Nobody could send it.
    pub(crate) async fn explain(&self, question: &Question) -> Result<Explanation, Unaskable> {
        let sent = question.sent(self)?;
        let edge = self.edge(&sent.listener);
        let mut told = Explanation {
            method: question.method.clone(),
            listener: sent.listener.name.clone(),
            client: sent.client.map_or_else(|| "a Unix socket".to_owned(), |client| client.ip().to_string()),
            country: None,
            target: sent.target.clone(),
            normalised: None,
            refused: None,
            site: None,
            route: None,
            candidates: Vec::new(),
            elsewhere: Vec::new(),
            filters: Vec::new(),
            origin_filters: Vec::new(),
            answer: None,
            cache: None,
        };
        let (mut session, mut ctx) = match admitted(&edge, &sent).await {
            Ok(admitted) => admitted,
            Err(refused) => {
                told.refused = Some(refused);
                return Ok(told);
            }
        };
        if let Some(client) = ctx.downstream.client {
            told.client = client.ip().to_canonical().to_string();
            let location = ctx.plan.geo.as_ref().and_then(|geo| geo.lookup(client.ip()));
            told.country = location.and_then(|place| place.country).map(|country| country.to_string());
        }
        told.normalised = Some(String::from_utf8_lossy(session.req_header().raw_path()).into_owned());
        told.route(&edge, &session, &ctx);
        ctx.route = select::route(&edge, &session, &ctx);
        match ctx.route.clone() {
            None => told.refused = Some(Refused { status: 404, why: "no route matches".into() }),
            Some(route) => self.goes_on(&mut told, &edge, &mut session, &mut ctx, &route),
        }
        Ok(told)
    }

    /// What the route makes of it.
    fn goes_on(
        &self,
        told: &mut Explanation,
        edge: &Edge,
        session: &mut Session,
        ctx: &mut RequestCtx,
        route: &Arc<Route>,
    ) {
        let written = self.written(route.site(), route.name());
        let written_at = written.map(|written| place(&written.position));
        told.route = Some(RouteFound { name: route.name().to_owned(), written_at });
        if let Some(written) = written {
            told.filters.extend(written.filters.iter().map(FilterUsed::of));
            told.origin_filters.extend(written.origin_filters.iter().map(FilterUsed::of));
        }
        told.answer = Some(match &route.target {
            Target::Respond { header, body } => {
                Answer::Respond { status: header.status.as_u16(), body_bytes: body.len() }
            }
            Target::Redirect(redirect) => {
                let facts = actions::Facts { request: session.req_header(), ctx, status: None };
                match redirect.answer(&facts) {
                    Ok(answer) => {
                        let location = answer.headers.get(http::header::LOCATION).map(http::HeaderValue::as_bytes);
                        let location = String::from_utf8_lossy(location.unwrap_or_default()).into_owned();
                        Answer::Redirect { status: answer.status.as_u16(), location }
                    }
                    Err(error) => {
                        told.refused = Some(Refused::of(&error));
                        return;
                    }
                }
            }
            Target::Split(split) => {
                told.cache = Some(cache(edge, session, ctx));
                let mut before = 0;
                let shares = split.upstreams.iter().map(|(until, upstream)| {
                    let share = until - std::mem::replace(&mut before, *until);
                    (upstream.name.to_string(), share)
                });
                Answer::Split(shares.collect())
            }
            Target::Files(files) => Answer::Files { root: files.root().display().to_string() },
            Target::Upstream(upstream) => {
                told.cache = Some(cache(edge, session, ctx));
                Answer::Upstream(self.to_upstream(session, ctx, upstream))
            }
        });
    }

    fn to_upstream(&self, session: &Session, ctx: &RequestCtx, upstream: &Arc<Upstream>) -> ToUpstream {
        let mut request: RequestHeader = session.req_header().clone();
        let refused = forward::request(session, &mut request, ctx).err().map(|error| Refused::of(&error));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let keeper = self.resources.keeper();
        let sources = upstream.written(keeper);
        let config = self.config.upstreams.get(&*upstream.name);
        let demo = config.is_some_and(|config| matches!(config.servers, Servers::Builtin(_)));
        let name_of = |address: &dyn fmt::Display| {
            if demo { "the demo origin inside the process".to_owned() } else { address.to_string() }
        };

        let ask = upstream.ask(
            session.req_header(),
            ctx.downstream.client.map(|client| client.ip()),
            ctx.plan.geo.as_deref(),
        );
        let bound = upstream.bound(&ask).map(|(by, chosen)| {
            let endpoint = match chosen {
                Err(why) => why.to_string(),
                Ok(address) => match sources.iter().find(|(.., addresses)| addresses.contains(&address)) {
                    // Which one, its addresses decide, and they are not looked up.
                    Some((
                        selvedge_config::EndpointAddr::Host { .. } | selvedge_config::EndpointAddr::Srv { .. },
                        ..,
                    )) => "decided by the addresses that the names stand for".into(),
                    _ => name_of(&address),
                },
            };
            Bound { by, endpoint }
        });
        ToUpstream {
            name: upstream.name.to_string(),
            method: request.method.to_string(),
            path: text(request.raw_path()),
            host: text(request.headers.get(http::header::HOST).map_or(b"", |host| host.as_bytes())),
            balance: config.map_or("", |config| balance(&config.balance)).to_owned(),
            endpoints: sources
                .iter()
                .map(|(written, weight, _)| Endpoint { address: name_of(written), weight: *weight })
                .collect(),
            bound,
            refused,
        }
    }
}

fn balance(balance: &Balance) -> &'static str {
    match balance {
        Balance::RoundRobin => "round_robin",
        Balance::LeastRequest => "least_request",
        Balance::Ewma => "ewma",
        Balance::ConsistentHash(_) => "consistent_hash",
    }
}

/// The session of a request that the node takes, or the node's answer.
async fn admitted(edge: &Edge, sent: &Sent) -> Result<(Session, RequestCtx), Refused> {
    // All of it fits, so nobody has to read while it is written.
    let (mut client, pipe) = tokio::io::duplex(sent.bytes.len() + 1);
    let wire = Wire::new(pipe, sent);
    let unread = |why: &str| Refused { status: 400, why: why.into() };
    client.write_all(&sent.bytes).await.map_err(|_| unread("the request cannot be written"))?;
    let mut session = Session::new_h1(Box::new(wire));
    match session.downstream_session.read_request().await {
        Ok(true) => {}
        Ok(false) => return Err(unread("there is no request in it")),
        Err(error) => return Err(Refused { status: 400, why: why(&error) }),
    }
    // As Pingora does before it asks us.
    if session.req_header().method == http::Method::CONNECT {
        return Err(Refused { status: 405, why: "CONNECT is not for this node: it makes no tunnels".into() });
    }
    let mut ctx = edge.new_ctx();
    match edge.early_request_filter(&mut session, &mut ctx).await {
        Ok(()) => match edge
            .listener
            .redirect_to_https
            .filter(|to| !crate::request::redirect::excepts(*to, session.req_header()))
        {
            None => Ok((session, ctx)),
            Some(to) => Err(Refused { status: to.status, why: "the listener sends everybody to https".into() }),
        },
        Err(error) => Err(Refused::of(&error)),
    }
}

/// The key as the cache would make it.
fn cache(edge: &Edge, session: &mut Session, ctx: &mut RequestCtx) -> Cache {
    let unused = |why: &str| Cache::Unused(why.into());
    if ctx.plan.cache.is_none() {
        return unused("the configuration has no `cache`");
    }
    if ctx.route.as_ref().is_none_or(|route| route.cache.is_none()) {
        return unused("the route has no `cache`");
    }
    if let Err(error) = lookup::enable(session, ctx, &edge.listener) {
        return unused(&why(&error));
    }
    if let Some(why) = ctx.cache.bypassed() {
        return unused(why);
    }
    let key = lookup::key(session, ctx).ok().and_then(|_| ctx.cache.key());
    match lookup::key_in_words(session, ctx).zip(key) {
        Some((of, hash)) => Cache::Key { of, hash: hash.iter().map(|byte| format!("{byte:02x}")).collect() },
        None => unused("no key could be made"),
    }
}

impl Refused {
    fn of(error: &pingora::Error) -> Self {
        Self { status: fail::status(error), why: why(error) }
    }
}

/// What an error says, without what kind of error it is.
fn why(error: &pingora::Error) -> String {
    let context = error.context.as_ref().map(|context| context.as_str().to_owned());
    let cause = error.cause.as_ref().map(|cause| crate::error_chain(&**cause));
    match (context, cause) {
        (Some(context), Some(cause)) => format!("{context}: {cause}"),
        (Some(text), None) | (None, Some(text)) => text,
        (None, None) => error.etype().as_str().to_owned(),
    }
}

impl Explanation {
    /// Which routes are looked at.
    fn route(&mut self, edge: &Edge, session: &Session, ctx: &RequestCtx) {
        let plan: &Plan = &ctx.plan;
        let asker = select::asker(session.req_header(), session.digest(), ctx, &edge.listener);
        let Some(looked) = plan.router.explain(&asker) else { return };
        if !looked.served {
            return; // To this listener it does not exist.
        }
        let any = looked.tried.first().map(|tried| tried.route).or(looked.elsewhere.first().map(|(route, _)| *route));
        self.site = any.map(|route| Site { name: route.site().to_owned(), by: looked.rule });
        self.candidates.extend(looked.tried.into_iter().enumerate().map(|(place, tried)| Candidate {
            route: tried.route.name().to_owned(),
            path: tried.path,
            taken: Some(place) == looked.winner,
            holds: tried.holds,
            fails: tried.fails,
        }));
        let elsewhere = looked.elsewhere.into_iter();
        self.elsewhere.extend(elsewhere.map(|(route, path)| Elsewhere { route: route.name().to_owned(), path }));
    }

    /// Whether the node would refuse it, or nobody serves it.
    pub(crate) fn is_refused(&self) -> bool {
        self.refused.is_some()
    }
}

/// How many routes with other paths are named.
const ELSEWHERE_SHOWN: usize = 10;

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let country = self.country.as_ref().map(|country| format!(" ({country})")).unwrap_or_default();
        writeln!(
            f,
            "request    {} {} on listener {} from {}{country}",
            self.method, self.target, self.listener, self.client
        )?;
        if let Some(path) = self.normalised.as_ref().filter(|path| **path != self.target) {
            writeln!(f, "normalised {path}")?;
        }
        if let Some(site) = &self.site {
            let by = match site.by {
                HostRule::Exact => "the host is named",
                HostRule::Wildcard => "by a wildcard",
                HostRule::Any => "no other site has the host",
            };
            writeln!(f, "site       {} ({by})", site.name)?;
        }
        if let Some(refused) = &self.refused {
            writeln!(f, "refused    {}: {}", refused.status, refused.why)?;
        }
        if let Some(route) = &self.route {
            let at = route.written_at.as_ref().map(|at| format!(" ({at})")).unwrap_or_default();
            writeln!(f, "route      {}{at}", route.name)?;
        }
        let mut over = false;
        for candidate in &self.candidates {
            let verdict = match (candidate.taken, candidate.fails.is_empty()) {
                (true, _) => "taken",
                (false, false) => "does not match",
                (false, true) if over => "would match, but is less specific",
                (false, true) => "matches",
            };
            over |= candidate.taken;
            writeln!(f, "  {} (path {}): {verdict}", candidate.route, candidate.path)?;
            for held in &candidate.holds {
                writeln!(f, "    holds: {held}")?;
            }
            for failed in &candidate.fails {
                writeln!(f, "    fails: {failed}")?;
            }
        }
        for other in self.elsewhere.iter().take(ELSEWHERE_SHOWN) {
            writeln!(f, "  {} (path {}): another path", other.route, other.path)?;
        }
        if let Some(more) = self.elsewhere.len().checked_sub(ELSEWHERE_SHOWN).filter(|more| *more > 0) {
            writeln!(f, "  and {more} more with other paths")?;
        }
        let said = [
            (&self.filters, "filters    in this order; they may answer, or change what follows"),
            (
                &self.origin_filters,
                "filters    between the cache and the origin, in this order, for what is not found in the cache",
            ),
        ];
        for (filters, what) in said.into_iter().filter(|(filters, _)| !filters.is_empty()) {
            writeln!(f, "{what}")?;
            for filter in filters {
                let settings =
                    if filter.settings.is_empty() { "no settings".into() } else { filter.settings.join(", ") };
                writeln!(f, "  {}: {settings}", filter.name)?;
            }
        }
        match &self.answer {
            None => {}
            Some(Answer::Respond { status, body_bytes }) => {
                writeln!(f, "answer     {status} from the node, with {body_bytes} bytes")?;
            }
            Some(Answer::Redirect { status, location }) => {
                writeln!(f, "answer     {status} from the node, to {location}")?;
            }
            Some(Answer::Split(shares)) => {
                let shares: Vec<String> = shares.iter().map(|(name, share)| format!("{name} ({share})")).collect();
                writeln!(f, "upstream   one of {}", shares.join(", "))?;
            }
            Some(Answer::Files { root }) => writeln!(f, "answer     a file of {root}")?,
            Some(Answer::Upstream(upstream)) => upstream.fmt(f)?,
        }
        match &self.cache {
            None => Ok(()),
            Some(Cache::Unused(why)) => writeln!(f, "cache      not used: {why}"),
            Some(Cache::Key { of, hash }) => {
                writeln!(f, "cache key  {of}")?;
                writeln!(f, "           {hash}, with site and route; what the response's Vary names comes on top")
            }
        }
    }
}

impl fmt::Display for ToUpstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(refused) = &self.refused {
            return writeln!(f, "refused    {}: {}", refused.status, refused.why);
        }
        writeln!(f, "upstream   {} gets {} {} for host {}", self.name, self.method, self.path, self.host)?;
        if let Some(bound) = &self.bound {
            writeln!(f, "  by {}: {}", bound.by, bound.endpoint)?;
        }
        let most = self.endpoints.len();
        writeln!(f, "  {} over {most} endpoint{}:", self.balance, if most == 1 { "" } else { "s" })?;
        for endpoint in &self.endpoints {
            writeln!(f, "  {} (weight {})", endpoint.address, endpoint.weight)?;
        }
        Ok(())
    }
}
