//! `cluster.redis`: how nodes hear of each other's purges.

use std::fmt;

use schemars::JsonSchema;

use crate::{
    decode::{At, Cx, Fields, parsed, secret_text, text},
    report::Position,
};

/// A Redis (5 or newer) or Valkey server over which nodes tell each other what is purged. A node that was away reads what it has missed
/// when it is back; while the server is away, nodes go on by themselves, and their purges wait.
#[derive(Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Redis {
    /// Where it is: `redis://host:6379`, or `rediss://` over TLS, with a certificate of an authority that this machine trusts; a number
    /// behind it, `/1`, is the database. Without user and password. A change of anything here needs a restart. Required.
    pub url: String,

    /// Who logs in. Default: nobody; a password alone is that of the user `default`.
    pub username: Option<String>,

    /// The password. Take it from the environment, or write `password_file`. Default: none.
    pub password: Option<String>,

    /// A file that holds the password, instead of `password`.
    #[schemars(with = "Option<String>")]
    #[doc(hidden)] // already in `password`
    pub password_file: (),

    /// The key of the stream; `KEY:nodes` holds what nodes say about themselves. Clusters that share a server need different ones.
    /// Default `selvedge:purges`.
    #[schemars(with = "Option<String>", extend("default" = "selvedge:purges"))]
    pub key: String,

    /// `cluster.name`, if it is written.
    #[schemars(skip)]
    pub node: Option<String>,

    /// Where it is written.
    #[schemars(skip)]
    pub position: Position,
}

/// Without the secret.
impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").field("url", &self.url).field("key", &self.key).finish_non_exhaustive()
    }
}

impl Redis {
    pub(crate) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "Redis")?;
        let url = fields.need(cx, "url", |cx, at| {
            parsed(cx, at, "`redis://HOST:PORT` or `rediss://HOST:PORT`", |text| {
                check_url(text).map(|()| text.to_owned())
            })
        });
        let username = fields.read(cx, "username", text);
        let written = fields.get("password");
        let in_file = fields.get("password_file");
        if let (Some(password), Some(file)) = (&written, &in_file) {
            let fault = file.fault("`password` and `password_file` are both written");
            cx.report(fault.with_related("the other one", password.name_position()));
        }
        let password = match (written, in_file) {
            (Some(at), _) => text(cx, &at),
            (None, Some(at)) => secret_text(cx, &at),
            (None, None) => None,
        };
        let key =
            fields.read(cx, "key", |cx, at| {
                parsed(cx, at, "a name", |text| {
                    if text.is_empty() { Err(("is empty".into(), None)) } else { Ok(text.to_owned()) }
                })
            });
        fields.close(cx);
        Some(Self {
            url: url?,
            username,
            password,
            password_file: (),
            key: key.unwrap_or_else(|| "selvedge:purges".into()),
            node: None,
            position: at.name_position().clone(),
        })
    }
}

fn check_url(text: &str) -> Result<(), (String, Option<String>)> {
    let rest = text.strip_prefix("redis://").or_else(|| text.strip_prefix("rediss://"));
    let Some(rest) = rest else {
        return Err(("does not begin with `redis://` or `rediss://`".into(), None));
    };
    if rest.contains('@') {
        return Err(("has a user or a password in it".into(), Some("write `username` and `password_file`".into())));
    }
    let (host, database) = rest.split_once('/').unwrap_or((rest, ""));
    if !database.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(("has more than the number of a database behind the host".into(), None));
    }
    if host.is_empty() || host.bytes().any(|byte| !byte.is_ascii_graphic()) {
        return Err(("has no host".into(), None));
    }
    Ok(())
}
