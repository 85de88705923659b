//! Countries and continents as values, and how they are written.
//!
//! A [`Country`] is always one of ISO 3166-1's assigned codes (or `XK`), so that a typing error
//! in a rule is found when the configuration is read, not by a rule that never matches.

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use crate::countries::{COUNTRIES, Row};
use crate::{Coordinates, UnitVector};

/// A country by its ISO 3166-1 alpha-2 code. Two bytes, upper case.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Country([u8; 2]);

/// One of seven continents, in the grouping of GeoIP2 databases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Continent {
    /// `AF`
    Africa,
    /// `AN`
    Antarctica,
    /// `AS`
    Asia,
    /// `EU`
    Europe,
    /// `NA`
    NorthAmerica,
    /// `OC`
    Oceania,
    /// `SA`
    SouthAmerica,
}

/// The text is not a country code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownCountry {
    /// Not two letters.
    #[error("`{0}` is not a country: expected two letters of ISO 3166-1, such as `DE`")]
    NotACode(Box<str>),
    /// Two letters that no country has.
    #[error("no country has the code `{0}` in ISO 3166-1")]
    Unassigned(Box<str>),
    /// A frequent mistake.
    #[error("no country has the code `{0}` in ISO 3166-1: did you mean `{1}`?")]
    DidYouMean(Box<str>, Country),
}

/// The text is not a continent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a continent: expected AF (Africa), AN (Antarctica), AS (Asia), EU (Europe), \
     NA (North America), OC (Oceania) or SA (South America)"
)]
pub struct UnknownContinent(Box<str>);

impl Country {
    /// The country with these two letters, in either case.
    pub fn from_code(code: [u8; 2]) -> Option<Self> {
        let code = code.map(|letter| letter.to_ascii_uppercase());
        position(code).map(|_| Self(code))
    }

    /// All countries, sorted by code.
    pub fn all() -> impl Iterator<Item = Self> {
        COUNTRIES.iter().map(|row| Self(row.code))
    }

    /// The two letters, upper case.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("every code in the table is ASCII")
    }

    /// The English short name.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The continent that it is counted to.
    pub fn continent(self) -> Continent {
        self.row().continent
    }

    /// The point that stands for the country: where its people mostly are, not its middle.
    pub fn point(self) -> Coordinates {
        let row = self.row();
        Coordinates { latitude: row.latitude, longitude: row.longitude }
    }

    /// [`Country::point`] as a vector, from a table that the first call computes.
    pub fn unit_vector(self) -> UnitVector {
        static VECTORS: LazyLock<Vec<UnitVector>> =
            LazyLock::new(|| Country::all().map(|country| country.point().into()).collect());
        VECTORS[self.position()]
    }

    fn row(self) -> &'static Row {
        &COUNTRIES[self.position()]
    }

    fn position(self) -> usize {
        position(self.0).expect("a Country is made from a row of the table")
    }
}

fn position(code: [u8; 2]) -> Option<usize> {
    COUNTRIES.binary_search_by(|row| row.code.cmp(&code)).ok()
}

impl Continent {
    /// All seven, sorted by code.
    pub const ALL: [Self; 7] = [
        Self::Africa,
        Self::Antarctica,
        Self::Asia,
        Self::Europe,
        Self::NorthAmerica,
        Self::Oceania,
        Self::SouthAmerica,
    ];

    /// The two-letter code, upper case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Africa => "AF",
            Self::Antarctica => "AN",
            Self::Asia => "AS",
            Self::Europe => "EU",
            Self::NorthAmerica => "NA",
            Self::Oceania => "OC",
            Self::SouthAmerica => "SA",
        }
    }

    /// The English name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Africa => "Africa",
            Self::Antarctica => "Antarctica",
            Self::Asia => "Asia",
            Self::Europe => "Europe",
            Self::NorthAmerica => "North America",
            Self::Oceania => "Oceania",
            Self::SouthAmerica => "South America",
        }
    }

    /// The point that stands for the continent when nothing closer is known: a large exchange
    /// of networks there (Johannesburg, McMurdo, Singapore, Frankfurt, Chicago, Sydney, São Paulo).
    pub fn point(self) -> Coordinates {
        let (latitude, longitude) = match self {
            Self::Africa => (-26.20, 28.05),
            Self::Antarctica => (-77.85, 166.67),
            Self::Asia => (1.35, 103.82),
            Self::Europe => (50.11, 8.68),
            Self::NorthAmerica => (41.88, -87.63),
            Self::Oceania => (-33.87, 151.21),
            Self::SouthAmerica => (-23.55, -46.63),
        };
        Coordinates { latitude, longitude }
    }
}

