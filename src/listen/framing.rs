//! Where the messages of an HTTP/1 connection begin and end, seen from below hyper.
//!
//! hyper takes a line that ends in a bare LF; some proxies do and some don't, and that is one
//! half of a smuggled request (RFC 9112 §2.2, §11.2). Above hyper it can't be seen any more.
//! So this tracker follows the bytes on their way in: in a head every LF must follow a CR, and
//! at most one field may say how the body is framed (hyper drops a length that stands beside
//! chunks, and joins lengths that are equal); a body is as long as **hyper** says, who is asked
//! at each request, so that the two can't disagree. It hands on at most one head at a time,
//! because only when that head was parsed is it known what the bytes behind it are.
//!
//! ```text
//! Head ──CRLF CRLF──▶ Parsed ──length n──▶ Body(n) ──▶ Head
//!   │                   ├──────chunked──▶ Chunked ──▶ Head
//!   ▼ bare LF, two      └──────nothing──▶ Head
//!   ▼ framing fields
//! Refused
//! ```

/// How the body behind a head is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyFraming {
    /// So many bytes; zero for no body.
    Length(u64),
    /// Chunks (RFC 9112 §7.1).
    Chunked,
}

/// What to do with the bytes that were looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passed {
    /// All of them may go on.
    All,
    /// So many may go on; what follows waits until the head's framing is told.
    UpTo(usize),
    /// The byte at this place is not HTTP. Nothing from there on may be taken.
    Refused(usize),
}

/// Follows one connection.
#[derive(Debug, Default)]
pub(super) struct Framing(State);

#[derive(Debug)]
enum State {
    Head(Head),
    Parsed,
    Body(u64),
    Chunked(Chunked),
    Refused,
}

impl Default for State {
    fn default() -> Self {
        Self::Head(Head::default())
    }
}

/// A head of which some bytes may have come.
#[derive(Debug, Default)]
struct Head {
    /// The byte before the next one.
    last: u8,
    /// Bytes of the line under way.
    line: usize,
    /// Whether a line with something in it has ended: an empty one now ends the head.
    started: bool,
    /// The framing field whose name the line under way has spelled so far.
    spelling: Option<&'static [u8]>,
    /// Whether a field has said how the body is framed.
    framed: bool,
}

impl Framing {
    /// Looks at the bytes that came next.
    pub(super) fn follow(&mut self, bytes: &[u8]) -> Passed {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            match &mut self.0 {
                State::Head(head) => match head.follow(rest) {
                    Step::More => return Passed::All,
                    Step::End(length) => {
                        at += length;
                        self.0 = State::Parsed;
                    }
                    Step::Wrong(place) => return self.refuse(at + place),
                },
                State::Parsed => return Passed::UpTo(at),
                State::Body(left) if (rest.len() as u64) < *left => {
                    *left -= rest.len() as u64;
                    return Passed::All;
                }
                State::Body(left) => {
                    at += *left as usize;
                    self.0 = State::default();
                }
                State::Chunked(chunked) => match chunked.follow(rest) {
                    Step::More => return Passed::All,
                    Step::End(length) => {
                        at += length;
                        self.0 = State::default();
                    }
                    Step::Wrong(place) => return self.refuse(at + place),
                },
                State::Refused => return Passed::Refused(at),
            }
        }
        Passed::All
    }

    /// Tells how the body behind the head is framed. Only heads that were handed on whole
    /// are parsed, so at any other moment this is a disagreement: nothing more is taken.
    pub(super) fn tell(&mut self, body: BodyFraming) {
        self.0 = match (&self.0, body) {
            (State::Parsed, BodyFraming::Length(0)) => State::default(),
            (State::Parsed, BodyFraming::Length(bytes)) => State::Body(bytes),
            (State::Parsed, BodyFraming::Chunked) => State::Chunked(Chunked::default()),
            _ => State::Refused,
        };
    }

    /// Whether a head was handed on whose framing is not known yet.
    pub(super) fn awaits_framing(&self) -> bool {
        matches!(self.0, State::Parsed)
    }

    /// Whether the connection stands between two messages.
    pub(super) fn between_messages(&self) -> bool {
        matches!(&self.0, State::Head(head) if !head.started && head.line == 0)
    }

    /// Whether a head is under way.
    pub(super) fn in_head(&self) -> bool {
        matches!(self.0, State::Head(_)) && !self.between_messages()
    }

    fn refuse(&mut self, place: usize) -> Passed {
        self.0 = State::Refused;
        Passed::Refused(place)
    }
}

