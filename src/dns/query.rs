//! Parses a query: header, question, and the OPT record (RFC 1035 §4.1, RFC 6891). Pure; any bytes are
//! allowed.
//!
//! Records other than OPT are skipped: they mean nothing to an authoritative server that takes no updates.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::labels::Rcode;
use super::name;

/// A query, borrowed from the bytes of its message.
#[derive(Debug, PartialEq)]
pub(super) struct Query<'a> {
    /// The first four bytes of the message: id, opcode and flags.
    pub start: [u8; 4],
    /// The question's bytes. Empty only in a query for a cookie (RFC 7873 §5.4).
    pub question: &'a [u8],
    /// QTYPE.
    pub kind: u16,
    /// QCLASS.
    pub class: u16,
    /// The OPT record, if there is one.
    pub edns: Option<Edns<'a>>,
}

/// The OPT record of a query.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Edns<'a> {
    /// The largest response that the client takes by UDP. At least 512 (RFC 6891 §6.2.3).
    pub payload_max: u16,
    /// 0 is the only version that exists.
    pub version: u8,
    /// The flag DO, which the response repeats (RFC 3225 §3).
    pub dnssec_ok: bool,
    /// Whether the client asks for the name of the server (RFC 5001).
    pub nsid: bool,
    /// The cookies (RFC 7873).
    pub cookie: Option<CookieOption<'a>>,
    /// The client's network (RFC 7871).
    pub subnet: Option<ClientSubnet<'a>>,
}

/// The option COOKIE (RFC 7873 §4).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct CookieOption<'a> {
    /// The client's cookie.
    pub client: [u8; 8],
    /// The cookie that this server gave the client before; 8 to 32 bytes, or empty.
    pub server: &'a [u8],
}

/// The option CLIENT-SUBNET (RFC 7871 §6).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ClientSubnet<'a> {
    /// FAMILY, SOURCE PREFIX-LENGTH, SCOPE PREFIX-LENGTH and ADDRESS, which the response repeats.
    pub bytes: &'a [u8],
    /// Bits of the address that were sent. 0: the client does not want its network to be used.
    pub source: u8,
    /// The network's first address. `None`: no network at all.
    pub address: Option<IpAddr>,
}

/// Why a message gets no regular response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unanswerable {
    /// Too short for a header, or a response: there is no sender to answer, or two servers would
    /// answer each other without end.
    Silence,
    /// A response without question and records, with an OPT record if the message has one (RFC 6891 §6.1.1, §7).
    Header {
        /// The first four bytes of the message.
        start: [u8; 4],
        /// FORMERR or NOTIMP.
        rcode: Rcode,
        /// The flag DO of the message's OPT record. `None`: there is none.
        dnssec_ok: Option<bool>,
    },
}

impl<'a> Query<'a> {
    /// Parses a message.
    ///
    /// # Errors
    /// The message is no query, or broken, or of another opcode than QUERY.
    pub(super) fn parse(message: &'a [u8]) -> Result<Self, Unanswerable> {
        let header: &[u8; HEADER] = message.first_chunk().ok_or(Unanswerable::Silence)?;
        let start = [header[0], header[1], header[2], header[3]];
        if header[2] & QR != 0 {
            return Err(Unanswerable::Silence);
        }
        let refused = |rcode| Unanswerable::Header { start, rcode, dnssec_ok: dnssec_ok(message) };
        if header[2] & OPCODE != 0 {
            return Err(refused(Rcode::NotImplemented));
        }
        Self::parse_sections(message, start).ok_or_else(|| refused(Rcode::FormatError))
    }

    fn parse_sections(message: &'a [u8], start: [u8; 4]) -> Option<Self> {
        let [questions, answers, authorities, additional] = counts(message)?;
        let others = answers + authorities;
        let mut at = HEADER;
        let (mut question, mut kind, mut class) = (&message[..0], 0, 0);
        if questions > 1 {
            return None;
        }
        if questions == 1 {
            let length = name::length_of(&message[at..])?;
            let fixed = message.get(at + length..at + length + 4)?;
            (kind, class) = (be16(&fixed[..2]), be16(&fixed[2..]));
            question = &message[at..at + length + 4];
            at += length + 4;
        }
        // Each record takes eleven bytes and more, so that the message bounds this loop.
        for _ in 0..others {
            at = skip_record(message, at)?.end;
        }
        let mut edns = None;
        for _ in 0..additional {
            let record = skip_record(message, at)?;
            if record.kind == OPT {
                // More than one OPT, or one that is not the root's (RFC 6891 §6.1.1).
                if edns.is_some() || message[at] != 0 {
                    return None;
                }
                edns = Some(Edns::parse(&record)?);
            }
            at = record.end;
        }
        let has_cookie = edns.as_ref().is_some_and(|edns| edns.cookie.is_some());
        let is_complete = questions == 1 || has_cookie;
        is_complete.then_some(Self { start, question, kind, class, edns })
    }
}

