//! Bundled filter `geo-routing`: lets requests in, refuses them and picks their upstream by where the client is.
//!
//! ```yaml
//! filters:
//!   geo:
//!     wasm: builtin:geo-routing
//!     config:
//!       deny: [RU, continent:AN]        # wins over allow
//!       allow: []                       # empty: everywhere else
//!       unknown: allow                  # private addresses, addresses the database does not know: allow | deny
//!       status: 451                     # of a refusal: 403 | 451
//!       routes:                         # the first match wins; no match: the route's own upstream
//!         - { countries: [CH, LI], upstream: app-zrh }
//!         - { continents: [EU, AF], upstream: app-fra }
//!       header: x-geo-country           # to the origin; null: none
//!       response_header: x-country      # to the client; left out: none
//! ```
//!
//! The location comes from the host (`source.geo.country`, `source.geo.continent`), which looks up the client's address after trusted
//! hops are considered; without a geo database every place is unknown. `EU` is the continent, not the European Union.
//!
//! The header to the origin is set only when the country is known, and removed when a client sends it (also as `x_geo_country`, which
//! many servers read the same). When answers differ by country and are cached, the origin must say
//! `Vary: x-geo-country`.

pub mod config;
pub mod decide;
pub mod place;

use selvedge_sdk::metrics::Counter;
use selvedge_sdk::prelude::*;

use crate::config::{Config, Policy};
use crate::decide::{Decision, Problem};
use crate::place::{Code, Location};

/// The filter.
pub struct GeoRouting {
    policy: Policy,
    refused: Counter,
}

#[filter(body = "none")]
impl Filter for GeoRouting {
    type Config = Config;
    /// The country, for the response header.
    type Stream = Option<Code>;

    fn new(config: Config) -> Result<Self, String> {
        let policy = config.check().map_err(|error| error.to_string())?;
        Ok(Self { policy, refused: metrics::counter("geo_routing_refused_total") })
    }

    async fn request(&self, req: &mut Request, country: &mut Option<Code>) -> Flow {
        let client = req.client();
        let location = Location::new(client.country().as_deref(), client.continent().as_deref());
        *country = location.country;

        let upstream = match decide::decide(&self.policy, &location) {
            Decision::Admit(upstream) => upstream,
            Decision::Refuse(reason) => {
                self.refused.inc(1);
                debug!("refused: {reason:?}, {location:?}");
                return Err(refuse(&self.policy));
            }
        };

        if let Some(header) = &self.policy.header {
            let copies = req.headers().map(|(name, _)| name).filter(|name| place::passes_for(name, header));
            copies.for_each(|name| req.remove_header(&name));
            if let Some(country) = location.country {
                req.set_header(header, country.as_str());
            }
        }
        if let Some(upstream) = upstream {
            req.set_upstream(upstream);
        }
        Ok(Next)
    }

    async fn response(&self, res: &mut Response, country: &mut Option<Code>) -> Flow {
        if let (Some(header), Some(country)) = (&self.policy.response_header, country) {
            res.set_header(header, country.as_str());
        }
        Ok(Next)
    }
}

fn refuse(policy: &Policy) -> Reply {
    let body = serde_json::to_vec(&Problem::new(policy)).unwrap_or_default();
    Reply::new(policy.status)
        .header("content-type", "application/problem+json")
        .header("cache-control", "no-store")
        .body(body)
}
