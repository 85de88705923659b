//! The member for the first try of a request. If each usable one has as many requests in flight, or
//! connections, as it may have, the request waits in the pool's queue. Later tries do not wait.

use super::super::choice::{Chosen, NoChoice};
use super::super::error::{FetchError, OriginLimits, Unanswered};
use super::super::load::places::Shortage;
use super::super::settings::PoolSettings;
use super::Outgoing;
use crate::body::Body;
use crate::labels::{QueueRefusal, Unsent};
use crate::metrics::Metric;

impl Outgoing<'_> {
    /// The member for the first try.
    ///
    /// # Errors
    /// No member is up, or none was free in time.
    pub(super) async fn first_choice(&self, body: &Body) -> Result<Chosen, Box<Unanswered>> {
        let pool = &self.state.pool;
        // Requests that wait go first.
        let has_queue = pool.settings().queue.length > 0;
        if !has_queue || pool.queue.len() == 0 {
            match self.choose_first(body) {
                Ok(chosen) => return Ok(chosen),
                Err(NoChoice::AllDown(next_trial)) => return Err(self.all_down(next_trial)),
                Err(NoChoice::AllBusy(_)) => {}
            }
        }
        // On the heap: most requests do not wait, and their future stays small.
        Box::pin(self.queued(body)).await
    }

    fn choose_first(&self, body: &Body) -> Result<Chosen, NoChoice> {
        match self.choose(&self.broken, body) {
            Err(_) if self.is_resumption() => self.choose(&[], body),
            chosen => chosen,
        }
    }

    async fn queued(&self, body: &Body) -> Result<Chosen, Box<Unanswered>> {
        let choose = || match self.choose_first(body) {
            Ok(chosen) => Some(Ok(chosen)),
            Err(NoChoice::AllDown(next_trial)) => Some(Err(self.all_down(next_trial))),
            Err(NoChoice::AllBusy(shortage)) => {
                if shortage == Shortage::Connections {
                    self.state.pool.queue.want_connection();
                }
                None
            }
        };
        let chosen = self.wait_in_queue(choose).await;
        chosen.unwrap_or_else(|error| Err(self.unsent(Unsent::Busy, error)))
    }

    /// Waits in the pool's queue until the request is the first one and `place` finds something.
    ///
    /// # Errors
    /// The queue is full, or nothing was found in time.
    pub(in crate::upstream) async fn wait_in_queue<T>(
        &self,
        place: impl Fn() -> Option<T>,
    ) -> Result<T, FetchError> {
        let (pool, recorder) = (&self.state.pool, &self.core.recorder);
        let PoolSettings { requests_max, connections_max, queue, .. } = *pool.settings();
        let refused = |refusal: QueueRefusal, waited| {
            recorder.count_labelled(Metric::UpstreamQueueRefused, refusal.index());
            let limits = OriginLimits { requests: requests_max, connections: connections_max };
            let (pool, queue_length) = (pool.name().clone(), queue.length);
            FetchError::Busy { pool, limits, queue_length, waited }
        };
        let ticket = pool.queue.join(queue.length, recorder);
        let ticket = ticket.ok_or_else(|| refused(QueueRefusal::Full, None))?;
        let began = self.core.clock.instant();
        let placed = ticket.place(queue.wait_max, place).await;
        let placed = placed.ok_or_else(|| refused(QueueRefusal::Late, Some(queue.wait_max)))?;
        let queued = self.core.clock.instant() - began;
        self.queued.set(self.queued.get() + queued);
        recorder.observe(Metric::UpstreamQueueWait, queued);
        Ok(placed)
    }
}
