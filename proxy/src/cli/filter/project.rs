//! A filter crate, as cargo knows it.

use std::env;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;

use super::Trouble;

/// The wasm target of filters: WASI preview 1, as proxy-wasm hosts expect.
pub(super) const TARGET: &str = "wasm32-wasip1";

/// A crate whose library is a filter.
#[derive(Debug)]
pub(super) struct Project {
    pub(super) name: String,
    pub(super) manifest: PathBuf,
    /// The root of its workspace, where its profiles are: often the crate itself.
    pub(super) workspace: PathBuf,
    /// The library's name with `_`, as its file is called.
    library: String,
    target_folder: PathBuf,
    features: Vec<String>,
}

impl Project {
    /// Asks cargo about the crate of a manifest, or about one package of its workspace.
    pub(super) fn at(manifest: &Path, package: Option<&str>) -> Result<Self, Trouble> {
        if !manifest.is_file() {
            return Err(Trouble::new(format!(
                "{}: no such file; run this in the folder of a filter crate, or make one with `selvedge filter new`",
                manifest.display()
            )));
        }
        let output = cargo()
            .args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"])
            .arg(manifest)
            .output()
            .map_err(|error| no_cargo(&error))?;
        if !output.status.success() {
            return Err(Trouble::new(
                String::from_utf8_lossy(&output.stderr).trim().trim_start_matches("error: ").to_owned(),
            ));
        }
        let metadata: Value = serde_json::from_slice(&output.stdout)
            .map_err(|error| Trouble::new(format!("cargo metadata says something odd: {error}")))?;
        Self::of(&metadata, manifest, package)
    }

    fn of(metadata: &Value, manifest: &Path, package: Option<&str>) -> Result<Self, Trouble> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let manifest = manifest.canonicalize().unwrap_or_else(|_| manifest.to_owned());
        let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
        let wanted = |one: &&Value| match package {
            Some(name) => one["name"] == name,
            None => Path::new(one["manifest_path"].as_str().unwrap_or_default()) == manifest,
        };
        let Some(found) = packages.iter().find(wanted) else {
            let names: Vec<String> = packages.iter().map(|one| text(&one["name"])).collect();
            let asked = package.map_or_else(
                || format!("{} is a workspace: say which package with -p", manifest.display()),
                |name| format!("no package is called {name}"),
            );
            return Err(Trouble::new(format!("{asked}; there is {}", names.join(", "))));
        };
        let name = text(&found["name"]);
        let targets = found["targets"].as_array().map(Vec::as_slice).unwrap_or_default();
        let library = targets.iter().find(|target| {
            target["crate_types"].as_array().is_some_and(|types| types.iter().any(|one| one == "cdylib"))
                && target["kind"].as_array().is_some_and(|kinds| kinds.iter().all(|kind| kind != "example"))
        });
        let Some(library) = library else {
            return Err(Trouble::new(format!(
                "{}: {name} makes no module: its manifest needs `[lib]` with `crate-type = [\"cdylib\", \"rlib\"]`",
                text(&found["manifest_path"])
            )));
        };
        Ok(Self {
            manifest: text(&found["manifest_path"]).into(),
            workspace: text(&metadata["workspace_root"]).into(),
            library: text(&library["name"]).replace('-', "_"),
            target_folder: text(&metadata["target_directory"]).into(),
            features: found["features"].as_object().map(|all| all.keys().cloned().collect()).unwrap_or_default(),
            name,
        })
    }

    /// Where its module is once it is built.
    pub(super) fn artifact(&self, profile: &str) -> PathBuf {
        let folder = if profile == "dev" { "debug" } else { profile };
        self.target_folder.join(TARGET).join(folder).join(format!("{}.wasm", self.library))
    }

    /// Its folder.
    pub(super) fn folder(&self) -> &Path {
        self.manifest.parent().unwrap_or(Path::new("."))
    }

    /// Whether its manifest has this feature.
    pub(super) fn has_feature(&self, name: &str) -> bool {
        self.features.iter().any(|feature| feature == name)
    }

    /// Builds it; what cargo and the compiler say goes to our stderr as it comes. Returns the module.
    pub(super) fn build(&self, how: &Build) -> Result<PathBuf, Trouble> {
        self.build_as(how, &Building::default())
    }

    /// The same, in the hand of somebody who may stop it.
    pub(super) fn build_as(&self, how: &Build, building: &Building) -> Result<PathBuf, Trouble> {
        let mut command = cargo();
        command.args(["build", "--target", TARGET, "--profile", &how.profile, "--manifest-path"]).arg(&self.manifest);
        // The library alone: tests and examples are not what is shipped.
        command.args(["--package", &self.name, "--lib", "--message-format", "json-render-diagnostics"]);
        if how.quiet {
            command.arg("--quiet");
        }
        if how.offline {
            command.arg("--offline");
        }
        if how.debug {
            let profile = how.profile.to_uppercase().replace('-', "_");
            command.env(format!("CARGO_PROFILE_{profile}_DEBUG"), "line-tables-only");
            command.env(format!("CARGO_PROFILE_{profile}_STRIP"), "none");
        }
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(|error| no_cargo(&error))?;
        let stdout = child.stdout.take();
        *building.0.lock() = Some(child);
        let mut module = None;
        if let Some(stdout) = stdout {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                module = module_of(&line, &self.library).or(module);
            }
        }
        // It has closed its output, so it ends now.
        let ended = building.0.lock().as_mut().map(Child::wait).transpose().map_err(|error| no_cargo(&error))?;
        if ended.is_some_and(|ended| ended.success()) {
            return Ok(module.unwrap_or_else(|| self.artifact(&how.profile)));
        }
        Err(Trouble::new(format!("{} does not build: see above", self.name)))
    }
}

