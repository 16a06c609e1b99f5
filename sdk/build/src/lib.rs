//! Builds guest crates to wasm from a build script.
