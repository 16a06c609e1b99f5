//! Every kind of fault: where it is, what it says, what it advises.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, its helpers too")]

use std::{collections::BTreeMap, path::Path};

use selvedge_config::{Fault, Loader, Report};

fn loader() -> Loader {
    let env = BTreeMap::from([("PORT", "8080"), ("SECRET", "hunter2"), ("EMPTY", "")]);
    Loader::new()
        .builtin_filters(&["jwt-auth", "rate-limit"])
        .env(move |name| env.get(name).map(|value| (*value).to_owned()))
}

fn faults_of(text: &str) -> Vec<Fault> {
    loader().load_str("selvedge.yaml", text).err().map_or_else(Vec::new, |report: Report| report.faults)
}

/// `line:column key: message | help`.
fn line(fault: &Fault) -> String {
    let help = fault.help.as_deref().map(|help| format!(" | {help}")).unwrap_or_default();
    format!("{}:{} {}: {}{help}", fault.line, fault.column, fault.key, fault.message)
}

/// A configuration without faults, with a place for each section to be replaced.
struct Parts {
    top: &'static str,
    listeners: &'static str,
    upstreams: &'static str,
    filters: &'static str,
    site: &'static str,
    route: &'static str,
}

const SOUND: Parts = Parts {
    top: "cache: {}",
    listeners: "web: { bind: 127.0.0.1:8080 }",
    upstreams: "demo: { builtin: demo }",
    filters: "auth: { wasm: builtin:jwt-auth }",
    site: "hosts: [a.test]",
    route: "to: demo",
};

impl Parts {
    /// The line each part is on: 2, 4, 6, 8, 10 and 12.
    fn text(&self) -> String {
        let Self { top, listeners, upstreams, filters, site, route } = self;
        format!(
            "version: 1\n{top}\nlisteners:\n  {listeners}\nupstreams:\n  {upstreams}\nfilters:\n  {filters}\nsites:\n- {site}\n  routes:\n  - {route}\n"
        )
    }
}

