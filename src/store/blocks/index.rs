//! The index of a directory in memory: the hash of a key → where its entry is.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{PoisonError, RwLock, RwLockWriteGuard};

use super::entry::EntryLocation;

/// 17 bytes per entry; 19 to 39 with the free places of its tables.
pub(super) struct Index(Box<[RwLock<Shard>]>);

type Shard = HashMap<u64, EntryLocation, BuildHasherDefault<IdentityHasher>>;

impl Index {
    pub(super) fn new() -> Self {
        Self((0..SHARDS).map(|_| RwLock::default()).collect())
    }

    fn shard(&self, hash: u64) -> &RwLock<Shard> {
        // Bits that the shard's table does not use first.
        &self.0[(hash >> 48) as usize % SHARDS]
    }

    fn write(&self, hash: u64) -> RwLockWriteGuard<'_, Shard> {
        self.shard(hash).write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, hash: u64) -> Option<EntryLocation> {
        self.shard(hash).read().unwrap_or_else(PoisonError::into_inner).get(&hash).copied()
    }

    pub(super) fn insert(&self, hash: u64, location: EntryLocation) {
        self.write(hash).insert(hash, location);
    }

    /// As [`Index::insert`], if `is_wanted`, which is asked while no other thread changes this entry.
    pub(super) fn insert_if(
        &self,
        hash: u64,
        location: EntryLocation,
        is_wanted: impl FnOnce() -> bool,
    ) {
        let mut shard = self.write(hash);
        if is_wanted() {
            shard.insert(hash, location);
        }
    }

    pub(super) fn remove(&self, hash: u64) {
        self.write(hash).remove(&hash);
    }

    /// Removes an entry if its location satisfies `is_gone`. Returns whether it was removed.
    pub(super) fn remove_if(&self, hash: u64, is_gone: impl Fn(EntryLocation) -> bool) -> bool {
        let mut shard = self.write(hash);
        let removed = shard.get(&hash).is_some_and(|location| is_gone(*location));
        if removed {
            shard.remove(&hash);
        }
        removed
    }

    /// Keeps the entries whose location satisfies `keep`. Visits all of them.
    pub(super) fn retain(&self, keep: impl Fn(EntryLocation) -> bool) {
        for shard in &self.0 {
            let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
            shard.retain(|_, location| keep(*location));
        }
    }
}

/// The keys of the table are hashes already.
#[derive(Default)]
struct IdentityHasher(u64);

impl Hasher for IdentityHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("the keys are whole numbers");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

const SHARDS: usize = 64;
