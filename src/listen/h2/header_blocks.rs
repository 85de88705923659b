//! Checks HPACK header blocks without decoding their fields (RFC 7541; docs/decisions/0018).
//!
//! The h2 crate decodes them too, but it does not tell an invalid block from an invalid field, ignores
//! pseudo-fields in trailers, and closes the connection at an invalid name or value. To find those, the
//! lengths and kinds of the names in the dynamic table are enough: strings are measured and classified,
//! never copied. A field that is in the table costs its index.
//!
//! A malformed request is an error of its stream (RFC 9113 §8.1.1), but its block changes the table of the
//! whole connection. The h2 crate therefore gets a replacement: a block that changes the table in the same
//! way, and for which the h2 crate resets the stream.

use std::collections::VecDeque;

use super::huffman;

/// The block is not valid HPACK. The dynamic table is unknown from here on, so that no later block can be
/// read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InvalidBlock;

/// The result of checking a block.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct BlockSummary {
    /// Whether a field's name starts with a colon.
    pub(super) has_pseudo: bool,
    /// The block for the h2 crate, if a field of this one is invalid.
    pub(super) replacement: Option<Vec<u8>>,
}

/// The lengths and kinds of the fields in the dynamic table.
#[derive(Debug)]
pub(super) struct HpackTable {
    /// The newest first.
    entries: VecDeque<Entry>,
    bytes: usize,
    bytes_max: usize,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    name: Name,
    value_bytes: u16,
    /// The field is invalid; the h2 crate has a replacement of the same size.
    is_invalid: bool,
}

#[derive(Clone, Copy, Debug)]
struct Name {
    bytes: usize,
    kind: Kind,
}

/// The kind of a field's name, which decides what value is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The name of a regular field.
    Field,
    /// `:method`.
    Method,
    /// `:authority`, `:path`, `:protocol` or `:scheme`.
    Text,
    /// `:status`, which a request must not have.
    Status,
    /// Empty, not in lower case, or an unknown pseudo-field (RFC 9113 §8.2.1, §8.3).
    Invalid,
}

impl HpackTable {
    pub(super) const fn new() -> Self {
        Self { entries: VecDeque::new(), bytes: 0, bytes_max: TABLE_BYTES_MAX }
    }

    /// Checks a complete block, and updates the table as the h2 crate will.
    pub(super) fn read(&mut self, block: &[u8]) -> Result<BlockSummary, InvalidBlock> {
        let mut rest = block;
        while rest.first().is_some_and(|first| first >> 5 == 1) {
            self.resize(integer(&mut rest, 5)?)?;
        }
        let mut summary = BlockSummary::default();
        // The bytes of the block up to here are in the replacement.
        let mut done = 0;
        while let Some(first) = rest.first() {
            let begin = block.len() - rest.len();
            let field = match first {
                0x80.. => self.indexed(&mut rest)?,
                0x40.. => self.literal(&mut rest, 6)?,
                // A change of size stands before all fields (§4.2).
                0x20.. => return Err(InvalidBlock),
                _ => self.literal(&mut rest, 4)?,
            };
            summary.has_pseudo |= field.is_pseudo();
            let is_inserted = (0x40..0x80).contains(first);
            if field.is_invalid {
                let replacement = summary.replacement.get_or_insert_default();
                replacement.extend_from_slice(&block[done..begin]);
                done = block.len() - rest.len();
                if is_inserted {
                    field.push_replacement(&block[begin..done], replacement)?;
                }
            }
            if is_inserted {
                self.insert(field);
            }
        }
        if let Some(replacement) = &mut summary.replacement {
            replacement.extend_from_slice(&block[done..]);
            replacement.extend_from_slice(MALFORMED);
        }
        Ok(summary)
    }

    fn indexed(&self, rest: &mut &[u8]) -> Result<Field, InvalidBlock> {
        let entry = self.at(integer(rest, 7)?)?;
        let value_bytes = usize::from(entry.value_bytes);
        Ok(Field {
            name: entry.name,
            name_wire_bytes: 0,
            value_bytes,
            is_invalid: entry.is_invalid,
        })
    }

