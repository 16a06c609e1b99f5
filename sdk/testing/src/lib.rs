//! Runs a filter natively on a fake host, or as wasm on the shipped host, in process.