fn check(cases: &[(&'static str, &str)], with: impl Fn(&'static str) -> Parts) {
    for (part, expected) in cases {
        let text = with(part).text();
        let found: Vec<String> = faults_of(&text).iter().map(line).collect();
        assert_eq!(found, [*expected], "for `{part}`");
    }
}

#[test]
fn the_sound_parts_have_no_fault() {
    assert_eq!(faults_of(&SOUND.text()).iter().map(line).collect::<Vec<_>>(), Vec::<String>::new());
}

#[test]
fn top_level() {
    let cases = [
        ("cach: {}\ncache: {}", "2:1 cach: unknown key `cach` | did you mean `cache`?"),
        (
            "zebra: 1\ncache: {}",
            "2:1 zebra: unknown key `zebra` | known keys: `version`, `node`, `include`, `admin`, `telemetry`, `geo`, `cache`, `cluster`, `listeners`, `upstreams`, `filters`, `sites`, `tests`",
        ),
        ("cache: [1]", "2:8 cache: expected a mapping, found a list"),
        ("cache:", "2:1 cache: expected a mapping, found nothing"),
        ("cache: true", "2:8 cache: expected a mapping, found a truth value"),
        ("cache: {}\ncache: {}", "3:1 cache: `cache` is written twice"),
        (
            "cache: { memory: { size: 64 } }",
            "2:26 cache.memory.size: `64` has no unit | a size is a whole number and one of B, KiB, MiB, GiB, KB, MB, GB: `64KiB`, `16MiB`",
        ),
        (
            "cache: { memory: { size: 64Mib } }",
            "2:26 cache.memory.size: `64Mib` has an unknown unit | a size is a whole number and one of B, KiB, MiB, GiB, KB, MB, GB: `64KiB`, `16MiB`",
        ),
        ("cache: { memory: { size: 0B } }", "2:26 cache.memory.size: this size must be above zero"),
        (
            "cache: { memory: { size: 99999999999GiB } }",
            "2:26 cache.memory.size: `99999999999GiB` is too large | a size is a whole number and one of B, KiB, MiB, GiB, KB, MB, GB: `64KiB`, `16MiB`",
        ),
        (
            "cache: { memory: { size: 1MiB, max_object: 2MiB } }",
            "2:44 cache.memory.max_object: `max_object` is larger than `size`, which is 1MiB | no response of that size could be kept: lower one or raise the other",
        ),
        (
            "cache: { purge: { allow: [10.0.0.1/8] } }",
            "2:27 cache.purge.allow[0]: `10.0.0.1/8` has bits beyond its length | did you mean `10.0.0.0/8`?",
        ),
        (
            "cache: { purge: { allow: everybody } }",
            "2:26 cache.purge.allow: expected a list, found `everybody` | write `[everybody]`",
        ),
        ("cache: { purge: { log: \"\" } }", "2:24 cache.purge.log: `` is not a path | expected a path"),
        ("cache: { purge: { from: [] } }", "2:19 cache.purge.from: unknown key `from` | known keys: `allow`, `log`"),
        ("cache: { disk: {} }", "2:10 cache.disk.folders: `folders` is missing"),
        ("cache: { disk: { folders: [] } }", "2:27 cache.disk.folders: the list is empty"),
        ("cache: { disk: { folders: [{ path: a }] } }", "2:28 cache.disk.folders[0].size: `size` is missing"),
        ("cache: { disk: { folders: [{ size: 1GiB }] } }", "2:28 cache.disk.folders[0].path: `path` is missing"),
        (
            "cache: { disk: { folders: [{ path: a, size: 63MiB }] } }",
            "2:45 cache.disk.folders[0].size: `size` is 63MiB; it may be from 64MiB to 65536GiB",
        ),
        (
            "cache: { disk: { folders: [{ path: a, size: 1GiB }, { path: a, size: 2GiB }] } }",
            "2:53 cache.disk.folders[1]: `a` is listed twice",
        ),
        (
            "cache: { disk: { folders: [{ path: a, size: 1GiB }], max_object: 257MiB } }",
            "2:66 cache.disk.max_object: `max_object` is larger than a quarter of the smallest folder, which is 256MiB | one response would turn everything else out: lower it, or raise `size`",
        ),
        (
            "cache: { disk: { folders: [{ path: a, size: 1GiB }], admit: al } }",
            "2:61 cache.disk.admit: `al` is not one of `second_hit`, `all` | did you mean `all`?",
        ),
        (
            "cache: { disk: { folders: [{ path: a, size: 1GiB }], write_budget: 1MiB } }",
            "2:68 cache.disk.write_budget: `1MiB` has no unit | bytes in a second are a size and `/s`: `240B/s`, `64KiB/s`",
        ),
        (
            "cache: { disk: { folders: [{ path: a, size: 1GiB }], sise: 1 } }",
            "2:54 cache.disk.sise: unknown key `sise` | known keys: `folders`, `max_object`, `admit`, `write_budget`",
        ),
        ("cache: { collapse: { wait: 0s } }", "2:28 cache.collapse.wait: this duration must be above zero"),
        ("cache: { collapse: { waiters: 0 } }", "2:31 cache.collapse.waiters: `0` is not a number from 1 to 65535"),
        (
            "cache: { collapse: { when_full: refuze } }",
            "2:33 cache.collapse.when_full: `refuze` is not one of `forward`, `refuse` | did you mean `refuse`?",
        ),
        (
            "cache: { collapse: { when_late: 1 } }",
            "2:33 cache.collapse.when_late: expected one of `forward`, `refuse`, found a number | write it in quotes: `\"1\"`",
        ),
        ("node: { workers: 0 }\ncache: {}", "2:18 node.workers: `0` is not a number from 1 to 1024"),
        ("node: { workers: 1025 }\ncache: {}", "2:18 node.workers: `1025` is not a number from 1 to 1024"),
        ("node: { workers: many }\ncache: {}", "2:18 node.workers: `many` is not `auto`"),
        (
            "node: { workers: \"4\" }\ncache: {}",
            "2:18 node.workers: expected a number from 1 to 1024, found `4` | write it without quotes",
        ),
        (
            "node: { name: a/b }\ncache: {}",
            "2:15 node.name: `a/b` is not a name | a name has 1 to 64 letters, digits, `-`, `_`, `.`",
        ),
        (
            "node: { name: 7 }\ncache: {}",
            "2:15 node.name: expected a name, found a number | write it in quotes: `\"7\"`",
        ),
        (
            "node: { shutdown_grace: 1 h }\ncache: {}",
            "2:25 node.shutdown_grace: `1 h` has an unknown unit | a duration is a whole number and one of ms, s, m, h, d: `250ms`, `30s`, `1h`; at most ten years",
        ),
        (
            "node: { shutdown_grace: soon }\ncache: {}",
            "2:25 node.shutdown_grace: `soon` is not a duration | a duration is a whole number and one of ms, s, m, h, d: `250ms`, `30s`, `1h`; at most ten years",
        ),
        (
            "node: { shutdown_grace: 11000d }\ncache: {}",
            "2:25 node.shutdown_grace: `11000d` is too large | a duration is a whole number and one of ms, s, m, h, d: `250ms`, `30s`, `1h`; at most ten years",
        ),
        (
            "node: { module_cache: \"\" }\ncache: {}",
            "2:23 node.module_cache: `` is not a path | expected `auto`, `off` or a path",
        ),
        (
            "telemetry: { access_log: { format: jsn } }\ncache: {}",
            "2:36 telemetry.access_log.format: `jsn` is not one of `json`, `text` | did you mean `json`?",
        ),
        (
            "node: { paths: { encoded_slashes: merge } }\ncache: {}",
            "2:35 node.paths.encoded_slashes: `merge` is not one of `keep`, `decode`, `reject`",
        ),
        (
            "node: { paths: { normalize: false, merge_slashes: true } }\ncache: {}",
            "2:51 node.paths.merge_slashes: slashes are only merged in paths that are normalised | take `normalize: false` away",
        ),
        (
            "node: { trusted_proxies: [10.0.0.0/8, all] }\ncache: {}",
            "2:39 node.trusted_proxies[1]: `all` is not a range of addresses | write `10.0.0.0/8` or `2001:db8::/32`",
        ),
        ("admin: {}\ncache: {}", "2:1 admin.bind: `bind` is missing"),
        (
            "admin: { bind: \":9901\" }\ncache: {}",
            "2:16 admin.bind: `:9901` is not an address and a port | for this machine only, write `127.0.0.1:9901`",
        ),
        (
            "admin: { bind: \"unix:\" }\ncache: {}",
            "2:16 admin.bind: `unix:` names no path | expected an address and a port, or `unix:/path`",
        ),
        (
            "admin: { bind: 0.0.0.0:9901 }\ncache: {}",
            "2:16 admin.bind: the address can be reached from elsewhere, and no `token` is asked for | write `token_file`, or bind to 127.0.0.1 or a Unix socket",
        ),
        (
            "admin: { bind: 127.0.0.1:1, token: short }\ncache: {}",
            "2:36 admin.token: the token is shorter than 16 characters",
        ),
        (
            "admin: { bind: 127.0.0.1:1, token: \"0123456789 abcdef\" }\ncache: {}",
            "2:36 admin.token: the token has characters other than ASCII letters, digits and signs",
        ),
        (
            "admin: { bind: 127.0.0.1:1, token: 0123456789abcdef, token_file: t }\ncache: {}",
            "2:66 admin.token_file: `token` and `token_file` are both written",
        ),
        (
            "admin: { bind: 127.0.0.1:1, token_file: /nowhere/token }\ncache: {}",
            "2:41 admin.token_file: cannot read this file: there is no such file",
        ),
        ("telemetry: { metrics: {} }\ncache: {}", "2:14 telemetry.metrics.bind: `bind` is missing"),
        (
            "telemetry: { metrics: { bind: \":9901\" } }\ncache: {}",
            "2:31 telemetry.metrics.bind: `:9901` is not an address and a port | for this machine only, write `127.0.0.1:9901`",
        ),
        (
            "telemetry: { trace: { header: x trace, value: 0123456789abcdef } }\ncache: {}",
            "2:31 telemetry.trace.header: `x trace` is not the name of a header | expected the name of a header",
        ),
        (
            "telemetry: { trace: { header: Host, value: 0123456789abcdef } }\ncache: {}",
            "2:31 telemetry.trace.header: `Host` has a meaning of its own: it is taken away | choose another, such as `x-selvedge-trace`",
        ),
        (
            "telemetry: { trace: { header: x-trace, value: short-secret } }\ncache: {}",
            "2:47 telemetry.trace.value: the secret is shorter than 16 characters",
        ),
        (
            "telemetry: { trace: { header: x-trace, value: \"0123456789 abcdef\" } }\ncache: {}",
            "2:47 telemetry.trace.value: the secret has characters other than ASCII letters, digits and signs",
        ),
        ("geo: {}\ncache: {}", "2:1 geo.database: `database` is missing"),
        (
            "geo: { database: builtin:world }\ncache: {}",
            "2:18 geo.database: `builtin:world` does not come with the node | did you mean `builtin:test`?",
        ),
        ("geo: { database: a.mmdb, reload: on }\ncache: {}", "2:34 geo.reload: `on` is not one of `watch`, `off`"),
        ("include: conf.yaml\ncache: {}", "2:10 include: expected a list, found `conf.yaml` | write `[conf.yaml]`"),
        (
            "include: [a/*/b.yaml]\ncache: {}",
            "2:11 include[0]: `a/*/b.yaml` has a wildcard before its last part | write each directory: `conf.d/*.yaml`",
        ),
        ("include: [/nowhere/at/all.yaml]\ncache: {}", "2:11 include: cannot include: there is no such file"),
        ("? [a]\n: b\ncache: {}", "2:3 : a key must be a word"),
        ("cache: !x {}", "2:8 : tags are not part of this grammar | remove the `!..`"),
    ];
    check(&cases, |top| Parts { top, ..SOUND });
}

#[test]
fn listeners() {
    let cases = [
        ("web: {}", "4:3 listeners.web.bind: `bind` is missing"),
        (
            "web: { bind: \":80\" }",
            "4:16 listeners.web.bind: `:80` is not an address and a port | for all addresses, write `0.0.0.0:80`",
        ),
        (
            "web: { bind: localhost:80 }",
            "4:16 listeners.web.bind: `localhost:80` is not an address and a port | expected an address and a port, or `unix:/path`",
        ),
        (
            "web: { bind: \"unix:\" }",
            "4:16 listeners.web.bind: `unix:` names no path | expected an address and a port, or `unix:/path`",
        ),
        (
            "web: { bind: \"unix:/a\" }\n  two: { bind: \"unix:/a\" }",
            "5:3 listeners.two.bind: another listener has the same `bind`",
        ),
        ("web: { bind: 127.0.0.1:8080, protocols: [] }", "4:43 listeners.web.protocols: the list is empty"),
        (
            "web: { bind: 127.0.0.1:8080, protocols: [h3] }",
            "4:44 listeners.web.protocols[0]: `h3` is not one of `h1`, `h2`",
        ),
        (
            "web: { bind: 127.0.0.1:8080, protocols: [h1, h1] }",
            "4:48 listeners.web.protocols[1]: this protocol is written twice",
        ),
        (
            "web: { bind: 127.0.0.1:8080 }\n  db: { bind: 127.0.0.1:1, tcp: {} }",
            "5:28 listeners.db.tcp.upstream: `upstream` is missing",
        ),
        (
            "web: { bind: 127.0.0.1:8080 }\n  db: { bind: 127.0.0.1:1, tcp: { upstream: deom } }",
            "5:45 listeners.db.tcp.upstream: there is no upstream `deom` | did you mean `demo`?",
        ),
        (
            "web: { bind: 127.0.0.1:8080 }\n  db: { bind: 127.0.0.1:1, tcp: { upstream: demo, filters: [aut] } }",
            "5:61 listeners.db.tcp.filters[0]: there is no filter `aut` | did you mean `auth`?",
        ),
        (
            "web: { bind: 127.0.0.1:8080 }\n  db: { bind: 127.0.0.1:1, protocols: [h1], tcp: { upstream: demo } }",
            "5:28 listeners.db.protocols: this has no meaning with `tcp` | it is about HTTP: remove one of them",
        ),
        (
            "web: { bind: 127.0.0.1:8080 }\n  db: { bind: 127.0.0.1:1, limits: { body: 1MiB }, tcp: { upstream: demo } }",
            "5:38 listeners.db.limits.body: this has no meaning with `tcp` | it is about HTTP: remove one of them",
        ),
        ("web: { bind: 127.0.0.1:8080, tls: {} }", "4:32 listeners.web.tls.certificates: `certificates` is missing"),
        (
            "web: { bind: 127.0.0.1:8080, tls: { certificates: devel } }",
            "4:53 listeners.web.tls.certificates: `devel` is not `development`",
        ),
        (
            "web: { bind: 127.0.0.1:8080, tls: { certificates: [] } }",
            "4:53 listeners.web.tls.certificates: the list is empty",
        ),
        (
            "web: { bind: 127.0.0.1:8080, tls: { certificates: [{ cert: a.pem }] } }",
            "4:54 listeners.web.tls.certificates[0].key: `key` is missing",
        ),
        (
            "web: { bind: 127.0.0.1:8080, tls: { certificates: development, clients: { ca: a.pem } } }",
            "4:66 listeners.web.tls.clients.mode: `mode` is missing",
        ),
        (
            "web: { bind: 127.0.0.1:8080, tls: { certificates: development, clients: { mode: on, ca: a.pem } } }",
            "4:83 listeners.web.tls.clients.mode: `on` is not one of `request`, `require`",
        ),
        (
            "web: { bind: 127.0.0.1:8080, tls: { certificates: development, clients: { mode: require } } }",
            "4:66 listeners.web.tls.clients.ca: `ca` is missing",
        ),
        (
            "web: { bind: 127.0.0.1:8080, tls: { certificates: development, clients: { mode: require, ca: a, crl: [] } } }",
            "4:104 listeners.web.tls.clients.crl: expected a path, found a list",
        ),
        (
            "web: { bind: 127.0.0.1:8080, tls: { certificates: development, clients: { mode: require, ca: a, pins: [] } } }",
            "4:105 listeners.web.tls.clients.pins: the list is empty",
        ),
        (
            "web: { bind: 127.0.0.1:8080, tls: { certificates: development, clients: { mode: require, ca: a, pins: [c2hvcnQ=] } } }",
            "4:106 listeners.web.tls.clients.pins[0]: `c2hvcnQ=` is not SHA-256 in base64 | expected 44 letters, SHA-256 in base64",
        ),
        (
            "web: { bind: 127.0.0.1:8080, tls: { certificates: development, clients: { mode: require, ca: a, pins: [AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=, AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=] } } }",
            "4:152 listeners.web.tls.clients.pins[1]: this pin is written twice",
        ),
        (
            "web: { bind: 127.0.0.1:8080, tls: { certificates: development, clients: { mode: require, ca: a, forward: yes } } }",
            "4:108 listeners.web.tls.clients.forward: expected `true` or `false`, found `yes`",
        ),
        (
            "web: { bind: 127.0.0.1:8080 }\n  db: { bind: 127.0.0.1:1, tcp: { upstream: demo }, tls: { certificates: development, clients: { mode: require, ca: a, forward: true } } }",
            "5:120 listeners.db.tls.clients.forward: this has no meaning with `tcp` | it is about HTTP: remove one of them",
        ),
        (
            "web: { bind: 127.0.0.1:8080, tls: { certificates: development, unknown_names: refused } }",
            "4:81 listeners.web.tls.unknown_names: `refused` is not one of `first`, `refuse` | did you mean `refuse`?",
        ),
        (
            "web: { bind: 127.0.0.1:8080, tls: { certificates: development, min: 1.2 } }",
            "4:71 listeners.web.tls.min: expected one of `1.2`, `1.3`, found a number | write it in quotes: `\"1.2\"`",
        ),
        (
            "web: { bind: 127.0.0.1:8080, tls: { certificates: development, min: \"1.1\" } }",
            "4:71 listeners.web.tls.min: `1.1` is not one of `1.2`, `1.3` | did you mean `1.2`?",
        ),
        (
            "web: { bind: 127.0.0.1:8080, limits: { header_bytes: 32KiB } }",
            "4:42 listeners.web.limits.header_bytes: unknown key `header_bytes` | did you mean `header_size`?",
        ),
        (
            "web: { bind: 127.0.0.1:8080, limits: { header_size: 2MiB } }",
            "4:55 listeners.web.limits.header_size: this size must be at most 1MiB",
        ),
        (
            "web: { bind: 127.0.0.1:8080, limits: { header_count: 257 } }",
            "4:56 listeners.web.limits.header_count: `257` is not a number from 1 to 256",
        ),
        (
            "web: { bind: 127.0.0.1:8080, limits: { uri_length: 64KiB } }",
            "4:54 listeners.web.limits.uri_length: this size must be at most 65534B",
        ),
        (
            "web: { bind: 127.0.0.1:8080, limits: { requests_per_connection: 0 } }",
            "4:67 listeners.web.limits.requests_per_connection: `0` is not a number from 1 to 65535",
        ),
        (
            "web: { bind: 127.0.0.1:8080, limits: { upload_rate: 1KiB } }",
            "4:55 listeners.web.limits.upload_rate: `1KiB` has no unit | bytes in a second are a size and `/s`: `240B/s`, `64KiB/s`",
        ),
        (
            "web: { bind: 127.0.0.1:8080, limits: { upload_rate: 1KiB/min } }",
            "4:55 listeners.web.limits.upload_rate: `1KiB/min` has an unknown unit | bytes in a second are a size and `/s`: `240B/s`, `64KiB/s`",
        ),
        (
            "web: { bind: 127.0.0.1:8080, limits: { request_time: 0s } }",
            "4:56 listeners.web.limits.request_time: this duration must be above zero",
        ),
        (
            "web: { bind: 127.0.0.1:8080 }\n  old: { bind: 127.0.0.1:80, redirect_to_https: { status: 303 } }",
            "5:59 listeners.old.redirect_to_https.status: 303 does not send anybody on | one of 301, 302, 307, 308",
        ),
        (
            "web: { bind: 127.0.0.1:8080 }\n  old: { bind: 127.0.0.1:80, redirect_to_https: { port: 0 } }",
            "5:57 listeners.old.redirect_to_https.port: `0` is not a number from 1 to 65535",
        ),
        (
            "web: { bind: 127.0.0.1:8080 }\n  old: { bind: 127.0.0.1:80, redirect_to_https: { acme_challenge: 1 } }",
            "5:67 listeners.old.redirect_to_https.acme_challenge: expected `true` or `false`, found a number",
        ),
        (
            "web: { bind: 127.0.0.1:8080 }\n  old: { bind: 127.0.0.1:80, redirect_to_https: yes }",
            "5:49 listeners.old.redirect_to_https: expected `true` or `false`, found `yes`",
        ),
        (
            "web: { bind: 127.0.0.1:8080 }\n  old: { bind: 127.0.0.1:80, redirect_to_https: true, tls: { certificates: development } }",
            "5:55 listeners.old.tls: this has no meaning with `redirect_to_https` | clients that speak TLS are there already: remove one of them",
        ),
        (
            "web: { bind: 127.0.0.1:8080 }\n  old: { bind: 127.0.0.1:80, redirect_to_https: {}, tcp: { upstream: demo } }",
            "5:30 listeners.old.redirect_to_https: this has no meaning with `tcp` | it is about HTTP: remove one of them",
        ),
        (
            "old: { bind: 127.0.0.1:80, redirect_to_https: true }",
            "10:3 sites[0]: nobody can ask for this site: every listener has `tcp` or `redirect_to_https` | declare a listener without them, or remove the site",
        ),
        (
            "web: { bind: 127.0.0.1:8080, proxy_protocol: require }",
            "4:48 listeners.web.proxy_protocol: nobody may send a PROXY protocol header: there are no `node.trusted_proxies` | name the proxies there, as addresses or ranges",
        ),
        (
            "web: { bind: 127.0.0.1:8080, limits: { h2_streams: 0 } }",
            "4:54 listeners.web.limits.h2_streams: `0` is not a number from 1 to 65535",
        ),
        (
            "web: { bind: 127.0.0.1:8080 }\n  db: { bind: 127.0.0.1:1, limits: { h2_resets: 9, connections: 1 }, tcp: { upstream: demo } }",
            "5:38 listeners.db.limits.h2_resets: this has no meaning with `tcp` | it is about HTTP: remove one of them",
        ),
        (
            "web: { bind: 127.0.0.1:8080, limits: { connections_per_client: 0 } }",
            "4:66 listeners.web.limits.connections_per_client: `0` is not a number from 1 to 65535",
        ),
        (
            "web: { bind: 127.0.0.1:8080, limits: { body: 0B } }",
            "4:48 listeners.web.limits.body: this size must be above zero",
        ),
        (
            "web: { bind: 127.0.0.1:8080 }\n  two: { bind: 127.0.0.1:8080 }",
            "5:3 listeners.two.bind: another listener has the same `bind`",
        ),
        ("web: { bind: 127.0.0.1:8080 }\n  web: { bind: 127.0.0.1:8081 }", "5:3 web: `web` is written twice"),
        (
            "we b: { bind: 127.0.0.1:8080 }",
            "4:3 listeners.we b: `we b` is not a name | a name has 1 to 64 letters, digits, `-`, `_`, `.`",
        ),
    ];
    check(&cases, |listeners| Parts { listeners, ..SOUND });
}

#[test]
fn upstreams() {
    let cases = [
        ("demo: {}", "6:3 upstreams.demo: `endpoints` is missing | or write `builtin: demo`"),
        ("demo: { builtin: nginx }", "6:20 upstreams.demo.builtin: `nginx` is not `demo`"),
        (
            "demo: { builtin: demo, endpoints: [a:1] }",
            "6:26 upstreams.demo.endpoints: `endpoints` and `builtin` are both written | a built-in server is inside this process: remove one of them",
        ),
        (
            "demo: { builtin: demo, protocol: h2 }",
            "6:26 upstreams.demo.protocol: `protocol` and `builtin` are both written | a built-in server is inside this process: remove one of them",
        ),
        ("demo: { endpoints: [] }", "6:22 upstreams.demo.endpoints: the list is empty"),
        ("demo: { endpoints: a:1 }", "6:22 upstreams.demo.endpoints: expected a list, found `a:1` | write `[a:1]`"),
        (
            "demo: { endpoints: [localhost] }",
            "6:23 upstreams.demo.endpoints[0]: `localhost` has no port | write `localhost:80`, or the port it listens on",
        ),
        (
            "demo: { endpoints: [\"http://a:1\"] }",
            "6:23 upstreams.demo.endpoints[0]: `http://a:1` is not an endpoint | write `host:port` without a scheme; `tls` says how",
        ),
        (
            "demo: { endpoints: [a:0] }",
            "6:23 upstreams.demo.endpoints[0]: `a:0` is not an endpoint | write `IP:port` or `host:port`; IPv6 as `\"[::1]:9000\"`",
        ),
        (
            "demo: { endpoints: [127.0.0.1:0] }",
            "6:23 upstreams.demo.endpoints[0]: `127.0.0.1:0` has port 0 | expected `IP:port` or `host:port`",
        ),
        (
            "demo: { endpoints: [10.0.0.300:80] }",
            "6:23 upstreams.demo.endpoints[0]: `10.0.0.300:80` is not a host name | the last label of a host name is not a number, and this is no IP address",
        ),
        (
            "demo: { endpoints: [a:1, a:1] }",
            "6:28 upstreams.demo.endpoints[1]: this endpoint is written twice | to give it more requests, write `{ addr: .., weight: 2 }`",
        ),
        (
            "demo: { endpoints: [{ addr: a:1, weight: 0 }] }",
            "6:44 upstreams.demo.endpoints[0].weight: `0` is not a number from 1 to 1000",
        ),
        ("demo: { endpoints: [{ weight: 2 }] }", "6:23 upstreams.demo.endpoints[0].addr: `addr` is missing"),
        (
            "demo: { endpoints: [a:1], tls: { sni: a_-.b } }",
            "6:41 upstreams.demo.tls.sni: `a_-.b` is not a host name | a host name is made of labels of letters, digits and `-`, with dots between them",
        ),
        (
            "demo: { endpoints: [a:1], tls: { ca: a.pem, verify: false } }",
            "6:36 upstreams.demo.tls.ca: `ca` does nothing with `verify: false` | remove one of them",
        ),
        (
            "demo: { endpoints: [a:1], tls: { verify: no } }",
            "6:44 upstreams.demo.tls.verify: expected `true` or `false`, found `no`",
        ),
        (
            "demo: { endpoints: [a:1], timeouts: { connect: 0ms } }",
            "6:50 upstreams.demo.timeouts.connect: this duration must be above zero",
        ),
        (
            "demo: { endpoints: [a:1], balance: random }",
            "6:38 upstreams.demo.balance: `random` is not one of `round_robin`, `least_request`, `ewma`",
        ),
        (
            "demo: { endpoints: [a:1], balance: { consistent_hash: { by: host } } }",
            "6:63 upstreams.demo.balance.consistent_hash.by: `host` is no part of a request | expected one of `client_ip`, `path`, `header:NAME`, `cookie:NAME`, `query:NAME`",
        ),
        (
            "demo: { endpoints: [a:1], balance: { consistent_hash: { by: path }, slow_start: 1s } }",
            "6:71 upstreams.demo.balance.slow_start: unknown key `slow_start` | known keys: `consistent_hash`",
        ),
        (
            "demo: { endpoints: [a:1], balance: { consistent_hash: { by: path } }, slow_start: 1s }",
            "6:3 upstreams.demo: `slow_start` does nothing with `consistent_hash` | remove one of them",
        ),
        (
            "demo: { endpoints: [a:1], sticky: { cookie: a b } }",
            "6:47 upstreams.demo.sticky.cookie: `a b` is not the name of a cookie | expected the name of a cookie",
        ),
        ("demo: { endpoints: [a:1], sticky: {} }", "6:29 upstreams.demo.sticky.cookie: `cookie` is missing"),
        (
            "demo: { endpoints: [a:1], outlier: { eject: 1m, eject_max: 30s } }",
            "6:62 upstreams.demo.outlier.eject_max: `eject_max` is below `eject`",
        ),
        (
            "demo: { endpoints: [a:1], outlier: { ejected_max: 200% } }",
            "6:53 upstreams.demo.outlier.ejected_max: `200%` is too large | a share is a number from 0 to 100 and `%`: `10%`, `0.25%`",
        ),
        (
            "demo: { endpoints: [a:1], outlier: { failure_rate: {} } }",
            "6:40 upstreams.demo.outlier.failure_rate.above: `above` is missing",
        ),
        (
            "demo: { endpoints: [a:1], retries: { attempts: 11 } }",
            "6:50 upstreams.demo.retries.attempts: `11` is not a number from 1 to 10",
        ),
        (
            "demo: { endpoints: [a:1], retries: { when: [5xx] } }",
            "6:47 upstreams.demo.retries.when[0]: `5xx` is nothing that can be tried again | expected `connect`, `reset`, `timeout` or a status from 400 to 599",
        ),
        (
            "demo: { endpoints: [a:1], retries: { when: [200] } }",
            "6:47 upstreams.demo.retries.when[0]: `200` is nothing that can be tried again | expected `connect`, `reset`, `timeout` or a status from 400 to 599",
        ),
        ("demo: { endpoints: [a:1], retries: { when: [] } }", "6:46 upstreams.demo.retries.when: the list is empty"),
        (
            "demo: { endpoints: [a:1], retries: { methods: [get] } }",
            "6:50 upstreams.demo.retries.methods[0]: `get` is not a method | did you mean `GET`? methods are case-sensitive",
        ),
        (
            "demo: { endpoints: [a:1], retries: { backoff: 2s } }",
            "6:49 upstreams.demo.retries.backoff: `backoff` is longer than a second",
        ),
        (
            "demo: { endpoints: [a:1], limits: { queue: 5 } }",
            "6:29 upstreams.demo.limits: neither `requests` nor `per_endpoint` is written: there is no limit | write how many: `requests: 1000`",
        ),
        (
            "demo: { endpoints: [a:1], limits: { per_endpoint: 0 } }",
            "6:53 upstreams.demo.limits.per_endpoint: `0` is not a number from 1 to 65535",
        ),
        (
            "demo: { endpoints: [a:1], pool: {} }",
            "6:29 upstreams.demo.pool: none of `idle`, `max_requests` and `max_age` is written: there is no limit | write one of them: `max_age: 10m`",
        ),
        (
            "demo: { endpoints: [a:1], pool: { idle: 513 } }",
            "6:43 upstreams.demo.pool.idle: `513` is not a number from 0 to 512",
        ),
        (
            "demo: { endpoints: [a:1], pool: { max_requests: 0 } }",
            "6:51 upstreams.demo.pool.max_requests: `0` is not a number from 1 to 65535",
        ),
        (
            "demo: { endpoints: [a:1], pool: { max_age: 0s } }",
            "6:46 upstreams.demo.pool.max_age: this duration must be above zero",
        ),
        (
            "demo: { endpoints: [a:1], pool: { idle: 1, size: 9 } }",
            "6:46 upstreams.demo.pool.size: unknown key `size` | known keys: `idle`, `max_requests`, `max_age`",
        ),
        (
            "demo: { endpoints: [a:1], protocol: h2, pool: { idle: 1 } }",
            "6:3 upstreams.demo: `pool.idle` counts connections of HTTP/1.1, and `protocol` is `h2` | there is one connection for up to 100 requests at once: write `idle: 0` to keep none, or remove it",
        ),
        (
            "demo: { endpoints: [{ srv: example.com }] }",
            "6:30 upstreams.demo.endpoints[0].srv: `example.com` is not the name of a service | write `_service._tcp.example.com`",
        ),
        (
            "demo: { endpoints: [{ srv: _http._tcp.a, weight: 2 }] }",
            "6:44 upstreams.demo.endpoints[0].weight: `weight` and `srv` are both written | ports and weights are in the SRV records: remove one of them",
        ),
        (
            "demo: { endpoints: [{ srv: _http._tcp.a, addr: a:1 }] }",
            "6:44 upstreams.demo.endpoints[0].addr: `addr` and `srv` are both written | ports and weights are in the SRV records: remove one of them",
        ),
        ("demo: { endpoints: [a:1], hedge: {} }", "6:29 upstreams.demo.hedge.after: `after` is missing"),
        (
            "demo: { endpoints: [a:1], hedge: { after: 0s } }",
            "6:45 upstreams.demo.hedge.after: this duration must be above zero",
        ),
        (
            "demo: { endpoints: [a:1], hedge: { after: p100 } }",
            "6:45 upstreams.demo.hedge.after: this is no share of answers | write `p50` to `p99.9`, or a duration",
        ),
        (
            "demo: { endpoints: [a:1], hedge: { after: p49.9 } }",
            "6:45 upstreams.demo.hedge.after: this is no share of answers | write `p50` to `p99.9`, or a duration",
        ),
        (
            "demo: { endpoints: [a:1], hedge: { after: 1s, floor: 1ms } }",
            "6:49 upstreams.demo.hedge.floor: `floor` does nothing with a duration in `after` | remove it, or write `after: p95`",
        ),
        (
            "demo: { endpoints: [a:1], hedge: { after: p95, minimum: 0 } }",
            "6:59 upstreams.demo.hedge.minimum: `0` is not a number from 1 to 65535",
        ),
        (
            "demo: { endpoints: [a:1], hedge: { after: 1s, share: 0% } }",
            "6:56 upstreams.demo.hedge.share: no request may be sent twice | remove `hedge`, or write `5%`",
        ),
        (
            "demo: { endpoints: [a:1], hedge: { after: 1s }, sticky: { cookie: c } }",
            "6:3 upstreams.demo: `hedge` and `sticky` contradict each other | a client is either kept at one endpoint, or served by whichever answers first: remove one of them",
        ),
        (
            "demo: { builtin: demo, hedge: { after: 1s } }",
            "6:26 upstreams.demo.hedge: `hedge` does nothing with `builtin`: there is one server | remove one of them",
        ),
        (
            "demo: { endpoints: [a:1], panic: 50 }",
            "6:36 upstreams.demo.panic: `50` has no unit | a share is a number from 0 to 100 and `%`: `10%`, `0.25%`",
        ),
        (
            "demo: { endpoints: [unix:a.sock] }",
            "6:23 upstreams.demo.endpoints[0]: `unix:a.sock` is not a Unix socket | write `unix:/path`, absolute and of at most 107 bytes",
        ),
        (
            "demo: { endpoints: [a:1], dns: { ttl_min: 1m, ttl_max: 30s } }",
            "6:58 upstreams.demo.dns.ttl_max: `ttl_max` is below `ttl_min`",
        ),
        (
            "demo: { endpoints: [a:1], dns: { resolver: [localhost] } }",
            "6:47 upstreams.demo.dns.resolver[0]: `localhost` is not the address of a server | expected `IP` or `IP:port`",
        ),
        (
            "demo: { endpoints: [a:1], health_check: {} }",
            "6:29 upstreams.demo.health_check: one of `http`, `tcp` and `grpc` is required | write `http: {}`",
        ),
        (
            "demo: { endpoints: [a:1], health_check: { http: {}, tcp: {} } }",
            "6:55 upstreams.demo.health_check.tcp: more than one of `http`, `tcp` and `grpc` is written",
        ),
        (
            "demo: { endpoints: [a:1], health_check: { http: { path: healthz } } }",
            "6:59 upstreams.demo.health_check.http.path: `healthz` is not a path | expected a path that begins with `/`",
        ),
        (
            "demo: { endpoints: [a:1], health_check: { http: { status: [100] } } }",
            "6:62 upstreams.demo.health_check.http.status[0]: this is no status from 200 to 599, and no range of them | write `200-299`",
        ),
        (
            "demo: { endpoints: [a:1], health_check: { http: { host: a b } } }",
            "6:59 upstreams.demo.health_check.http.host: `a b` is not a host name | a host name is made of labels of letters, digits and `-`, with dots between them",
        ),
        (
            "demo: { endpoints: [a:1], health_check: { tcp: {}, healthy: 0 } }",
            "6:63 upstreams.demo.health_check.healthy: `0` is not a number from 1 to 100",
        ),
        (
            "demo: { endpoints: [a:1], health_check: { grpc: {} } }",
            "6:3 upstreams.demo: `health_check.grpc` needs `protocol: h2`",
        ),
        (
            "demo: { endpoints: [a:1], tls: { cert: a.pem } }",
            "6:36 upstreams.demo.tls.cert: `key` is missing beside it",
        ),
        (
            "demo: { endpoints: [a:1], prefer: { by: near } }",
            "6:43 upstreams.demo.prefer.by: `near` is nothing to prefer by | expected `nearest` or `zone:NAME`",
        ),
        (
            "demo: { endpoints: [a:1], prefer: { by: \"zone:a b\" } }",
            "6:43 upstreams.demo.prefer.by: `zone:a b` is not a name | expected `nearest` or `zone:NAME`",
        ),
        (
            "demo: { endpoints: [a:1], prefer: { by: nearest }, balance: { consistent_hash: { by: path } } }",
            "6:3 upstreams.demo: `prefer` does nothing with `consistent_hash` | remove one of them",
        ),
        (
            "demo: { endpoints: [{ addr: a:1, at: \"91,0\" }] }",
            "6:40 upstreams.demo.endpoints[0].at: `91,0` is no place on Earth | write `\"52.52,13.40\"`",
        ),
        (
            "demo: { endpoints: [{ addr: a:1, country: Germany }] }",
            "6:45 upstreams.demo.endpoints[0].country: `Germany` is no country code | expected the two letters of a country",
        ),
        (
            "demo: { endpoints: [a:1], like: dmo }",
            "6:35 upstreams.demo.like: there is no upstream `dmo` | did you mean `demo`?",
        ),
        ("demo: { endpoints: [a:1], like: demo }", "6:35 upstreams.demo.like: `like` goes in a circle: demo -> demo"),
        (
            "demo: { endpoints: [a:1], like: b }\n  b: { endpoints: [b:1], like: c }\n  c: { endpoints: [c:1], like: b }",
            "8:32 upstreams.c.like: `like` goes in a circle: b -> c -> b",
        ),
    ];
    check(&cases, |upstreams| Parts { upstreams, ..SOUND });
}

#[test]
fn filters() {
    let cases = [
        ("auth: {}", "8:3 filters.auth.wasm: `wasm` is missing"),
        (
            "auth: { wasm: builtin:jwt }",
            "8:17 filters.auth.wasm: `builtin:jwt` does not come with the node | did you mean `builtin:jwt-auth`?",
        ),
        (
            "auth: { wasm: a.wasm }",
            "8:17 filters.auth.wasm: `a.wasm` does not say where the module is | write `file:a.wasm` or `builtin:NAME`",
        ),
        (
            "auth: { wasm: \"file:\" }",
            "8:17 filters.auth.wasm: `file:` names no file | expected `builtin:NAME` or `file:PATH`",
        ),
        (
            "auth: { wasm: builtin:jwt-auth, on_failure: close }",
            "8:47 filters.auth.on_failure: `close` is not one of `closed`, `open` | did you mean `closed`?",
        ),
        (
            "auth: { wasm: builtin:jwt-auth, request_body: whole }",
            "8:49 filters.auth.request_body: `whole` is not one of `stream`, `buffer`",
        ),
        (
            "auth: { wasm: builtin:jwt-auth, response_body: { peek: 2MiB } }",
            "8:58 filters.auth.response_body.peek: more than the filter may hold back, which is 1MiB (`limits.body`)",
        ),
        (
            "auth: { wasm: builtin:jwt-auth, response_body: {} }",
            "8:35 filters.auth.response_body.peek: `peek` is missing",
        ),
        (
            "auth: { wasm: builtin:jwt-auth, header_encoding: escaped }",
            "8:52 filters.auth.header_encoding: `escaped` is not one of `escape`, `reject`, `pass` | did you mean `escape`?",
        ),
        (
            "auth: { wasm: builtin:jwt-auth, compat: nginx }",
            "8:43 filters.auth.compat: `nginx` is not one of `envoy`, `ngx`",
        ),
        (
            "auth: { wasm: builtin:jwt-auth, on_pause: stopall }",
            "8:45 filters.auth.on_pause: `stopall` is not one of `spec`, `stop_all` | did you mean `stop_all`?",
        ),
        (
            "auth: { wasm: builtin:jwt-auth, limits: { deadline: 50 } }",
            "8:55 filters.auth.limits.deadline: `50` has no unit | a duration is a whole number and one of ms, s, m, h, d: `250ms`, `30s`, `1h`; at most ten years",
        ),
        (
            "auth: { wasm: builtin:jwt-auth, config: { secret_file: /nowhere/at/all } }",
            "8:58 filters.auth.config.secret_file: cannot read this file: there is no such file",
        ),
        (
            "auth: { wasm: builtin:jwt-auth, config: { a: { secret_file: / } } }",
            "8:63 filters.auth.config.a.secret_file: cannot read this file: this is not a regular file",
        ),
        (
            "auth: { wasm: builtin:jwt-auth, config: { secret_file: [1] } }",
            "8:58 filters.auth.config.secret_file: expected a path, found a list",
        ),
        (
            "auth: { wasm: builtin:jwt-auth, config: { secret: x, secret_file: y } }",
            "8:56 filters.auth.config.secret_file: `secret_file` and `secret` are both written",
        ),
        (
            "auth: { wasm: builtin:jwt-auth, config: { x: .inf } }",
            "8:48 filters.auth.config.x: JSON has no such number",
        ),
    ];
    check(&cases, |filters| Parts { filters, ..SOUND });
}

#[test]
fn sites() {
    let cases = [
        ("hosts: []", "10:10 sites[0].hosts: the list is empty"),
        ("filters: []", "10:3 sites[0].hosts: `hosts` is missing"),
        (
            "hosts: [\"a.*.test\"]",
            "10:11 sites[0].hosts[0]: `a.*.test` has a wildcard inside | only the first label may be a wildcard: `\"*.example.com\"`",
        ),
        (
            "hosts: [\"a.test:80\"]",
            "10:11 sites[0].hosts[0]: `a.test:80` has a port | write `a.test`: ports belong to `listeners`",
        ),
        (
            "hosts: [-a.test]",
            "10:11 sites[0].hosts[0]: `-a.test` is not a host name | a host name is made of labels of letters, digits and `-`, with dots between them",
        ),
        (
            "hosts: [bücher.test]",
            "10:11 sites[0].hosts[0]: `bücher.test` is not a host name | write an internationalised name in its ASCII form (`xn--..`)",
        ),
        (
            "hosts: [\"[::g]\"]",
            "10:11 sites[0].hosts[0]: `[::g]` is not an IPv6 address | expected a host name, `\"*.example.com\"` or `\"*\"`",
        ),
        (
            "hosts: [a.test, A.TEST]",
            "10:19 sites[0].hosts[1]: this host is already taken | a host belongs to one site: put its routes together",
        ),
        (
            "hosts: [a.test]\n  listeners: [wbe]",
            "11:15 sites[0].listeners[0]: there is no listener `wbe` | did you mean `web`?",
        ),
        ("hosts: [a.test]\n  listeners: []", "11:14 sites[0].listeners: the list is empty"),
        ("hosts: [a.test]\n  listeners: [web, web]", "11:20 sites[0].listeners[1]: this listener is written twice"),
        (
            "hosts: [a.test]\n  filters: [auht]",
            "11:13 sites[0].filters[0]: there is no filter `auht` | did you mean `auth`?",
        ),
        (
            "hosts: [a.test]\n  filters: [{ auht: {} }]",
            "11:15 sites[0].filters[0].auht: there is no filter `auht` | did you mean `auth`?",
        ),
        (
            "hosts: [a.test]\n  filters: [{ auth: {}, b: {} }]",
            "11:13 sites[0].filters[0]: one item of `filters` is one filter | write `- name: { .. }` for each",
        ),
        (
            "hosts: [a.test]\n  filters: [{ auth: 3 }]",
            "11:21 sites[0].filters[0].auth: expected a mapping, found a number",
        ),
        ("hosts: [a.test]\n  routes: []\n- hosts: [b.test]", "11:11 sites[0].routes: the list is empty"),
    ];
    check(&cases, |site| Parts { site, ..SOUND });
}

#[test]
fn routes() {
    let cases = [
        (
            "name: x",
            "12:5 sites[0].routes[0]: `to` is missing | write `to: UPSTREAM`, or one of `split`, `files`, `respond` and `redirect`",
        ),
        ("split: { upstreams: { demo: 0 } }", "12:25 sites[0].routes[0].split.upstreams: no upstream has a share"),
        (
            "split: { upstreams: { demo: 1, nobody: 2 } }",
            "12:36 sites[0].routes[0].split.upstreams.nobody: there is no upstream `nobody`",
        ),
        (
            "split: { upstreams: { demo: 1 }, by: host }",
            "12:42 sites[0].routes[0].split.by: `host` is no part of a request | expected one of `client_ip`, `path`, `header:NAME`, `cookie:NAME`, `query:NAME`",
        ),
        (
            "files: { root: www, index: a/b }",
            "12:32 sites[0].routes[0].files.index: `a/b` is not the name of a file | write a name alone, such as `index.html`",
        ),
        (
            "files: { root: www, precompressed: [br, br] }",
            "12:45 sites[0].routes[0].files.precompressed[1]: this encoding is written twice",
        ),
        (
            "{ respond: { status: 200 }, timeouts: { read: 1s } }",
            "12:33 sites[0].routes[0].timeouts: `timeouts` do nothing without `to` | remove them: nothing is asked for elsewhere",
        ),
        ("{ to: demo, grpc_web: 1 }", "12:27 sites[0].routes[0].grpc_web: expected `true` or `false`, found a number"),
        (
            "{ respond: { status: 204 }, grpc_web: true }",
            "12:33 sites[0].routes[0].grpc_web: `grpc_web` does nothing without `to` | remove it: nobody speaks gRPC here",
        ),
        (
            "{ to: demo, cors: { origins: [\"*\"], credentials: true } }",
            "12:54 sites[0].routes[0].cors.credentials: pages of all origins must not use credentials | name the origins, or remove `credentials`",
        ),
        (
            "{ to: demo, cors: { origins: [\"https://A.test\"] } }",
            "12:35 sites[0].routes[0].cors.origins[0]: `https://A.test` is not in lower case, as browsers write it | expected an origin: `https://app.example.com`",
        ),
        (
            "{ to: demo, cors: { origins: [\"https://a.test/x\"] } }",
            "12:35 sites[0].routes[0].cors.origins[0]: `https://a.test/x` is not an origin | expected an origin: `https://app.example.com`",
        ),
        (
            "{ to: demo, cors: { origins: [https://a.test, \"*\"] } }",
            "12:34 sites[0].routes[0].cors.origins: `\"*\"` stands for all: it stands alone",
        ),
        (
            "{ to: demo, compress: [gzip, lz4] }",
            "12:34 sites[0].routes[0].compress[1]: `lz4` is not one of `zstd`, `br`, `gzip`",
        ),
        (
            "{ to: demo, compress: [gzip, gzip] }",
            "12:34 sites[0].routes[0].compress[1]: this encoding is written twice",
        ),
        ("{ to: demo, compress: [] }", "12:27 sites[0].routes[0].compress: the list is empty"),
        (
            "{ to: demo, compress: true }",
            "12:27 sites[0].routes[0].compress: how is not said | name the encodings: `[zstd, br, gzip]`",
        ),
        (
            "{ to: demo, compress: { encodings: [br], how: 3 } }",
            "12:46 sites[0].routes[0].compress.how: unknown key `how` | known keys: `encodings`, `types`, `min_size`, `levels`",
        ),
        ("{ to: demo, compress: {} }", "12:17 sites[0].routes[0].compress.encodings: `encodings` is missing"),
        (
            "{ to: demo, compress: { encodings: [br], levels: { br: 11 } } }",
            "12:60 sites[0].routes[0].compress.levels.br: `11` is not a number from 0 to 9",
        ),
        (
            "{ to: demo, compress: { encodings: [br], types: [html] } }",
            "12:54 sites[0].routes[0].compress.types[0]: `html` is no media type | expected a media type: `text/html`, `text/*` or `*+json`",
        ),
        (
            "{ to: demo, compress: { encodings: [br], types: [\"*/json\"] } }",
            "12:54 sites[0].routes[0].compress.types[0]: `*/json` is no media type | expected a media type: `text/html`, `text/*` or `*+json`",
        ),
        (
            "{ respond: { status: 200 }, origin_filters: [] }",
            "12:33 sites[0].routes[0].origin_filters: `origin_filters` do nothing without `to` | remove them: nothing is asked for elsewhere",
        ),
        (
            "{ to: demo, origin_filters: [nobody] }",
            "12:34 sites[0].routes[0].origin_filters[0]: there is no filter `nobody` | known filters: `auth`",
        ),
        ("{ to: demo, mirror: { share: 5% } }", "12:17 sites[0].routes[0].mirror.to: `to` is missing"),
        (
            "{ respond: { status: 200 }, mirror: { to: demo } }",
            "12:33 sites[0].routes[0].mirror: `mirror` does nothing without `to` | remove it: nothing is sent elsewhere",
        ),
        (
            "{ to: demo, limits: { body: 0 } }",
            "12:33 sites[0].routes[0].limits.body: `0` has no unit | a size is a whole number and one of B, KiB, MiB, GiB, KB, MB, GB: `64KiB`, `16MiB`",
        ),
        ("to: dem", "12:9 sites[0].routes[0].to: there is no upstream `dem` | did you mean `demo`?"),
        ("to: { split: [] }", "12:9 sites[0].routes[0].to: expected the name of an upstream, found a mapping"),
        (
            "to: demo\n    respond: { status: 200 }",
            "13:5 sites[0].routes[0].respond: `to` and `respond` are both written | a route has one of them",
        ),
        ("respond: { status: 199 }", "12:24 sites[0].routes[0].respond.status: `199` is not a number from 200 to 599"),
        ("respond: {}", "12:5 sites[0].routes[0].respond.status: `status` is missing"),
        (
            "respond: { status: 204, body: x }",
            "12:35 sites[0].routes[0].respond.body: a 204 response has no body (RFC 9110, 15)",
        ),
        (
            "respond: { status: 200, headers: { Connection: close } }",
            "12:40 sites[0].routes[0].respond.headers.Connection: the header `Connection` is the node's to write | remove it",
        ),
        (
            "respond: { status: 200, headers: { \"a b\": x } }",
            "12:40 sites[0].routes[0].respond.headers.a b: `a b` is not a header name",
        ),
        (
            "respond: { status: 200, headers: { a: \"x\\r\\ny\" } }",
            "12:43 sites[0].routes[0].respond.headers.a: `x  y` is not a header value | a header value has visible ASCII characters, with blanks only between them (RFC 9110, 5.5)",
        ),
        (
            "respond: { status: 200, headers: { a: x, A: y } }",
            "12:46 sites[0].routes[0].respond.headers.A: the header `a` is written twice | case does not matter in header names",
        ),
        (
            "respond: { status: 200, headers: { a: 1 } }",
            "12:43 sites[0].routes[0].respond.headers.a: expected a header value, found a number | write it in quotes: `\"1\"`",
        ),
        (
            "respond: { status: 200 }\n    cache: {}",
            "13:5 sites[0].routes[0].cache: `cache` does nothing without `to` | what the node answers itself is never fetched: remove `cache`",
        ),
        (
            "to: demo\n    match: { path: api }",
            "13:20 sites[0].routes[0].match.path: `api` does not begin with `/` | did you mean `/api`?",
        ),
        (
            "to: demo\n    match: { path: /a*/b }",
            "13:20 sites[0].routes[0].match.path: `/a*/b` has a wildcard inside a segment | `*` stands for a whole segment: `/x/*/y`",
        ),
        (
            "to: demo\n    match: { path: \"~[a\" }",
            "13:20 sites[0].routes[0].match.path: `~[a` is not a regular expression | unclosed character class",
        ),
        (
            "to: demo\n    match: { client: [10.0.0.1/8] }",
            "13:23 sites[0].routes[0].match.client[0]: `10.0.0.1/8` has bits beyond its length | did you mean `10.0.0.0/8`?",
        ),
        (
            "to: demo\n    match: { client: [ten] }",
            "13:23 sites[0].routes[0].match.client[0]: `ten` is not a range of addresses | write `10.0.0.0/8` or `2001:db8::/32`",
        ),
        (
            "to: demo\n    match: { geo: { country: [DE] } }",
            "13:19 sites[0].routes[0].match.geo: there is no database that says where clients are | declare one: `geo: { database: FILE.mmdb }` at the top level",
        ),
        ("to: demo\n    match: { sni: [] }", "13:19 sites[0].routes[0].match.sni: the list is empty"),
        (
            "to: demo\n    match: { sni: [\"*\"] }",
            "13:20 sites[0].routes[0].match.sni[0]: `*` is no name that a client can ask for | leave `sni` away, or ask for `tls: true`",
        ),
        (
            "to: demo\n    match: { sni: [10.0.0.1] }",
            "13:20 sites[0].routes[0].match.sni[0]: `10.0.0.1` is no name that a client can ask for | clients that connect to an address ask for no name",
        ),
        (
            "to: demo\n    match: { sni: [\"a.*.test\"] }",
            "13:20 sites[0].routes[0].match.sni[0]: `a.*.test` is not a host name | a host name is made of labels of letters, digits and `-`, with dots between them",
        ),
        (
            "{ name: a, to: demo, match: { sni: [\"*.a.test\", b.test] } }\n  - { to: demo, match: { sni: [c.test, x.A.test] } }",
            "13:17 sites[0].routes[1].match: another route of this site can match the same request, and neither is more specific",
        ),
        (
            "to: demo\n    match: { query: { a: {} } }",
            "13:26 sites[0].routes[0].match.query.a: nothing is said about the value | write one of `prefix`, `regex` and `present`",
        ),
        (
            "to: demo\n    match: { cookie: { a: { prefix: x, present: true } } }",
            "13:27 sites[0].routes[0].match.cookie.a: only one of `prefix`, `regex` and `present` can be written",
        ),
        (
            "to: demo\n    match: { cookie: { \"a b\": x } }",
            "13:24 sites[0].routes[0].match.cookie.a b: `a b` is not a cookie name",
        ),
        (
            "{ name: a, to: demo, match: { path: /a/*/c } }\n  - { to: demo, match: { path: /*/b/c } }",
            "13:17 sites[0].routes[1].match: another route of this site can match the same request, and neither is more specific",
        ),
        (
            "{ name: a, to: demo, match: { method: [GET] } }\n  - { to: demo, match: { header: { x: y } } }",
            "13:17 sites[0].routes[1].match: another route of this site can match the same request, and neither is more specific",
        ),
        (
            "redirect: { to: \"https://${hst}/\" }",
            "12:21 sites[0].routes[0].redirect.to: `https://${hst}/` has `${hst}`, which is no request variable | there are client.ip, client.port, scheme, host, authority, method, path, query, uri, route, site, node, status, geo.country, geo.continent, header.NAME, cookie.NAME, param.NAME",
        ),
        (
            "redirect: { to: /a, status: 304 }",
            "12:33 sites[0].routes[0].redirect.status: 304 is no redirect | one of 301, 302, 303, 307 and 308",
        ),
        (
            "redirect: { to: /a }\n    rewrite: { host: a }",
            "13:5 sites[0].routes[0].rewrite: `rewrite` does nothing without `to` | remove it: nothing is asked for elsewhere",
        ),
        (
            "to: demo\n    match: { path: \"~^/a\" }\n    rewrite: { prefix: /b }",
            "14:5 sites[0].routes[0].rewrite: `prefix` needs a `match.path` that is exact or a prefix | use `path: { regex, with }`",
        ),
        (
            "to: demo\n    headers: { request: { set: { Host: a } } }",
            "13:34 sites[0].routes[0].headers.request.set.Host: the header `host` is the node's to write",
        ),
        (
            "to: demo\n    headers: { response: { remove: [transfer-encoding] } }",
            "13:37 sites[0].routes[0].headers.response.remove[0]: the header `transfer-encoding` is the node's to write",
        ),
        (
            "to: demo\n    headers: { response: { add: { a: \"x\\ny\" } } }",
            "13:38 sites[0].routes[0].headers.response.add.a: `x y` is not a header value | a header value has visible ASCII characters, with blanks only between them (RFC 9110, 5.5)",
        ),
        (
            "to: demo\n    headers: { request: { add: { a: \"${geo.country}\" } } }",
            "13:37 sites[0].routes[0].headers.request.add.a: there is no database that says where clients are | declare one: `geo: { database: FILE.mmdb }` at the top level",
        ),
        (
            "to: demo\n    match: { path: /a/../b }",
            "13:20 sites[0].routes[0].match.path: `/a/../b` has a dot segment | requests are matched after `.` and `..` are resolved (RFC 3986, 5.2.4)",
        ),
        (
            "to: demo\n    match: { path: /a?b=c }",
            "13:20 sites[0].routes[0].match.path: `/a?b=c` is not a path | a path ends before `?` and `#`; use `match` for the path alone",
        ),
        (
            "to: demo\n    match: { path: /ä }",
            "13:20 sites[0].routes[0].match.path: `/ä` is not a path | write other characters percent-encoded, as they stand in a request",
        ),
        (
            "to: demo\n    match: { method: [get] }",
            "13:23 sites[0].routes[0].match.method[0]: `get` is not a method | did you mean `GET`? methods are case-sensitive",
        ),
        (
            "to: demo\n    match: { method: GET }",
            "13:22 sites[0].routes[0].match.method: expected a list, found `GET` | write `[GET]`",
        ),
        (
            "to: demo\n    match: { method: [\"A B\"] }",
            "13:23 sites[0].routes[0].match.method[0]: `A B` is not a method | expected a method",
        ),
        (
            "to: demo\n    match: { method: [GET, GET] }",
            "13:28 sites[0].routes[0].match.method[1]: this method is written twice",
        ),
        (
            "to: demo\n    match: { header: { x-a: 1 } }",
            "13:29 sites[0].routes[0].match.header.x-a: expected a header value, found a number | write it in quotes: `\"1\"`",
        ),
        (
            "to: demo\n    cache: { override: true }",
            "13:14 sites[0].routes[0].cache.override: `override` does nothing without `ttl` | say how long: `ttl: 1h`",
        ),
        (
            "to: demo\n    cache: { key: { query: some } }",
            "13:28 sites[0].routes[0].cache.key.query: `some` is not `all`",
        ),
        (
            "to: demo\n    cache: { key: { query: { only: [a, a] } } }",
            "13:40 sites[0].routes[0].cache.key.query.only[1]: this parameter is written twice",
        ),
        (
            "to: demo\n    cache: { key: { query: { only: [], except: [a] } } }",
            "13:40 sites[0].routes[0].cache.key.query.except: `only` and `except` are both written",
        ),
        (
            "to: demo\n    cache: { key: { query: {} } }",
            "13:28 sites[0].routes[0].cache.key.query: nothing is said | write `all`, `only: [..]` or `except: [..]`",
        ),
        (
            "to: demo\n    cache: { key: { headers: [X-A, x-a] } }",
            "13:36 sites[0].routes[0].cache.key.headers[1]: this header is written twice",
        ),
        (
            "to: demo\n    cache: { key: { claims: [tenant] } }",
            "13:30 sites[0].routes[0].cache.key.claims[0]: no filter of the route establishes this claim | name it in `claims_to_headers` of a `builtin:jwt-auth` among the route's filters",
        ),
        (
            "to: demo\n    filters: [auth: { claims_to_headers: { sub: x-user } }]\n    cache: { key: { claims: [sub, tenant] } }",
            "14:35 sites[0].routes[0].cache.key.claims[1]: no filter of the route establishes this claim | name it in `claims_to_headers` of a `builtin:jwt-auth` among the route's filters",
        ),
        (
            "to: demo\n    filters: [auth: { claims_to_headers: { sub: x-user } }]\n    cache: { key: { claims: [sub, sub] } }",
            "14:35 sites[0].routes[0].cache.key.claims[1]: this claim is written twice",
        ),
        (
            "to: demo\n    cache: { key: { variants: [shop] } }",
            "13:32 sites[0].routes[0].cache.key.variants[0]: no filter of the route runs this experiment | add a `builtin:ab-routing` with this `experiment` to the route's filters",
        ),
        (
            "to: demo\n    cache: { key: { cookies: [a b] } }",
            "13:31 sites[0].routes[0].cache.key.cookies[0]: `a b` is not the name of a cookie | expected a name",
        ),
        (
            "to: demo\n    cache: { key: { geo: country } }",
            "13:21 sites[0].routes[0].cache.key.geo: there is no database for this | declare one: `geo: { database: FILE.mmdb }` at the top level",
        ),
        ("to: demo\n    cache: { ttl: {} }", "13:19 sites[0].routes[0].cache.ttl: no status is named"),
        (
            "to: demo\n    cache: { ttl: { 404: 0s } }",
            "13:26 sites[0].routes[0].cache.ttl.404: this duration must be above zero",
        ),
        (
            "to: demo\n    cache: { ttl: { \"4xx\": 1s } }",
            "13:21 sites[0].routes[0].cache.ttl.4xx: `4xx` is no status from 200 to 599, and no range of them | write `\"404\"` or `\"200-299\"`",
        ),
        (
            "to: demo\n    cache: { ttl: { 400-499: 1s, 404: 2s } }",
            "13:34 sites[0].routes[0].cache.ttl.404: some of these statuses are also in `400-499`",
        ),
        (
            "to: demo\n    cache: { ttl: { 206: 1s } }",
            "13:21 sites[0].routes[0].cache.ttl.206: a 206 response is never kept by itself",
        ),
        (
            "to: demo\n    cache: { slice: 4KiB }",
            "13:21 sites[0].routes[0].cache.slice: a slice has 64KiB at least | 1MiB is usual",
        ),
        (
            "to: demo\n    cache: { cookies: drop }",
            "13:23 sites[0].routes[0].cache.cookies: `drop` is not one of `store`, `strip`, `pass`",
        ),
        (
            "to: demo\n    cache: { slice: 1MiB, ranges: as_asked }",
            "13:35 sites[0].routes[0].cache.ranges: `as_asked` and `slice` are both written | slices serve every range: remove one",
        ),
        (
            "to: demo\n    cache: { slice: 1MiB }\n    origin_filters: []",
            "14:5 sites[0].routes[0].origin_filters: these filters see whole objects, and the route's `cache` fetches them in parts | remove `cache.slice` and `cache.ranges: as_asked`, or the filters",
        ),
        (
            "to: demo\n    cache: { ranges: as_asked }\n    origin_filters: []",
            "14:5 sites[0].routes[0].origin_filters: these filters see whole objects, and the route's `cache` fetches them in parts | remove `cache.slice` and `cache.ranges: as_asked`, or the filters",
        ),
        (
            "to: demo\n    cache: { ranges: exact }",
            "13:22 sites[0].routes[0].cache.ranges: `exact` is not one of `whole`, `as_asked`",
        ),
        (
            "to: demo\n    cache: { languages: [de, en_GB] }",
            "13:30 sites[0].routes[0].cache.languages[1]: `en_GB` is not a language | write it as in `Accept-Language`: `en`, `de-CH`",
        ),
        (
            "to: demo\n    cache: { negative: {} }",
            "13:14 sites[0].routes[0].cache.negative: unknown key `negative` | known keys: `ttl`, `override`, `key`, `cookies`, `languages`, `slice`, `ranges`, `stale_while_revalidate`, `stale_if_error`, `request_directives`, `show_key`, `tags`",
        ),
        (
            "to: demo\n    cache: { request_directives: obey }",
            "13:34 sites[0].routes[0].cache.request_directives: expected `true` or `false`, found `obey`",
        ),
        (
            "to: demo\n    invalidates: [{ on: /a/*, urls: [/b/$2] }]",
            "13:38 sites[0].routes[0].invalidates[0].urls[0]: there is no `$2`: `on` has 1 wildcards",
        ),
        (
            "to: demo\n    invalidates: [{ tags: [a$] }]",
            "13:28 sites[0].routes[0].invalidates[0].tags[0]: a `$` without a number | write `$$` for a dollar sign",
        ),
        (
            "to: demo\n    invalidates: [{ on: a, tags: [b] }]",
            "13:25 sites[0].routes[0].invalidates[0].on: `a` does not begin with `/` | did you mean `/a`?",
        ),
        (
            "to: demo\n    invalidates: [{ soft: true }]",
            "13:19 sites[0].routes[0].invalidates[0]: it puts nothing out of date | write `urls`, `prefixes` or `tags`",
        ),
        (
            "to: demo\n    invalidates: [{ tags: [b], refresh: true }]",
            "13:41 sites[0].routes[0].invalidates[0].refresh: there are no `urls` that could be fetched | write `urls`, or remove it",
        ),
        (
            "respond: { status: 200 }\n    invalidates: [{ tags: [b] }]",
            "13:5 sites[0].routes[0].invalidates: `invalidates` does nothing without `to` | remove it: nothing is changed here",
        ),
        (
            "to: demo\n    cache: { tags: { read: [xkeys] } }",
            "13:29 sites[0].routes[0].cache.tags.read[0]: `xkeys` is not one of `surrogate-key`, `cache-tag`, `xkey`, `cache-groups` | did you mean `xkey`?",
        ),
        (
            "to: demo\n    cache: { tags: { read: [xkey, xkey] } }",
            "13:35 sites[0].routes[0].cache.tags.read[1]: this field is written twice",
        ),
        (
            "to: demo\n    cache: { tags: { kept: true } }",
            "13:22 sites[0].routes[0].cache.tags.kept: unknown key `kept` | known keys: `read`, `keep`",
        ),
        (
            "{ name: a, match: { path: /a }, to: demo }\n  - { name: a, to: demo }",
            "13:13 sites[0].routes[1].name: another route of this site has the same name",
        ),
        (
            "{ match: { path: /a, method: [GET, POST] }, to: demo }\n  - { match: { method: [POST, GET], path: /a }, to: demo }",
            "13:7 sites[0].routes[1].match: another route of this site matches the same requests",
        ),
        (
            "to: ${UPSTREAM}",
            "12:9 : the variable `UPSTREAM` is not set | set it, or give a default: `${UPSTREAM:-default}`",
        ),
        ("to: ${UPSTREAM:?name the origin}", "12:9 : the variable `UPSTREAM` is not set: name the origin"),
        ("to: ${EMPTY:?}", "12:9 : the variable `EMPTY` is not set: it is required"),
        ("to: x-${UPSTREAM", "12:11 : `${` has no `}` | write `$${` for a literal `${`"),
        (
            "to: x-${A+b}",
            "12:11 : `${..}` goes on after the variable's name | write `${VAR}`, `${VAR:-default}` or `${VAR:?message}`",
        ),
        ("to: ${1A}", "12:9 : `${..}` does not begin with a variable's name | write `$${` for a literal `${`"),
        ("to: ${SECRET}", "12:9 sites[0].routes[0].to: there is no upstream `${SECRET}` | known upstreams: `demo`"),
        (
            "to: demo\n    match: { path: ./. }\n",
            "13:20 sites[0].routes[0].match.path: `./.` does not begin with `/` | did you mean `/./.`?",
        ),
    ];
    check(&cases, |route| Parts { route, ..SOUND });
}

#[test]
fn sites_and_listeners_for_tcp_do_not_go_together() {
    let db = "db: { bind: 127.0.0.1:8080, tcp: { upstream: demo } }";
    let found = |listeners, site| -> Vec<String> {
        faults_of(&Parts { listeners, site, ..SOUND }.text()).iter().map(line).collect()
    };
    assert_eq!(
        found(db, SOUND.site),
        [
            "10:3 sites[0]: nobody can ask for this site: every listener has `tcp` or `redirect_to_https` | declare a listener without them, or remove the site"
        ]
    );
    let both = "db: { bind: 127.0.0.1:8080, tcp: { upstream: demo } }\n  web: { bind: 127.0.0.1:8081 }";
    assert_eq!(
        found(both, "hosts: [a.test]\n  listeners: [web, db]"),
        [
            "12:20 sites[0].listeners[1]: the listener `db` has `tcp`: it serves no sites | what its connections get is in its own `tcp`"
        ]
    );
    assert_eq!(found(both, SOUND.site), [""; 0]);
}

#[test]
fn what_a_filter_establishes_counts_only_where_it_fails_closed() {
    let route = "to: demo\n    filters: [auth]\n    cache: { key: { claims: [sub] } }";
    let found = |filters: &'static str| -> Vec<String> {
        faults_of(&Parts { filters, route, ..SOUND }.text()).iter().map(line).collect()
    };
    let filters = "auth: { wasm: builtin:jwt-auth, on_failure: open, config: { claims_to_headers: { sub: X-User } } }";
    assert_eq!(
        found(filters),
        [
            "14:30 sites[0].routes[0].cache.key.claims[0]: the filter `auth` fails open: what clients write would count | give it `on_failure: closed`",
        ]
    );
    assert_eq!(found("auth: { wasm: builtin:jwt-auth, config: { claims_to_headers: { sub: X-User } } }"), [""; 0]);
}

