//! WASI preview 1 as guests see it: what each call answers, and what it leaves in their memory.

use super::fakes::*;
use selvedge_wasm::*;

const MODULES: [&str; 2] = ["wasi_snapshot_preview1", "wasi_unstable"];

/// Where calls are told to write their results, and how much of it is looked at.
const OUT: i64 = 1024;
const SEEN: i64 = 256;

/// Makes one call with these parameters (`i` for i32, `I` for i64) in request headers: its errno, and the 256 bytes at 1024. The bytes at
/// 1024 were all 0xEE before.
fn call_in(
    module: &str,
    data: &str,
    name: &str,
    parameters: &str,
    arguments: &[i64],
    options: PluginOptions,
) -> (u32, Vec<u8>) {
    let ty = |letter| if letter == 'I' { "i64" } else { "i32" };
    let params: Vec<&str> = parameters.chars().map(ty).collect();
    assert_eq!(params.len(), arguments.len(), "{name}");
    let pushes: String = params.iter().zip(arguments).map(|(ty, value)| format!("({ty}.const {value})")).collect();
    let wasm = wat(
        &format!(
            r#"(import "env" "proxy_send_local_response" (func $reply (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
               (import "{module}" "{name}" (func $call (param {}) (result i32)))"#,
            params.join(" ")
        ),
        "i32.const 16384",
        &format!(
            r#"{data} (data (i32.const {OUT}) "{}")
            (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
              (drop (call $reply (i32.add (i32.const 300) (call $call {pushes})) (i32.const 0) (i32.const 0)
                (i32.const {OUT}) (i32.const {SEEN}) (i32.const 0) (i32.const 0) (i32.const -1)))
              (i32.const 0))"#,
            r"\ee".repeat(256)
        ),
    );
    let rig = try_start(&wasm, options).unwrap();
    let reply = rig.stream().on_request_headers(&mut FakeExchange::get("/"), true).unwrap().effects.reply.unwrap();
    (u32::from(reply.status) - 300, reply.body.to_vec())
}

/// The same in both modules, with the same end.
fn call(name: &str, parameters: &str, arguments: &[i64]) -> (u32, Vec<u8>) {
    let [new, old] = MODULES.map(|module| call_in(module, "", name, parameters, arguments, options("")));
    assert_eq!(new.0, old.0, "{name}");
    new
}

const OK: u32 = 0;
const BADF: u32 = 8;
const FAULT: u32 = 21;
const INVAL: u32 = 28;
const NOENT: u32 = 44;
const NOSYS: u32 = 52;
const NOTSOCK: u32 = 57;
const NOTSUP: u32 = 58;
const SPIPE: u32 = 70;
const NOTCAPABLE: u32 = 76;

const UNTOUCHED: [u8; 8] = [0xee; 8];

