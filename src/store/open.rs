//! Opening a store: the locks of its directories, its background tasks and its gauges.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::runtime::Handle;
use tokio::sync::watch;

use super::body_bytes::BodyBytes;
use super::disk::{Disk, DiskContext};
use super::disks::Disks;
use super::layout;
use super::piece::Piece;
use super::piece_key::ObjectIds;
use super::record::Record;
use super::settings::Settings;
use super::sites::Sites;
use super::stat::Gauges;
use super::tiers::{self, Tiers};
use super::{Objects, Store};
use crate::lock::lock;
use crate::metrics::Metrics;
use crate::purge::Purges;

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The settings are invalid.
    #[error("{}", mistakes.join("; "))]
    Settings {
        /// All mistakes in them, each an error message.
        mistakes: Vec<String>,
    },
    /// Another process has locked the directory.
    #[error(
        "store directory {} is in use by another skerry process: stop it, or give this node its own directory",
        path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
}

impl Store {
    /// Opens the store: locks the directories, then reads their indexes on `background` while the
    /// store is used, see [`Store::recovered`]. A directory that fails is out of service until it
    /// works again. `purges` decides whether stored responses may be used.
    ///
    /// # Errors
    /// The settings are invalid, or another process uses a directory.
    pub(crate) async fn open(
        settings: &Settings,
        purges: Arc<Purges>,
        metrics: &Arc<Metrics>,
        background: Handle,
    ) -> Result<Self, OpenError> {
        let mistakes = settings.mistakes();
        if !mistakes.is_empty() {
            let mistakes = mistakes.into_iter().map(|(_, message)| message).collect();
            return Err(OpenError::Settings { mistakes });
        }
        let recorder = metrics.background();
        raise_open_files();
        let mut locks = take_locks(settings)?;
        let sites = Arc::new(Sites::new(settings));
        let body_bytes = Arc::new(BodyBytes::default());
        let context = DiskContext {
            purges: purges.clone(),
            body_bytes: body_bytes.clone(),
            background: background.clone(),
            recorder: recorder.clone(),
        };
        let disks = Disks::new(settings, &mut locks, &sites, &context);
        let tiers = Tiers::new(settings, disks, sites, body_bytes, (background, recorder));
        let objects = Objects {
            purges,
            ids: ObjectIds::new(),
            newest: Mutex::default(),
            recovering: watch::Sender::new(settings.directories.len()),
        };
        let store = Self { tiers: Arc::new(tiers), objects: Arc::new(objects) };
        let background = &store.tiers.background;
        background.spawn(tiers::count_sites(Arc::downgrade(&store.tiers)));
        background.spawn(tiers::resize_memory(Arc::downgrade(&store.tiers)));
        metrics.register_collector(Box::new(store.gauges()));
        for disk in store.tiers.disks.iter() {
            background.spawn(store.clone().recover(disk.clone()));
        }
        Ok(store)
    }

    /// Waits until the index of every directory was read, or the directory found not to work. Until
    /// then the pieces of a directory are misses.
    pub(crate) async fn recovered(&self) {
        let mut recovering = self.objects.recovering.subscribe();
        recovering.wait_for(|left| *left == 0).await.expect("the store keeps the sender");
    }

    /// Reads the index of a directory, and writes the pieces that were stored meanwhile in place of
    /// those that it has.
    async fn recover(self, disk: Arc<Disk>) {
        for key in disk.recover().await {
            let entry = self.tiers.memory.get(&key);
            match entry.as_ref().map(|entry| entry.value()) {
                Some(Piece::Record(Record::Response(head))) => self.tiers.queue_head(head),
                Some(piece @ Piece::Record(Record::Variants(_))) => {
                    self.tiers.disks.offer(key, piece.share());
                }
                _ => {}
            }
        }
        self.objects.recovering.send_modify(|left| *left -= 1);
    }

    fn gauges(&self) -> Gauges {
        let (tiers, objects) = (Arc::downgrade(&self.tiers), Arc::downgrade(&self.objects));
        Gauges(Box::new(move || {
            let store = Self { tiers: tiers.upgrade()?, objects: objects.upgrade()? };
            Some(store.stat())
        }))
    }
}

/// Locks all directories. A directory that another process has locked is an error; one whose lock
/// file cannot be created is retried later.
fn take_locks(settings: &Settings) -> Result<BTreeMap<PathBuf, File>, OpenError> {
    let mut locks = BTreeMap::new();
    for path in settings.directories.iter().map(|directory| &directory.path) {
        match lock(path, layout::LOCK) {
            Ok(lock) => drop(locks.insert(path.clone(), lock)),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                return Err(OpenError::InUse { path: path.clone() });
            }
            Err(error) => {
                tracing::error!(directory = %path.display(), %error, "cannot lock a store directory")
            }
        }
    }
    Ok(locks)
}

/// Raises the limit of open files to its maximum; connections need most of them.
fn raise_open_files() {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit of open files (RLIMIT_NOFILE)");
    }
}
