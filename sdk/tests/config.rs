//! `#[derive(Config)]`: what settings accept, how their faults read, and what the schema says.

#![allow(missing_docs, clippy::unwrap_used, clippy::float_cmp, dead_code, reason = "a test")]

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use selvedge_sdk::config::{Json, parse, schema};
use selvedge_sdk::prelude::*;
use serde_json::{Value, json};

/// Everything a setting can be.
#[derive(Config)]
struct Everything {
    /// How many.
    ///
    /// A second "paragraph",
    /// in two lines.
    #[config(min = 1, max = 10)]
    count: u8,
    #[config(default = -1, min = -5)]
    offset: i32,
    #[config(default = 0.5, min = 0, max = 1)]
    share: f64,
    #[config(default = true)]
    on: bool,
    #[config(default = "250ms", min = "1ms", max = "5s")]
    timeout: Duration,
    #[config(default = "64KiB", max = "1MiB")]
    size: ByteSize,
    #[config(default = "x-api-key")]
    header: HeaderName,
    #[config(default = "no-store")]
    value: HeaderValue,
    #[config(default = "public")]
    wire: selvedge_sdk::http::HeaderValue,
    #[config(default = ["GET", "HEAD"], max_len = 3)]
    methods: Vec<Method>,
    #[config(default = 403)]
    status: StatusCode,
    upstream: Option<Upstream>,
    #[config(default = "/")]
    uri: Uri,
    ip: Option<IpAddr>,
    #[config(min_len = 2, max_len = 4, pattern = "^[a-z]+$")]
    word: Option<String>,
    #[config(secret, min_len = 32)]
    secret: Option<String>,
    #[config(default)]
    names: HashMap<HeaderName, String>,
    #[config(default, max_len = 1)]
    limits: BTreeMap<String, Limit>,
    #[config(default)]
    limit: Limit,
    #[config(default = "let_pass")]
    failure: Failure,
    #[config(default)]
    key: Key,
    #[config(rename = "type")]
    kind: Option<Action>,
    #[config(default = "2x3")]
    pair: Pair,
    #[config(serde, schema = r#"{"type": "array"}"#)]
    tuple: Option<(u8, u8)>,
    #[config(default = vec![1, 2])]
    computed: Vec<u16>,
    anything: Option<Value>,
}

#[derive(Config, Debug, PartialEq)]
#[config(default)]
struct Limit {
    /// At once.
    #[config(default = 5)]
    burst: u32,
}

/// What happens.
#[derive(Config, Debug, Default, PartialEq)]
enum Failure {
    /// It is refused.
    #[default]
    Deny,
    LetPass,
}

#[derive(Config, Debug, Default, PartialEq)]
enum Key {
    #[default]
    ClientIp,
    /// This header.
    Header(HeaderName),
    Hash {
        #[config(default = 8, max = 64)]
        bits: u8,
    },
}

#[derive(Config, Debug, PartialEq)]
#[config(tag = "kind")]
enum Action {
    Allow,
    Redirect { location: String },
}

#[derive(Config, Debug, PartialEq)]
#[config(from_str, pattern = "^[0-9]+x[0-9]+$")]
struct Pair(u8, u8);

impl FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (a, b) = text.split_once('x').ok_or_else(|| format!("{text:?} is no pair"))?;
        Ok(Self(a.parse().map_err(|_| "a")?, b.parse().map_err(|_| "b")?))
    }
}

fn read(value: &Value) -> Result<Everything, String> {
    parse(value.to_string().as_bytes())
}

#[test]
fn what_is_not_written_has_its_default() {
    let all = read(&json!({"count": 3})).unwrap();
    assert_eq!((all.count, all.offset, all.share, all.on), (3, -1, 0.5, true));
    assert_eq!((all.timeout, all.size), (Duration::from_millis(250), ByteSize::new(65_536)));
    assert_eq!((all.header.as_str(), all.value.as_bytes()), ("x-api-key", &b"no-store"[..]));
    assert_eq!((all.methods, all.status), (vec![Method::GET, Method::HEAD], StatusCode::FORBIDDEN));
    assert_eq!((all.upstream, all.uri.path(), all.ip, all.word, all.secret), (None, "/", None, None, None));
    assert!(all.names.is_empty() && all.limits.is_empty());
    assert_eq!((all.limit, all.failure, all.key), (Limit { burst: 5 }, Failure::LetPass, Key::ClientIp));
    assert_eq!((all.kind, all.pair, all.tuple, all.computed), (None, Pair(2, 3), None, vec![1, 2]));
}

