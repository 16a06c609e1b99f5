//! Filters of other toolchains (`tests/third-party`), on a node: each is built by its own compiler and has to do what its folder's README
//! says, to requests and to responses, whether requests share an instance or each gets one of its own from a snapshot.

use std::path::{Path, PathBuf};

use selvedge_tests::{Client, Edge, Origin};

use crate::filter_new::checkout;
use crate::sdk_readme::blocks;

/// What a filter calls itself, and what it can do.
struct Filter {
    /// For `tests/third-party/build`.
    build: &'static str,
    name: &'static str,
    /// The AssemblyScript SDK has no call to write a body.
    bodies: bool,
    /// Holds a request until a callout has been answered.
    callouts: bool,
    /// Reads its environment.
    environment: bool,
}

/// What most of them can do.
const FILTER: Filter = Filter { build: "", name: "", bodies: true, callouts: false, environment: false };

/// The routes of the node: requests that share an instance, and those that have one of their own.
const ROUTES: [&str; 2] = ["/shared", "/alone"];

/// Builds a filter. `None`, and a line that says what is missing, when its toolchain is not installed.
#[allow(clippy::print_stdout, reason = "says why a test is skipped")]
fn build(name: &str) -> Option<PathBuf> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/third-party/build");
    let output = std::process::Command::new(script).arg(name).output().expect("the build script runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let last = said.lines().last().unwrap_or_default();
    if output.status.code() == Some(77) {
        println!("{last}");
        return None;
    }
    assert!(output.status.success(), "{name} does not build:\n{said}{}", String::from_utf8_lossy(&output.stderr));
    Some(PathBuf::from(last))
}

/// Method, path and body of the request; at `/ask`, an answer to a callout.
async fn echo() -> Origin {
    Origin::start(|request| {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        match request.target.as_str() {
            "/ask" => Origin::reply(200, &[], "asked"),
            target => Origin::reply(200, &[], format!("{} {target} {body}", request.method)),
        }
    })
    .await
}

