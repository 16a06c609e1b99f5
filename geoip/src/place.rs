//! Country and continent codes, and which continent a country is on.

use std::fmt;
use std::str::FromStr;

/// An ISO 3166-1 alpha-2 country code, such as `DE`.
///
/// Any two ASCII letters are accepted and kept in upper case, so a code that ISO assigns after this was written still works. The
/// one exception is `ZZ`, which databases use for "unknown" and which is therefore no code at all.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CountryCode([u8; 2]);

impl CountryCode {
    /// The code from its text, in any case; `None` unless the text is two ASCII letters other than `ZZ`.
    #[must_use]
    pub const fn parse(text: &str) -> Option<CountryCode> {
        let &[first, second] = text.as_bytes() else { return None };
        if !first.is_ascii_alphabetic() || !second.is_ascii_alphabetic() {
            return None;
        }
        match [first.to_ascii_uppercase(), second.to_ascii_uppercase()] {
            [b'Z', b'Z'] => None,
            letters => Some(CountryCode(letters)),
        }
    }

    /// The two letters, in upper case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("parse lets only ASCII letters in")
    }

    /// The two letters as bytes, in upper case.
    #[must_use]
    pub const fn as_bytes(&self) -> [u8; 2] {
        self.0
    }

    /// The continent that GeoNames (and with it MaxMind) puts the country on; `None` for a code ISO 3166 has not assigned.
    ///
    /// A country on two continents has the one its capital or most of its people are on: Russia is in Europe, Türkiye in Asia,
    /// Egypt in Africa. `XK` (Kosovo) is user-assigned, not ISO's, but every database uses it: Europe.
    #[must_use]
    pub const fn continent(self) -> Option<ContinentCode> {
        CONTINENT_BY_COUNTRY[index(self.0)]
    }
}

impl FromStr for CountryCode {
    type Err = UnknownCode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        CountryCode::parse(text).ok_or_else(|| UnknownCode { kind: "country", text: text.to_owned() })
    }
}

impl fmt::Display for CountryCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for CountryCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One of the seven continents, by the two-letter codes that MaxMind and GeoNames use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ContinentCode {
    /// `AF`
    Africa,
    /// `AN`
    Antarctica,
    /// `AS`
    Asia,
    /// `EU`
    Europe,
    /// `NA`, with Central America and the Caribbean
    NorthAmerica,
    /// `OC`
    Oceania,
    /// `SA`
    SouthAmerica,
}

impl ContinentCode {
    /// All seven, in the order of their codes.
    pub const ALL: [ContinentCode; 7] = [
        ContinentCode::Africa,
        ContinentCode::Antarctica,
        ContinentCode::Asia,
        ContinentCode::Europe,
        ContinentCode::NorthAmerica,
        ContinentCode::Oceania,
        ContinentCode::SouthAmerica,
    ];

    /// The continent of a two-letter code, in any case; `None` for anything else (a continent's English name too).
    #[must_use]
    pub fn parse(text: &str) -> Option<ContinentCode> {
        ContinentCode::ALL.into_iter().find(|continent| continent.as_str().eq_ignore_ascii_case(text))
    }

    /// The two-letter code, in upper case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            ContinentCode::Africa => "AF",
            ContinentCode::Antarctica => "AN",
            ContinentCode::Asia => "AS",
            ContinentCode::Europe => "EU",
            ContinentCode::NorthAmerica => "NA",
            ContinentCode::Oceania => "OC",
            ContinentCode::SouthAmerica => "SA",
        }
    }
}

impl FromStr for ContinentCode {
    type Err = UnknownCode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        ContinentCode::parse(text).ok_or_else(|| UnknownCode { kind: "continent", text: text.to_owned() })
    }
}

impl fmt::Display for ContinentCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A text is not a country code, or not a continent code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {kind} code (two letters)")]
pub struct UnknownCode {
    kind: &'static str,
    text: String,
}

