//! The unread purges: those that are in force here and that this node has not read from the purge stream yet.
//!
//! They are this node's own purges until they are read back, and purges that came as wake-ups. The node's
//! position in the stream says nothing about them, so another node that has reached this position may not
//! have them. Until they are read, a response that they cover is asked of the origin alone.
//!
//! ```text
//! insert ─▶ purge table (in force) ─▶ log: OUTBOX message                     local purge, wake-up
//! insert ─▶ purge table (in force) ─▶ log: CURSOR, SENT message, one frame    from the stream
//!                                     └─▶ on disk ─▶ remove
//! ```
//!
//! A purge enters before it is in force. It leaves on the log's own thread once the cursor behind it is on
//! disk: a snapshot of the log, which that thread writes too, then never has a purge in force without either.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::prefixes::{prefixes_of, prefixes_within};
use super::table::{TableScope, path_hash, path_in, url_hash};
use crate::cache::PurgeTarget;

/// The id of a purge record, as a hash. Two records with the same hash share one place among the unread
/// purges: one in 10^19.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PurgeId(pub(super) u64);

impl PurgeId {
    /// The hash of an id.
    pub(crate) fn of(id: &str) -> Self {
        Self(xxhash_rust::xxh3::xxh3_64(id.as_bytes()))
    }
}

/// A purge that the stream has not brought yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UnreadPurge {
    /// A purge sequence of this node from before it was in force.
    pub since: u64,
    /// The number of its message in the outbox or among the wake-ups. `None`: the stream is just bringing it.
    pub message: Option<u64>,
    pub scopes: Arc<[TableScope]>,
}

/// All of them. Askers read [`Self::may_cover`], which costs one load while there is none.
#[derive(Debug, Default)]
pub(super) struct UnreadPurges {
    count: AtomicUsize,
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    purges: HashMap<PurgeId, UnreadPurge>,
    index: ScopeIndex,
    /// The last purges that were read: a wake-up that comes after the stream is not unread.
    read: RecentIds,
}

impl UnreadPurges {
    /// Adds a purge, unless it was read from the stream already.
    pub(super) fn insert(&self, id: PurgeId, purge: UnreadPurge) {
        let mut state = self.write();
        if state.read.contains(id) {
            return;
        }
        let message = purge.message;
        if !state.purges.contains_key(&id) {
            purge.scopes.iter().for_each(|scope| state.index.add(scope));
            state.purges.insert(id, purge);
        } else if let Some(known) = state.purges.get_mut(&id) {
            known.message = known.message.or(message);
        }
        self.count.store(state.purges.len(), Ordering::Release);
    }

    /// Whether a message of this purge must be kept: it is not read, and none is kept yet.
    pub(super) fn needs_message(&self, id: PurgeId) -> bool {
        let state = self.read();
        !state.read.contains(id)
            && state.purges.get(&id).is_none_or(|purge| purge.message.is_none())
    }

    /// The number of a purge's message.
    pub(super) fn message(&self, id: PurgeId) -> Option<u64> {
        self.read().purges.get(&id)?.message
    }

    /// The messages of purges that are unread since before `sequence`.
    pub(super) fn messages_before(&self, sequence: u64) -> Vec<u64> {
        let state = self.read();
        let old = state.purges.values().filter(|purge| purge.since < sequence);
        old.filter_map(|purge| purge.message).collect()
    }

    /// Removes purges whose cursor is on disk. Returns the numbers of their messages.
    pub(super) fn remove(&self, ids: &[PurgeId]) -> Vec<u64> {
        let mut state = self.write();
        let mut messages = Vec::new();
        for id in ids {
            if let Some(purge) = state.purges.remove(id) {
                purge.scopes.iter().for_each(|scope| state.index.remove(scope));
                messages.extend(purge.message);
            }
            state.read.push(*id);
        }
        self.count.store(state.purges.len(), Ordering::Release);
        messages
    }

    /// Whether one of them may cover a response whose tags are not known yet.
    pub(super) fn may_cover(&self, target: &PurgeTarget<'_>) -> bool {
        self.count.load(Ordering::Acquire) > 0 && self.read().index.may_cover(target)
    }

    /// Number of purges.
    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many unread purges there are of each scope.
#[derive(Debug, Default)]
struct ScopeIndex {
    all: usize,
    /// Of any tag: the tags of a response are unknown before it has come.
    tags: usize,
    sites: HashMap<Arc<str>, usize>,
    urls: HashMap<u128, usize>,
    /// Of URLs with the same path.
    paths: HashMap<u64, usize>,
    prefixes: BTreeMap<Arc<str>, usize>,
}

impl ScopeIndex {
    fn add(&mut self, scope: &TableScope) {
        match scope {
            TableScope::All => self.all += 1,
            TableScope::Tag(_) => self.tags += 1,
            TableScope::Site(site) => *self.sites.entry(site.clone()).or_default() += 1,
            TableScope::Prefix(prefix) => *self.prefixes.entry(prefix.clone()).or_default() += 1,
            TableScope::Url(url) => {
                *self.urls.entry(*url).or_default() += 1;
                *self.paths.entry(path_in(*url)).or_default() += 1;
            }
        }
    }

