//! Mutual TLS between peers: the certificate of this node, and the authority that signs those of its peers.
//!
//! TLS 1.3 only, HTTP/2 only, and no resumption: a resumed session would keep a peer whose certificate has
//! expired, or whose authority was removed. Files are watched as those of the listeners are; invalid new files
//! leave the old certificates in use.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, VerifierBuilderError, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{CertificateError, ClientConfig, Error, RootCertStore, ServerConfig};

use super::settings::PeerFiles;
use crate::pem::{self, validity};
use crate::stamp::Stamp;

/// The TLS configurations of the peer link, replaced as a whole when files change.
#[derive(Debug)]
pub(crate) struct PeerTls {
    /// The name of this node.
    node: String,
    current: ArcSwap<PeerTlsConfig>,
    sources: Mutex<Sources>,
}

/// The TLS configurations for connections that begin now.
#[derive(Debug)]
pub(crate) struct PeerTlsConfig {
    /// For connections of peers: requires a certificate that the authority has signed.
    pub server: Arc<ServerConfig>,
    /// For connections to peers. The server name of a connection must be the name of the peer; the handshake
    /// then fails if the certificate does not carry it.
    pub client: Arc<ClientConfig>,
    /// When the certificate of this node ends. `None`: its validity cannot be read.
    pub until: Option<SystemTime>,
}

/// The files in use, and their state when they were read.
#[derive(Debug)]
struct Sources {
    files: PeerFiles,
    seen: [Option<Stamp>; 3],
}

/// A file of the peer link that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct PeerFileError {
    /// The option that names it: `certificate`, `key` or `ca`.
    pub option: &'static str,
    /// The file, the mistake in it, and what to do.
    pub reason: String,
    /// The certificate is not valid at this time, and nothing else is wrong. The node can start: it serves its
    /// clients, and its peers refuse it.
    pub is_of_time: bool,
}

impl PeerFileError {
    fn new(option: &'static str, path: &Path, why: impl Display) -> Self {
        let reason = format!("{}: {why}", path.display());
        Self { option, reason, is_of_time: false }
    }
}

impl PeerTls {
    /// Reads the files of the node with this name.
    ///
    /// # Errors
    /// The first file that cannot be used.
    pub(crate) fn load(files: &PeerFiles, node: &str) -> Result<Arc<Self>, PeerFileError> {
        let seen = stamps(files);
        let current = ArcSwap::from_pointee(Material::read(files)?.config(files)?);
        let sources = Mutex::new(Sources { files: files.clone(), seen });
        Ok(Arc::new(Self { node: node.to_owned(), current, sources }))
    }

    /// The configurations for connections that begin now.
    pub(crate) fn current(&self) -> Arc<PeerTlsConfig> {
        self.current.load_full()
    }

    /// Uses these files from now on. Open connections are not affected.
    ///
    /// # Errors
    /// The first file that cannot be used; the old certificates stay in use.
    pub(crate) fn replace(&self, files: &PeerFiles) -> Result<(), PeerFileError> {
        let mut sources = self.lock();
        if sources.files == *files {
            // Their content is watched.
            return Ok(());
        }
        let seen = stamps(files);
        self.current.store(Arc::new(self.read(files)?));
        *sources = Sources { files: files.clone(), seen };
        Ok(())
    }

    /// Reads the files again if one has changed. `Ok(true)`: they were read. Reads files, so it must not run on
    /// a worker.
    ///
    /// # Errors
    /// The first file that cannot be used; the old certificates stay in use. The files are read again when they
    /// change again.
    pub(crate) fn keep_current(&self) -> Result<bool, PeerFileError> {
        let mut sources = self.lock();
        let seen = stamps(&sources.files);
        if seen == sources.seen {
            return Ok(false);
        }
        sources.seen = seen;
        self.current.store(Arc::new(self.read(&sources.files)?));
        Ok(true)
    }

    /// The file of this node's certificate.
    pub(crate) fn certificate_file(&self) -> PathBuf {
        self.lock().files.certificate.clone()
    }

    /// The file of this node's certificate, and when it ends.
    pub(crate) fn certificate_end(&self) -> Option<(PathBuf, SystemTime)> {
        Some((self.certificate_file(), self.current.load().until?))
    }

    fn read(&self, files: &PeerFiles) -> Result<PeerTlsConfig, PeerFileError> {
        let material = Material::read(files)?;
        material.verify(files, &self.node, UnixTime::now())?;
        material.config(files)
    }

