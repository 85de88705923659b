//! TLS for the listeners: one rustls configuration that all workers share.
//!
//! Certificates are chosen by SNI from a map that is replaced as a whole when files change: handshakes never
//! wait, and open connections are not affected. An invalid new file leaves the old map in use. Session
//! tickets are sealed with keys that all workers share, and with a key file all nodes. There is no 0-RTT:
//! rustls does not allow it with stateless tickets, and nothing behind it detects a replayed request.

mod certificates;
mod report;
pub(super) mod self_signed;
mod tickets;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use tokio::sync::Notify;

use crate::clock::Clock;
use crate::context::CertificateNames;
use crate::notices::{self, Notice};
use crate::pem;
use crate::stamp::Stamp;

use super::settings::{CertificateFiles, TicketKeys, TlsSettings, TlsVersion};
use certificates::{Certificates, CertificatesBySni, load_pair, names_of};
use tickets::Tickets;

pub(crate) use report::CertificateReport;
pub(crate) use self_signed::self_signed_in;

/// Certificates, ticket keys, and the rustls configuration that uses them.
#[derive(Debug)]
pub(crate) struct TlsState {
    config: ArcSwap<ServerConfig>,
    certificates: Arc<CertificatesBySni>,
    tickets: Arc<Tickets>,
    sources: Mutex<Sources>,
    /// Notified when the settings are replaced: the interval may have changed.
    replaced: Notify,
    clock: Clock,
}

/// The settings in use, and the state of their files when they were loaded.
#[derive(Debug)]
struct Sources {
    settings: TlsSettings,
    seen: Vec<Option<Stamp>>,
    rotated: SystemTime,
    /// The folder of the self-signed certificate, if it is used and must be renewed.
    self_signed: Option<PathBuf>,
}

/// Why certificates or ticket keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is not the expected PEM.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// The fault of the file.
        reason: String,
    },
    /// The certificate and the key are not a pair.
    #[error("{certificate} and {key} {}", pair_fault(reason))]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// The error of rustls.
        reason: rustls::Error,
    },
    /// The key belongs to another certificate of the chain than the first.
    #[error(
        "{certificate}: the certificate of {key} is not the first one in the file: put it before those of the authorities"
    )]
    Order {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The index of the default certificate is beyond the list.
    #[error(
        "tls.default_certificate is {index}, but there are {count} certificates, counted from 0"
    )]
    Default {
        /// The index in the settings, from zero.
        index: usize,
        /// The number of certificates.
        count: usize,
    },
    /// The self-signed certificate could not be generated.
    #[error("cannot generate a self-signed certificate: {0}")]
    SelfSigned(String),
}

fn pair_fault(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InconsistentKeys(_) => {
            "do not match: name the key that this certificate was made for".into()
        }
        error => format!("cannot be used: {error}"),
    }
}

impl TlsState {
    /// Loads the files of the settings. Without certificates, a self-signed one for `localhost` is generated
    /// in `data_dir`, unless it is there.
    pub(crate) fn load(
        settings: &TlsSettings,
        data_dir: &Path,
        clock: &Clock,
    ) -> Result<Arc<Self>, TlsError> {
        let (settings, self_signed) = with_a_certificate(settings, data_dir, clock.now())?;
        let seen = stamps(&settings);
        let certificates = Arc::new(CertificatesBySni::new(Certificates::load(&settings)?));
        let tickets = Arc::new(Tickets::load(&settings.ticket_keys)?);
        let config = server_config(&settings, certificates.clone(), tickets.clone());
        let config = ArcSwap::from_pointee(config);
        let sources = Sources { settings, seen, rotated: clock.now(), self_signed };
        let (sources, clock) = (Mutex::new(sources), clock.clone());
        let replaced = Notify::new();
        Ok(Arc::new(Self { config, certificates, tickets, sources, replaced, clock }))
    }

    /// Reads all files again. On an error, the old certificates and keys stay in use.
    pub(crate) fn reload(&self) -> Result<(), TlsError> {
        let mut sources = self.lock();
        let seen = stamps(&sources.settings);
        let result = self.load_again(&sources.settings);
        // An invalid file is read again when it changes, not at each check.
        sources.seen = seen;
        result
    }

    /// Replaces certificates, ticket keys and the oldest version, for a reloaded configuration. Open
    /// connections are not affected.
    pub(crate) fn replace(&self, settings: &TlsSettings, data_dir: &Path) -> Result<(), TlsError> {
        let (settings, self_signed) = with_a_certificate(settings, data_dir, self.clock.now())?;
        let mut sources = self.lock();
        let seen = stamps(&settings);
        if settings.ticket_keys != sources.settings.ticket_keys {
            let tickets = Tickets::load(&settings.ticket_keys)?;
            self.certificates.swap(Certificates::load(&settings)?);
            self.tickets.take_over(tickets);
        } else {
            self.load_again(&settings)?;
        }
        if settings.version_min != sources.settings.version_min {
            let (certificates, tickets) = (self.certificates.clone(), self.tickets.clone());
            self.config.store(Arc::new(server_config(&settings, certificates, tickets)));
        }
        (sources.settings, sources.seen, sources.self_signed) = (settings, seen, self_signed);
        self.replaced.notify_one();
        Ok(())
    }

