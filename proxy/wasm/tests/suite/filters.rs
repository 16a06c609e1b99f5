//! Whole filters, built with the Rust SDK.

use bytes::Bytes;

use super::fakes::*;
use selvedge_wasm::*;

#[test]
fn noop_continues_everywhere_and_asks_for_nothing() {
    let rig = guest("noop", "");
    let (mut stream, mut x) = (rig.stream(), FakeExchange::get("/"));
    x.respond();
    for outcome in [stream.on_request_headers(&mut x, true), stream.on_response_headers(&mut x, true)] {
        let outcome = outcome.unwrap();
        assert_eq!(outcome.action, Action::Continue);
        assert!(outcome.effects.is_empty());
    }
    stream.finish(&mut x).unwrap();
}

#[test]
fn deny_answers_from_any_phase() {
    for phase in ["request_headers", "request_body", "response_headers", "response_body"] {
        let rig = guest("deny", phase);
        let (mut stream, mut x) = (rig.stream(), FakeExchange::get("/"));
        x.respond();
        x.request_body = Some(Body::from(Bytes::from("body")));
        x.response_body = Some(Body::from(Bytes::from("body")));
        let outcome = match phase {
            "request_headers" => stream.on_request_headers(&mut x, true),
            "request_body" => stream.on_request_body(&mut x, 4, true),
            "response_headers" => stream.on_response_headers(&mut x, true),
            _ => stream.on_response_body(&mut x, 4, true),
        };
        let outcome = outcome.unwrap();
        let reply = outcome.effects.reply.unwrap();
        assert_eq!((outcome.action, reply.status), (Action::Pause, 403));
        assert_eq!(reply.headers[0], ("x-denied-in".parse().unwrap(), phase.parse().unwrap()));
        assert_eq!((reply.body, reply.grpc_status), (Bytes::from(format!("denied in {phase}\n")), None));
    }
}

#[test]
fn hold_sees_the_whole_body_before_the_headers_go() {
    let rig = guest("hold", "");
    let (mut stream, mut x) = (rig.stream(), FakeExchange::get("/"));
    x.respond();
    assert_eq!(stream.on_response_headers(&mut x, false).unwrap().action, Action::Pause);
    x.response_body = Some(Body::from(Bytes::from("bo")));
    assert_eq!(stream.on_response_body(&mut x, 2, false).unwrap().action, Action::Pause);
    x.response_body.as_mut().unwrap().push(Bytes::from("dy"));
    assert_eq!(stream.on_response_body(&mut x, 4, true).unwrap().action, Action::Continue);
    assert_eq!(x.response_body.as_mut().unwrap().take(), "body[held]");
    assert_eq!(x.text(HeaderMap::Response, "x-held-len").as_deref(), Some("4"));
    assert_eq!(x.all(HeaderMap::Response, "content-length"), ["10"]);
}

#[test]
fn append_streams() {
    let rig = guest("append", "");
    let (mut stream, mut x) = (rig.stream(), FakeExchange::get("/"));
    x.respond();
    stream.on_response_headers(&mut x, false).unwrap();
    assert_eq!(x.text(HeaderMap::Response, "content-length"), None);
    let mut sent = Vec::new();
    for (chunk, end) in [("bo", false), ("dy", true)] {
        x.response_body = Some(Body::from(Bytes::from(chunk)));
        assert_eq!(stream.on_response_body(&mut x, chunk.len(), end).unwrap().action, Action::Continue);
        sent.extend(x.response_body.as_mut().unwrap().take());
    }
    assert_eq!(sent, b"body+app");
}

#[test]
fn headers_are_edited_on_both_sides_and_properties_read() {
    let config = "request set x-one 1\nrequest add x-two a\nrequest add x-two b\nrequest remove accept\nrequest set :path /new\n\
                  response remove server\nresponse set x-three 3\n\
                  property plugin_name\nproperty plugin_root_id\nproperty request.path\nproperty response.code\nproperty no.such";
    let rig = guest("headers", config);
    let (mut stream, mut x) = (rig.stream(), FakeExchange::get("/old"));
    x.properties.insert("request.path".into(), b"/old".to_vec());
    x.properties.insert("response.code".into(), 200i64.to_le_bytes().to_vec());
    stream.on_request_headers(&mut x, true).unwrap();
    assert_eq!(x.text(HeaderMap::Request, ":path").as_deref(), Some("/new"));
    assert_eq!(
        (x.all(HeaderMap::Request, "x-one"), x.all(HeaderMap::Request, "x-two")),
        (vec!["1".into()], vec!["a".into(), "b".into()])
    );
    assert_eq!(x.text(HeaderMap::Request, "accept"), None);

    x.respond();
    stream.on_response_headers(&mut x, true).unwrap();
    assert_eq!(
        (x.text(HeaderMap::Response, "server"), x.text(HeaderMap::Response, "x-three").as_deref()),
        (None, Some("3"))
    );
    let properties: Vec<_> = (0..5).map(|i| x.text(HeaderMap::Response, &format!("x-prop-{i}")).unwrap()).collect();
    assert_eq!(properties, ["test", "root", "/old", "c800000000000000", "(none)"]);
}

