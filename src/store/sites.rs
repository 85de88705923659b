//! What each site has of the store, and how much it may have.
//!
//! In memory every piece is counted as it comes and as it leaves, and a site that has more than
//! its share there loses its own oldest pieces, not those of others. On disk the
//! [census](super::census) counts, and a site that has its share writes no more until some of
//! it is gone. Shares of the others are what keeps a floor under a site
//! (docs/decisions/0012-shares-cap-sites.md).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::record::{Piece, PieceKey, Record};
use super::settings::Settings;
use super::stat::SiteStat;

/// All sites that ever stored something, as many as are counted apart.
pub(super) struct Sites {
    sites: Mutex<HashMap<Arc<str>, Arc<Site>>>,
    settings: Settings,
}

/// One site.
pub(super) struct Site {
    pub name: Arc<str>,
    memory: Count,
    /// As the census has it, and what was written since.
    disk: Count,
    /// `None`: all of it.
    memory_bytes_max: Option<u64>,
    disk_bytes_max: Option<u64>,
    /// Its pieces in memory, oldest first, where it has a limit. Some may be gone.
    oldest: Mutex<VecDeque<PieceKey>>,
}

/// Bytes and stored responses.
#[derive(Default)]
struct Count {
    bytes: AtomicU64,
    objects: AtomicU64,
}

impl Count {
    fn add(&self, bytes: u64, is_head: bool) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.objects.fetch_add(u64::from(is_head), Ordering::Relaxed);
    }

    fn take(&self, bytes: u64, is_head: bool) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.objects.fetch_sub(u64::from(is_head), Ordering::Relaxed);
    }

    fn set(&self, bytes: u64, objects: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
        self.objects.store(objects, Ordering::Relaxed);
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn objects(&self) -> u64 {
        self.objects.load(Ordering::Relaxed)
    }
}

/// What a site has on the disks: bytes and stored responses.
pub(super) type OnDisk = BTreeMap<Arc<str>, (u64, u64)>;

impl Sites {
    pub(super) fn new(settings: &Settings) -> Self {
        Self { sites: Mutex::default(), settings: settings.clone() }
    }

    /// The site of this name, or what stands for all beyond the limit of sites.
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

    /// Whose piece it is, where that is known. Lists of variants are nobody's.
    pub(super) fn of_piece(&self, piece: &Piece) -> Option<Arc<Site>> {
        match piece {
            Piece::Record(Record::Response(head)) => Some(self.of(&head.response.site)),
            Piece::Slice(slice) => slice.site.clone(),
            Piece::Record(Record::Variants(_)) | Piece::Unknown => None,
        }
    }

    /// A piece left memory.
    pub(super) fn left(&self, key: &PieceKey, piece: &Piece) {
        if let Some(site) = self.of_piece(piece) {
            site.memory.take(piece.weight() as u64, key.is_head());
        }
    }

    /// What the census found.
    pub(super) fn set_on_disk(&self, found: &OnDisk) {
        for name in found.keys() {
            self.of(name);
        }
        for (name, site) in &*self.lock() {
            let (bytes, objects) = found.get(name).copied().unwrap_or_default();
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
            memory: Count::default(),
            disk: Count::default(),
            memory_bytes_max: share(settings.memory_bytes),
            disk_bytes_max: share(settings.directories.iter().map(|it| it.bytes).sum()),
            oldest: Mutex::default(),
        }
    }

    /// A piece comes into memory.
    pub(super) fn entered(&self, key: &PieceKey, piece: &Piece) {
        self.memory.add(piece.weight() as u64, key.is_head());
        if self.memory_bytes_max.is_some() {
            self.oldest().push_back(*key);
        }
    }

    /// Which of its pieces must leave memory, one at a time; never the last that came.
    pub(super) fn surplus(&self, is_there: impl Fn(&PieceKey) -> bool) -> Option<PieceKey> {
        let max = self.memory_bytes_max?;
        let mut oldest = self.oldest();
        if self.memory.bytes() > max && oldest.len() > 1 {
            return oldest.pop_front();
        }
        // What left by itself is not waited for.
        let pieces_max = max as usize / PIECE_BYTES_LEAST;
        if oldest.len() > QUEUE_LEAST.max(pieces_max) {
            oldest.retain(|key| is_there(key));
        }
        None
    }

    /// A piece was written.
    pub(super) fn written(&self, bytes: u64, is_head: bool) {
        self.disk.add(bytes, is_head);
    }

    /// Whether it has its share of the disks.
    pub(super) fn is_disk_full(&self) -> bool {
        self.disk_bytes_max.is_some_and(|max| self.disk.bytes() >= max)
    }

    fn oldest(&self) -> MutexGuard<'_, VecDeque<PieceKey>> {
        self.oldest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stat(&self) -> SiteStat {
        SiteStat {
            site: self.name.clone(),
            memory_bytes: self.memory.bytes(),
            memory_objects: self.memory.objects(),
            memory_bytes_max: self.memory_bytes_max,
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

/// What stands for the sites beyond the limit.
const OTHERS: &str = "(others)";
/// No piece weighs less in memory.
const PIECE_BYTES_LEAST: usize = 512;
const QUEUE_LEAST: usize = 1024;
