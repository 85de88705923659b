//! One mmdb file: loaded, checked, its schema told apart, its records decoded.
//!
//! Two schemas are in use. MaxMind's GeoIP2 and those who follow it nest (`country.iso_code`,
//! `location.latitude`); free country and ASN databases are flat (`country_code`,
//! `autonomous_system_number`). Reading one as the other decodes without an error and finds
//! nothing, so the schema is found by looking at records, not at the file's name for itself.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use maxminddb::{LookupResult, MaxMindDbError, PathElement, Reader, WithinOptions};
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::cache::NO_RECORD;
use crate::place::{Details, Record};
use crate::{Coordinates, Country};

/// Where a database comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The country database inside the program (see `geo/data/README.md`).
    BuiltIn,
    /// An mmdb file. Read into memory as a whole; replace it in one piece (rename).
    File(PathBuf),
}

/// How a database names its facts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schema {
    /// `country_code`, `city`, `latitude`, `autonomous_system_number`, … beside each other.
    Flat,
    /// `country.iso_code`, `city.names.en`, `location.latitude`, …
    GeoIp2,
}

/// Why the databases were not loaded. Each names the file.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("{}: cannot be read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        #[source]
        /// The error of the system.
        source: std::io::Error,
    },
    /// The file is something else.
    #[error("{source_name}: not an mmdb database")]
    NotMmdb {
        /// The file.
        source_name: Source,
        #[source]
        /// The error of the parser.
        source: Box<MaxMindDbError>,
    },
    /// The file is compressed.
    #[error("{source_name}: the file is compressed with gzip: decompress it with gunzip FILE")]
    Compressed {
        /// The file.
        source_name: Source,
    },
    /// The file is an mmdb database with a broken tree or broken records.
    #[error("{source_name}: the database is damaged or incomplete")]
    Damaged {
        /// The file.
        source_name: Source,
        #[source]
        /// Where it breaks.
        source: Box<MaxMindDbError>,
    },
    /// The database is whole, and about something else.
    #[error(
        "{source_name}: a database of type `{database_type}` whose records hold {fields}; expected \
         `country_code` or `autonomous_system_number` (flat), or `country.iso_code` (GeoIP2)"
    )]
    UnknownSchema {
        /// The file.
        source_name: Source,
        /// The type that the database states in its metadata.
        database_type: Box<str>,
        /// The names of a record's fields.
        fields: Box<str>,
    },
    /// More databases than can be combined.
    #[error("{given} databases are named: at most {max} can be combined")]
    TooMany {
        /// How many there are.
        given: usize,
        /// How many there may be.
        max: usize,
    },
}

/// A file in memory, or the one in the program.
type Bytes = Cow<'static, [u8]>;

/// A loaded database.
pub(crate) struct Database {
    reader: Reader<Bytes>,
    pub source: Source,
    pub schema: Schema,
}

impl Database {
    /// Reads and checks a database. Reads a file: not for the path.
    pub(crate) fn load(source: &Source) -> Result<Self, LoadError> {
        match source {
            // A test checks it, so that each start needn't walk its half million networks.
            Source::BuiltIn => Self::parse(Cow::Borrowed(BUILT_IN), source),
            Source::File(path) => {
                let bytes = std::fs::read(path)
                    .map_err(|source| LoadError::Unreadable { path: path.clone(), source })?;
                Self::checked(Cow::Owned(bytes), source)
            }
        }
    }

    /// Reads a database and checks each of its records.
    pub(crate) fn checked(bytes: Bytes, source: &Source) -> Result<Self, LoadError> {
        let database = Self::parse(bytes, source)?;
        database.verify()?;
        Ok(database)
    }

