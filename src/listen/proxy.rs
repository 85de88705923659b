//! Parses the PROXY protocol header, versions 1 and 2, which a load balancer sends before the first byte of a
//! connection (haproxy.org, proxy-protocol.txt, 2020-03-05).
//!
//! A pure function of the bytes so far. Fields after the addresses (TLVs) are ignored.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str;

/// The result of parsing the first bytes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// The start of a header; more bytes are needed.
    Incomplete,
    /// A complete header.
    Header {
        /// The addresses of the client and the destination. `None`: the connection is the proxy's own (a
        /// health check), or not TCP over IP; the connection's addresses are valid.
        addresses: Option<(SocketAddr, SocketAddr)>,
        /// The length of the header.
        bytes: usize,
    },
    /// Not a header.
    Invalid,
}

/// Parses the header at the start of the bytes.
pub(super) fn parse(bytes: &[u8]) -> Parsed {
    if starts_alike(bytes, SIGNATURE_V2) {
        version_2(bytes)
    } else if starts_alike(bytes, b"PROXY ") {
        version_1(bytes)
    } else {
        Parsed::Invalid
    }
}

/// The longest header that is accepted. Version 1 allows 107 bytes; version 2 has 16 bits for the length, but
/// the header must fit in one read.
pub(super) const BYTES_MAX: usize = 1024;

fn version_1(bytes: &[u8]) -> Parsed {
    let window = &bytes[..bytes.len().min(V1_BYTES_MAX)];
    let Some(end) = memchr::memmem::find(window, b"\r\n") else {
        return if window.len() < V1_BYTES_MAX { Parsed::Incomplete } else { Parsed::Invalid };
    };
    let line = str::from_utf8(&bytes[..end]).unwrap_or_default();
    let fields: Vec<&str> = line.split(' ').collect();
    let addresses = match *fields {
        ["PROXY", "UNKNOWN", ..] => None,
        ["PROXY", family, source, destination, source_port, destination_port] => {
            let source = endpoint(family, source, source_port);
            let destination = endpoint(family, destination, destination_port);
            match source.zip(destination) {
                Some(addresses) => Some(addresses),
                None => return Parsed::Invalid,
            }
        }
        _ => return Parsed::Invalid,
    };
    Parsed::Header { addresses, bytes: end + 2 }
}

fn endpoint(family: &str, address: &str, port: &str) -> Option<SocketAddr> {
    let address = match family {
        "TCP4" => IpAddr::V4(address.parse().ok()?),
        "TCP6" => IpAddr::V6(address.parse().ok()?),
        _ => return None,
    };
    // Rust parses `+80` and `080`; the protocol does not allow them.
    let plain =
        port.bytes().all(|byte| byte.is_ascii_digit()) && (port == "0" || !port.starts_with('0'));
    Some(SocketAddr::new(address, plain.then(|| port.parse().ok())??))
}

/// ```text
/// signature (12) | version 2 and command (1) | family and protocol (1) | length (2) | addresses, TLVs
/// ```
fn version_2(bytes: &[u8]) -> Parsed {
    let Some(head) = bytes.first_chunk::<16>() else { return Parsed::Incomplete };
    let length = 16 + usize::from(u16::from_be_bytes([head[14], head[15]]));
    if length > BYTES_MAX {
        return Parsed::Invalid;
    }
    let Some(block) = bytes.get(16..length) else { return Parsed::Incomplete };
    let addresses = match (head[12], head[13]) {
        (0x20, _) => None,
        (0x21, 0x11) => match block.first_chunk::<12>() {
            Some(block) => Some(ipv4_pair(block)),
            None => return Parsed::Invalid,
        },
        (0x21, 0x21) => match block.first_chunk::<36>() {
            Some(block) => Some(ipv6_pair(block)),
            None => return Parsed::Invalid,
        },
        (0x21, _) => None,
        _ => return Parsed::Invalid,
    };
    Parsed::Header { addresses, bytes: length }
}

fn ipv4_pair(block: &[u8; 12]) -> (SocketAddr, SocketAddr) {
    let address = |at: usize| Ipv4Addr::new(block[at], block[at + 1], block[at + 2], block[at + 3]);
    let port = |at: usize| u16::from_be_bytes([block[at], block[at + 1]]);
    ((address(0), port(8)).into(), (address(4), port(10)).into())
}

