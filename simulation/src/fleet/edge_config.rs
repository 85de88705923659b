//! The configuration file of each node.
//!
//! The configuration is generated, or made from the user's own `edge.toml`, in which `${name}` and others are replaced
//! by values of the run (see [`EdgeConfig::replacements`]).
//!
//! Nodes ask each other only if they have the same sites and pools. Each node has links of its own to the origins,
//! so that the pools name lists of origins ([`ORIGIN_LISTS`]), and each node has its own lists.

use crate::fleet::node::{NodeSpec, site_of};
use crate::plan::object::HOSTS;
use crate::plan::place::{COUNTRIES, REGIONS, nearest, round_trip};
use crate::plan::scenario::FleetPlan;
use anyhow::Context as _;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// An origin and the port at which one node reaches it.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// The origin's name: `origin-frankfurt`.
    pub name: String,
    /// Its region, as an index of [`REGIONS`].
    pub region: usize,
    /// The port of the node's link to this origin.
    pub port: u16,
}

/// The values in a node's configuration.
pub struct EdgeConfig<'a> {
    /// The node.
    pub spec: &'a NodeSpec,
    /// All origins.
    pub upstreams: Vec<Upstream>,
    /// The port of the node's link to Redis; `None` without Redis.
    pub redis_port: Option<u16>,
    /// The other nodes as peers; `None`: nodes do not ask each other.
    pub peers: Option<Peers>,
    /// The fleet of the scenario.
    pub plan: &'a FleetPlan,
    /// The address of the node in DNS answers.
    pub address: Ipv4Addr,
}

/// How a node and the others reach each other.
pub struct Peers {
    /// The port at which the others reach the node: that of the links to it.
    pub announced: u16,
    /// The certificate of the authority that signs the nodes' certificates.
    pub authority: PathBuf,
    /// Name and port of each node, for a fleet without Redis, by which nodes find each other otherwise.
    pub nodes: Vec<(String, u16)>,
}

