//! The bytes of entries and slots, and batches of entries on their way into one block.

use bytes::Bytes;
use twox_hash::XxHash3_64;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::super::piece::Piece;
use super::super::piece_key::{KEY_BYTES, PieceKey};

/// A piece to be written, with the hash of its key.
pub(crate) struct NewEntry<'a> {
    pub hash: u64,
    pub key: &'a PieceKey,
    pub piece: &'a Piece,
}

/// Where an entry is: its first unit in the file (40 bits), its value's length in bytes (24 bits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntryLocation(u64);

impl EntryLocation {
    pub(super) fn new(unit: u64, length: u32) -> Self {
        Self(unit << 24 | u64::from(length))
    }

    /// Offset in the file, in bytes.
    pub(super) fn offset(self) -> u64 {
        (self.0 >> 24) * UNIT
    }

    /// Length of the entry in bytes: start and value.
    pub(crate) fn bytes(self) -> usize {
        ENTRY_START + self.value_bytes()
    }

    pub(super) fn value_bytes(self) -> usize {
        (self.0 & VALUE_MAX) as usize
    }

    /// The number of the entry here, in the round of the block that began with `first_sequence`: a hash of both.
    pub(super) fn number(self, first_sequence: u64) -> u64 {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&first_sequence.to_le_bytes());
        bytes[8..].copy_from_slice(&self.0.to_le_bytes());
        xxh3_64_with_seed(&bytes, NUMBER_SEED)
    }
}

/// The bytes of an entry before its value.
pub(super) struct EntryStart(pub [u8; ENTRY_START]);

impl EntryStart {
    fn new(key: &PieceKey, value: &[u8]) -> Self {
        let mut bytes = [0; ENTRY_START];
        bytes[12..].copy_from_slice(&key.to_bytes());
        bytes[..4].copy_from_slice(&(value.len() as u32).to_le_bytes());
        let checksum = checksum(&bytes[12..], value);
        bytes[4..12].copy_from_slice(&checksum.to_le_bytes());
        Self(bytes)
    }

    /// The key, if length and checksum are those of `value`.
    pub(super) fn verify(&self, value: &[u8]) -> Option<PieceKey> {
        let key: &[u8; KEY_BYTES] = self.0[12..].try_into().expect("twenty bytes");
        let length = u32::from_le_bytes(*self.0.first_chunk().expect("four bytes")) as usize;
        let expected = u64::from_le_bytes(self.0[4..12].try_into().expect("eight bytes"));
        let is_whole = length == value.len() && expected == checksum(key, value);
        is_whole.then(|| PieceKey::from_bytes(key))
    }
}

fn checksum(key: &[u8], value: &[u8]) -> u64 {
    XxHash3_64::oneshot(value) ^ xxh3_64_with_seed(key, CHECKSUM_SEED)
}

/// Units that an entry with a value of this length occupies.
pub(super) fn units_of(value_bytes: u64) -> u64 {
    (ENTRY_START as u64 + value_bytes).div_ceil(UNIT)
}

/// The parts of an entry that were read.
#[derive(Debug)]
pub(crate) enum EntryRead {
    /// The entry's key and value, verified by its checksum.
    Found(PieceKey, Bytes),
    /// Its checksum or length is wrong.
    Damaged,
    /// The page cache does not have all of it.
    NotCached,
}

/// Encoded entries that are written into one block at once.
#[derive(Default)]
pub(super) struct Batch<'a> {
    pub bytes: Vec<u8>,
    /// Where the last encoded entry begins.
    last: usize,
    pub units: u64,
    /// Slots without sequences; units count from the batch's first one.
    pub slots: Vec<Slot>,
    /// The entries of the slots.
    pub entries: Vec<&'a NewEntry<'a>>,
}

impl<'a> Batch<'a> {
    /// Appends an entry, padded to whole units. Returns the length of its value.
    pub(super) fn encode(&mut self, entry: &NewEntry<'_>) -> u64 {
        self.last = self.bytes.len();
        let value_at = self.last + ENTRY_START;
        self.bytes.resize(value_at, 0);
        entry.piece.encode(&mut self.bytes);
        let value = &self.bytes[value_at..];
        let length = value.len() as u64;
        let EntryStart(start) = EntryStart::new(entry.key, value);
        self.bytes[self.last..value_at].copy_from_slice(&start);
        let padded = self.bytes.len().next_multiple_of(UNIT as usize);
        self.bytes.resize(padded, 0);
        length
    }

    pub(super) fn drop_last(&mut self) {
        self.bytes.truncate(self.last);
    }

    pub(super) fn take_last(&mut self) -> Vec<u8> {
        self.bytes.split_off(self.last)
    }

    /// Adds the slot of the entry that was encoded last.
    pub(super) fn add_slot(&mut self, entry: &'a NewEntry<'a>, length: u64) {
        let unit = self.units as u32;
        self.entries.push(entry);
        self.slots.push(Slot { hash: entry.hash, sequence: 0, unit, length: length as u32 });
        self.units += units_of(length);
    }
}

/// Describes one entry of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub hash: u64,
    pub sequence: u64,
    /// The entry's first unit, counted from the block's start.
    pub unit: u32,
    /// Length of the value in bytes.
    pub length: u32,
}

impl Slot {
    pub(super) fn to_bytes(self, block: u64) -> [u8; SLOT_BYTES] {
        let mut bytes = [0; SLOT_BYTES];
        bytes[..8].copy_from_slice(&self.hash.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.unit.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.length.to_le_bytes());
        let check = xxh3_64_with_seed(&bytes[..24], SLOT_SEED ^ block);
        bytes[24..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// `None` if the bytes are no valid slot of this block.
    pub(super) fn from_bytes(bytes: &[u8], block: u64) -> Option<Self> {
        let long = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let short = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let slot =
            Self { hash: long(0)?, sequence: long(8)?, unit: short(16)?, length: short(20)? };
        let is_whole = long(24)? == xxh3_64_with_seed(&bytes[..24], SLOT_SEED ^ block);
        (is_whole && u64::from(slot.length) <= VALUE_MAX).then_some(slot)
    }
}

/// Entries begin at multiples of so many bytes.
pub(super) const UNIT: u64 = 64;
/// An [`EntryLocation`] has 40 bits for the unit.
pub(super) const UNITS_MAX: u64 = 1 << 40;
/// An [`EntryLocation`] has 24 bits for the value's length.
pub(super) const VALUE_MAX: u64 = (1 << 24) - 1;
/// Bytes of an entry before its value.
pub(crate) const ENTRY_START: usize = 12 + KEY_BYTES;
pub(crate) const SLOT_BYTES: usize = 32;
const SLOT_SEED: u64 = u64::from_le_bytes(*b"skerry 1");
const NUMBER_SEED: u64 = u64::from_le_bytes(*b"entry no");
const CHECKSUM_SEED: u64 = u64::from_le_bytes(*b"entry  1");
