//! A disk's pieces in one file, written in a ring of blocks, and the index that finds them.
//!
//! ```text
//! block    entry* ──▶   free   ◀── slot*                 full when they meet
//! entry    value's length (4)  checksum (8)  key (20)  value            from a multiple of UNIT on
//! slot     hash (8)  sequence (8)  unit (4)  value's length (4)  check (8)
//! ```
//!
//! Entries grow from a block's start, slots from its end. A block is written once from its start to
//! its end; then the next in the ring is, and what was in that is forgotten. Sequences count all
//! entries that were ever written, so a slot that the last round has left behind is told by a lower
//! one than its neighbour's. Slots are written after their entries, and a start reads slots alone.
//!
//! Nothing is synced: what the power took is told by its checksum, and is a miss. A failed write
//! leaves the index without its pieces and the block as it was. All numbers are little-endian.
//!
//! A block's space is taken (`fallocate`) before anything is written into it, one block after the
//! other. Where the file system has no room for one more beyond the reserve, the ring has as many
//! blocks as it has, and asks again when it is through with them.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::hash::{BuildHasherDefault, Hasher};
use std::io::{self, IoSliceMut, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;
use foyer::Code;
use rustix::fs::FallocateFlags;
use rustix::io::{Errno, ReadWriteFlags};
use twox_hash::XxHash3_64;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::record::{Piece, PieceKey};
use super::space::{DiskReserve, Space};

/// One file of blocks.
pub(super) struct Blocks {
    file: File,
    block_bytes: u64,
    /// As many as there may be.
    blocks: u64,
    /// The first so many have their space.
    usable: AtomicU64,
    reserve: DiskReserve,
    /// There was no room for one more block when it was asked for last.
    short: AtomicBool,
    index: Index,
    /// Held for as long as a batch is being written.
    ring: Mutex<Ring>,
}

/// Where the next entry goes.
#[derive(Clone, Copy, Debug)]
struct Ring {
    block: u64,
    /// Units of the block that have entries.
    units: u64,
    slots: u64,
    sequence: u64,
}

/// A piece to be written, with foyer's hash of its key.
pub(super) struct Entry<'a> {
    pub hash: u64,
    pub key: &'a PieceKey,
    pub piece: &'a Piece,
}

/// Where an entry is: its first unit in the file (40 bits), its value's length (24 bits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(u64);

/// What was read of an entry.
#[derive(Debug)]
pub(super) enum Read {
    Entry(PieceKey, Bytes),
    /// It has not the checksum that it was written with.
    Damaged,
    /// The page cache does not have all of it.
    NotCached,
}

