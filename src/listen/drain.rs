//! How the end of serving is said to the workers.

use std::time::Duration;

use tokio::sync::watch;

/// Tells every holder of the [`Drain`] to finish.
#[derive(Clone, Debug)]
pub(crate) struct DrainSwitch(watch::Sender<Option<Duration>>);

/// Waits for the word to finish. Cloned to every worker.
#[derive(Clone, Debug)]
pub(crate) struct Drain(watch::Receiver<Option<Duration>>);

/// A switch and what it switches.
pub(crate) fn drain() -> (DrainSwitch, Drain) {
    let (sender, receiver) = watch::channel(None);
    (DrainSwitch(sender), Drain(receiver))
}

impl DrainSwitch {
    /// No new connections from now on; requests under way have `grace` to finish, then
    /// they are cut. Saying it again with less hurries.
    pub(crate) fn start(&self, grace: Duration) {
        self.0.send_replace(Some(grace));
    }

    /// As [`DrainSwitch::start`] after `notice`, unless the word is given before.
    pub(crate) async fn start_after(&self, notice: Duration, grace: Duration) {
        tokio::time::sleep(notice).await;
        self.0.send_if_modified(|said| {
            let first = said.is_none();
            *said = said.or(Some(grace));
            first
        });
    }
}

impl Drain {
    /// Whether the word was given.
    pub(crate) fn started(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Resolves when the word is given or changed, to the grace. Never, if the switch is gone.
    pub(crate) async fn told(&mut self) -> Duration {
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
        assert_eq!(drain.told().await, Duration::from_secs(7));
    }

    #[tokio::test]
    async fn after_the_notice_the_word_is_given() {
        let (switch, mut drain) = drain();
        switch.start_after(Duration::ZERO, Duration::from_secs(9)).await;
        assert_eq!(drain.told().await, Duration::from_secs(9));
    }
}
