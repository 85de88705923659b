//! Places by the records they were decoded from, so that a record is decoded once.
//!
//! A fixed number of slots, two for each key; a new entry replaces one of its two. No lock, no
//! bookkeeping: a lost entry costs one decoding.

use std::sync::Arc;

use arc_swap::ArcSwapOption;

use crate::Place;

/// The record's offset in each database; [`NO_RECORD`] where it has none.
pub(crate) type Key<const N: usize> = [u32; N];

/// Stands for "this database has no record of the address".
pub(crate) const NO_RECORD: u32 = u32::MAX;

/// At most [`SLOTS`] places.
pub(crate) struct Cache<const N: usize> {
    slots: Box<[ArcSwapOption<(Key<N>, Place)>]>,
}

impl<const N: usize> Cache<N> {
    pub(crate) fn new() -> Self {
        Self { slots: (0..SLOTS).map(|_| ArcSwapOption::empty()).collect() }
    }

    /// The place of this key, from `decode` if no slot has it.
    pub(crate) fn place(&self, key: &Key<N>, decode: impl FnOnce() -> Place) -> Place {
        let [first, second] = slots_of(key);
        for slot in [first, second] {
            if let Some(entry) = &*self.slots[slot].load()
                && entry.0 == *key
            {
                return entry.1.clone();
            }
        }
        let place = decode();
        let slot = if self.slots[first].load().is_none() { first } else { second };
        self.slots[slot].store(Some(Arc::new((*key, place.clone()))));
        place
    }
}

/// Two different slots, from different bits of one multiplicative hash.
fn slots_of<const N: usize>(key: &Key<N>) -> [usize; 2] {
    let hash = key.iter().fold(0u64, |hash, offset| {
        (hash.rotate_left(23) ^ u64::from(*offset)).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    });
    let first = (hash >> (64 - SLOTS.ilog2())) as usize;
    let second = (hash >> (64 - 2 * SLOTS.ilog2())) as usize % SLOTS;
    [first, if second == first { first ^ 1 } else { second }]
}

/// A power of two. A country database has about 250 records; of a city database these are the
/// ones that clients came from lately, in about 1 MiB.
const SLOTS: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Country;

    fn place(number: usize) -> Place {
        let countries: Vec<_> = Country::all().collect();
        Place::in_country(countries[number % countries.len()])
    }

    #[test]
    fn every_key_gets_its_own_place_whatever_was_there() {
        let cache = Cache::<2>::new();
        for round in 0..2 {
            for number in 0..20_000_u32 {
                let key = [number * 37, NO_RECORD - round];
                let found = cache.place(&key, || place(number as usize));
                assert_eq!(found, place(number as usize));
            }
        }
    }

    #[test]
    fn a_few_hundred_records_are_each_decoded_about_once() {
        let cache = Cache::<1>::new();
        let mut decoded = 0;
        for _ in 0..100 {
            for number in 0..250_u32 {
                cache.place(&[number * 41], || {
                    decoded += 1;
                    place(number as usize)
                });
            }
        }
        assert!(decoded < 300, "{decoded}");
    }
}
