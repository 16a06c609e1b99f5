//! One fetch for everybody, and nobody is held up by anybody else: not by a client that stops reading, not by an origin that fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::FutureExt;
use selvedge_cache::{Purge, Scope};
use selvedge_tests::h2::H2Client;
use selvedge_tests::{Client, Edge, Origin, soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

const MIB: usize = 1 << 20;

fn node(filters: &str, origin: std::net::SocketAddr) -> Edge {
    node_with("{}", filters, origin)
}

fn node_with(collapse: &str, filters: &str, origin: std::net::SocketAddr) -> Edge {
    let yaml = format!(
        "cache: {{ memory: {{ size: 256MiB, max_object: 64MiB }}, collapse: {collapse} }}
upstreams: {{ app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }} }}
filters:
  noop: {{ wasm: \"file:${{GUESTS}}/noop.wasm\", limits: {{ deadline: 10s }} }}
sites: [{{ hosts: [\"*\"], routes: [{{ name: \"page-${{ID}}\", filters: {filters}, cache: {{}}, to: app }}] }}]"
    );
    Edge::start(&yaml, &[("app", origin)])
}

/// The client whose request began the fetch stops reading, over each version of HTTP, with and without filters: the fetch goes on, all
/// others get everything, and when it reads again, so does it.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_client_that_stops_reading_stalls_nobody() {
    const LENGTH: usize = 24 * MIB; // more than all buffers between origin and client hold
    for (filters, over_h2) in [("[]", false), ("[]", true), ("[noop]", false), ("[noop]", true)] {
        let what = format!("filters {filters}, h2 {over_h2}");
        let origin =
            Origin::start(|_| Origin::reply(200, &[("cache-control", "max-age=60")], Bytes::from(vec![b'x'; LENGTH])))
                .await;
        let edge = node(filters, origin.address());

        let mut plain = Client::connect(edge.web()).await;
        let connection = H2Client::connect(edge.web()).await;
        let mut first = None;
        if over_h2 {
            let response = connection.open("GET", "/page", &[], true).await.unwrap().0;
            let mut response = soon("a header", response).await.unwrap();
            let some = soon("first bytes", response.body_mut().data()).await.unwrap().unwrap();
            first = Some((response, some.len())); // its capacity is not given back: the window closes
        } else {
            plain.send(b"GET /page HTTP/1.1\r\nhost: test\r\n\r\n").await;
            plain.head().await.unwrap();
        }

        let mut followers = JoinSet::new();
        for _ in 0..5 {
            let address = edge.web();
            followers.spawn(async move { Client::get(address, "/page").await.body.len() });
        }
        while let Some(length) = soon("the others", followers.join_next()).await {
            assert_eq!(length.unwrap(), LENGTH, "{what}");
        }
        let hit = Client::get(edge.web(), "/page").await;
        assert!(hit.header("cache-status").unwrap().starts_with("edge; hit"), "{what}: {:?}", hit.headers);
        assert_eq!(origin.started(), 1, "{what}");

        let mut received = 0;
        if let Some((mut response, begun)) = first {
            received = begun;
            let stream = response.body_mut();
            let _ = stream.flow_control().release_capacity(begun);
            while let Some(chunk) = soon("the rest", stream.data()).await {
                let chunk = chunk.unwrap();
                received += chunk.len();
                let _ = stream.flow_control().release_capacity(chunk.len());
            }
        } else {
            while received < LENGTH {
                received += plain.some().await.unwrap().len();
            }
            // The connection is as good as new.
            plain.send(b"HEAD /page HTTP/1.1\r\nhost: test\r\n\r\n").await;
            assert_eq!(plain.response("HEAD").await.status, 200, "{what}");
        }
        assert_eq!(received, LENGTH, "{what}");
    }
}

/// The same client never reads again, and leaves: what it held is let go.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_client_that_stops_reading_and_leaves_is_forgotten() {
    for (filters, over_h2) in [("[]", false), ("[]", true), ("[noop]", false), ("[noop]", true)] {
        let gate = Arc::new(Semaphore::new(0));
        let opened = Arc::clone(&gate);
        let origin = Origin::start_async(move |_| {
            let gate = Arc::clone(&opened);
            async move {
                let (body, served) = Origin::streaming(200, &[("cache-control", "max-age=60")]);
                body.send(Bytes::from(vec![b'x'; 20 * MIB])).unwrap();
                tokio::spawn(async move {
                    gate.acquire().await.expect("never closed").forget();
                    body.send(Bytes::from_static(b"end")).unwrap();
                });
                served
            }
            .boxed()
        })
        .await;
        let edge = node(filters, origin.address());
        let mut plain = Client::connect(edge.web()).await;
        let connection = H2Client::connect(edge.web()).await;
        if over_h2 {
            let response = connection.open("GET", "/page", &[], true).await.unwrap().0;
            soon("a header", response).await.unwrap();
        } else {
            plain.send(b"GET /page HTTP/1.1\r\nhost: test\r\n\r\n").await;
            plain.head().await.unwrap();
        }
        drop((plain, connection));
        let address = edge.web();
        let follower = tokio::spawn(async move { Client::get(address, "/page").await.body.len() });
        gate.add_permits(1);
        assert_eq!(soon("the body", follower).await.unwrap(), 20 * MIB + 3, "filters {filters}, h2 {over_h2}");
        assert_eq!(origin.started(), 1);
    }
}
/// How many requests wait for others' fetches.
fn waiting(edge: &Edge) -> usize {
    edge.plan().cache.expect("configured").waiting()
}

/// Sends requests one after the other has arrived, and counts what is answered.
async fn burst(edge: &Edge, count: usize) -> JoinSet<(u16, String)> {
    let mut clients = JoinSet::new();
    for _ in 0..count {
        let connection = H2Client::connect(edge.web()).await;
        let response = connection.open("GET", "/page", &[], true).await.unwrap().0;
        clients.spawn(async move {
            let response = soon("a header", response).await.unwrap();
            let answer = H2Client::collect(response).await.unwrap();
            drop(connection);
            (answer.status, answer.text())
        });
    }
    clients
}

/// An origin whose answers wait for the gate.
async fn gated(status: u16, headers: &'static [(&'static str, &'static str)]) -> (Origin, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let (opened, count) = (Arc::clone(&gate), AtomicUsize::new(0));
    let origin = Origin::start_async(move |_| {
        let gate = Arc::clone(&opened);
        let number = count.fetch_add(1, Ordering::SeqCst) + 1;
        async move {
            gate.acquire().await.expect("never closed").forget();
            Origin::reply(status, headers, format!("answer {number}"))
        }
        .boxed()
    })
    .await;
    (origin, gate)
}

/// An origin that answers an error is asked once more for those who wait, and they share what it says then; who comes later asks anew.
#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_fails_is_asked_twice() {
    for filters in ["[]", "[noop]"] {
        let (origin, gate) = gated(500, &[]).await;
        let edge = node(filters, origin.address());
        let mut clients = burst(&edge, 50).await;
        until("the origin is asked", || origin.started() == 1).await;
        until("the others wait", || waiting(&edge) == 49).await;
        gate.add_permits(1);
        until("the origin is asked again", || origin.started() == 2).await;
        until("the others wait", || waiting(&edge) == 48).await;
        gate.add_permits(1);
        let mut bodies = std::collections::BTreeMap::new();
        while let Some(answer) = soon("an answer", clients.join_next()).await {
            let (status, body) = answer.unwrap();
            assert_eq!(status, 500);
            *bodies.entry(body).or_insert(0) += 1;
        }
        assert_eq!(bodies.into_iter().collect::<Vec<_>>(), [("answer 1".to_owned(), 1), ("answer 2".to_owned(), 49)]);
        assert_eq!(origin.started(), 2);

        gate.add_permits(1);
        assert_eq!(Client::get(edge.web(), "/page").await.text(), "answer 3", "nothing of it is kept");
    }
}

/// What says that it is for one client only, or a field of it, is not shared, error or not.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_that_is_somebodys_own_is_not_shared() {
    const COOKIE: &[(&str, &str)] = &[("set-cookie", "id=1")];
    const FIELD: &[(&str, &str)] = &[("cache-control", "private=\"x-user\""), ("x-user", "anna")];
    for headers in [COOKIE, FIELD] {
        let (origin, gate) = gated(500, headers).await;
        let edge = node("[]", origin.address());
        let mut clients = burst(&edge, 5).await;
        until("the others wait", || waiting(&edge) == 4).await;
        gate.add_permits(5);
        let mut bodies = std::collections::BTreeSet::new();
        while let Some(answer) = soon("an answer", clients.join_next()).await {
            bodies.insert(answer.unwrap().1);
        }
        assert_eq!(bodies.len(), 5, "{headers:?}: {bodies:?}");
    }
}

/// An origin that breaks the connection, twice: nobody else tries it.
#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_cannot_be_reached_is_tried_twice() {
    let gate = Arc::new(Semaphore::new(0));
    let tried = Arc::new(AtomicUsize::new(0));
    let (opened, count) = (Arc::clone(&gate), Arc::clone(&tried));
    let (origin, _serving) = Origin::raw(move |stream| {
        let (gate, count) = (Arc::clone(&opened), Arc::clone(&count));
        async move {
            count.fetch_add(1, Ordering::SeqCst);
            gate.acquire().await.expect("never closed").forget();
            drop(stream);
        }
    })
    .await;
    let edge = node("[]", origin);
    let mut clients = burst(&edge, 30).await;
    until("the others wait", || waiting(&edge) == 29).await;
    gate.add_permits(1);
    until("it is tried again", || tried.load(Ordering::SeqCst) == 2).await;
    until("the others wait", || waiting(&edge) == 28).await;
    gate.add_permits(1);
    while let Some(answer) = soon("an answer", clients.join_next()).await {
        assert_eq!(answer.unwrap().0, 502);
    }
    assert_eq!(tried.load(Ordering::SeqCst), 2);
    gate.add_permits(1);
    assert_eq!(Client::get(edge.web(), "/page").await.status, 502);
    assert_eq!(tried.load(Ordering::SeqCst), 3, "who comes later tries anew");
}

