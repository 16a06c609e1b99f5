//! The cases: what the files in `tests/conformance/cases` say, and the scripts that the probe gets. Their language is described in
//! `docs/conformance.md`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// One case.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    /// Unique; also the name of its route and its filters.
    pub(crate) id: String,
    pub(crate) title: String,
    /// Its file, without folder and ending.
    pub(crate) subject: String,
    pub(crate) file: PathBuf,
    /// Why it is known not to hold here yet.
    pub(crate) pending: Option<String>,
    /// Why Envoy differs where it does.
    pub(crate) why: Option<String>,
    /// What the text of proxy-wasm says, where this host has chosen otherwise.
    pub(crate) text: Option<String>,
    pub(crate) options: BTreeMap<String, String>,
    pub(crate) sends: Vec<Message>,
    pub(crate) serve: Message,
    /// What each filter of the chain is to do.
    pub(crate) scripts: Vec<String>,
    pub(crate) expectations: Vec<Expectation>,
}

/// A request to send, or the origin's answer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Message {
    /// `GET /path` or `200`.
    pub(crate) start: String,
    pub(crate) h2: bool,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<Vec<u8>>,
    pub(crate) trailers: Vec<(String, String)>,
}

/// Something that can be seen, and what it is to look like.
#[derive(Debug, Clone)]
pub(crate) struct Expectation {
    /// Of the file, from 1.
    pub(crate) line: usize,
    /// As written.
    pub(crate) text: String,
    pub(crate) subject: Subject,
    /// `*` stands for anything.
    pub(crate) pattern: String,
    /// What Envoy shows instead.
    pub(crate) envoy: Option<String>,
}

#[derive(Debug, Clone)]
pub(crate) enum Subject {
    /// A step of the script of this filter (from 1): how its results are shown.
    Step { filter: usize, wasi: bool, outs: Vec<Shown> },
    /// What `seen` makes of these words.
    Seen(Vec<String>),
}

/// How a returned value is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    Bytes,
    Map,
    Int,
    Double,
    Number,
}

/// The cases of all files, in order of file and line.
pub(crate) fn all() -> Result<Vec<Case>, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance/cases");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .map_err(|error| format!("{}: {error}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|ending| ending == "case"))
        .collect();
    files.sort();

    let mut cases: Vec<Case> = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        read(&file, &text, &mut cases)?;
    }
    for (at, case) in cases.iter().enumerate() {
        if cases[..at].iter().any(|other| other.id == case.id) {
            return Err(format!("{}: there are two cases {}", case.file.display(), case.id));
        }
    }
    Ok(cases)
}

fn read(file: &Path, text: &str, cases: &mut Vec<Case>) -> Result<(), String> {
    let subject = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let first = cases.len();
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let fault = |why: String| format!("{}:{number}: {why}: {line}", file.display());
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(rest) = line.strip_prefix("case ") {
            let (id, title) = rest.split_once(' ').ok_or_else(|| fault("a case needs a title".into()))?;
            cases.push(Case::new(id, title, &subject, file));
            continue;
        }
        let case = cases.get_mut(first..).and_then(<[Case]>::last_mut).ok_or_else(|| fault("no case yet".into()))?;
        case.take(number, &line.replace("@case", &case.id)).map_err(fault)?;
    }
    Ok(())
}

impl Case {
    fn new(id: &str, title: &str, subject: &str, file: &Path) -> Self {
        Self {
            id: id.into(),
            title: title.into(),
            subject: subject.into(),
            file: file.into(),
            pending: None,
            why: None,
            text: None,
            options: BTreeMap::new(),
            sends: Vec::new(),
            serve: Message::default(),
            scripts: vec![format!("case {id}.1\n")],
            expectations: Vec::new(),
        }
    }

    pub(crate) fn option(&self, name: &str) -> Option<&str> {
        self.options.get(name).map(String::as_str)
    }

    /// Whether its filters are of TCP connections.
    pub(crate) fn is_tcp(&self) -> bool {
        self.options.contains_key("tcp")
    }

