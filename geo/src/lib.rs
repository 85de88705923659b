//! Where an address is, and which of several points is nearest to it.
//!
//! [`Geo`] answers from mmdb databases ([`Geo::locate`]); a country database is built in, so it
//! answers without any configuration. [`nearest()`] is pure arithmetic over [`Coordinates`]. What
//! is done with a place (rules, origins, headers, the log) is left to the callers.

mod cache;
mod countries;
mod country;
mod database;
#[cfg(any(test, fuzzing))]
#[path = "tests/fuzz.rs"]
pub mod fuzz;
mod locate;
mod nearest;
mod place;
pub mod write;

pub use country::{Continent, Country, UnknownContinent, UnknownCountry};
pub use database::{LoadError, Schema, Source};
pub use locate::{DATABASES_MAX, Facts, Geo, Settings};
pub use nearest::{Coordinates, OutOfRange, UnitVector, by_distance, nearest};
pub use place::{Details, Place};
