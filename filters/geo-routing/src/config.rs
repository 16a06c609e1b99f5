//! What an operator writes, and the checked form of it.

use selvedge_sdk::Upstream;

use crate::place::{Continent, Country, Place};

/// Configuration of the filter.
#[derive(Clone, Debug, selvedge_sdk::Config)]
pub struct Config {
    /// Places from which requests are let in: countries (`DE`) and continents (`continent:EU`). When empty, every place that `deny`
    /// does not name. Default: empty.
    #[config(default)]
    pub allow: Vec<Place>,
    /// Places from which requests are refused; wins over `allow`. Default: empty.
    #[config(default)]
    pub deny: Vec<Place>,
    /// What happens when the client's country is unknown (private addresses, no database) and no continent in the lists decides.
    /// Default: `deny` when `allow` is given (nobody unknown is among those), otherwise `allow`.
    pub unknown: Option<Unknown>,
    /// Status of a refusal: 403, or 451 (unavailable for legal reasons, RFC 7725). Default: 403.
    #[config(default = 403, schema = r#"{"type": "integer", "enum": [403, 451]}"#)]
    pub status: u16,
    /// Upstreams by place; the first route that matches wins, and when none does, the route of the request keeps its own upstream.
    /// Default: empty.
    #[config(default)]
    pub routes: Vec<Route>,
    /// Request header that tells the origin the country code; a copy sent by the client is always removed. `null`: none.
    /// Default: `x-geo-country`.
    #[config(default = "x-geo-country", pattern = "^[-!#$%&'*+.^_`|~0-9A-Za-z]+$")]
    pub header: Option<String>,
    /// Response header that tells the client its country code. Default: none.
    #[config(pattern = "^[-!#$%&'*+.^_`|~0-9A-Za-z]+$")]
    pub response_header: Option<String>,
}

/// An upstream for some places.
#[derive(Clone, Debug, selvedge_sdk::Config)]
pub struct Route {
    /// Countries, by ISO 3166-1 alpha-2 code. Default: empty.
    #[config(default)]
    pub countries: Vec<Country>,
    /// Continents: AF, AN, AS, EU, NA, OC, SA. Default: empty.
    #[config(default)]
    pub continents: Vec<Continent>,
    /// Name of the upstream that serves them. Required.
    pub upstream: Upstream,
}

/// What happens to a request from an unknown place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, selvedge_sdk::Config)]
pub enum Unknown {
    /// It goes on.
    Allow,
    /// It is refused.
    Deny,
}

/// The configuration, checked.
#[derive(Clone, Debug)]
pub struct Policy {
    /// As [`Config::allow`].
    pub allow: Vec<Place>,
    /// As [`Config::deny`].
    pub deny: Vec<Place>,
    /// As [`Config::unknown`], the default resolved.
    pub unknown: Unknown,
    /// 403 or 451.
    pub status: u16,
    /// As [`Config::routes`], countries and continents in one list.
    pub routes: Vec<(Vec<Place>, String)>,
    /// As [`Config::header`], in lower case.
    pub header: Option<String>,
    /// As [`Config::response_header`], in lower case.
    pub response_header: Option<String>,
}

/// Why a configuration was refused; the text names the field.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A status that does not say "not for you".
    #[error("status: {0} must be 403 or 451")]
    Status(u16),
    /// Not a header name, or one that carries the message itself.
    #[error("{field}: {name:?} is not a header name that a filter may set")]
    Header {
        /// The field at fault.
        field: &'static str,
        /// Its value.
        name: String,
    },
    /// A route that matches nothing.
    #[error("routes[{0}]: at least one of countries and continents is needed")]
    RouteWithoutPlace(usize),
}

