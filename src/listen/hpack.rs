//! Walks header blocks without building their fields (RFC 7541).
//!
//! h2 decodes them too, but tells neither a broken block from a forbidden field, nor whether
//! trailers had pseudo-fields. To know that, the lengths in the dynamic table are enough, and one
//! bit an entry: texts are measured, never copied. A field that the table has costs its index.

use std::collections::VecDeque;

/// The block is none, or names what is not in the table: nothing after it can be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

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
}

#[derive(Clone, Copy, Debug)]
struct Name {
    bytes: usize,
    is_pseudo: bool,
}

impl Table {
    pub(super) const fn new() -> Self {
        Self { entries: VecDeque::new(), bytes: 0, bytes_max: TABLE_BYTES_MAX }
    }

    /// Follows a whole block. Whether the name of a field in it begins with a colon.
    pub(super) fn walk(&mut self, block: &[u8]) -> Result<bool, Broken> {
        let mut rest = block;
        while rest.first().is_some_and(|first| first >> 5 == 1) {
            self.resize(integer(&mut rest, 5)?)?;
        }
        let mut has_pseudo = false;
        while let Some(first) = rest.first() {
            has_pseudo |= match first {
                0x80.. => self.name_at(integer(&mut rest, 7)?)?.is_pseudo,
                0x40.. => {
                    let name = self.name(&mut rest, 6)?;
                    let value = text(&mut rest)?;
                    self.insert(name, value.bytes);
                    name.is_pseudo
                }
                // A change of size stands before all fields (§4.2).
                0x20.. => return Err(Broken),
                _ => {
                    let name = self.name(&mut rest, 4)?;
                    text(&mut rest)?;
                    name.is_pseudo
                }
            };
        }
        Ok(has_pseudo)
    }

    fn name(&self, rest: &mut &[u8], prefix_bits: u32) -> Result<Name, Broken> {
        match integer(rest, prefix_bits)? {
            0 => text(rest),
            index => self.name_at(index),
        }
    }

    fn name_at(&self, index: usize) -> Result<Name, Broken> {
        let before = index.checked_sub(1).ok_or(Broken)?;
        match STATIC_NAME_BYTES.get(before) {
            Some(bytes) => {
                Ok(Name { bytes: usize::from(*bytes), is_pseudo: index <= STATIC_PSEUDO_MAX })
            }
            None => {
                let entry = self.entries.get(before - STATIC_NAME_BYTES.len());
                Ok(entry.ok_or(Broken)?.name)
            }
        }
    }

    fn insert(&mut self, name: Name, value_bytes: usize) {
        let bytes = name.bytes + value_bytes + ENTRY_BYTES;
        self.evict(self.bytes_max.saturating_sub(bytes));
        // What is larger than the table empties it (§4.4).
        if bytes <= self.bytes_max {
            self.entries.push_front(Entry { name, value_bytes: value_bytes as u16 });
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

/// A text as a name: its length when decoded, and whether a colon is first (§5.2).
fn text(rest: &mut &[u8]) -> Result<Name, Broken> {
    let is_coded = rest.first().is_some_and(|first| first & 0x80 != 0);
    let length = integer(rest, 7)?;
    let (text, behind) = rest.split_at_checked(length).ok_or(Broken)?;
    *rest = behind;
    let first = text.first().copied().unwrap_or_default();
    Ok(if is_coded {
        Name { bytes: decoded_bytes(text)?, is_pseudo: first >> 1 == COLON_CODE }
    } else {
        Name { bytes: length, is_pseudo: first == b':' }
    })
}

/// How long a text in Huffman's code is without it. At its end up to seven bits, all of them one.
fn decoded_bytes(coded: &[u8]) -> Result<usize, Broken> {
    let mut symbols = 0;
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
            return Ok(symbols);
        }
        let length = CODES.iter().find(|(_, end)| window < *end).ok_or(Broken)?.0;
        // The last code of all is EOS, which may not stand in a text.
        if length > left || window >= EOS_CODE {
            return Err(Broken);
        }
        bits <<= length;
        left -= length;
        symbols += 1;
    }
}

fn take(rest: &mut &[u8]) -> Result<u8, Broken> {
    let (first, behind) = rest.split_first().ok_or(Broken)?;
    *rest = behind;
    Ok(*first)
}

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
const STATIC_PSEUDO_MAX: usize = 14;
/// Seven bits.
const COLON_CODE: u8 = 0x5c;
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
/// Length, and where its codes end, from the left; the last one ends where the bits do.
const CODES: [(u32, u32); 21] = {
    let mut codes = COUNTS;
    let (mut at, mut end) = (0, 0u64);
    while at < COUNTS.len() {
        end += (COUNTS[at].1 as u64) << (32 - COUNTS[at].0);
        codes[at].1 = if end > u32::MAX as u64 { u32::MAX } else { end as u32 };
        at += 1;
    }
    assert!(end == 1 << 32, "the codes fill all bits");
    codes
};

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// One after the other, as one connection's blocks.
    #[track_caller]
    fn check(blocks: &[(&[u8], Result<bool, Broken>)]) {
        let mut table = Table::new();
        for (at, (block, expected)) in blocks.iter().enumerate() {
            assert_eq!(table.walk(block), *expected, "block {at}");
        }
    }

    #[test]
    fn the_rfc_s_examples_are_followed() {
        // RFC 7541 C.4: requests in Huffman's code, with a growing table.
        let first = b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff";
        let second = b"\x82\x86\x84\xbe\x58\x86\xa8\xeb\x10\x64\x9c\xbf";
        let third = b"\x82\x87\x85\xbf\x40\x88\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f\x89\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf";
        let mut table = Table::new();
        for (block, bytes) in [(&first[..], 57), (second, 110), (third, 164)] {
            assert_eq!(table.walk(block), Ok(true));
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
        assert_eq!(table.walk(&[&size[..], first].concat()), Ok(true));
        assert_eq!((table.bytes, table.entries.len()), (222, 4));
        assert_eq!(table.walk(second), Ok(true));
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
            (b"\x00\x02:a\x01b", Ok(true)),
            (b"\x00\x82\xb8\x1f\x01b", Ok(true)),
            (b"\x00\x02a:\x01b", Ok(false)),
            (b"\x40\x02:a\x01b\x40\x01a\x01b", Ok(true)),
            (b"\xbf", Ok(true)),
            (b"\xbe", Ok(false)),
        ]);
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

    /// Whether h2 takes this block for a request's.
    fn h2_takes(block: &[u8]) -> bool {
        let head = (block.len() as u32).to_be_bytes();
        let frame = [&head[1..], &[1, 5, 0, 0, 0, 1], block].concat();
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let (ours, mut theirs) = tokio::io::duplex(1 << 20);
            theirs.write_all(&[&preface[..], &frame].concat()).await.expect("room");
            let mut connection = h2::server::handshake(ours).await.expect("a preface");
            // All is there: what is not taken at once never is.
            let accepted = connection.poll_accept(&mut Context::from_waker(Waker::noop()));
            matches!(accepted, Poll::Ready(Some(Ok(_))))
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
            let taken = h2_takes(&block);
            prop_assert!(taken || !words.is_empty(), "h2 takes nothing");
            if taken {
                prop_assert_eq!(Table::new().walk(&block), Ok(true));
            }
        }
    }
}
