//! Compiles the guests of the suite, and says where they are.

use std::env;
use std::path::Path;

use selvedge_guest_build::Guests;

fn main() -> Result<(), String> {
    let here = env::var("CARGO_MANIFEST_DIR").map_err(|error| error.to_string())?;
    let workspace = Path::new(&here).parent().ok_or("the crate is in a workspace")?;
    println!("cargo::rerun-if-changed={}", workspace.join("tests/guests").display());
    println!("cargo::rerun-if-changed={}", workspace.join("sdk/src").display());
    println!("cargo::rerun-if-changed={}", workspace.join("sdk/examples").display());
    // The examples of the SDK land in the same folder.
    Guests::examples_of("selvedge-sdk").build(workspace)?;
    let guests = Guests::examples_of("selvedge-test-guests").build(workspace)?;
    println!("cargo::rustc-env=SELVEDGE_TEST_GUESTS={}", guests.display());
    Ok(())
}
