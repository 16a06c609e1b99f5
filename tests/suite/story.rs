//! The written story of a request and the code must not drift apart: the steps of a request, as the node traces them.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::FutureExt;
use parking_lot::Mutex;
use selvedge_tests::{Client, Edge, Origin, until};
use tokio::sync::Semaphore;
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// The name of the node whose workers are listened to.
const NODE: &str = "story";

type Steps = Arc<Mutex<BTreeMap<u64, Vec<String>>>>;

/// Collects the steps of the story node's only worker, by request.
struct Recorder(Steps);

impl<S: tracing::Subscriber> Layer<S> for Recorder {
    fn on_event(&self, event: &tracing::Event<'_>, _context: Context<'_, S>) {
        if event.metadata().target() != "selvedge::story" || std::thread::current().name() != Some("story-0") {
            return;
        }
        let mut line = Line::default();
        event.record(&mut line);
        self.0.lock().entry(line.request).or_default().push(line.text);
    }
}

#[derive(Default)]
struct Line {
    request: u64,
    text: String,
}

impl Visit for Line {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "request" {
            self.request = value;
        } else {
            self.text.push_str(&format!(" {}={value}", field.name()));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "step" {
            self.text.insert_str(0, value);
        } else {
            self.text.push_str(&format!(" {}={value}", field.name()));
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.text.push_str(&format!(" {}={value}", field.name()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.text.push_str(&format!(" {}={value:?}", field.name()));
    }
}

fn recorder() -> Steps {
    static STEPS: OnceLock<Steps> = OnceLock::new();
    let steps = STEPS.get_or_init(|| {
        let steps = Steps::default();
        let layer = Recorder(Arc::clone(&steps));
        tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer))
            .expect("the only subscriber");
        steps
    });
    Arc::clone(steps)
}

/// Takes what was recorded, one paragraph per request, and forgets it. Waits until every request has finished.
async fn told(steps: &Steps) -> String {
    until("every request finishes", || {
        let steps = steps.lock();
        !steps.is_empty() && steps.values().all(|lines| lines.last().is_some_and(|last| last == "finish"))
    })
    .await;
    let stories: Vec<String> = std::mem::take(&mut *steps.lock()).into_values().map(|lines| lines.join("\n")).collect();
    stories.join("\n\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_steps_of_a_request_are_as_written() {
    let steps = recorder();
    let gate = Arc::new(Semaphore::new(0));
    let origin = {
        let gate = Arc::clone(&gate);
        Origin::start_async(move |request| {
            let gate = Arc::clone(&gate);
            async move {
                match request.target.as_str() {
                    "/cached/held" => {
                        let _ = gate.acquire().await;
                        Origin::reply(200, &[("cache-control", "max-age=60")], "held")
                    }
                    "/cached/stale" => {
                        Origin::reply(200, &[("cache-control", "max-age=0, stale-while-revalidate=60")], "stale")
                    }
                    _ => Origin::reply(200, &[("cache-control", "max-age=60")], Bytes::from_static(b"fresh")),
                }
            }
            .boxed()
        })
        .await
    };
    let (nowhere, refuses) = Origin::raw(|stream| async move { drop(stream) }).await;
    let edge = Edge::start(
        &format!(
            "version: 1
node: {{ name: {NODE}, workers: 1, module_cache: off }}
telemetry: {{ access_log: {{ output: off }} }}
listeners:
  web: {{ bind: \"127.0.0.1:0\" }}
cache: {{}}
upstreams:
  app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }}
  broken: {{ endpoints: [\"127.0.0.1:${{PORT_broken}}\"] }}
filters:
  noop: {{ wasm: \"file:${{GUESTS}}/noop.wasm\", limits: {{ deadline: 10s }} }}
  deny: {{ wasm: \"file:${{GUESTS}}/deny.wasm\", config: request_headers, limits: {{ deadline: 10s }} }}
sites:
  - hosts: [\"*\"]
    routes:
      - {{ name: \"plain\", to: app }}
      - {{ name: \"cached-${{ID}}\", match: {{ path: /cached/* }}, filters: [noop], cache: {{}}, to: app }}
      - {{ name: denied, match: {{ path: /denied }}, filters: [deny], to: app }}
      - {{ name: broken, match: {{ path: /broken }}, to: broken }}
"
        ),
        &[("app", origin.address()), ("broken", nowhere)],
    );
    let web = edge.web();
    let mut story = String::new();
    let mut tell = |title: &str, told: String| story.push_str(&format!("## {title}\n{told}\n\n"));

    Client::get(web, "/").await;
    tell("plain", told(&steps).await);
    Client::get(web, "/cached/a").await;
    tell("miss", told(&steps).await);
    Client::get(web, "/cached/a").await;
    tell("hit", told(&steps).await);

    Client::get(web, "/cached/stale").await;
    told(&steps).await;
    Client::get(web, "/cached/stale").await;
    until("the background revalidation", || origin.started() == 4).await;
    tell("stale, revalidated in the background", told(&steps).await);

    let first = tokio::spawn(Client::get(web, "/cached/held"));
    until("the first is being fetched", || origin.started() == 5).await;
    let second = tokio::spawn(Client::get(web, "/cached/held"));
    until("the second waits", || {
        steps.lock().len() == 2 && steps.lock().values().all(|lines| lines.iter().any(|line| line == "lookup"))
    })
    .await;
    gate.add_permits(8);
    assert_eq!((first.await.unwrap().text(), second.await.unwrap().text()), ("held".into(), "held".into()));
    tell("collapsed", told(&steps).await);

    Client::get(web, "/denied").await;
    tell("a filter replies", told(&steps).await);
    Client::get(web, "/broken").await;
    tell("the upstream fails", told(&steps).await);
    refuses.abort();

    insta::assert_snapshot!(story.trim_end());
}
