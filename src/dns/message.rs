//! Writes a response into a buffer of the caller: the header, the question as it came, records, the OPT
//! record. Allocates nothing.
//!
//! ```text
//! header │ question │ answer │ authority │ additional │ OPT
//!   12       copied    owner names are pointers to earlier bytes (RFC 1035 §4.1.4)
//! ```
//! The question is copied byte by byte, so that a client finds its name in the case that it sent
//! (draft-vixie-dnsext-dns0x20). The size of the OPT record is set aside before the first record is written.

use super::labels::{IN, Rcode};
use super::query::{COOKIE, HEADER, NSID, OPCODE, OPT, SUBNET};

/// The sections that hold records, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Section {
    /// The question.
    Answer,
    /// The SOA of a negative response, the NS of a referral.
    Authority,
    /// Addresses of the name servers of a referral.
    Additional,
}

/// The options of the OPT record of a response.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OptRecord<'a> {
    /// Whether the query had the flag DO.
    pub dnssec_ok: bool,
    /// The server's name; empty if the client did not ask.
    pub nsid: &'a [u8],
    /// The client's and the server's cookie.
    pub cookie: Option<[u8; 24]>,
    /// The option of the query, and the scope of the answer.
    pub subnet: Option<(&'a [u8], u8)>,
}

/// Writes one response.
pub(super) struct Writer<'a> {
    out: &'a mut [u8],
    length: usize,
    /// Records end here; what the OPT record needs is not counted in.
    limit: usize,
    counts: [u16; 3],
    question_end: usize,
    has_overflowed: bool,
}

impl<'a> Writer<'a> {
    /// Begins with the header and the question. A response may have `limit` bytes, of which `set_aside` are
    /// for the OPT record. Both must leave room for header and question.
    pub(super) fn new(out: &'a mut [u8], question: &[u8], limit: usize, set_aside: usize) -> Self {
        let length = HEADER + question.len();
        out[..HEADER].fill(0);
        out[HEADER..length].copy_from_slice(question);
        let limit = limit.min(out.len()).saturating_sub(set_aside).max(length);
        Self { out, length, limit, counts: [0; 3], question_end: length, has_overflowed: false }
    }

    /// Appends a record of the class IN and returns where its content begins. `owner`: where the owner's name
    /// stands in the message. A record that does not fit is left out, and the response is truncated.
    pub(super) fn record(
        &mut self,
        section: Section,
        owner: usize,
        kind: u16,
        ttl: u32,
        content: &[u8],
    ) -> usize {
        let start = self.length + RECORD_HEAD;
        let end = start + content.len();
        // A pointer has 14 bits for its target.
        if end > self.limit || owner > POINTER_MAX {
            self.has_overflowed = true;
            return start;
        }
        let head = &mut self.out[self.length..start];
        head[..2].copy_from_slice(&(0xc000 | owner as u16).to_be_bytes());
        head[2..4].copy_from_slice(&kind.to_be_bytes());
        head[4..6].copy_from_slice(&IN.to_be_bytes());
        head[6..10].copy_from_slice(&ttl.to_be_bytes());
        head[10..].copy_from_slice(&(content.len() as u16).to_be_bytes());
        self.out[start..end].copy_from_slice(content);
        self.length = end;
        self.counts[section as usize] += 1;
        start
    }

    /// Whether a record did not fit.
    pub(super) fn has_overflowed(&self) -> bool {
        self.has_overflowed
    }

    /// Removes all records, so that the client asks again by TCP (RFC 2181 §9).
    pub(super) fn truncate(&mut self) {
        self.length = self.question_end;
        self.counts = [0; 3];
    }

