//! The region and its shields as requests see them: which nodes own which keys, and the connections to them.
//!
//! `node` builds a [`Region`] from each node table and publishes it to all workers. A [`PeerLink`] stays the
//! same object over such changes, with its connections and its health, as long as the peer keeps its address.

pub(in crate::serve) mod answering;
pub(in crate::serve) mod asking;
pub(in crate::serve) mod copies;
pub(in crate::serve) mod distance;
pub(in crate::serve) mod hop_body;
pub(in crate::serve) mod owner_form;
pub(in crate::serve) mod patience;
pub(in crate::serve) mod peer_calls;
pub(in crate::serve) mod peer_requests;
pub(in crate::serve) mod relay;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use foldhash::fast::RandomState;

use crate::clock::whole_ms;
use crate::fleet::{FleetMember, NodeTable, Readiness, owners};
use crate::labels::{HopFailure, WhyOrigin};
use crate::peers::{AskSettings, PROTOCOL};
use crate::route::{Shield, ShieldGone};
use crate::upstream::Pool;
use distance::Distance;

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
    /// The peers of the region and of the shields that rules name, by name.
    pub links: HashMap<Arc<str>, Arc<PeerLink>, RandomState>,
    /// The requests of clients in flight for keys that this node owns.
    pub own_load: Arc<AtomicU32>,
}

/// Where a request goes that the store cannot answer.
pub(in crate::serve) enum NextHop {
    /// To the origin, and why.
    Origin(WhyOrigin),
    /// To the first of these that answers, and else to the origin. One or two.
    Peers(Vec<Arc<PeerLink>>),
}

impl Region {
    /// Where a request for the key with this hash goes. `digest`: of this node's configuration.
    pub(in crate::serve) fn next_hop(&self, key: u64, digest: &str, now: Instant) -> NextHop {
        let skip_for = self.settings.skip_for;
        self.hop_among(&self.name, key, digest, |link| link.may_be_asked(skip_for, now))
    }

    /// As [`Region::next_hop`], without effect on the peers.
    pub(in crate::serve) fn foreseen_hop(&self, key: u64, digest: &str) -> NextHop {
        self.hop_among(&self.name, key, digest, PeerLink::is_up)
    }

    /// The nodes of a shield to ask for the key, whatever their health. The regions that stand before this
    /// node's own in its list come first; if the list has this region, this node asks the origin after them.
    pub(in crate::serve) fn shield_nodes(
        &self,
        shield: &Shield,
        key: u64,
        digest: &str,
    ) -> ShieldNodes {
        let mut links = Vec::new();
        let mut may_ask_origin = shield.when_gone == ShieldGone::Direct;
        for region in &shield.regions {
            if **region == *self.name {
                may_ask_origin = true;
                break;
            }
            match self.hop_among(region, key, digest, |_| true) {
                NextHop::Peers(peers) => links.extend(peers),
                // The node lives, and will have this node's configuration or protocol in a while.
                NextHop::Origin(WhyOrigin::Digest | WhyOrigin::Protocol) => may_ask_origin = true,
                NextHop::Origin(_) => {}
            }
        }
        ShieldNodes { links, may_ask_origin }
    }