/// A build under way.
#[derive(Debug, Clone, Default)]
pub(super) struct Building(Arc<Mutex<Option<Child>>>);

impl Building {
    /// Ends cargo, and so the build.
    pub(super) fn stop(&self) {
        if let Some(child) = self.0.lock().as_mut() {
            let _ = child.kill(); // It may have ended.
        }
    }
}

/// How a crate is built.
#[derive(Debug, Clone)]
pub(super) struct Build {
    pub(super) profile: String,
    /// Names of functions, and lines.
    pub(super) debug: bool,
    pub(super) offline: bool,
    /// Only warnings and errors.
    pub(super) quiet: bool,
}

/// The module that a line of cargo's messages tells of.
fn module_of(line: &str, library: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(line).ok()?;
    let of_library = message["reason"] == "compiler-artifact"
        && message["target"]["name"].as_str().is_some_and(|name| name.replace('-', "_") == library);
    let files = message["filenames"].as_array().filter(|_| of_library)?;
    files.iter().filter_map(Value::as_str).find(|file| file.ends_with(".wasm")).map(PathBuf::from)
}

/// The cargo that is meant: that of whoever runs us, if it is cargo itself.
pub(super) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    // Flags for this machine's target are not for wasm.
    command.env_remove("CARGO_ENCODED_RUSTFLAGS");
    command
}

pub(super) fn no_cargo(error: &std::io::Error) -> Trouble {
    Trouble::new(format!("cargo does not start: {error}; Rust comes from https://rustup.rs"))
}

/// Whether the compiler has the library of the target; `None` = it cannot be asked.
pub(super) fn target_is_installed() -> Option<bool> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| OsString::from("rustc"));
    let output = Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]).output().ok()?;
    let folder = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
    Some(Path::new(folder.trim()).is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_crate_without_a_module_says_what_its_manifest_lacks() {
        let metadata = json!({
            "packages": [
                { "name": "plain", "manifest_path": "/w/plain/Cargo.toml", "targets": [{ "name": "plain", "crate_types": ["lib"], "kind": ["lib"] }] },
                { "name": "a-b", "manifest_path": "/w/a/Cargo.toml",
                  "targets": [{ "name": "a_b", "crate_types": ["cdylib", "rlib"], "kind": ["cdylib", "rlib"] }] },
            ],
            "workspace_root": "/w", "target_directory": "/t",
        });
        let of = |manifest: &str, package| Project::of(&metadata, Path::new(manifest), package);
        let plain = of("/w/plain/Cargo.toml", None).unwrap_err().to_string();
        assert!(plain.contains("/w/plain/Cargo.toml") && plain.contains("cdylib"), "{plain}");
        let nobody = of("/w/Cargo.toml", None).unwrap_err().to_string();
        assert!(nobody.contains("-p") && nobody.contains("plain, a-b"), "{nobody}");
        let unknown = of("/w/Cargo.toml", Some("x")).unwrap_err().to_string();
        assert!(unknown.contains("no package is called x"), "{unknown}");
        let found = of("/w/Cargo.toml", Some("a-b")).unwrap();
        assert_eq!(found.artifact("release"), Path::new("/t/wasm32-wasip1/release/a_b.wasm"));
        assert_eq!(found.artifact("dev"), Path::new("/t/wasm32-wasip1/debug/a_b.wasm"));
    }

    #[test]
    fn the_module_is_the_one_cargo_tells_of() {
        let line = json!({ "reason": "compiler-artifact", "target": { "name": "a-b" }, "filenames": ["/x/liba_b.rlib", "/x/a_b.wasm"] });
        assert_eq!(module_of(&line.to_string(), "a_b"), Some("/x/a_b.wasm".into()));
        assert_eq!(module_of(&line.to_string(), "other"), None);
        assert_eq!(module_of("no json", "a_b"), None);
    }
}
