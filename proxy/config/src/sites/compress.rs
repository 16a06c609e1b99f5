//! How responses are compressed for clients.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::files::Encoding;
use crate::decode::{At, Cx, Fields, choice, filled_list, is_token, parsed, size, truth, whole};
use crate::tree::Data;
use crate::values::ByteSize;

/// How responses are compressed for clients that accept it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compress {
    /// The encodings, the one to prefer first.
    pub encodings: Vec<Encoding>,
    /// What is worth it.
    pub types: Vec<MediaType>,
    /// The shortest body.
    pub min_size: ByteSize,
    /// How hard to try.
    pub levels: CompressLevels,
}

/// The settings of `compress`, where the list of encodings alone is not enough.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, rename = "Compression")]
#[expect(dead_code, reason = "describes the grammar; never made")]
struct CompressionForm {
    /// The encodings, the one to prefer first: a client that likes several equally well gets the first of them. At least one. Required.
    #[schemars(length(min = 1))]
    encodings: Vec<Encoding>,

    /// The media types that are compressed: `text/html`, `text/*`, or `*+json` for all with that suffix. `text/*` does not stand for
    /// `text/event-stream`. Default: text, JSON, XML, scripts, WebAssembly, SVG and uncompressed fonts.
    #[schemars(with = "Option<Vec<String>>", length(min = 1))]
    types: Vec<MediaType>,

    /// Bodies that are known to be shorter are left as they are. Above zero. Default `1KiB`.
    #[schemars(with = "Option<ByteSize>", extend("default" = "1KiB"))]
    min_size: ByteSize,

    /// How hard to try, for each encoding.
    #[schemars(with = "Option<CompressLevels>")]
    levels: CompressLevels,
}

/// How hard to try, for each encoding: higher ones take more time for less to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct CompressLevels {
    /// Zstandard, 1 to 15. Default 3.
    #[schemars(with = "Option<u16>", range(min = 1, max = 15), extend("default" = 3))]
    pub zstd: u16,

    /// Brotli, 0 to 9. Default 4.
    #[schemars(with = "Option<u16>", range(max = 9), extend("default" = 4))]
    pub br: u16,

    /// gzip, 1 to 9. Default 6.
    #[schemars(with = "Option<u16>", range(min = 1, max = 9), extend("default" = 6))]
    pub gzip: u16,
}

impl Default for CompressLevels {
    fn default() -> Self {
        Self { zstd: 3, br: 4, gzip: 6 }
    }
}

/// Media types, in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MediaType {
    /// This one: `text/html`.
    Exact(String),
    /// All that begin so: `text/` of `text/*`.
    Prefix(String),
    /// All that end so: `+json` of `*+json`.
    Suffix(String),
}

impl MediaType {
    /// Whether `media_type` (in lower case, without parameters) is one of these.
    #[must_use]
    pub fn matches(&self, media_type: &str) -> bool {
        match self {
            Self::Exact(whole) => media_type == whole,
            // A stream of events is no document: who wants it compressed says so.
            Self::Prefix(prefix) => media_type.starts_with(prefix.as_str()) && media_type != "text/event-stream",
            Self::Suffix(suffix) => media_type.ends_with(suffix.as_str()),
        }
    }
}

/// What is worth it where nothing is said: what is text under its name, and the binary formats that are not compressed in themselves.
const TYPES: [&str; 10] = [
    "text/*",
    "application/json",
    "application/javascript",
    "application/xml",
    "application/wasm",
    "*+json",
    "*+xml",
    "font/ttf",
    "font/otf",
    "application/vnd.ms-fontobject",
];

impl JsonSchema for Compress {
    fn schema_name() -> Cow<'static, str> {
        "Compress".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let encoding = generator.subschema_for::<Encoding>();
        let settings = generator.subschema_for::<CompressionForm>();
        json_schema!({
            "description": "Encodings, the one to prefer first; or settings; or `false`.",
            "anyOf": [{ "const": false }, { "type": "array", "minItems": 1, "items": encoding }, settings],
        })
    }
}

impl Compress {
    /// `Some(None)` = `false`.
    #[expect(clippy::option_option, reason = "faulty, off, and on are three things")]
    pub(super) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Option<Self>> {
        if let Data::Scalar(_) = at.node.data {
            if truth(cx, at)? {
                let fault = at.fault("how is not said");
                return cx.refuse(fault.with_help("name the encodings: `[zstd, br, gzip]`"));
            }
            return Some(None);
        }
        let default_types = || TYPES.iter().filter_map(|text| media_type(text).ok()).collect();
        if let Data::List(_) = at.node.data {
            let (types, min_size, levels) = (default_types(), MIN_SIZE, CompressLevels::default());
            return Some(Some(Self { encodings: encodings(cx, at)?, types, min_size, levels }));
        }
        let mut fields = Fields::open(cx, at, "Compression")?;
        let encodings = fields.need(cx, "encodings", encodings);
        let types = fields.read(cx, "types", |cx, at| {
            filled_list(cx, at, |cx, at| {
                parsed(cx, at, "a media type: `text/html`, `text/*` or `*+json`", |text| {
                    media_type(text).map_err(|why| (why.to_owned(), None))
                })
            })
        });
        let min_size = fields.read(cx, "min_size", size);
        let levels = fields.read(cx, "levels", CompressLevels::read);
        fields.close(cx);
        Some(Some(Self {
            encodings: encodings?,
            types: types.unwrap_or_else(default_types),
            min_size: min_size.unwrap_or(MIN_SIZE),
            levels: levels.unwrap_or_default(),
        }))
    }
}

/// Shorter ones fit in one packet either way.
const MIN_SIZE: ByteSize = ByteSize::kib(1);

impl CompressLevels {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "CompressLevels")?;
        let zstd = fields.read(cx, "zstd", |cx, at| whole(cx, at, 1, 15));
        let br = fields.read(cx, "br", |cx, at| whole(cx, at, 0, 9));
        let gzip = fields.read(cx, "gzip", |cx, at| whole(cx, at, 1, 9));
        fields.close(cx);
        let usual = Self::default();
        Some(Self { zstd: zstd.unwrap_or(usual.zstd), br: br.unwrap_or(usual.br), gzip: gzip.unwrap_or(usual.gzip) })
    }
}

/// Different encodings, at least one.
fn encodings(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Vec<Encoding>> {
    let mut seen = Vec::new();
    filled_list(cx, at, |cx, at| {
        let words = [("zstd", Encoding::Zstd), ("br", Encoding::Br), ("gzip", Encoding::Gzip)];
        let encoding = choice(cx, at, &words)?;
        if seen.contains(&encoding) {
            return cx.refuse(at.fault("this encoding is written twice"));
        }
        seen.push(encoding);
        Some(encoding)
    })
}

fn media_type(text: &str) -> Result<MediaType, &'static str> {
    let lower = text.to_ascii_lowercase();
    if let Some(suffix) = lower.strip_prefix('*').filter(|suffix| suffix.starts_with('+') && is_token(suffix)) {
        return Ok(MediaType::Suffix(suffix.to_owned()));
    }
    match lower.split_once('/') {
        Some((kind, "*")) if is_token(kind) && kind != "*" => Ok(MediaType::Prefix(format!("{kind}/"))),
        Some((kind, sub)) if [kind, sub].iter().all(|part| is_token(part) && !part.contains('*')) => {
            Ok(MediaType::Exact(lower))
        }
        _ => Err("is no media type"),
    }
}
