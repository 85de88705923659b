//! The member for the first try of a request. If each usable one has its maximum of requests in flight,
//! the request waits in the pool's queue. Later tries do not wait.

use super::super::choice::{Chosen, NoChoice};
use super::super::error::{FetchError, Unanswered};
use super::super::settings::PoolSettings;
use super::Outgoing;
use crate::body::Body;
use crate::labels::QueueRefusal;
use crate::metrics::Metric;

impl Outgoing<'_> {
    /// The member for the first try.
    ///
    /// # Errors
    /// None is up, or none was free in time.
    pub(super) async fn first_choice(&self, body: &Body) -> Result<Chosen, Box<Unanswered>> {
        let pool = &self.state.pool;
        // Requests that wait go first.
        let has_limit = pool.settings().requests_max > 0;
        let chosen = match has_limit && pool.queue.len() > 0 {
            true => Err(NoChoice::AllBusy),
            false => self.choose_first(body),
        };
        match chosen {
            Ok(chosen) => Ok(chosen),
            Err(NoChoice::AllDown(next_trial)) => Err(self.all_down(next_trial)),
            // On the heap: most requests do not wait, and their future stays small.
            Err(NoChoice::AllBusy) => Box::pin(self.queued(body)).await,
        }
    }

    fn choose_first(&self, body: &Body) -> Result<Chosen, NoChoice> {
        match self.choose(&self.broken, body) {
            Err(_) if self.is_resumption() => self.choose(&[], body),
            chosen => chosen,
        }
    }

    async fn queued(&self, body: &Body) -> Result<Chosen, Box<Unanswered>> {
        let (pool, recorder) = (&self.state.pool, &self.core.recorder);
        let PoolSettings { requests_max, queue, .. } = *pool.settings();
        let refused = |refusal: QueueRefusal, waited| {
            recorder.count_labelled(Metric::UpstreamQueueRefused, refusal.index());
            let pool = pool.name().clone();
            self.unsent(FetchError::Busy { pool, limit: requests_max, waited })
        };
        let Some(ticket) = pool.queue.join(queue.length, recorder) else {
            return Err(refused(QueueRefusal::Full, None));
        };
        let began = self.core.clock.instant();
        let choose = || match self.choose_first(body) {
            Err(NoChoice::AllBusy) => None,
            Err(NoChoice::AllDown(next_trial)) => Some(Err(self.all_down(next_trial))),
            Ok(chosen) => Some(Ok(chosen)),
        };
        let Some(chosen) = ticket.place(queue.wait_max, choose).await else {
            return Err(refused(QueueRefusal::Late, Some(queue.wait_max)));
        };
        let queued = self.core.clock.instant() - began;
        self.queued.set(queued);
        recorder.observe(Metric::UpstreamQueueWait, queued);
        chosen
    }
}
