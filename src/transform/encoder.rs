//! Encoders of streams: zstd, brotli and gzip at a level.

use async_compression::codecs::EncodeV2;
use async_compression::core::util::{PartialBuffer, WriteBuffer};

use super::codec::{Codec, CodecError, Turn};
use super::kept_brotli::KeptBrotli;
use super::kept_encoders::{KeptGzip, KeptZstd, ZstdParameters};
use super::{Coding, Level, ZSTD_LEVEL, rounds};

/// Prepares the thread of a worker: gives its bodies their turns one after the other ([`rounds`]), and sets up an encoder of zstd for the
/// first long body. Set up within a turn, its tables of 0.8 MiB would hold up other requests for 0.3 ms.
pub(crate) fn prepare_thread() {
    rounds::enable();
    let level = Level { coding: Coding::Zstd, level: ZSTD_LEVEL };
    // Without a length, so that the tables are those for long bodies. It fails only for lack of memory: the first body tries again.
    _ = Encoder::new(level, None).code_whole(b"-");
}

/// An encoder of one body.
pub(super) struct Encoder {
    codec: Box<dyn EncodeV2>,
    turn: Turn,
}

impl Encoder {
    /// An encoder for a body of `length` bytes, if that is known: a short body gets a small window.
    pub(super) fn new(Level { coding, level }: Level, length: Option<u64>) -> Self {
        let window_log = window_log(length);
        let codec: Box<dyn EncodeV2> = match coding {
            Coding::Zstd => {
                let (hash_log, chain_log) = match window_log < tables_log(level) {
                    true => (window_log + 1, window_log),
                    false => (0, 0),
                };
                let parameters = ZstdParameters { level, window_log, hash_log, chain_log };
                let encoder = KeptZstd::new(parameters);
                Box::new(encoder.expect("the parameters are within zstd's bounds"))
            }
            Coding::Brotli => {
                let hint = length.map_or(0, |length| length.min(BROTLI_HINT_MAX) as usize);
                Box::new(KeptBrotli::new(level, window_log as i32, hint))
            }
            Coding::Gzip => Box::new(KeptGzip::new(level)),
        };
        Self { codec, turn: turn(coding, level) }
    }

    /// An encoder of brotli for one body in memory, whose window has all of it, up to 4 MiB.
    pub(super) fn of_whole_brotli(level: i32, length: usize) -> Self {
        let window_log = (usize::BITS - length.leading_zeros()).clamp(10, WHOLE_WINDOW_LOG_MAX);
        let codec = Box::new(KeptBrotli::new(level, window_log as i32, length));
        Self { codec, turn: turn(Coding::Brotli, level) }
    }

    /// Codes a part of a body.
    #[cfg(test)]
    pub(super) fn code_part(&mut self, content: &[u8]) -> Result<(), CodecError> {
        let mut input = PartialBuffer::new(content);
        while !input.unwritten().is_empty() {
            self.run(&mut input, &mut WriteBuffer::new_initialized(&mut [0; SCRATCH_BYTES]))?;
        }
        Ok(())
    }

    /// Codes a body in memory.
    ///
    /// # Errors
    /// The encoder failed, which has no known cause.
    pub(super) fn code_whole(&mut self, content: &[u8]) -> Result<Vec<u8>, CodecError> {
        let mut scratch = [0; SCRATCH_BYTES];
        let mut coded = Vec::with_capacity(content.len() / 2);
        let mut input = PartialBuffer::new(content);
        let mut ended = false;
        while !ended {
            let mut output = WriteBuffer::new_initialized(&mut scratch);
            if input.unwritten().is_empty() {
                ended = self.end(&mut output)?;
            } else {
                self.run(&mut input, &mut output)?;
            }
            coded.extend_from_slice(output.written());
        }
        coded.shrink_to_fit();
        Ok(coded)
    }
}

/// About a tenth of a millisecond of work: the median. On a busy machine 1 % of the turns at the default levels took longer than
/// 0.23 to 0.36 ms, with turns of double the length than 0.34 to 0.72. Measured on text (HTML, words, JSON), in MB/s: zstd 200 to 260 at level 3, 60 to 70 at 6; brotli 60 to 70 at level 4, 24 at 5; gzip 100 to 140 at level 4,
/// 50 at 9. zstd above level 9 and brotli above 5 take longer turns: such levels are for content that is rarely coded. zstd and
/// brotli collect blocks of 128 and 64 KiB, which would take 1 and 4 ms; the flush of each turn makes text 1.4 % (zstd) and 3 % (brotli)
/// longer. zstd's turns are shorter than a tenth of a millisecond (0.07): it has the most turns a second, and with each the worker also reads, stores and
/// sends. Turns of 24 KiB instead of 16 take 0.10 ms and make text 0.6 % shorter; a first turn of a new encoder takes 0.3 ms more, for its tables: [`prepare_thread`].
fn turn(coding: Coding, level: i32) -> Turn {
    let bytes = match (coding, level) {
        (Coding::Zstd, ..=3) => 16 << 10,
        (Coding::Zstd, ..=6) => 8 << 10,
        (Coding::Brotli, ..=4) => 6 << 10,
        (Coding::Gzip, ..=4) => 12 << 10,
        (Coding::Zstd | Coding::Brotli | Coding::Gzip, _) => 4 << 10,
    };
    Turn { bytes, collects: coding != Coding::Gzip }
}

/// The binary logarithm of the window's size: as large as the body, between 1 KiB and 1 MiB.
fn window_log(length: Option<u64>) -> u32 {
    let needed = length.map_or(WINDOW_LOG_MAX, |length| u64::BITS - length.leading_zeros());
    needed.clamp(10, WINDOW_LOG_MAX)
}

/// The binary logarithm of the smaller of zstd's two tables at a level, for a body of unknown length.
/// zstd is not told the length, because it fails if a body has another one; so tables for shorter bodies are sized here as
/// zstd itself sizes them: clearing the tables of level 3, 768 KiB, takes 14 µs.
fn tables_log(zstd_level: i32) -> u32 {
    if zstd_level < 3 { 13 } else { 16 }
}

impl Codec for Encoder {
    fn run(
        &mut self,
        input: &mut PartialBuffer<&[u8]>,
        output: &mut WriteBuffer<'_>,
    ) -> Result<(), CodecError> {
        Ok(self.codec.encode(input, output)?)
    }

    fn pause(&mut self, output: &mut WriteBuffer<'_>) -> Result<bool, CodecError> {
        Ok(self.codec.flush(output)?)
    }

    fn end(&mut self, output: &mut WriteBuffer<'_>) -> Result<bool, CodecError> {
        Ok(self.codec.finish(output)?)
    }

    fn turn(&self) -> Turn {
        self.turn
    }
}

/// Larger windows gain 1 or 2 % on large texts, at the cost of memory for every stream.
const WINDOW_LOG_MAX: u32 = 20;
/// brotli has larger tables for longer bodies: 4 MiB instead of 0.5 at level 4, 2 MiB instead of 1 at level 5. Clearing them takes the time
/// of several turns. Without, 3 MB of text become 3 % longer at level 4, and 2 % shorter at level 5.
const BROTLI_HINT_MAX: u64 = (1 << 20) - 1;
/// The window of decoders of brotli is 16 MiB at most, and 4 MiB in the encoders of others.
const WHOLE_WINDOW_LOG_MAX: u32 = 22;
/// The piece in which coded content is collected.
const SCRATCH_BYTES: usize = 16 << 10;