    fn remove(&mut self, scope: &TableScope) {
        match scope {
            TableScope::All => self.all -= 1,
            TableScope::Tag(_) => self.tags -= 1,
            TableScope::Site(site) => take_one(&mut self.sites, site),
            TableScope::Url(url) => {
                take_one(&mut self.urls, url);
                take_one(&mut self.paths, &path_in(*url));
            }
            TableScope::Prefix(prefix) => {
                if let Some(count) = self.prefixes.get_mut(prefix) {
                    *count -= 1;
                    if *count == 0 {
                        self.prefixes.remove(prefix);
                    }
                }
            }
        }
    }

    /// As [`PurgeTable::may_cover`](super::table::PurgeTable::may_cover).
    fn may_cover(&self, target: &PurgeTarget<'_>) -> bool {
        let is_whole = self.all > 0 || self.tags > 0 || self.sites.contains_key(target.site);
        if is_whole || self.urls.contains_key(&url_hash(target.url)) {
            return true;
        }
        let mut is_covered = false;
        if let Some(path) = target.aliased_path() {
            is_covered |= self.paths.contains_key(&path_hash(path));
            prefixes_within(&self.prefixes, path, |_| is_covered = true);
        }
        prefixes_of(&self.prefixes, target.url, |_| is_covered = true);
        is_covered
    }
}

fn take_one<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// The last [`READ_MAX`] ids.
#[derive(Debug, Default)]
struct RecentIds {
    order: VecDeque<PurgeId>,
    ids: HashSet<PurgeId>,
}

impl RecentIds {
    fn contains(&self, id: PurgeId) -> bool {
        self.ids.contains(&id)
    }

    fn push(&mut self, id: PurgeId) {
        if !self.ids.insert(id) {
            return;
        }
        self.order.push_back(id);
        if self.order.len() > READ_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }
}

/// Purges read from the stream that are remembered. A wake-up comes milliseconds before or after its entry; one
/// that is later by more purges than these is unread until it was published again.
const READ_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::PurgeScope;
    use crate::cache::purge::ALIASED;

    const URL: &str = "https://a.example/x/y?q=1";

    fn purge(scope: PurgeScope) -> UnreadPurge {
        UnreadPurge { since: 7, message: Some(1), scopes: [TableScope::of(&scope)].into() }
    }

    fn covers(unread: &UnreadPurges, tags: &[u64]) -> bool {
        unread.may_cover(&PurgeTarget { site: "a", url: URL, tags })
    }

    fn url(text: &str) -> PurgeScope {
        PurgeScope::Url(text.into())
    }

    #[test]
    fn a_purge_covers_until_it_was_read() {
        let prefix = |text: &str| PurgeScope::Prefix(text.into());
        for (scope, tags, is_covered) in [
            (PurgeScope::All, &[][..], true),
            (PurgeScope::Tag("any".into()), &[], true),
            (PurgeScope::Site("a".into()), &[], true),
            (PurgeScope::Site("b".into()), &[], false),
            (url(URL), &[], true),
            (url("https://a.example/x/y"), &[], false),
            (url("https://a.example/x/y"), &[ALIASED], true),
            (prefix("https://a.example/x/"), &[], true),
            (prefix("https://a.example/x/y?z"), &[], false),
            (prefix("https://a.example/x/y?z"), &[ALIASED], true),
        ] {
            let unread = UnreadPurges::default();
            let id = PurgeId::of("1");
            unread.insert(id, purge(scope.clone()));
            assert_eq!(covers(&unread, tags), is_covered, "{scope:?}");
            assert_eq!(unread.remove(&[id]), [1]);
            assert!(!covers(&unread, tags), "{scope:?}");
            assert_eq!(unread.len(), 0);
        }
    }

    #[test]
    fn a_scope_is_covered_until_its_last_purge_was_read() {
        let unread = UnreadPurges::default();
        let ids = ["1", "2"].map(PurgeId::of);
        ids.iter().for_each(|id| unread.insert(*id, purge(url(URL))));
        // The same purge by two ways counts once.
        unread.insert(ids[0], purge(url(URL)));
        unread.remove(&ids[1..]);
        assert!(covers(&unread, &[]), "the later purge was read, the earlier one was not");
        unread.remove(&ids[..1]);
        assert!(!covers(&unread, &[]));
    }

    #[test]
    fn a_wake_up_after_its_entry_is_not_unread() {
        let unread = UnreadPurges::default();
        let id = PurgeId::of("1");
        assert!(unread.needs_message(id));
        assert!(unread.remove(&[id]).is_empty());
        assert!(!unread.needs_message(id));
        unread.insert(id, purge(PurgeScope::All));
        assert!(!covers(&unread, &[]));
    }

    #[test]
    fn old_messages_are_those_of_purges_unread_since_before() {
        let unread = UnreadPurges::default();
        unread.insert(PurgeId::of("1"), purge(PurgeScope::All));
        assert!(unread.messages_before(7).is_empty());
        assert_eq!(unread.messages_before(8), [1]);
    }
}
