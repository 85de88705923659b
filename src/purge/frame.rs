//! The purge log's bytes.
//!
//! ```text
//! file    magic "SKPURGE1" (8)  lineage (8)  check (8)   frame*
//! frame   length (4)  check of length and place (4)  check of place and payload (8)  payload
//! payload entry*
//! entry   1 MARKS  scope  hard (8)  soft (8)          the latest purges of a scope
//!         2 SEQUENCE  issued (8)                       no lower sequence was given to anyone
//!         3 CURSOR  text                               the bus' position
//!         4 OUTBOX  number (8)  text                   a message that waits for the bus
//!         5 SENT    number (8)                         … and no longer does
//!         6 HORIZON sequence (8)                       what is older counts as purged
//! scope   0 ALL | 1 SITE text | 3 TAG hash (8) | 4 PREFIX text | 5 URL hash (16)
//! text    length (4)  bytes
//! ```
//!
//! All numbers are little-endian; checks are XXH3-64 (its lower half where 4 bytes). A frame's
//! place in the file is part of its checks, so that a frame that was moved or doubled is damage.
//! One frame is one batch: all of it counts or nothing.

use std::sync::Arc;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::table::{Marks, Scope};

pub(super) const FILE_HEADER: usize = 24;
const FRAME_HEADER: usize = 16;
const MAGIC: &[u8; 8] = b"SKPURGE1";

/// One fact of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Marks(Scope, Marks),
    Sequence(u64),
    Cursor(Bytes),
    Outbox(u64, Bytes),
    Sent(u64),
    Horizon(u64),
}

/// How reading a log ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Every byte was understood.
    Whole,
    /// The last write did not get through; what stands before it is whole.
    Torn { bytes: u64 },
    /// Something that was once whole is not any more.
    Damaged { at: u64 },
}

pub(super) fn file_header(lineage: u64) -> [u8; FILE_HEADER] {
    let mut header = [0; FILE_HEADER];
    header[..8].copy_from_slice(MAGIC);
    header[8..16].copy_from_slice(&lineage.to_le_bytes());
    let check = xxh3_64_with_seed(&header[..16], 0);
    header[16..].copy_from_slice(&check.to_le_bytes());
    header
}

/// The lineage, if this is the head of a purge log.
pub(super) fn read_file_header(file: &[u8]) -> Option<u64> {
    let header = file.get(..FILE_HEADER)?;
    let lineage = u64::from_le_bytes(header[8..16].try_into().ok()?);
    (header == file_header(lineage)).then_some(lineage)
}

/// Appends `entries` as one frame that will stand at byte `place` of the file.
pub(super) fn write_frame(out: &mut Vec<u8>, place: u64, entries: &[Entry]) {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_HEADER]);
    entries.iter().for_each(|entry| write_entry(out, entry));
    let length = u32::try_from(out.len() - start - FRAME_HEADER).expect("batches are bounded");
    let check = xxh3_64_with_seed(&out[start + FRAME_HEADER..], place);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    out[start + 4..start + 8].copy_from_slice(&length_check(length, place).to_le_bytes());
    out[start + 8..start + 16].copy_from_slice(&check.to_le_bytes());
}

fn length_check(length: u32, place: u64) -> u32 {
    xxh3_64_with_seed(&length.to_le_bytes(), place) as u32
}

/// Reads every whole frame of `file`, whose header was read, and says where that ended.
pub(super) fn read_frames(file: &[u8], mut each: impl FnMut(Entry)) -> (u64, End) {
    let mut place = FILE_HEADER;
    while place < file.len() {
        match read_frame(file, place) {
            Frame::Whole(entries, next) => {
                entries.into_iter().for_each(&mut each);
                place = next;
            }
            Frame::Torn => {
                let bytes = (file.len() - place) as u64;
                return (place as u64, End::Torn { bytes });
            }
            Frame::Damaged => return (place as u64, End::Damaged { at: place as u64 }),
        }
    }
    (place as u64, End::Whole)
}

