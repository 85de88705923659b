//! A certificate out of nothing, for the demo and for listeners that were given none.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::TlsError;
use super::certificates::file_error;
use crate::listen::settings::CertificateFiles;

/// A certificate and its key, PEM.
pub struct PemPair {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: String,
}

impl std::fmt::Debug for PemPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PemPair").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// A self-signed ECDSA P-256 certificate for host names and addresses.
pub fn self_signed(names: &[&str]) -> Result<PemPair, TlsError> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names)
        .map_err(|error| TlsError::SelfSigned(error.to_string()))?;
    Ok(PemPair { certificate: made.cert.pem(), key: made.signing_key.serialize_pem() })
}

/// The files of the self-signed certificate in `folder`; makes them when they are not there,
/// so that a browser's exception holds over restarts.
pub fn self_signed_in(folder: &Path, names: &[&str]) -> Result<CertificateFiles, TlsError> {
    let certificate = folder.join("self-signed.pem");
    let key = folder.join("self-signed.key");
    if !certificate.exists() || !key.exists() {
        let pair = self_signed(names)?;
        fs::create_dir_all(folder).map_err(|error| file_error(folder, error.to_string()))?;
        write(&key, &pair.key, 0o600)?;
        write(&certificate, &pair.certificate, 0o644)?;
    }
    Ok(CertificateFiles { certificate, key, names: None })
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), TlsError> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| file_error(path, error.to_string()))
}