    fn parse(bytes: Bytes, source: &Source) -> Result<Self, LoadError> {
        if bytes.starts_with(&[0x1f, 0x8b]) {
            return Err(LoadError::Compressed { source_name: source.clone() });
        }
        let reader = Reader::from_source(bytes).map_err(|error| LoadError::NotMmdb {
            source_name: source.clone(),
            source: error.into(),
        })?;
        let schema = schema_of(&reader, source)?;
        Ok(Self { reader, source: source.clone(), schema })
    }

    /// Walks the whole tree and decodes every record once. (`Reader::verify` refuses databases
    /// without a description, which are in use, and doesn't know what we expect of a record.)
    fn verify(&self) -> Result<(), LoadError> {
        let damaged = |error| damaged(&self.source, error);
        let mut decoded = HashSet::new();
        for found in self.reader.networks(WithinOptions::default()).map_err(damaged)? {
            let found = found.map_err(damaged)?;
            if found.offset().is_some_and(|offset| decoded.insert(offset)) {
                self.decode(&found).map_err(damaged)?;
            }
        }
        Ok(())
    }

    /// The offset of the record of `address`, [`NO_RECORD`] when there is none.
    #[inline]
    pub(crate) fn offset(&self, address: IpAddr) -> u32 {
        if address.is_ipv6() && self.reader.metadata().ip_version == 4 {
            return NO_RECORD;
        }
        self.reader
            .lookup(address)
            .ok()
            .and_then(|found| u32::try_from(found.offset()?).ok())
            .unwrap_or(NO_RECORD)
    }

    /// As [`Database::offset`], with the length of the network of `address` in the database: all of its
    /// addresses have this record. At least 1, because a database may know one of the address families only.
    pub(crate) fn offset_and_prefix(&self, address: IpAddr) -> (u32, u8) {
        if address.is_ipv6() && self.reader.metadata().ip_version == 4 {
            return (NO_RECORD, 1);
        }
        let Ok(found) = self.reader.lookup(address) else { return (NO_RECORD, 1) };
        let offset = found.offset().and_then(|offset| u32::try_from(offset).ok());
        let network = found.network().ok().filter(|it| it.is_ipv4() == address.is_ipv4());
        (offset.unwrap_or(NO_RECORD), network.map_or(1, |network| network.prefix().max(1)))
    }

    /// The record of `address`. One that cannot be decoded knows nothing.
    pub(crate) fn record(&self, address: IpAddr) -> Record {
        self.reader.lookup(address).and_then(|found| self.decode(&found)).unwrap_or_default()
    }

    fn decode(&self, found: &LookupResult<'_, Bytes>) -> Result<Record, MaxMindDbError> {
        let record = match self.schema {
            Schema::Flat => found.decode::<Flat>()?.map(Record::from),
            Schema::GeoIp2 => found.decode::<GeoIp2>()?.map(Record::from),
        };
        Ok(record.unwrap_or_default())
    }

    /// The type that the database states in its metadata, such as `GeoLite2-City`.
    pub(crate) fn database_type(&self) -> &str {
        &self.reader.metadata().database_type
    }

    /// When it was made.
    pub(crate) fn built(&self) -> Option<SystemTime> {
        self.reader.metadata().build_time().ok()
    }
}

fn damaged(source: &Source, error: MaxMindDbError) -> LoadError {
    LoadError::Damaged { source_name: source.clone(), source: error.into() }
}

/// Looks at the first records until one tells.
fn schema_of(reader: &Reader<Bytes>, source: &Source) -> Result<Schema, LoadError> {
    let mut fields = None;
    let networks =
        reader.networks(WithinOptions::default()).map_err(|error| damaged(source, error))?;
    for found in networks.take(RECORDS_LOOKED_AT) {
        let found = found.map_err(|error| damaged(source, error))?;
        let has = |path: &[&str]| {
            let path: Vec<_> = path.iter().map(|key| PathElement::Key(key)).collect();
            matches!(found.decode_path::<IgnoredAny>(&path), Ok(Some(_)))
        };
        if GEOIP2_MARKS.iter().any(|path| has(path)) {
            return Ok(Schema::GeoIp2);
        }
        if FLAT_MARKS.iter().any(|field| has(&[field])) {
            return Ok(Schema::Flat);
        }
        if fields.is_none() {
            let record = found.decode::<std::collections::BTreeMap<String, IgnoredAny>>();
            let names = record.ok().flatten().map(|record| {
                record.keys().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ")
            });
            fields = names.filter(|names| !names.is_empty());
        }
    }
    Err(LoadError::UnknownSchema {
        source_name: source.clone(),
        database_type: reader.metadata().database_type.as_str().into(),
        fields: fields.map_or("nothing".into(), Into::into),
    })
}

