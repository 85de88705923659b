//! Replays a trace of requests through models of the edge's two tiers, in virtual time.
//!
//! The models are small and our own (policy.rs), not the edge's code: a comparison of
//! policies wants them side by side under one roof, deterministic and without threads. What
//! they leave out is named in docs/decisions: slices, blocks of the disk, response headers.
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
pub use trace::{Format, Made, Request, Trace, make, write_oracle_general};

use policy::{Fifo, Policy, Sketch};
use std::fmt::Write as _;

/// The parameters of a cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Of the memory tier.
    pub policy: PolicyName,
    /// Whether only what is asked for twice is written to the disk.
    pub admission: bool,
    /// Of the memory tier.
    pub memory_bytes: u64,
    /// Of the disk tier; 0 for none.
    pub disk_bytes: u64,
}

impl Shape {
    /// `S3-FIFO, frequent`.
    pub fn name(&self) -> String {
        let admission = match (self.disk_bytes, self.admission) {
            (0, _) => "",
            (_, true) => ", frequent",
            (_, false) => ", all",
        };
        format!("{}{admission}", self.policy.as_str())
    }
}

/// The counts of a replay.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    /// Requests.
    pub requests: u64,
    /// Bytes asked for.
    pub bytes: u64,
    /// Served from memory.
    pub memory_hits: u64,
    /// Served from disk.
    pub disk_hits: u64,
    /// Bytes of both.
    pub hit_bytes: u64,
    /// Bytes written to the disk, padded as there.
    pub written_bytes: u64,
    /// `(requests so far, object hit ratio, byte hit ratio)` of each stretch of the trace.
    pub course: Vec<(u64, f64, f64)>,
}

impl Counts {
    /// Hits in a hundred requests.
    pub fn object_hits(&self) -> f64 {
        percent(self.memory_hits + self.disk_hits, self.requests)
    }

    /// Bytes from the cache in a hundred bytes asked for.
    pub fn byte_hits(&self) -> f64 {
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
    shape: Shape,
    counts: Counts,
    stretch: (u64, u64, u64, u64),
}

/// Entries on disk begin at multiples of this.
const DISK_PAGE: u64 = 4096;
/// Requests within the sketch's memory that make an object worth a disk write.
const FREQUENT: u8 = 2;

impl Tiers {
    fn new(shape: Shape) -> Self {
        Tiers {
            memory: shape.policy.build(shape.memory_bytes),
            disk: Fifo::new(shape.disk_bytes),
            sketch: Sketch::new(),
            shape,
            counts: Counts::default(),
            stretch: (0, 0, 0, 0),
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
        let (requests, hits, asked, served) = &mut self.stretch;
        *requests += 1;
        *hits += u64::from(hit);
        *asked += bytes;
        *served += if hit { bytes } else { 0 };
    }

    fn end_stretch(&mut self) {
        let (requests, hits, asked, served) = std::mem::take(&mut self.stretch);
        if requests > 0 {
            let point = (self.counts.requests, percent(hits, requests), percent(served, asked));
            self.counts.course.push(point);
        }
    }
}

/// Points of the course that the plot shows.
const STRETCHES: usize = 80;

/// Replays a trace through one cache.
pub fn replay(trace: &Trace, shape: Shape) -> Counts {
    let mut tiers = Tiers::new(shape);
    let stretch = trace.requests.len().div_ceil(STRETCHES).max(1);
    for requests in trace.requests.chunks(stretch) {
        requests.iter().for_each(|request| tiers.request(request));
        tiers.end_stretch();
    }
    tiers.counts
}

/// Every policy with and without admission, or one policy only.
pub fn shapes(policy: Option<PolicyName>, memory_bytes: u64, disk_bytes: u64) -> Vec<Shape> {
    let policies = PolicyName::ALL.into_iter().filter(|known| policy.is_none_or(|p| p == *known));
    let with = |policy, admission| Shape { policy, admission, memory_bytes, disk_bytes };
    policies
        .flat_map(|policy| [with(policy, true), with(policy, false)])
        .filter(|shape| shape.disk_bytes > 0 || shape.admission)
        .collect()
}

/// The comparison as a table.
pub fn table(trace: &Trace, results: &[(Shape, Counts)]) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{} requests for {} objects, {} asked for, {} of distinct objects\n\n\
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
            counts.object_hits(),
            counts.byte_hits(),
            percent(counts.memory_hits, counts.requests),
            percent(counts.disk_hits, counts.requests),
            size(counts.written_bytes),
        );
    }
    text
}

/// `1.5 GiB`.
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

/// Reads `10GiB`, `64 MiB`, `1000`.
pub fn read_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| format!("{text:?} is not a size"))?;
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        _ => return Err(format!("{text:?} is not a size: use KiB, MiB, GiB or TiB")),
    };
    Ok((number * factor as f64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> Trace {
        make(&Made { requests: 60_000, objects: 20_000, ..Made::default() }, 7)
    }

    fn run(trace: &Trace, policy: PolicyName, admission: bool, disk_bytes: u64) -> Counts {
        let memory_bytes = trace.footprint() / 50;
        replay(trace, Shape { policy, admission, memory_bytes, disk_bytes })
    }

    #[test]
    fn a_cache_as_large_as_the_trace_misses_each_object_once() {
        let trace = made();
        for policy in PolicyName::ALL {
            let memory_bytes = trace.footprint();
            let shape =
                Shape { policy, admission: true, memory_bytes: memory_bytes * 2, disk_bytes: 0 };
            let counts = replay(&trace, shape);
            let misses = counts.requests - counts.memory_hits;
            assert_eq!(misses, trace.objects() as u64, "{}", policy.as_str());
        }
    }

    #[test]
    fn admission_writes_far_less_for_nearly_the_same_hits() {
        let trace = made();
        let disk = trace.footprint() / 5;
        let all = run(&trace, PolicyName::S3Fifo, false, disk);
        let frequent = run(&trace, PolicyName::S3Fifo, true, disk);
        assert!(frequent.written_bytes * 3 < all.written_bytes * 2);
        assert!(frequent.object_hits() > all.object_hits() - 8.0);
    }

    #[test]
    fn s3_fifo_beats_lru_on_a_skewed_trace_with_one_hit_wonders() {
        let trace = made();
        let s3 = run(&trace, PolicyName::S3Fifo, true, 0).object_hits();
        let lru = run(&trace, PolicyName::Lru, true, 0).object_hits();
        assert!(s3 > lru, "{s3} {lru}");
    }

    #[test]
    fn the_same_trace_gives_the_same_counts() {
        let trace = made();
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
