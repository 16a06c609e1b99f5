//! What the hosts of a tester promise, as claims about a filter that does what it is told: each natively, and with feature `wasm` as the
//! compiled module on the shipped host.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test; the example is a crate of its own"
)]

use std::time::Duration;

use selvedge_sdk::Reply;
use selvedge_sdk_testing::{Answer, Outcome, Tester};

#[path = "../../examples/obey.rs"]
mod obey;

use obey::Obey;

#[cfg(feature = "wasm")]
fn compiled() -> Tester<Obey> {
    let under_test = selvedge_sdk_testing::harness::Crate {
        folder: concat!(env!("CARGO_MANIFEST_DIR"), "/.."),
        package: "selvedge-sdk",
        profile: None,
        example: Some("obey"),
    };
    Tester::compiled(under_test.module().unwrap_or_else(|error| panic!("{error}")).as_ref().clone())
}

/// Makes each claim a test per host.
macro_rules! claims {
    ($($claim:ident),* $(,)?) => {
        mod native {
            $(#[test]
            fn $claim() {
                super::$claim(super::Tester::native());
            })*
        }

        #[cfg(feature = "wasm")]
        mod wasm {
            $(#[test]
            fn $claim() {
                super::$claim(super::compiled());
            })*
        }
    };
}

claims!(
    a_panic_is_an_outcome_and_the_next_request_is_served,
    a_panic_in_the_response_hook_is_503_before_anything_was_sent,
    a_filter_may_fail_open,
    a_failure_nobody_asks_about_fails_the_test,
    ticks_run_when_the_clock_moves,
    a_slow_upstream_takes_its_time_and_no_longer_than_the_timeout,
    an_upstream_goes_down_and_comes_back,
    answers_of_a_list_come_one_after_the_other,
    the_answer_that_is_there_first_is_seen_first,
    a_client_that_leaves_ends_the_exchange,
    an_origin_that_is_lost_is_502_and_one_that_is_silent_504,
    bodies_come_in_pieces_and_end_with_trailers,
    every_split_gives_the_same,
    a_filter_that_depends_on_pieces_is_found,
    properties_are_set_and_read_by_the_hosts_rules,
    a_bodiless_response_stays_one,
    shared_data_is_the_tests_too,
    a_mistake_in_the_set_up_is_named,
    a_failed_expectation_shows_everything,
);

fn a_panic_is_an_outcome_and_the_next_request_is_served(tester: Tester<Obey>) {
    tester.set_shared("n", [7]);
    let outcome = tester.get("/").header("x-do", "count n; panic").send();
    assert!(outcome.failed().is_some());
    assert_eq!((outcome.status(), outcome.upstream().is_none()), (503, true));
    outcome.expect_log("CRITICAL panicked at ").expect_log("examples/obey.rs:").expect_log("told to");

    let outcome = tester.get("/").header("x-then", "count n").send();
    assert!(outcome.failed().is_none());
    outcome.expect_status(200).expect_header("x-seen", "9");
    assert_eq!(tester.metric("obey_steps"), 3, "metrics and shared data outlive a VM");
}

fn a_panic_in_the_response_hook_is_503_before_anything_was_sent(tester: Tester<Obey>) {
    let tester = tester.origin(|_| Reply::new(200).body("a body"));
    let outcome = tester.get("/").header("x-then", "panic").send();
    assert!(outcome.failed().is_some());
    assert_eq!((outcome.status(), outcome.body(), outcome.is_cut()), (503, &b""[..], false));
}

fn a_filter_may_fail_open(tester: Tester<Obey>) {
    let tester = tester.fail_open().origin(|seen| Reply::new(200).body(seen.body()));
    let outcome = tester.post("/").body("abcdef").chunked(2).header("x-do", "body 3; panic").send();
    assert_eq!((outcome.failed(), outcome.status()), (None, 413));
    let outcome = tester.post("/").body("abc").chunked(2).header("x-do", "body 3; panic").send();
    assert!(outcome.failed().is_some());
    outcome.expect_status(200).expect_body("abc");
}

fn a_failure_nobody_asks_about_fails_the_test(tester: Tester<Obey>) {
    let looks: [fn(Outcome); 3] = [
        |outcome| drop(outcome),
        |outcome| assert_eq!(outcome.status(), 503),
        |outcome| {
            outcome.expect_not_forwarded();
        },
    ];
    for look in looks {
        let outcome = tester.another().get("/").header("x-do", "panic").send();
        let looked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| look(outcome)));
        let message = looked.unwrap_err().downcast::<String>().unwrap();
        assert!(message.contains("the filter failed"), "{message}");
    }
}

