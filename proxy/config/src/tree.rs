//! YAML as a tree in which every node knows where it is written.
//!
//! The tree is bounded: so deep, so many nodes after aliases are expanded. Variables are replaced here, so that what
//! reads the tree need not know of them; a node also keeps the words as written, for messages.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
};

use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use serde_json::{Number, Value};

use crate::report::{Fault, MAX_FAULTS, Position, lines_of};

/// How deep lists and mappings may stand in each other. What reads the tree is recursive.
const MAX_DEPTH: usize = 64;

/// How many nodes all files of a configuration may make, aliases expanded: a few lines of aliases of aliases would
/// otherwise fill the memory ("billion laughs").
pub(crate) const MAX_NODES: usize = 2_000_000;

/// Where a value of a filter's configuration is written, and whether it may be shown.
#[derive(Clone, PartialEq)]
pub(crate) struct Place {
    pub(crate) position: Position,
    /// Where its key is written, if it has one.
    pub(crate) key: Option<Position>,
    pub(crate) secret: bool,
}

/// A filter's configuration as JSON, with the place of every value by its JSON pointer.
#[derive(Clone, PartialEq)]
pub(crate) struct Settings {
    pub(crate) value: Value,
    pub(crate) places: BTreeMap<String, Place>,
}

/// A value and where it is written.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) position: Position,
    pub(crate) data: Data,
}

/// What a node holds.
#[derive(Clone)]
pub(crate) enum Data {
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<Entry>),
    /// Something was wrong with it, and it is reported: nothing is to be said about it again.
    Broken,
}

/// A key, where it is written, and its value.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_position: Position,
    pub(crate) value: Node,
}

/// A value in one piece.
#[derive(Clone)]
pub(crate) struct Scalar {
    /// The text, variables replaced.
    pub(crate) text: String,
    /// The text with its variables' names, if it has any: what messages show.
    template: Option<String>,
    /// Whether it stands without quotes, so that it may also be a number, a truth value or nothing.
    plain: bool,
}

/// What a scalar is by the YAML 1.2 core schema.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    Null,
    Bool(bool),
    Number(Number),
    /// A number that JSON has no form for: infinity, or none at all.
    NotFinite,
    Text,
}

impl Scalar {
    /// The text as it may be shown: without the values of variables.
    pub(crate) fn shown(&self) -> &str {
        self.template.as_deref().unwrap_or(&self.text)
    }

    /// Whether variables were replaced in it.
    pub(crate) fn has_variables(&self) -> bool {
        self.template.is_some()
    }

    /// What it is by the core schema.
    pub(crate) fn kind(&self) -> Kind {
        if !self.plain {
            return Kind::Text;
        }
        match self.text.as_str() {
            "" | "~" | "null" | "Null" | "NULL" => Kind::Null,
            "true" | "True" | "TRUE" => Kind::Bool(true),
            "false" | "False" | "FALSE" => Kind::Bool(false),
            text => number(text),
        }
    }
}

fn number(text: &str) -> Kind {
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if matches!(digits, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return Kind::NotFinite;
    }
    let radix =
        [("0o", 8), ("0x", 16)].into_iter().find_map(|(prefix, radix)| Some((text.strip_prefix(prefix)?, radix)));
    if let Some((digits, radix)) = radix {
        // `from_str_radix` takes a sign, the core schema does not.
        let unsigned = digits.starts_with(|c: char| c.is_digit(radix));
        return match u64::from_str_radix(digits, radix) {
            Ok(number) if unsigned => Kind::Number(number.into()),
            _ => Kind::Text,
        };
    }

    let is_float = digits.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-'))
        && digits.trim_start_matches('.').starts_with(|c: char| c.is_ascii_digit());
    if !is_float {
        return Kind::Text;
    }
    if digits.bytes().all(|byte| byte.is_ascii_digit()) {
        let whole = if negative {
            text.parse::<i64>().map(Number::from).ok()
        } else {
            digits.parse::<u64>().map(Number::from).ok()
        };
        if let Some(whole) = whole {
            return Kind::Number(whole);
        }
    }
    match text.parse::<f64>() {
        Ok(float) => Number::from_f64(float).map_or(Kind::NotFinite, Kind::Number),
        Err(_) => Kind::Text,
    }
}

