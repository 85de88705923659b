//! A certificate authority for one run, and certificates for its nodes.

use crate::fleet::node::NodeSpec;
use crate::plan::object::HOSTS;
use anyhow::Context as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::CertificateDer;
use std::path::Path;

/// The authority; its key never leaves memory.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// A new one.
    pub fn new() -> anyhow::Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "Skerry lab");
        Ok(Authority(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// Its certificate, for clients to trust.
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.0.as_ref().der().clone()
    }

    /// Writes its certificate for `curl --cacert`.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        std::fs::write(path, self.0.as_ref().pem()).context("certificate authority")
    }

    /// Writes a new certificate and key for a node, each put in place by one rename.
    pub fn issue(&self, spec: &NodeSpec) -> anyhow::Result<()> {
        let names = HOSTS.iter().copied().chain(["localhost"]).map(str::to_owned);
        let mut params = CertificateParams::new(names.collect::<Vec<_>>())?;
        params.distinguished_name.push(DnType::CommonName, spec.name.as_str());
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.0)?;
        replace(&spec.key(), &key.serialize_pem())?;
        replace(&spec.certificate(), &certificate.pem())
    }
}

fn replace(path: &Path, text: &str) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, text).with_context(|| format!("write {}", new.display()))?;
    std::fs::rename(&new, path).with_context(|| format!("replace {}", path.display()))
}
