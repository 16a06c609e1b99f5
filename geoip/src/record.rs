//! What a database record says about an address, whichever of the usual layouts it is in.
//!
//! | fact | MaxMind (GeoIP2, GeoLite2), DB-IP | flat (ip-location-db, IPinfo) |
//! |---|---|---|
//! | country | `country.iso_code` | `country_code`, or `country` with two letters |
//! | continent | `continent.code` | `continent_code`, or `continent` with two letters |
//! | city | `city.names.en` | `city` |
//! | coordinates | `location.latitude`, `location.longitude` | `latitude`/`lat`, `longitude`/`lng` |
//! | ASN | `autonomous_system_number`, also in `traits` | `asn` (a number, or `AS64496`) |
//!
//! `registered_country` is not read: it is where the network was registered, which is not where its users are. Every other
//! key is skipped, and a known key with a value of another type says nothing; neither makes the record unreadable.

use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::place::{ContinentCode, CountryCode};

/// Where an address is, as far as the database knows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Location {
    /// The country; `None` where the database has none, as for anycast addresses.
    pub country: Option<CountryCode>,
    /// The continent: the database's own, else the country's by [`CountryCode::continent`].
    pub continent: Option<ContinentCode>,
    /// The city's English name.
    pub city: Option<String>,
    /// The number of the autonomous system that announces the address; never 0.
    pub asn: Option<u32>,
    /// Latitude (-90 to 90) and longitude (-180 to 180) in degrees, usually the middle of the city or country.
    pub coordinates: Option<(f64, f64)>,
}

impl Location {
    /// Whether nothing at all is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Location::default()
    }
}

/// A record as decoded: the texts still lie in the database.
#[derive(Default)]
pub(crate) struct Record<'de> {
    country: Option<CountryCode>,
    continent: Option<ContinentCode>,
    city: Option<&'de str>,
    asn: Option<u32>,
    latitude: Option<f64>,
    longitude: Option<f64>,
    /// Whether the record has any key of the table above, even one without a value.
    pub(crate) is_known_layout: bool,
}

impl Record<'_> {
    pub(crate) fn to_location(&self) -> Location {
        Location {
            country: self.country,
            continent: self.continent.or_else(|| self.country.and_then(CountryCode::continent)),
            city: self.city.map(str::to_owned),
            asn: self.asn,
            coordinates: self.latitude.zip(self.longitude).filter(|(latitude, longitude)| {
                // Not written as "outside of", so that NaN is refused too.
                (-90.0..=90.0).contains(latitude) && (-180.0..=180.0).contains(longitude)
            }),
        }
    }

    fn set_coordinates(&mut self, (latitude, longitude): (Scalar<'_>, Scalar<'_>)) {
        self.latitude = self.latitude.or(latitude.number());
        self.longitude = self.longitude.or(longitude.number());
    }
}

impl<'de> Deserialize<'de> for Record<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RecordVisitor)
    }
}

struct RecordVisitor;

impl<'de> Visitor<'de> for RecordVisitor {
    type Value = Record<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a record that is a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut record = Record::default();
        while let Some(Key(key)) = map.next_key()? {
            match key {
                // A flat code and a nested one do not occur together; should they, the one that parses wins.
                b"country" => {
                    let text = map.next_value_seed(At(&["iso_code"]))?.text();
                    record.country = record.country.or(text.and_then(CountryCode::parse));
                }
                b"country_code" => {
                    let text = map.next_value_seed(At(&[]))?.text();
                    record.country = text.and_then(CountryCode::parse).or(record.country);
                }
                b"continent" => {
                    let text = map.next_value_seed(At(&["code"]))?.text();
                    record.continent = record.continent.or(text.and_then(ContinentCode::parse));
                }
                b"continent_code" => {
                    let text = map.next_value_seed(At(&[]))?.text();
                    record.continent = text.and_then(ContinentCode::parse).or(record.continent);
                }
                b"city" => {
                    let name = map.next_value_seed(At(&["names", "en"]))?.text();
                    record.city = name.filter(|name| !name.is_empty());
                }
                b"location" => record.set_coordinates(map.next_value_seed(CoordinatesSeed)?),
                b"latitude" | b"lat" => record.set_coordinates((map.next_value_seed(At(&[]))?, Scalar::Other)),
                b"longitude" | b"lng" => record.set_coordinates((Scalar::Other, map.next_value_seed(At(&[]))?)),
                b"autonomous_system_number" | b"asn" => {
                    record.asn = map.next_value_seed(At(&[]))?.asn().or(record.asn);
                }
                b"traits" => {
                    let asn = map.next_value_seed(At(&["autonomous_system_number"]))?.asn();
                    record.asn = record.asn.or(asn);
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            }
            record.is_known_layout = true;
        }
        Ok(record)
    }
}

