//! Labels in the names of metrics, since the ABI has no other place for them: `requests;result=allow;tenant=acme`, as Graphite writes
//! tagged series. On hosts that know nothing of it this is a name like any other, and Envoy's `stats_tags` take it apart.

use std::borrow::Cow;
use std::fmt::{self, Display, Formatter, Write};

/// Labels of one metric.
const MAX_LABELS: usize = 8;

/// A name with labels, taken apart.
///
/// A label's name is letters, digits and `_`, no digit first; `__…`, `le`, `quantile` and `metric` have a meaning of their own and are
/// not taken. A value is any text that is not empty, with `;`, `%` and control characters as `%XX`. At most 8 labels, no two of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Series<'a> {
    /// What stands before the labels.
    pub name: &'a str,
    /// By name, in order of the names.
    pub labels: Vec<(&'a str, Cow<'a, str>)>,
}

impl<'a> Series<'a> {
    /// `None` for a name without labels, and for one that looks as if it had some and does not keep to the rules: then it is a name.
    #[must_use]
    pub fn parse(text: &'a str) -> Option<Self> {
        let (name, rest) = text.split_once(';')?;
        let mut labels = Vec::with_capacity(2);
        for part in rest.split(';') {
            let (label, value) = part.split_once('=')?;
            if !is_label(label) || value.is_empty() || labels.len() == MAX_LABELS {
                return None;
            }
            labels.push((label, decoded(value)));
        }
        labels.sort_unstable_by_key(|(label, _)| *label);
        let distinct = labels.windows(2).all(|pair| pair[0].0 != pair[1].0);
        (distinct && !name.is_empty()).then_some(Self { name, labels })
    }

    /// The series that stands for those beyond the bound of a metric: every value is `other`.
    pub(super) fn other(mut self) -> Self {
        for (_, value) in &mut self.labels {
            *value = Cow::Borrowed("other");
        }
        self
    }
}

/// The one way to write it: labels in order, nothing escaped without need.
impl Display for Series<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        for (label, value) in &self.labels {
            write!(f, ";{label}=")?;
            for letter in value.chars() {
                match letter {
                    ';' | '%' | '\0'..='\x1f' | '\x7f' => write!(f, "%{:02X}", u32::from(letter))?,
                    letter => f.write_char(letter)?,
                }
            }
        }
        Ok(())
    }
}

fn is_label(name: &str) -> bool {
    let reserved = name.starts_with("__") || ["le", "quantile", "metric"].contains(&name);
    let starts = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    starts && !reserved && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Reads `%XX`; a `%` that begins no such thing is itself. What is not UTF-8 then is replaced.
fn decoded(value: &str) -> Cow<'_, str> {
    if !value.contains('%') {
        return Cow::Borrowed(value);
    }
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digit = |at: usize| after.get(at).and_then(|&digit| char::from(digit).to_digit(16)?.try_into().ok());
        match (digit(0), digit(1)) {
            (Some(high), Some(low)) if first == b'%' => {
                let (high, low): (u8, u8) = (high, low);
                bytes.push(high << 4 | low);
                rest = &after[2..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    Cow::Owned(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn labels_are_read_and_written_in_one_way() {
        let table = [
            ("hits;result=allow", "hits;result=allow"),
            ("hits;b=2;a=1", "hits;a=1;b=2"),
            ("hits;a=%31;b=x=y", "hits;a=1;b=x=y"),
            ("hits;a=50%", "hits;a=50%25"),
            ("hits;a=a%3Bb%0a%zz", "hits;a=a%3Bb%0A%25zz"),
            ("hit.rate;a=\u{e4}", "hit.rate;a=\u{e4}"),
        ];
        for (text, want) in table {
            assert_eq!(Series::parse(text).unwrap().to_string(), want);
        }
        let series = Series::parse("hits;a=%ff;b=1").unwrap();
        assert_eq!(series.labels, [("a", "\u{fffd}".into()), ("b", "1".into())]);
        assert_eq!(series.other().to_string(), "hits;a=other;b=other");
    }

    #[test]
    fn what_does_not_keep_to_the_rules_is_a_name() {
        let nine: String = (0..9).map(|label| format!(";l{label}=1")).collect();
        for text in [
            "hits",
            "",
            ";a=1",
            "hits;",
            "hits;a",
            "hits;a=",
            "hits;=1",
            "hits;a=1;",
            "hits;a=1;a=2",
            "hits;1a=1",
            "hits;a-b=1",
            "hits;le=1",
            "hits;metric=1",
            "hits;__name__=1",
            &format!("hits{nine}"),
        ] {
            assert_eq!(Series::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_and_what_is_read_is_written_to_be_read_again(text in "[a-c;=%0-9_ \n\u{e4}]{0,40}") {
            if let Some(series) = Series::parse(&text) {
                let written = series.to_string();
                prop_assert_eq!(Series::parse(&written), Some(series));
            }
        }

        #[test]
        fn any_value_survives(value in ".{1,40}") {
            let series = Series { name: "hits", labels: vec![("a", Cow::Owned(value))] };
            let written = series.to_string();
            prop_assert_eq!(Series::parse(&written), Some(series));
        }
    }
}
