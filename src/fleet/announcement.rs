//! The announcement of a node, and its form in Redis: one JSON object.
//!
//! ```text
//! {"region":"eu","at":[52.5,13.4],"addresses":["192.0.2.1"],"weight":100,"state":"ready","load":0.25,
//!  "software":"0.1.0","config":"1f0c77aa","peer":{"address":"10.0.0.1:9443","protocol":1},"unreachable":["us-2"],
//!  "store":"full","twin":false}
//! ```

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use geo::Coordinates;
use serde_json::{Value, json};

use super::load::Load;
use super::reach::TARGETS_MAX;

/// The facts that a node announces about itself. Rows change when this changes, and not at each heartbeat.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Announcement {
    /// Region of the node, such as `eu-west`; may be empty.
    pub region: Arc<str>,
    /// Where the node is. `None`: not configured.
    pub coordinates: Option<Coordinates>,
    /// Its public addresses, IPv4 and IPv6, at most [`ADDRESSES_MAX`]. Empty: clients do not reach it
    /// by name.
    pub addresses: Vec<IpAddr>,
    /// Its share of keys and clients in proportion to the other nodes, 0 to [`WEIGHT_MAX`]. 0: none.
    pub weight: u16,
    /// Whether it takes requests.
    pub readiness: Readiness,
    /// How busy it is.
    pub load: Load,
    /// Version of its software. Empty: a build that does not announce itself yet.
    pub software: Arc<str>,
    /// A hash of the part of its configuration that all nodes of a fleet should share.
    pub config_digest: Arc<str>,
    /// Where it answers the other nodes. `None`: it has no peers, or runs a build that knows none.
    pub peer: Option<PeerEndpoint>,
    /// The nodes of other regions that its probes over the data path fail to reach, at most [`TARGETS_MAX`]. `None`: it
    /// probes none.
    pub unreachable: Option<Vec<Arc<str>>>,
    /// The worst state of the directories of its store.
    pub store: StoreState,
    /// Whether it has detected another node with its name.
    pub has_duplicate_name: bool,
}

/// Whether a node can store responses on its disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum StoreState {
    /// The node can store, or has no disk. Also read for a node whose build announces no state of its store.
    #[default]
    Fine,
    /// A directory cannot grow, because its file system is full.
    Full,
    /// A directory cannot be written.
    ReadOnly,
    /// A directory is out of service.
    Out,
}

impl StoreState {
    const ALL: [Self; 4] = [Self::Fine, Self::Full, Self::ReadOnly, Self::Out];

    /// The word in rows and in the admin API.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Fine => "fine",
            Self::Full => "full",
            Self::ReadOnly => "read-only",
            Self::Out => "out",
        }
    }
}

/// Where and how a node answers its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PeerEndpoint {
    /// The address, which the other nodes can reach.
    pub address: SocketAddr,
    /// The version of the peer protocol.
    pub protocol: u16,
}

/// Whether a node takes requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Readiness {
    /// The node serves.
    Ready,
    /// The node finishes the requests that it has. It must get no new ones.
    Draining,
    /// The node does not serve: it starts, it has said so, or it has missed three heartbeats.
    #[default]
    Out,
}

impl Readiness {
    /// Every value, in the order of the labels of the metric.
    pub(crate) const ALL: [Self; 3] = [Self::Ready, Self::Draining, Self::Out];

    /// The word in rows, metrics and the admin API.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Out => "out",
        }
    }
}

impl Announcement {
    /// A node in this region that has announced nothing else, as the build before writes it.
    pub(crate) fn of_region(region: &str) -> Self {
        Self {
            region: region.into(),
            coordinates: None,
            addresses: Vec::new(),
            weight: WEIGHT_DEFAULT,
            readiness: Readiness::Ready,
            load: Load::default(),
            software: "".into(),
            config_digest: "".into(),
            peer: None,
            unreachable: None,
            store: StoreState::Fine,
            has_duplicate_name: false,
        }
    }

    /// Encodes as JSON.
    pub(crate) fn to_text(&self) -> String {
        json!({
            "region": &*self.region,
            "at": self.coordinates.map(|at| [at.latitude(), at.longitude()]),
            "addresses": self.addresses,
            "weight": self.weight,
            "state": self.readiness.as_str(),
            "load": self.load.share(),
            "software": &*self.software,
            "config": &*self.config_digest,
            "peer": self.peer.map(|peer| json!({ "address": peer.address, "protocol": peer.protocol })),
            "unreachable": self.unreachable.as_ref().map(|names| {
                names.iter().map(|name| &**name).collect::<Vec<_>>()
            }),
            "store": self.store.as_str(),
            "twin": self.has_duplicate_name,
        })
        .to_string()
    }

