//! A schema from a module: untrusted, so bounded and checked before it is used.

use regex::{Regex, RegexBuilder};
use serde_json::Value;

/// How deep a schema may be.
const DEEPEST: usize = 64;
/// The size of a compiled pattern, in bytes.
const PATTERN_SIZE: usize = 1 << 18;

/// The keywords that say something about values and are checked, with the kind of their value.
const CHECKED: &[(&str, Kind)] = &[
    ("$ref", Kind::Text),
    ("additionalProperties", Kind::Schema),
    ("allOf", Kind::Schemas),
    ("anyOf", Kind::Schemas),
    ("const", Kind::Any),
    ("else", Kind::Schema),
    ("enum", Kind::List),
    ("exclusiveMaximum", Kind::Number),
    ("exclusiveMinimum", Kind::Number),
    ("format", Kind::Text),
    ("if", Kind::Schema),
    ("items", Kind::Schema),
    ("maxItems", Kind::Number),
    ("maxLength", Kind::Number),
    ("maxProperties", Kind::Number),
    ("maximum", Kind::Number),
    ("minItems", Kind::Number),
    ("minLength", Kind::Number),
    ("minProperties", Kind::Number),
    ("minimum", Kind::Number),
    ("not", Kind::Schema),
    ("oneOf", Kind::Schemas),
    ("pattern", Kind::Pattern),
    ("patternProperties", Kind::Patterns),
    ("properties", Kind::Named),
    ("propertyNames", Kind::Schema),
    ("required", Kind::List),
    ("then", Kind::Schema),
    ("type", Kind::Types),
    ("writeOnly", Kind::Any),
    ("x-maximum", Kind::Text),
    ("x-minimum", Kind::Text),
    ("$defs", Kind::Named),
];

/// The keywords that would refuse values, and are not checked.
const UNCHECKED: &[&str] = &[
    "$dynamicRef",
    "contains",
    "dependentRequired",
    "dependentSchemas",
    "maxContains",
    "minContains",
    "multipleOf",
    "prefixItems",
    "unevaluatedItems",
    "unevaluatedProperties",
    "uniqueItems",
];

const TYPES: &[&str] = &["array", "boolean", "integer", "null", "number", "object", "string"];

#[derive(Clone, Copy)]
enum Kind {
    Any,
    Text,
    Number,
    List,
    Types,
    Pattern,
    Schema,
    Schemas,
    Named,
    Patterns,
}

/// A schema that is sound.
#[derive(Debug)]
pub(in crate::plan) struct Schema {
    root: Value,
    /// Keywords it has that nobody checks here: what they refuse, only the filter itself does.
    pub(in crate::plan) unchecked: Vec<&'static str>,
}

impl Schema {
    /// Reads a module's section.
    pub(in crate::plan) fn read(json: &str) -> Result<Self, String> {
        // serde_json refuses what is nested deeper than 128.
        let root: Value = serde_json::from_str(json).map_err(|error| format!("it is not JSON: {error}"))?;
        let mut unchecked = Vec::new();
        sound(&root, "#", 0, &mut unchecked)?;
        Ok(Self { root, unchecked })
    }

    pub(super) fn root(&self) -> &Value {
        &self.root
    }

    /// What a `$ref` names: a definition of this very schema. Nothing else is ever looked for.
    pub(super) fn definition(&self, reference: &str) -> Option<&Value> {
        match reference.strip_prefix('#')? {
            "" => Some(&self.root),
            pointer => self.root.pointer(pointer),
        }
    }
}

/// A pattern as JSON Schema means it: anywhere in the text. Linear in the text's length, whatever it says.
pub(super) fn pattern(pattern: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(pattern).size_limit(PATTERN_SIZE).build()
}

