//! TLS for the admin API: the node's certificate and, with `client_ca`, client certificates.
//!
//! The handshake accepts a caller without a certificate, so that health checks need none and other calls
//! get a 401 that explains the problem. It refuses a certificate that `client_ca` has not signed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use crate::stamp::Stamp;

/// Files of the certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The node's certificate with its chain (PEM).
    pub certificate: PathBuf,
    /// The private key (PEM).
    pub key: PathBuf,
    /// The CA certificates that sign client certificates (PEM). `None`: callers need no certificate.
    pub client_ca: Option<PathBuf>,
}

/// The TLS configuration, reloaded when its files change.
pub(crate) struct AdminTls {
    settings: Settings,
    current: Mutex<(Arc<ServerConfig>, Vec<Option<Stamp>>)>,
}

impl AdminTls {
    /// Reads the files.
    ///
    /// # Errors
    /// A file cannot be used: `FILE: WHY`.
    pub(crate) fn load(settings: &Settings) -> Result<Self, String> {
        let current = Mutex::new((settings.server_config()?, settings.stamps()));
        Ok(Self { settings: settings.clone(), current })
    }

    /// Reloads the files if they have changed. Returns whether they had.
    ///
    /// # Errors
    /// A file cannot be used; the old certificates stay in use. The files are read again when they change.
    pub(crate) fn reload_if_changed(&self) -> Result<bool, String> {
        let stamps = self.settings.stamps();
        let mut current = self.lock();
        if current.1 == stamps {
            return Ok(false);
        }
        current.1 = stamps;
        current.0 = self.settings.server_config()?;
        Ok(true)
    }

    /// Whether client certificates authenticate callers.
    pub(crate) fn authenticates_callers(&self) -> bool {
        self.settings.client_ca.is_some()
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.lock().0.clone().into()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (Arc<ServerConfig>, Vec<Option<Stamp>>)> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Settings {
    fn server_config(&self) -> Result<Arc<ServerConfig>, String> {
        let provider = Arc::new(default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("the provider's suites cover all versions");
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(file)? {
                    roots.add(certificate).map_err(|error| in_file(file, &error))?;
                }
                let callers = WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
                    .allow_unauthenticated()
                    .build()
                    .map_err(|error| in_file(file, &error))?;
                builder.with_client_cert_verifier(callers)
            }
        };
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| {
            in_file(&self.key, &format!("expected a private key in PEM: {error}"))
        })?;
        let mut config =
            builder.with_single_cert(certificates(&self.certificate)?, key).map_err(|error| {
                let key = self.key.display();
                in_file(&self.certificate, &format!("does not match the key {key}: {error}"))
            })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config.into())
    }

    /// Files that cannot be used: the option, and why. All mistakes at once.
    pub(crate) fn file_mistakes(&self) -> Vec<(&'static str, String)> {
        let mut mistakes = Vec::new();
        if let Some(Err(why)) = self.client_ca.as_deref().map(certificates) {
            mistakes.push(("client_ca", why));
        }
        if let Err(why) = certificates(&self.certificate) {
            mistakes.push(("certificate", why));
        }
        if let Err(error) = PrivateKeyDer::from_pem_file(&self.key) {
            let why = format!("expected a private key in PEM: {error}");
            mistakes.push(("key", in_file(&self.key, &why)));
        }
        if mistakes.is_empty()
            && let Err(why) = self.server_config()
        {
            mistakes.push(("certificate", why));
        }
        mistakes
    }

    fn stamps(&self) -> Vec<Option<Stamp>> {
        let files = [&self.certificate, &self.key].into_iter().chain(&self.client_ca);
        files.map(|path| Stamp::of(path)).collect()
    }
}

/// The names of a verified client certificate: its DNS names or, if it has none, `certificate-` and the
/// first 8 bytes of its SHA-256 hash in hex.
pub(super) fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let parsed = webpki::EndEntityCert::try_from(certificate);
    let mut names: Vec<String> = parsed
        .iter()
        .flat_map(|certificate| certificate.valid_dns_names())
        .map(str::to_ascii_lowercase)
        .collect();
    if names.is_empty() {
        let hash = digest(&SHA256, certificate);
        let hex: String = hash.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        names.push(format!("certificate-{hex}"));
    }
    names
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|error| in_file(file, &error))?;
    match certificates.is_empty() {
        true => Err(in_file(file, &"the file has no certificate")),
        false => Ok(certificates),
    }
}

fn in_file(file: &Path, why: &dyn std::fmt::Display) -> String {
    format!("{}: {why}", file.display())
}
