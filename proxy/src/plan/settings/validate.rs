//! JSON Schema (2020-12), as far as settings need it. The schema is a module's, so the work it can cause is bounded.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::{HeaderName, Method, Uri};
use selvedge_config::{ByteSize, parse_duration};
use serde_json::{Map, Number, Value};

use super::schema::{Schema, pattern};

/// How many schemas are laid against values before the rest counts as sound: settings and schemas that people write need thousands.
const STEPS: usize = 200_000;
/// How many steps a pattern counts for: it is compiled each time.
const PATTERN_STEPS: usize = 500;
/// How deep schemas may lead into each other.
const DEEPEST: usize = 256;
/// How many faults are told.
const MOST: usize = 50;

const DURATION: &str =
    "a duration is a whole number and one of ms, s, m, h, d: `250ms`, `30s`, `1h`; at most ten years";
const SIZE: &str = "a size is a whole number and one of B, KiB, MiB, GiB, KB, MB, GB: `64KiB`, `16MiB`";

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Finding {
    /// Where, as a JSON pointer.
    pub(super) pointer: String,
    /// The schema says that the value is not to be shown.
    pub(super) secret: bool,
    pub(super) what: What,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum What {
    /// A key that is none.
    UnknownKey { key: String, known: Vec<String> },
    /// A key that must be there.
    Missing(String),
    /// A name that no upstream has.
    NoUpstream(String),
    /// None of a list.
    NoWord { word: String, words: Vec<String> },
    /// Anything else: what the value must be, and the value itself.
    Wrong { value: Option<String>, says: String, help: Option<&'static str> },
}

/// Everything that is wrong with these settings.
pub(super) fn findings(schema: &Schema, settings: &Value, upstreams: &[&str]) -> Vec<Finding> {
    let mut walk = Walk { schema, upstreams, steps: STEPS, depth: 0 };
    let mut found = Vec::new();
    walk.value(schema.root(), settings, "", false, &mut found);
    found.truncate(MOST);
    found
}

struct Walk<'s> {
    schema: &'s Schema,
    upstreams: &'s [&'s str],
    steps: usize,
    depth: usize,
}

