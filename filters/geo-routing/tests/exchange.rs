//! The filter on a host: what a client and an origin see.

use selvedge_filter_geo_routing::GeoRouting;
use selvedge_sdk::Reply;
use selvedge_sdk_testing::Tester;
use serde_json::{Value, json};

fn tester(config: Value) -> Tester<GeoRouting> {
    Tester::<GeoRouting>::native().config(config)
}

#[test]
fn the_origin_and_the_client_are_told_the_country() {
    let tester = tester(json!({ "response_header": "X-Country" })).country("DE").continent("EU");
    let outcome = tester.get("/").header("x-geo-country", "US").header("x_geo_country", "US").send();
    assert_eq!((outcome.status(), outcome.header("x-country")), (200, Some("DE")));
    let seen = outcome.upstream().unwrap();
    assert_eq!((seen.header("x-geo-country"), seen.header("x_geo_country")), (Some("DE"), None));
}

#[test]
fn an_unknown_place_has_no_header_and_a_client_cannot_fill_it_in() {
    let outcome = tester(json!({ "response_header": "x-country" })).get("/").header("x-geo-country", "DE").send();
    assert_eq!(outcome.upstream().unwrap().header("x-geo-country"), None);
    assert_eq!(outcome.header("x-country"), None);
}

#[test]
fn a_refusal_is_a_problem_document() {
    let tester = tester(json!({ "deny": ["continent:EU"], "status": 451 })).country("DE").continent("EU");
    let outcome = tester.get("/").send();
    assert_eq!((outcome.status(), outcome.header("content-type")), (451, Some("application/problem+json")));
    assert!(outcome.upstream().is_none());
    assert_eq!(outcome.json::<Value>()["title"], "Unavailable For Legal Reasons");
    assert_eq!(tester.metric("geo_routing_refused_total"), 1);
}

#[test]
fn a_route_picks_the_upstream() {
    let config = json!({ "routes": [
        { "countries": ["CH"], "upstream": "zrh" },
        { "continents": ["EU"], "upstream": "fra" },
    ]});
    for (country, continent, upstream) in [("CH", "EU", "zrh"), ("DE", "EU", "fra"), ("US", "NA", "")] {
        let tester = tester(config.clone())
            .country(country)
            .continent(continent)
            .upstream("zrh", |_| Reply::new(200))
            .upstream("fra", |_| Reply::new(200));
        assert_eq!(tester.get("/").send().upstream().unwrap().upstream(), upstream, "{country}");
    }
}

#[test]
fn a_faulty_configuration_does_not_start() {
    for (config, part) in [
        (json!({ "allow": ["UK"] }), "allow[0]"),
        (json!({ "status": 200 }), "status"),
        (json!({ "alow": [] }), "alow"),
    ] {
        let error = tester(config.clone()).start().unwrap_err();
        assert!(error.contains(part), "{config}: {error}");
    }
}

/// The example in the crate's documentation, read by the proxy's own loader.
#[test]
fn the_documented_example_starts() {
    let source = include_str!("../src/lib.rs");
    let example = source.split("//! ```").nth(1).unwrap().lines().skip(1).map(|line| line.trim_start_matches("//! "));
    let rest = "version: 1\nlisteners: { web: { bind: 127.0.0.1:0 } }\nupstreams: { demo: { builtin: demo } }\n\
        sites: [{ hosts: [a.test], routes: [{ to: demo }] }]\n";
    let text = format!("{}\n{rest}", example.collect::<Vec<_>>().join("\n"));

    let loader = selvedge_config::Loader::new().builtin_filters(&["geo-routing"]);
    let loaded = loader.load_str("example.yaml", &text).unwrap_or_else(|report| panic!("{report}"));
    let filter = loaded.config.filters.values().next().unwrap();
    Tester::<GeoRouting>::native().config(filter.config.clone()).start().unwrap();
}
