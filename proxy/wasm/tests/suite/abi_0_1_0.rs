//! Filters of ABI 0.1.0, beside those of later versions.

use super::fakes::*;
use selvedge_wasm::*;

/// A text guest with these version markers.
fn text_guest(markers: &[&str], imports: &str, rest: &str) -> Vec<u8> {
    let markers: String =
        markers.iter().map(|version| format!(r#"(func (export "proxy_abi_version_{version}"))"#)).collect();
    let text = format!(
        r#"(module
            {imports}
            (memory (export "memory") 1)
            {markers}
            (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 16384))
            {rest})"#
    );
    wat::parse_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn load(wasm: &[u8]) -> Result<std::sync::Arc<Module>, LoadError> {
    Module::load(&engine(), "m", wasm)
}

const REPLY: &str =
    r#"(import "env" "proxy_send_local_response" (func $reply (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))"#;

#[test]
fn a_module_is_served_as_the_newest_version_it_says() {
    let version = |markers: &[&str]| load(&text_guest(markers, "", "")).unwrap().abi();
    assert_eq!(version(&["0_1_0"]), AbiVersion::V0_1_0);
    assert_eq!(version(&["0_2_0"]), AbiVersion::V0_2_0);
    assert_eq!(version(&["0_2_1"]), AbiVersion::V0_2_1);
    assert_eq!(version(&["0_1_0", "0_2_0"]), AbiVersion::V0_2_0);
    assert_eq!(version(&["0_2_1", "0_1_0", "0_2_0"]), AbiVersion::V0_2_1);
    assert_eq!(AbiVersion::V0_1_0.to_string(), "0.1.0");
    assert!(load(&text_guest(&[], "", "")).unwrap_err().to_string().contains("0.1.0, 0.2.0 and 0.2.1"));
    assert!(load(&text_guest(&["0_3_0"], "", "")).unwrap_err().to_string().contains("no proxy_abi_version"));
}

#[test]
fn header_callbacks_have_two_parameters_in_0_1_0_and_three_later() {
    for callback in ["proxy_on_request_headers", "proxy_on_response_headers"] {
        let of = |marker, params| {
            let rest = format!(r#"(func (export "{callback}") (param {params}) (result i32) (i32.const 0))"#);
            load(&text_guest(&[marker], "", &rest)).map(|module| module.phases())
        };
        for (marker, right, wrong) in
            [("0_1_0", "i32 i32", "i32 i32 i32"), ("0_2_0", "i32 i32 i32", "i32 i32"), ("0_2_1", "i32 i32 i32", "i32")]
        {
            assert_ne!(of(marker, right).unwrap(), Phases::NONE, "{callback} {marker}");
            let error = of(marker, wrong).unwrap_err().to_string();
            assert!(error.contains(callback), "{marker}: {error}");
        }
    }
}

#[test]
fn headers_callbacks_of_0_1_0_run_and_hold() {
    let wasm = text_guest(
        &["0_1_0"],
        &format!(
            r#"{REPLY} (import "env" "proxy_continue_request" (func $request (result i32)))
            (import "env" "proxy_continue_response" (func $response (result i32)))
            (import "env" "proxy_clear_route_cache" (func $route (result i32)))"#
        ),
        r#"(func (export "proxy_on_request_headers") (param $context i32) (param $headers i32) (result i32)
            (if (i32.ne (local.get $headers) (i32.const 5)) (then unreachable))
            (if (call $route) (then unreachable))
            (i32.const 1))
          (func (export "proxy_on_response_headers") (param i32 i32) (result i32)
            (drop (call $reply (i32.const 418) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)
              (i32.const 0) (i32.const 0) (i32.const -1)))
            (i32.const 0))
          (func (export "proxy_on_request_body") (param i32 i32 i32) (result i32)
            (if (call $request) (then unreachable))
            (i32.const 0))
          (func (export "proxy_on_response_body") (param i32 i32 i32) (result i32)
            (if (call $response) (then unreachable))
            (i32.const 0))"#,
    );
    let rig = try_start(&wasm, options("")).unwrap();
    let mut stream = rig.stream();
    let mut x = FakeExchange::get("/");
    assert_eq!(stream.on_request_headers(&mut x, false).unwrap().action, Action::Pause);
    let effects = stream.on_request_body(&mut x, 0, true).unwrap().effects;
    assert!(effects.resume_request && !effects.resume_response);
    x.respond();
    assert_eq!(stream.on_response_headers(&mut x, true).unwrap().effects.reply.unwrap().status, 418);
    let effects = stream.on_response_body(&mut x, 0, true).unwrap().effects;
    assert!(effects.resume_response && !effects.resume_request);
}