/// Where what is stale may stand in, it does so for everybody who waits for the fetch that fails, whether the origin answers an error or
/// breaks the connection: it is asked once for all of them, and nobody gets its error.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_stale_stands_in_for_all_who_wait() {
    for (filters, answers) in [("[]", true), ("[]", false), ("[noop]", true)] {
        let what = format!("filters {filters}, answers {answers}");
        let (gate, tried) = (Arc::new(Semaphore::new(1)), Arc::new(AtomicUsize::new(0)));
        let (opened, count) = (Arc::clone(&gate), Arc::clone(&tried));
        let (origin, _serving) = Origin::raw(move |mut stream| {
            let (gate, count) = (Arc::clone(&opened), Arc::clone(&count));
            async move {
                // One request on each connection: one that is broken off on a kept connection would be sent again.
                if !stream.read(&mut [0; 4096]).await.is_ok_and(|read| read > 0) {
                    return;
                }
                let first = count.fetch_add(1, Ordering::SeqCst) == 0;
                gate.acquire().await.expect("never closed").forget();
                let answer = match (first, answers) {
                    (true, _) => {
                        "200 OK\r\ncache-control: max-age=600, stale-if-error=600\r\ncontent-length: 3\r\n\r\nold"
                    }
                    (false, true) => "503 Service Unavailable\r\ncontent-length: 4\r\n\r\ndown",
                    (false, false) => return,
                };
                let answer = answer.replacen("\r\n", "\r\nconnection: close\r\n", 1);
                let _ = stream.write_all(format!("HTTP/1.1 {answer}").as_bytes()).await;
            }
        })
        .await;
        let edge = node(filters, origin);
        assert_eq!(Client::get(edge.web(), "/page").await.text(), "old");
        edge.plan().cache.expect("configured").purge(&[Scope::everything()], Purge::Soft);

        let mut clients = burst(&edge, 50).await;
        until("the others wait", || waiting(&edge) == 49).await;
        assert_eq!(tried.load(Ordering::SeqCst), 2, "{what}");
        gate.add_permits(1);
        while let Some(answer) = soon("an answer", clients.join_next()).await {
            assert_eq!(answer.unwrap(), (200, "old".to_owned()), "{what}");
        }
        assert_eq!(tried.load(Ordering::SeqCst), 2, "once for all of them: {what}");

        gate.add_permits(1);
        let later = Client::get(edge.web(), "/page").await;
        let status = later.header("cache-status").unwrap().to_owned();
        assert!(later.text() == "old" && status.contains("fwd=stale"), "{what}: {status}");
        assert_eq!(tried.load(Ordering::SeqCst), 3, "who comes later has it asked anew: {what}");
    }
}

