//! The cases of a filter: `tests/portable/NAME.json`, a list of these.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

/// A module that is to behave alike on both hosts.
pub(crate) struct Filter {
    pub(crate) name: String,
    pub(crate) module: PathBuf,
    /// A filter that comes with the node; else an example of the SDK.
    pub(crate) bundled: bool,
    pub(crate) cases: Vec<Case>,
}

/// A configuration, and what is asked of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    pub(crate) name: String,
    /// For readers of the file.
    #[serde(default, rename = "note")]
    _note: String,
    #[serde(default)]
    pub(crate) config: Option<Value>,
    /// What upstreams answer, by name: the first answer that fits.
    #[serde(default)]
    pub(crate) upstreams: BTreeMap<String, Vec<Answer>>,
    #[serde(default)]
    pub(crate) origin: Answer,
    /// One after the other, on connections of their own.
    pub(crate) ask: Vec<Ask>,
    /// Header fields whose values depend on chance or time: only that they are there is compared.
    #[serde(default)]
    pub(crate) mask: Vec<String>,
    /// Upstreams whose requests are not compared: what a filter asks outside of exchanges comes when it comes.
    #[serde(default)]
    pub(crate) unseen: Vec<String>,
    /// Why Envoy shows something else.
    #[serde(default)]
    pub(crate) differs: Option<String>,
}

/// An answer of an upstream or the origin.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Answer {
    /// `name: value` of a header field that the request must have.
    pub(crate) when: Option<String>,
    pub(crate) status: u16,
    pub(crate) headers: Vec<String>,
    pub(crate) body: String,
}

impl Default for Answer {
    fn default() -> Self {
        let headers = vec!["content-type: text/plain".to_owned(), "x-origin: yes".to_owned()];
        Self { when: None, status: 200, headers, body: "what the origin says".to_owned() }
    }
}

/// A request and the status it gets here: `GET /path -> 200`, or with more to it.
#[derive(Debug, Clone, Deserialize)]
#[serde(from = "Written")]
pub(crate) struct Ask {
    send: String,
    pub(crate) headers: Vec<String>,
    /// More than one piece is sent in chunks, each when the one before has had time to arrive.
    pub(crate) body: Vec<String>,
}

/// An [`Ask`] as it stands in the file.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Line(String),
    Whole {
        send: String,
        #[serde(default)]
        headers: Vec<String>,
        #[serde(default)]
        body: Vec<String>,
    },
}

impl From<Written> for Ask {
    fn from(written: Written) -> Self {
        match written {
            Written::Line(send) => Self { send, headers: Vec::new(), body: Vec::new() },
            Written::Whole { send, headers, body } => Self { send, headers, body },
        }
    }
}

impl Ask {
    pub(crate) fn new(send: &str, body: &[&str]) -> Self {
        let body = body.iter().map(|&piece| piece.to_owned()).collect();
        Self { send: send.to_owned(), headers: Vec::new(), body }
    }

    /// Method, path, and the status that is expected.
    pub(crate) fn parts(&self) -> (&str, &str, Option<u16>) {
        let (request, status) = self.send.split_once(" -> ").unwrap_or((&self.send, ""));
        let (method, path) = request.split_once(' ').unwrap_or(("GET", request));
        (method, path, status.trim().parse().ok())
    }
}

/// Everything that is bundled, and every example of the SDK: what is there, so that none can be forgotten.
pub(crate) fn all(workspace: &Path, filters: &Path, examples: &Path) -> Result<Vec<Filter>, String> {
    let mut all = Vec::new();
    for name in names(&workspace.join("filters"), |path| path.is_dir())? {
        let module = filters.join(format!("selvedge_filter_{}.wasm", name.replace('-', "_")));
        all.push(Filter { cases: cases(workspace, &name)?, name, module, bundled: true });
    }
    for name in names(&workspace.join("sdk/examples"), |path| path.extension().is_some_and(|kind| kind == "rs"))? {
        let module = examples.join(format!("{name}.wasm"));
        all.push(Filter { cases: cases(workspace, &name)?, name, module, bundled: false });
    }
    Ok(all)
}

fn names(folder: &Path, wanted: impl Fn(&Path) -> bool) -> Result<Vec<String>, String> {
    let entries = std::fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let paths = entries.filter_map(Result::ok).map(|entry| entry.path()).filter(|path| wanted(path));
    let mut names: Vec<String> = paths.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect();
    names.sort();
    Ok(names)
}

/// A filter without a file is asked the usual things, without a configuration.
fn cases(workspace: &Path, name: &str) -> Result<Vec<Case>, String> {
    let file = workspace.join(format!("tests/portable/{name}.json"));
    let Ok(text) = std::fs::read_to_string(&file) else {
        let ask = vec![
            Ask::new("GET /path?query", &[]),
            Ask::new("POST /path", &["a body"]),
            Ask::new("POST /path", &["a body ", "in ", "pieces"]),
        ];
        let case = Case {
            name: "what comes".into(),
            _note: String::new(),
            config: None,
            upstreams: BTreeMap::new(),
            origin: Answer::default(),
            ask,
            mask: Vec::new(),
            unseen: Vec::new(),
            differs: None,
        };
        return Ok(vec![case]);
    };
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))
}