impl Config {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field that is outside its bounds.
    pub fn check(self) -> Result<Policy, ConfigError> {
        if !matches!(self.status, 403 | 451) {
            return Err(ConfigError::Status(self.status));
        }
        let mut routes = Vec::new();
        for (index, route) in self.routes.into_iter().enumerate() {
            let countries = route.countries.into_iter().map(|Country(code)| Place::Country(code));
            let continents = route.continents.into_iter().map(|Continent(code)| Place::Continent(code));
            let places: Vec<_> = countries.chain(continents).collect();
            if places.is_empty() {
                return Err(ConfigError::RouteWithoutPlace(index));
            }
            routes.push((places, route.upstream.name().to_owned()));
        }

        let implied = if self.allow.is_empty() { Unknown::Allow } else { Unknown::Deny };
        Ok(Policy {
            allow: self.allow,
            deny: self.deny,
            unknown: self.unknown.unwrap_or(implied),
            status: self.status,
            routes,
            header: self.header.map(|name| header("header", name)).transpose()?,
            response_header: self.response_header.map(|name| header("response_header", name)).transpose()?,
        })
    }
}

/// Checks a header name: a token (RFC 9110, 5.6.2) that neither frames nor addresses the message.
fn header(field: &'static str, name: String) -> Result<String, ConfigError> {
    const FRAMING: [&str; 8] =
        ["host", "connection", "content-length", "transfer-encoding", "te", "trailer", "upgrade", "proxy-connection"];
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let lower = name.to_ascii_lowercase();
    if lower.is_empty() || !lower.bytes().all(token) || FRAMING.contains(&lower.as_str()) {
        return Err(ConfigError::Header { field, name });
    }
    Ok(lower)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: serde_json::Value) -> Result<Policy, String> {
        let config: Config = selvedge_sdk::config::parse(value.to_string().as_bytes())?;
        config.check().map_err(|error| error.to_string())
    }

    #[test]
    fn everything_has_a_default() {
        let policy = parse(json!({})).unwrap();
        assert!(policy.allow.is_empty() && policy.deny.is_empty() && policy.routes.is_empty());
        assert_eq!((policy.unknown, policy.status), (Unknown::Allow, 403));
        assert_eq!((policy.header.as_deref(), policy.response_header), (Some("x-geo-country"), None));
    }

    #[test]
    fn an_allow_list_implies_that_the_unknown_are_denied() {
        assert_eq!(parse(json!({ "allow": ["DE"] })).unwrap().unknown, Unknown::Deny);
        assert_eq!(parse(json!({ "allow": ["DE"], "unknown": "allow" })).unwrap().unknown, Unknown::Allow);
        assert_eq!(parse(json!({ "deny": ["DE"] })).unwrap().unknown, Unknown::Allow);
        assert_eq!(parse(json!({ "deny": ["DE"], "unknown": "deny" })).unwrap().unknown, Unknown::Deny);
    }

    #[test]
    fn the_request_header_can_be_switched_off() {
        assert_eq!(parse(json!({ "header": null })).unwrap().header, None);
        assert_eq!(parse(json!({ "header": "X-Country" })).unwrap().header.as_deref(), Some("x-country"));
    }

    #[test]
    fn a_fault_names_its_field() {
        for (value, part) in [
            (json!({ "status": 404 }), "status: 404"),
            (json!({ "allow": ["UK"] }), "is GB"),
            (json!({ "denied": [] }), "unknown field `denied`"),
            (json!({ "unknown": "maybe" }), "unknown variant `maybe`"),
            (json!({ "header": "a b" }), "header: \"a b\""),
            (json!({ "header": "Content-Length" }), "header: \"Content-Length\""),
            (json!({ "response_header": "" }), "response_header: \"\""),
            (json!({ "routes": [{ "upstream": "a" }] }), "routes[0]: at least one"),
            (
                json!({ "routes": [{ "countries": ["DE"], "upstream": " " }] }),
                "`routes[0].upstream`: names no upstream",
            ),
            (json!({ "routes": [{ "countries": ["DE"] }] }), "missing field `upstream`"),
            (json!({ "routes": [{ "continents": ["DE"], "upstream": "a" }] }), "not a continent"),
        ] {
            let error = parse(value.clone()).unwrap_err();
            assert!(error.contains(part), "{value}: {error}");
        }
    }
}
