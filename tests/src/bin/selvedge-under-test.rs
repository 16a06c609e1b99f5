//! The proxy's command line, so that the suite can start it as a process of its own.

use std::process::ExitCode;

fn main() -> ExitCode {
    selvedge::cli::main()
}