impl Walk<'_> {
    fn value(&mut self, schema: &Value, value: &Value, pointer: &str, secret: bool, found: &mut Vec<Finding>) {
        let Some(steps) = self.steps.checked_sub(1) else { return };
        self.steps = steps;
        if self.depth >= DEEPEST {
            return;
        }
        self.depth += 1;
        match schema {
            Value::Bool(false) => {
                push(found, pointer, secret, What::Wrong { value: None, says: "is not possible".into(), help: None });
            }
            Value::Object(members) => self.members(members, value, pointer, secret, found),
            _ => {}
        }
        self.depth -= 1;
    }

    fn members(
        &mut self,
        schema: &Map<String, Value>,
        value: &Value,
        pointer: &str,
        secret: bool,
        found: &mut Vec<Finding>,
    ) {
        let secret = secret || schema.get("writeOnly") == Some(&Value::Bool(true));
        if let Some(types) = schema.get("type")
            && !is_of(value, types)
        {
            let says = format!("must be {}", named(types, schema));
            let kind = Some(kind_of(value)).filter(|_| value.is_object() || value.is_array() || value.is_null());
            let value = kind.map_or_else(|| shown(value), str::to_owned);
            push(found, pointer, secret, What::Wrong { value: Some(value), says, help: help_of(schema) });
            return;
        }
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str)
            && let Some(definition) = self.schema.definition(reference)
        {
            self.value(definition, value, pointer, secret, found);
        }
        if let Some(what) = one_of_words(schema, value) {
            push(found, pointer, secret, what);
            return;
        }
        match value {
            Value::String(text) => self.text(schema, text, pointer, secret, found),
            Value::Number(number) => numbers(schema, number, pointer, secret, found),
            Value::Array(items) => self.items(schema, items, pointer, secret, found),
            Value::Object(members) => self.object(schema, members, pointer, secret, found),
            Value::Null | Value::Bool(_) => {}
        }
        self.combined(schema, value, pointer, secret, found);
    }

    fn text(&mut self, schema: &Map<String, Value>, text: &str, pointer: &str, secret: bool, found: &mut Vec<Finding>) {
        let mut wrong = |says: String, help| {
            push(found, pointer, secret, What::Wrong { value: Some(text.to_owned()), says, help });
        };
        let length = text.chars().count();
        let bounds = [("minLength", "at least"), ("maxLength", "at most")];
        for (keyword, words) in bounds {
            if let Some(bound) = schema.get(keyword).and_then(Value::as_u64)
                && beyond(keyword, length, bound)
            {
                return wrong(format!("must have {words} {bound} characters"), None);
            }
        }
        let format = schema.get("format").and_then(Value::as_str);
        let sound = match format {
            Some("selvedge-upstream") if !self.upstreams.contains(&text) => {
                return push(found, pointer, secret, What::NoUpstream(text.to_owned()));
            }
            Some("selvedge-duration") => match parse_duration(text) {
                Ok(duration) => return bounded(schema, duration, |bound| parse_duration(bound).ok(), &mut wrong),
                Err(_) => Err(("a duration", Some(DURATION))),
            },
            Some("selvedge-byte-size") => match text.parse::<ByteSize>() {
                Ok(size) => return bounded(schema, size, |bound| bound.parse().ok(), &mut wrong),
                Err(_) => Err(("a size", Some(SIZE))),
            },
            Some("selvedge-header-name") => {
                text.parse::<HeaderName>().map(drop).map_err(|_| ("the name of a header", None))
            }
            Some("selvedge-method") => text.parse::<Method>().map(drop).map_err(|_| ("a request method", None)),
            Some("selvedge-ip") => text.parse::<IpAddr>().map(drop).map_err(|_| ("an IP address", None)),
            Some("ipv4") => text.parse::<Ipv4Addr>().map(drop).map_err(|_| ("an IPv4 address", None)),
            Some("ipv6") => text.parse::<Ipv6Addr>().map(drop).map_err(|_| ("an IPv6 address", None)),
            Some("uri-reference") => text.parse::<Uri>().map(drop).map_err(|_| ("a URI", None)),
            _ => Ok(()),
        };
        if let Err((what, help)) = sound {
            return wrong(format!("must be {what}"), help);
        }
        if let Some(form) = schema.get("pattern").and_then(Value::as_str)
            && !self.matches(form, text)
        {
            let mut wrong = |says: String, help| {
                push(found, pointer, secret, What::Wrong { value: Some(text.to_owned()), says, help });
            };
            wrong(format!("must be of the form {form}"), None);
        }
    }

    fn matches(&mut self, form: &str, text: &str) -> bool {
        let Some(steps) = self.steps.checked_sub(PATTERN_STEPS) else { return true };
        self.steps = steps;
        pattern(form).is_ok_and(|form| form.is_match(text))
    }

    fn items(
        &mut self,
        schema: &Map<String, Value>,
        items: &[Value],
        pointer: &str,
        secret: bool,
        found: &mut Vec<Finding>,
    ) {
        entries(schema, items.len(), ["minItems", "maxItems"], pointer, secret, found);
        if let Some(each) = schema.get("items") {
            for (index, item) in items.iter().enumerate() {
                self.value(each, item, &format!("{pointer}/{index}"), secret, found);
            }
        }
    }

    fn object(
        &mut self,
        schema: &Map<String, Value>,
        members: &Map<String, Value>,
        pointer: &str,
        secret: bool,
        found: &mut Vec<Finding>,
    ) {
        entries(schema, members.len(), ["minProperties", "maxProperties"], pointer, secret, found);
        for key in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            if !members.contains_key(key) {
                push(found, pointer, secret, What::Missing(key.to_owned()));
            }
        }
        let nothing = Map::new();
        let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&nothing);
        let patterns = schema.get("patternProperties").and_then(Value::as_object).unwrap_or(&nothing);
        let additional = schema.get("additionalProperties");
        for (key, value) in members {
            let inner = format!("{pointer}/{}", super::escaped(key));
            if let Some(names) = schema.get("propertyNames") {
                self.value(names, &Value::String(key.clone()), &inner, secret, found);
            }
            let mut told = false;
            if let Some(property) = properties.get(key) {
                told = true;
                self.value(property, value, &inner, secret, found);
            }
            for (form, property) in patterns {
                if self.matches(form, key) {
                    told = true;
                    self.value(property, value, &inner, secret, found);
                }
            }
            match additional {
                Some(Value::Bool(false)) if !told => {
                    let known = properties.keys().cloned().collect();
                    push(found, pointer, secret, What::UnknownKey { key: key.clone(), known });
                }
                Some(additional) if !told => self.value(additional, value, &inner, secret, found),
                _ => {}
            }
        }
    }

    /// The keywords that put schemas together.
    fn combined(
        &mut self,
        schema: &Map<String, Value>,
        value: &Value,
        pointer: &str,
        secret: bool,
        found: &mut Vec<Finding>,
    ) {
        for each in schema.get("allOf").and_then(Value::as_array).into_iter().flatten() {
            self.value(each, value, pointer, secret, found);
        }
        for keyword in ["anyOf", "oneOf"] {
            let Some(forms) = schema.get(keyword).and_then(Value::as_array) else { continue };
            let tried: Vec<Vec<Finding>> = forms.iter().map(|form| self.tried(form, value, pointer, secret)).collect();
            let fits = tried.iter().filter(|found| found.is_empty()).count();
            if fits == 0 {
                found.extend(closest(tried, forms, value, pointer, secret));
            } else if fits > 1 && keyword == "oneOf" {
                let says = "fits more than one of its forms, and must fit one".into();
                push(found, pointer, secret, What::Wrong { value: None, says, help: None });
            }
        }
        if let Some(not) = schema.get("not")
            && self.tried(not, value, pointer, secret).is_empty()
        {
            let says = "is of a form that it must not have".into();
            push(found, pointer, secret, What::Wrong { value: None, says, help: None });
        }
        if let Some(condition) = schema.get("if") {
            let holds = self.tried(condition, value, pointer, secret).is_empty();
            if let Some(then) = schema.get(if holds { "then" } else { "else" }) {
                self.value(then, value, pointer, secret, found);
            }
        }
    }

    fn tried(&mut self, schema: &Value, value: &Value, pointer: &str, secret: bool) -> Vec<Finding> {
        let mut found = Vec::new();
        self.value(schema, value, pointer, secret, &mut found);
        found
    }
}

