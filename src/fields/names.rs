//! The table of names.

use std::collections::HashMap;
use std::sync::{OnceLock, PoisonError, RwLock};

use http::HeaderName;

use super::Known;

/// The names of all fields that this process has stored, up to [`LISTED_MAX`]; those that come
/// later stand in their lines. A listed one is cloned without touching memory that cores share.
pub(super) struct Names {
    names: [OnceLock<Listed>; LISTED_MAX],
    numbers: OnceLock<RwLock<HashMap<HeaderName, u16>>>,
}

/// A name in the table.
pub(super) struct Listed {
    pub(super) name: HeaderName,
    pub(super) known: Known,
}

pub(super) static NAMES: Names =
    Names { names: [const { OnceLock::new() }; LISTED_MAX], numbers: OnceLock::new() };

impl Names {
    pub(super) fn name(&self, number: u16) -> Option<&Listed> {
        self.names.get(usize::from(number))?.get()
    }

    pub(super) fn number(&self, name: &HeaderName) -> u16 {
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
                self.names[next].get_or_init(|| Listed {
                    name: HeaderName::from_static(text),
                    known: Known::of(text.as_bytes()),
                });
                next as u16
            })
        })
    }
}

const LISTED_MAX: usize = 2048;
const LISTED_BYTES_MAX: usize = 64;
pub(super) const UNLISTED: u16 = u16::MAX;

#[cfg(test)]
mod tests {
    use super::*;

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
