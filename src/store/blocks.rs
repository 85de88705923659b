//! A directory's pieces in one file, written as a ring of blocks, and the index that finds them.
//!
//! ```text
//! block    entry* ──▶   free   ◀── slot*                 full when they meet
//! entry    value's length (4)  checksum (8)  key (20)  value            starts at a multiple of UNIT (64 bytes)
//! slot     hash (8)  sequence (8)  unit (4)  value's length (4)  check (8)
//! ```
//!
//! Entries grow from a block's start, slots from its end. Each block is written once from start to
//! end; then the ring moves to the next block, whose old entries leave the index. Sequences number
//! all entries ever written, so that a slot left over from the previous round has a lower one than
//! its neighbour. Slots are written after their entries, and a start reads slots only.
//!
//! Nothing is synced: the checksum detects an entry lost in a power failure, which is then a miss. A
//! failed write removes its pieces from the index and does not advance the block. All numbers are
//! little-endian.
//!
//! A block's space is allocated (`fallocate`) before the block is used. If the file system has no
//! space for another block beyond the reserve, the ring continues with the blocks that it has, and
//! tries to grow again after the last of them.

mod entry;
mod index;

use std::fs::{File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use rustix::fs::FallocateFlags;
use rustix::io::{Errno, ReadWriteFlags};

pub(super) use self::entry::{ENTRY_START, EntryLocation, EntryRead, NewEntry, SLOT_BYTES};

use self::entry::{Batch, EntryStart, Slot, UNIT, UNITS_MAX, VALUE_MAX, units_of};
use self::index::Index;
use super::settings::DiskReserve;
use super::space::Space;

/// One file of blocks, with its index.
pub(super) struct Blocks {
    file: File,
    block_bytes: u64,
    /// Maximum number of blocks.
    blocks: u64,
    /// The number of blocks, from the first one, whose space is allocated.
    usable: AtomicU64,
    reserve: DiskReserve,
    /// Whether the last attempt to allocate a block failed.
    lacks_space: AtomicBool,
    index: Index,
    /// The sequence of each block's first entry in the block's present round; 0 if it has none.
    first_sequences: Box<[AtomicU64]>,
    /// Locked while a batch is being written.
    ring: Mutex<WritePosition>,
}

/// Where the next entry is written.
#[derive(Clone, Copy, Debug)]
struct WritePosition {
    block: u64,
    /// Units of the block that have entries.
    units: u64,
    slots: u64,
    sequence: u64,
}

impl Blocks {
    /// Opens the file, sets its length, and reads the index. Blocks for I/O.
    ///
    /// # Errors
    /// Those of the system; [`io::ErrorKind::StorageFull`] if there is no space for one block;
    /// [`io::ErrorKind::InvalidInput`] if `bytes` is less than two blocks or more than [`UNITS_MAX`]
    /// units, or if `block_bytes` is less than [`SLOTS_READ`] or no multiple of [`UNIT`].
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
                "{bytes} bytes in blocks of {block_bytes} bytes are not possible: expected at least 2 blocks \
                 of a multiple of {UNIT} and at least {SLOTS_READ} bytes each, at most {} bytes in all",
                UNITS_MAX.saturating_mul(UNIT)
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).read(true).write(true).open(path)?;
        if file.metadata()?.len() != blocks * block_bytes {
            file.set_len(blocks * block_bytes)?;
        }
        let ring = Mutex::new(WritePosition { block: 0, units: 0, slots: 0, sequence: 1 });
        let index = Index::new();
        let allocated = file.metadata()?.blocks() * 512 / block_bytes;
        let (usable, lacks_space) = (AtomicU64::new(allocated.min(blocks)), AtomicBool::new(false));
        let first_sequences = (0..blocks).map(|_| AtomicU64::new(0)).collect();
        let this = Self {
            file,
            block_bytes,
            blocks,
            usable,
            reserve,
            lacks_space,
            index,
            first_sequences,
            ring,
        };
        this.recover()?;
        this.grow(1)?;
        if allocated < this.usable() {
            // The file has holes, or was written by a version that did not allocate blocks first.
            let _ = (0..this.usable()).try_for_each(|block| this.allocate(block));
        }
        Ok(this)
    }

    /// Allocates blocks until `wanted` of them are usable.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`] if the file system has only its reserve left.
    pub(super) fn grow(&self, wanted: u64) -> io::Result<()> {
        for block in self.usable.load(Ordering::Acquire)..wanted.min(self.blocks) {
            if let Err(error) = self.allocate(block) {
                self.lacks_space.store(true, Ordering::Release);
                return Err(error);
            }
            self.usable.fetch_max(block + 1, Ordering::AcqRel);
        }
        self.lacks_space.store(false, Ordering::Release);
        Ok(())
    }

    fn allocate(&self, block: u64) -> io::Result<()> {
        let room = Space::around(&self.file)?.beyond(self.reserve);
        if room < self.block_bytes {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the file system is full"));
        }
        let (start, length) = (block * self.block_bytes, self.block_bytes);
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), start, length) {
            // Not supported by this file system: writing allocates the space.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            done => Ok(done?),
        }
    }

    /// Whether the last attempt to grow failed for lack of space.
    pub(super) fn is_short(&self) -> bool {
        self.lacks_space.load(Ordering::Acquire)
    }

    /// Maximum number of blocks.
    pub(super) fn count(&self) -> u64 {
        self.blocks
    }

    /// Number of blocks whose space is allocated.
    pub(super) fn usable(&self) -> u64 {
        self.usable.load(Ordering::Acquire)
    }

    /// Allocated space in bytes.
    pub(super) fn usable_bytes(&self) -> u64 {
        self.usable() * self.block_bytes
    }

    /// Where the entry under this hash is.
    pub(super) fn locate(&self, hash: u64) -> Option<EntryLocation> {
        self.index.get(hash)
    }

    /// The number of the entry under this hash. Reads the index only.
    pub(super) fn entry_number(&self, hash: u64) -> Option<u64> {
        self.locate(hash).map(|location| self.number_at(location))
    }

    /// The number of the entry at a location that the index has, which identifies the entry among all that were ever written to
    /// the file, across rounds and restarts.
    pub(super) fn number_at(&self, location: EntryLocation) -> u64 {
        let block = location.offset() / self.block_bytes;
        let first = self.first_sequences.get(block as usize);
        location.number(first.map_or(0, |first| first.load(Ordering::Acquire)))
    }

    /// Removes the entry under this hash from the index.
    pub(super) fn forget(&self, hash: u64) {
        self.index.remove(hash);
    }

    /// As [`Blocks::forget`], if the entry is still at `location`. Returns whether it was.
    pub(super) fn forget_at(&self, hash: u64, location: EntryLocation) -> bool {
        self.index.remove_if(hash, |found| found == location)
    }

    /// Whether no batch is being written.
    pub(super) fn is_quiet(&self) -> bool {
        !matches!(self.ring.try_lock(), Err(TryLockError::WouldBlock))
    }

    /// Blocks until no batch is being written.
    pub(super) fn wait_until_quiet(&self) {
        drop(self.ring());
    }

    /// Reads an entry from the page cache; does not wait for the disk.
    pub(super) fn read_cached(&self, location: EntryLocation) -> io::Result<EntryRead> {
        match self.read_with(location, ReadWriteFlags::NOWAIT) {
            // Not in the page cache, or the file system cannot tell.
            Err(Errno::AGAIN | Errno::OPNOTSUPP) => Ok(EntryRead::NotCached),
            other => Ok(other?),
        }
    }

    /// Reads an entry. Blocks for I/O.
    pub(super) fn read(&self, location: EntryLocation) -> io::Result<EntryRead> {
        Ok(self.read_with(location, ReadWriteFlags::empty())?)
    }

    fn read_with(
        &self,
        location: EntryLocation,
        flags: ReadWriteFlags,
    ) -> Result<EntryRead, Errno> {
        let mut start = EntryStart([0; ENTRY_START]);
        let mut value = vec![0; location.value_bytes()];
        let (mut at, whole) = (0, location.bytes());
        while at < whole {
            let mut parts = [
                IoSliceMut::new(&mut start.0[at.min(ENTRY_START)..]),
                IoSliceMut::new(&mut value[at.saturating_sub(ENTRY_START)..]),
            ];
            let from = location.offset() + at as u64;
            match rustix::io::preadv2(&self.file, &mut parts, from, flags) {
                // The file was truncated from outside.
                Ok(0) => return Ok(EntryRead::Damaged),
                Ok(read) => at += read,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(match start.verify(&value) {
            Some(key) => EntryRead::Found(key, value.into()),
            None => EntryRead::Damaged,
        })
    }

    /// Writes pieces and returns the number of bytes written. Afterwards the index has those that
    /// were written and that are still the newest under their keys by `is_newest`, and no older ones. A piece that has
    /// ceased to be the newest before [`Blocks::forget`] is called for its key does not enter the index after that call.
    /// Blocks for I/O, and while another batch is being written.
    ///
    /// # Errors
    /// Those of the system: some of the pieces may have been written.
    pub(super) fn write(
        &self,
        entries: &[NewEntry<'_>],
        is_newest: impl Fn(&NewEntry<'_>) -> bool,
    ) -> io::Result<u64> {
        let mut ring = self.ring();
        // First, so that an older entry is never taken for a new one, whatever fails below.
        entries.iter().for_each(|entry| self.forget(entry.hash));
        let mut batch = Batch::default();
        let mut written = 0;
        for entry in entries {
            let value_bytes = batch.encode(entry);
            let units = units_of(value_bytes);
            let slots = ring.slots + batch.slots.len() as u64 + 1;
            let end = ring.units + batch.units + units;
            if value_bytes > VALUE_MAX || units * UNIT + SLOT > self.block_bytes {
                batch.drop_last();
                continue;
            }
            if end * UNIT + slots * SLOT > self.block_bytes {
                let last = batch.take_last();
                written += self.flush(&mut ring, &mut batch, &is_newest)?;
                self.next_block(&mut ring);
                batch.bytes = last;
            }
            batch.add_slot(entry, value_bytes);
        }
        written += self.flush(&mut ring, &mut batch, &is_newest)?;
        Ok(written)
    }

    /// Writes a batch that fits the block. The ring advances only after all was written.
    fn flush(
        &self,
        ring: &mut WritePosition,
        batch: &mut Batch<'_>,
        is_newest: impl Fn(&NewEntry<'_>) -> bool,
    ) -> io::Result<u64> {
        let batch = std::mem::take(batch);
        if batch.slots.is_empty() {
            return Ok(0);
        }
        let start = ring.block * self.block_bytes;
        write_in_steps(&self.file, &batch.bytes, start + ring.units * UNIT)?;
        let mut slots = Vec::with_capacity(batch.slots.len() * SLOT_BYTES);
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
        if ring.slots == 0 {
            self.first_sequences[ring.block as usize].store(ring.sequence, Ordering::Release);
        }
        for (slot, entry) in batch.slots.iter().zip(&batch.entries) {
            let unit = start / UNIT + ring.units + u64::from(slot.unit);
            let location = EntryLocation::new(unit, slot.length);
            self.index.insert_if(slot.hash, location, || is_newest(entry));
        }
        ring.units += batch.units;
        ring.slots += count;
        ring.sequence += count;
        Ok((batch.bytes.len() + slots.len()) as u64)
    }

    /// Moves to the next block, and removes its old entries from the index.
    fn next_block(&self, ring: &mut WritePosition) {
        let next = ring.block + 1;
        let has_space = next < self.usable() || (next < self.blocks && self.grow(next + 1).is_ok());
        ring.block = if has_space { next } else { 0 };
        (ring.units, ring.slots) = (0, 0);
        let units =
            ring.block * self.block_bytes / UNIT..(ring.block + 1) * self.block_bytes / UNIT;
        let is_gone = |location: EntryLocation| units.contains(&(location.offset() / UNIT));
        let read = self.slots(ring.block, |slot| {
            self.index.remove_if(slot.hash, is_gone);
        });
        if read.is_err() {
            self.index.retain(|location| !is_gone(location));
        }
    }

    /// Calls `each` for the slots of a block's last round, first to last. Returns the position
    /// after the last one.
    fn slots(&self, block: u64, mut each: impl FnMut(&Slot)) -> io::Result<WritePosition> {
        let mut ring = WritePosition { block, units: 0, slots: 0, sequence: 0 };
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
            for slot in bytes.rchunks_exact(SLOT_BYTES) {
                let Some(slot) = Slot::from_bytes(slot, block) else { return Ok(ring) };
                if slot.sequence <= ring.sequence || u64::from(slot.unit) != ring.units {
                    return Ok(ring);
                }
                ring.sequence = slot.sequence;
                ring.units += units_of(u64::from(slot.length));
                ring.slots += 1;
                each(&slot);
            }
        }
    }

    /// Reads the index: blocks in the order in which they were written, so that newer entries
    /// replace older ones.
    fn recover(&self) -> io::Result<()> {
        let mut blocks = self.used_blocks()?;
        blocks.sort_unstable();
        let mut ring = self.ring();
        for (first_sequence, block) in blocks {
            self.first_sequences[block as usize].store(first_sequence, Ordering::Release);
            let first = block * self.block_bytes / UNIT;
            let read = self.slots(block, |slot| {
                let location = EntryLocation::new(first + u64::from(slot.unit), slot.length);
                self.index.insert(slot.hash, location);
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
        // Greater than the sequence of any slot that a crash left behind a torn one.
        ring.sequence += SEQUENCE_GAP;
        Ok(())
    }

    /// The blocks that have an entry, each as (its first sequence, its number). Several threads
    /// read at once, which disks do much faster; each read also brings in the slots read next.
    fn used_blocks(&self) -> io::Result<Vec<(u64, u64)>> {
        let first = |block: u64| {
            let mut bytes = [0; SLOTS_READ];
            let end = (block + 1) * self.block_bytes;
            self.file.read_exact_at(&mut bytes, end - SLOTS_READ as u64)?;
            let slot = bytes.rchunks_exact(SLOT_BYTES).next();
            let slot = slot.and_then(|bytes| Slot::from_bytes(bytes, block));
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

    fn ring(&self) -> MutexGuard<'_, WritePosition> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Blocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Blocks({} of {} B)", self.blocks, self.block_bytes)
    }
}

/// Writes all bytes, with a system call for each [`STEP_BYTES`]: a kernel without full preemption gives the core to a worker that has become
/// ready only between two calls. On two cores, hits beside downloads of 600 MiB/s had a 99th percentile of 3.7 to 6.6 ms while a
/// batch was written with one call, and have 1.7 to 3.2 ms.
fn write_in_steps(file: &File, bytes: &[u8], mut offset: u64) -> io::Result<()> {
    for step in bytes.chunks(STEP_BYTES) {
        file.write_all_at(step, offset)?;
        offset += step.len() as u64;
    }
    Ok(())
}

const SLOT: u64 = SLOT_BYTES as u64;
/// A tenth of a millisecond of a core, about.
const STEP_BYTES: usize = 128 << 10;
/// Slots are read so many bytes at a time. No block is shorter.
const SLOTS_READ: usize = 4096;
/// Threads that read the first slots of all blocks at the start.
const READERS: u64 = 8;
/// More than a block has slots.
const SEQUENCE_GAP: u64 = 1 << 32;

#[cfg(test)]
mod tests;
