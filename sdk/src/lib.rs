//! The guest SDK: write proxy-wasm filters as async Rust.
