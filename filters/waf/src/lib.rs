//! Bundled filter: a web application firewall.
//!
//! It takes a request apart ([`inputs`]), undoes what hides an attack ([`decode`], [`views`]), runs a fixed rule set over the
//! values ([`rules`], [`engine`]) and adds up what matched ([`score`]). A score at or above the threshold is answered with 403
//! in `block` mode; in `detect` mode the request passes and the origin sees the score in `x-waf-score`. A client's own
//! `x-waf-score` never reaches the origin.
//!
//! Bodies: form, JSON, multipart and text bodies are inspected up to `body_limit`; media and archives are not. Of a longer body
//! the first `body_limit` bytes are inspected and **what follows them is not**: it streams to the origin. So padding in front of
//! an attack hides it; where no request needs a long body, `body_over_limit: deny` refuses it with 413 instead. A compressed body
//! is inspected as the bytes it is: decompression is the origin's. What cannot be parsed as the format it claims is inspected as
//! raw text. Each match is one log line: `[id "5001"] [msg ".."] [severity ".."] [tag ".."] [matched in ARGS:name]`.
//!
//! Matching is linear in the length of a value, whatever it holds. Still, run this filter fail-closed: a host that lets requests
//! pass when a guest call overruns its deadline lets attacks pass under load.

use selvedge_sdk::prelude::*;
use serde::Serialize;

pub mod config;

pub mod decode;

pub mod inputs;

pub mod views;

pub mod rules;

pub mod score;

pub mod engine;

use config::{Config, Mode, OverLimit};
use engine::Engine;
use inputs::BodyKind;
use score::Verdict;

/// Tells the origin the score of a request that was let through in `detect` mode.
const SCORE_HEADER: &str = "x-waf-score";

/// The filter: one compiled rule set per VM.
pub struct Waf {
    config: Config,
    engine: Engine,
    matched: metrics::Counter,
    blocked: metrics::Counter,
}

#[filter]
impl Filter for Waf {
    type Config = Config;

    fn new(config: Config) -> Result<Self, String> {
        let engine = Engine::new(&config).map_err(|error| error.to_string())?;
        let (matched, blocked) = (metrics::counter("waf_matched_requests"), metrics::counter("waf_blocked_requests"));
        Ok(Self { config, engine, matched, blocked })
    }

    async fn request(&self, req: &mut Request, _: &mut ()) -> Flow {
        if req.header(SCORE_HEADER).is_some() {
            req.remove_header(SCORE_HEADER);
        }

        let headers: Vec<(String, Vec<u8>)> =
            req.headers().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect();
        let pairs = headers.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
        let mut verdict = self.engine.inspect(req.path(), &inputs::of_head(req.path(), req.query(), pairs));

        // Once the head alone is blocked, the body need not arrive.
        if !self.blocks(&verdict) {
            self.inspect_body(req, &headers, &mut verdict).await?;
        }

        self.report(&verdict);
        match self.config.mode {
            Mode::Block if self.blocks(&verdict) => {
                self.blocked.inc(1);
                Err(problem(self.config.status, "Request blocked", "the request was refused by a security rule"))
            }
            Mode::Block => Ok(Next),
            Mode::Detect => {
                req.set_header(SCORE_HEADER, verdict.score().to_string());
                Ok(Next)
            }
        }
    }
}

impl Waf {
    fn blocks(&self, verdict: &Verdict) -> bool {
        self.config.mode == Mode::Block && verdict.score() >= self.config.threshold
    }