    /// Completes the response: header and OPT record. Returns the length, and where the OPT record begins.
    pub(super) fn finish(
        mut self,
        flags: Flags,
        rcode: Rcode,
        opt: Option<OptRecord<'_>>,
    ) -> (usize, usize) {
        let opt_start = self.length;
        if let Some(opt) = &opt {
            self.write_opt(opt, rcode);
        }
        let has_question = self.question_end > HEADER;
        let [answers, authorities, additional] = self.counts;
        let words =
            [u16::from(has_question), answers, authorities, additional + u16::from(opt.is_some())];
        self.out[..4].copy_from_slice(&flags.encode(rcode));
        for (at, word) in words.into_iter().enumerate() {
            self.out[4 + 2 * at..6 + 2 * at].copy_from_slice(&word.to_be_bytes());
        }
        (self.length, opt_start)
    }

    fn write_opt(&mut self, opt: &OptRecord<'_>, rcode: Rcode) {
        let [extended, _] = (rcode.code() << 4).to_be_bytes();
        let dnssec_ok = if opt.dnssec_ok { 0x80 } else { 0 };
        let [kind, payload] = [OPT, UDP_PAYLOAD].map(u16::to_be_bytes);
        let content = (opt.length() - OPT_HEAD) as u16;
        self.put(&[0]);
        self.put(&kind);
        self.put(&payload);
        self.put(&[extended, 0, dnssec_ok, 0]);
        self.put(&content.to_be_bytes());
        if !opt.nsid.is_empty() {
            self.put_option(NSID, opt.nsid);
        }
        if let Some(cookie) = &opt.cookie {
            self.put_option(COOKIE, cookie);
        }
        if let Some((subnet, scope)) = opt.subnet {
            self.put_option(SUBNET, subnet);
            let at = self.length - subnet.len() + SCOPE_AT;
            self.out[at] = scope;
        }
    }

    fn put_option(&mut self, code: u16, content: &[u8]) {
        self.put(&code.to_be_bytes());
        self.put(&(content.len() as u16).to_be_bytes());
        self.put(content);
    }

    fn put(&mut self, bytes: &[u8]) {
        self.out[self.length..self.length + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }
}

impl OptRecord<'_> {
    /// The bytes that the record takes.
    pub(super) fn length(&self) -> usize {
        let option = |length: usize| if length > 0 { OPTION_HEAD + length } else { 0 };
        let cookie = self.cookie.map_or(0, |cookie| cookie.len());
        let subnet = self.subnet.map_or(0, |(subnet, _)| subnet.len());
        OPT_HEAD + option(self.nsid.len()) + option(cookie) + option(subnet)
    }
}

/// The flags of a response's header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flags {
    /// The first four bytes of the query: id and opcode are repeated, RD and CD too if the opcode is QUERY, for which alone they
    /// are defined.
    pub start: [u8; 4],
    /// AA: the answer comes from the zone's own data.
    pub authoritative: bool,
    /// TC.
    pub truncated: bool,
}

impl Flags {
    fn encode(self, rcode: Rcode) -> [u8; 4] {
        let [high, low, first, second] = self.start;
        let (aa, tc) = (u8::from(self.authoritative) << 2, u8::from(self.truncated) << 1);
        let (rd, cd) = if first & OPCODE == 0 { (first & RD, second & CD) } else { (0, 0) };
        [high, low, 0x80 | (first & OPCODE) | aa | tc | rd, cd | (rcode.code() as u8 & 0x0f)]
    }
}

/// Turns a complete response into a truncated one without records, and returns its length. The OPT record,
/// which begins at `opt_start`, is kept.
pub(super) fn cut_to_truncated(
    out: &mut [u8],
    question_end: usize,
    opt: std::ops::Range<usize>,
) -> usize {
    let has_opt = !opt.is_empty();
    let length = question_end + opt.len();
    out.copy_within(opt, question_end);
    out[2] |= 0x02;
    out[6..HEADER].fill(0);
    out[HEADER - 1] = u8::from(has_opt);
    length
}

/// The largest response by UDP: what fits a frame of IPv6 without fragments (DNS flag day 2020). Also the size
/// of queries that the server takes.
pub(crate) const UDP_PAYLOAD: u16 = 1232;
/// Owner, type, class, TTL and length of a record.
const RECORD_HEAD: usize = 12;
const POINTER_MAX: usize = 0x3fff;
const OPT_HEAD: usize = 11;
const OPTION_HEAD: usize = 4;
/// Where the scope stands in the option CLIENT-SUBNET.
const SCOPE_AT: usize = 3;
const RD: u8 = 0x01;
const CD: u8 = 0x10;