#[test]
fn shared_data_is_one_for_all_workers() {
    let rig = guest("shared", "");
    for (worker, count) in [(0, "1"), (1, "2"), (0, "3")] {
        let (mut stream, mut x) = (rig.plugin.open_stream(worker).unwrap(), FakeExchange::get("/"));
        stream.on_request_headers(&mut x, true).unwrap();
        x.respond();
        stream.on_response_headers(&mut x, true).unwrap();
        stream.finish(&mut x).unwrap();
        assert_eq!(x.text(HeaderMap::Response, "x-count").as_deref(), Some(count));
    }
}

#[test]
fn counting_by_compare_and_swap_loses_nothing_between_threads() {
    let rig = guest("shared", "");
    let count = |worker| {
        rig.plugin.open_stream(worker).unwrap().on_request_headers(&mut FakeExchange::get("/"), true).unwrap();
    };
    // The first count is made alone: a key that is not there has no number to compare, so that the ABI has it written
    // whatever another thread wrote meanwhile.
    count(0);
    std::thread::scope(|scope| {
        for worker in 0..2 {
            let count = &count;
            scope.spawn(move || (0..500).for_each(|_| count(worker)));
        }
    });
    let (count, _) = rig.host.shared.get("vm", b"count").unwrap();
    assert_eq!(count[..], 1001u64.to_le_bytes());
}

#[test]
fn trailers_are_added() {
    let rig = guest("trailers", "");
    let (mut stream, mut x) = (rig.stream(), FakeExchange::get("/"));
    x.put(HeaderMap::ResponseTrailers, &[]);
    stream.on_response_trailers(&mut x).unwrap();
    assert_eq!(x.text(HeaderMap::ResponseTrailers, "x-trailer-filtered").as_deref(), Some("yes"));
}

#[tokio::test]
async fn ticks_come_at_the_period_asked_for_until_the_plugin_goes() {
    let rig = guest("tick", "2");
    assert!(rig.plugin.wants_ticks());
    let ticking = tokio::spawn(rig.plugin.tick_loop(0));
    eventually("three ticks", || rig.host.counter("guest_ticks") >= 3).await;

    let (mut stream, mut x) = (rig.stream(), FakeExchange::get("/"));
    x.respond();
    stream.on_response_headers(&mut x, true).unwrap();
    assert!(x.text(HeaderMap::Response, "x-ticks").unwrap().parse::<u64>().unwrap() >= 3);

    // A worker needs one loop, however often it is asked for; when that has been stopped, another may follow.
    let second = || tokio::time::timeout(std::time::Duration::from_secs(10), rig.plugin.tick_loop(0));
    second().await.expect("ends at once");
    ticking.abort();
    assert!(ticking.await.unwrap_err().is_cancelled());
    let before = rig.host.counter("guest_ticks");
    let ticking = tokio::spawn(rig.plugin.tick_loop(0));
    eventually("a tick", || rig.host.counter("guest_ticks") > before + 1).await;

    drop((stream, rig));
    tokio::time::timeout(std::time::Duration::from_secs(10), ticking).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_tick_may_call_an_upstream() {
    let rig = guest("tick", "2 auth");
    let _ticking = tokio::spawn(rig.plugin.tick_loop(0));
    eventually("two answers", || rig.host.counter("guest_tick_answers") >= 2).await;
    assert_eq!(rig.host.calls.lock()[0].upstream, "auth");
}

#[tokio::test]
async fn a_vm_that_died_in_a_tick_is_replaced_and_ticks_until_the_plugin_is_held_back() {
    let rig = guest("trap", "tick");
    let _ticking = tokio::spawn(rig.plugin.tick_loop(0));
    let traps = || rig.host.logs.lock().iter().filter(|(_, line)| line.contains("as configured")).count();
    eventually("a trap in a VM and in its successor", || traps() >= 2).await;
    // It is held back when more than half of its streams fail: so there must not be more of ours than traps, however slow those come.
    let (mut seen, mut looks) = (0, 0);
    eventually("held back", || {
        (looks, seen) = if traps() > seen { (0, traps()) } else { (looks + 1, seen) };
        looks % 500 == 0 && matches!(rig.plugin.open_stream(0), Err(CallError::Unavailable { .. }))
    })
    .await;
}
