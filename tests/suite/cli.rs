//! The commands, as a process: faults and exit codes, the schema, tokens, signals and reloads.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use selvedge_tests::{Client, Process, until};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_selvedge-under-test");

fn selvedge(arguments: &[&str], folder: &Path) -> Output {
    Command::new(PROGRAM).args(arguments).current_dir(folder).output().expect("the program runs")
}

fn folder_with(config: &str) -> (TempDir, PathBuf) {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("config.yaml");
    std::fs::write(&path, config).expect("written");
    (folder, path)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn node(rest: &str) -> String {
    format!(
        "version: 1
node: {{ module_cache: off, workers: 1, shutdown_grace: 5s }}
listeners: {{ web: {{ bind: \"127.0.0.1:0\" }} }}
upstreams: {{ demo: {{ builtin: demo }} }}
{rest}"
    )
}

#[test]
fn the_example_configuration_is_in_order() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let config = std::fs::read_to_string(root.join("config.yaml")).expect("config.yaml");
    let (folder, _) = folder_with(&config);
    let checked = selvedge(&["check"], folder.path());
    assert!(checked.status.success(), "{}", text(&checked.stderr));
    assert!(text(&checked.stdout).contains("in order"));
}

#[test]
fn every_fault_is_reported_at_once_with_its_place_and_nothing_starts() {
    let config = "version: 1
listners: {}
listeners: { web: { bind: \"127.0.0.1:0\" } }
upstreams: { app: { endpoints: [\"127.0.0.1:1\"], timeouts: { conect: 1s } } }
filters: { waf: { wasm: builtin:waff } }
sites:
  - hosts: [\"*\"]
    routes:
      - { name: a, filters: [wav], to: apq }
";
    let (folder, _) = folder_with(config);
    for command in ["check", "run"] {
        let output = selvedge(&[command], folder.path());
        assert_eq!(output.status.code(), Some(2));
        let report = text(&output.stderr);
        for expected in [
            "config.yaml:2:1",
            "did you mean `listeners`",
            "`connect`",
            "`waf`",
            "`app`",
            "config.yaml:9:30",
            "config.yaml:9:40",
            "5 faults",
        ] {
            assert!(report.contains(expected), "{expected} is not in:\n{report}");
        }
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_filter_that_refuses_its_settings_is_reported_at_its_place() {
    let config = node(
        "filters:
  limit:
    wasm: builtin:rate-limit
    config: { rate: 5/min, brust: 3 }
sites: [{ hosts: [\"*\"], routes: [{ filters: [limit], to: demo }] }]
",
    );
    let (folder, _) = folder_with(&config);
    let output = selvedge(&["check"], folder.path());
    let report = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{report}");
    assert!(report.contains("config.yaml:8:28") && report.contains("limit") && report.contains("brust"), "{report}");
}

#[test]
fn secrets_are_in_no_report() {
    let config = node(
        "filters:
  jwt:
    wasm: builtin:jwt-auth
    config:
      secret_file: secret.txt
      isuer: me
sites: [{ hosts: [\"*\"], routes: [{ filters: [jwt], to: demo }] }]
",
    );
    let (folder, _) = folder_with(&config);
    std::fs::write(folder.path().join("secret.txt"), "the-secret-that-must-not-be-shown-anywhere\n").expect("written");
    let output = selvedge(&["check"], folder.path());
    assert_eq!(output.status.code(), Some(2));
    assert!(!text(&output.stderr).contains("must-not-be-shown"), "{}", text(&output.stderr));
}

#[test]
fn the_schema_is_json_and_names_the_sections() {
    let folder = TempDir::new().expect("a folder");
    for arguments in [&["schema"][..], &["schema", "--include"]] {
        let output = selvedge(arguments, folder.path());
        let schema: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        for section in ["listeners", "upstreams", "filters", "sites", "cache", "geo"] {
            assert!(schema["properties"][section].is_object(), "{section}");
        }
    }
}

#[test]
fn missing_files_and_bad_arguments_are_one_clear_sentence() {
    let folder = TempDir::new().expect("a folder");
    let output = selvedge(&["check", "--config", "nowhere.yaml"], folder.path());
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("nowhere.yaml"), "{}", text(&output.stderr));
    assert!(!selvedge(&["token", "--config", "nowhere.yaml"], folder.path()).status.success());
    assert!(!selvedge(&["dance"], folder.path()).status.success());
}

fn greeting(text: &str) -> String {
    node(&format!("sites: [{{ hosts: [\"*\"], routes: [{{ respond: {{ status: 200, body: \"{text}\" }} }}] }}]\n"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_and_sighup_reload_and_a_bad_file_changes_nothing() {
    let (folder, path) = folder_with(&greeting("one"));
    let mut process = Process::run(PROGRAM, folder.path(), &path, 1).await;
    let web = process.addresses()["web"];
    assert_eq!(Client::get(web, "/").await.text(), "one");

    let reloads =
        |process: &Process| process.log().iter().filter(|line| line.contains("configuration reloaded")).count();
    std::fs::write(&path, greeting("two")).expect("written");
    until("the change is noticed", || reloads(&process) == 1).await;
    assert_eq!(Client::get(web, "/").await.text(), "two");

    std::fs::write(&path, greeting("three").replace("routes", "rutes")).expect("written");
    until("the fault is reported", || process.log().iter().any(|line| line.contains("did you mean `routes`"))).await;
    assert_eq!(Client::get(web, "/").await.text(), "two");

    // Replaced by rename, as deployments do; and once more by hand.
    let next = folder.path().join("next.yaml");
    std::fs::write(&next, greeting("four")).expect("written");
    std::fs::rename(&next, &path).expect("renamed");
    until("the rename is noticed", || reloads(&process) == 2).await;
    assert_eq!(Client::get(web, "/").await.text(), "four");
    process.signal("HUP");
    until("SIGHUP reloads", || reloads(&process) == 3).await;

    // What only a restart can change is refused whole.
    std::fs::write(&path, greeting("five").replace("workers: 1", "workers: 2")).expect("written");
    until("the refusal is reported", || process.log().iter().any(|line| line.contains("needs a restart"))).await;
    assert_eq!(Client::get(web, "/").await.text(), "four");

    process.signal("TERM");
    assert!(process.ended().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minted_token_opens_the_route_it_is_for() {
    let config = node(
        "filters:
  jwt:
    wasm: builtin:jwt-auth
    limits: { deadline: 5s }
    config: { secret: 0123456789abcdef0123456789abcdef, issuer: me, audience: you, claims_to_headers: { sub: x-user } }
sites: [{ hosts: [\"*\"], routes: [{ filters: [jwt], to: demo }] }]
",
    );
    let (folder, path) = folder_with(&config);
    let process = Process::run(PROGRAM, folder.path(), &path, 1).await;
    let web = process.addresses()["web"];
    assert_eq!(Client::get(web, "/private").await.status, 401);

    let minted = selvedge(&["token", "--filter", "jwt", "--sub", "ada"], folder.path());
    assert!(minted.status.success(), "{}", text(&minted.stderr));
    let token = text(&minted.stdout);
    let response = Client::get_with(web, "/private", &format!("authorization: Bearer {}\r\n", token.trim())).await;
    assert_eq!((response.status, response.json()["user"].as_str()), (200, Some("ada")));
}
