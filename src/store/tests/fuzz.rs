//! Fuzz targets: records and blocks on disk.

use std::fs::File;
use std::hash::BuildHasher;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use bytes::Bytes;

use super::blocks::{Blocks, EntryRead, NewEntry};
use super::encoding::START_BYTES;
use super::piece::Piece;
use super::piece_key::{PieceHasher, PieceKey};
use super::record::Record;
use super::settings::DiskReserve;
use crate::cache::key::variant_hash;

/// A record that can be read is written as the same bytes, its body has the length that it states, and its size in
/// memory is bounded by its bytes. The first byte is the kind. The hash of a head is corrected first, or no
/// changed key would be read.
pub(crate) fn disk_record(data: &[u8]) {
    let Some((&kind, payload)) = data.split_first() else { return };
    let length = (payload.len() as u32).to_le_bytes();
    let mut value = [&[2, kind][..], &length, payload].concat();
    if kind == 1 {
        fit_hash(&mut value);
    }
    let piece = Piece::decode(value.clone().into());
    if matches!(piece, Piece::Unknown) {
        return;
    }
    assert!(piece.encoded_bytes() <= 192 + START_BYTES + 64 * value.len());
    let encoded = encode(&piece);
    let again = Piece::decode(encoded.clone().into());
    assert!(!matches!(again, Piece::Unknown), "it is not understood when it is written again");
    assert_eq!(encode(&again), encoded);
    if let (Some(ours), Some(theirs)) = (comparable(&encoded), comparable(&value)) {
        // The names of fields have one spelling.
        assert!(ours.eq_ignore_ascii_case(&theirs), "it is not what it was read from");
    }
    match (&piece, &again) {
        (Piece::Record(Record::Response(one)), Piece::Record(Record::Response(two))) => {
            assert_eq!(format!("{:?}", one.response), format!("{:?}", two.response));
            assert_eq!((one.object, one.slice_bytes), (two.object, two.slice_bytes));
            assert_eq!(one.inline, two.inline);
            let length = one.complete_length();
            if let Some(body) = &one.inline {
                assert!(one.is_standalone_part() || body.len() as u64 == length);
            }
            one.inline_bytes(0..length.min(1 << 20));
        }
        (Piece::Record(Record::Variants(one)), Piece::Record(Record::Variants(two))) => {
            assert_eq!(one, two);
        }
        (Piece::Slice(one), Piece::Slice(two)) => assert_eq!(one.bytes, two.bytes),
        _ => panic!("a record of another kind"),
    }
    for cut in [1, value.len() / 2] {
        value.truncate(value.len() - cut);
        assert!(matches!(Piece::decode(value.clone().into()), Piece::Unknown));
    }
}

/// Sets the hash of a head to that of its key and variant.
fn fit_hash(value: &mut [u8]) {
    let text = |at: usize| {
        let (length, rest) = value.get(at..)?.split_first_chunk()?;
        str::from_utf8(rest.get(..u32::from_le_bytes(*length) as usize)?).ok()
    };
    let variant = |key: &str| {
        let site = KEY_AT + 4 + key.len();
        text(site + 4 + text(site)?.len())
    };
    let Some(key) = text(KEY_AT) else { return };
    let Some(variant) = variant(key) else { return };
    let hash = variant_hash(key, variant);
    value[HASH_AT..HASH_AT + 16].copy_from_slice(&hash.0.to_le_bytes());
}

/// The bytes without the times, which are rounded in memory. `None` for a head that the encoder cannot have
/// written: it has unknown flags, or values that its flags say are absent.
fn comparable(value: &[u8]) -> Option<Vec<u8>> {
    let mut value = value.to_vec();
    if value[1] == 1 {
        let flags = u16::from_le_bytes([value[FLAGS_AT], value[FLAGS_AT + 1]]);
        let is = |bit: u16| flags & (1 << bit) != 0;
        let has_all = is(4) && is(5) && !(is(7) && is(8));
        if flags >= 1 << 9 || !has_all {
            return None;
        }
        value[FLAGS_AT + 2..][..DURATIONS_BYTES].fill(0);
    }
    Some(value)
}