/// The flag DO of the first OPT record of a message that cannot be answered, whatever else is wrong with it. `None`: none
/// can be found.
fn dnssec_ok(message: &[u8]) -> Option<bool> {
    let [questions, answers, authorities, additional] = counts(message)?;
    let mut at = HEADER;
    // Each question takes five bytes and more, so that the message bounds this loop, too.
    for _ in 0..questions {
        at += compressed_length(message.get(at..)?)? + 4;
    }
    for _ in 0..answers + authorities + additional {
        let record = skip_record(message, at)?;
        if record.kind == OPT && message[at] == 0 {
            return Some(record.ttl[2] & DO != 0);
        }
        at = record.end;
    }
    None
}

/// The number of entries in each section.
fn counts(message: &[u8]) -> Option<[usize; 4]> {
    let header: &[u8; HEADER] = message.first_chunk()?;
    Some([4, 6, 8, 10].map(|at| usize::from(be16(&header[at..at + 2]))))
}

/// A record whose content is not parsed.
struct RawRecord<'a> {
    kind: u16,
    class: u16,
    ttl: [u8; 4],
    data: &'a [u8],
    /// Where the next record begins.
    end: usize,
}

fn skip_record(message: &[u8], at: usize) -> Option<RawRecord<'_>> {
    let at = at + compressed_length(message.get(at..)?)?;
    let fixed: &[u8; 10] = message.get(at..)?.first_chunk()?;
    let (start, length) = (at + fixed.len(), usize::from(be16(&fixed[8..])));
    Some(RawRecord {
        kind: be16(&fixed[..2]),
        class: be16(&fixed[2..4]),
        ttl: [fixed[4], fixed[5], fixed[6], fixed[7]],
        data: message.get(start..start + length)?,
        end: start + length,
    })
}

/// The length of a name that may end in a compression pointer, which is not followed.
fn compressed_length(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    while at < name::NAME_MAX {
        match *bytes.get(at)? {
            0 => return Some(at + 1),
            label @ 1..=63 => at += 1 + usize::from(label),
            0xc0.. => return Some(at + 2),
            _ => return None,
        }
    }
    None
}

impl<'a> Edns<'a> {
    fn parse(record: &RawRecord<'a>) -> Option<Self> {
        let mut edns = Self {
            payload_max: record.class.max(512),
            version: record.ttl[1],
            dnssec_ok: record.ttl[2] & DO != 0,
            ..Self::default()
        };
        // The options of other versions may have another form.
        if edns.version != 0 {
            return Some(edns);
        }
        let mut options = record.data;
        while !options.is_empty() {
            let head: &[u8; 4] = options.first_chunk()?;
            let (code, length) = (be16(&head[..2]), usize::from(be16(&head[2..])));
            let content = options.get(4..4 + length)?;
            match code {
                NSID => edns.nsid = true,
                COOKIE => edns.cookie = Some(CookieOption::parse(content)?),
                SUBNET => edns.subnet = Some(ClientSubnet::parse(content)?),
                _ => {}
            }
            options = &options[4 + length..];
        }
        Some(edns)
    }
}

impl<'a> CookieOption<'a> {
    /// `None`: neither a client cookie alone nor one with a server cookie of 8 to 32 bytes
    /// (RFC 7873 §5.2.2).
    fn parse(content: &'a [u8]) -> Option<Self> {
        let (client, server) = content.split_first_chunk()?;
        let is_valid = server.is_empty() || (8..=32).contains(&server.len());
        is_valid.then_some(Self { client: *client, server })
    }
}

