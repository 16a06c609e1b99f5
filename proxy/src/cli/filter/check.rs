//! `selvedge filter check`: whether a module runs, here and elsewhere.

use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, ValueEnum};
use selvedge_wasm::{Anatomy, Elsewhere, OtherHost};
use serde_json::{Value, json};

use super::super::{EXIT_FAULTY, print};
use super::inspect::phases;
use super::module::Wasm;
use super::{Done, Trouble, kib};

#[derive(Args)]
pub(in crate::cli) struct CheckArgs {
    /// The module.
    #[arg(default_value = ".")]
    module: String,
    /// Fail (exit code 1) when another host would not load it: `envoy`, `ngx`, or `all`.
    #[arg(long, value_name = "HOST", num_args = 0..=1, require_equals = true, default_missing_value = "all")]
    portable: Option<Hosts>,
    /// For machines.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Hosts {
    /// Envoy 1.40.
    Envoy,
    /// Kong's ngx_wasm_module.
    Ngx,
    /// Both.
    All,
}

impl Hosts {
    fn contains(self, host: OtherHost) -> bool {
        self == Self::All || self == (if host == OtherHost::Envoy { Self::Envoy } else { Self::Ngx })
    }
}

/// How grave a finding is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Grade {
    Ok,
    /// To know.
    Note,
    /// It works; not as asked.
    Bad,
    /// It does not run here.
    Useless,
}

impl Grade {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Bad => "FAIL",
            Self::Useless => "FAULT",
        }
    }
}

struct Finding {
    grade: Grade,
    text: String,
}

pub(super) fn run(args: &CheckArgs) -> Done {
    let wasm = Wasm::find(&args.module)?;
    let anatomy = wasm.anatomy()?;
    let findings = findings(&wasm, &anatomy, args.portable);
    let any = |grade| findings.iter().any(|finding| finding.grade == grade);
    let code = if any(Grade::Useless) { EXIT_FAULTY } else { u8::from(any(Grade::Bad)) };

    if args.json {
        let findings: Vec<Value> = findings
            .iter()
            .map(|finding| json!({ "grade": finding.grade.word().to_lowercase(), "text": finding.text }))
            .collect();
        let report = json!({
            "module": wasm.place(), "abi": anatomy.abi(), "bytes": anatomy.size, "phases": phases(&anatomy),
            "findings": findings, "exit_code": code,
        });
        print(format_args!("{report:#}\n"));
    } else {
        print(format_args!("{}\n", wasm.place()));
        for finding in &findings {
            print(format_args!("{:<6}{}\n", finding.grade.word(), finding.text));
        }
    }
    Ok(ExitCode::from(code))
}

/// What a built module is told about besides being built: only what is wrong with it.
pub(super) fn faults(wasm: &Wasm, anatomy: &Anatomy) -> Result<Vec<String>, Trouble> {
    let findings = findings(wasm, anatomy, None);
    if let Some(useless) = findings.iter().find(|finding| finding.grade == Grade::Useless) {
        return Err(Trouble::new(useless.text.clone()));
    }
    Ok(findings.into_iter().filter(|finding| finding.grade == Grade::Bad).map(|finding| finding.text).collect())
}

fn findings(wasm: &Wasm, anatomy: &Anatomy, portable: Option<Hosts>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut tell = |grade, text: String| findings.push(Finding { grade, text });

    tell(
        Grade::Ok,
        format!(
            "{}, {}, phases {}",
            anatomy.abi().map_or_else(|| "no proxy-wasm module".into(), |abi| format!("proxy-wasm {abi}")),
            kib(anatomy.size),
            phases(anatomy).join(", ")
        ),
    );
    let began = Instant::now();
    match wasm.load() {
        Ok(_) => tell(Grade::Ok, format!("loads here, compiled in {:.0?}", began.elapsed())),
        Err(trouble) => tell(Grade::Useless, format!("does not load here: {trouble}")),
    }
    if let Some(memory) = anatomy.memory {
        let initial = kib(usize::try_from(memory.initial).unwrap_or(usize::MAX));
        tell(Grade::Ok, format!("begins with {initial} of memory per instance"));
        if memory.imported {
            tell(Grade::Useless, "wants its memory from the host, which no proxy-wasm host provides".into());
        }
    }
    if anatomy.start {
        tell(Grade::Note, "has a start section: it runs when it is instantiated, and can only log then".into());
    }
    schema(anatomy, &mut tell);
    if anatomy.phases.is_none() {
        tell(Grade::Note, "no section selvedge.phases: all callbacks it exports are called, needed or not".into());
    }
    if !anatomy.has_names() {
        tell(Grade::Note, "no names of functions: a trap tells numbers only".into());
    }

    for host in OtherHost::ALL {
        let asked = portable.is_some_and(|hosts| hosts.contains(host));
        let lacking = anatomy.lacking(host);
        let of = |wanted| {
            let of = lacking.iter().filter(|(_, there)| *there == wanted);
            of.map(|(import, _)| format!("{}.{}", import.module, import.name)).collect::<Vec<_>>()
        };
        let (missing, ending) = (of(Elsewhere::Missing), of(Elsewhere::EndsTheGuest));
        if !missing.is_empty() {
            let grade = if asked { Grade::Bad } else { Grade::Note };
            tell(grade, format!("does not load on {}, which has no {}", host.name(), missing.join(", ")));
        } else if asked {
            tell(Grade::Ok, format!("loads on {}", host.name()));
        }
        if !ending.is_empty() {
            // SDKs import what they know. Whether it is ever called cannot be seen.
            tell(Grade::Note, format!("{} ends a filter that calls {}", host.name(), ending.join(", ")));
        }
    }
    if !anatomy.foreign.is_empty() {
        let names = anatomy.foreign.join(", ");
        tell(
            Grade::Note,
            format!("its data names functions that only this host has: {names}; elsewhere they are \"not found\""),
        );
    } else if portable.is_some() && anatomy.imports.iter().any(|import| import.name == "proxy_call_foreign_function") {
        tell(Grade::Note, "it can call functions beyond the ABI, whose names cannot be seen".into());
    }
    findings
}

fn schema(anatomy: &Anatomy, tell: &mut impl FnMut(Grade, String)) {
    let Some(schema) = &anatomy.schema else {
        tell(
            Grade::Note,
            "no schema of its settings: a node learns what is wrong with them from the filter itself".into(),
        );
        return;
    };
    match serde_json::from_str::<Value>(schema) {
        Ok(Value::Object(schema)) => {
            let settings = schema.get("properties").and_then(Value::as_object).map_or(0, serde_json::Map::len);
            let plural = if settings == 1 { "" } else { "s" };
            tell(Grade::Ok, format!("brings the schema of its settings ({settings} key{plural})"));
        }
        Ok(_) => tell(Grade::Bad, "section selvedge.schema is JSON, and no schema".into()),
        Err(error) => tell(Grade::Bad, format!("section selvedge.schema is no JSON: {error}")),
    }
}
