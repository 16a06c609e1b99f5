//! `selvedge filter inspect`: what a module is made of.

use std::fmt::Write;
use std::process::ExitCode;

use clap::Args;
use selvedge_wasm::{Anatomy, Elsewhere, Import, OtherHost};
use serde_json::{Value, json};

use super::super::print;
use super::module::Wasm;
use super::{Done, kib, size};

#[derive(Args)]
pub(in crate::cli) struct InspectArgs {
    /// The module.
    #[arg(default_value = ".")]
    module: String,
    /// For machines.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &InspectArgs) -> Done {
    let wasm = Wasm::find(&args.module)?;
    let anatomy = wasm.anatomy()?;
    if args.json {
        print(format_args!("{:#}\n", as_json(&wasm, &anatomy)));
    } else {
        print(text(&wasm, &anatomy));
    }
    Ok(ExitCode::SUCCESS)
}

fn text(wasm: &Wasm, anatomy: &Anatomy) -> String {
    let mut text = String::new();
    let abi = anatomy.abi().map_or_else(|| "no proxy-wasm module".into(), |abi| format!("proxy-wasm {abi}"));
    let _ = writeln!(text, "{}\n  {abi}, {} ({} bytes)", wasm.place(), kib(anatomy.size), anatomy.size);
    if let Some(about) = &anatomy.about {
        let _ = writeln!(text, "\nabout");
        text.push_str(&indented(about));
    }

    let _ = writeln!(text, "\nsize");
    text.push_str(&size::report(anatomy));

    let _ = writeln!(text, "\nmemory");
    let _ = match anatomy.memory {
        Some(memory) => writeln!(
            text,
            "  begins with {}, {}",
            kib(usize::try_from(memory.initial).unwrap_or(usize::MAX)),
            memory.maximum.map_or_else(
                || "grows to what the node allows".to_owned(),
                |maximum| format!("grows to {}", kib(usize::try_from(maximum).unwrap_or(usize::MAX)))
            )
        ),
        None => writeln!(text, "  none"),
    };
    if anatomy.start {
        let _ = writeln!(text, "  has a start section: it runs before any callback");
    }

    let _ = writeln!(text, "\nphases");
    let _ = writeln!(text, "  {}", phases(anatomy).join(", "));
    if anatomy.phases.is_none() {
        let _ = writeln!(text, "  (those it exports: it has no section selvedge.phases)");
    }

    let _ = writeln!(text, "\nimports ({})", anatomy.imports.len());
    for import in &anatomy.imports {
        let elsewhere = elsewhere(anatomy, import);
        let note = if elsewhere.is_empty() { String::new() } else { format!("   {}", elsewhere.join("; ")) };
        let _ = writeln!(text, "  {}.{} {}{note}", import.module, import.name, import.signature);
    }
    if !anatomy.foreign.is_empty() {
        let _ =
            writeln!(text, "  names in its data that look like functions of this host: {}", anatomy.foreign.join(", "));
    }

    let _ = writeln!(text, "\nexports ({})", anatomy.exports.len());
    for export in &anatomy.exports {
        let _ = writeln!(text, "  {} {}", export.name, export.signature);
    }

    let _ = writeln!(text, "\nsections ({})", anatomy.sections.len());
    for section in &anatomy.sections {
        let kind = if section.custom { "custom " } else { "" };
        let _ = writeln!(text, "  {:>10}  {kind}{}", kib(section.size), section.name);
    }

    let _ = writeln!(text, "\nsettings");
    match &anatomy.schema {
        None => text.push_str("  it says nothing about them: no section selvedge.schema\n"),
        Some(schema) => {
            let pretty = serde_json::from_str::<Value>(schema).map(|schema| format!("{schema:#}"));
            text.push_str(&indented(pretty.as_ref().unwrap_or(schema)));
        }
    }
    text
}

fn indented(lines: &str) -> String {
    lines.lines().map(|line| format!("  {line}\n")).collect()
}

fn as_json(wasm: &Wasm, anatomy: &Anatomy) -> Value {
    let parsed = |text: &Option<String>| {
        text.as_ref().map(|text| serde_json::from_str(text).unwrap_or_else(|_| Value::from(text.as_str())))
    };
    json!({
        "module": wasm.place(),
        "abi": anatomy.abi(),
        "about": parsed(&anatomy.about),
        "size": size::json(anatomy),
        "memory": anatomy.memory.map(|memory| json!({
            "initial": memory.initial, "maximum": memory.maximum, "imported": memory.imported,
        })),
        "start": anatomy.start,
        "phases": phases(anatomy),
        "imports": anatomy.imports.iter().map(|import| json!({
            "module": import.module, "name": import.name, "signature": import.signature,
            "elsewhere": OtherHost::ALL.map(|host| json!({ "host": host.name(), "has": word(anatomy, host, import) })),
        })).collect::<Vec<_>>(),
        "foreign_functions": anatomy.foreign,
        "exports": anatomy.exports.iter()
            .map(|export| json!({ "name": export.name, "signature": export.signature })).collect::<Vec<_>>(),
        "sections": anatomy.sections.iter()
            .map(|section| json!({ "name": section.name, "custom": section.custom, "bytes": section.size }))
            .collect::<Vec<_>>(),
        "schema": parsed(&anatomy.schema),
    })
}

/// The callbacks of a stream that a node calls.
pub(super) fn phases(anatomy: &Anatomy) -> Vec<&'static str> {
    anatomy.called().names().collect()
}

fn elsewhere(anatomy: &Anatomy, import: &Import) -> Vec<String> {
    let abi = anatomy.abi().unwrap_or_default();
    OtherHost::ALL
        .into_iter()
        .filter_map(|host| match host.has(abi, import) {
            Elsewhere::There => None,
            Elsewhere::EndsTheGuest => Some(format!("ends the guest on {}", host.name())),
            Elsewhere::Missing => Some(format!("not on {}", host.name())),
        })
        .collect()
}

fn word(anatomy: &Anatomy, host: OtherHost, import: &Import) -> &'static str {
    match host.has(anatomy.abi().unwrap_or_default(), import) {
        Elsewhere::There => "yes",
        Elsewhere::EndsTheGuest => "ends_the_guest",
        Elsewhere::Missing => "no",
    }
}
