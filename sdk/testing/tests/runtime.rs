//! The promises of the SDK's executor, through small filters.

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

filter!(Echo, |req, _seen| {
    let body = req.body(10).await?;
    Err(Reply::new(200).body(body))
});

#[test]
fn the_whole_request_body_is_there_before_the_origin_hears_of_it() {
    let tester = Tester::<Echo>::native();
    for chunk in [1, 4, 100] {
        let outcome = tester.post("/").body("0123456789").chunked(chunk).send();
        assert_eq!(outcome.text(), "0123456789");
        assert!(outcome.upstream().is_none());
    }
    assert_eq!(tester.post("/").body("one piece").send().text(), "one piece");
    assert_eq!(tester.get("/").send().text(), "", "no body is an empty body");
}

#[test]
fn a_body_over_the_limit_is_413_announced_or_not() {
    let tester = Tester::<Echo>::native();
    assert_eq!(tester.post("/").body("0123456789a").send().status(), 413);
    assert_eq!(tester.post("/").body("0123456789a").chunked(3).send().status(), 413);
}

filter!(Replace, |req, _seen| {
    req.set_body("new");
    Ok(Next)
});

#[test]
fn a_body_that_was_not_read_is_replaced_as_it_comes() {
    let tester = Tester::<Replace>::native();
    for request in [tester.post("/").body("something longer"), tester.post("/").body("something longer").chunked(5)] {
        let seen = request.send().upstream().cloned().unwrap();
        assert_eq!((seen.body(), seen.header("content-length")), (&b"new"[..], Some("3")));
    }
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

filter!(
    Both,
    |req, seen| {
        let (a, b) = join(upstream("a").get("/1").send(), upstream("b").post(req.path()).body("x").send()).await;
        seen.push(format!("{}", a.or_deny(503, "a")?.status()));
        seen.push(format!("{}", b.or_deny(503, "b")?.status()));
        let body = req.body(100).await?;
        seen.push(String::from_utf8_lossy(&body).into_owned());
        Ok(Next)
    },
    |res, seen| {
        let answer = upstream("a").get("/2").send().await.or_deny(503, "a")?;
        res.set_status(answer.status());
        seen.push("response".into());
        Ok(Next)
    }
);

#[test]
fn callouts_at_once_then_the_body_then_a_callout_in_the_response() {
    let tester = Tester::<Both>::native()
        .upstream("a", |seen| Reply::new(if seen.path() == "/2" { 206 } else { 201 }))
        .upstream("b", |seen| {
            assert_eq!(
                (seen.method(), seen.path(), &seen["content-length"], seen.body()),
                ("POST", "/p", "1", &b"x"[..])
            );
            Reply::new(202)
        })
        .origin(|seen| Reply::new(200).body(seen.body().to_vec()));
    let outcome = tester.post("/p").body("abc").chunked(1).send();
    assert_eq!((outcome.status(), outcome.text()), (206, "abc"));
    assert_eq!(outcome.logs(), ["INFO 201,202,abc,response"]);
    assert_eq!((tester.calls("a"), tester.calls("b")), (2, 1));
}

#[test]
fn an_unknown_upstream_fails_at_once() {
    let outcome = Tester::<Both>::native().upstream("a", |_| Reply::new(200)).get("/").send();
    assert_eq!(outcome.text(), "b\n", "the reply, though the response hook has changed its status");
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

filter!(Look, |req, seen| {
    seen.push(format!("{} {} {:?} {}", req.method(), req.path(), req.query(), req.host()));
    seen.push(req.url());
    seen.push(format!("{:?} {:?}", req.header_str("x-raw"), req.header("x-raw").map(|value| value.len())));
    seen.push(format!("{:?}", req.cookie("b")));
    seen.push(format!("{:?} {:?} {:?}", req.client().address(), req.client().country(), req.client().continent()));

    req.set_path("/changed");
    seen.push(format!("{} {:?}", req.path(), req.query()));
    req.add_header("x-many", "1");
    req.add_header("x-many", "2");
    seen.push(format!("{:?}", req.header_values("X-Many")));
    req.remove_header("x-raw");
    req.set_upstream("other");
    Ok(Next)
});

#[test]
fn a_request_tells_what_it_is() {
    let tester = Tester::<Look>::native()
        .client("2001:db8::1")
        .country("DE")
        .continent("EU")
        .upstream("other", |_| Reply::new(204));
    let outcome = tester
        .request("PURGE", "/a/b?c=d?e")
        .host("Example.COM:8080")
        .header("x-raw", b"\xff\xfe")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .send();
    let seen = outcome.upstream().unwrap();
    assert_eq!((outcome.status(), seen.upstream(), seen.path()), (204, "other", "/changed?c=d?e"));
    assert_eq!(seen.header("x-raw"), None);
    assert_eq!(
        outcome.logs(),
        [[
            r#"INFO PURGE /a/b Some("c=d?e") example.com"#,
            "http://Example.COM:8080/a/b?c=d?e",
            "None Some(2)",
            r#"Some("2")"#,
            r#"Some(2001:db8::1) Some("DE") Some("EU")"#,
            r#"/changed Some("c=d?e")"#,
            r#"["1", "2"]"#,
        ]
        .join(",")]
    );
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