impl FromStr for Country {
    type Err = UnknownCountry;

    fn from_str(text: &str) -> Result<Self, UnknownCountry> {
        let code = <[u8; 2]>::try_from(text.as_bytes())
            .ok()
            .filter(|code| code.iter().all(u8::is_ascii_alphabetic))
            .ok_or_else(|| UnknownCountry::NotACode(text.into()))?;
        Self::from_code(code).ok_or_else(|| {
            match FREQUENT_MISTAKES.iter().find(|(wrong, _)| wrong.eq_ignore_ascii_case(text)) {
                Some((_, right)) => UnknownCountry::DidYouMean(text.into(), Self(**right)),
                None => UnknownCountry::Unassigned(text.into()),
            }
        })
    }
}

impl FromStr for Continent {
    type Err = UnknownContinent;

    /// The code or the English name, in either case.
    fn from_str(text: &str) -> Result<Self, UnknownContinent> {
        Self::ALL
            .into_iter()
            .find(|continent| {
                text.eq_ignore_ascii_case(continent.as_str())
                    || text.eq_ignore_ascii_case(continent.name())
            })
            .ok_or_else(|| UnknownContinent(text.into()))
    }
}

impl fmt::Display for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Continent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Codes that people write, and what they mean by them.
const FREQUENT_MISTAKES: [(&str, &[u8; 2]); 4] =
    [("UK", b"GB"), ("EL", b"GR"), ("TP", b"TL"), ("KO", b"KR")];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_each_row_is_a_country_on_earth() {
        assert!(COUNTRIES.is_sorted_by(|a, b| a.code < b.code));
        for country in Country::all() {
            let point = country.point();
            assert!(Coordinates::new(point.latitude, point.longitude).is_ok(), "{country}");
            assert_eq!(country.as_str().parse(), Ok(country));
        }
    }

    #[test]
    fn a_country_is_read_in_either_case_and_knows_its_continent() {
        let check = |text: &str, continent| {
            let country: Country = text.parse().unwrap();
            assert_eq!(country.continent(), continent, "{text}");
        };
        check("de", Continent::Europe);
        check("US", Continent::NorthAmerica);
        check("Jp", Continent::Asia);
        check("BR", Continent::SouthAmerica);
        check("AU", Continent::Oceania);
        check("ZA", Continent::Africa);
        check("AQ", Continent::Antarctica);
        check("XK", Continent::Europe);
    }

    #[test]
    fn a_wrong_country_says_what_was_expected() {
        let check = |text: &str, expected: &str| {
            assert_eq!(text.parse::<Country>().unwrap_err().to_string(), expected);
        };
        check("UK", "no country has the code `UK` in ISO 3166-1: did you mean `GB`?");
        check("QQ", "no country has the code `QQ` in ISO 3166-1");
        check("DEU", "`DEU` is not a country: expected two letters of ISO 3166-1, such as `DE`");
        check("é", "`é` is not a country: expected two letters of ISO 3166-1, such as `DE`");
        check("", "`` is not a country: expected two letters of ISO 3166-1, such as `DE`");
    }

    #[test]
    fn a_continent_is_read_by_code_or_name() {
        assert_eq!("eu".parse(), Ok(Continent::Europe));
        assert_eq!("north america".parse(), Ok(Continent::NorthAmerica));
        let error = "XX".parse::<Continent>().unwrap_err().to_string();
        assert!(error.starts_with("`XX` is not a continent: expected AF (Africa)"), "{error}");
    }
}
