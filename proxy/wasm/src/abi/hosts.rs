//! What other hosts have of what a module may import, so that it can be told beforehand where a filter runs.
//!
//! Envoy 1.40.0: the names its binary links, which are those of proxy-wasm-cpp-host 52a0291. ngx_wasm_module: its source at 3bed278, where
//! many calls link and end the guest when they are made. `docs/abi.md` says how the calls that all have differ.

use crate::anatomy::Import;

/// A host that is not this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OtherHost {
    /// Envoy 1.40.
    Envoy,
    /// Kong's ngx_wasm_module.
    Ngx,
}

/// What another host has of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Elsewhere {
    /// It is carried out.
    There,
    /// It links; a guest that calls it is ended.
    EndsTheGuest,
    /// It does not link: the module does not load there.
    Missing,
}

impl OtherHost {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Envoy, Self::Ngx];

    /// As people call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Envoy => "Envoy",
            Self::Ngx => "ngx_wasm_module",
        }
    }

    /// What it has of an import of a module of this version of the ABI (`0.2.1`).
    #[must_use]
    pub fn has(self, abi: &str, import: &Import) -> Elsewhere {
        let name = import.name.as_str();
        let among = |names: &[&str]| if names.contains(&name) { Elsewhere::There } else { Elsewhere::Missing };
        match (import.module.as_str(), self) {
            ("env", Self::Envoy) => envoy(abi, name),
            ("env", Self::Ngx) if NGX_ENDS_THE_GUEST.contains(&name) => Elsewhere::EndsTheGuest,
            ("env", Self::Ngx) if NGX_OTHERS.contains(&name) => Elsewhere::There,
            ("env", Self::Ngx) => among(EVERYWHERE),
            ("wasi_snapshot_preview1" | "wasi_unstable", Self::Envoy) => among(ENVOY_WASI),
            ("wasi_snapshot_preview1", Self::Ngx) if name == "proc_exit" => Elsewhere::EndsTheGuest,
            ("wasi_snapshot_preview1", Self::Ngx) => among(NGX_WASI),
            _ => Elsewhere::Missing,
        }
    }
}

/// Envoy links some calls by the version that a module says it is written for.
fn envoy(abi: &str, name: &str) -> Elsewhere {
    let linked = match name {
        "proxy_get_configuration"
        | "proxy_continue_request"
        | "proxy_continue_response"
        | "proxy_clear_route_cache" => abi == "0.1.0",
        "proxy_continue_stream" | "proxy_close_stream" => abi != "0.1.0",
        "proxy_get_log_level" => abi == "0.2.1",
        "pthread_equal" | "emscripten_notify_memory_growth" => true,
        _ => EVERYWHERE.contains(&name) || ENVOY_OTHERS.contains(&name),
    };
    if linked { Elsewhere::There } else { Elsewhere::Missing }
}

/// Calls of the ABI that both carry out.
const EVERYWHERE: &[&str] = &[
    "proxy_log",
    "proxy_get_current_time_nanoseconds",
    "proxy_set_effective_context",
    "proxy_set_tick_period_milliseconds",
    "proxy_get_buffer_bytes",
    "proxy_set_buffer_bytes",
    "proxy_get_header_map_pairs",
    "proxy_get_header_map_value",
    "proxy_set_header_map_pairs",
    "proxy_add_header_map_value",
    "proxy_replace_header_map_value",
    "proxy_remove_header_map_value",
    "proxy_get_property",
    "proxy_set_property",
    "proxy_send_local_response",
    "proxy_http_call",
    "proxy_get_shared_data",
    "proxy_set_shared_data",
    "proxy_register_shared_queue",
    "proxy_dequeue_shared_queue",
    "proxy_enqueue_shared_queue",
    "proxy_define_metric",
    "proxy_get_metric",
    "proxy_record_metric",
    "proxy_increment_metric",
    "proxy_call_foreign_function",
];

/// Further calls of the ABI that Envoy carries out, whatever the version.
const ENVOY_OTHERS: &[&str] = &[
    "proxy_get_status",
    "proxy_get_buffer_status",
    "proxy_get_header_map_size",
    "proxy_grpc_call",
    "proxy_grpc_stream",
    "proxy_grpc_send",
    "proxy_grpc_close",
    "proxy_grpc_cancel",
    "proxy_resolve_shared_queue",
    "proxy_done",
];

