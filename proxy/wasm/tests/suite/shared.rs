//! Shared data as guests and the embedder see it together.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::fakes::*;
use selvedge_wasm::*;

/// A host whose shared data expires by a clock of the test.
fn host() -> (Arc<FakeHost>, impl Fn(Duration)) {
    let now = Arc::new(Mutex::new(Instant::now()));
    let clock = now.clone();
    let shared = SharedData::with(SharedDataLimits::default(), move || *clock.lock());
    (Arc::new(FakeHost { shared, ..FakeHost::default() }), move |by| *now.lock() += by)
}

fn count(plugin: &Arc<Plugin>) -> String {
    let (mut stream, mut x) = (plugin.open_stream(0).unwrap(), FakeExchange::get("/"));
    stream.on_request_headers(&mut x, true).unwrap();
    x.respond();
    stream.on_response_headers(&mut x, true).unwrap();
    x.text(HeaderMap::Response, "x-count").unwrap()
}

#[test]
fn a_guest_counts_on_from_what_the_embedder_incremented_and_anew_from_what_it_deleted() {
    let (host, _) = host();
    let module = Module::load(&engine(), "shared", &guest_wasm("shared")).unwrap();
    let plugin = Plugin::start(module, options(""), host.clone()).unwrap();
    assert_eq!((count(&plugin), count(&plugin)), ("1".into(), "2".into()));
    assert_eq!(host.shared.increment("vm", b"count", 40, 0, None), Ok(42));
    assert_eq!(count(&plugin), "43");
    assert!(host.shared.delete("vm", b"count"));
    assert_eq!(count(&plugin), "1");
}

#[test]
fn what_has_expired_is_not_there_for_a_guest() {
    let (host, pass) = host();
    let module = Module::load(&engine(), "shared", &guest_wasm("shared")).unwrap();
    let plugin = Plugin::start(module, options(""), host.clone()).unwrap();
    let ttl = Some(Duration::from_secs(60));
    host.shared.set_with_ttl("vm", b"count", &7u64.to_le_bytes(), 0, ttl).unwrap();
    pass(Duration::from_secs(60));
    assert_eq!(count(&plugin), "1");
}