#[test]
fn a_route_may_not_cache_without_a_store() {
    let text = Parts { top: "", route: "to: demo\n    cache: {}", ..SOUND }.text();
    let found: Vec<String> = faults_of(&text).iter().map(line).collect();
    let expected = "13:5 sites[0].routes[0].cache: there is no store for this | declare one: `cache: { memory: { size: 256MiB } }` at the top level";
    assert_eq!(found, [expected]);
}

#[test]
fn whole_files() {
    let no_listeners =
        "1:1 listeners: there are no `listeners` | declare one: `listeners: { web: { bind: 127.0.0.1:8080 } }`";
    let no_sites =
        "1:1 sites: there are no `sites` | declare one: `sites: [{ hosts: [\"*\"], routes: [{ to: UPSTREAM }] }]`";
    let cases: [(&str, &[&str]); 11] = [
        ("", &["1:1 version: `version` is missing", no_listeners, no_sites]),
        ("# nothing\n", &["1:1 version: `version` is missing", no_listeners, no_sites]),
        ("version: 2\n", &[no_listeners, no_sites, "1:10 version: version 2 is not known | write `version: 1`"]),
        ("version: 1\nlisteners: {}\nsites: []\n", &[no_listeners, no_sites]),
        ("just text", &["1:1 : expected a mapping, found `just text`"]),
        ("a: b: c\n", &["1:5 : this is not YAML: mapping values are not allowed in this context"]),
        ("a:\n\tb: 1\n", &["2:2 : this is not YAML: tabs disallowed within this context (block indentation)"]),
        ("a: \"x\n", &["1:4 : this is not YAML: while scanning a quoted scalar, found unexpected end of stream"]),
        (
            "a: { b: ${X} }\n",
            &[
                "1:10 : this is not YAML: while parsing a flow mapping, did not find expected ',' or '}' | inside { } and [ ], `${..}` is not YAML: write this part in block style, one key per line",
            ],
        ),
        ("a: &x [*x]\n", &["1:8 : this alias is inside what it stands for"]),
        ("a: *x\n", &["1:4 : this is not YAML: while parsing node, found unknown anchor"]),
    ];
    for (text, expected) in cases {
        assert_eq!(faults_of(text).iter().map(line).collect::<Vec<_>>(), expected, "for {text:?}");
    }
}