/// Reads one file's text. `None` if it holds no document, or none that can be read.
pub(crate) fn parse(
    file: &Arc<Path>,
    text: &Arc<str>,
    env: &dyn Fn(&str) -> Option<String>,
    nodes_left: &mut usize,
    faults: &mut Vec<Fault>,
) -> Option<Node> {
    let lines = lines_of(text).collect();
    Builder {
        file,
        text,
        lines,
        reached: Reached::default(),
        env,
        nodes_left,
        faults,
        anchors: HashMap::new(),
        open: Vec::new(),
        root: None,
    }
    .build()
}

struct Builder<'b> {
    file: &'b Arc<Path>,
    text: &'b Arc<str>,
    lines: Vec<&'b str>,
    reached: Reached,
    env: &'b dyn Fn(&str) -> Option<String>,
    nodes_left: &'b mut usize,
    faults: &'b mut Vec<Fault>,
    anchors: HashMap<usize, Node>,
    open: Vec<Open>,
    root: Option<Node>,
}

/// A place in a line, as the columns of the parser and as bytes. Values come in the order they are written: looking for each one's column
/// from the beginning of its line takes for ever when a whole configuration is one line.
#[derive(Default)]
struct Reached {
    line: usize,
    column: usize,
    byte: usize,
}

/// A list or mapping whose end has not been read.
struct Open {
    position: Position,
    anchor: usize,
    inside: Inside,
}

enum Inside {
    List(Vec<Node>),
    Map { entries: Vec<Entry>, index: HashMap<String, usize>, key: Option<Key> },
}

/// A key that waits for its value; `None` in it if it is not one word, which is reported.
struct Key {
    word: Option<String>,
    position: Position,
}

