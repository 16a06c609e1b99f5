//! The description of the admin API, made from the same table that answers.

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::operations::{Body, Operation, TABLE};
use super::problem::Document;

/// An OpenAPI 3.0 document.
pub(crate) fn document(version: &str) -> Value {
    let mut schemas = SchemaSettings::openapi3().for_serialize().into_generator();
    let problem = schemas.subschema_for::<Document>();
    let mut paths = Map::new();
    for operation in TABLE {
        let described = describe(operation, &mut schemas, &problem);
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        if let Some(path) = path.as_object_mut() {
            path.insert(operation.verb.as_str().to_ascii_lowercase(), described);
        }
    }
    json!({
        "openapi": "3.0.4",
        "info": {
            "title": "Selvedge admin API",
            "version": version,
            "description": "What a node is doing, and what it can be told to do.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas.take_definitions(true),
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
        "security": [{}, { "token": [] }],
    })
}

fn describe(operation: &Operation, schemas: &mut SchemaGenerator, problem: &schemars::Schema) -> Value {
    let names = operation.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let asked = operation.parameters.iter().map(|name| (*name, "query"));
    let parameters: Vec<Value> = names
        .map(|name| (name, "path"))
        .chain(asked)
        .map(|(name, place)| json!({ "name": name, "in": place, "required": true, "schema": { "type": "string" } }))
        .collect();
    let content = match operation.answer {
        Body::Json(schema) => json!({ "application/json": { "schema": schema(schemas) } }),
        Body::Text => json!({ "text/plain": { "schema": { "type": "string" } } }),
    };
    let mut described = json!({
        "summary": operation.summary,
        "parameters": parameters,
        "responses": {
            "200": { "description": "Done.", "content": content },
            "default": {
                "description": "Not done, and why (RFC 9457).",
                "content": { "application/problem+json": { "schema": problem } },
            },
        },
    });
    if let Some(request) = operation.request {
        let content = json!({ "application/json": { "schema": request(schemas) } });
        described["requestBody"] = json!({ "required": true, "content": content });
    }
    if operation.open {
        described["security"] = json!([{}]);
    }
    described
}
