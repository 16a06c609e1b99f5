//! Settings of the filter, as they stand under `config:` of its entry in the chain.

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

/// Everything the filter can be told. Unknown keys are refused.
#[derive(Debug, Clone, selvedge_sdk::Config)]
#[config(default)]
pub struct Config {
    /// What happens to a request whose score reaches the threshold. Default: `block`.
    #[config(default)]
    pub mode: Mode,
    /// The anomaly score from which a request counts as an attack. A critical match scores 5, an error 4, a warning 3, a
    /// notice 2, each rule once per request. Higher lets more attacks through and blocks fewer good requests. Default: 5;
    /// 0 is refused.
    #[config(default = 5, min = 1)]
    pub threshold: u32,
    /// How much of a body is read and inspected, as `"128KiB"` or a number of bytes. The request waits until that much of
    /// its body has arrived. More finds attacks that stand further back, and costs time and memory for each large body. Default:
    /// `"128KiB"`; 0 leaves bodies alone. Keep it 64 KiB or more below what the node holds for this filter (the entry's
    /// `limits.body`, 1 MiB by default): the node answers 413 to a body that outgrows its own limit before this one is reached.
    #[config(default = "128KiB")]
    pub body_limit: ByteSize,
    /// What happens to a body larger than `body_limit`. Default: `inspect_prefix`.
    #[config(default)]
    pub body_over_limit: OverLimit,
    /// Also inspects what base64 text inside a value decodes to. Default: true.
    #[config(default = true)]
    pub decode_base64: bool,
    /// Ids of rules that never run. Default: none. An unknown id is refused.
    #[config(default)]
    pub disabled_rules: Vec<u32>,
    /// Where rules do not apply. Default: none.
    #[config(default)]
    pub exclusions: Vec<Exclusion>,
    /// Status of the reply to a blocked request, 400 to 599. Default: 403.
    #[config(default = 403, min = 400, max = 599)]
    pub status: u16,
}

/// What the filter does with an attack.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, selvedge_sdk::Config)]
pub enum Mode {
    /// Answers it. Inspection ends where the threshold is reached, so the log names the rules up to there.
    #[default]
    Block,
    /// Logs every rule that matches and lets the request pass; the origin sees the score in `x-waf-score`.
    Detect,
}

/// What the filter does with a body larger than its limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, selvedge_sdk::Config)]
pub enum OverLimit {
    /// Inspects its first `body_limit` bytes and lets the rest stream to the origin. A field, a JSON document or a part that
    /// the limit cuts is inspected as far as it goes. What follows is not inspected: large uploads work, and so does an attack
    /// that stands behind the limit.
    ///
    /// Bytes that are not text look like an attack sooner or later. Media types, `application/octet-stream` and files in forms
    /// are spared; long bodies that are compressed, or of no or an unknown content type, are not. Where clients send such, name
    /// the path in `exclusions`.
    #[default]
    InspectPrefix,
    /// Lets it through uninspected; path, query and headers have been inspected. Large uploads work, and so does an attack
    /// that is padded to this size.
    Pass,
    /// Answers 413; in `detect` mode lets it through as `pass` does.
    Deny,
}

/// A place where some or all rules are off. Every key given must hold; an exclusion without keys is refused.
#[derive(Debug, Clone, selvedge_sdk::Config)]
#[config(default)]
pub struct Exclusion {
    /// Requests whose path, decoded and with dot segments removed, is this or lies below it. Default: every path.
    pub path_prefix: Option<String>,
    /// Values of this name: a query or form field, a JSON path such as `json.user.name`, a header or a cookie.
    /// Default: every value.
    pub parameter: Option<String>,
    /// The rules that are off. Default: all of them.
    #[config(default)]
    pub rules: Vec<u32>,
}

/// A number of bytes: a plain number, or text with the unit `B`, `KiB` or `MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, selvedge_sdk::Config)]
#[config(serde, schema = r#"{"type": ["string", "integer"], "pattern": "^[0-9]+ *(B|KiB|MiB)?$", "minimum": 0}"#)]
pub struct ByteSize(pub usize);

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// No rule has this id.
    #[error("{key}: there is no rule {id}")]
    UnknownRule {
        /// The setting that names it.
        key: &'static str,
        /// The id as written.
        id: u32,
    },
    /// An exclusion that would switch every rule off everywhere.
    #[error("exclusions[{0}]: name a path_prefix, a parameter or rules")]
    EmptyExclusion(usize),
    /// A bundled rule does not compile.
    #[error("rule {id} does not compile: {reason}")]
    Rule {
        /// Its id; 0 is the table of literals.
        id: u32,
        /// What the compiler said.
        reason: String,
    },
}

