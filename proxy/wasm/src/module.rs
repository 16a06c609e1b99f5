//! Loading a module: its ABI version, what it exports and imports, its custom sections, its compiled code.

use std::ops::{BitOr, BitOrAssign};
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use wasmtime::{ExternType, FuncType, InstancePre, ValType};

use crate::abi::version::AbiVersion;
use crate::engine::Engine;
use crate::hostcalls;
use crate::vm::State;

/// A compiled module, checked and linked: everything about a filter that does not depend on its configuration.
pub struct Module {
    engine: Arc<Engine>,
    name: String,
    hash: [u8; 32],
    origin: ModuleOrigin,
    abi: AbiVersion,
    phases: Phases,
    asks: bool,
    settings_schema: Option<String>,
    instance: InstancePre<State>,
    wasm: Bytes,
}

/// Where the compiled code came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModuleOrigin {
    /// Compiled now.
    Compiled,
    /// Read from [`crate::EngineOptions::module_cache`].
    DiskCache,
}

/// Why a module cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Not WebAssembly, or not valid.
    #[error("module {module}: not a valid WebAssembly module")]
    Invalid {
        /// The module's name.
        module: String,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It exports no `proxy_abi_version_*` that is served here.
    #[error("module {module}: {found}; served are proxy-wasm ABI 0.1.0, 0.2.0 and 0.2.1")]
    Abi {
        /// The module's name.
        module: String,
        /// What it has instead.
        found: &'static str,
    },
    /// It imports functions that no proxy-wasm host of this version has.
    #[error("module {module}: imports unknown to this host: {}", .imports.join(", "))]
    Imports {
        /// The module's name.
        module: String,
        /// All of them, as `module.name`.
        imports: Vec<String>,
    },
    /// It imports a function with another signature than this host's.
    #[error("module {module}: an import has another signature than the call of that name")]
    Link {
        /// The module's name.
        module: String,
        /// Which import, and what both sides say.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A callback, or the allocator, has another signature than the ABI's.
    #[error("module {module}: export {export} has not the signature of the ABI, {expected}")]
    Signature {
        /// The module's name.
        module: String,
        /// The export at fault.
        export: &'static str,
        /// What the ABI says.
        expected: String,
    },
    /// It exports no memory named `memory`: no hostcall could pass it anything.
    #[error("module {module}: exports no memory")]
    NoMemory {
        /// The module's name.
        module: String,
    },
    /// It exports neither `malloc` nor `proxy_on_memory_allocate`, and imports a call that answers in memory of the guest's. It would see
    /// nothing but empty headers and bodies; the C++ host refuses it too.
    #[error("module {module}: exports no allocator (malloc or proxy_on_memory_allocate), which env.{import} needs")]
    NoAllocator {
        /// The module's name.
        module: String,
        /// The first such call.
        import: String,
    },
    /// Its custom section `selvedge.phases` names something else than phases.
    #[error("module {module}: custom section selvedge.phases")]
    Phases {
        /// The module's name.
        module: String,
        /// The name at fault.
        #[source]
        source: UnknownPhase,
    },
    /// Its custom section `selvedge.schema` cannot be a schema.
    #[error("module {module}: custom section selvedge.schema: {reason}")]
    SettingsSchema {
        /// The module's name.
        module: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// The most that a schema may have.
const MAX_SCHEMA: usize = 64 * 1024;

impl Module {
    /// Loads a module under a name for messages: compiled code from the cache when there is some, compiled and kept otherwise.
    ///
    /// # Errors
    /// [`LoadError`], by cause.
    pub fn load(engine: &Arc<Engine>, name: &str, wasm: &[u8]) -> Result<Arc<Module>, LoadError> {
        let hash = blake3::hash(wasm);
        let invalid = |source: wasmtime::Error| LoadError::Invalid { module: name.to_owned(), source: source.into() };

        let cached = engine.cache().and_then(|cache| cache.load(engine.wasmtime(), &hash));
        let origin = if cached.is_some() { ModuleOrigin::DiskCache } else { ModuleOrigin::Compiled };
        let code = match cached {
            Some(code) => code,
            None => {
                let code = wasmtime::Module::from_binary(engine.wasmtime(), wasm).map_err(invalid)?;
                if let Some(cache) = engine.cache() {
                    cache.store(&hash, &code);
                }
                code
            }
        };

        let abi = check_abi(name, &code)?;
        check_exports(name, &code, abi)?;
        check_imports(name, &code)?;
        check_allocator(name, &code)?;
        let linker = hostcalls::linker(engine.wasmtime(), &code).map_err(invalid)?;
        let link = |source: wasmtime::Error| LoadError::Link { module: name.to_owned(), source: source.into() };
        let instance = linker.instantiate_pre(&code).map_err(link)?;

        let phases = match custom_section(wasm, "selvedge.phases") {
            Some(names) => String::from_utf8_lossy(names)
                .parse()
                .map_err(|source| LoadError::Phases { module: name.to_owned(), source })?,
            None => Phases::of_exports(|export| code.get_export(export).is_some()),
        };
        let facts = ["proxy_get_property", "proxy_call_foreign_function"];
        let asks = code.imports().any(|import| facts.contains(&import.name()));
        let settings_schema =
            settings_schema(wasm).map_err(|reason| LoadError::SettingsSchema { module: name.to_owned(), reason })?;
        Ok(Arc::new(Self {
            engine: engine.clone(),
            name: name.to_owned(),
            hash: hash.into(),
            origin,
            abi,
            phases,
            asks,
            settings_schema,
            instance,
            wasm: Bytes::copy_from_slice(wasm),
        }))
    }

    /// The name given to [`Module::load`].
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the code was compiled or read from disk.
    #[must_use]
    pub fn origin(&self) -> ModuleOrigin {
        self.origin
    }

    /// The version of the ABI it is written for: the newest of those it says.
    #[must_use]
    pub fn abi(&self) -> AbiVersion {
        self.abi
    }

    /// BLAKE3 of the wasm bytes.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// Which callbacks have to be run: those named in the custom section `selvedge.phases` (separated by commas, spaces or lines) when
    /// there is one, else those exported. The Rust SDK exports all of them, whatever the filter implements.
    #[must_use]
    pub fn phases(&self) -> Phases {
        self.phases
    }

    /// Whether it may ask for facts about an exchange: it imports `proxy_get_property` or `proxy_call_foreign_function`. For a module that
    /// does not, nobody need find them out.
    #[must_use]
    pub fn asks_for_facts(&self) -> bool {
        self.asks
    }

    /// JSON Schema of the plugin's configuration, from the custom section `selvedge.schema`: text of at most 64 KiB, not read any further.
    #[must_use]
    pub fn settings_schema(&self) -> Option<&str> {
        self.settings_schema.as_deref()
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// The module as it was loaded.
    pub(crate) fn wasm(&self) -> &[u8] {
        &self.wasm
    }

    /// The module linked for instances that serve one stream each: the same code, in an engine that takes their memory from a pool.
    pub(crate) fn pooled_instance(&self) -> wasmtime::Result<InstancePre<State>> {
        let engine = self.engine.pooled()?;
        let code = self.instance.module().serialize()?;
        // SAFETY: these are the bytes that `serialize` has just made, of code that wasmtime compiled with the same settings.
        let code = unsafe { wasmtime::Module::deserialize(engine, code) }?;
        hostcalls::linker(engine, &code)?.instantiate_pre(&code)
    }

    pub(crate) fn instance(&self) -> &InstancePre<State> {
        &self.instance
    }
}

impl std::fmt::Debug for Module {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Module")
            .field("name", &self.name)
            .field("origin", &self.origin)
            .field("abi", &self.abi)
            .field("phases", &self.phases)
            .finish_non_exhaustive()
    }
}

/// A set of the callbacks of a stream, and whether it needs a context for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Phases(u16);

impl Phases {
    /// None of them: the filter only starts and ends.
    pub const NONE: Self = Self(0);
    /// `request_headers`
    pub const REQUEST_HEADERS: Self = Self(1);
    /// `request_body`
    pub const REQUEST_BODY: Self = Self(1 << 1);
    /// `request_trailers`
    pub const REQUEST_TRAILERS: Self = Self(1 << 2);
    /// `response_headers`
    pub const RESPONSE_HEADERS: Self = Self(1 << 3);
    /// `response_body`
    pub const RESPONSE_BODY: Self = Self(1 << 4);
    /// `response_trailers`
    pub const RESPONSE_TRAILERS: Self = Self(1 << 5);
    /// `log`
    pub const LOG: Self = Self(1 << 6);
    /// `new_connection`, of a TCP client
    pub const NEW_CONNECTION: Self = Self(1 << 7);
    /// `downstream_data`: what a TCP client sends
    pub const DOWNSTREAM_DATA: Self = Self(1 << 8);
    /// `downstream_close`
    pub const DOWNSTREAM_CLOSE: Self = Self(1 << 9);
    /// `upstream_data`: what its upstream sends
    pub const UPSTREAM_DATA: Self = Self(1 << 10);
    /// `upstream_close`
    pub const UPSTREAM_CLOSE: Self = Self(1 << 11);
    /// `stateless`: no callback but a promise. The filter keeps nothing for a stream, so its streams need no contexts: neither
    /// `proxy_on_context_create` nor `proxy_on_done` and `proxy_on_delete` are called for them.
    pub const STATELESS: Self = Self(1 << 12);
    /// All callbacks.
    pub const ALL: Self = Self(0xfff);
    /// Those of TCP connections, without `log`, which they share with HTTP.
    pub const TCP: Self = Self(0xf80);

    const NAMES: [(&'static str, Option<&'static str>, Self); 13] = [
        ("request_headers", Some("proxy_on_request_headers"), Self::REQUEST_HEADERS),
        ("request_body", Some("proxy_on_request_body"), Self::REQUEST_BODY),
        ("request_trailers", Some("proxy_on_request_trailers"), Self::REQUEST_TRAILERS),
        ("response_headers", Some("proxy_on_response_headers"), Self::RESPONSE_HEADERS),
        ("response_body", Some("proxy_on_response_body"), Self::RESPONSE_BODY),
        ("response_trailers", Some("proxy_on_response_trailers"), Self::RESPONSE_TRAILERS),
        ("log", Some("proxy_on_log"), Self::LOG),
        ("new_connection", Some("proxy_on_new_connection"), Self::NEW_CONNECTION),
        ("downstream_data", Some("proxy_on_downstream_data"), Self::DOWNSTREAM_DATA),
        ("downstream_close", Some("proxy_on_downstream_connection_close"), Self::DOWNSTREAM_CLOSE),
        ("upstream_data", Some("proxy_on_upstream_data"), Self::UPSTREAM_DATA),
        ("upstream_close", Some("proxy_on_upstream_connection_close"), Self::UPSTREAM_CLOSE),
        ("stateless", None, Self::STATELESS),
    ];

    /// Those of a module that exports these callbacks.
    pub(crate) fn of_exports(exports: impl Fn(&str) -> bool) -> Self {
        let exported = Self::NAMES.into_iter().filter(|(_, export, _)| export.is_some_and(&exports));
        exported.fold(Self::NONE, |phases, (.., phase)| phases | phase)
    }

    /// Their names, in the order of an exchange; `stateless` last.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |(.., phase)| self.contains(*phase)).map(|(name, ..)| name)
    }

    /// Whether all of `other` are in this set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any of `other` is in this set.
    #[must_use]
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl BitOr for Phases {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Phases {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// A name in a list of phases that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no phase; phases are request_headers, request_body, request_trailers, response_headers, response_body, response_trailers, log, \
     new_connection, downstream_data, downstream_close, upstream_data, upstream_close, and stateless"
)]
pub struct UnknownPhase(pub String);

impl FromStr for Phases {
    type Err = UnknownPhase;

    /// Names separated by commas or white space. An empty list is [`Phases::NONE`].
    fn from_str(names: &str) -> Result<Self, UnknownPhase> {
        let mut phases = Self::NONE;
        for name in names.split([',', '\n', '\r', ' ', '\t', '\0']).filter(|name| !name.is_empty()) {
            let (.., phase) =
                Self::NAMES.iter().find(|(known, ..)| *known == name).ok_or_else(|| UnknownPhase(name.to_owned()))?;
            phases |= *phase;
        }
        Ok(phases)
    }
}

/// The version the module was written for.
fn check_abi(name: &str, code: &wasmtime::Module) -> Result<AbiVersion, LoadError> {
    let found = "no proxy_abi_version export, so not a proxy-wasm module";
    AbiVersion::of(code).ok_or_else(|| LoadError::Abi { module: name.to_owned(), found })
}

fn check_exports(name: &str, code: &wasmtime::Module, abi: AbiVersion) -> Result<(), LoadError> {
    let all_i32 = |mut types: Box<dyn Iterator<Item = ValType> + '_>| types.all(|ty| matches!(ty, ValType::I32));
    let fits = |ty: &FuncType, params, results| {
        ty.params().len() == params
            && ty.results().len() == results
            && all_i32(Box::new(ty.params()))
            && all_i32(Box::new(ty.results()))
    };
    for (export, params, results) in abi.callbacks() {
        let fits = match code.get_export(export) {
            None => true,
            Some(ExternType::Func(ty)) => fits(&ty, params, results),
            Some(_) => false,
        };
        if !fits {
            let expected = format!("{params} x i32 -> {results} x i32");
            return Err(LoadError::Signature { module: name.to_owned(), export, expected });
        }
    }
    match code.get_export("memory") {
        Some(ExternType::Memory(_)) => Ok(()),
        _ => Err(LoadError::NoMemory { module: name.to_owned() }),
    }
}

fn check_imports(name: &str, code: &wasmtime::Module) -> Result<(), LoadError> {
    let imports: Vec<String> = code
        .imports()
        .filter(|import| {
            !(matches!(import.ty(), ExternType::Func(_)) && hostcalls::knows(import.module(), import.name()))
        })
        .map(|import| format!("{}.{}", import.module(), import.name()))
        .collect();
    if imports.is_empty() { Ok(()) } else { Err(LoadError::Imports { module: name.to_owned(), imports }) }
}

/// The calls that answer in memory they ask the guest for.
const ANSWER_IN_MEMORY: &[&str] = &[
    "proxy_call_foreign_function",
    "proxy_dequeue_shared_queue",
    "proxy_get_buffer_bytes",
    "proxy_get_configuration",
    "proxy_get_header_map_pairs",
    "proxy_get_header_map_value",
    "proxy_get_property",
    "proxy_get_shared_data",
    "proxy_get_status",
];

fn check_allocator(name: &str, code: &wasmtime::Module) -> Result<(), LoadError> {
    let exports = |export| code.get_export(export).is_some();
    if exports("malloc") || exports("proxy_on_memory_allocate") {
        return Ok(());
    }
    let needs =
        |import: &wasmtime::ImportType<'_>| import.module() == "env" && ANSWER_IN_MEMORY.contains(&import.name());
    match code.imports().find(needs) {
        None => Ok(()),
        Some(import) => Err(LoadError::NoAllocator { module: name.to_owned(), import: import.name().to_owned() }),
    }
}

/// The JSON Schema of a plugin's configuration in the bytes of a module: its custom section `selvedge.schema`, if it has one.
///
/// # Errors
/// It has more than 64 KiB, or is not text.
pub fn settings_schema(wasm: &[u8]) -> Result<Option<String>, &'static str> {
    let Some(section) = custom_section(wasm, "selvedge.schema") else { return Ok(None) };
    if section.len() > MAX_SCHEMA {
        return Err("it has more than 64 KiB");
    }
    std::str::from_utf8(section).map(|json| Some(json.to_owned())).map_err(|_| "it is not text")
}

/// The content of the first custom section of this name. wasmtime has validated the module before; this walk trusts none of it.
fn custom_section<'a>(wasm: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let mut rest = wasm.get(8..)?;
    while let Some((&id, after)) = rest.split_first() {
        let (size, after) = leb128(after)?;
        let (section, after) = after.split_at_checked(size)?;
        rest = after;
        if id == 0 {
            let (len, section) = leb128(section)?;
            let (section_name, content) = section.split_at_checked(len)?;
            if section_name == name.as_bytes() {
                return Some(content);
            }
        }
    }
    None
}

fn leb128(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut number = 0usize;
    for (index, &byte) in bytes.iter().enumerate().take(5) {
        number |= usize::from(byte & 0x7f).checked_shl(7 * u32::try_from(index).ok()?)?;
        if byte & 0x80 == 0 {
            return Some((number, &bytes[index + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_read_from_names() {
        assert_eq!("request_headers, log".parse(), Ok(Phases::REQUEST_HEADERS | Phases::LOG));
        assert_eq!("request_headers\nresponse_body\n".parse(), Ok(Phases::REQUEST_HEADERS | Phases::RESPONSE_BODY));
        assert_eq!("".parse(), Ok(Phases::NONE));
        assert_eq!("request_header".parse::<Phases>(), Err(UnknownPhase("request_header".into())));
        let all = Phases::NAMES.iter().fold(Phases::NONE, |phases, (.., phase)| phases | *phase);
        assert_eq!(all, Phases::ALL | Phases::STATELESS);
    }

    #[test]
    fn custom_sections_are_found_and_broken_ones_are_not() {
        let wasm = wat::parse_str(r#"(module (@custom "a" "first") (memory 1) (@custom "b" "second"))"#).unwrap();
        assert_eq!(custom_section(&wasm, "a"), Some(&b"first"[..]));
        assert_eq!(custom_section(&wasm, "b"), Some(&b"second"[..]));
        assert_eq!(custom_section(&wasm, "c"), None);
        for end in 0..wasm.len() {
            let _ = custom_section(&wasm[..end], "b");
        }
        assert_eq!(custom_section(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], "b"), None);
    }
}
