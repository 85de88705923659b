//! Reads the tables of the name server: `[dns.server]`, `[dns.nodes.NAME]` and `[dns.zones.NAME]`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use super::super::mistakes::suggestion;
use super::super::names::{PLAIN_NAME, check_plain_name, is_host_name, is_plain_name};
use super::super::reader::{Reader, Section};
use super::super::remedy;
use super::super::values::{Value, text_or};
use super::log::check_log_path;
use super::node::{NodeSettings, read_coordinates};
use crate::dns::{
    self, ADDRESSES_MAX, Catalog, EdgeNode, EdgeSettings, EdgeState, NODES_MAX, NSID_MAX,
    REGIONS_MAX, RegionByClient, RegionPolicy, ServerSettings, WEIGHT_MAX, ZonePart, ZoneSettings,
};

/// Reads the tables in `[dns]`. `has_fleet`: nodes come from the table of the fleet, too.
pub(crate) fn read_name_server(
    section: &Section<'_>,
    dns: &mut dns::Settings,
    node: &NodeSettings,
    has_fleet: bool,
) {
    read_server(&section.section("server"), &mut dns.server, node);
    let nodes = section.named("nodes");
    dns.nodes = nodes.iter().map(|(name, section)| read_edge_node(name, section)).collect();
    dns.nodes.sort_by(|one, other| one.name.cmp(&other.name));
    if dns.nodes.len() > NODES_MAX {
        section.mistake("nodes", format!("at most {NODES_MAX} nodes can be listed"));
    }
    let known = KnownNodes::new(&dns.nodes, node, has_fleet);
    let zones = section.named("zones");
    dns.zones = zones.iter().map(|(name, section)| read_zone(name, section, &known)).collect();
    // Records that could not be read are missing, and others may need them.
    if !section.reader.has_mistakes() {
        check_zones(&zones, &dns.zones);
        check_drain(section, dns, node);
    }
}

fn read_server(section: &Section<'_>, server: &mut ServerSettings, node: &NodeSettings) {
    section.read("addresses", &mut server.addresses);
    section.read_within("threads", &mut server.threads, 1..=64);
    section.read_within("tcp_connections_max", &mut server.tcp_connections_max, 1..=100_000);
    section.read_within("tcp_per_address_max", &mut server.tcp_per_address_max, 1..=100_000);
    section.read_within("tcp_idle", &mut server.tcp_idle, SECOND..=MINUTE);
    server.nsid.clone_from(&node.name);
    section.read("nsid", &mut server.nsid);
    if section.has("nsid") && server.nsid.len() > NSID_MAX {
        section.mistake("nsid", format!("expected at most {NSID_MAX} bytes"));
    }
    section.read("rate_per_second", &mut server.rate_per_second);
    section.read_within("rate_slip", &mut server.rate_slip, 0..=10);
    section.read_within("rate_entries_max", &mut server.rate_entries_max, 1024..=16_777_216);
    section.read("query_log", &mut server.query_log);
    if let Some(path) = &server.query_log {
        check_log_path(section, "query_log", path);
    }
    let mut path = PathBuf::new();
    if section.read_file("cookie_secret_file", &mut path) {
        match std::fs::read_to_string(&path).ok().and_then(|text| secret(text.trim())) {
            Some(secret) => server.cookie_secret = Some(secret),
            None => section.mistake_in_file(
                "cookie_secret_file",
                format!(
                    "{}: expected 32 hexadecimal digits, as from `openssl rand -hex 16`",
                    path.display()
                ),
            ),
        }
        server.cookie_secret_file = Some(path);
    }
}

fn secret(text: &str) -> Option<[u8; 16]> {
    let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    u128::from_str_radix(text, 16).ok().filter(|_| is_hex).map(u128::to_be_bytes)
}

