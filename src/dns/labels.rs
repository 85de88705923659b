//! The closed lists of the room: response codes and query types, as in metrics.

use crate::metrics::{DNS_RCODES, DNS_TYPES};

/// A response code (RFC 1035 §4.1.1, RFC 6891 §9, RFC 7873 §8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rcode {
    /// Also for a name that exists and has no record of the type.
    NoError,
    /// The query cannot be parsed.
    FormatError,
    /// The response does not fit the largest message.
    ServerFailure,
    /// The name does not exist.
    NameError,
    /// An opcode other than QUERY.
    NotImplemented,
    /// A name outside the zones, a zone transfer, or a class other than IN.
    Refused,
    /// An EDNS version other than 0.
    BadVersion,
}

impl Rcode {
    /// The words in metrics, in the order of the variants.
    pub(crate) const WORDS: &[&str] = DNS_RCODES;

    /// The number, of which the header has the lower four bits and the OPT record the others.
    pub(super) fn code(self) -> u16 {
        match self {
            Self::NoError => 0,
            Self::FormatError => 1,
            Self::ServerFailure => 2,
            Self::NameError => 3,
            Self::NotImplemented => 4,
            Self::Refused => 5,
            Self::BadVersion => 16,
        }
    }
}

/// The type of a query, as far as metrics tell types apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueryType(pub u16);

impl QueryType {
    /// The words in metrics.
    pub(crate) const WORDS: &[&str] = DNS_TYPES;

    /// The index in [`Self::WORDS`].
    pub(crate) fn index(self) -> usize {
        let position = NUMBERS.iter().position(|number| *number == self.0);
        position.unwrap_or(Self::WORDS.len() - 1)
    }
}

/// The numbers of [`QueryType::WORDS`] without the last.
const NUMBERS: &[u16] = &[A, AAAA, HTTPS, CNAME, NS, SOA, TXT, 15, 257, 64, 33, 12, DS, ANY];

/// Numbers of record types (RFC 1035 §3.2.2 and later).
pub(super) const A: u16 = 1;
/// See [`A`].
pub(super) const NS: u16 = 2;
/// See [`A`].
pub(super) const CNAME: u16 = 5;
/// See [`A`].
pub(super) const SOA: u16 = 6;
/// See [`A`].
pub(super) const HINFO: u16 = 13;
/// See [`A`].
pub(super) const TXT: u16 = 16;
/// See [`A`].
pub(super) const AAAA: u16 = 28;
/// See [`A`].
pub(super) const DS: u16 = 43;
/// See [`A`].
pub(super) const HTTPS: u16 = 65;
/// See [`A`]. Zone transfers (RFC 5936, RFC 1995).
pub(super) const IXFR: u16 = 251;
/// See [`A`].
pub(super) const AXFR: u16 = 252;
/// See [`A`].
pub(super) const ANY: u16 = 255;
/// The class IN.
pub(super) const IN: u16 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_has_its_number() {
        assert_eq!(NUMBERS.len() + 1, QueryType::WORDS.len());
        assert_eq!(QueryType::WORDS[QueryType(65).index()], "HTTPS");
        assert_eq!(QueryType::WORDS[QueryType(9999).index()], "other");
        assert_eq!(Rcode::WORDS[Rcode::BadVersion as usize], "badvers");
    }
}
