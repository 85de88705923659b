//! Encoders of brotli whose memory a thread keeps from one body to the next. brotli has no way to use an encoder again, but takes
//! its memory from an allocator: a stream at level 4 has 2.1 MiB for its window and 0.5 MiB of tables. Memory that is new to the process
//! costs a page fault for each 4 KiB, and the window is not cleared if it is kept: brotli reads only what it has written there, and
//! as memory of C it would not be cleared either.

use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::io;

use async_compression::codecs::EncodeV2;
use async_compression::core::util::{PartialBuffer, WriteBuffer};
use brotli::enc::encode::{BrotliEncoderOperation, BrotliEncoderStateStruct};
use brotli::enc::{Allocator, BrotliAlloc, BrotliEncoderParams};
use brotli::{SliceWrapper, SliceWrapperMut};

/// An encoder of one body.
pub(super) struct KeptBrotli(BrotliEncoderStateStruct<KeptMemory>);

impl KeptBrotli {
    /// `level`: 0 to 11. `window_log`: the binary logarithm of the window, 10 to 24. `size_hint`: the length of the body, 0 if
    /// it is not known.
    pub(super) fn new(level: i32, window_log: i32, size_hint: usize) -> Self {
        let mut encoder = BrotliEncoderStateStruct::new(KeptMemory);
        encoder.params = BrotliEncoderParams {
            quality: level,
            lgwin: window_log,
            size_hint,
            ..Default::default()
        };
        Self(encoder)
    }

    fn run(
        &mut self,
        input: &mut PartialBuffer<&[u8]>,
        output: &mut WriteBuffer<'_>,
        operation: BrotliEncoderOperation,
    ) -> io::Result<()> {
        let (content, coded) = (input.unwritten(), output.initialize_unwritten());
        let (mut left, mut room) = (content.len(), coded.len());
        let (mut taken, mut given) = (0, 0);
        let is_fine = self.0.compress_stream(
            operation,
            &mut left,
            content,
            &mut taken,
            &mut room,
            coded,
            &mut given,
            &mut None,
            &mut |_, _, _, _| (),
        );
        input.advance(taken);
        output.advance(given);
        if is_fine { Ok(()) } else { Err(io::Error::other("brotli failed")) }
    }
}

impl EncodeV2 for KeptBrotli {
    fn encode(
        &mut self,
        input: &mut PartialBuffer<&[u8]>,
        output: &mut WriteBuffer<'_>,
    ) -> io::Result<()> {
        self.run(input, output, BrotliEncoderOperation::BROTLI_OPERATION_PROCESS)
    }

    fn flush(&mut self, output: &mut WriteBuffer<'_>) -> io::Result<bool> {
        let nothing = &mut PartialBuffer::new(&[][..]);
        self.run(nothing, output, BrotliEncoderOperation::BROTLI_OPERATION_FLUSH)?;
        Ok(!self.0.has_more_output())
    }

    fn finish(&mut self, output: &mut WriteBuffer<'_>) -> io::Result<bool> {
        let nothing = &mut PartialBuffer::new(&[][..]);
        self.run(nothing, output, BrotliEncoderOperation::BROTLI_OPERATION_FINISH)?;
        Ok(self.0.is_finished())
    }
}

/// The allocator of an encoder: kept memory of the same type and length, or else new memory.
#[derive(Clone, Copy, Debug, Default)]
struct KeptMemory;

/// Memory of an encoder, which is kept when dropped.
#[derive(Default)]
struct Piece<T: 'static>(Box<[T]>);

impl<T: Clone + Default + 'static> Allocator<T> for KeptMemory {
    type AllocatedMemory = Piece<T>;

    fn alloc_cell(&mut self, length: usize) -> Piece<T> {
        let Some(mut kept) = take::<T>(length) else {
            return Piece(vec![T::default(); length].into());
        };
        // Tables must be empty. Bytes are those of the window and of output: written before they are read.
        if TypeId::of::<T>() != TypeId::of::<u8>() {
            kept.fill(T::default());
        }
        Piece(kept)
    }

    fn free_cell(&mut self, piece: Piece<T>) {
        drop(piece);
    }
}

impl BrotliAlloc for KeptMemory {}

impl<T: 'static> SliceWrapper<T> for Piece<T> {
    fn slice(&self) -> &[T] {
        &self.0
    }
}

impl<T: 'static> SliceWrapperMut<T> for Piece<T> {
    fn slice_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

impl<T: 'static> Drop for Piece<T> {
    fn drop(&mut self) {
        let bytes = size_of_val(&*self.0);
        if (KEPT_BYTES_LEAST..=KEPT_BYTES_MAX / 2).contains(&bytes) {
            keep(Box::new(std::mem::take(&mut self.0)), bytes);
        }
    }
}

thread_local! {
    static KEPT: RefCell<KeptPieces> = const { RefCell::new(KeptPieces { pieces: Vec::new(), bytes: 0 }) };
}

/// The memory that a thread keeps: each piece a `Box<[T]>`, with its bytes; the oldest first.
struct KeptPieces {
    pieces: Vec<(Box<dyn Any>, usize)>,
    bytes: usize,
}

