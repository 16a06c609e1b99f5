//! The host calls of proxy-wasm 0.2.1.
#![allow(unsafe_code, reason = "the host calls are foreign functions")]

use std::cell::Cell;
use std::ptr::null_mut;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use log::{Level, LevelFilter};

use super::{Buffer, Direction, Host, Map, MetricKind, Status, pairs};

#[rustfmt::skip]
mod sys {
    #[link(wasm_import_module = "env")]
    unsafe extern "C" {
        pub(super) fn proxy_log(level: u32, message: *const u8, size: usize) -> u32;
        pub(super) fn proxy_get_log_level(level: *mut u32) -> u32;
        pub(super) fn proxy_get_current_time_nanoseconds(time: *mut u64) -> u32;
        pub(super) fn proxy_set_tick_period_milliseconds(period: u32) -> u32;
        pub(super) fn proxy_set_effective_context(id: u32) -> u32;
        pub(super) fn proxy_get_header_map_pairs(map: u32, data: *mut *mut u8, size: *mut usize) -> u32;
        pub(super) fn proxy_get_header_map_value(map: u32, name: *const u8, name_size: usize, data: *mut *mut u8, size: *mut usize) -> u32;
        pub(super) fn proxy_replace_header_map_value(map: u32, name: *const u8, name_size: usize, value: *const u8, value_size: usize) -> u32;
        pub(super) fn proxy_add_header_map_value(map: u32, name: *const u8, name_size: usize, value: *const u8, value_size: usize) -> u32;
        pub(super) fn proxy_remove_header_map_value(map: u32, name: *const u8, name_size: usize) -> u32;
        pub(super) fn proxy_get_buffer_bytes(buffer: u32, start: usize, max: usize, data: *mut *mut u8, size: *mut usize) -> u32;
        pub(super) fn proxy_set_buffer_bytes(buffer: u32, start: usize, size: usize, data: *const u8, data_size: usize) -> u32;
        pub(super) fn proxy_get_property(path: *const u8, path_size: usize, data: *mut *mut u8, size: *mut usize) -> u32;
        pub(super) fn proxy_set_property(path: *const u8, path_size: usize, data: *const u8, size: usize) -> u32;
        pub(super) fn proxy_get_shared_data(key: *const u8, key_size: usize, data: *mut *mut u8, size: *mut usize, cas: *mut u32) -> u32;
        pub(super) fn proxy_set_shared_data(key: *const u8, key_size: usize, data: *const u8, size: usize, cas: u32) -> u32;
        pub(super) fn proxy_define_metric(kind: u32, name: *const u8, name_size: usize, id: *mut u32) -> u32;
        pub(super) fn proxy_increment_metric(id: u32, offset: i64) -> u32;
        pub(super) fn proxy_record_metric(id: u32, value: u64) -> u32;
        pub(super) fn proxy_continue_stream(stream: u32) -> u32;
        pub(super) fn proxy_send_local_response(
            status: u32, details: *const u8, details_size: usize, body: *const u8, body_size: usize,
            headers: *const u8, headers_size: usize, grpc_status: i32,
        ) -> u32;
        pub(super) fn proxy_http_call(
            upstream: *const u8, upstream_size: usize, headers: *const u8, headers_size: usize, body: *const u8, body_size: usize,
            trailers: *const u8, trailers_size: usize, timeout: u32, token: *mut u32,
        ) -> u32;
        pub(super) fn proxy_grpc_call(
            upstream: *const u8, upstream_size: usize, service: *const u8, service_size: usize, method: *const u8, method_size: usize,
            metadata: *const u8, metadata_size: usize, message: *const u8, message_size: usize, timeout: u32, token: *mut u32,
        ) -> u32;
        pub(super) fn proxy_grpc_cancel(token: u32) -> u32;
        pub(super) fn proxy_get_status(code: *mut u32, data: *mut *mut u8, size: *mut usize) -> u32;
        pub(super) fn proxy_call_foreign_function(
            name: *const u8, name_size: usize, argument: *const u8, argument_size: usize, data: *mut *mut u8, size: *mut usize,
        ) -> u32;
    }
}

mod wasi {
    #[link(wasm_import_module = "wasi_snapshot_preview1")]
    unsafe extern "C" {
        pub(super) fn random_get(bytes: *mut u8, size: usize) -> u16;
        pub(super) fn clock_time_get(clock: u32, precision: u64, time: *mut u64) -> u16;
    }
}

/// The clock of WASI that never goes back.
const MONOTONIC: u32 = 1;

/// The buffer that holds the plugin's configuration during `proxy_on_configure`.
const PLUGIN_CONFIGURATION: u32 = 7;

/// The log level above error, which crate log does not have.
const CRITICAL: u32 = 5;

