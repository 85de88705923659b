//! From a query to its response: RFC 1034 §4.3.2 over the zones, edge names for the client's place, EDNS.
//!
//! No socket and no clock: UDP, TCP, `skerry dns explain` and the fuzz target call the same function. It
//! allocates nothing.

use std::net::IpAddr;
use std::sync::Arc;

use geo::Geo;

use super::catalog::{Entry, ParentSide, RecordSet, SearchResult};
use super::cookie::Cookies;
use super::edges::{Dice, EdgeName, RegionChoice};
use super::labels::{A, AAAA, ANY, AXFR, CNAME, DS, HINFO, HTTPS, IN, IXFR, NS, Rcode};
use super::message::{self, Flags, OptRecord, Section, UDP_PAYLOAD, Writer};
use super::name::LowerName;
use super::plan::DnsPlan;
use super::query::{ClientSubnet, Edns, HEADER, Query, Unanswerable};
use super::settings::ADDRESSES_MAX;

/// Answers queries. One for each thread.
pub(crate) struct Responder {
    pub(super) geo: Arc<Geo>,
    pub(super) cookies: Cookies,
    pub(super) dice: Dice,
}

/// The protocol that a query came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DnsTransport {
    /// Responses are limited to what the client takes.
    Udp,
    /// Responses are limited to 64 KiB.
    Tcp,
}

/// Where a query came from, and when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sender {
    /// The resolver's address.
    pub address: IpAddr,
    /// UDP or TCP.
    pub transport: DnsTransport,
    /// Seconds since 1970, modulo 2^32.
    pub now: u32,
}

/// A response, and what metrics, log and rate limit need of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Response {
    /// Its bytes in the caller's buffer.
    pub length: usize,
    /// The code.
    pub rcode: Rcode,
    /// QTYPE.
    pub kind: u16,
    /// Whether it is truncated.
    pub is_truncated: bool,
    /// The zone of the name, by its index.
    pub zone: Option<u16>,
    /// The edge name and its region, by their indices.
    pub edge: Option<(u32, usize)>,
    /// The client subnet that the resolver stated, and its length.
    pub subnet: Option<(IpAddr, u8)>,
    /// Whether the client has returned a valid cookie.
    pub is_verified: bool,
    /// Responses of one class are equal for the rate limit.
    pub class: u64,
    question_end: usize,
    opt_start: usize,
}

impl Response {
    /// Cuts the response to a truncated one without records.
    pub(super) fn truncate(&mut self, out: &mut [u8]) {
        let opt = self.opt_start..self.length;
        self.length = message::cut_to_truncated(out, self.question_end, opt);
        self.is_truncated = true;
    }
}

impl Responder {
    /// Writes the response to `message` into `out`, which has room for the largest one of the transport.
    /// `None`: there must be no response.
    #[inline]
    pub(super) fn respond(
        &mut self,
        plan: &DnsPlan,
        message: &[u8],
        sender: Sender,
        out: &mut [u8],
    ) -> Option<Response> {
        let query = match Query::parse(message) {
            Ok(query) => query,
            Err(Unanswerable::Silence) => return None,
            Err(Unanswerable::Header { start, rcode, dnssec_ok }) => {
                return Some(Response::header_only(out, start, rcode, dnssec_ok));
            }
        };
        let edns = query.edns.as_ref();
        let cookie = edns.and_then(|edns| edns.cookie);
        let cookie = cookie.map(|cookie| self.cookies.check(cookie, sender.address, sender.now));
        let opt = edns.map(|edns| OptRecord {
            dnssec_ok: edns.dnssec_ok,
            nsid: if edns.nsid { &plan.nsid } else { &[] },
            cookie: cookie.map(|cookie| cookie.response),
            subnet: edns.subnet.map(|subnet| (subnet.bytes, 0)),
        });
        let set_aside = opt.map_or(0, |opt| opt.length());
        let limit = length_max(edns, sender.transport);
        let mut answer = Answering {
            plan,
            writer: Writer::new(out, query.question, limit.into(), set_aside),
            outcome: Outcome::default(),
            client: client_of(edns, sender.address),
            kind: query.kind,
        };
        answer.run(&query, self);
        let is_verified = cookie.is_some_and(|cookie| cookie.is_verified);
        Some(Response { is_verified, ..answer.finish(&query, opt, sender.transport) })
    }
}

/// The greatest length of a response.
fn length_max(edns: Option<&Edns<'_>>, transport: DnsTransport) -> u16 {
    match transport {
        DnsTransport::Udp => edns.map_or(PLAIN_PAYLOAD, |edns| edns.payload_max.min(UDP_PAYLOAD)),
        DnsTransport::Tcp => u16::MAX,
    }
}

