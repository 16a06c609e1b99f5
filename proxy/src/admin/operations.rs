//! What can be asked and told: one table, which answers and describes itself.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method, Response, StatusCode};
use http_body_util::Full;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::cache::{self, CacheStats, Purged, StoredObjects};
use super::certificates::CertificatesView;
use super::problem::Problem;
use super::views::{
    ConfigView, Draining, Filters, Generations, InForce, LogFilter, NodeView, Readiness, Ready, Upstreams,
};
use super::{State, openapi};
use crate::cluster::hello::{ClusterView, ask_others};
use crate::control::RollBackError;
use crate::purge::Order;
use crate::telemetry::endpoint::PROMETHEUS_TEXT;

/// One thing that can be asked or told.
pub(crate) struct Operation {
    pub(crate) verb: Verb,
    /// With `{name}` for what varies; each stands for one segment.
    pub(crate) path: &'static str,
    pub(crate) summary: &'static str,
    /// Whether it is answered without a token: to probes.
    pub(crate) open: bool,
    /// What has to stand behind the question mark.
    pub(crate) parameters: &'static [&'static str],
    /// The schema of the JSON it takes.
    pub(crate) request: Option<fn(&mut SchemaGenerator) -> Schema>,
    pub(crate) answer: Body,
    run: for<'a> fn(&'a State, Call<'a>) -> Answering<'a>,
}

/// The methods of the API. (`http::Method` cannot stand in a constant table.)
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Get,
    Put,
    Post,
}

impl Verb {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Post => "POST",
        }
    }
}

/// What an answer's body is.
#[derive(Clone, Copy)]
pub(crate) enum Body {
    /// JSON of this schema.
    Json(fn(&mut SchemaGenerator) -> Schema),
    Text,
}

/// A request for an operation.
pub(crate) struct Call<'a> {
    /// What stands in the path for `{name}`s, in order, decoded.
    pub(crate) names: Vec<String>,
    /// What stands behind the question mark.
    pub(crate) query: Option<&'a str>,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) body: Bytes,
}

type Answering<'a> = Pin<Box<dyn Future<Output = Result<Response<Full<Bytes>>, Problem>> + Send + 'a>>;

