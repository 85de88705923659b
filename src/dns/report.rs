//! Explains the answers of the name server to operators: `GET /dns`, `skerry dns explain` and `skerry dns export`.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use geo::{Country, Place, UnitVector};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::opt::{ClientSubnet, EdnsOption};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use serde_json::{Value, json};

use super::catalog::{Entry, SearchResult};
use super::edges::{Dice, EdgeName, EdgeRegion};
use super::labels::{A, AAAA, HTTPS, NS, SOA};
use super::name::{self, LowerName};
use super::plan::DnsPlan;
use super::record;
use super::respond::{DnsTransport, Responder, Sender};
use super::server::NameServer;
use super::settings::{EdgeState, RegionPolicy, Settings};
use crate::random::random_u64;

/// A question to explain.
#[derive(Clone, Debug)]
pub(crate) struct DnsQuestion {
    /// The name, absolute.
    pub name: String,
    /// The type, such as `AAAA`. `None`: A.
    pub kind: Option<String>,
    /// The client's address. `None`: a client of unknown location.
    pub client: Option<IpAddr>,
}

impl NameServer {
    /// Addresses, zones and nodes.
    pub(crate) fn report(&self) -> Value {
        let settings = self.settings().clone();
        let plan = self.state.plan.load();
        let nodes = self.nodes.borrow().clone();
        let nodes = nodes.iter().map(|node| {
            json!({
                "node": &*node.name,
                "region": &*node.region,
                "addresses": node.addresses,
                "weight": node.weight,
                "load": node.load,
                "state": node.state.as_str(),
            })
        });
        let edges = edge_names(&plan);
        let zones = settings.zones.iter().enumerate().map(|(at, zone)| {
            let of_zone = edges.iter().filter(|(_, entry)| usize::from(entry.zone) == at);
            let edges = of_zone.filter_map(|(name, entry)| {
                Some(edge_report(name, &plan.edges[entry.edge? as usize]))
            });
            json!({
                "zone": zone.name,
                "name_servers": zone.name_servers,
                "serial": zone.serial,
                "records": zone.records.len(),
                "edges": edges.collect::<Vec<_>>(),
            })
        });
        json!({
            "addresses": self.addresses(),
            "zones": zones.collect::<Vec<_>>(),
            "nodes": nodes.collect::<Vec<_>>(),
        })
    }

    /// The response to a question, and how its region was chosen.
    ///
    /// # Errors
    /// The name or the type cannot be asked for.
    pub(crate) fn explain(&self, question: &DnsQuestion) -> Result<Value, String> {
        let wire = name::from_text(&question.name)?;
        let kind = question.kind.as_deref().unwrap_or("A");
        let kind = record::kind_of(kind).ok_or_else(|| {
            format!("{kind:?} is no record type: expected one such as A, AAAA, HTTPS or TYPE65280")
        })?;
        let plan = self.state.plan.load();
        // The answer and its explanation throw the same dice, so that they are about the same region.
        let dice = random_u64();
        let client = question.client.map(|client| client.to_canonical());
        let message = self.ask(&plan, &question.name, kind, client, dice)?;
        let mut explanation = json!({
            "name": name::to_text(&wire),
            "type": record::kind_text(kind),
            "client": question.client,
            "rcode": format!("{:?}", message.metadata.response_code).to_ascii_uppercase(),
            "authoritative": message.metadata.authoritative,
            "answer": lines(&message.answers),
            "authority": lines(&message.authorities),
        });
        let entry = LowerName::read(&wire).map(|name| plan.catalog.search(&name));
        if let Some(SearchResult::Name(entry)) = entry {
            explanation["zone"] = json!(&*plan.catalog.zones[usize::from(entry.zone)].name);
            explanation["only_names_below"] = json!(entry.is_empty());
        }
        let depends_on_client = [A, AAAA, HTTPS].contains(&kind.into());
        let edge = self.edge_of(&plan, &wire, &message.answers);
        if let Some((edge, text)) = edge.filter(|_| depends_on_client) {
            explanation["edge"] = self.explain_edge(&text, edge, (client, kind.into()), dice);
        }
        Ok(explanation)
    }

