//! Shared queues on a node: from one filter to another, across workers and reloads.

use selvedge_tests::{Client, Edge, soon};

fn yaml(producer: &str) -> String {
    format!(
        "node: {{ name: edge, workers: 2, shutdown_grace: 1s, module_cache: off }}
listeners:
  web: {{ bind: \"127.0.0.1:0\" }}
filters:
  consumer: {{ wasm: \"file:${{GUESTS}}/queue.wasm\", config: \"jobs - jobs\", limits: {{ deadline: 10s }} }}
  producer: {{ wasm: \"file:${{GUESTS}}/queue.wasm\", config: \"{producer}\", limits: {{ deadline: 10s }} }}
sites:
  - hosts: [\"*\"]
    routes:
      - {{ name: seen, match: {{ path: /seen }}, filters: [consumer], respond: {{ status: 200 }} }}
      - {{ name: enqueue, match: {{ path: /enqueue }}, filters: [producer], respond: {{ status: 200 }} }}
"
    )
}

fn start(producer: &str) -> Edge {
    Edge::start(&format!("version: 1\ntelemetry: {{ access_log: {{ output: off }} }}\n{}", yaml(producer)), &[])
}

async fn enqueue(edge: &Edge, items: &str) -> String {
    let response = Client::get_with(edge.web(), "/enqueue", &format!("x-enqueue: {items}\r\n")).await;
    response.header("x-enqueued").unwrap_or_default().to_owned()
}

/// Asks until the consumer has seen these items: it is told on its own time, and two of its VMs may be at it when one has just registered, so
/// that nothing is said of the order, and one of them may find that the other has taken what it was told of: that is an empty word.
async fn has_seen(edge: &Edge, items: &str) {
    soon("the items", async {
        loop {
            let response = Client::get(edge.web(), "/seen").await;
            let mut seen: Vec<&str> = response.header("x-seen").unwrap_or_default().split_whitespace().collect();
            seen.sort_unstable();
            if seen.join(" ") == items {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_filter_puts_into_a_queue_another_takes_out() {
    let edge = start("- consumer jobs");
    assert_eq!(enqueue(&edge, "a b c").await, "ok ok ok");
    has_seen(&edge, "a b c").await;
    // Connections are accepted by any worker: whichever registered last is woken from the other's thread.
    for item in ["d", "e", "f"] {
        assert_eq!(enqueue(&edge, item).await, "ok");
    }
    has_seen(&edge, "a b c d e f").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_of_nobody_is_not_found() {
    let edge = start("- nobody jobs");
    assert_eq!(enqueue(&edge, "a").await, "no-queue");
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_and_their_items_outlive_a_reload() {
    let mut edge = start("- consumer jobs");
    assert_eq!(enqueue(&edge, "a").await, "ok");
    has_seen(&edge, "a").await;
    // Another producer configuration; and other limits, so that the consumer's plugin is made anew with the plan.
    let next = format!("version: 1\ntelemetry: {{ access_log: {{ output: off }} }}\n{}", yaml("other consumer jobs"));
    let next = next.replace("deadline: 10s", "deadline: 11s");
    edge.reload(&next).expect("in order");
    assert_eq!(enqueue(&edge, "b").await, "ok");
    has_seen(&edge, "a b").await;
}
