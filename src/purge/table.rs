//! The purge table: for each scope the latest purge, hard and soft.
//!
//! A purge costs one entry, whatever it covers; a check costs one lookup per scope. Entries are kept in
//! the order of their sequence, so that the oldest can be pruned once no response is that old. When
//! the table is full, the oldest entries are replaced by one soft purge of everything: it covers more
//! responses, but a hard purge becomes a soft one.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use super::prefixes::{prefixes_of, prefixes_within};
use crate::cache::purge::path_of;
use crate::cache::{PurgeKind, PurgeScope, PurgeSequence, PurgeTarget};

/// A scope in the table. URLs and tags are stored as hashes; a purge also covers any other URL or tag
/// with the same hash. The upper 64 bits of a URL's hash are the hash of the URL without its query.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum TableScope {
    All,
    Site(Arc<str>),
    Url(u128),
    Tag(u64),
    Prefix(Arc<str>),
}

impl TableScope {
    pub(super) fn of(scope: &PurgeScope) -> Self {
        match scope {
            PurgeScope::All => Self::All,
            PurgeScope::Site(site) => Self::Site((**site).into()),
            PurgeScope::Url(url) => Self::Url(url_hash(url)),
            PurgeScope::Tag(tag) => Self::Tag(crate::cache::purge::tag_hash(tag)),
            PurgeScope::Prefix(prefix) => Self::Prefix((**prefix).into()),
        }
    }
}

pub(super) fn url_hash(url: &str) -> u128 {
    let full_hash = xxhash_rust::xxh3::xxh3_64(url.as_bytes());
    u128::from(path_hash(path_of(url))) << 64 | u128::from(full_hash)
}

pub(super) fn path_hash(path: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(path.as_bytes())
}

/// The [`path_hash`] in a URL's hash.
pub(super) fn path_in(url: u128) -> u64 {
    (url >> 64) as u64
}

/// The sequences of the latest hard and the latest soft purge of one scope; 0 means no purge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LatestPurges {
    pub hard: u64,
    pub soft: u64,
    pub causes: Causes,
}

/// The cause that is reported of a scope's latest purges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Causes {
    /// The hard one is an invalidation by an unsafe method.
    pub invalidated: bool,
    /// The soft one stands for purges that may have been missed.
    pub missed: bool,
}

impl LatestPurges {
    /// One purge.
    pub(super) fn of(kind: PurgeKind, sequence: u64) -> Self {
        let (hard, soft) = if kind.is_hard() { (sequence, 0) } else { (0, sequence) };
        let causes = Causes {
            invalidated: kind == PurgeKind::Invalidated,
            missed: kind == PurgeKind::Missed,
        };
        Self { hard, soft, causes }
    }

    fn merge(&mut self, other: Self) {
        if other.hard > self.hard {
            (self.hard, self.causes.invalidated) = (other.hard, other.causes.invalidated);
        }
        if other.soft > self.soft {
            (self.soft, self.causes.missed) = (other.soft, other.causes.missed);
        }
    }

    pub(super) fn sequence(self) -> u64 {
        self.hard.max(self.soft)
    }

    /// The verdict for a response stored at `stored_at`.
    fn verdict(self, stored_at: u64) -> Option<PurgeKind> {
        let Causes { invalidated, missed } = self.causes;
        if stored_at < self.hard {
            Some(if invalidated { PurgeKind::Invalidated } else { PurgeKind::Hard })
        } else if stored_at < self.soft {
            Some(if missed { PurgeKind::Missed } else { PurgeKind::Soft })
        } else {
            None
        }
    }
}

