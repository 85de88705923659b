//! The bytes of a fill that are in memory: the newest part of a body, in pieces.
//!
//! Pure: no lock, no waker. A piece is what came from upstream in one frame, until its slice
//! is complete; then the slice's frames are replaced by one exact copy, which the store
//! shares. Small frames are merged as they come, so that an upstream which sends byte by byte
//! costs no more memory than one which does not.
//!
//! ```text
//!  0            start                                            end
//!  | dropped:   |  slice n       |  slice n+1     | frame | frame |  not yet here
//!  | the store  |<------------------- pieces ------------------->|
//!  | has it     |
//! ```

use std::collections::VecDeque;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

/// Consecutive bytes of one body.
#[derive(Debug, Default)]
pub(super) struct Window {
    pieces: VecDeque<Piece>,
    start: u64,
    end: u64,
}

#[derive(Debug)]
struct Piece {
    offset: u64,
    bytes: Bytes,
}

impl Piece {
    fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

impl Window {
    /// The offset of the first byte that is held.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// How many bytes of the body have come; the offset of the next one.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// How many bytes are held.
    pub fn held(&self) -> u64 {
        self.end - self.start
    }

    /// Appends what came next. Must not reach over the end of a slice.
    pub fn push(&mut self, bytes: Bytes, slice_bytes: u64) {
        if bytes.is_empty() {
            return;
        }
        let offset = self.end;
        self.end += bytes.len() as u64;
        debug_assert_eq!(offset / slice_bytes, (self.end - 1) / slice_bytes);
        self.pieces.push_back(Piece { offset, bytes });
        while self.last_two_are_small(slice_bytes) {
            let last = self.pieces.pop_back().expect("two pieces are there");
            let before = self.pieces.back_mut().expect("two pieces are there");
            before.bytes = concatenate(&[before.bytes.clone(), last.bytes]);
        }
    }

    /// Sizes double from the newest piece backwards, up to the bound: each byte is copied at
    /// most once a doubling. Frames of usual size are never copied here.
    fn last_two_are_small(&self, slice_bytes: u64) -> bool {
        let count = self.pieces.len();
        if count < 2 {
            return false;
        }
        let (before, last) = (&self.pieces[count - 2], &self.pieces[count - 1]);
        last.bytes.len() < MERGE_BYTES_MAX
            && before.bytes.len() <= 2 * last.bytes.len()
            && before.offset / slice_bytes == last.offset / slice_bytes
    }

    /// The bytes from `offset` to the end of the piece that holds it.
    pub fn at(&self, offset: u64) -> Option<Bytes> {
        let index = self.pieces.partition_point(|piece| piece.end() <= offset);
        let piece = self.pieces.get(index).filter(|piece| piece.offset <= offset)?;
        Some(piece.bytes.slice((offset - piece.offset) as usize..))
    }

    /// The pieces of `range`, which must begin and end where pieces do, and be held in whole.
    #[allow(dead_code, reason = "slices go to the store with its writer")]
    pub fn pieces_of(&self, range: &Range<u64>) -> Vec<Bytes> {
        let first = self.pieces.partition_point(|piece| piece.offset < range.start);
        let inside = self.pieces.range(first..).take_while(|piece| piece.end() <= range.end);
        inside.map(|piece| piece.bytes.clone()).collect()
    }

    /// Puts one piece in the place of those of its range.
    #[allow(dead_code, reason = "slices go to the store with its writer")]
    pub fn replace(&mut self, offset: u64, bytes: Bytes) {
        let end = offset + bytes.len() as u64;
        let first = self.pieces.partition_point(|piece| piece.offset < offset);
        let after = self.pieces.partition_point(|piece| piece.offset < end);
        if first < after {
            self.pieces.drain(first + 1..after);
            self.pieces[first] = Piece { offset, bytes };
        }
    }

    /// Drops the pieces that end at or before `offset`.
    pub fn drop_before(&mut self, offset: u64) {
        while self.pieces.front().is_some_and(|piece| piece.end() <= offset) {
            self.pieces.pop_front();
        }
        self.start = self.pieces.front().map_or(self.end, |piece| piece.offset);
    }
}

/// One exact copy, which holds no more memory than its length.
pub(super) fn concatenate(pieces: &[Bytes]) -> Bytes {
    let mut whole = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
    whole.freeze()
}

/// Frames of this size and above are kept as they came.
const MERGE_BYTES_MAX: usize = 8 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    const SLICE: u64 = 1024;

    fn window_of(lengths: &[usize]) -> Window {
        let mut window = Window::default();
        for length in lengths {
            let from = window.end();
            let bytes = (from..from + *length as u64).map(|offset| offset as u8).collect();
            window.push(bytes, SLICE);
        }
        window
    }

    #[test]
    fn every_held_offset_is_found_and_no_other() {
        let mut window = window_of(&[1000, 24, 1024, 7]);
        window.drop_before(1024);
        assert_eq!((window.start(), window.end(), window.held()), (1024, 2055, 1031));
        for offset in 1024..2055 {
            assert_eq!(window.at(offset).expect("held")[0], offset as u8);
        }
        assert!(window.at(1023).is_none());
        assert!(window.at(2055).is_none());
    }

    #[test]
    fn frames_of_one_byte_are_merged_into_few_pieces() {
        let window = window_of(&[1; 1024]);
        assert!(window.pieces.len() < 12, "{} pieces", window.pieces.len());
        assert_eq!(concatenate(&window.pieces_of(&(0..1024))).len(), 1024);
    }

    #[test]
    fn merging_never_crosses_slices() {
        let window = window_of(&[1023, 1, 1, 1]);
        assert!(window.pieces.iter().any(|piece| piece.offset == 1024));
    }

    #[test]
    fn a_slice_takes_the_place_of_its_frames() {
        let mut window = window_of(&[600, 424, 800, 224, 3]);
        let slice = concatenate(&window.pieces_of(&(1024..2048)));
        window.replace(1024, slice.clone());
        assert_eq!(window.at(1024).expect("held"), slice);
        assert_eq!(window.pieces_of(&(1024..2048)), [slice]);
        assert_eq!(window.at(2048).expect("held").len(), 3);
    }

    #[test]
    fn only_whole_pieces_are_dropped() {
        let mut window = window_of(&[1024, 1024]);
        window.drop_before(1500);
        assert_eq!(window.start(), 1024);
        window.drop_before(5000);
        assert_eq!((window.start(), window.end()), (2048, 2048));
    }
}
