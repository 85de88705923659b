//! Field sections (RFC 9110 §5) as bytes, for sections that are looked up too rarely to be worth a map: those of
//! stored responses ([`FieldSection`]) and of replies ([`FieldLines`]).
//!
//! ```text
//! line     number (2)  name's length (2)  value's length (4)  name  value
//! number   the index of the name in a table of this process (the line then has no name), or
//!          UNLISTED (the line has the name)
//! ```
//!
//! Numbers are little-endian, and valid in this process only.

pub(crate) mod entity_tag;
mod lines;
mod names;
pub(crate) mod ranges;
mod section;

use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderName, HeaderValue};

pub(crate) use lines::FieldLines;
pub(crate) use section::FieldSection;

use names::{Listed, Number};

/// Maximum length of path and query in bytes: the `http` crate holds 65,534, of which the rest is left for a prefix that a
/// rule adds.
pub(crate) const TARGET_BYTES_MAX: usize = 63 << 10;

/// Read access to a field section.
pub(crate) trait Fields {
    /// The value of the first line with this name.
    fn get(&self, name: &HeaderName) -> Option<&[u8]> {
        self.lines(name).next()
    }

    /// Whether there is a line with this name.
    fn contains(&self, name: &HeaderName) -> bool {
        self.get(name).is_some()
    }

    /// The values of all lines with this name, as received.
    fn lines(&self, name: &HeaderName) -> impl Iterator<Item = &[u8]>;
}

/// Write access to a field section.
pub(crate) trait FieldsMut: Fields {
    /// Removes all lines with this name.
    fn remove(&mut self, name: &HeaderName);

    /// Adds a line.
    fn append(&mut self, name: &HeaderName, value: &HeaderValue);

    /// Replaces all lines with this name by one line.
    fn set(&mut self, name: &HeaderName, value: &HeaderValue) {
        self.remove(name);
        self.append(name, value);
    }
}

impl Fields for HeaderMap {
    fn get(&self, name: &HeaderName) -> Option<&[u8]> {
        Self::get(self, name).map(HeaderValue::as_bytes)
    }

    fn lines(&self, name: &HeaderName) -> impl Iterator<Item = &[u8]> {
        self.get_all(name).into_iter().map(HeaderValue::as_bytes)
    }
}

impl FieldsMut for HeaderMap {
    fn remove(&mut self, name: &HeaderName) {
        Self::remove(self, name);
    }

    fn append(&mut self, name: &HeaderName, value: &HeaderValue) {
        Self::append(self, name, value.clone());
    }
}

/// A field line.
#[derive(Clone, Copy)]
pub(crate) struct Line<'a> {
    number: Number,
    /// The length of the name, if the line has it.
    name: usize,
    /// The value; or, if the name is not in the table, the line as HTTP/1.1 writes it.
    text: &'a [u8],
}

impl<'a> Line<'a> {
    /// The name.
    #[inline]
    pub(crate) fn name(&self) -> Name<'a> {
        match self.number.listed() {
            Some(listed) => Name::Listed(listed),
            None => Name::Text(&self.text[..self.name]),
        }
    }

    /// The frequently used field that the line has; [`Known::Other`] for all others.
    #[inline]
    pub(crate) fn known(&self) -> Known {
        self.number.known()
    }

    /// The value.
    #[inline]
    pub(crate) fn value(&self) -> &'a [u8] {
        if self.number.is_listed() {
            return self.text;
        }
        &self.text[self.name + NAME_END.len()..self.text.len() - LINE_END.len()]
    }

    /// Appends the line as HTTP/1.1 writes it (RFC 9112 §5): `name: value` and the end of the line.
    #[inline]
    pub(crate) fn write(&self, bytes: &mut Vec<u8>) {
        match self.number.listed() {
            Some(listed) => {
                bytes.extend_from_slice(&listed.start);
                bytes.extend_from_slice(self.text);
                bytes.extend_from_slice(LINE_END);
            }
            None => bytes.extend_from_slice(self.text),
        }
    }
}

/// The fields that are looked for in every reply. The number of a line has them, so that a line is recognised in
/// one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are those of RFC 9110 and RFC 9111")]
pub(crate) enum Known {
    CacheControl,
    Connection,
    ContentEncoding,
    ContentLength,
    ContentRange,
    ContentType,
    Date,
    Etag,
    TransferEncoding,
    Upgrade,
    Vary,
    /// Any other field.
    Other,
}

