//! Shared queues: from one plugin to another, in order, told of on the consumer's own loop.

use std::sync::Arc;

use super::fakes::*;
use selvedge_wasm::*;

fn start(host: &Arc<FakeHost>, name: &str, config: &str, limits: Limits) -> Arc<Plugin> {
    let module = Module::load(&engine(), "queue", &guest_wasm("queue")).unwrap();
    let options = PluginOptions { name: name.into(), vm_id: name.into(), limits, workers: 1, ..options(config) };
    Plugin::start(module, options, host.clone()).unwrap()
}

fn roomy() -> Limits {
    options("").limits
}

/// Sends a request that enqueues, and returns what came of each item.
fn enqueue(plugin: &Arc<Plugin>, items: &str) -> String {
    let (mut stream, mut x) = (plugin.open_stream(0).unwrap(), FakeExchange::get("/"));
    x.add_header(HeaderMap::Request, b"x-enqueue", items.as_bytes()).unwrap();
    stream.on_request_headers(&mut x, true).unwrap();
    x.respond();
    stream.on_response_headers(&mut x, true).unwrap();
    stream.finish(&mut x).unwrap();
    x.text(HeaderMap::Response, "x-enqueued").unwrap()
}

/// What the consumer has been told of and taken.
fn seen(host: &FakeHost, vm_id: &str) -> String {
    let seen = host.shared.get(vm_id, b"seen").map(|(seen, _)| seen.to_vec()).unwrap_or_default();
    String::from_utf8(seen).unwrap().trim_end().to_owned()
}

#[tokio::test]
async fn another_plugin_is_told_of_every_item_in_order_and_never_during_the_call_that_enqueues() {
    let host = Arc::new(FakeHost::default());
    let consumer = start(&host, "consumer", "jobs - jobs", roomy());
    let producer = start(&host, "producer", "- consumer jobs", roomy());
    assert_eq!(enqueue(&producer, "a b c"), "ok ok ok");
    assert_eq!(seen(&host, "consumer"), "", "nothing runs before its loop does");

    let _loop = tokio::spawn(consumer.tick_loop(0));
    eventually("three items", || seen(&host, "consumer") == "a b c").await;
    assert_eq!(enqueue(&producer, "d"), "ok");
    eventually("a fourth, with the loop asleep", || seen(&host, "consumer") == "a b c d").await;
    assert_eq!(host.queues.sizes()[0].items, 0);
}

#[tokio::test]
async fn a_plugin_may_fill_its_own_queue() {
    let host = Arc::new(FakeHost::default());
    let plugin = start(&host, "both", "jobs - jobs", roomy());
    let _loop = tokio::spawn(plugin.tick_loop(0));
    assert_eq!(enqueue(&plugin, "a b"), "ok ok");
    eventually("both items", || seen(&host, "both") == "a b").await;
}

#[test]
fn an_unregistered_queue_is_not_found_and_another_vm_id_has_its_own() {
    let host = Arc::new(FakeHost::default());
    let _consumer = start(&host, "consumer", "jobs - jobs", roomy());
    assert_eq!(enqueue(&start(&host, "one", "- consumer other", roomy()), "a"), "no-queue");
    assert_eq!(enqueue(&start(&host, "two", "- - jobs", roomy()), "a"), "no-queue");
}

#[tokio::test]
async fn the_worker_that_registered_last_is_told() {
    let host = Arc::new(FakeHost::default());
    let module = Module::load(&engine(), "queue", &guest_wasm("queue")).unwrap();
    let options = PluginOptions { name: "consumer".into(), vm_id: "consumer".into(), ..options("jobs - jobs") };
    let consumer = Plugin::start(module, options, host.clone()).unwrap();
    assert_eq!(enqueue(&consumer, "a"), "ok");
    drop(consumer.open_stream(1).unwrap()); // its VM registers, and inherits what waits
    let _first = tokio::spawn(consumer.tick_loop(0));
    tokio::task::yield_now().await;
    assert_eq!(seen(&host, "consumer"), "", "the first worker has nothing to say");
    let _second = tokio::spawn(consumer.tick_loop(1));
    eventually("the item", || seen(&host, "consumer") == "a").await;
}

#[tokio::test]
async fn items_wait_for_the_vm_that_comes_after_a_dead_one_and_it_comes_by_itself() {
    let host = Arc::new(FakeHost::default());
    let consumer = start(&host, "consumer", "jobs - jobs", roomy());
    let producer = start(&host, "producer", "- consumer jobs", roomy());
    let _loop = tokio::spawn(consumer.tick_loop(0));
    assert_eq!(enqueue(&producer, "a die b"), "ok ok ok");
    eventually("its end", || host.logged("as asked")).await;
    assert_eq!(enqueue(&producer, "c"), "ok", "a dead consumer's queue takes items");
    eventually("the rest", || seen(&host, "consumer") == "a b c").await;
}

