//! Chooses the certificate for a client.
//!
//! Exact names win over wildcards; a wildcard covers one label (RFC 9525 §6.3). Of certificates with the same name, such
//! as one with an ECDSA and one with an RSA key, a client gets the first whose signatures it accepts. A client that sends no name, or
//! one that no certificate has, gets the default certificate: its error then names that certificate, which
//! tells an operator more than an alert.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::TlsError;
use crate::context::CertificateNames;
use crate::listen::settings::{CertificateFiles, TlsSettings};
use crate::pem::{self, validity};

/// All certificates of a node by name.
#[derive(Debug)]
pub(super) struct Certificates {
    /// In the order of the settings.
    all: Vec<Arc<CertifiedKey>>,
    names: Arc<CertificateNames>,
    /// The files, and when their certificates end.
    ends: Vec<(PathBuf, SystemTime)>,
    refuse_misdirected: bool,
}

impl Certificates {
    /// Reads all files.
    pub(super) fn load(settings: &TlsSettings) -> Result<Self, TlsError> {
        let index = settings.default_certificate;
        let mut names = CertificateNames::new(index);
        let (mut all, mut ends) = (Vec::new(), Vec::new());
        for files in &settings.certificates {
            let certified = load_pair(files)?;
            for name in names_of(files, &certified)? {
                names.add(&name, all.len());
            }
            let first = certified.cert.first();
            if let Some((_, until)) = first.and_then(|first| validity(first)) {
                ends.push((files.certificate.clone(), until));
            }
            all.push(Arc::new(certified));
        }
        if index >= all.len() {
            return Err(TlsError::Default { index, count: all.len() });
        }
        let refuse_misdirected = settings.refuse_misdirected;
        Ok(Self { all, names: Arc::new(names), ends, refuse_misdirected })
    }

    /// The first certificate for the client's server name with whose key the client accepts a signature.
    fn choose(&self, hello: &ClientHello<'_>) -> Arc<CertifiedKey> {
        let schemes = hello.signature_schemes();
        let fits = |index: usize| self.all[index].key.choose_scheme(schemes).is_some();
        self.all[self.names.shown(hello.server_name(), fits)].clone()
    }
}

/// The certificates that handshakes use. They are replaced as a whole.
#[derive(Debug)]
pub(super) struct CertificatesBySni(ArcSwap<Certificates>);

impl CertificatesBySni {
    pub(super) fn new(certificates: Certificates) -> Self {
        Self(ArcSwap::from_pointee(certificates))
    }

    /// The names that the host of each request is checked against; `None` if it is not checked.
    pub(super) fn names(&self) -> Option<Arc<CertificateNames>> {
        let certificates = self.0.load();
        certificates.refuse_misdirected.then(|| certificates.names.clone())
    }

    /// All certificates, in the order of the settings.
    pub(super) fn all(&self) -> Vec<Arc<CertifiedKey>> {
        self.0.load().all.clone()
    }

    /// The files, and when their certificates end.
    pub(super) fn ends(&self) -> Vec<(PathBuf, SystemTime)> {
        self.0.load().ends.clone()
    }

    pub(super) fn swap(&self, certificates: Certificates) {
        self.0.store(Arc::new(certificates));
    }
}

impl ResolvesServerCert for CertificatesBySni {
    // rustls gives the name in lower case.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load().choose(&hello))
    }
}

pub(super) fn load_pair(files: &CertificateFiles) -> Result<CertifiedKey, TlsError> {
    let chain = pem::read_chain(&files.certificate)
        .map_err(|reason| file_error(&files.certificate, reason))?;
    let key = pem::read_key(&files.key).map_err(|reason| file_error(&files.key, reason))?;
    let provider = aws_lc_rs::default_provider();
    let error = match CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider) {
        Ok(certified) => return Ok(certified),
        Err(error) => error,
    };
    let (certificate, key_file) = (files.certificate.clone(), files.key.clone());
    let fits = |one: CertificateDer<'static>| {
        CertifiedKey::from_der(vec![one], key.clone_key(), &provider).is_ok()
    };
    if matches!(error, rustls::Error::InconsistentKeys(_)) && chain.into_iter().skip(1).any(fits) {
        return Err(TlsError::Order { certificate, key: key_file });
    }
    Err(TlsError::Pair { certificate, key: key_file, reason: error })
}

pub(super) fn names_of(
    files: &CertificateFiles,
    certified: &CertifiedKey,
) -> Result<Vec<String>, TlsError> {
    if let Some(names) = &files.names {
        return Ok(names.clone());
    }
    let certificate = webpki::EndEntityCert::try_from(&certified.cert[0])
        .map_err(|error| file_error(&files.certificate, error.to_string()))?;
    Ok(certificate.valid_dns_names().map(str::to_owned).collect())
}

pub(super) fn file_error(path: &Path, reason: String) -> TlsError {
    TlsError::File { path: path.to_owned(), reason }
}
