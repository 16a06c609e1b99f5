//! YAML as a tree in which every node knows where it is written.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::report::Position;

/// Where a value of a filter's configuration is written, and whether it may be shown.
#[derive(Clone, PartialEq)]
pub(crate) struct Place {
    pub(crate) position: Position,
    pub(crate) secret: bool,
}

/// A filter's configuration as JSON, with the place of every value by its JSON pointer.
#[derive(Clone, PartialEq)]
pub(crate) struct Settings {
    pub(crate) value: Value,
    pub(crate) places: BTreeMap<String, Place>,
}
