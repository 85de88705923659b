//! Decodes the chunked transfer coding of a request's body (RFC 9112 §7.1), strictly.

use std::ops::Range;

use super::super::settings::Limits;

/// The state of the decoder between two bytes.
#[derive(Debug, Default)]
pub(super) struct ChunkDecoder {
    at: Position,
    /// The chunk size read so far, then the bytes left of the chunk's data.
    size: u64,
    /// Digits of the chunk size.
    digits: u32,
    /// Bytes of chunk extensions, which are ignored, in the whole body.
    extensions: usize,
    /// The trailer section. It is checked when it is complete, and dropped.
    trailers: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Position {
    #[default]
    FirstDigit,
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the start of a trailer line.
    Trailer,
    TrailerLine,
    TrailerLf,
    EndLf,
}

/// The next part of the body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decoded {
    /// Content in this range. All bytes before its end are used.
    Data(Range<usize>),
    /// No content; all bytes are used.
    More,
    /// The body's end, after this many bytes.
    End(usize),
    /// The bytes are not valid.
    Invalid,
}

impl ChunkDecoder {
    /// Decodes the next bytes, up to the first content.
    pub(super) fn decode(&mut self, bytes: &[u8], limits: &Limits) -> Decoded {
        for (place, &byte) in bytes.iter().enumerate() {
            if self.at == Position::Data {
                let length = self.size.min((bytes.len() - place) as u64);
                self.size -= length;
                if self.size == 0 {
                    self.at = Position::DataCr;
                }
                return Decoded::Data(place..place + length as usize);
            }
            let Some(next) = self.next(byte) else { return Decoded::Invalid };
            if matches!(next, Position::Extension) {
                self.extensions += 1;
            }
            if self.in_trailers() {
                self.trailers.push(byte);
            }
            if self.extensions > EXTENSION_BYTES_MAX
                || self.trailers.len() > limits.header_bytes_max
            {
                return Decoded::Invalid;
            }
            if self.at == Position::EndLf {
                let are_fields = self.trailers_are_fields(limits);
                return if are_fields { Decoded::End(place + 1) } else { Decoded::Invalid };
            }
            self.at = next;
        }
        Decoded::More
    }

    fn in_trailers(&self) -> bool {
        matches!(
            self.at,
            Position::Trailer | Position::TrailerLine | Position::TrailerLf | Position::EndLf
        )
    }

    fn trailers_are_fields(&self, limits: &Limits) -> bool {
        if self.trailers.len() == EMPTY_LINE {
            return true;
        }
        let mut fields = vec![httparse::EMPTY_HEADER; limits.headers_max];
        httparse::parse_headers(&self.trailers, &mut fields)
            .is_ok_and(|parsed| parsed.is_complete())
    }

    fn next(&mut self, byte: u8) -> Option<Position> {
        Some(match (self.at, byte) {
            (Position::FirstDigit | Position::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16).expect("matched as a hex digit");
                self.size = self.size.checked_mul(16)?.checked_add(digit.into())?;
                self.digits = if self.at == Position::FirstDigit { 1 } else { self.digits + 1 };
                // Leading zeros count: they could go on without end.
                return (self.digits <= SIZE_DIGITS_MAX).then_some(Position::Size);
            }
            (Position::Size | Position::Extension, b'\r') => Position::SizeLf,
            (Position::Size, b';') => Position::Extension,
            (Position::Extension, byte) if byte == b'\t' || !byte.is_ascii_control() => {
                Position::Extension
            }
            (Position::SizeLf, b'\n') if self.size == 0 => Position::Trailer,
            (Position::SizeLf, b'\n') => Position::Data,
            (Position::DataCr, b'\r') => Position::DataLf,
            (Position::DataLf, b'\n') => Position::FirstDigit,
            (Position::Trailer, b'\r') => Position::EndLf,
            (Position::TrailerLine, b'\r') => Position::TrailerLf,
            (Position::Trailer | Position::TrailerLine, byte) if byte != b'\n' => {
                Position::TrailerLine
            }
            (Position::TrailerLf, b'\n') => Position::Trailer,
            (Position::EndLf, b'\n') => Position::EndLf,
            _ => return None,
        })
    }
}

