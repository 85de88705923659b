//! Request traces: readers for three formats, and a generator.

use crate::plan::seed::{Random, Zipf};
use anyhow::{Context as _, bail};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;

/// One request of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Time in seconds, from any start.
    pub time: u64,
    /// The object's number.
    pub object: u64,
    /// The object's size.
    pub bytes: u64,
}

/// A request trace, ordered by time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// The requests.
    pub requests: Vec<Request>,
}

impl Trace {
    /// Number of distinct objects.
    pub fn objects(&self) -> usize {
        self.sizes().len()
    }

    /// Requested bytes.
    pub fn bytes(&self) -> u64 {
        self.requests.iter().map(|request| request.bytes).sum()
    }

    /// Total size of the distinct objects, each at its maximum.
    pub fn footprint(&self) -> u64 {
        self.sizes().values().sum()
    }

    fn sizes(&self) -> HashMap<u64, u64> {
        let mut sizes = HashMap::new();
        for request in &self.requests {
            let size = sizes.entry(request.object).or_insert(0u64);
            *size = (*size).max(request.bytes);
        }
        sizes
    }
}

/// The format of a trace file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Binary records of libCacheSim: u32 time, u64 object, u32 bytes, i64 next access; little endian.
    #[value(name = "oracleGeneral")]
    OracleGeneral,
    /// Text lines `time object bytes`; further fields are ignored.
    #[value(name = "lrb")]
    Lrb,
    /// Comma-separated values. A header line names the columns (as in Meta's CDN trace); without one they are
    /// `time,object,bytes`.
    #[value(name = "csv")]
    Csv,
}

impl Trace {
    /// Reads at most `limit` requests from a file, or from standard input for `-`.
    pub fn read(path: &Path, format: Format, limit: usize) -> anyhow::Result<Trace> {
        let source: Box<dyn Read> = match path.to_str() {
            Some("-") => Box::new(std::io::stdin()),
            _ => Box::new(
                std::fs::File::open(path)
                    .with_context(|| format!("cannot open the trace file {}", path.display()))?,
            ),
        };
        let mut source = BufReader::with_capacity(1 << 20, source);
        if source.fill_buf()?.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            bail!(
                "{0} is compressed with zstd: run `zstd -dc {0} | simulation replay --trace -`",
                path.display()
            );
        }
        let trace = match format {
            Format::OracleGeneral => oracle_general(source, limit),
            Format::Lrb => lines(source, limit, |line| fields(line.split_whitespace(), [0, 1, 2])),
            Format::Csv => csv(source, limit),
        };
        trace.with_context(|| path.display().to_string())
    }
}

fn oracle_general(mut source: impl Read, limit: usize) -> anyhow::Result<Trace> {
    let mut requests = Vec::new();
    let mut record = [0; 24];
    while requests.len() < limit {
        match fill(&mut source, &mut record)? {
            24 => {}
            0 => break,
            // Another format, or a truncated file.
            rest => bail!(
                "{rest} bytes remain after {} requests of 24 bytes each: the file is truncated, or not in the format {} (see --format)",
                requests.len(),
                "oracleGeneral"
            ),
        }
        let word = |at: usize| {
            u32::from_le_bytes([record[at], record[at + 1], record[at + 2], record[at + 3]])
        };
        let object = u64::from(word(4)) | u64::from(word(8)) << 32;
        requests.push(Request { time: word(0).into(), object, bytes: word(12).into() });
    }
    Ok(Trace { requests })
}

/// Reads until `record` is full or the source ends; returns the number of bytes.
fn fill(source: &mut impl Read, record: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < record.len() {
        match source.read(&mut record[filled..])? {
            0 => break,
            some => filled += some,
        }
    }
    Ok(filled)
}

/// Writes a trace in libCacheSim's binary format. The time of the next access is -1 (unknown).
pub fn write_oracle_general(trace: &Trace, mut out: impl Write) -> anyhow::Result<()> {
    for request in &trace.requests {
        out.write_all(&u32::try_from(request.time).unwrap_or(u32::MAX).to_le_bytes())?;
        out.write_all(&request.object.to_le_bytes())?;
        out.write_all(&u32::try_from(request.bytes).unwrap_or(u32::MAX).to_le_bytes())?;
        out.write_all(&(-1i64).to_le_bytes())?;
    }
    out.flush().context("write trace")
}

