//! Traces: readers for three formats, and a maker of synthetic ones.

use crate::plan::seed::{Random, Zipf};
use anyhow::{Context as _, bail};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;

/// One request of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Seconds, of whatever clock.
    pub time: u64,
    /// Which object.
    pub object: u64,
    /// How large it is.
    pub bytes: u64,
}

/// A whole trace, in order of time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// The requests.
    pub requests: Vec<Request>,
}

impl Trace {
    /// Distinct objects.
    pub fn objects(&self) -> usize {
        self.sizes().len()
    }

    /// Bytes asked for.
    pub fn bytes(&self) -> u64 {
        self.requests.iter().map(|request| request.bytes).sum()
    }

    /// Bytes of all distinct objects, each at its largest.
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

/// How a trace is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// libCacheSim's binary records: u32 time, u64 object, u32 bytes, i64 next access, little
    /// endian.
    #[value(name = "oracleGeneral")]
    OracleGeneral,
    /// Text, a line a request: `time object bytes`, anything after that ignored.
    #[value(name = "lrb")]
    Lrb,
    /// Commas. With a header its columns are found by name (also Meta's CDN trace), without:
    /// `time,object,bytes`.
    #[value(name = "csv")]
    Csv,
}

impl Trace {
    /// Reads a file, `-` for stdin, at most `limit` requests of it.
    pub fn read(path: &Path, format: Format, limit: usize) -> anyhow::Result<Trace> {
        let source: Box<dyn Read> = match path.to_str() {
            Some("-") => Box::new(std::io::stdin()),
            _ => Box::new(std::fs::File::open(path).with_context(|| path.display().to_string())?),
        };
        let mut source = BufReader::with_capacity(1 << 20, source);
        if source.fill_buf()?.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            bail!("{0} is zstd: `zstd -dc {0} | … --trace -`", path.display());
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
            // Another format, or a file that was cut short.
            rest => bail!(
                "{rest} bytes behind {} requests of 24 bytes: is it {:?} (--format)?",
                requests.len(),
                Format::OracleGeneral
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

/// Reads until `record` is full or the source has ended; how much there was.
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

/// Writes a trace in libCacheSim's binary format. The next access is left unknown (-1).
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
        let wrong =
            || format!("line {number}: expected time, object and bytes (--format), found {line:?}");
        requests.push(request.with_context(wrong)?);
    }
    Ok(Trace { requests })
}

/// Time, object and bytes at these positions.
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

/// Objects that are not numbers are numbered by a hash of their name.
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

/// Positions of time, object and bytes in a header line; none when the first field is a
/// number, and so the line is no header.
fn columns(line: &str) -> anyhow::Result<Option<[usize; 3]>> {
    let names: Vec<String> =
        line.split(',').map(|name| name.trim().trim_matches('"').to_ascii_lowercase()).collect();
    if names.first().is_some_and(|name| name.parse::<f64>().is_ok()) {
        return Ok(None);
    }
    let find = |what: &str, known: &[&str]| {
        let found = known.iter().find_map(|known| names.iter().position(|name| name == known));
        found.with_context(|| format!("no column for the {what}: known names are {known:?}"))
    };
    let time = find("time", &["time", "timestamp", "ts"])?;
    let object = find("object", &["object", "id", "obj_id", "cachekey", "key", "url"])?;
    let size = ["bytes", "size", "objectsize", "obj_size", "responsesize"];
    Ok(Some([time, object, find("size", &size)?]))
}

/// The parameters of a synthetic trace.
#[derive(Clone, Copy, Debug, PartialEq, clap::Args)]
pub struct Made {
    /// Number of requests.
    #[arg(long, default_value_t = 1_000_000)]
    pub requests: usize,
    /// Number of popular objects at any one time.
    #[arg(long, default_value_t = 100_000)]
    pub objects: usize,
    /// Exponent of the Zipf distribution.
    #[arg(long, default_value_t = 0.9)]
    pub skew: f64,
    /// Share of requests for objects that are requested only once, 0 to 1.
    #[arg(long, default_value_t = 0.15)]
    pub wonders: f64,
    /// Share of popular objects that are replaced by new ones over the whole trace, 0 to 1.
    #[arg(long, default_value_t = 0.5)]
    pub churn: f64,
}

impl Default for Made {
    fn default() -> Self {
        Made { requests: 1_000_000, objects: 100_000, skew: 0.9, wonders: 0.15, churn: 0.5 }
    }
}

/// A CDN-like trace: Zipf popularity, sizes over five orders of magnitude, objects that are
/// replaced over time, and one-hit wonders. The same for the same arguments.
pub fn make(made: &Made, seed: u64) -> Trace {
    let mut random = Random::for_purpose(seed, "trace");
    let popularity = Zipf::new(made.objects, made.skew);
    let mut at_rank: Vec<u64> = (0..made.objects as u64).collect();
    let mut next_object = made.objects as u64;
    let churn_chance = made.churn * made.objects as f64 / made.requests.max(1) as f64;
    let mut requests = Vec::with_capacity(made.requests);
    for number in 0..made.requests {
        if random.chance(churn_chance) {
            let rank = random.below(made.objects as u64) as usize;
            at_rank[rank] = next_object;
            next_object += 1;
        }
        let object = match random.chance(made.wonders) {
            true => {
                next_object += 1;
                next_object - 1
            }
            false => at_rank[popularity.draw(&mut random)],
        };
        // A thousand requests a second.
        requests.push(Request { time: number as u64 / 1000, object, bytes: size_of(seed, object) });
    }
    Trace { requests }
}

/// Mostly small, now and then a video: one in fifty is of megabytes.
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
    fn what_is_written_as_oracle_general_is_read_again() {
        let trace = make(&Made { requests: 500, objects: 100, ..Made::default() }, 3);
        let file = tempfile::NamedTempFile::new().expect("file");
        write_oracle_general(&trace, file.as_file()).expect("write");
        assert_eq!(file.as_file().metadata().expect("metadata").len(), 500 * 24);
        let read = Trace::read(file.path(), Format::OracleGeneral, usize::MAX).expect("read");
        assert_eq!(read, trace);
        let some = Trace::read(file.path(), Format::OracleGeneral, 7).expect("read");
        assert_eq!(some.requests, trace.requests[..7]);
        file.as_file().set_len(10 * 24 + 1).expect("a shorter file");
        let error = Trace::read(file.path(), Format::OracleGeneral, usize::MAX).expect_err("cut");
        assert!(format!("{error:#}").contains("1 bytes behind 10 requests"), "{error:#}");
    }

