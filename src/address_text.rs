//! IP addresses as text, for log lines and the fields of requests.

use std::io::Write;
use std::net::IpAddr;

/// Appends an address as text. IPv4 is formatted by hand because `Display` costs as much as the rest
/// of a log line.
pub(crate) fn push_address(bytes: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            for (at, octet) in address.octets().into_iter().enumerate() {
                if at > 0 {
                    bytes.push(b'.');
                }
                bytes.extend_from_slice(itoa::Buffer::new().format(octet).as_bytes());
            }
        }
        // Writing to a Vec does not fail.
        IpAddr::V6(address) => drop(write!(bytes, "{address}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_they_are_shown() {
        for text in ["0.0.0.0", "192.0.2.1", "255.10.9.100", "::1", "2001:db8::1:0"] {
            let mut bytes = Vec::new();
            push_address(&mut bytes, text.parse().unwrap());
            assert_eq!(bytes, text.as_bytes());
        }
    }
}