fn lines(
    source: impl BufRead,
    limit: usize,
    mut read: impl FnMut(&str) -> Option<Request>,
) -> anyhow::Result<Trace> {
    let mut requests = Vec::new();
    for (number, line) in source.lines().enumerate() {
        let line = line?;
        if requests.len() == limit {
            break;
        }
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let request = read(&line);
        let number = number + 1;
        let wrong = || {
            format!("line {number}: expected time, object and bytes, found {line:?} (see --format)")
        };
        requests.push(request.with_context(wrong)?);
    }
    Ok(Trace { requests })
}

/// Parses time, object and bytes from the fields at these positions.
fn fields<'a>(fields: impl Iterator<Item = &'a str>, at: [usize; 3]) -> Option<Request> {
    let mut found = [None; 3];
    for (position, field) in fields.enumerate() {
        for (slot, wanted) in found.iter_mut().zip(at) {
            if position == wanted {
                *slot = Some(field.trim());
            }
        }
    }
    let number = |text: &str| text.parse::<f64>().ok().map(|value| value as u64);
    let [time, object, bytes] = found;
    Some(Request { time: number(time?)?, object: object_number(object?), bytes: number(bytes?)? })
}

/// The number of an object; for other names a hash of the name.
fn object_number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| {
        text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
    })
}

fn csv(mut source: impl BufRead, limit: usize) -> anyhow::Result<Trace> {
    let mut first = String::new();
    source.read_line(&mut first)?;
    let at = match columns(&first)? {
        Some(at) => at,
        None => {
            let head = std::io::Cursor::new(first);
            return lines(head.chain(source), limit, |line| fields(line.split(','), [0, 1, 2]));
        }
    };
    lines(source, limit, |line| fields(line.split(','), at))
}

/// The positions of time, object and bytes according to a header line; `None` if the line is not a header
/// because its first field is a number.
fn columns(line: &str) -> anyhow::Result<Option<[usize; 3]>> {
    let names: Vec<String> =
        line.split(',').map(|name| name.trim().trim_matches('"').to_ascii_lowercase()).collect();
    if names.first().is_some_and(|name| name.parse::<f64>().is_ok()) {
        return Ok(None);
    }
    let find = |what: &str, known: &[&str]| {
        let found = known.iter().find_map(|known| names.iter().position(|name| name == known));
        found.with_context(|| {
            format!("no column for the {what}: expected one named {}", known.join(", "))
        })
    };
    let time = find("time", &["time", "timestamp", "ts"])?;
    let object = find("object", &["object", "id", "obj_id", "cachekey", "key", "url"])?;
    let size = ["bytes", "size", "objectsize", "obj_size", "responsesize"];
    Ok(Some([time, object, find("size", &size)?]))
}

/// The properties of a generated trace.
#[derive(Clone, Copy, Debug, PartialEq, clap::Args)]
pub struct TraceShape {
    /// Number of requests.
    #[arg(long, default_value_t = 1_000_000)]
    pub requests: usize,
    /// Number of popular objects at any one time.
    #[arg(long, default_value_t = 100_000, value_parser = read_count)]
    pub objects: usize,
    /// Exponent of the Zipf distribution.
    #[arg(long, default_value_t = 0.9)]
    pub skew: f64,
    /// Share of requests for objects that are requested only once, 0 to 1.
    #[arg(long, default_value_t = 0.15, value_parser = read_share)]
    pub wonders: f64,
    /// Share of popular objects that are replaced by new ones over the whole trace, 0 to 1.
    #[arg(long, default_value_t = 0.5, value_parser = read_share)]
    pub churn: f64,
}

fn read_count(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| *count > 0);
    count.ok_or_else(|| "expected a whole number of at least 1".to_owned())
}

fn read_share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "expected a number from 0 to 1".to_owned())
}

impl Default for TraceShape {
    fn default() -> Self {
        TraceShape { requests: 1_000_000, objects: 100_000, skew: 0.9, wonders: 0.15, churn: 0.5 }
    }
}