impl<'a> ClientSubnet<'a> {
    /// `None`: an unknown address family, a prefix longer than an address, bytes missing or beyond the prefix, or bits set beyond it
    /// (RFC 7871 §7.1.2 and §11.1), or a scope in a query.
    fn parse(content: &'a [u8]) -> Option<Self> {
        let (head, bytes) = content.split_first_chunk::<4>()?;
        let [_, _, source, scope] = *head;
        if scope != 0 {
            return None;
        }
        let address = match be16(&head[..2]) {
            1 => IpAddr::V4(Ipv4Addr::from(padded::<4>(bytes, source)?)),
            2 => IpAddr::V6(Ipv6Addr::from(padded::<16>(bytes, source)?)),
            // "No address", as `dig +subnet=0` says it.
            0 if source == 0 && bytes.is_empty() => {
                return Some(Self { bytes: content, source, address: None });
            }
            _ => return None,
        };
        Some(Self { bytes: content, source, address: Some(address) })
    }
}

/// The address of `N` bytes whose first `prefix` bits are in `bytes`.
fn padded<const N: usize>(bytes: &[u8], prefix: u8) -> Option<[u8; N]> {
    let bits = usize::from(prefix);
    if bits > 8 * N || bytes.len() != bits.div_ceil(8) {
        return None;
    }
    let beyond = if bits.is_multiple_of(8) { 0 } else { 0xff_u8 >> (bits % 8) };
    if bytes.last().is_some_and(|last| last & beyond != 0) {
        return None;
    }
    let mut address = [0; N];
    address[..bytes.len()].copy_from_slice(bytes);
    Some(address)
}

fn be16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