fn read_edge_node(name: &str, section: &Section<'_>) -> EdgeNode {
    let mut node = EdgeNode {
        name: name.into(),
        region: "".into(),
        coordinates: None,
        addresses: Vec::new(),
        weight: 100,
        load: 0.0,
        state: EdgeState::Ready,
    };
    if section.read("region", &mut node.region) {
        check_plain_name(section, "region", &node.region);
    } else {
        section.mistake("region", "the node has no \"region\", such as region = \"eu\"");
    }
    let mut addresses: Vec<NodeAddress> = Vec::new();
    section.read("addresses", &mut addresses);
    node.addresses = addresses.into_iter().map(|address| address.0).collect();
    if node.addresses.is_empty() && !section.has_items("addresses") {
        section.mistake(
            "addresses",
            "the node has no \"addresses\", such as addresses = [\"192.0.2.1\"]",
        );
    }
    node.coordinates = read_coordinates(section);
    section.read_within("weight", &mut node.weight, 0..=WEIGHT_MAX);
    section.choice("state", &mut node.state, &EdgeState::ALL);
    node
}

fn read_zone(name: &str, section: &Section<'_>, nodes: &KnownNodes) -> ZoneSettings {
    let mut zone = ZoneSettings {
        name: name.trim_end_matches('.').to_owned(),
        name_servers: Vec::new(),
        contact: format!("hostmaster@{}", name.trim_end_matches('.')),
        ttl: 3600,
        negative_ttl: 300,
        serial: 1,
        records: Vec::new(),
        edges: Vec::new(),
    };
    section.read("name_servers", &mut zone.name_servers);
    if zone.name_servers.is_empty() {
        section.mistake(
            "name_servers",
            "the zone has no name servers, such as name_servers = [\"ns1.example.org\"]",
        );
    }
    section.read("contact", &mut zone.contact);
    if zone
        .contact
        .split_once('@')
        .is_none_or(|(name, host)| name.is_empty() || !is_host_name(host))
    {
        let found = &zone.contact;
        let message =
            format!("expected a mail address such as \"hostmaster@example.org\", found {found:?}");
        section.mistake("contact", message);
    }
    read_ttl(section, "ttl", &mut zone.ttl);
    read_ttl(section, "negative_ttl", &mut zone.negative_ttl);
    section.read("serial", &mut zone.serial);
    zone.records = read_records(section, &zone);
    let edges = section.named("edges").into_iter();
    zone.edges =
        edges.filter_map(|(edge, section)| read_edge(&edge, &section, &zone, nodes)).collect();
    zone
}

/// The lines of the option `records`; each broken one is a mistake at its own place.
fn read_records(section: &Section<'_>, zone: &ZoneSettings) -> Vec<dns::ZoneRecord> {
    let mut records = Vec::new();
    let Some(value) = section.raw("records") else {
        section.record("records", &records);
        return records;
    };
    let items = match value.get_ref() {
        DeValue::Array(items) => items.iter().collect(),
        _ => vec![value],
    };
    for item in items {
        let Some(line) = String::read(item, section.reader) else { continue };
        match dns::parse_records(&line, &zone.name, zone.ttl) {
            Ok(parsed) => records.extend(parsed),
            Err(why) => section.reader.mistake(&item.span(), format!("{line:?}: {why}")),
        }
    }
    section.record("records", &records);
    records
}

