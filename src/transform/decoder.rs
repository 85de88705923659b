//! Decoders: zstd, brotli and gzip, with limits of what they may expand to.

use std::io;

use async_compression::codecs::zstd::params::DParameter;
use async_compression::codecs::{BrotliDecoder, DecodeV2, GzipDecoder, ZstdDecoder};
use async_compression::core::util::{PartialBuffer, WriteBuffer};

use super::codec::{Codec, CodecError, Turn};
use super::{Coding, DecodeLimit};

/// A decoder of one body.
pub(super) struct Decoder {
    codec: Box<dyn DecodeV2>,
    coding: Coding,
    limit: DecodeLimit,
    taken: u64,
    given: u64,
    /// Whether the coded data have ended. An empty body needs no end.
    ended: bool,
}

impl Decoder {
    /// A decoder of this coding.
    pub(super) fn new(coding: Coding, limit: DecodeLimit) -> Self {
        let codec: Box<dyn DecodeV2> = match coding {
            Coding::Zstd => {
                let window = DParameter::window_log_max(DECODE_WINDOW_LOG_MAX);
                Box::new(ZstdDecoder::new_with_params(&[window]))
            }
            Coding::Brotli => Box::new(BrotliDecoder::new()),
            Coding::Gzip => Box::new(GzipDecoder::new()),
        };
        Self { codec, coding, limit, taken: 0, given: 0, ended: false }
    }

    /// Writes the output that the codec has held because `output` was full.
    fn drain(&mut self, output: &mut WriteBuffer<'_>) -> Result<(), CodecError> {
        if self.ended || self.taken == 0 {
            return Ok(());
        }
        let before = output.written_len();
        match self.coding {
            // Inflate returns an error if it has no more output.
            Coding::Gzip => {
                self.codec.flush(output)?;
            }
            Coding::Zstd | Coding::Brotli => {
                self.ended = self.codec.decode(&mut PartialBuffer::new(&[][..]), output)?;
            }
        }
        self.account(0, output.written_len() - before)
    }

    fn account(&mut self, taken: usize, given: usize) -> Result<(), CodecError> {
        self.taken += taken as u64;
        self.given += given as u64;
        let bounded = self.taken.saturating_mul(u64::from(self.limit.ratio_max));
        if self.given > self.limit.bytes_max || self.given > bounded.max(RATIO_FREE_BYTES) {
            return Err(CodecError::Limit(self.limit));
        }
        Ok(())
    }
}

impl Codec for Decoder {
    fn turn(&self) -> Turn {
        Turn { bytes: TURN_BYTES, collects: false }
    }

    fn decoded_coding(&self) -> Option<Coding> {
        Some(self.coding)
    }

    fn run(
        &mut self,
        input: &mut PartialBuffer<&[u8]>,
        output: &mut WriteBuffer<'_>,
    ) -> Result<(), CodecError> {
        if self.ended {
            // A body may have several gzip members or zstd frames, but only one brotli stream.
            if self.coding == Coding::Brotli {
                return Err(CodecError::Malformed(io::ErrorKind::InvalidData.into()));
            }
            self.codec.reinit()?;
        }
        let (taken_before, given_before) = (input.written_len(), output.written_len());
        self.ended = self.codec.decode(input, output)?;
        self.account(input.written_len() - taken_before, output.written_len() - given_before)
    }

    fn pause(&mut self, output: &mut WriteBuffer<'_>) -> Result<bool, CodecError> {
        self.drain(output)?;
        Ok(!output.has_no_spare_space())
    }

    fn end(&mut self, output: &mut WriteBuffer<'_>) -> Result<bool, CodecError> {
        self.drain(output)?;
        if output.has_no_spare_space() {
            Ok(false)
        } else if self.ended || self.taken == 0 {
            Ok(true)
        } else {
            Err(CodecError::Malformed(io::ErrorKind::UnexpectedEof.into()))
        }
    }
}

/// 8 MiB: RFC 9659 requires it of decoders, and forbids encoders to exceed it.
const DECODE_WINDOW_LOG_MAX: u32 = 23;

/// The ratio is not checked below this: a short body of zeros is not an attack.
const RATIO_FREE_BYTES: u64 = 1 << 20;

/// Decoders give 300 MB/s and more.
const TURN_BYTES: usize = 48 << 10;