impl EdgeConfig<'_> {
    /// Writes the node's `edge.toml`: the generated one, or the user's with its variables replaced.
    pub fn write(&self, edge_toml: Option<&Path>) -> anyhow::Result<()> {
        let text =
            match edge_toml {
                None => self.generate(),
                Some(path) => {
                    let text = std::fs::read_to_string(path);
                    self.substitute(&text.with_context(|| {
                        format!("cannot read the configuration {}", path.display())
                    })?)
                }
            };
        for origin in &self.upstreams {
            let path = self.spec.origin_list(&origin.name);
            let list = format!("origins = [\"http://127.0.0.1:{}\"]\n", origin.port);
            std::fs::write(&path, list).with_context(|| path.display().to_string())?;
        }
        let path = self.spec.config();
        std::fs::write(&path, text).with_context(|| path.display().to_string())
    }

    /// The variables that a user's file may contain, as pairs of name and value.
    pub fn replacements(&self) -> Vec<(String, String)> {
        let spec = self.spec;
        let path = |path: std::path::PathBuf| path.display().to_string();
        let mut pairs = vec![
            ("name".to_owned(), spec.name.clone()),
            ("region".to_owned(), REGIONS[spec.region].name.to_owned()),
            ("http".to_owned(), spec.ports.http.to_string()),
            ("https".to_owned(), spec.ports.https.to_string()),
            ("admin".to_owned(), spec.ports.admin.to_string()),
            ("dns".to_owned(), spec.ports.dns.to_string()),
            ("peer".to_owned(), spec.ports.peer.to_string()),
            ("peer-certificate".to_owned(), path(spec.peer_certificate())),
            ("peer-key".to_owned(), path(spec.peer_key())),
            ("address".to_owned(), self.address.to_string()),
            ("data".to_owned(), path(spec.data())),
            ("certificate".to_owned(), path(spec.certificate())),
            ("key".to_owned(), path(spec.key())),
            ("redis".to_owned(), self.redis_port.unwrap_or(0).to_string()),
        ];
        if let Some(peers) = &self.peers {
            pairs.push(("peer-announced".to_owned(), peers.announced.to_string()));
            pairs.push(("peer-authority".to_owned(), path(peers.authority.clone())));
        }
        let origins = self.upstreams.iter();
        pairs.extend(origins.map(|origin| (origin.name.clone(), origin.port.to_string())));
        pairs
    }

    fn substitute(&self, text: &str) -> String {
        let pairs = self.replacements();
        pairs.iter().fold(text.to_owned(), |text, (name, value)| {
            text.replace(&format!("${{{name}}}"), value)
        })
    }

    fn generate(&self) -> String {
        let workers = self.plan.workers;
        let mut text = self.substitute(&format!("{BASE}[node]\nworkers = {workers}\n{NODE}\n"));
        text += &self.name_server();
        if let Some(port) = self.redis_port {
            let _ = writeln!(text, "[bus]\nredis = \"redis://127.0.0.1:{port}\"\n");
        }
        text += &self.peer_link();
        for origin in &self.upstreams {
            let _ = writeln!(text, "[pools.{}]\norigins = {}", origin.name, self.members(origin));
            text += if self.plan.failover { FAILOVER } else { "\n" };
        }
        // Two sites on two different origins, if the fleet has two.
        let pools = [self.upstreams.first(), self.upstreams.last()];
        for (site, pool) in ["shop", "media"].iter().zip(pools) {
            let pool = pool.map_or("", |origin| &origin.name);
            let action = match (*site, self.groups()) {
                ("shop", Some([(main, share), (canary, percent)])) => {
                    format!("split.pools = {{ {main} = {share}, {canary} = {percent} }}")
                }
                _ => format!("pool = \"{pool}\""),
            };
            let shield = self.shield();
            let _ = writeln!(text, "[sites.{site}]\nhosts = [\"{site}.test\"]\n{action}\n{shield}");
        }
        text + &self.world_site()
    }

    /// The node as a peer of the others.
    fn peer_link(&self) -> String {
        let Some(peers) = &self.peers else { return String::new() };
        let mut text = self.substitute(PEERS);
        for (name, port) in &peers.nodes {
            let _ = writeln!(text, "[peers.nodes.{name}]\naddress = \"127.0.0.1:{port}\"");
        }
        text + "\n"
    }

    /// The node as a name server, and as a node of answers. Continues the table `[node]`.
    fn name_server(&self) -> String {
        if self.plan.dns_ttl_s == 0 {
            return String::new();
        }
        let (region, ttl) = (&REGIONS[self.spec.region], self.plan.dns_ttl_s);
        let mut text = format!(
            "addresses = \"{}\"\nlatitude = {}\nlongitude = {}\ndrain_notice = \"{}s\"\n\n",
            self.address,
            region.latitude,
            region.longitude,
            ttl + SERVED_AFTER_TTL_S
        );
        let _ = write!(
            text,
            "[dns.server]\naddresses = \"127.0.0.1:{}\"\nrate_per_second = 0\n\n\
             [dns.zones.test]\nname_servers = [\"ns.example.net\"]\n",
            self.spec.ports.dns
        );
        for host in HOSTS {
            let edge = site_of(host);
            let _ = writeln!(text, "[dns.zones.test.edges.{edge}]\nttl = \"{ttl}s\"");
        }
        text + "\n"
    }

    /// The members of an origin's pool: the origin, and if the fleet fails over, the others behind it.
    fn members(&self, origin: &Upstream) -> String {
        let listed = |other: &Upstream| format!("file = \"{ORIGIN_LISTS}/{}.toml\"", other.name);
        if !self.plan.failover {
            return format!("[{{ {} }}]", listed(origin));
        }
        let mut by_distance: Vec<&Upstream> = self.upstreams.iter().collect();
        by_distance.sort_by_key(|other| {
            (other.name != origin.name, round_trip(origin.region, other.region))
        });
        let members = by_distance
            .iter()
            .enumerate()
            .map(|(priority, other)| format!("{{ {}, priority = {priority} }}", listed(other)));
        format!("[{}]", members.collect::<Vec<_>>().join(", "))
    }

    /// The groups of the visitors of shop.test and their weights, if the site splits its visitors.
    fn groups(&self) -> Option<[(&str, u32); 2]> {
        let (first, last) = (self.upstreams.first()?, self.upstreams.last()?);
        let percent = self.plan.canary_percent;
        (percent > 0).then_some([(&first.name, 100 - percent), (&last.name, percent)])
    }

    /// The option of a site that names the shield region, if there is one.
    fn shield(&self) -> String {
        let name = &self.plan.shield;
        if name.is_empty() { String::new() } else { format!("shield = \"{name}\"\n") }
    }

    /// The site whose pool depends on the client's country.
    fn world_site(&self) -> String {
        let regions: Vec<usize> = self.upstreams.iter().map(|origin| origin.region).collect();
        let pool = self.upstreams.first().map_or("", |origin| &origin.name);
        let mut text = format!(
            "[sites.world]\nhosts = [\"world.test\"]\npool = \"{pool}\"\n\
             {}[sites.world.pools_by_country]\n",
            self.shield()
        );
        for (country, of) in COUNTRIES.iter().enumerate() {
            let region = nearest(country, &regions);
            let origin = self.upstreams.iter().find(|origin| origin.region == region);
            let pool = origin.map_or("", |origin| &origin.name);
            let _ = writeln!(text, "{} = \"{pool}\"", of.code);
        }
        text
    }
}