/// Everything there is.
pub(crate) const TABLE: &[Operation] = &[
    Operation {
        open: true,
        ..ask::<Readiness>("/v1/live", "Whether the process answers at all.", |_, _| {
            Box::pin(async { json(&Readiness { status: "live", notes: Vec::new() }) })
        })
    },
    Operation {
        open: true,
        ..ask::<Readiness>(
            "/v1/ready",
            "Whether requests should be sent here; 503 while the node drains.",
            |state, _| Box::pin(async { ready(state) }),
        )
    },
    ask::<NodeView>("/v1/node", "The node: its version, generation, listeners.", |state, _| {
        Box::pin(async { json(&NodeView::of(state)) })
    }),
    Operation {
        request: Some(SchemaGenerator::subschema_for::<Ready>),
        ..tell::<Ready>(
            Verb::Put,
            "/v1/ready",
            "Says whether requests should be sent here; those that come are served all the same.",
            |state, call| Box::pin(async move { set_ready(state, &call) }),
        )
    },
    ask::<Generations>(
        "/v1/generations",
        "The configurations that are or were in force, and why the last reload was not done, if it was not.",
        |state, _| Box::pin(async { json(&Generations::of(state)) }),
    ),
    ask::<ConfigView>(
        "/v1/config",
        "The configuration in force: all files in one, defaults filled in, without secrets.",
        |state, _| Box::pin(config(state)),
    ),
    tell::<InForce>(
        Verb::Post,
        "/v1/generations/{number}/activate",
        "Puts an earlier configuration in force again, until the next reload. The files it names are read as they are now.",
        |state, call| Box::pin(roll_back(state, call)),
    ),
    tell::<InForce>(
        Verb::Post,
        "/v1/reload",
        "Reads the configuration again, and puts it in force if it is in order.",
        |state, _| Box::pin(reload(state)),
    ),
    ask::<Upstreams>("/v1/upstreams", "The upstreams, and how their endpoints are.", |state, _| {
        Box::pin(async { json(&Upstreams::of(state)) })
    }),
    ask::<ClusterView>(
        "/v1/cluster",
        "The other nodes of the cluster: whether they answer, and whether their routes are the same. Asks each of them.",
        |state, _| Box::pin(cluster(state)),
    ),
    Operation {
        request: Some(SchemaGenerator::subschema_for::<Draining>),
        ..tell::<Draining>(
            Verb::Put,
            "/v1/upstreams/{upstream}/endpoints/{endpoint}",
            "Says whether an endpoint, by its id or its address, gets new requests; those under way go on.",
            |state, call| Box::pin(async move { drain(state, &call) }),
        )
    },
    ask::<CertificatesView>(
        "/v1/certificates",
        "The certificates that TLS listeners show, and how long they are valid.",
        |state, _| Box::pin(async { json(&CertificatesView::of(state)) }),
    ),
    ask::<Filters>("/v1/filters", "The filters in use, and their failures.", |state, _| {
        Box::pin(async { json(&Filters::of(state)) })
    }),
    Operation {
        request: Some(SchemaGenerator::subschema_for::<Order>),
        ..tell::<Purged>(
            Verb::Post,
            "/v1/cache/purge",
            "Purges what is stored: URLs, prefixes, hosts, tags, or everything. When it answers, nothing of it is handed out any more.",
            |state, call| Box::pin(cache::purge(state, call)),
        )
    },
    ask::<CacheStats>("/v1/cache/stats", "What the cache holds.", |state, _| {
        Box::pin(async { json(&CacheStats::of(state)?) })
    }),
    Operation {
        parameters: &["url"],
        ..ask::<StoredObjects>("/v1/cache/object", "What is stored for a URL.", |state, call| {
            Box::pin(cache::object(state, call))
        })
    },
    tell::<serde_json::Value>(
        Verb::Post,
        "/service/{id}/purge/{key}",
        "Purges a tag, for tools made for Fastly: `Fastly-Soft-Purge: 1` makes it soft. Any `id` will do.",
        |state, call| Box::pin(cache::fastly_key(state, call)),
    ),
    tell::<serde_json::Value>(
        Verb::Post,
        "/service/{id}/purge",
        "Purges the tags in `Surrogate-Key` or `{\"surrogate_keys\": [..]}`, for tools made for Fastly.",
        |state, call| Box::pin(cache::fastly_keys(state, call)),
    ),
    tell::<serde_json::Value>(
        Verb::Post,
        "/service/{id}/purge_all",
        "Purges everything, for tools made for Fastly.",
        |state, _| Box::pin(cache::fastly_all(state)),
    ),
    ask::<LogFilter>("/v1/log", "What is logged.", |_, _| Box::pin(async { json(&LogFilter::current()?) })),
    Operation {
        request: Some(SchemaGenerator::subschema_for::<LogFilter>),
        ..tell::<LogFilter>(
            Verb::Put,
            "/v1/log",
            "Changes what is logged, until the process ends: a level, or `tracing`'s filter syntax.",
            |_, call| Box::pin(async move { json(&call.json::<LogFilter>()?.put_in_force()?) }),
        )
    },
    Operation {
        answer: Body::Text,
        ..ask::<()>("/metrics", "Counters in the Prometheus text format.", |state, _| {
            Box::pin(async { Ok(typed(PROMETHEUS_TEXT, metrics(state))) })
        })
    },
    ask::<serde_json::Value>("/v1/openapi.json", "This description.", |_, _| {
        Box::pin(async { json(&openapi::document(env!("CARGO_PKG_VERSION"))) })
    }),
];

