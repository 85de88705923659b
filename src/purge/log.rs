//! The purge log's file and the one thread that writes it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};

use tokio::sync::{mpsc, oneshot};

use super::Purges;
use super::frame::{self, LogEnd, LogEntry};
use super::table::TableScope;
use super::unread::PurgeId;
use crate::metrics::{Metric, Recorder};

/// The content of a log at the start of the node.
#[derive(Debug, Default)]
pub(super) struct LogContent {
    /// `None`: a new log is created, without knowledge of responses stored before.
    pub lineage: Option<u64>,
    pub entries: Vec<LogEntry>,
    /// The length of the valid part of the file.
    pub valid_bytes: u64,
    torn_bytes: u64,
    damaged: Option<PathBuf>,
}

impl LogContent {
    /// Logs and counts what was wrong with the log.
    pub(super) fn report(&self, recorder: &Recorder) {
        if self.torn_bytes > 0 {
            recorder.add(Metric::PurgeLogTornBytes, self.torn_bytes);
            tracing::warn!(bytes = self.torn_bytes, "the purge log's last write was cut short");
        }
        if let Some(kept) = &self.damaged {
            recorder.count(Metric::PurgeLogDamaged);
            tracing::error!(
                kept = %kept.display(),
                "the purge log is damaged: everything stored must be validated before use"
            );
        }
    }
}

/// Entries to write to the log, and the channel that receives the result.
pub(super) struct Commit {
    pub entries: Vec<LogEntry>,
    /// Purges that are not unread any more once the entries are on disk.
    pub read: Vec<PurgeId>,
    /// The place of the last delivery among the entries; 0: there is none.
    pub delivered: u64,
    pub done: oneshot::Sender<Result<(), Arc<str>>>,
}

/// Writes batches, with one fsync for all that are waiting.
pub(super) struct Log {
    directory: PathBuf,
    file: File,
    /// Where the next frame is written.
    offset: u64,
    snapshot_bytes: u64,
    grow_bytes: u64,
    /// A write failed: the content of the file after `offset` is unknown.
    suspect: bool,
    purges: Weak<Purges>,
}

impl Log {
    /// Reads the log in `directory`. A damaged one is renamed and kept.
    pub(super) fn read(directory: &Path) -> io::Result<LogContent> {
        let path = directory.join(NAME);
        let mut bytes = Vec::new();
        match File::open(&path) {
            Ok(mut file) => file.read_to_end(&mut bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(LogContent::default());
            }
            Err(error) => return Err(error),
        };
        let mut entries = Vec::new();
        let lineage = frame::read_file_header(&bytes);
        let (valid_bytes, end) = match lineage {
            Some(_) => frame::read_frames(&bytes, |entry| entries.push(entry)),
            None => (0, LogEnd::Damaged { at: 0 }),
        };
        Ok(match end {
            LogEnd::Whole => LogContent { lineage, entries, valid_bytes, ..LogContent::default() },
            LogEnd::Torn { bytes: torn_bytes } => {
                LogContent { lineage, entries, valid_bytes, torn_bytes, ..LogContent::default() }
            }
            LogEnd::Damaged { .. } => {
                let kept = directory.join(DAMAGED);
                std::fs::rename(&path, &kept)?;
                LogContent { entries, damaged: Some(kept), ..LogContent::default() }
            }
        })
    }

    /// Opens the log for writing after its valid part, or creates a new one, and writes the
    /// ceiling. The content of `purges` is durable when this returns.
    pub(super) fn open(
        directory: &Path,
        valid_bytes: u64,
        purges: &Arc<Purges>,
        grow_bytes: u64,
    ) -> io::Result<Self> {
        let path = directory.join(NAME);
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut log = Self {
            directory: directory.to_owned(),
            file,
            offset: valid_bytes,
            snapshot_bytes: 0,
            grow_bytes,
            suspect: false,
            purges: Arc::downgrade(purges),
        };
        if valid_bytes == 0 {
            log.write_snapshot(purges)?;
        } else {
            log.file.set_len(valid_bytes)?;
            let ceiling = purges.ceiling.load(Ordering::Acquire);
            log.append([&[LogEntry::Sequence(ceiling)][..]].into_iter())?;
        }
        Ok(log)
    }

    /// Runs until every sender is dropped.
    pub(super) fn run(mut self, mut commits: mpsc::Receiver<Commit>) {
        let mut group = Vec::new();
        while let Some(first) = commits.blocking_recv() {
            group.push(first);
            while group.len() < GROUP_MAX
                && let Ok(next) = commits.try_recv()
            {
                group.push(next);
            }
            let result = self.write(&mut group);
            for Commit { done, .. } in group.drain(..) {
                // The caller may have been dropped; its purge remains.
                let _ = done.send(result.clone());
            }
        }
    }

