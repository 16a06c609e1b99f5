use super::*;
use crate::abi::hosts::OtherHost;

const GUEST: &str = r#"(module
    (@custom "selvedge.phases" "request_headers")
    (@custom "selvedge.schema" "{\"type\":\"object\"}")
    (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
    (import "env" "abort" (func $abort (param i32 i32 i32 i32)))
    (memory (export "memory") 2 16)
    (data (i32.const 0) "selvedge.kv.get\00 selvedge.count_add selvedge. selvedge.yaml")
    (func $start)
    (func $_ZN4core3fmt5write17h0123456789abcdefE (result i32) i32.const 1)
    (func (export "proxy_abi_version_0_2_0"))
    (func (export "proxy_abi_version_0_2_1"))
    (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) i32.const 0)
    (start $start))"#;

#[test]
fn a_module_is_read_to_its_end() {
    let anatomy = Anatomy::of(&wat::parse_str(GUEST).unwrap()).unwrap();
    assert_eq!(anatomy.abi(), Some("0.2.1"));
    assert_eq!(anatomy.imports[0].signature, "(i32, i32, i32) -> i32");
    assert_eq!(anatomy.imports[1].signature, "(i32, i32, i32, i32)");
    assert!(anatomy.exports("proxy_on_request_headers") && !anatomy.exports("proxy_on_log"));
    assert_eq!(anatomy.memory, Some(Memory { initial: 128 << 10, maximum: Some(1 << 20), imported: false }));
    assert!(anatomy.start && anatomy.has_names());
    assert_eq!(anatomy.functions[1].name.as_deref(), Some("core::fmt::write"));
    assert_eq!(anatomy.functions[1].number, 3, "numbers count imports, as traps do");
    assert_eq!(anatomy.foreign, ["selvedge.count_add", "selvedge.kv.get"]);
    assert_eq!(anatomy.phases.as_deref(), Some("request_headers"));
    assert_eq!(anatomy.schema.as_deref(), Some(r#"{"type":"object"}"#));
    let crates = anatomy.crates();
    assert!(crates.iter().any(|one| one.name == "core" && one.functions == 1), "{crates:?}");
    assert_eq!(crates.iter().map(|one| one.size).sum::<usize>(), anatomy.code());
    let lacking: Vec<_> = anatomy.lacking(OtherHost::Envoy).into_iter().map(|(import, _)| &import.name).collect();
    assert_eq!(lacking, ["abort"]);
}

#[test]
fn sizes_of_sections_add_up_to_the_module() {
    let wasm = wat::parse_str(GUEST).unwrap();
    let anatomy = Anatomy::of(&wasm).unwrap();
    let sum: usize = anatomy.sections.iter().map(|section| section.size).sum();
    assert!(sum < wasm.len() && sum + 8 + anatomy.sections.len() * 6 >= wasm.len(), "{sum} of {}", wasm.len());
}

#[test]
fn what_is_no_module_says_where() {
    let wasm = wat::parse_str(GUEST).unwrap();
    assert_eq!(Anatomy::of(b"<html>").unwrap_err().offset, 0);
    for end in 0..wasm.len() {
        // Cut at the end of a section it is a module; elsewhere it is none. It never panics.
        let _ = Anatomy::of(&wasm[..end]);
    }
    assert!(Anatomy::of(&wasm[..wasm.len() - 1]).is_err());
}
