//! Whether the disk cache fits the file systems that hold it.
//!
//! A directory's file grows block by block, and only while its file system keeps a reserve free
//! ([`DiskReserve`]). [`misfits`] reports sizes that cannot be reached before the node starts.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::StatVfs;

use super::layout;
use super::settings::{DiskReserve, Settings};

/// Directories of one file system whose configured sizes do not fit it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Misfit {
    /// Their positions in [`Settings::directories`]. Never empty.
    pub directories: Vec<usize>,
    /// The path of the first one, or its nearest existing parent.
    pub path: PathBuf,
    /// Sum of their configured sizes in bytes.
    pub wanted_bytes: u64,
    /// Bytes that fit for all of them together.
    pub fits_bytes: u64,
    /// Free bytes of the file system.
    pub free_bytes: u64,
    /// Bytes that must stay free.
    pub reserve_bytes: u64,
    /// Bytes that the directories' files occupy already.
    pub own_bytes: u64,
    /// Whether every file has its full length already: then the node may start, and each directory
    /// grows as far as there is space.
    pub is_in_use: bool,
}

/// Size and free space of a file system for this process, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Space {
    total: u64,
    free: u64,
}

/// The space that one directory needs on its file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claim {
    wanted: u64,
    own: u64,
    is_in_use: bool,
}

impl Space {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self::new(&rustix::fs::statvfs(path)?))
    }

    /// Of the file system that holds an open file.
    pub(super) fn around(file: &File) -> io::Result<Self> {
        Ok(Self::new(&rustix::fs::fstatvfs(file)?))
    }

    fn new(stat: &StatVfs) -> Self {
        let bytes = |units: u64| units.saturating_mul(stat.f_frsize);
        Self { total: bytes(stat.f_blocks), free: bytes(stat.f_bavail) }
    }

    /// Free bytes beyond the reserve.
    pub(super) fn beyond(self, reserve: DiskReserve) -> u64 {
        self.free.saturating_sub(reserve.bytes(self.total))
    }
}

impl Misfit {
    /// An error message for the operator: what is wrong and what to do.
    pub(crate) fn advice(&self) -> String {
        let [wanted, fits, free, reserve, own] = [
            self.wanted_bytes,
            self.fits_bytes,
            self.free_bytes,
            self.reserve_bytes,
            self.own_bytes,
        ]
        .map(bytes_text);
        let together = match self.directories.len() {
            1 => format!("{wanted} of disk cache does"),
            several => format!("{wanted} of disk cache in {several} directories do"),
        };
        format!(
            "{together} not fit the file system of {}: {free} are free, the cache already uses {own}, {reserve} are reserved \
             (store.disk_reserve); at most {fits} fit: choose a smaller size, another file system or a \
             smaller reserve",
            self.path.display()
        )
    }
}

/// Directories whose configured sizes do not fit their file systems. Those on one file system count
/// together. A directory whose file system cannot be queried is left out: opening it fails and is
/// logged.
pub(crate) fn misfits(settings: &Settings) -> Vec<Misfit> {
    let mut by_device: BTreeMap<u64, Vec<(usize, Claim, PathBuf)>> = BTreeMap::new();
    for (number, directory) in settings.directories.iter().enumerate() {
        let above = existing(&directory.path);
        let Ok(metadata) = fs::metadata(&above) else { continue };
        let wanted = layout::file_bytes(directory, settings.slice_bytes);
        let file = fs::metadata(layout::data_file(&directory.path)).ok();
        let own = file.as_ref().map_or(0, |file| file.blocks() * 512);
        let is_in_use = file.is_some_and(|file| file.len() == wanted);
        let claim = Claim { wanted, own, is_in_use };
        by_device.entry(metadata.dev()).or_default().push((number, claim, above));
    }
    let misfit = |claims: Vec<(usize, Claim, PathBuf)>| {
        let path = claims.first()?.2.clone();
        // A file system without a size, such as /proc, holds no files: opening the directory fails.
        let space = Space::of(&path).ok().filter(|space| space.total > 0)?;
        let (directories, claims): (Vec<_>, Vec<_>) =
            claims.into_iter().map(|(number, claim, _)| (number, claim)).unzip();
        let misfit = weigh(&claims, space, settings.disk_reserve)?;
        let sizes = directories.iter().map(|number| settings.directories[*number].bytes);
        let wanted_bytes = sizes.fold(0, u64::saturating_add);
        Some(Misfit { directories, path, wanted_bytes, ..misfit })
    };
    by_device.into_values().filter_map(misfit).collect()
}

