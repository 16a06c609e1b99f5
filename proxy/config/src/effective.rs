//! A configuration as it is in effect, to be shown: all files in one, `like` followed, defaults filled in, secrets left out.
//!
//! It is made from the files' trees instead of from the [`Config`](crate::Config), so that nothing of it can come from the environment or from a secret
//! file, and that a key cannot be forgotten. Texts are read again from memory; what was loaded is what is shown.

mod diff;

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::{Arc, LazyLock};

use aho_corasick::AhoCorasick;
use serde_json::{Map, Number, Value};

pub use self::diff::{Change, Difference};
use crate::cache::CacheMemory;
use crate::listeners::limits::OF_HTTP;
use crate::schema::schema;
use crate::tree::{self, Data, Entry, Kind, MAX_NODES, Node};
use crate::values::ByteSize;

/// What stands for a secret.
pub const REDACTED: &str = "<redacted>";

/// The texts that a configuration was read from, in the order they were read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sources(pub(crate) Vec<(Arc<Path>, Arc<str>)>);

/// A value of the effective configuration. Its `Display` is YAML, which loads as the same configuration if nothing is redacted.
#[derive(Debug, Clone, PartialEq)]
pub enum Effective {
    /// Nothing.
    Null,
    /// A truth value.
    Bool(bool),
    /// A number.
    Number(Number),
    /// Text, as it is written.
    Text(String),
    /// What variables of the environment have a part in, as it is written: `${NAME:-default}`.
    Variable(String),
    /// What must not be shown. Two of one secret are equal.
    Secret(Secret),
    /// A list.
    List(Vec<Effective>),
    /// A mapping, in the order it is written; defaults last.
    Map(Vec<(String, Effective)>),
}

/// Stands for a secret: equal if that is, and nothing else can be learnt from it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret(u64);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl Secret {
    fn of(text: &str) -> Self {
        /// Made anew for each process.
        static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Self(KEY.hash_one(text))
    }
}

/// The sections, in the order they are shown.
const SECTIONS: [&str; 10] =
    ["node", "admin", "telemetry", "listeners", "geo", "cache", "cluster", "upstreams", "filters", "sites"];

/// The effective configuration of these texts, which were loaded without a fault.
pub(crate) fn of(sources: &Sources) -> Effective {
    let mut sections: BTreeMap<&str, Effective> = BTreeMap::new();
    let mut secrets = Vec::new();
    let mut nodes_left = MAX_NODES;
    for (file, text) in &sources.0 {
        // Variables are shown as they are written: what they hold is of no interest, as long as there is something.
        let environment = |_: &str| Some("x".to_owned());
        let Some(root) = tree::parse(file, text, &environment, &mut nodes_left, &mut Vec::new()) else { continue };
        let Data::Map(entries) = &root.data else { continue };
        for entry in entries {
            let Some(section) = SECTIONS.iter().copied().find(|section| *section == entry.key) else { continue };
            let value = shown(&entry.value, Context::of_section(section), &mut secrets);
            match (sections.get_mut(section), value) {
                (Some(Effective::Map(all)), Effective::Map(more)) => all.extend(more),
                (Some(Effective::List(all)), Effective::List(more)) => all.extend(more),
                (_, value) => drop(sections.insert(section, value)),
            }
        }
    }
    sections.get_mut("upstreams").into_iter().for_each(follow_like);
    sections.get_mut("cache").into_iter().for_each(limit_objects);
    let filters = sections.get("filters").cloned();
    for section in ["sites", "listeners"] {
        if let (Some(value), Some(filters)) = (sections.get_mut(section), &filters) {
            merge_uses(value, filters);
        }
    }

    let mut all = vec![("version".to_owned(), Effective::Number(1.into()))];
    all.extend(SECTIONS.into_iter().filter_map(|name| Some((name.to_owned(), sections.remove(name)?))));
    let mut all = Effective::Map(all);
    let schema = schema();
    fill(&mut all, &schema, &schema["$defs"]);
    all.get_mut("listeners").into_iter().for_each(leave_out_http);
    // A secret that is written once more, where its name does not tell what it is.
    secrets.retain(|secret| secret.len() >= SHORTEST_COPY);
    secrets.sort_unstable();
    secrets.dedup();
    match AhoCorasick::new(&secrets) {
        Ok(secrets) => hide_copies(&mut all, &secrets),
        // More text than it can look for at once: then nothing is shown.
        Err(_) => all = Effective::Secret(Secret::of("")),
    }
    all
}

/// Shorter ones could be part of anything.
const SHORTEST_COPY: usize = 6;

