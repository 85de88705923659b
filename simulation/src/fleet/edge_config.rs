//! The configuration file of each node.
//!
//! It is generated, or made from the user's own `edge.toml`, in which `${name}` and others are replaced
//! by values of the run (see [`EdgeConfig::replacements`]).

use crate::fleet::node::{NodeSpec, site_of};
use crate::plan::object::HOSTS;
use crate::plan::place::{COUNTRIES, REGIONS, nearest, round_trip};
use anyhow::Context as _;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;

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
    /// Number of worker threads.
    pub workers: usize,
    /// See [`crate::plan::scenario::FleetPlan::canary_percent`].
    pub canary_percent: u32,
    /// See [`crate::plan::scenario::FleetPlan::failover`].
    pub failover: bool,
    /// See [`crate::plan::scenario::FleetPlan::dns_ttl_s`].
    pub dns_ttl_s: u64,
    /// The address of the node in DNS answers.
    pub address: Ipv4Addr,
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
            ("address".to_owned(), self.address.to_string()),
            ("data".to_owned(), path(spec.data())),
            ("certificate".to_owned(), path(spec.certificate())),
            ("key".to_owned(), path(spec.key())),
            ("redis".to_owned(), self.redis_port.unwrap_or(0).to_string()),
        ];
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
        let workers = self.workers;
        let mut text = self.substitute(&format!("{BASE}[node]\nworkers = {workers}\n{NODE}\n"));
        text += &self.name_server();
        if let Some(port) = self.redis_port {
            let _ = writeln!(text, "[bus]\nredis = \"redis://127.0.0.1:{port}\"\n");
        }
        for origin in &self.upstreams {
            let _ = writeln!(text, "[pools.{}]\norigins = {}\n", origin.name, self.members(origin));
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
            let _ = writeln!(text, "[sites.{site}]\nhosts = [\"{site}.test\"]\n{action}\n");
        }
        text + &self.world_site()
    }

    /// The node as a name server, and as a node of answers. Continues the table `[node]`.
    fn name_server(&self) -> String {
        if self.dns_ttl_s == 0 {
            return String::new();
        }
        let (region, ttl) = (&REGIONS[self.spec.region], self.dns_ttl_s);
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
        let port = origin.port;
        if !self.failover {
            return format!("[\"http://127.0.0.1:{port}\"]");
        }
        let mut by_distance: Vec<&Upstream> = self.upstreams.iter().collect();
        by_distance.sort_by_key(|other| {
            (other.name != origin.name, round_trip(origin.region, other.region))
        });
        let members = by_distance.iter().enumerate().map(|(priority, other)| {
            format!("{{ url = \"http://127.0.0.1:{}\", priority = {priority} }}", other.port)
        });
        format!("[{}]", members.collect::<Vec<_>>().join(", "))
    }

    /// The groups of the visitors of shop.test and their weights, if the site splits its visitors.
    fn groups(&self) -> Option<[(&str, u32); 2]> {
        let (first, last) = (self.upstreams.first()?, self.upstreams.last()?);
        let percent = self.canary_percent;
        (percent > 0).then_some([(&first.name, 100 - percent), (&last.name, percent)])
    }

    /// The site whose pool depends on the client's country.
    fn world_site(&self) -> String {
        let regions: Vec<usize> = self.upstreams.iter().map(|origin| origin.region).collect();
        let pool = self.upstreams.first().map_or("", |origin| &origin.name);
        let mut text = format!(
            "[sites.world]\nhosts = [\"world.test\"]\npool = \"{pool}\"\n\
             [sites.world.pools_by_country]\n"
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

    fn config_with(edge_toml: Option<&str>, change: impl FnOnce(&mut EdgeConfig<'_>)) -> String {
        let folder = tempfile::tempdir().expect("folder");
        let ports = Ports { http: 1, https: 2, admin: 3, dns: 4 };
        let (name, path) = ("tokyo-1".to_owned(), folder.path().to_owned());
        let spec = NodeSpec { name, region: 2, ports, folder: path, has_small_disk: false };
        let origin = |name: &str, region, port| Upstream { name: name.into(), region, port };
        let upstreams = vec![origin("origin-frankfurt", 0, 40), origin("origin-tokyo", 2, 41)];
        let mut config = EdgeConfig {
            spec: &spec,
            upstreams,
            redis_port: Some(50),
            workers: 2,
            canary_percent: 0,
            failover: false,
            dns_ttl_s: 0,
            address: Ipv4Addr::LOCALHOST,
        };
        change(&mut config);
        let own = folder.path().join("own.toml");
        std::fs::write(&own, edge_toml.unwrap_or_default()).expect("write");
        config.write(edge_toml.map(|_| &*own)).expect("written");
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
        let text = config_with(None, |config| {
            (config.canary_percent, config.failover) = (20, true);
        });
        let table: toml::Table = text.parse().unwrap_or_else(|error| panic!("{error}\n{text}"));
        let groups = &table["sites"]["shop"]["split"]["pools"];
        assert_eq!(groups["origin-frankfurt"].as_integer(), Some(80));
        assert_eq!(groups["origin-tokyo"].as_integer(), Some(20));
        let members = table["pools"]["origin-tokyo"]["origins"].as_array().expect("members");
        let member =
            |at: usize| (members[at]["url"].as_str(), members[at]["priority"].as_integer());
        assert_eq!(member(0), (Some("http://127.0.0.1:41"), Some(0)));
        assert_eq!(member(1), (Some("http://127.0.0.1:40"), Some(1)));
    }

    #[test]
    fn clients_that_use_dns_get_name_servers() {
        let text = config_with(None, |config| config.dns_ttl_s = 3);
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
