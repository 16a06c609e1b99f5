//! `selvedge`, the edge proxy.

use std::process::ExitCode;

/// Shorter and steadier request times than the system's allocator, above all with many workers.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    selvedge::cli::main()
}
