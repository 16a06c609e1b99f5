//! How streams share VMs: workers, pools, an instance of one's own, snapshots.

use std::num::NonZeroU8;
use std::time::Duration;

use super::callouts::{CALL, HTTP_CALL, PSEUDO};
use super::fakes::*;
use selvedge_wasm::*;

/// Counts its streams in a global and in memory, which start at what `proxy_on_configure` leaves there, and says both in a header of the
/// response: the status of a local reply is 200 + the count.
fn counter() -> Vec<u8> {
    wat(
        r#"(import "env" "proxy_send_local_response" (func $reply (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))"#,
        "i32.const 16384",
        r#"(global $count (mut i32) (i32.const 0))
           (func (export "proxy_on_configure") (param i32 i32) (result i32)
             (global.set $count (i32.const 100))
             (i32.store (i32.const 1000) (i32.const 100))
             (i32.const 1))
           (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
             (global.set $count (i32.add (global.get $count) (i32.const 1)))
             (i32.store (i32.const 1000) (i32.add (i32.load (i32.const 1000)) (i32.const 1)))
             (if (i32.ne (global.get $count) (i32.load (i32.const 1000))) (then unreachable))
             (drop (call $reply (i32.add (i32.const 100) (global.get $count))
               (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1)))
             (i32.const 0))"#,
    )
}

fn isolated(isolation: Isolation, snapshot: Snapshots) -> PluginOptions {
    PluginOptions { isolation, snapshot, ..options("") }
}

/// What a new stream counts.
fn count(rig: &Rig) -> u16 {
    counted(&mut rig.stream())
}

fn counted(stream: &mut Stream) -> u16 {
    let outcome = stream.on_request_headers(&mut FakeExchange::get("/"), true).unwrap();
    outcome.effects.reply.unwrap().status - 200
}

#[test]
fn streams_of_one_worker_share_its_vm() {
    let rig = try_start(&counter(), isolated(Isolation::Worker, Snapshots::Auto)).unwrap();
    assert_eq!([count(&rig), count(&rig), count(&rig)], [1, 2, 3]);
    assert_eq!(counted(&mut rig.plugin.open_stream(1).unwrap()), 1, "another worker has its own");
}

#[test]
fn with_an_instance_of_its_own_no_stream_sees_another() {
    for snapshot in [Snapshots::Auto, Snapshots::Always, Snapshots::Never] {
        let rig = try_start(&counter(), isolated(Isolation::Request, snapshot)).unwrap();
        assert_eq!(rig.plugin.is_snapshot(), snapshot == Snapshots::Always, "{snapshot:?}");
        assert_eq!([count(&rig), count(&rig), count(&rig)], [1, 1, 1], "{snapshot:?}");
        let mut open: Vec<Stream> = (0..50).map(|_| rig.stream()).collect();
        assert!(open.iter_mut().all(|stream| counted(stream) == 1), "{snapshot:?}");
    }
}

/// A linker puts every function that is ever called through a pointer into the table: mainline Go's puts all of them, 20 000 in a filter
/// the size of a web application firewall.
#[test]
fn a_guest_of_many_functions_starts_in_every_isolation() {
    let large = wat("", "i32.const 16384", "(table 60000 funcref)");
    for isolation in [Isolation::Worker, Isolation::Pool(NonZeroU8::MIN), Isolation::Request] {
        let rig = try_start(&large, isolated(isolation, Snapshots::Auto)).unwrap();
        rig.stream().on_request_headers(&mut FakeExchange::get("/"), true).unwrap();
    }
}

/// Go's linker makes as many pieces of a program's data as an engine takes, which leaves no room for those of a snapshot.
#[test]
fn a_guest_of_many_data_segments_has_a_snapshot() {
    let pieces = "(data (i32.const 2000) \"\\2a\")".repeat(100_000);
    let large = wat(
        r#"(import "env" "proxy_send_local_response" (func $reply (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))"#,
        "i32.const 16384",
        &format!(
            r#"(func (export "proxy_on_configure") (param i32 i32) (result i32)
                 (i32.store (i32.const 1000) (i32.const 300))
                 (i32.const 1))
               (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
                 (drop (call $reply (i32.add (i32.load (i32.const 1000)) (i32.load (i32.const 2000)))
                   (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1)))
                 (i32.const 0))
               {pieces}"#
        ),
    );
    let rig = try_start(&large, isolated(Isolation::Request, Snapshots::Always)).unwrap();
    assert!(rig.plugin.is_snapshot());
    assert_eq!([count(&rig), count(&rig)], [142, 142], "what the module brings, and what configuring it has left");
}

#[test]
fn streams_spread_over_a_pool() {
    let rig = try_start(&counter(), isolated(Isolation::Pool(NonZeroU8::new(3).unwrap()), Snapshots::Auto)).unwrap();
    let mut open: Vec<Stream> = (0..6).map(|_| rig.stream()).collect();
    let mut counts: Vec<u16> = open.iter_mut().map(counted).collect();
    counts.sort_unstable();
    assert_eq!(counts, [1, 1, 1, 2, 2, 2]);
    drop(open);
    assert!(count(&rig) == 3, "no more than three VMs are made");
}

