//! Filters of other toolchains (`tests/third-party`), on a node: each is built by its own compiler and has to do what its folder's README
//! says, to requests and to responses.

use std::path::PathBuf;

use selvedge_tests::{Client, Edge, Origin};

/// What a filter calls itself, and what it can do.
struct Filter {
    /// For `tests/third-party/build`.
    build: &'static str,
    name: &'static str,
    /// The AssemblyScript SDK has no call to write a body.
    bodies: bool,
    /// Holds a request until a callout has been answered.
    callouts: bool,
}

/// Builds a filter. `None`, and a line that says what is missing, when its toolchain is not installed.
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
fn edge(module: &std::path::Path, origin: &Origin) -> Edge {
    let yaml = format!(
        "upstreams:\n  app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }}
filters:
  filter: {{ wasm: \"file:{}\", config: \"some words\", limits: {{ deadline: 10s, memory: 64MiB }} }}
sites: [{{ hosts: [\"*\"], routes: [{{ name: all, match: {{ path: \"/*\" }}, filters: [filter], to: app }}] }}]",
        module.display()
    );
    Edge::start(&yaml, &[("app", origin.address())])
}

async fn behaves(filter: Filter) {
    let Filter { build: folder, name, bodies, callouts } = filter;
    let Some(module) = tokio::task::spawn_blocking(move || build(folder)).await.unwrap() else { return };
    let origin = echo().await;
    let edge = edge(&module, &origin);
    let appended = if bodies { format!(" +{name}") } else { String::new() };
    let (from_request, from_response) = (format!("{name} SOME WORDS"), format!("{name} true"));

    // Several streams on one VM, each with its own contexts.
    for round in 0..3 {
        let response = Client::get(edge.web(), &format!("/get/{round}")).await;
        assert_eq!((response.status, response.text()), (200, format!("GET /get/{round} {appended}")));
        assert_eq!(response.header("x-response-from"), Some(from_response.as_str()));
        assert_eq!(origin.last().header("x-request-from"), Some(from_request.as_str()));

        let response = Client::post(edge.web(), "/post", "", b"body").await;
        assert_eq!((response.status, response.text()), (200, format!("POST /post body{appended}{appended}")));
        assert_eq!(origin.last().body, format!("body{appended}"));

        let heard = origin.started();
        let response = Client::get_with(edge.web(), "/get", "x-ask: deny\r\n").await;
        assert_eq!((response.status, response.text()), (403, format!("denied by {name}\n{appended}")));
        assert_eq!(response.header("x-denied"), Some(name));
        assert_eq!(response.header("x-response-from"), Some(from_response.as_str()), "a reply is a response too");
        assert_eq!(origin.started(), heard, "the origin hears nothing of it");
    }

    let large = vec![b'x'; 300_000];
    let response = Client::post(edge.web(), "/large", "", &large).await;
    assert_eq!(response.status, 200);
    assert_eq!(response.body.len(), "POST /large ".len() + large.len() + 2 * appended.len());

    if callouts {
        let response = Client::get_with(edge.web(), "/later", "x-ask: later\r\n").await;
        assert_eq!((response.status, response.text()), (200, format!("GET /later {appended}")));
        assert_eq!(origin.last().header("x-asked"), Some("asked"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rust_sdk_0_1_on_unknown() {
    behaves(Filter { build: "rust-0.1-unknown", name: "rust 0.1", bodies: true, callouts: true }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rust_sdk_0_1_on_wasi() {
    behaves(Filter { build: "rust-0.1-wasip1", name: "rust 0.1", bodies: true, callouts: true }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rust_sdk_0_2_on_unknown() {
    behaves(Filter { build: "rust-0.2-unknown", name: "rust 0.2", bodies: true, callouts: true }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rust_sdk_0_2_on_wasi() {
    behaves(Filter { build: "rust-0.2-wasip1", name: "rust 0.2", bodies: true, callouts: true }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c_without_an_sdk() {
    behaves(Filter { build: "c", name: "c", bodies: true, callouts: false }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cpp_without_an_sdk() {
    behaves(Filter { build: "cpp", name: "c++", bodies: true, callouts: false }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn go_without_an_sdk() {
    behaves(Filter { build: "go", name: "go", bodies: true, callouts: false }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_assemblyscript_sdk() {
    behaves(Filter { build: "assemblyscript-sdk", name: "assemblyscript", bodies: false, callouts: false }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn assemblyscript_without_an_sdk() {
    behaves(Filter { build: "assemblyscript-plain", name: "as", bodies: true, callouts: false }).await;
}

/// An exception ends that request and that VM, says what and where in the log, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn an_exception_of_assemblyscript_fails_its_request_only() {
    let built = tokio::task::spawn_blocking(|| build("assemblyscript-plain")).await.unwrap();
    let Some(module) = built else { return };
    let origin = echo().await;
    let edge = edge(&module, &origin);
    assert_eq!(Client::get_with(edge.web(), "/", "x-ask: abort\r\n").await.status, 503);
    assert_eq!(origin.started(), 0);
    assert_eq!(Client::get(edge.web(), "/").await.status, 200);
}
