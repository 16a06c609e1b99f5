//! Trailers of responses that are stored (RFC 9110, 6.5; RFC 9111, 3.1): the first client gets them, and they are not kept.

use selvedge_tests::h2::H2Client;
use selvedge_tests::{Client, Edge, Origin};

const YAML: &str = "cache: { memory: { size: 64MiB } }
upstreams: { app: { endpoints: [\"127.0.0.1:${PORT_app}\"], protocol: h2 } }
filters: { noop: { wasm: \"file:${GUESTS}/noop.wasm\", limits: { deadline: 10s } } }
sites: [{ hosts: [\"*\"], routes: [{ name: \"page-${ID}\", filters: FILTERS, cache: {}, to: app }] }]";

#[tokio::test(flavor = "multi_thread")]
async fn the_first_client_gets_trailers_and_hits_do_not() {
    for filters in ["[]", "[noop]"] {
        let origin = Origin::start(|_| {
            Origin::with_trailers(
                200,
                &[("cache-control", "max-age=60"), ("trailer", "x-end")],
                "page",
                &[("x-end", "1")],
            )
        })
        .await;
        let edge = Edge::start(&YAML.replace("FILTERS", filters), &[("app", origin.address())]);
        let connection = H2Client::connect(edge.web()).await;
        let fields = [("te", "trailers")];
        let first = connection.request("GET", "/page", &fields, b"").await.unwrap();
        assert_eq!(first.text(), "page", "filters {filters}");
        assert_eq!(first.trailers, [("x-end".to_owned(), "1".to_owned())], "filters {filters}");

        let hit = connection.request("GET", "/page", &fields, b"").await.unwrap();
        assert!(hit.header("cache-status").unwrap().starts_with("edge; hit"), "filters {filters}: {:?}", hit.headers);
        assert_eq!((hit.text().as_str(), hit.trailers.len()), ("page", 0), "filters {filters}");
        assert_eq!(hit.header("x-end"), None, "never merged into the header");
        let over_http1 = Client::get_with(edge.web(), "/page", "te: trailers\r\n").await;
        assert_eq!((over_http1.text().as_str(), over_http1.header("x-end")), ("page", None), "filters {filters}");
        assert_eq!(origin.started(), 1);
    }
}