    #[test]
    fn lrb_lines_may_have_more_fields() {
        let requests = read("1 17 2048 9\n# comment\n2 18 100\n", Format::Lrb).expect("lrb");
        assert_eq!(requests, [(1, 17, 2048), (2, 18, 100)]);
    }

    #[test]
    fn csv_columns_are_found_by_name_or_by_place() {
        let meta = "timestamp,cacheKey,OpType,objectSize\n1679000000.5,42,1,900\n";
        assert_eq!(read(meta, Format::Csv).expect("meta"), [(1_679_000_000, 42, 900)]);
        assert_eq!(read("1,42,900\n2,43,7\n", Format::Csv).expect("plain").len(), 2);
        let error = read("a,b,c\n1,2,3\n", Format::Csv).expect_err("no time");
        assert!(format!("{error:#}").contains("no column for the time"));
    }

    #[test]
    fn a_bad_line_is_named() {
        let error = read("1 17 2048\n2 18\n", Format::Lrb).expect_err("short");
        assert!(format!("{error:#}").contains("line 2"));
    }

    #[test]
    fn a_made_trace_is_given_by_its_seed_and_is_like_a_cdns() {
        let made = Made { requests: 20_000, objects: 2000, ..Made::default() };
        let trace = make(&made, 1);
        assert_eq!(trace, make(&made, 1));
        assert_ne!(trace, make(&made, 2));
        let mut uses = HashMap::new();
        trace.requests.iter().for_each(|request| *uses.entry(request.object).or_insert(0) += 1);
        let once = uses.values().filter(|uses| **uses == 1).count();
        assert!(once > 2500, "one-hit wonders: {once}");
        assert!(uses.values().max().is_some_and(|most| *most > 500));
    }
}