/// Calls that ngx_wasm_module links and has not made yet.
const NGX_ENDS_THE_GUEST: &[&str] = &[
    "proxy_get_log_level",
    "proxy_done",
    "proxy_close_stream",
    "proxy_continue_response",
    "proxy_grpc_call",
    "proxy_grpc_stream",
    "proxy_grpc_send",
    "proxy_grpc_close",
    "proxy_grpc_cancel",
    "proxy_get_status",
    "proxy_resolve_shared_queue",
    "proxy_clear_route_cache",
];

/// Further calls that ngx_wasm_module carries out.
const NGX_OTHERS: &[&str] = &["proxy_continue_stream", "proxy_continue_request", "proxy_get_configuration"];

/// WASI in Envoy: all but `proc_raise`. Files and sockets are "not there".
const ENVOY_WASI: &[&str] = &[
    "args_get",
    "args_sizes_get",
    "clock_res_get",
    "clock_time_get",
    "environ_get",
    "environ_sizes_get",
    "fd_advise",
    "fd_allocate",
    "fd_close",
    "fd_datasync",
    "fd_fdstat_get",
    "fd_fdstat_set_flags",
    "fd_fdstat_set_rights",
    "fd_filestat_get",
    "fd_filestat_set_size",
    "fd_filestat_set_times",
    "fd_pread",
    "fd_prestat_dir_name",
    "fd_prestat_get",
    "fd_pwrite",
    "fd_read",
    "fd_readdir",
    "fd_renumber",
    "fd_seek",
    "fd_sync",
    "fd_tell",
    "fd_write",
    "path_create_directory",
    "path_filestat_get",
    "path_filestat_set_times",
    "path_link",
    "path_open",
    "path_readlink",
    "path_remove_directory",
    "path_rename",
    "path_symlink",
    "path_unlink_file",
    "poll_oneoff",
    "proc_exit",
    "random_get",
    "sched_yield",
    "sock_accept",
    "sock_recv",
    "sock_send",
    "sock_shutdown",
];

/// WASI in ngx_wasm_module, beside `proc_exit`.
const NGX_WASI: &[&str] = &[
    "args_get",
    "args_sizes_get",
    "clock_time_get",
    "environ_get",
    "environ_sizes_get",
    "fd_close",
    "fd_fdstat_get",
    "fd_fdstat_set_flags",
    "fd_prestat_dir_name",
    "fd_prestat_get",
    "fd_read",
    "fd_seek",
    "fd_write",
    "path_open",
    "poll_oneoff",
    "random_get",
    "sched_yield",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn import(module: &str, name: &str) -> Import {
        Import { module: module.into(), name: name.into(), signature: String::new() }
    }

    #[test]
    fn every_call_served_here_is_in_the_table() {
        // A call that is added here has to be looked up there.
        let unknown: Vec<_> = crate::hostcalls::abi_calls()
            .filter(|name| {
                let tables = [EVERYWHERE, ENVOY_OTHERS, NGX_ENDS_THE_GUEST, NGX_OTHERS];
                !tables.iter().any(|table| table.contains(name))
            })
            .collect();
        assert_eq!(unknown, Vec::<&str>::new());
    }

    #[test]
    fn hosts_lack_what_their_sources_lack() {
        use Elsewhere::{EndsTheGuest, Missing, There};
        for (host, abi, module, name, expected) in [
            (OtherHost::Envoy, "0.2.1", "env", "proxy_get_log_level", There),
            (OtherHost::Envoy, "0.2.0", "env", "proxy_get_log_level", Missing),
            (OtherHost::Envoy, "0.1.0", "env", "proxy_continue_stream", Missing),
            (OtherHost::Envoy, "0.1.0", "env", "proxy_get_configuration", There),
            (OtherHost::Envoy, "0.2.1", "env", "abort", Missing),
            (OtherHost::Envoy, "0.2.1", "env", "pthread_equal", There),
            (OtherHost::Envoy, "0.2.1", "wasi_snapshot_preview1", "path_filestat_get", There),
            (OtherHost::Envoy, "0.2.1", "wasi_snapshot_preview1", "proc_raise", Missing),
            (OtherHost::Ngx, "0.2.1", "env", "proxy_get_log_level", EndsTheGuest),
            (OtherHost::Ngx, "0.2.1", "env", "proxy_get_header_map_size", Missing),
            (OtherHost::Ngx, "0.2.1", "env", "proxy_http_call", There),
            (OtherHost::Ngx, "0.2.1", "wasi_unstable", "fd_write", Missing),
            (OtherHost::Ngx, "0.2.1", "wasi_snapshot_preview1", "path_filestat_get", Missing),
        ] {
            assert_eq!(host.has(abi, &import(module, name)), expected, "{} {abi} {name}", host.name());
        }
    }
}