    fn write(&mut self, commits: &mut [Commit]) -> Result<(), Arc<str>> {
        let Some(purges) = self.purges.upgrade() else { return Ok(()) };
        // A wake-up's message may come here after the cursor that has passed its purge.
        let is_kept = |entry: &LogEntry| match entry {
            LogEntry::Outbox(number, _) => purges.bus().contains(*number),
            _ => true,
        };
        commits.iter_mut().for_each(|commit| commit.entries.retain(is_kept));
        let grown = self.offset > 2 * self.snapshot_bytes && self.offset > self.grow_bytes;
        let rewritten = match self.suspect || grown {
            true => self.write_snapshot(&purges),
            false => Ok(()),
        };
        let batches = commits.iter().map(|commit| &*commit.entries);
        let written = rewritten.and_then(|()| self.append(batches));
        purges.recorder.count(Metric::PurgeLogSyncs);
        if written.is_ok() {
            commits.iter().for_each(|commit| purges.remove_read(&commit.read));
            let delivered = commits.iter().map(|commit| commit.delivered).max();
            purges.deliveries.note_on_disk(delivered.unwrap_or_default());
        }
        written.map_err(|error| {
            self.suspect = true;
            purges.recorder.count(Metric::PurgeLogErrors);
            error.to_string().into()
        })
    }

    fn append<'a>(&mut self, batches: impl Iterator<Item = &'a [LogEntry]>) -> io::Result<()> {
        let mut bytes = Vec::new();
        for entries in batches {
            let offset = self.offset + bytes.len() as u64;
            frame::write_frame(&mut bytes, offset, entries);
        }
        self.file.write_all_at(&bytes, self.offset)?;
        self.file.sync_data()?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    /// Writes the whole table into a new file, and replaces the log with it.
    fn write_snapshot(&mut self, purges: &Purges) -> io::Result<()> {
        let path = self.directory.join(NEW);
        let file = File::create(&path)?;
        let mut out = Snapshot { file: io::BufWriter::new(file), offset: 0 };
        out.write_all(&frame::file_header(purges.lineage))?;
        out.frame(&first_entries(purges))?;
        // Before the table: no purge may count as taken whose scopes are not in it.
        let (deliveries, delivered) = purges.deliveries.kept().entries();
        deliveries.chunks(ENTRIES_AT_ONCE).try_for_each(|entries| out.frame(entries))?;
        let mut after = 0;
        loop {
            let entries = purges
                .table
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .entries_after(after, ENTRIES_AT_ONCE);
            let Some((last, ..)) = entries.last() else { break };
            after = *last;
            let entries: Vec<LogEntry> = entries
                .into_iter()
                .map(|(_, scope, latest)| LogEntry::Latest(scope, latest))
                .collect();
            out.frame(&entries)?;
        }
        // After the table: a message is kept before its purge is in force, until its cursor was on disk.
        let kept: Vec<LogEntry> = {
            let bus = purges.bus();
            bus.iter().map(|(number, message)| LogEntry::Outbox(number, message)).collect()
        };
        kept.chunks(ENTRIES_AT_ONCE).try_for_each(|entries| out.frame(entries))?;
        let offset = out.offset;
        let file = out.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        std::fs::rename(&path, self.directory.join(NAME))?;
        File::open(&self.directory)?.sync_all()?;
        self.file = file;
        self.offset = offset;
        self.snapshot_bytes = offset;
        self.suspect = false;
        purges.deliveries.note_on_disk(delivered);
        Ok(())
    }
}

/// The entries of a snapshot before those of the table.
fn first_entries(purges: &Purges) -> Vec<LogEntry> {
    let mut entries = vec![LogEntry::Sequence(purges.ceiling.load(Ordering::Acquire))];
    {
        let table = purges.table.read().unwrap_or_else(PoisonError::into_inner);
        entries.push(LogEntry::Horizon(table.horizon()));
        entries.extend(
            table.latest(&TableScope::All).map(|latest| LogEntry::Latest(TableScope::All, latest)),
        );
    }
    let bus = purges.bus();
    entries.extend(bus.cursor.clone().map(LogEntry::Cursor));
    entries
}

struct Snapshot {
    file: io::BufWriter<File>,
    offset: u64,
}

impl Snapshot {
    fn frame(&mut self, entries: &[LogEntry]) -> io::Result<()> {
        let mut bytes = Vec::new();
        frame::write_frame(&mut bytes, self.offset, entries);
        self.write_all(&bytes)
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.offset += bytes.len() as u64;
        self.file.write_all(bytes)
    }
}

const NAME: &str = "purge.log";
const NEW: &str = "purge.log.new";
const DAMAGED: &str = "purge.log.damaged";
/// Batches written with one fsync.
const GROUP_MAX: usize = 1024;
/// Entries read under one lock, and written as one frame.
const ENTRIES_AT_ONCE: usize = 4096;
