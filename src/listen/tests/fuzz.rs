//! Fuzz target: the PROXY protocol header.

use std::net::SocketAddr;

use super::proxy::{self, Parsed};

pub(crate) use super::h1::fuzz::{h1_chunks, h1_head};
pub(crate) use super::h2::fuzz::{h2_frames, hpack};

/// More bytes do not change a verdict, a header is within its limit, and its addresses survive being written as
/// a header of version 1.
pub(crate) fn proxy_header(data: &[u8]) {
    let whole = proxy::parse(data);
    for cut in 0..data.len() {
        match proxy::parse(&data[..cut]) {
            Parsed::Incomplete => {}
            early => assert_eq!(early, whole, "cut at {cut}"),
        }
    }
    match whole {
        Parsed::Incomplete => assert!(data.len() < proxy::BYTES_MAX),
        Parsed::Invalid => {}
        Parsed::Header { addresses, bytes } => {
            assert!(bytes <= proxy::BYTES_MAX && bytes <= data.len());
            let Some((client, destination)) = addresses else { return };
            let written = written_header(client, destination);
            let expected = Parsed::Header { addresses, bytes: written.len() };
            assert_eq!(proxy::parse(written.as_bytes()), expected);
            // The line of version 1 has one spelling but for the addresses'.
            if data.starts_with(b"PROXY ") && client.is_ipv4() && destination.is_ipv4() {
                assert!(data.starts_with(written.as_bytes()));
            }
        }
    }
}

fn written_header(client: SocketAddr, destination: SocketAddr) -> String {
    let family = if client.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (client.ip(), destination.ip());
    format!("PROXY {family} {from} {to} {} {}\r\n", client.port(), destination.port())
}
