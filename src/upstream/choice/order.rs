//! The order in which the tiers of a pool are tried: by priority, or by the distance of its
//! origins. Pure; computed when a set of members is built, so that a request only compares.
//!
//! A tier is a group of members that are equally good by the pool's [`Policy`]. Which member of
//! a tier gets a request is decided by the pool's balance ([`super::balance`]).

use geo::{Coordinates, UnitVector, by_distance};

use super::super::settings::{Origin, Policy};
use super::balance::turns;

/// Members that are equally good by the pool's policy.
#[derive(Debug)]
pub(in crate::upstream) struct Tier {
    /// Positions in the set of members, ascending. Never empty.
    pub(in crate::upstream) members: Box<[u16]>,
    /// The schedule of round robin, as positions in the set of members. Never empty.
    pub(in crate::upstream) turns: Box<[u16]>,
    /// Where the members are; `None` if their coordinates are not configured.
    point: Option<UnitVector>,
}

/// All tiers of a set of members.
#[derive(Debug)]
pub(in crate::upstream) struct Tiers {
    /// In the order for clients whose location does not matter or is not known.
    list: Box<[Tier]>,
    /// Whether the client's location decides ([`Policy::Nearest`]).
    is_by_client: bool,
}

impl Tiers {
    /// The tiers of `origins` under `policy`. `node` is where the node is.
    ///
    /// - [`Policy::Failover`]: one tier for each priority, the lowest number first.
    /// - Otherwise one tier for each pair of coordinates (and priority, if they differ there).
    ///   Origins without coordinates come last, by priority. The nearest to `node` is first;
    ///   where `node` is not known, the lowest priority is.
    pub(in crate::upstream) fn new(
        origins: &[Origin],
        policy: Policy,
        node: Option<Coordinates>,
    ) -> Self {
        let place = |origin: &Origin| match policy {
            Policy::Failover => None,
            Policy::Nearest | Policy::NearestToNode => origin.coordinates,
        };
        let mut groups: Vec<(Option<Coordinates>, u16, Vec<u16>)> = Vec::new();
        for (at, origin) in origins.iter().enumerate() {
            let key = (place(origin), origin.priority);
            match groups.iter_mut().find(|(point, priority, _)| (*point, *priority) == key) {
                Some((.., members)) => members.push(at as u16),
                None => groups.push((key.0, key.1, vec![at as u16])),
            }
        }
        groups.sort_by_key(|(point, priority, _)| match node {
            Some(_) => (point.is_none(), *priority),
            None => (false, *priority),
        });
        if let Some(node) = node {
            let placed = groups.iter().take_while(|(point, ..)| point.is_some()).count();
            let rest = groups.split_off(placed);
            let placed = groups.into_iter().filter_map(|group| Some((group.0?, group)));
            let placed = placed.map(|(point, group)| (group, point));
            groups = by_distance(node, placed).into_iter().map(|(group, _)| group).collect();
            groups.extend(rest);
        }
        let tier = |(point, _, members): (Option<Coordinates>, u16, Vec<u16>)| Tier {
            turns: turns(&members, |at| origins[usize::from(at)].weight),
            members: members.into(),
            point: point.map(UnitVector::from),
        };
        let list: Box<[Tier]> = groups.into_iter().map(tier).collect();
        let is_by_client = policy == Policy::Nearest && list.len() > 1;
        Self { list, is_by_client }
    }

    pub(in crate::upstream) fn len(&self) -> usize {
        self.list.len()
    }

    /// The tiers with their positions, the best one for a client at `client` first. Allocates
    /// nothing: each step looks for the next nearest one.
    pub(in crate::upstream) fn order(&self, client: Option<UnitVector>) -> TierOrder<'_> {
        TierOrder { tiers: self, client: client.filter(|_| self.is_by_client), last: None }
    }
}

/// The iterator of [`Tiers::order`].
pub(in crate::upstream) struct TierOrder<'a> {
    tiers: &'a Tiers,
    client: Option<UnitVector>,
    /// Closeness and position of the last one.
    last: Option<(f64, usize)>,
}