    /// Waits for the body when there is one worth reading, and adds what it holds to the verdict.
    async fn inspect_body(
        &self,
        req: &mut Request,
        headers: &[(String, Vec<u8>)],
        verdict: &mut Verdict,
    ) -> Result<(), Reply> {
        let mut types = headers.iter().filter(|(name, _)| name == "content-type");
        let first = types.next().map(|(_, value)| String::from_utf8_lossy(value));
        // With two content types nobody knows which one the origin believes.
        let kind = if types.next().is_some() { BodyKind::Text } else { BodyKind::of(first.as_deref()) };
        let limit = self.config.body_limit.0;
        if limit == 0 || kind == BodyKind::Binary {
            return Ok(());
        }

        if let Some(body) = self.read_body(req, limit).await? {
            self.engine.inspect_more(req.path(), &inputs::of_body(&kind, body), verdict);
        }
        Ok(())
    }

    /// What there is to inspect of the body; without a body it is there at once, and empty. `None`: the body passes unread.
    async fn read_body(&self, req: &mut Request, limit: usize) -> Result<Option<Prefix>, Reply> {
        let blocking = self.config.mode == Mode::Block;
        match self.config.body_over_limit {
            OverLimit::InspectPrefix => match req.body_prefix(limit).await {
                Ok(body) => Ok(Some(body)),
                Err(error) => {
                    error!("waf: the body cannot be inspected: {error}");
                    if !blocking {
                        return Ok(None);
                    }
                    Err(problem(500, "Internal Server Error", "the request body could not be inspected"))
                }
            },
            // Both know what to do as soon as a length is announced, and need not wait for the first bytes.
            OverLimit::Pass | OverLimit::Deny => match req.body(limit).await {
                Ok(bytes) => Ok(Some(Prefix { bytes, whole: true })),
                Err(_) if blocking && self.config.body_over_limit == OverLimit::Deny => {
                    Err(problem(413, "Content Too Large", "the request body is larger than this server inspects"))
                }
                Err(_) => Ok(None),
            },
        }
    }

    fn report(&self, verdict: &Verdict) {
        if verdict.matches.is_empty() {
            return;
        }
        self.matched.inc(1);
        for found in &verdict.matches {
            warn!("waf: {found} [score \"{}\"]", verdict.score());
        }
    }
}

/// A reply in the form of RFC 9457. It says nothing of what was found: that is for the log.
fn problem(status: u16, title: &'static str, detail: &'static str) -> Reply {
    #[derive(Serialize)]
    struct Problem {
        title: &'static str,
        status: u16,
        detail: &'static str,
    }
    let body = Problem { title, status, detail };
    match selvedge_sdk::serde_json::to_vec(&body) {
        Ok(json) => Reply::new(status).header("content-type", "application/problem+json").body(json),
        Err(_) => Reply::new(status),
    }
}

#[cfg(test)]
mod tests {
    use selvedge_sdk_testing::Tester;
    use serde_json::json;

    use super::*;

    const ATTACK: &str = "/?q=%3Cscript%3Ealert(1)%3C/script%3E";

    #[test]
    fn an_attack_is_refused_with_a_problem_that_echoes_nothing() {
        let waf = Tester::<Waf>::native();
        let reply = waf.get(ATTACK).send();
        assert_eq!((reply.status(), reply.header("content-type")), (403, Some("application/problem+json")));
        assert!(!reply.text().contains("script") && reply.text().contains("\"status\":403"), "{}", reply.text());
        assert!(reply.upstream().is_none());
        assert!(waf.logs().iter().any(|line| line.contains("[id \"5001\"]") && line.contains("[matched in ARGS:q]")));
        assert_eq!((waf.metric("waf_matched_requests"), waf.metric("waf_blocked_requests")), (1, 1));
    }

    #[test]
    fn a_good_request_passes_without_the_clients_score_header() {
        let waf = Tester::<Waf>::native();
        let reply = waf.get("/shop?item=7").header("x-waf-score", "0").send();
        assert_eq!(reply.status(), 200);
        assert_eq!(reply.upstream().unwrap().header("x-waf-score"), None);
    }