impl Known {
    const ALL: [Self; 12] = [
        Self::CacheControl,
        Self::Connection,
        Self::ContentEncoding,
        Self::ContentLength,
        Self::ContentRange,
        Self::ContentType,
        Self::Date,
        Self::Etag,
        Self::TransferEncoding,
        Self::Upgrade,
        Self::Vary,
        Self::Other,
    ];

    fn of(name: &[u8]) -> Self {
        match name {
            b"cache-control" => Self::CacheControl,
            b"connection" => Self::Connection,
            b"content-encoding" => Self::ContentEncoding,
            b"content-length" => Self::ContentLength,
            b"content-range" => Self::ContentRange,
            b"content-type" => Self::ContentType,
            b"date" => Self::Date,
            b"etag" => Self::Etag,
            b"transfer-encoding" => Self::TransferEncoding,
            b"upgrade" => Self::Upgrade,
            b"vary" => Self::Vary,
            _ => Self::Other,
        }
    }
}

/// The set of known fields in a section.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct KnownSet(u16);

impl KnownSet {
    fn add(&mut self, known: Known) {
        self.0 |= 1 << known as u8;
    }

    fn has(self, known: Known) -> bool {
        self.0 & 1 << known as u8 != 0
    }
}

impl<'a> FromIterator<Line<'a>> for KnownSet {
    fn from_iter<I: IntoIterator<Item = Line<'a>>>(lines: I) -> Self {
        let mut set = Self::default();
        lines.into_iter().for_each(|line| set.add(line.known()));
        set
    }
}

/// The name of a line.
#[derive(Clone, Copy)]
pub(crate) enum Name<'a> {
    /// A name in the table.
    Listed(&'static Listed),
    /// Another name, in lower case.
    Text(&'a [u8]),
}

impl<'a> Name<'a> {
    /// Whether the name is equal to this one.
    #[inline]
    pub(crate) fn is(self, name: &HeaderName) -> bool {
        match self {
            Self::Listed(ours) => ours.name == name,
            Self::Text(ours) => *ours == *name.as_str().as_bytes(),
        }
    }

    /// The name in lower case.
    #[inline]
    pub(crate) fn as_bytes(self) -> &'a [u8] {
        match self {
            Self::Listed(listed) => listed.name.as_str().as_bytes(),
            Self::Text(text) => text,
        }
    }

    fn as_str(self) -> &'a str {
        std::str::from_utf8(self.as_bytes()).expect("names are ASCII")
    }

    fn to_name(self) -> HeaderName {
        match self {
            Self::Listed(listed) => listed.name.clone(),
            Self::Text(text) => HeaderName::from_lowercase(text).expect("a line has a valid name"),
        }
    }
}

/// Iterates over lines. Each starts with a number and two lengths. The value follows, if the number is that of a
/// name in the table; else the line as HTTP/1.1 writes it.
#[derive(Clone, Copy)]
struct Walk<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Walk<'a> {
    type Item = Line<'a>;

    #[inline]
    fn next(&mut self) -> Option<Line<'a>> {
        let (start, rest) = self.rest.split_first_chunk::<START_BYTES>()?;
        let [a, b, c, d, length @ ..] = *start;
        let (number, name) = (Number::read([a, b]), usize::from(u16::from_le_bytes([c, d])));
        let (text, rest) = rest.split_at(u32::from_le_bytes(length) as usize);
        self.rest = rest;
        Some(Line { number, name, text })
    }
}

/// Appends a line that has its name; `write` appends the value.
fn push_line(block: &mut Vec<u8>, name: &HeaderName, write: impl FnOnce(&mut Vec<u8>)) -> Known {
    let (start, name) = (block.len(), name.as_str().as_bytes());
    let number = Number::unlisted(name);
    block.extend_from_slice(&start_of(number, name.len(), 0));
    block.extend_from_slice(name);
    block.extend_from_slice(NAME_END);
    write(block);
    block.extend_from_slice(LINE_END);
    let text = start + START_BYTES;
    let length = block.len() - text;
    block[start..text].copy_from_slice(&start_of(number, name.len(), length));
    number.known()
}

fn start_of(number: Number, name: usize, text: usize) -> [u8; START_BYTES] {
    let [a, b] = number.bytes();
    // The http crate limits the length of a name to 65,535.
    let [c, d] = u16::try_from(name).expect("a name is shorter").to_le_bytes();
    let [e, f, g, h] = u32::try_from(text).expect("a section is far shorter").to_le_bytes();
    [a, b, c, d, e, f, g, h]
}

/// The members of a line of a list field without quoted strings, without whitespace around them (RFC 9110
/// §5.6.1).
pub(crate) fn members(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(line);
    let member = move || {
        let line = rest?;
        let comma = memchr::memchr(b',', line);
        rest = comma.map(|comma| &line[comma + 1..]);
        Some(line[..comma.unwrap_or(line.len())].trim_ascii())
    };
    std::iter::from_fn(member).filter(|member| !member.is_empty())
}

