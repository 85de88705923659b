//! What the operator may choose about the store.

use std::path::PathBuf;
use std::time::Duration;

use super::space::DiskReserve;

/// The store's settings, as shipped by `Default`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    /// Bytes that the memory tier may hold: bodies, fields, keys and bookkeeping.
    pub memory_bytes: u64,
    /// Where bodies and heads are kept on disk. Empty: memory only.
    pub directories: Vec<Directory>,
    /// The size of a slice. Bodies up to one slice live inside their head record. 4 KiB to
    /// 1 MiB; changing it makes stored bodies of several slices unreadable (they are fetched anew).
    pub slice_bytes: usize,
    /// A longer body is passed on but not stored.
    pub object_bytes_max: u64,
    /// Nothing that was fetched longer ago than this is used, validated or not; purges older
    /// than this are forgotten.
    pub object_age_max: Duration,
    /// No site may hold more than so much of memory, and so much of the disks, in percent. 1 to 100.
    pub site_percent_max: u8,
    /// Sites with a limit of their own.
    pub site_shares: Vec<SiteShare>,
    /// Sites that are counted apart; those beyond have one count, and one share, together.
    pub sites_max: usize,
    /// What is worth a disk write.
    pub admission: Admission,
    /// What the directories leave free of the file systems that hold them. A directory stops to
    /// grow where its file system has no more than this.
    pub disk_reserve: DiskReserve,
    /// Take the directories' whole space when they are opened (`fallocate`), so that nobody else
    /// can. Otherwise a directory takes it block by block, as it is filled.
    pub preallocate: bool,
    /// Bytes waiting to be written, per directory. Beyond: the piece stays in memory only, counted.
    pub write_queue_bytes: usize,
    /// A read or a batch of writes that takes longer takes its directory out of service.
    pub disk_deadline: Duration,
    /// How often a directory that is out of service is tried again.
    pub disk_retry: Duration,
}

/// One place on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Directory {
    /// A directory of its own; made when it is missing.
    pub path: PathBuf,
    /// How much it may hold. At least 64 MiB is sensible, a slice's hundredfold needed.
    pub bytes: u64,
}

/// How much of the store a site may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SiteShare {
    /// The site's name.
    pub site: String,
    /// In place of [`Settings::site_percent_max`].
    pub percent_max: u8,
}

/// What is worth a disk write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Everything that is stored.
    All,
    /// What was asked for at least twice within the memory of a frequency sketch: one-hit
    /// wonders live in memory only and don't wear the disk. Bodies that memory cannot hold
    /// while they are being read are written at once.
    Frequent,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            memory_bytes: 1 << 30,
            directories: Vec::new(),
            slice_bytes: 256 << 10,
            object_bytes_max: 16 << 30,
            object_age_max: Duration::from_secs(30 * 24 * 3600),
            site_percent_max: 100,
            site_shares: Vec::new(),
            sites_max: 1000,
            admission: Admission::Frequent,
            disk_reserve: DiskReserve::Auto,
            preallocate: false,
            write_queue_bytes: 64 << 20,
            disk_deadline: Duration::from_secs(5),
            disk_retry: Duration::from_secs(10),
        }
    }
}

impl Settings {
    /// What stands in the way of opening a store, in words for the operator.
    pub(crate) fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        if !(4 << 10..=1 << 20).contains(&self.slice_bytes) {
            mistakes.push(format!(
                "store.slice is {} bytes: expected 4 KiB to 1 MiB",
                self.slice_bytes
            ));
        }
        if self.memory_bytes < 64 * self.slice_bytes as u64 {
            mistakes.push(format!(
                "store.memory of {} bytes is too small: expected at least 64 slices of {} bytes",
                self.memory_bytes, self.slice_bytes
            ));
        }
        for directory in &self.directories {
            if directory.bytes < 64 * self.slice_bytes as u64 {
                mistakes.push(format!(
                    "store directory {} of {} bytes is too small: expected at least 64 slices of {} bytes",
                    directory.path.display(),
                    directory.bytes,
                    self.slice_bytes
                ));
            }
        }
        let paths: std::collections::BTreeSet<_> =
            self.directories.iter().map(|directory| &directory.path).collect();
        if paths.len() < self.directories.len() {
            mistakes.push("a store directory is listed twice".to_owned());
        }
        mistakes
    }
}
