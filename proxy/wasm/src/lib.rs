//! A proxy-wasm host on wasmtime: plugins, VMs, hostcalls, limits. Knows nothing of Pingora.
