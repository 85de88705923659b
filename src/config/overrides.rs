//! Flags that override options of the configuration file, and the parts that a configuration has without one.

use std::net::SocketAddr;

use toml::de::DeValue;

use super::flags::Flags;
use super::names::{PLAIN_NAME, is_plain_name};
use super::reader::Reader;
use super::scope::Scope;
use super::sites::catch_all;
use super::{remedy, rooms};
use crate::listen::{Listener, Transport};
use crate::{bus, route, upstream};

/// Adds the pool of `--origin` to those of the file.
pub(super) fn add_origins_of_flags(
    reader: &Reader<'_>,
    flags: &Flags,
    pools: &mut Vec<upstream::PoolDefinition>,
) {
    let mut origins = Vec::new();
    for url in &flags.origins {
        match upstream::Origin::parse(url) {
            Some(origin) => origins.push(origin),
            None => {
                let written = DeValue::String(url.as_str().into());
                let remedy = remedy::origin(&written).map(|remedy| format!("; {remedy}"));
                let expected = upstream::Origin::EXPECTED;
                let remedy = remedy.unwrap_or_default();
                reader.mistake_of(
                    flags.source("--origin"),
                    format!("expected {expected}, found {url:?}{remedy}"),
                );
            }
        }
    }
    if origins.is_empty() {
        return;
    }
    if pools.iter().any(|pool| &*pool.settings.name == FLAG_POOL) {
        let source = flags.source("--origin");
        let message = format!(
            "adds a pool named {FLAG_POOL:?}, but the file already has one: rename it, or leave out {source}"
        );
        reader.mistake_of(source, message);
    }
    let mut pool = upstream::PoolDefinition::new(FLAG_POOL, origins);
    // A user who gives just a URL expects requests to carry that host, not this node's.
    pool.settings.host_header = upstream::HostHeader::Origin;
    reader.record("--origin", &flags.origins);
    pools.push(pool);
}

/// With `--origin`, its pool serves every host that no site of the file has. Reports a configuration that serves
/// nothing. `defaults`: the settings of `[defaults]`.
pub(super) fn override_sites(
    reader: &Reader<'_>,
    flags: &Flags,
    pools: &[upstream::PoolDefinition],
    defaults: Scope,
    sites: &mut Vec<route::SiteSettings>,
) {
    if !flags.origins.is_empty() && pools.iter().any(|pool| &*pool.settings.name == FLAG_POOL) {
        sites.retain(|site| !site.hosts.contains(&route::HostPattern::Any));
        sites.push(catch_all(&FLAG_POOL.into(), defaults));
    }
    if sites.is_empty() && flags.origins.is_empty() {
        let missing = match pools.is_empty() {
            true => "[pools.NAME] with \"origins\" and [sites.NAME] with \"hosts\"",
            false => "[sites.NAME] with \"hosts\"",
        };
        reader.nothing_to_serve(&format!(
            "nothing to serve: add {missing} to the configuration file (--config), or start the node with --origin URL"
        ));
    }
}

/// Listeners of flags take the place of those of the file; without both, the node listens on loopback.
pub(super) fn override_listeners(
    reader: &Reader<'_>,
    flags: &Flags,
    listeners: &mut Vec<Listener>,
) {
    if listeners.is_empty() && flags.http.is_empty() && flags.https.is_empty() {
        listeners.extend([Listener::plain(HTTP), Listener::tls(HTTPS)]);
    }
    replace_listeners(listeners, Transport::Plain, &flags.http);
    replace_listeners(listeners, Transport::Tls, &flags.https);
    let addresses: Vec<String> = listeners.iter().map(listener_text).collect();
    reader.record("listeners", &addresses);
}

/// The address of the admin API.
pub(super) fn override_admin(reader: &Reader<'_>, flags: &Flags, address: &mut SocketAddr) {
    if let Some(of_flag) = flags.admin {
        *address = of_flag;
        reader.record("admin.address", &of_flag);
    }
}

/// The Redis of the purge bus.
pub(super) fn override_bus(reader: &Reader<'_>, flags: &Flags, bus: &mut bus::Settings) {
    if let Some(url) = &flags.redis {
        match url.parse() {
            Ok(url) => bus.redis = Some(url),
            Err(expected) => reader.mistake_of(flags.source("--redis"), expected),
        }
        reader.record("bus.redis", &bus.redis);
    }
}

/// The options of `[node]`.
pub(super) fn override_node(reader: &Reader<'_>, flags: &Flags, node: &mut rooms::NodeSettings) {
    if let Some(directory) = &flags.data_dir {
        node.data_directory.clone_from(directory);
        reader.record("node.data_directory", directory);
    }
    if let Some(workers) = flags.workers {
        let max = rooms::WORKERS_MAX;
        if !(1..=max).contains(&workers) {
            let message = format!("expected 1 to {max}, found {workers}");
            reader.mistake_of(flags.source("--workers"), message);
        }
        node.workers = workers;
        reader.record("node.workers", &workers);
    }
    for (flag, option, value, target) in [
        ("--name", "node.name", &flags.name, &mut node.name),
        ("--region", "node.region", &flags.region, &mut node.region),
    ] {
        if let Some(value) = value {
            let is_none = value.is_empty() && option == "node.region";
            if !is_none && !is_plain_name(value) {
                let message = format!("expected {PLAIN_NAME}, found {value:?}");
                reader.mistake_of(flags.source(flag), message);
            }
            target.clone_from(value);
            reader.record(option, value);
        }
    }
}

/// A listener for people: `127.0.0.1:443 with TLS`, and what else it has.
fn listener_text(listener: &Listener) -> String {
    let Listener { address, transport, proxy_protocol, name } = listener;
    let mut text = address.to_string();
    if *transport == Transport::Tls {
        text.push_str(" with TLS");
    }
    if *name != address.to_string() {
        text.push_str(&format!(", name {name}"));
    }
    if !proxy_protocol.is_empty() {
        let networks: Vec<String> = proxy_protocol.iter().map(ToString::to_string).collect();
        text.push_str(&format!(", PROXY protocol from {}", networks.join(" ")));
    }
    text
}

/// Listens on the flags' addresses of a transport instead of those of the file, if there are any.
fn replace_listeners(
    listeners: &mut Vec<Listener>,
    transport: Transport,
    addresses: &[SocketAddr],
) {
    if addresses.is_empty() {
        return;
    }
    listeners.retain(|listener| listener.transport != transport);
    let of = |address| Listener { transport, ..Listener::plain(address) };
    listeners.extend(addresses.iter().copied().map(of));
}

/// Default listen addresses: loopback, reachable from this machine only.
pub(super) const HTTP: SocketAddr = SocketAddr::new(LOOPBACK, 8080);
pub(super) const HTTPS: SocketAddr = SocketAddr::new(LOOPBACK, 8443);
const LOOPBACK: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// The name of the pool that `--origin` adds.
const FLAG_POOL: &str = "origin";