/// What to say about a value that is none of several forms: what the form says that was probably meant, if one can be told from the others.
fn closest(tried: Vec<Vec<Finding>>, forms: &[Value], value: &Value, pointer: &str, secret: bool) -> Vec<Finding> {
    // A form that fits on the outside, and finds something inside, is the one that was meant.
    let inside = |found: &Vec<Finding>| found.iter().all(|finding| finding.pointer.len() > pointer.len());
    if let Some(meant) = tried.iter().find(|found| inside(found)) {
        return meant.clone();
    }
    let words: Vec<String> =
        forms.iter().filter_map(|form| form.get("enum")?.as_array()).flatten().map(shown).collect();
    if let Value::String(word) = value
        && !words.is_empty()
    {
        return vec![Finding { pointer: pointer.into(), secret, what: What::NoWord { word: word.clone(), words } }];
    }
    let known: Vec<String> = forms
        .iter()
        .filter_map(|form| form.get("properties")?.as_object())
        .flat_map(|properties| properties.keys().cloned())
        .collect();
    if let Value::Object(members) = value
        && let Some(key) = members.keys().find(|key| !known.contains(key))
        && !known.is_empty()
    {
        let what = What::UnknownKey { key: key.clone(), known };
        return vec![Finding { pointer: pointer.into(), secret, what }];
    }
    let value = (!value.is_object() && !value.is_array()).then(|| shown(value));
    let what = What::Wrong { value, says: "is of none of the forms that it may have".into(), help: None };
    vec![Finding { pointer: pointer.into(), secret, what }]
}

