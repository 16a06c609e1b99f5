//! Reading a tree into types, collecting faults instead of stopping at the first.
//!
//! A reader returns `None` when it has reported a fault. The value that is made of the rest then has a hole, filled with
//! a default or left out; nobody sees it, because a configuration with a fault is never handed out.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;

use crate::{
    effective::Sources,
    report::{Fault, MAX_FAULTS, Position},
    tree::{Data, Entry, Kind, Node, Place, Scalar, Settings},
    values::{ByteRate, ByteSize, Percent, ValueError, parse_duration},
};

/// What all readers share.
pub(crate) struct Cx<'l> {
    pub(crate) faults: Vec<Fault>,
    /// Every file that was opened.
    pub(crate) files: Vec<PathBuf>,
    /// Their texts, but for those of secret files.
    pub(crate) sources: Sources,
    pub(crate) builtin_filters: &'l [String],
    /// Whether there is a database that says where clients are.
    pub(crate) has_geo: bool,
    /// How a secret file is read.
    pub(crate) read_secret: fn(&Path) -> Result<String, String>,
    /// Whether a file could not be read: then a name that is not declared may be declared there, and nothing is said.
    pub(crate) incomplete: bool,
    /// How many bytes of secret files may still be read.
    pub(crate) secret_bytes_left: usize,
    /// How many values may still be copied to where they are used.
    pub(crate) copies_left: usize,
    /// Which keys were asked for, by the name of the type in the schema: a test holds the schema against it.
    #[cfg(test)]
    pub(crate) asked: BTreeMap<&'static str, std::collections::BTreeSet<&'static str>>,
}

impl Cx<'_> {
    pub(crate) fn report(&mut self, fault: Fault) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(fault);
        }
    }

    /// Whether more faults would only be thrown away.
    pub(crate) fn is_full(&self) -> bool {
        self.faults.len() >= MAX_FAULTS
    }

    /// Counts values that are copied to `at`. A short file could otherwise ask for more than the memory holds: a large
    /// configuration, used by many routes.
    pub(crate) fn spend_copies(&mut self, at: &At<'_>, values: usize) -> Option<()> {
        match self.copies_left.checked_sub(values) {
            Some(left) => {
                self.copies_left = left;
                Some(())
            }
            // Once is enough: what comes after has no room either.
            None if std::mem::take(&mut self.copies_left) == 0 => None,
            None => self.refuse(at.fault("filters and listeners add up to more than a million values over all routes")),
        }
    }

    /// Reports, and gives the `None` that a reader returns then.
    pub(crate) fn refuse<T>(&mut self, fault: Fault) -> Option<T> {
        self.report(fault);
        None
    }
}

/// A node, and how one gets there.
#[derive(Clone)]
pub(crate) struct At<'t> {
    pub(crate) node: &'t Node,
    /// The path of its key, such as `sites[0].routes[1]`.
    pub(crate) path: String,
    /// Where its key is written, if it has one.
    pub(crate) key_position: Option<&'t Position>,
}

impl<'t> At<'t> {
    pub(crate) fn root(node: &'t Node) -> Self {
        Self { node, path: String::new(), key_position: None }
    }

    pub(crate) fn entry(&self, entry: &'t Entry) -> Self {
        let path = if self.path.is_empty() { entry.key.clone() } else { format!("{}.{}", self.path, entry.key) };
        Self { node: &entry.value, path, key_position: Some(&entry.key_position) }
    }

    pub(crate) fn item(&self, index: usize, node: &'t Node) -> Self {
        Self { node, path: format!("{}[{index}]", self.path), key_position: None }
    }

    /// A fault at the value.
    pub(crate) fn fault(&self, message: impl Into<String>) -> Fault {
        Fault::at(&self.node.position, message).with_key(self.path.clone())
    }

    /// Where it is named: at its key, or where it begins.
    pub(crate) fn name_position(&self) -> &'t Position {
        self.key_position.unwrap_or(&self.node.position)
    }

    fn is_broken(&self) -> bool {
        matches!(self.node.data, Data::Broken)
    }

    /// The words of a fault about a wrong type.
    fn unexpected(&self, expected: &str) -> Fault {
        let found = match &self.node.data {
            Data::List(_) => "a list".into(),
            Data::Map(_) => "a mapping".into(),
            Data::Broken => "a fault".into(),
            Data::Scalar(scalar) => match scalar.kind() {
                Kind::Null => "nothing".into(),
                Kind::Bool(_) => "a truth value".into(),
                Kind::Number(_) | Kind::NotFinite => "a number".into(),
                Kind::Text => format!("`{}`", brief(scalar.shown())),
            },
        };
        self.fault(format!("expected {expected}, found {found}"))
    }
}

