//! The request fields that the gate watches. For most other fields one bit test is enough.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use http::HeaderName;

use crate::peers::is_peer_field;

/// The treatment of a watched field by the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watch {
    /// States the authority.
    Host,
    /// Names further fields to remove.
    Connection,
    /// Frames the content.
    TransferEncoding,
    /// Frames the content.
    ContentLength,
    /// Removed; its value is kept if `Connection` has `upgrade`.
    Upgrade,
    /// Removed; whether it has `trailers` is kept.
    Te,
    /// Removed: hop-by-hop, dangerous, or of the peer protocol.
    Drop,
    /// Removed unless a trusted proxy sent it.
    Forwarding,
    /// Checked for loops, and forwarded.
    CdnLoop,
    /// Met or refused.
    Expect,
}

/// The watched names, with a bit set of their hashes as a filter.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    bits: [u64; BITS / 64],
    names: HashMap<Box<str>, Watch, RandomState>,
}

impl Watched {
    pub(super) fn new(strip: &[HeaderName]) -> Self {
        let mut watched = Self { bits: [0; BITS / 64], names: HashMap::default() };
        for name in strip {
            watched.add(name.as_str(), Watch::Drop);
        }
        for (name, watch) in ALWAYS {
            watched.add(name, *watch);
        }
        watched
    }

    fn add(&mut self, name: &str, watch: Watch) {
        let bit = hash(name);
        self.bits[bit / 64] |= 1 << (bit % 64);
        self.names.insert(name.into(), watch);
    }

    /// The treatment of the field `name`. `None` if it is not watched.
    pub(super) fn look(&self, name: &HeaderName) -> Option<Watch> {
        if *name == http::header::HOST {
            return Some(Watch::Host);
        }
        if is_peer_field(name) {
            return Some(Watch::Drop);
        }
        let name = name.as_str();
        let bit = hash(name);
        if self.bits[bit / 64] & 1 << (bit % 64) == 0 {
            return None;
        }
        if let Some(watch) = self.names.get(name) {
            return Some(*watch);
        }
        // CGI, WSGI and PHP do not distinguish `X_Forwarded_For` from `X-Forwarded-For`.
        let is_disguise = name.contains('_') && self.names.contains_key(&*name.replace('_', "-"));
        is_disguise.then_some(Watch::Drop)
    }
}

/// A cheap hash of length, first, middle and last byte. `_` counts as `-`.
fn hash(name: &str) -> usize {
    let bytes = name.as_bytes();
    let [first, .., last] = bytes else { return 0 };
    let at = |byte: u8| usize::from(if byte == b'_' { b'-' } else { byte });
    let middle = at(bytes[bytes.len() / 2]);
    (bytes.len() * 67 + at(*first) * 31 + middle * 7 + at(*last) * 129) % BITS
}

const BITS: usize = 1024;

const ALWAYS: &[(&str, Watch)] = &[
    ("cdn-loop", Watch::CdnLoop),
    ("connection", Watch::Connection),
    ("content-length", Watch::ContentLength),
    ("expect", Watch::Expect),
    ("forwarded", Watch::Forwarding),
    ("host", Watch::Host),
    ("http2-settings", Watch::Drop),
    ("keep-alive", Watch::Drop),
    ("proxy-authenticate", Watch::Drop),
    ("proxy-authorization", Watch::Drop),
    ("proxy-connection", Watch::Drop),
    // The key of a debug request must not leave the node.
    ("skerry-debug", Watch::Drop),
    ("te", Watch::Te),
    // Request trailers end at the listener.
    ("trailer", Watch::Drop),
    ("transfer-encoding", Watch::TransferEncoding),
    ("upgrade", Watch::Upgrade),
    // Set by this node.
    ("x-client-country", Watch::Drop),
    ("x-forwarded-for", Watch::Forwarding),
    ("x-forwarded-host", Watch::Forwarding),
    ("x-forwarded-proto", Watch::Forwarding),
    ("x-request-id", Watch::Drop),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_fields_need_one_bit_test() {
        let watched = Watched::new(&super::super::Settings::default().strip_fields);
        for name in [
            "accept",
            "accept-encoding",
            "accept-language",
            "cache-control",
            "cookie",
            "dnt",
            "if-modified-since",
            "if-none-match",
            "origin",
            "pragma",
            "range",
            "referer",
            "sec-fetch-dest",
            "sec-fetch-mode",
            "sec-fetch-site",
            "sec-ch-ua",
            "user-agent",
        ] {
            let bit = hash(name);
            assert_eq!(watched.bits[bit / 64] & 1 << (bit % 64), 0, "{name} needs the slow lookup");
        }
    }

    #[test]
    fn a_field_in_disguise_is_dropped() {
        let watched = Watched::new(&[]);
        let look = |name: &str| watched.look(&name.parse().unwrap());
        assert_eq!(look("x_forwarded_for"), Some(Watch::Drop));
        assert_eq!(look("transfer_encoding"), Some(Watch::Drop));
        assert_eq!(look("x-forwarded-for"), Some(Watch::Forwarding));
        assert_eq!(look("my_field"), None);
        // Peers say in such fields on whose behalf they ask: no one else may.
        assert_eq!(look("skerry-hop"), Some(Watch::Drop));
        assert_eq!(look("skerry_purges"), Some(Watch::Drop));
        assert_eq!(look("skerry"), None);
    }
}