/// More than may wait for one fetch, and those who have waited for long, are refused or forwarded, as the configuration says.
#[tokio::test(flavor = "multi_thread")]
async fn waiters_have_a_cap_and_a_deadline() {
    let (origin, gate) = gated(200, &[("cache-control", "max-age=60")]).await;
    let edge = node_with("{ waiters: 3 }", "[]", origin.address());
    let clients = burst(&edge, 4).await;
    until("they wait", || waiting(&edge) == 3).await;
    let refused = Client::get(edge.web(), "/page").await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")), "{:?}", refused.headers);
    gate.add_permits(1);
    for answer in soon("answers", clients.join_all()).await {
        assert_eq!(answer, (200, "answer 1".to_owned()));
    }
    assert_eq!(origin.started(), 1);

    let (origin, gate) = gated(200, &[("cache-control", "max-age=60")]).await;
    let edge = node_with("{ waiters: 3, when_full: forward }", "[]", origin.address());
    let clients = burst(&edge, 4).await;
    until("they wait", || waiting(&edge) == 3).await;
    let more = burst(&edge, 2).await;
    until("two more go forward", || origin.started() == 3).await;
    gate.add_permits(3);
    let mut answers = soon("answers", clients.join_all()).await;
    answers.extend(soon("answers", more.join_all()).await);
    assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");

    let (origin, gate) = gated(200, &[("cache-control", "max-age=60")]).await;
    let edge = node_with("{ wait: 1s, when_late: refuse }", "[]", origin.address());
    let first = burst(&edge, 1).await;
    until("it is asked", || origin.started() == 1).await;
    assert_eq!(Client::get(edge.web(), "/page").await.status, 503);
    gate.add_permits(1);
    assert_eq!(soon("the first", first.join_all()).await, [(200, "answer 1".to_owned())]);
    assert_eq!((origin.started(), Client::get(edge.web(), "/page").await.status), (1, 200));
}

