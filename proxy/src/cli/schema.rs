//! `selvedge schema`: what a configuration may be, for editors.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use selvedge_config::{Config, Fault, Filter, Report, WasmSource};
use serde_json::{Map, Value, json};

use super::{complain, faulty, print};
use crate::{bundled, node};

#[derive(Args)]
pub(super) struct SchemaArgs {
    /// The schema of included files instead: the same keys, none required.
    #[arg(long)]
    include: bool,
    /// With the settings of the filters that this configuration declares, as far as their modules tell them.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(args: &SchemaArgs) -> ExitCode {
    let mut schema = if args.include { selvedge_config::include_schema() } else { selvedge_config::schema() };
    if let Some(file) = &args.config {
        let loaded = match node::loader().load(file) {
            Ok(loaded) => loaded,
            Err(report) => return faulty(&report),
        };
        let mut faults = Vec::new();
        let settings = settings(&loaded.config, &mut faults);
        if !faults.is_empty() {
            return faulty(&Report::new(file, faults));
        }
        if embed(&mut schema, &settings).is_none() {
            return complain("the schema has no place for the settings of filters\n", ExitCode::FAILURE);
        }
    }
    print(format_args!("{schema:#}\n"))
}

/// The schema of each filter's settings, by the filter's name.
fn settings(config: &Config, faults: &mut Vec<Fault>) -> Map<String, Value> {
    let mut schemas = Map::new();
    for (name, filter) in &config.filters {
        match of_module(filter) {
            Ok(Some(schema)) => drop(schemas.insert(name.clone(), for_editors(name, schema))),
            Ok(None) => {}
            Err(why) => faults.push(Fault::at(&filter.wasm_position, why)),
        }
    }
    schemas
}

fn of_module(filter: &Filter) -> Result<Option<Value>, String> {
    let json = match &filter.wasm {
        WasmSource::Builtin(name) => bundled::wasm(name).map_or(Ok(None), selvedge_wasm::settings_schema),
        WasmSource::File(path) => {
            let wasm = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
            selvedge_wasm::settings_schema(&wasm)
        }
    };
    let Some(json) = json.map_err(|why| format!("custom section selvedge.schema: {why}"))? else { return Ok(None) };
    serde_json::from_str(&json).map(Some).map_err(|error| format!("custom section selvedge.schema: {error}"))
}

/// As one may write them: what is required may stand at the declaration or at the use, `X_file` stands for `X`, and what is no text may
/// come from a variable.
fn for_editors(name: &str, mut schema: Value) -> Value {
    if let Some(members) = schema.as_object_mut() {
        members.remove("$schema");
        members.remove("required");
        // So that what the schema refers to is looked for in it.
        members.insert("$id".into(), json!(format!("urn:selvedge:filter:{name}")));
        if let Some(properties) = members.get_mut("properties").and_then(Value::as_object_mut) {
            let files: Vec<String> = properties.keys().map(|key| format!("{key}_file")).collect();
            for file in files {
                properties
                    .entry(file)
                    .or_insert_with(|| json!({ "type": "string", "description": "The file it is in." }));
            }
            let variable = json!({ "type": "string", "pattern": r"\$\{" });
            for property in properties.values_mut() {
                let told: Map<String, Value> = ["description", "default"]
                    .into_iter()
                    .filter_map(|key| Some((key.to_owned(), property.get(key)?.clone())))
                    .collect();
                let mut either = json!({ "anyOf": [property.take(), variable] });
                if let Some(members) = either.as_object_mut() {
                    members.extend(told);
                }
                *property = either;
            }
        }
    }
    schema
}

/// Puts them where filters are declared (`config`) and where they are used with settings.
fn embed(schema: &mut Value, settings: &Map<String, Value>) -> Option<()> {
    let declared: Map<String, Value> = settings
        .keys()
        .map(|name| {
            let config = json!({ "$ref": format!("urn:selvedge:filter:{name}") });
            (name.clone(), json!({ "$ref": "#/$defs/Filter", "properties": { "config": config } }))
        })
        .collect();
    schema.pointer_mut("/properties/filters")?.as_object_mut()?.insert("properties".into(), Value::Object(declared));

    let used: Map<String, Value> =
        settings.keys().map(|name| (name.clone(), json!({ "$ref": format!("urn:selvedge:filter:{name}") }))).collect();
    let forms = schema.pointer_mut("/$defs/FilterUse/anyOf")?.as_array_mut()?;
    let with_settings = forms.iter_mut().find(|form| form.get("type") == Some(&json!("object")))?;
    with_settings.as_object_mut()?.insert("properties".into(), Value::Object(used));

    let definitions = schema.pointer_mut("/$defs")?.as_object_mut()?;
    definitions.extend(settings.iter().map(|(name, settings)| (format!("filter:{name}"), settings.clone())));
    Some(())
}
