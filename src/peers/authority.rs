//! Makes a certificate authority for a fleet, and the certificates of its nodes, for people without a PKI.
//!
//! The authority is a folder with `ca.pem` and `ca.key`. The key signs certificates of further nodes; it does not
//! belong on the nodes.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use super::settings::can_identify;

/// The certificates to make.
#[derive(Clone, Debug)]
pub struct CertificateOrder {
    /// The folder of the authority; the certificates of the nodes are written there too.
    pub directory: PathBuf,
    /// The names of the nodes (`node.name`).
    pub names: Vec<String>,
    /// How long the certificates of nodes are valid.
    pub lifetime: Duration,
    /// How long the authority is valid, if it is made now.
    pub authority_lifetime: Duration,
}

/// The files that were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedCertificates {
    /// The certificate of the authority.
    pub authority: PathBuf,
    /// Its key, if the authority was made now.
    pub new_authority_key: Option<PathBuf>,
    /// For each node its name, certificate and key.
    pub nodes: Vec<(String, PathBuf, PathBuf)>,
    /// When the certificates of the nodes end.
    pub until: SystemTime,
}

/// Makes the certificates of an order, and the authority if the folder has none. Files that exist are never
/// overwritten: if one does, nothing is written. Keys can be read by their owner only (mode 0600).
///
/// # Errors
/// Why nothing could be made, or which file could not be written, with what to do.
pub fn issue_certificates(
    order: &CertificateOrder,
    now: SystemTime,
) -> Result<IssuedCertificates, String> {
    let in_folder = |file: &str| order.directory.join(file);
    if let Some(name) = order.names.iter().find(|name| !can_identify(name) || *name == "ca") {
        return Err(format!(
            "a certificate cannot carry the name {name:?}: expected a DNS name other than \"ca\", such as edge-1"
        ));
    }
    let nodes: Vec<(String, PathBuf, PathBuf)> = order
        .names
        .iter()
        .map(|name| {
            (name.clone(), in_folder(&format!("{name}.pem")), in_folder(&format!("{name}.key")))
        })
        .collect();
    let files = nodes.iter().flat_map(|(_, certificate, key)| [certificate, key]);
    if let Some(taken) = files.into_iter().find(|file| file.exists()) {
        return Err(format!(
            "{} exists and is not overwritten: to renew a certificate, move it and its key away first",
            taken.display()
        ));
    }
    fs::create_dir_all(&order.directory).map_err(|error| written(&order.directory, &error))?;
    let validity = Validity { from: now.checked_sub(DAY).unwrap_or(now), now };
    let (authority, key_file) = (in_folder("ca.pem"), in_folder("ca.key"));
    let (issuer, is_new) =
        open_authority(&authority, &key_file, validity, order.authority_lifetime)?;
    for (name, certificate, key) in &nodes {
        let pair = node_pair(name, &issuer, validity, order.lifetime).map_err(failed)?;
        create(key, &pair.1, 0o600)?;
        create(certificate, &pair.0, 0o644)?;
    }
    Ok(IssuedCertificates {
        authority,
        new_authority_key: is_new.then_some(key_file),
        nodes,
        until: now + order.lifetime,
    })
}

/// Certificates are valid from the day before, because the clocks of other nodes may be slow.
#[derive(Clone, Copy)]
struct Validity {
    from: SystemTime,
    now: SystemTime,
}

/// The authority of the folder, and whether it was made now.
fn open_authority(
    certificate: &Path,
    key: &Path,
    validity: Validity,
    lifetime: Duration,
) -> Result<(Issuer<'static, KeyPair>, bool), String> {
    let mut params = authority_params();
    match (certificate.exists(), fs::read_to_string(key)) {
        (true, Ok(text)) => {
            let pair = KeyPair::from_pem(&text)
                .map_err(|error| format!("{}: no private key: {error}", key.display()))?;
            Ok((Issuer::new(params, pair), false))
        }
        (false, Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            params.not_before = validity.from.into();
            params.not_after = (validity.now + lifetime).into();
            let pair = KeyPair::generate().map_err(failed)?;
            let made = params.self_signed(&pair).map_err(failed)?;
            create(key, &pair.serialize_pem(), 0o600)?;
            create(certificate, &made.pem(), 0o644)?;
            Ok((Issuer::new(params, pair), true))
        }
        (true, Err(error)) => Err(format!(
            "{}: {error}; the authority in {} signs only with its key: put it there for the moment, or choose another --directory for a new authority",
            key.display(),
            certificate.display()
        )),
        (false, _) => Err(format!(
            "{} is missing beside its key {}: put it there, or choose another --directory for a new authority",
            certificate.display(),
            key.display()
        )),
    }
}

