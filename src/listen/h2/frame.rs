//! The headers of HTTP/2 frames (RFC 9113 §4.1, §6), and frames that the node writes itself.

use h2::Reason;

/// The header of a frame.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Frame {
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl Frame {
    /// Parses the header of a frame.
    pub(super) fn of(head: &[u8; FRAME_HEADER_BYTES]) -> Self {
        let [a, b, c, kind, flags, stream @ ..] = *head;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        Self { length, kind, flags, stream: u32::from_be_bytes(stream) & !RESERVED }
    }

    /// Whether a flag is set.
    pub(super) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Whether the payload is checked, not only the frame header.
    pub(super) fn has_checked_payload(self) -> bool {
        matches!(self.kind, HEADERS | SETTINGS | CONTINUATION)
    }

    /// Whether the length is valid (§4.2, and §6 for each type).
    pub(super) fn has_valid_size(self) -> bool {
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

    /// The piece of a header block in the payload of a HEADERS frame. `None` if its padding is too long.
    pub(super) fn fragment(self, payload: &[u8]) -> Option<&[u8]> {
        let (padding, rest) = match self.has(PADDED) {
            true => payload.split_first().map(|(padding, rest)| (usize::from(*padding), rest))?,
            false => (0, payload),
        };
        let rest = rest.get(if self.has(PRIORITISED) { PRIORITY_BYTES } else { 0 }..)?;
        rest.get(..rest.len().checked_sub(padding)?)
    }
}

/// HEADERS and CONTINUATION frames with this header block.
pub(super) fn header_frames(block: &[u8], stream: u32, ends_stream: bool) -> Vec<u8> {
    let pieces = block.len().div_ceil(FRAME_BYTES_MAX);
    let mut frames = Vec::with_capacity(block.len() + pieces * FRAME_HEADER_BYTES);
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

/// Checks a setting for which the h2 crate has another error code than the RFC.
pub(super) fn check_settings(payload: &[u8]) -> Result<(), Reason> {
    let is_too_large = |setting: &[u8]| {
        setting[..2] == INITIAL_WINDOW_SIZE.to_be_bytes() && setting[2] & 0x80 != 0
    };
    match payload.chunks_exact(SETTING_BYTES).any(is_too_large) {
        true => Err(Reason::FLOW_CONTROL_ERROR),
        false => Ok(()),
    }
}

pub(super) const FRAME_HEADER_BYTES: usize = 9;
const PRIORITY_BYTES: usize = 5;
const SETTING_BYTES: usize = 6;
/// The longest payload: the smallest maximum that the RFC allows (§4.2).
pub(super) const FRAME_BYTES_MAX: usize = 16_384;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const ACK: u8 = 1;
pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
pub(super) const PADDED: u8 = 8;
pub(super) const PRIORITISED: u8 = 32;
const RESERVED: u32 = 1 << 31;
const INITIAL_WINDOW_SIZE: u16 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    #[test]
    fn a_long_stand_in_has_several_frames() {
        let block = vec![1; 2 * FRAME_BYTES_MAX + 1];
        let pieces = [
            frame(HEADERS, END_STREAM, 7, &block[..FRAME_BYTES_MAX]),
            frame(CONTINUATION, 0, 7, &block[..FRAME_BYTES_MAX]),
            frame(CONTINUATION, END_HEADERS, 7, &[1]),
        ];
        assert_eq!(header_frames(&block, 7, true), pieces.concat());
    }
}