/// Generates a CDN-like trace: Zipf popularity, sizes over five orders of magnitude, objects that are
/// replaced over time, and objects that are requested once. The same arguments give the same trace.
pub fn generate(shape: &TraceShape, seed: u64) -> Trace {
    let mut random = Random::for_purpose(seed, "trace");
    let popularity = Zipf::new(shape.objects, shape.skew);
    let mut at_rank: Vec<u64> = (0..shape.objects as u64).collect();
    let mut next_object = shape.objects as u64;
    let churn_chance = shape.churn * shape.objects as f64 / shape.requests.max(1) as f64;
    let mut requests = Vec::with_capacity(shape.requests);
    for number in 0..shape.requests {
        if random.chance(churn_chance) {
            let rank = random.below(shape.objects as u64) as usize;
            at_rank[rank] = next_object;
            next_object += 1;
        }
        let object = match random.chance(shape.wonders) {
            true => {
                next_object += 1;
                next_object - 1
            }
            false => at_rank[popularity.draw(&mut random)],
        };
        // A thousand requests per second.
        requests.push(Request { time: number as u64 / 1000, object, bytes: size_of(seed, object) });
    }
    Trace { requests }
}

/// The size of an object: mostly small; one object in fifty has megabytes, like a video.
fn size_of(seed: u64, object: u64) -> u64 {
    let mut random = Random::new(seed ^ object.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    match random.below(50) {
        0 => random.log_uniform(1 << 20, 16 << 20),
        1..15 => random.log_uniform(16 << 10, 512 << 10),
        _ => random.log_uniform(300, 32 << 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, format: Format) -> anyhow::Result<Vec<(u64, u64, u64)>> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), text)?;
        let trace = Trace::read(file.path(), format, usize::MAX)?;
        Ok(trace.requests.iter().map(|r| (r.time, r.object, r.bytes)).collect())
    }

    #[test]
    fn a_trace_written_as_oracle_general_is_read_back() {
        let trace =
            generate(&TraceShape { requests: 500, objects: 100, ..TraceShape::default() }, 3);
        let file = tempfile::NamedTempFile::new().expect("file");
        write_oracle_general(&trace, file.as_file()).expect("write");
        assert_eq!(file.as_file().metadata().expect("metadata").len(), 500 * 24);
        let read = Trace::read(file.path(), Format::OracleGeneral, usize::MAX).expect("read");
        assert_eq!(read, trace);
        let some = Trace::read(file.path(), Format::OracleGeneral, 7).expect("read");
        assert_eq!(some.requests, trace.requests[..7]);
        file.as_file().set_len(10 * 24 + 1).expect("a shorter file");
        let error = Trace::read(file.path(), Format::OracleGeneral, usize::MAX).expect_err("cut");
        assert!(format!("{error:#}").contains("1 bytes remain after 10 requests"), "{error:#}");
    }

    #[test]
    fn lrb_lines_may_have_more_fields() {
        let requests = read("1 17 2048 9\n# comment\n2 18 100\n", Format::Lrb).expect("lrb");
        assert_eq!(requests, [(1, 17, 2048), (2, 18, 100)]);
    }

    #[test]
    fn csv_columns_are_found_by_name_or_position() {
        let meta = "timestamp,cacheKey,OpType,objectSize\n1679000000.5,42,1,900\n";
        assert_eq!(read(meta, Format::Csv).expect("meta"), [(1_679_000_000, 42, 900)]);
        assert_eq!(read("1,42,900\n2,43,7\n", Format::Csv).expect("plain").len(), 2);
        let error = read("a,b,c\n1,2,3\n", Format::Csv).expect_err("no time");
        assert!(format!("{error:#}").contains("no column for the time"));
    }

    #[test]
    fn an_error_names_the_line() {
        let error = read("1 17 2048\n2 18\n", Format::Lrb).expect_err("short");
        assert!(format!("{error:#}").contains("line 2"));
    }

    #[test]
    fn a_generated_trace_depends_on_its_seed_and_is_cdn_like() {
        let shape = TraceShape { requests: 20_000, objects: 2000, ..TraceShape::default() };
        let trace = generate(&shape, 1);
        assert_eq!(trace, generate(&shape, 1));
        assert_ne!(trace, generate(&shape, 2));
        let mut uses = HashMap::new();
        trace.requests.iter().for_each(|request| *uses.entry(request.object).or_insert(0) += 1);
        let once = uses.values().filter(|uses| **uses == 1).count();
        assert!(once > 2500, "one-hit wonders: {once}");
        assert!(uses.values().max().is_some_and(|most| *most > 500));
    }
}
