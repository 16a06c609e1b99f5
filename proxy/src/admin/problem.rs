//! What went wrong, as RFC 9457 says it.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;
use schemars::JsonSchema;
use selvedge_config::{Fault, Report};
use serde::Serialize;

/// Why a request of the admin API was not done. Nothing has changed then.
#[derive(Debug)]
pub(crate) struct Problem(Box<Document>);

/// Why a request was not done (RFC 9457). Nothing has changed then.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Problem")]
pub(crate) struct Document {
    /// The HTTP status.
    #[schemars(range(min = 400, max = 599))]
    status: u16,
    /// The kind of problem, the same for each of its kind.
    title: &'static str,
    /// What it is about this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    /// Everything that is wrong with the configuration, when that is the problem.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    faults: Vec<FaultView>,
    #[serde(skip)]
    header: Option<(HeaderName, HeaderValue)>,
}

/// One thing that is wrong with a configuration.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Fault")]
pub(crate) struct FaultView {
    /// The file it is in.
    file: String,
    /// The line, counted from 1.
    line: usize,
    /// The column in characters, counted from 1.
    column: usize,
    /// The path of the key, such as `sites[0].routes[1].match.path`; empty for the whole file.
    key: String,
    /// What is wrong.
    message: String,
    /// What could be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<String>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, title: &'static str) -> Self {
        Self(Box::new(Document { status: status.as_u16(), title, detail: None, faults: Vec::new(), header: None }))
    }

    pub(crate) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.0.detail = Some(detail.into());
        self
    }

    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.header = Some((name, value));
        self
    }

    /// The configuration is at fault.
    pub(crate) fn faulty(report: &Report) -> Self {
        let mut problem = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "The configuration is at fault");
        problem.0.faults = report.faults.iter().map(FaultView::of).collect();
        problem
    }

    /// As it is sent.
    pub(crate) fn into_response(mut self) -> Response<Full<Bytes>> {
        const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");
        let header = self.0.header.take();
        let body = serde_json::to_vec(&self.0).unwrap_or_default();
        let mut response = Response::new(Full::new(body.into()));
        *response.status_mut() = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response.headers_mut().insert(CONTENT_TYPE, PROBLEM);
        if let Some((name, value)) = header {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

impl FaultView {
    pub(crate) fn of(fault: &Fault) -> Self {
        Self {
            file: fault.file.display().to_string(),
            line: fault.line,
            column: fault.column,
            key: fault.key.clone(),
            message: fault.message.clone(),
            help: fault.help.clone(),
        }
    }
}
