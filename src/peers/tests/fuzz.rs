//! Fuzz target: the field of the peer protocol.

use http::HeaderValue;

use super::{Hop, HopVerdict, verdict_field};

/// A `Skerry-Hop` that is accepted is written and read as the same, in a request and in a response.
pub(crate) fn peer_hop(data: &[u8]) {
    let Ok(field) = HeaderValue::from_bytes(data) else { return };
    if let Ok(hop) = Hop::parse(&field) {
        let written = hop.to_field().expect("its names are printable ASCII");
        assert_eq!(Hop::parse(&written), Ok(hop));
    }
    if let Some(verdict) = HopVerdict::parse(&field) {
        assert_eq!(HopVerdict::parse(&verdict_field(verdict)), Some(verdict));
    }
}