#[test]
fn what_is_written_is_read() {
    let all = read(&json!({
        "count": 1, "timeout": "5s", "methods": ["PURGE"], "upstream": "authz", "ip": "::1", "names": {"X-A": "1"},
        "limits": {"a": {"burst": 1}}, "failure": "deny", "key": {"header": "X-User"}, "word": null,
        "type": {"kind": "redirect", "location": "/"}, "pair": "4x5", "tuple": [1, 2], "anything": {"a": [1]},
    }));
    let all = all.unwrap();
    assert_eq!(all.upstream.unwrap().name(), "authz");
    assert_eq!((all.methods[0].as_str(), all.timeout), ("PURGE", Duration::from_secs(5)));
    assert_eq!((all.ip, all.word), (Some(IpAddr::from_str("::1").unwrap()), None));
    assert_eq!((all.names[&HeaderName::from_static("x-a")].as_str(), all.limits["a"].burst), ("1", 1));
    assert_eq!((all.failure, all.key), (Failure::Deny, Key::Header(HeaderName::from_static("x-user"))));
    assert_eq!(all.kind, Some(Action::Redirect { location: "/".into() }));
    assert_eq!((all.pair, all.tuple, all.anything), (Pair(4, 5), Some((1, 2)), Some(json!({"a": [1]}))));
    let hash = read(&json!({"count": 1, "key": {"hash": {}}})).unwrap();
    assert_eq!(hash.key, Key::Hash { bits: 8 });
}

#[test]
fn a_fault_names_the_field_and_what_was_expected() {
    let with = |name: &str, value: Value| {
        let mut all = json!({"count": 1});
        all[name] = value;
        all
    };
    for (value, expected) in [
        (json!({}), "missing field `count`"),
        (json!([]), "a map of settings"),
        (with("count", json!(0)), "`count`: must be at least 1"),
        (with("count", json!(11)), "`count`: must be at most 10"),
        (with("count", json!("1")), "`count`: invalid type: string \"1\", expected u8"),
        (with("offset", json!(-6)), "`offset`: must be at least -5"),
        (with("share", json!(1.5)), "`share`: must be at most 1"),
        (with("timeout", json!("6s")), "`timeout`: must be at most 5s"),
        (with("timeout", json!("0s")), "`timeout`: must be at least 1ms"),
        (with("timeout", json!(5)), "`timeout`: invalid type: integer `5`, expected a duration"),
        (with("size", json!("2MiB")), "`size`: must be at most 1MiB"),
        (with("header", json!("a b")), "`header`: invalid value: string \"a b\", expected the name of a header"),
        (with("value", json!("a\nb")), "`value`: invalid value"),
        (
            with("methods", json!(["GET", "G T"])),
            "`methods[1]`: invalid value: string \"G T\", expected a request method",
        ),
        (with("methods", json!(["A", "B", "C", "D"])), "`methods`: must have at most 3 entries"),
        (with("status", json!(99)), "`status`: 99 is no status code"),
        (with("upstream", json!(" ")), "`upstream`: names no upstream"),
        (with("word", json!("a")), "`word`: must have at least 2 characters"),
        (with("word", json!("äöüßa")), "`word`: must have at most 4 characters"),
        (with("names", json!({"a b": "1"})), "expected the name of a header"),
        (with("limits", json!({"a": {"burst": -1}})), "`limits.a.burst`: invalid value: integer `-1`, expected u32"),
        (with("limits", json!({"a": {}, "b": {}})), "`limits`: must have at most 1 entry"),
        (with("limit", json!({"bust": 1})), "`limit.bust`: unknown field `bust`, expected `burst`"),
        (with("failure", json!("shrug")), "`failure`: unknown variant `shrug`, expected `deny` or `let_pass`"),
        (with("key", json!({"hash": {"bits": 65}})), "must be at most 64"),
        (with("key", json!({"header": ""})), "expected the name of a header"),
        (with("type", json!({"kind": "allow", "x": 1})), "`type`: "),
        (with("pair", json!("2-3")), "`pair`: \"2-3\" is no pair"),
        (with("colour", json!(1)), "`colour`: unknown field `colour`"),
    ] {
        let error = read(&value).err().unwrap_or_else(|| format!("{value} was accepted"));
        assert!(error.contains(expected), "{value}: {error}");
    }
}

#[test]
fn a_secret_is_in_no_message() {
    for secret in [json!("hunter2"), json!({"hunter2": 1}), json!(["hunter2"])] {
        let error = read(&json!({"count": 1, "secret": secret})).err().unwrap();
        assert!(error.starts_with("`secret`: ") && !error.contains("hunter2"), "{error}");
    }
}

