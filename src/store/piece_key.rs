//! The keys of the two tiers: which piece is meant, which directory it belongs to, and its hash.

use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::cache::KeyHash;
use crate::random::random_u64;

/// Identifies one body. An id is never used twice, by any node, across restarts.
///
/// ```text
///  64 random bits of the process, 32 bits counted   |   32 bits: the upper bits of the key's hash
/// ```
///
/// The lower part places an object's slices in the same directory as its head.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ObjectId(pub(super) u128);

impl ObjectId {
    /// The id as a number, for [`crate::cache::Form::source`].
    pub(crate) fn get(self) -> u128 {
        self.0
    }
}

impl std::fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Generates object ids. Copies of other nodes' responses have ids of a series of their own, so that the id in a
/// slice or a form tells that it is of a copy.
#[derive(Debug)]
pub(super) struct ObjectIds {
    own: IdSeries,
    copies: IdSeries,
}

impl ObjectIds {
    pub(super) fn new() -> Self {
        Self { own: IdSeries::new(), copies: IdSeries::new() }
    }

    /// A new id for an object that is stored under `hash`.
    pub(super) fn next(&self, hash: KeyHash) -> ObjectId {
        self.own.next(hash)
    }

    /// A new id for a copy that is stored under `hash`.
    pub(super) fn next_copy(&self, hash: KeyHash) -> ObjectId {
        self.copies.next(hash)
    }

    /// Whether an id is that of a copy.
    pub(super) fn is_copy(&self, object: u128) -> bool {
        self.copies.has(object)
    }
}

#[derive(Debug)]
struct IdSeries {
    random: u64,
    next: AtomicU64,
}

impl IdSeries {
    fn new() -> Self {
        Self { random: random_u64(), next: AtomicU64::new(0) }
    }

    /// Whether an id was given out by this series.
    fn has(&self, object: u128) -> bool {
        let number = (object >> 32).wrapping_sub(u128::from(self.random) << 32);
        number < u128::from(self.next.load(Ordering::Relaxed))
    }

    fn next(&self, hash: KeyHash) -> ObjectId {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        // After 2^32 objects the count carries into the random part, and the id is still unique.
        let unique = ((u128::from(self.random) << 32) + u128::from(number)) << 32;
        ObjectId(unique | u128::from(home_of_hash(hash)))
    }
}

/// The bits that select the directory of a head and of its slices.
fn home_of_hash(hash: KeyHash) -> u32 {
    (hash.0 >> 96) as u32
}

/// The key of a piece: a record by its hash, or a slice by object and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PieceKey {
    /// Lower half, upper half. A `u128` would be aligned to sixteen bytes.
    id: [u64; 2],
    /// The slice's number plus one; zero for a record.
    pub number: u32,
}

impl Hash for PieceKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(self.id());
        state.write_u32(self.number);
    }
}

impl PieceKey {
    pub(super) fn new(id: u128, number: u32) -> Self {
        Self { id: [id as u64, (id >> 64) as u64], number }
    }

    /// The key of the record under a cache key's or a variant's hash.
    pub(super) fn head(hash: KeyHash) -> Self {
        Self::new(hash.0, 0)
    }

    pub(super) fn slice(object: ObjectId, number: u32) -> Self {
        Self::new(object.0, number + 1)
    }

    /// A record's hash, or a slice's object.
    pub(super) fn id(&self) -> u128 {
        u128::from(self.id[0]) | u128::from(self.id[1]) << 64
    }

    pub(super) fn is_head(&self) -> bool {
        self.number == 0
    }

    /// The bits that select the piece's directory.
    pub(super) fn home(&self) -> u32 {
        if self.is_head() { home_of_hash(KeyHash(self.id())) } else { self.id[0] as u32 }
    }

    /// The hash under which the index of a directory has the piece.
    pub(super) fn index_hash(&self) -> u64 {
        PieceHasher.hash_one(self)
    }

    /// The key on disk: id (16 bytes), number (4 bytes), little-endian.
    pub(super) fn to_bytes(self) -> [u8; KEY_BYTES] {
        let mut bytes = [0; KEY_BYTES];
        bytes[..16].copy_from_slice(&self.id().to_le_bytes());
        bytes[16..].copy_from_slice(&self.number.to_le_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8; KEY_BYTES]) -> Self {
        let (id, number) = bytes.split_at(16);
        let id = u128::from_le_bytes(id.try_into().expect("sixteen bytes"));
        Self::new(id, u32::from_le_bytes(number.try_into().expect("four bytes")))
    }
}

/// Length of an encoded [`PieceKey`].
pub(super) const KEY_BYTES: usize = 20;

/// Hashes a [`PieceKey`] to the 64 bits that the memory tier and the disk index use. The result is
/// stored on disk, so it must be the same in every build. Ids are hashes or unique, so that simple
/// mixing suffices; both tiers compare the whole key.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PieceHasher;

impl std::hash::BuildHasher for PieceHasher {
    type Hasher = FoldingHasher;

    fn build_hasher(&self) -> FoldingHasher {
        FoldingHasher(0)
    }
}

/// Mixes each word by multiplication with the constants of SplitMix64.
#[derive(Debug)]
pub(super) struct FoldingHasher(u64);

impl FoldingHasher {
    fn feed(&mut self, word: u64) {
        let mixed = (self.0 ^ word).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        self.0 = (mixed ^ (mixed >> 31)).wrapping_mul(0x94d0_49bb_1331_11eb);
    }
}

impl Hasher for FoldingHasher {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.feed(u64::from(*byte)));
    }

    fn write_u32(&mut self, word: u32) {
        self.feed(u64::from(word));
    }

    fn write_u128(&mut self, word: u128) {
        self.feed(word as u64);
        self.feed((word >> 64) as u64);
    }
}