/// The flat schema. `asn` and `as_name` are IPinfo's words, `state1` is ip-location-db's.
#[derive(Deserialize)]
struct Flat<'a> {
    #[serde(borrow)]
    country_code: Option<Loose<'a>>,
    continent_code: Option<Loose<'a>>,
    #[serde(alias = "region")]
    state1: Option<Loose<'a>>,
    region_code: Option<Loose<'a>>,
    city: Option<Loose<'a>>,
    latitude: Option<Loose<'a>>,
    longitude: Option<Loose<'a>>,
    #[serde(alias = "asn")]
    autonomous_system_number: Option<Loose<'a>>,
    #[serde(alias = "as_name")]
    autonomous_system_organization: Option<Loose<'a>>,
}

/// The part of GeoIP2's schema that we read.
#[derive(Deserialize)]
struct GeoIp2<'a> {
    #[serde(borrow)]
    country: Option<Coded<'a>>,
    continent: Option<Coded<'a>>,
    subdivisions: Option<Vec<Coded<'a>>>,
    city: Option<Coded<'a>>,
    location: Option<Location<'a>>,
    traits: Option<Traits<'a>>,
}

#[derive(Deserialize)]
struct Coded<'a> {
    #[serde(borrow, alias = "code")]
    iso_code: Option<&'a str>,
    names: Option<Names<'a>>,
}

#[derive(Deserialize)]
struct Names<'a> {
    en: Option<&'a str>,
}

#[derive(Deserialize)]
struct Location<'a> {
    #[serde(borrow)]
    latitude: Option<Loose<'a>>,
    longitude: Option<Loose<'a>>,
}

#[derive(Deserialize)]
struct Traits<'a> {
    #[serde(borrow)]
    autonomous_system_number: Option<Loose<'a>>,
    autonomous_system_organization: Option<Loose<'a>>,
}

/// A field that makers of databases write in several types: a coordinate as float, double or
/// text, an AS number as `64500` or `"AS64500"`. Asking for one type would lose the record.
#[derive(Clone, Copy)]
enum Loose<'a> {
    Text(&'a str),
    Number(f64),
    Other,
}

impl<'a> Loose<'a> {
    fn text(self) -> Option<&'a str> {
        match self {
            Self::Text(text) if !text.is_empty() => Some(text),
            _ => None,
        }
    }

    fn number(self) -> Option<f64> {
        match self {
            Self::Text(text) => text.parse().ok(),
            Self::Number(number) => Some(number),
            Self::Other => None,
        }
    }

    fn asn(self) -> Option<u32> {
        match self {
            Self::Text(text) => text.trim_start_matches("AS").parse().ok(),
            Self::Number(number) => Some(number as u32).filter(|asn| *asn > 0),
            Self::Other => None,
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Loose<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LooseVisitor)
    }
}

struct LooseVisitor;

