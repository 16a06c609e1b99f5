//! `selvedge filter build`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Args;
use serde_json::json;

use super::super::{complain, print};
use super::module::Wasm;
use super::project::{Build, Project, TARGET, target_is_installed};
use super::{Done, Trouble, check, kib, profile, size};

#[derive(Args)]
pub(in crate::cli) struct BuildArgs {
    /// The manifest of the filter crate.
    #[arg(long, default_value = "Cargo.toml")]
    manifest_path: PathBuf,
    /// The package, where the manifest is that of a workspace.
    #[arg(short, long)]
    package: Option<String>,
    /// Cargo's profile.
    #[arg(long, default_value = "release")]
    profile: String,
    /// Keep DWARF: traps tell files and lines. The module is larger; what runs is the same.
    #[arg(long)]
    debug: bool,
    /// Do not ask registries.
    #[arg(long)]
    offline: bool,
    /// Do not run wasm-opt, even if it is installed.
    #[arg(long)]
    no_wasm_opt: bool,
    /// For machines.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &BuildArgs) -> Done {
    if target_is_installed() == Some(false) {
        return Err(Trouble::new(format!("the wasm target is missing: run `rustup target add {TARGET}`")));
    }
    let project = Project::at(&args.manifest_path, args.package.as_deref())?;
    let lacks = profile::lacks(&project.workspace, &args.profile);
    let module = project.build(&Build {
        profile: args.profile.clone(),
        debug: args.debug,
        offline: args.offline,
        quiet: args.json,
    })?;

    // Binaryen moves code and does not keep lines in step.
    let optimised = if args.no_wasm_opt || args.debug { Optimised::NotAsked } else { optimise(&module)? };
    let wasm = Wasm::read(&module)?;
    let anatomy = wasm.anatomy()?;
    let faults = check::faults(&wasm, &anatomy)?;

    if args.json {
        let lacks: Vec<_> = lacks.iter().map(|lack| json!({ "line": lack.line, "instead": lack.instead })).collect();
        let report = json!({
            "module": module, "size": size::json(&anatomy), "wasm_opt": optimised.word(), "profile_lacks": lacks, "faults": faults,
        });
        print(format_args!("{report:#}\n"));
    } else {
        print(format_args!("{}  {}\n{}", module.display(), kib(anatomy.size), size::report(&anatomy)));
        optimised.tell();
        if !lacks.is_empty() {
            let manifest = project.workspace.join("Cargo.toml");
            print(format_args!("{}: [profile.{}] lacks\n", manifest.display(), args.profile));
            for lack in &lacks {
                let instead = lack.instead.as_ref().map(|said| format!("; it says {said}")).unwrap_or_default();
                print(format_args!("  {:<24}# {}{instead}\n", lack.line, lack.why));
            }
        }
        for fault in &faults {
            complain(format_args!("{fault}\n"), ExitCode::FAILURE);
        }
    }
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What came of wasm-opt.
enum Optimised {
    NotAsked,
    NotInstalled,
    /// It is no smaller: the module is as it was.
    Useless,
    Smaller {
        before: u64,
        after: u64,
    },
}

impl Optimised {
    fn word(&self) -> &'static str {
        match self {
            Self::NotAsked => "not asked for",
            Self::NotInstalled => "not installed",
            Self::Useless => "no gain",
            Self::Smaller { .. } => "done",
        }
    }

    fn tell(&self) {
        let size = |bytes: &u64| kib(usize::try_from(*bytes).unwrap_or(usize::MAX));
        let text = match self {
            Self::NotAsked => return,
            Self::NotInstalled => "not installed; with it (Binaryen) modules are some 10% smaller".to_owned(),
            Self::Useless => "no gain".to_owned(),
            Self::Smaller { before, after } => format!("{} -> {}", size(before), size(after)),
        };
        print(format_args!("wasm-opt: {text}\n"));
    }
}

/// What modules of Rust use, and every host has: with all features it knows, wasm-opt writes what hosts do not know yet.
const FEATURES: [&str; 6] = [
    "--enable-bulk-memory",
    "--enable-sign-ext",
    "--enable-mutable-globals",
    "--enable-nontrapping-float-to-int",
    "--enable-multivalue",
    "--enable-reference-types",
];

/// Runs wasm-opt on a module, in its place.
fn optimise(module: &Path) -> Result<Optimised, Trouble> {
    let Some(program) = in_path("wasm-opt") else { return Ok(Optimised::NotInstalled) };
    let length = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.len());
    let io = |error: std::io::Error| Trouble::new(format!("{}: {error}", module.display()));
    let smaller = module.with_extension("wasm-opt");
    let output = Command::new(&program)
        .args(["-O3", "-g"])
        .args(FEATURES)
        .arg("-o")
        .arg(&smaller)
        .arg(module)
        .output()
        .map_err(|error| Trouble::new(format!("{}: {error}", program.display())))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Trouble::new(format!("wasm-opt fails on {}: {}", module.display(), said.trim())));
    }
    let (before, after) = (length(module).map_err(io)?, length(&smaller).map_err(io)?);
    if after >= before {
        std::fs::remove_file(&smaller).map_err(io)?;
        return Ok(Optimised::Useless);
    }
    std::fs::rename(&smaller, module).map_err(io)?;
    Ok(Optimised::Smaller { before, after })
}

fn in_path(program: &str) -> Option<PathBuf> {
    let folders = env::var_os("PATH")?;
    env::split_paths(&folders).map(|folder| folder.join(program)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::super::module::Wasm;
    use super::*;
    use crate::bundled;

    #[test]
    fn what_wasm_opt_makes_of_a_filter_loads() {
        let folder = env::temp_dir().join(format!("selvedge-wasm-opt-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let module = folder.join("filter.wasm");
        std::fs::write(&module, bundled::wasm("ab-routing").unwrap()).unwrap();
        let optimised = optimise(&module).map_err(|trouble| trouble.to_string());
        let loaded = Wasm::read(&module).and_then(|wasm| wasm.load()).map(drop).map_err(|trouble| trouble.to_string());
        let files = std::fs::read_dir(&folder).unwrap().count();
        std::fs::remove_dir_all(&folder).unwrap();
        if matches!(optimised, Ok(Optimised::NotInstalled)) {
            println!("skipped: wasm-opt not installed");
        }
        assert!(optimised.is_ok(), "{:?}", optimised.err());
        assert_eq!((loaded, files), (Ok(()), 1), "it loads, and nothing is left over");
    }
}
