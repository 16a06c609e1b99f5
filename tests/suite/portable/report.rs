//! What a run has found: faults, and the published table.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use super::case::{Case, Filter};
use super::{Results, Seen, hosts};

const BEGIN: &str = "<!-- portability: written by make conformance-envoy -->\n";
const END: &str = "<!-- end of portability -->";

/// A filter, and what became of its cases.
pub(crate) struct Row {
    name: String,
    bundled: bool,
    requests: usize,
    same: Vec<String>,
    /// Cases that differ, with the reason.
    different: Vec<(String, String)>,
    pub(crate) faults: Vec<String>,
}

pub(crate) fn rows(filters: &[Filter], here: &Results, there: &Results) -> Vec<Row> {
    let row = |filter: &Filter| {
        let mut row = Row {
            name: filter.name.clone(),
            bundled: filter.bundled,
            requests: filter.cases.iter().map(|case| case.ask.len()).sum(),
            same: Vec::new(),
            different: Vec::new(),
            faults: Vec::new(),
        };
        for (number, case) in filter.cases.iter().enumerate() {
            let id = hosts::id(filter, number);
            judge(&mut row, case, &here[&id], &there[&id]);
        }
        row
    };
    filters.iter().map(row).collect()
}

fn judge(row: &mut Row, case: &Case, here: &[Seen], there: &[Seen]) {
    let title = format!("{}: {}", row.name, case.name);
    for (ask, seen) in case.ask.iter().zip(here) {
        let (method, path, expected) = ask.parts();
        if expected.is_some() && expected != seen.status {
            row.faults.push(format!(
                "{title}: {method} {path} gives {:?} here, not {expected:?}\n{}",
                seen.status,
                all(seen)
            ));
        }
    }
    let differing = here.iter().zip(there).zip(&case.ask).find(|((here, there), _)| here != there);
    match (differing, &case.differs) {
        (None, None) => row.same.push(case.name.clone()),
        (Some(_), Some(reason)) => row.different.push((case.name.clone(), reason.clone())),
        (None, Some(_)) => row.faults.push(format!("{title}: is the same on Envoy, and `differs` says that it is not")),
        (Some(((here, there), ask)), None) => {
            let (method, path, _) = ask.parts();
            row.faults.push(format!("{title}: {method} {path}\n{}", difference(here, there)));
        }
    }
}

fn all(seen: &Seen) -> String {
    seen.lines.iter().map(|line| format!("    {line}\n")).collect()
}

fn difference(here: &Seen, there: &Seen) -> String {
    let mut text = String::new();
    let missing = |lines: &[String], line: &String| !lines.contains(line);
    for line in here.lines.iter().filter(|line| missing(&there.lines, line)) {
        let _ = writeln!(text, "    here      {line}");
    }
    for line in there.lines.iter().filter(|line| missing(&here.lines, line)) {
        let _ = writeln!(text, "    on Envoy  {line}");
    }
    if text.is_empty() { format!("    here\n{}    on Envoy\n{}", all(here), all(there)) } else { text }
}

/// The table, as Markdown.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text =
        String::from("| filter | requests | the same on both | different on Envoy, and why |\n|---|---|---|---|\n");
    for bundled in [true, false] {
        for row in rows.iter().filter(|row| row.bundled == bundled) {
            let name = if bundled { format!("`{}`", row.name) } else { format!("example `{}`", row.name) };
            let different: Vec<String> =
                row.different.iter().map(|(name, reason)| format!("{name}: {reason}")).collect();
            let _ =
                writeln!(text, "| {name} | {} | {} | {} |", row.requests, row.same.join("; "), different.join("; "));
        }
    }
    text
}

/// Writes the table into `docs/portability.md`.
pub(crate) fn publish(rows: &[Row]) -> io::Result<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/portability.md");
    let text = std::fs::read_to_string(&file)?;
    let (before, rest) =
        text.split_once(BEGIN).ok_or_else(|| io::Error::other("the begin of the table is not marked"))?;
    let (_, after) = rest.split_once(END).ok_or_else(|| io::Error::other("the end of the table is not marked"))?;
    std::fs::write(file, format!("{before}{BEGIN}{}{END}{after}", table(rows)))
}