    fn hop_among(
        &self,
        region: &str,
        key: u64,
        digest: &str,
        is_up: impl Fn(&PeerLink) -> bool,
    ) -> NextHop {
        let mut peers = Vec::new();
        let mut why = WhyOrigin::NoOwner;
        for member in self.owners(region, key).into_iter().take(OWNERS_TRIED) {
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

    /// The nodes of a region that may own the key, the owner first.
    pub(in crate::serve) fn owners(&self, region: &str, key: u64) -> Vec<&FleetMember> {
        owners(&self.table, region, key, |member| self.load(member))
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

    /// The peers of these regions that can be asked, with their addresses: those that need a [`PeerLink`].
    pub(crate) fn peers_in<'t>(
        table: &'t NodeTable,
        node: &str,
        regions: &[&Arc<str>],
    ) -> impl Iterator<Item = (&'t FleetMember, SocketAddr)> {
        let others = table.members().iter();
        let others = others.filter(move |member| {
            *member.name != *node
                && regions.contains(&&member.announcement.region)
                && member.readiness != Readiness::Out
        });
        others.filter_map(|member| {
            let endpoint = member.announcement.peer.as_ref()?;
            (endpoint.protocol == PROTOCOL).then_some((member, endpoint.address))
        })
    }
}

/// The nodes that stand between this node and the origin for a key.
pub(in crate::serve) struct ShieldNodes {
    /// In the order in which they are asked, at most [`OWNERS_TRIED`] of each region.
    pub links: Vec<Arc<PeerLink>>,
    /// Whether this node asks the origin if none of them answers.
    pub may_ask_origin: bool,
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
    /// Its region.
    pub region: Arc<str>,
    /// Where it listens for peers.
    pub address: SocketAddr,
    /// The pool whose only origin it is.
    pub pool: Arc<Pool>,
    /// When the link was made, from which times are counted.
    since: Instant,
    /// Until when it gets no request, in milliseconds since `since`; 0: it works.
    skip_until_ms: AtomicU64,
    in_flight: AtomicU32,
    /// The measured round trip to it.
    pub(in crate::serve) distance: Distance,
    /// The number of its answers and acknowledgements.
    answers: AtomicU64,
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
    /// A link to this peer at this address; `pool` has it as its only origin.
    pub(crate) fn new(
        peer: &FleetMember,
        address: SocketAddr,
        pool: Arc<Pool>,
        now: Instant,
    ) -> Self {
        Self {
            name: peer.name.clone(),
            region: peer.announcement.region.clone(),
            address,
            pool,
            since: now,
            skip_until_ms: AtomicU64::new(0),
            in_flight: AtomicU32::new(0),
            distance: Distance::default(),
            answers: AtomicU64::new(0),
            counts: PeerCounts::default(),
        }
    }

    /// The measured round trip to it, smoothed. `None`: not measured.
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        self.distance.round_trip()
    }

    /// Whether it may get a request now. A peer that failed gets one in each `skip_for`, to try it again.
    pub(in crate::serve) fn may_be_asked(&self, skip_for: Duration, now: Instant) -> bool {
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

    /// Notes an answer or an acknowledgement, whatever it says.
    pub(in crate::serve) fn note_answer(&self) {
        self.answers.fetch_add(1, Ordering::Relaxed);
        self.skip_until_ms.store(0, Ordering::Relaxed);
    }

    /// A number that grows with each sign of life in its responses to any worker: heads, acknowledgements, bytes of
    /// bodies.
    pub(in crate::serve) fn signs_of_life(&self) -> u64 {
        self.answers.load(Ordering::Relaxed) + self.counts.bytes.load(Ordering::Relaxed)
    }

    /// Notes that it did not answer: it gets no request for a while.
    pub(in crate::serve) fn note_silence(&self, skip_for: Duration, now: Instant) {
        let until = self.ms(now) + whole_ms(skip_for).max(1);
        self.skip_until_ms.store(until, Ordering::Relaxed);
    }

    /// Counts a request without a usable response.
    pub(in crate::serve) fn count_failure(&self, failure: HopFailure) {
        self.counts.failures[failure.index()].fetch_add(1, Ordering::Relaxed);
    }

    fn ms(&self, now: Instant) -> u64 {
        whole_ms(now.saturating_duration_since(self.since))
    }
}

/// A request in flight to a peer, counted until dropped.
#[derive(Debug)]
pub(in crate::serve) struct AtPeer(Arc<PeerLink>);

impl AtPeer {
    pub(in crate::serve) fn begin(link: &Arc<PeerLink>) -> Self {
        link.in_flight.fetch_add(1, Ordering::Relaxed);
        link.counts.requests.fetch_add(1, Ordering::Relaxed);
        Self(link.clone())
    }

    pub(in crate::serve) fn link(&self) -> &Arc<PeerLink> {
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
pub(in crate::serve) struct OwnLoad(Arc<AtomicU32>);

impl OwnLoad {
    pub(in crate::serve) fn begin(region: &Region) -> Self {
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
/// How long a request between nodes waits for purges: until a purge of this node is read back from the bus, or a purge
/// that the peer has applied arrives here. Either takes milliseconds.
const PURGES_AWAITED: Duration = Duration::from_millis(50);

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
        let far = |name: &str, region: &str| {
            let mut far = member(name);
            far.announcement.region = region.into();
            far
        };
        let mut members: Vec<_> = ["a", "b", "c"].map(member).into();
        members.extend([far("f", "fra"), far("m", "ams")]);
        members.iter_mut().for_each(change);
        let table = Arc::new(NodeTable::new(members));
        let regions = ["eu", "fra", "ams"].map(Arc::from);
        let regions: Vec<_> = regions.iter().collect();
        let links = Region::peers_in(&table, "a", &regions).map(|(peer, address)| {
            let origin = Origin::new(Scheme::Http, peer.name.clone(), address.port());
            let pool = Pool::new(&PoolDefinition::new(peer.name.clone(), vec![origin]), None);
            let now = Clock::system().instant();
            let link = PeerLink::new(peer, address, pool.expect("a pool"), now);
            (peer.name.clone(), Arc::new(link))
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
        let is_wanted =
            |key: &u64| all.owners("eu", *key).iter().map(|it| &*it.name).eq(["b", "c", "a"]);
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
    fn the_regions_of_a_shield_stand_before_the_origin() {
        let check =
            |change: fn(&mut FleetMember), regions: &[&str], direct: bool, expected: &[&str]| {
                let region = region(change);
                let when_gone = if direct { ShieldGone::Direct } else { ShieldGone::Error };
                let regions = regions.iter().map(|name| Arc::from(*name)).collect();
                let shield = Shield { regions, when_gone };
                let nodes = region.shield_nodes(&shield, 1, DIGEST);
                let mut found: Vec<&str> = nodes.links.iter().map(|link| &*link.name).collect();
                found.push(if nodes.may_ask_origin { "origin" } else { "error" });
                assert_eq!(found, expected, "{shield:?}");
            };
        check(|_| {}, &["fra"], true, &["f", "origin"]);
        check(|_| {}, &["fra", "ams"], false, &["f", "m", "error"]);
        // This node is of the region eu.
        check(|_| {}, &["eu"], false, &["origin"]);
        check(|_| {}, &["fra", "eu", "ams"], false, &["f", "origin"]);
        check(|_| {}, &["nowhere"], true, &["origin"]);
        check(|_| {}, &["nowhere", "ams"], false, &["m", "error"]);
        let out = |it: &mut FleetMember| {
            if *it.name == *"f" {
                it.readiness = Readiness::Out;
            }
        };
        check(out, &["fra"], true, &["origin"]);
        check(out, &["fra"], false, &["error"]);
        check(out, &["fra", "ams"], false, &["m", "error"]);
        let other = |it: &mut FleetMember| {
            if *it.name == *"f" {
                it.announcement.config_digest = "0b".into();
            }
        };
        // While configurations are rolled out, the shield lives and cannot be asked.
        check(other, &["fra"], false, &["origin"]);
        check(other, &["fra", "ams"], false, &["m", "origin"]);
        // A node that failed stays in the list: it is tried when it is its turn.
        let region = region(|_| {});
        let now = region.links["f"].since;
        region.links["f"].note_silence(Duration::from_secs(1), now);
        let shield = Shield { regions: vec!["fra".into()], when_gone: ShieldGone::Error };
        assert_eq!(region.shield_nodes(&shield, 1, DIGEST).links.len(), 1);
        assert!(!region.links["f"].may_be_asked(Duration::from_secs(1), now));
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