#[test]
fn a_second_document_is_a_fault() {
    let text = format!("{}---\nversion: 1\n", SOUND.text());
    let found = faults_of(&text);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].line, found[0].column, found[0].message.as_str()), (13, 1, "a second document begins here"));
}

#[test]
fn a_wrong_value_behind_a_variable_is_quoted_as_written() {
    let parts = [
        Parts { route: "to: demo\n    match:\n      path: ${SECRET}", ..SOUND },
        Parts { route: "to: demo\n    match:\n      method:\n      - get${SECRET}[", ..SOUND },
        Parts { route: "to: demo\n    cache:\n      ttl: ${SECRET}", ..SOUND },
        Parts { site: "hosts:\n  - ${SECRET}:80", ..SOUND },
        Parts { upstreams: "demo:\n    endpoints:\n    - ${SECRET}", ..SOUND },
        Parts { filters: "auth:\n    wasm: ${SECRET}", ..SOUND },
        Parts { filters: "auth:\n    wasm: builtin:jwt-auth\n    config:\n      a_file: /${SECRET}", ..SOUND },
        Parts { top: "include:\n- ${SECRET}.yaml\ncache: {}", ..SOUND },
        Parts { top: "node:\n  workers: ${SECRET}\ncache: {}", ..SOUND },
        Parts { listeners: "web:\n    bind: ${SECRET}", ..SOUND },
        Parts { listeners: "web:\n    bind: 127.0.0.1:1\n    tls:\n      certificates: ${SECRET}", ..SOUND },
    ];
    for parts in parts {
        let text = parts.text();
        let Err(report) = loader().load_str("selvedge.yaml", &text) else { panic!("no fault in {text}") };
        assert_eq!(report.faults.len(), 1, "{report}");
        let shown = format!("{report}\n{report:?}\n{:#?}", report.faults);
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("${SECRET}"), "{shown}");
    }
}