/// A local reply that is no gRPC answer.
const NO_GRPC_STATUS: i32 = -1;

/// The real host.
#[derive(Clone, Copy)]
pub(crate) struct Guest;

/// As on other targets a trait object; here the optimiser knows what it is, and calls the functions directly.
#[inline(always)]
pub(crate) fn current() -> &'static dyn Host {
    &Guest
}

thread_local! {
    /// Whether the host was asked for its level since the plugin was configured.
    static ASKED: Cell<bool> = const { Cell::new(false) };
}

/// Whether the host writes lines of this level. It is asked when the first line below info is to be written: lines from info up are few and
/// the host's to drop, and there is a host (ngx_wasm_module) that has the question and ends the guest which asks it.
pub(crate) fn wants(level: Level) -> bool {
    if level > Level::Info && !ASKED.replace(true) {
        log::set_max_level(Guest.log_level());
    }
    level <= log::max_level()
}

/// The plugin is configured anew, perhaps because the level is another.
pub(crate) fn forget_level() {
    ASKED.set(false);
    log::set_max_level(LevelFilter::Trace);
}

impl Guest {
    /// The configuration; only while the plugin is configured.
    pub(crate) fn configuration(self) -> Vec<u8> {
        buffer(PLUGIN_CONFIGURATION, 0, usize::MAX).unwrap_or_default()
    }

    /// The level the host logs at; info when it does not say.
    pub(crate) fn log_level(self) -> LevelFilter {
        let mut level = 0;
        // SAFETY: the host writes four bytes to the pointer.
        let code = unsafe { sys::proxy_get_log_level(&raw mut level) };
        match (code, level) {
            (0, 0) => LevelFilter::Trace,
            (0, 1) => LevelFilter::Debug,
            (0, 3) => LevelFilter::Warn,
            (0, 4) => LevelFilter::Error,
            (0, CRITICAL) => LevelFilter::Off,
            _ => LevelFilter::Info,
        }
    }

    /// Logs a panic.
    pub(crate) fn log_critical(self, message: &str) {
        log(CRITICAL, message);
    }

    /// Makes a stream the one that the next host calls are about. `false`: it is gone.
    pub(crate) fn enter(self, id: u32) -> bool {
        // SAFETY: a plain number.
        unsafe { sys::proxy_set_effective_context(id) == 0 }
    }
}

impl Host for Guest {
    fn log(&self, level: Level, message: &str) {
        let level = match level {
            Level::Trace => 0,
            Level::Debug => 1,
            Level::Info => 2,
            Level::Warn => 3,
            Level::Error => 4,
        };
        log(level, message);
    }

    fn now(&self) -> SystemTime {
        let mut nanoseconds = 0;
        // SAFETY: the host writes eight bytes to the pointer.
        unsafe { sys::proxy_get_current_time_nanoseconds(&raw mut nanoseconds) };
        UNIX_EPOCH + Duration::from_nanos(nanoseconds)
    }

    fn monotonic(&self) -> Duration {
        let mut nanoseconds = 0;
        // SAFETY: the host writes eight bytes to the pointer.
        unsafe { wasi::clock_time_get(MONOTONIC, 1, &raw mut nanoseconds) };
        Duration::from_nanos(nanoseconds)
    }

    fn random(&self, bytes: &mut [u8]) -> Result<(), Status> {
        // SAFETY: the host writes as many bytes to the pointer as there are.
        match unsafe { wasi::random_get(bytes.as_mut_ptr(), bytes.len()) } {
            0 => Ok(()),
            errno => Err(Status::Failed(errno.into())),
        }
    }

    fn header(&self, map: Map, name: &str) -> Option<Vec<u8>> {
        returned(|data, size| {
            // SAFETY: the host reads the name and writes a pointer and a length to the two pointers.
            unsafe { sys::proxy_get_header_map_value(map_kind(map), name.as_ptr(), name.len(), data, size) }
        })
        .ok()
    }

    fn headers(&self, map: Map) -> Vec<(String, Vec<u8>)> {
        let serialized = returned(|data, size| {
            // SAFETY: the host writes a pointer and a length to the two pointers.
            unsafe { sys::proxy_get_header_map_pairs(map_kind(map), data, size) }
        });
        serialized.ok().and_then(|bytes| pairs::read(&bytes)).unwrap_or_default()
    }

    fn set_header(&self, map: Map, name: &str, value: &[u8]) -> Result<(), Status> {
        // SAFETY: the host reads the name and the value.
        done(unsafe {
            sys::proxy_replace_header_map_value(map_kind(map), name.as_ptr(), name.len(), value.as_ptr(), value.len())
        })
    }

