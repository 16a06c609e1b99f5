//! The public HTTP cache tests (`github.com/http-tests/cache-tests`) against a node, with what they say of it: how many tests have to
//! pass, and which may miss. `docs/http-caching.md` explains each of those.
//!
//! The copy on npm, which `make setup` installs, runs with every `make test`. It is older than the suite itself, and asks for some things
//! that RFC 9111 has decided otherwise since. The suite as it is today runs by `make cache-suite SUITE=CHECKOUT`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use selvedge_tests::Process;

const PROGRAM: &str = env!("CARGO_BIN_EXE_selvedge-under-test");
const RUNNER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/http-cache/run.mjs");
const PACKAGE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../target/third-party/http-cache/node_modules/http-cache-tests");

/// The route's policy: what the suite looks at and a node does by wish only.
const POLICY: &str = "{ request_directives: true, stale_if_error: 1d, languages: [de, en, fr], ranges: as_asked }";

/// What both may miss.
const MISSED_BY_BOTH: &[&str] = &[
    "304-etag-update-response-Content-Type",
    "conditional-etag-forward",
    "conditional-etag-forward-unquoted",
    "conditional-etag-strong-generate-unquoted",
    "conditional-etag-strong-respond-obs-text",
    "conditional-etag-vary-headers-mismatch",
    "conditional-lm-fresh-no-lm",
    "freshness-max-age-100a",
    "freshness-max-age-a100",
    "freshness-max-age-decimal-five",
    "freshness-max-age-decimal-zero",
    "freshness-max-age-two-fresh-stale-sameline",
    "freshness-max-age-two-fresh-stale-sepline",
    "freshness-max-age-two-stale-fresh-sameline",
    "freshness-max-age-two-stale-fresh-sepline",
    "head-200-freshness-update",
    "head-200-retain",
    "head-200-update",
    "head-410-update",
    "head-writethrough",
    "heuristic-delta-10",
    "heuristic-delta-30",
    "heuristic-delta-5",
    "other-date-update",
    "partial-store-partial-complete",
    "partial-store-partial-reuse-partial-absent",
    "partial-store-partial-reuse-partial-byterange",
    "partial-store-partial-reuse-partial-suffix",
    "stale-warning-become",
    "stale-warning-stored",
];

/// What the copy on npm may miss besides.
const MISSED_BY_PACKAGE: &[&str] = &[
    "304-etag-update-response-Content-MD5",
    "304-etag-update-response-ETag",
    "age-parse-dup-0",
    "age-parse-dup-0-twoline",
    "age-parse-dup-old",
    "age-parse-float",
    "age-parse-negative",
    "age-parse-nonnumeric",
    "age-parse-prefix-twoline",
    "freshness-expires-32bit",
    "freshness-expires-far-future",
    "freshness-expires-invalid-1-digit-hour",
    "freshness-expires-invalid-2-digit-year",
    "freshness-expires-invalid-aest",
    "freshness-expires-invalid-date-dashes",
    "freshness-expires-invalid-multiple-lines",
    "freshness-expires-invalid-multiple-spaces",
    "freshness-expires-invalid-no-comma",
    "freshness-expires-invalid-time-periods",
    "freshness-expires-invalid-utc",
    "freshness-max-age-multiple-directive",
    "freshness-max-age-multiple-line",
    "pragma-request-no-cache",
    "stale-close-must-revalidate",
    "stale-close-no-cache",
    "stale-close-proxy-revalidate",
    "stale-close-s-maxage=2",
];

/// What the suite may miss besides, as it was in July 2026 (b55b8bd).
const MISSED: &[&str] = &[
    "304-etag-update-response-Content-Encoding",
    "304-etag-update-response-Content-Range",
    "cdn-date-update-exceed",
    "cdn-max-age-case-insensitive",
    "other-age-delay",
    "other-date-update-expires",
];

/// How many tests have to pass, of how many: of the suite as it is today.
const REQUIRED: (usize, usize) = (158, 160);
const OPTIMAL: (usize, usize) = (100, 105);
const CHECK: (usize, usize) = (70, 100);

/// What came of a run.
struct Report {
    /// By kind: how many have passed, of how many.
    scores: BTreeMap<String, (usize, usize)>,
    /// Why, by test.
    missed: BTreeMap<String, String>,
}

/// A child that ends with the test.
struct Origin(Child);

