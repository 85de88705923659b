//! The streams of an HTTP/2 connection that are open for frames from the client (RFC 9113 §5.1).

use h2::Reason;

/// The streams of one connection that their client has opened and not ended.
#[derive(Debug, Default)]
pub(super) struct OpenStreams {
    /// The highest stream that was opened.
    last: u32,
    /// Open streams in ascending order. A request without content is never in it.
    open: Vec<u32>,
    /// Streams up to this number may have been removed from `open`; frames on them are left to the h2 crate.
    forgotten: u32,
    /// The client has skipped a number, so that a stream below `last` may be idle instead of closed.
    has_gaps: bool,
}

impl OpenStreams {
    /// Takes a HEADERS frame. Returns whether it has trailers.
    pub(super) fn headers(&mut self, stream: u32, is_end: bool) -> Result<bool, Reason> {
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
            // A new stream must have a higher number than all before (§5.1.1).
            _ if self.has_gaps => Err(Reason::PROTOCOL_ERROR),
            _ => Err(Reason::STREAM_CLOSED),
        }
    }

    /// Takes a DATA frame.
    pub(super) fn data(&mut self, stream: u32, is_end: bool) -> Result<(), Reason> {
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
        // The client need not end streams that the node has reset, so they may stay in the list.
        if self.open.len() == OPEN_MAX {
            let oldest: Vec<u32> = self.open.drain(..OPEN_MAX / 2).collect();
            self.forgotten = oldest.last().copied().unwrap_or_default();
        }
        self.open.push(stream);
    }

    /// Ends a stream.
    pub(super) fn end(&mut self, stream: u32) {
        if let Ok(at) = self.open.binary_search(&stream) {
            self.open.remove(at);
        }
    }
}

/// At this many open streams, half of them are forgotten.
const OPEN_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_that_we_ended_are_forgotten_in_time() {
        let mut streams = OpenStreams::default();
        for at in 0..10_000 {
            assert_eq!(streams.headers(2 * at + 1, false), Ok(false));
            assert!(streams.open.len() <= OPEN_MAX);
        }
        assert_eq!(streams.data(1, true), Ok(()), "nobody knows");
        assert_eq!(streams.data(19_999, true), Ok(()));
        assert_eq!(streams.data(19_999, true), Err(Reason::STREAM_CLOSED));
    }
}
