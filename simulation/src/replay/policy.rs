//! Eviction and admission, as models: each holds so many bytes of numbered objects.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

/// Which object.
pub type Object = u64;

/// The eviction policy of a memory tier.
pub trait Policy {
    /// Whether it holds the object; counts as a use of it.
    fn touch(&mut self, object: Object) -> bool;

    /// Takes the object in and puts others out until there is room. What is larger than the
    /// whole tier is not taken in.
    fn insert(&mut self, object: Object, bytes: u64);
}

/// The policies to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum PolicyName {
    /// The edge's: small, main and ghost queues (Yang et al., SOSP 2023).
    #[value(name = "s3-fifo")]
    S3Fifo,
    /// Least recently used.
    #[value(name = "lru")]
    Lru,
    /// Least frequently used, the older of equals first.
    #[value(name = "lfu")]
    Lfu,
}

impl PolicyName {
    /// All of them, the edge's first.
    pub const ALL: [PolicyName; 3] = [PolicyName::S3Fifo, PolicyName::Lru, PolicyName::Lfu];

    /// For tables.
    pub fn as_str(self) -> &'static str {
        match self {
            PolicyName::S3Fifo => "S3-FIFO",
            PolicyName::Lru => "LRU",
            PolicyName::Lfu => "LFU",
        }
    }

    /// An empty one.
    pub fn build(self, bytes: u64) -> Box<dyn Policy> {
        match self {
            PolicyName::S3Fifo => Box::new(S3Fifo::new(bytes)),
            PolicyName::Lru => Box::new(Ranked::new(bytes, |_, now| (0, now))),
            PolicyName::Lfu => Box::new(Ranked::new(bytes, |uses, now| (uses, now))),
        }
    }
}

/// LRU and LFU: evicts the lowest rank, which each use sets anew.
struct Ranked {
    capacity: u64,
    held: u64,
    now: u64,
    rank: fn(u64, u64) -> (u64, u64),
    entries: HashMap<Object, (u64, u64, (u64, u64))>,
    order: BTreeSet<((u64, u64), Object)>,
}

impl Ranked {
    fn new(capacity: u64, rank: fn(u64, u64) -> (u64, u64)) -> Self {
        let (entries, order) = (HashMap::new(), BTreeSet::new());
        Ranked { capacity, held: 0, now: 0, rank, entries, order }
    }
}

impl Policy for Ranked {
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
        while self.held + bytes > self.capacity
            && let Some((_, lowest)) = self.order.pop_first()
        {
            self.held -= self.entries.remove(&lowest).map_or(0, |(bytes, ..)| bytes);
        }
        let rank = (self.rank)(1, self.now);
        self.entries.insert(object, (bytes, 1, rank));
        self.order.insert((rank, object));
        self.held += bytes;
    }
}

/// S3-FIFO: newcomers stand in a small queue, a tenth of the space. What is used again before
/// its turn comes moves to the main queue, the rest is only remembered (ghost); what comes
/// back while it is remembered goes to the main queue at once. The main queue gives what was
/// used another round.
struct S3Fifo {
    capacity: u64,
    small: VecDeque<Object>,
    main: VecDeque<Object>,
    ghost: VecDeque<Object>,
    remembered: HashSet<Object>,
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
            remembered: HashSet::new(),
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
            self.remember(object);
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

    /// As many ghosts as there are objects in the main queue.
    fn remember(&mut self, object: Object) {
        if self.remembered.insert(object) {
            self.ghost.push_back(object);
        }
        while self.ghost.len() > self.main.len().max(64) {
            if let Some(forgotten) = self.ghost.pop_front() {
                self.remembered.remove(&forgotten);
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
        if self.remembered.contains(&object) {
            self.main.push_back(object);
            self.main_bytes += bytes;
        } else {
            self.small.push_back(object);
            self.small_bytes += bytes;
        }
    }
}

/// The disk tier: what is oldest goes first, as in a log of blocks without reinsertion.
pub struct Fifo {
    capacity: u64,
    held: u64,
    order: VecDeque<(Object, u64)>,
    objects: HashSet<Object>,
}

impl Fifo {
    /// Of so many bytes; none holds nothing.
    pub fn new(capacity: u64) -> Self {
        Fifo { capacity, held: 0, order: VecDeque::new(), objects: HashSet::new() }
    }

    /// Whether it holds the object.
    pub fn contains(&self, object: Object) -> bool {
        self.objects.contains(&object)
    }

    /// Whether the object was taken in.
    pub fn insert(&mut self, object: Object, bytes: u64) -> bool {
        if bytes > self.capacity || !self.objects.insert(object) {
            return false;
        }
        self.order.push_back((object, bytes));
        self.held += bytes;
        while self.held > self.capacity
            && let Some((oldest, bytes)) = self.order.pop_front()
        {
            self.objects.remove(&oldest);
            self.held -= bytes;
        }
        true
    }
}

/// How often an object was asked for lately: a count-min sketch as the edge's store has one,
/// halved every million requests.
pub struct Sketch {
    counters: Vec<u8>,
    additions: u32,
}

const COUNTERS: usize = 1 << 22;
const HALVE_EVERY: u32 = 1 << 20;

impl Sketch {
    /// Knows nothing.
    pub fn new() -> Self {
        Sketch { counters: vec![0; COUNTERS], additions: 0 }
    }

    /// Counts a request; how many there were, this one included, never too few.
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
    fn lru_keeps_what_was_used_last() {
        assert_eq!(hits(PolicyName::Lru, 2, &[1, 2, 1, 3, 1, 2]), [1, 1]);
    }

    #[test]
    fn lfu_keeps_what_was_used_most() {
        assert_eq!(hits(PolicyName::Lfu, 2, &[1, 1, 1, 2, 3, 1, 2]), [1, 1, 1]);
    }

    #[test]
    fn s3_fifo_keeps_the_used_through_a_scan_that_lru_does_not() {
        let mut objects: Vec<Object> = vec![1, 2, 1, 2];
        objects.extend(100..140);
        objects.extend([1, 2]);
        assert_eq!(hits(PolicyName::S3Fifo, 20, &objects), [1, 2, 1, 2]);
        assert_eq!(hits(PolicyName::Lru, 20, &objects), [1, 2]);
    }

    #[test]
    fn nothing_holds_more_than_it_may() {
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
    fn the_sketch_counts_never_too_few() {
        let mut sketch = Sketch::new();
        for object in 0..1000 {
            assert!(sketch.add(object) >= 1);
            assert!(sketch.add(object) >= 2);
        }
        let strangers = (1_000_000..1_001_000).filter(|object| sketch.add(*object) > 1).count();
        assert!(strangers < 50, "{strangers}");
    }
}
