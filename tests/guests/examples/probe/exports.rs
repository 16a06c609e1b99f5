//! The allocator and the callbacks that are the same in every version of the ABI.

#[unsafe(no_mangle)]
extern "C" fn proxy_on_memory_allocate(size: u32) -> u32 {
    crate::interpreter::allocate(size)
}

/// Callbacks of the form `name(context, further arguments)`; those with a result get a default for it.
macro_rules! callbacks {
    ($($export:ident => $name:literal ($($argument:ident),*) $(-> $default:literal)?;)*) => {
        $($crate::exports::callbacks!(@one $export, $name, ($($argument),*) $(, $default)?);)*
    };
    (@one $export:ident, $name:literal, ($($argument:ident),*)) => {
        #[unsafe(no_mangle)]
        extern "C" fn $export(context: u32 $(, $argument: u32)*) {
            $crate::interpreter::run($crate::call, $name, context, &[$($argument),*], 0);
        }
    };
    (@one $export:ident, $name:literal, ($($argument:ident),*), $default:literal) => {
        #[unsafe(no_mangle)]
        extern "C" fn $export(context: u32 $(, $argument: u32)*) -> u32 {
            $crate::interpreter::run($crate::call, $name, context, &[$($argument),*], $default)
        }
    };
}
pub(crate) use callbacks;

callbacks! {
    proxy_on_context_create => "context_create" (parent);
    proxy_on_vm_start => "vm_start" (size) -> 1;
    proxy_on_configure => "configure" (size) -> 1;
    proxy_on_tick => "tick" ();
    proxy_on_queue_ready => "queue_ready" (queue);
    proxy_on_request_body => "request_body" (size, end) -> 0;
    proxy_on_request_trailers => "request_trailers" (count) -> 0;
    proxy_on_response_body => "response_body" (size, end) -> 0;
    proxy_on_response_trailers => "response_trailers" (count) -> 0;
    proxy_on_http_call_response => "http_call_response" (id, headers, size, trailers);
    proxy_on_grpc_receive_initial_metadata => "grpc_receive_initial_metadata" (id, count);
    proxy_on_grpc_receive => "grpc_receive" (id, size);
    proxy_on_grpc_receive_trailing_metadata => "grpc_receive_trailing_metadata" (id, count);
    proxy_on_grpc_close => "grpc_close" (id, status);
    proxy_on_foreign_function => "foreign_function" (function, size);
    proxy_on_new_connection => "new_connection" () -> 0;
    proxy_on_downstream_data => "downstream_data" (size, end) -> 0;
    proxy_on_upstream_data => "upstream_data" (size, end) -> 0;
    proxy_on_downstream_connection_close => "downstream_connection_close" (peer);
    proxy_on_upstream_connection_close => "upstream_connection_close" (peer);
    proxy_on_done => "done" () -> 1;
    proxy_on_log => "log" ();
    proxy_on_delete => "delete" ();
}