fn ipv6_pair(block: &[u8; 36]) -> (SocketAddr, SocketAddr) {
    let address = |at: usize| {
        let bytes: [u8; 16] = block[at..at + 16].try_into().expect("sixteen bytes");
        Ipv6Addr::from(bytes)
    };
    let port = |at: usize| u16::from_be_bytes([block[at], block[at + 1]]);
    ((address(0), port(32)).into(), (address(16), port(34)).into())
}

/// Whether one of the two starts with the other.
fn starts_alike(bytes: &[u8], mark: &[u8]) -> bool {
    bytes.iter().zip(mark).all(|(one, other)| one == other)
}

const SIGNATURE_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const V1_BYTES_MAX: usize = 107;

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(bytes: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
        match parse(bytes) {
            Parsed::Header { addresses, .. } => addresses,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = (block.len() as u16).to_be_bytes();
        [SIGNATURE_V2, &[command, family], &length, block].concat()
    }

    #[test]
    fn version_1_gives_client_and_destination() {
        let line = b"PROXY TCP4 192.0.2.7 198.51.100.1 51234 443\r\nGET /";
        let (client, destination) = addresses(line).expect("addresses");
        assert_eq!(client.to_string(), "192.0.2.7:51234");
        assert_eq!(destination.to_string(), "198.51.100.1:443");
        assert!(matches!(parse(line), Parsed::Header { bytes: 45, .. }));
        let (client, _) = addresses(b"PROXY TCP6 2001:db8::7 ::1 1 2\r\n").expect("addresses");
        assert_eq!(client.to_string(), "[2001:db8::7]:1");
        assert_eq!(addresses(b"PROXY UNKNOWN whatever stands here\r\n"), None);
    }

    #[test]
    fn version_2_gives_client_and_destination_and_passes_over_tlvs() {
        let block = [192, 0, 2, 7, 198, 51, 100, 1, 0xc8, 0x22, 1, 0xbb, 4, 0, 1, 9];
        let bytes = v2(0x21, 0x11, &block);
        let (client, destination) = addresses(&bytes).expect("addresses");
        assert_eq!(client.to_string(), "192.0.2.7:51234");
        assert_eq!(destination.to_string(), "198.51.100.1:443");
        assert!(matches!(parse(&bytes), Parsed::Header { bytes: 32, .. }));
        let mut block = [0; 36];
        (block[15], block[33]) = (1, 80);
        let (client, _) = addresses(&v2(0x21, 0x21, &block)).expect("addresses");
        assert_eq!(client.to_string(), "[::1]:80");
    }

    #[test]
    fn a_health_check_of_the_proxy_has_no_addresses() {
        assert_eq!(addresses(&v2(0x20, 0, &[])), None);
        assert_eq!(addresses(&v2(0x21, 0x31, &[0; 216])), None);
    }

    #[test]
    fn other_bytes_are_invalid_and_half_a_header_is_incomplete() {
        let invalid: [&[u8]; 9] = [
            b"GET / HTTP/1.1\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 51234\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 051 443\r\n",
            b"PROXY TCP4 192.0.2.7 198.51.100.1 +51 443\r\n",
            b"PROXY TCP4 ::1 ::1 51 443\r\n",
            b"PROXY TCP5 ::1 ::1 51 443\r\n",
            &[b"PROXY UNKNOWN ".as_slice(), &[b'x'; 100]].concat(),
            &v2(0x11, 0x11, &[0; 12]),
            &v2(0x21, 0x11, &[0; 11]),
        ];
        for bytes in invalid {
            assert_eq!(parse(bytes), Parsed::Invalid, "{:?}", bytes.escape_ascii().to_string());
        }
        let whole = v2(0x21, 0x11, &[1; 12]);
        for cut in 0..whole.len() {
            assert_eq!(parse(&whole[..cut]), Parsed::Incomplete, "cut at {cut}");
        }
        assert_eq!(parse(b"PROXY TCP4 192.0.2.7 198"), Parsed::Incomplete);
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        for round in 0..20_000 {
            let mut bytes =
                if round % 2 == 0 { SIGNATURE_V2.to_vec() } else { b"PROXY TCP4 ".to_vec() };
            for _ in 0..round % 64 {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                bytes.push(seed as u8);
            }
            parse(&bytes);
        }
    }
}
