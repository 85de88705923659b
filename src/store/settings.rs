//! The settings of the store, and their checks.

use std::path::PathBuf;
use std::time::Duration;

use super::space::bytes_text;

/// The settings of a store. `Default` gives the values that apply without configuration.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    /// Maximum bytes in the memory tier: bodies, fields, keys and bookkeeping.
    pub memory_bytes: u64,
    /// The directories of the disk tier. Empty: memory only.
    pub directories: Vec<Directory>,
    /// The size of a slice in bytes, 4 KiB to 1 MiB. A body of at most one slice is stored in its
    /// head record. After a change, stored bodies of several slices are fetched anew.
    pub slice_bytes: usize,
    /// Maximum bytes of a stored body. A longer one is forwarded but not stored.
    pub object_bytes_max: u64,
    /// A response that was fetched longer ago is not used, validated or not. Older purges are
    /// forgotten.
    pub object_age_max: Duration,
    /// Maximum share of memory, and of the disks, that one site may use: 1 to 100 percent.
    pub site_percent_max: u8,
    /// Sites with another maximum share.
    pub site_shares: Vec<SiteShare>,
    /// Maximum number of sites that are counted separately. All others share one count and one limit.
    pub sites_max: usize,
    /// The pieces that are written to disk.
    pub admission: Admission,
    /// The space that is left free on the file systems of the directories. A directory does not grow
    /// while its file system has no more than this.
    pub disk_reserve: DiskReserve,
    /// Whether the whole space of a directory is allocated (`fallocate`) when it is opened. Otherwise
    /// it is allocated block by block.
    pub preallocate: bool,
    /// Maximum bytes that wait to be written, for each directory. Beyond, a piece stays in memory only,
    /// and is counted.
    pub write_queue_bytes: usize,
    /// Maximum duration of a read or of a batch of writes. A longer one takes its directory out of
    /// service.
    pub disk_deadline: Duration,
    /// Interval at which a directory that is out of service is retried.
    pub disk_retry: Duration,
}

/// One directory of the disk tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Directory {
    /// Its path. Must be used for nothing else; created if missing.
    pub path: PathBuf,
    /// Its maximum size in bytes. At least 64 slices and 2 MiB; 64 MiB or more is sensible.
    pub bytes: u64,
}

/// The maximum share of the store for one site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SiteShare {
    /// The site's name.
    pub site: String,
    /// Replaces [`Settings::site_percent_max`]: 1 to 100.
    pub percent_max: u8,
}

/// The pieces that are written to disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Everything that is stored.
    All,
    /// Pieces that were requested at least twice within the memory of a frequency sketch, so that responses
    /// requested once do not wear the disk. Bodies that are too long to stay in memory while they
    /// are being read are written at once.
    Frequent,
}

/// The space of a file system that the disk cache leaves free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskReserve {
    /// A twentieth of the file system, but at least the smaller of 1 GiB and a tenth of it.
    Auto,
    /// This many bytes.
    Bytes(u64),
}

impl DiskReserve {
    /// The reserve in bytes on a file system of `total` bytes.
    pub(crate) fn bytes(self, total: u64) -> u64 {
        match self {
            Self::Auto => (total / 20).max(AUTO_LEAST.min(total / 10)),
            Self::Bytes(bytes) => bytes,
        }
    }
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
    /// The least size of memory, for a message.
    fn least(&self) -> String {
        let slice = self.slice_bytes as u64;
        let (least, slice) = (bytes_text(64 * slice), bytes_text(slice));
        format!("at least {least} (64 times store.slice = {slice})")
    }

    /// The least size of a directory, for a message.
    fn least_on_disk(&self) -> String {
        match 64 * self.slice_bytes as u64 {
            slices if slices < DISK_LEAST => format!("at least {}", bytes_text(DISK_LEAST)),
            _ => self.least(),
        }
    }

    /// The reasons why these settings are rejected: the option, and an error message. Empty if they are
    /// valid.
    pub(crate) fn mistakes(&self) -> Vec<(&'static str, String)> {
        let mut mistakes = Vec::new();
        if !(4 << 10..=1 << 20).contains(&self.slice_bytes) {
            let slice = self.slice_bytes;
            let message = format!("store.slice is {slice} bytes: expected 4 KiB to 1 MiB");
            mistakes.push(("slice", message));
        }
        if self.memory_bytes < 64 * self.slice_bytes as u64 {
            let memory = bytes_text(self.memory_bytes);
            let message =
                format!("store.memory of {memory} is too small: expected {}", self.least());
            mistakes.push(("memory", message));
        }
        for directory in &self.directories {
            if directory.bytes < DISK_LEAST.max(64 * self.slice_bytes as u64) {
                let message = format!(
                    "store directory {} of {} is too small: expected {}",
                    directory.path.display(),
                    bytes_text(directory.bytes),
                    self.least_on_disk()
                );
                mistakes.push(("disk", message));
            }
        }
        let paths: std::collections::BTreeSet<_> =
            self.directories.iter().map(|directory| &directory.path).collect();
        if paths.len() < self.directories.len() {
            mistakes.push(("directories", "a store directory is listed twice".to_owned()));
        }
        mistakes
    }
}

/// Two blocks of the least size: one is written while the other is read.
const DISK_LEAST: u64 = 2 << 20;
const AUTO_LEAST: u64 = 1 << 30;
