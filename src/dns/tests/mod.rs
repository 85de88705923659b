//! Tests of the room as a whole: a query in, a response out, decoded by another implementation.

mod choice;
mod lookup;
mod report;

use std::net::IpAddr;
use std::sync::Arc;

use geo::Geo;
use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::{ClientSubnet, EdnsCode, EdnsOption};
use hickory_proto::rr::{Name, RecordType};

use super::cookie::Cookies;
use super::edges::Dice;
use super::plan::{DnsPlan, PlanCounters};
use super::respond::{DnsTransport, Responder, Response, Sender};
use super::settings::{EdgeNode, EdgeSettings, EdgeState, RegionPolicy, Settings, ZoneSettings};
use super::{name, record};

/// A zone with one name server outside of it and these records.
pub(super) fn zone(name: &str, records: &[&str]) -> ZoneSettings {
    let parsed = records.iter().flat_map(|line| record::parse(line, name, 3600).expect(line));
    ZoneSettings {
        name: name.to_owned(),
        name_servers: vec!["ns.example.net".to_owned()],
        contact: "hostmaster@example.net".to_owned(),
        ttl: 3600,
        negative_ttl: 300,
        serial: 1,
        records: parsed.collect(),
        edges: Vec::new(),
    }
}

pub(super) fn edge(text: &str, policy: RegionPolicy) -> EdgeSettings {
    EdgeSettings {
        name: name::from_text(text).expect("a name"),
        ttl: 30,
        addresses_max: 2,
        policy,
        regions: Vec::new(),
        weights: Vec::new(),
        load_max: 0.9,
        map: Vec::new(),
        https: true,
    }
}

/// A ready node at these coordinates.
pub(super) fn node(name: &str, region: &str, point: (f64, f64), addresses: &[&str]) -> EdgeNode {
    EdgeNode {
        name: name.into(),
        region: region.into(),
        coordinates: geo::Coordinates::new(point.0, point.1).ok(),
        addresses: addresses.iter().map(|text| text.parse().expect("an address")).collect(),
        weight: 100,
        load: 0.0,
        state: EdgeState::Ready,
    }
}

/// The name server without its sockets.
pub(super) struct Server {
    pub plan: DnsPlan,
    pub responder: Responder,
}

impl Server {
    pub(super) fn new(zones: Vec<ZoneSettings>, nodes: &[EdgeNode]) -> Self {
        let settings = Settings { zones, has_https: true, ..Settings::default() };
        let plan = DnsPlan::new(&settings, nodes, &PlanCounters::default());
        let plan = plan.unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
        Self { plan, responder: responder() }
    }

    /// The response to these bytes.
    pub(super) fn respond(&mut self, query: &[u8], transport: DnsTransport) -> Option<Vec<u8>> {
        self.respond_with_facts(query, transport).map(|(bytes, _)| bytes)
    }

    pub(super) fn respond_with_facts(
        &mut self,
        query: &[u8],
        transport: DnsTransport,
    ) -> Option<(Vec<u8>, Response)> {
        let sender = Sender { address: resolver(), transport, now: 1_700_000_000 };
        let mut out = vec![0; usize::from(u16::MAX)];
        let response = self.responder.respond(&self.plan, query, sender, &mut out)?;
        Some((out[..response.length].to_vec(), response))
    }

    /// The response to a question by UDP with EDNS.
    pub(super) fn ask(&mut self, name: &str, kind: RecordType) -> Message {
        self.send(query(name, kind, None))
    }

    /// The same from a client in this network.
    pub(super) fn ask_for(&mut self, name: &str, kind: RecordType, subnet: &str) -> Message {
        self.send(query(name, kind, Some(subnet)))
    }

    pub(super) fn send(&mut self, query: Message) -> Message {
        let bytes = query.to_vec().expect("a query");
        let response = self.respond(&bytes, DnsTransport::Udp).expect("a response");
        Message::from_vec(&response).expect("another implementation reads it")
    }
}

pub(super) fn responder() -> Responder {
    Responder {
        geo: Arc::new(Geo::open(&geo::Settings::default()).expect("built in")),
        cookies: Cookies::new([7; 16]),
        dice: Dice(1),
    }
}

pub(super) fn resolver() -> IpAddr {
    "192.0.2.53".parse().expect("an address")
}

pub(super) fn query(name: &str, kind: RecordType, subnet: Option<&str>) -> Message {
    let mut message = Message::new(77, hickory_proto::op::MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    if let Some((address, prefix)) = subnet.and_then(|subnet| subnet.split_once('/')) {
        let (address, prefix) =
            (address.parse().expect("an address"), prefix.parse().expect("bits"));
        edns.options_mut().insert(EdnsOption::Subnet(ClientSubnet::new(address, prefix, 0)));
    }
    message.edns = Some(edns);
    message
}

/// The scope that the response says.
pub(super) fn scope(message: &Message) -> Option<u8> {
    match message.edns.as_ref()?.option(EdnsCode::Subnet)? {
        EdnsOption::Subnet(subnet) => Some(subnet.scope_prefix()),
        _ => None,
    }
}

/// The records of a section as `name type content`, without their TTLs.
pub(super) fn lines(records: &[hickory_proto::rr::Record]) -> Vec<String> {
    let line = |record: &hickory_proto::rr::Record| {
        format!("{} {} {}", record.name.to_ascii(), record.record_type(), record.data)
    };
    records.iter().map(line).collect()
}

#[track_caller]
pub(super) fn check_code(message: &Message, code: ResponseCode, authoritative: bool) {
    assert_eq!(message.metadata.response_code, code, "{message:?}");
    assert_eq!(message.metadata.authoritative, authoritative, "{message:?}");
    assert!(!message.metadata.recursion_available);
}
