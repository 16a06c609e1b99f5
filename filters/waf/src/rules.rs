//! The rule set: what attacks look like once the decoders have been at them.
//!
//! A rule is a regular expression over one view of a value, guarded by literals: the expression runs only when one of its
//! literals is in the value, so a harmless value costs one scan for all rules together. A test proves from each parsed
//! expression that it cannot match without one of its literals.
//!
//! Expressions see lower case and single spaces (see [`crate::decode::fold`]). Each rule carries values that it must and
//! must not match; the tests run them through the whole engine.
//!
//! Ids: 1000 protocol and scanners, 2000 paths and files, 3000 commands and code, 4000 SQL and other query languages,
//! 5000 cross-site scripting.

pub mod protocol;

pub mod path;

pub mod command;

pub mod query;

pub mod script;

use crate::inputs::Places;
use crate::score::Severity;
use crate::views::View;

/// One rule of the set.
#[derive(Debug)]
pub struct Rule {
    /// Stable number, for logs, `disabled_rules` and exclusions.
    pub id: u32,
    /// The kind of attack.
    pub class: Class,
    /// How much a match scores.
    pub severity: Severity,
    /// What the log says.
    pub message: &'static str,
    /// The places whose values it looks at.
    pub on: Places,
    /// The view it looks at beside the base view.
    pub view: View,
    /// Strings of which every match contains at least one.
    pub literals: &'static [&'static str],
    /// The expression (bytes, no Unicode classes, `.` matches line ends).
    pub pattern: &'static str,
    /// Values that must match.
    #[cfg(test)]
    pub hits: &'static [&'static str],
    /// Values that must not match.
    #[cfg(test)]
    pub misses: &'static [&'static str],
}

/// Kinds of attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Abuse of HTTP and of the encodings around it.
    Protocol,
    /// A known attack tool.
    Scanner,
    /// Reading files that the site does not serve.
    Traversal,
    /// Making the server fetch from elsewhere.
    Forgery,
    /// Shell commands.
    Command,
    /// Code and expression languages: PHP, Java, templates and more.
    Code,
    /// SQL injection.
    Sql,
    /// LDAP, NoSQL and XML injection.
    Query,
    /// Cross-site scripting.
    Xss,
}

/// All rules, in order of id.
pub fn all() -> impl Iterator<Item = &'static Rule> {
    [protocol::RULES, path::RULES, command::RULES, query::RULES, script::RULES].into_iter().flatten()
}

