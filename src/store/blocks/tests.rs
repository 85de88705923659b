//! The block file against a model, damage, failing writes and restarts.

use std::collections::BTreeMap;
use std::hash::BuildHasher;

use bytes::Bytes;

use super::super::piece::Piece;
use super::super::piece_key::{PieceHasher, PieceKey};
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
        pieces.iter().map(|(hash, key, piece)| NewEntry { hash: *hash, key, piece }).collect();
    blocks.write(&entries, |_| true)
}

fn read(blocks: &Blocks, number: u128) -> Option<Bytes> {
    let place = blocks.locate(hash(number))?;
    match blocks.read(place).unwrap() {
        EntryRead::Found(found, value) => {
            assert_eq!(found, key(number));
            match Piece::decode(value) {
                Piece::Slice(slice) => Some(slice.bytes),
                other => panic!("{other:?}"),
            }
        }
        EntryRead::Damaged => None,
        EntryRead::NotCached => unreachable!("a blocking read"),
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
fn a_long_batch_is_written_in_order_with_several_calls() {
    let file = tempfile::tempfile().unwrap();
    let written = bytes(1, 0, 2 * STEP_BYTES + 7);
    write_in_steps(&file, &written, 100).unwrap();
    let mut found = vec![0; written.len()];
    file.read_exact_at(&mut found, 100).unwrap();
    assert!(found == written);
    assert_eq!(file.metadata().unwrap().len(), 100 + written.len() as u64);
}

#[test]
fn written_pieces_are_read_again_by_the_next_process_too() {
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
    // Bytes in the page cache are read without waiting, where the file system can tell.
    let place = blocks.locate(hash(3)).unwrap();
    assert!(!matches!(blocks.read_cached(place).unwrap(), EntryRead::Damaged));
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
    let slots = (BLOCK - pieces.len() as u64 * SLOT_BYTES as u64..BLOCK).step_by(13);
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
    let torn = BLOCK - 3 * SLOT_BYTES as u64;
    blocks.file.write_all_at(&[0; SLOT_BYTES], torn).unwrap();
    let blocks = open(&path);
    assert_eq!(read(&blocks, 1), Some(bytes(1, 1, 300)), "as far as it is whole");
    write(&blocks, &[(1, bytes(1, 7, 300))]).unwrap();
    assert_eq!(read(&open(&path), 1), Some(bytes(1, 7, 300)));
}

#[test]
fn a_piece_too_long_for_a_block_is_left_out() {
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

/// A ring of entries that are all of the same length writes each of them to the same place round after round.
#[test]
fn an_entry_has_a_number_of_its_own_in_each_round_and_keeps_it_after_a_restart() {
    let (_directory, path) = file();
    let mut blocks = open(&path);
    let round = |blocks: &Blocks, version: u64| {
        for number in 0..u128::from(FILE / BLOCK) {
            write(blocks, &[(number, bytes(number, version, 40_000))]).unwrap();
        }
    };
    let mut seen = std::collections::HashSet::new();
    let mut locations = Vec::new();
    for version in 0..4 {
        round(&blocks, version);
        locations.push(blocks.locate(hash(3)).unwrap());
        let number = blocks.entry_number(hash(3)).unwrap();
        assert!(seen.insert(number), "the number of another round");
        blocks = open(&path);
        assert_eq!(blocks.entry_number(hash(3)), Some(number), "after a restart");
    }
    assert!(locations.iter().all(|location| *location == locations[0]), "the test tests nothing");
    blocks.forget(hash(3));
    assert_eq!(blocks.entry_number(hash(3)), None);
}
