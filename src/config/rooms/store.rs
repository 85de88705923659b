//! Reads `[store]`, with the options of the purge log, and `[fills]`.

use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::DeValue;

use super::super::reader::{Purpose, Reader, Section};
use super::super::values::{Size, Value};
use crate::store::{Admission, Directory, DiskReserve, SiteShare};
use crate::{fill, purge, store};

/// `disk` without `[[store.directories]]` means one directory below the data directory.
#[expect(clippy::too_many_lines, reason = "a flat list of options")]
pub(crate) fn read_store(section: &Section<'_>, store: &mut store::Settings, data: &Path) {
    section.read_size("memory", &mut store.memory_bytes);
    if let Some(there) = store::memory_bytes().filter(|there| store.memory_bytes > *there) {
        let (wanted, there) = (store::bytes_text(store.memory_bytes), store::bytes_text(there));
        let advice = "choose less, because connections need memory too";
        section.warn(
            "memory",
            format!("{wanted} of memory is too much for this machine, which has {there}: {advice}"),
        );
    }
    let mut disk = Some(Size(DISK_BYTES));
    let disk_written = section.read("disk", &mut disk);
    if disk == Some(Size(0)) {
        let message = "expected a size above 0, found 0: write \"none\" for a cache in memory only";
        section.mistake("disk", message);
        disk = None;
    }
    let directories = section.list("directories");
    for section in &directories {
        let mut directory = Directory { path: PathBuf::new(), bytes: 0 };
        if !section.read("path", &mut directory.path) {
            section.mistake("path", "the directory has no \"path\"");
        }
        section.read_size("size", &mut directory.bytes);
        if !section.has("size") {
            section.mistake("size", "the directory has no \"size\", such as \"100GiB\"");
            continue;
        }
        if store.directories.iter().any(|other| other.path == directory.path) {
            section.mistake("path", format!("{} is listed twice", directory.path.display()));
        }
        store.directories.push(directory);
    }
    if disk_written && !store.directories.is_empty() {
        section.mistake("disk", "\"disk\" has no effect with [[store.directories]]: set the size of each directory there");
    } else if store.directories.is_empty()
        && let Some(Size(bytes)) = disk
    {
        store.directories.push(Directory { path: data.join("cache"), bytes });
    }
    let mut reserve = Reserve(store.disk_reserve);
    section.read("disk_reserve", &mut reserve);
    store.disk_reserve = reserve.0;
    section.read("preallocate", &mut store.preallocate);
    section.read_size_within("slice", &mut store.slice_bytes, 4 << 10..=1 << 20);
    section.read_size("object_max", &mut store.object_bytes_max);
    let nothing = "set defaults.cache.enabled = false to store nothing";
    section.read_above_zero("object_age_max", &mut store.object_age_max, nothing);
    section.read_within("site_percent_max", &mut store.site_percent_max, 1..=100);
    section.read_within("sites_max", &mut store.sites_max, 1..);
    for section in section.list("sites") {
        let mut share = SiteShare { site: String::new(), percent_max: store.site_percent_max };
        if !section.read("name", &mut share.site) {
            section.mistake("name", "the share has no \"name\": expected the name of a site");
        }
        section.read_within("percent_max", &mut share.percent_max, 1..=100);
        if store.site_shares.iter().any(|other| other.site == share.site) {
            section.mistake("name", format!("{:?} is listed twice", share.site));
        }
        store.site_shares.push(share);
    }
    let admission = [("frequent", Admission::Frequent), ("all", Admission::All)];
    section.choice("admission", &mut store.admission, &admission);
    section.read_size_within("write_queue", &mut store.write_queue_bytes, 1 << 20..=1 << 40);
    section.read_above_zero("disk_deadline", &mut store.disk_deadline, "");
    section.read_above_zero("disk_retry", &mut store.disk_retry, "");
    let mistakes = store.mistakes();
    if mistakes.is_empty() {
        for misfit in store::misfits(store) {
            let place = directories.get(misfit.directories[0]);
            let (section, name) = place.map_or((section, "disk"), |section| (section, "size"));
            let starts = section.reader.purpose == Purpose::Start;
            match starts && section.has(name) && !misfit.is_in_use {
                true => section.mistake(name, misfit.advice()),
                // A default size, or one for which the files already exist: the directory grows
                // as far as there is space. A new size takes effect after a restart.
                false => section.warn(name, misfit.advice()),
            }
        }
    }
    for (name, mistake) in mistakes {
        section.mistake(name, mistake);
    }
}

/// `"auto"`, or a size.
struct Reserve(DiskReserve);

impl std::fmt::Debug for Reserve {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            DiskReserve::Auto => f.write_str("\"auto\""),
            DiskReserve::Bytes(bytes) => Size(bytes).fmt(f),
        }
    }
}

impl Value for Reserve {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        if matches!(value.get_ref(), DeValue::String(text) if text == "auto") {
            return Some(Self(DiskReserve::Auto));
        }
        Size::read(value, reader).map(|size| Self(DiskReserve::Bytes(size.0)))
    }
}

/// Reads the options of purges, which are in the `[store]` table.
pub(crate) fn read_purge(section: &Section<'_>, purge: &mut purge::Settings, data: &Path) {
    purge.directory = Some(data.join("purges"));
    section.read_within("purge_entries_max", &mut purge.entries_max, 1..);
    section.read_size_within("purge_scope_max", &mut purge.scope_bytes_max, 256..=1 << 20);
    section.read_size("purge_log", &mut purge.log_bytes);
    section.read_within("outbox_entries_max", &mut purge.outbox_entries_max, 1..);
    section.read_size_within("outbox_max", &mut purge.outbox_bytes_max, 1 << 20..=1 << 30);
}

/// Default maximum size of the disk cache.
const DISK_BYTES: u64 = 2 << 30;

pub(crate) fn read_fills(section: &Section<'_>, fills: &mut fill::Settings) {
    section.read_size("window", &mut fills.window_bytes);
    section.read_size("windows_total", &mut fills.windows_bytes_total);
    section.read_size("range_request_max", &mut fills.range_request_bytes_max);
    section.read_size("whole_max", &mut fills.whole_bytes_max);
    section.read_within("keep_percent", &mut fills.keep_percent, 0..=100);
    section.read("patience", &mut fills.patience);
    section.read_within("fills_max", &mut fills.fills_max, 1..);
    section.read_within("followers_max", &mut fills.followers_max, 1..);
    section.read("remembered_max", &mut fills.remembered_max);
}