    #[test]
    fn detect_mode_tells_the_origin_the_score() {
        let waf = Tester::<Waf>::native().config(json!({"mode": "detect"}));
        let score = |path: &str| {
            let reply = waf.get(path).header("x-waf-score", "forged").send();
            reply.upstream().unwrap().header("x-waf-score").unwrap().parse::<u32>().unwrap()
        };
        assert_eq!(score("/"), 0);
        assert!(score(ATTACK) >= 5);
        assert_eq!(waf.metric("waf_blocked_requests"), 0);
    }

    #[test]
    fn bodies_are_inspected_however_they_arrive() {
        let waf = Tester::<Waf>::native();
        for (content_type, body) in [
            ("application/x-www-form-urlencoded", "a=1&id=1%27+union+select+1,2--"),
            ("application/json", r#"{"a": [{"b": "1' union select 1,2--"}]}"#),
            ("application/json", r#"{"broken": "1' union select 1,2--"#),
            ("text/plain", "1' union select 1,2--"),
            (
                "multipart/form-data; boundary=B",
                "--B\r\ncontent-disposition: form-data; name=a\r\n\r\n1' union select 1,2--\r\n--B--\r\n",
            ),
        ] {
            for size in [3, 1000] {
                let reply = waf.post("/").header("content-type", content_type).body(body).chunked(size).send();
                assert_eq!(reply.status(), 403, "{content_type} in pieces of {size}");
                assert!(reply.upstream().is_none(), "nothing has reached the origin");
            }
        }
        let reply = waf.post("/").header("content-type", "image/png").body("1' union select 1,2--").send();
        assert_eq!(reply.status(), 200);
    }

    #[test]
    fn a_good_body_arrives_whole() {
        let waf = Tester::<Waf>::native();
        let reply = waf.post("/").header("content-type", "application/json").body("{\"a\": \"b\"}").chunked(2).send();
        assert_eq!(reply.upstream().unwrap().body(), b"{\"a\": \"b\"}");
    }

    #[test]
    fn a_body_over_the_limit_passes_or_is_refused_as_configured() {
        let long = "a".repeat(200);
        for (mode, over, status) in [
            ("block", "inspect_prefix", 200),
            ("block", "pass", 200),
            ("block", "deny", 413),
            ("detect", "inspect_prefix", 200),
            ("detect", "deny", 200),
        ] {
            let config = json!({"mode": mode, "body_limit": 100, "body_over_limit": over});
            let waf = Tester::<Waf>::native().config(config);
            assert_eq!(waf.post("/").body(long.as_str()).send().status(), status);
            assert_eq!(waf.post("/").body(long.as_str()).chunked(30).send().status(), status);
            assert_eq!(waf.post("/").body("short").send().status(), 200);
        }
    }

    const LIMIT: usize = 128 * 1024;
    const LONG: usize = 1024 * 1024;

    /// A form of 1 MiB with an attack at this place.
    fn long_form(at: usize, attack: &str) -> Vec<u8> {
        let mut body = vec![b'a'; LONG];
        body[..2].copy_from_slice(b"a=");
        body[at..at + attack.len()].copy_from_slice(attack.as_bytes());
        body
    }

    #[test]
    fn an_attack_at_the_start_of_a_long_body_is_blocked_and_one_behind_the_limit_is_not_seen() {
        let attack = "&id=1%27+union+select+1,2--&";
        for (at, seen) in [
            (2, true),
            (LIMIT - attack.len(), true),
            // Cut behind what makes it one, and in front of it.
            (LIMIT - attack.len() + 2, true),
            (LIMIT - 6, false),
            (LIMIT, false),
            (LONG - attack.len(), false),
        ] {
            let body = long_form(at, attack);
            let waf = Tester::<Waf>::native();
            for chunk in [None, Some(65_536), Some(5000)] {
                let request = waf.post("/").header("content-type", "application/x-www-form-urlencoded");
                let request = request.body(body.as_slice());
                let reply = match chunk {
                    Some(bytes) => request.chunked(bytes).send(),
                    None => request.send(),
                };
                assert_eq!(reply.status(), if seen { 403 } else { 200 }, "attack at {at}, in pieces of {chunk:?}");
                match reply.upstream() {
                    Some(upstream) => assert!(!seen && upstream.body() == body, "the origin gets every byte"),
                    None => assert!(seen),
                }
            }
        }
    }

    #[test]
    fn an_escaped_attack_in_json_that_the_limit_cuts_is_blocked() {
        let json =
            [r#"{"pad": ""#, &"a".repeat(LIMIT - 100), r#"", "id": "1\u0027 union select 1,2-- "#, &"b".repeat(LONG)]
                .concat();
        let waf = Tester::<Waf>::native();
        for content_type in ["application/json", "text/plain"] {
            let reply = waf.post("/").header("content-type", content_type).body(json.as_str()).chunked(16_384).send();
            assert_eq!(reply.status(), 403);
            assert!(reply.logs()[0].contains("[matched in ARGS:json.id]"), "{:?}", reply.logs());
        }
    }

    #[test]
    fn with_pass_the_start_of_a_long_body_is_not_inspected() {
        let waf = Tester::<Waf>::native().config(json!({"body_over_limit": "pass"}));
        let body = long_form(2, "&id=1%27+union+select+1,2--&");
        assert_eq!(waf.post("/").body(body.as_slice()).send().status(), 200);
        assert_eq!(waf.post("/").body(body.as_slice()).chunked(65_536).send().status(), 200);
    }

    #[test]
    fn detect_mode_scores_the_start_of_a_long_body() {
        let waf = Tester::<Waf>::native().config(json!({"mode": "detect"}));
        let reply = waf.post("/").body(long_form(2, "&id=1%27+union+select+1,2--&")).chunked(65_536).send();
        let upstream = reply.upstream().unwrap();
        assert!(upstream.header("x-waf-score").unwrap().parse::<u32>().unwrap() >= 5);
        assert_eq!(upstream.body().len(), LONG);
    }

    /// Says that it holds a body and does not give it.
    #[derive(Default)]
    struct Blind {
        replies: std::cell::RefCell<Vec<u16>>,
    }

    impl selvedge_sdk::host::Host for Blind {
        fn reply(&self, status: u16, _: &[(&str, &[u8])], _: &[u8]) {
            self.replies.borrow_mut().push(status);
        }
    }

    #[test]
    fn a_body_that_cannot_be_read_does_not_pass_where_attacks_are_blocked() {
        use selvedge_sdk::runtime::{Action, Root};

        for (config, replies) in [("{}", vec![500]), (r#"{"mode": "detect"}"#, vec![])] {
            let blind = std::rc::Rc::new(Blind::default());
            let _installed = selvedge_sdk::host::install(blind.clone());
            let mut root = Root::<Waf>::default();
            assert!(root.configure(config.as_bytes()));
            let mut stream = root.open().unwrap();
            assert_eq!(stream.on_request_headers(false), Action::Pause);
            let action = stream.on_request_body(10, true);
            assert_eq!((action == Action::Pause, &*blind.replies.borrow()), (!replies.is_empty(), &replies));
        }
    }

    #[test]
    fn an_attack_in_the_head_does_not_wait_for_the_body() {
        let waf = Tester::<Waf>::native().config(json!({"body_limit": 1, "body_over_limit": "deny"}));
        assert_eq!(waf.post(ATTACK).body("longer than one").send().status(), 403);
    }

    #[test]
    fn a_wrong_configuration_is_refused_by_name() {
        let error = Tester::<Waf>::native().config(json!({"disabled_rules": [1]})).start().unwrap_err();
        assert!(error.contains("disabled_rules: there is no rule 1"), "{error}");
        let error = Tester::<Waf>::native().config(json!({"body_limit": "1 furlong"})).start().unwrap_err();
        assert!(error.contains("body_limit"), "{error}");
    }
}