/// The answer to a request, whoever asks: who may was decided before.
pub(crate) async fn run(
    state: &State,
    operation: &Operation,
    call: Call<'_>,
) -> Result<Response<Full<Bytes>>, Problem> {
    (operation.run)(state, call).await
}

/// The operation of a request, and what stands in its path.
///
/// # Errors
/// There is no such path, or it has other methods.
pub(crate) fn find(method: &Method, path: &str) -> Result<(&'static Operation, Vec<String>), Problem> {
    let method = if method == Method::HEAD { &Method::GET } else { method };
    let mut allowed = Vec::new();
    for operation in TABLE {
        let Some(names) = names_in(operation.path, path) else { continue };
        if operation.verb.as_str() == method.as_str() {
            return Ok((operation, names));
        }
        allowed.push(operation.verb.as_str());
    }
    if allowed.is_empty() {
        return Err(Problem::new(StatusCode::NOT_FOUND, "There is no such path").detail("see /v1/openapi.json"));
    }
    let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "The path has other methods");
    let allowed = allowed.join(", ");
    let value = HeaderValue::from_str(&allowed).unwrap_or(HeaderValue::from_static("GET"));
    Err(problem.detail(format!("it has {allowed}")).header(http::header::ALLOW, value))
}

/// What stands for the `{name}`s of a template; `None` = the path is another.
fn names_in(template: &str, path: &str) -> Option<Vec<String>> {
    let mut names = Vec::new();
    let mut given = path.split('/');
    for part in template.split('/') {
        let given = given.next()?;
        if part.starts_with('{') {
            let name = percent_encoding::percent_decode_str(given).decode_utf8().ok()?;
            if name.is_empty() {
                return None;
            }
            names.push(name.into_owned());
        } else if part != given {
            return None;
        }
    }
    given.next().is_none().then_some(names)
}

impl Call<'_> {
    /// The body, which has to be JSON of this shape.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        let is_json = self.headers.get(CONTENT_TYPE).is_some_and(|value| {
            let essence = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
            essence.trim_ascii().eq_ignore_ascii_case(b"application/json")
        });
        if !is_json {
            let problem = Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "The body is not JSON");
            return Err(problem.detail("send it with `content-type: application/json`"));
        }
        serde_json::from_slice(&self.body).map_err(|error| {
            Problem::new(StatusCode::BAD_REQUEST, "The body is not what is expected").detail(error.to_string())
        })
    }
}

fn ready(state: &State) -> Result<Response<Full<Bytes>>, Problem> {
    if state.control.is_ready() {
        let away = state.control.current().stream().is_some_and(|stream| !stream.usage().connected);
        let notes = away.then_some("Redis is away: purges of other nodes do not arrive").into_iter().collect();
        return json(&Readiness { status: "ready", notes });
    }
    Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "The node drains"))
}

fn set_ready(state: &State, call: &Call<'_>) -> Result<Response<Full<Bytes>>, Problem> {
    let wanted: Ready = call.json()?;
    if wanted.ready && state.control.is_draining() {
        return Err(Problem::new(StatusCode::CONFLICT, "The node stops").detail("it takes no more connections"));
    }
    state.control.set_ready(wanted.ready);
    json(&wanted)
}

fn drain(state: &State, call: &Call<'_>) -> Result<Response<Full<Bytes>>, Problem> {
    let unknown = |what: &'static str| Problem::new(StatusCode::NOT_FOUND, what).detail("see /v1/upstreams");
    let [upstream, endpoint] = &call.names[..] else { return Err(unknown("There is no such path")) };
    let wanted: Draining = call.json()?;
    let plan = state.control.current().plan();
    let upstream = plan.upstreams.get(upstream).ok_or_else(|| unknown("There is no such upstream"))?;
    let endpoints = upstream.endpoints();
    let known = endpoints.iter().find(|one| one.id.to_string() == *endpoint || one.address.to_string() == *endpoint);
    let done = known.is_some_and(|known| upstream.drain(known.id, wanted.draining));
    if done { json(&wanted) } else { Err(unknown("There is no such endpoint")) }
}

