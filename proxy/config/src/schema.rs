//! The grammar as JSON Schema, made from the types it is read into.

use schemars::{
    Schema,
    generate::SchemaSettings,
    transform::{Transform, transform_subschemas},
};
use serde_json::{Map, Value, json};

use crate::load::Config;

/// The JSON Schema (draft 2020-12) of a configuration's first file. Descriptions are the fields' documentation.
///
/// It says what an editor can check: keys, types, units, ranges. Names that must resolve are the loader's.
#[must_use]
pub fn schema() -> Value {
    let settings = SchemaSettings::draft2020_12();
    let settings = settings.with_transform(NoNulls).with_transform(Variables).with_transform(Unwrapped);
    let generator = settings.into_generator();
    generator.into_root_schema_for::<Config>().to_value()
}

/// The schema of an included file: that of the first file without what may stand there only.
#[must_use]
pub fn include_schema() -> Value {
    let mut schema = schema();
    if let Some(root) = schema.as_object_mut() {
        root.remove("required");
        root.insert("title".into(), json!("Selvedge configuration, included file"));
        if let Some(properties) = root.get_mut("properties").and_then(Value::as_object_mut) {
            properties.remove("version");
            properties.remove("node");
        }
    }
    schema
}

/// An optional key is left out, not written as null: takes the null out that `Option` puts in.
#[derive(Clone)]
struct NoNulls;

impl Transform for NoNulls {
    fn transform(&mut self, schema: &mut Schema) {
        if let Some(object) = schema.as_object_mut() {
            if let Some(types) = object.get_mut("type").and_then(Value::as_array_mut) {
                types.retain(|name| name != "null");
                if let [only] = types.as_slice() {
                    let only = only.clone();
                    object.insert("type".into(), only);
                }
            }
            if let Some(words) = object.get_mut("enum").and_then(Value::as_array_mut) {
                words.retain(|word| !word.is_null());
            }
            if let Some(mut choices) = object.remove("anyOf") {
                if let Some(list) = choices.as_array_mut() {
                    list.retain(|choice| choice.get("type") != Some(&json!("null")));
                }
                match choices.as_array_mut().map(Vec::as_mut_slice) {
                    // What stands beside the reference (the field's description) is closer to the reader and wins.
                    Some([Value::Object(only)]) => {
                        for (key, value) in std::mem::take(only) {
                            object.entry(key).or_insert(value);
                        }
                    }
                    _ => drop(object.insert("anyOf".into(), choices)),
                }
            }
        }
        transform_subschemas(self, schema);
    }
}

/// Where a number, a truth value or one of a few words is expected, `${VAR}` is also right.
#[derive(Clone)]
struct Variables;

impl Transform for Variables {
    fn transform(&mut self, schema: &mut Schema) {
        let variable = json!({ "type": "string", "pattern": r"\$\{" });
        let Some(object) = schema.as_object_mut() else { return };

        // A list of documented words: the variable is one more, not one more way to write each.
        if let Some(Value::Array(words)) = object.get("oneOf")
            && words.iter().all(|word| word.get("const").is_some())
        {
            let words: Vec<Value> = words.iter().cloned().chain([variable]).collect();
            object.remove("oneOf");
            object.insert("anyOf".into(), words.into());
            return;
        }
        let is_closed = object.contains_key("enum")
            || object.contains_key("const")
            || matches!(object.get("type").and_then(Value::as_str), Some("integer" | "number" | "boolean"));
        if !is_closed {
            return transform_subschemas(self, schema);
        }
        let (about, rule): (Map<_, _>, Map<_, _>) = std::mem::take(object)
            .into_iter()
            .partition(|(key, _)| matches!(key.as_str(), "description" | "default" | "title"));
        *object = about;
        object.insert("anyOf".into(), json!([rule, variable]));
    }
}

/// Documentation is wrapped where the source is; a reader's window has its own width.
#[derive(Clone)]
struct Unwrapped;

impl Transform for Unwrapped {
    fn transform(&mut self, schema: &mut Schema) {
        if let Some(Value::String(description)) = schema.get_mut("description") {
            let paragraphs: Vec<String> = description.split("\n\n").map(|text| text.replace('\n', " ")).collect();
            *description = paragraphs.join("\n\n");
        }
        transform_subschemas(self, schema);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        path::Path,
        sync::Arc,
    };

    use super::*;
    use crate::Loader;

