//! Remembers which tags the responses had that were in memory since the start, so that a purge by another tag can be
//! told from one that finds something.
//!
//! A bitmap of fixed size, which may take an unknown tag for a known one, never the reverse: with 100,000 tags one
//! unknown tag in thirty. Responses on disk from before the start are marked when they are read.

use std::sync::atomic::{AtomicU64, Ordering};

/// The bitmap: 128 KiB.
pub(super) struct TagMarks(Box<[AtomicU64]>);

impl Default for TagMarks {
    fn default() -> Self {
        Self((0..WORDS).map(|_| AtomicU64::new(0)).collect())
    }
}

impl TagMarks {
    /// Marks the tags of a response.
    pub(super) fn mark(&self, hashes: &[u64]) {
        for (word, bit) in hashes.iter().flat_map(|hash| places(*hash)) {
            // Most tags are marked already: a load shares the cache line between cores, a change does not.
            if self.0[word].load(Ordering::Relaxed) & bit == 0 {
                self.0[word].fetch_or(bit, Ordering::Relaxed);
            }
        }
    }

    /// Whether a response with a tag of this hash was marked, or of one that shares its bits.
    pub(super) fn has(&self, hash: u64) -> bool {
        places(hash).iter().all(|(word, bit)| self.0[*word].load(Ordering::Relaxed) & bit != 0)
    }
}

/// Two bits for a tag, from the two halves of its hash: the index of the word, and the bit in it.
fn places(hash: u64) -> [(usize, u64); 2] {
    [hash as u32, (hash >> 32) as u32].map(|half| {
        let bit = half as usize % (WORDS * 64);
        (bit / 64, 1 << (bit % 64))
    })
}

const WORDS: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::purge::tag_hash;

    #[test]
    fn a_marked_tag_is_known_and_few_others_are() {
        let marks = TagMarks::default();
        let hash = |number: usize| tag_hash(&format!("tag-{number}"));
        let marked: Vec<u64> = (0..100_000).map(hash).collect();
        assert!(marked.iter().all(|hash| !marks.has(*hash)));
        marks.mark(&marked);
        assert!(marked.iter().all(|hash| marks.has(*hash)));
        let wrong = (100_000..200_000).filter(|number| marks.has(hash(*number))).count();
        assert!(wrong < 5_000, "{wrong} of 100000");
    }
}
