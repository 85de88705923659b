//! Bodies through a compressor or a decompressor.
//!
//! ```text
//! Body ─ frames ─▶ piece ─▶ codec ─▶ scratch ─ frames of at most 16 KiB ─▶ Body
//!                            ╰ the sender pauses: what is inside comes out
//! ```
//!
//! One piece is in work at a time and nothing is collected, so the reader's pace is the sender's.
//! When the sender pauses, the encoder is flushed: an event stream does not stall in it. The
//! codecs work on this thread, so after every 64 KiB the others get their turn.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use compression_codecs::brotli::params::EncoderParams;
use compression_codecs::core::Level as Quality;
use compression_codecs::core::util::{PartialBuffer, WriteBuffer};
use compression_codecs::flate::params::FlateEncoderParams;
use compression_codecs::zstd::params::{CParameter, DParameter};
use compression_codecs::{
    BrotliDecoder, BrotliEncoder, DecodeV2, EncodeV2, GzipDecoder, GzipEncoder, ZstdDecoder,
    ZstdEncoder,
};
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame};

use super::{Coding, DecodeLimit, Level};
use crate::body::{Body, BodyError};
use crate::metrics::{Metric, Recorder};

/// Compresses a body. `length` is its length when known; it makes windows no larger than needed.
pub fn encode(body: Body, level: Level, length: Option<u64>, recorder: &Recorder) -> Body {
    recorder.count_labelled(Metric::BodiesEncoded, level.coding as usize);
    let encoder = Encoder::new(level, length);
    match body {
        Body::Full(Some(bytes)) if bytes.len() <= BYTES_AT_ONCE_MAX => {
            at_once(&bytes, encoder, recorder).unwrap_or_else(|error| {
                Body::stream(Failed(Some(BodyError::caused_by("the encoder failed", error))))
            })
        }
        body => Body::stream(Coded::new(body, encoder, recorder)),
    }
}

/// Decompresses a body. One that is malformed, ends early, or reaches the limit breaks off with
/// an error.
pub fn decode(body: Body, coding: Coding, limit: DecodeLimit, recorder: &Recorder) -> Body {
    recorder.count_labelled(Metric::BodiesDecoded, coding as usize);
    Body::stream(Coded::new(body, Decoder::new(coding, limit), recorder))
}

/// The whole body in one turn, without a stream's buffers. Its length is then known.
fn at_once(piece: &[u8], mut encoder: Encoder, recorder: &Recorder) -> Result<Body, CodecError> {
    let mut scratch = [0; SCRATCH_BYTES];
    let mut coded = Vec::with_capacity(piece.len() / 2);
    let mut input = PartialBuffer::new(piece);
    let mut ended = false;
    while !ended {
        let mut output = WriteBuffer::new_initialized(&mut scratch);
        if input.unwritten().is_empty() {
            ended = encoder.end(&mut output)?;
        } else {
            encoder.run(&mut input, &mut output)?;
        }
        coded.extend_from_slice(output.written());
    }
    recorder.add(Metric::CoderBytesIn, piece.len() as u64);
    recorder.add(Metric::CoderBytesOut, coded.len() as u64);
    coded.shrink_to_fit();
    Ok(Bytes::from(coded).into())
}

/// A body of which nothing can be had.
struct Failed(Option<BodyError>);

impl HttpBody for Failed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(self.get_mut().0.take().map(Err))
    }
}

/// A body on its way through a codec.
struct Coded<C> {
    sender: Body,
    codec: C,
    state: State,
    /// What the sender gave and the codec has not taken.
    piece: Bytes,
    scratch: Box<[u8]>,
    /// Whether the codec has taken something since it was last flushed.
    holds: bool,
    /// Bytes worked on since others had their turn.
    worked: usize,
    trailers: Option<HeaderMap>,
    recorder: Recorder,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    /// Pieces go in.
    Taking,
    /// The sender pauses: what is inside comes out.
    Flushing,
    /// The sender is done: the rest comes out.
    Ending,
    /// Only trailers are left.
    Ended,
}

impl<C: Codec> Coded<C> {
    fn new(sender: Body, codec: C, recorder: &Recorder) -> Self {
        Self {
            sender,
            codec,
            state: State::Taking,
            piece: Bytes::new(),
            scratch: vec![0; SCRATCH_BYTES].into(),
            holds: false,
            worked: 0,
            trailers: None,
            recorder: recorder.clone(),
        }
    }

