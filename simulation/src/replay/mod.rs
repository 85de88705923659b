//! Replays a trace of requests through models of the edge's two tiers, in virtual time.
//!
//! The models (policy.rs) are small and independent of the node's code, so that all policies run
//! deterministically and without threads. docs/decisions/0011-replay-uses-models.md states what they
//! omit: slices, blocks of the disk, header fields.
//!
//! ```text
//! request ── memory ── hit
//!               └ miss ── disk ── hit → into memory
//!                           └ miss → into memory; to disk when admitted
//! ```

mod page;
mod policy;
mod trace;

pub use page::html;
pub use policy::PolicyName;
pub use trace::{Format, Request, Trace, TraceShape, generate, write_oracle_general};

use policy::{Fifo, Policy, Sketch};
use std::fmt::Write as _;

/// The configuration of a cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CacheShape {
    /// Eviction policy of the memory tier.
    pub policy: PolicyName,
    /// Whether an object is written to disk only at its second request.
    pub admission: bool,
    /// Size of the memory tier.
    pub memory_bytes: u64,
    /// Size of the disk tier; 0 for none.
    pub disk_bytes: u64,
}

impl CacheShape {
    /// The name in tables: `S3-FIFO, frequent`.
    pub fn name(&self) -> String {
        let admission = match (self.disk_bytes, self.admission) {
            (0, _) => "",
            (_, true) => ", frequent",
            (_, false) => ", all",
        };
        format!("{}{admission}", self.policy.as_str())
    }
}

/// The result of a replay.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    /// Requests.
    pub requests: u64,
    /// Requested bytes.
    pub bytes: u64,
    /// Requests served from memory.
    pub memory_hits: u64,
    /// Requests served from disk.
    pub disk_hits: u64,
    /// Bytes of these requests.
    pub hit_bytes: u64,
    /// Bytes written to disk, including padding.
    pub written_bytes: u64,
    /// For each section of the trace: requests so far, request hit ratio, byte hit ratio.
    pub sections: Vec<(u64, f64, f64)>,
}

impl Counts {
    /// Request hit ratio in percent.
    pub fn request_hit_percent(&self) -> f64 {
        percent(self.memory_hits + self.disk_hits, self.requests)
    }

    /// Byte hit ratio in percent.
    pub fn byte_hit_percent(&self) -> f64 {
        percent(self.hit_bytes, self.bytes)
    }
}

fn percent(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

/// A cache of two tiers.
struct Tiers {
    memory: Box<dyn Policy>,
    disk: Fifo,
    sketch: Sketch,
    shape: CacheShape,
    counts: Counts,
    section: (u64, u64, u64, u64),
}

/// Entries on disk are padded to a multiple of this size.
const DISK_PAGE: u64 = 4096;
/// Number of recent requests at which an object is written to disk.
const FREQUENT: u8 = 2;

impl Tiers {
    fn new(shape: CacheShape) -> Self {
        Tiers {
            memory: shape.policy.build(shape.memory_bytes),
            disk: Fifo::new(shape.disk_bytes),
            sketch: Sketch::new(),
            shape,
            counts: Counts::default(),
            section: (0, 0, 0, 0),
        }
    }

    fn request(&mut self, request: &Request) {
        let Request { object, bytes, .. } = *request;
        let seen = self.sketch.add(object);
        let in_memory = self.memory.touch(object);
        let on_disk = self.disk.contains(object);
        if !in_memory {
            self.memory.insert(object, bytes);
        }
        if !on_disk && (!self.shape.admission || seen >= FREQUENT) {
            let padded = bytes.max(1).next_multiple_of(DISK_PAGE);
            if self.disk.insert(object, padded) {
                self.counts.written_bytes += padded;
            }
        }
        self.count(bytes, in_memory, on_disk);
    }

    fn count(&mut self, bytes: u64, in_memory: bool, on_disk: bool) {
        let hit = in_memory || on_disk;
        self.counts.requests += 1;
        self.counts.bytes += bytes;
        self.counts.memory_hits += u64::from(in_memory);
        self.counts.disk_hits += u64::from(on_disk && !in_memory);
        self.counts.hit_bytes += if hit { bytes } else { 0 };
        let (requests, hits, asked, served) = &mut self.section;
        *requests += 1;
        *hits += u64::from(hit);
        *asked += bytes;
        *served += if hit { bytes } else { 0 };
    }

    fn end_section(&mut self) {
        let (requests, hits, asked, served) = std::mem::take(&mut self.section);
        if requests > 0 {
            let point = (self.counts.requests, percent(hits, requests), percent(served, asked));
            self.counts.sections.push(point);
        }
    }
}

/// Number of points in the chart.
const SECTIONS: usize = 80;

/// Replays a trace through a cache.
pub fn replay(trace: &Trace, shape: CacheShape) -> Counts {
    let mut tiers = Tiers::new(shape);
    let section = trace.requests.len().div_ceil(SECTIONS).max(1);
    for requests in trace.requests.chunks(section) {
        requests.iter().for_each(|request| tiers.request(request));
        tiers.end_section();
    }
    tiers.counts
}

/// All caches to compare: every policy, or one, with and without admission to disk.
pub fn cache_shapes(
    policy: Option<PolicyName>,
    memory_bytes: u64,
    disk_bytes: u64,
) -> Vec<CacheShape> {
    let policies = PolicyName::ALL.into_iter().filter(|known| policy.is_none_or(|p| p == *known));
    let with = |policy, admission| CacheShape { policy, admission, memory_bytes, disk_bytes };
    policies
        .flat_map(|policy| [with(policy, true), with(policy, false)])
        .filter(|shape| shape.disk_bytes > 0 || shape.admission)
        .collect()
}

/// A text table of the results.
pub fn table(trace: &Trace, results: &[(CacheShape, Counts)]) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{} requests for {} objects, {} requested, {} in distinct objects\n\n\
         {:<20}{:>10}{:>10}{:>12}{:>12}{:>14}",
        trace.requests.len(),
        trace.objects(),
        size(trace.bytes()),
        size(trace.footprint()),
        "policy, admission",
        "hits %",
        "bytes %",
        "memory %",
        "disk %",
        "disk writes",
    );
    for (shape, counts) in results {
        let _ = writeln!(
            text,
            "{:<20}{:>10.2}{:>10.2}{:>12.2}{:>12.2}{:>14}",
            shape.name(),
            counts.request_hit_percent(),
            counts.byte_hit_percent(),
            percent(counts.memory_hits, counts.requests),
            percent(counts.disk_hits, counts.requests),
            size(counts.written_bytes),
        );
    }
    text
}

