//! Files of a folder as a route's answers.

use std::path::PathBuf;

use schemars::JsonSchema;

use crate::decode::{At, Cx, Fields, choice, list, parsed, path};
use crate::report::Fault;

/// The files of a folder, with `ETag`, `Last-Modified`, conditions and ranges (RFC 9110, 13 and 14). `GET` and `HEAD` only. Files and folders
/// whose names begin with a dot are not there, but for `.well-known`; links that lead out of the folder are not followed.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Files {
    /// The folder; relative paths begin where this file is. What follows the route's `match.path` (a prefix) is looked for in it; with any
    /// other `match.path`, the whole path is. Required.
    pub root: PathBuf,

    /// The file that stands for a folder. Default `index.html`.
    #[schemars(with = "Option<String>", extend("default" = "index.html"))]
    pub index: String,

    /// The file in `root` that is sent, with status 200, where there is none: for sites that are one page with paths of its own. Absent: 404.
    pub fallback: Option<String>,

    /// Encodings of which there may be files beside the plain ones (`app.js.br`, `app.js.zst`, `app.js.gz`); clients get the first they
    /// accept. Default: none.
    #[schemars(with = "Option<Vec<Encoding>>")]
    pub precompressed: Vec<Encoding>,
}

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum Encoding {
    /// Brotli (RFC 7932), `.br`.
    Br,
    /// Zstandard (RFC 8878), `.zst`.
    Zstd,
    /// gzip (RFC 1952), `.gz`.
    Gzip,
}

impl Files {
    pub(super) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "Files")?;
        let root = fields.need(cx, "root", path);
        let index = fields.read(cx, "index", |cx, at| parsed(cx, at, "the name of a file", file_name));
        let fallback = fields.read(cx, "fallback", |cx, at| parsed(cx, at, "the name of a file", file_name));
        let precompressed = fields.read(cx, "precompressed", |cx, at| {
            let mut seen = Vec::new();
            list(cx, at, |cx, at| {
                let words = [("br", Encoding::Br), ("zstd", Encoding::Zstd), ("gzip", Encoding::Gzip)];
                let encoding = choice(cx, at, &words)?;
                if seen.contains(&encoding) {
                    let fault = Fault::at(&at.node.position, "this encoding is written twice");
                    return cx.refuse(fault.with_key(at.path.clone()));
                }
                seen.push(encoding);
                Some(encoding)
            })
        });
        fields.close(cx);
        Some(Self {
            root: root?,
            index: index.unwrap_or("index.html".into()),
            fallback,
            precompressed: precompressed.unwrap_or_default(),
        })
    }
}

fn file_name(text: &str) -> Result<String, (String, Option<String>)> {
    if text.is_empty() || text.contains(['/', '\0']) || text.starts_with('.') {
        Err(("is not the name of a file".into(), Some("write a name alone, such as `index.html`".into())))
    } else {
        Ok(text.to_owned())
    }
}
