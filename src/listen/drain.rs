//! The signal that tells all workers to drain: to accept no more connections and finish.

use std::time::Duration;

use tokio::sync::watch;

/// Starts the drain on every worker.
#[derive(Clone, Debug)]
pub(crate) struct DrainSwitch(watch::Sender<Option<Duration>>);

/// Receives the signal to drain. Each worker has a clone.
#[derive(Clone, Debug)]
pub(crate) struct Drain(watch::Receiver<Option<Duration>>);

/// A switch, and the receiver of its signal.
pub(crate) fn drain() -> (DrainSwitch, Drain) {
    let (sender, receiver) = watch::channel(None);
    (DrainSwitch(sender), Drain(receiver))
}

impl DrainSwitch {
    /// Starts the drain: no new connections are accepted, and after `grace` the remaining ones are
    /// closed. A second call replaces the grace.
    pub(crate) fn start(&self, grace: Duration) {
        self.0.send_replace(Some(grace));
    }
}

impl Drain {
    /// Waits until the drain starts or its grace changes, and returns the grace. Never returns if the
    /// switch was dropped.
    pub(crate) async fn grace(&mut self) -> Duration {
        loop {
            if self.0.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            if let Some(grace) = *self.0.borrow_and_update() {
                return grace;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_grace_of_the_last_start_counts() {
        let (switch, mut drain) = drain();
        switch.start(Duration::from_secs(7));
        switch.start(Duration::from_secs(9));
        assert_eq!(drain.grace().await, Duration::from_secs(9));
    }
}
