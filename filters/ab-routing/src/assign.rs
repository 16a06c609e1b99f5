//! Which variant a request belongs to.

use sha2::{Digest, Sha256};

use crate::config::{Experiment, Variant};

/// The variant of a request.
#[derive(Clone, Copy, Debug)]
pub struct Assignment<'a> {
    /// The variant.
    pub variant: &'a Variant,
    /// How it was found.
    pub origin: Origin,
}

/// How a variant was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A tester asked for it; nothing is remembered.
    Override,
    /// The sticky cookie names it.
    Sticky,
    /// It was drawn now from the user key; the cookie is to be set.
    New,
}

impl Experiment {
    /// Finds the variant: the override header's, then the sticky cookie's, then the one that the user key draws. Names that are no
    /// variant (any more) are passed over. `user_key` is called only when it is needed.
    pub fn assign(
        &self,
        override_value: Option<&str>,
        sticky: Option<&str>,
        user_key: impl FnOnce() -> Vec<u8>,
    ) -> Assignment<'_> {
        if let Some(variant) = override_value.and_then(|name| self.variant(name)) {
            return Assignment { variant, origin: Origin::Override };
        }
        if let Some(variant) = sticky.and_then(|name| self.variant(name)) {
            return Assignment { variant, origin: Origin::Sticky };
        }
        Assignment { variant: self.draw(&user_key()), origin: Origin::New }
    }

    /// The variant of this user key: SHA-256 over the experiment's name, a zero byte and the key; its first 8 bytes, read as a
    /// fraction of 1, fall into one of the intervals that the weights cut, in the order of the variants' names.
    ///
    /// So the same key always draws the same variant, in every worker and on every node; another experiment draws independently; and
    /// a change of weights moves only the users between the old and the new cuts.
    pub fn draw(&self, user_key: &[u8]) -> &Variant {
        let mut hash = Sha256::new();
        hash.update(self.name.as_bytes());
        hash.update([0]);
        hash.update(user_key);
        let fraction = hash.finalize().iter().take(8).fold(0_u64, |value, byte| (value << 8) | u64::from(*byte));

        let total: u64 = self.variants.iter().map(|variant| u64::from(variant.weight)).sum();
        // fraction / 2^64 * total, exactly.
        let point = (u128::from(fraction) * u128::from(total)) >> 64;
        let mut cut = 0;
        let drawn = self.variants.iter().find(|variant| {
            cut += u128::from(variant.weight);
            point < cut
        });
        // The point is below the last cut, so one is always found.
        drawn.unwrap_or(&self.variants[0])
    }

    fn variant(&self, name: &str) -> Option<&Variant> {
        self.variants.iter().find(|variant| variant.name == name)
    }

    /// The value of `Set-Cookie` that keeps a user in this variant; `None` when no cookie is configured.
    pub fn set_cookie(&self, variant: &str, secure_request: bool) -> Option<String> {
        let cookie = self.cookie.as_ref()?;
        let secure = if cookie.secure.unwrap_or(secure_request) { "; Secure" } else { "" };
        Some(format!("{}={variant}{}{secure}", cookie.name, cookie.attributes))
    }
}