/// The 249 assigned codes of ISO 3166-1 alpha-2 by continent, as GeoNames has them.
const COUNTRIES: [(ContinentCode, &str); 7] = [
    (
        ContinentCode::Africa,
        "AO BF BI BJ BW CD CF CG CI CM CV DJ DZ EG EH ER ET GA GH GM GN GQ GW KE KM LR LS LY MA MG \
         ML MR MU MW MZ NA NE NG RE RW SC SD SH SL SN SO SS ST SZ TD TG TN TZ UG YT ZA ZM ZW",
    ),
    (ContinentCode::Antarctica, "AQ BV GS HM TF"),
    (
        ContinentCode::Asia,
        "AE AF AM AZ BD BH BN BT CC CN GE HK ID IL IN IO IQ IR JO JP KG KH KP KR KW KZ LA LB LK MM \
         MN MO MV MY NP OM PH PK PS QA SA SG SY TH TJ TM TR TW UZ VN YE",
    ),
    (
        ContinentCode::Europe,
        "AD AL AT AX BA BE BG BY CH CY CZ DE DK EE ES FI FO FR GB GG GI GR HR HU IE IM IS IT JE LI \
         LT LU LV MC MD ME MK MT NL NO PL PT RO RS RU SE SI SJ SK SM UA VA",
    ),
    (
        ContinentCode::NorthAmerica,
        "AG AI AW BB BL BM BQ BS BZ CA CR CU CW DM DO GD GL GP GT HN HT JM KN KY LC MF MQ MS MX NI \
         PA PM PR SV SX TC TT US VC VG VI",
    ),
    (ContinentCode::Oceania, "AS AU CK CX FJ FM GU KI MH MP NC NF NR NU NZ PF PG PN PW SB TK TL TO TV UM VU WF WS"),
    (ContinentCode::SouthAmerica, "AR BO BR CL CO EC FK GF GY PE PY SR UY VE"),
];

/// Codes from the range ISO leaves to users that databases agree on.
const USER_ASSIGNED: [(ContinentCode, &str); 1] = [(ContinentCode::Europe, "XK")];

/// [`COUNTRIES`] and [`USER_ASSIGNED`] spread out at compile time, so that a lookup is one array access.
static CONTINENT_BY_COUNTRY: [Option<ContinentCode>; 26 * 26] = spread();

const fn spread() -> [Option<ContinentCode>; 26 * 26] {
    let mut table = [None; 26 * 26];
    let mut row = 0;
    while row < COUNTRIES.len() {
        table = mark(table, COUNTRIES[row].1.as_bytes(), COUNTRIES[row].0);
        row += 1;
    }
    mark(table, USER_ASSIGNED[0].1.as_bytes(), USER_ASSIGNED[0].0)
}

const fn mark(
    mut table: [Option<ContinentCode>; 26 * 26],
    codes: &[u8],
    continent: ContinentCode,
) -> [Option<ContinentCode>; 26 * 26] {
    let mut at = 0;
    while at < codes.len() {
        let slot = index([codes[at], codes[at + 1]]);
        assert!(table[slot].is_none(), "a country stands twice in the table");
        table[slot] = Some(continent);
        at += 3; // two letters and a space
    }
    table
}

const fn index(letters: [u8; 2]) -> usize {
    (letters[0] - b'A') as usize * 26 + (letters[1] - b'A') as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_all_249_assigned_codes_once() {
        let mut codes: Vec<&str> = COUNTRIES.iter().flat_map(|(_, codes)| codes.split(' ')).collect();
        assert_eq!(codes.len(), 249);
        assert!(codes.iter().all(|code| CountryCode::parse(code).is_some_and(|parsed| parsed.as_str() == *code)));
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), 249);
        assert_eq!(CONTINENT_BY_COUNTRY.iter().flatten().count(), 250, "ISO's and Kosovo");
    }

    #[test]
    fn countries_are_on_their_continents() {
        for (country, continent) in [
            ("DE", "EU"),
            ("fr", "EU"),
            ("RU", "EU"),
            ("CY", "EU"),
            ("XK", "EU"),
            ("GB", "EU"),
            ("TR", "AS"),
            ("GE", "AS"),
            ("KZ", "AS"),
            ("JP", "AS"),
            ("IN", "AS"),
            ("US", "NA"),
            ("MX", "NA"),
            ("GL", "NA"),
            ("PA", "NA"),
            ("CO", "SA"),
            ("BR", "SA"),
            ("FK", "SA"),
            ("EG", "AF"),
            ("ZA", "AF"),
            ("AU", "OC"),
            ("CX", "OC"),
            ("AQ", "AN"),
            ("GS", "AN"),
        ] {
            let found = CountryCode::parse(country).and_then(CountryCode::continent).map(ContinentCode::as_str);
            assert_eq!(found, Some(continent), "{country}");
        }
        for unassigned in ["AA", "UK", "EU", "AP", "XX"] {
            assert_eq!(CountryCode::parse(unassigned).and_then(CountryCode::continent), None, "{unassigned}");
        }
    }

    #[test]
    fn codes_are_two_letters() {
        for text in ["", "D", "DEU", "D1", "Ä", "--", "zz", "A1", "d "] {
            assert_eq!(CountryCode::parse(text), None, "{text:?}");
        }
        assert_eq!("de".parse::<CountryCode>().unwrap().to_string(), "DE");
        assert_eq!(
            "Germany".parse::<CountryCode>().unwrap_err().to_string(),
            "\"Germany\" is not a country code (two letters)"
        );
        for continent in ContinentCode::ALL {
            assert_eq!(continent.as_str().to_lowercase().parse(), Ok(continent));
        }
        assert_eq!(ContinentCode::parse("Europe"), None);
    }
}
