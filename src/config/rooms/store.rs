//! Reads `[store]`, with the options of the purge log, and `[fills]`.

use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::DeValue;

use super::super::reader::{Purpose, Reader, Section};
use super::super::values::{Size, Value};
use crate::store::{Admission, Directory, DiskReserve, SiteShare};
use crate::{fill, purge, store};

/// `disk` without `[[store.directories]]` means one directory below the data directory.
pub(crate) fn read_store(section: &Section<'_>, store: &mut store::Settings, data: &Path) {
    read_memory(section, store);
    let directories = section.list("directories");
    read_directories(section, &directories, store, data);
    let mut reserve = Reserve(store.disk_reserve);
    section.read("disk_reserve", &mut reserve);
    store.disk_reserve = reserve.0;
    section.read("preallocate", &mut store.preallocate);
    section.read_size_within("slice", &mut store.slice_bytes, 4 << 10..=1 << 20);
    read_object_bytes_max(section, store);
    let nothing = "set defaults.cache.enabled = false to store nothing";
    section.read_above_zero("object_age_max", &mut store.object_age_max, nothing);
    read_shares(section, store);
    let admission = [("frequent", Admission::Frequent), ("all", Admission::All)];
    section.choice("admission", &mut store.admission, &admission);
    section.read_size_within("write_queue", &mut store.write_queue_bytes, 1 << 20..=1 << 40);
    section.read_above_zero("disk_deadline", &mut store.disk_deadline, "");
    section.read_above_zero("disk_retry", &mut store.disk_retry, "");
    let mistakes = store.mistakes();
    if mistakes.is_empty() {
        report_misfits(section, &directories, store);
    }
    for (name, mistake) in mistakes {
        section.mistake(name, mistake);
    }
}

fn read_memory(section: &Section<'_>, store: &mut store::Settings) {
    section.read_size("memory", &mut store.memory_bytes);
    if let Some(there) = store::memory_bytes().filter(|there| store.memory_bytes > *there) {
        let (wanted, there) = (store::bytes_text(store.memory_bytes), store::bytes_text(there));
        let advice = "choose less, because connections need memory too";
        section.warn(
            "memory",
            format!("{wanted} of memory is too much for this machine, which has {there}: {advice}"),
        );
    }
}

/// Reads `disk` and `[[store.directories]]`, which say the same in two ways.
fn read_directories(
    section: &Section<'_>,
    directories: &[Section<'_>],
    store: &mut store::Settings,
    data: &Path,
) {
    let mut disk = Some(Size(DISK_BYTES));
    let disk_written = section.read("disk", &mut disk);
    if disk == Some(Size(0)) {
        let message = "expected a size above 0, found 0: write \"none\" for a cache in memory only";
        section.mistake("disk", message);
        disk = None;
    }
    for section in directories {
        store.directories.extend(read_directory(section, &store.directories));
    }
    if disk_written && !store.directories.is_empty() {
        section.mistake("disk", "\"disk\" has no effect with [[store.directories]]: set the size of each directory there");
    } else if store.directories.is_empty()
        && let Some(Size(bytes)) = disk
    {
        store.directories.push(Directory { path: data.join("cache"), bytes });
    }
}

/// Reads one of `[[store.directories]]`; `others` are those before it. `None`: it has no size.
fn read_directory(section: &Section<'_>, others: &[Directory]) -> Option<Directory> {
    let mut directory = Directory { path: PathBuf::new(), bytes: 0 };
    if !section.read("path", &mut directory.path) {
        section.mistake("path", "the directory has no \"path\"");
    }
    section.read_size("size", &mut directory.bytes);
    if !section.has("size") {
        section.mistake("size", "the directory has no \"size\", such as \"100GiB\"");
        return None;
    }
    let path = real_path(&directory.path);
    let mut others = others.iter().map(|other| real_path(&other.path));
    if others.clone().any(|other| other == path) {
        section.mistake("path", format!("{} is listed twice", directory.path.display()));
    } else if let Some(other) =
        others.find(|other| path.starts_with(other) || other.starts_with(&path))
    {
        section.warn("path", format!("{} and {} lie one in the other: each directory should be on a disk of its own, because two on one disk are not faster", directory.path.display(), other.display()));
    }
    if directory.path.is_file() {
        let message = "expected the path of a directory, found a file: choose another path";
        section.mistake("path", message);
    }
    Some(directory)
}

fn read_object_bytes_max(section: &Section<'_>, store: &mut store::Settings) {
    let default = Size(store.object_bytes_max);
    section.read_size("object_max", &mut store.object_bytes_max);
    if store.object_bytes_max == 0 {
        let message = format!(
            "expected a size above 0, found 0: no response with content would be stored; the default is {default:?}"
        );
        section.mistake("object_max", message);
        store.object_bytes_max = default.0;
    }
}

/// Reads the shares of sites: the limit for each, and `[[store.sites]]` with others.
fn read_shares(section: &Section<'_>, store: &mut store::Settings) {
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
}

/// Reports directories for which their file systems have no space.
fn report_misfits(section: &Section<'_>, directories: &[Section<'_>], store: &store::Settings) {
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

/// The path without links and dots, as far as it exists: two paths of one directory are equal.
fn real_path(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let known = path.ancestors().find_map(|above| Some((above, above.canonicalize().ok()?)));
    match known {
        Some((above, real)) => real.join(path.strip_prefix(above).unwrap_or(&path)),
        None => path,
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
