//! The chunked coding of a request's body (RFC 9112 §7.1), read strictly.

use std::ops::Range;

use super::super::settings::Limits;

/// Where in a chunked body the next byte stands.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    at: At,
    /// The size read so far, then the bytes left of the data.
    size: u64,
    /// Digits of the size.
    digits: u32,
    /// Bytes of extensions, which mean nothing to us, in the whole body.
    extensions: usize,
    /// The trailer section, until it is whole. Its fields are dropped, but they must be fields.
    trailers: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
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

/// What some bytes hold.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decoded {
    /// Content. What stands before it is used too.
    Data(Range<usize>),
    /// Nothing yet; all the bytes are used.
    More,
    /// The body's end, after so many bytes.
    End(usize),
    /// This is not the chunked coding.
    Wrong,
}

impl Chunks {
    /// Looks at the bytes that come next, until there is content.
    pub(super) fn decode(&mut self, bytes: &[u8], limits: &Limits) -> Decoded {
        for (place, &byte) in bytes.iter().enumerate() {
            if self.at == At::Data {
                let length = self.size.min((bytes.len() - place) as u64);
                self.size -= length;
                if self.size == 0 {
                    self.at = At::DataCr;
                }
                return Decoded::Data(place..place + length as usize);
            }
            let Some(next) = self.next(byte) else { return Decoded::Wrong };
            if matches!(next, At::Extension) {
                self.extensions += 1;
            }
            if self.in_trailers() {
                self.trailers.push(byte);
            }
            if self.extensions > EXTENSION_BYTES_MAX
                || self.trailers.len() > limits.header_bytes_max
            {
                return Decoded::Wrong;
            }
            if self.at == At::EndLf {
                let are_fields = self.trailers_are_fields(limits);
                return if are_fields { Decoded::End(place + 1) } else { Decoded::Wrong };
            }
            self.at = next;
        }
        Decoded::More
    }

    fn in_trailers(&self) -> bool {
        matches!(self.at, At::Trailer | At::TrailerLine | At::TrailerLf | At::EndLf)
    }

    fn trailers_are_fields(&self, limits: &Limits) -> bool {
        if self.trailers.len() == EMPTY_LINE {
            return true;
        }
        let mut fields = vec![httparse::EMPTY_HEADER; limits.headers_max];
        httparse::parse_headers(&self.trailers, &mut fields)
            .is_ok_and(|parsed| parsed.is_complete())
    }

    fn next(&mut self, byte: u8) -> Option<At> {
        Some(match (self.at, byte) {
            (At::FirstDigit | At::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16).expect("matched as a hex digit");
                self.size = self.size.checked_mul(16)?.checked_add(digit.into())?;
                self.digits = if self.at == At::FirstDigit { 1 } else { self.digits + 1 };
                // Zeros in front add nothing, and would never end.
                return (self.digits <= SIZE_DIGITS_MAX).then_some(At::Size);
            }
            (At::Size | At::Extension, b'\r') => At::SizeLf,
            (At::Size, b';') => At::Extension,
            (At::Extension, byte) if byte == b'\t' || !byte.is_ascii_control() => At::Extension,
            (At::SizeLf, b'\n') if self.size == 0 => At::Trailer,
            (At::SizeLf, b'\n') => At::Data,
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::FirstDigit,
            (At::Trailer, b'\r') => At::EndLf,
            (At::TrailerLine, b'\r') => At::TrailerLf,
            (At::Trailer | At::TrailerLine, byte) if byte != b'\n' => At::TrailerLine,
            (At::TrailerLf, b'\n') => At::Trailer,
            (At::EndLf, b'\n') => At::EndLf,
            _ => return None,
        })
    }
}

/// Those of the largest number.
const SIZE_DIGITS_MAX: u32 = 16;
/// Nobody sends them; who sends many means no good.
const EXTENSION_BYTES_MAX: usize = 16 << 10;
/// The trailer section without trailers.
const EMPTY_LINE: usize = 2;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The content, and how many bytes the body takes; `None` when it is wrong.
    fn decoded(pieces: &[&[u8]]) -> Option<(Vec<u8>, Option<usize>)> {
        let (mut chunks, limits) = (Chunks::default(), Limits::default());
        let (mut content, mut before) = (Vec::new(), 0);
        for piece in pieces {
            let mut used = 0;
            while used < piece.len() {
                match chunks.decode(&piece[used..], &limits) {
                    Decoded::Data(range) => {
                        content.extend_from_slice(&piece[used..][range.clone()]);
                        used += range.end;
                    }
                    Decoded::More => used = piece.len(),
                    Decoded::End(length) => return Some((content, Some(before + used + length))),
                    Decoded::Wrong => return None,
                }
            }
            before += piece.len();
        }
        Some((content, None))
    }

    #[test]
    fn a_body_ends_after_its_trailers_however_it_is_cut() {
        let body = b"5;a=b\r\nhe\nlo\r\n1\r\nx\r\n0\r\nA: b\r\n\r\n".as_slice();
        let whole = [body, b"GET / HTTP/1.1"].concat();
        for cut in 0..whole.len() {
            let (first, second) = whole.split_at(cut);
            let expected = Some((b"he\nlox".to_vec(), Some(body.len())));
            assert_eq!(decoded(&[first, second]), expected, "cut at {cut}");
        }
        assert_eq!(decoded(&[b"0\r\n\r\n"]), Some((Vec::new(), Some(5))));
        assert_eq!(decoded(&[b"5\r\nab"]), Some((b"ab".to_vec(), None)));
    }

    #[test]
    fn what_is_not_framed_by_the_book_is_wrong() {
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
            assert_eq!(decoded(&[body]), None, "{body:?}");
        }
    }

    #[test]
    fn extensions_and_trailers_have_an_end() {
        let extended = [b"1;".as_slice(), &b"a".repeat(EXTENSION_BYTES_MAX + 1)].concat();
        assert_eq!(decoded(&[&extended]), None);
        let many = [b"0\r\n".as_slice(), &b"A: b\r\n".repeat(101), b"\r\n"].concat();
        assert_eq!(decoded(&[&many]), None);
        let long = [b"0\r\nA: ".as_slice(), &b"b".repeat(40 << 10)].concat();
        assert_eq!(decoded(&[&long]), None);
    }

    /// The simplest reader there is: of what it takes, ours must take the same content.
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
            let whole = decoded(&[&bytes]);
            let (first, second) = bytes.split_at(cut.index(bytes.len() + 1));
            prop_assert_eq!(&decoded(&[first, second]), &whole);
            if let Some((content, Some(_))) = whole {
                prop_assert_eq!(Some(content), read_simply(&bytes));
            }
        }
    }
}
