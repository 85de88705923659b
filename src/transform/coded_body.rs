//! Codes and decodes bodies as streams.
//!
//! ```text
//! Body ─ frames ─▶ piece ─▶ codec ─▶ scratch ─ frames of at most 16 KiB ─▶ Body
//!                            ╰ flushed when the source pauses
//! ```
//!
//! One piece is coded at a time and nothing is collected, so the reader sets the pace of the source. When
//! the source pauses, the encoder is flushed, so that an event stream does not stall. The codecs work on
//! the worker's thread in turns of about a tenth of a millisecond. After each turn of any body, the worker polls its sockets (`rounds`).

use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use async_compression::core::util::{PartialBuffer, WriteBuffer};
use bytes::{Buf, Bytes};
use http::HeaderMap;
use http::header::ETAG;
use http_body::Frame;

use super::codec::{Codec, CodecError};
use super::decoder::Decoder;
use super::encoder::Encoder;
use super::rounds::Turns;
use super::short_encoder::encode_short;
use super::{Coding, DecodeLimit, Level, OF_THE_BYTES, RecodePlan};
use crate::body::{Body, BodyError, BodyFault, BodySource, PollFrame};
use crate::clock::thread_cpu_time;
use crate::metrics::{Metric, Recorder};

/// Changes the coding of a body, as a stream; compresses one in memory of up to [`Level::whole_bytes_max`] at once,
/// so that its length is known. A body that is decompressed fails if the coded data are malformed or incomplete,
/// or at the limit.
pub(crate) fn recode(body: Body, plan: RecodePlan, recorder: &Recorder) -> Body {
    let RecodePlan { recoding, length, limit } = plan;
    let (body, length) = match recoding.from {
        Some(coding) => (decode(body, coding, limit, recorder), None),
        None => (body, length),
    };
    match recoding.to {
        Some(level) => encode(body, level, length, recorder),
        None => body,
    }
}

/// Compresses a body. `length` is its length, if known: a short body gets a small window.
fn encode(body: Body, level: Level, length: Option<u64>, recorder: &Recorder) -> Body {
    recorder.count_labelled(Metric::BodiesEncoded, level.coding.index());
    match body {
        Body::Full(Some(bytes)) if bytes.len() <= level.whole_bytes_max() => {
            encode_whole(&bytes, level, recorder).unwrap_or_else(|error| {
                recorder.count_labelled(Metric::CoderFailures, error.label().index());
                Body::stream(FailedBody(Some(BodyError::caused_by("the encoder failed", error))))
            })
        }
        body => Body::stream(CodedBody::new(body, Encoder::new(level, length), recorder)),
    }
}

fn decode(body: Body, coding: Coding, limit: DecodeLimit, recorder: &Recorder) -> Body {
    recorder.count_labelled(Metric::BodiesDecoded, coding.index());
    Body::stream(CodedBody::new(body, Decoder::new(coding, limit), recorder))
}