impl Drop for Origin {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether the suite can run; says why not.
#[allow(clippy::print_stdout, reason = "says why a test is skipped")]
fn can_run(suite: &Path) -> bool {
    let node = Command::new("node").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let skipped = if !node.is_ok_and(|status| status.success()) {
        "skipped: node not installed".to_owned()
    } else if suite.join("tests").is_dir() {
        return true;
    } else {
        format!("skipped: {} not installed (`make setup`)", suite.display())
    };
    println!("{skipped}");
    false
}

/// Runs all tests of a suite against a node of its own, and those once more, alone, that should have passed: a machine that runs
/// everything at once may be late.
async fn run(suite: &Path, expected: &[&[&str]]) -> Report {
    let mut origin = Origin(
        Command::new("node")
            .args([RUNNER, "origin"])
            .arg(suite)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node starts"),
    );
    let mut port = String::new();
    BufReader::new(origin.0.stdout.take().expect("piped")).read_line(&mut port).expect("a port");

    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("config.yaml");
    let yaml = format!(
        "version: 1
node: {{ name: edge, workers: 1 }}
telemetry: {{ access_log: {{ output: off }} }}
listeners: {{ web: {{ bind: \"127.0.0.1:0\" }} }}
cache: {{}}
upstreams: {{ suite: {{ endpoints: [\"127.0.0.1:{}\"] }} }}
sites: [{{ hosts: [\"*\"], routes: [{{ cache: {POLICY}, to: suite }}] }}]",
        port.trim()
    );
    std::fs::write(&config, yaml).expect("written");
    let node = Process::run(PROGRAM, folder.path(), &config, 1).await;
    let proxy = format!("http://{}", node.addresses()["web"]);

    let mut report = tests(suite, &proxy, None).await;
    let late: Vec<String> =
        report.missed.keys().filter(|id| !expected.concat().contains(&id.as_str())).cloned().collect();
    if !late.is_empty() {
        let again = tests(suite, &proxy, Some(late.join(","))).await;
        for id in late.iter().filter(|id| !again.missed.contains_key(*id)) {
            let missed = report.missed.remove(id).expect("it was missed");
            let kind = missed.split(':').next().expect("a kind");
            report.scores.get_mut(kind).expect("a score").0 += 1;
        }
    }
    report
}

/// Runs tests of a suite against a proxy.
async fn tests(suite: &Path, proxy: &str, only: Option<String>) -> Report {
    let (suite, proxy) = (suite.to_owned(), proxy.to_owned());
    let output = tokio::task::spawn_blocking(move || {
        let mut command = Command::new("node");
        command.args([RUNNER, "tests"]).arg(suite).arg(proxy).args(only).output().expect("node runs")
    });
    let output = output.await.expect("no panic");
    let said = String::from_utf8_lossy(&output.stdout);
    let report: serde_json::Value = serde_json::from_str(&said)
        .unwrap_or_else(|error| panic!("{error}: {said}{}", String::from_utf8_lossy(&output.stderr)));
    Report {
        scores: serde_json::from_value(report["scores"].clone()).expect("scores"),
        missed: serde_json::from_value(report["missed"].clone()).expect("what was missed"),
    }
}

/// Every difference between what was missed and what may be, one line each.
fn differences(report: &Report, expected: &[&[&str]]) -> Vec<String> {
    let expected = expected.concat();
    let missed = report.missed.iter().filter(|(id, _)| !expected.contains(&id.as_str()));
    let passed = expected.iter().filter(|id| !report.missed.contains_key(**id));
    missed
        .map(|(id, why)| format!("{id} misses: {why}"))
        .chain(passed.map(|id| format!("{id} passes: take it off the list")))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_copy_on_npm_passes() {
    let suite = PathBuf::from(PACKAGE);
    if can_run(&suite) {
        let report = run(&suite, &[MISSED_BY_BOTH, MISSED_BY_PACKAGE]).await;
        assert_eq!(
            differences(&report, &[MISSED_BY_BOTH, MISSED_BY_PACKAGE]),
            <[String; 0]>::default(),
            "{:?}",
            report.scores
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a checkout of the suite: make cache-suite SUITE=PATH"]
#[allow(clippy::print_stdout, reason = "says how well the node did")]
async fn the_suite_of_today_passes() {
    let suite = PathBuf::from(std::env::var_os("HTTP_CACHE_TESTS").expect("HTTP_CACHE_TESTS is the suite's folder"));
    if can_run(&suite) {
        let report = run(&suite, &[MISSED_BY_BOTH, MISSED]).await;
        println!("{:?}", report.scores);
        for (id, why) in &report.missed {
            println!("{id} misses: {why}");
        }
        for (kind, (least, of)) in [("required", REQUIRED), ("optimal", OPTIMAL), ("check", CHECK)] {
            let (passed, all) = report.scores[kind];
            assert!(passed >= least && all >= of, "{kind}: {passed} of {all}");
        }
        assert_eq!(differences(&report, &[MISSED_BY_BOTH, MISSED]), <[String; 0]>::default());
    }
}
