//! Which certificate a client is shown.
//!
//! Exact names win over wildcards; a wildcard covers one label (RFC 9525 §6.3). Clients that
//! ask for no name, or for one that nobody has, get the default certificate: they then see
//! for themselves that it is not for them, which tells an operator more than an alert.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::TlsError;
use crate::listen::settings::{CertificateFiles, TlsSettings};

/// All certificates of a node by name.
#[derive(Debug)]
pub(super) struct Certificates {
    /// Lower case, `*.example.org` under `.example.org`.
    by_name: HashMap<String, Arc<CertifiedKey>>,
    default: Arc<CertifiedKey>,
}

impl Certificates {
    /// Reads all files. Where two certificates have a name, the first in the settings wins.
    pub(super) fn load(settings: &TlsSettings) -> Result<Self, TlsError> {
        let mut by_name = HashMap::new();
        let mut all = Vec::new();
        for files in &settings.certificates {
            let certified = Arc::new(load_pair(files)?);
            for name in names(files, &certified)? {
                by_name.entry(name).or_insert_with(|| certified.clone());
            }
            all.push(certified);
        }
        let wanted = settings.default_certificate;
        let default = all.get(wanted).cloned();
        let default = default.ok_or(TlsError::Default { wanted, there: all.len() })?;
        Ok(Self { by_name, default })
    }

    fn choose(&self, server_name: Option<&str>) -> Arc<CertifiedKey> {
        let Some(name) = server_name else { return self.default.clone() };
        let exact = self.by_name.get(name);
        // The key of a wildcard is what follows the first label, dot included.
        let wildcard = || name.find('.').and_then(|dot| self.by_name.get(&name[dot..]));
        exact.or_else(wildcard).unwrap_or(&self.default).clone()
    }
}

/// The map that handshakes look into, swapped whole.
#[derive(Debug)]
pub(super) struct CertificatesBySni(ArcSwap<Certificates>);

impl CertificatesBySni {
    pub(super) fn new(certificates: Certificates) -> Self {
        Self(ArcSwap::from_pointee(certificates))
    }

    pub(super) fn swap(&self, certificates: Certificates) {
        self.0.store(Arc::new(certificates));
    }
}

impl ResolvesServerCert for CertificatesBySni {
    // rustls gives the name in lower case.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load().choose(hello.server_name()))
    }
}

fn load_pair(files: &CertificateFiles) -> Result<CertifiedKey, TlsError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&read(&files.certificate)?)
        .collect::<Result<_, _>>()
        .map_err(|error| file_error(&files.certificate, error.to_string()))?;
    if chain.is_empty() {
        return Err(file_error(&files.certificate, "no certificate in it".into()));
    }
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?)
        .map_err(|error| file_error(&files.key, format!("no private key: {error}")))?;
    let provider = aws_lc_rs::default_provider();
    CertifiedKey::from_der(chain, key, &provider).map_err(|reason| TlsError::Pair {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        reason,
    })
}

fn names(files: &CertificateFiles, certified: &CertifiedKey) -> Result<Vec<String>, TlsError> {
    let names = match &files.names {
        Some(names) => names.clone(),
        None => {
            let certificate = webpki::EndEntityCert::try_from(&certified.cert[0])
                .map_err(|error| file_error(&files.certificate, error.to_string()))?;
            certificate.valid_dns_names().map(str::to_owned).collect()
        }
    };
    Ok(names.into_iter().map(|name| map_key(&name)).collect())
}

fn map_key(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    name.strip_prefix('*').map_or(name.clone(), str::to_owned)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|error| file_error(path, error.to_string()))
}

pub(super) fn file_error(path: &Path, reason: String) -> TlsError {
    TlsError::File { path: path.to_owned(), reason }
}