/// What a value stands in, as far as that tells whether it is a secret.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Context {
    /// Keys are names that somebody chose: their values are in the context that follows.
    Names(&'static Context),
    /// Keys of the grammar.
    Grammar,
    /// Settings of a filter: keys are the filter's.
    Settings,
    /// All of it is a secret.
    Secret,
}

impl Context {
    fn of_section(section: &str) -> Self {
        match section {
            "listeners" | "upstreams" | "filters" => Self::Names(&Self::Grammar),
            _ => Self::Grammar,
        }
    }

    /// What the value of a key stands in.
    fn below(self, key: &str, is_scalar: bool) -> Self {
        match self {
            Self::Names(inner) => *inner,
            Self::Secret => Self::Secret,
            Self::Grammar => match key {
                "config" | "vm_config" => Self::Settings,
                // Modules read credentials from there.
                "environment" => Self::Secret,
                // A list of uses: each a name, or a name with settings.
                "filters" | "origin_filters" => Self::Names(&Self::Settings),
                // What `trace` compares with.
                "value" if is_scalar => Self::Secret,
                key if is_secret(key) => Self::Secret,
                _ => Self::Grammar,
            },
            Self::Settings if is_secret(key) || key.eq_ignore_ascii_case("key") => Self::Secret,
            Self::Settings => Self::Settings,
        }
    }
}

/// Whether the name of a key says that its value is a secret. The path of a file is none.
fn is_secret(key: &str) -> bool {
    const WORDS: [&str; 12] = [
        "secret",
        "secrets",
        "token",
        "tokens",
        "password",
        "passwd",
        "passphrase",
        "credential",
        "credentials",
        "keys",
        "authorization",
        "apikey",
    ];
    const PAIRS: [(&str, &str); 6] =
        [("api", "key"), ("private", "key"), ("signing", "key"), ("shared", "key"), ("x", "key"), ("access", "key")];
    let key = key.to_ascii_lowercase();
    let words: Vec<&str> = key.split(['_', '-', '.']).collect();
    if words.last() == Some(&"file") || words.last() == Some(&"files") {
        return false;
    }
    words.iter().any(|word| WORDS.contains(word))
        || words.windows(2).any(|pair| PAIRS.contains(&(pair[0], pair[1])))
        || matches!(key.as_str(), "cookie" | "set-cookie")
}

fn shown(node: &Node, context: Context, secrets: &mut Vec<String>) -> Effective {
    match &node.data {
        Data::Broken => Effective::Null,
        Data::List(items) => Effective::List(items.iter().map(|item| shown(item, context, secrets)).collect()),
        Data::Map(entries) => {
            let entry = |entry: &Entry| {
                let is_scalar = matches!(entry.value.data, Data::Scalar(_));
                // `sticky: { cookie: NAME }` and the names of cookies that are matched are told; their values are not.
                let below = match (&entry.value.data, entry.key.as_str()) {
                    (Data::Map(_), "cookie") if context == Context::Grammar => Context::Secret,
                    (Data::Scalar(_), "cookie") if context == Context::Grammar => Context::Grammar,
                    // `cors: { credentials: true }`: whether, not which.
                    (Data::Scalar(_), "credentials") if context == Context::Grammar => Context::Grammar,
                    _ => context.below(&entry.key, is_scalar),
                };
                (entry.key.clone(), shown(&entry.value, below, secrets))
            };
            Effective::Map(entries.iter().map(entry).collect())
        }
        Data::Scalar(scalar) if context == Context::Secret => {
            secrets.push(scalar.shown().to_owned());
            Effective::Secret(Secret::of(scalar.shown()))
        }
        Data::Scalar(scalar) if scalar.has_variables() => Effective::Variable(scalar.shown().to_owned()),
        Data::Scalar(scalar) => match scalar.kind() {
            Kind::Null => Effective::Null,
            Kind::Bool(value) => Effective::Bool(value),
            Kind::Number(number) => Effective::Number(number),
            Kind::Text | Kind::NotFinite => Effective::Text(scalar.text.clone()),
        },
    }
}

/// Takes away what stands elsewhere as a secret.
fn hide_copies(value: &mut Effective, secrets: &AhoCorasick) {
    match value {
        Effective::Text(text) | Effective::Variable(text) if secrets.is_match(text.as_str()) => {
            *value = Effective::Secret(Secret::of(text));
        }
        Effective::List(items) => items.iter_mut().for_each(|item| hide_copies(item, secrets)),
        Effective::Map(entries) => entries.iter_mut().for_each(|(_, value)| hide_copies(value, secrets)),
        _ => {}
    }
}

