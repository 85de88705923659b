//! Edge names: which region, and which of its nodes, an answer names.
//!
//! A name is compiled once for each change of the nodes or the configuration. An answer then costs a comparison
//! for each region and one for each node of the region that is chosen, and allocates nothing.
//!
//! ```text
//! map entry that matches ─┐
//! policy ─────────────────┴─▶ region ─ load above load_max: a share ─▶ next region ─▶ nodes at random, by weight
//! ```
//! Only nodes in the best state that the name has are used: ready ones; if there are none, draining ones; if
//! there are none of these either, all, because a client that cannot connect tries another address, and a
//! client without an address cannot try at all. For queries of type A the nodes that have IPv4 count.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use geo::{Place, UnitVector};
use ipnet::IpNet;

use super::labels::A;
use super::settings::{
    ADDRESSES_MAX, EdgeNode, EdgeSettings, EdgeState, REGIONS_MAX, RegionByClient, RegionPolicy,
};

/// An edge name, ready to answer.
#[derive(Debug)]
pub(super) struct EdgeName {
    /// In wire form and lower case.
    pub name: Box<[u8]>,
    pub ttl: u32,
    pub addresses_max: usize,
    pub policy: RegionPolicy,
    pub regions: Vec<EdgeRegion>,
    /// The state of the nodes that are answered. `None`: there is no address at all.
    pub best_state: Option<EdgeState>,
    /// The same for queries of type A. Where no node has IPv4, that of all nodes.
    pub best_state_v4: Option<EdgeState>,
    /// Whether there is a record HTTPS.
    pub https: bool,
    map: Vec<(RegionByClient, Option<usize>)>,
    /// The regions with nodes in the best state, as a set of bits.
    usable: u64,
    /// The regions with IPv4 addresses. Where no region has one, those in `usable`.
    usable_v4: u64,
}

/// A region of an edge name.
#[derive(Debug)]
pub(super) struct EdgeRegion {
    pub name: Arc<str>,
    pub point: Option<UnitVector>,
    /// Its share for [`RegionPolicy::Weighted`].
    pub weight: u64,
    /// Of its nodes in use, by weight. 1.0: full.
    pub load: f32,
    /// The share of its answers that another region gets, of 2^32.
    pub overflow: u32,
    pub v4: AddressSet<4>,
    pub v6: AddressSet<16>,
}

/// Addresses of one family with their weights, each once.
#[derive(Debug)]
pub(super) struct AddressSet<const N: usize> {
    addresses: Vec<(u32, [u8; N])>,
    total: u64,
}

/// The region of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RegionChoice {
    /// The index in [`EdgeName::regions`].
    pub region: usize,
    pub why: ChoiceReason,
    /// The bits of the client's address that the choice depends on.
    pub scope: u8,
}

/// Why a region was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChoiceReason {
    /// An entry of `map`.
    Map,
    /// The region is the nearest one that has nodes.
    Nearest,
    /// The region is the first one that has nodes.
    Order,
    /// By weight, at random.
    Weight,
    /// The region that would have been chosen is above `load_max`.
    Overflow,
}

impl ChoiceReason {
    /// The word in `skerry dns explain`.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Map => "map",
            Self::Nearest => "nearest",
            Self::Order => "order",
            Self::Weight => "weight",
            Self::Overflow => "overflow",
        }
    }
}

/// Random numbers for choices among nodes, fast and not secret (wyrand).
#[derive(Debug)]
pub(super) struct Dice(pub u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0xa076_1d64_78bd_642f);
        let wide = u128::from(self.0) * u128::from(self.0 ^ 0xe703_7ed1_a0b4_28db);
        (wide >> 64) as u64 ^ wide as u64
    }

    /// A number below `bound`, which is above 0.
    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