fn ticks_run_when_the_clock_moves(tester: Tester<Obey>) {
    tester.start().unwrap();
    tester.advance(Duration::from_secs(9));
    tester.expect_metric("obey_ticks", 0);
    tester.advance(Duration::from_secs(1));
    tester.expect_metric("obey_ticks", 1);
    tester.advance(Duration::from_secs(35));
    tester.expect_metric("obey_ticks", 4);
    tester.tick();
    tester.expect_metric("obey_ticks", 5);

    // While a request waits, time passes.
    let tester = tester.another().origin(|_| Answer::from(Reply::new(200)).after(Duration::from_secs(25)));
    assert_eq!(tester.get("/").send().took(), Duration::from_secs(25));
    tester.expect_metric("obey_ticks", 2);
}

fn a_slow_upstream_takes_its_time_and_no_longer_than_the_timeout(tester: Tester<Obey>) {
    let tester = tester.upstream("a", |seen| Reply::new(200).body(seen.path()));
    tester.upstream_slow("a", Duration::from_millis(999));
    let outcome = tester.get("/").header("x-do", "call a /x").send();
    outcome.expect_forwarded_header("x-seen", "200 /x");
    assert_eq!(outcome.took(), Duration::from_millis(999));

    tester.upstream_slow("a", Duration::from_secs(3));
    let outcome = tester.get("/").header("x-do", "call a /x").send();
    outcome.expect_forwarded_header("x-seen", "upstream a: no answer within 1000 ms");
    assert_eq!((outcome.took(), outcome.calls()[0].timeout()), (Duration::from_secs(1), Some(Duration::from_secs(1))));
    assert_eq!(tester.calls("a"), 2);
}

/// What a callout is told whose connection is lost.
const DOWN: &str = "upstream a: no connection: the test gives no answer";

fn an_upstream_goes_down_and_comes_back(tester: Tester<Obey>) {
    let tester = tester.upstream("a", |_| Reply::new(204));
    let seen = || tester.get("/").header("x-do", "call a /").send().upstream().unwrap().header_values("x-seen");
    assert_eq!(seen(), ["204 "]);
    tester.upstream_down("a");
    assert_eq!(seen(), [DOWN]);
    tester.upstream_up("a");
    assert_eq!(seen(), ["204 "]);
}

fn answers_of_a_list_come_one_after_the_other(tester: Tester<Obey>) {
    let tester = tester.upstream_answers("a", [Answer::from(Reply::new(500)), Answer::lost(), Reply::new(200).into()]);
    let outcome = tester.get("/").header("x-do", "call a /1; call a /2; call a /3; call a /4").send();
    assert_eq!(outcome.upstream().unwrap().header_values("x-seen"), ["500 ", DOWN, "200 ", "200 "]);
    let paths: Vec<_> = tester.calls_to("a").iter().map(|seen| seen.path().to_owned()).collect();
    assert_eq!(paths, ["/1", "/2", "/3", "/4"]);
}

fn the_answer_that_is_there_first_is_seen_first(tester: Tester<Obey>) {
    let late = |seen: &selvedge_sdk_testing::Seen| {
        let millis = seen.path().trim_start_matches('/').parse().unwrap_or(0);
        Answer::from(Reply::new(200).body(seen.path())).after(Duration::from_millis(millis))
    };
    let tester = tester.upstream("a", late).upstream("b", |_| Reply::new(201));

    // On one VM together: each waits for its own, and the last one counts first.
    let outcomes = tester.together([
        tester.get("/").header("x-do", "call a /300; count n"),
        tester.get("/").header("x-do", "call a /200; count n"),
        tester.get("/").header("x-do", "call a /100; count n; call b /"),
    ]);
    let seen = |at: usize| outcomes[at].upstream().unwrap().header_values("x-seen");
    assert_eq!((seen(0), seen(1)), (vec!["200 /300".into(), "3".to_owned()], vec!["200 /200".into(), "2".to_owned()]));
    assert_eq!(seen(2), ["200 /100", "1", "201 "]);
    assert_eq!(outcomes.iter().map(|outcome| outcome.took().as_millis()).max(), Some(300));

    // Two calls of one hook: the order in which they come back is the upstreams'.
    tester.upstream_slow("a", Duration::from_millis(100));
    let outcome = tester.get("/").header("x-do", "both a b").send();
    assert_eq!(outcome.upstream().unwrap().header_values("x-seen"), ["200 /", "201 "]);
    assert_eq!(outcome.took(), Duration::from_millis(100));
}

