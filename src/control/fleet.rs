//! The nodes of the fleet: this node's identity, the heartbeats that nodes leave in Redis, and the
//! members that follow from them. Nothing here knows Redis or reads a clock: the purge bus carries
//! the heartbeats and says what time it is.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// What a node calls itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeIdentity {
    /// Its name, in receipts; no two nodes of a fleet may share one.
    pub name: String,
    /// Where it is.
    pub region: String,
}

/// A place in the purge stream: epoch and number.
pub(crate) type StreamPlace = (String, u64);

/// A node of the fleet, as of the last heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FleetMember {
    /// Where it is.
    pub region: String,
    /// When it was heard by Redis.
    pub heard: Instant,
    /// Up to where it has applied the stream.
    pub place: Option<StreamPlace>,
}

impl FleetMember {
    /// Stands under [`UNNAMED_MEMBERS`].
    pub(super) fn unnamed(now: Instant) -> Self {
        Self { region: String::new(), heard: now, place: None }
    }
}

/// What a node says of itself at each heartbeat.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Heartbeat {
    /// Where it is.
    pub region: String,
    /// Different at each start, so that two nodes of one name notice each other.
    pub instance: String,
    /// The history of the stream that it follows.
    pub epoch: Option<String>,
    /// The last entry that it has applied.
    pub number: Option<u64>,
    /// Whether it has met another node of its name.
    pub has_twin: bool,
}

impl Heartbeat {
    /// As it is kept in Redis: a JSON object.
    pub(super) fn to_text(&self) -> String {
        json!({
            "region": self.region,
            "instance": self.instance,
            "epoch": self.epoch,
            "number": self.number,
            "twin": self.has_twin,
        })
        .to_string()
    }

    /// What was kept. A field that is missing or of another type, as another version may write it,
    /// reads as its default.
    pub(super) fn parse(text: &str) -> Self {
        let fields: Value = serde_json::from_str(text).unwrap_or_default();
        let string = |field: &str| fields[field].as_str().map(str::to_owned);
        Self {
            region: string("region").unwrap_or_default(),
            instance: string("instance").unwrap_or_default(),
            epoch: string("epoch"),
            number: fields["number"].as_u64(),
            has_twin: fields["twin"].as_bool().unwrap_or_default(),
        }
    }

    fn place(&self) -> Option<StreamPlace> {
        self.number.map(|number| (self.epoch.clone().unwrap_or_default(), number))
    }
}

/// A node's last heartbeat, as Redis has it.
#[derive(Clone, Debug)]
pub(super) struct HeardNode {
    /// The node's name.
    pub node: String,
    /// By Redis' clock, in milliseconds since 1970.
    pub at_ms: u64,
    /// By the same clock, how long ago that is.
    pub ago_ms: u64,
    /// What it said of itself.
    pub heartbeat: Heartbeat,
}

/// Brings `members` up to these heartbeats. Two nodes of one name are two members.
pub(super) fn note_heartbeats(
    members: &mut BTreeMap<String, FleetMember>,
    heard: &[HeardNode],
    now: Instant,
) {
    // A heartbeat that a killed node had sent may come after the first of its successor, which
    // then looks like two nodes, for one heartbeat.
    members.retain(|name, _| !name.ends_with(TWIN_SUFFIX) && name != UNNAMED_MEMBERS);
    for HeardNode { node, ago_ms, heartbeat, .. } in heard {
        let heard = now.checked_sub(Duration::from_millis(*ago_ms)).unwrap_or(now);
        let region = heartbeat.region.clone();
        let member = FleetMember { region, heard, place: heartbeat.place() };
        if heartbeat.has_twin {
            let twin = FleetMember { place: None, ..member.clone() };
            members.insert(format!("{node}{TWIN_SUFFIX}"), twin);
        }
        members.insert(node.clone(), member);
    }
}

/// Notices another node that uses this one's name.
#[derive(Debug, Default)]
pub(super) struct TwinWatch {
    /// Whether this process has beaten before; what it finds under its name is its own since.
    has_beaten: bool,
    /// The twin is not met at every heartbeat, and counts until then.
    until: Option<Instant>,
}

impl TwinWatch {
    /// Whether there is a twin.
    pub(super) fn is_there(&self) -> bool {
        self.until.is_some()
    }

    /// Takes in the heartbeat that stood under this node's name before its own. A twin counts for
    /// `kept`. True when the answer of [`Self::is_there`] has changed.
    pub(super) fn note(
        &mut self,
        before: &Heartbeat,
        instance: &str,
        kept: Duration,
        now: Instant,
    ) -> bool {
        let is_first = !std::mem::replace(&mut self.has_beaten, true);
        let was_there = self.is_there();
        if !is_first && !before.instance.is_empty() && before.instance != instance {
            self.until = Some(now + kept);
        }
        self.until = self.until.filter(|until| now < *until);
        was_there != self.is_there()
    }
}

