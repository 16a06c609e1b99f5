//! Builds guest crates to wasm from a build script.
//!
//! A crate that embeds filters (the proxy) or runs them (the test suite) calls [`Guests::build`] from its `build.rs`. The nested
//! cargo run has a target folder of its own, `target/guests`, so it neither waits for nor locks the outer build.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The wasm target of every guest: WASI preview 1, as proxy-wasm hosts expect.
pub const TARGET: &str = "wasm32-wasip1";

/// Examples that need features of their package, which would make the others larger: package, feature, example.
const FEATURED: [(&str, &str, &str); 2] = [("selvedge-sdk", "jwt", "members"), ("selvedge-sdk", "tracing", "traced")];

/// A set of guests to build.
#[derive(Debug, Default)]
pub struct Guests {
    packages: Vec<String>,
    examples: bool,
}

impl Guests {
    /// Guests that are the library (`crate-type = ["cdylib"]`) of each named package.
    pub fn packages<I: IntoIterator<Item = S>, S: Into<String>>(names: I) -> Self {
        Self { packages: names.into_iter().map(Into::into).collect(), examples: false }
    }

    /// Guests that are the examples (`crate-type = ["cdylib"]`) of one package.
    pub fn examples_of(package: &str) -> Self {
        Self { packages: vec![package.into()], examples: true }
    }

    /// Compiles the guests with the workspace's `wasm` profile and returns the folder that holds the `.wasm` files, named after
    /// their cargo target with `-` replaced by `_` for libraries.
    ///
    /// # Errors
    /// Says in one sentence what to do when the wasm target is not installed or the guests do not compile.
    pub fn build(&self, workspace: &Path) -> Result<PathBuf, String> {
        let target_dir =
            env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from).join("guests");

        let mut what: Vec<&str> = self.packages.iter().flat_map(|package| ["-p", package]).collect();
        if self.examples {
            what.push("--examples");
        }
        self.run(workspace, &target_dir, &what)?;
        let featured =
            FEATURED.iter().filter(|(of, ..)| self.examples && self.packages.iter().any(|package| package == of));
        for (package, feature, example) in featured {
            self.run(workspace, &target_dir, &["-p", package, "--features", feature, "--example", example])?;
        }

        let built = target_dir.join(TARGET).join("wasm");
        Ok(if self.examples { built.join("examples") } else { built })
    }

    fn run(&self, workspace: &Path, target_dir: &Path, what: &[&str]) -> Result<(), String> {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command
            .current_dir(workspace)
            .args(["build", "--profile", "wasm", "--target", TARGET, "--target-dir"])
            .arg(target_dir)
            .args(what);

        // The outer build's flags and wrappers (clippy, coverage) are for the host, not for the guests.
        for name in [
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTC_WRAPPER",
            "CLIPPY_ARGS",
            "CARGO_BUILD_TARGET",
        ] {
            command.env_remove(name);
        }

        let output =
            command.output().map_err(|error| format!("cargo could not be started to build the guests: {error}"))?;
        if output.status.success() {
            return Ok(());
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        let missing = stderr.contains("may not be installed") || stderr.contains("can't find crate for `core`");
        let hint = if missing {
            format!("\nThe wasm target is missing: run `rustup target add {TARGET}`.")
        } else {
            String::new()
        };
        Err(format!("the wasm guests {:?} did not compile:\n{stderr}{hint}", self.packages))
    }
}