#[test]
fn a_trap_costs_the_streams_of_its_instance_and_no_other() {
    for (isolation, survivors) in
        [(Isolation::Worker, 0), (Isolation::Pool(NonZeroU8::new(2).unwrap()), 2), (Isolation::Request, 3)]
    {
        let rig = try_start(&guest_wasm("trap"), PluginOptions { isolation, ..options("request_headers") }).unwrap();
        let mut open: Vec<Stream> = (0..4).map(|_| rig.stream()).collect();
        open[0].on_request_headers(&mut FakeExchange::get("/"), true).unwrap_err();
        let mut x = FakeExchange::get("/");
        x.respond();
        let alive = open[1..].iter_mut().filter_map(|stream| stream.on_response_headers(&mut x, true).ok()).count();
        assert_eq!(alive, survivors, "{isolation:?}");
        rig.stream();
    }
}

#[test]
fn a_module_that_cannot_be_snapshot_says_so_or_starts_anew() {
    let wasm = wat(
        "",
        "i32.const 0",
        r#"(table $t 1 funcref)
           (func (export "proxy_on_configure") (param i32 i32) (result i32)
             (table.set $t (i32.const 0) (ref.null func)) (i32.const 1))"#,
    );
    let error = try_start(&wasm, isolated(Isolation::Request, Snapshots::Always)).err().unwrap();
    assert!(error.to_string().contains("table.set"), "{error}");
    let rig = try_start(&wasm, isolated(Isolation::Request, Snapshots::Auto)).unwrap();
    assert!(!rig.plugin.is_snapshot());
    rig.stream();
}

#[test]
fn a_real_filter_runs_from_its_snapshot() {
    let rig = try_start(
        &guest_wasm("callout"),
        PluginOptions {
            isolation: Isolation::Request,
            snapshot: Snapshots::Always,
            ..options("request_headers auth /check")
        },
    )
    .unwrap();
    assert!(rig.plugin.is_snapshot());
    for _ in 0..3 {
        let (mut stream, mut x) = (rig.stream(), FakeExchange::get("/"));
        let outcome = stream.on_request_headers(&mut x, true).unwrap();
        assert_eq!((outcome.action, outcome.effects.outgoing.len()), (Action::Pause, 1));
        let Some(Outgoing::Http(callout)) = outcome.effects.outgoing.into_iter().next() else { panic!("no call") };
        let outcome = stream.on_arrival(&mut x, Arrival::Http(callout.id, Ok(answer()))).unwrap();
        assert!(outcome.effects.resume_request);
        assert_eq!(x.text(HeaderMap::Request, "x-callout").as_deref(), Some("200:5"));
        stream.finish(&mut x).unwrap();
    }
}

#[test]
fn what_a_guest_asks_for_that_its_worker_has_not_is_told() {
    let engine = Engine::new(EngineOptions { instances: 2, ..EngineOptions::default() }).unwrap();
    let module = Module::load(&engine, "test", &counter()).unwrap();
    let host = std::sync::Arc::new(FakeHost::default());
    let plugin = Plugin::start(module, isolated(Isolation::Request, Snapshots::Never), host).unwrap();
    let open = [plugin.open_stream(0).unwrap(), plugin.open_stream(0).unwrap()];
    assert_eq!(plugin.open_stream(0).unwrap_err(), CallError::Exhausted);
    drop(open);
    plugin.open_stream(0).unwrap();
}

#[tokio::test]
async fn a_call_made_while_an_instance_ends_is_still_sent() {
    let wasm = wat(
        HTTP_CALL,
        "i32.const 0",
        &format!(
            r#"{PSEUDO}
            (func (export "proxy_on_log") (param i32) (if {CALL} (then unreachable)))"#
        ),
    );
    let rig = try_start(&wasm, isolated(Isolation::Request, Snapshots::Auto)).unwrap();
    let _root = tokio::spawn(rig.plugin.tick_loop(0));
    rig.stream().finish(&mut FakeExchange::get("/")).unwrap();
    eventually("the report", || rig.host.calls.lock().iter().any(|call| call.upstream == "auth")).await;
}

/// While a call burns its budget, the worker's other tasks go on, other streams of the plugin get another VM, and the stream that shares
/// the busy one is told to come back.
#[test]
fn a_call_that_burns_its_budget_holds_up_nobody_else() {
    let limits = Limits { cpu: Duration::from_millis(400), ..options("").limits };
    let rig = try_start(&guest_wasm("spin"), PluginOptions { limits, ..options("request_headers") }).unwrap();
    let worker = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut neighbour = rig.stream();
    let plugin = rig.plugin.clone();
    let burning = worker.spawn(async move {
        plugin.open_stream(0).unwrap().on_request_headers(&mut FakeExchange::get("/"), true).unwrap_err()
    });
    let plugin = rig.plugin.clone();
    let others = worker.spawn(async move {
        let mut x = FakeExchange::get("/");
        x.respond();
        let mut busy = 0;
        while !matches!(neighbour.on_response_headers(&mut x, true), Err(CallError::Poisoned)) {
            // The runtime has one worker: that this runs while the VM is busy says that the worker was handed on.
            busy += 1;
            match plugin.open_stream(0) {
                Ok(mut other) => drop(other.on_response_headers(&mut x, true).unwrap()),
                Err(error) => {
                    assert_eq!(error, CallError::Busy, "when a start takes long, as it may on a machine that is busy")
                }
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        busy
    });
    let (error, busy) = worker.block_on(async { (burning.await.unwrap(), others.await.unwrap()) });
    assert_eq!(error, CallError::Cpu { callback: "proxy_on_request_headers", limit: Duration::from_millis(400) });
    // One that holds the worker lets them run before it begins, at most. How often they run is a matter of how busy the machine is.
    assert!(busy > 3, "others ran {busy} times while it burnt 400 ms");
}