impl Config {
    /// Checks what types cannot: that every rule named exists.
    ///
    /// # Errors
    /// The first setting that names an unknown rule.
    pub fn check(&self, known: impl Fn(u32) -> bool) -> Result<(), ConfigError> {
        if let Some(&id) = self.disabled_rules.iter().find(|&&id| !known(id)) {
            return Err(ConfigError::UnknownRule { key: "disabled_rules", id });
        }
        for (index, exclusion) in self.exclusions.iter().enumerate() {
            if exclusion.path_prefix.is_none() && exclusion.parameter.is_none() && exclusion.rules.is_empty() {
                return Err(ConfigError::EmptyExclusion(index));
            }
            if let Some(&id) = exclusion.rules.iter().find(|&&id| !known(id)) {
                return Err(ConfigError::UnknownRule { key: "exclusions", id });
            }
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(usize),
            Text(String),
        }
        let text = match Written::deserialize(deserializer) {
            Ok(Written::Number(bytes)) => return Ok(Self(bytes)),
            Ok(Written::Text(text)) => text,
            Err(_) => return Err(D::Error::custom("expected a size such as \"128KiB\" or a number of bytes")),
        };
        parse_size(&text).ok_or_else(|| D::Error::custom(format!("{text:?} is not a size; write it as \"128KiB\"")))
    }
}

fn parse_size(text: &str) -> Option<ByteSize> {
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" | "B" => 1,
        "KiB" => 1024,
        "MiB" => 1024 * 1024,
        _ => return None,
    };
    digits.trim_end().parse::<usize>().ok()?.checked_mul(factor).map(ByteSize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Config, String> {
        let config: Config = selvedge_sdk::config::parse(json.as_bytes())?;
        config.check(|id| id == 1001).map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn an_empty_configuration_blocks_at_five() {
        let config = parse("{}").unwrap();
        assert_eq!((config.mode, config.threshold, config.status), (Mode::Block, 5, 403));
        assert_eq!((config.body_limit, config.body_over_limit), (ByteSize(131_072), OverLimit::InspectPrefix));
        assert!(config.decode_base64);
    }

    #[test]
    fn every_key_is_read() {
        let config = parse(
            r#"{"mode": "detect", "threshold": 8, "body_limit": "1MiB", "body_over_limit": "deny", "decode_base64": false,
                "disabled_rules": [1001], "status": 406,
                "exclusions": [{"path_prefix": "/admin", "parameter": "html", "rules": [1001]}]}"#,
        )
        .unwrap();
        assert_eq!((config.mode, config.threshold, config.status), (Mode::Detect, 8, 406));
        assert_eq!((config.body_limit, config.body_over_limit), (ByteSize(1 << 20), OverLimit::Deny));
        assert_eq!(config.exclusions[0].parameter.as_deref(), Some("html"));
    }

    #[test]
    fn a_body_over_the_limit_has_three_ways() {
        for (name, over) in
            [("inspect_prefix", OverLimit::InspectPrefix), ("pass", OverLimit::Pass), ("deny", OverLimit::Deny)]
        {
            assert_eq!(parse(&format!(r#"{{"body_over_limit": "{name}"}}"#)).unwrap().body_over_limit, over);
        }
    }

    #[test]
    fn mistakes_name_their_key() {
        for (json, part) in [
            (r#"{"treshold": 5}"#, "treshold"),
            (r#"{"threshold": 0}"#, "`threshold`: must be at least 1"),
            (r#"{"status": 200}"#, "`status`: must be at least 400"),
            (r#"{"mode": "off"}"#, "off"),
            (r#"{"body_limit": "12 parsecs"}"#, "parsecs"),
            (r#"{"body_limit": -1}"#, "128KiB"),
            (r#"{"body_over_limit": "drop"}"#, "inspect_prefix"),
            (r#"{"disabled_rules": [7]}"#, "disabled_rules: there is no rule 7"),
            (r#"{"exclusions": [{}]}"#, "exclusions[0]"),
            (r#"{"exclusions": [{"rules": [7]}]}"#, "exclusions: there is no rule 7"),
            (r#"{"exclusions": [{"path": "/x"}]}"#, "path"),
        ] {
            let error = parse(json).expect_err(json);
            assert!(error.contains(part), "{json}: {error}");
        }
    }

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("64KiB", Some(65_536)),
            ("2 MiB", Some(2 << 20)),
            ("9B", Some(9)),
            ("1k", None),
            ("KiB", None),
        ] {
            assert_eq!(parse_size(text).map(|size| size.0), bytes, "{text}");
        }
    }
}
