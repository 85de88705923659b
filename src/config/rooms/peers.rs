//! Reads `[peers]`.

use std::net::SocketAddr;
use std::time::Duration;

use super::super::Config;
use super::super::reader::{Reader, Section};
use crate::clock::Clock;
use crate::peers::{self, can_identify, is_reachable};

pub(crate) fn read_peers(section: &Section<'_>, peers: &mut peers::Settings) {
    section.read("addresses", &mut peers.addresses);
    section.read("announced", &mut peers.announced);
    let files = &mut peers.files;
    let files = [
        ("certificate", section.read_file("certificate", &mut files.certificate)),
        ("key", section.read_file("key", &mut files.key)),
        ("ca", section.read_file("ca", &mut files.ca)),
    ];
    let limits = &mut peers.limits;
    section.read_within("connections_max", &mut limits.connections_max, 1..);
    section.read_within("streams_max", &mut limits.streams_max, 1..=10_000);
    section.read_within("requests_max", &mut limits.requests_max, 1..);
    let (least, most) = (Duration::from_secs(1), Duration::from_secs(86_400));
    section.read_within("connection_age", &mut limits.connection_age, least..=most);
    read_static_peers(section, peers);
    let ask = &mut peers.ask;
    let (least, most) = (Duration::from_millis(10), Duration::from_secs(10));
    section.read_within("deadline", &mut ask.deadline, least..=most);
    let (least, most) = (Duration::from_millis(100), Duration::from_secs(60));
    section.read_within("skip_for", &mut ask.skip_for, least..=most);
    section.read_within("copy_after", &mut ask.copy_after, 0..=100);
    if !peers.is_on() {
        let others = ["announced", "certificate", "key", "ca", "nodes"];
        if let Some(other) = others.into_iter().find(|name| section.has(name)) {
            section.missing("addresses", &format!("{other:?} has no effect without \"addresses\", at which peers reach this node, such as \"0.0.0.0:9443\""));
        }
        return;
    }
    for (name, is_set) in files {
        if !is_set {
            section.missing(name, &format!("peers identify each other by certificates, and {name:?} is missing: expected the path of a PEM file; \"skerry peers certificate NAME\" makes one"));
        }
    }
    if peers.announced.is_some_and(|announced| announced.port() == 0) {
        section.mistake("announced", "expected the port at which other nodes reach this node");
    }
    if !peers.announces_an_address() {
        let found = peers
            .announced_address()
            .map(|found: SocketAddr| found.ip().to_string())
            .unwrap_or_default();
        section.mistake("announced", format!("expected the address at which other nodes reach this node, such as \"10.0.0.1:9443\", found {found}"));
    }
}

fn read_static_peers(section: &Section<'_>, peers: &mut peers::Settings) {
    let (shortest, longest) = (Duration::from_millis(100), Duration::from_secs(60));
    section.read_within("check_interval", &mut peers.check_interval, shortest..=longest);
    for (name, node) in section.named("nodes") {
        if !can_identify(&name) {
            let message = format!(
                "expected the name of a node (node.name) that is a DNS name, found {name:?}"
            );
            node.mistake("", message);
        }
        let mut address = SocketAddr::from(([0, 0, 0, 0], 0));
        let before = section.reader.mistake_count();
        if !node.read("address", &mut address) {
            node.missing("address", "the node has no \"address\", such as \"10.0.0.2:9443\"");
        } else if section.reader.mistake_count() == before
            && (!is_reachable(address.ip()) || address.port() == 0)
        {
            let expected =
                "expected the address at which the node answers peers, such as \"10.0.0.2:9443\"";
            node.mistake("address", format!("{expected}, found {address}"));
        }
        peers.nodes.push((name.into(), address));
    }
    peers.nodes.sort();
    if peers.nodes.len() > NODES_MAX {
        let found = peers.nodes.len();
        section.mistake("nodes", format!("expected at most {NODES_MAX} nodes, found {found}: with more, let them find each other over Redis (bus.redis)"));
    }
}

/// Checks what depends on other options: the name of the node, other addresses, and the files, which must be
/// for that name.
pub(crate) fn check_peers(reader: &Reader<'_>, config: &Config) {
    let peers = &config.peers;
    if !peers.is_on() {
        return;
    }
    if config.bus.redis.is_none() && peers.nodes.is_empty() {
        reader.warn_in("peers.addresses", "no other node finds this one: set \"bus.redis\", over which the nodes of a fleet find each other, or list them in [peers.nodes.NAME]");
    }
    let others = config.listen.listeners.iter().map(|listener| listener.address);
    let others: Vec<SocketAddr> = others.chain([config.admin.address]).collect();
    let is_taken = |address: &&SocketAddr| {
        let clash = |other: &SocketAddr| {
            let same_ip = other.ip() == address.ip() || other.ip().is_unspecified();
            other.port() == address.port() && (same_ip || address.ip().is_unspecified())
        };
        address.port() != 0 && others.iter().any(clash)
    };
    if let Some(taken) = peers.addresses.iter().find(is_taken) {
        let message = format!(
            "{taken} is also an address of a listener or of the admin API: choose another port"
        );
        reader.mistake_in("peers.addresses", message);
    }
    let name = &config.node.name;
    if !can_identify(name) {
        let message = format!(
            "the certificate of a peer carries the name of its node, and {name:?} is no DNS name: choose another node.name (or --name), such as edge-1"
        );
        return reader.mistake_in("node.name", message);
    }
    let files = &peers.files;
    if ![&files.certificate, &files.key, &files.ca].iter().all(|path| path.is_file()) {
        return;
    }
    if let Err(error) = peers::check_files(files, name, Clock::system().now()) {
        let (option, reason) = (format!("peers.{}", error.option), error.reason);
        match error.is_of_time {
            true => reader.warn_in(&option, &reason),
            false => reader.mistake_in(&option, reason),
        }
    }
}

/// Nodes of a static list. Each checks all others.
const NODES_MAX: usize = 64;
