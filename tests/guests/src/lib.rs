//! One tiny wasm guest per behaviour.
