//! Checks a client's HTTP/2 frames before the h2 crate reads them (RFC 9113; docs/decisions/0005, 0018).
//!
//! The h2 crate reports nearly every violation as PROTOCOL_ERROR, does not require SETTINGS as the first
//! frame, and ignores pseudo-fields in trailers. The filter checks sizes, settings, header blocks, and
//! frames on ended streams. At the first violation it passes nothing more on, and the driver ends the
//! connection with the error code of the RFC. The same happens if nearly all bytes are PING, SETTINGS,
//! PRIORITY, WINDOW_UPDATE or unknown frames, which cost work and carry nothing (§10.5).
//! A malformed header block is replaced by one for which the h2 crate resets only its stream (§8.1.1).
//! Everything else is left to the h2 crate.
//!
//! ```text
//! received      │ DATA  HEADERS  HEAD│ERS  DATA      HEADERS, malformed  DATA │
//! to the crate  │ in place ──── held │ passed ─────  replacement ───────────── │
//! ```
//!
//! `│` ends one read. *In place*: the h2 crate reads the bytes from the buffer that they were received in. *Held*: copied
//! until the frame or header block is complete. *Passed*: copied bytes that the h2 crate reads next.

use bytes::BytesMut;
use h2::Reason;

use super::frame::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, FRAME_HEADER_BYTES, Frame, HEADERS, PING,
    RST_STREAM, SETTINGS, check_settings, header_frames,
};
use super::header_blocks::{HpackTable, malformed};
use super::open_streams::OpenStreams;

/// The state of one connection's incoming frames.
#[derive(Debug)]
pub(super) struct FrameFilter {
    /// Bytes of the preface that are still to come.
    preface_left: usize,
    /// The frame whose payload is arriving.
    frame: Option<Frame>,
    /// Bytes of its payload that are still to come.
    payload_left: usize,
    /// Bytes that the h2 crate must not see yet: a part of a frame's header, or frames that are checked
    /// when they, or their header block, are complete.
    held: Vec<u8>,
    /// Where the current frame starts in the bytes that the h2 crate has not seen.
    frame_at: usize,
    /// Bytes that have passed, but are not where they were read.
    passed: BytesMut,
    /// The header block so far, if it continues in CONTINUATION.
    block: Option<HeaderBlock>,
    table: HpackTable,
    /// Header blocks are left to the h2 crate, because one was too long to be held or its frames were
    /// invalid.
    skips_header_blocks: bool,
    is_first: bool,
    streams: OpenStreams,
    /// Header blocks that were replaced since the last [`FrameFilter::take_malformed`].
    malformed: u32,
    /// Bytes of requests and responses in both directions, less the replies to control frames.
    request_response_bytes: i64,
    /// Bytes of all other frames from the client.
    control_bytes: i64,
    violation: Option<Reason>,
}

#[derive(Debug)]
struct HeaderBlock {
    bytes: Vec<u8>,
    is_trailers: bool,
    ends_stream: bool,
}

/// The treatment of the bytes that the h2 crate has not seen.
enum Verdict {
    /// The bytes pass.
    Pass,
    /// The bytes are held until the frame, or its header block, is complete.
    Hold,
    /// These bytes pass instead.
    Replace(Vec<u8>),
}

impl FrameFilter {
    pub(super) fn new() -> Self {
        Self {
            preface_left: PREFACE_BYTES,
            frame: None,
            payload_left: 0,
            held: Vec::new(),
            frame_at: 0,
            passed: BytesMut::new(),
            block: None,
            table: HpackTable::new(),
            skips_header_blocks: false,
            is_first: true,
            streams: OpenStreams::default(),
            malformed: 0,
            request_response_bytes: 0,
            control_bytes: 0,
            violation: None,
        }
    }

    /// The client's protocol violation, if there was one.
    pub(super) fn violation(&self) -> Option<Reason> {
        self.violation
    }

    /// Counts bytes sent to the client.
    pub(super) fn add_sent(&mut self, bytes: usize) {
        self.request_response_bytes += bytes as i64;
    }

    /// The number of malformed header blocks since the last call.
    pub(super) fn take_malformed(&mut self) -> u32 {
        std::mem::take(&mut self.malformed)
    }

    /// Bytes that have passed and that the h2 crate must read before the next [`FrameFilter::filter`].
    pub(super) fn passed(&mut self) -> &mut BytesMut {
        &mut self.passed
    }

