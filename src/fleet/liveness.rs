//! The liveness of nodes of which the bus says nothing: of the static peers, and of the region's nodes while
//! Redis is away. They are asked for their announcement at an interval.
//!
//! ```text
//! static peer     out ──an answer──▶ as it announces itself ──3 failures──▶ out
//! row of the bus  as it was when Redis was lost; from there on the same
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::announcement::{Announcement, PeerEndpoint, Readiness};
use super::table::{FleetMember, NodeTable};

/// The results of the checks of a node so far.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CheckRecord {
    /// Where the node is asked.
    pub endpoint: PeerEndpoint,
    /// Its last answer.
    answer: Option<Announcement>,
    /// When that was.
    answered_at: Option<Instant>,
    /// Failures since then.
    failures: u32,
}

impl CheckRecord {
    /// A node that was not asked yet.
    pub(crate) fn new(endpoint: PeerEndpoint) -> Self {
        Self { endpoint, answer: None, answered_at: None, failures: 0 }
    }

    /// The node has answered with its announcement.
    pub(crate) fn succeed(&mut self, announcement: Announcement, now: Instant) {
        self.answer = Some(announcement);
        self.answered_at = Some(now);
        self.failures = 0;
    }

    /// The node has not answered in time. Returns whether it is out from now on.
    pub(crate) fn fail(&mut self) -> bool {
        self.failures = self.failures.saturating_add(1);
        self.failures == FAILURES_MAX
    }

    /// Whether the last check failed so often that the node is out.
    pub(crate) fn is_out(&self) -> bool {
        self.failures >= FAILURES_MAX
    }

    /// The node as the checks find it. `known`: its row, if the bus has one.
    fn member(&self, name: &Arc<str>, known: Option<&FleetMember>) -> FleetMember {
        let mut member = match (&self.answer, known) {
            (Some(answer), _) => FleetMember::new(name.clone(), answer.clone()),
            (None, Some(known)) => known.clone(),
            (None, None) => {
                let readiness = Readiness::Out;
                let unheard = Announcement { readiness, ..Announcement::of_region("") };
                FleetMember::new(name.clone(), unheard)
            }
        };
        // The address at which it was reached, whatever it announces.
        let protocol = member.announcement.peer.unwrap_or(self.endpoint).protocol;
        member.announcement.peer = Some(PeerEndpoint { protocol, ..self.endpoint });
        if self.is_out() {
            member.readiness = Readiness::Out;
            member.last_heartbeat = self.answered_at.or(member.last_heartbeat);
        }
        member
    }
}

/// The nodes to check, with the place of each: the static peers that the bus does not have and, while Redis is
/// `away`, the nodes of this node's region; at most [`CHECKED_MAX`].
pub(crate) fn nodes_to_check(
    table: &NodeTable,
    own: &str,
    static_peers: &[(Arc<str>, PeerEndpoint)],
    is_away: bool,
) -> BTreeMap<Arc<str>, PeerEndpoint> {
    let region = table.get(own).map(|member| &member.announcement.region);
    let rows = table.members().iter().filter(|member| {
        is_away && Some(&member.announcement.region) == region && *member.name != *own
    });
    let rows = rows.filter_map(|row| Some((row.name.clone(), row.announcement.peer?)));
    let unheard = |(name, _): &&(Arc<str>, PeerEndpoint)| {
        **name != *own && (is_away || table.get(name).is_none())
    };
    let static_peers = static_peers.iter().filter(unheard).cloned();
    static_peers.chain(rows).take(CHECKED_MAX).collect()
}

/// The table, with the checked nodes as the checks find them.
pub(crate) fn with_checks(
    table: &NodeTable,
    checks: &BTreeMap<Arc<str>, CheckRecord>,
) -> NodeTable {
    let members = table.members().iter().filter(|member| !checks.contains_key(&member.name));
    let checked = checks.iter().map(|(name, record)| record.member(name, table.get(name)));
    let members = members.cloned().chain(checked).collect();
    let mut shown = NodeTable::new(members);
    shown.is_incomplete = table.is_incomplete;
    shown
}

