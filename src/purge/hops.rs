//! Purges across hops: the requirement of a request to another node, and whether this node meets that of
//! another.
//!
//! An asker reads, in this order, its purge sequence (the stamp of its copy), the unread purges, and its early
//! position. Each purge enters the unread purges, or moves the early position, before it is in force. So a purge
//! that is in force by the stamp is found in one of them. An owner looks at its late position, which moves after
//! purges are in force, and only then into its store.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Notify;

use super::position::{BusCursor, EntryId, StreamPosition};
use super::requirement::Requirement;
use super::{PurgeTarget, Purges};
use crate::labels::RequirementOutcome;
use crate::metrics::Metric;
use crate::planted::{self, Bug}; // fault injection, in debug builds with `planted-bugs` only

/// This node's position in the purge stream.
#[derive(Debug, Default)]
pub(super) struct StreamPlace {
    /// Whether this node has a purge bus.
    has_stream: AtomicBool,
    /// Moves before an entry's purges are in force.
    early: RwLock<Option<StreamPosition>>,
    /// Moves after them.
    late: RwLock<Option<LatePosition>>,
    /// Wakes requests that wait for a position to move, or for an unread purge to be read.
    pub(super) changed: Notify,
}

#[derive(Debug)]
struct LatePosition {
    position: StreamPosition,
    /// The ids of the last entries up to that of `position`, without a gap, at most [`RECENT_MAX`].
    recent: VecDeque<EntryId>,
}

impl StreamPlace {
    pub(super) fn move_early(&self, cursor: &BusCursor) {
        self.early.write().unwrap_or_else(PoisonError::into_inner).clone_from(&cursor.position);
    }

    pub(super) fn move_late(&self, cursor: &BusCursor) {
        let mut late = self.late.write().unwrap_or_else(PoisonError::into_inner);
        let before = late.take();
        *late =
            cursor.position.clone().map(|position| LatePosition::after(before, position, cursor));
        drop(late);
        self.changed.notify_waiters();
    }

    fn early(&self) -> Option<StreamPosition> {
        self.early.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn outcome(&self, requirement: &Requirement) -> RequirementOutcome {
        let Requirement::Entries(entries) = requirement else {
            return RequirementOutcome::OriginOnly;
        };
        if entries.is_empty() || planted::has(Bug::PositionIgnored) {
            return RequirementOutcome::Met;
        }
        let late = self.late.read().unwrap_or_else(PoisonError::into_inner);
        let Some(late) = &*late else { return RequirementOutcome::NoPosition };
        let outcomes = entries.iter().map(|entry| late.outcome(entry));
        outcomes
            .into_iter()
            .find(|outcome| *outcome != RequirementOutcome::Met)
            .unwrap_or(RequirementOutcome::Met)
    }
}

impl LatePosition {
    fn after(before: Option<Self>, position: StreamPosition, cursor: &BusCursor) -> Self {
        let count = cursor.entries.len() as u64;
        let follows = |before: &Self| {
            before.position.history == position.history
                && before.position.number + count == position.number
        };
        let mut recent = match before {
            // The same cursor again: the disk was full.
            Some(before) if before.position == position => return before,
            Some(before) if follows(&before) => before.recent,
            _ => VecDeque::new(),
        };
        recent.extend(&cursor.entries);
        if recent.back() != Some(&position.entry) || recent.len() as u64 > position.number.max(1) {
            recent = [position.entry].into();
        }
        recent.drain(..recent.len().saturating_sub(RECENT_MAX));
        Self { position, recent }
    }

    /// Whether this very entry was applied. An entry with the same number may be another one: Redis may have
    /// lost the first.
    fn outcome(&self, required: &StreamPosition) -> RequirementOutcome {
        if self.position.history != required.history {
            return RequirementOutcome::OtherHistory;
        }
        let Some(behind_last) = self.position.number.checked_sub(required.number) else {
            return RequirementOutcome::Behind;
        };
        match self.recent.iter().rev().nth(usize::try_from(behind_last).unwrap_or(usize::MAX)) {
            Some(entry) if *entry == required.entry => RequirementOutcome::Met,
            Some(_) => RequirementOutcome::OtherEntry,
            None => RequirementOutcome::Forgotten,
        }
    }
}

impl Purges {
    /// Tells that this node has a purge bus: until the bus has a position, no other node's cache will do.
    pub(crate) fn expect_stream(&self) {
        self.place.has_stream.store(true, Ordering::Release);
    }

    /// Whether this node has a purge stream, which brings purges to other nodes.
    pub(super) fn has_stream(&self) -> bool {
        self.place.has_stream.load(Ordering::Acquire)
    }

    /// Sets the bus' position where no purges come with it.
    pub(crate) fn set_position(&self, cursor: &BusCursor) {
        self.place.move_early(cursor);
        self.place.move_late(cursor);
    }

    /// The purges of the stream that another node must have before it may answer a request for `target` from its
    /// cache. [`Self::peer_has_purges`] tells of the others.
    ///
    /// Call it **after** the purge sequence was read with which the response will be stored, and before the
    /// request is sent. Costs a few loads.
    pub(crate) fn requirement(&self, target: &PurgeTarget<'_>) -> Requirement {
        if !self.has_stream() {
            return Requirement::Entries(Vec::new());
        }
        if self.unread.may_cover(target) && !planted::has(Bug::UnreadIgnored) {
            return Requirement::OriginOnly;
        }
        match self.place.early() {
            Some(position) => Requirement::Entries(vec![position]),
            None => Requirement::OriginOnly,
        }
    }

    /// As [`Self::requirement`]; waits at most `limit` while an unread purge covers the target, because most
    /// are read within milliseconds.
    pub(crate) async fn requirement_within(
        &self,
        target: &PurgeTarget<'_>,
        limit: Duration,
    ) -> Requirement {
        let until = tokio::time::Instant::now() + limit;
        loop {
            let changed = self.place.changed.notified();
            let requirement = self.requirement(target);
            // Without a position it takes longer.
            let is_worth_waiting = requirement == Requirement::OriginOnly
                && self.unread.may_cover(target)
                && self.place.early().is_some();
            if !is_worth_waiting || tokio::time::timeout_at(until, changed).await.is_err() {
                return requirement;
            }
        }
    }

    /// Whether this node has applied the purges of another node's requirement. Look into the store only
    /// after this call.
    pub(crate) fn meets(&self, requirement: &Requirement) -> bool {
        self.place.outcome(requirement) == RequirementOutcome::Met
    }

    /// As [`Self::meets`]; waits at most `limit` for entries of the stream that this node has not applied yet.
    pub(crate) async fn meets_within(&self, requirement: &Requirement, limit: Duration) -> bool {
        let until = tokio::time::Instant::now() + limit;
        let outcome = loop {
            let changed = self.place.changed.notified();
            let outcome = self.place.outcome(requirement);
            if outcome != RequirementOutcome::Behind
                || tokio::time::timeout_at(until, changed).await.is_err()
            {
                break outcome;
            }
        };
        self.recorder.count_labelled(Metric::PurgeRequirements, outcome.index());
        outcome == RequirementOutcome::Met
    }
}

/// Entries of the stream whose ids are remembered, 16 bytes each. An asker that is further behind gets a new
/// response from the origin.
const RECENT_MAX: usize = 4096;
