//! Walks header blocks without building their fields (RFC 7541).
//!
//! h2 decodes them too, but tells neither a broken block from a forbidden field, nor whether
//! trailers had pseudo-fields, and ends the connection at a name or a value that may not be. To know
//! that, the lengths in the dynamic table are enough, and what a name is: texts are measured and
//! classed, never copied. A field that the table has costs its index.
//!
//! A malformed request is the error of its stream alone (RFC 9113 §8.1.1), but its block changes the
//! table of the whole connection. h2 is therefore given another block in its place: one that changes
//! the table in the same way, and that h2 refuses for the stream.

use std::collections::VecDeque;

/// The block is none, or names what is not in the table: nothing after it can be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

/// What is known of a whole block.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Summary {
    /// The name of a field in it begins with a colon.
    pub(super) has_pseudo: bool,
    /// Present when a field in it may not be: the block for h2 in its place.
    pub(super) stand_in: Option<Vec<u8>>,
}

/// What stands in the dynamic table of one direction.
#[derive(Debug)]
pub(super) struct Table {
    /// The newest first.
    entries: VecDeque<Entry>,
    bytes: usize,
    bytes_max: usize,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    name: Name,
    value_bytes: u16,
    /// It may not be in a message; h2 has another one of its size.
    is_bad: bool,
}

#[derive(Clone, Copy, Debug)]
struct Name {
    bytes: usize,
    kind: Kind,
}

/// What a field's name says of its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A field of the message.
    Field,
    /// `:method`.
    Method,
    /// `:authority`, `:path`, `:protocol` or `:scheme`.
    Text,
    /// `:status`, which no request has.
    Status,
    /// No name, or that of no pseudo-field. Lower case is a must (RFC 9113 §8.2.1).
    Bad,
}

impl Table {
    pub(super) const fn new() -> Self {
        Self { entries: VecDeque::new(), bytes: 0, bytes_max: TABLE_BYTES_MAX }
    }

    /// Follows a whole block.
    pub(super) fn walk(&mut self, block: &[u8]) -> Result<Summary, Broken> {
        let mut rest = block;
        while rest.first().is_some_and(|first| first >> 5 == 1) {
            self.resize(integer(&mut rest, 5)?)?;
        }
        let mut summary = Summary::default();
        // Up to where the block is in its stand-in.
        let mut done = 0;
        while let Some(first) = rest.first() {
            let begin = block.len() - rest.len();
            let field = match first {
                0x80.. => self.indexed(&mut rest)?,
                0x40.. => self.literal(&mut rest, 6)?,
                // A change of size stands before all fields (§4.2).
                0x20.. => return Err(Broken),
                _ => self.literal(&mut rest, 4)?,
            };
            summary.has_pseudo |= field.is_pseudo();
            let is_inserted = (0x40..0x80).contains(first);
            if field.is_bad {
                let stand_in = summary.stand_in.get_or_insert_default();
                stand_in.extend_from_slice(&block[done..begin]);
                done = block.len() - rest.len();
                if is_inserted {
                    field.push_stand_in(&block[begin..done], stand_in)?;
                }
            }
            if is_inserted {
                self.insert(field);
            }
        }
        if let Some(stand_in) = &mut summary.stand_in {
            stand_in.extend_from_slice(&block[done..]);
            stand_in.extend_from_slice(MALFORMED);
        }
        Ok(summary)
    }

    fn indexed(&self, rest: &mut &[u8]) -> Result<Field, Broken> {
        let entry = self.at(integer(rest, 7)?)?;
        let value_bytes = usize::from(entry.value_bytes);
        Ok(Field { name: entry.name, name_wire_bytes: 0, value_bytes, is_bad: entry.is_bad })
    }

    fn literal(&self, rest: &mut &[u8], prefix_bits: u32) -> Result<Field, Broken> {
        let wire_bytes = rest.len();
        let name = match integer(rest, prefix_bits)? {
            0 => Text::take(rest)?.name(),
            index => self.at(index)?.name,
        };
        let name_wire_bytes = wire_bytes - rest.len();
        let value = Text::take(rest)?;
        let is_bad = !value.fits(name.kind);
        Ok(Field { name, name_wire_bytes, value_bytes: value.bytes, is_bad })
    }