/// What a part of a message made of the bytes.
enum Step {
    /// It goes on beyond them.
    More,
    /// It ended after so many.
    End(usize),
    /// The byte at this place can't stand there.
    Wrong(usize),
}

impl Head {
    fn follow(&mut self, bytes: &[u8]) -> Step {
        let mut line_start = 0;
        for lf in memchr::memchr_iter(b'\n', bytes) {
            let before = if lf == 0 { self.last } else { bytes[lf - 1] };
            if before != b'\r' {
                return Step::Wrong(lf);
            }
            if self.frames_again(&bytes[line_start..lf]) {
                return Step::Wrong(lf);
            }
            let line = self.line + (lf - line_start);
            (self.line, line_start) = (0, lf + 1);
            match (line == CR, self.started) {
                (true, true) => return Step::End(line_start),
                // Empty lines before the start line are passed over (RFC 9112 §2.2).
                (true, false) => {}
                (false, _) => self.started = true,
            }
        }
        if self.frames_again(&bytes[line_start..]) {
            return Step::Wrong(line_start);
        }
        self.line += bytes.len() - line_start;
        self.last = bytes.last().copied().unwrap_or(self.last);
        Step::More
    }

    /// Looks at the next part of a line. True when it is the second one that says how the body
    /// is framed: `Content-Length` beside `Transfer-Encoding`, or one of them twice
    /// (RFC 9112 §6.3). One look at the first byte of most lines.
    fn frames_again(&mut self, part: &[u8]) -> bool {
        if self.line == 0 {
            self.spelling = match part.first() {
                Some(b'c' | b'C') => Some(CONTENT_LENGTH),
                Some(b't' | b'T') => Some(TRANSFER_ENCODING),
                _ => None,
            };
        }
        let Some(name) = self.spelling else { return false };
        let rest = &name[self.line..];
        let length = rest.len().min(part.len());
        if !part[..length].eq_ignore_ascii_case(&rest[..length]) {
            self.spelling = None;
        } else if length == rest.len() {
            self.spelling = None;
            return std::mem::replace(&mut self.framed, true);
        }
        false
    }
}

/// The CR of an empty line.
const CR: usize = 1;
/// hyper takes no space before the colon.
const CONTENT_LENGTH: &[u8] = b"content-length:";
const TRANSFER_ENCODING: &[u8] = b"transfer-encoding:";

/// A chunked body. hyper reads it too and is the stricter one: what it takes, it frames as
/// is done here.
#[derive(Debug, Default)]
struct Chunked {
    at: InChunk,
    /// The size read so far, then the bytes left of the data.
    size: u64,
    /// Digits of the size.
    digits: u32,
}

#[derive(Clone, Copy, Debug, Default)]
enum InChunk {
    #[default]
    FirstDigit,
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the beginning of a trailer line.
    Trailer,
    TrailerLine,
    TrailerLf,
    EndLf,
}

impl Chunked {
    fn follow(&mut self, bytes: &[u8]) -> Step {
        let mut at = 0;
        while at < bytes.len() {
            if let InChunk::Data = self.at {
                let here = self.size.min((bytes.len() - at) as u64);
                self.size -= here;
                at += here as usize;
                if self.size == 0 {
                    self.at = InChunk::DataCr;
                }
                continue;
            }
            if let (InChunk::EndLf, b'\n') = (self.at, bytes[at]) {
                return Step::End(at + 1);
            }
            match self.next(bytes[at]) {
                Some(next) => self.at = next,
                None => return Step::Wrong(at),
            }
            at += 1;
        }
        Step::More
    }

