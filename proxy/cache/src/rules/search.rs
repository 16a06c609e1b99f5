//! Which parts of a query a response does not depend on: `No-Vary-Search` (draft-ietf-httpbis-no-vary-search).

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

use super::structured::{self, Value};
use crate::key::decoded;

/// The field.
pub const NO_VARY_SEARCH: HeaderName = HeaderName::from_static("no-vary-search");

/// A field that names more parameters than this is passed over.
const NAMES_MAX: usize = 64;
/// As is one that is longer, in bytes.
const LENGTH_MAX: usize = 4096;

/// What of a query counts, where not all of it does as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SearchVariance {
    /// Whether the names count, or all others do. Decoded.
    only: bool,
    names: Vec<Vec<u8>>,
    /// Whether the order of parameters of different names counts.
    ordered: bool,
    /// See [`to_field`](Self::to_field).
    field: Box<str>,
}

/// The parameters that count, decoded.
pub(crate) type Parameters<'q> = SmallVec<[(Cow<'q, [u8]>, Cow<'q, [u8]>); 8]>;

impl SearchVariance {
    /// What a response says. `None` where all of the query counts: there is no such field, it is not what it should be (then it is passed
    /// over as a whole), or says just that.
    #[must_use]
    pub fn of(headers: &HeaderMap<HeaderValue>) -> Option<Self> {
        // Nearly every response lacks the field.
        if !headers.contains_key(NO_VARY_SEARCH) {
            return None;
        }
        let lines: Option<Vec<&str>> = headers.get_all(NO_VARY_SEARCH).iter().map(|line| line.to_str().ok()).collect();
        Self::parse(&lines?.join(","))
    }

    /// The same of the field's text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > LENGTH_MAX {
            return None;
        }
        let members = structured::dictionary(text)?;
        // A later member of the same key replaces the earlier one (RFC 9651, 4.2.2).
        let member = |wanted: &str| members.iter().rev().find(|(key, _)| *key == wanted).map(|(_, value)| value);
        let ordered = match member("key-order") {
            None => true,
            Some(Value::Boolean(any)) => !any,
            Some(_) => return None,
        };
        let all = matches!(member("params"), Some(Value::Boolean(true)));
        let without = match member("params") {
            None | Some(Value::Boolean(_)) => &[][..],
            Some(Value::Strings(names)) => names,
            Some(_) => return None,
        };
        let only = match member("except") {
            None => &[][..],
            Some(Value::Strings(names)) if all => names,
            Some(_) => return None,
        };
        let names = if all { only } else { without };
        if names.len() > NAMES_MAX || names.is_empty() && !all && ordered {
            return None;
        }
        let mut names: Vec<Vec<u8>> = names.iter().map(|name| decoded(name.as_bytes()).into_owned()).collect();
        names.sort_unstable();
        names.dedup();
        let field = field(all, &names, ordered).into();
        Some(Self { only: all, names, ordered, field })
    }

    /// A field that says the same; those that say the same say it in the same way.
    #[must_use]
    pub fn to_field(&self) -> &str {
        &self.field
    }

    /// What counts of these parameters, as they came: URLs for which it is the same are one.
    pub(crate) fn significant<'q>(&self, parameters: impl Iterator<Item = (&'q [u8], &'q [u8])>) -> Parameters<'q> {
        let counts = |name: &[u8]| self.only == self.names.binary_search_by(|known| known.as_slice().cmp(name)).is_ok();
        let mut kept: Parameters<'_> =
            parameters.map(|(name, value)| (decoded(name), decoded(value))).filter(|(name, _)| counts(name)).collect();
        if !self.ordered {
            kept.sort_by(|(one, _), (other, _)| one.cmp(other));
        }
        kept
    }
}

fn field(only: bool, names: &[Vec<u8>], ordered: bool) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("\"{}\"", escaped(name))).collect();
    let names = names.join(" ");
    let order = if ordered { "" } else { "key-order, " };
    if only { format!("{order}params, except=({names})") } else { format!("{order}params=({names})") }
}

/// A name in which nothing can be taken for what stands around it.
fn escaped(name: &[u8]) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    name.iter().map(|byte| if plain(*byte) { char::from(*byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_field_says() {
        for (text, said) in [
            ("params=(\"b\" \"a\" \"a\")", Some("params=(\"a\" \"b\")")),
            ("params=(\"a b\" \"c+d\" \"%65\")", Some("params=(\"a%20b\" \"c%20d\" \"e\")")),
            ("params=()", None),
            ("params=?0", None),
            ("params", Some("params, except=()")),
            ("params, except=(\"id\")", Some("params, except=(\"id\")")),
            ("params=?0, params", Some("params, except=()")),
            ("key-order", Some("key-order, params=()")),
            ("key-order=?0", None),
            ("key-order, params=(\"a\");x=1, unknown=3", Some("key-order, params=(\"a\")")),
            // As a whole or not at all.
            ("params=(a)", None),
            ("params=(\"a\" 1), key-order", None),
            ("params=\"a\"", None),
            ("params=1, key-order", None),
            ("key-order=1, params", None),
            ("except=(\"a\")", None),
            ("params=(\"a\"), except=(\"a\")", None),
            ("params=?0, except=(\"a\"), key-order", None),
            ("params, except=?1", None),
            ("params, except=\"a\"", None),
            ("params,", None),
            ("Params", None),
            ("", None),
        ] {
            let parsed = SearchVariance::parse(text);
            assert_eq!(parsed.as_ref().map(SearchVariance::to_field), said, "{text}");
            if let Some(parsed) = parsed {
                assert_eq!(SearchVariance::parse(parsed.to_field()), Some(parsed.clone()), "{text}");
            }
        }
        let many = |count: usize| format!("params=({})", (0..count).map(|at| format!("\"{at}\" ")).collect::<String>());
        assert!(SearchVariance::parse(&many(NAMES_MAX)).is_some());
        assert_eq!(SearchVariance::parse(&many(NAMES_MAX + 1)), None);
    }

    proptest! {
        /// Whatever an origin sends, it is read or passed over, and what was read reads the same again.
        #[test]
        fn any_field_is_read_or_passed_over(text in "[a-z\"=(), ?01%;*+-]{0,40}") {
            if let Some(parsed) = SearchVariance::parse(&text) {
                prop_assert_eq!(SearchVariance::parse(parsed.to_field()), Some(parsed.clone()));
            }
        }
    }
}