impl Builder<'_> {
    fn build(mut self) -> Option<Node> {
        let text = Arc::clone(self.text);
        let mut documents = 0;
        for event in Parser::new_from_str(&text) {
            let (event, span) = match event {
                Ok(read) => read,
                Err(error) => {
                    let marker = error.marker();
                    let position = self.position(Span::empty(*marker));
                    let mut fault = Fault::at(&position, format!("this is not YAML: {}", error.info()));
                    if self.line(marker.line()).contains("${") {
                        fault = fault.with_help(
                            "inside { } and [ ], `${..}` is not YAML: write this part in block style, one key per line",
                        );
                    }
                    report(self.faults, fault);
                    return None;
                }
            };
            if matches!(event, Event::DocumentStart(_)) {
                documents += 1;
                if documents > 1 {
                    let position = self.position(span);
                    report(self.faults, Fault::at(&position, "a second document begins here").with_help("one file holds one document: remove the `---`, or move what follows to a file of its own and `include` it"));
                    break;
                }
            }
            if let Err(fault) = self.take(event, span) {
                report(self.faults, *fault);
                return None;
            }
        }
        self.root
    }

    /// Takes one event. An error ends the reading of this file.
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Box<Fault>> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let position = self.scalar_position(span, style);
                self.spend(1, &position)?;
                let data = match tag {
                    Some(_) => self.tag_fault(&position),
                    // A key is taken as it is written.
                    None if self.awaits_key() => Data::Scalar(Scalar {
                        text: text.into_owned(),
                        template: None,
                        plain: style == ScalarStyle::Plain,
                    }),
                    None => self.scalar(text.into_owned(), style, span, &position),
                };
                self.add(Node { position, data }, anchor)
            }
            Event::SequenceStart(anchor, tag) => self.enter(anchor, tag.is_some(), span, Inside::List(Vec::new())),
            Event::MappingStart(anchor, tag) => self.enter(
                anchor,
                tag.is_some(),
                span,
                Inside::Map { entries: Vec::new(), index: HashMap::new(), key: None },
            ),
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(Open { position, anchor, inside }) = self.open.pop() else { return Ok(()) };
                let data = match inside {
                    Inside::List(items) => Data::List(items),
                    Inside::Map { entries, .. } => Data::Map(entries),
                };
                self.add(Node { position, data }, anchor)
            }
            Event::Alias(id) => {
                let position = self.position(span);
                let Some(target) = self.anchors.get(&id) else {
                    return Err(Box::new(Fault::at(&position, "this alias is inside what it stands for")));
                };
                let (count, depth) = measure(target);
                if self.open.len() + depth > MAX_DEPTH {
                    return Err(too_deep(&position));
                }
                self.spend(count, &position)?;
                let data = self.anchors.get(&id).map_or(Data::Broken, |target| target.data.clone());
                self.add(Node { position, data }, 0)
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => {
                Ok(())
            }
        }
    }

    fn enter(&mut self, anchor: usize, tagged: bool, span: Span, inside: Inside) -> Result<(), Box<Fault>> {
        let position = self.position(Span::empty(span.start));
        self.spend(1, &position)?;
        if self.open.len() >= MAX_DEPTH {
            return Err(too_deep(&position));
        }
        if tagged {
            self.tag_fault(&position);
        }
        self.open.push(Open { position, anchor, inside });
        Ok(())
    }

    /// Puts a finished node where it belongs.
    fn add(&mut self, node: Node, anchor: usize) -> Result<(), Box<Fault>> {
        if anchor != 0 {
            self.spend(measure(&node).0, &node.position)?;
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        let (entries, index, key) = match &mut open.inside {
            Inside::List(items) => {
                items.push(node);
                return Ok(());
            }
            Inside::Map { entries, index, key } => (entries, index, key),
        };
        let Some(Key { word, position }) = key.take() else {
            let Node { position, data } = node;
            let word = match data {
                Data::Scalar(scalar) if scalar.kind() != Kind::Null => Some(scalar.text),
                Data::Broken => None,
                _ => {
                    report(self.faults, Fault::at(&position, "a key must be a word"));
                    None
                }
            };
            *key = Some(Key { word, position });
            return Ok(());
        };
        let Some(word) = word else { return Ok(()) };

        // An empty value has no place of its own: its key is what the reader sees.
        let is_empty = matches!(&node.data, Data::Scalar(scalar) if scalar.plain && scalar.shown().is_empty());
        let value = if is_empty { Node { position: position.clone(), ..node } } else { node };
        if let Some(first) = index.get(&word).and_then(|first| entries.get(*first)) {
            report(
                self.faults,
                Fault::at(&position, format!("`{word}` is written twice"))
                    .with_key(word)
                    .with_related("first here", &first.key_position),
            );
            return Ok(());
        }
        index.insert(word.clone(), entries.len());
        entries.push(Entry { key: word, key_position: position, value });
        Ok(())
    }

    fn awaits_key(&self) -> bool {
        matches!(self.open.last(), Some(Open { inside: Inside::Map { key: None, .. }, .. }))
    }

    fn scalar(&mut self, text: String, style: ScalarStyle, span: Span, position: &Position) -> Data {
        let plain = style == ScalarStyle::Plain;
        if !plain || !text.contains("${") {
            return Data::Scalar(Scalar { text, template: None, plain });
        }
        match substitute(&text, self.env) {
            Ok(replaced) => Data::Scalar(Scalar { text: replaced, template: Some(text), plain }),
            Err(wrong) => {
                let mut at = position.clone();
                // In one line, a plain scalar stands in the file letter for letter.
                if span.start.line() == span.end.line() {
                    at.column += text[..wrong.start].chars().count();
                    at.width = text[wrong.start..wrong.end].chars().count().max(1);
                }
                let fault = Fault::at(&at, wrong.message);
                report(
                    self.faults,
                    match wrong.help {
                        Some(help) => fault.with_help(help),
                        None => fault,
                    },
                );
                Data::Broken
            }
        }
    }

    fn tag_fault(&mut self, position: &Position) -> Data {
        report(self.faults, Fault::at(position, "tags are not part of this grammar").with_help("remove the `!..`"));
        Data::Broken
    }

    fn spend(&mut self, nodes: usize, position: &Position) -> Result<(), Box<Fault>> {
        match self.nodes_left.checked_sub(nodes) {
            Some(left) => {
                *self.nodes_left = left;
                Ok(())
            }
            None => Err(Box::new(Fault::at(position, format!("more than {MAX_NODES} values, aliases expanded")))),
        }
    }

    fn line(&self, line: usize) -> &str {
        self.lines.get(line.saturating_sub(1)).copied().unwrap_or_default()
    }

    /// A line without so many characters at its beginning.
    fn line_from(&mut self, line: usize, column: usize) -> &str {
        let text = self.lines.get(line.saturating_sub(1)).copied().unwrap_or_default();
        if self.reached.line != line || self.reached.column > column {
            self.reached = Reached { line, column: 0, byte: 0 };
        }
        let reached = &mut self.reached;
        let ahead = &text[reached.byte..];
        let skipped = ahead.char_indices().nth(column - reached.column).map_or(ahead.len(), |(byte, _)| byte);
        *reached = Reached { line, column, byte: reached.byte + skipped };
        &text[self.reached.byte..]
    }

    fn position(&self, span: Span) -> Position {
        let one_line = span.start.line() == span.end.line();
        Position {
            file: Arc::clone(self.file),
            line: span.start.line().max(1),
            column: span.start.col() + 1,
            width: if one_line { span.len().max(1) } else { 1 },
            text: Arc::clone(self.text),
        }
    }

    /// The parser lets a quoted scalar reach to the next token: over blanks and comments.
    fn scalar_position(&mut self, span: Span, style: ScalarStyle) -> Position {
        let mut position = self.position(span);
        let quote = match style {
            ScalarStyle::SingleQuoted => '\'',
            ScalarStyle::DoubleQuoted => '"',
            _ => return position,
        };
        let rest = self.line_from(position.line, position.column);
        if let Some(end) = rest.chars().take(span.len().max(1)).position(|c| c == quote) {
            position.width = end + 2;
        }
        position
    }
}