impl EdgeName {
    /// Compiles a name for these nodes.
    pub(super) fn new(settings: &EdgeSettings, nodes: &[EdgeNode], has_https: bool) -> Self {
        let mut names: Vec<&Arc<str>> = settings.regions.iter().collect();
        if names.is_empty() {
            names = nodes.iter().map(|node| &node.region).collect();
            names.sort();
            names.dedup();
        }
        names.truncate(REGIONS_MAX);
        let is_used = |node: &&EdgeNode| names.contains(&&node.region) && node.is_answerable();
        let best_state = nodes.iter().filter(is_used).map(|node| node.state).min();
        let with_v4 = nodes.iter().filter(is_used).filter(|node| node.has_v4());
        let best_state_v4 = with_v4.map(|node| node.state).min().or(best_state);
        let in_state = |state: Option<EdgeState>| -> Vec<&EdgeNode> {
            nodes.iter().filter(is_used).filter(|node| Some(node.state) == state).collect()
        };
        let (used, used_v4) = (in_state(best_state), in_state(best_state_v4));
        let region = |name: &&Arc<str>| EdgeRegion::new(name, settings, nodes, &used, &used_v4);
        let regions: Vec<EdgeRegion> = names.iter().map(region).collect();
        let position = |region: &str| regions.iter().position(|it| &*it.name == region);
        let map = settings.map.iter().map(|entry| (entry.clone(), position(&entry.region)));
        let usable = region_set(&regions, |it| used.iter().any(|node| node.region == it.name));
        let usable_v4 = match region_set(&regions, |region| region.v4.len() > 0) {
            0 => usable,
            with_v4 => with_v4,
        };
        Self {
            name: settings.name.clone(),
            ttl: settings.ttl,
            addresses_max: settings.addresses_max,
            policy: settings.policy,
            map: map.collect(),
            best_state,
            best_state_v4,
            https: settings.https && has_https,
            usable,
            usable_v4,
            regions,
        }
    }

    /// Chooses the region for a query of type `kind` from a client. `locate` is called at most once, and only if the choice depends
    /// on the place: it returns the place and the length of the network that is there. `None`: there is no address.
    ///
    /// A query of type A passes over regions without IPv4: a client without IPv6 would get no address at all. One of type AAAA
    /// does not pass over regions without IPv6: clients prefer IPv6, and one with both families would use a far region.
    #[inline]
    pub(super) fn choose(
        &self,
        (client, kind): (IpAddr, u16),
        locate: impl FnOnce(IpAddr) -> (Place, u8),
        dice: &mut Dice,
    ) -> Option<RegionChoice> {
        let mut scope = 0;
        let needs_place = self.policy == RegionPolicy::Nearest && self.regions.len() > 1
            || self.map.iter().any(|(entry, _)| entry.depends_on_place());
        let mut place = Place::default();
        if needs_place {
            (place, scope) = locate(client);
        }
        let among = if kind == A { self.usable_v4 } else { self.usable };
        let mapped = self.mapped(client, &place, &mut scope);
        let (first, why) = match mapped.filter(|region| among & (1 << region) != 0) {
            Some(region) => (region, ChoiceReason::Map),
            None => self.by_policy(&place, among, dice)?,
        };
        let overflow = self.regions[first].overflow;
        if overflow > 0 && dice.next() as u32 <= overflow {
            let full = region_set(&self.regions, |region| region.overflow > 0);
            if let Some((region, _)) = self.by_policy(&place, among & !full, dice) {
                return Some(RegionChoice { region, why: ChoiceReason::Overflow, scope });
            }
        }
        Some(RegionChoice { region: first, why, scope })
    }

    /// The region by policy for clients at `place`, apart from overflow.
    pub(super) fn for_place(&self, place: &Place) -> Option<usize> {
        self.by_policy(place, self.usable, &mut Dice(0)).map(|(region, _)| region)
    }

    /// The state of the nodes that answers to queries of type `kind` name.
    pub(super) fn state_for(&self, kind: u16) -> Option<EdgeState> {
        if kind == A { self.best_state_v4 } else { self.best_state }
    }

    /// The region of the first entry that matches.
    fn mapped(&self, client: IpAddr, place: &Place, scope: &mut u8) -> Option<usize> {
        for (entry, region) in &self.map {
            if entry.matches(client, place, scope) {
                return *region;
            }
        }
        None
    }