fn one_of_words(schema: &Map<String, Value>, value: &Value) -> Option<What> {
    if let Some(only) = schema.get("const")
        && only != value
    {
        return Some(What::NoWord { word: shown(value), words: vec![shown(only)] });
    }
    let words = schema.get("enum")?.as_array()?;
    let words_shown = || words.iter().filter(|word| !word.is_null()).map(shown).collect();
    (!words.contains(value)).then(|| What::NoWord { word: shown(value), words: words_shown() })
}

fn numbers(schema: &Map<String, Value>, number: &Number, pointer: &str, secret: bool, found: &mut Vec<Finding>) {
    let bounds = [
        ("minimum", "at least"),
        ("maximum", "at most"),
        ("exclusiveMinimum", "more than"),
        ("exclusiveMaximum", "less than"),
    ];
    for (keyword, words) in bounds {
        let Some(Value::Number(bound)) = schema.get(keyword) else { continue };
        let order = compare(number, bound);
        let outside = match keyword {
            "minimum" => order.is_lt(),
            "maximum" => order.is_gt(),
            "exclusiveMinimum" => order.is_le(),
            _ => order.is_ge(),
        };
        if outside {
            let says = format!("must be {words} {bound}");
            push(found, pointer, secret, What::Wrong { value: Some(number.to_string()), says, help: None });
        }
    }
}

/// Whole numbers exactly, others as they are.
fn compare(one: &Number, other: &Number) -> std::cmp::Ordering {
    let whole = |number: &Number| number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
    match (whole(one), whole(other)) {
        (Some(one), Some(other)) => one.cmp(&other),
        _ => one.as_f64().unwrap_or(0.0).total_cmp(&other.as_f64().unwrap_or(0.0)),
    }
}

