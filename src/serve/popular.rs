//! The most requested stored responses, estimated from a sample of the hits, so that they can be fetched
//! again after a purge before clients miss them.
//!
//! Each core has a set-associative table of counters. A hit increments its entry; a hit without an entry
//! decrements the weakest entry of its set and replaces it at zero. So popular responses keep their
//! entries, however many others are requested once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::cache::KeyHash;
use crate::store::{Store, StoredHead};

/// The counters of all cores.
pub(crate) struct Popular {
    cores: Box<[Mutex<Counters>]>,
}

#[derive(Clone, Default)]
struct Counter {
    hash: u128,
    /// Zero: the entry is free.
    count: u32,
    /// The object that was hit last, and the count when it was hit first.
    object: u128,
    before: u32,
    /// Weak, so that a counter keeps no response in memory.
    head: Weak<StoredHead>,
}

/// The counters of one core, by set.
struct Counters(Box<[[Counter; WAYS]]>);

impl Popular {
    /// Counters for this many cores.
    pub(crate) fn new(cores: usize) -> Arc<Self> {
        let counters = || Mutex::new(Counters((0..SETS).map(|_| Default::default()).collect()));
        Arc::new(Self { cores: (0..cores).map(|_| counters()).collect() })
    }

    /// Counts a hit of the sample that core `core` takes. Returns how many hits of the same object the sample has.
    pub(super) fn note(&self, core: usize, hash: KeyHash, head: &Arc<StoredHead>) -> u32 {
        self.counters(core).note(hash.0, head)
    }

    /// The URLs of popular responses that have been purged, the most popular first.
    pub(crate) fn purged(&self, store: &Store) -> Vec<Box<str>> {
        let mut counts: HashMap<Box<str>, u32> = HashMap::new();
        for core in 0..self.cores.len() {
            // The lock is released before the purge table is asked.
            let counted: Vec<(u32, Arc<StoredHead>)> = self.counters(core).all();
            for (count, head) in counted {
                if store.purge_verdict(&head).is_some() {
                    *counts.entry(head.response.purge_target().url.into()).or_default() += count;
                }
            }
        }
        let mut urls: Vec<(Box<str>, u32)> = counts.into_iter().collect();
        urls.sort_by(|(url, count), (other, others)| others.cmp(count).then(url.cmp(other)));
        urls.into_iter().map(|(url, _)| url).collect()
    }

    /// The URLs of the most requested stored responses, with their shares of all hits that are counted here, from 0
    /// to 1; at most `limit`.
    pub(crate) fn top(&self, limit: usize) -> Vec<(Box<str>, f64)> {
        let mut counts: HashMap<Box<str>, u64> = HashMap::new();
        for core in 0..self.cores.len() {
            // The lock is released before the URLs are read.
            let counted = self.counters(core).all();
            for (count, head) in counted {
                *counts.entry(head.response.purge_target().url.into()).or_default() +=
                    u64::from(count);
            }
        }
        let all = counts.values().sum::<u64>().max(1) as f64;
        let mut top: Vec<(Box<str>, u64)> = counts.into_iter().collect();
        top.sort_by(|(url, count), (other, others)| others.cmp(count).then(url.cmp(other)));
        top.truncate(limit);
        top.into_iter().map(|(url, count)| (url, count as f64 / all)).collect()
    }

    fn counters(&self, core: usize) -> MutexGuard<'_, Counters> {
        self.cores[core].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counters {
    fn note(&mut self, hash: u128, head: &Arc<StoredHead>) -> u32 {
        let object = head.object.get();
        let set = &mut self.0[hash as usize % SETS];
        if let Some(counter) = set.iter_mut().find(|entry| entry.hash == hash && entry.count > 0) {
            if counter.object != object {
                (counter.object, counter.before) = (object, counter.count);
            }
            counter.count = counter.count.saturating_add(1);
            if counter.head.as_ptr() != Arc::as_ptr(head) {
                counter.head = Arc::downgrade(head);
            }
            return counter.count.saturating_sub(counter.before);
        }
        let weakest = set.iter_mut().min_by_key(|entry| entry.count).expect("a set is not empty");
        weakest.count = weakest.count.saturating_sub(1);
        if weakest.count == 0 {
            let head = Arc::downgrade(head);
            *weakest = Counter { hash, count: 1, object, before: 0, head };
            return 1;
        }
        0
    }

    fn all(&self) -> Vec<(u32, Arc<StoredHead>)> {
        let counters = self.0.iter().flatten().filter(|counter| counter.count > 0);
        counters.filter_map(|counter| Some((counter.count, counter.head.upgrade()?))).collect()
    }
}

/// Entries of a set.
const WAYS: usize = 8;
/// Sets of a core.
const SETS: usize = 128;