/// A store that is smaller than the usual `max_object` keeps objects up to its own size.
fn limit_objects(cache: &mut Effective) {
    let Some(Effective::Map(memory)) = cache.get_mut("memory") else { return };
    let find = |name: &str| memory.iter().find(|(key, _)| key == name).map(|(_, value)| value);
    if let (Some(size @ Effective::Text(text)), None) = (find("size"), find("max_object"))
        && text.parse::<ByteSize>().is_ok_and(|size| size < CacheMemory::default().max_object)
    {
        let size = size.clone();
        memory.push(("max_object".into(), size));
    }
}

/// The settings of `like`, where an upstream has none of its own: all but its servers.
fn follow_like(upstreams: &mut Effective) {
    let Effective::Map(all) = upstreams else { return };
    let written = all.clone();
    let find = |name: &str| written.iter().find(|(known, _)| known == name).map(|(_, value)| value);
    for (_, upstream) in all {
        let mut next = upstream.take("like");
        while let Some(Effective::Text(name)) = next {
            let Some(Effective::Map(shared)) = find(&name) else { break };
            let Effective::Map(own) = upstream else { break };
            for (key, value) in shared.iter().filter(|(key, _)| !matches!(&**key, "endpoints" | "builtin" | "like")) {
                if own.iter().all(|(known, _)| known != key) {
                    own.push((key.clone(), value.clone()));
                }
            }
            next = shared.iter().find(|(key, _)| key == "like").map(|(_, value)| value.clone());
        }
    }
}

/// The settings of every use of a filter, merged over those that are declared.
fn merge_uses(value: &mut Effective, declared: &Effective) {
    match value {
        Effective::List(items) => items.iter_mut().for_each(|item| merge_uses(item, declared)),
        Effective::Map(entries) => {
            for (key, value) in entries {
                match value {
                    Effective::List(uses) if key == "filters" || key == "origin_filters" => {
                        uses.iter_mut().for_each(|one| merge_use(one, declared))
                    }
                    value => merge_uses(value, declared),
                }
            }
        }
        _ => {}
    }
}

fn merge_use(one: &mut Effective, declared: &Effective) {
    let Effective::Map(entries) = one else { return };
    for (name, own) in entries {
        let Some(Effective::Map(base)) = declared.get(name).and_then(|filter| filter.get("config")) else { continue };
        let Effective::Map(own) = own else { continue };
        // `X_file` is another way to write `X`.
        let plain = |key: &str| key.strip_suffix("_file").unwrap_or(key).to_owned();
        let kept: Vec<_> =
            base.iter().filter(|(key, _)| own.iter().all(|(known, _)| plain(known) != plain(key))).cloned().collect();
        own.splice(0..0, kept);
    }
}

/// A listener for TCP has no settings of HTTP: written, they would be faults, so these are defaults.
fn leave_out_http(listeners: &mut Effective) {
    let Effective::Map(listeners) = listeners else { return };
    for (_, listener) in listeners.iter_mut().filter(|(_, listener)| listener.get("tcp").is_some()) {
        listener.take("protocols");
        for key in OF_HTTP {
            listener.get_mut("limits").and_then(|limits| limits.take(key));
        }
        listener.get_mut("tls").and_then(|tls| tls.get_mut("clients")?.take("forward"));
    }
}

/// Fills in the defaults that the schema has, which are the loader's.
fn fill(value: &mut Effective, schema: &Value, defs: &Value) {
    let Some(schema) = shape(schema, defs, value) else { return };
    match value {
        Effective::List(items) => {
            let Some(schema) = schema.get("items") else { return };
            items.iter_mut().for_each(|item| fill(item, schema, defs));
        }
        Effective::Map(entries) => {
            for (key, schema) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
                let written = entries.iter_mut().find(|(known, _)| known == key);
                match (written, schema.get("default")) {
                    (Some((_, value)), _) => fill(value, schema, defs),
                    (None, Some(default)) => {
                        let mut value = Effective::of_json(default);
                        fill(&mut value, schema, defs);
                        entries.push((key.clone(), value));
                    }
                    (None, None) => {}
                }
            }
            if let Some(schema) = schema.get("additionalProperties").filter(|schema| schema.is_object()) {
                entries.iter_mut().for_each(|(_, value)| fill(value, schema, defs));
            }
        }
        _ => {}
    }
}

/// The shape of a value out of those that it may have; `None` where nothing more can be said.
fn shape<'s>(schema: &'s Value, defs: &'s Value, value: &Effective) -> Option<&'s Value> {
    if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
        return shape(defs.get(name.rsplit('/').next()?)?, defs, value);
    }
    if let Some(ways) = schema.get("anyOf").and_then(Value::as_array) {
        return ways.iter().find_map(|way| shape(way, defs, value));
    }
    let fits = match value {
        Effective::List(_) => schema.get("items").is_some(),
        Effective::Map(_) => schema.get("properties").is_some() || schema.get("additionalProperties").is_some(),
        _ => false,
    };
    fits.then_some(schema)
}

