//! The configuration that the lab writes for each of its nodes.
//!
//! A user's own `edge.toml` may take its place: `${name}` in it is replaced by what only the
//! lab knows (see [`EdgeConfig::replacements`]).

use crate::node::NodeSpec;
use crate::place::{COUNTRIES, REGIONS, nearest};
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

/// What a node's configuration is made of.
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
        self.replaced(&format!("{BASE}{}{}", self.redis(), self.world()))
    }

    fn redis(&self) -> String {
        String::new()
    }

    /// For each country the nearest origin, all others behind it.
    fn world(&self) -> String {
        let regions: Vec<usize> = self.upstreams.iter().map(|origin| origin.region).collect();
        let mut text = String::new();
        for (country, of) in COUNTRIES.iter().enumerate() {
            let region = nearest(country, &regions);
            let origin = self.upstreams.iter().find(|origin| origin.region == region);
            let name = origin.map_or("", |origin| &origin.name);
            let _ = writeln!(text, "{} = \"{name}\"", of.code);
        }
        text
    }
}

const BASE: &str = "";
