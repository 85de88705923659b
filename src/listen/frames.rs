//! Follows a client's HTTP/2 frames below h2 (RFC 9113).
//!
//! h2 answers nearly every mistake with PROTOCOL_ERROR, does not insist that SETTINGS come first,
//! and passes over pseudo-fields in trailers. Here frames are read before it sees them: sizes,
//! settings and header blocks, and which streams still have something to come. At the first
//! mistake nothing more is handed on, and the driver ends the connection with the RFC's own code.
//! So it does when nearly all that comes is about the connection itself: PING, SETTINGS, PRIORITY,
//! WINDOW_UPDATE and unknown frames cost us and bring nobody anything (RFC 9113 §10.5).
//! What is not judged here is left to h2.

use h2::Reason;

use super::hpack::Table;

/// What is known of one connection's incoming frames.
#[derive(Debug)]
pub(super) struct Frames {
    /// Bytes of the preface that are still to come.
    preface_left: usize,
    /// A frame's head that came in pieces.
    head: [u8; HEAD_BYTES],
    head_bytes: usize,
    /// The frame whose payload is under way, and how much of it is to come.
    frame: Frame,
    left: usize,
    /// The payload so far, of a frame that is looked into and came in pieces.
    kept: Vec<u8>,
    /// A header block so far that goes on in CONTINUATION.
    block: Option<Block>,
    table: Table,
    /// Header blocks are not followed any more: one was too long to be kept.
    is_blind: bool,
    is_first: bool,
    streams: Streams,
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
}

