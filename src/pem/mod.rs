//! Reads certificates and private keys from PEM files, and tells how long a certificate is valid.
//!
//! The listeners and the peer link read their files here, so that both explain a wrong file in the same words.

mod validity;

use std::fs;
use std::path::Path;

use rustls::pki_types::pem::PemObject;
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
    Err(match PrivateKeyDer::from_pem_slice(&text) {
        Ok(_) => {
            "the file has a private key, not a certificate: are \"certificate\" and \"key\" swapped?"
        }
        Err(_) => "the file has no certificate",
    }
    .to_owned())
}

/// Reads the first private key of a file: PKCS#8, PKCS#1 or SEC1, not encrypted.
///
/// # Errors
/// Why the file cannot be used, without its name.
pub(crate) fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let text = read(path)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
        match String::from_utf8_lossy(&text).contains("ENCRYPTED") {
            true => {
                "the private key is encrypted: decrypt it with openssl pkey -in KEY -out PLAIN-KEY"
                    .to_owned()
            }
            false => format!("no private key: {error}"),
        }
    })
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| error.to_string())
}