impl Blocks {
    /// Opens the file, makes it as long as it is to be, and reads the index back.
    ///
    /// # Errors
    /// Besides the system's: [`io::ErrorKind::StorageFull`] where there is no room for one block.
    pub(super) fn open(
        path: &Path,
        bytes: u64,
        block_bytes: u64,
        reserve: DiskReserve,
    ) -> io::Result<Self> {
        let blocks = bytes / block_bytes;
        let sane = block_bytes.is_multiple_of(UNIT) && block_bytes >= SLOTS_READ as u64;
        if !sane || blocks < 2 || bytes / UNIT > UNITS_MAX {
            let reason = format!(
                "a size of {bytes} bytes cannot be divided into blocks of {block_bytes} bytes"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).read(true).write(true).open(path)?;
        if file.metadata()?.len() != blocks * block_bytes {
            file.set_len(blocks * block_bytes)?;
        }
        let ring = Mutex::new(Ring { block: 0, units: 0, slots: 0, sequence: 1 });
        let index = Index::new();
        let taken = file.metadata()?.blocks() * 512 / block_bytes;
        let (usable, short) = (AtomicU64::new(taken.min(blocks)), AtomicBool::new(false));
        let this = Self { file, block_bytes, blocks, usable, reserve, short, index, ring };
        this.recover()?;
        this.grow(1)?;
        if taken < this.usable() {
            // Somebody punched holes, or the file is of a time when blocks were written unreserved.
            let _ = (0..this.usable()).try_for_each(|block| this.take_space(block));
        }
        Ok(this)
    }

    /// Takes the space of more blocks, until the first `wanted` have theirs.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`] where the file system has no more than its reserve left.
    pub(super) fn grow(&self, wanted: u64) -> io::Result<()> {
        for block in self.usable.load(Ordering::Acquire)..wanted.min(self.blocks) {
            if let Err(error) = self.take_space(block) {
                self.short.store(true, Ordering::Release);
                return Err(error);
            }
            self.usable.fetch_max(block + 1, Ordering::AcqRel);
        }
        self.short.store(false, Ordering::Release);
        Ok(())
    }

    fn take_space(&self, block: u64) -> io::Result<()> {
        let room = Space::around(&self.file)?.beyond(self.reserve);
        if room < self.block_bytes {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the file system is full"));
        }
        let (start, length) = (block * self.block_bytes, self.block_bytes);
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), start, length) {
            // A file system that cannot: what is written takes the space.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            done => Ok(done?),
        }
    }

    /// Whether there was no room to grow when that was wanted last.
    pub(super) fn is_short(&self) -> bool {
        self.short.load(Ordering::Acquire)
    }

    /// Blocks that there may be.
    pub(super) fn count(&self) -> u64 {
        self.blocks
    }

    /// Blocks that have their space.
    pub(super) fn usable(&self) -> u64 {
        self.usable.load(Ordering::Acquire)
    }

    /// Bytes of the blocks that have their space.
    pub(super) fn usable_bytes(&self) -> u64 {
        self.usable() * self.block_bytes
    }

    pub(super) fn place(&self, hash: u64) -> Option<Place> {
        self.index.get(hash)
    }

    pub(super) fn forget(&self, hash: u64) {
        self.index.shard_mut(hash).remove(&hash);
    }

    /// Takes an entry out, and says whether it still was there.
    pub(super) fn forget_at(&self, hash: u64, place: Place) -> bool {
        let mut shard = self.index.shard_mut(hash);
        let is_there = shard.get(&hash) == Some(&place);
        if is_there {
            shard.remove(&hash);
        }
        is_there
    }

    /// Whether no batch is being written.
    pub(super) fn is_quiet(&self) -> bool {
        !matches!(self.ring.try_lock(), Err(std::sync::TryLockError::WouldBlock))
    }

    /// Reads an entry if that needs no disk.
    pub(super) fn read_cached(&self, place: Place) -> io::Result<Read> {
        match self.read_with(place, ReadWriteFlags::NOWAIT) {
            // Or the file system cannot tell.
            Err(Errno::AGAIN | Errno::OPNOTSUPP) => Ok(Read::NotCached),
            other => Ok(other?),
        }
    }

    /// Reads an entry; waits for the disk.
    pub(super) fn read(&self, place: Place) -> io::Result<Read> {
        Ok(self.read_with(place, ReadWriteFlags::empty())?)
    }

    fn read_with(&self, place: Place, flags: ReadWriteFlags) -> Result<Read, Errno> {
        let mut start = [0; ENTRY_START];
        let mut value = vec![0; place.length()];
        let (mut at, whole) = (0, ENTRY_START + value.len());
        while at < whole {
            let mut parts = [
                IoSliceMut::new(&mut start[at.min(ENTRY_START)..]),
                IoSliceMut::new(&mut value[at.saturating_sub(ENTRY_START)..]),
            ];
            let from = place.offset() + at as u64;
            match rustix::io::preadv2(&self.file, &mut parts, from, flags) {
                // Somebody has cut the file off.
                Ok(0) => return Ok(Read::Damaged),
                Ok(read) => at += read,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        let length = u32::from_le_bytes(*start.first_chunk().expect("four bytes")) as usize;
        let checksum = u64::from_le_bytes(start[4..12].try_into().expect("eight bytes"));
        let key = &start[12..];
        if length != value.len() || checksum != checksum_of(key, &value) {
            return Ok(Read::Damaged);
        }
        match PieceKey::decode(&mut &*key) {
            Ok(key) => Ok(Read::Entry(key, value.into())),
            Err(_) => Ok(Read::Damaged),
        }
    }

    /// Writes pieces; those that were are in the index then. One at a time: others wait.
    pub(super) fn write(&self, entries: &[Entry<'_>]) -> io::Result<u64> {
        let mut ring = self.ring();
        // Whatever happens, what is older must not be taken for them.
        entries.iter().for_each(|entry| self.forget(entry.hash));
        let mut batch = Batch::default();
        let mut written = 0;
        for entry in entries {
            let value_length = batch.encode(entry)?;
            let units = (ENTRY_START as u64 + value_length).div_ceil(UNIT);
            let slots = ring.slots + batch.slots.len() as u64 + 1;
            let end = ring.units + batch.units + units;
            if value_length > VALUE_MAX || units * UNIT + SLOT > self.block_bytes {
                batch.drop_last();
                continue;
            }
            if end * UNIT + slots * SLOT > self.block_bytes {
                let last = batch.take_last();
                written += self.flush(&mut ring, &mut batch)?;
                self.next_block(&mut ring);
                batch.bytes = last;
            }
            batch.add(entry.hash, value_length, units);
        }
        written += self.flush(&mut ring, &mut batch)?;
        Ok(written)
    }

    /// Writes a batch that fits the block. The ring moves on only when all was written.
    fn flush(&self, ring: &mut Ring, batch: &mut Batch) -> io::Result<u64> {
        let batch = std::mem::take(batch);
        if batch.slots.is_empty() {
            return Ok(0);
        }
        let start = ring.block * self.block_bytes;
        self.file.write_all_at(&batch.bytes, start + ring.units * UNIT)?;
        let mut slots = Vec::with_capacity(batch.slots.len() * SLOT as usize);
        let count = batch.slots.len() as u64;
        for (number, slot) in batch.slots.iter().enumerate().rev() {
            let slot = Slot {
                sequence: ring.sequence + number as u64,
                unit: (ring.units + u64::from(slot.unit)) as u32,
                ..*slot
            };
            slots.extend_from_slice(&slot.to_bytes(ring.block));
        }
        let end = start + self.block_bytes - (ring.slots + count) * SLOT;
        self.file.write_all_at(&slots, end)?;
        for slot in &batch.slots {
            let unit = start / UNIT + ring.units + u64::from(slot.unit);
            self.index.insert(slot.hash, Place::new(unit, slot.length));
        }
        ring.units += batch.units;
        ring.slots += count;
        ring.sequence += count;
        Ok((batch.bytes.len() + slots.len()) as u64)
    }

    /// Goes on with the next block, and forgets what is in it.
    fn next_block(&self, ring: &mut Ring) {
        let next = ring.block + 1;
        let has_space = next < self.usable() || (next < self.blocks && self.grow(next + 1).is_ok());
        ring.block = if has_space { next } else { 0 };
        (ring.units, ring.slots) = (0, 0);
        let units =
            ring.block * self.block_bytes / UNIT..(ring.block + 1) * self.block_bytes / UNIT;
        let is_gone = |place: &Place| units.contains(&(place.offset() / UNIT));
        let read = self.slots(ring.block, |slot| {
            let mut shard = self.index.shard_mut(slot.hash);
            if shard.get(&slot.hash).is_some_and(is_gone) {
                shard.remove(&slot.hash);
            }
        });
        if read.is_err() {
            self.index.retain(|place| !is_gone(place));
        }
    }

    /// Calls `each` for every slot of a block's last round, first to last. Returns the ring as it
    /// stood behind the last.
    fn slots(&self, block: u64, mut each: impl FnMut(&Slot)) -> io::Result<Ring> {
        let mut ring = Ring { block, units: 0, slots: 0, sequence: 0 };
        let end = (block + 1) * self.block_bytes;
        let mut bytes = vec![0; SLOTS_READ];
        loop {
            let left = self.block_bytes - ring.slots * SLOT;
            let count = (SLOTS_READ as u64).min(left) / SLOT;
            if count == 0 {
                return Ok(ring);
            }
            let bytes = &mut bytes[..(count * SLOT) as usize];
            self.file.read_exact_at(bytes, end - (ring.slots + count) * SLOT)?;
            for slot in bytes.rchunks_exact(SLOT as usize) {
                let Some(slot) = Slot::of_bytes(slot, block) else { return Ok(ring) };
                let units = (ENTRY_START as u64 + u64::from(slot.length)).div_ceil(UNIT);
                if slot.sequence <= ring.sequence || u64::from(slot.unit) != ring.units {
                    return Ok(ring);
                }
                ring.sequence = slot.sequence;
                ring.units += units;
                ring.slots += 1;
                each(&slot);
            }
        }
    }

    /// Reads the index back: blocks in the order in which they were written, so that the newest wins.
    fn recover(&self) -> io::Result<()> {
        let mut blocks = self.begun()?;
        blocks.sort_unstable();
        let mut ring = self.ring();
        for (_, block) in blocks {
            let first = block * self.block_bytes / UNIT;
            let read = self.slots(block, |slot| {
                let place = Place::new(first + u64::from(slot.unit), slot.length);
                self.index.insert(slot.hash, place);
            });
            match read {
                Ok(last) => {
                    self.usable.fetch_max(block + 1, Ordering::AcqRel);
                    *ring = last;
                }
                Err(error) => {
                    tracing::warn!(block, %error, "cannot read a block during recovery; its entries are lost")
                }
            }
        }
        // Beyond every slot that a crash may have left unreached behind a torn one.
        ring.sequence += SEQUENCE_GAP;
        Ok(())
    }

    /// Blocks that have an entry, each with its first one's sequence. Several are asked for at a
    /// time: a disk does that much faster, and what comes with the first slots are the next.
    fn begun(&self) -> io::Result<Vec<(u64, u64)>> {
        let first = |block: u64| {
            let mut bytes = [0; SLOTS_READ];
            let end = (block + 1) * self.block_bytes;
            self.file.read_exact_at(&mut bytes, end - SLOTS_READ as u64)?;
            let slot = bytes.rchunks_exact(SLOT as usize).next();
            let slot = slot.and_then(|bytes| Slot::of_bytes(bytes, block));
            io::Result::Ok(slot.map(|slot| (slot.sequence, block)))
        };
        let every = |from: u64| {
            let blocks = (from..self.blocks).step_by(READERS as usize);
            blocks.filter_map(|block| first(block).transpose()).collect::<io::Result<Vec<_>>>()
        };
        std::thread::scope(|scope| {
            let readers: Vec<_> =
                (0..READERS).map(|from| scope.spawn(move || every(from))).collect();
            let mut blocks = Vec::new();
            for reader in readers {
                blocks.extend(reader.join().expect("it does not panic")?);
            }
            Ok(blocks)
        })
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Blocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Blocks({} of {} B)", self.blocks, self.block_bytes)
    }
}

fn checksum_of(key: &[u8], value: &[u8]) -> u64 {
    XxHash3_64::oneshot(value) ^ xxh3_64_with_seed(key, CHECKSUM_SEED)
}

/// Entries on their way into one block.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    /// Where the entry that was encoded last begins.
    last: usize,
    units: u64,
    /// Their units count from the batch's first.
    slots: Vec<Slot>,
}

impl Batch {
    /// Appends an entry, and says how long its value is.
    fn encode(&mut self, entry: &Entry<'_>) -> io::Result<u64> {
        self.last = self.bytes.len();
        self.bytes.extend_from_slice(&[0; ENTRY_START]);
        let mut start = [0; ENTRY_START];
        let encoded = entry.key.encode(&mut &mut start[12..]);
        encoded.and_then(|()| entry.piece.encode(&mut self.bytes)).map_err(io::Error::other)?;
        let value = &self.bytes[self.last + ENTRY_START..];
        let length = value.len();
        start[..4].copy_from_slice(&(length as u32).to_le_bytes());
        let checksum = checksum_of(&start[12..], value);
        start[4..12].copy_from_slice(&checksum.to_le_bytes());
        (&mut self.bytes[self.last..]).write_all(&start)?;
        let padded = self.bytes.len().next_multiple_of(UNIT as usize);
        self.bytes.resize(padded, 0);
        Ok(length as u64)
    }

    fn drop_last(&mut self) {
        self.bytes.truncate(self.last);
    }

    fn take_last(&mut self) -> Vec<u8> {
        self.bytes.split_off(self.last)
    }

    fn add(&mut self, hash: u64, length: u64, units: u64) {
        let unit = self.units as u32;
        self.slots.push(Slot { hash, sequence: 0, unit, length: length as u32 });
        self.units += units;
    }
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    hash: u64,
    sequence: u64,
    unit: u32,
    length: u32,
}

impl Slot {
    fn to_bytes(self, block: u64) -> [u8; SLOT as usize] {
        let mut bytes = [0; SLOT as usize];
        bytes[..8].copy_from_slice(&self.hash.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.unit.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.length.to_le_bytes());
        let check = xxh3_64_with_seed(&bytes[..24], SLOT_SEED ^ block);
        bytes[24..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// `None`: no slot of this block.
    fn of_bytes(bytes: &[u8], block: u64) -> Option<Self> {
        let long = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let short = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let slot =
            Self { hash: long(0)?, sequence: long(8)?, unit: short(16)?, length: short(20)? };
        let whole = long(24)? == xxh3_64_with_seed(&bytes[..24], SLOT_SEED ^ block);
        (whole && u64::from(slot.length) <= VALUE_MAX).then_some(slot)
    }
}

impl Place {
    fn new(unit: u64, length: u32) -> Self {
        Self(unit << 24 | u64::from(length))
    }

    fn offset(self) -> u64 {
        (self.0 >> 24) * UNIT
    }

    /// Bytes that are read for it.
    pub(super) fn bytes(self) -> usize {
        ENTRY_START + self.length()
    }

    fn length(self) -> usize {
        (self.0 & VALUE_MAX) as usize
    }
}

/// Seventeen bytes an entry, by the fill of its tables 19 to 39.
struct Index(Box<[RwLock<Shard>]>);

type Shard = HashMap<u64, Place, BuildHasherDefault<Same>>;

impl Index {
    fn new() -> Self {
        Self((0..SHARDS).map(|_| RwLock::default()).collect())
    }

    fn shard(&self, hash: u64) -> &RwLock<Shard> {
        // Bits that a table of a shard does not look at first.
        &self.0[(hash >> 48) as usize % SHARDS]
    }

    fn shard_mut(&self, hash: u64) -> std::sync::RwLockWriteGuard<'_, Shard> {
        self.shard(hash).write().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, hash: u64) -> Option<Place> {
        self.shard(hash).read().unwrap_or_else(PoisonError::into_inner).get(&hash).copied()
    }

    fn insert(&self, hash: u64, place: Place) {
        self.shard_mut(hash).insert(hash, place);
    }

    fn retain(&self, keep: impl Fn(&Place) -> bool) {
        for shard in &self.0 {
            let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
            shard.retain(|_, place| keep(place));
        }
    }
}

/// What is hashed is a hash.
#[derive(Default)]
struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only whole numbers are hashed");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// Entries begin at multiples of it.
const UNIT: u64 = 64;
const UNITS_MAX: u64 = 1 << 40;
pub(super) const ENTRY_START: usize = 32;
pub(super) const SLOT: u64 = 32;
/// 24 bits of a place.
const VALUE_MAX: u64 = (1 << 24) - 1;
/// Slots are read so many bytes at a time; no block is shorter.
const SLOTS_READ: usize = 4096;
/// Threads that look for blocks at the start.
const READERS: u64 = 8;
const SEQUENCE_GAP: u64 = 1 << 32;
const SHARDS: usize = 64;
const SLOT_SEED: u64 = u64::from_le_bytes(*b"skerry 1");
const CHECKSUM_SEED: u64 = u64::from_le_bytes(*b"entry  1");

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::hash::BuildHasher;

    use super::super::record::PieceHasher;
    use super::*;

    const BLOCK: u64 = 64 << 10;
    const FILE: u64 = 16 * BLOCK;

    fn key(number: u128) -> PieceKey {
        PieceKey::new(number, 1)
    }

    fn hash(number: u128) -> u64 {
        PieceHasher.hash_one(key(number))
    }

    /// The bytes of a version tell number, version and offset.
    fn bytes(number: u128, version: u64, length: usize) -> Bytes {
        let seed = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ version;
        (0..length as u64).map(|at| (seed.wrapping_add(at * at) >> 3) as u8).collect()
    }

    fn write(blocks: &Blocks, pieces: &[(u128, Bytes)]) -> io::Result<u64> {
        let piece = |(number, bytes): &(u128, Bytes)| {
            (hash(*number), key(*number), Piece::slice(bytes.clone(), true, None))
        };
        let pieces: Vec<_> = pieces.iter().map(piece).collect();
        let entries: Vec<_> =
            pieces.iter().map(|(hash, key, piece)| Entry { hash: *hash, key, piece }).collect();
        blocks.write(&entries)
    }

    fn read(blocks: &Blocks, number: u128) -> Option<Bytes> {
        let place = blocks.place(hash(number))?;
        match blocks.read(place).unwrap() {
            Read::Entry(found, value) => {
                assert_eq!(found, key(number));
                match Piece::of_value(value) {
                    Piece::Slice(slice) => Some(slice.bytes),
                    other => panic!("{other:?}"),
                }
            }
            Read::Damaged => None,
            Read::NotCached => unreachable!("it waits"),
        }
    }

    fn file() -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data");
        (directory, path)
    }

    fn open(path: &Path) -> Blocks {
        Blocks::open(path, FILE, BLOCK, DiskReserve::Bytes(0)).unwrap()
    }

    #[test]
    fn what_was_written_is_read_again_by_the_next_process_too() {
        let (_directory, path) = file();
        let blocks = open(&path);
        let pieces: Vec<_> = (0..40).map(|it| (it, bytes(it, 0, it as usize * 97))).collect();
        for batch in pieces.chunks(7) {
            write(&blocks, batch).unwrap();
        }
        let again = open(&path);
        for (number, bytes) in &pieces {
            assert_eq!(read(&blocks, *number).as_ref(), Some(bytes), "{number}");
            assert_eq!(read(&again, *number).as_ref(), Some(bytes), "{number}");
        }
        // What the page cache has is read without waiting, where the file system can tell.
        let place = blocks.place(hash(3)).unwrap();
        assert!(!matches!(blocks.read_cached(place).unwrap(), Read::Damaged));
    }

    /// Against a model, over many rounds of the ring and many restarts: a read gives the newest
    /// version or nothing, and an old one never comes back.
    #[test]
    fn the_newest_version_or_nothing_whatever_happens() {
        let seed = std::process::id() as u64 ^ 0x5bd1_e995;
        println!("seed {seed}");
        let mut state = seed;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        let (_directory, path) = file();
        let mut blocks = open(&path);
        let mut newest: BTreeMap<u128, Bytes> = BTreeMap::new();
        let (mut found, mut asked) = (0, 0);
        for round in 0..400 {
            let count = 1 + random(12);
            let mut batch = BTreeMap::new();
            for _ in 0..count {
                let number = u128::from(random(150));
                let most = if random(4) == 0 { 20_000 } else { 900 };
                let length = random(most) as usize;
                batch.insert(number, bytes(number, round, length));
            }
            let batch: Vec<_> = batch.into_iter().collect();
            write(&blocks, &batch).unwrap();
            newest.extend(batch.clone());
            for (number, bytes) in &batch {
                assert_eq!(read(&blocks, *number).as_ref(), Some(bytes), "just written");
            }
            if random(9) == 0 {
                blocks = open(&path);
            }
            for (number, bytes) in &newest {
                asked += 1;
                let Some(read) = read(&blocks, *number) else { continue };
                assert_eq!(read, *bytes, "{number} in round {round}");
                found += 1;
            }
        }
        assert!(found > asked / 5 && found < asked, "{found} of {asked}: some were written over");
    }

    #[test]
    fn a_file_cut_or_flipped_anywhere_gives_misses_and_never_wrong_bytes() {
        let (_directory, path) = file();
        let blocks = open(&path);
        let pieces: Vec<_> = (0..60).map(|it| (it, bytes(it, 0, 500 + it as usize * 31))).collect();
        write(&blocks, &pieces).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let used = pieces.iter().map(|(_, it)| it.len() as u64 + 128).sum::<u64>().min(BLOCK);
        let check = |what: &str| {
            let blocks = open(&path);
            let readable = |(number, bytes): &&(u128, Bytes)| match read(&blocks, *number) {
                Some(read) => {
                    assert_eq!(read, *bytes, "{what}");
                    true
                }
                None => false,
            };
            pieces.iter().filter(readable).count()
        };
        assert_eq!(check("untouched"), pieces.len());
        let slots = (BLOCK - pieces.len() as u64 * SLOT..BLOCK).step_by(13);
        for at in (0..used).step_by(997).chain(slots) {
            let mut damaged = whole.clone();
            damaged[at as usize] ^= 0x10;
            std::fs::write(&path, damaged).unwrap();
            check(&format!("a bit flipped at {at}"));
        }
        for length in (0..2 * BLOCK).step_by(4099) {
            std::fs::write(&path, &whole[..length as usize]).unwrap();
            check(&format!("cut off at {length}"));
        }
        // Cut off while it is in use.
        std::fs::write(&path, &whole).unwrap();
        let blocks = open(&path);
        blocks.file.set_len(5000).unwrap();
        let left = pieces.iter().filter(|(number, _)| read(&blocks, *number).is_some()).count();
        assert!((1..pieces.len()).contains(&left), "{left}");
    }

    #[test]
    fn a_failed_write_hides_what_is_older_and_the_next_one_works() {
        let (_directory, path) = file();
        let mut blocks = open(&path);
        let versions = [bytes(1, 0, 700), bytes(1, 1, 900), bytes(1, 2, 800)];
        write(&blocks, &[(1, versions[0].clone()), (2, bytes(2, 0, 10))]).unwrap();
        let works = std::mem::replace(&mut blocks.file, File::open(&path).unwrap());
        assert!(write(&blocks, &[(1, versions[1].clone())]).is_err());
        assert_eq!(read(&blocks, 1), None, "neither the old nor the new");
        assert_eq!(read(&blocks, 2), Some(bytes(2, 0, 10)), "the others are there");
        blocks.file = works;
        write(&blocks, &[(1, versions[2].clone())]).unwrap();
        assert_eq!(read(&blocks, 1).as_ref(), Some(&versions[2]));
        assert_eq!(read(&open(&path), 1).as_ref(), Some(&versions[2]));
    }

    /// As after a loss of power: a slot did not reach the disk, those behind it did.
    #[test]
    fn slots_behind_a_torn_one_do_not_come_back_later() {
        let (_directory, path) = file();
        let blocks = open(&path);
        for version in 0..6 {
            write(&blocks, &[(1, bytes(1, version, 300))]).unwrap();
        }
        let torn = BLOCK - 3 * SLOT;
        blocks.file.write_all_at(&[0; SLOT as usize], torn).unwrap();
        let blocks = open(&path);
        assert_eq!(read(&blocks, 1), Some(bytes(1, 1, 300)), "as far as it is whole");
        write(&blocks, &[(1, bytes(1, 7, 300))]).unwrap();
        assert_eq!(read(&open(&path), 1), Some(bytes(1, 7, 300)));
    }

    #[test]
    fn what_is_too_long_for_a_block_is_left_out() {
        let (_directory, path) = file();
        let blocks = open(&path);
        let long = (1, bytes(1, 0, BLOCK as usize));
        write(&blocks, &[long, (2, bytes(2, 0, 100))]).unwrap();
        assert_eq!((read(&blocks, 1), read(&blocks, 2)), (None, Some(bytes(2, 0, 100))));
        assert!(
            Blocks::open(&path, BLOCK, BLOCK, DiskReserve::Bytes(0)).is_err(),
            "one block is no ring"
        );
    }
}
