//! Members that have been without a heartbeat for so long that they are removed from the fleet.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Nodes whose last heartbeat is older than the member lifetime.
#[derive(Debug, Default)]
pub(crate) struct AbsentNodes {
    /// By name: time of the last heartbeat by the Redis clock, and when this node noticed its age.
    nodes: BTreeMap<Arc<str>, (u64, Instant)>,
}

/// A member that has missed heartbeats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AbsentNode {
    /// Its name.
    pub name: Arc<str>,
    /// Time of its last heartbeat by the Redis clock, in milliseconds since 1970.
    pub at_ms: u64,
}

/// When an absent node is removed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AbsenceLimits {
    /// Age of its last heartbeat by the Redis clock.
    pub lifetime: Duration,
    /// For how long this node must have seen that age, by its own clock.
    pub confirm_after: Duration,
}

impl AbsentNodes {
    /// Returns the nodes that are no longer members: their last heartbeat is older than the lifetime by the
    /// Redis clock (`now_ms`), and has stayed so by this node's clock (`now`). The Redis clock alone is not
    /// enough: after a jump of it, all nodes look absent.
    pub(crate) fn take_expired(
        &mut self,
        absent: impl Iterator<Item = AbsentNode>,
        limits: AbsenceLimits,
        now_ms: u64,
        now: Instant,
    ) -> Vec<AbsentNode> {
        let mut expired = Vec::new();
        let mut nodes = BTreeMap::new();
        for AbsentNode { name, at_ms } in absent {
            if u128::from(now_ms.saturating_sub(at_ms)) <= limits.lifetime.as_millis() {
                continue;
            }
            let known = self.nodes.get(&name).filter(|(known, _)| *known == at_ms);
            let since = known.map_or(now, |(_, since)| *since);
            match now.saturating_duration_since(since) >= limits.confirm_after {
                true => expired.push(AbsentNode { name, at_ms }),
                false => drop(nodes.insert(name, (at_ms, since))),
            }
        }
        self.nodes = nodes;
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_jump_of_the_redis_clock_does_not_remove_members() {
        let start = Clock::system().instant();
        let limits = AbsenceLimits {
            lifetime: Duration::from_secs(100),
            confirm_after: Duration::from_secs(60),
        };
        let mut absent = AbsentNodes::default();
        let mut expired = |at_ms, now_ms, after_s| {
            let now = start + Duration::from_secs(after_s);
            let b = AbsentNode { name: "b".into(), at_ms };
            absent.take_expired([b].into_iter(), limits, now_ms, now).len()
        };
        assert_eq!(expired(1_000, 100_000, 0), 0);
        // The clock jumps: the last heartbeat looks old, until the next one.
        assert_eq!(expired(1_000, 900_000, 1), 0);
        assert_eq!(expired(901_000, 902_000, 2), 0);
        // No further heartbeat follows.
        assert_eq!(expired(901_000, 2_000_000, 900), 0);
        assert_eq!(expired(901_000, 2_059_000, 959), 0);
        assert_eq!(expired(901_000, 2_060_000, 960), 1);
    }
}