    /// Filters bytes from the client. Returns how many of them may be read in place; the bytes that follow
    /// them are in [`FrameFilter::passed`], which must be empty at the call.
    pub(super) fn filter(&mut self, bytes: &[u8]) -> usize {
        let mut at = bytes.len().min(self.preface_left);
        self.preface_left -= at;
        // The bytes that the h2 crate has not seen are in `held`, or start at `begin`; never both.
        let (mut in_place, mut begin) = (at, at);
        while at < bytes.len() && self.violation.is_none() {
            let wanted = match self.frame {
                Some(_) => self.payload_left,
                None => self.frame_at + FRAME_HEADER_BYTES - self.unseen(&bytes[begin..at]).len(),
            };
            let end = at + wanted.min(bytes.len() - at);
            if !self.held.is_empty() {
                self.held.extend_from_slice(&bytes[at..end]);
                begin = end;
            }
            let verdict = self.advance(&bytes[begin..end], end - at);
            at = end;
            match verdict {
                Ok(Verdict::Hold) => {}
                Ok(Verdict::Pass) if self.held.is_empty() && self.passed.is_empty() => {
                    (in_place, begin, self.frame_at) = (at, at, 0);
                }
                Ok(Verdict::Pass) => {
                    self.passed.extend_from_slice(&self.held);
                    self.passed.extend_from_slice(&bytes[begin..at]);
                    (begin, self.frame_at) = (at, 0);
                    self.held.clear();
                }
                Ok(Verdict::Replace(frames)) => {
                    self.passed.extend_from_slice(&frames);
                    (begin, self.frame_at) = (at, 0);
                    self.held.clear();
                }
                Err(violation) => self.violation = Some(violation),
            }
        }
        if self.violation.is_none() {
            self.held.extend_from_slice(&bytes[begin..]);
        }
        if self.held.is_empty() {
            // Most frames arrive complete, so the buffer is not kept.
            self.held = Vec::new();
        }
        in_place
    }

    /// The bytes that the h2 crate has not seen: those held, or else `read`.
    fn unseen<'a>(&'a self, read: &'a [u8]) -> &'a [u8] {
        if self.held.is_empty() { read } else { &self.held }
    }

    /// Takes `more` bytes of a frame's header or payload. `read` are the bytes that the h2 crate has not
    /// seen, unless they are in `held`.
    fn advance(&mut self, read: &[u8], more: usize) -> Result<Verdict, Reason> {
        let Some(frame) = self.frame else {
            let unseen = self.unseen(read);
            let Some(header) = unseen[self.frame_at..].first_chunk() else {
                return Ok(Verdict::Hold);
            };
            let frame = Frame::of(header);
            (self.frame, self.payload_left) = (Some(frame), frame.length);
            self.check_header(frame)?;
            return self.check_frame(frame, read);
        };
        self.payload_left -= more;
        self.check_frame(frame, read)
    }

    fn check_frame(&mut self, frame: Frame, read: &[u8]) -> Result<Verdict, Reason> {
        let is_complete = self.payload_left == 0;
        if is_complete {
            self.frame = None;
        }
        match frame.has_checked_payload() {
            false => Ok(Verdict::Pass),
            true if !is_complete => Ok(Verdict::Hold),
            true if self.held.is_empty() => self.check_payload(frame, read),
            true => {
                let held = std::mem::take(&mut self.held);
                let verdict = self.check_payload(frame, &held);
                self.held = held;
                verdict
            }
        }
    }