/// How long a node that drains serves after the answers that name it have expired; less is refused.
const SERVED_AFTER_TTL_S: u64 = 10;

/// The folder of the lists of origins: the node's own one, in which its process runs. By this path it is the same in
/// the configurations of all nodes.
const ORIGIN_LISTS: &str = "/proc/self/cwd";

/// An origin that is late or stops in the middle of a response costs a client this long, and not the 30 s of the
/// defaults. Ejections stay as long as the first one: the faults of a run follow each other within seconds, and no
/// more than half of a pool's origins are ejected at a time.
const FAILOVER: &str = r#"retry.per_try_timeout = "1s"
deadlines.between_bytes = "3s"
health.eject_for_max = "10s"

"#;

/// The deadline is longer than that of the defaults: many nodes share the cores of one machine, often as debug builds.
const PEERS: &str = r#"[peers]
deadline = "1s"
addresses = "127.0.0.1:${peer}"
announced = "127.0.0.1:${peer-announced}"
certificate = "${peer-certificate}"
key = "${peer-key}"
ca = "${peer-authority}"
"#;

const NODE: &str = r#"name = "${name}"
region = "${region}"
data_directory = "${data}"
drain_timeout = "10s"
"#;

const BASE: &str = r#"# Generated by the simulation. config/edge.toml explains all options.

[admin]
address = "127.0.0.1:${admin}"

[log]
level = "warn"
access = "off"

[[listeners]]
address = "127.0.0.1:${http}"

[[listeners]]
address = "127.0.0.1:${https}"
tls = true

[[tls.certificates]]
certificate = "${certificate}"
key = "${key}"

[guard]
# The simulated clients state their address in X-Forwarded-For.
trusted_proxies = ["127.0.0.1/32"]

[store]
memory = "64MiB"
disk = "256MiB"
disk_reserve = "0B"
preallocate = false

[limits]
# All simulated clients connect from one address.
connections_per_address_max = 10000