    fn literal(&self, rest: &mut &[u8], prefix_bits: u32) -> Result<Field, InvalidBlock> {
        let wire_bytes = rest.len();
        let name = match integer(rest, prefix_bits)? {
            0 => Text::take(rest)?.name(),
            index => self.at(index)?.name,
        };
        let name_wire_bytes = wire_bytes - rest.len();
        let value = Text::take(rest)?;
        let is_invalid = !value.is_valid_value(name.kind);
        Ok(Field { name, name_wire_bytes, value_bytes: value.bytes, is_invalid })
    }

    fn at(&self, index: usize) -> Result<Entry, InvalidBlock> {
        let before = index.checked_sub(1).ok_or(InvalidBlock)?;
        let Some(bytes) = STATIC_NAME_BYTES.get(before) else {
            return self.entries.get(before - STATIC_NAME_BYTES.len()).copied().ok_or(InvalidBlock);
        };
        let kind = match index {
            1 | 4..=7 => Kind::Text,
            2..=3 => Kind::Method,
            8..=14 => Kind::Status,
            _ => Kind::Field,
        };
        // The lengths of the values in the static table are not needed.
        let name = Name { bytes: usize::from(*bytes), kind };
        Ok(Entry { name, value_bytes: 0, is_invalid: false })
    }

    fn insert(&mut self, field: Field) {
        let Field { mut name, value_bytes, is_invalid, .. } = field;
        if is_invalid && !field.keeps_name() {
            name.kind = Kind::Invalid;
        }
        let bytes = name.bytes + value_bytes + ENTRY_BYTES;
        self.evict(self.bytes_max.saturating_sub(bytes));
        // A field larger than the table empties it (§4.4).
        if bytes <= self.bytes_max {
            self.entries.push_front(Entry { name, value_bytes: value_bytes as u16, is_invalid });
            self.bytes += bytes;
        }
    }

    fn resize(&mut self, bytes_max: usize) -> Result<(), InvalidBlock> {
        if bytes_max > TABLE_BYTES_MAX {
            return Err(InvalidBlock);
        }
        self.bytes_max = bytes_max;
        self.evict(bytes_max);
        Ok(())
    }

    fn evict(&mut self, bytes_left: usize) {
        while self.bytes > bytes_left {
            let oldest =
                self.entries.pop_back().expect("the bytes of the table are those of its entries");
            self.bytes -= oldest.name.bytes + usize::from(oldest.value_bytes) + ENTRY_BYTES;
        }
    }
}

/// The block with one more field, for which the h2 crate resets the stream.
pub(super) fn malformed(block: &[u8]) -> Vec<u8> {
    [block, MALFORMED].concat()
}

/// One field of a block.
#[derive(Clone, Copy)]
struct Field {
    name: Name,
    /// Bytes of the block before the value.
    name_wire_bytes: usize,
    value_bytes: usize,
    /// The name or the value is invalid.
    is_invalid: bool,
}

impl Field {
    fn is_pseudo(self) -> bool {
        matches!(self.name.kind, Kind::Method | Kind::Text | Kind::Status)
    }

    /// Whether the replacement may have the same name: letters are a valid value.
    fn keeps_name(self) -> bool {
        matches!(self.name.kind, Kind::Field | Kind::Text)
    }

    /// Appends a valid field that takes the same room in the table. `wire` is the field's representation.
    fn push_replacement(self, wire: &[u8], replacement: &mut Vec<u8>) -> Result<(), InvalidBlock> {
        // Any field larger than the table empties it.
        if self.keeps_name() {
            replacement.extend_from_slice(&wire[..self.name_wire_bytes]);
            push_letters(self.value_bytes.min(TABLE_BYTES_MAX), replacement);
            return Ok(());
        }
        // The replacement of an empty name takes its letter from the value; an empty field has none.
        let bytes = (self.name.bytes + self.value_bytes).min(TABLE_BYTES_MAX);
        let name_bytes = self.name.bytes.clamp(1, TABLE_BYTES_MAX);
        let value_bytes = bytes.checked_sub(name_bytes).ok_or(InvalidBlock)?;
        replacement.push(0x40);
        push_letters(name_bytes, replacement);
        push_letters(value_bytes, replacement);
        Ok(())
    }
}

/// Appends a string of `count` letters.
fn push_letters(count: usize, out: &mut Vec<u8>) {
    let mut left = count;
    if left < 0x7f {
        out.push(left as u8);
    } else {
        out.push(0x7f);
        left -= 0x7f;
        while left >= 0x80 {
            out.push(left as u8 | 0x80);
            left >>= 7;
        }
        out.push(left as u8);
    }
    out.resize(out.len() + count, b'x');
}

