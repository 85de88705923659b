//! The queue of one directory, and the task that writes it in batches.

use std::io;
use std::sync::Weak;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::super::blocks::{Blocks, ENTRY_START, NewEntry, SLOT_BYTES};
use super::super::piece::Piece;
use super::super::piece_key::PieceKey;
use super::links::link;
use super::pending::Pending;
use super::{Disk, WriteJob};
use crate::metrics::Metric;
use crate::notices::{self, Notice};

impl Disk {
    /// Reserves space in the queue. `None` once the store is closed.
    pub(crate) async fn queue_space(&self, piece: &Piece) -> Option<OwnedSemaphorePermit> {
        self.queue_space.clone().acquire_many_owned(self.queued_bytes(piece)).await.ok()
    }

    /// Reserves space in the queue, if there is some at once.
    pub(crate) fn queue_space_now(&self, piece: &Piece) -> Option<OwnedSemaphorePermit> {
        self.queue_space.clone().try_acquire_many_owned(self.queued_bytes(piece)).ok()
    }

    /// All space of the queue: no job is in it, nor can enter it. `None` once the store is closed.
    pub(crate) async fn all_queue_space(&self) -> Option<OwnedSemaphorePermit> {
        self.queue_space.clone().acquire_many_owned(self.queue_bytes).await.ok()
    }

    fn queued_bytes(&self, piece: &Piece) -> u32 {
        let bytes = u32::try_from(piece.encoded_bytes() + PIECE_OVERHEAD).unwrap_or(u32::MAX);
        bytes.min(self.queue_bytes)
    }

    /// Adds a piece that was announced to the queue. Returns `false`, and counts it as dropped, if the queue is full.
    pub(crate) fn send(&self, job: WriteJob) -> bool {
        let sent = self.queue.try_send(job);
        if let Err(TrySendError::Full(job) | TrySendError::Closed(job)) = &sent {
            self.give_up(&job.key, &job.piece, Metric::StoreDiskDropped);
        }
        sent.is_ok()
    }

    /// Writes one batch, and tells each job whether its piece is on disk.
    async fn write_batch(&self, batch: Vec<WriteJob>) {
        let batch = self.without_superseded(batch);
        let blocks = self.readable().filter(|_| self.is_writable());
        let Some(blocks) = blocks else {
            self.not_written(batch);
            return;
        };
        let pieces: Vec<_> = batch.iter().map(|job| (job.key, job.piece.share())).collect();
        let (writer, pending) = (blocks.clone(), self.pending.clone());
        let writing = self
            .context
            .background
            .spawn_blocking(move || write_pieces(&writer, &pieces, &pending));
        let written = tokio::time::timeout(self.deadline, writing).await;
        match written {
            Ok(Ok(Ok(bytes))) => drop(self.written_bytes.fetch_add(bytes, Ordering::Relaxed)),
            Ok(Ok(Err(error))) => log_failure(&error, batch.len()),
            Ok(Err(panicked)) => log_failure(&panicked, batch.len()),
            Err(_) => {
                self.take_out("a write took longer than the deadline");
                self.not_written(batch);
                return;
            }
        }
        self.end_jobs(batch, &blocks);
        self.log_space(&blocks);
    }

    /// Ends the jobs of a batch whose write has returned.
    fn end_jobs(&self, batch: Vec<WriteJob>, blocks: &Blocks) {
        let (mut written, mut failed) = (0, 0);
        for job in batch {
            let is_in_index = blocks.locate(job.key.index_hash()).is_some();
            // Otherwise a newer record was announced during the write, or it was forgotten.
            let is_newest = self.pending.is_newest(&job.key, &job.piece);
            if is_newest && is_in_index {
                written += 1;
                self.pending.end_job(&job.key, &job.piece);
                self.written(job);
            } else {
                failed += self.not_written([job]);
            }
        }
        self.context.recorder.add(Metric::StoreDiskWrites, written);
        if failed > 0 {
            self.stop_writing();
        }
    }

    /// The jobs without those in whose place newer ones were announced, or that were forgotten.
    fn without_superseded(&self, batch: Vec<WriteJob>) -> Vec<WriteJob> {
        let is_current = |job: &WriteJob| self.pending.is_newest(&job.key, &job.piece);
        let (current, superseded): (_, Vec<_>) = batch.into_iter().partition(is_current);
        self.not_written(superseded);
        current
    }