fn a_client_that_leaves_ends_the_exchange(tester: Tester<Obey>) {
    let tester = tester
        .upstream("a", |_| Answer::never())
        .origin(|_| Answer::from(Reply::new(200)).pieces(["one", "two", "three"]));
    let outcome = tester.get("/").header("x-do", "call a /").client_leaves_after(Duration::from_millis(300)).send();
    assert_eq!((outcome.client_left(), outcome.took()), (true, Duration::from_millis(300)));
    outcome.expect_not_forwarded().expect_log("done, and then");

    let request = || tester.post("/").body("abcdef").chunked(2).header("x-do", "body 10");
    let outcome = request().client_leaves_in_request(2).send();
    assert!(outcome.client_left());
    outcome.expect_not_forwarded().expect_log("done");

    let outcome = request().client_leaves_in_response(1).send();
    assert_eq!((outcome.client_left(), outcome.status()), (true, 200));
    outcome.expect_forwarded().expect_log("done");
    assert!(!tester.get("/").send().client_left());
}

fn an_origin_that_is_lost_is_502_and_one_that_is_silent_504(tester: Tester<Obey>) {
    let tester = tester.origin(|seen| if seen.path() == "/lost" { Answer::lost() } else { Answer::never() });
    tester.get("/lost").header("x-then", "header x-a 1").send().expect_status(502).expect_header("x-a", "1");
    tester.get("/never").send().expect_status(504);
}

fn bodies_come_in_pieces_and_end_with_trailers(tester: Tester<Obey>) {
    let tester = tester.origin(|seen| {
        let mut answer = Answer::from(Reply::new(200)).pieces(["one", "", "two"]);
        for (name, value) in seen.trailers() {
            answer = answer.trailer(name, value);
        }
        answer
    });
    for (then, length) in [("", None), ("body 100", Some("6")), ("start 4", Some("4")), ("start 100", Some("6"))] {
        let request = tester.post("/").body("abc").trailer("x-end", "now").header("x-then", then);
        let outcome = request.send();
        outcome.expect_body("onetwo").expect_trailer("x-end", "now");
        assert_eq!((outcome.header("x-seen"), outcome.header("content-length")), (length, None), "{then}");
    }
}

fn every_split_gives_the_same(tester: Tester<Obey>) {
    let tester = tester.origin(|seen| Reply::new(200).body([b"about ", seen.body()].concat()));
    for (on_request, on_response, seen) in [
        ("", "", vec![]),
        ("body 100", "body 100", vec!["12"]),
        ("start 3", "start 3", vec!["3"]),
        ("start 3; body 100", "set-body shorter", vec![]),
        ("set-body a body that is longer than it was", "body 100", vec!["7"]),
        ("body 5", "", vec![]),
        ("body 100; count n", "start 2; body 100", vec!["2", "12"]),
        ("body 100; count n", "start 2; set-body x; body 100", vec!["2", "1"]),
    ] {
        let request = tester.post("/").body("bodies").header("x-do", on_request).header("x-then", on_response);
        let outcome = request.every_split().send();
        assert_eq!(outcome.header_values("x-seen"), seen, "{on_request} {on_response}");
    }
    let long = "x".repeat(1000);
    tester.post("/").body(long).header("x-do", "body 1000").every_split().send().expect_forwarded();
    assert_eq!(tester.metric("obey_steps"), 1, "the state is that of one request");
}

fn a_filter_that_depends_on_pieces_is_found(tester: Tester<Obey>) {
    // The start of a body is whole only if the end is known in time: the header says how the body came.
    let tester = tester.upstream("a", |_| Reply::new(200));
    let origin_counts = std::cell::Cell::new(0);
    let tester = tester.origin(move |_| {
        origin_counts.set(origin_counts.get() + 1);
        Reply::new(200).body(if origin_counts.get() == 3 { "other" } else { "body." })
    });
    let request = tester.post("/").body("abc").header("x-do", "body 10").every_split();
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| request.send()));
    let message = found.unwrap_err().downcast::<String>().unwrap();
    for part in ["depends on how bodies arrive", "split after byte 1, its end on its own", "other", "body."] {
        assert!(message.contains(part), "{part}: {message}");
    }
}