async fn cluster(state: &State) -> Result<Response<Full<Bytes>>, Problem> {
    let plan = state.control.current().plan();
    let alone = || Problem::new(StatusCode::NOT_FOUND, "The node is in no cluster");
    let cluster = plan.cluster.as_ref().ok_or_else(alone)?;
    json(&ask_others(cluster, plan.generation).await)
}

async fn reload(state: &State) -> Result<Response<Full<Bytes>>, Problem> {
    let control = state.control.clone();
    // It takes as long as compiling the modules does, and goes on to its end when the client leaves.
    match tokio::task::spawn_blocking(move || control.reload()).await {
        Ok(Ok(generation)) => json(&InForce { generation }),
        Ok(Err(report)) => Err(Problem::faulty(&report)),
        Err(_) => Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "The reload failed in itself")),
    }
}

async fn config(state: &State) -> Result<Response<Full<Bytes>>, Problem> {
    let control = state.control.clone();
    // Large configurations take their time.
    let effective = tokio::task::spawn_blocking(move || control.effective()).await.ok().flatten();
    let failed = || Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "The configuration cannot be shown");
    json(&ConfigView::of(effective.ok_or_else(failed)?))
}

async fn roll_back(state: &State, call: Call<'_>) -> Result<Response<Full<Bytes>>, Problem> {
    let unknown = |detail: String| Problem::new(StatusCode::NOT_FOUND, "There is no such generation").detail(detail);
    let number = call.names.first().map(String::as_str).unwrap_or_default();
    let number = number.parse().map_err(|_| unknown(format!("`{number}` is not a number")))?;
    let control = state.control.clone();
    match tokio::task::spawn_blocking(move || control.roll_back(number)).await {
        Ok(Ok(generation)) => json(&InForce { generation }),
        Ok(Err(RollBackError::Faulty(report))) => Err(Problem::faulty(&report)),
        Ok(Err(error @ RollBackError::Unknown(_))) => Err(unknown(error.to_string())),
        Err(_) => Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "The roll-back failed in itself")),
    }
}

fn metrics(state: &State) -> String {
    state.control.metrics_page()
}

/// Something to ask, answered with JSON.
const fn ask<T: JsonSchema>(
    path: &'static str,
    summary: &'static str,
    run: for<'a> fn(&'a State, Call<'a>) -> Answering<'a>,
) -> Operation {
    tell::<T>(Verb::Get, path, summary, run)
}

/// Something to tell, answered with JSON.
const fn tell<T: JsonSchema>(
    verb: Verb,
    path: &'static str,
    summary: &'static str,
    run: for<'a> fn(&'a State, Call<'a>) -> Answering<'a>,
) -> Operation {
    let answer = Body::Json(SchemaGenerator::subschema_for::<T>);
    Operation { verb, path, summary, open: false, parameters: &[], request: None, answer, run }
}

pub(super) fn json(value: &impl Serialize) -> Result<Response<Full<Bytes>>, Problem> {
    let body = serde_json::to_vec(value).map_err(|error| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "The answer cannot be written").detail(error.to_string())
    })?;
    Ok(typed(HeaderValue::from_static("application/json"), body))
}

fn typed(content_type: HeaderValue, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_found_by_its_segments() {
        assert_eq!(names_in("/v1/a/{b}/c", "/v1/a/x%2Fy/c"), Some(vec!["x/y".into()]));
        assert_eq!(names_in("/v1/a/{b}/c", "/v1/a//c"), None);
        assert_eq!(names_in("/v1/a", "/v1/a/"), None);
        assert_eq!(names_in("/v1/a/{b}", "/v1/a"), None);
        assert_eq!(names_in("/v1/a/{b}", "/v1/a/%ff"), None);
    }
}
