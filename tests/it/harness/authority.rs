//! A certificate authority for tests. It writes its certificate and those that it signs as PEM files.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

pub struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut parameters = CertificateParams::new(Vec::new()).expect("no names");
        // A unique name, because a certificate with the name of its issuer is taken for the issuer.
        let name = format!("authority {}", folder.path().display());
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = parameters.self_signed(&key).expect("a certificate");
        std::fs::write(folder.path().join("ca.pem"), certificate.pem()).expect("a file");
        Self { folder, issuer: Issuer::new(parameters, key) }
    }

    /// The authority's own certificate.
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Issues a certificate for a DNS name or an address. Returns the paths of certificate and key.
    pub fn issue(&self, name: &str) -> (PathBuf, PathBuf) {
        let mut parameters = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        parameters.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = parameters.signed_by(&key, &self.issuer).expect("a certificate");
        let write = |suffix: &str, text: &str| -> PathBuf {
            let path = self.folder.path().join(format!("{name}{suffix}.pem"));
            std::fs::write(&path, text).expect("a file");
            path
        };
        (write("", &certificate.pem()), write("-key", &key.serialize_pem()))
    }
}

/// The path as text, for command lines.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}
