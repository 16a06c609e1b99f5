//! Builds the crate under test to wasm: once per process, with cargo, into a folder of its own below the target folder, so that the
//! build neither waits for nor disturbs the one that runs the tests.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::{env, fs};

use serde::Deserialize;

const TARGET: &str = "wasm32-wasip1";

/// Where the module of a test comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Crate {
    /// The folder of its `Cargo.toml`.
    pub folder: &'static str,
    /// Its name.
    pub package: &'static str,
    /// The cargo profile; `None`: `wasm` where the workspace has such a profile, else `release`.
    pub profile: Option<&'static str>,
    /// The example that is the module; `None`: the library is.
    pub example: Option<&'static str>,
}

type Built = Result<Arc<Vec<u8>>, String>;

impl Crate {
    /// The module, built when it has not been yet.
    ///
    /// # Errors
    /// It does not build: why, and what to do where that is known.
    pub fn module(&self) -> Built {
        static BUILT: Mutex<BTreeMap<Crate, Built>> = Mutex::new(BTreeMap::new());

        // Held while cargo runs: the other tests of this process wait for the same module.
        let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
        built.entry(self.clone()).or_insert_with(|| self.build(&cargo())).clone()
    }

    fn build(&self, cargo: &OsString) -> Built {
        let manifest = Path::new(self.folder).join("Cargo.toml");
        let workspace = workspace(cargo, &manifest)?;
        let profile = match self.profile {
            Some(profile) => profile,
            None if workspace.has_wasm_profile() => "wasm",
            None => "release",
        };

        let mut command = Command::new(cargo);
        command.args(["build", "--message-format", "json-render-diagnostics", "--target", TARGET]);
        command.args(["--profile", profile, "--package", self.package]).arg("--manifest-path").arg(&manifest);
        command.arg("--target-dir").arg(workspace.target_directory.join("guests"));
        match self.example {
            Some(example) => command.args(["--example", example]),
            None => command.arg("--lib"),
        };
        // The flags and wrappers of the tests' own build (clippy, coverage) are not for guests.
        for name in [
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "CLIPPY_ARGS",
        ] {
            command.env_remove(name);
        }

        let output = command.output().map_err(|error| format!("cargo could not be started: {error}"))?;
        if !output.status.success() {
            return Err(self.explain(&String::from_utf8_lossy(&output.stderr)));
        }
        let Some(path) = self.artifact(&output.stdout) else { return Err(self.no_module(&manifest)) };
        let module = fs::read(&path).map_err(|error| format!("read {}: {error}", path.display()))?;
        Ok(Arc::new(module))
    }

    /// The module among what cargo says that it has built.
    fn artifact(&self, messages: &[u8]) -> Option<PathBuf> {
        #[derive(Deserialize)]
        struct Message {
            target: Option<Target>,
            #[serde(default)]
            filenames: Vec<PathBuf>,
            #[serde(default)]
            manifest_path: PathBuf,
        }

        #[derive(Deserialize)]
        struct Target {
            name: String,
            crate_types: Vec<String>,
        }

        let messages = messages.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
        let own = messages.filter(|message: &Message| {
            let target = message.target.as_ref();
            let cdylib = target.is_some_and(|target| target.crate_types.iter().any(|kind| kind == "cdylib"));
            cdylib
                && self.example.is_none_or(|example| target.is_some_and(|target| target.name == example))
                && message.manifest_path.parent().is_some_and(|folder| is_same(folder, Path::new(self.folder)))
        });
        let mut files = own.flat_map(|message| message.filenames);
        files.find(|file| file.extension().is_some_and(|extension| extension == "wasm"))
    }

    fn no_module(&self, manifest: &Path) -> String {
        match self.example {
            Some(example) => format!(
                "example {example:?} of {} is not built as a module: add `crate-type = [\"cdylib\"]` to its [[example]] in {}.",
                self.package,
                manifest.display()
            ),
            None => format!(
                "{} is not built as a module: add `crate-type = [\"cdylib\", \"rlib\"]` under [lib] in {}.",
                self.package,
                manifest.display()
            ),
        }
    }

    fn explain(&self, words: &str) -> String {
        let missing = words.contains("target may not be installed") || words.contains("can't find crate for `core`");
        if missing {
            // What rustc says of each dependency that it cannot compile either would hide the one thing to do.
            return format!("the Rust target {TARGET} is not installed: run `rustup target add {TARGET}`.");
        }
        format!("{} does not build to {TARGET}:\n{words}", self.package)
    }
}

/// Where the crate under test stands.
#[derive(Deserialize)]
struct Workspace {
    workspace_root: PathBuf,
    target_directory: PathBuf,
}

impl Workspace {
    fn has_wasm_profile(&self) -> bool {
        let manifest = fs::read_to_string(self.workspace_root.join("Cargo.toml")).unwrap_or_default();
        manifest.lines().any(|line| line.trim_end() == "[profile.wasm]")
    }
}

fn workspace(cargo: &OsString, manifest: &Path) -> Result<Workspace, String> {
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"])
        .arg(manifest)
        .output()
        .map_err(|error| format!("cargo could not be started: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo metadata of {}:\n{}", manifest.display(), String::from_utf8_lossy(&output.stderr)));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("cargo metadata of {}: {error}", manifest.display()))
}

/// The cargo that runs the tests.
fn cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

fn is_same(one: &Path, other: &Path) -> bool {
    one == other || matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO: Crate = Crate {
        folder: concat!(env!("CARGO_MANIFEST_DIR"), "/.."),
        package: "selvedge-sdk",
        profile: None,
        example: Some("hello"),
    };

    #[test]
    fn an_example_is_built_and_found() {
        assert!(HELLO.module().unwrap().starts_with(b"\0asm"));
    }

    #[test]
    fn a_library_that_is_no_module_is_said_to_be_none() {
        let library = Crate { example: None, ..HELLO };
        let error = library.module().unwrap_err();
        assert!(error.contains("crate-type = [\"cdylib\", \"rlib\"]"), "{error}");
    }

    #[test]
    fn what_does_not_compile_is_shown() {
        let error = Crate { example: Some("none"), ..HELLO }.module().unwrap_err();
        assert!(error.contains("no example target named `none`"), "{error}");
    }

    #[test]
    fn a_missing_target_is_named_with_what_to_do() {
        let words =
            "error[E0463]: can't find crate for `core`\n  |\n  = note: the `wasm32-wasip1` target may not be installed";
        assert_eq!(
            HELLO.explain(words),
            "the Rust target wasm32-wasip1 is not installed: run `rustup target add wasm32-wasip1`."
        );
    }

    #[test]
    fn a_cargo_that_is_not_there_is_named() {
        let error = HELLO.build(&"/nowhere/cargo".into()).unwrap_err();
        assert!(error.contains("cargo could not be started"), "{error}");
    }
}
