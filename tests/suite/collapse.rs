//! One fetch for everybody, and nobody is held up by anybody else: not by a client that stops reading, not by an origin that fails.

use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use selvedge_tests::h2::H2Client;
use selvedge_tests::{Client, Edge, Origin, soon};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

const MIB: usize = 1 << 20;

fn node(filters: &str, origin: std::net::SocketAddr) -> Edge {
    let yaml = format!(
        "cache: {{ memory: {{ size: 256MiB, max_object: 64MiB }} }}
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
