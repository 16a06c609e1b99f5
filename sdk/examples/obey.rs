//! Does what a request tells it: header `x-do` for the request hook, `x-then` for the response hook, steps apart by `; `. A filter for
//! tests of hosts, and nothing for a proxy that strangers reach.
//!
//! ```text
//! body LIMIT           start LIMIT              set-body TEXT   count KEY   log TEXT
//! header NAME VALUE    add NAME VALUE           remove NAME     panic
//! call UPSTREAM PATH   both UPSTREAM UPSTREAM   reply STATUS TEXT
//! ```
//!
//! The request hook also knows `path PATH`, `upstream NAME`, `tag NAME`, `set PROPERTY VALUE` and `get PROPERTY`. What a step learns is
//! added to the message as header `x-seen`.

use selvedge_sdk::Message;
use selvedge_sdk::prelude::*;

/// The filter.
pub struct Obey {
    steps: metrics::Counter,
    ticks: metrics::Counter,
}

#[filter(body = "both")]
impl Filter for Obey {
    type Config = ();
    type Stream = String;

    const TICK: Option<Duration> = Some(Duration::from_secs(10));

    fn new((): ()) -> Result<Self, String> {
        Ok(Self { steps: metrics::counter("obey_steps"), ticks: metrics::counter("obey_ticks") })
    }

    async fn request(&self, request: &mut Request, then: &mut String) -> Flow {
        *then = request.header_str("x-then").unwrap_or_default();
        let script = request.header_str("x-do").unwrap_or_default();
        for step in steps(&script) {
            self.steps.inc(1);
            match words(step) {
                ["path", path, ..] => request.set_path(path),
                ["upstream", name, ..] => {
                    let taken = request.set_upstream(name);
                    request.add_header("x-seen", taken.to_string());
                }
                ["tag", name, ..] => {
                    let taken = request.cache().tag(name);
                    request.add_header("x-seen", taken.to_string());
                }
                ["set", path, value] => {
                    let path: Vec<&str> = path.split('.').collect();
                    let taken = request.set_property(&path, value.as_bytes());
                    request.add_header("x-seen", taken.to_string());
                }
                ["get", path, ..] => {
                    let path: Vec<&str> = path.split('.').collect();
                    let value = request.property(&path).unwrap_or_else(|| b"nothing".to_vec());
                    request.add_header("x-seen", value);
                }
                _ => obey(request, step).await?,
            }
        }
        Ok(Next)
    }

    async fn response(&self, response: &mut Response, then: &mut String) -> Flow {
        for step in steps(then) {
            self.steps.inc(1);
            obey(response, step).await?;
        }
        Ok(Next)
    }

    fn tick(&self) {
        self.ticks.inc(1);
    }

    fn done(&self, then: &String) {
        info!("done, and then {then:?}");
    }
}

fn steps(script: &str) -> impl Iterator<Item = &str> {
    script.split("; ").filter(|step| !step.is_empty())
}

/// At most three words: the third is the rest.
fn words(step: &str) -> [&str; 3] {
    let mut words = step.splitn(3, ' ');
    [(); 3].map(|()| words.next().unwrap_or_default())
}

/// A step of either hook.
#[allow(clippy::panic, reason = "a host has to cope with filters that panic, so there must be one that does")]
async fn obey(message: &mut Message, step: &str) -> Result<(), Reply> {
    match words(step) {
        ["body", limit, _] => {
            let body = message.body(limit.parse().unwrap_or(0)).await?;
            message.add_header("x-seen", body.len().to_string());
        }
        ["start", limit, _] => {
            let start = message.body_prefix(limit.parse().unwrap_or(0)).await?;
            message.add_header("x-seen", start.bytes.len().to_string());
        }
        ["set-body", text, _] => message.set_body(text),
        ["header", name, value] => message.set_header(name, value),
        ["add", name, value] => message.add_header(name, value),
        ["remove", name, _] => message.remove_header(name),
        ["call", name, path] => {
            let answer = upstream(name).get(path).timeout(Duration::from_secs(1)).send().await;
            message.add_header("x-seen", told(answer));
        }
        ["both", one, other] => {
            let answers = join(upstream(one).get("/").send(), upstream(other).post("/").body("x").send()).await;
            message.add_header("x-seen", told(answers.0));
            message.add_header("x-seen", told(answers.1));
        }
        ["count", key, _] => {
            let add = |old: Option<&[u8]>| vec![old.map_or(1, |old| old.first().copied().unwrap_or(0).wrapping_add(1))];
            let count = kv::update(key, add).or_deny(503, "cannot count")?;
            message.add_header("x-seen", count[0].to_string());
        }
        ["reply", status, text] => return Err(Reply::new(status.parse().unwrap_or(500)).text(text)),
        ["log", ..] => info!("{step}"),
        ["panic", ..] => panic!("told to"),
        _ => warn!("no such step: {step}"),
    }
    Ok(())
}

fn told(answer: Result<CallResponse, CallError>) -> String {
    match answer {
        Ok(answer) => format!("{} {}", answer.status(), String::from_utf8_lossy(answer.body())),
        Err(error) => error.to_string(),
    }
}