fn sound(schema: &Value, place: &str, depth: usize, unchecked: &mut Vec<&'static str>) -> Result<(), String> {
    let members = match schema {
        Value::Bool(_) => return Ok(()),
        Value::Object(members) if depth < DEEPEST => members,
        Value::Object(_) => return Err(format!("it is deeper than {DEEPEST} levels")),
        _ => return Err(format!("{place} is no schema")),
    };
    for (keyword, value) in members {
        if let Some(known) = UNCHECKED.iter().find(|known| *known == keyword)
            && !unchecked.contains(known)
        {
            unchecked.push(known);
        }
        let Some((_, kind)) = CHECKED.iter().find(|(known, _)| known == keyword) else { continue };
        let place = format!("{place}/{keyword}");
        let mut inner = |schema: &Value, place: &str| sound(schema, place, depth + 1, unchecked);
        let fits = match (kind, value) {
            (Kind::Any, _) | (Kind::Number, Value::Number(_)) | (Kind::List, Value::Array(_)) => true,
            (Kind::Text, Value::String(reference)) if keyword == "$ref" => {
                if !reference.starts_with('#') {
                    return Err(format!(
                        "{place} names another document, {reference:?}: nothing is fetched for a schema"
                    ));
                }
                true
            }
            (Kind::Text, Value::String(_)) => true,
            (Kind::Types, Value::String(name)) => TYPES.contains(&name.as_str()),
            (Kind::Types, Value::Array(names)) => {
                names.iter().all(|name| name.as_str().is_some_and(|name| TYPES.contains(&name)))
            }
            (Kind::Pattern, Value::String(text)) => {
                pattern(text).map_err(|error| format!("{place} is no pattern that is read here: {error}"))?;
                true
            }
            (Kind::Schema, value) => {
                inner(value, &place)?;
                true
            }
            (Kind::Schemas, Value::Array(schemas)) => {
                for (index, schema) in schemas.iter().enumerate() {
                    inner(schema, &format!("{place}/{index}"))?;
                }
                !schemas.is_empty()
            }
            (Kind::Named | Kind::Patterns, Value::Object(schemas)) => {
                for (name, schema) in schemas {
                    if matches!(kind, Kind::Patterns) {
                        pattern(name).map_err(|error| format!("{place} has a key that is no pattern: {error}"))?;
                    }
                    inner(schema, &format!("{place}/{name}"))?;
                }
                true
            }
            _ => false,
        };
        if !fits {
            return Err(format!("{place} is not of the form that this keyword has"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_schema_is_refused() {
        let deep = format!("{}true{}", r#"{"items":"#.repeat(70), "}".repeat(70));
        let deeper = "[".repeat(500);
        for (json, why) in [
            ("", "not JSON"),
            ("[]", "# is no schema"),
            (deep.as_str(), "deeper than 64"),
            (deeper.as_str(), "not JSON: recursion limit"),
            (r#"{"$ref": "https://example.com/x.json"}"#, "nothing is fetched"),
            (r#"{"properties": {"a": {"$ref": "file:///etc/passwd"}}}"#, "#/properties/a/$ref names another document"),
            (r#"{"properties": {"a": 1}}"#, "#/properties/a is no schema"),
            (r#"{"minimum": "1"}"#, "#/minimum is not of the form"),
            (r#"{"type": "text"}"#, "#/type is not of the form"),
            (r#"{"pattern": "("}"#, "#/pattern is no pattern"),
            (r#"{"pattern": "(a{1000}){1000}"}"#, "#/pattern is no pattern"),
            (r#"{"patternProperties": {"(": true}}"#, "no pattern"),
            (r#"{"oneOf": []}"#, "#/oneOf is not of the form"),
        ] {
            let error = Schema::read(json).err().unwrap_or_else(|| format!("{json} was accepted"));
            assert!(error.contains(why), "{json}: {error}");
        }
    }

    #[test]
    fn what_nobody_checks_is_told() {
        let schema = Schema::read(r#"{"multipleOf": 2, "items": {"uniqueItems": true}, "title": "x"}"#).unwrap();
        assert_eq!(schema.unchecked, ["uniqueItems", "multipleOf"]);
    }
}