    fn add_header(&self, map: Map, name: &str, value: &[u8]) -> Result<(), Status> {
        // SAFETY: the host reads the name and the value.
        done(unsafe {
            sys::proxy_add_header_map_value(map_kind(map), name.as_ptr(), name.len(), value.as_ptr(), value.len())
        })
    }

    fn remove_header(&self, map: Map, name: &str) -> Result<(), Status> {
        // SAFETY: the host reads the name.
        match done(unsafe { sys::proxy_remove_header_map_value(map_kind(map), name.as_ptr(), name.len()) }) {
            // Some hosts say so when there was nothing to remove.
            Err(Status::NotFound) => Ok(()),
            result => result,
        }
    }

    fn buffer(&self, which: Buffer, start: usize, max: usize) -> Option<Vec<u8>> {
        buffer(buffer_kind(which), start, max)
    }

    fn set_buffer(&self, which: Buffer, start: usize, size: usize, bytes: &[u8]) -> Result<(), Status> {
        // SAFETY: the host reads the bytes.
        done(unsafe { sys::proxy_set_buffer_bytes(buffer_kind(which), start, size, bytes.as_ptr(), bytes.len()) })
    }

    fn property(&self, path: &[&str]) -> Option<Vec<u8>> {
        let path = path.join("\0");
        returned(|data, size| {
            // SAFETY: the host reads the path and writes a pointer and a length to the two pointers.
            unsafe { sys::proxy_get_property(path.as_ptr(), path.len(), data, size) }
        })
        .ok()
    }

    fn set_property(&self, path: &[&str], value: &[u8]) -> Result<(), Status> {
        let path = path.join("\0");
        // SAFETY: the host reads the path and the value.
        done(unsafe { sys::proxy_set_property(path.as_ptr(), path.len(), value.as_ptr(), value.len()) })
    }

    fn shared(&self, key: &str) -> Option<(Vec<u8>, u32)> {
        let mut cas = 0;
        let value = returned(|data, size| {
            // SAFETY: the host reads the key, and writes a pointer, a length and a version to the three pointers.
            unsafe { sys::proxy_get_shared_data(key.as_ptr(), key.len(), data, size, &raw mut cas) }
        });
        value.ok().map(|value| (value, cas))
    }

    fn set_shared(&self, key: &str, value: &[u8], cas: Option<u32>) -> Result<(), Status> {
        // SAFETY: the host reads the key and the value.
        done(unsafe {
            sys::proxy_set_shared_data(key.as_ptr(), key.len(), value.as_ptr(), value.len(), cas.unwrap_or(0))
        })
    }

    fn define_metric(&self, kind: MetricKind, name: &str) -> Result<u32, Status> {
        let kind = match kind {
            MetricKind::Counter => 0,
            MetricKind::Gauge => 1,
            MetricKind::Histogram => 2,
        };
        let mut id = 0;
        // SAFETY: the host reads the name and writes four bytes to the pointer.
        done(unsafe { sys::proxy_define_metric(kind, name.as_ptr(), name.len(), &raw mut id) })?;
        Ok(id)
    }

    fn increment_metric(&self, id: u32, offset: i64) {
        // SAFETY: plain numbers. A metric that cannot be counted must not stop traffic.
        unsafe { sys::proxy_increment_metric(id, offset) };
    }

    fn record_metric(&self, id: u32, value: u64) {
        // SAFETY: plain numbers. A metric that cannot be recorded must not stop traffic.
        unsafe { sys::proxy_record_metric(id, value) };
    }

    fn call(&self, upstream: &str, headers: &[(&str, &[u8])], body: &[u8], timeout: Duration) -> Result<u32, Status> {
        let headers = pairs::write(headers);
        let trailers = pairs::write(&[]);
        let mut token = 0;
        // SAFETY: the host reads the name, the two maps and the body, and writes four bytes to the last pointer.
        done(unsafe {
            sys::proxy_http_call(
                upstream.as_ptr(),
                upstream.len(),
                headers.as_ptr(),
                headers.len(),
                body.as_ptr(),
                body.len(),
                trailers.as_ptr(),
                trailers.len(),
                milliseconds(timeout),
                &raw mut token,
            )
        })?;
        Ok(token)
    }

    fn grpc_call(
        &self,
        upstream: &str,
        service: &str,
        method: &str,
        metadata: &[(&str, &[u8])],
        message: &[u8],
        timeout: Duration,
    ) -> Result<u32, Status> {
        let metadata = pairs::write(metadata);
        let mut token = 0;
        // SAFETY: the host reads the three names, the map and the message, and writes four bytes to the last pointer.
        done(unsafe {
            sys::proxy_grpc_call(
                upstream.as_ptr(),
                upstream.len(),
                service.as_ptr(),
                service.len(),
                method.as_ptr(),
                method.len(),
                metadata.as_ptr(),
                metadata.len(),
                message.as_ptr(),
                message.len(),
                milliseconds(timeout),
                &raw mut token,
            )
        })?;
        Ok(token)
    }