    fn at(&self, index: usize) -> Result<Entry, Broken> {
        let before = index.checked_sub(1).ok_or(Broken)?;
        let Some(bytes) = STATIC_NAME_BYTES.get(before) else {
            return self.entries.get(before - STATIC_NAME_BYTES.len()).copied().ok_or(Broken);
        };
        let kind = match index {
            1 | 4..=7 => Kind::Text,
            2..=3 => Kind::Method,
            8..=14 => Kind::Status,
            _ => Kind::Field,
        };
        // The length of a value counts only in the dynamic table.
        let name = Name { bytes: usize::from(*bytes), kind };
        Ok(Entry { name, value_bytes: 0, is_bad: false })
    }

    fn insert(&mut self, field: Field) {
        let Field { mut name, value_bytes, is_bad, .. } = field;
        if is_bad && !field.keeps_name() {
            name.kind = Kind::Bad;
        }
        let bytes = name.bytes + value_bytes + ENTRY_BYTES;
        self.evict(self.bytes_max.saturating_sub(bytes));
        // What is larger than the table empties it (§4.4).
        if bytes <= self.bytes_max {
            self.entries.push_front(Entry { name, value_bytes: value_bytes as u16, is_bad });
            self.bytes += bytes;
        }
    }

    fn resize(&mut self, bytes_max: usize) -> Result<(), Broken> {
        if bytes_max > TABLE_BYTES_MAX {
            return Err(Broken);
        }
        self.bytes_max = bytes_max;
        self.evict(bytes_max);
        Ok(())
    }

    fn evict(&mut self, bytes_left: usize) {
        while self.bytes > bytes_left {
            let oldest = self.entries.pop_back().expect("what has bytes has entries");
            self.bytes -= oldest.name.bytes + usize::from(oldest.value_bytes) + ENTRY_BYTES;
        }
    }
}

/// The same block, for h2 to refuse.
pub(super) fn malformed(block: &[u8]) -> Vec<u8> {
    [block, MALFORMED].concat()
}

/// One field of a block.
#[derive(Clone, Copy)]
struct Field {
    name: Name,
    /// What stands before the value on the wire.
    name_wire_bytes: usize,
    value_bytes: usize,
    /// Its name or its value may not be.
    is_bad: bool,
}

impl Field {
    fn is_pseudo(self) -> bool {
        matches!(self.name.kind, Kind::Method | Kind::Text | Kind::Status)
    }

    /// Whether any letters do for a value.
    fn keeps_name(self) -> bool {
        matches!(self.name.kind, Kind::Field | Kind::Text)
    }

    /// A field that takes as much of the table, and that h2 takes. `wire` is the field's own.
    fn push_stand_in(self, wire: &[u8], stand_in: &mut Vec<u8>) -> Result<(), Broken> {
        // What is larger than the table empties it, however much larger.
        if self.keeps_name() {
            stand_in.extend_from_slice(&wire[..self.name_wire_bytes]);
            push_letters(self.value_bytes.min(TABLE_BYTES_MAX), stand_in);
            return Ok(());
        }
        // An empty name has no stand-in of its size; that of an empty field has none at all.
        let bytes = (self.name.bytes + self.value_bytes).min(TABLE_BYTES_MAX);
        let name_bytes = self.name.bytes.clamp(1, TABLE_BYTES_MAX);
        let value_bytes = bytes.checked_sub(name_bytes).ok_or(Broken)?;
        stand_in.push(0x40);
        push_letters(name_bytes, stand_in);
        push_letters(value_bytes, stand_in);
        Ok(())
    }
}

/// A text of so many letters.
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

/// An integer whose first byte has so many bits of it (§5.1).
fn integer(rest: &mut &[u8], prefix_bits: u32) -> Result<usize, Broken> {
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
    Err(Broken)
}

