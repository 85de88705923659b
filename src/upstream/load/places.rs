//! The places that members of a pool have for exchanges: room by `requests_max`, and a connection, or a slot
//! for one by `connections_max`.
//!
//! In a pool with a queue the choice of a member takes the slot, so that two workers never count on the last one.

use std::cell::Cell;
use std::sync::atomic::Ordering;

use super::super::connection::io::ConnectionSlot;
use super::super::exchange::Intent;
use super::super::pool::Pool;
use super::super::pool::pool_state::MemberStates;
use crate::metrics::Recorder;

/// The places of a pool's members, as one choice sees them.
pub(in crate::upstream) struct Places<'a> {
    among: &'a MemberStates,
    pool: &'a Pool,
    intent: &'a Intent,
    recorder: &'a Recorder,
    shortage: Cell<Option<Shortage>>,
    /// Of the place that was taken.
    slot: Cell<Option<Box<ConnectionSlot>>>,
}

/// Why a member has no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum Shortage {
    /// The origin has as many requests in flight as it may have.
    Requests,
    /// The origin has as many connections as it may have, and none is free on this core.
    Connections,
}

impl<'a> Places<'a> {
    pub(in crate::upstream) fn new(
        pool: &'a Pool,
        among: &'a MemberStates,
        intent: &'a Intent,
        recorder: &'a Recorder,
    ) -> Self {
        Self { among, pool, intent, recorder, shortage: Cell::new(None), slot: Cell::new(None) }
    }

    /// Why a member was passed over. One that lacks a connection counts before others, because idle
    /// connections of other cores can be closed.
    pub(in crate::upstream) fn shortage(&self) -> Option<Shortage> {
        self.shortage.get()
    }

    /// The slot of the place that was taken last, if it needs a new connection.
    pub(in crate::upstream) fn slot(&self) -> Option<Box<ConnectionSlot>> {
        self.slot.take()
    }

    /// Whether the member at this position has a place.
    pub(in crate::upstream) fn has_one(&self, at: usize) -> bool {
        let (settings, member) = (self.pool.settings(), self.among.members.at(at));
        let max = settings.requests_max;
        if max > 0 && member.load.in_flight() >= max {
            return self.lacks(Shortage::Requests);
        }
        let is_full = member.connections.load(Ordering::Relaxed) >= settings.connections_max;
        if is_full && !self.has_connection(at) {
            return self.lacks(Shortage::Connections);
        }
        true
    }

    /// Takes a place at the member, which counts the exchange if the pool needs that. False if there is none
    /// any more, or the member has `in_flight_max` exchanges.
    pub(in crate::upstream) fn take(&self, at: usize, in_flight_max: u32) -> bool {
        let (settings, member) = (self.pool.settings(), self.among.members.at(at));
        let limit = match settings.requests_max {
            0 => in_flight_max,
            max => in_flight_max.min(max),
        };
        let counts = settings.counts_in_flight();
        if counts && !member.load.enter(limit) {
            if limit == settings.requests_max {
                self.lacks(Shortage::Requests);
            }
            return false;
        }
        if settings.queue.length == 0 || self.has_connection(at) {
            return true;
        }
        let Some(slot) = ConnectionSlot::take(self.pool, member, self.recorder) else {
            // Another core has taken the last one. A pool with a queue counts.
            member.load.leave();
            return self.lacks(Shortage::Connections);
        };
        self.slot.set(Some(slot));
        true
    }

    fn has_connection(&self, at: usize) -> bool {
        self.among.states[at].has_connection(self.pool.settings(), self.intent)
    }

    fn lacks(&self, shortage: Shortage) -> bool {
        if self.shortage.get() != Some(Shortage::Connections) {
            self.shortage.set(Some(shortage));
        }
        false
    }
}
