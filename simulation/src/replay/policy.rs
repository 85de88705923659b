//! Models of eviction and admission. Each model stores numbers and sizes of objects, not their bytes.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

/// Number of an object.
pub type Object = u64;

/// The eviction policy of a memory tier.
pub trait Policy {
    /// Whether the object is stored; counts as a use of it.
    fn touch(&mut self, object: Object) -> bool;

    /// Stores an object and evicts others until it fits. An object larger than the tier is not stored.
    fn insert(&mut self, object: Object, bytes: u64);
}

/// The policies to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum PolicyName {
    /// The policy of the node: small, main and ghost queues (Yang et al., SOSP 2023).
    #[value(name = "s3-fifo")]
    S3Fifo,
    /// Least recently used.
    #[value(name = "lru")]
    Lru,
    /// Least frequently used; among equals the least recently used.
    #[value(name = "lfu")]
    Lfu,
}

impl PolicyName {
    /// All policies; the node's policy is first.
    pub const ALL: [PolicyName; 3] = [PolicyName::S3Fifo, PolicyName::Lru, PolicyName::Lfu];

    /// The name in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            PolicyName::S3Fifo => "S3-FIFO",
            PolicyName::Lru => "LRU",
            PolicyName::Lfu => "LFU",
        }
    }

    /// An empty memory tier of this size with the policy.
    pub fn build(self, bytes: u64) -> Box<dyn Policy> {
        match self {
            PolicyName::S3Fifo => Box::new(S3Fifo::new(bytes)),
            PolicyName::Lru => Box::new(RankedCache::new(bytes, |_, now| (0, now))),
            PolicyName::Lfu => Box::new(RankedCache::new(bytes, |uses, now| (uses, now))),
        }
    }
}

/// LRU or LFU: evicts the object with the lowest rank. Each use updates an object's rank.
struct RankedCache {
    capacity: u64,
    used_bytes: u64,
    now: u64,
    rank: fn(u64, u64) -> (u64, u64),
    entries: HashMap<Object, (u64, u64, (u64, u64))>,
    order: BTreeSet<((u64, u64), Object)>,
}

impl RankedCache {
    fn new(capacity: u64, rank: fn(u64, u64) -> (u64, u64)) -> Self {
        let (entries, order) = (HashMap::new(), BTreeSet::new());
        RankedCache { capacity, used_bytes: 0, now: 0, rank, entries, order }
    }
}

impl Policy for RankedCache {
    fn touch(&mut self, object: Object) -> bool {
        self.now += 1;
        let Some((_, uses, rank)) = self.entries.get_mut(&object) else { return false };
        self.order.remove(&(*rank, object));
        *uses += 1;
        *rank = (self.rank)(*uses, self.now);
        self.order.insert((*rank, object));
        true
    }

    fn insert(&mut self, object: Object, bytes: u64) {
        if bytes > self.capacity {
            return;
        }
        while self.used_bytes + bytes > self.capacity
            && let Some((_, lowest)) = self.order.pop_first()
        {
            self.used_bytes -= self.entries.remove(&lowest).map_or(0, |(bytes, ..)| bytes);
        }
        let rank = (self.rank)(1, self.now);
        self.entries.insert(object, (bytes, 1, rank));
        self.order.insert((rank, object));
        self.used_bytes += bytes;
    }
}

/// S3-FIFO: a new object enters the small queue, a tenth of the space. At the end of that queue it moves
/// to the main queue if it was used again; otherwise it is evicted and its number enters the ghost
/// queue. A new object whose number is in the ghost queue enters the main queue directly. An object at
/// the end of the main queue is reinserted if it was used.
struct S3Fifo {
    capacity: u64,
    small: VecDeque<Object>,
    main: VecDeque<Object>,
    ghost: VecDeque<Object>,
    ghost_objects: HashSet<Object>,
    entries: HashMap<Object, Entry>,
    small_bytes: u64,
    main_bytes: u64,
}

struct Entry {
    bytes: u64,
    uses: u8,
}

impl S3Fifo {
    fn new(capacity: u64) -> Self {
        S3Fifo {
            capacity,
            small: VecDeque::new(),
            main: VecDeque::new(),
            ghost: VecDeque::new(),
            ghost_objects: HashSet::new(),
            entries: HashMap::new(),
            small_bytes: 0,
            main_bytes: 0,
        }
    }

    fn make_room(&mut self) {
        if self.small_bytes * 10 >= self.capacity || self.main.is_empty() {
            self.shrink_small();
        } else {
            self.shrink_main();
        }
    }

    fn shrink_small(&mut self) {
        let Some(object) = self.small.pop_front() else { return self.shrink_main() };
        let Some(entry) = self.entries.get_mut(&object) else { return };
        self.small_bytes -= entry.bytes;
        if entry.uses > 0 {
            entry.uses = 0;
            self.main_bytes += entry.bytes;
            self.main.push_back(object);
        } else {
            self.entries.remove(&object);
            self.add_ghost(object);
        }
    }

    fn shrink_main(&mut self) {
        while let Some(object) = self.main.pop_front() {
            let Some(entry) = self.entries.get_mut(&object) else { continue };
            if entry.uses > 0 {
                entry.uses -= 1;
                self.main.push_back(object);
                continue;
            }
            self.main_bytes -= entry.bytes;
            self.entries.remove(&object);
            return;
        }
    }

