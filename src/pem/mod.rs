//! Reads certificates and private keys from PEM files, and tells how long a certificate is valid.
//!
//! The listeners and the peer link read their files here, so that both explain a wrong file in the same words.

mod validity;

use std::fs;
use std::path::Path;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

pub(crate) use validity::validity;

/// Reads the certificates of a file, in its order; at least one.
///
/// # Errors
/// Why the file cannot be used, without its name.
pub(crate) fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read(path)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    if !chain.is_empty() {
        return Ok(chain);
    }
    Err(fault(&text, Expected::Certificate))
}

/// Reads the first private key of a file: PKCS#8, PKCS#1 or SEC1, not encrypted.
///
/// # Errors
/// Why the file cannot be used, without its name.
pub(crate) fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let text = read(path)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        pem::Error::NoItemsFound => fault(&text, Expected::Key),
        error => format!("no private key: {error}"),
    })
}

/// The kind of item that a file must have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expected {
    Certificate,
    Key,
}

/// Why a file has no item of this kind, and how to get one.
fn fault(bytes: &[u8], expected: Expected) -> String {
    let (noun, none, command) = match expected {
        Expected::Certificate => ("certificate", "the file has no certificate", "x509"),
        Expected::Key => ("private key", "no private key", "pkey"),
    };
    let text = String::from_utf8_lossy(bytes);
    let mut labels = text.lines().filter_map(|line| line.trim().strip_prefix("-----BEGIN "));
    let label = labels.next().map(|rest| rest.trim_end_matches('-'));
    match label {
        Some("CERTIFICATE") => "the file has a certificate, not a private key: are \"certificate\" and \"key\" swapped?".to_owned(),
        Some("CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST") => {
            format!("the file has a request for a certificate, not a {noun}: name the file that the authority made of it")
        }
        Some(_) if text.contains("ENCRYPTED") && expected == Expected::Key => {
            "the private key is encrypted: decrypt it with openssl pkey -in KEY -out PLAIN-KEY".to_owned()
        }
        Some(label) if label.ends_with("PRIVATE KEY") && expected == Expected::Certificate => {
            "the file has a private key, not a certificate: are \"certificate\" and \"key\" swapped?".to_owned()
        }
        Some(label) => format!("{none}: expected a {noun} in PEM, found {label:?}"),
        None if bytes.is_empty() => format!("{none}: the file is empty"),
        None if bytes.starts_with(GZIP) => format!("{none}: the file is compressed with gzip: decompress it with gunzip FILE"),
        None if is_pkcs12(bytes) => {
            format!("{none}: the file is PKCS#12, and PEM is expected: convert it with openssl pkcs12 -in FILE -nodes -out PEM-FILE")
        }
        None if bytes.starts_with(&[SEQUENCE]) => {
            format!("{none}: the file is DER, and PEM is expected: convert it with openssl {command} -inform DER -in FILE -out PEM-FILE")
        }
        None => format!("{none}: the file is not PEM, which has a line such as -----BEGIN {}-----", noun.to_uppercase()),
    }
}

/// PKCS#12 (RFC 7292 §4) begins with version 3 in a sequence of at least 256 bytes.
fn is_pkcs12(bytes: &[u8]) -> bool {
    bytes.len() > 6 && bytes[..2] == [SEQUENCE, 0x82] && bytes[4..7] == [0x02, 0x01, 0x03]
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| error.to_string())
}

/// The first bytes of a file that gzip compressed (RFC 1952 §2.3.1).
const GZIP: &[u8] = &[0x1f, 0x8b];
/// The tag of a sequence in DER, with which certificates and keys begin.
const SEQUENCE: u8 = 0x30;
