//! Opening a directory, taking it out of service, and retrying it.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use super::super::blocks::Blocks;
use super::super::layout;
use super::super::space::bytes_text;
use super::Disk;
use crate::lock::lock;
use crate::metrics::Metric;

impl Disk {
    /// Takes the lock, allocates space, reads the index.
    pub(super) async fn open(self: &Arc<Self>) -> io::Result<Arc<Blocks>> {
        let disk = self.clone();
        // Takes too long for a thread of the runtime.
        let opening = self.context.background.spawn_blocking(move || disk.open_blocking());
        opening.await.map_err(io::Error::other)?
    }

    fn open_blocking(&self) -> io::Result<Arc<Blocks>> {
        layout::prepare(&self.directory.path)?;
        self.take_lock()?;
        let (path, bytes) = (layout::data_file(&self.directory.path), self.directory.bytes);
        let blocks = Blocks::open(&path, bytes, self.block_bytes() as u64, self.reserve)?;
        if self.preallocate {
            // The file grows as far as there is space; a lack of space is logged below.
            let _ = blocks.grow(blocks.count());
        }
        self.log_space(&blocks);
        Ok(Arc::new(blocks))
    }

    fn take_lock(&self) -> io::Result<()> {
        let mut current = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if current.is_none() {
            *current = Some(lock(&self.directory.path, layout::LOCK)?);
        }
        Ok(())
    }

    /// Logs once that the directory cannot grow, and once that it can again.
    pub(super) fn log_space(&self, blocks: &Blocks) {
        let is_short = blocks.is_short();
        if self.logged_short.swap(is_short, Ordering::AcqRel) == is_short {
            return;
        }
        let directory = self.directory.path.display();
        let (now, max) = (bytes_text(blocks.usable_bytes()), bytes_text(self.directory.bytes));
        if is_short {
            self.count(Metric::StoreDiskShort);
            tracing::warn!(
                %directory,
                "a store directory cannot grow: {now} of {max} allocated, its file system has no free space beyond store.disk_reserve; \
                 the cache keeps serving and grows when there is space"
            );
        } else {
            tracing::info!(%directory, "a store directory grows again: {now} of {max} allocated");
        }
    }

    /// Tries to grow a directory that could not grow before.
    async fn retry_growing(self: &Arc<Self>) {
        let Some(blocks) = self.readable().filter(|blocks| blocks.is_short()) else { return };
        let disk = self.clone();
        let growing = tokio::task::spawn_blocking(move || {
            let wanted = if disk.preallocate { blocks.count() } else { blocks.usable() + 1 };
            if blocks.grow(wanted).is_ok() {
                disk.log_space(&blocks);
            }
        });
        // If this hangs, so do reads and writes, which report it.
        let _ = tokio::time::timeout(self.deadline, growing).await;
    }

    /// Takes the directory out of service: neither reads nor writes.
    pub(crate) fn take_out(&self, reason: &str) {
        self.distrust_before.store(u64::MAX, Ordering::Release);
        if !self.out.swap(true, Ordering::AcqRel) || self.blocks.load().is_none() {
            self.count(Metric::StoreDiskOuts);
            tracing::error!(
                directory = %self.directory.path.display(),
                reason,
                retry_seconds = self.retry.as_secs_f32(),
                "a store directory is out of service"
            );
        }
    }

    /// Makes the directory read-only.
    pub(super) fn stop_writing(&self) {
        self.distrust_before.store(u64::MAX, Ordering::Release);
        if !self.read_only.swap(true, Ordering::AcqRel) {
            self.count(Metric::StoreDiskOuts);
            tracing::error!(
                directory = %self.directory.path.display(),
                retry_seconds = self.retry.as_secs_f32(),
                "cannot write to a store directory: it is read-only until a retry succeeds"
            );
        }
    }

    /// Puts a directory that is read-only or out of service back in service, if it works.
    pub(crate) async fn try_again(self: &Arc<Self>) {
        if self.is_writable() {
            return;
        }
        if !self.answers_probe().await {
            return;
        }
        // A write that still hangs may complete at any time.
        if self.blocks.load().as_ref().is_some_and(|blocks| !blocks.is_quiet()) {
            return;
        }
        // After a failed write the file may have been replaced or deleted: it is opened anew.
        if self.read_only.load(Ordering::Acquire) {
            self.out.store(true, Ordering::Release);
            self.blocks.store(None);
        }
        if self.blocks.load().is_none() {
            let Ok(blocks) = self.open().await else { return };
            self.blocks.store(Some(blocks));
        }
        // Newer versions of its heads were not written meanwhile.
        let now = self.context.purges.sequence().0;
        self.distrust_before.store(now, Ordering::Release);
        self.read_only.store(false, Ordering::Release);
        self.out.store(false, Ordering::Release);
        let directory = self.directory.path.display();
        tracing::info!(%directory, "a store directory is back in service");
    }

    /// Whether a file can be written and read. One probe at a time, because one that hangs keeps a
    /// thread.
    async fn answers_probe(self: &Arc<Self>) -> bool {
        if self.is_probing.swap(true, Ordering::AcqRel) {
            return false;
        }
        let disk = self.clone();
        let probing = tokio::task::spawn_blocking(move || {
            let works = layout::probe(&disk.directory.path).is_ok();
            disk.is_probing.store(false, Ordering::Release);
            works
        });
        matches!(tokio::time::timeout(self.deadline, probing).await, Ok(Ok(true)))
    }
}

/// Retries the directory once in every interval, for as long as the disk exists.
pub(super) async fn watch(disk: Weak<Disk>, every: Duration) {
    let mut ticks = tokio::time::interval(every);
    loop {
        ticks.tick().await;
        let Some(disk) = disk.upgrade() else { return };
        disk.try_again().await;
        disk.retry_growing().await;
    }
}
