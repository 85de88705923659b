//! TLS configurations for connections to origins: trusted authorities, client certificate, protocols.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::super::settings::{OriginTls, PoolError, PoolSettings, Protocol};

/// The configuration for a pool. All cores share it and its sessions, so that a new connection can
/// resume a session of any core.
pub(in crate::upstream) fn client_config(
    pool: &PoolSettings,
) -> Result<Arc<ClientConfig>, PoolError> {
    if let Some(prepared) = &pool.tls.prepared {
        return Ok(prepared.0.clone());
    }
    let tls_error = |source| PoolError::Tls { pool: pool.name.clone(), source };
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(tls_error)?;
    let builder = if pool.tls.verify {
        builder.with_root_certificates(roots(pool)?)
    } else {
        let verifier = Arc::new(AnyCertificate(provider));
        builder.dangerous().with_custom_certificate_verifier(verifier)
    };
    let mut config = match &pool.tls.client_certificate {
        None => builder.with_no_client_auth(),
        Some(files) => builder
            .with_client_auth_cert(certificates(pool, &files.chain)?, key(pool, &files.key)?)
            .map_err(tls_error)?,
    };
    config.alpn_protocols = match pool.protocol {
        Protocol::Auto => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        Protocol::Http1 => vec![b"http/1.1".to_vec()],
        Protocol::Http2 => vec![b"h2".to_vec()],
    };
    Ok(Arc::new(config))
}

/// All mistakes in the TLS files of a pool, each with the name of its option.
pub(crate) fn file_mistakes(pool: &PoolSettings) -> Vec<(&'static str, PoolError)> {
    let mut mistakes = Vec::new();
    for file in &pool.tls.ca_files {
        let read = certificates(pool, file).and_then(|all| {
            let mut roots = RootCertStore::empty();
            let mut added = all.into_iter().map(|certificate| roots.add(certificate));
            let added = added.try_for_each(|added| added);
            added.map_err(|error| unusable(pool, file, error.to_string()))
        });
        mistakes.extend(read.err().map(|error| ("ca_files", error)));
    }
    if let Some(files) = &pool.tls.client_certificate {
        let chain = certificates(pool, &files.chain).err();
        mistakes.extend(chain.map(|error| ("client_certificate", error)));
        mistakes.extend(key(pool, &files.key).err().map(|error| ("client_key", error)));
    }
    if mistakes.is_empty()
        && pool.tls.client_certificate.is_some()
        && let Err(error) = client_config(pool)
    {
        mistakes.push(("client_key", error));
    }
    mistakes
}

fn roots(pool: &PoolSettings) -> Result<Arc<RootCertStore>, PoolError> {
    let OriginTls { system_roots, ca_files, .. } = &pool.tls;
    if *system_roots && ca_files.is_empty() {
        return Ok(native_roots());
    }
    let mut roots =
        if *system_roots { native_roots().as_ref().clone() } else { RootCertStore::empty() };
    for file in ca_files {
        for certificate in certificates(pool, file)? {
            roots.add(certificate).map_err(|error| unusable(pool, file, error.to_string()))?;
        }
    }
    Ok(Arc::new(roots))
}

/// The system's certificate authorities, about 150. They are read once for all pools.
fn native_roots() -> Arc<RootCertStore> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    ROOTS
        .get_or_init(|| {
            let loaded = rustls_native_certs::load_native_certs();
            for error in &loaded.errors {
                tracing::warn!(%error, "cannot read some of the system's CA certificates");
            }
            let mut roots = RootCertStore::empty();
            let (_, refused) = roots.add_parsable_certificates(loaded.certs);
            if refused > 0 {
                tracing::debug!(refused, "ignored CA certificates that rustls cannot use");
            }
            Arc::new(roots)
        })
        .clone()
}

fn certificates(
    pool: &PoolSettings,
    file: &Path,
) -> Result<Vec<CertificateDer<'static>>, PoolError> {
    let certificates = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unusable(pool, file, pem_text(&error)))?;
    if certificates.is_empty() {
        return Err(unusable(pool, file, "the file has no certificate".to_owned()));
    }
    Ok(certificates)
}

fn key(pool: &PoolSettings, file: &Path) -> Result<PrivateKeyDer<'static>, PoolError> {
    PrivateKeyDer::from_pem_file(file).map_err(|error| unusable(pool, file, pem_text(&error)))
}

fn pem_text(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => format!("cannot read the file: {error}"),
        error => error.to_string(),
    }
}

fn unusable(pool: &PoolSettings, file: &Path, reason: String) -> PoolError {
    PoolError::File { pool: pool.name.clone(), path: file.to_owned(), reason }
}

/// Accepts every certificate, for [`OriginTls::verify`] off. Signatures are still checked: the server
/// has the key of the certificate that it sends.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