/// The parameters of every authority: its certificates differ by key and by time only.
fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Skerry peers");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Certificate and key of a node in PEM.
fn node_pair(
    name: &str,
    issuer: &Issuer<'_, KeyPair>,
    validity: Validity,
    lifetime: Duration,
) -> Result<(String, String), rcgen::Error> {
    let mut params = CertificateParams::new([name.to_owned()])?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.not_before = validity.from.into();
    params.not_after = (validity.now + lifetime).into();
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn create(path: &Path, text: &str, mode: u32) -> Result<(), String> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| written(path, &error))
}

fn written(path: &Path, error: &io::Error) -> String {
    format!("cannot write {}: {error}", path.display())
}

fn failed(error: rcgen::Error) -> String {
    format!("cannot make a certificate: {error}")
}

const DAY: Duration = Duration::from_secs(86_400);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::settings::PeerFiles;
    use super::super::tls::check_files;
    use super::*;

    fn order(directory: &Path, names: &[&str]) -> CertificateOrder {
        CertificateOrder {
            directory: directory.to_owned(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            lifetime: 397 * DAY,
            authority_lifetime: 3650 * DAY,
        }
    }

    fn files(folder: &Path, name: &str) -> PeerFiles {
        let file = |name: String| folder.join(name);
        PeerFiles {
            certificate: file(format!("{name}.pem")),
            key: file(format!("{name}.key")),
            ca: file("ca.pem".to_owned()),
        }
    }

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn now() -> SystemTime {
        NOW + 20_000 * DAY
    }

    #[test]
    fn peers_accept_the_certificates_of_one_authority_whenever_they_were_made() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = issue_certificates(&order(folder.path(), &["edge-1", "edge_2"]), now());
        let first = first.expect("made");
        assert_eq!(first.new_authority_key, Some(folder.path().join("ca.key")));
        assert_eq!(first.until, now() + 397 * DAY);
        let later = issue_certificates(&order(folder.path(), &["fra.edge-3"]), now() + 30 * DAY);
        assert_eq!(later.expect("made").new_authority_key, None);
        for name in ["edge-1", "edge_2", "fra.edge-3"] {
            check_files(&files(folder.path(), name), name, now() + 31 * DAY).expect(name);
        }
        check_files(&files(folder.path(), "edge-1"), "edge-1", now() - DAY / 2)
            .expect("slow clock");
    }

    #[test]
    fn keys_are_for_their_owner_only_and_nothing_is_overwritten() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path();
        issue_certificates(&order(folder, &["edge-1"]), now()).expect("made");
        for key in ["ca.key", "edge-1.key"] {
            let mode = fs::metadata(folder.join(key)).expect("a file").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
        let all = || -> Vec<(PathBuf, Vec<u8>)> {
            let entries = fs::read_dir(folder).expect("a folder").map(|it| it.expect("it").path());
            let mut all: Vec<_> =
                entries.map(|path| (path.clone(), fs::read(path).expect("a file"))).collect();
            all.sort();
            all
        };
        let before = all();
        let error = issue_certificates(&order(folder, &["edge-2", "edge-1"]), now());
        let error = error.expect_err("edge-1 exists");
        assert!(error.contains("edge-1.pem exists and is not overwritten"), "{error}");
        assert_eq!(all(), before, "not even edge-2 was written");
        for name in ["ca", "-x", "192.0.2.1"] {
            let error = issue_certificates(&order(folder, &[name]), now()).expect_err(name);
            assert!(error.contains("cannot carry the name"), "{error}");
        }
        fs::remove_file(folder.join("ca.key")).expect("removed");
        let error = issue_certificates(&order(folder, &["edge-2"]), now()).expect_err("no key");
        assert!(error.contains("signs only with its key"), "{error}");
        assert_eq!(all().len(), 3);
    }
}
