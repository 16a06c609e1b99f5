//! Inputs: the values of a request that a rule may look at, and where each came from.
//!
//! Whatever cannot be parsed as what it claims to be (broken JSON, multipart without its boundary) is inspected as raw
//! text: an attacker who confuses this parser must not get past it, since the origin's may be more forgiving. A body that
//! the limit has cut is not broken: it is taken apart as far as it goes, its unfinished last value included.

use std::fmt;

use selvedge_sdk::Prefix;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::decode;

/// How deep JSON may nest before it is inspected as raw text instead.
pub const JSON_DEPTH: usize = 64;

/// How many values of one request are looked at; what comes behind them is inspected as one raw text.
pub const MAX_VALUES: usize = 4096;

/// A kind of place in a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A field's value: query, form, JSON or multipart.
    Arg,
    /// A field's name.
    ArgName,
    /// The path, without the query.
    Path,
    /// A cookie's value.
    Cookie,
    /// A header that holds a URL or an address that origins tend to use: `referer`, `x-forwarded-host`, ...
    UrlHeader,
    /// `user-agent`.
    UserAgent,
    /// Any other header.
    Header,
    /// A body that is neither form, JSON nor multipart.
    Body,
    /// The name of an uploaded file.
    FileName,
    /// The content of an uploaded file.
    Upload,
}

impl Place {
    /// Every place.
    pub const ALL: [Self; 10] = [
        Self::Arg,
        Self::ArgName,
        Self::Path,
        Self::Cookie,
        Self::UrlHeader,
        Self::UserAgent,
        Self::Header,
        Self::Body,
        Self::FileName,
        Self::Upload,
    ];
}

/// As logs name it.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Arg => "ARGS",
            Self::ArgName => "ARGS_NAMES",
            Self::Path => "REQUEST_FILENAME",
            Self::Cookie => "REQUEST_COOKIES",
            Self::UrlHeader | Self::UserAgent | Self::Header => "REQUEST_HEADERS",
            Self::Body => "REQUEST_BODY",
            Self::FileName => "FILES",
            Self::Upload => "FILES_CONTENT",
        })
    }
}

/// A set of places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places(u16);

impl Places {
    /// The places given.
    pub const fn of(places: &[Place]) -> Self {
        let mut bits = 0;
        let mut index = 0;
        while index < places.len() {
            bits |= 1 << places[index] as u16;
            index += 1;
        }
        Self(bits)
    }

    /// Both sets together.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether `place` is in the set.
    pub const fn has(self, place: Place) -> bool {
        self.0 & (1 << place as u16) != 0
    }
}

/// Where clients put values for the application.
pub const VALUES: Places = Places::of(&[
    Place::Arg,
    Place::ArgName,
    Place::Path,
    Place::Cookie,
    Place::UrlHeader,
    Place::Body,
    Place::FileName,
]);

/// [`VALUES`] and every header.
pub const EVERYWHERE: Places = VALUES.and(Places::of(&[Place::UserAgent, Place::Header]));

/// One value of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// Where it stood.
    pub place: Place,
    /// Its name there; empty where there is none.
    pub name: String,
    /// The value as it arrived, except that `+` is a space and JSON escapes are decoded.
    pub value: Vec<u8>,
}

impl Input {
    fn new(place: Place, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        Self { place, name: name.into(), value: value.into() }
    }
}

/// Headers whose value is set by the browser or the network in a fixed form, and names that are handled elsewhere.
const UNINSPECTED: &[&str] = &[
    "accept-encoding",
    "connection",
    "content-length",
    "cookie",
    "date",
    "if-modified-since",
    "if-none-match",
    "if-unmodified-since",
    "transfer-encoding",
    "x-waf-score",
];

/// Headers that carry a URL, a host or an address, which applications store, log or fetch.
const URL_HEADERS: &[&str] = &[
    "client-ip",
    "remote-ip",
    "x-originating-ip",
    "x-remote-addr",
    "x-remote-ip",
    "forwarded",
    "origin",
    "referer",
    "true-client-ip",
    "x-client-ip",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-path",
    "x-forwarded-uri",
    "x-original-url",
    "x-real-ip",
    "x-rewrite-url",
];

/// Headers in which upload widgets name the file.
const FILE_NAME_HEADERS: &[&str] = &["x-file-name", "x-filename", "x.filename", "x_filename", "slug"];