impl<'de> Visitor<'de> for LooseVisitor {
    type Value = Loose<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Loose<'de>, E> {
        Ok(Loose::Text(text))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Loose<'de>, E> {
        Ok(Loose::Number(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Loose<'de>, E> {
        Ok(Loose::Number(number as f64))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Loose<'de>, E> {
        Ok(Loose::Number(number as f64))
    }

    fn visit_u128<E>(self, _: u128) -> Result<Loose<'de>, E> {
        Ok(Loose::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Loose<'de>, E> {
        Ok(Loose::Other)
    }

    fn visit_borrowed_bytes<E>(self, _: &'de [u8]) -> Result<Loose<'de>, E> {
        Ok(Loose::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Loose<'de>, A::Error> {
        IgnoredAny.visit_map(map).map(|_| Loose::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Loose<'de>, A::Error> {
        IgnoredAny.visit_seq(seq).map(|_| Loose::Other)
    }
}

impl From<Flat<'_>> for Record {
    fn from(flat: Flat<'_>) -> Self {
        Self {
            country: flat.country_code.and_then(Loose::text).and_then(country),
            continent: flat.continent_code.and_then(Loose::text).and_then(|code| code.parse().ok()),
            details: Details {
                region: owned(flat.state1.and_then(Loose::text)),
                region_code: owned(flat.region_code.and_then(Loose::text)),
                city: owned(flat.city.and_then(Loose::text)),
                coordinates: coordinates(flat.latitude, flat.longitude),
                unit_vector: None,
                asn: flat.autonomous_system_number.and_then(Loose::asn),
                organization: owned(flat.autonomous_system_organization.and_then(Loose::text)),
            },
        }
    }
}

impl From<GeoIp2<'_>> for Record {
    fn from(nested: GeoIp2<'_>) -> Self {
        let region = nested.subdivisions.as_deref().and_then(<[_]>::first);
        let traits = nested.traits.as_ref();
        let location = nested.location.as_ref();
        Self {
            country: nested.country.and_then(|country| country.iso_code).and_then(country),
            continent: nested.continent.and_then(|continent| continent.iso_code?.parse().ok()),
            details: Details {
                region: owned(region.and_then(Coded::english)),
                region_code: owned(region.and_then(|region| region.iso_code)),
                city: owned(nested.city.as_ref().and_then(Coded::english)),
                coordinates: location
                    .and_then(|location| coordinates(location.latitude, location.longitude)),
                unit_vector: None,
                asn: traits.and_then(|traits| traits.autonomous_system_number?.asn()),
                organization: owned(
                    traits.and_then(|traits| traits.autonomous_system_organization?.text()),
                ),
            },
        }
    }
}

impl<'a> Coded<'a> {
    fn english(&self) -> Option<&'a str> {
        self.names.as_ref()?.en
    }
}

/// Databases write `None`, `ZZ`, `EU` or nothing for "no country".
fn country(code: &str) -> Option<Country> {
    Country::from_code(code.as_bytes().try_into().ok()?)
}

fn owned(text: Option<&str>) -> Option<Box<str>> {
    text.filter(|text| !text.is_empty()).map(Into::into)
}

fn coordinates(latitude: Option<Loose>, longitude: Option<Loose>) -> Option<Coordinates> {
    Coordinates::new(latitude?.number()?, longitude?.number()?).ok()
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built-in country database"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// Checks that [`Database::load`] leaves out for the built-in database.
#[cfg(test)]
pub(crate) fn verify_built_in() {
    Database::load(&Source::BuiltIn).and_then(|database| database.verify()).unwrap();
}

/// IPtoASN, PDDL: see `geo/data/README.md`.
static BUILT_IN: &[u8] = include_bytes!("../data/iptoasn-country.mmdb");

/// A database may begin with special networks that say little.
const RECORDS_LOOKED_AT: usize = 1000;

/// One of these in a record means the nested schema.
const GEOIP2_MARKS: &[&[&str]] = &[
    &["country", "iso_code"],
    &["registered_country", "iso_code"],
    &["continent", "code"],
    &["location", "latitude"],
    &["traits", "autonomous_system_number"],
];

/// One of these in a record means the flat schema.
const FLAT_MARKS: &[&str] = &["country_code", "autonomous_system_number", "asn"];
