//! The filters that come with the node, compiled to wasm by its build and embedded.

include!(concat!(env!("OUT_DIR"), "/bundled.rs"));

/// The module of a bundled filter.
#[must_use]
pub fn wasm(name: &str) -> Option<&'static [u8]> {
    BUNDLED.iter().find(|(known, _)| *known == name).map(|(_, wasm)| *wasm)
}

/// The names of the bundled filters.
#[must_use]
pub fn names() -> Vec<&'static str> {
    BUNDLED.iter().map(|(name, _)| *name).collect()
}