/// Values of path, query and headers. `path` may hold the query too, behind `?`.
pub fn of_head<'a>(
    path: &str,
    query: Option<&str>,
    headers: impl IntoIterator<Item = (&'a str, &'a [u8])>,
) -> Vec<Input> {
    let (path, query) = match path.split_once('?') {
        Some((path, inline)) => (path, query.or(Some(inline))),
        None => (path, query),
    };
    let mut inputs = vec![Input::new(Place::Path, "", path)];
    if let Some(query) = query {
        pairs(query.as_bytes(), Place::Arg, Place::ArgName, None, &mut inputs);
    }
    for (name, value) in headers {
        if name == "cookie" {
            cookies(value, &mut inputs);
        } else if name == "user-agent" {
            inputs.push(Input::new(Place::UserAgent, name, value));
        } else if FILE_NAME_HEADERS.contains(&name) {
            inputs.push(Input::new(Place::FileName, name, value));
        } else if URL_HEADERS.contains(&name) {
            url_header(name, value, &mut inputs);
        } else if !name.starts_with(':') && !UNINSPECTED.contains(&name) {
            inputs.push(Input::new(Place::Header, name, value));
        }
    }
    inputs
}

/// `a=b&c=d`. With `name` set, every value carries that name instead of its own.
fn pairs(text: &[u8], value_place: Place, name_place: Place, name: Option<&str>, inputs: &mut Vec<Input>) {
    let mut rest = text;
    let mut after_empty = false;
    while !rest.is_empty() {
        if inputs.len() >= MAX_VALUES {
            inputs.push(Input::new(value_place, "", decode::plus_to_space(rest)));
            return;
        }
        let end = rest.iter().position(|&byte| byte == b'&').unwrap_or(rest.len());
        let pair = &rest[..end];
        rest = rest.get(end + 1..).unwrap_or_default();

        let equals = pair.iter().position(|&byte| byte == b'=');
        let key = decode::plus_to_space(&pair[..equals.unwrap_or(pair.len())]);
        let label = match name {
            Some(name) => name.to_owned(),
            None => String::from_utf8_lossy(&decode::percent(&key)).into_owned(),
        };
        if let Some(equals) = equals {
            let value = &pair[equals + 1..];
            if !value.is_empty() {
                inputs.push(Input::new(value_place, label.clone(), decode::plus_to_space(value)));
            }
        }
        if !key.is_empty() {
            inputs.push(Input::new(name_place, label, name_text(&key, pair, after_empty)));
        }
        after_empty = pair.is_empty();
    }
}

/// What rules see of a field's name. A raw `&` or `=` inside a payload cuts it into odd names (`a=1 && ls /etc`,
/// `<b onclick=x>`), so a name with white space, quotes or brackets is put together again with what stood around it.
fn name_text(key: &[u8], pair: &[u8], after_empty: bool) -> Vec<u8> {
    match (is_odd(key), after_empty) {
        (false, _) => key.to_vec(),
        (true, false) => decode::plus_to_space(pair).into_owned(),
        (true, true) => [b"&&", &*decode::plus_to_space(pair)].concat(),
    }
}

fn is_odd(name: &[u8]) -> bool {
    name.iter().any(|byte| matches!(byte, b' ' | b'"' | b'\'' | b'<' | b'(' | b';' | b'`' | 0x80..))
}

fn cookies(header: &[u8], inputs: &mut Vec<Input>) {
    for pair in header.split(|&byte| byte == b';') {
        let pair = pair.trim_ascii();
        let equals = pair.iter().position(|&byte| byte == b'=');
        let name = String::from_utf8_lossy(&pair[..equals.unwrap_or(0)]).into_owned();
        let value = match equals {
            Some(at) if !is_odd(&pair[..at]) => &pair[at + 1..],
            _ => pair,
        };
        if !value.is_empty() {
            inputs.push(Input::new(Place::Cookie, name, value));
        }
    }
}

/// A URL in a header: its query counts as fields, the rest as one value.
fn url_header(name: &str, value: &[u8], inputs: &mut Vec<Input>) {
    let mark = value.iter().position(|&byte| byte == b'?').unwrap_or(value.len());
    inputs.push(Input::new(Place::UrlHeader, name, &value[..mark]));
    if let Some(query) = value.get(mark + 1..) {
        pairs(query, Place::UrlHeader, Place::UrlHeader, Some(name), inputs);
    }
}

