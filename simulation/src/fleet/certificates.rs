//! The certificate authority of a run, which signs the certificates of its nodes.

use crate::fleet::node::NodeSpec;
use crate::plan::object::HOSTS;
use anyhow::Context as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use rustls::pki_types::CertificateDer;
use std::path::Path;

/// A certificate authority. Its key is kept in memory only.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// Creates an authority with a new key.
    pub fn new() -> anyhow::Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "Skerry simulation");
        Ok(Authority(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// The authority's certificate, for the trust store of clients.
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.0.as_ref().der().clone()
    }

    /// Writes the authority's certificate as PEM.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        std::fs::write(path, self.0.as_ref().pem()).context("certificate authority")
    }

    /// Writes a new certificate and key for a node. Each file is replaced atomically.
    pub fn issue(&self, spec: &NodeSpec) -> anyhow::Result<()> {
        let names = HOSTS.iter().copied().chain(["localhost"]).map(str::to_owned);
        let mut params = CertificateParams::new(names.collect::<Vec<_>>())?;
        params.distinguished_name.push(DnType::CommonName, spec.name.as_str());
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.0)?;
        replace(&spec.key(), &key.serialize_pem())?;
        replace(&spec.certificate(), &certificate.pem())
    }

    /// Writes the certificate and key by which other nodes know a node: it carries the node's name.
    pub fn issue_to_peer(&self, spec: &NodeSpec) -> anyhow::Result<()> {
        let mut params = CertificateParams::new(vec![spec.name.clone()])?;
        params.distinguished_name.push(DnType::CommonName, spec.name.as_str());
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.0)?;
        replace(&spec.peer_key(), &key.serialize_pem())?;
        replace(&spec.peer_certificate(), &certificate.pem())
    }
}

fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, text).with_context(|| format!("write {}", new.display()))?;
    std::fs::rename(&new, path).with_context(|| format!("replace {}", path.display()))
}
