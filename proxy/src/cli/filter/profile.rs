//! The profile that a filter is built with, and what it lacks for a small and fast module.

use std::path::Path;

use toml_edit::{DocumentMut, Item};

/// What a filter's profile should say: key, good values, and what they are good for.
const WANTED: [(&str, &[&str], &str); 5] = [
    ("opt-level", &["3", "2", "s", "z"], "code that is fast (3) or small (\"s\")"),
    ("lto", &["fat", "true"], "leaves out what is never called, in all crates at once"),
    ("codegen-units", &["1"], "smaller and faster code"),
    ("panic", &["abort"], "leaves out unwinding, which wasm has not"),
    ("strip", &["debuginfo"], "leaves out DWARF and keeps the names of functions, which traps tell"),
];

/// What cargo's own `release` says where a manifest says nothing.
const RELEASE: [(&str, &str); 1] = [("opt-level", "3")];

/// Something a profile lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lack {
    /// `lto = "fat"`
    pub(super) line: String,
    pub(super) why: &'static str,
    /// What it says instead, if it says something.
    pub(super) instead: Option<String>,
}

/// What the profile of a workspace lacks. A manifest that cannot be read lacks nothing: cargo has said what is wrong with it.
pub(super) fn lacks(workspace: &Path, profile: &str) -> Vec<Lack> {
    let manifest = std::fs::read_to_string(workspace.join("Cargo.toml")).unwrap_or_default();
    manifest.parse::<DocumentMut>().map(|manifest| lacks_of(&manifest, profile)).unwrap_or_default()
}

fn lacks_of(manifest: &DocumentMut, profile: &str) -> Vec<Lack> {
    WANTED
        .iter()
        .filter_map(|(key, good, why)| {
            let said = says(manifest, profile, key);
            let is_good = said.as_deref().is_some_and(|said| good.contains(&said));
            let value = good.first().filter(|_| !is_good)?;
            let quoted = if value.parse::<u8>().is_ok() { (*value).to_owned() } else { format!("{value:?}") };
            Some(Lack { line: format!("{key} = {quoted}"), why, instead: said })
        })
        .collect()
}

/// The value of a key in a profile, or in those it inherits from.
fn says(manifest: &DocumentMut, profile: &str, key: &str) -> Option<String> {
    let mut profile = profile.to_owned();
    // Cargo refuses circles; this is a bound all the same.
    for _ in 0..8 {
        let table = manifest.get("profile").and_then(|profiles| profiles.get(&profile));
        if let Some(value) = table.and_then(|table| table.get(key)) {
            return text(value);
        }
        match table.and_then(|table| table.get("inherits")).and_then(Item::as_str) {
            Some(parent) => profile = parent.to_owned(),
            None => break,
        }
    }
    let default = RELEASE.iter().find(|(known, _)| profile == "release" && *known == key);
    default.map(|(_, value)| (*value).to_owned())
}

fn text(value: &Item) -> Option<String> {
    let value = value.as_value()?;
    let whole = || value.as_integer().map(|number| number.to_string());
    value.as_str().map(str::to_owned).or_else(whole).or_else(|| value.as_bool().map(|truth| truth.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(manifest: &str, profile: &str) -> Vec<String> {
        let lacks = lacks_of(&manifest.parse().unwrap(), profile);
        lacks.into_iter().map(|lack| lack.line).collect()
    }

    #[test]
    fn what_a_profile_lacks_is_told_as_lines_to_write() {
        let all = ["lto = \"fat\"", "codegen-units = 1", "panic = \"abort\"", "strip = \"debuginfo\""];
        assert_eq!(lines("[package]\nname = \"x\"", "release"), all);
        let good = "[profile.release]\nopt-level = \"s\"\nlto = true\ncodegen-units = 1\npanic = \"abort\"\nstrip = \"debuginfo\"\n";
        assert_eq!(lines(good, "release"), Vec::<String>::new());
        let inherits = format!("{good}[profile.wasm]\ninherits = \"release\"\nopt-level = 0\n");
        assert_eq!(lines(&inherits, "wasm"), ["opt-level = 3"]);
        let lacks = lacks_of(&"[profile.release]\nstrip = true\n".parse().unwrap(), "release");
        assert_eq!(lacks.last().unwrap().instead.as_deref(), Some("true"));
    }
}
