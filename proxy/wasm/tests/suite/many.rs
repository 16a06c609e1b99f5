//! Many of everything: streams of one VM, plugins of one process.

use selvedge_wasm::*;

use super::fakes::*;

const STREAMS: usize = 10_000;

/// All of them are open at once, each gets through its exchange, and the VM needs no more memory than it may have.
#[test]
fn ten_thousand_streams_are_open_at_once() {
    for isolation in [Isolation::Worker, Isolation::Pool(std::num::NonZeroU8::new(4).unwrap())] {
        let options = PluginOptions { isolation, ..options("request set x-seen yes\nresponse set x-seen yes") };
        let rig = try_start(&guest_wasm("headers"), options).unwrap();
        let mut open: Vec<(Stream, FakeExchange)> =
            (0..STREAMS).map(|index| (rig.stream(), FakeExchange::get(&format!("/{index}")))).collect();
        for (stream, x) in &mut open {
            assert_eq!(stream.on_request_headers(x, true).unwrap().action, Action::Continue);
        }
        for (stream, x) in open.iter_mut().rev() {
            x.respond();
            stream.on_response_headers(x, true).unwrap();
        }
        for (index, (mut stream, mut x)) in open.into_iter().enumerate() {
            stream.finish(&mut x).unwrap();
            assert_eq!(x.text(HeaderMap::Request, ":path"), Some(format!("/{index}")));
            assert_eq!(x.text(HeaderMap::Request, "x-seen").as_deref(), Some("yes"));
            assert_eq!(x.text(HeaderMap::Response, "x-seen").as_deref(), Some("yes"));
        }
        rig.stream();
    }
}

/// A thousand configurations of one module, each with its VM, all of which serve. What each costs beyond the module is stated by the test's
/// output, and bounded.
#[test]
fn a_thousand_plugins_live_in_one_process() {
    const PLUGINS: usize = 1000;
    let module = Module::load(&engine(), "headers", &guest_wasm("headers")).unwrap();
    let host = std::sync::Arc::new(FakeHost::default());
    let start = |index: usize| {
        let config = format!("response set x-number {index}");
        Plugin::start(module.clone(), PluginOptions { workers: 1, ..options(&config) }, host.clone()).unwrap()
    };
    let before = resident();
    let plugins: Vec<_> = (0..PLUGINS).map(start).collect();
    for (index, plugin) in plugins.iter().enumerate() {
        let (mut stream, mut x) = (plugin.open_stream(0).unwrap(), FakeExchange::get("/"));
        x.respond();
        stream.on_response_headers(&mut x, true).unwrap();
        assert_eq!(x.text(HeaderMap::Response, "x-number"), Some(index.to_string()));
    }
    let each = resident().saturating_sub(before) / PLUGINS;
    eprintln!("{each} KiB of memory for each of {PLUGINS} plugins with a VM");
    assert!(each < 1024, "{each} KiB each");
}

/// Resident memory of this process in KiB.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
