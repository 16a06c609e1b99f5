//! `selvedge filter test`: the tests of a filter crate, on both hosts.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::super::{complain, print};
use super::project::{Project, TARGET, cargo, no_cargo, target_is_installed};
use super::{Done, Trouble};

#[derive(Args)]
pub(in crate::cli) struct TestArgs {
    /// The manifest of the filter crate.
    #[arg(long, default_value = "Cargo.toml")]
    manifest_path: PathBuf,
    /// The package, where the manifest is that of a workspace.
    #[arg(short, long)]
    package: Option<String>,
    /// Natively only: no wasm is built, and no host.
    #[arg(long)]
    native: bool,
    /// Do not ask registries.
    #[arg(long)]
    offline: bool,
    /// For `cargo test`: names of tests, and after another `--` what test programs take.
    #[arg(last = true)]
    rest: Vec<String>,
}

/// The feature of a filter crate that runs its tests on the compiled module too.
const FEATURE: &str = "wasm";

pub(super) fn run(args: &TestArgs) -> Done {
    let project = Project::at(&args.manifest_path, args.package.as_deref())?;
    let both = !args.native && project.has_feature(FEATURE);
    if both && target_is_installed() == Some(false) {
        return Err(Trouble::new(format!(
            "the wasm target is missing: run `rustup target add {TARGET}`, or test natively only with --native"
        )));
    }
    if !args.native && !both {
        print(format_args!(
            "{}: no feature `{FEATURE} = [\"selvedge-sdk-testing/wasm\"]`: tests run natively only\n",
            project.manifest.display()
        ));
    }
    let mut command = cargo();
    command.args(["test", "--package", &project.name, "--manifest-path"]).arg(&project.manifest);
    if both {
        command.args(["--features", FEATURE]);
    }
    if args.offline {
        command.arg("--offline");
    }
    command.args(&args.rest);
    let ended = command.status().map_err(|error| no_cargo(&error))?;
    Ok(match ended.code() {
        Some(0) => ExitCode::SUCCESS,
        // Cargo's word for tests that fail.
        Some(101) => complain("", ExitCode::FAILURE),
        _ => ExitCode::from(super::EXIT_FAULTY),
    })
}