fn read_edge(
    name: &str,
    section: &Section<'_>,
    zone: &ZoneSettings,
    nodes: &KnownNodes,
) -> Option<EdgeSettings> {
    let short = below_zone(name, &zone.name);
    if let Some(short) = short {
        let message = format!(
            "a name in \"edges\" is below the zone, so that this one ends in {0:?} twice: write {short:?} for {name:?}",
            zone.name
        );
        section.mistake("", message);
    }
    let full = if name == "@" { zone.name.clone() } else { format!("{name}.{}", zone.name) };
    let wire = dns::wire_name(&full);
    let mut edge = EdgeSettings {
        name: wire.clone().unwrap_or_default(),
        ttl: 30,
        addresses_max: 2,
        policy: RegionPolicy::Nearest,
        regions: Vec::new(),
        weights: Vec::new(),
        load_max: 0.9,
        map: Vec::new(),
        https: true,
    };
    read_ttl(section, "ttl", &mut edge.ttl);
    if edge.ttl == 0 {
        let message = "expected 1s to 7d, found 0s: resolvers would ask for each connection of each client; the default is 30s";
        section.mistake("ttl", message);
    }
    section.read_within("addresses_max", &mut edge.addresses_max, 1..=ADDRESSES_MAX);
    section.choice("policy", &mut edge.policy, &RegionPolicy::ALL);
    section.read("regions", &mut edge.regions);
    if edge.regions.len() > REGIONS_MAX {
        section.mistake("regions", format!("at most {REGIONS_MAX} regions can be listed"));
    }
    for region in &edge.regions {
        check_region(section, "regions", region, nodes);
    }
    let mut load_max = f64::from(edge.load_max);
    section.read_within("load_max", &mut load_max, 0.1..=1.0);
    edge.load_max = load_max as f32;
    section.read("https", &mut edge.https);
    edge.weights = read_weights(&section.section("weights"), nodes);
    if !edge.weights.is_empty() && edge.weights.iter().all(|(_, weight)| *weight == 0) {
        section.mistake("weights", "all weights are 0: give at least one region a weight");
    }
    if !edge.weights.is_empty() && edge.policy != RegionPolicy::Weighted {
        section.mistake("weights", "\"weights\" has no effect without policy = \"weighted\"");
    }
    edge.map = section.list("map").iter().filter_map(|entry| read_map(entry, nodes)).collect();
    if edge.policy == RegionPolicy::Nearest {
        check_places(section, &edge, nodes);
    }
    if name != "*" && name.trim_start_matches("*.").contains('*') {
        let message = format!(
            "{name:?}: \"*\" stands only at the beginning, for all labels before a name (RFC 4592 §2.1.1): no query has this name"
        );
        section.mistake("", message);
    }
    match wire {
        Ok(_) => Some(edge),
        Err(_) if short.is_some() => None,
        Err(why) => {
            section.mistake("", format!("{name:?} is no name in the zone: {why}"));
            None
        }
    }
}

/// The name without the zone, if it is an absolute name in it.
fn below_zone<'a>(name: &'a str, zone: &str) -> Option<&'a str> {
    let name = name.trim_end_matches('.');
    let start = name.len().checked_sub(zone.len())?;
    let (short, end) = (name.get(..start)?, name.get(start..)?);
    match (short.strip_suffix('.'), short) {
        _ if !end.eq_ignore_ascii_case(zone) => None,
        (_, "") => Some("@"),
        (short, _) => short,
    }
}

fn read_weights(section: &Section<'_>, nodes: &KnownNodes) -> Vec<(Arc<str>, u32)> {
    let mut weights = Vec::new();
    for (region, span, value) in section.entries() {
        if let Err(message) = nodes.check_region(region) {
            section.reader.mistake(&span, message);
        }
        if let Some(weight) = u32::read(value, section.reader) {
            weights.push((region.into(), weight));
        }
    }
    section.record("", &weights);
    weights
}

fn read_map(section: &Section<'_>, nodes: &KnownNodes) -> Option<RegionByClient> {
    let mut entry = RegionByClient::default();
    section.read("countries", &mut entry.countries);
    section.read("continents", &mut entry.continents);
    section.read("asns", &mut entry.asns);
    section.read("networks", &mut entry.networks);
    if !section.read("region", &mut entry.region) {
        section.mistake("", "the entry has no \"region\", such as region = \"eu\"");
        return None;
    }
    check_region(section, "region", &entry.region, nodes);
    const CONDITIONS: [&str; 4] = ["countries", "continents", "asns", "networks"];
    if !CONDITIONS.into_iter().any(|name| section.has(name)) {
        let message = "the entry matches no client: set \"countries\", \"continents\", \"asns\" or \"networks\"";
        section.mistake("", message);
    }
    Some(entry)
}

fn check_region(section: &Section<'_>, option: &str, region: &str, nodes: &KnownNodes) {
    if let Err(message) = nodes.check_region(region) {
        section.mistake(option, message);
    }
}

/// The regions and places of nodes, as far as the configuration knows them.
struct KnownNodes {
    /// Those in `[dns.nodes]`, and this node if it has public addresses.
    regions: Vec<(Arc<str>, bool)>,
    has_fleet: bool,
}

impl KnownNodes {
    fn new(listed: &[EdgeNode], own: &NodeSettings, has_fleet: bool) -> Self {
        let regions = listed.iter().map(|node| (node.region.clone(), node.coordinates.is_some()));
        let is_listed = listed.iter().any(|node| *node.name == own.name);
        let own = (!own.addresses.is_empty() && !is_listed)
            .then(|| (own.region.as_str().into(), own.coordinates.is_some()));
        Self { regions: regions.chain(own).collect(), has_fleet }
    }