#[test]
fn every_call_of_the_specification_answers_with_its_error() {
    let out = OUT;
    let cases: &[(&str, &str, &[i64], u32)] = &[
        ("args_get", "ii", &[out, out], OK),
        ("args_sizes_get", "ii", &[out, out + 4], OK),
        ("args_sizes_get", "ii", &[65533, out], FAULT),
        ("environ_get", "ii", &[out, out], OK),
        ("environ_sizes_get", "ii", &[out, out + 4], OK),
        ("clock_res_get", "ii", &[0, out], OK),
        ("clock_res_get", "ii", &[1, out], OK),
        ("clock_res_get", "ii", &[2, out], NOTSUP),
        ("clock_res_get", "ii", &[1, 65530], FAULT),
        ("clock_time_get", "iIi", &[0, 0, out], OK),
        ("clock_time_get", "iIi", &[1, 1000, out], OK),
        ("clock_time_get", "iIi", &[2, 0, out], NOTSUP),
        ("clock_time_get", "iIi", &[3, 0, out], NOTSUP),
        ("random_get", "ii", &[out, 32], OK),
        ("random_get", "ii", &[out, 65537], INVAL),
        ("random_get", "ii", &[65530, 32], FAULT),
        ("sched_yield", "", &[], OK),
        ("fd_write", "iiii", &[1, 0, 0, out], OK),
        ("fd_write", "iiii", &[0, 0, 0, out], BADF),
        ("fd_write", "iiii", &[3, 0, 0, out], BADF),
        ("fd_write", "iiii", &[1, 65530, 1, out], FAULT),
        ("fd_write", "iiii", &[1, 0, 100_000, out], INVAL),
        ("fd_read", "iiii", &[0, 0, 0, out], OK),
        ("fd_read", "iiii", &[1, 0, 0, out], BADF),
        ("fd_read", "iiii", &[3, 0, 0, out], BADF),
        ("fd_fdstat_get", "ii", &[1, out], OK),
        ("fd_fdstat_get", "ii", &[3, out], BADF),
        ("fd_filestat_get", "ii", &[2, out], OK),
        ("fd_filestat_get", "ii", &[3, out], BADF),
        ("fd_advise", "iIIi", &[3, 0, 0, 0], BADF),
        ("fd_allocate", "iII", &[3, 0, 0], BADF),
        ("fd_close", "i", &[1], OK),
        ("fd_close", "i", &[3], BADF),
        ("fd_close", "i", &[-1], BADF),
        ("fd_datasync", "i", &[3], BADF),
        ("fd_fdstat_set_flags", "ii", &[1, 4], NOTSUP),
        ("fd_fdstat_set_flags", "ii", &[3, 4], BADF),
        ("fd_fdstat_set_rights", "iII", &[3, 0, 0], BADF),
        ("fd_filestat_set_size", "iI", &[3, 0], BADF),
        ("fd_filestat_set_times", "iIIi", &[3, 0, 0, 0], BADF),
        ("fd_pread", "iiiIi", &[3, 0, 0, 0, out], BADF),
        ("fd_prestat_get", "ii", &[0, out], BADF),
        ("fd_prestat_get", "ii", &[3, out], BADF),
        ("fd_prestat_dir_name", "iii", &[3, out, 8], BADF),
        ("fd_pwrite", "iiiIi", &[3, 0, 0, 0, out], BADF),
        ("fd_readdir", "iiiIi", &[3, out, 8, 0, out], BADF),
        ("fd_renumber", "ii", &[3, 4], BADF),
        ("fd_seek", "iIii", &[1, 0, 1, out], SPIPE),
        ("fd_seek", "iIii", &[3, 0, 1, out], BADF),
        ("fd_sync", "i", &[3], BADF),
        ("fd_tell", "ii", &[1, out], SPIPE),
        ("fd_tell", "ii", &[3, out], BADF),
        ("path_create_directory", "iii", &[3, 0, 1], NOTCAPABLE),
        ("path_filestat_get", "iiiii", &[3, 0, 0, 1, out], NOENT),
        ("path_filestat_set_times", "iiiiIIi", &[3, 0, 0, 1, 0, 0, 0], NOTCAPABLE),
        ("path_link", "iiiiiii", &[3, 0, 0, 1, 3, 0, 1], NOTCAPABLE),
        ("path_open", "iiiiiIIii", &[3, 0, 0, 1, 0, 0, 0, 0, out], NOENT),
        ("path_readlink", "iiiiii", &[3, 0, 1, out, 8, out], NOENT),
        ("path_remove_directory", "iii", &[3, 0, 1], NOTCAPABLE),
        ("path_rename", "iiiiii", &[3, 0, 1, 3, 0, 1], NOTCAPABLE),
        ("path_symlink", "iiiii", &[0, 1, 3, 0, 1], NOTCAPABLE),
        ("path_unlink_file", "iii", &[3, 0, 1], NOTCAPABLE),
        ("poll_oneoff", "iiii", &[0, out, 0, out], INVAL),
        ("poll_oneoff", "iiii", &[0, out, 100_000, out], INVAL),
        ("poll_oneoff", "iiii", &[65530, out, 1, out], FAULT),
        ("proc_raise", "i", &[9], NOSYS),
        ("sock_accept", "iii", &[3, 0, out], BADF),
        ("sock_accept", "iii", &[1, 0, out], NOTSOCK),
        ("sock_recv", "iiiiii", &[3, 0, 0, 0, out, out], BADF),
        ("sock_send", "iiiii", &[3, 0, 0, 0, out], BADF),
        ("sock_shutdown", "ii", &[0, 1], NOTSOCK),
    ];
    for (name, parameters, arguments, errno) in cases {
        let (found, seen) = call(name, parameters, arguments);
        assert_eq!(found, *errno, "{name} {arguments:?}");
        if *errno != OK {
            assert_eq!(seen[..8], UNTOUCHED, "{name} {arguments:?} failed and wrote all the same");
        }
    }
}

