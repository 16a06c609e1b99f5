//! What a module is made of, read from its bytes alone: no engine, no compilation. For the tools of filter authors.

mod functions;

use wasmparser::{ExternalKind, FuncType, Parser, Payload, TypeRef, ValType};

pub use self::functions::{CrateSize, Function};
use crate::abi::hosts::{self, Elsewhere};
use crate::module::Phases;

/// What a module is made of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Anatomy {
    /// Bytes of the whole module.
    pub size: usize,
    /// Its sections in their order.
    pub sections: Vec<Section>,
    /// What it imports.
    pub imports: Vec<Import>,
    /// What it exports.
    pub exports: Vec<Export>,
    /// Its first memory.
    pub memory: Option<Memory>,
    /// Whether something runs as soon as it is instantiated, before any callback: a start section.
    pub start: bool,
    /// Its functions, imported ones left out, in their order.
    pub functions: Vec<Function>,
    /// Bytes of its data segments, which become memory of each instance.
    pub data: usize,
    /// Its callbacks as `selvedge.phases` names them; `None` = it has no such section, and all it exports are called.
    pub phases: Option<String>,
    /// The JSON Schema of its configuration, of section `selvedge.schema`.
    pub schema: Option<String>,
    /// What it says of itself, of section `selvedge.about`.
    pub about: Option<String>,
    /// Functions beyond the ABI whose names stand in its data, `selvedge.*`. It may call others, whose names it puts together.
    pub foreign: Vec<String>,
}

/// One section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// `code`, `data`, ... or the name of a custom section.
    pub name: String,
    /// Whether it is a custom section: of no effect on what runs.
    pub custom: bool,
    /// Bytes, its header left out.
    pub size: usize,
}

/// Something a module wants from its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// `env`, `wasi_snapshot_preview1`.
    pub module: String,
    /// `proxy_log`.
    pub name: String,
    /// `(i32, i32, i32) -> i32`, or `memory` and the like.
    pub signature: String,
}

/// Something a module offers to its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// `proxy_on_request_headers`.
    pub name: String,
    /// As [`Import::signature`].
    pub signature: String,
}

/// A memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// What an instance begins with.
    pub initial: u64,
    /// What it may grow to by its own word; the host has a limit of its own.
    pub maximum: Option<u64>,
    /// It is to come from the host, which no proxy-wasm host provides.
    pub imported: bool,
}

/// Bytes that are no module, or are one no more from some place on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a WebAssembly module: {message} (at byte {offset})")]
pub struct NotAModule {
    /// Where.
    pub offset: usize,
    /// What is wrong there.
    pub message: String,
}

/// A page of memory.
const PAGE: u64 = 64 << 10;

impl Anatomy {
    /// Reads a module. It is not validated: whether it would run is for [`crate::Module::load`] to say.
    ///
    /// # Errors
    /// The bytes are no module, or not all of one.
    pub fn of(wasm: &[u8]) -> Result<Self, NotAModule> {
        if !wasm.starts_with(b"\0asm") {
            return Err(NotAModule { offset: 0, message: "it does not begin as one".into() });
        }
        let mut reading = Reading { anatomy: Self { size: wasm.len(), ..Self::default() }, ..Reading::default() };
        let mut names = None;
        for payload in Parser::new(0).parse_all(wasm) {
            let payload = payload.map_err(broken)?;
            if let Payload::CustomSection(section) = &payload
                && section.name() == "name"
            {
                names = Some(section.clone());
            }
            reading.take(payload).map_err(broken)?;
        }
        let Reading { mut anatomy, imported_functions, .. } = reading;
        if let Some(section) = names {
            functions::name(&mut anatomy.functions, imported_functions, &section);
        }
        anatomy.foreign.sort();
        anatomy.foreign.dedup();
        Ok(anatomy)
    }

    /// The version of the ABI it is written for, `0.2.1`: the newest of those it says.
    #[must_use]
    pub fn abi(&self) -> Option<&str> {
        let versions = self.exports.iter().filter_map(|export| export.name.strip_prefix("proxy_abi_version_"));
        Some(versions.max()?).map(|version| match version {
            "0_2_1" => "0.2.1",
            "0_2_0" => "0.2.0",
            "0_1_0" => "0.1.0",
            other => other,
        })
    }

