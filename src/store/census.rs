//! Estimates what each site has on a disk from a sample of its pieces.
//!
//! The index knows hashes, not sites, and a block is overwritten as a whole. So each written piece
//! whose hash begins with a certain number of zero bits enters the sample; those that are still in
//! the index stand for all pieces of their site. Up to [`PIECES_MAX`] pieces the number of bits is 0
//! and the count exact; a site with a hundredth of a full sample is known to within about 4 %. The
//! sample is saved for the next process, one piece per line:
//!
//! ```text
//! skerry-census 1 BITS
//! ID NUMBER BYTES SITE
//! ```
//!
//! A line that cannot be parsed is ignored: it only makes an estimate worse for a while.

use std::collections::HashMap;
use std::fmt::Write;
use std::hash::BuildHasher;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::piece_key::{PieceHasher, PieceKey};
use super::sites::DiskUsage;

/// The sample of one disk.
#[derive(Default)]
pub(super) struct Census {
    sample: Mutex<Sample>,
}

#[derive(Default)]
struct Sample {
    /// The number of zero bits that the hash of a sampled piece begins with.
    bits: u32,
    pieces: HashMap<PieceKey, SampledPiece, PieceHasher>,
}

struct SampledPiece {
    site: Arc<str>,
    bytes: u32,
}

impl Census {
    /// A piece was written that occupies `bytes` on disk.
    pub(super) fn add(&self, key: PieceKey, site: &Arc<str>, bytes: u32) {
        self.lock().add(key, SampledPiece { site: site.clone(), bytes });
    }

    /// Drops sampled pieces that are gone, and adds the estimate of each site to `usage`.
    pub(super) fn count(&self, is_there: impl Fn(&PieceKey) -> bool, usage: &mut DiskUsage) {
        let mut sample = self.lock();
        sample.pieces.retain(|key, _| is_there(key));
        for (key, piece) in &sample.pieces {
            let (bytes, objects) = usage.entry(piece.site.clone()).or_default();
            *bytes += u64::from(piece.bytes) << sample.bits;
            *objects += u64::from(key.is_head()) << sample.bits;
        }
    }

    /// Saves the sample for the next start. Blocks for I/O.
    ///
    /// # Errors
    /// Those of the system; the previous file is then kept.
    pub(super) fn save(&self, directory: &Path) -> io::Result<()> {
        let text = self.lock().to_text();
        let (new, file) = (directory.join(FILE_NEW), directory.join(FILE));
        std::fs::write(&new, text)?;
        std::fs::rename(new, file)
    }

    /// Adds the sample that the last process saved, if there is one. Blocks for I/O.
    pub(super) fn load(&self, directory: &Path) {
        let Ok(text) = std::fs::read_to_string(directory.join(FILE)) else { return };
        if let Some(sample) = Sample::of_text(&text) {
            let mut now = self.lock();
            let bits = now.bits.max(sample.bits);
            now.require_bits(bits);
            // Pieces written since the start are newer.
            for (key, counted) in sample.pieces {
                if !now.pieces.contains_key(&key) {
                    now.add(key, counted);
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Sample> {
        self.sample.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sample {
    fn add(&mut self, key: PieceKey, piece: SampledPiece) {
        if is_in(&key, self.bits) {
            self.pieces.insert(key, piece);
        }
        if self.pieces.len() > PIECES_MAX {
            self.require_bits(self.bits + 1);
        }
    }

    fn require_bits(&mut self, bits: u32) {
        self.bits = bits;
        self.pieces.retain(|key, _| is_in(key, bits));
    }

    fn to_text(&self) -> String {
        let mut text = format!("{MAGIC} {}\n", self.bits);
        for (key, SampledPiece { site, bytes }) in &self.pieces {
            let (id, number) = (key.id(), key.number);
            writeln!(text, "{id:x} {number} {bytes} {site}").expect("a string does not fail");
        }
        text
    }

    fn of_text(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let bits = lines.next()?.strip_prefix(MAGIC)?.trim().parse().ok()?;
        let mut sites: HashMap<&str, Arc<str>> = HashMap::new();
        let mut sample = Self { bits, ..Self::default() };
        for line in lines {
            let mut words = line.splitn(4, ' ');
            let mut word = || words.next();
            let piece = (|| {
                let id = u128::from_str_radix(word()?, 16).ok()?;
                let number = word()?.parse().ok()?;
                let bytes = word()?.parse().ok()?;
                let site = word()?;
                let site = sites.entry(site).or_insert_with(|| site.into()).clone();
                Some((PieceKey::new(id, number), SampledPiece { site, bytes }))
            })();
            if let Some((key, counted)) = piece {
                sample.add(key, counted);
            }
        }
        Some(sample)
    }
}

fn is_in(key: &PieceKey, bits: u32) -> bool {
    PieceHasher.hash_one(key).leading_zeros() >= bits
}

/// About 6 MiB, and a few milliseconds to look all of them up.
const PIECES_MAX: usize = 1 << 16;
const MAGIC: &str = "skerry-census 1";
const FILE: &str = "census";
const FILE_NEW: &str = "census.new";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::KeyHash;

    fn key(number: u64) -> PieceKey {
        PieceKey::head(KeyHash::of(&number.to_le_bytes()))
    }

    #[test]
    fn few_pieces_are_counted_exactly_and_those_that_are_gone_are_not() {
        let census = Census::default();
        let sites: [Arc<str>; 2] = ["shop".into(), "news of today".into()];
        for number in 0..1000 {
            census.add(key(number), &sites[number as usize % 2], 4096);
        }
        let directory = tempfile::tempdir().unwrap();
        census.save(directory.path()).unwrap();
        let census = Census::default();
        census.load(directory.path());
        let mut found = DiskUsage::new();
        census.count(|piece| *piece != key(0), &mut found);
        assert_eq!(found[&sites[0]], (499 * 4096, 499));
        assert_eq!(found[&sites[1]], (500 * 4096, 500));
    }

    #[test]
    fn many_pieces_are_counted_by_a_bounded_sample() {
        let census = Census::default();
        let (large, small): (Arc<str>, Arc<str>) = ("large".into(), "small".into());
        for number in 0..400_000 {
            census.add(key(number), if number % 10 == 0 { &small } else { &large }, 8192);
        }
        assert!(census.lock().pieces.len() <= PIECES_MAX);
        let mut found = DiskUsage::new();
        census.count(|_| true, &mut found);
        let off = |site, pieces: u64| found[site].1.abs_diff(pieces) as f64 / pieces as f64;
        assert!(off(&large, 360_000) < 0.03 && off(&small, 40_000) < 0.08, "{found:?}");
    }

    #[test]
    fn a_damaged_file_is_read_as_far_as_it_makes_sense() {
        let text = "skerry-census 1 0\nff 0 4096 shop\nnonsense\nfe 1 x shop\nfe 2 1 a b\n";
        let sample = Sample::of_text(text).unwrap();
        assert_eq!(sample.pieces.len(), 2);
        assert_eq!(&*sample.pieces[&PieceKey::new(0xfe, 2)].site, "a b");
        assert!(Sample::of_text("skerry-census 2 0\n").is_none());
    }
}