/// Keeps a piece, in place of older ones if there is no room, unless the thread ends.
fn keep(piece: Box<dyn Any>, bytes: usize) {
    _ = KEPT.try_with(|kept| {
        let mut kept = kept.borrow_mut();
        while kept.bytes + bytes > KEPT_BYTES_MAX {
            kept.bytes -= kept.pieces.remove(0).1;
        }
        kept.pieces.push((piece, bytes));
        kept.bytes += bytes;
    });
}

/// A kept piece of this length.
fn take<T: 'static>(length: usize) -> Option<Box<[T]>> {
    let taken = KEPT.try_with(|kept| {
        let mut kept = kept.borrow_mut();
        let is_one = |(piece, _): &(Box<dyn Any>, usize)| {
            piece.downcast_ref::<Box<[T]>>().is_some_and(|piece| piece.len() == length)
        };
        let at = kept.pieces.iter().rposition(is_one)?;
        let (piece, bytes) = kept.pieces.remove(at);
        kept.bytes -= bytes;
        piece.downcast::<Box<[T]>>().ok()
    });
    taken.ok().flatten().map(|piece| *piece)
}

/// Smaller pieces come from the process's allocator, which keeps them itself.
const KEPT_BYTES_LEAST: usize = 64 << 10;
/// The pieces of two streams at level 4. One of more than half of it is not kept, such as the tables of levels above 6.
const KEPT_BYTES_MAX: usize = 6 << 20;

#[cfg(test)]
mod tests {
    use super::super::encoder::Encoder;
    use super::super::{Coding, Level};
    use super::*;

    fn encoder(level: i32, length: Option<u64>) -> Encoder {
        Encoder::new(Level::new(Coding::Brotli, level).unwrap(), length)
    }

    fn text(length: u64) -> Vec<u8> {
        (0..length).map(|at| (at * at / 777 % 96 + 32) as u8).collect()
    }

    fn kept_bytes() -> usize {
        KEPT.with_borrow(|kept| kept.bytes)
    }

    /// Runs on a thread that keeps nothing yet.
    fn alone<R: Send>(run: impl FnOnce() -> R + Send) -> R {
        std::thread::scope(|scope| scope.spawn(run).join().unwrap())
    }

    #[test]
    fn old_contents_of_kept_memory_change_no_byte() {
        let text = text(150_000);
        for level in [1, 4, 5, 9] {
            for length in [0, 1, 5000, 150_000] {
                let content = &text[..length];
                let code = |is_known: bool| {
                    encoder(level, is_known.then_some(length as u64)).code_whole(content).unwrap()
                };
                for is_known in [true, false] {
                    let fresh = alone(|| code(is_known));
                    let again = alone(|| {
                        code(is_known);
                        let kept = KEPT.with_borrow_mut(|kept| {
                            for (piece, _) in &mut kept.pieces {
                                if let Some(bytes) = piece.downcast_mut::<Box<[u8]>>() {
                                    bytes.fill(0xa5);
                                }
                                if let Some(table) = piece.downcast_mut::<Box<[u32]>>() {
                                    table.fill(0xa5a5);
                                }
                            }
                            kept.pieces.len()
                        });
                        assert!(kept > 0 || length < 150_000, "{level}: nothing is kept");
                        code(is_known)
                    });
                    assert!(again == fresh, "{level} {length} {is_known}");
                }
            }
        }
    }

    #[test]
    fn an_encoder_takes_the_memory_of_the_one_before() {
        alone(|| {
            let code = || encoder(4, None).code_whole(&text(100_000)).unwrap();
            code();
            let kept = kept_bytes();
            assert!(kept > 2 << 20, "the window and the tables: {kept}");
            code();
            assert_eq!(kept_bytes(), kept);
            let mut running = encoder(4, None);
            running.code_part(&text(100_000)).unwrap();
            assert!(kept_bytes() < kept / 8, "{}", kept_bytes());
            drop(running);
            assert_eq!(kept_bytes(), kept, "also if the body breaks off");
        });
    }

    #[test]
    fn a_long_body_has_the_tables_of_a_short_one() {
        let code = |length| encoder(4, length).code_whole(&text(100_000)).unwrap();
        assert!(code(Some(5 << 20)) == code(None));
    }

    #[test]
    fn a_thread_keeps_little_memory() {
        alone(|| {
            let begin = |_| {
                let mut encoder = encoder(4, None);
                encoder.code_part(&text(100_000)).unwrap();
                encoder
            };
            drop((0..5).map(begin).collect::<Vec<_>>());
            let kept = kept_bytes();
            assert!((KEPT_BYTES_MAX / 2..=KEPT_BYTES_MAX).contains(&kept), "{kept}");
            let all: usize =
                KEPT.with_borrow(|kept| kept.pieces.iter().map(|(_, bytes)| *bytes).sum());
            assert_eq!(kept, all);
            // The tables of this level have 16 MiB.
            drop(encoder(9, None).code_whole(&text(100_000)));
            assert!(kept_bytes() <= KEPT_BYTES_MAX);
        });
    }
}
