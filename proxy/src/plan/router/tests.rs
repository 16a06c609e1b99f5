use std::sync::OnceLock;

use pingora::http::RequestHeader;
use proptest::prelude::*;
use selvedge_config::{Loader, Match, ModuleCache, ValueMatch};

use super::{Asker, Selected, without_port};
use crate::plan::{self, Plan, Resources};

fn resources() -> &'static std::sync::Arc<Resources> {
    static RESOURCES: OnceLock<std::sync::Arc<Resources>> = OnceLock::new();
    RESOURCES.get_or_init(|| Resources::new(1, &ModuleCache::Off).unwrap())
}

/// A plan with one site that has these routes, and their matches.
fn plan(routes: &[String]) -> Option<(Plan, Vec<(String, Match)>)> {
    let routes: String = routes
        .iter()
        .enumerate()
        .map(|(index, when)| format!("  - {{ name: r{index}, match: {{ {when} }}, respond: {{ status: 200 }} }}\n"))
        .collect();
    let yaml = format!(
        "version: 1\nlisteners: {{ web: {{ bind: 127.0.0.1:0 }} }}\ngeo: {{ database: \"builtin:test\" }}\nsites:\n- hosts: [\"*\"]\n  routes:\n{routes}"
    );
    let loaded = Loader::new().load_str("a.yaml", &yaml).ok()?;
    let matches = loaded.config.sites[0].routes.iter().map(|route| (route.name.clone(), route.when.clone())).collect();
    let built = plan::build(resources(), loaded).ok()?;
    Some((built.plan, matches))
}

type Fields<'f> = &'f [(&'static str, &'f str)];

fn request(target: &str, headers: Fields<'_>) -> RequestHeader {
    let (method, target) = target.split_once(' ').unwrap_or(("GET", target));
    let mut request = RequestHeader::build(method, target.as_bytes(), None).unwrap();
    for (name, value) in headers {
        request.append_header(*name, *value).unwrap();
    }
    request
}

fn winner(plan: &Plan, asker: &Asker<'_>) -> Option<String> {
    match plan.select(asker) {
        Some(Selected::Route(route)) => Some(route.name().to_owned()),
        Some(Selected::NoRoute) | None => None,
    }
}

#[test]
fn ports_are_no_part_of_the_host() {
    for (authority, host) in [
        ("example.com", "example.com"),
        ("example.com:8080", "example.com"),
        ("[::1]:80", "[::1]"),
        ("[::1]", "[::1]"),
        ("127.0.0.1:1", "127.0.0.1"),
        ("", ""),
    ] {
        assert_eq!(without_port(authority), host);
    }
}

#[test]
fn the_most_specific_route_wins() {
    let routes = [
        "path: /*",
        "path: /a/*",
        "path: /a/b/*",
        "path: /a/b",
        "path: /a/*/c",
        "path: \"/*/b/longer\"",
        "path: \"~^/v[0-9]+/\"",
        "path: /a/b/*, method: [POST]",
        "path: /a/b/*, header: { x: { present: true }, y: \"1\" }",
        "path: /q, query: { a: \"1\" }",
        "path: /k, cookie: { beta: { prefix: on } }",
        "path: /k",
        "path: /c, client: [10.0.0.0/8, \"2001:db8::/32\"], tls: true",
        "path: /c",
        "path: /q",
        "path: /users/*/posts/*",
    ];
    let (plan, _) = plan(&routes.map(String::from)).expect("no fault");
    let cases: &[(&str, Fields, &str)] = &[
        ("/", &[], "r0"),
        ("/a", &[], "r1"),
        ("/ab", &[], "r0"),
        ("/a/x", &[], "r1"),
        ("/a/b", &[], "r3"),
        ("/a/b/x", &[], "r2"),
        ("POST /a/b/x", &[], "r7"),
        ("POST /a/b/x", &[("x", ""), ("y", "1")], "r8"),
        ("/a/b/x", &[("y", "1")], "r2"),
        ("/a/z/c", &[], "r4"),
        ("/a//c", &[], "r1"),
        ("/a/b/c", &[], "r4"),
        ("/a/z/c/d", &[], "r1"),
        ("/z/b/longer", &[], "r5"),
        ("/v12/x", &[], "r6"),
        ("/va/x", &[], "r0"),
        ("/users/7/posts", &[], "r15"),
        ("/users/7/posts/3/4", &[], "r15"),
        ("/users/7", &[], "r0"),
        ("/q", &[], "r14"),
        ("/q?a=1", &[], "r9"),
        ("/q?a=2&%61=%31", &[], "r9"),
        ("/q?a=11", &[], "r14"),
        ("/k", &[("cookie", "x=1; beta=only"), ("cookie", "y")], "r10"),
        ("/k", &[("cookie", "xbeta=on")], "r11"),
    ];
    for (target, headers, expected) in cases {
        let request = request(target, headers);
        assert_eq!(winner(&plan, &Asker::new(0, &request)).as_deref(), Some(*expected), "{target} {headers:?}");
    }
    let request = request("/c", &[]);
    for (client, tls, expected) in [
        ("10.1.2.3", true, "r12"),
        ("10.1.2.3", false, "r13"),
        ("::ffff:10.1.2.3", true, "r12"),
        ("2001:db8::1", true, "r12"),
        ("11.0.0.1", true, "r13"),
    ] {
        let asker = Asker { client: client.parse().ok(), tls, ..Asker::new(0, &request) };
        assert_eq!(winner(&plan, &asker).as_deref(), Some(expected), "{client} {tls}");
    }
}