/// What a body claims to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BodyKind {
    /// `application/x-www-form-urlencoded`.
    Form,
    /// `application/json` and everything ending in `+json`.
    Json,
    /// `multipart/form-data` with its boundary.
    Multipart(Vec<u8>),
    /// Anything else that may hold text, and bodies without a content type.
    Text,
    /// Media, archives and other formats in which rules would only find noise.
    Binary,
}

impl BodyKind {
    /// Reads a `content-type` value; `None` when the request has none.
    pub fn of(content_type: Option<&str>) -> Self {
        let Some(content_type) = content_type else { return Self::Text };
        let (essence, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
        let essence = essence.trim().to_ascii_lowercase();
        match essence.as_str() {
            "application/x-www-form-urlencoded" => Self::Form,
            "application/json" | "text/json" | "application/csp-report" => Self::Json,
            _ if essence.ends_with("+json") => Self::Json,
            _ if essence.starts_with("multipart/") => match boundary(parameters) {
                Some(boundary) => Self::Multipart(boundary),
                None => Self::Text,
            },
            "application/octet-stream"
            | "application/zip"
            | "application/gzip"
            | "application/pdf"
            | "application/wasm"
            | "application/protobuf"
            | "application/x-protobuf"
            | "application/vnd.google.protobuf" => Self::Binary,
            _ if ["image/", "audio/", "video/", "font/", "application/grpc"]
                .iter()
                .any(|kind| essence.starts_with(kind))
                && !essence.ends_with("+xml") =>
            {
                Self::Binary
            }
            _ => Self::Text,
        }
    }
}

fn boundary(parameters: &str) -> Option<Vec<u8>> {
    parameters.split(';').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let value = value.trim().trim_matches('"');
        (name.trim().eq_ignore_ascii_case("boundary") && !value.is_empty()).then(|| value.as_bytes().to_vec())
    })
}

/// Values of a body of this kind, or of its start when it is not whole.
pub fn of_body(kind: &BodyKind, body: Prefix) -> Vec<Input> {
    let mut inputs = Vec::new();
    let parsed = match kind {
        BodyKind::Form => {
            pairs(&body.bytes, Place::Arg, Place::ArgName, None, &mut inputs);
            true
        }
        BodyKind::Json => json(&body, &mut inputs),
        BodyKind::Multipart(boundary) => multipart(boundary, &body, &mut inputs),
        // JSON under another name: some origins parse it all the same.
        BodyKind::Text => {
            matches!(body.bytes.trim_ascii_start().first(), Some(b'{' | b'[')) && json(&body, &mut inputs)
        }
        BodyKind::Binary => true,
    };
    if parsed { inputs } else { vec![Input::new(Place::Body, "", body.bytes)] }
}

/// Every string and key of a JSON text; false when it is not JSON, or nests too deep, or holds too many values. Of a text that
/// is not whole, the string in which it ends counts as well.
fn json(body: &Prefix, inputs: &mut Vec<Input>) -> bool {
    let mut deserializer = serde_json::Deserializer::from_slice(&body.bytes);
    let mut path = String::from("json");
    let walked = Walk { path: &mut path, depth: 0, inputs }.deserialize(&mut deserializer);
    match walked.and_then(|()| deserializer.end()) {
        Ok(()) => true,
        Err(error) if error.is_eof() && !body.whole => cut_string(&body.bytes, path, inputs),
        Err(_) => false,
    }
}

/// Adds the string in which a JSON text ends, if it does, without the escape or character that is cut. Nobody can tell a key from
/// a value there, so it counts as a value of what stood around it. False when it is not text or one value too many.
fn cut_string(text: &[u8], path: String, inputs: &mut Vec<Input>) -> bool {
    let Some(open) = open_string(text) else { return true };
    let whole = match std::str::from_utf8(open) {
        Err(error) if error.error_len().is_none() => &open[..error.valid_up_to()],
        _ => open,
    };
    match serde_json::from_slice::<String>(&[b"\"", whole, b"\""].concat()) {
        Ok(value) if inputs.len() < MAX_VALUES => {
            inputs.push(Input::new(Place::Arg, path, value));
            true
        }
        _ => false,
    }
}

