//! `selvedge test`: the tests that a configuration has of itself.

use std::process::ExitCode;

use clap::Args;

use super::{ConfigArgs, complain, offline_failed, print};
use crate::offline::Offline;
use crate::telemetry;

#[derive(Args)]
pub(super) struct TestArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Only the tests whose names contain this.
    filter: Option<String>,
}

pub(super) fn run(args: &TestArgs) -> ExitCode {
    // What filters log is told to who asks for it; without that only the results are.
    if std::env::var_os(telemetry::LOG_VARIABLE).is_some() {
        telemetry::init();
    }
    let offline = match Offline::load(&args.config.config) {
        Ok(offline) => offline,
        Err(error) => return offline_failed(&error),
    };
    let wanted = |name: &str| args.filter.as_ref().is_none_or(|part| name.contains(part.as_str()));
    let tests: Vec<_> = offline.config.tests.iter().filter(|test| wanted(&test.name)).collect();
    if tests.is_empty() {
        let path = args.config.config.display();
        // Whoever asks for a test and gets none has asked for the wrong one.
        return match &args.filter {
            Some(part) => complain(format_args!("{path}: no test has {part} in its name\n"), ExitCode::FAILURE),
            None => complain(format_args!("{path}: there are no tests\n"), ExitCode::SUCCESS),
        };
    }
    // As a worker of a node is: its thread can hand its tasks over when a filter's call takes long.
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(format_args!("no runtime: {error}\n"), ExitCode::FAILURE),
    };
    let mut failed = 0;
    for test in &tests {
        let misses = match runtime.block_on(offline.try_out(test)) {
            Ok(misses) => misses,
            Err(error) => return offline_failed(&error),
        };
        if misses.is_empty() {
            print(format_args!("ok    {}\n", test.name));
            continue;
        }
        failed += 1;
        print(format_args!("FAIL  {}\n", test.name));
        for miss in misses {
            print(format_args!("      {}: {}: expected {}, got {}\n", miss.at, miss.key, miss.expected, miss.got));
        }
    }
    let plural = if tests.len() == 1 { "" } else { "s" };
    print(format_args!("{} test{plural}, {failed} failed\n", tests.len()));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
