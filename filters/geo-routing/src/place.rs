//! Countries and continents: the codes, and the lists that name them.

use std::fmt;
use std::str::FromStr;

/// ISO 3166-1 alpha-2, plus `XK` (Kosovo), which the geo databases use.
const COUNTRIES: &str = "\
    AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS BT BV BW BY BZ \
    CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR \
    GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP \
    KE KG KH KI KM KN KP KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT MU MV MW MX MY MZ \
    NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS RU RW \
    SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO TR TT TV TW TZ \
    UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS XK YE YT ZA ZM ZW";

/// The continent codes of the geo databases.
const CONTINENTS: &str = "AF AN AS EU NA OC SA";

/// A two-letter code in capitals.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code([u8; 2]);

/// A country or a continent in a list: `DE`, `continent:EU`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, selvedge_sdk::Config)]
#[config(from_str, pattern = "^([A-Za-z]{2}|continent:[A-Za-z]{2})$")]
pub enum Place {
    /// An ISO 3166-1 alpha-2 country.
    Country(Code),
    /// A continent: AF, AN, AS, EU, NA, OC or SA. `EU` is the continent Europe (with GB, CH, RU), not the European Union.
    Continent(Code),
}

/// A country on its own, as route lists name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, selvedge_sdk::Config)]
#[config(from_str, pattern = "^[A-Za-z]{2}$")]
pub struct Country(pub Code);

/// A continent on its own, as route lists name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, selvedge_sdk::Config)]
#[config(from_str, pattern = "^[A-Za-z]{2}$")]
pub struct Continent(pub Code);

/// Where a client is, as far as the host's database knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Location {
    /// The country, if known.
    pub country: Option<Code>,
    /// The continent, if known.
    pub continent: Option<Code>,
}

/// Why a code was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// No such country.
    #[error("{0:?} is not an ISO 3166-1 country code{1}")]
    Country(String, &'static str),
    /// No such continent.
    #[error("{0:?} is not a continent code (AF, AN, AS, EU, NA, OC, SA)")]
    Continent(String),
}

impl Location {
    /// Reads what the host tells; anything that is not a two-letter code counts as unknown.
    pub fn new(country: Option<&str>, continent: Option<&str>) -> Self {
        Self { country: country.and_then(Code::parse), continent: continent.and_then(Code::parse) }
    }

    /// Whether this location is in that place. An unknown country is in no country.
    pub fn is_in(&self, place: Place) -> bool {
        match place {
            Place::Country(code) => self.country == Some(code),
            Place::Continent(code) => self.continent == Some(code),
        }
    }
}

impl Code {
    /// The two letters, in capitals.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    fn parse(text: &str) -> Option<Self> {
        let letters: [u8; 2] = text.as_bytes().try_into().ok()?;
        letters.iter().all(u8::is_ascii_alphabetic).then(|| Self(letters.map(|letter| letter.to_ascii_uppercase())))
    }

    fn listed_in(self, list: &str) -> bool {
        list.split_ascii_whitespace().any(|code| code.as_bytes() == self.0)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Country {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        if let Some(code) = Code::parse(text).filter(|code| code.listed_in(COUNTRIES)) {
            return Ok(Self(code));
        }
        let hint = match text.to_ascii_uppercase().as_str() {
            "UK" => "; the United Kingdom is GB",
            "EU" | "AN" | "OC" => "; a continent is written continent:XX",
            _ => "",
        };
        Err(PlaceError::Country(text.to_owned(), hint))
    }
}

impl FromStr for Continent {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        let code = Code::parse(text).filter(|code| code.listed_in(CONTINENTS));
        code.map(Self).ok_or_else(|| PlaceError::Continent(text.to_owned()))
    }
}

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        match text.strip_prefix("continent:") {
            Some(continent) => continent.parse().map(|Continent(code)| Self::Continent(code)),
            None => text.parse().map(|Country(code)| Self::Country(code)),
        }
    }
}

/// Whether a header that a client sent could be taken for `name` by an origin: many servers fold case and read `_` as `-`.
pub fn passes_for(sent: &str, name: &str) -> bool {
    let fold = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    sent.len() == name.len() && sent.bytes().zip(name.bytes()).all(|(sent, name)| fold(sent) == fold(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lookalike_headers_are_recognised() {
        for (sent, expected) in
            [("x-geo-country", true), ("X_Geo-COUNTRY", true), ("x-geo-countr", false), ("xxgeo-country", false)]
        {
            assert_eq!(passes_for(sent, "x-geo-country"), expected, "{sent}");
        }
    }

    #[test]
    fn the_country_table_is_complete_and_sorted() {
        let codes: Vec<_> = COUNTRIES.split_ascii_whitespace().collect();
        assert_eq!(codes.len(), 250, "249 in ISO 3166-1 and XK");
        assert!(codes.is_sorted() && codes.iter().all(|code| code.len() == 2));
    }

    #[test]
    fn places_are_read_in_either_case() {
        for (text, debug) in [
            ("DE", "Country(DE)"),
            ("de", "Country(DE)"),
            ("continent:EU", "Continent(EU)"),
            ("continent:as", "Continent(AS)"),
        ] {
            assert_eq!(format!("{:?}", text.parse::<Place>().unwrap()), debug);
        }
        // AS is American Samoa as a country and Asia as a continent.
        assert_eq!(format!("{:?}", "AS".parse::<Place>().unwrap()), "Country(AS)");
    }

    #[test]
    fn a_wrong_code_is_refused_with_a_hint() {
        for (text, part) in [
            ("UK", "is GB"),
            ("EU", "continent:XX"),
            ("", "not an ISO"),
            ("DEU", "not an ISO"),
            ("QQ", "not an ISO"),
            ("Ä", "not an ISO"),
            ("continent:DE", "not a continent"),
            ("continent:", "not a continent"),
        ] {
            let error = text.parse::<Place>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_no_code_counts_as_unknown() {
        for text in [None, Some(""), Some("--"), Some("DEU"), Some("é")] {
            assert_eq!(Location::new(text, text), Location::default(), "{text:?}");
        }
        assert_eq!(Location::new(Some("de"), Some("EU")).country.unwrap().as_str(), "DE");
    }
}
