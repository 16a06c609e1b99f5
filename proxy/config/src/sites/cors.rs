//! Which pages of other origins may use a route (CORS, the Fetch standard).

use std::time::Duration;

use schemars::JsonSchema;

use crate::decode::{At, Cx, Fields, duration, filled_list, is_token, parsed, truth};
use crate::matching::read_methods;
use crate::values::DurationText;

/// Lets scripts of pages from elsewhere read responses (CORS). Preflight requests are answered by the node, before any filter sees them;
/// every other response of the route, errors and filters' answers included, gets the fields, and what the upstream says about it is
/// replaced. With `match.method`, the route also needs `OPTIONS` there.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Cors {
    /// Whose pages: `https://app.example.com`, `https://*.example.com` (one label more), or `"*"` alone for all. Without a path, the port
    /// only where it is not the scheme's own. At least one. Required.
    #[schemars(with = "Vec<String>", length(min = 1))]
    pub origins: Vec<Origin>,

    /// The methods they may use, besides `GET`, `HEAD` and `POST` which any page may. Default: none.
    #[schemars(with = "Option<Vec<String>>", length(min = 1))]
    pub methods: Vec<String>,

    /// The request header fields they may send, besides those that any page may. Default: none.
    #[schemars(with = "Option<Vec<String>>", length(min = 1))]
    pub headers: Vec<String>,

    /// The response header fields they may read, besides those that any page may. Default: none.
    #[schemars(with = "Option<Vec<String>>", length(min = 1))]
    pub expose: Vec<String>,

    /// Whether cookies and other credentials are sent along, and the responses to such requests may be read. Not with `"*"`. Default
    /// `false`.
    #[schemars(with = "Option<bool>", extend("default" = false))]
    pub credentials: bool,

    /// How long a browser may remember a preflight's answer. Above zero. Absent: as long as it likes, usually 5 s.
    #[schemars(with = "Option<DurationText>")]
    pub max_age: Option<Duration>,
}

/// Whose pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// All.
    Any,
    /// This one, as browsers write it (RFC 6454, 6.2).
    Exact(String),
    /// Hosts with one label more: what stands before that label, and after it.
    Wildcard(String, String),
}

impl Cors {
    pub(super) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "Cors")?;
        let origins = fields.need(cx, "origins", |cx, at| {
            let origins = filled_list(cx, at, |cx, at| parsed(cx, at, "an origin: `https://app.example.com`", origin))?;
            if origins.len() > 1 && origins.contains(&Origin::Any) {
                return cx.refuse(at.fault("`\"*\"` stands for all: it stands alone"));
            }
            Some(origins)
        });
        let methods = fields.get("methods").map(|at| read_methods(cx, &at));
        let headers = fields.read(cx, "headers", field_names);
        let expose = fields.read(cx, "expose", field_names);
        let credentials_at = fields.get("credentials");
        let credentials = credentials_at.as_ref().and_then(|at| truth(cx, at)).unwrap_or(false);
        if let (Some(at), Some([Origin::Any])) = (credentials_at.filter(|_| credentials), origins.as_deref()) {
            let fault = at.fault("pages of all origins must not use credentials");
            cx.report(fault.with_help("name the origins, or remove `credentials`"));
        }
        let max_age = fields.read(cx, "max_age", duration);
        fields.close(cx);
        Some(Self {
            origins: origins?,
            methods: methods.unwrap_or_else(|| Some(Vec::new()))?,
            headers: headers.unwrap_or_default(),
            expose: expose.unwrap_or_default(),
            credentials,
            max_age,
        })
    }
}

/// Names of header fields, in lower case.
fn field_names(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Vec<String>> {
    filled_list(cx, at, |cx, at| {
        parsed(cx, at, "the name of a header field", |text| {
            if is_token(text) && text != "*" {
                Ok(text.to_ascii_lowercase())
            } else {
                Err(("is not the name of a header field".into(), None))
            }
        })
    })
}

fn origin(text: &str) -> Result<Origin, (String, Option<String>)> {
    let wrong = |why: &str| Err((why.to_owned(), None));
    if text == "*" {
        return Ok(Origin::Any);
    }
    let Some((scheme, host)) = text.split_once("://") else { return wrong("has no scheme") };
    let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic() && !b"/?#@\"*\\".contains(&byte));
    if scheme.is_empty() || !scheme.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()) {
        return wrong("has no scheme in lower case");
    }
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return wrong("is not in lower case, as browsers write it");
    }
    match host.strip_prefix("*.") {
        Some(parent) if !parent.is_empty() && plain(parent) => {
            Ok(Origin::Wildcard(format!("{scheme}://"), format!(".{parent}")))
        }
        None if !host.is_empty() && plain(host) => Ok(Origin::Exact(text.to_owned())),
        _ => wrong("is not an origin"),
    }
}
