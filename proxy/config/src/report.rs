//! Faults: what is wrong, where, and what was probably meant.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// How many faults a load collects; a file with more is not the file its author thinks it is.
pub(crate) const MAX_FAULTS: usize = 200;

/// How many characters of a line a snippet shows.
const SNIPPET_WIDTH: usize = 140;

/// A place in a configuration file.
#[derive(Clone)]
pub struct Position {
    /// The file, as it was named or found.
    pub file: Arc<Path>,
    /// The line, counted from 1.
    pub line: usize,
    /// The column in characters, counted from 1.
    pub column: usize,
    /// How many characters are meant, at least 1.
    pub(crate) width: usize,
    /// The whole file, to show the line.
    pub(crate) text: Arc<str>,
}

/// Something that is wrong at a place.
#[derive(Clone)]
pub struct Fault {
    /// The file it is in.
    pub file: PathBuf,
    /// The line, counted from 1.
    pub line: usize,
    /// The column in characters, counted from 1.
    pub column: usize,
    /// The path of the key it is about, such as `sites[0].routes[1].match.path`; empty for the whole file.
    pub key: String,
    /// What is wrong, in one line. Values that came from a secret file or from the environment are not in it.
    pub message: String,
    /// What could be done, in one line.
    pub help: Option<String>,
    /// A second place that has to do with it, and what it is: where a name was first declared, say.
    pub related: Option<(String, Position)>,
    /// Where to find the line when it is shown.
    position: Position,
}

/// Everything that is wrong with a configuration, in the order of files and lines.
///
/// `Display` shows all faults with their lines, then how many there are.
#[derive(Clone)]
pub struct Report {
    /// The faults, sorted by file, line and column; never empty when it comes from the loader. At most 200 are collected.
    pub faults: Vec<Fault>,
    /// The file that was to be loaded.
    pub file: PathBuf,
    /// All files that were read until then, so that one can wait for them to change.
    pub files: Vec<PathBuf>,
}

/// A line, cut to a window around the part that is meant.
struct Snippet {
    line: String,
    indent: usize,
    width: usize,
}

impl Report {
    /// A report on `file` of these faults, which it sorts.
    #[must_use]
    pub fn new(file: &Path, mut faults: Vec<Fault>) -> Self {
        // The file that was named comes first, then its includes by name: a stable sort keeps what was found first in front.
        faults.sort_by(|a, b| {
            (a.file != file, &a.file, a.line, a.column).cmp(&(b.file != file, &b.file, b.line, b.column))
        });
        Self { faults, file: file.to_owned(), files: Vec::new() }
    }
}

impl Fault {
    /// A fault at a place that the loader found in order, for what only shows later: a module that does not load, a port
    /// that is taken. `key` is empty.
    #[must_use]
    pub fn at(position: &Position, message: impl Into<String>) -> Self {
        Self {
            file: position.file.to_path_buf(),
            line: position.line,
            column: position.column,
            key: String::new(),
            message: message.into(),
            help: None,
            related: None,
            position: position.clone(),
        }
    }

    /// The same fault, about the key at this path.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<String>) -> Self {
        self.key = key.into();
        self
    }

    /// The same fault, with what could be done.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The same fault, with a second place and what it is.
    #[must_use]
    pub fn with_related(mut self, what: impl Into<String>, position: &Position) -> Self {
        self.related = Some((what.into(), position.clone()));
        self
    }
}

impl Position {
    /// The start of a file.
    pub(crate) fn start_of(file: &Arc<Path>, text: &Arc<str>) -> Self {
        Self { file: Arc::clone(file), line: 1, column: 1, width: 1, text: Arc::clone(text) }
    }
}

impl Snippet {
    /// `None` if there is no such line, as in an empty file.
    fn of(position: &Position) -> Option<Self> {
        let line = lines_of(&position.text).nth(position.line.saturating_sub(1))?;
        let before = position.column.saturating_sub(1);

        // A minified file has its whole text in one line: show what is around.
        let first = if before < SNIPPET_WIDTH / 2 { 0 } else { before - SNIPPET_WIDTH / 3 };
        // An include may come from someone else, and a terminal obeys control characters.
        let shown = line.chars().skip(first).take(SNIPPET_WIDTH).map(|c| if c.is_control() { ' ' } else { c });
        let shown: String = shown.collect::<String>().trim_end().into();
        let indent = before - first;
        let width = position.width.min(shown.chars().count().saturating_sub(indent)).max(1);
        Some(Self { line: shown, indent, width })
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, line: usize) -> fmt::Result {
        let number = line.to_string();
        let gutter = " ".repeat(number.len());
        writeln!(f, "{gutter} |")?;
        writeln!(f, "{number} | {}", self.line)?;
        writeln!(f, "{gutter} | {}{}", " ".repeat(self.indent), "^".repeat(self.width))
    }
}

/// The lines of a text, as YAML counts them: a carriage return alone also ends one (YAML 1.2, 5.4).
pub(crate) fn lines_of(text: &str) -> impl Iterator<Item = &str> {
    text.split('\n').flat_map(|line| line.strip_suffix('\r').unwrap_or(line).split('\r'))
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gutter = " ".repeat(self.line.to_string().len());
        writeln!(f, "error: {}", self.message)?;
        writeln!(f, "{gutter}--> {}:{}:{}", self.file.display(), self.line, self.column)?;
        if let Some(snippet) = Snippet::of(&self.position) {
            snippet.write(f, self.line)?;
        }
        if let Some((what, position)) = &self.related {
            writeln!(f, "{gutter} = note: {what}: {position}")?;
            if let Some(snippet) = Snippet::of(position) {
                snippet.write(f, position.line)?;
            }
        }
        if let Some(help) = &self.help {
            writeln!(f, "{gutter} = help: {help}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in &self.faults {
            writeln!(f, "{fault}")?;
        }
        let plural = if self.faults.len() == 1 { "fault" } else { "faults" };
        write!(f, "{} {plural} in {}", self.faults.len(), self.file.display())
    }
}

impl std::error::Error for Report {}

impl std::error::Error for Fault {}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}: {}", self.file.display(), self.line, self.column, self.key, self.message)?;
        self.help.as_ref().map_or(Ok(()), |help| write!(f, " (help: {help})"))
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.faults).finish()
    }
}

impl PartialEq for Position {
    fn eq(&self, other: &Self) -> bool {
        (&self.file, self.line, self.column) == (&other.file, other.line, other.column)
    }
}

impl Eq for Position {}