    /// Works until `output` is full, the end, or (`Pending`) there is nothing to do for now.
    fn fill(
        &mut self,
        output: &mut WriteBuffer<'_>,
        cx: &mut Context<'_>,
    ) -> Result<Poll<()>, BodyError> {
        while !output.has_no_spare_space() {
            match self.state {
                State::Taking if self.piece.is_empty() => {
                    if self.take_piece(cx)?.is_pending() {
                        return Ok(Poll::Pending);
                    }
                }
                State::Taking if self.worked >= BYTES_A_TURN => {
                    if output.written_len() > 0 {
                        break; // The next call yields: only without output can it be seen.
                    }
                    self.worked = 0;
                    cx.waker().wake_by_ref();
                    return Ok(Poll::Pending);
                }
                State::Taking => self.work(output)?,
                State::Flushing => {
                    if self.codec.pause(output).map_err(|error| self.failed(error))? {
                        self.holds = false;
                        self.state = State::Taking;
                        // The sender has our waker since it said that it pauses.
                        return Ok(Poll::Pending);
                    }
                }
                State::Ending => {
                    if self.codec.end(output).map_err(|error| self.failed(error))? {
                        self.state = State::Ended;
                    }
                }
                State::Ended => break,
            }
        }
        Ok(Poll::Ready(()))
    }

    /// Gets the next piece, or moves to the state in which there is none.
    fn take_piece(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, BodyError> {
        match Pin::new(&mut self.sender).poll_frame(cx) {
            Poll::Pending if self.holds => self.state = State::Flushing,
            Poll::Pending => {
                self.worked = 0;
                return Ok(Poll::Pending);
            }
            Poll::Ready(None) => self.state = State::Ending,
            Poll::Ready(Some(frame)) => match frame?.into_data() {
                Ok(piece) => self.piece = piece,
                Err(other) => self.trailers = other.into_trailers().ok(),
            },
        }
        Ok(Poll::Ready(()))
    }

    fn work(&mut self, output: &mut WriteBuffer<'_>) -> Result<(), BodyError> {
        let given_before = output.written_len();
        let mut input = PartialBuffer::new(&self.piece[..self.piece.len().min(BYTES_A_TURN)]);
        let result = self.codec.run(&mut input, output);
        let taken = input.written_len();
        let given = output.written_len() - given_before;
        self.piece.advance(taken);
        self.holds = true;
        self.worked += taken.max(given);
        self.recorder.add(Metric::CoderBytesIn, taken as u64);
        result.map_err(|error| self.failed(error))?;
        if taken == 0 && given == 0 {
            return Err(self.failed(CodecError::Malformed(io::ErrorKind::InvalidData.into())));
        }
        Ok(())
    }

    fn failed(&self, error: CodecError) -> BodyError {
        self.recorder.count_labelled(Metric::CoderFailures, error.label());
        BodyError::caused_by("the content coding broke off", error)
    }
}

impl<C: Codec> HttpBody for Coded<C> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let mut scratch = std::mem::take(&mut this.scratch);
        let mut output = WriteBuffer::new_initialized(&mut scratch);
        let filled = this.fill(&mut output, cx);
        let frame = match filled {
            Err(error) => {
                this.state = State::Ended;
                this.sender = Body::Empty;
                Poll::Ready(Some(Err(error)))
            }
            // A copy, so that a small event doesn't hold 16 KiB while the client reads it.
            Ok(_) if output.written_len() > 0 => {
                this.recorder.add(Metric::CoderBytesOut, output.written_len() as u64);
                let coded = Bytes::copy_from_slice(output.written());
                Poll::Ready(Some(Ok(Frame::data(coded))))
            }
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(())) => {
                Poll::Ready(this.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
            }
        };
        this.scratch = scratch;
        frame
    }
}