enum Frame {
    Whole(Vec<Entry>, usize),
    Torn,
    Damaged,
}

/// A write that did not get through leaves a frame cut short by the end of the file, or, where
/// the file's length got through before its bytes, zeros up to the end. Anything else is damage.
fn read_frame(file: &[u8], place: usize) -> Frame {
    let rest = &file[place..];
    if rest.iter().all(|byte| *byte == 0) || rest.len() < FRAME_HEADER {
        return Frame::Torn;
    }
    let length = u32::from_le_bytes(rest[..4].try_into().expect("four bytes"));
    let check = u32::from_le_bytes(rest[4..8].try_into().expect("four bytes"));
    if check != length_check(length, place as u64) {
        return Frame::Damaged;
    }
    let end = FRAME_HEADER + length as usize;
    let Some(payload) = rest.get(FRAME_HEADER..end) else { return Frame::Torn };
    let check = u64::from_le_bytes(rest[8..16].try_into().expect("eight bytes"));
    if check != xxh3_64_with_seed(payload, place as u64) {
        // The frame's head got through, and of its bytes nothing.
        let nothing = rest.len() == end && payload.iter().all(|byte| *byte == 0);
        return if nothing { Frame::Torn } else { Frame::Damaged };
    }
    match read_entries(payload) {
        Some(entries) => Frame::Whole(entries, place + end),
        None => Frame::Damaged,
    }
}

fn write_entry(out: &mut Vec<u8>, entry: &Entry) {
    match entry {
        Entry::Marks(scope, marks) => {
            out.push(1);
            write_scope(out, scope);
            out.extend_from_slice(&marks.hard.to_le_bytes());
            out.extend_from_slice(&marks.soft.to_le_bytes());
        }
        Entry::Sequence(issued) => write_number(out, 2, *issued),
        Entry::Cursor(cursor) => {
            out.push(3);
            write_text(out, cursor);
        }
        Entry::Outbox(number, message) => {
            write_number(out, 4, *number);
            write_text(out, message);
        }
        Entry::Sent(number) => write_number(out, 5, *number),
        Entry::Horizon(sequence) => write_number(out, 6, *sequence),
    }
}

fn write_number(out: &mut Vec<u8>, kind: u8, number: u64) {
    out.push(kind);
    out.extend_from_slice(&number.to_le_bytes());
}

fn write_text(out: &mut Vec<u8>, text: &[u8]) {
    let length = u32::try_from(text.len()).expect("texts are bounded by the settings");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(text);
}

fn write_scope(out: &mut Vec<u8>, scope: &Scope) {
    match scope {
        Scope::All => out.push(0),
        Scope::Site(site) => {
            out.push(1);
            write_text(out, site.as_bytes());
        }
        Scope::Url(hash) => {
            out.push(5);
            out.extend_from_slice(&hash.to_le_bytes());
        }
        Scope::Tag(hash) => {
            out.push(3);
            out.extend_from_slice(&hash.to_le_bytes());
        }
        Scope::Prefix(prefix) => {
            out.push(4);
            write_text(out, prefix.as_bytes());
        }
    }
}

