//! The engine: all rules compiled once, run over the values of a request.

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use regex::bytes::{Regex, RegexBuilder};

use crate::config::{Config, ConfigError, Exclusion, Mode};
use crate::decode;
use crate::inputs::{Input, Place};
use crate::rules::{self, Rule};
use crate::score::{Match, Verdict};
use crate::views::{View, Views};

/// The shortest base64 text worth decoding: 10 characters hide 7, and shorter ones are words.
const BASE64_MIN: usize = 10;

/// Base64 tokens decoded per value.
const BASE64_TOKENS: usize = 16;

/// The compiled rule set.
#[derive(Debug)]
pub struct Engine {
    rules: Vec<Compiled>,
    prefilter: AhoCorasick,
    /// For each literal of the prefilter, the rules (indices into `rules`) that it wakes.
    owners: Vec<Vec<usize>>,
    decode_base64: bool,
    exclusions: Vec<Exclusion>,
    /// The score at which looking further changes nothing: the threshold in block mode.
    enough: Option<u32>,
}

#[derive(Debug)]
struct Compiled {
    rule: &'static Rule,
    regex: Regex,
}

impl Engine {
    /// Compiles every rule that is not disabled.
    ///
    /// # Errors
    /// See [`ConfigError`]: a setting out of range, or an id that no rule has.
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        config.check(|id| rules::all().any(|rule| rule.id == id))?;

        let mut compiled = Vec::new();
        let mut literals: Vec<&'static str> = Vec::new();
        let mut owners: Vec<Vec<usize>> = Vec::new();
        for rule in rules::all().filter(|rule| !config.disabled_rules.contains(&rule.id)) {
            let regex = RegexBuilder::new(rule.pattern)
                .unicode(false)
                .dot_matches_new_line(true)
                .build()
                .map_err(|error| ConfigError::Rule { id: rule.id, reason: error.to_string() })?;
            for literal in rule.literals {
                let slot = literals.iter().position(|known| known == literal).unwrap_or_else(|| {
                    literals.push(literal);
                    owners.push(Vec::new());
                    literals.len() - 1
                });
                owners[slot].push(compiled.len());
            }
            compiled.push(Compiled { rule, regex });
        }
        let prefilter = AhoCorasick::builder()
            .match_kind(MatchKind::Standard)
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(&literals)
            .map_err(|error| ConfigError::Rule { id: 0, reason: error.to_string() })?;
        Ok(Self {
            rules: compiled,
            prefilter,
            owners,
            decode_base64: config.decode_base64,
            exclusions: config.exclusions.clone(),
            enough: (config.mode == Mode::Block).then_some(config.threshold),
        })
    }

    /// How many rules are active.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether every rule is disabled.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Looks at every value of a request for `path` and says which rules matched. In block mode it stops once the threshold is
    /// reached, so that an attack costs no more than a good request; in detect mode it names every rule that matches.
    pub fn inspect(&self, path: &str, inputs: &[Input]) -> Verdict {
        let mut verdict = Verdict::default();
        self.inspect_more(path, inputs, &mut verdict);
        verdict
    }

    /// Continues an inspection with further values (the body, after the head).
    pub fn inspect_more(&self, path: &str, inputs: &[Input], verdict: &mut Verdict) {
        let mut scan = Scan::new(self, verdict);
        let path = exclusion_path(path);
        let exclusions: Vec<&Exclusion> =
            self.exclusions.iter().filter(|exclusion| covers_path(exclusion, &path)).collect();
        for input in inputs {
            if scan.done() {
                return;
            }
            let applying: Vec<&Exclusion> = exclusions
                .iter()
                .copied()
                .filter(|exclusion| exclusion.parameter.as_ref().is_none_or(|name| *name == input.name))
                .collect();
            if applying.iter().any(|exclusion| exclusion.rules.is_empty()) {
                continue;
            }
            scan.value(input, &input.value, &applying);
            if self.decode_base64 && !matches!(input.place, Place::UserAgent | Place::Header | Place::Upload) {
                scan.base64(input, &applying);
            }
        }
    }
}

