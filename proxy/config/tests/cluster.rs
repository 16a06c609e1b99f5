//! `cluster`: what is read, what the defaults are, and every fault at its place.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its helpers too")]

use std::time::Duration;

use selvedge_config::{Cluster, ClusterDeadlines, Dns, EndpointAddr, Fault, Loader, Peers};

const TLS: &str = "tls: { certificate: n.pem, key: n.key, ca: ca.pem }";

fn text(cluster: &str) -> String {
    format!(
        "version: 1\ncache: {{}}\nlisteners:\n  web: {{ bind: 127.0.0.1:8080 }}\nupstreams:\n  demo: {{ builtin: demo }}\nsites:\n- hosts: [a.test]\n  routes:\n  - to: demo\ncluster:\n{cluster}"
    )
}

fn load(cluster: &str) -> Cluster {
    let loaded = Loader::new().load_str("dir/selvedge.yaml", &text(cluster));
    loaded.unwrap_or_else(|report| panic!("{report}")).config.cluster.unwrap()
}

/// `line:column key: message | help`, lines counted from that of `cluster`.
fn faults(cluster: &str) -> Vec<String> {
    let report = Loader::new().load_str("selvedge.yaml", &text(cluster)).map(|_| ()).unwrap_err();
    let line = |fault: &Fault| {
        let help = fault.help.as_deref().map(|help| format!(" | {help}")).unwrap_or_default();
        format!("{}:{} {}: {}{help}", fault.line - 11, fault.column, fault.key, fault.message)
    };
    report.faults.iter().map(line).collect()
}

#[test]
fn a_short_one_has_the_defaults() {
    let cluster = load(&format!("  listen: 127.0.0.1:7443\n  {TLS}\n"));
    assert_eq!(cluster.name, None);
    assert_eq!(cluster.listen.to_string(), "127.0.0.1:7443");
    assert_eq!(cluster.tls.certificate.to_str(), Some("dir/n.pem"), "relative to the file");
    assert_eq!((cluster.tls.server_name, cluster.peers, cluster.region), (None, None, None));
    assert_eq!(
        cluster.deadlines,
        ClusterDeadlines {
            connect: Duration::from_millis(50),
            first_byte: Duration::from_secs(3),
            budget: Duration::from_secs(4)
        }
    );
    assert_eq!((cluster.hot, cluster.dns), (Duration::from_secs(60), Dns::default()));
}

#[test]
fn everything_that_is_written_is_read() {
    let cluster = load(&format!(
        "  name: edge-1\n  listen: 10.0.0.1:7443\n  {}, server_name: Nodes.test }}\n  peers:\n  - {{ name: edge-1, address: 10.0.0.1:7443 }}\n  - {{ name: edge-2, address: edge-2.test:7443, weight: 3 }}\n  region: {{ peers: region.test:7443 }}\n  deadlines: {{ connect: 20ms, first_byte: 5s }}\n  hot: 5s\n  dns: {{ ttl_min: 1s }}\n",
        TLS.trim_end_matches(" }")
    ));
    assert_eq!(cluster.name.as_deref(), Some("edge-1"));
    assert_eq!(cluster.tls.server_name.as_deref(), Some("nodes.test"));
    let Some(Peers::Listed(peers)) = cluster.peers else { panic!("a list") };
    let peers: Vec<_> = peers.iter().map(|peer| (peer.name.as_str(), peer.address.to_string(), peer.weight)).collect();
    assert_eq!(peers, [("edge-1", "10.0.0.1:7443".into(), 1), ("edge-2", "edge-2.test:7443".into(), 3)]);
    let host = EndpointAddr::Host { host: "region.test".into(), port: 7443 };
    assert!(matches!(cluster.region.unwrap().peers, Peers::Resolved(address, _) if address == host));
    assert_eq!(cluster.deadlines.connect, Duration::from_millis(20));
    assert_eq!(
        (cluster.deadlines.first_byte, cluster.deadlines.budget),
        (Duration::from_secs(5), Duration::from_secs(5))
    );
    assert_eq!((cluster.hot, cluster.dns.ttl_min), (Duration::from_secs(5), Duration::from_secs(1)));
}

