//! `selvedge filter`: what the author of a filter needs, from an empty folder to a module that runs.

mod build;

mod check;

mod inspect;

mod module;

mod profile;

mod project;

mod size;

use std::fmt;
use std::process::ExitCode;

use clap::Subcommand;

use super::{EXIT_FAULTY, complain};

/// Shown below the list of commands.
const FIRST_STEPS: &str = "\
MODULE is a .wasm file, the folder of a filter crate (then its built module; the default is this folder), or builtin:NAME.

Exit codes: 0 all is well; 1 it works, and something is to be told (a test fails, a module is not portable);
2 it does not work (a bad argument, a module that does not load, a crate that does not build).";

#[derive(Subcommand)]
#[command(after_help = FIRST_STEPS, disable_help_subcommand = true)]
pub(super) enum FilterCommand {
    /// Build a filter crate to wasm: small and fast, checked, with a report of what its size is made of.
    Build(build::BuildArgs),
    /// Say whether a module runs here, and with --portable whether it loads on other hosts of proxy-wasm.
    Check(check::CheckArgs),
    /// Print what a module is made of: sections, imports, exports, memory, phases, the schema of its settings.
    Inspect(inspect::InspectArgs),
}

pub(super) fn run(command: FilterCommand) -> ExitCode {
    let done = match command {
        FilterCommand::Build(args) => build::run(&args),
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