/// Reads a header of a map (its name at 0) and replies with 300 + the status; the body is what stands at the result's pointer and length.
fn read_header(marker: &str, map: u32, name: &str) -> (u16, Vec<u8>) {
    let end = if marker == "0_1_0" { "" } else { "i32" };
    let wasm = text_guest(
        &[marker],
        &format!(
            r#"{REPLY} (import "env" "proxy_get_header_map_value" (func $get (param i32 i32 i32 i32 i32) (result i32)))"#
        ),
        &format!(
            r#"(data (i32.const 0) "{name}") (data (i32.const 800) "\ff\ff\ff\ff\ff\ff\ff\ff")
            (func (export "proxy_on_request_headers") (param i32 i32 {end}) (result i32) (local $status i32)
              (local.set $status (call $get (i32.const {map}) (i32.const 0) (i32.const {len}) (i32.const 800) (i32.const 804)))
              (drop (call $reply (i32.add (i32.const 300) (local.get $status))
                (i32.const 0) (i32.const 0) (i32.const 800) (i32.const 8)
                (i32.const 0) (i32.const 0) (i32.const -1)))
              (i32.const 0))"#,
            len = name.len()
        ),
    );
    let rig = try_start(&wasm, options("")).unwrap();
    let reply = rig.stream().on_request_headers(&mut FakeExchange::get("/"), true).unwrap().effects.reply.unwrap();
    (reply.status - 300, reply.body.to_vec())
}

#[test]
fn a_missing_header_is_empty_in_0_1_0_and_not_found_later() {
    for map in [0, 1, 2, 6, 7] {
        let (status, place) = read_header("0_1_0", map, "x-none");
        assert_eq!((status, &place[..]), (0, &[0; 8][..]), "map {map}");
        for marker in ["0_2_0", "0_2_1"] {
            assert_eq!(read_header(marker, map, "x-none").0, 1, "map {map}");
        }
    }
    let found = [16384u32.to_le_bytes(), 3u32.to_le_bytes()].concat();
    for marker in ["0_1_0", "0_2_0", "0_2_1"] {
        assert_eq!(read_header(marker, 0, "accept"), (0, found.clone()), "{marker}");
        assert_eq!(read_header(marker, 9, "accept").0, 2, "{marker}: no such map is a mistake in every version");
    }
}

#[test]
fn get_configuration_is_the_vms_at_its_start_and_the_plugins_afterwards() {
    let log_configuration = r#"
        (if (call $configuration (i32.const 800) (i32.const 804)) (then unreachable))
        (if (call $log (i32.const 2) (i32.load (i32.const 800)) (i32.load (i32.const 804))) (then unreachable))"#;
    let wasm = text_guest(
        &["0_1_0"],
        r#"(import "env" "proxy_get_configuration" (func $configuration (param i32 i32) (result i32)))
           (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))"#,
        &format!(
            r#"(func (export "proxy_on_vm_start") (param i32 i32) (result i32) {log_configuration} (i32.const 1))
            (func (export "proxy_on_configure") (param i32 i32) (result i32) {log_configuration} (i32.const 1))
            (func (export "proxy_on_request_headers") (param i32 i32) (result i32) {log_configuration} (i32.const 0))"#
        ),
    );
    let options = PluginOptions { vm_config: "of the VM".into(), config: "of the plugin".into(), ..options("") };
    let rig = try_start(&wasm, options).unwrap();
    rig.stream().on_request_headers(&mut FakeExchange::get("/"), true).unwrap();
    let logs: Vec<String> = rig.host.logs.lock().iter().map(|(_, line)| line.clone()).collect();
    assert_eq!(logs, ["of the VM", "of the plugin", "of the plugin"]);

    let rig = try_start(&wasm, PluginOptions { vm_config: "".into(), ..super::fakes::options("") }).unwrap();
    assert_eq!(rig.host.logs.lock()[0].1, "", "no configuration is an empty one");
}