    /// The zones as zone files. Addresses of edge names are those for `client`, or for a client of unknown
    /// location; comments say what the clients of each country get.
    ///
    /// # Errors
    /// The name server has no such zone.
    pub(crate) fn export(
        &self,
        zone: Option<&str>,
        client: Option<IpAddr>,
    ) -> Result<Value, String> {
        let settings = self.settings().clone();
        let (plan, client) = (self.state.plan.load(), client.map(|client| client.to_canonical()));
        let wanted = zone.map(|zone| zone.trim_end_matches('.').to_ascii_lowercase());
        let mut files = serde_json::Map::new();
        for (at, zone) in settings.zones.iter().enumerate() {
            if wanted.as_ref().is_none_or(|wanted| zone.name.eq_ignore_ascii_case(wanted)) {
                files.insert(
                    zone.name.clone(),
                    self.zone_file(&plan, &settings, at, client)?.into(),
                );
            }
        }
        match (files.is_empty(), zone) {
            (true, Some(zone)) => Err(format!("the node has no zone {zone:?}")),
            _ => Ok(json!({ "zones": files })),
        }
    }

    /// Asks as a resolver that states the client's address. `dice`: chooses regions and nodes.
    fn ask(
        &self,
        plan: &DnsPlan,
        name: &str,
        kind: RecordType,
        client: Option<IpAddr>,
        dice: u64,
    ) -> Result<Message, String> {
        let mut message = Message::new(0, MessageType::Query, OpCode::Query);
        let mut name = Name::from_str(name).map_err(|error| error.to_string())?;
        name.set_fqdn(true);
        message.add_query(Query::query(name, kind));
        let mut edns = Edns::new();
        if let Some(client) = client {
            let bits = if client.is_ipv4() { 32 } else { 128 };
            edns.options_mut().insert(EdnsOption::Subnet(ClientSubnet::new(client, bits, 0)));
        }
        message.edns = Some(edns);
        let query = message.to_vec().map_err(|error| error.to_string())?;
        let mut out = vec![0; usize::from(u16::MAX)];
        let sender = Sender { address: NOWHERE, transport: DnsTransport::Tcp, now: 0 };
        let mut responder = Responder { dice: Dice(dice), ..self.responder() };
        let response = responder.respond(plan, &query, sender, &mut out);
        let length = response.ok_or("the query has no response")?.length;
        Message::from_vec(&out[..length]).map_err(|error| error.to_string())
    }

    /// The edge name that an answer ends at, and its text.
    fn edge_of<'a>(
        &self,
        plan: &'a DnsPlan,
        wire: &[u8],
        answers: &[Record],
    ) -> Option<(&'a EdgeName, String)> {
        let mut targets = answers.iter().filter_map(|record| match &record.data {
            RData::CNAME(target) => Some(name::to_wire(&target.0)),
            _ => None,
        });
        let last = targets.next_back().unwrap_or_else(|| wire.into());
        match plan.catalog.search(&LowerName::read(&last)?) {
            SearchResult::Name(entry) => {
                Some((&plan.edges[entry.edge? as usize], name::to_text(&last)))
            }
            _ => None,
        }
    }

    fn explain_edge(
        &self,
        name: &str,
        edge: &EdgeName,
        (client, kind): (Option<IpAddr>, u16),
        dice: u64,
    ) -> Value {
        let address = client.unwrap_or(NOWHERE);
        let (place, _) = self.geo.locate_network(address);
        let locate = |address| self.geo.locate_network(address);
        let choice = edge.choose((address, kind), locate, &mut Dice(dice));
        let regions = edge.regions.iter().map(|region| region_report(region, &place));
        let mut regions: Vec<Value> = regions.collect();
        // Without a place, they keep their order.
        regions.sort_by_key(|region| region["distance_km"].as_u64());
        json!({
            "name": name,
            "policy": edge.policy.as_str(),
            "country": place.country.map(|country| country.as_str().to_owned()),
            "continent": place.continent.map(|continent| continent.as_str()),
            "asn": place.asn(),
            "nodes_used": edge.state_for(kind).map(EdgeState::as_str),
            "region": choice.map(|choice| edge.regions[choice.region].name.to_string()),
            "why": choice.map(|choice| choice.why.as_str()),
            "scope": choice.map(|choice| choice.scope),
            "regions": regions,
        })
    }

    fn zone_file(
        &self,
        plan: &DnsPlan,
        settings: &Settings,
        at: usize,
        client: Option<IpAddr>,
    ) -> Result<String, String> {
        let zone = &settings.zones[at];
        let mut file = format!("$ORIGIN {}.\n", zone.name);
        let apex = self.ask(plan, &zone.name, RecordType::from(SOA), None, 0)?;
        let servers = self.ask(plan, &zone.name, RecordType::from(NS), None, 0)?;
        let lines = lines(&apex.answers).into_iter().chain(lines(&servers.answers));
        lines.for_each(|line| file.push_str(&format!("{line}\n")));
        for record in &zone.records {
            let owner = name::to_text(&record.owner);
            writeln!(file, "{owner} {} IN {}", record.ttl, record.text).expect("a String");
        }
        for (name, entry) in edge_names(plan).iter().filter(|(_, it)| usize::from(it.zone) == at) {
            let Some(edge) = entry.edge.map(|edge| &plan.edges[edge as usize]) else { continue };
            self.write_edge(&mut file, plan, &name::to_text(name), edge, client)?;
        }
        Ok(file)
    }

    fn write_edge(
        &self,
        file: &mut String,
        plan: &DnsPlan,
        name: &str,
        edge: &EdgeName,
        client: Option<IpAddr>,
    ) -> Result<(), String> {
        let policy = edge.policy.as_str();
        writeln!(file, "; edge name {name} policy {policy}").expect("a String");
        for (at, region) in edge.regions.iter().enumerate() {
            let addresses = addresses(region).join(" ");
            let countries = countries_of(edge, at).join(" ");
            writeln!(file, ";   region {}: {addresses}: {countries}", region.name)
                .expect("a String");
        }
        // The same dice for all types, so that they are about the same region.
        let dice = random_u64();
        for kind in [RecordType::A, RecordType::AAAA, RecordType::HTTPS] {
            let message = self.ask(plan, name, kind, client, dice)?;
            for line in lines(&message.answers) {
                writeln!(file, "{line}").expect("a String");
            }
        }
        Ok(())
    }
}

