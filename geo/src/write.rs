//! Makes small mmdb databases: for tests, and for laboratories whose addresses no real database
//! knows. Format: MaxMind DB 2.0 (<https://maxmind.github.io/MaxMind-DB/>).
//!
//! ```text
//! search tree (24-bit records) │ 16 zero bytes │ records │ \xab\xcd\xefMaxMind.com │ metadata
//! ```
//!
//! A node is two records, for the next bit of the address being 0 and 1. A record below the
//! number of nodes is a node; equal to it: nothing; above it: 16 + the offset of the data.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

/// A value of a record.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// UTF-8 text.
    Text(String),
    /// A 32-bit number without a sign.
    Number(u32),
    /// A 16-bit number; only the metadata have them.
    Short(u16),
    /// A 64-bit number; only the metadata have them.
    Long(u64),
    /// A double.
    Double(f64),
    /// Names and values, in order.
    Map(Vec<(&'static str, Value)>),
    /// Values, in order.
    List(Vec<Value>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number)
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Double(number)
    }
}

/// A map of these fields.
pub fn map<const N: usize>(fields: [(&'static str, Value); N]) -> Value {
    Value::Map(fields.into())
}

/// A flat country record, as free country databases have it.
pub fn flat_country(code: &str) -> Value {
    map([("country_code", code.into())])
}

/// A database in the making: IPv6 with the IPv4 addresses at `::/96`, as published ones are.
#[derive(Debug)]
pub struct Writer {
    database_type: String,
    nodes: Vec<[Link; 2]>,
    data: Vec<u8>,
    built: SystemTime,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Link {
    Nothing,
    Node(usize),
    Data(usize),
}

impl Writer {
    /// An empty database that calls itself `database_type`.
    pub fn new(database_type: &str) -> Self {
        Self {
            database_type: database_type.to_owned(),
            nodes: vec![[Link::Nothing; 2]],
            data: Vec::new(),
            built: SystemTime::UNIX_EPOCH,
        }
    }

    /// Says when it was made; otherwise 1970.
    pub fn built(mut self, at: SystemTime) -> Self {
        self.built = at;
        self
    }

    /// Gives the network `address/prefix` this record, and takes it from what was there before:
    /// insert wide networks first.
    ///
    /// # Panics
    /// If `prefix` is zero or longer than the address, or the database grows beyond what 24-bit
    /// records can address (16 MiB).
    pub fn insert(&mut self, address: IpAddr, prefix: u8, record: &Value) -> &mut Self {
        let (bits, depth) = match address {
            IpAddr::V4(v4) => (u128::from(u32::from(v4)), 96 + prefix),
            IpAddr::V6(v6) => (u128::from(v6), prefix),
        };
        assert!((1..=128).contains(&depth), "{address}/{prefix} is not a network");
        let link = Link::Data(self.data.len());
        encode(record, &mut self.data);
        let mut node = 0;
        for level in 0..depth {
            let side = (bits >> (127 - level)) as usize & 1;
            if level + 1 == depth {
                self.nodes[node][side] = link;
                break;
            }
            node = match self.nodes[node][side] {
                Link::Node(next) => next,
                // A wider network's record, or nothing, goes on in both halves.
                wider => {
                    self.nodes.push([wider; 2]);
                    self.nodes[node][side] = Link::Node(self.nodes.len() - 1);
                    self.nodes.len() - 1
                }
            };
        }
        self
    }

    /// The file's bytes.
    pub fn finish(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for link in self.nodes.iter().flatten() {
            let record = match link {
                Link::Nothing => self.nodes.len(),
                Link::Node(node) => *node,
                Link::Data(offset) => self.nodes.len() + 16 + offset,
            };
            assert!(record < 1 << 24, "the database is too large for 24-bit records");
            out.extend_from_slice(&(record as u32).to_be_bytes()[1..]);
        }
        out.extend_from_slice(&[0; 16]);
        out.extend_from_slice(&self.data);
        out.extend_from_slice(b"\xab\xcd\xefMaxMind.com");
        encode(&self.metadata(), &mut out);
        out
    }

    fn metadata(&self) -> Value {
        let since = self.built.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        map([
            ("binary_format_major_version", Value::Short(2)),
            ("binary_format_minor_version", Value::Short(0)),
            ("build_epoch", Value::Long(since.as_secs())),
            ("database_type", self.database_type.as_str().into()),
            ("description", map([("en", "made by geo::write".into())])),
            ("ip_version", Value::Short(6)),
            ("languages", Value::List(vec![])),
            ("node_count", (self.nodes.len() as u32).into()),
            ("record_size", Value::Short(24)),
        ])
    }
}

fn encode(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Text(text) => {
            control(TYPE_TEXT, text.len(), out);
            out.extend_from_slice(text.as_bytes());
        }
        Value::Number(number) => {
            unsigned(TYPE_NUMBER, u64::from(*number), out);
        }
        Value::Short(number) => unsigned(TYPE_SHORT, u64::from(*number), out),
        Value::Long(number) => unsigned(TYPE_LONG, *number, out),
        Value::Double(number) => {
            control(TYPE_DOUBLE, 8, out);
            out.extend_from_slice(&number.to_be_bytes());
        }
        Value::Map(fields) => {
            control(TYPE_MAP, fields.len(), out);
            for (name, value) in fields {
                encode(&Value::from(*name), out);
                encode(value, out);
            }
        }
        Value::List(values) => {
            control(TYPE_LIST, values.len(), out);
            values.iter().for_each(|value| encode(value, out));
        }
    }
}

/// Big-endian without leading zeros.
fn unsigned(kind: u8, number: u64, out: &mut Vec<u8>) {
    let bytes = number.to_be_bytes();
    let significant = &bytes[number.leading_zeros() as usize / 8..];
    control(kind, significant.len(), out);
    out.extend_from_slice(significant);
}

/// The control byte: type in the upper three bits (0: in the next byte, less 7), size below.
fn control(kind: u8, size: usize, out: &mut Vec<u8>) {
    let (low, more): (u8, &[u8]) = match size {
        0..29 => (size as u8, &[]),
        29..285 => (29, &[(size - 29) as u8]),
        _ => (30, &u16::try_from(size - 285).expect("a value is under 64 KiB").to_be_bytes()),
    };
    match kind {
        0..8 => out.push(kind << 5 | low),
        _ => out.extend_from_slice(&[low, kind - 7]),
    }
    out.extend_from_slice(more);
}

const TYPE_TEXT: u8 = 2;
const TYPE_DOUBLE: u8 = 3;
const TYPE_SHORT: u8 = 5;
const TYPE_NUMBER: u8 = 6;
const TYPE_MAP: u8 = 7;
const TYPE_LONG: u8 = 9;
const TYPE_LIST: u8 = 11;
