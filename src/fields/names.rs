//! The table of field names of this process.

use std::collections::HashMap;
use std::sync::{OnceLock, PoisonError, RwLock};

use http::HeaderName;

use super::{Known, NAME_END};

/// The names of the first [`LISTED_MAX`] fields that this process has stored; later names are written in their
/// lines. Cloning a listed name writes no memory that cores share.
struct Names {
    names: [OnceLock<Listed>; LISTED_MAX],
    numbers: OnceLock<RwLock<HashMap<HeaderName, Number>>>,
}

/// A name in the table.
pub(crate) struct Listed {
    pub(super) name: HeaderName,
    /// The bytes that HTTP/1.1 writes before the value.
    pub(super) start: Box<[u8]>,
}

static NAMES: Names =
    Names { names: [const { OnceLock::new() }; LISTED_MAX], numbers: OnceLock::new() };

/// The number of a line: the index of its name in the table, or [`UNLISTED`]; and four bits for the [`Known`]
/// field, so that most lines are recognised without the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Number(u16);

impl Number {
    /// The number of a name, which is added to the table if there is room.
    pub(super) fn of(name: &HeaderName) -> Self {
        NAMES.number(name)
    }

    /// The number of a name that is written in its line.
    pub(super) fn unlisted(name: &[u8]) -> Self {
        Self(UNLISTED | (Known::of(name) as u16) << KNOWN_SHIFT)
    }

    fn in_table(place: usize, known: Known) -> Self {
        Self(place as u16 | (known as u16) << KNOWN_SHIFT)
    }

    /// Reads the result of [`Number::bytes`].
    #[inline]
    pub(super) fn read(bytes: [u8; 2]) -> Self {
        Self(u16::from_le_bytes(bytes))
    }

    pub(super) fn bytes(self) -> [u8; 2] {
        self.0.to_le_bytes()
    }

    #[inline]
    pub(super) fn is_listed(self) -> bool {
        self.0 & UNLISTED == 0
    }

    /// The entry in the table.
    #[inline]
    pub(super) fn listed(self) -> Option<&'static Listed> {
        self.is_listed().then(|| NAMES.at(self))
    }

    #[inline]
    pub(super) fn known(self) -> Known {
        Known::ALL[usize::from(self.0 >> KNOWN_SHIFT & 0xF)]
    }
}

impl Names {
    fn at(&self, number: Number) -> &Listed {
        let place = usize::from(number.0) % LISTED_MAX;
        self.names[place].get().expect("a number is made after its name is listed")
    }

    fn number(&self, name: &HeaderName) -> Number {
        let numbers = self.numbers.get_or_init(RwLock::default);
        let known = numbers.read().unwrap_or_else(PoisonError::into_inner).get(name).copied();
        known.unwrap_or_else(|| {
            let mut numbers = numbers.write().unwrap_or_else(PoisonError::into_inner);
            let next = numbers.len();
            if next == LISTED_MAX || name.as_str().len() > LISTED_BYTES_MAX {
                return Number::unlisted(name.as_str().as_bytes());
            }
            *numbers.entry(name.clone()).or_insert_with_key(|name| {
                // Leaked: 256 KiB at most.
                let text: &'static str = Box::leak(name.as_str().into());
                self.names[next].get_or_init(|| Listed {
                    name: HeaderName::from_static(text),
                    start: [text.as_bytes(), NAME_END].concat().into(),
                });
                Number::in_table(next, Known::of(text.as_bytes()))
            })
        })
    }
}

const LISTED_MAX: usize = 1 << KNOWN_SHIFT;
const LISTED_BYTES_MAX: usize = 64;
/// The bits of the known field are above those of the index.
const KNOWN_SHIFT: u32 = 11;
const UNLISTED: u16 = 1 << 15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_names_is_bounded() {
        let names = Names { names: [const { OnceLock::new() }; _], numbers: OnceLock::new() };
        for place in 0..LISTED_MAX + 10 {
            let name = HeaderName::from_bytes(format!("x-{place}").as_bytes()).unwrap();
            let number = names.number(&name);
            assert_eq!(number, names.number(&name));
            assert_eq!(number.is_listed(), place < LISTED_MAX);
            assert!(!number.is_listed() || names.at(number).name == name);
            assert_eq!(number.known(), Known::Other);
        }
    }

    #[test]
    fn a_number_tells_what_is_known_of_its_name() {
        for known in Known::ALL {
            for number in [
                Number::in_table(LISTED_MAX - 1, known),
                Number(UNLISTED | (known as u16) << KNOWN_SHIFT),
            ] {
                assert_eq!(Number::read(number.bytes()).known(), known);
            }
        }
        assert_eq!(Number::of(&http::header::ETAG).known(), Known::Etag);
        assert_eq!(Number::unlisted(b"etag").known(), Known::Etag);
    }
}
