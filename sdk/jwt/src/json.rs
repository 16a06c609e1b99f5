//! JSON that means one thing only: an object whose member names are unique, at every depth.
//!
//! RFC 7519, 4 lets a parser refuse duplicate claim names or keep the last; two parsers that differ in this disagree about who the user
//! is. So they are refused.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Why a text is not such an object.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// Not JSON, nested deeper than 128 levels, a number out of range, or a name given twice.
    #[error(transparent)]
    Syntax(#[from] serde_json::Error),
    /// JSON, but not an object.
    #[error("not an object")]
    NotAnObject,
}

/// Reads one object; nothing but white space may follow it.
///
/// # Errors
/// See [`JsonError`].
pub fn object(text: &[u8]) -> Result<Map<String, Value>, JsonError> {
    match serde_json::from_slice(text)? {
        Strict(Value::Object(members)) => Ok(members),
        Strict(_) => Err(JsonError::NotAnObject),
    }
}

/// A value that was read with the check for duplicates.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(Strict(element)) = elements.next_element()? {
            array.push(element);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((name, Strict(value))) = members.next_entry::<String, Strict>()? {
            if object.insert(name, value).is_some() {
                return Err(A::Error::custom("a name is given twice"));
            }
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_reads_as_serde_json_reads_it() {
        let text = br#" {"a": [1, -2, 3.5, true, null, "x\u00e9"], "b": {"c": {}}, "": 18446744073709551615} "#;
        assert_eq!(Value::Object(object(text).unwrap()), serde_json::from_slice::<Value>(text).unwrap());
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        let deep = format!("{}1{}", "{\"a\":".repeat(200), "}".repeat(200));
        for text in [
            r#"{"sub":"ann","sub":"bob"}"#,
            r#"{"sub":"ann","su\u0062":"bob"}"#,
            r#"{"deep":{"a":1,"a":2}}"#,
            r#"{"list":[{"a":1,"a":2}]}"#,
            r#"{"exp":1e400}"#,
            r#"{"a":1} {"#,
            r#"{"a":1}x"#,
            r#"{"a":"\ud800"}"#,
            "[1]",
            "\"text\"",
            "1",
            "null",
            "",
            "{",
            "{\"a\":\"\n\"}",
            &deep,
        ] {
            assert!(object(text.as_bytes()).is_err(), "{text}");
        }
        assert!(object(b"{\"a\":\"\xc0\xaf\"}").is_err(), "overlong UTF-8");
    }
}