#[test]
fn all_faults_of_all_sections_come_out_in_one_run_with_snippets() {
    let text = "\
version: 1
node: { wrkers: 4, shutdown_grace: 10 }
listeners:
  web: { bind: 127.0.0.1:8080, protocols: [h9] }
upstreams:
  app: { endpoints: [localhost], timeouts: { conect: 1s } }
filters:
  auth: { wasm: builtin:jwt-auth, limits: { memory: 32 } }
sites:
- hosts: [a.test, a.test]
  filters: [auht]
  routes:
  - { match: { path: x }, to: ap }
  - respond: { status: 99 }
site: []
";
    let Err(report) = loader().load_str("edge.yaml", text) else { panic!("no fault") };
    let expected = r#"error: unknown key `wrkers`
 --> edge.yaml:2:9
  |
2 | node: { wrkers: 4, shutdown_grace: 10 }
  |         ^^^^^^
  = help: did you mean `workers`?

error: `10` has no unit
 --> edge.yaml:2:36
  |
2 | node: { wrkers: 4, shutdown_grace: 10 }
  |                                    ^^
  = help: a duration is a whole number and one of ms, s, m, h, d: `250ms`, `30s`, `1h`; at most ten years

error: `h9` is not one of `h1`, `h2`
 --> edge.yaml:4:44
  |
4 |   web: { bind: 127.0.0.1:8080, protocols: [h9] }
  |                                            ^^

error: `localhost` has no port
 --> edge.yaml:6:22
  |
6 |   app: { endpoints: [localhost], timeouts: { conect: 1s } }
  |                      ^^^^^^^^^
  = help: write `localhost:80`, or the port it listens on

error: unknown key `conect`
 --> edge.yaml:6:46
  |
6 |   app: { endpoints: [localhost], timeouts: { conect: 1s } }
  |                                              ^^^^^^
  = help: did you mean `connect`?

error: `32` has no unit
 --> edge.yaml:8:53
  |
8 |   auth: { wasm: builtin:jwt-auth, limits: { memory: 32 } }
  |                                                     ^^
  = help: a size is a whole number and one of B, KiB, MiB, GiB, KB, MB, GB: `64KiB`, `16MiB`

error: this host is already taken
  --> edge.yaml:10:19
   |
10 | - hosts: [a.test, a.test]
   |                   ^^^^^^
   = note: first here: edge.yaml:10:11
   |
10 | - hosts: [a.test, a.test]
   |           ^^^^^^
   = help: a host belongs to one site: put its routes together

error: there is no filter `auht`
  --> edge.yaml:11:13
   |
11 |   filters: [auht]
   |             ^^^^
   = help: did you mean `auth`?

error: `x` does not begin with `/`
  --> edge.yaml:13:22
   |
13 |   - { match: { path: x }, to: ap }
   |                      ^
   = help: did you mean `/x`?

error: there is no upstream `ap`
  --> edge.yaml:13:31
   |
13 |   - { match: { path: x }, to: ap }
   |                               ^^
   = help: did you mean `app`?

error: `99` is not a number from 200 to 599
  --> edge.yaml:14:24
   |
14 |   - respond: { status: 99 }
   |                        ^^

error: unknown key `site`
  --> edge.yaml:15:1
   |
15 | site: []
   | ^^^^
   = help: did you mean `sites`?

12 faults in edge.yaml"#;
    let normalised = |text: &str| text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n");
    assert_eq!(normalised(&report.to_string()), expected);
}