/// Nodes that Redis has not heard for longer than members are kept.
#[derive(Debug, Default)]
pub(super) struct AbsentNodes {
    /// By name: when Redis heard it last, and since when that is known here.
    nodes: BTreeMap<String, (u64, Instant)>,
}

impl AbsentNodes {
    /// The nodes that are no longer members: not heard for `kept` by Redis' clock, and not for
    /// `patience` by this node's own clock since it noticed that. Redis' clock alone may jump, and
    /// then all nodes look absent.
    pub(super) fn gone(
        &mut self,
        heard: &[HeardNode],
        kept: Duration,
        patience: Duration,
        now: Instant,
    ) -> Vec<String> {
        let mut gone = Vec::new();
        let mut nodes = BTreeMap::new();
        for HeardNode { node, at_ms, .. } in
            heard.iter().filter(|heard| u128::from(heard.ago_ms) > kept.as_millis())
        {
            let known = self.nodes.get(node).filter(|(known, _)| known == at_ms);
            let since = known.map_or(now, |(_, since)| *since);
            match now.saturating_duration_since(since) >= patience {
                true => gone.push(node.clone()),
                false => drop(nodes.insert(node.clone(), (*at_ms, since))),
            }
        }
        self.nodes = nodes;
        gone
    }
}

/// Stands for members that a node can't name.
pub(super) const UNNAMED_MEMBERS: &str = "(members before Redis lost its data)";
/// Ends the name of a second node of one name.
const TWIN_SUFFIX: &str = " (another of this name)";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_heartbeat_survives_redis_and_other_versions() {
        let heartbeat = Heartbeat {
            region: "eu".to_owned(),
            instance: "0badcafe".to_owned(),
            epoch: Some("e".to_owned()),
            number: Some(7),
            has_twin: true,
        };
        assert_eq!(Heartbeat::parse(&heartbeat.to_text()), heartbeat);
        let other = Heartbeat::parse(r#"{"region": "eu", "number": "7", "load": 1}"#);
        assert_eq!(other, Heartbeat { region: "eu".to_owned(), ..Heartbeat::default() });
        assert_eq!(Heartbeat::parse("x"), Heartbeat::default());
    }

    #[test]
    fn two_nodes_of_one_name_are_two_members() {
        let now = Clock::system().instant();
        let heard = |has_twin| {
            let heartbeat = Heartbeat { number: Some(7), has_twin, ..Heartbeat::default() };
            [HeardNode { node: "a".to_owned(), at_ms: 0, ago_ms: 0, heartbeat }]
        };
        let mut members = BTreeMap::from([(UNNAMED_MEMBERS.to_owned(), FleetMember::unnamed(now))]);
        note_heartbeats(&mut members, &heard(true), now);
        assert!(members.keys().eq(["a", "a (another of this name)"]), "{members:?}");
        assert_eq!(members["a"].place, Some((String::new(), 7)));
        note_heartbeats(&mut members, &heard(false), now);
        assert!(members.keys().eq(["a"]), "{members:?}");
    }

    #[test]
    fn a_twin_counts_until_it_was_not_met_for_a_while() {
        let start = Clock::system().instant();
        let mut watch = TwinWatch::default();
        let mut note = |instance: &str, after_s| {
            let before = Heartbeat { instance: instance.to_owned(), ..Heartbeat::default() };
            let now = start + Duration::from_secs(after_s);
            let has_changed = watch.note(&before, "own", Duration::from_secs(4), now);
            (has_changed, watch.is_there())
        };
        assert_eq!(note("other", 0), (false, false), "left by this node before its restart");
        assert_eq!(note("own", 1), (false, false));
        assert_eq!(note("other", 2), (true, true));
        assert_eq!(note("own", 5), (false, true));
        assert_eq!(note("own", 6), (true, false));
    }

    #[test]
    fn a_node_that_redis_clock_alone_calls_absent_is_not_gone() {
        let heard = |at_ms, now_ms: u64| {
            let ago_ms = now_ms.saturating_sub(at_ms);
            [HeardNode { node: "b".to_owned(), at_ms, ago_ms, heartbeat: Heartbeat::default() }]
        };
        let start = Clock::system().instant();
        let (kept, patience) = (Duration::from_secs(100), Duration::from_secs(60));
        let mut absent = AbsentNodes::default();
        let mut gone = |heard: &[HeardNode], after_s| {
            absent.gone(heard, kept, patience, start + Duration::from_secs(after_s)).len()
        };
        assert_eq!(gone(&heard(1_000, 100_000), 0), 0);
        // The clock jumps: the node was heard long ago, and then is heard again.
        assert_eq!(gone(&heard(1_000, 900_000), 1), 0);
        assert_eq!(gone(&heard(901_000, 902_000), 2), 0);
        // Now it is not heard again.
        assert_eq!(gone(&heard(901_000, 2_000_000), 900), 0);
        assert_eq!(gone(&heard(901_000, 2_059_000), 959), 0);
        assert_eq!(gone(&heard(901_000, 2_060_000), 960), 1);
    }
}