/// The digits of the largest size.
const SIZE_DIGITS_MAX: u32 = 16;
/// Extensions are hardly used; a client that sends many is attacking.
const EXTENSION_BYTES_MAX: usize = 16 << 10;
/// The trailer section without trailers.
const EMPTY_LINE: usize = 2;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fuzz::decode;
    use super::*;

    #[test]
    fn a_body_ends_after_its_trailers_however_it_is_cut() {
        let body = b"5;a=b\r\nhe\nlo\r\n1\r\nx\r\n0\r\nA: b\r\n\r\n".as_slice();
        let whole = [body, b"GET / HTTP/1.1"].concat();
        for cut in 0..whole.len() {
            let (first, second) = whole.split_at(cut);
            let expected = Some((b"he\nlox".to_vec(), Some(body.len())));
            assert_eq!(decode(&[first, second]), expected, "cut at {cut}");
        }
        assert_eq!(decode(&[b"0\r\n\r\n"]), Some((Vec::new(), Some(5))));
        assert_eq!(decode(&[b"5\r\nab"]), Some((b"ab".to_vec(), None)));
    }

    #[test]
    fn chunks_that_break_the_grammar_are_invalid() {
        for body in [
            b"\r\n".as_slice(),
            b"0x1\r\n",
            b"1 \r\nx\r\n",
            b"1\nx",
            b"1\r\nxy",
            b"0\r\nA: b\n",
            b"0\r\nA : b\r\n\r\n",
            b"0\r\n A: b\r\n\r\n",
            b"0\r\nA\0: b\r\n\r\n",
            b"0\r\n\rx",
            b"10000000000000000\r\n",
            b"00000000000000001\r\n",
            b"1;a\0\r\n",
            b"1;a\rb\n",
        ] {
            assert_eq!(decode(&[body]), None, "{body:?}");
        }
    }

    #[test]
    fn extensions_and_trailers_have_an_end() {
        let extended = [b"1;".as_slice(), &b"a".repeat(EXTENSION_BYTES_MAX + 1)].concat();
        assert_eq!(decode(&[&extended]), None);
        let many = [b"0\r\n".as_slice(), &b"A: b\r\n".repeat(101), b"\r\n"].concat();
        assert_eq!(decode(&[&many]), None);
        let long = [b"0\r\nA: ".as_slice(), &b"b".repeat(40 << 10)].concat();
        assert_eq!(decode(&[&long]), None);
    }

    /// A simple decoder. Whatever both accept must have the same content.
    fn read_simply(mut bytes: &[u8]) -> Option<Vec<u8>> {
        let mut content = Vec::new();
        loop {
            let line = bytes.split(|byte| *byte == b'\n').next()?;
            let text = std::str::from_utf8(line.strip_suffix(b"\r")?).ok()?;
            let size = usize::from_str_radix(text.split(';').next()?, 16).ok()?;
            bytes = bytes.get(line.len() + 1..)?;
            if size == 0 {
                return Some(content);
            }
            content.extend_from_slice(bytes.get(..size)?);
            bytes = bytes.get(size..)?.strip_prefix(b"\r\n")?;
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn no_chunks_have_two_readings(
            words in proptest::collection::vec(
                proptest::sample::select(vec![
                    "3\r\nabc\r\n", "1\r\n\n\r\n", "0\r\n", "\r\n", "\n", "\r", "0", "3", "a", ";x=y", ";", " ",
                    "A: b\r\n", "ffffffffffffffff", "\0", "00003\r\nabc\r\n",
                ]),
                0..12,
            ),
            cut in any::<prop::sample::Index>(),
        ) {
            let bytes = words.concat().into_bytes();
            let whole = decode(&[&bytes]);
            let (first, second) = bytes.split_at(cut.index(bytes.len() + 1));
            prop_assert_eq!(&decode(&[first, second]), &whole);
            if let Some((content, Some(_))) = whole {
                prop_assert_eq!(Some(content), read_simply(&bytes));
            }
        }
    }
}