/// A text (§5.2).
struct Text<'a> {
    wire: &'a [u8],
    is_coded: bool,
    /// How long it is when decoded.
    bytes: usize,
    /// The classes that all its bytes are in.
    classes: u8,
}

impl<'a> Text<'a> {
    fn take(rest: &mut &'a [u8]) -> Result<Self, Broken> {
        let is_coded = rest.first().is_some_and(|first| first & 0x80 != 0);
        let length = integer(rest, 7)?;
        let (wire, behind) = rest.split_at_checked(length).ok_or(Broken)?;
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

    fn each(&self, mut look: impl FnMut(u8)) -> Result<(), Broken> {
        if self.is_coded {
            return decode(self.wire, look);
        }
        self.wire.iter().for_each(|byte| look(*byte));
        Ok(())
    }

    /// The text itself, for the few that must be compared or read as UTF-8.
    fn decoded(&self) -> Vec<u8> {
        let mut decoded = Vec::with_capacity(self.bytes);
        // No error is possible: `Text::take` has decoded it once.
        let _ = self.each(|byte| decoded.push(byte));
        decoded
    }

    fn are_all(&self, class: u8) -> bool {
        self.classes & class != 0
    }

    fn name(&self) -> Name {
        let kind = match self.bytes {
            0 => Kind::Bad,
            _ if self.are_all(NAME) => Kind::Field,
            1..=LONGEST_PSEUDO_BYTES => match &self.decoded()[..] {
                b":method" => Kind::Method,
                b":authority" | b":path" | b":protocol" | b":scheme" => Kind::Text,
                b":status" => Kind::Status,
                _ => Kind::Bad,
            },
            _ => Kind::Bad,
        };
        Name { bytes: self.bytes, kind }
    }

    /// Whether it can be the value of such a field.
    fn fits(&self, kind: Kind) -> bool {
        match kind {
            Kind::Field => self.are_all(VALUE),
            Kind::Method => self.bytes > 0 && self.are_all(TOKEN),
            Kind::Text => self.are_all(ASCII) || std::str::from_utf8(&self.decoded()).is_ok(),
            Kind::Status | Kind::Bad => false,
        }
    }
}

/// The bytes of a text in Huffman's code. At its end up to seven bits, all of them one.
fn decode(coded: &[u8], mut look: impl FnMut(u8)) -> Result<(), Broken> {
    // The bits that are not decoded yet, from the left.
    let (mut bits, mut left) = (0u64, 0u32);
    let mut bytes = coded.iter();
    loop {
        while left <= 32
            && let Some(byte) = bytes.next()
        {
            bits |= u64::from(*byte) << (56 - left);
            left += 8;
        }
        let window = (bits >> 32) as u32;
        if left < 8 && bits.leading_ones() >= left {
            return Ok(());
        }
        let codes = CODES.iter().find(|codes| window <= codes.last).ok_or(Broken)?;
        // The last code of all is EOS, which may not stand in a text.
        if codes.bits > left || window >= EOS_CODE {
            return Err(Broken);
        }
        let place = (window - codes.first) >> (32 - codes.bits);
        look(SYMBOLS[codes.before + place as usize]);
        bits <<= codes.bits;
        left -= codes.bits;
    }
}

fn take(rest: &mut &[u8]) -> Result<u8, Broken> {
    let (first, behind) = rest.split_first().ok_or(Broken)?;
    *rest = behind;
    Ok(*first)
}

/// `connection: x`, which makes a message malformed (RFC 9113 §8.2.2). Not indexed.
const MALFORMED: &[u8] = b"\x00\x0aconnection\x01x";
/// `:authority`.
const LONGEST_PSEUDO_BYTES: usize = 10;

/// The classes of each byte: what it may be a part of.
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
/// The name of a field.
const NAME: u8 = 1;
/// A method.
const TOKEN: u8 = 2;
/// The value of a field.
const VALUE: u8 = 4;
/// Any text that need not be looked at as UTF-8.
const ASCII: u8 = 8;

/// What we let clients use: the size that holds unless SETTINGS say otherwise (RFC 9113 §6.5.2).
const TABLE_BYTES_MAX: usize = 4096;
/// What an entry counts beside its texts (RFC 7541 §4.1).
const ENTRY_BYTES: usize = 32;
/// Names in the static table (RFC 7541 Appendix A).
const STATIC_NAME_BYTES: [u8; 61] = [
    10, 7, 7, 5, 5, 7, 7, 7, 7, 7, 7, 7, 7, 7, 14, 15, 15, 13, 6, 27, 3, 5, 13, 13, 19, 16, 16, 14,
    16, 13, 12, 6, 4, 4, 6, 7, 4, 4, 8, 17, 13, 8, 19, 13, 4, 8, 12, 18, 19, 5, 7, 7, 11, 6, 10,
    25, 17, 10, 4, 3, 16,
];
const EOS_CODE: u32 = !0 << 2;
/// How many symbols have a code of so many bits (RFC 7541 Appendix B). Codes rise with their
/// length, so that this is all there is to know of them but for which symbol is whose.
const COUNTS: [(u32, u32); 21] = [
    (5, 10),
    (6, 26),
    (7, 32),
    (8, 6),
    (10, 5),
    (11, 3),
    (12, 2),
    (13, 6),
    (14, 2),
    (15, 3),
    (19, 3),
    (20, 8),
    (21, 13),
    (22, 26),
    (23, 29),
    (24, 12),
    (25, 4),
    (26, 15),
    (27, 19),
    (28, 29),
    (30, 4),
];
/// The codes of one length, from the left: the first one, and the last with all bits behind it.
struct Codes {
    bits: u32,
    first: u32,
    last: u32,
    /// How many symbols have shorter ones.
    before: usize,
}

const CODES: [Codes; 21] = {
    let mut codes = [const { Codes { bits: 0, first: 0, last: 0, before: 0 } }; 21];
    let (mut at, mut first, mut before) = (0, 0u64, 0);
    while at < COUNTS.len() {
        let (bits, count) = COUNTS[at];
        let end = first + ((count as u64) << (32 - bits));
        codes[at] = Codes { bits, first: first as u32, last: (end - 1) as u32, before };
        first = end;
        before += count as usize;
        at += 1;
    }
    assert!(first == 1 << 32, "the codes fill all bits");
    codes
};
/// The symbols by their codes (RFC 7541 Appendix B), without EOS.
const SYMBOLS: &[u8; 256] =
    b"012aceiost %-./3456789=A_bdfghlmnpru:BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz&*,;XZ!\"()?'+|#>\
    \x00$@[]~^}<`{\\\xc3\xd0\x80\x82\x83\xa2\xb8\xc2\xe0\xe2\x99\xa1\xa7\xac\xb0\xb1\xb3\xd1\
    \xd8\xd9\xe3\xe5\xe6\x81\x84\x85\x86\x88\x92\x9a\x9c\xa0\xa3\xa4\xa9\xaa\xad\xb2\xb5\xb9\
    \xba\xbb\xbd\xbe\xc4\xc6\xe4\xe8\xe9\x01\x87\x89\x8a\x8b\x8c\x8d\x8f\x93\x95\x96\x97\x98\
    \x9b\x9d\x9e\xa5\xa6\xa8\xae\xaf\xb4\xb6\xb7\xbc\xbf\xc5\xe7\xef\x09\x8e\x90\x91\x94\x9f\
    \xab\xce\xd7\xe1\xec\xed\xc7\xcf\xea\xeb\xc0\xc1\xc8\xc9\xca\xcd\xd2\xd5\xda\xdb\xee\xf0\
    \xf2\xf3\xff\xcb\xcc\xd3\xd4\xd6\xdd\xde\xdf\xf1\xf4\xf5\xf6\xf7\xf8\xfa\xfb\xfc\xfd\xfe\
    \x02\x03\x04\x05\x06\x07\x08\x0b\x0c\x0e\x0f\x10\x11\x12\x13\x14\x15\x17\x18\x19\x1a\x1b\
    \x1c\x1d\x1e\x1f\x7f\xdc\xf9\x0a\x0d\x16";

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// One after the other, as one connection's blocks: whether they have pseudo-fields.
    #[track_caller]
    fn check(blocks: &[(&[u8], Result<bool, Broken>)]) {
        let mut table = Table::new();
        for (at, (block, expected)) in blocks.iter().enumerate() {
            let summary = table.walk(block).map(|summary| {
                assert_eq!(summary.stand_in, None, "block {at}");
                summary.has_pseudo
            });
            assert_eq!(summary, *expected, "block {at}");
        }
    }

