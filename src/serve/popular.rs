//! What is asked for most, by a sample of the hits: so that it can be fetched again after a purge
//! before clients miss it.
//!
//! A table of fixed size for each core, in sets of a few places. Who is seen again gains, a newcomer
//! wears down the weakest of its set until the place is free: what is popular stays, whatever else
//! passes by.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::cache::KeyHash;
use crate::store::{Head, Store};

/// The tables of all cores.
pub(crate) struct Popular {
    cores: Box<[Mutex<Table>]>,
}

#[derive(Clone, Default)]
struct Place {
    hash: u128,
    count: u32,
    /// Weak: to be popular keeps nothing in memory.
    head: Weak<Head>,
}

struct Table(Box<[[Place; WAYS]]>);

impl Popular {
    /// Tables for so many cores.
    pub(crate) fn new(cores: usize) -> Arc<Self> {
        let table = || Mutex::new(Table((0..SETS).map(|_| Default::default()).collect()));
        Arc::new(Self { cores: (0..cores).map(|_| table()).collect() })
    }

    /// A hit that is part of core `core`'s sample.
    pub(super) fn note(&self, core: usize, hash: KeyHash, head: &Arc<Head>) {
        self.table(core).note(hash.0, head);
    }

    /// The URLs of what is popular and has been purged, the most popular first.
    pub(crate) fn purged(&self, store: &Store) -> Vec<Box<str>> {
        let mut counts: HashMap<Box<str>, u32> = HashMap::new();
        for core in 0..self.cores.len() {
            // Verdicts are not asked for under the lock.
            let seen: Vec<(u32, Arc<Head>)> = self.table(core).seen();
            for (count, head) in seen {
                if store.purge_verdict(&head).is_some() {
                    *counts.entry(head.response.purge_target().url.into()).or_default() += count;
                }
            }
        }
        let mut urls: Vec<(Box<str>, u32)> = counts.into_iter().collect();
        urls.sort_by(|(url, count), (other, others)| others.cmp(count).then(url.cmp(other)));
        urls.into_iter().map(|(url, _)| url).collect()
    }

    fn table(&self, core: usize) -> MutexGuard<'_, Table> {
        self.cores[core].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn note(&mut self, hash: u128, head: &Arc<Head>) {
        let set = &mut self.0[hash as usize % SETS];
        if let Some(place) = set.iter_mut().find(|place| place.hash == hash && place.count > 0) {
            place.count = place.count.saturating_add(1);
            if place.head.as_ptr() != Arc::as_ptr(head) {
                place.head = Arc::downgrade(head);
            }
            return;
        }
        let weakest = set.iter_mut().min_by_key(|place| place.count).expect("a set has places");
        weakest.count = weakest.count.saturating_sub(1);
        if weakest.count == 0 {
            *weakest = Place { hash, count: 1, head: Arc::downgrade(head) };
        }
    }

    fn seen(&self) -> Vec<(u32, Arc<Head>)> {
        let places = self.0.iter().flatten().filter(|place| place.count > 0);
        places.filter_map(|place| Some((place.count, place.head.upgrade()?))).collect()
    }
}

const WAYS: usize = 8;
const SETS: usize = 128;
