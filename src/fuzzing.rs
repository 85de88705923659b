//! The fuzz targets: a property that every parser of network or disk input must keep, for any bytes.
//!
//! Each target is a function in `tests/fuzz.rs` of its room, and panics if its property does not hold.
//! `fuzz/run` calls it with random bytes, in a build with `--cfg fuzzing`; `cargo test` calls it with the
//! inputs in `fuzz/corpus`.

use crate::{bus, cache, control, dns, guard, listen, peers, purge, store};

/// A property that must hold for any bytes; panics where it does not.
pub type Property = fn(&[u8]);

/// Name and function of each target. The name is that of its corpus.
pub const TARGETS: &[(&str, Property)] = &[
    ("cache_control", cache::fuzz::cache_control),
    ("cache_status", cache::fuzz::cache_status),
    ("date", cache::fuzz::date),
    ("range", cache::fuzz::range),
    ("structured", cache::fuzz::structured),
    ("vary", cache::fuzz::vary),
    ("h1_head", listen::fuzz::h1_head),
    ("h1_chunks", listen::fuzz::h1_chunks),
    ("h2_frames", listen::fuzz::h2_frames),
    ("hpack", listen::fuzz::hpack),
    ("proxy_header", listen::fuzz::proxy_header),
    ("gate", guard::fuzz::gate),
    ("admin_purge", control::fuzz::admin_purge),
    ("admin_query", control::fuzz::admin_query),
    ("sitemap", control::fuzz::sitemap),
    ("bus_record", bus::fuzz::bus_record),
    ("peer_hop", peers::fuzz::peer_hop),
    ("peer_purges", bus::fuzz::peer_purges),
    ("purge_log", purge::fuzz::purge_log),
    ("purge_requirement", purge::fuzz::purge_requirement),
    ("disk_record", store::fuzz::disk_record),
    ("disk_blocks", store::fuzz::disk_blocks),
    ("dns_query", dns::fuzz::dns_query),
    // The tests of the crate geo replay its corpus.
    #[cfg(fuzzing)]
    ("mmdb", geo::fuzz::mmdb),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::PathBuf;

    use super::TARGETS;

    /// `fuzz/run` keeps at most this many for a target.
    const INPUTS_MAX: usize = 300;

    fn corpora() -> PathBuf {
        [env!("CARGO_MANIFEST_DIR"), "fuzz", "corpus"].iter().collect()
    }

    #[test]
    fn every_target_accepts_its_corpus() {
        for (target, check) in TARGETS {
            let inputs = fs::read_dir(corpora().join(target))
                .unwrap_or_else(|error| panic!("fuzz/corpus/{target}: {error}"));
            let inputs: BTreeSet<PathBuf> = inputs.map(|it| it.expect("an entry").path()).collect();
            let count = inputs.len();
            for input in inputs {
                // Shown if the test fails.
                println!("{}", input.display());
                check(&fs::read(input).expect("an input"));
            }
            assert!((3..=INPUTS_MAX).contains(&count), "{target}: {count} inputs");
        }
    }

    #[test]
    fn every_corpus_has_a_target() {
        let folders = fs::read_dir(corpora()).expect("the folder can be read");
        let folders = folders.map(|it| it.expect("an entry").file_name().into_string());
        let folders: BTreeSet<String> = folders.map(|name| name.expect("UTF-8")).collect();
        let targets = TARGETS.iter().map(|(name, _)| (*name).to_owned()).chain(["mmdb".to_owned()]);
        assert_eq!(folders, targets.collect());
    }
}
