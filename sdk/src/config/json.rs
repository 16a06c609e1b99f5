//! JSON that is put together while a filter is compiled.
//!
//! Schemas nest across types, and on stable Rust a constant cannot be as long as a type parameter says. So each type gives a tree
//! of constants, and where the whole type is known, `#[filter]` writes the tree out into bytes. Nothing of it is left at run time
//! but the custom section.

/// A piece of JSON.
#[derive(Clone, Copy, Debug)]
pub enum Json {
    /// Nothing: a member of this value is left out.
    Absent,
    /// JSON as it is.
    Raw(&'static str),
    /// A string, not escaped yet.
    Text(&'static str),
    /// A list.
    Array(&'static [Json]),
    /// An object.
    Object(&'static [(&'static str, Json)]),
    /// An object by its members, which are JSON as it is.
    Members(&'static str),
    /// The first object with these members, which take the place of those of the same names.
    With(&'static Json, &'static [(&'static str, Json)]),
    /// A schema that takes `null` as well.
    Nullable(&'static Json),
}

impl Json {
    /// How long it is, written out.
    pub const fn length(&self) -> usize {
        let mut writer = Writer { out: &mut [], at: 0 };
        writer.value(self, false);
        writer.at
    }

    /// The JSON itself; `N` is its [`length`](Json::length).
    pub const fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut out = [0; N];
        let mut writer = Writer { out: &mut out, at: 0 };
        writer.value(self, false);
        out
    }

    /// The JSON as a string, made at run time.
    pub fn text(&self) -> String {
        let mut out = vec![0; self.length()];
        Writer { out: &mut out, at: 0 }.value(self, false);
        String::from_utf8_lossy(&out).into_owned()
    }
}

/// Members that take the place of others, from the inside out.
struct Over<'a> {
    members: &'static [(&'static str, Json)],
    outer: Option<&'a Over<'a>>,
}

/// Counts all it is given, and keeps what there is room for.
struct Writer<'o> {
    out: &'o mut [u8],
    at: usize,
}

impl Writer<'_> {
    const fn value(&mut self, value: &Json, nullable: bool) {
        match value {
            Json::Absent => self.raw("null"),
            Json::Raw(json) => self.raw(json),
            Json::Text(text) => self.quoted(text),
            Json::Array(items) => self.array(items, "null", nullable),
            Json::Object(_) | Json::Members(_) | Json::With(..) | Json::Nullable(_) => {
                self.byte(b'{');
                self.members(value, None, nullable, true);
                self.byte(b'}');
            }
        }
    }

    const fn array(&mut self, items: &[Json], null: &str, nullable: bool) {
        self.byte(b'[');
        let mut index = 0;
        while index < items.len() {
            if index > 0 {
                self.byte(b',');
            }
            self.value(&items[index], false);
            index += 1;
        }
        if nullable {
            self.byte(b',');
            self.raw(null);
        }
        self.byte(b']');
    }

    /// The members of an object without those that stand in `over`. `first`: nothing has been written yet. Returns the same for what
    /// comes next.
    const fn members(&mut self, object: &Json, over: Option<&Over<'_>>, nullable: bool, first: bool) -> bool {
        match object {
            Json::Nullable(object) => self.members(object, over, true, first),
            Json::With(base, members) => {
                let first = self.members(base, Some(&Over { members, outer: over }), nullable, first);
                self.each(members, over, nullable, first)
            }
            Json::Object(members) => self.each(members, over, nullable, first),
            Json::Members(members) if !members.is_empty() => {
                if !first {
                    self.byte(b',');
                }
                self.raw(members);
                false
            }
            Json::Members(_) | Json::Absent | Json::Raw(_) | Json::Text(_) | Json::Array(_) => first,
        }
    }

