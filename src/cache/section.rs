//! A field section as it is stored, and what rules read of any: one block of bytes where a map
//! costs more than it saves.
//!
//! ```text
//! block    line*
//! line     number (2)  value's length (4)  [name's length (2)  name]  value
//! number   the name's place in a table of this process; UNLISTED: its text stands in the line
//! ```
//!
//! Numbers are little-endian, and mean nothing outside of this process.

use std::collections::HashMap;
use std::sync::{OnceLock, PoisonError, RwLock};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

/// What rules read of a field section (RFC 9110 §5), be it stored or on its way.
pub trait Fields {
    /// The first line of this name.
    fn get(&self, name: &HeaderName) -> Option<&[u8]> {
        self.lines(name).next()
    }

    /// All lines of this name, as received.
    fn lines(&self, name: &HeaderName) -> impl Iterator<Item = &[u8]>;
}

impl Fields for HeaderMap {
    fn get(&self, name: &HeaderName) -> Option<&[u8]> {
        Self::get(self, name).map(HeaderValue::as_bytes)
    }

    fn lines(&self, name: &HeaderName) -> impl Iterator<Item = &[u8]> {
        self.get_all(name).into_iter().map(HeaderValue::as_bytes)
    }
}

/// Field lines in the order in which they came. A line takes six bytes and its value, where a
/// [`HeaderMap`] takes 104 and its value; its values share the block's allocation.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct FieldSection {
    /// Only ever made by [`FieldSection::append_all`]: what [`Line::value`] stands on.
    block: Bytes,
}

impl FieldSection {
    /// The number of lines.
    pub fn len(&self) -> usize {
        self.walk().count()
    }

    /// Whether there is no line.
    pub fn is_empty(&self) -> bool {
        self.block.is_empty()
    }

    /// Whether there is a line of this name.
    pub fn contains(&self, name: &HeaderName) -> bool {
        self.lines(name).next().is_some()
    }

    /// Every line: name and value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.walk().map(|line| (line.name.as_str(), line.value))
    }

    /// All lines of this name, without a copy.
    pub fn values(&self, name: &HeaderName) -> impl Iterator<Item = HeaderValue> {
        self.lines(name).map(|value| self.field_value(value))
    }

    /// Adds a line at the end.
    pub fn append(&mut self, name: HeaderName, value: HeaderValue) {
        self.append_all(&[(name, value)]);
    }

    /// As a map with room for `more` names.
    pub fn to_map(&self, more: usize) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(self.len() + more);
        for line in self.walk() {
            map.append(line.name.to_name(), self.field_value(line.value));
        }
        map
    }

    /// Bytes that it holds in memory, apart from the section itself.
    pub fn weight(&self) -> usize {
        if self.block.is_empty() { 0 } else { self.block.len() + SHARED_BYTES }
    }

    /// Adds lines, in exactly the room that they need. Values are copied: as they came, each holds
    /// on to the buffer that its connection was read into, 8 KiB and more.
    fn append_all(&mut self, lines: &[(HeaderName, HeaderValue)]) {
        let numbers: Vec<u16> = lines.iter().map(|(name, _)| NAMES.number(name)).collect();
        let room = |(number, (name, value)): (&u16, &(HeaderName, HeaderValue))| {
            let text = if *number == UNLISTED { 2 + name.as_str().len() } else { 0 };
            START_BYTES + text + value.len()
        };
        let more: usize = numbers.iter().zip(lines).map(room).sum();
        let mut block = Vec::with_capacity(self.block.len() + more);
        block.extend_from_slice(&self.block);
        for (number, (name, value)) in numbers.iter().zip(lines) {
            let length = u32::try_from(value.len()).expect("a section is far shorter");
            block.extend_from_slice(&number.to_le_bytes());
            block.extend_from_slice(&length.to_le_bytes());
            if *number == UNLISTED {
                // The http crate bounds a name's length by 65,535.
                let length = u16::try_from(name.as_str().len()).expect("a name is shorter");
                block.extend_from_slice(&length.to_le_bytes());
                block.extend_from_slice(name.as_str().as_bytes());
            }
            block.extend_from_slice(value.as_bytes());
        }
        self.block = block.into();
    }

    fn walk(&self) -> Walk<'_> {
        Walk { rest: &self.block }
    }

    #[allow(unsafe_code, reason = "looking at each byte again costs a hit 100 ns and more")]
    fn field_value(&self, value: &[u8]) -> HeaderValue {
        let shared = self.block.slice_ref(value);
        // SAFETY: `value` is a line's value in our block. A block is only made by `append_all`,
        // which copies values of `HeaderValue`s there, and nothing writes to it afterwards.
        unsafe { HeaderValue::from_maybe_shared_unchecked(shared) }
    }
}