    /// Reloads if a file has changed, renews the self-signed certificate before it expires, and rotates
    /// generated ticket keys when they are due. `Ok(true)`: files were loaded. Reads files, so it must not run
    /// on a worker.
    pub(crate) fn keep_current(&self, now: SystemTime) -> Result<bool, TlsError> {
        let changed = {
            let mut sources = self.lock();
            if let TicketKeys::Generated { rotate_every } = sources.settings.ticket_keys
                && now.duration_since(sources.rotated).is_ok_and(|age| age >= rotate_every)
            {
                self.tickets.rotate();
                sources.rotated = now;
            }
            if let Some(folder) = &sources.self_signed {
                self_signed_in(folder, SELF_SIGNED_NAMES, now)?;
            }
            stamps(&sources.settings) != sources.seen
        };
        if changed {
            self.reload()?;
        }
        Ok(changed)
    }

    /// Calls [`TlsState::keep_current`] once in each [`TlsSettings::reload_interval`], without end. For the
    /// background runtime.
    pub(crate) async fn watch(self: Arc<Self>) {
        loop {
            let interval = self.lock().settings.reload_interval;
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                () = self.replaced.notified() => continue,
            }
            let state = self.clone();
            let checked = tokio::task::spawn_blocking(move || state.check_files()).await;
            if checked.is_err() {
                tracing::error!("the check of the certificate files panicked");
            }
        }
    }

    fn check_files(&self) {
        match self.keep_current(self.clock.now()) {
            Ok(true) => tracing::info!("certificates and ticket keys reloaded"),
            Ok(false) => {}
            Err(error) => {
                // A self-signed certificate that cannot be renewed fails in each interval.
                let message = "certificates cannot be reloaded, the old ones stay in use";
                let notice = Notice { is_error: true, ..Notice::warning(message, "", "") };
                notices::note(&notice, format_args!("{error}"));
            }
        }
    }

    /// The files of certificates, and when these end.
    pub(crate) fn certificate_ends(&self) -> Vec<(PathBuf, SystemTime)> {
        self.certificates.ends()
    }

    /// The names that the host of each request is checked against; `None` if it is not checked.
    pub(super) fn names(&self) -> Option<Arc<CertificateNames>> {
        self.certificates.names()
    }

    /// The configuration for handshakes.
    pub(super) fn config(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }

    fn load_again(&self, settings: &TlsSettings) -> Result<(), TlsError> {
        let certificates = Certificates::load(settings)?;
        if let TicketKeys::File { .. } = settings.ticket_keys {
            self.tickets.take_over(Tickets::load(&settings.ticket_keys)?);
        }
        self.certificates.swap(certificates);
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn server_config(
    settings: &TlsSettings,
    certificates: Arc<CertificatesBySni>,
    tickets: Arc<Tickets>,
) -> ServerConfig {
    let versions: &[&rustls::SupportedProtocolVersion] = match settings.version_min {
        TlsVersion::V1_2 => &[&rustls::version::TLS13, &rustls::version::TLS12],
        TlsVersion::V1_3 => &[&rustls::version::TLS13],
    };
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("the provider's suites cover both versions")
        .with_no_client_auth()
        .with_cert_resolver(certificates);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = tickets;
    config
}

/// The settings with a self-signed certificate where they have none, and the folder that it is in.
fn with_a_certificate(
    settings: &TlsSettings,
    data_dir: &Path,
    now: SystemTime,
) -> Result<(TlsSettings, Option<PathBuf>), TlsError> {
    let mut settings = settings.clone();
    if !settings.certificates.is_empty() {
        return Ok((settings, None));
    }
    let folder = data_dir.join("tls");
    settings.certificates.push(self_signed_in(&folder, SELF_SIGNED_NAMES, now)?);
    settings.default_certificate = 0;
    Ok((settings, Some(folder)))
}

/// A certificate whose files can be used.
pub(crate) struct CheckedCertificate {
    /// The names in it, or those that the configuration gives it.
    pub names: Vec<String>,
    /// From when until when it is valid. `None`: its dates cannot be read.
    pub validity: Option<(SystemTime, SystemTime)>,
}

/// Reads a certificate and its key as [`TlsState::load`] does.
///
/// # Errors
/// The file that cannot be used, or that the two are no pair.
pub(crate) fn check_certificate(files: &CertificateFiles) -> Result<CheckedCertificate, TlsError> {
    let certified = load_pair(files)?;
    let names = names_of(files, &certified)?;
    let first = certified.cert.first();
    Ok(CheckedCertificate { names, validity: first.and_then(|first| pem::validity(first)) })
}

/// Reads a file of ticket keys as [`TlsState::load`] does.
///
/// # Errors
/// Why it cannot be used, with the line.
pub(crate) fn check_ticket_keys(keys: &TicketKeys) -> Result<(), TlsError> {
    Tickets::load(keys).map(drop)
}

fn stamps(settings: &TlsSettings) -> Vec<Option<Stamp>> {
    let tickets = match &settings.ticket_keys {
        TicketKeys::File { path, .. } => Some(path),
        TicketKeys::Generated { .. } => None,
    };
    let pairs = settings.certificates.iter().flat_map(|files| [&files.certificate, &files.key]);
    pairs.chain(tickets).map(|path| Stamp::of(path)).collect()
}

const SELF_SIGNED_NAMES: &[&str] = &["localhost"];
