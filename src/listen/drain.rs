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

    /// Calls [`DrainSwitch::start`] after `notice`, unless the drain has started by then.
    pub(crate) async fn start_after(&self, notice: Duration, grace: Duration) {
        tokio::time::sleep(notice).await;
        self.0.send_if_modified(|started| {
            let first = started.is_none();
            *started = started.or(Some(grace));
            first
        });
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
    async fn a_notice_that_ends_late_changes_nothing() {
        let (switch, mut drain) = drain();
        switch.start(Duration::from_secs(7));
        switch.start_after(Duration::ZERO, Duration::from_secs(9)).await;
        assert_eq!(drain.grace().await, Duration::from_secs(7));
    }

    #[tokio::test]
    async fn after_the_notice_the_word_is_given() {
        let (switch, mut drain) = drain();
        switch.start_after(Duration::ZERO, Duration::from_secs(9)).await;
        assert_eq!(drain.grace().await, Duration::from_secs(9));
    }
}
