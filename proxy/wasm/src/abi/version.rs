//! The versions of the ABI, and what differs between them. A module says which one it was written for by exporting a marker; every
//! version is served by the same host, module by module.
//!
//! | | 0.1.0 | 0.2.0 | 0.2.1 |
//! |---|---|---|---|
//! | `proxy_on_{request,response}_headers` | context, headers | + end of stream | |
//! | `proxy_get_header_map_value` of no header | `OK`, nothing | `NOT_FOUND` | |
//! | resuming | `proxy_continue_{request,response}` | `proxy_continue_stream` | |
//! | its configuration | `proxy_get_configuration` | buffers 6 and 7 | |
//! | the route | `proxy_clear_route_cache` | – | |
//! | the log level | – | – | `proxy_get_log_level` |
//!
//! Calls of another version are served all the same: SDKs import what they know, whether or not a filter uses it.

use wasmtime::ExternType;

/// A version of the proxy-wasm ABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AbiVersion {
    /// 0.1.0: filters of the years before 2022, and of the Rust SDK up to 0.1.4.
    V0_1_0,
    /// 0.2.0
    V0_2_0,
    /// 0.2.1
    V0_2_1,
}

/// A callback the host may call: its name, its parameters and its results, all of them `i32`.
pub(crate) type Callback = (&'static str, usize, usize);

impl AbiVersion {
    /// The newest first: a module with several markers is served as the newest of them.
    const ALL: [Self; 3] = [Self::V0_2_1, Self::V0_2_0, Self::V0_1_0];

    /// The version a module says it was written for.
    pub(crate) fn of(code: &wasmtime::Module) -> Option<Self> {
        let has = |marker| matches!(code.get_export(marker), Some(ExternType::Func(_)));
        Self::ALL.into_iter().find(|version| has(version.marker()))
    }

    /// The export that says it.
    fn marker(self) -> &'static str {
        match self {
            Self::V0_1_0 => "proxy_abi_version_0_1_0",
            Self::V0_2_0 => "proxy_abi_version_0_2_0",
            Self::V0_2_1 => "proxy_abi_version_0_2_1",
        }
    }

    /// Every export the host may call.
    pub(crate) fn callbacks(self) -> impl Iterator<Item = Callback> {
        let parameters = if self.tells_end_with_headers() { 3 } else { 2 };
        let headers = [("proxy_on_request_headers", parameters, 1), ("proxy_on_response_headers", parameters, 1)];
        CALLBACKS.iter().copied().chain(headers)
    }

    /// Whether `proxy_on_{request,response}_headers` are told that nothing follows.
    pub(crate) fn tells_end_with_headers(self) -> bool {
        self >= Self::V0_2_0
    }

    /// Whether a header that is not there is `NOT_FOUND`. SDKs of 0.1.0 panic on that: it is an empty value to them.
    pub(crate) fn missing_header_is_not_found(self) -> bool {
        self >= Self::V0_2_0
    }
}

impl std::fmt::Display for AbiVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_2_1 => "0.2.1",
        })
    }
}

/// The exports that are the same in every version.
const CALLBACKS: &[Callback] = &[
    ("_initialize", 0, 0),
    ("_start", 0, 0),
    ("__main_void", 0, 1),
    ("malloc", 1, 1),
    ("proxy_on_memory_allocate", 1, 1),
    ("proxy_on_context_create", 2, 0),
    ("proxy_on_vm_start", 2, 1),
    ("proxy_on_configure", 2, 1),
    ("proxy_on_tick", 1, 0),
    ("proxy_on_queue_ready", 2, 0),
    ("proxy_on_request_body", 3, 1),
    ("proxy_on_request_trailers", 2, 1),
    ("proxy_on_response_body", 3, 1),
    ("proxy_on_response_trailers", 2, 1),
    ("proxy_on_new_connection", 1, 1),
    ("proxy_on_downstream_data", 3, 1),
    ("proxy_on_downstream_connection_close", 2, 0),
    ("proxy_on_upstream_data", 3, 1),
    ("proxy_on_upstream_connection_close", 2, 0),
    ("proxy_on_http_call_response", 5, 0),
    ("proxy_on_grpc_receive_initial_metadata", 3, 0),
    ("proxy_on_grpc_receive", 3, 0),
    ("proxy_on_grpc_receive_trailing_metadata", 3, 0),
    ("proxy_on_grpc_close", 3, 0),
    ("proxy_on_done", 1, 1),
    ("proxy_on_log", 1, 0),
    ("proxy_on_delete", 1, 0),
];