    const fn each(
        &mut self,
        members: &[(&'static str, Json)],
        over: Option<&Over<'_>>,
        nullable: bool,
        mut first: bool,
    ) -> bool {
        let mut index = 0;
        while index < members.len() {
            let (name, value) = &members[index];
            index += 1;
            if matches!(value, Json::Absent) || hidden(name, over) {
                continue;
            }
            if !first {
                self.byte(b',');
            }
            first = false;
            self.quoted(name);
            self.byte(b':');
            self.member(name, value, nullable);
        }
        first
    }

    /// What says which values are meant says so of `null` where that is one of them.
    const fn member(&mut self, name: &str, value: &Json, nullable: bool) {
        match value {
            Json::Array(items) if nullable && same(name, "enum") => self.array(items, "null", true),
            Json::Array(items) if nullable && same(name, "oneOf") => self.array(items, r#"{"type":"null"}"#, true),
            Json::Text(_) if nullable && same(name, "type") => {
                self.byte(b'[');
                self.value(value, false);
                self.raw(r#","null"]"#);
            }
            _ => self.value(value, false),
        }
    }

    const fn quoted(&mut self, text: &str) {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let text = text.as_bytes();
        self.byte(b'"');
        let mut index = 0;
        while index < text.len() {
            match text[index] {
                b'"' => self.raw("\\\""),
                b'\\' => self.raw("\\\\"),
                b'\n' => self.raw("\\n"),
                byte if byte < 0x20 => {
                    self.raw("\\u00");
                    self.byte(HEX[(byte >> 4) as usize]);
                    self.byte(HEX[(byte & 15) as usize]);
                }
                byte => self.byte(byte),
            }
            index += 1;
        }
        self.byte(b'"');
    }

    const fn raw(&mut self, text: &str) {
        let text = text.as_bytes();
        let mut index = 0;
        while index < text.len() {
            self.byte(text[index]);
            index += 1;
        }
    }

    const fn byte(&mut self, byte: u8) {
        if self.at < self.out.len() {
            self.out[self.at] = byte;
        }
        self.at += 1;
    }
}

const fn hidden(name: &str, mut over: Option<&Over<'_>>) -> bool {
    while let Some(level) = over {
        let mut index = 0;
        while index < level.members.len() {
            if same(name, level.members[index].0) && !matches!(level.members[index].1, Json::Absent) {
                return true;
            }
            index += 1;
        }
        over = level.outer;
    }
    false
}

const fn same(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    if one.len() != other.len() {
        return false;
    }
    let mut index = 0;
    while index < one.len() {
        if one[index] != other[index] {
            return false;
        }
        index += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Json = Json::Object(&[("type", Json::Text("string")), ("description", Json::Text("of the type"))]);

    #[test]
    fn writes_itself_while_it_is_compiled() {
        const JSON: Json = Json::Array(&[Json::Raw("1.5"), Json::Text("a\"b\\c\n\u{1}ä"), Json::Object(&[])]);
        const BYTES: [u8; JSON.length()] = JSON.bytes();
        assert_eq!(std::str::from_utf8(&BYTES).unwrap(), r#"[1.5,"a\"b\\c\n\u0001ä",{}]"#);
        assert_eq!(JSON.text().as_bytes(), BYTES);
    }

    #[test]
    fn members_take_the_place_of_others_however_deep() {
        const FIELD: Json =
            Json::With(&BASE, &[("description", Json::Text("of the field")), ("default", Json::Absent)]);
        const AGAIN: Json = Json::With(&FIELD, &[("description", Json::Text("last")), ("type", Json::Absent)]);
        assert_eq!(FIELD.text(), r#"{"type":"string","description":"of the field"}"#);
        assert_eq!(AGAIN.text(), r#"{"type":"string","description":"last"}"#);
    }

    #[test]
    fn null_joins_whatever_says_which_values_are_meant() {
        const ONE_OF: Json = Json::Object(&[("oneOf", Json::Array(&[BASE]))]);
        const ENUM: Json = Json::Object(&[("enum", Json::Array(&[Json::Text("a")]))]);
        const FIELD: Json = Json::With(&Json::Nullable(&BASE), &[("default", Json::Text("x"))]);
        assert_eq!(FIELD.text(), r#"{"type":["string","null"],"description":"of the type","default":"x"}"#);
        assert_eq!(Json::Nullable(&ENUM).text(), r#"{"enum":["a",null]}"#);
        assert!(Json::Nullable(&ONE_OF).text().ends_with(r#"},{"type":"null"}]}"#));
    }
}
