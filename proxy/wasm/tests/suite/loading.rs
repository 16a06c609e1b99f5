//! What loads, what does not, and the disk cache.

use std::fs;
use std::path::PathBuf;

use super::fakes::*;
use selvedge_wasm::*;

fn load(wasm: &str) -> Result<std::sync::Arc<Module>, LoadError> {
    Module::load(&engine(), "m", &wat::parse_str(wasm).unwrap())
}

const ABI: &str = r#"(memory (export "memory") 1) (func (export "proxy_abi_version_0_2_0"))"#;

#[test]
fn modules_are_refused_with_a_reason() {
    let refused = |wasm: &str| load(wasm).unwrap_err().to_string();
    assert!(
        Module::load(&engine(), "m", b"not wasm").unwrap_err().to_string().contains("not a valid WebAssembly module")
    );
    assert!(refused("(module)").contains("no proxy_abi_version export"));
    assert!(refused(r#"(module (func (export "proxy_abi_version_0_2_1")))"#).contains("exports no memory"));
    let message =
        refused(&format!(r#"(module (import "env" "proxy_redis_call" (func)) (import "else" "f" (func)) {ABI})"#));
    assert!(message.contains("env.proxy_redis_call, else.f"), "{message}");
    let message = refused(
        r#"(module (import "env" "memory" (memory 1)) (func (export "proxy_abi_version_0_2_0")) (export "memory" (memory 0)))"#,
    );
    assert!(message.contains("env.memory"), "{message}");
    let message = refused(&format!(
        r#"(module {ABI} (func (export "proxy_on_request_headers") (param i32 i32) (result i32) (i32.const 0)))"#
    ));
    assert!(message.contains("proxy_on_request_headers"), "{message}");
    assert!(
        refused(&format!(r#"(module (import "env" "proxy_log" (func (param i64))) {ABI})"#))
            .contains("another signature")
    );
    let message = refused(&format!(r#"(module {ABI} (@custom "selvedge.phases" "request_header"))"#));
    assert!(message.contains("selvedge.phases"), "{message}");
}

#[test]
fn phases_come_from_the_custom_section_or_else_the_exports() {
    let exports = r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (i32.const 0))
                     (func (export "proxy_on_log") (param i32))"#;
    let module = load(&format!("(module {ABI} {exports})")).unwrap();
    assert_eq!(module.phases(), Phases::REQUEST_HEADERS | Phases::LOG);
    let module = load(&format!(
        r#"(module {ABI} {exports} (@custom "selvedge.phases" "log") (@custom "selvedge.schema" "{{}}"))"#
    ))
    .unwrap();
    assert_eq!((module.phases(), module.settings_schema()), (Phases::LOG, Some("{}")));
    assert_eq!(Module::load(&engine(), "noop", &guest_wasm("noop")).unwrap().phases(), Phases::ALL);
}

/// A guest that dies when it is told of a stream.
fn deaf(phases: &str) -> String {
    let telling = ["done", "log", "delete"].map(|callback| {
        let result = if callback == "done" { "(result i32)" } else { "" };
        format!(r#"(func (export "proxy_on_{callback}") (param i32) {result} unreachable)"#)
    });
    format!(
        r#"(module {ABI} (@custom "selvedge.phases" "{phases}") {}
            (func (export "proxy_on_context_create") (param i32 i32) (if (local.get 1) (then unreachable)))
            (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (i32.const 0)))"#,
        telling.concat()
    )
}

#[test]
fn who_keeps_nothing_for_streams_is_not_told_of_them() {
    for isolation in [Isolation::Worker, Isolation::Request] {
        let start = |phases: &str| {
            let options = PluginOptions { isolation, ..options("") };
            Plugin::start(load(&deaf(phases)).unwrap(), options, std::sync::Arc::new(FakeHost::default())).unwrap()
        };
        let plugin = start("request_headers stateless");
        let mut x = FakeExchange::get("/");
        for _ in 0..3 {
            let (mut one, mut other) = (plugin.open_stream(0).unwrap(), plugin.open_stream(0).unwrap());
            assert_eq!(one.on_request_headers(&mut x, true).unwrap().action, Action::Continue);
            assert_eq!(other.on_request_headers(&mut x, true).unwrap().action, Action::Continue);
            assert!(!one.has_mail());
            one.finish(&mut x).unwrap();
        }
        let calls = plugin.stats().snapshot().callbacks;
        let of_streams = ["proxy_on_done", "proxy_on_log", "proxy_on_delete"];
        assert!(calls.iter().all(|call| !of_streams.contains(&call.callback)), "{calls:?}");
        assert!(matches!(start("request_headers").open_stream(0), Err(CallError::Trap { .. })));
    }
}

#[test]
fn a_module_with_every_import_of_the_abi_and_of_wasi_loads() {
    load(&format!(
        r#"(module
            (import "env" "proxy_grpc_call" (func (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
            (import "env" "proxy_grpc_stream" (func (param i32 i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
            (import "env" "proxy_enqueue_shared_queue" (func (param i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "poll_oneoff" (func (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "poll_oneoff" (func (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_seek" (func (param i32 i64 i32 i32) (result i32)))
            {ABI})"#
    ))
    .unwrap();
}

fn cached(folder: &std::path::Path, wasm: &[u8]) -> (std::sync::Arc<Module>, Vec<PathBuf>) {
    let engine =
        Engine::new(EngineOptions { module_cache: Some(folder.to_owned()), ..EngineOptions::default() }).unwrap();
    let module = Module::load(&engine, "m", wasm).unwrap();
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    (module, files)
}

#[test]
fn the_second_load_comes_from_disk_and_works() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("made/for/it");
    let wasm = guest_wasm("deny");
    let (module, files) = cached(&folder, &wasm);
    assert_eq!((module.origin(), files.len()), (ModuleOrigin::Compiled, 1));
    let (module, _) = cached(&folder, &wasm);
    assert_eq!(module.origin(), ModuleOrigin::DiskCache);
    assert_eq!(module.phases(), Phases::ALL);

    let plugin = Plugin::start(module, options("request_headers"), std::sync::Arc::new(FakeHost::default())).unwrap();
    let outcome = plugin.open_stream(0).unwrap().on_request_headers(&mut FakeExchange::get("/"), true).unwrap();
    assert_eq!(outcome.effects.reply.unwrap().status, 403);
}

#[test]
fn a_rotten_file_is_compiled_again_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let wasm = guest_wasm("noop");
    let rots: [fn(&mut Vec<u8>); 4] = [
        |bytes| *bytes.last_mut().unwrap() ^= 1,
        |bytes| bytes.truncate(bytes.len() / 2),
        |bytes| bytes.clear(),
        |bytes| bytes[0] ^= 1,
    ];
    let (_, files) = cached(folder.path(), &wasm);
    for rot in rots {
        let mut bytes = fs::read(&files[0]).unwrap();
        rot(&mut bytes);
        fs::write(&files[0], bytes).unwrap();
        assert_eq!(cached(folder.path(), &wasm).0.origin(), ModuleOrigin::Compiled);
        assert_eq!(cached(folder.path(), &wasm).0.origin(), ModuleOrigin::DiskCache);
    }
}

#[cfg(unix)]
#[test]
fn a_folder_that_everybody_may_write_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let error = Engine::new(EngineOptions { module_cache: Some(folder.path().to_owned()), ..EngineOptions::default() })
        .unwrap_err();
    assert!(matches!(error, EngineError::ModuleCache { .. }), "{error}");
}
