//! `admin`: where the node's operator asks and tells.

use std::fmt;

use schemars::JsonSchema;

use crate::{
    bind::Bind,
    decode::{At, Cx, Fields, secret_text, text},
    report::{Fault, Position},
};

/// The admin API: what the node is doing, as JSON, and what it can be told to do (reload, roll back, drain). Absent: nobody can ask.
/// Its description is at `/v1/openapi.json`. Whoever may use it controls the node.
#[derive(Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Admin {
    /// The address and port to listen at, `127.0.0.1:9901` (port 0 takes a free one), or a Unix socket, `unix:/run/selvedge/admin.sock`,
    /// which only the user and the group of the process may open. Plain HTTP/1.1. A change needs a restart. Required.
    #[schemars(with = "String", extend("examples" = ["127.0.0.1:9901"]))]
    pub bind: Bind,

    /// What every request but `/v1/live` and `/v1/ready` must carry as `Authorization: Bearer TOKEN`: at least 16 visible ASCII
    /// characters. Take it from the environment, or write `token_file`. Default: none is asked for, which only a loopback address or a
    /// Unix socket may do.
    pub token: Option<String>,

    /// A file that holds the token, instead of `token`. It is watched like the other files of the configuration.
    #[schemars(with = "Option<String>")]
    #[doc(hidden)] // already in `token`
    pub token_file: (),

    /// Where it is written.
    #[schemars(skip)]
    pub position: Position,
}

/// Without the secret.
impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("bind", &self.bind).field("token", &self.token.is_some()).finish_non_exhaustive()
    }
}

/// The shortest token: what can be tried out over a network in no useful time.
const TOKEN_MIN: usize = 16;

impl Admin {
    pub(crate) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "Admin")?;
        let bind = fields.need(cx, "bind", read_bind);
        let written = fields.get("token");
        let in_file = fields.get("token_file");
        if let (Some(token), Some(file)) = (&written, &in_file) {
            let fault = file.fault("`token` and `token_file` are both written");
            cx.report(fault.with_related("the other one", token.name_position()));
        }
        let has_token = written.is_some() || in_file.is_some();
        let token = match (written, in_file) {
            (Some(at), _) => text(cx, &at).and_then(|token| checked(cx, &at, token)),
            (None, Some(at)) => secret_text(cx, &at).and_then(|token| checked(cx, &at, token)),
            (None, None) => None,
        };
        if let Some((bind, position)) = &bind
            && !bind.is_local()
            && !has_token
        {
            let fault = Fault::at(position, "the address can be reached from elsewhere, and no `token` is asked for");
            let help = "write `token_file`, or bind to 127.0.0.1 or a Unix socket";
            cx.report(fault.with_key(format!("{}.bind", at.path)).with_help(help));
        }
        fields.close(cx);
        Some(Self { bind: bind?.0, token, token_file: (), position: at.name_position().clone() })
    }
}

fn read_bind(cx: &mut Cx<'_>, at: &At<'_>) -> Option<(Bind, Position)> {
    Some((Bind::read(cx, at, "127.0.0.1", "this machine only")?, at.node.position.clone()))
}

/// The token, when it is one.
fn checked(cx: &mut Cx<'_>, at: &At<'_>, token: String) -> Option<String> {
    if token.len() < TOKEN_MIN {
        return cx.refuse(at.fault("the token is shorter than 16 characters"));
    }
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return cx.refuse(at.fault("the token has characters other than ASCII letters, digits and signs"));
    }
    Some(token)
}
