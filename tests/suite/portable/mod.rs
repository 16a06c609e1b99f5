//! The proof that a filter is portable: every bundled filter and every example of the SDK, the very same module, on a node and on Envoy,
//! asked the same things. What clients, origins and upstreams see must be the same, but for what `tests/portable/NAME.json` gives a
//! reason for. `docs/portability.md` has the table.

#![allow(clippy::print_stdout, reason = "the table is what a run is for")]

mod case;
mod hosts;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use case::{Answer, Ask, Case, Filter};
use parking_lot::Mutex;
use selvedge_guest_build::Guests;
use selvedge_tests::{Client, Origin, Request, Response};

use crate::conformance::hosts::{Host, Running};
use crate::conformance::record::Records;

/// All of it, both hosts included; building the modules is not.
const BOUND: Duration = Duration::from_secs(300);

/// How long one exchange may take.
const EXCHANGE: Duration = Duration::from_secs(10);

/// What passes between two pieces of a body: enough for a host to have read the first.
const BETWEEN_PIECES: Duration = Duration::from_millis(20);

#[tokio::test(flavor = "multi_thread")]
async fn every_filter_behaves_on_envoy_as_here() {
    let Some(envoy) = Host::envoy() else {
        // Not by println, which is only shown of a test that fails.
        let _ = writeln!(io::stderr(), "portable: skipped: Envoy not installed (`make setup-full` does)");
        return;
    };
    let filters = filters().await;

    let began = Instant::now();
    let (here, there) = tokio::join!(run(&Host::Selvedge, &filters), run(&envoy, &filters));
    let (here, there) = (
        here.unwrap_or_else(|error| panic!("the node:\n{error}")),
        there.unwrap_or_else(|error| panic!("Envoy:\n{error}")),
    );
    let took = began.elapsed();

    let rows = report::rows(&filters, &here, &there);
    println!("{}", report::table(&rows));
    let faults: Vec<&str> = rows.iter().flat_map(|row| &row.faults).map(String::as_str).collect();
    assert!(faults.is_empty(), "{} faults:\n\n{}", faults.len(), faults.join("\n"));
    if std::env::var_os("PORTABLE_PUBLISH").is_some() {
        report::publish(&rows).expect("docs/portability.md is written");
    }
    assert!(took < BOUND, "it took {took:?}");
}

/// The modules, built if they are not.
async fn filters() -> Vec<Filter> {
    let built = tokio::task::spawn_blocking(|| {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let folders = std::fs::read_dir(workspace.join("filters")).map_err(|error| error.to_string())?;
        let packages = folders.filter_map(Result::ok).filter(|folder| folder.path().is_dir());
        let packages = packages.map(|folder| format!("selvedge-filter-{}", folder.file_name().to_string_lossy()));
        let filters: PathBuf = Guests::packages(packages).build(&workspace)?;
        let examples = Guests::examples_of("selvedge-sdk").build(&workspace)?;
        case::all(&workspace, &filters, &examples)
    });
    built.await.expect("does not panic").unwrap_or_else(|error| panic!("{error}"))
}

/// What came of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) status: Option<u16>,
    /// Everything else, as lines, so that a difference can be shown.
    pub(crate) lines: Vec<String>,
}

/// What came of all requests, by case.
type Results = BTreeMap<String, Vec<Seen>>;

/// What the servers are to answer now. One case is asked at a time.
type Current = Arc<Mutex<BTreeMap<String, Vec<Answer>>>>;

async fn run(host: &Host, filters: &[Filter]) -> Result<Results, String> {
    let current = Current::default();
    let origin = server("origin", &current).await;
    let names: BTreeSet<&String> =
        filters.iter().flat_map(|filter| &filter.cases).flat_map(|case| case.upstreams.keys()).collect();
    let mut upstreams = BTreeMap::new();
    for name in names {
        upstreams.insert(name.clone(), server(name, &current).await);
    }

    let addresses = upstreams.iter().map(|(name, server)| (name.clone(), server.address())).collect();
    let (config, listeners) = hosts::config(host, filters, origin.address(), &addresses);
    let running = host.launch(config, listeners, &Arc::<Records>::default()).await?;
    let mut results = Results::new();
    for filter in filters {
        for (number, case) in filter.cases.iter().enumerate() {
            let id = hosts::id(filter, number);
            let mut answers = case.upstreams.clone();
            answers.insert("origin".into(), vec![case.origin.clone()]);
            *current.lock() = answers;
            let mut seen = Vec::new();
            for ask in &case.ask {
                seen.push(attempt(&running, &id, case, ask, &origin, &upstreams).await);
            }
            results.insert(id, seen);
        }
    }
    if running.has_ended() {
        return Err(format!("it ended before the cases did:\n{}", running.log()));
    }
    if std::env::var_os("PORTABLE_LOG").is_some() {
        println!("{}", running.log());
    }
    Ok(results)
}

