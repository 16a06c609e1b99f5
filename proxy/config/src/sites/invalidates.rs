//! `invalidates` of a route: what else a successful change puts out of date.

use regex::RegexBuilder;
use schemars::JsonSchema;

use crate::{
    decode::{At, Cx, Fields, list, parsed, text, truth},
    matching::{PathMatch, REGEX_SIZE, parse_path},
    report::Position,
    tree::Data,
};

/// What else is out of date when a request of this route has changed something: its method is unsafe (`POST`, `PUT`, `PATCH`, `DELETE`, ..)
/// and the upstream has answered with 2xx or 3xx. The URL itself, and those in `Location` and `Content-Location`, go by themselves
/// (RFC 9111, 4.4).
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Invalidate {
    /// Which paths, written as `match.path`: `/products/*`. Default: every path of the route.
    #[schemars(with = "Option<String>")]
    pub on: PathMatch,

    /// URLs that are purged with all their variants: `/lists/$1` on the host that was asked, or with a host, `www.example.com/lists/$1`. `$1`
    /// to `$9` stand for what the wildcards of `on` (or the groups of its regular expression) have matched, in order; the `/*` at the end
    /// is the last of them, and may be empty. `$$` is a dollar sign. Default: none.
    #[schemars(with = "Option<Vec<String>>")]
    pub urls: Vec<String>,

    /// Paths that are purged with everything below them, written as `urls`. Default: none.
    #[schemars(with = "Option<Vec<String>>")]
    pub prefixes: Vec<String>,

    /// Tags, with `$1` as above. Default: none.
    #[schemars(with = "Option<Vec<String>>")]
    pub tags: Vec<String>,

    /// Whether what is stored becomes stale, instead of being gone. Default `false`.
    #[schemars(with = "Option<bool>", extend("default" = false))]
    pub soft: bool,

    /// Whether `urls` are fetched anew at once, as a client would get them that has no cookies and credentials and names no preferences, so
    /// that the next one need not wait. Filters do not see these requests. At most 8 of them for one change, one after the other, and 32
    /// changes at once; what is beyond that is fetched when somebody asks. Default `false`.
    #[schemars(with = "Option<bool>", extend("default" = false))]
    pub refresh: bool,

    /// Where it is written.
    #[schemars(skip)]
    pub position: Position,
}

impl Invalidate {
    pub(super) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "Invalidate")?;
        let on_at = fields.get("on");
        let on = match &on_at {
            None => Some(PathMatch::Prefix(String::new())),
            Some(at) => parsed(cx, at, "a path", parse_path),
        };
        let wildcards = on.as_ref().map_or(0, |on| if on_at.is_some() { captures(on) } else { 0 });
        let mut is_written = false;
        let mut targets = |cx: &mut Cx<'_>, key: &'static str| {
            let Some(at) = fields.get(key) else { return Vec::new() };
            let read = list(cx, &at, |cx, at| template(cx, at, wildcards));
            // What is wrong with its items is told already.
            is_written |= !matches!(&at.node.data, Data::List(items) if items.is_empty());
            read.unwrap_or_default()
        };
        let (urls, prefixes, tags) = (targets(cx, "urls"), targets(cx, "prefixes"), targets(cx, "tags"));
        let soft = fields.read(cx, "soft", truth).unwrap_or(false);
        let refresh_at = fields.get("refresh");
        let refresh = refresh_at.as_ref().and_then(|at| truth(cx, at)).unwrap_or(false);
        if let Some(at) = refresh_at.filter(|_| refresh && urls.is_empty()) {
            cx.report(at.fault("there are no `urls` that could be fetched").with_help("write `urls`, or remove it"));
        }
        if !is_written {
            let fault = fields.missing("it puts nothing out of date");
            cx.report(fault.with_help("write `urls`, `prefixes` or `tags`"));
        }
        fields.close(cx);
        Some(Self { on: on?, urls, prefixes, tags, soft, refresh, position: at.node.position.clone() })
    }
}

/// How many parts of a path stand for themselves.
fn captures(on: &PathMatch) -> usize {
    match on {
        PathMatch::Exact(_) => 0,
        PathMatch::Prefix(_) => 1,
        PathMatch::Pattern { segments, below } => {
            segments.iter().filter(|segment| segment.is_none()).count() + usize::from(*below)
        }
        PathMatch::Regex(regex) => {
            let built = RegexBuilder::new(regex).size_limit(REGEX_SIZE).build();
            built.map_or(0, |regex| regex.captures_len() - 1)
        }
    }
}

fn template(cx: &mut Cx<'_>, at: &At<'_>, wildcards: usize) -> Option<String> {
    let text = text(cx, at)?;
    if text.is_empty() {
        return cx.refuse(at.fault("it is empty"));
    }
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        if char != '$' {
            continue;
        }
        match chars.next().map(|next| (next, next.to_digit(10))) {
            Some(('$', _)) => {}
            Some((_, Some(number))) if (1..=wildcards).contains(&(number as usize)) => {}
            Some((_, Some(number))) => {
                let fault = at.fault(format!("there is no `${number}`: `on` has {wildcards} wildcards"));
                return cx.refuse(fault);
            }
            _ => return cx.refuse(at.fault("a `$` without a number").with_help("write `$$` for a dollar sign")),
        }
    }
    Some(text)
}

/// Writes what was captured in place of `$1`, `$2`, ..
#[must_use]
pub fn with_captures(template: &str, captures: &[&str]) -> String {
    let mut out = String::with_capacity(template.len() + 16);
    let mut chars = template.chars();
    while let Some(char) = chars.next() {
        match (char, if char == '$' { chars.next() } else { None }) {
            ('$', Some(number)) if number.is_ascii_digit() => {
                let index = number.to_digit(10).and_then(|number| usize::try_from(number).ok()?.checked_sub(1));
                out.push_str(index.and_then(|index| captures.get(index)).copied().unwrap_or_default());
            }
            ('$', Some(other)) => out.push(other),
            (char, _) => out.push(char),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captures_are_written_in_their_places() {
        for (template, expected) in [
            ("/lists/$1", "/lists/a"),
            ("$2-$1-$2", "b-a-b"),
            ("$$1 costs $$", "$1 costs $"),
            ("$9", ""),
            ("plain", "plain"),
        ] {
            assert_eq!(with_captures(template, &["a", "b"]), expected, "{template}");
        }
    }

    #[test]
    fn wildcards_are_counted() {
        for (on, count) in [("/a", 0), ("/a/*", 1), ("/a/*/b", 1), ("/*/a/*/b/*", 3), ("~^/a/(.)/(.)", 2)] {
            assert_eq!(captures(&parse_path(on).expect("a path")), count, "{on}");
        }
    }
}
