//! The region as requests see it: which nodes own which keys, and the connections to them.
//!
//! `node` builds a [`Region`] from each node table and publishes it to all workers. A [`PeerLink`] stays the
//! same object over such changes, with its connections and its health, as long as the peer keeps its address.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::clock::whole_ms;
use crate::fleet::{FleetMember, NodeTable, Readiness, owners};
use crate::labels::{HopFailure, WhyOrigin};
use crate::peers::{AskSettings, PROTOCOL};
use crate::upstream::Pool;

/// The region that every worker reads at each miss.
pub(crate) type SharedRegion = Arc<ArcSwap<Region>>;

/// The nodes of this node's region. Immutable; a change of the node table replaces it.
pub(crate) struct Region {
    /// The name of this node.
    pub node: Arc<str>,
    /// The name of its region.
    pub name: Arc<str>,
    /// How peers are asked.
    pub settings: AskSettings,
    /// All nodes of the fleet.
    pub table: Arc<NodeTable>,
    /// The peers of the region, by name.
    pub links: HashMap<Arc<str>, Arc<PeerLink>>,
    /// The requests of clients in flight for keys that this node owns.
    pub own_load: Arc<AtomicU32>,
}

/// Where a request goes that the store cannot answer.
pub(super) enum NextHop {
    /// To the origin, and why.
    Origin(WhyOrigin),
    /// To the first of these that answers, and else to the origin. One or two.
    Peers(Vec<Arc<PeerLink>>),
}

impl Region {
    /// Where a request for the key with this hash goes. `digest`: of this node's configuration.
    pub(super) fn next_hop(&self, key: u64, digest: &str, now: Instant) -> NextHop {
        let skip_for = self.settings.skip_for;
        self.hop_among(key, digest, |link| link.may_be_asked(skip_for, now))
    }

    /// As [`Region::next_hop`], without effect on the peers.
    pub(super) fn foreseen_hop(&self, key: u64, digest: &str) -> NextHop {
        self.hop_among(key, digest, PeerLink::is_up)
    }

    fn hop_among(&self, key: u64, digest: &str, is_up: impl Fn(&PeerLink) -> bool) -> NextHop {
        let mut peers = Vec::new();
        let mut why = WhyOrigin::NoOwner;
        for member in self.owners(key).into_iter().take(OWNERS_TRIED) {
            match self.link_to(member, digest, &is_up) {
                Ok(link) => peers.push(link),
                // The next owner would be asked by this node alone, and not find what others have.
                Err(reason) if reason != WhyOrigin::Skipped => {
                    why = reason;
                    break;
                }
                Err(skipped) => why = skipped,
            }
        }
        match peers.is_empty() {
            true => NextHop::Origin(why),
            false => NextHop::Peers(peers),
        }
    }

    /// The nodes that may own the key, the owner first.
    pub(super) fn owners(&self, key: u64) -> Vec<&FleetMember> {
        owners(&self.table, &self.name, key, |member| self.load(member))
    }

    /// The peer, if it may be asked.
    fn link_to(
        &self,
        member: &FleetMember,
        digest: &str,
        is_up: impl Fn(&PeerLink) -> bool,
    ) -> Result<Arc<PeerLink>, WhyOrigin> {
        if *member.name == *self.node {
            return Err(WhyOrigin::Own);
        }
        let obstacle = obstacle(member, digest);
        let link = self.links.get(&member.name);
        match (obstacle, link) {
            (Some(obstacle), _) => Err(obstacle),
            (None, None) => Err(WhyOrigin::NoOwner),
            (None, Some(link)) if is_up(link) => Ok(link.clone()),
            (None, Some(_)) => Err(WhyOrigin::Skipped),
        }
    }

    fn load(&self, member: &FleetMember) -> u32 {
        match self.links.get(&member.name) {
            Some(link) => link.in_flight.load(Ordering::Relaxed),
            None if *member.name == *self.node => self.own_load.load(Ordering::Relaxed),
            None => 0,
        }
    }

    /// The peers of the region that can be asked, with their addresses: those that need a [`PeerLink`].
    pub(crate) fn peers_in<'t>(
        table: &'t NodeTable,
        node: &str,
        region: &str,
    ) -> impl Iterator<Item = (&'t Arc<str>, SocketAddr)> {
        let others = table.members().iter();
        let others = others.filter(move |member| {
            *member.name != *node
                && *member.announcement.region == *region
                && member.readiness != Readiness::Out
        });
        others.filter_map(|member| {
            let endpoint = member.announcement.peer.as_ref()?;
            (endpoint.protocol == PROTOCOL).then_some((&member.name, endpoint.address))
        })
    }
}

