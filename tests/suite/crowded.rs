//! Guests that burn what they may, beside requests that have nothing to do with them.

use std::time::Instant;

use selvedge_tests::{Client, Edge};

/// One worker; a route whose filter burns its CPU time on every request, and one that has no filter.
const CONFIG: &str = "version: 1
node: { name: edge, workers: 1, shutdown_grace: 1s, module_cache: off }
telemetry: { access_log: { output: off } }
listeners:
  web: { bind: \"127.0.0.1:0\" }
filters:
  spin: { wasm: \"file:${GUESTS}/spin.wasm\", config: request_headers, isolation: ISOLATION, limits: { cpu: 50ms, deadline: 20s } }
  noop: { wasm: \"file:${GUESTS}/noop.wasm\", limits: { deadline: 20s } }
sites:
  - hosts: [\"*\"]
    routes:
      - { name: burn, match: { path: /burn }, filters: [spin], respond: { status: 200 } }
      - { name: calm, match: { path: /calm }, filters: [noop], respond: { status: 200 } }
";

const ATTACKERS: usize = 8;
const ATTACKS: usize = 6;

/// Each burning request holds its thread for 50 ms of CPU time. If it held the worker, a calm one would wait for all that are ahead of it,
/// and at most one would be answered for each that has burnt. It is asked for all the time while they burn.
#[tokio::test(flavor = "multi_thread")]
async fn requests_beside_burning_ones_are_answered_meanwhile() {
    for isolation in ["worker", "request"] {
        let edge = Edge::start(&CONFIG.replace("ISOLATION", isolation), &[]);
        let web = edge.web();
        let attackers: Vec<_> = (0..ATTACKERS)
            .map(|_| {
                tokio::spawn(async move {
                    for _ in 0..ATTACKS {
                        assert_eq!(Client::get(web, "/burn").await.status, 503);
                    }
                })
            })
            .collect();

        let mut waits = Vec::new();
        while attackers.iter().any(|attacker| !attacker.is_finished()) {
            let asked = Instant::now();
            assert_eq!(Client::get(web, "/calm").await.status, 200, "{isolation}");
            waits.push(asked.elapsed());
        }
        for attacker in attackers {
            attacker.await.unwrap();
        }
        waits.sort();
        let (median, longest) = (waits[waits.len() / 2], waits[waits.len() - 1]);
        eprintln!("isolation {isolation}: {} calm requests, median {median:?}, longest {longest:?}", waits.len());
        // Counted, not timed: a machine that is busy with other things slows both down.
        assert!(waits.len() > ATTACKERS * ATTACKS, "{isolation}: {} calm ones, median {median:?}", waits.len());
    }
}
