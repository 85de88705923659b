//! The signal that tells all workers to drain: to send their clients elsewhere, then to accept no more connections and finish.

use std::time::Duration;

use tokio::sync::watch;

/// How far the node's drain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DrainPhase {
    /// The node does not drain.
    Serving,
    /// The node accepts connections for this time, and tells its clients to connect anew, at an address that is elsewhere by
    /// then.
    Notice(Duration),
    /// No connections are accepted, and after this grace the remaining ones are closed.
    Closing(Duration),
}

/// Starts the drain on every worker.
#[derive(Clone, Debug)]
pub(crate) struct DrainSwitch(watch::Sender<DrainPhase>);

/// Receives the signal to drain. Each worker has a clone.
#[derive(Clone, Debug)]
pub(crate) struct Drain(watch::Receiver<DrainPhase>);

/// A switch, and the receiver of its signal.
pub(crate) fn drain() -> (DrainSwitch, Drain) {
    let (sender, receiver) = watch::channel(DrainPhase::Serving);
    (DrainSwitch(sender), Drain(receiver))
}

impl DrainSwitch {
    /// Starts the next phase on all workers. A second grace replaces the first; [`DrainPhase::Closing`] cannot be taken
    /// back.
    pub(crate) fn turn(&self, phase: DrainPhase) {
        self.0.send_if_modified(|now| {
            let is_closing = matches!(now, DrainPhase::Closing(_));
            let is_allowed = !is_closing || matches!(phase, DrainPhase::Closing(_));
            if is_allowed {
                *now = phase;
            }
            is_allowed
        });
    }
}

impl Drain {
    /// Waits until another phase starts. Never returns if the switch was dropped.
    pub(crate) async fn next_phase(&mut self) -> DrainPhase {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        *self.0.borrow_and_update()
    }
}

/// The notice of a drain on one worker: when each connection is told to close.
///
/// In its first half no connection is: load balancers and DNS must see first that the node is not ready, else the clients
/// connect to this node again. Then connections are told one after the other, the last well before the node
/// accepts none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Departures {
    /// The start of the notice, since the start of the worker.
    pub from: Duration,
    /// The length of the notice.
    pub notice: Duration,
}

impl Departures {
    /// The share of connections that have been told at this time since the start of the worker, from 0 to 1.
    pub(super) fn share_at(&self, now: Duration) -> f64 {
        let passed = now.saturating_sub(self.from).as_secs_f64();
        let progress = passed / self.notice.as_secs_f64().max(f64::MIN_POSITIVE);
        ((progress - FIRST) / (LAST - FIRST)).clamp(0.0, 1.0)
    }
}

/// The part of the notice after which the first connection is told to close.
const FIRST: f64 = 0.5;
/// The part of the notice after which the last connection is.
const LAST: f64 = 0.9;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_grace_of_the_last_start_counts_and_is_not_taken_back() {
        let (switch, mut drain) = drain();
        switch.turn(DrainPhase::Notice(Duration::from_secs(3)));
        switch.turn(DrainPhase::Closing(Duration::from_secs(7)));
        switch.turn(DrainPhase::Closing(Duration::from_secs(9)));
        switch.turn(DrainPhase::Serving);
        assert_eq!(drain.next_phase().await, DrainPhase::Closing(Duration::from_secs(9)));
    }

    #[test]
    fn connections_are_told_in_the_second_half_of_the_notice() {
        let (from, notice) = (Duration::from_secs(100), Duration::from_secs(10));
        let share = |ms| Departures { from, notice }.share_at(Duration::from_millis(ms));
        assert_eq!(
            [share(100_000), share(105_000), share(109_000), share(200_000)],
            [0.0, 0.0, 1.0, 1.0]
        );
        assert!((share(107_000) - 0.5).abs() < 0.001);
        let none = Departures { from, notice: Duration::ZERO };
        assert_eq!(none.share_at(Duration::from_secs(101)), 1.0);
    }
}