impl Response {
    /// To a query that could not be parsed: a header and, if the query has an OPT record, an OPT record.
    fn header_only(out: &mut [u8], start: [u8; 4], rcode: Rcode, dnssec_ok: Option<bool>) -> Self {
        let opt = dnssec_ok.map(|dnssec_ok| OptRecord { dnssec_ok, ..OptRecord::default() });
        let set_aside = opt.map_or(0, |opt| opt.length());
        let writer = Writer::new(out, &[], PLAIN_PAYLOAD.into(), set_aside);
        let flags = Flags { start, authoritative: false, truncated: false };
        let (length, opt_start) = writer.finish(flags, rcode, opt);
        Self {
            length,
            rcode,
            kind: 0,
            is_truncated: false,
            zone: None,
            edge: None,
            subnet: None,
            is_verified: false,
            class: rcode as u64,
            question_end: opt_start,
            opt_start,
        }
    }
}

/// The address to choose a place for: the client's network, if the resolver sends it and the client allows it.
fn client_of(edns: Option<&Edns<'_>>, resolver: IpAddr) -> QueryClient {
    let subnet = edns.and_then(|edns| edns.subnet.as_ref());
    let network = subnet.filter(|subnet| subnet.source > 0);
    match network.and_then(|subnet: &ClientSubnet<'_>| subnet.address) {
        Some(address) => QueryClient { address, is_subnet: true },
        None => QueryClient { address: resolver.to_canonical(), is_subnet: false },
    }
}

#[derive(Clone, Copy)]
struct QueryClient {
    address: IpAddr,
    /// Whether the address is that of a client subnet, so that the response says its scope.
    is_subnet: bool,
}

/// The facts about the response beside its records.
#[derive(Clone, Copy)]
struct Outcome {
    rcode: Rcode,
    is_authoritative: bool,
    scope: u8,
    zone: Option<u16>,
    edge: Option<(u32, usize)>,
    class: u64,
}

impl Default for Outcome {
    fn default() -> Self {
        let rcode = Rcode::NoError;
        Self { rcode, is_authoritative: false, scope: 0, zone: None, edge: None, class: 0 }
    }
}

/// A response in the making.
struct Answering<'a> {
    plan: &'a DnsPlan,
    writer: Writer<'a>,
    outcome: Outcome,
    client: QueryClient,
    /// QTYPE.
    kind: u16,
}

/// A name that is being resolved, and where it stands in the message.
#[derive(Clone, Copy)]
struct CurrentName {
    name: LowerName,
    at: usize,
}

impl CurrentName {
    /// Where the last `length` bytes of the name stand.
    fn suffix(&self, length: usize) -> usize {
        self.at + self.name.wire().len() - length
    }
}

