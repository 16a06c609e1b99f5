//! Who is let in, and which upstream serves whom.

use serde::Serialize;

use crate::config::{Policy, Unknown};
use crate::place::Location;

/// The decision on a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision<'a> {
    /// It goes on, to this upstream or (`None`) to the one its route has.
    Admit(Option<&'a str>),
    /// It is refused.
    Refuse(Reason),
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// `deny` names the place.
    Denied,
    /// `allow` does not name the place.
    NotAllowed,
    /// The place is unknown and the unknown are refused.
    Unknown,
}

/// Decides on a request from this location: `deny`, then `allow`, then `unknown`; then the first matching route.
pub fn decide<'a>(policy: &'a Policy, location: &Location) -> Decision<'a> {
    let listed = |places: &[_]| places.iter().any(|place| location.is_in(*place));
    if listed(&policy.deny) {
        return Decision::Refuse(Reason::Denied);
    }
    if !listed(&policy.allow) {
        // A known continent is not enough here: the lists may name the country that we do not know.
        if location.country.is_none() && policy.unknown == Unknown::Deny {
            return Decision::Refuse(Reason::Unknown);
        }
        if location.country.is_some() && !policy.allow.is_empty() {
            return Decision::Refuse(Reason::NotAllowed);
        }
    }
    let route = policy.routes.iter().find(|(places, _)| listed(places));
    Decision::Admit(route.map(|(_, upstream)| upstream.as_str()))
}

/// The body of a refusal (RFC 9457). It does not tell the client's country: the client knows it, and a log of bodies should not.
#[derive(Debug, Serialize)]
pub struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: &'static str,
}

impl Problem {
    /// The problem with the policy's status (403 or 451).
    pub fn new(policy: &Policy) -> Self {
        let title = if policy.status == 451 { "Unavailable For Legal Reasons" } else { "Forbidden" };
        Self { kind: "about:blank", title, status: policy.status, detail: "This is not available where you are." }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::Config;

    fn policy(value: serde_json::Value) -> Policy {
        serde_json::from_value::<Config>(value).unwrap().check().unwrap()
    }

    #[test]
    fn lists_decide_in_order() {
        use Decision::{Admit, Refuse};
        use Reason::{Denied, NotAllowed, Unknown};
        let (de, us, nowhere, europe) =
            ((Some("DE"), Some("EU")), (Some("US"), Some("NA")), (None, None), (None, Some("EU")));
        for (config, (country, continent), expected) in [
            (json!({}), de, Admit(None)),
            (json!({}), nowhere, Admit(None)),
            (json!({ "unknown": "deny" }), nowhere, Refuse(Unknown)),
            (json!({ "unknown": "deny" }), de, Admit(None)),
            (json!({ "unknown": "deny" }), europe, Refuse(Unknown)),
            (json!({ "deny": ["DE"] }), de, Refuse(Denied)),
            (json!({ "deny": ["DE"] }), us, Admit(None)),
            (json!({ "deny": ["DE"] }), nowhere, Admit(None)),
            (json!({ "deny": ["DE"], "unknown": "deny" }), europe, Refuse(Unknown)),
            (json!({ "deny": ["continent:EU"] }), de, Refuse(Denied)),
            (json!({ "deny": ["continent:EU"] }), europe, Refuse(Denied)),
            (json!({ "allow": ["DE"] }), de, Admit(None)),
            (json!({ "allow": ["DE"] }), us, Refuse(NotAllowed)),
            (json!({ "allow": ["DE"] }), nowhere, Refuse(Unknown)),
            (json!({ "allow": ["DE"] }), europe, Refuse(Unknown)),
            (json!({ "allow": ["DE"], "unknown": "allow" }), nowhere, Admit(None)),
            (json!({ "allow": ["continent:EU"] }), de, Admit(None)),
            (json!({ "allow": ["continent:EU"] }), europe, Admit(None)),
            (json!({ "allow": ["continent:EU"], "deny": ["DE"] }), de, Refuse(Denied)),
            (json!({ "allow": ["continent:EU", "US"], "deny": ["DE"] }), us, Admit(None)),
        ] {
            assert_eq!(
                decide(&policy(config.clone()), &Location::new(country, continent)),
                expected,
                "{config} {country:?} {continent:?}"
            );
        }
    }

    #[test]
    fn the_first_matching_route_wins() {
        let policy = policy(json!({ "routes": [
            { "countries": ["CH"], "upstream": "swiss" },
            { "continents": ["EU"], "upstream": "europe" },
            { "countries": ["CH", "US"], "continents": ["AS"], "upstream": "world" },
        ]}));
        for (country, continent, upstream) in [
            (Some("CH"), Some("EU"), Some("swiss")),
            (Some("DE"), Some("EU"), Some("europe")),
            (None, Some("EU"), Some("europe")),
            (Some("US"), Some("NA"), Some("world")),
            (Some("JP"), Some("AS"), Some("world")),
            (Some("BR"), Some("SA"), None),
            (None, None, None),
        ] {
            assert_eq!(decide(&policy, &Location::new(country, continent)), Decision::Admit(upstream), "{country:?}");
        }
    }

    #[test]
    fn the_problem_carries_the_status() {
        let body = serde_json::to_value(Problem::new(&policy(json!({ "status": 451 })))).unwrap();
        assert_eq!(
            (body["status"].as_u64(), body["title"].as_str()),
            (Some(451), Some("Unavailable For Legal Reasons"))
        );
        assert_eq!(body["type"], "about:blank");
    }
}
