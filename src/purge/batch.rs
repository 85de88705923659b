//! Batches of purges, and what becomes of them.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::position::BusCursor;
use super::unread::PurgeId;
use crate::cache::{PurgeKind, PurgeScope, PurgeSequence};

/// Purges that take effect together, with data of the bus that becomes durable with them.
#[derive(Clone, Debug, Default)]
pub(crate) struct PurgeBatch {
    /// The purged scopes, and how they are purged.
    pub purges: Vec<(PurgeScope, PurgeKind)>,
    /// The records of the bus that `purges` come from, in their order. They are unread until a cursor has
    /// passed them.
    pub records: Vec<RecordPart>,
    /// The bus' cursor after these purges.
    pub cursor: Option<BusCursor>,
    /// The records that this node delivers to its peers, which `purges` come from, in their order.
    pub deliveries: Vec<DeliveryPart>,
    /// The peer that has delivered these purges.
    pub sender: Option<DeliverySender>,
}

impl PurgeBatch {
    /// Whether this node orders these purges, and may refuse them. It applies those of other nodes whatever its own
    /// limits are: they are in force elsewhere.
    pub(super) fn is_ordered_here(&self) -> bool {
        let is_of_other_node = |record: &RecordPart| !record.is_own;
        let has_come = self.cursor.is_some()
            || self.sender.is_some()
            || self.records.iter().any(is_of_other_node);
        !has_come
    }
}

/// A record in a batch that this node delivers to its peers.
#[derive(Clone, Debug)]
pub(crate) struct DeliveryPart {
    /// Its id.
    pub id: PurgeId,
    /// How many of the batch's purges it has, at least one.
    pub count: usize,
    /// The record.
    pub message: Bytes,
    /// Whether it purges everything.
    pub is_of_everything: bool,
}

/// A peer whose deliveries this node takes.
#[derive(Clone, Debug)]
pub(crate) struct DeliverySender {
    /// Its name.
    pub name: Arc<str>,
    /// How far this node has taken its deliveries.
    pub position: SenderPosition,
}

/// A position in the deliveries of another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SenderPosition {
    /// The lineage of that node's purge log.
    pub lineage: u64,
    /// The place of the last delivery, which is a purge sequence of that node.
    pub place: u64,
}

/// A record of the bus in a batch.
#[derive(Clone, Debug)]
pub(crate) struct RecordPart {
    /// Its id.
    pub id: PurgeId,
    /// How many of the batch's purges it has.
    pub count: usize,
    /// Whether this node ordered it, and must publish it.
    pub is_own: bool,
    /// The record, kept until the stream has brought it. `None`: this batch comes from the stream.
    pub message: Option<Bytes>,
}

/// The result of a purge batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Purged {
    /// The sequence of the last purge; the current sequence if the batch had no purges.
    pub sequence: PurgeSequence,
    /// Older purges that became one soft purge of everything, because the table was full.
    pub widened: usize,
}

/// A batch that is applied but not yet durable.
#[derive(Debug)]
pub(crate) struct InForce {
    pub(super) purged: Purged,
    pub(super) written: oneshot::Receiver<Result<(), Arc<str>>>,
}

impl InForce {
    /// Waits until the batch is on disk. All earlier batches are then on disk as well: the log is written
    /// in order, and after an error it is rewritten from the whole table.
    ///
    /// # Errors
    /// [`PurgeError::NotDurable`] if the log could not be written.
    pub(crate) async fn durable(self) -> Result<Purged, PurgeError> {
        let Self { purged, written } = self;
        let sequence = purged.sequence;
        let written = written.await.unwrap_or_else(|_| Err(ENDED.into()));
        written.map(|()| purged).map_err(|reason| PurgeError::NotDurable { sequence, reason })
    }
}

/// Why a purge was refused, or is not durable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PurgeError {
    /// A scope is longer than `purge_scope_bytes_max`. Nothing was purged.
    #[error("a purge's scope has {length} bytes, {limit} are allowed")]
    ScopeTooLong {
        /// Its length in bytes.
        length: usize,
        /// `purge_scope_bytes_max`.
        limit: usize,
    },
    /// The outbox has no space for the message. Nothing was purged.
    #[error(
        "nothing was purged: the outbox is full, {messages} purges of {bytes} bytes wait for the bus (store.outbox_entries_max, store.outbox_max)"
    )]
    OutboxFull {
        /// Number of messages in the outbox.
        messages: usize,
        /// Their total length in bytes.
        bytes: usize,
    },
    /// The purge is applied until the node stops, but may be lost afterwards.
    #[error(
        "the purge is in force on this node until it restarts, but cannot be written to the purge log (node.data_directory): {reason}; free space, then purge again (purge sequence {})",
        sequence.0
    )]
    NotDurable {
        /// The last purge's sequence.
        sequence: PurgeSequence,
        /// The error of the file system.
        reason: Arc<str>,
    },
}

/// Why the purge log could not be opened. Without the log, purged responses on disk could be served, so
/// the node does not start.
#[derive(Debug, thiserror::Error)]
pub enum PurgeLogError {
    /// Another process holds the directory.
    #[error(
        "the purge log in {} is in use by another skerry process: stop it, or give this node its own directory (node.data_directory)",
        path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The log could not be read or written.
    #[error(
        "the purge log in {} cannot be used: {source}; free space there or correct its permissions, or choose another node.data_directory",
        path.display()
    )]
    Log {
        /// Its directory.
        path: PathBuf,
        /// The error of the file system.
        source: std::io::Error,
    },
}

/// The reason for an error after the log thread has ended.
pub(super) const ENDED: &str = "the purge log has ended";