    fn lock(&self) -> MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Checks the files of the node with this name as its peers do.
///
/// # Errors
/// The first file that cannot be used: not readable, no pair, not signed by the authority, without the name of
/// the node, or not valid now.
pub(crate) fn check_files(
    files: &PeerFiles,
    node: &str,
    now: SystemTime,
) -> Result<(), PeerFileError> {
    let material = Material::read(files)?;
    material.config(files)?;
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    material.verify(files, node, UnixTime::since_unix_epoch(now))
}

/// The content of the files.
struct Material {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
}

impl Material {
    fn read(files: &PeerFiles) -> Result<Self, PeerFileError> {
        let of = |option, path| move |why: String| PeerFileError::new(option, path, why);
        let chain =
            pem::read_chain(&files.certificate).map_err(of("certificate", &files.certificate))?;
        let key = pem::read_key(&files.key).map_err(of("key", &files.key))?;
        let mut roots = RootCertStore::empty();
        for certificate in pem::read_chain(&files.ca).map_err(of("ca", &files.ca))? {
            let added = roots.add(certificate).map_err(|error| error.to_string());
            added.map_err(of("ca", &files.ca))?;
        }
        Ok(Self { chain, key, roots: roots.into() })
    }

    fn config(&self, files: &PeerFiles) -> Result<PeerTlsConfig, PeerFileError> {
        let (server, client) = (self.server_config(files)?, self.client_config(files)?);
        let until = self.chain.first().and_then(|first| validity(first)).map(|(_, until)| until);
        Ok(PeerTlsConfig { server: Arc::new(server), client: Arc::new(client), until })
    }

    fn server_config(&self, files: &PeerFiles) -> Result<ServerConfig, PeerFileError> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has suites of TLS 1.3")
            .with_client_cert_verifier(self.client_verifier(files)?)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|error| pair_error(files, &error))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    fn client_config(&self, files: &PeerFiles) -> Result<ClientConfig, PeerFileError> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has suites of TLS 1.3")
            .with_root_certificates(self.roots.clone())
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|error| pair_error(files, &error))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    fn client_verifier(
        &self,
        files: &PeerFiles,
    ) -> Result<Arc<dyn ClientCertVerifier>, PeerFileError> {
        WebPkiClientVerifier::builder_with_provider(self.roots.clone(), provider())
            .build()
            .map_err(|error| ca_error(files, &error))
    }

    /// Checks the certificate as the peers do that have the same authority: as that of a client, and as that of
    /// a server with the name of the node.
    fn verify(&self, files: &PeerFiles, node: &str, now: UnixTime) -> Result<(), PeerFileError> {
        let wrong = |error: Error| certificate_error(files, node, &error);
        let (first, others) = self.chain.split_first().expect("a chain has a certificate");
        let server = WebPkiServerVerifier::builder_with_provider(self.roots.clone(), provider())
            .build()
            .map_err(|error| ca_error(files, &error))?;
        let client = self.client_verifier(files)?;
        let name = ServerName::try_from(node.to_owned()).map_err(|_| {
            let why = format!("it cannot carry the name {node:?}, which is no DNS name");
            PeerFileError::new("certificate", &files.certificate, why)
        })?;
        server.verify_server_cert(first, others, &name, &[], now).map_err(wrong)?;
        client.verify_client_cert(first, others, now).map_err(wrong)?;
        Ok(())
    }
}

fn pair_error(files: &PeerFiles, error: &Error) -> PeerFileError {
    let certificate = files.certificate.display();
    let why = match error {
        Error::InconsistentKeys(_) => format!("it does not match the certificate {certificate}"),
        error => format!("it cannot be used with the certificate {certificate}: {error}"),
    };
    PeerFileError::new("key", &files.key, why)
}

fn ca_error(files: &PeerFiles, error: &VerifierBuilderError) -> PeerFileError {
    PeerFileError::new("ca", &files.ca, error)
}

fn certificate_error(files: &PeerFiles, node: &str, error: &Error) -> PeerFileError {
    let ca = files.ca.display();
    let make = format!("make one with: skerry peers certificate {node}");
    use CertificateError::{
        BadSignature, Expired, ExpiredContext, InvalidPurpose, InvalidPurposeContext,
        NotValidForName, NotValidForNameContext, NotValidYet, NotValidYetContext, UnknownIssuer,
    };
    let Error::InvalidCertificate(fault) = error else {
        let why = format!("peers will refuse it: {error}; {make}");
        return PeerFileError::new("certificate", &files.certificate, why);
    };
    let why = match fault {
        Expired | ExpiredContext { .. } => {
            format!("the certificate has expired, so that other nodes refuse this one; {make}")
        }
        NotValidYet | NotValidYetContext { .. } => {
            "the certificate is not valid yet, so that other nodes refuse this one: check the clock of this machine".to_owned()
        }
        UnknownIssuer | BadSignature => {
            format!("no authority in {ca} (peers.ca) has signed it; {make}")
        }
        NotValidForName | NotValidForNameContext { .. } => {
            format!("the certificate does not carry the name of this node, {node:?} (node.name); {make}")
        }
        InvalidPurpose | InvalidPurposeContext { .. } => {
            format!("the certificate must be valid for servers and for clients (extended key usage); {make}")
        }
        fault => format!("peers will refuse it: {fault}; {make}"),
    };
    let is_of_time =
        matches!(fault, Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. });
    PeerFileError { is_of_time, ..PeerFileError::new("certificate", &files.certificate, why) }
}

fn stamps(files: &PeerFiles) -> [Option<Stamp>; 3] {
    [&files.certificate, &files.key, &files.ca].map(|path| Stamp::of(path))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}