/// An integer with a prefix of `prefix_bits` (§5.1).
fn integer(rest: &mut &[u8], prefix_bits: u32) -> Result<usize, InvalidBlock> {
    let full = (1 << prefix_bits) - 1;
    let mut value = usize::from(take(rest)?) & full;
    if value < full {
        return Ok(value);
    }
    for shift in [0, 7, 14, 21] {
        let byte = usize::from(take(rest)?);
        value += (byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(InvalidBlock)
}

/// A string literal (§5.2).
struct Text<'a> {
    wire: &'a [u8],
    is_coded: bool,
    /// The decoded length.
    bytes: usize,
    /// The classes that all its bytes belong to.
    classes: u8,
}

impl<'a> Text<'a> {
    fn take(rest: &mut &'a [u8]) -> Result<Self, InvalidBlock> {
        let is_coded = rest.first().is_some_and(|first| first & 0x80 != 0);
        let length = integer(rest, 7)?;
        let (wire, behind) = rest.split_at_checked(length).ok_or(InvalidBlock)?;
        *rest = behind;
        let mut text = Self { wire, is_coded, bytes: 0, classes: !0 };
        let (mut bytes, mut classes) = (0, !0);
        text.each(|byte| {
            bytes += 1;
            classes &= CLASSES[usize::from(byte)];
        })?;
        (text.bytes, text.classes) = (bytes, classes);
        Ok(text)
    }

    fn each(&self, mut look: impl FnMut(u8)) -> Result<(), InvalidBlock> {
        if self.is_coded {
            return huffman::decode(self.wire, look).map_err(|_| InvalidBlock);
        }
        self.wire.iter().for_each(|byte| look(*byte));
        Ok(())
    }

    /// The decoded string, for the few that must be compared or checked as UTF-8.
    fn decoded(&self) -> Vec<u8> {
        let mut decoded = Vec::with_capacity(self.bytes);
        // The string can be decoded: `Text::take` has done so.
        let _ = self.each(|byte| decoded.push(byte));
        decoded
    }

    fn are_all(&self, class: u8) -> bool {
        self.classes & class != 0
    }

    fn name(&self) -> Name {
        let kind = match self.bytes {
            0 => Kind::Invalid,
            _ if self.are_all(NAME) => Kind::Field,
            1..=LONGEST_PSEUDO_BYTES => match &self.decoded()[..] {
                b":method" => Kind::Method,
                b":authority" | b":path" | b":protocol" | b":scheme" => Kind::Text,
                b":status" => Kind::Status,
                _ => Kind::Invalid,
            },
            _ => Kind::Invalid,
        };
        Name { bytes: self.bytes, kind }
    }

    /// Whether it is a valid value for this kind of name.
    fn is_valid_value(&self, kind: Kind) -> bool {
        match kind {
            Kind::Field => self.are_all(VALUE),
            Kind::Method => self.bytes > 0 && self.are_all(TOKEN),
            Kind::Text => self.are_all(ASCII) || std::str::from_utf8(&self.decoded()).is_ok(),
            Kind::Status | Kind::Invalid => false,
        }
    }
}

fn take(rest: &mut &[u8]) -> Result<u8, InvalidBlock> {
    let (first, behind) = rest.split_first().ok_or(InvalidBlock)?;
    *rest = behind;
    Ok(*first)
}

/// `connection: x`, without indexing. It makes a request malformed (RFC 9113 §8.2.2).
const MALFORMED: &[u8] = b"\x00\x0aconnection\x01x";
/// `:authority`.
const LONGEST_PSEUDO_BYTES: usize = 10;

/// The classes of each byte.
const CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let is_token = (byte as u8).is_ascii_alphanumeric()
            || matches!(byte as u8, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~');
        if is_token {
            classes[byte] |= TOKEN;
        }
        if is_token && !(byte as u8).is_ascii_uppercase() {
            classes[byte] |= NAME;
        }
        if byte >= 0x20 && byte != 0x7f || byte == b'\t' as usize {
            classes[byte] |= VALUE;
        }
        if byte < 0x80 {
            classes[byte] |= ASCII;
        }
        byte += 1;
    }
    classes
};
/// Allowed in the name of a field.
const NAME: u8 = 1;
/// Allowed in a method.
const TOKEN: u8 = 2;
/// Allowed in the value of a field.
const VALUE: u8 = 4;
/// ASCII, which need not be checked as UTF-8.
const ASCII: u8 = 8;

