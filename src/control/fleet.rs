//! The nodes of the fleet: this node's identity, the heartbeats of nodes in Redis, and the list of
//! members built from them. This module has no I/O: the purge bus transports the heartbeats and passes
//! the time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Name and region of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeIdentity {
    /// The node's name, unique in the fleet; receipts carry it.
    pub name: String,
    /// Region of the node, such as `eu-west`; may be empty.
    pub region: String,
}

/// The position of an entry in the purge stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StreamPosition {
    /// Epoch of the stream; changes when the stream is recreated.
    pub epoch: String,
    /// Number of the entry.
    pub number: u64,
}

/// A node of the fleet, as of its last heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FleetMember {
    /// Region of the node.
    pub region: String,
    /// Time of its last heartbeat.
    pub last_heartbeat: Instant,
    /// The last stream entry that it has applied.
    pub applied: Option<StreamPosition>,
}

impl FleetMember {
    /// Placeholder for members that this node does not know; listed as [`UNKNOWN_MEMBERS`].
    pub(super) fn unknown(now: Instant) -> Self {
        Self { region: String::new(), last_heartbeat: now, applied: None }
    }
}

/// What a node publishes about itself in regular intervals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Heartbeat {
    /// Region of the node.
    pub region: String,
    /// Random, different at each start, so that two nodes with the same name detect each other.
    pub instance: String,
    /// Epoch of the stream that the node reads; changes when the stream is recreated.
    pub epoch: Option<String>,
    /// Number of the last stream entry that it has applied.
    pub number: Option<u64>,
    /// Whether it has detected another node with its name.
    pub has_duplicate_name: bool,
}

impl Heartbeat {
    /// Encodes as JSON, as stored in Redis.
    pub(super) fn to_text(&self) -> String {
        json!({
            "region": self.region,
            "instance": self.instance,
            "epoch": self.epoch,
            "number": self.number,
            "twin": self.has_duplicate_name,
        })
        .to_string()
    }

    /// Decodes a stored heartbeat. A field that is missing or has another type, as another version
    /// of Skerry may write it, gets its default.
    pub(super) fn parse(text: &str) -> Self {
        let fields: Value = serde_json::from_str(text).unwrap_or_default();
        let string = |field: &str| fields[field].as_str().map(str::to_owned);
        Self {
            region: string("region").unwrap_or_default(),
            instance: string("instance").unwrap_or_default(),
            epoch: string("epoch"),
            number: fields["number"].as_u64(),
            has_duplicate_name: fields["twin"].as_bool().unwrap_or_default(),
        }
    }

    fn position(&self) -> Option<StreamPosition> {
        let epoch = self.epoch.clone().unwrap_or_default();
        self.number.map(|number| StreamPosition { epoch, number })
    }
}

/// A node's last heartbeat in Redis.
#[derive(Clone, Debug)]
pub(super) struct NodeHeartbeat {
    /// The node's name.
    pub node: String,
    /// Time of the heartbeat by the Redis clock, in milliseconds since 1970.
    pub at_ms: u64,
    /// Age of the heartbeat by the Redis clock, in milliseconds.
    pub age_ms: u64,
    /// What the node published.
    pub heartbeat: Heartbeat,
}

/// Updates `members` from the heartbeats. A node with a duplicate name becomes two members.
pub(super) fn update_members(
    members: &mut BTreeMap<String, FleetMember>,
    heartbeats: &[NodeHeartbeat],
    now: Instant,
) {
    // Recompute duplicates each time: a late heartbeat of a killed node can look like a duplicate
    // for one interval.
    members.retain(|name, _| !name.ends_with(DUPLICATE_SUFFIX) && name != UNKNOWN_MEMBERS);
    for NodeHeartbeat { node, age_ms, heartbeat, .. } in heartbeats {
        let last_heartbeat = now.checked_sub(Duration::from_millis(*age_ms)).unwrap_or(now);
        let region = heartbeat.region.clone();
        let member = FleetMember { region, last_heartbeat, applied: heartbeat.position() };
        if heartbeat.has_duplicate_name {
            let duplicate = FleetMember { applied: None, ..member.clone() };
            members.insert(format!("{node}{DUPLICATE_SUFFIX}"), duplicate);
        }
        members.insert(node.clone(), member);
    }
}

/// Detects another node that uses this node's name.
#[derive(Debug, Default)]
pub(super) struct DuplicateNameDetector {
    /// Whether this process has sent a heartbeat. Before that, a heartbeat under its name is from
    /// its previous run.
    has_sent: bool,
    /// The duplicate is assumed present until this time, because not every heartbeat reveals it.
    until: Option<Instant>,
}

impl DuplicateNameDetector {
    /// Whether another node uses this node's name.
    pub(super) fn is_duplicate(&self) -> bool {
        self.until.is_some()
    }

    /// Checks the heartbeat that this node's heartbeat replaced. A duplicate is reported for
    /// `lifetime`. Returns whether [`Self::is_duplicate`] has changed.
    pub(super) fn observe(
        &mut self,
        previous: &Heartbeat,
        instance: &str,
        lifetime: Duration,
        now: Instant,
    ) -> bool {
        let is_first = !std::mem::replace(&mut self.has_sent, true);
        let was_duplicate = self.is_duplicate();
        if !is_first && !previous.instance.is_empty() && previous.instance != instance {
            self.until = Some(now + lifetime);
        }
        self.until = self.until.filter(|until| now < *until);
        was_duplicate != self.is_duplicate()
    }
}