#[tokio::test]
async fn items_outlive_a_reload() {
    let host = Arc::new(FakeHost::default());
    let old = start(&host, "consumer", "jobs - jobs", roomy());
    assert_eq!(enqueue(&old, "a b"), "ok ok");
    drop(old);
    let new = start(&host, "consumer", "jobs - jobs", roomy());
    let _loop = tokio::spawn(new.tick_loop(0));
    eventually("what the old one left", || seen(&host, "consumer") == "a b").await;
}

#[test]
fn a_full_queue_refuses_with_a_status_that_sdks_survive() {
    let host = Arc::new(FakeHost::default());
    let few = Limits { queue_items: 2, ..roomy() };
    let plugin = start(&host, "both", "jobs - jobs", few);
    assert_eq!(enqueue(&plugin, "a b c"), "ok ok full");
    let size = host.queues.sizes().swap_remove(0);
    assert_eq!((size.items, size.enqueued, size.refused), (2, 2, 1));

    let small = Limits { queue_bytes: 3, ..roomy() };
    let plugin = start(&host, "small", "jobs - jobs", small);
    assert_eq!(enqueue(&plugin, "abcd abc"), "full ok");
}

#[test]
fn a_queue_too_many_takes_nothing_and_costs_nobody_a_vm() {
    let host = Arc::new(FakeHost::default());
    let plugin = start(&host, "both", "jobs - jobs", Limits { queues: 0, ..roomy() });
    assert_eq!(enqueue(&plugin, "a"), "no-queue");
    assert_eq!(host.queues.sizes(), []);
}

/// A consumer that puts back what it takes never finds its queue empty: streams and ticks have their turn all the same.
#[tokio::test]
async fn a_queue_that_never_empties_does_not_keep_the_worker() {
    let host = Arc::new(FakeHost::default());
    let plugin = start(&host, "both", "jobs - jobs", roomy());
    let ticker = guest("tick", "1");
    let _ticks = tokio::spawn(ticker.plugin.tick_loop(0));
    let _loop = tokio::spawn(plugin.tick_loop(0));
    assert_eq!(enqueue(&plugin, "again"), "ok");
    eventually("many turns", || host.queues.sizes()[0].enqueued > 1000).await;
    eventually("ticks meanwhile", || ticker.host.counter("guest_ticks") > 3).await;
    drop(plugin);
}

/// Waking the loop for an item must not begin the wait for the next tick anew.
#[tokio::test]
async fn items_do_not_keep_a_plugin_from_ticking() {
    let wasm = wat(
        r#"(import "env" "proxy_register_shared_queue" (func $register (param i32 i32 i32) (result i32)))
           (import "env" "proxy_enqueue_shared_queue" (func $enqueue (param i32 i32 i32) (result i32)))
           (import "env" "proxy_dequeue_shared_queue" (func $dequeue (param i32 i32 i32) (result i32)))
           (import "env" "proxy_set_tick_period_milliseconds" (func $period (param i32) (result i32)))
           (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))"#,
        "i32.const 4096",
        r#"(data (i32.const 0) "q") (data (i32.const 8) "tick")
           (func (export "proxy_on_vm_start") (param i32 i32) (result i32)
             (drop (call $register (i32.const 0) (i32.const 1) (i32.const 100)))
             (drop (call $period (i32.const 50)))
             (call $enqueue (i32.load (i32.const 100)) (i32.const 0) (i32.const 1))
             (i32.eqz))
           (func (export "proxy_on_queue_ready") (param $root i32) (param $queue i32)
             (drop (call $dequeue (local.get $queue) (i32.const 200) (i32.const 204)))
             (drop (call $enqueue (local.get $queue) (i32.const 0) (i32.const 1))))
           (func (export "proxy_on_tick") (param i32)
             (drop (call $log (i32.const 2) (i32.const 8) (i32.const 4))))"#,
    );
    let rig = try_start(&wasm, options("")).unwrap();
    let _loop = tokio::spawn(rig.plugin.tick_loop(0));
    eventually("two ticks", || rig.host.logs.lock().len() >= 2).await;
    assert!(rig.host.queues.sizes()[0].enqueued > 2, "and items passed meanwhile");
}