impl<'a> Iterator for TierOrder<'a> {
    type Item = (usize, &'a Tier);

    fn next(&mut self) -> Option<Self::Item> {
        let list = &self.tiers.list;
        let Some(client) = self.client else {
            let at = self.last.map_or(0, |(_, at)| at + 1);
            self.last = Some((0.0, at));
            return list.get(at).map(|tier| (at, tier));
        };
        let mut best: Option<(f64, usize)> = None;
        for (at, tier) in list.iter().enumerate() {
            // Below every cosine: tiers without coordinates are last, in their own order.
            let closeness = tier.point.map_or(UNPLACED, |point| client.closeness(point));
            let is_left = self.last.is_none_or(|(last, position)| {
                closeness < last || (closeness == last && at > position)
            });
            if is_left && best.is_none_or(|(best, _)| closeness > best) {
                best = Some((closeness, at));
            }
        }
        self.last = best;
        best.map(|(_, at)| (at, &list[at]))
    }
}

/// The closeness of a tier without coordinates.
const UNPLACED: f64 = -2.0;

#[cfg(test)]
mod tests {
    use super::*;

    const BERLIN: (f64, f64) = (52.52, 13.41);
    const CHICAGO: (f64, f64) = (41.88, -87.63);
    const TOKYO: (f64, f64) = (35.68, 139.69);

    fn point((latitude, longitude): (f64, f64)) -> Coordinates {
        Coordinates::new(latitude, longitude).expect("on Earth")
    }

    fn origin(priority: u16, place: Option<(f64, f64)>) -> Origin {
        Origin { priority, coordinates: place.map(point), ..Origin::http("o", 80) }
    }

    fn check(
        policy: Policy,
        origins: &[Origin],
        client: Option<(f64, f64)>,
        node: Option<(f64, f64)>,
        expected: &[&[u16]],
    ) {
        let tiers = Tiers::new(origins, policy, node.map(point));
        let client = client.map(|client| point(client).into());
        let found: Vec<&[u16]> = tiers.order(client).map(|(_, tier)| &*tier.members).collect();
        assert_eq!(found, expected, "{policy:?} from {client:?}, node {node:?}");
        assert_eq!(tiers.len(), expected.len());
    }

    #[test]
    fn failover_orders_tiers_by_priority_and_ignores_coordinates() {
        let origins = [origin(1, Some(BERLIN)), origin(0, None), origin(1, None), origin(7, None)];
        check(Policy::Failover, &origins, Some(BERLIN), None, &[&[1], &[0, 2], &[3]]);
        check(Policy::Failover, &origins[..1], None, Some(TOKYO), &[&[0]]);
    }

    #[test]
    fn nearest_orders_tiers_by_the_distance_from_the_client() {
        let origins = [
            origin(0, None),
            origin(0, Some(CHICAGO)),
            origin(0, Some(TOKYO)),
            origin(0, Some(BERLIN)),
            origin(0, Some(TOKYO)),
        ];
        let nearest = |client, expected: &[&[u16]]| {
            check(Policy::Nearest, &origins, Some(client), None, expected);
        };
        nearest((48.9, 2.4), &[&[3], &[1], &[2, 4], &[0]]);
        nearest((-33.9, 151.2), &[&[2, 4], &[1], &[3], &[0]]);
        nearest((19.4, -99.1), &[&[1], &[3], &[2, 4], &[0]]);
    }

    #[test]
    fn an_unknown_client_is_served_from_the_node_s_place_or_by_priority() {
        let origins = [
            origin(2, Some(CHICAGO)),
            origin(1, Some(TOKYO)),
            origin(0, None),
            origin(0, Some(BERLIN)),
        ];
        let check = |node, expected: &[&[u16]]| {
            check(Policy::Nearest, &origins, None, node, expected);
        };
        check(Some(TOKYO), &[&[1], &[3], &[0], &[2]]);
        check(None, &[&[2], &[3], &[1], &[0]]);
    }

    #[test]
    fn nearest_to_node_is_the_same_for_every_client() {
        let origins = [origin(0, Some(CHICAGO)), origin(0, Some(TOKYO)), origin(0, Some(BERLIN))];
        for client in [None, Some(BERLIN), Some(TOKYO)] {
            let expected: &[&[u16]] = &[&[0], &[2], &[1]];
            check(Policy::NearestToNode, &origins, client, Some((40.7, -74.0)), expected);
        }
    }

    #[test]
    fn equal_coordinates_are_one_tier_unless_priorities_differ_there() {
        let origins = [origin(1, Some(TOKYO)), origin(0, Some(TOKYO)), origin(0, Some(TOKYO))];
        check(Policy::Nearest, &origins, Some(BERLIN), None, &[&[1, 2], &[0]]);
    }
}
