//! The real curl through filters, in every protocol it speaks with the node.

use std::process::Command;

use selvedge_tests::{Edge, Origin};

/// What curl prints, after the status, the protocol and what a filter has added.
struct Said {
    told: String,
    body: String,
}

/// `None` where there is no curl.
fn curl(arguments: &[&str]) -> Option<Said> {
    let told = "%{stderr}%{http_code} %{http_version} %header{x-seen} %{exitcode} %{num_connects}";
    let output = Command::new("curl").args(["-sS", "--max-time", "60", "-w", told]).args(arguments).output().ok()?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    Some(Said { told, body: String::from_utf8_lossy(&output.stdout).into_owned() })
}

const YAML: &str = "upstreams: { app: { endpoints: [\"127.0.0.1:${PORT_app}\"] } }
filters:
  noop: { wasm: \"file:${GUESTS}/noop.wasm\", limits: { deadline: 10s } }
  seen: { wasm: \"file:${GUESTS}/headers.wasm\", config: \"response add x-seen yes\", limits: { deadline: 10s } }
sites: [{ hosts: [\"*\"], routes: [{ name: all, filters: [seen, noop], to: app }] }]";

#[tokio::test(flavor = "multi_thread")]
async fn curl_works_through_filters_in_every_protocol() {
    let origin = Origin::start(|request| {
        let told = format!("{} {} {}", request.method, request.target, request.body.len());
        Origin::reply(200, &[], if request.method == "HEAD" { String::new() } else { told })
    })
    .await;
    let edge = Edge::start(YAML, &[("app", origin.address())]);
    let plain = format!("http://{}", edge.web());
    let secure = format!("https://localhost:{}", edge.secure().port());
    let upload = edge.folder().join("upload");
    std::fs::write(&upload, vec![b'u'; 3_000_000]).expect("a file to upload");
    let upload = format!("@{}", upload.display());
    let (file, from) = (&upload[1..], upload.as_str());

    tokio::task::block_in_place(|| {
        if curl(&["--version"]).is_none() {
            println!("skipped: curl not installed");
            return;
        }
        let protocols: [(&[&str], &str, &str); 5] = [
            (&["--http1.0"], "1.0", &plain),
            (&["--http1.1"], "1.1", &plain),
            (&["--http2-prior-knowledge"], "2", &plain),
            (&["--http1.1", "-k"], "1.1", &secure),
            (&["--http2", "-k"], "2", &secure),
        ];
        for (protocol, version, base) in protocols {
            let asked = |path: &str, more: &[&str]| {
                let url = format!("{base}{path}");
                curl(&[protocol, more, &[&url]].concat()).expect("curl ran a moment ago")
            };
            // curl says the version of the answer: to a client of HTTP/1.0 it is 1.1, and the connection ends (RFC 9110, 6.2).
            let version = if version == "1.0" { "1.1" } else { version };
            let rows: [(&str, &[&str], &str); 5] = [
                ("/get?a=%20b", &[], "GET /get?a=%20b 0"),
                ("/post", &["-d", "body"], "POST /post 4"),
                // So much that it asks first, with `Expect: 100-continue` where the protocol has it.
                ("/upload", &["-T", file], "PUT /upload 3000000"),
                ("/expects", &["-H", "Expect: 100-continue", "--data-binary", from], "POST /expects 3000000"),
                ("/delete", &["-X", "DELETE"], "DELETE /delete 0"),
            ];
            for (path, more, expected) in rows {
                let said = asked(path, more);
                assert_eq!(said.told, format!("200 {version} yes 0 1"), "{protocol:?} {path}");
                assert_eq!(said.body, expected, "{protocol:?} {path}");
            }
            let said = asked("/head", &["-I"]);
            assert_eq!(said.told, format!("200 {version} yes 0 1"), "{protocol:?}");
            assert!(said.body.to_ascii_lowercase().contains("x-seen: yes"), "{}", said.body);
        }
        // One connection for several requests. (curl 7.88 sends nothing the second time with prior knowledge of HTTP/2.)
        for (protocol, base) in [("--http1.1", &plain), ("--http2", &secure)] {
            let (one, two) = (format!("{base}/one"), format!("{base}/two"));
            let said = curl(&["-k", protocol, &one, &two]).expect("curl ran a moment ago");
            assert_eq!(said.body, "GET /one 0GET /two 0", "{protocol}");
            assert!(said.told.ends_with("yes 0 0"), "{protocol} {}", said.told);
        }
    });
}