#[test]
fn every_fault_is_at_its_place() {
    let listen = "listen: 127.0.0.1:7443";
    let cases = [
        ("  {}\n".to_owned(), vec!["0:1 cluster.listen: `listen` is missing", "0:1 cluster.tls: `tls` is missing"]),
        (
            format!("  listen: \":7443\"\n  {TLS}\n"),
            vec![
                "1:11 cluster.listen: `:7443` is not an address and a port | expected an address and a port: `10.0.0.1:7443`",
            ],
        ),
        (
            format!("  listen: 127.0.0.1:8080\n  {TLS}\n"),
            vec!["0:1 cluster.listen: a listener has the address that is written as `listen`"],
        ),
        (
            format!("  {listen}\n  tls: {{ certificate: a }}\n"),
            vec!["2:3 cluster.tls.key: `key` is missing", "2:3 cluster.tls.ca: `ca` is missing"],
        ),
        (
            format!("  {listen}\n  {TLS}\n  name: a/b\n"),
            vec!["3:9 cluster.name: `a/b` is not a name | a name has 1 to 64 letters, digits, `-`, `_`, `.`"],
        ),
        (format!("  {listen}\n  {TLS}\n  peers: []\n"), vec!["3:10 cluster.peers: the list is empty"]),
        (
            format!("  {listen}\n  {TLS}\n  peers: 10.0.0.1:7443\n"),
            vec![
                "3:10 cluster.peers: one address is no circle of nodes | write a list of `{ name, address }`, or a host name and a port",
            ],
        ),
        (
            format!("  {listen}\n  {TLS}\n  peers: \"unix:/run/a\"\n"),
            vec!["3:10 cluster.peers: a node is not reached by a Unix socket"],
        ),
        (
            format!("  {listen}\n  {TLS}\n  peers: [{{ name: a }}]\n"),
            vec!["3:11 cluster.peers[0].address: `address` is missing"],
        ),
        (
            format!("  {listen}\n  {TLS}\n  peers: [{{ name: a, address: b:1, weight: 0 }}]\n"),
            vec!["3:44 cluster.peers[0].weight: `0` is not a number from 1 to 1000"],
        ),
        (
            format!("  {listen}\n  {TLS}\n  peers: [{{ name: a, address: b:1 }}, {{ name: a, address: c:1 }}]\n"),
            vec!["3:38 cluster.peers[1]: another node has the same `name`"],
        ),
        (
            format!("  {listen}\n  {TLS}\n  peers: [{{ name: a, address: b:1 }}, {{ name: c, address: b:1 }}]\n"),
            vec!["3:38 cluster.peers[1]: another node has the same `address`"],
        ),
        (format!("  {listen}\n  {TLS}\n  region: {{}}\n"), vec!["3:3 cluster.region.peers: `peers` is missing"]),
        (
            format!("  {listen}\n  {TLS}\n  deadlines: {{ first_byte: 2s, budget: 1s }}\n"),
            vec!["3:40 cluster.deadlines.budget: `budget` is below `first_byte`"],
        ),
        (
            format!("  {listen}\n  {TLS}\n  deadlines: {{ connect: 0s }}\n"),
            vec!["3:25 cluster.deadlines.connect: this duration must be above zero"],
        ),
        (format!("  {listen}\n  {TLS}\n  hot: 0s\n"), vec!["3:8 cluster.hot: this duration must be above zero"]),
        (
            format!("  {listen}\n  {TLS}\n  zebra: 1\n"),
            vec![
                "3:3 cluster.zebra: unknown key `zebra` | known keys: `redis`, `name`, `listen`, `tls`, `peers`, `region`, `dns`, `deadlines`, `hot`",
            ],
        ),
    ];
    for (cluster, expected) in cases {
        assert_eq!(faults(&cluster), expected, "for {cluster}");
    }
}