/// All purges in force, indexed by scope.
#[derive(Debug, Default)]
pub(super) struct PurgeTable {
    all: LatestPurges,
    sites: HashMap<Arc<str>, LatestPurges>,
    urls: HashMap<u128, LatestPurges>,
    /// The latest purges of all URLs with the same path, for responses that answer several URLs
    /// (`No-Vary-Search`). Derived from `urls`; not counted as entries.
    paths: HashMap<u64, LatestPurges>,
    tags: HashMap<u64, LatestPurges>,
    prefixes: BTreeMap<Arc<str>, LatestPurges>,
    /// The sequence of the latest purge of any tag.
    tag_latest: u64,
    /// The sequence of the latest invalidation of any tag.
    tag_invalidated: u64,
    /// The sequences of the latest invalidations of anything, ascending, at most [`INVALIDATIONS_MAX`].
    invalidations: VecDeque<u64>,
    /// Invalidations up to this sequence are not in `invalidations` any more.
    invalidations_start: u64,
    /// Every entry but `all` by its latest sequence, oldest first. A scope that was purged again leaves
    /// its older elements behind; they are skipped.
    order: VecDeque<(u64, TableScope)>,
    /// Purges before this sequence may have been pruned: every response stored before it counts as hard
    /// purged.
    horizon: u64,
}

impl PurgeTable {
    /// Adds one purge.
    pub(super) fn apply(&mut self, scope: &TableScope, kind: PurgeKind, sequence: PurgeSequence) {
        self.merge(scope, LatestPurges::of(kind, sequence.0));
    }

    /// Adds latest from a snapshot.
    pub(super) fn merge(&mut self, scope: &TableScope, latest: LatestPurges) {
        self.entry(scope).merge(latest);
        if let TableScope::Url(url) = scope {
            self.paths.entry(path_in(*url)).or_default().merge(latest);
        }
        if latest.causes.invalidated {
            self.note_invalidation(latest.hard);
        }
        if let TableScope::Tag(_) = scope {
            self.tag_latest = self.tag_latest.max(latest.sequence());
            if latest.causes.invalidated {
                self.tag_invalidated = self.tag_invalidated.max(latest.hard);
            }
        }
        if *scope != TableScope::All {
            let latest = latest.sequence();
            // Inserted in order: frames of the log can repeat entries of the snapshot before them.
            let at = self.order.partition_point(|(sequence, _)| *sequence <= latest);
            self.order.insert(at, (latest, scope.clone()));
            if self.order.len() > 2 * self.len() + 1024 {
                self.drop_stale_elements();
            }
        }
    }

    /// Removes stale elements of `order`, so that repeated purges of one scope do not grow it. Amortised
    /// O(1): at least half of the elements are stale when this is called.
    fn drop_stale_elements(&mut self) {
        let mut order = std::mem::take(&mut self.order);
        order.retain(|(sequence, scope)| {
            self.latest(scope).is_some_and(|latest| latest.sequence() == *sequence)
        });
        self.order = order;
    }

    fn entry(&mut self, scope: &TableScope) -> &mut LatestPurges {
        match scope {
            TableScope::All => &mut self.all,
            TableScope::Site(site) => self.sites.entry(site.clone()).or_default(),
            TableScope::Url(url) => self.urls.entry(*url).or_default(),
            TableScope::Tag(tag) => self.tags.entry(*tag).or_default(),
            TableScope::Prefix(prefix) => self.prefixes.entry(prefix.clone()).or_default(),
        }
    }

    pub(super) fn latest(&self, scope: &TableScope) -> Option<LatestPurges> {
        match scope {
            TableScope::All => Some(self.all),
            TableScope::Site(site) => self.sites.get(site).copied(),
            TableScope::Url(url) => self.urls.get(url).copied(),
            TableScope::Tag(tag) => self.tags.get(tag).copied(),
            TableScope::Prefix(prefix) => self.prefixes.get(prefix).copied(),
        }
    }

    fn remove(&mut self, scope: &TableScope) {
        match scope {
            TableScope::All => {}
            TableScope::Site(site) => drop(self.sites.remove(site)),
            TableScope::Url(url) => self.remove_url(*url),
            TableScope::Tag(tag) => drop(self.tags.remove(tag)),
            TableScope::Prefix(prefix) => drop(self.prefixes.remove(prefix)),
        }
    }

    fn remove_url(&mut self, url: u128) {
        let gone = self.urls.remove(&url).unwrap_or_default();
        // Keep the path's purges if another URL of the path was purged later.
        if self.paths.get(&path_in(url)).is_some_and(|path| path.sequence() <= gone.sequence()) {
            self.paths.remove(&path_in(url));
        }
    }

