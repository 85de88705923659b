//! Publishes the nodes of this node's region and of the shields that rules name, and the connections to them, to the
//! workers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ClientConfig;

use super::shared::Shared;
use crate::clock::Clock;
use crate::config::Config;
use crate::fleet::NodeTable;
use crate::peers::PeerTls;
use crate::serve::{DEADLINES_MAX, PeerLink, Region, SharedRegion};
use crate::upstream::{
    Deadlines, Health, KeepAlive, Origin, OriginTls, PoolDefinition, PoolSettings, Pools,
    PreparedTls, Protocol, Retry, RetryOn, Scheme,
};

/// The region of a node with peers, and the pools of its links.
pub(super) struct RegionPublisher {
    pub(super) region: SharedRegion,
    tls: Arc<PeerTls>,
    clock: Clock,
}

impl RegionPublisher {
    /// A publisher of the region in `table`.
    pub(super) fn new(
        config: &Config,
        tls: Arc<PeerTls>,
        table: Arc<NodeTable>,
        clock: Clock,
    ) -> Self {
        let client = tls.current().client.clone();
        let empty = Region {
            node: config.node.name.as_str().into(),
            name: config.node.region.as_str().into(),
            settings: config.peers.ask,
            table: Arc::default(),
            links: HashMap::default(),
            own_load: Arc::default(),
        };
        let next = next_region(&empty, config, table, (&client, true), &clock);
        Self { region: Arc::new(ArcSwap::from_pointee(next)), tls, clock }
    }
}

impl Shared {
    /// Follows the node table, the settings and the certificates, as long as the node runs.
    pub(super) async fn follow_region(self: Arc<Self>, publisher: RegionPublisher) {
        let RegionPublisher { region, tls, clock } = publisher;
        let mut tables = self.nodes.clone();
        let mut client = tls.current().client.clone();
        loop {
            let current = tls.current().client.clone();
            let is_new = !Arc::ptr_eq(&current, &client);
            client = current;
            let table = tables.borrow_and_update().clone();
            let next = {
                let config = self.config();
                next_region(&region.load(), &config, table, (&client, is_new), &clock)
            };
            region.store(Arc::new(next));
            // Reloads and new certificates are seen after a while; other nodes at once.
            if let Ok(Err(_)) = tokio::time::timeout(LOOK_AGAIN, tables.changed()).await {
                return;
            }
        }
    }
}

/// The region after a change. Links stay while their peers keep their addresses, unless the certificates are
/// new.
fn next_region(
    before: &Region,
    config: &Config,
    table: Arc<NodeTable>,
    (client, is_new): (&Arc<ClientConfig>, bool),
    clock: &Clock,
) -> Region {
    let (ask, age_max) = (config.peers.ask, config.peers.limits.connection_age);
    let is_kept = |link: &&Arc<PeerLink>| {
        !is_new
            && before.settings.deadline == ask.deadline
            && link.pool.settings().keep_alive.age_max == age_max
            && link.address.port() != 0
    };
    let regions: Vec<_> = config.routes.shield_regions().chain([&before.name]).collect();
    let links = Region::peers_in(&table, &before.node, &regions).filter_map(|(peer, address)| {
        let (name, region) = (&peer.name, &peer.announcement.region);
        let known = before.links.get(name).filter(is_kept);
        let known = known.filter(|link| link.address == address && link.region == *region);
        if let Some(link) = known {
            return Some((name.clone(), link.clone()));
        }
        let opening = match *region == before.name {
            true => ask.deadline * DEADLINES_MAX,
            false => (ask.deadline * DEADLINES_MAX).max(OPENING_FAR),
        };
        let definition = definition(name, address, client, (opening, age_max));
        let built = Pools::default().reload(&[definition]);
        let pool = built.ok().and_then(|(pools, _)| pools.iter().next().cloned());
        let Some(pool) = pool else {
            tracing::warn!(peer = %name, %address, "a peer cannot be asked: its name is no DNS name");
            return None;
        };
        Some((name.clone(), Arc::new(PeerLink::new(peer, address, pool, clock.instant()))))
    });
    let links = links.collect();
    Region {
        node: before.node.clone(),
        name: before.name.clone(),
        settings: ask,
        own_load: before.own_load.clone(),
        table,
        links,
    }
}

/// The pool of one peer. The peer keeps the deadlines of the origin. Whether it lives is watched in `serve/region/patience.rs`
/// as long as another server could answer in its place, and by the PINGs of the connection; so this node sets no deadline but that of
/// the acknowledgement, which a connection to a slow peer may use up, and never tries twice. `opening`: the time for a
/// connection; `age_max`: its age at which it gets no further request.
fn definition(
    name: &Arc<str>,
    address: std::net::SocketAddr,
    client: &Arc<ClientConfig>,
    (opening, age_max): (Duration, Duration),
) -> PoolDefinition {
    let origin = Origin {
        address: Some(address.ip()),
        ..Origin::new(Scheme::Https, name.clone(), address.port())
    };
    let mut definition = PoolDefinition::new(format!("peer {name}"), vec![origin]);
    definition.settings = PoolSettings {
        is_of_peers: true,
        protocol: Protocol::Http2,
        tls: OriginTls { prepared: Some(PreparedTls(client.clone())), ..OriginTls::default() },
        deadlines: Deadlines {
            connect: opening,
            tls: opening,
            first_byte: NO_DEADLINE,
            between_bytes: NO_DEADLINE,
            ..Deadlines::default()
        },
        keep_alive: KeepAlive {
            ping_after: PING_AFTER,
            ping_timeout: PING_TIMEOUT,
            age_max,
            ..KeepAlive::default()
        },
        retry: Retry { on: RetryOn::default(), attempts_max: Some(1), ..Retry::default() },
        health: Health { connect_failures: 0, consecutive_5xx: 0, ..Health::default() },
        header_bytes_max: HEADER_BYTES_MAX,
        header_count_max: HEADER_COUNT_MAX,
        streams_max: STREAMS_MAX,
        ..definition.settings
    };
    definition
}

/// A connection to a node of a shield may take so long, TCP and TLS each: two round trips around the earth.
const OPENING_FAR: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Longer than any deadline of an origin.
const NO_DEADLINE: Duration = Duration::from_secs(24 * 3600);
/// A peer that lives answers a PING at once, whatever its origin does.
const PING_AFTER: Duration = Duration::from_secs(1);
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// More than an origin may send, because the owner adds fields.
const HEADER_BYTES_MAX: usize = 72 << 10;
const HEADER_COUNT_MAX: usize = 128;
/// The peer announces its own limit.
const STREAMS_MAX: usize = 10_000;
