//! `filters`: WebAssembly modules, declared once and used by name.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use schemars::JsonSchema;
use serde_json::Value;

use crate::{
    report::Position,
    tree::{Place, Settings},
    values::{ByteSize, DurationText},
};

/// A filter as declared: a module, its limits and its configuration.
#[derive(Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Filter {
    /// The module: `builtin:NAME` for one that comes with the node, or `file:PATH`. Required.
    #[schemars(with = "String", regex(pattern = r"^(builtin|file):|\$\{"))]
    pub wasm: WasmSource,

    /// What a request gets when the filter traps or runs out of a limit: `closed` answers 503 (Service Unavailable),
    /// `open` goes on without the filter. Choose `open` only where the filter guards nothing. Default `closed`.
    #[schemars(with = "Option<OnFailure>", extend("default" = "closed"))]
    pub on_failure: OnFailure,

    /// What one instance of the filter may use.
    #[schemars(with = "Option<FilterLimits>")]
    pub limits: FilterLimits,

    /// What the filter is configured with: any YAML, handed to the module as JSON. The key `X_file: path` becomes `X:
    /// <content of the file>`, one trailing newline removed. Default `{}`.
    #[schemars(with = "Option<Value>")]
    pub config: Value,

    /// Where its name is written.
    #[schemars(skip)]
    pub position: Position,

    /// Where `wasm` is written.
    #[schemars(skip)]
    pub wasm_position: Position,

    #[schemars(skip)]
    pub(crate) places: BTreeMap<String, Place>,
}

/// Where a filter's module comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum WasmSource {
    /// One that comes with the node, by name.
    Builtin(String),
    /// A file.
    File(PathBuf),
}

/// What a request gets when a filter fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum OnFailure {
    /// 503 (Service Unavailable).
    #[default]
    Closed,
    /// The request goes on without the filter.
    Open,
}

/// What one instance of a filter may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct FilterLimits {
    /// The instance's linear memory. There is one instance per worker thread. Above zero. Default `32MiB`.
    #[schemars(with = "Option<ByteSize>", extend("default" = "32MiB"))]
    pub memory: ByteSize,

    /// How long one call into the module may run. It holds a worker thread for that time. Above zero. Default `50ms`.
    #[schemars(with = "Option<DurationText>", extend("default" = "50ms"))]
    pub deadline: Duration,

    /// How much of a request's or response's body may be held back for the filter. Above zero. Default `1MiB`.
    #[schemars(with = "Option<ByteSize>", extend("default" = "1MiB"))]
    pub body: ByteSize,

    /// How long a request may wait while the filter has paused it. Above zero. Default `10s`.
    #[schemars(with = "Option<DurationText>", extend("default" = "10s"))]
    pub wait: Duration,
}

impl Default for FilterLimits {
    fn default() -> Self {
        Self {
            memory: ByteSize::mib(32),
            deadline: Duration::from_millis(50),
            body: ByteSize::mib(1),
            wait: Duration::from_secs(10),
        }
    }
}

/// One step of a chain: a filter, with the settings of this place merged over its declared configuration.
#[derive(Clone, PartialEq, JsonSchema)]
#[schemars(with = "FilterUseForm")]
pub struct FilterUse {
    /// The filter's name in [`Config::filters`](crate::Config::filters).
    pub name: String,
    /// Its configuration here. A top-level key of the settings replaces the declared key.
    pub config: Value,
    /// Where it is used.
    pub position: Position,
    pub(crate) places: BTreeMap<String, Place>,
}

/// A filter's name alone, or its name and the settings that are merged over its declared configuration.
#[derive(JsonSchema)]
#[schemars(untagged, rename = "FilterUse")]
#[expect(dead_code, reason = "describes the grammar; never made")]
enum FilterUseForm {
    Name(String),
    #[schemars(extend("minProperties" = 1, "maxProperties" = 1))]
    WithSettings(BTreeMap<String, BTreeMap<String, Value>>),
}

impl Filter {
    /// Where the value at a JSON pointer (RFC 6901) of [`Filter::config`] is written: that of the nearest value around it
    /// if it is not written itself, at last that of the filter.
    #[must_use]
    pub fn position_of(&self, pointer: &str) -> &Position {
        nearest(&self.places, pointer).map_or(&self.position, |place| &place.position)
    }

    /// Whether the value at a JSON pointer came from a file or from the environment, so that it must not be shown.
    #[must_use]
    pub fn is_secret(&self, pointer: &str) -> bool {
        is_secret(&self.places, pointer)
    }
}

impl FilterUse {
    pub(crate) fn new(name: String, settings: Settings, position: Position) -> Self {
        Self { name, config: settings.value, places: settings.places, position }
    }

    /// Where the value at a JSON pointer (RFC 6901) of [`FilterUse::config`] is written, which may be at this use or at the
    /// filter's declaration: that of the nearest value around it if it is not written itself, at last that of this use.
    #[must_use]
    pub fn position_of(&self, pointer: &str) -> &Position {
        nearest(&self.places, pointer).map_or(&self.position, |place| &place.position)
    }

    /// Whether the value at a JSON pointer came from a file or from the environment, so that it must not be shown.
    #[must_use]
    pub fn is_secret(&self, pointer: &str) -> bool {
        is_secret(&self.places, pointer)
    }
}

fn nearest<'p>(places: &'p BTreeMap<String, Place>, pointer: &str) -> Option<&'p Place> {
    let mut pointer = pointer;
    loop {
        if let Some(place) = places.get(pointer) {
            return Some(place);
        }
        pointer = &pointer[..pointer.rfind('/')?];
    }
}

/// A value is secret if it, or anything inside it, is.
fn is_secret(places: &BTreeMap<String, Place>, pointer: &str) -> bool {
    let inside = format!("{pointer}/");
    nearest(places, pointer).is_some_and(|place| place.secret)
        || places.range(inside.clone()..).take_while(|(key, _)| key.starts_with(&inside)).any(|(_, place)| place.secret)
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filter")
            .field("wasm", &self.wasm)
            .field("on_failure", &self.on_failure)
            .field("limits", &self.limits)
            .field("config", &format_args!("<not shown>"))
            .field("position", &self.position)
            .finish()
    }
}

impl fmt::Debug for FilterUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FilterUse")
            .field("name", &self.name)
            .field("config", &format_args!("<not shown>"))
            .field("position", &self.position)
            .finish()
    }
}
