//! The host calls of proxy-wasm 0.2.1.
//!
//! The crate proxy-wasm panics in its wrappers when a host answers anything unexpected, and a panic takes the whole VM with it.
//! What depends on the traffic or the phase (headers, buffers, properties, shared data, metrics) is therefore called directly.
//! The log, local replies, callouts (its dispatcher keeps the book) and foreign functions go through the crate.
#![allow(unsafe_code, reason = "the host calls are foreign functions")]

use std::ptr::null_mut;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use log::Level;
use proxy_wasm::hostcalls;
use proxy_wasm::types::LogLevel;

use super::{Buffer, Direction, Host, Map, MetricKind, Status};

mod sys {
    #[link(wasm_import_module = "env")]
    unsafe extern "C" {
        pub(super) fn proxy_get_current_time_nanoseconds(time: *mut u64) -> u32;
        pub(super) fn proxy_get_log_level(level: *mut u32) -> u32;
        pub(super) fn proxy_get_buffer_bytes(
            kind: u32,
            start: usize,
            max: usize,
            data: *mut *mut u8,
            size: *mut usize,
        ) -> u32;
        pub(super) fn proxy_set_buffer_bytes(
            kind: u32,
            start: usize,
            size: usize,
            data: *const u8,
            length: usize,
        ) -> u32;
        pub(super) fn proxy_get_header_map_pairs(kind: u32, data: *mut *mut u8, size: *mut usize) -> u32;
        pub(super) fn proxy_get_header_map_value(
            kind: u32,
            name: *const u8,
            name_size: usize,
            data: *mut *mut u8,
            size: *mut usize,
        ) -> u32;
        pub(super) fn proxy_replace_header_map_value(
            kind: u32,
            name: *const u8,
            name_size: usize,
            value: *const u8,
            value_size: usize,
        ) -> u32;
        pub(super) fn proxy_add_header_map_value(
            kind: u32,
            name: *const u8,
            name_size: usize,
            value: *const u8,
            value_size: usize,
        ) -> u32;
        pub(super) fn proxy_remove_header_map_value(kind: u32, name: *const u8, name_size: usize) -> u32;
        pub(super) fn proxy_get_property(
            path: *const u8,
            path_size: usize,
            data: *mut *mut u8,
            size: *mut usize,
        ) -> u32;
        pub(super) fn proxy_set_property(path: *const u8, path_size: usize, data: *const u8, size: usize) -> u32;
        pub(super) fn proxy_get_shared_data(
            key: *const u8,
            key_size: usize,
            data: *mut *mut u8,
            size: *mut usize,
            cas: *mut u32,
        ) -> u32;
        pub(super) fn proxy_set_shared_data(
            key: *const u8,
            key_size: usize,
            data: *const u8,
            size: usize,
            cas: u32,
        ) -> u32;
        pub(super) fn proxy_define_metric(kind: u32, name: *const u8, name_size: usize, id: *mut u32) -> u32;
        pub(super) fn proxy_increment_metric(id: u32, offset: i64) -> u32;
        pub(super) fn proxy_record_metric(id: u32, value: u64) -> u32;
    }
}

/// The buffer that holds the plugin's configuration during `proxy_on_configure`.
const PLUGIN_CONFIGURATION: u32 = 7;

/// The real host.
#[derive(Clone, Copy)]
pub(crate) struct Guest;

/// As on other targets a trait object; here the optimiser knows what it is, and calls the functions directly.
#[inline(always)]
pub(crate) fn current() -> &'static dyn Host {
    &Guest
}

impl Guest {
    /// The configuration; only while the plugin is configured.
    pub(crate) fn configuration(self) -> Vec<u8> {
        self.buffer_of(PLUGIN_CONFIGURATION, 0, usize::MAX).unwrap_or_default()
    }

    /// The level the host logs at; info when it does not say.
    pub(crate) fn log_level(self) -> LogLevel {
        let mut level = 0;
        // SAFETY: the host writes four bytes to the pointer.
        let status = unsafe { sys::proxy_get_log_level(&raw mut level) };
        match (status, level) {
            (0, 0) => LogLevel::Trace,
            (0, 1) => LogLevel::Debug,
            (0, 3) => LogLevel::Warn,
            (0, 4) => LogLevel::Error,
            (0, 5) => LogLevel::Critical,
            _ => LogLevel::Info,
        }
    }

    fn buffer_of(self, kind: u32, start: usize, max: usize) -> Option<Vec<u8>> {
        returned(|data, size| {
            // SAFETY: the host writes a pointer and a length to the two pointers.
            unsafe { sys::proxy_get_buffer_bytes(kind, start, max, data, size) }
        })
        .ok()
    }
}

impl Host for Guest {
    fn log(&self, level: Level, message: &str) {
        let level = match level {
            Level::Trace => LogLevel::Trace,
            Level::Debug => LogLevel::Debug,
            Level::Info => LogLevel::Info,
            Level::Warn => LogLevel::Warn,
            Level::Error => LogLevel::Error,
        };
        // There is nobody to tell that the log does not work.
        hostcalls::log(level, message).unwrap_or_default();
    }

