//! The format of the purge log.
//!
//! ```text
//! file    magic "SKPURGE1" (8)  lineage (8)  check (8)   frame*
//! frame   length (4)  check of length and offset (4)  check of offset and payload (8)  payload
//! payload entry*
//! entry   1 MARKS  scope  hard (8)  soft (8)          the latest purges of a scope
//!         7 MARKS  scope  hard (8)  soft (8)  causes   the same; bit 0: the hard one is an invalidation,
//!                                                      bit 1: the soft one is for missed purges
//!         2 SEQUENCE  issued (8)                       no issued sequence is higher
//!         3 CURSOR  text                               the bus' position
//!         4 OUTBOX  number (8)  text                   a message that waits for the bus
//!         5 SENT    number (8)                         the bus has sent the message
//!         6 HORIZON sequence (8)                       older responses count as purged
//!         8 DELIVERY  place (8)  text                  a purge that peers get from this node
//!         9 DELIVERY START  place (8)                  deliveries up to this place are not kept any more
//!        10 SENDER  name  lineage (8)  place (8)       how far another node's deliveries were taken
//! scope   0 ALL | 1 SITE text | 3 TAG hash (8) | 4 PREFIX text | 5 URL hash (16)
//! text    length (4)  bytes; a name is a text in UTF-8
//! ```
//!
//! All numbers are little-endian; checks are XXH3-64 (its lower half where 4 bytes). A frame's offset
//! in the file is part of its checks, so that a frame that was moved or copied counts as damaged.
//! One frame is one batch: it is applied completely or not at all.

use std::sync::Arc;

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::batch::SenderPosition;
use super::table::{Causes, LatestPurges, TableScope};

pub(super) const FILE_HEADER: usize = 24;
const FRAME_HEADER: usize = 16;
const MAGIC: &[u8; 8] = b"SKPURGE1";

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LogEntry {
    Latest(TableScope, LatestPurges),
    Sequence(u64),
    Cursor(Bytes),
    Outbox(u64, Bytes),
    Sent(u64),
    Horizon(u64),
    Delivery(u64, Bytes),
    DeliveryStart(u64),
    Sender(Arc<str>, SenderPosition),
}

/// How reading a log ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LogEnd {
    /// Every byte belongs to a valid frame.
    Whole,
    /// The last write is incomplete; everything before it is valid.
    Torn { bytes: u64 },
    /// A frame that was written completely is damaged.
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

/// The lineage, if `file` begins with the header of a purge log.
pub(super) fn read_file_header(file: &[u8]) -> Option<u64> {
    let header = file.get(..FILE_HEADER)?;
    let lineage = u64::from_le_bytes(header[8..16].try_into().ok()?);
    (header == file_header(lineage)).then_some(lineage)
}

/// Appends `entries` as one frame that will be written at byte `offset` of the file.
pub(super) fn write_frame(out: &mut Vec<u8>, offset: u64, entries: &[LogEntry]) {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_HEADER]);
    entries.iter().for_each(|entry| write_entry(out, entry));
    let length = u32::try_from(out.len() - start - FRAME_HEADER).expect("batches are bounded");
    let check = xxh3_64_with_seed(&out[start + FRAME_HEADER..], offset);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    out[start + 4..start + 8].copy_from_slice(&length_check(length, offset).to_le_bytes());
    out[start + 8..start + 16].copy_from_slice(&check.to_le_bytes());
}

fn length_check(length: u32, offset: u64) -> u32 {
    xxh3_64_with_seed(&length.to_le_bytes(), offset) as u32
}

/// Calls `each` for the entries of every valid frame of `file` behind its header. Returns the length
/// of the valid part, and how reading ended.
pub(super) fn read_frames(file: &[u8], mut each: impl FnMut(LogEntry)) -> (u64, LogEnd) {
    let mut offset = FILE_HEADER;
    while offset < file.len() {
        match read_frame(file, offset) {
            Frame::Whole(entries, next) => {
                entries.into_iter().for_each(&mut each);
                offset = next;
            }
            Frame::Torn => {
                let bytes = (file.len() - offset) as u64;
                return (offset as u64, LogEnd::Torn { bytes });
            }
            Frame::Damaged => return (offset as u64, LogEnd::Damaged { at: offset as u64 }),
        }
    }
    (offset as u64, LogEnd::Whole)
}