/// Whether a header that a client sent could be taken for `name` by an origin: many servers fold case and read `_` as `-`.
pub fn passes_for(sent: &str, name: &str) -> bool {
    let fold = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    sent.len() == name.len() && sent.bytes().zip(name.bytes()).all(|(sent, name)| fold(sent) == fold(name))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::config::Config;

    fn experiment(name: &str, weights: &[(&str, u32)]) -> Experiment {
        let variants: Vec<_> = weights.iter().map(|(name, weight)| json!({ "name": name, "weight": weight })).collect();
        let config: Config = serde_json::from_value(json!({ "experiment": name, "variants": variants })).unwrap();
        config.check().unwrap()
    }

    fn draws(experiment: &Experiment, keys: u32) -> Vec<&str> {
        (0..keys).map(|key| experiment.draw(format!("user-{key}").as_bytes()).name.as_str()).collect()
    }

    #[test]
    fn a_hundred_thousand_users_spread_by_weight() {
        for weights in [
            &[("a", 50), ("b", 50)][..],
            &[("a", 90), ("b", 10)],
            &[("a", 1), ("b", 1), ("c", 1)],
            &[("a", 98), ("b", 1), ("c", 1)],
            &[("a", 5), ("b", 0), ("c", 95)],
        ] {
            let experiment = experiment("spread", weights);
            let mut counts = BTreeMap::<&str, f64>::new();
            for name in draws(&experiment, 100_000) {
                *counts.entry(name).or_default() += 1.0;
            }
            let total: u32 = weights.iter().map(|(_, weight)| weight).sum();
            let mut chi_square = 0.0;
            for (name, weight) in weights {
                let expected = 100_000.0 * f64::from(*weight) / f64::from(total);
                let counted = counts.get(name).copied().unwrap_or_default();
                assert!(
                    (counted - expected).abs() <= 500.0,
                    "{weights:?} {name}: {counted}, half a point around {expected}"
                );
                if *weight > 0 {
                    chi_square += (counted - expected).powi(2) / expected;
                } else {
                    assert!(counted == 0.0, "{name} has no weight");
                }
            }
            // 13.8: the 99.9 % quantile for two degrees of freedom (and a looser bound for one).
            assert!(chi_square < 13.8, "{weights:?}: {chi_square}");
        }
    }

    #[test]
    fn a_change_of_weights_moves_only_the_difference() {
        let (before, after) = (experiment("e", &[("a", 50), ("b", 50)]), experiment("e", &[("a", 60), ("b", 40)]));
        let (before, after) = (draws(&before, 100_000), draws(&after, 100_000));
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        assert!((9_500..=10_500).contains(&moved), "{moved}");
        assert!(before.iter().zip(&after).all(|(before, after)| before == after || (*before, *after) == ("b", "a")));
    }

    #[test]
    fn the_order_in_the_file_does_not_matter() {
        let one = experiment("e", &[("a", 20), ("b", 30), ("c", 50)]);
        let other = experiment("e", &[("c", 50), ("a", 20), ("b", 30)]);
        assert_eq!(draws(&one, 1000), draws(&other, 1000));
    }

    #[test]
    fn experiments_draw_independently() {
        let (one, other) = (experiment("one", &[("a", 50), ("b", 50)]), experiment("other", &[("a", 50), ("b", 50)]));
        let same = draws(&one, 100_000).iter().zip(draws(&other, 100_000)).filter(|(one, other)| *one == other).count();
        assert!((49_500..=50_500).contains(&same), "{same}");
    }

    #[test]
    fn an_assignment_never_changes_between_versions() {
        // Fixed points: SHA-256("pin\0user-N"), computed with another tool.
        let experiment = experiment("pin", &[("a", 33), ("b", 33), ("c", 34)]);
        assert_eq!(draws(&experiment, 8), PINNED);
    }

    const PINNED: [&str; 8] = ["a", "c", "c", "c", "c", "b", "c", "c"];

    #[test]
    fn override_then_cookie_then_draw() {
        let experiment = experiment("e", &[("a", 1), ("b", 0), ("c", 0)]);
        for (override_value, sticky, name, origin) in [
            (None, None, "a", Origin::New),
            (None, Some("b"), "b", Origin::Sticky),
            (None, Some("gone"), "a", Origin::New),
            (None, Some(""), "a", Origin::New),
            (Some("c"), Some("b"), "c", Origin::Override),
            (Some("gone"), Some("b"), "b", Origin::Sticky),
            (Some("gone"), Some("gone"), "a", Origin::New),
            (Some("C"), None, "a", Origin::New),
        ] {
            let assignment = experiment.assign(override_value, sticky, || b"user".to_vec());
            assert_eq!(
                (assignment.variant.name.as_str(), assignment.origin),
                (name, origin),
                "{override_value:?} {sticky:?}"
            );
        }
    }

    #[test]
    fn the_cookie_is_secure_as_configured_or_as_the_request_came() {
        let with = |secure: serde_json::Value| {
            let config = json!({ "experiment": "e", "variants": [{ "name": "a", "weight": 1 }], "cookie": { "secure": secure } });
            serde_json::from_value::<Config>(config).unwrap().check().unwrap()
        };
        let plain = "ab-e=a; Max-Age=2592000; Path=/; SameSite=Lax; HttpOnly";
        for (secure, tls, expected) in [
            (json!(null), false, plain.to_owned()),
            (json!(null), true, format!("{plain}; Secure")),
            (json!(true), false, format!("{plain}; Secure")),
            (json!(false), true, plain.to_owned()),
        ] {
            assert_eq!(with(secure.clone()).set_cookie("a", tls), Some(expected), "{secure} {tls}");
        }
    }

    #[test]
    fn lookalike_headers_are_recognised() {
        for sent in ["x-ab-e", "X-AB-E", "x_ab_e", "X_Ab-E"] {
            assert!(passes_for(sent, "x-ab-e"), "{sent}");
        }
        for sent in ["x-ab-", "x-ab-ee", "xab-e", "x.ab.e"] {
            assert!(!passes_for(sent, "x-ab-e"), "{sent}");
        }
    }
}