    fn cancel_grpc(&self, token: u32) {
        // SAFETY: a plain number. A call that is over already needs no more.
        unsafe { sys::proxy_grpc_cancel(token) };
    }

    fn call_status(&self) -> Option<String> {
        let mut code = 0;
        let said = returned(|data, size| {
            // SAFETY: the host writes four bytes to the first pointer, and a pointer and a length to the others.
            unsafe { sys::proxy_get_status(&raw mut code, data, size) }
        });
        String::from_utf8(said.ok()?).ok().filter(|_| code != 0)
    }

    fn resume(&self, direction: Direction) {
        let stream = match direction {
            Direction::Request => 0,
            Direction::Response => 1,
        };
        // SAFETY: a plain number.
        done(unsafe { sys::proxy_continue_stream(stream) })
            .unwrap_or_else(|status| log::warn!("the {direction:?} could not be resumed: {status}"));
    }

    fn reply(&self, status: u16, headers: &[(&str, &[u8])], body: &[u8]) {
        reply(status, headers, body, NO_GRPC_STATUS);
    }

    fn reply_grpc(&self, status: u16, headers: &[(&str, &[u8])], body: &[u8], grpc_status: u8) {
        reply(status, headers, body, i32::from(grpc_status));
    }

    fn foreign(&self, name: &str, argument: &[u8]) -> Result<Vec<u8>, Status> {
        returned(|data, size| {
            // SAFETY: the host reads the name and the argument, and writes a pointer and a length to the two pointers.
            unsafe {
                sys::proxy_call_foreign_function(
                    name.as_ptr(),
                    name.len(),
                    argument.as_ptr(),
                    argument.len(),
                    data,
                    size,
                )
            }
        })
    }

    fn set_tick_period(&self, period: Duration) {
        // SAFETY: a plain number.
        done(unsafe { sys::proxy_set_tick_period_milliseconds(milliseconds(period)) })
            .unwrap_or_else(|status| log::warn!("the host gives no ticks: {status}"));
    }
}

fn reply(status: u16, headers: &[(&str, &[u8])], body: &[u8], grpc_status: i32) {
    let headers = pairs::write(headers);
    // SAFETY: the host reads the body and the map; the details are empty.
    done(unsafe {
        sys::proxy_send_local_response(
            u32::from(status),
            [].as_ptr(),
            0,
            body.as_ptr(),
            body.len(),
            headers.as_ptr(),
            headers.len(),
            grpc_status,
        )
    })
    .unwrap_or_else(|refused| log::warn!("the reply {status} was not sent: {refused}"));
}

fn log(level: u32, message: &str) {
    // SAFETY: the host reads the message. There is nobody to tell when the log does not work.
    unsafe { sys::proxy_log(level, message.as_ptr(), message.len()) };
}

fn buffer(kind: u32, start: usize, max: usize) -> Option<Vec<u8>> {
    returned(|data, size| {
        // SAFETY: the host writes a pointer and a length to the two pointers.
        unsafe { sys::proxy_get_buffer_bytes(kind, start, max, data, size) }
    })
    .ok()
}

/// Runs a call that returns memory of this guest: allocated by the host through `proxy_on_memory_allocate`, ours from then on.
fn returned(call: impl FnOnce(*mut *mut u8, *mut usize) -> u32) -> Result<Vec<u8>, Status> {
    let mut data = null_mut();
    let mut size = 0;
    done(call(&raw mut data, &raw mut size))?;
    if data.is_null() || size == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: `proxy_on_memory_allocate(size)` made a box of exactly `size` bytes, which the host has filled and handed over.
    Ok(unsafe { Vec::from_raw_parts(data, size, size) })
}

#[inline(always)]
fn done(code: u32) -> Result<(), Status> {
    if code == 0 { Ok(()) } else { Err(failure(code)) }
}

#[cold]
fn failure(code: u32) -> Status {
    match code {
        1 => Status::NotFound,
        2 => Status::BadArgument,
        8 => Status::CasMismatch,
        code => Status::Failed(code),
    }
}

/// At least one: 0 means "no ticks" or "the host's own limit".
fn milliseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX).max(1)
}

fn map_kind(map: Map) -> u32 {
    match map {
        Map::Request => 0,
        Map::RequestTrailers => 1,
        Map::Response => 2,
        Map::ResponseTrailers => 3,
        Map::CallResponse => 6,
    }
}

fn buffer_kind(buffer: Buffer) -> u32 {
    match buffer {
        Buffer::Request => 0,
        Buffer::Response => 1,
        Buffer::CallResponse => 4,
        Buffer::GrpcMessage => 5,
    }
}
