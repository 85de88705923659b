//! The self-signed certificate, for the demo and for listeners without a configured certificate.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, KeyPair};

use super::TlsError;
use super::certificates::{file_error, load_pair};
use crate::listen::settings::CertificateFiles;
use crate::pem::validity;

/// A certificate and its key in PEM.
pub(crate) struct PemPair {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: String,
}

impl std::fmt::Debug for PemPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PemPair").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// Generates a self-signed ECDSA P-256 certificate for host names and addresses. It is valid for [`LIFETIME`]
/// from the day before `now`, because some clients' clocks are slow.
pub(crate) fn self_signed(names: &[&str], now: SystemTime) -> Result<PemPair, TlsError> {
    let failed = |error: rcgen::Error| TlsError::SelfSigned(error.to_string());
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).map_err(failed)?;
    let from = now.checked_sub(DAY).unwrap_or(now);
    params.not_before = from.into();
    params.not_after = (from + LIFETIME).into();
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok(PemPair { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// The files of the self-signed certificate in `folder`. They are kept over restarts, so that a browser's
/// exception stays valid. They are generated again if they are missing, invalid, not of [`LIFETIME`], or
/// expire within [`RENEWED_BEFORE`].
pub(crate) fn self_signed_in(
    folder: &Path,
    names: &[&str],
    now: SystemTime,
) -> Result<CertificateFiles, TlsError> {
    let certificate = folder.join("self-signed.pem");
    let key = folder.join("self-signed.key");
    let files = CertificateFiles { certificate, key, names: None };
    if !is_good(&files, now) {
        let pair = self_signed(names, now)?;
        fs::create_dir_all(folder).map_err(|error| {
            let why =
                format!("cannot create this directory for the generated certificate: {error}");
            file_error(folder, why)
        })?;
        write(&files.key, &pair.key, 0o600)?;
        write(&files.certificate, &pair.certificate, 0o644)?;
    }
    Ok(files)
}

/// Whether the files are a pair that is valid now, does not expire soon, and is not valid for longer than the
/// 398 days that clients accept.
fn is_good(files: &CertificateFiles, now: SystemTime) -> bool {
    let Some((from, until)) =
        load_pair(files).ok().and_then(|certified| validity(certified.cert.first()?))
    else {
        return false;
    };
    from <= now && now + RENEWED_BEFORE < until && until <= from + LIFETIME
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), TlsError> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| file_error(path, error.to_string()))
}

const DAY: Duration = Duration::from_secs(86_400);
const LIFETIME: Duration = Duration::from_secs(397 * 86_400);
const RENEWED_BEFORE: Duration = Duration::from_secs(30 * 86_400);

#[cfg(test)]
mod tests {
    use super::super::TlsState;
    use super::*;
    use crate::clock::Clock;
    use crate::listen::settings::TlsSettings;

    #[test]
    fn a_certificate_is_kept_until_its_last_month_and_then_made_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let start = SystemTime::UNIX_EPOCH + 20_000 * DAY;
        let made = |day: u32| {
            let files = self_signed_in(folder.path(), &["localhost"], start + day * DAY);
            let files = files.expect("files");
            let certified = load_pair(&files).expect("a pair");
            validity(&certified.cert[0]).expect("times")
        };
        let first = made(0);
        assert_eq!(first, (start - DAY, start + 396 * DAY));
        assert_eq!(made(365), first);
        assert_eq!(made(366), (start + 365 * DAY, start + 762 * DAY), "the last month has begun");
        assert_eq!(made(0), first, "a clock that was ahead");
        assert_eq!(made(5000).0, start + 4999 * DAY, "it had ended long ago");
    }

    #[test]
    fn a_running_node_renews_its_certificate_before_it_ends() {
        let folder = tempfile::tempdir().expect("a folder");
        let clock = Clock::system();
        let settings = TlsSettings::default();
        let state = TlsState::load(&settings, folder.path(), &clock).expect("a certificate");
        let pem = || fs::read_to_string(folder.path().join("tls/self-signed.pem")).expect("a file");
        let first = pem();
        assert!(!state.keep_current(clock.now()).expect("nothing to do"));
        clock.advance(370 * DAY);
        assert!(state.keep_current(clock.now()).expect("renewed"));
        assert_ne!(pem(), first);
        assert!(!state.keep_current(clock.now()).expect("nothing to do"));
    }

    #[test]
    fn files_that_are_no_pair_or_valid_for_ever_are_made_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let now = SystemTime::UNIX_EPOCH + 20_000 * DAY;
        let files = self_signed_in(folder.path(), &["localhost"], now).expect("files");
        let other = self_signed(&["localhost"], now).expect("a pair");
        fs::write(&files.key, other.key).expect("written");
        self_signed_in(folder.path(), &["localhost"], now).expect("files");
        assert!(load_pair(&files).is_ok(), "a pair again");
        let endless = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a pair");
        fs::write(&files.certificate, endless.cert.pem()).expect("written");
        fs::write(&files.key, endless.signing_key.serialize_pem()).expect("written");
        self_signed_in(folder.path(), &["localhost"], now).expect("files");
        let (from, until) = validity(&load_pair(&files).expect("a pair").cert[0]).expect("times");
        assert_eq!(until.duration_since(from).expect("later"), LIFETIME);
    }
}
