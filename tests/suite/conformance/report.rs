//! What a run has found, for people: faults, and the published table of differences.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use super::case::Expectation;
use super::record;
use super::run::{self, Verdict};

const BEGIN: &str = "<!-- differences: written by make conformance-envoy -->\n";
const END: &str = "<!-- end of differences -->";

/// A case that does not hold.
pub(crate) fn fault(verdict: &Verdict, failures: &[(&Expectation, &str, &str)]) -> String {
    let case = &verdict.case;
    let mut text = format!("{} ({})\n", case.id, case.title);
    for (expectation, expected, seen) in failures {
        let file = case.file.file_name().unwrap_or_default().to_string_lossy();
        let _ = writeln!(
            text,
            "  {file}:{} {}\n    expected {expected}\n    seen     {seen}",
            expectation.line, expectation.text
        );
    }
    if let Some(fault) = &verdict.fault {
        let _ = writeln!(text, "  {fault}");
    }
    text
}

/// Writes what Envoy shows and the cases do not expect into their files, as `envoy => ...` below the expectation.
pub(crate) fn bless(verdicts: &[Verdict]) -> io::Result<()> {
    let mut changes: BTreeMap<&PathBuf, Vec<(&Expectation, &str)>> = BTreeMap::new();
    for verdict in verdicts {
        let failures = verdict.failures(run::on_envoy);
        let seen = failures.into_iter().map(|(expectation, _, seen)| (expectation, seen));
        changes.entry(&verdict.case.file).or_default().extend(seen);
    }
    for (file, mut changes) in changes {
        let text = std::fs::read_to_string(file)?;
        let mut lines: Vec<String> = text.lines().map(String::from).collect();
        changes.sort_by_key(|(expectation, _)| std::cmp::Reverse(expectation.line));
        for (expectation, seen) in changes {
            let (at, same) = (expectation.line, record::matches(&expectation.pattern, seen));
            if expectation.envoy.is_some() {
                lines.remove(at);
            }
            if !same {
                lines.insert(at, format!("    envoy => {seen}"));
            }
        }
        std::fs::write(file, lines.join("\n") + "\n")?;
    }
    Ok(())
}

/// Writes the tables of differences into `docs/conformance.md`.
pub(crate) fn write(verdicts: &[Verdict]) -> io::Result<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/conformance.md");
    let text = std::fs::read_to_string(&file)?;
    let (before, rest) = text.split_once(BEGIN).ok_or_else(|| io::Error::other("no place for the differences"))?;
    let (_, after) = rest.split_once(END).ok_or_else(|| io::Error::other("the place of the differences has no end"))?;
    std::fs::write(&file, format!("{before}{BEGIN}{}{}{END}{after}", from_envoy(verdicts), from_the_text(verdicts)))
}

fn from_the_text(verdicts: &[Verdict]) -> String {
    let mut table = String::from("\n## What differs from the text\n| case | here | the text says |\n|---|---|---|\n");
    for verdict in verdicts {
        if let Some(text) = &verdict.case.text {
            let _ = writeln!(table, "| {} | {} | {text} |", verdict.case.id, verdict.case.title);
        }
    }
    table.push_str("\n## What does not hold here yet\n| case | it claims | why it does not hold |\n|---|---|---|\n");
    for verdict in verdicts {
        if let Some(pending) = &verdict.case.pending {
            let _ = writeln!(table, "| {} | {} | {pending} |", verdict.case.id, verdict.case.title);
        }
    }
    table
}

fn from_envoy(verdicts: &[Verdict]) -> String {
    let mut table = String::new();
    let mut cases = 0;
    for verdict in verdicts {
        let differences = verdict.failures(run::here);
        if differences.is_empty() {
            continue;
        }
        cases += 1;
        let why = verdict.case.why.as_deref().unwrap_or("");
        for (index, (expectation, here, seen)) in differences.iter().enumerate() {
            let (id, why) = if index == 0 { (verdict.case.id.as_str(), why) } else { ("", "") };
            // What was seen may hold numbers that are others in every run; what is expected of Envoy does not.
            let envoy = expectation.envoy.as_deref().unwrap_or(seen);
            let _ =
                writeln!(table, "| {id} | {} | {} | {} | {why} |", code(&expectation.text), code(here), code(envoy));
        }
    }
    let head = format!("{cases} of {} cases differ.", verdicts.len());
    format!("{head}\n\n| case | what | here | Envoy | why |\n|---|---|---|---|---|\n{table}")
}

fn code(text: &str) -> String {
    format!("`{}`", text.replace('|', "\\|").replace('`', "'"))
}