impl Answering<'_> {
    fn run(&mut self, query: &Query<'_>, responder: &mut Responder) {
        if query.edns.as_ref().is_some_and(|edns| edns.version != 0) {
            return self.refuse(Rcode::BadVersion);
        }
        if query.question.is_empty() {
            return self.refuse(Rcode::NoError);
        }
        if query.class != IN || [IXFR, AXFR].contains(&query.kind) {
            return self.refuse(Rcode::Refused);
        }
        let Some(name) = LowerName::read(query.question) else {
            return self.refuse(Rcode::FormatError);
        };
        let mut current = CurrentName { name, at: HEADER };
        for hop in 0..=CHAIN_MAX {
            match self.step(&current, hop == 0, responder) {
                Some(next) => current = next,
                None => return,
            }
        }
        // A chain without end: the resolver finds no more by following it itself.
        self.refuse(Rcode::ServerFailure);
        self.writer.truncate();
    }

    /// Writes the header and the OPT record, and says what the response is. No client is verified.
    fn finish(
        self,
        query: &Query<'_>,
        mut opt: Option<OptRecord<'_>>,
        transport: DnsTransport,
    ) -> Response {
        let Self { mut writer, mut outcome, .. } = self;
        let has_overflowed = writer.has_overflowed();
        if has_overflowed {
            writer.truncate();
            if transport == DnsTransport::Tcp {
                outcome.rcode = Rcode::ServerFailure;
            }
        }
        if let Some((_, scope)) = opt.as_mut().and_then(|opt| opt.subnet.as_mut()) {
            *scope = if has_overflowed { 0 } else { outcome.scope };
        }
        let is_truncated = has_overflowed && transport == DnsTransport::Udp;
        let flags = Flags {
            start: query.start,
            authoritative: outcome.is_authoritative,
            truncated: is_truncated,
        };
        let (length, opt_start) = writer.finish(flags, outcome.rcode, opt);
        let subnet = query.edns.as_ref().and_then(|edns| edns.subnet);
        Response {
            length,
            rcode: outcome.rcode,
            kind: query.kind,
            is_truncated,
            zone: outcome.zone,
            edge: outcome.edge,
            subnet: subnet.and_then(|subnet| Some((subnet.address?, subnet.source))),
            is_verified: false,
            class: outcome.class,
            question_end: HEADER + query.question.len(),
            opt_start,
        }
    }

    /// Ends a response without records.
    fn refuse(&mut self, rcode: Rcode) {
        self.outcome = Outcome { rcode, class: rcode as u64, ..Outcome::default() };
    }

    /// Answers one name of a chain. Returns the name that a CNAME points to.
    fn step(
        &mut self,
        current: &CurrentName,
        is_first: bool,
        responder: &mut Responder,
    ) -> Option<CurrentName> {
        match self.plan.catalog.search(&current.name) {
            // The parent has authority over DS (RFC 4035 §3.1.4.1).
            SearchResult::Name(entry)
                if self.kind == DS
                    && let Some(parent) = &entry.parent =>
            {
                self.enter_zone(parent.zone, CLASS_NEGATIVE, is_first);
                self.answer_at_parent(current, parent);
                None
            }
            SearchResult::Name(entry) => {
                self.enter_zone(entry.zone, std::ptr::from_ref(entry).addr() as u64, is_first);
                self.answer_name(current, entry, responder)
            }
            SearchResult::Delegation { cut, name_length }
                if self.kind == DS
                    && cut.is_delegated()
                    && name_length == current.name.wire().len() =>
            {
                self.enter_zone(cut.zone, CLASS_NEGATIVE, is_first);
                self.answer_set_or_nothing(current, cut);
                None
            }
            SearchResult::Delegation { cut, name_length } => {
                self.enter_zone(cut.zone, CLASS_NEGATIVE, is_first);
                self.outcome.is_authoritative = !is_first;
                self.refer(current, cut, name_length);
                None
            }
            SearchResult::NoName { zone } => {
                self.enter_zone(zone, CLASS_NEGATIVE, is_first);
                self.outcome.rcode = Rcode::NameError;
                self.deny(current, zone);
                None
            }
            SearchResult::NoZone if is_first => {
                self.refuse(Rcode::Refused);
                None
            }
            // The resolver follows the chain to other servers.
            SearchResult::NoZone => None,
        }
    }

    /// The first name of a chain decides the zone and the class for the rate limit.
    fn enter_zone(&mut self, zone: u16, class: u64, is_first: bool) {
        if is_first {
            self.outcome.is_authoritative = true;
            self.outcome.zone = Some(zone);
            self.outcome.class = class ^ u64::from(zone) << 48;
        }
    }

    fn answer_name(
        &mut self,
        current: &CurrentName,
        entry: &Entry,
        responder: &mut Responder,
    ) -> Option<CurrentName> {
        let is_edge = entry.edge.filter(|_| [A, AAAA, HTTPS].contains(&self.kind));
        if let Some(edge) = is_edge {
            self.answer_edge(current, entry.zone, edge, responder);
            return None;
        }
        if self.kind == ANY && !entry.is_empty() {
            // RFC 8482 §4.2.
            self.writer.record(Section::Answer, current.at, HINFO, ANY_TTL, b"\x07RFC8482\x00");
            return None;
        }
        let alias = entry.set(CNAME).filter(|_| self.kind != CNAME);
        let Some(alias) = alias else {
            self.answer_set_or_nothing(current, entry);
            return None;
        };
        let target = &alias.contents[0];
        let at = self.writer.record(Section::Answer, current.at, CNAME, alias.ttl, target);
        LowerName::read(target).map(|name| CurrentName { name, at })
    }

    fn answer_set_or_nothing(&mut self, current: &CurrentName, entry: &Entry) {
        match entry.set(self.kind) {
            Some(set) => self.write_set(Section::Answer, current.at, set),
            None => self.deny(current, entry.zone),
        }
    }

    fn answer_at_parent(&mut self, current: &CurrentName, parent: &ParentSide) {
        match &parent.ds {
            Some(set) => self.write_set(Section::Answer, current.at, set),
            None => self.deny(current, parent.zone),
        }
    }

    fn answer_edge(
        &mut self,
        current: &CurrentName,
        zone: u16,
        edge: u32,
        responder: &mut Responder,
    ) {
        let name = &self.plan.edges[edge as usize];
        let geo = &responder.geo;
        let locate = |address| geo.locate_network(address);
        let asked = (self.client.address, self.kind);
        let Some(choice) = name.choose(asked, locate, &mut responder.dice) else {
            return self.refuse(Rcode::ServerFailure);
        };
        self.outcome.edge = Some((edge, choice.region));
        if self.client.is_subnet {
            self.outcome.scope = choice.scope;
        }
        if !self.write_edge(current.at, name, choice, &mut responder.dice) {
            self.deny(current, zone);
        }
    }

    /// Writes the records of an edge name. Returns whether there are any.
    #[inline]
    fn write_edge(
        &mut self,
        at: usize,
        name: &EdgeName,
        choice: RegionChoice,
        dice: &mut Dice,
    ) -> bool {
        let region = &name.regions[choice.region];
        let (writer, count, ttl) = (&mut self.writer, name.addresses_max, name.ttl);
        match self.kind {
            A => region.v4.draw(count, dice, |address| {
                writer.record(Section::Answer, at, A, ttl, address);
            }),
            AAAA => region.v6.draw(count, dice, |address| {
                writer.record(Section::Answer, at, AAAA, ttl, address);
            }),
            _ if name.https => {
                let mut content = ServiceContent::default();
                content.add_hints(HINT_V4, |content| {
                    region.v4.draw(count, dice, |it| content.put(it))
                });
                content.add_hints(HINT_V6, |content| {
                    region.v6.draw(count, dice, |it| content.put(it))
                });
                writer.record(Section::Answer, at, HTTPS, ttl, content.bytes());
            }
            _ => {}
        }
        match self.kind {
            A => region.v4.len() > 0,
            AAAA => region.v6.len() > 0,
            _ => name.https,
        }
    }

    /// Adds the SOA of a negative response (RFC 2308 §3).
    fn deny(&mut self, current: &CurrentName, zone: u16) {
        let zone = &self.plan.catalog.zones[usize::from(zone)];
        let owner = current.suffix(zone.name_length);
        self.write_set(Section::Authority, owner, &zone.soa);
    }

    /// Adds the NS of a delegation and their addresses. A referral without an address that it needs is useless,
    /// so that one which does not fit truncates the response (RFC 9471 §2).
    fn refer(&mut self, current: &CurrentName, cut: &Entry, name_length: usize) {
        let Some(set) = cut.set(NS) else { return };
        let owner = current.suffix(name_length);
        let mut places = [0; SERVERS_MAX];
        for (content, place) in set.contents.iter().zip(&mut places) {
            *place = self.writer.record(Section::Authority, owner, NS, set.ttl, content);
        }
        for (server, place) in set.contents.iter().zip(places) {
            for addresses in self.plan.catalog.addresses(server) {
                self.write_set(Section::Additional, place, addresses);
            }
        }
    }

    fn write_set(&mut self, section: Section, owner: usize, set: &RecordSet) {
        for content in &set.contents {
            self.writer.record(section, owner, set.kind, set.ttl, content);
        }
    }
}

