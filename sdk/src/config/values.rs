//! The types a setting may have.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::{self, Formatter};
use std::hash::{BuildHasher, Hash};
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::{HeaderName, HeaderValue, Method, StatusCode, Uri};
use serde::de::{DeserializeOwned, Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::units::Text;
use super::{Config, Json, Key, Length};

/// A type that serde knows.
fn of_serde<'de, T: DeserializeOwned, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    T::deserialize(from)
}

/// No settings.
impl Config for () {
    const SCHEMA: Json = Json::Object(&[("type", Json::Text("object")), ("additionalProperties", Json::Raw("false"))]);

    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Nothing;
        impl<'de> Visitor<'de> for Nothing {
            type Value = ();

            fn expecting(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
                formatter.write_str("no settings")
            }

            fn visit_unit<E: Error>(self) -> Result<(), E> {
                Ok(())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
                match map.next_key::<String>()? {
                    None => Ok(()),
                    Some(key) => Err(A::Error::custom(format_args!("unknown field `{key}`, there are no settings"))),
                }
            }
        }
        from.deserialize_any(Nothing)
    }
}

/// Anything, unchecked.
impl Config for serde_json::Value {
    const SCHEMA: Json = Json::Object(&[]);

    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        of_serde(from)
    }
}

impl Config for bool {
    const SCHEMA: Json = Json::Object(&[("type", Json::Text("boolean"))]);
    const DEFAULT: Json = Json::Raw("false");

    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        of_serde(from)
    }
}

impl Config for String {
    const SCHEMA: Json = Json::Object(&[("type", Json::Text("string"))]);
    const DEFAULT: Json = Json::Text("");

    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        of_serde(from)
    }
}

macro_rules! numbers {
    ($kind:literal: $($number:ty = $min:expr, $max:expr;)*) => {
        $(impl Config for $number {
            const SCHEMA: Json = Json::Object(&[("type", Json::Text($kind)), ("minimum", $min), ("maximum", $max)]);
            const DEFAULT: Json = Json::Raw("0");

            fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                of_serde(from)
            }
        })*
    };
}

// A guest's `usize` has 32 bits. What 64 bits hold is more than JSON tools agree upon, so those have no largest value.
numbers! { "integer":
    u8 = Json::Raw("0"), Json::Raw("255");
    u16 = Json::Raw("0"), Json::Raw("65535");
    u32 = Json::Raw("0"), Json::Raw("4294967295");
    u64 = Json::Raw("0"), Json::Absent;
    usize = Json::Raw("0"), Json::Raw("4294967295");
    i8 = Json::Raw("-128"), Json::Raw("127");
    i16 = Json::Raw("-32768"), Json::Raw("32767");
    i32 = Json::Raw("-2147483648"), Json::Raw("2147483647");
    i64 = Json::Absent, Json::Absent;
    isize = Json::Raw("-2147483648"), Json::Raw("2147483647");
}
numbers! { "number":
    f32 = Json::Absent, Json::Absent;
    f64 = Json::Absent, Json::Absent;
}

/// `null` is `None`, and so is a key that is not there.
impl<T: Config> Config for Option<T> {
    const SCHEMA: Json = Json::Nullable(&T::SCHEMA);
    const DEFAULT: Json = Json::Raw("null");

    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(of_serde::<Option<Item<T>>, D>(from)?.map(|Item(value)| value))
    }
}

impl<T: Config> Config for Box<T> {
    const SCHEMA: Json = T::SCHEMA;
    const DEFAULT: Json = T::DEFAULT;

    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        T::read(from).map(Self::new)
    }
}

impl<T: Config> Config for Vec<T> {
    const SCHEMA: Json = Json::Object(&[("type", Json::Text("array")), ("items", T::SCHEMA)]);
    const DEFAULT: Json = Json::Raw("[]");

    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(of_serde::<Vec<Item<T>>, D>(from)?.into_iter().map(|Item(value)| value).collect())
    }
}

/// A value given twice counts once.
impl<T: Config + Ord> Config for BTreeSet<T> {
    const SCHEMA: Json = <Vec<T>>::SCHEMA;
    const DEFAULT: Json = Json::Raw("[]");

    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(of_serde::<Vec<Item<T>>, D>(from)?.into_iter().map(|Item(value)| value).collect())
    }
}

impl<K: Key + Ord, T: Config> Config for BTreeMap<K, T> {
    const SCHEMA: Json = map::<K, T>();
    const DEFAULT: Json = Json::Raw("{}");

    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(Entries(PhantomData))
    }
}