    /// Checks a frame by its header.
    fn check_header(&mut self, frame: Frame) -> Result<(), Reason> {
        if std::mem::take(&mut self.is_first) && (frame.kind != SETTINGS || frame.has(ACK)) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        if !frame.has_valid_size() {
            return Err(Reason::FRAME_SIZE_ERROR);
        }
        // §6.10: no other frame may interrupt a header block.
        if self.block.is_some() && frame.kind != CONTINUATION {
            return Err(Reason::PROTOCOL_ERROR);
        }
        self.check_control_share(frame)?;
        match frame.kind {
            DATA => self.streams.data(frame.stream, frame.has(END_STREAM)),
            RST_STREAM => {
                self.streams.end(frame.stream);
                Ok(())
            }
            HEADERS => {
                let ends_stream = frame.has(END_STREAM);
                let is_trailers = self.streams.headers(frame.stream, ends_stream)?;
                self.block = Some(HeaderBlock { bytes: Vec::new(), is_trailers, ends_stream });
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn check_control_share(&mut self, frame: Frame) -> Result<(), Reason> {
        let all = (FRAME_HEADER_BYTES + frame.length) as i64;
        if matches!(frame.kind, DATA | HEADERS | CONTINUATION) {
            self.request_response_bytes += all;
            return Ok(());
        }
        self.control_bytes += all;
        if matches!(frame.kind, PING | SETTINGS) && !frame.has(ACK) {
            // The node replies with at most as many bytes, which `add_sent` counts as useful.
            self.request_response_bytes -= all;
        }
        match self.control_bytes
            > CONTROL_BYTES_FREE + CONTROL_RATIO_MAX * self.request_response_bytes.max(0)
        {
            true => Err(Reason::ENHANCE_YOUR_CALM),
            false => Ok(()),
        }
    }

    /// Checks a complete frame by its payload. `unseen` ends with it.
    fn check_payload(&mut self, frame: Frame, unseen: &[u8]) -> Result<Verdict, Reason> {
        let payload = &unseen[self.frame_at + FRAME_HEADER_BYTES..];
        if frame.kind == SETTINGS {
            return check_settings(payload).map(|()| Verdict::Pass);
        }
        let fragment = if frame.kind == HEADERS { frame.fragment(payload) } else { Some(payload) };
        match (fragment, self.block.take()) {
            (Some(fragment), Some(block))
                if !self.skips_header_blocks && unseen.len() <= HELD_BYTES_MAX =>
            {
                self.frame_at = unseen.len();
                self.add_fragment(frame, block, fragment)
            }
            // Padding beyond the frame's end, a CONTINUATION without HEADERS, or a block that is too
            // long: the h2 crate refuses it.
            _ => {
                (self.skips_header_blocks, self.table) = (true, HpackTable::new());
                Ok(Verdict::Pass)
            }
        }
    }

    /// Adds a piece of a header block, and checks the block when it is complete.
    fn add_fragment(
        &mut self,
        frame: Frame,
        mut block: HeaderBlock,
        fragment: &[u8],
    ) -> Result<Verdict, Reason> {
        let ends = frame.has(END_HEADERS);
        if ends && block.bytes.is_empty() {
            return self.check_block(frame.stream, &block, fragment);
        }
        block.bytes.extend_from_slice(fragment);
        if ends {
            return self.check_block(frame.stream, &block, &block.bytes);
        }
        self.block = Some(block);
        Ok(Verdict::Hold)
    }

    fn check_block(
        &mut self,
        stream: u32,
        block: &HeaderBlock,
        bytes: &[u8],
    ) -> Result<Verdict, Reason> {
        let read = self.table.read(bytes).map_err(|_| Reason::COMPRESSION_ERROR)?;
        let replacement = match read.replacement {
            // §8.1: trailers must not have pseudo-fields.
            None if block.is_trailers && read.has_pseudo => Some(malformed(bytes)),
            replacement => replacement,
        };
        Ok(match replacement {
            None => Verdict::Pass,
            Some(replacement) => {
                self.malformed += 1;
                Verdict::Replace(header_frames(&replacement, stream, block.ends_stream))
            }
        })
    }
}

const PREFACE_BYTES: usize = 24;
/// A header block whose frames are longer, and all blocks after it, are left to the h2 crate, which refuses it.
const HELD_BYTES_MAX: usize = 64 << 10;
/// Bytes of control frames that are always allowed: a week of a PING every ten seconds.
const CONTROL_BYTES_FREE: i64 = 1 << 20;
/// Beyond that, bytes of control frames for each byte of requests and responses. A download needs about 0.001.
const CONTROL_RATIO_MAX: i64 = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::frame::{
        FRAME_BYTES_MAX, GOAWAY, PADDED, PRIORITISED, PRIORITY, WINDOW_UPDATE,
    };
    use super::*;

    const GET: &[u8] = b"\x82\x84\x86\x41\x01a";

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    /// The bytes that pass.
    fn see(filter: &mut FrameFilter, bytes: &[u8]) -> Vec<u8> {
        let in_place = filter.filter(bytes);
        [&bytes[..in_place], &filter.passed().split()[..]].concat()
    }

    /// Filters the frames after the preface and SETTINGS, in pieces of every length.
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
            let mut filter = FrameFilter::new();
            let mut seen = Vec::new();
            for piece in bytes.chunks(length) {
                seen.extend(see(&mut filter, piece));
                if filter.violation().is_some() {
                    break;
                }
            }
            assert_eq!(filter.violation(), expected, "in pieces of {length}");
            match expected {
                None => assert_eq!(seen, bytes, "in pieces of {length}"),
                // Nothing of the last frame passes, nor of its header block.
                Some(_) => assert!(bytes[..before_last].starts_with(&seen) && seen.len() >= whole),
            }
        }
    }

    #[test]
    fn valid_frames_pass() {
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
        // The frame header alone is enough to refuse it.
        let mut large = FrameFilter::new();
        large.filter(&[&[0; PREFACE_BYTES][..], &frame(SETTINGS, 0, 0, &[])].concat());
        assert_eq!(large.filter(b"\x00\x40\x01\x16\x00\x00\x00\x00\x00"), 0);
        assert_eq!(large.violation(), Some(Reason::FRAME_SIZE_ERROR));
    }