/// Something that ends when it is dropped.
type Held = Box<dyn Send>;

/// Asks over each version of HTTP, in turn, each on a connection of its own. Gives the connections, and the HTTP/2 streams.
async fn ask(edge: &Edge, count: usize) -> (Vec<Held>, Vec<Held>) {
    let (mut connections, mut streams) = (Vec::<Held>::new(), Vec::<Held>::new());
    for number in 0..count {
        if number % 2 == 0 {
            let mut client = Client::connect(edge.web()).await;
            client.send(b"GET /page HTTP/1.1\r\nhost: test\r\n\r\n").await;
            connections.push(Box::new(client));
        } else {
            let connection = H2Client::connect(edge.web()).await;
            streams.push(Box::new(connection.open("GET", "/page", &[], true).await.unwrap()));
            connections.push(Box::new(connection));
        }
    }
    (connections, streams)
}

/// Who leaves while his request waits for another's fetch takes no place from others, over HTTP/1.1 and HTTP/2, with and without
/// filters, whether he closes his connection or resets his stream; and the others are served.
#[tokio::test(flavor = "multi_thread")]
async fn a_waiter_whose_client_leaves_is_gone_at_once() {
    for filters in ["[]", "[noop]"] {
        let (origin, gate) = gated(200, &[("cache-control", "max-age=60")]).await;
        let edge = node_with("{ waiters: 8, wait: 60s }", filters, origin.address());
        let first = burst(&edge, 1).await;
        until("the origin is asked", || origin.started() == 1).await;
        for _ in 0..3 {
            let (connections, mut streams) = ask(&edge, 8).await;
            until("all of them wait", || waiting(&edge) == 8).await;
            assert_eq!(Client::get(edge.web(), "/page").await.status, 503, "one too many");
            drop(streams.pop()); // It is reset, while its connection goes on.
            until("one has left", || waiting(&edge) == 7).await;
            drop((connections, streams));
            until("all have left", || waiting(&edge) == 0).await;
        }
        assert_eq!(origin.started(), 1, "none of them went forward");

        let others = burst(&edge, 8).await;
        until("others wait in their place", || waiting(&edge) == 8).await;
        gate.add_permits(1);
        for answer in
            soon("answers", others.join_all()).await.into_iter().chain(soon("the first", first.join_all()).await)
        {
            assert_eq!(answer, (200, "answer 1".to_owned()));
        }
        assert_eq!(origin.started(), 1, "filters {filters}");
    }
}