pub(super) fn read_entries(payload: &[u8]) -> Option<Vec<Entry>> {
    let mut from = Reader(payload);
    let mut entries = Vec::new();
    while !from.0.is_empty() {
        entries.push(match from.byte()? {
            1 => Entry::Marks(from.scope()?, Marks { hard: from.number()?, soft: from.number()? }),
            2 => Entry::Sequence(from.number()?),
            3 => Entry::Cursor(Bytes::copy_from_slice(from.text()?)),
            4 => Entry::Outbox(from.number()?, Bytes::copy_from_slice(from.text()?)),
            5 => Entry::Sent(from.number()?),
            6 => Entry::Horizon(from.number()?),
            _ => return None,
        });
    }
    Some(entries)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    fn number(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let length = u32::from_le_bytes(self.take(4)?.try_into().ok()?);
        self.take(length as usize)
    }

    fn string(&mut self) -> Option<Arc<str>> {
        Some(std::str::from_utf8(self.text()?).ok()?.into())
    }

    fn scope(&mut self) -> Option<Scope> {
        Some(match self.byte()? {
            0 => Scope::All,
            1 => Scope::Site(self.string()?),
            3 => Scope::Tag(self.number()?),
            4 => Scope::Prefix(self.string()?),
            5 => Scope::Url(u128::from_le_bytes(self.take(16)?.try_into().ok()?)),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Vec<Entry> {
        let marks = Marks { hard: 7, soft: 9 };
        vec![
            Entry::Marks(Scope::All, marks),
            Entry::Marks(Scope::Site("a".into()), marks),
            Entry::Marks(Scope::Url(u128::MAX - 3), marks),
            Entry::Marks(Scope::Tag(11), marks),
            Entry::Marks(Scope::Prefix("https://é/".into()), marks),
            Entry::Sequence(12),
            Entry::Cursor(Bytes::from_static(b"1700000000-0")),
            Entry::Outbox(3, Bytes::from_static(b"message")),
            Entry::Sent(3),
            Entry::Horizon(1),
        ]
    }

    /// A log with each entry in a frame of its own, and the places where frames end.
    fn log() -> (Vec<u8>, Vec<usize>) {
        let mut file = file_header(5).to_vec();
        let mut ends = vec![file.len()];
        for entry in entries() {
            let place = file.len() as u64;
            write_frame(&mut file, place, &[entry]);
            ends.push(file.len());
        }
        (file, ends)
    }

    fn read(file: &[u8]) -> (Vec<Entry>, u64, End) {
        let mut entries = Vec::new();
        let (place, end) = read_frames(file, |entry| entries.push(entry));
        (entries, place, end)
    }

    #[test]
    fn what_was_written_is_read() {
        let (file, _) = log();
        assert_eq!(read_file_header(&file), Some(5));
        assert_eq!(read(&file), (entries(), file.len() as u64, End::Whole));
    }

    #[test]
    fn a_tail_torn_at_any_byte_costs_only_the_torn_frame() {
        let (file, ends) = log();
        for length in FILE_HEADER..file.len() {
            let whole = ends.iter().filter(|end| **end <= length).count() - 1;
            let (found, place, end) = read(&file[..length]);
            assert_eq!(found, entries()[..whole], "cut at {length}");
            assert_eq!(place as usize, ends[whole], "cut at {length}");
            let torn = End::Torn { bytes: (length - ends[whole]) as u64 };
            assert_eq!(end, if length == ends[whole] { End::Whole } else { torn });
        }
    }

    #[test]
    fn zeros_behind_the_last_frame_are_a_torn_tail() {
        let (mut file, _) = log();
        file.extend_from_slice(&[0; 100]);
        assert_eq!(read(&file).2, End::Torn { bytes: 100 });
    }

    #[test]
    fn every_flipped_bit_is_seen_as_damage() {
        let (file, ends) = log();
        for bit in 0..(file.len() - FILE_HEADER) * 8 {
            let mut flipped = file.clone();
            let at = FILE_HEADER + bit / 8;
            flipped[at] ^= 1 << (bit % 8);
            let frame = ends.iter().filter(|end| **end <= at).count() - 1;
            let (found, _, end) = read(&flipped);
            assert_eq!(found, entries()[..frame], "bit {bit}");
            assert_eq!(end, End::Damaged { at: ends[frame] as u64 }, "bit {bit}");
        }
    }

    #[test]
    fn a_frame_in_another_place_is_damage() {
        let (file, ends) = log();
        let mut doubled = file[..ends[2]].to_vec();
        doubled.extend_from_slice(&file[ends[1]..ends[2]]);
        assert_eq!(read(&doubled).2, End::Damaged { at: ends[2] as u64 });
    }
}