/// The content of a record HTTPS (RFC 9460 §2.2): priority 1, the name itself, HTTP/2 besides HTTP/1.1, and
/// addresses to connect to without a further query.
struct ServiceContent {
    bytes: [u8; SERVICE_MAX],
    length: usize,
}

impl Default for ServiceContent {
    fn default() -> Self {
        let mut content = Self { bytes: [0; SERVICE_MAX], length: 0 };
        content.put(&[0, 1, 0]);
        // alpn: one protocol of two letters.
        content.put(&[0, 1, 0, 3, 2]);
        content.put(b"h2");
        content
    }
}

impl ServiceContent {
    /// Adds a list of addresses, unless there are none.
    fn add_hints(&mut self, key: u8, write: impl FnOnce(&mut Self)) {
        let start = self.length;
        self.put(&[0, key, 0, 0]);
        let first = self.length;
        write(self);
        let length = self.length - first;
        if length == 0 {
            self.length = start;
        }
        self.bytes[first - 2..first].copy_from_slice(&(length as u16).to_be_bytes());
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.length..self.length + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

const HINT_V4: u8 = 4;
const HINT_V6: u8 = 6;
const SERVICE_MAX: usize = 18 + (4 + 16) * ADDRESSES_MAX;
/// The most names of a CNAME chain.
pub(super) const CHAIN_MAX: usize = 8;
/// The most name servers of a delegation.
pub(super) const SERVERS_MAX: usize = 32;
/// A response without EDNS (RFC 1035 §4.2.1).
const PLAIN_PAYLOAD: u16 = 512;
/// TTL of the answer to ANY, in seconds.
const ANY_TTL: u32 = 3600;
/// Negative responses of a zone are equal for the rate limit: each of a flood asks for another name.
const CLASS_NEGATIVE: u64 = 1 << 40;