"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::node::Ports;

    fn config(edge_toml: Option<&str>) -> String {
        config_with(edge_toml, |_| {})
    }

    fn config_with(edge_toml: Option<&str>, change: impl FnOnce(&mut FleetPlan)) -> String {
        let folder = tempfile::tempdir().expect("folder");
        let ports = Ports { http: 1, https: 2, admin: 3, dns: 4, peer: 5 };
        let (name, path) = ("tokyo-1".to_owned(), folder.path().to_owned());
        let spec = NodeSpec { name, region: 2, ports, folder: path, has_small_disk: false };
        let origin = |name: &str, region, port| Upstream { name: name.into(), region, port };
        let upstreams = vec![origin("origin-frankfurt", 0, 40), origin("origin-tokyo", 2, 41)];
        let mut plan = FleetPlan::default();
        change(&mut plan);
        let nodes = vec![("tokyo-1".to_owned(), 60), ("tokyo-2".to_owned(), 61)];
        let peers = Peers { announced: 60, authority: "/peers.pem".into(), nodes };
        let (redis_port, address) = (Some(50), Ipv4Addr::LOCALHOST);
        let peers = plan.peers.then_some(peers);
        let config = EdgeConfig { spec: &spec, upstreams, redis_port, peers, plan: &plan, address };
        let own = folder.path().join("own.toml");
        std::fs::write(&own, edge_toml.unwrap_or_default()).expect("write");
        config.write(edge_toml.map(|_| &*own)).expect("written");
        let list = std::fs::read_to_string(spec.origin_list("origin-tokyo")).expect("a list");
        assert_eq!(list, "origins = [\"http://127.0.0.1:41\"]\n");
        std::fs::read_to_string(spec.config()).expect("read")
    }

    #[test]
    fn the_labs_own_configuration_leaves_no_name_open_and_maps_countries() {
        let text = config(None);
        assert!(!text.contains("${"), "{text}");
        let table: toml::Table = text.parse().unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!(table["node"]["name"].as_str(), Some("tokyo-1"));
        assert_eq!(table["bus"]["redis"].as_str(), Some("redis://127.0.0.1:50"));
        let by_country = &table["sites"]["world"]["pools_by_country"];
        assert_eq!(by_country["JP"].as_str(), Some("origin-tokyo"));
        assert_eq!(by_country["US"].as_str(), Some("origin-frankfurt"));
    }

    #[test]
    fn a_canary_and_failover_are_configured_on_demand() {
        let text = config_with(None, |plan| (plan.canary_percent, plan.failover) = (20, true));
        let table: toml::Table = text.parse().unwrap_or_else(|error| panic!("{error}\n{text}"));
        let groups = &table["sites"]["shop"]["split"]["pools"];
        assert_eq!(groups["origin-frankfurt"].as_integer(), Some(80));
        assert_eq!(groups["origin-tokyo"].as_integer(), Some(20));
        let members = table["pools"]["origin-tokyo"]["origins"].as_array().expect("members");
        let member =
            |at: usize| (members[at]["file"].as_str(), members[at]["priority"].as_integer());
        assert_eq!(member(0), (Some("/proc/self/cwd/origin-tokyo.toml"), Some(0)));
        assert_eq!(member(1), (Some("/proc/self/cwd/origin-frankfurt.toml"), Some(1)));
        assert_eq!(table["pools"]["origin-tokyo"]["retry"]["per_try_timeout"].as_str(), Some("1s"));
    }

    #[test]
    fn nodes_are_peers_unless_the_scenario_has_none() {
        let table: toml::Table = config(None).parse().expect("TOML");
        assert_eq!(table["peers"]["announced"].as_str(), Some("127.0.0.1:60"));
        assert_eq!(table["peers"]["ca"].as_str(), Some("/peers.pem"));
        let other = &table["peers"]["nodes"]["tokyo-2"];
        assert_eq!(other["address"].as_str(), Some("127.0.0.1:61"));
        let alone = config_with(None, |plan| plan.peers = false);
        assert!(!alone.contains("[peers]"), "{alone}");
    }

    #[test]
    fn clients_that_use_dns_get_name_servers() {
        let text = config_with(None, |plan| plan.dns_ttl_s = 3);
        let table: toml::Table = text.parse().unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!(table["node"]["drain_notice"].as_str(), Some("13s"));
        assert_eq!(table["dns"]["server"]["addresses"].as_str(), Some("127.0.0.1:4"));
        let edges = table["dns"]["zones"]["test"]["edges"].as_table().expect("edges");
        assert!(["shop", "media", "world"].iter().all(|edge| edges.contains_key(*edge)));
    }

    #[test]
    fn names_in_a_users_own_file_are_replaced() {
        let text = config(Some("listen = ${https}\norigin = ${origin-tokyo} # ${unknown}"));
        assert_eq!(text, "listen = 2\norigin = 41 # ${unknown}");
    }
}
