//! The promises of the SDK's executor that no example needs, through small filters.

#![allow(missing_docs, clippy::unwrap_used, unused_braces, reason = "a test; the hooks are blocks handed to a macro")]

use selvedge_sdk::prelude::*;
use selvedge_sdk_testing::Tester;

/// Runs `$request` as the request hook and `$response` as the response hook.
macro_rules! filter {
    ($name:ident, |$req:ident, $seen:ident| $request:block) => {
        filter!($name, |$req, $seen| $request, |_res, _seen2| { Ok(Next) });
    };
    ($name:ident, |$req:ident, $seen:ident| $request:block, |$res:ident, $seen2:ident| $response:block) => {
        struct $name;

        #[filter(body = "both")]
        impl Filter for $name {
            type Config = ();
            type Stream = Vec<String>;

            fn new((): ()) -> Result<Self, String> {
                Ok(Self)
            }

            async fn request(&self, $req: &mut Request, $seen: &mut Vec<String>) -> Flow {
                $request
            }

            async fn response(&self, $res: &mut Response, $seen2: &mut Vec<String>) -> Flow {
                $response
            }

            fn done(&self, seen: &Vec<String>) {
                info!("{}", seen.join(","));
            }
        }
    };
}

filter!(ReadReplaceRead, |req, seen| {
    let old = req.body(100).await?;
    req.set_body("a body that is longer than the old one");
    let new = req.body(100).await?;
    seen.push(format!("{} -> {}", old.len(), new.len()));
    Ok(Next)
});

#[test]
fn the_new_body_is_what_is_read_from_then_on() {
    let outcome = Tester::<ReadReplaceRead>::native().post("/").body("old").chunked(2).send();
    assert_eq!(outcome.upstream().unwrap().body(), b"a body that is longer than the old one");
    assert_eq!(outcome.logs(), ["INFO 3 -> 38"]);
}

filter!(Dropped, |_req, seen| {
    // Sent and not waited for: the answer finds nobody.
    drop(upstream("a").get("/").send());
    seen.push("gone on".into());
    Ok(Next)
});

#[test]
fn a_callout_nobody_waits_for_disturbs_nobody() {
    let tester = Tester::<Dropped>::native().upstream("a", |_| Reply::new(200));
    let outcome = tester.get("/").send();
    assert_eq!((outcome.status(), outcome.logs().len(), tester.calls("a")), (200, 1, 1));
}

filter!(Late, |_req, _seen| { Ok(Next) }, |res, _seen| {
    let body = res.body(4).await?;
    Err(Reply::new(500 + u16::try_from(body.len()).unwrap()).header("x-from", "filter").body("replaced"))
});

#[test]
fn a_reply_from_the_response_hook_replaces_the_response() {
    let tester =
        Tester::<Late>::native().origin(|seen| Reply::new(200).header("x-from", "origin").body(seen.body().to_vec()));
    let outcome = tester.post("/").body("abc").chunked(1).send();
    assert_eq!((outcome.status(), outcome.header("x-from"), outcome.text()), (503, Some("filter"), "replaced"));
    assert_eq!(tester.post("/").body("abcde").send().status(), 502, "a response over the limit");
}

filter!(Stuck, |_req, _seen| {
    std::future::pending::<()>().await;
    Ok(Next)
});

#[test]
#[should_panic(expected = "waits for nothing that will come")]
fn a_hook_that_waits_for_nothing_fails_the_test() {
    Tester::<Stuck>::native().get("/").send();
}

struct Counts {
    ticks: metrics::Counter,
    level: metrics::Gauge,
    sizes: metrics::Histogram,
}

#[filter]
impl Filter for Counts {
    type Config = ();

    const TICK: Option<Duration> = Some(Duration::from_secs(1));

    fn new((): ()) -> Result<Self, String> {
        Ok(Self {
            ticks: metrics::counter("ticks"),
            level: metrics::gauge("level"),
            sizes: metrics::histogram("sizes"),
        })
    }

    fn tick(&self) {
        self.ticks.inc(2);
        self.level.set(10);
        self.level.add(-3);
        self.sizes.record(5);
        let total = kv::update("total", |old| vec![old.map_or(1, |old| old[0] + 1)]).unwrap();
        info!("total {total:?}");
        let (_, stale) = kv::get("total").unwrap();
        kv::set("total", b"\x09", Some(stale)).unwrap();
        assert_eq!(kv::set("total", b"\x01", Some(stale)), Err(kv::KvError::CasMismatch));
        let first = if total == [1] { Ok(()) } else { Err(kv::KvError::CasMismatch) };
        assert_eq!(kv::create("first", b"1"), first);
        assert_eq!(kv::create("first", b"2"), Err(kv::KvError::CasMismatch));
        assert_eq!(kv::get("first").unwrap().0, b"1");
        assert_eq!(selvedge_sdk::foreign::call("none", b""), Err(selvedge_sdk::foreign::ForeignError::Unknown));
    }
}

#[test]
fn ticks_metrics_and_shared_data() {
    let tester = Tester::<Counts>::native();
    tester.tick();
    tester.tick();
    assert_eq!((tester.metric("ticks"), tester.metric("level"), tester.metric("sizes")), (4, 7, 2));
    assert_eq!(tester.logs(), ["INFO total [1]", "INFO total [10]"]);
}

filter!(SetThenRead, |req, seen| {
    req.set_body("new");
    let body = req.body(100).await?;
    seen.push(String::from_utf8_lossy(&body).into_owned());
    Ok(Next)
});

#[test]
fn a_body_set_unread_is_what_is_read_later() {
    let tester = Tester::<SetThenRead>::native();
    for request in [tester.post("/").body("something longer"), tester.post("/").body("something longer").chunked(5)] {
        let outcome = request.send();
        assert_eq!(outcome.logs(), ["INFO new"]);
        assert_eq!(outcome.upstream().unwrap().body(), b"new");
    }
}

filter!(Insert, |req, _seen| {
    req.set_body("new");
    Ok(Next)
});

#[test]
fn a_message_without_a_body_keeps_its_length() {
    let outcome = Tester::<Insert>::native().get("/").header("content-length", "0").send();
    assert_eq!(outcome.upstream().unwrap().header("content-length"), Some("0"));
    assert!(outcome.logs()[0].starts_with("WARN the host did not take the new body"), "{:?}", outcome.logs());
}

filter!(ReplaceMidway, |req, seen| {
    let error = req.body(4).await.unwrap_err();
    seen.push(error.to_string());
    req.set_body("new");
    Ok(Next)
});

#[test]
fn a_body_found_too_long_can_still_be_replaced() {
    let outcome = Tester::<ReplaceMidway>::native().post("/").body("0123456789").chunked(3).send();
    let seen = outcome.upstream().unwrap();
    assert_eq!((seen.body(), seen.header("content-length")), (&b"new"[..], Some("3")));
}
