//! All store directories: the one directory that each piece belongs to, and what each site has there.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::disk::{Disk, DiskContext, WriteJob};
use super::loads::LoadResult;
use super::piece::Piece;
use super::piece_key::PieceKey;
use super::settings::Settings;
use super::sites::{DiskUsage, Site, Sites};
use super::stat::DirectoryStat;
use crate::cache::PurgeSequence;
use crate::metrics::Metric;

/// All directories.
#[derive(Clone)]
pub(super) struct Disks {
    disks: Arc<[Arc<Disk>]>,
    sites: Arc<Sites>,
}

impl Disks {
    /// All directories of the settings, not yet open: each needs [`Disk::recover`].
    pub(super) fn new(
        settings: &Settings,
        locks: &mut BTreeMap<PathBuf, File>,
        sites: &Arc<Sites>,
        context: &DiskContext,
    ) -> Self {
        let disks = settings.directories.iter().map(|directory| {
            Arc::new(Disk::new(settings, directory, locks.remove(&directory.path), context.clone()))
        });
        Self { disks: disks.collect(), sites: sites.clone() }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Disk>> {
        self.disks.iter()
    }

    /// The directory that the piece belongs to. Weighted rendezvous hashing: a new directory takes
    /// over its share of the pieces, and no other piece moves.
    fn home(&self, key: &PieceKey) -> Option<&Arc<Disk>> {
        match &*self.disks {
            [] => None,
            [only] => Some(only),
            several => {
                let score = |disk: &Disk| disk.rendezvous_score(key);
                several.iter().max_by(|a, b| score(a).total_cmp(&score(b)))
            }
        }
    }

    /// Whether the piece is probably on disk. Looks at the index only.
    pub(super) fn may_contain(&self, key: &PieceKey) -> bool {
        self.home(key).is_some_and(|disk| disk.may_contain(key))
    }

    /// The number of the newest entry under the key, unless what was stored at this sequence may be outdated. Looks at the
    /// index only.
    pub(super) fn trusted_entry(&self, key: &PieceKey, stored_at: PurgeSequence) -> Option<u64> {
        self.home(key)?.trusted_entry(key, stored_at)
    }

    /// Whether the disk has a piece under the key that a newer piece must replace. `false` while
    /// the index is being recovered: then [`Disk::recover`] returns the key.
    pub(super) fn has_older(&self, key: &PieceKey) -> bool {
        let Some(disk) = self.home(key) else { return false };
        !disk.supersede_while_recovering(key) && disk.may_contain(key)
    }

    /// Reads a piece. Must be called on the background runtime.
    pub(super) async fn read(&self, key: &PieceKey) -> LoadResult<Piece> {
        let Some(disk) = self.home(key) else { return Ok(None) };
        disk.read(key).await
    }

    /// Reads a piece from the page cache, on any thread.
    pub(super) fn read_cached(&self, key: &PieceKey) -> LoadResult<Piece> {
        let Some(disk) = self.home(key) else { return Ok(None) };
        disk.read_cached(key)
    }

    /// Announces a piece that will be written with [`Disks::write`]: from here on lookups find it, and no older one.
    pub(super) fn announce(&self, key: PieceKey, piece: Piece) {
        if let Some(disk) = self.home(&key) {
            disk.announce(key, piece);
        }
    }

    /// Queues a record that was announced, and waits for its write. Returns whether it was written: it is not if a newer one
    /// was announced meanwhile. Waits for space in the queue for at most the disk's deadline.
    pub(super) async fn write(&self, key: PieceKey, piece: Piece) -> bool {
        let (done, written) = oneshot::channel();
        self.enqueue(key, piece, Some(done)).await && written.await.unwrap_or(false)
    }

    /// Queues a piece; waits for space for at most the disk's deadline. Returns whether it was queued.
    pub(super) async fn queue(&self, key: PieceKey, piece: Piece) -> bool {
        self.announce(key, piece.share());
        self.enqueue(key, piece, None).await
    }

    async fn enqueue(
        &self,
        key: PieceKey,
        piece: Piece,
        done: Option<oneshot::Sender<bool>>,
    ) -> bool {
        let Some((disk, site)) = self.admit(&key, &piece) else { return false };
        // A recovery may take long: do not wait for it.
        let patience = if disk.is_recovering() { Duration::ZERO } else { disk.deadline() };
        let space = tokio::time::timeout(patience, disk.queue_space(&piece)).await;
        let Ok(Some(space)) = space else {
            disk.give_up(&key, &piece, Metric::StoreDiskDropped);
            return false;
        };
        disk.send(WriteJob { key, piece, site, _space: space, done })
    }

    /// Queues a piece if there is space at once. Returns whether it was queued.
    pub(super) fn offer(&self, key: PieceKey, piece: Piece) -> bool {
        self.announce(key, piece.share());
        let Some((disk, site)) = self.admit(&key, &piece) else { return false };
        match disk.queue_space_now(&piece) {
            Some(space) => disk.send(WriteJob { key, piece, site, _space: space, done: None }),
            None => {
                disk.give_up(&key, &piece, Metric::StoreDiskDropped);
                false
            }
        }
    }

    /// The directory that a piece may be written to, and the site that is charged for it.
    fn admit(&self, key: &PieceKey, piece: &Piece) -> Option<(&Arc<Disk>, Option<Arc<Site>>)> {
        let disk = self.home(key)?;
        let site = piece.site(&self.sites);
        if site.as_ref().is_some_and(|site| site.is_disk_full()) {
            disk.give_up(key, piece, Metric::StoreDiskOverShare);
            return None;
        }
        if !disk.takes_jobs() || piece.encoded_bytes() > disk.block_bytes() / 2 {
            disk.give_up(key, piece, Metric::StoreDiskDropped);
            return None;
        }
        Some((disk, site))
    }

    /// Updates each site's usage of the disks. `save`: also saves the samples for the next start.
    pub(super) async fn count_sites(&self, save: bool) {
        let mut usage = DiskUsage::new();
        for disk in self.iter() {
            disk.count_sites(&mut usage);
        }
        self.sites.set_on_disk(&usage);
        for disk in self.iter().filter(|disk| save && disk.is_writable()) {
            disk.save_census_in_time().await;
        }
    }

    /// Removes a piece from the index. It may reappear after a restart.
    pub(super) fn forget(&self, key: &PieceKey) {
        if let Some(disk) = self.home(key) {
            disk.forget(key);
        }
    }

    /// Writes the queued pieces and releases the directories.
    pub(super) async fn close(&self) {
        for disk in &*self.disks {
            disk.close().await;
        }
    }

    pub(super) fn stat(&self) -> Vec<DirectoryStat> {
        self.disks.iter().map(|disk| disk.stat()).collect()
    }

    #[cfg(test)]
    pub(super) fn directory(&self, number: usize) -> &Arc<Disk> {
        &self.disks[number]
    }

    /// Holds up the writer of a directory for as long as the test keeps what it gets.
    #[cfg(test)]
    pub(super) async fn hold(&self, number: usize) -> tokio::sync::OwnedSemaphorePermit {
        self.disks[number].all_queue_space().await.expect("the store is open")
    }

    #[cfg(test)]
    pub(super) fn has_pending(&self, number: usize, key: &PieceKey) -> bool {
        self.disks[number].has_pending(key)
    }

    #[cfg(test)]
    pub(super) fn fail(&self, number: usize) {
        self.disks[number].take_out("taken out by a test");
    }

    #[cfg(test)]
    pub(super) async fn try_again(&self, number: usize) {
        self.disks[number].try_again().await;
    }
}