/// Formats a size: `1.5 GiB`.
pub fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return format!("{value:.1} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// Parses a size such as `10GiB`, `64 MiB` or `1000`.
pub fn read_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 =
        number.parse().map_err(|_| format!("expected a size such as 10GiB, found {text:?}"))?;
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        _ => return Err(format!("expected a unit B, KiB, MiB, GiB or TiB, found {text:?}")),
    };
    Ok((number * factor as f64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace() -> Trace {
        generate(&TraceShape { requests: 60_000, objects: 20_000, ..TraceShape::default() }, 7)
    }

    fn run(trace: &Trace, policy: PolicyName, admission: bool, disk_bytes: u64) -> Counts {
        let memory_bytes = trace.footprint() / 50;
        replay(trace, CacheShape { policy, admission, memory_bytes, disk_bytes })
    }

    #[test]
    fn a_cache_as_large_as_the_trace_misses_each_object_once() {
        let trace = trace();
        for policy in PolicyName::ALL {
            let memory_bytes = trace.footprint();
            let shape = CacheShape {
                policy,
                admission: true,
                memory_bytes: memory_bytes * 2,
                disk_bytes: 0,
            };
            let counts = replay(&trace, shape);
            let misses = counts.requests - counts.memory_hits;
            assert_eq!(misses, trace.objects() as u64, "{}", policy.as_str());
        }
    }

    #[test]
    fn admission_writes_far_less_for_nearly_the_same_hits() {
        let trace = trace();
        let disk = trace.footprint() / 5;
        let all = run(&trace, PolicyName::S3Fifo, false, disk);
        let frequent = run(&trace, PolicyName::S3Fifo, true, disk);
        assert!(frequent.written_bytes * 3 < all.written_bytes * 2);
        assert!(frequent.request_hit_percent() > all.request_hit_percent() - 8.0);
    }

    #[test]
    fn s3_fifo_beats_lru_on_a_skewed_trace_with_one_hit_wonders() {
        let trace = trace();
        let s3 = run(&trace, PolicyName::S3Fifo, true, 0).request_hit_percent();
        let lru = run(&trace, PolicyName::Lru, true, 0).request_hit_percent();
        assert!(s3 > lru, "{s3} {lru}");
    }

    #[test]
    fn the_same_trace_gives_the_same_counts() {
        let trace = trace();
        let disk = trace.footprint() / 5;
        assert_eq!(
            run(&trace, PolicyName::Lfu, true, disk),
            run(&trace, PolicyName::Lfu, true, disk)
        );
    }

    #[test]
    fn sizes_are_read_and_written() {
        assert_eq!(read_size("10GiB"), Ok(10 << 30));
        assert_eq!(read_size("1.5 MiB"), Ok(3 << 19));
        assert_eq!(read_size("4096"), Ok(4096));
        assert!(read_size("ten").is_err() && read_size("1 parsec").is_err());
        assert_eq!(size(3 << 29), "1.5 GiB");
    }
}
