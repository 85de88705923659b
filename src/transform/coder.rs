//! Codes and decodes bodies as streams.
//!
//! ```text
//! Body ─ frames ─▶ piece ─▶ codec ─▶ scratch ─ frames of at most 16 KiB ─▶ Body
//!                            ╰ flushed when the source pauses
//! ```
//!
//! One piece is coded at a time and nothing is collected, so the reader sets the pace of the source. When
//! the source pauses, the encoder is flushed, so that an event stream does not stall. The codecs work on
//! the worker's thread and yield after every 64 KiB.

use std::io;
use std::task::{Context, Poll};

use async_compression::codecs::brotli::params::EncoderParams;
use async_compression::codecs::flate::params::FlateEncoderParams;
use async_compression::codecs::zstd::params::{CParameter, DParameter};
use async_compression::codecs::{
    BrotliDecoder, BrotliEncoder, DecodeV2, EncodeV2, GzipDecoder, GzipEncoder, ZstdDecoder,
    ZstdEncoder,
};
use async_compression::core::Level as Quality;
use async_compression::core::util::{PartialBuffer, WriteBuffer};
use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::Frame;

use super::{Coding, DecodeLimit, Level};
use crate::body::{Body, BodyError, BodyFault, BodySource, PollFrame};
use crate::labels::CoderFailure;
use crate::metrics::{Metric, Recorder};

/// Compresses a body. `length` is its length, if known: a short body gets a small window.
pub(crate) fn encode(body: Body, level: Level, length: Option<u64>, recorder: &Recorder) -> Body {
    recorder.count_labelled(Metric::BodiesEncoded, level.coding.index());
    let encoder = Encoder::new(level, length);
    match body {
        Body::Full(Some(bytes)) if bytes.len() <= WHOLE_BODY_BYTES_MAX => {
            encode_whole(&bytes, encoder, recorder).unwrap_or_else(|error| {
                recorder.count_labelled(Metric::CoderFailures, error.label().index());
                Body::stream(FailedBody(Some(BodyError::caused_by("the encoder failed", error))))
            })
        }
        body => Body::stream(CodedBody::new(body, encoder, recorder)),
    }
}

/// Decompresses a body. It fails if the coded data are malformed or incomplete, or at the limit.
pub(crate) fn decode(body: Body, coding: Coding, limit: DecodeLimit, recorder: &Recorder) -> Body {
    recorder.count_labelled(Metric::BodiesDecoded, coding.index());
    Body::stream(CodedBody::new(body, Decoder::new(coding, limit), recorder))
}

