//! What the store holds: heads, variant lists and slices, and how foyer is asked for them.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use bytes::Bytes;

use super::sites::Site;
use crate::cache::vary::Variant;
use crate::cache::{KeyHash, PurgeSequence, StoredResponse, VaryList};
use crate::purge::Checkpoint;
use crate::random::random_u64;

/// What stands under a key's or a variant's hash. Two keys may have one hash: the texts in it
/// tell. Cloning clones one `Arc`.
#[derive(Clone, Debug)]
pub(crate) enum Record {
    /// A stored response.
    Response(Arc<Head>),
    /// The key's responses vary; each variant stands under a hash of its own.
    Variants(Arc<VaryList>),
}

/// A stored response with what the store knows of it. Immutable, apart from marks.
#[derive(Debug)]
pub(crate) struct Head {
    /// What the rules read.
    pub response: StoredResponse,
    /// Which slices are its body.
    pub object: ObjectId,
    /// The whole body, when it fits one slice; or the one part of it that is stored, when it was
    /// stored apart: see [`Store::put_apart`](super::Store::put_apart).
    pub inline: Option<Bytes>,
    /// The slice size it was cut with.
    pub slice_bytes: u32,
    /// What it remembers of the purge log.
    pub(super) checkpoint: Checkpoint,
    pub(super) place: AtomicU8,
}

/// With the counts of its `Arc` it fills one of the allocator's size classes; the next has 320 bytes.
const _: () = assert!(size_of::<Head>() + 16 <= 256);

/// How far a head is on its way to disk. Only ever moves as drawn.
///
/// ```text
/// MEMORY ──(hit, or frequent)──▶ WANTED ──(in the disk's index)──▶ WRITTEN   (read from disk: born so)
///                                  │ not written: offered again when it leaves memory
/// ```
pub(super) mod place {
    pub(crate) const MEMORY: u8 = 0;
    pub(crate) const WANTED: u8 = 1;
    pub(crate) const WRITTEN: u8 = 2;
}

impl Head {
    /// What it stands under: its key's hash, or its variant's.
    pub(crate) fn hash(&self) -> KeyHash {
        self.response.hash()
    }

    /// The body's length as stored or promised.
    pub(crate) fn complete_length(&self) -> u64 {
        let inline = self.inline.as_ref().filter(|_| !self.is_apart());
        let inline = inline.map(|body| body.len() as u64);
        inline.or(self.response.complete_length).unwrap_or_default()
    }

    /// Whether it is a part of an object that nothing can be added to.
    pub(crate) fn is_apart(&self) -> bool {
        self.inline.is_some() && self.response.parts.is_some()
    }

    /// These bytes of what lies in one piece; `None` when it does not, or lacks some.
    pub(crate) fn inline_bytes(&self, range: std::ops::Range<u64>) -> Option<Bytes> {
        let body = self.inline.as_ref()?;
        let parts = self.response.parts.as_deref();
        let first = parts.map_or(0, |parts| parts.first().map_or(0, |part| part.start));
        let start = usize::try_from(range.start.checked_sub(first)?).ok()?;
        let end = usize::try_from(range.end.checked_sub(first)?).ok()?;
        (start <= end && end <= body.len()).then(|| body.slice(start..end))
    }

    /// The purge sequence up to which it was last found untouched.
    pub(crate) fn checked_up_to(&self) -> PurgeSequence {
        self.checkpoint.checked_up_to()
    }

    /// The numbers of the slices that hold these bytes.
    pub(crate) fn slices(&self, bytes: std::ops::Range<u64>) -> std::ops::Range<u32> {
        let size = u64::from(self.slice_bytes);
        let end = bytes.end.min(self.complete_length());
        if bytes.start >= end {
            return 0..0;
        }
        // object_bytes_max / 4 KiB fits: an object has at most u32::MAX slices.
        (bytes.start / size) as u32..end.div_ceil(size) as u32
    }

    /// Which bytes slice `number` holds.
    pub(crate) fn slice_range(&self, number: u32) -> std::ops::Range<u64> {
        let size = u64::from(self.slice_bytes);
        let start = u64::from(number) * size;
        start..(start + size).min(self.complete_length())
    }

    /// The same, but to be validated before it is used.
    pub(super) fn distrusted(&self) -> Self {
        Self {
            response: self.response.clone(),
            object: self.object,
            inline: self.inline.clone(),
            slice_bytes: self.slice_bytes,
            checkpoint: Checkpoint::distrusted(),
            place: AtomicU8::new(place::WRITTEN),
        }
    }

    /// What it weighs in memory, its slices apart.
    pub(super) fn weight(&self) -> usize {
        let response = &self.response;
        size_of::<Self>()
            + ENTRY_OVERHEAD
            + response.key.len()
            + response.variant.len()
            + size_of_val(&*response.tags)
            + response.parts.as_ref().map_or(0, |parts| size_of_val(&**parts))
            + response.headers.weight()
            + self.inline.as_ref().map_or(0, Bytes::len)
    }
}