/// The length of a message's header.
pub(super) const HEADER: usize = 12;
const QR: u8 = 0x80;
/// The bits of the opcode in the third byte of a message.
pub(super) const OPCODE: u8 = 0x78;
const DO: u8 = 0x80;
/// The type of the OPT record.
pub(super) const OPT: u16 = 41;
/// Codes of EDNS options.
pub(super) const NSID: u16 = 3;
/// See [`NSID`].
pub(super) const SUBNET: u16 = 8;
/// See [`NSID`].
pub(super) const COOKIE: u16 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    /// A query for `a.` and type A with these counts of the other sections, and what follows.
    fn message(counts: [u8; 3], rest: &[u8]) -> Vec<u8> {
        let [answers, authorities, additional] = counts;
        let head = [7, 7, 1, 0, 0, 1, 0, answers, 0, authorities, 0, additional];
        [&head[..], b"\x01a\x00\x00\x01\x00\x01", rest].concat()
    }

    fn with_options(options: &[u8]) -> Vec<u8> {
        let head = [0, 0, 41, 4, 208, 0, 0, 0x80, 0, 0, options.len() as u8];
        message([0, 0, 1], &[&head[..], options].concat())
    }

    fn rcode(bytes: &[u8]) -> Option<Rcode> {
        match Query::parse(bytes) {
            Err(Unanswerable::Header { rcode, .. }) => Some(rcode),
            _ => None,
        }
    }

    #[test]
    fn a_plain_query_has_a_question_and_no_edns() {
        let bytes = message([0, 0, 0], &[]);
        let query = Query::parse(&bytes).expect("a query");
        assert_eq!((query.question, query.kind, query.class), (&bytes[12..], 1, 1));
        assert_eq!((query.start, query.edns), ([7, 7, 1, 0], None));
    }

    #[test]
    fn options_are_read_from_the_opt_record() {
        let subnet = b"\x00\x08\x00\x07\x00\x01\x18\x00\xc0\x00\x02";
        let cookie = b"\x00\x0a\x00\x08abcdefgh";
        let options = [&subnet[..], cookie, b"\x00\x03\x00\x00", b"\x00\x0c\x00\x01\x00"].concat();
        let bytes = with_options(&options);
        let edns = Query::parse(&bytes).expect("a query").edns.expect("an OPT record");
        assert_eq!((edns.payload_max, edns.version, edns.dnssec_ok), (1232, 0, true));
        assert!(edns.nsid);
        assert_eq!(edns.cookie, Some(CookieOption { client: *b"abcdefgh", server: b"" }));
        let subnet = edns.subnet.expect("a subnet");
        let address = Some("192.0.2.0".parse().expect("an address"));
        assert_eq!((subnet.source, subnet.address), (24, address));
    }

    #[test]
    fn bytes_that_cannot_be_a_query_get_no_answer() {
        for bytes in [&b""[..], &[0; 11], &[0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(Query::parse(bytes), Err(Unanswerable::Silence), "{bytes:?}");
        }
    }

    #[test]
    fn broken_queries_are_format_errors() {
        let opt = [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];
        let broken = [
            message([0, 0, 0], &[])[..18].to_vec(),
            message([0, 0, 1], &[]),
            message([0, 0, 2], &[opt, opt].concat()),
            message([0, 0, 1], &[1, b'a', 0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]),
            [&[7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &[0xc0, 12, 0, 1, 0, 1]].concat(),
            [&[7, 7, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0][..], b"\x01a\x00\x00\x01\x00\x01"].concat(),
            vec![7, 7, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            with_options(b"\x00\x08\x00"),
            with_options(b"\x00\x0a\x00\x07abcdefg"),
            with_options(b"\x00\x0a\x00\x0babcdefghijk"),
        ];
        for bytes in broken {
            assert_eq!(rcode(&bytes), Some(Rcode::FormatError), "{bytes:?}");
        }
        let mut update = message([0, 0, 0], &[]);
        update[2] = 0x28;
        assert_eq!(rcode(&update), Some(Rcode::NotImplemented));
    }

    #[test]
    fn the_opt_record_of_a_message_that_cannot_be_answered_is_found_if_there_is_one() {
        let check = |bytes: &[u8], expected: Option<bool>| match Query::parse(bytes) {
            Err(Unanswerable::Header { dnssec_ok, .. }) => {
                assert_eq!(dnssec_ok, expected, "{bytes:?}")
            }
            other => panic!("{other:?}"),
        };
        let opt = |flags: u8| [0, 0, 41, 4, 208, 0, 0, flags, 0, 0, 0];
        let with_opcode = |opcode: u8, rest: &[u8]| {
            let mut bytes = message([0, 0, u8::from(!rest.is_empty())], rest);
            bytes[2] = opcode << 3;
            bytes
        };
        check(&with_opcode(15, &[]), None);
        check(&with_opcode(15, &opt(0)), Some(false));
        check(&with_opcode(5, &opt(0x80)), Some(true));
        check(&message([0, 0, 2], &[opt(0x80), opt(0)].concat()), Some(true));
        check(&with_options(b"\x00\x0a\x00\x07abcdefg"), Some(true));
        // The counts promise more than there is, or the name of the question is broken.
        check(&message([0, 0, 2], &opt(0)), Some(false));
        check(&message([9, 0, 0], &[]), None);
        check(&[&[7, 7, 1, 0, 255, 255, 0, 0, 0, 0, 0, 1][..], &[0x80; 20]].concat(), None);
        let two =
            [&[7, 7, 1, 0, 0, 2, 0, 0, 0, 0, 0, 1][..], b"\x01a\x00\x00\x01\x00\x01"].concat();
        let two = [&two[..], b"\xc0\x0c\x00\x01\x00\x01", &opt(0)].concat();
        check(&two, Some(false));
    }

    #[test]
    fn a_client_subnet_has_exactly_the_bits_that_it_says() {
        let check = |content: &[u8], expected: bool| {
            assert_eq!(ClientSubnet::parse(content).is_some(), expected, "{content:?}");
        };
        check(&[0, 1, 24, 0, 192, 0, 2], true);
        check(&[0, 1, 20, 0, 192, 0, 0x10], true);
        check(&[0, 1, 20, 0, 192, 0, 0x18], false);
        check(&[0, 1, 24, 0, 192, 0], false);
        check(&[0, 1, 24, 0, 192, 0, 2, 0], false);
        check(&[0, 1, 24, 24, 192, 0, 2], false);
        check(&[0, 1, 33, 0, 192, 0, 2, 0, 0], false);
        check(&[0, 1, 0, 0], true);
        check(&[0, 2, 56, 0, 32, 1, 13, 184, 0, 0, 1], true);
        check(&[0, 2, 129, 0], false);
        check(&[0, 9, 8, 0, 1], false);
        check(&[0, 0, 0, 0], true);
        check(&[0, 0, 8, 0, 1], false);
        check(&[0, 1, 24], false);
    }

    #[test]
    fn a_query_for_a_cookie_needs_no_question() {
        let bytes = b"\x07\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x0c\x00\x0a\x00\x08abcdefgh";
        let query = Query::parse(bytes).expect("RFC 7873 §5.4");
        assert!(query.question.is_empty() && query.edns.is_some());
    }
}
