//! What matches add up to.

use std::fmt;

use crate::inputs::Place;
use crate::rules::Rule;

/// How bad a match is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Unusual; common enough in good requests.
    Notice,
    /// Suspicious in company.
    Warning,
    /// Rare in good requests.
    Error,
    /// An attack on its own, at the default threshold.
    Critical,
}

impl Severity {
    /// Points towards the threshold.
    pub fn points(self) -> u32 {
        match self {
            Self::Notice => 2,
            Self::Warning => 3,
            Self::Error => 4,
            Self::Critical => 5,
        }
    }
}

/// One rule that matched, and where it did first.
#[derive(Debug, Clone)]
pub struct Match {
    /// The rule.
    pub rule: &'static Rule,
    /// The kind of value.
    pub place: Place,
    /// The value's name; empty for places that have none. Client input.
    pub name: String,
}

/// The log line of a match. Names come from the client: quotes, brackets and controls are replaced, long ones are cut.
impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rule { id, message, severity, class, .. } = self.rule;
        write!(
            f,
            "[id \"{id}\"] [msg \"{message}\"] [severity \"{severity:?}\"] [tag \"{class:?}\"] [matched in {}",
            self.place
        )?;
        if !self.name.is_empty() {
            f.write_str(":")?;
        }
        for character in self.name.chars().take(64) {
            let safe = character.is_ascii_graphic() && !matches!(character, '"' | '\\' | '[' | ']');
            write!(f, "{}", if safe { character } else { '_' })?;
        }
        f.write_str("]")
    }
}

/// The outcome of an inspection.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// Every rule that matched, once, in the order of their first match.
    pub matches: Vec<Match>,
}

impl Verdict {
    /// The sum of the points of all matches.
    pub fn score(&self) -> u32 {
        self.matches.iter().map(|found| found.rule.severity.points()).sum()
    }
}
