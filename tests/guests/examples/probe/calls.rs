//! The hostcalls, by name and with their arguments as plain numbers.

/// Declares hostcalls and `versioned(name, words)`, which makes the one of that name (without `proxy_`), when there is one and the
/// number of words is right.
macro_rules! calls {
    ($($name:ident($($argument:ident: $ty:ty),*);)*) => {
        unsafe extern "C" {
            $(fn $name($($argument: $ty),*) -> i32;)*
        }

        fn versioned(name: &str, words: &[i64]) -> Option<i32> {
            $(if stringify!($name).strip_prefix("proxy_") == Some(name) {
                let mut words = words.iter().copied();
                $(let $argument = words.next()? as $ty;)*
                // SAFETY: the host is to check every number it gets; that it does is what is being tested.
                return words.next().is_none().then(|| unsafe { $name($($argument),*) });
            })*
            None
        }
    };
}
pub(crate) use calls;

calls! {
    proxy_log(level: i32, text: i32, len: i32);
    proxy_get_current_time_nanoseconds(out: i32);
    proxy_set_tick_period_milliseconds(period: i32);
    proxy_get_buffer_bytes(buffer: i32, start: i32, max: i32, out: i32, out_len: i32);
    proxy_set_buffer_bytes(buffer: i32, start: i32, len: i32, data: i32, data_len: i32);
    proxy_get_buffer_status(buffer: i32, out_len: i32, out_flags: i32);
    proxy_get_header_map_pairs(map: i32, out: i32, out_len: i32);
    proxy_set_header_map_pairs(map: i32, pairs: i32, len: i32);
    proxy_get_header_map_size(map: i32, out: i32);
    proxy_get_header_map_value(map: i32, name: i32, name_len: i32, out: i32, out_len: i32);
    proxy_add_header_map_value(map: i32, name: i32, name_len: i32, value: i32, value_len: i32);
    proxy_replace_header_map_value(map: i32, name: i32, name_len: i32, value: i32, value_len: i32);
    proxy_remove_header_map_value(map: i32, name: i32, name_len: i32);
    proxy_get_status(out_code: i32, out: i32, out_len: i32);
    proxy_send_local_response(
        status: i32, details: i32, details_len: i32, body: i32, body_len: i32, headers: i32, headers_len: i32, grpc: i32
    );
    proxy_http_call(
        upstream: i32, upstream_len: i32, headers: i32, headers_len: i32, body: i32, body_len: i32, trailers: i32,
        trailers_len: i32, timeout: i32, out: i32
    );
    proxy_grpc_call(
        upstream: i32, upstream_len: i32, service: i32, service_len: i32, method: i32, method_len: i32, metadata: i32,
        metadata_len: i32, message: i32, message_len: i32, timeout: i32, out: i32
    );
    proxy_grpc_stream(
        upstream: i32, upstream_len: i32, service: i32, service_len: i32, method: i32, method_len: i32, metadata: i32,
        metadata_len: i32, out: i32
    );
    proxy_grpc_send(id: i32, message: i32, message_len: i32, end: i32);
    proxy_grpc_cancel(id: i32);
    proxy_grpc_close(id: i32);
    proxy_set_shared_data(key: i32, key_len: i32, value: i32, value_len: i32, cas: i32);
    proxy_get_shared_data(key: i32, key_len: i32, out: i32, out_len: i32, out_cas: i32);
    proxy_register_shared_queue(name: i32, name_len: i32, out: i32);
    proxy_resolve_shared_queue(vm: i32, vm_len: i32, name: i32, name_len: i32, out: i32);
    proxy_enqueue_shared_queue(id: i32, data: i32, len: i32);
    proxy_dequeue_shared_queue(id: i32, out: i32, out_len: i32);
    proxy_define_metric(kind: i32, name: i32, name_len: i32, out: i32);
    proxy_record_metric(id: i32, value: i64);
    proxy_increment_metric(id: i32, delta: i64);
    proxy_get_metric(id: i32, out: i32);
    proxy_get_property(path: i32, path_len: i32, out: i32, out_len: i32);
    proxy_set_property(path: i32, path_len: i32, value: i32, value_len: i32);
    proxy_call_foreign_function(name: i32, name_len: i32, arguments: i32, arguments_len: i32, out: i32, out_len: i32);
    proxy_set_effective_context(context: i32);
    proxy_done();
}

/// WASI, under its own names: results are its error numbers.
mod wasi {
    #[link(wasm_import_module = "wasi_snapshot_preview1")]
    unsafe extern "C" {
        safe fn fd_write(fd: i32, pieces: i32, count: i32, out: i32) -> i32;
        safe fn clock_time_get(clock: i32, precision: i64, out: i32) -> i32;
        safe fn random_get(out: i32, len: i32) -> i32;
        safe fn environ_sizes_get(count: i32, size: i32) -> i32;
        safe fn environ_get(list: i32, bytes: i32) -> i32;
        safe fn args_sizes_get(count: i32, size: i32) -> i32;
        safe fn args_get(list: i32, bytes: i32) -> i32;
    }

    pub(super) fn call(name: &str, words: &[i64]) -> Option<i32> {
        let int = |index: usize| words[index] as i32;
        Some(match (name, words.len()) {
            ("fd_write", 4) => fd_write(int(0), int(1), int(2), int(3)),
            ("clock_time_get", 3) => clock_time_get(int(0), words[1], int(2)),
            ("random_get", 2) => random_get(int(0), int(1)),
            ("environ_sizes_get", 2) => environ_sizes_get(int(0), int(1)),
            ("environ_get", 2) => environ_get(int(0), int(1)),
            ("args_sizes_get", 2) => args_sizes_get(int(0), int(1)),
            ("args_get", 2) => args_get(int(0), int(1)),
            _ => return None,
        })
    }
}

/// Makes a hostcall that every version of the ABI has, or a call of WASI.
pub(crate) fn common(name: &str, words: &[i64]) -> Option<i32> {
    versioned(name, words).or_else(|| wasi::call(name, words))
}