impl<K: Key + Eq + Hash, T: Config, S: BuildHasher + Default> Config for HashMap<K, T, S> {
    const SCHEMA: Json = map::<K, T>();
    const DEFAULT: Json = Json::Raw("{}");

    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(Entries(PhantomData))
    }
}

const fn map<K: Key, T: Config>() -> Json {
    Json::Object(Map::<K, T>::MEMBERS)
}

/// Where the members of a map's schema are kept.
struct Map<K, T>(PhantomData<(K, T)>);

impl<K: Key, T: Config> Map<K, T> {
    const MEMBERS: &[(&str, Json)] =
        &[("type", Json::Text("object")), ("propertyNames", K::NAMES), ("additionalProperties", T::SCHEMA)];
}

/// Reads a map of either kind.
struct Entries<M, K, T>(PhantomData<(M, K, T)>);

impl<'de, K: Key, T: Config, M: Extend<(K, T)> + Default> Visitor<'de> for Entries<M, K, T> {
    type Value = M;

    fn expecting(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<M, A::Error> {
        let mut map = M::default();
        while let Some((Item(key), Item(value))) = entries.next_entry()? {
            map.extend([(key, value)]);
        }
        Ok(map)
    }
}

/// One of many: lets serde's collections read what is in them our way.
struct Item<T>(T);

impl<'de, T: Config> Deserialize<'de> for Item<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        T::read(from).map(Self)
    }
}

impl Config for StatusCode {
    const SCHEMA: Json =
        Json::Object(&[("type", Json::Text("integer")), ("minimum", Json::Raw("100")), ("maximum", Json::Raw("999"))]);

    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let code = u16::read(from)?;
        Self::from_u16(code)
            .map_err(|_| D::Error::custom(format_args!("{code} is no status code, which are 100 to 999")))
    }
}

macro_rules! texts {
    ($($text:ty = [$($member:expr),*], $expected:literal, $parse:expr;)*) => {
        $(impl Config for $text {
            const SCHEMA: Json = Json::Object(&[("type", Json::Text("string")), $($member),*]);

            fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                from.deserialize_str(Text { parse: $parse, expected: $expected })
            }
        })*
    };
}

/// A token (RFC 9110, 5.6.2).
const TOKEN: Json = Json::Text("^[-!#$%&'*+.^_`|~0-9A-Za-z]+$");

texts! {
    HeaderName = [("format", Json::Text("selvedge-header-name")), ("pattern", TOKEN)],
        "the name of a header", |text| text.parse().ok();
    HeaderValue = [], "the value of a header, without control characters", |text| text.parse().ok();
    Method = [("format", Json::Text("selvedge-method")), ("pattern", TOKEN)],
        "a request method, such as GET", |text| text.parse().ok();
    Uri = [("format", Json::Text("uri-reference"))], "a URI", |text| text.parse().ok();
    IpAddr = [("format", Json::Text("selvedge-ip"))], "an IP address", |text| text.parse().ok();
    Ipv4Addr = [("format", Json::Text("ipv4"))], "an IPv4 address", |text| text.parse().ok();
    Ipv6Addr = [("format", Json::Text("ipv6"))], "an IPv6 address", |text| text.parse().ok();
}

impl Key for String {
    const NAMES: Json = Json::Absent;
}

impl Key for HeaderName {
    const NAMES: Json = Self::SCHEMA;
}

/// As [`http::HeaderValue`] where it is written: text without control characters.
impl Config for crate::HeaderValue {
    const SCHEMA: Json = HeaderValue::SCHEMA;

    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        HeaderValue::read(from).map(Self::from)
    }
}

impl Length for String {
    const LEAST: &'static str = "minLength";
    const MOST: &'static str = "maxLength";
    const UNIT: [&'static str; 2] = ["character", "characters"];

    fn length(&self) -> usize {
        self.chars().count()
    }
}

macro_rules! lengths {
    ($([$($parameters:tt)*] $collection:ty = $least:literal, $most:literal;)*) => {
        $(impl<$($parameters)*> Length for $collection {
            const LEAST: &'static str = $least;
            const MOST: &'static str = $most;
            const UNIT: [&'static str; 2] = ["entry", "entries"];

            fn length(&self) -> usize {
                self.len()
            }
        })*
    };
}

lengths! {
    [T] Vec<T> = "minItems", "maxItems";
    [T] BTreeSet<T> = "minItems", "maxItems";
    [K, T] BTreeMap<K, T> = "minProperties", "maxProperties";
    [K, T, S] HashMap<K, T, S> = "minProperties", "maxProperties";
}
