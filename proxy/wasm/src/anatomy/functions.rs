//! The functions of a module: what they are called, and what of its size they are.

use std::collections::HashMap;

use wasmparser::{CustomSectionReader, KnownCustom, Name};

/// A function that has a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Its index, as traps without names tell it.
    pub number: u32,
    /// As the section `name` says, readable.
    pub name: Option<String>,
    /// Bytes of its body.
    pub size: usize,
}

/// What a crate has of the code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrateSize {
    /// `core`, `serde_json`; [`CrateSize::EXPORTS`], [`CrateSize::OTHERS`] or [`CrateSize::NAMELESS`] where a name tells no crate.
    pub name: String,
    /// Functions of it.
    pub functions: usize,
    /// Bytes of them.
    pub size: usize,
}

impl CrateSize {
    /// Functions the host calls. What the compiler has put into them, often the filter itself, counts here.
    pub const EXPORTS: &str = "(callbacks)";
    /// Functions whose names have no crate: of C, mostly the allocator.
    pub const OTHERS: &str = "(C library)";
    /// Functions without names.
    pub const NAMELESS: &str = "(nameless)";
}

/// Names functions as the section says. One that is broken names those before the break: names are for people.
pub(super) fn name(functions: &mut [Function], imported: u32, section: &CustomSectionReader<'_>) {
    let KnownCustom::Name(subsections) = section.as_known() else { return };
    for subsection in subsections {
        let Ok(Name::Function(names)) = subsection else { continue };
        for naming in names {
            let Ok(naming) = naming else { return };
            let index = naming.index.checked_sub(imported).and_then(|index| usize::try_from(index).ok());
            if let Some(function) = index.and_then(|index| functions.get_mut(index)) {
                function.name = Some(format!("{:#}", rustc_demangle::demangle(naming.name)));
            }
        }
    }
}

/// Sums functions up by crate, the largest first.
pub(super) fn by_crate(functions: &[Function], is_export: impl Fn(&str) -> bool) -> Vec<CrateSize> {
    let mut sums: HashMap<&str, (usize, usize)> = HashMap::new();
    for function in functions {
        let name = match function.name.as_deref() {
            None => CrateSize::NAMELESS,
            Some(name) if is_export(name) => CrateSize::EXPORTS,
            Some(name) => crate_of(name).unwrap_or(CrateSize::OTHERS),
        };
        let (count, size) = sums.entry(name).or_default();
        *count += 1;
        *size += function.size;
    }
    let crates = sums.into_iter().map(|(name, (functions, size))| CrateSize { name: name.to_owned(), functions, size });
    let mut crates: Vec<CrateSize> = crates.collect();
    crates.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.name.cmp(&b.name)));
    crates
}

/// The crate of a readable name: `alloc` of `<alloc::vec::Vec<T> as Clone>::clone`, `core` of `core::fmt::write`.
fn crate_of(name: &str) -> Option<&str> {
    if !name.contains("::") {
        return None;
    }
    let path = name.trim_start_matches(['<', '&', '*', '(', '[', ' ']);
    let path = ["mut ", "dyn ", "const "].iter().fold(path, |path, word| path.strip_prefix(word).unwrap_or(path));
    let end = path.find(|letter: char| !letter.is_alphanumeric() && letter != '_').unwrap_or(path.len());
    let (first, rest) = path.split_at(end);
    // `<T as log::Log>::enabled`: a type without a path is generic or of the language, and says less than the trait.
    if !rest.starts_with("::")
        && let Some((_, of_trait)) = rest.split_once(" as ")
    {
        return crate_of(of_trait);
    }
    Some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_crate() {
        for (name, expected) in [
            ("core::fmt::write", Some("core")),
            ("<alloc::vec::Vec<T> as core::clone::Clone>::clone", Some("alloc")),
            ("<&mut serde_json::de::Deserializer<R> as serde::de::Deserializer>::deserialize_any", Some("serde_json")),
            ("<u32 as core::fmt::Display>::fmt", Some("core")),
            ("<[u8] as my_filter::Ext>::take", Some("my_filter")),
            ("dlmalloc", None),
            ("malloc", None),
            ("std::sys::thread_local::destructors", Some("std")),
        ] {
            assert_eq!(crate_of(name), expected, "{name}");
        }
    }
}