/// Whether CGI, WSGI and PHP take the field `name` for another one, `wanted`: `X_Device` for `X-Device`.
pub(crate) fn passes_for(name: &HeaderName, wanted: &HeaderName) -> bool {
    let folded = |byte: u8| if byte == b'_' { b'-' } else { byte };
    let (name, wanted) = (name.as_str(), wanted.as_str());
    name.len() == wanted.len()
        && name != wanted
        && name.bytes().map(folded).eq(wanted.bytes().map(folded))
}

/// Whether a `Content-Type` is that of a gRPC call, with or without a message format
/// (`application/grpc+proto`).
pub(crate) fn is_grpc(content_type: &[u8]) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let media_type = content_type.get(..GRPC.len());
    media_type.is_some_and(|media_type| media_type.eq_ignore_ascii_case(GRPC))
        && matches!(content_type.get(GRPC.len()), None | Some(b'+' | b';' | b' '))
}

/// The content's length in bytes by `Content-Length`: digits alone, without sign, list or space (RFC 9110 §8.6).
/// `None`: the field is absent or has another value.
pub(crate) fn content_length(fields: &impl Fields) -> Option<u64> {
    number(fields.get(&CONTENT_LENGTH)?)
}

/// Parses a number of decimal digits, such as the parts of `Content-Range`.
pub(crate) fn number(digits: &[u8]) -> Option<u64> {
    let digit = |number: u64, byte: &u8| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        number.checked_mul(10)?.checked_add(u64::from(digit))
    };
    if digits.is_empty() { None } else { digits.iter().try_fold(0, digit) }
}

/// Parses a weight (RFC 9110 §12.4.2), in thousandths: `0` or `1`, and up to three decimals (none but zeros after a one).
pub(crate) fn qvalue(text: &[u8]) -> Option<u16> {
    let (whole, decimals) = match text {
        [whole] => (whole, &[][..]),
        [whole, b'.', decimals @ ..] => (whole, decimals),
        _ => return None,
    };
    if decimals.len() > 3 || !decimals.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let padded = decimals.iter().chain(std::iter::repeat(&b'0')).take(3);
    let fraction = padded.fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
    match whole {
        b'0' => Some(fraction),
        b'1' if fraction == 0 => Some(1000),
        _ => None,
    }
}

/// The number and the two lengths.
const START_BYTES: usize = 8;
const NAME_END: &[u8] = b": ";
const LINE_END: &[u8] = b"\r\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_stand_between_commas() {
        let of = |line: &'static str| -> Vec<_> { members(line.as_bytes()).collect() };
        assert_eq!(of("a, b c\t,,d"), [b"a".as_slice(), b"b c", b"d"]);
        assert_eq!(of("a"), [b"a"]);
        assert!(of("").is_empty() && of(" , ").is_empty());
    }

    #[test]
    fn a_name_passes_for_another_one_that_differs_in_its_dashes() {
        let check = |name: &str, wanted: &str, expected| {
            let name_of = |text: &str| text.parse::<HeaderName>().expect("a name");
            assert_eq!(passes_for(&name_of(name), &name_of(wanted)), expected, "{name} {wanted}");
        };
        check("x_device", "x-device", true);
        check("X-Real_Ip", "x_real-ip", true);
        check("x-device", "x-device", false);
        check("x_device", "x-devices", false);
        check("xdevice", "x-device", false);
    }

    #[test]
    fn a_content_length_is_one_number() {
        let check = |value: &'static str, expected| {
            let headers = HeaderMap::from_iter([(CONTENT_LENGTH, HeaderValue::from_static(value))]);
            assert_eq!(content_length(&headers), expected, "{value:?}");
        };
        check("0", Some(0));
        check("00300", Some(300));
        for wrong in ["", "+5", "-5", "5, 5", "5 ", "0x5", "5.0", "18446744073709551616"] {
            check(wrong, None);
        }
        assert_eq!(content_length(&HeaderMap::new()), None);
    }

    #[test]
    fn a_number_is_digits_and_nothing_else() {
        let check = |text: &str, expected| assert_eq!(number(text.as_bytes()), expected, "{text}");
        check("0", Some(0));
        check("0042", Some(42));
        check("18446744073709551615", Some(u64::MAX));
        check("18446744073709551616", None);
        for none in ["", "+5", "-1", " 5", "5 ", "5, 5", "0x5", "٣"] {
            check(none, None);
        }
    }
}