    /// What stands for this block, as the first of its connection.
    #[track_caller]
    fn check_stand_in(block: &[u8], expected: Option<&[u8]>) {
        let summary = Table::new().walk(block).expect("a block");
        let expected = expected.map(|fields| [fields, MALFORMED].concat());
        assert_eq!(summary.stand_in, expected, "{block:?}");
    }

    #[test]
    fn the_rfc_s_examples_are_followed() {
        // RFC 7541 C.4: requests in Huffman's code, with a growing table.
        let first = b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff";
        let second = b"\x82\x86\x84\xbe\x58\x86\xa8\xeb\x10\x64\x9c\xbf";
        let third = b"\x82\x87\x85\xbf\x40\x88\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f\x89\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf";
        let mut table = Table::new();
        for (block, bytes) in [(&first[..], 57), (second, 110), (third, 164)] {
            assert_eq!(table.walk(block), GOOD);
            assert_eq!(table.bytes, bytes);
        }
    }

    #[test]
    fn entries_leave_a_full_table() {
        // RFC 7541 C.6: a table of 256 bytes, and three responses.
        let size = b"\x3f\xe1\x01";
        let first = b"\x48\x82\x64\x02\x58\x85\xae\xc3\x77\x1a\x4b\x61\x96\xd0\x7a\xbe\x94\x10\x54\xd4\x44\xa8\x20\x05\x95\x04\x0b\x81\x66\xe0\x82\xa6\x2d\x1b\xff\x6e\x91\x9d\x29\xad\x17\x18\x63\xc7\x8f\x0b\x97\xc8\xe9\xae\x82\xae\x43\xd3";
        let second = b"\x48\x83\x64\x0e\xff\xc1\xc0\xbf";
        let mut table = Table::new();
        // Of these, `:status: 302` has no place in a request.
        assert!(table.walk(&[&size[..], first].concat()).is_ok());
        assert_eq!((table.bytes, table.entries.len()), (222, 4));
        assert!(table.walk(second).is_ok());
        assert_eq!((table.bytes, table.entries.len()), (222, 4));
        assert_eq!(table.walk(b"\x20\xbe"), Err(Broken), "an empty table");
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
        check_stand_in(b"\x82\x00\x03x-a\x01b", None);
        // What does not change the table is left out.
        check_stand_in(b"\x82\x00\x03X-A\x01b\x84", Some(b"\x82\x84"));
        check_stand_in(b"\x10\x00\x01b", Some(b""));
        check_stand_in(b"\x00\x01a\x03b\nc", Some(b""));
        check_stand_in(b"\x00\x02:a\x01b", Some(b""));
        check_stand_in(b"\x02\x03G T", Some(b""));
        check_stand_in(b"\x04\x02/\xff", Some(b""));
        check_stand_in(b"\x04\x03/\xc3\xa9", None);
        check_stand_in(b"\x08\x03200", Some(b""));
        // Huffman: `A`, then a value with a NUL.
        check_stand_in(b"\x00\x81\x87\x01b", Some(b""));
        check_stand_in(b"\x00\x01a\x82\xff\xc7", Some(b""));
        // What changes it is there in another spelling.
        check_stand_in(b"\x40\x03X-A\x02bc", Some(b"\x40\x03xxx\x02xx"));
        check_stand_in(b"\x40\x00\x02bc", Some(b"\x40\x01x\x01x"));
        check_stand_in(b"\x40\x03x-a\x02b\n", Some(b"\x40\x03x-a\x02xx"));
        check_stand_in(b"\x44\x02/\xff", Some(b"\x44\x02xx"));
        check_stand_in(b"\x42\x03G T", Some(b"\x40\x07xxxxxxx\x03xxx"));
        assert_eq!(Table::new().walk(b"\x40\x00\x00"), Err(Broken), "there is none");
    }

