//! TLS for the admin API: the node's certificate and, with `client_ca`, those of callers.
//!
//! A caller without a certificate gets through the handshake, so that `/healthz` can be asked by
//! anyone and everything else answers in words (401); one with a certificate that `client_ca`
//! has not signed does not.

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

/// Where the certificates are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// The node's certificate, PEM, with its chain.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// Who signs callers' certificates, PEM. `None`: callers need none.
    pub client_ca: Option<PathBuf>,
}

/// What handshakes are made with; follows its files.
pub(crate) struct AdminTls {
    settings: Settings,
    current: Mutex<(Arc<ServerConfig>, Vec<Option<Stamp>>)>,
}

impl AdminTls {
    /// Reads the files.
    ///
    /// # Errors
    /// `FILE: why`.
    pub(crate) fn load(settings: &Settings) -> Result<Self, String> {
        let current = Mutex::new((settings.server_config()?, settings.stamps()));
        Ok(Self { settings: settings.clone(), current })
    }

    /// Reads the files again when they have changed; says whether they had.
    ///
    /// # Errors
    /// The old ones stay. A bad file is tried again when it changes.
    pub(crate) fn keep_current(&self) -> Result<bool, String> {
        let stamps = self.settings.stamps();
        let mut current = self.lock();
        if current.1 == stamps {
            return Ok(false);
        }
        current.1 = stamps;
        current.0 = self.settings.server_config()?;
        Ok(true)
    }

    /// Whether callers are asked for certificates.
    pub(crate) fn knows_callers(&self) -> bool {
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
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|error| in_file(&self.key, &format!("no private key: {error}")))?;
        let mut config =
            builder.with_single_cert(certificates(&self.certificate)?, key).map_err(|error| {
                let key = self.key.display();
                in_file(&self.certificate, &format!("does not go with {key}: {error}"))
            })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config.into())
    }

    /// What is wrong with the files: the option, and why. All of it at once.
    pub(crate) fn file_mistakes(&self) -> Vec<(&'static str, String)> {
        let mut mistakes = Vec::new();
        if let Some(Err(why)) = self.client_ca.as_deref().map(certificates) {
            mistakes.push(("client_ca", why));
        }
        if let Err(why) = certificates(&self.certificate) {
            mistakes.push(("certificate", why));
        }
        if let Err(error) = PrivateKeyDer::from_pem_file(&self.key) {
            let why = format!("no private key: {error}");
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

/// What a caller's certificate calls it: its DNS names, or, without any, the beginning of its
/// SHA-256 hash. `client_ca` has vouched for it.
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