enum Frame {
    Whole(Vec<LogEntry>, usize),
    Torn,
    Damaged,
}

/// An incomplete write leaves a frame cut off by the end of the file, or, if the file's length
/// reached the disk before its bytes, zeros up to the end. Anything else is damage.
fn read_frame(file: &[u8], offset: usize) -> Frame {
    let rest = &file[offset..];
    if rest.iter().all(|byte| *byte == 0) || rest.len() < FRAME_HEADER {
        return Frame::Torn;
    }
    let length = u32::from_le_bytes(rest[..4].try_into().expect("four bytes"));
    let check = u32::from_le_bytes(rest[4..8].try_into().expect("four bytes"));
    if check != length_check(length, offset as u64) {
        return Frame::Damaged;
    }
    let end = FRAME_HEADER + length as usize;
    let Some(payload) = rest.get(FRAME_HEADER..end) else { return Frame::Torn };
    let check = u64::from_le_bytes(rest[8..16].try_into().expect("eight bytes"));
    if check != xxh3_64_with_seed(payload, offset as u64) {
        // The frame's header reached the disk, and none of its payload.
        let nothing = rest.len() == end && payload.iter().all(|byte| *byte == 0);
        return if nothing { Frame::Torn } else { Frame::Damaged };
    }
    match read_entries(payload) {
        Some(entries) => Frame::Whole(entries, offset + end),
        None => Frame::Damaged,
    }
}

