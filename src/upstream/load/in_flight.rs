//! An exchange as its member's load sees it: counted while in flight, and measured.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use super::super::exchange::deadline::monotonic_us;
use super::super::pool::pool_state::MemberState;
use super::queue::Queue;

/// An exchange that is counted at a member until dropped.
pub(in crate::upstream) struct InFlight {
    member: Rc<MemberState>,
    /// When it began, in microseconds of the monotonic clock, until its latency was measured.
    /// `None` if it is not to be measured.
    began_us: Cell<Option<u64>>,
    /// Requests that may wait for the end of this one.
    queue: Option<Arc<Queue>>,
}

impl InFlight {
    /// Takes over an exchange that [`super::Load::enter`] has counted. `is_timed`: its
    /// latency is measured. Its end wakes the first request in `queue`.
    pub(in crate::upstream) fn counted(
        member: &Rc<MemberState>,
        is_timed: bool,
        queue: Option<Arc<Queue>>,
    ) -> Self {
        Self { member: member.clone(), began_us: Cell::new(is_timed.then(monotonic_us)), queue }
    }

    /// The head of the response has arrived.
    pub(in crate::upstream) fn measured(&self) {
        if let Some(began_us) = self.began_us.take() {
            let (micros, now_ms) = since(began_us);
            self.member.member.load.update(|latency| latency.measured(micros, now_ms));
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let load = &self.member.member.load;
        load.leave();
        if let Some(queue) = &self.queue {
            queue.wake_first();
        }
        if let Some(began_us) = self.began_us.take() {
            let (micros, now_ms) = since(began_us);
            load.update(|latency| latency.at_least(micros, now_ms));
        }
    }
}

/// Microseconds since then, and the time now in milliseconds.
fn since(began_us: u64) -> (f32, u64) {
    let now_us = monotonic_us();
    (now_us.saturating_sub(began_us) as f32, now_us / 1000)
}
