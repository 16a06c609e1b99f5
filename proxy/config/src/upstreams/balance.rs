//! Which endpoint of an upstream a request goes to.

use std::time::Duration;

use schemars::JsonSchema;

use crate::decode::{At, Cx, Fields, choice, duration, is_token, parsed};
use crate::tree::Data;
use crate::values::DurationText;

/// How an endpoint is chosen for a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Balance {
    /// By turns, as often as their weights say.
    #[default]
    RoundRobin,
    /// Of two drawn by weight, the one with fewer requests under way.
    LeastRequest,
    /// Of two drawn by weight, the one that would answer sooner.
    Ewma,
    /// Always the same one for the same key.
    ConsistentHash(ConsistentHash),
}

/// The two ways to write [`Balance`].
#[derive(JsonSchema)]
#[schemars(untagged, rename = "Balance")]
#[expect(dead_code, reason = "describes the grammar; never made")]
pub(crate) enum BalanceForm {
    Word(BalanceWord),
    Hash(ByHash),
}

/// How an endpoint is chosen, in one word.
#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
#[expect(dead_code, reason = "describes the grammar; never made")]
pub(crate) enum BalanceWord {
    /// By turns, as often as their weights say, a heavy one never many times in a row.
    RoundRobin,
    /// Two endpoints are drawn by weight; the one with fewer requests under way for its weight is taken.
    LeastRequest,
    /// Two endpoints are drawn by weight; the one with the lower product of recent latency and requests under way is taken. Latency
    /// is a moving average of the time to the response header that rises at once and falls over some 10 s.
    Ewma,
}

/// Requests with the same key go to the same endpoint.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "describes the grammar; never made")]
pub(crate) struct ByHash {
    /// Requests with the same key go to the same endpoint. Required.
    consistent_hash: ConsistentHash,
}

/// What requests have in common that go to the same endpoint, and how keys are given to endpoints.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct ConsistentHash {
    /// The key: `client_ip`, `path` (without the query), `header:NAME`, `cookie:NAME` or `query:NAME`. A request without it, say
    /// without that cookie, goes where the client's address leads. Required.
    #[schemars(with = "String", regex(pattern = r"^(client_ip|path|(header|cookie|query):.+)$|\$\{"))]
    pub by: HashBy,

    /// How keys are given to endpoints. Default `maglev`.
    #[schemars(with = "Option<HashAlgorithm>", extend("default" = "maglev"))]
    pub algorithm: HashAlgorithm,
}

/// The part of a request that decides where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashBy {
    /// The client's address.
    ClientIp,
    /// The path, without the query.
    Path,
    /// The first value of this header, named in lower case.
    Header(String),
    /// The value of this cookie.
    Cookie(String),
    /// The first value of this query parameter, as it is written there.
    Query(String),
}

/// How keys are given to endpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum HashAlgorithm {
    /// A table of 65,537 places (Google's Maglev): the evenest, one look-up. When an endpoint comes or goes, a few more keys than
    /// its own move.
    #[default]
    Maglev,
    /// A ring of 160 points for each endpoint and unit of weight, with the points that nginx's `hash .. consistent` has. Only the
    /// keys of an endpoint that comes or goes move; shares differ by some 10 %.
    Ketama,
}

/// Keeps a client at the endpoint that served it first, by a cookie.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Sticky {
    /// The cookie's name. The client is given it with the first response of an endpoint; its value names the endpoint without
    /// telling its address. Required.
    pub cookie: String,

    /// How long the client keeps it (`Max-Age`). Absent: until the browser is closed. Above zero.
    #[schemars(with = "Option<DurationText>")]
    pub ttl: Option<Duration>,
}

impl Balance {
    pub(super) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        if !matches!(at.node.data, Data::Map(_)) {
            let words = [("round_robin", 0), ("least_request", 1), ("ewma", 2)];
            return Some(match choice(cx, at, &words)? {
                0 => Self::RoundRobin,
                1 => Self::LeastRequest,
                _ => Self::Ewma,
            });
        }
        let mut fields = Fields::open(cx, at, "ByHash")?;
        let hash = fields.need(cx, "consistent_hash", ConsistentHash::read);
        fields.close(cx);
        hash.map(Self::ConsistentHash)
    }
}

impl ConsistentHash {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "ConsistentHash")?;
        let by = fields.need(cx, "by", |cx, at| parsed(cx, at, HASH_BY, hash_by));
        let words = [("maglev", HashAlgorithm::Maglev), ("ketama", HashAlgorithm::Ketama)];
        let algorithm = fields.read(cx, "algorithm", |cx, at| choice(cx, at, &words));
        fields.close(cx);
        Some(Self { by: by?, algorithm: algorithm.unwrap_or_default() })
    }
}

pub(crate) const HASH_BY: &str = "one of `client_ip`, `path`, `header:NAME`, `cookie:NAME`, `query:NAME`";

pub(crate) fn hash_by(text: &str) -> Result<HashBy, (String, Option<String>)> {
    match text.split_once(':') {
        None if text == "client_ip" => Ok(HashBy::ClientIp),
        None if text == "path" => Ok(HashBy::Path),
        Some(("header", name)) if is_token(name) => Ok(HashBy::Header(name.to_ascii_lowercase())),
        Some(("cookie", name)) if is_token(name) => Ok(HashBy::Cookie(name.to_owned())),
        Some(("query", name)) if !name.is_empty() && !name.contains(['&', '=', '#']) => {
            Ok(HashBy::Query(name.to_owned()))
        }
        _ => Err(("is no part of a request".into(), None)),
    }
}

impl Sticky {
    pub(super) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "Sticky")?;
        let cookie = fields.need(cx, "cookie", |cx, at| {
            parsed(cx, at, "the name of a cookie", |text| {
                if is_token(text) { Ok(text.to_owned()) } else { Err(("is not the name of a cookie".into(), None)) }
            })
        });
        let ttl = fields.read(cx, "ttl", duration);
        fields.close(cx);
        Some(Self { cookie: cookie?, ttl })
    }
}