    fn take(&mut self, number: usize, line: &str) -> Result<(), String> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "pending" => self.pending = Some(rest.into()),
            "why" => self.why = Some(rest.into()),
            "text" => self.text = Some(rest.into()),
            "option" => {
                let (name, value) = rest.split_once(' ').unwrap_or((rest, ""));
                self.options.insert(name.into(), value.into());
            }
            "send" => self.sends.push(Message::new(rest)),
            "serve" => self.serve = Message::new(rest),
            "header" | "trailer" | "body" => {
                let message = match self.serve.start.is_empty() {
                    true => self.sends.last_mut().ok_or("nothing is sent or served yet")?,
                    false => &mut self.serve,
                };
                if word == "body" {
                    for token in tokens(rest)? {
                        message.body.push(bytes_of(&token)?);
                    }
                    return Ok(());
                }
                let (name, value) = rest.split_once(':').ok_or("a field is `name: value`")?;
                let fields = if word == "header" { &mut message.headers } else { &mut message.trailers };
                fields.push((name.into(), value.trim().into()));
            }
            "envoy" => {
                let last = self.expectations.last_mut().ok_or("nothing is expected yet")?;
                last.envoy = Some(rest.strip_prefix("=>").ok_or("`envoy => PATTERN`")?.trim().into());
            }
            "expect" => {
                let (subject, pattern) = rest.rsplit_once(" => ").ok_or("`expect SUBJECT => PATTERN`")?;
                self.expectations.push(Expectation {
                    line: number,
                    text: subject.into(),
                    subject: Subject::Seen(subject.split_whitespace().map(String::from).collect()),
                    pattern: pattern.trim().into(),
                    envoy: None,
                });
            }
            _ => self.step(number, line)?,
        }
        Ok(())
    }

    /// `FILTER.CALLBACK[CONDITION]: CALL ARGUMENT... => PATTERN`
    fn step(&mut self, number: usize, line: &str) -> Result<(), String> {
        let (when, rest) = line.split_once(": ").ok_or("neither a directive nor a step")?;
        let (filter, when) = match when.split_once('.') {
            Some((filter, when)) => (filter.parse().map_err(|_| "not a number of a filter")?, when),
            None => (1, when),
        };
        let (callback, condition) = when.strip_suffix(']').and_then(|when| when.split_once('[')).unwrap_or((when, ""));
        let (mut nth, mut end) = ("0", "-");
        for word in condition.split_whitespace() {
            match word {
                "eos" => end = "1",
                "!eos" => end = "0",
                word if word.parse::<u32>().is_ok() => nth = word,
                _ => return Err(format!("unknown condition {word}")),
            }
        }

        let (call, pattern) = match rest.rsplit_once(" => ") {
            Some((call, pattern)) => (call, Some(pattern)),
            None => (rest, None),
        };
        let mut words = tokens(call)?.into_iter();
        let name = words.next().ok_or("no call")?;
        let mut script = format!("{number} {callback} {nth} {end} {name}");
        let mut outs = Vec::new();
        for word in words {
            let _ = write!(script, " {}", argument(&name, &word, &mut outs)?);
        }
        while self.scripts.len() < filter {
            self.scripts.push(format!("case {}.{}\n", self.id, self.scripts.len() + 1));
        }
        self.scripts[filter - 1].push_str(&script);
        self.scripts[filter - 1].push('\n');
        if let Some(pattern) = pattern {
            self.expectations.push(Expectation {
                line: number,
                text: format!("{when}: {call}"),
                subject: Subject::Step { filter, wasi: WASI.contains(&name.as_str()), outs },
                pattern: pattern.trim().into(),
                envoy: None,
            });
        }
        Ok(())
    }
}

impl Message {
    fn new(line: &str) -> Self {
        let (start, h2) = line.strip_suffix(" h2").map_or((line, false), |start| (start, true));
        Self { start: start.into(), h2, ..Self::default() }
    }
}

const WASI: &[&str] =
    &["fd_write", "clock_time_get", "random_get", "environ_sizes_get", "environ_get", "args_sizes_get", "args_get"];

/// Words for the numbers of the ABI.
const NUMBERS: &[(&str, i64)] = &[
    ("req.headers", 0),
    ("req.trailers", 1),
    ("res.headers", 2),
    ("res.trailers", 3),
    ("grpc.initial", 4),
    ("grpc.trailing", 5),
    ("call.headers", 6),
    ("call.trailers", 7),
    ("req.body", 0),
    ("res.body", 1),
    ("downstream", 2),
    ("upstream", 3),
    ("call.body", 4),
    ("grpc.message", 5),
    ("vm.config", 6),
    ("plugin.config", 7),
    ("foreign.args", 8),
    ("request", 0),
    ("response", 1),
    ("counter", 0),
    ("gauge", 1),
    ("histogram", 2),
    ("pause", 1),
    ("continue", 0),
    ("all", 1 << 20),
    // A pointer that is outside of any memory a probe can have.
    ("bad", -16),
];

