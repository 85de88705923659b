//! Follows a client's HTTP/2 frames below h2 (RFC 9113).
//!
//! h2 answers nearly every mistake with PROTOCOL_ERROR, does not insist that SETTINGS come first,
//! and passes over pseudo-fields in trailers. Here frames are read before it sees them: sizes,
//! settings and header blocks, and which streams still have something to come. At the first
//! mistake nothing more is handed on, and the driver ends the connection with the RFC's own code.
//! So it does when nearly all that comes is about the connection itself: PING, SETTINGS, PRIORITY,
//! WINDOW_UPDATE and unknown frames cost us and bring nobody anything (RFC 9113 §10.5).
//! A header block that is well compressed but malformed is replaced by one for which h2 resets its
//! stream alone (§8.1.1). What is not judged here is left to h2.
//!
//! ```text
//! read    │ DATA  HEADERS  HEAD│ERS  DATA      HEADERS, malformed  DATA │
//! for h2  │ in place ──── held │ behind ─────  its stand-in ──────────── │
//! ```

use bytes::BytesMut;
use h2::Reason;

use super::hpack::{Table, malformed};

/// What is known of one connection's incoming frames.
#[derive(Debug)]
pub(super) struct Frames {
    /// Bytes of the preface that are still to come.
    preface_left: usize,
    /// The frame whose payload is under way, and how much of it is to come.
    frame: Option<Frame>,
    left: usize,
    /// Bytes that h2 must not see yet: a piece of a frame's head, or frames that are judged when
    /// they, or their header block, are whole.
    held: Vec<u8>,
    /// Where the frame under way begins in the bytes that h2 has not seen.
    frame_at: usize,
    /// What h2 may see but was not left where it was looked at.
    behind: BytesMut,
    /// A header block so far that goes on in CONTINUATION.
    block: Option<Block>,
    table: Table,
    /// Header blocks are not followed any more: one was too long to be kept.
    is_blind: bool,
    is_first: bool,
    streams: Streams,
    /// Header blocks that were replaced, since they were last counted.
    malformed: u32,
    /// Bytes in both directions that requests and responses were made of, and all others.
    useful_bytes: i64,
    other_bytes: i64,
    fault: Option<Reason>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Frame {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

#[derive(Debug)]
struct Block {
    bytes: Vec<u8>,
    is_trailers: bool,
    ends_stream: bool,
}

/// What becomes of the bytes that h2 has not seen, once another piece of them has come.
enum Verdict {
    /// h2 may see them.
    Pass,
    /// More of the frame, or of its header block, must come first.
    Hold,
    /// h2 gets these bytes instead.
    Replace(Vec<u8>),
}

impl Frames {
    pub(super) fn new() -> Self {
        Self {
            preface_left: PREFACE_BYTES,
            frame: None,
            left: 0,
            held: Vec::new(),
            frame_at: 0,
            behind: BytesMut::new(),
            block: None,
            table: Table::new(),
            is_blind: false,
            is_first: true,
            streams: Streams::default(),
            malformed: 0,
            useful_bytes: 0,
            other_bytes: 0,
            fault: None,
        }
    }

    /// What the client did that it must not do.
    pub(super) fn fault(&self) -> Option<Reason> {
        self.fault
    }

    /// Bytes that we have sent.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.useful_bytes += bytes as i64;
    }

    /// How many header blocks were malformed since the last call.
    pub(super) fn take_malformed(&mut self) -> u32 {
        std::mem::take(&mut self.malformed)
    }

    /// Bytes that h2 must read before anything more is looked at.
    pub(super) fn behind(&mut self) -> &mut BytesMut {
        &mut self.behind
    }

    /// Looks at bytes from the client. Returns how many of them h2 may read in place; what it may read
    /// after them is in [`Frames::behind`], which must be empty at the call.
    pub(super) fn look(&mut self, bytes: &[u8]) -> usize {
        let mut at = bytes.len().min(self.preface_left);
        self.preface_left -= at;
        // The bytes that h2 has not seen are in `held`, or begin here; never both.
        let (mut in_place, mut begin) = (at, at);
        while at < bytes.len() && self.fault.is_none() {
            let wanted = match self.frame {
                Some(_) => self.left,
                None => self.frame_at + HEAD_BYTES - self.unseen(&bytes[begin..at]).len(),
            };
            let end = at + wanted.min(bytes.len() - at);
            if !self.held.is_empty() {
                self.held.extend_from_slice(&bytes[at..end]);
                begin = end;
            }
            let verdict = self.go_on(&bytes[begin..end], end - at);
            at = end;
            match verdict {
                Ok(Verdict::Hold) => {}
                Ok(Verdict::Pass) if self.held.is_empty() && self.behind.is_empty() => {
                    (in_place, begin, self.frame_at) = (at, at, 0);
                }
                Ok(Verdict::Pass) => {
                    self.behind.extend_from_slice(&self.held);
                    self.behind.extend_from_slice(&bytes[begin..at]);
                    (begin, self.frame_at) = (at, 0);
                    self.held.clear();
                }
                Ok(Verdict::Replace(frames)) => {
                    self.behind.extend_from_slice(&frames);
                    (begin, self.frame_at) = (at, 0);
                    self.held.clear();
                }
                Err(fault) => self.fault = Some(fault),
            }
        }
        if self.fault.is_none() {
            self.held.extend_from_slice(&bytes[begin..]);
        }
        if self.held.is_empty() {
            // Most frames come whole: an empty buffer is not worth keeping.
            self.held = Vec::new();
        }
        in_place
    }

    /// What h2 has not seen, where what is not held is `read`.
    fn unseen<'a>(&'a self, read: &'a [u8]) -> &'a [u8] {
        if self.held.is_empty() { read } else { &self.held }
    }

    /// Takes `more` bytes of a frame's head or of its payload. `read` are the bytes that h2 has not
    /// seen, unless they are in `held`.
    fn go_on(&mut self, read: &[u8], more: usize) -> Result<Verdict, Reason> {
        let Some(frame) = self.frame else {
            let unseen = self.unseen(read);
            let Some(head) = unseen[self.frame_at..].first_chunk() else {
                return Ok(Verdict::Hold);
            };
            let frame = Frame::of(head);
            (self.frame, self.left) = (Some(frame), frame.length);
            self.begin(frame)?;
            return self.judge_so_far(frame, read);
        };
        self.left -= more;
        self.judge_so_far(frame, read)
    }

    fn judge_so_far(&mut self, frame: Frame, read: &[u8]) -> Result<Verdict, Reason> {
        let is_whole = self.left == 0;
        if is_whole {
            self.frame = None;
        }
        match frame.is_looked_into() {
            false => Ok(Verdict::Pass),
            true if !is_whole => Ok(Verdict::Hold),
            true if self.held.is_empty() => self.judge(frame, read),
            true => {
                let held = std::mem::take(&mut self.held);
                let verdict = self.judge(frame, &held);
                self.held = held;
                verdict
            }
        }
    }

    /// Judges a frame by its head.
    fn begin(&mut self, frame: Frame) -> Result<(), Reason> {
        if std::mem::take(&mut self.is_first) && (frame.kind != SETTINGS || frame.has(ACK)) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        if !frame.has_a_right_size() {
            return Err(Reason::FRAME_SIZE_ERROR);
        }
        // §6.10: a header block stands together.
        if self.block.is_some() && frame.kind != CONTINUATION {
            return Err(Reason::PROTOCOL_ERROR);
        }
        self.weigh(frame)?;
        match frame.kind {
            DATA => self.streams.data(frame.stream, frame.has(END_STREAM)),
            RST_STREAM => {
                self.streams.end(frame.stream);
                Ok(())
            }
            HEADERS => {
                let ends_stream = frame.has(END_STREAM);
                let is_trailers = self.streams.headers(frame.stream, ends_stream)?;
                self.block = Some(Block { bytes: Vec::new(), is_trailers, ends_stream });
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn weigh(&mut self, frame: Frame) -> Result<(), Reason> {
        let all = (HEAD_BYTES + frame.length) as i64;
        if matches!(frame.kind, DATA | HEADERS | CONTINUATION) {
            self.useful_bytes += all;
            return Ok(());
        }
        self.other_bytes += all;
        if matches!(frame.kind, PING | SETTINGS) && !frame.has(ACK) {
            // We answer with as much at most, which is no use either.
            self.useful_bytes -= all;
        }
        match self.other_bytes > OTHER_BYTES_FREE + OTHER_SHARE_MAX * self.useful_bytes.max(0) {
            true => Err(Reason::ENHANCE_YOUR_CALM),
            false => Ok(()),
        }
    }

    /// Judges a frame by its payload, once it is whole. `unseen` ends with it.
    fn judge(&mut self, frame: Frame, unseen: &[u8]) -> Result<Verdict, Reason> {
        let payload = &unseen[self.frame_at + HEAD_BYTES..];
        if frame.kind == SETTINGS {
            return settings(payload).map(|()| Verdict::Pass);
        }
        let fragment = if frame.kind == HEADERS { frame.fragment(payload) } else { Some(payload) };
        match (fragment, self.block.take()) {
            (Some(fragment), Some(block)) if !self.is_blind && unseen.len() <= HELD_BYTES_MAX => {
                self.frame_at = unseen.len();
                self.follow(frame, block, fragment)
            }
            // Padding beyond the frame's end, a CONTINUATION of nothing, or a block that is too
            // long: h2 knows what to do.
            _ => {
                (self.is_blind, self.table) = (true, Table::new());
                Ok(Verdict::Pass)
            }
        }
    }

    /// A piece of a header block.
    fn follow(
        &mut self,
        frame: Frame,
        mut block: Block,
        fragment: &[u8],
    ) -> Result<Verdict, Reason> {
        let ends = frame.has(END_HEADERS);
        if ends && block.bytes.is_empty() {
            return self.walk(frame.stream, &block, fragment);
        }
        block.bytes.extend_from_slice(fragment);
        if ends {
            return self.walk(frame.stream, &block, &block.bytes);
        }
        self.block = Some(block);
        Ok(Verdict::Hold)
    }

    fn walk(&mut self, stream: u32, block: &Block, bytes: &[u8]) -> Result<Verdict, Reason> {
        let walked = self.table.walk(bytes).map_err(|_| Reason::COMPRESSION_ERROR)?;
        let stand_in = match walked.stand_in {
            // §8.1: trailers have none.
            None if block.is_trailers && walked.has_pseudo => Some(malformed(bytes)),
            stand_in => stand_in,
        };
        Ok(match stand_in {
            None => Verdict::Pass,
            Some(stand_in) => {
                self.malformed += 1;
                Verdict::Replace(frames_of(&stand_in, stream, block.ends_stream))
            }
        })
    }
}

/// The frames of a header block.
fn frames_of(block: &[u8], stream: u32, ends_stream: bool) -> Vec<u8> {
    let pieces = block.len().div_ceil(FRAME_BYTES_MAX);
    let mut frames = Vec::with_capacity(block.len() + pieces * HEAD_BYTES);
    for (at, piece) in block.chunks(FRAME_BYTES_MAX).enumerate() {
        let kind = if at == 0 { HEADERS } else { CONTINUATION };
        let end_stream = if at == 0 && ends_stream { END_STREAM } else { 0 };
        let end_headers = if at + 1 == pieces { END_HEADERS } else { 0 };
        frames.extend_from_slice(&(piece.len() as u32).to_be_bytes()[1..]);
        frames.extend_from_slice(&[kind, end_stream | end_headers]);
        frames.extend_from_slice(&stream.to_be_bytes());
        frames.extend_from_slice(piece);
    }
    frames
}

impl Frame {
    fn of(head: &[u8; HEAD_BYTES]) -> Self {
        let [a, b, c, kind, flags, stream @ ..] = *head;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        Self { length, kind, flags, stream: u32::from_be_bytes(stream) & !RESERVED }
    }

    fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    fn is_looked_into(self) -> bool {
        matches!(self.kind, HEADERS | SETTINGS | CONTINUATION)
    }

    /// §4.2 and, for each kind, §6.
    fn has_a_right_size(self) -> bool {
        let extras = |priority: u8| {
            usize::from(self.has(PADDED)) + if self.has(priority) { PRIORITY_BYTES } else { 0 }
        };
        self.length <= FRAME_BYTES_MAX
            && match self.kind {
                DATA => self.length >= extras(0),
                HEADERS => self.length >= extras(PRIORITISED),
                PRIORITY => self.length == PRIORITY_BYTES,
                RST_STREAM | WINDOW_UPDATE => self.length == 4,
                SETTINGS if self.has(ACK) => self.length == 0,
                SETTINGS => self.length.is_multiple_of(SETTING_BYTES),
                PING => self.length == 8,
                GOAWAY => self.length >= 8,
                _ => true,
            }
    }

    /// The piece of the header block in a HEADERS frame.
    fn fragment(self, payload: &[u8]) -> Option<&[u8]> {
        let (padding, rest) = match self.has(PADDED) {
            true => payload.split_first().map(|(padding, rest)| (usize::from(*padding), rest))?,
            false => (0, payload),
        };
        let rest = rest.get(if self.has(PRIORITISED) { PRIORITY_BYTES } else { 0 }..)?;
        rest.get(..rest.len().checked_sub(padding)?)
    }
}

/// Which of the client's streams it has not ended (RFC 9113 §5.1).
#[derive(Debug, Default)]
struct Streams {
    /// The highest that was begun.
    last: u32,
    /// Begun, not ended, in order. A GET that ends with its head never stands here.
    open: Vec<u32>,
    /// Open streams up to this one may have been forgotten: nothing is known of them.
    forgotten: u32,
    /// A number was left out: streams below `last` need not have been used.
    has_gaps: bool,
}

impl Streams {
    /// HEADERS: whether they are trailers.
    fn headers(&mut self, stream: u32, is_end: bool) -> Result<bool, Reason> {
        if stream > self.last {
            self.has_gaps |= stream != self.last + if self.last == 0 { 1 } else { 2 };
            self.last = stream;
            if !is_end {
                self.open(stream);
            }
            return Ok(false);
        }
        if self.open.binary_search(&stream).is_ok() {
            if is_end {
                self.end(stream);
            }
            return Ok(true);
        }
        match stream {
            _ if stream <= self.forgotten => Ok(false),
            // §5.1.1: a number that is not higher.
            _ if self.has_gaps => Err(Reason::PROTOCOL_ERROR),
            _ => Err(Reason::STREAM_CLOSED),
        }
    }

    fn data(&mut self, stream: u32, is_end: bool) -> Result<(), Reason> {
        if stream > self.last || stream <= self.forgotten {
            return Ok(());
        }
        match self.open.binary_search(&stream) {
            Ok(at) if is_end => {
                self.open.remove(at);
            }
            Ok(_) => {}
            Err(_) => return Err(Reason::STREAM_CLOSED),
        }
        Ok(())
    }

    fn open(&mut self, stream: u32) {
        // A client is silent about streams that we have ended early.
        if self.open.len() == OPEN_MAX {
            let oldest: Vec<u32> = self.open.drain(..OPEN_MAX / 2).collect();
            self.forgotten = oldest.last().copied().unwrap_or_default();
        }
        self.open.push(stream);
    }

    fn end(&mut self, stream: u32) {
        if let Ok(at) = self.open.binary_search(&stream) {
            self.open.remove(at);
        }
    }
}

/// A setting that must not be, where h2 has another code for it.
fn settings(payload: &[u8]) -> Result<(), Reason> {
    let is_too_large = |setting: &[u8]| {
        setting[..2] == INITIAL_WINDOW_SIZE.to_be_bytes() && setting[2] & 0x80 != 0
    };
    match payload.chunks_exact(SETTING_BYTES).any(is_too_large) {
        true => Err(Reason::FLOW_CONTROL_ERROR),
        false => Ok(()),
    }
}

const PREFACE_BYTES: usize = 24;
const HEAD_BYTES: usize = 9;
const PRIORITY_BYTES: usize = 5;
const SETTING_BYTES: usize = 6;
/// What we take: the least that there is (RFC 9113 §4.2).
const FRAME_BYTES_MAX: usize = 16_384;
/// A header block whose frames are longer is left to h2, which refuses it, and so are all after it.
const HELD_BYTES_MAX: usize = 64 << 10;
/// What may come for nothing: a client that sends a PING every ten seconds has a week.
const OTHER_BYTES_FREE: i64 = 1 << 20;
/// Beyond, so many such bytes for each useful one. Downloads need about one for a thousand.
const OTHER_SHARE_MAX: i64 = 8;
/// Streams that are known to be open; at this many, half of them are forgotten.
const OPEN_MAX: usize = 256;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITISED: u8 = 32;
const RESERVED: u32 = 1 << 31;
const INITIAL_WINDOW_SIZE: u16 = 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GET: &[u8] = b"\x82\x84\x86\x41\x01a";

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    /// What h2 sees of these bytes.
    fn see(frames: &mut Frames, bytes: &[u8]) -> Vec<u8> {
        let in_place = frames.look(bytes);
        [&bytes[..in_place], &frames.behind().split()[..]].concat()
    }

    /// After the preface and SETTINGS, whole and in pieces of every length: what is wrong, and
    /// what h2 sees of it.
    #[track_caller]
    fn check(frames: &[Vec<u8>], expected: Option<Reason>) {
        let first = [&[0; PREFACE_BYTES][..], &frame(SETTINGS, 0, 0, &[])].concat();
        let bytes = [first, frames.concat()].concat();
        let before_last = bytes.len() - frames.last().unwrap().len();
        let is_open =
            |head: &&Vec<u8>| matches!(head[3], HEADERS | CONTINUATION) && head[4] & 4 == 0;
        let open = frames[..frames.len() - 1].iter().rev().take_while(is_open);
        let whole = before_last - open.map(Vec::len).sum::<usize>();
        for length in 1..=bytes.len() {
            let mut looking = Frames::new();
            let mut seen = Vec::new();
            for piece in bytes.chunks(length) {
                seen.extend(see(&mut looking, piece));
                if looking.fault().is_some() {
                    break;
                }
            }
            assert_eq!(looking.fault(), expected, "in pieces of {length}");
            match expected {
                None => assert_eq!(seen, bytes, "in pieces of {length}"),
                // Nothing of the last frame, nor of the block that it stands in.
                Some(_) => assert!(bytes[..before_last].starts_with(&seen) && seen.len() >= whole),
            }
        }
    }

    #[test]
    fn what_is_right_goes_through() {
        check(&[frame(HEADERS, 5, 1, GET)], None);
        let padded = [&[3, 0, 0, 0, 0, 9][..], GET, &[0; 3]].concat();
        check(&[frame(HEADERS, PADDED | PRIORITISED | 5, 1, &padded)], None);
        let post = frame(HEADERS, 4, 1, GET);
        let trailers = frame(HEADERS, 5, 1, b"\x00\x01a\x01b");
        check(&[post.clone(), frame(DATA, 0, 1, b"abc"), trailers], None);
        check(&[post, frame(DATA, 1, 1, b"abc"), frame(HEADERS, 5, 3, GET)], None);
        let (one, two) = GET.split_at(4);
        check(&[frame(HEADERS, 1, 1, one), frame(9, 0, 1, &[]), frame(9, 4, 1, two)], None);
        // The table lives on from block to block.
        let insert = [GET, b"\x40\x01a\x01b"].concat();
        check(
            &[frame(HEADERS, 5, 1, &insert), frame(HEADERS, 5, 3, b"\xbe\x82\x84\x86\xbf")],
            None,
        );
    }

    #[test]
    fn mistakes_have_their_own_codes() {
        check(
            &[frame(HEADERS, 1, 1, GET), frame(HEADERS, 5, 3, GET)],
            Some(Reason::PROTOCOL_ERROR),
        );
        check(&[frame(HEADERS, 5, 1, b"\xbe")], Some(Reason::COMPRESSION_ERROR));
        check(
            &[frame(HEADERS, 1, 1, GET), frame(9, 4, 1, b"\x80")],
            Some(Reason::COMPRESSION_ERROR),
        );
        let window = frame(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0]);
        check(&[window], Some(Reason::FLOW_CONTROL_ERROR));
        for wrong in [
            frame(PRIORITY, 0, 1, &[0; 4]),
            frame(RST_STREAM, 0, 1, &[0; 3]),
            frame(SETTINGS, 0, 0, &[0; 5]),
            frame(SETTINGS, ACK, 0, &[0; 6]),
            frame(PING, 0, 0, &[0; 7]),
            frame(GOAWAY, 0, 0, &[0; 7]),
            frame(WINDOW_UPDATE, 0, 0, &[0; 5]),
            frame(HEADERS, PRIORITISED | 5, 1, &[0; 4]),
        ] {
            check(&[wrong], Some(Reason::FRAME_SIZE_ERROR));
        }
        // Its head is enough.
        let mut large = Frames::new();
        large.look(&[&[0; PREFACE_BYTES][..], &frame(SETTINGS, 0, 0, &[])].concat());
        assert_eq!(large.look(b"\x00\x40\x01\x16\x00\x00\x00\x00\x00"), 0);
        assert_eq!(large.fault(), Some(Reason::FRAME_SIZE_ERROR));
    }

    #[test]
    fn the_first_frame_is_settings() {
        for first in [frame(PING, 0, 0, &[0; 8]), frame(SETTINGS, ACK, 0, &[])] {
            let mut frames = Frames::new();
            assert_eq!(frames.look(&[&[0; PREFACE_BYTES][..], &first].concat()), PREFACE_BYTES);
            assert_eq!(frames.fault(), Some(Reason::PROTOCOL_ERROR));
        }
    }

    #[test]
    fn ended_streams_are_closed() {
        let (get, post) = (|n| frame(HEADERS, 5, n, GET), |n| frame(HEADERS, 4, n, GET));
        let (data, reset) = (|n| frame(DATA, 1, n, b"a"), |n| frame(RST_STREAM, 0, n, &[0; 4]));
        check(&[get(1), data(1)], Some(Reason::STREAM_CLOSED));
        check(&[get(1), get(1)], Some(Reason::STREAM_CLOSED));
        check(&[post(1), data(1), data(1)], Some(Reason::STREAM_CLOSED));
        check(&[post(1), reset(1), data(1)], Some(Reason::STREAM_CLOSED));
        check(&[get(1), post(3), get(5), data(3)], None);
        // Never begun: a number that is not higher.
        check(&[get(5), get(3)], Some(Reason::PROTOCOL_ERROR));
    }

    #[test]
    fn streams_that_we_ended_are_forgotten_in_time() {
        let mut streams = Streams::default();
        for at in 0..10_000 {
            assert_eq!(streams.headers(2 * at + 1, false), Ok(false));
            assert!(streams.open.len() <= OPEN_MAX);
        }
        assert_eq!(streams.data(1, true), Ok(()), "nobody knows");
        assert_eq!(streams.data(19_999, true), Ok(()));
        assert_eq!(streams.data(19_999, true), Err(Reason::STREAM_CLOSED));
    }

    #[test]
    fn frames_that_bring_nothing_are_borne_for_a_while() {
        for flood in [
            frame(PING, 0, 0, &[0; 8]),
            frame(SETTINGS, 0, 0, &[]),
            frame(PRIORITY, 0, 1, &[0; 5]),
            frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
            frame(0x20, 0, 0, &[0; 100]),
        ] {
            let mut frames = Frames::new();
            frames.look(&[&[0; PREFACE_BYTES][..], &frame(SETTINGS, 0, 0, &[])].concat());
            let mut borne = 0;
            while frames.fault().is_none() {
                borne += frames.look(&flood);
                assert!(borne < 3 << 20);
            }
            assert_eq!(frames.fault(), Some(Reason::ENHANCE_YOUR_CALM));
            assert!(borne > 1 << 19, "{borne}");
        }
        // A download of 2 GiB whose window is opened by 4 KiB.
        let mut frames = Frames::new();
        frames.look(&[&[0; PREFACE_BYTES][..], &frame(SETTINGS, 0, 0, &[])].concat());
        for _ in 0..(2u32 << 30) / 4096 {
            frames.sent(4096);
            frames.look(&frame(WINDOW_UPDATE, 0, 0, &[0, 0, 16, 0]));
            frames.look(&frame(WINDOW_UPDATE, 0, 1, &[0, 0, 16, 0]));
        }
        assert_eq!(frames.fault(), None);
    }

    #[test]
    fn a_block_that_is_too_long_is_left_to_h2() {
        let mut frames = Frames::new();
        frames.look(&[&[0; PREFACE_BYTES][..], &frame(SETTINGS, 0, 0, &[])].concat());
        frames.look(&frame(HEADERS, 1, 1, GET));
        for _ in 0..10 {
            frames.look(&frame(CONTINUATION, 0, 1, &[0x90; FRAME_BYTES_MAX]));
        }
        assert!(frames.is_blind && frames.block.is_none() && frames.held.is_empty());
        frames.behind().clear();
        let end = frame(CONTINUATION, 4, 1, b"\xbe");
        assert_eq!((frames.look(&end), frames.fault()), (end.len(), None));
    }

    #[test]
    fn a_malformed_block_is_replaced_for_h2_however_it_comes() {
        let bad = [GET, b"\x40\x03X-A\x01b"].concat();
        let good = frame(HEADERS, 5, 5, b"\x82\x84\x86\x41\x01a");
        let stand_in = [GET, b"\x40\x03xxx\x01x\x00\x0aconnection\x01x"].concat();
        let (one, two) = bad.split_at(8);
        let split = [frame(HEADERS, 1, 3, one), frame(CONTINUATION, 4, 3, two)].concat();
        for malformed in [frame(HEADERS, 5, 3, &bad), split] {
            let bytes = [
                &[0; PREFACE_BYTES][..],
                &frame(SETTINGS, 0, 0, &[]),
                &frame(HEADERS, 5, 1, GET),
                &malformed,
                &good,
            ];
            let expected = [bytes[0], bytes[1], bytes[2], &frame(HEADERS, 5, 3, &stand_in), &good];
            let bytes = bytes.concat();
            for length in 1..=bytes.len() {
                let mut frames = Frames::new();
                let seen: Vec<u8> =
                    bytes.chunks(length).flat_map(|piece| see(&mut frames, piece)).collect();
                assert_eq!(seen, expected.concat(), "in pieces of {length}");
                assert_eq!((frames.fault(), frames.take_malformed()), (None, 1));
            }
        }
        // §8.1: pseudo-fields in trailers.
        let mut frames = Frames::new();
        see(&mut frames, &[&[0; PREFACE_BYTES][..], &frame(SETTINGS, 0, 0, &[])].concat());
        see(&mut frames, &frame(HEADERS, 4, 1, GET));
        let seen = see(&mut frames, &frame(HEADERS, 5, 1, b"\x84"));
        assert_eq!(seen, frame(HEADERS, 5, 1, b"\x84\x00\x0aconnection\x01x"));
    }

    #[test]
    fn a_long_stand_in_has_several_frames() {
        let block = vec![1; 2 * FRAME_BYTES_MAX + 1];
        let pieces = [
            frame(HEADERS, END_STREAM, 7, &block[..FRAME_BYTES_MAX]),
            frame(CONTINUATION, 0, 7, &block[..FRAME_BYTES_MAX]),
            frame(CONTINUATION, END_HEADERS, 7, &[1]),
        ];
        assert_eq!(frames_of(&block, 7, true), pieces.concat());
    }

    fn looked_at(pieces: &[&[u8]]) -> (Vec<u8>, Option<Reason>) {
        let mut frames = Frames::new();
        frames.look(&[&[0; PREFACE_BYTES][..], &frame(SETTINGS, 0, 0, &[])].concat());
        let mut seen = Vec::new();
        for piece in pieces {
            if frames.fault().is_none() {
                seen.extend(see(&mut frames, piece));
            }
        }
        (seen, frames.fault())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn frames_are_the_same_in_pieces(
            kinds in proptest::collection::vec(
                (0..11_u8, any::<u8>(), 0..8_u32, proptest::collection::vec(any::<u8>(), 0..12)),
                0..12,
            ),
            cut in any::<prop::sample::Index>(),
        ) {
            let bytes: Vec<u8> =
                kinds.iter().flat_map(|(kind, flags, stream, payload)| frame(*kind, *flags, *stream, payload)).collect();
            let (whole, fault) = looked_at(&[&bytes]);
            let (first, second) = bytes.split_at(cut.index(bytes.len() + 1));
            let (pieces, fault_in_pieces) = looked_at(&[first, second]);
            prop_assert_eq!((pieces, fault_in_pieces), (whole, fault));
        }
    }
}