    /// The region by policy, of those in the set `among`.
    fn by_policy(
        &self,
        place: &Place,
        among: u64,
        dice: &mut Dice,
    ) -> Option<(usize, ChoiceReason)> {
        let usable =
            || self.regions.iter().enumerate().filter(move |(at, _)| among & (1 << at) != 0);
        match (self.policy, place.unit_vector()) {
            (RegionPolicy::Nearest, Some(from)) => {
                let closeness = |region: &EdgeRegion| {
                    region.point.map_or(f64::NEG_INFINITY, |point| from.closeness(point))
                };
                // Of two at the same distance, the first.
                let nearest = usable()
                    .rev()
                    .max_by(|(_, one), (_, other)| closeness(one).total_cmp(&closeness(other)));
                nearest.map(|(at, _)| (at, ChoiceReason::Nearest))
            }
            (RegionPolicy::Weighted, _) => {
                let total: u64 = usable().map(|(_, region)| region.weight).sum();
                if total == 0 {
                    return usable().next().map(|(at, _)| (at, ChoiceReason::Order));
                }
                let mut left = dice.below(total);
                let drawn = usable().find(|(_, region)| match left.checked_sub(region.weight) {
                    Some(rest) => {
                        left = rest;
                        false
                    }
                    None => true,
                });
                drawn.map(|(at, _)| (at, ChoiceReason::Weight))
            }
            _ => usable().next().map(|(at, _)| (at, ChoiceReason::Order)),
        }
    }
}

/// The regions that are in a set, as bits.
fn region_set(regions: &[EdgeRegion], is_in: impl Fn(&EdgeRegion) -> bool) -> u64 {
    let regions = regions.iter().enumerate();
    regions.filter(|(_, region)| is_in(region)).fold(0, |set, (at, _)| set | 1 << at)
}

impl EdgeNode {
    /// Whether an answer may name it in some state.
    fn is_answerable(&self) -> bool {
        self.weight > 0 && !self.addresses.is_empty()
    }

    fn has_v4(&self) -> bool {
        self.addresses_v4().next().is_some()
    }

    fn addresses_v4(&self) -> impl Iterator<Item = Ipv4Addr> {
        let v4 = |address: &IpAddr| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        };
        self.addresses.iter().filter_map(v4)
    }

    fn addresses_v6(&self) -> impl Iterator<Item = Ipv6Addr> {
        let v6 = |address: &IpAddr| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(*address),
        };
        self.addresses.iter().filter_map(v6)
    }

    /// Its share among the nodes of its region: its weight, less what is in use, but never nothing, so that a
    /// node whose load is measured wrongly still gets clients.
    fn share(&self) -> u32 {
        let free = (1.0 - self.load).clamp(SHARE_MIN, 1.0);
        ((f32::from(self.weight) * free * 1000.0) as u32).max(1)
    }
}

impl EdgeRegion {
    /// `used`, `used_v4`: the nodes of all regions whose IPv6 and IPv4 addresses are answered.
    fn new(
        name: &Arc<str>,
        settings: &EdgeSettings,
        nodes: &[EdgeNode],
        used: &[&EdgeNode],
        used_v4: &[&EdgeNode],
    ) -> Self {
        let used = || used.iter().filter(|node| node.region == *name);
        let used_v4 = used_v4.iter().filter(|node| node.region == *name);
        let v4 = used_v4.flat_map(|it| it.addresses_v4().map(move |ip| (ip.octets(), it.share())));
        let v6 = used().flat_map(|it| it.addresses_v6().map(move |ip| (ip.octets(), it.share())));
        let (v4, v6) = (AddressSet::new(v4), AddressSet::new(v6));
        let weights: u64 = used().map(|node| u64::from(node.weight)).sum();
        let loads: f32 = used().map(|node| node.load * f32::from(node.weight)).sum();
        let load = if weights > 0 { loads / weights as f32 } else { 0.0 };
        let above = if load > settings.load_max { 1.0 - settings.load_max / load } else { 0.0 };
        let nodes = nodes.iter().filter(|node| node.region == *name);
        let points = nodes.filter_map(|node| node.coordinates);
        let own = settings.weights.iter().find(|(region, _)| region == name);
        Self {
            name: name.clone(),
            point: UnitVector::middle(points.map(UnitVector::from)),
            weight: own.map_or(weights, |(_, weight)| u64::from(*weight)),
            load,
            overflow: (above * u32::MAX as f32) as u32,
            v4,
            v6,
        }
    }