/// An argument in the probe's own form.
fn argument(call: &str, word: &str, outs: &mut Vec<Shown>) -> Result<String, String> {
    if let Some((_, number)) = NUMBERS.iter().find(|(known, _)| *known == word) {
        return Ok(number.to_string());
    }
    if let Some(out) = word.strip_prefix('>') {
        let (kind, name) = out.split_once('=').map_or((out, None), |(kind, name)| (kind, Some(name)));
        let (short, shown) = match kind {
            "bytes" => ('b', Shown::Bytes),
            "map" => ('b', Shown::Map),
            "int" => ('b', Shown::Int),
            "double" => ('b', Shown::Double),
            "u32" => ('4', Shown::Number),
            "u64" => ('8', Shown::Number),
            _ => return Err(format!("unknown kind of value {kind}")),
        };
        outs.push(shown);
        return Ok(name.map_or_else(|| format!(">{short}"), |name| format!(">{short}=_{name}")));
    }
    if let Some(name) = word.strip_prefix('%') {
        return Ok(format!("%_{name}"));
    }
    if let Some(text) = word.strip_prefix("ptr") {
        return Ok(format!("p{}", hex(&bytes_of(text)?)));
    }
    if let Some(text) = word.strip_prefix("prop") {
        let path: Vec<u8> = bytes_of(text)?.into_iter().map(|byte| if byte == b'.' { 0 } else { byte }).collect();
        return Ok(format!("x{}", hex(&path)));
    }
    if let Some(offset) = word.strip_prefix("end") {
        return Ok(format!("e{}", if offset.is_empty() { "0" } else { offset }));
    }
    if let Some((text, count)) = word.rsplit_once("\"*") {
        let text = format!("{text}\"");
        return Ok(format!("r{count}:{}", hex(&bytes_of(&text)?)));
    }
    if word.starts_with(['"', '{']) {
        return Ok(format!("x{}", hex(&bytes_of(word)?)));
    }
    if let Some(number) = word.strip_prefix("0x") {
        return i64::from_str_radix(number, 16).map(|number| number.to_string()).map_err(|error| error.to_string());
    }
    if word.parse::<i64>().is_ok() {
        return Ok(word.into());
    }
    match call {
        "set" | "context" => Ok(format!("_{word}")),
        "allocator" => Ok(word.into()),
        _ => Err(format!("{word} is no argument")),
    }
}

/// Splits at spaces outside of quotes and braces.
fn tokens(text: &str) -> Result<Vec<String>, String> {
    let (mut found, mut token, mut quoted, mut braces, mut escaped) = (Vec::new(), String::new(), false, 0, false);
    for c in text.chars() {
        if c == ' ' && !quoted && braces == 0 {
            found.extend((!token.is_empty()).then(|| std::mem::take(&mut token)));
            continue;
        }
        match c {
            '"' if !escaped => quoted = !quoted,
            '{' if !quoted => braces += 1,
            '}' if !quoted => braces -= 1,
            _ => {}
        }
        escaped = c == '\\' && !escaped;
        token.push(c);
    }
    found.extend((!token.is_empty()).then_some(token));
    if quoted || braces != 0 {
        return Err("a quote or brace is not closed".into());
    }
    Ok(found)
}

/// The bytes of `"text"` (with `\n`, `\\`, `\"`, `\x00`), `"text"*COUNT`, or of a map `{"name": "value", ...}` in the ABI's form.
fn bytes_of(token: &str) -> Result<Vec<u8>, String> {
    if let Some((text, count)) = token.rsplit_once("\"*") {
        return Ok(bytes_of(&format!("{text}\""))?.repeat(count.parse().map_err(|_| "not a count")?));
    }
    if let Some(inside) = token.strip_prefix('{').and_then(|token| token.strip_suffix('}')) {
        let inside: Vec<String> = tokens(inside)?;
        let trimmed = inside.iter().map(|word| word.trim_end_matches([',', ':']));
        let values = trimmed.filter(|word| !word.is_empty()).map(bytes_of).collect::<Result<Vec<_>, _>>()?;
        return Ok(map_of(&values));
    }
    let inside = token.strip_prefix('"').and_then(|token| token.strip_suffix('"')).ok_or("not a quoted text")?;
    let mut bytes = Vec::new();
    let mut rest = inside.chars();
    while let Some(c) = rest.next() {
        if c != '\\' {
            bytes.extend(c.encode_utf8(&mut [0; 4]).bytes());
            continue;
        }
        match rest.next() {
            Some('n') => bytes.push(b'\n'),
            Some('r') => bytes.push(b'\r'),
            Some('x') => {
                let digits: String = rest.by_ref().take(2).collect();
                bytes.push(u8::from_str_radix(&digits, 16).map_err(|_| "not a byte")?);
            }
            Some(c) => bytes.extend(c.encode_utf8(&mut [0; 4]).bytes()),
            None => return Err("nothing after \\".into()),
        }
    }
    Ok(bytes)
}

/// Names and values, in turn, serialized as the ABI says: the number of pairs, all sizes, then all bytes, each with a zero after it.
fn map_of(values: &[Vec<u8>]) -> Vec<u8> {
    let size = |len: usize| u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
    let mut map = size(values.len() / 2).to_vec();
    map.extend(values.iter().flat_map(|value| size(value.len())));
    for value in values {
        map.extend(value);
        map.push(0);
    }
    map
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
