//! The peers of this node: the other nodes of the fleet that it asks, and that ask it, over HTTP/2 and mutual
//! TLS.
//!
//! A peer is identified by its certificate, which the authority of the fleet has signed and which carries the
//! name of the node. This room has the settings, the certificates, and the text of what two nodes tell each
//! other besides an ordinary HTTP request and its response. `listen` accepts peers, `guard` believes their fields
//! or removes them, `serve` asks and answers.

mod authority; // makes certificates for people without a PKI
mod caller; // calls to a peer besides the requests of clients
mod hop; // the field Skerry-Hop
mod identity; // the names of a peer, and the admission of its requests
mod settings;
mod tls;

pub use self::authority::{CertificateOrder, IssuedCertificates, issue_certificates};
pub(crate) use self::caller::{NODE, PeerCaller};
pub(crate) use self::hop::{
    HOP, HOPS_MAX, Hop, HopVerdict, PROTOCOL, PURGES, is_peer_field, verdict_field,
};
pub(crate) use self::identity::{PeerNames, PeerRequest};
pub(crate) use self::settings::{AskSettings, PeerLimits, Settings, can_identify, is_reachable};
pub(crate) use self::tls::{PeerFileError, PeerTls, check_files};

/// Calls of peers have paths that begin so; a client's request on the peer listener cannot have one.
pub(crate) const CALLS: &str = "/.well-known/skerry/";
/// The call that asks a node for its announcement.
pub(crate) const ANNOUNCEMENT_CALL: &str = "/.well-known/skerry/announcement";
/// The call that brings a node purges.
pub(crate) const PURGES_CALL: &str = "/.well-known/skerry/purges";

#[cfg(any(test, fuzzing))]
#[path = "tests/fuzz.rs"]
pub(crate) mod fuzz;