    /// Every mapping of the grammar, at least once.
    const EVERY_SHAPE: &str = r#"
version: 1
node: { paths: {} }
admin: { bind: 127.0.0.1:4 }
telemetry: { access_log: {}, metrics: { bind: 127.0.0.1:3 }, trace: { header: x-trace, value: 0123456789abcdef } }
listeners:
  web: { bind: 127.0.0.1:1, limits: {}, tls: { certificates: [{ cert: a, key: b }], clients: { mode: require, ca: c } } }
  db: { bind: 127.0.0.1:2, tcp: { upstream: a } }
  old: { bind: 127.0.0.1:5, redirect_to_https: {} }
geo: { database: builtin:test }
cache: { memory: {}, disk: { folders: [{ path: d, size: 1GiB }], admit: all }, collapse: { when_full: forward }, purge: {} }
cluster: { listen: 127.0.0.1:6, tls: { certificate: a, key: b, ca: c }, peers: [{ name: n, address: a:1 }], region: { peers: a:1 }, deadlines: {}, redis: { url: redis://a:1 } }
upstreams:
  a:
    endpoints: [{ addr: a:1 }, { srv: _http._tcp.a }]
    tls: {}
    timeouts: {}
    balance: { consistent_hash: { by: path } }
    sticky: { cookie: c }
    dns: {}
    health_check: { http: {} }
    outlier: { failure_rate: { above: 50% } }
    retries: {}
    limits: { requests: 9 }
    pool: { idle: 9 }
  b: { endpoints: [a:1], health_check: { tcp: {} }, prefer: { by: nearest }, hedge: { after: p95 } }
  c: { endpoints: [a:1], protocol: h2, health_check: { grpc: {} } }
filters:
  f: { wasm: file:f.wasm, limits: {}, isolation: { pool: 2 }, request_body: { peek: 1KiB } }
sites:
- hosts: ["*"]
  routes:
  - { match: { path: /a, header: { a: { present: true } }, geo: {} }, cache: { tags: {}, key: { query: { only: [a] } } }, invalidates: [{ urls: [/b] }], to: a, origin_filters: [f], headers: { request: {} }, rewrite: { path: { regex: a, with: b } } }
  - { match: { path: /b }, redirect: { to: /c } }
  - { match: { path: /d }, split: { upstreams: { a: 1, b: 2 } }, mirror: { to: a }, limits: {}, timeouts: {}, cors: { origins: ["*"] }, compress: [gzip] }
  - { match: { path: /e }, files: { root: e }, compress: { encodings: [br], levels: {} } }
  - { respond: { status: 200 } }
tests:
- { name: t, request: { url: / }, origins: { a: {} }, expect: { status: 200 } }
"#;

    /// The keys of every mapping in the schema, by the mapping's name.
    fn keys_in_schema() -> BTreeMap<String, BTreeSet<String>> {
        let schema = schema();
        let mut shapes: Vec<(String, Value)> = vec![("Config".into(), schema.clone())];
        let defs = schema["$defs"].as_object().cloned().unwrap_or_default();
        shapes.extend(defs);
        let closed = shapes.into_iter().filter(|(_, shape)| {
            shape["additionalProperties"] == json!(false) || shape["unevaluatedProperties"] == json!(false)
        });
        let keys = |shape: &Value| {
            shape["properties"].as_object().cloned().unwrap_or_default().into_iter().map(|(key, _)| key)
        };
        closed
            .map(|(name, shape)| {
                let alternatives = shape["oneOf"].as_array().cloned().unwrap_or_default();
                (name, keys(&shape).chain(alternatives.iter().flat_map(keys)).collect())
            })
            .collect()
    }

    #[test]
    fn the_schema_has_the_keys_that_the_loader_reads_and_no_others() {
        let loader = Loader::new();
        let file: Arc<Path> = Path::new("selvedge.yaml").into();
        let mut cx = loader.cx(&file);
        let config = loader.read(&mut cx, &file, Ok(EVERY_SHAPE.into()));
        assert!(config.is_some() && cx.faults.is_empty(), "{:?}", cx.faults);
        let read: BTreeMap<String, BTreeSet<String>> = cx
            .asked
            .iter()
            .map(|(shape, keys)| ((*shape).to_owned(), keys.iter().map(|key| (*key).to_owned()).collect()))
            .collect();
        assert_eq!(read, keys_in_schema());
    }

    #[test]
    fn what_the_schema_requires_is_what_the_loader_misses() {
        let schema = schema();
        let mut required = BTreeMap::new();
        for (name, shape) in schema["$defs"].as_object().into_iter().flatten() {
            if let Some(keys) = shape.get("required") {
                required.insert(name.as_str(), keys.clone());
            }
        }
        let expected = BTreeMap::from([
            ("ByHash", json!(["consistent_hash"])),
            ("Admin", json!(["bind"])),
            ("CacheDisk", json!(["folders"])),
            ("CertificateFiles", json!(["cert", "key"])),
            ("ClientCertificates", json!(["mode", "ca"])),
            ("ClusterPeer", json!(["name", "address"])),
            ("ClusterTls", json!(["certificate", "key", "ca"])),
            ("Compression", json!(["encodings"])),
            ("ConsistentHash", json!(["by"])),
            ("DiskFolder", json!(["path", "size"])),
            ("FailureRate", json!(["above"])),
            ("Cors", json!(["origins"])),
            ("Files", json!(["root"])),
            ("Filter", json!(["wasm"])),
            ("Geo", json!(["database"])),
            ("Hedge", json!(["after"])),
            ("Listener", json!(["bind"])),
            ("MetricsEndpoint", json!(["bind"])),
            ("Mirror", json!(["to"])),
            ("Peek", json!(["peek"])),
            ("Pool", json!(["pool"])),
            ("Prefer", json!(["by"])),
            ("Redirect", json!(["to"])),
            ("Redis", json!(["url"])),
            ("Region", json!(["peers"])),
            ("Respond", json!(["status"])),
            ("RewritePath", json!(["regex", "with"])),
            ("Site", json!(["hosts", "routes"])),
            ("Split", json!(["upstreams"])),
            ("Sticky", json!(["cookie"])),
            ("Tcp", json!(["upstream"])),
            ("Test", json!(["name", "request", "expect"])),
            ("TestRequest", json!(["url"])),
            ("Tls", json!(["certificates"])),
            ("TraceRequests", json!(["header", "value"])),
        ]);
        assert_eq!(required, expected);
        assert_eq!(schema["required"], json!(["version"]));
    }

    #[test]
    fn a_default_in_the_schema_is_the_loaders_default() {
        let schema = schema();
        let mut visited = BTreeSet::new();
        let mut load = |with_defaults: bool| {
            let mut shape = |name: &'static str, rest: Value| {
                let mut object = rest.as_object().cloned().unwrap_or_default();
                let properties = schema["$defs"][name]["properties"].as_object().cloned().unwrap_or_default();
                let defaults =
                    properties.into_iter().filter_map(|(key, value)| Some((key, value.get("default")?.clone())));
                if with_defaults {
                    visited.insert(name.to_owned());
                    // What is given has defaults of its own inside.
                    for (key, value) in defaults {
                        object.entry(key).or_insert(value);
                    }
                }
                Value::Object(object)
            };
            let clients = shape("ClientCertificates", json!({ "mode": "request", "ca": "ca.pem" }));
            let tls = shape("Tls", json!({ "certificates": "development", "clients": clients }));
            let limits = shape("ListenerLimits", json!({}));
            let mut upstream = shape("Upstream", json!({ "endpoints": [] }));
            let failure_rate = shape("FailureRate", json!({ "above": "10%" }));
            upstream["endpoints"] = json!([shape("WeightedEndpoint", json!({ "addr": "a:1" }))]);
            upstream["tls"] = shape("UpstreamTls", json!({}));
            upstream["timeouts"] = shape("Timeouts", json!({}));
            upstream["outlier"] = shape("Outlier", json!({ "failure_rate": failure_rate }));
            upstream["retries"] = shape("Retries", json!({}));
            upstream["hedge"] = shape("Hedge", json!({ "after": "p95" }));
            upstream["limits"] = shape("UpstreamLimits", json!({ "requests": 9 }));
            upstream["pool"] = shape("UpstreamPool", json!({ "max_age": "1h" }));
            upstream["dns"] = shape("Dns", json!({}));
            let http_probe = shape("HttpProbe", json!({}));
            upstream["health_check"] = shape("HealthCheck", json!({ "http": http_probe }));
            let mut hashed = upstream.clone();
            upstream["prefer"] = shape("Prefer", json!({ "by": "nearest" }));
            hashed["protocol"] = json!("h2");
            hashed["health_check"] = json!({ "grpc": shape("GrpcProbe", json!({})) });
            hashed["balance"] = json!({ "consistent_hash": shape("ConsistentHash", json!({ "by": "path" })) });
            let filter_limits = shape("FilterLimits", json!({}));
            let paths = shape("Paths", json!({}));
            let redirect = shape("Redirect", json!({ "to": "/" }));
            let access_log = shape("AccessLog", json!({}));
            let (tags, purge) = (shape("CacheTags", json!({})), shape("CachePurge", json!({})));
            let (key, levels) = (shape("CacheKey", json!({})), shape("CompressLevels", json!({})));
            let (memory, collapse) = (shape("CacheMemory", json!({})), shape("Collapse", json!({})));
            let redis = shape("Redis", json!({ "url": "redis://a:1" }));
            let invalidate = shape("Invalidate", json!({ "urls": ["/b"] }));
            let deadlines = shape("ClusterDeadlines", json!({}));
            let node_tls = shape("ClusterTls", json!({ "certificate": "a", "key": "b", "ca": "c" }));
            let peer = shape("ClusterPeer", json!({ "name": "n", "address": "a:1" }));
            let names = shape("Dns", json!({}));
            let cluster = json!({
                "dns": names, "listen": "127.0.0.1:6", "tls": node_tls, "peers": [peer], "deadlines": deadlines, "redis": redis,
            });
            let disk = shape("CacheDisk", json!({ "folders": [{ "path": "d", "size": "4GiB" }] }));
            let config = json!({
                "version": 1,
                "node": shape("Node", json!({ "paths": paths })),
                "telemetry": shape("Telemetry", json!({ "access_log": access_log })),
                "listeners": {
                    "web": shape("Listener", json!({ "bind": "127.0.0.1:1", "limits": limits, "tls": tls })),
                    "old": { "bind": "127.0.0.1:2", "redirect_to_https": shape("RedirectToHttps", json!({})) },
                },
                "geo": shape("Geo", json!({ "database": "builtin:test" })),
                "cache": shape("Cache", json!({ "memory": memory, "disk": disk, "collapse": collapse, "purge": purge })),
                "cluster": shape("Cluster", cluster),
                "upstreams": { "a": upstream, "b": hashed },
                "filters": { "f": shape("Filter", json!({ "wasm": "file:f", "limits": filter_limits })) },
                "sites": [{ "hosts": ["*"], "routes": [
                    {
                        "invalidates": [invalidate], "match": shape("Match", json!({})), "cache": shape("CachePolicy", json!({ "tags": tags, "key": key })), "to": "a",
                        "rewrite": shape("Rewrite", json!({ "host": "a" })), "mirror": shape("Mirror", json!({ "to": "a" })),
                    },
                    {
                        "match": { "path": "/f" }, "files": shape("Files", json!({ "root": "f" })),
                        "cors": shape("Cors", json!({ "origins": ["*"] })),
                        "compress": shape("Compression", json!({ "encodings": ["br"], "levels": levels })),
                    },
                    shape("Route", json!({ "match": { "path": "/r" }, "redirect": redirect })),
                ] }],
                "tests": [{
                    "name": "t", "request": shape("TestRequest", json!({ "url": "/" })),
                    "origins": { "a": shape("TestOrigin", json!({})) }, "expect": { "status": 200 },
                }],
            });
            let loaded =
                Loader::new().load_str("a.yaml", &config.to_string()).map(|loaded| format!("{:#?}", loaded.config));
            let loaded = loaded.unwrap_or_else(|report| panic!("{report}"));
            // Positions differ, as the texts do.
            loaded.lines().filter(|line| !line.contains("a.yaml:")).collect::<Vec<_>>().join("\n")
        };
        assert_eq!(load(true), load(false));

        let defs = schema["$defs"].as_object().into_iter().flatten();
        let with_defaults = defs.filter(|(_, shape)| {
            shape["properties"].as_object().into_iter().flatten().any(|(_, property)| property.get("default").is_some())
        });
        for (name, _) in with_defaults {
            assert!(visited.contains(name), "{name} has a default that is not compared");
        }
    }

    #[test]
    fn the_effective_configuration_loads_as_the_same_one() {
        let load = |text: &str| {
            let loaded = Loader::new().load_str("a.yaml", text).unwrap_or_else(|report| panic!("{report}\n{text}"));
            let mut config = loaded.config.clone();
            config.tests.clear(); // They are no part of it.
            let told = format!("{config:#?}");
            let told: Vec<_> = told.lines().filter(|line| !line.contains("a.yaml:")).map(str::to_owned).collect();
            (told, loaded.effective())
        };
        let (first, effective) = load(EVERY_SHAPE);
        // The only secret in it.
        let text = effective.to_string().replace("\"<redacted>\"", "0123456789abcdef");
        let (second, again) = load(&text);
        assert_eq!(first, second, "{text}");
        assert_eq!(again, effective, "{text}");
    }

    #[test]
    fn every_key_is_documented() {
        let schema = schema();
        let shapes = schema["$defs"].as_object().into_iter().flatten().map(|(name, shape)| (name.as_str(), shape));
        for (name, shape) in shapes.chain([("Config", &schema)]) {
            for (key, property) in shape["properties"].as_object().into_iter().flatten() {
                let description = property["description"].as_str().unwrap_or_default();
                assert!(description.len() > 15 && !description.contains('\n'), "{name}.{key}: {description:?}");
            }
        }
        assert!(!schema.to_string().contains("\"null\""), "optional keys are left out, not null");
    }

    #[test]
    fn an_included_file_has_neither_version_nor_node() {
        let schema = include_schema();
        let keys: Vec<&String> = schema["properties"].as_object().into_iter().flatten().map(|(key, _)| key).collect();
        assert_eq!(
            keys,
            [
                "admin",
                "cache",
                "cluster",
                "filters",
                "geo",
                "include",
                "listeners",
                "sites",
                "telemetry",
                "tests",
                "upstreams"
            ]
        );
        assert_eq!(schema.get("required"), None);
    }
}