fn write_entry(out: &mut Vec<u8>, entry: &LogEntry) {
    match entry {
        LogEntry::Latest(scope, latest) => {
            let Causes { invalidated, missed } = latest.causes;
            let causes = u8::from(invalidated) | u8::from(missed) << 1;
            out.push(if causes == 0 { 1 } else { 7 });
            write_scope(out, scope);
            out.extend_from_slice(&latest.hard.to_le_bytes());
            out.extend_from_slice(&latest.soft.to_le_bytes());
            out.extend((causes > 0).then_some(causes));
        }
        LogEntry::Sequence(issued) => write_number(out, 2, *issued),
        LogEntry::Cursor(cursor) => {
            out.push(3);
            write_text(out, cursor);
        }
        LogEntry::Outbox(number, message) => {
            write_number(out, 4, *number);
            write_text(out, message);
        }
        LogEntry::Sent(number) => write_number(out, 5, *number),
        LogEntry::Horizon(sequence) => write_number(out, 6, *sequence),
        LogEntry::Delivery(place, message) => {
            write_number(out, 8, *place);
            write_text(out, message);
        }
        LogEntry::DeliveryStart(place) => write_number(out, 9, *place),
        LogEntry::Sender(name, position) => {
            out.push(10);
            write_text(out, name.as_bytes());
            out.extend_from_slice(&position.lineage.to_le_bytes());
            out.extend_from_slice(&position.place.to_le_bytes());
        }
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

fn write_scope(out: &mut Vec<u8>, scope: &TableScope) {
    match scope {
        TableScope::All => out.push(0),
        TableScope::Site(site) => {
            out.push(1);
            write_text(out, site.as_bytes());
        }
        TableScope::Url(hash) => {
            out.push(5);
            out.extend_from_slice(&hash.to_le_bytes());
        }
        TableScope::Tag(hash) => {
            out.push(3);
            out.extend_from_slice(&hash.to_le_bytes());
        }
        TableScope::Prefix(prefix) => {
            out.push(4);
            write_text(out, prefix.as_bytes());
        }
    }
}

pub(super) fn read_entries(payload: &[u8]) -> Option<Vec<LogEntry>> {
    let mut from = EntryReader(payload);
    let mut entries = Vec::new();
    while !from.0.is_empty() {
        entries.push(match from.byte()? {
            kind @ (1 | 7) => {
                let (scope, hard, soft) = (from.scope()?, from.number()?, from.number()?);
                let causes = if kind == 7 { from.byte()? } else { 0 };
                let causes = Causes { invalidated: causes & 1 > 0, missed: causes & 2 > 0 };
                LogEntry::Latest(scope, LatestPurges { hard, soft, causes })
            }
            2 => LogEntry::Sequence(from.number()?),
            3 => LogEntry::Cursor(Bytes::copy_from_slice(from.text()?)),
            4 => LogEntry::Outbox(from.number()?, Bytes::copy_from_slice(from.text()?)),
            5 => LogEntry::Sent(from.number()?),
            6 => LogEntry::Horizon(from.number()?),
            8 => LogEntry::Delivery(from.number()?, Bytes::copy_from_slice(from.text()?)),
            9 => LogEntry::DeliveryStart(from.number()?),
            10 => {
                let (name, lineage, place) = (from.string()?, from.number()?, from.number()?);
                LogEntry::Sender(name, SenderPosition { lineage, place })
            }
            _ => return None,
        });
    }
    Some(entries)
}

struct EntryReader<'a>(&'a [u8]);

impl<'a> EntryReader<'a> {
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

    fn scope(&mut self) -> Option<TableScope> {
        Some(match self.byte()? {
            0 => TableScope::All,
            1 => TableScope::Site(self.string()?),
            3 => TableScope::Tag(self.number()?),
            4 => TableScope::Prefix(self.string()?),
            5 => TableScope::Url(u128::from_le_bytes(self.take(16)?.try_into().ok()?)),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Vec<LogEntry> {
        let marks = LatestPurges { hard: 7, soft: 9, ..LatestPurges::default() };
        let causes = Causes { invalidated: true, missed: true };
        vec![
            LogEntry::Latest(TableScope::All, marks),
            LogEntry::Latest(TableScope::Site("a".into()), marks),
            LogEntry::Latest(TableScope::Url(u128::MAX - 3), marks),
            LogEntry::Latest(TableScope::Tag(11), marks),
            LogEntry::Latest(TableScope::Tag(12), LatestPurges { causes, ..marks }),
            LogEntry::Latest(TableScope::Prefix("https://é/".into()), marks),
            LogEntry::Sequence(12),
            LogEntry::Cursor(Bytes::from_static(b"1700000000-0")),
            LogEntry::Outbox(3, Bytes::from_static(b"message")),
            LogEntry::Sent(3),
            LogEntry::Horizon(1),
            LogEntry::Delivery(9, Bytes::from_static(b"message")),
            LogEntry::DeliveryStart(4),
            LogEntry::Sender("edge-2".into(), SenderPosition { lineage: 7, place: 8 }),
        ]
    }

    /// A log with each entry in a frame of its own, and the offsets where frames end.
    fn log() -> (Vec<u8>, Vec<usize>) {
        let mut file = file_header(5).to_vec();
        let mut ends = vec![file.len()];
        for entry in entries() {
            let offset = file.len() as u64;
            write_frame(&mut file, offset, &[entry]);
            ends.push(file.len());
        }
        (file, ends)
    }

    fn read(file: &[u8]) -> (Vec<LogEntry>, u64, LogEnd) {
        let mut entries = Vec::new();
        let (offset, end) = read_frames(file, |entry| entries.push(entry));
        (entries, offset, end)
    }

    #[test]
    fn written_entries_are_read() {
        let (file, _) = log();
        assert_eq!(read_file_header(&file), Some(5));
        assert_eq!(read(&file), (entries(), file.len() as u64, LogEnd::Whole));
    }

    #[test]
    fn a_tail_torn_at_any_byte_costs_only_the_torn_frame() {
        let (file, ends) = log();
        for length in FILE_HEADER..file.len() {
            let whole = ends.iter().filter(|end| **end <= length).count() - 1;
            let (found, offset, end) = read(&file[..length]);
            assert_eq!(found, entries()[..whole], "cut at {length}");
            assert_eq!(offset as usize, ends[whole], "cut at {length}");
            let torn = LogEnd::Torn { bytes: (length - ends[whole]) as u64 };
            assert_eq!(end, if length == ends[whole] { LogEnd::Whole } else { torn });
        }
    }

    #[test]
    fn zeros_behind_the_last_frame_are_a_torn_tail() {
        let (mut file, _) = log();
        file.extend_from_slice(&[0; 100]);
        assert_eq!(read(&file).2, LogEnd::Torn { bytes: 100 });
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
            assert_eq!(end, LogEnd::Damaged { at: ends[frame] as u64 }, "bit {bit}");
        }
    }

    #[test]
    fn a_frame_in_another_offset_is_damage() {
        let (file, ends) = log();
        let mut doubled = file[..ends[2]].to_vec();
        doubled.extend_from_slice(&file[ends[1]..ends[2]]);
        assert_eq!(read(&doubled).2, LogEnd::Damaged { at: ends[2] as u64 });
    }
}