/// The memory that this process can use, in bytes: the machine's, or the limit of its control group
/// if that is lower. `None` if the system does not report it.
pub(crate) fn memory_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let total = total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.saturating_mul(1024);
    let limit = fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let limit = limit.and_then(|limit| limit.trim().parse().ok());
    Some(total.min(limit.unwrap_or(u64::MAX)))
}

/// `None` if the claims fit. Space that the files occupy already counts as available to them.
fn weigh(claims: &[Claim], space: Space, reserve: DiskReserve) -> Option<Misfit> {
    let sum = |of: fn(&Claim) -> u64| claims.iter().map(of).fold(0, u64::saturating_add);
    let (wanted, own) = (sum(|claim| claim.wanted), sum(|claim| claim.own));
    let fits = space.free.saturating_add(own).saturating_sub(reserve.bytes(space.total)).max(own);
    (wanted > fits).then(|| Misfit {
        directories: Vec::new(),
        path: PathBuf::new(),
        wanted_bytes: wanted,
        fits_bytes: fits,
        free_bytes: space.free,
        reserve_bytes: reserve.bytes(space.total),
        own_bytes: own,
        is_in_use: claims.iter().all(|claim| claim.is_in_use),
    })
}

/// The path, or the nearest directory above it that exists.
fn existing(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let found = path.ancestors().find(|above| above.exists());
    found.unwrap_or(Path::new("/")).to_owned()
}

/// A size for the operator, with one decimal: `44.8 GiB`.
pub(crate) fn bytes_text(bytes: u64) -> String {
    let units = [(1_u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        // Rounded down, so that a size that is said to fit does fit.
        Some((unit, name)) => {
            let tenths = (u128::from(bytes) * 10 / u128::from(unit)) as u64;
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_reserve_is_a_twentieth_and_leaves_room_on_small_file_systems() {
        let check = |total, expected| assert_eq!(DiskReserve::Auto.bytes(total), expected);
        check(1000 * GIB, 50 * GIB);
        check(20 * GIB, GIB);
        check(10 * GIB, GIB);
        check(5 * GIB, GIB / 2);
        check(64 << 20, (64 << 20) / 10);
        assert_eq!(DiskReserve::Bytes(7).bytes(GIB), 7);
    }

    #[test]
    fn directories_of_one_file_system_count_together_and_keep_what_they_have() {
        let space = Space { total: 100 * GIB, free: 47 * GIB };
        let claim = |wanted, own| Claim { wanted: wanted * GIB, own: own * GIB, is_in_use: false };
        let fits = |claims: &[Claim]| {
            weigh(claims, space, DiskReserve::Auto).map(|misfit| misfit.fits_bytes / GIB)
        };
        assert_eq!(fits(&[claim(42, 0)]), None);
        assert_eq!(fits(&[claim(43, 0)]), Some(42));
        assert_eq!(fits(&[claim(52, 10)]), None, "what is there already needs no room");
        assert_eq!(fits(&[claim(30, 0), claim(13, 0)]), Some(42));
        let full = Space { total: 100 * GIB, free: 0 };
        assert_eq!(weigh(&[claim(50, 50)], full, DiskReserve::Auto), None, "it does not grow");
    }

    #[test]
    fn the_advice_names_the_numbers_and_what_to_do() {
        let space = Space { total: 252 * GIB, free: 47 * GIB };
        let claim = Claim { wanted: 300 * GIB, own: 0, is_in_use: false };
        let misfit = weigh(&[claim], space, DiskReserve::Auto).expect("it does not fit");
        let misfit = Misfit { directories: vec![0], path: "/var".into(), ..misfit };
        assert_eq!(
            misfit.advice(),
            "300.0 GiB of disk cache does not fit the file system of /var: 47.0 GiB are free, \
             the cache already uses 0 B, 12.5 GiB are reserved (store.disk_reserve); at most \
             34.4 GiB fit: choose a smaller size, another file system or a smaller reserve"
        );
    }

    #[test]
    fn sizes_are_told_with_one_decimal_and_rounded_down() {
        let check = |bytes, expected| assert_eq!(bytes_text(bytes), expected);
        check(0, "0 B");
        check(1023, "1023 B");
        check(2047, "1.9 KiB");
        check(3 * GIB / 2, "1.5 GiB");
    }
}
