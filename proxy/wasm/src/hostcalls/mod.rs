//! The host side of the ABI: what guests import. One table, one file per subject.

mod buffers;
mod callouts;
mod control;
mod explain;
mod foreign;
mod grpc;
mod headers;
mod log;
mod metrics;
mod properties;
mod queues;
mod runtimes;
mod shared_data;
pub(crate) mod wasi;

use std::time::Instant;

use wasmtime::{Caller, Engine, ExternType, Linker, Module};

use crate::abi::memory::Guest;
use crate::abi::status::{Called, Fail, Status};
use crate::exchange::Exchange;
use crate::vm::State;

/// Makes the table of served calls: their names, and their registration.
macro_rules! serve {
    ($($name:literal => $body:path, ($($argument:ident: $type:ty),*);)*) => {
        /// The calls of module `env`: all of the ABI.
        const SERVED: &[&str] = &[$($name),*];

        fn serve(linker: &mut Linker<State>) -> wasmtime::Result<()> {
            $(linker.func_wrap("env", $name, |mut guest: Caller<'_, State>, $($argument: $type),*| {
                let arguments = || explain::Arguments(vec![$((stringify!($argument), i128::from($argument))),*]);
                answer(&mut guest, $name, arguments, |guest| $body(guest, $($argument),*))
            })?;)*
            Ok(())
        }
    };
}

serve! {
    "proxy_log" => log::log, (level: u32, ptr: u32, len: u32);
    "proxy_get_log_level" => log::get_log_level, (out: u32);

    "proxy_get_header_map_value" => headers::get, (map: u32, name: u32, name_len: u32, out_ptr: u32, out_len: u32);
    "proxy_get_header_map_pairs" => headers::get_all, (map: u32, out_ptr: u32, out_len: u32);
    "proxy_get_header_map_size" => headers::size, (map: u32, out: u32);
    "proxy_set_header_map_pairs" => headers::set_all, (map: u32, ptr: u32, len: u32);
    "proxy_add_header_map_value" => headers::add, (map: u32, name: u32, name_len: u32, value: u32, value_len: u32);
    "proxy_replace_header_map_value" => headers::replace, (map: u32, name: u32, name_len: u32, value: u32, value_len: u32);
    "proxy_remove_header_map_value" => headers::remove, (map: u32, name: u32, name_len: u32);

    "proxy_get_buffer_bytes" => buffers::get, (buffer: u32, start: u32, max: u32, out_ptr: u32, out_len: u32);
    "proxy_get_buffer_status" => buffers::status, (buffer: u32, out_len: u32, out_flags: u32);
    "proxy_get_configuration" => buffers::configuration, (out_ptr: u32, out_len: u32);
    "proxy_set_buffer_bytes" => buffers::set, (buffer: u32, start: u32, len: u32, ptr: u32, data_len: u32);

    "proxy_get_property" => properties::get, (path: u32, path_len: u32, out_ptr: u32, out_len: u32);
    "proxy_set_property" => properties::set, (path: u32, path_len: u32, ptr: u32, len: u32);

    "proxy_get_shared_data" => shared_data::get, (key: u32, key_len: u32, out_ptr: u32, out_len: u32, out_cas: u32);
    "proxy_set_shared_data" => shared_data::set, (key: u32, key_len: u32, value: u32, value_len: u32, cas: u32);

    "proxy_register_shared_queue" => queues::register, (name: u32, name_len: u32, out_id: u32);
    "proxy_resolve_shared_queue" => queues::resolve,
        (vm_id: u32, vm_id_len: u32, name: u32, name_len: u32, out_id: u32);
    "proxy_enqueue_shared_queue" => queues::enqueue, (id: u32, ptr: u32, len: u32);
    "proxy_dequeue_shared_queue" => queues::dequeue, (id: u32, out_ptr: u32, out_len: u32);

    "proxy_define_metric" => metrics::define, (kind: u32, name: u32, name_len: u32, out_id: u32);
    "proxy_get_metric" => metrics::get, (id: u32, out: u32);
    "proxy_record_metric" => metrics::record, (id: u32, value: u64);
    "proxy_increment_metric" => metrics::increment, (id: u32, delta: i64);

    "proxy_http_call" => callouts::http_call,
        (upstream: u32, upstream_len: u32, headers: u32, headers_len: u32, body: u32, body_len: u32,
         trailers: u32, trailers_len: u32, timeout_ms: u32, out_id: u32);
    "proxy_grpc_call" => grpc::call,
        (upstream: u32, upstream_len: u32, service: u32, service_len: u32, method: u32, method_len: u32,
         metadata: u32, metadata_len: u32, message: u32, message_len: u32, timeout_ms: u32, out_id: u32);
    "proxy_grpc_stream" => grpc::stream,
        (upstream: u32, upstream_len: u32, service: u32, service_len: u32, method: u32, method_len: u32,
         metadata: u32, metadata_len: u32, out_id: u32);
    "proxy_grpc_send" => grpc::send, (id: u32, message: u32, message_len: u32, end: u32);
    "proxy_grpc_close" => grpc::close, (id: u32);
    "proxy_grpc_cancel" => grpc::cancel, (id: u32);
    "proxy_get_status" => callouts::get_status, (out_code: u32, out_ptr: u32, out_len: u32);
    "proxy_call_foreign_function" => foreign::call,
        (name: u32, name_len: u32, args: u32, args_len: u32, out_ptr: u32, out_len: u32);

    "proxy_send_local_response" => control::send_local_response,
        (status: u32, details: u32, details_len: u32, body: u32, body_len: u32, headers: u32, headers_len: u32, grpc_status: u32);
    "proxy_continue_stream" => control::continue_stream, (stream: u32);
    "proxy_continue_request" => control::continue_request, ();
    "proxy_continue_response" => control::continue_response, ();
    "proxy_clear_route_cache" => control::clear_route_cache, ();
    "proxy_close_stream" => control::close_stream, (stream: u32);
    "proxy_set_effective_context" => control::set_effective_context, (context: u32);
    "proxy_set_tick_period_milliseconds" => control::set_tick_period, (period: u32);
    "proxy_get_current_time_nanoseconds" => control::current_time, (out: u32);
    "proxy_done" => control::done, ();
}

