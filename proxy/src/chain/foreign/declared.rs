//! `declare_property`: which of the properties a filter sets may be set once only.

use std::collections::HashMap;

use parking_lot::RwLock;

use super::protobuf::{self, Value};
use super::{Answer, bad};

/// Declarations one plugin may make.
const DECLARATIONS_MAX: usize = 64;
/// The longest name of a declared property, in bytes.
const NAME_MAX: usize = 256;

/// The declarations of one plugin, by name. A name stands for the path that its NULs or dots make of it.
#[derive(Default)]
pub(crate) struct Declared {
    read_only: RwLock<HashMap<String, bool>>,
}

impl Declared {
    /// Declares a property. Every VM of the plugin says the same again, so that is fine; saying something else is not.
    ///
    /// Of the message `DeclarePropertyArguments` the name and `readonly` count. Type and schema are for expressions, which are not
    /// served; and whatever `span` says, a value lives as long as its exchange.
    pub(crate) fn declare(&self, args: &[u8]) -> Answer {
        let (mut name, mut read_only) = (&[][..], false);
        for field in protobuf::fields(args) {
            match field? {
                (1, Value::Bytes(bytes)) => name = bytes,
                (2, Value::Number(flag)) => read_only = flag != 0,
                _ => {}
            }
        }
        let name = std::str::from_utf8(name).map_err(|_| bad("the name is not UTF-8"))?;
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(bad("a name of at most 256 bytes is needed"));
        }

        let name = name.trim_end_matches('\0').replace('\0', ".");
        let mut declared = self.read_only.write();
        match declared.get(&name) {
            Some(known) if *known == read_only => {}
            Some(_) => return Err(bad("the property was declared differently")),
            None if declared.len() >= DECLARATIONS_MAX => return Err(bad("too many properties were declared")),
            None => drop(declared.insert(name, read_only)),
        }
        Ok(Vec::new())
    }

    /// Whether what the plugin sets there is set for good.
    pub(crate) fn is_read_only(&self, name: &str) -> bool {
        self.read_only.read().get(name).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(name: &str, read_only: bool) -> Vec<u8> {
        let mut message = Vec::new();
        protobuf::put_bytes(&mut message, 1, name.as_bytes());
        protobuf::put_bool(&mut message, 2, read_only);
        message
    }

    #[test]
    fn a_declaration_stands() {
        let declared = Declared::default();
        assert_eq!(declared.declare(&message("a\0b", true)), Ok(vec![]));
        assert_eq!(declared.declare(&message("a\0b", true)), Ok(vec![]), "by the VM of another worker");
        assert!(declared.declare(&message("a\0b", false)).is_err());
        assert!(declared.is_read_only("a.b") && !declared.is_read_only("a"));
        assert_eq!(declared.declare(&message("a", false)), Ok(vec![]));
        assert!(!declared.is_read_only("a"));
    }

    #[test]
    fn declarations_are_bounded_and_checked() {
        let declared = Declared::default();
        for rubbish in [&b""[..], b"\x0a\x09a", &message("", true), &message(&"a".repeat(NAME_MAX + 1), true)] {
            assert!(declared.declare(rubbish).is_err());
        }
        for number in 0..DECLARATIONS_MAX {
            declared.declare(&message(&number.to_string(), true)).unwrap();
        }
        assert!(declared.declare(&message("one more", true)).is_err());
        assert!(declared.declare(&message("1", true)).is_ok(), "said again");
    }
}