/// The path that exclusions compare with: decoded and without dot segments, so that no spelling of `/admin/../shop`
/// borrows the exclusion of `/admin`.
fn exclusion_path(path: &str) -> Vec<u8> {
    let path = path.split('?').next().unwrap_or_default();
    decode::normalize_path(&decode::path_separators(&decode::unwrap(path.as_bytes())))
}

fn covers_path(exclusion: &Exclusion, path: &[u8]) -> bool {
    let Some(prefix) = &exclusion.path_prefix else { return true };
    let prefix = prefix.trim_end_matches('/').as_bytes();
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// One run over a request: remembers which rules are done.
struct Scan<'a> {
    engine: &'a Engine,
    verdict: &'a mut Verdict,
    matched: Vec<bool>,
    /// Rules awake for the view at hand, and the literals that have been seen in it.
    awake: Vec<bool>,
    seen: Vec<bool>,
}

impl<'a> Scan<'a> {
    fn new(engine: &'a Engine, verdict: &'a mut Verdict) -> Self {
        let matched =
            engine.rules.iter().map(|it| verdict.matches.iter().any(|found| found.rule.id == it.rule.id)).collect();
        Self {
            engine,
            verdict,
            matched,
            awake: vec![false; engine.rules.len()],
            seen: vec![false; engine.owners.len()],
        }
    }

    fn done(&self) -> bool {
        self.engine.enough.is_some_and(|enough| self.verdict.score() >= enough)
    }

    fn value(&mut self, input: &Input, value: &[u8], exclusions: &[&Exclusion]) {
        let views = Views::of(value);
        self.view(View::Base, &views.base, input, exclusions);
        for (view, bytes) in &views.others {
            if self.done() {
                return;
            }
            self.view(*view, bytes, input, exclusions);
        }
    }

    fn base64(&mut self, input: &Input, exclusions: &[&Exclusion]) {
        let unwrapped = decode::percent(&input.value);
        for token in decode::base64_tokens(&unwrapped, BASE64_MIN).take(BASE64_TOKENS) {
            // In a path the slash is a separator more often than a digit.
            for piece in token.split(|&byte| byte == b'/' && input.place == Place::Path) {
                if piece.len() >= BASE64_MIN
                    && let Some(text) = decode::base64_text(piece)
                {
                    self.value(input, &text, exclusions);
                }
            }
        }
    }