fn properties_are_set_and_read_by_the_hosts_rules(tester: Tester<Obey>) {
    let tester = tester.upstream("b", |_| Reply::new(204)).tls("shop.example").country("DE");
    for (script, seen) in [
        ("set tenant acme; get tenant; get wasm.tenant", vec!["true", "acme", "acme"]),
        ("set a.b 1; get a.b; get a.c", vec!["true", "1", "nothing"]),
        ("set source.address 1.2.3.4; get source.geo.country", vec!["false", "DE"]),
        ("set selvedge.upstream b; upstream b; upstream none", vec!["true", "true", "false"]),
        ("set request.path /other?a=b; get request.url_path; get request.query", vec!["true", "/other", "a=b"]),
        ("get request.method; get request.scheme; get request.host", vec!["GET", "https", "example.com"]),
        ("get connection.requested_server_name; get connection.tls_version", vec!["shop.example", "TLSv1.3"]),
        ("header x-id a; add x-id b; get request.headers.X-Id", vec!["a,b"]),
        ("tag news; tag sport; set cache.ttl 60; set cache.ttl soon", vec!["true", "true", "true", "false"]),
        ("set cache.colour red; set response.code 1", vec!["false", "false"]),
    ] {
        let outcome = tester.get("/").header("x-do", script).send();
        assert_eq!(outcome.upstream().unwrap().header_values("x-seen"), seen, "{script}");
    }
    let outcome =
        tester.get("/").header("x-do", "set tenant acme; tag news; set cache.ttl 60; set cache.bypass 1").send();
    assert_eq!(outcome.property(&["tenant"]), Some(&b"acme"[..]));
    let wishes = outcome.cache();
    assert_eq!(
        (wishes.tags, wishes.lifetime, wishes.bypass),
        (vec!["news".into()], Some(Duration::from_secs(60)), true)
    );
}

fn a_bodiless_response_stays_one(tester: Tester<Obey>) {
    let tester = tester.origin(|_| Reply::new(200).body("a body"));
    let outcome = tester.request("HEAD", "/").header("x-then", "body 100").send();
    outcome.expect_body("").expect_header("x-seen", "0").expect_header("content-length", "6");
    let tester = tester.another().origin(|_| Reply::new(304).body("none"));
    tester.get("/").send().expect_status(304).expect_body("");
}

fn shared_data_is_the_tests_too(tester: Tester<Obey>) {
    tester.set_shared("n", [40]);
    tester.get("/").header("x-do", "count n; count m").send().expect_forwarded_header("x-seen", "41");
    assert_eq!((tester.shared("n"), tester.shared("none")), (Some(vec![41]), None));
    assert_eq!(tester.shared_keys(""), ["m", "n"]);
}

fn a_mistake_in_the_set_up_is_named(tester: Tester<Obey>) {
    let message = |work: &dyn Fn()| {
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        *done.unwrap_err().downcast::<String>().unwrap()
    };
    let tester = tester.upstream("authz", |_| Reply::new(200));
    for found in [message(&|| tester.upstream_down("autz")), message(&|| assert_eq!(tester.calls("autz"), 0))] {
        assert_eq!(found, "the test has no upstream \"autz\": it has authz");
    }
    let refused = tester.another().config(serde_json::json!({"loud": true}));
    for _ in 0..2 {
        let error = refused.start().unwrap_err();
        assert!(error.contains("no settings"), "{error}");
    }
    let found = message(&|| drop(refused.get("/").send()));
    assert!(found.contains("the filter does not start") && found.contains("no settings"), "{found}");
}

fn a_failed_expectation_shows_everything(tester: Tester<Obey>) {
    let tester = tester.upstream("a", |_| Reply::new(200).text("yes"));
    let script = "log hello; call a /x; set tenant acme";
    let outcome = tester.post("/path").body("a body").header("x-do", script).send();
    let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| outcome.expect_status(404).status()));
    let message = failed.unwrap_err().downcast::<String>().unwrap();
    for part in [
        "expected status 404, found 200",
        "POST /path",
        "forwarded: POST /path to the origin",
        "(6 bytes) a body",
        "called: GET /x to a",
        "set: tenant = acme",
        "INFO log hello",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }

    let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| tester.expect_metric("obey_steps", 9)));
    let message = failed.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("it is 3") && message.contains("obey_ticks 0"), "{message}");
}