    /// The strongest purge that covers the target and is later than `stored_at`.
    pub(super) fn verdict(
        &self,
        target: &PurgeTarget<'_>,
        stored_at: PurgeSequence,
    ) -> Option<PurgeKind> {
        let stored_at = stored_at.0;
        if stored_at < self.horizon {
            return Some(PurgeKind::Hard);
        }
        let mut latest = self.all;
        if let Some(site) = self.sites.get(target.site) {
            latest.merge(*site);
        }
        if !self.urls.is_empty()
            && let Some(url) = self.urls.get(&url_hash(target.url))
        {
            latest.merge(*url);
        }
        if let Some(path) = target.aliased_path() {
            if let Some(path) = self.paths.get(&path_hash(path)) {
                latest.merge(*path);
            }
            prefixes_within(&self.prefixes, path, |prefix| latest.merge(*prefix));
        }
        if !self.tags.is_empty() {
            target.tags.iter().filter_map(|tag| self.tags.get(tag)).for_each(|tag| {
                latest.merge(*tag);
            });
        }
        prefixes_of(&self.prefixes, target.url, |prefix| latest.merge(*prefix));
        latest.verdict(stored_at)
    }

    /// Whether a purge after `since` may cover a response whose tags are not known yet.
    pub(super) fn may_cover(&self, target: &PurgeTarget<'_>, since: PurgeSequence) -> bool {
        self.tag_latest > since.0 || self.verdict(target, since).is_some()
    }

    /// Whether an invalidation by an unsafe method (RFC 9111 §4.4) after `since` may cover a response whose tags are
    /// not known yet. A later purge hides which scope was invalidated: any purge of the target that is not before
    /// the first invalidation may be that one. `since` is not before the horizon.
    pub(super) fn may_be_invalidated(
        &self,
        target: &PurgeTarget<'_>,
        since: PurgeSequence,
    ) -> bool {
        let Some(before) = self.before_invalidation(since.0) else { return false };
        self.tag_invalidated > since.0 || self.verdict(target, PurgeSequence(before)).is_some()
    }

    /// The sequence before the first invalidation after `since`, or an earlier one that is not before `since`.
    fn before_invalidation(&self, since: u64) -> Option<u64> {
        if since < self.invalidations_start {
            return Some(since);
        }
        let first = self.invalidations.partition_point(|sequence| *sequence <= since);
        self.invalidations.get(first).map(|sequence| sequence - 1)
    }

    /// Notes the sequence of an invalidation.
    pub(super) fn note_invalidation(&mut self, sequence: u64) {
        let at = self.invalidations.partition_point(|known| *known < sequence);
        if self.invalidations.get(at) != Some(&sequence) {
            self.invalidations.insert(at, sequence);
        }
        if self.invalidations.len() > INVALIDATIONS_MAX
            && let Some(oldest) = self.invalidations.pop_front()
        {
            self.invalidations_start = oldest;
        }
    }

    /// Number of entries, not counting `all`.
    pub(super) fn len(&self) -> usize {
        self.sites.len() + self.urls.len() + self.tags.len() + self.prefixes.len()
    }

    /// Raises the horizon to `horizon` and removes at most `count_max` entries older than it. Returns the
    /// number of removed entries.
    pub(super) fn prune(&mut self, horizon: u64, count_max: usize) -> usize {
        self.horizon = self.horizon.max(horizon);
        let mut pruned = 0;
        for _ in 0..count_max {
            match self.order.front() {
                Some((sequence, _)) if *sequence < horizon => pruned += self.drop_oldest(|_| {}),
                _ => break,
            }
        }
        pruned
    }

    /// Replaces the oldest `count` elements of `order` by one soft purge of everything. Returns the
    /// number of replaced entries.
    pub(super) fn widen_oldest(&mut self, count: usize) -> usize {
        let mut soft = 0;
        let mut widened = 0;
        for _ in 0..count {
            if self.order.is_empty() {
                break;
            }
            widened += self.drop_oldest(|latest| soft = soft.max(latest.sequence()));
        }
        self.all.merge(LatestPurges::of(PurgeKind::Soft, soft));
        widened
    }

    /// Removes the oldest element of `order`, and its entry if the element is not stale. Returns the
    /// number of removed entries.
    fn drop_oldest(&mut self, with: impl FnOnce(LatestPurges)) -> usize {
        let Some((sequence, scope)) = self.order.pop_front() else { return 0 };
        match self.latest(&scope) {
            Some(latest) if latest.sequence() == sequence => {
                self.remove(&scope);
                with(latest);
                1
            }
            _ => 0,
        }
    }