    pub(super) fn is_usable(&self) -> bool {
        self.v4.total + self.v6.total > 0
    }
}

impl<const N: usize> AddressSet<N> {
    /// Nodes that share an address, such as that of a load balancer, have one entry with the weights of all: an answer must not have
    /// a record twice (RFC 2181 §5).
    fn new(addresses: impl Iterator<Item = ([u8; N], u32)>) -> Self {
        let mut weights: BTreeMap<[u8; N], u32> = BTreeMap::new();
        for (address, weight) in addresses {
            let sum = weights.entry(address).or_default();
            *sum = sum.saturating_add(weight);
        }
        let total = weights.values().map(|weight| u64::from(*weight)).sum();
        let addresses = weights.into_iter().map(|(address, weight)| (weight, address));
        Self { addresses: addresses.collect(), total }
    }

    /// The number of addresses.
    pub(super) fn len(&self) -> usize {
        self.addresses.len()
    }

    /// The addresses with their weights.
    pub(super) fn iter(&self) -> impl Iterator<Item = &(u32, [u8; N])> {
        self.addresses.iter()
    }

    /// Passes `count` different addresses to `take` (all, if there are fewer), at random by weight: the first
    /// is the one that most clients use.
    #[inline]
    pub(super) fn draw(&self, count: usize, dice: &mut Dice, mut take: impl FnMut(&[u8; N])) {
        let mut drawn = [0_u16; ADDRESSES_MAX];
        let mut total = self.total;
        for round in 0..count.min(self.addresses.len()).min(ADDRESSES_MAX) {
            let mut left = dice.below(total);
            let is_drawn = |at: usize| drawn[..round].contains(&(at as u16));
            let rest = self.addresses.iter().enumerate().filter(|(at, _)| !is_drawn(*at));
            let found =
                { rest }.find(|(_, (weight, _))| match left.checked_sub((*weight).into()) {
                    Some(less) => {
                        left = less;
                        false
                    }
                    None => true,
                });
            let Some((at, (weight, address))) = found else { return };
            take(address);
            drawn[round] = at as u16;
            total -= u64::from(*weight);
        }
    }
}

impl RegionByClient {
    fn depends_on_place(&self) -> bool {
        !(self.countries.is_empty() && self.continents.is_empty() && self.asns.is_empty())
    }

    /// Whether the client matches. Raises `scope` to the bits of its address that tell it from the networks.
    fn matches(&self, client: IpAddr, place: &Place, scope: &mut u8) -> bool {
        let is_in = |network: &IpNet| {
            *scope = (*scope).max(bits_that_tell(client, network));
            network.contains(&client)
        };
        let by_network = self.networks.iter().any(is_in);
        by_network
            || place.country.is_some_and(|country| self.countries.contains(&country))
            || place.continent.is_some_and(|continent| self.continents.contains(&continent))
            || place.asn().is_some_and(|asn| self.asns.contains(&asn))
    }
}

/// The length of the shortest prefix of `address` whose addresses are all in the network, or all outside. At least 1: an answer of
/// scope 0 is for the clients of both address families (RFC 7871 §7.3.1), and a network has addresses of one.
fn bits_that_tell(address: IpAddr, network: &IpNet) -> u8 {
    let common = match (address, network) {
        (IpAddr::V4(address), IpNet::V4(network)) => {
            (address.to_bits() ^ network.network().to_bits()).leading_zeros()
        }
        (IpAddr::V6(address), IpNet::V6(network)) => {
            (address.to_bits() ^ network.network().to_bits()).leading_zeros()
        }
        _ => return 1,
    };
    (common as u8).saturating_add(1).min(network.prefix_len().max(1))
}

/// The least share of a node of its weight.
const SHARE_MIN: f32 = 0.05;