#[cfg(feature = "wasm")]
mod alike {
    //! Whatever an exchange is, it comes to the same on both hosts.

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const STEPS: &[&str] = &[
        "body 0",
        "body 3",
        "body 100",
        "start 0",
        "start 2",
        "start 100",
        "set-body x",
        "set-body a longer body",
        "count n",
        "header x-a 1",
        "header content-length 3",
        "header host other",
        "add x-a 2",
        "remove x-a",
        "remove x-b",
        "remove host",
        "call a /",
        "call a /slow",
        "call none /",
        "both a b",
        "both b a",
        "reply 403 no",
        "log hello",
        "header x-a \u{1}",
        "path /other",
        "upstream b",
        "upstream none",
        "tag t",
        "set tenant acme",
        "get tenant",
        "get request.path",
        "get response.code",
        "set request.host c.example",
        "get request.headers.x-a",
        "panic",
    ];

    fn script() -> impl Strategy<Value = String> {
        // A panic is one step among many, or hardly anything else would be seen.
        let step = prop_oneof![20 => 0..STEPS.len() - 1, 1 => Just(STEPS.len() - 1)];
        vec(step, 0..5).prop_map(|steps| steps.into_iter().map(|at| STEPS[at]).collect::<Vec<_>>().join("; "))
    }

    #[derive(Clone, Debug)]
    struct Case {
        on_request: String,
        on_response: String,
        body: String,
        answer: String,
        chunk: Option<usize>,
        trailers: bool,
        pieces: bool,
        leaves: Option<u64>,
    }

    fn case() -> impl Strategy<Value = Case> {
        let body = || proptest::string::string_regex("[a-z]{0,12}").unwrap();
        let leaves = prop_oneof![4 => Just(None), 1 => (0..3_u64).prop_map(Some)];
        (script(), script(), body(), body(), proptest::option::of(1..5_usize), any::<bool>(), any::<bool>(), leaves)
            .prop_map(|(on_request, on_response, body, answer, chunk, trailers, pieces, leaves)| Case {
                on_request,
                on_response,
                body,
                answer,
                chunk,
                trailers,
                pieces,
                leaves,
            })
    }

    /// Everything there is to see of a case, twice: the second request meets what the first has left.
    fn seen(tester: Tester<Obey>, case: &Case) -> String {
        let (answer, pieces) = (case.answer.clone(), case.pieces);
        let tester = tester
            .upstream("a", |seen| {
                let slow = if seen.path() == "/slow" { 700 } else { 0 };
                Answer::from(Reply::new(200).header("x-a", "a").body(seen.method())).after(Duration::from_millis(slow))
            })
            .upstream("b", |seen| Reply::new(203).body(seen.body()))
            .origin(move |_| {
                let answer = Answer::from(Reply::new(200).header("x-b", "b").body(answer.clone()));
                let text = answer.clone();
                if pieces { text.pieces(["piece", "", "by", "piece"]).trailer("x-end", "1") } else { answer }
            });
        let mut all = String::new();
        for _ in 0..2 {
            let mut request =
                tester.post("/path?q").header("x-do", &case.on_request).header("x-then", &case.on_response);
            request = request.header("x-b", "b").body(case.body.clone());
            if let Some(chunk) = case.chunk {
                request = request.chunked(chunk);
            }
            if case.trailers {
                request = request.trailers();
            }
            request = match case.leaves {
                Some(0) => request.client_leaves_after(Duration::from_millis(300)),
                Some(1) => request.client_leaves_in_request(1),
                Some(_) => request.client_leaves_in_response(1),
                None => request,
            };
            let outcome = request.send();
            let failed = outcome.failed().is_some();
            // Why differs: a panic here, a trap there. The log says the same.
            let text = outcome.to_string().replace("sdk/testing/tests/../../examples", "sdk/examples");
            all.push_str(text.split("failure: ").next().unwrap_or_default());
            all.push_str(&format!("{failed} {:?}\n", outcome.took()));
        }
        format!("{all}{:?} {:?} {:?}", tester.metrics(), tester.shared("n"), tester.calls_to("a").len())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_same_exchange_comes_to_the_same_natively_and_compiled(case in case()) {
            prop_assert_eq!(seen(Tester::native(), &case), seen(compiled(), &case));
        }
    }
}
