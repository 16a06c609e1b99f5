//! Views of a value: the same bytes as different interpreters would read them.

use crate::decode;

/// How a value is prepared before rules look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// Unwrapped (percent, entities) and folded. Every rule looks here.
    Base,
    /// Unwrapped and in lower case, with NUL and line ends left standing.
    Plain,
    /// Base with SQL comments replaced.
    Sql,
    /// Base with path separators unified.
    Path,
    /// Base with shell quoting removed.
    Shell,
    /// Script escapes decoded, comments and white space removed, string pieces joined.
    Script,
}

/// The views of one value that differ from its base view.
#[derive(Debug)]
pub struct Views {
    /// What every rule sees.
    pub base: Vec<u8>,
    /// The others, in no particular order.
    pub others: Vec<(View, Vec<u8>)>,
}

impl Views {
    /// Derives all views of `value`, at a cost that grows with how unusual the value is.
    pub fn of(value: &[u8]) -> Self {
        let unwrapped = decode::unwrap(value);
        let base = decode::fold(&unwrapped);
        let mut others = Vec::new();

        if unwrapped.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n')) {
            others.push((View::Plain, unwrapped.to_ascii_lowercase()));
        }
        // A value of letters and digits reads the same to everybody.
        if base.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b' '))
            && decode::find(&base, b"0x").is_none()
        {
            return Self { base, others };
        }
        let mut add = |view, bytes: Vec<u8>| {
            if bytes != base {
                others.push((view, bytes));
            }
        };
        if let std::borrow::Cow::Owned(bytes) = decode::sql_comments(&base) {
            add(View::Sql, decode::fold(&bytes));
        }
        if let std::borrow::Cow::Owned(bytes) = decode::path_separators(&base) {
            add(View::Path, bytes);
        }
        if let std::borrow::Cow::Owned(bytes) = decode::shell_words(&base) {
            add(View::Shell, decode::fold(&bytes));
        }
        // Script rules need one of these in their match or in an escape that hides it.
        if base.iter().any(|byte| matches!(byte, b'(' | b'`' | b':' | b'=' | b'<' | b'[' | b'\\' | b'*' | b'+')) {
            add(View::Script, decode::script_text(&unwrapped));
        }
        Self { base, others }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_word_has_one_view() {
        assert!(Views::of(b"hello-world_1.2").others.is_empty());
    }

    #[test]
    fn each_interpreter_gets_its_reading() {
        let views = Views::of(b"a/**/b \\..\\c 'd'\r\n(");
        let text = |wanted| {
            let found = views.others.iter().find(|(view, _)| *view == wanted);
            found.map(|(_, bytes)| String::from_utf8_lossy(bytes).into_owned())
        };
        assert_eq!(views.base, b"a/**/b \\..\\c 'd' (");
        assert_eq!(text(View::Plain).as_deref(), Some("a/**/b \\..\\c 'd'\r\n("));
        assert_eq!(text(View::Sql).as_deref(), Some("a b \\..\\c 'd' ("));
        assert_eq!(text(View::Path).as_deref(), Some("a/**/b /../c 'd' ("));
        assert_eq!(text(View::Shell).as_deref(), Some("a/**/b ..c d ("));
        assert_eq!(text(View::Script).as_deref(), Some("ab..c'd'("));
    }
}
