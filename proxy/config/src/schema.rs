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
    let generator = SchemaSettings::draft2020_12().with_transform(NoNulls).with_transform(Variables).into_generator();
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
        transform_subschemas(self, schema);
        let Some(object) = schema.as_object_mut() else { return };
        let is_closed = object.contains_key("enum")
            || object.contains_key("const")
            || matches!(object.get("type").and_then(Value::as_str), Some("integer" | "number" | "boolean"));
        if !is_closed {
            return;
        }
        let (about, rule): (Map<_, _>, Map<_, _>) = std::mem::take(object)
            .into_iter()
            .partition(|(key, _)| matches!(key.as_str(), "description" | "default" | "title"));
        *object = about;
        object.insert("anyOf".into(), json!([rule, { "type": "string", "pattern": r"\$\{" }]));
    }
}