/// The keys of a mapping, read one by one; what nobody asked for is a fault.
pub(crate) struct Fields<'t> {
    pub(crate) at: At<'t>,
    entries: &'t [Entry],
    asked: Vec<&'static str>,
    shape: &'static str,
}

impl<'t> Fields<'t> {
    /// The keys of `at`, which is a `shape` in the schema.
    pub(crate) fn open(cx: &mut Cx<'_>, at: &At<'t>, shape: &'static str) -> Option<Self> {
        let entries = mapping(cx, at)?;
        Some(Self { at: at.clone(), entries, asked: Vec::new(), shape })
    }

    /// The value of a key, if it is written.
    pub(crate) fn get(&mut self, key: &'static str) -> Option<At<'t>> {
        self.asked.push(key);
        self.entries.iter().find(|entry| entry.key == key).map(|entry| self.at.entry(entry))
    }

    /// Reads a key that may be left out.
    pub(crate) fn read<T>(
        &mut self,
        cx: &mut Cx<'_>,
        key: &'static str,
        read: impl FnOnce(&mut Cx<'_>, &At<'t>) -> Option<T>,
    ) -> Option<T> {
        let at = self.get(key)?;
        read(cx, &at)
    }

    /// Reads a key that must be there.
    pub(crate) fn need<T>(
        &mut self,
        cx: &mut Cx<'_>,
        key: &'static str,
        read: impl FnOnce(&mut Cx<'_>, &At<'t>) -> Option<T>,
    ) -> Option<T> {
        match self.get(key) {
            Some(at) => read(cx, &at),
            None => cx.refuse(self.missing(&format!("`{key}` is missing")).with_key(self.at.path_to(key))),
        }
    }

    /// A fault about something that is not written.
    pub(crate) fn missing(&self, message: &str) -> Fault {
        Fault::at(self.at.name_position(), message).with_key(self.at.path.clone())
    }

    /// Reports the keys nobody asked for.
    pub(crate) fn close(self, cx: &mut Cx<'_>) {
        for entry in self.entries {
            if cx.is_full() {
                break;
            }
            if !self.asked.contains(&entry.key.as_str()) {
                let fault = Fault::at(&entry.key_position, format!("unknown key `{}`", brief(&entry.key)));
                cx.report(fault.with_key(self.at.path_to(&entry.key)).with_help(suggest(
                    "keys",
                    &entry.key,
                    &self.asked,
                )));
            }
        }
        #[cfg(test)]
        cx.asked.entry(self.shape).or_default().extend(&self.asked);
        #[cfg(not(test))]
        let _ = self.shape;
    }
}

impl At<'_> {
    fn path_to(&self, key: &str) -> String {
        if self.path.is_empty() { key.into() } else { format!("{}.{key}", self.path) }
    }
}

/// The entries of a mapping.
pub(crate) fn mapping<'t>(cx: &mut Cx<'_>, at: &At<'t>) -> Option<&'t [Entry]> {
    match &at.node.data {
        Data::Map(entries) => Some(entries),
        _ if at.is_broken() => None,
        _ => cx.refuse(at.unexpected("a mapping")),
    }
}

/// The items of a list, each read.
pub(crate) fn list<'t, T>(
    cx: &mut Cx<'_>,
    at: &At<'t>,
    mut read: impl FnMut(&mut Cx<'_>, &At<'t>) -> Option<T>,
) -> Option<Vec<T>> {
    match &at.node.data {
        Data::List(items) => {
            // Every item is read, whatever was wrong with the one before.
            let items = items.iter().enumerate().map(|(index, item)| read(cx, &at.item(index, item)));
            Some(items.collect::<Vec<_>>().into_iter().flatten().collect())
        }
        _ if at.is_broken() => None,
        Data::Scalar(scalar) if scalar.kind() == Kind::Text => {
            let help = format!("write `[{}]`", brief(scalar.shown()));
            cx.refuse(at.unexpected("a list").with_help(help))
        }
        _ => cx.refuse(at.unexpected("a list")),
    }
}