/// A node that has not answered this many times in a row is out.
const FAILURES_MAX: u32 = 3;
/// Nodes that are checked at a time.
const CHECKED_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn endpoint(port: u16) -> PeerEndpoint {
        PeerEndpoint { address: ([127, 0, 0, 1], port).into(), protocol: 1 }
    }

    fn row(name: &str, region: &str) -> FleetMember {
        let peer = Some(endpoint(1));
        FleetMember::new(name.into(), Announcement { peer, ..Announcement::of_region(region) })
    }

    fn readiness(
        table: &NodeTable,
        checks: &BTreeMap<Arc<str>, CheckRecord>,
        name: &str,
    ) -> &'static str {
        with_checks(table, checks).get(name).map_or("unknown", |member| member.readiness.as_str())
    }

    #[test]
    fn a_static_peer_is_what_it_says_and_out_after_three_failures() {
        let table = NodeTable::new(vec![row("own", "eu")]);
        let name: Arc<str> = "b".into();
        let mut checks = BTreeMap::from([(name.clone(), CheckRecord::new(endpoint(7)))]);
        let now = Clock::system().instant();
        assert_eq!(readiness(&table, &checks, "b"), "out", "it was never heard");
        let announced = Announcement { weight: 7, ..row("b", "eu").announcement };
        checks.get_mut(&name).unwrap().succeed(announced.clone(), now);
        let shown = with_checks(&table, &checks);
        let member = shown.get("b").unwrap();
        assert_eq!((member.readiness, member.announcement.weight), (Readiness::Ready, 7));
        assert_eq!(member.announcement.peer, Some(endpoint(7)), "as configured");
        let mut record = |outcomes: &[bool]| -> Vec<&'static str> {
            let step = |succeeds: &bool| {
                let record = checks.get_mut(&name).unwrap();
                match succeeds {
                    true => record.succeed(announced.clone(), now),
                    false => _ = record.fail(),
                }
                readiness(&table, &checks, "b")
            };
            outcomes.iter().map(step).collect()
        };
        assert_eq!(record(&[false, false, true]), ["ready"; 3]);
        assert_eq!(record(&[false, false, false, false]), ["ready", "ready", "out", "out"]);
        assert_eq!(record(&[true]), ["ready"]);
        let leaving = Announcement { readiness: Readiness::Draining, ..announced };
        checks.get_mut(&name).unwrap().succeed(leaving, now);
        assert_eq!(readiness(&table, &checks, "b"), "draining");
    }

    #[test]
    fn without_redis_rows_stay_as_they_are_until_their_nodes_say_otherwise() {
        let table = NodeTable::new(vec![row("own", "eu"), row("b", "eu"), row("far", "us")]);
        let listed =
            [("own".into(), endpoint(1)), ("b".into(), endpoint(2)), ("c".into(), endpoint(3))];
        let names = |is_away| -> Vec<String> {
            nodes_to_check(&table, "own", &listed, is_away)
                .keys()
                .map(ToString::to_string)
                .collect()
        };
        assert_eq!(names(false), ["c"]);
        assert_eq!(names(true), ["b", "c"]);
        let mut checks = BTreeMap::from([("b".into(), CheckRecord::new(endpoint(2)))]);
        assert_eq!(readiness(&table, &checks, "b"), "ready", "frozen");
        let record = checks.get_mut("b").unwrap();
        assert_eq!(
            [record.fail(), record.fail(), record.fail(), record.fail()],
            [false, false, true, false]
        );
        assert_eq!(readiness(&table, &checks, "b"), "out");
        assert_eq!(readiness(&table, &checks, "far"), "ready");
        assert_eq!(readiness(&table, &checks, "nobody"), "unknown");
    }
}
