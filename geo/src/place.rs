//! The place of an address, as far as it is known.

use std::sync::Arc;

use crate::{Continent, Coordinates, Country, UnitVector};

/// Where an address is, as far as the databases know. The default knows nothing. Sixteen bytes;
/// a clone counts one reference up at most.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Place {
    /// The country.
    pub country: Option<Country>,
    /// The continent: what a database says, else the country's.
    pub continent: Option<Continent>,
    /// The facts that a country database does not have. Shared by all addresses of one record.
    pub details: Option<Arc<Details>>,
}

/// The facts of city and ASN databases beyond the country.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    /// The first subdivision's English name, such as `Bavaria`.
    pub region: Option<Box<str>>,
    /// The first subdivision's code within its country (ISO 3166-2), such as `BY`.
    pub region_code: Option<Box<str>>,
    /// The city's English name.
    pub city: Option<Box<str>>,
    /// A point near the address.
    pub coordinates: Option<Coordinates>,
    /// `coordinates` as a vector, computed once for all addresses of the record; a database's own
    /// record has none yet.
    pub(crate) unit_vector: Option<UnitVector>,
    /// The number of the autonomous system that announces the address.
    pub asn: Option<u32>,
    /// The name that the autonomous system is registered under.
    pub organization: Option<Box<str>>,
}

impl Place {
    /// A place of which only the country is known, and so the continent.
    pub fn in_country(country: Country) -> Self {
        Self { country: Some(country), continent: Some(country.continent()), details: None }
    }

    /// The first subdivision's English name.
    pub fn region(&self) -> Option<&str> {
        self.details.as_ref()?.region.as_deref()
    }

    /// The city's English name.
    pub fn city(&self) -> Option<&str> {
        self.details.as_ref()?.city.as_deref()
    }

    /// The autonomous system's number.
    pub fn asn(&self) -> Option<u32> {
        self.details.as_ref()?.asn
    }

    /// The point to measure from: the address's own, else the country's, else the continent's.
    pub fn point(&self) -> Option<Coordinates> {
        self.details
            .as_ref()
            .and_then(|details| details.coordinates)
            .or_else(|| self.country.map(Country::point))
            .or_else(|| self.continent.map(Continent::point))
    }

    /// [`Place::point`] as a vector. Looked up, not computed, unless only the continent is known.
    pub fn unit_vector(&self) -> Option<UnitVector> {
        self.details
            .as_ref()
            .and_then(|details| details.unit_vector)
            .or_else(|| self.country.map(Country::unit_vector))
            .or_else(|| self.continent.map(|continent| continent.point().into()))
    }

    /// Takes from `other` what is not known yet.
    pub(crate) fn complete_from(&mut self, other: Record) {
        self.country = self.country.or(other.country);
        self.continent = self.continent.or(other.continent);
        if other.details == Details::default() {
            return;
        }
        let details = Arc::make_mut(self.details.get_or_insert_default());
        // A city and its coordinates belong together: both from the database that has the city.
        if details.city.is_none() && details.coordinates.is_none() {
            details.city = other.details.city;
            details.coordinates = other.details.coordinates;
            details.unit_vector = details.coordinates.map(UnitVector::from);
        }
        if details.region.is_none() && details.region_code.is_none() {
            details.region = other.details.region;
            details.region_code = other.details.region_code;
        }
        if details.asn.is_none() {
            details.asn = other.details.asn;
            details.organization = other.details.organization;
        }
    }
}

/// The facts that one database has of an address.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Record {
    pub country: Option<Country>,
    pub continent: Option<Continent>,
    pub details: Details,
}
