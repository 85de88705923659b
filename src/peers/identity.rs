//! The identity of a peer: the names in its certificate, and the claims that they permit.

use std::sync::Arc;

use http::Method;
use rustls::pki_types::CertificateDer;

use super::hop::{Hop, HopMistake};
use crate::labels::PeerRefusal;

/// The DNS names in the certificate of a peer, which the authority of the fleet has signed. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PeerNames(Arc<[Box<str>]>);

impl PeerNames {
    /// The names in the certificate of a connection. `None`: there is no certificate, or it has no DNS name.
    pub(crate) fn of(chain: Option<&[CertificateDer<'_>]>) -> Option<Self> {
        let certificate = webpki::EndEntityCert::try_from(chain?.first()?).ok()?;
        let names: Arc<[Box<str>]> = certificate.valid_dns_names().map(Box::from).collect();
        (!names.is_empty()).then_some(Self(names))
    }

    /// Whether the certificate is that of the node with this name. Case does not matter, as in DNS. A wildcard
    /// names no node.
    pub(crate) fn contain(&self, node: &str) -> bool {
        self.0.iter().any(|name| name.eq_ignore_ascii_case(node))
    }
}

impl std::fmt::Display for PeerNames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

/// A request of a peer, as far as it must be believed before anything else is read of it.
pub(crate) struct PeerRequest<'a> {
    /// The names in the certificate of its connection.
    pub names: &'a PeerNames,
    /// Its method.
    pub method: &'a Method,
    /// Its field `Skerry-Hop`. `None`: it has none, or several.
    pub hop: Option<Result<Hop, HopMistake>>,
}

impl PeerRequest<'_> {
    /// The hop of a request that may be answered. `is_member`: whether the fleet has a node with this name.
    ///
    /// # Errors
    /// The first reason to refuse it.
    pub(crate) fn admit(self, is_member: impl Fn(&str) -> bool) -> Result<Hop, PeerRefusal> {
        let hop = self.hop.and_then(Result::ok).ok_or(PeerRefusal::Field)?;
        if !self.names.contain(&hop.from) {
            return Err(PeerRefusal::Name);
        }
        if !is_member(&hop.from) {
            return Err(PeerRefusal::Member);
        }
        // A peer asks for responses. It changes nothing here, and opens no tunnels.
        match *self.method {
            Method::GET | Method::HEAD => Ok(hop),
            _ => Err(PeerRefusal::Method),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::hop::PROTOCOL;
    use super::*;

    fn names(names: &[&str]) -> PeerNames {
        PeerNames(names.iter().map(|name| Box::from(*name)).collect())
    }

    fn hop(from: &str) -> Hop {
        Hop {
            version: PROTOCOL,
            from: from.into(),
            digest: "0a".into(),
            hops: 1,
            client: "192.0.2.1".parse().unwrap(),
            id: 1,
            key: 2,
            group: None,
            codings: None,
            is_for_shield: false,
        }
    }

    #[test]
    fn a_peer_speaks_only_in_its_own_name_and_asks_only_for_responses() {
        let check = |certificate: &[&str], hop, method: &Method, expected| {
            let request = PeerRequest { names: &names(certificate), method, hop };
            let found = request.admit(|name| name != "gone").map(|hop| hop.from.to_string());
            assert_eq!(found, expected, "{certificate:?}");
        };
        let says = |from: &str| Some(Ok(hop(from)));
        let get = &Method::GET;
        check(&["edge-1"], says("edge-1"), get, Ok("edge-1".to_owned()));
        check(&["edge-1"], says("edge-1"), &Method::HEAD, Ok("edge-1".to_owned()));
        check(&["10-0-0-1.internal", "EDGE-1"], says("edge-1"), get, Ok("edge-1".to_owned()));
        check(&["edge-1"], says("edge-2"), get, Err(PeerRefusal::Name));
        check(&["*.edge"], says("a.edge"), get, Err(PeerRefusal::Name));
        check(&["gone"], says("gone"), get, Err(PeerRefusal::Member));
        check(&["edge-1"], None, get, Err(PeerRefusal::Field));
        check(&["edge-1"], Some(Err(HopMistake::Malformed)), get, Err(PeerRefusal::Field));
        for method in ["POST", "PUT", "DELETE", "PURGE", "CONNECT", "TRACE", "OPTIONS"] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            check(&["edge-1"], says("edge-1"), &method, Err(PeerRefusal::Method));
        }
    }
}
