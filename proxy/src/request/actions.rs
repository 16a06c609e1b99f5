//! What a route's settings do to requests and responses: header fields, another target, redirects. Compiled once, with the plan.

use std::fmt::Write as _;

use bytes::Bytes;
use http::header::{self, HeaderMap};
use http::{HeaderName, HeaderValue};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};
use regex::{Regex, RegexBuilder};
use selvedge_config::{FieldRules, Part, PathMatch, REGEX_SIZE, Template};

use super::{RequestCtx, cors};
use crate::chain::exchange::authority;

/// What is done to header fields, ready to be done.
pub(crate) struct Fields {
    remove: Vec<HeaderName>,
    set: Vec<(HeaderName, Value)>,
    add: Vec<(HeaderName, Value)>,
}

/// A value that is the same for all requests, or made for each.
enum Value {
    Fixed(HeaderValue),
    Made(Template),
}

/// Another target.
pub(crate) struct Rewrite {
    path: PathRewrite,
    host: Option<HeaderValue>,
    query: bool,
}

enum PathRewrite {
    None,
    /// What the path begins with, and what it begins with instead.
    Prefix(String, String),
    Regex(Regex, String),
}

/// An answer that sends the client elsewhere.
pub(crate) struct Redirect {
    to: Template,
    status: u16,
}

impl Fields {
    /// `None` = nothing is to be done.
    ///
    /// # Errors
    /// The name of a field that cannot be written; the loader has refused those before.
    pub(crate) fn of(rules: &FieldRules) -> std::result::Result<Option<Box<Self>>, String> {
        if rules.is_empty() {
            return Ok(None);
        }
        let name = |name: &String| HeaderName::from_bytes(name.as_bytes()).map_err(|_| name.clone());
        let value = |(field, template): &(String, Template)| {
            let value = match &template.parts[..] {
                [] => Value::Fixed(HeaderValue::from_static("")),
                [Part::Text(text)] => Value::Fixed(HeaderValue::from_str(text.trim()).map_err(|_| field.clone())?),
                _ => Value::Made(template.clone()),
            };
            Ok((name(field)?, value))
        };
        Ok(Some(Box::new(Self {
            remove: rules.remove.iter().map(name).collect::<std::result::Result<_, _>>()?,
            set: rules.set.iter().map(value).collect::<std::result::Result<_, String>>()?,
            add: rules.add.iter().map(value).collect::<std::result::Result<_, String>>()?,
        })))
    }
}

impl Rewrite {
    /// # Errors
    /// What cannot be rewritten; the loader has refused that before.
    pub(crate) fn of(rewrite: &selvedge_config::Rewrite, when: &PathMatch) -> std::result::Result<Self, String> {
        let path = match (&rewrite.prefix, &rewrite.path) {
            (Some(prefix), _) => {
                let replaced = match when {
                    PathMatch::Exact(path) | PathMatch::Prefix(path) => path.clone(),
                    PathMatch::Pattern { .. } | PathMatch::Regex(_) => return Err("prefix".into()),
                };
                PathRewrite::Prefix(replaced, prefix.trim_end_matches('/').to_owned())
            }
            (None, Some(path)) => {
                let regex = RegexBuilder::new(&path.regex).size_limit(REGEX_SIZE).build();
                PathRewrite::Regex(regex.map_err(|_| path.regex.clone())?, path.with.clone())
            }
            (None, None) => PathRewrite::None,
        };
        let host = rewrite.host.as_ref().map(|host| HeaderValue::from_str(host).map_err(|_| host.clone()));
        Ok(Self { path, host: host.transpose()?, query: rewrite.query })
    }

    /// The target as the upstream gets it.
    ///
    /// # Errors
    /// What comes out is no path.
    pub(crate) fn apply(&self, request: &mut RequestHeader) -> Result<()> {
        if let Some(host) = &self.host {
            request.insert_header(header::HOST, host.clone())?;
        }
        let (path, query) = (request.uri.path(), request.uri.query());
        let mut target = match &self.path {
            PathRewrite::None if self.query || query.is_none() => return Ok(()),
            PathRewrite::None => path.to_owned(),
            PathRewrite::Prefix(replaced, prefix) => {
                // A filter may have sent it elsewhere since the route was found: that it has said itself.
                let rest = path.strip_prefix(replaced.as_str()).filter(|rest| rest.is_empty() || rest.starts_with('/'));
                match rest {
                    Some("") if prefix.is_empty() => "/".to_owned(),
                    Some(rest) => format!("{prefix}{rest}"),
                    None => path.to_owned(),
                }
            }
            PathRewrite::Regex(regex, with) => regex.replace(path, with.as_str()).into_owned(),
        };
        if !target.starts_with('/') || target.bytes().any(|byte| !matches!(byte, b'!'..=b'~') || byte == b'#') {
            return Error::e_explain(ErrorType::InternalError, "the rewritten target is no path");
        }
        if let Some(query) = query.filter(|_| self.query) {
            target.push(if target.contains('?') { '&' } else { '?' });
            target.push_str(query);
        }
        request.set_raw_path(target.as_bytes())
    }
}

impl Redirect {
    pub(crate) fn of(redirect: &selvedge_config::Redirect) -> Self {
        Self { to: redirect.to.clone(), status: redirect.status }
    }

