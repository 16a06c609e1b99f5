//! The module that a command is about.

use std::path::{Path, PathBuf};

use selvedge_wasm::{Anatomy, Engine, EngineOptions, Module};

use super::Trouble;
use super::project::Project;
use crate::{bundled, error_chain};

/// What begins the name of a filter that comes with the node.
const BUILTIN: &str = "builtin:";

/// A module by its bytes.
pub(super) struct Wasm {
    /// As it is to be called in what is printed.
    pub(super) name: String,
    /// Where it is, if it is a file.
    pub(super) path: Option<PathBuf>,
    pub(super) bytes: Vec<u8>,
}

impl Wasm {
    /// Finds what MODULE names.
    pub(super) fn find(named: &str) -> Result<Self, Trouble> {
        if let Some(name) = named.strip_prefix(BUILTIN) {
            let bytes = bundled::wasm(name).ok_or_else(|| {
                Trouble::new(format!(
                    "no filter called {name} comes with this node; there is {}",
                    bundled::names().join(", ")
                ))
            })?;
            return Ok(Self { name: name.to_owned(), path: None, bytes: bytes.to_vec() });
        }
        let path = Path::new(named);
        if !path.is_dir() {
            return Self::read(path);
        }
        let project = Project::at(&path.join("Cargo.toml"), None)?;
        let built = project.artifact("release");
        if !built.is_file() {
            let built = built.display();
            return Err(Trouble::new(format!(
                "{}: not built yet, there is no {built}: run `selvedge filter build` first",
                project.name
            )));
        }
        Self::read(&built)
    }

    pub(super) fn read(path: &Path) -> Result<Self, Trouble> {
        let bytes = std::fs::read(path).map_err(|error| Trouble::new(format!("{}: {error}", path.display())))?;
        let name = path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Ok(Self { name, path: Some(path.to_owned()), bytes })
    }

    /// The file, or the name where there is none.
    pub(super) fn place(&self) -> String {
        self.path.as_ref().map_or_else(|| format!("{BUILTIN}{}", self.name), |path| path.display().to_string())
    }

    pub(super) fn anatomy(&self) -> Result<Anatomy, Trouble> {
        Anatomy::of(&self.bytes).map_err(|error| Trouble::new(format!("{}: {error}", self.place())))
    }

    /// Loads it as a node would.
    pub(super) fn load(&self) -> Result<std::sync::Arc<Module>, Trouble> {
        let engine = Engine::new(EngineOptions::default()).map_err(|error| {
            Trouble::new(format!("the engine of filters does not run here: {}", error_chain(&error)))
        })?;
        Module::load(&engine, &self.name, &self.bytes)
            .map_err(|error| Trouble::new(format!("{}: {}", self.place(), error_chain(&error))))
    }
}