    fn check_region(&self, region: &str) -> Result<(), String> {
        if !is_plain_name(region) {
            return Err(format!("expected {PLAIN_NAME}, found {region:?}"));
        }
        if self.has_fleet || self.regions.iter().any(|(known, _)| **known == *region) {
            return Ok(());
        }
        let near = suggestion(region, self.regions.iter().map(|(known, _)| &**known));
        Err(format!("no node in [dns.nodes] has the region {region:?}{near}"))
    }
}

/// Nearest needs to know where nodes are, unless there is nothing to choose.
fn check_places(section: &Section<'_>, edge: &EdgeSettings, nodes: &KnownNodes) {
    let regions = nodes.regions.iter();
    let used: Vec<&(Arc<str>, bool)> = regions
        .filter(|(region, _)| edge.regions.is_empty() || edge.regions.contains(region))
        .collect();
    let has_choice = used.iter().any(|(region, _)| *region != used[0].0);
    let nowhere = used
        .iter()
        .find(|(region, _)| !used.iter().any(|(other, has_place)| other == region && *has_place));
    // A node of the fleet may tell where the region is.
    let nowhere = nowhere.filter(|_| has_choice && !nodes.has_fleet);
    if let Some((region, _)) = nowhere {
        let message = format!(
            "policy = \"nearest\" needs \"latitude\" and \"longitude\" of a node in each region: no node in the region {region:?} has them"
        );
        section.mistake("policy", message);
    }
}

/// The checks across records and zones.
fn check_zones(sections: &[(String, Section<'_>)], zones: &[ZoneSettings]) {
    for mistake in Catalog::build(zones).err().unwrap_or_default() {
        let (section, zone) = (&sections[mistake.zone].1, &zones[mistake.zone]);
        match mistake.part {
            ZonePart::Record(at) => {
                let line = &zone.records[at].text;
                section.mistake("records", format!("{line}: {}", mistake.message));
            }
            // All edges could be read, so that none is missing in the settings.
            ZonePart::Edge(at) => section.named("edges")[at].1.mistake("", mistake.message),
            ZonePart::Whole => section.mistake("name_servers", mistake.message),
        }
    }
}

/// Resolvers give a node's address to clients for a TTL after the node has left the answers.
fn check_drain(section: &Section<'_>, dns: &dns::Settings, node: &NodeSettings) {
    let edges = dns.zones.iter().flat_map(|zone| &zone.edges);
    let Some(ttl) = edges.map(|edge| edge.ttl).max() else { return };
    let needed = Duration::from_secs(u64::from(ttl)) + LEAVING;
    let is_listed = dns.nodes.iter().any(|other| *other.name == node.name);
    if (is_listed || !node.addresses.is_empty()) && node.drain_notice < needed {
        let message = format!(
            "node.drain_notice: expected at least {needed:?}, the longest \"ttl\" of an edge name and {LEAVING:?}, found {:?}: resolvers send clients to this node for so long after it began to drain",
            node.drain_notice
        );
        section.mistake("zones", message);
    }
}

/// Whole seconds, up to a week.
fn read_ttl(section: &Section<'_>, name: &'static str, target: &mut u32) {
    let mut ttl = Duration::from_secs((*target).into());
    section.read_within(name, &mut ttl, Duration::ZERO..=TTL_MAX);
    if ttl.subsec_nanos() > 0 {
        section.mistake(name, format!("expected whole seconds, found {ttl:?}"));
    }
    *target = ttl.as_secs() as u32;
}

#[derive(Debug)]
struct NodeAddress(IpAddr);

impl Value for NodeAddress {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let expected = "an IP address of the node, such as \"192.0.2.1\" or \"2001:db8::1\"";
        let is_reachable = |address: &IpAddr| !address.is_unspecified() && !address.is_multicast();
        // An IPv4 address mapped into IPv6 is no address that clients can connect to.
        let parse = |text: &str| {
            text.parse().ok().map(|it: IpAddr| it.to_canonical()).filter(is_reachable).map(Self)
        };
        text_or(value, reader, expected, parse, remedy::address)
    }
}

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const TTL_MAX: Duration = Duration::from_secs(7 * 86_400);
/// Resolvers answer from their caches for a TTL, and a client may wait a little before it connects.
const LEAVING: Duration = Duration::from_secs(10);
