//! What a configuration without faults becomes: defaults, units, variables, files, `like`, chains of filters.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its helpers too")]

use std::{
    collections::BTreeMap,
    fs,
    num::NonZeroU8,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use proptest::prelude::*;
use selvedge_config::{
    AccessLog, Admit, Beyond, Bind, BodyMode, Builtin, ByteRate, ByteSize, CacheDisk, CacheKey, CacheMemory, CacheTags,
    Certificates, ClientMode, Collapse, Compat, CompressLevels, Config, DiskFolder, Encoding, EndpointAddr,
    FilterLimits, GeoDatabase, HeaderEncoding, HedgeAfter, Host, Isolation, ListenerLimits, Loaded, Loader, LogFormat,
    LogOutput, Match, MediaType, ModuleCache, Node, OnFailure, OnPause, PathMatch, Percent, Pin, Protocol, QueryKey,
    Ranges, Rate, Reload, Report, Retries, RetryOn, Servers, SetCookie, Snapshot, TagField, Target, Tick, Timeouts,
    TlsVersion, TrustedProxies, Ttl, UnknownNames, UpstreamLimits, UpstreamPool, UpstreamProtocol, ValueError,
    ValueMatch, WasmSource, Workers, parse_duration,
};
use serde_json::json;

const SMALL: &str = "version: 1
listeners:
  web: { bind: 127.0.0.1:8080 }
upstreams:
  demo: { builtin: demo }
sites:
- hosts: [\"*\"]
  routes:
  - to: demo
";

fn loader() -> Loader {
    let env =
        BTreeMap::from([("NODE", "edge-9"), ("PORT", "8081"), ("EMPTY", ""), ("SECRET", "hunter2"), ("TRUE", "true")]);
    Loader::new().builtin_filters(&["jwt-auth", "waf"]).env(move |name| env.get(name).map(|value| (*value).to_owned()))
}

fn load(text: &str) -> Config {
    match loader().load_str("selvedge.yaml", text) {
        Ok(loaded) => loaded.config,
        Err(report) => panic!("{report}\n{text}"),
    }
}

fn lines(report: &Report) -> Vec<String> {
    let file = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let related = |fault: &selvedge_config::Fault| match &fault.related {
        Some((what, position)) => format!(" ({what} {}:{}:{})", file(&position.file), position.line, position.column),
        None => String::new(),
    };
    let line = |fault: &selvedge_config::Fault| {
        format!("{}:{}:{} {}{}", file(&fault.file), fault.line, fault.column, fault.message, related(fault))
    };
    report.faults.iter().map(line).collect()
}

#[test]
fn what_is_not_written_has_its_default() {
    let config = load(SMALL);
    assert_eq!(
        config.node,
        Node {
            name: "selvedge".into(),
            workers: Workers::Auto,
            shutdown_grace: Duration::from_secs(10),
            module_cache: ModuleCache::Auto,
            trusted_proxies: TrustedProxies::default(),
            paths: selvedge_config::Paths::default(),
        }
    );
    assert_eq!(config.telemetry.access_log, AccessLog { format: LogFormat::Json, output: LogOutput::Stdout });
    assert_eq!((config.geo, config.cache), (None, None));
    let web = &config.listeners["web"];
    assert_eq!(web.protocols, [Protocol::H1, Protocol::H2]);
    assert_eq!(web.tls, None);
    assert_eq!(
        web.limits,
        ListenerLimits {
            body: ByteSize(16 << 20),
            header_size: ByteSize(64 << 10),
            header_count: 100,
            uri_length: ByteSize(8 << 10),
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            upload_rate: ByteRate(240),
            request_time: None,
            connections: 50_000,
            connections_per_client: None,
            requests_per_connection: None,
            h2_streams: 100,
            h2_resets: 200,
        }
    );
    assert_eq!((web.position.line, web.position.column), (3, 3));
    let demo = &config.upstreams["demo"];
    assert_eq!(demo.servers, Servers::Builtin(Builtin::Demo));
    assert_eq!(demo.protocol, UpstreamProtocol::H1);
    assert_eq!(
        demo.timeouts,
        Timeouts {
            connect: Duration::from_secs(1),
            read: Duration::from_secs(60),
            first_byte: None,
            total: None,
            idle: Duration::from_secs(60),
        }
    );
    let [site] = config.sites.as_slice() else { panic!("{:?}", config.sites) };
    assert_eq!((&site.hosts, &site.listeners), (&vec![Host::Any], &vec!["web".to_owned()]));
    let [route] = site.routes.as_slice() else { panic!("{:?}", site.routes) };
    assert_eq!((route.name.as_str(), &route.when, &route.cache), ("routes[0]", &Match::default(), &None));
    assert_eq!(route.target, Target::Upstream("demo".into()));
    assert_eq!((route.position.line, route.position.column), (9, 5));
}

#[test]
fn a_node_may_have_nothing_but_listeners_for_tcp() {
    let config = load(
        r#"
version: 1
listeners:
  db: { bind: 127.0.0.1:5432, tcp: { upstream: db, filters: [auth, auth: { b: 2 }] } }
upstreams: { db: { endpoints: [127.0.0.1:5433] } }
filters: { auth: { wasm: builtin:jwt-auth, config: { a: 1 } } }
"#,
    );
    let tcp = config.listeners["db"].tcp.as_ref().unwrap();
    assert_eq!((tcp.upstream.as_str(), config.sites.len()), ("db", 0));
    let settings: Vec<_> = tcp.filters.iter().map(|used| used.config.clone()).collect();
    assert_eq!(settings, [json!({ "a": 1 }), json!({ "a": 1, "b": 2 })]);
    assert_eq!((tcp.position.line, tcp.position.column), (4, 31));
}

#[test]
fn everything_can_be_written() {
    let config = load(
        r#"
version: 1
include: []
node:
  name: ${NODE:-edge-1}
  workers: 8
  shutdown_grace: 0s
  module_cache: modules
  trusted_proxies: [10.0.0.0/8, unix]
telemetry: { access_log: { format: text, output: off } }
listeners:
  web:
    bind: "[::1]:8080"
    protocols: [h2]
    proxy_protocol: accept
    limits: { connections: 1, connections_per_client: 2, requests_per_connection: 65535, h2_streams: 3, h2_resets: 1, upload_rate: 1KiB/s, request_time: 1m }
  secure:
    bind: 127.0.0.1:8443
    tls: { certificates: [{ cert: a.pem, key: /etc/b.pem }], min: "1.3", unknown_names: refuse, clients: { mode: request, ca: clients.pem, crl: revoked.pem, pins: ["AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="], forward: true } }
    limits: { body: 1GiB, header_timeout: 250ms, idle_timeout: 5m, header_size: 1MiB, header_count: 256, uri_length: 65534B }
geo: { database: geo.mmdb, reload: off }
cache:
  memory: { size: 8MiB }
  disk:
    folders: [{ path: store, size: 1GiB }, { path: /mnt/b, size: 64MiB }]
    admit: all
    write_budget: 0B/s
  collapse: { wait: 1s, waiters: 20, when_full: forward, when_late: refuse }
  purge: { allow: [10.0.0.0/8, "::1"], log: state/purge.log }
upstreams:
  app:
    endpoints: [127.0.0.1:9000, { addr: App.internal:9001, weight: 2 }, "[::1]:9002"]
    tls: { sni: app.internal, ca: ca.pem, verify: true }
    protocol: h2
    timeouts: { connect: 2s, read: 1m, idle: 1h }
filters:
  auth:
    wasm: file:auth.wasm
    on_failure: open
    request_body: { peek: 2KiB }
    response_body: buffer
    on_pause: stop_all
    header_encoding: reject
    sha256: "abababababababababababababababababababababababababababababababab"
    isolation: { pool: 3 }
    snapshot: never
    tick: once_per_node
    compat: ngx
    root_id: second
    vm_id: shared
    vm_config: { a: 1 }
    environment: { TZ: UTC }
    limits: { memory: 64MiB, cpu: 4ms, deadline: 5ms, callouts: 7, callouts_per_second: 8, body: 2MB, wait: 1s }
    config: { issuer: a, list: [1, -2, 0x10, 1.5, true, ~, "7"] }
sites:
- hosts: [www.Example.com, "*.example.com", 127.0.0.1, "[::0:1]"]
  listeners: [secure]
  routes:
  - name: api
    match: { path: /api/*, method: [POST, GET], header: { X-B: "2", x-a: "1" } }
    invalidates: [{ on: /api/*/item/*, urls: ["/lists/$1"], tags: ["item-$2"], soft: true, refresh: true }]
    cache: { ttl: 1h, override: true, key: { query: { only: [v, page] }, headers: [X-A], cookies: [c], device: true }, cookies: strip, languages: [de, en-GB], slice: 1MiB, ranges: whole, stale_while_revalidate: 5m, stale_if_error: 7d, request_directives: true, show_key: true, tags: { read: [xkey], keep: true } }
    to: app
  - match: { path: /teapot }
    respond: { status: 418, body: "short and stout\n", headers: { X-A: b } }
"#,
    );
    assert_eq!(
        config.node,
        Node {
            name: "edge-9".into(),
            workers: Workers::Count(8),
            shutdown_grace: Duration::ZERO,
            module_cache: ModuleCache::At("modules".into()),
            trusted_proxies: TrustedProxies { ranges: vec!["10.0.0.0/8".parse().unwrap()], unix: true },
            paths: selvedge_config::Paths::default(),
        }
    );
    assert_eq!(config.telemetry.access_log, AccessLog { format: LogFormat::Text, output: LogOutput::Off });
    assert_eq!(config.listeners["web"].bind, Bind::Tcp("[::1]:8080".parse().unwrap()));
    assert_eq!(config.listeners["web"].proxy_protocol, Some(selvedge_config::ProxyProtocol::Accept));
    assert_eq!(config.listeners["secure"].proxy_protocol, None);
    let secure = &config.listeners["secure"];
    let tls = secure.tls.as_ref().unwrap();
    assert_eq!((tls.min, tls.unknown_names), (TlsVersion::V1_3, UnknownNames::Refuse));
    let clients = tls.clients.as_ref().unwrap();
    assert_eq!((clients.mode, clients.ca.clone()), (ClientMode::Request, PathBuf::from("clients.pem")));
    assert_eq!(clients.crl, Some(PathBuf::from("revoked.pem")));
    assert_eq!((&clients.pins[..], clients.forward), (&[Pin([1; 32])][..], true));
    let Certificates::Files(files) = &tls.certificates else { panic!("{tls:?}") };
    assert_eq!((files[0].cert.clone(), files[0].key.clone()), (PathBuf::from("a.pem"), PathBuf::from("/etc/b.pem")));
    assert_eq!(
        secure.limits,
        ListenerLimits {
            body: ByteSize(1 << 30),
            header_timeout: Duration::from_millis(250),
            idle_timeout: Duration::from_mins(5),
            header_size: ByteSize(1 << 20),
            header_count: 256,
            uri_length: ByteSize(65_534),
            ..ListenerLimits::default()
        }
    );
    assert_eq!(
        config.listeners["web"].limits,
        ListenerLimits {
            connections: 1,
            connections_per_client: Some(2),
            requests_per_connection: Some(u16::MAX),
            h2_streams: 3,
            h2_resets: 1,
            upload_rate: ByteRate(1024),
            request_time: Some(Duration::from_mins(1)),
            ..ListenerLimits::default()
        }
    );
    let geo = config.geo.unwrap();
    assert_eq!((geo.database, geo.reload), (GeoDatabase::File("geo.mmdb".into()), Reload::Off));
    let cache = config.cache.unwrap();
    // A small store lowers the default for one object.
    assert_eq!(cache.memory, CacheMemory { size: ByteSize::mib(8), max_object: ByteSize::mib(8) });
    let folder = |path: &str, mib| DiskFolder { path: path.into(), size: ByteSize::mib(mib) };
    let disk = CacheDisk {
        folders: vec![folder("store", 1024), folder("/mnt/b", 64)],
        // A quarter of the smaller one.
        max_object: ByteSize::mib(16),
        admit: Admit::All,
        write_budget: ByteRate(0),
    };
    assert_eq!(cache.disk, Some(disk));
    let (wait, waiters) = (Duration::from_secs(1), 20);
    let expected = Collapse { wait, when_late: Beyond::Refuse, waiters, when_full: Beyond::Forward };
    assert_eq!(cache.collapse, expected);
    assert_eq!(cache.purge.allow, ["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()]);
    assert!(cache.purge.log.as_ref().is_some_and(|path| path.ends_with("state/purge.log")));
    let app = &config.upstreams["app"];
    let Servers::Endpoints(endpoints) = &app.servers else { panic!("{app:?}") };
    let endpoints: Vec<(String, u16)> = endpoints.iter().map(|one| (one.addr.to_string(), one.weight)).collect();
    assert_eq!(endpoints, [("127.0.0.1:9000".into(), 1), ("app.internal:9001".into(), 2), ("[::1]:9002".into(), 1)]);
    assert_eq!(app.protocol, UpstreamProtocol::H2);
    let auth = &config.filters["auth"];
    assert_eq!((&auth.wasm, auth.on_failure), (&WasmSource::File("auth.wasm".into()), OnFailure::Open));
    let modes = (auth.request_body, auth.response_body, auth.on_pause, auth.header_encoding);
    let written = (BodyMode::Peek(ByteSize::kib(2)), BodyMode::Buffer, OnPause::StopAll, HeaderEncoding::Reject);
    assert_eq!(modes, written);
    let limits = FilterLimits {
        memory: ByteSize::mib(64),
        cpu: Duration::from_millis(4),
        deadline: Duration::from_millis(5),
        callouts: 7,
        callouts_per_second: 8,
        body: ByteSize(2_000_000),
        wait: Duration::from_secs(1),
    };
    assert_eq!(auth.limits, limits);
    assert_eq!(auth.sha256, Some([0xab; 32]));
    let run = (auth.isolation, auth.snapshot, auth.tick, auth.compat);
    let pool = Isolation::Pool(NonZeroU8::new(3).unwrap());
    assert_eq!(run, (pool, Snapshot::Never, Tick::OncePerNode, Compat::Ngx));
    assert_eq!((&auth.root_id[..], auth.vm_id.as_deref()), ("second", Some("shared")));
    assert_eq!((&auth.vm_config, &auth.environment["TZ"][..]), (&json!({ "a": 1 }), "UTC"));
    assert_eq!(auth.config, json!({ "issuer": "a", "list": [1, -2, 16, 1.5, true, null, "7"] }));
    let site = &config.sites[0];
    let hosts = [
        Host::Exact("www.example.com".into()),
        Host::Wildcard("example.com".into()),
        Host::Exact("127.0.0.1".into()),
        Host::Exact("[::1]".into()),
    ];
    assert_eq!(
        (site.hosts.as_slice(), site.listeners.as_slice()),
        (hosts.as_slice(), ["secure".to_owned()].as_slice())
    );
    let api = &site.routes[0];
    assert_eq!(
        api.when,
        Match {
            path: PathMatch::Prefix("/api".into()),
            methods: vec!["GET".into(), "POST".into()],
            headers: vec![("x-a".into(), ValueMatch::Exact("1".into())), ("x-b".into(), ValueMatch::Exact("2".into())),],
            ..Match::default()
        }
    );
    let policy = api.cache.as_ref().unwrap();
    assert_eq!((policy.ttl.clone(), policy.override_origin), (Some(Ttl::One(Duration::from_secs(3600))), true));
    assert_eq!(
        policy.key,
        CacheKey {
            query: QueryKey::Only(vec!["v".into(), "page".into()]),
            sort: false,
            headers: vec!["x-a".into()],
            claims: Vec::new(),
            variants: Vec::new(),
            cookies: vec!["c".into()],
            device: true,
            geo: None,
        }
    );
    assert_eq!(policy.slice, Some(ByteSize::mib(1)));
    assert_eq!((policy.cookies, &policy.languages[..]), (SetCookie::Strip, &["de".to_owned(), "en-gb".into()][..]));
    assert_eq!(policy.stale_if_error, Some(Duration::from_secs(7 * 86400)));
    assert!(policy.request_directives && policy.show_key && policy.ranges == Ranges::Whole);
    let [rule] = &api.invalidates[..] else { panic!("{api:?}") };
    let segments = vec![Some("api".into()), None, Some("item".into())];
    assert_eq!(rule.on, PathMatch::Pattern { segments, below: true });
    assert_eq!((rule.urls.as_slice(), rule.soft, rule.refresh), (["/lists/$1".to_owned()].as_slice(), true, true));
    assert_eq!(policy.tags, CacheTags { read: vec![TagField::Xkey], keep: true });
    let Target::Respond(teapot) = &site.routes[1].target else { panic!("{site:?}") };
    assert_eq!((teapot.status, teapot.body.as_str()), (418, "short and stout\n"));
    assert_eq!(teapot.headers, [("x-a".to_owned(), "b".to_owned())]);
}

#[test]
fn units() {
    let seconds = Duration::from_secs;
    for (text, expected) in [
        ("250ms", Ok(Duration::from_millis(250))),
        ("30s", Ok(seconds(30))),
        ("5m", Ok(seconds(300))),
        ("1h", Ok(seconds(3600))),
        ("7d", Ok(seconds(604_800))),
        ("0s", Ok(Duration::ZERO)),
        ("", Err(ValueError::NoNumber)),
        ("s", Err(ValueError::NoNumber)),
        ("-1s", Err(ValueError::NoNumber)),
        ("1", Err(ValueError::NoUnit)),
        ("1 s", Err(ValueError::UnknownUnit)),
        ("1.5s", Err(ValueError::UnknownUnit)),
        ("1S", Err(ValueError::UnknownUnit)),
        ("99999999999999999999s", Err(ValueError::TooLarge)),
        ("3651d", Err(ValueError::TooLarge)),
    ] {
        assert_eq!(parse_duration(text), expected, "{text}");
    }
    for (text, expected) in [
        ("512B", Ok(512)),
        ("64KiB", Ok(65_536)),
        ("16MiB", Ok(16 << 20)),
        ("1GiB", Ok(1 << 30)),
        ("64KB", Ok(64_000)),
        ("2MB", Ok(2_000_000)),
        ("1GB", Ok(1_000_000_000)),
        ("1kib", Err(ValueError::UnknownUnit)),
        ("1", Err(ValueError::NoUnit)),
        ("2000000GiB", Err(ValueError::TooLarge)),
    ] {
        assert_eq!(text.parse::<ByteSize>().map(ByteSize::bytes), expected, "{text}");
    }
    for size in ["1B", "3KiB", "16MiB", "1025B", "1GiB", "0B"] {
        assert_eq!(size.parse::<ByteSize>().unwrap().to_string(), size);
    }
    for (text, expected) in [
        ("100/min", Ok(Rate { count: 100, per: seconds(60) })),
        ("5/s", Ok(Rate { count: 5, per: seconds(1) })),
        ("1000/h", Ok(Rate { count: 1000, per: seconds(3600) })),
        ("0/s", Err(ValueError::NoNumber)),
        ("5/d", Err(ValueError::UnknownUnit)),
        ("5", Err(ValueError::NoUnit)),
    ] {
        assert_eq!(text.parse::<Rate>(), expected, "{text}");
        if let Ok(rate) = expected {
            assert_eq!(rate.to_string(), text);
        }
    }
    for (text, expected) in [
        ("10%", Ok(1000)),
        ("0%", Ok(0)),
        ("100%", Ok(10_000)),
        ("0.5%", Ok(50)),
        ("0.25%", Ok(25)),
        ("100.01%", Err(ValueError::TooLarge)),
        ("999999%", Err(ValueError::TooLarge)),
        ("1.%", Err(ValueError::NoNumber)),
        ("%", Err(ValueError::NoNumber)),
        ("10", Err(ValueError::NoUnit)),
    ] {
        assert_eq!(text.parse::<Percent>().map(Percent::basis_points), expected, "{text}");
    }
}

#[test]
fn variables() {
    let name_of = |value: &str| load(&format!("node:\n  name: {value}\n{SMALL}")).node.name;
    assert_eq!(name_of("${NODE}"), "edge-9");
    assert_eq!(name_of("a-${NODE}.${PORT}"), "a-edge-9.8081");
    assert_eq!(name_of("${NONE:-b}"), "b");
    assert_eq!(name_of("${EMPTY:-b}"), "b");
    assert_eq!(name_of("x${EMPTY}"), "x");
    assert_eq!(name_of("${NODE:?why}"), "edge-9");
    // Text of digits is text where text is expected.
    assert_eq!(name_of("${PORT}"), "8081");

    let body_of = |value: &str| {
        let text = SMALL.replace("to: demo", &format!("respond:\n      status: 200\n      body: {value}"));
        let Target::Respond(respond) = load(&text).sites[0].routes[0].target.clone() else { panic!("{text}") };
        respond.body
    };
    assert_eq!(body_of("$${NODE}"), "${NODE}");
    assert_eq!(body_of("$5 $$ $NODE"), "$5 $$ $NODE");
    assert_eq!(body_of("\"${NODE}\""), "${NODE}");
    assert_eq!(body_of("'${NODE}'"), "${NODE}");
    assert_eq!(body_of("|\n        ${NODE}\n"), "${NODE}\n");

    let config = load(&format!(
        "node:\n  workers: ${{NONE:-3}}\n{}",
        SMALL.replace("{ bind: 127.0.0.1:8080 }", "\n    bind: 127.0.0.1:${PORT}")
    ));
    assert_eq!(config.node.workers, Workers::Count(3));
    assert_eq!(config.listeners["web"].bind.tcp().unwrap().port(), 8081);
}

#[test]
fn what_is_tried_again_and_how_much_at_once() {
    let config = load(&SMALL.replace(
        "  demo: { builtin: demo }",
        "  demo: { builtin: demo }
  a: { endpoints: [{ srv: _HTTP._tcp.Example.com, zone: z }], retries: {}, limits: { per_endpoint: 2 }, hedge: { after: 50ms }, pool: { idle: 0 } }
  b: { endpoints: [b:1], like: c, protocol: h2, timeouts: { first_byte: 2s, total: 1m } }
  c:
    endpoints: [c:1]
    retries: { attempts: 2, when: [reset, timeout, 503], methods: [POST, GET], budget: 5%, backoff: 0s }
    limits: { requests: 7, queue: 3, wait: 2s }
    pool: { max_requests: 9, max_age: 10m }
    hedge: { after: 1s, share: 0.5% }
  d: { endpoints: [d:1], hedge: { after: p99.5, floor: 2ms, minimum: 9 } }
  e: { endpoints: [e:1], hedge: { after: p95 } }",
    ));
    let [demo, a, b] = ["demo", "a", "b"].map(|name| &config.upstreams[name]);
    assert_eq!((&demo.retries, demo.limits), (&Retries::default(), None));
    let default = Retries::default();
    assert_eq!(
        (default.attempts, default.when.as_slice(), default.budget),
        (3, [RetryOn::Connect].as_slice(), Percent::FIFTH)
    );
    assert_eq!(default.methods, ["DELETE", "GET", "HEAD", "OPTIONS", "PUT", "TRACE"]);
    assert_eq!(a.retries, default);
    let wait = Duration::from_secs(1);
    assert_eq!(a.limits, Some(UpstreamLimits { requests: None, per_endpoint: Some(2), queue: 0, wait }));
    assert_eq!(b.retries.when, [RetryOn::Reset, RetryOn::Timeout, RetryOn::Status(503)]);
    assert_eq!(
        (b.retries.attempts, b.retries.methods.join(" ").as_str(), b.retries.backoff),
        (2, "GET POST", Duration::ZERO)
    );
    let wait = Duration::from_secs(2);
    assert_eq!(b.limits, Some(UpstreamLimits { requests: Some(7), per_endpoint: None, queue: 3, wait }));
    let service = EndpointAddr::Srv { name: "_http._tcp.example.com".into() };
    let selvedge_config::Servers::Endpoints(endpoints) = &a.servers else { panic!("endpoints") };
    assert_eq!((&endpoints[0].addr, endpoints[0].place.zone.as_deref()), (&service, Some("z")));
    let hedge = |upstream: &selvedge_config::Upstream| upstream.hedge.map(|one| (one.after, one.share.basis_points()));
    assert_eq!(hedge(demo), None);
    assert_eq!(hedge(a), Some((HedgeAfter::Time(Duration::from_millis(50)), 500)));
    assert_eq!(hedge(b), Some((HedgeAfter::Time(Duration::from_secs(1)), 50)));
    let by_answers = ["d", "e"].map(|name| config.upstreams[name].hedge.map(|one| (one.after, one.floor, one.minimum)));
    assert_eq!(by_answers[0], Some((HedgeAfter::Quantile(995), Duration::from_millis(2), 9)));
    assert_eq!(by_answers[1], Some((HedgeAfter::Quantile(950), Duration::from_millis(10), 100)));
    assert_eq!(demo.pool, None);
    assert_eq!(a.pool, Some(UpstreamPool { idle: Some(0), max_requests: None, max_age: None }));
    let max_age = Some(Duration::from_mins(10));
    assert_eq!(b.pool, Some(UpstreamPool { idle: None, max_requests: Some(9), max_age }));
    assert_eq!((b.timeouts.first_byte, b.timeouts.total), (Some(Duration::from_secs(2)), Some(Duration::from_mins(1))));
}

#[test]
fn like_copies_what_is_not_written_here() {
    let config = load(&SMALL.replace(
        "  demo: { builtin: demo }",
        "  demo: { builtin: demo, timeouts: { idle: 9s } }
  a: { endpoints: [a:1], like: b, timeouts: { connect: 3s } }
  b: { endpoints: [b:1], like: c, protocol: h2 }
  c: { endpoints: [c:1], tls: { sni: c.test }, protocol: h1, timeouts: { connect: 9s, idle: 9s } }
  d: { endpoints: [d:1], like: demo }",
    ));
    let a = &config.upstreams["a"];
    assert_eq!(a.tls.as_ref().unwrap().sni.as_deref(), Some("c.test"));
    assert_eq!(a.protocol, UpstreamProtocol::H2);
    // A block that is written replaces the whole block.
    assert_eq!(a.timeouts, Timeouts { connect: Duration::from_secs(3), ..Timeouts::default() });
    let Servers::Endpoints(endpoints) = &a.servers else { panic!("{a:?}") };
    assert_eq!(endpoints[0].addr, EndpointAddr::Host { host: "a".into(), port: 1 });
    assert_eq!(config.upstreams["b"].timeouts.connect, Duration::from_secs(9));
    assert_eq!(config.upstreams["d"].timeouts.idle, Duration::from_secs(9));
}

const FILTERED: &str = "version: 1
listeners:
  web: { bind: 127.0.0.1:8080 }
upstreams:
  demo: { builtin: demo }
filters:
  auth:
    wasm: builtin:jwt-auth
    config: { issuer: a, keys: [{ id: 1 }, { id: 2 }], a/b: 1 }
  waf: { wasm: builtin:waf }
sites:
- hosts: [a.test]
  filters: [waf]
  routes:
  - to: demo
    filters:
    - auth
    - auth: { keys: [{ id: 3 }], mode: x }
";

#[test]
fn a_route_runs_the_sites_filters_first_and_merges_its_settings() {
    let config = load(FILTERED);
    let filters = &config.sites[0].routes[0].filters;
    let names: Vec<&str> = filters.iter().map(|filter| filter.name.as_str()).collect();
    assert_eq!(names, ["waf", "auth", "auth"]);
    assert_eq!(filters[0].config, json!({}));
    assert_eq!(filters[1].config, json!({ "issuer": "a", "keys": [{ "id": 1 }, { "id": 2 }], "a/b": 1 }));
    assert_eq!(filters[2].config, json!({ "issuer": "a", "keys": [{ "id": 3 }], "mode": "x", "a/b": 1 }));
}

#[test]
fn a_value_of_a_filters_configuration_has_a_place() {
    let config = load(FILTERED);
    let filters = &config.sites[0].routes[0].filters;
    let place = |index: usize, pointer: &str| {
        let position = filters[index].position_of(pointer);
        (position.line, position.column)
    };
    assert_eq!(place(0, ""), (13, 13));
    assert_eq!(place(1, ""), (17, 7));
    assert_eq!(place(1, "/issuer"), (9, 23));
    assert_eq!(place(1, "/a~1b"), (9, 61));
    assert_eq!(place(1, "/keys/1/id"), (9, 50));
    // What is not written is where it would have to be.
    assert_eq!(place(1, "/keys/1/name"), (9, 44));
    assert_eq!(place(1, "/nothing"), (17, 7));
    assert_eq!(place(2, "/keys/0/id"), (18, 28));
    assert_eq!(place(2, "/keys/1"), (18, 21));
    assert_eq!(place(2, "/mode"), (18, 40));
    assert_eq!(place(2, "/issuer"), (9, 23));
    let declared = config.filters["auth"].position_of("/keys/0");
    assert_eq!((declared.line, declared.column), (9, 33));
}

#[test]
fn secrets_are_read_and_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("key"), "swordfish\n").unwrap();
    fs::write(dir.path().join("two"), "line\n\n").unwrap();
    let text = FILTERED
        .replace("issuer: a,", "issuer: a, secret_file: key, deep: [{ two_file: two }], _file: kept,")
        .replace("    - auth\n", "    - auth:\n        env: ${SECRET}\n        n: ${PORT}\n")
        .replace("  routes:\n", "  routes:\n  - match:\n      path: /x\n      header:\n        x-a: ${SECRET}\n    respond:\n      status: 200\n      body: ${SECRET}\n      headers:\n        x-b: ${SECRET}\n");
    let path = dir.path().join("selvedge.yaml");
    fs::write(&path, text).unwrap();
    let loaded = loader().load(&path).unwrap_or_else(|report| panic!("{report}"));
    let filter = &loaded.config.sites[0].routes[1].filters[1];
    assert_eq!(filter.config["secret"], "swordfish");
    assert_eq!(filter.config.get("secret_file"), None);
    assert_eq!(filter.config["deep"], json!([{ "two": "line\n" }]));
    assert_eq!(filter.config["_file"], "kept");
    assert_eq!((&filter.config["env"], &filter.config["n"]), (&json!("hunter2"), &json!(8081)));
    let secret = ["/secret", "/deep", "/deep/0/two", "/env", ""].map(|pointer| filter.is_secret(pointer));
    assert_eq!(secret, [true, true, true, true, true]);
    assert!(!filter.is_secret("/issuer"));
    assert_eq!(filter.position_of("/secret").column, 39);

    let shown = format!("{loaded:?}{loaded:#?}");
    assert!(!shown.contains("swordfish") && !shown.contains("hunter2"), "{shown}");
    let mut files = ["selvedge.yaml", "key", "two"].map(|name| dir.path().join(name));
    files.sort();
    assert_eq!(loaded.files, files);
}

#[test]
fn a_secret_that_is_no_text_is_a_fault_without_its_content() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("key"), b"sword\xfffish").unwrap();
    let path = dir.path().join("selvedge.yaml");
    fs::write(&path, FILTERED.replace("issuer: a", "issuer_file: key")).unwrap();
    let report = loader().load(&path).unwrap_err();
    assert_eq!(lines(&report), ["selvedge.yaml:9:28 cannot read this file: the file is not UTF-8"]);
    assert!(!report.to_string().contains("sword"));
    assert!(report.files.contains(&dir.path().join("key")));
}

/// A directory with these files; the first is loaded.
fn load_files(files: &[(&str, &str)]) -> (tempfile::TempDir, Result<Loaded, Report>) {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let loaded = loader().load(&dir.path().join(files[0].0));
    (dir, loaded)
}

#[test]
fn includes_are_one_configuration() {
    let (dir, loaded) = load_files(&[
        (
            "a.yaml",
            "version: 1\ninclude: [conf.d/*.yaml, none.d/*.yaml, conf.d/b.yaml]\nlisteners:\n  web: { bind: 127.0.0.1:1 }\n",
        ),
        ("conf.d/b.yaml", "include: ['*.yaml']\nupstreams:\n  demo: { builtin: demo }\n"),
        (
            "conf.d/c.yaml",
            "sites:\n- hosts: ['*']\n  routes: [{ to: demo }]\ncache: {}\nfilters:\n  f: { wasm: file:f.wasm }\n",
        ),
        ("conf.d/empty.yaml", "# nothing yet\n"),
        ("conf.d/.hidden.yaml", "nonsense"),
        ("conf.d/d.yaml.orig", "nonsense"),
    ]);
    let loaded = loaded.unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(loaded.config.include.len(), 3);
    assert_eq!(loaded.config.sites.len(), 1);
    // Relative to the file it is written in.
    assert_eq!(loaded.config.filters["f"].wasm, WasmSource::File(dir.path().join("conf.d/f.wasm")));
    let files = ["a.yaml", "conf.d/b.yaml", "conf.d/c.yaml", "conf.d/empty.yaml"].map(|name| dir.path().join(name));
    assert_eq!(loaded.files, files);
}

#[test]
fn a_name_in_two_files_is_shown_in_both() {
    let (_dir, loaded) = load_files(&[
        ("a.yaml", &format!("include: [b.yaml]\ntelemetry: {{}}\n{SMALL}")),
        (
            "b.yaml",
            "version: 1
node: {}
telemetry: {}
listeners:
  web: { bind: 127.0.0.1:1 }
upstreams:
  demo: { builtin: demo }
sites:
- hosts: ['*']
  routes: [{ to: dmo }]
colour: blue
",
        ),
    ]);
    let expected = [
        "b.yaml:1:1 `version` stands in an included file",
        "b.yaml:2:1 `node` stands in an included file",
        "b.yaml:3:1 `telemetry` is written in two files (first here a.yaml:2:1)",
        "b.yaml:5:3 the listener `web` is declared twice (first here a.yaml:5:3)",
        "b.yaml:7:3 the upstream `demo` is declared twice (first here a.yaml:7:3)",
        "b.yaml:9:11 this host is already taken (first here a.yaml:9:11)",
        "b.yaml:10:18 there is no upstream `dmo`",
        "b.yaml:11:1 unknown key `colour`",
    ];
    assert_eq!(lines(&loaded.unwrap_err()), expected);
}

#[test]
fn a_file_that_cannot_be_read_does_not_make_its_names_missing() {
    let (_dir, loaded) = load_files(&[
        (
            "a.yaml",
            &SMALL
                .replace("  demo: { builtin: demo }", "  x: { builtin: demo }")
                .replace("version: 1", "version: 1\ninclude: [b.yaml, c.yaml, d.yaml]"),
        ),
        ("b.yaml", "upstreams: { demo\n"),
        ("c.yaml", "upstreams: []\n"),
    ]);
    let expected = [
        "a.yaml:2:27 cannot include: there is no such file",
        "b.yaml:2:1 this is not YAML: while parsing a flow mapping, did not find expected ',' or '}'",
        "c.yaml:1:12 expected a mapping, found a list",
    ];
    assert_eq!(lines(&loaded.unwrap_err()), expected);
}

#[test]
fn hostile_files_are_bounded() {
    let laughs: String = (1..40).map(|i| format!("a{i}: &a{i} [*a{0}, *a{0}, *a{0}, *a{0}]\n", i - 1)).collect();
    let deep = format!("a: {}1{}", "[".repeat(100), "]".repeat(100));
    let ladder: String = (1..40).map(|i| format!("a{i}: &a{i} [[[[*a{}]]]]\n", i - 1)).collect();
    let big = format!("# {}", "x".repeat(4 << 20));
    for (text, message) in [
        (format!("a0: &a0 [1, 2]\n{laughs}"), "more than 2000000 values, aliases expanded"),
        (format!("a0: &a0 [1, 2]\n{ladder}"), "lists and mappings stand in each other more than 64 deep"),
        (deep, "lists and mappings stand in each other more than 64 deep"),
        (big, "the file is larger than 4MiB"),
    ] {
        let (_dir, loaded) = load_files(&[("a.yaml", &text)]);
        let report = loaded.unwrap_err();
        assert_eq!(report.faults.len(), 1, "{}", report.faults.len());
        assert_eq!(report.faults[0].message, message);
    }

    let many = format!("version: 1\nx: [{}]\n", "~, ".repeat(1000))
        + &(0..5000).map(|i| format!("k{i}: 1\n")).collect::<String>();
    let (_dir, loaded) = load_files(&[("a.yaml", &many)]);
    assert_eq!(loaded.unwrap_err().faults.len(), 200);

    let chain: Vec<(String, String)> =
        (0..20).map(|i| (format!("{i}.yaml"), format!("include: [{}.yaml]\n", i + 1))).collect();
    let chain: Vec<(&str, &str)> = chain.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let (_dir, loaded) = load_files(&chain);
    let lines = lines(&loaded.unwrap_err());
    assert!(lines.contains(&"8.yaml:1:11 files include files more than 8 deep".to_owned()), "{lines:#?}");

    let crowd: Vec<(String, &str)> = (0..300).map(|i| (format!("d/{i}.yaml"), "\n")).collect();
    let mut crowd: Vec<(&str, &str)> = crowd.iter().map(|(name, text)| (name.as_str(), *text)).collect();
    let first = format!("include: [d/*.yaml]\n{SMALL}");
    crowd.insert(0, ("a.yaml", &first));
    let (_dir, loaded) = load_files(&crowd);
    let report = loaded.unwrap_err();
    assert_eq!(report.faults.len(), 1, "{report}");
    assert_eq!(report.faults[0].message, "more than 256 files");
}

#[test]
fn what_a_short_file_asks_for_is_bounded() {
    let settings: String = (0..2000).map(|i| format!("k{i}: {i}, ")).collect();
    let routes: String =
        (0..600).map(|i| format!("  - {{ match: {{ path: /{i} }}, filters: [auth], to: demo }}\n")).collect();
    let text = FILTERED.replace("issuer: a,", &settings).replace("  - to: demo\n", &format!("{routes}  - to: demo\n"));
    let report = loader().load_str("a.yaml", &text).unwrap_err();
    let messages: Vec<&str> = report.faults.iter().map(|fault| fault.message.as_str()).collect();
    assert_eq!(messages, ["filters and listeners add up to more than a million values over all routes"]);

    let chain: String = (0..30).map(|i| format!("  u{i}: {{ endpoints: [a:1], like: u{} }}\n", i + 1)).collect();
    let text = SMALL.replace("sites:", &format!("{chain}  u30: {{ builtin: demo }}\nsites:"));
    let report = loader().load_str("a.yaml", &text).unwrap_err();
    assert_eq!(report.faults[0].message, "`like` goes over more than 16 upstreams");
}

#[test]
fn a_large_file_of_faults_takes_no_long_time() {
    let keys: String = (0..100_000).map(|i| format!("k{i}: 'x'\n")).collect();
    let names: String = (0..5000).map(|i| format!("  u{i}: {{ builtin: demo }}\n")).collect();
    let routes: String = (0..5000).map(|i| format!("  - {{ match: {{ path: /{i} }}, to: v{i} }}\n")).collect();
    let dangling = SMALL.replace("sites:", &format!("{names}sites:")).replace("  - to: demo\n", &routes);
    let start = std::time::Instant::now();
    for text in [keys, dangling] {
        assert_eq!(loader().load_str("a.yaml", &text).unwrap_err().faults.len(), 200);
    }
    // Linear work takes a fraction of a second; the square of it took minutes.
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
}

#[test]
fn a_file_that_is_no_file_is_not_opened() {
    let (_dir, loaded) = load_files(&[("a.yaml", &format!("include: [/dev/zero, d]\n{SMALL}")), ("d/x", "")]);
    let expected = [
        "a.yaml:1:11 cannot include: this is not a regular file",
        "a.yaml:1:22 cannot include: this is not a regular file",
    ];
    assert_eq!(lines(&loaded.unwrap_err()), expected);
}

#[test]
fn a_file_that_is_missing_or_not_text_is_a_fault() {
    let report = loader().load(Path::new("/nowhere/at/all.yaml")).unwrap_err();
    assert_eq!(lines(&report), ["all.yaml:1:1 there is no such file"]);
    assert_eq!(report.files, [PathBuf::from("/nowhere/at/all.yaml")]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    fs::write(&path, b"version: 1\nab\xff: 1\n").unwrap();
    assert_eq!(lines(&loader().load(&path).unwrap_err()), ["a.yaml:2:3 the file is not UTF-8"]);
    // A byte order mark is no part of the text.
    fs::write(&path, format!("\u{feff}{SMALL}").replace('\n', "\r\n")).unwrap();
    assert!(loader().load(&path).is_ok());
}

#[test]
fn anchors_are_expanded() {
    let config = load(&SMALL.replace(
        "  demo: { builtin: demo }",
        "  demo: { builtin: demo, timeouts: &t { idle: 9s } }\n  a: { endpoints: [a:1], timeouts: *t }",
    ));
    assert_eq!(config.upstreams["a"].timeouts.idle, Duration::from_secs(9));
}

#[test]
fn paths_and_hosts_match() {
    let prefix = PathMatch::Prefix("/x".into());
    for (path, expected) in [("/x", true), ("/x/", true), ("/x/y", true), ("/xy", false), ("/", false)] {
        assert_eq!(prefix.matches(path), expected, "{path}");
    }
    assert!(Match::default().path.matches("/anything"));
    let wildcard = Host::Wildcard("example.com".into());
    for (host, expected) in
        [("a.example.com", true), ("example.com", false), ("a.b.example.com", false), (".example.com", false)]
    {
        assert_eq!(wildcard.matches(host), expected, "{host}");
    }
}

/// Pieces that mean something to YAML or to the grammar, so that random text gets past the first line.
fn piece() -> impl Strategy<Value = String> {
    let words = [
        "version: 1\n",
        "listeners:\n",
        "  web: ",
        "{ bind: 127.0.0.1:80 }",
        "\n",
        "sites:\n",
        "- hosts: [a.test]\n",
        "  routes:\n",
        "  - to: x\n",
        "${A}",
        "${A:-b}",
        "${",
        "}",
        "$${",
        "&a ",
        "*a",
        "[",
        "]",
        "{",
        ": ",
        ", ",
        "- ",
        "\t",
        "? ",
        "|\n",
        ">-\n",
        "'",
        "\"",
        "!!str ",
        "%YAML 1.2\n",
        "---\n",
        "...\n",
        "#",
        "\\",
        "\u{feff}",
        "\0",
        "ü",
        "include: [",
        "a_file: /",
        "like: ",
        "filters:\n",
        "config: ",
        "0x",
        "1e999",
        "-",
        "match: { path: /",
        "\r\n",
        "\u{2028}",
        "upstreams:\n",
        "  a: { endpoints: [a:1], like: a }\n",
        "<<: *a\n",
    ];
    prop_oneof![9 => prop::sample::select(words.to_vec()).prop_map(str::to_owned), 1 => any::<String>()]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

    #[test]
    fn no_text_makes_the_loader_panic(pieces in prop::collection::vec(piece(), 0..30)) {
        let text = pieces.concat();
        if let Err(report) = loader().load_str("a.yaml", &text) {
            prop_assert!(!report.faults.is_empty());
            prop_assert!(report.to_string().ends_with("in a.yaml"));
        }
    }

    #[test]
    fn no_value_makes_a_unit_panic(text in "\\PC*|[0-9]{0,22}(ms|s|m|h|d|[KMG]i?B|B|/s|/min|%|\\.[0-9]+%)?") {
        let _ = (parse_duration(&text), text.parse::<ByteSize>(), text.parse::<Rate>(), text.parse::<Percent>());
    }

    #[test]
    fn one_damaged_character_never_panics(at in 0usize..2000, with in any::<char>()) {
        let mut text: Vec<char> = FILTERED.chars().collect();
        let at = at % text.len();
        text[at] = with;
        let _ = loader().load_str("a.yaml", &text.into_iter().collect::<String>()).map_err(|report| report.to_string());
    }
}

/// The looks of a configuration that a program has written: as JSON, in one line. Far within a minute, when each value is looked at once;
/// it would be hours if each one's column were counted from the beginning of the line.
#[test]
fn a_configuration_in_one_line_is_read_in_time_that_grows_with_its_length() {
    let settings: Vec<String> = (0..30).map(|index| format!("\"key{index}\": \"värde number {index}\"")).collect();
    let filter = format!("{{\"wasm\": \"builtin:waf\", \"config\": {{{}}}}}", settings.join(", "));
    let filters: Vec<String> = (0..2000).map(|index| format!("\"filter{index}\": {filter}")).collect();
    let text = format!(
        "{{\"version\": 1, \"listeners\": {{\"web\": {{\"bind\": \"127.0.0.1:8080\"}}}}, \"upstreams\": {{\"demo\": {{\"builtin\": \
         \"demo\"}}}}, \"filters\": {{{}}}, \"sites\": [{{\"hosts\": [\"*\"], \"routes\": [{{\"to\": \"demo\"}}]}}]}}",
        filters.join(", ")
    );
    let began = Instant::now();
    let config = load(&text);
    assert_eq!(config.filters.len(), 2000);
    assert!(began.elapsed() < Duration::from_secs(60), "{:?} for {} bytes", began.elapsed(), text.len());

    // Columns and widths are still right at the end of it, where characters and bytes are not the same.
    let report = loader().load_str("selvedge.yaml", &text.replace("\"to\": \"demo\"", "\"to\": \"dömo\"")).unwrap_err();
    let place = text.split_once("\"to\": ").unwrap().0.chars().count() + "\"to\": ".len() + 1;
    assert_eq!(report.faults[0].column, place);
    assert_eq!(report.to_string().matches('^').count(), "\"dömo\"".chars().count(), "{}", report.faults[0]);
}

#[test]
fn the_admin_token_comes_from_its_file_and_is_shown_nowhere() {
    let (dir, loaded) = load_files(&[
        (
            "a.yaml",
            "version: 1\nadmin: { bind: 0.0.0.0:9901, token_file: token }\nlisteners: { web: { bind: 127.0.0.1:1 } }\nsites:\n- hosts: ['*']\n  routes: [{ respond: { status: 204 } }]\n",
        ),
        ("token", "a-secret-of-the-operator\n"),
    ]);
    let loaded = loaded.unwrap_or_else(|report| panic!("{report}"));
    let admin = loaded.config.admin.as_ref().unwrap();
    assert_eq!(admin.token.as_deref(), Some("a-secret-of-the-operator"));
    assert_eq!(admin.bind, Bind::Tcp("0.0.0.0:9901".parse().unwrap()));
    assert!(loaded.files.contains(&dir.path().join("token")), "a new token is noticed");
    assert!(!format!("{:?}", loaded.config).contains("a-secret"));
}

#[test]
fn tests_are_read_with_the_places_of_what_they_expect() {
    let config = load(&format!(
        "{SMALL}tests:
- name: one
  request: {{ url: \"http://a/b?c\" }}
  expect:
    status: 404
    headers:
      X-A: {{ prefix: b }}
- name: two
  request: {{ url: /, method: PUT, headers: {{ X: y }}, body: z, client: 192.0.2.1, listener: web }}
  origins: {{ demo: {{ down: true, status: 503, headers: {{ X: y }}, body: z }} }}
  expect: {{ route: none, site: \"*\", location: /l, cache_key: none, upstream: demo, path: /p }}
"
    ));
    let [one, two] = &config.tests[..] else { panic!("{:?}", config.tests) };
    assert_eq!(
        (one.name.as_str(), one.request.url.as_str(), one.request.method.as_str()),
        ("one", "http://a/b?c", "GET")
    );
    assert_eq!((one.request.client, &one.origins, one.expect.status), (None, &BTreeMap::new(), Some(404)));
    assert_eq!(one.expect.headers, [("x-a".to_owned(), ValueMatch::Prefix("b".into()))]);
    let line = |key: &str| one.expect.position_of(key).map(|position| position.line);
    assert_eq!((line("status"), line("headers.x-a"), line("route")), (Some(14), Some(16), None));
    assert_eq!((two.request.body.as_str(), two.request.headers.len()), ("z", 1));
    let demo = &two.origins["demo"];
    assert_eq!((demo.down, demo.status, demo.body.as_str()), (true, 503, "z"));
    assert_eq!((two.expect.route.as_deref(), two.expect.path.as_deref()), (Some("none"), Some("/p")));
}

#[test]
fn a_route_compresses_as_its_site_does_unless_it_says_otherwise() {
    let yaml = "
version: 1
listeners: { web: { bind: 127.0.0.1:1 } }
sites:
- hosts: [a.test]
  compress: [br, gzip]
  routes:
  - { match: { path: /site }, respond: { status: 200 } }
  - { match: { path: /off }, compress: false, respond: { status: 200 } }
  - match: { path: /own }
    compress: { encodings: [zstd], types: [Text/*, \"*+JSON\", image/bmp], min_size: 2KiB, levels: { zstd: 9 } }
    respond: { status: 200 }
- hosts: [b.test]
  routes: [{ respond: { status: 200 } }]";
    let loaded = Loader::new().load_str("a.yaml", yaml).unwrap_or_else(|report| panic!("{report}"));
    let [site, other] = &loaded.config.sites[..] else { panic!("two sites") };
    let [as_site, off, own] = &site.routes[..] else { panic!("three routes") };
    let usual = as_site.compress.as_ref().unwrap();
    assert_eq!(usual.encodings, [Encoding::Br, Encoding::Gzip]);
    assert_eq!((usual.min_size, usual.levels), (ByteSize::kib(1), CompressLevels { zstd: 3, br: 4, gzip: 6 }));
    for (media_type, is_usual) in [
        ("text/html", true),
        ("text/event-stream", false),
        ("image/svg+xml", true),
        ("application/geo+json", true),
        ("application/javascript", true),
        ("image/png", false),
        ("application/octet-stream", false),
    ] {
        assert_eq!(usual.types.iter().any(|known| known.matches(media_type)), is_usual, "{media_type}");
    }
    assert_eq!((&off.compress, &other.routes[0].compress), (&None, &None));
    let own = own.compress.as_ref().unwrap();
    assert_eq!((own.min_size, own.levels), (ByteSize::kib(2), CompressLevels { zstd: 9, br: 4, gzip: 6 }));
    let types = ["text/", "+json", "image/bmp"].map(str::to_owned);
    let [a, b, c] = types;
    assert_eq!(own.types, [MediaType::Prefix(a), MediaType::Suffix(b), MediaType::Exact(c)]);
}

#[test]
fn a_small_store_is_shown_with_the_objects_it_takes() {
    for (memory, shown) in [
        ("{ size: 8MiB }", "8MiB"),
        ("{ size: 8MiB, max_object: 1MiB }", "1MiB"),
        ("{ size: 1GiB }", "16MiB"),
        ("{}", "16MiB"),
    ] {
        let loaded = loader().load_str("a.yaml", &format!("{SMALL}cache: {{ memory: {memory} }}\n"));
        let effective = loaded.unwrap_or_else(|report| panic!("{report}")).effective().to_json();
        assert_eq!(effective["cache"]["memory"]["max_object"], shown, "{memory}");
    }
}