#[test]
fn there_has_to_be_a_cache_to_share() {
    let text = text(&format!("  listen: 127.0.0.1:7443\n  {TLS}\n")).replace("cache: {}\n", "");
    let report = Loader::new().load_str("selvedge.yaml", &text).map(|_| ()).unwrap_err();
    let found: Vec<_> = report.faults.iter().map(|fault| (fault.key.as_str(), fault.message.as_str())).collect();
    assert_eq!(found, [("cluster", "there is no `cache` that could be shared")]);
}

#[test]
fn redis_may_stand_alone_or_beside_nodes() {
    let load = |cluster: &str| Loader::new().load_str("dir/selvedge.yaml", &text(cluster)).unwrap().config;
    let alone = load(
        "  redis: { url: \"rediss://redis.test:6380/2\", username: edge, password: secret-1, key: other }\n  name: edge-1\n",
    );
    let redis = alone.redis.unwrap();
    assert_eq!((redis.url.as_str(), redis.key.as_str()), ("rediss://redis.test:6380/2", "other"));
    assert_eq!((redis.username.as_deref(), redis.password.as_deref()), (Some("edge"), Some("secret-1")));
    assert_eq!((redis.node.as_deref(), alone.cluster), (Some("edge-1"), None));
    assert!(!format!("{redis:?}").contains("secret-1"));

    let beside = load(&format!("  listen: 127.0.0.1:7443\n  {TLS}\n  redis: {{ url: redis://redis.test }}\n"));
    assert_eq!(beside.redis.unwrap().key, "selvedge:purges");
    assert!(beside.cluster.is_some());
}

#[test]
fn what_is_wrong_with_redis_is_told() {
    for (cluster, expected) in [
        ("  redis: {}\n", &["1:3 cluster.redis.url: `url` is missing"][..]),
        (
            "  redis: { url: http://a }\n",
            &[
                "1:17 cluster.redis.url: `http://a` does not begin with `redis://` or `rediss://` | expected `redis://HOST:PORT` or `rediss://HOST:PORT`",
            ],
        ),
        (
            "  redis: { url: \"redis://u:p@a\" }\n",
            &[
                "1:17 cluster.redis.url: `redis://u:p@a` has a user or a password in it | write `username` and `password_file`",
            ],
        ),
        (
            "  redis: { url: redis://a/b }\n",
            &[
                "1:17 cluster.redis.url: `redis://a/b` has more than the number of a database behind the host | expected `redis://HOST:PORT` or `rediss://HOST:PORT`",
            ],
        ),
        (
            "  redis: { url: redis:// }\n",
            &["1:17 cluster.redis.url: `redis://` has no host | expected `redis://HOST:PORT` or `rediss://HOST:PORT`"],
        ),
        (
            "  redis: { url: redis://a, password: b, password_file: c }\n",
            &["1:56 cluster.redis.password_file: `password` and `password_file` are both written"],
        ),
        ("  redis: { url: redis://a, key: \"\" }\n", &["1:33 cluster.redis.key: `` is empty | expected a name"]),
        (
            "  redis: { url: redis://a }\n  peer: []\n",
            &[
                "0:1 cluster.listen: `listen` is missing",
                "0:1 cluster.tls: `tls` is missing",
                "2:3 cluster.peer: unknown key `peer` | did you mean `peers`?",
            ],
        ),
    ] {
        assert_eq!(faults(cluster), expected, "{cluster}");
    }
    let without = text("  redis: { url: redis://a }\n").replace("cache: {}\n", "");
    let report = Loader::new().load_str("selvedge.yaml", &without).map(|_| ()).unwrap_err();
    assert!(report.to_string().contains("there is no `cache` that could be purged"), "{report}");
}
