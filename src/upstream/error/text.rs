//! Parts of the messages of errors, with the remedy where the cause is known.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustls::CertificateError;

/// Why the request did not wait for an origin, or not longer.
pub(super) fn queue_fault(length: usize, waited: &Option<Duration>) -> String {
    match waited {
        Some(waited) => format!("and none was free within {waited:?} (queue.wait_max)"),
        None if length == 0 => "and no request may wait (queue.length is 0)".to_owned(),
        None => "and the queue is full (queue.length)".to_owned(),
    }
}

/// An origin with its address, unless it is configured by address.
pub(super) fn place(origin: &str, address: &Option<SocketAddr>) -> String {
    match address.map(|address| address.to_string()) {
        Some(address) if *origin != address => format!("{origin} at {address}"),
        _ => origin.to_owned(),
    }
}

/// The remedy for a Unix socket that does not accept connections; empty for TCP.
pub(super) fn socket_remedy(address: &Option<SocketAddr>, source: &io::Error) -> &'static str {
    match (address, source.kind()) {
        (None, io::ErrorKind::NotFound) => {
            "; start the application that makes the socket, or correct the path"
        }
        (None, io::ErrorKind::PermissionDenied) => {
            "; give the node's user write permission for the socket, and search permission for its directories"
        }
        (None, io::ErrorKind::ConnectionRefused) => {
            "; no application listens on the socket: start it"
        }
        _ => "",
    }
}

/// The fault of a certificate, and its remedy.
pub(super) fn certificate_fault(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "is signed by an unknown CA: add the CA to tls.ca_files of the pool".into()
        }
        rustls::Error::InvalidCertificate(CertificateError::NotValidForNameContext {
            expected,
            ..
        }) => {
            let name = expected.to_str();
            format!(
                "is not valid for {name}: set tls.server_name of the pool to a name that it has"
            )
        }
        rustls::Error::InvalidCertificate(CertificateError::Other(reason))
            if format!("{reason:?}").contains("CaUsedAsEndEntity") =>
        {
            "is a CA certificate (basicConstraints CA:TRUE): issue a server certificate with CA:FALSE"
                .into()
        }
        error => format!("is not valid: {error}"),
    }
}

/// Why a handshake failed, in words that name the likely mistake.
pub(super) fn handshake_fault(error: &io::Error) -> String {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the origin closed the connection; does this port use TLS?".into()
        }
        Some(rustls::Error::InvalidMessage(_)) => {
            "the origin did not answer in TLS; does this port use TLS?".into()
        }
        _ => error.to_string(),
    }
}