    /// Decodes a stored row. A field that is missing, has another type or is out of bounds, as another
    /// version of Skerry may write it, gets its default. `None`: no object.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let fields: Value = serde_json::from_str(text).ok()?;
        fields.as_object()?;
        let string = |field: &str| -> Arc<str> {
            let text = fields[field].as_str().unwrap_or_default();
            text.chars().take(TEXT_CHARS_MAX).collect::<String>().into()
        };
        let degrees = |index: usize| fields["at"][index].as_f64();
        let addresses = fields["addresses"].as_array().into_iter().flatten();
        let addresses = addresses.filter_map(|address| address.as_str()?.parse().ok());
        let weight = fields["weight"].as_u64().and_then(|weight| u16::try_from(weight).ok());
        let state = fields["state"].as_str();
        let store = fields["store"].as_str();
        let store = StoreState::ALL.into_iter().find(|known| store == Some(known.as_str()));
        Some(Self {
            region: string("region"),
            coordinates: degrees(0)
                .zip(degrees(1))
                .and_then(|(latitude, longitude)| Coordinates::new(latitude, longitude).ok()),
            addresses: addresses.take(ADDRESSES_MAX).collect(),
            weight: weight.map_or(WEIGHT_DEFAULT, |weight| weight.min(WEIGHT_MAX)),
            readiness: Readiness::ALL
                .into_iter()
                .find(|readiness| state == Some(readiness.as_str()))
                .unwrap_or_default(),
            load: Load::of_share(fields["load"].as_f64().unwrap_or_default()),
            software: string("software"),
            config_digest: string("config"),
            peer: peer_endpoint(&fields["peer"]),
            unreachable: fields["unreachable"].as_array().map(|names| {
                let names = names.iter().filter_map(Value::as_str).take(TARGETS_MAX);
                names.filter(|name| name.len() <= TEXT_CHARS_MAX).map(Arc::from).collect()
            }),
            store: store.unwrap_or_default(),
            has_duplicate_name: fields["twin"].as_bool().unwrap_or_default(),
        })
    }
}

fn peer_endpoint(fields: &Value) -> Option<PeerEndpoint> {
    let address: SocketAddr = fields["address"].as_str()?.parse().ok()?;
    let protocol = u16::try_from(fields["protocol"].as_u64()?).ok()?;
    let is_usable = !address.ip().is_unspecified() && address.port() != 0 && protocol != 0;
    is_usable.then_some(PeerEndpoint { address, protocol })
}

/// Addresses of a node.
pub(crate) const ADDRESSES_MAX: usize = 16;
/// The largest weight of a node.
pub(crate) const WEIGHT_MAX: u16 = 1000;
const WEIGHT_DEFAULT: u16 = 100;
/// Characters of a region, a version or a digest in a row.
const TEXT_CHARS_MAX: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_is_read_as_it_was_written() {
        let announcement = Announcement {
            coordinates: Coordinates::new(52.5, 13.4).ok(),
            addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            weight: 7,
            readiness: Readiness::Draining,
            load: Load::of_share(0.5),
            software: "1.2.3".into(),
            config_digest: "0badcafe".into(),
            peer: Some(PeerEndpoint {
                address: "[2001:db8::1]:9443".parse().unwrap(),
                protocol: 1,
            }),
            unreachable: Some(vec!["us-1".into()]),
            store: StoreState::ReadOnly,
            has_duplicate_name: true,
            ..Announcement::of_region("eu")
        };
        assert_eq!(Announcement::parse(&announcement.to_text()), Some(announcement));
    }

    #[test]
    fn a_row_of_another_version_is_bounded_and_not_guessed_at() {
        let check = |text: &str, expected: Option<Announcement>| {
            assert_eq!(Announcement::parse(text), expected, "{text}");
        };
        check("", None);
        check("7", None);
        let bare = Announcement { readiness: Readiness::Out, ..Announcement::of_region("") };
        check("{}", Some(bare.clone()));
        check(
            r#"{"at":[91,0],"addresses":["x",7],"weight":-1,"state":"asleep","load":"high","store":"burnt","new":1}"#,
            Some(bare.clone()),
        );
        for peer in [
            r#""10.0.0.1:9443""#,
            r#"{"address":"10.0.0.1:9443"}"#,
            r#"{"address":"10.0.0.1:9443","protocol":0}"#,
            r#"{"address":"10.0.0.1:9443","protocol":65536}"#,
            r#"{"address":"10.0.0.1:0","protocol":1}"#,
            r#"{"address":"0.0.0.0:9443","protocol":1}"#,
            r#"{"address":"edge-1:9443","protocol":1}"#,
        ] {
            check(&format!(r#"{{"peer":{peer}}}"#), Some(bare.clone()));
        }
        check(r#"{"weight":60000}"#, Some(Announcement { weight: WEIGHT_MAX, ..bare }));
        let many = format!(r#"{{"addresses":[{}"192.0.2.1"]}}"#, "\"192.0.2.2\",".repeat(99));
        assert_eq!(Announcement::parse(&many).unwrap().addresses.len(), ADDRESSES_MAX);
        let long = format!(r#"{{"region":"{}"}}"#, "é".repeat(9999));
        assert_eq!(Announcement::parse(&long).unwrap().region.chars().count(), TEXT_CHARS_MAX);
    }
}
