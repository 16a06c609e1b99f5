//! The proxy-wasm binary interface: numbers, byte layouts, and guest memory.

pub mod serialize;

pub(crate) mod hosts;
pub(crate) mod memory;
pub(crate) mod status;
pub(crate) mod version;
