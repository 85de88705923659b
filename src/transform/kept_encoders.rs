//! Encoders of streams that a thread keeps from one body to the next. Setting one up clears its tables: of the instructions of the
//! bare libraries for 16 KiB of text 41 % (zstd; 58 % if the length is unknown) and 17 % (gzip).
//! Only as much as a body has used is cleared for the next. An encoder of gzip whose body broke off is not kept: zlib-rs 0.6 does
//! not reset one of level 1 completely, so that its next stream would be corrupt.
//!
//! zstd frees the memory of an encoder that 128 bodies in a row have hardly used, and takes 0.3 ms to set up another: encoders
//! for short and for long bodies are kept apart.
//!
//! async-compression cannot use an encoder again, so these two run the same libraries by themselves. `kept_brotli` keeps the memory of
//! brotli's encoders.

use std::cell::RefCell;
use std::io;
use std::thread::LocalKey;

use async_compression::codecs::EncodeV2;
use async_compression::core::util::{PartialBuffer, WriteBuffer};
use flate2::{Compress, Compression, FlushCompress, Status};
use zstd::stream::raw::{CParameter, Encoder, InBuffer, Operation, OutBuffer};

thread_local! {
    static ZSTD_SHORT: RefCell<Vec<Encoder<'static>>> = const { RefCell::new(Vec::new()) };
    static ZSTD_LONG: RefCell<Vec<Encoder<'static>>> = const { RefCell::new(Vec::new()) };
    static GZIP: RefCell<Vec<(i32, Compress)>> = const { RefCell::new(Vec::new()) };
}

/// A zstd encoder of one body, kept when dropped, up to [`KEPT_ZSTD_LEVEL_MAX`].
pub(super) struct KeptZstd {
    level: i32,
    /// The encoders among which it is kept.
    kept: &'static LocalKey<RefCell<Vec<Encoder<'static>>>>,
    /// `None` only while it is dropped.
    encoder: Option<Encoder<'static>>,
}

/// The parameters of a zstd encoder, see the manual of zstd. 0: the default of the level.
#[derive(Clone, Copy, Debug)]
pub(super) struct ZstdParameters {
    pub level: i32,
    pub window_log: u32,
    pub hash_log: u32,
    pub chain_log: u32,
}

impl ZstdParameters {
    /// Whether the tables have the size that they have for a body of unknown length.
    fn has_full_tables(&self) -> bool {
        self.hash_log == 0
    }
}

impl KeptZstd {
    /// # Errors
    /// The parameters are out of bounds, or memory is lacking.
    pub(super) fn new(parameters: ZstdParameters) -> io::Result<Self> {
        let kept = if parameters.has_full_tables() { &ZSTD_LONG } else { &ZSTD_SHORT };
        let ZstdParameters { level, window_log, hash_log, chain_log } = parameters;
        let mut encoder = match kept.with_borrow_mut(Vec::pop) {
            Some(encoder) => encoder,
            None => Encoder::new(level)?,
        };
        for parameter in [
            CParameter::CompressionLevel(level),
            CParameter::WindowLog(window_log),
            CParameter::HashLog(hash_log),
            CParameter::ChainLog(chain_log),
        ] {
            encoder.set_parameter(parameter)?;
        }
        Ok(Self { level, kept, encoder: Some(encoder) })
    }

    fn run<R>(
        &mut self,
        output: &mut WriteBuffer<'_>,
        call: impl FnOnce(&mut Encoder<'static>, &mut OutBuffer<'_, [u8]>) -> io::Result<R>,
    ) -> io::Result<R> {
        let encoder = self.encoder.as_mut().expect("an encoder that is not dropped");
        let mut coded = OutBuffer::around(output.initialize_unwritten());
        let result = call(encoder, &mut coded);
        let given = coded.pos();
        output.advance(given);
        result
    }
}

impl EncodeV2 for KeptZstd {
    fn encode(
        &mut self,
        input: &mut PartialBuffer<&[u8]>,
        output: &mut WriteBuffer<'_>,
    ) -> io::Result<()> {
        let mut content = InBuffer::around(input.unwritten());
        let result = self.run(output, |encoder, coded| encoder.run(&mut content, coded));
        let taken = content.pos();
        input.advance(taken);
        result.map(drop)
    }

    fn flush(&mut self, output: &mut WriteBuffer<'_>) -> io::Result<bool> {
        Ok(self.run(output, |encoder, coded| encoder.flush(coded))? == 0)
    }

    fn finish(&mut self, output: &mut WriteBuffer<'_>) -> io::Result<bool> {
        Ok(self.run(output, |encoder, coded| encoder.finish(coded, true))? == 0)
    }
}

impl Drop for KeptZstd {
    fn drop(&mut self) {
        if let Some(mut encoder) = self.encoder.take()
            && self.level <= KEPT_ZSTD_LEVEL_MAX
            && encoder.reinit().is_ok()
        {
            keep(self.kept, encoder);
        }
    }
}

/// A gzip encoder of one body, kept when dropped after its end.
pub(super) struct KeptGzip {
    level: i32,
    /// `None` only while it is dropped.
    encoder: Option<Compress>,
    /// Whether all output has been given that needs no more input.
    is_flushed: bool,
    has_ended: bool,
}

impl KeptGzip {
    /// `level`: 1 to 9.
    pub(super) fn new(level: i32) -> Self {
        let kept = GZIP.with_borrow_mut(|kept| {
            let at = kept.iter().position(|(of_level, _)| *of_level == level)?;
            Some(kept.swap_remove(at).1)
        });
        let fresh = || Compress::new_gzip(Compression::new(level.unsigned_abs()), WINDOW_LOG);
        let encoder = Some(kept.unwrap_or_else(fresh));
        Self { level, encoder, is_flushed: true, has_ended: false }
    }

