//! What a route's `cache` makes of requests and responses: key parts, lifetimes by status, cookies, languages, codings, targeted fields.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use selvedge_tests::{Client, Edge, Origin, Request, Response, closed, soon};

/// A node with one cached route of this policy; whoever connects is a trusted proxy.
fn node(policy: &str, origin: SocketAddr) -> Edge {
    let yaml = format!(
        "
version: 1
node: {{ name: edge, workers: 1, shutdown_grace: 1s, trusted_proxies: [127.0.0.0/8] }}
telemetry: {{ access_log: {{ output: off }} }}
listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocols: [h1, h2] }} }}
cache: {{}}
geo: {{ database: \"builtin:test\" }}
upstreams: {{ app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }} }}
sites: [{{ hosts: [\"*\"], routes: [{{ name: \"policy-${{ID}}\", cache: {policy}, to: app }}] }}]"
    );
    Edge::start(&yaml, &[("app", origin)])
}

/// An origin that numbers its answers, with fields that `answer` makes of the request.
async fn numbering(
    answer: impl Fn(&Request) -> (u16, Vec<(&'static str, &'static str)>) + Send + Sync + 'static,
) -> Origin {
    let count = AtomicUsize::new(0);
    Origin::start(move |request| {
        let (status, fields) = answer(request);
        Origin::reply(status, &fields, format!("answer {}", count.fetch_add(1, Ordering::SeqCst) + 1))
    })
    .await
}

async fn fresh() -> Origin {
    numbering(|_| (200, vec![("cache-control", "max-age=60")])).await
}

async fn ask(edge: &Edge, method: &str, target: &str, fields: &[(&str, &str)]) -> Response {
    let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let mut client = Client::connect(edge.web()).await;
    soon("an answer", client.request(&format!("{method} {target} HTTP/1.1\r\nhost: test\r\n{fields}\r\n"))).await
}

/// Asks for one path with each of the fields, and says which answers came.
async fn answers(edge: &Edge, rows: &[&[(&str, &str)]]) -> Vec<String> {
    let mut answers = Vec::new();
    for fields in rows {
        answers.push(ask(edge, "GET", "/page", fields).await.text().replace("answer ", ""));
    }
    answers
}

const PHONE: (&str, &str) = ("user-agent", "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5) Mobile/15E148");
const TABLET: (&str, &str) = ("user-agent", "Mozilla/5.0 (iPad; CPU OS 17_5) Mobile/15E148");
const OTHER_PHONE: (&str, &str) = ("user-agent", "Mozilla/5.0 (Linux; Android 14; Pixel 8) Mobile Safari/537.36");

#[tokio::test(flavor = "multi_thread")]
async fn headers_cookies_devices_and_places_count_where_the_route_says_so() {
    let origin = fresh().await;
    let headers = node("{ key: { headers: [x-user, x-ab-shop] } }", origin.address());
    let rows: &[&[(&str, &str)]] = &[
        &[],
        &[("x-user", "ann")],
        &[("x-user", "bob")],
        &[("x-user", "ann"), ("x-other", "1")],
        &[("x-user", "")],
        &[("x-ab-shop", "ann")],
        &[("x-user", "a"), ("x-user", "b")],
        &[("x-user", "a,b")],
        &[],
    ];
    assert_eq!(answers(&headers, rows).await, ["1", "2", "3", "2", "4", "5", "6", "6", "1"]);

    let origin = fresh().await;
    let cookies = node("{ key: { cookies: [lang] } }", origin.address());
    let rows: &[&[(&str, &str)]] = &[
        &[("cookie", "lang=de; session=1")],
        &[("cookie", "session=2; lang=de")],
        &[("cookie", "lang=en")],
        &[("cookie", "session=3")],
        &[],
    ];
    assert_eq!(answers(&cookies, rows).await, ["1", "1", "2", "3", "3"]);

    let origin = fresh().await;
    let devices = node("{ key: { device: true } }", origin.address());
    let rows: &[&[(&str, &str)]] = &[&[PHONE, ("x-device-class", "bot")], &[OTHER_PHONE], &[TABLET], &[]];
    assert_eq!(answers(&devices, rows).await, ["1", "1", "2", "3"]);
    let told: Vec<_> =
        origin.received().iter().map(|request| request.header("x-device-class").map(str::to_owned)).collect();
    assert_eq!(
        told,
        ["mobile", "tablet", "desktop"].map(|class| Some(class.to_owned())),
        "what a client says is nothing"
    );

    let origin = fresh().await;
    let places = node("{ key: { geo: country } }", origin.address());
    let rows: &[&[(&str, &str)]] = &[
        &[("x-forwarded-for", "203.0.113.1")],
        &[("x-forwarded-for", "198.51.100.1")],
        &[("x-forwarded-for", "203.0.113.2")],
        &[("x-forwarded-for", "10.9.9.9")],
    ];
    let got = answers(&places, rows).await;
    assert_eq!((&got[0], got[0] == got[1], got[3] == got[0]), (&got[2], false, false), "{got:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsafe_request_puts_every_key_of_its_url_out_of_date() {
    let origin = fresh().await;
    let edge = node("{ key: { headers: [x-user], query: { except: [utm] } } }", origin.address());
    for (fields, expected) in [(&[("x-user", "ann")][..], "answer 1"), (&[][..], "answer 2")] {
        assert_eq!(ask(&edge, "GET", "/page?a=1", fields).await.text(), expected);
    }
    assert_eq!(ask(&edge, "POST", "/page?a=1&utm=x", &[("content-length", "0")]).await.text(), "answer 3");
    assert_eq!(ask(&edge, "GET", "/page?a=1", &[("x-user", "ann")]).await.text(), "answer 4");
    assert_eq!(ask(&edge, "GET", "/page?a=1", &[]).await.text(), "answer 5");
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_may_be_left_out_and_sorted() {
    let origin = fresh().await;
    let edge = node("{ key: { query: { except: [utm] }, sort: true } }", origin.address());
    for (target, expected) in [
        ("/page?b=2&a=1&utm=x", "answer 1"),
        ("/page?a=1&b=2", "answer 1"),
        ("/page?a=1&a=2", "answer 2"),
        ("/page?a=2&a=1", "answer 3"),
        ("/page?utm=y", "answer 4"),
        ("/page", "answer 4"),
    ] {
        assert_eq!(ask(&edge, "GET", target, &[]).await.text(), expected, "{target}");
    }
    assert_eq!(origin.received()[0].target, "/page?b=2&a=1&utm=x", "the origin gets all of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn lifetimes_by_status_keep_errors_briefly() {
    let origin = numbering(|request| match request.target.as_str() {
        "/missing" => (404, vec![]),
        "/broken" => (503, vec![]),
        "/moved" => (302, vec![("location", "/x")]),
        "/secret" => (404, vec![("cache-control", "no-store")]),
        _ => (200, vec![]),
    })
    .await;
    let edge = node("{ ttl: { 200-299: 10m, 404: 30s, 500-599: 20s } }", origin.address());
    for (target, kept, ttl) in
        [("/", true, 600), ("/missing", true, 30), ("/broken", true, 20), ("/moved", false, 0), ("/secret", false, 0)]
    {
        let first = ask(&edge, "GET", target, &[]).await;
        let again = ask(&edge, "GET", target, &[]).await;
        assert_eq!(first.text() == again.text(), kept, "{target}");
        let status = first.header("cache-status").expect("cache-status");
        let left = status.split("; ").find_map(|part| part.strip_prefix("ttl=")?.parse::<u64>().ok());
        assert!(left.is_some_and(|left| left <= ttl && left + 20 > ttl) == kept, "{target}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cookies_of_responses_are_stored_stripped_or_passed() {
    let origin = numbering(|request| {
        let mut fields = vec![("set-cookie", "session=1"), ("set-cookie", "more=2")];
        fields.extend((request.target != "/silent").then_some(("cache-control", "max-age=60")));
        (200, fields)
    })
    .await;
    for (policy, target, second, cookie) in [
        ("{}", "/", true, Some("session=1")),
        ("{ ttl: 1m }", "/silent", false, Some("session=1")),
        ("{ cookies: strip }", "/", true, None),
        ("{ cookies: strip, ttl: 1m }", "/silent", true, None),
        ("{ cookies: strip, ttl: 1m, override: true }", "/", true, None),
        ("{ cookies: pass }", "/", false, Some("session=1")),
    ] {
        let edge = node(policy, origin.address());
        let first = ask(&edge, "GET", target, &[]).await;
        assert_eq!(first.header("set-cookie"), Some("session=1"), "{policy}: whose request it was gets it");
        let again = ask(&edge, "GET", target, &[]).await;
        assert_eq!((again.text() == first.text(), again.header("set-cookie")), (second, cookie), "{policy}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn languages_and_codings_are_made_alike() {
    let origin = numbering(|_| (200, vec![("cache-control", "max-age=60"), ("vary", "accept-language")])).await;
    let edge = node("{ languages: [de, en-GB] }", origin.address());
    let rows: &[&[(&str, &str)]] = &[
        &[("accept-language", "de-AT,de;q=0.9,en;q=0.8")],
        &[("accept-language", "fr, de;q=0.5")],
        &[("accept-language", "en-US, en;q=0.5")],
        &[("accept-language", "en")],
        &[("accept-language", "ja")],
        &[],
    ];
    assert_eq!(answers(&edge, rows).await, ["1", "1", "2", "2", "3", "3"]);
    let told: Vec<_> =
        origin.received().iter().map(|request| request.header("accept-language").map(str::to_owned)).collect();
    assert_eq!(told, [Some("de".to_owned()), Some("en-gb".to_owned()), None], "so that the answer is for all of them");

    let origin = numbering(|_| {
        (200, vec![("cache-control", "max-age=60"), ("vary", "accept-encoding"), ("content-encoding", "br")])
    })
    .await;
    let edge = node("{}", origin.address());
    let rows: &[&[(&str, &str)]] = &[
        &[("accept-encoding", "gzip, deflate, br, zstd")],
        &[("accept-encoding", "zstd;q=0.9, br, gzip")],
        &[("accept-encoding", "br")],
        &[("accept-encoding", "br;q=1, deflate")],
        &[("accept-encoding", "identity")],
        &[],
    ];
    assert_eq!(answers(&edge, rows).await, ["1", "1", "2", "2", "3", "4"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_own_targeted_field_comes_before_the_others() {
    let origin = numbering(|request| match request.target.as_str() {
        "/own" => (
            200,
            vec![
                ("selvedge-cdn-cache-control", "max-age=60"),
                ("cdn-cache-control", "no-store"),
                ("cache-control", "no-store"),
            ],
        ),
        "/invalid" => (
            200,
            vec![
                ("selvedge-cdn-cache-control", "max-age=x"),
                ("cdn-cache-control", "no-store"),
                ("cache-control", "max-age=60"),
            ],
        ),
        _ => (200, vec![("selvedge-cdn-cache-control", "no-store"), ("cache-control", "max-age=60")]),
    })
    .await;
    let edge = node("{}", origin.address());
    for (target, kept) in [("/own", true), ("/invalid", false), ("/refused", false)] {
        let first = ask(&edge, "GET", target, &[]).await.text();
        assert_eq!(ask(&edge, "GET", target, &[]).await.text() == first, kept, "{target}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_to_post_that_is_the_content_of_its_url_serves_get() {
    let origin = numbering(|request| match (request.method.as_str(), request.target.as_str()) {
        ("POST", "/silent") => (200, vec![("content-location", "/silent")]),
        ("POST", "/varies") => {
            (200, vec![("content-location", "/varies"), ("cache-control", "max-age=60"), ("vary", "a")])
        }
        ("POST", "/else") => (200, vec![("content-location", "/other"), ("cache-control", "max-age=60")]),
        _ => (200, vec![("content-location", "/page"), ("cache-control", "max-age=60")]),
    })
    .await;
    let edge = node("{}", origin.address());
    assert_eq!(ask(&edge, "GET", "/page", &[]).await.text(), "answer 1");
    let post = async |target: &str| ask(&edge, "POST", target, &[("content-length", "0")]).await;
    // It is stored when the exchange is over, which the client need not wait for.
    let served = async {
        loop {
            let posted = post("/page").await;
            assert!(
                posted.header("cache-status").expect("one").contains("fwd=method"),
                "never answered from the cache"
            );
            let got = ask(&edge, "GET", "/page", &[]).await;
            if got.text() == posted.text() {
                return got;
            }
        }
    };
    let got = soon("what POST brought", served).await;
    assert!(got.header("cache-status").expect("one").contains("; hit"));
    for target in ["/silent", "/varies", "/else"] {
        let posted = post(target).await.text();
        assert_ne!(ask(&edge, "GET", target, &[]).await.text(), posted, "{target}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_may_be_kept_as_they_are_asked_for() {
    let origin = Origin::start(|request| {
        let fields = [("cache-control", "max-age=60"), ("etag", "\"a\"")];
        match request.header("range") {
            Some("bytes=0-1") => {
                Origin::reply(206, &[&fields[..], &[("content-range", "bytes 0-1/10")]].concat(), "01")
            }
            Some("bytes=-2") => Origin::reply(206, &[&fields[..], &[("content-range", "bytes 8-9/10")]].concat(), "89"),
            Some("bytes=5-") => Origin::reply(206, &[("content-range", "bytes 5-9/10")], "56789"),
            _ => Origin::reply(200, &fields, "0123456789"),
        }
    })
    .await;
    let edge = node("{ ranges: as_asked }", origin.address());
    let range = async |value: &str| {
        let response = ask(&edge, "GET", "/file", &[("range", value)]).await;
        (response.status, response.text(), origin.started())
    };
    assert_eq!(range("bytes=0-1").await, (206, "01".into(), 1));
    assert_eq!(range("bytes=0-1").await, (206, "01".into(), 1), "kept");
    assert_eq!(range("bytes=-2").await, (206, "89".into(), 2));
    assert_eq!(range("bytes=-2").await, (206, "89".into(), 2));
    assert_eq!(range("bytes=0-1").await, (206, "01".into(), 2));
    assert_eq!(range("bytes=5-").await, (206, "56789".into(), 3));
    assert_eq!(range("bytes=5-").await, (206, "56789".into(), 4), "nobody said how long it is fresh");
    let with_condition = ask(&edge, "GET", "/file", &[("range", "bytes=0-1"), ("if-range", "\"b\"")]).await;
    assert_eq!((with_condition.status, with_condition.text()), (200, "0123456789".into()));
    assert_eq!(range("bytes=3-4").await, (206, "34".into(), 5), "all of it serves every range");
    let head = ask(&edge, "HEAD", "/file", &[]).await;
    assert_eq!((head.status, head.header("content-length")), (200, Some("10")));

    let whole = node("{}", origin.address());
    let cold = ask(&whole, "GET", "/file", &[("range", "bytes=0-1")]).await;
    assert_eq!((cold.status, cold.text(), origin.last().header("range")), (206, "01".into(), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_go_in_circles_are_refused_and_all_others_say_where_they_were() {
    let origin = fresh().await;
    let edge = node("{}", origin.address());
    let passed = ask(&edge, "GET", "/a", &[("cdn-loop", "other;v=\"1, 2\", edge")]).await;
    let told = origin
        .last()
        .headers
        .iter()
        .filter(|(name, _)| name == "cdn-loop")
        .map(|(_, value)| value.clone())
        .collect::<Vec<_>>();
    assert_eq!((passed.status, told), (200, vec!["other;v=\"1, 2\", edge".to_owned(), "edge".into()]));
    let refused = ask(&edge, "GET", "/b", &[("cdn-loop", "edge, edge, edge")]).await;
    assert_eq!((refused.status, refused.header("proxy-status")), (508, Some("edge; error=proxy_loop_detected")));
    assert_eq!(origin.started(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_a_cached_route_has_a_cache_status() {
    let edge = node("{}", closed());
    let failed = ask(&edge, "GET", "/a", &[]).await;
    assert_eq!(failed.status, 502);
    assert_eq!(failed.header("cache-status"), Some("edge; fwd=uri-miss; detail=upstream-error"));
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_say_what_they_want_of_the_cache_and_see_what_came_of_it() {
    let origin = fresh().await;
    let yaml = "
version: 1
node: { name: edge, workers: 1, shutdown_grace: 1s }
telemetry: { access_log: { output: off } }
admin: { bind: \"127.0.0.1:0\" }
listeners: { web: { bind: \"127.0.0.1:0\" } }
cache: {}
upstreams: { app: { endpoints: [\"127.0.0.1:${PORT_app}\"] } }
filters: { cached: { wasm: \"file:${GUESTS}/cached.wasm\", limits: { deadline: 10s } } }
sites:
- hosts: [\"*\"]
  routes:
  - { name: \"wishes-${ID}\", filters: [cached], cache: {}, to: app }
  - { name: plain, match: { path: /plain }, filters: [cached], to: app }";
    let edge = Edge::start(yaml, &[("app", origin.address())]);
    let (red, blue) = (format!("red-{}", edge.id()), format!("blue-{}", edge.id()));
    let verdict = |response: &Response| response.header("x-verdict").expect("one").to_owned();

    let first = ask(&edge, "GET", "/a", &[("x-part", "one"), ("x-tag", &red), ("x-tag", "more")]).await;
    assert_eq!(
        (first.text().as_str(), verdict(&first).as_str()),
        ("answer 1", "uri-miss hit=false key=true fresh=true")
    );
    let again = ask(&edge, "GET", "/a", &[("x-part", "one")]).await;
    assert_eq!((again.text().as_str(), verdict(&again).as_str()), ("answer 1", "hit hit=true key=true fresh=true"));
    let other = ask(&edge, "GET", "/a", &[("x-part", "two"), ("x-tag", &blue)]).await;
    assert_eq!(other.text(), "answer 2", "another part");
    let bypass = ask(&edge, "GET", "/a", &[("x-part", "one"), ("x-bypass", "1")]).await;
    assert_eq!(
        (bypass.text().as_str(), verdict(&bypass).as_str()),
        ("answer 3", "bypass hit=false key=false fresh=false")
    );
    assert_eq!(ask(&edge, "GET", "/b", &[("x-ttl", "600")]).await.text(), "answer 4");
    let longer = ask(&edge, "GET", "/b", &[]).await;
    let left = longer.header("cache-status").and_then(|status| status.split("ttl=").nth(1)?.parse::<u64>().ok());
    assert!(left.is_some_and(|left| left > 60), "{:?}", longer.headers);
    assert_eq!(verdict(&ask(&edge, "GET", "/plain", &[("x-tag", "a")]).await), "none");
    assert!(origin.received().iter().all(|request| request.header("x-refused").is_none()));
    ask(&edge, "GET", "/c", &[("x-tag", &"t".repeat(2000))]).await;
    assert_eq!(origin.last().header("x-refused"), Some("yes"), "too long");

    let order = format!("{{\"tags\":[\"{red}\"]}}");
    let head = "POST /v1/cache/purge HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    let mut client = Client::connect(edge.admin()).await;
    client.send(format!("{head}content-length: {}\r\n\r\n{order}", order.len()).as_bytes()).await;
    let purged = client.response("POST").await;
    assert_eq!(purged.status, 200, "{}", purged.text());
    assert_eq!(ask(&edge, "GET", "/a", &[("x-part", "one")]).await.text(), "answer 7", "its tag was purged");
    assert_eq!(ask(&edge, "GET", "/a", &[("x-part", "two")]).await.text(), "answer 2", "another tag");
}

/// `No-Vary-Search`: what a response says of queries holds for its path from then on, and one who says otherwise is believed.
#[tokio::test(flavor = "multi_thread")]
async fn parameters_that_do_not_matter_share_a_response() {
    let origin = numbering(|request| {
        let fresh = ("cache-control", "max-age=60");
        match request.target.split('?').next().unwrap_or_default() {
            "/only" => (200, vec![fresh, ("no-vary-search", "params, except=(\"id\")")]),
            "/without" => (200, vec![fresh, ("no-vary-search", "key-order, params=(\"utm\" \"a b\")")]),
            "/bad" => (200, vec![fresh, ("no-vary-search", "params=(utm)")]),
            "/changed" if request.target.contains("new") => (200, vec![fresh, ("no-vary-search", "params=(\"b\")")]),
            "/changed" => (200, vec![fresh, ("no-vary-search", "params=(\"a\" \"new\")")]),
            "/left" if request.target.contains("gone") => (404, vec![fresh]),
            "/left" if request.target.contains("last") => (200, vec![fresh]),
            _ => (200, vec![fresh, ("no-vary-search", "params=(\"x\")")]),
        }
    })
    .await;
    let edge = node("{}", origin.address());
    let mut count = 0;
    let mut previous = "";
    for (target, earlier) in [
        // The first response of a path teaches; its own key is that of the whole query.
        ("/only?id=1&utm=a", None),
        ("/only?id=1&utm=a", None),
        ("/only?utm=b&id=1", Some(0)),
        ("/only?%69d=%31", Some(0)),
        ("/only?id=1&id=1", None),
        ("/only?id=2", None),
        ("/only?ID=2", None),
        ("/only", Some(0)),
        ("/without?x=1&y=2", None),
        ("/without?x=1&y=2", None),
        ("/without?utm=1&y=2&&x=1&a+b=3&a%20b", Some(0)),
        ("/without?y=2&x=2", None),
        ("/bad?utm=1", None),
        ("/bad?utm=1", Some(0)),
        ("/bad?utm=2", None),
        // What another response says holds from then on; it is not kept, as it was asked for by what the first one had said.
        ("/changed?a=1&b=1", None),
        ("/changed?a=2&b=1", None),
        ("/changed?a=3&b=1", Some(0)),
        ("/changed?a=1&b=9&new", None),
        ("/changed?a=1&new&b=2", None),
        ("/changed?a=1&b=3&new", Some(0)),
        // An error says nothing of other pages. A page that says nothing does.
        ("/left?x=1", None),
        ("/left?x=2", None),
        ("/left?gone", None),
        ("/left?gone", None),
        ("/left?x=3", Some(2)),
        ("/left?last", None),
        ("/left?last", None),
        ("/left?last", Some(0)),
        ("/left?x=3", None),
    ] {
        let answer = ask(&edge, "GET", target, &[]).await.text();
        // A new answer, or the one that came so many before the last one.
        count += usize::from(earlier.is_none());
        let expected = count - earlier.unwrap_or(0);
        assert_eq!(answer, format!("answer {expected}"), "{target} after {previous}");
        previous = target;
    }
}

/// A purge of a URL reaches what is stored for it together with others, and so does an unsafe request.
#[tokio::test(flavor = "multi_thread")]
async fn what_several_queries_share_goes_with_any_of_them() {
    let origin =
        numbering(|_| (200, vec![("cache-control", "max-age=60"), ("no-vary-search", "params=(\"utm\")")])).await;
    let edge = node("{}", origin.address());
    let answer = |method: &'static str, target: &'static str| {
        let edge = &edge;
        async move { ask(edge, method, target, &[("content-length", "0")]).await.text() }
    };
    for expected in ["answer 1", "answer 2"] {
        assert_eq!(answer("GET", "/p?id=1&utm=a").await, expected);
    }
    assert_eq!(answer("GET", "/p?id=1&utm=b").await, "answer 2");
    assert_eq!(answer("POST", "/p?id=1&utm=c").await, "answer 3");
    assert_eq!(answer("GET", "/p?id=1&utm=b").await, "answer 4");
    assert_eq!(answer("GET", "/p?id=1").await, "answer 4");
}

/// RFC 9211, 2.7; and what header fields hold stays out.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_key_is_made_of_is_told_where_the_route_says_so() {
    let origin = fresh().await;
    let edge =
        node("{ show_key: true, key: { query: { only: [id] }, headers: [x-user], device: true } }", origin.address());
    let told = ask(&edge, "GET", "/page?utm=1&id=%22", &[("x-user", "ann"), PHONE]).await;
    let status = told.header("cache-status").unwrap_or_default();
    assert!(status.contains(r#"; key="http://test/page?id=%22 header.x-user=<its value> device=mobile""#), "{status}");
    let silent = node("{}", origin.address());
    let silent = ask(&silent, "GET", "/page?utm=1&id=1", &[]).await;
    assert!(silent.header("cache-status").is_some_and(|status| !status.contains("key=")), "{:?}", silent.headers);
}

/// What is for somebody alone says nothing about the other variants of its URL: they are answered from the cache all the same, and whose it is
/// waits for nobody.
#[tokio::test(flavor = "multi_thread")]
async fn a_private_variant_leaves_the_others_in_the_cache() {
    let origin = numbering(|request| {
        let control = if request.header("cookie").is_some() { "private, max-age=60" } else { "max-age=60" };
        (200, vec![("cache-control", control), ("vary", "cookie")])
    })
    .await;
    let edge = node("{}", origin.address());
    let (ann, nobody) = (&[("cookie", "id=ann")][..], &[][..]);
    assert_eq!(answers(&edge, &[nobody, ann, nobody, ann, ann, nobody]).await, ["1", "2", "1", "3", "4", "1"]);
    let own = ask(&edge, "GET", "/page", ann).await;
    let status = own.header("cache-status").expect("cache-status");
    assert_eq!(status, "edge; fwd=vary-miss; fwd-status=200; detail=hit-for-miss");
    let stored = ask(&edge, "GET", "/page", nobody).await;
    assert!(stored.header("cache-status").expect("cache-status").starts_with("edge; hit"), "{:?}", stored.headers);

    // After an invalidation it is looked at anew.
    assert_eq!(ask(&edge, "POST", "/page", &[]).await.status, 200);
    answers(&edge, &[nobody]).await;
    let anew = ask(&edge, "GET", "/page", ann).await;
    assert!(anew.header("cache-status").expect("cache-status").ends_with("detail=private"), "{:?}", anew.headers);
}

/// RFC 9213, 2.1: what restricts a response does so with a value of another type, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_restriction_with_an_unknown_value_restricts() {
    for control in ["max-age=60, no-cache=1", "max-age=60, private=1", "max-age=60, no-store=1"] {
        let origin = numbering(move |_| (200, vec![("cdn-cache-control", control), ("etag", "\"1\"")])).await;
        let edge = node("{}", origin.address());
        assert_eq!(answers(&edge, &[&[], &[]]).await, ["1", "2"], "{control}");
    }
}