#[test]
fn the_name_in_the_handshake_decides() {
    let routes =
        ["sni: [A.test, \"*.b.test\"]", "sni: [b.test]", "path: /x, sni: [\"*.a.test\"]", "path: /x", "path: /*"];
    let (plan, _) = plan(&routes.map(String::from)).unwrap();
    assert!(plan.router.asks_for_sni());
    for (path, server_name, expected) in [
        ("/", Some("a.test"), "r0"),
        ("/", Some("x.b.test"), "r0"),
        ("/", Some("x.y.b.test"), "r4"),
        ("/", Some("b.test"), "r1"),
        ("/", Some("x.a.test"), "r4"),
        ("/", None, "r4"),
        ("/x", Some("x.a.test"), "r2"),
        ("/x", Some("a.test"), "r3"),
        ("/x", None, "r3"),
    ] {
        let request = request(path, &[]);
        let asker = Asker { server_name, ..Asker::new(0, &request) };
        assert_eq!(winner(&plan, &asker).as_deref(), Some(expected), "{path} {server_name:?}");
    }
}

#[test]
fn where_a_client_is_decides() {
    let (plan, _) =
        plan(&["geo: { country: [DE] }", "geo: { continent: [EU] }, path: /a/*", "path: /*"].map(String::from))
            .unwrap();
    let geo = plan.geo.clone().unwrap();
    let request = request("/x", &[]);
    let asker = |client: &str| Asker { client: client.parse().ok(), geo: Some(&geo), ..Asker::new(0, &request) };
    // The test database has addresses of several countries; whatever it says decides.
    let mut seen = std::collections::BTreeSet::new();
    for last in 0..=255u8 {
        for network in ["192.0.2", "198.51.100", "203.0.113"] {
            let client = format!("{network}.{last}");
            let country = geo.lookup(client.parse().unwrap()).and_then(|location| location.country);
            let german = country.is_some_and(|country| country.as_str() == "DE");
            seen.insert(german);
            assert_eq!(winner(&plan, &asker(&client)).as_deref(), Some(if german { "r0" } else { "r2" }), "{client}");
        }
    }
    assert_eq!(seen.len(), 2, "clients of both kinds were asked about");
    assert_eq!(winner(&plan, &Asker { client: None, ..asker("192.0.2.1") }).as_deref(), Some("r2"));
}

/// The rule as the documentation says it, without any index.
fn oracle(matches: &[(String, Match)], path: &str, method: &str, header: Option<&str>) -> Option<String> {
    let fits = |when: &Match| {
        when.path.matches(path)
            && (when.methods.is_empty() || when.methods.iter().any(|one| one == method))
            && when.headers.iter().all(|(_, value)| match value {
                ValueMatch::Exact(wanted) => header == Some(wanted),
                ValueMatch::Prefix(wanted) => header.is_some_and(|header| header.starts_with(wanted.as_str())),
                ValueMatch::Regex(_) => false,
                ValueMatch::Present(present) => header.is_some() == *present,
            })
    };
    let mut best: Option<&(String, Match)> = None;
    for one in matches.iter().filter(|(_, when)| fits(when)) {
        let rank = |(_, when): &(String, Match)| (when.path.rank(), when.conditions());
        if best.is_none_or(|best| rank(one) > rank(best)) {
            best = Some(one);
        }
    }
    best.map(|(name, _)| name.clone())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn the_index_finds_what_the_rule_says(
        routes in prop::collection::vec(
            ("(/(a|b|[*])){0,3}(/[*])?|[~]\\^/a/[?]b|[~]b[$]", 0..4usize),
            1..8,
        ),
        paths in prop::collection::vec("(/(a|b|c)){1,4}/?", 6),
        method in prop::sample::select(vec!["GET", "POST"]),
        header in prop::sample::select(vec![None, Some("1"), Some("12")]),
    ) {
        let conditions = ["", ", method: [POST]", ", header: { x: { prefix: \"1\" } }", ", header: { x: { present: false } }"];
        let mut written: Vec<String> = Vec::new();
        // Routes that tie are faults: only those that go together are kept.
        for (path, condition) in routes {
            let path = if path.is_empty() { "/".to_owned() } else { path };
            written.push(format!("path: \"{path}\"{}", conditions[condition]));
            if plan(&written).is_none() {
                written.pop();
            }
        }
        if let Some((plan, matches)) = plan(&written) {
            for path in paths {
                let headers: Vec<(&'static str, &str)> = header.iter().map(|value| ("x", *value)).collect();
                let request = request(&format!("{method} {path}"), &headers);
                prop_assert_eq!(
                    winner(&plan, &Asker::new(0, &request)),
                    oracle(&matches, &path, method, header),
                    "{} {} {:?} of {:?}", method, path, header, written
                );
            }
        }
    }
}