/// The calls of the ABI.
#[cfg(test)]
pub(crate) fn abi_calls() -> impl Iterator<Item = &'static str> {
    SERVED.iter().copied()
}

/// Whether a module may import this function.
pub(crate) fn knows(module: &str, name: &str) -> bool {
    match module {
        "env" => SERVED.contains(&name) || runtimes::SERVED.contains(&name),
        _ => wasi::is_module(module),
    }
}

/// A linker with everything `module` may import.
pub(crate) fn linker(engine: &Engine, module: &Module) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    serve(&mut linker)?;
    runtimes::serve(&mut linker)?;
    wasi::serve(&mut linker)?;

    linker.allow_shadowing(true); // a module may import the same function twice
    for import in module.imports() {
        let ExternType::Func(ty) = import.ty() else { continue };
        if wasi::is_module(import.module()) && !wasi::knows(import.name()) {
            wasi::link_unknown(&mut linker, import.module(), import.name(), ty)?;
        }
    }
    Ok(linker)
}

/// The code a guest exited with, when that is what ended its call.
pub(crate) fn exit_code(error: &wasmtime::Error) -> Option<u32> {
    wasi::exit_code(error)
}

/// Runs a hostcall's body and turns its end into what the guest gets.
fn answer(
    guest: &mut Guest<'_>,
    call: &'static str,
    arguments: impl Fn() -> explain::Arguments,
    body: impl FnOnce(&mut Guest<'_>) -> Called,
) -> wasmtime::Result<u32> {
    guest.data_mut().spend_hostcall()?;
    let began = guest.data().trace.is_some().then(Instant::now);
    let result = body(guest);
    if let Some(began) = began {
        explain::trace(guest, call, &arguments(), began, &result);
    }
    match result {
        Ok(()) => Ok(Status::Ok.code()),
        Err(Fail::Status(status)) => Ok(explain::refused(guest, call, &arguments, status, status.usual_reason())),
        Err(Fail::Because(status, reason)) => Ok(explain::refused(guest, call, &arguments, status, reason)),
        Err(Fail::Trap(error)) => Err(error),
    }
}

/// Runs `body` with the exchange, out of reach of any other hostcall meanwhile. `None` when the effective context has no exchange now.
fn with_exchange<T>(
    guest: &mut Guest<'_>,
    body: impl FnOnce(&mut Guest<'_>, &mut dyn Exchange) -> Called<T>,
) -> Called<Option<T>> {
    let Some(mut exchange) = guest.data_mut().take_exchange() else { return Ok(None) };
    let result = body(guest, exchange.as_mut());
    guest.data_mut().put_exchange(exchange);
    result.map(Some)
}