/// What follows the last opening quote of a JSON text, up to an escape that is cut; `None` when that string is closed.
fn open_string(text: &[u8]) -> Option<&[u8]> {
    let mut start = None;
    let mut at = 0;
    while at < text.len() {
        at += match (text[at], start) {
            (b'"', None) => {
                start = Some(at + 1);
                1
            }
            (b'"', Some(_)) => {
                start = None;
                1
            }
            (b'\\', Some(_)) => {
                let length = match &text[at + 1..] {
                    // The first half of a surrogate pair (RFC 8259, 7).
                    [b'u', b'd' | b'D', b'8' | b'9' | b'a' | b'b' | b'A' | b'B', ..] => 12,
                    [b'u', ..] => 6,
                    _ => 2,
                };
                if at + length > text.len() {
                    break;
                }
                length
            }
            _ => 1,
        };
    }
    start.map(|start| &text[start..at])
}

/// Walks JSON without building it, so that duplicate keys are all seen.
struct Walk<'a> {
    path: &'a mut String,
    depth: usize,
    inputs: &'a mut Vec<Input>,
}

impl Walk<'_> {
    fn push<E: serde::de::Error>(&mut self, place: Place, value: &str) -> Result<(), E> {
        if self.inputs.len() >= MAX_VALUES {
            return Err(E::custom("too many values"));
        }
        self.inputs.push(Input::new(place, self.path.clone(), value));
        Ok(())
    }

    fn child(&mut self) -> Walk<'_> {
        Walk { path: self.path, depth: self.depth + 1, inputs: self.inputs }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.depth > JSON_DEPTH {
            return Err(D::Error::custom("nested too deep"));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_str<E: serde::de::Error>(mut self, value: &str) -> Result<(), E> {
        self.push(Place::Arg, value)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(self.child())?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<(), A::Error> {
        while let Some(key) = entries.next_key::<String>()? {
            let parent = self.path.len();
            // Paths serve logs and exclusions; a hostile document must not make them quadratic.
            if parent + key.len() < 256 {
                self.path.push('.');
                self.path.push_str(&key);
            }
            self.push(Place::ArgName, &key)?;
            entries.next_value_seed(self.child())?;
            self.path.truncate(parent);
        }
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// The parts of a multipart body (RFC 7578); false when no part can be found or one has no header end.
///
/// A body cut off at the limit still yields its last part as far as it goes; as raw text when not even its head is complete.
fn multipart(boundary: &[u8], body: &Prefix, inputs: &mut Vec<Input>) -> bool {
    let Prefix { bytes: body, whole } = body;
    let delimiter = [b"--", boundary].concat();
    let Some(start) = decode::find(body, &delimiter) else { return false };
    let mut rest = &body[start + delimiter.len()..];
    let mut parts = 0;
    loop {
        if rest.starts_with(b"--") {
            return parts > 0;
        }
        let end = decode::find(rest, &delimiter);
        let part = &rest[..end.unwrap_or(rest.len())];
        if inputs.len() >= MAX_VALUES {
            return false;
        }
        if !one_part(part, inputs) {
            if end.is_none() && !whole {
                inputs.push(Input::new(Place::Body, "", part));
                return true;
            }
            return false;
        }
        parts += 1;
        match end {
            Some(end) => rest = &rest[end + delimiter.len()..],
            None => return true,
        }
    }
}

fn one_part(part: &[u8], inputs: &mut Vec<Input>) -> bool {
    let part = part.strip_prefix(b"\r\n").or_else(|| part.strip_prefix(b"\n")).unwrap_or(part);
    let split =
        decode::find(part, b"\r\n\r\n").map(|at| (at, 4)).or_else(|| decode::find(part, b"\n\n").map(|at| (at, 2)));
    let Some((head_end, gap)) = split else { return false };
    let content = &part[head_end + gap..];
    let content = content.strip_suffix(b"\r\n").or_else(|| content.strip_suffix(b"\n")).unwrap_or(content);

    let mut name = String::new();
    let mut file = None;
    for line in part[..head_end].split(|&byte| byte == b'\n') {
        let lower = line.to_ascii_lowercase();
        if lower.starts_with(b"content-disposition:") {
            name = parameter(line, b"name").unwrap_or_default();
            file = parameter(line, b"filename").or_else(|| parameter(line, b"filename*"));
        }
    }
    inputs.push(Input::new(Place::ArgName, name.clone(), name.clone()));
    match file {
        Some(file) => {
            inputs.push(Input::new(Place::FileName, name.clone(), file));
            inputs.push(Input::new(Place::Upload, name, content));
        }
        None => inputs.push(Input::new(Place::Arg, name, content)),
    }
    true
}

/// `name="value"` or `name=value` of a header line; the name must stand at a word boundary, so that `filename` is not `name`.
fn parameter(line: &[u8], wanted: &[u8]) -> Option<String> {
    for piece in line.split(|&byte| byte == b';').skip(1) {
        let Some(equals) = piece.iter().position(|&byte| byte == b'=') else { continue };
        if !piece[..equals].trim_ascii().eq_ignore_ascii_case(wanted) {
            continue;
        }
        // A quoted value may hold semicolons: take it from the whole line.
        let offset = piece.as_ptr() as usize - line.as_ptr() as usize + equals + 1;
        let value = line[offset..].trim_ascii();
        let value = match value.strip_prefix(b"\"") {
            Some(quoted) => &quoted[..quoted.iter().position(|&byte| byte == b'"').unwrap_or(quoted.len())],
            None => &value[..value.iter().position(|&byte| byte == b';').unwrap_or(value.len())],
        };
        return Some(String::from_utf8_lossy(value).into_owned());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(inputs: &[Input]) -> Vec<String> {
        inputs
            .iter()
            .map(|input| format!("{}:{}={}", input.place, input.name, String::from_utf8_lossy(&input.value)))
            .collect()
    }

    fn whole(body: &[u8]) -> Prefix {
        Prefix { bytes: body.to_vec(), whole: true }
    }

    fn cut(body: &[u8]) -> Prefix {
        Prefix { bytes: body.to_vec(), whole: false }
    }

    #[test]
    fn head_yields_path_fields_cookies_and_headers() {
        let headers: [(&str, &[u8]); 6] = [
            (":authority", b"example.com"),
            ("cookie", b"a=1; b; c=x=y"),
            ("user-agent", b"curl"),
            ("referer", b"https://example.com/p?q=a+b"),
            ("accept-encoding", b"gzip"),
            ("x-thing", b"t"),
        ];
        assert_eq!(
            shown(&of_head("/p", Some("a=1+2&b&=c&%61=x=y"), headers)),
            [
                "REQUEST_FILENAME:=/p",
                "ARGS:a=1 2",
                "ARGS_NAMES:a=a",
                "ARGS_NAMES:b=b",
                "ARGS:=c",
                "ARGS:a=x=y",
                "ARGS_NAMES:a=%61",
                "REQUEST_COOKIES:a=1",
                "REQUEST_COOKIES:=b",
                "REQUEST_COOKIES:c=x=y",
                "REQUEST_HEADERS:user-agent=curl",
                "REQUEST_HEADERS:referer=https://example.com/p",
                "REQUEST_HEADERS:referer=a b",
                "REQUEST_HEADERS:referer=q",
                "REQUEST_HEADERS:x-thing=t",
            ]
        );
        assert_eq!(shown(&of_head("/p?x=1", None, []))[1], "ARGS:x=1");
    }

    #[test]
    fn payloads_cut_by_separators_are_put_together() {
        assert_eq!(
            shown(&of_head("/", Some("a=1&&+ls+/etc&x+onerror=b&&id=1"), []))[1..],
            [
                "ARGS:a=1",
                "ARGS_NAMES:a=a",
                "ARGS_NAMES: ls /etc=&& ls /etc",
                "ARGS:x onerror=b",
                "ARGS_NAMES:x onerror=x onerror=b",
                "ARGS:id=1",
                "ARGS_NAMES:id=id",
            ]
        );
    }

    #[test]
    fn content_types_choose_the_parser() {
        for (content_type, kind) in [
            (None, BodyKind::Text),
            (Some("application/x-www-form-urlencoded; charset=utf-8"), BodyKind::Form),
            (Some("APPLICATION/JSON"), BodyKind::Json),
            (Some("application/ld+json"), BodyKind::Json),
            (Some("multipart/form-data; boundary=\"x y\""), BodyKind::Multipart(b"x y".to_vec())),
            (Some("multipart/form-data"), BodyKind::Text),
            (Some("text/plain"), BodyKind::Text),
            (Some("application/xml"), BodyKind::Text),
            (Some("image/svg+xml"), BodyKind::Text),
            (Some("image/png"), BodyKind::Binary),
            (Some("application/grpc-web"), BodyKind::Binary),
            (Some("nonsense"), BodyKind::Text),
        ] {
            assert_eq!(BodyKind::of(content_type), kind, "{content_type:?}");
        }
    }

    #[test]
    fn json_strings_and_keys_are_seen_even_when_repeated() {
        let body = br#"{"a": "x\u003c", "a": {"b": ["y", 1, true, null]}}"#;
        assert_eq!(
            shown(&of_body(&BodyKind::Json, whole(body))),
            [
                "ARGS_NAMES:json.a=a",
                "ARGS:json.a=x<",
                "ARGS_NAMES:json.a=a",
                "ARGS_NAMES:json.a.b=b",
                "ARGS:json.a.b=y"
            ]
        );
    }

    #[test]
    fn json_under_another_name_is_json() {
        assert_eq!(shown(&of_body(&BodyKind::Text, whole(b" [\"\\u003c\"]"))), ["ARGS:json=<"]);
        assert_eq!(shown(&of_body(&BodyKind::Text, whole(b"[draft] text"))), ["REQUEST_BODY:=[draft] text"]);
        assert_eq!(shown(&of_body(&BodyKind::Text, cut(b"[draft] text"))), ["REQUEST_BODY:=[draft] text"]);
    }

    #[test]
    fn what_cannot_be_parsed_is_raw_text() {
        let deep = "[".repeat(JSON_DEPTH + 2);
        for (kind, body) in [
            (BodyKind::Json, r#"{"a": "x"#),
            (BodyKind::Json, r#"{"a": "x"} trailing"#),
            (BodyKind::Json, deep.as_str()),
            (BodyKind::Multipart(b"B".to_vec()), "no boundary at all"),
            (BodyKind::Multipart(b"B".to_vec()), "--B\r\nno header end"),
            (BodyKind::Multipart(b"B".to_vec()), "--B--"),
        ] {
            assert_eq!(shown(&of_body(&kind, whole(body.as_bytes()))), [format!("REQUEST_BODY:={body}")]);
        }
    }

    #[test]
    fn multipart_tells_fields_from_files() {
        let body = "preamble\r\n--B\r\nContent-Disposition: form-data; name=\"t\"\r\n\r\nhello\r\n--B\r\n\
                    content-disposition: form-data; filename=\"a;b.php\"; name=up\r\nContent-Type: text/plain\r\n\r\n<?php\r\n--B--\r\n";
        assert_eq!(
            shown(&of_body(&BodyKind::Multipart(b"B".to_vec()), whole(body.as_bytes()))),
            ["ARGS_NAMES:t=t", "ARGS:t=hello", "ARGS_NAMES:up=up", "FILES:up=a;b.php", "FILES_CONTENT:up=<?php"]
        );
    }

    /// Wherever the limit falls, what has been shown so far stays, and each decoded character of a string is seen once it is
    /// complete: escapes, surrogate pairs and UTF-8 are never left half.
    #[test]
    fn json_cut_at_every_byte_yields_what_is_there() {
        let body = r#" {"k\u003c": "a\u0027\\\" é😀 \ud83d\uDE00z", "n": [1.5e3, true, null, "last"], "m": {}} "#;
        let all = of_body(&BodyKind::Json, whole(body.as_bytes()));
        assert_eq!(
            shown(&all),
            [
                "ARGS_NAMES:json.k<=k<",
                "ARGS:json.k<=a'\\\" é😀 😀z",
                "ARGS_NAMES:json.n=n",
                "ARGS:json.n=last",
                "ARGS_NAMES:json.m=m",
            ]
        );
        let mut known = 0;
        for end in 1..body.len() {
            let inputs = of_body(&BodyKind::Json, cut(&body.as_bytes()[..end]));
            assert!(inputs.iter().all(|input| input.place != Place::Body), "{end}: {:?}", shown(&inputs));
            let complete = inputs.iter().zip(&all).take_while(|(some, all)| some == all).count();
            assert!(complete >= known && inputs.len() <= complete + 1, "{end}: {:?}", shown(&inputs));
            if let Some(last) = inputs.get(complete) {
                assert!(all[complete].value.starts_with(&last.value), "{end}: {:?}", shown(&inputs));
                assert!(std::str::from_utf8(&last.value).is_ok());
            }
            known = complete;
        }
        assert_eq!(known, all.len());
    }

    #[test]
    fn json_that_is_broken_before_the_cut_is_raw_text() {
        let deep = "[".repeat(JSON_DEPTH + 2);
        for body in [r#"{"a": x"#, r#"{"a": "\q"#, r#"{"a": "\ud83dx"#, r#"{"a": "x"} trailing"#, deep.as_str()] {
            let inputs = of_body(&BodyKind::Json, cut(body.as_bytes()));
            assert_eq!(shown(&inputs), [format!("REQUEST_BODY:={body}")]);
        }
        assert_eq!(of_body(&BodyKind::Json, cut(b"{\"a\": \"\xff\xffx"))[0].place, Place::Body);
    }

    #[test]
    fn a_form_cut_at_every_byte_yields_what_is_there() {
        let body = b"a=1&bc=%3Cscript&d";
        for end in 1..=body.len() {
            let raw: Vec<u8> =
                of_body(&BodyKind::Form, cut(&body[..end])).iter().flat_map(|it| it.value.clone()).collect();
            let shown = body[..end].iter().filter(|byte| !matches!(byte, b'&' | b'=')).count();
            assert_eq!(raw.len(), shown, "{end} bytes");
        }
    }

    #[test]
    fn multipart_cut_at_every_byte_yields_what_is_there() {
        let body = "--B\r\ncontent-disposition: form-data; name=t\r\n\r\nhello\r\n--B\r\n\
                    content-disposition: form-data; name=up; filename=f\r\n\r\n<?php 1\r\n--B--\r\n";
        let kind = BodyKind::Multipart(b"B".to_vec());
        let first = body.find("hello").unwrap();
        let second = body.find("<?php").unwrap();
        for end in 1..=body.len() {
            let inputs = of_body(&kind, cut(&body.as_bytes()[..end]));
            let places: Vec<Place> = inputs.iter().map(|input| input.place).collect();
            let seen = |text: &str| inputs.iter().any(|it| String::from_utf8_lossy(&it.value).contains(text));
            if end < first {
                assert_eq!(places, [Place::Body], "{end} bytes");
            } else if end < second {
                assert_eq!(places[..2], [Place::ArgName, Place::Arg], "{end} bytes");
                assert!(seen(&"hello"[..(end - first).min(5)]), "{end} bytes");
            } else {
                // What is there of the last delimiter may count as a part of its own.
                assert_eq!(places[2..5], [Place::ArgName, Place::FileName, Place::Upload], "{end} bytes");
                assert!(places.len() <= 6 && inputs.get(5).is_none_or(|rest| rest.value.len() < 2), "{end} bytes");
                assert!(seen(&"<?php"[..(end - second).min(5)]), "{end} bytes");
            }
        }
    }

    #[test]
    fn raw_text_is_moved_and_not_copied() {
        let body = cut(&vec![b'x'; 1000]);
        let place = body.bytes.as_ptr();
        assert_eq!(of_body(&BodyKind::Text, body)[0].value.as_ptr(), place);
    }

    #[test]
    fn a_flood_of_fields_ends_in_one_raw_value() {
        let query = "a=1&".repeat(MAX_VALUES);
        let inputs = of_head("/", Some(&query), []);
        assert!(inputs.len() <= MAX_VALUES + 2);
        assert!(inputs.last().unwrap().value.len() > 1000);
    }

    proptest! {
        #[test]
        fn any_body_of_any_kind_is_taken_apart(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            for kind in [BodyKind::Form, BodyKind::Json, BodyKind::Multipart(b"-".to_vec()), BodyKind::Text, BodyKind::Binary] {
                let _ = of_body(&kind, whole(&body));
                let _ = of_body(&kind, cut(&body));
            }
            let _ = of_head("/", Some(&String::from_utf8_lossy(&body)), [("cookie", &body[..]), ("referer", &body[..])]);
        }

        #[test]
        fn broken_multipart_never_loses_its_text(body in "(--B|\r\n|: |name=|;|\"|x){0,40}") {
            let inputs = of_body(&BodyKind::Multipart(b"B".to_vec()), whole(body.as_bytes()));
            prop_assert!(!inputs.is_empty());
        }
    }
}
