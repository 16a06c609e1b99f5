//! `selvedge filter`: what the author of a filter needs, from an empty folder to a module that runs.

mod bench;

mod build;

mod check;

mod desk;

mod dev;

mod inspect;

mod measure;

mod module;

mod new;

mod profile;

mod project;

mod run;

mod size;

mod templates;

mod test;

use std::fmt;
use std::process::ExitCode;

use clap::Subcommand;

use super::{EXIT_FAULTY, complain};

/// Shown below the list of commands.
const FIRST_STEPS: &str = "\
From nothing to a filter that runs:
  selvedge filter new my-filter --template auth
  cd my-filter
  selvedge filter test
  selvedge filter dev      # then: curl -i http://127.0.0.1:8080/

MODULE is a .wasm file, the folder of a filter crate (then its built module; the default is this folder), or builtin:NAME.

Exit codes: 0 all is well; 1 it works, and something is to be told (a test fails, a module is not portable);
2 it does not work (a bad argument, a module that does not load, a crate that does not build).";

#[derive(Subcommand)]
#[command(after_help = FIRST_STEPS, disable_help_subcommand = true)]
pub(super) enum FilterCommand {
    /// Make a crate with a filter, its tests, a configuration and a CI file.
    New(new::NewArgs),
    /// Build a filter crate to wasm: small and fast, checked, with a report of what its size is made of.
    Build(build::BuildArgs),
    /// Run the tests of a filter crate: natively, and on the compiled module in the real host.
    Test(test::TestArgs),
    /// Run a node with the filter of a crate; what is saved is built and swapped in while it runs.
    Dev(dev::DevArgs),
    /// Send one request through a module on the real host, and print all it does: callbacks, hostcalls, times, what it changes.
    Run(run::RunArgs),
    /// Measure what a module costs: cold, on a fresh instance, warm, by callback.
    Bench(bench::BenchArgs),
    /// Say whether a module runs here, and with --portable whether it loads on other hosts of proxy-wasm.
    Check(check::CheckArgs),
    /// Print what a module is made of: sections, imports, exports, memory, phases, the schema of its settings.
    Inspect(inspect::InspectArgs),
}

pub(super) fn run(command: FilterCommand) -> ExitCode {
    let done = match command {
        FilterCommand::New(args) => new::run(&args),
        FilterCommand::Test(args) => test::run(&args),
        FilterCommand::Dev(args) => dev::run(&args),
        FilterCommand::Build(args) => build::run(&args),
        FilterCommand::Run(args) => run::run(&args),
        FilterCommand::Bench(args) => bench::run(&args),
        FilterCommand::Check(args) => check::run(&args),
        FilterCommand::Inspect(args) => inspect::run(&args),
    };
    done.unwrap_or_else(|trouble| complain(format_args!("error: {trouble}\n"), ExitCode::from(EXIT_FAULTY)))
}

/// Why a command cannot be carried out, in words for whoever gave it.
#[derive(Debug)]
struct Trouble(String);

impl Trouble {
    fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

type Done = Result<ExitCode, Trouble>;

/// The text of an argument, or that of the file behind an `@`.
fn read_argument(argument: &str, text: &str) -> Result<String, Trouble> {
    match text.strip_prefix('@') {
        Some(path) => {
            std::fs::read_to_string(path).map_err(|error| Trouble::new(format!("{argument} {text}: {error}")))
        }
        None => Ok(text.to_owned()),
    }
}

/// Settings of a filter as they stand in a configuration: JSON or YAML, or such a file behind an `@`.
fn settings(argument: &str, text: &str) -> Result<serde_json::Value, Trouble> {
    let text = read_argument(argument, text)?;
    serde_saphyr::from_str(&text).map_err(|error| Trouble::new(format!("{argument}: {error}")))
}

/// `54.3 KiB`.
fn kib(bytes: usize) -> String {
    #[allow(clippy::cast_precision_loss, reason = "a size for people")]
    let bytes = bytes as f64;
    if bytes < 1024.0 * 1024.0 {
        format!("{:.1} KiB", bytes / 1024.0)
    } else {
        format!("{:.2} MiB", bytes / 1024.0 / 1024.0)
    }
}