/// A map key as raw bytes: comparing needs no UTF-8 check.
struct Key<'de>(&'de [u8]);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;

        impl<'de> Visitor<'de> for KeyVisitor {
            type Value = Key<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_borrowed_bytes<E>(self, key: &'de [u8]) -> Result<Self::Value, E> {
                Ok(Key(key))
            }

            fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Self::Value, E> {
                Ok(Key(key.as_bytes()))
            }
        }

        deserializer.deserialize_identifier(KeyVisitor)
    }
}

/// One value of a record.
#[derive(Clone, Copy)]
enum Scalar<'de> {
    Text(&'de str),
    Number(f64),
    /// Absent, or of a type no fact has.
    Other,
}

impl<'de> Scalar<'de> {
    fn text(self) -> Option<&'de str> {
        match self {
            Scalar::Text(text) => Some(text),
            Scalar::Number(_) | Scalar::Other => None,
        }
    }

    /// The number, also one that is written as text (IPinfo writes its coordinates so).
    fn number(self) -> Option<f64> {
        match self {
            Scalar::Number(number) => Some(number),
            Scalar::Text(text) => text.parse().ok(),
            Scalar::Other => None,
        }
    }

    fn asn(self) -> Option<u32> {
        let asn = match self {
            Scalar::Text(text) => text.strip_prefix("AS").unwrap_or(text).parse().ok()?,
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "the guard leaves whole numbers that a u32 holds"
            )]
            Scalar::Number(number) if number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&number) => {
                number as u32
            }
            Scalar::Number(_) | Scalar::Other => return None,
        };
        (asn != 0).then_some(asn)
    }
}

/// Reads the scalar at this path of keys below the value; a scalar that stands higher up, where a flat layout has it, is taken too.
struct At(&'static [&'static str]);