/// What identifies a body: never used twice, not by another node, not after a restart.
///
/// ```text
///  96 bits: 64 random bits of this process, 32 bits counted   32 bits: the upper bits of the head's hash
/// ```
///
/// The lower part puts an object's slices on the same disk as its head.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ObjectId(pub(super) u128);

impl std::fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Makes object ids.
#[derive(Debug)]
pub(super) struct ObjectIds {
    random: u64,
    next: AtomicU64,
}

impl ObjectIds {
    pub(super) fn new() -> Self {
        Self { random: random_u64(), next: AtomicU64::new(0) }
    }

    pub(super) fn next(&self, hash: KeyHash) -> ObjectId {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        // After 2^32 objects the count runs on into the random part: still never the same.
        let unique = ((u128::from(self.random) << 32) + u128::from(number)) << 32;
        ObjectId(unique | u128::from(home_of_hash(hash)))
    }
}

/// Which disk: a head and its slices have one home.
pub(super) fn home_of_hash(hash: KeyHash) -> u32 {
    (hash.0 >> 96) as u32
}

/// What foyer is asked for: a head by its hash, or a slice by object and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PieceKey {
    /// Lower half and upper half: a `u128` would be aligned to sixteen bytes.
    id: [u64; 2],
    /// The slice's number plus one; zero is a head.
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

    pub(super) fn head(hash: KeyHash) -> Self {
        Self::new(hash.0, 0)
    }

    pub(super) fn slice(object: ObjectId, number: u32) -> Self {
        Self::new(object.0, number + 1)
    }

    /// A head's hash, or a slice's object.
    pub(super) fn id(&self) -> u128 {
        u128::from(self.id[0]) | u128::from(self.id[1]) << 64
    }

    pub(super) fn is_head(&self) -> bool {
        self.number == 0
    }

    pub(super) fn home(&self) -> u32 {
        if self.number == 0 { home_of_hash(KeyHash(self.id())) } else { self.id[0] as u32 }
    }
}

/// The one value type in foyer.
#[derive(Debug)]
pub(super) enum Piece {
    Record(Record),
    /// Apart, so that the many heads take no more room for it.
    Slice(Box<Slice>),
    /// Read from disk in another version, or damaged: a miss.
    Unknown,
}

#[derive(Debug)]
pub(super) struct Slice {
    pub bytes: Bytes,
    /// Whether it is worth a disk write: see [`super::Admission`].
    pub wanted: AtomicBool,
    /// Whose it is; not known of one read from disk for nobody in particular.
    pub site: Option<Arc<Site>>,
}

impl Piece {
    pub(super) fn slice(bytes: Bytes, wanted: bool, site: Option<Arc<Site>>) -> Self {
        Self::Slice(Box::new(Slice { bytes, wanted: AtomicBool::new(wanted), site }))
    }

    /// The same piece for foyer to write: bytes are shared.
    pub(super) fn share(&self) -> Self {
        match self {
            Self::Record(record) => Self::Record(record.clone()),
            Self::Slice(slice) => {
                let Slice { bytes, wanted, site } = &**slice;
                Self::slice(bytes.clone(), wanted.load(Ordering::Relaxed), site.clone())
            }
            Self::Unknown => Self::Unknown,
        }
    }

    /// The same piece, now known to be of this site.
    pub(super) fn owned_by(mut self, owner: Option<Arc<Site>>) -> Self {
        if let Self::Slice(slice) = &mut self {
            slice.site = owner;
        }
        self
    }

    /// Bytes that it holds in memory.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Record(Record::Response(head)) => head.weight(),
            Self::Record(Record::Variants(list)) => {
                let variants = list.sets.iter().map(|set| set.fields.len() + set.variants.len());
                let lists = variants.sum::<usize>() * size_of::<Variant>();
                ENTRY_OVERHEAD + size_of::<VaryList>() + lists
            }
            Self::Slice(slice) => ENTRY_OVERHEAD + size_of::<Slice>() + slice.bytes.len(),
            Self::Unknown => ENTRY_OVERHEAD,
        }
    }
}

/// foyer's record (128 bytes), its slot in a hash table and the counts of our `Arc` (16 each), and
/// what the allocator rounds up: `store::tests::bench::hits_in_memory` finds a little less resident
/// (docs/benchmarks-store.md).
const ENTRY_OVERHEAD: usize = 192;

/// foyer's hash of a [`PieceKey`]: the same in every build, since it is on disk. The ids are
/// hashes or unique already; foyer compares the whole key.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PieceHasher;

impl std::hash::BuildHasher for PieceHasher {
    type Hasher = FoldingHasher;

    fn build_hasher(&self) -> FoldingHasher {
        FoldingHasher(0)
    }
}

/// Folds what it is fed by multiplication (the constants are those of SplitMix64).
#[derive(Debug)]
pub(super) struct FoldingHasher(u64);

impl FoldingHasher {
    fn feed(&mut self, word: u64) {
        let mixed = (self.0 ^ word).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        self.0 = (mixed ^ (mixed >> 31)).wrapping_mul(0x94d0_49bb_1331_11eb);
    }
}

impl std::hash::Hasher for FoldingHasher {
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