    fn next(&mut self, byte: u8) -> Option<InChunk> {
        use InChunk::*;
        Some(match (self.at, byte) {
            (FirstDigit | Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16).expect("matched as a hex digit");
                self.size = self.size.checked_mul(16)?.checked_add(digit.into())?;
                self.digits = if let FirstDigit = self.at { 1 } else { self.digits + 1 };
                // Zeros in front add nothing, and would never end.
                return (self.digits <= SIZE_DIGITS_MAX).then_some(Size);
            }
            (Size | Extension, b'\r') => SizeLf,
            (Size, b' ' | b'\t' | b';') => Extension,
            (Extension, byte) if byte == b'\t' || !byte.is_ascii_control() => Extension,
            (SizeLf, b'\n') if self.size == 0 => Trailer,
            (SizeLf, b'\n') => Data,
            (DataCr, b'\r') => DataLf,
            (DataLf, b'\n') => FirstDigit,
            (Trailer, b'\r') => EndLf,
            (TrailerLine, b'\r') => TrailerLf,
            (Trailer | TrailerLine, byte) if byte != b'\n' => TrailerLine,
            (TrailerLf, b'\n') => Trailer,
            _ => return None,
        })
    }
}

/// Those of the largest number that hyper takes.
const SIZE_DIGITS_MAX: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    fn followed(bytes: &[u8]) -> Passed {
        Framing::default().follow(bytes)
    }

    #[test]
    fn a_head_ends_at_its_empty_line_and_what_follows_waits() {
        assert_eq!(followed(GET), Passed::All);
        let two = [GET, GET].concat();
        let mut framing = Framing::default();
        assert_eq!(framing.follow(&two), Passed::UpTo(GET.len()));
        framing.tell(BodyFraming::Length(0));
        assert_eq!(framing.follow(&two[GET.len()..]), Passed::All);
        assert!(framing.awaits_framing());
    }

    #[test]
    fn a_bare_lf_is_refused_wherever_it_stands_in_a_head() {
        assert_eq!(followed(b"GET / HTTP/1.1\nHost: a\r\n\r\n"), Passed::Refused(14));
        assert_eq!(followed(b"GET / HTTP/1.1\r\nHost: a\n\r\n"), Passed::Refused(23));
        assert_eq!(followed(b"GET / HTTP/1.1\r\nHost: a\r\n\n"), Passed::Refused(25));
        assert_eq!(followed(b"\nGET / HTTP/1.1\r\n"), Passed::Refused(0));
        assert_eq!(followed(b"GET / HTTP/1.1\r\n\r\n\n"), Passed::UpTo(18));
    }

    /// The second field that frames the body is refused, wherever the bytes are cut.
    #[track_caller]
    fn check_framed_twice(fields: &str, refused: bool) {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n");
        for cut in 1..head.len() {
            let mut framing = Framing::default();
            let (first, second) = head.as_bytes().split_at(cut);
            let taken = [framing.follow(first), framing.follow(second)];
            let is_refused = taken.iter().any(|passed| matches!(passed, Passed::Refused(_)));
            assert_eq!(is_refused, refused, "{fields:?} cut at {cut}");
        }
    }

    #[test]
    fn one_field_alone_says_how_the_body_is_framed() {
        check_framed_twice("Content-Length: 5", false);
        check_framed_twice("transfer-encoding: chunked", false);
        check_framed_twice("Content-Length: 5\r\nTransfer-Encoding: chunked", true);
        check_framed_twice("TRANSFER-ENCODING:chunked\r\nX: y\r\ncontent-length:5", true);
        check_framed_twice("Content-Length: 5\r\nContent-Length: 5", true);
        check_framed_twice("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", true);
        check_framed_twice("Content-Length: 5\r\nContent-Length-Hint: 5\r\nContent: 1", false);
        check_framed_twice("Content-Length: 5\r\nX-Content-Length: 5\r\nT: 1\r\nC: 1", false);
        // Each head begins anew.
        let mut framing = Framing::default();
        for _ in 0..2 {
            assert_eq!(framing.follow(b"PUT / HTTP/1.1\r\nContent-Length: 1\r\n\r\n"), Passed::All);
            framing.tell(BodyFraming::Length(1));
            assert_eq!(framing.follow(b"x"), Passed::All);
        }
    }

    #[test]
    fn empty_lines_before_the_start_line_are_no_head() {
        assert_eq!(followed(&[b"\r\n\r\n", GET, b"x"].concat()), Passed::UpTo(4 + GET.len()));
    }

    #[test]
    fn a_body_is_as_long_as_it_was_said_to_be() {
        let mut framing = Framing::default();
        assert_eq!(framing.follow(b"POST / HTTP/1.1\r\n\r\n"), Passed::All);
        framing.tell(BodyFraming::Length(5));
        // A bare LF in a body is a byte like any other.
        assert_eq!(framing.follow(b"a\nb"), Passed::All);
        assert_eq!(framing.follow(&[b"cd", GET, GET].concat()), Passed::UpTo(2 + GET.len()));
    }

    #[test]
    fn a_chunked_body_ends_after_its_trailers() {
        let body = b"5;a=b\r\nhe\nlo\r\n1 \r\nx\r\n0\r\nA: b\r\n\r\n";
        let mut framing = Framing::default();
        framing.follow(b"POST / HTTP/1.1\r\n\r\n");
        framing.tell(BodyFraming::Chunked);
        assert_eq!(
            framing.follow(&[body, GET, b"x"].concat()),
            Passed::UpTo(body.len() + GET.len())
        );
    }

    #[test]
    fn chunks_that_are_not_framed_by_the_book_are_refused() {
        let wrong: [(&[u8], usize); 9] = [
            (b"\r\n", 0),
            (b"0x1\r\n", 1),
            (b"1\nx", 1),
            (b"1\r\nxy", 4),
            (b"0\r\nA: b\n", 7),
            (b"10000000000000000\r\n", 16),
            (b"00000000000000001\r\n", 16),
            (b"1;a\0\r\n", 3),
            (b"1;a\rb\n", 4),
        ];
        for (body, place) in wrong {
            let mut framing = Framing::default();
            framing.follow(b"POST / HTTP/1.1\r\n\r\n");
            framing.tell(BodyFraming::Chunked);
            assert_eq!(framing.follow(body), Passed::Refused(place), "{body:?}");
        }
    }

    #[test]
    fn framing_told_at_the_wrong_moment_ends_the_connection() {
        let mut framing = Framing::default();
        framing.tell(BodyFraming::Length(0));
        assert_eq!(framing.follow(GET), Passed::Refused(0));
    }

    #[test]
    fn how_the_bytes_are_cut_changes_nothing() {
        let body = b"3\r\nabc\r\n0\r\n\r\n";
        let whole = [b"POST / HTTP/1.1\r\nA: b\r\n\r\n".as_slice(), body, GET].concat();
        for cut in 1..whole.len() {
            let mut framing = Framing::default();
            let mut taken = 0;
            let mut heads = 0;
            while taken < whole.len() {
                if framing.awaits_framing() {
                    framing.tell(if heads == 1 {
                        BodyFraming::Chunked
                    } else {
                        BodyFraming::Length(0)
                    });
                }
                let end = if taken < cut { cut } else { whole.len() };
                match framing.follow(&whole[taken..end]) {
                    Passed::All => taken = end,
                    Passed::UpTo(length) => taken += length,
                    Passed::Refused(place) => panic!("cut {cut}: refused at {}", taken + place),
                }
                heads += usize::from(framing.awaits_framing());
            }
            assert_eq!(heads, 2, "cut {cut}");
        }
    }
}