/// Compresses a body in memory, without the buffers of a stream. The result has a known length.
fn encode_whole(
    piece: &[u8],
    mut encoder: Encoder,
    recorder: &Recorder,
) -> Result<Body, CodecError> {
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

/// A body that fails at its first poll.
struct FailedBody(Option<BodyError>);

impl BodySource for FailedBody {
    fn poll_frame(&mut self, _: &mut Context<'_>) -> PollFrame {
        Poll::Ready(self.0.take().map(Err))
    }
}

/// A body that is coded or decoded as it is read.
struct CodedBody<C> {
    source: Body,
    codec: C,
    state: State,
    /// Bytes of the source that the codec has not taken.
    piece: Bytes,
    scratch: Box<[u8]>,
    /// Whether the codec has taken bytes since it was last flushed.
    needs_flush: bool,
    /// Bytes read and written since the task last yielded.
    turn_bytes: usize,
    trailers: Option<HeaderMap>,
    recorder: Recorder,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    /// Pieces go into the codec.
    Reading,
    /// The source pauses: the codec is flushed.
    Flushing,
    /// The source has ended: the codec is finished.
    Ending,
    /// Only trailers may be left.
    Ended,
}

impl<C: Codec> CodedBody<C> {
    fn new(source: Body, codec: C, recorder: &Recorder) -> Self {
        Self {
            source,
            codec,
            state: State::Reading,
            piece: Bytes::new(),
            scratch: vec![0; SCRATCH_BYTES].into(),
            needs_flush: false,
            turn_bytes: 0,
            trailers: None,
            recorder: recorder.clone(),
        }
    }

    /// Fills `output` until it is full or the body ends. Pending: the source has paused, or the task yields.
    fn fill(
        &mut self,
        output: &mut WriteBuffer<'_>,
        cx: &mut Context<'_>,
    ) -> Result<Poll<()>, BodyError> {
        while !output.has_no_spare_space() && self.state != State::Ended {
            if self.turn_bytes >= TURN_BYTES_MAX {
                if output.written_len() > 0 {
                    break; // The output goes first: `Pending` is possible only without output.
                }
                self.turn_bytes = 0;
                cx.waker().wake_by_ref();
                return Ok(Poll::Pending);
            }
            let before = output.written_len();
            match self.state {
                State::Reading if self.piece.is_empty() => {
                    if self.take_piece(cx)?.is_pending() {
                        return Ok(Poll::Pending);
                    }
                }
                State::Reading => self.work(output)?,
                State::Flushing => {
                    if self.codec.pause(output).map_err(|error| self.failed(error))? {
                        self.needs_flush = false;
                        self.state = State::Reading;
                        // The source has the waker since it returned `Pending`.
                        return Ok(Poll::Pending);
                    }
                }
                State::Ending | State::Ended => {
                    if self.codec.end(output).map_err(|error| self.failed(error))? {
                        self.state = State::Ended;
                    }
                }
            }
            self.turn_bytes += output.written_len() - before;
        }
        Ok(Poll::Ready(()))
    }

    /// Reads the next piece, or changes the state at a pause or the end.
    fn take_piece(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, BodyError> {
        match self.source.poll_frame(cx) {
            Poll::Pending if self.needs_flush => self.state = State::Flushing,
            Poll::Pending => {
                self.turn_bytes = 0;
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
        let turn = self.piece.len().min(TURN_BYTES_MAX - self.turn_bytes);
        let mut input = PartialBuffer::new(&self.piece[..turn]);
        let result = self.codec.run(&mut input, output);
        let taken = input.written_len();
        let given = output.written_len() - given_before;
        self.piece.advance(taken);
        self.needs_flush = true;
        self.turn_bytes += taken;
        self.recorder.add(Metric::CoderBytesIn, taken as u64);
        result.map_err(|error| self.failed(error))?;
        if taken == 0 && given == 0 {
            return Err(self.failed(CodecError::Malformed(io::ErrorKind::InvalidData.into())));
        }
        Ok(())
    }

    fn failed(&self, error: CodecError) -> BodyError {
        self.recorder.count_labelled(Metric::CoderFailures, error.label().index());
        match (error, self.codec.decoded_coding()) {
            (error @ CodecError::Malformed(_), Some(coding)) => {
                let why = format!(
                    "content-encoding is {coding}, but the content is not valid or complete {coding}"
                );
                BodyError::caused_by(why, error).with_fault(BodyFault::Undecodable)
            }
            (error, Some(coding)) => BodyError::caused_by(
                format!("the {coding} content was not decoded to its end"),
                error,
            ),
            (error, None) => BodyError::caused_by("the content could not be encoded", error),
        }
    }
}

impl<C: Codec> BodySource for CodedBody<C> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut output = WriteBuffer::new_initialized(&mut scratch);
        let filled = self.fill(&mut output, cx);
        let frame = match filled {
            Err(error) => {
                self.state = State::Ended;
                self.source = Body::Empty;
                Poll::Ready(Some(Err(error)))
            }
            // A copy, so that a small piece does not hold 16 KiB while the client reads it.
            Ok(_) if output.written_len() > 0 => {
                self.recorder.add(Metric::CoderBytesOut, output.written_len() as u64);
                let coded = Bytes::copy_from_slice(output.written());
                Poll::Ready(Some(Ok(Frame::data(coded))))
            }
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(())) => {
                Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
            }
        };
        self.scratch = scratch;
        frame
    }
}

/// Why a codec failed.
#[derive(Debug, thiserror::Error)]
enum CodecError {
    #[error("the coded data are malformed or incomplete")]
    Malformed(#[from] io::Error),
    #[error("the decoded body is larger than {} bytes or {} times the coded one", .0.bytes_max, .0.ratio_max)]
    Limit(DecodeLimit),
}

impl CodecError {
    fn label(&self) -> CoderFailure {
        match self {
            Self::Malformed(_) => CoderFailure::Malformed,
            Self::Limit(_) => CoderFailure::DecodeLimit,
        }
    }
}

/// An encoder or a decoder.
trait Codec: Unpin {
    /// Codes input into output, until the input is empty or the output is full.
    fn run(
        &mut self,
        input: &mut PartialBuffer<&[u8]>,
        output: &mut WriteBuffer<'_>,
    ) -> Result<(), CodecError>;

    /// Writes all output that needs no more input. `true` when that is done.
    fn pause(&mut self, output: &mut WriteBuffer<'_>) -> Result<bool, CodecError>;

    /// Writes the rest of the output after the last input. `true` when that is done.
    fn end(&mut self, output: &mut WriteBuffer<'_>) -> Result<bool, CodecError>;

    /// The coding that a decoder undoes. `None` for an encoder.
    fn decoded_coding(&self) -> Option<Coding> {
        None
    }
}

struct Encoder(Box<dyn EncodeV2>);

impl Encoder {
    fn new(Level { coding, level }: Level, length: Option<u64>) -> Self {
        let window_log = window_log(length);
        Self(match coding {
            Coding::Zstd => {
                let params = [
                    CParameter::window_log(window_log),
                    CParameter::hash_log(window_log + 1),
                    CParameter::chain_log(window_log),
                ];
                let has_small_tables = window_log < tables_log(level);
                let params = if has_small_tables { &params[..] } else { &params[..1] };
                Box::new(ZstdEncoder::new_with_params(level, params))
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

/// The binary logarithm of the window's size: as large as the body, between 1 KiB and 1 MiB.
fn window_log(length: Option<u64>) -> u32 {
    let needed = length.map_or(WINDOW_LOG_MAX, |length| u64::BITS - length.leading_zeros());
    needed.clamp(10, WINDOW_LOG_MAX)
}

/// The binary logarithm of the smaller of zstd's two tables at a level, for a body of unknown length.
/// async-compression cannot tell zstd the length, so tables for shorter bodies are sized here as zstd
/// itself sizes them: clearing the tables of level 3, 768 KiB, takes 14 µs.
fn tables_log(zstd_level: i32) -> u32 {
    if zstd_level < 3 { 13 } else { 16 }
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
    /// Whether the coded data have ended. An empty body needs no end.
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

/// A body in memory of up to this length is coded as a whole, and its coded length is known.
const WHOLE_BODY_BYTES_MAX: usize = 64 << 10;

/// The longest frame of a coded body.
const SCRATCH_BYTES: usize = 16 << 10;

/// Bytes that a body codes before it yields: a millisecond at brotli's 58 MB/s.
const TURN_BYTES_MAX: usize = 64 << 10;

/// Larger windows gain 1 or 2 % on large texts, at the cost of memory for every stream.
const WINDOW_LOG_MAX: u32 = 20;

/// 8 MiB: RFC 9659 requires it of decoders, and forbids encoders to exceed it.
const DECODE_WINDOW_LOG_MAX: u32 = 23;

/// The ratio is not checked below this: a short body of zeros is not an attack.
const RATIO_FREE_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::io::Write;
    use std::process::{Command, Stdio};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use proptest::prelude::*;

    use super::*;
    use crate::metrics::Metrics;

    const CODINGS: [Coding; 3] = [Coding::Zstd, Coding::Brotli, Coding::Gzip];
    const NO_LIMIT: DecodeLimit = DecodeLimit { bytes_max: u64::MAX, ratio_max: u32::MAX };

    /// A source that a test scripts.
    enum Step {
        Data(Bytes),
        Pause,
        Trailers(HeaderMap),
        Break,
    }

    struct Script(VecDeque<Step>);

    impl BodySource for Script {
        fn poll_frame(&mut self, _: &mut Context<'_>) -> PollFrame {
            match self.0.pop_front() {
                None => Poll::Ready(None),
                Some(Step::Pause) => Poll::Pending,
                Some(Step::Data(data)) => Poll::Ready(Some(Ok(Frame::data(data)))),
                Some(Step::Trailers(fields)) => Poll::Ready(Some(Ok(Frame::trailers(fields)))),
                Some(Step::Break) => Poll::Ready(Some(Err(BodyError::new("cut off")))),
            }
        }
    }

    fn script(steps: impl IntoIterator<Item = Step>) -> Body {
        Body::stream(Script(steps.into_iter().collect()))
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What a reader sees.
    #[derive(Default)]
    struct Read {
        bytes: Vec<u8>,
        trailers: Option<HeaderMap>,
        error: Option<String>,
        ended: bool,
        frame_bytes_max: usize,
        /// Times that it had to wait, and the bytes that it had by then.
        waits: Vec<usize>,
        wakes: usize,
    }

    /// Reads until the end, or until it has waited `waits_max` times.
    fn read_until(body: &mut Body, waits_max: usize) -> Read {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut cx = Context::from_waker(&waker);
        let mut read = Read::default();
        while read.waits.len() < waits_max {
            match body.poll_frame(&mut cx) {
                Poll::Pending => read.waits.push(read.bytes.len()),
                Poll::Ready(None) => {
                    read.ended = true;
                    break;
                }
                Poll::Ready(Some(Err(error))) => {
                    let source = std::error::Error::source(&error).map(ToString::to_string);
                    read.error = Some(source.unwrap_or_else(|| error.to_string()));
                }
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        assert!(!data.is_empty(), "an empty frame ends an HTTP/1.1 body");
                        read.frame_bytes_max = read.frame_bytes_max.max(data.len());
                        read.bytes.extend_from_slice(&data);
                    }
                    Err(other) => read.trailers = other.into_trailers().ok(),
                },
            }
        }
        read.wakes = woken.0.load(Ordering::Relaxed);
        read
    }

    fn read(mut body: Body) -> Read {
        read_until(&mut body, usize::MAX)
    }

    fn recorder() -> Recorder {
        Metrics::new(1).worker(0)
    }

    fn level(coding: Coding) -> Level {
        Level::new(coding, if coding == Coding::Zstd { 3 } else { 4 }).unwrap()
    }

    fn encoded(steps: impl IntoIterator<Item = Step>, coding: Coding) -> Read {
        read(encode(script(steps), level(coding), None, &recorder()))
    }

    fn decoded(bytes: Bytes, coding: Coding, limit: DecodeLimit) -> Read {
        read(decode(bytes.into(), coding, limit, &recorder()))
    }

    /// Text with some structure, the same every time.
    fn text(bytes: usize) -> Bytes {
        let mut seed = 0x2545_F491_4F6C_DD1D_u64;
        let words = std::iter::from_fn(|| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            Some(format!("<p class=\"w{}\">{:x}</p>\n", seed % 61, seed >> 40))
        });
        let mut text = String::with_capacity(bytes + 64);
        words
            .take_while(|word| {
                text.push_str(word);
                text.len() < bytes
            })
            .for_each(drop);
        text.truncate(bytes);
        text.into()
    }

    /// What the coding's own program makes of it.
    fn piped(program: &str, input: &[u8]) -> Vec<u8> {
        let (name, arguments) = program.split_once(' ').unwrap();
        let mut child = Command::new(name)
            .args(arguments.split(' '))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{name} is needed for this test: {error}"));
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        assert!(output.status.success(), "{program}: {}", output.status);
        output.stdout
    }

    fn decoder_of(coding: Coding) -> &'static str {
        match coding {
            Coding::Zstd => "zstd -dcq",
            Coding::Brotli => "brotli -dc",
            Coding::Gzip => "gzip -dc",
        }
    }

    fn encoder_of(coding: Coding) -> &'static str {
        match coding {
            Coding::Zstd => "zstd -9cq",
            Coding::Brotli => "brotli -q 9 -c",
            Coding::Gzip => "gzip -9c",
        }
    }

    #[test]
    fn the_codings_own_programs_read_what_we_write() {
        for coding in CODINGS {
            for length in [1, 1000, WHOLE_BODY_BYTES_MAX, WHOLE_BODY_BYTES_MAX + 1, 700_000] {
                let text = text(length);
                let once = read(encode(
                    text.clone().into(),
                    level(coding),
                    Some(length as u64),
                    &recorder(),
                ));
                assert!(piped(decoder_of(coding), &once.bytes) == text, "{coding} {length}");
                let pieces = text.chunks(10_007).map(Bytes::copy_from_slice);
                let steps = pieces.flat_map(|piece| [Step::Data(piece), Step::Pause]);
                let streamed = encoded(steps, coding);
                assert!(streamed.ended && streamed.frame_bytes_max <= SCRATCH_BYTES);
                assert!(piped(decoder_of(coding), &streamed.bytes) == text, "{coding} {length}");
                assert!(length < 1000 || once.bytes.len() < length / 2);
            }
            let nothing = encoded([], coding);
            assert_eq!(piped(decoder_of(coding), &nothing.bytes), b"");
        }
    }

    #[test]
    fn we_read_what_the_codings_own_programs_write() {
        for coding in CODINGS {
            for length in [0, 1, 1000, 700_000] {
                let text = text(length);
                let coded: Bytes = piped(encoder_of(coding), &text).into();
                let whole = decoded(coded.clone(), coding, NO_LIMIT);
                assert!(whole.bytes == text && whole.error.is_none(), "{coding} {length}");
                // The pieces end anywhere, and the sender pauses after each.
                let pieces = coded.chunks(1 + length / 1000).map(Bytes::copy_from_slice);
                let steps = pieces.flat_map(|piece| [Step::Data(piece), Step::Pause]);
                let streamed = read(decode(script(steps), coding, NO_LIMIT, &recorder()));
                assert!(streamed.bytes == text && streamed.error.is_none(), "{coding} {length}");
            }
        }
    }

    #[test]
    fn what_was_sent_before_a_pause_can_be_read_before_it_ends() {
        for coding in CODINGS {
            let events = ["data: one\n\n", "data: two\n\n", "data: three\n\n"];
            // The first pause makes it flush; it reads what came out and asks again.
            let steps = events.map(|event| [Step::Data(event.into()), Step::Pause, Step::Pause]);
            let mut coded =
                encode(script(steps.into_iter().flatten()), level(coding), None, &recorder());
            let mut seen = Vec::new();
            for number in 1..=events.len() {
                seen.extend(read_until(&mut coded, 1).bytes);
                let so_far = script([Step::Data(seen.clone().into()), Step::Pause]);
                let mut decoded = decode(so_far, coding, NO_LIMIT, &recorder());
                let received = read_until(&mut decoded, 1);
                assert_eq!(received.bytes, events[..number].concat().as_bytes(), "{coding}");
            }
        }
    }

    #[test]
    fn a_pause_after_a_pause_writes_nothing() {
        for coding in CODINGS {
            let steps = [Step::Data("hello".into()), Step::Pause, Step::Pause, Step::Pause];
            let read = encoded(steps, coding);
            assert!(read.waits.windows(2).all(|pair| pair[0] == pair[1]), "{:?}", read.waits);
        }
    }

    #[test]
    fn others_get_their_turn_after_64_kib() {
        let zeros = Bytes::from(vec![0; 4 << 20]);
        for coding in CODINGS {
            let coded = encoded([Step::Data(zeros.clone())], coding);
            assert_eq!(coded.wakes, coded.waits.len());
            assert!((60..=64).contains(&coded.waits.len()), "{coding} {}", coded.waits.len());
            let back = decoded(coded.bytes.into(), coding, NO_LIMIT);
            assert!(back.bytes == zeros);
            assert!((40..=128).contains(&back.waits.len()), "{coding} {}", back.waits.len());
        }
    }

    #[test]
    fn trailers_follow_and_a_break_is_passed_on() {
        for coding in CODINGS {
            let mut fields = HeaderMap::new();
            fields.insert("x-checksum", "1".parse().unwrap());
            let whole =
                encoded([Step::Data("hello".into()), Step::Trailers(fields.clone())], coding);
            assert_eq!(whole.trailers, Some(fields));
            assert_eq!(piped(decoder_of(coding), &whole.bytes), b"hello");
            let broken = encoded([Step::Data("hello".into()), Step::Break], coding);
            assert_eq!(broken.error.as_deref(), Some("cut off"));
            assert!(broken.ended);
        }
    }

    #[test]
    fn coded_data_that_end_early_or_go_on_are_an_error() {
        for coding in CODINGS {
            let coded = encoded([Step::Data(text(100_000))], coding).bytes;
            for length in [1, 2, 20, coded.len() / 2, coded.len() - 1] {
                let cut = decoded(Bytes::copy_from_slice(&coded[..length]), coding, NO_LIMIT);
                let error = cut.error.unwrap_or_else(|| panic!("{coding} cut at {length} passed"));
                assert_eq!(error, "the coded data are malformed or incomplete");
            }
            let longer = [&coded[..], b"and more"].concat();
            assert!(decoded(longer.into(), coding, NO_LIMIT).error.is_some(), "{coding}");
        }
    }

    #[test]
    fn gzip_members_and_zstd_frames_may_follow_each_other() {
        for coding in [Coding::Gzip, Coding::Zstd] {
            let one = encoded([Step::Data("one ".into())], coding).bytes;
            let two = encoded([Step::Data("two".into())], coding).bytes;
            let both = decoded([one, two].concat().into(), coding, NO_LIMIT);
            assert_eq!((both.bytes, both.error), (b"one two".to_vec(), None));
        }
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let zeros = Bytes::from(vec![0; 12 << 20]);
        for coding in CODINGS {
            let bomb: Bytes = encoded([Step::Data(zeros.clone())], coding).bytes.into();
            let check = |limit, bytes_max: usize| {
                let read = decoded(bomb.clone(), coding, limit);
                assert!(read.error.unwrap().starts_with("the decoded body is larger than"));
                assert!(read.bytes.len() <= bytes_max, "{coding}: {}", read.bytes.len());
            };
            check(DecodeLimit { bytes_max: 5 << 20, ..NO_LIMIT }, 5 << 20);
            check(DecodeLimit { ratio_max: 100, ..NO_LIMIT }, (bomb.len() * 100).max(1 << 20));
            assert_eq!(decoded(bomb.clone(), coding, NO_LIMIT).bytes.len(), 12 << 20);
        }
    }

    #[test]
    fn what_is_coded_is_counted() {
        let recorder = recorder();
        let coded = read(encode(text(100_000), level(Coding::Gzip), &recorder));
        let broken = read(decode("no gzip".into(), Coding::Gzip, NO_LIMIT, &recorder));
        assert!(broken.error.is_some());
        let total = |metric, label| recorder.metrics().total(metric, label);
        assert_eq!(total(Metric::BodiesEncoded, Coding::Gzip.index()), 1);
        assert_eq!(total(Metric::BodiesDecoded, Coding::Gzip.index()), 1);
        assert_eq!(total(Metric::CoderFailures, 0), 1);
        assert_eq!(total(Metric::CoderBytesOut, 0), coded.bytes.len() as u64);

        fn encode(text: Bytes, level: Level, recorder: &Recorder) -> Body {
            super::encode(text.into(), level, None, recorder)
        }
    }

    fn pieces() -> impl Strategy<Value = Vec<(Vec<u8>, bool)>> {
        let piece = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            (any::<u8>(), 0..100_000_usize).prop_map(|(byte, length)| vec![byte; length]),
        ];
        prop::collection::vec((piece, any::<bool>()), 0..8)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_body_in_any_pieces_comes_back(pieces in pieces(), number in 0..3_usize) {
            let coding = CODINGS[number];
            let whole: Vec<u8> = pieces.iter().flat_map(|(piece, _)| piece.clone()).collect();
            let steps = pieces.into_iter().flat_map(|(piece, pause)| {
                let pause = pause.then_some(Step::Pause);
                [Some(Step::Data(piece.into())), pause].into_iter().flatten()
            });
            let coded = encoded(steps, coding);
            prop_assert!(coded.error.is_none());
            let back = decoded(coded.bytes.into(), coding, NO_LIMIT);
            prop_assert!(back.error.is_none() && back.bytes == whole);
        }

        #[test]
        fn any_garbage_ends_without_a_panic(
            garbage in prop::collection::vec(any::<u8>(), 0..400), number in 0..3_usize,
        ) {
            let coding = CODINGS[number];
            let limit = DecodeLimit { bytes_max: 1 << 20, ratio_max: 1000 };
            prop_assert!(decoded(garbage.clone().into(), coding, limit).ended);
            // Behind a true beginning, too.
            let mut coded = encoded([Step::Data(text(500))], coding).bytes;
            let at = garbage.len() % coded.len();
            coded.splice(at.., garbage);
            prop_assert!(decoded(coded.into(), coding, limit).ended);
        }
    }
}