/// The edge names of all zones, sorted.
fn edge_names(plan: &DnsPlan) -> Vec<(&[u8], &Entry)> {
    plan.catalog.sorted().into_iter().filter(|(_, entry)| entry.edge.is_some()).collect()
}

fn edge_report(wire: &[u8], edge: &EdgeName) -> Value {
    let regions = edge.regions.iter().map(|region| region_report(region, &Place::default()));
    json!({
        "name": name::to_text(wire),
        "policy": edge.policy.as_str(),
        "ttl": edge.ttl,
        "nodes_used": edge.best_state.map(EdgeState::as_str),
        "regions": regions.collect::<Vec<_>>(),
    })
}

/// `distance_km` is that of a client at `place`.
fn region_report(region: &EdgeRegion, place: &Place) -> Value {
    let distance = place.unit_vector().zip(region.point);
    let km = |(from, to): (UnitVector, UnitVector)| from.distance_km(to).round() as u64;
    json!({
        "region": &*region.name,
        "usable": region.is_usable(),
        "addresses": addresses(region),
        "load": region.load,
        "overflow_percent": u64::from(region.overflow) * 100 / u64::from(u32::MAX),
        "distance_km": distance.map(km),
    })
}

fn addresses(region: &EdgeRegion) -> Vec<String> {
    let v4 = region.v4.iter().map(|(_, address)| Ipv4Addr::from(*address).to_string());
    v4.chain(region.v6.iter().map(|(_, address)| Ipv6Addr::from(*address).to_string())).collect()
}

/// The countries whose clients get a region by the policy "nearest", apart from overflow.
fn countries_of(edge: &EdgeName, region: usize) -> Vec<String> {
    if edge.policy != RegionPolicy::Nearest {
        return Vec::new();
    }
    let is_of = |country: &Country| {
        edge.for_place(&Place::in_country(*country)).is_some_and(|nearest| nearest == region)
    };
    Country::all().filter(is_of).map(|country| country.as_str().to_owned()).collect()
}

/// The records as in a zone file.
fn lines(records: &[Record]) -> Vec<String> {
    let line = |record: &Record| {
        let name = record.name.to_ascii();
        let content = record::content_text(&record.data);
        let kind = record::kind_text(record.record_type());
        format!("{name} {} IN {kind} {content}", record.ttl)
    };
    records.iter().map(line).collect()
}

/// An address without a place, for clients of unknown location.
const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