#[test]
fn a_call_with_another_signature_does_not_load() {
    for name in ["fd_seek", "path_open", "clock_time_get", "poll_oneoff", "fd_write", "sock_accept"] {
        for module in MODULES {
            let wasm =
                wat(&format!(r#"(import "{module}" "{name}" (func (param i32) (result i32)))"#), "i32.const 0", "");
            let error = Module::load(&engine(), "m", &wasm).unwrap_err();
            let LoadError::Link { source, .. } = &error else { panic!("{name}: {error}") };
            assert!(source.to_string().contains(name), "{source}");
        }
    }
}

#[test]
fn what_a_runtime_adds_to_the_specification_is_linked_and_not_there() {
    assert_eq!(call("sock_open", "iii", &[0, 0, OUT]), (NOSYS, [0xee; 256].to_vec()));
    let (errno, _) = call_in("wasi_snapshot_preview1", "", "sock_resolve", "iIi", &[0, 0, 0], options(""));
    assert_eq!(errno, NOSYS);
}

#[test]
fn standard_streams_are_lines_of_the_log_and_look_like_a_terminal() {
    for module in MODULES {
        let (_, stat) = call_in(module, "", "fd_fdstat_get", "ii", &[1, OUT], options(""));
        assert_eq!((stat[0], stat[8], &stat[24..32]), (2, 64, &UNTOUCHED[..]), "a character device to write to");
        let (_, stat) = call_in(module, "", "fd_fdstat_get", "ii", &[0, OUT], options(""));
        assert_eq!((stat[0], stat[8]), (2, 2), "a character device to read from");
        let (_, stat) = call_in(module, "", "fd_filestat_get", "ii", &[1, OUT], options(""));
        let len = if module == "wasi_unstable" { 56 } else { 64 };
        assert_eq!((stat[16], &stat[len - 8..len], stat[len]), (2, &[0; 8][..], 0xee), "{module}");
        let (_, read) = call_in(module, "", "fd_read", "iiii", &[0, 0, 0, OUT], options(""));
        assert_eq!(read[..4], [0; 4], "the input is at its end");

        let wasm = wat(
            &format!(r#"(import "{module}" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))"#),
            "i32.const 16384",
            r#"(data (i32.const 0) "one\ntwo\n\n") (data (i32.const 100) "\00\00\00\00\04\00\00\00\04\00\00\00\05\00\00\00")
            (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
              (if (call $write (i32.const 1) (i32.const 100) (i32.const 2) (i32.const 200)) (then unreachable))
              (if (i32.ne (i32.load (i32.const 200)) (i32.const 9)) (then unreachable))
              (if (call $write (i32.const 2) (i32.const 100) (i32.const 1) (i32.const 200)) (then unreachable))
              (if (call $write (i32.const 1) (i32.const 100) (i32.const 0) (i32.const 200)) (then unreachable))
              (i32.const 0))"#,
        );
        let rig = try_start(&wasm, options("")).unwrap();
        rig.stream().on_request_headers(&mut FakeExchange::get("/"), true).unwrap();
        let expected = [(LogLevel::Info, "one\ntwo\n".to_owned()), (LogLevel::Error, "one".to_owned())];
        assert_eq!(*rig.host.logs.lock(), expected, "{module}");
    }
}

/// A guest that writes the pieces of this text, parted by `|`, to a descriptor in one call of the host, then does `end`.
fn writes_in_pieces(fd: u32, text: &str, end: &str) -> (Rig, Result<Outcome, CallError>) {
    let mut at = 1000;
    let (mut data, mut writes) = (String::new(), String::new());
    for piece in text.split('|') {
        let iovec = [u32::to_le_bytes(at + 8), u32::to_le_bytes(u32::try_from(piece.len()).unwrap())].concat();
        let bytes: String = iovec.iter().chain(piece.as_bytes()).map(|byte| format!("\\{byte:02x}")).collect();
        data.push_str(&format!(r#"(data (i32.const {at}) "{bytes}")"#));
        writes.push_str(&format!("(drop (call $write (i32.const {fd}) (i32.const {at}) (i32.const 1) (i32.const 0)))"));
        at += 100;
    }
    let wasm = wat(
        &format!(r#"(import "{}" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))"#, MODULES[0]),
        "i32.const 16384",
        &format!(
            r#"{data} (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) {writes} {end} (i32.const 0))"#
        ),
    );
    let rig = try_start(&wasm, options("")).unwrap();
    let outcome = rig.stream().on_request_headers(&mut FakeExchange::get("/"), true);
    (rig, outcome)
}

#[test]
fn a_line_written_in_pieces_is_one_line() {
    for (text, lines) in [
        ("a| line|\n", &["a line"][..]),
        ("one\n|two", &["one", "two"]),
        ("one\ntw|o", &["one", "two"]),
        ("one|||", &["one"]),
        ("||", &[]),
        ("\n", &[""]),
    ] {
        for fd in [1, 2] {
            let (rig, outcome) = writes_in_pieces(fd, text, "");
            outcome.unwrap();
            let logs: Vec<String> = rig.host.logs.lock().iter().map(|(_, line)| line.clone()).collect();
            assert_eq!(logs, lines, "{text:?}");
        }
    }
}

#[test]
fn a_panic_written_in_pieces_explains_the_failure() {
    let (rig, outcome) =
        writes_in_pieces(2, "panic: |no such context|\n\n|goroutine |1|:\nmain.f()|\nexit", "unreachable");
    let error = outcome.unwrap_err().to_string();
    assert!(error.ends_with("it had logged: panic: no such context\n\ngoroutine 1:\nmain.f()\nexit"), "{error}");
    assert!(rig.host.logged("panic: no such context"));
    let (_, outcome) = writes_in_pieces(1, "only said", "unreachable");
    assert!(!outcome.unwrap_err().to_string().contains("only said"), "standard output explains nothing");
}

#[test]
fn clocks_go_on_and_random_bytes_are_random() {
    let time = |clock| {
        let (_, bytes) = call("clock_time_get", "iIi", &[clock, 0, OUT]);
        u64::from_le_bytes(bytes[..8].try_into().unwrap())
    };
    let year_2024 = 1_704_067_200_000_000_000;
    assert!(time(0) > year_2024);
    assert!((1..year_2024).contains(&time(1)), "since the plugin started");

    let bytes = |len: usize| call("random_get", "ii", &[OUT, i64::try_from(len).unwrap()]).1;
    let (one, two) = (bytes(32), bytes(32));
    assert_ne!(one[..32], two[..32]);
    assert_eq!(one[32..40], UNTOUCHED);
}

#[test]
fn the_environment_is_what_the_operator_gives_and_nothing_else() {
    let given = || PluginOptions {
        environment: vec![("LEVEL".into(), "debug".into()), ("EMPTY".into(), String::new())],
        ..options("")
    };
    for module in MODULES {
        let (errno, sizes) = call_in(module, "", "environ_sizes_get", "ii", &[OUT, OUT + 4], given());
        let text = b"LEVEL=debug\0EMPTY=\0";
        assert_eq!((errno, &sizes[..8]), (OK, &[2, 0, 0, 0, 19, 0, 0, 0][..]));
        let (errno, seen) = call_in(module, "", "environ_get", "ii", &[OUT, OUT + 8], given());
        let pointers = [(1024u32 + 8).to_le_bytes(), (1024u32 + 8 + 12).to_le_bytes()].concat();
        assert_eq!((errno, &seen[..8], &seen[8..27], seen[27]), (OK, &pointers[..], &text[..], 0xee));
        let (errno, _) = call_in(module, "", "environ_get", "ii", &[OUT, 65530], given());
        assert_eq!(errno, FAULT);
    }
    let (_, sizes) = call("environ_sizes_get", "ii", &[OUT, OUT + 4]);
    assert_eq!(sizes[..8], [0; 8], "nothing of this process");
}

/// A subscription as bytes of a data segment.
struct Subscription {
    userdata: u64,
    kind: u8,
    /// A clock's id, or a descriptor.
    of: u32,
    timeout: u64,
    flags: u16,
}

impl Subscription {
    fn bytes(&self, module: &str) -> Vec<u8> {
        let mut bytes = self.userdata.to_le_bytes().to_vec();
        bytes.extend([self.kind, 0, 0, 0, 0, 0, 0, 0]);
        if module == "wasi_unstable" && self.kind == 0 {
            bytes.extend(99u64.to_le_bytes());
        }
        bytes.extend(self.of.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.timeout.to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend(self.flags.to_le_bytes());
        bytes.resize(if module == "wasi_unstable" { 56 } else { 48 }, 0);
        bytes
    }
}

/// The events of a poll: userdata, error and type.
fn poll(module: &str, subscriptions: &[Subscription]) -> Vec<(u64, u16, u8)> {
    let bytes: String = subscriptions
        .iter()
        .flat_map(|subscription| subscription.bytes(module))
        .map(|byte| format!("\\{byte:02x}"))
        .collect();
    let data = format!(r#"(data (i32.const 0) "{bytes}")"#);
    let count = i64::try_from(subscriptions.len()).unwrap();
    let (errno, seen) = call_in(module, &data, "poll_oneoff", "iiii", &[0, OUT + 8, count, OUT], options(""));
    assert_eq!(errno, OK);
    let happened = usize::try_from(u32::from_le_bytes(seen[..4].try_into().unwrap())).unwrap();
    assert_eq!(seen[8 + 32 * happened], 0xee, "no more events than it says");
    let event = |event: &[u8]| {
        let userdata = u64::from_le_bytes(event[..8].try_into().unwrap());
        (userdata, u16::from_le_bytes(event[8..10].try_into().unwrap()), event[10])
    };
    seen[8..].chunks(32).take(happened).map(event).collect()
}

#[test]
fn polls_answer_at_once_with_what_would_have_come_first() {
    let hour = 3_600_000_000_000;
    let clock = |userdata, of, timeout, flags| Subscription { userdata, kind: 0, of, timeout, flags };
    let stream = |userdata, kind, of| Subscription { userdata, kind, of, timeout: 0, flags: 0 };
    for module in MODULES {
        assert_eq!(poll(module, &[clock(7, 1, hour, 0)]), [(7, 0, 0)], "{module}");
        assert_eq!(poll(module, &[clock(1, 1, 2 * hour, 0), clock(2, 0, hour, 0)]), [(2, 0, 0)]);
        assert_eq!(poll(module, &[clock(1, 1, hour, 0), clock(2, 1, hour, 0)]), [(1, 0, 0), (2, 0, 0)]);
        // A time long past comes before any wait; a far time of the clock after it.
        assert_eq!(poll(module, &[clock(1, 1, hour, 0), clock(2, 0, hour, 1)]), [(2, 0, 0)]);
        assert_eq!(poll(module, &[clock(1, 1, hour, 0), clock(2, 0, u64::MAX, 1)]), [(1, 0, 0)]);
        assert_eq!(poll(module, &[clock(1, 3, 0, 0)]), [(1, 58, 0)], "no such clock");
        let ready = [clock(1, 1, hour, 0), stream(2, 2, 1), stream(3, 1, 0), stream(4, 1, 5)];
        assert_eq!(poll(module, &ready), [(2, 0, 2), (3, 0, 1), (4, 8, 1)]);
    }
    let bad = Subscription { userdata: 0, kind: 9, of: 0, timeout: 0, flags: 0 }.bytes(MODULES[0]);
    let data =
        format!(r#"(data (i32.const 0) "{}")"#, bad.iter().map(|byte| format!("\\{byte:02x}")).collect::<String>());
    assert_eq!(call_in(MODULES[0], &data, "poll_oneoff", "iiii", &[0, OUT + 8, 1, OUT], options("")).0, INVAL);
}

#[test]
fn an_exit_ends_the_call_and_the_vm_with_its_code() {
    let wasm = wat(
        r#"(import "wasi_unstable" "proc_exit" (func $exit (param i32)))"#,
        "i32.const 16384",
        r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32) (call $exit (i32.const 3)) (i32.const 0))"#,
    );
    let rig = try_start(&wasm, options("")).unwrap();
    let error = rig.stream().on_request_headers(&mut FakeExchange::get("/"), true).unwrap_err().to_string();
    assert!(error.contains("exited with code 3"), "{error}");
}

#[test]
fn wasi_calls_count_as_hostcalls() {
    for (module, name, ty, arguments) in [
        (MODULES[0], "sched_yield", "(result i32)", ""),
        (MODULES[1], "fd_close", "(param i32) (result i32)", "(i32.const 3)"),
        (MODULES[0], "sock_open", "(param i32) (result i32)", "(i32.const 3)"),
        ("env", "pthread_equal", "(param i32 i32) (result i32)", "(i32.const 3) (i32.const 3)"),
    ] {
        let wasm = wat(
            &format!(r#"(import "{module}" "{name}" (func $call {ty}))"#),
            "i32.const 16384",
            &format!(
                r#"(func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
                  (loop (drop (call $call {arguments})) (br 0)) (i32.const 0))"#
            ),
        );
        let limits = Limits { hostcalls: 1000, ..options("").limits };
        let rig = try_start(&wasm, PluginOptions { limits, ..options("") }).unwrap();
        let error = rig.stream().on_request_headers(&mut FakeExchange::get("/"), true).unwrap_err();
        assert!(matches!(error, CallError::Hostcalls { limit: 1000, .. }), "{name}: {error}");
    }
}
