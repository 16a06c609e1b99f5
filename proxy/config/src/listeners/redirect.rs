//! `listeners.*.redirect_to_https`: everybody is sent elsewhere.

use schemars::JsonSchema;

use crate::{
    decode::{At, Cx, Fields, truth, whole},
    report::Fault,
    tree::{Data, Kind},
};

/// Where a listener sends its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct RedirectToHttps {
    /// The port that https is served at. 1 to 65535. Default `443`, which is left out of the address.
    #[schemars(with = "Option<u16>", range(min = 1), extend("default" = 443))]
    pub port: u16,

    /// The status of the answer: 301, 302, 307 or 308. With 307 and 308 a client repeats a POST as it was, with the others it may ask for
    /// the address with GET. Browsers keep 301 and 308. Default `308`.
    #[schemars(with = "Option<u16>", extend("default" = 308, "enum" = [301, 302, 307, 308]))]
    pub status: u16,

    /// Whether requests below `/.well-known/acme-challenge/` are served by the sites instead, so that certificates can be renewed over
    /// HTTP (RFC 8555, 8.3). Default `false`.
    #[schemars(with = "Option<bool>", extend("default" = false))]
    pub acme_challenge: bool,
}

/// How it may be written.
#[derive(JsonSchema)]
#[schemars(untagged, rename = "RedirectToHttpsForm")]
#[expect(dead_code, reason = "describes the grammar; never made")]
pub(super) enum Form {
    Truth(bool),
    To(RedirectToHttps),
}

impl RedirectToHttps {
    /// `None` for a fault; the inner one for `false`.
    pub(super) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Option<Self>> {
        let default = Self { port: 443, status: 308, acme_challenge: false };
        if matches!(&at.node.data, Data::Scalar(scalar) if scalar.kind() != Kind::Null) {
            return truth(cx, at).map(|yes| yes.then_some(default));
        }
        let mut fields = Fields::open(cx, at, "RedirectToHttps")?;
        let port = fields.read(cx, "port", |cx, at| whole(cx, at, 1, u16::MAX));
        let status = fields.read(cx, "status", |cx, at| {
            let status = whole(cx, at, 301, 308)?;
            if matches!(status, 301 | 302 | 307 | 308) {
                return Some(status);
            }
            let fault: Fault = at.fault(format!("{status} does not send anybody on"));
            cx.refuse(fault.with_help("one of 301, 302, 307, 308"))
        });
        let acme_challenge = fields.read(cx, "acme_challenge", truth).unwrap_or(false);
        fields.close(cx);
        let (port, status) = (port.unwrap_or(default.port), status.unwrap_or(default.status));
        Some(Some(Self { port, status, acme_challenge }))
    }
}

/// Whether a listener is written to redirect all that comes, whatever may be wrong with how.
pub(crate) fn redirects(at: &At<'_>) -> bool {
    let Data::Map(entries) = &at.node.data else { return false };
    entries.iter().any(|entry| {
        let off = match &entry.value.data {
            Data::Scalar(scalar) => scalar.kind() == Kind::Bool(false),
            // Its sites are asked for one path.
            Data::Map(entries) => entries.iter().any(|entry| {
                entry.key == "acme_challenge"
                    && matches!(&entry.value.data, Data::Scalar(scalar) if scalar.kind() == Kind::Bool(true))
            }),
            _ => false,
        };
        entry.key == "redirect_to_https" && !off
    })
}