    /// Adds an object to the ghost queue, which is as long as the main queue.
    fn add_ghost(&mut self, object: Object) {
        if self.ghost_objects.insert(object) {
            self.ghost.push_back(object);
        }
        while self.ghost.len() > self.main.len().max(64) {
            if let Some(forgotten) = self.ghost.pop_front() {
                self.ghost_objects.remove(&forgotten);
            }
        }
    }
}

impl Policy for S3Fifo {
    fn touch(&mut self, object: Object) -> bool {
        let entry = self.entries.get_mut(&object);
        entry.map(|entry| entry.uses = (entry.uses + 1).min(3)).is_some()
    }

    fn insert(&mut self, object: Object, bytes: u64) {
        if bytes > self.capacity {
            return;
        }
        while self.small_bytes + self.main_bytes + bytes > self.capacity {
            self.make_room();
        }
        self.entries.insert(object, Entry { bytes, uses: 0 });
        if self.ghost_objects.contains(&object) {
            self.main.push_back(object);
            self.main_bytes += bytes;
        } else {
            self.small.push_back(object);
            self.small_bytes += bytes;
        }
    }
}

/// The disk tier: evicts the oldest object, like a ring of blocks without reinsertion.
pub struct Fifo {
    capacity: u64,
    used_bytes: u64,
    order: VecDeque<(Object, u64)>,
    objects: HashSet<Object>,
}

impl Fifo {
    /// A tier with a capacity in bytes; 0 stores nothing.
    pub fn new(capacity: u64) -> Self {
        Fifo { capacity, used_bytes: 0, order: VecDeque::new(), objects: HashSet::new() }
    }

    /// Whether the object is stored.
    pub fn contains(&self, object: Object) -> bool {
        self.objects.contains(&object)
    }

    /// Stores an object; returns false if it is stored already or larger than the tier.
    pub fn insert(&mut self, object: Object, bytes: u64) -> bool {
        if bytes > self.capacity || !self.objects.insert(object) {
            return false;
        }
        self.order.push_back((object, bytes));
        self.used_bytes += bytes;
        while self.used_bytes > self.capacity
            && let Some((oldest, bytes)) = self.order.pop_front()
        {
            self.objects.remove(&oldest);
            self.used_bytes -= bytes;
        }
        true
    }
}

/// Counts recent requests for each object, like the admission of the node's store: a count-min sketch
/// whose counters are halved every million requests.
pub struct Sketch {
    counters: Vec<u8>,
    additions: u32,
}

const COUNTERS: usize = 1 << 22;
const HALVE_EVERY: u32 = 1 << 20;

impl Sketch {
    /// A sketch without counts.
    pub fn new() -> Self {
        Sketch { counters: vec![0; COUNTERS], additions: 0 }
    }

    /// Counts a request and returns an estimate of the requests for the object, including this one. The
    /// estimate is never too low.
    pub fn add(&mut self, object: Object) -> u8 {
        self.additions += 1;
        if self.additions == HALVE_EVERY {
            self.additions = 0;
            self.counters.iter_mut().for_each(|counter| *counter /= 2);
        }
        let rows = [0x9e37_79b9_7f4a_7c15u64, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb];
        let count = |multiplier: u64| {
            let hash = (object ^ (object >> 31)).wrapping_mul(multiplier);
            let counter = &mut self.counters[(hash >> 42) as usize % COUNTERS];
            *counter = counter.saturating_add(1);
            *counter
        };
        rows.map(count).into_iter().min().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(policy: PolicyName, capacity: u64, objects: &[Object]) -> Vec<Object> {
        let mut cache = policy.build(capacity);
        let mut hits = Vec::new();
        for object in objects {
            match cache.touch(*object) {
                true => hits.push(*object),
                false => cache.insert(*object, 1),
            }
        }
        hits
    }

    #[test]
    fn lru_evicts_the_least_recently_used() {
        assert_eq!(hits(PolicyName::Lru, 2, &[1, 2, 1, 3, 1, 2]), [1, 1]);
    }

    #[test]
    fn lfu_evicts_the_least_frequently_used() {
        assert_eq!(hits(PolicyName::Lfu, 2, &[1, 1, 1, 2, 3, 1, 2]), [1, 1, 1]);
    }

    #[test]
    fn s3_fifo_keeps_used_objects_during_a_scan_and_lru_does_not() {
        let mut objects: Vec<Object> = vec![1, 2, 1, 2];
        objects.extend(100..140);
        objects.extend([1, 2]);
        assert_eq!(hits(PolicyName::S3Fifo, 20, &objects), [1, 2, 1, 2]);
        assert_eq!(hits(PolicyName::Lru, 20, &objects), [1, 2]);
    }

    #[test]
    fn no_tier_exceeds_its_capacity() {
        let mut fifo = Fifo::new(10);
        assert!(fifo.insert(1, 6) && fifo.insert(2, 6));
        assert!(!fifo.contains(1) && fifo.contains(2));
        assert!(!fifo.insert(3, 11) && !fifo.insert(2, 6));
        for policy in PolicyName::ALL {
            let mut cache = policy.build(10);
            cache.insert(1, 11);
            assert!(!cache.touch(1), "{}", policy.as_str());
        }
    }

    #[test]
    fn the_sketch_never_counts_too_low() {
        let mut sketch = Sketch::new();
        for object in 0..1000 {
            assert!(sketch.add(object) >= 1);
            assert!(sketch.add(object) >= 2);
        }
        let overestimated = (1_000_000..1_001_000).filter(|object| sketch.add(*object) > 1).count();
        assert!(overestimated < 50, "{overestimated}");
    }
}
