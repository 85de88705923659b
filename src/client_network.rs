//! The network that counts as one client. A host changes its IPv6 address within its /64 (RFC 8981).

use std::net::IpAddr;

/// A client's IPv4 address, or the /64 network of its IPv6 address. An IPv4-mapped address counts as IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ClientNetwork {
    /// The address.
    V4([u8; 4]),
    /// The first 64 bits of the address.
    V6([u8; 8]),
}

impl ClientNetwork {
    /// The network of the client at `address`.
    pub(crate) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.octets()),
            IpAddr::V6(address) => Self::V6(((address.to_bits() >> 64) as u64).to_be_bytes()),
        }
    }

    /// The bytes in network order: four for IPv4, eight for IPv6.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::V4(bytes) => bytes,
            Self::V6(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_an_ipv4_address_or_a_64_of_ipv6() {
        let network = |address: &str| ClientNetwork::of(address.parse().expect("an address"));
        assert_eq!(network("192.0.2.1"), network("::ffff:192.0.2.1"));
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:ffff:ffff:ffff"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("192.0.2.1").bytes(), [192, 0, 2, 1]);
        assert_eq!(network("2001:db8::1").bytes(), [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0]);
    }
}
