//! The node and Envoy, each with all filters at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

use super::case::{Case, Filter};
use crate::conformance::hosts::{Host, address, cluster, typed};

/// The name of a case: of its filter on the host, of its listener, and of the site that is asked for.
pub(crate) fn id(filter: &Filter, number: usize) -> String {
    format!("{}-{}", filter.name.replace('_', "-"), number + 1)
}

/// The configuration of a host, and how many listeners it has.
pub(crate) fn config(
    host: &Host,
    filters: &[Filter],
    origin: SocketAddr,
    upstreams: &BTreeMap<String, SocketAddr>,
) -> (String, usize) {
    let cases: Vec<(String, &Filter, &Case)> = filters
        .iter()
        .flat_map(|filter| filter.cases.iter().enumerate().map(move |(at, case)| (id(filter, at), filter, case)))
        .collect();
    match host {
        Host::Selvedge => (node(&cases, origin, upstreams), 1),
        Host::Envoy(_) => (envoy(&cases, origin, upstreams), cases.len()),
    }
}

fn node(cases: &[(String, &Filter, &Case)], origin: SocketAddr, upstreams: &BTreeMap<String, SocketAddr>) -> String {
    let server = |address: SocketAddr| json!({ "endpoints": [address.to_string()] });
    let mut servers = json!({ "origin": server(origin) });
    for (name, address) in upstreams {
        servers[name] = server(*address);
    }
    let mut declared = json!({});
    let mut sites = Vec::new();
    for (id, filter, case) in cases {
        // The suite runs on busy machines, without optimisation.
        let mut entry = json!({
            "wasm": format!("file:{}", filter.module.display()),
            "limits": { "deadline": "10s", "memory": "64MiB" },
        });
        if let Some(config) = &case.config {
            entry["config"] = config.clone();
        }
        declared[id] = entry;
        sites.push(json!({ "hosts": [format!("{id}.test")], "routes": [{ "filters": [id], "to": "origin" }] }));
    }
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-modules");
    let config = json!({
        "version": 1,
        "node": { "name": "portable", "workers": 1, "shutdown_grace": "1s", "module_cache": modules },
        "telemetry": { "access_log": { "output": "off" } },
        "listeners": { "web": { "bind": "127.0.0.1:0" } },
        "upstreams": servers,
        "filters": declared,
        "sites": sites,
    });
    format!("{config:#}")
}

fn envoy(cases: &[(String, &Filter, &Case)], origin: SocketAddr, upstreams: &BTreeMap<String, SocketAddr>) -> String {
    let any_port = || address(SocketAddr::from(([127, 0, 0, 1], 0)));
    let listener = |(id, filter, case): &(String, &Filter, &Case)| {
        let text = case.config.as_ref().map(Value::to_string).unwrap_or_default();
        let plugin = json!({
            "name": id,
            "vm_config": {
                "vm_id": id,
                "runtime": "envoy.wasm.runtime.v8",
                "code": { "local": { "filename": filter.module.display().to_string() } },
            },
            "configuration": { "@type": "type.googleapis.com/google.protobuf.StringValue", "value": text },
            "failure_policy": "FAIL_RELOAD",
            // What the SDK asks for: without it, nobody who holds the headers sees the body.
            "allow_on_headers_stop_iteration": true,
        });
        let filters = json!([
            typed(id, "envoy.extensions.filters.http.wasm.v3.Wasm", json!({ "config": plugin })),
            typed(
                "router",
                "envoy.extensions.filters.http.router.v3.Router",
                json!({ "suppress_envoy_headers": true })
            ),
        ]);
        let routes = json!([{ "match": { "prefix": "/" }, "route": { "cluster": "origin", "timeout": "10s" } }]);
        let connections = typed(
            "http",
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            json!({
                "stat_prefix": id,
                "generate_request_id": false,
                "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }] },
                "http_filters": filters,
            }),
        );
        json!({ "name": id, "address": any_port(), "filter_chains": [{ "filters": [connections] }] })
    };
    let clusters = upstreams.iter().map(|(name, address)| cluster(name, *address, false));
    json!({
        "node": { "id": "portable", "cluster": "portable" },
        "admin": { "address": any_port() },
        "static_resources": {
            "listeners": cases.iter().map(listener).collect::<Vec<_>>(),
            "clusters": clusters.chain([cluster("origin", origin, false)]).collect::<Vec<_>>(),
        },
    })
    .to_string()
}