/// Compresses a body in memory, without the buffers of a stream. The result has a known length.
fn encode_whole(content: &[u8], level: Level, recorder: &Recorder) -> Result<Body, CodecError> {
    let began = thread_cpu_time();
    let coded = encode_short(content, level)?;
    recorder.observe(Metric::CoderTurnSeconds, thread_cpu_time().saturating_sub(began));
    recorder.add(Metric::CoderBytesIn, content.len() as u64);
    recorder.add(Metric::CoderBytesOut, coded.len() as u64);
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
    /// Bytes read and written since the task last yielded. A long piece counts as a turn.
    turn_bytes: usize,
    /// The CPU time that they have cost.
    turn_time: Duration,
    /// Whether the body has a turn: until the task yields.
    has_turn: bool,
    turns: Turns,
    trailers: Option<HeaderMap>,
    recorder: Recorder,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    /// Pieces go into the codec.
    Reading,
    /// The source pauses, or the turn of a codec that collects is over: the codec is flushed.
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
            turn_time: Duration::ZERO,
            has_turn: false,
            turns: Turns::default(),
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
        let turn = self.codec.turn();
        while !output.has_no_spare_space() && self.state != State::Ended {
            let is_over = self.turn_bytes >= turn.bytes;
            let works_off = turn.collects && self.state == State::Flushing;
            if is_over && turn.collects && self.needs_flush && self.state == State::Reading {
                self.state = State::Flushing;
            } else if is_over && !works_off {
                if output.written_len() > 0 {
                    break; // The output goes first: `Pending` is possible only without output.
                }
                self.turns.end(cx);
                return Ok(Poll::Pending);
            }
            if self.state == State::Reading && self.piece.is_empty() {
                if self.take_piece(cx)?.is_pending() {
                    return Ok(Poll::Pending);
                }
                continue;
            }
            if !self.has_turn && self.turns.begin(cx).is_pending() {
                return Ok(Poll::Pending);
            }
            self.has_turn = true;
            let before = output.written_len();
            match self.state {
                State::Reading => self.work(output, turn.bytes)?,
                State::Flushing => {
                    if self.codec.pause(output).map_err(|error| self.failed(error))? {
                        self.needs_flush = false;
                        // The source is polled again before the reader waits for it: the flush may have taken
                        // several polls, and one of them the source's wake-up.
                        self.state = State::Reading;
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
            Poll::Pending => return Ok(Poll::Pending),
            Poll::Ready(None) => self.state = State::Ending,
            Poll::Ready(Some(frame)) => match frame?.into_data() {
                Ok(piece) => {
                    if piece.len() >= LONG_PIECE_BYTES {
                        self.turn_bytes = self.turn_bytes.max(self.codec.turn().bytes);
                    }
                    self.piece = piece;
                }
                Err(other) => self.trailers = other.into_trailers().ok().and_then(recoded_trailers),
            },
        }
        Ok(Poll::Ready(()))
    }

    fn work(&mut self, output: &mut WriteBuffer<'_>, turn_bytes: usize) -> Result<(), BodyError> {
        let given_before = output.written_len();
        let length = self.piece.len().min(turn_bytes - self.turn_bytes);
        let mut input = PartialBuffer::new(&self.piece[..length]);
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

    fn end_turn(&mut self) {
        if self.turn_bytes > 0 {
            self.recorder.observe(Metric::CoderTurnSeconds, self.turn_time);
        }
        self.turn_bytes = 0;
        self.turn_time = Duration::ZERO;
        self.has_turn = false;
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
            (error @ CodecError::Limit(_), Some(coding)) => {
                let why = format!("the {coding} content was not decoded to its end: {error}");
                BodyError::of(BodyFault::TooLong, why)
            }
            (error, None) => BodyError::caused_by("the content could not be encoded", error),
        }
    }
}

/// The trailers of recoded content: without those that describe the bytes before (a digest is mostly sent as a trailer, RFC 9530 §2).
/// `None` if none are left.
fn recoded_trailers(mut trailers: HeaderMap) -> Option<HeaderMap> {
    for name in OF_THE_BYTES.iter().chain([&ETAG]) {
        trailers.remove(name);
    }
    (!trailers.is_empty()).then_some(trailers)
}

impl<C: Codec> BodySource for CodedBody<C> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> PollFrame {
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut output = WriteBuffer::new_initialized(&mut scratch);
        let began = thread_cpu_time();
        let filled = self.fill(&mut output, cx);
        self.turn_time += thread_cpu_time().saturating_sub(began);
        if matches!(filled, Ok(Poll::Pending)) || self.state == State::Ended {
            self.end_turn();
        }
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

/// A body in memory of up to this length is coded as a whole, and its coded length is known: [`Level::whole_bytes_max`] for fast levels.
pub(crate) const WHOLE_BODY_BYTES_MAX: usize = 12 << 10;

/// A piece of this length is mostly a slice of a stored body: reading it from the page cache is a turn's work of its own.
const LONG_PIECE_BYTES: usize = 128 << 10;

/// The longest frame of a coded body.
const SCRATCH_BYTES: usize = 16 << 10;

#[cfg(test)]
#[path = "tests/coded_body.rs"]
mod tests;

#[cfg(test)]
#[path = "tests/pauses.rs"]
mod pauses;