    fn now(&self) -> SystemTime {
        let mut nanoseconds = 0;
        // SAFETY: the host writes eight bytes to the pointer.
        unsafe { sys::proxy_get_current_time_nanoseconds(&raw mut nanoseconds) };
        UNIX_EPOCH + Duration::from_nanos(nanoseconds)
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
        serialized.ok().and_then(|bytes| pairs(&bytes)).unwrap_or_default()
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

    fn buffer(&self, buffer: Buffer, start: usize, max: usize) -> Option<Vec<u8>> {
        self.buffer_of(buffer_kind(buffer), start, max)
    }

    fn set_buffer(&self, buffer: Buffer, start: usize, size: usize, bytes: &[u8]) -> Result<(), Status> {
        // SAFETY: the host reads the bytes.
        done(unsafe { sys::proxy_set_buffer_bytes(buffer_kind(buffer), start, size, bytes.as_ptr(), bytes.len()) })
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

    fn call(&self, upstream: &str, headers: &[(&str, &str)], body: &[u8], timeout: Duration) -> Result<u32, Status> {
        let body = if body.is_empty() { None } else { Some(body) };
        hostcalls::dispatch_http_call(upstream, headers.to_vec(), body, Vec::new(), timeout).map_err(status)
    }

    fn resume(&self, direction: Direction) {
        let resumed = match direction {
            Direction::Request => hostcalls::resume_http_request(),
            Direction::Response => hostcalls::resume_http_response(),
        };
        resumed.unwrap_or_else(|status| log::warn!("the {direction:?} could not be resumed: {status:?}"));
    }

    fn reply(&self, status: u16, headers: &[(&str, &str)], body: &[u8]) {
        let body = if body.is_empty() { None } else { Some(body) };
        hostcalls::send_http_response(u32::from(status), headers.to_vec(), body)
            .unwrap_or_else(|refused| log::warn!("the reply {status} was not sent: {refused:?}"));
    }

    fn foreign(&self, name: &str, argument: &[u8]) -> Result<Vec<u8>, Status> {
        hostcalls::call_foreign_function(name, Some(argument)).map(Option::unwrap_or_default).map_err(status)
    }

    fn set_tick_period(&self, period: Duration) {
        hostcalls::set_tick_period(period).unwrap_or_else(|status| log::warn!("the host gives no ticks: {status:?}"));
    }
}

/// Runs a call that returns memory of this guest: allocated by the host through `proxy_on_memory_allocate`, ours from then on.
fn returned(call: impl FnOnce(*mut *mut u8, *mut usize) -> u32) -> Result<Vec<u8>, Status> {
    let mut data = null_mut();
    let mut size = 0;
    done(call(&raw mut data, &raw mut size))?;
    if data.is_null() {
        return Ok(Vec::new());
    }
    // SAFETY: `proxy_on_memory_allocate(size)` made a box of exactly `size` bytes, which the host has filled and handed over.
    Ok(unsafe { Vec::from_raw_parts(data, size, size) })
}

fn done(code: u32) -> Result<(), Status> {
    match code {
        0 => Ok(()),
        1 => Err(Status::NotFound),
        2 => Err(Status::BadArgument),
        8 => Err(Status::CasMismatch),
        code => Err(Status::Failed(code)),
    }
}

fn status(status: proxy_wasm::types::Status) -> Status {
    match done(status as u32) {
        Ok(()) => Status::Failed(0),
        Err(status) => status,
    }
}

fn map_kind(map: Map) -> u32 {
    match map {
        Map::Request => 0,
        Map::Response => 2,
        Map::CallResponse => 6,
    }
}

fn buffer_kind(buffer: Buffer) -> u32 {
    match buffer {
        Buffer::Request => 0,
        Buffer::Response => 1,
        Buffer::CallResponse => 4,
    }
}

/// Reads the map form: a count, a pair of lengths each, then the names and values, each followed by a NUL. `None` when it is cut
/// short.
fn pairs(bytes: &[u8]) -> Option<Vec<(String, Vec<u8>)>> {
    let (count, lengths) = split_u32(bytes)?;
    let mut text = lengths.get(count.checked_mul(8)?..)?;
    let mut lengths = lengths;
    let mut pairs = Vec::with_capacity(count);
    for _ in 0..count {
        let (name_length, rest) = split_u32(lengths)?;
        let (value_length, rest) = split_u32(rest)?;
        lengths = rest;

        let name = text.get(..name_length)?;
        text = text.get(name_length + 1..)?;
        let value = text.get(..value_length)?;
        text = text.get(value_length + 1..)?;
        pairs.push((String::from_utf8_lossy(name).into_owned(), value.to_vec()));
    }
    Some(pairs)
}

fn split_u32(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<4>()?;
    Some((usize::try_from(u32::from_le_bytes(*head)).ok()?, rest))
}