    #[test]
    fn what_the_table_has_is_as_bad_as_it_was() {
        let mut table = Table::new();
        let mut is_bad = |block: &[u8]| table.walk(block).expect("a block").stand_in.is_some();
        assert!(is_bad(b"\x40\x01A\x01b\x40\x01a\x01\n\x40\x01c\x01d"));
        assert!(!is_bad(b"\xbe"), "good in a bad block");
        assert!(is_bad(b"\xbf") && is_bad(b"\xc0"));
        assert!(is_bad(b"\x0f\x31\x01b"), "a bad name");
        assert!(!is_bad(b"\x0f\x30\x01b"), "a good name whose value was bad");
    }

    #[test]
    fn every_symbol_has_its_code() {
        // As the RFC's list has them: one of each length.
        for (code, bits, symbol) in [
            (0x0_u32, 5, b'0'),
            (0x14, 6, b' '),
            (0x5c, 7, b':'),
            (0xf8, 8, b'&'),
            (0x3fa, 10, b'('),
            (0x7fa, 11, b'\''),
            (0xffa, 12, b'#'),
            (0x1ffd, 13, b'~'),
            (0x3ffc, 14, b'^'),
            (0x7ffe, 15, b'{'),
            (0x7fff0, 19, b'\\'),
            (0xfffe6, 20, 128),
            (0x7fffd8, 23, 1),
            (0xffffffc, 28, 127),
            (0x3ffffffe, 30, 22),
        ] {
            let word = (u64::from(code) << (64 - bits)) | (!0 >> bits);
            let mut symbols = Vec::new();
            let length = (bits as usize).div_ceil(8);
            decode(&word.to_be_bytes()[..length], |byte| symbols.push(byte)).expect("a code");
            assert_eq!(symbols, [symbol], "{code:x}");
        }
    }