/// Why a node that owns a key cannot be asked, whatever its health.
fn obstacle(member: &FleetMember, digest: &str) -> Option<WhyOrigin> {
    let announcement = &member.announcement;
    match &announcement.peer {
        None => Some(WhyOrigin::Protocol),
        Some(endpoint) if endpoint.protocol != PROTOCOL => Some(WhyOrigin::Protocol),
        Some(_) if *announcement.config_digest != *digest => Some(WhyOrigin::Digest),
        Some(_) => None,
    }
}

/// The connections of this node to a peer, what is known of its health, and what was counted.
#[derive(Debug)]
pub(crate) struct PeerLink {
    /// The peer's name.
    pub name: Arc<str>,
    /// Where it listens for peers.
    pub address: SocketAddr,
    /// The pool whose only origin it is.
    pub pool: Arc<Pool>,
    /// When the link was made, from which times are counted.
    since: Instant,
    /// Until when it gets no request, in milliseconds since `since`; 0: it works.
    skip_until_ms: AtomicU64,
    in_flight: AtomicU32,
    /// The counters for the metrics.
    pub counts: PeerCounts,
}

/// The counters of a peer that the metrics show.
#[derive(Debug, Default)]
pub(crate) struct PeerCounts {
    /// Requests that were sent to it.
    pub requests: AtomicU64,
    /// Responses that it gave to them.
    pub responses: AtomicU64,
    /// The time to the heads of these responses, in microseconds, summed.
    pub first_byte_us: AtomicU64,
    /// Bytes of the bodies of these responses.
    pub bytes: AtomicU64,
    /// Requests without a usable response, in the order of [`HopFailure::WORDS`].
    pub failures: [AtomicU64; HopFailure::WORDS.len()],
}

impl PeerLink {
    /// A link to the peer with this name at this address; `pool` has it as its only origin.
    pub(crate) fn new(name: Arc<str>, address: SocketAddr, pool: Arc<Pool>, now: Instant) -> Self {
        Self {
            name,
            address,
            pool,
            since: now,
            skip_until_ms: AtomicU64::new(0),
            in_flight: AtomicU32::new(0),
            counts: PeerCounts::default(),
        }
    }

    /// Whether it may get a request now. A peer that failed gets one in each `skip_for`, to try it again.
    fn may_be_asked(&self, skip_for: Duration, now: Instant) -> bool {
        let until = self.skip_until_ms.load(Ordering::Relaxed);
        if until == 0 {
            return true;
        }
        let now_ms = self.ms(now);
        let next = now_ms + whole_ms(skip_for);
        let order = Ordering::Relaxed;
        now_ms >= until && self.skip_until_ms.compare_exchange(until, next, order, order).is_ok()
    }

    /// Whether it works, as far as is known.
    pub(crate) fn is_up(&self) -> bool {
        self.skip_until_ms.load(Ordering::Relaxed) == 0
    }

    /// Notes an answer, whatever it says.
    pub(super) fn note_answer(&self) {
        self.skip_until_ms.store(0, Ordering::Relaxed);
    }

    /// Notes that it did not answer: it gets no request for a while.
    pub(super) fn note_silence(&self, skip_for: Duration, now: Instant) {
        let until = self.ms(now) + whole_ms(skip_for).max(1);
        self.skip_until_ms.store(until, Ordering::Relaxed);
    }

    /// Counts a request without a usable response.
    pub(super) fn count_failure(&self, failure: HopFailure) {
        self.counts.failures[failure.index()].fetch_add(1, Ordering::Relaxed);
    }

    fn ms(&self, now: Instant) -> u64 {
        whole_ms(now.saturating_duration_since(self.since))
    }
}

/// A request in flight to a peer, counted until dropped.
#[derive(Debug)]
pub(super) struct AtPeer(Arc<PeerLink>);

impl AtPeer {
    pub(super) fn begin(link: &Arc<PeerLink>) -> Self {
        link.in_flight.fetch_add(1, Ordering::Relaxed);
        link.counts.requests.fetch_add(1, Ordering::Relaxed);
        Self(link.clone())
    }

    pub(super) fn link(&self) -> &Arc<PeerLink> {
        &self.0
    }
}

impl Drop for AtPeer {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A client's request in flight for a key that this node owns, counted until dropped.
#[derive(Debug)]
pub(super) struct OwnLoad(Arc<AtomicU32>);

impl OwnLoad {
    pub(super) fn begin(region: &Region) -> Self {
        region.own_load.fetch_add(1, Ordering::Relaxed);
        Self(region.own_load.clone())
    }
}

impl Drop for OwnLoad {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The nodes in the order of ownership that are considered: an owner, and one more if that fails.
const OWNERS_TRIED: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::fleet::{Announcement, PeerEndpoint};
    use crate::rendezvous::hash;
    use crate::upstream::{Origin, PoolDefinition, Scheme};