/// `x-minimum` and `x-maximum`, which are written as the value is.
fn bounded<T: PartialOrd>(
    schema: &Map<String, Value>,
    value: T,
    read: impl Fn(&str) -> Option<T>,
    wrong: &mut impl FnMut(String, Option<&'static str>),
) {
    let bound = |keyword: &str| schema.get(keyword).and_then(Value::as_str);
    if let Some(least) = bound("x-minimum")
        && read(least).is_some_and(|least| value < least)
    {
        wrong(format!("must be at least {least}"), None);
    }
    if let Some(most) = bound("x-maximum")
        && read(most).is_some_and(|most| value > most)
    {
        wrong(format!("must be at most {most}"), None);
    }
}

fn entries(
    schema: &Map<String, Value>,
    count: usize,
    keywords: [&str; 2],
    pointer: &str,
    secret: bool,
    found: &mut Vec<Finding>,
) {
    for (keyword, words) in keywords.into_iter().zip(["at least", "at most"]) {
        if let Some(bound) = schema.get(keyword).and_then(Value::as_u64)
            && beyond(keyword, count, bound)
        {
            let says = format!("must have {words} {bound} entries");
            push(found, pointer, secret, What::Wrong { value: Some(count.to_string()), says, help: None });
        }
    }
}

fn beyond(keyword: &str, length: usize, bound: u64) -> bool {
    let length = u64::try_from(length).unwrap_or(u64::MAX);
    if keyword.starts_with("min") { length < bound } else { length > bound }
}

fn is_of(value: &Value, types: &Value) -> bool {
    let is = |name: &str| match value {
        Value::Null => name == "null",
        Value::Bool(_) => name == "boolean",
        Value::String(_) => name == "string",
        Value::Array(_) => name == "array",
        Value::Object(_) => name == "object",
        Value::Number(number) => {
            name == "number"
                || name == "integer"
                    && (number.is_i64() || number.is_u64() || number.as_f64().is_some_and(|n| n.fract() == 0.0))
        }
    };
    match types {
        Value::String(name) => is(name),
        Value::Array(names) => names.iter().filter_map(Value::as_str).any(is),
        _ => true,
    }
}

/// The types in words; by the format where it says more.
fn named(types: &Value, schema: &Map<String, Value>) -> String {
    let word = |name: &str| match (name, schema.get("format").and_then(Value::as_str)) {
        ("string", Some("selvedge-duration")) => "a duration",
        ("string", Some("selvedge-byte-size")) => "a size",
        ("string", Some("selvedge-upstream")) => "the name of an upstream",
        ("string", Some("selvedge-header-name")) => "the name of a header",
        ("string", _) => "text",
        ("integer", _) => "a whole number",
        ("number", _) => "a number",
        ("boolean", _) => "true or false",
        ("array", _) => "a list",
        ("object", _) => "a map",
        _ => "null",
    };
    match types {
        Value::String(name) => word(name).into(),
        Value::Array(names) => {
            let names: Vec<_> =
                names.iter().filter_map(Value::as_str).filter(|name| *name != "null").map(word).collect();
            names.join(" or ")
        }
        _ => String::new(),
    }
}

fn help_of(schema: &Map<String, Value>) -> Option<&'static str> {
    match schema.get("format")?.as_str()? {
        "selvedge-duration" => Some(DURATION),
        "selvedge-byte-size" => Some(SIZE),
        _ => None,
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Object(_) => "a map",
        Value::Array(_) => "a list",
        _ => "null",
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn push(found: &mut Vec<Finding>, pointer: &str, secret: bool, what: What) {
    if found.len() <= MOST {
        found.push(Finding { pointer: pointer.to_owned(), secret, what });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(schema: &Value, value: &Value) -> Vec<String> {
        let schema = Schema::read(&schema.to_string()).unwrap();
        let line = |finding: Finding| match finding.what {
            What::UnknownKey { key, known } => format!("{}: unknown {key} of {known:?}", finding.pointer),
            What::Missing(key) => format!("{}: missing {key}", finding.pointer),
            What::NoUpstream(name) => format!("{}: no upstream {name}", finding.pointer),
            What::NoWord { word, words } => format!("{}: {word} of {words:?}", finding.pointer),
            What::Wrong { value, says, .. } => format!("{}: {says}, {}", finding.pointer, value.unwrap_or_default()),
        };
        findings(&schema, value, &["api", "authz"]).into_iter().map(line).collect()
    }

    #[test]
    fn each_keyword_refuses_what_it_says() {
        let header = json!({"oneOf": [{"type": "string", "enum": ["client_ip"]},
            {"type": "object", "properties": {"header": {"type": "string", "minLength": 1}}, "required": ["header"], "additionalProperties": false}]});
        for (schema, value, expected) in [
            (json!({"type": "object"}), json!({}), ""),
            (json!({"type": "string"}), json!(1), ": must be text, 1"),
            (json!({"type": ["string", "null"]}), json!(null), ""),
            (json!({"type": "integer"}), json!(1.0), ""),
            (json!({"type": "integer"}), json!(1.5), ": must be a whole number, 1.5"),
            (json!({"type": "array"}), json!({}), ": must be a list, a map"),
            (json!({"minimum": 1}), json!(0), ": must be at least 1, 0"),
            (json!({"maximum": u64::MAX}), json!(u64::MAX), ""),
            (json!({"maximum": 0.5}), json!(1), ": must be at most 0.5, 1"),
            (json!({"exclusiveMaximum": 1}), json!(1), ": must be less than 1, 1"),
            (json!({"maxLength": 2}), json!("äö"), ""),
            (json!({"maxLength": 1}), json!("äö"), ": must have at most 1 characters, äö"),
            (json!({"pattern": "^a+$"}), json!("b"), ": must be of the form ^a+$, b"),
            (json!({"format": "selvedge-duration", "x-maximum": "5s"}), json!("6s"), ": must be at most 5s, 6s"),
            (json!({"format": "selvedge-duration"}), json!("6"), ": must be a duration, 6"),
            (json!({"format": "selvedge-byte-size", "x-minimum": "1KiB"}), json!("1B"), ": must be at least 1KiB, 1B"),
            (json!({"format": "selvedge-upstream"}), json!("auth"), ": no upstream auth"),
            (json!({"format": "selvedge-upstream"}), json!("authz"), ""),
            (json!({"format": "selvedge-header-name"}), json!("a b"), ": must be the name of a header, a b"),
            (json!({"format": "ipv6"}), json!("1.2.3.4"), ": must be an IPv6 address, 1.2.3.4"),
            (json!({"enum": ["a", null]}), json!("b"), ": b of [\"a\"]"),
            (json!({"const": 1}), json!(2), ": 2 of [\"1\"]"),
            (
                json!({"items": {"type": "integer"}, "maxItems": 1}),
                json!([1, "x"]),
                ": must have at most 1 entries, 2|/1: must be a whole number, x",
            ),
            (
                json!({"properties": {"a": true}, "required": ["b"], "additionalProperties": false}),
                json!({"a": 1, "c": 1}),
                ": missing b|: unknown c of [\"a\"]",
            ),
            (
                json!({"additionalProperties": {"type": "integer"}, "propertyNames": {"maxLength": 1}}),
                json!({"a/b": "x"}),
                "/a~1b: must have at most 1 characters, a/b|/a~1b: must be a whole number, x",
            ),
            (
                json!({"patternProperties": {"^x-": false}, "additionalProperties": false}),
                json!({"x-a": 1}),
                "/x-a: is not possible, ",
            ),
            (header.clone(), json!("client_ip"), ""),
            (header.clone(), json!("client"), ": client of [\"client_ip\"]"),
            (header.clone(), json!({"header": ""}), "/header: must have at least 1 characters, "),
            (header.clone(), json!({"heade": "x"}), ": unknown heade of [\"header\"]"),
            (header, json!(5), ": is of none of the forms that it may have, 5"),
            (json!({"oneOf": [true, true]}), json!(1), ": fits more than one of its forms, and must fit one, "),
            (json!({"anyOf": [true, true], "allOf": [{"minimum": 2}]}), json!(1), ": must be at least 2, 1"),
            (json!({"not": {"type": "null"}}), json!(null), ": is of a form that it must not have, "),
            (json!({"if": {"minimum": 5}, "then": {"maximum": 6}, "else": false}), json!(7), ": must be at most 6, 7"),
            (json!({"if": {"minimum": 5}, "else": false}), json!(1), ": is not possible, "),
            (
                json!({"$ref": "#/$defs/a", "$defs": {"a": {"type": "integer"}}}),
                json!("x"),
                ": must be a whole number, x",
            ),
        ] {
            assert_eq!(told(&schema, &value).join("|"), expected, "{schema} {value}");
        }
    }

    #[test]
    fn a_schema_cannot_keep_us_busy() {
        let mut defs = Map::new();
        for level in 0..40 {
            let next = json!({"$ref": format!("#/$defs/{}", level + 1)});
            defs.insert(level.to_string(), json!({"allOf": [next, next]}));
        }
        assert_eq!(told(&json!({"$ref": "#/$defs/0", "$defs": defs}), &json!(1)), [""; 0]);
        assert_eq!(told(&json!({"$ref": "#"}), &json!(1)), [""; 0]);
        let all: Vec<Value> = (0..1000).map(|_| json!("x")).collect();
        assert_eq!(told(&json!({"items": false}), &Value::Array(all)).len(), MOST);
    }

    #[test]
    fn secrets_are_marked_through_and_through() {
        let schema =
            Schema::read(r#"{"properties": {"a": {"writeOnly": true, "items": {"type": "integer"}}}}"#).unwrap();
        let found = findings(&schema, &json!({"a": ["x"]}), &[]);
        assert!(found[0].secret && found[0].pointer == "/a/0");
    }
}