/// Writes a rule as one line of the log and its details below; the examples exist in tests only.
macro_rules! rules {
    ($($id:literal $class:ident $severity:ident $message:literal on $on:expr, view $view:ident,
       any [$($literal:literal),+ $(,)?], pattern $pattern:expr,
       hits [$($hit:literal),+ $(,)?], misses [$($miss:literal),+ $(,)?];)*) => {
        &[$($crate::rules::Rule {
            id: $id,
            class: $crate::rules::Class::$class,
            severity: $crate::score::Severity::$severity,
            message: $message,
            on: $on,
            view: $crate::views::View::$view,
            literals: &[$($literal),+],
            pattern: $pattern,
            #[cfg(test)]
            hits: &[$($hit),+],
            #[cfg(test)]
            misses: &[$($miss),+],
        }),*]
    };
}
use rules;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Mode};
    use crate::engine::Engine;
    use crate::inputs::{Input, Place};
    use regex_syntax::hir::{Class as HirClass, Hir, HirKind};

    fn matched(engine: &Engine, rule: &Rule, example: &str) -> bool {
        let place = Place::ALL.into_iter().find(|&place| rule.on.has(place)).unwrap();
        let input = Input { place, name: "p".into(), value: example.as_bytes().to_vec() };
        engine.inspect("/", &[input]).matches.iter().any(|found| found.rule.id == rule.id)
    }

    #[test]
    fn every_rule_matches_its_hits_and_not_its_misses() {
        let config = Config { mode: Mode::Detect, ..Config::default() };
        let engine = Engine::new(&config).unwrap();
        let mut wrong = Vec::new();
        for rule in all() {
            assert!(rule.hits.len() >= 2 && rule.misses.len() >= 2, "rule {} needs two examples of each kind", rule.id);
            wrong.extend(
                rule.hits.iter().filter(|hit| !matched(&engine, rule, hit)).map(|hit| (rule.id, "misses", hit)),
            );
            wrong.extend(
                rule.misses.iter().filter(|miss| matched(&engine, rule, miss)).map(|miss| (rule.id, "hits", miss)),
            );
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn ids_are_unique_and_ordered() {
        let ids: Vec<u32> = all().map(|rule| rule.id).collect();
        assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
    }

    #[test]
    fn no_rule_matches_without_one_of_its_literals() {
        let mut unproven = Vec::new();
        for rule in all() {
            let hir = regex_syntax::ParserBuilder::new()
                .unicode(false)
                .utf8(false)
                .dot_matches_new_line(true)
                .build()
                .parse(rule.pattern)
                .unwrap_or_else(|error| panic!("rule {}: {error}", rule.id));
            if let Some(part) = free_part(&hir, rule.literals) {
                unproven.push(format!("rule {}: {part}", rule.id));
            }
        }
        assert!(unproven.is_empty(), "may match without a literal: {unproven:#?}");
    }

    /// The part of `hir` (its alternatives one by one) that can match without any of `literals`.
    fn free_part(hir: &Hir, literals: &[&str]) -> Option<String> {
        if needs(hir, literals) {
            return None;
        }
        match hir.kind() {
            HirKind::Alternation(parts) => parts.iter().find_map(|part| free_part(part, literals)),
            HirKind::Concat(parts) => Some(
                parts
                    .iter()
                    .map(|part| part.to_string().chars().take(60).collect::<String>())
                    .collect::<Vec<_>>()
                    .join(" ~ "),
            ),
            _ => Some(hir.to_string().chars().take(160).collect()),
        }
    }

    /// Whether every match of `hir` contains one of `literals`.
    fn needs(hir: &Hir, literals: &[&str]) -> bool {
        let covered =
            |text: &[u8]| literals.iter().any(|literal| crate::decode::find(text, literal.as_bytes()).is_some());
        match hir.kind() {
            HirKind::Literal(text) => covered(&text.0),
            HirKind::Class(HirClass::Bytes(class)) => {
                class.iter().all(|range| (range.start()..=range.end()).all(|byte| covered(&[byte])))
            }
            HirKind::Class(HirClass::Unicode(class)) => {
                class.iter().all(|range| (range.start()..=range.end()).all(|one| covered(one.to_string().as_bytes())))
            }
            HirKind::Look(_) | HirKind::Empty => false,
            HirKind::Repetition(repetition) => repetition.min > 0 && needs(&repetition.sub, literals),
            HirKind::Capture(capture) => needs(&capture.sub, literals),
            HirKind::Concat(parts) => parts.iter().any(|part| needs(part, literals)) || spelled(parts, &covered),
            HirKind::Alternation(parts) => parts.iter().all(|part| needs(part, literals)),
        }
    }

    /// Whether some neighbours in a row can only spell texts that are covered: `a(?:b|c)` for `ab` and `ac`.
    fn spelled(parts: &[Hir], covered: &dyn Fn(&[u8]) -> bool) -> bool {
        (0..parts.len()).any(|start| {
            let mut texts = vec![Vec::new()];
            for part in &parts[start..] {
                let Some(joined) = language(part).and_then(|tails| join(&texts, &tails)) else { return false };
                texts = joined;
                if texts.iter().all(|text| covered(text)) {
                    return true;
                }
            }
            false
        })
    }

    /// All texts that `hir` matches, while they are few.
    fn language(hir: &Hir) -> Option<Vec<Vec<u8>>> {
        match hir.kind() {
            HirKind::Empty | HirKind::Look(_) => Some(vec![Vec::new()]),
            HirKind::Literal(text) => Some(vec![text.0.to_vec()]),
            HirKind::Class(HirClass::Bytes(class)) => {
                let bytes: Vec<Vec<u8>> =
                    class.iter().flat_map(|range| range.start()..=range.end()).map(|byte| vec![byte]).collect();
                (bytes.len() <= 16).then_some(bytes)
            }
            HirKind::Class(HirClass::Unicode(class)) => Some(
                class
                    .iter()
                    .flat_map(|range| range.start()..=range.end())
                    .map(|one| one.to_string().into_bytes())
                    .collect(),
            ),
            HirKind::Repetition(repetition) => {
                let max = repetition.max.filter(|&max| max <= 4)?;
                let once = language(&repetition.sub)?;
                let mut texts = vec![Vec::new()];
                let mut all = Vec::new();
                for count in 0..=max {
                    if count >= repetition.min {
                        all.extend(texts.iter().cloned());
                    }
                    texts = join(&texts, &once)?;
                }
                Some(all)
            }
            HirKind::Capture(capture) => language(&capture.sub),
            HirKind::Concat(parts) => {
                parts.iter().try_fold(vec![Vec::new()], |texts, part| join(&texts, &language(part)?))
            }
            HirKind::Alternation(parts) => {
                let mut all = Vec::new();
                for part in parts {
                    all.extend(language(part)?);
                }
                Some(all)
            }
        }
    }

    fn join(heads: &[Vec<u8>], tails: &[Vec<u8>]) -> Option<Vec<Vec<u8>>> {
        let joined = || heads.iter().flat_map(|head| tails.iter().map(move |tail| [head.as_slice(), tail].concat()));
        (heads.len() * tails.len() <= 2000).then(|| joined().collect())
    }
}
