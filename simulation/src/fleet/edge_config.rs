//! The configuration that the lab writes for each of its nodes.
//!
//! A user's own `edge.toml` may take its place: `${name}` in it is replaced by what only the
//! lab knows (see [`EdgeConfig::replacements`]).

use crate::fleet::node::NodeSpec;
use crate::plan::place::{COUNTRIES, REGIONS, nearest};
use anyhow::Context as _;
use std::fmt::Write as _;
use std::path::Path;

/// An origin, as one node reaches it.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// `origin-frankfurt`.
    pub name: String,
    /// Position in the list of regions.
    pub region: usize,
    /// The port of the node's own link to it.
    pub port: u16,
}

/// The parameters of a node's configuration.
pub struct EdgeConfig<'a> {
    /// The node.
    pub spec: &'a NodeSpec,
    /// Every origin.
    pub upstreams: Vec<Upstream>,
    /// The port of the node's own link to Redis.
    pub redis_port: Option<u16>,
    /// Data-path threads.
    pub workers: usize,
}

impl EdgeConfig<'_> {
    /// Writes the node's `edge.toml`: the lab's own, or the user's with names replaced.
    pub fn write(&self, edge_toml: Option<&Path>) -> anyhow::Result<()> {
        let text = match edge_toml {
            None => self.own(),
            Some(path) => {
                let text = std::fs::read_to_string(path);
                self.replaced(&text.with_context(|| path.display().to_string())?)
            }
        };
        let path = self.spec.config();
        std::fs::write(&path, text).with_context(|| path.display().to_string())
    }

    /// `(name, value)` of everything that `${name}` in a user's file may stand for.
    pub fn replacements(&self) -> Vec<(String, String)> {
        let spec = self.spec;
        let path = |path: std::path::PathBuf| path.display().to_string();
        let mut pairs = vec![
            ("name".to_owned(), spec.name.clone()),
            ("region".to_owned(), REGIONS[spec.region].name.to_owned()),
            ("http".to_owned(), spec.ports.http.to_string()),
            ("https".to_owned(), spec.ports.https.to_string()),
            ("admin".to_owned(), spec.ports.admin.to_string()),
            ("data".to_owned(), path(spec.data())),
            ("certificate".to_owned(), path(spec.certificate())),
            ("key".to_owned(), path(spec.key())),
            ("redis".to_owned(), self.redis_port.unwrap_or(0).to_string()),
        ];
        let origins = self.upstreams.iter();
        pairs.extend(origins.map(|origin| (origin.name.clone(), origin.port.to_string())));
        pairs
    }

    fn replaced(&self, text: &str) -> String {
        let pairs = self.replacements();
        pairs.iter().fold(text.to_owned(), |text, (name, value)| {
            text.replace(&format!("${{{name}}}"), value)
        })
    }

    fn own(&self) -> String {
        let workers = self.workers;
        let mut text = self.replaced(&format!("{BASE}[node]\nworkers = {workers}\n{NODE}\n"));
        if let Some(port) = self.redis_port {
            let _ = writeln!(text, "[bus]\nredis = \"redis://127.0.0.1:{port}\"\n");
        }
        for origin in &self.upstreams {
            let (name, port) = (&origin.name, origin.port);
            let _ = writeln!(text, "[pools.{name}]\norigins = [\"http://127.0.0.1:{port}\"]\n");
        }
        // Two sites on two origins, when there are two.
        let pools = [self.upstreams.first(), self.upstreams.last()];
        for (site, pool) in ["shop", "media"].iter().zip(pools) {
            let pool = pool.map_or("", |origin| &origin.name);
            let _ =
                writeln!(text, "[sites.{site}]\nhosts = [\"{site}.test\"]\npool = \"{pool}\"\n");
        }
        text + &self.world()
    }

    /// The site whose origin depends on the client's country.
    fn world(&self) -> String {
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

const NODE: &str = r#"name = "${name}"
region = "${region}"
data_directory = "${data}"
drain_timeout = "10s"
"#;

const BASE: &str = r#"# Written by the Skerry lab. Every option is explained in config/edge.toml.

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
# The lab's clients say where they come from in X-Forwarded-For.
trusted_proxies = ["127.0.0.1/32"]

[store]
memory = "64MiB"
disk = "256MiB"
preallocate = false

[limits]
# All clients share one address here.
connections_per_address_max = 10000

"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::node::Ports;

    fn config(edge_toml: Option<&str>) -> String {
        let folder = tempfile::tempdir().expect("folder");
        let ports = Ports { http: 1, https: 2, admin: 3 };
        let (name, path) = ("tokyo-1".to_owned(), folder.path().to_owned());
        let spec = NodeSpec { name, region: 2, ports, folder: path, has_small_disk: false };
        let origin = |name: &str, region, port| Upstream { name: name.into(), region, port };
        let upstreams = vec![origin("origin-frankfurt", 0, 40), origin("origin-tokyo", 2, 41)];
        let config = EdgeConfig { spec: &spec, upstreams, redis_port: Some(50), workers: 2 };
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
    fn names_in_a_users_own_file_are_replaced() {
        let text = config(Some("listen = ${https}\norigin = ${origin-tokyo} # ${unknown}"));
        assert_eq!(text, "listen = 2\norigin = 41 # ${unknown}");
    }
}