/// Nodes whose last heartbeat is older than the member lifetime.
#[derive(Debug, Default)]
pub(super) struct AbsentNodes {
    /// By name: time of the last heartbeat by the Redis clock, and when this node noticed its age.
    nodes: BTreeMap<String, (u64, Instant)>,
}

impl AbsentNodes {
    /// Returns the nodes that are no longer members: their last heartbeat is older than `lifetime`
    /// by the Redis clock, and has stayed so for `confirm_after` by this node's clock. The Redis clock
    /// alone is not enough: after a jump of it, all nodes look absent.
    pub(super) fn take_expired(
        &mut self,
        heartbeats: &[NodeHeartbeat],
        lifetime: Duration,
        confirm_after: Duration,
        now: Instant,
    ) -> Vec<String> {
        let mut expired = Vec::new();
        let mut nodes = BTreeMap::new();
        let is_old = |node: &&NodeHeartbeat| u128::from(node.age_ms) > lifetime.as_millis();
        for NodeHeartbeat { node, at_ms, .. } in heartbeats.iter().filter(is_old) {
            let known = self.nodes.get(node).filter(|(known, _)| known == at_ms);
            let since = known.map_or(now, |(_, since)| *since);
            match now.saturating_duration_since(since) >= confirm_after {
                true => expired.push(node.clone()),
                false => drop(nodes.insert(node.clone(), (*at_ms, since))),
            }
        }
        self.nodes = nodes;
        expired
    }
}

/// Name under which members are listed that this node does not know.
pub(super) const UNKNOWN_MEMBERS: &str = "(unknown members)";
/// Ends the name under which the second node with a duplicate name is listed.
const DUPLICATE_SUFFIX: &str = " (duplicate name)";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_heartbeat_is_read_back_and_other_versions_are_tolerated() {
        let heartbeat = Heartbeat {
            region: "eu".to_owned(),
            instance: "0badcafe".to_owned(),
            epoch: Some("e".to_owned()),
            number: Some(7),
            has_duplicate_name: true,
        };
        assert_eq!(Heartbeat::parse(&heartbeat.to_text()), heartbeat);
        let other = Heartbeat::parse(r#"{"region": "eu", "number": "7", "load": 1}"#);
        assert_eq!(other, Heartbeat { region: "eu".to_owned(), ..Heartbeat::default() });
        assert_eq!(Heartbeat::parse("x"), Heartbeat::default());
    }

    #[test]
    fn two_nodes_with_the_same_name_are_two_members() {
        let now = Clock::system().instant();
        let heartbeats = |has_duplicate_name| {
            let number = Some(7);
            let heartbeat = Heartbeat { number, has_duplicate_name, ..Heartbeat::default() };
            [NodeHeartbeat { node: "a".to_owned(), at_ms: 0, age_ms: 0, heartbeat }]
        };
        let mut members = BTreeMap::from([(UNKNOWN_MEMBERS.to_owned(), FleetMember::unknown(now))]);
        update_members(&mut members, &heartbeats(true), now);
        assert!(members.keys().eq(["a", "a (duplicate name)"]), "{members:?}");
        let applied = StreamPosition { epoch: String::new(), number: 7 };
        assert_eq!(members["a"].applied, Some(applied));
        update_members(&mut members, &heartbeats(false), now);
        assert!(members.keys().eq(["a"]), "{members:?}");
    }

    #[test]
    fn a_duplicate_name_is_reported_until_it_expires() {
        let start = Clock::system().instant();
        let mut detector = DuplicateNameDetector::default();
        let mut observe = |instance: &str, after_s| {
            let previous = Heartbeat { instance: instance.to_owned(), ..Heartbeat::default() };
            let now = start + Duration::from_secs(after_s);
            let has_changed = detector.observe(&previous, "own", Duration::from_secs(4), now);
            (has_changed, detector.is_duplicate())
        };
        assert_eq!(observe("other", 0), (false, false), "of this node before its restart");
        assert_eq!(observe("own", 1), (false, false));
        assert_eq!(observe("other", 2), (true, true));
        assert_eq!(observe("own", 5), (false, true));
        assert_eq!(observe("own", 6), (true, false));
    }

    #[test]
    fn a_jump_of_the_redis_clock_does_not_remove_members() {
        let heartbeat = |at_ms, now_ms: u64| {
            let age_ms = now_ms.saturating_sub(at_ms);
            [NodeHeartbeat { node: "b".to_owned(), at_ms, age_ms, heartbeat: Heartbeat::default() }]
        };
        let start = Clock::system().instant();
        let (lifetime, confirm_after) = (Duration::from_secs(100), Duration::from_secs(60));
        let mut absent = AbsentNodes::default();
        let mut expired = |heartbeats: &[NodeHeartbeat], after_s| {
            let now = start + Duration::from_secs(after_s);
            absent.take_expired(heartbeats, lifetime, confirm_after, now).len()
        };
        assert_eq!(expired(&heartbeat(1_000, 100_000), 0), 0);
        // The clock jumps: the last heartbeat looks old, until the next one.
        assert_eq!(expired(&heartbeat(1_000, 900_000), 1), 0);
        assert_eq!(expired(&heartbeat(901_000, 902_000), 2), 0);
        // No further heartbeat follows.
        assert_eq!(expired(&heartbeat(901_000, 2_000_000), 900), 0);
        assert_eq!(expired(&heartbeat(901_000, 2_059_000), 959), 0);
        assert_eq!(expired(&heartbeat(901_000, 2_060_000), 960), 1);
    }
}
