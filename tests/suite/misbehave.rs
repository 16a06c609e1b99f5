//! Filters that trap, spin and hoard: what it costs the exchange at hand, and nobody else.

use std::process::Command;

use bytes::Bytes;
use selvedge::node::StartError;
use selvedge_tests::{Client, Edge, Origin, Response, guest, h2::H2Client, soon, until};
use tokio::sync::mpsc;

use super::bodies::script;
use super::pause::{edge, filter};

/// The guests that fail, and limits that let them fail by the one they are meant to.
const SABOTEURS: [(&str, &str); 4] = [
    ("trap", "deadline: 5s"),
    ("spin", "cpu: 20ms, deadline: 20s"),
    ("hog", "deadline: 5s, memory: 4MiB"),
    ("nag", "deadline: 5s"),
];

/// Every callback the host makes over a stream, in the order in which it makes them.
const CALLBACKS: [&str; 7] =
    ["request_headers", "request_body", "response_headers", "response_body", "response_trailers", "done", "log"];

/// A node with a route `/<guest>/<callback>/*` for every way to fail, and `/calm/*` with filters that do not.
fn sabotaged(policy: &str, upstream: &str) -> String {
    let mut filters = String::new();
    let mut routes = String::new();
    for (guest, limits) in SABOTEURS {
        for callback in CALLBACKS {
            let name = format!("{guest}-{}", callback.replace('_', "-"));
            filters.push_str(&format!(
                "  {name}: {{ wasm: \"file:${{GUESTS}}/{guest}.wasm\", config: {callback}, on_failure: {policy}, limits: {{ {limits} }} }}\n"
            ));
            routes.push_str(&format!(
                "      - {{ name: {name}, match: {{ path: /{guest}/{callback}/* }}, filters: [calm, {name}, calm-too], to: app }}\n"
            ));
        }
    }
    format!(
        "upstreams: {{ app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"]{upstream} }} }}
