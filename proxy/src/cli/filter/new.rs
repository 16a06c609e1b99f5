//! `selvedge filter new`: a crate to begin with.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::super::print;
use super::templates::{self, Template};
use super::{Done, Trouble};

#[derive(Args)]
pub(in crate::cli) struct NewArgs {
    /// The name of the crate, which becomes that of its folder: letters, digits, `-` and `_`.
    name: String,
    /// What to begin with.
    #[arg(short, long, value_enum, default_value = "blank")]
    template: Template,
    /// A checkout of Selvedge whose SDK is used, instead of the one of this version from the registry.
    #[arg(long, value_name = "CHECKOUT")]
    sdk: Option<PathBuf>,
    /// Where the folder is made.
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    path: PathBuf,
}

pub(super) fn run(args: &NewArgs) -> Done {
    check(&args.name).map_err(|why| Trouble::new(format!("{:?} cannot be the name of a crate: {why}", args.name)))?;
    let sdk = sdk(args.sdk.as_deref())?;
    let here = args.path == Path::new(".");
    let folder = if here { PathBuf::from(&args.name) } else { args.path.join(&args.name) };
    let at = |path: &Path| {
        let path = path.display().to_string();
        move |error: io::Error| Trouble::new(format!("{path}: {error}"))
    };
    fs::create_dir_all(&args.path).map_err(at(&args.path))?;
    fs::create_dir(&folder).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            Trouble::new(format!("{}: is there already, and stays as it is", folder.display()))
        }
        _ => at(&folder)(error),
    })?;
    for (name, content) in files(&args.name, args.template, &sdk) {
        let path = folder.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(at(parent))?;
        }
        fs::write(&path, content).map_err(at(&path))?;
    }
    print(format_args!(
        "{folder} is made\n\n  cd {folder}\n  selvedge filter test    # its tests, natively and on the real host\n  \
         selvedge filter dev     # a node that runs it; save src/lib.rs, and ask again\n",
        folder = folder.display()
    ));
    Ok(ExitCode::SUCCESS)
}

/// Where the SDK and its tester come from, as a manifest says it.
struct Sdk {
    sdk: String,
    testing: String,
}

fn sdk(checkout: Option<&Path>) -> Result<Sdk, Trouble> {
    let Some(checkout) = checkout else {
        let version = format!("{:?}", env!("CARGO_PKG_VERSION"));
        return Ok(Sdk { sdk: version.clone(), testing: version });
    };
    let whole =
        fs::canonicalize(checkout).map_err(|error| Trouble::new(format!("--sdk {}: {error}", checkout.display())))?;
    if !whole.join("sdk/testing/Cargo.toml").is_file() {
        return Err(Trouble::new(format!(
            "--sdk {}: no checkout of Selvedge: it has no sdk/testing",
            checkout.display()
        )));
    }
    let path = |part: &str| format!("{{ path = {:?} }}", whole.join(part).display().to_string());
    Ok(Sdk { sdk: path("sdk"), testing: path("sdk/testing") })
}

/// The files of a crate, by their places in it.
fn files(name: &str, template: Template, sdk: &Sdk) -> Vec<(&'static str, String)> {
    let parts = template.parts();
    let krate = name.replace('-', "_");
    let about = parts.library.lines().next().unwrap_or_default().trim_start_matches("//!").trim();
    let indented = |text: &str| text.lines().map(|line| format!("      {line}\n")).collect::<String>();
    let filled = |text: &str| {
        // The parts first: they have places to be filled, too.
        text.replace("{{config}}\n", &indented(parts.config))
            .replace("{{upstreams}}\n", &format!("{}\n", parts.upstreams))
            .replace("{{try}}\n", parts.ask)
            .replace("{{about}}", about)
            .replace("{{name}}", name)
            .replace("{{crate}}", &krate)
            .replace("{{sdk}}", &sdk.sdk)
            .replace("{{testing}}", &sdk.testing)
    };
    vec![
        ("Cargo.toml", filled(templates::MANIFEST)),
        ("src/lib.rs", filled(parts.library)),
        ("tests/filter.rs", filled(parts.test)),
        ("selvedge.yaml", filled(templates::NODE)),
        ("README.md", filled(templates::README)),
        (".gitignore", templates::GITIGNORE.to_owned()),
        (".github/workflows/filter.yml", filled(templates::CI)),
    ]
}

/// Whether cargo, Rust and a configuration all take it as a name.
fn check(name: &str) -> Result<(), &'static str> {
    // Crates that these would hide, or that cargo refuses.
    const TAKEN: [&str; 12] = [
        "test",
        "core",
        "std",
        "alloc",
        "proc-macro",
        "proc_macro",
        "build",
        "deps",
        "examples",
        "incremental",
        "selvedge-sdk",
        "selvedge_sdk",
    ];
    const WORDS: [&str; 39] = [
        "as", "async", "await", "break", "const", "continue", "crate", "dyn", "else", "enum", "extern", "false", "fn",
        "for", "gen", "if", "impl", "in", "let", "loop", "match", "mod", "move", "mut", "pub", "ref", "return", "self",
        "static", "struct", "super", "trait", "true", "try", "type", "unsafe", "use", "where", "while",
    ];
    if name.is_empty() {
        return Err("it is empty");
    }
    if name.len() > 64 {
        return Err("it is longer than 64 characters");
    }
    if !name.starts_with(|first: char| first.is_ascii_lowercase()) {
        return Err("it has to begin with a small letter");
    }
    if name.bytes().any(|byte| !matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_')) {
        return Err("small letters, digits, `-` and `_` only");
    }
    if WORDS.contains(&name) {
        return Err("it is a word of Rust");
    }
    if TAKEN.contains(&name) {
        return Err("it means something else to cargo");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_cargo_and_rust_take() {
        for good in ["a", "api-key", "my_filter2"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in ["", "2fast", "Api", "a b", "a/b", "..", "../up", "fn", "test", "-x", "ä", &"x".repeat(65)] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_place_of_every_template_is_filled() {
        use clap::ValueEnum;
        let sdk = Sdk { sdk: "\"1\"".into(), testing: "\"1\"".into() };
        for template in Template::value_variants() {
            for (name, text) in files("my-filter", *template, &sdk) {
                assert!(!text.contains("{{"), "{template:?} {name}:\n{text}");
                assert!(text.ends_with('\n') && !text.ends_with("\n\n"), "{template:?} {name}");
            }
        }
    }
}
