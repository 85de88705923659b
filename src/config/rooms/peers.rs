//! Reads `[peers]`.

use std::net::SocketAddr;

use super::super::Config;
use super::super::reader::{Reader, Section};
use crate::clock::Clock;
use crate::peers::{self, can_identify};

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
    if !peers.is_on() {
        let others = ["announced", "certificate", "key", "ca"];
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

/// Checks what depends on other options: the name of the node, other addresses, and the files, which must be
/// for that name.
pub(crate) fn check_peers(reader: &Reader<'_>, config: &Config) {
    let peers = &config.peers;
    if !peers.is_on() {
        return;
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