    /// About `count` entries after `sequence`, so that a snapshot holds the lock only briefly. Entries of
    /// one sequence are returned together, so there may be more.
    pub(super) fn entries_after(
        &self,
        sequence: u64,
        count: usize,
    ) -> Vec<(u64, TableScope, LatestPurges)> {
        let first = self.order.partition_point(|(at, _)| *at <= sequence);
        let mut entries: Vec<(u64, TableScope, LatestPurges)> = Vec::with_capacity(count);
        for (at, scope) in self.order.iter().skip(first) {
            // Entries of one sequence are not split between two calls.
            if entries.len() >= count && entries.last().is_some_and(|(last, ..)| last != at) {
                break;
            }
            if let Some(latest) = self.latest(scope)
                && latest.sequence() == *at
            {
                entries.push((*at, scope.clone(), latest));
            }
        }
        entries
    }

    pub(super) fn horizon(&self) -> u64 {
        self.horizon
    }
}

/// More than peers lack in a usual moment. A peer that lacks more is not asked for what any purge since covers.
const INVALIDATIONS_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::purge::ALIASED;
    use PurgeKind::{Hard, Soft};

    const URL: &str = "https://a.example/x/y?q=1";

    fn table(purges: &[(PurgeScope, PurgeKind, u64)]) -> PurgeTable {
        let mut table = PurgeTable::default();
        for (scope, kind, sequence) in purges {
            table.apply(&TableScope::of(scope), *kind, PurgeSequence(*sequence));
        }
        table
    }

    fn check(table: &PurgeTable, stored_at: u64, expected: Option<PurgeKind>) {
        let tags = [crate::cache::purge::tag_hash("news")];
        let target = PurgeTarget { site: "a", url: URL, tags: &tags };
        assert_eq!(table.verdict(&target, PurgeSequence(stored_at)), expected, "at {stored_at}");
    }

    fn prefix(text: &str) -> PurgeScope {
        PurgeScope::Prefix(text.into())
    }

    #[test]
    fn before_the_tags_are_known_any_tag_may_cover() {
        for (scope, may_cover) in [
            (PurgeScope::Tag("sport".into()), true),
            (PurgeScope::Url(URL.into()), true),
            (PurgeScope::Url("https://a.example/x/z".into()), false),
            (PurgeScope::Site("b".into()), false),
        ] {
            let table = table(&[(scope.clone(), Soft, 5)]);
            let target = PurgeTarget { site: "a", url: URL, tags: &[] };
            assert_eq!(table.may_cover(&target, PurgeSequence(4)), may_cover, "{scope:?}");
            assert!(!table.may_cover(&target, PurgeSequence(5)), "{scope:?}");
        }
    }

    #[test]
    fn every_scope_covers_what_it_names_and_nothing_else() {
        for (scope, covers) in [
            (PurgeScope::All, true),
            (PurgeScope::Site("a".into()), true),
            (PurgeScope::Site("b".into()), false),
            (PurgeScope::Url(URL.into()), true),
            (PurgeScope::Url("https://a.example/x/y".into()), false),
            (PurgeScope::Tag("news".into()), true),
            (PurgeScope::Tag("sport".into()), false),
            (prefix("https://a.example/x/"), true),
            (prefix(URL), true),
            (prefix("https://a.example/x/y?q=12"), false),
            (prefix("https://a.example/z"), false),
            (prefix(""), true),
        ] {
            let table = table(&[(scope, Hard, 5)]);
            check(&table, 4, covers.then_some(Hard));
            check(&table, 5, None);
        }
    }

    #[test]
    fn a_response_to_several_urls_is_covered_by_a_purge_of_any() {
        let verdict = |scope: PurgeScope, tags: &[u64]| {
            let target = PurgeTarget { site: "a", url: URL, tags };
            table(&[(scope, Hard, 5)]).verdict(&target, PurgeSequence(4))
        };
        for (scope, covers) in [
            (PurgeScope::Url("https://a.example/x/y".into()), true),
            (PurgeScope::Url("https://a.example/x/y?utm=7&q=9".into()), true),
            (prefix("https://a.example/x/y?utm="), true),
            (PurgeScope::Url("https://a.example/x/".into()), false),
            (PurgeScope::Url("https://a.example/x/y/z".into()), false),
            (prefix("https://a.example/x/y/"), false),
        ] {
            assert_eq!(verdict(scope.clone(), &[ALIASED]).is_some(), covers, "{scope:?}");
            assert_eq!(verdict(scope.clone(), &[]), None, "{scope:?}");
        }
    }

    #[test]
    fn a_path_counts_as_long_as_one_of_its_urls() {
        let url = |query: &str| PurgeScope::Url(format!("https://a.example/x/y?{query}").into());
        let mut table = table(&[(url("a"), Hard, 5), (url("b"), Hard, 50)]);
        let target = PurgeTarget { site: "a", url: URL, tags: &[ALIASED] };
        assert_eq!(table.prune(20, 100), 1);
        assert_eq!(table.verdict(&target, PurgeSequence(30)), Some(Hard));
        assert_eq!(table.prune(60, 100), 1);
        assert!(table.paths.is_empty(), "nothing is left behind");
        assert_eq!(table.verdict(&target, PurgeSequence(60)), None);
    }

    #[test]
    fn a_later_soft_purge_does_not_undo_a_hard_one() {
        let both = table(&[(PurgeScope::All, Hard, 5), (PurgeScope::All, Soft, 9)]);
        check(&both, 4, Some(Hard));
        check(&both, 7, Some(Soft));
        check(&both, 9, None);
    }

    #[test]
    fn the_strongest_of_several_scopes_counts() {
        let both = table(&[
            (PurgeScope::Tag("news".into()), Soft, 9),
            (prefix("https://a.example/"), Hard, 7),
        ]);
        check(&both, 6, Some(Hard));
        check(&both, 8, Some(Soft));
    }

    #[test]
    fn a_full_table_widens_its_oldest_entries_and_forgets_none() {
        let mut full = table(&[
            (PurgeScope::Url(URL.into()), Hard, 5),
            (PurgeScope::Url("https://other/".into()), Hard, 6),
            (PurgeScope::Tag("sport".into()), Hard, 7),
        ]);
        assert_eq!(full.widen_oldest(2), 2);
        assert_eq!(full.len(), 1);
        check(&full, 4, Some(Soft));
        check(&full, 5, Some(Soft)); // wider than asked for, never narrower
        check(&full, 6, None);
    }

    #[test]
    fn a_response_stored_before_a_pruned_purge_is_gone() {
        let mut old = table(&[(PurgeScope::Url(URL.into()), Soft, 5), (prefix("z"), Soft, 50)]);
        assert_eq!(old.prune(20, 100), 1);
        assert_eq!(old.len(), 1);
        check(&old, 4, Some(Hard));
        check(&old, 20, None);
    }

    #[test]
    fn an_entry_purged_again_is_not_pruned_by_its_first_purge() {
        let url = PurgeScope::Url(URL.into());
        let mut again = table(&[(url.clone(), Hard, 5), (url, Soft, 50)]);
        assert_eq!(again.prune(20, 100), 0);
        assert_eq!(again.len(), 1);
        check(&again, 30, Some(Soft));
    }

    #[test]
    fn a_snapshot_in_small_pieces_holds_every_entry_once() {
        let purges: Vec<_> = (1..=100)
            .map(|sequence| (prefix(&format!("{}", sequence % 37)), Hard, sequence))
            .collect();
        let original = table(&purges);
        let mut copy = PurgeTable::default();
        let mut after = 0;
        loop {
            let entries = original.entries_after(after, 7);
            let Some((last, ..)) = entries.last() else { break };
            after = *last;
            entries.iter().for_each(|(_, scope, latest)| copy.merge(scope, *latest));
        }
        assert_eq!(copy.prefixes, original.prefixes);
    }

    #[test]
    fn one_key_purged_over_and_over_takes_one_place() {
        let purges: Vec<_> = (1..=10_000).map(|at| (prefix("z"), Hard, at)).collect();
        assert!(table(&purges).order.len() < 2_000);
    }
}