    #[test]
    fn what_is_no_block_is_found() {
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
            check(&[(block, Err(Broken))]);
        }
    }

    #[test]
    fn what_is_larger_than_the_table_empties_it() {
        let large = [&b"\x40\x01b\x7f\xa1\x1f"[..], &[b'x'; 4128]].concat();
        check(&[
            (b"\x40\x01a\x01b", Ok(false)),
            (b"\xbe", Ok(false)),
            (&large, Ok(false)),
            (b"\xbe", Err(Broken)),
        ]);
    }

    const GOOD: Result<Summary, Broken> = Ok(Summary { has_pseudo: true, stand_in: None });

    /// What h2 makes of these blocks, as requests of one connection: how many it takes, and
    /// whether the connection lives.
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
            // All is there. h2 stops for a moment where it resets a stream.
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
                prop_assert_eq!(Table::new().walk(&block), GOOD);
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
            let mut table = Table::new();
            let mut seen = Vec::new();
            for words in &blocks {
                let block = [&request[..], &words.concat()].concat();
                let Ok(summary) = table.walk(&block) else { return Ok(()) };
                seen.push(summary.stand_in.unwrap_or(block));
            }
            // One request behind them all, with everything that is in the table.
            let all = (0..table.entries.len()).filter(|at| !table.entries[*at].is_bad);
            let of_fields = all.filter(|at| table.entries[*at].name.kind == Kind::Field).take(60);
            let last: Vec<u8> = of_fields.map(|at| 0x80 | (62 + at as u8)).collect();
            seen.push([&request[..], &last].concat());
            let (taken, lives) = h2_takes(&seen);
            prop_assert!(lives && taken > 0, "{} of {} blocks were taken", taken, seen.len());
        }
    }
}
