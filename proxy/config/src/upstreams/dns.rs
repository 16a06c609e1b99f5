//! How the names of endpoints become addresses.

use std::net::SocketAddr;
use std::time::Duration;

use schemars::JsonSchema;

use crate::decode::{At, Cx, Fields, duration, filled_list, parsed};
use crate::values::DurationText;

/// How the names of endpoints become addresses. A name is looked up again when its answer has had its time (TTL); each of its addresses
/// is an endpoint. When a look-up fails, the last good answer stays in use, however old.
#[derive(Debug, Clone, PartialEq, Eq, Hash, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Dns {
    /// The shortest time between two look-ups of a name, whatever its TTL says; also the time to the next one after a failure. Above
    /// zero. Default `5s`.
    #[schemars(with = "Option<DurationText>", extend("default" = "5s"))]
    pub ttl_min: Duration,

    /// The longest time between two look-ups of a name. Not below `ttl_min`. Default `5m`.
    #[schemars(with = "Option<DurationText>", extend("default" = "5m"))]
    pub ttl_max: Duration,

    /// How long one look-up may take; also how long a start waits for names. Above zero. Default `2s`.
    #[schemars(with = "Option<DurationText>", extend("default" = "2s"))]
    pub timeout: Duration,

    /// The servers that are asked, each `IP` or `IP:port`. Absent: what `/etc/resolv.conf` says, and `/etc/hosts` before it.
    #[schemars(with = "Option<Vec<String>>", length(min = 1))]
    pub resolver: Vec<SocketAddr>,
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            ttl_min: Duration::from_secs(5),
            ttl_max: Duration::from_mins(5),
            timeout: Duration::from_secs(2),
            resolver: Vec::new(),
        }
    }
}

impl Dns {
    pub(crate) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let default = Self::default();
        let mut fields = Fields::open(cx, at, "Dns")?;
        let ttl_min = fields.read(cx, "ttl_min", duration).unwrap_or(default.ttl_min);
        let ttl_max_at = fields.get("ttl_max");
        let ttl_max = ttl_max_at.as_ref().and_then(|at| duration(cx, at));
        let timeout = fields.read(cx, "timeout", duration);
        let resolver = fields
            .read(cx, "resolver", |cx, at| filled_list(cx, at, |cx, at| parsed(cx, at, "`IP` or `IP:port`", server)));
        fields.close(cx);
        if let Some((at, _)) = ttl_max_at.as_ref().zip(ttl_max.filter(|most| *most < ttl_min)) {
            cx.report(at.fault("`ttl_max` is below `ttl_min`"));
        }
        Some(Self {
            ttl_min,
            ttl_max: ttl_max.unwrap_or(default.ttl_max.max(ttl_min)),
            timeout: timeout.unwrap_or(default.timeout),
            resolver: resolver.unwrap_or_default(),
        })
    }
}

fn server(text: &str) -> Result<SocketAddr, (String, Option<String>)> {
    let address = text.parse().or_else(|_| text.parse().map(|ip| SocketAddr::new(ip, 53)));
    match address {
        Ok(address) if address.port() != 0 => Ok(address),
        _ => Err(("is not the address of a server".into(), None)),
    }
}