/// Why a codec stopped.
#[derive(Debug, thiserror::Error)]
enum CodecError {
    #[error("the coded data are malformed or incomplete")]
    Malformed(#[from] io::Error),
    #[error("the decoded body is larger than {} bytes or {} times the coded one", .0.bytes_max, .0.ratio_max)]
    Limit(DecodeLimit),
}

impl CodecError {
    fn label(&self) -> usize {
        match self {
            Self::Malformed(_) => 0,
            Self::Limit(_) => 1,
        }
    }
}

/// What encoders and decoders have in common.
trait Codec: Unpin {
    /// Takes input and gives output, until one of them is used up.
    fn run(
        &mut self,
        input: &mut PartialBuffer<&[u8]>,
        output: &mut WriteBuffer<'_>,
    ) -> Result<(), CodecError>;

    /// Gives all that can be given without more input. `true` when that is done.
    fn pause(&mut self, output: &mut WriteBuffer<'_>) -> Result<bool, CodecError>;

    /// Gives the rest; no more input comes. `true` when that is done.
    fn end(&mut self, output: &mut WriteBuffer<'_>) -> Result<bool, CodecError>;
}

struct Encoder(Box<dyn EncodeV2>);

impl Encoder {
    fn new(Level { coding, level }: Level, length: Option<u64>) -> Self {
        let window_log = window_log(length);
        Self(match coding {
            Coding::Zstd => {
                let window = CParameter::window_log(window_log);
                Box::new(ZstdEncoder::new_with_params(level, &[window]))
            }
            Coding::Brotli => {
                let hint = length.and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
                let params = EncoderParams::default()
                    .quality(Quality::Precise(level))
                    .window_size(window_log as i32)
                    .size_hint(hint);
                Box::new(BrotliEncoder::new(params))
            }
            Coding::Gzip => {
                Box::new(GzipEncoder::new(FlateEncoderParams::from(Quality::Precise(level))))
            }
        })
    }
}

/// The window's size as a power of two: as large as the body, within 1 KiB and 1 MiB.
fn window_log(length: Option<u64>) -> u32 {
    let needed = length.map_or(WINDOW_LOG_MAX, |length| u64::BITS - length.leading_zeros());
    needed.clamp(10, WINDOW_LOG_MAX)
}

impl Codec for Encoder {
    fn run(
        &mut self,
        input: &mut PartialBuffer<&[u8]>,
        output: &mut WriteBuffer<'_>,
    ) -> Result<(), CodecError> {
        Ok(self.0.encode(input, output)?)
    }

    fn pause(&mut self, output: &mut WriteBuffer<'_>) -> Result<bool, CodecError> {
        Ok(self.0.flush(output)?)
    }

    fn end(&mut self, output: &mut WriteBuffer<'_>) -> Result<bool, CodecError> {
        Ok(self.0.finish(output)?)
    }
}

struct Decoder {
    codec: Box<dyn DecodeV2>,
    coding: Coding,
    limit: DecodeLimit,
    taken: u64,
    given: u64,
    /// Whether the end of the coded data was seen. An empty body has nothing to end.
    ended: bool,
}

impl Decoder {
    fn new(coding: Coding, limit: DecodeLimit) -> Self {
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

    /// Gives what the codec holds back because the output was full.
    fn drain(&mut self, output: &mut WriteBuffer<'_>) -> Result<(), CodecError> {
        if self.ended || self.taken == 0 {
            return Ok(());
        }
        let before = output.written_len();
        match self.coding {
            // Inflate calls it an error when it has nothing left to give.
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
    fn run(
        &mut self,
        input: &mut PartialBuffer<&[u8]>,
        output: &mut WriteBuffer<'_>,
    ) -> Result<(), CodecError> {
        if self.ended {
            // gzip members and zstd frames may follow each other; brotli has one stream.
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

/// A body in memory up to this length is coded in one go, and its coded length is known.
pub const BYTES_AT_ONCE_MAX: usize = 64 << 10;

/// The longest frame that comes out.
const SCRATCH_BYTES: usize = 16 << 10;

/// How much is worked on before others get their turn: at brotli's 58 MB/s about a millisecond.
const BYTES_A_TURN: usize = 64 << 10;

/// Larger windows would gain 1 or 2 % on large text and cost every stream its memory.
const WINDOW_LOG_MAX: u32 = 20;

/// 8 MiB, which RFC 9659 requires of decoders and allows no encoder to exceed.
const DECODE_WINDOW_LOG_MAX: u32 = 23;

/// The ratio is not looked at below this: a short run of zeros is no attack.
const RATIO_FREE_BYTES: u64 = 1 << 20;
