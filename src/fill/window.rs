//! The bytes of a fill that are in memory: the newest part of a body, in pieces.
//!
//! Pure: no lock, no waker. A piece is the content of one frame from upstream. Small frames are
//! merged on arrival, so that an upstream that sends byte by byte costs no more memory than any
//! other.
//!
//! ```text
//!  0            start                                            end
//!  | dropped:   | frame | frame          | frame | frame | frame |  not yet here
//!  | the store  |<------------------- pieces ------------------->|
//!  | has it     |
//! ```

use std::collections::VecDeque;

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
    /// Offset of the first byte in memory.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// Number of bytes of the body that have arrived; the offset of the next one.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Number of bytes in memory.
    pub(super) fn held(&self) -> u64 {
        self.end - self.start
    }

    /// Appends the next bytes of the body.
    pub(super) fn push(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        let offset = self.end;
        self.end += bytes.len() as u64;
        self.pieces.push_back(Piece { offset, bytes });
        while self.last_two_are_small() {
            let last = self.pieces.pop_back().expect("two pieces are there");
            let before = self.pieces.back_mut().expect("two pieces are there");
            before.bytes = concatenate(&before.bytes, &last.bytes);
        }
    }

    /// Merges so that sizes double from the newest piece backwards, up to the bound: each byte is
    /// copied at most once per doubling. Frames of usual size are never copied.
    fn last_two_are_small(&self) -> bool {
        let count = self.pieces.len();
        if count < 2 {
            return false;
        }
        let (before, last) = (&self.pieces[count - 2], &self.pieces[count - 1]);
        last.bytes.len() < MERGE_BYTES_MAX && before.bytes.len() <= 2 * last.bytes.len()
    }

    /// The bytes from `offset` to the end of the piece that holds it.
    pub(super) fn at(&self, offset: u64) -> Option<Bytes> {
        let index = self.pieces.partition_point(|piece| piece.end() <= offset);
        let piece = self.pieces.get(index).filter(|piece| piece.offset <= offset)?;
        Some(piece.bytes.slice((offset - piece.offset) as usize..))
    }

    /// Drops the pieces that end at or before `offset`.
    pub(super) fn drop_before(&mut self, offset: u64) {
        while self.pieces.front().is_some_and(|piece| piece.end() <= offset) {
            self.pieces.pop_front();
        }
        self.start = self.pieces.front().map_or(self.end, |piece| piece.offset);
    }
}

fn concatenate(first: &Bytes, second: &Bytes) -> Bytes {
    let mut whole = BytesMut::with_capacity(first.len() + second.len());
    whole.extend_from_slice(first);
    whole.extend_from_slice(second);
    whole.freeze()
}

/// Frames of at least this size are never merged.
const MERGE_BYTES_MAX: usize = 8 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn window_of(lengths: &[usize]) -> Window {
        let mut window = Window::default();
        for length in lengths {
            let from = window.end();
            window.push((from..from + *length as u64).map(|offset| offset as u8).collect());
        }
        window
    }

    #[test]
    fn every_held_offset_is_found_and_no_other() {
        let mut window = window_of(&[20_000, 30, 9_000, 700, 8_000]);
        window.drop_before(20_000);
        assert_eq!((window.start(), window.end(), window.held()), (20_000, 37_730, 17_730));
        for offset in 20_000..37_730 {
            assert_eq!(window.at(offset).expect("held")[0], offset as u8);
        }
        assert!(window.at(19_999).is_none());
        assert!(window.at(37_730).is_none());
    }

    #[test]
    fn frames_of_one_byte_are_merged_into_few_pieces() {
        let window = window_of(&[1; 100_000]);
        assert!(window.pieces.len() < 20, "{} pieces", window.pieces.len());
        assert_eq!(window.at(0).expect("held")[..3], [0, 1, 2]);
    }

    #[test]
    fn frames_of_usual_size_are_kept_as_they_came() {
        assert_eq!(window_of(&[16_384, 8_192, 8_192]).pieces.len(), 3);
    }

    #[test]
    fn only_whole_pieces_are_dropped() {
        let mut window = window_of(&[10_000, 10_000]);
        window.drop_before(15_000);
        assert_eq!(window.start(), 10_000);
        window.drop_before(50_000);
        assert_eq!((window.start(), window.end()), (20_000, 20_000));
    }
}