/// Deadlines are long: a machine that runs the whole suite at once is no measure.
fn edge(module: &Path, origin: &Origin) -> Edge {
    let common = format!(
        "wasm: \"file:{}\", config: \"some words\", root_id: words, environment: {{ FILTER_MOOD: calm }}, limits: {{ deadline: 10s, memory: 64MiB }}",
        module.display()
    );
    let yaml = format!(
        "upstreams:\n  app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }}
filters:
  shared: {{ {common} }}
  alone: {{ {common}, isolation: request, snapshot: always }}
sites:
- hosts: [\"*\"]
  routes:
  - {{ name: shared, match: {{ path: \"/shared/*\" }}, filters: [shared], to: app }}
  - {{ name: alone, match: {{ path: \"/alone/*\" }}, filters: [alone], to: app }}",
    );
    Edge::start(&yaml, &[("app", origin.address())])
}

async fn behaves(filter: Filter) {
    let Filter { build: folder, name, bodies, callouts, environment } = filter;
    let Some(module) = tokio::task::spawn_blocking(move || build(folder)).await.unwrap() else { return };
    let origin = echo().await;
    let edge = edge(&module, &origin);
    let appended = if bodies { format!(" +{name}") } else { String::new() };
    let (from_request, from_response) = (format!("{name} SOME WORDS"), format!("{name} true"));

    // Several streams one after the other: those that share an instance each have contexts of their own.
    for round in 0..3 {
        for route in ROUTES {
            let what = format!("{name} {route} {round}");
            let response = Client::get(edge.web(), &format!("{route}/get")).await;
            assert_eq!((response.status, response.text()), (200, format!("GET {route}/get {appended}")), "{what}");
            assert_eq!(response.header("x-response-from"), Some(from_response.as_str()), "{what}");
            assert_eq!(origin.last().header("x-request-from"), Some(from_request.as_str()), "{what}");
            if environment {
                assert_eq!(origin.last().header("x-environment"), Some("calm, no home"), "{what}");
            }

            let response = Client::post(edge.web(), &format!("{route}/post"), "", b"body").await;
            let body = format!("POST {route}/post body{appended}{appended}");
            assert_eq!((response.status, response.text()), (200, body), "{what}");
            assert_eq!(origin.last().body, format!("body{appended}"), "{what}");

            let heard = origin.started();
            let response = Client::get_with(edge.web(), &format!("{route}/get"), "x-ask: deny\r\n").await;
            assert_eq!((response.status, response.text()), (403, format!("denied by {name}\n{appended}")), "{what}");
            assert_eq!(response.header("x-denied"), Some(name), "{what}");
            assert_eq!(
                response.header("x-response-from"),
                Some(from_response.as_str()),
                "{what}: a reply is a response"
            );
            assert_eq!(origin.started(), heard, "{what}: the origin hears nothing of it");
        }
    }

    for route in ROUTES {
        let large = vec![b'x'; 300_000];
        let response = Client::post(edge.web(), &format!("{route}/large"), "", &large).await;
        assert_eq!(response.status, 200, "{name} {route}");
        assert_eq!(response.body.len(), format!("POST {route}/large ").len() + large.len() + 2 * appended.len());

        if callouts {
            let response = Client::get_with(edge.web(), &format!("{route}/later"), "x-ask: later\r\n").await;
            assert_eq!((response.status, response.text()), (200, format!("GET {route}/later {appended}")), "{name}");
            assert_eq!(origin.last().header("x-asked"), Some("asked"), "{name} {route}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rust_sdk_0_1_on_unknown() {
    behaves(Filter { build: "rust-0.1-unknown", name: "rust 0.1", callouts: true, ..FILTER }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rust_sdk_0_1_on_wasi() {
    behaves(Filter { build: "rust-0.1-wasip1", name: "rust 0.1", callouts: true, ..FILTER }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rust_sdk_0_2_on_unknown() {
    behaves(Filter { build: "rust-0.2-unknown", name: "rust 0.2", callouts: true, ..FILTER }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rust_sdk_0_2_on_wasi() {
    behaves(Filter { build: "rust-0.2-wasip1", name: "rust 0.2", callouts: true, ..FILTER }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c_without_an_sdk() {
    behaves(Filter { build: "c", name: "c", environment: true, ..FILTER }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cpp_without_an_sdk() {
    behaves(Filter { build: "cpp", name: "c++", ..FILTER }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn go_without_an_sdk() {
    behaves(Filter { build: "go", name: "go", environment: true, ..FILTER }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_assemblyscript_sdk() {
    behaves(Filter { build: "assemblyscript-sdk", name: "assemblyscript", bodies: false, ..FILTER }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn assemblyscript_without_an_sdk() {
    behaves(Filter { build: "assemblyscript-plain", name: "as", ..FILTER }).await;
}

/// An exception ends that request and that VM, says what and where in the log, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn an_exception_of_assemblyscript_fails_its_request_only() {
    let built = tokio::task::spawn_blocking(|| build("assemblyscript-plain")).await.unwrap();
    let Some(module) = built else { return };
    let origin = echo().await;
    let edge = edge(&module, &origin);
    for route in ROUTES {
        let path = format!("{route}/get");
        let heard = origin.started();
        assert_eq!(Client::get_with(edge.web(), &path, "x-ask: abort\r\n").await.status, 503, "{route}");
        assert_eq!(origin.started(), heard, "{route}");
        assert_eq!(Client::get(edge.web(), &path).await.status, 200, "{route}");
    }
}

/// The page for authors in other languages shows what is built and run here: its code is that of the filters, its flags and variables are
/// those of the build script.
#[test]
fn the_page_of_other_languages_says_what_is_built_here() {
    let read = |path: &str| std::fs::read_to_string(checkout().join(path)).expect(path);
    let (page, build) = (read("docs/other-languages.md"), read("tests/third-party/build"));
    let (mut excerpts, mut commands) = (0, 0);
    for block in blocks(&page) {
        let place = format!("docs/other-languages.md:{}", block.line);
        match (block.language, block.file) {
            ("yaml", None) => {}
            ("sh", None) => {
                for command in block.text.lines() {
                    for word in command.split_whitespace().filter(|word| word.starts_with('-') || word.contains('=')) {
                        assert!(build.contains(word), "{place}: {word}");
                    }
                    commands += 1;
                }
            }
            (_, Some(file)) => {
                assert!(read(file).contains(&block.text), "{place}: not in {file}");
                excerpts += 1;
            }
            (language, None) => panic!("{place}: from which file is this {language}?"),
        }
    }
    assert_eq!((excerpts, commands), (6, 4));
}