/// Keeps a fault, as long as it will be shown.
fn report(faults: &mut Vec<Fault>, fault: Fault) {
    if faults.len() < MAX_FAULTS {
        faults.push(fault);
    }
}

fn too_deep(position: &Position) -> Box<Fault> {
    Box::new(Fault::at(position, format!("lists and mappings stand in each other more than {MAX_DEPTH} deep")))
}

/// How many nodes there are in a node, itself included, and how deep they go.
fn measure(node: &Node) -> (usize, usize) {
    let add = |(count, depth): (usize, usize), inner: &Node| {
        let (inner_count, inner_depth) = measure(inner);
        (count + inner_count, depth.max(inner_depth + 1))
    };
    match &node.data {
        Data::Scalar(_) | Data::Broken => (1, 0),
        Data::List(items) => items.iter().fold((1, 1), add),
        Data::Map(entries) => entries.iter().map(|entry| &entry.value).fold((1, 1), add),
    }
}

/// What is wrong with a `${..}`, and where in the text.
struct Wrong {
    start: usize,
    end: usize,
    message: String,
    help: Option<String>,
}

/// Replaces `${VAR}`, `${VAR:-default}` and `${VAR:?message}`; `$${` stands for `${`.
fn substitute(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, Wrong> {
    let mut out = String::with_capacity(text.len());
    let mut rest = 0;
    while let Some(found) = text[rest..].find("${") {
        let start = rest + found;
        if text[rest..start].ends_with('$') {
            out.push_str(&text[rest..start - 1]);
            out.push_str("${");
            rest = start + 2;
            continue;
        }
        out.push_str(&text[rest..start]);
        let Some(length) = text[start..].find('}') else {
            return Err(Wrong {
                start,
                end: text.len(),
                message: "`${` has no `}`".into(),
                help: Some("write `$${` for a literal `${`".into()),
            });
        };
        let end = start + length + 1;
        let wrong = |message: String, help: Option<&str>| Wrong { start, end, message, help: help.map(Into::into) };

        let inside = &text[start + 2..end - 1];
        let name_end = inside.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(inside.len());
        let (name, action) = inside.split_at(name_end);
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(wrong(
                "`${..}` does not begin with a variable's name".into(),
                Some("write `$${` for a literal `${`"),
            ));
        }
        let value = env(name);
        let filled = value.clone().filter(|value| !value.is_empty());
        if let Some(default) = action.strip_prefix(":-") {
            out.push_str(filled.as_deref().unwrap_or(default));
        } else if let Some(why) = action.strip_prefix(":?") {
            let Some(value) = filled else {
                let why = if why.is_empty() { "it is required" } else { why };
                return Err(wrong(format!("the variable `{name}` is not set: {why}"), None));
            };
            out.push_str(&value);
        } else if action.is_empty() {
            let Some(value) = value else {
                let help = format!("set it, or give a default: `${{{name}:-default}}`");
                return Err(wrong(format!("the variable `{name}` is not set"), Some(&help)));
            };
            out.push_str(&value);
        } else {
            return Err(wrong(
                "`${..}` goes on after the variable's name".into(),
                Some("write `${VAR}`, `${VAR:-default}` or `${VAR:?message}`"),
            ));
        }
        rest = end;
    }
    out.push_str(&text[rest..]);
    Ok(out)
}