#[cfg(test)]
mod tests {
    use hickory_proto::op::Message;
    use hickory_proto::rr::rdata::opt::EdnsCode;

    use super::*;

    const QUESTION: &[u8] = b"\x01A\x07ExAmple\x00\x00\x01\x00\x01";

    fn write(limit: usize, opt: Option<OptRecord<'_>>) -> (Vec<u8>, bool) {
        let mut out = [0; 1232];
        let set_aside = opt.map_or(0, |opt| opt.length());
        let mut writer = Writer::new(&mut out, QUESTION, limit, set_aside);
        for last in 0..4 {
            writer.record(Section::Answer, HEADER, 1, 30, &[192, 0, 2, last]);
        }
        let truncated = writer.has_overflowed();
        if truncated {
            writer.truncate();
        }
        let flags = Flags { start: [1, 2, 1, 0x10], authoritative: true, truncated };
        let (length, _) = writer.finish(flags, Rcode::NoError, opt);
        (out[..length].to_vec(), truncated)
    }

    #[test]
    fn another_implementation_reads_the_response() {
        let opt = OptRecord {
            dnssec_ok: true,
            nsid: b"edge-1",
            cookie: Some([7; 24]),
            subnet: Some((&[0, 1, 24, 0, 192, 0, 2], 20)),
        };
        let (bytes, truncated) = write(512, Some(opt));
        let message = Message::from_vec(&bytes).expect("a message");
        assert!(!truncated && message.metadata.authoritative && message.metadata.recursion_desired);
        assert_eq!(message.answers.len(), 4);
        assert_eq!(message.answers[3].name.to_ascii(), "A.ExAmple.");
        let edns = message.edns.expect("an OPT record");
        assert!(edns.flags().dnssec_ok && edns.max_payload() == 1232);
        for code in [EdnsCode::NSID, EdnsCode::Cookie, EdnsCode::Subnet] {
            assert!(edns.option(code).is_some(), "{code:?}");
        }
        let Some(hickory_proto::rr::rdata::opt::EdnsOption::Subnet(subnet)) =
            edns.option(EdnsCode::Subnet)
        else {
            panic!("a subnet");
        };
        assert_eq!(subnet.scope_prefix(), 20);
    }

    #[test]
    fn a_record_that_does_not_fit_truncates_the_whole_response() {
        let exact = HEADER + QUESTION.len() + 4 * 16;
        assert!(!write(exact, None).1);
        let (bytes, truncated) = write(exact - 1, None);
        let message = Message::from_vec(&bytes).expect("a message");
        assert!(truncated && message.metadata.truncation && message.answers.is_empty());
        assert!(write(exact, Some(OptRecord::default())).1, "the OPT record needs its bytes");
    }

    #[test]
    fn the_code_of_a_bad_version_is_in_two_places() {
        let mut out = [0; 512];
        let opt = OptRecord::default();
        let writer = Writer::new(&mut out, QUESTION, 512, opt.length());
        let flags = Flags { start: [0; 4], authoritative: false, truncated: false };
        let (length, _) = writer.finish(flags, Rcode::BadVersion, Some(opt));
        let message = Message::from_vec(&out[..length]).expect("a message");
        assert_eq!(u16::from(message.metadata.response_code), 16);
    }

    #[test]
    fn a_complete_response_can_be_cut() {
        let (mut bytes, _) = write(512, Some(OptRecord::default()));
        let opt = bytes.len() - OPT_HEAD..bytes.len();
        let length = cut_to_truncated(&mut bytes, HEADER + QUESTION.len(), opt);
        let message = Message::from_vec(&bytes[..length]).expect("a message");
        assert!(message.metadata.truncation && message.edns.is_some());
        assert_eq!((message.queries.len(), message.answers.len()), (1, 0));
    }
}
