//! Reads `[dns.probes]`: how a node probes the nodes of other regions.

use std::net::IpAddr;
use std::time::Duration;

use http::uri::PathAndQuery;
use toml::Spanned;
use toml::de::DeValue;

use super::super::reader::{Reader, Section};
use super::super::values::{Value, text};
use crate::upstream::{self, Check, CheckKind, HttpCheck, Origin, PoolDefinition, PoolSettings};

/// The request by which the nodes of other regions are probed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ProbeSettings {
    /// Scheme, host and port of the URL.
    server: Origin,
    /// The check, which has the request and says when a node counts as unreachable, and TLS.
    pool: PoolSettings,
}

impl ProbeSettings {
    /// The name of [`Self::pool_of`] in log lines.
    pub(crate) const POOL: &str = "nodes of other regions";

    /// A pool whose members are the URL's server at each of these addresses.
    pub(crate) fn pool_of(&self, addresses: impl Iterator<Item = IpAddr>) -> PoolDefinition {
        let server = |address| Origin { address: Some(address), ..self.server.clone() };
        let origins = addresses.map(server).collect();
        PoolDefinition { settings: self.pool.clone(), origins, sources: Vec::new() }
    }
}

/// `None`: this node probes none. `has_bus`: the results reach other nodes.
pub(crate) fn read_probes(section: &Section<'_>, has_bus: bool) -> Option<ProbeSettings> {
    let mut url = ProbeUrl(None);
    section.read("url", &mut url);
    let http = HttpCheck { statuses: vec![100..=499], ..HttpCheck::default() };
    let mut check = Check { interval: SECOND, ..Check::default() };
    section.read_within("interval", &mut check.interval, SECOND / 2..=MINUTE);
    check.timeout = check.timeout.min(check.interval);
    section.read_within("timeout", &mut check.timeout, SECOND / 10..=MINUTE);
    if check.timeout > check.interval {
        section.mistake("timeout", "\"timeout\" must not be greater than \"interval\"");
    }
    section.read_within("rise", &mut check.rise, 1..=100);
    section.read_within("fall", &mut check.fall, 1..=100);
    let mut pool = PoolSettings::new(ProbeSettings::POOL);
    section.read("ca_files", &mut pool.tls.ca_files);
    for (name, error) in upstream::file_mistakes(&pool) {
        section.mistake_in_file(name, error.to_string());
    }
    let (server, path) = url.0?;
    if !has_bus {
        let message = "\"url\" has no effect without bus.redis, by which regions know each other's results: set it, or remove \"url\"";
        section.mistake("url", message);
    }
    check.kind = CheckKind::Http(HttpCheck { path, ..http });
    pool.check = Some(check);
    Some(ProbeSettings { server, pool })
}

/// `"https://www.example.org/health"`, or `"none"`.
#[derive(Debug)]
struct ProbeUrl(Option<(Origin, PathAndQuery)>);

impl Value for ProbeUrl {
    fn read(value: &Spanned<DeValue<'_>>, reader: &Reader<'_>) -> Option<Self> {
        let expected =
            "a URL that the nodes serve, such as \"https://www.example.org/health\", or \"none\"";
        text(value, reader, expected, |text| {
            if text == "none" {
                return Some(Self(None));
            }
            let url: http::Uri = text.parse().ok()?;
            let server = format!("{}://{}", url.scheme_str()?, url.authority()?);
            let path = url.path_and_query().cloned()?;
            Some(Self(Some((Origin::parse(&server)?, path))))
        })
    }
}

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
