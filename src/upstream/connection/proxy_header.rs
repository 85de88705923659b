//! Writes the PROXY protocol header, versions 1 and 2, which tells an origin the address of the client before the
//! first byte of a connection (haproxy.org, proxy-protocol.txt, 2020-03-05).
//!
//! A pure function. The header is valid for its connection, so a connection with one serves the requests of one
//! client.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::super::settings::ProxyVersion;

/// The client of a request, as the header states it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProxiedClient {
    /// Its address. The port is 0 if it is not known.
    pub client: SocketAddr,
    /// The address at which the node received the request.
    pub destination: SocketAddr,
}

/// The header. Without a client, the connection is the node's own: UNKNOWN in version 1, LOCAL in version 2.
pub(in crate::upstream) fn header(
    version: ProxyVersion,
    proxied: Option<&ProxiedClient>,
) -> Vec<u8> {
    let addresses = proxied.map(ProxiedClient::of_one_family);
    match version {
        ProxyVersion::V1 => version_1(addresses),
        ProxyVersion::V2 => version_2(addresses),
    }
}

impl ProxiedClient {
    /// Both addresses as IPv4, or else both as IPv6: the header has one family.
    fn of_one_family(&self) -> (SocketAddr, SocketAddr) {
        let [client, destination] = [self.client, self.destination]
            .map(|address| SocketAddr::new(address.ip().to_canonical(), address.port()));
        match (client.ip(), destination.ip()) {
            (IpAddr::V4(_), IpAddr::V4(_)) => (client, destination),
            _ => (as_ipv6(client), as_ipv6(destination)),
        }
    }
}

fn as_ipv6(address: SocketAddr) -> SocketAddr {
    let ip: Ipv6Addr = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    SocketAddr::new(ip.into(), address.port())
}

fn version_1(addresses: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    let Some((client, destination)) = addresses else { return b"PROXY UNKNOWN\r\n".to_vec() };
    let family = if client.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (client.ip(), destination.ip());
    format!("PROXY {family} {from} {to} {} {}\r\n", client.port(), destination.port()).into_bytes()
}

/// ```text
/// signature (12) | version 2 and command (1) | family and protocol (1) | length (2) | addresses, ports
/// ```
fn version_2(addresses: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    let mut header = SIGNATURE_V2.to_vec();
    let Some((client, destination)) = addresses else {
        header.extend_from_slice(&[LOCAL, UNSPECIFIED, 0, 0]);
        return header;
    };
    let (family, length) = if client.is_ipv4() { (TCP_IPV4, 12) } else { (TCP_IPV6, 36) };
    header.extend_from_slice(&[PROXY, family, 0, length]);
    for address in [client, destination] {
        match address.ip() {
            IpAddr::V4(ip) => header.extend_from_slice(&ip.octets()),
            IpAddr::V6(ip) => header.extend_from_slice(&ip.octets()),
        }
    }
    for address in [client, destination] {
        header.extend_from_slice(&address.port().to_be_bytes());
    }
    header
}

const SIGNATURE_V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2 with a command.
const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
/// Family and protocol.
const UNSPECIFIED: u8 = 0x00;
const TCP_IPV4: u8 = 0x11;
const TCP_IPV6: u8 = 0x21;

#[cfg(test)]
mod tests {
    use super::*;

    fn proxied(client: &str, destination: &str) -> ProxiedClient {
        let parse = |text: &str| text.parse().expect("an address and a port");
        ProxiedClient { client: parse(client), destination: parse(destination) }
    }

    #[test]
    fn version_1_is_a_line_of_one_family() {
        let check = |client, destination, expected: &str| {
            let header = header(ProxyVersion::V1, Some(&proxied(client, destination)));
            assert_eq!(String::from_utf8_lossy(&header), expected);
        };
        check("192.0.2.7:5", "198.51.100.1:443", "PROXY TCP4 192.0.2.7 198.51.100.1 5 443\r\n");
        check(
            "[::ffff:192.0.2.7]:5",
            "198.51.100.1:443",
            "PROXY TCP4 192.0.2.7 198.51.100.1 5 443\r\n",
        );
        check("[2001:db8::7]:0", "[::1]:80", "PROXY TCP6 2001:db8::7 ::1 0 80\r\n");
        check(
            "[2001:db8::7]:1",
            "127.0.0.1:80",
            "PROXY TCP6 2001:db8::7 ::ffff:127.0.0.1 1 80\r\n",
        );
        assert_eq!(header(ProxyVersion::V1, None), b"PROXY UNKNOWN\r\n");
    }

    #[test]
    fn version_2_has_the_addresses_and_then_the_ports() {
        let of =
            |client, destination| header(ProxyVersion::V2, Some(&proxied(client, destination)));
        let four = of("192.0.2.7:258", "198.51.100.1:443");
        let expected = [192, 0, 2, 7, 198, 51, 100, 1, 1, 2, 1, 187];
        assert_eq!(four, [SIGNATURE_V2, &[0x21, 0x11, 0, 12], &expected].concat());
        let six = of("[2001:db8::7]:258", "192.0.2.1:443");
        assert_eq!((&six[12..16], six.len()), (&[0x21, 0x21, 0, 36][..], 16 + 36));
        assert_eq!(six[16..20], [0x20, 0x01, 0x0d, 0xb8]);
        assert_eq!(six[42..], [0xff, 0xff, 192, 0, 2, 1, 1, 2, 1, 187]);
        let own = header(ProxyVersion::V2, None);
        assert_eq!(own, [SIGNATURE_V2, &[0x20, 0, 0, 0]].concat());
    }
}
