//! A filter's settings: reading them, and the JSON Schema that tells the host what they may be.
//!
//! `#[derive(Config)]` does both for a struct or an enum. What serde reads otherwise can be used as well; see the derive.
//!
//! ```
//! use selvedge_sdk::prelude::*;
//!
//! /// The settings.
//! #[derive(Config)]
//! struct Settings {
//!     /// The header that carries the key.
//!     #[config(default = "x-api-key")]
//!     header: HeaderName,
//!     /// How long to wait for the answer.
//!     #[config(default = "250ms", max = "5s")]
//!     timeout: Duration,
//! }
//!
//! let settings: Settings = selvedge_sdk::config::parse(br#"{"timeout": "1s"}"#).unwrap();
//! assert_eq!((settings.header.as_str(), settings.timeout), ("x-api-key", Duration::from_secs(1)));
//!
//! let error = selvedge_sdk::config::parse::<Settings>(br#"{"timeout": "1min"}"#).err().unwrap();
//! assert!(error.starts_with("`timeout`: invalid value: string \"1min\", expected a duration"), "{error}");
//! ```

mod json;

mod units;

mod values;

use std::fmt::{self, Display, Formatter};
use std::marker::PhantomData;

use serde::Deserializer;
use serde::de::{Error, Expected, IntoDeserializer, Unexpected};

pub use self::json::Json;
pub use self::units::{ByteSize, NotASize};

/// A type that settings may have. Derive it; see [`derive(Config)`](macro@crate::Config).
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a setting",
    note = "derive it: `#[derive(Config)]`; for a type that serde reads, add `#[config(serde)]` to it or to the field"
)]
pub trait Config: Sized {
    /// The JSON Schema (2020-12) of its values, an object.
    const SCHEMA: Json;

    /// `Default::default()` as JSON, where that can be told: what `#[config(default)]` on a field says in the schema.
    const DEFAULT: Json = Json::Absent;

    /// Reads a value.
    ///
    /// # Errors
    /// It is none of this type's; the text says what was expected.
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error>;
}

/// A type that the keys of a map may have.
pub trait Key: Config {
    /// The schema of a key, if not every text is one.
    const NAMES: Json;
}

/// What has a length that `min_len` and `max_len` can bound.
pub trait Length {
    /// The member of a schema that says the least length.
    const LEAST: &'static str;
    /// … and the greatest.
    const MOST: &'static str;
    /// What is counted: one, and several.
    const UNIT: [&'static str; 2];

    /// The length.
    fn length(&self) -> usize;
}

/// Reads settings from JSON, or says which field is wrong. No JSON at all reads as `{}`.
///
/// # Errors
/// What is wrong and where, in a sentence for the operator.
pub fn parse<C: Config>(json: &[u8]) -> Result<C, String> {
    let json = json.trim_ascii();
    let mut reader = serde_json::Deserializer::from_slice(if json.is_empty() { b"{}" } else { json });
    let mut track = serde_path_to_error::Track::new();
    let config = C::read(serde_path_to_error::Deserializer::new(&mut reader, &mut track)).map_err(|error| {
        let path = track.path().to_string();
        // The path of the root is ".": the message alone is clearer then.
        if path == "." { error.to_string() } else { format!("`{path}`: {error}") }
    })?;
    reader.end().map_err(|error| error.to_string())?;
    Ok(config)
}

/// The same for a filter without settings, which need not carry a JSON parser.
///
/// # Errors
/// There are settings after all.
#[doc(hidden)]
pub fn parse_nothing(json: &[u8]) -> Result<(), String> {
    match json.trim_ascii() {
        b"" | b"{}" | b"null" => Ok(()),
        _ => Err("this filter has no settings".into()),
    }
}

/// The JSON Schema of a filter's settings, as `#[filter]` puts it into the custom section `selvedge.schema`.
pub fn schema<C: Config>() -> String {
    Root::<C>::SCHEMA.text()
}

/// The schema of whole settings.
#[doc(hidden)]
#[derive(Debug)]
pub struct Root<C>(PhantomData<C>);

impl<C: Config> Root<C> {
    /// With the dialect it is written in.
    pub const SCHEMA: Json =
        Json::With(&C::SCHEMA, &[("$schema", Json::Text("https://json-schema.org/draft/2020-12/schema"))]);
}

/// What `deserialize_with` calls.
///
/// # Errors
/// As [`Config::read`].
#[doc(hidden)]
pub fn read<'de, T: Config, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    T::read(from)
}

/// A value that the filter's author has written: a default or a bound.
///
/// # Panics
/// It is none of this type's: a bug of the filter.
#[doc(hidden)]
#[allow(clippy::panic, reason = "a literal that does not fit its type is a bug that the first run must show")]
pub fn literal<'de, T: Config>(field: &str, value: impl IntoDeserializer<'de, Mistake>) -> T {
    T::read(value.into_deserializer())
        .unwrap_or_else(|error| panic!("the default or a bound of setting `{field}` is none: {error}"))
}

/// What is wrong with a literal. Not serde's own error: that one can show what it met instead, and so brings the formatting of floating
/// point numbers, 15 KB, into every guest.
#[doc(hidden)]
#[derive(Debug)]
pub struct Mistake(String);

impl Display for Mistake {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Mistake {}

impl Error for Mistake {
    fn custom<T: Display>(message: T) -> Self {
        Self(message.to_string())
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self(format!("expected {expected}"))
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self(format!("expected {expected}"))
    }
}

/// Why a value is refused.
#[doc(hidden)]
#[cold]
pub fn out_of_bounds<E: Error>(bound: &str) -> E {
    E::custom(format_args!("must be {bound}"))
}

/// Why a value of the wrong length is refused.
#[doc(hidden)]
#[cold]
pub fn wrong_length<T: Length, E: Error>(bound: &str) -> E {
    E::custom(format_args!("must have {bound} {}", T::UNIT[usize::from(!bound.ends_with(" 1"))]))
}

/// Why a secret is refused: without showing it.
#[doc(hidden)]
#[cold]
pub fn secret<E: Error>(_: E) -> E {
    E::custom("is not of the form expected (the value is secret and not shown)")
}