    /// The answer.
    pub(crate) fn answer(&self, facts: &Facts<'_>) -> Result<Box<ResponseHeader>> {
        let mut response = ResponseHeader::build(self.status, Some(2))?;
        response.insert_header(header::LOCATION, made(&self.to, facts)?)?;
        response.set_content_length(0)?;
        Ok(Box::new(response))
    }
}

/// What templates are made of.
pub(crate) struct Facts<'r> {
    pub(crate) request: &'r RequestHeader,
    pub(crate) ctx: &'r RequestCtx,
    pub(crate) status: Option<u16>,
}

/// The fields of a request, on its way to the upstream.
pub(crate) fn on_request(session: &Session, request: &mut RequestHeader, ctx: &RequestCtx) -> Result<()> {
    let route = ctx.route()?;
    if let Some(fields) = &route.request_fields {
        let facts = Facts { request: session.req_header(), ctx, status: None };
        for name in &fields.remove {
            request.remove_header(name);
        }
        for (name, value) in &fields.set {
            request.insert_header(name.clone(), value.of(&facts)?)?;
        }
        for (name, value) in &fields.add {
            request.append_header(name.clone(), value.of(&facts)?)?;
        }
    }
    match &route.rewrite {
        Some(rewrite) => rewrite.apply(request),
        None => Ok(()),
    }
}

/// The fields of a response, on its way to the filters and the client.
pub(crate) fn on_response(request: &RequestHeader, response: &mut ResponseHeader, ctx: &RequestCtx) -> Result<()> {
    let Some(route) = &ctx.route else { return Ok(()) };
    cors::mark(request, response, ctx)?;
    let Some(fields) = &route.response_fields else { return Ok(()) };
    let facts = Facts { request, ctx, status: Some(response.status.as_u16()) };
    for name in &fields.remove {
        response.remove_header(name);
    }
    for (name, value) in &fields.set {
        response.insert_header(name.clone(), value.of(&facts)?)?;
    }
    for (name, value) in &fields.add {
        response.append_header(name.clone(), value.of(&facts)?)?;
    }
    Ok(())
}

impl Value {
    fn of(&self, facts: &Facts<'_>) -> Result<HeaderValue> {
        match self {
            Self::Fixed(value) => Ok(value.clone()),
            Self::Made(template) => made(template, facts),
        }
    }
}

/// A template with what is known of a request. Nothing in it can end a line: headers, paths and queries have been checked, and stand as they
/// came.
fn made(template: &Template, facts: &Facts<'_>) -> Result<HeaderValue> {
    let (request, ctx) = (facts.request, facts.ctx);
    let mut out = Vec::with_capacity(64);
    let host = || crate::plan::without_port(std::str::from_utf8(authority(request)).unwrap_or_default());
    let location = || ctx.plan.geo.as_ref()?.lookup(ctx.downstream.client?.ip());
    for part in &template.parts {
        match part {
            Part::Text(text) => out.extend(text.as_bytes()),
            Part::ClientIp => push(&mut out, ctx.downstream.client.map(|client| client.ip().to_canonical())),
            Part::ClientPort => push(&mut out, ctx.downstream.client.map(|client| client.port())),
            Part::Scheme => out.extend(if ctx.downstream.tls { &b"https"[..] } else { b"http" }),
            Part::Host => out.extend(host().as_bytes()),
            Part::Authority => out.extend(authority(request)),
            Part::Method => out.extend(request.method.as_str().as_bytes()),
            Part::Path => out.extend(request.uri.path().as_bytes()),
            Part::Query => out.extend(request.uri.query().unwrap_or_default().as_bytes()),
            Part::Uri => out.extend(request.uri.path_and_query().map_or("/", |uri| uri.as_str()).as_bytes()),
            Part::Route => out.extend(ctx.route.as_ref().map_or("", |route| route.name()).as_bytes()),
            Part::Site => out.extend(ctx.route.as_ref().map_or("", |route| route.site()).as_bytes()),
            Part::Node => out.extend(ctx.plan.node.name.as_bytes()),
            Part::Status => push(&mut out, facts.status),
            Part::Country => {
                push(&mut out, location().and_then(|place| place.country).as_ref().map(|code| code.as_str()))
            }
            Part::Continent => {
                push(&mut out, location().and_then(|place| place.continent).as_ref().map(|code| code.as_str()));
            }
            Part::Header(name) => {
                out.extend(request.headers.get(name.as_str()).map_or(&b""[..], HeaderValue::as_bytes))
            }
            Part::Cookie(name) => out.extend(cookie(&request.headers, name).unwrap_or_default()),
            Part::Parameter(name) => out.extend(parameter(request, name).unwrap_or_default().as_bytes()),
        }
    }
    HeaderValue::from_maybe_shared(Bytes::from(out))
        .map_err(|error| Error::because(ErrorType::InternalError, "a header value made of a request", error))
}

fn push(out: &mut Vec<u8>, value: Option<impl std::fmt::Display>) {
    if let Some(value) = value {
        let mut text = String::new();
        let _ = write!(text, "{value}");
        out.extend(text.as_bytes());
    }
}

fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h [u8]> {
    let mut pairs =
        headers.get_all(header::COOKIE).iter().flat_map(|field| field.as_bytes().split(|byte| *byte == b';'));
    pairs.find_map(|pair| pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

fn parameter<'r>(request: &'r RequestHeader, name: &str) -> Option<&'r str> {
    request.uri.query()?.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })
}