impl<'de> DeserializeSeed<'de> for At {
    type Value = Scalar<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for At {
    type Value = Scalar<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Scalar::Text(text))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Self::Value, E> {
        Ok(Scalar::Number(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(u32::try_from(number).map_or(Scalar::Other, |number| Scalar::Number(f64::from(number))))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(i32::try_from(number).map_or(Scalar::Other, |number| Scalar::Number(f64::from(number))))
    }

    fn visit_u128<E>(self, _: u128) -> Result<Self::Value, E> {
        Ok(Scalar::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Scalar::Other)
    }

    fn visit_borrowed_bytes<E>(self, _: &'de [u8]) -> Result<Self::Value, E> {
        Ok(Scalar::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = Scalar::Other;
        while let Some(Key(key)) = map.next_key()? {
            match self.0 {
                [first, rest @ ..] if first.as_bytes() == key => found = map.next_value_seed(At(rest))?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(found)
    }
}

/// Reads `latitude` and `longitude` of a `location` map.
struct CoordinatesSeed;

impl<'de> DeserializeSeed<'de> for CoordinatesSeed {
    type Value = (Scalar<'de>, Scalar<'de>);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for CoordinatesSeed {
    type Value = (Scalar<'de>, Scalar<'de>);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map with latitude and longitude")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = (Scalar::Other, Scalar::Other);
        while let Some(Key(key)) = map.next_key()? {
            match key {
                b"latitude" => found.0 = map.next_value_seed(At(&[]))?,
                b"longitude" => found.1 = map.next_value_seed(At(&[]))?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(found)
    }

    /// Some databases have a place's name under `location`.
    fn visit_borrowed_str<E>(self, _: &'de str) -> Result<Self::Value, E> {
        Ok((Scalar::Other, Scalar::Other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records as their publishers lay them out; JSON stands for the format's maps, which it mirrors.
    #[test]
    fn the_usual_layouts_say_the_same() {
        let berlin = Location {
            country: CountryCode::parse("DE"),
            continent: Some(ContinentCode::Europe),
            city: Some("Berlin".to_owned()),
            asn: Some(64496),
            coordinates: Some((52.5, 13.25)),
        };
        for record in [
            // GeoIP2 Enterprise, abridged
            r#"{"city": {"confidence": 20, "geoname_id": 1, "names": {"de": "Berlin (DE)", "en": "Berlin"}},
                "continent": {"code": "EU", "names": {"en": "Europe"}}, "country": {"iso_code": "DE", "is_in_european_union": true},
                "location": {"accuracy_radius": 10, "latitude": 52.5, "longitude": 13.25, "time_zone": "Europe/Berlin"},
                "registered_country": {"iso_code": "US"}, "subdivisions": [{"iso_code": "BE"}],
                "traits": {"autonomous_system_number": 64496, "autonomous_system_organization": "Example"}}"#,
            // IPinfo: all of it text, country and continent by name
            r#"{"asn": "AS64496", "as_name": "Example", "city": "Berlin", "continent": "Europe", "continent_code": "EU",
                "country": "Germany", "country_code": "DE", "lat": "52.5", "lng": "13.25"}"#,
            // IPinfo's older layout, with the code under "country"
            r#"{"asn": "64496", "city": "Berlin", "country": "DE", "latitude": 52.5, "longitude": 13.25}"#,
            // ip-location-db
            r#"{"autonomous_system_number": 64496, "city": "Berlin", "country_code": "DE", "latitude": 52.5, "longitude": 13.25,
                "state1": "Berlin", "timezone": "Europe/Berlin"}"#,
        ] {
            assert_eq!(read(record), berlin, "{record}");
        }
    }

    #[test]
    fn a_value_of_another_type_says_nothing_and_spoils_nothing() {
        for wrong in ["7", "-7", "7.5", "true", "[1, [2]]", r#"{"a": {"b": 1}}"#, r#""""#, r#""text""#] {
            let record = format!(
                r#"{{"country": {wrong}, "country_code": {wrong}, "continent": {wrong}, "continent_code": {wrong},
                    "location": {{"latitude": {wrong}, "longitude": [1]}}, "traits": {wrong}, "city": {{"names": {wrong}}},
                    "unknown": {wrong}, "asn": 64496}}"#
            );
            let location = Location { city: None, ..read(&record) };
            assert_eq!(location, Location { asn: Some(64496), ..Location::default() }, "{record}");
        }
        for wrong in ["0", "-1", "4294967296", "1.5", r#""AS""#, r#""ASX""#, r#""AS4294967296""#, r#""""#] {
            assert_eq!(read(&format!(r#"{{"asn": {wrong}}}"#)), Location::default(), "{wrong}");
        }
        for (latitude, longitude) in [("91", "0"), ("0", "-181"), (r#""nan""#, "0"), (r#""inf""#, "0"), ("1", r#""""#)]
        {
            let record = format!(r#"{{"latitude": {latitude}, "longitude": {longitude}}}"#);
            assert_eq!(read(&record), Location::default(), "{record}");
        }
    }

    #[test]
    fn a_known_key_without_a_value_is_still_a_known_layout() {
        for (record, is_known) in [
            (r#"{"country_code": ""}"#, true),
            (r#"{"location": {}}"#, true),
            (r#"{"is_anonymous": true}"#, false),
            ("{}", false),
        ] {
            let record: Record<'_> = serde_json::from_str(record).unwrap();
            assert_eq!(record.is_known_layout, is_known);
        }
        assert!(serde_json::from_str::<Record<'_>>("[]").is_err(), "a record is a map");
    }

    fn read(record: &str) -> Location {
        serde_json::from_str::<Record<'_>>(record).unwrap().to_location()
    }
}