async fn server(name: &str, current: &Current) -> Origin {
    let (name, current) = (name.to_owned(), current.clone());
    Origin::start(move |request| {
        let answers = current.lock().get(&name).cloned().unwrap_or_default();
        let fits = |answer: &&Answer| match answer.when.as_deref().and_then(|when| when.split_once(": ")) {
            Some((name, value)) => request.header(name) == Some(value),
            None => true,
        };
        let answer = answers.iter().find(fits).cloned().unwrap_or(Answer { status: 404, ..Answer::default() });
        let headers: Vec<(&str, &str)> = answer.headers.iter().filter_map(|field| field.split_once(": ")).collect();
        Origin::reply(answer.status, &headers, answer.body)
    })
    .await
}

async fn attempt(
    running: &Running,
    id: &str,
    case: &Case,
    ask: &Ask,
    origin: &Origin,
    upstreams: &BTreeMap<String, Origin>,
) -> Seen {
    let before = origin.received().len();
    let called: Vec<usize> = upstreams.values().map(|server| server.received().len()).collect();
    let answer = tokio::time::timeout(EXCHANGE, send(running, id, ask)).await;
    let answer = answer.unwrap_or_else(|_| Err("no answer in time".into()));

    let mut lines = Vec::new();
    let status = match &answer {
        Ok(response) => {
            lines.push(format!("status {}", response.status));
            lines.extend(fields("answer", &response.headers, &case.mask));
            lines.push(format!("answer body {:?}", response.text()));
            Some(response.status)
        }
        Err(error) => {
            lines.push(format!("no answer: {error}"));
            None
        }
    };
    for request in &origin.received()[before..] {
        lines.extend(received("origin", request, &case.mask));
    }
    let seen = upstreams.iter().zip(called);
    for ((name, server), before) in
        seen.filter(|((name, _), _)| case.upstreams.contains_key(*name) && !case.unseen.contains(name))
    {
        for request in &server.received()[before..] {
            lines.extend(received(name, request, &case.mask));
        }
    }
    Seen { status, lines }
}

async fn send(running: &Running, id: &str, ask: &Ask) -> Result<Response, String> {
    let (method, path, _) = ask.parts();
    let mut client = Client::connect(running.at(id)).await;
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {id}.test\r\n");
    for field in &ask.headers {
        head.push_str(&format!("{field}\r\n"));
    }
    match ask.body.as_slice() {
        [] => client.send(format!("{head}\r\n").as_bytes()).await,
        [whole] => client.send(format!("{head}content-length: {}\r\n\r\n{whole}", whole.len()).as_bytes()).await,
        pieces => {
            client.send(format!("{head}transfer-encoding: chunked\r\n\r\n").as_bytes()).await;
            for piece in pieces {
                client.send(format!("{:x}\r\n{piece}\r\n", piece.len()).as_bytes()).await;
                tokio::time::sleep(BETWEEN_PIECES).await;
            }
            client.send(b"0\r\n\r\n").await;
        }
    }
    client.try_response(method).await
}

fn received(by: &str, request: &Request, mask: &[String]) -> Vec<String> {
    let mut lines = vec![format!("{by} got {} {}", request.method, request.target)];
    lines.extend(fields(by, &request.headers, mask));
    lines.push(format!("{by} body {:?}", String::from_utf8_lossy(&request.body)));
    lines
}

/// The fields that are not the hosts' own, in an order that does not matter: by name.
fn fields(of: &str, fields: &[(String, String)], mask: &[String]) -> Vec<String> {
    /// Each host says in its own way who it is, how long it took, and how the body is framed.
    const OWN: [&str; 18] = [
        "cdn-loop",
        "date",
        "server",
        "via",
        "connection",
        "keep-alive",
        "transfer-encoding",
        "content-length",
        "cache-status",
        "age",
        "proxy-status",
        "server-timing",
        "x-request-id",
        "forwarded",
        "te",
        "x-real-ip",
        "x-forwarded-for",
        "x-forwarded-proto",
    ];
    let own = |name: &str| OWN.contains(&name) || name.starts_with("x-envoy-") || name.starts_with("x-forwarded-");
    let mut lines: Vec<String> = fields
        .iter()
        .filter(|(name, _)| !own(name))
        .map(|(name, value)| {
            let value = if mask.contains(name) { "(masked)" } else { value };
            format!("{of} {name}: {value}")
        })
        .collect();
    // Stable: values of one name stay in their order.
    lines.sort_by(|one, other| {
        one.split_once(": ").map(|(name, _)| name).cmp(&other.split_once(": ").map(|(name, _)| name))
    });
    lines
}