#[test]
fn the_schema_says_what_is_accepted() {
    let schema: Value = serde_json::from_str(&schema::<Everything>()).unwrap();
    let expected = json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["count"],
        "description": "Everything a setting can be.",
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "properties": schema["properties"],
    });
    assert_eq!(schema, expected);

    let limit = json!({
        "type": "object", "additionalProperties": false,
        "properties": {"burst": {"type": "integer", "minimum": 0, "maximum": 4_294_967_295_u32, "default": 5, "description": "At once."}},
    });
    let mut limit_by_default = limit.clone();
    limit_by_default["default"] = json!({});
    let token = "^[-!#$%&'*+.^_`|~0-9A-Za-z]+$";
    let header = json!({"type": "string", "format": "selvedge-header-name", "pattern": token});
    let wrapped = |name: &str, inner: Value| json!({"type": "object", "properties": {name: inner}, "required": [name], "additionalProperties": false});
    let mut by_header = wrapped("header", header.clone());
    by_header["description"] = json!("This header.");
    let hash = json!({
        "type": "object", "additionalProperties": false,
        "properties": {"bits": {"type": "integer", "minimum": 0, "maximum": 64, "default": 8}},
    });
    for (name, expected) in [
        (
            "count",
            json!({"type": "integer", "minimum": 1, "maximum": 10,
            "description": "How many.\n\nA second \"paragraph\", in two lines."}),
        ),
        ("offset", json!({"type": "integer", "minimum": -5, "maximum": 2_147_483_647, "default": -1})),
        ("share", json!({"type": "number", "minimum": 0, "maximum": 1, "default": 0.5})),
        (
            "timeout",
            json!({"type": "string", "format": "selvedge-duration", "pattern": "^[0-9]+(ms|s|m|h|d)$",
            "default": "250ms", "x-minimum": "1ms", "x-maximum": "5s"}),
        ),
        (
            "methods",
            json!({"type": "array", "default": ["GET", "HEAD"], "maxItems": 3,
            "items": {"type": "string", "format": "selvedge-method", "pattern": token}}),
        ),
        ("upstream", json!({"type": ["string", "null"], "format": "selvedge-upstream", "minLength": 1})),
        ("secret", json!({"type": ["string", "null"], "minLength": 32, "writeOnly": true})),
        ("word", json!({"type": ["string", "null"], "minLength": 2, "maxLength": 4, "pattern": "^[a-z]+$"})),
        (
            "names",
            json!({"type": "object", "propertyNames": header, "additionalProperties": {"type": "string"}, "default": {}}),
        ),
        ("limits", json!({"type": "object", "additionalProperties": limit, "default": {}, "maxProperties": 1})),
        ("limit", limit_by_default),
        (
            "failure",
            json!({"type": "string", "enum": ["deny", "let_pass"], "enumDescriptions": ["It is refused.", ""],
            "description": "What happens.", "default": "let_pass"}),
        ),
        (
            "key",
            json!({"default": "client_ip", "oneOf": [
            {"type": "string", "enum": ["client_ip"], "enumDescriptions": [""]}, by_header, wrapped("hash", hash)]}),
        ),
        (
            "type",
            json!({"oneOf": [
            {"type": "object", "properties": {"kind": {"const": "allow"}}, "required": ["kind"], "additionalProperties": false},
            {"type": "object", "properties": {"kind": {"const": "redirect"}, "location": {"type": "string"}},
                "required": ["kind", "location"], "additionalProperties": false},
            {"type": "null"}]}),
        ),
        ("pair", json!({"type": "string", "pattern": "^[0-9]+x[0-9]+$", "default": "2x3"})),
        ("tuple", json!({"type": "array"})),
        ("computed", json!({"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 65_535}})),
        ("anything", json!({})),
    ] {
        assert_eq!(schema["properties"][name], expected, "{name}");
    }
}

#[test]
fn a_schema_is_made_while_the_filter_is_compiled() {
    const SCHEMA: Json = selvedge_sdk::config::Root::<Everything>::SCHEMA;
    static SECTION: [u8; SCHEMA.length()] = SCHEMA.bytes();
    assert_eq!(SECTION, *schema::<Everything>().as_bytes());
}

#[test]
fn nothing_reads_as_no_settings() {
    for (json, valid) in
        [("", true), (" {} ", true), ("null", true), (r#"{"a":1}"#, false), ("{", false), ("{} x", false)]
    {
        assert_eq!(parse::<()>(json.as_bytes()).is_ok(), valid, "{json}");
    }
    assert_eq!(parse::<Limit>(b"").unwrap(), Limit::default());
}