    fn run(
        &mut self,
        input: &mut PartialBuffer<&[u8]>,
        output: &mut WriteBuffer<'_>,
        flush: FlushCompress,
    ) -> io::Result<Status> {
        let encoder = self.encoder.as_mut().expect("an encoder that is not dropped");
        let before = (encoder.total_in(), encoder.total_out());
        let status = encoder.compress(input.unwritten(), output.initialize_unwritten(), flush)?;
        // Both are below the lengths of these buffers.
        input.advance((encoder.total_in() - before.0) as usize);
        output.advance((encoder.total_out() - before.1) as usize);
        Ok(status)
    }
}

impl EncodeV2 for KeptGzip {
    fn encode(
        &mut self,
        input: &mut PartialBuffer<&[u8]>,
        output: &mut WriteBuffer<'_>,
    ) -> io::Result<()> {
        self.is_flushed = false;
        self.run(input, output, FlushCompress::None).map(drop)
    }

    fn flush(&mut self, output: &mut WriteBuffer<'_>) -> io::Result<bool> {
        // Each flush of its own would write another empty block.
        if !self.is_flushed {
            let status = self.run(&mut PartialBuffer::new(&[]), output, FlushCompress::Sync)?;
            self.is_flushed = status == Status::BufError || !output.has_no_spare_space();
        }
        Ok(self.is_flushed)
    }

    fn finish(&mut self, output: &mut WriteBuffer<'_>) -> io::Result<bool> {
        let status = self.run(&mut PartialBuffer::new(&[]), output, FlushCompress::Finish)?;
        self.has_ended = status == Status::StreamEnd;
        Ok(self.has_ended)
    }
}

impl Drop for KeptGzip {
    fn drop(&mut self) {
        if let Some(mut encoder) = self.encoder.take()
            && self.has_ended
        {
            encoder.reset();
            keep(&GZIP, (self.level, encoder));
        }
    }
}

/// Keeps an encoder, unless the thread ends or has enough of them.
fn keep<E>(kept: &'static LocalKey<RefCell<Vec<E>>>, encoder: E) {
    _ = kept.try_with(|kept| {
        let mut kept = kept.borrow_mut();
        if kept.len() >= KEPT_MAX {
            kept.remove(0);
        }
        kept.push(encoder);
    });
}

/// The encoders of each kind that a thread keeps: more than two bodies are seldom coded at the same time. Together they
/// occupy at most 8 MiB at zstd 3, 14 MiB at zstd 6.
const KEPT_MAX: usize = 2;
/// An encoder of a higher level is too large to be kept: 12 MiB at level 9, 84 MiB at 19.
const KEPT_ZSTD_LEVEL_MAX: i32 = 6;
/// The binary logarithm of the window of gzip.
const WINDOW_LOG: u8 = 15;

#[cfg(test)]
mod tests {
    use super::super::encoder::{Encoder as StreamEncoder, prepare_thread};
    use super::super::{Coding, Level};
    use super::*;

    #[test]
    fn a_kept_encoder_gives_the_same_bytes_whatever_it_coded_before() {
        let text: Vec<u8> = (0..1_u64 << 18).map(|at| (at * at / 777 % 96 + 32) as u8).collect();
        for coding in [Coding::Zstd, Coding::Gzip] {
            for level in [1, 3, 4, 9] {
                let level = Level::new(coding, level).unwrap();
                let code = move |text: &[u8], length: Option<u64>| {
                    StreamEncoder::new(level, length).code_whole(text).unwrap()
                };
                for (length, is_known) in
                    [(1 << 18, false), (0, true), (5000, true), (70_000, false)]
                {
                    let length_known = is_known.then_some(length as u64);
                    let content = text[..length].to_vec();
                    let fresh = std::thread::spawn(move || code(&content, length_known));
                    code(&text[..100_000], None);
                    // Its body breaks off.
                    let mut broken = StreamEncoder::new(level, None);
                    broken.code_part(&text[100..30_000]).unwrap();
                    drop(broken);
                    let again = code(&text[..length], length_known);
                    assert!(again == fresh.join().unwrap(), "{level:?} {length}");
                }
            }
        }
    }

    #[test]
    fn an_encoder_of_zstd_is_kept_also_if_its_body_breaks_off() {
        std::thread::spawn(|| {
            let level = Level::new(Coding::Zstd, 3).unwrap();
            let mut broken = StreamEncoder::new(level, None);
            broken.code_part(&[b'x'; 1000]).unwrap();
            drop(broken);
            drop(StreamEncoder::new(level, Some(1000)));
            let kept = (ZSTD_LONG.with_borrow(Vec::len), ZSTD_SHORT.with_borrow(Vec::len));
            assert_eq!(kept, (1, 1), "for long bodies and for short ones");
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_prepared_thread_has_an_encoder_for_a_long_body() {
        std::thread::spawn(|| {
            prepare_thread();
            assert_eq!(ZSTD_LONG.with_borrow(Vec::len), 1);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_thread_keeps_few_encoders() {
        std::thread::spawn(|| {
            let mut many: Vec<_> = (1..=9).map(KeptGzip::new).collect();
            let mut scratch = [0; 1024];
            for encoder in &mut many {
                assert!(encoder.finish(&mut WriteBuffer::new_initialized(&mut scratch)).unwrap());
            }
            many.push(KeptGzip::new(1));
            drop(many);
            let levels: Vec<_> = GZIP.with_borrow(|kept| kept.iter().map(|it| it.0).collect());
            assert_eq!(levels, [8, 9], "the last ones that ended");
        })
        .join()
        .unwrap();
    }
}