filters:
  calm: {{ wasm: \"file:${{GUESTS}}/noop.wasm\", limits: {{ deadline: 5s }} }}
  calm-too: {{ wasm: \"file:${{GUESTS}}/noop.wasm\", limits: {{ deadline: 5s }} }}
{filters}sites:
  - hosts: [\"*\"]
    routes:
      - {{ name: calm, match: {{ path: /calm/* }}, filters: [calm, calm-too], to: app }}
{routes}"
    )
}

/// An origin that repeats the body, or streams one as the test says where the path ends in `/slow`.
async fn origin() -> (Origin, mpsc::UnboundedReceiver<mpsc::UnboundedSender<Bytes>>) {
    let (hand_over, senders) = mpsc::unbounded_channel();
    let origin = Origin::start(move |request| {
        if request.target.ends_with("/slow") {
            let (sender, served) = Origin::streaming(200, &[("x-origin", "yes")]);
            let _ = hand_over.send(sender);
            return served;
        }
        let mut body = b"you said ".to_vec();
        body.extend_from_slice(&request.body);
        Origin::reply(200, &[("x-origin", "yes")], body)
    })
    .await;
    (origin, senders)
}

/// A download that has begun before, and ends after, whatever else a test does.
struct Bystander {
    client: Client,
    body: mpsc::UnboundedSender<Bytes>,
}

impl Bystander {
    async fn begin(
        edge: &Edge,
        path: &str,
        senders: &mut mpsc::UnboundedReceiver<mpsc::UnboundedSender<Bytes>>,
    ) -> Self {
        let mut client = Client::connect(edge.web()).await;
        client.send(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await;
        let body = soon("the request", senders.recv()).await.expect("the origin runs");
        let (status, _) = client.head().await.expect("a header");
        assert_eq!(status, 200);
        let mut this = Self { client, body };
        this.says("begun").await;
        this
    }

    /// A chunk of the body passes.
    async fn says(&mut self, text: &'static str) {
        self.body.send(text.into()).expect("the origin is still asked");
        let mut read = String::new();
        while !read.contains(text) {
            let bytes = self.client.some().await.expect("the connection is open");
            assert!(!bytes.is_empty(), "the download was cut off: {read:?}");
            read.push_str(&String::from_utf8_lossy(&bytes));
        }
    }

    async fn ends(mut self) {
        self.says("ended").await;
        drop(self.body);
        let mut read = String::new();
        while !read.ends_with("0\r\n\r\n") {
            let bytes = self.client.some().await.expect("the connection is open");
            assert!(!bytes.is_empty(), "the download was cut off: {read:?}");
            read.push_str(&String::from_utf8_lossy(&bytes));
        }
    }
}

async fn post(edge: &Edge, path: &str) -> Response {
    Client::post(edge.web(), path, "", b"this").await
}

fn assert_untouched(response: &Response, body: &str, what: &str) {
    assert_eq!(
        (response.status, response.text().as_str(), response.header("x-origin")),
        (200, body, Some("yes")),
        "{what}"
    );
}

fn assert_refused(response: &Response, what: &str) {
    assert_eq!((response.status, response.text().as_str()), (503, "503 Service Unavailable\n"), "{what}");
    let status = response.header("proxy-status").unwrap_or_default();
    let filter = status.strip_prefix("edge; error=proxy_internal_error; details=\"filter ");
    let filter = filter.and_then(|rest| rest.strip_suffix(" failed\""));
    // Its name, and nothing of what went wrong in it.
    assert!(filter.is_some_and(|name| !name.contains([' ', '"'])), "{what}: {status}");
    assert_eq!(response.header("x-origin"), None, "{what}: nothing of the origin's answer is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_fails_closed_costs_its_own_exchange_only() {
    let (origin, mut senders) = origin().await;
    let edge = Edge::start(&sabotaged("closed", ""), &[("app", origin.address())]);
    let mut bystander = Bystander::begin(&edge, "/calm/slow", &mut senders).await;

    for (guest, _) in SABOTEURS {
        for callback in ["request_headers", "request_body", "response_headers"] {
            let path = format!("/{guest}/{callback}/");
            let before = origin.received().len();
            for _ in 0..2 {
                assert_refused(&post(&edge, &path).await, &path);
                let h2 = H2Client::connect(edge.web()).await.request("POST", &path, &[], b"this").await.unwrap();
                assert_refused(&h2, &path);
                bystander.says("still here").await;
            }
            let mut whole = origin.received().split_off(before);
            // The origin may only now notice a request whose body was refused before this.
            whole.retain(|request| request.target == path);
            match callback {
                "request_headers" => assert!(whole.is_empty(), "{path}: the origin was asked"),
                "request_body" => {
                    assert!(whole.iter().all(|request| request.body.is_empty()), "{path}: the origin had it")
                }
                _ => assert_eq!(whole.len(), 4, "{path}"),
            }
        }

        // A request without a body never reaches the callback: it is served by a new VM of the filter that has just failed.
        let path = format!("/{guest}/request_body/");
        for _ in 0..3 {
            assert_refused(&post(&edge, &path).await, &path);
            assert_untouched(&Client::get(edge.web(), &path).await, "you said ", &path);
        }

        // The header is out when the body fails: all that is left is to say that this is not the whole.
        let path = format!("/{guest}/response_body/slow");
        for _ in 0..2 {
            let mut client = Client::connect(edge.web()).await;
            client.send(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await;
            let body = soon("the request", senders.recv()).await.unwrap();
            let (status, _) = client.head().await.expect("the header is not held back");
            assert_eq!(status, 200, "{path}");
            body.send("never seen".into()).unwrap();
            assert!(client.is_closed().await, "{path}: no byte, no end of body");
            soon("the origin is let go", body.closed()).await;

            let h2 = H2Client::connect(edge.web()).await;
            let (response, _upload) = h2.open("GET", &path, &[], true).await.unwrap();
            let body = soon("the request", senders.recv()).await.unwrap();
            let response = soon("the header", response).await.expect("the header is not held back");
            body.send("never seen".into()).unwrap();
            assert!(H2Client::collect(response).await.is_err(), "{path}: the stream is reset");
            assert_untouched(&h2.request("GET", "/calm/", &[], b"").await.unwrap(), "you said ", "another stream");

            // A response without a body is served by a new VM.
            let mut client = Client::connect(edge.web()).await;
            let head = client.request(&format!("HEAD /{guest}/response_body/ HTTP/1.1\r\nhost: test\r\n\r\n")).await;
            assert_eq!((head.status, head.header("x-origin")), (200, Some("yes")), "{path}");
        }

        // What happens after the response is nobody's loss; every one of these is a new VM.
        for callback in ["done", "log"] {
            let path = format!("/{guest}/{callback}/");
            let mut client = Client::connect(edge.web()).await;
            for _ in 0..5 {
                let response = client.request(&format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")).await;
                assert_untouched(&response, "you said ", &path);
            }
        }
        bystander.says("and here").await;
    }

    assert_untouched(&post(&edge, "/calm/").await, "you said this", "/calm/");
    bystander.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_fails_open_is_left_out() {
    let (origin, mut senders) = origin().await;
    let edge = Edge::start(&sabotaged("open", ""), &[("app", origin.address())]);
    let mut bystander = Bystander::begin(&edge, "/calm/slow", &mut senders).await;
    for (guest, _) in SABOTEURS {
        for callback in CALLBACKS {
            let path = format!("/{guest}/{callback}/");
            for _ in 0..3 {
                assert_untouched(&post(&edge, &path).await, "you said this", &path);
                assert_eq!(origin.last().body, "this", "{path}");
                assert_untouched(&Client::get(edge.web(), &path).await, "you said ", &path);
            }
            let h2 = H2Client::connect(edge.web()).await.request("POST", &path, &[], b"this").await.unwrap();
            assert_untouched(&h2, "you said this", &path);
            bystander.says("still here").await;
        }

        // It fails at the first chunk; the later ones pass too.
        let mut slow = Bystander::begin(&edge, &format!("/{guest}/response_body/slow"), &mut senders).await;
        slow.says("more").await;
        slow.ends().await;
    }
    bystander.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_fails_over_trailers_fails_by_its_policy() {
    let origin = Origin::start(|_| Origin::with_trailers(200, &[], "body", &[("x-after", "1")])).await;
    for policy in ["closed", "open"] {
        let edge = Edge::start(&sabotaged(policy, ", protocol: h2"), &[("app", origin.address())]);
        let client = H2Client::connect(edge.web()).await;
        for (guest, _) in SABOTEURS {
            let path = format!("/{guest}/response_trailers/");
            for _ in 0..2 {
                let response = client.request("GET", &path, &[], b"").await;
                match (policy, response) {
                    ("open", Ok(response)) => {
                        assert_eq!((response.status, response.text().as_str()), (200, "body"), "{path}");
                        assert_eq!(response.trailers, [("x-after".to_owned(), "1".to_owned())], "{path}");
                    }
                    ("open", Err(error)) => panic!("{path}: {error}"),
                    // As long as nothing has left, the answer may still be replaced as a whole.
                    (_, Ok(response)) => assert_refused(&response, &path),
                    (_, Err(error)) => assert!(error.is_reset(), "{path}: {error}"),
                }
                let calm = client.request("GET", "/calm/", &[], b"").await.expect("other streams live");
                assert_eq!((calm.status, calm.trailers.len()), (200, 1));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_share_a_failed_vm_fail_by_the_same_policy() {
    for policy in ["closed", "open"] {
        let (origin, mut senders) = origin().await;
        let edge = Edge::start(&sabotaged(policy, ""), &[("app", origin.address())]);
        // It is in the same VM as the request that fails, and has its own turn with it still to come.
        let path = "/trap/request_body/slow";
        let mut client = Client::connect(edge.web()).await;
        client.send(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await;
        let body = soon("the request", senders.recv()).await.unwrap();
        client.head().await.expect("a header");

        let failing = post(&edge, "/trap/request_body/").await;
        body.send("after the failure".into()).unwrap();
        if policy == "open" {
            assert_untouched(&failing, "you said this", policy);
            drop(body);
            let mut read = String::new();
            while !read.ends_with("0\r\n\r\n") {
                read.push_str(&String::from_utf8_lossy(&client.some().await.expect("open")));
            }
            assert!(read.contains("after the failure"), "{read:?}");
        } else {
            assert_refused(&failing, policy);
            assert!(client.is_closed().await, "cut off: the filter cannot look at the rest");
        }
        assert_untouched(&Client::get(edge.web(), "/trap/request_body/").await, "you said ", policy);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_paused_in_a_vm_that_dies_fail_at_once_by_the_same_policy() {
    for policy in ["closed", "open"] {
        let (origin, _senders) = origin().await;
        let more = |policy| format!(", on_failure: {policy}, limits: {{ wait: 1h }}");
        let filters = [
            script("asks", "request_headers pause; request_body pause; request_end trap", &more(policy)),
            script("answers", "response_headers pause; response_body pause; request_end trap", &more(policy)),
            filter("noop", "noop", "", ""),
        ];
        let chains = [("asks", "noop, asks, noop"), ("answers", "noop, answers, noop"), ("noop", "noop")];
        let edge = edge("h1", &origin, None, &filters, &chains);
        for name in ["asks", "answers"] {
            // One waits for its resume, the other one for the rest of its body; both would for an hour.
            let mut waiting = Client::connect(edge.web()).await;
            waiting.send(format!("GET /{name}/one HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await;
            let mut sending = Client::connect(edge.web()).await;
            let head = format!("POST /{name}/two HTTP/1.1\r\nhost: test\r\ncontent-length: 4\r\n\r\n");
            sending.send(format!("{head}th").as_bytes()).await;
            let h2 = H2Client::connect(edge.web()).await;
            let (multiplexed, _) = h2.open("GET", &format!("/{name}/three"), &[], true).await.unwrap();
            if name == "answers" {
                let whole =
                    || origin.received().iter().filter(|request| request.target.starts_with("/answers/")).count();
                until("the origin answers", || whole() == 2).await;
            }
            for _ in 0..4 {
                assert_eq!(Client::get(edge.web(), "/noop/x").await.status, 200);
            }

            let failing = Client::post(edge.web(), &format!("/{name}/four"), "", b"this").await;
            let waiting = waiting.response("GET").await;
            let multiplexed = soon("a response", multiplexed).await.unwrap();
            let multiplexed = H2Client::collect(multiplexed).await.unwrap();
            if policy == "closed" {
                for response in [&failing, &waiting, &multiplexed] {
                    assert_refused(response, name);
                }
                if name == "asks" {
                    assert_refused(&sending.response("POST").await, name);
                }
            } else {
                assert_untouched(&failing, "you said this", name);
                assert_untouched(&waiting, "you said ", name);
                assert_untouched(&multiplexed, "you said ", name);
                sending.send(b"is").await;
                assert_untouched(&sending.response("POST").await, "you said this", name);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_a_filter_was_left_out_of_are_counted() {
    let (origin, _senders) = origin().await;
    for (policy, skipped) in [("closed", 0), ("open", 8)] {
        let mut edge = Edge::start(&sabotaged(policy, ""), &[("app", origin.address())]);
        let count = |edge: &Edge| edge.plan().trouble("trap-request-headers").expect("in a chain").skipped();
        assert_eq!(count(&edge), 0);
        for _ in 0..4 {
            post(&edge, "/trap/request_headers/").await;
            post(&edge, "/calm/").await;
        }
        assert_eq!(count(&edge), skipped / 2, "{policy}");
        edge.reload(&sabotaged(policy, "")).unwrap();
        for _ in 0..4 {
            post(&edge, "/trap/request_headers/").await;
        }
        assert_eq!(count(&edge), skipped, "{policy}: a reload does not forget");
        assert!(edge.plan().trouble("nobody").is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_never_recovers_is_not_started_for_every_request() {
    let (origin, mut senders) = origin().await;
    for (policy, status) in [("closed", 503), ("open", 200)] {
        let edge = Edge::start(&sabotaged(policy, ""), &[("app", origin.address())]);
        let bystander = Bystander::begin(&edge, "/calm/slow", &mut senders).await;
        // More than the burst of restarts that is allowed: the rest is refused, or left out, without a VM.
        for turn in 0..40 {
            assert_eq!(Client::get(edge.web(), "/trap/request_headers/").await.status, status, "request {turn}");
        }
        bystander.ends().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ticks_that_fail_do_not_hurt_requests() {
    let (origin, mut senders) = origin().await;
    for (guest, limits) in SABOTEURS {
        let edge = Edge::start(
            &format!(
                "upstreams: {{ app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }} }}
filters:
  calm: {{ wasm: \"file:${{GUESTS}}/noop.wasm\", limits: {{ deadline: 5s }} }}
  ticking: {{ wasm: \"file:${{GUESTS}}/{guest}.wasm\", config: tick, on_failure: open, limits: {{ {limits} }} }}
sites:
  - hosts: [\"*\"]
    routes:
      - {{ name: calm, match: {{ path: /calm/* }}, filters: [calm], to: app }}
      - {{ name: ticking, match: {{ path: /ticking/* }}, filters: [ticking], to: app }}
"
            ),
            &[("app", origin.address())],
        );
        let mut bystander = Bystander::begin(&edge, "/calm/slow", &mut senders).await;
        let mut client = Client::connect(edge.web()).await;
        for turn in 0..100 {
            let path = if turn % 2 == 0 { "/ticking/" } else { "/calm/" };
            let response = client.request(&format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")).await;
            assert_untouched(&response, "you said ", path);
        }
        bystander.says("still here").await;
        bystander.ends().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_never_says_goodbye_does_not_keep_the_node_from_stopping() {
    let mut edge = Edge::start(
        "filters: { lingering: { wasm: \"file:${GUESTS}/spin.wasm\", config: done, limits: { cpu: 20ms, deadline: 20s } } }
sites: [{ hosts: [\"*\"], routes: [{ name: all, filters: [lingering], respond: { status: 200 } }] }]",
        &[],
    );
    // A VM that has not served a stream has not failed yet: it is asked whether it is done when the node lets go of it.
    let stopping = edge.stop();
    until("the node stops", || stopping.is_finished()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_under_load_stay_where_they_are() {
    let (origin, _senders) = origin().await;
    let edge = Edge::start(&sabotaged("closed", ""), &[("app", origin.address())]);
    let web = edge.web();
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..8 {
        clients.spawn(async move {
            let mut client = Client::connect(web).await;
            for turn in 0..25 {
                let response =
                    client.request(&format!("GET /calm/{number}/{turn} HTTP/1.1\r\nhost: test\r\n\r\n")).await;
                assert_untouched(&response, "you said ", "calm under fire");
            }
        });
    }
    for (guest, _) in SABOTEURS {
        clients.spawn(async move {
            for _ in 0..5 {
                let response = Client::get(web, &format!("/{guest}/request_headers/")).await;
                assert_refused(&response, guest);
            }
        });
    }
    while let Some(done) = clients.join_next().await {
        done.expect("as described");
    }
}

#[test]
fn failures_do_not_leak() {
    // Resident memory is the whole process's, so this is measured in one that does nothing else.
    let mut alone = Command::new(std::env::current_exe().expect("this test"));
    alone.args(["misbehave::three_hundred_failures_in_a_process_of_their_own", "--exact", "--ignored", "--nocapture"]);
    let output = alone.output().expect("runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("1 passed"), "the test has another name by now: {said}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by failures_do_not_leak"]
async fn three_hundred_failures_in_a_process_of_their_own() {
    // Many filters, because each may only fail so often in a row before it is left alone for a while.
    const FILTERS: usize = 30;
    let mut yaml = "upstreams: { app: { endpoints: [\"127.0.0.1:${PORT_app}\"] } }\nfilters:\n".to_owned();
    for number in 0..FILTERS {
        yaml.push_str(&format!(
            "  trap-{number}: {{ wasm: \"file:${{GUESTS}}/trap.wasm\", config: request_body, limits: {{ deadline: 5s }} }}\n"
        ));
    }
    yaml.push_str("sites:\n  - hosts: [\"*\"]\n    routes:\n");
    for number in 0..FILTERS {
        yaml.push_str(&format!(
            "      - {{ name: r{number}, match: {{ path: /{number} }}, filters: [trap-{number}], to: app }}\n"
        ));
    }
    let (origin, _senders) = origin().await;
    let edge = Edge::start(&yaml, &[("app", origin.address())]);

    let round = async || {
        for number in 0..FILTERS {
            let path = format!("/{number}");
            assert_refused(&post(&edge, &path).await, &path);
            assert_untouched(&Client::get(edge.web(), &path).await, "you said ", "a new VM");
        }
    };
    round().await;
    let before = resident();
    for _ in 0..10 {
        round().await;
    }
    let after = resident();
    assert!(after < before + (64 << 20), "{before} bytes before, {after} after");
}

/// The bytes of this process that are in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line");
    let kibibytes: u64 = line.split_whitespace().nth(1).expect("a number").parse().expect("a number");
    kibibytes * 1024
}

/// The report on a configuration with one filter at fault, and the line it points at.
fn report(filter: &str, usage: &str) -> (String, usize) {
    let yaml = format!(
        "filters:
  {filter}
sites:
  - hosts: [\"*\"]
    routes:
      - name: all
        filters:
          - {usage}
        respond: {{ status: 200 }}
"
    );
    let error = Edge::try_start(&yaml, &[]).err().expect("a fault");
    assert!(matches!(error, StartError::Config(_)), "{error}");
    let report = error.to_string();
    let place = report.split("config.yaml:").nth(1).and_then(|rest| rest.split(':').next());
    let line = place.and_then(|line| line.parse().ok()).expect("a place");
    (report, line)
}

#[test]
fn a_module_that_is_none_is_a_fault_with_a_place() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let whole = std::fs::read(guest("noop")).unwrap();
    let mut empty_module = b"\0asm\x01\0\0\0".to_vec();
    let text = write("text.wasm", b"this is no module\n");
    let empty = write("empty.wasm", b"");
    let cut = write("cut.wasm", &whole[..whole.len() / 2]);
    let bare = write("bare.wasm", &empty_module);
    empty_module[4] = 9;
    let future = write("future.wasm", &empty_module);

    for path in [text, empty, cut, bare, future, folder.path().join("missing.wasm").display().to_string()] {
        let (report, _) = report(&format!("broken: {{ wasm: \"file:{path}\" }}"), "broken");
        assert!(report.contains("broken"), "{report}");
        assert!(
            report.contains("config.yaml:") && report.contains(&format!("broken: {{ wasm: \"file:{path}\" }}")),
            "{report}"
        );
        assert!(report.ends_with("config.yaml") && report.contains("1 fault in "), "{report}");
    }
}

#[test]
fn a_filter_that_does_not_start_is_a_fault_at_its_use() {
    // `tick` wants a number; the saboteurs fail in a way of their own.
    for (guest, config, limits, reason) in [
        ("tick", "nonsense", "deadline: 5s", "refused its configuration"),
        ("trap", "configure", "deadline: 5s", "failed to start"),
        ("spin", "configure", "cpu: 20ms, deadline: 20s", "failed to start"),
        ("hog", "configure", "deadline: 5s, memory: 4MiB", "failed to start"),
    ] {
        let filter = format!(
            "careless: {{ wasm: \"file:${{GUESTS}}/{guest}.wasm\", config: {config}, on_failure: open, limits: {{ {limits} }} }}"
        );
        let (report, line) = report(&filter, "careless");
        assert!(report.contains("filter careless does not start: "), "{guest}: {report}");
        assert!(report.contains(reason), "{guest}: {report}");
        assert!(report.contains(&format!("config.yaml:{line}:13")), "{guest}: {report}");
        assert!(report.contains(&format!("{line} |           - careless\n")), "{guest}: {report}");
        assert!(report.contains("1 fault in "), "{guest}: {report}");
    }
}

#[test]
fn every_filter_at_fault_is_reported_at_once() {
    let yaml = "filters:
  one: { wasm: \"file:${GUESTS}/tick.wasm\", config: nonsense }
  two: { wasm: \"file:${GUESTS}/trap.wasm\", config: configure }
  fine: { wasm: \"file:${GUESTS}/noop.wasm\" }
sites:
  - hosts: [\"*\"]
    filters: [one]
    routes:
      - { name: first, filters: [fine], respond: { status: 200 } }
      - { name: second, match: { path: /second }, filters: [fine, two], respond: { status: 200 } }
";
    let Err(error) = Edge::try_start(yaml, &[]) else { panic!("it starts") };
    let report = error.to_string();
    assert!(
        report.contains("filter one does not start: ") && report.contains("filter two does not start: "),
        "{report}"
    );
    assert!(report.contains("2 faults in "), "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_fails_to_start_anew_leaves_the_old_plan_in_force() {
    let (origin, _senders) = origin().await;
    let with = |config: &str| {
        format!(
            "upstreams: {{ app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }} }}
filters:
  careful: {{ wasm: \"file:${{GUESTS}}/trap.wasm\", config: {config}, limits: {{ deadline: 5s }} }}
sites: [{{ hosts: [\"*\"], routes: [{{ name: all, filters: [careful], to: app }}] }}]"
        )
    };
    let mut edge = Edge::start(&with("nothing"), &[("app", origin.address())]);
    assert_untouched(&post(&edge, "/").await, "you said this", "at first");
    let report = edge.reload(&with("configure")).unwrap_err();
    assert!(report.contains("filter careful does not start: ") && report.contains("config.yaml:"), "{report}");
    assert_untouched(&post(&edge, "/").await, "you said this", "after the refused reload");
}
