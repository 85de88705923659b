//! What sites have on a disk, by a sample of its pieces.
//!
//! The index knows hashes, not sites, and a block is written over as a whole. So pieces whose hash begins
//! with so many zero bits are remembered when they are written, and asked for in the index
//! now and then; what is still there stands for all others of its site. Up to [`PIECES_MAX`]
//! pieces no bit is asked for and the count is exact; a site with a hundredth of a full sample
//! is known to within some 4 %. The sample outlives the process in a file of its own, a line a piece:
//!
//! ```text
//! skerry-census 1 BITS
//! ID NUMBER BYTES SITE
//! ```
//!
//! A line that cannot be read is left out: a count is wrong for a while, nothing else.

use std::collections::HashMap;
use std::fmt::Write;
use std::hash::BuildHasher;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::record::{PieceHasher, PieceKey};
use super::sites::OnDisk;

/// The sample of one disk.
#[derive(Default)]
pub(super) struct Census {
    sample: Mutex<Sample>,
}

#[derive(Default)]
struct Sample {
    /// So many zero bits a piece's hash begins with.
    bits: u32,
    pieces: HashMap<PieceKey, Counted, PieceHasher>,
}

struct Counted {
    site: Arc<str>,
    bytes: u32,
}

impl Census {
    /// A piece was written: bytes as they lie on the disk.
    pub(super) fn add(&self, key: PieceKey, site: &Arc<str>, bytes: u32) {
        self.lock().add(key, Counted { site: site.clone(), bytes });
    }

    /// Forgets what is gone, and adds what every site has to `found`.
    pub(super) fn count(&self, is_there: impl Fn(&PieceKey) -> bool, found: &mut OnDisk) {
        let mut sample = self.lock();
        sample.pieces.retain(|key, _| is_there(key));
        for (key, counted) in &sample.pieces {
            let (bytes, objects) = found.entry(counted.site.clone()).or_default();
            *bytes += u64::from(counted.bytes) << sample.bits;
            *objects += u64::from(key.is_head()) << sample.bits;
        }
    }

    /// Keeps it for the next start.
    pub(super) fn save(&self, directory: &Path) -> io::Result<()> {
        let text = self.lock().to_text();
        let (new, file) = (directory.join(FILE_NEW), directory.join(FILE));
        std::fs::write(&new, text)?;
        std::fs::rename(new, file)
    }

    /// What the last process knew. Without a file it begins anew.
    pub(super) fn load(&self, directory: &Path) {
        let Ok(text) = std::fs::read_to_string(directory.join(FILE)) else { return };
        if let Some(sample) = Sample::of_text(&text) {
            let mut now = self.lock();
            let bits = now.bits.max(sample.bits);
            now.ask_for(bits);
            // What was written since the start is newer.
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
    fn add(&mut self, key: PieceKey, counted: Counted) {
        if is_in(&key, self.bits) {
            self.pieces.insert(key, counted);
        }
        if self.pieces.len() > PIECES_MAX {
            self.ask_for(self.bits + 1);
        }
    }

    fn ask_for(&mut self, bits: u32) {
        self.bits = bits;
        self.pieces.retain(|key, _| is_in(key, bits));
    }

    fn to_text(&self) -> String {
        let mut text = format!("{MAGIC} {}\n", self.bits);
        for (key, Counted { site, bytes }) in &self.pieces {
            let (id, number) = (key.id(), key.number);
            writeln!(text, "{id:x} {number} {bytes} {site}").expect("a string takes all");
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
                Some((PieceKey::new(id, number), Counted { site, bytes }))
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

/// 6 MiB of them, and a few milliseconds to ask for all.
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
        let mut found = OnDisk::new();
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
        let mut found = OnDisk::new();
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