impl Fields for FieldSection {
    fn lines(&self, name: &HeaderName) -> impl Iterator<Item = &[u8]> {
        self.walk().filter(move |line| line.name.is(name)).map(|line| line.value)
    }
}

impl From<HeaderMap> for FieldSection {
    fn from(map: HeaderMap) -> Self {
        let mut lines: Vec<(HeaderName, HeaderValue)> = Vec::with_capacity(map.len());
        for (name, value) in map {
            // A map names a field once, before the first of its lines.
            let name = name.or_else(|| lines.last().map(|(name, _)| name.clone()));
            lines.extend(name.map(|name| (name, value)));
        }
        lines.into_iter().collect()
    }
}

impl FromIterator<(HeaderName, HeaderValue)> for FieldSection {
    fn from_iter<I: IntoIterator<Item = (HeaderName, HeaderValue)>>(lines: I) -> Self {
        let lines: Vec<_> = lines.into_iter().collect();
        let mut section = Self::default();
        section.append_all(&lines);
        section
    }
}

impl std::fmt::Debug for FieldSection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map()
            .entries(self.iter().map(|(name, value)| (name, value.escape_ascii())))
            .finish()
    }
}

/// One line of a block.
struct Line<'a> {
    name: Name<'a>,
    value: &'a [u8],
}

enum Name<'a> {
    Listed(&'static HeaderName),
    Text(&'a str),
}

impl<'a> Name<'a> {
    fn is(&self, name: &HeaderName) -> bool {
        match self {
            Self::Listed(ours) => *ours == name,
            Self::Text(ours) => *ours == name.as_str(),
        }
    }

    fn as_str(&self) -> &'a str {
        match self {
            Self::Listed(name) => name.as_str(),
            Self::Text(text) => text,
        }
    }

    fn to_name(&self) -> HeaderName {
        match self {
            Self::Listed(name) => (*name).clone(),
            Self::Text(text) => text.parse().expect("it was a name"),
        }
    }
}

/// What of a block is still to be read.
struct Walk<'a> {
    rest: &'a [u8],
}

impl<'a> Walk<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(count);
        self.rest = rest;
        taken
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = Line<'a>;

    #[inline]
    fn next(&mut self) -> Option<Line<'a>> {
        let (start, rest) = self.rest.split_first_chunk::<START_BYTES>()?;
        self.rest = rest;
        let number = u16::from_le_bytes([start[0], start[1]]);
        let length = u32::from_le_bytes([start[2], start[3], start[4], start[5]]);
        let name = match NAMES.name(number) {
            Some(name) => Name::Listed(name),
            None => {
                let length = self.take(2);
                let text = self.take(usize::from(u16::from_le_bytes([length[0], length[1]])));
                Name::Text(std::str::from_utf8(text).expect("names are ASCII"))
            }
        };
        Some(Line { name, value: self.take(length as usize) })
    }
}

/// The names of all fields that this process has stored, up to [`LISTED_MAX`]; those that come
/// later stand in their lines. A listed one is cloned without touching memory that cores share.
struct Names {
    names: [OnceLock<HeaderName>; LISTED_MAX],
    numbers: OnceLock<RwLock<HashMap<HeaderName, u16>>>,
}

static NAMES: Names =
    Names { names: [const { OnceLock::new() }; LISTED_MAX], numbers: OnceLock::new() };

impl Names {
    fn name(&self, number: u16) -> Option<&HeaderName> {
        self.names.get(usize::from(number))?.get()
    }

