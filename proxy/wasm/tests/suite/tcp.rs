//! TCP stream contexts: the callbacks in their order, the two buffers, resumes and closes.

use super::fakes::*;
use selvedge_wasm::*;

fn open(rig: &Rig) -> TcpStream {
    TcpStream::open(&rig.plugin, 0).unwrap()
}

fn sent(data: &'static str) -> FakeExchange {
    FakeExchange::tcp(Some(data), None)
}

fn received(data: &'static str) -> FakeExchange {
    FakeExchange::tcp(None, Some(data))
}

#[test]
fn every_callback_comes_with_its_arguments_and_the_end_in_the_order_of_the_abi() {
    let rig = guest("tcp", "log");
    let (mut stream, mut x) = (open(&rig), FakeExchange::default());
    assert_eq!(stream.on_new_connection(&mut x).unwrap().action, Action::Continue);
    assert_eq!(stream.on_downstream_data(&mut sent("abc"), 3, false).unwrap().action, Action::Continue);
    stream.on_downstream_data(&mut sent(""), 0, true).unwrap();
    stream.on_upstream_data(&mut received("defg"), 4, true).unwrap();
    stream.on_upstream_close(&mut x, Peer::Remote).unwrap();
    stream.on_downstream_close(&mut x, Peer::Local).unwrap();
    stream.finish(&mut x).unwrap();
    let logs: Vec<String> = rig.host.logs.lock().iter().map(|(_, line)| line.clone()).collect();
    assert_eq!(
        logs,
        [
            "new_connection",
            "downstream_data 3 false",
            "downstream_data 0 true",
            "upstream_data 4 true",
            "upstream_close Remote",
            "downstream_close Local",
            "done",
            "log"
        ]
    );
}

#[test]
fn both_buffers_are_read_and_written() {
    let rig = guest("tcp", "tag X");
    let mut stream = open(&rig);
    let mut x = sent("abc");
    stream.on_downstream_data(&mut x, 3, false).unwrap();
    assert_eq!(x.downstream.unwrap().take(), "abcX");
    let mut x = received("def");
    stream.on_upstream_data(&mut x, 3, false).unwrap();
    assert_eq!(x.upstream.unwrap().take(), "defx");
}

#[test]
fn a_close_is_an_effect() {
    let rig = guest("tcp", "close evil");
    let mut stream = open(&rig);
    let outcome = stream.on_downstream_data(&mut sent("good"), 4, false).unwrap();
    assert!(outcome.action == Action::Continue && outcome.effects.is_empty());
    let outcome = stream.on_downstream_data(&mut sent("evil"), 4, false).unwrap();
    assert!(outcome.action == Action::Pause && outcome.effects.close);
}

#[test]
fn a_callout_is_answered_and_what_is_held_is_written_by_its_answer() {
    for (phase, resumes_downstream) in [("new_connection", true), ("downstream_data", true), ("upstream_data", false)] {
        let rig = guest("tcp", &format!("call {phase} auth /"));
        let mut stream = open(&rig);
        let mut x = FakeExchange::tcp(Some("down"), Some("up"));
        let outcome = match phase {
            "new_connection" => stream.on_new_connection(&mut x),
            "downstream_data" => stream.on_downstream_data(&mut x, 4, false),
            _ => stream.on_upstream_data(&mut x, 2, false),
        };
        let Outcome { action, mut effects } = outcome.unwrap();
        assert_eq!(action, Action::Pause);
        let Some(Outgoing::Http(callout)) = effects.outgoing.pop() else { panic!("no call in {phase}") };

        let effects = stream.on_arrival(&mut x, Arrival::Http(callout.id, Ok(answer()))).unwrap().effects;
        assert_eq!((effects.resume_downstream, effects.resume_upstream), (resumes_downstream, !resumes_downstream));
        let written = (x.downstream.unwrap().take(), x.upstream.unwrap().take());
        let expected = match phase {
            "new_connection" => ("down", "up"),
            "downstream_data" => ("[called] down", "up"),
            _ => ("down", "[called] up"),
        };
        assert_eq!((&written.0[..], &written.1[..]), (expected.0.as_bytes(), expected.1.as_bytes()));
    }
}

#[tokio::test]
async fn a_tick_resumes_and_closes_connections() {
    for verb in ["resume", "close"] {
        let rig = guest("tcp", &format!("tick {verb}"));
        let _ticking = tokio::spawn(rig.plugin.tick_loop(0));
        let mut stream = open(&rig);
        assert_eq!(stream.on_new_connection(&mut FakeExchange::default()).unwrap().action, Action::Pause);
        let mail = tokio::time::timeout(std::time::Duration::from_secs(60), stream.mail()).await.unwrap();
        assert_eq!((mail.resume_downstream, mail.close), (verb == "resume", verb == "close"));
    }
}

#[test]
fn there_are_no_header_maps_to_read_and_none_to_write() {
    let rig = guest("tcp", "headers");
    let error = open(&rig).on_downstream_data(&mut sent("a"), 1, false).unwrap_err();
    assert!(rig.host.logged("0 headers, host None"));
    assert!(error.to_string().contains("unexpected status: 2"), "{error}");
}

#[test]
fn a_failure_names_its_callback_and_costs_the_vm() {
    let callbacks = [
        ("new_connection", "proxy_on_new_connection"),
        ("downstream_data", "proxy_on_downstream_data"),
        ("upstream_data", "proxy_on_upstream_data"),
        ("downstream_close", "proxy_on_downstream_connection_close"),
        ("upstream_close", "proxy_on_upstream_connection_close"),
    ];
    for (name, export) in callbacks {
        let rig = guest("tcp", &format!("fail {name}"));
        let (mut stream, mut other, mut x) = (open(&rig), open(&rig), FakeExchange::default());
        let failed = match name {
            "new_connection" => stream.on_new_connection(&mut x),
            "downstream_data" => stream.on_downstream_data(&mut x, 0, true),
            "upstream_data" => stream.on_upstream_data(&mut x, 0, true),
            "downstream_close" => stream.on_downstream_close(&mut x, Peer::Remote),
            _ => stream.on_upstream_close(&mut x, Peer::Remote),
        };
        assert!(failed.unwrap_err().to_string().starts_with(export));
        assert_eq!(other.on_new_connection(&mut x).unwrap_err(), CallError::Poisoned);
    }
}

#[test]
fn a_module_without_tcp_callbacks_lets_everything_through() {
    let wasm = wat("", "i32.const 0", "");
    let rig = try_start(&wasm, options("")).unwrap();
    assert!(!rig.plugin.module().phases().intersects(Phases::TCP));
    let (mut stream, mut x) = (open(&rig), sent("abc"));
    assert_eq!(stream.on_new_connection(&mut x).unwrap().action, Action::Continue);
    assert_eq!(stream.on_downstream_data(&mut x, 3, true).unwrap().action, Action::Continue);
    assert_eq!(stream.on_upstream_data(&mut x, 3, true).unwrap().action, Action::Continue);
    stream.on_downstream_close(&mut x, Peer::Remote).unwrap();
    stream.on_upstream_close(&mut x, Peer::Remote).unwrap();
}
