//! Compiles the bundled filters to wasm, to be embedded in the binary.

use std::path::Path;
use std::{env, fs};

use selvedge_guest_build::Guests;

/// The bundled filters, as `wasm: builtin:NAME` names them.
const FILTERS: [&str; 5] = ["ab-routing", "geo-routing", "jwt-auth", "rate-limit", "waf"];

fn main() -> Result<(), String> {
    let here = env::var("CARGO_MANIFEST_DIR").map_err(|error| error.to_string())?;
    let workspace = Path::new(&here).parent().ok_or("the crate is in a workspace")?;
    for watched in ["filters", "sdk/src", "sdk/macros/src", "sdk/Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", workspace.join(watched).display());
    }

    let built = Guests::packages(FILTERS.map(|name| format!("selvedge-filter-{name}"))).build(workspace)?;

    let out = env::var("OUT_DIR").map_err(|error| error.to_string())?;
    let mut table =
        String::from("/// Name and module of every bundled filter.\nconst BUNDLED: &[(&str, &[u8])] = &[\n");
    for name in FILTERS {
        let file = format!("selvedge_filter_{}.wasm", name.replace('-', "_"));
        let copy = Path::new(&out).join(&file);
        fs::copy(built.join(&file), &copy).map_err(|error| format!("{file}: {error}"))?;
        table.push_str(&format!("    ({name:?}, include_bytes!({:?})),\n", copy.display().to_string()));
    }
    table.push_str("];\n");
    fs::write(Path::new(&out).join("bundled.rs"), table).map_err(|error| error.to_string())
}
