//! The settings of filters, against the JSON Schema that their module brings: every fault at its place in the YAML, before anything starts.

mod schema;

mod validate;

use selvedge_config::{Config, Fault, FilterUse, suggest};
use serde_json::{Map, Value};

pub(super) use self::schema::Schema;
use self::validate::{Finding, What};

/// What is wrong with the settings at this place of a chain.
pub(super) fn check(schema: &Schema, used: &FilterUse, config: &Config) -> Vec<Fault> {
    let upstreams: Vec<&str> = config.upstreams.keys().map(String::as_str).collect();
    // A filter that is told nothing has settings all the same: none.
    let nothing = Value::Object(Map::new());
    let settings = if used.config.is_null() { &nothing } else { &used.config };
    let findings = validate::findings(schema, settings, &upstreams);
    findings.into_iter().map(|finding| fault(used, finding, &upstreams)).collect()
}

fn fault(used: &FilterUse, finding: Finding, upstreams: &[&str]) -> Fault {
    let Finding { pointer, secret, what } = finding;
    let path = path(&pointer);
    let shown = |text: &str| if secret || used.is_secret(&pointer) { None } else { Some(format!("`{}`", brief(text))) };
    let named = if path.is_empty() { "the settings".to_owned() } else { format!("`{path}`") };
    let mut position = used.position_of(&pointer);
    let (message, help) = match what {
        What::UnknownKey { key, known } => {
            position = used.key_position_of(&format!("{pointer}/{}", escaped(&key)));
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            let help = if known.is_empty() { "there are none".into() } else { suggest("settings", &key, &known) };
            let of = if path.is_empty() { "there is".to_owned() } else { format!("{named} has") };
            (format!("{of} no setting `{}`", brief(&key)), Some(help))
        }
        What::Missing(key) => {
            let place = if path.is_empty() { String::new() } else { format!(" in {named}") };
            (format!("the setting `{key}` is missing{place}"), None)
        }
        What::NoUpstream(name) => {
            let name_shown = shown(&name).unwrap_or_else(|| "of this name".into());
            (format!("{named}: there is no upstream {name_shown}"), Some(suggest("upstreams", &name, upstreams)))
        }
        What::NoWord { word, words } => {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let word_shown = shown(&word).unwrap_or_else(|| "this".into());
            (format!("{named}: {word_shown} is none of its values"), Some(suggest("values", &word, &words)))
        }
        What::Wrong { value, says, help } => {
            let not = value.as_deref().and_then(shown).map(|value| format!(", not {value}")).unwrap_or_default();
            (format!("{named} {says}{not}"), help.map(str::to_owned))
        }
    };
    let fault = Fault::at(position, format!("filter {}: {message}", used.name)).with_key(path);
    match help {
        Some(help) => fault.with_help(help),
        None => fault,
    }
}

/// `/variants/0/weight` as `variants[0].weight`.
fn path(pointer: &str) -> String {
    let mut path = String::new();
    for step in pointer.split('/').skip(1) {
        let step = step.replace("~1", "/").replace("~0", "~");
        if step.bytes().all(|byte| byte.is_ascii_digit()) {
            path = format!("{path}[{step}]");
        } else {
            let dot = if path.is_empty() { "" } else { "." };
            path = format!("{path}{dot}{step}");
        }
    }
    path
}

fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// A value for a message of one line.
fn brief(text: &str) -> String {
    const MOST: usize = 60;
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MOST).collect();
    if text.chars().count() > MOST { format!("{clean}…") } else { clean }
}
