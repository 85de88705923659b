//! How much of the store each site uses, and its limits.
//!
//! In memory each piece is counted when it enters and when it leaves; a site above its limit loses
//! its own oldest pieces. On disk the [census](super::census) estimates the usage; a site at its
//! limit writes nothing until some of its pieces are overwritten. The limits of the other sites
//! guarantee each site its minimum (docs/decisions/0012-shares-cap-sites.md).

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::piece_key::PieceKey;
use super::settings::Settings;
use super::share::{MemoryShare, Usage};
use super::stat::SiteStat;

/// The sites that have stored something, up to [`Settings::sites_max`].
pub(super) struct Sites {
    sites: Mutex<HashMap<Arc<str>, Arc<Site>>>,
    settings: Settings,
}

/// One site.
pub(super) struct Site {
    pub name: Arc<str>,
    /// Its pieces in memory.
    pub memory: MemoryShare,
    /// The census' estimate, plus what was written since.
    disk: Usage,
    /// `None`: no limit.
    disk_bytes_max: Option<u64>,
}

/// By site: bytes and stored responses on the disks.
pub(super) type DiskUsage = BTreeMap<Arc<str>, (u64, u64)>;

impl Sites {
    pub(super) fn new(settings: &Settings) -> Self {
        Self { sites: Mutex::default(), settings: settings.clone() }
    }

    /// The site of this name, or the common entry of all sites beyond [`Settings::sites_max`].
    pub(super) fn of(&self, name: &str) -> Arc<Site> {
        let mut sites = self.lock();
        if let Some(site) = sites.get(name) {
            return site.clone();
        }
        let apart = sites.len() - usize::from(sites.contains_key(OTHERS));
        let name = if apart < self.settings.sites_max { name } else { OTHERS };
        let make = || Arc::new(Site::new(name, &self.settings));
        sites.entry(name.into()).or_insert_with(make).clone()
    }

    /// Sets the usage of the disks that the census estimated.
    pub(super) fn set_on_disk(&self, usage: &DiskUsage) {
        for name in usage.keys() {
            self.of(name);
        }
        for (name, site) in &*self.lock() {
            let (bytes, objects) = usage.get(name).copied().unwrap_or_default();
            site.disk.set(bytes, objects);
        }
    }

    pub(super) fn stat(&self) -> Vec<SiteStat> {
        let mut stats: Vec<_> = self.lock().values().map(|site| site.stat()).collect();
        stats.sort_by(|a, b| a.site.cmp(&b.site));
        stats
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Site>>> {
        self.sites.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Site {
    fn new(name: &str, settings: &Settings) -> Self {
        let own = settings.site_shares.iter().find(|share| share.site == name);
        let percent = own.map_or(settings.site_percent_max, |share| share.percent_max);
        let share = |bytes: u64| (percent < 100).then(|| bytes / 100 * u64::from(percent));
        Self {
            name: name.into(),
            memory: MemoryShare::new(share(settings.memory_bytes)),
            disk: Usage::default(),
            disk_bytes_max: share(settings.directories.iter().map(|it| it.bytes).sum()),
        }
    }

    /// A piece of this size in bytes was written to disk.
    pub(super) fn written(&self, bytes: u64, key: &PieceKey) {
        self.disk.add(bytes, key);
    }

    /// Whether it has reached its limit on the disks.
    pub(super) fn is_disk_full(&self) -> bool {
        self.disk_bytes_max.is_some_and(|max| self.disk.bytes() >= max)
    }

    fn stat(&self) -> SiteStat {
        SiteStat {
            site: self.name.clone(),
            memory_bytes: self.memory.used.bytes(),
            memory_objects: self.memory.used.objects(),
            memory_bytes_max: self.memory.bytes_max,
            disk_bytes: self.disk.bytes(),
            disk_objects: self.disk.objects(),
            disk_bytes_max: self.disk_bytes_max,
        }
    }
}

impl std::fmt::Debug for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Site({})", self.name)
    }
}

/// The name of the common entry.
const OTHERS: &str = "(others)";
