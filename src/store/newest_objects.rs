//! The newest object of each key whose parts are being filled.
//!
//! A part may finish after a newer object has replaced its object, and after memory has evicted the
//! newer one. Memory alone cannot tell then that the part is outdated.

use std::collections::{HashMap, VecDeque};

use super::record::{Head, ObjectId};
use crate::cache::KeyHash;

/// The newest objects, for as many keys as [`KEYS_MAX`]; beyond, the oldest key is forgotten, and
/// only memory tells.
#[derive(Default)]
pub(super) struct NewestObjects {
    newest: HashMap<KeyHash, ObjectId>,
    order: VecDeque<KeyHash>,
}

impl NewestObjects {
    /// An object begins by parts.
    pub(super) fn begin(&mut self, hash: KeyHash, object: ObjectId) {
        if self.newest.insert(hash, object).is_some() {
            return;
        }
        self.order.push_back(hash);
        if self.order.len() > KEYS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.newest.remove(&oldest);
        }
    }

    /// An object has come whole.
    pub(super) fn supersede(&mut self, hash: KeyHash, object: ObjectId) {
        if let Some(newest) = self.newest.get_mut(&hash) {
            *newest = object;
        }
    }

    /// Whether another object is known to have come after this one.
    pub(super) fn is_superseded(&self, head: &Head) -> bool {
        self.newest.get(&head.hash()).is_some_and(|newest| *newest != head.object)
    }
}

/// Some 400 KiB of them.
const KEYS_MAX: usize = 8192;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_bounded_and_the_oldest_goes() {
        let mut begun = NewestObjects::default();
        for number in 0..KEYS_MAX as u128 + 5 {
            begun.begin(KeyHash(number), ObjectId(number));
            begun.begin(KeyHash(number), ObjectId(number + 1));
        }
        assert_eq!((begun.newest.len(), begun.order.len()), (KEYS_MAX, KEYS_MAX));
        begun.supersede(KeyHash(0), ObjectId(7));
        assert!(!begun.newest.contains_key(&KeyHash(0)), "it was forgotten");
    }
}