#[test]
fn a_terminal_is_not_at_the_mercy_of_a_file() {
    let Err(report) = loader().load_str("a.yaml", "\"\\e[31mx\u{1b}[0m\": 1\n") else { panic!("no fault") };
    assert!(!report.to_string().contains('\u{1b}'), "{report}");
}

#[test]
fn a_long_line_is_shown_in_part() {
    let text = format!("version: 1\nx: [{}]\n", "12345, ".repeat(10_000));
    let Err(report) = loader().load_str("a.yaml", &text) else { panic!("no fault") };
    let text = text.replace("x: [", &format!("{}, y: [", "a".repeat(3000)));
    assert!(report.to_string().lines().all(|line| line.chars().count() < 160));
    let Err(report) = loader().load_str("a.yaml", &text) else { panic!("no fault") };
    assert!(report.to_string().lines().all(|line| line.chars().count() < 160));
}

#[test]
fn a_later_fault_is_shown_at_the_place_of_a_named_thing() {
    let loaded = loader().load_str("a.yaml", &SOUND.text()).unwrap();
    let filter = &loaded.config.filters["auth"];
    let fault = Fault::at(&filter.wasm_position, "the module does not load").with_key("filters.auth.wasm");
    let report = Report::new(Path::new("a.yaml"), vec![fault]);
    let expected = "error: the module does not load\n --> a.yaml:8:17\n  |\n8 |   auth: { wasm: builtin:jwt-auth }\n  |                 ^^^^^^^^^^^^^^^^\n\n1 fault in a.yaml";
    assert_eq!(report.to_string(), expected);
}

