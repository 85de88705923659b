//! The owner of a key among the nodes of a region: weighted rendezvous hashing over the nodes that are ready, with bounded
//! load.

use super::announcement::Readiness;
use super::table::{FleetMember, NodeTable};
use crate::rendezvous::{LoadBound, hash, score};

/// The nodes of `region` that may own the key with this hash, the owner first; after it the nodes that would
/// own it without those before. `load`: the requests that a node has from the asker at present. A node with
/// at least [`LOAD_FREE`] of them and more than 1.25 times its share stands behind the others. Empty: no node
/// of the region is ready.
pub(crate) fn owners<'a>(
    table: &'a NodeTable,
    region: &str,
    key: u64,
    load: impl Fn(&FleetMember) -> u32,
) -> Vec<&'a FleetMember> {
    let members = table.members().iter().filter(|member| may_own(member, region));
    let members: Vec<_> = members.map(|member| (load(member), member)).collect();
    let loads = members.iter().map(|(load, member)| (*load, member.announcement.weight));
    let bound = LoadBound::of(loads, FACTOR_PERCENT);
    let rank = |(load, member): (u32, &'a FleetMember)| {
        let weight = member.announcement.weight;
        let score = score(key, hash(member.name.as_bytes()), weight);
        (load < LOAD_FREE || bound.allows(load, weight), score, member)
    };
    let mut ranked: Vec<_> = members.into_iter().map(rank).collect();
    ranked.sort_by(|(allowed, score, _), (other_allowed, other, _)| {
        other_allowed.cmp(allowed).then(other.total_cmp(score))
    });
    ranked.into_iter().map(|(.., member)| member).collect()
}

/// Nodes of a build that does not announce itself answer no other node.
fn may_own(member: &FleetMember, region: &str) -> bool {
    let announcement = &member.announcement;
    member.readiness == Readiness::Ready
        && *announcement.region == *region
        && announcement.weight > 0
        && !announcement.software.is_empty()
        && !announcement.has_duplicate_name
}

/// The most that a node may have of its share of the requests, in percent.
const FACTOR_PERCENT: u32 = 125;
/// A node with fewer requests keeps all its keys: the shares of a few requests say nothing, and a key that
/// moves is fetched from the origin once more.
const LOAD_FREE: u32 = 64;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::fleet::Announcement;

    fn table(weights: &[(&str, u16)]) -> NodeTable {
        let member = |(name, weight): &(&str, u16)| {
            let (software, weight) = ("1".into(), *weight);
            let announcement = Announcement { software, weight, ..Announcement::of_region("eu") };
            FleetMember::new((*name).into(), announcement)
        };
        NodeTable::new(weights.iter().map(member).collect())
    }

    fn nodes(count: usize) -> Vec<(String, u16)> {
        (0..count).map(|at| (format!("edge-{at}"), 100)).collect()
    }

    fn table_of(nodes: &[(String, u16)]) -> NodeTable {
        table(&nodes.iter().map(|(name, weight)| (&**name, *weight)).collect::<Vec<_>>())
    }

    fn name_of_owner(table: &NodeTable, key: u64) -> String {
        owners(table, "eu", hash(&key.to_le_bytes()), |_| 0)[0].name.to_string()
    }

    const KEYS: u64 = 20_000;

    #[test]
    fn a_change_of_one_node_of_n_moves_one_nth_of_the_keys() {
        let all = nodes(10);
        let (before, fewer) = (table_of(&all), table_of(&all[..9]));
        let mut moved = 0;
        for key in 0..KEYS {
            let (was, is) = (name_of_owner(&before, key), name_of_owner(&fewer, key));
            if was != is {
                assert_eq!(was, "edge-9", "a key of a node that stays never moves");
                moved += 1;
            }
        }
        assert!(moved < KEYS / 10 * 13 / 10 && moved > KEYS / 10 * 7 / 10, "{moved}");
    }

    #[test]
    fn each_node_owns_its_share_by_weight() {
        let table = table(&[("a", 100), ("b", 200), ("c", 100), ("none", 0)]);
        let mut owned: BTreeMap<String, u64> = BTreeMap::new();
        (0..KEYS).for_each(|key| *owned.entry(name_of_owner(&table, key)).or_default() += 1);
        let share = |name: &str| owned[name] as f64 / KEYS as f64;
        assert!((share("b") - 0.5).abs() < 0.02 && (share("a") - 0.25).abs() < 0.02, "{owned:?}");
        assert_eq!(owned.get("none"), None);
    }

    #[test]
    fn no_node_gets_more_than_a_quarter_above_the_mean() {
        let table = table_of(&nodes(8));
        let mut loads: BTreeMap<String, u32> = BTreeMap::new();
        // Half of all requests are for one key.
        for request in 0..8000_u64 {
            let key = hash(&if request % 2 == 0 { [0; 8] } else { request.to_le_bytes() });
            let load = |member: &FleetMember| loads.get(&*member.name).copied().unwrap_or(0);
            let owner = owners(&table, "eu", key, load)[0].name.to_string();
            *loads.entry(owner).or_default() += 1;
        }
        let most = *loads.values().max().unwrap();
        assert!(most <= 1251, "1.25 times the mean of 1000: {loads:?}");
    }

    #[test]
    fn few_requests_move_no_key() {
        let table = table_of(&nodes(3));
        for key in 0..100 {
            let name = name_of_owner(&table, key);
            let load = |member: &FleetMember| if *member.name == *name { LOAD_FREE - 1 } else { 0 };
            let hashed = hash(&key.to_le_bytes());
            assert_eq!(*owners(&table, "eu", hashed, load)[0].name, *name);
            let one_more = |member: &FleetMember| load(member).next_multiple_of(LOAD_FREE);
            assert_ne!(*owners(&table, "eu", hashed, one_more)[0].name, *name);
        }
    }

    #[test]
    fn only_ready_nodes_of_the_region_own_keys() {
        let mut members: Vec<FleetMember> = table_of(&nodes(5)).members().to_vec();
        members[0].readiness = Readiness::Draining;
        members[1].readiness = Readiness::Out;
        members[2].announcement.region = "us".into();
        members[3].announcement.software = "".into();
        let table = NodeTable::new(members);
        let names: Vec<_> = owners(&table, "eu", 1, |_| 0).iter().map(|it| &*it.name).collect();
        assert_eq!(names, ["edge-4"]);
    }
}