    fn view(&mut self, view: View, bytes: &[u8], input: &Input, exclusions: &[&Exclusion]) {
        let engine = self.engine;
        let mut any = false;
        for found in engine.prefilter.find_overlapping_iter(bytes) {
            let literal = found.pattern().as_usize();
            if std::mem::replace(&mut self.seen[literal], true) {
                continue;
            }
            any = true;
            for &index in &engine.owners[literal] {
                self.awake[index] = true;
            }
        }
        if !any {
            return;
        }
        self.seen.fill(false);
        for (index, compiled) in engine.rules.iter().enumerate() {
            if !std::mem::replace(&mut self.awake[index], false) {
                continue;
            }
            let rule = compiled.rule;
            let looks_here = (view == View::Base || rule.view == view) && rule.on.has(input.place);
            if self.matched[index]
                || !looks_here
                || exclusions.iter().any(|exclusion| exclusion.rules.contains(&rule.id))
            {
                continue;
            }
            if compiled.regex.is_match(bytes) {
                self.matched[index] = true;
                self.verdict.matches.push(Match { rule, place: input.place, name: input.name.clone() });
                if self.done() {
                    self.awake.fill(false);
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inputs::of_head;
    use proptest::prelude::*;

    fn engine(json: &str) -> Engine {
        Engine::new(&serde_json::from_str(json).unwrap()).unwrap()
    }

    fn score(engine: &Engine, target: &str) -> u32 {
        let path = target.split('?').next().unwrap();
        engine.inspect(path, &of_head(target, None, [])).score()
    }

    #[test]
    fn evasions_score_like_the_plain_attack() {
        let engine = engine("{}");
        for target in [
            // Plain, then double and triple encoding.
            "/?q=<script>alert(1)</script>",
            "/?q=%3Cscript%3Ealert(1)%3C/script%3E",
            "/?q=%253Cscript%253Ealert(1)%253C/script%253E",
            "/?q=%25253Cscript%25253Ealert(1)",
            "/?q=%u003cscript%u003ealert(1)",
            "/?q=%uff1cscript%uff1ealert(1)",
            "/?q=%26lt;script%26gt;alert(1)",
            "/?q=%26%23x3c%3Bscript%26%2362%3B",
            "/?q=<ScRiPt>alert(1)</sCrIpT>",
            "/?q=<scr%00ipt>alert(1)",
            "/?q=<script%0a>alert(1)",
            "/?q=PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==",
            "/?<script>alert(1)</script>",
            "/<script>alert(1)</script>",
            // SQL with comments, case, white space and NUL.
            "/?id=1+union+select+1,2",
            "/?id=1+UnIoN/**/SeLeCt/**/1,2",
            "/?id=1/*!50000union*//*!50000select*/1,2",
            "/?id=1%0aunion%0d%0a%09select%0b1,2",
            "/?id=1%20uni%00on%20sel%00ect%201,2",
            "/?id=%27/**/or/**/1=1--+",
            "/?id=%2527%2520or%25201%253D1",
            // Paths: every way to write a dot and a slash.
            "/?f=../../../../etc/passwd",
            "/?f=..%2f..%2fetc%2fpasswd",
            "/?f=..%252f..%252fetc%252fpasswd",
            "/?f=..%5c..%5cwindows%5cwin.ini",
            "/?f=%c0%ae%c0%ae%c0%af%c0%ae%c0%ae%c0%afetc%c0%afpasswd",
            "/?f=%uff0e%uff0e%u2215%uff0e%uff0e%u2215etc%u2215passwd",
            "/?f=..//..//etc/./passwd",
            "/?f=../../../../etc/passwd%00.png",
            // Commands: quoting, variables, separators.
            "/?c=;cat+/etc/passwd",
            "/?c=;c'a't+/etc/hosts",
            "/?c=;c\\at+/etc/hosts",
            "/?c=|cat${IFS}/etc/hosts",
            "/?c=|cat$IFS$9/etc/hosts",
            "/?c=;{cat,/etc/hosts}",
            "/?c=$(whoami)",
            "/?c=`id`",
            "/?c=%0aid%0a",
        ] {
            assert!(score(&engine, target) >= 5, "{target} scores {}", score(&engine, target));
        }
    }

    #[test]
    fn everyday_requests_score_nothing() {
        let engine = engine("{}");
        for target in [
            "/",
            "/search?q=how+to+select+a+union+representative",
            "/search?q=rock+%26+roll+and+jazz",
            "/p?title=O'Reilly+and+Sons",
            "/p?title=it's+5+o'clock+or+later",
            "/calc?expr=1%2B1%3D2",
            "/img/../img/logo.png?v=1.2.3",
            "/next?url=https%3A%2F%2Fexample.com%2Fa%3Fb%3Dc%26d%3De",
            "/blog/javascript-basics?lang=en-US",
            "/api/v1/items?filter[price][gte]=10&sort=-created_at",
            "/p?email=john%2Bor%40example.com&tel=%2B43+1+234",
            "/p?t=drop+me+a+line%3B+or+call",
            "/p?json=%7B%22a%22%3A%5B1%2C2%2C3%5D%2C%22b%22%3A%22x%22%7D",
            "/p?cat=5&id=77&ls=1&type=more",
            "/p?note=Tom+%26%26+Jerry+%7C%7C+Itchy",
            "/p?html=%3Cp%3EHello+%3Cb%3Eworld%3C%2Fb%3E%3C%2Fp%3E",
        ] {
            let found = engine.inspect(target, &of_head(target, None, []));
            assert!(
                found.score() == 0,
                "{target}: {:?}",
                found.matches.iter().map(ToString::to_string).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn disabled_rules_and_exclusions_hold_where_they_say() {
        let attack = "/?q=<script>alert(1)</script>";
        let all = engine(r#"{"mode": "detect"}"#).inspect("/", &of_head(attack, None, []));
        let ids: Vec<u32> = all.matches.iter().map(|found| found.rule.id).collect();
        assert_eq!(score(&engine(&format!(r#"{{"disabled_rules": {ids:?}}}"#)), attack), 0);

        let admin = engine(r#"{"exclusions": [{"path_prefix": "/admin", "parameter": "html"}]}"#);
        for (target, blocked) in [
            ("/admin?html=<script>alert(1)</script>", false),
            ("/admin/pages?html=<script>alert(1)</script>", false),
            ("/admin/pages?text=<script>alert(1)</script>", true),
            ("/administrator?html=<script>alert(1)</script>", true),
            ("/admin/../shop?html=<script>alert(1)</script>", true),
            ("/admin/%2e%2e/shop?html=<script>alert(1)</script>", true),
            ("/shop/../admin?html=<script>alert(1)</script>", false),
        ] {
            // Only the field counts here: the path of some of these is suspicious by itself.
            let inputs: Vec<Input> =
                of_head(target, None, []).into_iter().filter(|input| input.place == Place::Arg).collect();
            assert_eq!(admin.inspect(target, &inputs).score() >= 5, blocked, "{target}");
        }

        let one =
            engine(&format!(r#"{{"mode": "detect", "exclusions": [{{"parameter": "q", "rules": [{}]}}]}}"#, ids[0]));
        let left: Vec<u32> =
            one.inspect("/", &of_head(attack, None, [])).matches.iter().map(|found| found.rule.id).collect();
        assert!(!left.contains(&ids[0]) && left.len() + 1 == ids.len(), "{left:?}");
    }

    #[test]
    fn block_mode_stops_at_the_threshold() {
        let attack = "/?a=<script>alert(1)</script>&b='+or+1=1--&c=../../etc/passwd";
        let blocking = engine("{}").inspect("/", &of_head(attack, None, []));
        let detecting = engine(r#"{"mode": "detect"}"#).inspect("/", &of_head(attack, None, []));
        assert!(blocking.score() >= 5 && blocking.matches.len() < detecting.matches.len());
    }

    #[test]
    fn a_rule_counts_once_however_often_it_matches() {
        let engine = engine(r#"{"mode": "detect"}"#);
        assert_eq!(score(&engine, "/?a=<script>&b=<script>"), score(&engine, "/?a=<script>"));
    }

    #[test]
    fn log_lines_name_rule_and_place_without_echoing_client_text() {
        let engine = engine("{}");
        let found = engine.inspect("/", &of_head("/?a%22]%0d%0a=<script>", None, []));
        let line = found.matches[0].to_string();
        assert!(line.starts_with("[id \"5") && line.ends_with("[matched in ARGS:a____]"), "{line}");
    }

    #[test]
    fn hostile_bodies_take_linear_time() {
        // Each would take minutes with a backtracking matcher or a quadratic decoder; finishing is the assertion.
        let engine = engine(r#"{"mode": "detect"}"#);
        for pattern in [
            "on", "/*", "../", "'or", "<", "((", "${", "$(", "%25", "&#", "\\u", "select ", "union ", "0x", "a=&",
            "'+'", "`", "{{",
        ] {
            let body = pattern.repeat(128 * 1024 / pattern.len());
            let input = Input { place: Place::Body, name: String::new(), value: body.into_bytes() };
            let _ = engine.inspect("/", &[input]);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn more_rules_never_lower_a_score(value in "(<script>|' or 1=1|../|;cat |[a-z]|%3c|union select ){0,6}", skip in 0_usize..40) {
            let id = rules::all().nth(skip).map_or(0, |rule| rule.id);
            let input = Input { place: Place::Arg, name: "p".into(), value: value.into_bytes() };
            let fewer = engine(&format!(r#"{{"mode": "detect", "disabled_rules": [{id}]}}"#));
            let all = engine(r#"{"mode": "detect"}"#);
            prop_assert!(fewer.inspect("/", std::slice::from_ref(&input)).score() <= all.inspect("/", &[input]).score());
        }

        #[test]
        fn more_values_never_lower_a_score(first in "[ -~]{0,40}", second in "[ -~]{0,40}") {
            let engine = engine(r#"{"mode": "detect"}"#);
            let input = |text: &str| Input { place: Place::Arg, name: "p".into(), value: text.as_bytes().to_vec() };
            let one = engine.inspect("/", &[input(&first)]).score();
            let both = engine.inspect("/", &[input(&first), input(&second)]).score();
            prop_assert!(both >= one);
        }
    }
}
