//! The peers of this node: the other nodes of the fleet that it asks, and that ask it, over HTTP/2 and mutual
//! TLS.
//!
//! A peer is identified by its certificate, which the authority of the fleet has signed and which carries the
//! name of the node. This room has the settings, the certificates, and the text of what two nodes tell each
//! other besides an ordinary HTTP request and its response. It has no sockets: `listen` accepts peers, `guard`
//! believes their fields or removes them, `serve` asks and answers.

mod authority; // makes certificates for people without a PKI
#[allow(dead_code, reason = "serve uses the rest of it from its own commits on")]
mod hop; // the field Skerry-Hop
mod identity; // the names of a peer, and the admission of its requests
mod settings;
mod tls;

pub use self::authority::{CertificateOrder, IssuedCertificates, issue_certificates};
#[allow(unused_imports, reason = "serve uses all of them from its own commits on")]
pub(crate) use self::hop::{
    HOP, HOPS_MAX, Hop, HopMistake, HopVerdict, PROTOCOL, is_peer_field, verdict_field,
};
pub(crate) use self::identity::{PeerNames, PeerRequest};
pub(crate) use self::settings::{PeerLimits, Settings, can_identify};
pub(crate) use self::tls::{PeerFileError, PeerTls, check_files};

#[cfg(any(test, fuzzing))]
#[path = "tests/fuzz.rs"]
pub(crate) mod fuzz;