/// A test is written in one line below a sound configuration, whose last line is the 12th.
#[test]
fn tests_of_the_configuration() {
    let cases = [
        ("{}", "14:3 tests[0].name: `name` is missing"),
        (
            "{ name: a, request: { url: /x }, expect: { status: 200 }, expects: {} }",
            "14:61 tests[0].expects: unknown key `expects` | did you mean `expect`?",
        ),
        (
            "{ name: a, request: { url: example.com/x }, expect: { status: 200 } }",
            "14:30 tests[0].request.url: `example.com/x` is neither a URL of http or https nor a path | expected `https://host/path` or a path",
        ),
        (
            "{ name: a, request: { url: /x, methods: GET }, expect: { status: 200 } }",
            "14:34 tests[0].request.methods: unknown key `methods` | did you mean `method`?",
        ),
        (
            "{ name: a, request: { url: /x, method: G T }, expect: { status: 200 } }",
            "14:42 tests[0].request.method: `G T` is not a method | expected a method",
        ),
        (
            "{ name: a, request: { url: /x, client: nobody }, expect: { status: 200 } }",
            "14:42 tests[0].request.client: `nobody` is not an IP address | expected an IP address",
        ),
        (
            "{ name: a, request: { url: /x, country: DE }, expect: { status: 200 } }",
            "14:43 tests[0].request.country: nobody knows where clients are: there is no `geo` | declare a database: `geo: { database: .. }` at the top level",
        ),
        (
            "{ name: a, request: { url: /x, listener: wep }, expect: { status: 200 } }",
            "14:44 tests[0].request.listener: there is no listener `wep` | did you mean `web`?",
        ),
        (
            "{ name: a, request: { url: /x }, origins: { demos: {} }, expect: { status: 200 } }",
            "14:47 tests[0].origins.demos: there is no upstream `demos` | did you mean `demo`?",
        ),
        (
            "{ name: a, request: { url: /x }, origins: { demo: { status: 99 } }, expect: { status: 200 } }",
            "14:63 tests[0].origins.demo.status: `99` is not a number from 200 to 599",
        ),
        (
            "{ name: a, request: { url: /x }, expect: {} }",
            "14:44 tests[0].expect: nothing is expected | write what must come of it: `status: 200`",
        ),
        (
            "{ name: a, request: { url: /x }, expect: { state: 200 } }",
            "14:46 tests[0].expect.state: unknown key `state` | did you mean `status`?",
        ),
        (
            "{ name: a, request: { url: /x }, expect: { route: home } }",
            "14:53 tests[0].expect.route: there is no route `home` | known routes: `none`, `routes[0]`",
        ),
        (
            "{ name: a, request: { url: /x }, expect: { site: b.test } }",
            "14:52 tests[0].expect.site: there is no site `b.test` | did you mean `a.test`?",
        ),
        (
            "{ name: a, request: { url: /x }, expect: { upstream: x } }",
            "14:56 tests[0].expect.upstream: there is no upstream `x` | known upstreams: `demo`, `none`",
        ),
        (
            "{ name: a, request: { url: /x }, expect: { headers: { x: {} } } }",
            "14:60 tests[0].expect.headers.x: nothing is said about the value | write one of `prefix`, `regex` and `present`",
        ),
    ];
    for (test, expected) in cases {
        let text = format!("{}tests:\n- {test}\n", SOUND.text());
        let found: Vec<String> = faults_of(&text).iter().map(line).collect();
        assert!(found.iter().any(|found| found == expected), "for `{test}`: {found:#?}");
    }
    let twice = "- { name: a, request: { url: / }, expect: { status: 200 } }\n".repeat(2);
    let found: Vec<String> = faults_of(&format!("{}tests:\n{twice}", SOUND.text())).iter().map(line).collect();
    assert_eq!(found, ["15:3 tests[1]: another test has the same name"]);
}