    fn written(&self, job: WriteJob) {
        if let Some(site) = &job.site {
            let bytes = bytes_on_disk(&job.piece);
            site.written(u64::from(bytes), &job.key);
            self.census.add(job.key, &site.name, bytes);
        }
        job.done.map(|done| done.send(true));
    }

    /// Returns how many of the pieces were given up.
    fn not_written(&self, jobs: impl IntoIterator<Item = WriteJob>) -> usize {
        let mut given_up = 0;
        for job in jobs {
            given_up += usize::from(self.give_up(&job.key, &job.piece, Metric::StoreDiskDropped));
            job.done.map(|done| done.send(false));
        }
        given_up
    }
}

/// Writes the queue in batches for as long as the disk exists.
pub(super) async fn write_jobs(disk: Weak<Disk>, mut jobs: mpsc::Receiver<WriteJob>) {
    while let Some(job) = jobs.recv().await {
        let Some(disk) = disk.upgrade() else { return };
        let mut bytes = job.piece.encoded_bytes() + PIECE_OVERHEAD;
        let mut batch = vec![job];
        while bytes < BATCH_BYTES && batch.len() < BATCH_PIECES {
            let Ok(job) = jobs.try_recv() else { break };
            bytes += job.piece.encoded_bytes() + PIECE_OVERHEAD;
            batch.push(job);
        }
        disk.write_batch(batch).await;
    }
}

/// Writes pieces and returns the number of bytes written. Forms come last: a form can only be linked to a source that is
/// in the index.
fn write_pieces(
    blocks: &Blocks,
    pieces: &[(PieceKey, Piece)],
    pending: &Pending,
) -> io::Result<u64> {
    let is_newest = |entry: &NewEntry<'_>| pending.is_newest(entry.key, entry.piece);
    let (mut forms, mut others) = (Vec::new(), Vec::new());
    for (key, piece) in pieces {
        let entries = if piece.as_form().is_some() { &mut forms } else { &mut others };
        entries.push(NewEntry { hash: key.index_hash(), key, piece });
    }
    let written = blocks.write(&others, is_newest)?;
    forms.iter().filter_map(|entry| entry.piece.as_form()).for_each(|form| link(blocks, form));
    Ok(written + blocks.write(&forms, is_newest)?)
}

fn log_failure(error: &dyn std::error::Error, pieces: usize) {
    let notice = Notice::warning("a batch of stored pieces was not written", "", "");
    notices::note(&notice, format_args!("{error}; {pieces} pieces"));
}

/// Bytes of an entry and its slot.
fn bytes_on_disk(piece: &Piece) -> u32 {
    let bytes = piece.encoded_bytes() + ENTRY_START + SLOT_BYTES;
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

const BATCH_BYTES: usize = 4 << 20;
const BATCH_PIECES: usize = 512;
/// Counted for each queued piece beside its bytes; bounds the number of small ones.
const PIECE_OVERHEAD: usize = 512;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::super::record::Record;
    use super::super::super::tests::{head, on_disk, open};
    use super::*;
    use crate::cache::PurgeSequence;

    #[tokio::test]
    async fn a_record_that_is_announced_again_during_its_write_gets_to_disk() {
        let directory = tempfile::tempdir().unwrap();
        let here = open(&on_disk(directory.path())).await;
        let disk = here.tiers.disks.directory(0);
        let head = Arc::new(head("https://a/1", PurgeSequence(0), 1));
        let (key, record) = (PieceKey::head(head.hash()), Piece::Record(Record::Response(head)));
        let job = async || {
            let _space = disk.queue_space(&record).await.unwrap();
            WriteJob { key, piece: record.share(), site: None, _space, done: None }
        };
        disk.announce(key, record.share());
        let first = job().await;
        let blocks = disk.readable().unwrap();
        write_pieces(&blocks, &[(key, record.share())], &disk.pending).unwrap();
        // Memory is emptied into the queue.
        disk.announce(key, record.share());
        disk.end_jobs(vec![first], &blocks);
        assert!(disk.is_writable(), "no write has failed");
        disk.write_batch(vec![job().await]).await;
        assert!(blocks.locate(key.index_hash()).is_some());
        assert!(!disk.has_pending(&key));
    }
}