    /// Whether it exports this.
    #[must_use]
    pub fn exports(&self, name: &str) -> bool {
        self.exports.iter().any(|export| export.name == name)
    }

    /// The callbacks of a stream that this host calls: as `selvedge.phases` says, else those exported.
    #[must_use]
    pub fn called(&self) -> Phases {
        let exported = || Phases::of_exports(|export| self.exports(export));
        self.phases.as_ref().map_or_else(exported, |names| names.parse().unwrap_or_else(|_| exported()))
    }

    /// Bytes of the code section.
    #[must_use]
    pub fn code(&self) -> usize {
        self.functions.iter().map(|function| function.size).sum()
    }

    /// Bytes of custom sections, and of those among them that carry DWARF.
    #[must_use]
    pub fn custom(&self) -> (usize, usize) {
        let sum = |wanted: &dyn Fn(&Section) -> bool| {
            self.sections.iter().filter(|section| section.custom && wanted(section)).map(|section| section.size).sum()
        };
        (sum(&|_| true), sum(&|section| section.name.starts_with(".debug")))
    }

    /// Whether its functions have names: traps and size reports can tell them.
    #[must_use]
    pub fn has_names(&self) -> bool {
        self.functions.iter().any(|function| function.name.is_some())
    }

    /// How its code is shared out among crates, the largest first.
    #[must_use]
    pub fn crates(&self) -> Vec<CrateSize> {
        functions::by_crate(&self.functions, |name| self.exports(name))
    }

    /// Its imports that another host has not, or has not carried out.
    #[must_use]
    pub fn lacking(&self, host: hosts::OtherHost) -> Vec<(&Import, Elsewhere)> {
        let of = |import| Some((import, host.has(self.abi()?, import)));
        self.imports.iter().filter_map(of).filter(|(_, there)| *there != Elsewhere::There).collect()
    }
}

#[derive(Default)]
struct Reading {
    anatomy: Anatomy,
    types: Vec<String>,
    /// The type of each function, imported ones first.
    functions: Vec<u32>,
    imported_functions: u32,
}

