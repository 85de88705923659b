//! Field sections (RFC 9110 §5) that are not looked up often enough to be worth a map: what is
//! stored ([`FieldSection`]) and what an answer says ([`FieldLines`]). Both are bytes, a line
//! after the other:
//!
//! ```text
//! line     number (2)  value's length (4)  [name's length (2)  name]  value
//! number   the name's place in a table of this process; UNLISTED: its text stands in the line
//! ```
//!
//! Numbers are little-endian, and mean nothing outside of this process.

mod lines;
mod names;
mod section;

use http::{HeaderMap, HeaderName, HeaderValue};

pub use lines::FieldLines;
pub use section::FieldSection;

use names::{NAMES, UNLISTED};

/// What rules read of a field section, be it stored or on its way.
pub trait Fields {
    /// The first line of this name.
    fn get(&self, name: &HeaderName) -> Option<&[u8]> {
        self.lines(name).next()
    }

    /// All lines of this name, as received.
    fn lines(&self, name: &HeaderName) -> impl Iterator<Item = &[u8]>;
}

/// What rules change in a field section on its way.
pub trait FieldsMut: Fields {
    /// Takes out all lines of this name.
    fn remove(&mut self, name: &HeaderName);

    /// Adds a line.
    fn append(&mut self, name: &HeaderName, value: &HeaderValue);

    /// Puts a line in the place of all of its name.
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

/// One line.
#[derive(Clone, Copy)]
pub struct Line<'a> {
    /// Its name.
    pub name: Name<'a>,
    /// Its value.
    pub value: &'a [u8],
}

/// The name of a line.
#[derive(Clone, Copy)]
pub enum Name<'a> {
    /// One that the table has.
    Listed(&'static HeaderName),
    /// Lower case.
    Text(&'a [u8]),
}

impl<'a> Name<'a> {
    /// Whether it is this one.
    #[inline]
    pub fn is(self, name: &HeaderName) -> bool {
        match self {
            Self::Listed(ours) => *ours == name,
            Self::Text(ours) => *ours == *name.as_str().as_bytes(),
        }
    }

    /// Lower case.
    #[inline]
    pub fn as_bytes(self) -> &'a [u8] {
        match self {
            Self::Listed(name) => name.as_str().as_bytes(),
            Self::Text(text) => text,
        }
    }

    fn as_str(self) -> &'a str {
        std::str::from_utf8(self.as_bytes()).expect("names are ASCII")
    }

    fn to_name(self) -> HeaderName {
        match self {
            Self::Listed(name) => name.clone(),
            Self::Text(text) => HeaderName::from_lowercase(text).expect("it was a name"),
        }
    }
}

/// What of the lines is still to be read.
#[derive(Clone)]
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
                Name::Text(self.take(usize::from(u16::from_le_bytes([length[0], length[1]]))))
            }
        };
        Some(Line { name, value: self.take(length as usize) })
    }
}

/// Writes a line whose name stands in it.
fn push_line(block: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    push_start(block, UNLISTED, value.len());
    // The http crate bounds a name's length by 65,535.
    let length = u16::try_from(name.len()).expect("a name is shorter");
    block.extend_from_slice(&length.to_le_bytes());
    block.extend_from_slice(name);
    block.extend_from_slice(value);
}

fn push_start(block: &mut Vec<u8>, number: u16, length: usize) {
    let length = u32::try_from(length).expect("a section is far shorter");
    block.extend_from_slice(&number.to_le_bytes());
    block.extend_from_slice(&length.to_le_bytes());
}

/// Number and length.
const START_BYTES: usize = 6;