impl Frames {
    pub(super) fn new() -> Self {
        Self {
            preface_left: PREFACE_BYTES,
            head: [0; HEAD_BYTES],
            head_bytes: 0,
            frame: Frame::default(),
            left: 0,
            kept: Vec::new(),
            block: None,
            table: Table::new(),
            is_blind: false,
            is_first: true,
            streams: Streams::default(),
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

    /// Looks at what has come. How much of it h2 may see: all, or what is before the mistake.
    pub(super) fn look(&mut self, bytes: &[u8]) -> usize {
        let mut rest = bytes;
        skip(&mut rest, &mut self.preface_left);
        // Where the frame begins that is looked at; at 0 if it began before these bytes.
        let mut begin = bytes.len() - rest.len();
        while self.fault.is_none() && !rest.is_empty() {
            if self.left == 0 {
                let Some(frame) = self.take_head(&mut rest) else { break };
                (self.frame, self.left) = (frame, frame.length);
                self.fault = self.begin().err();
                if self.left > 0 {
                    continue;
                }
            }
            let done = if self.frame.is_looked_into() && self.fault.is_none() {
                self.take_payload(&mut rest)
            } else {
                skip(&mut rest, &mut self.left);
                Ok(())
            };
            self.fault = self.fault.or(done.err());
            if self.left == 0 && self.fault.is_none() {
                begin = bytes.len() - rest.len();
            }
        }
        if self.fault.is_some() { begin } else { bytes.len() }
    }

    fn take_head(&mut self, rest: &mut &[u8]) -> Option<Frame> {
        if self.head_bytes == 0
            && let Some((head, behind)) = rest.split_first_chunk()
        {
            *rest = behind;
            return Some(Frame::of(head));
        }
        let take = rest.len().min(HEAD_BYTES - self.head_bytes);
        let (piece, behind) = rest.split_at(take);
        self.head[self.head_bytes..][..take].copy_from_slice(piece);
        *rest = behind;
        self.head_bytes += take;
        if self.head_bytes < HEAD_BYTES {
            return None;
        }
        self.head_bytes = 0;
        Some(Frame::of(&self.head))
    }

    /// Judges a frame by its head.
    fn begin(&mut self) -> Result<(), Reason> {
        let frame = self.frame;
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
                let is_trailers = self.streams.headers(frame.stream, frame.has(END_STREAM))?;
                self.block = Some(Block { bytes: Vec::new(), is_trailers });
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

    /// Judges a frame by its payload, once it is whole.
    fn take_payload(&mut self, rest: &mut &[u8]) -> Result<(), Reason> {
        let (piece, behind) = rest.split_at(rest.len().min(self.left));
        *rest = behind;
        self.left -= piece.len();
        if self.left == 0 && self.kept.is_empty() {
            return self.judge(piece);
        }
        self.kept.extend_from_slice(piece);
        if self.left > 0 {
            return Ok(());
        }
        let payload = std::mem::take(&mut self.kept);
        self.judge(&payload)
    }

    fn judge(&mut self, payload: &[u8]) -> Result<(), Reason> {
        match self.frame.kind {
            SETTINGS => settings(payload),
            HEADERS => match self.frame.fragment(payload) {
                Some(fragment) => self.follow(fragment),
                // Padding beyond the frame's end: h2 knows what to do.
                None => self.go_blind(),
            },
            _ => self.follow(payload),
        }
    }

    /// A piece of a header block.
    fn follow(&mut self, fragment: &[u8]) -> Result<(), Reason> {
        let ends = self.frame.has(END_HEADERS);
        let Some(mut block) = self.block.take() else {
            // A CONTINUATION of nothing, which h2 refuses.
            return self.go_blind();
        };
        if self.is_blind || block.bytes.len() + fragment.len() > BLOCK_BYTES_MAX {
            return self.go_blind();
        }
        if ends && block.bytes.is_empty() {
            return self.walk(fragment, block.is_trailers);
        }
        block.bytes.extend_from_slice(fragment);
        if ends {
            return self.walk(&block.bytes, block.is_trailers);
        }
        self.block = Some(block);
        Ok(())
    }

    fn walk(&mut self, block: &[u8], is_trailers: bool) -> Result<(), Reason> {
        let has_pseudo = self.table.walk(block).map_err(|_| Reason::COMPRESSION_ERROR)?;
        // §8.1: trailers have none.
        if is_trailers && has_pseudo { Err(Reason::PROTOCOL_ERROR) } else { Ok(()) }
    }

    fn go_blind(&mut self) -> Result<(), Reason> {
        (self.is_blind, self.block, self.table) = (true, None, Table::new());
        Ok(())
    }
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

fn skip(rest: &mut &[u8], left: &mut usize) {
    let skipped = rest.len().min(*left);
    *rest = &rest[skipped..];
    *left -= skipped;
}

const PREFACE_BYTES: usize = 24;
const HEAD_BYTES: usize = 9;
const PRIORITY_BYTES: usize = 5;
const SETTING_BYTES: usize = 6;
/// What we take: the least that there is (RFC 9113 §4.2).
const FRAME_BYTES_MAX: usize = 16_384;
/// A longer header block is left to h2, which refuses it, and all after it.
const BLOCK_BYTES_MAX: usize = 64 << 10;
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

    /// After the preface and SETTINGS, whole and in pieces of every length: what is wrong, and
    /// what h2 sees of it.
    #[track_caller]
    fn check(frames: &[Vec<u8>], expected: Option<Reason>) {
        let first = [&[0; PREFACE_BYTES][..], &frame(SETTINGS, 0, 0, &[])].concat();
        let bytes = [first, frames.concat()].concat();
        let before_last = bytes.len() - frames.last().unwrap().len();
        for length in 1..=bytes.len() {
            let mut looking = Frames::new();
            let mut seen = 0;
            for piece in bytes.chunks(length) {
                seen += looking.look(piece);
                if looking.fault().is_some() {
                    break;
                }
            }
            assert_eq!(looking.fault(), expected, "in pieces of {length}");
            match expected {
                None => assert_eq!(seen, bytes.len()),
                Some(_) => assert!(seen < bytes.len() && seen >= before_last, "{seen}: {length}"),
            }
            if expected.is_some() && length == bytes.len() {
                assert_eq!(seen, before_last, "nothing of the last frame");
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
        let post = || frame(HEADERS, 4, 1, GET);
        let pseudo = frame(HEADERS, 5, 1, b"\x84");
        check(&[post(), frame(DATA, 0, 1, b"a"), pseudo], Some(Reason::PROTOCOL_ERROR));
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
        assert!(frames.is_blind && frames.block.is_none() && frames.kept.is_empty());
        let end = frame(CONTINUATION, 4, 1, b"\xbe");
        assert_eq!((frames.look(&end), frames.fault()), (end.len(), None));
    }

    fn looked_at(pieces: &[&[u8]]) -> (usize, Option<Reason>) {
        let mut frames = Frames::new();
        frames.look(&[&[0; PREFACE_BYTES][..], &frame(SETTINGS, 0, 0, &[])].concat());
        let mut seen = 0;
        for piece in pieces {
            if frames.fault().is_none() {
                seen += frames.look(piece);
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
            prop_assert_eq!(fault_in_pieces, fault);
            // Of the frame that is wrong a piece may have gone through before.
            prop_assert!(pieces == whole || fault.is_some() && pieces == first.len().max(whole));
        }
    }
}