impl Reading {
    fn take(&mut self, payload: Payload<'_>) -> wasmparser::Result<()> {
        if let Some((id, range)) = payload.as_section() {
            let (name, custom) = match &payload {
                Payload::CustomSection(section) => (section.name().to_owned(), true),
                _ => (section_name(id).to_owned(), false),
            };
            self.anatomy.sections.push(Section { name, custom, size: range.len() });
        }
        match payload {
            Payload::TypeSection(types) => {
                for group in types {
                    self.types.extend(group?.types().map(|ty| match &ty.composite_type.inner {
                        wasmparser::CompositeInnerType::Func(ty) => signature(ty),
                        _ => "of no function".to_owned(),
                    }));
                }
            }
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    let import = import?;
                    let signature = self.imported(&import.ty);
                    let (module, name) = (import.module.to_owned(), import.name.to_owned());
                    self.anatomy.imports.push(Import { module, name, signature });
                }
            }
            Payload::FunctionSection(functions) => {
                for function in functions {
                    self.functions.push(function?);
                }
            }
            Payload::MemorySection(memories) => {
                for memory in memories {
                    let memory = memory?;
                    self.anatomy.memory.get_or_insert(memory_of(&memory, false));
                }
            }
            Payload::ExportSection(exports) => {
                for export in exports {
                    let export = export?;
                    let signature = match export.kind {
                        ExternalKind::Func | ExternalKind::FuncExact => self.signature_of(export.index),
                        ExternalKind::Table => "table".into(),
                        ExternalKind::Memory => "memory".into(),
                        ExternalKind::Global => "global".into(),
                        ExternalKind::Tag => "tag".into(),
                    };
                    self.anatomy.exports.push(Export { name: export.name.to_owned(), signature });
                }
            }
            Payload::StartSection { .. } => self.anatomy.start = true,
            Payload::CodeSectionEntry(body) => {
                let number = self
                    .imported_functions
                    .saturating_add(u32::try_from(self.anatomy.functions.len()).unwrap_or(u32::MAX));
                self.anatomy.functions.push(Function { number, name: None, size: body.range().len() });
            }
            Payload::DataSection(segments) => {
                for segment in segments {
                    let data = segment?.data;
                    self.anatomy.data += data.len();
                    foreign_names(data, &mut self.anatomy.foreign);
                }
            }
            Payload::CustomSection(section) => {
                let text = || Some(String::from_utf8_lossy(section.data()).into_owned());
                match section.name() {
                    "selvedge.phases" => self.anatomy.phases = text(),
                    "selvedge.schema" => self.anatomy.schema = text(),
                    "selvedge.about" => self.anatomy.about = text(),
                    _ => {}
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn imported(&mut self, ty: &TypeRef) -> String {
        match ty {
            TypeRef::Func(ty) | TypeRef::FuncExact(ty) => {
                self.functions.push(*ty);
                self.imported_functions += 1;
                self.type_of(*ty)
            }
            TypeRef::Memory(memory) => {
                self.anatomy.memory.get_or_insert(memory_of(memory, true));
                "memory".into()
            }
            TypeRef::Table(_) => "table".into(),
            TypeRef::Global(_) => "global".into(),
            TypeRef::Tag(_) => "tag".into(),
        }
    }

    fn signature_of(&self, function: u32) -> String {
        let ty = usize::try_from(function).ok().and_then(|function| self.functions.get(function));
        ty.map_or_else(|| "of an unknown function".into(), |ty| self.type_of(*ty))
    }

    fn type_of(&self, ty: u32) -> String {
        let ty = usize::try_from(ty).ok().and_then(|ty| self.types.get(ty));
        ty.cloned().unwrap_or_else(|| "of an unknown type".into())
    }
}

fn broken(error: wasmparser::BinaryReaderError) -> NotAModule {
    let message = error.message().lines().next().unwrap_or_default().to_owned();
    NotAModule { offset: error.offset(), message }
}

fn memory_of(memory: &wasmparser::MemoryType, imported: bool) -> Memory {
    let bytes = |pages: u64| pages.saturating_mul(PAGE);
    Memory { initial: bytes(memory.initial), maximum: memory.maximum.map(bytes), imported }
}

fn signature(ty: &FuncType) -> String {
    let list = |types: &[ValType]| types.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let parameters = list(ty.params());
    if ty.results().is_empty() {
        format!("({parameters})")
    } else {
        format!("({parameters}) -> {}", list(ty.results()))
    }
}

fn section_name(id: u8) -> &'static str {
    const NAMES: [&str; 14] = [
        "custom",
        "type",
        "import",
        "function",
        "table",
        "memory",
        "global",
        "export",
        "start",
        "element",
        "code",
        "data",
        "data count",
        "tag",
    ];
    NAMES.get(usize::from(id)).copied().unwrap_or("unknown")
}

/// What begins the names of this host's own functions.
const FOREIGN: &[u8] = b"selvedge.";

/// The longest name that is taken for one.
const LONGEST_NAME: usize = 64;

/// Texts of data that read like names of foreign functions. Strings of a program stand one after the other without an end, so what
/// follows a name in letters would belong to it: the list is a hint.
fn foreign_names(data: &[u8], found: &mut Vec<String>) {
    let mut rest = data;
    while let Some(at) = rest.windows(FOREIGN.len()).position(|window| window == FOREIGN) {
        let after = &rest[at + FOREIGN.len()..];
        let of_name = |byte: &&u8| byte.is_ascii_lowercase() || matches!(byte, b'_' | b'.');
        let length = after.iter().take(LONGEST_NAME).take_while(of_name).count();
        let name = String::from_utf8_lossy(&after[..length]);
        let name = name.trim_end_matches('.');
        let means_something_else = ["yaml", "schema", "about", "phases"].contains(&name);
        if !name.is_empty() && !means_something_else {
            found.push(format!("selvedge.{name}"));
        }
        rest = after;
    }
}

#[cfg(test)]
mod tests;