/// A list that must not be empty.
pub(crate) fn filled_list<'t, T>(
    cx: &mut Cx<'_>,
    at: &At<'t>,
    read: impl FnMut(&mut Cx<'_>, &At<'t>) -> Option<T>,
) -> Option<Vec<T>> {
    if matches!(&at.node.data, Data::List(items) if items.is_empty()) {
        return cx.refuse(at.fault("the list is empty"));
    }
    list(cx, at, read)
}

/// Any scalar but nothing.
pub(crate) fn scalar<'t>(cx: &mut Cx<'_>, at: &At<'t>, expected: &str) -> Option<&'t Scalar> {
    match &at.node.data {
        Data::Scalar(scalar) if scalar.kind() != Kind::Null => Some(scalar),
        _ if at.is_broken() => None,
        _ => cx.refuse(at.unexpected(expected)),
    }
}

/// A scalar that is text: quoted, or no number, truth value or nothing.
fn text_scalar<'t>(cx: &mut Cx<'_>, at: &At<'t>, expected: &str) -> Option<&'t Scalar> {
    match &at.node.data {
        // What a variable holds cannot be quoted in the file.
        Data::Scalar(scalar) if scalar.has_variables() || scalar.kind() == Kind::Text => Some(scalar),
        Data::Scalar(scalar) if scalar.kind() != Kind::Null => {
            let help = format!("write it in quotes: `\"{}\"`", brief(scalar.shown()));
            cx.refuse(at.unexpected(expected).with_help(help))
        }
        _ if at.is_broken() => None,
        _ => cx.refuse(at.unexpected(expected)),
    }
}

/// Text, possibly empty.
pub(crate) fn text(cx: &mut Cx<'_>, at: &At<'_>) -> Option<String> {
    text_scalar(cx, at, "text").map(|scalar| scalar.text.clone())
}

/// Text that `parse` makes something of, or says why not: a message after "`text` ", and what to write instead.
pub(crate) fn parsed<T>(
    cx: &mut Cx<'_>,
    at: &At<'_>,
    expected: &str,
    parse: impl FnOnce(&str) -> Result<T, (String, Option<String>)>,
) -> Option<T> {
    let scalar = text_scalar(cx, at, expected)?;
    match parse(&scalar.text) {
        Ok(value) => Some(value),
        Err((why, help)) => {
            let fault = at.fault(format!("`{}` {why}", brief(scalar.shown())));
            // A help that was made of the text would tell what a variable holds.
            let help = help.filter(|_| !scalar.has_variables()).unwrap_or_else(|| format!("expected {expected}"));
            cx.refuse(fault.with_help(help))
        }
    }
}

/// A path, relative to the file it is written in.
pub(crate) fn path(cx: &mut Cx<'_>, at: &At<'_>) -> Option<PathBuf> {
    let path = parsed(cx, at, "a path", |text| path_text(text).map(PathBuf::from))?;
    Some(beside(&at.node.position.file, &path))
}

/// `path` as seen from the directory of `file`.
pub(crate) fn beside(file: &Path, path: &Path) -> PathBuf {
    file.parent().unwrap_or(Path::new("")).join(path)
}

fn path_text(text: &str) -> Result<&str, (String, Option<String>)> {
    if text.is_empty() || text.contains('\0') { Err(("is not a path".into(), None)) } else { Ok(text) }
}

