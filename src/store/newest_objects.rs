//! The newest object of each key whose parts are being filled.
//!
//! A part may finish after a newer object has replaced its object, and after memory has evicted the
//! newer one. Memory alone cannot tell then that the part is outdated.

use std::collections::{HashMap, VecDeque};

use super::record::{ObjectId, StoredHead};
use crate::cache::KeyHash;

/// The newest objects of up to [`KEYS_MAX`] keys. Beyond, the oldest key is forgotten, and an
/// outdated part is detected only while memory has the newer object.
#[derive(Default)]
pub(super) struct NewestObjects {
    newest: HashMap<KeyHash, ObjectId>,
    order: VecDeque<KeyHash>,
}

impl NewestObjects {
    /// A new object is stored in parts.
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

    /// A new object is stored completely.
    pub(super) fn supersede(&mut self, hash: KeyHash, object: ObjectId) {
        if let Some(newest) = self.newest.get_mut(&hash) {
            *newest = object;
        }
    }

    /// Whether a newer object of its key is known.
    pub(super) fn is_superseded(&self, head: &StoredHead) -> bool {
        self.newest.get(&head.hash()).is_some_and(|newest| *newest != head.object)
    }
}

/// About 400 KiB.
const KEYS_MAX: usize = 8192;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_bounded_and_the_oldest_goes() {
        let mut objects = NewestObjects::default();
        for number in 0..KEYS_MAX as u128 + 5 {
            objects.begin(KeyHash(number), ObjectId(number));
            objects.begin(KeyHash(number), ObjectId(number + 1));
        }
        assert_eq!((objects.newest.len(), objects.order.len()), (KEYS_MAX, KEYS_MAX));
        objects.supersede(KeyHash(0), ObjectId(7));
        assert!(!objects.newest.contains_key(&KeyHash(0)), "it was forgotten");
    }
}
