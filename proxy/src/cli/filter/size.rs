//! What the size of a module is made of.

use std::fmt::Write;

use selvedge_wasm::Anatomy;
use serde_json::{Value, json};

use super::kib;

/// Crates and functions that are told one by one.
const TOLD: usize = 8;

/// For people, a line for each kind of content.
pub(super) fn report(anatomy: &Anatomy) -> String {
    let (custom, dwarf) = anatomy.custom();
    let code = anatomy.code();
    let rest = anatomy.size.saturating_sub(code + anatomy.data + custom);
    let mut text = String::new();
    let _ = writeln!(text, "  code    {:>10}  {} functions", kib(code), anatomy.functions.len());
    if anatomy.has_names() {
        for one in anatomy.crates().iter().take(TOLD) {
            let percent = one.size * 100 / code.max(1);
            let _ =
                writeln!(text, "    {:>10}  {percent:>3}%  {} ({} functions)", kib(one.size), one.name, one.functions);
        }
        let _ = writeln!(text, "    the largest functions:");
        for (name, size) in largest(anatomy) {
            let _ = writeln!(text, "    {:>10}  {name}", kib(size));
        }
    } else {
        let _ = writeln!(
            text,
            "    without names: nobody can say what it is made of, nor where it traps (strip = \"debuginfo\" keeps them)"
        );
    }
    let _ = writeln!(text, "  data    {:>10}  constants; each instance has a copy", kib(anatomy.data));
    let _ = writeln!(text, "  custom  {:>10}  {}", kib(custom), customs(anatomy));
    if dwarf > 0 {
        let _ = writeln!(text, "    {:>10}  of it is DWARF: no part of what runs, and traps tell lines", kib(dwarf));
    }
    let _ = writeln!(text, "  rest    {:>10}  types, imports, exports, tables", kib(rest));
    text
}

/// For machines.
pub(super) fn json(anatomy: &Anatomy) -> Value {
    let (custom, dwarf) = anatomy.custom();
    let crates: Vec<Value> = anatomy
        .crates()
        .into_iter()
        .map(|one| json!({ "name": one.name, "functions": one.functions, "bytes": one.size }))
        .collect();
    let functions: Vec<Value> =
        largest(anatomy).into_iter().map(|(name, size)| json!({ "name": name, "bytes": size })).collect();
    json!({
        "bytes": anatomy.size,
        "code": { "bytes": anatomy.code(), "functions": anatomy.functions.len(), "crates": crates, "largest": functions },
        "data": { "bytes": anatomy.data },
        "custom": { "bytes": custom, "dwarf": dwarf },
    })
}

fn largest(anatomy: &Anatomy) -> Vec<(&str, usize)> {
    let mut functions: Vec<(&str, usize)> =
        anatomy.functions.iter().filter_map(|function| Some((function.name.as_deref()?, function.size))).collect();
    functions.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    functions.truncate(TOLD);
    functions
}

fn customs(anatomy: &Anatomy) -> String {
    let custom = anatomy.sections.iter().filter(|section| section.custom && !section.name.starts_with(".debug"));
    custom.map(|section| format!("{} {}", section.name, kib(section.size))).collect::<Vec<_>>().join(", ")
}