    #[test]
    fn the_first_frame_is_settings() {
        for first in [frame(PING, 0, 0, &[0; 8]), frame(SETTINGS, ACK, 0, &[])] {
            let mut filter = FrameFilter::new();
            assert_eq!(filter.filter(&[&[0; PREFACE_BYTES][..], &first].concat()), PREFACE_BYTES);
            assert_eq!(filter.violation(), Some(Reason::PROTOCOL_ERROR));
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
        // A stream number below an earlier one was never opened.
        check(&[get(5), get(3)], Some(Reason::PROTOCOL_ERROR));
    }

    #[test]
    fn control_frames_are_limited() {
        for flood in [
            frame(PING, 0, 0, &[0; 8]),
            frame(SETTINGS, 0, 0, &[]),
            frame(PRIORITY, 0, 1, &[0; 5]),
            frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
            frame(0x20, 0, 0, &[0; 100]),
        ] {
            let mut filter = FrameFilter::new();
            filter.filter(&[&[0; PREFACE_BYTES][..], &frame(SETTINGS, 0, 0, &[])].concat());
            let mut accepted = 0;
            while filter.violation().is_none() {
                accepted += filter.filter(&flood);
                assert!(accepted < 3 << 20);
            }
            assert_eq!(filter.violation(), Some(Reason::ENHANCE_YOUR_CALM));
            assert!(accepted > 1 << 19, "{accepted}");
        }
        // A download of 2 GiB whose window is opened by 4 KiB.
        let mut filter = FrameFilter::new();
        filter.filter(&[&[0; PREFACE_BYTES][..], &frame(SETTINGS, 0, 0, &[])].concat());
        for _ in 0..(2u32 << 30) / 4096 {
            filter.add_sent(4096);
            filter.filter(&frame(WINDOW_UPDATE, 0, 0, &[0, 0, 16, 0]));
            filter.filter(&frame(WINDOW_UPDATE, 0, 1, &[0, 0, 16, 0]));
        }
        assert_eq!(filter.violation(), None);
    }

    #[test]
    fn a_block_that_is_too_long_is_left_to_h2() {
        let mut filter = FrameFilter::new();
        filter.filter(&[&[0; PREFACE_BYTES][..], &frame(SETTINGS, 0, 0, &[])].concat());
        filter.filter(&frame(HEADERS, 1, 1, GET));
        for _ in 0..10 {
            filter.filter(&frame(CONTINUATION, 0, 1, &[0x90; FRAME_BYTES_MAX]));
        }
        assert!(filter.skips_header_blocks && filter.block.is_none() && filter.held.is_empty());
        filter.passed().clear();
        let end = frame(CONTINUATION, 4, 1, b"\xbe");
        assert_eq!((filter.filter(&end), filter.violation()), (end.len(), None));
    }

    #[test]
    fn a_malformed_block_is_replaced_for_h2_however_it_comes() {
        let bad = [GET, b"\x40\x03X-A\x01b"].concat();
        let good = frame(HEADERS, 5, 5, b"\x82\x84\x86\x41\x01a");
        let replacement = [GET, b"\x40\x03xxx\x01x\x00\x0aconnection\x01x"].concat();
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
            let expected =
                [bytes[0], bytes[1], bytes[2], &frame(HEADERS, 5, 3, &replacement), &good];
            let bytes = bytes.concat();
            for length in 1..=bytes.len() {
                let mut filter = FrameFilter::new();
                let seen: Vec<u8> =
                    bytes.chunks(length).flat_map(|piece| see(&mut filter, piece)).collect();
                assert_eq!(seen, expected.concat(), "in pieces of {length}");
                assert_eq!((filter.violation(), filter.take_malformed()), (None, 1));
            }
        }
        // §8.1: pseudo-fields in trailers.
        let mut filter = FrameFilter::new();
        see(&mut filter, &[&[0; PREFACE_BYTES][..], &frame(SETTINGS, 0, 0, &[])].concat());
        see(&mut filter, &frame(HEADERS, 4, 1, GET));
        let seen = see(&mut filter, &frame(HEADERS, 5, 1, b"\x84"));
        assert_eq!(seen, frame(HEADERS, 5, 1, b"\x84\x00\x0aconnection\x01x"));
    }

    fn filter_pieces(pieces: &[&[u8]]) -> (Vec<u8>, Option<Reason>) {
        let mut filter = FrameFilter::new();
        filter.filter(&[&[0; PREFACE_BYTES][..], &frame(SETTINGS, 0, 0, &[])].concat());
        let mut seen = Vec::new();
        for piece in pieces {
            if filter.violation().is_none() {
                seen.extend(see(&mut filter, piece));
            }
        }
        (seen, filter.violation())
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
            let (whole, fault) = filter_pieces(&[&bytes]);
            let (first, second) = bytes.split_at(cut.index(bytes.len() + 1));
            let (pieces, fault_in_pieces) = filter_pieces(&[first, second]);
            prop_assert_eq!((pieces, fault_in_pieces), (whole, fault));
        }
    }
}