    fn number(&self, name: &HeaderName) -> u16 {
        let numbers = self.numbers.get_or_init(RwLock::default);
        let known = numbers.read().unwrap_or_else(PoisonError::into_inner).get(name).copied();
        known.unwrap_or_else(|| {
            let mut numbers = numbers.write().unwrap_or_else(PoisonError::into_inner);
            let next = numbers.len();
            if next == LISTED_MAX || name.as_str().len() > LISTED_BYTES_MAX {
                return UNLISTED;
            }
            *numbers.entry(name.clone()).or_insert_with_key(|name| {
                // Never given back: 128 KiB of them at most.
                let text: &'static str = Box::leak(name.as_str().into());
                self.names[next].get_or_init(|| HeaderName::from_static(text));
                next as u16
            })
        })
    }
}

const START_BYTES: usize = 6;
/// `bytes` keeps so much beside a block that is shared.
const SHARED_BYTES: usize = 24;
const LISTED_MAX: usize = 2048;
const LISTED_BYTES_MAX: usize = 64;
const UNLISTED: u16 = u16::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(section: &FieldSection) -> Vec<(&str, &[u8])> {
        section.iter().collect()
    }

    #[test]
    fn lines_are_as_they_came_and_let_go_of_the_buffer_they_were_read_into() {
        let buffer = Bytes::from(b"one, two three".repeat(600));
        let mut section = FieldSection::default();
        for (name, range) in [("x-a", 0..3), ("x-b", 5..8), ("x-a", 9..14), ("x-empty", 0..0)] {
            let value = HeaderValue::from_maybe_shared(buffer.slice(range)).unwrap();
            section.append(HeaderName::from_static(name), value);
        }
        let expected: [(&str, &[u8]); 4] =
            [("x-a", b"one"), ("x-b", b"two"), ("x-a", b"three"), ("x-empty", b"")];
        assert_eq!(lines(&section), expected);
        assert!(buffer.is_unique(), "nothing holds on to it");
    }

    #[test]
    fn repeated_lines_keep_their_order_from_map_to_map() {
        let mut map = HeaderMap::new();
        for (name, value) in [("link", "<a>"), ("etag", "\"1\""), ("link", "<b>")] {
            map.append(name, HeaderValue::from_static(value));
        }
        let section = FieldSection::from(map.clone());
        assert_eq!(section.to_map(0), map);
        let links: Vec<_> = section.lines(&http::header::LINK).collect();
        assert_eq!(links, [b"<a>", b"<b>"]);
        assert!(section.contains(&http::header::ETAG) && !section.contains(&http::header::AGE));
        assert_eq!(section.get(&http::header::AGE), None);
        assert_eq!(section.values(&http::header::ETAG).next().unwrap(), "\"1\"");
    }

    #[test]
    fn names_that_the_table_does_not_take_stand_in_their_lines() {
        let long = "x-".to_owned() + &"long-".repeat(30);
        let odd = HeaderValue::from_bytes(b"\xff\xfe").unwrap();
        let of = |name: &str| (HeaderName::from_bytes(name.as_bytes()).unwrap(), odd.clone());
        let section: FieldSection = [of("etag"), of(&long), of("x-b")].into_iter().collect();
        assert_eq!(section.len(), 3);
        assert_eq!(section.get(&of(&long).0), Some(odd.as_bytes()));
        let map = section.to_map(0);
        assert_eq!(map.len(), 3);
        assert_eq!((&map[&long], &map["x-b"]), (&odd, &odd));
        assert!(section.weight() > long.len() + 6);
    }

    #[test]
    fn the_table_of_names_is_bounded() {
        let names = Names { names: [const { OnceLock::new() }; _], numbers: OnceLock::new() };
        for number in 0..LISTED_MAX + 10 {
            let name = HeaderName::from_bytes(format!("x-{number}").as_bytes()).unwrap();
            let listed = names.number(&name);
            let expected = if number < LISTED_MAX { number as u16 } else { UNLISTED };
            assert_eq!((listed, names.number(&name)), (expected, expected));
            assert_eq!(names.name(listed).is_some(), number < LISTED_MAX);
        }
    }
}