/// The same while a stale response is validated that may not be served meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_validation_may_leave_as_well() {
    let (origin, gate) = gated(200, &[("cache-control", "max-age=60")]).await;
    let edge = node_with("{ wait: 60s }", "[]", origin.address());
    gate.add_permits(1);
    assert_eq!(Client::get(edge.web(), "/page").await.text(), "answer 1");
    edge.plan().cache.expect("configured").purge(&[Scope::everything()], Purge::Soft);
    let first = burst(&edge, 1).await;
    until("the origin is asked", || origin.started() == 2).await;
    let clients = ask(&edge, 4).await;
    until("they wait", || waiting(&edge) == 4).await;
    drop(clients);
    until("none waits", || waiting(&edge) == 0).await;
    gate.add_permits(1);
    assert_eq!(soon("the first", first.join_all()).await, [(200, "answer 2".to_owned())]);
    assert_eq!(origin.started(), 2);
}

/// Pipelined requests, of which the first waits: both are answered, in order, and bytes that come meanwhile are not lost.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_sends_while_it_waits_is_its_next_request() {
    let (origin, gate) = gated(200, &[("cache-control", "max-age=60")]).await;
    let edge = node("[]", origin.address());
    let first = burst(&edge, 1).await;
    until("the origin is asked", || origin.started() == 1).await;
    let mut client = Client::connect(edge.web()).await;
    client.send(b"GET /page HTTP/1.1\r\nhost: test\r\n\r\n").await;
    until("it waits", || waiting(&edge) == 1).await;
    client.send(b"GET /page?other HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await;
    gate.add_permits(2);
    assert_eq!(client.response("GET").await.text(), "answer 1");
    assert_eq!(client.response("GET").await.text(), "answer 2");
    assert_eq!(soon("the first", first.join_all()).await, [(200, "answer 1".to_owned())]);
}

/// How many requests are being served, from a number on that does not change: each of them holds on to its plan.
fn requests(edge: &Edge) -> usize {
    Arc::strong_count(&edge.plan())
}

/// Who reads along and leaves while nothing comes is gone at once; the others get everything.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_whose_client_leaves_is_gone_at_once() {
    for filters in ["[]", "[noop]"] {
        let gate = Arc::new(Semaphore::new(0));
        let opened = Arc::clone(&gate);
        let origin = Origin::start_async(move |_| {
            let gate = Arc::clone(&opened);
            async move {
                let (body, served) = Origin::streaming(200, &[("cache-control", "max-age=60")]);
                body.send(Bytes::from_static(b"begin ")).unwrap();
                tokio::spawn(async move {
                    gate.acquire().await.expect("never closed").forget();
                    body.send(Bytes::from_static(b"end")).unwrap();
                });
                served
            }
            .boxed()
        })
        .await;
        let edge = node(filters, origin.address());
        let address = edge.web();
        let first = tokio::spawn(async move { Client::get(address, "/page").await.text() });
        until("the body comes", || edge.plan().cache.expect("configured").usage().fill_bytes == 6).await;
        let before = requests(&edge);
        let clients = ask(&edge, 8).await;
        until("they read along", || requests(&edge) == before + 8).await;
        let stays = tokio::spawn(async move { Client::get(address, "/page").await.text() });
        until("one more reads along", || requests(&edge) == before + 9).await;
        drop(clients);
        until("they have left", || requests(&edge) == before + 1).await;
        gate.add_permits(1);
        assert_eq!(soon("the body", stays).await.unwrap(), "begin end", "filters {filters}");
        assert_eq!(soon("the first", first).await.unwrap(), "begin end", "filters {filters}");
        assert_eq!(origin.started(), 1);
    }
}