impl Effective {
    /// The value of a key, in a mapping.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Self> {
        let Self::Map(entries) = self else { return None };
        entries.iter().find(|(known, _)| known == key).map(|(_, value)| value)
    }

    fn get_mut(&mut self, key: &str) -> Option<&mut Self> {
        let Self::Map(entries) = self else { return None };
        entries.iter_mut().find(|(known, _)| known == key).map(|(_, value)| value)
    }

    fn take(&mut self, key: &str) -> Option<Self> {
        let Self::Map(entries) = self else { return None };
        let place = entries.iter().position(|(known, _)| known == key)?;
        Some(entries.remove(place).1)
    }

    fn of_json(value: &Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(*value),
            Value::Number(number) => Self::Number(number.clone()),
            Value::String(text) => Self::Text(text.clone()),
            Value::Array(items) => Self::List(items.iter().map(Self::of_json).collect()),
            Value::Object(entries) => {
                Self::Map(entries.iter().map(|(key, value)| (key.clone(), Self::of_json(value))).collect())
            }
        }
    }

    /// As JSON.
    #[must_use]
    pub fn to_json(&self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Bool(value) => Value::Bool(*value),
            Self::Number(number) => Value::Number(number.clone()),
            Self::Text(text) | Self::Variable(text) => Value::String(text.clone()),
            Self::Secret(_) => Value::String(REDACTED.into()),
            Self::List(items) => Value::Array(items.iter().map(Self::to_json).collect()),
            Self::Map(entries) => {
                Value::Object(entries.iter().map(|(key, value)| (key.clone(), value.to_json())).collect::<Map<_, _>>())
            }
        }
    }

    /// In one line.
    #[must_use]
    pub fn brief(&self) -> String {
        match self {
            Self::Text(text) | Self::Variable(text) => text.clone(),
            Self::Secret(_) => REDACTED.into(),
            other => other.to_json().to_string(),
        }
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, indent: usize) -> fmt::Result {
        match self {
            Self::Map(entries) if !entries.is_empty() => {
                for (index, (key, value)) in entries.iter().enumerate() {
                    if index > 0 {
                        write!(f, "{:indent$}", "")?;
                    }
                    write!(f, "{}:", word(key))?;
                    value.write_below(f, indent + 2)?;
                }
                Ok(())
            }
            Self::List(items) if !items.is_empty() => {
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        write!(f, "{:indent$}", "")?;
                    }
                    f.write_str("- ")?;
                    item.write(f, indent + 2)?;
                }
                Ok(())
            }
            Self::Map(_) => f.write_str("{}\n"),
            Self::List(_) => f.write_str("[]\n"),
            Self::Null => f.write_str("null\n"),
            Self::Bool(value) => writeln!(f, "{value}"),
            Self::Number(number) => writeln!(f, "{number}"),
            Self::Text(text) => writeln!(f, "{}", word(text)),
            Self::Variable(text) if text.contains('\n') => writeln!(f, "{}", Value::from(text.as_str())),
            Self::Variable(text) => writeln!(f, "{text}"),
            Self::Secret(_) => writeln!(f, "\"{REDACTED}\""),
        }
    }

    /// After a key: a mapping or list begins in a line of its own.
    fn write_below(&self, f: &mut fmt::Formatter<'_>, indent: usize) -> fmt::Result {
        let in_line = match self {
            Self::Map(entries) => entries.is_empty(),
            Self::List(items) => items.is_empty(),
            _ => true,
        };
        if in_line {
            f.write_str(" ")?;
        } else {
            write!(f, "\n{:indent$}", "")?;
        }
        self.write(f, indent)
    }
}

/// Text as YAML: without quotes where it can be nothing else.
fn word(text: &str) -> String {
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '_' | '/'));
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'/'));
    let reserved = ["null", "true", "false"].iter().any(|word| text.eq_ignore_ascii_case(word));
    if begins && plain && !reserved { text.to_owned() } else { Value::from(text).to_string() }
}

impl fmt::Display for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_secrets_are_known() {
        for secret in [
            "secret",
            "client_secret",
            "Token",
            "api_key",
            "x-api-key",
            "keys",
            "private-key",
            "password",
            "db.password",
            "authorization",
            "proxy-authorization",
            "x-key",
            "shared_key",
            "hmac_secret",
        ] {
            assert!(is_secret(secret), "{secret}");
        }
        for told in
            ["secret_file", "jwks_file", "key", "cache_key", "keyboard", "monkey", "issuer", "claims_to_headers"]
        {
            assert!(!is_secret(told), "{told}");
        }
    }
}