    const DIGEST: &str = "0a";

    fn member(name: &str) -> FleetMember {
        let address = "192.0.2.1:9443".parse().unwrap();
        let announcement = Announcement {
            peer: Some(PeerEndpoint { address, protocol: PROTOCOL }),
            config_digest: DIGEST.into(),
            software: "1".into(),
            ..Announcement::of_region("eu")
        };
        FleetMember::new(name.into(), announcement)
    }

    /// A region of `a` (this node), `b` and `c`, with links to all peers that are ready.
    fn region(change: impl Fn(&mut FleetMember)) -> Region {
        let mut members: Vec<_> = ["a", "b", "c"].map(member).into();
        members.iter_mut().for_each(change);
        let table = Arc::new(NodeTable::new(members));
        let links = Region::peers_in(&table, "a", "eu").map(|(name, address)| {
            let origin = Origin::new(Scheme::Http, name.clone(), address.port());
            let pool = Pool::new(&PoolDefinition::new(name.clone(), vec![origin]), None);
            let now = Clock::system().instant();
            let link = PeerLink::new(name.clone(), address, pool.expect("a pool"), now);
            (name.clone(), Arc::new(link))
        });
        Region {
            node: "a".into(),
            name: "eu".into(),
            settings: AskSettings::default(),
            links: links.collect(),
            table,
            own_load: Arc::default(),
        }
    }

    /// The next hops of a key whose owners are `b`, then `c`, then `a`.
    fn hops(region: &Region) -> Vec<String> {
        let all = self::region(|_| {});
        let is_wanted = |key: &u64| all.owners(*key).iter().map(|it| &*it.name).eq(["b", "c", "a"]);
        let mut keys = (0..).map(|number: u64| hash(&number.to_le_bytes()));
        let key = keys.find(is_wanted).unwrap();
        match region.foreseen_hop(key, DIGEST) {
            NextHop::Origin(why) => vec![why.as_str().to_owned()],
            NextHop::Peers(peers) => peers.iter().map(|link| link.name.to_string()).collect(),
        }
    }

    #[test]
    fn the_owner_is_asked_and_then_the_next_one() {
        let check = |names: &str, change: fn(&mut FleetMember), expected: &[&str]| {
            let region = region(|it| {
                if names.contains(&*it.name) {
                    change(it);
                }
            });
            assert_eq!(hops(&region), expected, "{names}");
        };
        check("", |_| {}, &["b", "c"]);
        // Nodes that are not ready, or of another region, own nothing.
        check("b", |it| it.readiness = Readiness::Draining, &["c"]);
        check("bc", |it| it.readiness = Readiness::Out, &["own"]);
        check("abc", |it| it.readiness = Readiness::Out, &["no-owner"]);
        check("b", |it| it.announcement.region = "us".into(), &["c"]);
        // Other nodes would not agree on another owner.
        check("b", |it| it.announcement.config_digest = "0b".into(), &["digest"]);
        check("b", |it| it.announcement.peer = None, &["protocol"]);
        let next_version = |it: &mut FleetMember| {
            let peer = it.announcement.peer.as_mut();
            peer.expect("an endpoint").protocol += 1;
        };
        check("b", next_version, &["protocol"]);
        check("c", |it| it.announcement.config_digest = "0b".into(), &["b"]);
    }

    #[test]
    fn a_peer_that_failed_is_skipped_and_then_tried_by_one_request() {
        let region = region(|_| {});
        let (start, skip_for) = (region.links["b"].since, Duration::from_secs(1));
        let after = |ms| start + Duration::from_millis(ms);
        let link = &region.links["b"];
        let may = |ms| link.may_be_asked(skip_for, after(ms));
        assert!(may(0) && may(0));
        link.note_silence(skip_for, after(5));
        assert_eq!(hops(&region), ["c"]);
        assert!(!may(5) && !may(1004));
        assert!(may(1005), "one request tries it");
        assert!(!may(1005) && !may(2004), "the others do not wait for it");
        assert!(may(2005), "the first has not come back");
        link.note_answer();
        assert!(may(2006) && may(2006) && link.is_up());
        region.links["c"].note_silence(skip_for, after(1));
        link.note_silence(skip_for, after(1));
        assert_eq!(hops(&region), ["skipped"]);
    }

    #[test]
    fn requests_in_flight_are_counted_until_they_end() {
        let region = region(|_| {});
        let load = |name: &str| region.load(region.table.get(name).unwrap());
        let (at_peer, own) = (AtPeer::begin(&region.links["b"]), OwnLoad::begin(&region));
        assert_eq!((load("a"), load("b"), load("c")), (1, 1, 0));
        drop((at_peer, own));
        assert_eq!((load("a"), load("b")), (0, 0));
    }
}