fn encode(piece: &Piece) -> Vec<u8> {
    let mut bytes = Vec::new();
    piece.encode(&mut bytes);
    bytes
}

/// From a damaged file, every piece is read as it was written or is missing, and new pieces can be written and read.
/// Each four bytes of input are a place in the file and its new byte.
pub(crate) fn disk_blocks(data: &[u8]) {
    let (file, path, whole) = &*WRITTEN;
    file.write_all_at(whole, 0).expect("room");
    for damage in data.chunks_exact(4) {
        let place = u64::from(u16::from_le_bytes([damage[0], damage[1]]));
        // Entries stand at a block's start, slots at its end.
        let place = if damage[2] & 1 == 0 {
            place % USED_BYTES
        } else {
            BLOCK_BYTES - 1 - place % USED_BYTES
        };
        file.write_all_at(&damage[3..], place).expect("room");
    }
    let blocks = open(path).expect("a file");
    for number in 0..PIECES {
        assert!(read(&blocks, number).is_none_or(|bytes| bytes == bytes_of(number)), "{number}");
    }
    write(&blocks, PIECES);
    assert_eq!(read(&blocks, PIECES), Some(bytes_of(PIECES)));
    assert_eq!(read(&open(path).expect("as before"), PIECES), Some(bytes_of(PIECES)));
}

fn open(path: &Path) -> std::io::Result<Blocks> {
    Blocks::open(path, 2 * BLOCK_BYTES, BLOCK_BYTES, DiskReserve::Bytes(0))
}

/// A file that has no name any more, its path below `/proc`, and its content: pieces in the first block.
static WRITTEN: LazyLock<(File, PathBuf, Vec<u8>)> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let directory = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let name = directory.join(format!("skerry-fuzz-{}", std::process::id()));
    let file = File::options().create_new(true).read(true).write(true).open(&name).expect("a file");
    std::fs::remove_file(name).expect("it is ours");
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let blocks = open(&path).expect("a file");
    (0..PIECES).for_each(|number| write(&blocks, number));
    let mut whole = vec![0; 2 * BLOCK_BYTES as usize];
    file.read_exact_at(&mut whole, 0).expect("room");
    (file, path, whole)
});

fn write(blocks: &Blocks, number: u128) {
    let (key, piece) = (PieceKey::new(number, 1), Piece::slice(bytes_of(number), true, None));
    let hash = PieceHasher.hash_one(key);
    blocks.write(&[NewEntry { hash, key: &key, piece: &piece }], |_| true).expect("room");
}

fn read(blocks: &Blocks, number: u128) -> Option<Bytes> {
    let key = PieceKey::new(number, 1);
    let place = blocks.locate(PieceHasher.hash_one(key))?;
    let Ok(EntryRead::Found(found, value)) = blocks.read(place) else { return None };
    match Piece::decode(value) {
        Piece::Slice(slice) if found == key => Some(slice.bytes),
        _ => None,
    }
}

fn bytes_of(number: u128) -> Bytes {
    (0..100 + 50 * number).map(|at| (at * at + number) as u8).collect()
}

/// Behind lineage, sequence and object.
const HASH_AT: usize = START_BYTES + 32;
/// Behind the hash, the slice size and the status.
const FLAGS_AT: usize = HASH_AT + 16 + 6;
const DURATIONS_BYTES: usize = 5 * 12;
/// Behind the flags, the durations and the length.
const KEY_AT: usize = FLAGS_AT + 2 + DURATIONS_BYTES + 8;
const BLOCK_BYTES: u64 = 64 << 10;
const PIECES: u128 = 8;
/// Damaged at each end of the first block.
const USED_BYTES: u64 = 2304;