/// A word out of a few.
pub(crate) fn choice<T: Copy>(cx: &mut Cx<'_>, at: &At<'_>, choices: &[(&'static str, T)]) -> Option<T> {
    let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
    let expected = if words.len() == 1 { quoted(&words) } else { format!("one of {}", quoted(&words)) };
    let scalar = text_scalar(cx, at, &expected)?;
    if let Some((_, value)) = choices.iter().find(|(word, _)| *word == scalar.text) {
        return Some(*value);
    }
    let fault = at.fault(format!("`{}` is not {expected}", brief(scalar.shown())));
    cx.refuse(match nearest(scalar.shown(), &words) {
        Some(near) => fault.with_help(format!("did you mean `{near}`?")),
        None => fault,
    })
}

/// `true` or `false`.
pub(crate) fn truth(cx: &mut Cx<'_>, at: &At<'_>) -> Option<bool> {
    match &at.node.data {
        Data::Scalar(scalar) if matches!(scalar.kind(), Kind::Bool(_)) => Some(scalar.kind() == Kind::Bool(true)),
        _ if at.is_broken() => None,
        _ => cx.refuse(at.unexpected("`true` or `false`")),
    }
}

/// A whole number in a range.
pub(crate) fn whole(cx: &mut Cx<'_>, at: &At<'_>, min: u16, max: u16) -> Option<u16> {
    let expected = format!("a number from {min} to {max}");
    let scalar = scalar(cx, at, &expected)?;
    let Kind::Number(number) = scalar.kind() else {
        let fault = at.unexpected(&expected);
        let digits = !scalar.text.is_empty() && scalar.text.bytes().all(|byte| byte.is_ascii_digit());
        return cx.refuse(if digits { fault.with_help("write it without quotes") } else { fault });
    };
    let fitting = number.as_u64().and_then(|number| u16::try_from(number).ok());
    match fitting.filter(|number| (min..=max).contains(number)) {
        Some(number) => Some(number),
        None => cx.refuse(at.fault(format!("`{}` is not a number from {min} to {max}", brief(scalar.shown())))),
    }
}

/// A duration, zero included.
pub(crate) fn duration_or_zero(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Duration> {
    let scalar = scalar(cx, at, "a duration")?;
    match parse_duration(&scalar.text) {
        Ok(duration) => Some(duration),
        Err(error) => {
            let help =
                "a duration is a whole number and one of ms, s, m, h, d: `250ms`, `30s`, `1h`; at most ten years";
            cx.refuse(wrong_value(at, scalar, error, "duration").with_help(help))
        }
    }
}

/// A duration above zero.
pub(crate) fn duration(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Duration> {
    let duration = duration_or_zero(cx, at)?;
    if duration.is_zero() { cx.refuse(at.fault("this duration must be above zero")) } else { Some(duration) }
}

/// A size above zero.
pub(crate) fn size(cx: &mut Cx<'_>, at: &At<'_>) -> Option<ByteSize> {
    let scalar = scalar(cx, at, "a size")?;
    match scalar.text.parse::<ByteSize>() {
        Ok(ByteSize(0)) => cx.refuse(at.fault("this size must be above zero")),
        Ok(size) => Some(size),
        Err(error) => {
            let help = "a size is a whole number and one of B, KiB, MiB, GiB, KB, MB, GB: `64KiB`, `16MiB`";
            cx.refuse(wrong_value(at, scalar, error, "size").with_help(help))
        }
    }
}

/// So many bytes in a second, or none.
pub(crate) fn byte_rate(cx: &mut Cx<'_>, at: &At<'_>) -> Option<ByteRate> {
    let scalar = scalar(cx, at, "a rate")?;
    match scalar.text.parse::<ByteRate>() {
        Ok(rate) => Some(rate),
        Err(error) => {
            let help = "bytes in a second are a size and `/s`: `240B/s`, `64KiB/s`";
            cx.refuse(wrong_value(at, scalar, error, "rate").with_help(help))
        }
    }
}

/// A share.
pub(crate) fn percent(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Percent> {
    let scalar = scalar(cx, at, "a share")?;
    match scalar.text.parse::<Percent>() {
        Ok(share) => Some(share),
        Err(error) => {
            let help = "a share is a number from 0 to 100 and `%`: `10%`, `0.25%`";
            cx.refuse(wrong_value(at, scalar, error, "share").with_help(help))
        }
    }
}

fn wrong_value(at: &At<'_>, scalar: &Scalar, error: ValueError, what: &str) -> Fault {
    let shown = brief(scalar.shown());
    at.fault(match error {
        ValueError::NoNumber => format!("`{shown}` is not a {what}"),
        error => format!("`{shown}` {error}"),
    })
}

/// Checks the key of a mapping that other parts refer to.
pub(crate) fn check_key(cx: &mut Cx<'_>, at: &At<'_>, key: &str) {
    if let Err(why) = check_name(key) {
        let fault = Fault::at(at.name_position(), format!("`{}` {why}", brief(key))).with_key(at.path.clone());
        cx.report(fault.with_help(NAME_HELP));
    }
}

pub(crate) const NAME_HELP: &str = "a name has 1 to 64 letters, digits, `-`, `_`, `.`";

/// Names stand in logs, metrics and header fields without quotes.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if (1..=64).contains(&name.len()) && name.bytes().all(plain) { Ok(()) } else { Err("is not a name".into()) }
}

/// A reference to something declared elsewhere.
pub(crate) fn reference(cx: &mut Cx<'_>, at: &At<'_>, what: &str, known: &BTreeSet<&str>) -> Option<String> {
    let scalar = text_scalar(cx, at, &format!("the name of {}", article(what)))?;
    if known.contains(scalar.text.as_str()) {
        return Some(scalar.text.clone());
    }
    unknown_name(cx, at, &at.node.position, what, scalar.shown(), known)
}

/// Reports that nothing of this name is declared.
pub(crate) fn unknown_name<T>(
    cx: &mut Cx<'_>,
    at: &At<'_>,
    position: &Position,
    what: &str,
    shown: &str,
    known: &BTreeSet<&str>,
) -> Option<T> {
    if cx.incomplete || cx.is_full() {
        return None;
    }
    let fault = Fault::at(position, format!("there is no {what} `{}`", brief(shown))).with_key(at.path.clone());
    let known: Vec<&str> = known.iter().copied().collect();
    let help =
        if known.is_empty() { format!("no {what} is declared") } else { suggest(&format!("{what}s"), shown, &known) };
    cx.refuse(fault.with_help(help))
}

fn article(what: &str) -> String {
    format!("{} {what}", if what.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" })
}

/// Any YAML as JSON, with secret files read.
pub(crate) fn settings(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Settings> {
    let mut places = BTreeMap::new();
    let value = json(cx, at, "", &mut places)?;
    Some(Settings { value, places })
}

fn json(cx: &mut Cx<'_>, at: &At<'_>, pointer: &str, places: &mut BTreeMap<String, Place>) -> Option<Value> {
    let secret = matches!(&at.node.data, Data::Scalar(scalar) if scalar.has_variables());
    places.insert(pointer.to_owned(), Place { position: at.node.position.clone(), key: None, secret });
    match &at.node.data {
        Data::Broken => None,
        Data::Scalar(scalar) => match scalar.kind() {
            Kind::Null => Some(Value::Null),
            Kind::Bool(truth) => Some(Value::Bool(truth)),
            Kind::Number(number) => Some(Value::Number(number)),
            Kind::Text => Some(Value::String(scalar.text.clone())),
            Kind::NotFinite => cx.refuse(at.fault("JSON has no such number")),
        },
        Data::List(items) => {
            let values = items.iter().enumerate();
            let values =
                values.map(|(index, item)| json(cx, &at.item(index, item), &format!("{pointer}/{index}"), places));
            // Every item is read before one that failed counts.
            values.collect::<Vec<_>>().into_iter().collect::<Option<Vec<_>>>().map(Value::Array)
        }
        Data::Map(entries) => {
            let mut object = serde_json::Map::new();
            let mut whole = true;
            let keys: HashSet<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
            for entry in entries {
                let inner = at.entry(entry);
                let from_file = entry.key.strip_suffix("_file").filter(|stem| !stem.is_empty());
                let key = from_file.unwrap_or(&entry.key);
                let inner_pointer = format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1"));
                if from_file.is_some()
                    && keys.contains(key)
                    && let Some(other) = entries.iter().find(|other| other.key == key)
                {
                    let fault = Fault::at(&entry.key_position, format!("`{}` and `{key}` are both written", entry.key));
                    cx.report(fault.with_key(inner.path).with_related("the other one", &other.key_position));
                    whole = false;
                    continue;
                }
                let value = match from_file {
                    Some(_) => secret_file(cx, &inner, &inner_pointer, places),
                    None => json(cx, &inner, &inner_pointer, places),
                };
                if let Some(place) = places.get_mut(&inner_pointer) {
                    place.key = Some(entry.key_position.clone());
                }
                match value {
                    Some(value) => drop(object.insert(key.to_owned(), value)),
                    None => whole = false,
                }
            }
            whole.then_some(Value::Object(object))
        }
    }
}

/// The content of the file that `X_file` names.
fn secret_file(cx: &mut Cx<'_>, at: &At<'_>, pointer: &str, places: &mut BTreeMap<String, Place>) -> Option<Value> {
    let content = secret_text(cx, at)?;
    places.insert(pointer.to_owned(), Place { position: at.node.position.clone(), key: None, secret: true });
    Some(Value::String(content))
}

/// The content of the file that is named here, without the end of its last line.
pub(crate) fn secret_text(cx: &mut Cx<'_>, at: &At<'_>) -> Option<String> {
    let file = path(cx, at)?;
    let read = (cx.read_secret)(&file);
    cx.files.push(file);
    let left =
        read.as_ref().map_or(Some(cx.secret_bytes_left), |content| cx.secret_bytes_left.checked_sub(content.len() + 1));
    let Some(left) = left else {
        return cx.refuse(at.fault("all secret files together are larger than 32MiB"));
    };
    cx.secret_bytes_left = left;
    match read {
        Ok(mut content) => {
            if content.ends_with('\n') {
                content.pop();
                if content.ends_with('\r') {
                    content.pop();
                }
            }
            Some(content)
        }
        Err(why) => cx.refuse(at.fault(format!("cannot read this file: {why}"))),
    }
}

/// A host name (RFC 1123, 2.1) in lower case; underscores are let through, because container networks have them.
pub(crate) fn host_name(text: &str) -> Result<String, (String, Option<String>)> {
    let wrong = |help: &str| Err(("is not a host name".to_owned(), Some(help.to_owned())));
    if !text.is_ascii() {
        return wrong("write an internationalised name in its ASCII form (`xn--..`)");
    }
    if text.is_empty() || text.len() > 253 {
        return wrong("a host name has 1 to 253 characters");
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    if !text.split('.').all(label) {
        return wrong("a host name is made of labels of letters, digits and `-`, with dots between them");
    }
    // `10.0.0.300` and `1.2.3` would be looked up as names by some and read as addresses by others.
    let last = text.rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<IpAddr>().is_err() {
        return wrong("the last label of a host name is not a number, and this is no IP address");
    }
    Ok(text.to_ascii_lowercase())
}

/// A token (RFC 9110, 5.6.2): what methods and field names are made of.
pub(crate) fn is_token(text: &str) -> bool {
    let tchar = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(tchar)
}

/// Header fields: names in lower case, sorted, with their values.
pub(crate) fn headers(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Vec<(String, String)>> {
    let mut seen: BTreeMap<String, (String, Position)> = BTreeMap::new();
    for entry in mapping(cx, at)? {
        let inner = at.entry(entry);
        let key_fault = |message: String| Fault::at(&entry.key_position, message).with_key(inner.path.clone());
        let name = entry.key.to_ascii_lowercase();
        if !is_token(&name) {
            cx.report(key_fault(format!("`{}` is not a header name", brief(&entry.key))));
            continue;
        }
        if let Some((_, first)) = seen.get(&name) {
            let fault = key_fault(format!("the header `{name}` is written twice")).with_related("first here", first);
            cx.report(fault.with_help("case does not matter in header names"));
            continue;
        }
        let value = header_value(cx, &inner);
        seen.insert(name, (value.unwrap_or_default(), entry.key_position.clone()));
    }
    Some(seen.into_iter().map(|(name, (value, _))| (name, value)).collect())
}

/// The value of a header field.
pub(crate) fn header_value(cx: &mut Cx<'_>, at: &At<'_>) -> Option<String> {
    parsed(cx, at, "a header value", |text| {
        if is_visible(text) && text.trim() == text { Ok(text.to_owned()) } else { Err(no_header_value()) }
    })
}

/// Whether a header field may hold this, as far as its characters go.
pub(crate) fn is_visible(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'\t' | b' '..=b'~'))
}

/// What is said of text that is no header value.
pub(crate) fn no_header_value() -> (String, Option<String>) {
    let help = "a header value has visible ASCII characters, with blanks only between them (RFC 9110, 5.5)";
    ("is not a header value".into(), Some(help.into()))
}

/// A word for a message: in one line, not too long, without what a terminal would obey.
pub(crate) fn brief(text: &str) -> String {
    const LONGEST: usize = 60;
    let clean: String = text.chars().take(LONGEST).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(LONGEST).is_some() { format!("{clean}..") } else { clean }
}

/// For a word that is none of those known: "did you mean …?", or what there is (`what`, in the plural).
#[must_use]
pub fn suggest(what: &str, word: &str, known: &[&str]) -> String {
    match nearest(word, known) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("known {what}: {}", quoted(known)),
    }
}

/// The known word that was probably meant.
fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    // Nobody mistypes a word into one this long, and the distance costs length times length.
    if word.len() > 64 {
        return None;
    }
    let plain = |word: &str| word.to_lowercase().replace('-', "_");
    let word = plain(word);
    let near = known.iter().filter_map(|known| {
        let distance = strsim::damerau_levenshtein(&word, &plain(known));
        // A third of the letters may be wrong: `h3` is not `h1`, but `ap` is `app`.
        (distance <= word.chars().count().max(known.len()) / 3).then_some((distance, *known))
    });
    near.min().map(|(_, known)| known)
}

fn quoted(words: &[&str]) -> String {
    const MOST: usize = 20;
    let mut list: Vec<String> = words.iter().take(MOST).map(|word| format!("`{word}`")).collect();
    if words.len() > MOST {
        list.push("..".into());
    }
    list.join(", ")
}