/// The size of the table: the default, as the node's SETTINGS do not change it (RFC 9113 §6.5.2).
const TABLE_BYTES_MAX: usize = 4096;
/// The overhead of an entry (RFC 7541 §4.1).
const ENTRY_BYTES: usize = 32;
/// The lengths of the names in the static table (RFC 7541 Appendix A).
const STATIC_NAME_BYTES: [u8; 61] = [
    10, 7, 7, 5, 5, 7, 7, 7, 7, 7, 7, 7, 7, 7, 14, 15, 15, 13, 6, 27, 3, 5, 13, 13, 19, 16, 16, 14,
    16, 13, 12, 6, 4, 4, 6, 7, 4, 4, 8, 17, 13, 8, 19, 13, 4, 8, 12, 18, 19, 5, 7, 7, 11, 6, 10,
    25, 17, 10, 4, 3, 16,
];

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// The blocks of one connection, in order, and whether each has pseudo-fields.
    #[track_caller]
    fn check(blocks: &[(&[u8], Result<bool, InvalidBlock>)]) {
        let mut table = HpackTable::new();
        for (at, (block, expected)) in blocks.iter().enumerate() {
            let summary = table.read(block).map(|summary| {
                assert_eq!(summary.replacement, None, "block {at}");
                summary.has_pseudo
            });
            assert_eq!(summary, *expected, "block {at}");
        }
    }

    /// The replacement of this block, as the first of its connection.
    #[track_caller]
    fn check_replacement(block: &[u8], expected: Option<&[u8]>) {
        let summary = HpackTable::new().read(block).expect("a block");
        let expected = expected.map(|fields| [fields, MALFORMED].concat());
        assert_eq!(summary.replacement, expected, "{block:?}");
    }

    #[test]
    fn the_rfc_s_examples_are_followed() {
        // RFC 7541 C.4: requests in Huffman's code, with a growing table.
        let first = b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff";
        let second = b"\x82\x86\x84\xbe\x58\x86\xa8\xeb\x10\x64\x9c\xbf";
        let third = b"\x82\x87\x85\xbf\x40\x88\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f\x89\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf";
        let mut table = HpackTable::new();
        for (block, bytes) in [(&first[..], 57), (second, 110), (third, 164)] {
            assert_eq!(table.read(block), GOOD);
            assert_eq!(table.bytes, bytes);
        }
    }

    #[test]
    fn entries_leave_a_full_table() {
        // RFC 7541 C.6: a table of 256 bytes, and three responses.
        let size = b"\x3f\xe1\x01";
        let first = b"\x48\x82\x64\x02\x58\x85\xae\xc3\x77\x1a\x4b\x61\x96\xd0\x7a\xbe\x94\x10\x54\xd4\x44\xa8\x20\x05\x95\x04\x0b\x81\x66\xe0\x82\xa6\x2d\x1b\xff\x6e\x91\x9d\x29\xad\x17\x18\x63\xc7\x8f\x0b\x97\xc8\xe9\xae\x82\xae\x43\xd3";
        let second = b"\x48\x83\x64\x0e\xff\xc1\xc0\xbf";
        let mut table = HpackTable::new();
        // Of these, `:status: 302` has no place in a request.
        assert!(table.read(&[&size[..], first].concat()).is_ok());
        assert_eq!((table.bytes, table.entries.len()), (222, 4));
        assert!(table.read(second).is_ok());
        assert_eq!((table.bytes, table.entries.len()), (222, 4));
        assert_eq!(table.read(b"\x20\xbe"), Err(InvalidBlock), "an empty table");
        assert_eq!(table.bytes, 0);
    }

    #[test]
    fn a_colon_is_seen_however_it_comes() {
        check(&[
            (b"", Ok(false)),
            (b"\x90", Ok(false)),
            (b"\x84", Ok(true)),
            (b"\x04\x01/", Ok(true)),
            (b"\x00\x05:path\x01b", Ok(true)),
            (b"\x00\x84\xb9\x58\xd3\x3f\x01b", Ok(true)),
            (b"\x40\x05:path\x01b\x40\x01a\x01b", Ok(true)),
            (b"\xbf", Ok(true)),
            (b"\xbe", Ok(false)),
        ]);
    }

    #[test]
    fn a_field_that_may_not_be_has_a_stand_in_of_its_size() {
        check_replacement(b"\x82\x00\x03x-a\x01b", None);
        // A field that does not change the table is left out.
        check_replacement(b"\x82\x00\x03X-A\x01b\x84", Some(b"\x82\x84"));
        check_replacement(b"\x10\x00\x01b", Some(b""));
        check_replacement(b"\x00\x01a\x03b\nc", Some(b""));
        check_replacement(b"\x00\x02:a\x01b", Some(b""));
        check_replacement(b"\x02\x03G T", Some(b""));
        check_replacement(b"\x04\x02/\xff", Some(b""));
        check_replacement(b"\x04\x03/\xc3\xa9", None);
        check_replacement(b"\x08\x03200", Some(b""));
        // Huffman: `A`, then a value with a NUL.
        check_replacement(b"\x00\x81\x87\x01b", Some(b""));
        check_replacement(b"\x00\x01a\x82\xff\xc7", Some(b""));
        // A field that changes the table is there in another spelling.
        check_replacement(b"\x40\x03X-A\x02bc", Some(b"\x40\x03xxx\x02xx"));
        check_replacement(b"\x40\x00\x02bc", Some(b"\x40\x01x\x01x"));
        check_replacement(b"\x40\x03x-a\x02b\n", Some(b"\x40\x03x-a\x02xx"));
        check_replacement(b"\x44\x02/\xff", Some(b"\x44\x02xx"));
        check_replacement(b"\x42\x03G T", Some(b"\x40\x07xxxxxxx\x03xxx"));
        assert_eq!(HpackTable::new().read(b"\x40\x00\x00"), Err(InvalidBlock), "there is none");
    }

    #[test]
    fn an_entry_of_the_table_stays_as_bad_as_it_was() {
        let mut table = HpackTable::new();
        let mut is_invalid =
            |block: &[u8]| table.read(block).expect("a block").replacement.is_some();
        assert!(is_invalid(b"\x40\x01A\x01b\x40\x01a\x01\n\x40\x01c\x01d"));
        assert!(!is_invalid(b"\xbe"), "good in a bad block");
        assert!(is_invalid(b"\xbf") && is_invalid(b"\xc0"));
        assert!(is_invalid(b"\x0f\x31\x01b"), "a bad name");
        assert!(!is_invalid(b"\x0f\x30\x01b"), "a good name whose value was bad");
    }

    #[test]
    fn invalid_blocks_are_found() {
        for block in [
            &b"\x80"[..],                         // index 0
            b"\xbe",                              // nothing in the table
            b"\xff\xff\xff\xff\xff\x0f",          // an index without end
            b"\x40",                              // cut short
            b"\x40\x01a\x05b",                    // a value cut short
            b"\x7f\x80\x01\x01a",                 // a name beyond the table
            b"\x90\x20",                          // a size behind a field
            b"\x3f\xe2\x1f",                      // a size beyond ours
            b"\x00\x01a\x84\xff\xff\xff\xff",     // EOS
            b"\x00\x01a\x83\x1c\x64\xff\xff",     // cut short behind more than seven ones
            b"\x00\x01a\x85\x1c\x64\x5f\xff\xff", // more than seven ones
            b"\x00\x01a\x81\x18",                 // zeros behind the last code
        ] {
            check(&[(block, Err(InvalidBlock))]);
        }
    }

    #[test]
    fn a_field_larger_than_the_table_empties_it() {
        let large = [&b"\x40\x01b\x7f\xa1\x1f"[..], &[b'x'; 4128]].concat();
        check(&[
            (b"\x40\x01a\x01b", Ok(false)),
            (b"\xbe", Ok(false)),
            (&large, Ok(false)),
            (b"\xbe", Err(InvalidBlock)),
        ]);
    }

    const GOOD: Result<BlockSummary, InvalidBlock> =
        Ok(BlockSummary { has_pseudo: true, replacement: None });

    /// Gives these blocks to the h2 crate as requests of one connection: how many it accepts, and
    /// whether the connection stays open.
    fn h2_takes(blocks: &[Vec<u8>]) -> (usize, bool) {
        let frames = blocks.iter().enumerate().map(|(at, block)| {
            let head = (block.len() as u32).to_be_bytes();
            let stream = (2 * at as u32 + 1).to_be_bytes();
            [&head[1..], &[1, 5], &stream, block].concat()
        });
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        let bytes = [preface.to_vec(), frames.collect::<Vec<_>>().concat()].concat();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let (ours, mut theirs) = tokio::io::duplex(1 << 20);
            theirs.write_all(&bytes).await.expect("room");
            let mut connection = h2::server::handshake(ours).await.expect("a preface");
            let (mut taken, mut pauses) = (0, 0);
            // All bytes are there. The h2 crate is pending once for each stream that it resets.
            while pauses <= blocks.len() {
                match connection.poll_accept(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(Some(Ok(_))) => taken += 1,
                    Poll::Ready(_) => return (taken, false),
                    Poll::Pending => pauses += 1,
                }
            }
            (taken, true)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]

        #[test]
        fn no_block_that_h2_takes_is_broken(
            words in proptest::collection::vec(
                proptest::sample::select(vec![
                    &b"\x20"[..], b"\x3f\xe1\x1f", b"\x30", b"\x90", b"\xbe", b"\xbf", b"\xc0", b"\x80",
                    b"\x40\x01a\x01b", b"\x40\x82\x1f\xff\x00", b"\x53\x83\x1c\x64\x5f", b"\x7e\x01x", b"\x7f\x00\x01x",
                    b"\x00\x01a\x00", b"\x00\x01a\x81\x1f", b"\x00\x01a\x81\x1c", b"\x0f\x04\x02ok", b"\x1f\x2f\x01x",
                    b"\xff\x00", b"\xff\x80\x01", b"\x10\x01b\x7f\x01", b"\x10\x01a\x01b", b"\x1f\x05\x01x", b"\x00\x01a\x85\xff\xff\xff\xff\xff",
                ]),
                0..8,
            ),
            at in 0..3_usize,
        ) {
            // Changes of the table's size stand first, or where they must not.
            let request = b"\x82\x84\x86\x41\x01a";
            let (before, behind) = words.split_at(at.min(words.len()));
            let block = [&before.concat()[..], request, &behind.concat()].concat();
            let (taken, _) = h2_takes(std::slice::from_ref(&block));
            prop_assert!(taken > 0 || !words.is_empty(), "h2 takes nothing");
            if taken > 0 {
                prop_assert_eq!(HpackTable::new().read(&block), GOOD);
            }
        }

        #[test]
        fn no_field_ends_the_connection_of_others(
            blocks in proptest::collection::vec(
                proptest::collection::vec(
                    proptest::sample::select(vec![
                        &b"\x40\x01A\x01b"[..], b"\x40\x01a\x01\n", b"\x00\x01\xff\x01b", b"\x40\x01a\x01b",
                        b"\x40\x00\x02bc", b"\x40\x82\x1f\xff\x00", b"\x53\x83\x1c\x64\x5f", b"\x42\x00",
                        b"\x42\x03a b", b"\x44\x01\xff", b"\x44\x02\xc3\xa9", b"\x48\x01x", b"\x48\x03200",
                        b"\x41\x01\xff", b"\x40\x07:method\x01\n", b"\x40\x07:status\x01x", b"\x40\x02:x\x01y",
                        b"\x40\x09:protocol\x01\xff", b"\x40\x82\xb8\x1f\x01b", b"\x40\x01a\x82\xff\xc7",
                        b"\xbe", b"\xbf", b"\xc0", b"\xc1", b"\x7e\x01x", b"\x7f\x00\x01x", b"\x7f\x01\x01\n",
                    ]),
                    0..5,
                ),
                1..5,
            ),
        ) {
            let request = b"\x82\x84\x86\x01\x01a";
            let mut table = HpackTable::new();
            let mut seen = Vec::new();
            for words in &blocks {
                let block = [&request[..], &words.concat()].concat();
                let Ok(summary) = table.read(&block) else { return Ok(()) };
                seen.push(summary.replacement.unwrap_or(block));
            }
            // A last request, with everything that is in the table.
            let all = (0..table.entries.len()).filter(|at| !table.entries[*at].is_invalid);
            let of_fields = all.filter(|at| table.entries[*at].name.kind == Kind::Field).take(60);
            let last: Vec<u8> = of_fields.map(|at| 0x80 | (62 + at as u8)).collect();
            seen.push([&request[..], &last].concat());
            let (taken, lives) = h2_takes(&seen);
            prop_assert!(lives && taken > 0, "{} of {} blocks were taken", taken, seen.len());
        }
    }
}
